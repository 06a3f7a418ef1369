"""On every generated history the kernels and the reference machine are the same machine."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from tests.property.histories import BASES, History, finished, histories, receipts, request
from tests.property.pair import Pair

# By profile: how many histories are tried, and after how many blocks at least the machines must
# have been compared when all of them are.
HISTORIES = {"dev": 50, "ci": 800, "nightly": 10_000}
BLOCKS = {"dev": 500, "ci": 10_000, "nightly": 100_000}
PROFILE = settings.get_current_profile_name()


class Tally:
    """How many blocks both machines were given."""

    def __init__(self) -> None:
        self.blocks = 0


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    tally = Tally()
    yield tally
    assert tally.blocks >= BLOCKS[PROFILE], f"{PROFILE}: {tally.blocks} blocks are too few"


@settings(max_examples=HISTORIES[PROFILE])
@given(history=histories)
def test_both_machines_live_the_same_life(tally: Tally, history: History) -> None:
    pair = Pair(
        resolved_remembered=history.resolved_remembered,
        movements_remembered=history.movements_remembered,
        expiries_per_block=history.expiries_per_block,
        now_ns=history.began_ns,
    )
    stock = receipts(history.stock)
    pair.apply([request(BASES[0], stock)] if stock else [])
    for step in history.steps:
        pair.wait(step.wait)
        for location, changed in step.places:
            pair.set_location(location, **changed)
        for extreme in step.extremes:
            pair.force(*extreme)
        holds = pair.reference.holds
        pair.apply([finished(draft, holds, pair.now_ns) for draft in step.drafts])
    tally.blocks += 1 + len(history.steps)
