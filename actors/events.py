"""Events to subscribers: each operation that was accepted, in order, never two told as one.

A subscription is a place in each shard's journal and no more. Blocks that come in are decoded once,
into columns that all subscriptions read, and kept for a while, as many bytes as may be; a
subscription that is behind them reads the journal itself, at its own pace, a frame at a time and
few of them at once. So a slow reader costs nothing while it is slow, and holds nobody up: neither the
others nor the shard. While nobody is subscribed, nothing is decoded for them at all.

A subscription that has been told all there was sleeps until a block has something at one of its
locations; others pass it by, and its place moves on with the mirror's. This room must not know gRPC,
nor what an event says.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from actors.mirror import MirrorFeed
from actors.ports import Compacted, JournalLost, Position
from actors.subscribers import HubFull, HubStopped, NotReady, Places, Subscribers
from actors.tokens import Filter, Tokens
from engine import limits
from engine.block import Block, decode
from engine.events import Events, events_of
from engine.kernels import KEY

TOKEN_WAIT_S: Final = 2.0  # for a mirror that is behind what a subscriber has seen elsewhere

_TOKEN: Final = (2, "<IQQI")  # of each shard: its number, epoch, seq, events seen of the next block
_BLOCKS_AT_ONCE: Final = 32  # looked at before others get their turn
_BLOCKS_OF_A_READ: Final = 1_024  # of the journal, before another subscriber has its turn
_EMPTY_BYTES: Final = 512  # what a block without events is counted as


_Start = dict[int, tuple[Position, int]]


class EventsGone(Exception):  # noqa: N818 - a condition, as in actors.ports
    """The journal does not have what should come next. Says of which shard, from where, and why."""


@dataclass(slots=True)
class EventFrame:
    """Events of one shard that follow each other; without any, only the places have moved on."""

    token: bytes
    places: Places
    shard: int = 0
    blocks: list[Events] = field(default_factory=list)

    def __len__(self) -> int:
        """How many events there are."""
        return sum(map(len, self.blocks))


class _Recent:
    """The newest blocks of one shard, without a gap; a block that is very large alone."""

    def __init__(self, at: Position, most_bytes: int) -> None:
        self.at = at  # the newest block heard of
        self._most_bytes = most_bytes
        self.clear(at)

    def clear(self, at: Position) -> None:
        """Forget all, up to a block."""
        self.at = at
        self._before = at  # the block before the first that is kept
        self._places: list[Position] = []
        self._blocks: list[Events] = []
        self._nbytes = 0

    def add(self, before: Position, events: Events) -> None:
        if before != self.at:
            self.clear(before)
        self.at = Position(events.epoch, events.seq)
        self._places.append(self.at)
        self._blocks.append(events)
        self._nbytes += events.nbytes + _EMPTY_BYTES
        if self._nbytes > self._most_bytes and len(self._blocks) > 1:
            self._drop()

    def _drop(self) -> None:
        """Forget the older half of it: one by one would move the rest each time."""
        dropped = 0
        while self._nbytes > self._most_bytes // 2 and dropped < len(self._blocks) - 1:
            self._nbytes -= self._blocks[dropped].nbytes + _EMPTY_BYTES
            dropped += 1
        self._before = self._places[dropped - 1]
        del self._places[:dropped], self._blocks[:dropped]

    def after(self, at: Position) -> Sequence[Events] | None:
        """The next blocks after one, some of them; None when that one is not known here."""
        first = bisect_right(self._places, at)
        if at != (self._places[first - 1] if first else self._before):
            return None
        return self._blocks[first : first + _BLOCKS_AT_ONCE]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self._nbytes


class EventSubscription:
    """One subscriber: its filter and its place in each journal. Made by `EventHub.subscribe`."""

    __slots__ = (
        "_asleep", "_at", "_gone", "_hub", "_seen", "_told_start", "_told_stop", "_turn", "_wake",
        "filter", "fingerprint",
    )  # fmt: skip

    def __init__(self, hub: "EventHub", wanted: Filter, places: "_Start") -> None:
        self.filter = wanted
        self.fingerprint = wanted.fingerprint
        self._hub = hub
        # Of each shard, the newest block that was told to its end, and how many events of the block
        # after it were told.
        self._at = {shard: at for shard, (at, _) in places.items()}
        self._seen = {shard: seen for shard, (_, seen) in places.items()}
        self._asleep: set[int] = set()  # shards of which all was told, and which are passed by
        self._wake = asyncio.Event()
        self._gone = ""  # why what should come next never will
        self._turn = 0
        self._told_start = self._told_stop = False

    def notice(self, shard: int, before: Position) -> None:
        """Hear that there may be something for it after a block."""
        if shard in self._asleep:
            self._asleep.discard(shard)
            if before != self._at[shard]:
                self._at[shard], self._seen[shard] = before, 0
            self._wake.set()

    def jumped(self, shard: int, before: Position, to: Position) -> None:
        """Hear that there may be something after a block, and at which block the mirror is now."""
        self.notice(shard, before)
        if self._at[shard] > to:
            told = self._at[shard]
            self._gone = f"shard {shard}: {told} is no block of its journal, which has begun anew"

    async def next(self, heartbeat_s: float) -> EventFrame:
        """Wait for events; after `heartbeat_s` without any the frame says how far they are told.

        So does the first one of all, at once: whoever is cut off then can go on from there. Raises
        HubStopped when the hub is stopping and the last places have been told, EventsGone, and what
        reading the journal raises; it may be called again after JournalUnavailable.
        """
        if not self._told_start:
            self._told_start = True
            return self._frame()
        clock = asyncio.get_running_loop().time
        until = clock() + heartbeat_s
        while not self._hub.stopping:
            frame = await self._read()
            if frame is not None:
                return frame
            if clock() >= until:
                return self._frame()
            if len(self._asleep) == len(self._at):
                self._wake.clear()
                try:
                    async with asyncio.timeout_at(until):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        if self._told_stop:
            raise HubStopped
        self._told_stop = True
        return self._frame()

    def stop(self) -> None:
        """Let `next` look whether the hub is stopping."""
        self._wake.set()

    async def _read(self) -> EventFrame | None:
        """Look a bit further in one shard; the shards take turns."""
        if self._gone:
            raise EventsGone(self._gone)
        shards = list(self._at)
        for turn in range(self._turn, self._turn + len(shards)):
            shard = shards[turn % len(shards)]
            if shard not in self._asleep:
                self._turn = turn + 1
                blocks = await self._read_shard(shard)
                return self._frame(shard, blocks) if blocks else None
        return None

    async def _read_shard(self, shard: int) -> list[Events]:
        log, at = self._hub.logs[shard], self._at[shard]
        if at >= log.at:
            self._asleep.add(shard)  # nothing comes in between: nobody else has run
            return []
        found: list[Events] = []
        recent = log.after(at)
        if recent is not None:
            for events in recent:
                if not self._take(shard, events, found):
                    break
            await asyncio.sleep(0)
            return found
        async with self._hub.blocks(shard, at) as blocks:
            async for events in blocks:
                if not self._take(shard, events, found):
                    break
        return found

    def _take(self, shard: int, events: Events, found: list[Events]) -> bool:
        """Move on over a block, and add what is asked for; False when the frame is full first."""
        room = self._hub.frame_events - sum(map(len, found))
        places = events.chosen(self.filter.locations, self.filter.skus, self._seen[shard])
        if len(places) > room:
            if room:
                found.append(events.taken(places[:room]))
                self._seen[shard] = int(events.columns["number"][places[room - 1]]) + 1
            return False
        if len(places):
            found.append(events if len(places) == len(events) else events.taken(places))
        self._at[shard], self._seen[shard] = Position(events.epoch, events.seq), 0
        return True

    def _frame(self, shard: int = 0, blocks: Sequence[Events] = ()) -> EventFrame:
        places = [
            (each, at.epoch, at.seq, 0)
            if each in self._asleep and at != self._at[each]
            else (each, self._at[each].epoch, self._at[each].seq, self._seen[each])
            for each in sorted(self._at)
            for at in [self._hub.logs[each].at]
        ]
        token = self._hub.tokens.token(self.fingerprint, self._hub.tokens.packed(places))
        clear = tuple((number, epoch, seq) for number, epoch, seq, _ in places)
        return EventFrame(token, clear, shard, list(blocks))


class EventHub:
    """Tells events of all shards to subscriptions. All of it runs on one event loop.

    `feeds` keep the mirrors, by shard; `store_id` tells the tokens of one store from another's.
    """

    def __init__(
        self,
        feeds: Mapping[int, MirrorFeed],
        store_id: bytes,
        *,
        max_subscribers: int = limits.MAX_EVENT_SUBSCRIBERS,
        frame_events: int = limits.MAX_EVENTS_OF_FRAME,
        recent_bytes: int = limits.RECENT_EVENTS_BYTES,
        token_wait_s: float = TOKEN_WAIT_S,
    ) -> None:
        """Raises ValueError when the store's id is not 8 bytes."""
        self.feeds: Final = dict(feeds)
        self.tokens: Final = Tokens(*_TOKEN, store_id)
        self.frame_events: Final = frame_events
        self.max_subscribers: Final = max_subscribers
        self.logs: Final = {shard: _Recent(feed.at, recent_bytes) for shard, feed in feeds.items()}
        self.stopping = False
        self._token_wait_s = token_wait_s
        self._reading = asyncio.Semaphore(limits.JOURNAL_READERS)
        self._subscriptions: Subscribers[EventSubscription] = Subscribers()

    # ----------------------------------------------------------------------- what feeds call --

    def block(self, shard: int, before: Position, block: Block) -> None:
        """Take the block after `before`, which is in the mirror now, and wake whom it concerns."""
        log = self.logs[shard]
        if before != log.at:
            self.jumped(shard)
        events = events_of(block, self.feeds[shard].mirror.cells[:, KEY])
        log.add(before, events)
        for subscription in self._concerned(events):
            subscription.notice(shard, before)

    def jumped(self, shard: int) -> None:
        """There may be blocks that were not heard of: whoever sleeps reads them in the journal.

        Or the journal was lost and has begun anew, at a block that is before what some were told.
        """
        log, at = self.logs[shard], self.feeds[shard].at
        for subscription in self._subscriptions:
            subscription.jumped(shard, log.at, at)
        log.clear(at)

    def _concerned(self, events: Events) -> set[EventSubscription]:
        if not len(events):
            return set()
        known = self._subscriptions
        concerned = set(known.of_all)
        for index, name in ((known.by_location, "location"), (known.by_sku, "sku")):
            if index:
                for number in np.unique(events.columns[name]).tolist():
                    concerned |= index.get(number, _NOBODY)
        return concerned

    # ----------------------------------------------------------------- what subscribers call --

    async def subscribe(
        self,
        wanted: Filter,
        token: bytes = b"",
        *,
        after: Mapping[int, Position] | None = None,
        oldest: bool = False,
    ) -> EventSubscription:
        """Begin where a token ends; else after the blocks named, or at the oldest there is, or now.

        Undo it with `unsubscribe`. Raises ValueError for a malformed token and a shard that is none,
        EventsGone, HubFull, NotReady, HubStopped, and what asking a journal raises.
        """
        places = self._places_of(token, wanted.fingerprint) if token else {}
        if not token:
            places = {shard: (at, 0) for shard, at in (after or {}).items()}
        self._check_open(places)
        for shard, feed in self.feeds.items():
            if shard in places:
                await self._check_reached(shard, places[shard][0])
            elif oldest and not token:
                first = await feed.journal.first() or feed.at
                # An opening block has no events, and nothing can be said of the block before it.
                places[shard] = (Position(first.epoch, max(0, first.seq - 1)), 0)
        self._check_open(places)
        if not self._subscriptions:
            for shard, feed in self.feeds.items():
                self.logs[shard].clear(feed.at)
                feed.tell_blocks(self)
        for shard in self.feeds:
            places.setdefault(shard, (self.logs[shard].at, 0))
        subscription = EventSubscription(self, wanted, places)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: EventSubscription) -> None:
        """Forget a subscription; twice is as good as once. With the last one all blocks go."""
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            for shard, feed in self.feeds.items():
                feed.tell_blocks(None)
                self.logs[shard].clear(feed.at)

    def stop(self) -> None:
        """End all subscriptions: each is told how far it came, then HubStopped."""
        self.stopping = True
        for subscription in self._subscriptions:
            subscription.stop()

    @asynccontextmanager
    async def blocks(self, shard: int, at: Position) -> AsyncIterator[AsyncIterator[Events]]:
        """Lend the blocks after a place, from the journal, to one of few readers at a time."""
        async with self._reading, aclosing(self._from_journal(shard, at)) as found:
            yield found

    async def _from_journal(self, shard: int, at: Position) -> AsyncGenerator[Events, None]:
        """Some of the blocks. Raises EventsGone, JournalUnavailable, BlockDamaged."""
        feed = self.feeds[shard]
        looked_at = 0
        try:
            async with aclosing(feed.journal.read(at, self.logs[shard].at)) as entries:
                async for _, payload in entries:
                    yield events_of(decode(payload), feed.mirror.cells[:, KEY])
                    looked_at += 1
                    if looked_at == _BLOCKS_OF_A_READ:
                        return
                    await asyncio.sleep(0)
        except Compacted as error:
            raise EventsGone(
                f"shard {shard}: events after {at} are not in the journal any more, the oldest block"
                f" kept is {error.oldest} (keep_journal_mb)"
            ) from error
        except JournalLost as error:
            raise EventsGone(f"shard {shard}: {at} is no block of its journal") from error

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    @property
    def recent_bytes(self) -> int:
        """Bytes of blocks that are kept for them."""
        return sum(log.nbytes for log in self.logs.values())

    def _places_of(self, token: bytes, fingerprint: int) -> _Start:
        places = self.tokens.read(token, fingerprint)
        if places is None:
            raise EventsGone("the token is of another store, or was made for another filter")
        return {shard: (Position(epoch, seq), seen) for shard, epoch, seq, seen in places}

    def _check_open(self, places: _Start) -> None:
        if self.stopping:
            raise HubStopped
        if any(feed.at.epoch == 0 for feed in self.feeds.values()):
            raise NotReady("the mirrors are loading")
        if len(self._subscriptions) >= self.max_subscribers:
            most = self.max_subscribers
            raise HubFull(f"there are {most} subscribers to events, and may not be more")
        unknown = sorted(places.keys() - self.feeds.keys())
        if unknown:
            raise ValueError(f"after: there is no shard {unknown[0]}")

    async def _check_reached(self, shard: int, at: Position) -> None:
        """Give a mirror a moment that is behind a place: it may come from another gateway."""
        feed = self.feeds[shard]
        if feed.at < at:
            try:
                is_there = await feed.reached(at, self._token_wait_s)
            except ValueError:  # no place in any journal
                is_there = False
            if not is_there:
                raise EventsGone(f"shard {shard}: {at} is no block of its journal, as yet")


_NOBODY: Final[frozenset[EventSubscription]] = frozenset()
