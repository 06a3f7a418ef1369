"""Cells: found, made, touched, summed up; and the traces of what a block does to them."""

import numpy as np

from engine.kernels.compiled import inlined, jit
from engine.kernels.hashes import cell_hash, key_tag
from engine.kernels.layout import (
    CELL_WORDS,
    CELLS,
    COMMITTED,
    DAMAGED,
    DIRTY,
    KEY,
    LINE,
    LOW32,
    NONE,
    ON_HAND,
    QUALITY_CONTROL,
    RESERVED,
    SAFETY_STOCK,
    SHORTAGES,
    TOUCHED,
    TRACED_LINE,
    TRACED_ROW,
    TRACED_UNITS,
    TRACES,
    VERSION,
)
from engine.kernels.warming import WARM_LINES, warm_rows


@inlined
def find_cell(cells, cell_index, key):
    """The row of a cell, or -1."""
    tag = key_tag(key)
    mask = len(cell_index) - 1
    at = tag & mask
    entry = cell_index[at]
    while entry != 0:
        row = (entry & LOW32) - 1
        if entry >> 32 == tag and cells[row, KEY] == key:
            return row
        at = (at + 1) & mask
        entry = cell_index[at]
    return np.int64(-1)


@inlined
def enter(index, tag, number):
    """Put row or slot `number` into an index under its hash."""
    mask = len(index) - 1
    at = tag & mask
    while index[at] != 0:
        at = (at + 1) & mask
    index[at] = tag << 32 | (number + 1)


@jit
def rebuild_cell_index(cells, count, cell_index):
    """Fill a new, empty index."""
    for row in range(count):
        enter(cell_index, key_tag(cells[row, KEY]), row)


@inlined
def available(cells, row):
    """What may be sold of a cell; negative is a shortage."""
    return (
        cells[row, ON_HAND]
        - cells[row, RESERVED]
        - cells[row, COMMITTED]
        - cells[row, DAMAGED]
        - cells[row, QUALITY_CONTROL]
        - cells[row, SAFETY_STOCK]
    )


@inlined
def touch(cells, touched, meta, sums, row):
    """Before the first change of a row in a block: take its old content out of hash and counts."""
    if cells[row, VERSION] < TOUCHED:
        sums[0] -= cell_hash(cells, row)
        if available(cells, row) < 0:
            meta[SHORTAGES] -= 1
        cells[row, VERSION] += TOUCHED
        touched[meta[DIRTY]] = row
        meta[DIRTY] += 1


@inlined
def new_cell(cells, cell_index, touched, meta, key):
    """A new row, touched; it has nothing to take out of the hash."""
    row = meta[CELLS]
    meta[CELLS] += 1
    for word in range(CELL_WORDS):
        cells[row, word] = 0
    cells[row, KEY] = key
    cells[row, VERSION] = TOUCHED
    enter(cell_index, key_tag(key), row)
    touched[meta[DIRTY]] = row
    meta[DIRTY] += 1
    return row


@inlined
def finish_block(cells, touched, meta, sums):
    """Put the new content of every touched row into hash and counts; the rows stay listed."""
    dirty = meta[DIRTY]
    warm = 0
    for i in range(dirty):
        if i == warm and i + 1 < dirty:
            warm = min(i + WARM_LINES, dirty)
            warm_rows(cells, touched, meta, i, warm)
        row = touched[i]
        cells[row, VERSION] -= TOUCHED
        sums[0] += cell_hash(cells, row)
        if available(cells, row) < 0:
            meta[SHORTAGES] += 1


@inlined
def trace(traces, meta, row, units):
    """Note what the line that is applied now does to a cell that it does not name by itself."""
    at = meta[TRACES]
    if at < len(traces):
        traces[at, TRACED_LINE] = meta[LINE]
        traces[at, TRACED_ROW] = row
        traces[at, TRACED_UNITS] = units
    meta[TRACES] = at + 1


@inlined
def trace_swept(cells, touched, meta, sums, traces, row):
    """Touch a row in the sweep. What is given back to it is known at the sweep's end, by cell.

    So the sweep's traces are those of the rows touched first, in the same order.
    """
    at = meta[DIRTY]
    touch(cells, touched, meta, sums, row)
    if meta[DIRTY] > at and at < len(traces):
        traces[at, TRACED_LINE] = NONE
        traces[at, TRACED_ROW] = row
        traces[at, TRACED_UNITS] = -cells[row, RESERVED]


@inlined
def end_sweep(cells, meta, traces):
    """The sweep is over: what each of its cells has less reserved than before."""
    for at in range(min(meta[DIRTY], len(traces))):
        traces[at, TRACED_UNITS] += cells[traces[at, TRACED_ROW], RESERVED]
    meta[TRACES] = meta[DIRTY]
