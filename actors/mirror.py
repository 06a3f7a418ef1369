"""Mirrors: a gateway's copies of the shards' cells, each kept by reading along in a journal.

Reads from here are behind by the time a block takes to arrive, which is milliseconds; who needs to
see a certain block waits with `reached`. It must not know who listens beyond `Listener`, nor gRPC.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from actors.ports import (
    GENESIS,
    CellTable,
    Compacted,
    Entry,
    Journal,
    JournalLost,
    JournalUnavailable,
    Overloaded,
    Position,
    ShardLink,
    Unavailable,
)
from engine.block import Block, decode
from engine.framing import BlockDamaged, crc_of
from engine.kernels import ON_HAND
from engine.mirror import Mirror, MirrorBroken, key_of, place_of, stamp_of
from engine.rows import distinct
from engine.views import Cell

RETRY_MIN_S: Final = 0.05  # between attempts to load or to read along, doubling
RETRY_MAX_S: Final = 2.0
SLICE_S: Final = 0.004  # blocks are applied for so long before others get their turn
GAP_S: Final = 0.005  # between two reads of the journal; what a delta may be late by

_log = structlog.get_logger(__name__)


class Listener(Protocol):
    """Who wants to hear of changes: the hub."""

    def changed(self, shard: int, rows: NDArray[np.int32], since: int) -> None:
        """Hear that blocks after the stamp `since` changed these rows, each listed once."""

    def loaded(self, shard: int) -> None:
        """Hear that the mirror has been loaded, and is no continuation of what it was."""


class BlockReader(Protocol):
    """Who wants each block as such: the hub of events, while somebody asks for them."""

    def block(self, shard: int, before: Position, block: Block) -> None:
        """Hear of the block after `before`, which is in the mirror now."""

    def jumped(self, shard: int) -> None:
        """Hear that the mirror was loaded, past blocks that nobody will be told of here."""


@dataclass(frozen=True, slots=True)
class MirrorHealth:
    """How a mirror is doing."""

    shard: int
    at: Position  # the newest block in it
    base: Position  # from here on it knows what has changed
    connected: bool  # whether it reads along in the journal now
    lag_ns: int  # from the newest block's time to when it was applied, on two clocks
    cells: int
    blocks: int  # applied so far
    loads: int  # from the shard: the first one, and one after every break
    error: str  # why it is not connected, or why it was loaded last; "" if all is well


class MirrorFeed:
    """Keeps the mirror of one shard: loads it from the shard once, then reads its journal along."""

    def __init__(
        self,
        link: ShardLink,
        journal: Journal,
        *,
        retry_min_s: float = RETRY_MIN_S,
        retry_max_s: float = RETRY_MAX_S,
        slice_s: float = SLICE_S,
        gap_s: float = GAP_S,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.mirror: Final = Mirror(link.number)
        self._link = link
        self._journal = journal
        self._retry_min_s = retry_min_s
        self._retry_max_s = retry_max_s
        self._slice_s = slice_s
        self._gap_s = gap_s
        self._now_ns = now_ns
        self._listener: Listener | None = None
        self._reader: BlockReader | None = None
        self._loaded = asyncio.Event()
        self._connected = False
        self._lag_ns = self._blocks = self._loads = 0
        self._error = ""
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap by stamp
        self._numbers = itertools.count()

    # ------------------------------------------------------------------------------- feeding --

    async def run(self, listener: Listener | None = None) -> None:
        """Keep the mirror until cancelled, and tell the listener of every change."""
        self._listener = listener
        reason: Exception | None = None  # why it must be loaded again
        retry_s = self._retry_min_s
        while True:
            done = self._blocks
            try:
                if reason is not None or not self._loaded.is_set():
                    await self._load(lost=isinstance(reason, JournalLost))
                    reason = None
                await self._follow()
            except (Compacted, JournalLost, BlockDamaged, MirrorBroken) as error:
                reason = error
                self._fail(error, "mirror must be loaded again")
            except (JournalUnavailable, Unavailable, Overloaded) as error:
                self._fail(error, "mirror waits")
            finally:
                self._connected = False
            if self._blocks > done:
                retry_s = self._retry_min_s
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, self._retry_max_s)

    def tell_blocks(self, reader: BlockReader | None) -> None:
        """Tell somebody of each block from now on, or nobody."""
        self._reader = reader

    @property
    def journal(self) -> Journal:
        """What it reads along in; others may read there too."""
        return self._journal

    def _fail(self, error: Exception, what: str) -> None:
        self._error = f"{type(error).__name__}: {error}"
        _log.warning(what, shard=self.mirror.shard, at=str(self.at), error=self._error)

    async def _load(self, *, lost: bool) -> None:
        """Take the shard's table: as a continuation if it is one, else from the beginning."""
        table = await self._link.table()
        mirror, at = self.mirror, table.at
        before = mirror.stamp
        if self._loaded.is_set() and not lost:
            if at < self.at:
                raise Unavailable(f"shard {mirror.shard} is at {at}, the mirror has {self.at}")
            rows = mirror.reload(table.cells, at.epoch, at.seq, table.now_ns)
        else:
            rows = None
        if rows is None:
            mirror.load(table.cells, at.epoch, at.seq, table.now_ns)
            if self._listener is not None:
                self._listener.loaded(mirror.shard)
        elif self._listener is not None:
            self._listener.changed(mirror.shard, rows, before)
        if self._reader is not None:
            self._reader.jumped(mirror.shard)
        self._loads += 1
        self._loaded.set()
        self._wake_waiters()
        _log.info("mirror loaded", shard=mirror.shard, at=str(at), cells=mirror.count)

    async def _follow(self) -> None:
        """Apply blocks as they come. Ends by an error only."""
        self._connected = True
        # Closed here, with the connection that it has, also when a block is broken.
        async with aclosing(self._journal.tail(self.at)) as tail:
            async for entries in tail:
                self._error = ""
                start = 0
                while start < len(entries):
                    start = self._apply(entries, start)
                    if start < len(entries):
                        await asyncio.sleep(0)
                # What is written meanwhile comes in one go: a thousand small blocks a second, each
                # fetched by itself, would cost the shard's machine as much as serving them.
                if not self._waiters:
                    await asyncio.sleep(self._gap_s)
        raise JournalUnavailable("the tail ended")

    def _apply(self, entries: list[Entry], start: int) -> int:
        """Apply entries from `start` on for a short while, and tell of all of them at once.

        Nothing may run between a block and the call of the listener, so this does not wait: a
        reader would see values of a block that its token does not cover. Returns where to go on.
        """
        mirror, since, known_ns, changed = self.mirror, self.mirror.stamp, self.mirror.now_ns, []
        until = time.perf_counter() + self._slice_s
        try:
            while start < len(entries):
                position, payload = entries[start]
                block = decode(payload)
                if (block.epoch, block.seq) != (position.epoch, position.seq):
                    raise MirrorBroken(f"{position} holds block {block.epoch}-{block.seq}")
                before = self.at
                rows = mirror.apply(block, crc_of(payload))
                if self._reader is not None:
                    self._reader.block(mirror.shard, before, block)
                start += 1
                self._blocks += 1
                if len(rows):
                    changed.append(rows)
                if time.perf_counter() >= until:
                    break
        finally:  # also of those before a block that is broken
            if mirror.now_ns > known_ns:  # an opening alone has no time to be late by
                self._lag_ns = max(0, self._now_ns() - mirror.now_ns)
            if mirror.stamp > since:
                self._tell(changed, since)
        return start

    def _tell(self, changed: list[NDArray[np.int32]], since: int) -> None:
        if self._listener is not None:
            rows = changed[0] if len(changed) == 1 else distinct(changed)
            self._listener.changed(self.mirror.shard, rows, since)
        self._wake_waiters()

    # ------------------------------------------------------------------------------- reading --

    @property
    def at(self) -> Position:
        """The newest block in the mirror."""
        return Position(*place_of(self.mirror.stamp)) if self.mirror.stamp else GENESIS

    @property
    def health(self) -> MirrorHealth:
        """How it is doing."""
        mirror = self.mirror
        return MirrorHealth(
            mirror.shard, self.at, Position(*place_of(mirror.base)), self._connected, self._lag_ns,
            mirror.count, self._blocks, self._loads, self._error,
        )  # fmt: skip

    async def ready(self) -> None:
        """Wait until the mirror has been loaded."""
        await self._loaded.wait()

    async def reached(self, position: Position, timeout: float) -> bool:
        """Wait until a block is in the mirror; False when it is not after `timeout` seconds."""
        stamp = stamp_of(position.epoch, position.seq)
        if self._loaded.is_set() and self.mirror.stamp >= stamp:
            return True
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (stamp, next(self._numbers), waiter))
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return False
        finally:
            if waiter.cancelled():
                self._waiters = [entry for entry in self._waiters if entry[2] is not waiter]
                heapq.heapify(self._waiters)
        return True

    def _wake_waiters(self) -> None:
        while self._waiters and self._waiters[0][0] <= self.mirror.stamp:
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)

    def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id), in order; None where there is none."""
        keys = [key_of(sku, location) for sku, location in names]
        rows = self.mirror.find(np.array(keys, np.int64))
        words = (
            self.mirror.cells[np.maximum(rows, 0), ON_HAND:].tolist() if self.mirror.count else ()
        )
        if not words:
            return [None] * len(names)
        return [Cell(*w) if row >= 0 else None for row, w in zip(rows.tolist(), words, strict=True)]

    def table(self, locations: Iterable[int] | None = None) -> CellTable:
        """Copy the rows of some locations, or all rows (then index i is row i)."""
        mirror = self.mirror
        if locations is None:
            cells = mirror.cells.copy()
        else:
            cells = mirror.cells[mirror.select(sorted(set(locations)), None)]
        return CellTable(self.at, mirror.now_ns, cells)


class Mirrors:
    """The mirrors of all shards, asked as one."""

    def __init__(self, feeds: Iterable[MirrorFeed]) -> None:
        self.feeds: Final[Mapping[int, MirrorFeed]] = {feed.mirror.shard: feed for feed in feeds}

    async def run(self, listener: Listener | None = None) -> None:
        """Keep all mirrors until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for shard, feed in self.feeds.items():
                tasks.create_task(feed.run(listener), name=f"mirror-{shard}")

    async def ready(self) -> None:
        """Wait until every mirror has been loaded."""
        for feed in self.feeds.values():
            await feed.ready()

    async def reached(self, shard: int, position: Position, timeout: float) -> bool:
        """Wait until a shard's block is in its mirror; False if not in time, or no such shard."""
        feed = self.feeds.get(shard)
        return feed is not None and await feed.reached(position, timeout)

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id), in order; None where no shard has one."""
        found: list[Cell | None] = [None] * len(names)
        for feed in self.feeds.values():
            for i, cell in enumerate(feed.cells(names)):
                if cell is not None:
                    found[i] = cell
        return found

    async def tables(
        self, locations: Sequence[int] | None = None
    ) -> AsyncIterator[tuple[int, CellTable]]:
        """Yield shard numbers and the rows of some locations, or all rows."""
        for shard, feed in self.feeds.items():
            yield shard, feed.table(locations)

    @property
    def health(self) -> list[MirrorHealth]:
        """How each is doing."""
        return [feed.health for feed in self.feeds.values()]
