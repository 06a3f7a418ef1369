"""Marks of parts that are to be given up: which of them count, however many there are."""

import os

import pytest

from actors import given_up
from engine.operations import Answer, Kind, Request
from engine.status import Status
from tests.unit.test_router import Town, call, order, town
from tests.unit.test_spanning import (
    HELD,
    OP,
    an_order,
    channel_rules,
    dies,
    hold_five,
    pending_of,
)

__all__ = ["town"]

BUYER = bytes([8]) * 16


async def test_a_part_of_which_nothing_could_be_taken_says_nothing_of_the_rest(town: Town) -> None:
    """Its line is given up under the step that takes it, and the order in its place is refused."""
    await hold_five(town)
    await town.router.reserve(order(BUYER, [(2, 2)], [8]))
    first = town.shards[0]
    submit = first.submit

    async def meddle(request: Request) -> Answer:
        if Kind.ADD_LINE in request.columns.get("kind", ()):
            first.submit = submit  # type: ignore[method-assign]
            line = {"sku": 1, "location": 1, "quantity": 3}
            gone = await submit(call(os.urandom(16), Kind.RELEASE, HELD, **line))
            assert not any(gone.status)
        return await submit(request)

    first.submit = meddle  # type: ignore[method-assign]
    channel_rules(town, (0, 0))  # for a channel it takes without a look whether there is enough
    operation = an_order([(1, 1), (2, 2)], [3, 9], older=HELD, channel=1)
    _, answer = await operation(town.router)
    assert any(answer.status)
    assert first.submit == submit, "nothing was to be taken"
    assert await pending_of(town, HELD) == {(2, 2): 2}
    _, paid = await town.router.on_hold(call(OP, Kind.COMMIT, HELD))
    assert not any(paid.status)
    assert town.counted("committed") == 2


@pytest.mark.parametrize("more", [0, 1, given_up._AT_ONCE])
async def test_a_part_is_known_to_be_given_up_after_many_marks_that_nothing_followed(
    more: int,
) -> None:
    """Also when these are more than one question is about."""
    release = call(OP, Kind.RELEASE, HELD)
    for lives in range(40):
        town = await Town().stocked()
        await hold_five(town)
        for number in range(given_up._AT_ONCE - 1 + more):
            await given_up.mark(town.router._shards, HELD, bytes([100 + number]) * 16, [0])
        assert await dies(town, lambda router: router.on_hold(release), lives)
        if await pending_of(town, HELD) == {(2, 2): 2}:
            break
    else:
        raise AssertionError("no part of it was given up before the other")
    _, paid = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, HELD))
    assert list(paid.status) == [Status.HOLD_RELEASED]
    assert town.counted("committed") == 0
