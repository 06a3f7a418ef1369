"""A handover: a RELEASE that is linked to an ADD_LINE lets units go from one hold to another."""

from collections import Counter

from engine import limits
from engine.reference.book import Book
from engine.reference.holds import check_part, judge_part, on_hold
from engine.reference.life import called_hold
from engine.reference.lines import Answer, Key, Line
from engine.reference.moves import append_line
from engine.status import Status
from engine.views import HoldState


def hand_over(book: Book, lines: list[Line]) -> list[Answer]:
    """Let units that one hold has pending be another's, on the same cell.

    They stay reserved, so no stock is judged. A taker of which nothing is pending is pending again,
    or is new, with the deadline of the giver. There may be no third line.
    """
    gives, takes = lines[:2]
    refused, unseen = (Status.LINKED_LINE_REFUSED, None), len(lines) - 2
    status = check_part(book, gives, gives, is_last=False, is_dangling=False)
    if status != Status.OK:
        return [(status, None), *[refused] * (unseen + 1)]
    status, key = judge_part(book, gives, Counter())
    if status != Status.OK:
        return [(status, key), *[refused] * (unseen + 1)]
    book.line += 1
    status = _judge_taker(book, gives, takes, key)
    book.line -= 1
    if status != Status.OK:
        return [(Status.LINKED_LINE_REFUSED, key), (status, None), *[refused] * unseen]
    deadline_ns = book.holds[gives.hold_id].deadline_ns
    on_hold(book, gives._replace(flags=0))
    append_line(book, takes, deadline_ns)
    return [(status, key), (status, key)]


def _judge_taker(book: Book, gives: Line, takes: Line, key: Key | None) -> Status:
    """Whether a hold can take what another one gives of a cell."""
    fits = (takes.key, takes.quantity) == (key, gives.quantity)
    if not fits or takes.flags or takes.value or takes.channel:
        return Status.INVALID_FLAGS
    hold = called_hold(book, takes)
    if hold is None:
        return Status.UNKNOWN_HOLD if takes.hold_id in book.incoming else Status.OK
    if hold.state == HoldState.EXPIRED or takes.hold_id in book.short:
        return Status.HOLD_EXPIRED
    return Status.TOO_MANY_LINES if len(hold.lines) >= limits.MAX_HOLD_LINES else Status.OK
