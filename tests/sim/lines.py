"""The lines that clients send: each function makes the columns of one."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from engine.operations import COLUMNS, Disposition, Flag, Kind, Request, id_to_pair
from tests.sim.stores import CHANNELS, USD
from tests.sim.world import EPOCH_NS, LOCATIONS, SKUS

if TYPE_CHECKING:
    from tests.sim.client import Client

OPENING_UNITS: Final = 7  # of each SKU at each location: little, so that orders meet its end
TTLS_MS: Final = (1, 5, 20, 60, 250, 250, 800, 800)
NEW_SKU, NEW_LOCATION = SKUS + 1, LOCATIONS + 1
LATE_MOST_NS: Final = 1_000_000_000  # facts are told so long after they were
TOO_EARLY_NS: Final = 3_600 * 10**9

Line = dict[str, int]


class Fact(NamedTuple):
    """How often a kind comes, how many units it is of, its `value` and its flags."""

    weight: float
    units: Callable[[Random], int]
    value: Callable[[Random], int] = lambda _: 0
    flags: Sequence[int] = (0,)


FACTS: dict[Kind, Fact] = {
    Kind.SALE: Fact(4, lambda chance: chance.randint(1, 3)),
    Kind.RETURN: Fact(
        4, lambda chance: chance.randint(1, 2), lambda chance: chance.choice(_DISPOSITIONS)
    ),
    Kind.RECEIVE: Fact(4, lambda chance: chance.randint(1, 6)),
    Kind.ADJUST: Fact(3, lambda chance: chance.choice((-2, -1, 1, 2)), lambda _: 7),
    Kind.COUNT: Fact(4, lambda chance: chance.randint(0, OPENING_UNITS)),
    Kind.SET_SAFETY_STOCK: Fact(2, lambda chance: chance.randint(0, 2)),
    Kind.SET_PRICE: Fact(2, lambda _: 0, lambda chance: chance.randint(0, 999)),
    Kind.INSPECT: Fact(2, lambda _: 1, lambda chance: chance.choice(_DISPOSITIONS)),
    Kind.WRITE_OFF: Fact(
        2, lambda chance: chance.randint(1, 2), lambda _: 3,
        (0, Flag.DAMAGED, Flag.QUALITY_CONTROL),
    ),
    Kind.EXPECT: Fact(
        2, lambda chance: chance.randint(1, 6), lambda chance: chance.choice((0, EPOCH_NS // 10**6))
    ),
}  # fmt: skip
HAVE_MOMENTS: Final = (
    Kind.SALE, Kind.RETURN, Kind.RECEIVE, Kind.ADJUST, Kind.COUNT, Kind.WRITE_OFF,
)  # fmt: skip
_DISPOSITIONS: Final = tuple(int(each) for each in Disposition)
_WEIGHTS: Final = [each.weight for each in FACTS.values()]


def cell(chance: Random) -> tuple[int, int]:
    """Some SKU and location; now and then one that the catalogue does not have yet."""
    if chance.random() < 0.05:
        return chance.choice(((NEW_SKU, 1), (1, NEW_LOCATION), (NEW_SKU, NEW_LOCATION)))
    return chance.randint(1, SKUS), chance.randint(1, LOCATIONS)


def moment(client: "Client") -> int:
    """When a fact was: mostly now, some time ago, or (which is refused) later than now."""
    drawn = client.chance.random()
    if drawn < 0.7:
        return 0
    return client.now_ns() + (
        TOO_EARLY_NS if drawn < 0.72 else -client.chance.randint(0, LATE_MOST_NS)
    )


def fact_line(client: "Client") -> Line:
    chance = client.chance
    kind = chance.choices(list(FACTS), _WEIGHTS)[0]
    fact = FACTS[kind]
    sku, location = cell(chance)
    return {
        "kind": kind, "sku": sku, "location": location, "quantity": fact.units(chance),
        "value": fact.value(chance), "currency": USD if kind == Kind.SET_PRICE else 0,
        "flags": chance.choice(fact.flags),
        "occurred_at_ns": moment(client) if kind in HAVE_MOMENTS else 0,
    }  # fmt: skip


def reserve_line(client: "Client") -> Line:
    chance = client.chance
    sku, location = cell(chance)
    return {
        "kind": Kind.RESERVE, "sku": sku, "location": location,
        "quantity": chance.randint(1, 4), "value": chance.choice(TTLS_MS),
        "channel": chance.choices(range(CHANNELS + 2), (16, 2, 2, 1))[0],
    }  # fmt: skip


def order_lines(client: "Client") -> list[Line]:
    """Linked lines of one order, some of one location, with what an order may ask for."""
    chance = client.chance
    lines = [reserve_line(client) for _ in range(chance.choice((1, 1, 2, 3)))]
    if chance.random() < 0.3:
        for line in lines:
            line["location"] = lines[0]["location"]
    flags = chance.choices((0, Flag.PARTIAL, Flag.COMMIT_NOW), (8, 1, 1))[0]
    for line in lines:
        line["flags"] = flags | Flag.LINKED
    lines[-1]["flags"] = int(flags)
    return lines


def naming(hold_id: bytes) -> Line:
    """The columns that name a hold, a sale or a record."""
    high, low = id_to_pair(hold_id)
    return {"hold_hi": high, "hold_lo": low}


def request_of(op_id: bytes, lines: list[Line], *, want_available: bool = False) -> Request:
    names = dict.fromkeys(name for line in lines for name in line)
    columns = {
        name: np.array([line.get(name, 0) for line in lines], COLUMNS[name]) for name in names
    }
    return Request.of(op_id, len(lines), want_available=want_available, **columns)


def on_hold(op_id: bytes, kind: Kind, hold_id: bytes, **columns: Any) -> Request:
    """A call of one line on a hold or record."""
    return request_of(op_id, [{"kind": kind, **naming(hold_id), **columns}])
