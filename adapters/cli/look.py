"""`onhand get`, `history`, `watch`: a cell, a hold with its past, changes as they happen."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from adapters.cli.options import (
    DEFAULT_DATA_DIR,
    TIMEOUT_S,
    DataDir,
    Gateway,
    JsonOutput,
    gateway_of,
)
from adapters.cli.output import CommandFailed, err, out, print_json, usage

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from adapters.client import Client, Event, Frame

    Follow = Callable[[Client], Awaitable[None]]

PATIENCE_S = 60.0  # who follows a location, outlives a restart


def get(
    sku: Annotated[str, typer.Argument(help="The SKU's code.")],
    location: Annotated[str, typer.Argument(help="The location's code.")],
    gateway: Gateway = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: JsonOutput = False,
    channel: Annotated[
        str, typer.Option("--channel", help="Show what is available to this channel, too.")
    ] = "",
) -> None:
    """Show stock and price of one SKU at one location.

    Example: onhand get 826249 S0367
    """
    cell = asyncio.run(_get(gateway_of(gateway, data_dir), sku, location, channel))
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


async def _get(gateway: str, sku: str, location: str, channel: str) -> dict[str, Any]:
    from adapters.client import Client

    async with Client.connect(gateway, timeout_s=TIMEOUT_S) as client:
        (cell,) = await client.get_cells([(sku, location)], channel=channel)
        if not cell.found:
            there = channel and (await client.get_cells([(sku, location)]))[0].found
            raise CommandFailed(
                f"channel {channel!r} does not sell at location {location!r}"
                if there
                else f"nothing is known of SKU {sku!r} at location {location!r}"
            )
    found = {**asdict(cell), "sku": sku, "location": location}
    if not channel:
        del found["available_to_channel"]
    return found


def history(
    hold_id: Annotated[str, typer.Argument(help="The hold's id: 32 hexadecimal digits.")],
    gateway: Gateway = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: JsonOutput = False,
) -> None:
    """Show a hold or an order, and every operation on it, as far back as the journal is kept.

    Example: onhand history 0198c5b2f3a97c0e8d41b7a6e5f40312
    """
    known_as = _id(hold_id)
    found = asyncio.run(_history(gateway_of(gateway, data_dir), known_as))
    if as_json:
        print_json(found)
        return
    deadline = f" (deadline {found['deadline']})" if found["deadline"] else ""
    title = f"{found['state']}{deadline}, as it stands"
    table = Table(title=title, title_justify="left", padding=0)
    for name in _EVENT_COLUMNS:
        justify: JustifyMethod = "right" if name in {"quantity", "value"} else "left"
        table.add_column(name, justify=justify, overflow="fold")  # a pipe is narrow
    for event in found["events"]:
        table.add_row(*(str(event[name]) for name in _EVENT_COLUMNS))
    out.print(table)
    if not found["complete"]:
        err.print("older operations may have been trimmed from the journal (keep_journal_mb)")


_EVENT_COLUMNS = ("time", "operation", "sku", "location", "quantity", "value", "status")


def _id(text: str) -> bytes:
    try:
        hold_id = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        hold_id = b""
    if len(hold_id) != 16:
        raise CommandFailed(f"hold_id: {text!r} is not 32 hexadecimal digits")
    return hold_id


async def _history(gateway: str, hold_id: bytes) -> dict[str, Any]:
    from adapters.client import Client

    async with Client.connect(gateway, timeout_s=TIMEOUT_S) as client:
        found = await client.get_history(hold_id)
        if found.hold is None and not found.events:
            raise CommandFailed(f"nothing is known of a hold {hold_id.hex()}")
    return {
        "hold_id": hold_id.hex(),
        "state": found.hold.state.name if found.hold else "FORGOTTEN",
        "deadline": _time(found.hold.deadline_ns) if found.hold and found.hold.deadline_ns else "",
        "lines": [
            {
                "sku": each.sku_code,
                "location": each.location_code,
                "pending": each.pending,
                "committed": each.committed,
                "fulfilled": each.fulfilled,
                "returned": each.returned,
            }
            for each in (found.hold.lines if found.hold else ())
        ],
        "complete": found.complete,
        "events": [
            {
                "time": _time(each.now_ns),
                "operation": each.kind.name,
                "flags": str(each.flags.name or ""),
                "sku": each.sku_code,
                "location": each.location_code,
                "quantity": each.quantity,
                "value": each.value,
                "occurred_at": _time(each.occurred_at_ns) if each.occurred_at_ns else "",
                "status": each.status.name,
                "op_id": each.op_id.hex(),
                "block": f"{each.shard}/{each.epoch}-{each.seq}",
            }
            for each in found.events
        ],
    }


def watch(
    location: Annotated[str, typer.Argument(help="The location's code.")],
    gateway: Gateway = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: JsonOutput = False,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Show all cells first, not only changes.")
    ] = False,
    events: Annotated[
        bool, typer.Option("--events", help="Show each operation, not what comes of them.")
    ] = False,
    oldest: Annotated[
        bool, typer.Option("--oldest", help="With --events: begin with the oldest in the journal.")
    ] = False,
) -> None:
    """Follow a location: every change of stock and price, live, until Ctrl-C.

    With --events, every operation on it: sold one and restocked one are two.

    Example: onhand watch S0367 --json | jq .available
    """
    if (snapshot and events) or (oldest and not events):
        usage("--snapshot goes without --events, --oldest with it")
    follow = (
        _watch_events(location, oldest, as_json) if events else _watch(location, snapshot, as_json)
    )
    asyncio.run(_following(gateway_of(gateway, data_dir), location, follow))


async def _following(gateway: str, location: str, follow: "Follow") -> None:
    from adapters.client import Client

    async with Client.connect(gateway, timeout_s=TIMEOUT_S) as client:
        known = {each.code for each in await client.list_locations()}
        if location not in known:
            raise CommandFailed(f"location {location!r} is not in the catalogue")
    async with Client.connect(gateway, timeout_s=PATIENCE_S) as client:
        await follow(client)


def _watch(location: str, snapshot: bool, as_json: bool) -> "Follow":
    async def follow(client: "Client") -> None:
        from adapters.client import FrameKind

        codes, renames = await _codes(client), 0
        shown = {FrameKind.DELTA} | ({FrameKind.SNAPSHOT} if snapshot else set())
        cells = 0
        async with aclosing(client.subscribe(locations=[location])) as frames:
            async for frame in frames:
                if frame.renames > renames or not codes.keys() >= set(frame.sku.tolist()):
                    codes, renames = await _codes(client), frame.renames
                if frame.kind in shown:
                    _show(frame, codes, as_json)
                if frame.kind is FrameKind.SNAPSHOT:
                    cells += len(frame)
                elif frame.kind is FrameKind.SNAPSHOT_END:
                    err.print(f"following {cells + len(frame):,} cells of {location}; Ctrl-C ends")

    return follow


def _watch_events(location: str, oldest: bool, as_json: bool) -> "Follow":
    async def follow(client: "Client") -> None:
        codes, renames = await _codes(client), 0
        err.print(f"following what is done at {location}; Ctrl-C ends")
        async with aclosing(client.events(locations=[location], oldest=oldest)) as frames:
            async for frame in frames:
                skus = set(frame.columns["sku"].tolist())
                if frame.renames > renames or not codes.keys() >= skus:
                    codes, renames = await _codes(client), frame.renames
                for event in frame:
                    _show_event(event, codes, as_json)

    return follow


def _show_event(event: "Event", codes: dict[int, str], as_json: bool) -> None:
    told = {
        "time": _time(event.now_ns),
        "event": event.kind.name,
        "sku": codes.get(event.sku, str(event.sku)),
        "quantity": event.quantity,
        "value": event.value,
        "hold": event.hold.hex(),
        "op_id": event.op_id.hex(),
        "line": event.line,
        "flags": event.flags.name or "",
        "channel": event.channel,
        "occurred_at": _time(event.occurred_at_ns) if event.occurred_at_ns else "",
        "at": f"{event.shard}/{event.epoch}-{event.seq}/{event.number}",
    }
    if as_json:
        typer.echo(json.dumps(told))
    else:
        _show_line({name: told[name] for name in ("time", "event", "sku", "quantity", "hold")})


def _time(now_ns: int) -> str:
    """A moment in UTC; short enough for a column of a narrow terminal when it is folded."""
    told = datetime.fromtimestamp(now_ns / 1e9, UTC)
    return told.isoformat(" ", "milliseconds").replace("+00:00", "Z")


async def _codes(client: "Client") -> dict[int, str]:
    return {sku.id: sku.code async for sku in client.list_skus()}


def _show(frame: "Frame", codes: dict[int, str], as_json: bool) -> None:
    endangered = {
        short.sku: [each.hold_id.hex() for each in short.holds] for short in frame.shortages
    }
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
            "endangered": endangered.get(sku, []),
        }
        if as_json:
            typer.echo(json.dumps(change))
        else:
            _show_line(change | {"endangered": " ".join(endangered.get(sku, []))})


def _show_line(told: dict[str, Any]) -> None:
    """One line, however long: it may go to a pipe."""
    shown = {name: escape(str(value)) for name, value in told.items() if value != ""}
    out.print("  ".join(f"{name} [bold]{shown[name]}[/bold]" for name in shown), soft_wrap=True)
