"""What a plan holds and what was left out of it, as rows of a table for its users."""

from dataclasses import dataclass

import numpy as np

from adapters.journey.catalogue import Catalogue
from adapters.journey.cells import OpeningStock, Prices
from adapters.journey.dataset import Filtered
from adapters.journey.lines import Lines
from adapters.journey.orders import Fate, Orders
from engine.operations import Disposition, Kind


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One figure of the table: `name` is a stable key, `note` says what it counts and why."""

    name: str
    count: int
    note: str


def data_rows(filtered: Filtered, catalogue: Catalogue) -> list[SummaryRow]:
    """What was read, filtered and mapped."""
    return [
        SummaryRow("stores", len(catalogue.store_codes), "locations of the catalogue"),
        SummaryRow("skus", len(catalogue.sku_codes), "SKUs of the catalogue"),
        SummaryRow("unknown_skus", catalogue.unknown_skus, "of these, without master data: kept"),
        SummaryRow("rows_read", filtered.read, "transaction rows of the chosen weeks"),
        SummaryRow("rows_no_quantity", filtered.no_quantity, "filtered: quantity 0, nothing left"),
        SummaryRow(
            "rows_fuel_by_amount",
            filtered.fuel_by_amount,
            "filtered: a sum paid at the pump, volume unknown",
        ),
        SummaryRow(
            "rows_fuel_mapped",
            filtered.fuel_mapped,
            "kept: thousandths of a gallon mapped to ML, price per litre",
        ),
    ]


def plan_rows(
    lines: Lines, orders: Orders, opening: OpeningStock, prices: Prices, opening_lines: int
) -> list[SummaryRow]:
    """What the plan makes of the rows that were kept."""
    kinds = np.bincount(lines.kind, minlength=max(Kind) + 1)
    came_back = lines.kind == Kind.RETURN
    fates = np.bincount(orders.fate, minlength=len(Fate))
    states = np.bincount(lines.value[came_back], minlength=len(Disposition))
    first_prices = len(prices.initial_minor)
    return [
        SummaryRow("sale_lines", int(kinds[Kind.SALE]), "rows sold at a till"),
        SummaryRow("order_lines", int(kinds[Kind.RESERVE]), "rows of online orders"),
        SummaryRow("orders", len(orders.basket), "online orders, picked up in store (BOPIS)"),
        SummaryRow("orders_fulfilled", int(fates[Fate.FULFILLED]), "committed and picked up"),
        SummaryRow("orders_cancelled", int(fates[Fate.CANCELLED]), "committed, then cancelled"),
        SummaryRow("orders_released", int(fates[Fate.RELEASED]), "abandoned: given back"),
        SummaryRow("orders_expired", int(fates[Fate.EXPIRED]), "abandoned: left to their TTL"),
        SummaryRow("returns", int(kinds[Kind.RETURN]), "lines that came back, all or part"),
        SummaryRow("returns_of_orders", int((lines.order[came_back] >= 0).sum()), "bought online"),
        *(
            SummaryRow(f"returns_{how.name.lower()}", int(states[how]), "disposition of a return")
            for how in Disposition
        ),
        SummaryRow("cells", len(opening.sku), "SKUs at stores that trade in these weeks"),
        SummaryRow("cells_short", int(opening.short.sum()), "opened with half of their demand"),
        SummaryRow(
            "cells_empty",
            len(opening.sku) - int(kinds[Kind.RECEIVE]),
            "of these, opened with nothing: half of 1 is 0",
        ),
        SummaryRow("price_observations", prices.observed, "rows that show a shelf price"),
        SummaryRow(
            "price_comparisons", prices.observed - first_prices, "of these, not a cell's first"
        ),
        SummaryRow("price_changes", len(prices.changed_line), "differ from the one before"),
        SummaryRow("price_firsts", first_prices, "set before trading begins"),
        SummaryRow("lines_opening", opening_lines, "lines of opening stock and first prices"),
        SummaryRow("lines", len(lines), "lines of the whole plan"),
    ]
