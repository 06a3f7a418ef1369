"""The way of single calls (unary ones) to a router, and what must be so before they are sent on.

Lines of bundles become lines of their components (`adapters.rpc.bundles`). And a shard's own server
leaves alone what is also about other shards.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.router import Router
from actors.shards import every
from adapters.rpc import sold
from adapters.rpc.bundles import (
    Expanded,
    Path,
    expand,
    names_bundles,
    returned_of,
)
from engine.catalogue import Catalogue
from engine.history import History
from engine.operations import Answer, Kind, Request, column_of, pair_to_id
from engine.status import Status
from engine.views import Hold

_NO_KIND: Final = 0
_INVALID_KIND: Final = bytes((Status.INVALID_KIND,))
_HOLD_EXISTS: Final = bytes((Status.HOLD_EXISTS,))

Send = Callable[[Request], Awaitable[tuple[int, Answer]]]


class UnaryRouter:
    """A router for single calls, of stock and of prices; what it raises besides is InvalidField.

    A shard by itself refuses a call of which a line, or a component, is another shard's: as a whole, and
    nothing of it is judged or remembered. Sent again to a gateway, with the same op_id, it is cut by
    shard, and a shard that had judged all of its lines before would answer for the wrong ones.

    An exchange for goods that may have been sold elsewhere is refused so too: a gateway takes it step by
    step, each under an id of its own, and would do again what a shard had done in one.
    """

    def __init__(self, router: Router, catalogue: Catalogue) -> None:
        self._router = router
        self._catalogue = catalogue

    async def submit(self, request: Request) -> tuple[int, Answer]:
        """Apply lines that are judged one by one, as `Router.submit`."""
        taken = await self._taken(request)
        expanded = await self._expanded(request, "lines[{}]".format)
        if taken and expanded is None:
            request = _blanked(request, np.isin(np.arange(request.lines), taken))
        elif taken and expanded is not None:
            blanked = _blanked(expanded.request, np.isin(expanded.origin, taken))
            expanded = replace(expanded, request=blanked)
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
        """The lines that sell under the id of something else that was sold, and no shard sees it.

        A shard knows the components of a bundle, each as a sale of its own. Some may be those of
        another bundle too, and recorded; the others would be sold all the same, under ids of their
        own. So there must be all of a bundle's components and no other, or none. Components of a
        location that is split may be sold one by one by an attempt that ended half-way, so there
        this is not known.
        """
        catalogue = self._catalogue
        if not catalogue.has_bundles or Kind.SALE not in column_of(request, "kind"):
            return []
        taken: list[int] = []
        sold_as: dict[bytes, list[int]] = {}
        asked: list[tuple[int, bytes, int, list[int]]] = []
        names = ("kind", "sku", "location", "hold_hi", "hold_lo")
        lines = zip(*(column_of(request, name).tolist() for name in names), strict=True)
        for i, (kind, sku, location, high, low) in enumerate(lines):
            if kind != Kind.SALE or not (high or low) or self._router.is_split(location):
                continue
            sale_id = pair_to_id(high, low)
            own = [part for part, _ in catalogue.components(sku)] or [sku]
            other = sold_as.setdefault(sale_id, own)  # by a line before it
            if other != own and len(other) + len(own) > 2:
                taken.append(i)
            elif len(own) > 1 or catalogue.is_component(own[0]):
                asked.append((i, sale_id, location, own))
        # One past the last would be another bundle's. What is sold alone is compared with the first
        # by its shard.
        numbers = [range(len(own) == 1, len(own) + 1) for *_, own in asked]
        found = await every(
            self._router.hold(sold.part_id(sale_id, number), location)
            for (_, sale_id, location, _), of in zip(asked, numbers, strict=True)
            for number in of
        )
        parts = iter(found)
        for (i, *_, own), of in zip(asked, numbers, strict=True):
            skus = [None if part is None else part.lines[0].sku for part in islice(parts, len(of))]
            if any(skus) and skus != [*own, None]:
                taken.append(i)
        return taken

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

        What is not in the catalogue is so everywhere, and any shard says that. But a gateway sends it
        where the map does, so beside lines that go here it is elsewhere as well.
        """
        if not self._is_one_of_many:
            return []
        skus, locations = column_of(request, "sku"), column_of(request, "location")
        is_move = column_of(request, "kind") == Kind.MOVE
        leaves = np.where(is_move, column_of(request, "value"), 0)
        return [*self._not_owned(skus, locations), *self._not_owned(skus, leaves)]

    def _not_owned(self, skus: NDArray[Any], locations: NDArray[Any]) -> list[int]:
        catalogue = self._catalogue
        names = list(zip(skus.tolist(), locations.tolist(), strict=True))
        foreign = self._router.elsewhere(names)
        if len(foreign) < len(names):
            return foreign
        known = [
            (sku if sku <= catalogue.skus else 0, at if at <= catalogue.locations else 0)
            for sku, at in names
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


def _blanked(request: Request, places: NDArray[np.bool_]) -> Request:
    """The request with some lines of no kind, which is refused, and otherwise what they are.

    The lines stay as many, each with its shard. So a repetition for which nothing is taken is told the
    same, and so is one for which something has come to be.
    """
    kind = np.where(places, np.uint8(_NO_KIND), column_of(request, "kind"))
    return request.with_lines(request.lines, request.columns | {"kind": kind})


def not_here(request: Request, foreign: Collection[int]) -> Answer:
    """The answer to a call that was not judged since these lines are another shard's."""
    status = bytearray((Status.LINKED_LINE_REFUSED,)) * request.lines
    for place in foreign:
        status[place] = Status.WRONG_SHARD
    return Answer(bytes(status), bytes(8 * request.lines), 0, 0, 0)
