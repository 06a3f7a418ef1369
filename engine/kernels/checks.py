"""What is checked of a line without a look at stock or holds."""

from engine.kernels.codes import (
    ADJUST,
    CLAIM_RETURN,
    COUNT,
    INVALID_MOMENT,
    INVALID_QUANTITY,
    MAX_QUANTITY,
    MAX_SKEW_NS,
    OK,
    SET_PRICE,
    SET_SAFETY_STOCK,
    TOO_LARGE,
    UNKNOWN_LOCATION,
    UNKNOWN_SKU,
    WRONG_SHARD,
)
from engine.kernels.compiled import inlined
from engine.kernels.hashes import key_tag
from engine.kernels.layout import (
    LOCATION_ELSEWHERE,
    LOCATION_UNKNOWN,
    OWNED,
    PART,
    SKU_LIMIT,
    SPLIT,
)


@inlined
def is_elsewhere(places, sku, location):
    """Whether a cell of a known location belongs to another shard."""
    if places[location, OWNED] == LOCATION_ELSEWHERE:
        return True
    split = places[location, SPLIT]
    return split > 1 and key_tag(sku) % split != places[location, PART]


@inlined
def check_place(places, meta, sku, location):
    """Whether catalogue and shard map know the cell and give it to this shard."""
    if location <= 0 or location >= len(places) or places[location, OWNED] == LOCATION_UNKNOWN:
        return UNKNOWN_LOCATION
    if sku <= 0 or sku > meta[SKU_LIMIT]:
        return UNKNOWN_SKU
    return WRONG_SHARD if is_elsewhere(places, sku, location) else OK


@inlined
def check_moment(now, occurred_at):
    """Whether something can have happened then: since 1970, and not in the future."""
    return INVALID_MOMENT if occurred_at < 0 or occurred_at - now > MAX_SKEW_NS else OK


@inlined
def check_quantity(kind, quantity):
    """Whether the quantity of a fact, a claim or a setting is one."""
    if kind == ADJUST or kind == CLAIM_RETURN:
        if quantity == 0:
            return INVALID_QUANTITY
    elif kind == COUNT or kind == SET_SAFETY_STOCK:
        if quantity < 0:
            return INVALID_QUANTITY
    elif kind != SET_PRICE and quantity <= 0:
        return INVALID_QUANTITY
    if quantity > MAX_QUANTITY or quantity < -MAX_QUANTITY:
        return TOO_LARGE
    return OK
