"""Between values and the contract's messages. No calls, no decisions."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adapters.client.frames import EventFrame, Frame, Shortage
from adapters.client.values import (
    Cell,
    CellPage,
    Channel,
    DatedIncoming,
    Endangered,
    History,
    Hold,
    HoldEvent,
    HoldLine,
    Incoming,
    IncomingLine,
    LineResult,
    Lines,
    Location,
    Name,
    Price,
    Result,
    ReturnLine,
    Sku,
    Transfer,
    TransferLine,
)
from engine.frames import FrameKind
from engine.operations import Disposition, Flag, Kind
from engine.status import Status
from engine.views import HoldState
from onhand.v1 import (
    availability_pb2,
    catalog_pb2,
    common_pb2,
    deltas_pb2,
    price_pb2,
    stock_pb2,
    transfer_pb2,
)

_STOCK_COLUMNS = (
    "on_hand",
    "reserved",
    "committed",
    "damaged",
    "quality_control",
    "safety_stock",
    "incoming",
)


# ------------------------------------------------------------------------------------- to send ----


def sku_of(name: Name) -> common_pb2.Sku:
    """A SKU by its id or code."""
    return common_pb2.Sku(code=name) if isinstance(name, str) else common_pb2.Sku(id=name)


def location_of(name: Name | None) -> common_pb2.Location:
    """A location by its id or code; "not given" for None."""
    if isinstance(name, str):
        return common_pb2.Location(code=name)
    return common_pb2.Location(id=name or 0)


def line_of(sku: Name, location: Name, quantity: int) -> common_pb2.Line:
    """One line. ValueError for a quantity that no message can carry; the server judges the others."""
    units = _carried("quantity", quantity)
    return common_pb2.Line(sku=sku_of(sku), location=location_of(location), quantity=units)


def _carried(field: str, value: int) -> int:
    if not -_WORD <= value < _WORD:
        raise ValueError(f"{field}: {value}, must fit 64 bits")
    return value


_WORD: Final = 1 << 63


def lines_of(lines: Lines) -> list[common_pb2.Line]:
    """Lines, in their order."""
    return [line_of(sku, location, quantity) for sku, location, quantity in lines]


def receipt_line_of(terminal: str, receipt: str, line: int) -> stock_pb2.ReceiptLine:
    """A line of a receipt."""
    return stock_pb2.ReceiptLine(terminal=terminal, receipt=receipt, line=line)


def return_line_of(line: ReturnLine) -> stock_pb2.ReturnLine:
    """Goods that came back."""
    given = ReturnLine(*line)
    against = given.against
    receipt = None if isinstance(against, bytes) else receipt_line_of(*against)
    return stock_pb2.ReturnLine(
        line=line_of(*given[:3]),
        disposition=stock_pb2.Disposition.ValueType(given.disposition),
        against=against if isinstance(against, bytes) else b"",
        receipt_line=receipt,
        sold_at=location_of(given.sold_at),
    )


def inspect_line_of(
    sku: Name, location: Name, quantity: int, disposition: Disposition = Disposition.RESTOCK
) -> stock_pb2.InspectLine:
    """Goods that were in quality control."""
    return stock_pb2.InspectLine(
        line=line_of(sku, location, quantity),
        disposition=stock_pb2.Disposition.ValueType(disposition),
    )


def transfer_lines_of(lines: Iterable[tuple[Name, int]]) -> list[transfer_pb2.TransferLine]:
    """Quantities of SKUs, in their order."""
    return [
        transfer_pb2.TransferLine(sku=sku_of(sku), quantity=_carried("quantity", units))
        for sku, units in lines
    ]


def cell_name_of(sku: Name, location: Name) -> availability_pb2.CellName:
    """A cell's name."""
    return availability_pb2.CellName(sku=sku_of(sku), location=location_of(location))


def price_line_of(sku: Name, location: Name, price_minor: int) -> price_pb2.PriceLine:
    """A new price of one cell."""
    return price_pb2.PriceLine(
        sku=sku_of(sku),
        location=location_of(location),
        price_minor=_carried("price_minor", price_minor),
    )


def sku_entry_of(sku: Sku) -> catalog_pb2.SkuEntry:
    """A SKU to add. ValueError when its unit is none."""
    units = [each.name.removeprefix("UNIT_") for each in catalog_pb2.Unit.DESCRIPTOR.values]
    if sku.unit not in units:
        raise ValueError(f"unit: {sku.unit!r} of {sku.code!r}, must be one of {', '.join(units)}")
    return catalog_pb2.SkuEntry(
        code=sku.code,
        unit=catalog_pb2.Unit.Value(f"UNIT_{sku.unit}"),
        description=sku.description,
        gtins=sku.gtins,
        components=[
            catalog_pb2.Component(sku=sku_of(part), quantity=quantity)
            for part, quantity in sku.components
        ],
    )


def location_entry_of(location: Location) -> catalog_pb2.LocationEntry:
    """A location to add."""
    return catalog_pb2.LocationEntry(
        code=location.code, currency=location.currency, description=location.description
    )


def channel_entry_of(channel: Channel) -> catalog_pb2.Channel:
    """A channel to set."""
    return catalog_pb2.Channel(
        code=channel.code,
        buffer=channel.buffer,
        only_listed=channel.only_listed,
        locations=[
            catalog_pb2.ChannelLocation(location=location_of(name), buffer=buffer)
            for name, buffer in channel.locations.items()
        ],
    )


# ------------------------------------------------------------------------------------ received ----


def result_of(op_id: bytes, reply: common_pb2.OperationReply, location: Name | None) -> Result:
    """The answer to one operation."""
    return Result(
        op_id=op_id,
        status=Status(reply.status),
        message=reply.message,
        lines=tuple(
            LineResult(
                Status(line.status),
                line.available,
                line.shortage,
                line.message,
                line.granted,
                tuple(map(endangered_from, line.endangered)),
                line.sale_id,
            )
            for line in reply.lines
        ),
        now_ns=reply.now_ns,
        deadline_ns=reply.deadline_ns,
        hold_id=reply.hold_id,
        shard=reply.shard,
        epoch=reply.epoch,
        seq=reply.seq,
        location=location,
    )


def hold_from(message: stock_pb2.Hold) -> Hold | None:
    """A hold; None when it is not known."""
    if message.state == stock_pb2.HOLD_STATE_UNKNOWN:
        return None
    return Hold(
        hold_id=message.hold_id,
        state=HoldState(message.state),
        deadline_ns=message.deadline_ns,
        lines=tuple(
            HoldLine(
                line.sku.id,
                line.location.id,
                line.pending,
                line.committed,
                line.fulfilled,
                line.returned,
                line.sku.code,
                line.location.code,
            )
            for line in message.lines
        ),
    )


def endangered_from(message: common_pb2.Endangered) -> Endangered:
    """A hold that a shortage endangers."""
    return Endangered(message.hold_id, message.pending, message.committed)


def incoming_from(message: stock_pb2.Incoming) -> Incoming | None:
    """What is on its way; None when it is not known."""
    if message.state == stock_pb2.HOLD_STATE_UNKNOWN:
        return None
    return Incoming(
        incoming_id=message.incoming_id,
        state=HoldState(message.state),
        expected_at_ms=message.expected_at_ms,
        lines=tuple(
            IncomingLine(
                line.sku.id, line.location.id, line.outstanding, line.received, line.expected
            )
            for line in message.lines
        ),
    )


def dated_from(message: stock_pb2.ListIncomingReply) -> list[DatedIncoming]:
    """What cells have on their way."""
    return [
        DatedIncoming(each.sku.id, each.location.id, each.expected_at_ms, each.quantity)
        for each in message.incoming
    ]


def transfer_from(message: transfer_pb2.Transfer) -> Transfer | None:
    """A transfer; None when it is not known."""
    if not message.found:
        return None
    return Transfer(
        transfer_id=message.transfer_id,
        lines=tuple(
            TransferLine(
                line.sku.id,
                line.requested,
                line.shipped,
                line.in_transit,
                line.received,
                line.difference,
            )
            for line in message.lines
        ),
        expected_at_ms=message.expected_at_ms,
    )


def history_from(message: stock_pb2.History) -> History:
    """A hold and its history."""
    return History(
        hold=hold_from(message.hold),
        complete=message.complete,
        events=tuple(
            HoldEvent(
                op_id=each.op_id,
                line=each.line,
                kind=Kind(each.kind),
                flags=Flag(each.flags),
                sku=each.sku.id,
                location=each.location.id,
                quantity=each.quantity,
                value=each.value,
                channel=each.channel,
                occurred_at_ns=each.occurred_at_ns,
                status=Status(each.status),
                now_ns=each.now_ns,
                shard=each.shard,
                epoch=each.epoch,
                seq=each.seq,
                sku_code=each.sku.code,
                location_code=each.location.code,
            )
            for each in message.events
        ),
    )


def cell_from(message: availability_pb2.Cell) -> Cell:
    """One cell."""
    return Cell(
        sku=message.sku.id,
        location=message.location.id,
        found=message.found,
        **{name: getattr(message, name) for name in _STOCK_COLUMNS},
        available=message.available,
        price_minor=message.price_minor,
        price_version=message.price_version,
        available_to_channel=message.available_to_channel,
    )


def prices_from(message: price_pb2.GetPricesReply) -> list[Price]:
    """Prices, in the order asked."""
    return [
        Price(
            price.sku.id,
            price.price_minor if price.found else None,
            price.price_version,
            message.currency,
        )
        for price in message.prices
    ]


def page_from(message: availability_pb2.CellPage, *, of_channel: bool = False) -> CellPage:
    """One page of cells; its columns are read-only views of the message's bytes."""
    to_channel = _column(message.available_to_channel, "<i8", message.cells)
    return CellPage(
        sku=_column(message.sku, "<u4", message.cells),
        location=_column(message.location, "<u4", message.cells),
        **{name: _column(getattr(message, name), "<i8", message.cells) for name in _STOCK_COLUMNS},
        price_minor=_column(message.price_minor, "<i8", message.cells),
        price_version=_column(message.price_version, "<u4", message.cells),
        at=tuple((place.shard, place.epoch, place.seq) for place in message.at),
        available_to_channel=to_channel if of_channel else None,
    )


def frame_from(message: deltas_pb2.Frame) -> Frame:
    """One frame; its columns are read-only views of the message's bytes."""
    return Frame(
        kind=FrameKind(message.kind),
        resume_token=message.resume_token,
        sku=_column(message.sku, "<u4", message.cells),
        location=_column(message.location, "<u4", message.cells),
        on_hand=_column(message.on_hand, "<i8", message.cells),
        available=_column(message.available, "<i8", message.cells),
        price_minor=_column(message.price_minor, "<i8", message.cells),
        price_version=_column(message.price_version, "<u4", message.cells),
        block_now_ns=message.block_now_ns,
        sent_ns=message.sent_ns,
        shortages=tuple(
            Shortage(
                each.sku, each.location, each.shortage, tuple(map(endangered_from, each.holds))
            )
            for each in message.shortages
        ),
        renames=message.renames,
    )


_EVENT_COLUMNS: Final = {
    "kind": "u1",
    "sku": "<u4",
    "location": "<u4",
    "quantity": "<i8",
    "value": "<i8",
    "line": "<u4",
    "flags": "u1",
    "channel": "<u2",
    "currency": "<u2",
    "occurred_at_ns": "<i8",
    "now_ns": "<i8",
    "epoch": "<u8",
    "seq": "<u8",
    "number": "<u4",
}


def event_frame_from(message: deltas_pb2.EventFrame) -> EventFrame:
    """One frame of events; columns are read-only."""
    count = message.events
    columns = {
        name: np.broadcast_to(_column(getattr(message, name), dtype, count), count)
        for name, dtype in _EVENT_COLUMNS.items()
    }
    for name in ("hold", "op_id"):
        ids = _column(getattr(message, name), "u1", 16 * count).reshape(-1, 16)
        columns[name] = np.broadcast_to(ids, (count, 16))
    return EventFrame(
        resume_token=message.resume_token,
        shard=message.shard,
        columns=columns,
        at=tuple((place.shard, place.epoch, place.seq) for place in message.at),
        sent_ns=message.sent_ns,
        renames=message.renames,
    )


def skus_from(entries: Iterable[catalog_pb2.SkuEntry]) -> list[Sku]:
    """SKUs of the catalogue."""
    return [
        Sku(
            each.code,
            catalog_pb2.Unit.Name(each.unit).removeprefix("UNIT_"),
            each.description,
            tuple(each.gtins),
            each.id,
            tuple((part.sku.id, part.quantity) for part in each.components),
            tuple(each.old_codes),
        )
        for each in entries
    ]


def locations_from(entries: Iterable[catalog_pb2.LocationEntry]) -> list[Location]:
    """Locations of the catalogue."""
    return [
        Location(each.code, each.currency, each.description, each.id, each.shard)
        for each in entries
    ]


def channels_from(entries: Iterable[catalog_pb2.Channel]) -> list[Channel]:
    """Channels of the catalogue; their locations by id."""
    return [
        Channel(
            each.code,
            each.buffer,
            each.only_listed,
            {at.location.id: at.buffer if at.HasField("buffer") else None for at in each.locations},
            each.number,
        )
        for each in entries
    ]


def _column(data: bytes, dtype: str, cells: int) -> NDArray[Any]:
    """A packed column; one that was left out is all zeros."""
    return np.frombuffer(data, dtype) if data else np.zeros(cells, dtype)
