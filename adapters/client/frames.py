"""What subscriptions give: frames of deltas, frames of events. What is asked and answered is `values`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapters.client.values import Endangered
from engine.frames import FrameKind
from engine.operations import Flag


class Shortage(NamedTuple):
    """A cell with less than it has promised, as the newest fact said that left it so.

    `shortage`: base units missing then; over when `available` is not below zero. `holds`: those whose
    stock was missing then; empty when any hold on the cell may have changed since.
    """

    sku: int
    location: int
    shortage: int
    holds: tuple[Endangered, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """The newest values of n cells as columns of shape (n,).

    Hand `resume_token` to a later subscription to go on after this frame; it is empty within a
    snapshot. `block_now_ns`: time of the newest block here; `sent_ns`: when the gateway sent it.
    `renames`: when it has grown, SKUs have got new codes.
    """

    kind: FrameKind
    resume_token: bytes
    sku: NDArray[np.uint32]
    location: NDArray[np.uint32]
    on_hand: NDArray[np.int64]
    available: NDArray[np.int64]
    price_minor: NDArray[np.int64]
    price_version: NDArray[np.uint32]
    block_now_ns: int
    sent_ns: int
    shortages: tuple[Shortage, ...] = ()
    renames: int = 0

    def __len__(self) -> int:
        return len(self.sku)


class EventKind(IntEnum):
    """What an event is: a Kind of operation, by the same name and number, or one of the last two."""

    RESERVE = 1
    COMMIT = 2
    RELEASE = 3
    FULFIL = 4
    CANCEL = 5
    SALE = 6
    RETURN = 7
    RECEIVE = 8
    ADJUST = 9
    COUNT = 10
    SET_SAFETY_STOCK = 11
    SET_PRICE = 12
    EXTEND = 13
    MOVE = 14
    ADD_LINE = 15
    UNFULFIL = 16
    CLAIM_RETURN = 17
    CANCEL_INCOMING = 18
    INSPECT = 19
    WRITE_OFF = 20
    EXPECT = 21
    EXPIRED = 64  # holds ran out
    UNTOLD = 65  # the block changed the cell by more than it tells: read the cell


class Event(NamedTuple):
    """One event; see EventFrame of the contract, field by field.

    `shard`, `epoch`, `seq` and `number` name it for good. `hold` and `op_id` are empty where there
    is none.
    """

    kind: EventKind
    sku: int
    location: int
    quantity: int
    value: int
    hold: bytes
    op_id: bytes
    line: int
    flags: Flag
    channel: int
    currency: int
    occurred_at_ns: int
    now_ns: int
    shard: int
    epoch: int
    seq: int
    number: int


@dataclass(frozen=True, slots=True)
class EventFrame:
    """Events of one shard, in order; without any, it says how far all has been told.

    Hand `resume_token` to a later subscription to go on after this frame. `at` is that in the clear:
    up to which block of each shard, as (shard, epoch, seq). `columns` are numpy arrays of shape (n,)
    named as the fields of `Event` (`hold` and `op_id`: (n, 16) uint8), for many events at once.
    """

    resume_token: bytes
    shard: int
    columns: Mapping[str, NDArray[Any]]
    at: tuple[tuple[int, int, int], ...]
    sent_ns: int
    renames: int

    def __len__(self) -> int:
        return len(self.columns["kind"])

    def __iter__(self) -> Iterator[Event]:
        lists = {name: column.tolist() for name, column in self.columns.items()}
        for name in ("hold", "op_id"):
            lists[name] = [bytes(each) if any(each) else b"" for each in lists[name]]
        lists["kind"] = list(map(EventKind, lists["kind"]))
        lists["flags"] = list(map(Flag, lists["flags"]))
        lists["shard"] = [self.shard] * len(self)
        yield from map(Event._make, zip(*(lists[name] for name in Event._fields), strict=True))
