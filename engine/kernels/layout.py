"""What the arrays of a shard's state are, and what each word of them means.

The machine, the codecs, snapshots and mirrors go by it too. No rule stands here.
"""

from typing import NamedTuple

import numpy as np

from engine import limits

# Columns of a cell's row in `State.cells`: int64, 80 bytes.
KEY = 0  # location << 32 | sku
ON_HAND, RESERVED, COMMITTED, DAMAGED, QUALITY_CONTROL, SAFETY_STOCK, INCOMING, PRICE = range(1, 9)
VERSION = 9  # the price's version; with TOUCHED added while the row is touched in this block
CELL_WORDS = 10
TOUCHED = 1 << 40

# Columns of a hold line in `State.holds` (int64, 64 bytes) and, for the same memory, in
# `State.lines` (int32). Only a hold's first line is in the index and in the wheel. NEXT and PREV are
# its neighbours in the wheel; of a resolved hold PREV is its place in the ring. Of a hold that is not
# in the wheel it also says whether some of it ran out: see `is_short`. NEXT is then what a line had
# when it lapsed; of a sale, how much was sold.
ID_HI, ID_LO, DEADLINE = range(3)  # of `holds`
CELL, PENDING, POSTED, FULFILLED, NEXT, PREV, NEXT_LINE = range(6, 13)  # of `lines`
SERIAL = 13  # when the hold was made: see `next_serial`; below zero it is a sale's (OF_SALE)
STATE = 14  # of a hold's first line the hold's state; of the others H_PENDING | number << NUMBER_AT
RETURNED = 15  # of FULFILLED
OF_SALE = -1 << 31  # the bit of SERIAL that says so
HOLD_WORDS = 8
NUMBER_AT = 8  # STATE's bit where a line's number in its hold begins
SERIALS = 0x7FFFFFFF  # serial numbers wrap: a hold's age is (meta[HOLDS_MADE] - SERIAL) & SERIALS

# Columns of a movement of stock in `State.movements`: int64, 32 bytes. A movement's number is its
# place among all that there ever were, from 1 on; it stands in the row `number % MOVEMENT_ROOM`.
# BEFORE is the number of the one before it among the cells that share its bucket. Behind the
# MOVEMENT_ROOM rows stand the numbers of each bucket's newest movement, four a row.
MOMENT, ARRIVED, WHAT, BEFORE = range(4)
MOVEMENT_WORDS = 4
CENTRE = 1 << 31  # WHAT is row << 32 | units + CENTRE

# Columns of `State.places` (int32), a row a location id. RULES is its row of `State.buffers`.
OWNED, CURRENCY, SPLIT, PART, RULES = range(5)
PLACE_WORDS = 5

# In `State.buffers`, beside quantities; row 0 is of all locations that no channel has rules for.
NOT_SOLD, NO_RULES = -1, -2

# Slots of `State.meta` (int64).
(
    CELLS,  # rows in use
    HOLDS_USED,  # hold slots ever handed out
    FREE_HOLD,  # first slot of the free list, or NONE
    HOLDS_OPEN,  # holds with something pending
    HOLDS_COMMITTED,  # holds with nothing pending and something committed
    WHEEL_TICK,  # the tick that the expiry wheel stands at
    WHEEL_COUNT,  # holds in the wheel
    RING_HEAD,  # oldest entry of the ring of resolved holds that came to nothing
    RING_COUNT,
    DIRTY,  # rows touched in this block
    SHORTAGES,  # cells whose available is below zero
    SKU_LIMIT,  # SKU ids 1 .. SKU_LIMIT are known
    NOW_NS,  # time of the newest block
    EXPIRED,  # holds expired, since the state began
    CHANGED,  # bits of the words (ON_HAND .. VERSION) that changed in some row in this block
    WARM,  # what the warming loads read: written so that they are not optimised away
    HOLDS_MADE,  # holds ever made, & SERIALS
    MOVED,  # the number of the newest movement
    FORGOTTEN,  # the latest moment of the movements that are remembered no more
    MOVEMENT_ROOM,  # how many movements are remembered at most
    MOVED_RING_HEAD,  # like RING_HEAD, of those by which goods have moved
    MOVED_RING_COUNT,
    LINE,  # the line of the block that is applied now; NONE: the sweep before the first one
    TRACES,  # entries of `State.traces`; more than there is room for: the rest was not kept
) = range(24)
META_SLOTS = 24

# Columns of `State.traces`: what a block did to cells that its lines do not name. The units are
# more than 0 where a line moved them itself, less where they were given back to the cell: by a hold
# that ran out, was superseded, was moved away, or is not needed in full. A trace of no units comes
# before those of a COMMIT that had to reserve again.
TRACED_LINE, TRACED_ROW, TRACED_UNITS = range(3)
TRACE_WORDS = 3

# Rows of `State.tallies`, where late counts that follow each other in a block share what they walk. In
# TALLY stands by line where its tally begins, + 1; 0: it has none; below zero: how far it has walked
# without. A tally's first entry has in SINCE how many moments follow, and in UNITS the number of the newest
# movement in it. Then come the moments in order, and in UNITS what has moved from each up to the next.
TALLY, SINCE, UNITS = range(3)
TALLY_WORDS = 3
SPARE_TALLY = 2  # entries beyond those of the lines: the tally of a count that has none

# States of a hold or of an incoming record (column STATE of its first line).
(
    FREE, H_PENDING, H_COMMITTED, H_FULFILLED, H_CANCELLED, H_RELEASED, H_EXPIRED,
    H_INCOMING, H_RECEIVED, H_DROPPED,
) = range(10)  # fmt: skip

# States of a location in this shard's view (column OWNED).
LOCATION_UNKNOWN, LOCATION_OWNED, LOCATION_ELSEWHERE = range(3)

NONE = -1  # "no slot" in links
RAN_OUT = -2  # in PREV of a hold that is not in the wheel, and below: see `is_short`

# The expiry wheel: three levels of ticks of 2**20 ns: 4.3 s, 3.3 days, and times up to the
# year 2116.
TICK_BITS = limits.EXPIRY_TICK_BITS
L0_BITS, L1_BITS, L2_BITS = 12, 16, 14
L0_SIZE, L1_SIZE, L2_SIZE = 1 << L0_BITS, 1 << L1_BITS, 1 << L2_BITS
# The first level has room for two of its turns: while one is swept, the holds of the next one move
# in, some at a time, so that the turn of a million holds stalls nobody.
L0_MASK = 2 * L0_SIZE - 1
L1_AT, L2_AT = 2 * L0_SIZE, 2 * L0_SIZE + L1_SIZE
WHEEL_SLOTS = 2 * L0_SIZE + L1_SIZE + L2_SIZE

LOW32 = 0xFFFFFFFF
U0, U1 = np.uint64(0), np.uint64(1)
STATE_MASK = (1 << NUMBER_AT) - 1


class State(NamedTuple):
    """The arrays of one shard. Row and slot numbers are indexes into them."""

    cells: np.ndarray  # int64 (cells, CELL_WORDS): never deleted, never re-numbered
    cell_index: np.ndarray  # int64 (2**k,): 31 bits of hash << 32 | row + 1; 0 is empty
    touched: np.ndarray  # int32 (cells,): the rows touched in this block, in order
    counted: np.ndarray  # int64 (cells,): the moment of each cell's newest count, 0: never
    movements: np.ndarray  # int64 (rows, MOVEMENT_WORDS): the newest changes of on_hand
    holds: np.ndarray  # int64 (slots, HOLD_WORDS)
    lines: np.ndarray  # int32 (slots, 2 * HOLD_WORDS): the same memory as `holds`
    hold_index: np.ndarray  # int64 (2**k,): like cell_index, of the holds' first slots
    wheel: np.ndarray  # int32 (WHEEL_SLOTS, 2): first and last hold of each bucket
    wheel_bits: np.ndarray  # uint64 (WHEEL_SLOTS / 64,): the buckets that are not empty
    ring: np.ndarray  # int32: first slots of the resolved holds, oldest first; NONE: revived.
    # Two rings of equal size: what came to nothing, what goods have moved by (see `is_moved`).
    places: np.ndarray  # int32 (locations, PLACE_WORDS)
    buffers: np.ndarray  # int32 (places with rules + 1, MAX_CHANNELS): kept from a channel
    meta: np.ndarray  # int64 (META_SLOTS,)
    traces: np.ndarray  # int64 (room, TRACE_WORDS): of the newest block; see `trace`
    tallies: np.ndarray  # int64 (TALLY_WORDS, lines + SPARE_TALLY): zero in TALLY between blocks
    sums: np.ndarray  # uint64 (1,): sum of the hashes of all cells, counts and live hold lines
