"""What concurrent clients saw: operations with the time that each took, and what it was answered.

A history may be checked in parts, because cells are independent of each other: what every part
allows, the whole allows. Cells that one order or one hold joins are one part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from engine.operations import Kind

Key: TypeAlias = tuple[int, int]  # (sku, location): names a cell

# Kinds of calls that change nothing.
READ: Final = "READ"  # a cell: its counters, in the order of `spec.Cell`
LOOK_UP: Final = "LOOK_UP"  # a hold: its state, then (pending, committed, fulfilled) a line


class Call(NamedTuple):
    """What is judged by itself: a fact about one cell, an order of lines, a call on a hold, a read.

    `hold` is the hold's id, for a reserve the one that it will have. `value` is what
    `engine.operations.Kind` says: for a reserve its time to live in ms, for a return where the goods
    go. A call on a hold without lines is about all of it.
    """

    kind: Kind | str
    lines: tuple[tuple[Key, int], ...] = ()  # cell, quantity in base units
    hold: bytes = b""
    value: int = 0
    release_rest: bool = False

    def __str__(self) -> str:
        name = self.kind.name if isinstance(self.kind, Kind) else self.kind
        words = [name.lower().replace("_", " ")]
        of = "" if self.kind == READ else "{} of "
        words += [f"{of.format(quantity)}{sku}@{at}" for (sku, at), quantity in self.lines]
        words += [f"hold {self.hold.hex()[-8:]}"] if self.hold else []
        words += [f"value {self.value}"] if self.value else []
        words += ["and release the rest"] if self.release_rest else []
        return " ".join(words)


# A tuple a line: (status, available) of an operation, the values of a read. None: it was not told.
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
    of = _Groups()
    for operation in operations:
        for call in operation.calls:
            of.join(_names(call))
    found: dict[Any, list[Operation]] = {}
    for operation in operations:
        groups = [of.group(_names(call)[0]) for call in operation.calls]
        for group in dict.fromkeys(groups):
            own = [place for place, each in enumerate(groups) if each == group]
            found.setdefault(group, []).append(_of_calls(operation, own))
    return sorted(found.values(), key=len, reverse=True)


def _names(call: Call) -> list[Any]:
    """The cells and the hold that a call is about."""
    return [cell for cell, _ in call.lines] + ([call.hold] if call.hold else [])


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
