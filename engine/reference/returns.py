"""What an order or a sale handed over and has come back, at this location or at any other."""

from engine.reference.book import Book
from engine.reference.lines import Answer, Line, check_quantity
from engine.status import Status


def claim_return(book: Book, line: Line) -> Answer:
    """CLAIM_RETURN: what comes back elsewhere is written down here; below zero, it does not after all."""
    status = Status.INVALID_FLAGS if line.flags else check_quantity(line)
    if status == Status.OK:
        status = judge_return(book, line)
    if status == Status.OK:
        take_back(book, line)
    return status, None  # no stock moves


def judge_return(book: Book, line: Line) -> Status:
    """Whether so much of the SKU was handed over, at any location, and is not back yet.

    Below zero: whether so much of it is back.
    """
    hold = book.holds.get(line.hold_id)
    if hold is None:
        return Status.UNKNOWN_HOLD
    if not any(each.fulfilled for each in hold.lines):
        return Status.HOLD_NOT_FULFILLED
    of_sku = [each for each in hold.lines if each.sku == line.sku]
    if not of_sku:
        return Status.NOT_IN_HOLD
    back = sum(each.returned for each in of_sku)
    out = sum(each.fulfilled for each in of_sku) - back
    return Status.OK if -back <= line.quantity <= out else Status.EXCEEDS_HOLD


def take_back(book: Book, line: Line) -> None:
    """Write down what was judged, in the lines of that SKU from the first one on."""
    left = line.quantity
    for each in book.holds[line.hold_id].lines:
        if each.sku == line.sku:
            units = max(min(left, each.fulfilled - each.returned), -each.returned)
            each.returned += units
            left -= units
