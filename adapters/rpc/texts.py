"""What people are told of a status, by the call: with the fields that its message has.

The engine speaks of a line's columns. What is a hold to it is an order or a sale to whoever brings
goods back, a delivery or a transfer to whoever takes them in.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

from engine.operations import Kind
from engine.status import MESSAGES, Status

Texts: TypeAlias = tuple[str, ...]
"""By the number of the status; empty for OK."""

_HOLD: Final = "hold_id: "


def _texts(*told: Mapping[Status, str], hold: str = "hold_id") -> Texts:
    """The engine's texts, with the field that names the hold, but for what is told otherwise."""
    found = {
        status: f"{hold}: {text.removeprefix(_HOLD)}" if text.startswith(_HOLD) else text
        for status, text in MESSAGES.items()
    }
    for each in told:
        found |= each
    return tuple(found[status] if status else "" for status in Status)


GENERAL: Final = _texts()

# --- holds ----------------------------------------------------------------------------------------

_CHANNELS: Final = {Status.INSUFFICIENT_STOCK: "quantity: more than is available to the channel"}
_PENDING: Final = {Status.EXCEEDS_HOLD: "quantity: more than the hold has pending"}
_MOVED: Final = {
    Status.EXCEEDS_HOLD: "quantity: more than the hold has pending that is not there yet",
    Status.UNKNOWN_LOCATION: "to: not in the catalogue",
}
_COMMITTED: Final = {Status.EXCEEDS_HOLD: "quantity: more than the hold has committed"}
_NOT_BACK: Final = {
    Status.EXCEEDS_HOLD: "quantity: more than was handed over and is not back yet",
}
_FLAGS: Final = {
    Status.INVALID_FLAGS: "release_rest, re_reserve_if_expired: of a Commit alone; the first with "
    "lines, the second without",
}

RESERVE: Final = _texts(hold="supersedes")
RESERVE_IN_CHANNEL: Final = _texts(_CHANNELS, hold="supersedes")
MOVE: Final = _texts(_MOVED)
MOVE_IN_CHANNEL: Final = _texts(_MOVED, _CHANNELS)
COMMIT_IN_CHANNEL: Final = _texts(_PENDING, _FLAGS, _CHANNELS)
ON_HOLD: Final[Mapping[Kind, Texts]] = {
    Kind.COMMIT: _texts(_PENDING, _FLAGS),
    Kind.RELEASE: _texts(_PENDING, _FLAGS),
    Kind.FULFIL: _texts(_COMMITTED, _FLAGS),
    Kind.CANCEL: _texts(_COMMITTED, _FLAGS),
    Kind.UNFULFIL: _texts(
        _NOT_BACK,
        _FLAGS,
        {Status.HOLD_NOT_FULFILLED: "hold_id: nothing of it was handed over and is not back yet"},
    ),
}

# --- goods ----------------------------------------------------------------------------------------

_RETURNS: Final = {
    Status.UNKNOWN_HOLD: "against, receipt_line, sold_at: no such order or sale there, or it was "
    "resolved too long ago",
    Status.NOT_IN_HOLD: "sku: nothing of it was handed over by what the return is against",
}

SALE: Final = _texts(
    {
        Status.ALREADY_RECORDED: "receipt_lines: recorded before, and had its effect then",
        Status.HOLD_EXISTS: "receipt_lines: used for something else: a sale of another SKU or "
        "quantity, a hold or an incoming record has this line's sale_id",
    }
)
RETURN: Final = _texts(_NOT_BACK, _RETURNS, hold="against, receipt_line")
EXCHANGE_IN_CHANNEL: Final = _texts(_NOT_BACK, _RETURNS, _CHANNELS, hold="against, receipt_line")
INCOMING: Final = _texts(
    {
        Status.HOLD_EXISTS: "incoming_id: a hold or a sale has this id",
        Status.UNKNOWN_HOLD: "incoming_id: no such record, or it was resolved too long ago",
        Status.HOLD_NOT_PENDING: "incoming_id: nothing of the record is outstanding any more",
        Status.NOT_IN_HOLD: "sku, location: not a line of this record",
        Status.EXCEEDS_HOLD: "quantity: more than is outstanding",
    }
)

# --- transfers ------------------------------------------------------------------------------------

SHIPPING: Final = _texts(
    {
        Status.UNKNOWN_HOLD: "transfer_id, source: no such transfer from there, or it was over too "
        "long ago",
        Status.HOLD_NOT_COMMITTED: "transfer_id: nothing of it is left to ship",
        Status.NOT_IN_HOLD: "sku, source: not a line of this transfer",
        Status.EXCEEDS_HOLD: "quantity: more than is left to ship",
    },
    hold="transfer_id",
)
ARRIVING: Final = _texts(
    {
        Status.UNKNOWN_HOLD: "transfer_id, destination: nothing of such a transfer was shipped "
        "there, or it was over too long ago",
        Status.HOLD_NOT_PENDING: "transfer_id: nothing of it is in transit any more",
        Status.NOT_IN_HOLD: "sku, destination: nothing of it was shipped there with this transfer",
        Status.EXCEEDS_HOLD: "quantity: more than is in transit",
    },
    hold="transfer_id",
)
