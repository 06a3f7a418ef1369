"""What people set for a cell: safety stock and price."""

from engine import limits
from engine.operations import Kind
from engine.reference.book import Book
from engine.reference.lines import Answer, Line, check_quantity
from engine.reference.places import check_place
from engine.status import Status
from engine.views import Cell


def setting(book: Book, line: Line) -> Answer:
    """SET_SAFETY_STOCK or SET_PRICE. A price that is set again has no new version."""
    status = _check_setting(book, line)
    if status != Status.OK:
        return status, None
    cell = book.cells.setdefault(line.key, Cell())
    if line.kind == Kind.SET_SAFETY_STOCK:
        cell.safety_stock = line.quantity
    elif line.value != cell.price_minor or cell.price_version == 0:
        cell.price_minor = line.value
        cell.price_version += 1
    return status, line.key


def _check_setting(book: Book, line: Line) -> Status:
    """All its checks; none needs the cell."""
    if line.flags:
        return Status.INVALID_FLAGS
    status = check_quantity(line)
    if status != Status.OK:
        return status
    if line.kind == Kind.SET_PRICE and not 0 <= line.value <= limits.MAX_PRICE_MINOR:
        return Status.INVALID_PRICE
    status = check_place(book, line)
    if status == Status.OK and line.kind == Kind.SET_PRICE:
        is_local = line.currency == book.places[line.location].currency
        return Status.OK if is_local else Status.CURRENCY_MISMATCH
    return status
