"""The rules of stock and price in plain dicts: obvious rather than fast. Read this first.

`engine.kernels` states the same rules over columns. Both give the same answers, the same cells and
holds and the same state hash on every history; the property tests hold them to it. Nothing is kept
here that can be counted from the cells and the holds.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

from engine import limits
from engine.operations import (
    COLUMNS,
    HOLD_KINDS,
    Disposition,
    Flag,
    Kind,
    Request,
    id_to_pair,
    line_id,
    pair_to_id,
)
from engine.status import Status
from engine.views import Cell, Hold, HoldLine, HoldState

Key: TypeAlias = tuple[int, int]  # (sku, location): names a cell
Answer: TypeAlias = tuple[Status, Key | None]  # with the cell whose availability is answered

FACTS: Final = (
    Kind.SALE, Kind.RETURN, Kind.RECEIVE, Kind.ADJUST, Kind.COUNT, Kind.INSPECT, Kind.WRITE_OFF,
)  # fmt: skip
SETTINGS: Final = (Kind.SET_SAFETY_STOCK, Kind.SET_PRICE)

# What facts may have in `flags` and must have in `value`.
_FACT_FLAGS: Final[dict[int, tuple[int, ...]]] = {
    Kind.WRITE_OFF: (0, Flag.DAMAGED, Flag.QUALITY_CONTROL)
}
_DISPOSITIONS: Final[dict[int, tuple[int, ...]]] = {
    Kind.RETURN: tuple(Disposition),
    Kind.INSPECT: (Disposition.RESTOCK, Disposition.DAMAGED),
}

NO_HOLD: Final = bytes(limits.OP_ID_BYTES)
_NO_CELL: Final[Key] = (0, 0)  # an operation on a hold that names no line

# The state hash: odd constants from the digits of pi, and the finalizer of splitmix64.
_MULTIPLIERS: Final = (
    0x243F6A8885A308D3,
    0x13198A2E03707345,
    0xA4093822299F31D1,
    0x082EFA98EC4E6C89,
    0x452821E638D01377,
    0xBE5466CF34E90C6D,
    0xC0AC29B7C97C50DD,
    0x3F84D5B5B5470917,
    0x9216D5D98979FB1B,
    0xD1310BA698DFB5AD,
)
_WORD: Final = (1 << 64) - 1


class Line(NamedTuple):
    """One line of a request; the fields are those of `operations.COLUMNS`."""

    kind: int
    flags: int
    sku: int
    location: int
    quantity: int
    value: int
    currency: int
    hold_hi: int
    hold_lo: int
    channel: int = 0
    occurred_at_ns: int = 0

    @property
    def key(self) -> Key:
        """The cell that the line names."""
        return self.sku, self.location

    @property
    def hold_id(self) -> bytes:
        """The hold that the line names, or NO_HOLD."""
        return pair_to_id(self.hold_hi, self.hold_lo)


class Movement(NamedTuple):
    """A change of a cell's on_hand."""

    key: Key
    units: int
    moment_ns: int


@dataclass(frozen=True, slots=True)
class Place:
    """What the shard map says of a location."""

    owned: bool
    currency: int  # ISO 4217 numeric
    split: int  # over how many shards the location's SKUs are spread; 0 or 1: not at all
    part: int  # which of them are this shard's


class Outcome(NamedTuple):
    """What a block was answered."""

    answers: list[tuple[bytes, list[int]]]  # of each request: a Status and the availability a line
    expired: int  # holds that the sweep before the first line expired


class ReferenceMachine:
    """The stock of one shard and the holds on it."""

    def __init__(
        self,
        *,
        resolved_remembered: int = limits.RESOLVED_HOLDS_REMEMBERED,
        movements_remembered: int = limits.MOVEMENTS_REMEMBERED,
        expiries_per_block: int = limits.EXPIRIES_PER_BLOCK,
    ) -> None:
        if min(resolved_remembered, movements_remembered, expiries_per_block) < 1:
            raise ValueError(
                "resolved_remembered, movements_remembered, expiries_per_block: must be positive"
            )
        self._resolved_remembered = resolved_remembered
        self._movements_remembered = movements_remembered
        self._expiries_per_block = expiries_per_block
        self._now_ns = 0
        self._sku_limit = 0
        self._expired = 0
        self._places: dict[int, Place] = {}
        self._cells: dict[Key, Cell] = {}  # in the order they were made
        self._holds: dict[bytes, Hold] = {}  # live or remembered, in the order they were made
        # The remembered ones, oldest first; None stands where one was that is live again.
        self._resolved: deque[bytes | None] = deque()
        self._counted_at_ns: dict[Key, int] = {}  # the moment of each cell's newest count
        self._movements: deque[Movement] = deque()  # the remembered ones, in order of arrival
        self._forgotten_ns = 0  # the latest moment of those that are remembered no more

    def set_sku_limit(self, limit: int) -> None:
        """Make the SKUs 1 to `limit` known; it never shrinks."""
        if limit < self._sku_limit:
            raise ValueError(f"sku_limit: {limit}, was {self._sku_limit}")
        self._sku_limit = limit

    def set_location(
        self, location: int, *, owned: bool, currency: int, split: int = 0, part: int = 0
    ) -> None:
        """Make a location known, or change what is known of it."""
        if not 1 <= location <= limits.MAX_LOCATIONS:
            raise ValueError(f"location: {location}, must be 1 to {limits.MAX_LOCATIONS}")
        self._places[location] = Place(owned, currency, split, part)

    def apply(self, now_ns: int, requests: Sequence[Request]) -> Outcome:
        """Apply one block: first what expires, then the lines in order.

        Raises ValueError for a time that does not grow.
        """
        if now_ns <= self._now_ns:
            raise ValueError(f"now_ns: {now_ns} is not after {self._now_ns}")
        self._now_ns = now_ns
        expired = self._sweep()
        return Outcome([self._apply_request(request) for request in requests], expired)

    def cell(self, sku: int, location: int) -> Cell | None:
        """A copy of a cell, or None if nothing was ever recorded of it."""
        cell = self._cells.get((sku, location))
        return None if cell is None else replace(cell)

    def counted_at_ns(self, sku: int, location: int) -> int:
        """The moment of a cell's newest count; 0 when it was never counted."""
        return self._counted_at_ns.get((sku, location), 0)

    def hold(self, hold_id: bytes) -> Hold | None:
        """A copy of a hold, or None if there is none or it was forgotten."""
        hold = self._holds.get(hold_id)
        return None if hold is None else _copied(hold)

    @property
    def cells(self) -> dict[Key, Cell]:
        """A copy of every cell."""
        return {key: replace(cell) for key, cell in self._cells.items()}

    @property
    def holds(self) -> dict[bytes, Hold]:
        """A copy of every hold that is live or remembered."""
        return {hold_id: _copied(hold) for hold_id, hold in self._holds.items()}

    @property
    def holds_open(self) -> int:
        """Holds with something pending."""
        return sum(hold.state == HoldState.PENDING for hold in self._holds.values())

    @property
    def holds_committed(self) -> int:
        """Holds with nothing pending and something committed."""
        return sum(hold.state == HoldState.COMMITTED for hold in self._holds.values())

    @property
    def shortages(self) -> int:
        """Cells whose available is below zero."""
        return sum(cell.available < 0 for cell in self._cells.values())

    @property
    def expired(self) -> int:
        """Holds expired since the beginning, by the sweep or when they were called on."""
        return self._expired

    @property
    def state_hash(self) -> int:
        """A number that is the same whenever the cells and the live holds are."""
        rows = {key: row for row, key in enumerate(self._cells)}
        total = sum(_cell_hash(key, cell) for key, cell in self._cells.items())
        for hold_id, hold in self._holds.items():
            if hold.state.is_live:
                total += sum(_line_hashes(hold_id, hold, rows))
        total += sum(_count_hash(key, moment) for key, moment in self._counted_at_ns.items())
        return total & _WORD

    # --- requests ---------------------------------------------------------------------------------

    def _apply_request(self, request: Request) -> tuple[bytes, list[int]]:
        lines = _lines(request)
        statuses: list[Status] = []
        available: list[int] = []
        while len(statuses) < len(lines):
            first = len(statuses)
            order = _linked_lines(lines, first)
            for status, key in self._apply_lines(request, first, order):
                statuses.append(status)
                # As it is after the whole order.
                cell = None if key is None else self._cells.get(key)
                available.append(0 if cell is None else cell.available)
        return bytes(statuses), available

    def _apply_lines(self, request: Request, first: int, order: list[Line]) -> list[Answer]:
        line = order[0]
        if line.kind == Kind.RESERVE:
            is_open = first + len(order) == request.lines and bool(order[-1].flags & Flag.LINKED)
            return self._reserve(line_id(request.op_id, first), order, is_open)
        if line.kind in HOLD_KINDS:
            return [self._on_hold(line)]
        if line.kind in FACTS:
            return [self._fact(line)]
        if line.kind == Kind.CLAIM_RETURN:
            return [self._claim_return(line)]
        if line.kind in SETTINGS:
            return [self._setting(line)]
        return [(Status.INVALID_KIND, None)]

    # --- reserve ----------------------------------------------------------------------------------

    def _reserve(self, hold_id: bytes, order: list[Line], is_open: bool) -> list[Answer]:
        """All lines of an order or none. `is_open`: the last line asks for one more, in vain.

        Of a refused order, the first line that cannot be served says why. The lines after it were
        not looked at.
        """
        answers: list[Answer] = []
        demand: Counter[Key] = Counter()  # of lines on one cell, summed
        for number, line in enumerate(order):
            is_dangling = is_open and number == len(order) - 1
            status = self._check_reserve(line, is_dangling)
            key = line.key if status == Status.OK else None
            demand[line.key] += line.quantity
            if status == Status.OK:
                status = self._judge_reserve(hold_id, order, line, demand)
            if status != Status.OK:
                refused = [(Status.LINKED_LINE_REFUSED, seen) for _, seen in answers]
                unseen = [(Status.LINKED_LINE_REFUSED, None)] * (len(order) - number - 1)
                return [*refused, (status, key), *unseen]
            answers.append((status, key))

        for line in order:
            self._cells[line.key].reserved += line.quantity
        # The first line's time to live is the hold's.
        deadline_ns = self._now_ns + order[0].value * limits.NS_PER_MS
        lines = [HoldLine(line.sku, line.location, pending=line.quantity) for line in order]
        self._holds[hold_id] = Hold(HoldState.PENDING, deadline_ns, lines)
        return answers

    def _check_reserve(self, line: Line, is_dangling: bool) -> Status:
        """The checks of one line that need no other line and no stock."""
        if line.kind not in set(Kind):
            return Status.INVALID_KIND
        if line.kind != Kind.RESERVE or line.flags not in (0, Flag.LINKED) or is_dangling:
            return Status.INVALID_FLAGS
        if line.quantity <= 0:
            return Status.INVALID_QUANTITY
        if line.quantity > limits.MAX_QUANTITY:
            return Status.QUANTITY_TOO_LARGE
        if not limits.MIN_TTL_MS <= line.value <= limits.MAX_TTL_MS:
            return Status.INVALID_TTL
        return self._check_place(line)

    def _judge_reserve(
        self, hold_id: bytes, order: list[Line], line: Line, demand: Counter[Key]
    ) -> Status:
        if hold_id in self._holds:
            return Status.HOLD_EXISTS
        if len(order) > limits.MAX_HOLD_LINES:
            return Status.TOO_MANY_LINES
        cell = self._cells.get(line.key)
        if cell is None or cell.available < demand[line.key]:
            return Status.INSUFFICIENT_STOCK
        return Status.OK

    def _check_place(self, line: Line) -> Status:
        place = self._places.get(line.location)
        if place is None:
            return Status.UNKNOWN_LOCATION
        if not 1 <= line.sku <= self._sku_limit:
            return Status.UNKNOWN_SKU
        if not place.owned:
            return Status.WRONG_SHARD
        if place.split > 1 and (_mix(line.sku) >> 33) % place.split != place.part:
            return Status.WRONG_SHARD
        return Status.OK

    # --- operations on a hold ---------------------------------------------------------------------

    def _on_hold(self, line: Line) -> Answer:
        """COMMIT, RELEASE, FULFIL or CANCEL: of the whole hold, or of its lines on one cell."""
        status = _check_hold_call(line)
        if status != Status.OK:
            return status, None
        hold_id = pair_to_id(line.hold_hi, line.hold_lo)
        hold = self._holds.get(hold_id)
        if hold is None:
            return Status.UNKNOWN_HOLD, None
        if hold.state == HoldState.PENDING and hold.deadline_ns < self._now_ns:
            self._expire(hold_id)  # the sweep did not come to it yet
        status = _check_hold_state(line.kind, hold.state)
        if status != Status.OK:
            return status, _key(hold.lines[0])
        called = _called_lines(line, hold)
        status = self._judge_on_hold(line, hold, called)
        if status == Status.OK:
            self._move(line, hold, called)
            resolved = HoldState.RELEASED if line.kind == Kind.RELEASE else HoldState.CANCELLED
            self._settle(hold_id, resolved)
        return status, _key(called[0]) if called else None

    def _judge_on_hold(self, line: Line, hold: Hold, called: list[HoldLine]) -> Status:
        if sum(_usable(line.kind, each) for each in hold.lines) == 0:
            return Status.HOLD_NOT_COMMITTED  # a pending hold has something pending
        if not called:
            return Status.NOT_IN_HOLD
        total = sum(_usable(line.kind, each) for each in called)
        if line.quantity > total:
            return Status.EXCEEDS_HOLD
        if line.kind == Kind.FULFIL:
            lowest = min(self._cells[_key(each)].on_hand for each in called)
            if lowest - (line.quantity or total) < -limits.MAX_BALANCE:
                return Status.BALANCE_LIMIT
        return Status.OK

    def _move(self, line: Line, hold: Hold, called: list[HoldLine]) -> None:
        left = line.quantity or sum(_usable(line.kind, each) for each in called)
        for each in called:
            units = min(left, _usable(line.kind, each))
            self._move_units(line.kind, each, units)
            left -= units
        if line.flags & Flag.RELEASE_REST:
            for each in hold.lines:
                self._move_units(Kind.RELEASE, each, each.pending)

    def _move_units(self, kind: int, line: HoldLine, units: int) -> None:
        """Move units of one line of a hold to their next state."""
        cell = self._cells[_key(line)]
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
            cell.on_hand -= units
            if units:
                self._note_movement(Movement(_key(line), -units, self._now_ns))

    # --- the end of holds -------------------------------------------------------------------------

    def _sweep(self) -> int:
        """Expire what is overdue: by ticks, in one tick the oldest first, so many in a block."""
        overdue = [
            (hold.deadline_ns >> limits.EXPIRY_TICK_BITS, hold_id)
            for hold_id, hold in self._holds.items()
            if hold.state == HoldState.PENDING and hold.deadline_ns < self._now_ns
        ]
        overdue.sort(key=lambda each: each[0])  # keeps the order within a tick
        due = overdue[: self._expiries_per_block]
        for _, hold_id in due:
            self._expire(hold_id)
        return len(due)

    def _expire(self, hold_id: bytes) -> None:
        """Everything that is pending in a hold goes back to available."""
        for line in self._holds[hold_id].lines:
            self._move_units(Kind.RELEASE, line, line.pending)
        self._settle(hold_id, HoldState.EXPIRED)
        self._expired += 1

    def _settle(self, hold_id: bytes, resolved: HoldState) -> None:
        """After a change of a hold: its new state.

        `resolved` is the state of a hold of which nothing is left and nothing was handed over.
        """
        hold = self._holds[hold_id]
        if any(line.pending for line in hold.lines):
            return
        if any(line.committed for line in hold.lines):
            hold.state = HoldState.COMMITTED
            return
        was_fulfilled = any(line.fulfilled for line in hold.lines)
        hold.state = HoldState.FULFILLED if was_fulfilled else resolved
        self._remember_resolved(hold_id)

    def _remember_resolved(self, hold_id: bytes) -> None:
        """Keep a resolved hold for late calls; the oldest one goes when there are too many."""
        if len(self._resolved) == self._resolved_remembered:
            oldest = self._resolved.popleft()
            if oldest is not None:
                del self._holds[oldest]
        self._resolved.append(hold_id)

    # --- facts --------------------------------------------------------------------------------

    def _fact(self, line: Line) -> Answer:
        """What has happened to goods: never refused for lack of stock."""
        status = self._check_fact(line)
        if status != Status.OK:
            return status, None
        after = self._after_fact(line)
        status = self._judge_fact(line, after)
        if status == Status.OK:
            self._record_fact(line, after)
        return status, line.key

    def _moment_ns(self, line: Line) -> int:
        """When it happened; what clocks differ by is not the future."""
        return min(line.occurred_at_ns or self._now_ns, self._now_ns)

    def _is_late(self, line: Line) -> bool:
        """Whether the newest count of the cell has seen it already."""
        return self._moment_ns(line) < self.counted_at_ns(*line.key)

    def _judge_fact(self, line: Line, after: Cell) -> Status:
        status = self._judge_named(line)
        if status != Status.OK:
            return status
        is_old = self._moment_ns(line) < self._forgotten_ns
        if line.kind == Kind.COUNT and is_old and not self._is_late(line):
            return Status.MOMENT_TOO_OLD
        if min(after.damaged, after.quality_control) < 0:
            return Status.EXCEEDS_SET_ASIDE
        counters = (after.on_hand, after.damaged, after.quality_control)
        is_within = all(abs(each) <= limits.MAX_BALANCE for each in counters)
        return Status.OK if is_within else Status.BALANCE_LIMIT

    def _record_fact(self, line: Line, after: Cell) -> None:
        moved = after.on_hand - self._cells.get(line.key, Cell()).on_hand
        self._cells[line.key] = after
        if line.kind == Kind.COUNT:
            counted_at_ns = max(self._moment_ns(line), self.counted_at_ns(*line.key))
            self._counted_at_ns[line.key] = counted_at_ns
        elif moved:
            self._note_movement(Movement(line.key, moved, self._moment_ns(line)))
        if line.kind == Kind.SALE and line.hold_id != NO_HOLD:
            sold = HoldLine(line.sku, line.location, pending=0, fulfilled=line.quantity)
            self._holds[line.hold_id] = Hold(HoldState.FULFILLED, 0, [sold])
            self._remember_resolved(line.hold_id)
        if line.kind == Kind.RETURN and line.hold_id != NO_HOLD:
            self._take_back(line)

    def _judge_named(self, line: Line) -> Status:
        """A sale with an id is recorded once; a return may name what handed the goods over."""
        if line.kind == Kind.SALE and line.hold_id != NO_HOLD and line.hold_id in self._holds:
            return Status.ALREADY_RECORDED
        if line.kind == Kind.RETURN and line.hold_id != NO_HOLD:
            return self._judge_return(line)
        return Status.OK

    def _check_fact(self, line: Line) -> Status:
        """The checks that do not need the cell."""
        if line.flags not in _FACT_FLAGS.get(line.kind, (0,)):
            return Status.INVALID_FLAGS
        status = _check_quantity(line)
        if status != Status.OK:
            return status
        dispositions = _DISPOSITIONS.get(line.kind)
        if dispositions is not None and line.value not in dispositions:
            return Status.INVALID_DISPOSITION
        has_reason = line.kind in (Kind.ADJUST, Kind.WRITE_OFF)
        if has_reason and not 0 <= line.value <= limits.MAX_REASON:
            return Status.INVALID_REASON
        latest_ns = self._now_ns + limits.MAX_CLOCK_SKEW_MS * limits.NS_PER_MS
        if line.kind != Kind.INSPECT and not 0 <= line.occurred_at_ns <= latest_ns:
            return Status.INVALID_MOMENT
        return self._check_place(line)

    def _after_fact(self, line: Line) -> Cell:
        """What the cell would be. What the newest count has seen changes its buckets alone."""
        before, units = self._cells.get(line.key, Cell()), line.quantity
        cell = replace(before)
        if line.kind == Kind.COUNT:
            cell.on_hand = units + self._moved_since(line.key, self._moment_ns(line))
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
        if self._is_late(line):
            cell.on_hand = before.on_hand
        return cell

    def _note_movement(self, movement: Movement) -> None:
        if len(self._movements) == self._movements_remembered:
            forgotten = self._movements.popleft()
            self._forgotten_ns = max(self._forgotten_ns, forgotten.moment_ns)
        self._movements.append(movement)

    def _moved_since(self, key: Key, moment_ns: int) -> int:
        """What the movements of a cell after a moment add up to."""
        return sum(
            each.units for each in self._movements if each.key == key and each.moment_ns > moment_ns
        )

    # --- returns of what was handed over ------------------------------------------------------

    def _claim_return(self, line: Line) -> Answer:
        """What comes back elsewhere is written down here."""
        status = Status.INVALID_FLAGS if line.flags else _check_quantity(line)
        if status == Status.OK:
            status = self._judge_return(line)
        if status == Status.OK:
            self._take_back(line)
        return status, None  # no stock moves

    def _judge_return(self, line: Line) -> Status:
        """Whether so much of the SKU was handed over, at any location, and is not back yet."""
        hold = self._holds.get(line.hold_id)
        if hold is None or hold.state >= HoldState.INCOMING:
            return Status.UNKNOWN_HOLD
        if not any(each.fulfilled for each in hold.lines):
            return Status.HOLD_NOT_FULFILLED
        of_sku = [each for each in hold.lines if each.sku == line.sku]
        if not of_sku:
            return Status.NOT_IN_HOLD
        out = sum(each.fulfilled - each.returned for each in of_sku)
        return Status.OK if line.quantity <= out else Status.EXCEEDS_HOLD

    def _take_back(self, line: Line) -> None:
        left = line.quantity
        for each in self._holds[line.hold_id].lines:
            if each.sku == line.sku:
                units = min(left, each.fulfilled - each.returned)
                each.returned += units
                left -= units

    # --- settings -----------------------------------------------------------------------------

    def _setting(self, line: Line) -> Answer:
        status = self._check_setting(line)
        if status != Status.OK:
            return status, None
        cell = self._cells.setdefault(line.key, Cell())
        if line.kind == Kind.SET_SAFETY_STOCK:
            cell.safety_stock = line.quantity
        elif line.value != cell.price_minor or cell.price_version == 0:
            cell.price_minor = line.value
            cell.price_version += 1
        return status, line.key

    def _check_setting(self, line: Line) -> Status:
        if line.flags:
            return Status.INVALID_FLAGS
        status = _check_quantity(line)
        if status != Status.OK:
            return status
        if line.kind == Kind.SET_PRICE and not 0 <= line.value <= limits.MAX_PRICE_MINOR:
            return Status.INVALID_PRICE
        status = self._check_place(line)
        if status == Status.OK and line.kind == Kind.SET_PRICE:
            is_local = line.currency == self._places[line.location].currency
            return Status.OK if is_local else Status.CURRENCY_MISMATCH
        return status


def _lines(request: Request) -> list[Line]:
    """A request's lines; a column that is missing is all zeros."""
    zeros = [0] * request.lines
    given = request.columns
    columns = [given[name].tolist() if name in given else zeros for name in COLUMNS]
    return [Line(*values) for values in zip(*columns, strict=True)]


def _linked_lines(lines: list[Line], first: int) -> list[Line]:
    """The lines that stand or fall together with line `first`."""
    end = first + 1
    if lines[first].kind == Kind.RESERVE:
        while end < len(lines) and lines[end - 1].flags & Flag.LINKED:
            end += 1
    return lines[first:end]


def _check_hold_call(line: Line) -> Status:
    """The checks of an operation on a hold that do not need the hold."""
    commits_part = line.kind == Kind.COMMIT and line.quantity != 0
    if line.flags not in ((0, Flag.RELEASE_REST) if commits_part else (0,)):
        return Status.INVALID_FLAGS
    if line.quantity < 0:
        return Status.INVALID_QUANTITY
    if line.quantity > limits.MAX_QUANTITY:
        return Status.QUANTITY_TOO_LARGE
    return Status.OK


def _check_hold_state(kind: int, state: HoldState) -> Status:
    """Whether `kind` can apply to a hold in this state at all."""
    if state == HoldState.EXPIRED:
        return Status.HOLD_EXPIRED
    if state == HoldState.RELEASED:
        return Status.HOLD_RELEASED
    if state >= HoldState.INCOMING:
        return Status.UNKNOWN_HOLD  # an incoming record is no hold
    if kind in (Kind.COMMIT, Kind.RELEASE):
        return Status.OK if state == HoldState.PENDING else Status.HOLD_NOT_PENDING
    return Status.OK if state.is_live else Status.HOLD_NOT_COMMITTED


def _called_lines(line: Line, hold: Hold) -> list[HoldLine]:
    """The hold's lines that an operation is about.

    A quantity needs the name of its cell, unless the hold has but one line.
    """
    if line.quantity == 0 or (line.key == _NO_CELL and len(hold.lines) == 1):
        return hold.lines
    return [each for each in hold.lines if _key(each) == line.key]


def _usable(kind: int, line: HoldLine) -> int:
    """The units of a hold's line that `kind` may move."""
    return line.pending if kind in (Kind.COMMIT, Kind.RELEASE) else line.committed


def _copied(hold: Hold) -> Hold:
    return replace(hold, lines=[replace(line) for line in hold.lines])


def _key(line: HoldLine) -> Key:
    return line.sku, line.location


def _check_quantity(line: Line) -> Status:
    """Whether the quantity of a fact or a setting is one."""
    is_signed = line.kind == Kind.ADJUST
    may_be_zero = line.kind in (Kind.COUNT, Kind.SET_SAFETY_STOCK)
    if line.kind != Kind.SET_PRICE and (
        (line.quantity < 0 and not is_signed) or (line.quantity == 0 and not may_be_zero)
    ):
        return Status.INVALID_QUANTITY
    return Status.OK if abs(line.quantity) <= limits.MAX_QUANTITY else Status.QUANTITY_TOO_LARGE


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def _weighted(words: Iterable[int]) -> int:
    """Negative words count as their two's complement."""
    return sum(word * by for word, by in zip(words, _MULTIPLIERS, strict=False)) & _WORD


def _cell_hash(key: Key, cell: Cell) -> int:
    sku, location = key
    stock = (cell.on_hand, cell.reserved, cell.committed, cell.damaged, cell.quality_control)
    rest = (cell.safety_stock, cell.incoming, cell.price_minor, cell.price_version)
    return _mix(_weighted((location << 32 | sku, *stock, *rest)))


def _count_hash(key: Key, moment_ns: int) -> int:
    sku, location = key
    return _mix(_weighted((location << 32 | sku, moment_ns)) ^ _MULTIPLIERS[8])


def _line_hashes(hold_id: bytes, hold: Hold, rows: dict[Key, int]) -> Iterable[int]:
    for number, line in enumerate(hold.lines):
        # The hold's state stands in its first line only.
        state = hold.state if number == 0 else HoldState.PENDING
        units = (line.pending, line.committed, line.fulfilled, line.returned)
        stands = state | number << 8
        words = (*id_to_pair(hold_id), rows[_key(line)], hold.deadline_ns, *units, stands)
        yield _mix(_weighted(words) ^ _MULTIPLIERS[9])
