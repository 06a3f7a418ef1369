"""The reference machine: a book, blocks of requests applied to it, and copies of what it says.

It gives each line, or the lines that are linked to it, to their rule. It knows no rule itself.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeAlias

from engine import limits
from engine.block import Place, check_place
from engine.operations import PART_KINDS, Flag, Kind, Request, line_id
from engine.reference.book import SWEEP, Book, Trace, key_of
from engine.reference.exchanges import exchange
from engine.reference.facts import record_fact
from engine.reference.handover import hand_over
from engine.reference.hashes import state_hash
from engine.reference.holds import extend, on_hold, on_parts
from engine.reference.incoming import cancel_incoming, expect, receive_expected
from engine.reference.life import sweep
from engine.reference.lines import NO_HOLD, Answer, Key, Line, lines_of, linked_lines
from engine.reference.moves import add_line, move_hold, move_parts
from engine.reference.reserving import granted, reserve
from engine.reference.returns import claim_return
from engine.reference.settings import setting
from engine.reference.shortages import name_endangered
from engine.status import Status
from engine.views import Cell, DatedIncoming, Endangered, Hold, HoldState, Incoming

_Rule: TypeAlias = Callable[[Book, Line], Answer]

_FACTS: Final = (
    Kind.SALE, Kind.RETURN, Kind.RECEIVE, Kind.ADJUST, Kind.COUNT, Kind.INSPECT, Kind.WRITE_OFF,
)  # fmt: skip

# What is to be done for each kind of line that needs nothing but the line.
_RULES: Final[dict[int, _Rule]] = {
    **dict.fromkeys(PART_KINDS, on_hold),
    **dict.fromkeys(_FACTS, record_fact),
    Kind.SET_SAFETY_STOCK: setting,
    Kind.SET_PRICE: setting,
    Kind.EXTEND: extend,
    Kind.MOVE: move_hold,
    Kind.ADD_LINE: add_line,
    Kind.CLAIM_RETURN: claim_return,
    Kind.CANCEL_INCOMING: cancel_incoming,
}


class Answered(NamedTuple):
    """What a request was answered: a value a line."""

    status: bytes
    available: list[int]
    granted: list[int]  # what each line reserved; empty when no line is PARTIAL


class Outcome(NamedTuple):
    """What a block was answered."""

    answers: list[Answered]  # of each request
    expired: int  # holds that the sweep before the first line expired
    endangered: tuple[Endangered, ...] = ()
    traces: tuple[Trace, ...] = ()


class ReferenceMachine:
    """The stock of one shard and the holds on it."""

    def __init__(
        self,
        *,
        resolved_remembered: int = limits.RESOLVED_HOLDS_REMEMBERED,
        movements_remembered: int = limits.MOVEMENTS_REMEMBERED,
        expiries_per_block: int = limits.EXPIRIES_PER_BLOCK,
    ) -> None:
        """Raises ValueError for a bound below 1."""
        if min(resolved_remembered, movements_remembered, expiries_per_block) < 1:
            raise ValueError(
                "resolved_remembered, movements_remembered, expiries_per_block: must be positive"
            )
        self._book = Book(resolved_remembered, movements_remembered, expiries_per_block)

    # --- what changes it --------------------------------------------------------------------------

    def set_sku_limit(self, limit: int) -> None:
        """Make the SKUs 1 to `limit` known; it never shrinks."""
        if limit < self._book.sku_limit:
            raise ValueError(f"sku_limit: {limit}, was {self._book.sku_limit}")
        self._book.sku_limit = limit

    def set_location(
        self,
        location: int,
        *,
        owned: bool,
        currency: int,
        split: int = 0,
        part: int = 0,
        buffers: tuple[int, ...] = (),
    ) -> None:
        """Make a location known, or change what is known of it."""
        place = Place(location, owned, currency, split, part, buffers)
        check_place(place)
        self._book.places[location] = place

    def apply(self, now_ns: int, requests: Sequence[Request]) -> Outcome:
        """Apply one block: first what expires, then the lines in order.

        Raises ValueError for a time that does not grow.
        """
        if now_ns <= self._book.now_ns:
            raise ValueError(f"now_ns: {now_ns} is not after {self._book.now_ns}")
        self._book.now_ns = now_ns
        expired = self._sweep()
        answers = [self._apply_request(request) for request in requests]
        lines = [line for request in requests for line in lines_of(request)]
        statuses = [status for answer in answers for status in answer.status]
        endangered = tuple(name_endangered(self._book, lines, statuses))
        return Outcome(answers, expired, endangered, tuple(self._book.traces))

    def _sweep(self) -> int:
        """What runs out before the first line is traced by cell, in the order of their first."""
        book = self._book
        book.line, book.traces = SWEEP, []
        expired = sweep(book)
        units: Counter[Key] = Counter()
        for trace in book.traces:
            units[trace.key] += trace.units
        book.traces = [Trace(SWEEP, *each) for each in units.items()]
        book.line = 0
        return expired

    def _apply_request(self, request: Request) -> Answered:
        lines = lines_of(request)
        statuses: list[Status] = []
        available: list[int] = []
        reserved: list[int] = []
        while len(statuses) < len(lines):
            first = len(statuses)
            own_id = line_id(request.op_id, first)
            order = linked_lines(lines, first)
            # The last line of a request may ask for one more, in vain.
            is_open = first + len(order) == len(lines) and bool(order[-1].flags & Flag.LINKED)
            of_block = self._book.line
            answers = _apply_lines(self._book, own_id, order, is_open)
            self._book.line = of_block + len(order)
            for status, key in answers:
                statuses.append(status)
                # As it is after the whole order.
                cell = None if key is None else self._book.cells.get(key)
                available.append(0 if cell is None else cell.available)
            reserved += granted(self._book, own_id, order, answers)
        is_partial = any(line.flags & Flag.PARTIAL for line in lines)
        return Answered(bytes(statuses), available, reserved if is_partial else [])

    # --- what it knows ----------------------------------------------------------------------------

    def cell(self, sku: int, location: int) -> Cell | None:
        """A copy of a cell, or None if nothing was ever recorded of it."""
        cell = self._book.cells.get((sku, location))
        return None if cell is None else replace(cell)

    def counted_at_ns(self, sku: int, location: int) -> int:
        """The moment of a cell's newest count; 0 when it was never counted."""
        return self._book.counted_at_ns.get((sku, location), 0)

    def hold(self, hold_id: bytes) -> Hold | None:
        """A copy of a hold, or None if there is none or it was forgotten."""
        hold = self._book.holds.get(hold_id)
        return None if hold is None else _copied(hold)

    def incoming(self, incoming_id: bytes) -> Incoming | None:
        """A copy of an incoming record, or None if there is none or it was forgotten."""
        record = self._book.incoming.get(incoming_id)
        return None if record is None else _copied_incoming(record)

    def incoming_of(self, cells: Iterable[Key]) -> list[DatedIncoming]:
        """What is outstanding for these cells, by cell (location, SKU) and date."""
        wanted = set(cells)
        return sorted(
            (
                DatedIncoming(line.sku, line.location, record.expected_at_ns, line.outstanding)
                for record in self._book.incoming.values()
                for line in record.lines
                if line.outstanding and key_of(line) in wanted
            ),
            key=lambda each: (each.location, each.sku, each.expected_at_ns, each.units),
        )

    @property
    def cells(self) -> dict[Key, Cell]:
        """A copy of every cell."""
        return {key: replace(cell) for key, cell in self._book.cells.items()}

    @property
    def holds(self) -> dict[bytes, Hold]:
        """A copy of every hold that is live or remembered."""
        return {hold_id: _copied(hold) for hold_id, hold in self._book.holds.items()}

    @property
    def incoming_records(self) -> dict[bytes, Incoming]:
        """A copy of every incoming record that is live or remembered."""
        return {each: _copied_incoming(record) for each, record in self._book.incoming.items()}

    @property
    def holds_open(self) -> int:
        """Holds with something pending."""
        return sum(hold.state == HoldState.PENDING for hold in self._book.holds.values())

    @property
    def holds_committed(self) -> int:
        """Holds with nothing pending and something committed."""
        return sum(hold.state == HoldState.COMMITTED for hold in self._book.holds.values())

    @property
    def shortages(self) -> int:
        """Cells whose available is below zero."""
        return sum(cell.available < 0 for cell in self._book.cells.values())

    @property
    def expired(self) -> int:
        """Holds expired since the beginning, by the sweep or when they were called on."""
        return self._book.expired

    @property
    def state_hash(self) -> int:
        """A number that is the same whenever the cells and the live holds are."""
        return state_hash(self._book)


def _apply_lines(book: Book, own_id: bytes, order: list[Line], is_open: bool) -> list[Answer]:
    """Lines that stand or fall together, the first of which has the id `own_id`."""
    line = order[0]
    is_linked = bool(line.flags & Flag.LINKED)
    if line.kind == Kind.RESERVE:
        return reserve(book, own_id, order, is_open)
    if line.kind == Kind.RETURN and is_linked:
        return exchange(book, own_id, order, is_open)
    if [each.kind for each in order[:2]] == [Kind.RELEASE, Kind.ADD_LINE]:
        return hand_over(book, order)
    if line.kind == Kind.MOVE and is_linked:
        return move_parts(book, order, is_open)
    if line.kind in PART_KINDS and is_linked:
        return on_parts(book, order, is_open)
    if line.kind == Kind.EXPECT:
        return [expect(book, own_id, line)]
    if line.kind == Kind.RECEIVE and line.hold_id != NO_HOLD:
        return [receive_expected(book, line)]
    rule = _RULES.get(line.kind)
    return [(Status.INVALID_KIND, None) if rule is None else rule(book, line)]


def _copied(hold: Hold) -> Hold:
    return replace(hold, lines=[replace(line) for line in hold.lines])


def _copied_incoming(record: Incoming) -> Incoming:
    return replace(record, lines=[replace(line) for line in record.lines])
