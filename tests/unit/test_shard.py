"""The shard without Ray, Redis or gRPC: durability, idempotency, recovery, fencing."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import numpy as np
import pytest

from actors.mirror import MirrorFeed
from actors.ports import Entry, Overloaded, Position, Unavailable
from actors.recovery import Recovery
from actors.shard import (
    LEASE_S,
    LONE_BLOCKS,
    LONE_CHECK,
    SWEEP_EVERY_S,
    BlockStats,
    Shard,
)
from engine import limits
from engine.block import decode, encode
from engine.machine import Machine, Outcome
from engine.memory import AnswerMemory
from engine.operations import Answer, Flag, Kind, Request, id_to_pair
from engine.status import Status
from engine.views import Cell, Endangered, EndangeredHold, HoldState
from tests.fakes.journal import FakeJournal, MemoryStream
from tests.fakes.stores import FakeCatalogue, FakeSnapshots

OK = bytes(1)


class Stopped(BaseException):
    """Stands for the end of the process."""


class World:
    """What outlives a shard's process: the stream, the snapshots, the catalogue."""

    def __init__(self) -> None:
        self.stream = MemoryStream()
        self.snapshots = FakeSnapshots(self.stream)
        self.catalogue = FakeCatalogue()
        self.stopped: list[str] = []
        self.now_ns = 10**18

    def clock(self) -> int:
        self.now_ns += 1_000
        return self.now_ns

    def shard(self, **how: Any) -> Shard:
        journal = how.pop("journal", None) or FakeJournal(self.stream)
        return Shard(
            0, journal, self.snapshots, self.catalogue,
            stop_process=self._stop, clock=how.pop("clock", self.clock), **how,
        )  # fmt: skip

    def _stop(self, reason: str) -> NoReturn:
        self.stopped.append(reason)
        raise Stopped

    @asynccontextmanager
    async def serving(self, **how: Any) -> AsyncIterator[Shard]:
        shard = self.shard(**how)
        await shard.start()
        yield shard
        await shard.stop()


def new_id() -> bytes:
    return os.urandom(14) + b"\0\0"


def receive(sku: int, quantity: int, op_id: bytes = b"", location: int = 1) -> Request:
    return Request.of(
        op_id or new_id(), 1, kind=Kind.RECEIVE, sku=sku, location=location, quantity=quantity
    )


def reserve(sku: int, quantity: int, op_id: bytes = b"", ttl_ms: int = 60_000) -> Request:
    return Request.of(
        op_id or new_id(), 1, kind=Kind.RESERVE, sku=sku, location=1, quantity=quantity,
        value=ttl_ms, want_available=True,
    )  # fmt: skip


@pytest.fixture
def world() -> World:
    return World()


async def test_a_repeated_request_has_one_effect_and_one_answer(world: World) -> None:
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        request = reserve(1, 4)
        first = await shard.submit(request)
        at = shard.at
        assert await shard.submit(request) == first
        assert shard.at == at, "a repetition writes nothing"
        cells = await shard.cells([(1, 1)])
        assert cells[0] is not None
        assert cells[0].reserved == 4


async def test_a_repeated_request_in_the_same_block_has_one_effect(world: World) -> None:
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        request = reserve(1, 4)
        answers = await asyncio.gather(*(shard.submit(request) for _ in range(5)))
        assert len(set(answers)) == 1
        cells = await shard.cells([(1, 1)])
        assert cells[0] is not None
        assert cells[0].reserved == 4


async def test_answers_are_kept_in_the_memory_that_is_given(world: World) -> None:
    memory, request = AnswerMemory(), receive(1, 10)
    async with world.serving(memory=memory) as shard:
        answer = await shard.submit(request)
    assert memory.recall(request.op_id) == (request.digest, answer)


async def test_an_answer_is_the_same_after_a_restart(world: World) -> None:
    request, refused = reserve(1, 4), reserve(1, 40)
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        before = [await shard.submit(request), await shard.submit(refused)]
        state_hash = shard.machine.state_hash
    async with world.serving() as shard:
        assert shard.machine.state_hash == state_hash
        await shard.submit(receive(1, 1_000))
        assert [await shard.submit(request), await shard.submit(refused)] == before
        assert before[1].status[0] == Status.INSUFFICIENT_STOCK
        assert shard.at == Position(2, 1)


async def test_what_a_block_swept_runs_out_in_its_replay_whatever_the_bound_is_now(
    world: World,
) -> None:
    machine = Machine(expiries_per_block=5)
    async with world.serving(machine=machine) as shard:
        await shard.submit(receive(1, 20))
        for _ in range(12):
            await shard.submit(reserve(1, 1, ttl_ms=1))
        world.now_ns += 10**9
        while await shard.read(lambda: machine.holds_open):
            await shard.submit(receive(1, 1))
    swept = [decode(payload).expired for _, payload in world.stream.entries]
    assert (sum(swept), max(swept)) == (12, 5)
    for bound in (2, 100):
        again = Machine(expiries_per_block=bound)
        async with world.serving(machine=again):
            assert again.state_hash == machine.state_hash


async def test_holds_are_counted_that_ran_out_as_they_were_called_on(world: World) -> None:
    seen: list[BlockStats] = []
    machine = Machine(expiries_per_block=1)
    async with world.serving(machine=machine, observe=seen.append) as shard:
        await shard.submit(receive(1, 20))
        held = [reserve(1, 1, ttl_ms=1) for _ in range(4)]
        for each in held:
            await shard.submit(each)
        world.now_ns += 10**9
        halves = [np.array(id_to_pair(each.op_id), np.uint64) for each in held]
        late = [
            Request.of(new_id(), 1, kind=Kind.COMMIT, hold_hi=high, hold_lo=low)
            for high, low in halves
        ]
        for answer in await asyncio.gather(*map(shard.submit, late)):
            assert list(answer.status) == [Status.HOLD_EXPIRED]
    assert machine.expired == 4
    assert sum(each.expired for each in seen) == 4


async def test_holds_are_counted_once_a_cell_however_many_facts_endanger_them(world: World) -> None:
    seen: list[BlockStats] = []
    async with world.serving(observe=seen.append) as shard:
        await shard.submit(receive(1, 6))
        await shard.submit(receive(2, 2))
        for sku in (1, 1, 1, 2):
            await shard.submit(reserve(sku, 2))
        sku = [1] * 10 + [2] * 10
        sold = Request.of(new_id(), 20, kind=Kind.SALE, sku=sku, location=1, quantity=1)
        assert len((await shard.submit(sold)).endangered) == 20
    assert [each.endangered for each in seen if each.endangered] == [4]


async def test_a_fact_names_the_holds_it_endangers_and_again_after_restarts(world: World) -> None:
    held = reserve(1, 4)
    facts = [
        Request.of(new_id(), 3, kind=Kind.SALE, sku=[2, 1, 1], location=1, quantity=[1, 7, 2]),
        receive(3, 1),
        Request.of(new_id(), 1, kind=Kind.SALE, sku=1, location=1, quantity=1),
    ]
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        await shard.submit(held)
        before = await asyncio.gather(*(shard.submit(fact) for fact in facts))
        assert decode(world.stream.entries[-1][1]).requests[2].op_id == facts[2].op_id
    holds = (EndangeredHold(held.op_id, 4, 0),)
    assert [answer.endangered for answer in before] == [
        (Endangered(0, 2, 1, 1, ()), Endangered(1, 1, 1, 4, holds), Endangered(2, 1, 1, 4, holds)),
        (),
        (Endangered(0, 1, 1, 4, holds),),
    ]
    async with world.serving() as shard:  # from the journal
        await shard.submit(receive(1, 1_000))
        assert [await shard.submit(fact) for fact in facts] == before
        await shard.snapshot()
    async with world.serving() as shard:  # from the snapshot
        assert [await shard.submit(fact) for fact in facts] == before


async def test_an_op_id_with_other_content_is_refused(world: World) -> None:
    async with world.serving() as shard:
        op_id = new_id()
        assert (await shard.submit(receive(1, 10, op_id))).status == OK
        assert (await shard.submit(receive(1, 11, op_id))).status[0] == Status.OP_ID_REUSED
        assert (await shard.submit(receive(1, 10, op_id))).status == OK


async def test_the_id_of_a_batch_line_is_taken(world: World) -> None:
    async with world.serving() as shard:
        base = new_id()
        batch = Request.of(base, 3, kind=Kind.RECEIVE, sku=[1, 2, 3], location=1, quantity=1)
        await shard.submit(batch)
        within, beyond = base[:14] + b"\0\2", base[:14] + b"\0\3"
        assert (await shard.submit(receive(1, 1, within))).status[0] == Status.OP_ID_REUSED
        assert (await shard.submit(receive(1, 1, beyond))).status == OK


async def test_the_id_of_a_batch_line_is_taken_in_the_same_block_too(world: World) -> None:
    async with world.serving() as shard:
        base = new_id()
        batch = Request.of(base, 3, kind=Kind.RECEIVE, sku=[1, 2, 3], location=1, quantity=1)
        within, beyond = base[:14] + b"\0\2", base[:14] + b"\0\3"
        answers = await asyncio.gather(
            shard.submit(batch), *(shard.submit(receive(1, 1, each)) for each in (within, beyond))
        )
        told = [answer.status for answer in answers]
        assert told == [OK * 3, bytes((Status.OP_ID_REUSED,)), OK]


async def test_what_waits_goes_into_one_block(world: World) -> None:
    async with world.serving() as shard:
        at = shard.at
        answers = await asyncio.gather(*(shard.submit(receive(sku, 1)) for sku in range(1, 51)))
        assert {answer.seq for answer in answers} == {at.seq + 1}
        block = decode(world.stream.entries[-1][1])
        assert len(block.requests) == 50


def gate() -> tuple[Callable[[], Awaitable[None]], asyncio.Event]:
    opened = asyncio.Event()

    async def delay() -> None:
        await opened.wait()

    return delay, opened


async def test_nobody_sees_what_is_not_durable(world: World) -> None:
    delay, opened = gate()
    opened.set()
    async with world.serving(journal=FakeJournal(world.stream, delay)) as shard:
        await shard.submit(receive(1, 10))
        opened.clear()
        pending = asyncio.create_task(shard.submit(receive(1, 5)))
        await asyncio.sleep(0.02)
        reading = asyncio.create_task(shard.cells([(1, 1)]))
        await asyncio.sleep(0.02)
        assert not pending.done()
        assert not reading.done()
        opened.set()
        assert (await pending).status == OK
        found = await reading
        assert found[0] is not None
        assert found[0].on_hand == 15


async def test_a_refused_append_is_tried_again(world: World) -> None:
    journal = FakeJournal(world.stream)
    async with world.serving(journal=journal) as shard:
        journal.faults += ["refuse", "refuse"]
        assert (await shard.submit(receive(1, 10))).status == OK
        found = await shard.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].on_hand == 10


@pytest.mark.parametrize("fault", ["lose_request", "lose_reply"])
async def test_an_append_in_doubt_ends_the_process_and_is_settled_by_the_next(
    world: World, fault: str
) -> None:
    journal = FakeJournal(world.stream)
    shard = world.shard(journal=journal)
    await shard.start()
    journal.faults.append(fault)
    request = receive(1, 10)
    unanswered = asyncio.create_task(shard.submit(request))
    await asyncio.sleep(0.05)
    assert not unanswered.done()
    assert "AppendInDoubt" in world.stopped[0]
    unanswered.cancel()
    async with world.serving() as shard:
        assert (await shard.submit(request)).status == OK
        found = await shard.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].on_hand == 10


async def test_a_fenced_owner_answers_nothing_and_ends(world: World) -> None:
    old = world.shard()
    await old.start()
    await old.submit(receive(1, 10))
    async with world.serving() as new:
        doomed = asyncio.create_task(old.submit(receive(1, 5)))
        await asyncio.sleep(0.05)
        assert not doomed.done()
        assert "Fenced" in world.stopped[0]
        found = await new.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].on_hand == 10
        doomed.cancel()


async def test_a_fenced_owner_answers_no_reads_once_its_proof_is_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.shard.LEASE_S", 0.0)
    monkeypatch.setattr("actors.shard.IDLE_CHECK_S", 0.0)
    old = world.shard()
    await old.start()
    async with world.serving() as new:
        await new.submit(receive(1, 10))
        doomed = asyncio.create_task(old.cells([(1, 1)]))
        await asyncio.sleep(0.05)
        assert not doomed.done()
        assert "Fenced" in world.stopped[0]
        doomed.cancel()


async def test_proof_of_ownership_is_as_old_as_the_append_that_gave_it(world: World) -> None:
    answered = asyncio.Event()
    answered.set()
    now_s = 0.0

    class LateAnswers(FakeJournal):
        async def append(self, position: Position, payload: bytes) -> None:
            await super().append(position, payload)
            await answered.wait()

    old = world.shard(journal=LateAnswers(world.stream), monotonic=lambda: now_s)
    await old.start()
    answered.clear()
    written = asyncio.create_task(old.submit(receive(1, 10)))
    await asyncio.sleep(0.02)
    async with world.serving() as new:  # while the old one sleeps
        await new.submit(receive(1, 5))
        now_s += LEASE_S + 1.0
        answered.set()
        assert (await written).status == OK, "it was durable before the take-over"
        doomed = asyncio.create_task(old.cells([(1, 1)]))
        await asyncio.sleep(0.05)
        assert not doomed.done()
        assert "Fenced" in world.stopped[0]
        doomed.cancel()


async def test_proof_of_ownership_is_as_old_as_the_append_at_once_that_was_late(
    world: World,
) -> None:
    """The process sleeps after the block was sent, before it waits for it in the usual way."""
    now_s = 0.0

    class LateJournal(FakeJournal):
        def append_at_once(
            self, position: Position, payload: bytes, meanwhile: Callable[[], object]
        ) -> bool:
            nonlocal now_s
            if self.is_quick:
                return super().append_at_once(position, payload, meanwhile)
            self.stream.add(position, payload)
            world.stream.add(position.opening(), b"another owner")
            now_s += LEASE_S + 1.0
            return False

        async def append(self, position: Position, payload: bytes) -> None:
            if self.is_quick:
                await super().append(position, payload)
            self.acknowledged = position  # its own entry is found

    journal = LateJournal(world.stream)
    shard = world.shard(journal=journal, monotonic=lambda: now_s)
    await shard.start()
    await alone(shard, LONE_BLOCKS + 1)
    journal.is_quick = False
    await shard.submit(receive(1, 100))
    reading = asyncio.create_task(shard.cells([(1, 1)]))
    done, _ = await asyncio.wait([reading], timeout=0.1)
    assert not done
    assert world.stopped
    assert "Fenced" in world.stopped[0]
    reading.cancel()


async def test_a_long_replay_leaves_no_proof_of_ownership(world: World) -> None:
    now_s = 0.0

    class SlowReplay(FakeJournal):
        async def read(self, *bounds: Any) -> AsyncIterator[Entry]:
            nonlocal now_s
            async for entry in super().read(*bounds):
                yield entry
            now_s += LEASE_S + 1.0
            async with world.serving() as other:
                await other.submit(receive(1, 5))

    old = world.shard(journal=SlowReplay(world.stream), monotonic=lambda: now_s)
    await old.start()
    doomed = asyncio.create_task(old.cells([(1, 1)]))
    await asyncio.sleep(0.05)
    assert not doomed.done()
    assert "Fenced" in world.stopped[0]
    doomed.cancel()


async def test_who_must_be_sure_is_not_answered_by_a_proof_that_was_asked_for_before(
    world: World,
) -> None:
    asked, told = asyncio.Event(), asyncio.Event()

    class Late(FakeJournal):
        async def last(self) -> Position | None:
            last = await super().last()
            asked.set()
            await told.wait()
            return last

    old = world.shard(journal=Late(world.stream))
    await old.start()
    await old.submit(receive(1, 10))
    first = asyncio.create_task(old.read(lambda: 1, sure=True))
    await asked.wait()
    async with world.serving() as new:
        request = reserve(1, 4)
        await new.submit(request)
        doomed = asyncio.create_task(old.hold(request.op_id, sure=True))
        await asyncio.sleep(0.01)
        told.set()
        assert await first == 1
        await asyncio.sleep(0.05)
        assert not doomed.done()
        assert "Fenced" in world.stopped[0]
        doomed.cancel()


async def test_who_must_be_sure_gets_nothing_from_an_owner_that_was_just_replaced(
    world: World,
) -> None:
    old = world.shard()
    await old.start()
    async with world.serving() as new:
        await new.submit(receive(1, 10))
        request = reserve(1, 4)
        await new.submit(request)
        assert await old.hold(request.op_id) is None, "it may show what it had, for a lease"
        assert await new.hold(request.op_id, sure=True) is not None
        assert await old.incoming(request.op_id) is None
        doomed = [
            asyncio.create_task(ask(request.op_id, sure=True)) for ask in (old.hold, old.incoming)
        ]
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in doomed)
        assert "Fenced" in world.stopped[0]
        for each in doomed:
            each.cancel()


async def test_a_hold_expires_by_itself(world: World) -> None:
    async with world.serving(clock=time.time_ns) as shard:
        await shard.submit(receive(1, 10))
        request = reserve(1, 4, ttl_ms=50)
        await shard.submit(request)
        await asyncio.sleep(0.2)
        hold = await shard.hold(request.op_id)
        assert hold is not None
        assert hold.state == HoldState.EXPIRED
        found = await shard.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].reserved == 0
        assert shard.at.seq == 3, "the expiry stands in the journal"


async def test_a_caller_that_left_before_its_turn_changes_nothing(world: World) -> None:
    delay, opened = gate()
    opened.set()
    async with world.serving(journal=FakeJournal(world.stream, delay)) as shard:
        opened.clear()
        first = asyncio.create_task(shard.submit(receive(1, 1)))
        await asyncio.sleep(0.01)
        left = asyncio.create_task(shard.submit(receive(2, 1)))
        await asyncio.sleep(0.01)
        left.cancel()
        opened.set()
        await first
        assert (await shard.cells([(2, 1)])) == [None]


async def test_the_queue_is_bounded(world: World) -> None:
    delay, opened = gate()
    opened.set()
    async with world.serving(journal=FakeJournal(world.stream, delay)) as shard:
        opened.clear()
        lines = limits.MAX_BATCH_LINES
        batch = [
            asyncio.create_task(
                shard.submit(
                    Request.of(new_id(), lines, kind=Kind.RECEIVE, sku=1, location=1, quantity=1)
                )
            )
            for _ in range(2 * limits.MAX_QUEUED_LINES // lines)
        ]
        await asyncio.sleep(0.05)
        refused = [task for task in batch if task.done()]
        assert refused
        assert all(isinstance(task.exception(), Overloaded) for task in refused)
        opened.set()
        answers = await asyncio.gather(*(task for task in batch if task not in refused))
        assert all(isinstance(answer, Answer) for answer in answers)
        found = await shard.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].on_hand == lines * len(answers)


async def test_recovery_from_a_snapshot_and_the_blocks_behind_it(world: World) -> None:
    request = reserve(1, 4)
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        answer = await shard.submit(request)
        await shard.snapshot()
        await shard.submit(receive(2, 7))
        await shard.snapshot()
        await shard.submit(receive(3, 5))
        state_hash = shard.machine.state_hash
    assert world.stream.entries[0][0] > Position(1, 0), "the stream was trimmed behind a snapshot"
    async with world.serving() as shard:
        assert shard.machine.state_hash == state_hash
        assert await shard.submit(request) == answer
        assert shard.machine.audit() == []
    world.snapshots.kept["shard-0"].pop()
    async with world.serving() as shard:
        assert (await shard.submit(request)) == answer, "the snapshot before it leads there too"


async def test_new_locations_and_skus_are_learnt_and_replayed(world: World) -> None:
    async with world.serving() as shard:
        assert (await shard.submit(receive(101, 1))).status[0] == Status.UNKNOWN_SKU
        assert (await shard.submit(receive(1, 1, location=6))).status[0] == Status.UNKNOWN_LOCATION
        world.catalogue.sku_limit, world.catalogue.locations = 101, 6
        await shard.refresh_catalogue()
        assert (await shard.submit(receive(101, 1, location=6))).status == OK
        state_hash = shard.machine.state_hash
    async with world.serving() as shard:
        assert shard.machine.state_hash == state_hash


async def test_changed_rules_of_channels_are_learnt_and_replayed(world: World) -> None:
    async with world.serving() as shard:
        await shard.submit(receive(1, 1))
        assert shard.machine.places[2].buffers == ()
        world.catalogue.buffers, world.catalogue.rules = (0, 7), 1
        await shard.refresh_catalogue()
        await shard.submit(receive(1, 1))
        assert {place.buffers for place in shard.machine.places.values()} == {(0, 7)}
        blocks = [decode(payload) for _, payload in world.stream.entries]
        assert [len(block.places) for block in blocks] == [0, 5, 5]
        await shard.submit(receive(1, 1))
        state_hash = shard.machine.state_hash
    assert decode(world.stream.entries[-1][1]).places == [], "rules are told once"
    async with world.serving() as shard:
        assert {place.buffers for place in shard.machine.places.values()} == {(0, 7)}
        assert shard.machine.state_hash == state_hash
        await shard.submit(receive(1, 1))
    assert decode(world.stream.entries[-1][1]).places == []


async def test_rules_that_changed_while_a_shard_was_down_are_in_its_next_block(
    world: World,
) -> None:
    async with world.serving() as shard:
        await shard.submit(receive(1, 1))
    world.catalogue.buffers, world.catalogue.rules = (0, 7), 1
    async with world.serving() as shard:
        await shard.submit(receive(1, 1))
    block = decode(world.stream.entries[-1][1])
    assert [place.buffers for place in block.places] == [(0, 7)] * 5


async def test_news_of_more_locations_than_a_block_holds_come_before_what_is_submitted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.serving() as shard:
        await shard.submit(receive(1, 1))
        monkeypatch.setattr(limits, "MAX_BLOCK_PLACES", 2)
        first = len(world.stream.entries)
        world.catalogue.buffers, world.catalogue.rules = (0, 7), 1
        await shard.refresh_catalogue()
        answer = await shard.submit(receive(1, 1))
        assert answer.status == OK
    blocks = [decode(payload) for _, payload in world.stream.entries[first:]]
    assert [(len(block.places), len(block.requests)) for block in blocks] == [
        (2, 0),
        (2, 0),
        (1, 1),
    ]


async def test_a_stopped_shard_says_so(world: World) -> None:
    shard = world.shard()
    with pytest.raises(Unavailable):
        await shard.submit(receive(1, 1))
    await shard.start()
    await shard.stop()
    with pytest.raises(Unavailable):
        await shard.submit(receive(1, 1))
    with pytest.raises(Unavailable):
        await shard.cells([(1, 1)])


async def test_a_journal_that_was_tampered_with_is_not_served(world: World) -> None:
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        await shard.submit(receive(1, 10))
    position, payload = world.stream.entries[1]
    block = decode(payload)
    block.requests[0].columns["quantity"] = block.requests[0].columns["quantity"] + 1
    world.stream.entries[1] = (position, encode(block)[0])
    with pytest.raises(Recovery, match="hash"):
        await world.shard().start()


async def test_a_block_that_could_not_be_read_back_is_never_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before the journal has it, and the next one goes on without."""
    shard = world.shard()
    await shard.start()
    await shard.submit(receive(1, 10))
    written = list(world.stream.entries)
    with monkeypatch.context() as smaller:
        smaller.setattr(limits, "MAX_BLOCK_BYTES", 100)
        unanswered = asyncio.create_task(shard.submit(receive(1, 5)))
        assert shard._task is not None
        with pytest.raises(Stopped):
            await shard._task
        assert not unanswered.done()
        unanswered.cancel()
    assert "a block is at most 100 bytes" in world.stopped[0]
    assert world.stream.entries == written
    async with world.serving() as shard:
        found = await shard.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].on_hand == 10


async def test_a_block_that_changes_very_many_cells_is_read_back_by_a_restart_and_by_copies(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not tell their state: a copy is loaded anew, once."""
    monkeypatch.setattr(limits, "MAX_IMAGE_CELLS", 4)
    skus = [1, 2, 3, 4, 5]
    many = {"sku": skus, "location": 1}
    flags = [Flag.LINKED | Flag.COMMIT_NOW] * 4 + [Flag.COMMIT_NOW]
    order = Request.of(new_id(), 5, kind=Kind.RESERVE, flags=flags, quantity=2, **many)
    hi, lo = id_to_pair(order.op_id)
    async with world.serving() as shard:
        feed = MirrorFeed(shard, FakeJournal(world.stream), retry_min_s=0.001, gap_s=0.0)
        follows = asyncio.create_task(feed.run())
        for at in range(5):
            await shard.submit(receive(skus[at], 9))
        assert await feed.reached(shard.at, 5.0)
        assert feed.health.loads == 1
        for request in (order, Request.of(new_id(), 1, kind=Kind.FULFIL, hold_hi=hi, hold_lo=lo)):
            assert set((await shard.submit(request)).status) == {0}
        await shard.submit(receive(1, 1))
        assert await feed.reached(shard.at, 5.0)
        assert feed.health.loads in {2, 3}
        names = [(sku, 1) for sku in skus]
        assert feed.cells(names) == await shard.cells(names) == [Cell(8)] + [Cell(7)] * 4
        follows.cancel()
        state_hash = shard.machine.state_hash
    images = [decode(payload).image for _, payload in world.stream.entries]
    assert [len(image.rows) for image in images if image and image.words is None] == [5, 5]
    async with world.serving() as shard:
        assert shard.machine.state_hash == state_hash


async def test_a_missing_block_is_noticed(world: World) -> None:
    async with world.serving() as shard:
        for _ in range(3):
            await shard.submit(receive(1, 10))
    del world.stream.entries[2]
    with pytest.raises(Recovery, match="follow"):
        await world.shard().start()


# -------------------------------------------------------------------------- a caller who is alone --


def batch() -> Request:
    """So many lines that they are worth a block of their own."""
    lines = limits.MAX_BATCH_LINES
    return Request.of(new_id(), lines, kind=Kind.RECEIVE, sku=1, location=1, quantity=1)


async def test_a_batch_is_applied_while_the_one_before_is_being_written(world: World) -> None:
    told: list[str] = []
    sent = asyncio.Event()

    async def delay() -> None:
        told.append("sent")
        sent.set()
        await asyncio.sleep(0.3)
        told.append("written")

    class Watched(Machine):
        def apply(self, now_ns: int, requests: Sequence[Request], **how: Any) -> Outcome:
            if requests:
                told.append("applied")
            return super().apply(now_ns, requests, **how)

    journal = FakeJournal(world.stream, delay)
    async with world.serving(journal=journal, machine=Watched()) as shard:
        told.clear()  # the block that opens the epoch
        await asyncio.gather(shard.submit(batch()), shard.submit(batch()))
        assert told[:4] == ["applied", "sent", "applied", "written"], "both are there at once"
        told.clear()
        sent.clear()
        first = asyncio.create_task(shard.submit(batch()))
        await sent.wait()
        await shard.submit(batch())
        assert told[:4] == ["applied", "sent", "applied", "written"], "the second one comes later"
        assert first.done()


async def test_the_id_of_a_line_of_a_batch_that_is_being_written_is_taken(world: World) -> None:
    delay, opened = gate()
    opened.set()
    async with world.serving(journal=FakeJournal(world.stream, delay)) as shard:
        base = new_id()
        three = Request.of(base, 3, kind=Kind.RECEIVE, sku=[1, 2, 3], location=1, quantity=1)
        opened.clear()
        writing = asyncio.create_task(shard.submit(three))
        await asyncio.sleep(0.01)
        within = asyncio.create_task(shard.submit(receive(1, 1, base[:14] + b"\0\2")))
        many = asyncio.create_task(shard.submit(batch()))  # worth a block before that one is there
        await asyncio.sleep(0.05)
        opened.set()
        await asyncio.gather(writing, many)
        assert (await within).status[0] == Status.OP_ID_REUSED


async def alone(shard: Shard, calls: int) -> list[Answer]:
    """Calls one after the other, each when the one before is answered and nothing is under way."""
    answers = []
    for _ in range(calls):
        answers.append(await shard.submit(receive(1, 1)))
        for _ in range(5):  # between a reply and the next call there are hundreds of times that
            await asyncio.sleep(0)
    return answers


async def test_a_caller_who_is_alone_is_answered_at_once(world: World) -> None:
    journal = FakeJournal(world.stream)
    seen: list[BlockStats] = []
    async with world.serving(journal=journal, observe=seen.append) as shard:
        answers = await alone(shard, LONE_BLOCKS)
        assert not journal.at_once, "not before it is known that nobody else is there"
        answers += await alone(shard, 3 * LONE_CHECK)
        assert len(journal.at_once) == 3 * (LONE_CHECK - 1), "now and then it goes the usual way"
        assert [answer.seq for answer in answers] == list(range(1, len(answers) + 1))
        found = await shard.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].on_hand == len(answers)
        state_hash = shard.machine.state_hash
        await asyncio.sleep(2 * SWEEP_EVERY_S)
        assert sum(stats.requests for stats in seen) == len(answers)
    async with world.serving() as shard:
        assert shard.machine.state_hash == state_hash


async def test_callers_who_come_together_share_blocks_again(world: World) -> None:
    journal = FakeJournal(world.stream)
    async with world.serving(journal=journal) as shard:
        await alone(shard, LONE_BLOCKS + 3)
        at_once = len(journal.at_once)
        assert at_once
        crowd = [asyncio.create_task(shard.submit(receive(1, 1))) for _ in range(100)]
        answers = await asyncio.gather(*crowd)
        assert len(journal.at_once) - at_once < LONE_CHECK
        assert len({answer.seq for answer in answers}) <= LONE_CHECK + 2
        before = len(journal.at_once)
        await alone(shard, LONE_BLOCKS - 1)
        assert len(journal.at_once) == before


async def test_what_is_late_at_once_is_answered_when_it_is_durable(world: World) -> None:
    opened = asyncio.Event()
    opened.set()

    async def delay() -> None:
        await opened.wait()

    journal = FakeJournal(world.stream, delay)
    async with world.serving(journal=journal) as shard:
        await alone(shard, LONE_BLOCKS + 1)
        journal.is_quick = False
        opened.clear()
        request = receive(1, 100)
        pending = asyncio.create_task(shard.submit(request))
        await asyncio.sleep(0.01)
        reading = asyncio.create_task(shard.cells([(1, 1)]))
        again = asyncio.create_task(shard.submit(request))
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in (pending, reading, again))
        opened.set()
        assert await pending == await again
        found = await reading
        assert found[0] is not None
        assert found[0].on_hand == LONE_BLOCKS + 1 + 100


async def test_a_doubt_at_once_ends_the_process_and_is_settled_by_the_next(world: World) -> None:
    journal = FakeJournal(world.stream)
    shard = world.shard(journal=journal)
    await shard.start()
    await alone(shard, LONE_BLOCKS + 1)
    journal.faults.append("lose_reply")
    request = receive(1, 100)
    unanswered = asyncio.create_task(shard.submit(request))
    await asyncio.sleep(0.05)
    assert not unanswered.done()
    assert "AppendInDoubt" in world.stopped[0]
    unanswered.cancel()
    async with world.serving() as shard:
        assert (await shard.submit(request)).status == OK
        found = await shard.cells([(1, 1)])
        assert found[0] is not None
        assert found[0].on_hand == LONE_BLOCKS + 1 + 100


async def test_a_repeated_request_of_a_lone_caller_has_one_effect(world: World) -> None:
    journal = FakeJournal(world.stream)
    async with world.serving(journal=journal) as shard:
        await alone(shard, LONE_BLOCKS + 1)
        request = receive(1, 100)
        first = await shard.submit(request)
        assert Position(first.epoch, first.seq) == journal.at_once[-1]
        assert await shard.submit(request) == first
        assert shard.at == journal.at_once[-1], "a repetition writes nothing"
        other = receive(1, 5, request.op_id)
        assert (await shard.submit(other)).status[0] == Status.OP_ID_REUSED


async def test_a_lone_caller_is_judged_by_what_is_new_in_the_catalogue(world: World) -> None:
    journal = FakeJournal(world.stream)
    async with world.serving(journal=journal) as shard:
        await alone(shard, LONE_BLOCKS + 1)
        world.catalogue.sku_limit += 1
        await shard.refresh_catalogue()
        answer = await shard.submit(receive(world.catalogue.sku_limit, 1))
        assert answer.status == OK
        assert Position(answer.epoch, answer.seq) == journal.at_once[-1]


async def test_what_a_lone_caller_holds_runs_out(world: World) -> None:
    journal = FakeJournal(world.stream)
    async with world.serving(journal=journal, clock=time.time_ns) as shard:
        await alone(shard, LONE_BLOCKS + 1)
        held = await shard.submit(reserve(1, 1, ttl_ms=30))
        assert Position(held.epoch, held.seq) == journal.at_once[-1]
        async with asyncio.timeout(0.9):  # an idle shard looks after itself once a second
            while await shard.read(lambda: shard.machine.holds_open):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_a_full_shard_refuses_a_lone_caller_and_lives_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FakeJournal(world.stream)
    async with world.serving(journal=journal) as shard:
        await alone(shard, LONE_BLOCKS + 1)
        before = shard.at

        def full(*_: Any, **__: Any) -> NoReturn:
            raise MemoryError("cells: more than 5")

        with monkeypatch.context() as patch:
            patch.setattr(Machine, "apply", full)
            with pytest.raises(Overloaded, match="is full: cells: more than 5"):
                await shard.submit(receive(1, 1))
        assert shard.at == before
        assert (await shard.submit(receive(1, 1))).status == OK
        assert journal.at_once[-1] == before.next()
