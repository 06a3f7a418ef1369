"""The lines of a plan: what stands before trading, and all that happens in it."""

import numpy as np
from numpy.typing import NDArray

from adapters.journey import lines as ln
from adapters.journey.cells import Cells, OpeningStock, Prices
from adapters.journey.dataset import Rows
from adapters.journey.draws import pair_key
from adapters.journey.options import PlanOptions
from adapters.journey.orders import Fate, Orders
from adapters.journey.returns import find_returns
from engine.operations import Kind


def opening_parts(cells: Cells, opening: OpeningStock, prices: Prices) -> list[ln.Part]:
    """Opening stock, then first prices; a cell that opens empty receives nothing.

    By SKU, then store, so that each batch spreads over all stores and thus over all shards.
    """
    stocked = np.flatnonzero(opening.quantity > 0)
    stocked = stocked[np.argsort(cells.sku[stocked], kind="stable")]
    priced = np.argsort(cells.sku[prices.initial_cell], kind="stable")
    at = prices.initial_cell[priced]
    return [
        ln.part(
            len(stocked),
            kind=Kind.RECEIVE,
            second=0,
            sku=cells.sku[stocked],
            store=cells.store[stocked],
            quantity=opening.quantity[stocked],
        ),
        ln.part(
            len(at),
            kind=Kind.SET_PRICE,
            second=0,
            sku=cells.sku[at],
            store=cells.store[at],
            value=prices.initial_minor[priced],
        ),
    ]


class Trading:
    """Collects the parts of trading, each a kind of line, with its rank within one second.

    `store`, `sku` are the rows' indices in the catalogue, shape (n,). Parts are added in an order
    in which `after` only points back: it counts the lines of all parts added so far.
    """

    def __init__(
        self, rows: Rows, store: NDArray[np.uint32], sku: NDArray[np.uint32], orders: Orders
    ) -> None:
        self.parts: list[tuple[int, ln.Part]] = []
        self._rows = rows
        self._store = store
        self._sku = sku
        self._orders = orders
        self._order_of_row = orders.of_basket[rows.basket]
        # Of each order: its first row, its line to wait for, and when its goods left the store.
        self._first_row = np.searchsorted(rows.basket, orders.basket)
        self._last_step = np.full(len(orders.basket), -1, np.int64)

    def add_prices(self, prices: Prices) -> None:
        """The new price, right before the basket in which it is first seen."""
        rows = prices.changed_line
        self._add_rows(ln.RANK_PRICE, Kind.SET_PRICE, rows, value=prices.changed_minor, quantity=0)

    def add_rows(self, options: PlanOptions) -> None:
        """Each row once: a sale at the till, or a line of an online order."""
        self._add_rows(ln.RANK_LINE, Kind.SALE, np.flatnonzero(self._order_of_row < 0))
        rows = np.flatnonzero(self._order_of_row >= 0)
        order = self._order_of_row[rows]
        linked = np.zeros(len(rows), np.uint8)
        linked[:-1] = order[1:] == order[:-1]
        expires = self._orders.fate[order] == Fate.EXPIRED
        ttl_ms = np.where(expires, options.abandoned_ttl_ms, options.ttl_ms)
        begin = self._add_rows(
            ln.RANK_LINE, Kind.RESERVE, rows, value=ttl_ms, order=order, linked=linked
        )
        self._last_step[:] = begin + np.searchsorted(order, np.arange(len(self._last_step)))

    def add_steps(self) -> None:
        """What becomes of each order after it was placed; each step waits for the one before."""
        orders = self._orders
        committed = orders.with_fate(Fate.FULFILLED, Fate.CANCELLED)
        self._add_step(Kind.COMMIT, committed, orders.commit_second)
        self._add_step(Kind.RELEASE, orders.with_fate(Fate.RELEASED), orders.end_second)
        self._add_step(Kind.FULFIL, orders.with_fate(Fate.FULFILLED), orders.end_second)
        self._add_step(Kind.CANCEL, orders.with_fate(Fate.CANCELLED), orders.end_second)

    def add_returns(self, stores: int, options: PlanOptions) -> None:
        """Goods that came back; those of an order wait for its fulfilment. After `add_steps`."""
        rows, order = self._rows, self._order_of_row
        online = order >= 0
        left = rows.second.astype(np.int64)
        picked_up = self._orders.fate == Fate.FULFILLED
        left[online] = np.where(picked_up, self._orders.end_second, -1)[order[online]]
        left[rows.fuel] = -1
        key = pair_key(rows.basket_id, rows.product_id)
        returns = find_returns(key, left, self._store, rows.quantity, stores, options)
        order = order[returns.line]
        self._add_rows(
            ln.RANK_RETURN,
            Kind.RETURN,
            returns.line,
            second=returns.second,
            store=returns.store,
            quantity=returns.quantity,
            value=returns.disposition,
            order=order,
            after=np.append(self._last_step, -1)[order],
        )

    def _add_rows(
        self, rank: int, kind: Kind, rows: NDArray[np.intp], **columns: NDArray[np.generic] | int
    ) -> int:
        """Add one line for each of `rows`; returns where in the parts they begin."""
        given: dict[str, NDArray[np.generic] | int] = {
            "sku": self._sku[rows],
            "store": self._store[rows],
            "second": self._rows.second[rows],
            "quantity": self._rows.quantity[rows],
            "basket": self._rows.basket[rows],
            "row": self._rows.row[rows],
        }
        return self._add(rank, ln.part(len(rows), kind=kind, **(given | columns)))

    def _add_step(self, kind: Kind, order: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Add one line for each of these orders, about the whole hold, and remember it."""
        begin = self._add(
            ln.RANK_STEP,
            ln.part(
                len(order),
                kind=kind,
                store=self._store[self._first_row[order]],
                second=second[order],
                order=order,
                basket=self._orders.basket[order],
                after=self._last_step[order],
            ),
        )
        self._last_step[order] = np.arange(begin, begin + len(order))

    def _add(self, rank: int, lines: ln.Part) -> int:
        begin = sum(ln.size(earlier) for _, earlier in self.parts)
        self.parts.append((rank, lines))
        return begin
