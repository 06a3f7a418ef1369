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
    # The line against the catalogue and the shard map.
    UNKNOWN_LOCATION = 10
    UNKNOWN_SKU = 11
    WRONG_SHARD = 12
    CURRENCY_MISMATCH = 13
    # The line against the holds.
    HOLD_EXISTS = 14
    UNKNOWN_HOLD = 15
    HOLD_EXPIRED = 16
    HOLD_RELEASED = 17
    HOLD_NOT_PENDING = 18
    HOLD_NOT_COMMITTED = 19
    NOT_IN_HOLD = 20
    EXCEEDS_HOLD = 21
    TOO_MANY_LINES = 22
    # The line against the stock.
    INSUFFICIENT_STOCK = 23
    BALANCE_LIMIT = 24
    # The line's neighbours.
    LINKED_LINE_REFUSED = 25


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
    Status.UNKNOWN_LOCATION: "location: not in the catalogue",
    Status.UNKNOWN_SKU: "sku: not in the catalogue",
    Status.WRONG_SHARD: "location: another shard owns it; fetch the shard map again",
    Status.CURRENCY_MISMATCH: "currency: not the currency of the location",
    Status.HOLD_EXISTS: "op_id: a hold with this id exists",
    Status.UNKNOWN_HOLD: "hold_id: no such hold, or it was resolved too long ago",
    Status.HOLD_EXPIRED: "hold_id: the hold's deadline has passed",
    Status.HOLD_RELEASED: "hold_id: the hold was released",
    Status.HOLD_NOT_PENDING: "hold_id: nothing of the hold is pending any more",
    Status.HOLD_NOT_COMMITTED: "hold_id: nothing of the hold is committed",
    Status.NOT_IN_HOLD: "sku, location: not a line of this hold",
    Status.EXCEEDS_HOLD: "quantity: more than the hold has in that state",
    Status.TOO_MANY_LINES: f"lines: more than {limits.MAX_HOLD_LINES} linked lines",
    Status.INSUFFICIENT_STOCK: "quantity: more than is available",
    Status.BALANCE_LIMIT: f"quantity: a counter would pass {limits.MAX_BALANCE}",
    Status.LINKED_LINE_REFUSED: "another line of the same order was refused",
}

assert set(MESSAGES) == set(Status), "each status has a message"
