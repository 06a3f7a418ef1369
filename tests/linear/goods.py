"""The rules of goods: what has happened to them, and what is on its way.

Like all rules, they check nothing of what was told. Limits and malformed lines are not their business.
"""

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from engine.operations import Disposition, Flag, Kind
from engine.status import Status
from engine.views import HoldState
from tests.linear.history import Answer, Call, Key
from tests.linear.state import (
    COUNTED,
    FOREVER,
    Draft,
    Hold,
    HoldLine,
    Moment,
    Record,
    RecordLine,
)

Rule: TypeAlias = Callable[[Draft, Call, Moment], Answer]
Judged: TypeAlias = tuple[Status, Key | None]
"""A line's status, and the cell whose availability is told with it."""

# Plain numbers: masking with an enum takes as long as the rest of a rule.
_OF_DAMAGED: Final = int(Flag.DAMAGED)
_OF_CONTROL: Final = int(Flag.QUALITY_CONTROL)


def told(draft: Draft, *judged: Judged) -> Answer:
    """The answer to lines, now that all of them are done."""
    return tuple((status, draft.available(key) if key else 0) for status, key in judged)


# --- facts ----------------------------------------------------------------------------------------


def fact(draft: Draft, call: Call, moment: Moment) -> Answer:
    """Something that has happened. It is refused only if it is known already, or cannot have been."""
    before = dict(draft.changes)
    judged = facts_in_turn(draft, (*call.returns, call), moment)
    if judged[-1][0] != Status.OK:
        draft.changes = before
        judged = refused(judged, len(call.returns) + 1)
    return told(draft, *judged)


def facts_in_turn(draft: Draft, calls: Iterable[Call], moment: Moment) -> list[Judged]:
    """Facts up to the first that is refused."""
    judged: list[Judged] = []
    for each in calls:
        judged.append(record_fact(draft, each, moment))
        if judged[-1][0] != Status.OK:
            break
    return judged


def refused(judged: Iterable[Judged], lines: int) -> list[Judged]:
    """The answers to linked lines of which one was refused: others were not done, or not seen."""
    other = Status.LINKED_LINE_REFUSED
    seen = [(other if status == Status.OK else status, key) for status, key in judged]
    return seen + [(other, None)] * (lines - len(seen))


def record_fact(draft: Draft, call: Call, moment: Moment) -> Judged:
    ((key, units),) = call.lines
    status = _judge(draft, call)
    if status == Status.OK:
        _set_aside(draft, call, key, units)
        if call.kind == Kind.COUNT:
            _count(draft, call, moment)
        elif moved := _MOVES.get(call.kind, 0) * units:
            move_goods(draft, call, key, moved, moment)
        _note(draft, call, key, units)
    return status, key


def move_goods(draft: Draft, call: Call, key: Key, units: int, moment: Moment) -> None:
    """Goods came or went, unless the newest count has seen that already."""
    at = moment_of(call, moment)
    if not _is_seen(draft, call, at, _counted(draft, key)):
        draft.move(key, units, at, moment)


def _counted(draft: Draft, key: Key) -> Moment:
    """When the newest count was made."""
    counted: Moment = draft.get((COUNTED, key), Moment(0, 0))
    return counted


def _is_seen(draft: Draft, call: Call, at: Moment, counted: Moment) -> bool:
    """Whether something happened before the newest count, so that this has seen it."""
    return bool(call.occurred_at_ns) and draft.is_before(at, counted)


# How on_hand follows the quantity of a fact.
_MOVES: Final[dict[Kind | str, int]] = {
    Kind.SALE: -1,
    Kind.RETURN: 1,
    Kind.RECEIVE: 1,
    Kind.ADJUST: 1,
    Kind.WRITE_OFF: -1,
}


def moment_of(call: Call, now: Moment) -> Moment:
    """When it happened: not later than it was told. Clients that record name no moment to come.

    If nobody knows when it was told, nothing is made of that: the narrowest guess would be another one
    wherever the operation is tried, so that no two of these orders would lead to one state.
    """
    if call.occurred_at_ns:
        moment_ns = min(call.occurred_at_ns, now.latest_ns)
        return Moment(moment_ns, moment_ns)
    return now if now.is_told else Moment(0, FOREVER)


def _judge(draft: Draft, call: Call) -> Status:
    ((key, units),) = call.lines
    cell = draft.cell(key)
    if call.kind == Kind.SALE and call.hold and draft.get(call.hold) is not None:
        known = draft.hold(call.hold)
        is_same = known is not None and known.sold == units
        is_same = is_same and [line.cell for line in known.lines] == [key]
        return Status.ALREADY_RECORDED if is_same else Status.HOLD_EXISTS
    if call.kind == Kind.RETURN and call.hold:
        return judge_return(draft, call)
    if call.kind == Kind.RECEIVE and call.hold and draft.record(call.hold) is None:
        return Status.UNKNOWN_HOLD
    in_control = call.kind == Kind.INSPECT or call.flags & _OF_CONTROL
    if in_control and units > cell.quality_control:
        return Status.EXCEEDS_SET_ASIDE
    if call.flags & _OF_DAMAGED and units > cell.damaged:
        return Status.EXCEEDS_SET_ASIDE
    return Status.OK


def _set_aside(draft: Draft, call: Call, key: Key, units: int) -> None:
    """What a fact does to the goods that are not for sale."""
    if call.kind == Kind.RETURN and call.value == Disposition.QUALITY_CONTROL:
        draft.add(key, quality_control=units)
    if call.kind in (Kind.RETURN, Kind.INSPECT) and call.value == Disposition.DAMAGED:
        draft.add(key, damaged=units)
    if call.kind == Kind.INSPECT or call.flags & _OF_CONTROL:
        draft.add(key, quality_control=-units)
    if call.flags & _OF_DAMAGED:
        draft.add(key, damaged=-units)


def _count(draft: Draft, call: Call, moment: Moment) -> None:
    """So much was there at a moment; what has moved since counts on top of it."""
    ((key, units),) = call.lines
    at, counted = moment_of(call, moment), _counted(draft, key)
    if not _is_seen(draft, call, at, counted):
        since = draft.moved_since(key, at) if call.occurred_at_ns else 0
        draft.put(key, draft.cell(key)._replace(on_hand=units + since))
    draft.put((COUNTED, key), Moment(max(at.ns, counted.ns), max(at.latest_ns, counted.latest_ns)))


def _note(draft: Draft, call: Call, key: Key, units: int) -> None:
    """What a fact is remembered for, in what it names."""
    if not call.hold:
        return
    if call.kind == Kind.SALE:
        sold = HoldLine(key, pending=0, fulfilled=units)
        draft.put_hold(call.hold, Hold(HoldState.FULFILLED, 0, 0, (sold,), sold=units))
    if call.kind == Kind.RETURN:
        take_back(draft, call)
    if call.kind == Kind.RECEIVE:
        _arrived(draft, call.hold, key, units)


def set_safety_stock(draft: Draft, call: Call, moment: Moment) -> Answer:
    ((key, units),) = call.lines
    draft.put(key, draft.cell(key)._replace(safety_stock=units))
    return told(draft, (Status.OK, key))


def set_price(draft: Draft, call: Call, moment: Moment) -> Answer:
    """A price has a version, which grows when it changes."""
    ((key, _),) = call.lines
    cell = draft.cell(key)
    if call.value != cell.price_minor or not cell.price_version:
        version = cell.price_version + 1
        draft.put(key, cell._replace(price_minor=call.value, price_version=version))
    return told(draft, (Status.OK, key))


# --- returns of what was handed over --------------------------------------------------------------


def claim_return(draft: Draft, call: Call, moment: Moment) -> Answer:
    """What comes back elsewhere, or does not after all (below zero): noted, and no goods move."""
    status = judge_return(draft, call)
    if status == Status.OK:
        take_back(draft, call)
    return told(draft, (status, None))


def judge_return(draft: Draft, call: Call) -> Status:
    """So much of a SKU comes back as was handed over of it, wherever that was, and no more.

    Of what does not come back after all, so much as is back.
    """
    (((sku, _), units),) = call.lines
    hold = draft.hold(call.hold)
    if hold is None:
        return Status.UNKNOWN_HOLD
    if not any(line.fulfilled for line in hold.lines):
        return Status.HOLD_NOT_FULFILLED
    of_sku = [line for line in hold.lines if line.cell[0] == sku]
    if not of_sku:
        return Status.NOT_IN_HOLD
    back = sum(line.returned for line in of_sku)
    out = sum(line.fulfilled for line in of_sku) - back
    return Status.OK if -back <= units <= out else Status.EXCEEDS_HOLD


def take_back(draft: Draft, call: Call) -> None:
    (((sku, _), left),) = call.lines
    hold = draft.hold(call.hold)
    assert hold is not None
    lines = list(hold.lines)
    for place, line in enumerate(lines):
        if line.cell[0] == sku:
            units = max(-line.returned, min(left, line.fulfilled - line.returned))
            lines[place] = line._replace(returned=line.returned + units)
            left -= units
    draft.put_hold(call.hold, hold._replace(lines=tuple(lines)))


# --- what is on its way ---------------------------------------------------------------------------


def expect(draft: Draft, call: Call, moment: Moment) -> Answer:
    ((key, _),) = call.lines
    if draft.hold(call.hold) is not None:
        return told(draft, (Status.HOLD_EXISTS, key))
    record = draft.record(call.hold)
    if record is not None and record.state != HoldState.INCOMING:
        return told(draft, (Status.HOLD_NOT_PENDING, key))
    add_expected(draft, call.hold, call.lines, call.value)
    return told(draft, (Status.OK, key))


def add_expected(
    draft: Draft, record_id: bytes, lines: tuple[tuple[Key, int], ...], expected_at_ms: int
) -> None:
    """Expect more of a record that may be new. The newest news of its date is its date."""
    record = draft.record(record_id) or Record(HoldState.INCOMING, 0, ())
    for key, units in lines:
        line = _line_of(record, key)
        more = line._replace(expected=line.expected + units, outstanding=line.outstanding + units)
        record = _with_line(record, more)
        draft.add(key, incoming=units)
    date = expected_at_ms or record.expected_at_ms
    draft.put(record_id, record._replace(expected_at_ms=date))


def cancel_incoming(draft: Draft, call: Call, moment: Moment) -> Answer:
    """All that is outstanding of a record, or a part of it, will not come."""
    record = draft.record(call.hold)
    if record is None:
        return told(draft, (Status.UNKNOWN_HOLD, None))
    if record.state != HoldState.INCOMING:
        return told(draft, (Status.HOLD_NOT_PENDING, record.lines[0].cell))
    called = list(record.lines)
    if call.lines:
        called = [line for line in called if line.cell == call.lines[0][0]]
    if not called:
        return told(draft, (Status.NOT_IN_HOLD, None))
    first = called[0].cell
    units = call.lines[0][1] if call.lines else 0
    if units > called[0].outstanding:
        return told(draft, (Status.EXCEEDS_HOLD, first))
    for line in called:
        record = _no_longer(draft, record, line, units or line.outstanding)
    _settle(draft, call.hold, record)
    return told(draft, (Status.OK, first))


def _arrived(draft: Draft, record_id: bytes, key: Key, units: int) -> None:
    """Goods have come that belong to a record; those that nobody expected as well."""
    record = draft.record(record_id)
    assert record is not None
    line = _line_of(record, key)
    record = _no_longer(draft, record, line, min(units, line.outstanding))
    line = _line_of(record, key)
    _settle(draft, record_id, _with_line(record, line._replace(received=line.received + units)))


def _no_longer(draft: Draft, record: Record, line: RecordLine, units: int) -> Record:
    draft.add(line.cell, incoming=-units)
    return _with_line(record, line._replace(outstanding=line.outstanding - units))


def _settle(draft: Draft, record_id: bytes, record: Record) -> None:
    if any(line.outstanding for line in record.lines):
        state = HoldState.INCOMING
    elif any(line.received for line in record.lines):
        state = HoldState.RECEIVED
    else:
        state = HoldState.DROPPED
    draft.put(record_id, record._replace(state=state))


def _line_of(record: Record, key: Key) -> RecordLine:
    """The record's line on a cell, or an empty one."""
    none = RecordLine(key, expected=0, outstanding=0)
    return next((line for line in record.lines if line.cell == key), none)


def _with_line(record: Record, line: RecordLine) -> Record:
    lines = {each.cell: each for each in record.lines}
    return record._replace(lines=tuple({**lines, line.cell: line}.values()))
