"""What one subscriber to deltas has not been told yet, and the frames that tell it.

A subscription keeps row numbers, never values: what a frame says is read from the mirrors when it is
taken, so a slow reader costs four bytes a cell however much happens meanwhile. It must not know gRPC, nor
who else there is.

Whole blocks. `take` gathers everything that is pending in one go, between two blocks. When that is
more than one frame holds, the frames before the last one carry no token: cells that change meanwhile
are pending again, and the last frame brings all that is left. With it, and not before, a reader's copy
is as of one moment again. A snapshot is the same thing at greater length, and its marker is the moment.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.subscribers import HubStopped, Places
from actors.tokens import Filter
from engine.frames import FrameKind
from engine.kernels import CELL_WORDS
from engine.mirror import Mirror
from engine.rows import distinct
from engine.views import Endangered

_PIECES: Final = 64  # arrays that a backlog may consist of before they are merged
_SLACK: Final = 4_096  # rows that it may list twice
_SWEEPS: Final = 4  # times its own size that a backlog may grow by while it is being sent

_NO_CELLS: Final = np.zeros((0, CELL_WORDS), np.int64)
_NO_ROWS: Final = np.zeros(0, np.int32)


@dataclass(slots=True)
class DeltaFrame:
    """One message to a subscriber. `cells` are copies of the cells' rows (n, CELL_WORDS), each once.

    `endangered` says of cells with a shortage among them whom it endangers.

    `token` is empty when more frames must follow before the reader's copy is whole.
    """

    kind: FrameKind
    token: bytes = b""
    places: Places = ()
    cells: NDArray[np.int64] = field(default_factory=lambda: _NO_CELLS)
    block_now_ns: int = 0
    endangered: list[Endangered] = field(default_factory=list)


class Backlog:
    """Rows of one shard that a subscriber has not been told of; bounded by the rows there are."""

    __slots__ = ("_bound", "_news", "_news_size", "_old")

    def __init__(self, rows: NDArray[np.int32] = _NO_ROWS) -> None:
        self._old = rows  # in order, each once: taken from the front
        self._news: list[NDArray[np.int32]] = []  # may repeat rows
        self._news_size = 0
        self._bound = _SLACK

    def __len__(self) -> int:
        """How many rows, some perhaps counted twice; 0 only if there are none."""
        return len(self._old) + self._news_size

    def add(self, rows: NDArray[np.int32]) -> None:
        """Add rows, of which there is at least one."""
        self._news.append(rows)
        self._news_size += len(rows)
        if len(self._news) > _PIECES or self._news_size > self._bound:
            self._news = [distinct(self._news)]
            self._news_size = len(self._news[0])
            self._bound = 2 * self._news_size + _SLACK

    def merge(self) -> None:
        """Make `len` exact. Costs a sort of all rows if there are news."""
        if not self._news:
            return
        if len(self._news) == 1 and not len(self._old):
            self._old = np.sort(self._news[0])
        else:
            self._old = distinct([self._old, *self._news])
        self._news, self._news_size, self._bound = [], 0, _SLACK

    def take(self, most: int) -> NDArray[np.int32]:
        """Remove and return rows, at most so many, each once; all if there are no more.

        The old ones go first and alone: merging at every step would sort the whole over and over.
        """
        if len(self) <= most or not len(self._old):
            self.merge()
        taken, self._old = self._old[:most], self._old[most:]
        return taken


class Hub(Protocol):
    """What a subscription needs of the hub that made it (`actors.hub`)."""

    @property
    def mirrors(self) -> Mapping[int, Mirror]:
        """The mirrors, by shard."""

    @property
    def frame_cells(self) -> int:
        """How many cells a frame may have."""

    @property
    def stopping(self) -> bool:
        """Whether it ends all subscriptions."""

    @property
    def places(self) -> Places:
        """Where the mirrors are now."""

    def token(self, subscription: "Subscription") -> bytes:
        """The resume token of a subscriber that has been told everything."""

    def heartbeat(self, subscription: "Subscription") -> "DeltaFrame":
        """A frame that says: nothing has changed up to here."""


class Subscription:
    """One subscriber: its filter and what it has not been told yet. Made by `DeltaHub.subscribe`."""

    __slots__ = (
        "_backlogs", "_compacted", "_frozen", "_hub", "_in_snapshot", "_marker", "_newest_ns",
        "_sweep_left", "_told_stop", "_wake", "filter", "fingerprint",
    )  # fmt: skip

    def __init__(self, hub: Hub, wanted: Filter) -> None:
        self.filter = wanted
        self.fingerprint = wanted.fingerprint
        self._hub = hub
        self._wake = asyncio.Event()
        self._told_stop = False
        self.start({})

    def start(
        self,
        backlogs: dict[int, Backlog],
        newest_ns: int = 0,
        *,
        snapshot: bool = False,
        compacted: bool = False,
    ) -> None:
        """Begin with these rows of each shard, whatever was pending; the blocks are of `newest_ns`."""
        self._backlogs = backlogs
        self._compacted = compacted  # a COMPACTED frame comes first
        self._in_snapshot = snapshot
        self._marker: DeltaFrame | None = None  # the SNAPSHOT_END that comes next
        self._frozen: deque[DeltaFrame] = deque()  # frames of one moment that could not be sent yet
        self._sweep_left: int | None = None  # cells that the sweep under way may still take
        self._newest_ns = newest_ns  # of the blocks that the backlogs are from
        if snapshot or any(backlogs.values()):
            self._wake.set()

    def add(self, shard: int, rows: NDArray[np.int32], now_ns: int) -> None:
        """Have it told of rows that a block of this time changed, of which there is at least one."""
        backlog = self._backlogs.get(shard)
        if backlog is None:
            backlog = self._backlogs[shard] = Backlog()
        backlog.add(rows)
        self._newest_ns = max(self._newest_ns, now_ns)
        self._wake.set()

    @property
    def pending(self) -> int:
        """How many cells are waiting to be told, some perhaps counted twice."""
        return self._waiting() + sum(len(frame.cells) for frame in self._frozen)

    async def next(self, heartbeat_s: float) -> DeltaFrame:
        """Wait for something to tell; after `heartbeat_s` of silence it is a heartbeat.

        Raises HubStopped when the hub is stopping and the last token has been told.
        """
        frame = None if self._hub.stopping else self.take()
        if frame is not None:
            return frame
        if not self._hub.stopping:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
        if self._hub.stopping:
            return self._last()
        return self.take() or self._hub.heartbeat(self)

    def stop(self) -> None:
        """Let `next` look whether the hub is stopping."""
        self._wake.set()

    def take(self) -> DeltaFrame | None:
        """The next frame, with everything that is pending as of now; None when there is nothing."""
        frame = self._take()
        if frame is None:
            self._wake.clear()
        return frame

    def _take(self) -> DeltaFrame | None:
        if self._compacted:
            self._compacted = False
            return DeltaFrame(FrameKind.COMPACTED)
        if self._frozen:
            return self._frozen.popleft()
        if self._marker is not None:
            marker, self._marker = self._marker, None
            return marker
        total = self._waiting()
        if not total and not self._in_snapshot:
            return None
        if total > self._hub.frame_cells and self._sweep_left is None:
            for backlog in self._backlogs.values():
                backlog.merge()
            total = self._waiting()
        if total > self._hub.frame_cells:
            if self._sweep_left is None:
                self._sweep_left = _SWEEPS * total
            elif self._sweep_left <= 0:
                return self._freeze()
            self._sweep_left -= self._hub.frame_cells
        frame = self._part()
        # Rows may have been counted twice, so this may be all even when it seemed to be too much.
        return frame if self._waiting() else self._closed(frame)

    def _waiting(self) -> int:
        return sum(map(len, self._backlogs.values()))

    def _part(self) -> DeltaFrame:
        kind = FrameKind.SNAPSHOT if self._in_snapshot else FrameKind.DELTA
        frame = DeltaFrame(kind, block_now_ns=self._newest_ns)
        self._gather(frame, self._hub.frame_cells)
        return frame

    def _closed(self, last: DeltaFrame) -> DeltaFrame:
        """Nothing is left: with the last part, the reader's copy is as of this moment."""
        self._sweep_left = None
        self._newest_ns = 0
        token, places = self._hub.token(self), self._hub.places
        if not self._in_snapshot:
            last.token, last.places = token, places
            return last
        self._in_snapshot = False
        marker = DeltaFrame(FrameKind.SNAPSHOT_END, token, places, block_now_ns=last.block_now_ns)
        if not len(last.cells):
            return marker
        self._marker = marker
        return last

    def _freeze(self) -> DeltaFrame:
        """The cells change faster than this reader reads: copy what is left as of this moment.

        Takes 80 bytes a cell until it is sent, which is why it is the last resort.
        """
        while self._waiting():
            self._frozen.append(self._part())
        self._frozen[-1] = self._closed(self._frozen[-1])
        return self._frozen.popleft()

    def _gather(self, frame: DeltaFrame, most: int) -> None:
        parts = []
        for shard, backlog in self._backlogs.items():
            if backlog and most:
                rows = backlog.take(most)
                most -= len(rows)
                mirror = self._hub.mirrors[shard]
                parts.append(mirror.cells[rows])
                frame.endangered += mirror.endangered(rows)
        if parts:
            frame.cells = parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _last(self) -> DeltaFrame:
        """What is told before the end: once, what is pending if it is little; always a token."""
        if self._told_stop:
            raise HubStopped
        self._told_stop = True
        if self._marker is not None and not self._frozen:
            return self._marker
        if self._compacted or self._in_snapshot or self._frozen or self._sweep_left is not None:
            raise HubStopped  # in the middle of something: the reader's last token is still good
        frame = self.take() or self._hub.heartbeat(self)
        if not frame.token:
            raise HubStopped  # it would take several frames
        return frame
