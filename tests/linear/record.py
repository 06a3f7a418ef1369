"""Asks real clients and keeps what they saw: the history that `search.check` looks at.

An interval is that of the whole logical call, from the first attempt to the answer, whatever the
client library repeats meanwhile. All clients are in one process and read one clock.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc.aio
import numpy as np

from adapters.client import Batch, Client, Unavailable
from adapters.client.peers import Peer, Peers
from adapters.client.values import Result, ReturnLine
from engine.operations import Disposition, Kind
from onhand.v1 import availability_pb2, common_pb2, directory_pb2
from tests.linear import convert
from tests.linear.history import LOOK_UP, READ, Answer, Call, Key, Operation
from tests.linear.spec import Cell

READ_TIMEOUT_S: Final = 2.0
REASON: Final = 7  # of all adjustments


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, the first time and again. `batch`: by Submit, answered with availability or not.

    Its calls have the ids of their holds already (`convert.named`): a reserve that nobody answers
    may have made its hold all the same.
    """

    op_id: bytes
    calls: tuple[Call, ...]
    batch: bool = False
    want_available: bool = True


class Recorder:
    """The history, and the ways to add to it. One for all clients, whose `name`s tell them apart."""

    def __init__(self) -> None:
        self.history: list[Operation] = []
        self._open: list[tuple[str, int, Request]] = []  # without an answer so far
        self._grown = asyncio.Event()

    async def reached(self, operations: int) -> None:
        """Wait until the history is so long."""
        while len(self.history) < operations:
            self._grown.clear()
            await self._grown.wait()

    async def ask(self, client: Client, name: str, request: Request) -> None:
        """Send a request until the client's patience ends."""
        await self._ask(client, name, request, time.perf_counter_ns())

    async def ask_again(self, client: Client, *, but: int) -> int:
        """Send what was not answered once more, but for the first few: who asked has given up.

        Returns how many were sent.
        """
        again, self._open = self._open[but:], self._open[:but]
        for name, began, request in again:
            await self._ask(client, name, request, began)
        for name, began, request in self._open:
            self.history.append(Operation(name, began, None, request.calls))
        return len(again)

    async def _ask(self, client: Client, name: str, request: Request, began: int) -> None:
        send = _submit if request.batch else _call
        try:
            status, available, at_ns = await send(client, request)
        except Unavailable:
            self._open.append((name, began, request))
            return
        ended = time.perf_counter_ns()
        answers = convert.answers(request.calls, status, available)
        self._note(name, began, ended, request.calls, answers, at_ns)

    async def look_up(self, client: Client, name: str, hold_id: bytes) -> None:
        """Look a hold up; one that is not answered is not kept, because it says nothing."""
        began = time.perf_counter_ns()
        with suppress(Unavailable):
            hold = await client.get_hold(hold_id)
            ended = time.perf_counter_ns()
            answer: Answer = ((None,),)
            if hold is not None:
                lines = [(each.pending, each.committed, each.fulfilled) for each in hold.lines]
                answer = ((hold.state,), *lines)
            self._note(name, began, ended, (Call(LOOK_UP, hold=hold_id),), (answer,), None)

    async def read(self, reader: "ShardReader", name: str, keys: Sequence[Key]) -> bool:
        """Read cells at one moment; whether there was an answer."""
        began = time.perf_counter_ns()
        cells = await reader.cells(keys)
        ended = time.perf_counter_ns()
        if cells is not None:
            calls = tuple(Call(READ, ((key, 0),)) for key in keys)
            self._note(name, began, ended, calls, tuple((cell,) for cell in cells), None)
        return cells is not None

    def _note(
        self,
        name: str,
        began: int,
        ended: int,
        calls: tuple[Call, ...],
        answers: tuple[Answer, ...],
        at_ns: int | None,
    ) -> None:
        self.history.append(Operation(name, began, ended, calls, answers, at_ns))
        self._grown.set()


class ShardReader:
    """Reads cells of a shard from the shard itself, and from nowhere else.

    `Client.get_cells` goes to the gateway's mirror when the shard is out of reach, and a mirror may
    be behind: that is no fault, and no reading of the shard either.
    """

    def __init__(self, gateway: str, shard: int = 0) -> None:
        self._gateway = gateway
        self._shard = shard
        self._peers = Peers()
        self._address = ""

    async def cells(self, keys: Sequence[Key]) -> list[Cell] | None:
        """Some cells, in order; None when the shard does not answer."""
        request = availability_pb2.GetCellsRequest(
            cells=[
                availability_pb2.CellName(
                    sku=common_pb2.Sku(id=sku), location=common_pb2.Location(id=at)
                )
                for sku, at in keys
            ]
        )
        try:
            peer = await self._peer()
            reply = await peer.availability.GetCells(request, timeout=READ_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            self._address = ""
            return None
        return [Cell(*(getattr(cell, name) for name in Cell._fields)) for cell in reply.cells]

    async def close(self) -> None:
        await self._peers.keep(set())

    async def _peer(self) -> Peer:
        if not self._address:
            directory = self._peers.at(self._gateway).directory
            request = directory_pb2.GetShardMapRequest()
            shard_map = await directory.GetShardMap(request, timeout=READ_TIMEOUT_S)
            (self._address,) = (
                each.address for each in shard_map.shards if each.number == self._shard
            )
        return self._peers.at(self._address)


Answered: TypeAlias = tuple[list[int], list[int] | None, int]  # status and available a line; at_ns


async def _submit(client: Client, request: Request) -> Answered:
    columns: dict[str, Any] = convert.columns(request.calls)
    high, low = columns.pop("hold_hi"), columns.pop("hold_lo")
    hold = np.stack([high, low], axis=1).astype(">u8").view(np.uint8)
    told = request.want_available
    result = await client.submit(
        Batch(**columns, hold=hold), op_id=request.op_id, want_available=told
    )
    (now_ns,) = set(result.now_ns.tolist())
    available = None if result.available is None else result.available.tolist()
    return result.status.tolist(), available, now_ns


async def _call(client: Client, request: Request) -> Answered:
    result: Result = await _unary(client, request.calls, request.op_id)
    status = [int(line.status) for line in result.lines]
    return status, [line.available for line in result.lines], result.now_ns


async def _unary(client: Client, calls: Sequence[Call], op_id: bytes) -> Any:
    """Send calls of one kind as one unary call, and give its Result."""
    first = calls[0]
    lines = [(*key, quantity) for call in calls for key, quantity in call.lines]
    match first.kind:
        case Kind.RESERVE:
            return await client.reserve(lines, ttl_ms=first.value, op_id=op_id)
        case Kind.COMMIT:
            rest = calls[-1].release_rest
            return await client.commit(first.hold, lines, release_rest=rest, op_id=op_id)
        case Kind.RETURN:
            back = [
                ReturnLine(*key, quantity, Disposition(call.value))
                for call in calls
                for key, quantity in call.lines
            ]
            return await client.return_(back, op_id=op_id)
        case Kind.ADJUST:
            return await client.adjust(lines, reason=first.value, op_id=op_id)
        case Kind.RELEASE | Kind.FULFIL | Kind.CANCEL:
            method = getattr(client, first.kind.name.lower())
            return await method(first.hold, lines, op_id=op_id)
        case Kind.SALE | Kind.RECEIVE | Kind.COUNT | Kind.SET_SAFETY_STOCK:
            method = getattr(client, first.kind.name.lower())
            return await method(lines, op_id=op_id)
    raise ValueError(f"{first.kind}: not a unary call")
