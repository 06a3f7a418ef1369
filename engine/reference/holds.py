"""Calls on a hold: COMMIT, RELEASE, FULFIL, CANCEL, UNFULFIL, of the whole or of parts; EXTEND."""

from collections import Counter

from engine import limits
from engine.operations import HANDOVER_KINDS, Flag, Kind
from engine.reference.book import Book, Trace, key_of
from engine.reference.life import (
    called_hold,
    check_hold_state,
    end_for_good,
    move_units,
    revive,
    settle,
)
from engine.reference.lines import NO_CELL, Answer, Key, Line, check_hold_call, check_moment
from engine.reference.places import check_channel, kept_from
from engine.status import Status
from engine.views import Hold, HoldLine, HoldState


def on_hold(book: Book, line: Line) -> Answer:
    """COMMIT to CANCEL, UNFULFIL: of the whole hold, or of its lines on one cell."""
    status = check_hold_call(line)
    if status == Status.OK:
        status = _check_when(book, line)
    if status != Status.OK:
        return status, None
    hold = called_hold(book, line)
    if hold is None:
        return Status.UNKNOWN_HOLD, None
    if line.flags & Flag.RE_RESERVE and hold.state == HoldState.EXPIRED:
        return _reserve_again(book, line, hold)
    if line.flags & Flag.SUPERSEDE and hold.state == HoldState.EXPIRED:
        end_for_good(book, line.hold_id)
        return Status.OK, key_of(hold.lines[0])
    status = check_hold_state(book, line, hold)
    if status != Status.OK:
        return status, key_of(hold.lines[0])
    called = _called_lines(line, hold)
    status = _judge_on_hold(book, line, hold, called)
    if status == Status.OK:
        if hold.state == HoldState.FULFILLED:
            revive(book, line.hold_id)
        _move_called(book, line, hold, called)
        resolved = HoldState.RELEASED if line.kind == Kind.RELEASE else HoldState.CANCELLED
        settle(book, line.hold_id, resolved)
    return status, key_of(called[0]) if called else None


def on_parts(book: Book, lines: list[Line], is_open: bool) -> list[Answer]:
    """Calls on parts of one hold: all or none. `is_open`: as in `reserve`."""
    answers: list[Answer] = []
    demand: Counter[Key] = Counter()  # of lines on one cell, summed
    for number, line in enumerate(lines):
        is_last = number == len(lines) - 1
        status, key = check_part(book, line, lines[0], is_last, is_open and is_last), None
        if status == Status.OK:
            status, key = judge_part(book, line, demand)
            is_said_first = Status.OK < status < Status.TOO_MANY_LINES
            if len(lines) > limits.MAX_HOLD_LINES and not is_said_first:
                status = Status.TOO_MANY_LINES
        if status != Status.OK:
            refused = [(Status.LINKED_LINE_REFUSED, seen) for _, seen in answers]
            unseen = [(Status.LINKED_LINE_REFUSED, None)] * (len(lines) - number - 1)
            return [*refused, (status, key), *unseen]
        answers.append((status, key))
    first = book.line
    for number, line in enumerate(lines):
        book.line = first + number
        answers[number] = on_hold(book, line._replace(flags=line.flags & ~Flag.LINKED))
    return answers


def judge_part(book: Book, line: Line, demand: Counter[Key]) -> Answer:
    """Judge one of several calls on parts of a hold, and add it to the demand."""
    hold = called_hold(book, line)
    if hold is None:
        return Status.UNKNOWN_HOLD, None
    status = check_hold_state(book, line, hold)
    if status != Status.OK:
        return status, key_of(hold.lines[0])
    called = _called_lines(line, hold)
    key = key_of(called[0]) if called else None
    if key:
        demand[key] += line.quantity
        line = line._replace(quantity=demand[key])
    return _judge_on_hold(book, line, hold, called), key


def _judge_on_hold(book: Book, line: Line, hold: Hold, called: list[HoldLine]) -> Status:
    """Whether the called lines of a hold have the units, and the cells can take the change."""
    if sum(_usable(line.kind, each) for each in hold.lines) == 0:
        # A pending hold has something pending, so that cannot be what is missing.
        is_undone = line.kind == Kind.UNFULFIL
        return Status.HOLD_NOT_FULFILLED if is_undone else Status.HOLD_NOT_COMMITTED
    if not called:
        return Status.NOT_IN_HOLD
    total = sum(_usable(line.kind, each) for each in called)
    if line.quantity > total:
        return Status.EXCEEDS_HOLD
    # All the units against each of the cells, whose on_hand stays if its newest count has seen it.
    units, moment_ns = line.quantity or total, book.moment_ns(line.occurred_at_ns)
    moving = [key_of(each) for each in called if not book.is_seen(key_of(each), moment_ns)]
    on_hand = [book.cells[key].on_hand for key in moving]
    if line.kind == Kind.FULFIL and min(on_hand, default=0) - units < -limits.MAX_BALANCE:
        return Status.BALANCE_LIMIT
    committed = [book.cells[key_of(each)].committed for each in called]
    if line.kind == Kind.UNFULFIL and max(on_hand + committed) + units > limits.MAX_BALANCE:
        return Status.BALANCE_LIMIT
    return Status.OK


def _move_called(book: Book, line: Line, hold: Hold, called: list[HoldLine]) -> None:
    """Move what was judged; RELEASE_REST gives back what is pending then."""
    left = line.quantity or sum(_usable(line.kind, each) for each in called)
    for each in called:
        units = min(left, _usable(line.kind, each))
        move_units(book, line.kind, each, units, book.moment_ns(line.occurred_at_ns))
        book.trace(key_of(each), units)
        left -= units
    if line.flags & Flag.RELEASE_REST:
        for each in hold.lines:
            book.trace(key_of(each), -each.pending)
            move_units(book, Kind.RELEASE, each, each.pending, book.now_ns)


def _reserve_again(book: Book, line: Line, hold: Hold) -> Answer:
    """Commit an expired hold if the channel of the line can have all that lapsed."""
    hold_id = line.hold_id
    lapsed = book.lapsed[hold_id]
    demand: Counter[Key] = Counter()
    for each, units in zip(hold.lines, lapsed, strict=True):
        if not units:
            continue
        status = check_channel(book, line._replace(location=each.location))
        if status != Status.OK:
            return status, key_of(each)
        demand[key_of(each)] += units
        kept = kept_from(book, line.channel, each.location)
        if book.cells[key_of(each)].available - kept < demand[key_of(each)]:
            return Status.INSUFFICIENT_STOCK, key_of(each)
    revive(book, hold_id)
    book.short.discard(hold_id)
    book.traces.append(Trace(book.line, key_of(hold.lines[0]), 0))  # says that nothing was pending
    for each, units in zip(hold.lines, lapsed, strict=True):
        each.committed = units
        book.cells[key_of(each)].committed += units
        book.trace(key_of(each), units)
    return Status.OK, key_of(hold.lines[0])


def extend(book: Book, line: Line) -> Answer:
    """EXTEND: a later deadline; an earlier one changes nothing."""
    if line.flags:
        return Status.INVALID_FLAGS, None
    if not limits.MIN_TTL_MS <= line.value <= limits.MAX_TTL_MS:
        return Status.INVALID_TTL, None
    hold = called_hold(book, line)
    if hold is None:
        return Status.UNKNOWN_HOLD, None
    status = check_hold_state(book, line, hold)
    deadline_ns = book.now_ns + line.value * limits.NS_PER_MS
    if status == Status.OK and deadline_ns > hold.deadline_ns:
        hold.deadline_ns = deadline_ns
        for each in hold.lines:
            book.trace(key_of(each), each.pending)
        del book.pending[line.hold_id]  # in its new tick it is the last to come
        book.pending[line.hold_id] = None
    return status, key_of(hold.lines[0])


def check_part(book: Book, line: Line, first: Line, is_last: bool, is_dangling: bool) -> Status:
    """The checks of a call on a part of a hold that is linked to others, `first` of them."""
    if line.kind not in set(Kind):
        return Status.INVALID_KIND
    if (line.kind, line.hold_id) != (first.kind, first.hold_id) or is_dangling:
        return Status.INVALID_FLAGS
    allowed = Flag.LINKED | Flag.RELEASE_REST if is_last else Flag.LINKED
    if line.flags & ~allowed:
        return Status.INVALID_FLAGS
    status = check_hold_call(line._replace(flags=line.flags & ~Flag.LINKED))
    if status == Status.OK and line.quantity == 0:
        return Status.INVALID_QUANTITY
    return _check_when(book, line) if status == Status.OK else status


def _check_when(book: Book, line: Line) -> Status:
    """Whether a call on a hold can be of its moment; only handovers have one."""
    return check_moment(line, book.now_ns) if line.kind in HANDOVER_KINDS else Status.OK


def _called_lines(line: Line, hold: Hold) -> list[HoldLine]:
    """The hold's lines that an operation is about.

    A quantity needs the name of its cell, unless the hold has but one line.
    """
    if line.quantity == 0 or (line.key == NO_CELL and len(hold.lines) == 1):
        return hold.lines
    return [each for each in hold.lines if key_of(each) == line.key]


def _usable(kind: int, line: HoldLine) -> int:
    """The units of a hold's line that `kind` may move."""
    if kind == Kind.UNFULFIL:
        return line.fulfilled - line.returned
    return line.pending if kind in (Kind.COMMIT, Kind.RELEASE) else line.committed
