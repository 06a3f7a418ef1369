"""The two machines on histories that are large: tables, indexes and rings grow, holds have very many lines."""

import random
from collections.abc import Callable

import pytest

from engine import limits
from engine.operations import Flag, Kind, id_to_pair
from engine.reference import Key, Line
from engine.status import Status
from engine.views import HoldState
from tests.property.histories import BERLIN, BOSTON, MS, line, linked, request
from tests.property.pair import Pair
from tests.property.shop import OPENED_NS, receive, reserve

BLOCKS, REQUESTS, CELLS = 12, 200, 1_500
CALLS = [Kind.COMMIT, Kind.COMMIT, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL, Kind.UNFULFIL]


@pytest.mark.parametrize("seed", range(2))
def test_both_machines_grow_alike(seed: int) -> None:
    draw = random.Random(seed)
    pair = Pair(
        resolved_remembered=500, movements_remembered=700, expiries_per_block=150, now_ns=OPENED_NS
    )
    for each in (pair.machine, pair.reference):
        each.set_sku_limit(CELLS)
    for block in range(BLOCKS):
        holds = list(pair.reference.holds)
        records = list(pair.reference.incoming_records)
        requests = [
            request(
                (block << 80 | number << 16).to_bytes(16, "big"),
                _lines(draw, block, holds, records),
            )
            for number in range(REQUESTS)
        ]
        pair.apply(requests)
        pair.now_ns += draw.choice([1, 100 * MS, 800 * MS])


def _lines(draw: random.Random, block: int, holds: list[bytes], records: list[bytes]) -> list[Line]:
    """Cells of low number are there from the first blocks on, those of high number come late."""
    known = CELLS * (block + 1) // BLOCKS
    cell = (draw.randint(1, known), BERLIN)
    lines: list[Line] = [receive(draw.randint(1, 90), cell)]
    for _ in range(draw.randint(1, 5)):
        if draw.random() < 0.4 or not holds:
            first, ttl_ms = draw.randint(1, known // 2), draw.choice([90, 900, 9_000])
            cells = [(first + by * 7 % known, BERLIN) for by in range(draw.choice([1, 1, 2, 5]))]
            lines += linked([reserve(draw.randint(1, 2), each, ttl_ms=ttl_ms) for each in cells])
        elif draw.random() < 0.5:
            kind, units = draw.choice(CALLS), draw.randint(0, 1)
            flags = int(Flag.RELEASE_REST) if units and kind == Kind.COMMIT else 0
            lines.append(line(kind, (0, 0), units, flags=flags, hold=draw.choice(holds)))
        else:
            lines.append(_other(draw, cell, draw.choice(holds), records))
    return lines


def _other(draw: random.Random, cell: Key, hold: bytes, records: list[bytes]) -> Line:
    sku, units = cell[0], draw.randint(1, 3)
    record = draw.choice(records) if records else bytes(15) + b"\1"
    return draw.choice(
        [
            line(Kind.SALE, cell, units, hold=draw.randbytes(16)),
            line(Kind.RETURN, cell, units, hold=hold),
            line(Kind.COUNT, cell, units),
            line(Kind.EXPECT, cell, units),
            line(Kind.EXPECT, cell, units, hold=record),
            line(Kind.RECEIVE, cell, units, hold=record),
            line(Kind.CANCEL_INCOMING, hold=record),
            line(Kind.ADD_LINE, cell, units, 900, hold=hold),
            line(Kind.EXTEND, value=9_000, hold=hold),
            line(Kind.COMMIT, hold=hold, flags=int(Flag.RE_RESERVE)),
            line(Kind.RESERVE, cell, units, 900, hold=hold, flags=int(Flag.SUPERSEDE)),
            line(Kind.RECEIVE, (sku, BOSTON), units),
            line(Kind.MOVE, (0, BOSTON), hold=hold),
        ]
    )


# --- holds of very many lines ---------------------------------------------------------------------

MOST = limits.MAX_HOLD_LINES
WIDE = [1, 2, MOST // 2, MOST - 1, MOST, MOST, MOST + 1]
SKUS = 300


# (kind, its answer) that must come up.
MET = {
    *((kind, Status.OK) for kind in (*CALLS[:-1], Kind.RESERVE, Kind.RETURN, Kind.MOVE)),
    *(
        (kind, Status.TOO_MANY_LINES)
        for kind in (
            *CALLS[:-1],
            Kind.RESERVE,
            Kind.ADD_LINE,
            Kind.MOVE,
            Kind.RETURN,
            Kind.EXPECT,
            Kind.RECEIVE,
        )
    ),
}


def test_both_machines_take_holds_of_very_many_lines() -> None:
    met: set[tuple[int, Status]] = set()
    for seed in (
        12,
        17,
        20,
        25,
    ):  # those that meet it all in the least time, which is long uncompiled
        met |= _wide_history(random.Random(seed))
    assert met >= MET


def _wide_history(draw: random.Random) -> set[tuple[int, Status]]:
    """What kind of line was answered what."""
    pair = Pair(resolved_remembered=2, movements_remembered=MOST, now_ns=OPENED_NS)
    for each in (pair.machine, pair.reference):
        each.set_sku_limit(SKUS)
    cells = [(sku, at) for sku in range(1, SKUS + 1) for at in (BERLIN, BOSTON)]
    pair.apply([request(bytes(15) + b"\1", [receive(30, cell) for cell in cells])])
    met: set[tuple[int, Status]] = set()
    for block in range(1, 25):
        known = pair.reference.holds
        longest = sorted(known, key=lambda each: len(known[each].lines))[-3:]
        hold = draw.choice(longest or [bytes(16)])
        lines = draw.choice(_WIDE)(draw, pair, hold)
        pair.now_ns += draw.choice([1, 1, 1, MS, MS, 50 * MS])
        statuses = pair.apply([request((block << 64).to_bytes(16, "big"), lines)])
        met.update(zip((each.kind for each in lines), statuses, strict=True))
    return met


def _cells(draw: random.Random, at: int) -> list[Key]:
    count = draw.choice(WIDE)
    return [(draw.randint(1, SKUS), at) for _ in range(count)]


def _order(draw: random.Random, _: Pair, hold: bytes) -> list[Line]:
    """Its lines are on one cell now and then."""
    flags = int(draw.choice([0, 0, Flag.PARTIAL, Flag.COMMIT_NOW]))
    ttl_ms = draw.choice([40, 900_000, 900_000])
    lines = [
        reserve(2, cell, ttl_ms=ttl_ms, flags=flags)
        for cell in _cells(draw, draw.choice([BERLIN, BERLIN, BOSTON]))
    ]
    if draw.random() < 0.3:
        hi, lo = id_to_pair(hold)
        flags |= int(Flag.SUPERSEDE)
        lines[0] = lines[0]._replace(flags=flags, hold_hi=hi, hold_lo=lo)
    return linked(lines)


def _parts(draw: random.Random, pair: Pair, hold: bytes) -> list[Line]:
    """Calls on each of its lines, or on one more than there may be."""
    held = pair.reference.hold(hold)
    lines = held.lines if held else []
    kind = draw.choice(_FITTING.get(held.state if held else None, CALLS))
    named = [(each.sku, each.location) for each in lines] or [(1, BERLIN)]
    count = draw.choice([len(named), len(named), 2, MOST + 1])
    return linked([line(kind, cell, 1, hold=hold) for cell in (named * (MOST + 1))[:count]])


_FITTING: dict[HoldState | None, list[Kind]] = {
    HoldState.PENDING: [Kind.COMMIT, Kind.COMMIT, Kind.RELEASE],
    HoldState.COMMITTED: [Kind.FULFIL, Kind.CANCEL],
    HoldState.FULFILLED: [Kind.UNFULFIL],
}


def _exchange(draw: random.Random, pair: Pair, hold: bytes) -> list[Line]:
    back = [line(Kind.RETURN, cell, 1) for cell in _cells(draw, BOSTON)]
    return linked([*back, *_order(draw, pair, hold)])


def _on_its_way(draw: random.Random, _: Pair, hold: bytes) -> list[Line]:
    record = draw.choice([bytes(15) + b"\2", bytes(15) + b"\3"])
    kind = draw.choice([Kind.EXPECT, Kind.EXPECT, Kind.RECEIVE])
    cells = {cell: None for at in (BERLIN, BOSTON) for cell in _cells(draw, at)}
    lines = [line(kind, cell, 1, hold=record) for cell in cells]
    return [*lines, line(Kind.CANCEL_INCOMING, hold=record)][: draw.choice([len(lines), 1000])]


def _one(draw: random.Random, _: Pair, hold: bytes) -> list[Line]:
    cell = (draw.randint(1, SKUS), BOSTON)
    return [
        draw.choice(
            [
                *[line(Kind.MOVE, (0, BOSTON), hold=hold)] * 2,
                line(Kind.MOVE, (0, BERLIN), 7, hold=hold),
                *[line(Kind.ADD_LINE, cell, 1, 900, hold=hold)] * 2,
                line(Kind.FULFIL, hold=hold),
                line(Kind.CANCEL, hold=hold),
                line(Kind.UNFULFIL, hold=hold),
                line(Kind.COMMIT, hold=hold, flags=int(Flag.RE_RESERVE)),
                line(Kind.RETURN, cell, 1, hold=hold),
            ]
        )
    ]


_Wide = Callable[[random.Random, Pair, bytes], list[Line]]
_WIDE: list[_Wide] = [_order, _order, _parts, _parts, _exchange, _on_its_way, _one, _one]
