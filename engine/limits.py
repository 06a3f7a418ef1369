"""Every bound of the engine, by name, and the relations between them.

The numbers here are published (README, `Directory.GetLimits`) and enforced: at the edge by the
servicers, again in the kernels. This module knows no other room.
"""

from typing import Final

# Quantities and money, in base units (pieces, grams, millilitres) and minor units of a currency.
MAX_QUANTITY: Final = 1_000_000_000  # of one line; fits int32, so a hold's counters are int32
MAX_BALANCE: Final = (
    10**15
)  # of one counter of a cell, either sign; six of them add up within int64
MAX_PRICE_MINOR: Final = 10**12
MAX_REASON: Final = 65_535  # reason codes of adjustments are uint16
MAX_CURRENCY: Final = 999  # ISO 4217 numeric

# Holds.
MIN_TTL_MS: Final = 1
MAX_TTL_MS: Final = 30 * 24 * 3600 * 1000
DEFAULT_TTL_MS: Final = 15 * 60 * 1000  # what a caller gets who names none
MAX_HOLD_LINES: Final = 512  # lines of one hold (one order at one location)
MAX_ENDANGERED: Final = 64  # holds that one fact names when it leaves a shortage
MAX_ENDANGERED_OF_BLOCK: Final = 1 << 13  # holds that the facts of one block name, all in all
# Which lines are promised of a cell that was left short is noted, by shard, for so many such cells and
# so many lines of them all (4 MiB); not by a block that leaves more short than this at once, for which one
# scan is cheap. More lines of a cell than are named are noted as long as those of a block's short cells
# would be no more than this: each later fact on them looks at all.
REMEMBERED_SHORT_CELLS: Final = 1 << 12
REMEMBERED_SHORT_LINES: Final = 1 << 20
SHORT_CELLS_NOTED: Final = 64
SHORT_LINES_NOTED: Final = 1 << 10
# Late calls on them get the precise status; per shard, so many that came to nothing and as many by
# which goods have moved: orders handed over, sales with an id, incoming records.
RESOLVED_HOLDS_REMEMBERED: Final = 1 << 20
# Lines of holds, which bound one block's work when very many fall due at once. Lines of one hold
# expire together: with the last hold a block may go MAX_HOLD_LINES - 1 beyond.
EXPIRIES_PER_BLOCK: Final = 1 << 14

# Ids.
OP_ID_BYTES: Final = 16
MAX_SKUS: Final = (1 << 31) - 2
MAX_LOCATIONS: Final = 1 << 20
MAX_CODE_LENGTH: Final = 64  # characters of a SKU or location code
MAX_CHANNELS: Final = 32  # channels with rules; their numbers are 1 to 31
MAX_SPLIT: Final = 256  # shards that one hot location may be spread over

# Requests and blocks.
MAX_BATCH_LINES: Final = 8_190  # of one Submit
MAX_UNARY_LINES: Final = MAX_HOLD_LINES
# Group commit puts no more than this in one block: the next one is applied while it is written, and
# two short blocks overlap where one long one does not.
MAX_BLOCK_LINES: Final = MAX_BATCH_LINES
# Cells that the facts of one block leave short: one a line, or all of a hold of which a handover failed.
MAX_SHORTAGES_OF_BLOCK: Final = MAX_BLOCK_LINES
MAX_BLOCK_REQUESTS: Final = 4_096
MAX_BLOCK_PLACES: Final = 8_192  # locations whose news one block carries
MAX_BLOCK_BYTES: Final = 64 << 20  # more than any block can come to: see the sum below
# Cells whose state one block tells. Of a block that changed more it is not told: whoever keeps a copy
# loads it anew.
MAX_IMAGE_CELLS: Final = 1 << 19
MAX_CELLS: Final = (1 << 31) - 2
MAX_HOLDS: Final = (1 << 31) - 2

# Cells that the operations of one block change without naming them (those of a hold, or of one that
# runs out). Of a block with more, subscribers to events are told which cells it changed besides.
MAX_TRACES_OF_BLOCK: Final = 1 << 17

# Cells that one block can change. Most has a MOVE: what all lines of a hold leave, and where they go.
MAX_CELLS_OF_BLOCK: Final = (
    MAX_BLOCK_LINES * 2 * MAX_HOLD_LINES + EXPIRIES_PER_BLOCK + MAX_HOLD_LINES - 1
)

# What may wait in a shard for the next block; more is refused as overload.
MAX_QUEUED_LINES: Final = 64 * MAX_BLOCK_LINES
MAX_QUEUED_REQUESTS: Final = 16_384

# Answers remembered for repeated op_ids: two generations of this many requests and bytes each, so
# at least the last `REMEMBERED_REQUESTS` requests are known, unless their answers are very large.
# Requests by which goods come back have two of their own: nothing but its op_id names a return.
REMEMBERED_REQUESTS: Final = 1 << 18
REMEMBERED_BYTES: Final = 64 << 20

# Times.
NS_PER_MS: Final = 1_000_000
MAX_CLOCK_SKEW_MS: Final = (
    10 * 60 * 1000
)  # a fact's moment may be so far ahead of the shard's clock
MAX_EXPECTED_AT_MS: Final = ((1 << 63) - 1) // NS_PER_MS  # of an incoming record: the year 2262
MOVEMENTS_REMEMBERED: Final = 1 << 20  # of on_hand, per shard: how far back a late count reaches
EXPIRY_TICK_BITS: Final = (
    20  # the wheel sweeps by ticks of 2^20 ns (1.05 ms); expiry itself is exact
)

# Catalogue.
MAX_CATALOG_ENTRIES: Final = 10_000  # of one request that adds or lists
MAX_DESCRIPTION: Final = 200  # characters
MAX_CATALOG_BYTES: Final = 6 << 20  # of one request that adds: fewer entries when they are long
MAX_BUNDLE_COMPONENTS: Final = 16  # SKUs that one bundle is made of
MAX_GTINS: Final = 16  # barcodes of one SKU
MAX_OLD_CODES: Final = 16  # codes that a SKU had before and that still mean it
REMEMBERED_CHANGES: Final = (
    1 << 14
)  # the last new codes and rules of channels whose op_ids are known
MIN_GTIN_DIGITS: Final = 8
MAX_GTIN_DIGITS: Final = 14
MAX_SUBSCRIPTION_NAMES: Final = 10_000  # locations or SKUs of one subscription
MAX_SHARDS: Final = 4_096

# Events. Blocks that were told last are kept for everybody; who is behind them reads the journal.
MAX_EVENT_SUBSCRIBERS: Final = 512
MAX_EVENTS_OF_FRAME: Final = 8_192
RECENT_EVENTS_BYTES: Final = 16 << 20  # of one shard, while somebody asks for events
JOURNAL_READERS: Final = 4  # subscribers of events that read a journal at one time; others wait

assert MAX_QUANTITY < 1 << 31, "a hold's counters are int32"
assert 8 * MAX_BALANCE < 1 << 63, "sums of counters must not wrap"
assert MAX_BATCH_LINES <= MAX_BLOCK_LINES
assert MAX_ENDANGERED <= MAX_ENDANGERED_OF_BLOCK
assert MAX_BLOCK_LINES <= MAX_SHORTAGES_OF_BLOCK
assert SHORT_CELLS_NOTED <= REMEMBERED_SHORT_CELLS
assert MAX_ENDANGERED * SHORT_CELLS_NOTED <= REMEMBERED_SHORT_LINES
assert SHORT_LINES_NOTED <= REMEMBERED_SHORT_LINES
assert MAX_TRACES_OF_BLOCK >= 8 * (MAX_BLOCK_LINES + EXPIRIES_PER_BLOCK) // 2
assert MAX_HOLD_LINES <= MAX_BATCH_LINES
assert MAX_HOLD_LINES < 1 << 16, "a line's number in its hold is uint16"
assert EXPIRIES_PER_BLOCK >= MAX_HOLD_LINES, "a hold's lines expire together"
assert MAX_BLOCK_LINES <= MAX_QUEUED_LINES
assert MAX_BLOCK_REQUESTS <= MAX_QUEUED_REQUESTS
assert MIN_TTL_MS <= DEFAULT_TTL_MS <= MAX_TTL_MS
assert MAX_BATCH_LINES < 1 << 16, "a line's index is added to the low 16 bits of a batch's base id"
assert MAX_SPLIT <= MAX_SHARDS < 1 << 16, "a shard's number is uint16 where lines are routed"
assert (
    MAX_CATALOG_ENTRIES
    * (
        4 * (MAX_CODE_LENGTH + MAX_DESCRIPTION)
        + MAX_GTINS * (MAX_GTIN_DIGITS + 1)
        + 10 * MAX_BUNDLE_COMPONENTS
        + 32
    )
    < MAX_BLOCK_BYTES
), "one request's entries fit one block, in whatever script they are written"
assert MAX_BLOCK_LINES + EXPIRIES_PER_BLOCK + MAX_HOLD_LINES < MAX_IMAGE_CELLS, "others are rare"
# What a block is made of (`engine.block`), each part as long as it can be: a block that was written
# must be readable, or nothing that comes after it is.
assert (
    (1 << 12)  # the header, without what follows
    + MAX_BLOCK_PLACES * (32 + 5 * MAX_CHANNELS)
    + 64 * (MAX_ENDANGERED_OF_BLOCK + MAX_SHORTAGES_OF_BLOCK)
    + 40 * MAX_BLOCK_REQUESTS
    + 64 * MAX_BLOCK_LINES
    + 16 * MAX_TRACES_OF_BLOCK
    + 8 * MAX_BLOCK_LINES  # keys of new cells
    + max(4 * MAX_CELLS_OF_BLOCK, (4 + 9 * 8) * MAX_IMAGE_CELLS)  # rows, and nine words of each
    < MAX_BLOCK_BYTES
), "whatever the lines and the holds that they call on, a block can be read back"
