"""SET_SAFETY_STOCK and SET_PRICE."""

import numpy as np

from engine.kernels.cells import find_cell, new_cell, touch
from engine.kernels.checks import check_place, check_quantity
from engine.kernels.codes import (
    CURRENCY_MISMATCH,
    INVALID_FLAGS,
    INVALID_PRICE,
    MAX_PRICE,
    OK,
    SET_PRICE,
    SET_SAFETY_STOCK,
)
from engine.kernels.compiled import inlined
from engine.kernels.layout import CHANGED, CURRENCY, PRICE, SAFETY_STOCK, TOUCHED, VERSION


@inlined
def check_setting(places, meta, kind, flags, sku, location, quantity, value, currency):
    """The checks of a setting; they do not need the cell."""
    if flags:
        return INVALID_FLAGS
    status = check_quantity(kind, quantity)
    if status != OK:
        return status
    if kind == SET_PRICE and (value < 0 or value > MAX_PRICE):
        return INVALID_PRICE
    status = check_place(places, meta, sku, location)
    if status == OK and kind == SET_PRICE and currency != places[location, CURRENCY]:
        return CURRENCY_MISMATCH
    return status


@inlined
def setting(
    cells, cell_index, touched, places, meta, sums,
    kind, flags, sku, location, quantity, value, currency,
):  # fmt: skip
    """SET_SAFETY_STOCK or SET_PRICE. Returns (status, row or -1)."""
    status = check_setting(places, meta, kind, flags, sku, location, quantity, value, currency)
    if status != OK:
        return status, np.int64(-1)
    row = find_cell(cells, cell_index, location << 32 | sku)
    if row < 0:
        row = new_cell(cells, cell_index, touched, meta, location << 32 | sku)
    touch(cells, touched, meta, sums, row)
    if kind == SET_SAFETY_STOCK:
        cells[row, SAFETY_STOCK] = quantity
        meta[CHANGED] |= 1 << SAFETY_STOCK
    elif cells[row, PRICE] != value or cells[row, VERSION] == TOUCHED:
        cells[row, PRICE] = value
        cells[row, VERSION] += 1
        meta[CHANGED] |= 1 << PRICE | 1 << VERSION
    return status, row
