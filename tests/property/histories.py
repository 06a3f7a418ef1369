"""Generated histories of a small shard: few cells and few ids, so that everything collides.

A history is plain data and says nothing of answers. Lines are made whole and then, now and then,
spoilt in one or two columns, so that refusals of every kind meet and their precedence shows. Most
calls on a hold name it by its place among the holds that there are when the block is made.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from hypothesis import strategies as st

from engine import limits
from engine.operations import (
    COLUMNS,
    PART_KINDS,
    Disposition,
    Flag,
    Kind,
    Request,
    id_to_pair,
    line_id,
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

# What may stand in a column though it should not; some of it is good for some kinds.
SPOILS: list[tuple[str, int]] = [
    *(
        ("kind", odd)
        for odd in (0, 1, 2, 6, 7, 10, 12, 13, 16, 17, 18, 19, 20, 21, max(Kind) + 1, 255)
    ),
    *(("flags", odd) for odd in (0, 1, 2, 3, 4, 5, 8, 16, 18, 32, 64, 96, 128, 129, 140, 255)),
    *(("sku", odd) for odd in (0, SKUS + 1, 1 << 31, (1 << 32) - 1)),
    *(("location", odd) for odd in (0, ELSEWHERE, SPLIT, UNKNOWN)),
    *(("location", odd) for odd in (limits.MAX_LOCATIONS, 1 << 31, (1 << 32) - 1)),
    *(("quantity", odd) for odd in (0, -1, INT64 - 1, -INT64)),
    *(("quantity", sign * (limits.MAX_QUANTITY + by)) for sign in (1, -1) for by in (0, 1)),
    *(("value", odd) for odd in (0, 1, 2, 3, -1, INT64 - 1, -INT64)),
    *(("occurred_at_ns", odd) for odd in (0, 1, -1, INT64 - 1, -INT64)),
    *(("value", limits.MAX_TTL_MS + by) for by in (0, 1)),
    *(("value", limits.MAX_REASON + by) for by in (0, 1)),
    *(("value", limits.MAX_PRICE_MINOR + by) for by in (0, 1)),
    *(("value", limits.MAX_EXPECTED_AT_MS + by) for by in (0, 1)),
    *(("currency", odd) for odd in (0, EUR, USD, 65_535)),
    *(("hold_lo", odd) for odd in (0, 9)),
    *(
        ("channel", odd)
        for odd in (1, 2, 3, 4, limits.MAX_CHANNELS - 1, limits.MAX_CHANNELS, 65_535)
    ),
]


class Wait(NamedTuple):
    """How far the clock goes: `ns`, or to a pending hold's deadline and `ns` beyond."""

    ns: int
    hold: int | None = None  # which of the pending holds, by deadline


class Call(NamedTuple):
    """A line that names one of the holds there are, by its place among them."""

    line: Line
    hold: int  # 0: the newest; pending ones come first, then other live ones
    cell: int | None = None  # the cell of which of its lines to name


class Late(NamedTuple):
    """A fact that happened so long before the block that it is heard of in."""

    fact: Line
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


def _order(first: Line | Call, others: list[Line]) -> list[Line | Call]:
    """Linked lines, all committed at once if the first one is; it may name a hold."""
    named = first if isinstance(first, Line) else first.line
    at_once = named.flags & Flag.COMMIT_NOW
    chained: list[Line | Call] = [
        *linked([named, *(x._replace(flags=x.flags | at_once) for x in others)])
    ]
    if isinstance(first, Call):
        chained[0] = first._replace(line=chained[0])
    return chained


def _exchange(returns: list[Part], order: list[Line]) -> list[Part]:
    """Returns, and one order, if any, that stands or falls with them."""
    chained = [_chained(each) for each in returns]
    return [*chained, *linked(order)] if order else [*chained[:-1], returns[-1]]


def _together(first: Call, others: list[tuple[int, int]]) -> list[Part]:
    """Linked calls on parts of one hold, as (units, cell); the last one has the flags of the first."""
    parts = [first._replace(line=first.line._replace(flags=0))]
    parts += [
        first._replace(line=parts[0].line._replace(quantity=units), cell=cell)
        for units, cell in others
    ]
    last = parts[-1]._replace(line=parts[-1].line._replace(flags=first.line.flags))
    return [*(_chained(each) for each in parts[:-1]), last]


def _chained(part: Part) -> Part:
    if isinstance(part, Call):
        return part._replace(line=_chained(part.line))
    if isinstance(part, Late):
        return part._replace(fact=_chained(part.fact))
    return part._replace(flags=part.flags | int(Flag.LINKED))


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
        return part.fact._replace(occurred_at_ns=now_ns - part.ago_ns)
    if not holds:
        return part.line
    if part.line.kind in (Kind.RETURN, Kind.CLAIM_RETURN):
        handed_over = [each for each in holds if any(x.fulfilled for x in each[1].lines)]
        holds = handed_over or holds
    hold_id, hold = holds[-1 - part.hold % len(holds)]
    hi, lo = id_to_pair(hold_id)
    aimed = part.line._replace(hold_hi=hi, hold_lo=lo)
    if part.cell is None:
        return aimed
    named = hold.lines[part.cell % len(hold.lines)]
    return aimed._replace(sku=named.sku, location=named.location)


# Whole lines are enumerated and then picked: drawing them column by column takes five times as long.
_ttls_ms = [40, 900_000, 50, 60_000, 1, 2, 3, 4294, 4295, 281_474_976, 281_474_977]
_short = [0, 1, MS - 1, MS, MS + 1, 2 * MS, TICK, 45 * MS]
_long = [FIRST_LEVEL, FIRST_LEVEL + 1, 60_000 * MS, SECOND_LEVEL - 1, SECOND_LEVEL, DAY, 31 * DAY]
_near = [limits.MAX_BALANCE - short for short in range(4)]

RESERVES = [
    line(Kind.RESERVE, cell, units, ttl_ms)
    for ttl_ms in [*_ttls_ms, limits.MAX_TTL_MS]
    for cell in [*CELLS, *CELLS[:2] * 3]
    for units in range(1, 5)
]
_flags = [int(flag) for flag in (Flag.PARTIAL, Flag.COMMIT_NOW, Flag.PARTIAL | Flag.COMMIT_NOW)]
FLAGGED = [  # and of a channel, now and then
    each._replace(flags=flags, channel=channel)
    for each in RESERVES
    for flags in (_flags[0], *_flags)
    for channel in (0, 0, 0, 0, 0, 1, 1, 1, 2, 3)
]
PARTIAL = [each for each in FLAGGED if each.flags == Flag.PARTIAL]
SUPERSEDING = [
    Call(each._replace(flags=flags | int(Flag.SUPERSEDE)), hold)
    for each in RESERVES
    for flags in (0, *_flags)
    for hold in (0, 0, 0, 1, 2, 3, 5)
]
AMOUNTS = [  # of an operation on a hold, with its flags
    *((kind, units, 0) for kind in (Kind.COMMIT, *PART_KINDS) for units in (0, 0, 1, 1, 2, 3, 5)),
    *((Kind.COMMIT, units, int(Flag.RELEASE_REST)) for units in (1, 1, 2, 3, 5)),
    *((Kind.COMMIT, 0, int(Flag.RE_RESERVE)) for _ in range(5)),
]
CALLS = [
    Call(line(kind, (0, 0), units, flags=flags), hold, named)
    for kind, units, flags in AMOUNTS
    for hold in (0, 0, 0, 1, 1, 2, 3, 4, 5)
    for named in (None, 0, 1, 2)
]
EXTENDS = [
    Call(line(Kind.EXTEND, value=ttl_ms), hold)
    for ttl_ms in _ttls_ms
    for hold in (0, 0, 1, 1, 2, 3)
]
UNDONE = [  # of holds that are resolved, if there are any: negative numbers begin with these
    Call(each, hold, named)
    for each in (
        *(line(Kind.UNFULFIL, (0, 0), units) for units in (0, 0, 0, 1, 2)),
        *(line(Kind.COMMIT, flags=int(Flag.RE_RESERVE)) for _ in range(5)),
    )
    for hold in (-1, -1, -2, -2, -3, -4, -5)
    for named in (None, 0)
]
PART_CALLS = [each for each in [*CALLS, *UNDONE] if each.line.quantity]
MOVES = [
    Call(line(Kind.MOVE, (sku, to), units, value=source), hold)
    for sku in (0, 0, 0, 1, 2)
    for to in (BERLIN, BERLIN, BOSTON, BOSTON, SPLIT, ELSEWHERE, UNKNOWN)
    for units in (0, 0, 1, 2, 3)
    for source in (0, 0, BERLIN, BOSTON)
    for hold in (0, 0, 1, 2)
]
MORE_LINES = [
    each
    for added in (
        line(Kind.ADD_LINE, cell, units, ttl_ms, channel=channel)
        for cell in CELLS
        for units in (1, 2, 3)
        for ttl_ms in _ttls_ms[:4]
        for channel in (0, 0, 0, 0, 1, 2)
    )
    for each in (
        *(Call(added, hold) for hold in (0, 0, 1, 2, 5, -1, -2, -3)),
        added._replace(hold_lo=9),
        added._replace(hold_lo=10),
    )
]
HANDOVERS: list[list[Part]] = [
    [Call(line(Kind.RELEASE, cell, units, flags=int(Flag.LINKED)), giver), taker]
    for cell in [*CELLS[:2] * 2, *CELLS]
    for units in (1, 1, 2)
    for giver in (0, 0, 1, 2, -1)
    for taken in (line(Kind.ADD_LINE, cell, units),)
    for taker in (
        *(Call(taken, hold) for hold in (0, 1, 2, 5, -1, -2, -3)),
        taken._replace(hold_lo=9),
    )
]
CALLS_BY_ID = [
    line(kind, cell, units, flags=flags, hold=line_id(base, index))
    for kind, units, flags in AMOUNTS
    for base, index in product(BASES, range(4))
    for cell in [(0, 0), *CELLS[:3]]
]
FACTS = [
    fact
    for cell in [*CELLS, *CELLS[:2] * 3]
    for units in (1, 2, 3, 4)
    for fact in (
        line(Kind.RECEIVE, cell, units),
        line(Kind.SALE, cell, units),
        *(line(Kind.RETURN, cell, units, disposition) for disposition in Disposition),
        line(Kind.ADJUST, cell, units),
        line(Kind.ADJUST, cell, -units, 7),
        line(Kind.COUNT, cell, 4 * units - 4),
        line(Kind.SET_SAFETY_STOCK, cell, units - 1),
        line(Kind.SET_PRICE, cell, value=units // 2, currency=LOCATIONS[cell[1]]["currency"]),
        line(Kind.INSPECT, cell, units, Disposition.RESTOCK),
        line(Kind.INSPECT, cell, units, Disposition.DAMAGED),
        *(
            line(Kind.WRITE_OFF, cell, units, 3, flags=int(bucket))
            for bucket in (0, Flag.DAMAGED, Flag.QUALITY_CONTROL)
        ),
    )
]
ARRIVALS = [  # what is on its way, in few records; some have the ids of holds
    arrival
    for cell in [*CELLS[:3], *CELLS]
    for units in (1, 2, 3, 4)
    for record in RECORDS
    for arrival in (
        line(Kind.EXPECT, cell, units, hold=record),
        line(Kind.EXPECT, cell, units, 1_800_000_000_000 + units, hold=record),
        *(line(Kind.RECEIVE, cell, units, hold=record) for _ in range(3)),
        line(Kind.CANCEL_INCOMING, cell, units, hold=record),
        line(Kind.CANCEL_INCOMING, cell, 0, hold=record),
        line(Kind.CANCEL_INCOMING, (0, 0), units // 4, hold=record),
    )
]
RECEIPTS = [each for each in ARRIVALS if each.kind == Kind.RECEIVE]
CALLS_ON_RECORDS = [
    call
    for record in RECORDS
    for call in (
        *(line(kind, hold=record) for kind in PART_KINDS),
        line(Kind.EXTEND, value=1, hold=record),
        line(Kind.MOVE, CELLS[3], hold=record),
        line(Kind.ADD_LINE, CELLS[0], 1, 50, hold=record),
        line(Kind.RESERVE, CELLS[0], 1, 50, hold=record, flags=int(Flag.SUPERSEDE)),
        line(Kind.SALE, CELLS[0], 1, hold=record),
        line(Kind.RETURN, CELLS[0], 1, hold=record),
        line(Kind.CLAIM_RETURN, CELLS[0], 1, hold=record),
    )
]
RETURNS = [
    Call(line(Kind.RETURN, (0, 0), units), hold, named)
    for units in (1, 1, 2, 3)
    for hold in range(8)
    for named in (0, 1, 2)
]
CLAIMS = [
    each._replace(line=each.line._replace(kind=Kind.CLAIM_RETURN, quantity=sign * units))
    for each in RETURNS
    for units in (each.line.quantity,)
    for sign in (1, -1)
]
NAMED_FACTS = [  # a few ids, which holds may have too
    line(kind, cell, units, value, hold=line_id(base, index))
    for base, index in product(BASES[2:], range(2))
    for cell in CELLS[:3]
    for units in (1, 2)
    for kind, value in [
        *[(Kind.SALE, 0)] * 3,
        *((Kind.RETURN, disposition) for disposition in Disposition),
        (Kind.CLAIM_RETURN, 0),
    ]
]
LATE_FACTS = [
    Late(fact, ago_ns)
    for fact in [*FACTS, *NAMED_FACTS[::5], *RECEIPTS[::7]]
    for ago_ns in [1, 2, MS, MS, 2 * MS, TICK, 45 * MS, 60_000 * MS, 0, -1, -SKEW, -SKEW - 1]
]
COME_BACK: list[Part] = [
    *RETURNS,
    *(fact for fact in [*FACTS, *NAMED_FACTS] if fact.kind == Kind.RETURN),
    *(late for late in LATE_FACTS if late.fact.kind == Kind.RETURN),
]
LATE_COUNTS = [late for late in LATE_FACTS if late.fact.kind == Kind.COUNT]
EXTREMES = [
    *(Extreme(cell, "on_hand", -units) for cell, units in product(CELLS[:3] * 3, _near)),
    *(Extreme(cell, "on_hand", units) for cell, units in product(CELLS[:3], _near)),
    *(Extreme(cell, "damaged", units) for cell, units in product(CELLS[:3], _near)),
    *(Extreme(cell, "quality_control", units) for cell, units in product(CELLS[:3], _near)),
]
PLACES = [
    *((location, {"owned": owned}) for location in (BOSTON, ELSEWHERE) for owned in (True, False)),
    *((BERLIN, {"buffers": buffers}) for buffers in ((), (0, 0), (0, 7, 1, -1), (0, -1, 3, 2, 5))),
    (BOSTON, {"buffers": (0, 1, -1)}),
]
WAITS = [
    *(Wait(ns) for ns in _short * 6),
    *(Wait(ns, hold) for hold in range(6) for ns in (0, 1, -1, TICK)),
    *(Wait(ns) for ns in _long),
]


def _alone(part: Any) -> list[Any]:
    return [part]


def _flat(parts: list[list[Part]]) -> list[Part]:
    return [each for part in parts for each in part]


def _seldom(times: int, strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """One of these once in so many times; otherwise none."""
    # `one_of` drops a strategy that is given to it twice, so they are all different ones.
    return st.one_of(*(st.builds(list) for _ in range(times - 1)), strategy.map(_alone))


_parts = st.lists(
    st.one_of(
        *(st.sampled_from(CALLS).map(_alone) for _ in range(3)),
        st.sampled_from(EXTENDS).map(_alone),
        st.sampled_from(MOVES).map(_alone),
        st.sampled_from(MORE_LINES).map(_alone),
        st.sampled_from(HANDOVERS),
        *(st.sampled_from(UNDONE).map(_alone) for _ in range(2)),
        st.sampled_from(CALLS_BY_ID).map(_alone),
        *(st.sampled_from(FACTS).map(_alone) for _ in range(2)),
        st.sampled_from(LATE_FACTS).map(_alone),
        st.sampled_from(NAMED_FACTS).map(_alone),
        st.sampled_from([*RETURNS, *CLAIMS]).map(_alone),
        st.sampled_from(LATE_COUNTS).map(_alone),
        st.sampled_from([*ARRIVALS, *CALLS_ON_RECORDS]).map(_alone),
        *(st.sampled_from(RESERVES).map(_alone) for _ in range(2)),
        st.sampled_from(FLAGGED).map(_alone),
        st.sampled_from(SUPERSEDING).map(_alone),
        st.lists(st.sampled_from(RESERVES), min_size=2, max_size=4).map(linked),
        st.builds(
            _exchange,
            st.lists(st.sampled_from(COME_BACK), min_size=1, max_size=2),
            st.lists(st.sampled_from([*RESERVES, *PARTIAL]), max_size=2),
        ),
        st.builds(
            _together,
            st.sampled_from(PART_CALLS),
            st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=3),
        ),
        st.builds(
            _order,
            st.sampled_from([*FLAGGED, *SUPERSEDING]),
            st.lists(st.sampled_from([*RESERVES, *PARTIAL]), min_size=1, max_size=3),
        ),
    ),
    min_size=1,
    max_size=4,
)
_spoil = st.tuples(st.integers(0, 9), st.sampled_from(SPOILS))
_spoils = st.one_of(*(st.builds(list) for _ in range(4)), st.lists(_spoil, min_size=1, max_size=2))
_drafts = st.builds(Draft, st.sampled_from(BASES), _parts.map(_flat), _spoils)
_steps = st.builds(
    Step,
    st.sampled_from(WAITS),
    st.lists(_drafts, max_size=3),
    _seldom(8, st.sampled_from(PLACES)),
    _seldom(8, st.sampled_from(EXTREMES)),
)
histories = st.builds(
    History,
    st.sampled_from([1, 2, 3, 8, 1000]),
    st.sampled_from([1, 2, 3, 8, 1000]),
    st.sampled_from([1, 2, 3, 1000]),
    st.sampled_from(
        [1, FIRST_LEVEL - TICK, SECOND_LEVEL - 2 * TICK, 6_300 * SECOND_LEVEL - 1, 20_000 * DAY]
    ),
    st.lists(st.integers(0, 30), min_size=len(CELLS), max_size=len(CELLS)),
    st.lists(_steps, min_size=10, max_size=30),
)
