"""What a till sold of a bundle, looked up: one sale by the id that its receipt's line has.

The shards remember each component as a sale of its own. The first one has the id of the line, and the
others have ids made of that and their number in the bundle; so whoever knows the line's id finds them
all, without knowing what was sold.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from actors.router import Router, merged, merged_histories
from actors.shards import every
from engine import limits
from engine.history import History
from engine.views import Hold

_NUMBERS: Final = range(1, limits.MAX_BUNDLE_COMPONENTS)


def part_id(sale_id: bytes, number: int) -> bytes:
    """The id of the sale of a bundle's component, numbered from 0, when the bundle has this one."""
    if number == 0:
        return sale_id
    named = sale_id + b"component" + number.to_bytes(4, "little")
    return hashlib.blake2b(named, digest_size=limits.OP_ID_BYTES).digest()


async def parts_of(router: Router, sale_id: bytes, location: int = 0) -> dict[bytes, Hold]:
    """The sales of a bundle's components, or the one sale or hold that there is, by their ids."""
    first = await router.hold(sale_id, location)
    if first is not None and not _may_be_a_sale(first):
        return {sale_id: first}
    ids = [part_id(sale_id, number) for number in _NUMBERS]
    others = await every(router.hold(each, location) for each in ids)
    found = zip([sale_id, *ids], [first, *others], strict=True)
    return {each: hold for each, hold in found if hold is not None}


async def hold(router: Router, hold_id: bytes, location: int) -> Hold | None:
    """Look a hold up, or all components of what was sold under an id."""
    return merged(list((await parts_of(router, hold_id, location)).values()))


async def history(router: Router, hold_id: bytes, location: int) -> tuple[Hold | None, History]:
    """Look a hold up, or what was sold under an id, with the operations on it."""
    parts = await parts_of(router, hold_id, location)
    ids: Sequence[bytes] = list(parts) or [hold_id]
    told = await every(router.history(each, location) for each in ids)
    return merged(list(parts.values())), merged_histories(told)


def _may_be_a_sale(found: Hold) -> bool:
    """Whether a hold is one that a sale can be remembered as: without a deadline, of one line."""
    return not found.deadline_ns and len(found.lines) == 1
