"""How a hold passes from state to state and ends: by a call, by its deadline, by another hold."""

from engine import limits
from engine.operations import HANDOVER_KINDS, Kind
from engine.reference.book import Book, Movement, key_of
from engine.reference.lines import Line
from engine.status import Status
from engine.views import Hold, HoldLine, HoldState


def sweep(book: Book) -> int:
    """Expire what is overdue, so many lines in a block, and the rest of the last hold.

    By ticks; in one tick the hold comes first whose deadline was set first.
    """
    overdue = [
        (book.holds[hold_id].deadline_ns >> limits.EXPIRY_TICK_BITS, hold_id)
        for hold_id in book.pending
        if is_overdue(book, book.holds[hold_id])
    ]
    overdue.sort(key=lambda each: each[0])  # keeps the order within a tick
    done = lines = 0
    for _, hold_id in overdue:
        if lines >= book.expiries_per_block:
            break
        _expire(book, hold_id)
        done += 1
        lines += len(book.holds[hold_id].lines)
    return done


def is_overdue(book: Book, hold: Hold) -> bool:
    """Whether the deadline of a pending hold has passed."""
    return hold.deadline_ns < book.now_ns


def called_hold(book: Book, line: Line) -> Hold | None:
    """The hold that a line names; an overdue one, that the sweep did not come to, expires."""
    hold = book.holds.get(line.hold_id)
    if hold is not None and hold.state == HoldState.PENDING and is_overdue(book, hold):
        _expire(book, line.hold_id)
    return hold


def give_up(book: Book, hold_id: bytes, *, for_good: bool) -> None:
    """Release a hold that is pending or has run out; one that is overdue expires first.

    Unless it is `for_good`, what has run out stays so.
    """
    hold = book.holds[hold_id]
    if hold.state == HoldState.PENDING and is_overdue(book, hold):
        _expire(book, hold_id)
    elif hold.state == HoldState.PENDING:
        _lapse(book, hold_id, HoldState.RELEASED)
    if for_good and hold.state == HoldState.EXPIRED:
        end_for_good(book, hold_id)


def end_for_good(book: Book, hold_id: bytes) -> None:
    """A hold that ran out is a released one from now on: it cannot be reserved again."""
    book.holds[hold_id].state = HoldState.RELEASED
    book.short.discard(hold_id)
    del book.lapsed[hold_id]


def _expire(book: Book, hold_id: bytes) -> None:
    """A hold's deadline has passed."""
    book.lapsed[hold_id] = [line.pending for line in book.holds[hold_id].lines]
    _lapse(book, hold_id, HoldState.EXPIRED)
    book.short.add(hold_id)
    book.expired += 1


def _lapse(book: Book, hold_id: bytes, resolved: HoldState) -> None:
    """Everything that is pending in a hold goes back to available."""
    for line in book.holds[hold_id].lines:
        book.trace(key_of(line), -line.pending)
        move_units(book, Kind.RELEASE, line, line.pending, book.now_ns)
    settle(book, hold_id, resolved)


def settle(book: Book, hold_id: bytes, resolved: HoldState) -> None:
    """After a change of a hold: its new state.

    `resolved` is the state of a hold of which nothing is left and nothing was handed over.
    """
    hold = book.holds[hold_id]
    if any(line.pending for line in hold.lines):
        return
    book.pending.pop(hold_id, None)
    if any(line.committed for line in hold.lines):
        hold.state = HoldState.COMMITTED
        return
    was_fulfilled = any(line.fulfilled for line in hold.lines)
    hold.state = HoldState.FULFILLED if was_fulfilled else resolved
    book.remember_resolved(hold_id)


def revive(book: Book, hold_id: bytes) -> None:
    """A resolved hold is a committed one again."""
    book.leave_resolved(hold_id)
    book.holds[hold_id].state = HoldState.COMMITTED


def move_units(book: Book, kind: int, line: HoldLine, units: int, moment_ns: int) -> None:
    """Move units of one line of a hold to their next state.

    What was handed over, or came back of it, leaves on_hand as it is when a count has seen it.
    """
    cell = book.cells[key_of(line)]
    if kind in (Kind.COMMIT, Kind.RELEASE):
        line.pending -= units
        cell.reserved -= units
    if kind == Kind.COMMIT:
        line.committed += units
        cell.committed += units
    if kind in (Kind.FULFIL, Kind.CANCEL):
        line.committed -= units
        cell.committed -= units
    if kind == Kind.FULFIL:
        line.fulfilled += units
    if kind == Kind.UNFULFIL:
        line.fulfilled -= units
        line.committed += units
        cell.committed += units
    if kind in HANDOVER_KINDS and units and not book.is_seen(key_of(line), moment_ns):
        moved = -units if kind == Kind.FULFIL else units
        cell.on_hand += moved
        book.note_movement(Movement(key_of(line), moved, moment_ns))


def check_hold_state(book: Book, line: Line, hold: Hold) -> Status:
    """Whether a line's kind can apply to the hold that it names, in its state, at all."""
    kind, state = line.kind, hold.state
    if state == HoldState.EXPIRED:
        return Status.HOLD_EXPIRED
    if state == HoldState.RELEASED:
        return Status.HOLD_RELEASED
    if kind in (Kind.FULFIL, Kind.CANCEL):
        return Status.OK if state <= HoldState.COMMITTED else Status.HOLD_NOT_COMMITTED
    if kind == Kind.UNFULFIL:
        return Status.OK if state <= HoldState.FULFILLED else Status.HOLD_NOT_FULFILLED
    if state == HoldState.PENDING:
        return Status.OK
    is_short = kind == Kind.COMMIT and line.hold_id in book.short
    return Status.HOLD_EXPIRED if is_short else Status.HOLD_NOT_PENDING
