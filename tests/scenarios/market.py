"""Shards, routers before them and the way between, on which a seed decides who comes first.

The shards are real and write to journals in memory. What travels takes its time, so of the calls
that are under way together any may be judged first, and it may be lost, there or back: who was not
answered asks again with the same id, as the client library does.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from actors.ports import CellTable, Sight, Unavailable
from actors.router import Router
from actors.shard import Shard
from engine import limits
from engine.block import Place
from engine.history import History
from engine.memory import AnswerMemory
from engine.operations import Answer, Kind, Request, line_id
from engine.reference import Key, Line
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import Cell, Hold, HoldState
from tests.fakes.journal import FakeJournal, MemoryStream
from tests.fakes.stores import FakeCatalogue, FakeSnapshots
from tests.property.histories import linked, request
from tests.property.shop import hold_id, receive

MAP = ShardMap(1, 2)  # odd locations are shard 0's, even ones shard 1's
SKUS, LOCATIONS = 100, 6
PATIENCE_S = 30.0  # nobody waits so long but for somebody who waits for ever

_T = TypeVar("_T")


class Schedule:
    """Lets others go first, as often as its seed says."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    async def pause(self) -> None:
        for _ in range(self.draw.choice((0, 0, 1, 2, 5, 13))):
            await asyncio.sleep(0)


class Places(FakeCatalogue):
    """The locations as one shard of the map sees them."""

    def __init__(self, number: int) -> None:
        super().__init__(SKUS, LOCATIONS)
        self.number = number

    def places(self, known: int) -> Iterator[Place]:
        for location in range(known + 1, self.locations + 1):
            owned, split, part = MAP.place(location, self.number)
            yield Place(location, owned, 840, split, part)


class Link:
    """A shard far away. `lossy`: how likely it is, each way, that what is sent never arrives."""

    def __init__(self, market: "Market", number: int) -> None:
        self.market, self.number = market, number
        self.lossy = 0.0

    async def submit(self, request: Request) -> Answer:
        await self._travel()
        answer = await self.market.shards[self.number].submit(request)
        await self._travel()
        return answer

    async def hold(self, hold_id: bytes, *, sure: bool = False) -> Hold | None:
        await self.market.schedule.pause()
        return await self.market.shards[self.number].hold(hold_id, sure=sure)

    async def sight(self, hold_id: bytes, op_ids: Sequence[bytes] = ()) -> Sight:
        await self.market.schedule.pause()
        return await self.market.shards[self.number].sight(hold_id, op_ids)

    async def history(self, hold_id: bytes) -> History:
        return await self.market.shards[self.number].history(hold_id)

    async def cells(self, names: Sequence[Key]) -> list[Cell | None]:
        return await self.market.shards[self.number].cells(names)

    async def table(self, locations: Sequence[int] | None = None) -> CellTable:
        return await self.market.shards[self.number].table(locations)

    async def _travel(self) -> None:
        await self.market.schedule.pause()
        if self.market.schedule.draw.random() < self.lossy:
            raise Unavailable("lost on the way")


class Market:
    """Two shards. Calls go through a router, or two that know nothing of each other."""

    def __init__(self, seed: int, remembered: int = limits.REMEMBERED_REQUESTS) -> None:
        self.schedule = Schedule(seed)
        self.remembered = remembered
        self.now_ns = 10**18
        self.streams = [MemoryStream(), MemoryStream()]
        self.shards: list[Shard] = []
        self.links = [Link(self, number) for number in range(2)]
        self.routers = [Router(dict(enumerate(self.links)), lambda: MAP) for _ in range(2)]
        self.ids: list[bytes] = []  # of all holds that there may be
        self._asked = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, seed: int, *, lossy: float = 0.0, remembered: int = limits.REMEMBERED_REQUESTS
    ) -> AsyncIterator["Market"]:
        """Open with empty shelves; at the end the books must be right, and replay to the same.

        `remembered`: of so many requests a shard knows the op_ids.
        """
        market = cls(seed, remembered)
        await market.start()
        for link in market.links:
            link.lossy = lossy
        yield market
        await market.check_books()
        hashes = [shard.machine.state_hash for shard in market.shards]
        await market.stop()
        await market.start()
        assert [shard.machine.state_hash for shard in market.shards] == hashes
        await market.stop()

    async def start(self) -> None:
        self.shards = [
            Shard(
                number, FakeJournal(stream, self.schedule.pause), FakeSnapshots(stream), Places(number),
                stop_process=_fail, clock=self._clock, memory=AnswerMemory(self.remembered),
            )
            for number, stream in enumerate(self.streams)
        ]  # fmt: skip
        for shard in self.shards:
            await shard.start()

    async def stop(self) -> None:
        for shard in self.shards:
            await shard.stop()

    def _clock(self) -> int:
        self.now_ns += 1_000
        return self.now_ns

    # --- what clients do --------------------------------------------------------------------------

    async def order(self, name: str, *lines: Line) -> Status:
        """Reserve lines of one order, all or none, until it is answered."""
        self.ids.append(hold_id(name))
        asked = request(hold_id(name), linked(lines))
        answer = await self.ask(lambda router: router.reserve(asked))
        statuses = {Status(each) for each in answer.status} - {Status.LINKED_LINE_REFUSED}
        (status,) = statuses
        return status

    async def call(self, name: str, line: Line) -> Status:
        """An operation on a hold; `name` is this call's own."""
        asked = request(hold_id(name), [line])
        answer = await self.ask(lambda router: router.on_hold(asked))
        return Status(answer.status[0])

    async def move(self, name: str, line: Line) -> Status:
        """Move a hold to another location; `name` is this call's own."""
        asked = request(hold_id(name), [line])
        answer = await self.ask(lambda router: router.move(asked))
        return Status(answer.status[0])

    async def batch(self, name: str, *lines: Line) -> list[Status]:
        """Submit lines that are judged one by one."""
        self.ids += [
            line_id(hold_id(name), i) for i, line in enumerate(lines) if line.kind == Kind.RESERVE
        ]
        asked = request(hold_id(name), lines)
        answer = await self.ask(lambda router: router.submit(asked))
        return [Status(each) for each in answer.status]

    async def ask(self, send: Any) -> Answer:
        """Send by any router, again and again, until there is an answer."""
        await self.schedule.pause()
        while True:
            try:
                _, answer = await send(self.schedule.draw.choice(self.routers))
            except Unavailable:
                await self.schedule.pause()
            else:
                return answer

    async def all(self, calls: Iterable[Awaitable[_T]]) -> list[_T]:
        """Everybody at once. Nobody may wait for ever."""
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.gather(*calls)

    async def stock(self, units: Mapping[Key, int]) -> None:
        """Fill shelves."""
        received = [receive(each, cell) for cell, each in units.items()]
        assert set(await self.batch(f"stock {self.now_ns}"[-14:], *received)) == {Status.OK}

    async def forget(self) -> None:
        """Have each shard asked so much else that it forgets every request of before that it may."""
        for shard in self.shards:
            for _ in range(2 * self.remembered):
                self._asked += 1
                op_id = b"something else" + self._asked.to_bytes(2, "big")
                await shard.submit(Request.of(op_id, 1, kind=Kind.COMMIT, hold_lo=1))

    # --- what there is ----------------------------------------------------------------------------

    async def cell(self, key: Key) -> Cell:
        (cell,) = await self.routers[0].cells([key])
        assert cell is not None
        return cell

    async def hold(self, name: str) -> Hold | None:
        return await self.routers[0].hold(hold_id(name))

    async def units(self, name: str) -> tuple[int, int, int]:
        """(pending, committed, fulfilled) of a hold, over all its lines."""
        hold = await self.hold(name)
        lines = hold.lines if hold else []
        return (
            sum(line.pending for line in lines),
            sum(line.committed for line in lines),
            sum(line.fulfilled for line in lines),
        )

    async def check_books(self) -> None:
        """What is reserved and committed of each cell is what the holds say, and no more."""
        held: dict[Key, list[int]] = {}
        for each in self.ids:
            hold = await self.routers[0].hold(each)
            for line in hold.lines if hold else ():
                units = held.setdefault((line.sku, line.location), [0, 0])
                units[0] += line.pending
                units[1] += line.committed
        for shard in self.shards:
            assert shard.machine.audit() == []
            table = await shard.table()
            for row in table.cells.tolist():
                key = row[0] & 0xFFFFFFFF, row[0] >> 32
                cell = shard.machine.cell(*key)
                assert cell is not None
                assert [cell.reserved, cell.committed] == held.get(key, [0, 0])

    async def pending(self) -> int:
        """How many holds have something pending."""
        holds = [await self.routers[0].hold(each) for each in self.ids]
        return sum(hold is not None and hold.state == HoldState.PENDING for hold in holds)


def _fail(reason: str) -> NoReturn:
    raise AssertionError(reason)
