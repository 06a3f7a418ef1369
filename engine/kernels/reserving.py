"""RESERVE: a line alone, and orders of several lines, flags or a channel."""

import numpy as np

from engine.kernels.cells import available, enter, find_cell, touch, trace
from engine.kernels.checks import check_place
from engine.kernels.codes import (
    COMMIT_NOW,
    HOLD_EXISTS,
    INSUFFICIENT,
    INVALID_FLAGS,
    INVALID_KIND,
    INVALID_QUANTITY,
    INVALID_TTL,
    LAST_KIND,
    LINKED,
    LINKED_REFUSED,
    MAX_CHANNELS,
    MAX_HOLD_LINES,
    MAX_QUANTITY,
    MAX_TTL,
    MIN_TTL,
    NOT_IN_CHANNEL,
    NOT_PENDING,
    NS_PER_MS,
    OK,
    PARTIAL,
    RE_RESERVE,
    RESERVE,
    RESERVE_FLAGS,
    SUPERSEDE,
    TOO_LARGE,
    TOO_MANY_LINES,
    UNKNOWN_CHANNEL,
)
from engine.kernels.compiled import inlined, jit
from engine.kernels.hashes import id_tag, line_hash
from engine.kernels.hold_index import find_hold
from engine.kernels.layout import (
    CELL,
    CHANGED,
    COMMITTED,
    DEADLINE,
    FULFILLED,
    H_CANCELLED,
    H_COMMITTED,
    H_EXPIRED,
    H_FULFILLED,
    H_PENDING,
    HOLDS_COMMITTED,
    HOLDS_MADE,
    HOLDS_OPEN,
    ID_HI,
    ID_LO,
    LINE,
    NEXT_LINE,
    NO_RULES,
    NONE,
    NOT_SOLD,
    NOW_NS,
    NUMBER_AT,
    PENDING,
    POSTED,
    PREV,
    RESERVED,
    RETURNED,
    RULES,
    SERIAL,
    SERIALS,
    STATE,
)
from engine.kernels.life import give_up, take_slot
from engine.kernels.wheel import wheel_put


@inlined
def check_reserve(places, meta, sku, location, quantity, ttl_ms):
    """The checks of what is to be reserved that need no other line, no channel and no stock."""
    if quantity <= 0:
        return INVALID_QUANTITY
    if quantity > MAX_QUANTITY:
        return TOO_LARGE
    if ttl_ms < MIN_TTL or ttl_ms > MAX_TTL:
        return INVALID_TTL
    return check_place(places, meta, sku, location)


@inlined
def buffer_of(places, buffers, location, channel):
    """What is kept of each cell of a known location from a channel: (status, units)."""
    if channel == 0:
        return OK, np.int64(0)
    if channel >= MAX_CHANNELS:
        return UNKNOWN_CHANNEL, np.int64(0)
    units = np.int64(buffers[places[location, RULES], channel])
    if units == NO_RULES:
        return UNKNOWN_CHANNEL, units
    return (NOT_IN_CHANNEL if units == NOT_SOLD else OK), units


@inlined
def next_serial(meta):
    """The running number of a new hold."""
    meta[HOLDS_MADE] = (meta[HOLDS_MADE] + 1) & SERIALS
    return meta[HOLDS_MADE]


@inlined
def hold_line(
    cells, touched, holds, lines, meta, sums, row, quantity, posted, deadline, hi, lo, serial, number
):  # fmt: skip
    """Make one line of a hold, `posted` or pending; the caller links it and enters the first one."""
    touch(cells, touched, meta, sums, row)
    word = COMMITTED if posted else RESERVED
    cells[row, word] += quantity
    meta[CHANGED] |= 1 << word
    slot = take_slot(lines, meta)
    holds[slot, ID_HI] = hi
    holds[slot, ID_LO] = lo
    holds[slot, DEADLINE] = deadline
    lines[slot, CELL] = row
    lines[slot, PENDING] = 0 if posted else quantity
    lines[slot, POSTED] = quantity if posted else 0
    lines[slot, FULFILLED] = 0
    lines[slot, PREV] = NONE
    lines[slot, NEXT_LINE] = NONE
    lines[slot, SERIAL] = serial
    first = H_COMMITTED if posted else H_PENDING
    lines[slot, STATE] = first if number == 0 else H_PENDING | number << NUMBER_AT
    lines[slot, RETURNED] = 0
    sums[0] += line_hash(holds, lines, slot)
    return slot


@inlined
def open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, head):
    """Enter the first line of a new hold into the index, and into the wheel if it is pending."""
    enter(hold_index, id_tag(holds[head, ID_HI], holds[head, ID_LO]), head)
    if lines[head, STATE] == H_COMMITTED:
        meta[HOLDS_COMMITTED] += 1
    else:
        wheel_put(holds, lines, wheel, wheel_bits, meta, head)
        meta[HOLDS_OPEN] += 1


@inlined
def reserve_one(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, places, meta, sums,
    now, sku, location, quantity, ttl_ms, hi, lo,
):  # fmt: skip
    """A reserve line without flags, of no channel. Returns (status, row or -1)."""
    status = check_reserve(places, meta, sku, location, quantity, ttl_ms)
    row = np.int64(-1)
    if status == OK:
        row = find_cell(cells, cell_index, location << 32 | sku)
        if find_hold(holds, hold_index, hi, lo) >= 0:
            status = HOLD_EXISTS
        elif row < 0 or available(cells, row) < quantity:
            status = INSUFFICIENT
        else:
            slot = hold_line(
                cells, touched, holds, lines, meta, sums, row, quantity, False,
                now + ttl_ms * NS_PER_MS, hi, lo, next_serial(meta), 0,
            )  # fmt: skip
            open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, slot)
    return status, row


@inlined
def check_order_line(kind, flags, of_first, is_first, is_last):
    """The checks of a line's kind and flags; `of_first` are those of the order's first line."""
    if kind < RESERVE or kind > LAST_KIND:
        return INVALID_KIND
    if kind != RESERVE or flags & ~RESERVE_FLAGS or (is_last and flags & LINKED):
        return INVALID_FLAGS
    if (flags ^ of_first) & COMMIT_NOW or (flags & SUPERSEDE and not is_first):
        return INVALID_FLAGS
    if flags & RE_RESERVE and not flags & SUPERSEDE:
        return INVALID_FLAGS
    return OK


@inlined
def pending_on(holds, lines, meta, head, row):
    """What a hold (-1: none) has pending of a row; nothing if it is overdue."""
    units = np.int64(0)
    if head >= 0 and holds[head, DEADLINE] >= meta[NOW_NS]:
        slot = head
        while slot >= 0:
            if lines[slot, CELL] == row:
                units += lines[slot, PENDING]
            slot = np.int64(lines[slot, NEXT_LINE])
    return units


@jit
def judge_order(
    cells, cell_index, holds, lines, places, buffers, meta, block, first, end, last_line, refusal, old,
    rows, units,
):  # fmt: skip
    """Find the first line of [first, end) that must be refused: (line or -1, its status).

    `refusal` is what the holds say to every line, or OK, and `old` the hold that the order takes the
    place of, or -1: a PARTIAL line gets as much as that one has of its cell, where it asks for it,
    also where the cell is short or is kept from the channel: nobody is worse off with that. The demand of lines on one cell is summed:
    each line's units are added to `reserved` while the next ones are judged, and taken back before
    this returns. `rows[i]` becomes the row of line i and `units[i]` what it gets, which is 0 for a
    PARTIAL line that finds nothing. If none finds anything the answer is (-1, INSUFFICIENT_STOCK).
    """
    of_first = np.int64(block.flags[first])
    bad, status, total = np.int64(-1), OK, np.int64(0)
    i = first
    while i < end and bad < 0:
        flags = np.int64(block.flags[i])
        sku, location = np.int64(block.sku[i]), np.int64(block.location[i])
        quantity, kept = block.quantity[i], np.int64(0)
        ttl_ms = MIN_TTL if flags & COMMIT_NOW else block.value[i]
        status = check_order_line(
            np.int64(block.kind[i]), flags, of_first, i == first, i == last_line
        )
        if status == OK:
            status = check_reserve(places, meta, sku, location, quantity, ttl_ms)
        if status == OK:
            status, kept = buffer_of(places, buffers, location, np.int64(block.channel[i]))
        if status == OK:
            rows[i] = find_cell(cells, cell_index, location << 32 | sku)
            status = refusal
        if status == OK:
            free = available(cells, rows[i]) - kept if rows[i] >= 0 else np.int64(0)
            units[i] = min(quantity, max(free, np.int64(0)))
            if units[i] < quantity:
                if flags & PARTIAL:
                    own = pending_on(holds, lines, meta, old, rows[i])
                    for j in range(first, i):
                        own -= units[j] if rows[j] == rows[i] else 0
                    units[i] = max(units[i], min(quantity, own))
                else:
                    status = INSUFFICIENT
        if status != OK:
            bad = i
        else:
            if units[i] > 0:
                cells[rows[i], RESERVED] += units[i]
                total += units[i]
            i += 1
    for j in range(first, i):
        if units[j] > 0:
            cells[rows[j], RESERVED] -= units[j]
    return bad, INSUFFICIENT if bad < 0 and total == 0 else status


@jit
def find_superseded(holds, lines, hold_index, hi, lo):
    """The hold that an order takes the place of: (status, its first slot or -1).

    One that is resolved or unknown is no hindrance and gives nothing, but one that has run out ends
    for good; one that is committed, wholly or in part, is an order already.
    """
    head = find_hold(holds, hold_index, hi, lo)
    if head < 0:
        return OK, head
    state = lines[head, STATE]
    if state == H_COMMITTED or state == H_FULFILLED or state == H_CANCELLED:
        return NOT_PENDING, np.int64(-1)
    if state != H_PENDING:
        return OK, head if state == H_EXPIRED else np.int64(-1)
    slot = head
    while slot >= 0:
        if lines[slot, POSTED] + lines[slot, FULFILLED] > 0:
            return NOT_PENDING, np.int64(-1)
        slot = np.int64(lines[slot, NEXT_LINE])
    return OK, head


@inlined
def lend(cells, lines, head, sign):
    """Take what a hold has pending out of `reserved` (sign 1), or put it back (-1)."""
    slot = head
    while slot >= 0:
        cells[lines[slot, CELL], RESERVED] -= sign * lines[slot, PENDING]
        slot = np.int64(lines[slot, NEXT_LINE])


@jit
def judge_whole_order(
    cells, cell_index, holds, lines, hold_index, places, buffers, meta, block, first, end,
    last_line, hi, lo, rows, units,
):  # fmt: skip
    """`judge_order`, and what the holds say: (line or -1, its status, the old hold or -1).

    The old hold is the one that the order takes the place of. Nothing is changed but `rows` and
    `units`.
    """
    rows[first:end] = -1
    units[first:end] = 0
    old, refusal = np.int64(-1), OK
    if block.flags[first] & SUPERSEDE:
        refusal, old = find_superseded(
            holds, lines, hold_index, block.hold_hi[first], block.hold_lo[first]
        )  # fmt: skip
    if find_hold(holds, hold_index, hi, lo) >= 0:
        refusal = HOLD_EXISTS
    elif refusal == OK and end - first > MAX_HOLD_LINES:
        refusal = TOO_MANY_LINES
    lend(cells, lines, old, 1)
    bad, status = judge_order(
        cells, cell_index, holds, lines, places, buffers, meta, block, first, end, last_line, refusal,
        old, rows, units,
    )  # fmt: skip
    lend(cells, lines, old, -1)
    return bad, status, old


@jit
def reserve_order(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, buffers,
    meta, sums, traces, now, block, first, end, last_line, hi, lo, rows, units, out_status,
):  # fmt: skip
    """The lines [first, end) of one order at one location: all or nothing, in one hold.

    PARTIAL lines are the exception: they get what there is. `units[i]` is what line i got, if its
    status is OK.
    """
    bad, status, old = judge_whole_order(
        cells, cell_index, holds, lines, hold_index, places, buffers, meta, block, first, end,
        last_line, hi, lo, rows, units,
    )  # fmt: skip
    if bad >= 0:
        out_status[first:end] = LINKED_REFUSED
        out_status[bad] = status
        return
    out_status[first:end] = INSUFFICIENT
    if status != OK:
        return
    if old >= 0:
        meta[LINE] = first
        give_up(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, old,
            block.flags[first] & RE_RESERVE == 0,
        )  # fmt: skip
    serial, number = next_serial(meta), 0
    head, before = np.int64(-1), np.int64(-1)
    posted = block.flags[first] & COMMIT_NOW != 0
    deadline = np.int64(0) if posted else now + block.value[first] * NS_PER_MS
    for i in range(first, end):
        if units[i] == 0:
            continue
        slot = hold_line(
            cells, touched, holds, lines, meta, sums, rows[i], units[i], posted, deadline, hi, lo,
            serial, number,
        )  # fmt: skip
        if block.flags[i] & PARTIAL:
            meta[LINE] = i
            trace(traces, meta, rows[i], units[i])
        if head < 0:
            head = slot
        else:
            lines[before, NEXT_LINE] = slot
        before = slot
        number += 1
        out_status[i] = OK
    open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, head)
