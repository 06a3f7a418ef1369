"""From the engine's answers to the contract's messages. Knows no gRPC and no shard."""

import struct
from collections.abc import Sequence
from typing import Final, Protocol

from adapters.rpc import texts
from adapters.rpc.texts import Texts
from engine import limits
from engine.entries import Location, Sku
from engine.history import History
from engine.operations import Answer
from engine.status import Status
from engine.views import Cell, DatedIncoming, EndangeredHold, Hold, HoldState, Incoming
from onhand.v1 import availability_pb2, common_pb2, stock_pb2

# Once committed, or given up, a hold has no deadline; what stands there is of its time before.
_HAS_DEADLINE: Final = (HoldState.PENDING, HoldState.EXPIRED)
_OTHERWISE: Final = (Status.LINKED_LINE_REFUSED, Status.ALREADY_RECORDED)


def submitted(shard: int, answer: Answer) -> stock_pb2.SubmitReply:
    """The reply to a batch."""
    status = answer.status
    return stock_pb2.SubmitReply(
        status=b"" if status.count(0) == len(status) else status,
        available=answer.available,
        now_ns=answer.now_ns,
        shard=shard,
        epoch=answer.epoch,
        seq=answer.seq,
        granted=answer.granted,
        endangered=[
            stock_pb2.BatchEndangered(line=each.line, endangered=_endangered(hold))
            for each in answer.endangered
            for hold in each.holds
        ],
    )


def operation(shard: int, answer: Answer, told: Texts = texts.GENERAL) -> common_pb2.OperationReply:
    """The reply to a single call; its `available` was asked for. `told`: of its refusals.

    Field by field: it takes half the time of messages made from keywords and put together.
    """
    reply = common_pb2.OperationReply()
    status, available = answer.status, answer.available
    if len(status) == 1:
        code = status[0]
        _add_line(reply, code, int.from_bytes(available, "little", signed=True), told)
    else:
        code = _first_refusal(status)
        amounts = struct.unpack(f"<{len(status)}q", available or bytes(8 * len(status)))
        for code_of_line, amount in zip(status, amounts, strict=True):
            _add_line(reply, code_of_line, amount, told)
    if answer.granted:
        units = struct.unpack(f"<{len(status)}q", answer.granted)
        for line, granted in zip(reply.lines, units, strict=True):
            line.granted = granted
    for each in answer.endangered:
        reply.lines[each.line].endangered.extend(map(_endangered, each.holds))
    if code:
        reply.status = code  # type: ignore[assignment] # a plain number, which protobuf takes as well
        reply.message = told[code]
    reply.now_ns = answer.now_ns
    reply.shard = shard
    reply.epoch = answer.epoch
    reply.seq = answer.seq
    return reply


def reserved(
    shard: int, answer: Answer, message: stock_pb2.ReserveRequest
) -> common_pb2.OperationReply:
    """The reply to a Reserve, with the hold's id and deadline when there is one."""
    told = texts.RESERVE_IN_CHANNEL if message.channel else texts.RESERVE
    reply = operation(shard, answer, told)
    if reply.status and message.allow_partial and Status.OK in answer.status:
        reply.status = common_pb2.STATUS_OK
        reply.message = ""
    if not reply.status:
        _name_hold(reply, answer, message)
    return reply


def exchanged(
    shard: int, answer: Answer, message: stock_pb2.ExchangeRequest
) -> common_pb2.OperationReply:
    """The reply to an Exchange, with the id and the deadline of the hold that it made."""
    told = texts.EXCHANGE_IN_CHANNEL if message.channel else texts.RETURN
    reply = operation(shard, answer, told)
    if not reply.status:
        _name_hold(reply, answer, message)
    return reply


def _name_hold(
    reply: common_pb2.OperationReply,
    answer: Answer,
    message: stock_pb2.ReserveRequest | stock_pb2.ExchangeRequest,
) -> None:
    reply.hold_id = message.op_id
    if not message.commit_now:
        ttl_ms = message.ttl_ms or limits.DEFAULT_TTL_MS
        reply.deadline_ns = answer.now_ns + ttl_ms * limits.NS_PER_MS


def extended(shard: int, answer: Answer, ttl_ms: int) -> common_pb2.OperationReply:
    """The reply to an Extend, with the deadline that it asked for: a later one stays."""
    reply = operation(shard, answer)
    if not reply.status:
        ttl_ms = ttl_ms or limits.DEFAULT_TTL_MS
        reply.deadline_ns = answer.now_ns + ttl_ms * limits.NS_PER_MS
    return reply


def sold(shard: int, answer: Answer, ids: Sequence[bytes]) -> common_pb2.OperationReply:
    """The reply to a Sale, with the ids of its lines when they have any."""
    reply = operation(shard, answer, texts.SALE)
    for line, sale_id in zip(reply.lines, ids, strict=False):
        line.sale_id = sale_id
    return reply


class Names(Protocol):
    """What this room needs of the catalogue: entries by id, of ids that were given."""

    @property
    def skus(self) -> int:
        """The highest id of a SKU."""

    @property
    def locations(self) -> int:
        """The highest id of a location."""

    def sku(self, sku_id: int) -> Sku:
        """A SKU, by its code in force."""

    def location(self, location_id: int) -> Location:
        """A location."""


def named_sku(sku_id: int, names: Names) -> common_pb2.Sku:
    """A SKU by its id and by the code in force, if there is one: a refused line may name anything."""
    code = names.sku(sku_id).code if 1 <= sku_id <= names.skus else ""
    return common_pb2.Sku(id=sku_id, code=code)


def _named_location(location_id: int, names: Names) -> common_pb2.Location:
    code = names.location(location_id).code if 1 <= location_id <= names.locations else ""
    return common_pb2.Location(id=location_id, code=code)


def hold(hold_id: bytes, found: Hold | None, names: Names) -> stock_pb2.Hold:
    """A hold as it stands; its states have the same numbers on the wire."""
    if found is None:
        return stock_pb2.Hold(hold_id=hold_id)
    return stock_pb2.Hold(
        hold_id=hold_id,
        state=int(found.state),  # type: ignore[arg-type]
        deadline_ns=found.deadline_ns if found.state in _HAS_DEADLINE else 0,
        lines=[
            stock_pb2.HoldLine(
                sku=named_sku(line.sku, names),
                location=_named_location(line.location, names),
                pending=line.pending,
                committed=line.committed,
                fulfilled=line.fulfilled,
                returned=line.returned,
            )
            for line in found.lines
        ],
    )


def history(hold_id: bytes, found: Hold | None, told: History, names: Names) -> stock_pb2.History:
    """A hold as it stands, with the operations on it; by the codes that are in force now."""
    return stock_pb2.History(
        hold=hold(hold_id, found, names),
        complete=told.complete,
        events=[
            stock_pb2.HistoryEvent(
                op_id=each.op_id,
                line=each.line,
                kind=each.kind,  # type: ignore[arg-type]
                flags=each.flags,
                sku=named_sku(each.sku, names),
                location=_named_location(each.location, names),
                quantity=each.quantity,
                value=each.value,
                channel=each.channel,
                occurred_at_ns=each.occurred_at_ns,
                status=each.status,  # type: ignore[arg-type]
                now_ns=each.now_ns,
                shard=each.shard,
                epoch=each.epoch,
                seq=each.seq,
            )
            for each in told.events
        ],
    )


def incoming(incoming_id: bytes, found: Incoming | None, names: Names) -> stock_pb2.Incoming:
    """What is on its way, as it stands."""
    if found is None:
        return stock_pb2.Incoming(incoming_id=incoming_id)
    return stock_pb2.Incoming(
        incoming_id=incoming_id,
        state=int(found.state),  # type: ignore[arg-type]
        expected_at_ms=found.expected_at_ns // limits.NS_PER_MS,
        lines=[
            stock_pb2.IncomingLine(
                sku=named_sku(line.sku, names),
                location=_named_location(line.location, names),
                outstanding=line.outstanding,
                received=line.received,
                expected=line.expected,
            )
            for line in found.lines
        ],
    )


def dated(found: Sequence[DatedIncoming], names: Names) -> stock_pb2.ListIncomingReply:
    """What cells have outstanding, by cell and date."""
    return stock_pb2.ListIncomingReply(
        incoming=[
            stock_pb2.DatedIncoming(
                sku=named_sku(each.sku, names),
                location=_named_location(each.location, names),
                expected_at_ms=each.expected_at_ns // limits.NS_PER_MS,
                quantity=each.units,
            )
            for each in found
        ]
    )


def cell(
    name: availability_pb2.CellName, sku: int, location: int, found: Cell | None
) -> availability_pb2.Cell:
    """A cell by the name it was asked by, with its ids when the codes are known."""
    reply = availability_pb2.Cell(sku=name.sku, location=name.location, found=found is not None)
    if found is not None:
        reply.sku.id, reply.location.id = sku, location
        reply.on_hand = found.on_hand
        reply.reserved = found.reserved
        reply.committed = found.committed
        reply.damaged = found.damaged
        reply.quality_control = found.quality_control
        reply.safety_stock = found.safety_stock
        reply.incoming = found.incoming
        reply.available = found.available
        reply.price_minor = found.price_minor
        reply.price_version = found.price_version
    return reply


Part = tuple[int, Cell | None]
"""How many base units of a component are in one piece of a bundle, and its cell."""


def bundle(
    name: availability_pb2.CellName,
    sku: int,
    location: int,
    own: Cell | None,
    parts: Sequence[Part],
) -> availability_pb2.Cell:
    """A bundle at a location, by the name it was asked by; `own` has its price."""
    found = all(part is not None for _, part in parts)
    reply = availability_pb2.Cell(sku=name.sku, location=name.location, found=found)
    if found:
        reply.sku.id, reply.location.id = sku, location
        reply.available = min(part.available // each for each, part in parts if part is not None)
    if own is not None:
        reply.price_minor = own.price_minor
        reply.price_version = own.price_version
    return reply


def pieces(parts: Sequence[Part], buffer: int) -> int:
    """How many pieces can be sold when so much of each component is kept back."""
    return min(
        max(part.available - buffer, 0) // each if part is not None else 0 for each, part in parts
    )


def _endangered(hold: EndangeredHold) -> common_pb2.Endangered:
    return common_pb2.Endangered(
        hold_id=hold.hold_id, pending=hold.pending, committed=hold.committed
    )


def _add_line(reply: common_pb2.OperationReply, code: int, available: int, told: Texts) -> None:
    line = reply.lines.add()
    line.available = available
    if available < 0:
        line.shortage = -available
    if code:
        line.status = code  # type: ignore[assignment]
        line.message = told[code]


def _first_refusal(status: bytes) -> int:
    """The first line's refusal that is its own; OK when there is none.

    What was recorded before is no refusal, so any other one goes before it.
    """
    otherwise = 0
    for code in status:
        if code in _OTHERWISE:
            otherwise = code
        elif code:
            return code
    return otherwise
