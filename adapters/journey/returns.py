"""Which goods came back, when, where and in what state. The data has no returns.

A stated share of the lines that left a store come back, whole or in part: till lines, and lines of
orders that were picked up. They come back 1 hour to 14 days later, or, near the end of the plan, as
soon as that allows (so that the share holds in short plans). Fuel never comes back.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from adapters.journey.draws import below, chosen, fraction
from adapters.journey.options import PlanOptions
from engine.operations import Disposition

SOONEST_S: Final = 3_600
LATEST_S: Final = 14 * 24 * 3_600


@dataclass(frozen=True, slots=True)
class Returns:
    """r returned lines, as columns of shape (r,).

    `line`: index of the line that came back, ascending. `store`: where to; `quantity`: base units,
    1 to what was sold; `disposition`: `Disposition`.
    """

    line: NDArray[np.intp]
    second: NDArray[np.int64]
    store: NDArray[np.uint32]
    quantity: NDArray[np.int64]
    disposition: NDArray[np.uint8]


def find_returns(
    key: NDArray[np.int64],
    left_second: NDArray[np.int64],
    store: NDArray[np.uint32],
    quantity: NDArray[np.int64],
    stores: int,
    options: PlanOptions,
) -> Returns:
    """Choose among n lines, given as columns of shape (n,).

    `key`: an id of the line. `left_second`: when its goods left the store, or -1 if they cannot
    come back. `stores`: how many there are; another store is drawn by how much each trades.
    """
    line = np.flatnonzero(chosen(key, "returned", options.returned_share) & (left_second >= 0))
    ids = key[line]
    soonest = left_second[line] + SOONEST_S
    end = left_second.max(initial=0)
    span = np.clip(end - soonest, 1, LATEST_S - SOONEST_S)

    home = store[line]
    other = store[below(ids, "which store", len(store))]
    other = np.where(other == home, (home + 1) % stores, other)
    elsewhere = chosen(ids, "elsewhere", options.elsewhere_share)

    state = fraction(ids, "disposition")
    disposition = np.full(len(line), Disposition.RESTOCK, np.uint8)
    damaged = options.damaged_share
    disposition[state < damaged + options.quality_control_share] = Disposition.QUALITY_CONTROL
    disposition[state < damaged] = Disposition.DAMAGED
    return Returns(
        line=line,
        second=soonest + below(ids, "returned after", span),
        store=np.where(elsewhere, other, home).astype(np.uint32),
        quantity=1 + below(ids, "returned quantity", quantity[line]),
        disposition=disposition,
    )
