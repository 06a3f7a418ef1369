"""A journal in memory: the contract of `actors.ports.Journal`, with faults to order."""

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from actors import ports
from actors.ports import GENESIS, Entry, Fenced, JournalLost, JournalUnavailable, Position


class MemoryStream:
    """What contenders for one stream share. `entries` may be cut or cleared by a test."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.last: Position | None = None
        self.grown = asyncio.Event()

    def add(self, position: Position, payload: bytes) -> None:
        if position <= (self.last or GENESIS):
            if (position, payload) not in self.entries:
                raise Fenced(str(position))
            return
        self.entries.append((position, payload))
        self.last = position
        self.wake()

    def cut(self, before: Position) -> int:
        dropped = bisect_left(self.entries, before, key=lambda entry: entry[0])
        del self.entries[:dropped]
        return dropped

    def wake(self) -> None:
        self.grown.set()
        self.grown = asyncio.Event()

    def following(self, after: Position | None) -> list[Entry]:
        if after is None:
            return list(self.entries)
        at = bisect_right(self.entries, after, key=lambda entry: entry[0])
        rest, last = self.entries[at:], self.last or GENESIS
        kept = at > 0 and self.entries[at - 1][0] == after
        unbroken = rest[0][0] in {after.next(), GENESIS.opening()} if rest else after == last
        if after > last or (at and not kept and not unbroken):
            raise JournalLost(f"{after} is not in a stream that ends at {self.last}")
        if not kept and not unbroken:
            raise ports.Compacted(after, rest[0][0] if rest else None)
        return rest


class FakeJournal:
    """`faults` befall the next appends in turn: refuse, lose_request, lose_reply, or None.

    `is_quick`: whether an append at once comes to its end when no fault is in its way.
    """

    def __init__(
        self,
        stream: MemoryStream,
        delay: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0),
    ) -> None:
        self.stream, self.delay = stream, delay
        self.faults: deque[str | None] = deque()
        self.acknowledged: Position | None = None
        self.is_quick = True
        self.at_once: list[Position] = []  # that were written so
        self.closed = False

    async def first(self) -> Position | None:
        return self.stream.entries[0][0] if self.stream.entries else None

    async def last(self) -> Position | None:
        return self.stream.last

    async def take_over(
        self, opening: Callable[[Position], bytes], *, known: Position | None = None
    ) -> Position:
        while True:
            if (self.stream.last or GENESIS) < (known or GENESIS):
                raise JournalLost(f"reached {known} before, and now ends at {self.stream.last}")
            position = (self.stream.last or GENESIS).opening()
            payload = opening(position)
            await self.delay()
            try:
                self.stream.add(position, payload)
            except Fenced:
                continue
            self.acknowledged = position
            return position

    def append_at_once(
        self, position: Position, payload: bytes, meanwhile: Callable[[], object]
    ) -> bool:
        if self.acknowledged is None or position != self.acknowledged.next():
            raise ValueError(f"cannot append {position} after {self.acknowledged}")
        last = self.stream.last or GENESIS
        if self.faults or self.closed or not self.is_quick or not GENESIS < last < position:
            return False
        meanwhile()
        self.stream.add(position, payload)
        self.acknowledged = position
        self.at_once.append(position)
        return True

    async def append(self, position: Position, payload: bytes) -> None:
        if self.acknowledged is None or position != self.acknowledged.next():
            raise ValueError(f"cannot append {position} after {self.acknowledged}")
        fault = self.faults.popleft() if self.faults else None
        await self.delay()
        if fault == "refuse" or self.closed:
            raise JournalUnavailable("refused")
        if fault == "lose_request":
            raise ports.AppendInDoubt(str(position))
        if self.stream.last is None:
            raise JournalLost("the stream has vanished")
        self.stream.add(position, payload)
        if fault == "lose_reply":
            raise ports.AppendInDoubt(str(position))
        self.acknowledged = position

    async def read(
        self, after: Position | None, upto: Position | None = None
    ) -> AsyncIterator[Entry]:
        for entry in self.stream.following(after):
            if upto is not None and entry[0] > upto:
                return
            yield entry

    async def tail(self, after: Position) -> AsyncIterator[list[Entry]]:
        while not self.closed:
            grown = self.stream.grown
            if entries := self.stream.following(after):
                yield entries
                after = entries[-1][0]
            else:
                await grown.wait()
        raise JournalUnavailable("closed")

    async def trim(self, before: Position) -> int:
        if self.acknowledged is None:
            raise ValueError("only its owner trims")
        await self.delay()
        if self.stream.last is None or self.stream.last.epoch != self.acknowledged.epoch:
            raise Fenced(f"the stream is at {self.stream.last}")
        return self.stream.cut(before)

    async def close(self) -> None:
        self.closed = True
        self.stream.wake()
