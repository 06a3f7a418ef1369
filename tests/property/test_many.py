"""The two machines on histories that are large enough for tables, indexes and the ring to grow."""

import random

import pytest

from engine.operations import Flag, Kind, id_to_pair
from engine.reference import Line
from tests.property.histories import BERLIN, MS, line, linked, request
from tests.property.pair import Pair
from tests.property.shop import OPENED_NS, receive, reserve

BLOCKS, REQUESTS, CELLS = 12, 200, 1_500
CALLS = [Kind.COMMIT, Kind.COMMIT, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL]


@pytest.mark.parametrize("seed", range(2))
def test_both_machines_grow_alike(seed: int) -> None:
    draw = random.Random(seed)
    pair = Pair(resolved_remembered=500, expiries_per_block=150, now_ns=OPENED_NS)
    for each in (pair.machine, pair.reference):
        each.set_sku_limit(CELLS)
    for block in range(BLOCKS):
        holds = list(pair.reference.holds)
        requests = [
            request((block << 80 | number << 16).to_bytes(16, "big"), _lines(draw, block, holds))
            for number in range(REQUESTS)
        ]
        pair.apply(requests)
        pair.now_ns += draw.choice([1, 100 * MS, 800 * MS])


def _lines(draw: random.Random, block: int, holds: list[bytes]) -> list[Line]:
    """Cells of low number are there from the first blocks on, those of high number come late."""
    known = CELLS * (block + 1) // BLOCKS
    lines: list[Line] = [receive(draw.randint(1, 90), (draw.randint(1, known), BERLIN))]
    for _ in range(draw.randint(1, 5)):
        if draw.random() < 0.4 or not holds:
            first, ttl_ms = draw.randint(1, known // 2), draw.choice([90, 900, 9_000])
            cells = [(first + by * 7 % known, BERLIN) for by in range(draw.choice([1, 1, 2, 5]))]
            lines += linked([reserve(draw.randint(1, 2), each, ttl_ms=ttl_ms) for each in cells])
        else:
            kind, units = draw.choice(CALLS), draw.randint(0, 1)
            flags = int(Flag.RELEASE_REST) if units and kind == Kind.COMMIT else 0
            high, low = id_to_pair(draw.choice(holds))
            lines.append(line(kind, (0, 0), units, flags=flags, hold_hi=high, hold_lo=low))
    return lines
