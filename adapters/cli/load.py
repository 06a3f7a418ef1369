"""`onhand load`: a catalogue, or opening stock and prices, from CSV files."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters.cli.csvfile import CsvFile, CsvInvalid, FileKind, read_csv
from adapters.cli.options import DEFAULT_DATA_DIR, DataDir, Gateway, gateway_of
from adapters.cli.output import CommandFailed, progress_bar, say

if TYPE_CHECKING:
    from adapters.client import Client

ROWS_AT_ONCE: Final = 4_000  # of a request; a row of stock with a price makes two lines


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

    A file is checked whole before anything is sent. The same stock file twice has one effect, for as
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
        told = asyncio.run(
            _load(address, file, content, digest, lambda done: bar.advance(task, done))
        )
    say(told)


async def _load(
    gateway: str, file: Path, content: CsvFile, digest: bytes, advance: Callable[[int], Any]
) -> str:
    from adapters.client import Client, Location, Sku

    rows = content.rows
    async with Client.connect(gateway) as client:
        # A bundle is added after what it is made of.
        groups = ([row for row in rows if bool(row.get("components")) == last] for last in (0, 1))
        parts = [
            group[at : at + ROWS_AT_ONCE]
            for group in groups
            for at in range(0, len(group), ROWS_AT_ONCE)
        ]
        if content.kind is FileKind.STOCK:
            return await _load_stock(client, file, parts, digest, advance)
        for part in parts:
            if content.kind is FileKind.SKUS:
                await client.add_skus(
                    [
                        Sku(
                            row["sku"],
                            row["unit"],
                            row.get("description", ""),
                            tuple(row.get("gtins", "").split()),
                            components=_components(row.get("components", "")),
                        )
                        for row in part
                    ]
                )
            else:
                await client.add_locations(
                    [
                        Location(row["location"], row["currency"], row.get("description", ""))
                        for row in part
                    ]
                )
            advance(len(part))
    return f"loaded: {len(rows):,} {content.kind.name.lower()}"


def _components(text: str) -> tuple[tuple[str, int], ...]:
    """What a bundle is made of, as `SKU:QUANTITY` with space between."""
    pairs = (each.rpartition(":") for each in text.split())
    return tuple((code, int(units)) for code, _, units in pairs)


async def _load_stock(
    client: "Client",
    file: Path,
    parts: list[list[dict[str, str]]],
    digest: bytes,
    advance: Callable[[int], Any],
) -> str:
    """Receive and price; ids follow from the file's content, so that a repeat has no effect."""
    from adapters.client import Batch, Kind
    from engine.currencies import NUMBERS

    skus = {sku.code: sku.id async for sku in client.list_skus()}
    places = {place.code: place for place in await client.list_locations()}
    _check_known(file, parts, skus, places)
    received = 0
    for number, part in enumerate(parts):
        lines: list[tuple[int, int, int, int, int, int]] = []
        for row in part:
            sku, place = skus[row["sku"]], places[row["location"]]
            if int(row["quantity"]):
                lines.append((Kind.RECEIVE, sku, place.id, int(row["quantity"]), 0, 0))
                received += 1
            if row.get("price_minor"):
                price = (int(row["price_minor"]), NUMBERS[place.currency])
                lines.append((Kind.SET_PRICE, sku, place.id, 0, *price))
        if lines:
            kind, sku_ids, location, quantity, value, currency = zip(*lines, strict=True)
            batch = Batch(kind, sku_ids, location, quantity, value, currency=currency)
            op_id = digest[:8] + (number << 16).to_bytes(8, "big")
            answer = await client.submit(batch, op_id=op_id)
            for at in answer.refused[:1].tolist():
                raise CommandFailed(f"{file}: line {lines[at]} was refused: {answer.message(at)}")
        advance(len(part))
    return f"loaded: {sum(map(len, parts)):,} cells, {received:,} with stock"


def _check_known(
    file: Path,
    parts: list[list[dict[str, str]]],
    skus: dict[str, int],
    places: dict[str, Any],
) -> None:
    """Name what is not in the catalogue. Raises CommandFailed."""
    rows = [row for part in parts for row in part]
    for field, known in (("sku", skus), ("location", places)):
        unknown = list(dict.fromkeys(row[field] for row in rows if row[field] not in known))
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            names = ", ".join(map(repr, unknown[:3]))
            raise CommandFailed(f"{file}: {field}: not in the catalogue: {names}{more}")
