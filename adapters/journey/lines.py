"""The columns of a plan, and how parts of it are put together in the order of time."""

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Lines of one second and one basket go in this order; parts of equal rank keep their own.
RANK_PRICE: Final = 0  # before the line that was sold at it
RANK_LINE: Final = 1
RANK_STEP: Final = 2
RANK_RETURN: Final = 3

# A sort key is second, basket, rank, from the high bits down.
RANK_BITS: Final = 2
BASKET_BITS: Final = 18

# What a column holds where a part says nothing of it.
DEFAULTS: Final[dict[str, int]] = {
    "linked": 0,
    "sku": 0,
    "quantity": 0,
    "value": 0,
    "order": -1,
    "basket": -1,
    "row": -1,
    "after": -1,
}


@dataclass(frozen=True, slots=True)
class Lines:
    """n lines to replay, as columns of shape (n,); see `Batch` for those the engine is told.

    `second`: of the data's time, since 2017-01-01T00:00:00. `basket`: counts baskets from 0, or -1.
    `row`: the row of the data's file that the line stands for, or comes from, or -1. `after`: the
    line whose outcome must be known before this one is sent, or -1.
    """

    kind: NDArray[np.uint8]
    linked: NDArray[np.uint8]
    sku: NDArray[np.uint32]
    store: NDArray[np.uint32]
    quantity: NDArray[np.int64]
    value: NDArray[np.int64]
    order: NDArray[np.int64]
    second: NDArray[np.int32]
    basket: NDArray[np.int32]
    row: NDArray[np.int32]
    after: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.kind)


DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "kind": np.dtype("u1"),
    "linked": np.dtype("u1"),
    "sku": np.dtype("<u4"),
    "store": np.dtype("<u4"),
    "quantity": np.dtype("<i8"),
    "value": np.dtype("<i8"),
    "order": np.dtype("<i8"),
    "second": np.dtype("<i4"),
    "basket": np.dtype("<i4"),
    "row": np.dtype("<i4"),
    "after": np.dtype("<i4"),
}
assert set(DTYPES) == {column.name for column in fields(Lines)}

Part = dict[str, NDArray[Any]]


def part(size: int, **columns: Any) -> Part:
    """`size` lines from arrays of shape (size,) and scalars, which take no memory."""
    assert set(columns) <= set(DTYPES)
    given = DEFAULTS | columns
    return {
        name: np.broadcast_to(np.asarray(given[name]).astype(dtype, copy=False), (size,))
        for name, dtype in DTYPES.items()
    }


def size(lines: Part) -> int:
    """How many lines a part has."""
    return len(lines["kind"])


def join(opening: list[Part], trading: list[tuple[int, Part]]) -> Lines:
    """One plan of the parts: the opening as given, then the trading, (rank, part), as time orders.

    In a part of the trading, `after` counts the concatenated lines before they are put in order.
    Column by column, so that no more than one column exists twice.
    """
    order = _in_time(trading)
    offset = sum(size(lines) for lines in opening)
    joined: dict[str, NDArray[Any]] = {}
    for name, dtype in DTYPES.items():
        traded = np.concatenate([lines[name] for _, lines in trading])[order]
        if name == "after":
            place = np.empty(len(order), dtype)
            place[order] = np.arange(offset, offset + len(order), dtype=dtype)
            traded = np.where(traded >= 0, place[traded], traded)
        joined[name] = np.concatenate([*(lines[name] for lines in opening), traded])
    return Lines(**joined)


def _in_time(trading: list[tuple[int, Part]]) -> NDArray[np.intp]:
    """The order in which the concatenated lines of (rank, part) pairs are replayed, shape (n,)."""
    keys = [
        (lines["second"].astype(np.int64) << (BASKET_BITS + RANK_BITS))
        | (lines["basket"].astype(np.int64) << RANK_BITS)
        | rank
        for rank, lines in trading
    ]
    return np.argsort(np.concatenate(keys), kind="stable")
