"""The hash indexes of cells and holds: look-alikes, growth, and removal without gaps or tombstones."""

import random
from collections import defaultdict
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from engine import kernels
from engine.machine import Machine
from engine.operations import Kind, Request, id_to_pair, line_id, pair_to_id
from engine.status import Status
from tests.property.histories import BERLIN, EUR, request
from tests.property.shop import OPENED_NS, TEA, Shop, commit, receive, release, reserve

WORD = (1 << 64) - 1
MANY = 1 << 17  # among so many, some share the 31 bits of hash that an index keeps


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (arrays wrap in silence)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def look_alikes(words: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Pairs of words whose hashes agree in the 31 bits that an index keeps."""
    seen: dict[int, list[int]] = defaultdict(list)
    for word, tag in zip(words.tolist(), (mix(words) >> np.uint64(33)).tolist(), strict=True):
        seen[tag].append(word)
    return [(same[0], same[1]) for same in seen.values() if len(same) > 1]


def machine_of(skus: int, remembered: int = 100) -> Machine:
    machine = Machine(resolved_remembered=remembered)
    machine.set_sku_limit(skus)
    machine.set_location(BERLIN, owned=True, currency=EUR)
    return machine


def test_cells_of_the_same_hash_are_told_apart() -> None:
    place = np.uint64(BERLIN << 32)
    pairs = look_alikes(place | np.arange(1, MANY, dtype=np.uint64))
    assert pairs
    machine = machine_of(MANY)
    lines = [
        receive(units, (word & 0xFFFFFFFF, BERLIN))
        for pair in pairs
        for units, word in enumerate(pair, 1)
    ]
    machine.apply(OPENED_NS, [request(bytes(16), lines)])
    for pair in pairs:
        for units, word in enumerate(pair, 1):
            cell = machine.cell(word & 0xFFFFFFFF, BERLIN)
            assert cell is not None
            assert cell.on_hand == units


def test_holds_of_the_same_hash_are_told_apart() -> None:
    pairs = look_alikes(np.arange(MANY, dtype=np.uint64))  # low words; a high word of 0 hashes to 0
    assert pairs
    machine = machine_of(1, remembered=1)
    machine.apply(OPENED_NS, [request(bytes(16), [receive(1000)])])
    ids = [(pair_to_id(0, one), pair_to_id(0, other)) for one, other in pairs]
    reserves = [request(each, [reserve(1)]) for pair in ids for each in pair]
    machine.apply(OPENED_NS + 1, reserves)
    firsts = [id_to_pair(one) for one, _ in ids]
    lines = [release("")._replace(hold_hi=high, hold_lo=low) for high, low in firsts]
    assert not machine.apply(OPENED_NS + 2, [request(bytes(16), lines)]).status.any()
    for one, other in ids[:-1]:  # the last one released is remembered
        assert machine.hold(one) is None
        kept = machine.hold(other)
        assert kept is not None
        assert kept.state.name == "PENDING"


@pytest.mark.parametrize("seed", range(3))
def test_holds_come_and_go_and_every_id_is_found_or_not(seed: int) -> None:
    """Far more ids than slots, so that the index is full of runs and slots are used again."""
    draw = random.Random(seed)
    machine = machine_of(1)
    machine.apply(OPENED_NS, [request(bytes(16), [receive(10**9)])])
    live: list[bytes] = []
    resolved: list[bytes] = []
    for block in range(60):
        made = [draw.randbytes(16) for _ in range(draw.randrange(120))]
        draw.shuffle(live)
        gone = [live.pop() for _ in range(min(len(live), draw.randrange(120)))]
        pairs = [id_to_pair(each) for each in gone]
        lines = [release("")._replace(hold_hi=high, hold_lo=low) for high, low in pairs]
        requests = [request(each, [reserve(1, ttl_ms=10**6)]) for each in made]
        if lines:
            requests.append(request(block.to_bytes(16, "big"), lines))
        assert not machine.apply(OPENED_NS + 1 + block, requests).status.any()
        live += made
        resolved += gone
    for each in live:
        hold = machine.hold(each)
        assert hold is not None
        assert hold.state.name == "PENDING"
    remembered = [machine.hold(each) is not None for each in resolved]
    assert remembered == [False] * (len(resolved) - 100) + [True] * 100
    assert machine.audit() == []


def test_holds_that_were_forgotten_are_not_found_after_growth() -> None:
    machine = machine_of(1, remembered=10)
    machine.apply(OPENED_NS, [request(bytes(16), [receive(500)])])
    machine.apply(OPENED_NS + 1, [request(bytes(16), [reserve(1)] * 500)])
    lines = [release("")._replace(hold_hi=0, hold_lo=number) for number in range(500)]
    machine.apply(OPENED_NS + 2, [request(bytes(16), lines)])
    too_much = request(pair_to_id(1, 0), [reserve(501)] * 2_000)  # asks for room and makes no hold
    assert machine.apply(OPENED_NS + 3, [too_much]).status.all()
    known = [machine.hold(pair_to_id(0, number)) is not None for number in range(500)]
    assert known == [False] * 490 + [True] * 10


def test_slots_are_used_again() -> None:
    machine = machine_of(1, remembered=10)
    machine.apply(OPENED_NS, [request(bytes(16), [receive(500)])])
    for block in range(1, 50):
        ids = [pair_to_id(block, number) for number in range(20)]
        reserves = [request(each, [reserve(1)]) for each in ids]
        lines = [release("")._replace(hold_hi=block, hold_lo=number) for number in range(20)]
        machine.apply(OPENED_NS + block, [*reserves, request(bytes(16), lines)])
    assert machine.hold(pair_to_id(49, 19)) is not None
    assert machine.state.meta[kernels.HOLDS_USED] == 20 + 10


def shop_with_a_hold_in_slots_1_and_0() -> Shop:
    shop = Shop(tea=10, resolved_remembered=1)
    for name in ("slot 0", "slot 1", "slot 2"):
        shop.holds(name, reserve(1))
    for name in ("slot 0", "slot 1", "slot 2"):
        shop.does(release(name))
    shop.holds("slots 1 and 0", reserve(2), reserve(3))
    slots = shop.pair.machine.state.lines[:2]
    assert slots[:, kernels.NEXT_LINE].tolist() == [kernels.NONE, 0]
    return shop


def test_a_hold_whose_lines_stand_in_any_slots_expires_whole() -> None:
    shop = shop_with_a_hold_in_slots_1_and_0()
    shop.wait(10**12)
    shop.does(receive(1))
    assert shop.units("slots 1 and 0") == [(0, 0, 0), (0, 0, 0)]
    assert shop.cell().reserved == 0


def test_a_hold_whose_lines_stand_in_any_slots_can_be_called_on() -> None:
    shop = shop_with_a_hold_in_slots_1_and_0()
    assert shop.answer(commit("slots 1 and 0", 1)) is Status.NOT_IN_HOLD
    shop.does(commit("slots 1 and 0", 3, TEA, rest=True))
    assert shop.units("slots 1 and 0") == [(0, 2, 0), (0, 1, 0)]


def test_everything_is_found_after_growth() -> None:
    """Tables and indexes grow block by block; the first ones made are still there."""
    machine = machine_of(20_000)
    for block in range(8):
        first = 1 + block * 2_500
        skus = np.arange(first, first + 2_500, dtype=np.uint32)
        columns: dict[str, Any] = {"sku": skus, "location": BERLIN, "quantity": 2}
        received = Request.of(bytes(16), 2_500, kind=Kind.RECEIVE, **columns)
        reserved = Request.of(
            pair_to_id(1, first), 2_500, kind=Kind.RESERVE, **columns | {"value": 10**6}
        )
        outcome = machine.apply(OPENED_NS + block, [received, reserved])
        assert set(outcome.status.tolist()) == {Status.OK}
    for sku in range(1, 20_001, 97):
        cell, hold = machine.cell(sku, BERLIN), machine.hold(pair_to_id(1, sku))
        assert cell is not None
        assert hold is not None
        assert (cell.on_hand, cell.reserved, hold.lines[0].sku) == (2, 2, sku)
    assert machine.cell(20_001, BERLIN) is None
    assert machine.hold(pair_to_id(1, 20_001)) is None
    assert machine.audit() == []


@pytest.mark.parametrize("base", [(1, WORD), (WORD, WORD), (WORD >> 1, WORD - 1)])
def test_the_ids_of_lines_carry_into_the_high_word(base: tuple[int, int]) -> None:
    shop = Shop(tea=10)
    first = pair_to_id(*base)
    shop.pair.now_ns += 1
    shop.pair.apply([request(first, [reserve(units) for units in (1, 2, 3)])])
    held = [shop.pair.machine.hold(line_id(first, line)) for line in range(3)]
    assert [each and each.lines[0].pending for each in held] == [1, 2, 3]


COMPILED = not numba.config.DISABLE_JIT
CHECKS_BOUNDS = not COMPILED or bool(numba.config.BOUNDSCHECK)
BEYOND = pytest.param(
    1 << 20,
    marks=pytest.mark.skipif(not CHECKS_BOUNDS, reason="compiled without checks (`make bounds`)"),
)
NONE = pytest.param(
    kernels.NONE, marks=pytest.mark.skipif(COMPILED, reason="compiled (`make cover`)")
)


@pytest.mark.parametrize("row", [BEYOND, NONE])
def test_a_row_that_there_is_not_is_noticed(row: int) -> None:
    """Otherwise a run that should show such a row runs other kernels than it thinks."""
    shop = Shop(tea=1)
    shop.holds("broken", reserve(1))
    shop.pair.machine.state.lines[0, kernels.CELL] = row
    with pytest.raises(IndexError):
        shop.does(commit("broken"))
