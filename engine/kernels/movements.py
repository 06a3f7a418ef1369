"""Movements: what has changed `on_hand`, for counts that arrive late.

A count that arrives late needs what has moved since its moment. The newest movements stand in a
ring; those of a cell are found by links from the newest one back. Cells whose row numbers are
equal modulo the number of buckets share their links. A link to a movement that the ring has
forgotten is known by its number, so nothing is ever taken out.
"""

import numpy as np

from engine.kernels.compiled import inlined, jit
from engine.kernels.layout import (
    ARRIVED,
    BEFORE,
    CENTRE,
    FORGOTTEN,
    LOW32,
    MOMENT,
    MOVED,
    MOVEMENT_ROOM,
    NOW_NS,
    WHAT,
)


@inlined
def moment_of(now, occurred_at):
    """When something happened: 0 is now, and what clocks differ by is not the future."""
    return now if occurred_at == 0 else min(occurred_at, now)


@inlined
def is_seen(counted, row, now, moment):
    """Whether a cell's newest count has seen what happened at `moment`, and it moves on_hand no more.

    Nothing of now has been seen, so whatever does not say when it happened looks at no count.
    """
    return moment < now and moment < counted[row]


@inlined
def bucket_row(movements, meta, row):
    """The row in `movements` of a cell's bucket; its word there is `row & 3`."""
    room = meta[MOVEMENT_ROOM]
    buckets = 4 * (len(movements) - room)  # a power of two
    return room + ((row & (buckets - 1)) >> 2)


@inlined
def link_movement(movements, meta, number, slot):
    """Put a movement before all others of its bucket."""
    row = movements[slot, WHAT] >> 32
    bucket = bucket_row(movements, meta, row)
    movements[slot, BEFORE] = movements[bucket, row & 3]
    movements[bucket, row & 3] = number


@inlined
def note_movement(movements, meta, row, units, moment):
    """Remember a change of a cell's on_hand; the oldest one goes when the ring is full."""
    number = meta[MOVED] + 1
    slot = number % meta[MOVEMENT_ROOM]
    if number > meta[MOVEMENT_ROOM]:
        meta[FORGOTTEN] = max(meta[FORGOTTEN], movements[slot, MOMENT])
    meta[MOVED] = number
    movements[slot, MOMENT] = moment
    movements[slot, ARRIVED] = meta[NOW_NS]
    movements[slot, WHAT] = row << 32 | (units + CENTRE)
    link_movement(movements, meta, number, slot)


@jit
def moved_since(movements, meta, row, moment):
    """What the movements of a cell since `moment`, those of that very moment too, add up to."""
    units = np.int64(0)
    room = meta[MOVEMENT_ROOM]
    gone = max(meta[MOVED] - room, 0)
    number = movements[bucket_row(movements, meta, row), row & 3]
    while number > gone:
        slot = number % room
        if movements[slot, ARRIVED] < moment:
            break  # and so did all before it, and none of them happens after it arrives
        if movements[slot, WHAT] >> 32 == row and movements[slot, MOMENT] >= moment:
            units += (movements[slot, WHAT] & LOW32) - CENTRE
        number = movements[slot, BEFORE]
    return units


@jit
def rebuild_movement_links(movements, meta):
    """Link the movements of a ring whose links are all zero."""
    for number in range(max(meta[MOVED] - meta[MOVEMENT_ROOM], 0) + 1, meta[MOVED] + 1):
        link_movement(movements, meta, number, number % meta[MOVEMENT_ROOM])
