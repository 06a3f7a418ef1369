"""The holds that facts endanger when they leave less than nothing available.

Computed once a block, after all of its lines, by one scan of the hold lines for all short cells; from
then on it is data: in the block's header, in the answers, in their memory. What a scan has found is
looked at first when a cell is left short again (`Promises`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine import kernels, limits
from engine.kernels import COMMITTED, INCOMING, KEY, ON_HAND, RESERVED
from engine.views import Endangered, EndangeredHold

_LOW_SKU: Final = 0xFFFFFFFF
_line: Final = attrgetter("line")


class Promises:
    """On which slots lines of live holds were found, for cells that were left short, by row.

    While a cell is short nobody can reserve of it, so what was found once mostly is all that there
    is later, too; and that is seen exactly: the lines make up what the cell says is promised. So it
    needs no upkeep, and no answer depends on what stands here.
    """

    def __init__(self) -> None:
        self._slots: dict[int, NDArray[np.int32]] = {}  # the one noted last is the last
        self._lines = 0  # slots of all rows

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """All slots that were noted for these rows, each once; none when there is a row without."""
        found = [self._slots.get(row) for row in rows.tolist()]
        noted = [slots for slots in found if slots is not None]
        if len(noted) < len(found):
            return _NO_SLOTS
        if len(noted) == 1:
            return noted[0]
        # A line that has moved may have been noted for both of its cells.
        slots = np.sort(np.concatenate(noted))  # np.unique would hash, which takes far longer
        return slots[np.diff(slots, prepend=-1) > 0]

    def note(
        self,
        rows: NDArray[np.int64],
        slots: NDArray[np.int32],
        counts: NDArray[np.int64],
        is_all: NDArray[np.bool_],
    ) -> None:
        """Keep the first `counts[c]` slots (c, k) of each row (c,); of a row that has more, nothing."""
        for at, (row, count) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True)):
            self._lines -= len(self._slots.pop(row, _NO_SLOTS))
            if is_all[at]:
                # Looked at from the end, where those are then that were met first: the newest.
                self._slots[row] = slots[at, :count][::-1].copy()
                self._lines += count
        while (
            len(self._slots) > limits.REMEMBERED_SHORT_CELLS
            or self._lines > limits.REMEMBERED_SHORT_LINES
        ):
            self._lines -= len(self._slots.pop(next(iter(self._slots))))


_NO_SLOTS: Final = np.zeros(0, np.int32)


def name_endangered(
    state: kernels.State,
    block: kernels.Block,
    rows: NDArray[np.int64],
    status: NDArray[np.uint8],
    promises: Promises,
) -> tuple[Endangered, ...]:
    """What the facts of a block that was applied endanger, in order of their lines.

    `rows` (int64, n) are the rows of the lines' cells as `kernels.apply_block` left them, `status`
    (uint8, n) its answers. `promises` are those of this state.
    """
    lines, at = _short_cells(state, block, rows, status)
    if not len(lines):
        return ()
    short, first, which = np.unique(at, return_index=True, return_inverse=True)
    kept = state.cells[short, RESERVED:INCOMING].sum(axis=1)
    units = kept - state.cells[short, ON_HAND]
    slots, counts = _scan(state, short, units, promises)
    # Those whose line comes first are named first, as long as the block has room for names.
    order = np.argsort(first)
    named = np.minimum(np.cumsum(counts[order]), limits.MAX_ENDANGERED_OF_BLOCK)
    counts[order] = np.diff(named, prepend=0)
    holds = _holds(state, slots, counts)
    keys, amounts = state.cells[short, KEY].tolist(), units.tolist()
    return tuple(
        Endangered(line, keys[at] & _LOW_SKU, keys[at] >> 32, amounts[at], holds[at])
        for line, at in zip(lines.tolist(), which.tolist(), strict=True)
    )


def _short_cells(
    state: kernels.State, block: kernels.Block, rows: NDArray[np.int64], status: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lines whose facts left cells short (k,), and the cells' rows (k,).

    In order of lines, and of one line by the cells' SKUs and locations, each cell once; no more than
    one block may have.
    """
    most = len(status) + min(int(state.meta[kernels.TRACES]), len(state.traces))
    lines, at = np.empty((2, most), np.int64)
    now = state.meta[kernels.NOW_NS]
    count = kernels.short_cells(
        state.cells, state.counted, state.meta, state.traces, now, block, rows, status, lines, at
    )
    lines, at = lines[:count], at[:count]
    if (np.diff(lines) > 0).all():
        return lines, at
    keys = state.cells[at, KEY]
    named = np.stack([lines, keys & _LOW_SKU, keys >> 32])
    _, first = np.unique(named, return_index=True, axis=1)
    first = first[: limits.MAX_SHORTAGES_OF_BLOCK]
    return lines[first], at[first]


def _scan(
    state: kernels.State, short: NDArray[np.int64], units: NDArray[np.int64], promises: Promises
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The slots of the hold lines that c short cells endanger: (c, k) in order, and (c,) how many."""
    promised = int(state.cells[short, RESERVED : COMMITTED + 1].sum())
    is_few = len(short) <= limits.SHORT_CELLS_NOTED
    # Each line has a unit at least, so no cell needs more of them than units.
    wanted = np.minimum(units, limits.MAX_ENDANGERED)
    slots = np.zeros((len(short), int(wanted.max())), np.int32)
    counts, met_counts = np.zeros((2, len(short)), np.int64)

    def look(known: NDArray[np.int32], room: int) -> tuple[NDArray[np.int32], int]:
        met, ranks = np.empty((len(short), room), np.int32), np.empty(slots.shape, np.int64)
        marks = np.zeros(kernels.MARK_WORDS, np.uint64)
        counts[:] = met_counts[:] = 0
        left = kernels.find_endangered(
            state.lines, state.meta, short, wanted, promised, marks, ranks, slots, counts, met,
            met_counts, known,
        )  # fmt: skip
        return met, int(left)

    known = promises.known(short) if promised and is_few else _NO_SLOTS
    left = promised
    if len(known):
        _, left = look(known, 0)
    if left:
        # More than are named are worth noting, unless they are very many: each look is at all of them.
        most = max(limits.MAX_ENDANGERED, limits.SHORT_LINES_NOTED // len(short)) if is_few else 0
        met, _ = look(_NO_SLOTS, most)
        if is_few:
            promises.note(short, met, met_counts, met_counts <= most)
    # The first ones whose units cover the shortage.
    amounts = state.lines[slots, kernels.PENDING : kernels.FULFILLED].sum(axis=2, dtype=np.int64)
    covered = np.cumsum(amounts, axis=1) - amounts
    counts = np.minimum(counts, (covered < units[:, None]).sum(axis=1))
    return slots, counts


def _holds(
    state: kernels.State, slots: NDArray[np.int32], counts: NDArray[np.int64]
) -> list[tuple[EndangeredHold, ...]]:
    """What is said of the first `counts[c]` slots of each cell."""
    chosen = slots[np.arange(slots.shape[1]) < counts[:, None]]
    ids = state.holds[chosen, : kernels.DEADLINE].astype(">i8").tobytes()
    amounts = state.lines[chosen, kernels.PENDING : kernels.FULFILLED].tolist()
    size = limits.OP_ID_BYTES
    holds = [
        EndangeredHold(ids[size * at : size * at + size], pending, committed)
        for at, (pending, committed) in enumerate(amounts)
    ]
    ends = np.cumsum(counts).tolist()
    return [tuple(holds[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def of_request(endangered: Sequence[Endangered], first: int, end: int) -> tuple[Endangered, ...]:
    """The entries of a block's lines [first, end), as the request that they are sees them."""
    begin, after = (bisect_left(endangered, at, key=_line) for at in (first, end))
    return tuple(each._replace(line=each.line - first) for each in endangered[begin:after])


def packed_endangered(endangered: Sequence[Endangered]) -> list[Any]:
    """What msgpack takes: a cell's holds are written once, however many lines left it short."""
    cells: dict[tuple[int, int], list[Any]] = {}
    for line, sku, location, units, holds in endangered:
        if (sku, location) not in cells:
            cells[sku, location] = [sku, location, units, [], holds]
        cells[sku, location][3].append(line)
    return list(cells.values())


def unpacked_endangered(cells: Sequence[Any]) -> tuple[Endangered, ...]:
    """What `packed_endangered` was given."""
    entries = []
    for sku, location, units, lines, holds in cells:
        named = tuple(EndangeredHold(*hold) for hold in holds)
        entries += [Endangered(line, sku, location, units, named) for line in lines]
    return tuple(sorted(entries))
