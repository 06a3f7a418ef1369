"""What clients do. To add a kind of fact: a row in `lines.FACTS`; anything else: one in `ACTIVITIES`.

A fact is one line by itself; an activity is a coroutine that makes calls one after the other, as a
shop, a till or an order management would, and may leave off anywhere.
"""

from collections.abc import Awaitable, Callable

from engine.operations import Flag, Kind
from tests.sim.client import Client
from tests.sim.exchanges import swap
from tests.sim.goods import exchange, give_back, purchase, receipt, transfer
from tests.sim.journeys import journey
from tests.sim.lines import OPENING_UNITS, cell, fact_line, request_of, reserve_line
from tests.sim.orders import order
from tests.sim.world import LOCATIONS, SKUS


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
    line = fact_line(client)
    await client.write("submit", request_of(client.new_id(), [line], want_available=True))


async def batch(client: Client) -> None:
    """Many lines of many kinds at many places, some of them linked."""
    chance = client.chance
    lines = []
    for _ in range(chance.randint(2, 8)):
        line = chance.choice((fact_line, reserve_line))(client)
        if line["kind"] == Kind.RESERVE and chance.random() < 0.4:
            line["flags"] = Flag.LINKED
        lines.append(line)
    wants = chance.random() < 0.5
    await client.write("submit", request_of(client.new_id(), lines, want_available=wants))


async def look(client: Client) -> None:
    """Read a few cells."""
    names = sorted({cell(client.chance) for _ in range(client.chance.randint(1, 4))})
    await client.look_at_cells(names)


async def repeat(client: Client) -> None:
    """Send a request again that was answered long ago: the answer is the same."""
    if client.shop.calls:
        call = client.chance.choice(client.shop.calls)
        again = await client.write(call.method, call.request, *call.args)
        client.compare(call, again)


async def reuse(client: Client) -> None:
    """Send something else under an id that was used."""
    if client.shop.calls:
        used = client.chance.choice(client.shop.calls).request.op_id
        line = fact_line(client) | {"quantity": 77, "value": 0}
        await client.write("submit", request_of(used, [line]))


ACTIVITIES: dict[Callable[[Client], Awaitable[None]], float] = {
    order: 6,
    journey: 4,
    batch: 3,
    fact: 4,
    look: 4,
    receipt: 1,
    give_back: 2,
    exchange: 0.5,
    swap: 2,
    purchase: 1,
    transfer: 2,
    repeat: 1,
    reuse: 0.5,
}


async def work(client: Client, activities: int) -> None:
    """One client's day."""
    for _ in range(activities):
        activity = client.chance.choices(list(ACTIVITIES), list(ACTIVITIES.values()))[0]
        await activity(client)
        await client.think()
