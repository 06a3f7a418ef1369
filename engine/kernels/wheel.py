"""The expiry wheel: pending holds by deadline; see `layout` for its three levels."""

import numpy as np

from engine.kernels.compiled import inlined, jit
from engine.kernels.layout import (
    DEADLINE,
    L0_BITS,
    L0_MASK,
    L0_SIZE,
    L1_AT,
    L1_BITS,
    L1_SIZE,
    L2_AT,
    L2_BITS,
    L2_SIZE,
    NEXT,
    NONE,
    PREV,
    TICK_BITS,
    U0,
    U1,
    WHEEL_COUNT,
    WHEEL_SLOTS,
    WHEEL_TICK,
)


@inlined
def bucket_of(tick, at_tick):
    """The bucket of a tick by the wheel's levels, as seen from the tick the wheel stands at.

    The level is that of the highest digit in which the two differ.
    """
    if tick >> L0_BITS == at_tick >> L0_BITS:
        return tick & L0_MASK
    tick >>= L0_BITS
    at_tick >>= L0_BITS
    if tick >> L1_BITS == at_tick >> L1_BITS:
        return L1_AT + (tick & (L1_SIZE - 1))
    return L2_AT + ((tick >> L1_BITS) & (L2_SIZE - 1))


@inlined
def is_next_turn(tick, at_tick):
    """Whether a tick is in the turn of the first level after this one (and no higher level turns)."""
    turn, now = tick >> L0_BITS, at_tick >> L0_BITS
    return turn == now + 1 and turn >> L1_BITS == now >> L1_BITS


@inlined
def append_to_bucket(lines, wheel, wheel_bits, bucket, slot):
    """Link a hold in as the last of a bucket."""
    tail = wheel[bucket, 1]
    lines[slot, NEXT] = NONE
    lines[slot, PREV] = tail
    wheel[bucket, 1] = slot
    if tail < 0:
        wheel[bucket, 0] = slot
        wheel_bits[bucket >> 6] |= U1 << np.uint64(bucket & 63)
    else:
        lines[tail, NEXT] = slot


@inlined
def wheel_put(holds, lines, wheel, wheel_bits, meta, slot):
    """Append a hold to the bucket of its deadline.

    A hold of the next turn goes where it will be swept, unless others of that turn still wait on
    the second level: then behind those. So all holds of one tick stay in the order they came.
    """
    tick = holds[slot, DEADLINE] >> TICK_BITS
    bucket = bucket_of(tick, meta[WHEEL_TICK])
    if is_next_turn(tick, meta[WHEEL_TICK]) and wheel[bucket, 0] < 0:
        bucket = tick & L0_MASK
    append_to_bucket(lines, wheel, wheel_bits, bucket, slot)
    meta[WHEEL_COUNT] += 1


@inlined
def wheel_take(holds, lines, wheel, wheel_bits, meta, slot):
    """Take a hold out of its bucket."""
    tick = holds[slot, DEADLINE] >> TICK_BITS
    bucket = bucket_of(tick, meta[WHEEL_TICK])
    before, after = lines[slot, PREV], lines[slot, NEXT]
    if (
        is_next_turn(tick, meta[WHEEL_TICK])
        and wheel[bucket, 0] != slot
        and wheel[bucket, 1] != slot
    ):
        bucket = tick & L0_MASK  # or in the middle of the other one, which is then left as it is
    if before >= 0:
        lines[before, NEXT] = after
    else:
        wheel[bucket, 0] = after
    if after >= 0:
        lines[after, PREV] = before
    else:
        wheel[bucket, 1] = before
    if wheel[bucket, 0] < 0:
        wheel_bits[bucket >> 6] &= ~(U1 << np.uint64(bucket & 63))
    meta[WHEEL_COUNT] -= 1


@jit
def tidy(holds, lines, wheel, wheel_bits, meta, most):
    """Move up to `most` holds of the next turn to where they will be swept; tell whether more wait.

    It changes nothing that anyone can see, so it may be called at any time between two blocks, and
    what is not moved by then is moved when the turn comes.
    """
    begins = ((meta[WHEEL_TICK] >> L0_BITS) + 1) << L0_BITS
    if meta[WHEEL_COUNT] == 0 or not is_next_turn(begins, meta[WHEEL_TICK]):
        return False
    bucket = bucket_of(begins, meta[WHEEL_TICK])
    slot = wheel[bucket, 0]
    while slot >= 0 and most > 0:
        after = lines[slot, NEXT]
        tick = holds[slot, DEADLINE] >> TICK_BITS
        append_to_bucket(lines, wheel, wheel_bits, tick & L0_MASK, slot)
        slot = after
        most -= 1
    wheel[bucket, 0] = slot
    if slot >= 0:
        lines[slot, PREV] = NONE
        return True
    wheel[bucket, 1] = NONE
    wheel_bits[bucket >> 6] &= ~(U1 << np.uint64(bucket & 63))
    return False


@jit
def next_bucket(wheel_bits, first, end):
    """The first bucket in [first, end) that is not empty, or -1."""
    bucket = first
    while bucket < end:
        word = wheel_bits[bucket >> 6] >> np.uint64(bucket & 63)
        if word == U0:
            bucket = ((bucket >> 6) + 1) << 6
            continue
        while word & U1 == U0:
            word >>= U1
            bucket += 1
        return bucket
    return -1


@jit
def next_event(wheel_bits, tick):
    """The next tick after `tick` at which a bucket begins that is not empty, or -1."""
    turn = tick >> L0_BITS
    begins = (turn << L0_BITS) & L0_MASK  # this turn's half of the first level
    bucket = next_bucket(wheel_bits, (tick & L0_MASK) + 1, begins + L0_SIZE)
    if bucket >= 0:
        return (turn << L0_BITS) + bucket - begins
    waiting = next_bucket(wheel_bits, L1_AT + (turn & (L1_SIZE - 1)) + 1, L2_AT)
    upcoming = (turn >> L1_BITS << L1_BITS) + waiting - L1_AT
    if waiting < 0 or upcoming > turn + 1:
        begins ^= L0_SIZE  # the next turn's half
        bucket = next_bucket(wheel_bits, begins, begins + L0_SIZE)
        if bucket >= 0:
            return ((turn + 1) << L0_BITS) + bucket - begins
    if waiting >= 0:
        return upcoming << L0_BITS
    turn >>= L1_BITS
    bucket = next_bucket(wheel_bits, L2_AT + (turn & (L2_SIZE - 1)) + 1, WHEEL_SLOTS)
    if bucket >= 0:
        return ((turn >> L2_BITS << L2_BITS) + bucket - L2_AT) << (L0_BITS + L1_BITS)
    return -1


@jit
def wheel_spill(holds, lines, wheel, wheel_bits, meta, bucket):
    """Put every hold of a bucket of a higher level where it belongs now, in order."""
    slot = wheel[bucket, 0]
    wheel[bucket, 0] = NONE
    wheel[bucket, 1] = NONE
    wheel_bits[bucket >> 6] &= ~(U1 << np.uint64(bucket & 63))
    while slot >= 0:
        after = lines[slot, NEXT]
        meta[WHEEL_COUNT] -= 1
        wheel_put(holds, lines, wheel, wheel_bits, meta, slot)
        slot = after


@jit
def next_deadline(holds, lines, wheel, wheel_bits, meta):
    """A time in ns up to which nothing expires, or -1 when no hold is pending.

    The earliest deadline when it lies in the wheel's own tick; otherwise the beginning of the next
    bucket, which is at or before it.
    """
    if meta[WHEEL_COUNT] == 0:
        return np.int64(-1)
    slot = wheel[meta[WHEEL_TICK] & L0_MASK, 0]
    if slot < 0:
        return np.int64(next_event(wheel_bits, meta[WHEEL_TICK]) << TICK_BITS)
    earliest = holds[slot, DEADLINE]
    while slot >= 0:
        earliest = min(earliest, holds[slot, DEADLINE])
        slot = lines[slot, NEXT]
    return earliest
