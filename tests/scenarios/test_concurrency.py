"""Scenarios 1 to 6: many at once. Real shards and routers, in orders that seeds choose.

Scenarios 1, 3 and 5 are in `tests/e2e/test_scenarios.py` too, with real clients over gRPC; scenario 2
and 6 are rules, and stand against both machines.
"""

import asyncio
import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.operations import Disposition
from engine.reference import Key, Line
from engine.status import Status
from tests.property.histories import BERLIN, BOSTON, MS, linked
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    adjust,
    cancel,
    comes_back,
    commit,
    count,
    fulfil,
    receive,
    release,
    reserve,
    sale,
    write_off,
)
from tests.scenarios.market import Market

OK, NONE_LEFT = Status.OK, Status.INSUFFICIENT_STOCK
any_order = pytest.mark.parametrize("seed", range(10))
LONG_MS = 600_000


# --- 1: N buyers, one unit: exactly one wins --------------------------------------------------------


@any_order
async def test_scenario_01_of_many_buyers_of_one_unit_exactly_one_wins(seed: int) -> None:
    async with Market.open(seed) as market:
        await market.stock({TEA: 1})
        alone = [market.order(f"buyer {n}", reserve(1, ttl_ms=LONG_MS)) for n in range(20)]
        pairs = [reserve(1, ttl_ms=LONG_MS), reserve(1, ttl_ms=LONG_MS)]
        batches = [market.batch(f"batch {n}", *pairs) for n in range(10)]
        answers, in_batches = await asyncio.gather(market.all(alone), market.all(batches))
        answers += [status for each in in_batches for status in each]
        assert sorted(answers) == [OK] + [NONE_LEFT] * 39
        cell = await market.cell(TEA)
        assert (cell.on_hand, cell.reserved, cell.available) == (1, 1, 0)


@any_order
async def test_scenario_01_a_unit_that_is_given_up_is_the_next_ones_one_after_the_other(
    seed: int,
) -> None:
    owners = 0

    async def insists(market: Market, name: str) -> None:
        nonlocal owners
        tries = 0
        while await market.order(f"{name} {tries}", reserve(1, ttl_ms=LONG_MS)) is not OK:
            tries += 1
            await market.schedule.pause()
        owners += 1
        assert owners == 1
        await market.schedule.pause()
        owners -= 1
        assert await market.call(f"{name} gives", release(f"{name} {tries}")) is OK

    async with Market.open(seed) as market:
        await market.stock({TEA: 1})
        await market.all(insists(market, f"b{n}") for n in range(8))
        assert (await market.cell(TEA)).available == 1


@any_order
async def test_scenario_01_one_unit_in_each_of_two_places_is_one_buyers_who_wants_both(
    seed: int,
) -> None:
    """Whoever is refused has given back what it had, so that nobody keeps half of an order."""
    async with Market.open(seed, lossy=0.1) as market:
        await market.stock({TEA: 1, FAR: 1})
        wanted = [[reserve(1, TEA), reserve(1, FAR)], [reserve(1, FAR), reserve(1, TEA)]]
        answers = await market.all(market.order(f"b{n}", *wanted[n % 2]) for n in range(16))
        won = answers.count(OK)
        assert won <= 1  # none, when two met, each with one half
        assert answers.count(NONE_LEFT) == 16 - won
        assert [(await market.cell(key)).reserved for key in (TEA, FAR)] == [won, won]
        assert await market.pending() == won
        if not won:
            assert await market.order("later", *wanted[0]) is OK


# --- 2: lines on one cell are summed ----------------------------------------------------------------

LINES = st.lists(st.tuples(st.sampled_from([TEA, JAM]), st.integers(1, 6)), min_size=1, max_size=8)


def judged(lines: list[tuple[Key, int]], stock: dict[Key, int]) -> list[Status]:
    """An order's answers: that of the first line for which, with those before it, too little is there."""
    for number, (cell, _) in enumerate(lines):
        demand = sum(units for key, units in lines[: number + 1] if key == cell)
        if demand > stock[cell]:
            others = [Status.LINKED_LINE_REFUSED] * len(lines)
            return [*others[:number], NONE_LEFT, *others[number + 1 :]]
    return [OK] * len(lines)


@given(LINES, st.integers(0, 20), st.integers(0, 20))
def test_scenario_02_lines_of_one_request_on_the_same_cell_are_summed_first(
    lines: list[tuple[Key, int]], tea: int, jam: int
) -> None:
    shop = Shop(tea, jam)
    wanted = linked([reserve(units, cell) for cell, units in lines])
    expected = judged(lines, {TEA: tea, JAM: jam})
    assert shop.answers(*wanted, name="order") == expected
    for cell, units in ((TEA, tea), (JAM, jam)):
        if units:
            held = sum(each for key, each in lines if key == cell)
            assert shop.cell(cell).reserved == (held if expected[0] is OK else 0)


@given(LINES, st.integers(1, 20))
def test_scenario_02_lines_that_stand_alone_get_what_those_before_them_left(
    lines: list[tuple[Key, int]], tea: int
) -> None:
    shop = Shop(tea, tea)
    left = {TEA: tea, JAM: tea}
    for number, (cell, units) in enumerate(lines):
        expected = OK if units <= left[cell] else NONE_LEFT
        left[cell] -= units if expected is OK else 0
        assert shop.answer(reserve(units, cell), name=f"line {number}") is expected
    assert [shop.available(TEA), shop.available(JAM)] == [left[TEA], left[JAM]]


@any_order
async def test_scenario_02_lines_are_summed_on_each_of_several_shards(seed: int) -> None:
    async with Market.open(seed) as market:
        await market.stock({TEA: 5, FAR: 5})
        scattered = [reserve(3, TEA), reserve(2, FAR), reserve(3, TEA), reserve(2, FAR)]
        assert await market.order("too many", *scattered) is NONE_LEFT
        assert await market.order("fits", *scattered[1:]) is OK
        assert [(await market.cell(key)).available for key in (TEA, FAR)] == [2, 1]


# --- 3: reserved is the sum of the live holds, no update is lost ------------------------------------

CELLS: list[Key] = [(sku, at) for sku in (1, 2) for at in (BERLIN, BOSTON)]


async def shops(market: Market, name: str, seed: int) -> tuple[Key, tuple[int, int, int]]:
    """Hold some units of a cell and do something with them. What must be left of it then."""
    draw = random.Random(seed)
    cell, units = draw.choice(CELLS), draw.randint(2, 4)
    if await market.order(name, reserve(units, cell, ttl_ms=LONG_MS)) is not OK:
        return cell, (0, 0, 0)
    part = draw.randint(1, units - 1)
    steps, left = draw.choice(
        [
            ([], (units, 0, 0)),
            ([release(name)], (0, 0, 0)),
            ([release(name, part, cell)], (units - part, 0, 0)),
            ([commit(name)], (0, units, 0)),
            ([commit(name, part, cell)], (units - part, part, 0)),
            ([commit(name, part, cell, rest=True)], (0, part, 0)),
            ([commit(name), fulfil(name)], (0, 0, units)),
            ([commit(name), fulfil(name, part, cell), cancel(name)], (0, 0, part)),
        ]
    )
    for number, step in enumerate(steps):
        assert await market.call(f"{name}/{number}", step) is OK
    return cell, left


@any_order
async def test_scenario_03_what_is_reserved_is_the_sum_of_live_holds_and_no_update_is_lost(
    seed: int,
) -> None:
    """Requests and answers are lost, and asked again, all the while."""
    async with Market.open(seed, lossy=0.15) as market:
        await market.stock(dict.fromkeys(CELLS, 40))
        names = [f"s{n}" for n in range(40)]
        tills = [market.batch(f"till {n}", sale(1, CELLS[n % 4])) for n in range(20)]
        shoppers = [shops(market, name, 100 * seed + n) for n, name in enumerate(names)]
        left, _ = await asyncio.gather(market.all(shoppers), market.all(tills))
        for cell in CELLS:
            pending, committed, fulfilled = (
                sum(units[i] for key, units in left if key == cell) for i in range(3)
            )
            found = await market.cell(cell)
            assert found.on_hand == 40 - 5 - fulfilled
            assert (found.reserved, found.committed) == (pending, committed)
        for name, (_, units) in zip(names, left, strict=True):
            assert await market.units(name) == units


# --- 4: a slow payment is nobody else's business ----------------------------------------------------


@any_order
async def test_scenario_04_a_slow_payment_blocks_no_other_buyer_of_the_sku(seed: int) -> None:
    paid = asyncio.Event()

    async def pays_slowly(market: Market) -> Status:
        held = await market.order("slow", *(reserve(1, key, ttl_ms=LONG_MS) for key in (TEA, FAR)))
        assert held is OK
        await paid.wait()
        return await market.call("slow pays", commit("slow"))

    async def buys(market: Market, name: str, cell: Key) -> Status:
        status = await market.order(name, reserve(1, cell, ttl_ms=LONG_MS))
        if status is OK:
            assert await market.call(f"{name} pays", commit(name)) is OK
            assert await market.call(f"{name} goes", fulfil(name)) is OK
        return status

    async with Market.open(seed) as market:
        await market.stock({TEA: 10, FAR: 10})
        paying = asyncio.create_task(pays_slowly(market))
        while await market.units("slow") != (2, 0, 0):
            await market.schedule.pause()
        for cell in (TEA, FAR):
            answers = await market.all(buys(market, f"{cell[1]}-{n}", cell) for n in range(12))
            assert answers.count(OK) == 9  # one is the slow payer's
        assert not paying.done()
        paid.set()
        assert await paying is OK
        for cell in (TEA, FAR):
            found = await market.cell(cell)
            assert (found.on_hand, found.reserved, found.committed) == (1, 0, 1)


# --- 5: opposite orders, no deadlock ----------------------------------------------------------------

MANY: list[Key] = [(sku, at) for sku in range(1, 11) for at in (1, 2, 3, 4)]


@any_order
async def test_scenario_05_many_lines_in_opposite_orders_do_not_wait_for_each_other(
    seed: int,
) -> None:
    async with Market.open(seed) as market:
        await market.stock(dict.fromkeys(MANY, 16))
        lines = [reserve(1, cell, ttl_ms=LONG_MS) for cell in MANY]
        wanted = [lines, lines[::-1], lines[1::2] + lines[::2], lines[len(lines) // 2 :]]
        answers = await market.all(market.order(f"o{n}", *wanted[n % 4]) for n in range(16))
        assert set(answers) == {OK}  # there is enough for all
        # Now one cell of shard 1 is sold out, and what was held on shard 0 meanwhile is there again.
        late = [each for each in lines[: len(lines) // 2] if each.location % 2]
        late.append(reserve(1, (10, 2), ttl_ms=LONG_MS))
        turns = [late, late[::-1]]
        answers = await market.all(market.order(f"late {n}", *turns[n % 2]) for n in range(8))
        assert set(answers) == {NONE_LEFT}
        for number, (_, at) in enumerate(MANY):
            cell = await market.cell(MANY[number])
            assert cell.reserved == (16 if number >= len(MANY) // 2 else 12), at


# --- 6: what happened earlier and is heard of later -------------------------------------------------

FACTS = st.lists(
    st.one_of(
        st.integers(1, 9).map(sale),
        st.integers(1, 9).map(receive),
        st.integers(1, 9).map(lambda units: comes_back(units, Disposition.RESTOCK)),
        st.integers(-9, 9).filter(bool).map(adjust),
        st.integers(1, 9).map(write_off),
        st.integers(0, 50).map(count),
    ),
    min_size=2,
    max_size=12,
)


def moved(fact: Line) -> int:
    """What a fact adds to on_hand."""
    leaves = fact.kind in (sale(1).kind, write_off(1).kind)
    return -fact.quantity if leaves else fact.quantity


def in_order(facts: list[Line], opening: int) -> int:
    """The balance when each fact is heard of as it happens."""
    is_count = count(0).kind
    *_, balance = accumulate(
        facts,
        lambda so_far, fact: fact.quantity if fact.kind == is_count else so_far + moved(fact),
        initial=opening,
    )
    return balance


@given(FACTS, st.randoms(use_true_random=False), st.integers(0, 20))
def test_scenario_06_events_that_arrive_in_another_order_leave_the_right_balance(
    facts: list[Line], draw: random.Random, opening: int
) -> None:
    shop = Shop(tea=opening)
    began = shop.now_ns
    shop.wait(1_000 * MS)
    happened = [
        fact._replace(occurred_at_ns=began + 10 + number) for number, fact in enumerate(facts)
    ]
    for fact in draw.sample(happened, len(happened)):
        shop.does(fact)
    assert shop.cell().on_hand == in_order(facts, opening)


@given(FACTS, st.integers(1, 5), st.data())
def test_scenario_06_goods_of_an_order_have_left_when_an_earlier_count_arrives(
    facts: list[Line], units: int, data: st.DataObject
) -> None:
    """The handover is known at once; counts and facts from before it come in any order after it."""
    shop = Shop(tea=units)
    began = shop.now_ns
    shop.wait(1_000 * MS)
    shop.holds("order", reserve(units))
    shop.does(commit("order"))
    shop.does(fulfil("order"))
    happened = [
        fact._replace(occurred_at_ns=began + 10 + number) for number, fact in enumerate(facts)
    ]
    for fact in data.draw(st.permutations(happened)):
        shop.does(fact)
    assert shop.cell().on_hand == in_order(facts, units) - units
