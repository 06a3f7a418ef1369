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
from engine.operations import Flag, Kind, Request, column_of, id_to_pair, line_id
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
    halves. So a search for bytes passes over nearly every block.
    """
    return (
        hold_id in payload or hold_id[8:][::-1] in payload or hold_id[:-2] + _BATCH_ZEROS in payload
    )


def events_of(block: Block, hold_id: bytes) -> Iterator[Event]:
    """Find the lines of a block that made a hold, or named it."""
    target = int.from_bytes(hold_id, "big")
    high, low = id_to_pair(hold_id)
    first = 0
    for request in block.requests:
        status = block.status[first : first + request.lines]
        first += request.lines
        about = _makes(request, (target - int.from_bytes(request.op_id, "big")) % _ID_SPACE)
        about |= (column_of(request, "hold_hi") == high) & (column_of(request, "hold_lo") == low)
        if hold_id == bytes(16):
            about[:] = False  # "no hold"
        for line in np.flatnonzero(about).tolist():
            values = {name: int(column_of(request, name)[line]) for name in _SHOWN}
            yield Event(
                request.op_id, line, **values, status=int(status[line]), now_ns=block.now_ns,
                shard=block.shard, epoch=block.epoch, seq=block.seq,
            )  # fmt: skip


def is_whole(events: list[Event], hold_id: bytes) -> bool:
    """Whether the events begin with the one that made the hold."""
    if not events:
        return False
    first = events[0]
    # A sale with an id is recorded once; other kinds that make something may also name it later.
    made = first.kind == Kind.SALE or (
        first.kind in (Kind.RESERVE, Kind.EXPECT) and line_id(first.op_id, first.line) == hold_id
    )
    return made and first.status == Status.OK


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
    flags = column_of(request, "flags")
    end = index + 1
    while end < request.lines and flags[end - 1] & Flag.LINKED:
        end += 1
    kinds = column_of(request, "kind")[index:end]
    if (kinds == Kind.RESERVE).any() or (kinds[0] == Kind.EXPECT and not _has_hold(request, index)):
        lines[index:end] = True
    return lines


def _has_hold(request: Request, line: int) -> bool:
    return bool(column_of(request, "hold_hi")[line] or column_of(request, "hold_lo")[line])
