"""Calls on a hold: COMMIT, RELEASE, FULFIL, CANCEL, UNFULFIL, of the whole or of parts; EXTEND."""

import numpy as np

from engine.kernels.cells import available, touch, trace
from engine.kernels.checks import check_moment
from engine.kernels.codes import (
    BALANCE_LIMIT,
    CANCEL,
    COMMIT,
    EXCEEDS_HOLD,
    EXTEND,
    FULFIL,
    HOLD_EXPIRED,
    HOLD_RELEASED,
    INSUFFICIENT,
    INVALID_FLAGS,
    INVALID_KIND,
    INVALID_QUANTITY,
    INVALID_TTL,
    LAST_KIND,
    LINKED,
    LINKED_REFUSED,
    MAX_BALANCE,
    MAX_HOLD_LINES,
    MAX_QUANTITY,
    MAX_TTL,
    MIN_TTL,
    NOT_COMMITTED,
    NOT_FULFILLED,
    NOT_IN_HOLD,
    NOT_PENDING,
    NS_PER_MS,
    OK,
    RE_RESERVE,
    RELEASE,
    RELEASE_REST,
    RESERVE,
    SUPERSEDE,
    TOO_LARGE,
    TOO_MANY_LINES,
    UNFULFIL,
    UNKNOWN_HOLD,
)
from engine.kernels.compiled import inlined, jit
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
    H_INCOMING,
    H_PENDING,
    H_RELEASED,
    KEY,
    LINE,
    NEXT,
    NEXT_LINE,
    NONE,
    ON_HAND,
    PENDING,
    POSTED,
    PREV,
    RESERVED,
    RETURNED,
    STATE,
)
from engine.kernels.life import add_hash, drop_hash, end_for_good, expire, is_short, revive, settle
from engine.kernels.movements import is_seen, moment_of, note_movement
from engine.kernels.reserving import buffer_of
from engine.kernels.wheel import wheel_put, wheel_take


@jit
def called_hold(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
):  # fmt: skip
    """The first slot of the hold that an operation names, or -1.

    One that is due but was not swept yet (very many fell due at once) expires here and now.
    """
    head = find_hold(holds, hold_index, hi, lo)
    if head >= 0 and lines[head, STATE] >= H_INCOMING:
        return np.int64(-1)  # an incoming record is no hold
    if head >= 0 and lines[head, STATE] == H_PENDING and holds[head, DEADLINE] < now:
        expire(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head
        )  # fmt: skip
    return head


@inlined
def is_of_parts(kind):
    """Whether `kind` moves units of a hold, of all of it or of a part (`PART_KINDS`)."""
    return (kind >= COMMIT and kind <= CANCEL) or kind == UNFULFIL


@inlined
def is_handover(kind):
    """Whether `kind` tells what has happened to goods, and so may say when (`HANDOVER_KINDS`)."""
    return kind == FULFIL or kind == UNFULFIL


@inlined
def check_hold_call(kind, flags, quantity):
    """The checks of an operation on a hold that do not need the hold."""
    allowed = 0
    if kind == COMMIT:
        allowed = RE_RESERVE if quantity == 0 else RELEASE_REST
    elif kind == RELEASE and quantity == 0:
        allowed = SUPERSEDE
    if flags & ~allowed:
        return INVALID_FLAGS
    if quantity < 0:
        return INVALID_QUANTITY
    if quantity > MAX_QUANTITY:
        return TOO_LARGE
    return OK


@inlined
def check_when(kind, now, occurred_at):
    """Whether a call on a hold can be of that moment; only handovers have one."""
    return check_moment(now, occurred_at) if is_handover(kind) else OK


@inlined
def check_hold_state(lines, kind, head):
    """Whether `kind` can apply to a hold in its state at all."""
    state = lines[head, STATE]
    if state == H_EXPIRED:
        return HOLD_EXPIRED
    if state == H_RELEASED:
        return HOLD_RELEASED
    if kind == FULFIL or kind == CANCEL:
        return OK if state <= H_COMMITTED else NOT_COMMITTED
    if kind == UNFULFIL:
        return OK if state <= H_FULFILLED else NOT_FULFILLED
    if state == H_PENDING:
        return OK
    return HOLD_EXPIRED if kind == COMMIT and is_short(lines, head) else NOT_PENDING


@inlined
def usable(lines, kind, slot):
    """The units of a line that `kind` may move."""
    if kind == COMMIT or kind == RELEASE:
        return np.int64(lines[slot, PENDING])
    if kind == UNFULFIL:
        return np.int64(lines[slot, FULFILLED] - lines[slot, RETURNED])
    return np.int64(lines[slot, POSTED])


@inlined
def move_units(
    cells, touched, counted, movements, lines, meta, sums, now, kind, slot, units, moment
):  # fmt: skip
    """Move units of one line of a hold to their next state.

    What was handed over, or came back of it, leaves on_hand as it is when a count has seen it.
    """
    row = np.int64(lines[slot, CELL])
    touch(cells, touched, meta, sums, row)
    if kind == COMMIT or kind == RELEASE:
        lines[slot, PENDING] -= units
        cells[row, RESERVED] -= units
        meta[CHANGED] |= 1 << RESERVED
        if kind == COMMIT:
            lines[slot, POSTED] += units
            cells[row, COMMITTED] += units
            meta[CHANGED] |= 1 << COMMITTED
    elif kind == UNFULFIL:
        lines[slot, FULFILLED] -= units
        lines[slot, POSTED] += units
        cells[row, COMMITTED] += units
        meta[CHANGED] |= 1 << COMMITTED
    else:
        lines[slot, POSTED] -= units
        cells[row, COMMITTED] -= units
        meta[CHANGED] |= 1 << COMMITTED
        if kind == FULFIL:
            lines[slot, FULFILLED] += units
    if is_handover(kind) and not is_seen(counted, row, now, moment):
        moved = units if kind == UNFULFIL else -units
        cells[row, ON_HAND] += moved
        meta[CHANGED] |= 1 << ON_HAND
        note_movement(movements, meta, row, moved, moment)


@jit
def judge_on_hold(cells, counted, lines, now, kind, key, quantity, head, moment):
    """Whether the hold's lines on `key` (0: all) have the units: (status, row, units to move)."""
    total, elsewhere, row = np.int64(0), np.int64(0), np.int64(-1)
    lowest, highest = np.int64(MAX_BALANCE), np.int64(-MAX_BALANCE)
    slot = head
    while slot >= 0:
        line_row = np.int64(lines[slot, CELL])
        if key == 0 or cells[line_row, KEY] == key:
            row = line_row if row < 0 else row
            total += usable(lines, kind, slot)
            highest = max(highest, cells[line_row, COMMITTED])
            if not is_seen(counted, line_row, now, moment):
                lowest = min(lowest, cells[line_row, ON_HAND])
                highest = max(highest, cells[line_row, ON_HAND])
        else:
            elsewhere += usable(lines, kind, slot)
        slot = np.int64(lines[slot, NEXT_LINE])
    units = total if quantity == 0 else quantity
    if total + elsewhere == 0:
        # A pending hold always has something pending, so that cannot be what is missing.
        return (NOT_FULFILLED if kind == UNFULFIL else NOT_COMMITTED), row, units
    if row < 0:
        return NOT_IN_HOLD, row, units
    if units > total:
        return EXCEEDS_HOLD, row, units
    # All the units against each of the cells, so that several lines on one cell are safe too.
    if kind == FULFIL and lowest - units < -MAX_BALANCE:
        return BALANCE_LIMIT, row, units
    if kind == UNFULFIL and highest + units > MAX_BALANCE:
        return BALANCE_LIMIT, row, units
    return OK, row, units


@jit
def on_hold(
    cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums,
    traces, now, kind, flags, key, quantity, occurred_at, hi, lo,
):  # fmt: skip
    """COMMIT to CANCEL, UNFULFIL: the whole hold, or `quantity` of the lines on one cell.

    Returns (status, row or -1): the row of the first line that the operation is about.
    """
    status = check_hold_call(kind, flags, quantity)
    if status == OK:
        status = check_when(kind, now, occurred_at)
    if status != OK:
        return status, np.int64(-1)
    moment = moment_of(now, occurred_at)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:
        return UNKNOWN_HOLD, np.int64(-1)
    if flags & SUPERSEDE and lines[head, STATE] == H_EXPIRED:
        end_for_good(lines, head)
        return OK, np.int64(lines[head, CELL])
    status = check_hold_state(lines, kind, head)
    if status != OK:
        return status, np.int64(lines[head, CELL])
    if quantity == 0:
        key = np.int64(0)
    elif key == 0 and lines[head, NEXT_LINE] >= 0:
        key = np.int64(NONE)  # a part of several lines needs the name of its cell
    status, row, left = judge_on_hold(
        cells, counted, lines, now, kind, key, quantity, head, moment
    )  # fmt: skip
    if status != OK:
        return status, row

    if lines[head, STATE] == H_FULFILLED:
        revive(lines, ring, meta, head)
    else:
        drop_hash(holds, lines, sums, head)
    slot = head
    while slot >= 0:
        if key == 0 or cells[lines[slot, CELL], KEY] == key:
            units = min(left, usable(lines, kind, slot))
            if units > 0:
                move_units(
                    cells, touched, counted, movements, lines, meta, sums, now, kind, slot, units, moment
                )  # fmt: skip
                trace(traces, meta, np.int64(lines[slot, CELL]), units)
                left -= units
        if flags & RELEASE_REST and lines[slot, PENDING] > 0:
            # Whatever is still pending in a matching line is beyond the quantity: it is rest too.
            rest = np.int64(lines[slot, PENDING])
            move_units(
                cells, touched, counted, movements, lines, meta, sums, now, RELEASE, slot, rest, moment
            )  # fmt: skip
            trace(traces, meta, np.int64(lines[slot, CELL]), -rest)
        slot = np.int64(lines[slot, NEXT_LINE])
    settle(
        holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, head,
        H_RELEASED if kind == RELEASE else H_CANCELLED,
    )  # fmt: skip
    return status, row


@inlined
def check_part(block, now, first, i, end, last_line):
    """The checks of a call on a part of a hold that is one of the linked ones [first, end)."""
    kind, flags, quantity = np.int64(block.kind[i]), np.int64(block.flags[i]), block.quantity[i]
    if kind < RESERVE or kind > LAST_KIND:
        return INVALID_KIND
    if (
        kind != block.kind[first]
        or block.hold_hi[i] != block.hold_hi[first]
        or block.hold_lo[i] != block.hold_lo[first]
    ):
        return INVALID_FLAGS
    if flags & ~(LINKED | RELEASE_REST):
        return INVALID_FLAGS
    if (i == last_line and flags & LINKED) or (i < end - 1 and flags & RELEASE_REST):
        return INVALID_FLAGS
    status = check_hold_call(kind, flags & ~LINKED, quantity)
    if status == OK and quantity == 0:
        return INVALID_QUANTITY
    return check_when(kind, now, block.occurred_at_ns[i]) if status == OK else status


@inlined
def part_key(cells, lines, block, head, i):
    """The key of the cell that a part of a hold is of; NONE if it does not say which of several."""
    key = np.int64(block.location[i]) << 32 | np.int64(block.sku[i])
    if key == 0:
        is_only = lines[head, NEXT_LINE] < 0
        key = cells[lines[head, CELL], KEY] if is_only else np.int64(NONE)
    return key


@jit
def judge_parts(
    cells, touched, counted, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
    block, first, end, last_line, rows,
):  # fmt: skip
    """Find the first of the linked calls [first, end) that must be refused: (line or -1, its status).

    The demand of lines on one cell is summed. `rows[i]` becomes the row of line i.
    """
    kind, head = np.int64(block.kind[first]), np.int64(-1)
    for i in range(first, end):
        status = check_part(block, now, first, i, end, last_line)
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
        status = check_hold_state(lines, kind, head)
        if status == OK:
            key, units = part_key(cells, lines, block, head, i), block.quantity[i]
            for j in range(first, i):
                if part_key(cells, lines, block, head, j) == key:
                    units += block.quantity[j]
            status, rows[i], _ = judge_on_hold(
                cells, counted, lines, now, kind, key, units, head, moment_of(now, block.occurred_at_ns[i])
            )  # fmt: skip
        if end - first > MAX_HOLD_LINES and (status == OK or status > TOO_MANY_LINES):
            status = TOO_MANY_LINES
        if status != OK:
            return i, status
    return np.int64(-1), OK


@jit
def on_parts(
    cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums,
    traces, now, block, first, end, last_line, rows, out_status,
):  # fmt: skip
    """The linked calls [first, end) on parts of one hold: all or none.

    What is judged together can be done one by one: each leaves the next ones their units, and with
    them the hold in a state in which they can be moved.
    """
    rows[first:end] = -1
    bad, status = judge_parts(
        cells, touched, counted, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
        now, block, first, end, last_line, rows,
    )  # fmt: skip
    if bad >= 0:
        out_status[first:end] = LINKED_REFUSED
        out_status[bad] = status
        return
    for i in range(first, end):
        meta[LINE] = i
        out_status[i], rows[i] = on_hold(
            cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta,
            sums, traces, now, np.int64(block.kind[i]), np.int64(block.flags[i]) & ~LINKED,
            np.int64(block.location[i]) << 32 | np.int64(block.sku[i]), block.quantity[i],
            block.occurred_at_ns[i], block.hold_hi[i], block.hold_lo[i],
        )  # fmt: skip


@jit
def reserve_again(
    cells, touched, holds, lines, ring, places, buffers, meta, sums, traces, channel, head
):  # fmt: skip
    """Commit an expired hold if the channel can have all that lapsed. Returns (status, row).

    As in an order, what one line takes is not there for the next.
    """
    short, status = np.int64(-1), OK
    slot = head
    while slot >= 0 and short < 0:
        row, units = np.int64(lines[slot, CELL]), np.int64(lines[slot, NEXT])
        if units > 0:
            status, kept = buffer_of(places, buffers, cells[row, KEY] >> 32, channel)
            if status == OK and available(cells, row) - kept < units:
                status = INSUFFICIENT
        if status != OK:
            short = row
        else:
            cells[row, RESERVED] += units
            slot = np.int64(lines[slot, NEXT_LINE])
    behind = head
    while behind != slot:
        cells[lines[behind, CELL], RESERVED] -= lines[behind, NEXT]
        behind = np.int64(lines[behind, NEXT_LINE])
    if short >= 0:
        return status, short
    revive(lines, ring, meta, head)
    lines[head, PREV] = NONE  # all of it is committed then
    trace(traces, meta, np.int64(lines[head, CELL]), 0)  # says that nothing was pending
    slot = head
    while slot >= 0:
        row = np.int64(lines[slot, CELL])
        touch(cells, touched, meta, sums, row)
        lines[slot, POSTED] = lines[slot, NEXT]
        cells[row, COMMITTED] += lines[slot, NEXT]
        if lines[slot, NEXT] > 0:
            trace(traces, meta, row, np.int64(lines[slot, NEXT]))
        slot = np.int64(lines[slot, NEXT_LINE])
    meta[CHANGED] |= 1 << COMMITTED
    add_hash(holds, lines, sums, head)
    return OK, np.int64(lines[head, CELL])


@jit
def commit_late(
    cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring, places,
    buffers, meta, sums, traces, now, flags, quantity, channel, hi, lo,
):  # fmt: skip
    """COMMIT of a whole hold that is reserved again for the channel if it has run out: (status, row)."""
    if check_hold_call(COMMIT, flags, quantity) == OK:
        head = called_hold(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
        )  # fmt: skip
        if head >= 0 and lines[head, STATE] == H_EXPIRED:
            return reserve_again(
                cells, touched, holds, lines, ring, places, buffers, meta, sums, traces, channel, head
            )  # fmt: skip
    return on_hold(
        cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums,
        traces, now, COMMIT, flags, np.int64(0), quantity, np.int64(0), hi, lo,
    )  # fmt: skip


@jit
def extend(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
    now, flags, ttl_ms, hi, lo,
):  # fmt: skip
    """EXTEND: a later deadline; an earlier one changes nothing. Returns (status, row or -1).

    A hold whose deadline changes is the last to come to its new tick.
    """
    if flags:
        return INVALID_FLAGS, np.int64(-1)
    if ttl_ms < MIN_TTL or ttl_ms > MAX_TTL:
        return INVALID_TTL, np.int64(-1)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:
        return UNKNOWN_HOLD, head
    status = check_hold_state(lines, EXTEND, head)
    deadline = now + ttl_ms * NS_PER_MS
    if status == OK and deadline > holds[head, DEADLINE]:
        drop_hash(holds, lines, sums, head)
        wheel_take(holds, lines, wheel, wheel_bits, meta, head)
        slot = head
        while slot >= 0:
            holds[slot, DEADLINE] = deadline
            if lines[slot, PENDING] > 0:
                trace(traces, meta, np.int64(lines[slot, CELL]), np.int64(lines[slot, PENDING]))
            slot = np.int64(lines[slot, NEXT_LINE])
        wheel_put(holds, lines, wheel, wheel_bits, meta, head)
        add_hash(holds, lines, sums, head)
    return status, np.int64(lines[head, CELL])
