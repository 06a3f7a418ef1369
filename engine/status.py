"""What an operation can answer. A refusal is a value; an exception would be a bug."""

from enum import IntEnum
from typing import Final

from engine import limits


class Status(IntEnum):
    """The closed set of answers, in their order of precedence.

    When several reasons apply to one line, the first in this list is the answer. The numbers are
    part of the wire format and of the journal: they are never re-used.
    """

    OK = 0
    # The request as a whole.
    OP_ID_REUSED = 1
    # The line by itself.
    INVALID_KIND = 2
    INVALID_FLAGS = 3
    INVALID_QUANTITY = 4
    QUANTITY_TOO_LARGE = 5
    INVALID_TTL = 6
    INVALID_DISPOSITION = 7
    INVALID_REASON = 8
    INVALID_PRICE = 9
    INVALID_MOMENT = 10
    # The line against the catalogue and the shard map.
    UNKNOWN_LOCATION = 11
    UNKNOWN_SKU = 12
    WRONG_SHARD = 13
    CURRENCY_MISMATCH = 14
    UNKNOWN_CHANNEL = 15
    NOT_IN_CHANNEL = 16
    # The line against the holds.
    HOLD_EXISTS = 17
    ALREADY_RECORDED = 18
    UNKNOWN_HOLD = 19
    HOLD_EXPIRED = 20
    HOLD_RELEASED = 21
    HOLD_NOT_PENDING = 22
    HOLD_NOT_COMMITTED = 23
    HOLD_NOT_FULFILLED = 24
    NOT_IN_HOLD = 25
    EXCEEDS_HOLD = 26
    TOO_MANY_LINES = 27
    # The line against the stock.
    MOMENT_TOO_OLD = 28
    EXCEEDS_SET_ASIDE = 29
    INSUFFICIENT_STOCK = 30
    BALANCE_LIMIT = 31
    # The line's neighbours.
    LINKED_LINE_REFUSED = 32


MESSAGES: Final[dict[Status, str]] = {
    Status.OK: "done",
    Status.OP_ID_REUSED: "op_id: already used by a request with other content",
    Status.INVALID_KIND: "kind: not a known operation",
    Status.INVALID_FLAGS: "flags: not allowed for this kind of operation",
    Status.INVALID_QUANTITY: "quantity: must be positive (not negative for a count or a safety "
    "stock; not zero for an adjustment)",
    Status.QUANTITY_TOO_LARGE: f"quantity: more than {limits.MAX_QUANTITY} base units",
    Status.INVALID_TTL: f"ttl_ms: not between {limits.MIN_TTL_MS} and {limits.MAX_TTL_MS}",
    Status.INVALID_DISPOSITION: "disposition: not restock, quality_control or damaged",
    Status.INVALID_REASON: f"reason: not between 0 and {limits.MAX_REASON}",
    Status.INVALID_PRICE: f"price_minor: not between 0 and {limits.MAX_PRICE_MINOR}",
    Status.INVALID_MOMENT: f"occurred_at_ns: before 1970, or more than {limits.MAX_CLOCK_SKEW_MS} ms "
    "ahead of the shard's clock",
    Status.UNKNOWN_LOCATION: "location: not in the catalogue",
    Status.UNKNOWN_SKU: "sku: not in the catalogue",
    Status.WRONG_SHARD: "location: another shard owns it; fetch the shard map again",
    Status.CURRENCY_MISMATCH: "currency: not the currency of the location",
    Status.UNKNOWN_CHANNEL: "channel: not in the catalogue",
    Status.NOT_IN_CHANNEL: "location: this channel does not sell from it",
    Status.HOLD_EXISTS: "op_id, hold_id: a hold, an incoming record or a sale of something "
    "else has this id",
    Status.ALREADY_RECORDED: "hold_id: this fact is recorded already, and had its effect then",
    Status.UNKNOWN_HOLD: "hold_id: no such hold, or it was resolved too long ago",
    Status.HOLD_EXPIRED: "hold_id: the hold's deadline has passed",
    Status.HOLD_RELEASED: "hold_id: the hold was released",
    Status.HOLD_NOT_PENDING: "hold_id: nothing of the hold is pending any more",
    Status.HOLD_NOT_COMMITTED: "hold_id: nothing of the hold is committed",
    Status.HOLD_NOT_FULFILLED: "hold_id: nothing of the hold was handed over",
    Status.NOT_IN_HOLD: "sku, location: not a line of this hold",
    Status.EXCEEDS_HOLD: "quantity: more than the hold has in that state",
    Status.TOO_MANY_LINES: f"lines: more than {limits.MAX_HOLD_LINES} are linked, or the hold or the "
    "incoming record would have more",
    Status.MOMENT_TOO_OLD: "occurred_at_ns: before the oldest movement that is remembered",
    Status.EXCEEDS_SET_ASIDE: "quantity: more than the cell has damaged or in quality control",
    Status.INSUFFICIENT_STOCK: "quantity: more than is available",
    Status.BALANCE_LIMIT: f"quantity: a counter of the cell would pass {limits.MAX_BALANCE}, or a "
    f"line of the incoming record {limits.MAX_QUANTITY}",
    Status.LINKED_LINE_REFUSED: "another line of the same order or call was refused",
}

assert set(MESSAGES) == set(Status), "each status has a message"
