"""A shard behind its real gRPC server, in this process, that can crash and can have a fault built in.

The journal is a stream in memory that outlives crashes. There is no Ray and no gateway of its own:
the server answers for both, and the clients speak to it as to the real ones.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, Self, TypeVar

from actors.ports import Journal, Position
from actors.router import Router
from actors.shard import Shard
from adapters.rpc.availability import AvailabilityServicer
from adapters.rpc.directory import Addresses, DirectoryServicer
from adapters.rpc.price import PriceServicer
from adapters.rpc.server import LOOPBACK, Server, open_server
from adapters.rpc.stock import StockServicer
from adapters.rpc.transfer import TransfersServicer
from engine.catalogue import Catalogue
from engine.catalogue_block import CatalogueBlock
from engine.entries import Location
from engine.machine import Machine
from engine.memory import AnswerMemory
from engine.operations import Answer
from engine.shard_map import ShardMap
from engine.views import Cell
from onhand.v1.availability_pb2_grpc import add_AvailabilityServicer_to_server
from onhand.v1.directory_pb2_grpc import add_DirectoryServicer_to_server
from onhand.v1.price_pb2_grpc import add_PriceServicer_to_server
from onhand.v1.stock_pb2_grpc import add_StockServicer_to_server
from onhand.v1.transfer_pb2_grpc import add_TransfersServicer_to_server
from tests.fakes.journal import FakeJournal, MemoryStream
from tests.fakes.stores import FakeCatalogue, FakeSnapshots
from tests.linear.convert import CURRENCY

DISK_S: Final = 0.002  # until an append is durable, and again until its writer hears of it
FAULT_S: Final = 0.03  # how long what is lost, late or stale is so

_MAP: Final = ShardMap(1, 1)
_T = TypeVar("_T")


class SlowJournal(FakeJournal):
    """Takes its time before a block is durable, and after: a crash may come in between."""

    before_s = DISK_S

    def __init__(self, stream: MemoryStream) -> None:
        super().__init__(stream, partial(asyncio.sleep, self.before_s))

    async def append(self, position: Position, payload: bytes) -> None:
        await super().append(position, payload)
        await asyncio.sleep(DISK_S)

    def crash(self) -> None:
        """What is on its way to the disk is lost."""


class SlowerJournal(SlowJournal):
    """Leaves time to see what is not durable."""

    before_s = 5 * DISK_S


# --- faults ---------------------------------------------------------------------------------------


class HastyJournal(SlowJournal):
    """Says that a block is durable before it is: acknowledged operations are lost in a crash."""

    def __init__(self, stream: MemoryStream) -> None:
        super().__init__(stream)
        self.is_quick = False
        self._on_their_way: set[asyncio.TimerHandle] = set()

    async def append(self, position: Position, payload: bytes) -> None:
        await asyncio.sleep(DISK_S)
        loop = asyncio.get_running_loop()
        self._on_their_way.add(loop.call_later(FAULT_S, self.stream.add, position, payload))
        self.acknowledged = position

    async def last(self) -> Position | None:
        return self.acknowledged

    def crash(self) -> None:
        for each in self._on_their_way:
            each.cancel()


class Forgetful(AnswerMemory):
    """Does not know an op_id again: what is asked again is done again."""

    def recall(self, op_id: bytes) -> tuple[bytes, Answer] | None:
        return None


class DirtyShard(Shard):
    """Shows what is not durable yet, and may never be."""

    async def read(self, look: Callable[[], _T], *, sure: bool = False) -> _T:
        return look()


class StaleShard(Shard):
    """Reads cells from a copy that is behind."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._copies: dict[tuple[tuple[int, int], ...], tuple[float, list[Cell | None]]] = {}

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        now = asyncio.get_running_loop().time()
        taken, cells = self._copies.get(tuple(names), (0.0, []))
        if now > taken + FAULT_S:
            cells = await super().cells(names)
            self._copies[tuple(names)] = now, cells
        return cells


@dataclass(frozen=True, slots=True)
class Parts:
    """What a shard is made of; by default, of sound parts."""

    shard: type[Shard] = Shard
    journal: type[SlowJournal] = SlowJournal
    memory: type[AnswerMemory] = AnswerMemory
    machine: type[Machine] = Machine


# --- the house ------------------------------------------------------------------------------------


class House:
    """The shard that serves, and its successors."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stream = MemoryStream()
        self._snapshots = FakeSnapshots(self._stream)
        self._port = 0

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)
        await self._shard.stop()

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self._port}"

    async def crash(self) -> None:
        """End the shard as SIGKILL would, and have a successor serve at the same address."""
        # Whoever calls has just seen an answer, so by itself this would never meet a late moment of
        # an append.
        await asyncio.sleep(random.uniform(0, 3 * DISK_S))
        for task in (self._shard._task, self._shard._appending):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._journal.crash()
        await self._server.stop(0)
        await self._open()

    async def _open(self) -> None:
        parts = self._parts
        self._journal = parts.journal(self._stream)
        journal: Journal = self._journal
        self._shard = parts.shard(
            0, journal, self._snapshots, FakeCatalogue(),
            stop_process=_stopped, machine=parts.machine(), memory=parts.memory(),
        )  # fmt: skip
        await self._shard.start()
        self._server = await self._serve()
        self._port = self._server.port

    async def _serve(self) -> Server:
        router, catalogue = Router({0: self._shard}, lambda: _MAP), _catalogue()
        prices = PriceServicer(router, router, catalogue)
        services: list[Callable[[Any], None]] = [
            partial(add_StockServicer_to_server, StockServicer(router, catalogue)),
            partial(add_AvailabilityServicer_to_server, AvailabilityServicer(router, catalogue)),
            partial(add_PriceServicer_to_server, prices),
            partial(add_TransfersServicer_to_server, TransfersServicer(router, catalogue)),
            partial(add_DirectoryServicer_to_server, DirectoryServicer(lambda: _MAP, self._places)),
        ]
        return await open_server(services, port=self._port)

    async def _places(self) -> Addresses:
        return {0: (self.address, self._shard.at.epoch)}


def _catalogue() -> Catalogue:
    """What the server knows of the places that `FakeCatalogue` tells the shard of."""
    catalogue = Catalogue()
    places = tuple(Location(f"PLACE-{number}", CURRENCY) for number in range(5))
    catalogue.apply(CatalogueBlock(epoch=1, seq=1, locations=places))
    return catalogue


def _stopped(reason: str) -> NoReturn:
    raise AssertionError(reason)
