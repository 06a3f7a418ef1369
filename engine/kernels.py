"""The rules of stock and price as numba kernels over columns: check, then change.

All compiled code stands in this one module, because numba's cache does not see changes in other
files. A kernel gets every array from outside, allocates nothing, raises nothing and reads no clock.
Callers (`engine.machine`) guarantee the room: as many free rows and hold slots as the block has
lines. `engine.reference` states the same rules in plain dicts; read that first.

Integers: int64 wraps silently here, so limits are checked before anything is added. Only hashes are
uint64, and they are kept apart, because uint64 and int64 meet as float64.

Arrays are passed one by one, not as a tuple: numba counts references of what it takes out of a
tuple, which made a line fifteen times slower. Rows are wide on purpose: a cell or a hold is one or
two cache lines, where a column each cost eight.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from engine import limits
from engine.operations import Disposition, Flag, Kind
from engine.status import Status

# Columns of a cell's row in `State.cells`: int64, 80 bytes.
KEY = 0  # location << 32 | sku
ON_HAND, RESERVED, COMMITTED, DAMAGED, QUALITY_CONTROL, SAFETY_STOCK, INCOMING, PRICE = range(1, 9)
VERSION = 9  # the price's version; with TOUCHED added while the row is touched in this block
CELL_WORDS = 10
TOUCHED = 1 << 40

# Columns of a hold line in `State.holds` (int64, 64 bytes) and, for the same memory, in
# `State.lines` (int32). Only a hold's first line is in the index and in the wheel. NEXT and PREV are
# its neighbours in the wheel; of a resolved hold PREV is its place in the ring.
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
_CENTRE = 1 << 31  # WHAT is row << 32 | units + _CENTRE

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

# States of a hold or of an incoming record (column STATE of its first line).
(
    FREE, H_PENDING, H_COMMITTED, H_FULFILLED, H_CANCELLED, H_RELEASED, H_EXPIRED,
    H_INCOMING, H_RECEIVED, H_DROPPED,
) = range(10)  # fmt: skip

# States of a location in this shard's view (column OWNED).
LOCATION_UNKNOWN, LOCATION_OWNED, LOCATION_ELSEWHERE = range(3)

NONE = -1  # "no slot" in links

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

_RESERVE, _COMMIT, _RELEASE, _FULFIL, _CANCEL = (int(Kind(k)) for k in range(1, 6))
_SALE, _RETURN, _RECEIVE, _ADJUST, _COUNT = (int(Kind(k)) for k in range(6, 11))
_SET_SAFETY_STOCK, _SET_PRICE = int(Kind.SET_SAFETY_STOCK), int(Kind.SET_PRICE)
_CLAIM_RETURN = int(Kind.CLAIM_RETURN)
_INSPECT, _WRITE_OFF = int(Kind.INSPECT), int(Kind.WRITE_OFF)
_EXTEND, _MOVE, _ADD_LINE, _UNFULFIL = (int(Kind(k)) for k in range(13, 17))
_CANCEL_INCOMING, _EXPECT = int(Kind.CANCEL_INCOMING), int(Kind.EXPECT)
_LAST_KIND = int(max(Kind))
_LINKED, _RELEASE_REST = int(Flag.LINKED), int(Flag.RELEASE_REST)
_PARTIAL, _SUPERSEDE = int(Flag.PARTIAL), int(Flag.SUPERSEDE)
_RE_RESERVE, _COMMIT_NOW = int(Flag.RE_RESERVE), int(Flag.COMMIT_NOW)
_RESERVE_FLAGS = _LINKED | _PARTIAL | _SUPERSEDE | _COMMIT_NOW
_OF_DAMAGED, _OF_QUALITY = int(Flag.DAMAGED), int(Flag.QUALITY_CONTROL)
_RESTOCK, _QUALITY, _DAMAGE = (int(Disposition(d)) for d in range(3))

_MAX_QUANTITY, _MAX_BALANCE = limits.MAX_QUANTITY, limits.MAX_BALANCE
_MIN_TTL, _MAX_TTL, _NS_PER_MS = limits.MIN_TTL_MS, limits.MAX_TTL_MS, limits.NS_PER_MS
_MAX_PRICE, _MAX_REASON = limits.MAX_PRICE_MINOR, limits.MAX_REASON
_MAX_HOLD_LINES, _MAX_CHANNELS = limits.MAX_HOLD_LINES, limits.MAX_CHANNELS
_MAX_SKEW_NS = limits.MAX_CLOCK_SKEW_MS * limits.NS_PER_MS
_MAX_EXPECTED_AT = limits.MAX_EXPECTED_AT_MS

_OK = int(Status.OK)
_INVALID_KIND, _INVALID_FLAGS = int(Status.INVALID_KIND), int(Status.INVALID_FLAGS)
_INVALID_QUANTITY, _TOO_LARGE = int(Status.INVALID_QUANTITY), int(Status.QUANTITY_TOO_LARGE)
_INVALID_TTL, _INVALID_DISPOSITION = int(Status.INVALID_TTL), int(Status.INVALID_DISPOSITION)
_INVALID_REASON, _INVALID_PRICE = int(Status.INVALID_REASON), int(Status.INVALID_PRICE)
_INVALID_MOMENT, _MOMENT_TOO_OLD = int(Status.INVALID_MOMENT), int(Status.MOMENT_TOO_OLD)
_EXCEEDS_SET_ASIDE = int(Status.EXCEEDS_SET_ASIDE)
_ALREADY_RECORDED, _NOT_FULFILLED = int(Status.ALREADY_RECORDED), int(Status.HOLD_NOT_FULFILLED)
_UNKNOWN_LOCATION, _UNKNOWN_SKU = int(Status.UNKNOWN_LOCATION), int(Status.UNKNOWN_SKU)
_WRONG_SHARD, _CURRENCY = int(Status.WRONG_SHARD), int(Status.CURRENCY_MISMATCH)
_UNKNOWN_CHANNEL, _NOT_IN_CHANNEL = int(Status.UNKNOWN_CHANNEL), int(Status.NOT_IN_CHANNEL)
_HOLD_EXISTS, _UNKNOWN_HOLD = int(Status.HOLD_EXISTS), int(Status.UNKNOWN_HOLD)
_HOLD_EXPIRED, _HOLD_RELEASED = int(Status.HOLD_EXPIRED), int(Status.HOLD_RELEASED)
_NOT_PENDING, _NOT_COMMITTED = int(Status.HOLD_NOT_PENDING), int(Status.HOLD_NOT_COMMITTED)
_NOT_IN_HOLD, _EXCEEDS_HOLD = int(Status.NOT_IN_HOLD), int(Status.EXCEEDS_HOLD)
_TOO_MANY_LINES, _INSUFFICIENT = int(Status.TOO_MANY_LINES), int(Status.INSUFFICIENT_STOCK)
_BALANCE_LIMIT, _LINKED_REFUSED = int(Status.BALANCE_LIMIT), int(Status.LINKED_LINE_REFUSED)

# Multipliers of the state hash: odd constants from the digits of pi (as in Blowfish's tables).
_M0, _M1 = np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707345)
_M2, _M3 = np.uint64(0xA4093822299F31D1), np.uint64(0x082EFA98EC4E6C89)
_M4, _M5 = np.uint64(0x452821E638D01377), np.uint64(0xBE5466CF34E90C6D)
_M6, _M7 = np.uint64(0xC0AC29B7C97C50DD), np.uint64(0x3F84D5B5B5470917)
_M8, _M9 = np.uint64(0x9216D5D98979FB1B), np.uint64(0xD1310BA698DFB5AD)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33)
_LOW32 = 0xFFFFFFFF
_U0, _U1 = np.uint64(0), np.uint64(1)


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
    sums: np.ndarray  # uint64 (1,): sum of the hashes of all cells, counts and live hold lines


# `_nrt` off: nothing is allocated here, and counting references of arrays that go from one compiled
# function to the next cost 100 ns a line. Small helpers become part of their callers.
_OPTIONS: Any = {"cache": True, "error_model": "numpy", "_nrt": False}
_jit: Any = njit(**_OPTIONS)
_inlined: Any = njit(**_OPTIONS, forceinline=True)


# --- hashes -------------------------------------------------------------------------------------


@_inlined
def mix(x):
    """The finalizer of splitmix64: a bijection of 64 bits; every output bit depends on all input."""
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@_inlined
def cell_hash(cells, row):
    """The hash of one cell's whole content; the row must not be marked as touched."""
    x = np.uint64(cells[row, 0]) * _M0 + np.uint64(cells[row, 1]) * _M1
    x += np.uint64(cells[row, 2]) * _M2 + np.uint64(cells[row, 3]) * _M3
    x += np.uint64(cells[row, 4]) * _M4 + np.uint64(cells[row, 5]) * _M5
    x += np.uint64(cells[row, 6]) * _M6 + np.uint64(cells[row, 7]) * _M7
    x += np.uint64(cells[row, 8]) * _M8 + np.uint64(cells[row, 9]) * _M9
    return mix(x)


@_inlined
def count_hash(key, moment):
    """The hash of when a cell was counted; by itself, so that a reserve need not load it."""
    return mix((np.uint64(key) * _M0 + np.uint64(moment) * _M1) ^ _M8)


@_inlined
def line_hash(holds, lines, slot):
    """The hash of one line of a live hold; its cell goes in as a row number, which never changes."""
    x = np.uint64(holds[slot, ID_HI]) * _M0 + np.uint64(holds[slot, ID_LO]) * _M1
    x += np.uint64(lines[slot, CELL]) * _M2 + np.uint64(holds[slot, DEADLINE]) * _M3
    x += np.uint64(lines[slot, PENDING]) * _M4 + np.uint64(lines[slot, POSTED]) * _M5
    x += np.uint64(lines[slot, FULFILLED]) * _M6 + np.uint64(lines[slot, RETURNED]) * _M7
    x += np.uint64(lines[slot, STATE]) * _M8
    return mix(x ^ _M9)


@_inlined
def key_tag(key):
    """31 bits of a cell key's hash."""
    return np.int64(mix(np.uint64(key)) >> _S33)


@_inlined
def id_tag(hi, lo):
    """31 bits of a hold id's hash."""
    return np.int64(mix(np.uint64(lo) ^ mix(np.uint64(hi))) >> _S33)


# --- cells --------------------------------------------------------------------------------------


@_inlined
def find_cell(cells, cell_index, key):
    """The row of a cell, or -1."""
    tag = key_tag(key)
    mask = len(cell_index) - 1
    at = tag & mask
    entry = cell_index[at]
    while entry != 0:
        row = (entry & _LOW32) - 1
        if entry >> 32 == tag and cells[row, KEY] == key:
            return row
        at = (at + 1) & mask
        entry = cell_index[at]
    return np.int64(-1)


@_inlined
def enter(index, tag, number):
    """Put row or slot `number` into an index under its hash."""
    mask = len(index) - 1
    at = tag & mask
    while index[at] != 0:
        at = (at + 1) & mask
    index[at] = tag << 32 | (number + 1)


@_jit
def rebuild_cell_index(cells, count, cell_index):
    """Fill a new, empty index."""
    for row in range(count):
        enter(cell_index, key_tag(cells[row, KEY]), row)


@_inlined
def available(cells, row):
    """What may be sold of a cell; negative is a shortage."""
    return (
        cells[row, ON_HAND]
        - cells[row, RESERVED]
        - cells[row, COMMITTED]
        - cells[row, DAMAGED]
        - cells[row, QUALITY_CONTROL]
        - cells[row, SAFETY_STOCK]
    )


@_inlined
def touch(cells, touched, meta, sums, row):
    """Before the first change of a row in a block: take its old content out of hash and counts."""
    if cells[row, VERSION] < TOUCHED:
        sums[0] -= cell_hash(cells, row)
        if available(cells, row) < 0:
            meta[SHORTAGES] -= 1
        cells[row, VERSION] += TOUCHED
        touched[meta[DIRTY]] = row
        meta[DIRTY] += 1


@_inlined
def new_cell(cells, cell_index, touched, meta, key):
    """A new row, touched; it has nothing to take out of the hash."""
    row = meta[CELLS]
    meta[CELLS] += 1
    for word in range(CELL_WORDS):
        cells[row, word] = 0
    cells[row, KEY] = key
    cells[row, VERSION] = TOUCHED
    enter(cell_index, key_tag(key), row)
    touched[meta[DIRTY]] = row
    meta[DIRTY] += 1
    return row


@_inlined
def finish_block(cells, touched, meta, sums):
    """Put the new content of every touched row into hash and counts; the rows stay listed."""
    for i in range(meta[DIRTY]):
        row = touched[i]
        cells[row, VERSION] -= TOUCHED
        sums[0] += cell_hash(cells, row)
        if available(cells, row) < 0:
            meta[SHORTAGES] += 1


@_inlined
def trace(traces, meta, row, units):
    """Note what the line that is applied now does to a cell that it does not name by itself."""
    at = meta[TRACES]
    if at < len(traces):
        traces[at, TRACED_LINE] = meta[LINE]
        traces[at, TRACED_ROW] = row
        traces[at, TRACED_UNITS] = units
    meta[TRACES] = at + 1


@_inlined
def trace_swept(cells, touched, meta, sums, traces, row):
    """Touch a row in the sweep. What is given back to it is known at the sweep's end, by cell.

    So the sweep's traces are those of the rows touched first, in the same order.
    """
    at = meta[DIRTY]
    touch(cells, touched, meta, sums, row)
    if meta[DIRTY] > at and at < len(traces):
        traces[at, TRACED_LINE] = NONE
        traces[at, TRACED_ROW] = row
        traces[at, TRACED_UNITS] = -cells[row, RESERVED]


@_inlined
def end_sweep(cells, meta, traces):
    """The sweep is over: what each of its cells has less reserved than before."""
    for at in range(min(meta[DIRTY], len(traces))):
        traces[at, TRACED_UNITS] += cells[traces[at, TRACED_ROW], RESERVED]
    meta[TRACES] = meta[DIRTY]


# --- movements ----------------------------------------------------------------------------------
#
# A count that arrives late needs what has moved since its moment. The newest movements stand in a
# ring; those of a cell are found by links from the newest one back. Cells whose row numbers are
# equal modulo the number of buckets share their links. A link to a movement that the ring has
# forgotten is known by its number, so nothing is ever taken out.


@_inlined
def bucket_row(movements, meta, row):
    """The row in `movements` of a cell's bucket; its word there is `row & 3`."""
    room = meta[MOVEMENT_ROOM]
    buckets = 4 * (len(movements) - room)  # a power of two
    return room + ((row & (buckets - 1)) >> 2)


@_inlined
def link_movement(movements, meta, number, slot):
    """Put a movement before all others of its bucket."""
    row = movements[slot, WHAT] >> 32
    bucket = bucket_row(movements, meta, row)
    movements[slot, BEFORE] = movements[bucket, row & 3]
    movements[bucket, row & 3] = number


@_inlined
def note_movement(movements, meta, row, units, moment):
    """Remember a change of a cell's on_hand; the oldest one goes when the ring is full."""
    number = meta[MOVED] + 1
    slot = number % meta[MOVEMENT_ROOM]
    if number > meta[MOVEMENT_ROOM]:
        meta[FORGOTTEN] = max(meta[FORGOTTEN], movements[slot, MOMENT])
    meta[MOVED] = number
    movements[slot, MOMENT] = moment
    movements[slot, ARRIVED] = meta[NOW_NS]
    movements[slot, WHAT] = row << 32 | (units + _CENTRE)
    link_movement(movements, meta, number, slot)


@_jit
def moved_since(movements, meta, row, moment):
    """What the movements of a cell after `moment` add up to."""
    units = np.int64(0)
    room = meta[MOVEMENT_ROOM]
    gone = max(meta[MOVED] - room, 0)
    number = movements[bucket_row(movements, meta, row), row & 3]
    while number > gone:
        slot = number % room
        if movements[slot, ARRIVED] <= moment:
            break  # and so did all before it, and none of them happens after it arrives
        if movements[slot, WHAT] >> 32 == row and movements[slot, MOMENT] > moment:
            units += (movements[slot, WHAT] & _LOW32) - _CENTRE
        number = movements[slot, BEFORE]
    return units


@_jit
def rebuild_movement_links(movements, meta):
    """Link the movements of a ring whose links are all zero."""
    for number in range(max(meta[MOVED] - meta[MOVEMENT_ROOM], 0) + 1, meta[MOVED] + 1):
        link_movement(movements, meta, number, number % meta[MOVEMENT_ROOM])


# --- the index of holds -------------------------------------------------------------------------


@_inlined
def find_hold(holds, hold_index, hi, lo):
    """The first slot of a hold, or -1."""
    tag = id_tag(hi, lo)
    mask = len(hold_index) - 1
    at = tag & mask
    entry = hold_index[at]
    while entry != 0:
        slot = (entry & _LOW32) - 1
        if entry >> 32 == tag and holds[slot, ID_LO] == lo and holds[slot, ID_HI] == hi:
            return slot
        at = (at + 1) & mask
        entry = hold_index[at]
    return np.int64(-1)


@_inlined
def unindex_hold(holds, hold_index, slot):
    """Remove a hold; entries behind it move up, so that no tombstones gather.

    An entry carries the bits its home position was taken from, so no other id is read.
    """
    mask = len(hold_index) - 1
    at = id_tag(holds[slot, ID_HI], holds[slot, ID_LO]) & mask
    while (hold_index[at] & _LOW32) - 1 != slot:
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


@_inlined
def is_first(lines, slot):
    """Whether a slot is in use and is the first line of its hold."""
    return lines[slot, STATE] != FREE and lines[slot, STATE] >> NUMBER_AT == 0


@_inlined
def is_live(state):
    """Whether a hold in this state is part of the state hash."""
    return state == H_PENDING or state == H_COMMITTED or state == H_INCOMING


@_jit
def rebuild_hold_index(holds, lines, used, hold_index):
    """Fill a new, empty index."""
    for slot in range(used):
        if is_first(lines, slot):
            enter(hold_index, id_tag(holds[slot, ID_HI], holds[slot, ID_LO]), slot)


@_jit
def total_hash(cells, counted, holds, lines, count, used):
    """The state hash from scratch: of `count` cells and of the live ones of `used` hold lines.

    The caller sees to it that no row is marked as touched. A line is live when its hold is, so
    lines are walked from their first one.
    """
    total = _U0
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


# --- the expiry wheel ---------------------------------------------------------------------------


@_inlined
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


@_inlined
def is_next_turn(tick, at_tick):
    """Whether a tick is in the turn of the first level after this one (and no higher level turns)."""
    turn, now = tick >> L0_BITS, at_tick >> L0_BITS
    return turn == now + 1 and turn >> L1_BITS == now >> L1_BITS


@_inlined
def append_to_bucket(lines, wheel, wheel_bits, bucket, slot):
    """Link a hold in as the last of a bucket."""
    tail = wheel[bucket, 1]
    lines[slot, NEXT] = NONE
    lines[slot, PREV] = tail
    wheel[bucket, 1] = slot
    if tail < 0:
        wheel[bucket, 0] = slot
        wheel_bits[bucket >> 6] |= _U1 << np.uint64(bucket & 63)
    else:
        lines[tail, NEXT] = slot


@_inlined
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


@_inlined
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
        wheel_bits[bucket >> 6] &= ~(_U1 << np.uint64(bucket & 63))
    meta[WHEEL_COUNT] -= 1


@_jit
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
    wheel_bits[bucket >> 6] &= ~(_U1 << np.uint64(bucket & 63))
    return False


@_jit
def next_bucket(wheel_bits, first, end):
    """The first bucket in [first, end) that is not empty, or -1."""
    bucket = first
    while bucket < end:
        word = wheel_bits[bucket >> 6] >> np.uint64(bucket & 63)
        if word == _U0:
            bucket = ((bucket >> 6) + 1) << 6
            continue
        while word & _U1 == _U0:
            word >>= _U1
            bucket += 1
        return bucket
    return -1


@_jit
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


@_jit
def wheel_spill(holds, lines, wheel, wheel_bits, meta, bucket):
    """Put every hold of a bucket of a higher level where it belongs now, in order."""
    slot = wheel[bucket, 0]
    wheel[bucket, 0] = NONE
    wheel[bucket, 1] = NONE
    wheel_bits[bucket >> 6] &= ~(_U1 << np.uint64(bucket & 63))
    while slot >= 0:
        after = lines[slot, NEXT]
        meta[WHEEL_COUNT] -= 1
        wheel_put(holds, lines, wheel, wheel_bits, meta, slot)
        slot = after


@_jit
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


# --- warming ------------------------------------------------------------------------------------
#
# A line costs a handful of cache misses, each waiting for the one before. These loops make the same
# loads for many lines, independent of each other, so that the processor overlaps them; then the
# rules find everything in the cache. They run a little ahead: what all lines of a large block need
# does not fit the cache at once.

WARM_LINES = 256  # what they need is 256 * (2 + 1 + 1 + 1) cache lines, 80 KB


@_jit
def warm_lines(cells, cell_index, counted, movements, hold_index, meta, block, hi, lo, start, end):
    """Load what the lines [start, end) of one request will look up: index entries, rows.

    `hi`, `lo` are the id of line `start`.
    """
    seen = np.int64(0)
    cell_mask, hold_mask = len(cell_index) - 1, len(hold_index) - 1
    for i in range(start, end):
        key = np.int64(block.location[i]) << 32 | np.int64(block.sku[i])
        # Of an empty entry the first row, which is there and does no harm.
        row = max((cell_index[key_tag(key) & cell_mask] & _LOW32) - 1, 0)
        seen += cells[row, 0] + cells[row, CELL_WORDS - 1]
        if block.kind[i] == _RESERVE:
            seen += hold_index[id_tag(hi, lo + (i - start)) & hold_mask]
        elif block.kind[i] == _COUNT:
            seen += counted[row]
        else:
            if block.kind[i] > _CANCEL:
                seen += movements[bucket_row(movements, meta, row), row & 3]
            if block.hold_hi[i] | block.hold_lo[i] != 0:
                seen += hold_index[id_tag(block.hold_hi[i], block.hold_lo[i]) & hold_mask]
    meta[WARM] = seen


@_jit
def warm_bucket(cells, holds, lines, hold_index, ring, meta, slot, most):
    """Load what expiring up to `most` holds from `slot` on will touch, in its bucket and the ring."""
    seen = np.int64(0)
    mask = len(hold_index) - 1
    size = len(ring) // 2
    oldest, full = meta[RING_HEAD], meta[RING_COUNT] == size
    while slot >= 0 and most > 0:
        row = lines[slot, CELL]
        seen += cells[row, 0] + cells[row, CELL_WORDS - 1]
        if full:
            gone = ring[oldest]
            if gone >= 0:
                seen += hold_index[id_tag(holds[gone, ID_HI], holds[gone, ID_LO]) & mask]
            oldest = oldest + 1 if oldest + 1 < size else 0
        slot = np.int64(lines[slot, NEXT])
        most -= 1
    meta[WARM] = seen


# --- holds --------------------------------------------------------------------------------------


@_inlined
def take_slot(lines, meta):
    """A free hold slot."""
    slot = meta[FREE_HOLD]
    if slot < 0:
        slot = meta[HOLDS_USED]
        meta[HOLDS_USED] += 1
    else:
        meta[FREE_HOLD] = lines[slot, NEXT]
    return slot


@_inlined
def add_hash(holds, lines, sums, head):
    """Put a hold's lines into the state hash."""
    slot = head
    while slot >= 0:
        sums[0] += line_hash(holds, lines, slot)
        slot = np.int64(lines[slot, NEXT_LINE])


@_inlined
def drop_hash(holds, lines, sums, head):
    """Take a hold's lines out of the state hash, before they change."""
    slot = head
    while slot >= 0:
        sums[0] -= line_hash(holds, lines, slot)
        slot = np.int64(lines[slot, NEXT_LINE])


@_inlined
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


@_inlined
def is_moved(state):
    """Whether goods have moved by a resolved hold, sale or incoming record."""
    return state == H_FULFILLED or state == H_RECEIVED


@_inlined
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


@_inlined
def revive(lines, ring, meta, head):
    """Make a resolved hold a committed one again; its lines are not in the state hash yet.

    Its place in the ring stays, empty, until it would have been the oldest.
    """
    ring[lines[head, PREV]] = NONE
    lines[head, STATE] = H_COMMITTED
    meta[HOLDS_COMMITTED] += 1


@_inlined
def reopen(holds, lines, wheel, wheel_bits, ring, meta, sums, head, deadline):
    """Make a hold of which nothing is pending a pending one again; what is, comes next."""
    if lines[head, STATE] == H_COMMITTED:
        drop_hash(holds, lines, sums, head)
        meta[HOLDS_COMMITTED] -= 1
    else:
        ring[lines[head, PREV]] = NONE
    lines[head, STATE] = H_PENDING
    slot = head
    while slot >= 0:
        holds[slot, DEADLINE] = deadline
        slot = np.int64(lines[slot, NEXT_LINE])
    wheel_put(holds, lines, wheel, wheel_bits, meta, head)
    meta[HOLDS_OPEN] += 1
    add_hash(holds, lines, sums, head)


@_inlined
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
    if pending == 0:  # otherwise it is still H_PENDING and still in the wheel
        if lines[head, STATE] == H_PENDING:
            wheel_take(holds, lines, wheel, wheel_bits, meta, head)
            meta[HOLDS_OPEN] -= 1
            meta[HOLDS_COMMITTED] += 1
        lines[head, STATE] = H_COMMITTED
        if posted == 0:
            meta[HOLDS_COMMITTED] -= 1
            lines[head, STATE] = H_FULFILLED if fulfilled > 0 else ends_as
    if pending > 0 or posted > 0:
        add_hash(holds, lines, sums, head)
    else:
        remember_resolved(holds, lines, hold_index, ring, meta, head)


@_jit
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


@_inlined
def expire(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head
):
    """A hold's deadline has passed."""
    lapse(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head,
        H_EXPIRED,
    )  # fmt: skip
    meta[EXPIRED] += 1


@_inlined
def give_up(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, head
):  # fmt: skip
    """Release a pending hold; one that is overdue expires."""
    if holds[head, DEADLINE] < now:
        expire(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head
        )  # fmt: skip
    else:
        lapse(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, head,
            H_RELEASED,
        )  # fmt: skip


@_jit
def sweep(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, budget
):  # fmt: skip
    """Expire the holds whose deadline is before `now`, tick by tick, oldest first within a tick.

    At most `budget` holds in one call. Returns how many expired.
    """
    target = now >> TICK_BITS
    done = 0
    while True:
        tick = meta[WHEEL_TICK]
        slot = np.int64(wheel[tick & L0_MASK, 0])
        warm = done  # how many of this sweep have what they need in the cache
        while slot >= 0:
            if done == warm and tick < target:
                # Not the whole bucket: what thousands of holds need is more than the cache has room for.
                warm = min(done + WARM_LINES, budget)
                warm_bucket(cells, holds, lines, hold_index, ring, meta, slot, warm - done)
            after = np.int64(lines[slot, NEXT])
            if holds[slot, DEADLINE] < now:
                if done == budget:
                    return done
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
                else:
                    line = slot
                    while line >= 0:
                        if lines[line, PENDING] > 0:
                            row = np.int64(lines[line, CELL])
                            trace_swept(cells, touched, meta, sums, traces, row)
                        line = np.int64(lines[line, NEXT_LINE])
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


# --- reserve ------------------------------------------------------------------------------------


@_inlined
def is_elsewhere(places, sku, location):
    """Whether a cell of a known location belongs to another shard."""
    if places[location, OWNED] == LOCATION_ELSEWHERE:
        return True
    split = places[location, SPLIT]
    return split > 1 and key_tag(sku) % split != places[location, PART]


@_inlined
def check_place(places, meta, sku, location):
    """Whether catalogue and shard map know the cell and give it to this shard."""
    if location <= 0 or location >= len(places) or places[location, OWNED] == LOCATION_UNKNOWN:
        return _UNKNOWN_LOCATION
    if sku <= 0 or sku > meta[SKU_LIMIT]:
        return _UNKNOWN_SKU
    return _WRONG_SHARD if is_elsewhere(places, sku, location) else _OK


@_inlined
def check_reserve(places, meta, sku, location, quantity, ttl_ms):
    """The checks of what is to be reserved that need no other line, no channel and no stock."""
    if quantity <= 0:
        return _INVALID_QUANTITY
    if quantity > _MAX_QUANTITY:
        return _TOO_LARGE
    if ttl_ms < _MIN_TTL or ttl_ms > _MAX_TTL:
        return _INVALID_TTL
    return check_place(places, meta, sku, location)


@_inlined
def buffer_of(places, buffers, location, channel):
    """What is kept of each cell of a known location from a channel: (status, units)."""
    if channel == 0:
        return _OK, np.int64(0)
    if channel >= _MAX_CHANNELS:
        return _UNKNOWN_CHANNEL, np.int64(0)
    units = np.int64(buffers[places[location, RULES], channel])
    if units == NO_RULES:
        return _UNKNOWN_CHANNEL, units
    return (_NOT_IN_CHANNEL if units == NOT_SOLD else _OK), units


@_inlined
def next_serial(meta):
    """The running number of a new hold."""
    meta[HOLDS_MADE] = (meta[HOLDS_MADE] + 1) & SERIALS
    return meta[HOLDS_MADE]


@_inlined
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
    lines[slot, NEXT_LINE] = NONE
    lines[slot, SERIAL] = serial
    first = H_COMMITTED if posted else H_PENDING
    lines[slot, STATE] = first if number == 0 else H_PENDING | number << NUMBER_AT
    lines[slot, RETURNED] = 0
    sums[0] += line_hash(holds, lines, slot)
    return slot


@_inlined
def open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, head):
    """Enter the first line of a new hold into the index, and into the wheel if it is pending."""
    enter(hold_index, id_tag(holds[head, ID_HI], holds[head, ID_LO]), head)
    if lines[head, STATE] == H_COMMITTED:
        meta[HOLDS_COMMITTED] += 1
    else:
        wheel_put(holds, lines, wheel, wheel_bits, meta, head)
        meta[HOLDS_OPEN] += 1


@_inlined
def reserve_one(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, places, meta, sums,
    now, sku, location, quantity, ttl_ms, hi, lo,
):  # fmt: skip
    """A reserve line without flags, of no channel. Returns (status, row or -1)."""
    status = check_reserve(places, meta, sku, location, quantity, ttl_ms)
    row = np.int64(-1)
    if status == _OK:
        row = find_cell(cells, cell_index, location << 32 | sku)
        if find_hold(holds, hold_index, hi, lo) >= 0:
            status = _HOLD_EXISTS
        elif row < 0 or available(cells, row) < quantity:
            status = _INSUFFICIENT
        else:
            slot = hold_line(
                cells, touched, holds, lines, meta, sums, row, quantity, False,
                now + ttl_ms * _NS_PER_MS, hi, lo, next_serial(meta), 0,
            )  # fmt: skip
            open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, slot)
    return status, row


@_inlined
def check_order_line(kind, flags, of_first, is_first, is_last):
    """The checks of a line's kind and flags; `of_first` are those of the order's first line."""
    if kind < _RESERVE or kind > _LAST_KIND:
        return _INVALID_KIND
    if kind != _RESERVE or flags & ~_RESERVE_FLAGS or (is_last and flags & _LINKED):
        return _INVALID_FLAGS
    if (flags ^ of_first) & _COMMIT_NOW or (flags & _SUPERSEDE and not is_first):
        return _INVALID_FLAGS
    return _OK


@_jit
def judge_order(
    cells, cell_index, places, buffers, meta, block, first, end, last_line, refusal, rows, units
):  # fmt: skip
    """Find the first line of [first, end) that must be refused: (line or -1, its status).

    `refusal` is what the holds say to every line, or OK. The demand of lines on one cell is summed:
    each line's units are added to `reserved` while the next ones are judged, and taken back before
    this returns. `rows[i]` becomes the row of line i and `units[i]` what it gets, which is 0 for a
    PARTIAL line that finds nothing. If none finds anything the answer is (-1, INSUFFICIENT_STOCK).
    """
    of_first = np.int64(block.flags[first])
    bad, status, total = np.int64(-1), _OK, np.int64(0)
    i = first
    while i < end and bad < 0:
        flags = np.int64(block.flags[i])
        sku, location = np.int64(block.sku[i]), np.int64(block.location[i])
        quantity, kept = block.quantity[i], np.int64(0)
        ttl_ms = _MIN_TTL if flags & _COMMIT_NOW else block.value[i]
        status = check_order_line(
            np.int64(block.kind[i]), flags, of_first, i == first, i == last_line
        )
        if status == _OK:
            status = check_reserve(places, meta, sku, location, quantity, ttl_ms)
        if status == _OK:
            status, kept = buffer_of(places, buffers, location, np.int64(block.channel[i]))
        if status == _OK:
            rows[i] = find_cell(cells, cell_index, location << 32 | sku)
            status = refusal
        if status == _OK:
            free = available(cells, rows[i]) - kept if rows[i] >= 0 else np.int64(0)
            units[i] = min(quantity, max(free, np.int64(0)))
            if units[i] < quantity and not flags & _PARTIAL:
                status = _INSUFFICIENT
        if status != _OK:
            bad = i
        else:
            if units[i] > 0:
                cells[rows[i], RESERVED] += units[i]
                total += units[i]
            i += 1
    for j in range(first, i):
        if units[j] > 0:
            cells[rows[j], RESERVED] -= units[j]
    return bad, _INSUFFICIENT if bad < 0 and total == 0 else status


@_jit
def find_superseded(holds, lines, hold_index, hi, lo):
    """The hold that an order takes the place of: (status, its first slot or -1).

    One that is resolved or unknown is no hindrance and gives nothing; one that is committed, wholly
    or in part, is an order already.
    """
    head = find_hold(holds, hold_index, hi, lo)
    if head < 0:
        return _OK, head
    state = lines[head, STATE]
    if state == H_COMMITTED or state == H_FULFILLED or state == H_CANCELLED:
        return _NOT_PENDING, np.int64(-1)
    if state != H_PENDING:
        return _OK, np.int64(-1)
    slot = head
    while slot >= 0:
        if lines[slot, POSTED] + lines[slot, FULFILLED] > 0:
            return _NOT_PENDING, np.int64(-1)
        slot = np.int64(lines[slot, NEXT_LINE])
    return _OK, head


@_inlined
def lend(cells, lines, head, sign):
    """Take what a hold has pending out of `reserved` (sign 1), or put it back (-1)."""
    slot = head
    while slot >= 0:
        cells[lines[slot, CELL], RESERVED] -= sign * lines[slot, PENDING]
        slot = np.int64(lines[slot, NEXT_LINE])


@_jit
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
    old, refusal = np.int64(-1), _OK
    if block.flags[first] & _SUPERSEDE:
        refusal, old = find_superseded(
            holds, lines, hold_index, block.hold_hi[first], block.hold_lo[first]
        )  # fmt: skip
    if find_hold(holds, hold_index, hi, lo) >= 0:
        refusal = _HOLD_EXISTS
    elif refusal == _OK and end - first > _MAX_HOLD_LINES:
        refusal = _TOO_MANY_LINES
    lend(cells, lines, old, 1)
    bad, status = judge_order(
        cells, cell_index, places, buffers, meta, block, first, end, last_line, refusal, rows, units
    )  # fmt: skip
    lend(cells, lines, old, -1)
    return bad, status, old


@_jit
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
        out_status[first:end] = _LINKED_REFUSED
        out_status[bad] = status
        return
    out_status[first:end] = _INSUFFICIENT
    if status != _OK:
        return
    if old >= 0:
        meta[LINE] = first
        give_up(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, old
        )  # fmt: skip
    serial, number = next_serial(meta), 0
    head, before = np.int64(-1), np.int64(-1)
    posted = block.flags[first] & _COMMIT_NOW != 0
    deadline = np.int64(0) if posted else now + block.value[first] * _NS_PER_MS
    for i in range(first, end):
        if units[i] == 0:
            continue
        slot = hold_line(
            cells, touched, holds, lines, meta, sums, rows[i], units[i], posted, deadline, hi, lo,
            serial, number,
        )  # fmt: skip
        if block.flags[i] & _PARTIAL:
            meta[LINE] = i
            trace(traces, meta, rows[i], units[i])
        if head < 0:
            head = slot
        else:
            lines[before, NEXT_LINE] = slot
        before = slot
        number += 1
        out_status[i] = _OK
    open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, head)


# --- operations on a hold -----------------------------------------------------------------------


@_jit
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


@_inlined
def is_of_parts(kind):
    """Whether `kind` moves units of a hold, of all of it or of a part (`PART_KINDS`)."""
    return (kind >= _COMMIT and kind <= _CANCEL) or kind == _UNFULFIL


@_inlined
def check_hold_call(kind, flags, quantity):
    """The checks of an operation on a hold that do not need the hold."""
    allowed = 0
    if kind == _COMMIT:
        allowed = _RE_RESERVE if quantity == 0 else _RELEASE_REST
    if flags & ~allowed:
        return _INVALID_FLAGS
    if quantity < 0:
        return _INVALID_QUANTITY
    if quantity > _MAX_QUANTITY:
        return _TOO_LARGE
    return _OK


@_inlined
def check_hold_state(kind, state):
    """Whether `kind` can apply to a hold in this state at all."""
    if state == H_EXPIRED:
        return _HOLD_EXPIRED
    if state == H_RELEASED:
        return _HOLD_RELEASED
    if kind == _FULFIL or kind == _CANCEL:
        return _OK if state <= H_COMMITTED else _NOT_COMMITTED
    if kind == _UNFULFIL:
        return _OK if state <= H_FULFILLED else _NOT_FULFILLED
    return _OK if state == H_PENDING else _NOT_PENDING


@_inlined
def usable(lines, kind, slot):
    """The units of a line that `kind` may move."""
    if kind == _COMMIT or kind == _RELEASE:
        return np.int64(lines[slot, PENDING])
    if kind == _UNFULFIL:
        return np.int64(lines[slot, FULFILLED] - lines[slot, RETURNED])
    return np.int64(lines[slot, POSTED])


@_inlined
def move_units(cells, touched, movements, lines, meta, sums, kind, slot, units):
    """Move units of one line of a hold to their next state."""
    row = np.int64(lines[slot, CELL])
    touch(cells, touched, meta, sums, row)
    if kind == _COMMIT or kind == _RELEASE:
        lines[slot, PENDING] -= units
        cells[row, RESERVED] -= units
        meta[CHANGED] |= 1 << RESERVED
        if kind == _COMMIT:
            lines[slot, POSTED] += units
            cells[row, COMMITTED] += units
            meta[CHANGED] |= 1 << COMMITTED
    elif kind == _UNFULFIL:
        lines[slot, FULFILLED] -= units
        lines[slot, POSTED] += units
        cells[row, COMMITTED] += units
        cells[row, ON_HAND] += units
        meta[CHANGED] |= 1 << COMMITTED | 1 << ON_HAND
        note_movement(movements, meta, row, units, meta[NOW_NS])
    else:
        lines[slot, POSTED] -= units
        cells[row, COMMITTED] -= units
        meta[CHANGED] |= 1 << COMMITTED
        if kind == _FULFIL:
            lines[slot, FULFILLED] += units
            cells[row, ON_HAND] -= units
            meta[CHANGED] |= 1 << ON_HAND
            note_movement(movements, meta, row, -units, meta[NOW_NS])


@_jit
def judge_on_hold(cells, lines, kind, key, quantity, head):
    """Whether the hold's lines on `key` (0: all) have the units: (status, row, units to move)."""
    total, elsewhere, row = np.int64(0), np.int64(0), np.int64(-1)
    lowest, highest = np.int64(_MAX_BALANCE), np.int64(-_MAX_BALANCE)
    slot = head
    while slot >= 0:
        line_row = np.int64(lines[slot, CELL])
        if key == 0 or cells[line_row, KEY] == key:
            row = line_row if row < 0 else row
            total += usable(lines, kind, slot)
            lowest = min(lowest, cells[line_row, ON_HAND])
            highest = max(highest, cells[line_row, ON_HAND], cells[line_row, COMMITTED])
        else:
            elsewhere += usable(lines, kind, slot)
        slot = np.int64(lines[slot, NEXT_LINE])
    units = total if quantity == 0 else quantity
    if total + elsewhere == 0:
        # A pending hold always has something pending, so that cannot be what is missing.
        return (_NOT_FULFILLED if kind == _UNFULFIL else _NOT_COMMITTED), row, units
    if row < 0:
        return _NOT_IN_HOLD, row, units
    if units > total:
        return _EXCEEDS_HOLD, row, units
    # All the units against each of the cells, so that several lines on one cell are safe too.
    if kind == _FULFIL and lowest - units < -_MAX_BALANCE:
        return _BALANCE_LIMIT, row, units
    if kind == _UNFULFIL and highest + units > _MAX_BALANCE:
        return _BALANCE_LIMIT, row, units
    return _OK, row, units


@_jit
def on_hold(
    cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
    now, kind, flags, key, quantity, hi, lo,
):  # fmt: skip
    """COMMIT to CANCEL, UNFULFIL: the whole hold, or `quantity` of the lines on one cell.

    Returns (status, row or -1): the row of the first line that the operation is about.
    """
    status = check_hold_call(kind, flags, quantity)
    if status != _OK:
        return status, np.int64(-1)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:
        return _UNKNOWN_HOLD, np.int64(-1)
    if flags & _RE_RESERVE and lines[head, STATE] == H_EXPIRED:
        return reserve_again(cells, touched, holds, lines, ring, meta, sums, traces, head)
    status = check_hold_state(kind, lines[head, STATE])
    if status != _OK:
        return status, np.int64(lines[head, CELL])
    if quantity == 0:
        key = np.int64(0)
    elif key == 0 and lines[head, NEXT_LINE] >= 0:
        key = np.int64(NONE)  # a part of several lines needs the name of its cell
    status, row, left = judge_on_hold(cells, lines, kind, key, quantity, head)
    if status != _OK:
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
                    cells, touched, movements, lines, meta, sums, kind, slot, units
                )  # fmt: skip
                trace(traces, meta, np.int64(lines[slot, CELL]), units)
                left -= units
        if flags & _RELEASE_REST and lines[slot, PENDING] > 0:
            # Whatever is still pending in a matching line is beyond the quantity: it is rest too.
            rest = np.int64(lines[slot, PENDING])
            move_units(cells, touched, movements, lines, meta, sums, _RELEASE, slot, rest)
            trace(traces, meta, np.int64(lines[slot, CELL]), -rest)
        slot = np.int64(lines[slot, NEXT_LINE])
    settle(
        holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, head,
        H_RELEASED if kind == _RELEASE else H_CANCELLED,
    )  # fmt: skip
    return status, row


@_inlined
def check_part(block, first, i, end, last_line):
    """The checks of a call on a part of a hold that is one of the linked ones [first, end)."""
    kind, flags, quantity = np.int64(block.kind[i]), np.int64(block.flags[i]), block.quantity[i]
    if kind < _RESERVE or kind > _LAST_KIND:
        return _INVALID_KIND
    if (
        kind != block.kind[first]
        or block.hold_hi[i] != block.hold_hi[first]
        or block.hold_lo[i] != block.hold_lo[first]
    ):
        return _INVALID_FLAGS
    if flags & ~(_LINKED | _RELEASE_REST):
        return _INVALID_FLAGS
    if (i == last_line and flags & _LINKED) or (i < end - 1 and flags & _RELEASE_REST):
        return _INVALID_FLAGS
    status = check_hold_call(kind, flags & ~_LINKED, quantity)
    return _INVALID_QUANTITY if status == _OK and quantity == 0 else status


@_inlined
def part_key(cells, lines, block, head, i):
    """The key of the cell that a part of a hold is of; NONE if it does not say which of several."""
    key = np.int64(block.location[i]) << 32 | np.int64(block.sku[i])
    if key == 0:
        is_only = lines[head, NEXT_LINE] < 0
        key = cells[lines[head, CELL], KEY] if is_only else np.int64(NONE)
    return key


@_jit
def judge_parts(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, block,
    first, end, last_line, rows,
):  # fmt: skip
    """Find the first of the linked calls [first, end) that must be refused: (line or -1, its status).

    The demand of lines on one cell is summed. `rows[i]` becomes the row of line i.
    """
    kind, head = np.int64(block.kind[first]), np.int64(-1)
    for i in range(first, end):
        status = check_part(block, first, i, end, last_line)
        if status != _OK:
            return i, status
        if i == first:
            head = called_hold(
                cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
                block.hold_hi[i], block.hold_lo[i],
            )  # fmt: skip
        if head < 0:
            return i, _UNKNOWN_HOLD
        rows[i] = np.int64(lines[head, CELL])
        status = check_hold_state(kind, lines[head, STATE])
        if status == _OK:
            key, units = part_key(cells, lines, block, head, i), block.quantity[i]
            for j in range(first, i):
                if part_key(cells, lines, block, head, j) == key:
                    units += block.quantity[j]
            status, rows[i], _ = judge_on_hold(cells, lines, kind, key, units, head)
        if end - first > _MAX_HOLD_LINES and (status == _OK or status > _TOO_MANY_LINES):
            status = _TOO_MANY_LINES
        if status != _OK:
            return i, status
    return np.int64(-1), _OK


@_jit
def on_parts(
    cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
    block, first, end, last_line, rows, out_status,
):  # fmt: skip
    """The linked calls [first, end) on parts of one hold: all or none.

    What is judged together can be done one by one: each leaves the next ones their units, and with
    them the hold in a state in which they can be moved.
    """
    rows[first:end] = -1
    bad, status = judge_parts(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, block,
        first, end, last_line, rows,
    )  # fmt: skip
    if bad >= 0:
        out_status[first:end] = _LINKED_REFUSED
        out_status[bad] = status
        return
    for i in range(first, end):
        meta[LINE] = i
        out_status[i], rows[i] = on_hold(
            cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta,
            sums, traces, now, np.int64(block.kind[i]), np.int64(block.flags[i]) & ~_LINKED,
            np.int64(block.location[i]) << 32 | np.int64(block.sku[i]), block.quantity[i],
            block.hold_hi[i], block.hold_lo[i],
        )  # fmt: skip


@_jit
def reserve_again(cells, touched, holds, lines, ring, meta, sums, traces, head):
    """Commit an expired hold if all that lapsed is still to be had. Returns (status, row).

    As in an order, what one line takes is not there for the next.
    """
    short = np.int64(-1)
    slot = head
    while slot >= 0 and short < 0:
        row, units = np.int64(lines[slot, CELL]), np.int64(lines[slot, NEXT])
        if units > 0 and available(cells, row) < units:
            short = row
        else:
            cells[row, RESERVED] += units
            slot = np.int64(lines[slot, NEXT_LINE])
    behind = head
    while behind != slot:
        cells[lines[behind, CELL], RESERVED] -= lines[behind, NEXT]
        behind = np.int64(lines[behind, NEXT_LINE])
    if short >= 0:
        return _INSUFFICIENT, short
    revive(lines, ring, meta, head)
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
    return _OK, np.int64(lines[head, CELL])


@_jit
def extend(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
    now, flags, ttl_ms, hi, lo,
):  # fmt: skip
    """EXTEND: a later deadline; an earlier one changes nothing. Returns (status, row or -1).

    A hold whose deadline changes is the last to come to its new tick.
    """
    if flags:
        return _INVALID_FLAGS, np.int64(-1)
    if ttl_ms < _MIN_TTL or ttl_ms > _MAX_TTL:
        return _INVALID_TTL, np.int64(-1)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:
        return _UNKNOWN_HOLD, head
    status = check_hold_state(_EXTEND, lines[head, STATE])
    deadline = now + ttl_ms * _NS_PER_MS
    if status == _OK and deadline > holds[head, DEADLINE]:
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


# --- more lines, other locations ----------------------------------------------------------------


@_inlined
def tail_of(lines, head):
    """The last line of a hold, and how many there are."""
    slot, count = head, 1
    while lines[slot, NEXT_LINE] >= 0:
        slot = np.int64(lines[slot, NEXT_LINE])
        count += 1
    return slot, count


@_jit
def append_line(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, row, quantity,
    deadline, head, hi, lo,
):  # fmt: skip
    """Give a hold one more pending line; `head` is its first one, or -1 when it is new.

    `deadline` counts if it is new, or nothing of it was pending.
    """
    last, number = head, 0
    if head >= 0:
        if lines[head, STATE] == H_PENDING:
            deadline = holds[head, DEADLINE]
        else:
            reopen(holds, lines, wheel, wheel_bits, ring, meta, sums, head, deadline)
        last, number = tail_of(lines, head)
    serial = np.int64(lines[head, SERIAL]) if head >= 0 else next_serial(meta)
    slot = hold_line(
        cells, touched, holds, lines, meta, sums, row, quantity, False, deadline, hi, lo, serial,
        number,
    )  # fmt: skip
    if head >= 0:
        lines[last, NEXT_LINE] = slot
    else:
        open_hold(holds, lines, hold_index, wheel, wheel_bits, meta, slot)


@_jit
def add_line(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, buffers,
    meta, sums, traces, now, flags, sku, location, quantity, ttl_ms, channel, hi, lo,
):  # fmt: skip
    """ADD_LINE: one more line for a pending hold, or the first one of a new hold.

    A hold that was released is pending again with it, as long as a new one would be. Returns
    (status, row or -1).
    """
    if flags:
        return _INVALID_FLAGS, np.int64(-1)
    status, kept = check_reserve(places, meta, sku, location, quantity, ttl_ms), np.int64(0)
    if status == _OK:
        status, kept = buffer_of(places, buffers, location, channel)
    if status != _OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head >= 0:
        if lines[head, STATE] != H_RELEASED:
            status = check_hold_state(_ADD_LINE, lines[head, STATE])
        if status == _OK and tail_of(lines, head)[1] >= _MAX_HOLD_LINES:
            status = _TOO_MANY_LINES
    elif find_hold(holds, hold_index, hi, lo) >= 0:
        status = _UNKNOWN_HOLD  # the id is an incoming record's
    if status == _OK and (row < 0 or available(cells, row) - kept < quantity):
        status = _INSUFFICIENT
    if status != _OK:
        return status, row
    append_line(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, row,
        quantity, now + ttl_ms * _NS_PER_MS, head, hi, lo,
    )  # fmt: skip
    return _OK, row


@_jit
def judge_taker(
    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, block, i,
    end, row,
):  # fmt: skip
    """Whether the hold of line `i`, an ADD_LINE, can take what another hold has of a row: a status."""
    key = np.int64(block.location[i]) << 32 | np.int64(block.sku[i])
    fits = key == cells[row, KEY] and block.quantity[i] == block.quantity[i - 1]
    if not fits or end - i > 1 or block.flags[i] or block.value[i] or block.channel[i]:
        return _INVALID_FLAGS
    hi, lo = block.hold_hi[i], block.hold_lo[i]
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:  # new, or is the id an incoming record's?
        return _UNKNOWN_HOLD if find_hold(holds, hold_index, hi, lo) >= 0 else _OK
    if lines[head, STATE] == H_EXPIRED:
        return _HOLD_EXPIRED
    return _TOO_MANY_LINES if tail_of(lines, head)[1] >= _MAX_HOLD_LINES else _OK


@_jit
def hand_over(
    cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
    block, first, end, last_line, rows, out_status,
):  # fmt: skip
    """A RELEASE that is linked to an ADD_LINE: units go from one pending hold to another.

    They stay reserved, so no stock is judged. A taker of which nothing is pending is pending again,
    or is new, with the deadline of the giver.
    """
    rows[first:end] = -1
    out_status[first:end] = _LINKED_REFUSED
    bad, status = judge_parts(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, block,
        first, first + 1, last_line, rows,
    )  # fmt: skip
    row = rows[first]
    if bad < 0:
        bad = first + 1
        meta[LINE] = bad
        status = judge_taker(
            cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
            block, bad, end, row,
        )  # fmt: skip
    if status != _OK:
        out_status[bad] = status
        return
    meta[LINE] = first
    giver = find_hold(holds, hold_index, block.hold_hi[first], block.hold_lo[first])
    deadline = holds[giver, DEADLINE]
    out_status[first], rows[first] = on_hold(
        cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
        now, _RELEASE, 0, cells[row, KEY], block.quantity[first], block.hold_hi[first],
        block.hold_lo[first],
    )  # fmt: skip
    # Looked up only now: when the giver has ended by this, the taker may be the one forgotten.
    hi, lo = block.hold_hi[first + 1], block.hold_lo[first + 1]
    append_line(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, row,
        block.quantity[first], deadline, find_hold(holds, hold_index, hi, lo), hi, lo,
    )  # fmt: skip
    out_status[first + 1], rows[first + 1] = _OK, row


@_inlined
def is_called(cells, lines, slot, sku, source):
    """Whether a MOVE is about a line of its hold; 0 stands for every SKU, for every location."""
    key = cells[lines[slot, CELL], KEY]
    return (sku == 0 or key & _LOW32 == sku) and (source == 0 or key >> 32 == source)


@_inlined
def movable(cells, lines, slot, sku, location, source):
    """What a MOVE may take of a line: all that is pending, if it is called and not there yet."""
    if cells[lines[slot, CELL], KEY] >> 32 == location:
        return np.int64(0)
    is_meant = is_called(cells, lines, slot, sku, source)
    return np.int64(lines[slot, PENDING]) if is_meant else np.int64(0)


@_inlined
def must_split(lines, slot, units):
    """Whether something of a line stays where it is when `units` of it move."""
    return lines[slot, PENDING] > units or lines[slot, POSTED] + lines[slot, FULFILLED] > 0


@_inlined
def destination(cells, cell_index, lines, slot, location):
    """The row of a line's SKU at another location, or -1."""
    return find_cell(cells, cell_index, location << 32 | cells[lines[slot, CELL], KEY] & _LOW32)


@_jit
def check_move(places, meta, flags, sku, location, quantity):
    """The checks of a MOVE that do not need the hold; SKU 0 is every one."""
    status = check_hold_call(_MOVE, flags, quantity)
    if status != _OK:
        return status
    if sku != 0:
        return check_place(places, meta, sku, location)
    if location <= 0 or location >= len(places) or places[location, OWNED] == LOCATION_UNKNOWN:
        return _UNKNOWN_LOCATION
    return _WRONG_SHARD if places[location, OWNED] == LOCATION_ELSEWHERE else _OK


@_jit
def judge_move(cells, cell_index, lines, places, head, sku, location, quantity, source, more):
    """Whether a pending hold's units can be at another location.

    Returns (status, row, units to move, lines that split): the row is that of the first line's
    destination, or of the one that has too little. The hold will have `more` lines than it has.
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
            if units > 0 and is_elsewhere(places, cells[lines[slot, CELL], KEY] & _LOW32, location):
                elsewhere = True
        slot = np.int64(lines[slot, NEXT_LINE])
    if first < 0:
        return _NOT_IN_HOLD, row, total, splits
    row = destination(cells, cell_index, lines, first, location)
    if elsewhere:
        return _WRONG_SHARD, row, total, splits
    if pending == 0:
        return _NOT_PENDING, row, total, splits
    if quantity > total:
        return _EXCEEDS_HOLD, row, total, splits
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
            if not is_short and (to < 0 or available(cells, to) < units):
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
    if count + splits > _MAX_HOLD_LINES:
        return _TOO_MANY_LINES, row, total, splits
    if is_short:
        return _INSUFFICIENT, short, total, splits
    return _OK, row, total, splits


@_jit
def move(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, meta,
    sums, traces, now, flags, sku, location, quantity, source, hi, lo,
):  # fmt: skip
    """MOVE: what a hold has pending is held at another location. Returns (status, row or -1).

    A line that moves whole changes its cell; of another one a part becomes a line of its own.
    """
    status = check_move(places, meta, flags, sku, location, quantity)
    if status != _OK:
        return status, np.int64(-1)
    head = called_hold(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, hi, lo
    )  # fmt: skip
    if head < 0:
        return _UNKNOWN_HOLD, head
    status = check_hold_state(_MOVE, lines[head, STATE])
    if status != _OK:
        return status, np.int64(lines[head, CELL])
    status, row, left, _ = judge_move(
        cells, cell_index, lines, places, head, sku, location, quantity, source, 0
    )  # fmt: skip
    if status != _OK:
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
    return _OK, row


@_inlined
def check_linked_move(block, first, i, last_line):
    """The checks of a linked move's kind, flags, SKU and quantity against those of its neighbours.

    Each is of another SKU, so that none of them changes what another is about.
    """
    kind, flags = np.int64(block.kind[i]), np.int64(block.flags[i])
    if kind < _RESERVE or kind > _LAST_KIND:
        return _INVALID_KIND
    is_of_hold = (
        block.hold_hi[i] == block.hold_hi[first] and block.hold_lo[i] == block.hold_lo[first]
    )
    if kind != _MOVE or not is_of_hold or flags & ~_LINKED or (i == last_line and flags):
        return _INVALID_FLAGS
    is_moved = block.sku[i] == 0
    for j in range(first, i):
        is_moved = is_moved or block.sku[j] == block.sku[i]
    if is_moved:
        return _INVALID_FLAGS
    return _INVALID_QUANTITY if block.quantity[i] == 0 else _OK


@_jit
def judge_moves(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, meta,
    sums, traces, now, block, first, end, last_line, rows,
):  # fmt: skip
    """Find the first of the linked moves [first, end) that must be refused: (line or -1, its status)."""
    more, head = np.int64(0), np.int64(-1)
    for i in range(first, end):
        sku, location = np.int64(block.sku[i]), np.int64(block.location[i])
        status = check_linked_move(block, first, i, last_line)
        if status == _OK:
            status = check_move(places, meta, 0, sku, location, block.quantity[i])
        if status != _OK:
            return i, status
        if i == first:
            head = called_hold(
                cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now,
                block.hold_hi[i], block.hold_lo[i],
            )  # fmt: skip
        if head < 0:
            return i, _UNKNOWN_HOLD
        rows[i] = np.int64(lines[head, CELL])
        status = check_hold_state(_MOVE, lines[head, STATE])
        if status == _OK:
            status, rows[i], _, splits = judge_move(
                cells, cell_index, lines, places, head, sku, location, block.quantity[i],
                block.value[i], more,
            )  # fmt: skip
            more += splits
        if status != _OK:
            return i, status
    return np.int64(-1), _OK


@_jit
def move_parts(
    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, meta,
    sums, traces, now, block, first, end, last_line, rows, out_status,
):  # fmt: skip
    """The linked moves [first, end) of SKUs of one hold: all or none."""
    rows[first:end] = -1
    bad, status = judge_moves(
        cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places, meta,
        sums, traces, now, block, first, end, last_line, rows,
    )  # fmt: skip
    if bad >= 0:
        out_status[first:end] = _LINKED_REFUSED
        out_status[bad] = status
        return
    for i in range(first, end):
        meta[LINE] = i
        out_status[i], rows[i] = move(
            cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places,
            meta, sums, traces, now, 0, np.int64(block.sku[i]), np.int64(block.location[i]),
            block.quantity[i], block.value[i], block.hold_hi[i], block.hold_lo[i],
        )  # fmt: skip


@_jit
def lines_to_split(holds, lines, hold_index, meta, block):
    """How many lines the MOVEs of a block may make beyond one each: a bound, seen before the block.

    A line splits off its pending part once, and is committed in part by a line of the block or
    before.
    """
    total = np.int64(0)
    for i in range(len(block.kind)):
        if block.kind[i] == _MOVE:
            slot = find_hold(holds, hold_index, block.hold_hi[i], block.hold_lo[i])
            while slot >= 0:
                if lines[slot, PENDING] > 0 and lines[slot, POSTED] + lines[slot, FULFILLED] > 0:
                    total += 1
                slot = np.int64(lines[slot, NEXT_LINE])
    return min(total, meta[HOLDS_USED])


# --- returns of what was handed over ------------------------------------------------------------


@_jit
def judge_return(cells, lines, head, sku, quantity):
    """Whether so much of a SKU was handed over, at any location, and is not back yet.

    Below zero: whether so much of it is back. `head` is the first line of an order or a sale, or -1.
    """
    if head < 0 or lines[head, STATE] >= H_INCOMING:
        return _UNKNOWN_HOLD
    handed_over, out, back, is_in_hold = np.int64(0), np.int64(0), np.int64(0), False
    slot = head
    while slot >= 0:
        handed_over += lines[slot, FULFILLED]
        if cells[lines[slot, CELL], KEY] & _LOW32 == sku:
            is_in_hold = True
            out += lines[slot, FULFILLED] - lines[slot, RETURNED]
            back += lines[slot, RETURNED]
        slot = np.int64(lines[slot, NEXT_LINE])
    if handed_over == 0:
        return _NOT_FULFILLED
    if not is_in_hold:
        return _NOT_IN_HOLD
    return _OK if -back <= quantity <= out else _EXCEEDS_HOLD


@_jit
def take_back(cells, holds, lines, sums, head, sku, quantity):
    """Write down what was judged, in the hold's lines of that SKU from the first one on."""
    counts = is_live(lines[head, STATE])
    if counts:
        drop_hash(holds, lines, sums, head)
    slot, left = head, quantity
    while left != 0:
        if cells[lines[slot, CELL], KEY] & _LOW32 == sku:
            units = min(left, np.int64(lines[slot, FULFILLED] - lines[slot, RETURNED]))
            units = max(units, -np.int64(lines[slot, RETURNED]))
            lines[slot, RETURNED] += units
            left -= units
        slot = np.int64(lines[slot, NEXT_LINE])
    if counts:
        add_hash(holds, lines, sums, head)


@_jit
def claim_return(cells, holds, lines, hold_index, sums, flags, sku, quantity, hi, lo):
    """CLAIM_RETURN: what comes back elsewhere is written down here, or is not; no stock moves."""
    if flags:
        return _INVALID_FLAGS
    status = check_quantity(_CLAIM_RETURN, quantity)
    if status != _OK:
        return status
    head = find_hold(holds, hold_index, hi, lo)
    status = judge_return(cells, lines, head, sku, quantity)
    if status == _OK:
        take_back(cells, holds, lines, sums, head, sku, quantity)
    return status


@_jit
def record_sale(holds, lines, hold_index, ring, meta, row, quantity, hi, lo):
    """Remember a sale as a hold of one line that was handed over at once."""
    slot = take_slot(lines, meta)
    holds[slot, ID_HI] = hi
    holds[slot, ID_LO] = lo
    holds[slot, DEADLINE] = 0
    lines[slot, CELL] = row
    lines[slot, PENDING] = 0
    lines[slot, POSTED] = 0
    lines[slot, FULFILLED] = quantity
    lines[slot, NEXT_LINE] = NONE
    lines[slot, SERIAL] = next_serial(meta) | OF_SALE
    lines[slot, STATE] = H_FULFILLED
    lines[slot, RETURNED] = 0
    enter(hold_index, id_tag(hi, lo), slot)
    remember_resolved(holds, lines, hold_index, ring, meta, slot)


# --- facts --------------------------------------------------------------------------------------


@_inlined
def check_quantity(kind, quantity):
    """Whether the quantity of a fact, a claim or a setting is one."""
    if kind == _ADJUST or kind == _CLAIM_RETURN:
        if quantity == 0:
            return _INVALID_QUANTITY
    elif kind == _COUNT or kind == _SET_SAFETY_STOCK:
        if quantity < 0:
            return _INVALID_QUANTITY
    elif kind != _SET_PRICE and quantity <= 0:
        return _INVALID_QUANTITY
    if quantity > _MAX_QUANTITY or quantity < -_MAX_QUANTITY:
        return _TOO_LARGE
    return _OK


@_inlined
def check_fact(places, meta, now, kind, flags, sku, location, quantity, value, occurred_at):
    """The checks of a fact that do not need the cell."""
    if flags and (kind != _WRITE_OFF or (flags != _OF_DAMAGED and flags != _OF_QUALITY)):
        return _INVALID_FLAGS
    status = check_quantity(kind, quantity)
    if status != _OK:
        return status
    if kind == _RETURN and (value < _RESTOCK or value > _DAMAGE):
        return _INVALID_DISPOSITION
    if kind == _INSPECT and value != _RESTOCK and value != _DAMAGE:
        return _INVALID_DISPOSITION
    if (kind == _ADJUST or kind == _WRITE_OFF) and (value < 0 or value > _MAX_REASON):
        return _INVALID_REASON
    if kind != _INSPECT and (occurred_at < 0 or occurred_at - now > _MAX_SKEW_NS):
        return _INVALID_MOMENT
    return check_place(places, meta, sku, location)


@_inlined
def effects(kind, flags, quantity, value):
    """What a fact other than a count adds to on_hand, to damaged and to quality_control."""
    moved = damaged = quality = np.int64(0)
    if kind == _INSPECT:
        quality = -quantity
        if value == _DAMAGE:
            damaged = quantity
    elif kind == _WRITE_OFF:
        moved = -quantity
        if flags == _OF_DAMAGED:
            damaged = -quantity
        elif flags == _OF_QUALITY:
            quality = -quantity
    else:
        moved = -quantity if kind == _SALE else quantity
        if kind == _RETURN and value == _DAMAGE:
            damaged = quantity
        elif kind == _RETURN and value == _QUALITY:
            quality = quantity
    return moved, damaged, quality


@_inlined
def judge_goods(cells, row, moved, damaged, quality):
    """Whether a cell has what leaves its buckets, and every counter stays within MAX_BALANCE."""
    if cells[row, DAMAGED] + damaged < 0 or cells[row, QUALITY_CONTROL] + quality < 0:
        return _EXCEEDS_SET_ASIDE
    after = cells[row, ON_HAND] + moved
    if after > _MAX_BALANCE or after < -_MAX_BALANCE:
        return _BALANCE_LIMIT
    if cells[row, DAMAGED] + damaged > _MAX_BALANCE:
        return _BALANCE_LIMIT
    if cells[row, QUALITY_CONTROL] + quality > _MAX_BALANCE:
        return _BALANCE_LIMIT
    return _OK


@_inlined
def change_goods(cells, touched, meta, sums, row, moved, damaged, quality):
    """Add what was judged."""
    touch(cells, touched, meta, sums, row)
    cells[row, ON_HAND] += moved
    cells[row, DAMAGED] += damaged
    cells[row, QUALITY_CONTROL] += quality
    if moved != 0:
        meta[CHANGED] |= 1 << ON_HAND
    if damaged != 0:
        meta[CHANGED] |= 1 << DAMAGED
    if quality != 0:
        meta[CHANGED] |= 1 << QUALITY_CONTROL


@_inlined
def set_counted(cells, counted, sums, row, moment):
    """A cell's newest count is of this moment; facts from before it move on_hand no more."""
    if counted[row] > 0:
        sums[0] -= count_hash(cells[row, KEY], counted[row])
    counted[row] = moment
    sums[0] += count_hash(cells[row, KEY], moment)


@_inlined
def fact(
    cells, cell_index, touched, counted, movements, holds, lines, hold_index, ring, places, meta,
    sums, now, kind, flags, sku, location, quantity, value, occurred_at, hi, lo,
):  # fmt: skip
    """What has happened to goods: never refused for lack of stock. Returns (status, row or -1).

    Only a fact that says when it happened can be from before its cell's newest count. A fact of now
    never is, and a count of now has nothing after it: neither looks at what is remembered. A sale
    with an id is recorded once; a return that names an order or a sale is of what it handed over.
    """
    status = check_fact(
        places, meta, now, kind, flags, sku, location, quantity, value, occurred_at
    )  # fmt: skip
    if status != _OK:
        return status, np.int64(-1)
    moment = now if occurred_at == 0 else min(occurred_at, now)
    row = find_cell(cells, cell_index, location << 32 | sku)
    is_named = (hi | lo) != 0 and (kind == _SALE or kind == _RETURN)
    head = find_hold(holds, hold_index, hi, lo) if is_named else np.int64(-1)
    if is_named and kind == _RETURN:
        status = judge_return(cells, lines, head, sku, quantity)
        if status != _OK:
            return status, row
    elif head >= 0:
        return _ALREADY_RECORDED if lines[head, SERIAL] < 0 else _HOLD_EXISTS, row
    is_late = moment < now and row >= 0 and moment < counted[row]
    moved, damaged, quality = np.int64(0), np.int64(0), np.int64(0)
    if kind != _COUNT:
        moved, damaged, quality = effects(kind, flags, quantity, value)
    elif not is_late:
        if moment < meta[FORGOTTEN]:
            return _MOMENT_TOO_OLD, row
        moved = quantity
        if row >= 0:
            moved -= cells[row, ON_HAND]
            if moment < now:
                moved += moved_since(movements, meta, row, moment)
    if is_late:
        moved = np.int64(0)
    if row >= 0:
        status = judge_goods(cells, row, moved, damaged, quality)
        if status != _OK:
            return status, row
    elif damaged < 0 or quality < 0:
        return _EXCEEDS_SET_ASIDE, row
    else:
        row = new_cell(cells, cell_index, touched, meta, location << 32 | sku)
    change_goods(cells, touched, meta, sums, row, moved, damaged, quality)
    if kind == _COUNT:
        if not is_late:
            set_counted(cells, counted, sums, row, moment)
    elif moved != 0:
        note_movement(movements, meta, row, moved, moment)
    if is_named and kind == _RETURN:
        take_back(cells, holds, lines, sums, head, sku, quantity)
    elif is_named:
        record_sale(holds, lines, hold_index, ring, meta, row, quantity, hi, lo)
    return _OK, row


# --- exchanges ----------------------------------------------------------------------------------


@_inlined
def drop_new_cells(cells, cell_index, meta, known):
    """Undo the newest `new_cell`s, down to `known` cells; nothing was touched after them."""
    while meta[CELLS] > known:
        meta[CELLS] -= 1
        meta[DIRTY] -= 1
        row = meta[CELLS]
        at = key_tag(cells[row, KEY]) & (len(cell_index) - 1)
        while (cell_index[at] & _LOW32) - 1 != row:
            at = (at + 1) & (len(cell_index) - 1)
        cell_index[at] = 0


@_inlined
def lend_return(cells, counted, now, block, i, row, sign):
    """Add what a return brings to its cell (sign 1), or take it out again (-1)."""
    moved, damaged, quality = effects(
        _RETURN, np.int64(0), block.quantity[i], block.value[i]
    )  # fmt: skip
    at = block.occurred_at_ns[i]
    if at == 0 or at >= now or at >= counted[row]:
        cells[row, ON_HAND] += sign * moved
    cells[row, DAMAGED] += sign * damaged
    cells[row, QUALITY_CONTROL] += sign * quality


@_inlined
def claimed_before(block, first, i):
    """What the lines [first, i) bring back of the SKU of line i, of the same order or sale."""
    units = np.int64(0)
    for j in range(first, i):
        if (
            block.sku[j] == block.sku[i]
            and block.hold_hi[j] == block.hold_hi[i]
            and block.hold_lo[j] == block.hold_lo[i]
        ):
            units += block.quantity[j]
    return units


@_jit
def judge_returns(
    cells, cell_index, touched, counted, holds, lines, hold_index, places, meta, now, block,
    first, middle, last_line, rows, is_too_long,
):  # fmt: skip
    """Find the first return of [first, middle) that must be refused: (line or -1, its status).

    What those before it bring is in their cells afterwards, which are made if need be: the caller
    takes it out again.
    """
    for i in range(first, middle):
        flags = np.int64(block.flags[i]) & ~_LINKED
        sku, location = np.int64(block.sku[i]), np.int64(block.location[i])
        quantity, value, hi, lo = (
            block.quantity[i], block.value[i], block.hold_hi[i], block.hold_lo[i]
        )  # fmt: skip
        if i == last_line and block.flags[i] & _LINKED:
            return i, _INVALID_FLAGS
        status = check_fact(
            places, meta, now, _RETURN, flags, sku, location, quantity, value,
            block.occurred_at_ns[i],
        )  # fmt: skip
        if status != _OK:
            return i, status
        rows[i] = find_cell(cells, cell_index, location << 32 | sku)
        if (hi | lo) != 0:
            head = find_hold(holds, hold_index, hi, lo)
            wanted = quantity + claimed_before(block, first, i)
            status = judge_return(cells, lines, head, sku, wanted)
        if status == _OK and is_too_long:
            status = _TOO_MANY_LINES
        if status != _OK:
            return i, status
        row = rows[i]
        if row < 0:
            row = new_cell(cells, cell_index, touched, meta, location << 32 | sku)
        lend_return(cells, counted, now, block, i, row, 1)
        status = judge_goods(cells, row, np.int64(0), np.int64(0), np.int64(0))
        if status != _OK:
            lend_return(cells, counted, now, block, i, row, -1)
            return i, status
        rows[i] = row
    return np.int64(-1), _OK


@_jit
def exchange(
    cells, cell_index, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits,
    ring, places, buffers, meta, sums, traces, now, block, first, end, last_line, hi, lo, rows, units,
    out_status,
):  # fmt: skip
    """The lines [first, end): returns, then one order, if any, that may take what they restock.

    All or nothing. Everything is judged with what comes back in its cells; then that is taken out,
    and either nothing is done or each line is done as if it stood alone.
    """
    middle = first
    while middle < end and block.kind[middle] == _RETURN:
        middle += 1
    rows[first:end] = -1
    units[first:end] = 0
    known = meta[CELLS]
    bad, status = judge_returns(
        cells, cell_index, touched, counted, holds, lines, hold_index, places, meta, now, block,
        first, middle, last_line, rows, end - first > _MAX_HOLD_LINES,
    )  # fmt: skip
    brought = middle if bad < 0 else bad
    if bad < 0 and middle < end:
        bad, status, _ = judge_whole_order(
            cells, cell_index, holds, lines, hold_index, places, buffers, meta, block, middle, end,
            last_line, hi, lo, rows, units,
        )  # fmt: skip
    for i in range(first, brought):
        lend_return(cells, counted, now, block, i, rows[i], -1)
    drop_new_cells(cells, cell_index, meta, known)
    if status != _OK:
        for i in range(first, end):
            out_status[i] = _LINKED_REFUSED if i < middle or bad >= 0 else status
            if rows[i] >= known:
                rows[i] = -1
        if bad >= 0:
            out_status[bad] = status
        return
    for i in range(first, middle):
        out_status[i], rows[i] = fact(
            cells, cell_index, touched, counted, movements, holds, lines, hold_index, ring, places,
            meta, sums, now, _RETURN, 0, np.int64(block.sku[i]), np.int64(block.location[i]),
            block.quantity[i], block.value[i], block.occurred_at_ns[i], block.hold_hi[i],
            block.hold_lo[i],
        )  # fmt: skip
    if middle < end:
        reserve_order(
            cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring, places,
            buffers, meta, sums, traces, now, block, middle, end, last_line, hi, lo, rows, units, out_status,
        )  # fmt: skip


# --- settings -----------------------------------------------------------------------------------


@_inlined
def check_setting(places, meta, kind, flags, sku, location, quantity, value, currency):
    """The checks of a setting; they do not need the cell."""
    if flags:
        return _INVALID_FLAGS
    status = check_quantity(kind, quantity)
    if status != _OK:
        return status
    if kind == _SET_PRICE and (value < 0 or value > _MAX_PRICE):
        return _INVALID_PRICE
    status = check_place(places, meta, sku, location)
    if status == _OK and kind == _SET_PRICE and currency != places[location, CURRENCY]:
        return _CURRENCY
    return status


@_inlined
def setting(
    cells, cell_index, touched, places, meta, sums,
    kind, flags, sku, location, quantity, value, currency,
):  # fmt: skip
    """SET_SAFETY_STOCK or SET_PRICE. Returns (status, row or -1)."""
    status = check_setting(places, meta, kind, flags, sku, location, quantity, value, currency)
    if status != _OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    if row < 0:
        row = new_cell(cells, cell_index, touched, meta, location << 32 | sku)
    touch(cells, touched, meta, sums, row)
    if kind == _SET_SAFETY_STOCK:
        cells[row, SAFETY_STOCK] = quantity
        meta[CHANGED] |= 1 << SAFETY_STOCK
    elif cells[row, PRICE] != value or cells[row, VERSION] == TOUCHED:
        cells[row, PRICE] = value
        cells[row, VERSION] += 1
        meta[CHANGED] |= 1 << PRICE | 1 << VERSION
    return status, row


# --- incoming -----------------------------------------------------------------------------------
#
# A record is kept as a hold is: a line a cell, chained, the first one in the index; it is in the state
# hash while something is outstanding, in the ring after that, and never in the wheel. Of its lines
# PENDING is what is outstanding, FULFILLED what came and POSTED what was expected, and DEADLINE is when,
# in ns, or 0. The STATE of each of them says that it is no hold's, so that nobody takes POSTED for what
# is promised: the first one's is the record's, the others' is H_INCOMING | number << NUMBER_AT.


@_inlined
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


@_inlined
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


@_inlined
def take_incoming(cells, touched, lines, meta, sums, slot, units):
    """Units of a record's line are not on their way any more."""
    row = np.int64(lines[slot, CELL])
    touch(cells, touched, meta, sums, row)
    lines[slot, PENDING] -= units
    cells[row, INCOMING] -= units
    meta[CHANGED] |= 1 << INCOMING


@_inlined
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


@_inlined
def check_expect(places, meta, flags, sku, location, quantity, expected_at_ms):
    """The checks of EXPECT that need no record."""
    if flags:
        return _INVALID_FLAGS
    if quantity <= 0:
        return _INVALID_QUANTITY
    if quantity > _MAX_QUANTITY:
        return _TOO_LARGE
    if expected_at_ms < 0 or expected_at_ms > _MAX_EXPECTED_AT:
        return _INVALID_MOMENT
    return check_place(places, meta, sku, location)


@_inlined
def judge_expect(cells, lines, row, head, slot, count, quantity):
    """Whether a record (-1: a new one) of `count` lines, `slot` the one on `row`, takes more."""
    if head >= 0 and lines[head, STATE] < H_INCOMING:
        return _HOLD_EXISTS
    if head >= 0 and lines[head, STATE] > H_INCOMING:
        return _NOT_PENDING
    if slot < 0 and count == _MAX_HOLD_LINES:
        return _TOO_MANY_LINES
    if slot >= 0 and lines[slot, POSTED] + quantity > _MAX_QUANTITY:
        return _BALANCE_LIMIT
    if row >= 0 and cells[row, INCOMING] + quantity > _MAX_BALANCE:
        return _BALANCE_LIMIT
    return _OK


@_jit
def expect(
    cells, cell_index, touched, holds, lines, hold_index, places, meta, sums,
    flags, sku, location, quantity, expected_at_ms, hi, lo,
):  # fmt: skip
    """EXPECT: units of a cell are on their way, as a line of record `hi`, `lo`, which may be new.

    A date that is given is the whole record's from now on. Returns (status, row or -1).
    """
    status = check_expect(places, meta, flags, sku, location, quantity, expected_at_ms)
    if status != _OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    head = find_hold(holds, hold_index, hi, lo)
    slot, count = record_line(lines, head, row)
    status = judge_expect(cells, lines, row, head, slot, count, quantity)
    if status != _OK:
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
            holds[slot, DEADLINE] = expected_at_ms * _NS_PER_MS
            slot = np.int64(lines[slot, NEXT_LINE])
    add_hash(holds, lines, sums, head)
    return status, row


@_jit
def receive_expected(
    cells, cell_index, touched, counted, movements, holds, lines, hold_index, ring, places, meta,
    sums, now, flags, sku, location, quantity, value, occurred_at, hi, lo,
):  # fmt: skip
    """RECEIVE against a record. It is a fact, so what nobody expected is recorded too.

    Returns (status, row or -1).
    """
    status = check_fact(
        places, meta, now, _RECEIVE, flags, sku, location, quantity, value, occurred_at
    )  # fmt: skip
    if status != _OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    head = find_hold(holds, hold_index, hi, lo)
    if head < 0 or lines[head, STATE] < H_INCOMING:
        return _UNKNOWN_HOLD, row
    slot, count = record_line(lines, head, row)
    if slot < 0 and count == _MAX_HOLD_LINES:
        return _TOO_MANY_LINES, row
    if slot >= 0 and lines[slot, FULFILLED] + quantity > _MAX_QUANTITY:
        return _BALANCE_LIMIT, row
    status, row = fact(
        cells, cell_index, touched, counted, movements, holds, lines, hold_index, ring, places, meta,
        sums, now, _RECEIVE, flags, sku, location, quantity, value, occurred_at, hi, lo,
    )  # fmt: skip
    if status != _OK:
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


@_jit
def cancel_incoming(
    cells, touched, holds, lines, hold_index, ring, meta, sums, traces, flags, key, quantity, hi, lo
):  # fmt: skip
    """CANCEL_INCOMING: all that is outstanding, or `quantity` of the line on one cell.

    Returns (status, row or -1): the row of the first line that it is about.
    """
    status = check_hold_call(_CANCEL_INCOMING, flags, quantity)
    if status != _OK:
        return status, np.int64(-1)
    head = find_hold(holds, hold_index, hi, lo)
    if head < 0 or lines[head, STATE] < H_INCOMING:
        return _UNKNOWN_HOLD, np.int64(-1)
    if lines[head, STATE] > H_INCOMING:
        return _NOT_PENDING, np.int64(lines[head, CELL])
    called = head
    if quantity > 0 and (key != 0 or lines[head, NEXT_LINE] >= 0):
        while called >= 0 and cells[lines[called, CELL], KEY] != key:
            called = np.int64(lines[called, NEXT_LINE])
        if called < 0:
            return _NOT_IN_HOLD, np.int64(-1)
    row = np.int64(lines[called, CELL])
    if quantity > lines[called, PENDING]:
        return _EXCEEDS_HOLD, row

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


# --- scans of the hold lines --------------------------------------------------------------------
#
# For what is asked seldom and of few cells: that every reserve kept a list for each cell would cost
# more. They go backwards, for the newest are at the end unless slots were used again, and end when they
# have met all the units that the cells' counters speak of.

MARK_WORDS = 1024  # a bit a row, modulo: the test that nearly every line fails stays in the cache
_MARK_MASK = MARK_WORDS - 1
_STATE_MASK = (1 << NUMBER_AT) - 1


@_inlined
def mark_rows(marks, rows):
    """Set the rows' bits in `marks` (uint64, MARK_WORDS), which comes as zeros."""
    for i in range(len(rows)):
        marks[(rows[i] >> 6) & _MARK_MASK] |= _U1 << np.uint64(rows[i] & 63)


@_inlined
def is_marked(marks, row):
    """Whether this row, or another one with the same bit, was marked."""
    return marks[(row >> 6) & _MARK_MASK] >> np.uint64(row & 63) & _U1 != _U0


@_inlined
def place_of(values, value):
    """The index of a value in a sorted array, or -1."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low if low < len(values) and values[low] == value else -1


@_jit
def find_outstanding(lines, meta, rows, units, marks, found):
    """The lines of incoming records on `rows` (int64, sorted) of which something is outstanding.

    Writes their slots to `found` (int32) and returns how many there are. `units` is what is
    outstanding on these rows in all, `marks` as in `mark_rows`.
    """
    mark_rows(marks, rows)
    count = 0
    slot = meta[HOLDS_USED] - 1
    while units > 0 and slot >= 0:
        row = np.int64(lines[slot, CELL])
        if lines[slot, PENDING] > 0 and is_marked(marks, row):
            is_record = lines[slot, STATE] & _STATE_MASK == H_INCOMING
            if is_record and place_of(rows, row) >= 0:
                units -= lines[slot, PENDING]
                found[count] = slot
                count += 1
        slot -= 1
    return count


# --- shortages ----------------------------------------------------------------------------------


@_inlined
def may_lower(kind, value):
    """Whether a fact may leave less available than before.

    A return does when its goods are set aside and a later count has seen them already.
    """
    if kind == _RETURN:
        return value != _RESTOCK
    sells = kind == _SALE or kind == _WRITE_OFF
    return sells or kind == _ADJUST or kind == _COUNT or kind == _SET_SAFETY_STOCK


@_jit
def short_lines(cells, block, rows, status, found):
    """The facts whose cells have less than nothing available, now that the block is applied.

    `rows` and `status` are as `apply_block` left them. Writes the lines' indexes to `found` (int64,
    n) and returns how many there are.
    """
    count = 0
    for i in range(len(status)):
        lowers = status[i] == _OK and may_lower(block.kind[i], block.value[i])
        if lowers and available(cells, rows[i]) < 0:
            found[count] = i
            count += 1
    return count


@_inlined
def rank_of(lines, meta, slot):
    """Which lines of live holds a shortage endangers first: those of low rank.

    Those with something pending, of the newest hold, and of one hold the first.
    """
    rank = (meta[HOLDS_MADE] - lines[slot, SERIAL]) & SERIALS
    rank = rank << 24 | np.int64(lines[slot, STATE]) >> NUMBER_AT
    return rank if lines[slot, PENDING] > 0 else rank | 1 << 62


@_inlined
def enter_ranked(ranks, slots, counts, cell, most, rank, slot):
    """Put a line among the `most` of lowest rank on a cell, in order, if it belongs there."""
    at = counts[cell]
    if at < most:
        counts[cell] += 1
    elif ranks[cell, at - 1] > rank:
        at -= 1  # the last one makes room
    else:
        return
    while at > 0 and ranks[cell, at - 1] > rank:
        ranks[cell, at] = ranks[cell, at - 1]
        slots[cell, at] = slots[cell, at - 1]
        at -= 1
    ranks[cell, at] = rank
    slots[cell, at] = slot


@_jit
def find_endangered(lines, meta, short, wanted, promised, marks, ranks, slots, counts):
    """The lines of live holds on the rows `short` (int64, sorted) that come first by `rank_of`.

    Of row `short[c]` at most `wanted[c]` (int64, 1 at least): their ranks in `ranks[c, :counts[c]]`
    (int64), in order, and their slots in `slots` (int32). `counts` (int64) and `marks` (uint64,
    MARK_WORDS) come as zeros. `promised` are the units that live holds have on all of these rows:
    the scan ends when it has met them.
    """
    mark_rows(marks, short)
    slot = meta[HOLDS_USED] - 1
    while promised > 0 and slot >= 0:
        row = np.int64(lines[slot, CELL])
        units = np.int64(lines[slot, PENDING]) + np.int64(lines[slot, POSTED])
        if units > 0 and is_marked(marks, row):
            state = lines[slot, STATE] & _STATE_MASK
            cell = place_of(short, row)
            if cell >= 0 and state > FREE and state < H_INCOMING:
                promised -= units
                rank = rank_of(lines, meta, slot)
                enter_ranked(ranks, slots, counts, cell, wanted[cell], rank, slot)
        slot -= 1


# --- the block ----------------------------------------------------------------------------------


class Block(NamedTuple):
    """The lines of one block as columns, and the requests they belong to."""

    kind: np.ndarray  # uint8 (n,)
    flags: np.ndarray  # uint8 (n,)
    sku: np.ndarray  # uint32 (n,)
    location: np.ndarray  # uint32 (n,)
    quantity: np.ndarray  # int64 (n,)
    value: np.ndarray  # int64 (n,)
    currency: np.ndarray  # uint16 (n,)
    hold_hi: np.ndarray  # int64 (n,)
    hold_lo: np.ndarray  # int64 (n,)
    channel: np.ndarray  # uint16 (n,)
    occurred_at_ns: np.ndarray  # int64 (n,): 0 is the block's time
    request_hi: np.ndarray  # int64 (m,): the requests' ids
    request_lo: np.ndarray  # int64 (m,)
    request_end: np.ndarray  # int64 (m,): the line after the request's last one


@_jit
def apply_block(state, now, budget, block, rows, units, out_status, out_available):
    """Apply a block at the time `now` (ns): first what expires, then the lines in order.

    `rows` (int64, n) becomes the rows of the lines' cells, or -1. `units` (int64, n) becomes what
    PARTIAL lines were granted, where their status is OK; what it says of other lines means nothing.
    `out_status` (uint8, n) and `out_available` (int64, n) are the answers. The touched rows stand in
    `touched[:meta[DIRTY]]` afterwards, and in `traces[:meta[TRACES]]` what was done to cells that no
    line names. Returns how many holds the sweep expired.
    """
    (cells, cell_index, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits,
     ring, places, buffers, meta, traces, sums) = state  # fmt: skip
    kinds, flag_bits, skus, locations = block.kind, block.flags, block.sku, block.location
    quantities, values, currencies = block.quantity, block.value, block.currency
    hold_hi, hold_lo, occurred_at = block.hold_hi, block.hold_lo, block.occurred_at_ns
    channels = block.channel
    request_hi, request_lo, request_end = block.request_hi, block.request_lo, block.request_end
    meta[DIRTY] = 0
    meta[CHANGED] = 0
    meta[NOW_NS] = now
    meta[LINE] = NONE
    expired = sweep(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, budget
    )  # fmt: skip
    end_sweep(cells, meta, traces)
    first = 0
    for request in range(len(request_end)):
        end = request_end[request]
        i = warm = first
        while i < end:
            kind = np.int64(kinds[i])
            flags = np.int64(flag_bits[i])
            sku, location = np.int64(skus[i]), np.int64(locations[i])
            unsigned = np.uint64(request_lo[request]) + np.uint64(i - first)
            hi, lo = request_hi[request], np.int64(unsigned)
            if unsigned < np.uint64(request_lo[request]):
                hi += 1
            if i >= warm and i + 1 < end:
                warm = min(i + WARM_LINES, end)
                warm_lines(
                    cells, cell_index, counted, movements, hold_index, meta, block, hi, lo, i, warm
                )  # fmt: skip
            after = i + 1
            meta[LINE] = i
            row = np.int64(-1)
            status = _INVALID_KIND
            if (kind == _RESERVE and flags | np.int64(channels[i])) or (
                flags & _LINKED and (kind == _RETURN or kind == _MOVE or is_of_parts(kind))
            ):
                while after < end and flag_bits[after - 1] & _LINKED:
                    after += 1
                if kind == _RESERVE:
                    reserve_order(
                        cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits,
                        ring, places, buffers, meta, sums, traces, now, block, i, after, end - 1, hi, lo,
                        rows, units, out_status,
                    )  # fmt: skip
                elif kind == _RELEASE and after > i + 1 and kinds[i + 1] == _ADD_LINE:
                    hand_over(
                        cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits,
                        ring, meta, sums, traces, now, block, i, after, end - 1, rows, out_status,
                    )  # fmt: skip
                elif kind == _MOVE:
                    move_parts(
                        cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits,
                        ring, places, meta, sums, traces, now, block, i, after, end - 1, rows, out_status,
                    )  # fmt: skip
                elif kind != _RETURN:
                    on_parts(
                        cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits,
                        ring, meta, sums, traces, now, block, i, after, end - 1, rows, out_status,
                    )  # fmt: skip
                else:
                    exchange(
                        cells, cell_index, touched, counted, movements, holds, lines, hold_index,
                        wheel, wheel_bits, ring, places, buffers, meta, sums, traces, now, block, i, after,
                        end - 1, hi, lo, rows, units, out_status,
                    )  # fmt: skip
                for j in range(i, after):
                    out_available[j] = available(cells, rows[j]) if rows[j] >= 0 else 0
                i = after
                continue
            if kind == _RESERVE:
                status, row = reserve_one(
                    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, places,
                    meta, sums, now, sku, location, quantities[i], values[i], hi, lo,
                )  # fmt: skip
            elif is_of_parts(kind):
                status, row = on_hold(
                    cells, touched, movements, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
                    now, kind, flags, location << 32 | sku, quantities[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == _EXPECT:
                if hold_hi[i] != 0 or hold_lo[i] != 0:
                    hi, lo = hold_hi[i], hold_lo[i]
                status, row = expect(
                    cells, cell_index, touched, holds, lines, hold_index, places, meta, sums,
                    flags, sku, location, quantities[i], values[i], hi, lo,
                )  # fmt: skip
            elif kind == _RECEIVE and (hold_hi[i] != 0 or hold_lo[i] != 0):
                status, row = receive_expected(
                    cells, cell_index, touched, counted, movements, holds, lines, hold_index, ring,
                    places, meta, sums, now, flags, sku, location, quantities[i], values[i], occurred_at[i],
                    hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == _CANCEL_INCOMING:
                status, row = cancel_incoming(
                    cells, touched, holds, lines, hold_index, ring, meta, sums, traces,
                    flags, location << 32 | sku, quantities[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif (kind >= _SALE and kind <= _COUNT) or kind == _INSPECT or kind == _WRITE_OFF:
                status, row = fact(
                    cells, cell_index, touched, counted, movements, holds, lines, hold_index, ring,
                    places, meta, sums, now, kind, flags, sku, location, quantities[i], values[i],
                    occurred_at[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == _CLAIM_RETURN:
                status = claim_return(
                    cells, holds, lines, hold_index, sums, flags, sku, quantities[i], hold_hi[i],
                    hold_lo[i],
                )  # fmt: skip
            elif kind == _SET_SAFETY_STOCK or kind == _SET_PRICE:
                status, row = setting(
                    cells, cell_index, touched, places, meta, sums,
                    kind, flags, sku, location, quantities[i], values[i], currencies[i],
                )  # fmt: skip
            elif kind == _ADD_LINE:
                status, row = add_line(
                    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring,
                    places, buffers, meta, sums, traces, now, flags, sku, location, quantities[i],
                    values[i], np.int64(channels[i]), hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == _MOVE:
                status, row = move(
                    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring,
                    places, meta, sums, traces, now, flags, sku, location, quantities[i], values[i],
                    hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == _EXTEND:
                status, row = extend(
                    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
                    now, flags, values[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
            rows[i] = row
            out_status[i] = status
            out_available[i] = available(cells, row) if row >= 0 else 0
            i = after
        first = end
    finish_block(cells, touched, meta, sums)
    return expired
