"""The expiry wheel against a sorted list: nothing early, nothing late, nothing lost."""

import random
from bisect import bisect_left

import numpy as np
import pytest

from engine import kernels, limits
from engine.machine import Machine
from tests.property.histories import BERLIN, DAY, EUR, FIRST_LEVEL, MS, SECOND_LEVEL, TICK, request
from tests.property.shop import TEA, receive, release, reserve

BEGAN_NS = 20_000 * DAY
LONGEST_MS = limits.MAX_TTL_MS


class Alarm:
    """A machine with stock enough, and a sorted list of the deadlines it should know of."""

    def __init__(self, began_ns: int = BEGAN_NS) -> None:
        self.deadlines: list[int] = []
        self._blocks = 0
        self._machine = Machine(resolved_remembered=64)
        self._machine.set_sku_limit(1)
        self._machine.set_location(BERLIN, owned=True, currency=EUR)
        self._machine.apply(began_ns, [request(bytes(16), [receive(limits.MAX_QUANTITY)])])

    @property
    def now_ns(self) -> int:
        return self._machine.now_ns

    @property
    def next_deadline_ns(self) -> int:
        return self._machine.next_deadline_ns()

    def at(self, now_ns: int, ttls_ms: list[int] | None = None) -> None:
        """Apply a block at this time, with a hold for each time to live."""
        lines = [reserve(1, TEA, ttl_ms=ttl_ms) for ttl_ms in ttls_ms or ()]
        self._blocks += 1
        op_id = self._blocks.to_bytes(8, "big") + bytes(8)
        outcome = self._machine.apply(now_ns, [request(op_id, lines)] if lines else [])
        assert not outcome.status.any()
        due = bisect_left(self.deadlines, now_ns)
        assert outcome.expired == due
        self.tidy(self._blocks % 3)
        self.deadlines = sorted(self.deadlines[due:] + [now_ns + x.value * MS for x in lines])
        assert self._pending() == self.deadlines
        bound = self.next_deadline_ns
        assert (now_ns <= bound <= self.deadlines[0]) if self.deadlines else bound == -1

    def tidy(self, most: int) -> bool:
        """Move holds of the next turn on; tell whether more wait."""
        return self._machine.tidy(most)

    def resolve_some(self, number: int) -> None:
        """Release holds from the middle of their buckets; a nanosecond goes by."""
        state = self._machine.state
        slots = np.flatnonzero(state.lines[:, kernels.STATE] == kernels.H_PENDING)
        chosen = slots[:: max(1, len(slots) // number)].tolist() if number else []
        ids = [state.holds[slot, [kernels.ID_HI, kernels.ID_LO]].tolist() for slot in chosen]
        gone = state.holds[chosen, kernels.DEADLINE].tolist()
        lines = [release("")._replace(hold_hi=high, hold_lo=low) for high, low in ids]
        if lines and self.now_ns < self.deadlines[0]:
            outcome = self._machine.apply(self.now_ns + 1, [request(b"release".ljust(16), lines)])
            assert not outcome.status.any()
            for deadline in gone:
                self.deadlines.remove(deadline)
            assert self._pending() == self.deadlines

    def _pending(self) -> list[int]:
        state = self._machine.state
        is_pending = state.lines[:, kernels.STATE] == kernels.H_PENDING
        pending: list[int] = sorted(state.holds[is_pending, kernels.DEADLINE].tolist())
        assert state.meta[kernels.WHEEL_COUNT] == len(pending)
        return pending


@pytest.mark.parametrize("seed", range(6))
def test_random_deadlines_expire_in_time(seed: int) -> None:
    draw = random.Random(seed)
    alarm = Alarm(BEGAN_NS + draw.randrange(SECOND_LEVEL))
    for _ in range(150):
        reach = draw.choice([20, 5_000, 600_000, 300_000_000, LONGEST_MS])
        ttls = [draw.randint(1, reach) for _ in range(draw.choice([0, 1, 5, 40]))]
        step = draw.choice([1, MS, 50 * MS, FIRST_LEVEL, 600_000 * MS, SECOND_LEVEL])
        alarm.at(alarm.now_ns + draw.randint(1, step), ttls)
        if draw.random() < 0.3:
            alarm.resolve_some(draw.randrange(4))
    alarm.at(alarm.now_ns + LONGEST_MS * MS + 1)
    assert alarm.deadlines == []


@pytest.mark.parametrize("ttl_ms", [2, 4_000, 5_000, 280_000_000, 300_000_000, LONGEST_MS])
@pytest.mark.parametrize("level", [TICK, FIRST_LEVEL, SECOND_LEVEL])
def test_deadlines_at_the_boundary_of_a_level_are_exact(level: int, ttl_ms: int) -> None:
    """Seen from the same level and from those above; the clock stops at each deadline and after."""
    boundary = (BEGAN_NS // level + 3) * level
    deadlines = [boundary + by for by in (-TICK - 1, -TICK, -1, 0, 1, TICK - 1, TICK, level)]
    made = {deadline - ttl_ms * MS for deadline in deadlines}
    alarm = Alarm(min(made) - 1)
    for now_ns in sorted(made | {at + by for at in deadlines for by in (0, 1)}):
        alarm.at(now_ns, [ttl_ms] if now_ns in made else [])
    assert alarm.deadlines == []


@pytest.mark.parametrize("level", [FIRST_LEVEL, SECOND_LEVEL])
def test_one_leap_over_many_boundaries_loses_nothing(level: int) -> None:
    alarm = Alarm((BEGAN_NS // level + 1) * level - 1)
    ttls = [1, 2, level // MS, level // MS + 1, 2 * level // MS, 7 * level // MS, LONGEST_MS - 1]
    alarm.at(alarm.now_ns + 1, [ttl for ttl in ttls for _ in range(3)])
    alarm.at(alarm.now_ns + LONGEST_MS * MS)
    assert alarm.deadlines == []


def test_the_next_deadline_is_exact_within_the_tick_and_near_it_after_few_waits() -> None:
    alarm = Alarm()
    alarm.at(BEGAN_NS + 1, [LONGEST_MS])
    (deadline,) = alarm.deadlines
    waits = 0
    while alarm.deadlines:
        bound = alarm.next_deadline_ns
        assert bound <= deadline
        alarm.at(max(bound, alarm.now_ns) + 1)
        waits += 1
    assert waits <= 4
    assert alarm.now_ns == deadline + 1


def test_the_next_deadline_is_the_earliest_of_its_tick() -> None:
    tick_ns = (BEGAN_NS // TICK + 100) * TICK
    alarm = Alarm()
    for ttl_ms, deadline in ((3, tick_ns + 9), (2, tick_ns + 5), (1, tick_ns + 7)):
        alarm.at(deadline - ttl_ms * MS, [ttl_ms])
    assert alarm.next_deadline_ns == tick_ns
    alarm.at(tick_ns)
    assert alarm.next_deadline_ns == tick_ns + 5


def test_holds_of_one_bucket_can_be_resolved_in_any_order() -> None:
    alarm = Alarm()
    for first in (0, 1, 2):
        alarm.at(alarm.now_ns + 1, [100] * 5)
        for _ in range(4 - first):
            alarm.resolve_some(1)
            alarm.resolve_some(2)
    alarm.at(alarm.now_ns + 200 * MS)
    assert alarm.deadlines == []


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
def test_holds_of_the_next_turn_can_be_resolved_while_they_move_on(number: int) -> None:
    """From either place, first, last or between; those that come meanwhile keep the order too."""
    turn_ns = (BEGAN_NS // FIRST_LEVEL + 2) * FIRST_LEVEL
    alarm = Alarm(turn_ns - FIRST_LEVEL - 1)  # two turns before, so that they gather above
    alarm.at(alarm.now_ns + 1, [4_300] * 7 + [4_400] * 4)
    assert min(alarm.deadlines) >= turn_ns
    alarm.at(turn_ns - FIRST_LEVEL + MS)
    for _ in range(11):
        alarm.tidy(number)
        alarm.resolve_some(2)
        alarm.at(alarm.now_ns + MS, [4_300])
    alarm.tidy(20)
    assert not alarm.tidy(1), "all have moved"
    alarm.at(turn_ns + 2 * FIRST_LEVEL)
    assert alarm.deadlines == []


def test_nothing_waits_in_an_empty_wheel() -> None:
    state = Machine(resolved_remembered=1).state
    assert kernels.next_event(state.wheel_bits, BEGAN_NS >> limits.EXPIRY_TICK_BITS) == -1
