"""What the reference machine keeps, and for how long. It knows no rule.

Nothing is kept here that can be counted from the cells and the holds.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from engine.block import Place
from engine.reference.lines import Key
from engine.views import Cell, Hold, HoldLine, HoldState, Incoming, IncomingLine


class Movement(NamedTuple):
    """A change of a cell's on_hand."""

    key: Key
    units: int
    moment_ns: int


class Trace(NamedTuple):
    """What a line did to a cell that it does not name; see `engine.traces`."""

    line: int  # among all of the block; SWEEP: before the first one
    key: Key
    units: int


SWEEP: Final = -1


@dataclass
class Book:
    """The state of one shard."""

    resolved_remembered: int
    movements_remembered: int
    expiries_per_block: int
    now_ns: int = 0
    sku_limit: int = 0
    expired: int = 0  # holds, since the beginning
    places: dict[int, Place] = field(default_factory=dict)
    cells: dict[Key, Cell] = field(default_factory=dict)  # in the order they were made
    # Live or remembered, in the order they were made.
    holds: dict[bytes, Hold] = field(default_factory=dict)
    # Those of them that are pending; the last one got its deadline last.
    pending: dict[bytes, None] = field(default_factory=dict)
    # What each line of a hold had when it expired.
    lapsed: dict[bytes, list[int]] = field(default_factory=dict)
    # Holds of which something expired, and nothing has been pending since.
    short: set[bytes] = field(default_factory=set)
    # The holds that sales with an id are remembered as, and how much was sold.
    sales: dict[bytes, int] = field(default_factory=dict)
    # Live or remembered; no id is also a hold's.
    incoming: dict[bytes, Incoming] = field(default_factory=dict)
    # The remembered ones of both, oldest first. None stands where one was that is live again.
    moved: deque[bytes | None] = field(default_factory=deque)  # goods have moved by them
    came_to_nothing: deque[bytes | None] = field(default_factory=deque)
    counted_at_ns: dict[Key, int] = field(default_factory=dict)  # of each cell's newest count
    # The remembered ones, in order of arrival.
    movements: deque[Movement] = field(default_factory=deque)
    forgotten_ns: int = 0  # the latest moment of those that are remembered no more
    line: int = SWEEP  # the line that is applied now, among all of its block
    traces: list[Trace] = field(default_factory=list)  # of the newest block

    def trace(self, key: Key, units: int) -> None:
        """Note what the line that is applied now does to a cell that it does not name."""
        if units:
            self.traces.append(Trace(self.line, key, units))

    def remember_resolved(self, any_id: bytes) -> None:
        """Keep a hold or record for late calls; the oldest one goes when there are too many."""
        entry = self.holds.get(any_id) or self.incoming[any_id]
        resolved = self._resolved(entry.state)
        if len(resolved) == self.resolved_remembered:
            oldest = resolved.popleft()
            if oldest is not None:
                self.holds.pop(oldest, None)
                self.incoming.pop(oldest, None)
                self.lapsed.pop(oldest, None)
                self.short.discard(oldest)
                self.sales.pop(oldest, None)
        resolved.append(any_id)

    def leave_resolved(self, hold_id: bytes) -> None:
        """A resolved hold is about to live again; its place among the remembered stays, empty."""
        resolved = self._resolved(self.holds[hold_id].state)
        resolved[resolved.index(hold_id)] = None

    def _resolved(self, state: HoldState) -> deque[bytes | None]:
        has_moved = state in {HoldState.FULFILLED, HoldState.RECEIVED}
        return self.moved if has_moved else self.came_to_nothing

    def note_movement(self, movement: Movement) -> None:
        """Remember a change of on_hand; the oldest one goes when there are too many."""
        if len(self.movements) == self.movements_remembered:
            forgotten = self.movements.popleft()
            self.forgotten_ns = max(self.forgotten_ns, forgotten.moment_ns)
        self.movements.append(movement)

    def moment_ns(self, occurred_at_ns: int) -> int:
        """When something happened: 0 is now, and what clocks differ by is not the future."""
        return min(occurred_at_ns or self.now_ns, self.now_ns)

    def is_seen(self, key: Key, moment_ns: int) -> bool:
        """Whether the newest count of a cell has seen what happened then."""
        return moment_ns < self.counted_at_ns.get(key, 0)

    def moved_since(self, key: Key, moment_ns: int) -> int:
        """What the movements of a cell since a moment, those of that very moment too, add up to."""
        return sum(
            each.units for each in self.movements if each.key == key and each.moment_ns >= moment_ns
        )


def key_of(line: HoldLine | IncomingLine) -> Key:
    """The cell of a line of a hold or of an incoming record."""
    return line.sku, line.location
