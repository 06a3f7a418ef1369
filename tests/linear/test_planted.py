"""A shard with a fault built in does not pass; one without does, crashes and all."""

import asyncio
from collections import Counter

import pytest

from engine.status import Status
from tests.linear import faults
from tests.linear.crowd import Crowd
from tests.linear.history import Operation
from tests.linear.house import (
    DirtyShard,
    Forgetful,
    HastyJournal,
    House,
    Parts,
    SlowerJournal,
    StaleShard,
)
from tests.linear.search import NotLinearizableError, check

CELLS = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1))  # the last one stands alone
CRASHES = 4
ENOUGH = 150  # operations before each crash, and after the last one
CHANCES = 12  # runs in which a fault must show; most runs show it


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
        pytest.param(
            Parts(shard=DirtyShard, journal=SlowerJournal), id="shows what is not durable"
        ),
        pytest.param(Parts(shard=StaleShard), id="reads a stale copy"),
        pytest.param(Parts(machine=faults.ExtendsExpiredHolds), id="extends expired holds"),
        pytest.param(Parts(machine=faults.LosesMoves), id="loses moves in a crash"),
        *(
            pytest.param(Parts(machine=faults.broken(each)), id=each.__name__.replace("_", " "))
            for each in (
                faults.lets_holds_live_longer,
                faults.doubles_moves,
                faults.takes_back_more_than_was_handed_over,
                faults.keeps_the_superseded_hold,
                faults.keeps_the_rest,
                faults.counts_as_of_now,
                faults.takes_returns_of_a_refused_exchange,
                faults.does_parts_one_by_one,
                faults.expects_for_ever,
            )
        ),
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
