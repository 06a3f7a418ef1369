"""Linked returns, and one order, if any, that may take what they bring back: all or nothing."""

from copy import deepcopy
from itertools import takewhile

from engine import limits
from engine.operations import Flag, Kind
from engine.reference.book import Book
from engine.reference.facts import record_fact
from engine.reference.lines import Answer, Line
from engine.reference.reserving import reserve
from engine.status import Status


def exchange(book: Book, hold_id: bytes, lines: list[Line], is_open: bool) -> list[Answer]:
    """It is tried; when anything is refused, everything is as it was before.

    `hold_id` is that of the order; `is_open`: the last line asks for one more, in vain.
    """
    before = deepcopy(vars(book))
    returns = list(takewhile(lambda line: line.kind == Kind.RETURN, lines))
    order = lines[len(returns) :]
    answers: list[Answer] = []
    for line in returns:
        is_dangling = is_open and line is lines[-1]
        status, key = _return_in_exchange(book, line, len(lines), is_dangling)
        answers.append((status, key))
        if status != Status.OK:
            break
    is_brought = answers[-1][0] == Status.OK
    book.line += len(returns)
    reserved = reserve(book, hold_id, order, is_open) if order and is_brought else []
    statuses = [status for status, _ in answers + reserved]
    is_held = not order or any(status == Status.OK for status, _ in reserved)
    if is_brought and is_held:
        return answers + reserved
    vars(book).update(before)
    refused = Status.LINKED_LINE_REFUSED
    answers = [(refused if status == Status.OK else status, key) for status, key in answers]
    unseen = [(refused, None)] * (len(lines) - len(statuses))
    return [*answers, *reserved, *unseen]


def _return_in_exchange(book: Book, line: Line, lines: int, is_dangling: bool) -> Answer:
    if is_dangling:
        return Status.INVALID_FLAGS, None
    status, key = record_fact(book, line._replace(flags=line.flags & ~Flag.LINKED))
    is_said_first = Status.OK < status < Status.TOO_MANY_LINES
    if lines > limits.MAX_HOLD_LINES and not is_said_first:
        status = Status.TOO_MANY_LINES
    return status, key
