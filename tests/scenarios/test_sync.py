"""Scenarios 18 to 21: tills, feeds and read views that hear late, twice, or not at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.hub import DeltaHub
from actors.mirror import MirrorFeed
from actors.ports import Compacted, Entry, JournalUnavailable, Position
from actors.tokens import Filter
from engine.events import EXPIRED
from engine.operations import Disposition, Kind
from engine.reference import Line
from engine.status import Status
from tests.fakes.journal import FakeJournal, MemoryStream
from tests.property.histories import MS
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    cancel,
    comes_back,
    commit,
    count,
    fulfil,
    hold_id,
    receive,
    release,
    reserve,
    sale,
)
from tests.scenarios.market import Market
from tests.unit.test_event_hub import Stage, reader

OK, AGAIN = Status.OK, Status.ALREADY_RECORDED
MINUTE = 60_000 * MS
any_order = pytest.mark.parametrize("seed", range(10))


# --- 18: sell one, restock one ----------------------------------------------------------------------


async def test_scenario_18_sold_one_restocked_one_is_told_though_the_quantity_is_the_same() -> None:
    """As two deltas to a subscriber who keeps up; as one when both are in one block.

    Deltas are state: a subscriber who does not keep up hears the newest value, once. Who wants
    each one asks for events.
    """
    async with Market.open(1) as market, watched(market) as (feed, hub):
        await market.stock({TEA: 5})
        shard = market.shards[0]
        await feed.reached(shard.at, 5)
        reader = await hub.subscribe(Filter.of([TEA[1]]))
        while reader.take() is not None:
            pass
        told = []
        for name, events in (
            ("sold", [sale(1)]),
            ("back", [comes_back(1, Disposition.RESTOCK)]),
            ("both", [sale(1), comes_back(1, Disposition.RESTOCK)]),
        ):
            assert set(await market.batch(name, *events)) == {OK}
            await feed.reached(shard.at, 5)
            while (frame := reader.take()) is not None:
                told.append(frame.cells[:, 1].tolist())
        assert told == [[4], [5], [5]]
        for name in ("sold 2", "sold 3"):
            await market.batch(name, sale(1))
        await feed.reached(shard.at, 5)
        newest = reader.take()
        assert newest is not None
        assert newest.cells[:, 1].tolist() == [3]
        assert reader.take() is None


@any_order
async def test_scenario_18_who_asks_for_events_is_told_each_one(seed: int) -> None:
    """Kept up or slow, together or apart, in one block or several: what was done is what is told."""
    draw = random.Random(seed)
    async with Stage.open() as stage:
        quick, slow = [await reader(stage, Filter.of([TEA[1]])) for _ in range(2)]
        done: list[tuple[int, int]] = []
        for _ in range(20):
            lines = []
            for _ in range(draw.randint(1, 3)):
                units = draw.randint(1, 3)
                lines += [sale(units), comes_back(units, Disposition.RESTOCK)]
                done += [(Kind.SALE, units), (Kind.RETURN, units)]
            if draw.random() < 0.5:
                await stage.does(*lines)
            else:
                for line in lines:
                    await stage.does(line)
            await quick.read()
        await slow.read()
        for each in (quick, slow):
            assert list(zip(each.kinds, each.quantities, strict=True)) == done
        cell = await stage.market.cell(TEA)
        assert cell.on_hand == 1_000


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_scenario_18_an_order_that_comes_and_goes_is_told_step_by_step(steps: list[int]) -> None:
    """On both machines: reserved and given up, or run out, again and again; stock is as before."""
    shop = Shop(tea=50)
    told: list[tuple[int, int]] = []
    expected: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        name = f"o{number}"
        shop.holds(name, reserve(number + 1))
        told += [(each["kind"], each["quantity"]) for each in shop.pair.events]
        expected.append((Kind.RESERVE, number + 1))
        if step == 0:
            shop.does(release(name))
            expected.append((Kind.RELEASE, number + 1))
        elif step == 1:
            shop.wait_until(shop.hold(name).deadline_ns + 1)
            shop.does(count(50))
            expected += [(EXPIRED, number + 1), (Kind.COUNT, 50)]
        else:
            shop.does(commit(name), cancel(name))
            expected += [(Kind.COMMIT, number + 1), (Kind.CANCEL, number + 1)]
        told += [(each["kind"], each["quantity"]) for each in shop.pair.events]
    assert told == expected
    assert (shop.cell().on_hand, shop.cell().available) == (50, 50)


# --- 19: an offline till uploads its day twice ------------------------------------------------------

DAYS = st.lists(
    st.tuples(st.sampled_from([TEA, JAM]), st.integers(1, 5), st.integers(1, 600)),
    min_size=1,
    max_size=15,
)


@given(DAYS, st.integers(0, 600), st.integers(0, 60), st.randoms(use_true_random=False))
def test_scenario_19_a_day_that_is_uploaded_twice_and_shuffled_has_one_effect(
    day: list[tuple[tuple[int, int], int, int]], noon: int, counted: int, draw: random.Random
) -> None:
    """In batches of any size, around a count of what was on the shelf at some moment of that day."""
    shop = Shop(tea=80, jam=80)
    began = shop.now_ns + 1  # the shelves were full before that
    shop.wait(700 * MINUTE)
    receipts = [
        sale(units, cell, hold=hold_id(f"{n}"), occurred_at_ns=began + minute * MINUTE)
        for n, (cell, units, minute) in enumerate(day)
    ]
    counted_at = began + noon * MINUTE  # and maybe the moment of some sales: tills stamp in seconds
    heard = [*draw.sample(receipts, len(receipts)), *draw.sample(receipts, len(receipts))]
    heard.insert(draw.randint(0, len(heard)), count(counted, occurred_at_ns=counted_at))
    answers: list[Status] = []
    while heard:
        size = draw.randint(1, 4)
        answers += shop.answers(*heard[:size], name=f"upload {len(heard)}")
        heard = heard[size:]
    assert sorted(answers) == [OK] * (len(day) + 1) + [AGAIN] * len(day)
    since = sum(each.quantity for each in receipts if _is_since(each, counted_at))
    assert shop.cell(TEA).on_hand == counted - since
    assert shop.cell(JAM).on_hand == 80 - sum(each.quantity for each in receipts if each.sku == 2)


def _is_since(receipt: Line, moment_ns: int) -> bool:
    return receipt.key == TEA and receipt.occurred_at_ns >= moment_ns


@any_order
async def test_scenario_19_two_uploads_at_once_over_two_shards_have_one_effect(seed: int) -> None:
    """Under different op_ids, so that the receipts themselves must be known again."""
    async with Market.open(seed, lossy=0.1) as market:
        await market.stock({TEA: 50, FAR: 50})
        draw = random.Random(seed)
        day = [sale(1 + n % 3, (TEA, FAR)[n % 2], hold=hold_id(f"receipt {n}")) for n in range(20)]

        def upload(name: str) -> Iterator[tuple[str, list[Line]]]:
            lines = draw.sample(day, len(day))
            for first in range(0, len(lines), 5):
                yield f"{name} {first}", lines[first : first + 5]

        batches = [*upload("one"), *upload("two")]
        answers = await market.all(market.batch(name, *lines) for name, lines in batches)
        flat = [status for each in answers for status in each]
        assert (flat.count(OK), flat.count(AGAIN)) == (20, 20)
        for cell in (TEA, FAR):
            sold = sum(each.quantity for each in day if each.key == cell)
            assert (await market.cell(cell)).on_hand == 50 - sold


# --- 20: an absolute feed ---------------------------------------------------------------------------


@given(
    st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 40)
)
def test_scenario_20_an_absolute_feed_that_knows_nothing_of_open_orders_invents_no_stock(
    pending: int, committed: int, fulfilled: int, set_aside: int, said: int
) -> None:
    """It says what is on the shelf; what of that is promised stays promised."""
    shop = Shop(tea=20)
    for name, units in (("cart", pending), ("paid", committed), ("gone", fulfilled)):
        if units:
            shop.holds(name, reserve(units, ttl_ms=60_000))
    if committed:
        shop.does(commit("paid"))
    if fulfilled:
        shop.does(commit("gone"))
        shop.does(fulfil("gone"))
    if set_aside:
        shop.does(comes_back(set_aside, Disposition.DAMAGED))
    shop.does(count(said))
    cell = shop.cell()
    assert (cell.on_hand, cell.reserved, cell.committed) == (said, pending, committed)
    free = said - pending - committed - set_aside
    assert cell.available == free
    assert shop.answer(reserve(max(free, 0) + 1), name="too many") is Status.INSUFFICIENT_STOCK
    if free > 0:
        shop.does(reserve(free), name="the rest")
    shop.does(count(said))  # the feed comes every night and says the same
    assert shop.available() == min(free, 0)


@given(st.integers(1, 5), st.integers(0, 5), st.integers(5, 40))
def test_scenario_20_a_feed_of_last_night_does_not_bring_back_what_left_since(
    handed_over: int, sold: int, said: int
) -> None:
    shop = Shop(tea=20)
    last_night = shop.now_ns + 1
    shop.wait(MINUTE)
    shop.holds("order", reserve(handed_over))
    shop.does(commit("order"))
    shop.does(fulfil("order"))
    if sold:
        shop.does(sale(sold))
    shop.does(count(said, occurred_at_ns=last_night))
    assert shop.available() == said - handed_over - sold


# --- 21: a read view never goes stale for good ------------------------------------------------------


class Flaky(FakeJournal):
    """A journal whose readers are cut off, overtaken by trimming, or given a block with an error."""

    def __init__(self, stream: MemoryStream, draw: random.Random) -> None:
        super().__init__(stream)
        self.draw, self.faulty = draw, True
        self.faults = 0

    async def tail(self, after: Position) -> AsyncIterator[list[Entry]]:
        async for entries in super().tail(after):
            fault = self.draw.choice(["", "", "away", "trimmed", "damaged", "late"])
            if not self.faulty or not fault:
                yield entries
                continue
            self.faults += 1
            if fault == "away":
                raise JournalUnavailable("cut off")
            if fault == "trimmed":
                raise Compacted(after, None)
            if fault == "damaged":
                *good, (position, payload) = entries
                yield [*good, (position, payload[:-1] + bytes((payload[-1] ^ 1,)))]
                continue
            await asyncio.sleep(0.002)
            yield entries


@asynccontextmanager
async def watched(
    market: Market, journal: FakeJournal | None = None
) -> AsyncIterator[tuple[MirrorFeed, DeltaHub]]:
    """A gateway's mirror of shard 0, and the hub that tells of it."""
    feed = MirrorFeed(
        market.links[0], journal or FakeJournal(market.streams[0]),
        retry_min_s=0.001, retry_max_s=0.002, gap_s=0.0,
    )  # fmt: skip
    hub = DeltaHub({0: feed.mirror}, b"store--1")
    following = asyncio.create_task(feed.run(hub))
    try:
        await feed.ready()
        yield feed, hub
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


@any_order
async def test_scenario_21_a_view_is_right_again_by_itself_whatever_cut_it_off(seed: int) -> None:
    """Faults of the journal, restarts of the shard; then silence, in which nothing more is written."""
    draw = random.Random(seed)
    async with Market.open(seed) as market:
        await market.stock({TEA: 1_000, JAM: 1_000})
        journal = Flaky(market.streams[0], draw)
        async with watched(market, journal) as (feed, _):
            for number in range(40):
                if number % 15 == 14:
                    await market.stop()
                    await market.start()
                cells = draw.sample([TEA, JAM, (3, TEA[1])], 2)
                await market.batch(
                    f"n{number}", *(draw.choice([sale, receive])(2, c) for c in cells)
                )
                await market.order(f"o{number}", reserve(1, ttl_ms=draw.choice([1, 60_000])))
                await asyncio.sleep(0.001)
            journal.faulty = False
            assert journal.faults > 5
            assert await feed.reached(market.shards[0].at, 10)
            table = await market.shards[0].table()
            assert np.array_equal(feed.mirror.cells, table.cells)
            assert feed.at == table.at
