"""Bundles in single calls: a line of a bundle stands for lines of its components.

The shards know no bundles: what is reserved, sold and returned is stock of the components. So lines
are expanded before they are sent on, and the answers of a bundle's lines become one again. A batch
has no bundles: its lines' places are their ids.

A component that was sold under a receipt's id has an id of its own (`adapters.rpc.sold`); one of an
order is in the order's hold like any other line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adapters.rpc import sold
from adapters.rpc.requests import InvalidField
from engine import limits
from engine.catalogue import Catalogue
from engine.operations import (
    COLUMNS,
    LINKING_KINDS,
    Answer,
    Flag,
    Kind,
    Request,
    column_of,
    id_to_pair,
    pair_to_id,
)
from engine.status import Status

EXPANDED: Final = (
    Kind.RESERVE,
    Kind.COMMIT,
    Kind.RELEASE,
    Kind.FULFIL,
    Kind.CANCEL,
    Kind.SALE,
    Kind.RETURN,
    Kind.MOVE,
    Kind.UNFULFIL,
)
_NO_SALES: Final[Mapping[bytes, Mapping[int, bytes]]] = {}
# Answers of a component that are those of its bundle only when no other component says more.
_LESS_TELLING: Final = (Status.OK, Status.ALREADY_RECORDED, Status.LINKED_LINE_REFUSED)

Path = Callable[[int], str]
"""Where in its message a line is that has a number in its request."""


@dataclass(frozen=True, slots=True)
class Expanded:
    """A request with lines of components in place of those of bundles.

    `origin` (n,) tells of each of its lines which line of the original it is of, in order; `times`
    (n,) how many base units of it are in one piece of that, 1 where that is no bundle.
    """

    request: Request
    origin: NDArray[np.int64]
    times: NDArray[np.int64]

    def of_parts(self, values: Sequence[int]) -> list[int]:
        """What is said of each line of the original, of each of its lines."""
        return [values[i] for i in self.origin.tolist()]

    def folded(self, answer: Answer) -> Answer:
        """The answer to the original: a line a line, `available` of a bundle in whole pieces.

        `granted` is empty, as no line of a bundle may be PARTIAL. What a bundle's sale endangers has
        an entry for each component that is short.
        """
        starts = np.flatnonzero(np.diff(self.origin, prepend=-1)).tolist()
        slices = [slice(*each) for each in pairwise([*starts, len(self.origin)])]
        status = bytes(_first_refusal(answer.status[of]) for of in slices)
        available = answer.available
        if available:
            pieces = (np.frombuffer(available, "<i8") // self.times).tolist()
            fewest = [
                min(pieces[of][: _looked_at(answer.status[of], told)])
                for of, told in zip(slices, status, strict=True)
            ]
            available = np.array(fewest, "<i8").tobytes()
        endangered = tuple(
            each._replace(line=int(self.origin[each.line])) for each in answer.endangered
        )
        return replace(answer, status=status, available=available, endangered=endangered)


def names_bundles(request: Request, catalogue: Catalogue) -> bool:
    """Whether a line of stock is of a bundle; a price of one is its own."""
    return bool(bundle_lines(request, catalogue).any())


def refuse_in_batch(request: Request, catalogue: Catalogue) -> None:
    """Refuse a batch whose stock lines name a bundle."""
    if catalogue.has_bundles:
        found = np.flatnonzero(bundle_lines(request, catalogue))
        if len(found):
            told = "is a bundle: use single calls, or name its components"
            raise InvalidField("sku", f"that of line {found[0]} {told}")


def returned_of(request: Request, catalogue: Catalogue) -> list[bytes]:
    """The ids of orders or sales of which lines bring bundles or components back, each once."""
    names = ("kind", "sku", "hold_hi", "hold_lo")
    lines = zip(*(column_of(request, name).tolist() for name in names), strict=True)
    return list(
        dict.fromkeys(
            pair_to_id(high, low)
            for kind, sku, high, low in lines
            if kind == Kind.RETURN
            and (high or low)
            and (catalogue.is_component(sku) or catalogue.components(sku))
        )
    )


def expand(
    request: Request,
    catalogue: Catalogue,
    sales: Mapping[bytes, Mapping[int, bytes]] = _NO_SALES,
    path: Path = "lines[{}]".format,
) -> Expanded:
    """The request with the components of its bundles.

    `sales`: of those of `returned_of` that are sales of bundles, the ids of their parts by SKU.
    InvalidField when a bundle cannot be meant, or when what it stands for is beyond a limit.
    """
    is_bundle = bundle_lines(request, catalogue)
    skus, quantities = column_of(request, "sku").tolist(), column_of(request, "quantity").tolist()
    origin, numbers, times, sku_column, quantity_column = [], [], [], [], []
    for i, (sku, quantity) in enumerate(zip(skus, quantities, strict=True)):
        parts: Sequence[tuple[int, int]] = ((sku, 1),)
        if is_bundle[i]:
            parts = catalogue.components(sku)
            _check(request, i, catalogue, path(i))
        for number, (part, per_piece) in enumerate(parts):
            origin.append(i)
            numbers.append(number)
            times.append(per_piece)
            sku_column.append(part)
            # Zero means all of it, and below zero nothing is meant.
            quantity_column.append(quantity * per_piece if quantity > 0 else quantity)
    if len(origin) > limits.MAX_UNARY_LINES:
        most = f"must be at most {limits.MAX_UNARY_LINES}"
        raise InvalidField("lines", f"{len(origin)} with the components of bundles, {most}")
    of = np.array(origin)
    columns = {name: column[of] for name, column in request.columns.items()}
    columns["sku"] = np.array(sku_column, COLUMNS["sku"])
    columns["quantity"] = np.array(quantity_column, COLUMNS["quantity"])
    _check_moves(columns, of, path)
    _set_flags(columns, of)
    _name_sales(columns, numbers, sales)
    # The digest stays that of what the caller sent.
    expanded = request.with_lines(len(of), columns)
    return Expanded(expanded, of, np.array(times))


def _check(request: Request, i: int, catalogue: Catalogue, path: str) -> None:
    """InvalidField unless line i may name a bundle, and so much of it."""
    kind, flags, sku, quantity = (
        int(column_of(request, name)[i]) for name in ("kind", "flags", "sku", "quantity")
    )
    code = catalogue.sku(sku).code
    if kind not in EXPANDED:
        told = "is a bundle, which has no stock of its own: name its components"
        raise InvalidField(f"{path}.sku", f"{code!r} {told}")
    if flags & Flag.PARTIAL:
        told = "is a bundle, of which no part can be held: name its components"
        raise InvalidField(f"{path}.sku", f"{code!r} {told}")
    if kind == Kind.MOVE and not quantity:
        raise InvalidField(f"{path}.quantity", f"not given: {code!r} is a bundle, so say how many")
    for part, per_piece in catalogue.components(sku):
        units = quantity * per_piece
        if units > limits.MAX_QUANTITY:
            told = f"{quantity} of bundle {code!r} are {units} of {catalogue.sku(part).code!r}"
            raise InvalidField(f"{path}.quantity", f"{told}, must be at most {limits.MAX_QUANTITY}")


def _check_moves(columns: dict[str, NDArray[Any]], origin: NDArray[np.int64], path: Path) -> None:
    """InvalidField when a cell is moved twice, which a bundle may hide."""
    moved: set[tuple[int, int]] = set()
    leaves = columns.get("value", np.zeros(len(origin), COLUMNS["value"]))
    for i in np.flatnonzero(columns["kind"] == Kind.MOVE).tolist():
        cell = int(columns["sku"][i]), int(leaves[i])
        if cell in moved:
            told = "has a SKU in common with a line before it: move one after the other"
            raise InvalidField(path(int(origin[i])), told)
        moved.add(cell)


def _set_flags(columns: dict[str, NDArray[Any]], origin: NDArray[np.int64]) -> None:
    """The parts of what can be linked stand or fall together; what is said once stays said once."""
    is_first = np.diff(origin, prepend=-1) != 0
    is_last = np.diff(origin, append=-1) != 0
    reserves = columns["kind"] == Kind.RESERVE
    is_linkable = np.isin(columns["kind"], LINKING_KINDS)
    flags = columns.get("flags", np.zeros(len(origin), COLUMNS["flags"]))
    supersedes = (flags & Flag.SUPERSEDE) != 0
    flags[is_linkable & ~is_last] |= np.uint8(Flag.LINKED)
    flags[reserves & ~is_first] &= np.uint8(0xFF ^ Flag.SUPERSEDE)
    flags[~reserves & ~is_last] &= np.uint8(0xFF ^ Flag.RELEASE_REST)
    columns["flags"] = flags
    for half in ("hold_hi", "hold_lo"):
        if half in columns:
            columns[half][supersedes & ~is_first] = 0


def _name_sales(
    columns: dict[str, NDArray[Any]],
    numbers: Sequence[int],
    sales: Mapping[bytes, Mapping[int, bytes]],
) -> None:
    """Give what was sold of a bundle, or comes back of one, the ids of its parts."""
    if "hold_hi" not in columns and "hold_lo" not in columns:
        return
    lines = len(numbers)
    high, low = (columns.get(name, np.zeros(lines, "<u8")) for name in ("hold_hi", "hold_lo"))
    kinds, skus = columns["kind"], columns["sku"]
    for i in np.flatnonzero((high != 0) | (low != 0)).tolist():
        named = pair_to_id(int(high[i]), int(low[i]))
        if kinds[i] == Kind.SALE:
            named = sold.part_id(named, numbers[i])
        elif kinds[i] == Kind.RETURN:
            named = sales.get(named, {}).get(int(skus[i]), named)
        high[i], low[i] = id_to_pair(named)
    columns |= {"hold_hi": high, "hold_lo": low}


def bundle_lines(request: Request, catalogue: Catalogue) -> NDArray[np.bool_]:
    """Which lines are of a bundle's stock."""
    of_stock: NDArray[np.bool_] = column_of(request, "kind") != Kind.SET_PRICE
    return of_stock & catalogue.are_bundles(column_of(request, "sku"))


def _looked_at(status: bytes, told: int) -> int:
    """How many components of a line were looked at: none after the one that ended its order."""
    if told in _LESS_TELLING or status[-1] != Status.LINKED_LINE_REFUSED:
        return len(status)
    return status.index(told) + 1


def _first_refusal(status: bytes) -> int:
    for code in status:
        if code not in _LESS_TELLING:
            return code
    return max(status)
