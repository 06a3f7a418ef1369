"""`onhand get` and `onhand watch`: one cell, and the changes of a location as they happen."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from adapters.cli.options import DEFAULT_DATA_DIR, DataDir, Gateway, JsonOutput, gateway_of
from adapters.cli.output import CommandFailed, err, out, print_json

if TYPE_CHECKING:
    from adapters.client import Client, Frame

TIMEOUT_S = 5.0  # a person waits


def get(
    sku: Annotated[str, typer.Argument(help="The SKU's code.")],
    location: Annotated[str, typer.Argument(help="The location's code.")],
    gateway: Gateway = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: JsonOutput = False,
) -> None:
    """Show stock and price of one SKU at one location.

    Example: onhand get 826249 S0367
    """
    cell = asyncio.run(_get(gateway_of(gateway, data_dir), sku, location))
    if as_json:
        print_json(cell)
        return
    table = Table(title=f"{sku} at {location}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in cell.items():
        if name not in {"sku", "location", "found"}:
            table.add_row(name, f"{value:,}", style="bold" if name == "available" else "")
    out.print(table)


async def _get(gateway: str, sku: str, location: str) -> dict[str, Any]:
    from adapters.client import Client

    async with Client.connect(gateway, timeout_s=TIMEOUT_S) as client:
        (cell,) = await client.get_cells([(sku, location)])
    if not cell.found:
        raise CommandFailed(f"nothing is known of SKU {sku!r} at location {location!r}")
    return {**asdict(cell), "sku": sku, "location": location}


def watch(
    location: Annotated[str, typer.Argument(help="The location's code.")],
    gateway: Gateway = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: JsonOutput = False,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Show all cells first, not only changes.")
    ] = False,
) -> None:
    """Follow a location: every change of stock and price, live, until Ctrl-C.

    Example: onhand watch S0367 --json | jq .available
    """
    asyncio.run(_watch(gateway_of(gateway, data_dir), location, snapshot, as_json))


async def _watch(gateway: str, location: str, snapshot: bool, as_json: bool) -> None:
    from adapters.client import Client, FrameKind

    async with Client.connect(gateway, timeout_s=TIMEOUT_S) as client:
        known = {each.code for each in await client.list_locations()}
        if location not in known:
            raise CommandFailed(f"location {location!r} is not in the catalogue")
        codes = await _codes(client)
        shown = {FrameKind.DELTA} | ({FrameKind.SNAPSHOT} if snapshot else set())
        cells = 0
        async with aclosing(client.subscribe(locations=[location])) as frames:  # type: ignore[type-var]
            async for frame in frames:
                if frame.kind in shown:
                    _show(frame, codes, as_json)
                if frame.kind is FrameKind.SNAPSHOT:
                    cells += len(frame)
                elif frame.kind is FrameKind.SNAPSHOT_END:
                    err.print(f"following {cells + len(frame):,} cells of {location}; Ctrl-C ends")


async def _codes(client: "Client") -> dict[int, str]:
    return {sku.id: sku.code async for sku in client.list_skus()}


def _show(frame: "Frame", codes: dict[int, str], as_json: bool) -> None:
    for sku, on_hand, available, price_minor, version in zip(
        *(
            getattr(frame, name).tolist()
            for name in ("sku", "on_hand", "available", "price_minor", "price_version")
        ),
        strict=True,
    ):
        change = {
            "sku": codes.get(sku, str(sku)),
            "on_hand": on_hand,
            "available": available,
            "price_minor": price_minor,
            "price_version": version,
        }
        if as_json:
            typer.echo(json.dumps(change))
        else:
            out.print("  ".join(f"{name} [bold]{value}[/bold]" for name, value in change.items()))
