"""One shard: the owner of its locations' stock and prices.

It stamps the time, makes blocks of what waits, and answers when they are durable.

Requests queue up while a block is being written and go together into the next one (group commit), so
the rate adapts without a timer. State is touched from one task only, `_run`; reads are done there too,
between two blocks, so that nobody sees what is not durable yet. This room must not know Redis, gRPC
or Ray: the journal, the snapshots and the catalogue are ports, and ending the process is a function.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from actors.histories import Histories
from actors.learning import CatalogueView, Learner
from actors.ports import (
    GENESIS,
    AppendInDoubt,
    CellTable,
    Fenced,
    Journal,
    JournalLost,
    JournalUnavailable,
    Overloaded,
    Position,
    Sight,
    Snapshots,
    Unavailable,
)
from actors.recovery import answers_of, recover
from actors.snapshotting import Snapshotter
from actors.transits import sight_of
from engine import limits
from engine.block import Block, concatenated, encode
from engine.history import History
from engine.kernels import KEY
from engine.machine import Machine, Outcome
from engine.memory import AnswerMemory
from engine.operations import Answer, Request
from engine.status import Status
from engine.views import Cell, DatedIncoming, Hold, Incoming

LEASE_S: Final = 2.0  # reads need proof so recent that no other owner has taken over
IDLE_CHECK_S: Final = 1.0  # how often an idle shard looks whether it still is the owner
GATHER_QUIET_S: Final = 0.0002  # no request for so long: no more are about to come
GATHER_MOST_S: Final = 0.01
GATHER_LINES: Final = 1_024  # so many lines are worth a block
LONE_BLOCKS: Final = 8  # in a row, after which a caller is taken for the only one
LONE_CHECK: Final = 16  # calls of a lone caller, of which one shows whether others have come
# Each block expires what is due before its lines are judged, so no request ever meets a hold that is
# overdue. Blocks for expiries alone are for readers and subscribers, and so may be fewer.
SWEEP_EVERY_S: Final = 0.02
TIDY_HOLDS: Final = 4_096  # that are moved on towards their expiry between two blocks
RETRY_APPEND_S: Final = 0.25  # between tries when the journal is not reachable

_log = structlog.get_logger()
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BlockStats:
    """What one block was, for metrics. Times in seconds; `kinds`, `statuses`: uint8, one a line."""

    requests: int
    kinds: NDArray[np.uint8]
    statuses: NDArray[np.uint8]
    nbytes: int
    expired: int  # holds that ran out: swept, or as they were called on
    endangered: int  # holds of each cell that facts left short of what was promised
    append_s: float
    waits_s: Sequence[float]  # of each request, from its arrival to its answer


@dataclass(slots=True)
class _Waiting:
    request: Request
    answer: asyncio.Future[Answer]
    since: float


@dataclass(slots=True)
class _Read:
    look: Callable[[], Any]
    done: asyncio.Future[Any]
    proof_since: float  # it wants proof of ownership of this monotonic time or later


@dataclass(slots=True)
class _Staged:
    """A block that was applied and is to be written."""

    position: Position
    payload: bytes
    now_ns: int
    taken: list[_Waiting]
    requests: list[Request]
    outcome: Outcome
    expired: int

    def stats(self, append_s: float, waits_s: Sequence[float]) -> BlockStats:
        """What metrics want to know; see there."""
        requests = self.requests
        named = {(each.sku, each.location): each.holds for each in self.outcome.endangered}
        return BlockStats(
            len(requests),
            concatenated(requests, "kind") if requests else np.zeros(0, np.uint8),
            self.outcome.status,
            len(self.payload),
            self.expired,
            sum(map(len, named.values())),
            append_s,
            waits_s,
        )


class Shard:
    """The service object of one shard; a `ports.ShardLink` for its own process.

    `stop_process` is called, and must not return, when the shard may not go on: fenced off by
    another owner, an append in doubt, the journal lost. `clock` gives ns since 1970, `monotonic` s.
    """

    def __init__(
        self,
        number: int,
        journal: Journal,
        snapshots: Snapshots,
        catalogue: CatalogueView,
        *,
        stop_process: Callable[[str], NoReturn],
        snapshot_every_bytes: int = 64 << 20,
        keep_journal_bytes: int = 0,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = os.urandom,
        observe: Callable[[BlockStats], None] | None = None,
        machine: Machine | None = None,
        memory: AnswerMemory | None = None,
    ) -> None:
        self._number = number
        self._journal = journal
        self._snapshots = snapshots
        self._catalogue = catalogue
        self._stop_process = stop_process
        self._clock = clock
        self._monotonic = monotonic
        self._random_bytes = random_bytes
        self._observe = observe
        self._machine = Machine() if machine is None else machine
        self._memory = AnswerMemory() if memory is None else memory  # an empty one is falsy
        self._at = GENESIS
        self._tip = GENESIS  # the newest applied block: `_at`, or one that is being written
        self._chain = 0  # CRC32C of that block
        self._unanswered: set[bytes] = set()  # op_ids in blocks that are not durable yet
        self._appending: asyncio.Task[None] | None = None
        self._queue: deque[_Waiting] = deque()
        self._queued_lines = 0
        self._reads: deque[_Read] = deque()
        self._learner = Learner(catalogue, self._machine)
        self._wake = asyncio.Event()
        self._plenty = asyncio.Event()  # waits, or the append is over: see `_settle_or_plenty`
        self._lone_blocks = 0  # in a row, during which one request came and no other
        self._lone: list[tuple[_Staged, float, float]] = []  # at once: since when, answered when
        self._proving = False  # the journal is asked for its last block
        self._crowded = False  # requests came in while the last block was being written
        self._next_sweep = 0.0  # monotonic time before which no block is made for expiries alone
        self._serving = False
        self._proof = 0.0  # monotonic time at which the journal last proved that this is the owner
        self._snapshotter = Snapshotter(
            number, journal, snapshots, self._machine, self._memory,
            head=lambda: (self._at, self._chain), between_blocks=self.read,
            every_bytes=snapshot_every_bytes, keep_journal_bytes=keep_journal_bytes,
        )  # fmt: skip
        self._histories = Histories(journal)
        self._task: asyncio.Task[None] | None = None

    # --- life ----------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The shard's number, from 0."""
        return self._number

    @property
    def at(self) -> Position:
        """The newest durable block."""
        return self._at

    @property
    def machine(self) -> Machine:
        """The state. Read it only through `read`."""
        return self._machine

    async def start(self) -> None:
        """Recover, take over, serve. Raises Recovery, and what journal and snapshots raise."""
        started = self._monotonic()
        await self._catalogue.refresh()
        recovered = await recover(
            self._number, self._journal, self._snapshots, self._machine, self._memory,
            self._random_bytes,
        )  # fmt: skip
        self._at = self._tip = recovered.at
        self._chain = recovered.chain
        # Older than the take-over: another owner may have come while this one replayed.
        self._proof = started
        self._serving = True
        self._task = asyncio.create_task(self._run(), name=f"shard-{self._number}")
        _log.info(
            "shard serves", shard=self._number, epoch=self._at.epoch, cells=self._machine.cells,
            replayed=recovered.blocks, took_s=round(self._monotonic() - started, 3),
        )  # fmt: skip

    async def stop(self) -> None:
        """Answer what waits, then end. What comes later gets Unavailable."""
        self._serving = False
        self._wake.set()
        if self._task is not None:
            await self._task
        await self._snapshotter.finish()
        await self._journal.close()

    # --- the port ------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Answer:
        """Apply a request once and answer when its block is durable (see `ports.ShardLink`)."""
        if not self._serving:
            raise Unavailable(f"shard {self._number} is not serving")
        if (
            len(self._queue) >= limits.MAX_QUEUED_REQUESTS
            or self._queued_lines + request.lines > limits.MAX_QUEUED_LINES
        ):
            raise Overloaded(f"shard {self._number}: {self._queued_lines} lines wait already")
        since = self._monotonic()
        if self._may_be_at_once(request):
            told = self._at_once(request, since)
            return told if isinstance(told, Answer) else await told
        return await self._queued(request, since)

    async def hold(self, hold_id: bytes, *, sure: bool = False) -> Hold | None:
        """Look up this shard's part of a hold (`sure`: see `read`)."""
        return await self.read(lambda: self._machine.hold(hold_id), sure=sure)

    async def sight(self, hold_id: bytes, op_ids: Sequence[bytes] = ()) -> Sight:
        """Tell what this shard knows of a hold, to write by it."""

        def look() -> Sight:
            memory = self._memory
            return sight_of(hold_id, op_ids, self._machine.hold, memory.recall, memory.forgotten)

        return await self.read(look, sure=True)

    async def incoming(self, incoming_id: bytes, *, sure: bool = False) -> Incoming | None:
        """Look up this shard's part of an incoming record (`sure`: see `read`)."""
        return await self.read(lambda: self._machine.incoming(incoming_id), sure=sure)

    async def incoming_of(self, names: Sequence[tuple[int, int]]) -> list[DatedIncoming]:
        """Find what is outstanding for cells (sku id, location id), by cell and date."""
        return await self.read(lambda: self._machine.incoming_of(names))

    async def history(self, hold_id: bytes) -> History:
        """Find the operations on this shard's part of a hold, as far back as the journal reaches."""
        upto = await self.read(lambda: self._at)
        return await self._histories.find(hold_id, upto)

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id)."""
        return await self.read(lambda: [self._machine.cell(*name) for name in names])

    async def table(self, locations: Sequence[int] | None = None) -> CellTable:
        """Copy the rows of some locations, or all of them."""
        return await self.read(lambda: self._table(locations))

    async def read(self, look: Callable[[], _T], *, sure: bool = False) -> _T:
        """Run `look` between two blocks, as the proven owner, and give what it returns.

        An owner that was replaced and does not know it yet may show what it had, for LEASE_S; not
        when the caller must be `sure`, which costs a question to the journal.
        """
        if not self._serving:
            raise Unavailable(f"shard {self._number} is not serving")
        now = self._monotonic()
        if not sure and self._tip == self._at and now - self._proof < LEASE_S:
            return look()
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._reads.append(_Read(look, done, now if sure else now - LEASE_S))
        self._wake.set()
        return await done

    async def refresh_catalogue(self) -> None:
        """Learn what is new in the catalogue; what is submitted after this knows it."""
        await self._catalogue.refresh()

    async def snapshot(self) -> Position:
        """Take a snapshot, and return the position it is of once it is durable."""
        at = await asyncio.shield(await self.read(self._snapshotter.begin))
        if at is None:
            raise Unavailable(f"shard {self._number}: the snapshot failed, its log says why")
        return at

    def status(self) -> dict[str, Any]:
        """How the shard is, for people and audits; call it by way of `read`."""
        machine = self._machine
        return {
            "shard": self._number,
            "epoch": self._at.epoch,
            "seq": self._at.seq,
            "state_hash": f"{machine.state_hash:016x}",
            "now_ns": machine.now_ns,
            "cells": machine.cells,
            "holds_open": machine.holds_open,
            "holds_committed": machine.holds_committed,
            "holds_expired": machine.expired,
            "shortages": machine.shortages,
            "remembered_requests": len(self._memory),
            "bytes": machine.nbytes(),
        }

    def _table(self, locations: Sequence[int] | None) -> CellTable:
        cells = self._machine.state.cells[: self._machine.cells]
        if locations is not None:
            wanted = np.isin(cells[:, KEY] >> 32, np.asarray(locations, np.int64))
            return CellTable(self._at, self._machine.now_ns, cells[wanted])
        return CellTable(self._at, self._machine.now_ns, cells.copy())

    # --- the one task that touches the state ---------------------------------------------------

    async def _run(self) -> None:
        try:
            while self._serving or self._queue or self._appending is not None:
                await self._wait_for_work()
                await self._settle_or_plenty()
                if self._appending is None:
                    await self._gather()
                    await self._prove_ownership()
                    if self._snapshotter.is_due():
                        _ = self._snapshotter.begin()
                    self._do_reads()
                staged = self._stage()
                if staged is not None:
                    # One append at a time: a stream accepts gaps, so a refused block whose
                    # successor was on its way already could leave one.
                    await self._settle()
                    self._begin_append(staged)
                    # Two rounds of the loop, in which the block is sent. The next one may be applied
                    # after that, and the loop stands still until it is.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    self._machine.tidy(TIDY_HOLDS)  # while the block is being written
                else:
                    await self._settle()  # what waits may wait for the answers of that block
            self._do_reads()
            self._fail_reads("it has stopped")
        except (Fenced, AppendInDoubt, JournalLost) as error:
            self._stop_process(f"shard {self._number}: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, this process must not go on
            self._end_by(error)

    def _end_by(self, error: Exception) -> NoReturn:
        """End the process because of a bug: memory may be ahead of the journal."""
        _log.error("shard failed", shard=self._number, exc_info=error)
        self._stop_process(f"shard {self._number} failed: {error!r}")

    def _may_run_ahead(self) -> bool:
        """Whether to apply the next block while the last one is being written.

        Worth it when much waits. Reads need a moment at which all is durable.
        """
        return (
            self._appending is not None
            and not self._appending.done()
            and self._queued_lines >= GATHER_LINES
            and not self._reads
        )

    async def _settle_or_plenty(self) -> None:
        """Wait until the last block is answered, or so much waits that the next one may run ahead."""
        while self._appending is not None and not self._may_run_ahead():
            if self._appending.done():
                await self._settle()
                return
            self._plenty.clear()
            await self._plenty.wait()

    async def _settle(self) -> None:
        """Wait until the last block is durable and answered; raises what its append raised."""
        if self._appending is not None:
            await self._appending
            self._appending = None

    async def _wait_for_work(self) -> None:
        """Until something is queued, something may expire, or ownership should be looked at."""
        if self._queue or self._reads or self._appending is not None or not self._serving:
            return
        self._wake.clear()
        while self._machine.tidy(TIDY_HOLDS):
            await asyncio.sleep(0)
            if self._wake.is_set():
                return
        timeout = IDLE_CHECK_S
        deadline = self._machine.next_deadline_ns()
        if deadline >= 0:
            due_in = max((deadline - self._clock()) / 1e9, 0.0) + 1e-6
            timeout = min(timeout, max(due_in, self._next_sweep - self._monotonic()))
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    async def _gather(self) -> None:
        """Among many callers, let those join the block whose requests are about to be handed over.

        A gRPC server in Python hands over one call after the other, each a round through another
        thread, and a block costs as much as several calls. So 64 callers used to make blocks of one
        line. Now a block that follows another one, while whose append requests came in, waits as
        long as they keep coming. A caller who is alone never waits, and neither do batches.
        """
        now = self._monotonic()
        latest, count = now + GATHER_MOST_S, len(self._queue)
        quiet = now + GATHER_QUIET_S
        while self._crowded and self._queued_lines < GATHER_LINES and now < min(quiet, latest):
            await asyncio.sleep(0)
            now = self._monotonic()
            if len(self._queue) != count:
                count, quiet = len(self._queue), now + GATHER_QUIET_S

    async def _prove_ownership(self) -> None:
        """Before reads: the journal must have shown lately that no other owner took over."""
        wanted = max((read.proof_since for read in self._reads), default=self._proof)
        if self._monotonic() - self._proof < IDLE_CHECK_S and wanted <= self._proof:
            return
        asked = self._monotonic()
        self._proving = True
        try:
            last = await self._journal.last()
        except JournalUnavailable:
            if wanted > self._proof:
                self._fail_reads("the journal cannot be reached")
            return
        finally:
            self._proving = False
        if last is None or last < self._at:
            raise JournalLost(f"the stream ends at {last}, before {self._at}")
        if last > self._at:
            raise Fenced(f"the stream is at {last}, this owner at {self._at}")
        self._proof = asked

    def _do_reads(self) -> None:
        """Those for which the proof is new enough; the others have come since it was asked for."""
        reads, self._reads = self._reads, deque()
        for read in reads:
            if read.done.done():
                continue
            if read.proof_since > self._proof:
                self._reads.append(read)
                continue
            try:
                read.done.set_result(read.look())
            except Exception as error:  # noqa: BLE001 - it is the reader's
                read.done.set_exception(error)

    def _fail_reads(self, why: str) -> None:
        while self._reads:
            done = self._reads.popleft().done
            if not done.done():
                done.set_exception(Unavailable(f"shard {self._number}: {why}"))

    def _stage(self) -> _Staged | None:
        """Apply what waits, and what is overdue, as one block; None when there is nothing."""
        # What was submitted after a refresh knows all that it brought, or waits for the next block.
        taken = self._take_waiting() if self._learner.learn() else []
        machine = self._machine
        now = max(self._clock(), machine.now_ns + 1)
        if not (taken or self._learner.unjournaled):
            overdue = 0 <= machine.next_deadline_ns() < now
            if not overdue or self._monotonic() < self._next_sweep:
                return None
            self._next_sweep = self._monotonic() + SWEEP_EVERY_S
        requests = [waiting.request for waiting in taken]
        try:
            return self._applied(now, taken, requests)
        except MemoryError as error:
            for waiting in taken:
                _fail(waiting, self._full(error))
            return None

    def _applied(self, now: int, taken: list[_Waiting], requests: list[Request]) -> _Staged | None:
        """Apply requests as the next block; None when there is nothing in it. Raises MemoryError."""
        machine = self._machine
        had_expired = machine.expired
        outcome = machine.apply(now, requests)
        if not (requests or self._learner.unjournaled or outcome.expired):
            return None  # the wheel turned, and nothing was due
        self._snapshotter.touched(outcome.image.rows)
        position = self._tip.next()
        block = Block(
            self._number, position.epoch, position.seq, now, self._chain, machine.state_hash,
            machine.sku_limit, self._learner.unjournaled, requests, outcome.status, outcome.image,
            expired=outcome.expired, endangered=outcome.endangered, traces=outcome.traces,
        )  # fmt: skip
        payload, crc = encode(block)
        self._tip, self._chain, self._learner.unjournaled = position, crc, []
        expired = machine.expired - had_expired
        return _Staged(position, payload, now, taken, requests, outcome, expired)

    def _full(self, error: MemoryError) -> Overloaded:
        return Overloaded(f"shard {self._number} is full: {error}")

    def _begin_append(self, staged: _Staged, sent: float | None = None) -> None:
        """Begin to write a block; `sent`, if it may have been sent before, is a time before that."""
        self._unanswered.update(request.op_id for request in staged.requests)
        self._appending = asyncio.create_task(self._append(staged, sent))
        self._appending.add_done_callback(lambda _: self._plenty.set())

    async def _append(self, staged: _Staged, sent: float | None) -> None:
        """Make a block durable, and answer it."""
        started = self._monotonic()
        while True:
            if sent is None:
                sent = self._monotonic()
            try:
                await self._journal.append(staged.position, staged.payload)
                break
            except JournalUnavailable as error:
                sent = None
                _log.warning("journal unavailable", shard=self._number, error=str(error))
                self._fail_reads("the journal cannot be reached")
                await asyncio.sleep(RETRY_APPEND_S)
        self._crowded = bool(self._queue)
        if staged.taken:
            is_lone = len(staged.taken) == 1 and not self._crowded
            self._lone_blocks = self._lone_blocks + 1 if is_lone else 0
        self._is_durable(staged, sent)
        answered = self._monotonic()
        for waiting, answer in zip(staged.taken, _answers(staged), strict=True):
            self._memory.remember(waiting.request, answer)
            self._unanswered.discard(waiting.request.op_id)
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
        if self._observe is not None:
            # Those who wait go first: counting costs them nothing.
            await asyncio.sleep(0)
            waits = [answered - waiting.since for waiting in staged.taken]
            self._observe(staged.stats(answered - started, waits))

    def _is_durable(self, staged: _Staged, sent: float) -> None:
        """Note that a block which was sent at a monotonic time is in the journal."""
        self._proof = sent  # not now: this process may have slept, and another taken over since
        self._at = staged.position
        self._snapshotter.wrote(len(staged.payload))

    def _queued(self, request: Request, since: float) -> "asyncio.Future[Answer]":
        """Have a request in the next block."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(request, answer, since))
        self._queued_lines += request.lines
        self._wake.set()
        if self._queued_lines >= GATHER_LINES:
            self._plenty.set()
        return answer

    # --- a caller who is alone -----------------------------------------------------------------

    def _may_be_at_once(self, request: Request) -> bool:
        """Whether this request may be a block by itself, here and now.

        Callers who come one after the other gain by it: a round through the task and back costs more
        than the whole of the work. Among many it would make blocks of one line. So it needs some
        blocks in a row during which nobody else came, and now and then one goes the other way again,
        to see whether that is still so.
        """
        lone = self._lone_blocks - LONE_BLOCKS
        return (
            lone >= 0
            and lone % LONE_CHECK != LONE_CHECK - 1
            and request.lines == 1
            and not self._queue
            and not self._reads
            and self._appending is None
            and not self._proving
        )

    def _at_once(self, request: Request, since: float) -> "Answer | asyncio.Future[Answer]":
        """Make a block of one request, write it while the loop stands still, and answer."""
        again = self._remembered(request)
        if again is not None:
            return again
        if not self._learner.learn():
            return self._queued(request, since)
        now = max(self._clock(), self._machine.now_ns + 1)
        try:
            staged = self._applied(now, [], [request])
        except MemoryError as error:
            raise self._full(error) from error
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self._end_by(error)
        assert staged is not None
        told: list[Answer] = []
        if not self._journal.append_at_once(
            staged.position, staged.payload, lambda: told.extend(_answers(staged))
        ):
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            staged.taken.append(_Waiting(request, answer, since))
            self._begin_append(staged, since)
            self._wake.set()
            return answer
        (given,) = told
        self._memory.remember(request, given)
        self._is_durable(staged, since)
        self._lone_blocks += 1
        if not self._lone:
            asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._after_lone)
        self._lone.append((staged, since, self._monotonic()))
        return given

    def _after_lone(self) -> None:
        """Do what can wait after blocks of lone callers: count them, and see what is due."""
        lone, self._lone = self._lone, []
        self._wake.set()
        if self._observe is not None:
            for staged, since, answered in lone:
                self._observe(staged.stats(answered - since, [answered - since]))

    def _take_waiting(self) -> list[_Waiting]:
        """The next requests to apply; repeated ones are answered here, from memory."""
        taken: list[_Waiting] = []
        ids: set[bytes] = set()
        again: list[_Waiting] = []
        lines = 0
        while self._queue and len(taken) < limits.MAX_BLOCK_REQUESTS:
            waiting = self._queue[0]
            request = waiting.request
            if taken and lines + request.lines > limits.MAX_BLOCK_LINES:
                break
            self._queue.popleft()
            if waiting.answer.cancelled():
                # Its caller is gone and nothing was judged; whoever cares will repeat it.
                self._queued_lines -= request.lines
                continue
            if _is_among(ids, request.op_id) or self._is_unanswered(request.op_id):
                again.append(waiting)  # the same id is under way: answered after that
                continue
            self._queued_lines -= request.lines
            answer = self._remembered(request)
            if answer is not None:
                waiting.answer.set_result(answer)
                continue
            ids.add(request.op_id)
            taken.append(waiting)
            lines += request.lines
        self._queue.extendleft(reversed(again))
        return taken

    def _is_unanswered(self, op_id: bytes) -> bool:
        """Whether a block that is not durable yet has this id, as a request's or as a line's."""
        return _is_among(self._unanswered, op_id)

    def _remembered(self, request: Request) -> Answer | None:
        """The first answer to this op_id, or the refusal when it came with other content."""
        found = self._memory.recall(request.op_id)
        if found is not None:
            digest, answer = found
            return answer if digest == request.digest else self._reused(request)
        index = int.from_bytes(request.op_id[14:], "big")
        if index:
            # The id may be that of a line of a batch, whose base ends in sixteen zero bits.
            batch = self._memory.recall(_batch_id(request.op_id))
            if batch is not None and len(batch[1].status) > index:
                return self._reused(request)
        return None

    def _reused(self, request: Request) -> Answer:
        status = bytes((Status.OP_ID_REUSED,)) * request.lines
        available = bytes(8 * request.lines) if request.want_available else b""
        return Answer(status, available, self._machine.now_ns, self._at.epoch, self._at.seq)


def _is_among(ids: Collection[bytes], op_id: bytes) -> bool:
    """Whether requests with these ids have this one, as a request's or as that of a batch's line."""
    return bool(ids) and (op_id in ids or _batch_id(op_id) in ids)


def _batch_id(op_id: bytes) -> bytes:
    """The id of the batch whose line would have this id."""
    return op_id[:14] + b"\0\0"


def _answers(staged: _Staged) -> Iterator[Answer]:
    return answers_of(staged.requests, staged.outcome, staged.now_ns, staged.position)


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
