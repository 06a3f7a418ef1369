"""Exchanges over all shards: goods come back to some, and others are held on others in their place."""

import asyncio
from collections import Counter
from typing import Final, NamedTuple

from engine.operations import Disposition, Flag, Kind
from tests.sim import orders
from tests.sim.book import Handed, Order, Return
from tests.sim.client import Client
from tests.sim.exchanged import Exchange, Told
from tests.sim.lines import TTLS_MS, Line, cell, moment, naming, order_lines, request_of
from tests.sim.orders import reserve
from tests.sim.world import LOCATIONS, SKUS

STAGGERED_MEAN_S: Final = 0.003  # about as long as an exchange takes


class Back(NamedTuple):
    """Lines of what is brought back, what is known of them, and where they say that it was."""

    lines: list[Line]
    known: list[Return]
    sold_at: list[int]


async def swap(client: Client) -> None:
    """Bring back what was handed over, maybe by several shards, for something else anywhere.

    Sometimes two want to swap the same goods at once, for the same others.
    """
    chance = client.chance
    if not client.shop.handed or chance.random() < 0.5:
        await _buy(client)
    if not client.shop.handed:
        return
    hold_id = chance.choice(client.shop.handed[-4:]).hold_id
    back = _back(client, hold_id)
    out = _out(client, back.lines)
    rivals = [_take(client, out)] if chance.random() < 0.4 else []
    if chance.random() < 0.25:
        rivals.append(_swap(client, _back(client, hold_id), out))
    await asyncio.gather(_swap(client, back, out), *rivals)


async def _take(client: Client, lines: list[Line]) -> None:
    """Somebody else holds some of the same at about the same time."""
    await client.pause(STAGGERED_MEAN_S)
    line = client.chance.choice(lines)
    await reserve(client, [line | {"quantity": 1, "flags": 0, "value": min(TTLS_MS)}])


async def _buy(client: Client) -> None:
    """An order of several places that is paid and handed over at once."""
    chance = client.chance
    sku = chance.randint(1, SKUS)
    lines: list[Line] = [
        {
            "kind": Kind.RESERVE, "sku": chance.choice((sku, sku, chance.randint(1, SKUS))),
            "location": location, "quantity": chance.randint(1, 3), "value": max(TTLS_MS),
            "flags": int(Flag.LINKED | Flag.COMMIT_NOW),
        }
        for location in chance.sample(range(1, LOCATIONS + 1), chance.randint(1, 3))
    ]  # fmt: skip
    lines[-1]["flags"] = int(Flag.COMMIT_NOW)
    known = await reserve(client, lines)
    if known.held:
        await orders.hand_over(client, known, lines)


async def _swap(client: Client, back: Back, out: list[Line]) -> None:
    """Send an exchange, sometimes twice at one time, and do something with what is held then."""
    chance = client.chance
    request = request_of(client.new_id(), [*back.lines, *out], want_available=True)
    known, order = Exchange(request), Order(request.op_id)
    client.shop.exchanges.append(known)
    client.shop.orders.append(order)
    client.shop.returns += back.known
    hints = [*back.sold_at, *([0] * len(out))]
    copies = chance.choice((1, 1, 1, 2))
    await asyncio.gather(*(_send(client, known, hints) for _ in range(copies)))
    if not known.told:
        return
    order.held = not any(known.told[0].status)
    for each in back.known:
        each.told = order.held
    order.committed = order.held and known.is_paid
    if not order.held:
        return
    await client.think()
    if order.committed:
        if chance.random() < 0.5:
            await orders.hand_over(client, order, out)
        return
    step = chance.choice((orders.commit_all, orders.pay_late, orders.give_up, orders.leave))
    await step(client, order, out)


async def _send(client: Client, known: Exchange, hints: list[int]) -> None:
    answer = await client.write("exchange", known.request, hints)
    if answer is not None:
        known.told.append(Told(answer.status, client.ends()))


def _back(client: Client, hold_id: bytes) -> Back:
    """Draw some of what was handed over.

    Now and then it is one more than went out; and several parts of an order may be one line. Of
    some lines nobody says what they are of.
    """
    chance = client.chance
    handed = [each for each in client.shop.handed if each.hold_id == hold_id]
    units: Counter[int] = Counter()
    for each in handed:
        units[each.sku] += each.units
    moment_ns = moment(client)
    lines: list[Line] = []
    for sku in chance.sample(sorted(units), chance.randint(1, len(units))):
        here = chance.choice([each.location for each in handed if each.sku == sku])
        location = here if chance.random() < 0.5 else cell(chance)[1]
        disposition = chance.choice((Disposition.RESTOCK, Disposition.RESTOCK, *Disposition))
        most = units[sku] + (chance.random() < 0.1)
        lines.append({
            "kind": Kind.RETURN, "sku": sku, "location": location, "flags": int(Flag.LINKED),
            "quantity": chance.choice((1, 1, chance.randint(1, most))), "value": int(disposition),
            "occurred_at_ns": moment_ns, **naming(hold_id),
        })  # fmt: skip
    known = [Return(hold_id, line["sku"], line["quantity"]) for line in lines]
    hints = [_said_at(client, handed, line["sku"]) for line in lines]
    while chance.random() < 0.4:
        lines.append({
            **lines[0], "sku": chance.randint(1, SKUS), "location": chance.randint(1, LOCATIONS),
            "quantity": chance.randint(1, 2), "value": int(Disposition.RESTOCK),
            **naming(bytes(16)),
        })  # fmt: skip
        hints.append(0)
    return Back(lines, known, hints)


def _said_at(client: Client, handed: list[Handed], sku: int) -> int:
    """Where a SKU was handed over, if that is told."""
    sold = [each.location for each in handed if each.sku == sku]
    return client.chance.choice((0, 0, 0, client.chance.choice(sold)))


def _out(client: Client, back: list[Line]) -> list[Line]:
    """An order, in part of what comes back; paid for or not."""
    chance = client.chance
    paid = chance.choice((0, Flag.COMMIT_NOW))
    lines = order_lines(client)
    if chance.random() < 0.3:
        lines = [lines[0] | {name: line[name] for name in ("sku", "location")} for line in back]
    for line in lines:
        line["channel"] *= chance.random() < 0.2
        line["quantity"] = chance.choice((1, 1, 2))
        if chance.random() < 0.4:
            same = chance.choice(back)
            line |= {name: same[name] for name in ("sku", "location")}
        line["flags"] = int(Flag.LINKED | paid)
    lines[-1]["flags"] = int(paid)
    return lines
