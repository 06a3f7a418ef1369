"""The arrays of a shard: made, grown, measured. Knows how they grow, not what they mean."""

import mmap
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine import kernels, limits
from engine.kernels import NONE, State

# Arrays are doubled while they are small; then they grow by an eighth, because the slack counts
# against the bytes that a cell or a hold may take.
_SMALL: Final = 1 << 13
_FIRST: Final = 1024
_HUGE_PAGE: Final = 2 << 20


@dataclass(slots=True)
class Columns:
    """The arrays behind one `kernels.State`, and the room in them."""

    resolved_remembered: int = limits.RESOLVED_HOLDS_REMEMBERED
    movements_remembered: int = limits.MOVEMENTS_REMEMBERED
    state: State = field(init=False)
    _rules: int = field(init=False, default=1)  # rows of `buffers` in use

    def __post_init__(self) -> None:
        holds = _zeros((_FIRST, kernels.HOLD_WORDS), np.int64)
        meta = _zeros(kernels.META_SLOTS, np.int64)
        meta[kernels.FREE_HOLD] = NONE
        meta[kernels.MOVEMENT_ROOM] = self.movements_remembered
        # A bucket of links for each movement, at least; see `kernels.MOVEMENT_WORDS`.
        buckets = max(_power_of_two(self.movements_remembered), kernels.MOVEMENT_WORDS)
        room = self.movements_remembered + buckets // kernels.MOVEMENT_WORDS
        self.state = State(
            cells=_zeros((_FIRST, kernels.CELL_WORDS), np.int64),
            cell_index=_zeros(2 * _FIRST, np.int64),
            touched=_zeros(_FIRST, np.int32),
            counted=_zeros(_FIRST, np.int64),
            movements=_zeros((room, kernels.MOVEMENT_WORDS), np.int64),
            holds=holds,
            lines=holds.view(np.int32),
            hold_index=_zeros(2 * _FIRST, np.int64),
            wheel=np.full((kernels.WHEEL_SLOTS, 2), NONE, np.int32),
            wheel_bits=_zeros(kernels.WHEEL_SLOTS // 64, np.uint64),
            ring=_zeros(2 * self.resolved_remembered, np.int32),
            places=_zeros((1, kernels.PLACE_WORDS), np.int32),
            buffers=np.full((1, limits.MAX_CHANNELS), kernels.NO_RULES, np.int32),
            meta=meta,
            traces=_zeros((limits.MAX_TRACES_OF_BLOCK, kernels.TRACE_WORDS), np.int64),
            tallies=_tallies(limits.MAX_BLOCK_LINES),
            sums=_zeros(1, np.uint64),
        )

    def make_room(self, lines: int, more_hold_lines: int) -> None:
        """Room for a block of `lines` lines: each may make one cell and one hold line.

        Raises MemoryError when the shard would pass MAX_CELLS or MAX_HOLDS.
        """
        if lines + kernels.SPARE_TALLY > self.state.tallies.shape[1]:
            self.state = self.state._replace(tallies=_tallies(lines))
        self.make_room_for_cells(int(self.state.meta[kernels.CELLS]) + lines)
        used = int(self.state.meta[kernels.HOLDS_USED])
        self.make_room_for_holds(used + lines + more_hold_lines)

    def make_room_for_locations(self, highest: int) -> None:
        """Room for location ids up to `highest`."""
        if highest >= len(self.state.places):
            size = max(highest + 1, 2 * len(self.state.places))
            self.state = self.state._replace(places=_grown(self.state.places, size))

    def add_rules(self) -> int:
        """One more row of `buffers`, for a location that channels have rules for."""
        row = self._rules
        self._rules += 1
        if row == len(self.state.buffers):
            self.state = self.state._replace(buffers=_grown(self.state.buffers, 2 * row))
        return row

    def make_room_for_cells(self, needed: int) -> None:
        """Room for `needed` cells in all. Raises MemoryError beyond MAX_CELLS."""
        state = self.state
        if needed <= len(state.cells):
            return
        size = _next_size(len(state.cells), needed, limits.MAX_CELLS, "cells")
        cells, index = _grown(state.cells, size), state.cell_index
        if 4 * size > 3 * len(index):
            # Three quarters full at most, so that probes stay short.
            index = _zeros(_power_of_two(size * 4 // 3 + 1), np.int64)
            kernels.rebuild_cell_index(cells, int(state.meta[kernels.CELLS]), index)
        touched, counted = _grown(state.touched, size), _grown(state.counted, size)
        self.state = state._replace(cells=cells, cell_index=index, touched=touched, counted=counted)

    def make_room_for_holds(self, needed: int) -> None:
        """Room for `needed` hold lines in all. Raises MemoryError beyond MAX_HOLDS."""
        state = self.state
        if needed <= len(state.holds):
            return
        size = _next_size(len(state.holds), needed, limits.MAX_HOLDS, "hold lines")
        holds, index = _grown(state.holds, size), state.hold_index
        lines = holds.view(np.int32)
        if 4 * size > 3 * len(index):
            index = _zeros(_power_of_two(size * 4 // 3 + 1), np.int64)
            kernels.rebuild_hold_index(holds, lines, int(state.meta[kernels.HOLDS_USED]), index)
        self.state = state._replace(holds=holds, lines=lines, hold_index=index)

    def nbytes(self) -> dict[str, int]:
        """Bytes allocated for cells, holds and movements, index entries included."""
        state = self.state
        rows = state.cells.nbytes + state.touched.nbytes + state.counted.nbytes
        return {
            "cells": rows + state.cell_index.nbytes,
            "holds": state.holds.nbytes + state.hold_index.nbytes + state.ring.nbytes,
            "movements": state.movements.nbytes,
        }


def _tallies(lines: int) -> NDArray[np.int64]:
    return _zeros((kernels.TALLY_WORDS, lines + kernels.SPARE_TALLY), np.int64)


def _next_size(size: int, needed: int, most: int, what: str) -> int:
    if needed > most:
        raise MemoryError(f"{what}: more than {most}")
    while size < needed:
        size = size * 2 if size < _SMALL else size + size // 8
    return min(size, most)


def _zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zero pages, resident only once written; huge ones when there are enough, where Linux allows.

    Random rows of a large table miss the TLB on nearly every access: with huge pages a reserve line
    takes a third less time. Raises MemoryError when the machine has not so much.
    """
    size = prod(shape) if isinstance(shape, tuple) else shape
    nbytes = size * np.dtype(dtype).itemsize
    if nbytes < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    whole = -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE
    try:
        pages = mmap.mmap(-1, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {whole} bytes: {error}") from error
    pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, size).reshape(shape)


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """A copy with room for `size` rows; rows beyond the old ones are zero pages, not resident yet."""
    new = _zeros((size, *array.shape[1:]), array.dtype)
    new[: len(array)] = array
    return new


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
