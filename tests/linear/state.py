"""What a checker knows of a shard at one point of an order: cells, holds, records, and the time.

A state is a mapping that nothing changes; a `Draft` is one with changes that may be made or not. Of
time only this is known: when an answer tells its block's time, that; otherwise between which two it
lies. A rule that needs more asks its draft, which tries both.
"""

from bisect import insort
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from engine.views import HoldState
from tests.linear.history import Key

NS_PER_MS: Final = 1_000_000
FOREVER: Final = 1 << 63

# What else the state has by name, beside cells (by key), and holds and records (by id).
CLOCK: Final = "clock"  # the shard's time is this or later
PENDING: Final = "pending"  # (deadline, id) of each pending hold, in order
COUNTED: Final = "counted"  # with a key: the moment of the cell's newest count
MOVED: Final = "moved"  # with a key: the newest movement of the cell

State: TypeAlias = Mapping[Any, Any]
Changes: TypeAlias = dict[Any, Any]


class Cell(NamedTuple):
    """The counters of one cell, in base units, and its price."""

    on_hand: int = 0
    reserved: int = 0
    committed: int = 0
    damaged: int = 0
    quality_control: int = 0
    safety_stock: int = 0
    incoming: int = 0
    price_minor: int = 0
    price_version: int = 0

    @property
    def available(self) -> int:
        kept = self.damaged + self.quality_control + self.safety_stock
        return self.on_hand - self.reserved - self.committed - kept


class HoldLine(NamedTuple):
    """Units of one cell, by what became of them."""

    cell: Key
    pending: int
    committed: int = 0
    fulfilled: int = 0
    returned: int = 0  # of what was fulfilled
    lapsed: int = 0  # what was pending when the hold expired


class Hold(NamedTuple):
    """A hold, or a sale that has an id. Its deadline is exact unless nobody was told of its time."""

    state: HoldState
    deadline_ns: int  # not before this
    latest_ns: int  # nor after this
    lines: tuple[HoldLine, ...]
    sold: int = 0  # of a sale with an id, whatever became of it since; of another hold 0


class RecordLine(NamedTuple):
    """Units of one cell that are on their way, or have come."""

    cell: Key
    expected: int
    outstanding: int
    received: int = 0


class Record(NamedTuple):
    """Goods that are on their way, or were."""

    state: HoldState
    expected_at_ms: int
    lines: tuple[RecordLine, ...]


class Moment(NamedTuple):
    """When something happens, as far as that is known: the same twice if it is told."""

    ns: int
    latest_ns: int

    @property
    def is_told(self) -> bool:
        return self.ns == self.latest_ns


class Movement:
    """A change of a cell's on_hand, and those before it."""

    __slots__ = ("_hash", "at", "before", "latest_ns", "units")

    def __init__(self, at: Moment, units: int, latest_ns: int, before: "Movement | None") -> None:
        """`at`: when goods moved; `latest_ns`: until when that was told, at the latest."""
        self.at, self.units, self.latest_ns, self.before = at, units, latest_ns, before
        # What has moved is the same in whatever order: a sum tells states apart that differ.
        self._hash = hash(((at, units), 0)) + (hash(before) if before else 0)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Movement) and self._hash == other._hash


NO_CELL: Final = Cell()


class Draft:
    """A state with changes that are not made yet, on one of the ways that it may have gone."""

    def __init__(self, state: State, way: tuple[int, ...] = ()) -> None:
        self._state = state
        self._way = way
        self._gone: list[int] = []
        self.changes: Changes = {}
        self.other_ways: list[tuple[int, ...]] = []

    def one_of(self, options: int) -> int:
        """Which of some things is the case, when nothing tells; the others are ways to try."""
        at = len(self._gone)
        if at == len(self._way):
            self.other_ways += [(*self._way, each) for each in range(1, options)]
            self._way = (*self._way, 0)
        self._gone.append(self._way[at])
        return self._way[at]

    def is_before(self, one: Moment, other: Moment) -> bool:
        if one.latest_ns < other.ns:
            return True
        return one.ns < other.latest_ns and self.one_of(2) == 1

    def get(self, name: Any, default: Any = None) -> Any:
        changes = self.changes
        return changes[name] if name in changes else self._state.get(name, default)

    def put(self, name: Any, value: Any) -> None:
        self.changes[name] = value

    # --- cells ------------------------------------------------------------------------------------

    def cell(self, key: Key) -> Cell:
        found: Cell = self.get(key, NO_CELL)
        return found

    def available(self, key: Key) -> int:
        return self.cell(key).available

    def add(self, key: Key, **by: int) -> None:
        cell = self.cell(key)
        self.put(key, cell._replace(**{name: getattr(cell, name) + n for name, n in by.items()}))

    def move(self, key: Key, units: int, at: Moment, now: Moment) -> None:
        """Goods came or went."""
        self.add(key, on_hand=units)
        until_ns = now.latest_ns if now.is_told else FOREVER
        self.put((MOVED, key), Movement(at, units, until_ns, self.get((MOVED, key))))

    def moved_since(self, key: Key, at: Moment) -> int:
        total, each = 0, self.get((MOVED, key))
        while each is not None and each.latest_ns >= at.ns:
            if not self.is_before(each.at, at):  # at the very moment is after it
                total += each.units
            each = each.before
        return total

    # --- holds and records ------------------------------------------------------------------------

    def hold(self, hold_id: bytes) -> Hold | None:
        found = self.get(hold_id)
        return found if isinstance(found, Hold) else None

    def record(self, record_id: bytes) -> Record | None:
        found = self.get(record_id)
        return found if isinstance(found, Record) else None

    def put_hold(self, hold_id: bytes, hold: Hold) -> None:
        """Keep a hold, and the list of the pending ones with it."""
        was = self.hold(hold_id)
        is_pending = hold.state == HoldState.PENDING
        if is_pending or (was is not None and was.state == HoldState.PENDING):
            others = [each for each in self.get(PENDING, ()) if each[1] != hold_id]
            if is_pending:
                insort(others, (hold.deadline_ns, hold_id))
            self.put(PENDING, tuple(others))
        self.put(hold_id, hold)
