"""A shard with a fault built in does not pass; one without does, crashes and all."""

import asyncio
from collections import Counter

import pytest

from engine.status import Status
from tests.linear.crowd import Crowd
from tests.linear.history import Operation
from tests.linear.house import (
    DirtyShard,
    Forgetful,
    HastyJournal,
    House,
    LateMachine,
    Parts,
    SlowerJournal,
    StaleShard,
)
from tests.linear.search import NotLinearizableError, check

CELLS = ((1, 1), (2, 1), (3, 2))
CRASHES = 4
ENOUGH = 200  # operations before each crash, and after the last one
CHANCES = 5  # runs in which a fault must show; nearly every one shows it


async def lived(parts: Parts) -> list[Operation]:
    """What a crowd saw of a shard made of these parts."""
    async with House(parts) as house:
        crowd = Crowd(house.address, CELLS)
        await crowd.work(house.crash, CRASHES, ENOUGH)
        return crowd.history


async def test_a_sound_shard_passes() -> None:
    history = await lived(Parts())
    checked = await asyncio.to_thread(check, history)
    assert checked.operations >= (CRASHES + 1) * ENOUGH
    statuses = Counter(
        line[0] for each in history for answer in each.answers or () for line in answer
    )
    assert {Status.OK, Status.INSUFFICIENT_STOCK, Status.HOLD_EXPIRED} <= set(statuses), statuses


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(Parts(journal=HastyJournal), id="acknowledges before it is durable"),
        pytest.param(Parts(memory=Forgetful), id="does again what is asked again"),
        pytest.param(Parts(machine=LateMachine), id="expires late"),
        pytest.param(
            Parts(shard=DirtyShard, journal=SlowerJournal), id="shows what is not durable"
        ),
        pytest.param(Parts(shard=StaleShard), id="reads a stale copy"),
    ],
)
async def test_a_fault_is_found(parts: Parts) -> None:
    verdicts: list[str] = []
    while len(verdicts) < CHANCES and not any(verdicts):
        verdicts.append(await asyncio.to_thread(verdict, await lived(parts)))
    assert "operations can be placed" in verdicts[-1]


def verdict(history: list[Operation]) -> str:
    """Why a history is refused; empty when it is not."""
    try:
        check(history)
    except NotLinearizableError as found:
        return str(found)
    return ""
