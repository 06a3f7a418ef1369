"""The index of holds, and the hash of everything, computed anew."""

import numpy as np

from engine.kernels.cells import enter
from engine.kernels.compiled import inlined, jit
from engine.kernels.hashes import cell_hash, count_hash, id_tag, line_hash
from engine.kernels.layout import (
    FREE,
    H_COMMITTED,
    H_INCOMING,
    H_PENDING,
    ID_HI,
    ID_LO,
    KEY,
    LOW32,
    NEXT_LINE,
    NUMBER_AT,
    STATE,
    U0,
)


@inlined
def find_hold(holds, hold_index, hi, lo):
    """The first slot of a hold, or -1."""
    tag = id_tag(hi, lo)
    mask = len(hold_index) - 1
    at = tag & mask
    entry = hold_index[at]
    while entry != 0:
        slot = (entry & LOW32) - 1
        if entry >> 32 == tag and holds[slot, ID_LO] == lo and holds[slot, ID_HI] == hi:
            return slot
        at = (at + 1) & mask
        entry = hold_index[at]
    return np.int64(-1)


@inlined
def unindex_hold(holds, hold_index, slot):
    """Remove a hold; entries behind it move up, so that no tombstones gather.

    An entry carries the bits its home position was taken from, so no other id is read.
    """
    mask = len(hold_index) - 1
    at = id_tag(holds[slot, ID_HI], holds[slot, ID_LO]) & mask
    while (hold_index[at] & LOW32) - 1 != slot:
        at = (at + 1) & mask
    ahead = (at + 1) & mask
    while hold_index[ahead] != 0:
        home = (hold_index[ahead] >> 32) & mask
        # An entry moves into the gap unless its home lies behind the gap (cyclically).
        if ((ahead - home) & mask) >= ((ahead - at) & mask):
            hold_index[at] = hold_index[ahead]
            at = ahead
        ahead = (ahead + 1) & mask
    hold_index[at] = 0


@inlined
def is_first(lines, slot):
    """Whether a slot is in use and is the first line of its hold."""
    return lines[slot, STATE] != FREE and lines[slot, STATE] >> NUMBER_AT == 0


@inlined
def is_live(state):
    """Whether a hold in this state is part of the state hash."""
    return state == H_PENDING or state == H_COMMITTED or state == H_INCOMING


@jit
def rebuild_hold_index(holds, lines, used, hold_index):
    """Fill a new, empty index."""
    for slot in range(used):
        if is_first(lines, slot):
            enter(hold_index, id_tag(holds[slot, ID_HI], holds[slot, ID_LO]), slot)


@jit
def total_hash(cells, counted, holds, lines, count, used):
    """The state hash from scratch: of `count` cells and of the live ones of `used` hold lines.

    The caller sees to it that no row is marked as touched. A line is live when its hold is, so
    lines are walked from their first one.
    """
    total = U0
    for row in range(count):
        total += cell_hash(cells, row)
        if counted[row] > 0:
            total += count_hash(cells[row, KEY], counted[row])
    for head in range(used):
        # Of a line that is not the first one the number in STATE makes it no state at all.
        if is_live(lines[head, STATE]):
            slot = np.int64(head)
            while slot >= 0:
                total += line_hash(holds, lines, slot)
                slot = np.int64(lines[slot, NEXT_LINE])
    return total
