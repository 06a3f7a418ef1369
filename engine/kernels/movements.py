"""Movements: what has changed `on_hand`, for counts that arrive late.

A count that arrives late needs what has moved since its moment. The newest movements stand in a
ring; those of a cell are found by links from the newest one back. Cells whose row numbers are
equal modulo the number of buckets share their links. A link to a movement that the ring has
forgotten is known by its number, so nothing is ever taken out.

A block may have thousands of late counts of one cell, and the cell a million movements. So when one has
walked far, those behind it in the block share one walk: each movement goes to the last of their moments
that it is not before, and what has moved since one of these is the sum from there on.
"""

import numpy as np

from engine.kernels.codes import COUNT
from engine.kernels.compiled import inlined, jit
from engine.kernels.layout import (
    ARRIVED,
    BEFORE,
    CENTRE,
    FORGOTTEN,
    LINE,
    LOW32,
    MOMENT,
    MOVED,
    MOVEMENT_ROOM,
    NOW_NS,
    SINCE,
    SPARE_TALLY,
    TALLY,
    UNITS,
    WHAT,
)

WORTH_A_TALLY = 4  # lines that are looked at in the time of one step back


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
def moved_since(movements, tallies, meta, row, moment):
    """What the movements of a cell since `moment`, those of that very moment too, add up to."""
    line = meta[LINE]
    at = tallies[TALLY, line] - 1
    if at < 0:
        at = np.int64(tallies.shape[1] - SPARE_TALLY)
        tallies[SINCE, at] = 1
        tallies[UNITS, at] = 0
        tallies[SINCE, at + 1] = moment
        tallies[UNITS, at + 1] = 0
        tallies[TALLY, line] = -bring_up(movements, tallies, meta, row, at)
    else:
        bring_up(movements, tallies, meta, row, at)
    units = np.int64(0)
    place = at + tallies[SINCE, at]
    while place > at and tallies[SINCE, place] >= moment:
        units += tallies[UNITS, place]
        place -= 1
    return units


@jit
def bring_up(movements, tallies, meta, row, at):
    """Have a tally know all movements of its cell that are remembered. Returns how many were walked.

    What is forgotten meanwhile was before every count that is still judged: it stays where it is.
    """
    room = meta[MOVEMENT_ROOM]
    gone = max(meta[MOVED] - room, tallies[UNITS, at])
    tallies[UNITS, at] = meta[MOVED]
    first, last = at + 1, at + tallies[SINCE, at]
    earliest = tallies[SINCE, first]
    walked = np.int64(0)
    number = movements[bucket_row(movements, meta, row), row & 3]
    while number > gone:
        slot = number % room
        if movements[slot, ARRIVED] < earliest:
            break  # and so did all before it, and none of them happens after it arrives
        walked += 1
        moment = movements[slot, MOMENT]
        if movements[slot, WHAT] >> 32 == row and moment >= earliest:
            low, high = first, last  # of the moments up to this one, the last
            while low < high:
                middle = (low + high + 1) >> 1
                if tallies[SINCE, middle] <= moment:
                    low = middle
                else:
                    high = middle - 1
            tallies[UNITS, low] += (movements[slot, WHAT] & LOW32) - CENTRE
        number = movements[slot, BEFORE]
    return walked


@jit
def begin_tally(tallies, meta, now, block, i, end, used):
    """After a late count by line i that has walked far: the counts of its cell behind it share a tally.

    To look for them costs less than it has walked, or is left. `used`: entries of `tallies` in use.
    Returns how many are now.
    """
    walked = -tallies[TALLY, i]
    tallies[TALLY, i] = 0
    if WORTH_A_TALLY * walked < end - i:
        return used
    last = used
    for j in range(i + 1, end):
        if (
            block.kind[j] == COUNT
            and block.sku[j] == block.sku[i]
            and block.location[j] == block.location[i]
        ):
            moment = moment_of(now, block.occurred_at_ns[j])
            if moment > meta[FORGOTTEN]:  # or it will be refused
                last += 1
                place = last
                while place > used + 1 and tallies[SINCE, place - 1] > moment:
                    tallies[SINCE, place] = tallies[SINCE, place - 1]
                    place -= 1
                tallies[SINCE, place] = moment
                tallies[UNITS, last] = 0
                tallies[TALLY, j] = used + 1
    if last == used:
        return used
    tallies[SINCE, used] = last - used
    tallies[UNITS, used] = 0
    return last + 1


@jit
def forget_tallies(tallies, lines):
    """Nothing of a block's tallies is known to the next one."""
    for line in range(lines):
        tallies[TALLY, line] = 0


@jit
def rebuild_movement_links(movements, meta):
    """Link the movements of a ring whose links are all zero."""
    for number in range(max(meta[MOVED] - meta[MOVEMENT_ROOM], 0) + 1, meta[MOVED] + 1):
        link_movement(movements, meta, number, number % meta[MOVEMENT_ROOM])
