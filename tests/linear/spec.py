"""What a cell is allowed to do, one operation after the other: the rules that a history is held to.

They are stated once more here, apart from `engine.reference`, so that a checker does not repeat the
engine's mistakes. `RULES` has one function for each kind of call; a new kind is a new entry. A rule
gets the state as a `Draft` and changes it there, checks nothing of what was told, and returns what
must be answered. Malformed lines and limits are not its business: clients that record do not send
them.

Of time only this is known: when an answer tells its block's time, everything that was due before
then has expired. A read tells no time, so holds may or may not have expired before it, but the ones
that were due first go first, and none goes whose deadline is not before the next block's time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, Final, NamedTuple, TypeAlias

from engine.operations import Disposition, Kind
from engine.status import Status
from engine.views import HoldState
from tests.linear.history import LOOK_UP, READ, Answer, Call, Key, Operation

NS_PER_MS: Final = 1_000_000
FOREVER: Final = 1 << 63

# What else the state has by name, beside cells (by key) and holds (by id).
CLOCK: Final = "clock"  # the shard's time is this or later
PENDING: Final = "pending"  # (deadline, id) of each pending hold, in order

State: TypeAlias = Mapping[Any, Any]
Changes: TypeAlias = dict[Any, Any]


class Cell(NamedTuple):
    """The counters of one cell, in base units."""

    on_hand: int = 0
    reserved: int = 0
    committed: int = 0
    damaged: int = 0
    quality_control: int = 0
    safety_stock: int = 0

    @property
    def available(self) -> int:
        kept = self.damaged + self.quality_control + self.safety_stock
        return self.on_hand - self.reserved - self.committed - kept


class HoldLine(NamedTuple):
    """Units of one cell, by what became of them."""

    cell: Key
    pending: int
    committed: int = 0
    fulfilled: int = 0


class Hold(NamedTuple):
    """A hold. Its deadline is exact unless nobody was told when it was made."""

    state: HoldState
    deadline_ns: int  # not before this
    latest_ns: int  # nor after this
    lines: tuple[HoldLine, ...]


class Moment(NamedTuple):
    """When an operation happens, as far as that is known: the same twice if its answer tells it."""

    ns: int
    latest_ns: int


NO_CELL: Final = Cell()
OF_PENDING: Final = (Kind.COMMIT, Kind.RELEASE)  # the other calls on holds are of what is committed


class Draft:
    """A state with changes that are not made yet."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.changes: Changes = {}

    def get(self, name: Any, default: Any = None) -> Any:
        changes = self.changes
        return changes[name] if name in changes else self._state.get(name, default)

    def put(self, name: Any, value: Any) -> None:
        self.changes[name] = value

    def cell(self, key: Key) -> Cell:
        found: Cell = self.get(key, NO_CELL)
        return found

    def add(self, key: Key, **by: int) -> None:
        cell = self.cell(key)
        self.put(key, cell._replace(**{name: getattr(cell, name) + n for name, n in by.items()}))

    def put_hold(self, hold_id: bytes, hold: Hold) -> None:
        """Keep a hold, and the list of the pending ones with it."""
        others = [each for each in self.get(PENDING, ()) if each[1] != hold_id]
        if hold.state == HoldState.PENDING:
            others.append((hold.deadline_ns, hold_id))
        self.put(PENDING, tuple(sorted(others)))
        self.put(hold_id, hold)


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
        for draft in _swept(state, moment.ns):
            yield draft, [RULES[call.kind](draft, call, moment) for call in operation.calls]


def agrees(told: Answer, expected: Answer) -> bool:
    """Whether an answer is as it must be, in all that it tells."""
    return len(told) == len(expected) and all(
        len(one) == len(other) and all(a is None or a == b for a, b in zip(one, other, strict=True))
        for one, other in zip(told, expected, strict=True)
    )


def _moments(state: State, operation: Operation, before_ns: int) -> Iterator[Moment]:
    """The times that make a difference: one that is told, or just after each deadline."""
    if operation.at_ns is not None:
        yield Moment(operation.at_ns, operation.at_ns)
        return
    yield Moment(state.get(CLOCK, 0), before_ns)
    for deadline_ns in sorted({each for each, _ in state.get(PENDING, ())}):
        if deadline_ns + 1 < before_ns:
            yield Moment(deadline_ns + 1, before_ns)


def _swept(state: State, now_ns: int) -> Iterator[Draft]:
    """The state at a time: holds that are overdue have expired, those that may be may have."""
    overdue = [hold_id for deadline_ns, hold_id in state.get(PENDING, ()) if deadline_ns < now_ns]
    fates = [(True,) if state[each].latest_ns < now_ns else (True, False) for each in overdue]
    for fate in product(*fates):
        draft = Draft(state)
        if now_ns > state.get(CLOCK, 0):
            draft.put(CLOCK, now_ns)
        for hold_id, expires in zip(overdue, fate, strict=True):
            hold = draft.get(hold_id)
            if expires:
                lines = tuple(
                    _moved(draft, Kind.RELEASE, each, each.pending) for each in hold.lines
                )
                _settle(draft, hold_id, hold._replace(lines=lines), HoldState.EXPIRED)
            else:
                draft.put_hold(hold_id, hold._replace(deadline_ns=now_ns))
        yield draft


# --- reads ----------------------------------------------------------------------------------------


def _read(draft: Draft, call: Call, moment: Moment) -> Answer:
    return tuple(draft.cell(key) for key, _ in call.lines)


def _look_up(draft: Draft, call: Call, moment: Moment) -> Answer:
    hold = draft.get(call.hold)
    if hold is None:
        return ((None,),)
    return ((hold.state,), *(tuple(line[1:]) for line in hold.lines))


# --- facts ----------------------------------------------------------------------------------------


def _sale(draft: Draft, key: Key, units: int, value: int) -> None:
    draft.add(key, on_hand=-units)


def _receive(draft: Draft, key: Key, units: int, value: int) -> None:
    draft.add(key, on_hand=units)


def _return(draft: Draft, key: Key, units: int, disposition: int) -> None:
    draft.add(key, on_hand=units)
    if disposition == Disposition.QUALITY_CONTROL:
        draft.add(key, quality_control=units)
    if disposition == Disposition.DAMAGED:
        draft.add(key, damaged=units)


def _count(draft: Draft, key: Key, units: int, value: int) -> None:
    draft.put(key, draft.cell(key)._replace(on_hand=units))


def _set_safety_stock(draft: Draft, key: Key, units: int, value: int) -> None:
    draft.put(key, draft.cell(key)._replace(safety_stock=units))


Rule: TypeAlias = Callable[[Draft, Call, Moment], Answer]


def _fact(record: Callable[[Draft, Key, int, int], None]) -> Rule:
    """A rule of something that has happened: it is never refused."""

    def rule(draft: Draft, call: Call, moment: Moment) -> Answer:
        ((key, units),) = call.lines
        record(draft, key, units, call.value)
        return ((Status.OK, draft.cell(key).available),)

    return rule


# --- holds ----------------------------------------------------------------------------------------


def _reserve(draft: Draft, call: Call, moment: Moment) -> Answer:
    """All lines or none; demand on one cell is summed. The first that is short says why."""
    refusal = Status.HOLD_EXISTS if draft.get(call.hold) else Status.INSUFFICIENT_STOCK
    demand: Counter[Key] = Counter()
    for number, (key, units) in enumerate(call.lines):
        demand[key] += units
        if refusal == Status.HOLD_EXISTS or draft.cell(key).available < demand[key]:
            before = [
                (Status.LINKED_LINE_REFUSED, draft.cell(each).available)
                for each, _ in call.lines[:number]
            ]
            unseen = [(Status.LINKED_LINE_REFUSED, 0)] * (len(call.lines) - number - 1)
            return (*before, (refusal, draft.cell(key).available), *unseen)
    for key, units in call.lines:
        draft.add(key, reserved=units)
    ttl_ns = call.value * NS_PER_MS
    lines = tuple(HoldLine(key, pending=units) for key, units in call.lines)
    made = Hold(HoldState.PENDING, moment.ns + ttl_ns, moment.latest_ns + ttl_ns, lines)
    draft.put_hold(call.hold, made)
    return tuple((Status.OK, draft.cell(key).available) for key, _ in call.lines)


def _on_hold(draft: Draft, call: Call, moment: Moment) -> Answer:
    """COMMIT, RELEASE, FULFIL or CANCEL: all of the hold, or a quantity of its lines on one cell."""
    hold = draft.get(call.hold)
    if hold is None:
        return ((Status.UNKNOWN_HOLD, 0),)
    status = _closed(call.kind, hold)
    if status != Status.OK:
        return ((status, draft.cell(hold.lines[0].cell).available),)
    usable = "pending" if call.kind in OF_PENDING else "committed"
    key, quantity = call.lines[0] if call.lines else (None, 0)
    about = [place for place, each in enumerate(hold.lines) if key in (None, each.cell)]
    units = [getattr(each, usable) for each in hold.lines]
    total = sum(units[place] for place in about)
    if not any(units):
        status = Status.HOLD_NOT_COMMITTED
    elif not about:
        status = Status.NOT_IN_HOLD
    elif quantity > total:
        status = Status.EXCEEDS_HOLD
    else:
        _take(draft, call, hold, {place: units[place] for place in about}, quantity or total)
    return ((status, draft.cell(hold.lines[about[0]].cell).available if about else 0),)


def _closed(kind: Kind | str, hold: Hold) -> Status:
    """Why a hold's state allows no such call at all; OK if it does."""
    if hold.state == HoldState.EXPIRED:
        return Status.HOLD_EXPIRED
    if hold.state == HoldState.RELEASED:
        return Status.HOLD_RELEASED
    if kind in OF_PENDING:
        return Status.OK if hold.state == HoldState.PENDING else Status.HOLD_NOT_PENDING
    return Status.OK if hold.state.is_live else Status.HOLD_NOT_COMMITTED


def _take(draft: Draft, call: Call, hold: Hold, usable: dict[int, int], left: int) -> None:
    """Move units of a hold, from the first of its lines on; `usable`: how many, by line."""
    lines = list(hold.lines)
    for place, most in usable.items():
        units = min(left, most)
        lines[place] = _moved(draft, call.kind, lines[place], units)
        left -= units
    if call.release_rest:
        lines = [_moved(draft, Kind.RELEASE, each, each.pending) for each in lines]
    resolved = HoldState.RELEASED if call.kind == Kind.RELEASE else HoldState.CANCELLED
    _settle(draft, call.hold, hold._replace(lines=tuple(lines)), resolved)


def _moved(draft: Draft, kind: Kind | str, line: HoldLine, units: int) -> HoldLine:
    """Move units of a hold's line to their next state, in the cell and in the line."""
    if not units:
        return line
    if kind == Kind.COMMIT:
        draft.add(line.cell, reserved=-units, committed=units)
        return line._replace(pending=line.pending - units, committed=line.committed + units)
    if kind == Kind.RELEASE:
        draft.add(line.cell, reserved=-units)
        return line._replace(pending=line.pending - units)
    if kind == Kind.FULFIL:
        draft.add(line.cell, committed=-units, on_hand=-units)
        return line._replace(committed=line.committed - units, fulfilled=line.fulfilled + units)
    assert kind == Kind.CANCEL
    draft.add(line.cell, committed=-units)
    return line._replace(committed=line.committed - units)


def _settle(draft: Draft, hold_id: bytes, hold: Hold, resolved: HoldState) -> None:
    """Keep a hold in the state that its lines say; `resolved` when nothing is left of it."""
    if any(line.pending for line in hold.lines):
        state = HoldState.PENDING
    elif any(line.committed for line in hold.lines):
        state = HoldState.COMMITTED
    elif any(line.fulfilled for line in hold.lines):
        state = HoldState.FULFILLED
    else:
        state = resolved
    draft.put_hold(hold_id, hold._replace(state=state))


RULES: Final[dict[Kind | str, Rule]] = {
    READ: _read,
    LOOK_UP: _look_up,
    Kind.RESERVE: _reserve,
    Kind.COMMIT: _on_hold,
    Kind.RELEASE: _on_hold,
    Kind.FULFIL: _on_hold,
    Kind.CANCEL: _on_hold,
    Kind.SALE: _fact(_sale),
    Kind.RETURN: _fact(_return),
    Kind.RECEIVE: _fact(_receive),
    Kind.ADJUST: _fact(_receive),
    Kind.COUNT: _fact(_count),
    Kind.SET_SAFETY_STOCK: _fact(_set_safety_stock),
}
