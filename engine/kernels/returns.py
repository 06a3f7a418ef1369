"""What was handed over, and what of it came back."""

import numpy as np

from engine.kernels.cells import enter
from engine.kernels.checks import check_quantity
from engine.kernels.codes import (
    CLAIM_RETURN,
    EXCEEDS_HOLD,
    INVALID_FLAGS,
    NOT_FULFILLED,
    NOT_IN_HOLD,
    OK,
    UNKNOWN_HOLD,
)
from engine.kernels.compiled import inlined, jit
from engine.kernels.hashes import id_tag
from engine.kernels.hold_index import find_hold, is_live
from engine.kernels.layout import (
    CELL,
    DEADLINE,
    FULFILLED,
    H_FULFILLED,
    H_INCOMING,
    ID_HI,
    ID_LO,
    KEY,
    LOW32,
    NEXT,
    NEXT_LINE,
    NONE,
    OF_SALE,
    PENDING,
    POSTED,
    RETURNED,
    SERIAL,
    STATE,
)
from engine.kernels.life import add_hash, drop_hash, remember_resolved, take_slot
from engine.kernels.reserving import next_serial


@jit
def judge_return(cells, lines, head, sku, quantity):
    """Whether so much of a SKU was handed over, at any location, and is not back yet.

    Below zero: whether so much of it is back. `head` is the first line of an order or a sale, or -1.
    """
    if head < 0 or lines[head, STATE] >= H_INCOMING:
        return UNKNOWN_HOLD
    handed_over, out, back, is_in_hold = np.int64(0), np.int64(0), np.int64(0), False
    slot = head
    while slot >= 0:
        handed_over += lines[slot, FULFILLED]
        if cells[lines[slot, CELL], KEY] & LOW32 == sku:
            is_in_hold = True
            out += lines[slot, FULFILLED] - lines[slot, RETURNED]
            back += lines[slot, RETURNED]
        slot = np.int64(lines[slot, NEXT_LINE])
    if handed_over == 0:
        return NOT_FULFILLED
    if not is_in_hold:
        return NOT_IN_HOLD
    return OK if -back <= quantity <= out else EXCEEDS_HOLD


@jit
def take_back(cells, holds, lines, sums, head, sku, quantity):
    """Write down what was judged, in the hold's lines of that SKU from the first one on."""
    counts = is_live(lines[head, STATE])
    if counts:
        drop_hash(holds, lines, sums, head)
    slot, left = head, quantity
    while left != 0:
        if cells[lines[slot, CELL], KEY] & LOW32 == sku:
            units = min(left, np.int64(lines[slot, FULFILLED] - lines[slot, RETURNED]))
            units = max(units, -np.int64(lines[slot, RETURNED]))
            lines[slot, RETURNED] += units
            left -= units
        slot = np.int64(lines[slot, NEXT_LINE])
    if counts:
        add_hash(holds, lines, sums, head)


@jit
def claim_return(cells, holds, lines, hold_index, sums, flags, sku, quantity, hi, lo):
    """CLAIM_RETURN: what comes back elsewhere is written down here, or is not; no stock moves."""
    if flags:
        return INVALID_FLAGS
    status = check_quantity(CLAIM_RETURN, quantity)
    if status != OK:
        return status
    head = find_hold(holds, hold_index, hi, lo)
    status = judge_return(cells, lines, head, sku, quantity)
    if status == OK:
        take_back(cells, holds, lines, sums, head, sku, quantity)
    return status


@inlined
def was_sold(lines, head, row, quantity):
    """Whether a hold is the sale of so much of a cell, whatever has become of that since.

    Nothing but a handover gives a sale a second line: then its id is an order's as well, and NEXT is
    the wheel's.
    """
    if lines[head, SERIAL] >= 0 or lines[head, NEXT_LINE] >= 0:
        return False
    return lines[head, CELL] == row and lines[head, NEXT] == quantity


@jit
def record_sale(holds, lines, hold_index, ring, meta, row, quantity, hi, lo):
    """Remember a sale as a hold of one line that was handed over at once.

    NEXT keeps how much was sold: what is taken back and cancelled is in no other column.
    """
    slot = take_slot(lines, meta)
    holds[slot, ID_HI] = hi
    holds[slot, ID_LO] = lo
    holds[slot, DEADLINE] = 0
    lines[slot, CELL] = row
    lines[slot, PENDING] = 0
    lines[slot, POSTED] = 0
    lines[slot, FULFILLED] = quantity
    lines[slot, NEXT] = quantity
    lines[slot, NEXT_LINE] = NONE
    lines[slot, SERIAL] = next_serial(meta) | OF_SALE
    lines[slot, STATE] = H_FULFILLED
    lines[slot, RETURNED] = 0
    enter(hold_index, id_tag(hi, lo), slot)
    remember_resolved(holds, lines, hold_index, ring, meta, slot)
