"""The rules of stock and price in plain dicts: obvious rather than fast. Read this first.

`engine.kernels` states the same rules over columns. Both give the same answers, the same cells and
holds and the same state hash on every history; the property tests hold them to it. Nothing is kept
here that can be counted from the cells and the holds.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import takewhile
from typing import Final, NamedTuple, TypeAlias

from engine import limits
from engine.block import NOT_SOLD, Place, check_place
from engine.operations import (
    COLUMNS,
    PART_KINDS,
    Disposition,
    Flag,
    Kind,
    Request,
    id_to_pair,
    line_id,
    pair_to_id,
)
from engine.status import Status
from engine.views import (
    Cell,
    DatedIncoming,
    Endangered,
    EndangeredHold,
    Hold,
    HoldLine,
    HoldState,
    Incoming,
    IncomingLine,
)

Key: TypeAlias = tuple[int, int]  # (sku, location): names a cell
Answer: TypeAlias = tuple[Status, Key | None]  # with the cell whose availability is answered

FACTS: Final = (
    Kind.SALE, Kind.RETURN, Kind.RECEIVE, Kind.ADJUST, Kind.COUNT, Kind.INSPECT, Kind.WRITE_OFF,
)  # fmt: skip
SETTINGS: Final = (Kind.SET_SAFETY_STOCK, Kind.SET_PRICE)
RESERVE_FLAGS: Final = Flag.LINKED | Flag.PARTIAL | Flag.SUPERSEDE | Flag.COMMIT_NOW

# What facts may have in `flags` and must have in `value`.
_FACT_FLAGS: Final[dict[int, tuple[int, ...]]] = {
    Kind.WRITE_OFF: (0, Flag.DAMAGED, Flag.QUALITY_CONTROL)
}
_DISPOSITIONS: Final[dict[int, tuple[int, ...]]] = {
    Kind.RETURN: tuple(Disposition),
    Kind.INSPECT: (Disposition.RESTOCK, Disposition.DAMAGED),
}

# The facts that may leave less available than before. A return does when its goods are set aside and
# a later count has seen them already.
_LOWERING: Final = (
    Kind.SALE, Kind.ADJUST, Kind.COUNT, Kind.SET_SAFETY_STOCK, Kind.WRITE_OFF,
)  # fmt: skip

_MOVED: Final = (HoldState.FULFILLED, HoldState.RECEIVED)  # resolved, and goods have moved by it

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
        self._pending: dict[bytes, None] = {}  # those that are; the last one got its deadline last
        self._lapsed: dict[bytes, list[int]] = {}  # what each line of a hold had when it expired
        self._sales: set[bytes] = set()  # the holds that sales with an id are remembered as
        self._incoming: dict[bytes, Incoming] = {}  # live or remembered; no id is also a hold's
        # The remembered ones of both, oldest first: by which goods have moved, and the others. None
        # stands where one was that is live again.
        self._resolved: dict[bool, deque[bytes | None]] = {True: deque(), False: deque()}
        self._counted_at_ns: dict[Key, int] = {}  # the moment of each cell's newest count
        self._movements: deque[Movement] = deque()  # the remembered ones, in order of arrival
        self._forgotten_ns = 0  # the latest moment of those that are remembered no more

    def set_sku_limit(self, limit: int) -> None:
        """Make the SKUs 1 to `limit` known; it never shrinks."""
        if limit < self._sku_limit:
            raise ValueError(f"sku_limit: {limit}, was {self._sku_limit}")
        self._sku_limit = limit

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
        self._places[location] = place

    def apply(self, now_ns: int, requests: Sequence[Request]) -> Outcome:
        """Apply one block: first what expires, then the lines in order.

        Raises ValueError for a time that does not grow.
        """
        if now_ns <= self._now_ns:
            raise ValueError(f"now_ns: {now_ns} is not after {self._now_ns}")
        self._now_ns = now_ns
        expired = self._sweep()
        answers = [self._apply_request(request) for request in requests]
        return Outcome(answers, expired, tuple(self._name_endangered(requests, answers)))

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

    def incoming(self, incoming_id: bytes) -> Incoming | None:
        """A copy of an incoming record, or None if there is none or it was forgotten."""
        record = self._incoming.get(incoming_id)
        return None if record is None else _copied_incoming(record)

    def incoming_of(self, cells: Iterable[Key]) -> list[DatedIncoming]:
        """What is outstanding for these cells, by cell (location, SKU) and date."""
        wanted = set(cells)
        return sorted(
            (
                DatedIncoming(line.sku, line.location, record.expected_at_ns, line.outstanding)
                for record in self._incoming.values()
                for line in record.lines
                if line.outstanding and _key(line) in wanted
            ),
            key=lambda each: (each.location, each.sku, each.expected_at_ns, each.units),
        )

    @property
    def cells(self) -> dict[Key, Cell]:
        """A copy of every cell."""
        return {key: replace(cell) for key, cell in self._cells.items()}

    @property
    def holds(self) -> dict[bytes, Hold]:
        """A copy of every hold that is live or remembered."""
        return {hold_id: _copied(hold) for hold_id, hold in self._holds.items()}

    @property
    def incoming_records(self) -> dict[bytes, Incoming]:
        """A copy of every incoming record that is live or remembered."""
        return {each: _copied_incoming(record) for each, record in self._incoming.items()}

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
        for incoming_id, record in self._incoming.items():
            if record.state.is_live:
                total += sum(_line_hashes(incoming_id, _as_hold(record), rows))
        return total & _WORD

    # --- requests ---------------------------------------------------------------------------------

    def _apply_request(self, request: Request) -> Answered:
        lines = _lines(request)
        statuses: list[Status] = []
        available: list[int] = []
        granted: list[int] = []
        while len(statuses) < len(lines):
            first = len(statuses)
            order = _linked_lines(lines, first)
            answers = self._apply_lines(request, first, order)
            for status, key in answers:
                statuses.append(status)
                # As it is after the whole order.
                cell = None if key is None else self._cells.get(key)
                available.append(0 if cell is None else cell.available)
            granted += self._granted(line_id(request.op_id, first), order, answers)
        is_partial = any(line.flags & Flag.PARTIAL for line in lines)
        return Answered(bytes(statuses), available, granted if is_partial else [])

    def _granted(self, hold_id: bytes, order: list[Line], answers: list[Answer]) -> list[int]:
        """How much each line of an order that was just judged reserved."""
        if order[-1].kind != Kind.RESERVE or all(status != Status.OK for status, _ in answers):
            return [0] * len(order)
        held = iter(self._holds[hold_id].lines)  # one for each line that is reserved
        units = [
            next(held) if status == Status.OK and line.kind == Kind.RESERVE else None
            for line, (status, _) in zip(order, answers, strict=True)
        ]
        return [each.pending + each.committed if each else 0 for each in units]

    def _apply_lines(self, request: Request, first: int, order: list[Line]) -> list[Answer]:
        line = order[0]
        is_open = first + len(order) == request.lines and bool(order[-1].flags & Flag.LINKED)
        if line.kind == Kind.RESERVE:
            return self._reserve(line_id(request.op_id, first), order, is_open)
        if line.kind == Kind.RETURN and line.flags & Flag.LINKED:
            return self._exchange(line_id(request.op_id, first), order, is_open)
        if line.kind in PART_KINDS and line.flags & Flag.LINKED:
            return self._on_parts(order, is_open)
        return [self._apply_line(line_id(request.op_id, first), line)]

    def _apply_line(self, own_id: bytes, line: Line) -> Answer:
        """A line that stands alone; `own_id` is the line's."""
        if line.kind == Kind.EXPECT:
            return self._expect(own_id, line)
        if line.kind == Kind.RECEIVE and line.hold_id != NO_HOLD:
            return self._receive_expected(line)
        rule = self._rules().get(line.kind)
        return (Status.INVALID_KIND, None) if rule is None else rule(line)

    def _rules(self) -> dict[int, Callable[[Line], Answer]]:
        """What is to be done for each kind of line that needs nothing but the line."""
        return {
            **dict.fromkeys(PART_KINDS, self._on_hold),
            **dict.fromkeys(FACTS, self._fact),
            **dict.fromkeys(SETTINGS, self._setting),
            Kind.EXTEND: self._extend,
            Kind.MOVE: self._move_hold,
            Kind.ADD_LINE: self._add_line,
            Kind.CLAIM_RETURN: self._claim_return,
            Kind.CANCEL_INCOMING: self._cancel_incoming,
        }

    # --- reserve ----------------------------------------------------------------------------------

    def _reserve(self, hold_id: bytes, order: list[Line], is_open: bool) -> list[Answer]:
        """All lines of an order or none. `is_open`: the last line asks for one more, in vain.

        Of a refused order, the first line that cannot be served says why. The lines after it were
        not looked at.
        """
        answers: list[Answer] = []
        refusal, old = self._judge_holds(hold_id, order)
        demand = _given_back(self._holds[old]) if old else Counter()  # of lines on one cell, summed
        units: list[int] = []
        for number, line in enumerate(order):
            is_dangling = is_open and number == len(order) - 1
            status = _check_order_line(line, order[0], is_dangling)
            if status == Status.OK:
                status = self._check_reserve(line)
            key = line.key if status == Status.OK else None
            if status == Status.OK:
                status = refusal
            units.append(self._free_for(line, demand) if status == Status.OK else 0)
            if status == Status.OK and units[-1] < line.quantity and not line.flags & Flag.PARTIAL:
                status = Status.INSUFFICIENT_STOCK
            if status != Status.OK:
                refused = [(Status.LINKED_LINE_REFUSED, seen) for _, seen in answers]
                unseen = [(Status.LINKED_LINE_REFUSED, None)] * (len(order) - number - 1)
                return [*refused, (status, key), *unseen]
            demand[line.key] += units[-1]
            answers.append((status if units[-1] else Status.INSUFFICIENT_STOCK, key))
        if any(units):
            if old:
                self._give_up(old)
            self._open_hold(hold_id, order, units)
        return answers

    def _judge_holds(self, hold_id: bytes, order: list[Line]) -> tuple[Status, bytes | None]:
        """What the holds say to an order, and which of them it takes the place of."""
        if hold_id in self._holds or hold_id in self._incoming:
            return Status.HOLD_EXISTS, None
        old_id = pair_to_id(order[0].hold_hi, order[0].hold_lo)
        old = self._holds.get(old_id) if order[0].flags & Flag.SUPERSEDE else None
        if old is not None and _is_order(old):
            return Status.HOLD_NOT_PENDING, None
        if len(order) > limits.MAX_HOLD_LINES:
            return Status.TOO_MANY_LINES, None
        is_pending = old is not None and old.state == HoldState.PENDING
        return Status.OK, old_id if is_pending else None

    def _open_hold(self, hold_id: bytes, order: list[Line], units: list[int]) -> None:
        """A new hold of what each line got; its time to live is the first line's."""
        lines = [HoldLine(line.sku, line.location, pending=0) for line in order]
        hold = Hold(HoldState.COMMITTED, 0, [])
        for held, got in zip(lines, units, strict=True):
            if got and order[0].flags & Flag.COMMIT_NOW:
                held.committed = got
                self._cells[_key(held)].committed += got
            elif got:
                held.pending = got
                self._cells[_key(held)].reserved += got
            if got:
                hold.lines.append(held)
        if not order[0].flags & Flag.COMMIT_NOW:
            hold.state = HoldState.PENDING
            hold.deadline_ns = self._now_ns + order[0].value * limits.NS_PER_MS
            self._pending[hold_id] = None
        self._holds[hold_id] = hold

    def _free_for(self, line: Line, demand: Counter[Key]) -> int:
        """How much of its quantity a line finds when the lines before it have taken theirs."""
        cell = self._cells.get(line.key)
        if cell is None:
            return 0
        kept = self._places[line.location].buffers[line.channel] if line.channel else 0
        return max(0, min(line.quantity, cell.available - kept - demand[line.key]))

    def _check_reserve(self, line: Line) -> Status:
        """The checks of one line that need no other line and no stock."""
        if line.quantity <= 0:
            return Status.INVALID_QUANTITY
        if line.quantity > limits.MAX_QUANTITY:
            return Status.QUANTITY_TOO_LARGE
        is_timed = line.kind != Kind.RESERVE or not line.flags & Flag.COMMIT_NOW
        if is_timed and not limits.MIN_TTL_MS <= line.value <= limits.MAX_TTL_MS:
            return Status.INVALID_TTL
        status = self._check_place(line)
        return self._check_channel(line) if status == Status.OK else status

    def _check_channel(self, line: Line) -> Status:
        buffers = self._places[line.location].buffers
        if line.channel >= max(1, len(buffers)):
            return Status.UNKNOWN_CHANNEL
        if line.channel and buffers[line.channel] == NOT_SOLD:
            return Status.NOT_IN_CHANNEL
        return Status.OK

    def _check_place(self, line: Line) -> Status:
        place = self._places.get(line.location)
        if place is None:
            return Status.UNKNOWN_LOCATION
        if not 1 <= line.sku <= self._sku_limit:
            return Status.UNKNOWN_SKU
        return Status.WRONG_SHARD if _is_elsewhere(place, line.sku) else Status.OK

    # --- operations on a hold ---------------------------------------------------------------------

    def _on_hold(self, line: Line) -> Answer:
        """COMMIT to CANCEL, UNFULFIL: of the whole hold, or of its lines on one cell."""
        status = _check_hold_call(line)
        if status != Status.OK:
            return status, None
        hold_id, hold = self._called_hold(line)
        if hold is None:
            return Status.UNKNOWN_HOLD, None
        if line.flags & Flag.RE_RESERVE and hold.state == HoldState.EXPIRED:
            return self._reserve_again(hold_id, hold)
        status = _check_hold_state(line.kind, hold.state)
        if status != Status.OK:
            return status, _key(hold.lines[0])
        called = _called_lines(line, hold)
        status = self._judge_on_hold(line, hold, called)
        if status == Status.OK:
            if hold.state == HoldState.FULFILLED:
                self._revive(hold_id)
            self._move(line, hold, called)
            resolved = HoldState.RELEASED if line.kind == Kind.RELEASE else HoldState.CANCELLED
            self._settle(hold_id, resolved)
        return status, _key(called[0]) if called else None

    def _on_parts(self, lines: list[Line], is_open: bool) -> list[Answer]:
        """Calls on parts of one hold: all or none. `is_open`: as in `_reserve`."""
        answers: list[Answer] = []
        demand: Counter[Key] = Counter()  # of lines on one cell, summed
        for number, line in enumerate(lines):
            is_last = number == len(lines) - 1
            status, key = _check_part(line, lines[0], is_last, is_open and is_last), None
            if status == Status.OK:
                status, key = self._judge_part(line, demand)
                is_said_first = Status.OK < status < Status.TOO_MANY_LINES
                if len(lines) > limits.MAX_HOLD_LINES and not is_said_first:
                    status = Status.TOO_MANY_LINES
            if status != Status.OK:
                refused = [(Status.LINKED_LINE_REFUSED, seen) for _, seen in answers]
                unseen = [(Status.LINKED_LINE_REFUSED, None)] * (len(lines) - number - 1)
                return [*refused, (status, key), *unseen]
            answers.append((status, key))
        return [self._on_hold(line._replace(flags=line.flags & ~Flag.LINKED)) for line in lines]

    def _judge_part(self, line: Line, demand: Counter[Key]) -> Answer:
        """Judge one of several calls on parts of a hold, and add it to the demand."""
        _, hold = self._called_hold(line)
        if hold is None:
            return Status.UNKNOWN_HOLD, None
        status = _check_hold_state(line.kind, hold.state)
        if status != Status.OK:
            return status, _key(hold.lines[0])
        called = _called_lines(line, hold)
        key = _key(called[0]) if called else None
        if key:
            demand[key] += line.quantity
            line = line._replace(quantity=demand[key])
        return self._judge_on_hold(line, hold, called), key

    def _called_hold(self, line: Line) -> tuple[bytes, Hold | None]:
        """The hold that a line names; an overdue one, that the sweep did not come to, expires."""
        hold_id = pair_to_id(line.hold_hi, line.hold_lo)
        hold = self._holds.get(hold_id)
        if hold is not None and hold.state == HoldState.PENDING and self._is_overdue(hold):
            self._expire(hold_id)
        return hold_id, hold

    def _judge_on_hold(self, line: Line, hold: Hold, called: list[HoldLine]) -> Status:
        if sum(_usable(line.kind, each) for each in hold.lines) == 0:
            # A pending hold has something pending, so that cannot be what is missing.
            is_undone = line.kind == Kind.UNFULFIL
            return Status.HOLD_NOT_FULFILLED if is_undone else Status.HOLD_NOT_COMMITTED
        if not called:
            return Status.NOT_IN_HOLD
        total = sum(_usable(line.kind, each) for each in called)
        if line.quantity > total:
            return Status.EXCEEDS_HOLD
        if line.kind == Kind.FULFIL:
            lowest = min(self._cells[_key(each)].on_hand for each in called)
            if lowest - (line.quantity or total) < -limits.MAX_BALANCE:
                return Status.BALANCE_LIMIT
        if line.kind == Kind.UNFULFIL:
            cells = [self._cells[_key(each)] for each in called]
            highest = max(max(cell.on_hand, cell.committed) for cell in cells)
            if highest + (line.quantity or total) > limits.MAX_BALANCE:
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
        if kind == Kind.UNFULFIL:
            line.fulfilled -= units
            line.committed += units
            cell.on_hand += units
            cell.committed += units
            if units:
                self._note_movement(Movement(_key(line), units, self._now_ns))

    def _reserve_again(self, hold_id: bytes, hold: Hold) -> Answer:
        """Commit an expired hold if all that lapsed is still to be had."""
        lapsed = self._lapsed[hold_id]
        demand: Counter[Key] = Counter()
        for each, units in zip(hold.lines, lapsed, strict=True):
            demand[_key(each)] += units
            if units and self._cells[_key(each)].available < demand[_key(each)]:
                return Status.INSUFFICIENT_STOCK, _key(each)
        self._revive(hold_id)
        for each, units in zip(hold.lines, lapsed, strict=True):
            each.committed = units
            self._cells[_key(each)].committed += units
        return Status.OK, _key(hold.lines[0])

    def _extend(self, line: Line) -> Answer:
        """EXTEND: a later deadline; an earlier one changes nothing."""
        if line.flags:
            return Status.INVALID_FLAGS, None
        if not limits.MIN_TTL_MS <= line.value <= limits.MAX_TTL_MS:
            return Status.INVALID_TTL, None
        hold_id, hold = self._called_hold(line)
        if hold is None:
            return Status.UNKNOWN_HOLD, None
        status = _check_hold_state(line.kind, hold.state)
        deadline_ns = self._now_ns + line.value * limits.NS_PER_MS
        if status == Status.OK and deadline_ns > hold.deadline_ns:
            hold.deadline_ns = deadline_ns
            del self._pending[hold_id]  # in its new tick it is the last to come
            self._pending[hold_id] = None
        return status, _key(hold.lines[0])

    def _add_line(self, line: Line) -> Answer:
        """ADD_LINE: one more line for a pending or released hold, or the first one of a new hold."""
        status = Status.INVALID_FLAGS if line.flags else self._check_reserve(line)
        if status != Status.OK:
            return status, None
        hold_id, hold = self._called_hold(line)
        if hold is not None:
            if hold.state != HoldState.RELEASED:
                status = _check_hold_state(line.kind, hold.state)
            if status == Status.OK and len(hold.lines) >= limits.MAX_HOLD_LINES:
                status = Status.TOO_MANY_LINES
        elif hold_id in self._incoming:
            status = Status.UNKNOWN_HOLD
        if status == Status.OK and self._free_for(line, Counter()) < line.quantity:
            status = Status.INSUFFICIENT_STOCK
        if status == Status.OK and hold is None:
            self._open_hold(hold_id, [line], [line.quantity])
        elif status == Status.OK and hold is not None:
            if hold.state == HoldState.RELEASED:
                self._leave_resolved(hold_id)
                hold.state = HoldState.PENDING
                hold.deadline_ns = self._now_ns + line.value * limits.NS_PER_MS
                self._pending[hold_id] = None
            hold.lines.append(HoldLine(line.sku, line.location, pending=line.quantity))
            self._cells[line.key].reserved += line.quantity
        return status, line.key

    # --- other locations --------------------------------------------------------------------------

    def _move_hold(self, line: Line) -> Answer:
        """MOVE: what a hold has pending is held at another location."""
        status = _check_hold_call(line)
        if status == Status.OK:
            status = self._check_destination(line)
        if status != Status.OK:
            return status, None
        _, hold = self._called_hold(line)
        if hold is None:
            return Status.UNKNOWN_HOLD, None
        status = _check_hold_state(line.kind, hold.state)
        if status != Status.OK:
            return status, _key(hold.lines[0])
        called = [
            each
            for each in hold.lines
            if line.sku in (0, each.sku) and line.value in (0, each.location)
        ]
        if not called:
            return Status.NOT_IN_HOLD, None
        moving = [each for each in called if each.pending and each.location != line.location]
        parts = _parts(moving, line.quantity or sum(each.pending for each in moving))
        status, key = self._judge_move(line, hold, called, parts)
        if status == Status.OK:
            for each, units in parts:
                self._move_part(hold, each, units, line.location)
        return status, key

    def _judge_move(
        self, line: Line, hold: Hold, called: list[HoldLine], parts: list[tuple[HoldLine, int]]
    ) -> Answer:
        """Whether parts of a hold's lines can be at another location."""
        key = called[0].sku, line.location
        place = self._places[line.location]
        arriving = [each.sku for each in called if each.pending and each.location != line.location]
        if any(_is_elsewhere(place, sku) for sku in arriving):
            return Status.WRONG_SHARD, key
        if not any(each.pending for each in called):
            return Status.HOLD_NOT_PENDING, key
        if line.quantity > sum(units for _, units in parts):
            return Status.EXCEEDS_HOLD, key
        if len(hold.lines) + sum(_must_split(*part) for part in parts) > limits.MAX_HOLD_LINES:
            return Status.TOO_MANY_LINES, key
        short = self._short_of(parts, line.location)
        return (Status.OK, key) if short is None else (Status.INSUFFICIENT_STOCK, short)

    def _check_destination(self, line: Line) -> Status:
        """As of any cell; but SKU 0 is every one."""
        if line.sku:
            return self._check_place(line)
        place = self._places.get(line.location)
        if place is None:
            return Status.UNKNOWN_LOCATION
        return Status.OK if place.owned else Status.WRONG_SHARD

    def _short_of(self, parts: list[tuple[HoldLine, int]], location: int) -> Key | None:
        """The first cell there that has too little; demand on one cell is summed."""
        demand: Counter[Key] = Counter()
        for each, units in parts:
            key = each.sku, location
            demand[key] += units
            cell = self._cells.get(key)
            if cell is None or cell.available < demand[key]:
                return key
        return None

    def _move_part(self, hold: Hold, line: HoldLine, units: int, location: int) -> None:
        self._cells[_key(line)].reserved -= units
        self._cells[line.sku, location].reserved += units
        if _must_split(line, units):
            line.pending -= units
            hold.lines.append(HoldLine(line.sku, location, pending=units))
        else:
            line.location = location

    # --- the end of holds -------------------------------------------------------------------------

    def _sweep(self) -> int:
        """Expire what is overdue, so many in a block.

        By ticks; in one tick the hold comes first whose deadline was set first.
        """
        overdue = [
            (self._holds[hold_id].deadline_ns >> limits.EXPIRY_TICK_BITS, hold_id)
            for hold_id in self._pending
            if self._is_overdue(self._holds[hold_id])
        ]
        overdue.sort(key=lambda each: each[0])  # keeps the order within a tick
        due = overdue[: self._expiries_per_block]
        for _, hold_id in due:
            self._expire(hold_id)
        return len(due)

    def _is_overdue(self, hold: Hold) -> bool:
        return hold.deadline_ns < self._now_ns

    def _give_up(self, hold_id: bytes) -> None:
        """Release a pending hold; one that is overdue expires."""
        if self._is_overdue(self._holds[hold_id]):
            self._expire(hold_id)
        else:
            self._lapse(hold_id, HoldState.RELEASED)

    def _expire(self, hold_id: bytes) -> None:
        """A hold's deadline has passed."""
        self._lapsed[hold_id] = [line.pending for line in self._holds[hold_id].lines]
        self._lapse(hold_id, HoldState.EXPIRED)
        self._expired += 1

    def _lapse(self, hold_id: bytes, resolved: HoldState) -> None:
        """Everything that is pending in a hold goes back to available."""
        for line in self._holds[hold_id].lines:
            self._move_units(Kind.RELEASE, line, line.pending)
        self._settle(hold_id, resolved)

    def _settle(self, hold_id: bytes, resolved: HoldState) -> None:
        """After a change of a hold: its new state.

        `resolved` is the state of a hold of which nothing is left and nothing was handed over.
        """
        hold = self._holds[hold_id]
        if any(line.pending for line in hold.lines):
            return
        self._pending.pop(hold_id, None)
        if any(line.committed for line in hold.lines):
            hold.state = HoldState.COMMITTED
            return
        was_fulfilled = any(line.fulfilled for line in hold.lines)
        hold.state = HoldState.FULFILLED if was_fulfilled else resolved
        self._remember_resolved(hold_id)

    def _remember_resolved(self, hold_id: bytes) -> None:
        """Keep a hold or record for late calls; the oldest one goes when there are too many.

        What goods have moved by is kept apart from what came to nothing.
        """
        entry = self._holds.get(hold_id) or self._incoming[hold_id]
        resolved = self._resolved[entry.state in _MOVED]
        if len(resolved) == self._resolved_remembered:
            oldest = resolved.popleft()
            if oldest is not None:
                self._holds.pop(oldest, None)
                self._incoming.pop(oldest, None)
                self._lapsed.pop(oldest, None)
                self._sales.discard(oldest)
        resolved.append(hold_id)

    def _revive(self, hold_id: bytes) -> None:
        """A resolved hold is a committed one again."""
        self._leave_resolved(hold_id)
        self._holds[hold_id].state = HoldState.COMMITTED

    def _leave_resolved(self, hold_id: bytes) -> None:
        """A resolved hold is about to live again; its place among the remembered stays, empty."""
        resolved = self._resolved[self._holds[hold_id].state in _MOVED]
        resolved[resolved.index(hold_id)] = None

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
            self._sales.add(line.hold_id)
            self._remember_resolved(line.hold_id)
        if line.kind == Kind.RETURN and line.hold_id != NO_HOLD:
            self._take_back(line)

    def _judge_named(self, line: Line) -> Status:
        """A sale with an id is recorded once; a return may name what handed the goods over."""
        is_taken = line.hold_id in self._holds or line.hold_id in self._incoming
        if line.kind == Kind.SALE and line.hold_id != NO_HOLD and is_taken:
            is_sale = line.hold_id in self._sales
            return Status.ALREADY_RECORDED if is_sale else Status.HOLD_EXISTS
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
        """What comes back elsewhere is written down here; below zero, it does not after all."""
        status = Status.INVALID_FLAGS if line.flags else _check_quantity(line)
        if status == Status.OK:
            status = self._judge_return(line)
        if status == Status.OK:
            self._take_back(line)
        return status, None  # no stock moves

    def _judge_return(self, line: Line) -> Status:
        """Whether so much of the SKU was handed over, at any location, and is not back yet.

        Below zero: whether so much of it is back.
        """
        hold = self._holds.get(line.hold_id)
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

    def _take_back(self, line: Line) -> None:
        left = line.quantity
        for each in self._holds[line.hold_id].lines:
            if each.sku == line.sku:
                units = max(min(left, each.fulfilled - each.returned), -each.returned)
                each.returned += units
                left -= units

    # --- exchanges ----------------------------------------------------------------------------

    def _exchange(self, hold_id: bytes, lines: list[Line], is_open: bool) -> list[Answer]:
        """Returns and one order, if any, that may take what they restock: all or nothing.

        It is tried; when anything is refused, everything is as it was before.
        """
        before = deepcopy(vars(self))
        returns = list(takewhile(lambda line: line.kind == Kind.RETURN, lines))
        order = lines[len(returns) :]
        answers: list[Answer] = []
        for line in returns:
            is_dangling = is_open and line is lines[-1]
            status, key = self._return_in_exchange(line, len(lines), is_dangling)
            answers.append((status, key))
            if status != Status.OK:
                break
        is_brought = answers[-1][0] == Status.OK
        reserved = self._reserve(hold_id, order, is_open) if order and is_brought else []
        statuses = [status for status, _ in answers + reserved]
        is_held = not order or any(status == Status.OK for status, _ in reserved)
        if is_brought and is_held:
            return answers + reserved
        vars(self).update(before)
        refused = Status.LINKED_LINE_REFUSED
        answers = [(refused if status == Status.OK else status, key) for status, key in answers]
        unseen = [(refused, None)] * (len(lines) - len(statuses))
        return [*answers, *reserved, *unseen]

    def _return_in_exchange(self, line: Line, lines: int, is_dangling: bool) -> Answer:
        if is_dangling:
            return Status.INVALID_FLAGS, None
        status, key = self._fact(line._replace(flags=line.flags & ~Flag.LINKED))
        is_said_first = Status.OK < status < Status.TOO_MANY_LINES
        if lines > limits.MAX_HOLD_LINES and not is_said_first:
            status = Status.TOO_MANY_LINES
        return status, key

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

    # --- incoming ---------------------------------------------------------------------------------

    def _expect(self, own_id: bytes, line: Line) -> Answer:
        """EXPECT: units of a cell are on their way, as a line of a record that may be new."""
        status = self._check_expect(line)
        if status != Status.OK:
            return status, None
        incoming_id = own_id if line.hold_id == NO_HOLD else line.hold_id
        record = self._incoming.get(incoming_id)
        status = self._judge_expect(incoming_id, record, line)
        if status != Status.OK:
            return status, line.key
        expected_at_ns = line.value * limits.NS_PER_MS
        if record is None:
            record = Incoming(HoldState.INCOMING, expected_at_ns, [])
            self._incoming[incoming_id] = record
        each = _incoming_line(record, line.key)
        if each is None:
            each = IncomingLine(*line.key, expected=0, outstanding=0)
            record.lines.append(each)
        each.expected += line.quantity
        each.outstanding += line.quantity
        record.expected_at_ns = expected_at_ns or record.expected_at_ns  # the newest news
        self._cells.setdefault(line.key, Cell()).incoming += line.quantity
        return status, line.key

    def _check_expect(self, line: Line) -> Status:
        """The checks that need no record."""
        if line.flags:
            return Status.INVALID_FLAGS
        if line.quantity <= 0:
            return Status.INVALID_QUANTITY
        if line.quantity > limits.MAX_QUANTITY:
            return Status.QUANTITY_TOO_LARGE
        if not 0 <= line.value <= limits.MAX_EXPECTED_AT_MS:
            return Status.INVALID_MOMENT
        return self._check_place(line)

    def _judge_expect(self, incoming_id: bytes, record: Incoming | None, line: Line) -> Status:
        if incoming_id in self._holds:
            return Status.HOLD_EXISTS
        expected = 0
        if record is not None:
            if record.state != HoldState.INCOMING:
                return Status.HOLD_NOT_PENDING
            each = _incoming_line(record, line.key)
            if each is None and len(record.lines) == limits.MAX_HOLD_LINES:
                return Status.TOO_MANY_LINES
            expected = each.expected if each else 0
        incoming = self._cells.get(line.key, Cell()).incoming
        if (
            expected + line.quantity > limits.MAX_QUANTITY
            or incoming + line.quantity > limits.MAX_BALANCE
        ):
            return Status.BALANCE_LIMIT
        return Status.OK

    def _receive_expected(self, line: Line) -> Answer:
        """RECEIVE against a record: a fact, so what nobody expected is recorded too."""
        status = self._check_fact(line)
        if status != Status.OK:
            return status, None
        incoming_id = line.hold_id
        record = self._incoming.get(incoming_id)
        if record is None:
            return Status.UNKNOWN_HOLD, line.key
        each = _incoming_line(record, line.key)
        if each is None and len(record.lines) == limits.MAX_HOLD_LINES:
            return Status.TOO_MANY_LINES, line.key
        if (each.received if each else 0) + line.quantity > limits.MAX_QUANTITY:
            return Status.BALANCE_LIMIT, line.key
        status, key = self._fact(line)
        if status != Status.OK:
            return status, key
        if each is None:
            each = IncomingLine(*line.key, expected=0, outstanding=0)
            record.lines.append(each)
        self._no_longer_incoming(each, min(line.quantity, each.outstanding))
        each.received += line.quantity
        self._settle_incoming(incoming_id)
        return status, key

    def _cancel_incoming(self, line: Line) -> Answer:
        """CANCEL_INCOMING: the whole record, or a part of its line on one cell."""
        status = _check_hold_call(line)
        if status != Status.OK:
            return status, None
        incoming_id = line.hold_id
        record = self._incoming.get(incoming_id)
        if record is None:
            return Status.UNKNOWN_HOLD, None
        if record.state != HoldState.INCOMING:
            return Status.HOLD_NOT_PENDING, _key(record.lines[0])
        called = record.lines
        if line.quantity and (line.key != _NO_CELL or len(called) > 1):
            called = [each for each in called if _key(each) == line.key]
        if not called:
            return Status.NOT_IN_HOLD, None
        if line.quantity > called[0].outstanding:
            return Status.EXCEEDS_HOLD, _key(called[0])
        for each in called:
            self._no_longer_incoming(each, line.quantity or each.outstanding)
        self._settle_incoming(incoming_id)
        return status, _key(called[0])

    def _no_longer_incoming(self, line: IncomingLine, units: int) -> None:
        line.outstanding -= units
        self._cells[_key(line)].incoming -= units

    def _settle_incoming(self, incoming_id: bytes) -> None:
        """After a change of a record: its new state."""
        record = self._incoming[incoming_id]
        if any(line.outstanding for line in record.lines):
            return
        was_live = record.state == HoldState.INCOMING
        came = any(line.received for line in record.lines)
        record.state = HoldState.RECEIVED if came else HoldState.DROPPED
        if was_live:
            self._remember_resolved(incoming_id)

    # --- shortages --------------------------------------------------------------------------------

    def _name_endangered(
        self, requests: Sequence[Request], answers: Sequence[Answered]
    ) -> Iterable[Endangered]:
        """What the facts of a block endanger, now that all its lines are applied."""
        lines = [line for request in requests for line in _lines(request)]
        statuses = [status for answer in answers for status in answer.status]
        left = limits.MAX_ENDANGERED_OF_BLOCK
        named: dict[Key, tuple[EndangeredHold, ...]] = {}
        for index, (line, status) in enumerate(zip(lines, statuses, strict=True)):
            if status != Status.OK or not _may_lower(line):
                continue
            units = -self._cells[line.key].available
            if units > 0:
                if line.key not in named:
                    named[line.key] = self._endangered_on(line.key, units)[:left]
                    left -= len(named[line.key])
                yield Endangered(index, *line.key, units, named[line.key])

    def _endangered_on(self, key: Key, units: int) -> tuple[EndangeredHold, ...]:
        """The lines of live holds on a cell that a shortage of `units` endangers."""
        found = [
            EndangeredHold(hold_id, line.pending, line.committed)
            for hold_id, hold in reversed(self._holds.items())
            for line in hold.lines
            if _key(line) == key and line.pending + line.committed
        ]
        found.sort(key=lambda each: each.pending == 0)  # keeps the newest first
        chosen = []
        for each in found[: limits.MAX_ENDANGERED]:
            if units > 0:
                chosen.append(each)
                units -= each.pending + each.committed
        return tuple(chosen)


def _may_lower(line: Line) -> bool:
    """Whether a fact may leave less available than before."""
    sets_aside = line.kind == Kind.RETURN and line.value != Disposition.RESTOCK
    return line.kind in _LOWERING or sets_aside


def _incoming_line(record: Incoming, key: Key) -> IncomingLine | None:
    """The record's line on a cell; there is one at most."""
    return next((each for each in record.lines if _key(each) == key), None)


def _copied_incoming(record: Incoming) -> Incoming:
    return replace(record, lines=[replace(line) for line in record.lines])


def _lines(request: Request) -> list[Line]:
    """A request's lines; a column that is missing is all zeros."""
    zeros = [0] * request.lines
    given = request.columns
    columns = [given[name].tolist() if name in given else zeros for name in COLUMNS]
    return [Line(*values) for values in zip(*columns, strict=True)]


def _linked_lines(lines: list[Line], first: int) -> list[Line]:
    """The lines that stand or fall together with line `first`."""
    end = first + 1
    if lines[first].kind in (Kind.RESERVE, Kind.RETURN, *PART_KINDS):
        while end < len(lines) and lines[end - 1].flags & Flag.LINKED:
            end += 1
    return lines[first:end]


def _check_order_line(line: Line, first: Line, is_dangling: bool) -> Status:
    """The checks of a line's kind and flags against those of the order's first line."""
    if line.kind not in set(Kind):
        return Status.INVALID_KIND
    if line.kind != Kind.RESERVE or line.flags & ~RESERVE_FLAGS or is_dangling:
        return Status.INVALID_FLAGS
    if (line.flags ^ first.flags) & Flag.COMMIT_NOW:
        return Status.INVALID_FLAGS
    if line.flags & Flag.SUPERSEDE and line is not first:
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
        demand[_key(line)] -= line.pending
    return demand


def _check_hold_call(line: Line) -> Status:
    """The checks of an operation on a hold that do not need the hold."""
    allowed = 0
    if line.kind == Kind.COMMIT:
        allowed = Flag.RELEASE_REST if line.quantity else Flag.RE_RESERVE
    if line.flags not in (0, allowed):
        return Status.INVALID_FLAGS
    if line.quantity < 0:
        return Status.INVALID_QUANTITY
    if line.quantity > limits.MAX_QUANTITY:
        return Status.QUANTITY_TOO_LARGE
    return Status.OK


def _check_part(line: Line, first: Line, is_last: bool, is_dangling: bool) -> Status:
    """The checks of a call on a part of a hold that is linked to others, `first` of them."""
    if line.kind not in set(Kind):
        return Status.INVALID_KIND
    if (line.kind, line.hold_id) != (first.kind, first.hold_id) or is_dangling:
        return Status.INVALID_FLAGS
    allowed = Flag.LINKED | Flag.RELEASE_REST if is_last else Flag.LINKED
    if line.flags & ~allowed:
        return Status.INVALID_FLAGS
    status = _check_hold_call(line._replace(flags=line.flags & ~Flag.LINKED))
    return Status.INVALID_QUANTITY if status == Status.OK and line.quantity == 0 else status


def _check_hold_state(kind: int, state: HoldState) -> Status:
    """Whether `kind` can apply to a hold in this state at all."""
    if state == HoldState.EXPIRED:
        return Status.HOLD_EXPIRED
    if state == HoldState.RELEASED:
        return Status.HOLD_RELEASED
    if kind in (Kind.FULFIL, Kind.CANCEL):
        return Status.OK if state <= HoldState.COMMITTED else Status.HOLD_NOT_COMMITTED
    if kind == Kind.UNFULFIL:
        return Status.OK if state <= HoldState.FULFILLED else Status.HOLD_NOT_FULFILLED
    return Status.OK if state == HoldState.PENDING else Status.HOLD_NOT_PENDING


def _called_lines(line: Line, hold: Hold) -> list[HoldLine]:
    """The hold's lines that an operation is about.

    A quantity needs the name of its cell, unless the hold has but one line.
    """
    if line.quantity == 0 or (line.key == _NO_CELL and len(hold.lines) == 1):
        return hold.lines
    return [each for each in hold.lines if _key(each) == line.key]


def _usable(kind: int, line: HoldLine) -> int:
    """The units of a hold's line that `kind` may move."""
    if kind == Kind.UNFULFIL:
        return line.fulfilled - line.returned
    return line.pending if kind in (Kind.COMMIT, Kind.RELEASE) else line.committed


def _parts(lines: list[HoldLine], units: int) -> list[tuple[HoldLine, int]]:
    """So many units of what the lines have pending, from the first one on."""
    parts = []
    for line in lines:
        if units:
            parts.append((line, min(units, line.pending)))
            units -= parts[-1][1]
    return parts


def _must_split(line: HoldLine, units: int) -> bool:
    """Whether something of a line stays where it is when `units` of it move."""
    return line.pending > units or line.committed + line.fulfilled > 0


def _is_elsewhere(place: Place, sku: int) -> bool:
    """Whether a cell of a location belongs to another shard."""
    is_in_part = place.split <= 1 or (_mix(sku) >> 33) % place.split == place.part
    return not place.owned or not is_in_part


def _copied(hold: Hold) -> Hold:
    return replace(hold, lines=[replace(line) for line in hold.lines])


def _key(line: HoldLine | IncomingLine) -> Key:
    return line.sku, line.location


def _check_quantity(line: Line) -> Status:
    """Whether the quantity of a fact, a claim or a setting is one."""
    is_signed = line.kind in (Kind.ADJUST, Kind.CLAIM_RETURN)
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


def _as_hold(record: Incoming) -> Hold:
    """The columns of holds that a record is kept in."""
    lines = [
        HoldLine(each.sku, each.location, each.outstanding, each.expected, each.received)
        for each in record.lines
    ]
    return Hold(record.state, record.expected_at_ns, lines)


def _line_hashes(hold_id: bytes, hold: Hold, rows: dict[Key, int]) -> Iterable[int]:
    for number, line in enumerate(hold.lines):
        # The hold's state stands in its first line only; each line of a record says what it is.
        is_hold = number > 0 and hold.state != HoldState.INCOMING
        state = HoldState.PENDING if is_hold else hold.state
        units = (line.pending, line.committed, line.fulfilled, line.returned)
        stands = state | number << 8
        words = (*id_to_pair(hold_id), rows[_key(line)], hold.deadline_ns, *units, stands)
        yield _mix(_weighted(words) ^ _MULTIPLIERS[9])
