"""What a line says by itself: its fields, the lines it is linked to, the checks that need no state."""

from typing import Final, NamedTuple, TypeAlias

from engine import limits
from engine.operations import COLUMNS, LINKING_KINDS, Flag, Kind, Request, pair_to_id
from engine.status import Status

Key: TypeAlias = tuple[int, int]  # (sku, location): names a cell
Answer: TypeAlias = tuple[Status, Key | None]  # with the cell whose availability is answered

NO_HOLD: Final = bytes(limits.OP_ID_BYTES)
NO_CELL: Final[Key] = (0, 0)  # an operation on a hold that names no line


class Line(NamedTuple):
    """One line of a request; the fields are those of `operations.COLUMNS`."""

    kind: int
    flags: int
    sku: int
    location: int
    quantity: int
    value: int
    currency: int
    hold_hi: int
    hold_lo: int
    channel: int = 0
    occurred_at_ns: int = 0

    @property
    def key(self) -> Key:
        """The cell that the line names."""
        return self.sku, self.location

    @property
    def hold_id(self) -> bytes:
        """The hold that the line names, or NO_HOLD."""
        return pair_to_id(self.hold_hi, self.hold_lo)


def lines_of(request: Request) -> list[Line]:
    """A request's lines; a column that is missing is all zeros."""
    zeros = [0] * request.lines
    given = request.columns
    columns = [given[name].tolist() if name in given else zeros for name in COLUMNS]
    return [Line(*values) for values in zip(*columns, strict=True)]


def linked_lines(lines: list[Line], first: int) -> list[Line]:
    """The lines that stand or fall together with line `first`."""
    end = first + 1
    if lines[first].kind in LINKING_KINDS:
        while end < len(lines) and lines[end - 1].flags & Flag.LINKED:
            end += 1
    return lines[first:end]


def check_quantity(line: Line) -> Status:
    """Whether the quantity of a fact, a claim or a setting is one."""
    is_signed = line.kind in (Kind.ADJUST, Kind.CLAIM_RETURN)
    may_be_zero = line.kind in (Kind.COUNT, Kind.SET_SAFETY_STOCK)
    if line.kind != Kind.SET_PRICE and (
        (line.quantity < 0 and not is_signed) or (line.quantity == 0 and not may_be_zero)
    ):
        return Status.INVALID_QUANTITY
    return Status.OK if abs(line.quantity) <= limits.MAX_QUANTITY else Status.QUANTITY_TOO_LARGE


def check_moment(line: Line, now_ns: int) -> Status:
    """Whether something can have happened when a line says: since 1970, and not in the future."""
    latest_ns = now_ns + limits.MAX_CLOCK_SKEW_MS * limits.NS_PER_MS
    return Status.OK if 0 <= line.occurred_at_ns <= latest_ns else Status.INVALID_MOMENT


def check_hold_call(line: Line) -> Status:
    """The checks of an operation on a hold that do not need the hold."""
    allowed = 0
    if line.kind == Kind.COMMIT:
        allowed = Flag.RELEASE_REST if line.quantity else Flag.RE_RESERVE
    elif line.kind == Kind.RELEASE and not line.quantity:
        allowed = Flag.SUPERSEDE
    if line.flags not in (0, allowed):
        return Status.INVALID_FLAGS
    if line.quantity < 0:
        return Status.INVALID_QUANTITY
    if line.quantity > limits.MAX_QUANTITY:
        return Status.QUANTITY_TOO_LARGE
    return Status.OK
