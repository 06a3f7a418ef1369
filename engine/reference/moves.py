"""What changes which cells a hold is of: ADD_LINE, and MOVE to another location."""

from collections import Counter

from engine import limits
from engine.operations import Flag, Kind
from engine.reference.book import Book, key_of
from engine.reference.life import called_hold, check_hold_state
from engine.reference.lines import Answer, Key, Line, check_hold_call
from engine.reference.places import check_channel, check_destination, is_elsewhere, kept_from
from engine.reference.reserving import check_reserve, free_for
from engine.status import Status
from engine.views import Hold, HoldLine, HoldState


def add_line(book: Book, line: Line) -> Answer:
    """ADD_LINE: one more line for a pending or released hold, or the first one of a new hold."""
    status = Status.INVALID_FLAGS if line.flags else check_reserve(book, line)
    if status != Status.OK:
        return status, None
    hold = called_hold(book, line)
    status = _judge_more(book, line, hold)
    if status == Status.OK and free_for(book, line, Counter()) < line.quantity:
        status = Status.INSUFFICIENT_STOCK
    if status == Status.OK:
        append_line(book, line, book.now_ns + line.value * limits.NS_PER_MS)
    return status, line.key


def append_line(book: Book, line: Line, deadline_ns: int) -> None:
    """Give a hold one more pending line; the deadline counts if nothing of it was pending."""
    hold = book.holds.setdefault(line.hold_id, Hold(HoldState.PENDING, deadline_ns, []))
    if hold.state != HoldState.PENDING:
        if hold.state != HoldState.COMMITTED:
            book.leave_resolved(line.hold_id)
        hold.state = HoldState.PENDING
        hold.deadline_ns = deadline_ns
        book.short.discard(line.hold_id)
    book.pending.setdefault(line.hold_id)
    hold.lines.append(HoldLine(line.sku, line.location, pending=line.quantity))
    book.cells[line.key].reserved += line.quantity


def _judge_more(book: Book, line: Line, hold: Hold | None) -> Status:
    """Whether a hold (None: it would be new) can have one more line."""
    if hold is None:
        return Status.UNKNOWN_HOLD if line.hold_id in book.incoming else Status.OK
    status = Status.OK
    if hold.state != HoldState.RELEASED:
        status = check_hold_state(book, line, hold)
    if status == Status.OK and len(hold.lines) >= limits.MAX_HOLD_LINES:
        return Status.TOO_MANY_LINES
    return status


def move_hold(book: Book, line: Line) -> Answer:
    """MOVE: what a hold has pending is held at another location."""
    status, key, parts = _judged(book, line, 0)
    if status == Status.OK:
        for each, units in parts:
            _move_part(book, book.holds[line.hold_id], each, units, line.location)
    return status, key


def move_parts(book: Book, lines: list[Line], is_open: bool) -> list[Answer]:
    """Linked moves of SKUs of one hold: all or none. `is_open`: the last one asks for one more."""
    answers: list[Answer] = []
    more = 0  # lines that the hold will have when those so far are moved
    for number, line in enumerate(lines):
        is_dangling = is_open and number == len(lines) - 1
        status, key = _check_linked(line, lines[:number] or [line], is_dangling), None
        if status == Status.OK:
            status, key, parts = _judged(book, _unlinked(line), more)
            more += sum(_must_split(*part) for part in parts)
        if status != Status.OK:
            refused = [(Status.LINKED_LINE_REFUSED, seen) for _, seen in answers]
            unseen = [(Status.LINKED_LINE_REFUSED, None)] * (len(lines) - number - 1)
            return [*refused, (status, key), *unseen]
        answers.append((status, key))
    first = book.line
    for number, line in enumerate(lines):
        book.line = first + number
        answers[number] = move_hold(book, _unlinked(line))
    return answers


def _unlinked(line: Line) -> Line:
    return line._replace(flags=line.flags & ~Flag.LINKED)


def _check_linked(line: Line, before: list[Line], is_dangling: bool) -> Status:
    """The checks of a linked move's kind, flags, SKU and quantity against those before it.

    Each is of another SKU, so that none of them changes what another is about.
    """
    if line.kind not in set(Kind):
        return Status.INVALID_KIND
    if (line.kind, line.hold_id) != (before[0].kind, before[0].hold_id) or is_dangling:
        return Status.INVALID_FLAGS
    is_moved = any(each.sku == line.sku for each in before if each is not line)
    if line.flags & ~Flag.LINKED or not line.sku or is_moved:
        return Status.INVALID_FLAGS
    return Status.OK if line.quantity else Status.INVALID_QUANTITY


def _judged(
    book: Book, line: Line, more: int
) -> tuple[Status, Key | None, list[tuple[HoldLine, int]]]:
    """Judge a move of a hold that will have `more` lines than it has; also what parts move."""
    status = check_hold_call(line)
    if status == Status.OK:
        status = check_destination(book, line)
    if status == Status.OK:
        status = check_channel(book, line)
    if status != Status.OK:
        return status, None, []
    hold = called_hold(book, line)
    if hold is None:
        return Status.UNKNOWN_HOLD, None, []
    status = check_hold_state(book, line, hold)
    if status != Status.OK:
        return status, key_of(hold.lines[0]), []
    called = [
        each
        for each in hold.lines
        if line.sku in (0, each.sku) and line.value in (0, each.location)
    ]
    if not called:
        return Status.NOT_IN_HOLD, None, []
    moving = [each for each in called if each.pending and each.location != line.location]
    parts = _parts(moving, line.quantity or sum(each.pending for each in moving))
    status, key = _judge_move(book, line, len(hold.lines) + more, called, parts)
    return status, key, parts


def _judge_move(
    book: Book, line: Line, lines: int, called: list[HoldLine], parts: list[tuple[HoldLine, int]]
) -> Answer:
    """Whether parts of a hold's lines can be at another location; the hold has so many lines."""
    key = called[0].sku, line.location
    place = book.places[line.location]
    arriving = [each.sku for each in called if each.pending and each.location != line.location]
    if any(is_elsewhere(place, sku) for sku in arriving):
        return Status.WRONG_SHARD, key
    if not any(each.pending for each in called):
        return Status.HOLD_NOT_PENDING, key
    if line.quantity > sum(units for _, units in parts):
        return Status.EXCEEDS_HOLD, key
    if lines + sum(_must_split(*part) for part in parts) > limits.MAX_HOLD_LINES:
        return Status.TOO_MANY_LINES, key
    short = _short_of(book, line, parts)
    return (Status.OK, key) if short is None else (Status.INSUFFICIENT_STOCK, short)


def _short_of(book: Book, line: Line, parts: list[tuple[HoldLine, int]]) -> Key | None:
    """The first cell there that has too little for the channel; demand on one cell is summed."""
    kept = kept_from(book, line.channel, line.location)
    demand: Counter[Key] = Counter()
    for each, units in parts:
        key = each.sku, line.location
        demand[key] += units
        cell = book.cells.get(key)
        if cell is None or cell.available - kept < demand[key]:
            return key
    return None


def _move_part(book: Book, hold: Hold, line: HoldLine, units: int, location: int) -> None:
    """A line that moves whole changes its cell; of another one a part becomes a line of its own."""
    book.cells[key_of(line)].reserved -= units
    book.cells[line.sku, location].reserved += units
    book.trace(key_of(line), -units)
    book.trace((line.sku, location), units)
    if _must_split(line, units):
        line.pending -= units
        hold.lines.append(HoldLine(line.sku, location, pending=units))
    else:
        line.location = location


def _parts(lines: list[HoldLine], units: int) -> list[tuple[HoldLine, int]]:
    """So many units of what the lines have pending, from the first one on."""
    parts = []
    for line in lines:
        if units:
            parts.append((line, min(units, line.pending)))
            units -= parts[-1][1]
    return parts


def _must_split(line: HoldLine, units: int) -> bool:
    """Whether something of a line stays where it is when `units` of it move."""
    return line.pending > units or line.committed + line.fulfilled > 0
