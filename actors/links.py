"""A shard in another process, called by way of Ray, and the side that serves such calls.

A Ray call takes a millisecond whatever it carries, so requests are batched as the journal batches
blocks: whatever gathers while calls are out goes together into the next one; when idle, a request
leaves at once. No timer waits for company.

A call of several steps is right as long as no other gateway's stand between them. So a gateway's calls
carry the epoch of its catalogue, which is a fencing token: once a shard has heard of a newer one, it
takes nothing from older gateways any more (`LinkServer`), and these end themselves.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from actors.ports import (
    CellTable,
    Fenced,
    Overloaded,
    Position,
    ShardLink,
    Sight,
    Unavailable,
    Waiting,
)
from actors.service import ActorBusy, ClusterError
from engine import limits, wire
from engine.history import History
from engine.operations import Answer, Request
from engine.views import Cell, DatedIncoming, Hold, Incoming

CALLS_IN_FLIGHT: Final = 2  # one is being applied while the next is on its way
CALL_LINES: Final = limits.MAX_BATCH_LINES  # of one call, unless a single request has more; with
# all columns 370 KB, so that it goes inline (`environment.INLINE_BYTES`)
CALL_REQUESTS: Final = 1_024
QUEUED_LINES: Final = 16 * CALL_LINES
QUEUED_REQUESTS: Final = 8_192

_log = logging.getLogger(__name__)


class Caller(Protocol):
    """What is needed of `actors.cluster.Handle`."""

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the service; raises ClusterError, and what the method raised."""


@dataclass(slots=True)
class _Waiting:
    request: Request
    answer: asyncio.Future[Answer]


class RemoteShard:
    """A `ports.ShardLink` to a shard in another process; its event loop's own.

    `epoch` is that of the gateway's catalogue. `on_fenced` is told when another gateway has a newer one.
    """

    def __init__(
        self, number: int, handle: Caller, epoch: int, on_fenced: Callable[[Fenced], None]
    ) -> None:
        self._number = number
        self._handle = handle
        self._epoch = epoch
        self._on_fenced = on_fenced
        self._queue: deque[_Waiting] = deque()
        self._queued_lines = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._scheduled = False

    @property
    def number(self) -> int:
        """The shard's number, from 0."""
        return self._number

    async def submit(self, request: Request) -> Answer:
        """Send a request with whatever else waits, and wait for its answer."""
        if len(self._queue) >= QUEUED_REQUESTS or self._queued_lines + request.lines > QUEUED_LINES:
            raise Overloaded(f"{self._queued_lines} lines wait for shard {self._number} already")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, loop.create_future())
        self._queue.append(waiting)
        self._queued_lines += request.lines
        if not self._scheduled and len(self._calls) < CALLS_IN_FLIGHT:
            # At the end of this turn of the loop, so that what arrives in the same turn goes along.
            self._scheduled = True
            loop.call_soon(self._send)
        return await waiting.answer

    async def hold(self, hold_id: bytes, *, sure: bool = False) -> Hold | None:
        """Look up this shard's part of a hold."""
        return wire.decode_hold(await self._ask("hold", hold_id, sure))

    async def sight(self, hold_id: bytes, op_ids: Sequence[bytes] = ()) -> Sight:
        """Tell what this shard knows of a hold, to write by it."""
        told = await self._ask("sight", hold_id, list(op_ids))
        hold, waiting, digests, done, forgotten = told
        return Sight(
            wire.decode_hold(hold),
            [Waiting(digest, wire.decode_hold(each)) for digest, each in waiting],
            digests,
            done,
            forgotten,
        )

    async def incoming(self, incoming_id: bytes, *, sure: bool = False) -> Incoming | None:
        """Look up this shard's part of an incoming record."""
        return wire.decode_incoming(await self._ask("incoming", incoming_id, sure))

    async def incoming_of(self, names: Sequence[tuple[int, int]]) -> list[DatedIncoming]:
        """Find what is outstanding for cells (sku id, location id), by cell and date."""
        return wire.decode_dated(await self._ask("incoming_of", list(names)))

    async def history(self, hold_id: bytes) -> History:
        """Find the operations on this shard's part of a hold."""
        return wire.decode_history(await self._ask("history", hold_id))

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id)."""
        return wire.decode_cells(await self._ask("cells", list(names)))

    async def table(self, locations: Sequence[int] | None = None) -> CellTable:
        """Copy the rows of some locations, or all rows."""
        told = None if locations is None else list(locations)
        epoch, seq, now_ns, cells = await self._ask("table", told)
        return CellTable(Position(epoch, seq), now_ns, cells)

    async def close(self) -> None:
        """Answer what waits with Unavailable, and let go of calls that are out."""
        for waiting in self._queue:
            _end(waiting, Unavailable(f"shard {self._number}: this process stops"))
        self._queue.clear()
        self._queued_lines = 0
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _send(self) -> None:
        """Send what waits, in as many calls as may be out."""
        self._scheduled = False
        while self._queue and len(self._calls) < CALLS_IN_FLIGHT:
            batch = self._take()
            if batch:
                call = asyncio.create_task(self._submit_many(batch))
                self._calls.add(call)
                call.add_done_callback(self._sent)

    def _sent(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            self._send()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        lines = 0
        while self._queue and len(batch) < CALL_REQUESTS:
            waiting = self._queue[0]
            if batch and lines + waiting.request.lines > CALL_LINES:
                break
            self._queue.popleft()
            self._queued_lines -= waiting.request.lines
            if not waiting.answer.done():  # else its caller has gone, and nothing was sent
                batch.append(waiting)
                lines += waiting.request.lines
        return batch

    async def _submit_many(self, batch: list[_Waiting]) -> None:
        try:
            payload = wire.encode_requests([waiting.request for waiting in batch])
            answers = wire.decode_answers(await self._ask("submit_many", payload))
            for waiting, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Answer):
                    if not waiting.answer.done():
                        waiting.answer.set_result(answer)
                else:
                    _end(waiting, _error(*answer))
        except asyncio.CancelledError:
            for waiting in batch:
                _end(waiting, Unavailable(f"shard {self._number}: this process stops"))
            raise
        except (Overloaded, Unavailable) as error:
            for waiting in batch:
                _end(waiting, type(error)(*error.args))
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear
            # A bug, here or there. Each caller is told, and nothing of it is swallowed.
            _log.exception("shard %d failed a call", self._number)
            for waiting in batch:
                _end(waiting, RuntimeError(f"shard {self._number} failed a call: {error!r}"))

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            return await self._handle.call(method, self._epoch, *args)
        except Fenced as error:
            self._on_fenced(error)
            raise Unavailable(f"shard {self._number}: {error}") from error
        except ActorBusy as error:
            raise Overloaded(f"shard {self._number}: {error}") from error
        except ClusterError as error:
            raise Unavailable(f"shard {self._number}: {error}") from error


def _end(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _error(kind: str, why: str) -> Exception:
    return Overloaded(why) if kind == wire.OVERLOADED else Unavailable(why)


# --- the serving side ---------------------------------------------------------------------------


class LinkServer:
    """Answers calls of `RemoteShard`, in the shard's process, of the newest gateway alone.

    `catalogue_epoch` is the newest that the shard has read: so one that has just started knows what
    its predecessor knew, since a gateway opens its epoch before it calls anybody.
    """

    def __init__(self, link: ShardLink, catalogue_epoch: Callable[[], int]) -> None:
        self._link = link
        self._catalogue_epoch = catalogue_epoch
        self._newest = 0  # of those that have called
        self._writes: Counter[int] = Counter()  # calls under way that may write, by epoch
        self._written = asyncio.Event()  # one of them has ended

    async def serve(self, method: str, epoch: int, *args: Any) -> Any:
        """Answer a call of a gateway whose catalogue is of `epoch`: what `Service.call` passes on.

        What older gateways wrote is done before a newer one is answered anything. Fenced for an older
        one; KeyError for a method that is none of a link's.
        """
        self._check(epoch)
        while min(self._writes, default=epoch) < epoch:
            self._written.clear()
            await self._written.wait()
            self._check(epoch)
        if method != "submit_many":
            return await _serve(self._link, method, *args)
        self._writes[epoch] += 1
        try:
            return await serve_submit_many(self._link, *args)
        finally:
            self._writes[epoch] -= 1
            self._writes = +self._writes
            self._written.set()

    def _check(self, epoch: int) -> None:
        self._newest = max(self._newest, self._catalogue_epoch(), epoch)
        if epoch < self._newest:
            raise Fenced(f"a gateway of epoch {self._newest} has replaced the one of {epoch}")


async def _serve(link: ShardLink, method: str, *args: Any) -> Any:
    match method:
        case "hold":
            hold_id, sure = args
            return wire.encode_hold(await link.hold(hold_id, sure=sure))
        case "sight":
            sight = await link.sight(*args)
            waiting = [(each.digest, wire.encode_hold(each.hold)) for each in sight.waiting]
            hold = wire.encode_hold(sight.hold)
            return hold, waiting, sight.digests, sight.done, sight.forgotten
        case "incoming":
            incoming_id, sure = args
            return wire.encode_incoming(await link.incoming(incoming_id, sure=sure))
        case "incoming_of":
            return wire.encode_dated(await link.incoming_of(*args))
        case "history":
            return wire.encode_history(await link.history(*args))
        case "cells":
            return wire.encode_cells(await link.cells(*args))
        case "table":
            table = await link.table(*args)
            return table.at.epoch, table.at.seq, table.now_ns, np.ascontiguousarray(table.cells)
        case _:
            raise KeyError(method)


async def serve_submit_many(link: ShardLink, payload: bytes) -> bytes:
    """Submit requests that came together, and answer them together."""
    requests = wire.decode_requests(payload)
    return wire.encode_answers(
        await asyncio.gather(*(_submit(link.submit(request)) for request in requests))
    )


async def _submit(answer: Awaitable[Answer]) -> Answer | tuple[str, str]:
    try:
        return await answer
    except Overloaded as error:
        return wire.OVERLOADED, str(error)
    except Unavailable as error:
        return wire.UNAVAILABLE, str(error)
