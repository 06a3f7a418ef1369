"""The lives of orders: each step is a coroutine that a client may take after the reserve."""

from engine.operations import Flag, Kind
from engine.status import Status
from tests.sim.book import Handed, Order
from tests.sim.client import Client
from tests.sim.lines import TTLS_MS, Line, moment, naming, on_hold, order_lines, request_of

_OK = int(Status.OK)


async def order(client: Client) -> None:
    """Reserve some lines, all or nothing, and take the order through some of its life."""
    lines = order_lines(client)
    known = await reserve(client, lines)
    if not known.held:
        return
    await client.think()
    if client.chance.random() < 0.3:
        await client.look_at_hold(known.op_id, *_where(client, known))
    if known.committed:
        await hand_over(client, known, lines)
        return
    steps = {
        commit_all: 6,
        commit_part: 2,
        give_up: 2,
        leave: 1,
        pay_late: 3,
        extend: 1,
        replace: 2,
    }
    step = client.chance.choices(list(steps), list(steps.values()))[0]
    await step(client, known, lines)


async def reserve(client: Client, lines: list[Line]) -> Order:
    """Ask for a hold; what is known of it then."""
    request = request_of(client.new_id(), lines, want_available=client.chance.random() < 0.5)
    known = Order(request.op_id, frozenset(line["location"] for line in lines))
    client.shop.orders.append(known)
    answer = await client.write("reserve", request)
    if answer is not None:
        known.held = _OK in answer.status
        known.committed = known.held and bool(lines[0]["flags"] & Flag.COMMIT_NOW)
    return known


async def commit_all(client: Client, known: Order, lines: list[Line], flags: int = 0) -> None:
    commit = on_hold(client.new_id(), Kind.COMMIT, known.op_id, flags=flags)
    answer = await client.write("on_hold", commit, *_where(client, known))
    if answer is None:
        return
    if any(answer.status):
        # Of a part the time was over, so the order does not stand: take back what was committed.
        await take_back(client, known)
        return
    known.committed = True
    await client.think()
    if client.chance.random() < 0.6:
        await hand_over(client, known, lines)


async def pay_late(client: Client, known: Order, lines: list[Line]) -> None:
    """Commit when the time may be over, if the stock is still there."""
    await client.pause(2 * min(line["value"] for line in lines) / 1000)
    await commit_all(client, known, lines, Flag.RE_RESERVE)


async def extend(client: Client, known: Order, lines: list[Line]) -> None:
    ttl_ms = client.chance.choice(TTLS_MS)
    call = on_hold(client.new_id(), Kind.EXTEND, known.op_id, value=ttl_ms)
    if await client.write("on_hold", call, *_where(client, known)) is not None:
        await client.think()
        await commit_all(client, known, lines)


async def replace(client: Client, known: Order, _: list[Line]) -> None:
    """Hold something else in place of it: the one or the other, never both, never none."""
    lines = order_lines(client)
    for line in lines:
        line["flags"] &= ~Flag.COMMIT_NOW
    lines[0]["flags"] |= Flag.SUPERSEDE
    newer = await reserve(client, [lines[0] | naming(known.op_id), *lines[1:]])
    if newer.held is None:
        return
    known.closed = newer.held
    stands = newer if newer.held else known
    await commit_all(client, stands, lines)


async def hand_over(client: Client, known: Order, lines: list[Line]) -> None:
    known.committed = False
    kind = client.chance.choice((Kind.FULFIL, Kind.FULFIL, Kind.CANCEL))
    moment_ns = moment(client) if kind == Kind.FULFIL else 0
    call = on_hold(client.new_id(), kind, known.op_id, occurred_at_ns=moment_ns)
    answer = await client.write("on_hold", call, *_where(client, known))
    if kind == Kind.CANCEL or answer is None or any(answer.status):
        return
    client.shop.handed += [
        Handed(known.op_id, line["sku"], line["location"], line["quantity"]) for line in lines
    ]
    if client.chance.random() < 0.3:
        await client.think()
        where: Line = {}
        if client.chance.random() < 0.5:
            where = {name: lines[0][name] for name in ("sku", "location")} | {"quantity": 1}
        columns = {"occurred_at_ns": moment(client), **where}
        call = on_hold(client.new_id(), Kind.UNFULFIL, known.op_id, **columns)
        await client.write("on_hold", call)


async def take_back(client: Client, known: Order) -> None:
    """Cancel what is committed and release what is pending, wherever it is."""
    answers = [
        await client.write(
            "on_hold",
            on_hold(client.new_id(), kind, known.op_id),
            *_where(client, known),
            patient=True,
        )
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
    for kind in client.chance.sample((Kind.FULFIL, Kind.CANCEL, Kind.RELEASE, Kind.UNFULFIL), 2):
        units = client.chance.randint(0, quantity)
        columns = {"quantity": units, **where}
        if kind in (Kind.FULFIL, Kind.UNFULFIL):
            columns["occurred_at_ns"] = moment(client)
        call = on_hold(client.new_id(), kind, known.op_id, **columns)
        await client.write("on_hold", call)


async def give_up(client: Client, known: Order, _: list[Line]) -> None:
    release = on_hold(client.new_id(), Kind.RELEASE, known.op_id)
    answer = await client.write("on_hold", release, *_where(client, known))
    known.closed = answer is not None


def _where(client: Client, known: Order) -> list[int]:
    """Where all of an order is, if it is at one place, and the client says so."""
    is_said = len(known.locations) == 1 and client.chance.random() < 0.5
    return list(known.locations) if is_said else []


async def leave(client: Client, known: Order, _: list[Line]) -> None:
    """Say nothing any more: time does the rest."""
