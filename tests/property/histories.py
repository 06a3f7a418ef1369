"""Histories of a small shard: few cells and few ids, so that everything collides.

A history is plain data and says nothing of answers. Lines are made whole and then, now and then,
spoilt in one or two columns, so that refusals of every kind meet and their precedence shows. Most
calls on a hold name it by its place among the holds that there are when the block is made.
What histories are drawn from stands in `drawn`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from engine import limits
from engine.operations import (
    COLUMNS,
    Flag,
    Kind,
    Request,
    id_to_pair,
)
from engine.reference import Key, Line
from engine.views import Hold, HoldState

EUR, USD = 978, 840
SKUS = 3  # known ones
BERLIN, BOSTON, ELSEWHERE, SPLIT, UNKNOWN = 1, 2, 3, 4, 5
LOCATIONS: dict[int, dict[str, Any]] = {
    BERLIN: {"owned": True, "currency": EUR, "buffers": (0, 2, -1)},
    BOSTON: {"owned": True, "currency": USD},
    ELSEWHERE: {"owned": False, "currency": EUR},
    SPLIT: {"owned": True, "currency": EUR, "split": 2, "part": 1},
}
CELLS: list[Key] = [*((sku, BERLIN) for sku in (1, 2, 3)), (1, BOSTON), (2, BOSTON), (2, SPLIT)]

# Ids of requests: the lines of the first three carry into the high word, over its sign, and round.
BASES = [
    bytes.fromhex("0000000000000001ffffffffffffffff"),
    bytes.fromhex("7ffffffffffffffffffffffffffffffe"),
    bytes.fromhex("ffffffffffffffffffffffffffffffff"),
    bytes.fromhex("00000000000000000000000000000000"),
    bytes.fromhex("00000000000000000000000000000002"),
]

RECORDS = [*(bytes(15) + bytes([number]) for number in (200, 201, 202)), BASES[4]]

MS = limits.NS_PER_MS
TICK = 1 << limits.EXPIRY_TICK_BITS
FIRST_LEVEL, SECOND_LEVEL = TICK << 12, TICK << 28  # ns that a level of the wheel reaches
DAY = 24 * 3600 * 1000 * MS
INT64 = 1 << 63
SKEW = limits.MAX_CLOCK_SKEW_MS * MS


class Wait(NamedTuple):
    """How far the clock goes: `ns`, or to a pending hold's deadline and `ns` beyond."""

    ns: int
    hold: int | None = None  # which of the pending holds, by deadline


class Call(NamedTuple):
    """A line that names one of the holds there are, by its place among them."""

    line: Line
    # 0: the newest of those that the call fits; below zero: any, -1 the one that was resolved first
    hold: int
    cell: int | None = None  # the cell of which of its lines to name


class Late(NamedTuple):
    """A fact, or a handover, that happened so long before the block that it is heard of in."""

    fact: Line | Call
    ago_ns: int


Part: TypeAlias = Line | Call | Late


class Draft(NamedTuple):
    """A request before its calls are aimed, its facts dated and its lines spoilt."""

    op_id: bytes
    parts: list[Part]
    spoils: list[tuple[int, tuple[str, int]]]  # line, (column, value)


class Extreme(NamedTuple):
    """A counter that a million operations brought near its limit."""

    cell: Key
    counter: str
    value: int


class Step(NamedTuple):
    """One block, and what changes before it."""

    wait: Wait
    drafts: list[Draft]
    places: list[tuple[int, dict[str, Any]]]  # location, what is now said of it
    extremes: list[Extreme]


class History(NamedTuple):
    """A shard's life from its first block."""

    resolved_remembered: int
    movements_remembered: int
    expiries_per_block: int
    began_ns: int
    stock: list[int]  # received of each of CELLS; 0: the cell is not made
    steps: list[Step]


def request(op_id: bytes, lines: Sequence[Line]) -> Request:
    """A request of these lines."""
    columns = zip(COLUMNS.items(), zip(*lines, strict=True), strict=True)
    typed: dict[str, Any] = {name: np.array(column, dtype) for (name, dtype), column in columns}
    return Request.of(op_id, len(lines), **typed)


def line(kind: Kind, cell: Key = (0, 0), quantity: int = 0, value: int = 0, **more: Any) -> Line:
    """A line; `hold` names its hold by id."""
    hi, lo = id_to_pair(more.pop("hold", bytes(16)))
    sku, location = cell
    full = {"flags": 0, "currency": 0, "hold_hi": hi, "hold_lo": lo} | more
    return Line(kind=kind, sku=sku, location=location, quantity=quantity, value=value, **full)


def linked(lines: Sequence[Line]) -> list[Line]:
    """Lines that stand or fall together."""
    chained = [each._replace(flags=each.flags | int(Flag.LINKED)) for each in lines[:-1]]
    return [*chained, *lines[-1:]]


def receipts(stock: Sequence[int]) -> list[Line]:
    """What fills the shelves before a history begins."""
    return [
        line(Kind.RECEIVE, cell, units) for cell, units in zip(CELLS, stock, strict=True) if units
    ]


def finished(draft: Draft, holds: dict[bytes, Hold], now_ns: int) -> Request:
    """The request that a draft stands for at a time when these are the holds."""
    known = sorted(
        holds.items(), key=lambda each: (each[1].state.is_live, each[1].state == HoldState.PENDING)
    )
    lines = [_aimed(part, known, now_ns) for part in draft.parts]
    for at, (column, odd) in draft.spoils:
        lines[at % len(lines)] = lines[at % len(lines)]._replace(**{column: odd})
    return request(draft.op_id, lines)


def _aimed(part: Part, holds: list[tuple[bytes, Hold]], now_ns: int) -> Line:
    if isinstance(part, Line):
        return part
    if isinstance(part, Late):
        aimed = _aimed(part.fact, holds, now_ns)
        return aimed._replace(occurred_at_ns=now_ns - part.ago_ns)
    if not holds:
        return part.line
    if part.hold >= 0:
        holds = [each for each in holds if _fits(part.line, each[1])] or holds
    hold_id, hold = holds[-1 - part.hold % len(holds)]
    hi, lo = id_to_pair(hold_id)
    aimed = part.line._replace(hold_hi=hi, hold_lo=lo)
    if part.cell is None:
        return aimed
    named = hold.lines[part.cell % len(hold.lines)]
    return aimed._replace(sku=named.sku, location=named.location)


def _fits(call: Line, hold: Hold) -> bool:
    """Whether a hold is in a state in which such a call may be taken."""
    if call.kind in (Kind.FULFIL, Kind.CANCEL):
        return any(line.committed for line in hold.lines)
    if call.kind in (Kind.UNFULFIL, Kind.RETURN, Kind.CLAIM_RETURN):
        return any(line.fulfilled for line in hold.lines)
    if call.flags & Flag.SUPERSEDE:
        return hold.state in (HoldState.PENDING, HoldState.EXPIRED)
    if call.flags & Flag.RE_RESERVE:
        return hold.state == HoldState.EXPIRED
    is_wanted_back = call.kind == Kind.ADD_LINE and hold.state == HoldState.RELEASED
    return hold.state == HoldState.PENDING or is_wanted_back
