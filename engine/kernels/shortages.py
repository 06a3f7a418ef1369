"""Shortages: which holds a fact endangers that left less than was promised."""

import numpy as np

from engine.kernels.cells import available
from engine.kernels.codes import (
    ADJUST,
    COUNT,
    OK,
    RESTOCK,
    RETURN,
    SALE,
    SET_SAFETY_STOCK,
    UNFULFIL,
    WRITE_OFF,
)
from engine.kernels.compiled import inlined, jit
from engine.kernels.layout import (
    CELL,
    FREE,
    H_INCOMING,
    HOLDS_MADE,
    HOLDS_USED,
    NUMBER_AT,
    PENDING,
    POSTED,
    SERIAL,
    SERIALS,
    STATE,
    STATE_MASK,
    TRACED_LINE,
    TRACED_ROW,
    TRACED_UNITS,
    TRACES,
)
from engine.kernels.movements import is_seen, moment_of
from engine.kernels.scans import is_marked, mark_rows, place_of


@inlined
def may_lower(kind, value):
    """Whether a fact that names its cell may leave less available than before.

    A return does when its goods are set aside and a later count has seen them already.
    """
    if kind == RETURN:
        return value != RESTOCK
    sells = kind == SALE or kind == WRITE_OFF
    return sells or kind == ADJUST or kind == COUNT or kind == SET_SAFETY_STOCK


@jit
def short_cells(cells, counted, meta, traces, now, block, rows, status, found, short):
    """The facts that have a cell with less than nothing available, now that the block is applied.

    `rows` and `status` are as `apply_block` left them. Writes the lines' indexes to `found` and the
    cells' rows to `short` (int64, n and the traces kept) and returns how many there are. A handover
    that failed takes stock away from the cells whose newest count has seen the goods; it names none
    of them, so they are those of its traces, of each of which there may be several.
    """
    count = at = 0
    kept = min(meta[TRACES], len(traces))
    for i in range(len(status)):
        if status[i] == OK and may_lower(block.kind[i], block.value[i]):
            if available(cells, rows[i]) < 0:
                found[count], short[count] = i, rows[i]
                count += 1
        elif status[i] == OK and block.kind[i] == UNFULFIL:
            moment = moment_of(now, block.occurred_at_ns[i])
            while at < kept and traces[at, TRACED_LINE] <= i:
                row = traces[at, TRACED_ROW]
                is_own = traces[at, TRACED_LINE] == i and traces[at, TRACED_UNITS] > 0
                at += 1
                if is_own and is_seen(counted, row, now, moment) and available(cells, row) < 0:
                    found[count], short[count] = i, row
                    count += 1
    return count


@inlined
def rank_of(lines, meta, slot):
    """Which lines of live holds a shortage endangers first: those of low rank.

    Those with something pending, of the newest hold, and of one hold the first.
    """
    rank = (meta[HOLDS_MADE] - lines[slot, SERIAL]) & SERIALS
    rank = rank << 24 | np.int64(lines[slot, STATE]) >> NUMBER_AT
    return rank if lines[slot, PENDING] > 0 else rank | 1 << 62


@inlined
def enter_ranked(ranks, slots, counts, cell, most, rank, slot):
    """Put a line among the `most` of lowest rank on a cell, in order, if it belongs there."""
    at = counts[cell]
    if at < most:
        counts[cell] += 1
    elif ranks[cell, at - 1] > rank:
        at -= 1  # the last one makes room
    else:
        return
    while at > 0 and ranks[cell, at - 1] > rank:
        ranks[cell, at] = ranks[cell, at - 1]
        slots[cell, at] = slots[cell, at - 1]
        at -= 1
    ranks[cell, at] = rank
    slots[cell, at] = slot


@jit
def find_endangered(
    lines, meta, short, wanted, promised, marks, ranks, slots, counts, met, met_counts, known
):  # fmt: skip
    """The lines of live holds on the rows `short` (int64, sorted) that come first by `rank_of`.

    Of row `short[c]` at most `wanted[c]` (int64, 1 at least): their ranks in `ranks[c, :counts[c]]`
    (int64), in order, and their slots in `slots` (int32). And the slots of all of them, as they are
    met: in `met[c, :met_counts[c]]` (int32), as far as there is room; `met_counts` (int64) counts on.
    Counts and `marks` (uint64, MARK_WORDS) come as zeros. `promised` are the units that live holds
    have on all of these rows: the scan ends when it has met them. It looks at the slots `known`
    (int32, each once) and no others; when there are none, at all lines. Returns how many of the
    units it has not met.
    """
    mark_rows(marks, short)
    at = len(known) if len(known) > 0 else meta[HOLDS_USED]
    while promised > 0 and at > 0:
        at -= 1
        slot = np.int64(known[at]) if len(known) > 0 else np.int64(at)
        row = np.int64(lines[slot, CELL])
        units = np.int64(lines[slot, PENDING]) + np.int64(lines[slot, POSTED])
        if units > 0 and is_marked(marks, row):
            state = lines[slot, STATE] & STATE_MASK
            cell = place_of(short, row)
            if cell >= 0 and state > FREE and state < H_INCOMING:
                promised -= units
                if met_counts[cell] < met.shape[1]:
                    met[cell, met_counts[cell]] = slot
                met_counts[cell] += 1
                rank = rank_of(lines, meta, slot)
                enter_ranked(ranks, slots, counts, cell, wanted[cell], rank, slot)
    return promised
