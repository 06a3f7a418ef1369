"""How a hold passes from state to state and ends: slots, the ring of resolved ones, expiry."""

import numpy as np

from engine.kernels.cells import touch, trace, trace_swept
from engine.kernels.compiled import inlined, jit
from engine.kernels.hashes import line_hash
from engine.kernels.hold_index import unindex_hold
from engine.kernels.layout import (
    CELL,
    CHANGED,
    DEADLINE,
    EXPIRED,
    FREE,
    FREE_HOLD,
    FULFILLED,
    H_COMMITTED,
    H_EXPIRED,
    H_FULFILLED,
    H_PENDING,
    H_RECEIVED,
    H_RELEASED,
    HOLDS_COMMITTED,
    HOLDS_OPEN,
    HOLDS_USED,
    L0_MASK,
    L1_AT,
    LINE,
    MOVED_RING_COUNT,
    MOVED_RING_HEAD,
    NEXT,
    NEXT_LINE,
    NONE,
    PENDING,
    POSTED,
    PREV,
    RAN_OUT,
    RESERVED,
    RING_COUNT,
    RING_HEAD,
    STATE,
    TICK_BITS,
    WHEEL_COUNT,
    WHEEL_TICK,
)
from engine.kernels.warming import WARM_LINES, warm_bucket
from engine.kernels.wheel import bucket_of, next_event, wheel_put, wheel_spill, wheel_take


@inlined
def take_slot(lines, meta):
    """A free hold slot."""
    slot = meta[FREE_HOLD]
    if slot < 0:
        slot = meta[HOLDS_USED]
        meta[HOLDS_USED] += 1
    else:
        meta[FREE_HOLD] = lines[slot, NEXT]
    return slot


@inlined
def add_hash(holds, lines, sums, head):
    """Put a hold's lines into the state hash."""
    slot = head
    while slot >= 0:
        sums[0] += line_hash(holds, lines, slot)
        slot = np.int64(lines[slot, NEXT_LINE])


@inlined
def drop_hash(holds, lines, sums, head):
    """Take a hold's lines out of the state hash, before they change."""
    slot = head
    while slot >= 0:
        sums[0] -= line_hash(holds, lines, slot)
        slot = np.int64(lines[slot, NEXT_LINE])


@inlined
def forget_hold(holds, lines, hold_index, meta, head):
    """Free the slots of a resolved hold and its id."""
    unindex_hold(holds, hold_index, head)
    slot = head
    while slot >= 0:
        after = np.int64(lines[slot, NEXT_LINE])
        lines[slot, STATE] = FREE
        lines[slot, NEXT] = meta[FREE_HOLD]
        meta[FREE_HOLD] = slot
        slot = after


@inlined
def is_moved(state):
    """Whether goods have moved by a resolved hold, sale or incoming record."""
    return state == H_FULFILLED or state == H_RECEIVED


@inlined
def remember_resolved(holds, lines, hold_index, ring, meta, head):
    """Keep a resolved hold for late calls; the oldest one of its ring goes when that is full.

    What goods have moved by is kept apart: returns need it, and it keeps a sale from being recorded
    twice, long after very many baskets were left.
    """
    size = len(ring) // 2
    begin, first, count = np.int64(0), RING_HEAD, RING_COUNT
    if is_moved(lines[head, STATE]):
        begin, first, count = np.int64(size), MOVED_RING_HEAD, MOVED_RING_COUNT
    if meta[count] == size:
        oldest = np.int64(ring[begin + meta[first]])
        if oldest >= 0:
            forget_hold(holds, lines, hold_index, meta, oldest)
        meta[first] = (meta[first] + 1) % size
        meta[count] -= 1
    at = begin + (meta[first] + meta[count]) % size
    ring[at] = head
    lines[head, PREV] = at
    meta[count] += 1


@inlined
def is_short(lines, head):
    """Whether some of a hold of which nothing is pending ran out, so that it was not all committed."""
    return lines[head, PREV] <= RAN_OUT


@inlined
def ring_place(lines, head):
    """The place in the ring of a resolved hold."""
    at = np.int64(lines[head, PREV])
    return RAN_OUT - at if at <= RAN_OUT else at


@inlined
def revive(lines, ring, meta, head):
    """Make a resolved hold a committed one again; its lines are not in the state hash yet.

    Its place in the ring stays, empty, until it would have been the oldest.
    """
    ring[ring_place(lines, head)] = NONE
    lines[head, PREV] = RAN_OUT if is_short(lines, head) else NONE
    lines[head, STATE] = H_COMMITTED
    meta[HOLDS_COMMITTED] += 1


@inlined
def reopen(holds, lines, wheel, wheel_bits, ring, meta, sums, head, deadline):
    """Make a hold of which nothing is pending a pending one again; what is, comes next."""
    if lines[head, STATE] == H_COMMITTED:
        drop_hash(holds, lines, sums, head)
        meta[HOLDS_COMMITTED] -= 1
    else:
        ring[ring_place(lines, head)] = NONE
    lines[head, STATE] = H_PENDING
    slot = head
    while slot >= 0:
        holds[slot, DEADLINE] = deadline
        slot = np.int64(lines[slot, NEXT_LINE])
    wheel_put(holds, lines, wheel, wheel_bits, meta, head)
    meta[HOLDS_OPEN] += 1
    add_hash(holds, lines, sums, head)


@inlined
def settle(holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, head, ends_as):
    """After a change of a hold's lines: its new state, the wheel, the hash, the ring.

    `ends_as` is the state of a hold of which nothing is left and nothing was fulfilled. Its lines
    must be out of the state hash.
    """
    pending, posted, fulfilled = np.int64(0), np.int64(0), np.int64(0)
    slot = head
    while slot >= 0:
        pending += lines[slot, PENDING]
        posted += lines[slot, POSTED]
        fulfilled += lines[slot, FULFILLED]
        slot = np.int64(lines[slot, NEXT_LINE])
    has_run_out = False
    if pending == 0:  # otherwise it is still H_PENDING and still in the wheel
        has_run_out = is_short(lines, head)
        if lines[head, STATE] == H_PENDING:
            wheel_take(holds, lines, wheel, wheel_bits, meta, head)
            meta[HOLDS_OPEN] -= 1
            meta[HOLDS_COMMITTED] += 1
            has_run_out = ends_as == H_EXPIRED
            lines[head, PREV] = RAN_OUT if has_run_out else NONE
        lines[head, STATE] = H_COMMITTED
        if posted == 0:
            meta[HOLDS_COMMITTED] -= 1
            lines[head, STATE] = H_FULFILLED if fulfilled > 0 else ends_as
    if pending > 0 or posted > 0:
        add_hash(holds, lines, sums, head)
    else:
        remember_resolved(holds, lines, hold_index, ring, meta, head)
        if has_run_out:
            lines[head, PREV] = RAN_OUT - lines[head, PREV]


@jit
def lapse(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head, ends_as
):  # fmt: skip
    """Everything that is pending in a hold goes back to available.

    NEXT of each line, which links nothing once the hold is resolved, keeps how much that was.
    """
    drop_hash(holds, lines, sums, head)
    of_head = lines[head, PENDING]
    slot = head
    while slot >= 0:
        if lines[slot, PENDING] > 0:
            row = lines[slot, CELL]
            touch(cells, touched, meta, sums, row)
            cells[row, RESERVED] -= lines[slot, PENDING]
            meta[CHANGED] |= 1 << RESERVED
            if meta[LINE] >= 0:
                trace(traces, meta, row, -np.int64(lines[slot, PENDING]))
        if slot != head:
            lines[slot, NEXT] = lines[slot, PENDING]
        lines[slot, PENDING] = 0
        slot = np.int64(lines[slot, NEXT_LINE])
    settle(holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, head, ends_as)
    lines[head, NEXT] = of_head


@inlined
def expire(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head
):
    """A hold's deadline has passed."""
    lapse(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head,
        H_EXPIRED,
    )  # fmt: skip
    meta[EXPIRED] += 1


@inlined
def end_for_good(lines, head):
    """A hold that ran out is a released one from now on: it cannot be reserved again."""
    lines[head, PREV] = ring_place(lines, head)
    lines[head, STATE] = H_RELEASED


@inlined
def give_up(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, head,
    for_good,
):  # fmt: skip
    """Release a hold that is pending or has run out; one that is overdue expires first.

    Unless it is `for_good`, what has run out stays so.
    """
    if lines[head, STATE] == H_PENDING:
        if holds[head, DEADLINE] < now:
            expire(
                cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head
            )  # fmt: skip
        else:
            lapse(
                cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head,
                H_RELEASED,
            )  # fmt: skip
    if for_good and lines[head, STATE] == H_EXPIRED:
        end_for_good(lines, head)


@jit
def sweep(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, budget, most
):  # fmt: skip
    """Expire the holds whose deadline is before `now`, tick by tick, oldest first within a tick.

    It ends with the hold with whose lines `budget` of them have expired, and after `most` holds.
    Returns how many expired.
    """
    target = now >> TICK_BITS
    done = spent = 0
    while True:
        tick = meta[WHEEL_TICK]
        slot = np.int64(wheel[tick & L0_MASK, 0])
        warm = done  # how many of this sweep have what they need in the cache
        while slot >= 0:
            after = np.int64(lines[slot, NEXT])
            if holds[slot, DEADLINE] < now:
                if spent >= budget or done == most:
                    return done
                if done == warm:
                    # Not the whole bucket: what thousands of holds need is more than the cache has room for.
                    warm = done + min(WARM_LINES, budget - spent)
                    warm_bucket(cells, holds, lines, hold_index, ring, meta, slot, now, warm - done)
                if lines[slot, NEXT_LINE] < 0 and lines[slot, POSTED] + lines[slot, FULFILLED] == 0:
                    # One line, all of it pending: what `expire` does, without the walks.
                    sums[0] -= line_hash(holds, lines, slot)
                    row = np.int64(lines[slot, CELL])
                    trace_swept(cells, touched, meta, sums, traces, row)
                    cells[row, RESERVED] -= lines[slot, PENDING]
                    meta[CHANGED] |= 1 << RESERVED
                    wheel_take(holds, lines, wheel, wheel_bits, meta, slot)
                    lines[slot, NEXT] = lines[slot, PENDING]
                    lines[slot, PENDING] = 0
                    lines[slot, STATE] = H_EXPIRED
                    meta[HOLDS_OPEN] -= 1
                    meta[EXPIRED] += 1
                    remember_resolved(holds, lines, hold_index, ring, meta, slot)
                    spent += 1
                else:
                    line = slot
                    while line >= 0:
                        if lines[line, PENDING] > 0:
                            row = np.int64(lines[line, CELL])
                            trace_swept(cells, touched, meta, sums, traces, row)
                        line = np.int64(lines[line, NEXT_LINE])
                        spent += 1
                    expire(
                        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta,
                        sums, traces, slot,
                    )  # fmt: skip
                done += 1
            slot = after
        if tick >= target:
            return done
        upcoming = next_event(wheel_bits, tick) if meta[WHEEL_COUNT] > 0 else -1
        if upcoming < 0 or upcoming > target:
            meta[WHEEL_TICK] = target
            continue
        bucket = bucket_of(upcoming, tick)
        meta[WHEEL_TICK] = upcoming
        if bucket >= L1_AT:
            wheel_spill(holds, lines, wheel, wheel_bits, meta, bucket)
