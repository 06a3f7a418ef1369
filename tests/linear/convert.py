"""Between calls and the columns that the engine and its clients take."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adapters.client.values import ReceiptLine
from adapters.receipts import sale_id
from engine.currencies import NUMBERS
from engine.operations import COLUMNS, Flag, Kind, id_to_pair, line_id
from engine.status import Status
from tests.linear.history import HAND_OVER, Answer, Call, Key

_NO_LINE: Final = ((0, 0), 0)
_NOBODY: Final = bytes(16)
_COLUMNS: Final = (
    "kind", "flags", "sku", "location", "quantity", "value", "currency", "hold_hi", "hold_lo",
    "occurred_at_ns",
)  # fmt: skip
_LAST: Final = int(Flag.RELEASE_REST)  # stands on the last of linked lines
_FIRST: Final = int(Flag.SUPERSEDE)  # stands on the first
CURRENCY: Final = "USD"  # of all locations


def columns(calls: Sequence[Call]) -> dict[str, NDArray[Any]]:
    """The lines of some calls as `engine.operations.COLUMNS`."""
    rows = [row for call in calls for row in _rows(call)]
    return {
        name: np.array(values, COLUMNS[name])
        for name, values in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    }


def _rows(call: Call) -> list[tuple[int, ...]]:
    if call.kind == HAND_OVER:
        gives = call._replace(kind=Kind.RELEASE)
        takes = call._replace(kind=Kind.ADD_LINE, hold=call.other)
        return [*_linked(_rows(gives)), *_rows(takes)]
    returns = [row for each in call.returns for row in _rows(each)]
    lines = call.lines or (_NO_LINE,)
    own = [
        (
            int(call.kind), flags, *key, quantity, _value(call),
            NUMBERS[CURRENCY] if call.kind == Kind.SET_PRICE else 0,
            *_named(call, is_first=not place), call.occurred_at_ns,
        )
        for place, ((key, quantity), flags) in enumerate(
            zip(lines, _flags(call, len(lines)), strict=True)
        )
    ]  # fmt: skip
    return _linked(returns) + own


def _linked(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [(kind, flags | int(Flag.LINKED), *rest) for kind, flags, *rest in rows]


def _flags(call: Call, lines: int) -> list[int]:
    linked = [int(Flag.LINKED)] * (lines - 1) + [0]
    flags = [call.flags & ~_LAST & ~_FIRST | each for each in linked]
    flags[0] |= call.flags & _FIRST
    flags[-1] |= call.flags & _LAST
    return flags


def _value(call: Call) -> int:
    # A sale does not say the number of its receipt; it is in the sale's id.
    return 0 if call.kind == Kind.SALE else call.value


def _named(call: Call, *, is_first: bool) -> tuple[int, int]:
    """The hold that stands in a line: of an order, the one that it takes the place of."""
    if call.kind == Kind.RESERVE:
        return id_to_pair(call.other if call.other and is_first else _NOBODY)
    return id_to_pair(call.hold or _NOBODY)


def receipt(key: Key, number: int) -> ReceiptLine:
    """The only line of a receipt; each SKU has a till of its own."""
    return ReceiptLine(str(key[0]), str(number), 1)


def receipt_id(key: Key, number: int) -> bytes:
    """The id of the sale that a receipt is of."""
    return sale_id(key[1], *receipt(key, number))


def lines_of(call: Call) -> int:
    """How many lines a call is."""
    return 2 if call.kind == HAND_OVER else max(1, len(call.lines)) + len(call.returns)


def named(op_id: bytes, calls: Sequence[Call]) -> tuple[Call, ...]:
    """The calls of a request, with the ids that their orders give their holds."""
    found, index = [], 0
    for call in calls:
        is_order = call.kind == Kind.RESERVE
        found.append(call._replace(hold=line_id(op_id, index)) if is_order else call)
        index += lines_of(call)
    return tuple(found)


def answers(
    calls: Sequence[Call],
    status: Sequence[int],
    available: Sequence[int] | None,
    granted: Sequence[int],
) -> tuple[Answer, ...]:
    """The answers to calls out of the columns that answer their lines."""
    told: Sequence[int | None] = [None] * len(status) if available is None else available
    lines = [(Status(code), amount) for code, amount in zip(status, told, strict=True)]
    found: list[Answer] = []
    first = 0
    for call in calls:
        end = first + lines_of(call)
        answer: Answer = tuple(lines[first:end])
        if call.flags & Flag.PARTIAL:
            units = granted[first:end]
            answer = tuple((*each, got) for each, got in zip(answer, units, strict=True))
        found.append(answer)
        first = end
    assert first == len(lines)
    return tuple(found)
