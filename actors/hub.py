"""Who wants to hear of which cells, and what each has not been told yet.

The hub stands between the mirrors of the shards and the streams of subscribers. A subscription
keeps row numbers, never values: what a frame says is read from the mirrors when it is taken, so a
slow reader costs four bytes a cell however much happens meanwhile. It must not know gRPC, nor where
the blocks come from.

Whole blocks. Mirrors call `changed` right after a block, without giving way to other tasks between;
`take` gathers everything that is pending in one go. So what is taken is as of one moment between
two blocks. When that is more than one frame holds, the frames before the last one carry no token:
cells that change meanwhile are pending again, and the last frame brings all that is left. With it,
and not before, a reader's copy is as of one moment again. A snapshot is the same thing at greater
length, and its marker is the moment.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from actors.tokens import Filter, Tokens
from engine import limits
from engine.frames import Fields, FrameKind
from engine.kernels import CELL_WORDS, KEY
from engine.frames import Fields, FrameKind
from engine.kernels import CELL_WORDS, KEY
from engine.mirror import Mirror, among, place_of, stamp_of
from engine.rows import distinct
from engine.views import Endangered

MAX_FRAME_CELLS: Final = 1 << 16
FRAME_CELL_BYTES: Final = 36  # six columns
MAX_SUBSCRIBERS: Final = 4_096
TOKEN_WAIT_S: Final = 2.0  # for a mirror that is behind what a subscriber has seen elsewhere

_PIECES: Final = 64  # arrays that a backlog may consist of before they are merged
_SLACK: Final = 4_096  # rows that it may list twice
_SWEEPS: Final = 4  # times its own size that a backlog may grow by while it is being sent
_TOKEN: Final = (1, "<IQQ")  # of each shard: its number, epoch, seq
_LOW32: Final = 0xFFFFFFFF

assert MAX_FRAME_CELLS >= limits.MAX_BLOCK_LINES + limits.EXPIRIES_PER_BLOCK, (
    "a block's changes fit one frame (unless holds of many lines expire by the thousands)"
)
assert MAX_FRAME_CELLS * FRAME_CELL_BYTES < 3 << 20, "gRPC clients take 4 MB at most by default"


class HubFull(Exception):  # noqa: N818 - a condition, not an error of the caller
    """There are as many subscribers as there may be."""


class HubStopped(Exception):  # noqa: N818
    """The hub is stopping; the subscription has been told all that there was."""


class NotReady(Exception):  # noqa: N818
    """A mirror has not been loaded yet, so there is nothing to snapshot."""


Places = tuple[tuple[int, int, int], ...]
"""(shard, epoch, seq) of each shard, in order of shard."""

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


class _Backlog:
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


class Subscription:
    """One subscriber: its filter and what it has not been told yet. Made by `DeltaHub.subscribe`."""

    __slots__ = (
        "_backlogs", "_compacted", "_frozen", "_hub", "_in_snapshot", "_marker", "_newest_ns",
        "_sweep_left", "_told_stop", "_wake", "filter", "fingerprint",
    )  # fmt: skip

    def __init__(self, hub: "DeltaHub", wanted: Filter) -> None:
        self.filter = wanted
        self.fingerprint = wanted.fingerprint
        self._hub = hub
        self._wake = asyncio.Event()
        self._told_stop = False
        self._start({})

    def _start(
        self,
        backlogs: dict[int, _Backlog],
        newest_ns: int = 0,
        *,
        snapshot: bool = False,
        compacted: bool = False,
    ) -> None:
        self._backlogs = backlogs
        self._compacted = compacted  # a COMPACTED frame comes first
        self._in_snapshot = snapshot
        self._marker: DeltaFrame | None = None  # the SNAPSHOT_END that comes next
        self._frozen: deque[DeltaFrame] = deque()  # frames of one moment that could not be sent yet
        self._sweep_left: int | None = None  # cells that the sweep under way may still take
        self._newest_ns = newest_ns  # of the blocks that the backlogs are from
        if snapshot or any(backlogs.values()):
            self._wake.set()

    def _add(self, shard: int, rows: NDArray[np.int32], now_ns: int) -> None:
        backlog = self._backlogs.get(shard)
        if backlog is None:
            backlog = self._backlogs[shard] = _Backlog()
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


class DeltaHub:
    """Fans the changes of all mirrors out to subscriptions. All of it runs on one event loop.

    `mirrors` maps shard numbers to the mirrors that feed it. `store_id` (8 bytes) tells the tokens
    of one store from those of another, or of the same one after its journals were lost.
    """

    def __init__(
        self,
        mirrors: Mapping[int, Mirror],
        store_id: bytes,
        *,
        max_subscribers: int = MAX_SUBSCRIBERS,
        frame_cells: int = MAX_FRAME_CELLS,
        token_wait_s: float = TOKEN_WAIT_S,
    ) -> None:
        """Raises ValueError when the store's id is not 8 bytes."""
        self.mirrors: Final = dict(mirrors)
        self.frame_cells: Final = frame_cells
        self.max_subscribers: Final = max_subscribers
        self.stopping = False
        self._tokens = Tokens(*_TOKEN, store_id)
        self._token_wait_s = token_wait_s
        self._ready: set[int] = set()
        self._subscriptions: set[Subscription] = set()
        # Subscriptions by what leads to them first: locations, else SKUs, else nothing.
        self._by_location: dict[int, set[Subscription]] = {}
        self._by_sku: dict[int, set[Subscription]] = {}
        self._of_all: set[Subscription] = set()
        self._places: Places | None = None
        self._vector = b""
        self._moved = asyncio.Event()

    # --------------------------------------------------------------------- what mirrors call --

    def changed(self, shard: int, rows: NDArray[np.int32], since: int) -> None:
        """Tell that blocks after the stamp `since` changed these rows of a shard, each listed once.

        Must follow the blocks without another task running between.
        """
        self._advance()
        if not len(rows) or not self._subscriptions:
            return
        mirror = self.mirrors[shard]
        change = _Change(mirror, rows, since)
        if self._by_location:
            for location, of_location in change.by(self._by_location, 32):
                for subscription in self._by_location[location]:
                    self._tell(subscription, change, of_location)
        if self._by_sku:
            for sku, of_sku in change.by(self._by_sku, 0):
                for subscription in self._by_sku[sku]:
                    self._tell(subscription, change, of_sku, sku_matches=True)
        for subscription in self._of_all:
            self._tell(subscription, change, slice(None))

    @staticmethod
    def _tell(
        subscription: Subscription,
        change: "_Change",
        part: slice,
        *,
        sku_matches: bool = False,
    ) -> None:
        rows = change.rows(subscription.filter.fields, part)
        skus = subscription.filter.skus
        if skus is not None and not sku_matches and len(rows):
            rows = rows[among(change.mirror.cells[rows, KEY] & _LOW32, skus)]
        if len(rows):
            if rows.base is not None and part != slice(None):
                rows = rows.copy()  # a view would keep all rows of the change alive
            subscription._add(change.mirror.shard, rows, change.mirror.now_ns)  # noqa: SLF001

    def loaded(self, shard: int) -> None:
        """Tell that a mirror was loaded, which is no continuation: all subscribers start over."""
        self._ready.add(shard)
        self._advance()
        for subscription in self._subscriptions:
            self._snapshot(subscription, compacted=True)

    def _advance(self) -> None:
        self._places = None
        self._moved.set()
        self._moved = asyncio.Event()

    # ----------------------------------------------------------------- what subscribers call --

    async def subscribe(self, wanted: Filter, token: bytes = b"") -> Subscription:
        """Begin with a snapshot, or where a token ends. Undo it with `unsubscribe`.

        Raises ValueError for a malformed token, HubFull, NotReady, HubStopped.
        """
        seen = self._read_token(token, wanted) if token else None
        self._check_open()
        if seen is not None:
            await self._wait_for(seen)
            self._check_open()
        subscription = Subscription(self, wanted)
        if seen is None:
            self._snapshot(subscription, compacted=bool(token))
        else:
            self._resume(subscription, seen)
        self._subscriptions.add(subscription)
        for members in self._members_of(wanted):
            members.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription; twice is as good as once."""
        self._subscriptions.discard(subscription)
        wanted = subscription.filter
        for members in self._members_of(wanted):
            members.discard(subscription)
        index, ids = self._index_of(wanted)
        for number in ids:
            if number in index and not index[number]:
                del index[number]

    def _index_of(self, wanted: Filter) -> tuple[dict[int, set[Subscription]], list[int]]:
        if wanted.locations is not None:
            return self._by_location, wanted.locations.tolist()
        if wanted.skus is not None:
            return self._by_sku, wanted.skus.tolist()
        return {}, []

    def _members_of(self, wanted: Filter) -> list[set[Subscription]]:
        index, ids = self._index_of(wanted)
        return [index.setdefault(number, set()) for number in ids] or [self._of_all]

    def stop(self) -> None:
        """End all subscriptions: each is told its last token, then HubStopped."""
        self.stopping = True
        self._advance()
        for subscription in self._subscriptions:
            subscription._wake.set()  # noqa: SLF001

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    @property
    def pending(self) -> int:
        """How many cells wait to be told, over all subscriptions."""
        return sum(subscription.pending for subscription in self._subscriptions)

    @property
    def ready(self) -> bool:
        """Whether every mirror has been loaded."""
        return self._ready >= self.mirrors.keys()

    def _check_open(self) -> None:
        if self.stopping:
            raise HubStopped
        if not self.ready:
            missing = sorted(self.mirrors.keys() - self._ready)
            raise NotReady(f"the mirrors of shards {missing} are loading")
        if len(self._subscriptions) >= self.max_subscribers:
            raise HubFull(f"there are {self.max_subscribers} subscribers, and may not be more")

    def _snapshot(self, subscription: Subscription, *, compacted: bool) -> None:
        backlogs = {
            shard: _Backlog(self._select(mirror, subscription.filter))
            for shard, mirror in self.mirrors.items()
        }
        subscription._start(  # noqa: SLF001 - one room
            backlogs, self._now_ns(), snapshot=True, compacted=compacted
        )

    def _resume(self, subscription: Subscription, seen: dict[int, int]) -> None:
        """Tell what has changed since the token; start over when that is not known any more."""
        backlogs = {}
        for shard, mirror in self.mirrors.items():
            rows = self._select(mirror, subscription.filter)
            if shard in seen:  # else the shard is new, and so is all that it has
                if not mirror.base <= seen[shard] <= mirror.stamp:
                    self._snapshot(subscription, compacted=True)
                    return
                rows = mirror.changed_since(rows, seen[shard], subscription.filter.fields)
            backlogs[shard] = _Backlog(rows)
        subscription._start(backlogs, self._now_ns())  # noqa: SLF001

    @staticmethod
    def _select(mirror: Mirror, wanted: Filter) -> NDArray[np.int32]:
        locations = None if wanted.locations is None else wanted.locations.tolist()
        return mirror.select(locations, wanted.skus)

    def _now_ns(self) -> int:
        return max((mirror.now_ns for mirror in self.mirrors.values()), default=0)

    async def _wait_for(self, seen: dict[int, int]) -> None:
        """Give mirrors a moment that are behind a token: it may come from another gateway."""
        try:
            async with asyncio.timeout(self._token_wait_s):
                while not self.stopping and any(
                    self.mirrors[shard].stamp < stamp for shard, stamp in seen.items()
                ):
                    await self._moved.wait()
        except TimeoutError:
            pass  # then it is of a future that this store does not know

    # -------------------------------------------------------------------------------- tokens --

    @property
    def places(self) -> Places:
        """Where the mirrors are now."""
        if self._places is None:
            self._places = tuple(
                (shard, *place_of(mirror.stamp)) for shard, mirror in sorted(self.mirrors.items())
            )
            self._vector = self._tokens.packed(self._places)
        return self._places

    def token(self, subscription: Subscription) -> bytes:
        """The resume token of a subscriber that has been told everything."""
        _ = self.places  # makes the vector, if the mirrors have moved
        return self._tokens.token(subscription.fingerprint, self._vector)

    def heartbeat(self, subscription: Subscription) -> DeltaFrame:
        """A frame that says: nothing has changed up to here."""
        return DeltaFrame(FrameKind.HEARTBEAT, self.token(subscription), self.places)

    def _read_token(self, token: bytes, wanted: Filter) -> dict[int, int] | None:
        """What a token's holder has seen, as a stamp for each shard.

        None when it was made by another store or for another filter. ValueError if malformed.
        """
        places = self._tokens.read(token, wanted.fingerprint)
        if places is None:
            return None
        try:
            seen = {shard: stamp_of(epoch, seq) for shard, epoch, seq in places}
        except ValueError as error:
            raise ValueError("resume_token: not a token of this service") from error
        return seen if seen.keys() <= self.mirrors.keys() else None


class _Change:
    """The rows of one notification, sorted and narrowed once for all subscribers."""

    def __init__(self, mirror: Mirror, rows: NDArray[np.int32], since: int) -> None:
        self.mirror = mirror
        self._since = since
        self._keys = mirror.cells[rows, KEY]
        self._all = self._sorted = rows
        self._narrowed: dict[tuple[Fields, int], tuple[NDArray[np.int32], NDArray[np.int64]]] = {}
        self._order = -1

    def by(self, index: Mapping[int, object], shift: int) -> Iterator[tuple[int, slice]]:
        """Sort by location (shift 32) or SKU (shift 0): each id in the index, with its part."""
        ids = (self._keys >> shift) & _LOW32
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        self._sorted, self._order = self._all[order], shift
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        ends = [*starts[1:].tolist(), len(ordered)]
        for number, start, end in zip(ordered[starts].tolist(), starts.tolist(), ends, strict=True):
            if number in index:
                yield number, slice(start, end)

    def rows(self, fields: Fields, part: slice) -> NDArray[np.int32]:
        """The rows of a part, without those where none of the fields changed."""
        if fields is Fields.ALL:
            return self._sorted[part]
        narrowed = self._narrowed.get((fields, self._order))
        if narrowed is None:
            # Places where rows remain, counted: a part of the sorted rows is a part of these too.
            kept = self.mirror.changed_mask(self._sorted, self._since, fields)
            before = np.concatenate(([0], np.cumsum(kept)))
            narrowed = self._narrowed[fields, self._order] = (self._sorted[kept], before)
        rows, before = narrowed
        start, end, _ = part.indices(len(self._sorted))
        return rows[before[start] : before[end]]
