"""RESERVE: the lines of one order, judged together, in one hold."""

from collections import Counter

from engine import limits
from engine.operations import Flag, Kind
from engine.reference.book import Book, key_of
from engine.reference.life import give_up, is_overdue
from engine.reference.lines import Answer, Key, Line
from engine.reference.places import check_channel, check_place, kept_from
from engine.status import Status
from engine.views import Hold, HoldLine, HoldState

_FLAGS = Flag.LINKED | Flag.PARTIAL | Flag.SUPERSEDE | Flag.RE_RESERVE | Flag.COMMIT_NOW


def reserve(book: Book, hold_id: bytes, order: list[Line], is_open: bool) -> list[Answer]:
    """All lines of an order or none. `is_open`: the last line asks for one more, in vain.

    Of a refused order, the first line that cannot be served says why. The lines after it were
    not looked at.
    """
    answers: list[Answer] = []
    refusal, old = _judge_holds(book, hold_id, order)
    demand = _given_back(book.holds[old]) if old else Counter()  # of lines on one cell, summed
    own = _own(book, old)  # what is left of it for the next lines
    units: list[int] = []
    for number, line in enumerate(order):
        is_dangling = is_open and number == len(order) - 1
        status = _check_order_line(line, order[0], is_dangling)
        if status == Status.OK:
            status = check_reserve(book, line)
        key = line.key if status == Status.OK else None
        if status == Status.OK:
            status = refusal
        units.append(_gets(book, line, demand, own) if status == Status.OK else 0)
        if status == Status.OK and units[-1] < line.quantity and not line.flags & Flag.PARTIAL:
            status = Status.INSUFFICIENT_STOCK
        if status != Status.OK:
            refused = [(Status.LINKED_LINE_REFUSED, seen) for _, seen in answers]
            unseen = [(Status.LINKED_LINE_REFUSED, None)] * (len(order) - number - 1)
            return [*refused, (status, key), *unseen]
        demand[line.key] += units[-1]
        own[line.key] -= units[-1]
        answers.append((status if units[-1] else Status.INSUFFICIENT_STOCK, key))
    if any(units):
        if old:
            give_up(book, old, for_good=not order[0].flags & Flag.RE_RESERVE)
        open_hold(book, hold_id, order, units)
        for line, got in zip(order, units, strict=True):
            if line.flags & Flag.PARTIAL:
                book.trace(line.key, got)
            book.line += 1
    return answers


def _judge_holds(book: Book, hold_id: bytes, order: list[Line]) -> tuple[Status, bytes | None]:
    """What the holds say to an order, and which of them it takes the place of."""
    if hold_id in book.holds or hold_id in book.incoming:
        return Status.HOLD_EXISTS, None
    old_id = order[0].hold_id
    old = book.holds.get(old_id) if order[0].flags & Flag.SUPERSEDE else None
    if old is not None and _is_order(old):
        return Status.HOLD_NOT_PENDING, None
    if len(order) > limits.MAX_HOLD_LINES:
        return Status.TOO_MANY_LINES, None
    ends = old is not None and old.state in (HoldState.PENDING, HoldState.EXPIRED)
    return Status.OK, old_id if ends else None


def open_hold(book: Book, hold_id: bytes, order: list[Line], units: list[int]) -> None:
    """A new hold of what each line got; its time to live is the first line's."""
    lines = [HoldLine(line.sku, line.location, pending=0) for line in order]
    hold = Hold(HoldState.COMMITTED, 0, [])
    for held, got in zip(lines, units, strict=True):
        if got and order[0].flags & Flag.COMMIT_NOW:
            held.committed = got
            book.cells[key_of(held)].committed += got
        elif got:
            held.pending = got
            book.cells[key_of(held)].reserved += got
        if got:
            hold.lines.append(held)
    if not order[0].flags & Flag.COMMIT_NOW:
        hold.state = HoldState.PENDING
        hold.deadline_ns = book.now_ns + order[0].value * limits.NS_PER_MS
        book.pending[hold_id] = None
    book.holds[hold_id] = hold


def free_for(book: Book, line: Line, demand: Counter[Key]) -> int:
    """How much of its quantity a line finds when the lines before it have taken theirs."""
    cell = book.cells.get(line.key)
    if cell is None:
        return 0
    kept = kept_from(book, line.channel, line.location)
    return max(0, min(line.quantity, cell.available - kept - demand[line.key]))


def check_reserve(book: Book, line: Line) -> Status:
    """The checks of one line that need no other line and no stock."""
    if line.quantity <= 0:
        return Status.INVALID_QUANTITY
    if line.quantity > limits.MAX_QUANTITY:
        return Status.QUANTITY_TOO_LARGE
    is_timed = line.kind != Kind.RESERVE or not line.flags & Flag.COMMIT_NOW
    if is_timed and not limits.MIN_TTL_MS <= line.value <= limits.MAX_TTL_MS:
        return Status.INVALID_TTL
    status = check_place(book, line)
    return check_channel(book, line) if status == Status.OK else status


def granted(book: Book, hold_id: bytes, order: list[Line], answers: list[Answer]) -> list[int]:
    """How much each line of an order that was just judged reserved."""
    if order[-1].kind != Kind.RESERVE or all(status != Status.OK for status, _ in answers):
        return [0] * len(order)
    held = iter(book.holds[hold_id].lines)  # one for each line that is reserved
    units = [
        next(held) if status == Status.OK and line.kind == Kind.RESERVE else None
        for line, (status, _) in zip(order, answers, strict=True)
    ]
    return [each.pending + each.committed if each else 0 for each in units]


def _check_order_line(line: Line, first: Line, is_dangling: bool) -> Status:
    """The checks of a line's kind and flags against those of the order's first line."""
    if line.kind not in set(Kind):
        return Status.INVALID_KIND
    if line.kind != Kind.RESERVE or line.flags & ~_FLAGS or is_dangling:
        return Status.INVALID_FLAGS
    if (line.flags ^ first.flags) & Flag.COMMIT_NOW:
        return Status.INVALID_FLAGS
    if line.flags & Flag.SUPERSEDE and line is not first:
        return Status.INVALID_FLAGS
    if line.flags & Flag.RE_RESERVE and not line.flags & Flag.SUPERSEDE:
        return Status.INVALID_FLAGS
    return Status.OK


def _is_order(hold: Hold) -> bool:
    """Whether a hold is or was committed, wholly or in part."""
    if hold.state == HoldState.PENDING:
        return any(line.committed or line.fulfilled for line in hold.lines)
    return hold.state in (HoldState.COMMITTED, HoldState.FULFILLED, HoldState.CANCELLED)


def _given_back(hold: Hold) -> Counter[Key]:
    """The demand of a hold that counts as released: less than nothing."""
    demand: Counter[Key] = Counter()
    for line in hold.lines:
        demand[key_of(line)] -= line.pending
    return demand


def _gets(book: Book, line: Line, demand: Counter[Key], own: Counter[Key]) -> int:
    """How much a line finds, or at least has from the hold that is superseded if less will do."""
    free = free_for(book, line, demand)
    return max(free, min(line.quantity, own[line.key])) if line.flags & Flag.PARTIAL else free


def _own(book: Book, old: bytes | None) -> Counter[Key]:
    """What a hold that is superseded has pending: as much of it a PARTIAL line gets in any case.

    Also where the cell is short or is kept from the channel: nobody is worse off with that.
    """
    own: Counter[Key] = Counter()
    if old and not is_overdue(book, book.holds[old]):
        for line in book.holds[old].lines:
            own[key_of(line)] += line.pending
    return own
