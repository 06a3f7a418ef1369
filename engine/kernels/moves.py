"""MOVE: what a hold has pending goes to another location; alone, or linked lines together."""

import numpy as np

from engine.kernels.cells import available, find_cell, touch, trace
from engine.kernels.checks import check_place, is_elsewhere
from engine.kernels.codes import (
    EXCEEDS_HOLD,
    INSUFFICIENT,
    INVALID_FLAGS,
    INVALID_KIND,
    INVALID_QUANTITY,
    LAST_KIND,
    LINKED,
    LINKED_REFUSED,
    MAX_HOLD_LINES,
    MOVE,
    NOT_IN_HOLD,
    NOT_PENDING,
    OK,
    RESERVE,
    TOO_MANY_LINES,
    UNKNOWN_HOLD,
    UNKNOWN_LOCATION,
    WRONG_SHARD,
)
from engine.kernels.compiled import inlined, jit
from engine.kernels.hold_index import find_hold
from engine.kernels.holds import called_hold, check_hold_call, check_hold_state
from engine.kernels.layout import (
    CELL,
    CHANGED,
    DEADLINE,
    FULFILLED,
    HOLDS_USED,
    KEY,
    LINE,
    LOCATION_ELSEWHERE,
    LOCATION_UNKNOWN,
    LOW32,
    NEXT_LINE,
    NONE,
    OWNED,
    PENDING,
    POSTED,
    RESERVED,
    SERIAL,
)
from engine.kernels.life import add_hash, drop_hash
from engine.kernels.lines import tail_of
from engine.kernels.reserving import buffer_of, hold_line


@inlined
def is_called(cells, lines, slot, sku, source):
    """Whether a MOVE is about a line of its hold; 0 stands for every SKU, for every location."""
    key = cells[lines[slot, CELL], KEY]
    return (sku == 0 or key & LOW32 == sku) and (source == 0 or key >> 32 == source)


@inlined
def movable(cells, lines, slot, sku, location, source):
    """What a MOVE may take of a line: all that is pending, if it is called and not there yet."""
    if cells[lines[slot, CELL], KEY] >> 32 == location:
        return np.int64(0)
    is_meant = is_called(cells, lines, slot, sku, source)
    return np.int64(lines[slot, PENDING]) if is_meant else np.int64(0)


@inlined
def must_split(lines, slot, units):
    """Whether something of a line stays where it is when `units` of it move."""
    return lines[slot, PENDING] > units or lines[slot, POSTED] + lines[slot, FULFILLED] > 0


@inlined
def destination(cells, cell_index, lines, slot, location):
    """The row of a line's SKU at another location, or -1."""
    return find_cell(cells, cell_index, location << 32 | cells[lines[slot, CELL], KEY] & LOW32)


@inlined
def check_destination(places, meta, sku, location):
    """Where a MOVE goes: `check_place`, but SKU 0 is every one."""
    if sku != 0:
        return check_place(places, meta, sku, location)
    if location <= 0 or location >= len(places) or places[location, OWNED] == LOCATION_UNKNOWN:
        return UNKNOWN_LOCATION
    return WRONG_SHARD if places[location, OWNED] == LOCATION_ELSEWHERE else OK


@jit
def check_move(places, buffers, meta, flags, sku, location, quantity, channel):
    """The checks of a MOVE that do not need the hold: (status, what is kept there from the channel)."""
    status = check_hold_call(MOVE, flags, quantity)
    if status == OK:
        status = check_destination(places, meta, sku, location)
    if status != OK:
        return status, np.int64(0)
    return buffer_of(places, buffers, location, channel)


@jit
def judge_move(
    cells, cell_index, lines, places, head, sku, location, quantity, source, kept, more
):  # fmt: skip
    """Whether a pending hold's units can be at another location.

    Returns (status, row, units to move, lines that split): the row is that of the first line's
    destination, or of the one that has too little, where so much of each is `kept` from the channel. The
    hold will have `more` lines than it has.
    """
    pending, total, elsewhere, row = np.int64(0), np.int64(0), False, np.int64(-1)
    first, count, splits = np.int64(-1), np.int64(more), np.int64(0)
    slot = head
    while slot >= 0:
        count += 1
        if is_called(cells, lines, slot, sku, source):
            first = slot if first < 0 else first
            pending += lines[slot, PENDING]
            units = movable(cells, lines, slot, sku, location, source)
            total += units
            if units > 0 and is_elsewhere(places, cells[lines[slot, CELL], KEY] & LOW32, location):
                elsewhere = True
        slot = np.int64(lines[slot, NEXT_LINE])
    if first < 0:
        return NOT_IN_HOLD, row, total, splits
    row = destination(cells, cell_index, lines, first, location)
    if elsewhere:
        return WRONG_SHARD, row, total, splits
    if pending == 0:
        return NOT_PENDING, row, total, splits
    if quantity > total:
        return EXCEEDS_HOLD, row, total, splits
    total = total if quantity == 0 else quantity

    # As in an order, what one line takes is not there for the next.
    short, is_short, left = np.int64(-1), False, total
    slot = head
    while slot >= 0 and left > 0:
        units = min(left, movable(cells, lines, slot, sku, location, source))
        if units > 0:
            left -= units
            splits += 1 if must_split(lines, slot, units) else 0
            to = destination(cells, cell_index, lines, slot, location)
            if not is_short and (to < 0 or available(cells, to) - kept < units):
                short, is_short = to, True
            if to >= 0:
                cells[to, RESERVED] += units
        slot = np.int64(lines[slot, NEXT_LINE])
    behind, left = head, total
    while behind != slot:
        units = min(left, movable(cells, lines, behind, sku, location, source))
        if units > 0:
            left -= units
            to = destination(cells, cell_index, lines, behind, location)
            if to >= 0:
                cells[to, RESERVED] -= units
        behind = np.int64(lines[behind, NEXT_LINE])
    if count + splits > MAX_HOLD_LINES:
        return TOO_MANY_LINES, row, total, splits
    if is_short:
        return INSUFFICIENT, short, total, splits
    return OK, row, total, splits


@jit
def move(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, buffers, meta,
    sums, traces, now, flags, sku, location, quantity, source, channel, hi, lo,
):  # fmt: skip
    """MOVE: what a hold has pending is held at another location. Returns (status, row or -1).

    A line that moves whole changes its cell; of another one a part becomes a line of its own.
    """
    status, kept = check_move(places, buffers, meta, flags, sku, location, quantity, channel)
    if status != OK:
        return status, np.int64(-1)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:
        return UNKNOWN_HOLD, head
    status = check_hold_state(lines, MOVE, head)
    if status != OK:
        return status, np.int64(lines[head, CELL])
    status, row, left, _ = judge_move(
        cells, cell_index, lines, places, head, sku, location, quantity, source, kept, 0
    )  # fmt: skip
    if status != OK:
        return status, row

    drop_hash(holds, lines, sums, head)
    last, number = tail_of(lines, head)
    first_new, end = np.int64(NONE), last
    slot = head
    while left > 0:
        units = min(left, movable(cells, lines, slot, sku, location, source))
        if units > 0:
            left -= units
            to = destination(cells, cell_index, lines, slot, location)
            leaves = np.int64(lines[slot, CELL])
            touch(cells, touched, meta, sums, leaves)
            cells[leaves, RESERVED] -= units
            trace(traces, meta, leaves, -units)
            trace(traces, meta, to, units)
            if must_split(lines, slot, units):
                lines[slot, PENDING] -= units
                new = hold_line(
                    cells, touched, holds, lines, meta, sums, to, units, False,
                    holds[head, DEADLINE], hi, lo, np.int64(lines[head, SERIAL]), number,
                )  # fmt: skip
                number += 1
                if first_new < 0:
                    first_new = new
                else:
                    lines[end, NEXT_LINE] = new
                end = new
            else:
                touch(cells, touched, meta, sums, to)
                cells[to, RESERVED] += units
                lines[slot, CELL] = to
        slot = np.int64(lines[slot, NEXT_LINE])
    meta[CHANGED] |= 1 << RESERVED
    add_hash(holds, lines, sums, head)
    lines[last, NEXT_LINE] = first_new  # in the hash since they were made
    return OK, row


@inlined
def check_linked_move(block, first, i, last_line):
    """The checks of a linked move's kind, flags, SKU and quantity against those of its neighbours.

    Each is of another SKU, so that none of them changes what another is about.
    """
    kind, flags = np.int64(block.kind[i]), np.int64(block.flags[i])
    if kind < RESERVE or kind > LAST_KIND:
        return INVALID_KIND
    is_of_hold = (
        block.hold_hi[i] == block.hold_hi[first] and block.hold_lo[i] == block.hold_lo[first]
    )
    if kind != MOVE or not is_of_hold or flags & ~LINKED or (i == last_line and flags):
        return INVALID_FLAGS
    is_moved = block.sku[i] == 0
    for j in range(first, i):
        is_moved = is_moved or block.sku[j] == block.sku[i]
    if is_moved:
        return INVALID_FLAGS
    return INVALID_QUANTITY if block.quantity[i] == 0 else OK


@jit
def judge_moves(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, buffers, meta,
    sums, traces, now, block, first, end, last_line, rows,
):  # fmt: skip
    """Find the first of the linked moves [first, end) that must be refused: (line or -1, its status)."""
    more, head = np.int64(0), np.int64(-1)
    for i in range(first, end):
        sku, location = np.int64(block.sku[i]), np.int64(block.location[i])
        status, kept = check_linked_move(block, first, i, last_line), np.int64(0)
        if status == OK:
            status, kept = check_move(
                places, buffers, meta, 0, sku, location, block.quantity[i], np.int64(block.channel[i])
            )  # fmt: skip
        if status != OK:
            return i, status
        if i == first:
            head = called_hold(
                cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
                block.hold_hi[i], block.hold_lo[i],
            )  # fmt: skip
        if head < 0:
            return i, UNKNOWN_HOLD
        rows[i] = np.int64(lines[head, CELL])
        status = check_hold_state(lines, MOVE, head)
        if status == OK:
            status, rows[i], _, splits = judge_move(
                cells, cell_index, lines, places, head, sku, location, block.quantity[i],
                block.value[i], kept, more,
            )  # fmt: skip
            more += splits
        if status != OK:
            return i, status
    return np.int64(-1), OK


@jit
def move_parts(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, buffers, meta,
    sums, traces, now, block, first, end, last_line, rows, out_status,
):  # fmt: skip
    """The linked moves [first, end) of SKUs of one hold: all or none."""
    rows[first:end] = -1
    bad, status = judge_moves(
        cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, buffers,
        meta, sums, traces, now, block, first, end, last_line, rows,
    )  # fmt: skip
    if bad >= 0:
        out_status[first:end] = LINKED_REFUSED
        out_status[bad] = status
        return
    for i in range(first, end):
        meta[LINE] = i
        out_status[i], rows[i] = move(
            cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places,
            buffers, meta, sums, traces, now, 0, np.int64(block.sku[i]), np.int64(block.location[i]),
            block.quantity[i], block.value[i], np.int64(block.channel[i]), block.hold_hi[i],
            block.hold_lo[i],
        )  # fmt: skip


@jit
def lines_to_split(holds, lines, hold_index, meta, block):
    """How many lines the MOVEs of a block may make beyond one each: a bound, seen before the block.

    A line splits off its pending part once, and is committed in part by a line of the block or
    before.
    """
    total = np.int64(0)
    for i in range(len(block.kind)):
        if block.kind[i] == MOVE:
            slot = find_hold(holds, hold_index, block.hold_hi[i], block.hold_lo[i])
            while slot >= 0:
                if lines[slot, PENDING] > 0 and lines[slot, POSTED] + lines[slot, FULFILLED] > 0:
                    total += 1
                slot = np.int64(lines[slot, NEXT_LINE])
    return min(total, meta[HOLDS_USED])
