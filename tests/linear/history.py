"""What concurrent clients saw: operations with the time that each took, and what it was answered.

A history may be checked in parts, because cells are independent of each other: what every part
allows, the whole allows. Cells that one order or one hold joins are one part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from engine.operations import Flag, Kind

Key: TypeAlias = tuple[int, int]  # (sku, location): names a cell

# Kinds of calls that change nothing.
READ: Final = "READ"  # a cell: its counters, in the order of `state.Cell`
LOOK_UP: Final = "LOOK_UP"  # a hold: (state, deadline), then a line its cell and its units
LOOK_UP_INCOMING: Final = "LOOK_UP_INCOMING"  # a record: (state, expected at), then its lines
READS: Final = (READ, LOOK_UP, LOOK_UP_INCOMING)

HAND_OVER: Final = "HAND_OVER"  # a RELEASE with an ADD_LINE: units go from one hold to another

# What clients ask of a transfer, and the gateway in steps of the shard.
SHIP: Final = "SHIP"  # goods leave their source
SHIPPED: Final = "SHIPPED"  # after that: what has left is expected where it goes
ARRIVE: Final = "ARRIVE"  # goods are taken in
LOSE: Final = "LOSE"  # goods will not come


class Call(NamedTuple):
    """What is judged by itself: a fact about one cell, an order of lines, a call on a hold, a read.

    `hold` is the hold's id, for a reserve the one that it will have; a record's, a sale's, or a
    transfer's. `value` is what `engine.operations.Kind` says: for a reserve its time to live in ms,
    for a return where the goods go; for a sale with an id the number of its receipt; for a shipment
    where it goes. A move's cells are those that it goes to, of one SKU or (0) of all. A call on a hold
    without lines is about all of it. Lines are linked; of the flags, those of an order's first or last
    line stand there.
    """

    kind: Kind | str
    lines: tuple[tuple[Key, int], ...] = ()  # cell, quantity in base units
    hold: bytes = b""
    value: int = 0
    flags: int = 0  # `engine.operations.Flag`, without LINKED
    # The hold that an order takes the place of, or that units are handed over to; the transfer that
    # a record is of; the id of a shipment.
    other: bytes = b""
    occurred_at_ns: int = 0
    returns: tuple["Call", ...] = ()  # linked before a return, or before the order of an exchange

    def __str__(self) -> str:
        name = self.kind.name if isinstance(self.kind, Kind) else self.kind
        words = [f"{each}, and" for each in self.returns]
        words += [name.lower().replace("_", " ")]
        of = "" if self.kind == READ else "{} of "
        words += [f"{of.format(quantity)}{sku}@{at}" for (sku, at), quantity in self.lines]
        words += [f"hold {self.hold.hex()[-8:]}"] if self.hold else []
        words += [f"value {self.value}"] if self.value else []
        words += [repr(Flag(self.flags))] if self.flags else []
        words += [f"for {self.other.hex()[-8:]}"] if self.other else []
        words += [f"as of {self.occurred_at_ns}"] if self.occurred_at_ns else []
        return " ".join(words)

    @property
    def ids(self) -> list[bytes]:
        """The holds, records and transfers that it names."""
        back = [each.hold for each in self.returns]
        return [each for each in (self.hold, self.other, *back) if each]

    @property
    def cells(self) -> list[Key]:
        """The cells that it names."""
        back = [cell for each in self.returns for cell in each.cells]
        return [*back, *(cell for cell, _ in self.lines if cell[0])]


# A tuple a line: (status, available) of an operation, and what was granted if it may be less; the
# values of a read. None: it was not told.
Answer: TypeAlias = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """Calls that take effect in this order and with nothing between them, at one moment.

    The moment lies between `invoked_ns` and `answered_ns`, which all clients read off one clock.
    Without `answers` nothing is known: it may take effect at any time after its invocation, or never.
    `at_ns` is the time of its block by the shard's clock, if the answer tells it: blocks have an
    order, which is that of their times.
    """

    client: str
    invoked_ns: int
    answered_ns: int | None
    calls: tuple[Call, ...]
    answers: tuple[Answer, ...] | None = None
    at_ns: int | None = None

    @property
    def is_answered(self) -> bool:
        return self.answers is not None

    @property
    def is_read(self) -> bool:
        return all(call.kind in READS for call in self.calls)

    def told(self, since_ns: int) -> str:
        """A line for people, with times in ms since a moment."""
        began = f"{(self.invoked_ns - since_ns) / 1e6:.3f}"
        if self.answers is None or self.answered_ns is None:
            return f"{self.client}, from {began} ms: {'; '.join(map(str, self.calls))} -> no answer"
        ended = f"{(self.answered_ns - since_ns) / 1e6:.3f}"
        answered = [
            f"{call} -> {shown(answer)}"
            for call, answer in zip(self.calls, self.answers, strict=True)
        ]
        block = "" if self.at_ns is None else f" (block of {self.at_ns})"
        return f"{self.client}, {began} to {ended} ms{block}: {'; '.join(answered)}"


def shown(answer: Answer) -> str:
    """An answer for people; statuses by their names."""
    return ", ".join(
        "(" + " ".join(getattr(each, "name", str(each)) for each in line) + ")" for line in answer
    )


def parts(history: Iterable[Operation]) -> list[list[Operation]]:
    """The history's independent parts, the longest first, each in order of invocation."""
    operations = sorted(history, key=lambda each: each.invoked_ns)
    calls = [call for operation in operations for call in operation.calls]
    of = _Groups()
    skus: dict[bytes, set[int]] = {}
    for call in calls:
        of.join([*call.ids, *call.cells])
        for each in call.ids:
            skus.setdefault(each, set()).update(sku for sku, _ in call.cells)
    for call in calls:
        if call.kind == Kind.MOVE and not call.cells:
            # A hold that moves as a whole takes all of its SKUs to where it goes.
            (((_, to), _),) = call.lines
            of.join([call.hold, *((sku, to) for sku in skus[call.hold])])
    found: dict[Any, list[Operation]] = {}
    for operation in operations:
        groups = [of.group((*call.ids, *call.cells)[0]) for call in operation.calls]
        for group in dict.fromkeys(groups):
            own = [place for place, each in enumerate(groups) if each == group]
            found.setdefault(group, []).append(_of_calls(operation, own))
    return sorted(found.values(), key=len, reverse=True)


def _of_calls(operation: Operation, places: Sequence[int]) -> Operation:
    if len(places) == len(operation.calls):
        return operation
    answers = operation.answers
    return replace(
        operation,
        calls=tuple(operation.calls[place] for place in places),
        answers=None if answers is None else tuple(answers[place] for place in places),
    )


class _Groups:
    """Names that belong together (union-find)."""

    def __init__(self) -> None:
        self._above: dict[Any, Any] = {}

    def group(self, name: Any) -> Any:
        above = self._above
        while (up := above.setdefault(name, name)) != name:
            above[name] = above[up]
            name = up
        return name

    def join(self, names: Sequence[Any]) -> None:
        first = self.group(names[0])
        for name in names[1:]:
            self._above[self.group(name)] = first
