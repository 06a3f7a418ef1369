"""What goes into the client and what comes out, as values. A refusal is one of them.

SKUs and locations are named by their dense id (int, from the catalogue) or by their code (str).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.operations import Disposition, Flag, Kind
from engine.status import MESSAGES, Status
from engine.views import HoldState

Name: TypeAlias = int | str
"""A dense id, or a code."""


class Line(NamedTuple):
    """A quantity of one SKU at one location, in base units. A plain tuple will do as well."""

    sku: Name
    location: Name
    quantity: int


class ReceiptLine(NamedTuple):
    """A line of a till's receipt; with the location it names a sale for good."""

    terminal: str
    receipt: str
    line: int


class ReturnLine(NamedTuple):
    """Goods that came back, and what becomes of them.

    Blind, unless it says what was handed over: `against` is the id of an order's hold or of a sale,
    or the line of the receipt. `sold_at` is where that was; with an id and without it, the servers
    look for it, and with a receipt it is where the goods came back.
    """

    sku: Name
    location: Name
    quantity: int
    disposition: Disposition = Disposition.RESTOCK
    against: bytes | ReceiptLine = b""
    sold_at: Name | None = None


class InspectLine(NamedTuple):
    """Goods that were in quality control, and what becomes of them: RESTOCK or DAMAGED."""

    sku: Name
    location: Name
    quantity: int
    disposition: Disposition = Disposition.RESTOCK


class Bucket(IntEnum):
    """Which part of on_hand goods belong to; the numbers are the contract's."""

    SELLABLE = 0
    DAMAGED = 1
    QUALITY_CONTROL = 2


class PriceLine(NamedTuple):
    """The new price of one cell, in minor units."""

    sku: Name
    location: Name
    price_minor: int


Lines: TypeAlias = Sequence[tuple[Name, Name, int]]


class Endangered(NamedTuple):
    """A hold that a shortage endangers, with what it keeps of the short cell, in base units."""

    hold_id: bytes
    pending: int
    committed: int


@dataclass(frozen=True, slots=True)
class LineResult:
    """What one line was answered.

    `available`: of its cell right after the line, of lines that stand or fall together after all of
    them; 0 where no cell was looked at.
    `granted`: base units held by a reserve that allowed less. `endangered`: whose stock is missing,
    pending holds before orders, the newest first. `sale_id`: names the sale for returns.
    """

    status: Status
    available: int
    shortage: int
    message: str
    granted: int = 0
    endangered: tuple[Endangered, ...] = ()
    sale_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Result:
    """What an operation was answered; the same again for the same `op_id`.

    `status` is OK, or that of the first line that was refused for itself; `message` then names the
    field and the limit. `hold_id` and `deadline_ns` are of a new hold. `shard`, `epoch` and `seq`
    name the journal's block. `location` is where all of the operation was, which helps later calls
    on the hold to find their way; None when that is not one place.
    """

    op_id: bytes
    status: Status
    message: str
    lines: tuple[LineResult, ...]
    now_ns: int
    deadline_ns: int
    hold_id: bytes
    shard: int
    epoch: int
    seq: int
    location: Name | None = None

    @property
    def ok(self) -> bool:
        """Whether it was done, by this call or by an earlier one (ALREADY_RECORDED)."""
        return self.status in (Status.OK, Status.ALREADY_RECORDED)

    @property
    def shortage(self) -> int:
        """Base units by which this operation's cells are below zero, over all lines."""
        return sum(line.shortage for line in self.lines)


@dataclass(frozen=True, slots=True)
class HoldLine:
    """One line of a hold, in base units; codes are those in force now."""

    sku: int
    location: int
    pending: int
    committed: int
    fulfilled: int
    returned: int
    sku_code: str = ""
    location_code: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold as it stands; while it is pending it can be committed up to and including `deadline_ns`.

    Of one that has expired that is when it did; of any other it is 0.
    """

    hold_id: bytes
    state: HoldState
    deadline_ns: int
    lines: tuple[HoldLine, ...]


@dataclass(frozen=True, slots=True)
class HoldEvent:
    """One line of an operation on a hold, as the journal has it; see HistoryEvent of the contract.

    The codes are those in force, "" where the line names nothing.
    """

    op_id: bytes
    line: int
    kind: Kind
    flags: Flag
    sku: int
    location: int
    quantity: int
    value: int
    channel: int
    occurred_at_ns: int
    status: Status
    now_ns: int
    shard: int
    epoch: int
    seq: int
    sku_code: str = ""
    location_code: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """A hold as it stands (None: unknown or forgotten) and the operations on it, oldest first.

    `complete` is False when the journal has been trimmed since the hold was made.
    """

    hold: Hold | None
    events: tuple[HoldEvent, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class IncomingLine:
    """One line of what is on its way, in base units.

    What of `expected` is neither outstanding nor received was cancelled; more than it is a surplus.
    """

    sku: int
    location: int
    outstanding: int
    received: int
    expected: int


@dataclass(frozen=True, slots=True)
class DatedIncoming:
    """Units of one cell that one record has outstanding; `expected_at_ms` 0: not known."""

    sku: int
    location: int
    expected_at_ms: int
    quantity: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """What is on its way as it stands; `state` is INCOMING, RECEIVED or DROPPED."""

    incoming_id: bytes
    state: HoldState
    expected_at_ms: int
    lines: tuple[IncomingLine, ...]


@dataclass(frozen=True, slots=True)
class TransferLine:
    """One SKU of a transfer, in base units.

    `requested` is less what was cancelled. `difference`: received and in transit less shipped; below
    zero was lost, above came too much.
    """

    sku: int
    requested: int
    shipped: int
    in_transit: int
    received: int
    difference: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer as it stands; `expected_at_ms` is of what is in transit, 0 when not known."""

    transfer_id: bytes
    lines: tuple[TransferLine, ...]
    expected_at_ms: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One SKU at one location, in base units; all zero when not `found`.

    Of a bundle, only what is available is told, in pieces of it.
    """

    sku: int
    location: int
    found: bool
    on_hand: int
    reserved: int
    committed: int
    damaged: int
    quality_control: int
    safety_stock: int
    incoming: int
    available: int
    price_minor: int
    price_version: int
    available_to_channel: int = 0  # when one was asked for


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one cell, in minor units of `currency`; None when it has none."""

    sku: int
    price_minor: int | None
    price_version: int
    currency: str


@dataclass(frozen=True, slots=True)
class CellPage:
    """Cells as columns of shape (n,): ids are uint32, `price_version` too, all else int64.

    `at`: up to which block of each shard the page is true, as (shard, epoch, seq).
    """

    sku: NDArray[np.uint32]
    location: NDArray[np.uint32]
    on_hand: NDArray[np.int64]
    reserved: NDArray[np.int64]
    committed: NDArray[np.int64]
    damaged: NDArray[np.int64]
    quality_control: NDArray[np.int64]
    safety_stock: NDArray[np.int64]
    incoming: NDArray[np.int64]
    price_minor: NDArray[np.int64]
    price_version: NDArray[np.uint32]
    at: tuple[tuple[int, int, int], ...]
    available_to_channel: NDArray[np.int64] | None = None  # when one was asked for

    def __len__(self) -> int:
        return len(self.sku)

    @property
    def available(self) -> NDArray[np.int64]:
        """What may be sold, by cell; negative is a shortage."""
        kept = self.damaged + self.quality_control + self.safety_stock
        return self.on_hand - self.reserved - self.committed - kept


@dataclass(frozen=True, slots=True)
class Sku:
    """A SKU of the catalogue. `unit`: EA, G or ML. `id` and `old_codes` are given by the catalogue.

    With `components`, pairs of a SKU and the base units of it in one piece, it is a bundle: it has
    no stock of its own, and its components are in the catalogue already.
    """

    code: str
    unit: str = "EA"
    description: str = ""
    gtins: tuple[str, ...] = ()
    id: int = 0
    components: tuple[tuple[Name, int], ...] = ()
    old_codes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Location:
    """A location of the catalogue. `id` and `shard` are given by the catalogue."""

    code: str
    currency: str
    description: str = ""
    id: int = 0
    shard: int = 0


@dataclass(frozen=True, slots=True)
class Channel:
    """A way of selling, with its rules. `number` is given by the catalogue.

    `buffer`: so many base units of each cell it may not sell. `locations` have rules of their own: a
    buffer, or None for the channel's; with `only_listed` it sells from no others.
    """

    code: str
    buffer: int = 0
    only_listed: bool = False
    locations: Mapping[Name, int | None] = field(default_factory=dict)
    number: int = 0


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch was answered, line by line.

    `status` (n,) uint8: `Status`. `available` (n,) int64, when asked for, as `LineResult` has it.
    `hold_ids` (n, 16) uint8: each line's own id, which is the hold's id where a RESERVE opened one
    (the first of linked lines). `now_ns` (n,) uint64: time of the line's block; a hold's deadline is
    that + its ttl.
    `granted` (n,) int64: base units held of lines with PARTIAL, else zero. `endangered`: of lines
    that left a shortage, (line, a hold whose stock is missing).
    """

    op_id: bytes
    status: NDArray[np.uint8]
    available: NDArray[np.int64] | None
    hold_ids: NDArray[np.uint8]
    now_ns: NDArray[np.uint64]
    granted: NDArray[np.int64]
    endangered: tuple[tuple[int, Endangered], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every line was done."""
        return not self.status.any()

    @property
    def refused(self) -> NDArray[np.intp]:
        """The indices of the lines that were refused."""
        return np.flatnonzero(self.status)

    def message(self, line: int) -> str:
        """Say for people why a line was refused; "done" when it was not."""
        return MESSAGES[Status(int(self.status[line]))]
