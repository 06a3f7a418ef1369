"""The history of one hold, read out of a shard's blocks: pure functions, no index kept anywhere.

Nothing is stored for histories: the journal has every operation with its status, so asking costs a
look at the journal and the rest of the world pays nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.block import Block
from engine.operations import (
    Flag,
    Kind,
    Request,
    chain_starts,
    column_of,
    id_to_pair,
    line_id,
)
from engine.status import Status

_ID_SPACE: Final = 1 << 128
_BATCH_ZEROS: Final = bytes(2)  # the ids of a batch's lines differ from its own in these bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal that is about a hold: what was asked, and the answer.

    The columns are those of `operations.COLUMNS`. `line` counts in the request `op_id`; `now_ns`,
    `shard`, `epoch` and `seq` are the block's.
    """

    op_id: bytes
    line: int
    kind: int
    flags: int
    sku: int
    location: int
    quantity: int
    value: int
    channel: int
    occurred_at_ns: int
    status: int
    now_ns: int
    shard: int
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class History:
    """What a shard's journal has on a hold, oldest first.

    `complete`: nothing older can be missing; otherwise the journal was trimmed since.
    """

    events: list[Event]
    complete: bool


def may_concern(payload: bytes, hold_id: bytes) -> bool:
    """Whether an encoded block can have a line about a hold; only decoding tells for certain.

    Ids stand in a block as they are: of a request big-endian, in the column `hold` as little-endian
    halves, of which a block leaves those out that are zero in all its lines. So a search for bytes
    passes over nearly every block.
    """
    half = hold_id[8:] if any(hold_id[8:]) else hold_id[:8]
    return hold_id in payload or half[::-1] in payload or hold_id[:-2] + _BATCH_ZEROS in payload


def events_of(block: Block, hold_id: bytes) -> Iterator[Event]:
    """Find the lines of a block that made a hold, or named it.

    A line of no kind is refused for that, and about nothing.
    """
    target = int.from_bytes(hold_id, "big")
    high, low = id_to_pair(hold_id)
    first = 0
    for request in block.requests:
        status = block.status[first : first + request.lines]
        first += request.lines
        about = _makes(request, (target - int.from_bytes(request.op_id, "big")) % _ID_SPACE)
        about |= (column_of(request, "hold_hi") == high) & (column_of(request, "hold_lo") == low)
        about &= np.isin(column_of(request, "kind"), _KINDS)
        if hold_id == bytes(16):
            about[:] = False  # "no hold"
        for line in np.flatnonzero(about).tolist():
            values = {name: int(column_of(request, name)[line]) for name in _SHOWN}
            yield Event(
                request.op_id, line, **values, status=int(status[line]), now_ns=block.now_ns,
                shard=block.shard, epoch=block.epoch, seq=block.seq,
            )  # fmt: skip


def is_whole(events: list[Event], hold_id: bytes) -> bool:
    """Whether the events begin with the line that made the hold, or with the first of its order."""
    if not events:
        return False
    first = events[0]
    if first.kind == Kind.SALE:  # with an id it is recorded once
        return first.status == Status.OK
    # Other kinds that make something may also name it later: what they make has their own id.
    is_own = line_id(first.op_id, first.line) == hold_id
    return is_own and any(
        each.kind in (Kind.RESERVE, Kind.EXPECT) and each.status == Status.OK
        for each in _first_order(events)
    )


def _first_order(events: list[Event]) -> Iterator[Event]:
    """The lines that stand or fall together with the first event's line.

    An exchange begins with what comes back. Of an order that may be served in part the first line may
    have found nothing.
    """
    before, *others = events
    yield before
    for each in others:
        is_next = (each.op_id, each.line) == (before.op_id, before.line + 1)
        if not (before.flags & Flag.LINKED and is_next):
            break
        yield each
        before = each


_KINDS: Final = np.array(Kind, np.uint8)
_SHOWN: Final = (
    "kind",
    "flags",
    "sku",
    "location",
    "quantity",
    "value",
    "channel",
    "occurred_at_ns",
)


def _makes(request: Request, index: int) -> NDArray[np.bool_]:
    """Which lines belong to the order whose first line is line `index` of a request."""
    lines = np.zeros(request.lines, np.bool_)
    if index >= request.lines:
        return lines
    kinds = column_of(request, "kind")
    orders = np.cumsum(chain_starts(kinds, column_of(request, "flags")))
    if index and orders[index] == orders[index - 1]:
        return lines
    end = int(np.searchsorted(orders, orders[index], "right"))
    kinds = kinds[index:end]
    if (kinds == Kind.RESERVE).any() or (kinds[0] == Kind.EXPECT and not _has_hold(request, index)):
        lines[index:end] = True
    return lines


def _has_hold(request: Request, line: int) -> bool:
    return bool(column_of(request, "hold_hi")[line] or column_of(request, "hold_lo")[line])
