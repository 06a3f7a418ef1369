"""Scenarios 7 to 12: what befalls holds. Rules, against both machines, and callers who vanish."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.operations import Disposition
from engine.reference import Key, Line
from engine.status import Status
from engine.views import HoldState
from tests.property.histories import MS, linked
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    cancel,
    comes_back,
    commit,
    fulfil,
    hold_id,
    instead_of,
    release,
    reserve,
    sale,
    unfulfil,
)
from tests.scenarios.market import Market

OK = Status.OK
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
        st.sampled_from(["buy", "buy", "pay", "pay", "pay anew", "hand over", "give up"]),
        st.integers(0, 5),
        st.sampled_from([0, 1, 500 * MS, 1_000 * MS, 1_001 * MS]),
    ),
    max_size=25,
)


@given(PAYMENTS, st.integers(1, 4))
def test_scenario_07_whoever_pays_late_nothing_is_sold_twice(
    steps: list[tuple[str, int, int]], stock: int
) -> None:
    shop = Shop(tea=stock)
    paid = 0
    for number, (what, buyer, wait_ns) in enumerate(steps):
        shop.wait(1 + wait_ns)
        if what == "buy":
            shop.answer(reserve(1), name=f"{buyer}")
        elif what == "pay anew":
            was = shop.pair.machine.hold(hold_id(f"{buyer}"))
            free = shop.available() + sum(
                each.lines[0].pending
                for each in shop.pair.reference.holds.values()
                if each.deadline_ns < shop.now_ns + 1
            )
            answer = shop.answer(commit(f"{buyer}", again=True))
            paid += answer is OK
            lapsed = was is not None and (
                was.state is HoldState.EXPIRED
                or (was.state is HoldState.PENDING and was.deadline_ns < shop.now_ns)
            )
            assert not lapsed or (answer is OK) == (free > 0), number
        elif what == "pay":
            was = shop.pair.machine.hold(hold_id(f"{buyer}"))
            answer = shop.answer(commit(f"{buyer}"))
            paid += answer is OK
            assert (answer is OK) == (
                was is not None
                and was.state is HoldState.PENDING
                and was.deadline_ns >= shop.now_ns
            ), number
        else:
            shop.answer({"hand over": fulfil, "give up": release}[what](f"{buyer}"))
        cell = shop.cell()
        assert cell.on_hand + _handed_over(shop) == stock
        assert cell.committed + _handed_over(shop) == paid <= stock
        assert cell.available >= 0


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
