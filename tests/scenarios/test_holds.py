"""Scenarios 7 to 12: what befalls holds. Rules, against both machines, and callers who vanish."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.operations import Disposition
from engine.reference import Key, Line
from engine.status import Status
from engine.views import HoldState
from tests.property.histories import BERLIN, BOSTON, MS, linked
from tests.property.shop import (
    FAR,
    JAM,
    NO_LINE,
    TEA,
    Shop,
    cancel,
    comes_back,
    commit,
    fulfil,
    hold_id,
    instead_of,
    move,
    receive,
    release,
    reserve,
    sale,
    unfulfil,
)
from tests.scenarios.market import Market

OK = Status.OK
FAR_JAM: Key = (2, BOSTON)
LONG_MS = 600_000
any_order = pytest.mark.parametrize("seed", range(10))
TTLS_MS = st.sampled_from([1, 2, 40, 1_000, 4_295, 60_000, 30 * 24 * 3600 * 1000])


# --- 7: a payment after the deadline ----------------------------------------------------------------


@given(TTLS_MS, st.integers(-2, 2), st.booleans())
def test_scenario_07_a_payment_is_taken_up_to_the_deadline_and_refused_a_nanosecond_after(
    ttl_ms: int, late_ns: int, others_trade: bool
) -> None:
    shop = Shop(tea=3)
    shop.holds("order", reserve(2, ttl_ms=ttl_ms))
    deadline = shop.hold("order").deadline_ns
    assert deadline == shop.now_ns + ttl_ms * MS
    if others_trade:
        shop.does(reserve(1), name="other")
    shop.wait_until(deadline + late_ns)
    if late_ns <= 0:
        shop.does(commit("order"))
        assert shop.units("order") == [(0, 2, 0)]
    else:
        assert shop.answer(commit("order")) is Status.HOLD_EXPIRED
        assert shop.units("order") == [(0, 0, 0)]
        assert shop.cell().committed == 0


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10), st.integers(0, 5))
def test_scenario_07_a_late_payment_is_reserved_anew_when_the_caller_asks_and_it_is_there(
    tea: int, jam: int, gone: int, jam_gone: int
) -> None:
    """All of it or nothing, in one step: what others took meanwhile is theirs."""
    shop = Shop(tea=10, jam=5)
    shop.holds("order", reserve(tea), reserve(jam, JAM))
    shop.wait_until(shop.hold("order").deadline_ns + 1)
    for units, cell in ((gone, TEA), (jam_gone, JAM)):
        if units:
            shop.does(reserve(units, cell, ttl_ms=60_000), name=f"other {cell[0]}")
    before = shop.cell(), shop.cell(JAM)
    is_there = tea <= 10 - gone and jam <= 5 - jam_gone
    answer = shop.answer(commit("order", again=True))
    if is_there:
        assert answer is OK
        assert shop.units("order") == [(0, tea, 0), (0, jam, 0)]
        assert (shop.available(), shop.available(JAM)) == (10 - gone - tea, 5 - jam_gone - jam)
        assert shop.answer(commit("order", again=True)) is Status.HOLD_NOT_PENDING
    else:
        assert answer is Status.INSUFFICIENT_STOCK
        assert shop.state("order") is HoldState.EXPIRED
        assert (shop.cell(), shop.cell(JAM)) == before


PAYMENTS = st.lists(
    st.tuples(
        st.sampled_from(["buy", "buy", "pay", "pay anew", "pay anew", "hand over", "give up"]),
        st.integers(0, 3),
        st.sampled_from([0, 0, 1, 500 * MS, 1_000 * MS, 1_001 * MS]),
    ),
    min_size=5,
    max_size=25,
)


@given(PAYMENTS, st.integers(1, 2))
def test_scenario_07_whoever_pays_late_nothing_is_sold_twice(
    steps: list[tuple[str, int, int]], stock: int
) -> None:
    """A payment is taken in time, or when it asks for the hold anew and there is something left."""
    shop = Shop(tea=stock)
    buyers = paid = 0
    for what, back, wait_ns in steps:
        shop.wait(1 + wait_ns)
        name = f"{buyers - 1 - back}"
        was = shop.pair.machine.hold(hold_id(name))
        in_time = was is not None and was.state is HoldState.PENDING
        in_time = in_time and was.deadline_ns > shop.now_ns
        if what == "buy":
            shop.answer(reserve(1), name=f"{buyers}")
            buyers += 1
        elif what == "pay":
            answer = shop.answer(commit(name))
            assert (answer is OK) == in_time
            paid += answer is OK
        elif what == "pay anew":
            lapsed = was is not None and not in_time and was.state in _MAY_LAPSE
            free = stock - paid - _pending(shop)
            answer = shop.answer(commit(name, again=True))
            assert (answer is OK) == (in_time or (lapsed and free > 0))
            paid += answer is OK
        else:
            shop.answer({"hand over": fulfil, "give up": release}[what](name))
        cell = shop.cell()
        assert cell.on_hand + _handed_over(shop) == stock
        assert cell.committed + _handed_over(shop) == paid <= stock
        assert cell.available >= 0


_MAY_LAPSE = (HoldState.PENDING, HoldState.EXPIRED)


def _pending(shop: Shop) -> int:
    """What will still be pending in the next block."""
    holds = shop.pair.reference.holds.values()
    return sum(h.lines[0].pending for h in holds if h.deadline_ns > shop.now_ns)


def _handed_over(shop: Shop) -> int:
    return sum(line.fulfilled for h in shop.pair.reference.holds.values() for line in h.lines)


# --- 8: the owner retries ---------------------------------------------------------------------------

BASKETS = st.lists(
    st.tuples(st.sampled_from([TEA, JAM]), st.integers(1, 6)), min_size=1, max_size=4
)


def wanted(basket: list[tuple[Key, int]], cell: Key) -> int:
    return sum(units for key, units in basket if key == cell)


@given(BASKETS, BASKETS, st.integers(0, 12), st.integers(0, 12))
def test_scenario_08_the_owners_own_hold_does_not_stand_in_the_way_of_a_retry(
    first: list[tuple[Key, int]], retry: list[tuple[Key, int]], others: int, spare: int
) -> None:
    """Never worse than the old hold, never both: either the new one stands or the old one does."""
    stock = {cell: wanted(first, cell) + others + spare for cell in (TEA, JAM)}
    shop = Shop(stock[TEA], stock[JAM])
    if others:
        shop.holds("others", reserve(others), reserve(others, JAM))
    shop.holds("first", *(reserve(units, cell) for cell, units in first))
    before = shop.pair.machine.state_hash
    new, *more = linked([reserve(units, cell) for cell, units in retry])
    answers = shop.answers(instead_of("first", new), *more, name="retry")
    fits = all(wanted(retry, cell) <= stock[cell] - others for cell in (TEA, JAM))
    assert (set(answers) == {OK}) == fits
    standing = retry if fits else first
    for cell in (TEA, JAM):
        if stock[cell]:
            assert shop.cell(cell).reserved == wanted(standing, cell) + others
    if fits:
        assert shop.state("first") is HoldState.RELEASED
        assert shop.answer(commit("first")) is Status.HOLD_RELEASED
        shop.does(commit("retry"))
    else:
        assert Status.INSUFFICIENT_STOCK in answers
        assert shop.pair.machine.state_hash == before
        shop.does(commit("first"))


@any_order
async def test_scenario_08_nobody_slips_in_between_an_owners_hold_and_the_retry(seed: int) -> None:
    """The last unit stays the owner's however often payment is retried and however many wait."""
    async with Market.open(seed, lossy=0.1) as market:
        await market.stock({TEA: 1})
        assert await market.order("try 0", reserve(1, ttl_ms=600_000)) is OK

        async def retries() -> None:
            for number in range(6):
                anew = instead_of(f"try {number}", reserve(1, ttl_ms=600_000))
                assert await market.order(f"try {number + 1}", anew) is OK

        buyers = [market.order(f"b{n}", reserve(1, ttl_ms=600_000)) for n in range(20)]
        _, *answers = await market.all([retries(), *buyers])
        assert set(answers) == {Status.INSUFFICIENT_STOCK}
        assert await market.pending() == 1
        assert await market.call("pay", commit("try 6")) is OK


# --- 9: the client gives up -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), TTLS_MS), min_size=1, max_size=5))
def test_scenario_09_what_a_client_who_gave_up_had_comes_back_at_the_deadline(
    orders: list[tuple[int, int, int]],
) -> None:
    shop = Shop(tea=25, jam=25)
    deadlines = []
    for number, (tea, jam, ttl_ms) in enumerate(orders):
        shop.holds(f"{number}", reserve(tea, ttl_ms=ttl_ms), reserve(jam, JAM, ttl_ms=ttl_ms))
        deadlines.append((shop.hold(f"{number}").deadline_ns, tea, jam))
    deadlines.sort()
    for at, (deadline, _, _) in enumerate(deadlines):
        if deadline < shop.now_ns:
            continue
        shop.wait_until(max(deadline + 1, shop.now_ns + 1))
        shop.answers(sale(1, FAR))  # somebody else's business, elsewhere
        gone = [each for each in deadlines if each[0] < shop.now_ns]
        assert shop.available() == 25 - sum(
            tea for each, tea, _ in deadlines if each >= shop.now_ns
        )
        assert shop.cell(JAM).reserved == sum(jam for *_, jam in deadlines) - sum(
            jam for *_, jam in gone
        )
        assert len(gone) > at
    assert (shop.cell().reserved, shop.cell(JAM).reserved) == (0, 0)


@any_order
async def test_scenario_09_a_client_that_vanishes_at_any_moment_leaves_nothing_behind(
    seed: int,
) -> None:
    """Cancelled while requests, answers or releases are under way, over two shards."""
    async with Market.open(seed, lossy=0.1) as market:
        await market.stock({TEA: 6, FAR: 6})
        draw = random.Random(seed)

        async def vanishes(name: str, moments: int) -> None:
            lines = [reserve(2, TEA, ttl_ms=5_000), reserve(2, FAR, ttl_ms=5_000)]
            going = asyncio.create_task(market.order(name, *draw.sample(lines, 2)))
            for _ in range(moments):
                await asyncio.sleep(0)
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)

        await market.all(vanishes(f"v{n}", draw.randint(0, 60)) for n in range(12))
        for link in market.links:
            link.lossy = 0.0
        market.now_ns += 6_000 * MS
        for key in (TEA, FAR):
            assert await market.order(f"look {key}"[:14], reserve(6, key)) is OK
            assert (await market.cell(key)).reserved == 6


# --- 10: a hold moves -------------------------------------------------------------------------------


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_scenario_10_a_hold_that_moves_finds_its_stock_at_the_destination_or_stays(
    held: tuple[int, int], there: tuple[int, int], promised: tuple[int, int]
) -> None:
    """What others were promised there is not free; all lines go or none; the deadline stays."""
    shop = Shop(*held)
    for number, cell in enumerate((FAR, FAR_JAM)):
        shop.does(receive(there[number] + 1, cell))
        shop.does(reserve(min(promised[number], there[number]) + 1, cell), name=f"other {number}")
    shop.holds("order", reserve(held[0], ttl_ms=60_000), reserve(held[1], JAM, ttl_ms=60_000))
    deadline, before = shop.hold("order").deadline_ns, shop.pair.machine.state_hash
    free = [there[n] - min(promised[n], there[n]) for n in (0, 1)]
    if held[0] <= free[0] and held[1] <= free[1]:
        shop.does(move("order", BOSTON))
        assert [line.location for line in shop.hold("order").lines] == [BOSTON, BOSTON]
        assert [shop.available(cell) for cell in (FAR, FAR_JAM)] == [
            free[0] - held[0],
            free[1] - held[1],
        ]
        assert (shop.available(), shop.available(JAM)) == held
    else:
        assert shop.answer(move("order", BOSTON)) is Status.INSUFFICIENT_STOCK
        assert shop.pair.machine.state_hash == before
    assert shop.hold("order").deadline_ns == deadline
    shop.does(commit("order"))
    assert shop.units("order") == [(0, held[0], 0), (0, held[1], 0)]


@any_order
async def test_scenario_10_holds_that_move_between_shards_are_held_once_and_where_there_is_stock(
    seed: int,
) -> None:
    """Many want to go where three are free, others buy there, and messages are lost."""
    async with Market.open(seed, lossy=0.1) as market:
        await market.stock({TEA: 10, FAR: 3})
        names = [f"h{n}" for n in range(5)]
        for name in names:
            assert await market.order(name, reserve(1, TEA, ttl_ms=600_000)) is OK
        moves = [market.move(f"m{name}", move(name, BOSTON)) for name in names]
        buyers = [market.order(f"b{n}", reserve(1, FAR, ttl_ms=600_000)) for n in range(3)]
        answers = await market.all([*moves, *buyers])
        assert (answers.count(OK), answers.count(Status.INSUFFICIENT_STOCK)) == (3, 5)
        for name, answer in zip(names, answers, strict=False):
            hold = await market.hold(name)
            assert hold is not None
            where = [line.location for line in hold.lines if line.pending]
            assert where == [BOSTON if answer is OK else BERLIN]
        assert (await market.cell(FAR)).available == 0
        assert (await market.cell(TEA)).reserved == 5 - answers[:5].count(OK)


@pytest.mark.parametrize("lossy", [0.0, 0.2])
@any_order
async def test_scenario_10_a_hold_that_is_paid_while_it_moves_is_sold_once(
    seed: int, lossy: float
) -> None:
    """By two gateways that know nothing of each other: it moves, or it is paid where it is.

    Or one after the other. Who pays between two steps of the move is refused, and it stays held.
    """
    async with Market.open(seed, lossy=lossy) as market:
        await market.stock({TEA: 20, JAM: 20, FAR: 20, FAR_JAM: 20})
        names = [f"h{n}" for n in range(8)]
        ordered = [reserve(1, ttl_ms=LONG_MS), reserve(2, JAM, ttl_ms=LONG_MS)]
        for name in names:
            assert await market.order(name, *ordered) is OK
        answers = await market.all(
            asyncio.gather(
                market.move(f"m{name}", move(name, BOSTON)),
                _later(market, market.call(f"p{name}", commit(name))),
            )
            for name in names
        )
        for name, (moved, paid) in zip(names, answers, strict=True):
            assert (moved, paid) in {
                (OK, OK),
                (OK, Status.HOLD_RELEASED),
                (Status.HOLD_NOT_PENDING, OK),
            }
            assert await market.units(name) == ((0, 3, 0) if paid is OK else (3, 0, 0))
            hold = await market.hold(name)
            assert hold is not None
            where = {line.location for line in hold.lines if line.pending or line.committed}
            assert where == {BOSTON if moved is OK else BERLIN}
            if paid is not OK:  # it lives on, and can be paid where it went
                assert await market.call(f"again {name}", commit(name)) is OK
                assert await market.units(name) == (0, 3, 0)


@any_order
async def test_scenario_10_through_one_gateway_a_payment_never_meets_a_move_half_way(
    seed: int,
) -> None:
    """Whichever part of an order moves, it is paid as a whole: before that or after it."""
    async with Market.open(seed) as market:
        market.routers = market.routers[:1]
        await market.stock({TEA: 20, JAM: 20, FAR: 20, FAR_JAM: 20})
        moves = [NO_LINE, TEA]
        names = [f"h{n}" for n in range(6)]
        for n, name in enumerate(names):
            second = reserve(2, (JAM, FAR_JAM)[n // 3], ttl_ms=LONG_MS)
            assert await market.order(name, reserve(2, ttl_ms=LONG_MS), second) is OK
        calls = [
            asyncio.gather(
                market.move(f"m{name}", move(name, BOSTON, moves[n % 2], n % 2)),
                market.call(f"p{name}", commit(name)),
            )
            for n, name in enumerate(names)
        ]
        for name, (moved, paid) in zip(names, await market.all(calls), strict=True):
            assert paid is OK
            assert moved in {OK, Status.HOLD_NOT_PENDING}
            assert await market.units(name) == (0, 4, 0)


async def _later(market: Market, call: Coroutine[Any, Any, Status]) -> Status:
    """Make a call after some steps of others."""
    for _ in range(market.schedule.draw.randint(0, 200)):
        await asyncio.sleep(0)
    return await call


# --- 11: cancel before there is a commitment --------------------------------------------------------


def test_scenario_11_a_cancel_before_anything_was_committed_takes_no_counter_below_zero() -> None:
    shop = Shop(tea=5)
    shop.holds("order", reserve(3))
    before = shop.cell()
    assert shop.answer(cancel("order")) is Status.HOLD_NOT_COMMITTED
    assert shop.answer(cancel("order", 1)) is Status.HOLD_NOT_COMMITTED
    assert shop.cell() == before
    assert shop.state("order") is HoldState.PENDING
    shop.does(commit("order"))
    shop.does(cancel("order"))
    assert (shop.cell().committed, shop.available()) == (0, 5)
    assert shop.answer(cancel("order")) is Status.HOLD_NOT_COMMITTED


CALLS = st.lists(
    st.tuples(
        st.sampled_from([commit, release, fulfil, cancel, unfulfil]),
        st.integers(0, 5),
        st.sampled_from([TEA, JAM]),
    ),
    max_size=12,
)


@given(CALLS)
def test_scenario_11_whatever_is_called_on_an_order_in_whatever_turn_no_counter_is_below_zero(
    calls: list[tuple[type[Line], int, tuple[int, int]]],
) -> None:
    """And what is refused changes nothing: the order is what the accepted calls made of it."""
    shop = Shop(tea=5, jam=5)
    shop.holds("order", reserve(4), reserve(3, JAM))
    had = {TEA: [4, 0, 0], JAM: [3, 0, 0]}  # pending, committed, fulfilled
    moves = {
        commit: (0, 1),
        release: (0, None),
        fulfil: (1, 2),
        cancel: (1, None),
        unfulfil: (2, 1),
    }
    for call, units, cell in calls:
        before = shop.pair.machine.state_hash
        if shop.answer(call("order", units, cell)) is not OK:
            assert shop.pair.machine.state_hash == before
            continue
        leaves, comes = moves[call]
        for key in [cell] if units else [TEA, JAM]:
            taken = units or had[key][leaves]
            had[key][leaves] -= taken
            if comes is not None:
                had[key][comes] += taken
    assert shop.units("order") == [tuple(had[TEA]), tuple(had[JAM])]
    for key in (TEA, JAM):
        found = shop.cell(key)
        assert min(found.on_hand, found.reserved, found.committed, found.available) >= 0
        assert [found.reserved, found.committed, 5 - found.on_hand] == had[key]


# --- 12: duplicates ---------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 4))
def test_scenario_12_a_fulfilment_that_is_repeated_releases_once(
    ordered: int, other: int, times: int
) -> None:
    """Another event about the same handover, under an id of its own, finds nothing left of it."""
    shop = Shop(tea=20)
    shop.holds("order", reserve(ordered))
    shop.holds("other", reserve(other))
    shop.does(commit("order"), commit("other"))
    shop.does(fulfil("order"))
    for number in range(times):
        assert shop.answer(fulfil("order"), name=f"{number}") is Status.HOLD_NOT_COMMITTED
        assert shop.answer(fulfil("order", ordered)) is Status.HOLD_NOT_COMMITTED
    cell = shop.cell()
    assert (cell.on_hand, cell.committed) == (20 - ordered, other)
    assert shop.units("other") == [(0, other, 0)]


@any_order
async def test_scenario_12_an_event_that_comes_twice_has_one_effect(seed: int) -> None:
    """Two deliveries of everything, by either router, while answers are lost; and a day later again."""
    async with Market.open(seed, lossy=0.1) as market:
        await market.stock({TEA: 20, FAR: 20})
        await market.order("order", reserve(4, TEA), reserve(4, FAR))
        again: list[tuple[str, Line]] = [
            ("pay", commit("order")),
            ("hand over", fulfil("order", 3, FAR)),
            ("cancel", cancel("order", 1, TEA)),
        ]
        for name, line in again:
            assert await market.all(market.call(name, line) for _ in range(3)) == [OK] * 3
        facts = [sale(2, TEA), comes_back(1, Disposition.DAMAGED, TEA), sale(3, FAR)]
        assert await market.all(market.batch("day", *facts) for _ in range(3)) == [[OK] * 3] * 3
        seen = [await market.cell(key) for key in (TEA, FAR)]
        assert [(cell.on_hand, cell.committed) for cell in seen] == [(19, 3), (14, 1)]
        for number in range(2):
            await market.stop()
            await market.start()
            for name, line in again:
                assert await market.call(name, line) is OK
            assert await market.batch("day", *facts) == [OK] * 3
            assert [await market.cell(key) for key in (TEA, FAR)] == seen, number
