"""The rules of holds, from the order that makes one to what comes back of it."""

from collections import Counter
from typing import Final

from engine.operations import Flag, Kind
from engine.status import Status
from engine.views import HoldState
from tests.linear.goods import Judged, facts_in_turn, move_goods, refused, told
from tests.linear.history import Answer, Call, Key
from tests.linear.state import FOREVER, NS_PER_MS, PENDING, Draft, Hold, HoldLine, Moment

OF_PENDING: Final = (
    Kind.COMMIT,
    Kind.RELEASE,
)  # the other calls on parts are of what was committed

_ALL: Final[tuple[tuple[Key | None, int], ...]] = (
    (None, 0),
)  # the lines of a call on a whole hold

# Plain numbers, as in `goods`.
_PARTIAL: Final = int(Flag.PARTIAL)
_SUPERSEDE: Final = int(Flag.SUPERSEDE)
_COMMIT_NOW: Final = int(Flag.COMMIT_NOW)
_RELEASE_REST: Final = int(Flag.RELEASE_REST)
_RE_RESERVE: Final = int(Flag.RE_RESERVE)


# --- orders ---------------------------------------------------------------------------------------


def reserve(draft: Draft, call: Call, moment: Moment) -> Answer:
    """All lines of an order or none, after all returns of an exchange or none."""
    before = dict(draft.changes)
    returned = facts_in_turn(draft, call.returns, moment)
    is_refused = any(status != Status.OK for status, _ in returned)
    lines = refused([], len(call.lines))
    granted = [0] * len(call.lines)
    if not is_refused:
        lines, granted = _order(draft, call, moment)
        is_refused = all(status != Status.OK for status, _ in lines)
    if is_refused and returned:
        draft.changes = before
        returned = refused(returned, len(call.returns))
    answer = told(draft, *returned, *lines)
    if call.flags & _PARTIAL:
        granted = [0] * len(returned) + granted
        return tuple((*each, units) for each, units in zip(answer, granted, strict=True))
    return answer


def _order(draft: Draft, call: Call, moment: Moment) -> tuple[list[Judged], list[int]]:
    """Judge an order's lines, and hold what they get. The first that is short says why."""
    nothing = [0] * len(call.lines)
    refusal = _judge_holds(draft, call)
    if refusal != Status.OK:
        return refused([(refusal, call.lines[0][0])], len(call.lines)), nothing
    old = _superseded(draft, call)
    demand: Counter[Key] = Counter()  # demand on one cell is summed; what is given back is less
    own: Counter[Key] = Counter()  # what is left of the old hold: no line for a part gets less
    for line in old.lines if old else ():
        demand[line.cell] -= line.pending
        own[line.cell] += line.pending
    judged: list[Judged] = []
    granted: list[int] = []
    for key, units in call.lines:
        free = max(0, min(units, draft.available(key) - demand[key]))
        if free < units and not call.flags & _PARTIAL:
            judged.append((Status.INSUFFICIENT_STOCK, key))
            return refused(judged, len(call.lines)), nothing
        free = max(free, min(units, own[key]))
        own[key] -= free
        judged.append((Status.OK if free else Status.INSUFFICIENT_STOCK, key))
        granted.append(free)
        demand[key] += free
    if any(granted):
        if old and old.state == HoldState.EXPIRED:  # for good: it cannot be paid late any more
            draft.put_hold(call.other, old._replace(state=HoldState.RELEASED))
        elif old:
            _lapse(draft, call.other, old, HoldState.RELEASED)
        is_committed = bool(call.flags & _COMMIT_NOW)
        lines = [(key, units) for (key, _), units in zip(call.lines, granted, strict=True) if units]
        _open(draft, call, lines, moment, is_committed=is_committed)
    return judged, granted


def _judge_holds(draft: Draft, call: Call) -> Status:
    if draft.get(call.hold) is not None:
        return Status.HOLD_EXISTS
    old = draft.hold(call.other) if call.flags & _SUPERSEDE else None
    if old is not None:
        is_order = any(line.committed or line.fulfilled for line in old.lines)
        was_order = old.state == HoldState.CANCELLED
        return Status.HOLD_NOT_PENDING if is_order or was_order else Status.OK
    return Status.OK


def _superseded(draft: Draft, call: Call) -> Hold | None:
    """The hold that an order takes the place of, while it is pending or has run out."""
    old = draft.hold(call.other) if call.flags & _SUPERSEDE else None
    ends = old is not None and old.state in (HoldState.PENDING, HoldState.EXPIRED)
    return old if ends else None


def _open(
    draft: Draft,
    call: Call,
    lines: list[tuple[Key, int]],
    moment: Moment,
    *,
    is_committed: bool = False,
) -> None:
    """Make a hold of so many units of each cell."""
    if is_committed:
        for key, units in lines:
            draft.add(key, committed=units)
        held = tuple(HoldLine(key, pending=0, committed=units) for key, units in lines)
        draft.put_hold(call.hold, Hold(HoldState.COMMITTED, 0, 0, held))
        return
    for key, units in lines:
        draft.add(key, reserved=units)
    held = tuple(HoldLine(key, pending=units) for key, units in lines)
    draft.put_hold(call.hold, Hold(HoldState.PENDING, *_deadline(call, moment), held))


def _deadline(call: Call, moment: Moment) -> Moment:
    ttl_ns = call.value * NS_PER_MS
    return Moment(moment.ns + ttl_ns, moment.latest_ns + ttl_ns)


def add_line(draft: Draft, call: Call, moment: Moment) -> Answer:
    """One more line for a pending hold, for one that was released, or the first of a new one."""
    ((key, units),) = call.lines
    hold = draft.hold(call.hold)
    status = Status.OK
    if draft.record(call.hold) is not None:
        status = Status.UNKNOWN_HOLD
    elif hold is not None and hold.state != HoldState.RELEASED:
        status = _closed(Kind.ADD_LINE, hold)
    if status == Status.OK and draft.available(key) < units:
        status = Status.INSUFFICIENT_STOCK
    if status == Status.OK:
        _append(draft, call.hold, key, units, _deadline(call, moment))
    return told(draft, (status, key))


def hand_over(draft: Draft, call: Call, moment: Moment) -> Answer:
    """Units that a hold has pending are another's, whatever the stock, and with the same deadline."""
    ((key, units),) = call.lines
    gives = call._replace(kind=Kind.RELEASE)
    judged = _judge_part(draft, gives, key, units)
    if judged[0] != Status.OK:
        return told(draft, *refused([judged], 2))
    taker = draft.hold(call.other)
    status = Status.OK
    if draft.record(call.other) is not None:
        status = Status.UNKNOWN_HOLD
    elif taker is not None and _closed(Kind.COMMIT, taker) == Status.HOLD_EXPIRED:
        status = Status.HOLD_EXPIRED  # some of it at least ran out, and so does what would join it
    if status != Status.OK:
        return told(draft, *refused([judged, (status, None)], 2))
    giver = draft.hold(call.hold)
    assert giver is not None
    _take(draft, gives, key, units, moment)
    _append(draft, call.other, key, units, Moment(giver.deadline_ns, giver.latest_ns))
    return told(draft, judged, judged)


def _append(draft: Draft, hold_id: bytes, key: Key, units: int, deadline: Moment) -> None:
    """One more pending line for a hold; the deadline is of one that had nothing pending, or is new."""
    hold = draft.hold(hold_id) or Hold(HoldState.RELEASED, 0, 0, ())
    if hold.state != HoldState.PENDING:
        deadline_ns, latest_ns = deadline
        lines = tuple(line._replace(lapsed=0) for line in hold.lines)
        hold = hold._replace(
            state=HoldState.PENDING, deadline_ns=deadline_ns, latest_ns=latest_ns, lines=lines
        )
    draft.add(key, reserved=units)
    lines = (*hold.lines, HoldLine(key, pending=units))
    draft.put_hold(hold_id, hold._replace(lines=lines))


# --- calls on a hold ------------------------------------------------------------------------------


def on_hold(draft: Draft, call: Call, moment: Moment) -> Answer:
    """COMMIT, RELEASE, FULFIL, CANCEL, UNFULFIL: all of the hold, or parts of it, all or none."""
    hold = draft.hold(call.hold)
    if hold is not None and call.flags & _RE_RESERVE and hold.state == HoldState.EXPIRED:
        return told(draft, _reserve_again(draft, call, hold))
    demand: Counter[Key | None] = Counter()
    judged: list[Judged] = []
    for key, units in call.lines or _ALL:
        demand[key] += units
        judged.append(_judge_part(draft, call, key, demand[key]))
        if judged[-1][0] != Status.OK:
            return told(draft, *refused(judged, max(1, len(call.lines))))
    for key, units in call.lines or _ALL:
        _take(draft, call, key, units, moment)
    if call.flags & _RELEASE_REST:
        hold = draft.hold(call.hold)
        assert hold is not None
        rest = call._replace(kind=Kind.RELEASE)
        lines = tuple(_moved(draft, rest, line, line.pending, moment) for line in hold.lines)
        _settle(draft, call.hold, hold._replace(lines=lines), HoldState.CANCELLED)
    return told(draft, *judged)


def _judge_part(draft: Draft, call: Call, key: Key | None, units: int) -> Judged:
    hold = draft.hold(call.hold)
    if hold is None:
        return Status.UNKNOWN_HOLD, None
    status = _closed(call.kind, hold)
    if status != Status.OK:
        return status, hold.lines[0].cell
    called = [line for line in hold.lines if key in (None, line.cell)]
    first = called[0].cell if called else None
    if not any(_usable(call.kind, line) for line in hold.lines):
        is_undone = call.kind == Kind.UNFULFIL
        return Status.HOLD_NOT_FULFILLED if is_undone else Status.HOLD_NOT_COMMITTED, first
    if not called:
        return Status.NOT_IN_HOLD, None
    if units > sum(_usable(call.kind, line) for line in called):
        return Status.EXCEEDS_HOLD, first
    return Status.OK, first


def _closed(kind: Kind | str, hold: Hold) -> Status:
    """Why a hold's state allows no such call at all; OK if it does."""
    if hold.state == HoldState.EXPIRED:
        return Status.HOLD_EXPIRED
    if hold.state == HoldState.RELEASED:
        return Status.HOLD_RELEASED
    if kind == Kind.UNFULFIL:
        was_cancelled = hold.state == HoldState.CANCELLED
        return Status.HOLD_NOT_FULFILLED if was_cancelled else Status.OK
    if kind in (Kind.FULFIL, Kind.CANCEL):
        return Status.OK if hold.state.is_live else Status.HOLD_NOT_COMMITTED
    if hold.state == HoldState.PENDING:
        return Status.OK
    is_short = kind == Kind.COMMIT and any(line.lapsed for line in hold.lines)
    return Status.HOLD_EXPIRED if is_short else Status.HOLD_NOT_PENDING


def _usable(kind: Kind | str, line: HoldLine) -> int:
    if kind == Kind.UNFULFIL:
        return line.fulfilled - line.returned
    return line.pending if kind in OF_PENDING else line.committed


def _take(draft: Draft, call: Call, key: Key | None, units: int, moment: Moment) -> None:
    """Move units of a hold, from the first of its lines on; all there are if none are said."""
    hold = draft.hold(call.hold)
    assert hold is not None
    lines = list(hold.lines)
    left = units or sum(_usable(call.kind, line) for line in lines)
    for place, line in enumerate(lines):
        if key in (None, line.cell):
            part = min(left, _usable(call.kind, line))
            lines[place] = _moved(draft, call, line, part, moment)
            left -= part
    resolved = HoldState.RELEASED if call.kind == Kind.RELEASE else HoldState.CANCELLED
    _settle(draft, call.hold, hold._replace(lines=tuple(lines)), resolved)


def _moved(draft: Draft, call: Call, line: HoldLine, units: int, moment: Moment) -> HoldLine:
    """Move units of a hold's line to their next state, in the cell and in the line."""
    kind, pending, committed, fulfilled = call.kind, line.pending, line.committed, line.fulfilled
    if not units:
        return line
    if kind == Kind.COMMIT:
        draft.add(line.cell, reserved=-units, committed=units)
        return line._replace(pending=pending - units, committed=committed + units)
    if kind == Kind.RELEASE:
        draft.add(line.cell, reserved=-units)
        return line._replace(pending=pending - units)
    if kind == Kind.CANCEL:
        draft.add(line.cell, committed=-units)
        return line._replace(committed=committed - units)
    handed = units if kind == Kind.FULFIL else -units
    draft.add(line.cell, committed=-handed)
    move_goods(draft, call, line.cell, -handed, moment)
    return line._replace(committed=committed - handed, fulfilled=fulfilled + handed)


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


# --- time -----------------------------------------------------------------------------------------


def extend(draft: Draft, call: Call, moment: Moment) -> Answer:
    """A later deadline for a pending hold; an earlier one changes nothing."""
    hold = draft.hold(call.hold)
    if hold is None:
        return told(draft, (Status.UNKNOWN_HOLD, None))
    status = _closed(call.kind, hold)
    if status == Status.OK:
        # As with the moments of facts, a guess would be another one wherever this is tried.
        later = _deadline(call, moment) if moment.is_told else Moment(0, FOREVER)
        deadline_ns = max(later.ns, hold.deadline_ns)
        latest_ns = max(later.latest_ns, hold.latest_ns)
        draft.put_hold(call.hold, hold._replace(deadline_ns=deadline_ns, latest_ns=latest_ns))
    return told(draft, (status, hold.lines[0].cell))


def expire(draft: Draft, now_ns: int) -> None:
    """Let the holds expire that are overdue at a time, and those or not that may be."""
    pending = draft.get(PENDING, ())
    overdue = [hold_id for deadline_ns, hold_id in pending if deadline_ns < now_ns]
    for hold_id in overdue:
        hold = draft.hold(hold_id)
        assert hold is not None
        if hold.latest_ns < now_ns or draft.one_of(2) == 0:
            lines = tuple(line._replace(lapsed=line.pending) for line in hold.lines)
            _lapse(draft, hold_id, hold._replace(lines=lines), HoldState.EXPIRED)
        else:
            draft.put_hold(hold_id, hold._replace(deadline_ns=now_ns))


def _lapse(draft: Draft, hold_id: bytes, hold: Hold, resolved: HoldState) -> None:
    """What is pending is free again."""
    for line in hold.lines:
        draft.add(line.cell, reserved=-line.pending)
    lines = tuple(line._replace(pending=0) for line in hold.lines)
    _settle(draft, hold_id, hold._replace(lines=lines), resolved)


def _reserve_again(draft: Draft, call: Call, hold: Hold) -> Judged:
    """A payment that came too late: all that has lapsed, if it is still to be had."""
    demand: Counter[Key] = Counter()
    for line in hold.lines:
        demand[line.cell] += line.lapsed
        if line.lapsed and draft.available(line.cell) < demand[line.cell]:
            return Status.INSUFFICIENT_STOCK, line.cell
    for line in hold.lines:
        draft.add(line.cell, committed=line.lapsed)
    lines = tuple(line._replace(committed=line.lapsed, lapsed=0) for line in hold.lines)
    draft.put_hold(call.hold, hold._replace(state=HoldState.COMMITTED, lines=lines))
    return Status.OK, hold.lines[0].cell


# --- places ---------------------------------------------------------------------------------------


def move(draft: Draft, call: Call, moment: Moment) -> Answer:
    """What a hold has pending is held at another location: all that is meant, or nothing.

    Linked moves are each of another SKU, so none of them changes what another finds.
    """
    judged: list[Judged] = []
    parts: list[tuple[dict[int, int], int]] = []
    for (sku, to), units in call.lines:
        status, key, going = _judge_move(draft, call, sku, to, units)
        judged.append((status, key))
        parts.append((going, to))
        if status != Status.OK:
            return told(draft, *refused(judged, len(call.lines)))
    for going, to in parts:
        _relocate(draft, call.hold, going, to)
    return told(draft, *judged)


def _judge_move(
    draft: Draft, call: Call, sku: int, to: int, units: int
) -> tuple[Status, Key | None, dict[int, int]]:
    """Whether units of a SKU (0: of each) can go; and how many of which of the hold's lines do."""
    hold = draft.hold(call.hold)
    if hold is None:
        return Status.UNKNOWN_HOLD, None, {}
    status = _closed(call.kind, hold)
    if status != Status.OK:
        return status, hold.lines[0].cell, {}
    called = [
        place
        for place, line in enumerate(hold.lines)
        if sku in (0, line.cell[0]) and call.value in (0, line.cell[1])
    ]
    if not called:
        return Status.NOT_IN_HOLD, None, {}
    key = hold.lines[called[0]].cell[0], to
    if not any(hold.lines[place].pending for place in called):
        return Status.HOLD_NOT_PENDING, key, {}
    going = [place for place in called if hold.lines[place].cell[1] != to]
    left = units or sum(hold.lines[place].pending for place in going)
    parts: dict[int, int] = {}
    for place in going:
        if part := min(left, hold.lines[place].pending):
            parts[place] = part
            left -= part
    if left:
        return Status.EXCEEDS_HOLD, key, {}
    demand: Counter[Key] = Counter()
    for place, part in parts.items():
        there = hold.lines[place].cell[0], to
        demand[there] += part
        if draft.available(there) < demand[there]:
            return Status.INSUFFICIENT_STOCK, there, {}
    return Status.OK, key, parts


def _relocate(draft: Draft, hold_id: bytes, parts: dict[int, int], to: int) -> None:
    """Hold parts of a hold's lines elsewhere. A line of which something stays is two lines then."""
    hold = draft.hold(hold_id)
    assert hold is not None
    lines = list(hold.lines)
    for place, units in parts.items():
        line = lines[place]
        there = line.cell[0], to
        draft.add(line.cell, reserved=-units)
        draft.add(there, reserved=units)
        if line.pending > units or line.committed or line.fulfilled:
            lines[place] = line._replace(pending=line.pending - units)
            lines.append(HoldLine(there, pending=units))
        else:
            lines[place] = line._replace(cell=there)
    draft.put_hold(hold_id, hold._replace(lines=tuple(lines)))
