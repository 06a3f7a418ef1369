"""On every generated history the kernels and the reference machine are the same machine."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.operations import PART_KINDS, Flag, Kind, Request
from engine.reference.lines import lines_of
from engine.status import Status
from tests.property.drawn import drawn
from tests.property.histories import BASES, History, finished, receipts, request
from tests.property.pair import Pair

# By profile: how many histories are tried, and after how many blocks at least the machines must
# have been compared when all of them are.
HISTORIES = {"dev": 50, "ci": 800, "nightly": 10_000}
BLOCKS = {"dev": 500, "ci": 10_000, "nightly": 100_000}
PROFILE = settings.get_current_profile_name()


# What must be done at least once: each kind with each set of flags that it may have, alone and linked.
_ORDER = [Flag.PARTIAL, Flag.SUPERSEDE, Flag.COMMIT_NOW]
_RESERVES = [sum(flags) for size in range(4) for flags in combinations(_ORDER, size)]
DONE = {
    *((kind, 0, False) for kind in Kind),
    *((Kind.RESERVE, flags, linked) for flags in _RESERVES for linked in (False, True)),
    *((kind, 0, True) for kind in (*PART_KINDS, Kind.RETURN, Kind.MOVE, Kind.ADD_LINE)),
    *((Kind.COMMIT, Flag.RELEASE_REST, linked) for linked in (False, True)),
    (Kind.COMMIT, Flag.RE_RESERVE, False),
    (Kind.RELEASE, Flag.SUPERSEDE, False),
    *((Kind.RESERVE, Flag.SUPERSEDE | Flag.RE_RESERVE, linked) for linked in (False, True)),
    *((Kind.WRITE_OFF, flags, False) for flags in (Flag.DAMAGED, Flag.QUALITY_CONTROL)),
}

# What each kind must have been refused for at least once, beyond what a line says by itself: all but
# what comes up in one history of a hundred. These histories are too small for TOO_MANY_LINES and for
# some limits, which have tests of their own.
_PLACE = {Status.UNKNOWN_LOCATION, Status.UNKNOWN_SKU, Status.WRONG_SHARD}
_CHANNEL = {Status.UNKNOWN_CHANNEL, Status.NOT_IN_CHANNEL}
_CALL = {Status.UNKNOWN_HOLD, Status.HOLD_EXPIRED, Status.HOLD_RELEASED}
_PART = {*_CALL, Status.NOT_IN_HOLD, Status.EXCEEDS_HOLD}
_CLAIM = {
    Status.UNKNOWN_HOLD, Status.HOLD_NOT_FULFILLED, Status.NOT_IN_HOLD, Status.EXCEEDS_HOLD,
}  # fmt: skip
_FACT = {Status.WRONG_SHARD, Status.BALANCE_LIMIT}
REFUSED: dict[Kind, set[Status]] = {
    Kind.RESERVE: {
        *_PLACE, *_CHANNEL, Status.HOLD_EXISTS, Status.HOLD_NOT_PENDING, Status.INSUFFICIENT_STOCK,
    },
    Kind.COMMIT: {*_PART, *_CHANNEL, Status.HOLD_NOT_PENDING, Status.INSUFFICIENT_STOCK},
    Kind.RELEASE: {*_PART, Status.HOLD_NOT_PENDING},
    Kind.FULFIL: {*_PART, Status.HOLD_NOT_COMMITTED, Status.BALANCE_LIMIT},
    Kind.CANCEL: {*_PART, Status.HOLD_NOT_COMMITTED},
    Kind.UNFULFIL: {*_PART, Status.HOLD_NOT_FULFILLED},
    Kind.EXTEND: {*_CALL, Status.HOLD_NOT_PENDING},
    Kind.MOVE: {Status.UNKNOWN_LOCATION, Status.WRONG_SHARD, *_CHANNEL, *_PART, Status.HOLD_NOT_PENDING, Status.INSUFFICIENT_STOCK},
    Kind.ADD_LINE: {
        Status.WRONG_SHARD, *_CHANNEL, Status.UNKNOWN_HOLD, Status.HOLD_EXPIRED,
        Status.HOLD_NOT_PENDING, Status.INSUFFICIENT_STOCK,
    },
    Kind.SALE: {Status.BALANCE_LIMIT, Status.HOLD_EXISTS, Status.ALREADY_RECORDED},
    Kind.RETURN: {*_FACT, *_CLAIM},
    Kind.RECEIVE: {*_FACT, Status.UNKNOWN_HOLD},
    Kind.ADJUST: _FACT,
    Kind.COUNT: {Status.WRONG_SHARD, Status.MOMENT_TOO_OLD},
    Kind.INSPECT: {Status.WRONG_SHARD, Status.EXCEEDS_SET_ASIDE},
    Kind.WRITE_OFF: {*_FACT, Status.EXCEEDS_SET_ASIDE},
    Kind.SET_SAFETY_STOCK: set(),
    Kind.SET_PRICE: {Status.CURRENCY_MISMATCH},
    Kind.CLAIM_RETURN: _CLAIM,
    Kind.EXPECT: {
        Status.WRONG_SHARD, Status.HOLD_EXISTS, Status.HOLD_NOT_PENDING, Status.BALANCE_LIMIT,
    },
    Kind.CANCEL_INCOMING: {
        Status.UNKNOWN_HOLD, Status.HOLD_NOT_PENDING, Status.NOT_IN_HOLD, Status.EXCEEDS_HOLD,
    },
}  # fmt: skip


class Tally:
    """How many blocks both machines were given, and what they answered."""

    def __init__(self) -> None:
        self.blocks = 0
        self.done: set[tuple[int, int, bool]] = set()
        self.refused: set[tuple[int, Status]] = set()

    def note(self, requests: Sequence[Request], statuses: Sequence[Status]) -> None:
        self.blocks += 1
        answers = iter(statuses)
        for each in requests:
            before = 0  # the flags of the line before
            for line in lines_of(each):
                status = next(answers)
                is_linked = bool((line.flags | before) & Flag.LINKED)
                before = line.flags
                if status == Status.OK:
                    self.done.add((line.kind, line.flags & ~Flag.LINKED, is_linked))
                else:
                    self.refused.add((line.kind, status))


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    tally = Tally()
    yield tally
    assert tally.blocks >= BLOCKS[PROFILE], f"{PROFILE}: {tally.blocks} blocks are too few"
    if PROFILE != "dev":
        assert tally.done >= DONE
        assert tally.refused >= {(kind, each) for kind in Kind for each in REFUSED[kind]}


@settings(max_examples=HISTORIES[PROFILE])
@given(seed=st.integers(0, (1 << 64) - 1))
def test_both_machines_live_the_same_life(tally: Tally, seed: int) -> None:
    history = drawn(Random(seed))
    try:
        live(history, tally)
    except Exception as error:
        error.add_note(f"these of its steps are enough:\n{shrunk(history, fails)}")
        raise


def live(history: History, tally: Tally) -> None:
    """Give a history to both machines, which are compared after every block."""
    pair = Pair(
        resolved_remembered=history.resolved_remembered,
        movements_remembered=history.movements_remembered,
        expiries_per_block=history.expiries_per_block,
        now_ns=history.began_ns,
    )
    stock = receipts(history.stock)
    filling = [request(BASES[0], stock)] if stock else []
    tally.note(filling, pair.apply(filling))
    for step in history.steps:
        pair.wait(step.wait)
        for location, changed in step.places:
            pair.set_location(location, **changed)
        for extreme in step.extremes:
            pair.force(*extreme)
        holds = pair.reference.holds
        requests = [finished(draft, holds, pair.now_ns) for draft in step.drafts]
        tally.note(requests, pair.apply(requests))


def fails(history: History) -> bool:
    try:
        live(history, Tally())
    except Exception:  # noqa: BLE001  whatever it is: the first one is raised in the end
        return True
    return False


def shrunk(history: History, is_bad: Callable[[History], bool]) -> History:
    """The history without the steps that it does not need to be bad."""
    for at in reversed(range(len(history.steps))):
        without = history._replace(steps=[*history.steps[:at], *history.steps[at + 1 :]])
        if is_bad(without):
            history = without
    return history


def test_what_a_failure_does_not_need_is_left_out() -> None:
    history = drawn(Random(1))
    needed = history.steps[3]
    assert shrunk(history, lambda each: needed in each.steps).steps == [needed]
