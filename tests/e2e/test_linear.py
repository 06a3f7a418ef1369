"""Many clients at once while the shard is killed: to each cell it is as if they had come in turn.

What they saw, each call with its interval, is held to the rules of a cell by `tests.linear`, which
finds an order that explains every answer, or shows where there is none.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest

from adapters.client import Client
from adapters.client.ids import new_op_id
from engine.operations import Kind
from engine.status import Status
from tests.e2e.conftest import Shop, until
from tests.e2e.test_kill import dies
from tests.linear import search
from tests.linear.history import READ, Call, Key, Operation
from tests.linear.record import Recorder, Request, ShardReader
from tests.linear.search import NotLinearizableError
from tests.linear.traffic import Traffic

KILLS = 2
IMPATIENT_S = 0.3  # less than a shard is away: such a caller does not know what became of its call
GIVEN_UP = 3  # calls that are never asked again; each may have happened at any time, or never
ENOUGH = 2_000  # operations before each kill, and after the last one


class Crowd:
    """Clients of all kinds, at work on the same cells until they are told to end."""

    def __init__(self, gateway: str, cells: list[Key]) -> None:
        self.gateway, self.cells = gateway, cells
        self.recorder = Recorder()
        self.traffic = Traffic(cells, random.Random())
        self.end = asyncio.Event()

    async def call(self, number: int, *, direct: bool, timeout_s: float = 30.0) -> None:
        """Work as one client: mostly unary calls, some batches, a look at a hold now and then."""
        name = f"{'direct' if direct else 'gateway'} {number}"
        recorder, traffic, rng = self.recorder, self.traffic, random.Random()
        async with Client.connect(self.gateway, direct=direct, timeout_s=timeout_s) as client:
            while not self.end.is_set():
                hold = traffic.hold()
                if hold is not None and rng.random() < 0.1:
                    await recorder.look_up(client, name, hold)
                else:
                    await recorder.ask(client, name, traffic.request())
                await self.rest(timeout_s)

    async def rest(self, timeout_s: float) -> None:
        """Let others come in. The impatient are in no hurry, or nearly all they ask would be lost."""
        await asyncio.sleep(0 if timeout_s > IMPATIENT_S else 0.1)

    async def look(self, number: int) -> None:
        """Read cells of the shard, each alone and all at once."""
        reader, rng = ShardReader(self.gateway), random.Random()
        while not self.end.is_set():
            keys = self.cells if rng.random() < 0.5 else [rng.choice(self.cells)]
            was_read = await self.recorder.read(reader, f"reader {number}", keys)
            await asyncio.sleep(0.002 if was_read else 0.05)
        await reader.close()

    async def look_alone(self) -> None:
        """Read every cell when nobody is at work."""
        reader = ShardReader(self.gateway)
        for key in self.cells:
            assert await self.recorder.read(reader, "auditor", [key])
        await reader.close()

    async def has_done(self, operations: int) -> bool:
        return sum(each.is_answered for each in self.recorder.history) >= operations


@pytest.fixture
async def seen(shop: Shop) -> list[Operation]:
    """A history with kills of the shard in it."""
    goods = await shop.goods(skus=3)
    crowd = Crowd(shop.gateway.address, [(sku, goods.at) for sku in goods.skus])
    async with Client.connect(crowd.gateway) as client:
        for key in crowd.cells:
            stock = (Call(Kind.RECEIVE, ((key, 12),)),)
            await crowd.recorder.ask(client, "opening", Request(new_op_id(), stock))
    await crowd.look_alone()
    async with asyncio.TaskGroup() as work:
        for number in range(8):
            work.create_task(crowd.call(number, direct=number % 2 == 0))
        for number in range(8, 10):
            is_direct = number % 2 == 0
            work.create_task(crowd.call(number, direct=is_direct, timeout_s=IMPATIENT_S))
        for number in range(2):
            work.create_task(crowd.look(number))
        for kill in range(KILLS + 1):
            done = len(crowd.recorder.history)
            await until(partial(crowd.has_done, done + ENOUGH), 40)
            if kill < KILLS:
                await dies(shop.stack, "shard-0")
        crowd.end.set()
    async with Client.connect(crowd.gateway) as client:
        assert await crowd.recorder.ask_again(client, but=GIVEN_UP), "nobody lost patience"
    await crowd.look_alone()
    await shop.audit()
    return crowd.recorder.history


async def test_every_answer_fits_one_order_of_the_operations(seen: list[Operation]) -> None:
    began = time.perf_counter()
    checked = await asyncio.to_thread(search.check, seen)
    took_s = time.perf_counter() - began
    lost = sum(not each.is_answered for each in seen)
    print(  # noqa: T201 - for who runs it with -s
        f"{checked.operations} operations checked in {took_s:.1f} s: {checked.parts} parts, "
        f"{checked.steps} steps, {lost} never answered"
    )
    kinds = Counter(call.kind for each in seen for call in each.calls)
    assert {READ, *list(Kind)[:11]} <= set(kinds), kinds
    statuses = Counter(line[0] for each in seen for answer in each.answers or () for line in answer)
    assert {Status.OK, Status.INSUFFICIENT_STOCK, Status.HOLD_EXPIRED} <= set(statuses), statuses
    # What was seen fits; with one answer changed it does not.
    for spoil in (stock_is_lost, two_reads_are_swapped, an_answer_is_wrong):
        with pytest.raises(NotLinearizableError) as caught:
            await asyncio.to_thread(search.check, list(spoil(seen)))
        assert "must be" in str(caught.value)


# --- what the checker must not let pass ------------------------------------------------------------


def stock_is_lost(seen: list[Operation]) -> Iterable[Operation]:
    """The last cell that was read when all was over lacks more than unanswered calls may have sold."""
    *rest, last = seen
    (((on_hand, *others),),) = last.answers or ()
    yield from rest
    yield replace(last, answers=(((on_hand - 10_000, *others),),))


def two_reads_are_swapped(seen: list[Operation]) -> Iterable[Operation]:
    """The first read, which was alone, and a later one that saw something else."""
    first, *others = (each for each in seen if [call.kind for call in each.calls] == [READ])
    later = next(
        each for each in others if each.calls == first.calls and each.answers != first.answers
    )
    for each in seen:
        if each is first or each is later:
            other = later if each is first else first
            yield replace(each, answers=other.answers)
        else:
            yield each


def an_answer_is_wrong(seen: list[Operation]) -> Iterable[Operation]:
    """Some fact in the midst of it was answered an availability that never was."""
    facts = [each for each in seen if each.answers and each.calls[0].kind == Kind.SALE]
    wrong = facts[len(facts) // 2]
    for each in seen:
        if each is wrong:
            assert each.answers is not None
            (status, _), *others = each.answers[0]
            yield replace(each, answers=(((status, 10_000), *others), *each.answers[1:]))
        else:
            yield each
