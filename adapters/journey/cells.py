"""The cells that trade in the replayed weeks: what each will be asked for, and its shelf prices.

Shelf price of a line, in whole cents for `price_units` base units, half a cent rounded up:

    gross_minor * price_units / quantity,   gross = sales_value + retail_disc + coupon_match_disc

It is exact for 98 % of the lines; the others are mixes of offers ("3 for 5.00") or litres of fuel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.journey.draws import below, chosen, pair_key


@dataclass(frozen=True, slots=True)
class Cells:
    """The m cells that n till lines touch, ordered by store, then SKU; columns have shape (m,).

    `by_cell` (n,): the lines, grouped by cell and in time order within. `first` (m,): where in
    `by_cell` each cell's lines begin. `demand`: base units in all its lines.
    """

    store: NDArray[np.uint32]
    sku: NDArray[np.uint32]
    demand: NDArray[np.int64]
    by_cell: NDArray[np.intp]
    first: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Prices:
    """What the lines tell about shelf prices.

    `initial_cell` and `initial_minor` (k,): the first price seen at each of k cells.
    `changed_line` and `changed_minor` (c,): the lines before which the cell's price changes, in
    time order, and the new price. `observed`: lines that show a price; all others cost nothing
    (263 lines of the year, given away) and are no sign of a new price.
    """

    initial_cell: NDArray[np.intp]
    initial_minor: NDArray[np.int64]
    changed_line: NDArray[np.intp]
    changed_minor: NDArray[np.int64]
    observed: int


@dataclass(frozen=True, slots=True)
class OpeningStock:
    """What each of the m cells opens with, in base units; columns have shape (m,).

    A cell opens with all that its lines will ask for and 0 to 2 units more, so nothing is ever
    refused there. Whatever is refused, or in shortage, is for want of goods at a `short` cell,
    which opens with half of its demand, rounded down.
    """

    store: NDArray[np.uint32]
    sku: NDArray[np.uint32]
    demand: NDArray[np.int64]
    quantity: NDArray[np.int64]
    short: NDArray[np.bool_]


def find_cells(
    store: NDArray[np.uint32], sku: NDArray[np.uint32], quantity: NDArray[np.int64]
) -> Cells:
    """Group n till lines, given as columns of shape (n,) in time order, by cell."""
    key = (store.astype(np.int64) << 32) | sku
    by_cell = np.argsort(key, kind="stable")
    first = np.flatnonzero(_starts(key[by_cell]))
    leaders = by_cell[first]
    return Cells(
        store=store[leaders],
        sku=sku[leaders],
        demand=np.add.reduceat(quantity[by_cell], first),
        by_cell=by_cell,
        first=first,
    )


def find_prices(
    cells: Cells,
    gross_minor: NDArray[np.int64],
    quantity: NDArray[np.int64],
    price_units: NDArray[np.int64],
) -> Prices:
    """The first price of each cell, and each later one that differs from the one before it.

    All columns are of the n till lines, shape (n,). The figures of the whole year, from those of
    TRAPS.md (prices as floats, rounded to two places; all rows with a quantity) to the plan's:

        165,243 of 830,922 consecutive observations differ
        165,097 of 830,922 in whole cents, half a cent up: floats round some half cents down
        164,163 of 816,505 without fuel, whose price for a thousandth of a gallon is 0 cents and
                           whose sums paid at the pump are no prices
        170,060 of 829,795 with fuel priced by the litre: 5,897 changes of 13,290
        170,002 of 829,619 without 263 lines given away: not a price of 0, then the old one again

    Baskets of one store in one second (143 in the year) are in the order of the file.
    """
    shown = gross_minor > 0
    order = cells.by_cell[shown[cells.by_cell]]
    cell_of_line = np.empty(len(shown), np.intp)
    sizes = np.diff(cells.first, append=len(shown))
    cell_of_line[cells.by_cell] = np.repeat(np.arange(len(cells.first)), sizes)
    units = quantity[order]
    price = (2 * gross_minor[order] * price_units[order] + units) // (2 * units)
    cell = cell_of_line[order]
    starts = _starts(cell)
    changes = ~starts
    changes[1:] &= price[1:] != price[:-1]
    changed_line = order[changes]
    in_time = np.argsort(changed_line)
    return Prices(
        initial_cell=cell[starts],
        initial_minor=price[starts],
        changed_line=changed_line[in_time],
        changed_minor=price[changes][in_time],
        observed=len(order),
    )


def open_cells(
    cells: Cells,
    store_ids: NDArray[np.int64],
    product_ids: NDArray[np.int64],
    short_share: float,
) -> OpeningStock:
    """Decide the opening stock; the ids are those of `cells.store` and `cells.sku`, shape (m,)."""
    key = pair_key(store_ids, product_ids)
    short = chosen(key, "short", short_share)
    ample = cells.demand + below(key, "spare", 3)
    quantity = np.where(short, cells.demand // 2, ample)
    return OpeningStock(cells.store, cells.sku, cells.demand, quantity, short)


def _starts(sorted_keys: NDArray[np.int64] | NDArray[np.intp]) -> NDArray[np.bool_]:
    """Where a run of equal keys begins, shape (n,)."""
    starts = np.ones(len(sorted_keys), np.bool_)
    starts[1:] = sorted_keys[1:] != sorted_keys[:-1]
    return starts
