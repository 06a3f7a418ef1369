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
from tests.linear.crowd import Crowd
from tests.linear.history import READ, Operation
from tests.linear.search import NotLinearizableError

KILLS = 2
ENOUGH = 1_500  # operations before each kill, and after the last one


@pytest.fixture
async def seen(shop: Shop) -> list[Operation]:
    """A history with kills of the shard in it."""
    goods = await shop.goods(skus=3)
    crowd = Crowd(shop.gateway.address, [(sku, goods.at) for sku in goods.skus])
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
    kinds = Counter(call.kind for each in seen for call in each.calls)
    assert set(kinds) == set(spec.RULES)
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
