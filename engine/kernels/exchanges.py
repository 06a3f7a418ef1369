"""Exchanges: linked returns, then one order or none, judged together."""

import numpy as np

from engine.kernels.cells import find_cell, new_cell
from engine.kernels.codes import (
    INVALID_FLAGS,
    LINKED,
    LINKED_REFUSED,
    MAX_HOLD_LINES,
    OK,
    RETURN,
    TOO_MANY_LINES,
)
from engine.kernels.compiled import inlined, jit
from engine.kernels.facts import check_fact, effects, fact, judge_goods
from engine.kernels.hashes import key_tag
from engine.kernels.hold_index import find_hold
from engine.kernels.layout import CELLS, DAMAGED, DIRTY, KEY, LOW32, ON_HAND, QUALITY_CONTROL
from engine.kernels.movements import is_seen, moment_of
from engine.kernels.reserving import judge_whole_order, reserve_order
from engine.kernels.returns import judge_return


@inlined
def drop_new_cells(cells, cell_index, meta, known):
    """Undo the newest `new_cell`s, down to `known` cells; nothing was touched after them."""
    while meta[CELLS] > known:
        meta[CELLS] -= 1
        meta[DIRTY] -= 1
        row = meta[CELLS]
        at = key_tag(cells[row, KEY]) & (len(cell_index) - 1)
        while (cell_index[at] & LOW32) - 1 != row:
            at = (at + 1) & (len(cell_index) - 1)
        cell_index[at] = 0


@inlined
def lend_return(cells, counted, now, block, i, row, sign):
    """Add what a return brings to its cell (sign 1), or take it out again (-1)."""
    moved, damaged, quality = effects(
        RETURN, np.int64(0), block.quantity[i], block.value[i]
    )  # fmt: skip
    if not is_seen(counted, row, now, moment_of(now, block.occurred_at_ns[i])):
        cells[row, ON_HAND] += sign * moved
    cells[row, DAMAGED] += sign * damaged
    cells[row, QUALITY_CONTROL] += sign * quality


@inlined
def claimed_before(block, first, i):
    """What the lines [first, i) bring back of the SKU of line i, of the same order or sale."""
    units = np.int64(0)
    for j in range(first, i):
        if (
            block.sku[j] == block.sku[i]
            and block.hold_hi[j] == block.hold_hi[i]
            and block.hold_lo[j] == block.hold_lo[i]
        ):
            units += block.quantity[j]
    return units


@jit
def judge_returns(
    cells, cell_index, touched, counted, holds, lines, hold_index, places, meta, now, block,
    first, middle, last_line, rows, is_too_long,
):  # fmt: skip
    """Find the first return of [first, middle) that must be refused: (line or -1, its status).

    What those before it bring is in their cells afterwards, which are made if need be: the caller
    takes it out again.
    """
    for i in range(first, middle):
        flags = np.int64(block.flags[i]) & ~LINKED
        sku, location = np.int64(block.sku[i]), np.int64(block.location[i])
        quantity, value, hi, lo = (
            block.quantity[i], block.value[i], block.hold_hi[i], block.hold_lo[i]
        )  # fmt: skip
        if i == last_line and block.flags[i] & LINKED:
            return i, INVALID_FLAGS
        status = check_fact(
            places, meta, now, RETURN, flags, sku, location, quantity, value,
            block.occurred_at_ns[i],
        )  # fmt: skip
        if status != OK:
            return i, status
        rows[i] = find_cell(cells, cell_index, location << 32 | sku)
        if (hi | lo) != 0:
            head = find_hold(holds, hold_index, hi, lo)
            wanted = quantity + claimed_before(block, first, i)
            status = judge_return(cells, lines, head, sku, wanted)
        if status == OK and is_too_long:
            status = TOO_MANY_LINES
        if status != OK:
            return i, status
        row = rows[i]
        if row < 0:
            row = new_cell(cells, cell_index, touched, meta, location << 32 | sku)
        lend_return(cells, counted, now, block, i, row, 1)
        status = judge_goods(cells, row, np.int64(0), np.int64(0), np.int64(0))
        if status != OK:
            lend_return(cells, counted, now, block, i, row, -1)
            return i, status
        rows[i] = row
    return np.int64(-1), OK


@jit
def exchange(
    cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index, wheel, wheel_bits,
    ring, places, buffers, meta, sums, traces, now, block, first, end, last_line, hi, lo, rows, units,
    out_status,
):  # fmt: skip
    """The lines [first, end): returns, then one order, if any, that may take what they restock.

    All or nothing. Everything is judged with what comes back in its cells; then that is taken out,
    and either nothing is done or each line is done as if it stood alone.
    """
    middle = first
    while middle < end and block.kind[middle] == RETURN:
        middle += 1
    rows[first:end] = -1
    units[first:end] = 0
    known = meta[CELLS]
    bad, status = judge_returns(
        cells, cell_index, touched, counted, holds, lines, hold_index, places, meta, now, block,
        first, middle, last_line, rows, end - first > MAX_HOLD_LINES,
    )  # fmt: skip
    brought = middle if bad < 0 else bad
    if bad < 0 and middle < end:
        bad, status, _ = judge_whole_order(
            cells, cell_index, holds, lines, hold_index, places, buffers, meta, block, middle, end,
            last_line, hi, lo, rows, units,
        )  # fmt: skip
    for i in range(first, brought):
        lend_return(cells, counted, now, block, i, rows[i], -1)
    drop_new_cells(cells, cell_index, meta, known)
    if status != OK:
        for i in range(first, end):
            out_status[i] = LINKED_REFUSED if i < middle or bad >= 0 else status
            if rows[i] >= known:
                rows[i] = -1
        if bad >= 0:
            out_status[bad] = status
        return
    for i in range(first, middle):
        out_status[i], rows[i] = fact(
            cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index, ring,
            places, meta, sums, now, RETURN, 0, np.int64(block.sku[i]), np.int64(block.location[i]),
            block.quantity[i], block.value[i], block.occurred_at_ns[i], block.hold_hi[i],
            block.hold_lo[i],
        )  # fmt: skip
    if middle < end:
        reserve_order(
            cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places,
            buffers, meta, sums, traces, now, block, middle, end, last_line, hi, lo, rows, units, out_status,
        )  # fmt: skip
