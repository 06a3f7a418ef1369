"""Cutting a plan into batches that may each be sent as one Submit."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.journey.lines import Lines


@dataclass(frozen=True, slots=True)
class Batch:
    """n lines to be executed in their order, as columns of shape (n,).

    `kind`: `engine.operations.Kind`. `sku`, `store`: indices in the catalogue; a line of a hold
    (COMMIT, RELEASE, FULFIL, CANCEL) means all of it, and has sku 0 and quantity 0. `quantity`:
    base units. `value`: price_minor of SET_PRICE, ttl_ms of RESERVE, `Disposition` of RETURN.
    `order`: number of the order, or -1; every later line of an order whose RESERVE was refused is
    to be skipped, returns of its goods too. `linked`: 1 where the next line belongs to the same
    order; a batch never ends on one. `second`: of the data's time, since 2017-01-01T00:00:00; a
    line that had to wait for its predecessor's batch keeps its own.

    `number`: counts batches from 0. `needs`: the latest batch that must have been answered before
    this one is sent, or -1; lines that need nothing may overtake it. `opening`: whether these are
    opening stock and first prices; no batch holds both these and trading. `line` (n,): the lines'
    places in the plan.
    """

    number: int
    needs: int
    opening: bool
    line: NDArray[np.int64]
    kind: NDArray[np.uint8]
    sku: NDArray[np.uint32]
    store: NDArray[np.uint32]
    quantity: NDArray[np.int64]
    value: NDArray[np.int64]
    order: NDArray[np.int64]
    linked: NDArray[np.uint8]
    second: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.kind)


def cut(lines: Lines, opening_lines: int, max_lines: int, lag: int) -> Iterator[Batch]:
    """Cut `lines` into batches of at most `max_lines`; of these the first `opening_lines` open.

    A line whose `after` is not yet `lag` batches old waits, and goes before the other lines of the
    first batch that it may join: so a replayer may have `lag` batches in flight. Once only waiting
    lines are left, they go as soon as what they wait for is in any earlier batch (see
    `Batch.needs`). Raises ValueError if a bound is below 1 or an order does not fit in a batch.
    """
    if max_lines < 1 or lag < 1:
        raise ValueError("max_lines and lag: must be at least 1")
    sent_in = np.full(len(lines), len(lines), np.int32)  # the number of each line's batch
    waiting = np.empty(0, np.int64)  # in the order of the plan
    begin = number = 0
    while begin < len(lines) or len(waiting):
        opening = begin < opening_lines
        limit = opening_lines if opening else len(lines)
        # The older half of a batch at most, so that new lines go on while many wait.
        old = waiting[: max_lines // 2 if begin < limit else max_lines]
        end = _whole_orders(lines.linked, begin, min(limit, begin + max_lines - len(old)))
        if begin == end and not len(old):
            raise ValueError(f"max_lines: {max_lines}, less than the lines of an order")
        new = np.arange(begin, end, dtype=np.int64)
        latest = number - (lag if begin < limit else 1)
        old_ready = _ready(lines, old, sent_in, latest)
        new_ready = _ready(lines, new, sent_in, latest)
        if not (old_ready.any() or new_ready.any()):
            old_ready = _ready(lines, old, sent_in, number - 1)  # the first one surely is
        sent = np.concatenate([old[old_ready], new[new_ready]])
        waiting = np.concatenate([old[~old_ready], waiting[len(old) :], new[~new_ready]])
        begin = end
        if not len(sent):
            continue  # all new lines wait; take some more
        needs = int(sent_in[lines.after[sent]].max(where=lines.after[sent] >= 0, initial=-1))
        sent_in[sent] = number
        yield _batch(lines, sent, number, needs, opening=opening)
        number += 1


def _ready(
    lines: Lines, places: NDArray[np.int64], sent_in: NDArray[np.int32], latest: int
) -> NDArray[np.bool_]:
    """Whether lines wait for nothing, or for what was sent in a batch up to `latest`; (n,)."""
    after = lines.after[places]
    return (after < 0) | (sent_in[after] <= latest)


def _whole_orders(linked: NDArray[np.uint8], begin: int, end: int) -> int:
    """The last place, not after `end`, where lines from `begin` on can be cut between orders."""
    while end > begin and linked[end - 1]:
        end -= 1
    return end


def _batch(
    lines: Lines, sent: NDArray[np.int64], number: int, needs: int, *, opening: bool
) -> Batch:
    """The batch of the lines at the places `sent`."""
    return Batch(
        number=number,
        needs=needs,
        opening=opening,
        line=sent,
        kind=lines.kind[sent],
        sku=lines.sku[sent],
        store=lines.store[sent],
        quantity=lines.quantity[sent],
        value=lines.value[sent],
        order=lines.order[sent],
        linked=lines.linked[sent],
        second=lines.second[sent],
    )
