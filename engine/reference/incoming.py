"""What is on its way: records of purchase orders and transfers, and what comes of them."""

from engine import limits
from engine.reference.book import Book, key_of
from engine.reference.facts import check_fact, record_fact
from engine.reference.lines import NO_CELL, NO_HOLD, Answer, Key, Line, check_hold_call
from engine.reference.places import check_place
from engine.status import Status
from engine.views import Cell, HoldState, Incoming, IncomingLine


def expect(book: Book, own_id: bytes, line: Line) -> Answer:
    """EXPECT: units of a cell are on their way, as a line of a record that may be new."""
    status = _check_expect(book, line)
    if status != Status.OK:
        return status, None
    incoming_id = own_id if line.hold_id == NO_HOLD else line.hold_id
    record = book.incoming.get(incoming_id)
    status = _judge_expect(book, incoming_id, record, line)
    if status != Status.OK:
        return status, line.key
    expected_at_ns = line.value * limits.NS_PER_MS
    if record is None:
        record = Incoming(HoldState.INCOMING, expected_at_ns, [])
        book.incoming[incoming_id] = record
    each = _incoming_line(record, line.key)
    if each is None:
        each = IncomingLine(*line.key, expected=0, outstanding=0)
        record.lines.append(each)
    each.expected += line.quantity
    each.outstanding += line.quantity
    record.expected_at_ns = expected_at_ns or record.expected_at_ns  # the newest news
    book.cells.setdefault(line.key, Cell()).incoming += line.quantity
    return status, line.key


def _check_expect(book: Book, line: Line) -> Status:
    """The checks that need no record."""
    if line.flags:
        return Status.INVALID_FLAGS
    if line.quantity <= 0:
        return Status.INVALID_QUANTITY
    if line.quantity > limits.MAX_QUANTITY:
        return Status.QUANTITY_TOO_LARGE
    if not 0 <= line.value <= limits.MAX_EXPECTED_AT_MS:
        return Status.INVALID_MOMENT
    return check_place(book, line)


def _judge_expect(book: Book, incoming_id: bytes, record: Incoming | None, line: Line) -> Status:
    """Whether the record (None: it would be new) can take so much more."""
    if incoming_id in book.holds:
        return Status.HOLD_EXISTS
    expected = 0
    if record is not None:
        if record.state != HoldState.INCOMING:
            return Status.HOLD_NOT_PENDING
        each = _incoming_line(record, line.key)
        if each is None and len(record.lines) == limits.MAX_HOLD_LINES:
            return Status.TOO_MANY_LINES
        expected = each.expected if each else 0
    incoming = book.cells.get(line.key, Cell()).incoming
    if (
        expected + line.quantity > limits.MAX_QUANTITY
        or incoming + line.quantity > limits.MAX_BALANCE
    ):
        return Status.BALANCE_LIMIT
    return Status.OK


def receive_expected(book: Book, line: Line) -> Answer:
    """RECEIVE against a record: a fact, so what nobody expected is recorded too."""
    status = check_fact(book, line)
    if status != Status.OK:
        return status, None
    incoming_id = line.hold_id
    record = book.incoming.get(incoming_id)
    if record is None:
        return Status.UNKNOWN_HOLD, line.key
    each = _incoming_line(record, line.key)
    if each is None and len(record.lines) == limits.MAX_HOLD_LINES:
        return Status.TOO_MANY_LINES, line.key
    if (each.received if each else 0) + line.quantity > limits.MAX_QUANTITY:
        return Status.BALANCE_LIMIT, line.key
    status, key = record_fact(book, line)
    if status != Status.OK:
        return status, key
    if each is None:
        each = IncomingLine(*line.key, expected=0, outstanding=0)
        record.lines.append(each)
    _no_longer_incoming(book, each, min(line.quantity, each.outstanding))
    each.received += line.quantity
    _settle_incoming(book, incoming_id)
    return status, key


def cancel_incoming(book: Book, line: Line) -> Answer:
    """CANCEL_INCOMING: the whole record, or a part of its line on one cell."""
    status = check_hold_call(line)
    if status != Status.OK:
        return status, None
    incoming_id = line.hold_id
    record = book.incoming.get(incoming_id)
    if record is None:
        return Status.UNKNOWN_HOLD, None
    if record.state != HoldState.INCOMING:
        return Status.HOLD_NOT_PENDING, key_of(record.lines[0])
    called = record.lines
    if line.quantity and (line.key != NO_CELL or len(called) > 1):
        called = [each for each in called if key_of(each) == line.key]
    if not called:
        return Status.NOT_IN_HOLD, None
    if line.quantity > called[0].outstanding:
        return Status.EXCEEDS_HOLD, key_of(called[0])
    for each in called:
        units = line.quantity or each.outstanding
        book.trace(key_of(each), units)
        _no_longer_incoming(book, each, units)
    _settle_incoming(book, incoming_id)
    return status, key_of(called[0])


def _no_longer_incoming(book: Book, line: IncomingLine, units: int) -> None:
    """They came, or nobody expects them any more."""
    line.outstanding -= units
    book.cells[key_of(line)].incoming -= units


def _settle_incoming(book: Book, incoming_id: bytes) -> None:
    """After a change of a record: its new state."""
    record = book.incoming[incoming_id]
    if any(line.outstanding for line in record.lines):
        return
    was_live = record.state == HoldState.INCOMING
    came = any(line.received for line in record.lines)
    record.state = HoldState.RECEIVED if came else HoldState.DROPPED
    if was_live:
        book.remember_resolved(incoming_id)


def _incoming_line(record: Incoming, key: Key) -> IncomingLine | None:
    """The record's line on a cell; there is one at most."""
    return next((each for each in record.lines if key_of(each) == key), None)
