"""Is a history linearizable? A search for an order that explains every answer (Wing & Gong, Lowe).

Depth first: of the operations that may come next, take one whose answer is what the rules say of the
state, until all that were answered are placed. A set of placed operations and a state that have been
met before are not tried again. An operation may come next when none that is left over was answered
before it was invoked, nor is of an earlier block. It knows no stock: that is `spec`'s.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from tests.linear import spec
from tests.linear.history import Operation, parts, shown
from tests.linear.state import FOREVER, Cell, Changes

MOST_STEPS: Final = 500_000  # of one search; a part that needs more is not decided
PATIENCE: Final = 5  # steps for each operation, before other choices are tried
SHOWN: Final = 8  # operations before the point at which the search got stuck

_NEVER: Final = 1 << 63


class NotLinearizableError(AssertionError):
    """No order of the operations explains the answers; the message shows where it ended."""


class UndecidedError(Exception):
    """Too many orders to try."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was checked: parts that are independent, operations, and steps of the search."""

    parts: int
    operations: int
    steps: int


def check(history: Iterable[Operation]) -> Checked:
    """Look at every part of a history. Raises NotLinearizableError or UndecidedError."""
    found = parts(history)
    steps = sum(map(_steps, reversed(found)))  # what is wrong with a short one shows soon
    return Checked(len(found), sum(map(len, found)), steps)


def _steps(part: list[Operation]) -> int:
    """Search one part, and tell in how many steps.

    A choice that was wrong may show much later, after others that hide it. So a search that takes
    long is begun anew with other choices first, and may take twice as long: few are unlucky twice.
    """
    attempt, steps, most = 0, 0, min(PATIENCE * len(part), MOST_STEPS)
    while True:
        try:
            return steps + Search(part, random.Random(attempt)).run(most)
        except UndecidedError:
            if most == MOST_STEPS:
                raise
        attempt, steps, most = attempt + 1, steps + most, min(2 * most, MOST_STEPS)


class Search:
    """The search in one part of a history."""

    def __init__(self, operations: list[Operation], luck: random.Random) -> None:
        """`operations` in order of invocation; `luck` chooses among those of a block."""
        self.operations = operations
        self._luck = luck
        count = len(operations)
        self._blocks = sorted(each.at_ns for each in operations if each.at_ns is not None)
        self._left = sum(each.is_answered for each in operations)
        # The operations that are not placed yet, as a list with a head (`count`) that lifts out and
        # puts back in no time.
        self._next = [*range(1, count + 1), 0]
        self._before = [count, *range(count)]
        self._head = count
        self._state: dict[Any, Any] = {}
        self._state_hash = 0
        # The numbers that a state's hash is made of are drawn: Python's hashes of -1 and -2 are one.
        self._numbers: defaultdict[tuple[Any, Any], int] = defaultdict(
            partial(random.Random(0).getrandbits, 64)
        )
        self._placed = 0  # a bit for each operation
        self._blocks_placed = 0
        self._path: list[tuple[int, Changes]] = []  # placed operations, and what they replaced
        self._stuck_at = -1
        self._stuck = ""

    def run(self, most: int) -> int:
        """Find an order, and return in how many steps. Raises what `check` raises."""
        moves = [self._moves()]
        # The states are known by a hash of 64 bits; the placed operations, which go with it, exactly.
        met: set[tuple[int, int]] = set()
        steps = 0
        while self._left:
            move = next(moves[-1], None)
            if move is None:
                self._remember_stuck()
                moves.pop()
                if not moves:
                    raise NotLinearizableError(self._stuck)
                self._take_back()
                continue
            steps += 1
            if steps > most:
                raise UndecidedError(f"{most} steps; it got as far as this. {self._stuck}")
            self._place(*move)
            at = (self._placed, self._state_hash)
            if at in met:
                self._take_back()
                continue
            met.add(at)
            moves.append(self._moves())
        return steps

    def _moves(self) -> Iterator[tuple[int, Changes]]:
        """The operations that may come next, with what they change; likely ones first."""
        before_ns = self._next_block_ns()
        of_read, of_block, timeless, unanswered = self._in_turn(self._candidates(before_ns))
        for each in of_read:
            if spec.is_seen(self._state, self.operations[each]):
                # It takes nothing away from what may come later, so there is no need to try others.
                yield each, {}
                return
        yield from self._effects(of_read, before_ns)
        # Of what has no time, nobody can tell that it is late before something else shows it.
        yield from self._effects([*of_block, *timeless], before_ns)
        for each, changes in self._effects(unanswered, before_ns):
            if changes:
                yield each, changes

    def _in_turn(self, candidates: Iterable[int]) -> tuple[list[int], ...]:
        """Candidates by how likely they come next: reads, of a block, without a time, unanswered."""
        turns: tuple[list[int], ...] = ([], [], [], [])
        for each in candidates:
            operation = self.operations[each]
            if not operation.is_answered:
                turns[3].append(each)
            elif operation.at_ns is not None:
                turns[1].append(each)
            else:
                turns[0 if operation.is_read else 2].append(each)
        self._luck.shuffle(turns[1])
        return turns

    def _effects(self, which: Iterable[int], before_ns: int) -> Iterator[tuple[int, Changes]]:
        for each in which:
            for changes in spec.effects(self._state, self.operations[each], before_ns):
                yield each, changes

    def _candidates(self, before_ns: int) -> list[int]:
        found = []
        first_answer_ns = _NEVER
        each = self._next[self._head]
        while each != self._head:
            operation = self.operations[each]
            if operation.invoked_ns > first_answer_ns:
                break
            if operation.at_ns is None or operation.at_ns == before_ns:
                found.append(each)
            if operation.answered_ns is not None:
                first_answer_ns = min(first_answer_ns, operation.answered_ns)
            each = self._next[each]
        return found

    def _next_block_ns(self) -> int:
        # They are placed in order of their blocks, so the ones that are placed are the first ones.
        left = self._blocks_placed < len(self._blocks)
        return self._blocks[self._blocks_placed] if left else FOREVER

    def _place(self, each: int, changes: Changes) -> None:
        before, after = self._before[each], self._next[each]
        self._next[before], self._before[after] = after, before
        self._count(each, 1)
        self._path.append((each, self._exchange(changes)))

    def _take_back(self) -> None:
        each, replaced = self._path.pop()
        self._exchange(replaced)
        self._count(each, -1)
        self._next[self._before[each]] = self._before[self._next[each]] = each

    def _count(self, each: int, by: int) -> None:
        operation = self.operations[each]
        self._placed ^= 1 << each
        self._left -= by * operation.is_answered
        self._blocks_placed += by * (operation.at_ns is not None)

    def _exchange(self, changes: Changes) -> Changes:
        """Change the state; returns what changes it back."""
        state, replaced = self._state, {}
        for name, value in changes.items():
            old = replaced[name] = state.get(name)
            self._state_hash ^= self._numbers[name, old] ^ self._numbers[name, value]
            if value is None:
                del state[name]
            else:
                state[name] = value
        return replaced

    # --- for people -------------------------------------------------------------------------------

    def _remember_stuck(self) -> None:
        """Keep what it looks like where the most operations were placed."""
        if len(self._path) > self._stuck_at:
            self._stuck_at = len(self._path)
            self._stuck = self._told()

    def _told(self) -> str:
        operations, since_ns = self.operations, self.operations[0].invoked_ns
        before_ns = self._next_block_ns()
        cells = [
            f"  {sku}@{at}: {value}, available {value.available}"
            for (sku, at), value in (
                (name, value) for name, value in self._state.items() if isinstance(value, Cell)
            )
        ]
        last = [f"  {operations[each].told(since_ns)}" for each, _ in self._path[-SHOWN:]]
        next_ones = [
            f"  {operations[each].told(since_ns)}\n    {self._verdict(operations[each], before_ns)}"
            for each in self._candidates(before_ns)
        ]
        done = f"{len(self._path)} of {len(operations)} operations"
        return "\n".join(
            (
                f"no order explains all answers: {done} can be placed, the last of them",
                *(last or ["  none"]),
                "which leaves",
                *(cells or ["  nothing"]),
                "and none of those that may come next leads to the end:",
                *(next_ones or self._two_orders(before_ns, since_ns)),
            )
        )

    def _verdict(self, operation: Operation, before_ns: int) -> str:
        """Why an operation may not come next, or that it may."""
        if operation.answers is None or self._fits(operation, before_ns):
            return "was tried"
        outcomes = spec.outcomes(self._state, operation, before_ns)
        expected = {"; ".join(map(shown, answers)) for _, answers in outcomes}
        return "must be " + " or ".join(sorted(expected))

    def _fits(self, operation: Operation, before_ns: int) -> bool:
        return next(spec.effects(self._state, operation, before_ns), None) is not None

    def _two_orders(self, before_ns: int, since_ns: int) -> list[str]:
        """The operations of which each must be before the other."""
        left = [
            operation
            for each, operation in enumerate(self.operations)
            if not self._placed >> each & 1
        ]
        blocks = [each for each in left if each.at_ns == before_ns]
        first = min(left, key=lambda each: each.answered_ns or _NEVER)
        return [
            *(f"  by the times of their blocks: {each.told(since_ns)}" for each in blocks),
            f"  by the clients' clock: {first.told(since_ns)}",
        ]
