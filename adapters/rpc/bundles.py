"""Bundles in single calls: a line of a bundle stands for lines of its components.

The shards know no bundles: what is reserved, sold and returned is stock of the components. So lines
are expanded before they are sent on, and the answers of a bundle's lines become one again. A batch
has no bundles: its lines' places are their ids.

A component that was sold under a receipt's id has an id of its own (`adapters.rpc.sold`); one of an
order is in the order's hold like any other line.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.router import Router
from actors.shards import every
from adapters.rpc import sold
from adapters.rpc.requests import InvalidField
from engine import limits
from engine.catalogue import Catalogue
from engine.history import History
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
from engine.views import Hold

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
_NO_KIND: Final = 0
_INVALID_KIND: Final = bytes((Status.INVALID_KIND,))
_HOLD_EXISTS: Final = bytes((Status.HOLD_EXISTS,))
_NO_SALES: Final[Mapping[bytes, Mapping[int, bytes]]] = {}
# Answers of a component that are those of its bundle only when no other component says more.
_LESS_TELLING: Final = (Status.OK, Status.ALREADY_RECORDED, Status.LINKED_LINE_REFUSED)


Send = Callable[[Request], Awaitable[tuple[int, Answer]]]
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


class BundleRouter:
    """A router for single calls, which may name bundles; what it raises besides is InvalidField.

    A shard by itself refuses a call of which a line, or a component, is another shard's: as a whole, and
    nothing of it is judged or remembered. Sent again to a gateway, with the same op_id, it is cut by
    shard, and a shard that had judged all of its lines before would answer for the wrong ones. So is an
    exchange for goods that may have been sold elsewhere: a gateway takes it step by step, each under an
    id of its own, and what a shard had done in one it would do again.
    """

    def __init__(self, router: Router, catalogue: Catalogue) -> None:
        self._router = router
        self._catalogue = catalogue

    async def submit(self, request: Request) -> tuple[int, Answer]:
        """Apply lines that are judged one by one, as `Router.submit`."""
        taken = await self._taken(request)
        expanded = await self._expanded(request, "lines[{}]".format)
        if taken and expanded is not None:
            # Of no kind, which is refused, and otherwise what they are: the lines stay as many, each with
            # its shard. So a repetition for which nothing is taken is told the same, and so is one for
            # which something has come to be.
            expanded.request.columns["kind"][np.isin(expanded.origin, taken)] = _NO_KIND
        shard, answer = await self._sent(request, expanded, self._router.submit)
        if _INVALID_KIND in answer.status:
            answer = replace(answer, status=answer.status.replace(_INVALID_KIND, _HOLD_EXISTS))
        return shard, answer

    async def reserve(self, request: Request) -> tuple[int, Answer]:
        """Hold all lines of one order, as `Router.reserve`."""
        return await self._send(request, self._router.reserve)

    async def move(self, request: Request) -> tuple[int, Answer]:
        """Move lines of a hold, as `Router.move`."""
        return await self._send(request, self._router.move)

    async def on_hold(self, request: Request, location: int = 0) -> tuple[int, Answer]:
        """Apply lines on one hold, as `Router.on_hold`."""
        return await self._send(request, lambda sent: self._router.on_hold(sent, location))

    async def hold(self, hold_id: bytes, location: int) -> Hold | None:
        """Look a hold up, as `Router.hold`, or what was sold of a bundle."""
        if not self._catalogue.has_bundles:
            return await self._router.hold(hold_id, location)
        return await sold.hold(self._router, hold_id, location)

    async def history(self, hold_id: bytes, location: int) -> tuple[Hold | None, History]:
        """Look a hold up with the operations on it, or what was sold of a bundle."""
        if not self._catalogue.has_bundles:
            told = await self._router.history(hold_id, location)
            return await self._router.hold(hold_id, location), told
        return await sold.history(self._router, hold_id, location)

    async def returned(self, request: Request, sold_at: Sequence[int]) -> tuple[int, Answer]:
        """Record what came back, as `Router.returned`."""
        expanded = await self._expanded(request, "lines[{}].line".format)
        of = sold_at if expanded is None else expanded.of_parts(sold_at)
        return await self._sent(request, expanded, lambda sent: self._router.returned(sent, of))

    async def exchange(
        self, request: Request, sold_at: Sequence[int], returns: int
    ) -> tuple[int, Answer]:
        """Apply so many returns and the reserves behind them, as `Router.exchange`."""

        def path(i: int) -> str:
            return f"returns[{i}].line" if i < returns else f"lines[{i - returns}]"

        expanded = await self._expanded(request, path)
        of = sold_at if expanded is None else expanded.of_parts(sold_at)
        foreign = self._sold_elsewhere(request if expanded is None else expanded.request, of)
        return await self._sent(
            request, expanded, lambda sent: self._router.exchange(sent, of), foreign
        )

    async def _taken(self, request: Request) -> list[int]:
        """The lines that sell a bundle under the id of something else that was sold.

        Its first component may be that very thing, and recorded; the others would be sold all the
        same, under ids of their own. Components of a location that is split may be sold one by one
        by an attempt that ended half-way, so there this is not known.
        """
        if not self._catalogue.has_bundles or Kind.SALE not in column_of(request, "kind"):
            return []
        is_sale = _bundle_lines(request, self._catalogue) & (
            column_of(request, "kind") == Kind.SALE
        )
        names = ("location", "hold_hi", "hold_lo")
        location, high, low = (column_of(request, name) for name in names)
        sku = column_of(request, "sku")
        asked = [
            i
            for i in np.flatnonzero(is_sale & ((high | low) != 0)).tolist()
            if len(self._catalogue.components(int(sku[i]))) > 1
            and not self._router.is_split(int(location[i]))
        ]
        ids = [pair_to_id(int(high[i]), int(low[i])) for i in asked]
        found = await every(
            self._router.hold(sold.part_id(each, number), int(location[i]))
            for i, each in zip(asked, ids, strict=True)
            for number in (0, 1)
        )
        pairs = zip(asked, found[::2], found[1::2], strict=True)
        return [i for i, first, second in pairs if first is not None and second is None]

    async def _send(self, request: Request, send: Send) -> tuple[int, Answer]:
        return await self._sent(request, await self._expanded(request, "lines[{}]".format), send)

    async def _sent(
        self,
        request: Request,
        expanded: Expanded | None,
        send: Send,
        foreign: Collection[int] = (),
    ) -> tuple[int, Answer]:
        """Send a request, unless some of its lines, of its expanded form if it has one, are foreign."""
        sent = request if expanded is None else expanded.request
        foreign = {*foreign, *self._elsewhere(sent)}
        shard, answer = (
            (self._router.first, not_here(sent, foreign)) if foreign else await send(sent)
        )
        return shard, answer if expanded is None else expanded.folded(answer)

    @property
    def _is_one_of_many(self) -> bool:
        # There is no shard map before there are locations.
        return self._catalogue.locations > 0 and self._router.is_one_of_many

    def _elsewhere(self, request: Request) -> list[int]:
        """The lines whose cells another shard owns, as a shard by itself sees it.

        What is not in the catalogue is so everywhere, and any shard says that.
        """
        if not self._is_one_of_many:
            return []
        skus, locations = column_of(request, "sku"), column_of(request, "location")
        is_move = column_of(request, "kind") == Kind.MOVE
        leaves = np.where(is_move, column_of(request, "value"), 0)
        return [*self._not_owned(skus, locations), *self._not_owned(skus, leaves)]

    def _not_owned(self, skus: NDArray[Any], locations: NDArray[Any]) -> list[int]:
        catalogue = self._catalogue
        known = [
            (sku if sku <= catalogue.skus else 0, at if at <= catalogue.locations else 0)
            for sku, at in zip(skus.tolist(), locations.tolist(), strict=True)
        ]
        return self._router.elsewhere(known)

    def _sold_elsewhere(self, request: Request, sold_at: Sequence[int]) -> list[int]:
        """The lines that bring back what may not have been sold on this shard alone."""
        if not self._is_one_of_many:
            return []
        is_named = (column_of(request, "hold_hi") | column_of(request, "hold_lo")) != 0
        named = np.flatnonzero(is_named).tolist()
        return [place for place in named if not self._router.has_all_of(sold_at[place])]

    async def _expanded(self, request: Request, path: Path) -> Expanded | None:
        """Expand a request; None when nothing in it is of a bundle."""
        catalogue = self._catalogue
        if not catalogue.has_bundles:
            return None
        sales = await self._sales(request)
        if not sales and not names_bundles(request, catalogue):
            return None
        return expand(request, catalogue, sales, path)

    async def _sales(self, request: Request) -> dict[bytes, dict[int, bytes]]:
        """What lines bring back of bundles that were sold: SKU by SKU, the ids of their sales.

        What came back may be of an order as well, and only looking it up tells.
        """
        found: dict[bytes, dict[int, bytes]] = {}
        for sale_id in returned_of(request, self._catalogue):
            parts = await sold.parts_of(self._router, sale_id)
            if set(parts) - {sale_id}:
                of = [(line.sku, each) for each, part in parts.items() for line in part.lines]
                found[sale_id] = dict(of)
        return found


def not_here(request: Request, foreign: Collection[int]) -> Answer:
    """The answer to a call that was not judged since these lines are another shard's."""
    status = bytearray((Status.LINKED_LINE_REFUSED,)) * request.lines
    for place in foreign:
        status[place] = Status.WRONG_SHARD
    return Answer(bytes(status), bytes(8 * request.lines), 0, 0, 0)


def names_bundles(request: Request, catalogue: Catalogue) -> bool:
    """Whether a line of stock is of a bundle; a price of one is its own."""
    return bool(_bundle_lines(request, catalogue).any())


def refuse_in_batch(request: Request, catalogue: Catalogue) -> None:
    """Refuse a batch whose stock lines name a bundle."""
    if catalogue.has_bundles:
        found = np.flatnonzero(_bundle_lines(request, catalogue))
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
    is_bundle = _bundle_lines(request, catalogue)
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


def _bundle_lines(request: Request, catalogue: Catalogue) -> NDArray[np.bool_]:
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
