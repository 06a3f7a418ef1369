"""The hub: nobody misses the last value of a cell, nobody sees half a block, memory is bounded."""

import asyncio
import gc
import random
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.hub import MAX_FRAME_CELLS, DeltaHub
from actors.subscribers import HubFull, HubStopped, NotReady
from actors.subscription import DeltaFrame, Subscription
from actors.tokens import Filter
from adapters.replica import Replica, Seen
from adapters.rpc.deltas import packed
from engine import limits
from engine.block import decode
from engine.frames import Fields, FrameKind
from engine.framing import crc_of
from engine.kernels import KEY, ON_HAND, PRICE, RESERVED, VERSION
from engine.mirror import Mirror, available_of
from onhand.v1 import deltas_pb2
from tests.fakes.cells import Changes, FakeShard

STORE = b"store--1"
Values = dict[tuple[int, int], Seen]


class Stage:
    """Shards, their mirrors and a hub, without tasks; remembers what was true at every token."""

    def __init__(self, shards: int = 1, **options: Any) -> None:
        self.shards = [FakeShard(number) for number in range(shards)]
        self.mirrors = [Mirror(number) for number in range(shards)]
        self.hub = DeltaHub(dict(enumerate(self.mirrors)), STORE, **options)
        self.truth: dict[object, Values] = {}
        for number in range(shards):
            self.load(number)

    def load(self, number: int) -> None:
        shard = self.shards[number]
        shard.open_epoch()
        table = shard.array()
        self.mirrors[number].load(table, shard.at.epoch, shard.at.seq, shard.now_ns)
        self.hub.loaded(number)
        self.remember()

    def write(self, number: int, *changes: Changes) -> None:
        """Some blocks, of which the hub is told at once."""
        mirror, shard = self.mirrors[number], self.shards[number]
        since, rows = mirror.stamp, []
        for change in changes:
            payload = shard.write(change)
            rows.append(mirror.apply(decode(payload), crc_of(payload)))
        self.hub.changed(
            number, rows[0] if len(rows) == 1 else np.unique(np.concatenate(rows)), since
        )
        self.remember()

    def remember(self) -> None:
        self.truth[self.hub.places] = self.values()

    def values(self) -> Values:
        values: Values = {}
        for mirror in self.mirrors:
            cells = mirror.cells
            for row, available in zip(cells.tolist(), available_of(cells).tolist(), strict=True):
                seen = Seen(row[ON_HAND], available, row[PRICE], row[VERSION])
                values[row[KEY] & 0xFFFFFFFF, row[KEY] >> 32] = seen
        return values


def narrowed(values: Values, wanted: Filter) -> Values:
    locations = None if wanted.locations is None else set(wanted.locations.tolist())
    skus = None if wanted.skus is None else set(wanted.skus.tolist())
    result = {}
    for (sku, location), seen in values.items():
        if (locations is None or location in locations) and (skus is None or sku in skus):
            stock = seen[:2] if wanted.fields is not Fields.PRICE else (0, 0)
            price = seen[2:] if wanted.fields is not Fields.STOCK else (0, 0)
            result[sku, location] = Seen(*stock, *price)
    return result


class Reader:
    """A subscriber with a replica; every token that it sees is checked against the truth."""

    def __init__(self, stage: Stage, wanted: Filter) -> None:
        self.stage, self.wanted, self.replica = stage, wanted, Replica()
        self.subscription: Subscription | None = None
        self.frames: list[DeltaFrame] = []

    async def subscribe(self) -> None:
        self.replica.begin()
        self.subscription = await self.stage.hub.subscribe(self.wanted, self.replica.token)

    def cancel(self) -> None:
        assert self.subscription is not None
        self.stage.hub.unsubscribe(self.subscription)
        self.subscription = None

    def read(self, frames: int = 1_000_000) -> None:
        assert self.subscription is not None
        for _ in range(frames):
            frame = self.subscription.take()
            if frame is None:
                return
            self.hear(frame)

    def hear(self, frame: DeltaFrame) -> None:
        assert len(frame.cells) <= self.stage.hub.frame_cells
        message = deltas_pb2.Frame.FromString(packed(frame, self.wanted.fields, 1))
        keys = list(
            zip(
                np.frombuffer(message.sku, "<u4"),
                np.frombuffer(message.location, "<u4"),
                strict=True,
            )
        )
        assert len(set(keys)) == len(keys) == message.cells
        self.replica.apply(message, 2)
        self.frames.append(frame)
        if frame.token:
            assert self.replica.cells() == narrowed(self.stage.truth[frame.places], self.wanted)

    @property
    def kinds(self) -> list[FrameKind]:
        return [frame.kind for frame in self.frames]

    async def finish(self) -> None:
        if self.subscription is None:
            await self.subscribe()
        self.read()
        assert self.subscription is not None
        self.hear(self.stage.hub.heartbeat(self.subscription))
        assert self.replica.cells() == narrowed(self.stage.values(), self.wanted)


NAMES = st.tuples(st.integers(1, 6), st.integers(1, 4))
WORDS = st.dictionaries(
    st.sampled_from([ON_HAND, RESERVED, PRICE, VERSION]), st.integers(0, 100), max_size=3
)
CHANGES = st.dictionaries(NAMES, WORDS, min_size=1, max_size=8)
FILTERS = st.builds(
    Filter.of,
    st.sets(st.integers(1, 5), max_size=3),
    st.sets(st.integers(1, 7), max_size=3),
    st.sampled_from(Fields),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.lists(CHANGES, min_size=1, max_size=3)),
        st.tuples(st.just("join"), FILTERS),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("return"), st.integers(0, 9)),
        st.tuples(st.just("read"), st.integers(0, 9), st.integers(1, 4)),
        st.tuples(st.just("load"), st.integers(0, 1)),
    ),
    max_size=40,
)


def write_own(stage: Stage, number: int, changes: list[Changes]) -> None:
    """Write what concerns locations that the shard owns: shards own whole locations."""
    own = [{n: w for n, w in c.items() if n[1] % 2 == number} for c in changes]
    if own := [change for change in own if change]:
        stage.write(number, *own)


async def act(reader: Reader, name: str, frames: int) -> None:
    if reader.subscription is None:
        if name == "return":
            await reader.subscribe()
    elif name == "leave":
        reader.cancel()
    elif name == "read":
        reader.read(frames)


async def play(steps: Iterable[Any], frame_cells: int) -> Stage:
    """Carry out a schedule over two shards; `Reader` checks all that is told."""
    stage = Stage(2, frame_cells=frame_cells)
    readers: list[Reader] = []
    for name, *what in steps:
        if name == "write":
            write_own(stage, *what)
        elif name == "load":
            stage.load(what[0])
        elif name == "join":
            readers.append(Reader(stage, what[0]))
            await readers[-1].subscribe()
        elif readers:
            await act(readers[what[0] % len(readers)], name, what[-1])
    for reader in readers:
        await reader.finish()
        reader.cancel()
    hub = stage.hub
    assert not (hub._subscriptions)
    assert not (hub._subscriptions.by_location)
    assert not (hub._subscriptions.by_sku)
    assert not (hub._subscriptions.of_all)
    return stage


@given(STEPS, st.integers(1, 5))
def test_every_replica_becomes_the_mirror_and_is_whole_at_every_token(
    steps: list[Any], frame_cells: int
) -> None:
    asyncio.run(play(steps, frame_cells))


def long_schedule(seed: int) -> Iterator[tuple[Any, ...]]:
    draw = random.Random(seed)
    weights = {"write": 30, "join": 2, "leave": 3, "return": 5, "read": 20, "load": seed % 3 == 0}
    for name in draw.choices(list(weights), list(weights.values()), k=500):
        if name == "write":
            changes = [
                {
                    (draw.randint(1, 9), draw.randint(1, 6)): {
                        word: draw.randint(0, 99)
                        for word in draw.choice(
                            (
                                (ON_HAND,),
                                (RESERVED,),
                                (PRICE, VERSION),
                                (),
                                (ON_HAND, PRICE, VERSION),
                            )
                        )
                    }
                    for _ in range(draw.randint(1, 12))
                }
                for _ in range(draw.randint(1, 3))
            ]
            yield name, draw.randint(0, 1), changes
        elif name == "join":
            locations = draw.sample(range(1, 8), draw.choice((0, 0, 1, 1, 3)))
            skus = draw.sample(range(1, 11), draw.choice((0, 0, 0, 1, 4)))
            yield name, Filter.of(locations, skus, draw.choice(list(Fields)))
        elif name == "load":
            yield name, draw.randint(0, 1)
        else:
            yield name, draw.randint(0, 99), draw.randint(1, 6)


@pytest.mark.parametrize("seed", range(20))
async def test_the_same_over_long_schedules(seed: int) -> None:
    await play(long_schedule(seed), 1 + seed % 15)


async def test_snapshot_then_marker_then_deltas() -> None:
    stage = Stage(frame_cells=10)
    stage.write(0, {(sku, 1): {ON_HAND: sku} for sku in range(1, 26)})
    reader = Reader(stage, Filter.of([1]))
    await reader.subscribe()
    reader.read()
    assert reader.kinds == [FrameKind.SNAPSHOT] * 3 + [FrameKind.SNAPSHOT_END]
    assert [bool(frame.token) for frame in reader.frames] == [False, False, False, True]
    stage.write(0, {(1, 1): {ON_HAND: 7}, (1, 2): {ON_HAND: 8}})
    reader.read()
    assert reader.kinds[4:] == [FrameKind.DELTA]
    assert reader.frames[-1].cells[:, ON_HAND].tolist() == [7]
    assert reader.frames[-1].block_now_ns == stage.shards[0].now_ns


async def test_changes_during_a_snapshot_are_in_it_when_its_marker_comes() -> None:
    stage = Stage(frame_cells=10)
    stage.write(0, {(sku, 1): {ON_HAND: 1} for sku in range(1, 26)})
    reader = Reader(stage, Filter.of())
    await reader.subscribe()
    reader.read(1)
    stage.write(0, {(sku, 1): {ON_HAND: 2} for sku in range(1, 26, 5)})
    reader.read()
    assert reader.kinds[-1] == FrameKind.SNAPSHOT_END  # checked against the truth in `hear`
    reader.read()
    assert reader.kinds.count(FrameKind.DELTA) == 0


async def test_a_price_batch_is_never_seen_half() -> None:
    stage = Stage()
    skus = range(1, 2_001)
    stage.write(0, {(sku, 1): {PRICE: 0, VERSION: 1} for sku in skus})
    reader = Reader(stage, Filter.of([1], (), Fields.PRICE))
    await reader.subscribe()
    for price in range(1, 30):
        stage.write(0, {(sku, 1): {PRICE: price, VERSION: price + 1} for sku in skus})
        if price % 3 == 0:
            reader.read(1 + price % 2)
            if reader.replica.token:
                assert len({seen.price_minor for seen in reader.replica.cells().values()}) == 1
    await reader.finish()


async def test_a_backlog_beyond_one_frame_has_its_token_at_the_end_only() -> None:
    stage = Stage(frame_cells=10)
    reader = Reader(stage, Filter.of([1]))
    await reader.subscribe()
    reader.read()
    stage.write(0, {(sku, 1): {ON_HAND: 1} for sku in range(1, 36)})
    reader.read(2)
    before = reader.replica.cells()
    assert before == {}
    stage.write(0, {(1, 1): {ON_HAND: 5}})
    reader.read()
    kinds = [frame.token != b"" for frame in reader.frames if frame.kind is FrameKind.DELTA]
    assert kinds == [False, False, False, True]
    assert len(reader.replica) == 35


async def test_a_reader_slower_than_the_changes_still_gets_whole_moments() -> None:
    stage = Stage(frame_cells=10)
    stage.write(0, {(sku, 1): {ON_HAND: 0} for sku in range(1, 101)})
    reader = Reader(stage, Filter.of())
    await reader.subscribe()
    for step in range(200):
        stage.write(0, {(sku, 1): {ON_HAND: step} for sku in range(1, 101)})
        reader.read(1)
    whole = [frame for frame in reader.frames if frame.token]
    assert len(whole) >= 3
    assert reader.subscription is not None
    assert reader.subscription.pending <= 2 * 100 + 4_096


async def test_resume_tells_exactly_what_was_missed() -> None:
    stage = Stage()
    stage.write(0, {(sku, 1): {ON_HAND: 1} for sku in range(1, 10)})
    reader = Reader(stage, Filter.of([1]))
    await reader.subscribe()
    reader.read()
    reader.cancel()
    stage.write(0, {(3, 1): {ON_HAND: 2}, (4, 2): {ON_HAND: 1}})
    await reader.subscribe()
    reader.read()
    assert reader.kinds[-1] == FrameKind.DELTA
    assert reader.frames[-1].cells[:, KEY].tolist() == [1 << 32 | 3]


async def test_a_token_that_is_no_good_is_answered_compacted_then_a_snapshot() -> None:
    stage = Stage()
    stage.write(0, {(1, 1): {ON_HAND: 1}})
    wanted = Filter.of([1])
    old = stage.hub.token(Subscription(stage.hub, wanted))
    stage.load(0)
    current = stage.hub.token(Subscription(stage.hub, wanted))
    elsewhere = DeltaHub(stage.hub.mirrors, b"store--2")
    ahead = Stage(token_wait_s=0.01)
    ahead.write(0, {(1, 1): {ON_HAND: 1}})
    other_filter = Filter.of([1], (), Fields.PRICE)
    cases = [
        (stage.hub, old, wanted),
        (elsewhere, current, wanted),
        (ahead.hub, current, wanted),
        (stage.hub, current, other_filter),
    ]
    elsewhere.loaded(0)
    for hub, token, asked in cases:
        subscription = await hub.subscribe(asked, token)
        kinds = []
        while (frame := subscription.take()) is not None:
            kinds.append(frame.kind)
        assert kinds == [FrameKind.COMPACTED, FrameKind.SNAPSHOT, FrameKind.SNAPSHOT_END]
    subscription = await stage.hub.subscribe(wanted, current)
    assert subscription.take() is None


async def test_a_token_slightly_ahead_is_waited_for() -> None:
    here, there = Stage(), Stage()
    wanted = Filter.of([1])
    for stage in (here, there):
        stage.write(0, {(1, 1): {ON_HAND: 1}})
    there.write(0, {(1, 1): {ON_HAND: 2}})
    token = there.hub.token(Subscription(there.hub, wanted))
    joining = asyncio.create_task(here.hub.subscribe(wanted, token))
    await asyncio.sleep(0.01)
    assert not joining.done()
    here.write(0, {(1, 1): {ON_HAND: 2}})
    assert (await joining).take() is None


@given(st.binary(max_size=80) | st.tuples(st.integers(0, 200), st.integers(1, 255)))
def test_a_malformed_token_is_named(damage: bytes | tuple[int, int]) -> None:
    async def play() -> None:
        stage = Stage(3)
        wanted = Filter.of()
        token = bytearray(stage.hub.token(Subscription(stage.hub, wanted)))
        if isinstance(damage, tuple):
            token[damage[0] % len(token)] ^= damage[1]
        elif damage:
            token = bytearray(damage)
        else:
            token = token[:-1]
        with pytest.raises(ValueError, match="resume_token"):
            await stage.hub.subscribe(wanted, bytes(token))

    asyncio.run(play())


async def test_a_shard_that_joined_the_store_is_news_to_an_old_token() -> None:
    stage = Stage()
    stage.write(0, {(1, 1): {ON_HAND: 1}})
    wanted = Filter.of()
    token = stage.hub.token(Subscription(stage.hub, wanted))
    second = Mirror(1)
    shard = FakeShard(1)
    shard.write({(1, 2): {ON_HAND: 3}})
    second.load(shard.array(), 1, 5, 7)
    hub = DeltaHub({0: stage.mirrors[0], 1: second}, STORE)
    with pytest.raises(NotReady, match=r"\[0, 1\]"):
        await hub.subscribe(wanted)
    hub.loaded(0)
    hub.loaded(1)
    frame = (await hub.subscribe(wanted, token)).take()
    assert frame is not None
    assert frame.kind is FrameKind.DELTA
    assert len(frame.cells) == 1


async def test_subscribers_are_bounded() -> None:
    stage = Stage(max_subscribers=2)
    first = await stage.hub.subscribe(Filter.of())
    await stage.hub.subscribe(Filter.of())
    with pytest.raises(HubFull):
        await stage.hub.subscribe(Filter.of())
    stage.hub.unsubscribe(first)
    stage.hub.unsubscribe(first)
    await stage.hub.subscribe(Filter.of())


def test_filters_are_bounded() -> None:
    with pytest.raises(ValueError, match="locations"):
        Filter.of([0])
    with pytest.raises(ValueError, match="skus"):
        Filter.of((), [limits.MAX_SKUS + 1])
    with pytest.raises(ValueError, match="skus"):
        Filter.of((), range(1, limits.MAX_SUBSCRIPTION_NAMES + 2))
    prints = {
        Filter.of(locations, skus, fields).fingerprint
        for locations in ((), (1,), (1, 2))
        for skus in ((), (1,), (1, 2))
        for fields in Fields
    }
    assert len(prints) == 27
    assert Filter.of([2, 1, 2]).fingerprint == Filter.of([1, 2]).fingerprint


async def test_stop_tells_the_last_token_and_what_is_pending() -> None:
    stage = Stage()
    stage.write(0, {(1, 1): {ON_HAND: 1}})
    readers = [
        Reader(stage, Filter.of([1])),
        Reader(stage, Filter.of([1])),
        Reader(stage, Filter.of([2])),
    ]
    for reader in readers:
        await reader.subscribe()
    readers[0].read()
    readers[1].read(1)  # the marker is still to come
    readers[2].read()
    waiting = asyncio.create_task(readers[2].subscription.next(60))  # type: ignore[union-attr]
    await asyncio.sleep(0)
    stage.write(0, {(1, 1): {ON_HAND: 2}})
    stage.hub.stop()
    readers[2].hear(await waiting)
    for reader in readers[:2]:
        assert reader.subscription is not None
        reader.hear(await reader.subscription.next(60))
    ends = [reader.kinds[-1] for reader in readers]
    assert ends == [FrameKind.DELTA, FrameKind.SNAPSHOT_END, FrameKind.HEARTBEAT]
    for reader in readers:
        assert reader.subscription is not None
        with pytest.raises(HubStopped):
            await reader.subscription.next(60)
    with pytest.raises(HubStopped):
        await stage.hub.subscribe(Filter.of())


async def test_stop_in_the_middle_of_a_snapshot_tells_no_token() -> None:
    stage = Stage(frame_cells=10)
    stage.write(0, {(sku, 1): {ON_HAND: 0} for sku in range(1, 101)})
    for reads in range(60):
        reader = Reader(stage, Filter.of())
        stage.hub.stopping = False
        await reader.subscribe()
        for step in range(reads):
            stage.write(0, {(sku, 1): {ON_HAND: step} for sku in range(1, 101)})
            reader.read(1)
        stage.hub.stop()
        assert reader.subscription is not None
        with suppress(HubStopped):
            reader.hear(await reader.subscription.next(60))  # a token is checked there
        reader.cancel()


async def test_silence_is_broken_by_heartbeats_only_when_it_has_lasted() -> None:
    stage = Stage()
    reader = Reader(stage, Filter.of())
    await reader.subscribe()
    assert reader.subscription is not None
    assert (await reader.subscription.next(60)).kind is FrameKind.SNAPSHOT_END
    waiting = asyncio.create_task(reader.subscription.next(60))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    stage.write(0, {(1, 1): {ON_HAND: 1}})
    assert (await waiting).kind is FrameKind.DELTA


async def test_a_load_that_is_no_continuation_resets_every_subscriber() -> None:
    stage = Stage()
    stage.write(0, {(1, 1): {ON_HAND: 1}})
    reader = Reader(stage, Filter.of([1]))
    await reader.subscribe()
    reader.read()
    stage.load(0)
    reader.read()
    assert reader.kinds[2:] == [FrameKind.COMPACTED, FrameKind.SNAPSHOT, FrameKind.SNAPSHOT_END]
    assert reader.replica.counters.compacted == 1


async def test_one_frame_of_the_most_cells_is_below_what_clients_take() -> None:
    cells = np.full((MAX_FRAME_CELLS, 10), 1 << 40, np.int64)
    frame = DeltaFrame(FrameKind.DELTA, b"t" * 100, ((0, 1, 2),), cells)
    assert len(packed(frame, Fields.ALL, 1)) < 4 << 20


async def test_ten_thousand_subscriptions_that_are_cancelled_leave_nothing() -> None:
    stage = Stage()
    stage.write(0, {(1, 1): {ON_HAND: 1}})
    left = []
    for n in range(10_000):
        subscription = await stage.hub.subscribe(Filter.of([1 + n % 50], [1] if n % 3 else []))
        waiting = asyncio.create_task(subscription.next(60))
        if n % 2:
            await asyncio.sleep(0)
        waiting.cancel()
        stage.hub.unsubscribe(subscription)
        if n % 1_000 == 0:
            left.append(weakref.ref(waiting))
    del subscription, waiting
    await asyncio.sleep(0)
    gc.collect()
    assert not [task for task in left if task() is not None]
    hub = stage.hub
    assert not (hub._subscriptions)
    assert not (hub._subscriptions.by_location)
    assert not (hub._subscriptions.by_sku)
    assert not (hub._subscriptions.of_all)
    assert len(asyncio.all_tasks()) == 1
