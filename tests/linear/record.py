"""Asks real clients and keeps what they saw: the history that `search.check` looks at.

An interval is that of the whole logical call, from the first attempt to the answer, whatever the
client library repeats meanwhile. All clients are in one process and read one clock.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NamedTuple, TypeAlias

import grpc.aio
import numpy as np

from adapters.client import Batch, Client, Unavailable
from adapters.client.peers import Peer, Peers
from adapters.client.values import (
    Bucket,
    InspectLine,
    PriceLine,
    Result,
    ReturnLine,
)
from engine.operations import HANDOVER_KINDS, PART_KINDS, Disposition, Flag, Kind
from engine.status import Status
from onhand.v1 import availability_pb2, common_pb2, directory_pb2
from tests.linear import convert
from tests.linear.history import (
    ARRIVE,
    LOOK_UP,
    LOSE,
    READ,
    SHIP,
    SHIPPED,
    Answer,
    Call,
    Key,
    Operation,
)
from tests.linear.state import Cell

READ_TIMEOUT_S: Final = 2.0
ON_HOLD: Final = (*PART_KINDS, Kind.EXTEND, Kind.MOVE, Kind.CANCEL_INCOMING)

_BUCKETS: Final = {
    0: Bucket.SELLABLE,
    Flag.DAMAGED: Bucket.DAMAGED,
    Flag.QUALITY_CONTROL: Bucket.QUALITY_CONTROL,
}


class Way(Enum):
    """By which of its methods a client is asked."""

    CALL = auto()  # one call about stock
    BATCH = auto()  # Submit
    TRANSFER = auto()  # one call about transfers, which only the gateway takes


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, the first time and again. A batch is answered with availability or not.

    Its calls have the ids of their holds already (`convert.named`): a reserve that nobody answers
    may have made its hold all the same. `at` is a location: where a call on all of a hold, or of a
    transfer, has to look for it (0: everywhere); of a transfer that is asked for, where it goes.
    """

    op_id: bytes
    calls: tuple[Call, ...]
    way: Way = Way.CALL
    want_available: bool = True
    at: int = 0


Told: TypeAlias = tuple[Call, bool]
"""A call, and whether anything of it was done."""


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

    async def ask(self, client: Client, name: str, request: Request) -> list[Told]:
        """Send a request until the client's patience ends; empty when it was not answered."""
        return await self._ask(client, name, request, time.perf_counter_ns())

    async def ask_again(self, client: Client, *, but: int) -> int:
        """Send what was not answered once more, but for the shortest few: who asked has given up.

        Returns how many were sent. Short ones, because of each line that nobody was told of any
        outcome is possible, at any time, and too many of these take too long to try.
        """
        self._open.sort(key=lambda each: len(each[2].calls))
        again, self._open = self._open[but:], self._open[:but]
        for name, began, request in again:
            await self._ask(client, name, request, began)
        for name, began, request in self._open:
            for calls, _, _ in _steps(request, None):
                self.history.append(Operation(name, began, None, calls))
        return len(again)

    async def _ask(self, client: Client, name: str, request: Request, began: int) -> list[Told]:
        send = {Way.CALL: _call, Way.BATCH: _submit, Way.TRANSFER: _transfer}[request.way]
        try:
            answered = await send(client, request)
        except Unavailable:
            self._open.append((name, began, request))
            return []
        ended = time.perf_counter_ns()
        found: list[Told] = []
        for calls, answers, at_ns in _steps(request, answered):
            self._note(name, began, ended, calls, answers, at_ns)
            for call, lines in zip(calls, answers, strict=True):
                found.append((call, any(line[0] == Status.OK for line in lines)))
        return found

    async def look_up(self, client: Client, name: str, hold_id: bytes) -> None:
        """Look a hold up; one that is not answered is not kept, because it says nothing."""
        began = time.perf_counter_ns()
        with suppress(Unavailable):
            hold = await client.get_hold(hold_id)
            ended = time.perf_counter_ns()
            answer: Answer = ((None, None),)
            if hold is not None:
                told = ("sku", "location", "pending", "committed", "fulfilled", "returned")
                answer = ((hold.state, hold.deadline_ns), *_told(hold.lines, told))
            self._note(name, began, ended, (Call(LOOK_UP, hold=hold_id),), (answer,), None)

    async def look_up_incoming(self, client: Client, name: str, call: Call) -> None:
        """Look a record up, as a call says it."""
        began = time.perf_counter_ns()
        with suppress(Unavailable):
            record = await client.get_incoming(call.hold)
            ended = time.perf_counter_ns()
            answer: Answer = ((None, None),)
            if record is not None:
                told = ("sku", "location", "expected", "outstanding", "received")
                answer = ((record.state, record.expected_at_ms), *_told(record.lines, told))
            self._note(name, began, ended, (call,), (answer,), None)

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


def _told(lines: Iterable[Any], names: Sequence[str]) -> list[tuple[Any, ...]]:
    return [tuple(getattr(line, name) for name in names) for line in lines]


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


# --- to a client and back -------------------------------------------------------------------------


class Answered(NamedTuple):
    """What a request was answered: values a line, and the time of its block."""

    status: list[int]
    available: list[int] | None
    granted: list[int]
    at_ns: int


def _steps(
    request: Request, answered: Answered | None
) -> Iterator[tuple[tuple[Call, ...], Any, int | None]]:
    """What is done of a request at one moment each, with what that was answered and when it was."""
    calls, answers, at_ns = request.calls, None, None
    if answered is not None:
        answers = convert.answers(calls, answered.status, answered.available, answered.granted)
        at_ns = answered.at_ns
    yield calls, answers, at_ns
    for place, call in enumerate(calls):
        if call.kind != SHIP:
            continue
        there = tuple(((sku, call.value), units) for (sku, _), units in call.lines)
        shipped = Call(SHIPPED, there, call.hold, other=call.other)
        if answers is None:
            yield (shipped,), None, None
        elif any(status == Status.OK for status, _ in answers[place]):
            yield (shipped,), (((Status.OK,),),), None


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
    return Answered(result.status.tolist(), available, result.granted.tolist(), now_ns)


def _answered(result: Result) -> Answered:
    lines = result.lines
    return Answered(
        [int(line.status) for line in lines],
        [line.available for line in lines],
        [line.granted for line in lines],
        result.now_ns,
    )


async def _call(client: Client, request: Request) -> Answered:
    """Send calls of one kind as one call."""
    kind = request.calls[0].kind
    if kind == Kind.RESERVE:
        return _answered(await _reserve(client, request))
    if kind in ON_HOLD:
        return _answered(await _on_hold(client, request))
    return _answered(await _fact(client, request))


async def _reserve(client: Client, request: Request) -> Result:
    (call,) = request.calls
    lines = [(*key, quantity) for key, quantity in call.lines]
    common = {
        "ttl_ms": call.value,
        "commit_now": bool(call.flags & Flag.COMMIT_NOW),
        "op_id": request.op_id,
    }
    if call.returns:
        moment = call.returns[0].occurred_at_ns
        back = _returned(call.returns)
        return await client.exchange(back, lines, occurred_at_ns=moment, **common)
    return await client.reserve(
        lines,
        allow_partial=bool(call.flags & Flag.PARTIAL),
        supersedes=call.other or None,
        **common,
    )


async def _on_hold(client: Client, request: Request) -> Result:
    first, op_id, at = request.calls[0], request.op_id, request.at
    lines = [(*key, quantity) for call in request.calls for key, quantity in call.lines]
    match first.kind:
        case Kind.COMMIT:
            return await client.commit(
                first.hold,
                lines,
                release_rest=bool(first.flags & Flag.RELEASE_REST),
                re_reserve_if_expired=bool(first.flags & Flag.RE_RESERVE),
                location=at or None,
                op_id=op_id,
            )
        case Kind.EXTEND:
            return await client.extend(
                first.hold, ttl_ms=first.value, location=at or None, op_id=op_id
            )
        case Kind.MOVE:
            to = lines[0][1]
            leaving = [
                (sku, call.value, quantity)
                for call in request.calls
                for (sku, _), quantity in call.lines
                if sku
            ]
            return await client.move(first.hold, to, leaving, op_id=op_id)
    method = getattr(client, Kind(first.kind).name.lower())
    when = {"occurred_at_ns": first.occurred_at_ns} if first.kind in HANDOVER_KINDS else {}
    result: Result = await method(first.hold, lines, location=at or None, op_id=op_id, **when)
    return result


async def _fact(client: Client, request: Request) -> Result:
    """What has happened at some moment."""
    calls, op_id = request.calls, request.op_id
    first = calls[0]
    lines = [(*key, quantity) for call in calls for key, quantity in call.lines]
    when = {"occurred_at_ns": first.occurred_at_ns, "op_id": op_id}
    match first.kind:
        case Kind.SALE:
            receipts = [convert.receipt(*call.cells, call.value) for call in calls]
            return await client.sale(lines, receipt_lines=receipts if first.hold else (), **when)
        case Kind.RETURN:
            return await client.return_(_returned(calls), **when)
        case Kind.ADJUST:
            return await client.adjust(lines, reason=first.value, **when)
        case Kind.WRITE_OFF:
            bucket = _BUCKETS[first.flags]
            return await client.write_off(lines, reason=first.value, bucket=bucket, **when)
        case Kind.RECEIVE:
            return await client.receive(lines, incoming_id=first.hold, **when)
        case Kind.COUNT:
            return await client.count(lines, **when)
    return await _timeless(client, request)


async def _timeless(client: Client, request: Request) -> Result:
    """What is so from now on."""
    calls, op_id = request.calls, request.op_id
    first = calls[0]
    lines = [(*key, quantity) for call in calls for key, quantity in call.lines]
    values = [call.value for call in calls]
    match first.kind:
        case Kind.INSPECT:
            looked_at = [
                InspectLine(*line, Disposition(to)) for line, to in zip(lines, values, strict=True)
            ]
            return await client.inspect(looked_at, op_id=op_id)
        case Kind.EXPECT:
            date = first.value
            return await client.expect(
                lines, incoming_id=first.hold, expected_at_ms=date, op_id=op_id
            )
        case Kind.SET_SAFETY_STOCK:
            return await client.set_safety_stock(lines, op_id=op_id)
        case Kind.SET_PRICE:
            prices = [PriceLine(*line[:2], to) for line, to in zip(lines, values, strict=True)]
            return await client.set_prices(prices, currency=convert.CURRENCY, op_id=op_id)
    raise ValueError(f"{first.kind}: not one call")


async def _transfer(client: Client, request: Request) -> Answered:
    first, op_id = request.calls[0], request.op_id
    lines = [(sku, quantity) for call in request.calls for (sku, _), quantity in call.lines]
    (at,) = {at for call in request.calls for (_, at), _ in call.lines} or {request.at}
    if first.kind == Kind.RESERVE:
        return _answered(await client.request_transfer(at, request.at, lines, op_id=op_id))
    if first.kind == SHIP:
        to, when = first.value, first.occurred_at_ns
        return _answered(
            await client.ship_transfer(first.hold, at, to, lines, occurred_at_ns=when, op_id=op_id)
        )
    if first.kind == ARRIVE:
        when = first.occurred_at_ns
        return _answered(
            await client.receive_transfer(first.hold, at, lines, occurred_at_ns=when, op_id=op_id)
        )
    if first.kind == LOSE:
        return _answered(await client.lose_transfer(first.hold, at, lines, op_id=op_id))
    return _answered(await client.cancel_transfer(first.hold, at, lines, op_id=op_id))


def _returned(calls: Iterable[Call]) -> list[ReturnLine]:
    return [
        ReturnLine(*key, quantity, Disposition(call.value), against=call.hold)
        for call in calls
        for key, quantity in call.lines
    ]
