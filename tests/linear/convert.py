"""Between calls and the columns that the engine and its clients take."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.operations import COLUMNS, Flag, Kind, id_to_pair, line_id
from engine.status import Status
from tests.linear.history import Answer, Call

_NO_LINE: Final = ((0, 0), 0)
_COLUMNS: Final = (
    "kind", "flags", "sku", "location", "quantity", "value", "hold_hi", "hold_lo",
)  # fmt: skip


def columns(calls: Sequence[Call]) -> dict[str, NDArray[Any]]:
    """The lines of some calls as `engine.operations.COLUMNS`."""
    rows = [row for call in calls for row in _rows(call)]
    return {
        name: np.array(values, COLUMNS[name])
        for name, values in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    }


def _rows(call: Call) -> list[tuple[int, ...]]:
    lines = call.lines or (_NO_LINE,)
    linked = [int(Flag.LINKED)] * (len(lines) - 1)
    last = int(Flag.RELEASE_REST) if call.release_rest else 0
    return [
        (int(call.kind), flags, *key, quantity, call.value, *id_to_pair(call.hold))
        for (key, quantity), flags in zip(lines, [*linked, last], strict=True)
    ]


def lines_of(call: Call) -> int:
    """How many lines a call is."""
    return max(1, len(call.lines))


def named(op_id: bytes, calls: Sequence[Call]) -> tuple[Call, ...]:
    """The calls of a request, with the ids that its reserves give their holds."""
    found, index = [], 0
    for call in calls:
        is_reserve = call.kind == Kind.RESERVE
        found.append(call._replace(hold=line_id(op_id, index)) if is_reserve else call)
        index += lines_of(call)
    return tuple(found)


def answers(
    calls: Sequence[Call], status: Sequence[int], available: Sequence[int] | None
) -> tuple[Answer, ...]:
    """The answers to calls out of the columns that answer their lines."""
    told: Sequence[int | None] = [None] * len(status) if available is None else available
    lines = [(Status(code), amount) for code, amount in zip(status, told, strict=True)]
    found, first = [], 0
    for call in calls:
        found.append(tuple(lines[first : first + lines_of(call)]))
        first += lines_of(call)
    assert first == len(lines)
    return tuple(found)
