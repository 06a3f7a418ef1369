"""The hub of events: nobody misses one, nobody waits for another, and what is kept is bounded.

Shards, journals and mirrors are real but for the journal's store, which is in memory.
"""

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from actors import events as room
from actors.events import EventFrame, EventHub, EventsGone, EventSubscription
from actors.mirror import MirrorFeed
from actors.ports import Compacted, JournalUnavailable, Position
from actors.subscribers import HubFull, HubStopped, NotReady
from actors.tokens import Filter
from engine import limits
from engine.events import Events
from engine.operations import Disposition, Kind
from engine.reference import Line
from tests.fakes.journal import FakeJournal
from tests.property.shop import FAR, JAM, TEA, comes_back, commit, receive, reserve, sale
from tests.scenarios.market import Market

STORE = b"store--1"
Name = tuple[int, int, int, int]  # shard, epoch, seq, number: names an event for good
SALE_AND_BACK = [int(Kind.SALE), int(Kind.RETURN)]


class Counting(FakeJournal):
    """Counts the reads, refuses them when told to, and can forget what shards would need to start."""

    reads = 0
    refuses = False
    oldest: Position | None = None

    async def first(self) -> Position | None:
        return self.oldest or await super().first()

    async def read(self, after: Position | None, upto: Position | None = None) -> Any:
        self.reads += 1
        if self.refuses:
            raise JournalUnavailable("refused")
        if self.oldest is not None and after is not None and after.next() < self.oldest:
            raise Compacted(after, self.oldest)
        async for entry in super().read(after, upto):
            yield entry


class Stage:
    """A market of two shards, its mirrors, and a hub of events."""

    def __init__(self, market: Market, **options: Any) -> None:
        self.market = market
        self.journals = [Counting(stream) for stream in market.streams]
        self.feeds = {
            number: MirrorFeed(
                market.shards[number], journal, retry_min_s=0.001, retry_max_s=0.002, gap_s=0.0
            )
            for number, journal in enumerate(self.journals)
        }
        self.hub = EventHub(self.feeds, STORE, **{"token_wait_s": 0.05} | options)
        self.numbers = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, **options: Any) -> AsyncIterator["Stage"]:
        async with Market.open(1) as market:
            await market.stock({TEA: 1_000, JAM: 1_000, FAR: 1_000})
            stage = cls(market, **options)
            tasks = [asyncio.create_task(feed.run()) for feed in stage.feeds.values()]
            for feed in stage.feeds.values():
                await feed.ready()
            yield stage
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def does(self, *lines: Line) -> None:
        """Some lines as one block of each shard that they are of; the mirrors have it then."""
        self.numbers += 1
        await self.market.batch(f"n{self.numbers}", *lines)
        await self.heard()

    async def heard(self) -> None:
        for number, feed in self.feeds.items():
            assert await feed.reached(self.market.shards[number].at, 5)


class Reader:
    """Reads a subscription, and remembers what it was told."""

    def __init__(self, subscription: EventSubscription) -> None:
        self.subscription = subscription
        self.names: list[Name] = []
        self.kinds: list[int] = []
        self.quantities: list[int] = []
        self.token = b""
        self.frames = 0

    def take(self, frame: EventFrame) -> None:
        self.frames += 1
        self.token = frame.token
        for block in frame.blocks:
            self.kinds += block.columns["kind"].tolist()
            self.quantities += block.columns["quantity"].tolist()
            for number in block.columns["number"].tolist():
                self.names.append((frame.shard, block.epoch, block.seq, number))

    async def step(self) -> int:
        """One frame; how many events it had."""
        frame = await self.subscription.next(0.0)
        self.take(frame)
        return len(frame)

    async def read(self) -> None:
        """All that there is."""
        while await self.step() or len(self.subscription._asleep) < len(self.subscription._at):
            pass


async def reader(stage: Stage, wanted: Filter | None = None, **how: Any) -> Reader:
    return Reader(await stage.hub.subscribe(wanted or Filter.of(), **how))


# --- what is told -----------------------------------------------------------------------------------


async def test_every_operation_is_told_in_order_and_never_two_as_one() -> None:
    async with Stage.open() as stage:
        found = await reader(stage, Filter.of([TEA[1]]))
        await stage.does(sale(1))
        await stage.does(comes_back(1, Disposition.RESTOCK))
        await stage.does(sale(2), comes_back(2, Disposition.RESTOCK))
        await found.read()
        assert found.kinds == SALE_AND_BACK * 2
        assert found.quantities == [1, 1, 2, 2]
        assert found.names == sorted(set(found.names))


async def test_the_first_frame_says_where_it_begins() -> None:
    async with Stage.open() as stage:
        found = await reader(stage)
        assert await found.step() == 0
        first = found.token
        await stage.does(sale(1))
        stage.hub.unsubscribe(found.subscription)
        again = await reader(stage, token=first)
        await again.read()
        assert again.kinds == [Kind.SALE]


async def test_what_another_gateway_told_of_a_block_that_is_not_here_yet_is_told_once() -> None:
    async with Stage.open() as stage:
        wanted = Filter.of([TEA[1]])
        places = [(shard, feed.at.epoch, feed.at.seq, 1) for shard, feed in stage.feeds.items()]
        token = stage.hub.tokens.token(wanted.fingerprint, stage.hub.tokens.packed(places))
        first = await reader(stage, wanted, token=token)
        await first.read()  # it sleeps, and has been told so
        again = await reader(stage, wanted, token=first.token)
        await stage.does(sale(1), comes_back(1, Disposition.RESTOCK))
        for each in (first, again):
            await each.read()
            assert each.kinds == [Kind.RETURN], "the sale was told before"
        await stage.does(sale(2))
        last = await reader(stage, wanted, token=again.token)
        for each in (first, again, last):
            await each.read()
            assert each.kinds[-1] == Kind.SALE
            assert len(each.kinds) <= 2


async def test_it_begins_now_or_after_a_block_or_with_the_oldest() -> None:
    async with Stage.open() as stage:
        await stage.does(sale(1))
        at = stage.market.shards[0].at
        await stage.does(sale(2))
        now, later = await reader(stage), await reader(stage, after={0: at})
        oldest = await reader(stage, oldest=True)
        await stage.does(sale(3), receive(4, FAR))
        for each in (now, later, oldest):
            await each.read()
        assert sorted(now.quantities) == [3, 4]
        assert sorted(later.quantities) == [2, 3, 4]
        assert sorted(oldest.quantities) == [1, 2, 3, 4, 1_000, 1_000, 1_000]
        with pytest.raises(ValueError, match="after: there is no shard 7"):
            await reader(stage, after={7: at})


async def test_only_the_cells_asked_for_are_told() -> None:
    async with Stage.open() as stage:
        of_jam = await reader(stage, Filter.of([], [JAM[0]]))
        of_far = await reader(stage, Filter.of([FAR[1]], [TEA[0]]))
        of_none = await reader(stage, Filter.of([5]))
        for each in (of_jam, of_far, of_none):
            await each.read()
        await stage.market.order("o", reserve(1), reserve(2, JAM))
        await stage.market.call("c", commit("o"))
        await stage.does(sale(7, FAR))
        for each in (of_jam, of_far, of_none):
            await each.read()
        assert of_jam.kinds == [Kind.RESERVE, Kind.COMMIT]
        assert (of_far.kinds, of_far.quantities) == ([Kind.SALE], [7])
        assert (of_none.kinds, stage.hub.subscribers) == ([], 3)


# --- going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_who_comes_and_goes_is_told_each_event_once(seed: int) -> None:
    """From any token, from memory or from the journal, in frames that cut blocks in two."""
    draw = random.Random(seed)
    async with Stage.open(frame_events=3, recent_bytes=2_000) as stage:
        wanted = draw.choice([Filter.of(), Filter.of([TEA[1]]), Filter.of([], [TEA[0]])])
        other = Filter.of([5])
        await reader(stage, other)  # so that blocks are kept while the one under test is away
        whole, token, names = await reader(stage, wanted), b"", list[Name]()
        await whole.step()
        found = Reader(whole.subscription)
        token = whole.token
        for _ in range(30):
            for _ in range(draw.randint(0, 3)):
                cells = [draw.choice([TEA, JAM, FAR]) for _ in range(draw.randint(1, 6))]
                await stage.does(*(sale(1, cell) for cell in cells))
            found = await reader(stage, wanted, token=token)
            for _ in range(draw.randint(0, 6)):
                await found.step()
            token = found.token or token
            names += found.names
            stage.hub.unsubscribe(found.subscription)
        found = await reader(stage, wanted, token=token)
        await found.read()
        names += found.names
        await whole.read()
        assert sorted(names) == sorted(set(names))
        for shard in (0, 1):
            told = [name for name in names if name[0] == shard]
            assert told == sorted(told) == [name for name in whole.names if name[0] == shard]
        assert any(journal.reads for journal in stage.journals)


async def test_who_is_too_far_behind_is_told_what_is_gone_and_why() -> None:
    async with Stage.open() as stage:
        found = await reader(stage)
        await found.read()
        token, before = found.token, stage.market.shards[0].at
        stage.hub.unsubscribe(found.subscription)
        for _ in range(3):
            await stage.does(sale(1))
        at = stage.market.shards[0].at
        stage.journals[0].oldest = at
        late = await reader(stage, token=token)
        said = (
            f"shard 0: events after {before} are not in the journal any more, the oldest block kept"
            f" is {at} .keep_journal_mb."
        )
        with pytest.raises(EventsGone, match=said):
            await late.read()
        rest = await reader(stage, oldest=True)
        await rest.read()
        assert [name[:3] for name in rest.names if name[0] == 0] == [(0, at.epoch, at.seq)]


async def test_tokens_and_places_that_are_none_are_refused() -> None:
    async with Stage.open() as stage:
        found = await reader(stage)
        await found.step()
        for token in (b"x", found.token[:-1], found.token[:-1] + b"\0", bytes(40)):
            with pytest.raises(ValueError, match="resume_token: not a token"):
                await reader(stage, token=token)
        with pytest.raises(EventsGone, match="another store, or was made for another filter"):
            await reader(stage, Filter.of([1]), token=found.token)
        elsewhere = EventHub(stage.feeds, b"store--2")
        with pytest.raises(EventsGone, match="another store"):
            await elsewhere.subscribe(Filter.of(), found.token)
        for at in (Position(9, 9), Position(1, 1 << 50)):
            with pytest.raises(
                EventsGone, match=f"shard 0: {at} is no block of its journal, as yet"
            ):
                await reader(stage, after={0: at})
        await stage.market.stop()
        await stage.market.start()
        await stage.heard()
        strange = await reader(stage, after={0: Position(1, 99)})
        with pytest.raises(EventsGone, match="shard 0: 1-99 is no block of its journal"):
            await strange.read()
        assert stage.hub.subscribers == 2


# --- slow and many ----------------------------------------------------------------------------------


async def test_a_block_is_decoded_once_for_all_and_not_at_all_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def counted(*args: Any) -> Events:
        made.append(1)
        return real(*args)

    real = room.events_of
    monkeypatch.setattr(room, "events_of", counted)
    async with Stage.open() as stage:
        await stage.does(sale(1))
        assert not made
        readers = [await reader(stage, Filter.of([TEA[1]] * (n % 2))) for n in range(10)]
        await stage.does(sale(1))
        for each in readers:
            await each.read()
        assert [each.kinds for each in readers] == [[Kind.SALE]] * 10
        assert len(made) == 1
        for each in readers:
            stage.hub.unsubscribe(each.subscription)
        await stage.does(sale(1))
        assert len(made) == 1
        assert stage.hub.recent_bytes == 0


async def test_hundreds_of_slow_readers_cost_nothing_and_hold_nobody_up() -> None:
    most = 6_000
    async with Stage.open(recent_bytes=most) as stage:
        slow = [await reader(stage) for _ in range(200)]
        quick = await reader(stage)
        await quick.read()
        for number in range(40):
            await stage.does(*(sale(1) for _ in range(5)))
            await quick.read()
            assert len(quick.names) == 5 * (number + 1)
            largest = 5 * 80 + 512
            assert stage.hub.recent_bytes <= 2 * (most + largest)
        assert not any(journal.reads for journal in stage.journals)
        for each in slow:
            await each.read()
            assert each.names == quick.names
        assert stage.journals[0].reads >= 200
        held = [each.subscription for each in slow]
        assert not any(hasattr(each, "__dict__") for each in held)  # a place a shard, and no more


async def test_one_who_is_passed_by_needs_no_journal_when_something_comes() -> None:
    async with Stage.open(recent_bytes=1) as stage:
        found = await reader(stage, Filter.of([FAR[1]]))
        await found.read()
        for _ in range(20):
            await stage.does(sale(1))
        await stage.does(sale(3, FAR))
        await found.read()
        assert found.quantities == [3]
        assert not any(journal.reads for journal in stage.journals)


async def test_few_read_a_journal_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stage.open(recent_bytes=1) as stage:
        readers = [await reader(stage) for _ in range(20)]
        for _ in range(5):
            await stage.does(sale(1))
        now = most = 0
        real = EventHub._from_journal

        async def watched(self: EventHub, shard: int, at: Position) -> AsyncIterator[Events]:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                async for events in real(self, shard, at):
                    yield events
            finally:
                now -= 1

        monkeypatch.setattr(EventHub, "_from_journal", watched)
        await asyncio.gather(*(each.read() for each in readers))
        assert all(each.quantities == [1] * 5 for each in readers)
        assert 1 < most <= limits.JOURNAL_READERS


async def test_a_long_read_of_the_journal_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_BLOCKS_OF_A_READ", 3)
    async with Stage.open(recent_bytes=1) as stage:
        found, none = await reader(stage), await reader(stage, Filter.of([5]))
        at = stage.market.shards[0].at
        for _ in range(10):
            await stage.does(sale(1))
        await found.read()
        assert found.quantities == [1] * 10
        # Nothing matches, and the token moves on as far as was looked.
        behind = await reader(stage, Filter.of([5]), after={0: at})
        tokens = set()
        for _ in range(5):
            await behind.step()
            tokens.add(behind.token)
        assert len(tokens) >= 3
        assert none.names == behind.names == []


async def test_a_mirror_that_was_loaded_anew_makes_nobody_miss_what_it_skipped() -> None:
    async with Stage.open() as stage:
        found = await reader(stage)
        await found.read()
        feed = stage.feeds[0]
        stage.hub.jumped(0)
        await stage.does(sale(1))
        # As if the mirror had not heard of the last block: the next one does not follow.
        stage.hub.logs[0].clear(feed.at)
        stage.hub.logs[0].at = Position(feed.at.epoch, feed.at.seq - 1)
        await stage.does(sale(2))
        await found.read()
        assert found.quantities == [1, 2]


@pytest.mark.parametrize("is_loaded", [False, True])
async def test_who_sleeps_while_a_mirror_skips_blocks_reads_them_in_the_journal(
    is_loaded: bool,
) -> None:
    """Whether it is told so when the mirror is loaded, or finds it out by the next block."""
    async with Stage.open() as stage:
        found, feed = await reader(stage), stage.feeds[0]
        await found.read()
        feed.tell_blocks(None)  # as if the block came in the table, and not by itself
        await stage.does(sale(1))
        feed.tell_blocks(stage.hub)
        if is_loaded:
            stage.hub.jumped(0)
        else:
            await stage.does(sale(2))
        await found.read()
        assert found.quantities == [1, 2][: 1 + (not is_loaded)]


async def test_whoever_was_told_of_a_journal_that_was_lost_hears_that_it_has_begun_anew() -> None:
    """Its next events would be at places that he was told of long ago: he would miss them unknowing."""
    async with Stage.open() as stage:
        asleep, behind = await reader(stage), await reader(stage)
        await asleep.read()
        await behind.step()
        await stage.does(sale(1))
        await asleep.read()
        told = stage.market.shards[0].at
        await stage.market.stop()
        stream, feed = stage.market.streams[0], stage.feeds[0]
        stream.entries, stream.last = [], None
        await stage.market.start()
        feed._link = stage.market.shards[0]
        stream.wake()
        async with asyncio.timeout(5):
            while feed.at >= told:  # noqa: ASYNC110 - a test's patience
                await asyncio.sleep(0.001)
        for each in (asleep, behind):
            with pytest.raises(
                EventsGone, match=r"is no block of its journal, which has begun anew"
            ):
                await each.read()


async def test_events_of_a_block_that_does_not_tell_its_cells_are_told_as_of_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Stage.open() as stage:
        found = await reader(stage)
        monkeypatch.setattr(limits, "MAX_IMAGE_CELLS", 1)
        await stage.does(sale(1), sale(2, JAM))
        monkeypatch.undo()
        await stage.does(sale(3))
        await found.read()
        assert found.quantities == [1, 2, 3]
        assert stage.feeds[0].health.loads == 2


# --- ends -------------------------------------------------------------------------------------------


async def test_silence_is_broken_by_tokens_and_news_at_once() -> None:
    async with Stage.open() as stage:
        found = await reader(stage, Filter.of([FAR[1]]))
        await found.read()
        await stage.does(sale(1))
        before = found.token
        assert await found.step() == 0
        assert found.token != before  # nothing matched, and it has moved on all the same
        waiting = asyncio.create_task(found.subscription.next(60))
        await stage.does(sale(2, FAR))
        frame = await asyncio.wait_for(waiting, 10)
        assert len(frame) == 1


async def test_a_hub_that_stops_tells_everybody_how_far_they_came() -> None:
    async with Stage.open() as stage:
        found = await reader(stage)
        await found.read()
        waiting = asyncio.create_task(found.subscription.next(60))
        await asyncio.sleep(0)
        stage.hub.stop()
        assert (await waiting).token == found.token
        with pytest.raises(HubStopped):
            await found.subscription.next(60)
        with pytest.raises(HubStopped):
            await reader(stage)


async def test_full_hubs_and_hubs_whose_mirrors_load_say_so() -> None:
    async with Stage.open(max_subscribers=1) as stage:
        await reader(stage)
        with pytest.raises(HubFull, match="1 subscribers to events"):
            await reader(stage)
        loading = MirrorFeed(stage.market.shards[0], stage.journals[0])
        with pytest.raises(NotReady):
            await EventHub({0: loading}, STORE).subscribe(Filter.of())
        with pytest.raises(ValueError, match="store_id"):
            EventHub(stage.feeds, b"short")


async def test_a_journal_that_cannot_be_read_is_tried_again() -> None:
    async with Stage.open(recent_bytes=1) as stage:
        found = await reader(stage)
        await found.step()
        for _ in range(5):
            await stage.does(sale(1))
        stage.journals[0].refuses = True
        with pytest.raises(JournalUnavailable):
            await found.read()
        stage.journals[0].refuses = False
        await found.read()
        assert found.quantities == [1] * 5


async def test_ten_thousand_subscriptions_that_are_cancelled_leave_nothing() -> None:
    async with Stage.open() as stage:
        tasks = len(asyncio.all_tasks())
        left = []
        for n in range(10_000):
            wanted = Filter.of([1 + n % 50] * (n % 3 > 0), [1] * (n % 2))
            subscription = await stage.hub.subscribe(wanted)
            await subscription.next(0)
            waiting = asyncio.create_task(subscription.next(60))
            if n % 2:
                await asyncio.sleep(0)
            waiting.cancel()
            stage.hub.unsubscribe(subscription)
            if n % 1_000 == 0:
                left.append(weakref.ref(waiting))
        stage.hub.unsubscribe(subscription)
        del subscription, waiting
        await asyncio.sleep(0)
        gc.collect()
        assert not [task for task in left if task() is not None]
        hub = stage.hub
        assert not any(
            (
                hub._subscriptions,
                hub._subscriptions.by_location,
                hub._subscriptions.by_sku,
                hub._subscriptions.of_all,
            )
        )
        assert len(asyncio.all_tasks()) == tasks
        assert all(feed._reader is None for feed in stage.feeds.values())
