"""Independent books of a replay: what every cell must be, by what the engine acknowledged.

Plain numpy over the plan's own lines; shares no code with the engine but the names of kinds and
statuses, so that the two cannot be wrong together. It must not know how lines are sent.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from adapters.journey.lines import Lines
from engine.limits import NS_PER_MS
from engine.operations import HOLD_KINDS, Disposition, Kind
from engine.status import Status

COUNTERS: Final = (
    "on_hand",
    "reserved",
    "committed",
    "damaged",
    "quality_control",
    "safety_stock",  # no replay changes it, so it must stay what it was; incoming too
    "incoming",
)
COLUMNS: Final = (*COUNTERS, "price_minor", "price_version")
FACTS: Final = (Kind.SALE, Kind.RETURN, Kind.RECEIVE, Kind.ADJUST)

Columns = dict[str, NDArray[np.int64]]


class OrderState(IntEnum):
    """Where an order stands."""

    PLANNED = 0  # nothing was acknowledged yet
    REFUSED = 1
    RESERVED = 2
    COMMITTED = 3
    FULFILLED = 4
    CANCELLED = 5
    RELEASED = 6
    EXPIRED = 7


# What a step needs, and what it leads to.
STEPS: Final[dict[Kind, tuple[OrderState, OrderState]]] = {
    Kind.COMMIT: (OrderState.RESERVED, OrderState.COMMITTED),
    Kind.RELEASE: (OrderState.RESERVED, OrderState.RELEASED),
    Kind.FULFIL: (OrderState.COMMITTED, OrderState.FULFILLED),
    Kind.CANCEL: (OrderState.COMMITTED, OrderState.CANCELLED),
}


def cell_key(location: NDArray[np.uint32], sku: NDArray[np.uint32]) -> NDArray[np.int64]:
    """One number for each (location id, SKU id), shape (n,)."""
    return location.astype(np.int64) << 32 | sku.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Cells:
    """m cells as columns of shape (m,): `key` (see `cell_key`) and those named in `COLUMNS`."""

    key: NDArray[np.int64]
    columns: Columns

    @classmethod
    def none(cls) -> "Cells":
        """No cells."""
        nothing = np.empty(0, np.int64)
        return cls(nothing, dict.fromkeys(COLUMNS, nothing))

    def at(self, key: NDArray[np.int64]) -> Columns:
        """The columns of the cells `key` (n,), zeros where there is no such cell."""
        if not len(self.key):
            return {name: np.zeros(len(key), np.int64) for name in COLUMNS}
        order = np.argsort(self.key)
        place = np.minimum(np.searchsorted(self.key, key, sorter=order), len(order) - 1)
        row = order[place]
        found = self.key[row] == key
        return {name: np.where(found, self.columns[name][row], 0) for name in COLUMNS}


@dataclass(frozen=True, slots=True)
class Difference:
    """One column of one cell that is not what the books say."""

    location: int
    sku: int
    column: str
    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class Unexpected:
    """A line that was answered what no correct engine could have answered."""

    place: int  # in the plan
    kind: Kind
    status: Status
    why: str


@dataclass(slots=True)
class Ledger:
    """The books of one replay.

    `lines`: the plan's; `key` (n,): the cell of each line. `short`: keys of the cells that open
    with too little: only these may refuse for want of stock. `baseline`: what the engine held
    before; lines are counted on top of it.
    """

    lines: Lines
    key: NDArray[np.int64]
    orders: int
    short: NDArray[np.int64]
    baseline: Cells = field(default_factory=Cells.none)

    cells: NDArray[np.int64] = field(init=False)  # (m,): keys of all cells, ascending
    columns: Columns = field(init=False)
    state: NDArray[np.uint8] = field(init=False)  # (orders,): OrderState
    deadline_ns: NDArray[np.int64] = field(init=False)  # (orders,): of reserved orders
    unexpected: list[Unexpected] = field(init=False, default_factory=list)
    answers: NDArray[np.int64] = field(init=False)  # (kinds, statuses): how many lines
    _cell: NDArray[np.int64] = field(init=False)  # (n,): index of each line's cell
    _reserve: NDArray[np.int64] = field(init=False)  # places of RESERVE lines, by order
    _first: NDArray[np.int64] = field(init=False)  # (orders + 1,): where in `_reserve` each begins

    def __post_init__(self) -> None:
        on_cell = ~np.isin(self.lines.kind, HOLD_KINDS)
        self.cells = np.unique(np.concatenate([self.key[on_cell], self.baseline.key]))
        self._cell = np.searchsorted(self.cells, self.key)
        self.columns = {
            name: column.astype(np.int64) for name, column in self.baseline.at(self.cells).items()
        }
        self.state = np.zeros(self.orders, np.uint8)
        self.deadline_ns = np.zeros(self.orders, np.int64)
        self.answers = np.zeros((max(Kind) + 1, max(Status) + 1), np.int64)
        reserve = np.flatnonzero(self.lines.kind == Kind.RESERVE)
        by_order = np.argsort(self.lines.order[reserve], kind="stable")
        self._reserve = reserve[by_order]
        self._first = np.searchsorted(
            self.lines.order[self._reserve], np.arange(self.orders + 1)
        ).astype(np.int64)

    def record(
        self,
        place: NDArray[np.int64],
        status: NDArray[np.uint8],
        now_ns: NDArray[np.int64] | int,
    ) -> None:
        """Enter n acknowledged lines: their places in the plan and their statuses, in order.

        All lines of an order's reserve come in one call. `now_ns`: the time of their blocks.
        """
        now = np.broadcast_to(now_ns, place.shape)
        kind = self.lines.kind[place]
        np.add.at(self.answers, (kind, status), 1)
        self._note_unexpected(place, kind, status)
        done = status == Status.OK
        for each in FACTS:
            self._record_fact(each, place[done & (kind == each)])
        self._record_prices(place[done & (kind == Kind.SET_PRICE)])
        is_reserve = kind == Kind.RESERVE
        self._record_reserves(place[is_reserve], done[is_reserve], now[is_reserve])
        for step in HOLD_KINDS:
            self._record_step(step, place[done & (kind == step)])

    def expire(self, now_ns: int) -> None:
        """Enter that time has passed: reserved orders with an earlier deadline are expired."""
        overdue = (self.state == OrderState.RESERVED) & (self.deadline_ns < now_ns)
        self._move(np.flatnonzero(overdue), reserved=-1)
        self.state[overdue] = OrderState.EXPIRED

    def last_deadline_ns(self) -> int:
        """When the last reserved order expires; 0 when none is reserved."""
        return int(self.deadline_ns.max(where=self.state == OrderState.RESERVED, initial=0))

    def skipped(self, place: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether lines are of orders that were refused and so are not to be sent, shape (n,)."""
        order = self.lines.order[place]
        refused = np.append(self.state == OrderState.REFUSED, np.False_)
        return refused[order]  # order -1 is the last one

    def differences(self, found: Cells) -> list[Difference]:
        """Every column of every cell that is not as the books say, cells unknown here included."""
        key = np.union1d(self.cells, found.key)
        mine, theirs = Cells(self.cells, self.columns).at(key), found.at(key)
        return [
            Difference(
                location=int(key[row] >> 32),
                sku=int(key[row] & 0xFFFFFFFF),
                column=name,
                expected=int(mine[name][row]),
                found=int(theirs[name][row]),
            )
            for name in COLUMNS
            for row in np.flatnonzero(mine[name] != theirs[name])
        ]

    def shortages(self) -> int:
        """How many cells have less than nothing available."""
        kept = sum(self.columns[name] for name in COUNTERS[1:-1])
        return int(np.count_nonzero(self.columns["on_hand"] < kept))

    def orders_by_state(self) -> dict[str, int]:
        """How many orders ended how."""
        counts = np.bincount(self.state, minlength=len(OrderState))
        return {state.name.lower(): int(counts[state]) for state in OrderState if counts[state]}

    def _record_fact(self, kind: Kind, place: NDArray[np.int64]) -> None:
        cell, quantity = self._cell[place], self.lines.quantity[place]
        if kind == Kind.SALE:
            quantity = -quantity
        np.add.at(self.columns["on_hand"], cell, quantity)
        if kind == Kind.RETURN:
            for name, disposition in (
                ("damaged", Disposition.DAMAGED),
                ("quality_control", Disposition.QUALITY_CONTROL),
            ):
                such = self.lines.value[place] == disposition
                np.add.at(self.columns[name], cell[such], quantity[such])

    def _record_prices(self, place: NDArray[np.int64]) -> None:
        """A price that differs is one version more; prices of one cell go one after the other."""
        price, version = self.columns["price_minor"], self.columns["price_version"]
        while len(place):
            cell, first = np.unique(self._cell[place], return_index=True)
            value = self.lines.value[place[first]]
            version[cell] += (value != price[cell]) | (version[cell] == 0)
            price[cell] = value
            place = np.delete(place, first)

    def _record_reserves(
        self, place: NDArray[np.int64], done: NDArray[np.bool_], now_ns: NDArray[np.int64]
    ) -> None:
        order, first = np.unique(self.lines.order[place], return_index=True)
        self.state[order] = np.where(done[first], OrderState.RESERVED, OrderState.REFUSED)
        self.deadline_ns[order] = now_ns[first] + self.lines.value[place[first]] * NS_PER_MS
        self._move(order[done[first]], reserved=1)

    def _record_step(self, step: Kind, place: NDArray[np.int64]) -> None:
        order = self.lines.order[place]
        needed, reached = STEPS[step]
        wrong = self.state[order] != needed
        for at in place[wrong]:
            was = OrderState(int(self.state[self.lines.order[at]])).name
            self._unexpected(int(at), Status.OK, f"the order was {was}")
        order = order[~wrong]
        self.state[order] = reached
        if step == Kind.COMMIT:
            self._move(order, reserved=-1, committed=1)
        elif step == Kind.RELEASE:
            self._move(order, reserved=-1)
        elif step == Kind.FULFIL:
            self._move(order, committed=-1, on_hand=-1)
        else:
            self._move(order, committed=-1)

    def _move(self, order: NDArray[np.int64], **signs: int) -> None:
        """Add all units of some orders to counters, each with its sign."""
        begin, end = self._first[order], self._first[order + 1]
        lengths = end - begin
        offset = np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
        place = self._reserve[offset + np.arange(lengths.sum())]
        for name, sign in signs.items():
            np.add.at(self.columns[name], self._cell[place], sign * self.lines.quantity[place])

    def _note_unexpected(
        self, place: NDArray[np.int64], kind: NDArray[np.uint8], status: NDArray[np.uint8]
    ) -> None:
        """Facts, prices and steps are never refused; reserves only for want of stock."""
        is_reserve = kind == Kind.RESERVE
        allowed = (Status.OK, Status.INSUFFICIENT_STOCK, Status.LINKED_LINE_REFUSED)
        for at in np.flatnonzero((status != Status.OK) & ~is_reserve):
            self._unexpected(int(place[at]), Status(int(status[at])), "must be OK")
        want = is_reserve & (status == Status.INSUFFICIENT_STOCK)
        for at in np.flatnonzero(want & ~np.isin(self.key[place], self.short)):
            why = "the cell opened with enough for all that is asked of it"
            self._unexpected(int(place[at]), Status.INSUFFICIENT_STOCK, why)
        for at in np.flatnonzero(is_reserve & ~np.isin(status, allowed)):
            why = "a reserve is refused for want of stock alone"
            self._unexpected(int(place[at]), Status(int(status[at])), why)
        order, done = self.lines.order[place[is_reserve]], status[is_reserve] == Status.OK
        torn = np.intersect1d(order[done], order[~done])
        for at in self._reserve[self._first[torn]]:
            self._unexpected(int(at), Status.OK, "part of the order was refused, part was not")

    def _unexpected(self, place: int, status: Status, why: str) -> None:
        self.unexpected.append(Unexpected(place, Kind(int(self.lines.kind[place])), status, why))
