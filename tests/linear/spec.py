"""What a shard is allowed to do, one operation after the other: the rules a history is held to.

They are stated once more here, in `goods`, `holds` and `transfers`, apart from `engine.reference`, so
that a checker does not repeat the engine's mistakes. `RULES` has one function for each kind of call;
a new kind is a new entry. A rule gets the state as a `Draft` and changes it there, checks nothing of
what was told, and returns what must be answered. Malformed lines and limits are not its business:
clients that record do not send them.

Of time only this is known: when an answer tells its block's time, everything that was due before
then has expired. A read tells no time, so holds may or may not have expired before it, but the ones
that were due first go first, and none goes whose deadline is not before the next block's time.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from engine.operations import Kind
from engine.views import HoldState
from tests.linear import goods, holds, transfers
from tests.linear.goods import Rule
from tests.linear.history import (
    ARRIVE,
    HAND_OVER,
    LOOK_UP,
    LOOK_UP_INCOMING,
    LOSE,
    READ,
    SHIP,
    SHIPPED,
    Answer,
    Call,
    Operation,
)
from tests.linear.state import CLOCK, FOREVER, PENDING, Changes, Draft, Moment, State

HAS_DEADLINE: Final = (HoldState.PENDING, HoldState.EXPIRED)  # the others are told as 0

# --- what an operation may do ---------------------------------------------------------------------


def effects(state: State, operation: Operation, before_ns: int) -> Iterator[Changes]:
    """What an operation may change in a state, given what it was answered; nothing if it cannot be.

    `before_ns` is the time of the next block that is known of. Of an operation that was not answered
    every effect is possible.
    """
    for draft, expected in outcomes(state, operation, before_ns):
        if operation.answers is None or all(map(agrees, operation.answers, expected)):
            yield draft.changes


def outcomes(
    state: State, operation: Operation, before_ns: int
) -> Iterator[tuple[Draft, list[Answer]]]:
    """What an operation may come to, and what it must be answered then."""
    for moment in _moments(state, operation, before_ns):
        ways: list[tuple[int, ...]] = [()]
        while ways:
            draft = Draft(state, ways.pop())
            if moment.ns > state.get(CLOCK, 0):
                draft.put(CLOCK, moment.ns)
            holds.expire(draft, moment.ns)
            yield draft, [RULES[call.kind](draft, call, moment) for call in operation.calls]
            ways += draft.other_ways


def is_seen(state: State, operation: Operation) -> bool:
    """Whether a read may have seen just this state."""
    draft, now = Draft(state), Moment(state.get(CLOCK, 0), FOREVER)
    expected = [RULES[call.kind](draft, call, now) for call in operation.calls]
    return all(map(agrees, operation.answers or (), expected))


def agrees(told: Answer, expected: Answer) -> bool:
    """Whether an answer is as it must be, in all that it tells."""
    return len(told) == len(expected) and all(
        len(one) == len(other) and all(map(_is, one, other))
        for one, other in zip(told, expected, strict=True)
    )


class Between(NamedTuple):
    """A number that is not known better than so."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


def _is(told: Any, expected: Any) -> bool:
    if isinstance(expected, Between) and told is not None:
        return bool(expected.least <= told <= expected.most)
    return told is None or bool(told == expected)


def _moments(state: State, operation: Operation, before_ns: int) -> Iterator[Moment]:
    """The times that make a difference: one that is told, or just after each deadline."""
    if operation.at_ns is not None:
        yield Moment(operation.at_ns, operation.at_ns)
        return
    yield Moment(state.get(CLOCK, 0), before_ns)
    for deadline_ns in sorted(set(_deadlines(state, operation))):
        if deadline_ns + 1 < before_ns:
            yield Moment(deadline_ns + 1, before_ns)


def _deadlines(state: State, operation: Operation) -> Iterator[int]:
    """Deadlines of pending holds; for reads, only those of the holds that they can see.

    A read that need not be so late leaves more of what may come after it.
    """
    cells = {cell for call in operation.calls for cell in call.cells}
    ids = {each for call in operation.calls for each in call.ids}
    for deadline_ns, hold_id in state.get(PENDING, ()):
        is_seen = hold_id in ids or any(line.cell in cells for line in state[hold_id].lines)
        if is_seen or not operation.is_read:
            yield deadline_ns


# --- reads ----------------------------------------------------------------------------------------


def _read(draft: Draft, call: Call, moment: Moment) -> Answer:
    return tuple(draft.cell(key) for key, _ in call.lines)


def _look_up(draft: Draft, call: Call, moment: Moment) -> Answer:
    hold = draft.hold(call.hold)
    if hold is None:
        return ((None, None),)
    lines = [(*line.cell, *line[1:-1]) for line in hold.lines]
    deadline = Between(hold.deadline_ns, hold.latest_ns) if hold.state in HAS_DEADLINE else 0
    return ((hold.state, deadline), *lines)


def _look_up_incoming(draft: Draft, call: Call, moment: Moment) -> Answer:
    record = draft.record(call.hold)
    if record is None:
        return ((None, None),)
    lines = [(*line.cell, *line[1:]) for line in record.lines]
    return ((record.state, record.expected_at_ms), *lines)


RULES: Final[dict[Kind | str, Rule]] = {
    READ: _read,
    LOOK_UP: _look_up,
    LOOK_UP_INCOMING: _look_up_incoming,
    Kind.RESERVE: holds.reserve,
    Kind.ADD_LINE: holds.add_line,
    HAND_OVER: holds.hand_over,
    Kind.COMMIT: holds.on_hold,
    Kind.RELEASE: holds.on_hold,
    Kind.FULFIL: holds.on_hold,
    Kind.CANCEL: holds.on_hold,
    Kind.UNFULFIL: holds.on_hold,
    Kind.EXTEND: holds.extend,
    Kind.MOVE: holds.move,
    Kind.SALE: goods.fact,
    Kind.RETURN: goods.fact,
    Kind.RECEIVE: goods.fact,
    Kind.ADJUST: goods.fact,
    Kind.COUNT: goods.fact,
    Kind.INSPECT: goods.fact,
    Kind.WRITE_OFF: goods.fact,
    Kind.CLAIM_RETURN: goods.claim_return,
    Kind.SET_SAFETY_STOCK: goods.set_safety_stock,
    Kind.SET_PRICE: goods.set_price,
    Kind.EXPECT: goods.expect,
    Kind.CANCEL_INCOMING: goods.cancel_incoming,
    SHIP: transfers.ship,
    SHIPPED: transfers.shipped,
    ARRIVE: transfers.arrive,
    LOSE: transfers.lose,
}
