"""The block: what expires, then each line by its rule, in order."""

from typing import NamedTuple

import numpy as np

from engine.kernels.cells import available, end_sweep, finish_block
from engine.kernels.codes import (
    ADD_LINE,
    CANCEL_INCOMING,
    CLAIM_RETURN,
    COMMIT,
    COUNT,
    EXPECT,
    EXTEND,
    INSPECT,
    INVALID_KIND,
    LINKED,
    MOVE,
    RE_RESERVE,
    RECEIVE,
    RELEASE,
    RESERVE,
    RETURN,
    SALE,
    SET_PRICE,
    SET_SAFETY_STOCK,
    WRITE_OFF,
)
from engine.kernels.compiled import jit
from engine.kernels.exchanges import exchange
from engine.kernels.facts import fact
from engine.kernels.handover import hand_over
from engine.kernels.holds import commit_late, extend, is_of_parts, on_hold, on_parts
from engine.kernels.incoming import cancel_incoming, expect, receive_expected
from engine.kernels.layout import CHANGED, DIRTY, LINE, NONE, NOW_NS, TALLY
from engine.kernels.life import sweep
from engine.kernels.lines import add_line
from engine.kernels.movements import begin_tally, forget_tallies
from engine.kernels.moves import move, move_parts
from engine.kernels.reserving import reserve_one, reserve_order
from engine.kernels.returns import claim_return
from engine.kernels.settings import setting
from engine.kernels.warming import WARM_LINES, warm_lines


class Block(NamedTuple):
    """The lines of one block as columns, and the requests they belong to."""

    kind: np.ndarray  # uint8 (n,)
    flags: np.ndarray  # uint8 (n,)
    sku: np.ndarray  # uint32 (n,)
    location: np.ndarray  # uint32 (n,)
    quantity: np.ndarray  # int64 (n,)
    value: np.ndarray  # int64 (n,)
    currency: np.ndarray  # uint16 (n,)
    hold_hi: np.ndarray  # int64 (n,)
    hold_lo: np.ndarray  # int64 (n,)
    channel: np.ndarray  # uint16 (n,)
    occurred_at_ns: np.ndarray  # int64 (n,): 0 is the block's time
    request_hi: np.ndarray  # int64 (m,): the requests' ids
    request_lo: np.ndarray  # int64 (m,)
    request_end: np.ndarray  # int64 (m,): the line after the request's last one


@jit
def apply_block(state, now, budget, most, block, rows, units, out_status, out_available):
    """Apply a block at the time `now` (ns): first what expires, then the lines in order.

    `budget` (of hold lines) and `most` (holds) are those of `sweep`.
    `rows` (int64, n) becomes the rows of the lines' cells, or -1. `units` (int64, n) becomes what
    PARTIAL lines were granted, where their status is OK; what it says of other lines means nothing.
    `out_status` (uint8, n) and `out_available` (int64, n) are the answers. The touched rows stand in
    `touched[:meta[DIRTY]]` afterwards, and in `traces[:meta[TRACES]]` what was done to cells that no
    line names. Returns how many holds the sweep expired.
    """
    (cells, cell_index, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits,
     ring, places, buffers, meta, traces, tallies, sums) = state  # fmt: skip
    kinds, flag_bits, skus, locations = block.kind, block.flags, block.sku, block.location
    quantities, values, currencies = block.quantity, block.value, block.currency
    hold_hi, hold_lo, occurred_at = block.hold_hi, block.hold_lo, block.occurred_at_ns
    channels = block.channel
    request_hi, request_lo, request_end = block.request_hi, block.request_lo, block.request_end
    meta[DIRTY] = 0
    meta[CHANGED] = 0
    meta[NOW_NS] = now
    meta[LINE] = NONE
    expired = sweep(
        cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces, now, budget, most
    )  # fmt: skip
    end_sweep(cells, meta, traces)
    tallied = np.int64(0)
    first = 0
    for request in range(len(request_end)):
        end = request_end[request]
        i = warm = first
        while i < end:
            kind = np.int64(kinds[i])
            flags = np.int64(flag_bits[i])
            sku, location = np.int64(skus[i]), np.int64(locations[i])
            unsigned = np.uint64(request_lo[request]) + np.uint64(i - first)
            hi, lo = request_hi[request], np.int64(unsigned)
            if unsigned < np.uint64(request_lo[request]):
                hi += 1
            if i >= warm and i + 1 < end:
                warm = min(i + WARM_LINES, end)
                warm_lines(
                    cells, cell_index, counted, movements, hold_index, meta, block, hi, lo, i, warm
                )  # fmt: skip
            after = i + 1
            meta[LINE] = i
            row = np.int64(-1)
            status = INVALID_KIND
            if (kind == RESERVE and flags | np.int64(channels[i])) or (
                flags & LINKED and (kind == RETURN or kind == MOVE or is_of_parts(kind))
            ):
                while after < end and flag_bits[after - 1] & LINKED:
                    after += 1
                if kind == RESERVE:
                    reserve_order(
                        cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits,
                        ring, places, buffers, meta, sums, traces, now, block, i, after, end - 1, hi, lo,
                        rows, units, out_status,
                    )  # fmt: skip
                elif kind == RELEASE and after > i + 1 and kinds[i + 1] == ADD_LINE:
                    hand_over(
                        cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits,
                        ring, meta, sums, traces, now, block, i, after, end - 1, rows, out_status,
                    )  # fmt: skip
                elif kind == MOVE:
                    move_parts(
                        cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits,
                        ring, places, buffers, meta, sums, traces, now, block, i, after, end - 1, rows,
                        out_status,
                    )  # fmt: skip
                elif kind != RETURN:
                    on_parts(
                        cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits,
                        ring, meta, sums, traces, now, block, i, after, end - 1, rows, out_status,
                    )  # fmt: skip
                else:
                    exchange(
                        cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index,
                        wheel, wheel_bits, ring, places, buffers, meta, sums, traces, now, block, i, after,
                        end - 1, hi, lo, rows, units, out_status,
                    )  # fmt: skip
                for j in range(i, after):
                    out_available[j] = available(cells, rows[j]) if rows[j] >= 0 else 0
                i = after
                continue
            if kind == RESERVE:
                status, row = reserve_one(
                    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, places,
                    meta, sums, now, sku, location, quantities[i], values[i], hi, lo,
                )  # fmt: skip
            elif kind == COMMIT and flags & RE_RESERVE:
                status, row = commit_late(
                    cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring,
                    places, buffers, meta, sums, traces, now, flags, quantities[i],
                    np.int64(channels[i]), hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif is_of_parts(kind):
                status, row = on_hold(
                    cells, touched, counted, movements, holds, lines, hold_index, wheel, wheel_bits, ring,
                    meta, sums, traces, now, kind, flags, location << 32 | sku, quantities[i],
                    occurred_at[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == EXPECT:
                if hold_hi[i] != 0 or hold_lo[i] != 0:
                    hi, lo = hold_hi[i], hold_lo[i]
                status, row = expect(
                    cells, cell_index, touched, holds, lines, hold_index, places, meta, sums,
                    flags, sku, location, quantities[i], values[i], hi, lo,
                )  # fmt: skip
            elif kind == RECEIVE and (hold_hi[i] != 0 or hold_lo[i] != 0):
                status, row = receive_expected(
                    cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index, ring,
                    places, meta, sums, now, flags, sku, location, quantities[i], values[i], occurred_at[i],
                    hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == CANCEL_INCOMING:
                status, row = cancel_incoming(
                    cells, touched, holds, lines, hold_index, ring, meta, sums, traces,
                    flags, location << 32 | sku, quantities[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif (kind >= SALE and kind <= COUNT) or kind == INSPECT or kind == WRITE_OFF:
                status, row = fact(
                    cells, cell_index, touched, counted, movements, tallies, holds, lines, hold_index, ring,
                    places, meta, sums, now, kind, flags, sku, location, quantities[i], values[i],
                    occurred_at[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
                if kind == COUNT and tallies[TALLY, i] < 0:
                    tallied = begin_tally(tallies, meta, now, block, i, len(kinds), tallied)
            elif kind == CLAIM_RETURN:
                status = claim_return(
                    cells, holds, lines, hold_index, sums, flags, sku, quantities[i], hold_hi[i],
                    hold_lo[i],
                )  # fmt: skip
            elif kind == SET_SAFETY_STOCK or kind == SET_PRICE:
                status, row = setting(
                    cells, cell_index, touched, places, meta, sums,
                    kind, flags, sku, location, quantities[i], values[i], currencies[i],
                )  # fmt: skip
            elif kind == ADD_LINE:
                status, row = add_line(
                    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring,
                    places, buffers, meta, sums, traces, now, flags, sku, location, quantities[i],
                    values[i], np.int64(channels[i]), hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == MOVE:
                status, row = move(
                    cells, cell_index, touched, holds, lines, hold_index, wheel, wheel_bits, ring,
                    places, buffers, meta, sums, traces, now, flags, sku, location, quantities[i],
                    values[i], np.int64(channels[i]), hold_hi[i], hold_lo[i],
                )  # fmt: skip
            elif kind == EXTEND:
                status, row = extend(
                    cells, touched, holds, lines, hold_index, wheel, wheel_bits, ring, meta, sums, traces,
                    now, flags, values[i], hold_hi[i], hold_lo[i],
                )  # fmt: skip
            rows[i] = row
            out_status[i] = status
            out_available[i] = available(cells, row) if row >= 0 else 0
            i = after
        first = end
    if tallied > 0:
        forget_tallies(tallies, len(kinds))
    finish_block(cells, touched, meta, sums)
    return expired
