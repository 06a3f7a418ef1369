"""What is on its way: EXPECT, RECEIVE of what was expected, CANCEL_INCOMING.

A record is kept as a hold is: a line a cell, chained, the first one in the index; it is in the state
hash while something is outstanding, in the ring after that, and never in the wheel. Of its lines
PENDING is what is outstanding, FULFILLED what came and POSTED what was expected, and DEADLINE is when,
in ns, or 0. The STATE of each of them says that it is no hold's, so that nobody takes POSTED for what
is promised: the first one's is the record's, the others' is H_INCOMING | number << NUMBER_AT.
"""

import numpy as np

from engine.kernels.cells import enter, find_cell, new_cell, touch, trace
from engine.kernels.checks import check_place
from engine.kernels.codes import (
    BALANCE_LIMIT,
    CANCEL_INCOMING,
    EXCEEDS_HOLD,
    HOLD_EXISTS,
    INVALID_FLAGS,
    INVALID_MOMENT,
    INVALID_QUANTITY,
    MAX_BALANCE,
    MAX_EXPECTED_AT,
    MAX_HOLD_LINES,
    MAX_QUANTITY,
    NOT_IN_HOLD,
    NOT_PENDING,
    NS_PER_MS,
    OK,
    RECEIVE,
    TOO_LARGE,
    TOO_MANY_LINES,
    UNKNOWN_HOLD,
)
from engine.kernels.compiled import inlined, jit
from engine.kernels.facts import check_fact, fact
from engine.kernels.hashes import id_tag
from engine.kernels.hold_index import find_hold
from engine.kernels.holds import check_hold_call
from engine.kernels.layout import (
    CELL,
    CHANGED,
    DEADLINE,
    FULFILLED,
    H_DROPPED,
    H_INCOMING,
    H_RECEIVED,
    ID_HI,
    ID_LO,
    INCOMING,
    KEY,
    NEXT_LINE,
    NONE,
    NUMBER_AT,
    PENDING,
    POSTED,
    RETURNED,
    STATE,
)
from engine.kernels.life import add_hash, drop_hash, remember_resolved, take_slot


@inlined
def record_line(lines, head, row):
    """The line on `row` of a record (-1: it has none), and how many lines the record has."""
    found, count = np.int64(-1), np.int64(0)
    slot = head
    while slot >= 0:
        if lines[slot, CELL] == row:
            found = slot
        count += 1
        slot = np.int64(lines[slot, NEXT_LINE])
    return found, count


@inlined
def new_record_line(holds, lines, meta, head, number, row, hi, lo):
    """A line with nothing in it, behind the others of a record (-1: its first one)."""
    slot = take_slot(lines, meta)
    holds[slot, ID_HI] = hi
    holds[slot, ID_LO] = lo
    holds[slot, DEADLINE] = 0
    for column in range(CELL, RETURNED + 1):
        lines[slot, column] = 0
    lines[slot, CELL] = row
    lines[slot, NEXT_LINE] = NONE
    lines[slot, STATE] = H_INCOMING | number << NUMBER_AT
    if head >= 0:
        holds[slot, DEADLINE] = holds[head, DEADLINE]
        last = head
        while lines[last, NEXT_LINE] >= 0:
            last = np.int64(lines[last, NEXT_LINE])
        lines[last, NEXT_LINE] = slot
    return slot


@inlined
def take_incoming(cells, touched, lines, meta, sums, slot, units):
    """Units of a record's line are not on their way any more."""
    row = np.int64(lines[slot, CELL])
    touch(cells, touched, meta, sums, row)
    lines[slot, PENDING] -= units
    cells[row, INCOMING] -= units
    meta[CHANGED] |= 1 << INCOMING


@inlined
def settle_incoming(holds, lines, hold_index, ring, meta, sums, head):
    """After a change of a record's lines: its new state, the hash, the ring.

    Its lines must be out of the state hash.
    """
    outstanding, came = np.int64(0), np.int64(0)
    slot = head
    while slot >= 0:
        outstanding += lines[slot, PENDING]
        came += lines[slot, FULFILLED]
        slot = np.int64(lines[slot, NEXT_LINE])
    if outstanding > 0:
        add_hash(holds, lines, sums, head)
    else:
        was_live = lines[head, STATE] == H_INCOMING
        lines[head, STATE] = H_RECEIVED if came > 0 else H_DROPPED
        if was_live:
            remember_resolved(holds, lines, hold_index, ring, meta, head)


@inlined
def check_expect(places, meta, flags, sku, location, quantity, expected_at_ms):
    """The checks of EXPECT that need no record."""
    if flags:
        return INVALID_FLAGS
    if quantity <= 0:
        return INVALID_QUANTITY
    if quantity > MAX_QUANTITY:
        return TOO_LARGE
    if expected_at_ms < 0 or expected_at_ms > MAX_EXPECTED_AT:
        return INVALID_MOMENT
    return check_place(places, meta, sku, location)


@inlined
def judge_expect(cells, lines, row, head, slot, count, quantity):
    """Whether a record (-1: a new one) of `count` lines, `slot` the one on `row`, takes more."""
    if head >= 0 and lines[head, STATE] < H_INCOMING:
        return HOLD_EXISTS
    if head >= 0 and lines[head, STATE] > H_INCOMING:
        return NOT_PENDING
    if slot < 0 and count == MAX_HOLD_LINES:
        return TOO_MANY_LINES
    if slot >= 0 and lines[slot, POSTED] + quantity > MAX_QUANTITY:
        return BALANCE_LIMIT
    if row >= 0 and cells[row, INCOMING] + quantity > MAX_BALANCE:
        return BALANCE_LIMIT
    return OK


@jit
def expect(
    cells, cell_index, touched, holds, lines, hold_index, places, meta, sums,
    flags, sku, location, quantity, expected_at_ms, hi, lo,
):  # fmt: skip
    """EXPECT: units of a cell are on their way, as a line of record `hi`, `lo`, which may be new.

    A date that is given is the whole record's from now on. Returns (status, row or -1).
    """
    status = check_expect(places, meta, flags, sku, location, quantity, expected_at_ms)
    if status != OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    head = find_hold(holds, hold_index, hi, lo)
    slot, count = record_line(lines, head, row)
    status = judge_expect(cells, lines, row, head, slot, count, quantity)
    if status != OK:
        return status, row

    if row < 0:
        row = new_cell(cells, cell_index, touched, meta, location << 32 | sku)
    touch(cells, touched, meta, sums, row)
    cells[row, INCOMING] += quantity
    meta[CHANGED] |= 1 << INCOMING
    drop_hash(holds, lines, sums, head)
    if slot < 0:
        slot = new_record_line(holds, lines, meta, head, count, row, hi, lo)
    if head < 0:
        head = slot
        enter(hold_index, id_tag(hi, lo), head)
    lines[slot, PENDING] += quantity
    lines[slot, POSTED] += quantity
    if expected_at_ms > 0:
        slot = head
        while slot >= 0:
            holds[slot, DEADLINE] = expected_at_ms * NS_PER_MS
            slot = np.int64(lines[slot, NEXT_LINE])
    add_hash(holds, lines, sums, head)
    return status, row


@jit
def receive_expected(
    cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index, ring, places,
    meta, sums, now, flags, sku, location, quantity, value, occurred_at, hi, lo,
):  # fmt: skip
    """RECEIVE against a record. It is a fact, so what nobody expected is recorded too.

    Returns (status, row or -1).
    """
    status = check_fact(
        places, meta, now, RECEIVE, flags, sku, location, quantity, value, occurred_at
    )  # fmt: skip
    if status != OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    head = find_hold(holds, hold_index, hi, lo)
    if head < 0 or lines[head, STATE] < H_INCOMING:
        return UNKNOWN_HOLD, row
    slot, count = record_line(lines, head, row)
    if slot < 0 and count == MAX_HOLD_LINES:
        return TOO_MANY_LINES, row
    if slot >= 0 and lines[slot, FULFILLED] + quantity > MAX_QUANTITY:
        return BALANCE_LIMIT, row
    status, row = fact(
        cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index, ring, places,
        meta, sums, now, RECEIVE, flags, sku, location, quantity, value, occurred_at, hi, lo,
    )  # fmt: skip
    if status != OK:
        return status, row

    if lines[head, STATE] == H_INCOMING:
        drop_hash(holds, lines, sums, head)
    if slot < 0:
        slot = new_record_line(holds, lines, meta, head, count, row, hi, lo)
    came = min(quantity, np.int64(lines[slot, PENDING]))
    take_incoming(cells, touched, lines, meta, sums, slot, came)
    lines[slot, FULFILLED] += quantity
    settle_incoming(holds, lines, hold_index, ring, meta, sums, head)
    return status, row


@jit
def cancel_incoming(
    cells, touched, holds, lines, hold_index, ring, meta, sums, traces, flags, key, quantity, hi, lo
):  # fmt: skip
    """CANCEL_INCOMING: all that is outstanding, or `quantity` of the line on one cell.

    Returns (status, row or -1): the row of the first line that it is about.
    """
    status = check_hold_call(CANCEL_INCOMING, flags, quantity)
    if status != OK:
        return status, np.int64(-1)
    head = find_hold(holds, hold_index, hi, lo)
    if head < 0 or lines[head, STATE] < H_INCOMING:
        return UNKNOWN_HOLD, np.int64(-1)
    if lines[head, STATE] > H_INCOMING:
        return NOT_PENDING, np.int64(lines[head, CELL])
    called = head
    if quantity > 0 and (key != 0 or lines[head, NEXT_LINE] >= 0):
        while called >= 0 and cells[lines[called, CELL], KEY] != key:
            called = np.int64(lines[called, NEXT_LINE])
        if called < 0:
            return NOT_IN_HOLD, np.int64(-1)
    row = np.int64(lines[called, CELL])
    if quantity > lines[called, PENDING]:
        return EXCEEDS_HOLD, row

    drop_hash(holds, lines, sums, head)
    if quantity > 0:
        take_incoming(cells, touched, lines, meta, sums, called, quantity)
        trace(traces, meta, row, quantity)
    else:
        while called >= 0:
            units = np.int64(lines[called, PENDING])
            take_incoming(cells, touched, lines, meta, sums, called, units)
            if units > 0:
                trace(traces, meta, np.int64(lines[called, CELL]), units)
            called = np.int64(lines[called, NEXT_LINE])
    settle_incoming(holds, lines, hold_index, ring, meta, sums, head)
    return status, row
