"""Goods that come, go, come back and are sent: sales with an id, returns, purchases, transfers."""

from collections import Counter

from engine.operations import Answer, Disposition, Flag, Kind, Request
from engine.status import Status
from tests.sim.book import Handed, Return, Transfer
from tests.sim.client import Client
from tests.sim.lines import (
    NEW_LOCATION,
    TTLS_MS,
    Line,
    cell,
    moment,
    naming,
    on_hold,
    request_of,
    reserve_line,
)
from tests.sim.world import LOCATIONS, SKUS, SPLIT_LOCATION

_OK = int(Status.OK)


async def receipt(client: Client) -> None:
    """A till's sale under its own id, which the till may tell again and again."""
    chance = client.chance
    sku, location = cell(chance)
    sale = Handed(chance.randbytes(16), sku, location, chance.randint(1, 3))
    line = {
        "kind": Kind.SALE, "sku": sku, "location": location, "quantity": sale.units,
        "occurred_at_ns": moment(client), **naming(sale.hold_id),
    }  # fmt: skip
    for _ in range(chance.choice((1, 2, 3))):
        answer = await client.write("submit", request_of(client.new_id(), [line]))
        if answer is not None and answer.status[0] in {_OK, Status.ALREADY_RECORDED}:
            client.shop.handed.append(sale)
        await client.think()


async def give_back(client: Client) -> None:
    """Bring something back that was handed over, there or elsewhere."""
    if not client.shop.handed:
        return
    line, known = _return_line(client)
    location = client.chance.choice((0, 0, line["location"]))
    request = request_of(client.new_id(), [line], want_available=True)
    answer = await client.write("returned", request, [location])
    if answer is None:
        return
    known.told = not answer.status[0]
    if known.told and line["value"] == Disposition.QUALITY_CONTROL:
        await client.think()
        decided = client.chance.choice((Disposition.RESTOCK, Disposition.DAMAGED))
        inspect = line | {"kind": Kind.INSPECT, "value": int(decided), **naming(bytes(16))}
        await client.write("submit", request_of(client.new_id(), [inspect]))


async def exchange(client: Client) -> None:
    """Bring something back for something else of the same place: both or neither."""
    if not client.shop.handed:
        return
    back, known = _return_line(client)
    taken = reserve_line(client) | {"location": back["location"]}
    lines = [back | {"flags": Flag.LINKED}, taken]
    answer = await client.write("submit", request_of(client.new_id(), lines))
    if answer is not None:
        known.told = not answer.status[0]


def _return_line(client: Client) -> tuple[Line, Return]:
    """A return of something that was handed over, mostly to where it was."""
    chance = client.chance
    handed = chance.choice(client.shop.handed)
    known = Return(handed.hold_id, handed.sku, chance.randint(1, handed.units))
    client.shop.returns.append(known)
    location = handed.location if chance.random() < 0.5 else cell(chance)[1]
    line = {
        "kind": Kind.RETURN, "sku": handed.sku, "location": location, "quantity": known.units,
        "value": int(chance.choice(list(Disposition))), "occurred_at_ns": moment(client),
        **naming(handed.hold_id),
    }  # fmt: skip
    return line, known


async def purchase(client: Client) -> None:
    """Expect goods at some cells, receive some of them, and give up the rest or a part."""
    chance = client.chance
    record = chance.randbytes(16)
    lines: list[Line] = []
    for _ in range(chance.randint(1, 3)):
        sku, location = cell(chance)
        lines.append({"sku": sku, "location": location, "quantity": chance.randint(1, 6)})
    expect = [line | {"kind": Kind.EXPECT} | naming(record) for line in lines]
    if await client.write("submit", request_of(client.new_id(), expect)) is None:
        return
    await client.think()
    arrived = [
        line | {"kind": Kind.RECEIVE, "quantity": chance.randint(1, 6)} | naming(record)
        for line in chance.sample(lines, chance.randint(1, len(lines)))
    ]
    if await client.write("submit", request_of(client.new_id(), arrived)) is None:
        return
    await client.think()
    given_up = chance.choice(({}, {}, lines[0] | {"quantity": 1}))
    call = on_hold(client.new_id(), Kind.CANCEL_INCOMING, record, **given_up)
    await client.write("on_hold", call)


async def transfer(client: Client) -> None:
    """Send goods from one place to another, in parts. Nothing is known of it once a call fails."""
    chance = client.chance
    source, destination = chance.sample(range(1, LOCATIONS + 1), 2)
    drawn = chance.random()
    if drawn < 0.5:
        source, destination = chance.randint(1, LOCATIONS - 1), SPLIT_LOCATION
    elif drawn < 0.6:
        destination = NEW_LOCATION
    skus = chance.sample(range(1, SKUS + 1), chance.randint(1, 3))
    known = Transfer(client.new_id(), Counter({sku: chance.randint(1, 4) for sku in skus}))
    lines = _lines(Kind.RESERVE, source, known.requested, flags=Flag.LINKED | Flag.COMMIT_NOW)
    for line in lines:
        line["value"] = chance.choice(TTLS_MS)
    lines[-1]["flags"] = int(Flag.COMMIT_NOW)
    answer = await client.write("reserve", request_of(known.op_id, lines))
    if answer is None or any(answer.status):
        return
    client.shop.transfers.append(known)
    losses: list[Request] = []  # calls to give up all that is on its way
    for _ in range(chance.choice((1, 2, 3))):
        await client.think()
        if not await _ship(client, known, source, destination):
            return
        if losses and chance.random() < 0.8:  # it is about what was sent before it alone
            await client.write("lose", chance.choice(losses))
        await client.think()
        if not await _receive(client, known, destination):
            return
        if chance.random() < 0.6 and not await _lose(client, known, destination, losses):
            return
    known.is_known = chance.random() < 0.5 or await _cancel(client, known, source)


async def _ship(client: Client, known: Transfer, source: int, destination: int) -> bool:
    """Send some of what is left; True when all is known."""
    units = _some_of(client, known.unsent)
    if not units:
        return True
    moment_ns = moment(client)
    lines = _lines(Kind.FULFIL, source, units, occurred_at_ns=moment_ns, **naming(known.op_id))
    request = request_of(client.new_id(), lines)
    answer = await client.write("ship", request, destination, client.now_ns() // 10**6)
    return _note(answer, units, known.shipped)


async def _receive(client: Client, known: Transfer, destination: int) -> bool:
    units = _some_of(client, known.on_its_way)
    if not units:
        return True
    lines = _lines(Kind.RECEIVE, destination, units, **naming(known.op_id))
    answer = await client.write("receive", request_of(client.new_id(), lines))
    return _note(answer, units, known.received)


async def _lose(client: Client, known: Transfer, destination: int, losses: list[Request]) -> bool:
    """Give up what did not come, or some of it."""
    units = known.on_its_way
    if client.chance.random() < 0.3 and units:
        units = _some_of(client, units)
        lines = _lines(Kind.CANCEL_INCOMING, destination, units, **naming(known.op_id))
        call = request_of(client.new_id(), lines)
    else:
        columns = {"location": destination}
        call = on_hold(client.new_id(), Kind.CANCEL_INCOMING, known.op_id, **columns)
        losses.append(call)
    return _note(await client.write("lose", call), units, known.lost)


async def _cancel(client: Client, known: Transfer, source: int) -> bool:
    """Cancel what was not sent, or some of it."""
    units = known.unsent
    if client.chance.random() < 0.3 and units:
        units = _some_of(client, units)
        lines = _lines(Kind.CANCEL, source, units, **naming(known.op_id))
        call = request_of(client.new_id(), lines)
    else:
        call = on_hold(client.new_id(), Kind.CANCEL, known.op_id)
    return _note(await client.write("on_hold", call, source), units, known.cancelled)


def _note(answer: Answer | None, units: Counter[int], told: Counter[int]) -> bool:
    """Add to what is told the units of each SKU that were answered OK; False: nothing is known.

    An answer of one line may be about all of them.
    """
    if answer is None:
        return False
    lines = answer.status * (len(units) if len(answer.status) == 1 else 1)
    told.update({sku: units[sku] for sku, said in zip(units, lines, strict=True) if said == _OK})
    return True


def _some_of(client: Client, units: Counter[int]) -> Counter[int]:
    """Some of each SKU, or of some of them."""
    chance = client.chance
    skus = sorted(units)
    if skus and chance.random() < 0.5:
        skus = chance.sample(skus, chance.randint(1, len(skus)))
    return Counter({sku: chance.randint(1, units[sku]) for sku in skus})


def _lines(kind: Kind, location: int, units: Counter[int], **columns: int) -> list[Line]:
    return [
        {"kind": kind, "sku": sku, "location": location, "quantity": each, **columns}
        for sku, each in units.items()
    ]
