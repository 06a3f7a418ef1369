"""The mirror replays after-images, and its feed survives what befalls a journal."""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.hub import DeltaHub
from actors.mirror import MirrorFeed, Mirrors
from actors.ports import Entry, JournalUnavailable, Position
from actors.tokens import Filter
from engine.block import Block, decode, encode
from engine.frames import Fields
from engine.framing import BlockDamaged, crc_of
from engine.kernels import (
    CELL_WORDS,
    COMMITTED,
    INCOMING,
    KEY,
    ON_HAND,
    PRICE,
    RESERVED,
    VERSION,
)
from engine.mirror import MAX_EPOCH, MAX_SEQ, Mirror, MirrorBroken, available_of, place_of, stamp_of
from engine.traces import NO_TRACES, Traces
from engine.views import Cell, Endangered, EndangeredHold
from tests.fakes.cells import Changes, FakeShard
from tests.fakes.journal import FakeJournal, MemoryStream

NAMES = st.tuples(st.integers(1, 6), st.integers(1, 4))
WORDS = st.dictionaries(st.integers(ON_HAND, VERSION), st.integers(-(10**15), 10**15), max_size=4)
CHANGES = st.dictionaries(NAMES, WORDS, min_size=1, max_size=8)
HISTORIES = st.lists(st.one_of(CHANGES, st.none()), max_size=20)  # None opens an epoch


def follow(mirror: Mirror, payload: bytes) -> NDArray[np.int32]:
    return mirror.apply(decode(payload), crc_of(payload))


def written(shard: FakeShard, change: Changes | None) -> bytes:
    return shard.open_epoch() if change is None else shard.write(change)


def assert_same(mirror: Mirror, shard: FakeShard) -> None:
    assert mirror.count == len(shard.rows)
    assert (mirror.cells == shard.array()).all()
    assert place_of(mirror.stamp) == (shard.at.epoch, shard.at.seq)
    assert mirror.now_ns == shard.now_ns
    by_location: dict[int, list[int]] = {}
    for key, row in shard.rows.items():
        by_location.setdefault(key >> 32, []).append(row)
        found = mirror.cell(key & 0xFFFFFFFF, key >> 32)
        assert found is not None
        assert found.tolist() == shard.cells_by_key[key]
    for location in range(1, 6):
        assert mirror.rows_of(location).tolist() == by_location.get(location, [])
    assert mirror.cell(99, 99) is None


@given(HISTORIES, st.integers(0, 20))
def test_replay_equals_a_plain_dict(history: list[Changes | None], load_at: int) -> None:
    shard, mirror = FakeShard(), Mirror(0)
    follow(mirror, shard.open_epoch())
    for step, change in enumerate(history):
        payload = written(shard, change)
        if step == load_at:  # a table in place of the block
            mirror.load(shard.array(), shard.at.epoch, shard.at.seq, shard.now_ns)
        else:
            follow(mirror, payload)
    assert_same(mirror, shard)


@given(HISTORIES, st.integers(0, 20), st.sampled_from(Fields))
def test_changed_since_names_what_was_touched(
    history: list[Changes | None], seen: int, fields: Fields
) -> None:
    shard, mirror = FakeShard(), Mirror(0)
    follow(mirror, shard.open_epoch())
    stamp, before = mirror.stamp, shard.array()
    touched: set[int] = set()
    for step, change in enumerate(history):
        touched |= set(follow(mirror, written(shard, change)).tolist())
        if step == seen:
            stamp, before, touched = mirror.stamp, shard.array(), set()
    told = mirror.changed_since(np.arange(mirror.count, dtype=np.int32), stamp, fields).tolist()
    padded = np.full((mirror.count, CELL_WORDS), -7, np.int64)
    padded[: len(before)] = before
    differs = padded != mirror.cells
    if fields is Fields.ALL:
        assert set(told) == touched
    else:
        words = slice(PRICE, VERSION + 1) if fields is Fields.PRICE else slice(ON_HAND, PRICE)
        assert set(np.flatnonzero(differs[:, words].any(axis=1)).tolist()) <= set(told) <= touched


def test_an_opening_tells_no_time() -> None:
    shard, mirror = FakeShard(), Mirror(0)
    follow(mirror, shard.open_epoch())
    follow(mirror, shard.write({(1, 1): {ON_HAND: 5}}))
    payload, crc = encode(Block(0, 2, 0, 0, 0, 0, 0, nonce=b"n" * 16))
    mirror.apply(decode(payload), crc)
    assert (mirror.stamp, mirror.now_ns) == (stamp_of(2, 0), shard.now_ns)


def test_sold_and_restocked_in_one_block_is_still_a_change_of_stock() -> None:
    shard, mirror = FakeShard(), Mirror(0)
    follow(mirror, shard.open_epoch())
    follow(mirror, shard.write({(1, 1): {ON_HAND: 5}}))
    stamp = mirror.stamp
    assert follow(mirror, shard.write({(1, 1): {}})).tolist() == [0]
    rows = mirror.rows_of(1)
    assert mirror.changed_since(rows, stamp, Fields.STOCK).tolist() == [0]
    assert mirror.changed_since(rows, stamp, Fields.PRICE).tolist() == []


def test_a_price_change_is_no_change_of_stock_and_the_reverse() -> None:
    shard, mirror = FakeShard(), Mirror(0)
    follow(mirror, shard.open_epoch())
    follow(mirror, shard.write({(1, 1): {ON_HAND: 5}, (2, 1): {PRICE: 100, VERSION: 1}}))
    stamp = mirror.stamp
    follow(mirror, shard.write({(1, 1): {ON_HAND: 4}, (2, 1): {PRICE: 90, VERSION: 2}}))
    rows = mirror.rows_of(1)
    assert mirror.changed_since(rows, stamp, Fields.STOCK).tolist() == [0]
    assert mirror.changed_since(rows, stamp, Fields.PRICE).tolist() == [1]
    assert mirror.changed_since(rows, stamp, Fields.ALL).tolist() == [0, 1]


def test_broken_continuity_is_refused_and_changes_nothing() -> None:
    shard, mirror = FakeShard(), Mirror(0)
    follow(mirror, shard.open_epoch())
    follow(mirror, shard.write({(1, 1): {ON_HAND: 5}}))
    missed = shard.write({(1, 1): {ON_HAND: 6}})
    ahead = shard.write({(1, 1): {ON_HAND: 7}})
    with pytest.raises(MirrorBroken, match="1-3 cannot follow 1-1"):
        follow(mirror, ahead)
    block = decode(missed)
    with pytest.raises(MirrorBroken, match="CRC"):
        mirror.apply(dataclasses.replace(block, previous_crc=block.previous_crc ^ 1), 0)
    with pytest.raises(MirrorBroken, match="shard 3"):
        mirror.apply(dataclasses.replace(block, shard=3), 0)
    assert block.image is not None
    beyond = dataclasses.replace(block.image, rows=np.array([9], np.int32))
    with pytest.raises(MirrorBroken, match="beyond"):
        mirror.apply(dataclasses.replace(block, image=beyond), 0)
    apart = dataclasses.replace(block.image, first_new=5, new_keys=np.array([77]))
    with pytest.raises(MirrorBroken, match="new rows from 5"):
        mirror.apply(dataclasses.replace(block, image=apart), 0)
    untold = dataclasses.replace(block.image, words=None)
    with pytest.raises(MirrorBroken, match="1-2 does not tell the 1 cells that it changed"):
        mirror.apply(dataclasses.replace(block, image=untold), 0)
    assert mirror.cells[0, ON_HAND] == 5
    follow(mirror, missed)
    follow(mirror, ahead)
    with pytest.raises(MirrorBroken):
        follow(mirror, ahead)
    assert_same(mirror, shard)


def test_an_old_epoch_cannot_open_again() -> None:
    shard, mirror = FakeShard(), Mirror(0)
    opening = shard.open_epoch()
    follow(mirror, opening)
    follow(mirror, shard.open_epoch())
    with pytest.raises(MirrorBroken):
        follow(mirror, opening)


def test_reload_tells_what_differs_and_keeps_older_tokens_good() -> None:
    shard, mirror = FakeShard(), Mirror(0)
    follow(mirror, shard.open_epoch())
    follow(mirror, shard.write({(1, 1): {ON_HAND: 5}, (2, 1): {PRICE: 9}, (3, 2): {ON_HAND: 1}}))
    stamp = mirror.stamp
    shard.write({(2, 1): {PRICE: 8, VERSION: 1}})  # not seen
    shard.write({(4, 2): {INCOMING: 2}})
    rows = mirror.reload(shard.array(), shard.at.epoch, shard.at.seq, shard.now_ns)
    assert rows is not None
    assert rows.tolist() == [1, 3]
    assert_same(mirror, shard)
    every = np.arange(4, dtype=np.int32)
    assert mirror.changed_since(every, stamp, Fields.PRICE).tolist() == [1, 3]
    assert mirror.changed_since(every, stamp, Fields.STOCK).tolist() == [3]
    assert mirror.base < stamp
    assert mirror.reload(shard.array(), 1, 0, 0) is None  # older
    assert mirror.reload(shard.array()[:2], 9, 0, 0) is None
    other = shard.array()
    other[0, KEY] += 1
    assert mirror.reload(other, 9, 0, 0) is None
    follow(mirror, shard.write({(1, 1): {RESERVED: 1}}))
    assert_same(mirror, shard)


def test_a_shortage_is_known_until_the_stock_is_back() -> None:
    """By a block, or by a table that is loaded in place of blocks."""
    named = Endangered(0, 1, 1, 2, (EndangeredHold(bytes(16), 3, 0),))
    row = np.zeros(1, np.int32)
    for by_table in (False, True):
        shard, mirror = FakeShard(), Mirror(0)
        follow(mirror, shard.open_epoch())
        for on_hand, endangered in ((1, ()), (-2, (named,)), (-1, ())):
            block = decode(shard.write({(1, 1): {ON_HAND: on_hand}}))
            mirror.apply(dataclasses.replace(block, endangered=endangered), block.previous_crc)
            mirror._crc = None
            assert mirror.endangered(row) == ([] if on_hand > 0 else [named])
        payload = shard.write({(1, 1): {ON_HAND: 0}})
        if by_table:
            mirror.reload(shard.array(), shard.at.epoch, shard.at.seq, shard.now_ns)
        else:
            mirror.apply(decode(payload), crc_of(payload))
        assert mirror.endangered(row) == []


def test_the_names_of_a_shortage_are_kept_until_promises_change() -> None:
    """The shortage itself stays known, as the fact said it."""
    named = Endangered(0, 1, 1, 2, (EndangeredHold(bytes(16), 3, 0),))
    unnamed = named._replace(holds=())
    row = np.zeros(1, np.int32)
    traced = Traces(*np.array([[0], [0], [-3]]))
    elsewhere = Traces(*np.array([[0], [1], [-3]]))
    for change, traces, told in (
        ({ON_HAND: -1}, NO_TRACES, named),
        ({PRICE: 5}, elsewhere, named),
        ({RESERVED: 2}, NO_TRACES, unnamed),
        ({COMMITTED: 1}, NO_TRACES, unnamed),
        ({}, traced, unnamed),  # one hold gave up what another got
        ({}, None, unnamed),  # nobody knows
    ):
        shard, mirror = FakeShard(), Mirror(0)
        follow(mirror, shard.open_epoch())
        block = decode(shard.write({(1, 1): {ON_HAND: -2, RESERVED: 3}, (2, 1): {}}))
        mirror.apply(dataclasses.replace(block, endangered=(named,)), block.previous_crc)
        mirror._crc = None
        block = decode(shard.write({(1, 1): change}))
        mirror.apply(dataclasses.replace(block, traces=traces), block.previous_crc)
        assert mirror.endangered(row) == [told]
        # A table says nothing of the blocks that it stands for.
        mirror.reload(shard.array(), shard.at.epoch, shard.at.seq, shard.now_ns)
        assert mirror.endangered(row) == [unnamed]
        mirror._crc = None
        block = decode(shard.write({(1, 1): {RESERVED: 1}}))
        mirror.apply(dataclasses.replace(block, endangered=(named,)), block.previous_crc)
        assert mirror.endangered(row) == [named], "the next fact names them anew"


def test_a_hundred_thousand_cells_are_found() -> None:
    mirror = Mirror(0)
    keys = (np.arange(100_000, dtype=np.int64) % 457 + 1) << 32 | np.arange(100_000) // 457 + 1
    table = np.zeros((100_000, CELL_WORDS), np.int64)
    table[:, KEY] = keys
    mirror.load(table, 3, 9, 5)
    assert (mirror.find(keys) == np.arange(100_000)).all()
    assert (mirror.find(keys + (500 << 32)) == -1).all()
    assert len(mirror.select([1, 2], None)) == len(mirror.rows_of(1)) + len(mirror.rows_of(2))
    assert mirror.cells[mirror.select(None, np.array([7])), KEY].tolist() == [
        location << 32 | 7 for location in range(1, 458)
    ]


def test_available_is_what_the_views_say() -> None:
    words = [*list(range(100, 900, 100)), 3]
    row = np.array([[0, *words]], np.int64)
    assert available_of(row).tolist() == [Cell(*words).available]


def test_stamps_are_bounded() -> None:
    assert place_of(stamp_of(MAX_EPOCH, MAX_SEQ)) == (MAX_EPOCH, MAX_SEQ)
    for epoch, seq in ((MAX_EPOCH + 1, 0), (0, MAX_SEQ + 1), (-1, 0)):
        with pytest.raises(ValueError):
            stamp_of(epoch, seq)


# The feed.


class Ear:
    """Hears changes and keeps a copy that must equal the mirror whenever it is told something."""

    def __init__(self) -> None:
        self.feed: MirrorFeed | None = None
        self.told: list[list[int]] = []
        self.since: list[int] = []
        self.loads = 0
        self.copy = np.zeros((0, CELL_WORDS), np.int64)

    def changed(self, shard: int, rows: NDArray[np.int32], since: int) -> None:
        assert self.feed is not None
        self.told.append(rows.tolist())
        self.since.append(since)
        grown = np.zeros((self.feed.mirror.count, CELL_WORDS), np.int64)
        grown[: len(self.copy)] = self.copy
        grown[rows] = self.feed.mirror.cells[rows]
        self.copy = grown
        assert (self.copy == self.feed.mirror.cells).all()

    def loaded(self, shard: int) -> None:
        assert self.feed is not None
        self.loads += 1
        self.copy = self.feed.mirror.cells.copy()


class Stage:
    def __init__(self) -> None:
        self.stream = MemoryStream()
        self.shard = FakeShard(0, self.stream)
        self.shard.open_epoch()
        self.journal = FakeJournal(self.stream)
        self.ear = Ear()
        self.feed = MirrorFeed(
            self.shard, self.journal, retry_min_s=0.001, retry_max_s=0.002, now_ns=lambda: 10**9
        )
        self.ear.feed = self.feed

    async def caught_up(self) -> None:
        assert await self.feed.reached(self.shard.at, 5.0)
        assert_same(self.feed.mirror, self.shard)
        assert (self.ear.copy == self.shard.array()).all()


async def staged(play: Callable[[Stage], Awaitable[None]]) -> None:
    stage = Stage()
    task = asyncio.create_task(stage.feed.run(stage.ear))
    try:
        await play(stage)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_feed_loads_once_and_follows() -> None:
    async def play(stage: Stage) -> None:
        stage.shard.write({(1, 1): {ON_HAND: 5}})
        await stage.feed.ready()
        await stage.caught_up()
        for quantity in range(20):
            stage.shard.write({(1, 1): {ON_HAND: quantity}, (quantity, 2): {ON_HAND: 1}})
            if quantity % 3 == 0:
                await asyncio.sleep(0)
        await stage.caught_up()
        assert (stage.shard.tables, stage.ear.loads) == (1, 1)
        assert sum(map(len, stage.ear.told)) >= 21
        health = stage.feed.health
        assert health.connected
        assert health.at == stage.shard.at
        assert health.base == Position(1, 1)
        assert health.lag_ns == 10**9 - stage.shard.now_ns
        assert stage.feed.cells([(1, 1), (9, 9), (3, 2)]) == [Cell(19), None, Cell(1)]
        assert stage.feed.table([2]).cells.shape == (20, CELL_WORDS)
        assert (stage.feed.table().cells == stage.shard.array()).all()
        mirrors = Mirrors([stage.feed])
        assert await mirrors.cells([(1, 1)]) == [Cell(19)]
        assert [len(t.cells) async for _, t in mirrors.tables([1])] == [1]
        assert not await mirrors.reached(7, Position(1, 0), 0)

    await staged(play)


async def test_an_owner_that_opens_after_a_quiet_hour_is_no_lag() -> None:
    async def play(stage: Stage) -> None:
        stage.shard.write({(1, 1): {ON_HAND: 5}})
        await stage.caught_up()
        lag_ns = stage.feed.health.lag_ns
        stage.feed._now_ns = lambda: 10**9 + 3_600 * 10**9
        stage.shard.open_epoch()
        await stage.caught_up()
        assert stage.feed.health.lag_ns == lag_ns

    await staged(play)


async def test_feed_that_was_overtaken_by_trimming_catches_up_from_the_shard() -> None:
    async def play(stage: Stage) -> None:
        stage.shard.write({(1, 1): {ON_HAND: 5}, (2, 1): {ON_HAND: 5}})
        await stage.caught_up()
        stage.shard.write({(1, 1): {ON_HAND: 6}})
        stage.shard.write({(1, 1): {ON_HAND: 7}})
        stage.stream.cut(stage.shard.at)  # before the feed had a turn
        await stage.caught_up()
        assert stage.ear.loads == 1
        assert stage.ear.told[-1] == [0]
        assert stage.feed.health.loads == 2

    await staged(play)


async def test_feed_of_a_journal_that_was_lost_starts_over() -> None:
    async def play(stage: Stage) -> None:
        for quantity in range(5):
            stage.shard.write({(1, 1): {ON_HAND: quantity}})
        await stage.caught_up()
        stage.stream.entries, stage.stream.last = [], None
        again = FakeShard(0, stage.stream)
        again.open_epoch()
        again.write({(8, 8): {ON_HAND: 1}})
        stage.shard.__dict__.update(again.__dict__)
        stage.stream.wake()
        async with asyncio.timeout(5):
            while stage.ear.loads < 2:  # noqa: ASYNC110 - a test's patience
                await asyncio.sleep(0.001)
        await stage.caught_up()

    await staged(play)


async def test_feed_waits_for_a_journal_and_a_shard_that_are_away() -> None:
    async def play(stage: Stage) -> None:
        stage.shard.down = True
        await asyncio.sleep(0.01)
        assert not await stage.feed.reached(stage.shard.at, 0.01)
        assert "down" in stage.feed.health.error
        stage.shard.down = False
        await stage.caught_up()
        await stage.journal.close()
        stage.shard.write({(1, 1): {ON_HAND: 1}})
        await asyncio.sleep(0.01)
        assert not stage.feed.health.connected
        stage.journal.closed = False
        await stage.caught_up()
        assert stage.shard.tables > 1
        assert stage.ear.loads == 1

    await staged(play)


async def test_feed_reloads_after_a_damaged_block() -> None:
    async def play(stage: Stage) -> None:
        await stage.caught_up()
        stage.stream, stage.shard.stream = stage.stream, None
        good = stage.shard.write({(1, 1): {ON_HAND: 3}})
        bad = bytes([good[0] ^ 1]) + good[1:]
        with pytest.raises(BlockDamaged):
            decode(bad)
        stage.stream.add(stage.shard.at, bad)
        stage.shard.stream = stage.stream
        await stage.caught_up()
        stage.shard.write({(1, 1): {ON_HAND: 4}})
        await stage.caught_up()
        assert stage.ear.loads == 1
        assert stage.feed.health.loads == 2

    await staged(play)


async def test_a_subscriber_hears_of_a_price_that_changed_while_the_mirror_was_cut_off() -> None:
    stage = Stage()
    hub = DeltaHub({0: stage.feed.mirror}, b"store--1")
    stage.shard.write({(1, 1): {ON_HAND: 5, PRICE: 7}})
    task = asyncio.create_task(stage.feed.run(hub))
    await stage.feed.ready()
    subscription = await hub.subscribe(Filter.of(fields=Fields.PRICE))
    while subscription.take() is not None:
        pass
    stage.shard.write({(1, 1): {PRICE: 9}})
    stage.stream.entries[-1] = (stage.shard.at, b"damaged")
    assert await stage.feed.reached(stage.shard.at, 5)
    assert stage.feed.health.loads == 2
    frame = subscription.take()
    assert frame is not None
    assert frame.cells[:, PRICE].tolist() == [9]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_feed_has_one_tail_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tails = 0
    tail = FakeJournal.tail

    async def counted(journal: FakeJournal, after: Position) -> AsyncIterator[list[Entry]]:
        nonlocal tails
        tails += 1
        try:
            async for entries in tail(journal, after):
                yield entries
        finally:
            tails -= 1

    async def play(stage: Stage) -> None:
        await stage.caught_up()
        stage.shard.write({(1, 1): {ON_HAND: 3}})
        stage.stream.entries[-1] = (stage.shard.at, b"damaged")
        await stage.caught_up()
        stage.shard.write({(1, 1): {ON_HAND: 4}})
        await stage.caught_up()
        assert (stage.feed.health.loads, tails) == (2, 1)

    monkeypatch.setattr(FakeJournal, "tail", counted)
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=lambda _: None)  # nobody closes what was left open
    try:
        await staged(play)
    finally:
        sys.set_asyncgen_hooks(*hooks)


async def test_reached_forgets_who_gave_up() -> None:
    stage = Stage()
    waits = [asyncio.create_task(stage.feed.reached(Position(1, n), 60)) for n in range(50)]
    await asyncio.sleep(0)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert not stage.feed._waiters


async def test_blocks_that_come_together_are_told_together_unless_they_take_long() -> None:
    for slice_s, tellings in ((10.0, 1), (0.0, 5)):
        stage = Stage()
        stage.feed._slice_s = slice_s
        await stage.feed._load(lost=False)
        stage.feed._listener = stage.ear
        stage.ear.loaded(0)
        for quantity in range(5):
            stage.shard.write({(1, 1): {ON_HAND: quantity}, (quantity + 1, 2): {ON_HAND: 1}})
        await stage.journal.close()
        entries = stage.stream.following(Position(1, 0))
        start = 0
        while start < len(entries):
            start = stage.feed._apply(entries, start)
        assert len(stage.ear.told) == tellings
        with pytest.raises(JournalUnavailable):
            await stage.feed._follow()
