"""What a machine shows of its state: copies, for people, tests and replies that name one thing.

Both machines hand these out, so that their states compare with `==`. Changing a view changes
nothing in the machine.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class HoldState(IntEnum):
    """Where a hold or an incoming record is in its life.

    The numbers are those of the columns and of the state hash.
    """

    PENDING = 1  # something is pending; part of it may be committed already
    COMMITTED = 2  # nothing is pending, something is committed
    FULFILLED = 3  # nothing is left, and something was handed over
    CANCELLED = 4  # nothing is left: committed and taken back
    RELEASED = 5  # nothing is left: given up before its deadline
    EXPIRED = 6  # nothing is left: its deadline passed
    INCOMING = 7  # an incoming record of which something is outstanding
    RECEIVED = 8  # an incoming record of which nothing is outstanding
    DROPPED = 9  # an incoming record that was cancelled before anything came

    @property
    def is_live(self) -> bool:
        """Whether the hold keeps units from being sold, or the record makes some be expected."""
        return self <= HoldState.COMMITTED or self == HoldState.INCOMING


@dataclass(slots=True)
class Cell:
    """One SKU at one location, in base units."""

    on_hand: int = 0
    reserved: int = 0
    committed: int = 0
    damaged: int = 0
    quality_control: int = 0
    safety_stock: int = 0
    incoming: int = 0
    price_minor: int = 0
    price_version: int = 0  # 0: never priced

    @property
    def available(self) -> int:
        """What may be sold; negative is a shortage."""
        kept = self.damaged + self.quality_control + self.safety_stock
        return self.on_hand - self.reserved - self.committed - kept


@dataclass(slots=True)
class HoldLine:
    """One line of a hold: how many units of a cell stand in which state."""

    sku: int
    location: int
    pending: int
    committed: int = 0
    fulfilled: int = 0
    returned: int = 0  # of `fulfilled`


@dataclass(slots=True)
class Hold:
    """A hold with its lines, in the order of its reserve."""

    state: HoldState
    deadline_ns: int  # of the shard's clock; the hold is good up to and including it
    lines: list[HoldLine]


@dataclass(slots=True)
class IncomingLine:
    """What an incoming record says of one cell.

    `received` is more than `expected` when more came; `expected - outstanding - received`, where
    that is positive, was cancelled.
    """

    sku: int
    location: int
    expected: int  # 0: it came though nobody expected it
    outstanding: int
    received: int = 0


@dataclass(slots=True)
class Incoming:
    """A purchase order or a transfer on its way here, with a line a cell."""

    state: HoldState  # INCOMING, RECEIVED or DROPPED
    expected_at_ns: int  # since 1970; 0: nobody knows
    lines: list[IncomingLine]


class DatedIncoming(NamedTuple):
    """Units of one cell that one incoming record has outstanding."""

    sku: int
    location: int
    expected_at_ns: int  # since 1970; 0: nobody knows
    units: int


class EndangeredHold(NamedTuple):
    """A line of a live hold whose cell has less than it promised."""

    hold_id: bytes
    pending: int
    committed: int


class Endangered(NamedTuple):
    """A line of a fact whose cell has less than nothing available after the block.

    `holds` are lines of live holds on the cell: with something pending before others, the newest
    holds first, until their units cover the shortage or `limits.MAX_ENDANGERED` are named.
    """

    line: int  # its index among the lines of the request (in a block: of all its requests)
    sku: int
    location: int
    units: int  # of the shortage: how far `available` is below zero
    holds: tuple[EndangeredHold, ...]
