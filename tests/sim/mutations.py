"""Planted bugs: each patches the real code in one place, and the simulation must find it.

They are the mistakes that this design is about: about durability, ownership, idempotency, time and
the compensation between shards. Rules run compiled, so what breaks a rule is planted where blocks
enter the machine (`Machine.apply`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from actors import (
    calls,
    commits,
    moves,
    recovery,
    replacing,
    returns,
    spanning,
    transfers,
    transits,
    ways,
)
from actors import shard as shard_module
from actors.intents import Alone
from actors.links import RemoteShard
from actors.parts import Part, hold_id_of, joined, on, step_id, that_count, whole
from actors.ports import (
    GENESIS,
    AppendInDoubt,
    Fenced,
    Journal,
    JournalUnavailable,
    Position,
    Saved,
    Sight,
    Snapshots,
    Unavailable,
)
from actors.ports import shard_name as snapshot_name
from actors.recovery import Recovered
from actors.router import Router
from actors.shard import Shard
from actors.shards import Shards
from actors.snapshotting import Snapshotter
from actors.transits import sight_of
from actors.ways import Ways
from adapters.journal import RedisJournal
from engine import kernels, snapshot, wire
from engine.block import Block, decode, encode
from engine.framing import crc_of
from engine.machine import Machine, Outcome
from engine.memory import AnswerMemory
from engine.operations import Answer, Flag, Kind, Request, column_of, pair_to_id
from engine.views import Hold, HoldState


@dataclass(frozen=True, slots=True)
class Mutation:
    """A planted bug. Found within `seeds`, or the simulation is not good enough."""

    name: str
    plant: Callable[[], AbstractContextManager[Any]]
    seeds: int
    found_by: int

    def to_try(self) -> Iterable[int]:
        """All of its seeds, beginning with the one that is known to find it."""
        yield self.found_by
        yield from (seed for seed in range(self.seeds) if seed != self.found_by)


MUTATIONS: Final[list[Mutation]] = []

Plant = Callable[[], Iterator[None]]


def mutation(plant: Plant | None = None, *, seeds: int = 200, found_by: int = 0) -> Any:
    """Put a planted bug on the list, under the name of its function.

    `found_by` is the seed that is tried first: it saves time, and nothing is expected of it. When the
    simulation has changed and that seed finds the bug no more, all the others are tried; then
    `python -m tests.sim --planted` tells the new one.
    """
    if plant is None:
        return partial(mutation, seeds=seeds, found_by=found_by)
    MUTATIONS.append(Mutation(plant.__name__, contextmanager(plant), seeds, found_by))
    return plant


# One that shows only when several things go wrong at once.
rare_mutation: Final = partial(mutation, seeds=1_000)


def replaced(owner: Any, name: str, by: Any) -> AbstractContextManager[Any]:
    return patch.object(owner, name, by)


# --- durability and ownership ---------------------------------------------------------------------


@mutation(found_by=1)
def the_fence_is_skipped() -> Iterator[None]:
    original = RedisJournal._write

    async def write(
        self: RedisJournal, position: Position, payload: bytes, *, create: bool
    ) -> None:
        try:
            await original(self, position, payload, create=create)
        except Fenced:
            self._acknowledged = self._known = position

    with replaced(RedisJournal, "_write", write):
        yield


@mutation
def whatever_stands_under_the_id_is_mine() -> Iterator[None]:
    async def landed(*_: Any) -> bool:
        return True

    with replaced(RedisJournal, "_landed", landed):
        yield


@mutation
def answers_leave_before_the_append() -> Iterator[None]:
    original = Shard._append

    async def append(self: Shard, staged: Any) -> None:
        answers = recovery.answers_of(
            staged.requests, staged.outcome, staged.now_ns, staged.position
        )
        for waiting, answer in zip(staged.taken, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
        await original(self, staged)

    with replaced(Shard, "_append", append):
        yield


@mutation(found_by=46)
def an_append_in_doubt_counts_as_done() -> Iterator[None]:
    original = RedisJournal.append

    async def append(self: RedisJournal, position: Position, payload: bytes) -> None:
        try:
            await original(self, position, payload)
        except AppendInDoubt:
            self._acknowledged = self._known = position

    with replaced(RedisJournal, "append", append):
        yield


@mutation(found_by=3)
def an_append_that_was_refused_counts_as_done() -> Iterator[None]:
    original = RedisJournal.append

    async def append(self: RedisJournal, position: Position, payload: bytes) -> None:
        try:
            await original(self, position, payload)
        except JournalUnavailable:
            self._acknowledged = self._known = position

    with replaced(RedisJournal, "append", append):
        yield


@rare_mutation(found_by=36)
def reads_need_no_proof() -> Iterator[None]:
    with replaced(shard_module, "LEASE_S", 1e9):
        yield


@rare_mutation(found_by=44)
def proof_is_dated_when_it_arrives() -> Iterator[None]:
    original = Shard._append

    async def append(self: Shard, staged: Any) -> None:
        await original(self, staged)
        self._proof = self._monotonic()

    with replaced(Shard, "_append", append):
        yield


@mutation(found_by=1)
def reads_show_what_is_not_written() -> Iterator[None]:
    async def read(self: Shard, look: Callable[[], Any], *, sure: bool = False) -> Any:
        if not self._serving:
            raise Unavailable("not serving")
        return look()

    with replaced(Shard, "read", read):
        yield


@rare_mutation(found_by=376)
def calls_on_holds_trust_an_owner_that_was_replaced() -> Iterator[None]:
    original = RemoteShard.hold

    async def hold(self: RemoteShard, hold_id: bytes, *, sure: bool = False) -> Any:
        return await original(self, hold_id)

    async def sight(self: Shard, hold_id: bytes, op_ids: Any = ()) -> Any:
        return await self.read(
            lambda: sight_of(
                hold_id, op_ids, self._machine.hold, self._memory.recall, self._memory.forgotten
            )
        )

    with replaced(RemoteShard, "hold", hold), replaced(Shard, "sight", sight):
        yield


# --- recovery -------------------------------------------------------------------------------------


@mutation
def the_last_block_is_lost() -> Iterator[None]:
    original = RedisJournal.read

    async def read(self: RedisJournal, *bounds: Any) -> Any:
        entries = [entry async for entry in original(self, *bounds)]
        if len(entries) > 1:
            del entries[-2]
        for entry in entries:
            yield entry

    with replaced(RedisJournal, "read", read), replaced(recovery, "_check", lambda *_: None):
        yield


@mutation(found_by=18)
def the_journal_is_opened_after_the_replay() -> Iterator[None]:
    async def recover(
        shard: int,
        journal: Journal,
        snapshots: Snapshots,
        machine: Machine,
        memory: AnswerMemory,
        random_bytes: Callable[[int], bytes],
    ) -> Recovered:
        known, state = None, Recovered(GENESIS, 0)
        if found := await snapshots.load_latest(snapshot_name(shard)):
            known, pieces = found
            state = Recovered(known, snapshot.load(pieces, machine, memory))
        async for position, payload in journal.read(state.at):
            if position.seq > 0:
                recovery._reapply(decode(payload), position, machine, memory)
            state = Recovered(position, crc_of(payload), state.blocks + 1)

        def opening(position: Position) -> bytes:
            block = Block(
                shard, position.epoch, 0, machine.now_ns, 0, 0, machine.sku_limit,
                nonce=random_bytes(16),
            )  # fmt: skip
            state.chain = crc_of(encode(block)[0])
            return encode(block)[0]

        return Recovered(await journal.take_over(opening, known=known), state.chain)

    with replaced(shard_module, "recover", recover):
        yield


def _store_with(save: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Shards whose snapshots are saved by `save(store, name, chunks, position)`."""
    original = Snapshotter.__init__

    def init(self: Snapshotter, *args: Any, **how: Any) -> None:
        original(self, *args, **how)
        self._snapshots = _Store(self._snapshots, save)

    return replaced(Snapshotter, "__init__", init)


class _Store:
    def __init__(self, store: Any, save: Callable[..., Any]) -> None:
        self.save = partial(save, store)


@mutation(found_by=0)
def a_snapshot_says_it_is_newer() -> Iterator[None]:
    async def save(store: Any, name: str, chunks: Any, position: Callable[[], Position]) -> Saved:
        saved: Saved = await store.save(name, chunks, lambda: position().next())
        return saved

    with _store_with(save), replaced(recovery, "_check", lambda *_: None):
        yield


@mutation(found_by=1)
def a_snapshot_has_what_is_not_written() -> Iterator[None]:
    original = Shard.read

    async def read(self: Shard, look: Callable[[], Any], *, sure: bool = False) -> Any:
        return look() if look.__name__ == "rest" else await original(self, look, sure=sure)

    with replaced(Shard, "read", read), replaced(recovery, "_check", lambda *_: None):
        yield


@mutation(found_by=5)
def a_snapshot_misses_what_changes_while_it_is_made() -> Iterator[None]:
    with replaced(snapshot.Capture, "note", lambda *_: None):
        yield


@mutation(found_by=3)
def the_journal_is_trimmed_up_to_the_newest_snapshot() -> Iterator[None]:
    async def save(store: Any, name: str, chunks: Any, position: Callable[[], Position]) -> Saved:
        saved: Saved = await store.save(name, chunks, position)
        return replace(saved, oldest=position())

    with _store_with(save):
        yield


@mutation(found_by=1)
def a_snapshot_forgets_when_holds_expire() -> Iterator[None]:
    original = Machine.restore

    def restore(self: Machine, rows: int, arrays: dict[str, Any], places: Any) -> None:
        wheel = np.full_like(arrays["wheel"], kernels.NONE)
        original(self, rows, arrays | {"wheel": wheel}, places)

    with replaced(Machine, "restore", restore):
        yield


# --- idempotency ----------------------------------------------------------------------------------


@mutation
def a_repeated_request_is_applied_again() -> Iterator[None]:
    with replaced(Shard, "_remembered", lambda *_: None):
        yield


@mutation(found_by=2)
def a_request_under_way_is_applied_again() -> Iterator[None]:
    with replaced(Shard, "_is_unanswered", lambda *_: False):
        yield


@mutation
def answers_are_forgotten_in_a_replay() -> Iterator[None]:
    original = recovery._reapply

    def reapply(block: Block, position: Position, machine: Machine, _: AnswerMemory) -> None:
        original(block, position, machine, AnswerMemory())

    with replaced(recovery, "_reapply", reapply):
        yield


@mutation(found_by=12)
def answers_are_forgotten_in_a_snapshot() -> Iterator[None]:
    with replaced(AnswerMemory, "load", lambda *_: None):
        yield


@mutation(found_by=1)
def content_of_a_repeated_request_is_not_compared() -> Iterator[None]:
    def remembered(self: Shard, request: Request) -> Answer | None:
        found = self._memory.recall(request.op_id)
        return found[1] if found else None

    with replaced(Shard, "_remembered", remembered):
        yield


# --- time -----------------------------------------------------------------------------------------


def _apply_with(change: Callable[[Machine, int, Sequence[Request]], Any]) -> Any:
    """`Machine.apply`, given what `change` makes of time and requests."""
    original = Machine.apply

    def apply(self: Machine, now_ns: int, requests: Sequence[Request], **how: Any) -> Outcome:
        return original(self, *change(self, now_ns, requests), **how)

    return replaced(Machine, "apply", apply)


def _changed(request: Request, **columns: Any) -> Request:
    return Request(
        request.op_id, request.lines, request.columns | columns, request.want_available,
        request.digest,
    )  # fmt: skip


def _has(request: Request, kind: Kind) -> bool:
    return bool((column_of(request, "kind") == kind).any())


@mutation(found_by=8)
def holds_expire_late() -> Iterator[None]:
    def change(_: Machine, now_ns: int, requests: Sequence[Request]) -> Any:
        return now_ns, [
            _changed(request, value=request.columns["value"] + 3)
            if _has(request, Kind.RESERVE) and "value" in request.columns
            else request
            for request in requests
        ]

    with _apply_with(change):
        yield


@mutation(found_by=8)
def commits_ignore_the_deadline() -> Iterator[None]:
    def change(machine: Machine, now_ns: int, requests: Sequence[Request]) -> Any:
        commits = any(_has(request, Kind.COMMIT) for request in requests)
        return machine.now_ns + 1 if commits else now_ns, requests

    with _apply_with(change):
        yield


@mutation(found_by=5)
def holds_expire_only_when_others_call() -> Iterator[None]:
    with replaced(Machine, "next_deadline_ns", lambda _: -1):
        yield


@mutation(found_by=11)
def time_goes_back_with_the_clock() -> Iterator[None]:
    def greatest(*values: Any, **how: Any) -> Any:
        return values[0] if len(values) > 1 else max(*values, **how)

    with patch.object(shard_module, "max", greatest, create=True):
        yield


# --- rules ----------------------------------------------------------------------------------------


@mutation
def units_are_released_twice() -> Iterator[None]:
    original = Machine.apply

    def apply(self: Machine, now_ns: int, requests: Sequence[Request], **how: Any) -> Outcome:
        releases = [request for request in requests if _has(request, Kind.RELEASE)]
        ids = [
            pair_to_id(*(int(request.columns[half][0]) for half in ("hold_hi", "hold_lo")))
            for request in releases
        ]
        before = {hold_id: self.hold(hold_id) for hold_id in ids}
        outcome = original(self, now_ns, requests, **how)
        for hold_id, hold in before.items():
            after = self.hold(hold_id)
            if hold is None or after is None or hold.state == after.state:
                continue
            for line in hold.lines:
                key = line.location << 32 | line.sku
                row = kernels.find_cell(self.state.cells, self.state.cell_index, key)
                self.state.cells[row, kernels.RESERVED] -= line.pending
        return outcome

    with replaced(Machine, "apply", apply):
        yield


@mutation(found_by=5)
def linked_lines_are_judged_one_by_one() -> Iterator[None]:
    def change(_: Machine, now_ns: int, requests: Sequence[Request]) -> Any:
        return now_ns, [
            _changed(request, flags=request.columns["flags"] & ~np.uint8(Flag.LINKED))
            if _has(request, Kind.RESERVE) and "flags" in request.columns
            else request
            for request in requests
        ]

    with _apply_with(change):
        yield


@mutation(found_by=8)
def a_request_is_left_out_of_the_block() -> Iterator[None]:
    def shortened(block: Block) -> tuple[bytes, int]:
        if len(block.requests) > 1:
            lines = block.requests[-1].lines
            block.requests, block.status = block.requests[:-1], block.status[:-lines]
        return encode(block)

    with replaced(shard_module, "encode", shortened):
        yield


def _without_flags(kind: Kind, flags: Flag) -> AbstractContextManager[Any]:
    """Machines that do not see some flags of a kind."""

    def change(_: Machine, now_ns: int, requests: Sequence[Request]) -> Any:
        return now_ns, [
            _changed(
                request,
                flags=np.where(
                    request.columns["kind"] == kind,
                    request.columns["flags"] & ~np.uint8(flags),
                    request.columns["flags"],
                ),
            )
            if "flags" in request.columns
            else request
            for request in requests
        ]

    return _apply_with(change)


def _without_column(name: str, kind: Kind) -> AbstractContextManager[Any]:
    """Machines that do not see a column of a kind."""

    def change(_: Machine, now_ns: int, requests: Sequence[Request]) -> Any:
        return now_ns, [
            _changed(request, **{name: np.where(request.columns["kind"] == kind, 0, column)})
            if (column := request.columns.get(name)) is not None
            else request
            for request in requests
        ]

    return _apply_with(change)


@mutation(found_by=8)
def superseding_leaves_both() -> Iterator[None]:
    with _without_flags(Kind.RESERVE, Flag.SUPERSEDE):
        yield


@mutation
def an_exchange_is_judged_line_by_line() -> Iterator[None]:
    with _without_flags(Kind.RETURN, Flag.LINKED):
        yield


@mutation(found_by=2)
def the_id_of_a_sale_is_forgotten() -> Iterator[None]:
    with _without_column("hold_hi", Kind.SALE), _without_column("hold_lo", Kind.SALE):
        yield


@mutation(found_by=9)
def a_count_is_as_of_when_it_was_told() -> Iterator[None]:
    with _without_column("occurred_at_ns", Kind.COUNT):
        yield


@mutation
def a_channel_may_sell_the_last_ones() -> Iterator[None]:
    with _without_column("channel", Kind.RESERVE):
        yield


Cells = set[tuple[int, int]]


def _with_stock(cells_of: Callable[[Machine, Request], Cells]) -> AbstractContextManager[Any]:
    """Machines that think there is plenty on some cells while they apply a request."""
    original = Machine.apply

    def stock(cells: Cells, units: int) -> list[Request]:
        """Adjustments of cells."""
        return [
            Request.of(
                bytes(16), 1, kind=Kind.ADJUST, sku=sku, location=location, quantity=units, value=1
            )
            for sku, location in sorted(cells)
        ]

    def apply(self: Machine, now_ns: int, requests: Sequence[Request], **how: Any) -> Outcome:
        done: list[Request] = []
        kept: list[int] = []  # lines
        at = 0
        for request in requests:
            cells = cells_of(self, request)
            more, less = stock(cells, 99), stock(cells, -99)
            done += [*more, request, *less]
            kept += range(at + len(more), at + len(more) + request.lines)
            at += len(more) + request.lines + len(less)
        told = original(self, now_ns, done, **how)
        if at == len(kept):
            return told
        granted = None if told.granted is None else told.granted[kept]
        endangered = tuple(
            each._replace(line=kept.index(each.line))
            for each in told.endangered
            if each.line in kept
        )
        return replace(
            told, status=told.status[kept], available=told.available[kept], granted=granted,
            endangered=endangered,
        )  # fmt: skip

    return replaced(Machine, "apply", apply)


def _skus_of(hold: Hold | None) -> set[int]:
    return {line.sku for line in hold.lines} if hold else set()


@mutation(found_by=4)
def a_late_payment_is_not_judged() -> Iterator[None]:
    def cells(machine: Machine, request: Request) -> Cells:
        if not (_has(request, Kind.COMMIT) and (_flags(request) & Flag.RE_RESERVE).any()):
            return set()
        hold = machine.hold(hold_id_of(request))
        return {(line.sku, line.location) for line in hold.lines} if hold else set()

    with _with_stock(cells):
        yield


@mutation
def a_move_takes_what_is_not_there() -> Iterator[None]:
    def cells(machine: Machine, request: Request) -> Cells:
        if not _has(request, Kind.MOVE):
            return set()
        to = int(column_of(request, "location")[0])
        return {(sku, to) for sku in _skus_of(machine.hold(hold_id_of(request)))}

    with _with_stock(cells):
        yield


def _flags(request: Request) -> Any:
    return column_of(request, "flags")


# --- several shards -------------------------------------------------------------------------------


def _steps_without(kind: Kind) -> AbstractContextManager[Any]:
    """A router that never takes its steps of one kind, and believes that they went well."""
    original = Shards.submit_each

    async def submit_each(self: Shards, requests: dict[int, Request]) -> dict[int, Answer]:
        taken = {shard: each for shard, each in requests.items() if not _has(each, kind)}
        left = dict.fromkeys(requests.keys() - taken.keys(), Answer(b"\0", bytes(8), 0, 0, 0))
        return await original(self, taken) | left

    return replaced(Shards, "submit_each", submit_each)


@mutation(found_by=1)
def the_other_parts_are_not_released() -> Iterator[None]:
    with _steps_without(Kind.RELEASE):
        yield


def _steps_as(room: Any, name: str, change: Callable[[Request], Request]) -> Any:
    """A room in which the steps of one name are changed."""
    original = room.step_of

    def step_of(request: Request, step: str, *args: Any, **columns: Any) -> Request:
        made: Request = original(request, step, *args, **columns)
        return change(made) if step.split(maxsplit=1)[0] == name else made

    return replaced(room, "step_of", step_of)


@contextmanager
def _steps_left_out(name: str, *rooms: Any) -> Iterator[None]:
    """Rooms whose steps of one name are never taken, and are believed to have gone well."""
    original = Shards.submit
    left_out: set[bytes] = set()

    def note(step: Request) -> Request:
        left_out.add(step.op_id)
        return step

    async def submit(self: Shards, shard: int, request: Request) -> Answer:
        if request.op_id in left_out:
            return Answer(bytes(request.lines), bytes(8 * request.lines), 0, 0, 0)
        return await original(self, shard, request)

    with ExitStack() as planted:
        for room in rooms:
            planted.enter_context(_steps_as(room, name, note))
        planted.enter_context(replaced(Shards, "submit", submit))
        yield


@mutation(found_by=21)
def the_other_parts_stay_committed() -> Iterator[None]:
    with _steps_left_out("cancel", commits, spanning):
        yield


@mutation(found_by=18)
def the_older_hold_is_superseded_on_some_shards_only() -> Iterator[None]:
    async def keep(_: Any) -> bool:
        return True

    with replaced(replacing.Replacement, "keep", keep):
        yield


@mutation(found_by=30)
def a_superseded_hold_that_ran_out_may_be_paid_late() -> Iterator[None]:
    with _steps_as(replacing, "supersede", lambda step: _changed(step, flags=np.zeros(1, "u1"))):
        yield


@mutation(found_by=6)
def an_order_that_is_paid_is_held_only() -> Iterator[None]:
    async def commit(*_: Any) -> dict[int, int]:
        return {}

    with replaced(spanning, "_commit_held", commit):
        yield


@mutation
def an_order_over_shards_is_told_the_latest_time() -> Iterator[None]:
    def latest(request: Request, parts: Sequence[Part], answers: Sequence[Answer]) -> Any:
        shard, told = joined(request, parts, answers)
        return shard, replace(told, now_ns=max(answer.now_ns for answer in answers))

    with replaced(spanning, "joined", latest):
        yield


@mutation(found_by=52)
def what_is_granted_over_shards_is_not_told() -> Iterator[None]:
    def without(request: Request, parts: Sequence[Part], answers: Sequence[Answer]) -> Any:
        shard, told = joined(request, parts, answers)
        return shard, replace(told, granted=b"")

    with replaced(spanning, "joined", without):
        yield


@mutation(found_by=28)
def more_time_is_given_to_one_part_of_a_hold_only() -> Iterator[None]:
    original = commits.make_time

    async def make_time(shards: Shards, request: Request, asked: Sequence[int], *how: Any) -> Any:
        told = await original(shards, request, asked[:1], *how)
        return {shard: answer for answer in told.values() for shard in asked}

    with replaced(commits, "make_time", make_time), replaced(calls, "make_time", make_time):
        yield


@mutation(found_by=1)
def the_old_place_of_a_move_is_not_given_up() -> Iterator[None]:
    async def leave(*args: Any) -> Answer:
        lines = args[-1]
        if not lines:
            return await transits.leave(*args)
        return Answer(bytes(len(lines)), bytes(8 * len(lines)), 0, 0, 0)

    with replaced(ways, "leave", leave):
        yield


@mutation(found_by=1)
def moved_units_are_doubled() -> Iterator[None]:
    async def arrive(
        shards: Shards, target: int, place: bytes, hold_id: bytes, waits: Hold, *, have_left: bool
    ) -> Answer:
        answer = await transits.arrive(shards, target, place, hold_id, waits, have_left=have_left)
        for line in waits.lines if have_left else ():
            columns = {"sku": line.sku, "location": line.location, "quantity": line.pending}
            named = {"value": 60_000, **on(hold_id)}
            added = Request.of(step_id(place, "twice"), 1, kind=Kind.ADD_LINE, **columns, **named)
            await shards.submit(target, added)
        return answer

    with replaced(ways, "arrive", arrive):
        yield


@mutation(found_by=1)
def a_repeated_move_is_another_one() -> Iterator[None]:
    original, tries = Router.move, count()

    async def move(self: Router, request: Request) -> Any:
        op_id = next(tries).to_bytes(16, "big")
        return await original(self, replace(request, op_id=op_id))

    with replaced(Router, "move", move):
        yield


@mutation(found_by=0)
def what_has_begun_stays_half_done() -> Iterator[None]:
    async def finish(*_: Any) -> None:
        """Leave it as it is."""

    with replaced(Alone, "finish", finish):
        yield


@mutation(found_by=48)
def what_waits_for_a_move_that_is_refused_stays() -> Iterator[None]:
    async def give_back(*_: Any) -> None:
        """Keep it."""

    with replaced(Ways, "give_back", give_back):
        yield


@mutation(found_by=4)
def linked_lines_are_moved_each_by_itself() -> Iterator[None]:
    def groups_of(request: Request) -> list[list[int]]:
        return [[place] for place in range(request.lines)]

    with replaced(moves, "groups_of", groups_of):
        yield


@mutation(found_by=4)
def the_claim_of_a_return_is_skipped() -> Iterator[None]:
    original = Shards.submit

    async def submit(self: Shards, shard: int, request: Request) -> Answer:
        if _has(request, Kind.CLAIM_RETURN):
            return Answer(b"\0", bytes(8), 0, 0, 0)
        return await original(self, shard, request)

    with replaced(Shards, "submit", submit):
        yield


@mutation(found_by=25)
def a_claim_is_not_taken_back() -> Iterator[None]:
    with _steps_left_out("unclaim", returns):
        yield


@mutation(found_by=6)
def a_refused_exchange_leaves_its_hold() -> Iterator[None]:
    with _steps_left_out("release", returns):
        yield


@mutation(found_by=25)
def an_exchange_that_is_paid_is_held_only() -> Iterator[None]:
    with _steps_left_out("commit", returns):
        yield


@mutation(found_by=10)
def what_comes_back_elsewhere_is_not_taken_in() -> Iterator[None]:
    async def take_in(_: Any) -> list[Any]:
        return []

    with replaced(returns._Exchange, "_take_in", take_in):
        yield


@mutation(found_by=43)
def goods_are_expected_again_by_a_retry() -> Iterator[None]:
    tries = count()

    def again(step: Request) -> Request:
        return replace(step, op_id=next(tries).to_bytes(16, "big"))

    with _steps_as(transfers, "expect", again):
        yield


@rare_mutation(found_by=529)
def a_loss_is_told_only_to_shards_that_have_some() -> Iterator[None]:
    async def on_each(self: Router, request: Request, location: int) -> dict[int, Answer]:
        asked = self._shards.asked_for(location)
        found = await self._shards.incoming(hold_id_of(request), asked, sure=True)
        return await self._shards.submit_each(dict.fromkeys(found or asked[:1], request))

    with replaced(Router, "on_each", on_each):
        yield


@mutation(found_by=2)
def what_cannot_be_expected_is_gone() -> Iterator[None]:
    async def take_back(*_: Any) -> None:
        """Forget it."""

    with replaced(transfers, "_take_back", take_back):
        yield


@mutation(found_by=1)
def parts_that_were_undone_are_told_as_held() -> Iterator[None]:
    with replaced(spanning, "undone", lambda _, answer, *__: answer):
        yield


@mutation(found_by=22)
def a_commit_in_part_is_told_as_done() -> Iterator[None]:
    async def commit(shards: Shards, request: Request, sights: dict[int, Any]) -> Any:
        every = [whole(request, shard) for shard in commits.holders_of(sights)]
        return joined(request, *that_count(every, await shards.submit_parts(every)))

    with replaced(commits, "commit", commit):
        yield


_NOT_PAID: Final = (HoldState.PENDING, HoldState.EXPIRED)


@mutation(found_by=10)
def what_ran_out_beside_what_is_committed_is_not_missed() -> Iterator[None]:
    original = commits._committed

    async def committed(
        shards: Shards,
        request: Request,
        sights: dict[int, Sight],
        parts: Sequence[Part],
        number: int,
    ) -> Any:
        pending = [
            part for part in parts if (hold := sights[part.shard].hold) and hold.state in _NOT_PAID
        ]
        return await original(shards, request, sights, pending, number)

    with replaced(commits, "_committed", committed):
        yield


@mutation(found_by=10)
def answers_of_a_batch_of_calls_are_mixed_up() -> Iterator[None]:
    original = wire.encode_answers
    with replaced(wire, "encode_answers", lambda answers: original(answers[::-1])):
        yield
