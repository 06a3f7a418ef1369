"""What clients do. To add a kind of operation: a row in `FACTS`, or an activity in `ACTIVITIES`.

A fact is one line by itself; an activity is a coroutine that makes calls one after the other, as a
shop, a till or an order management would, and may leave off anywhere.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import numpy as np

from engine.operations import Disposition, Flag, Kind, Request, id_to_pair
from engine.status import Status
from tests.sim.client import Client
from tests.sim.oracle import Call
from tests.sim.stores import USD
from tests.sim.world import LOCATIONS, SKUS

OPENING_UNITS: Final = 12  # of each SKU at each location: little, so that orders meet its end
TTLS_MS: Final = (1, 5, 20, 60, 250, 250, 800, 800)
NEW_SKU, NEW_LOCATION = SKUS + 1, LOCATIONS + 1

Line = dict[str, int]


@dataclass(slots=True)
class Order:
    """What a client knows of an order, for the judgement at the end."""

    op_id: bytes
    held: bool | None = None  # whether the reserve was answered OK; None: never answered
    committed: bool = False  # as a whole, and not touched since
    closed: bool = False  # released or cancelled as a whole, and answered


@dataclass(slots=True)
class Shop:
    """What the clients of one simulation share."""

    orders: list[Order] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)  # answered ones


def cell(chance: Random) -> tuple[int, int]:
    """Some SKU and location; now and then one that the catalogue does not have yet."""
    if chance.random() < 0.05:
        return chance.choice(((NEW_SKU, 1), (1, NEW_LOCATION), (NEW_SKU, NEW_LOCATION)))
    return chance.randint(1, SKUS), chance.randint(1, LOCATIONS)


# --- lines: each makes the columns of one line, without its cell ----------------------------------

# Kind: how many units, and the line's `value`.
FACTS: dict[Kind, tuple[Callable[[Random], int], Callable[[Random], int]]] = {
    Kind.SALE: (lambda chance: chance.randint(1, 3), lambda _: 0),
    Kind.RETURN: (lambda chance: chance.randint(1, 2), lambda chance: chance.choice(_DISPOSITIONS)),
    Kind.RECEIVE: (lambda chance: chance.randint(1, 6), lambda _: 0),
    Kind.ADJUST: (lambda chance: chance.choice((-2, -1, 1, 2)), lambda _: 7),
    Kind.COUNT: (lambda chance: chance.randint(0, OPENING_UNITS), lambda _: 0),
    Kind.SET_SAFETY_STOCK: (lambda chance: chance.randint(0, 2), lambda _: 0),
    Kind.SET_PRICE: (lambda _: 0, lambda chance: chance.randint(0, 999)),
}
_DISPOSITIONS: Final = tuple(int(each) for each in Disposition)


def fact_line(chance: Random) -> Line:
    kind = chance.choice(list(FACTS))
    quantity, value = FACTS[kind]
    sku, location = cell(chance)
    return {
        "kind": kind, "sku": sku, "location": location, "quantity": quantity(chance),
        "value": value(chance), "currency": USD if kind == Kind.SET_PRICE else 0,
    }  # fmt: skip


def reserve_line(chance: Random) -> Line:
    sku, location = cell(chance)
    return {
        "kind": Kind.RESERVE, "sku": sku, "location": location,
        "quantity": chance.randint(1, 4), "value": chance.choice(TTLS_MS),
    }  # fmt: skip


def request_of(op_id: bytes, lines: list[Line], *, want_available: bool = False) -> Request:
    names = dict.fromkeys(name for line in lines for name in line)
    columns = {name: np.array([line.get(name, 0) for line in lines]) for name in names}
    return Request.of(op_id, len(lines), want_available=want_available, **columns)


def on_hold(op_id: bytes, kind: Kind, hold_id: bytes, **columns: Any) -> Request:
    high, low = id_to_pair(hold_id)
    halves = {"hold_hi": np.array([high], np.uint64), "hold_lo": np.array([low], np.uint64)}
    return Request.of(op_id, 1, kind=kind, **halves, **columns)


# --- activities -----------------------------------------------------------------------------------


async def opening(client: Client) -> None:
    """Receive the first stock."""
    lines = [
        {"kind": Kind.RECEIVE, "sku": sku, "location": location, "quantity": OPENING_UNITS}
        for sku in range(1, SKUS + 1)
        for location in range(1, LOCATIONS + 1)
    ]
    await client.write("submit", request_of(client.new_id(), lines), patient=True)


async def fact(client: Client) -> None:
    """One till sale, return, receipt, adjustment, count or change of a setting."""
    line = fact_line(client.chance)
    await client.write("submit", request_of(client.new_id(), [line], want_available=True))


async def batch(client: Client) -> None:
    """Many lines of many kinds at many places, some of them linked."""
    chance = client.chance
    lines = []
    for _ in range(chance.randint(2, 8)):
        line = chance.choice((fact_line, reserve_line))(chance)
        if line["kind"] == Kind.RESERVE and chance.random() < 0.4:
            line["flags"] = Flag.LINKED
        lines.append(line)
    wants = chance.random() < 0.5
    await client.write("submit", request_of(client.new_id(), lines, want_available=wants))


async def order(client: Client) -> None:
    """Reserve some lines, all or nothing, and take the order through some of its life."""
    chance = client.chance
    lines = [reserve_line(chance) for _ in range(chance.choice((1, 1, 2, 3)))]
    if chance.random() < 0.3:
        for line in lines:
            line["location"] = lines[0]["location"]
    for line in lines[:-1]:
        line["flags"] = Flag.LINKED
    request = request_of(client.new_id(), lines, want_available=chance.random() < 0.5)
    known = Order(request.op_id)
    client.shop.orders.append(known)
    answer = await client.write("reserve", request)
    if answer is None:
        return
    known.held = not any(answer.status)
    if not known.held:
        return
    await client.think()
    if chance.random() < 0.3:
        await client.look_at_hold(request.op_id)
    step = chance.choices((commit_all, commit_part, give_up, leave), (6, 2, 2, 1))[0]
    await step(client, known, lines)


async def commit_all(client: Client, known: Order, _: list[Line]) -> None:
    answer = await client.write("on_hold", on_hold(client.new_id(), Kind.COMMIT, known.op_id))
    if answer is None:
        return
    if any(answer.status):
        # Of a part the time was over, so the order does not stand: take back what was committed.
        await take_back(client, known)
        return
    known.committed = True
    await client.think()
    if client.chance.random() < 0.6:
        known.committed = False
        kind = client.chance.choice((Kind.FULFIL, Kind.FULFIL, Kind.CANCEL))
        await client.write("on_hold", on_hold(client.new_id(), kind, known.op_id))


async def take_back(client: Client, known: Order) -> None:
    """Cancel what is committed and release what is pending, wherever it is."""
    answers = [
        await client.write("on_hold", on_hold(client.new_id(), kind, known.op_id), patient=True)
        for kind in (Kind.RELEASE, Kind.CANCEL)
    ]
    known.closed = None not in answers


async def commit_part(client: Client, known: Order, lines: list[Line]) -> None:
    line = client.chance.choice(lines)
    where = {name: line[name] for name in ("sku", "location")}
    flags = client.chance.choice((0, Flag.RELEASE_REST))
    quantity = client.chance.randint(1, line["quantity"])
    part = on_hold(
        client.new_id(), Kind.COMMIT, known.op_id, quantity=quantity, flags=flags, **where
    )
    answer = await client.write("on_hold", part)
    if answer is None or any(answer.status):
        return
    await client.think()
    for kind in client.chance.sample((Kind.FULFIL, Kind.CANCEL, Kind.RELEASE), 2):
        units = client.chance.randint(0, quantity)
        call = on_hold(client.new_id(), kind, known.op_id, quantity=units, **where)
        await client.write("on_hold", call)


async def give_up(client: Client, known: Order, _: list[Line]) -> None:
    release = on_hold(client.new_id(), Kind.RELEASE, known.op_id)
    answer = await client.write("on_hold", release)
    known.closed = answer is not None


async def leave(client: Client, known: Order, _: list[Line]) -> None:
    """Say nothing any more: time does the rest."""


async def look(client: Client) -> None:
    """Read a few cells."""
    names = sorted({cell(client.chance) for _ in range(client.chance.randint(1, 4))})
    await client.look_at_cells(names)


async def repeat(client: Client) -> None:
    """Send a request again that was answered long ago: the answer is the same."""
    if client.shop.calls:
        call = client.chance.choice(client.shop.calls)
        again = await client.write(call.method, call.request)
        client.compare(call, again)


async def reuse(client: Client) -> None:
    """Send something else under an id that was used."""
    if client.shop.calls:
        used = client.chance.choice(client.shop.calls).request.op_id
        line = fact_line(client.chance) | {"quantity": 77, "value": 0}
        await client.write("submit", request_of(used, [line]))


ACTIVITIES: dict[Callable[[Client], Awaitable[None]], float] = {
    order: 6,
    batch: 3,
    fact: 4,
    look: 4,
    repeat: 1,
    reuse: 0.5,
}


async def work(client: Client, activities: int) -> None:
    """One client's day."""
    for _ in range(activities):
        activity = client.chance.choices(list(ACTIVITIES), list(ACTIVITIES.values()))[0]
        await activity(client)
        await client.think()


def judge_orders(shop: Shop, states: Callable[[bytes], list[Any]]) -> list[str]:
    """What is wrong with orders when all is quiet; `states` gives an order's holds, shard by shard."""
    wrong = []
    for known in shop.orders:
        holds = [hold for hold in states(known.op_id) if hold is not None]
        committed = [any(line.committed for line in hold.lines) for hold in holds]
        if (known.held is False or known.closed) and any(committed):
            wrong.append(f"order {known.op_id.hex()} was given up, and a part of it is committed")
        if known.committed and not all(committed):
            wrong.append(f"order {known.op_id.hex()} is committed in part only")
    return wrong


assert Status.OK == 0, "`any(answer.status)` asks for refusals"
