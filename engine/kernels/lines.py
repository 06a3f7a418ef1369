"""ADD_LINE: one more line for a hold."""

import numpy as np

from engine.kernels.cells import available, find_cell
from engine.kernels.codes import (
    ADD_LINE,
    INSUFFICIENT,
    INVALID_FLAGS,
    MAX_HOLD_LINES,
    NS_PER_MS,
    OK,
    TOO_MANY_LINES,
    UNKNOWN_HOLD,
)
from engine.kernels.compiled import inlined, jit
from engine.kernels.hold_index import find_hold
from engine.kernels.holds import called_hold, check_hold_state
from engine.kernels.layout import DEADLINE, H_PENDING, H_RELEASED, NEXT_LINE, SERIAL, STATE
from engine.kernels.life import reopen
from engine.kernels.reserving import buffer_of, check_reserve, hold_line, next_serial, open_hold


@inlined
def tail_of(lines, head):
    """The last line of a hold, and how many there are."""
    slot, count = head, 1
    while lines[slot, NEXT_LINE] >= 0:
        slot = np.int64(lines[slot, NEXT_LINE])
        count += 1
    return slot, count


@jit
def append_line(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, row, quantity,
    deadline, head, hi, lo,
):  # fmt: skip
    """Give a hold one more pending line; `head` is its first one, or -1 when it is new.

    `deadline` counts if it is new, or nothing of it was pending.
    """
    last, number = head, 0
    if head >= 0:
        if lines[head, STATE] == H_PENDING:
            deadline = holds[head, DEADLINE]
        else:
            reopen(holds, lines, wheel, wheel_bits, ring, meta, sums, head, deadline)
        last, number = tail_of(lines, head)
    serial = np.int64(lines[head, SERIAL]) if head >= 0 else next_serial(meta)
    slot = hold_line(
        cells, touched, holds, lines, meta, sums, row, quantity, False, deadline, hi, lo, serial,
        number,
    )  # fmt: skip
    if head >= 0:
        lines[last, NEXT_LINE] = slot
    else:
        open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, slot)


@jit
def add_line(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, buffers,
    meta, sums, traces, now, flags, sku, location, quantity, ttl_ms, channel, hi, lo,
):  # fmt: skip
    """ADD_LINE: one more line for a pending hold, or the first one of a new hold.

    A hold that was released is pending again with it, as long as a new one would be. Returns
    (status, row or -1).
    """
    if flags:
        return INVALID_FLAGS, np.int64(-1)
    status, kept = check_reserve(places, meta, sku, location, quantity, ttl_ms), np.int64(0)
    if status == OK:
        status, kept = buffer_of(places, buffers, location, channel)
    if status != OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head >= 0:
        if lines[head, STATE] != H_RELEASED:
            status = check_hold_state(lines, ADD_LINE, head)
        if status == OK and tail_of(lines, head)[1] >= MAX_HOLD_LINES:
            status = TOO_MANY_LINES
    elif find_hold(holds, hold_index, hi, lo) >= 0:
        status = UNKNOWN_HOLD  # the id is an incoming record's
    if status == OK and (row < 0 or available(cells, row) - kept < quantity):
        status = INSUFFICIENT
    if status != OK:
        return status, row
    append_line(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, row,
        quantity, now + ttl_ms * NS_PER_MS, head, hi, lo,
    )  # fmt: skip
    return OK, row
