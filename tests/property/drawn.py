"""What generated histories are drawn from, and how: by a `Random`, so that a seed is a history.

Whole lines are enumerated and then picked. Hypothesis gives the seed and nothing else: its own
strategies draw six histories out of seven as near copies of the one before, and take as long as both
machines together.
"""

from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from typing import TypeVar

from engine import limits
from engine.operations import HANDOVER_KINDS, PART_KINDS, Disposition, Flag, Kind, line_id
from engine.reference import Line
from tests.property.histories import (
    BASES,
    BERLIN,
    BOSTON,
    CELLS,
    DAY,
    ELSEWHERE,
    EUR,
    FIRST_LEVEL,
    INT64,
    LOCATIONS,
    MS,
    RECORDS,
    SECOND_LEVEL,
    SKEW,
    SKUS,
    SPLIT,
    TICK,
    UNKNOWN,
    USD,
    Call,
    Draft,
    Extreme,
    History,
    Late,
    Part,
    Step,
    Wait,
    line,
    linked,
)  # fmt: skip

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
    Call(each._replace(flags=flags | again | int(Flag.SUPERSEDE), channel=channel), hold)
    for each in RESERVES
    for flags in (0, *_flags)
    for again in (0, 0, int(Flag.RE_RESERVE))
    for channel in (0, 0, 0, 1)
    for hold in (0, 0, 0, 1, 2, -1, -4)
]
HANDOVERS: list[list[Part]] = [
    [Call(line(Kind.RELEASE, cell, units, flags=int(Flag.LINKED)), giver), taker]
    for cell in [*CELLS[:2] * 2, *CELLS]
    for units in (1, 1, 2)
    for giver in (0, 0, 1, 2, -1)
    for taken in (line(Kind.ADD_LINE, cell, units),)
    for taker in (
        *(Call(taken, hold) for hold in (0, 1, 2, -1, -2, -3)),
        taken._replace(hold_lo=9),
    )
]
AMOUNTS = [  # of an operation on a hold, with its flags
    *((kind, units, 0) for kind in (Kind.COMMIT, *PART_KINDS) for units in (0, 0, 1, 1, 2, 3, 5)),
    *((Kind.COMMIT, units, int(Flag.RELEASE_REST)) for units in (1, 1, 2, 3, 5)),
    *((Kind.COMMIT, 0, int(Flag.RE_RESERVE)) for _ in range(5)),
    *((Kind.RELEASE, 0, int(Flag.SUPERSEDE)) for _ in range(3)),
]
CALLS = [
    Call(line(kind, (0, 0), units, flags=flags), hold, named)
    for kind, units, flags in AMOUNTS
    for hold in (0, 0, 0, 1, 1, 2, 3, -1, -2, -5)
    for named in (None, 0, 1, 2)
]
EXTENDS = [
    Call(line(Kind.EXTEND, value=ttl_ms), hold)
    for ttl_ms in _ttls_ms
    for hold in (0, 0, 1, 1, 2, -1, -3)
]
UNDONE = [
    Call(each, hold, named)
    for each in (
        *(line(Kind.UNFULFIL, (0, 0), units) for units in (0, 0, 0, 1, 2)),
        *(
            line(Kind.COMMIT, flags=int(Flag.RE_RESERVE), channel=channel)
            for channel in (0, 0, 1, 1, 2, 3)
        ),
    )
    for hold in (0, 0, 0, 1, 1, 2, -1, -2, -3)
    for named in (None, 0)
]
PART_CALLS = [each for each in [*CALLS, *UNDONE] if each.line.quantity]
MOVES = [
    Call(line(Kind.MOVE, (sku, to), units, value=source, channel=channel), hold)
    for sku in (0, 0, 0, 1, 2)
    for to in (*(BERLIN, BOSTON) * 4, SPLIT, ELSEWHERE, UNKNOWN)
    for units in (0, 0, 1, 2, 3)
    for channel in (0, 0, 0, 1, 2, 3)
    for source in (0, 0, BERLIN, BOSTON)
    for hold in (0, 0, 1, 2, -1, -4)
]
PART_MOVES = [each for each in MOVES if each.line.sku == 1 and each.line.quantity]
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
        *(Call(added, hold) for hold in (0, 0, 1, 2, 3, -1, -2, -4)),
        added._replace(hold_lo=9),
        added._replace(hold_lo=10),
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
ANNOUNCED = {  # what is on its way, in few records; some have the ids of holds
    record: [
        line(Kind.EXPECT, cell, units, expected_at_ms, hold=record)
        for cell in [*CELLS[:3], *CELLS]
        for units in (1, 2, 3, 4, limits.MAX_QUANTITY - 2)
        for expected_at_ms in (0, 1_800_000_000_000 + units)
    ]
    for record in RECORDS
}
RECEIPTS = [
    line(Kind.RECEIVE, cell, units, hold=record)
    for record in RECORDS
    for cell in [*CELLS[:3], *CELLS]
    for units in (1, 2, 3, 4)
]
ARRIVALS = {
    record: [
        *[each for each in RECEIPTS if each.hold_id == record] * 2,
        *(
            line(Kind.CANCEL_INCOMING, cell, units, hold=record)
            for cell in [*CELLS[:3], *CELLS]
            for units in (0, 1, 2, 3)
        ),
        *[line(Kind.CANCEL_INCOMING, (0, 0), units, hold=record) for units in (0, 1)] * 5,
    ]
    for record in RECORDS
}
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
    for hold in (*range(6), -1, -4)
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
SALES: dict[tuple[int, int], list[Line]] = {}  # by their ids: what one may come with
for sale in NAMED_FACTS:
    if sale.kind == Kind.SALE:
        SALES.setdefault((sale.hold_hi, sale.hold_lo), []).append(sale)
_ago_ns = [1, 2, MS, MS, 2 * MS, TICK, 45 * MS, 60_000 * MS, 0, -1, -SKEW, -SKEW - 1]
_datable = [*FACTS, *NAMED_FACTS[::5], *RECEIPTS[::7]]
LATE_FACTS = [Late(fact, ago_ns) for fact in _datable for ago_ns in _ago_ns]
HANDED = [each for each in [*CALLS, *UNDONE] if each.line.kind in HANDOVER_KINDS]
LATE_HANDED = [Late(call, ago_ns) for call in HANDED for ago_ns in _ago_ns]
COME_BACK: list[Part] = [
    *RETURNS,
    *(fact for fact in [*FACTS, *NAMED_FACTS] if fact.kind == Kind.RETURN),
    *(Late(fact, ago_ns) for fact in _datable if fact.kind == Kind.RETURN for ago_ns in _ago_ns),
]
COUNTS = [fact for fact in FACTS if fact.kind == Kind.COUNT]
LATE_COUNTS = [Late(fact, ago_ns) for fact in COUNTS for ago_ns in _ago_ns]
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
IDS = [*BASES * 2, *(bytes([number]) + bytes(15) for number in range(1, 31))]
BEGINNINGS = [
    1, FIRST_LEVEL - TICK, SECOND_LEVEL - 2 * TICK, 6_300 * SECOND_LEVEL - 1, 20_000 * DAY
]  # fmt: skip
WAITS = [
    *(Wait(ns) for ns in _short * 10),
    *(Wait(ns, hold) for hold in range(6) for ns in (0, 1, -1, TICK)),
    *(Wait(ns) for ns in _long),
]


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


def _moves(first: Call, others: list[tuple[int, int]]) -> list[Part]:
    """Linked moves of one hold to one location, the others as (SKU, units)."""
    moves = [first] + [
        first._replace(line=first.line._replace(sku=sku, quantity=units)) for sku, units in others
    ]
    return [*(_chained(each) for each in moves[:-1]), moves[-1]]


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


_T = TypeVar("_T")
_Maker = Callable[[Random], Sequence[Part]]


def _of(pool: Sequence[Part]) -> _Maker:
    return lambda draw: [draw.choice(pool)]


def _some(draw: Random, pool: Sequence[_T], most: int, *, least: int = 1) -> list[_T]:
    return draw.choices(pool, k=draw.randint(least, most))


def _arrivals(draw: Random) -> list[Part]:
    """Something is on its way, mostly, and then more is heard of the same record."""
    record = draw.choice(RECORDS)
    return [
        *(draw.choice(ANNOUNCED[record]) for _ in range(draw.randint(0, 2))),
        *(draw.choice(ARRIVALS[record]) for _ in range(draw.randint(0, 2))),
    ] or [draw.choice(ARRIVALS[record])]


def _sold_again(draw: Random) -> list[Part]:
    """A sale, what may become of it, and its id again, with the same or with something else."""
    like = draw.choice(list(SALES.values()))
    sale = draw.choice(like)
    named = line(Kind.UNFULFIL)._replace(hold_hi=sale.hold_hi, hold_lo=sale.hold_lo)
    gives = Call(line(Kind.RELEASE, sale.key, 1, flags=int(Flag.LINKED)), 0)
    taken = line(Kind.ADD_LINE, sale.key, 1)
    became: list[list[Part]] = [
        [],
        [sale._replace(kind=Kind.RETURN, quantity=1)],
        [named],
        [named, named._replace(kind=Kind.CANCEL, quantity=1)],
        [gives, taken._replace(hold_hi=sale.hold_hi, hold_lo=sale.hold_lo)],
    ]
    return [sale, *draw.choice(became), draw.choice([sale, draw.choice(like)])]


def _handed_around_a_count(draw: Random) -> list[Part]:
    """A count, and what was handed over, or failed to be, before it or after."""
    parts: list[Part] = [draw.choice(COUNTS), *_some(draw, [*HANDED, *LATE_HANDED * 2], 3)]
    draw.shuffle(parts)
    return parts


def _handed_together(draw: Random) -> list[Part]:
    """Linked parts of one hold that were handed over at one moment or at several."""
    first = draw.choice([each for each in HANDED if each.line.quantity])
    others = [(draw.choice([1, 1, 2]), draw.randint(0, 2)) for _ in range(draw.randint(1, 2))]
    parts = [Late(each, draw.choice(_ago_ns)) for each in _together(first, others)]
    return [draw.choice(COUNTS), *parts]


MAKERS: list[_Maker] = [
    *[_of(CALLS)] * 3,
    _of(EXTENDS),
    *[_of(MOVES)] * 2,
    _of(MORE_LINES),
    _of(UNDONE),
    _of(CALLS_BY_ID),
    *[_of(FACTS)] * 2,
    _of(LATE_FACTS),
    _of(NAMED_FACTS),
    _sold_again,
    _of([*RETURNS, *CLAIMS]),
    _of(LATE_COUNTS),
    _of(LATE_HANDED),
    _handed_around_a_count,
    _handed_together,
    _arrivals,
    _of(CALLS_ON_RECORDS),
    *[_of(RESERVES)] * 2,
    _of(FLAGGED),
    _of(SUPERSEDING),
    *[lambda draw: draw.choice(HANDOVERS)] * 2,
    lambda draw: linked(_some(draw, RESERVES, 4, least=2)),
    *[
        lambda draw: _moves(
            draw.choice(PART_MOVES),
            [(sku, draw.choice([0, 1, 1, 1, 2])) for sku in _some(draw, [1, 2, 2, 3], 2)],
        )
    ]
    * 2,
    lambda draw: _exchange(
        _some(draw, COME_BACK, 2), _some(draw, [*RESERVES, *PARTIAL], 2, least=0)
    ),
    *[
        lambda draw: _together(
            draw.choice(PART_CALLS),
            [(draw.choice([1, 1, 2, 3]), draw.randint(0, 2)) for _ in range(draw.randint(1, 3))],
        )
    ]
    * 2,
    *[
        lambda draw: _order(
            draw.choice(draw.choice([FLAGGED, SUPERSEDING])),
            _some(draw, [*RESERVES, *PARTIAL], 3),
        )
    ]
    * 2,
]


def drawn(draw: Random) -> History:
    """A shard's life of 10 to 30 blocks."""
    return History(
        draw.choice([1, 2, 3, 8, 1000]),
        draw.choice([1, 2, 3, 8, 1000]),
        draw.choice([1, 2, 3, 1000]),
        draw.choice(BEGINNINGS),
        [draw.randint(0, 30) for _ in CELLS],
        [_step(draw) for _ in range(draw.randint(10, 30))],
    )


def _step(draw: Random) -> Step:
    return Step(
        draw.choice(WAITS),
        [_draft(draw) for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 3]))],
        _seldom(draw, 8, PLACES),
        _seldom(draw, 8, EXTREMES),
    )


def _draft(draw: Random) -> Draft:
    parts = [part for _ in range(draw.randint(1, 4)) for part in draw.choice(MAKERS)(draw)]
    spoils = [(draw.randint(0, 9), odd) for odd in _seldom(draw, 5, SPOILS)]
    return Draft(draw.choice(IDS), parts, spoils)


def _seldom(draw: Random, times: int, pool: Sequence[_T]) -> list[_T]:
    """One of these once in so many times; otherwise none."""
    return [] if draw.randrange(times) else [draw.choice(pool)]
