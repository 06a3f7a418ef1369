"""Many clients at once while the shard is killed: to each cell it is as if they had come in turn.

What they saw, each call with its interval, is held to the rules of a cell by `tests.linear`, which
finds an order that explains every answer, or shows where there is none.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest

from engine.operations import Kind
from engine.status import Status
from tests.e2e.conftest import Shop
from tests.e2e.test_kill import dies
from tests.linear import search, spec
from tests.linear.convert import CURRENCY
from tests.linear.crowd import Crowd
from tests.linear.history import LOSE, READ, READS, Operation
from tests.linear.search import NotLinearizableError

KILLS = 2
EXPECTED = {
    Status.INSUFFICIENT_STOCK, Status.HOLD_EXPIRED, Status.EXCEEDS_HOLD, Status.LINKED_LINE_REFUSED,
}  # fmt: skip
ENOUGH = 800  # operations before each kill, and after the last one


@pytest.fixture
async def seen(shop: Shop) -> list[Operation]:
    """A history with kills of the shard in it."""
    goods = await shop.goods(skus=3, locations=2, currency=CURRENCY)
    *travelling, alone = goods.skus
    joined = [(sku, at) for sku in travelling for at in goods.locations]
    crowd = Crowd(shop.gateway.address, [*joined, (alone, goods.at)])
    kill = partial(dies, shop.stack, "shard-0")
    assert await crowd.work(kill, KILLS, ENOUGH), "nobody lost patience"
    await shop.audit()
    return crowd.history


async def test_every_answer_fits_one_order_of_the_operations(seen: list[Operation]) -> None:
    began = time.perf_counter()
    checked = await asyncio.to_thread(search.check, seen)
    took_s = time.perf_counter() - began
    lost = sum(not each.is_answered for each in seen)
    print(  # noqa: T201 - for who runs it with -s
        f"{checked.operations} operations checked in {took_s:.1f} s: {checked.parts} parts, "
        f"{checked.steps} steps, {lost} never answered"
    )
    told = [
        (call, answer)
        for each in seen
        if each.answers is not None and not each.is_read
        for call, answer in zip(each.calls, each.answers, strict=True)
    ]
    done = {call.kind for call, answer in told if any(line[0] == Status.OK for line in answer)}
    assert {call.kind for each in seen for call in each.calls} == set(spec.RULES)
    assert {*done, *READS, LOSE} == set(spec.RULES)  # what is lost is seldom there to be lost
    linked_moves = [
        {line[0] for line in answer}
        for call, answer in told
        if call.kind == Kind.MOVE and len(call.lines) > 1
    ]
    assert {Status.OK} in linked_moves, "no bundle has moved"
    assert any(Status.LINKED_LINE_REFUSED in each for each in linked_moves)
    statuses = Counter(line[0] for _, answer in told for line in answer)
    assert set(statuses) >= EXPECTED, statuses
    # What was seen fits; with one answer changed it does not.
    for spoil in (stock_is_lost, two_reads_are_swapped, an_answer_is_wrong):
        with pytest.raises(NotLinearizableError) as caught:
            await asyncio.to_thread(search.check, list(spoil(seen)))
        assert "must be" in str(caught.value)


# --- what the checker must not let pass ------------------------------------------------------------
# Early, and of the cell that stands alone: it takes long to try in vain all that may have become of
# calls that nobody was answered.


def stock_is_lost(seen: list[Operation]) -> Iterable[Operation]:
    """Some read saw less than was there."""
    alone = seen[-1].calls
    reads = [each for each in seen if each.calls == alone]
    wrong = reads[len(reads) // 6]
    (((on_hand, *others),),) = wrong.answers or ()
    for each in seen:
        yield replace(each, answers=(((on_hand - 10_000, *others),),)) if each is wrong else each


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
    """Some sale, or hold or receipt, was answered an availability that never was."""
    alone = [(kind, seen[-1].calls[0].cells) for kind in (Kind.SALE, Kind.RESERVE, Kind.RECEIVE)]
    told = [
        each
        for each in seen
        if [(call.kind, call.cells) for call in each.calls] in [[name] for name in alone]
        and [[line[0] for line in lines] for lines in each.answers or ()] == [[Status.OK]]
    ]
    wrong = told[len(told) // 6]
    for each in seen:
        yield replace(each, answers=(((Status.OK, 10_000),),)) if each is wrong else each
