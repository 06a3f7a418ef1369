"""From the contract's messages to the engine's requests. Knows no gRPC and no shard.

What is malformed raises InvalidField, which names the field. What can be judged becomes a line, even
when it is sure to be refused: an unknown code gets an id that nothing has, and the machine says so.

This is the hot path of single calls: a request of one line is one packed record, of which its
columns are views and its digest is a hash.
"""

import hashlib
import struct
from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine import currencies, limits
from engine.catalogue import Catalogue
from engine.operations import (
    COLUMNS,
    HANDOVER_KINDS,
    PART_KINDS,
    Flag,
    Kind,
    Request,
    id_to_pair,
)
from onhand.v1 import availability_pb2, common_pb2, price_pb2, stock_pb2

NO_SUCH_ID: Final = 0xFFFFFFFF  # of no SKU and no location; 0 would mean "any" to a call on a hold
_WHOLE_HOLD: Final = 0
_NOT_A_QUANTITY: Final = -1
_NO_HOLD: Final = (0, 0)  # the halves of an id
_ZEROS: Final = bytes(limits.OP_ID_BYTES)
_RESERVE: Final = int(Kind.RESERVE)  # a plain number packs in a third of an enum's time

Codes = Callable[[str], int]
Line = tuple[int, int, int]  # sku, location, quantity


class InvalidField(ValueError):  # noqa: N818 - the word of google.rpc.BadRequest
    """A field of a message is malformed: nothing was judged."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


# --- the batch ------------------------------------------------------------------------------------


def submit(message: stock_pb2.SubmitRequest) -> Request:
    """Read a batch. Its columns are views of the message's bytes wherever that is possible."""
    op_id, lines = message.op_id, message.lines
    check_id("op_id", op_id)
    if op_id[14:] != b"\0\0":
        raise InvalidField("op_id", "the last two bytes of a batch's id must be zero")
    if not 1 <= lines <= limits.MAX_BATCH_LINES:
        raise InvalidField("lines", f"{lines}, must be 1 to {limits.MAX_BATCH_LINES}")
    columns: dict[str, NDArray[Any]] = {}
    given = (
        ("kind", message.kind),
        ("flags", message.flags),
        ("sku", message.sku),
        ("location", message.location),
        ("quantity", message.quantity),
        ("value", message.value),
        ("currency", message.currency),
        ("channel", message.channel),
        ("occurred_at_ns", message.occurred_at_ns),
    )
    # SHA-256 is the quickest on CPUs that have it built in; 8 bytes of it are kept. It sees the
    # columns as they came, so one value for all lines costs nothing.
    digest = hashlib.sha256(struct.pack("<I?", lines, message.want_available))
    for name, data in given:
        digest.update(struct.pack("<I", len(data)))
        if data:
            digest.update(data)
            columns[name] = _column(name, COLUMNS[name], data, lines)
    if hold := message.hold:
        digest.update(hold)
        pairs = _column("hold", _PAIR, hold, lines)
        columns["hold_hi"] = pairs["high"].astype("<u8")
        columns["hold_lo"] = pairs["low"].astype("<u8")
    return Request(op_id, lines, columns, message.want_available, digest.digest()[:8])


_PAIR: Final = np.dtype([("high", ">u8"), ("low", ">u8")])


def _column(name: str, dtype: np.dtype[Any], data: bytes, lines: int) -> NDArray[Any]:
    size = dtype.itemsize
    if len(data) == size * lines:
        return np.frombuffer(data, dtype)
    if len(data) == size:
        return np.repeat(np.frombuffer(data, dtype), lines)
    raise InvalidField(
        name, f"{len(data)} bytes, must be none, {size} (one for all lines) or {size * lines}"
    )


# --- single calls ---------------------------------------------------------------------------------


def reserve(message: stock_pb2.ReserveRequest, catalogue: Catalogue) -> Request:
    """Read a Reserve: every line but the last is linked to the next."""
    op_id, ttl_ms = message.op_id, ttl_of(message)
    lines = lines_of(op_id, message.lines, catalogue)
    if message.channel or message.allow_partial or message.supersedes or message.commit_now:
        return _special_reserve(message, lines, ttl_ms, catalogue)
    if len(lines) == 1:
        sku, location, quantity = lines[0]
        return one(op_id, _RESERVE, sku, location, quantity, ttl_ms)
    return many(op_id, _RESERVE, lines, value=ttl_ms, flags=linked(len(lines)))


def ttl_of(message: stock_pb2.ReserveRequest | stock_pb2.ExchangeRequest) -> int:
    """How long an order is to live, ms. What is committed at once is held so long over shards only."""
    return (not message.commit_now and message.ttl_ms) or limits.DEFAULT_TTL_MS


def _special_reserve(
    message: stock_pb2.ReserveRequest, lines: list[Line], ttl_ms: int, catalogue: Catalogue
) -> Request:
    flags = linked(len(lines))
    if message.allow_partial:
        flags |= np.uint8(Flag.PARTIAL)
    if message.commit_now:
        flags |= np.uint8(Flag.COMMIT_NOW)
    columns: dict[str, Any] = {}
    if message.supersedes:
        check_id("supersedes", message.supersedes)
        if message.supersedes == message.op_id:
            raise InvalidField("supersedes", "the order's own op_id")
        flags[0] |= np.uint8(Flag.SUPERSEDE)
        columns = _holds([id_to_pair(message.supersedes)] + [_NO_HOLD] * (len(lines) - 1))
    channel = channel_number(message.channel, catalogue)
    return many(
        message.op_id, _RESERVE, lines, value=ttl_ms, flags=flags, channel=channel, **columns
    )


def extend(message: stock_pb2.ExtendRequest, catalogue: Catalogue) -> tuple[Request, int]:
    """Read an Extend, and where all of the hold is (0: it does not say)."""
    check_id("op_id", message.op_id)
    check_id("hold_id", message.hold_id)
    location = location_hint("location", message.location, catalogue)
    ttl_ms, hold = message.ttl_ms or limits.DEFAULT_TTL_MS, id_to_pair(message.hold_id)
    request = one(message.op_id, Kind.EXTEND, 0, 0, _WHOLE_HOLD, ttl_ms, hold=hold)
    return _placed(request, location), location


def move(message: stock_pb2.MoveRequest, catalogue: Catalogue) -> Request:
    """Read a Move: a line for each SKU and location that it names, or one for all of the hold."""
    check_id("op_id", message.op_id)
    check_id("hold_id", message.hold_id)
    hold, to = id_to_pair(message.hold_id), location_id("to", message.to, catalogue)
    if not to:
        raise InvalidField("to", "not given")
    channel = channel_number(message.channel, catalogue)
    if not message.lines:
        return one(message.op_id, Kind.MOVE, 0, to, _WHOLE_HOLD, hold=hold, channel=channel)
    lines = lines_of(message.op_id, message.lines, catalogue)
    for number, (sku, leaves, _) in enumerate(lines):
        # To the machine, no SKU means all of them, and no location anywhere.
        if not sku:
            raise InvalidField(f"lines[{number}].sku", "not given")
        if not leaves:
            raise InvalidField(f"lines[{number}].location", "not given")
    cells = [line[:2] for line in lines]
    if len(set(cells)) < len(cells):
        number = next(n for n, cell in enumerate(cells) if cell in cells[:n])
        raise InvalidField(f"lines[{number}]", "the same cell as a line before it")
    there = [(sku, to, quantity) for sku, _, quantity in lines]
    leaves_column = [leaves for _, leaves, _ in lines]
    holds = [hold] * len(lines)
    return facts(message.op_id, Kind.MOVE, there, leaves_column, holds=holds, channel=channel)


def on_hold(
    kind: Kind,
    message: stock_pb2.HoldRequest | stock_pb2.CancelIncomingRequest,
    catalogue: Catalogue,
) -> tuple[Request, int]:
    """Read a call on a hold or on an incoming record.

    Also tells where all of it is (0: the call does not say).
    """
    check_id("op_id", message.op_id)
    flags = moment = channel = 0
    if isinstance(message, stock_pb2.HoldRequest):
        check_id("hold_id", message.hold_id)
        hold = id_to_pair(message.hold_id)
        flags = Flag.RELEASE_REST if message.release_rest else 0
        if message.re_reserve_if_expired:
            flags |= Flag.RE_RESERVE
        moment = message.occurred_at_ns
        if moment and kind not in HANDOVER_KINDS:
            raise InvalidField("occurred_at_ns", "of Fulfil and Unfulfil alone")
        channel = channel_number(message.channel, catalogue)
        if channel and not message.re_reserve_if_expired:
            raise InvalidField("channel", "nothing is reserved without re_reserve_if_expired")
    else:
        check_id("incoming_id", message.incoming_id)
        hold = id_to_pair(message.incoming_id)
    location = location_hint("location", message.location, catalogue)
    if not message.lines:
        request = one(
            message.op_id,
            kind,
            0,
            0,
            _WHOLE_HOLD,
            flags=flags,
            occurred_at_ns=moment,
            hold=hold,
            channel=channel,
        )
        return _placed(request, location), location
    lines = lines_of(message.op_id, message.lines, catalogue)
    together = None
    if kind in PART_KINDS:
        together = linked(len(lines))
        together[-1] = flags  # what the others leave is known after the last one
    request = of_parts(kind, message.op_id, hold, lines, together, moment)
    return _placed(request, location), location


def of_parts(
    kind: Kind,
    op_id: bytes,
    hold: tuple[int, int],
    lines: list[Line],
    flags: NDArray[np.uint8] | None = None,
    occurred_at_ns: int = 0,
) -> Request:
    """A call on parts of a hold or of an incoming record; without flags, each judged by itself."""
    # To the machine, no quantity means all of the hold, whatever cell the line names.
    named = [(sku, location, quantity or _NOT_A_QUANTITY) for sku, location, quantity in lines]
    if len(named) == 1:
        sku, location, quantity = named[0]
        only = 0 if flags is None else int(flags[0])
        return one(
            op_id,
            kind,
            sku,
            location,
            quantity,
            flags=only,
            occurred_at_ns=occurred_at_ns,
            hold=hold,
        )
    return many(
        op_id,
        kind,
        named,
        flags=0 if flags is None else flags,
        occurred_at_ns=occurred_at_ns,
        hold_hi=np.uint64(hold[0]),
        hold_lo=np.uint64(hold[1]),
    )


def of_cells(
    kind: Kind,
    message: stock_pb2.LinesRequest | stock_pb2.CountRequest,
    catalogue: Catalogue,
    occurred_at_ns: int = 0,
) -> Request:
    """Read a call that has lines and at most a moment."""
    lines = lines_of(message.op_id, message.lines, catalogue)
    return facts(message.op_id, kind, lines, occurred_at_ns=occurred_at_ns)


def set_price(message: price_pb2.SetPriceRequest, catalogue: Catalogue) -> Request:
    """Read a SetPrice. A currency that does not exist is none of the location's."""
    code = message.currency
    if len(code) != 3:
        raise InvalidField("currency", f"{len(code)} characters, must be 3, like USD")
    check_id("op_id", message.op_id)
    check_count("lines", len(message.lines))
    lines = [
        (
            sku_id(f"lines[{i}].sku", line.sku, catalogue),
            location_id(f"lines[{i}].location", line.location, catalogue),
            0,
        )
        for i, line in enumerate(message.lines)
    ]
    prices = [line.price_minor for line in message.lines]
    currency = currencies.NUMBERS.get(code, 0)
    return facts(message.op_id, Kind.SET_PRICE, lines, prices, currency=currency)


def cells(
    message: availability_pb2.GetCellsRequest | stock_pb2.ListIncomingRequest, catalogue: Catalogue
) -> list[tuple[int, int]]:
    """Read names of cells, as (sku id, location id)."""
    check_count("cells", len(message.cells))
    return [
        (
            sku_id(f"cells[{i}].sku", cell.sku, catalogue),
            location_id(f"cells[{i}].location", cell.location, catalogue),
        )
        for i, cell in enumerate(message.cells)
    ]


# --- fields ---------------------------------------------------------------------------------------


def check_id(field: str, value: bytes) -> None:
    """Refuse an id that does not have 16 bytes, or is all zeros: in a column these say "none"."""
    if len(value) != limits.OP_ID_BYTES:
        raise InvalidField(field, f"{len(value)} bytes, must be {limits.OP_ID_BYTES}")
    if value == _ZEROS:
        raise InvalidField(field, "all zeros, which stand for no id")


def check_count(field: str, count: int) -> None:
    """Refuse a single call without lines, or with too many."""
    if not 1 <= count <= limits.MAX_UNARY_LINES:
        raise InvalidField(field, f"{count} entries, must be 1 to {limits.MAX_UNARY_LINES}")


def sku_id(field: str, sku: common_pb2.Sku, catalogue: Catalogue) -> int:
    """The id of a SKU; NO_SUCH_ID for an unknown code."""
    code = sku.code
    return _id_of(field, code, catalogue.sku_id) if code else sku.id


def location_id(field: str, location: common_pb2.Location, catalogue: Catalogue) -> int:
    """The id of a location; NO_SUCH_ID for an unknown code."""
    code = location.code
    return _id_of(field, code, catalogue.location_id) if code else location.id


def known_location(field: str, location: common_pb2.Location, catalogue: Catalogue) -> int:
    """The id of a location of the catalogue; InvalidField for any other."""
    found = location_id(field, location, catalogue)
    if not 1 <= found <= catalogue.locations:
        raise InvalidField(field, "not in the catalogue")
    return found


def location_hint(field: str, location: common_pb2.Location, catalogue: Catalogue) -> int:
    """Where a hold or a record is said to be; 0 when it is not said.

    A place that nobody knows is refused: without it the call would be about all of the hold.
    """
    return known_location(field, location, catalogue) if location.code or location.id else 0


def _placed(request: Request, location: int) -> Request:
    """A request that says where its hold is: it is another one than without that, or elsewhere."""
    if location:
        told = request.digest + location.to_bytes(4, "little")
        request.digest = hashlib.blake2b(told, digest_size=8).digest()
    return request


def _id_of(field: str, code: str, ids: Codes) -> int:
    check_length(f"{field}.code", code)
    return ids(code) or NO_SUCH_ID


def channel_number(code: str, catalogue: Catalogue) -> int:
    """The number of a channel; 0 for none, and one that no channel has for an unknown code."""
    check_length("channel", code)
    return catalogue.channel_number(code)


def check_length(field: str, text: str, least: int = 0) -> None:
    """Refuse a text that is too long, or too short."""
    if not least <= len(text) <= limits.MAX_CODE_LENGTH:
        must = f"{least} to" if least else "at most"
        raise InvalidField(
            field, f"{len(text)} characters, must be {must} {limits.MAX_CODE_LENGTH}"
        )


# --- requests -------------------------------------------------------------------------------------


def lines_of(
    op_id: bytes,
    lines: Collection[common_pb2.Line],
    catalogue: Catalogue,
    within: str = "",
    field: str = "lines",
) -> list[Line]:
    """Read the lines of a call; where they stand in it is `field[i]` + `within`."""
    check_id("op_id", op_id)
    check_count(field, len(lines))
    found: list[Line] = []
    for line in lines:
        # What is named by its id goes past the functions, and past making a name for the field.
        sku, location = line.sku, line.location
        found.append(
            (
                sku_id(f"{field}[{len(found)}]{within}.sku", sku, catalogue)
                if sku.code
                else sku.id,
                location_id(f"{field}[{len(found)}]{within}.location", location, catalogue)
                if location.code
                else location.id,
                line.quantity,
            )
        )
    return found


def linked(lines: int) -> NDArray[np.uint8]:
    """The flags of lines that stand or fall together: each but the last is linked to the next."""
    flags = np.full(lines, Flag.LINKED, COLUMNS["flags"])
    flags[-1] = 0
    return flags


def facts(
    op_id: bytes,
    kind: Kind,
    lines: list[Line],
    values: list[int] | None = None,
    *,
    currency: int = 0,
    flags: int = 0,
    occurred_at_ns: int = 0,
    holds: list[tuple[int, int]] | None = None,
    channel: int = 0,
) -> Request:
    """Lines that are judged one by one, each with its value and with the id of its hold."""
    if len(lines) == 1:
        sku, location, quantity = lines[0]
        return one(
            op_id,
            kind,
            sku,
            location,
            quantity,
            values[0] if values else 0,
            flags=flags,
            currency=currency,
            occurred_at_ns=occurred_at_ns,
            hold=holds[0] if holds else _NO_HOLD,
            channel=channel,
        )
    return many(
        op_id,
        kind,
        lines,
        value=np.array(values, COLUMNS["value"]) if values else 0,
        flags=flags,
        currency=currency,
        occurred_at_ns=occurred_at_ns,
        channel=channel,
        **(_holds(holds) if holds else {}),
    )


def _holds(holds: list[tuple[int, int]]) -> dict[str, NDArray[np.uint64]]:
    """The columns of ids, from their halves."""
    high, low = zip(*holds, strict=True)
    return {"hold_hi": np.array(high, np.uint64), "hold_lo": np.array(low, np.uint64)}


def one(
    op_id: bytes,
    kind: int,
    sku: int,
    location: int,
    quantity: int,
    value: int = 0,
    *,
    flags: int = 0,
    currency: int = 0,
    occurred_at_ns: int = 0,
    hold: tuple[int, int] = _NO_HOLD,
    channel: int = 0,
) -> Request:
    """One line."""
    return Request.one(
        op_id, quantity, value, *hold, occurred_at_ns, sku, location, currency, channel, kind, flags
    )


def many(op_id: bytes, kind: Any, lines: list[Line], **columns: Any) -> Request:
    """Lines of one kind, or with a column of kinds."""
    skus, locations, quantities = zip(*lines, strict=True)
    return Request.of(
        op_id,
        len(lines),
        want_available=True,
        kind=np.asarray(kind, COLUMNS["kind"]),
        sku=np.array(skus, COLUMNS["sku"]),
        location=np.array(locations, COLUMNS["location"]),
        quantity=np.array(quantities, COLUMNS["quantity"]),
        **columns,
    )
