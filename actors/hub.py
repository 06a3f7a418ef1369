"""Who wants to hear of which cells: the changes of all mirrors, fanned out to subscriptions.

The hub stands between the mirrors of the shards and the streams of subscribers. Mirrors call `changed`
right after a block, without giving way to other tasks between; what a subscription then takes
(`actors.subscription`) is as of one moment between two blocks. It must not know gRPC, nor where the
blocks come from.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from actors.subscribers import HubFull, HubStopped, NotReady, Places, Subscribers
from actors.subscription import Backlog, DeltaFrame, Subscription
from actors.tokens import Filter, Tokens
from engine import limits
from engine.frames import Fields, FrameKind
from engine.kernels import KEY
from engine.mirror import Mirror, among, place_of, stamp_of

MAX_FRAME_CELLS: Final = 1 << 16
FRAME_CELL_BYTES: Final = 36  # six columns
MAX_SUBSCRIBERS: Final = 4_096
TOKEN_WAIT_S: Final = 2.0  # for a mirror that is behind what a subscriber has seen elsewhere

_TOKEN: Final = (1, "<IQQ")  # of each shard: its number, epoch, seq
_LOW32: Final = 0xFFFFFFFF

assert (
    MAX_FRAME_CELLS >= limits.MAX_BLOCK_LINES + limits.EXPIRIES_PER_BLOCK + limits.MAX_HOLD_LINES
), "a block's changes fit one frame (unless its calls are on holds of many lines)"

assert MAX_FRAME_CELLS * FRAME_CELL_BYTES < 3 << 20, "gRPC clients take 4 MB at most by default"


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
        self._subscriptions: Subscribers[Subscription] = Subscribers()
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
        change, known = _Change(mirror, rows, since), self._subscriptions
        if known.by_location:
            for location, of_location in change.by(known.by_location, 32):
                for subscription in known.by_location[location]:
                    self._tell(subscription, change, of_location)
        if known.by_sku:
            for sku, of_sku in change.by(known.by_sku, 0):
                for subscription in known.by_sku[sku]:
                    self._tell(subscription, change, of_sku, sku_matches=True)
        for subscription in known.of_all:
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
            subscription.add(change.mirror.shard, rows, change.mirror.now_ns)

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
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription; twice is as good as once."""
        self._subscriptions.discard(subscription)

    def stop(self) -> None:
        """End all subscriptions: each is told its last token, then HubStopped."""
        self.stopping = True
        self._advance()
        for subscription in self._subscriptions:
            subscription.stop()

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
            shard: Backlog(self._select(mirror, subscription.filter))
            for shard, mirror in self.mirrors.items()
        }
        subscription.start(backlogs, self._now_ns(), snapshot=True, compacted=compacted)

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
            backlogs[shard] = Backlog(rows)
        subscription.start(backlogs, self._now_ns())

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
