"""`onhand load`: a catalogue, or opening stock and prices, from CSV files."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.cli.csvfile import CsvFile, CsvInvalid, FileKind, read_csv
from adapters.cli.options import DEFAULT_DATA_DIR, TIMEOUT_S, DataDir, Gateway, gateway_of
from adapters.cli.output import CommandFailed, progress_bar, say

if TYPE_CHECKING:
    from adapters.client import Client
    from engine.catalogue import Catalogue


def load_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A CSV file in UTF-8.")],
    gateway: Gateway = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    again: Annotated[
        str,
        typer.Option(help="Any text; with a new one, stock that was loaded before comes again."),
    ] = "",
) -> None:
    """Load SKUs, locations, or opening stock with prices; the header tells which.

    [bold]SKUs[/bold]       sku,unit,description,gtins      (unit: EA, G or ML; gtins: space between)
               and components of a bundle      (SKU:QUANTITY, space between)

    [bold]Locations[/bold]  location,currency,description   (currency: ISO 4217)

    [bold]Stock[/bold]      sku,location,quantity,price_minor  (base units; price may be missing)

    A file is checked whole, also against the catalogue, before anything is sent. The same stock file twice has one effect, for as
    long as the shards remember its requests.

    Example: onhand load stock.csv
    """
    try:
        content = read_csv(file)
    except CsvInvalid as error:
        raise CommandFailed(str(error)) from error
    digest = hashlib.sha256(again.encode() + b"\0" + file.read_bytes()).digest()
    address = gateway_of(gateway, data_dir)
    with progress_bar() as bar:
        task = bar.add_task(content.kind.name.lower(), total=len(content.rows))
        told = asyncio.run(_load(address, content, digest, lambda done: bar.advance(task, done)))
    say(told)


async def _load(gateway: str, file: CsvFile, digest: bytes, advance: Callable[[int], Any]) -> str:
    from adapters.client import Client

    async with Client.connect(gateway, timeout_s=TIMEOUT_S):
        pass  # that nobody is there is told soon; what is sent then may take longer
    async with Client.connect(gateway) as client:
        return await load(client, file, digest, advance)


async def load(
    client: "Client", file: CsvFile, digest: bytes, advance: Callable[[int], Any]
) -> str:
    """Load a file, once it is seen to fit the catalogue. Raises CommandFailed, naming lines."""
    from adapters.cli import fitting

    catalogue = fitting.copy_of(
        [sku async for sku in client.list_skus()], await client.list_locations()
    )
    faults = {
        FileKind.SKUS: fitting.faults_of_skus,
        FileKind.LOCATIONS: fitting.faults_of_locations,
        FileKind.STOCK: fitting.faults_of_stock,
    }[file.kind](file, catalogue)
    if faults:
        raise CommandFailed(str(CsvInvalid(file.path, faults)))
    parts = fitting.parts_of(file)
    if file.kind is FileKind.STOCK:
        return await _load_stock(client, file, parts, catalogue, digest, advance)
    for part in parts:
        await _add(client, file, part)
        advance(len(part))
    return f"loaded: {len(file.rows):,} {file.kind.name.lower()}"


async def _add(client: "Client", file: CsvFile, part: list[int]) -> None:
    """Add rows of SKUs or locations to the catalogue."""
    from adapters.cli import fitting
    from adapters.client import InvalidArgument

    rows = [file.rows[number] for number in part]
    try:
        if file.kind is FileKind.SKUS:
            await client.add_skus(list(map(fitting.sku_of, rows)))
        else:
            await client.add_locations(list(map(fitting.location_of, rows)))
    except InvalidArgument as error:  # somebody else has added something meanwhile
        told = fitting.told_by_line(file, part, error.field, error.description)
        raise CommandFailed(told) from error


async def _load_stock(
    client: "Client",
    file: CsvFile,
    parts: list[list[int]],
    catalogue: "Catalogue",
    digest: bytes,
    advance: Callable[[int], Any],
) -> str:
    """Receive and price; ids follow from the file's content, so that a repeat has no effect."""
    from adapters.client import Batch, Kind

    received = 0
    for number, part in enumerate(parts):
        lines: list[tuple[int, int, int, int, int, int]] = []
        of: list[int] = []  # the row of each line
        for each in part:
            row = file.rows[each]
            sku, place = catalogue.sku_id(row["sku"]), catalogue.location_id(row["location"])
            if int(row["quantity"]):
                lines.append((Kind.RECEIVE, sku, place, int(row["quantity"]), 0, 0))
                received += 1
            if row.get("price_minor"):
                price = (int(row["price_minor"]), catalogue.currency(place))
                lines.append((Kind.SET_PRICE, sku, place, 0, *price))
            of += [each] * (len(lines) - len(of))
        if lines:
            kind, sku_ids, location, quantity, value, currency = zip(*lines, strict=True)
            batch = Batch(kind, sku_ids, location, quantity, value, currency=currency)
            op_id = digest[:8] + (number << 16).to_bytes(8, "big")
            answer = await client.submit(batch, op_id=op_id)
            refused = answer.refused.tolist()
            if refused:
                faults = [file.told(of[at], answer.message(at)) for at in refused]
                raise CommandFailed(str(CsvInvalid(file.path, faults)))
        advance(len(part))
    return f"loaded: {len(file.rows):,} cells, {received:,} with stock"
