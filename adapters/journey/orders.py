"""Which baskets were online orders (BOPIS), and what became of each.

The data has no online orders. A stated share of its baskets is taken to have been bought online
and picked up at their store (never one with fuel in it): the lines are reserved at the moment of
the basket, committed when the payment comes 1 to 10 minutes later, and fulfilled at pickup, 1 to
48 hours after that. Abandoned orders are released after 5 to 30 minutes, or left to expire; some
committed ones are cancelled 10 to 60 minutes after their commit.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from adapters.journey.draws import below, chosen, fraction
from adapters.journey.options import PlanOptions

MINUTE_S = 60
HOUR_S = 3_600


class Fate(IntEnum):
    """How an order ends."""

    FULFILLED = 0
    CANCELLED = 1
    RELEASED = 2
    EXPIRED = 3


@dataclass(frozen=True, slots=True)
class Orders:
    """k online orders among b baskets, numbered from 0 in time order.

    `of_basket` (b,): the number of a basket's order, or -1. Columns of shape (k,): `basket`; `fate`
    (`Fate`); `commit_second` of orders that are fulfilled or cancelled; `end_second` of the
    fulfilment, cancellation or release. Seconds are the data's; they mean nothing elsewhere.
    """

    of_basket: NDArray[np.int64]
    basket: NDArray[np.int64]
    fate: NDArray[np.uint8]
    commit_second: NDArray[np.int64]
    end_second: NDArray[np.int64]

    def with_fate(self, *fates: Fate) -> NDArray[np.int64]:
        """The numbers of the orders that end in one of these ways, ascending."""
        return np.flatnonzero(np.isin(self.fate, fates)).astype(np.int64)


def find_orders(
    basket_ids: NDArray[np.int64],
    seconds: NDArray[np.int32],
    with_fuel: NDArray[np.bool_],
    options: PlanOptions,
) -> Orders:
    """Choose the orders among b baskets in time order, given by columns of shape (b,)."""
    online = chosen(basket_ids, "online", options.online_share) & ~with_fuel
    of_basket = np.where(online, np.cumsum(online) - 1, -1)
    basket = np.flatnonzero(online).astype(np.int64)
    ids = basket_ids[basket]
    placed = seconds[basket].astype(np.int64)

    abandoned = fraction(ids, "abandoned")
    fate = np.full(len(ids), Fate.FULFILLED, np.uint8)
    fate[chosen(ids, "cancelled", options.cancelled_share)] = Fate.CANCELLED
    fate[abandoned < options.abandoned_share] = Fate.RELEASED
    fate[abandoned < options.abandoned_share / 2] = Fate.EXPIRED

    commit = placed + MINUTE_S + below(ids, "paid", 9 * MINUTE_S)
    ends = {
        Fate.FULFILLED: commit + HOUR_S + below(ids, "picked up", 47 * HOUR_S),
        Fate.CANCELLED: commit + 10 * MINUTE_S + below(ids, "cancelled after", 50 * MINUTE_S),
        Fate.RELEASED: placed + 5 * MINUTE_S + below(ids, "released after", 25 * MINUTE_S),
    }
    end = np.select([fate == how for how in ends], list(ends.values()), placed)
    return Orders(of_basket, basket, fate, commit, end)
