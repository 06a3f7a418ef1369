"""Asks real clients and keeps what they saw: the history that `search.check` looks at.

An interval is that of the whole logical call, from the first attempt to the answer, whatever the
client library repeats meanwhile. All clients are in one process and read one clock.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import grpc.aio
import numpy as np

from adapters.client import Batch, Client, Unavailable
from adapters.client.peers import Peer, Peers
from adapters.client.values import ReturnLine
from engine.operations import Disposition, Kind
from onhand.v1 import availability_pb2, common_pb2, directory_pb2
from tests.linear import convert
from tests.linear.history import LOOK_UP, READ, Answer, Call, Key, Operation
from tests.linear.spec import Cell

READ_TIMEOUT_S: Final = 2.0
REASON: Final = 7  # of all adjustments


class Recorder:
    """The history, and the ways to add to it. One for all clients, whose `name`s tell them apart.

    Calls have the ids of their holds already (`convert.named`): a reserve that nobody answers may
    have made its hold all the same.
    """

    def __init__(self) -> None:
        self.history: list[Operation] = []

    async def unary(self, client: Client, name: str, op_id: bytes, calls: tuple[Call, ...]) -> None:
        """One unary call: an order, or facts of one kind, or parts of one hold."""
        began = time.perf_counter_ns()
        try:
            result = await _ask(client, calls, op_id)
        except Unavailable:
            self._lost(name, began, calls)
            return
        ended = time.perf_counter_ns()
        status = [line.status for line in result.lines]
        answers = convert.answers(calls, status, [line.available for line in result.lines])
        self._note(name, began, ended, calls, answers, result.now_ns)

    async def batch(
        self,
        client: Client,
        name: str,
        op_id: bytes,
        calls: tuple[Call, ...],
        *,
        want_available: bool,
    ) -> None:
        """One Submit of any calls."""
        columns: dict[str, Any] = convert.columns(calls)
        high, low = columns.pop("hold_hi"), columns.pop("hold_lo")
        hold = np.stack([high, low], axis=1).astype(">u8").view(np.uint8)
        began = time.perf_counter_ns()
        try:
            result = await client.submit(
                Batch(**columns, hold=hold), op_id=op_id, want_available=want_available
            )
        except Unavailable:
            self._lost(name, began, calls)
            return
        ended = time.perf_counter_ns()
        (now_ns,) = set(result.now_ns.tolist())
        available = None if result.available is None else result.available.tolist()
        answers = convert.answers(calls, result.status.tolist(), available)
        self._note(name, began, ended, calls, answers, now_ns)

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

    def _lost(self, name: str, began: int, calls: tuple[Call, ...]) -> None:
        self.history.append(Operation(name, began, None, calls))


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


async def _ask(client: Client, calls: Sequence[Call], op_id: bytes) -> Any:
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
