"""Loads ahead of the rules.

A line costs a handful of cache misses, each waiting for the one before. These loops make the same
loads for many lines, independent of each other, so that the processor overlaps them; then the
rules find everything in the cache. They run a little ahead: what all lines of a large block need
does not fit the cache at once.
"""

import numpy as np

from engine.kernels.codes import CANCEL, COUNT, RESERVE
from engine.kernels.compiled import inlined, jit
from engine.kernels.hashes import id_tag, key_tag
from engine.kernels.layout import (
    CELL,
    CELL_WORDS,
    DEADLINE,
    ID_HI,
    ID_LO,
    LOW32,
    NEXT,
    RING_COUNT,
    RING_HEAD,
    WARM,
)
from engine.kernels.movements import bucket_row

WARM_LINES = 256  # what they need is 256 * (2 + 1 + 1 + 1) cache lines, 80 KB


@jit
def warm_lines(cells, cell_index, counted, movements, hold_index, meta, block, hi, lo, start, end):
    """Load what the lines [start, end) of one request will look up: index entries, rows.

    `hi`, `lo` are the id of line `start`.
    """
    seen = np.int64(0)
    cell_mask, hold_mask = len(cell_index) - 1, len(hold_index) - 1
    for i in range(start, end):
        key = np.int64(block.location[i]) << 32 | np.int64(block.sku[i])
        # Of an empty entry the first row, which is there and does no harm.
        row = max((cell_index[key_tag(key) & cell_mask] & LOW32) - 1, 0)
        seen += cells[row, 0] + cells[row, CELL_WORDS - 1]
        if block.kind[i] == RESERVE:
            seen += hold_index[id_tag(hi, lo + (i - start)) & hold_mask]
        elif block.kind[i] == COUNT:
            seen += counted[row]
        else:
            if block.kind[i] > CANCEL:
                seen += movements[bucket_row(movements, meta, row), row & 3]
            if block.hold_hi[i] | block.hold_lo[i] != 0:
                seen += hold_index[id_tag(block.hold_hi[i], block.hold_lo[i]) & hold_mask]
    meta[WARM] = seen


@inlined
def warm_rows(cells, touched, meta, start, end):
    """Load the rows that stand in `touched[start:end]`."""
    seen = np.int64(0)
    for i in range(start, end):
        seen += cells[touched[i], 0] + cells[touched[i], CELL_WORDS - 1]
    meta[WARM] = seen


@jit
def warm_bucket(cells, holds, lines, hold_index, ring, meta, slot, now, most):
    """Load what expiring up to `most` holds from `slot` on will touch, in its bucket and the ring.

    Not beyond the first whose deadline is not before `now`: of the newest bucket only a part is due.
    """
    seen = np.int64(0)
    mask = len(hold_index) - 1
    size = len(ring) // 2
    oldest, full = meta[RING_HEAD], meta[RING_COUNT] == size
    while slot >= 0 and most > 0 and holds[slot, DEADLINE] < now:
        row = lines[slot, CELL]
        seen += cells[row, 0] + cells[row, CELL_WORDS - 1]
        if full:
            gone = ring[oldest]
            if gone >= 0:
                seen += hold_index[id_tag(holds[gone, ID_HI], holds[gone, ID_LO]) & mask]
            oldest = oldest + 1 if oldest + 1 < size else 0
        slot = np.int64(lines[slot, NEXT])
        most -= 1
    meta[WARM] = seen
