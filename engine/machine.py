"""The machine of one shard: its state, and blocks of requests applied to it.

Python's share of the rules: it makes room, joins the requests' columns, calls the kernel once a
block, and takes the after-image. Time is an argument. What the rules are stands in `engine.kernels`
(compiled) and `engine.reference` (plain).
"""

import struct
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from engine import kernels, limits
from engine.block import AfterImage, Place, check_place, concatenated
from engine.columns import Columns
from engine.kernels import CELL_WORDS, KEY, ON_HAND
from engine.operations import LINE, Flag, Kind, Request, id_to_pair
from engine.shortages import Promises, name_endangered
from engine.status import Status
from engine.traces import NO_TRACES, Traces, taken
from engine.views import (
    Cell,
    DatedIncoming,
    Endangered,
    Hold,
    HoldLine,
    HoldState,
    Incoming,
    IncomingLine,
)


@dataclass(slots=True)
class Outcome:
    """What a block did. `status` (uint8) and `available` (int64) have one value a line.

    `granted` (int64, a value a line): how much each line reserved; None when no line is PARTIAL.
    `endangered` has an entry for each line of a fact and each cell that it left short, in order of
    lines, then of SKUs and locations.
    `traces` are None when they were more than are kept.
    """

    status: NDArray[np.uint8]
    available: NDArray[np.int64]
    expired: int
    image: AfterImage
    granted: NDArray[np.int64] | None = None
    endangered: tuple[Endangered, ...] = ()
    traces: Traces | None = field(default_factory=lambda: NO_TRACES)


class Machine:
    """The state of one shard, changed by `apply` and nothing else."""

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
                "resolved_remembered, movements_remembered, expiries_per_block: must be 1 at least"
            )
        self._columns = Columns(resolved_remembered, movements_remembered)
        self._budget = expiries_per_block
        self._promises = Promises()
        self._places: dict[int, Place] = {}
        self._scratch = np.zeros((2, limits.MAX_BATCH_LINES), np.int64)
        self._scratch_rows = tuple(self._scratch)
        self._compiled: Any = None  # `kernels.apply_block` itself, once there is one
        self._line = np.zeros(1, LINE)
        self._line_bytes = self._line.view(np.uint8).data
        self._single = _joined([Request(bytes(16), 1, {})], 1)._replace(
            **{
                name: self._line[name].view(np.int64 if name.startswith("hold") else dtype)
                for name, dtype in _NATIVE.items()
            }
        )

    # --- what it knows -------------------------------------------------------------------------

    @property
    def state(self) -> kernels.State:
        """The arrays. Read only."""
        return self._columns.state

    @property
    def now_ns(self) -> int:
        """The time of the newest block."""
        return int(self.state.meta[kernels.NOW_NS])

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return int(self.state.meta[kernels.CELLS])

    @property
    def holds_open(self) -> int:
        """How many holds have something pending."""
        return int(self.state.meta[kernels.HOLDS_OPEN])

    @property
    def holds_committed(self) -> int:
        """How many holds have nothing pending and something committed."""
        return int(self.state.meta[kernels.HOLDS_COMMITTED])

    @property
    def shortages(self) -> int:
        """How many cells have less than nothing available."""
        return int(self.state.meta[kernels.SHORTAGES])

    @property
    def expired(self) -> int:
        """How many holds have expired since the state began."""
        return int(self.state.meta[kernels.EXPIRED])

    @property
    def movements_used(self) -> int:
        """Rows of the ring of movements that were ever written; they are its first ones."""
        meta = self.state.meta
        return min(int(meta[kernels.MOVED]) + 1, int(meta[kernels.MOVEMENT_ROOM]))

    @property
    def sku_limit(self) -> int:
        """SKU ids from 1 to this are known."""
        return int(self.state.meta[kernels.SKU_LIMIT])

    @property
    def places(self) -> dict[int, Place]:
        """The locations it knows of, by id. Read only."""
        return self._places

    @property
    def state_hash(self) -> int:
        """64 bits over all cells and live holds; the same for the reference machine."""
        return int(self.state.sums[0])

    def next_deadline_ns(self) -> int:
        """A time up to which nothing expires (a lower bound of the next deadline); -1: no holds."""
        s = self.state
        return int(kernels.next_deadline(s.holds, s.lines, s.wheel, s.wheel_bits, s.meta))

    def tidy(self, most: int) -> bool:
        """Move up to `most` holds on towards their expiry, and tell whether more wait for that.

        It changes nothing that shows. Called between blocks, it spares the block in which the turn
        of very many holds comes the work of moving them all.
        """
        s = self.state
        with _wrapping():
            return bool(kernels.tidy(s.holds, s.lines, s.wheel, s.wheel_bits, s.meta, most))

    def nbytes(self) -> dict[str, int]:
        """Bytes allocated for cells, holds and movements, index entries included."""
        return self._columns.nbytes()

    def nbytes_used(self) -> int:
        """Bytes of the rows in use: about what a snapshot copies."""
        used = int(self.state.meta[kernels.HOLDS_USED])
        cells = self.cells * (CELL_WORDS + 1)  # the word beside a row is its COUNTED_AT
        return 8 * (cells + used * kernels.HOLD_WORDS + self.movements_used * kernels.BEFORE)

    def cell(self, sku: int, location: int) -> Cell | None:
        """Look a cell up; the ids may be any that fit 32 bits."""
        row = self._row(sku, location)
        return None if row < 0 else Cell(*self.state.cells[row, ON_HAND:].tolist())

    def counted_at_ns(self, sku: int, location: int) -> int:
        """The moment of a cell's newest count; 0 when it was never counted."""
        row = self._row(sku, location)
        return 0 if row < 0 else int(self.state.counted[row])

    def _row(self, sku: int, location: int) -> int:
        key = _signed(location << 32 | sku)
        with _wrapping():
            return int(kernels.find_cell(self.state.cells, self.state.cell_index, key))

    def hold(self, hold_id: bytes) -> Hold | None:
        """Look a hold up; None when it is not known, or no more."""
        s = self.state
        slots = self._slots(hold_id)
        if not slots or s.lines[slots[0], kernels.STATE] >= kernels.H_INCOMING:
            return None
        lines = []
        for slot in slots:
            amounts = s.lines[slot, kernels.PENDING : kernels.FULFILLED + 1].tolist()
            amounts.append(int(s.lines[slot, kernels.RETURNED]))
            lines.append(HoldLine(*self._cell_of(slot), *amounts))
        state, deadline = s.lines[slots[0], kernels.STATE], s.holds[slots[0], kernels.DEADLINE]
        return Hold(HoldState(int(state)), int(deadline), lines)

    def incoming(self, incoming_id: bytes) -> Incoming | None:
        """Look an incoming record up; None when it is not known, or no more."""
        s = self.state
        slots = self._slots(incoming_id)
        if not slots or s.lines[slots[0], kernels.STATE] < kernels.H_INCOMING:
            return None
        columns = [kernels.POSTED, kernels.PENDING, kernels.FULFILLED]
        lines = [
            IncomingLine(*self._cell_of(slot), *s.lines[slot, columns].tolist()) for slot in slots
        ]
        state, expected_at = s.lines[slots[0], kernels.STATE], s.holds[slots[0], kernels.DEADLINE]
        return Incoming(HoldState(int(state)), int(expected_at), lines)

    def incoming_of(self, cells: Iterable[tuple[int, int]]) -> list[DatedIncoming]:
        """What is outstanding for cells (SKU, location), by cell (location, SKU) and date.

        One scan of all hold lines, for all cells together.
        """
        s = self.state
        keys = [_signed(location << 32 | sku) for sku, location in cells]
        with _wrapping():
            rows = [int(kernels.find_cell(s.cells, s.cell_index, key)) for key in keys]
        due = np.array(sorted({row for row in rows if row >= 0}), np.int64)
        units = s.cells[due, kernels.INCOMING]
        due, units = due[units > 0], int(units.sum())
        # A line has one unit at least.
        slots = np.empty(min(units, int(s.meta[kernels.HOLDS_USED])), np.int32)
        if len(due):
            marks = np.zeros(kernels.MARK_WORDS, np.uint64)
            slots = slots[: kernels.find_outstanding(s.lines, s.meta, due, units, marks, slots)]
        amounts, moments = s.lines[slots, kernels.PENDING], s.holds[slots, kernels.DEADLINE]
        found = [
            DatedIncoming(*self._cell_of(slot), moment, amount)
            for slot, moment, amount in zip(
                slots.tolist(), moments.tolist(), amounts.tolist(), strict=True
            )
        ]
        return sorted(found, key=lambda each: (each.location, *each))

    def _slots(self, any_id: bytes) -> list[int]:
        """The lines of a hold or an incoming record, in order."""
        s = self.state
        high, low = (_signed(half) for half in id_to_pair(any_id))
        with _wrapping():
            slot = int(kernels.find_hold(s.holds, s.hold_index, np.int64(high), np.int64(low)))
        slots = []
        while slot >= 0:
            slots.append(slot)
            slot = int(s.lines[slot, kernels.NEXT_LINE])
        return slots

    def _cell_of(self, slot: int) -> tuple[int, int]:
        """The (SKU, location) of a hold line."""
        key = int(self.state.cells[self.state.lines[slot, kernels.CELL], KEY])
        return key & 0xFFFFFFFF, key >> 32

    # --- what changes it -----------------------------------------------------------------------

    def set_sku_limit(self, sku_limit: int) -> None:
        """SKU ids 1 to `sku_limit` exist; it never shrinks."""
        if sku_limit < self.sku_limit:
            raise ValueError(f"sku_limit: {sku_limit}, was {self.sku_limit}")
        self.state.meta[kernels.SKU_LIMIT] = sku_limit

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
        """A location exists, and belongs to this shard or to another one."""
        self.set_place(Place(location, owned, currency, split, part, buffers))

    def set_place(self, place: Place) -> None:
        """A location exists, and belongs to this shard or to another one; channels have these rules.

        Raises ValueError for an id that is not within 1 and MAX_LOCATIONS, for more than
        MAX_CHANNELS rules, and for one that is neither NOT_SOLD nor a quantity.
        """
        check_place(place)
        self._columns.make_room_for_locations(place.location)
        owned = kernels.LOCATION_OWNED if place.owned else kernels.LOCATION_ELSEWHERE
        rules = int(self.state.places[place.location, kernels.RULES])
        if place.buffers and not rules:
            rules = self._columns.add_rules()
        if rules:
            self.state.buffers[rules] = kernels.NO_RULES
            self.state.buffers[rules, : len(place.buffers)] = place.buffers
        self.state.places[place.location] = (
            owned, place.currency, place.split, place.part, rules,
        )  # fmt: skip
        self._places[place.location] = place

    def apply(
        self,
        now_ns: int,
        requests: Sequence[Request],
        *,
        names_endangered: bool = True,
        expires: int | None = None,
    ) -> Outcome:
        """Apply one block at the time `now_ns`, which must be later than that of the last one.

        First the overdue holds expire, then the lines are applied in order. A replay does not need
        `names_endangered` and the scan for it: the block says which holds its facts endanger. It
        says also how many holds the sweep `expires`, whatever the bound was that it was made with.
        Raises ValueError for a time that does not grow, MemoryError beyond the limits of a shard;
        then nothing has changed.
        """
        columns = self._columns
        meta = columns.state.meta
        if now_ns <= meta[kernels.NOW_NS]:
            raise ValueError(f"now_ns: {now_ns} is not after {self.now_ns}")
        lines = requests[0].lines if len(requests) == 1 else sum(each.lines for each in requests)
        block = self._one(requests[0]) if lines == 1 else _joined(list(requests), lines)
        with _wrapping():
            columns.make_room(lines, self._lines_to_split(block))
        state = columns.state
        known = int(meta[kernels.CELLS])
        status = np.empty(lines, np.uint8)
        available = np.empty(lines, np.int64)
        if self._scratch.shape[1] < lines:
            self._scratch = np.empty((2, lines), np.int64)
            self._scratch_rows = tuple(self._scratch)
        rows, units = self._scratch_rows
        bound = (self._budget, limits.MAX_HOLDS) if expires is None else (limits.MAX_HOLDS, expires)
        given = (state, now_ns, *bound, block, rows, units, status, available)
        with _wrapping():
            if lines == 1 and self._compiled is not None:
                expired = self._compiled(*given)
            else:
                expired = kernels.apply_block(*given)
                self._compiled = self._compiled or _compiled()
        granted = _granted(block, status, units)
        outcome = Outcome(
            status, available, int(expired), self._image(known), granted, traces=taken(state)
        )
        if names_endangered and meta[kernels.SHORTAGES]:
            outcome.endangered = name_endangered(state, block, rows, status, self._promises)
        return outcome

    def _lines_to_split(self, block: kernels.Block) -> int:
        """How many hold lines a block may make beyond one a line of its own."""
        if _MOVE not in block.kind.tobytes():  # a fraction of the time of numpy's comparison
            return 0
        s = self.state
        return int(kernels.lines_to_split(s.holds, s.lines, s.hold_index, s.meta, block))

    def _one(self, request: Request) -> kernels.Block:
        """A block of one line, in arrays that are used again: it is the latency of single calls."""
        block = self._single
        if request.packed:
            self._line_bytes[:] = request.packed
        else:
            self._line[0] = tuple(
                column[0] if (column := request.columns.get(name)) is not None else 0
                for name in _LINE_COLUMNS
            )
        high, low = _HALVES.unpack(request.op_id)
        block.request_hi[0] = high
        block.request_lo[0] = low
        return block

    def make_room(self, cells: int, holds: int) -> None:
        """Have room for so many cells and hold lines in all: up to them no block waits for more.

        Costs addresses, and memory only as rows are used. Raises MemoryError beyond the limits of a
        shard.
        """
        with _wrapping():
            self._columns.make_room_for_cells(cells)
            self._columns.make_room_for_holds(holds)

    def room_for_cells(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first rows of cells and of the moments of their counts, to be filled before `restore`."""
        with _wrapping():
            self._columns.make_room_for_cells(rows)
        return self.state.cells[:rows], self.state.counted[:rows]

    def restore(self, rows: int, arrays: dict[str, NDArray[Any]], places: Sequence[Place]) -> None:
        """Take over a snapshot (see `engine.snapshot`) whose first `rows` cells are there already.

        Only for a new machine. ValueError when it was made with other bounds.
        """
        columns = self._columns
        meta = arrays["meta"]
        size, given = len(columns.state.ring) // 2, len(arrays["ring"]) // 2
        if given != size:
            raise ValueError(f"ring: {given} resolved holds, not {size}")
        room = int(columns.state.meta[kernels.MOVEMENT_ROOM])
        if meta[kernels.MOVEMENT_ROOM] != room:
            raise ValueError(f"movements: room for {meta[kernels.MOVEMENT_ROOM]}, not {room}")
        cells = int(meta[kernels.CELLS])
        with _wrapping():
            columns.make_room_for_cells(cells)
            columns.make_room_for_holds(len(arrays["holds"]))
        state = columns.state
        for name in ("cells", "counted"):
            column = getattr(state, name)
            column[arrays["changed"]] = arrays[f"changed_{name}"]
            column[rows:cells] = arrays[f"new_{name}"]
        moved = arrays["movements"]
        state.movements[: len(moved), : kernels.BEFORE] = moved  # the links are made anew
        for name in ("holds", "wheel", "wheel_bits", "ring", "meta"):
            getattr(state, name)[: len(arrays[name])] = arrays[name]
        with _wrapping():
            kernels.rebuild_cell_index(state.cells, cells, state.cell_index)
            kernels.rebuild_hold_index(
                state.holds, state.lines, int(meta[kernels.HOLDS_USED]), state.hold_index
            )
            kernels.rebuild_movement_links(state.movements, state.meta)
        for place in places:
            self.set_place(place)
        state.sums[0] = self.recomputed_hash()

    def recomputed_hash(self) -> int:
        """The state hash, computed from all rows and not kept from block to block."""
        s = self.state
        with _wrapping():
            total = kernels.total_hash(
                s.cells, s.counted, s.holds, s.lines, self.cells, int(s.meta[kernels.HOLDS_USED])
            )
        return int(total)

    def audit(self) -> list[str]:
        """Check the invariants that hold between columns; what is wrong, or nothing.

        `reserved` is the sum of what open holds have pending, `committed` the sum of what they have
        committed and not handed over, `incoming` the sum of what incoming records have outstanding,
        and the kept hash is that of the rows.
        """
        s = self.state
        used = s.lines[: s.meta[kernels.HOLDS_USED]]
        used = used[used[:, kernels.STATE] != kernels.FREE]
        records = _is_incoming(used)
        wrong = []
        for word, column, are_records, name in (
            (kernels.RESERVED, kernels.PENDING, False, "reserved"),
            (kernels.COMMITTED, kernels.POSTED, False, "committed"),
            (kernels.INCOMING, kernels.PENDING, True, "incoming"),
        ):
            counted = used[records == are_records]
            held = np.bincount(counted[:, kernels.CELL], counted[:, column], self.cells).astype(
                np.int64
            )
            rows = np.flatnonzero(held[: self.cells] != s.cells[: self.cells, word])
            wrong += [
                f"sku {int(s.cells[row, KEY]) & 0xFFFFFFFF} at location {int(s.cells[row, KEY]) >> 32}: "
                f"{name} is {int(s.cells[row, word])}, its lines have {int(held[row])}"
                for row in rows[:10]
            ]
        if self.recomputed_hash() != self.state_hash:
            wrong.append("the state hash kept from block to block is not that of the rows")
        return wrong

    def _image(self, known: int) -> AfterImage:
        """The after-image of the rows that the block touched."""
        state = self.state
        cells, meta = state.cells, state.meta
        rows = state.touched[: meta[kernels.DIRTY]].copy()
        made = int(meta[kernels.CELLS])
        new_keys = cells[known:made, KEY].copy() if made > known else _NO_KEYS
        words = _words_of(int(meta[kernels.CHANGED]))
        if len(rows) == 1:  # the latency of single calls: a row by its number is much quicker
            row = cells[rows[0]].copy()
            return AfterImage(rows, known, new_keys, {word: row[word : word + 1] for word in words})
        if len(rows) > limits.MAX_IMAGE_CELLS:
            return AfterImage(rows, known, new_keys, None)
        return AfterImage(rows, known, new_keys, {word: cells[rows, word] for word in words})


@cache
def _words_of(changed: int) -> tuple[int, ...]:
    """The words of a cell that a mask of the kernel names."""
    return tuple(word for word in range(ON_HAND, CELL_WORDS) if changed >> word & 1)


_NO_KEYS: Final = np.zeros(0, np.int64)


def _compiled() -> Any:
    """The kernel without numba's choice of a specialisation, which takes longer than one line.

    Only for arrays whose types are those of the one specialisation: nothing checks them. None when
    there is not just one, or nothing is compiled.
    """
    found = list(getattr(kernels.apply_block, "overloads", {}).values())
    return found[0].entry_point if len(found) == 1 else None


def _granted(
    block: kernels.Block, status: NDArray[np.uint8], units: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """What each line reserved, if some line is PARTIAL; the kernel says it of those alone."""
    if len(status) == 1 and not block.flags[0] & _PARTIAL:
        return None  # the latency of single calls
    is_partial = block.flags & _PARTIAL != 0
    if not is_partial.any():
        return None
    wanted = np.where(block.kind == Kind.RESERVE, block.quantity, 0)
    held = np.where(is_partial, units[: len(status)], wanted)
    return np.where(status == Status.OK, held, 0)


def _joined(requests: list[Request], lines: int) -> kernels.Block:
    """The requests' columns, one after the other, as the kernel takes them."""
    ids = np.frombuffer(b"".join(r.op_id for r in requests), ">u8").astype(np.uint64)
    ends = np.cumsum(np.array([request.lines for request in requests], np.int64), dtype=np.int64)
    columns: dict[str, NDArray[Any]] = {}
    for name in _PLAIN:
        columns[name] = _native(concatenated(requests, name) if requests else None, name, lines)
    for name in ("hold_hi", "hold_lo"):
        column = _native(concatenated(requests, name) if requests else None, name, lines)
        columns[name] = column.view(np.int64)
    pairs = ids.view(np.int64).reshape(-1, 2)
    return kernels.Block(
        **columns,
        request_hi=np.ascontiguousarray(pairs[:, 0]),
        request_lo=np.ascontiguousarray(pairs[:, 1]),
        request_end=ends,
    )


_NATIVE: Final = {
    "kind": np.uint8, "flags": np.uint8, "sku": np.uint32, "location": np.uint32,
    "quantity": np.int64, "value": np.int64, "currency": np.uint16,
    "hold_hi": np.uint64, "hold_lo": np.uint64, "channel": np.uint16, "occurred_at_ns": np.int64,
}  # fmt: skip
_LINE_COLUMNS: Final = LINE.names or ()
_PLAIN: Final = [name for name in _NATIVE if not name.startswith("hold")]


_PARTIAL, _MOVE = int(Flag.PARTIAL), int(Kind.MOVE)
_NUMBA: Final[Any] = numba.config
_JIT_IS_OFF: Final = bool(_NUMBA.DISABLE_JIT)
_HALVES: Final = struct.Struct(">qq")


def _native(column: NDArray[Any] | None, name: str, lines: int) -> NDArray[Any]:
    """A column as the kernel's one specialisation takes it: contiguous, aligned, writable."""
    dtype = _NATIVE[name]
    if column is None:
        return np.zeros(lines, dtype)
    flags = column.flags
    if column.dtype == dtype and flags.c_contiguous and flags.aligned and flags.writeable:
        return column
    return np.array(column, dtype)


def _is_incoming(lines: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of these hold lines are lines of incoming records."""
    states = lines[:, kernels.STATE] & ((1 << kernels.NUMBER_AT) - 1)
    is_incoming: NDArray[np.bool_] = states >= kernels.H_INCOMING
    return is_incoming


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _wrapping() -> AbstractContextManager[Any]:
    """Hashes wrap; numpy's scalars, which stand in when compilation is off, would warn of it."""
    return np.errstate(over="ignore") if _JIT_IS_OFF else _AS_IT_IS


_AS_IT_IS: Final = nullcontext()
