"""Holds that go from place to place, while others call on them: moves, and what may race with them.

Everything that is begun here is repeated until it is answered, whoever dies in between: only then
can be said what must have become of the hold.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from engine.operations import Flag, Kind
from engine.status import Status
from tests.sim.client import Client
from tests.sim.lines import (
    NEW_LOCATION,
    Line,
    naming,
    on_hold,
    order_lines,
    request_of,
    reserve_line,
)
from tests.sim.moved import Journey, Look, Move, Places, Said, Span
from tests.sim.orders import reserve
from tests.sim.world import LOCATIONS, SKUS

TTLS_MS: Final = (60, 250, 250, 800, 800)  # so that most live to see the end of a move
STAGGERED_MOST_S: Final = 0.006  # about as long as a move takes
WIDE: Final = 0.3  # of holds, which are of every SKU
SOLD_OUT: Final = 0.25  # of moves, before which something is gone where they go
_OK: Final = int(Status.OK)


async def journey(client: Client) -> None:
    """Hold something, and move it some times; others may call on it meanwhile."""
    chance = client.chance
    lines = _wide_lines(client) if chance.random() < WIDE else order_lines(client)
    for line in lines:
        line["flags"] &= int(Flag.LINKED)
        line["value"] = chance.choice(TTLS_MS)
    request = request_of(client.new_id(), lines)
    answer = await client.write("reserve", request, patient=True)
    assert answer is not None
    if any(answer.status):
        return
    home: Places = Counter()
    for line in lines:
        home[line["sku"], line["location"]] += line["quantity"]
    known = Journey(request.op_id, home)
    client.shop.journeys.append(known)
    places: Places | None = home
    for _ in range(chance.choice((1, 1, 2, 3))):
        rivals = chance.choices(list(RIVALS), list(RIVALS.values()), k=chance.choice((0, 0, 1, 2)))
        move = _move_lines(client, known, places)
        if chance.random() < SOLD_OUT:
            await _sell_out(client, known, move[0]["location"])
        await asyncio.gather(_move(client, known, move), *(each(client, known) for each in rivals))
        places = None if rivals or places is None else _moved(places, known.moves[-1])
        known.looks.append(Look(client.ends(), places))
        if chance.random() < 0.3:
            await _repeat(client, known, places)
    if chance.random() < 0.6:
        await pay(client, known)
        known.looks.append(Look(client.ends(), None))
        await _repeat(client, known, None)


def _wide_lines(client: Client) -> list[Line]:
    """A few of every SKU, each anywhere: mostly on several shards."""
    lines = [
        reserve_line(client) | {"sku": sku, "location": client.chance.randint(1, LOCATIONS)}
        for sku in range(1, SKUS + 1)
    ]
    flags = [int(Flag.LINKED)] * (SKUS - 1) + [0]
    return [
        line | {"quantity": client.chance.randint(1, 2), "channel": 0, "flags": each}
        for line, each in zip(lines, flags, strict=True)
    ]


def _move_lines(client: Client, known: Journey, places: Places | None) -> list[Line]:
    """All of the hold, or some of its cells; now and then more than there is."""
    chance = client.chance
    to = NEW_LOCATION if chance.random() < 0.03 else chance.randint(1, LOCATIONS)
    line = {"kind": Kind.MOVE, "location": to, **naming(known.hold_id)}
    if chance.random() < 0.5:
        return [line]
    cells = sorted(known.home if places is None else places)
    lines = []
    is_linked = chance.random() < 0.5
    for sku, leaves in cells if is_linked else chance.sample(cells, chance.randint(1, len(cells))):
        quantity = chance.choice((0, 0, 1, 2))
        lines.append(line | {"sku": sku, "value": leaves, "quantity": quantity})
    return _linked(lines) if is_linked else lines


async def _sell_out(client: Client, known: Journey, to: int) -> None:
    """Find nothing of one of its SKUs where it is to go.

    So a move of several is refused, sometimes after it has kept the stock of others.
    """
    sku, _ = client.chance.choice(sorted(known.home))
    none = {"kind": Kind.COUNT, "sku": sku, "location": to, "quantity": 0}
    await client.write("submit", request_of(client.new_id(), [none]))


def _linked(lines: list[Line]) -> list[Line]:
    """As many of them as can be moved together: each of another SKU and so many."""
    linked = list({line["sku"]: line for line in lines}.values())
    flags = [int(Flag.LINKED)] * (len(linked) - 1) + [0]
    return [
        line | {"flags": each, "quantity": max(line["quantity"], 1)}
        for line, each in zip(linked, flags, strict=True)
    ]


async def _move(client: Client, known: Journey, lines: list[Line]) -> None:
    request = request_of(client.new_id(), lines, want_available=True)
    begun_s = client.now_s()
    answer = await client.write("move", request, patient=True)
    assert answer is not None
    span = Span(begun_s, client.now_s())
    known.moves.append(Move(request, answer.status, span, client.ends()))


async def _repeat(client: Client, known: Journey, places: Places | None) -> None:
    """Send a move again: it has no second effect."""
    move = client.chance.choice(known.moves)
    answer = await client.write("move", move.request, patient=True)
    assert answer is not None
    known.looks.append(Look(client.ends(), places, is_unchanged=True))


def _moved(places: Places, move: Move) -> Places | None:
    """Where a hold is after a move that nobody disturbed; None: it may be over."""
    if Status.HOLD_EXPIRED in move.status:
        return None
    columns = {name: column.tolist() for name, column in move.request.columns.items()}
    if "sku" not in columns:
        moved: Places = Counter()
        for (sku, _), units in places.items():
            moved[sku, move.to] += units
        return places if move.status[0] else moved
    after = places.copy()
    for i, status in enumerate(move.status):
        cell = columns["sku"][i], columns["value"][i]
        units = columns["quantity"][i] or after[cell]
        if status == _OK:
            after[cell] -= units
            after[cell[0], move.to] += units
    return +after


# --- what may come between ------------------------------------------------------------------------


async def _call(
    client: Client, known: Journey, kind: Kind, where: Sequence[int] = (), **columns: int
) -> None:
    """A call on the hold at about the time of a move; `where`, if that is said, is all of it."""
    await asyncio.sleep(client.chance.uniform(0, STAGGERED_MOST_S))
    begun_s = client.now_s()
    request = on_hold(client.new_id(), kind, known.hold_id, **columns)
    answer = await client.write("on_hold", request, *where, patient=True)
    assert answer is not None
    is_whole = not where and "quantity" not in columns
    is_done = not any(answer.status)
    known.said.append(Said(kind, is_whole, is_done, Span(begun_s, client.now_s())))


async def pay(client: Client, known: Journey) -> None:
    await _call(client, known, Kind.COMMIT, flags=client.chance.choice((0, Flag.RE_RESERVE)))


async def pay_here(client: Client, known: Journey) -> None:
    """Say that all of it is at one place, so that its shard alone is asked, maybe at once."""
    await _call(client, known, Kind.COMMIT, _somewhere(client, known))


async def pay_for_some(client: Client, known: Journey) -> None:
    sku, location = client.chance.choice(sorted(known.home))
    await _call(client, known, Kind.COMMIT, sku=sku, location=location, quantity=1)


async def give_up(client: Client, known: Journey) -> None:
    await _call(client, known, Kind.RELEASE)


async def give_up_here(client: Client, known: Journey) -> None:
    await _call(client, known, Kind.RELEASE, _somewhere(client, known))


async def extend(client: Client, known: Journey) -> None:
    await _call(client, known, Kind.EXTEND, value=client.chance.choice(TTLS_MS))


async def pay_and_fetch(client: Client, known: Journey) -> None:
    await pay(client, known)
    await _call(client, known, Kind.FULFIL)


async def pay_and_cancel(client: Client, known: Journey) -> None:
    await pay(client, known)
    await _call(client, known, Kind.CANCEL)


async def replace(client: Client, known: Journey) -> None:
    """Hold something else in place of it."""
    lines = order_lines(client)
    for line in lines:
        line["flags"] &= int(Flag.LINKED)
    lines[0]["flags"] |= Flag.SUPERSEDE
    await asyncio.sleep(client.chance.uniform(0, STAGGERED_MOST_S))
    begun_s = client.now_s()
    newer = await reserve(client, [lines[0] | naming(known.hold_id), *lines[1:]])
    span = Span(begun_s, client.now_s())
    known.said.append(Said(Kind.RESERVE, is_whole=True, is_done=bool(newer.held), span=span))


async def move_elsewhere(client: Client, known: Journey) -> None:
    await asyncio.sleep(client.chance.uniform(0, STAGGERED_MOST_S))
    await _move(client, known, _move_lines(client, known, None))


def _somewhere(client: Client, known: Journey) -> list[int]:
    """A place where it may be."""
    places = {location for _, location in known.home} | {move.to for move in known.moves}
    return [client.chance.choice(sorted(places))]


RIVALS: dict[Callable[[Client, Journey], Awaitable[None]], float] = {
    pay: 6,
    pay_here: 3,
    pay_for_some: 1,
    give_up: 2,
    give_up_here: 1,
    extend: 2,
    pay_and_fetch: 1,
    pay_and_cancel: 1,
    replace: 2,
    move_elsewhere: 2,
}
