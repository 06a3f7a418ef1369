"""A handover: a RELEASE that is linked to an ADD_LINE lets units go from one hold to another."""

import numpy as np

from engine.kernels.codes import (
    HOLD_EXPIRED,
    INVALID_FLAGS,
    LINKED_REFUSED,
    MAX_HOLD_LINES,
    OK,
    RELEASE,
    TOO_MANY_LINES,
    UNKNOWN_HOLD,
)
from engine.kernels.compiled import jit
from engine.kernels.hold_index import find_hold
from engine.kernels.holds import called_hold, judge_parts, on_hold
from engine.kernels.layout import DEADLINE, H_EXPIRED, H_PENDING, KEY, LINE, STATE
from engine.kernels.life import is_short
from engine.kernels.lines import append_line, tail_of


@jit
def judge_taker(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, block, i,
    end, row,
):  # fmt: skip
    """Whether the hold of line `i`, an ADD_LINE, can take what another hold has of a row: a status."""
    key = np.int64(block.location[i]) << 32 | np.int64(block.sku[i])
    fits = key == cells[row, KEY] and block.quantity[i] == block.quantity[i - 1]
    if not fits or end - i > 1 or block.flags[i] or block.value[i] or block.channel[i]:
        return INVALID_FLAGS
    hi, lo = block.hold_hi[i], block.hold_lo[i]
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:  # new, or is the id an incoming record's?
        return UNKNOWN_HOLD if find_hold(holds, hold_index, hi, lo) >= 0 else OK
    if lines[head, STATE] == H_EXPIRED:
        return HOLD_EXPIRED
    if lines[head, STATE] != H_PENDING and is_short(lines, head):
        return HOLD_EXPIRED  # some of it was committed; the rest ran out, like what would join it
    return TOO_MANY_LINES if tail_of(lines, head)[1] >= MAX_HOLD_LINES else OK


@jit
def hand_over(
    cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums,
    traces, now, block, first, end, last_line, rows, out_status,
):  # fmt: skip
    """A RELEASE that is linked to an ADD_LINE: units go from one pending hold to another.

    They stay reserved, so no stock is judged. A taker of which nothing is pending is pending again,
    or is new, with the deadline of the giver.
    """
    rows[first:end] = -1
    out_status[first:end] = LINKED_REFUSED
    bad, status = judge_parts(
        cells, touched, counted, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
        now, block, first, first + 1, last_line, rows,
    )  # fmt: skip
    row = rows[first]
    if bad < 0:
        bad = first + 1
        meta[LINE] = bad
        status = judge_taker(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
            block, bad, end, row,
        )  # fmt: skip
    if status != OK:
        out_status[bad] = status
        return
    meta[LINE] = first
    giver = find_hold(holds, hold_index, block.hold_hi[first], block.hold_lo[first])
    deadline = holds[giver, DEADLINE]
    out_status[first], rows[first] = on_hold(
        cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums,
        traces, now, RELEASE, 0, cells[row, KEY], block.quantity[first], 0, block.hold_hi[first],
        block.hold_lo[first],
    )  # fmt: skip
    # Looked up only now: when the giver has ended by this, the taker may be the one forgotten.
    hi, lo = block.hold_hi[first + 1], block.hold_lo[first + 1]
    append_line(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, row,
        block.quantity[first], deadline, find_hold(holds, hold_index, hi, lo), hi, lo,
    )  # fmt: skip
    out_status[first + 1], rows[first + 1] = OK, row
