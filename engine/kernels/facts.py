"""Facts: what has happened is recorded, whatever the stock."""

import numpy as np

from engine.kernels.cells import find_cell, new_cell, touch
from engine.kernels.checks import check_moment, check_place, check_quantity
from engine.kernels.codes import (
    ADJUST,
    ALREADY_RECORDED,
    BALANCE_LIMIT,
    COUNT,
    DAMAGE,
    EXCEEDS_SET_ASIDE,
    HOLD_EXISTS,
    INSPECT,
    INVALID_DISPOSITION,
    INVALID_FLAGS,
    INVALID_REASON,
    MAX_BALANCE,
    MAX_REASON,
    MOMENT_TOO_OLD,
    OF_DAMAGED,
    OF_QUALITY,
    OK,
    QUALITY,
    RESTOCK,
    RETURN,
    SALE,
    WRITE_OFF,
)
from engine.kernels.compiled import inlined
from engine.kernels.hashes import count_hash
from engine.kernels.hold_index import find_hold
from engine.kernels.layout import CHANGED, DAMAGED, FORGOTTEN, KEY, ON_HAND, QUALITY_CONTROL
from engine.kernels.movements import is_seen, moment_of, moved_since, note_movement
from engine.kernels.returns import judge_return, record_sale, take_back, was_sold


@inlined
def check_fact(places, meta, now, kind, flags, sku, location, quantity, value, occurred_at):
    """The checks of a fact that do not need the cell."""
    if flags and (kind != WRITE_OFF or (flags != OF_DAMAGED and flags != OF_QUALITY)):
        return INVALID_FLAGS
    status = check_quantity(kind, quantity)
    if status != OK:
        return status
    if kind == RETURN and (value < RESTOCK or value > DAMAGE):
        return INVALID_DISPOSITION
    if kind == INSPECT and value != RESTOCK and value != DAMAGE:
        return INVALID_DISPOSITION
    if (kind == ADJUST or kind == WRITE_OFF) and (value < 0 or value > MAX_REASON):
        return INVALID_REASON
    if kind != INSPECT:
        status = check_moment(now, occurred_at)
        if status != OK:
            return status
    return check_place(places, meta, sku, location)


@inlined
def effects(kind, flags, quantity, value):
    """What a fact other than a count adds to on_hand, to damaged and to quality_control."""
    moved = damaged = quality = np.int64(0)
    if kind == INSPECT:
        quality = -quantity
        if value == DAMAGE:
            damaged = quantity
    elif kind == WRITE_OFF:
        moved = -quantity
        if flags == OF_DAMAGED:
            damaged = -quantity
        elif flags == OF_QUALITY:
            quality = -quantity
    else:
        moved = -quantity if kind == SALE else quantity
        if kind == RETURN and value == DAMAGE:
            damaged = quantity
        elif kind == RETURN and value == QUALITY:
            quality = quantity
    return moved, damaged, quality


@inlined
def judge_goods(cells, row, moved, damaged, quality):
    """Whether a cell has what leaves its buckets, and every counter stays within MAX_BALANCE."""
    if cells[row, DAMAGED] + damaged < 0 or cells[row, QUALITY_CONTROL] + quality < 0:
        return EXCEEDS_SET_ASIDE
    after = cells[row, ON_HAND] + moved
    if after > MAX_BALANCE or after < -MAX_BALANCE:
        return BALANCE_LIMIT
    if cells[row, DAMAGED] + damaged > MAX_BALANCE:
        return BALANCE_LIMIT
    if cells[row, QUALITY_CONTROL] + quality > MAX_BALANCE:
        return BALANCE_LIMIT
    return OK


@inlined
def change_goods(cells, touched, meta, sums, row, moved, damaged, quality):
    """Add what was judged."""
    touch(cells, touched, meta, sums, row)
    cells[row, ON_HAND] += moved
    cells[row, DAMAGED] += damaged
    cells[row, QUALITY_CONTROL] += quality
    if moved != 0:
        meta[CHANGED] |= 1 << ON_HAND
    if damaged != 0:
        meta[CHANGED] |= 1 << DAMAGED
    if quality != 0:
        meta[CHANGED] |= 1 << QUALITY_CONTROL


@inlined
def set_counted(cells, counted, sums, row, moment):
    """A cell's newest count is of this moment; facts from before it move on_hand no more."""
    if counted[row] > 0:
        sums[0] -= count_hash(cells[row, KEY], counted[row])
    counted[row] = moment
    sums[0] += count_hash(cells[row, KEY], moment)


@inlined
def fact(
    cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index, ring, places,
    meta, sums, now, kind, flags, sku, location, quantity, value, occurred_at, hi, lo,
):  # fmt: skip
    """What has happened to goods: never refused for lack of stock. Returns (status, row or -1).

    Only a fact that says when it happened can be from before its cell's newest count; one of the very
    moment of a count is after it, whichever is heard of first. A fact of now never is from before one,
    and a count that does not say its moment is of what was heard so far: neither looks at what is
    remembered. A sale
    with an id is recorded once, and its id is no other sale's; a return that names an order or a
    sale is of what it handed over.
    """
    status = check_fact(
        places, meta, now, kind, flags, sku, location, quantity, value, occurred_at
    )  # fmt: skip
    if status != OK:
        return status, np.int64(-1)
    moment = moment_of(now, occurred_at)
    row = find_cell(cells, cell_index, location << 32 | sku)
    is_named = (hi | lo) != 0 and (kind == SALE or kind == RETURN)
    head = find_hold(holds, hold_index, hi, lo) if is_named else np.int64(-1)
    if is_named and kind == RETURN:
        status = judge_return(cells, lines, head, sku, quantity)
        if status != OK:
            return status, row
    elif head >= 0:
        return ALREADY_RECORDED if was_sold(lines, head, row, quantity) else HOLD_EXISTS, row
    is_late = row >= 0 and is_seen(counted, row, now, moment)
    moved, damaged, quality = np.int64(0), np.int64(0), np.int64(0)
    if kind != COUNT:
        moved, damaged, quality = effects(kind, flags, quantity, value)
    elif not is_late:
        if occurred_at != 0 and moment <= meta[FORGOTTEN]:
            return MOMENT_TOO_OLD, row
        moved = quantity
        if row >= 0:
            moved -= cells[row, ON_HAND]
            if occurred_at != 0:
                moved += moved_since(movements, tallies, meta, row, moment)
    if is_late:
        moved = np.int64(0)
    if row >= 0:
        status = judge_goods(cells, row, moved, damaged, quality)
        if status != OK:
            return status, row
    elif damaged < 0 or quality < 0:
        return EXCEEDS_SET_ASIDE, row
    else:
        row = new_cell(cells, cell_index, touched, meta, location << 32 | sku)
    change_goods(cells, touched, meta, sums, row, moved, damaged, quality)
    if kind == COUNT:
        if not is_late:
            set_counted(cells, counted, sums, row, moment)
    elif moved != 0:
        note_movement(movements, meta, row, moved, moment)
    if is_named and kind == RETURN:
        take_back(cells, holds, lines, sums, head, sku, quantity)
    elif is_named:
        record_sale(holds, lines, hold_index, ring, meta, row, quantity, hi, lo)
    return OK, row
