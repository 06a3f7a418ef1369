"""The operations as columns: what a request carries and what it is answered.

A request is one idempotent unit (a Submit batch, or one unary call) and has n lines, n >= 1. Line i
has the id `op_id + i` (as a 128-bit big-endian integer); the id of a hold is the id of its first line.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from itertools import compress
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from engine import limits
from engine.views import Endangered


class Kind(IntEnum):
    """What a line does. The numbers are part of the wire format and of the journal."""

    RESERVE = 1  # request: sku, location, quantity, channel, value = ttl_ms
    # request: hold, quantity (0 = all that is pending, of all its lines), channel = for which RE_RESERVE
    # reserves
    COMMIT = 2
    RELEASE = 3  # request: hold, quantity (0 = all that is pending)
    FULFIL = 4  # fact: hold, quantity (0 = all that is committed), occurred_at_ns
    CANCEL = 5  # request: hold, quantity (0 = all that is committed)
    SALE = 6  # fact: sku, location, quantity, occurred_at_ns, hold = its id (0: it has none)
    RETURN = 7  # like SALE, value = Disposition, hold = what handed it over (0: it is blind)
    RECEIVE = 8  # like SALE, hold = an incoming record (0: against none)
    ADJUST = 9  # fact: sku, location, quantity (signed), value = reason code, occurred_at_ns
    COUNT = 10  # fact: sku, location, quantity (absolute, as of occurred_at_ns)
    SET_SAFETY_STOCK = 11  # sku, location, quantity (absolute)
    SET_PRICE = 12  # sku, location, value = price_minor, currency
    EXTEND = 13  # request: hold, value = ttl_ms from now (an earlier deadline changes nothing)
    # request: hold, sku (0 = every one), location = destination, quantity (0 = all that is pending
    # of those lines and not there yet), value = location it leaves (0 = any), channel = for which it is
    # reserved there
    MOVE = 14
    # request: hold, sku, location, quantity, channel, value = ttl_ms, which counts if the hold is new
    # or was released, and is pending again with this line. Behind a RELEASE of the same cell and
    # quantity that is linked to it, the units go from that hold to this one, whatever the stock (value 0)
    ADD_LINE = 15
    UNFULFIL = 16  # fact: hold, quantity (0 = all fulfilled and not returned), occurred_at_ns
    CLAIM_RETURN = 17  # request: hold, sku, quantity (below zero: a claim is taken back)
    CANCEL_INCOMING = 18  # request: hold (an incoming record), quantity (0 = all outstanding)
    INSPECT = 19  # fact: sku, location, quantity, value = where it goes from quality control
    WRITE_OFF = 20  # fact: sku, location, quantity, value = reason code, occurred_at_ns
    EXPECT = 21  # sku, location, quantity, value = expected at (ms since 1970), hold = record


class Flag(IntFlag):
    """Bits of a line's `flags` column."""

    # This line and the next stand or fall together: reserves in one hold; returns, also before them;
    # calls of one of PART_KINDS on parts of one hold, their quantities not zero; a RELEASE and an
    # ADD_LINE, which is a handover; moves of one hold, each of another SKU, with quantities.
    LINKED = 1
    # COMMIT of a part only (of linked ones, on the last): what is not committed is released.
    RELEASE_REST = 2
    # RESERVE: hold what there is, if it is less. A linked line that finds nothing is refused alone.
    PARTIAL = 4
    # RESERVE, first line of its order: `hold` is released if the order is accepted, for good: also one
    # that has run out, so that it cannot be paid late. Its units count as free meanwhile, and a PARTIAL
    # line gets as many of them as it asks for in any case. One that is gone or unknown is no hindrance.
    # RELEASE of a whole hold: the same end for one that has run out, or is pending.
    SUPERSEDE = 8
    # COMMIT of a whole hold: if it has expired, reserve the same again and commit. With SUPERSEDE: a
    # hold that has run out may still be reserved again, since the order may be refused elsewhere.
    RE_RESERVE = 16
    DAMAGED = 32  # WRITE_OFF: of what is damaged
    QUALITY_CONTROL = 64  # WRITE_OFF: of what is in quality control
    COMMIT_NOW = (
        128  # RESERVE: committed at once, without a deadline; all lines of an order or none
    )


class Disposition(IntEnum):
    """What becomes of returned goods; all three raise on_hand."""

    RESTOCK = 0
    QUALITY_CONTROL = 1
    DAMAGED = 2


HOLD_KINDS: Final = (Kind.COMMIT, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL)
PART_KINDS: Final = (*HOLD_KINDS, Kind.UNFULFIL)  # move units of a hold: all, or a part of it
HANDOVER_KINDS: Final = (Kind.FULFIL, Kind.UNFULFIL)  # those of them that goods move by: facts
LINKING_KINDS: Final = (Kind.RESERVE, Kind.RETURN, Kind.MOVE, *PART_KINDS)  # may begin a chain

# The columns of a line, with their types. All are little-endian where they leave the process.
COLUMNS: Final[dict[str, np.dtype[Any]]] = {
    "kind": np.dtype("u1"),
    "flags": np.dtype("u1"),
    "sku": np.dtype("<u4"),
    "location": np.dtype("<u4"),
    "quantity": np.dtype("<i8"),
    "value": np.dtype("<i8"),
    "currency": np.dtype("<u2"),
    "hold_hi": np.dtype("<u8"),
    "hold_lo": np.dtype("<u8"),
    "channel": np.dtype("<u2"),
    "occurred_at_ns": np.dtype("<i8"),
}

# One line as one record, the widest columns first, so that each is aligned.
_PACKED: Final = (
    "quantity", "value", "hold_hi", "hold_lo", "occurred_at_ns",
    "sku", "location", "currency", "channel", "kind", "flags",
)  # fmt: skip
LINE: Final = np.dtype([(name, COLUMNS[name]) for name in _PACKED])
_pack_line: Final = struct.Struct("<qqQQqIIHHBB").pack
assert len(_pack_line(*range(len(_PACKED)))) == LINE.itemsize


@dataclass(slots=True)
class Request:
    """One idempotent request: an id and n lines as columns.

    `op_id`: 16 bytes, big-endian. Every column in `columns` has the shape (n,) and the type that
    `COLUMNS` gives; a column that is missing is all zeros. `digest` (8 bytes) tells requests of
    the same id and other content apart. `packed` may say the same as `columns` in one record (of
    the type LINE), when there is one line: it is the quick way to the kernel and to the journal.
    """

    op_id: bytes
    lines: int
    columns: dict[str, NDArray[Any]]
    want_available: bool = False
    digest: bytes = field(default=b"")
    packed: bytes = field(default=b"", compare=False)

    @classmethod
    def one(cls, op_id: bytes, *values: int) -> Self:
        """Build a request of one line, which wants to know what is available.

        `values` are those of the columns in the order of LINE: quantity, value, hold_hi, hold_lo,
        occurred_at_ns, sku, location, currency, channel, kind, flags. 3 µs, where `of` takes 30.
        struct.error when one is out of range.
        """
        packed = _pack_line(*values)
        record = np.frombuffer(packed, LINE)
        columns = {name: record[name] for name in compress(_PACKED, values)}
        digest = hashlib.blake2b(packed, digest_size=8).digest()
        return cls(op_id, 1, columns, True, digest, packed)

    @classmethod
    def of(cls, op_id: bytes, lines: int, *, want_available: bool = False, **columns: Any) -> Self:
        """Build a request from scalars (one value for all lines) and arrays of shape (lines,).

        Raises ValueError naming the column whose length or range is wrong.
        """
        if len(op_id) != limits.OP_ID_BYTES:
            raise ValueError(f"op_id: {len(op_id)} bytes, must be {limits.OP_ID_BYTES}")
        if not 1 <= lines <= limits.MAX_BLOCK_LINES:
            raise ValueError(f"lines: {lines}, must be 1 to {limits.MAX_BLOCK_LINES}")
        full: dict[str, NDArray[Any]] = {}
        for name, given in columns.items():
            if given.__class__ is int and given == 0:
                continue
            column = _column(name, given, lines)
            if column is not None:
                full[name] = column
        request = cls(op_id, lines, full, want_available)
        request.digest = request._digest()
        return request

    def with_lines(self, lines: int, columns: dict[str, NDArray[Any]]) -> Self:
        """The same request, of the same id and digest, about other lines.

        `dataclasses.replace` would keep `packed`, which says what the lines were before.
        """
        return type(self)(self.op_id, lines, columns, self.want_available, self.digest)

    @property
    def is_partial(self) -> bool:
        """Whether some line may be served in part."""
        flags = self.columns.get("flags")
        return flags is not None and bool((flags & _PARTIAL).any())

    def _digest(self) -> bytes:
        """8 bytes over the lines' content, however it was given.

        A column of one value counts as that value, and one of zeros as missing.
        """
        parts: list[Any] = [
            self.lines.to_bytes(4, "little"),
            b"\1" if self.want_available else b"\0",
        ]
        columns = self.columns
        for name, (same_mark, full_mark) in _MARKS.items():
            column = columns.get(name)
            if column is None:
                continue
            first = column[:1]
            if self.lines == 1 or (column == first).all():
                if first[0]:
                    parts += (same_mark, first.tobytes())
            else:
                parts += (full_mark, column.data)
        return hashlib.blake2b(b"".join(parts), digest_size=8).digest()


_PARTIAL: Final = int(Flag.PARTIAL)

# What stands before a column's content in a digest: of one value for all lines, of one a line.
_MARKS: Final = {name: (bytes((i, 1)), bytes((i, 0))) for i, name in enumerate(COLUMNS)}


def _column(name: str, given: Any, lines: int) -> NDArray[Any] | None:
    """A column of `lines` values; None when it is one zero for all. ValueError names the column."""
    dtype = COLUMNS[name]
    array = np.asarray(given)
    if array.dtype.kind == "f" and array is not given:
        # Integers on both sides of 2**63 would become floats, which cannot tell them apart.
        array = np.array(given, object)
    if array.dtype != dtype:
        if array.size and not _fits(array, dtype):
            raise ValueError(f"{name}: out of range for {dtype}")
        array = array.astype(dtype)
    if array.ndim == 0 or (array.shape == (1,) and lines != 1):
        value = array.reshape(-1)[0]
        return np.full(lines, value, dtype) if value else None
    if array.shape != (lines,):
        raise ValueError(f"{name}: {array.size} values, must be 1 or {lines}")
    return np.ascontiguousarray(array)  # its bytes are digested as they lie


def _fits(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether every value of an array is an integer that is representable as `dtype`."""
    if array.dtype.kind == "O":
        is_integer = all(isinstance(each, int | np.integer) for each in array.flat)
    else:
        is_integer = array.dtype.kind in "iub"
    if not is_integer:
        return False
    info = np.iinfo(dtype)
    return bool(int(array.min()) >= info.min and int(array.max()) <= info.max)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered; the same again for the same id.

    `status`: n bytes, one `Status` a line. `available`: n little-endian int64, the cell's
    availability right after the line (of linked lines: after all of them; 0 where no cell was looked
    at), or empty unless the request asked for it. `now_ns` is the
    block's time (a hold's deadline is `now_ns + ttl_ms * 10**6`); `epoch`, `seq` name the block.
    `granted`: n little-endian int64, how much the line reserved, or empty unless some line is PARTIAL.
    `endangered` has an entry for each line of a fact that left its cell short, or for each such cell
    of a handover that failed; its `line` counts within the request.
    """

    status: bytes
    available: bytes
    now_ns: int
    epoch: int
    seq: int
    granted: bytes = b""
    endangered: tuple[Endangered, ...] = ()


def chain_starts(
    kinds: NDArray[np.uint8], flags: NDArray[np.uint8], begins: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Which lines (n,) begin a chain, whose lines stand or fall together; cut as the rules cut it.

    A line of LINKING_KINDS begins one, and so long as its lines are LINKED the next one belongs to
    it, whatever that is. A LINKED line of another kind is linked to nothing: it is a chain by itself.
    `begins`: the lines with which requests begin, where there is more than one request.
    """
    starts = np.ones(len(kinds), np.bool_)
    starts[1:] = flags[:-1] & Flag.LINKED == 0
    if begins is not None:
        starts |= begins
    if starts.all():
        return starts
    # Of lines that LINKED joins, those up to the first one that may begin a chain are not in any.
    may_begin = _LINKING[kinds]
    before: NDArray[np.int64] = np.cumsum(may_begin) - may_begin
    joined = np.maximum.accumulate(np.where(starts, np.arange(len(kinds)), 0))
    unlinked: NDArray[np.bool_] = before == before[joined]
    return unlinked


_LINKING: Final = np.zeros(256, np.bool_)
_LINKING[[*LINKING_KINDS]] = True


def id_to_pair(op_id: bytes) -> tuple[int, int]:
    """The high and the low 64 bits of a 16-byte id."""
    return int.from_bytes(op_id[:8], "big"), int.from_bytes(op_id[8:], "big")


def pair_to_id(high: int, low: int) -> bytes:
    """The 16-byte id of its high and low 64 bits."""
    return int(high).to_bytes(8, "big") + int(low).to_bytes(8, "big")


def line_id(op_id: bytes, index: int) -> bytes:
    """The id of line `index` of a request: `op_id + index`, modulo 2**128."""
    value = (int.from_bytes(op_id, "big") + index) % (1 << 128)
    return value.to_bytes(16, "big")


def column_of(request: Request, name: str) -> NDArray[Any]:
    """A column of a request; one that is missing is all zeros."""
    column = request.columns.get(name)
    return np.zeros(request.lines, COLUMNS[name]) if column is None else column
