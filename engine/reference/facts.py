"""What has happened to goods. It is never refused for lack of stock, and it may be heard of late."""

from dataclasses import replace
from typing import Final

from engine import limits
from engine.operations import Disposition, Flag, Kind
from engine.reference.book import Book, Movement, key_of
from engine.reference.lines import NO_HOLD, Answer, Line, check_moment, check_quantity
from engine.reference.places import check_place
from engine.reference.returns import judge_return, take_back
from engine.status import Status
from engine.views import Cell, Hold, HoldLine, HoldState

# What facts may have in `flags` and must have in `value`.
_FLAGS: Final[dict[int, tuple[int, ...]]] = {
    Kind.WRITE_OFF: (0, Flag.DAMAGED, Flag.QUALITY_CONTROL)
}
_DISPOSITIONS: Final[dict[int, tuple[int, ...]]] = {
    Kind.RETURN: tuple(Disposition),
    Kind.INSPECT: (Disposition.RESTOCK, Disposition.DAMAGED),
}


def record_fact(book: Book, line: Line) -> Answer:
    """What has happened to goods: never refused for lack of stock."""
    status = check_fact(book, line)
    if status != Status.OK:
        return status, None
    after = _after(book, line)
    status = _judge(book, line, after)
    if status == Status.OK:
        _change(book, line, after)
    return status, line.key


def _is_late(book: Book, line: Line) -> bool:
    """Whether the newest count of the cell has seen it already."""
    return book.is_seen(line.key, book.moment_ns(line.occurred_at_ns))


def _judge(book: Book, line: Line, after: Cell) -> Status:
    """The checks that need the cell, or what handed the goods over."""
    status = _judge_named(book, line)
    if status != Status.OK:
        return status
    moment_ns = book.moment_ns(line.occurred_at_ns)
    is_old = line.occurred_at_ns and moment_ns <= book.forgotten_ns
    if line.kind == Kind.COUNT and is_old and not _is_late(book, line):
        return Status.MOMENT_TOO_OLD
    if min(after.damaged, after.quality_control) < 0:
        return Status.EXCEEDS_SET_ASIDE
    counters = (after.on_hand, after.damaged, after.quality_control)
    is_within = all(abs(each) <= limits.MAX_BALANCE for each in counters)
    return Status.OK if is_within else Status.BALANCE_LIMIT


def _change(book: Book, line: Line, after: Cell) -> None:
    """Write down what was judged: the cell, what moved and when, what was sold or came back."""
    moved = after.on_hand - book.cells.get(line.key, Cell()).on_hand
    book.cells[line.key] = after
    if line.kind == Kind.COUNT:
        counted_at_ns = max(
            book.moment_ns(line.occurred_at_ns), book.counted_at_ns.get(line.key, 0)
        )
        book.counted_at_ns[line.key] = counted_at_ns
    elif moved:
        book.note_movement(Movement(line.key, moved, book.moment_ns(line.occurred_at_ns)))
    if line.kind == Kind.SALE and line.hold_id != NO_HOLD:
        sold = HoldLine(line.sku, line.location, pending=0, fulfilled=line.quantity)
        book.holds[line.hold_id] = Hold(HoldState.FULFILLED, 0, [sold])
        book.sales[line.hold_id] = line.quantity
        book.remember_resolved(line.hold_id)
    if line.kind == Kind.RETURN and line.hold_id != NO_HOLD:
        take_back(book, line)


def _judge_named(book: Book, line: Line) -> Status:
    """A sale with an id is recorded once; a return may name what handed the goods over."""
    is_taken = line.hold_id in book.holds or line.hold_id in book.incoming
    if line.kind == Kind.SALE and line.hold_id != NO_HOLD and is_taken:
        return Status.ALREADY_RECORDED if _was_sold(book, line) else Status.HOLD_EXISTS
    if line.kind == Kind.RETURN and line.hold_id != NO_HOLD:
        return judge_return(book, line)
    return Status.OK


def _was_sold(book: Book, line: Line) -> bool:
    """Whether the id that a sale names is that of the very same sale, whatever became of it.

    One with further lines got them from a hold: its id is an order's as well.
    """
    if book.sales.get(line.hold_id) != line.quantity:
        return False
    return [key_of(each) for each in book.holds[line.hold_id].lines] == [line.key]


def check_fact(book: Book, line: Line) -> Status:
    """The checks that do not need the cell."""
    if line.flags not in _FLAGS.get(line.kind, (0,)):
        return Status.INVALID_FLAGS
    status = check_quantity(line)
    if status != Status.OK:
        return status
    dispositions = _DISPOSITIONS.get(line.kind)
    if dispositions is not None and line.value not in dispositions:
        return Status.INVALID_DISPOSITION
    has_reason = line.kind in (Kind.ADJUST, Kind.WRITE_OFF)
    if has_reason and not 0 <= line.value <= limits.MAX_REASON:
        return Status.INVALID_REASON
    if line.kind != Kind.INSPECT:
        status = check_moment(line, book.now_ns)
        if status != Status.OK:
            return status
    return check_place(book, line)


def _after(book: Book, line: Line) -> Cell:
    """What the cell would be. What the newest count has seen changes its buckets alone."""
    before, units = book.cells.get(line.key, Cell()), line.quantity
    cell = replace(before)
    if line.kind == Kind.COUNT:
        cell.on_hand = units
        if line.occurred_at_ns:  # otherwise it is of what was heard so far
            cell.on_hand += book.moved_since(line.key, book.moment_ns(line.occurred_at_ns))
    elif line.kind in (Kind.SALE, Kind.WRITE_OFF):
        cell.on_hand -= units
    elif line.kind != Kind.INSPECT:
        cell.on_hand += units
    if line.kind == Kind.INSPECT or line.flags == Flag.QUALITY_CONTROL:
        cell.quality_control -= units
    if line.flags == Flag.DAMAGED:
        cell.damaged -= units
    if line.kind == Kind.RETURN and line.value == Disposition.QUALITY_CONTROL:
        cell.quality_control += units
    if line.kind in _DISPOSITIONS and line.value == Disposition.DAMAGED:
        cell.damaged += units
    if _is_late(book, line):
        cell.on_hand = before.on_hand
    return cell
