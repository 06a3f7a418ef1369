"""Scans of the hold lines, for what is asked seldom and of few cells.

That every reserve kept a list for each cell would cost more. They go backwards, for the newest are at
the end unless slots were used again, and end when they have met all the units that the cells' counters
speak of.
"""

import numpy as np

from engine.kernels.compiled import inlined, jit
from engine.kernels.layout import CELL, H_INCOMING, HOLDS_USED, PENDING, STATE, STATE_MASK, U0, U1

MARK_WORDS = 1024  # a bit a row, modulo: the test that nearly every line fails stays in the cache
_MARK_MASK = MARK_WORDS - 1


@inlined
def mark_rows(marks, rows):
    """Set the rows' bits in `marks` (uint64, MARK_WORDS), which comes as zeros."""
    for i in range(len(rows)):
        marks[(rows[i] >> 6) & _MARK_MASK] |= U1 << np.uint64(rows[i] & 63)


@inlined
def is_marked(marks, row):
    """Whether this row, or another one with the same bit, was marked."""
    return marks[(row >> 6) & _MARK_MASK] >> np.uint64(row & 63) & U1 != U0


@inlined
def place_of(values, value):
    """The index of a value in a sorted array, or -1."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low if low < len(values) and values[low] == value else -1


@jit
def find_outstanding(lines, meta, rows, units, marks, found):
    """The lines of incoming records on `rows` (int64, sorted) of which something is outstanding.

    Writes their slots to `found` (int32) and returns how many there are. `units` is what is
    outstanding on these rows in all, `marks` as in `mark_rows`.
    """
    mark_rows(marks, rows)
    count = 0
    slot = meta[HOLDS_USED] - 1
    while units > 0 and slot >= 0:
        row = np.int64(lines[slot, CELL])
        if lines[slot, PENDING] > 0 and is_marked(marks, row):
            is_record = lines[slot, STATE] & STATE_MASK == H_INCOMING
            if is_record and place_of(rows, row) >= 0:
                units -= np.int64(lines[slot, PENDING])
                found[count] = slot
                count += 1
        slot -= 1
    return count
