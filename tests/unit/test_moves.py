"""Moves of holds over two shards: where they end, whoever dies and whatever comes between."""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np
import pytest

from actors.router import Router
from engine import limits
from engine.operations import Answer, Flag, Kind, Request
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import HoldState
from tests.fakes.shard import FakeShard
from tests.unit.test_router import MAP, SPLIT, TTL, Town, batch_id, call, on, order, town
from tests.unit.test_spanning import (
    HELD,
    NEW,
    OP,
    Died,
    Mortal,
    Operation,
    channel_rules,
    check_deaths,
    hold_five,
    nothing,
)

__all__ = ["town"]

LINKED = Status.LINKED_LINE_REFUSED


def a_move(
    to: int,
    *lines: tuple[int, int, int],
    op_id: bytes = OP,
    hold: bytes = HELD,
    channel: int = 0,
    flags: Any = 0,
) -> Operation:
    """Lines of (SKU, location that it leaves, quantity); none: all of the hold."""
    skus, leaves, quantities = zip(*(lines or [(0, 0, 0)]), strict=True)
    columns = {"sku": skus, "location": to, "quantity": quantities, "value": leaves}
    columns |= {"channel": channel, "flags": flags}
    request = call(op_id, Kind.MOVE, hold, len(skus), **columns)
    return lambda router: router.move(request)


async def lines_of(town: Town, hold_id: bytes = HELD) -> list[tuple[int, int, int]]:
    """(SKU, location, pending) of the lines of a hold that have any."""
    hold = await town.router.hold(hold_id)
    assert hold is not None
    pending: Counter[tuple[int, int]] = Counter()
    for line in hold.lines:
        pending[line.sku, line.location] += line.pending
    return sorted((*name, units) for name, units in pending.items() if units)


@pytest.mark.parametrize(
    ("to", "lines", "after"),
    [
        (2, [], [(1, 2, 3), (2, 2, 2)]),  # shard 1, where a part of it is
        (4, [], [(1, 4, 3), (2, 4, 2)]),
        (3, [], [(1, 3, 3), (2, 3, 2)]),
        (5, [], [(1, 5, 3), (2, 5, 2)]),  # a location over both shards
        (4, [(1, 1, 2)], [(1, 1, 1), (1, 4, 2), (2, 2, 2)]),
        (4, [(1, 1, 0), (2, 2, 0)], [(1, 4, 3), (2, 4, 2)]),
        (3, [(2, 2, 1)], [(1, 1, 3), (2, 2, 1), (2, 3, 1)]),
    ],
)
async def test_a_hold_moves_to_another_shard(
    to: int, lines: list[tuple[int, int, int]], after: list[tuple[int, int, int]]
) -> None:
    town, answer = await check_deaths(hold_five, a_move(to, *lines), at_least=1)
    assert not any(answer.status)
    assert await lines_of(town) == after
    assert town.reserved == 5
    hold = await town.router.hold(HELD)
    assert hold is not None
    assert hold.state == HoldState.PENDING
    _, answer = await town.router.on_hold(call(NEW, Kind.COMMIT, HELD))
    assert list(answer.status) == [Status.OK]
    assert (town.counted("committed"), town.reserved) == (5, 0)


@pytest.mark.parametrize("to", [2, 3, 4, SPLIT])
@pytest.mark.parametrize(
    ("lines", "flags"),
    [
        ([], 0),
        ([(1, 1, 3)], 0),
        ([(1, 1, 3), (2, 1, 1)], 0),
        ([(1, 1, 3), (2, 1, 1)], [Flag.LINKED, 0]),
    ],
)
@pytest.mark.parametrize(
    ("channel", "status"),
    [
        (1, Status.INSUFFICIENT_STOCK),  # eight of ten are kept from it
        (2, Status.NOT_IN_CHANNEL),
        (3, Status.UNKNOWN_CHANNEL),
    ],
)
async def test_what_moves_takes_no_stock_that_is_kept_from_its_channel(
    to: int, lines: list[tuple[int, int, int]], flags: Any, channel: int, status: Status
) -> None:
    """By line, the first one is refused, or all are where they are linked."""

    async def setting(town: Town) -> None:
        channel_rules(town, (0, 0, 0))
        channel_rules(town, (0, 8, -1), range(2, 9))
        await town.router.reserve(order(HELD, [(1, 1), (2, 1)], [3, 1]))

    operation = a_move(to, *lines, channel=channel, flags=flags)
    town, answer = await check_deaths(setting, operation, at_least=0)
    assert answer.status[0] == status
    by_line = len(lines) == 2 and not flags and status is Status.INSUFFICIENT_STOCK
    moved = [(2, 1, 0), (2, to, 1)] if by_line else [(2, 1, 1)]
    expected = [(1, 1, 3), *((sku, at, units) for sku, at, units in moved if units)]
    assert sorted(await lines_of(town)) == expected
    town, answer = await check_deaths(setting, a_move(to, *lines, flags=flags), at_least=0)
    assert not any(answer.status)


@pytest.mark.parametrize(
    ("to", "stays", "comes"), [(3, (1, 1), (2, 2)), (4, (2, 2), (1, 1))], ids=["first", "second"]
)
@pytest.mark.parametrize(
    ("channel", "status"),
    [
        (1, Status.INSUFFICIENT_STOCK),  # eight of ten are kept from it
        (2, Status.NOT_IN_CHANNEL),
    ],
)
async def test_what_moves_within_a_shard_takes_no_stock_that_is_kept_from_its_channel(
    town: Town,
    to: int,
    stays: tuple[int, int],
    comes: tuple[int, int],
    channel: int,
    status: Status,
) -> None:
    """Of what comes from the other shard there is enough."""
    channel_rules(town, (0, 0, 0))
    channel_rules(town, (0, 8, -1), [to])
    await town.router.reserve(order(HELD, [stays, comes], [3, 1]))
    operation = a_move(to, channel=channel)
    for _ in range(2):
        _, answer = await operation(town.router)
        assert list(answer.status) == [status]
        assert await lines_of(town) == sorted([(*stays, 3), (*comes, 1)])
        assert town.reserved == 4
    _, answer = await a_move(to, op_id=NEW)(town.router)
    assert not any(answer.status)


async def test_what_moves_for_a_channel_is_told_what_it_is_short_of(town: Town) -> None:
    """The shard that has too little for a line says so, though the channel does not sell there."""
    await hold_five(town)
    channel_rules(town, (0, 0, 0))
    channel_rules(town, (0, 8, -1), [1])
    lines = [(1, 1, 4), (2, 2, 1)]
    _, answer = await a_move(4, *lines, channel=2)(town.router)
    assert list(answer.status) == [Status.EXCEEDS_HOLD, Status.OK]
    _, answer = await a_move(4, *lines, op_id=NEW, channel=2, flags=[Flag.LINKED, 0])(town.router)
    assert list(answer.status) == [Status.EXCEEDS_HOLD, LINKED]


@pytest.mark.parametrize("lines", [[], [(1, 1, 2)], [(1, 1, 3), (2, 2, 1)]])
@pytest.mark.parametrize("to", [4, SPLIT])
async def test_a_reader_sees_all_units_of_a_hold_wherever_its_move_was_when_the_router_died(
    to: int, lines: list[tuple[int, int, int]]
) -> None:
    """Nobody has repeated the move yet; and when nobody does, the hold has run out, not less."""
    seen: set[tuple[tuple[int, int, int], ...]] = set()
    for lives in range(20):
        town = await Town().stocked()
        await hold_five(town)
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            await a_move(to, *lines)(Router(links, lambda: MAP))
        there = await lines_of(town)
        seen.add(tuple(there))
        assert Counter(sku for sku, _, units in there for _ in range(units)) == {1: 3, 2: 2}
        hold = await town.router.hold(HELD)
        assert hold is not None
        assert hold.state == HoldState.PENDING
        for shard in town.shards:
            shard.now_ns += 2 * TTL * limits.NS_PER_MS
            await shard.submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))  # sweeps
        hold = await town.router.hold(HELD)
        assert hold is not None
        assert (hold.state, await lines_of(town)) == (HoldState.EXPIRED, [])
        if left[0]:
            assert len(seen) > 1  # before it, after it, and maybe half-way
            return
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize(
    ("to", "lines", "status"),
    [
        (4, [], [Status.INSUFFICIENT_STOCK]),
        (4, [(1, 1, 2)], [Status.INSUFFICIENT_STOCK]),
        (4, [(1, 1, 0)], [Status.INSUFFICIENT_STOCK]),
        (2, [(3, 1, 1)], [Status.NOT_IN_HOLD]),
        (2, [(3, 1, 0), (1, 3, 1)], [Status.NOT_IN_HOLD] * 2),
        (2, [(1, 1, 4)], [Status.EXCEEDS_HOLD]),
        (2, [(1, 1, -1)], [Status.INVALID_QUANTITY]),
        (99, [], [Status.UNKNOWN_LOCATION]),
    ],
)
async def test_a_move_that_is_refused_changes_nothing(
    to: int, lines: list[tuple[int, int, int]], status: list[Status]
) -> None:
    async def setting(town: Town) -> None:
        await hold_five(town)
        await town.router.reserve(order(NEW, [(1, 4)], [9]))

    town, answer = await check_deaths(setting, a_move(to, *lines), at_least=1)
    assert list(answer.status) == status
    assert await lines_of(town) == [(1, 1, 3), (2, 2, 2)]
    assert town.reserved == 14


async def test_a_hold_that_is_over_does_not_move(town: Town) -> None:
    await hold_five(town)
    for shard in town.shards:
        shard.now_ns += 2 * TTL * limits.NS_PER_MS
    _, answer = await a_move(4)(town.router)
    assert list(answer.status) == [Status.HOLD_EXPIRED]
    _, answer = await a_move(4, hold=NEW, op_id=NEW)(town.router)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    await town.router.reserve(order(NEW, [(1, 1)]))
    for kind in (Kind.RELEASE, Kind.MOVE):
        columns = {"location": 4} if kind == Kind.MOVE else {}
        request = call(os.urandom(16), kind, NEW, **columns)
        send = town.router.move if kind == Kind.MOVE else town.router.on_hold
        _, answer = await send(request)
    assert list(answer.status) == [Status.HOLD_RELEASED]


@pytest.mark.parametrize(
    ("before", "kind", "status"),
    [
        ([], Kind.FULFIL, Status.HOLD_NOT_COMMITTED),
        ([], Kind.CANCEL, Status.HOLD_NOT_COMMITTED),
        ([], Kind.UNFULFIL, Status.HOLD_NOT_FULFILLED),
        ([Kind.COMMIT], Kind.UNFULFIL, Status.HOLD_NOT_FULFILLED),
        ([Kind.COMMIT], Kind.RELEASE, Status.HOLD_NOT_PENDING),
        ([Kind.RELEASE], Kind.RELEASE, Status.HOLD_RELEASED),
        ([Kind.RELEASE], Kind.FULFIL, Status.HOLD_RELEASED),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
async def test_what_has_moved_away_does_not_say_why_a_call_on_the_hold_is_refused(
    before: list[Kind], kind: Kind, status: Status, shards: int
) -> None:
    """It was told released, where one shard says what it is."""
    town = await Town(ShardMap(1, shards)).stocked()
    await town.router.reserve(order(HELD, [(1, 1), (2, 1)], [3, 2]))
    _, moved = await town.router.move(call(NEW, Kind.MOVE, HELD, location=2))
    assert not any(moved.status)
    for each in before:
        assert not any((await town.router.on_hold(call(os.urandom(16), each, HELD)))[1].status)
    for _ in range(2):
        _, answer = await town.router.on_hold(call(OP, kind, HELD))
        assert list(answer.status) == [status]


async def test_what_is_committed_under_the_hands_of_a_move_stays_where_it_is(town: Town) -> None:
    await hold_five(town)
    first = town.shards[0]
    submit = first.submit

    async def meddle(request: Request) -> Answer:
        if request.columns["kind"][0] == Kind.RELEASE:
            await submit(call(os.urandom(16), Kind.COMMIT, HELD))
        return await submit(request)

    first.submit = meddle  # type: ignore[method-assign]
    _, answer = await a_move(4, (1, 1, 3))(town.router)
    assert list(answer.status) == [Status.HOLD_NOT_PENDING]
    assert (town.counted("committed"), town.reserved) == (3, 2)


@pytest.mark.parametrize(
    ("paid", "left"),
    [
        ({}, []),
        ({"sku": 1, "location": 1, "quantity": 1}, [(1, 4, 2)]),
        ({"sku": 1, "location": 1, "quantity": 3}, []),
    ],
)
async def test_what_others_take_of_a_hold_has_no_say_when_the_rest_of_all_of_it_moves(
    paid: dict[str, int], left: list[tuple[int, int, int]]
) -> None:
    """It is committed, or some of it, right before it leaves; what was at the destination has moved."""

    async def setting(town: Town) -> None:
        await hold_five(town)
        first = town.shards[0]
        submit = first.submit

        async def meddle(request: Request) -> Answer:
            if Kind.RELEASE in request.columns.get("kind", ()):
                await submit(call(NEW, Kind.COMMIT, HELD, **paid))
            return await submit(request)

        first.submit = meddle  # type: ignore[method-assign]

    town, answer = await check_deaths(setting, a_move(4))
    assert list(answer.status) == [Status.OK]
    assert await lines_of(town) == [*left, (2, 4, 2)]
    assert town.counted("committed") == paid.get("quantity", 3)
    assert town.reserved == 5 - paid.get("quantity", 3)


@pytest.mark.parametrize("units", [0, 1])
async def test_what_others_have_moved_elsewhere_moves_with_the_rest(units: int) -> None:
    """A move of all was refused because of it, with NOT_IN_HOLD, when some had been moved already."""

    async def setting(town: Town) -> None:
        await hold_five(town)
        first = town.shards[0]
        submit = first.submit

        async def meddle(request: Request) -> Answer:
            if Kind.RELEASE in request.columns.get("kind", ()):
                away = {"sku": 1, "location": 3, "value": 1, "quantity": units}
                await submit(call(NEW, Kind.MOVE, HELD, **away))
            return await submit(request)

        first.submit = meddle  # type: ignore[method-assign]

    town, answer = await check_deaths(setting, a_move(4))
    assert list(answer.status) == [Status.OK]
    parts = await lines_of(town)
    assert {location for _, location, _ in parts} == {4}
    assert sum(quantity for *_, quantity in parts) == town.reserved == 5


@pytest.mark.parametrize("sku", [1, 2])
async def test_a_move_that_one_shard_of_the_destination_refuses_changes_nothing(sku: int) -> None:
    """Each shard has a part, of a SKU that it has there too."""

    async def setting(town: Town) -> None:
        cells = [(1, 3), (2, 2)] if MAP.shard_of(1, 5) == 0 else [(1, 2), (2, 3)]
        await town.router.reserve(order(HELD, cells, [3, 2]))
        await town.router.reserve(order(NEW, [(sku, 5)], [9]))

    before = await Town().stocked()
    await setting(before)
    town, answer = await check_deaths(setting, a_move(5))
    assert list(answer.status) == [Status.INSUFFICIENT_STOCK]
    assert await lines_of(town) == await lines_of(before)
    assert town.reserved == 14


@pytest.mark.parametrize("lines", [[], [(1, 1, 3)], [(1, 1, 2)]])
async def test_units_that_have_left_join_the_hold_also_when_the_rest_of_it_is_committed(
    town: Town, lines: list[tuple[int, int, int]]
) -> None:
    """What the hold has at the destination is committed, there alone, right before they arrive."""
    await hold_five(town)
    before = await town.router.hold(HELD)
    assert before is not None
    second = town.shards[1]
    submit = second.submit

    async def meddle(request: Request) -> Answer:
        if Kind.ADD_LINE in request.columns.get("kind", ()):
            await submit(call(NEW, Kind.COMMIT, HELD))
        return await submit(request)

    second.submit = meddle  # type: ignore[method-assign]
    units = lines[0][2] if lines else 3
    for _ in range(2):
        _, answer = await a_move(2, *lines)(town.router)
        assert list(answer.status) == [Status.OK]
        left = [(1, 1, 3 - units)] if units < 3 else []
        assert await lines_of(town) == [*left, (1, 2, units)]
        assert (town.counted("committed"), town.reserved) == (2, 3)
    after = await town.router.hold(HELD)
    assert after is not None
    assert abs(after.deadline_ns - before.deadline_ns) < 2 * limits.NS_PER_MS
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, HELD))
    assert list(answer.status) == [Status.OK]
    assert (town.counted("committed"), town.reserved) == (5, 0)


async def test_a_moved_hold_lives_as_long_as_before(town: Town) -> None:
    await hold_five(town)
    before = await town.router.hold(HELD)
    assert before is not None
    await a_move(4)(town.router)
    after = await town.router.hold(HELD)
    assert after is not None
    assert abs(after.deadline_ns - before.deadline_ns) < 2 * limits.NS_PER_MS


async def test_a_hold_moves_back_to_a_shard_that_it_has_left() -> None:
    async def away(town: Town) -> None:
        await hold_five(town)
        await a_move(4, op_id=NEW)(town.router)
        assert await lines_of(town) == [(1, 4, 3), (2, 4, 2)]

    town, answer = await check_deaths(away, a_move(1), at_least=2)
    assert not any(answer.status)
    assert await lines_of(town) == [(1, 1, 3), (2, 1, 2)]
    assert town.reserved == 5
    _, answer = await a_move(4, op_id=os.urandom(16))(town.router)  # and there again
    assert not any(answer.status)
    assert await lines_of(town) == [(1, 4, 3), (2, 4, 2)]
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, HELD))
    assert list(answer.status) == [Status.OK]
    assert (town.counted("committed"), town.reserved) == (5, 0)


Meddling = Callable[[Town], Awaitable[Any]]


async def pays(town: Town) -> None:
    await town.router.on_hold(call(NEW, Kind.COMMIT, HELD))


async def gives_up(town: Town) -> None:
    await town.router.on_hold(call(NEW, Kind.RELEASE, HELD))


async def buys_the_rest(town: Town) -> None:
    for cell in ((1, 2), (2, 2), (1, 1), (2, 1)):
        await town.router.reserve(order(os.urandom(16), [cell], await town.available(*cell)))


@pytest.mark.parametrize("meddling", [nothing, pays, gives_up, buys_the_rest])
@pytest.mark.parametrize("lines", [[], [(1, 1, 5)], [(1, 1, 0)]])
async def test_whatever_comes_between_two_steps_of_a_move_the_hold_is_in_one_place(
    meddling: Meddling, lines: list[tuple[int, int, int]]
) -> None:
    """The router dies after any step, something else is done, and the move is repeated twice."""

    ends = set()
    for lives in range(20):
        town = await Town().stocked()
        cells, quantities = ([(1, 1), (2, 1)], [3, 2]) if not lines else ([(1, 1)], [5])
        await town.router.reserve(order(HELD, cells, quantities))
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        is_over = False
        with suppress(Died):
            await a_move(2, *lines)(Router(links, lambda: MAP))
            is_over = True
        await meddling(town)
        _, answer = await a_move(2, *lines)(town.router)
        _, again = await a_move(2, *lines)(town.router)
        assert again.status == answer.status
        hold = await town.router.hold(HELD)
        assert hold is not None
        units = Counter(
            (line.location, name)
            for line in hold.lines
            for name in ("pending", "committed")
            for _ in range(getattr(line, name))
        )
        assert units.total() in {0, 5}
        assert len(units) <= 1
        moved = {2: True, 1: False}[next(iter(units), (1,))[0]]
        assert moved == (not any(answer.status) and units.total() > 0)
        if meddling is not buys_the_rest:
            assert town.reserved == hold.state.is_live * sum(line.pending for line in hold.lines)
        ends.add((answer.status[:1], *units))
        if is_over:
            break
    assert lives >= 3
    assert len(ends) >= (1 if meddling is nothing else 2)


async def test_a_move_that_is_repeated_leaves_alone_what_came_after_it() -> None:
    """All that is pending goes to shard 1, then on to another place there; repeated, it stays."""
    town = await Town().stocked()
    await hold_five(town)
    await a_move(2)(town.router)
    await a_move(4, op_id=NEW)(town.router)
    _, answer = await a_move(2)(town.router)
    assert answer.status == b"\0"
    assert await lines_of(town) == [(1, 4, 3), (2, 4, 2)]


async def test_lines_are_moved_each_by_itself(town: Town) -> None:
    await hold_five(town)
    await town.router.reserve(order(NEW, [(1, 4)], [9]))
    for _ in range(2):
        _, answer = await a_move(4, (1, 1, 2), (2, 2, 1))(town.router)
        assert list(answer.status) == [Status.INSUFFICIENT_STOCK, Status.OK]
        assert await lines_of(town) == [(1, 1, 3), (2, 2, 1), (2, 4, 1)]
        assert np.frombuffer(answer.available, "<i8").tolist() == [1, 9]


def a_move_together(
    to: int, *lines: tuple[int, int, int], alone: int = 0, op_id: bytes = OP
) -> Operation:
    """As `a_move`, all lines linked but for so many of the last ones."""
    skus, leaves, quantities = zip(*lines, strict=True)
    flags = np.where(np.arange(len(lines)) < len(lines) - alone - 1, Flag.LINKED, 0)
    columns = {"sku": skus, "location": to, "quantity": quantities, "value": leaves}
    request = call(op_id, Kind.MOVE, HELD, len(lines), flags=flags, **columns)
    return lambda router: router.move(request)


async def held_at_one_place(town: Town) -> None:
    await town.router.reserve(order(HELD, [(1, 1), (2, 1), (3, 3)], [4, 4, 1]))


async def held_where_both_are(town: Town) -> None:
    await town.router.reserve(order(HELD, [(1, SPLIT), (2, SPLIT), (3, 3)], [4, 4, 1]))


TOGETHER = [
    (held_at_one_place, 1, 4),  # by one way
    (held_at_one_place, 1, SPLIT),  # some stay on their shard
    (held_where_both_are, SPLIT, 2),
    (held_where_both_are, SPLIT, 1),
]


@pytest.mark.parametrize(("setting", "leaves", "to"), TOGETHER)
async def test_linked_lines_are_moved_together(
    setting: Callable[[Town], Awaitable[None]], leaves: int, to: int
) -> None:
    operation = a_move_together(to, (1, leaves, 2), (2, leaves, 3), (3, 3, 1), alone=1)
    town, answer = await check_deaths(setting, operation, at_least=1)
    assert answer.status == bytes(3)
    moved = {(1, to, 2), (2, to, 3), (3, to, 1), (1, leaves, 2), (2, leaves, 1)}
    assert set(await lines_of(town)) == moved
    available = np.frombuffer(answer.available, "<i8").tolist()
    assert available == [await town.available(sku, to) for sku in (1, 2, 3)]


@pytest.mark.parametrize("scarce", [1, 2])
@pytest.mark.parametrize(("setting", "leaves", "to"), TOGETHER)
async def test_of_linked_lines_none_is_moved_when_one_finds_no_stock(
    setting: Callable[[Town], Awaitable[None]], leaves: int, to: int, scarce: int
) -> None:
    async def scarcely(town: Town) -> None:
        await setting(town)
        left = await town.available(scarce, to)
        await town.router.reserve(order(NEW, [(scarce, to)], [left - 1]))

    operation = a_move_together(to, (1, leaves, 2), (2, leaves, 3), (3, 3, 1), alone=1)
    town, answer = await check_deaths(scarcely, operation, at_least=1)
    told = [LINKED, LINKED, Status.OK]
    told[scarce - 1] = Status.INSUFFICIENT_STOCK
    assert list(answer.status) == told
    assert set(await lines_of(town)) == {(1, leaves, 4), (2, leaves, 4), (3, to, 1)}
    waiting = await town.available(3 - scarce, to)
    assert waiting == 10 - 4 * (leaves == to)


@pytest.mark.parametrize("more", [0, 1])
async def test_which_linked_line_was_of_too_much_is_said_again_when_all_are_paid(
    town: Town, more: int
) -> None:
    await town.router.reserve(order(HELD, [(1, 1), (2, 1)], [3, 3]))
    operation = a_move_together(4, *((sku, 1, 3 + (sku == more + 1)) for sku in (1, 2)))
    expected = [Status.EXCEEDS_HOLD if place == more else LINKED for place in (0, 1)]
    for _ in range(2):
        _, answer = await operation(town.router)
        assert list(answer.status) == expected
        await pays(town)


async def superseded(town: Town) -> None:
    request = order(NEW, [(3, 1), (3, 2)])
    request.columns["flags"][0] |= Flag.SUPERSEDE
    for half, number in on(HELD).items():
        request.columns[half] = np.array([number, 0], np.uint64)
    _, answer = await town.router.reserve(request)
    assert not any(answer.status)


@pytest.mark.parametrize(
    ("lines", "flags", "refused"),
    [
        ([], 0, [False]),
        ([(1, 1, 3)], 0, [False]),
        ([(1, 1, 2), (2, 2, 1)], 0, [False, True]),
        ([(1, 1, 2), (2, 2, 1)], [Flag.LINKED, 0], [True, True]),
    ],
)
@pytest.mark.parametrize("to", [2, 3, 4, SPLIT])
@pytest.mark.parametrize("meddling", [pays, gives_up, superseded])
async def test_a_move_that_was_told_is_told_the_same_whatever_the_hold_is_by_then(
    town: Town, meddling: Meddling, to: int, lines: list[Any], flags: Any, refused: list[bool]
) -> None:
    """One of its parts was given up by lines before, and comes to be seen as given up with the rest."""
    await hold_five(town)
    line = {"sku": 2, "location": 2, "quantity": 2}
    await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, HELD, **line))
    operation = a_move(to, *lines, flags=flags)
    _, first = await operation(town.router)
    await meddling(town)
    after = [shard.machine.hold(HELD) for shard in town.shards]
    _, again = await operation(town.router)
    assert [status > 0 for status in first.status] == refused
    assert again.status == first.status
    assert [shard.machine.hold(HELD) for shard in town.shards] == after


@pytest.mark.parametrize("to", [4, SPLIT])
async def test_of_linked_lines_none_is_moved_when_one_is_of_more_than_is_held(to: int) -> None:
    operation = a_move_together(to, (1, 1, 2), (2, 1, 5))
    town, answer = await check_deaths(held_at_one_place, operation, at_least=1)
    assert list(answer.status) == [LINKED, Status.EXCEEDS_HOLD]
    assert await lines_of(town) == [(1, 1, 4), (2, 1, 4), (3, 3, 1)]


async def test_a_move_within_a_shard_that_is_repeated_leaves_alone_what_came_after_it(
    town: Town,
) -> None:
    """The shard that did it remembers it, also when the hold is on another shard by then."""
    await town.router.reserve(order(HELD, [(1, 1), (2, 1)], [3, 2]))
    for lines in ([], [(1, 3, 3)]):
        first = a_move(3, *lines, op_id=os.urandom(16)) if not lines else a_move(1, *lines)
        _, answer = await first(town.router)
        assert answer.status == b"\0"
        await a_move(4, op_id=os.urandom(16))(town.router)
        _, again = await first(town.router)
        assert again == answer
        assert await lines_of(town) == [(1, 4, 3), (2, 4, 2)]
        await a_move(3, op_id=os.urandom(16))(town.router)


async def test_a_hold_of_so_many_lines_does_not_move(town: Town) -> None:
    await one_shard_holds(town)
    await town.router.reserve(order(NEW, [(3, 1)]))
    for _ in range(limits.MAX_HOLD_LINES):
        lines = [
            {"kind": Kind.RELEASE, "flags": Flag.LINKED, **on(NEW)},
            {"kind": Kind.ADD_LINE, "flags": 0, **on(NEW)},
        ]
        columns = {name: np.array([line[name] for line in lines]) for name in lines[0]}
        handover = Request.of(os.urandom(16), 2, sku=3, location=1, quantity=1, **columns)
        await town.router.submit(handover)
    await a_move(2, hold=NEW)(town.router)
    assert await lines_of(town, NEW) == [(3, 2, 1)]
    _, answer = await a_move(1, hold=NEW, op_id=OTHER)(town.router)
    assert list(answer.status) == [Status.TOO_MANY_LINES]
    assert await lines_of(town, NEW) == [(3, 2, 1)]
    assert town.reserved == 6


@pytest.fixture
def few_lines(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many lines a hold can have."""
    monkeypatch.setattr(limits, "MAX_HOLD_LINES", 12)
    return 12


WIDE = ShardMap(1, 3)
WIDE_CELLS = [(sku, 2) for sku in range(1, 8)] + [(sku, 3) for sku in range(1, 6)]  # two shards


async def a_wide_town() -> Town:
    """Three shards instead of two, with ten of everything at the first locations."""
    town = Town()
    town.shards = [FakeShard(number, WIDE) for number in range(3)]
    town.router = Router(dict(enumerate(town.shards)), lambda: WIDE)
    for at in range(1, 7):
        columns = {"kind": Kind.RECEIVE, "sku": range(1, 9), "location": at, "quantity": 10}
        _, answer = await town.router.submit(Request.of(batch_id(), 8, **columns))
        assert not any(answer.status)
    return town


async def hold_two_of_each(town: Town) -> None:
    """One line of each cell, as many as there can be, and two more at location 3."""
    await town.router.reserve(order(HELD, WIDE_CELLS, 2))
    _, answer = await a_move(3, (6, 2, 1), (7, 2, 1), op_id=NEW)(town.router)
    assert not any(answer.status)
    assert len(await lines_of(town)) == 14


@pytest.mark.usefixtures("few_lines")
async def test_what_a_hold_of_many_lines_has_no_room_for_stays_and_is_not_lost() -> None:
    """Moved back, lines are added to those that it had: five have room, and two that stay are paid."""

    async def away(town: Town) -> None:
        skus = range(1, 8)
        await town.router.reserve(order(HELD, [(sku, 1) for sku in skus], 3))
        _, answer = await a_move(2, *((sku, 1, 0) for sku in skus), op_id=NEW)(town.router)
        assert not any(answer.status)

    back = a_move(1, *((sku, 2, 0) for sku in range(1, 8)))
    expected = [0] * 5 + [Status.TOO_MANY_LINES] * 2
    for lives in range(100):
        town, left = await Town().stocked(), [lives]
        await away(town)
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            await back(Router(links, lambda: MAP))
        for _ in range(2):
            _, answer = await back(town.router)
            assert list(answer.status) == expected
            assert Counter(at for _, at, _ in await lines_of(town)) == {1: 5, 2: 2}
        _, answer = await commit_held()(town.router)
        assert list(answer.status) == [Status.OK]
        assert (town.counted("committed"), town.reserved) == (21, 0)
        _, answer = await back(town.router)
        assert list(answer.status) == expected
        if left[0]:
            return
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("is_linked", [False, True])
async def test_lines_that_come_from_two_shards_are_counted_together(
    few_lines: int, *, is_linked: bool
) -> None:
    """All of a hold, which has nothing yet where it goes; or linked lines, where one line is already."""
    operation, told = a_move(1), {Status.TOO_MANY_LINES: 1}
    if is_linked:
        lines = [(*cell, 1 + (cell != (1, 2))) for cell in WIDE_CELLS]
        operation = a_move_together(1, *lines)
        told = {LINKED: few_lines - 1, Status.TOO_MANY_LINES: 1}
    for lives in range(30):
        town = await a_wide_town()
        if is_linked:
            await town.router.reserve(order(HELD, WIDE_CELLS, 2))
            await a_move(1, (1, 2, 1), op_id=NEW)(town.router)
        else:
            await hold_two_of_each(town)
        before, left = await lines_of(town), [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            await operation(Router(links, lambda: WIDE))
        for _ in range(2):
            _, answer = await operation(town.router)
            assert Counter(map(Status, answer.status)) == told
            assert len(answer.available) == 8 * len(answer.status)
            assert await lines_of(town) == before
            assert town.reserved == 24
        if left[0]:
            return
    raise AssertionError("it takes ever more calls")


@pytest.mark.usefixtures("few_lines")
async def test_what_splits_where_a_move_goes_is_counted_with_what_comes(town: Town) -> None:
    """Of lines that are paid in part, what is left becomes lines of their own when it moves."""
    cells = [(sku, 1) for sku in range(1, 7)] + [(sku, 2) for sku in range(1, 6)]
    await town.router.reserve(order(HELD, cells, 2))
    paid = {"sku": [1, 2], "location": 1, "quantity": 1}
    _, answer = await town.router.on_hold(call(NEW, Kind.COMMIT, HELD, 2, **paid))
    assert not any(answer.status)
    before = await lines_of(town)
    for _ in range(2):
        _, answer = await a_move(3)(town.router)
        assert list(answer.status) == [Status.TOO_MANY_LINES]
        assert await lines_of(town) == before


@pytest.mark.usefixtures("few_lines")
async def test_two_moves_that_meet_are_not_too_many_lines_together() -> None:
    """By two gateways, neither of which has seen the other's when it begins: nothing is lost."""
    ends = set()
    for calls, others, more in product(range(12), (1, 2, 4, 6, 9), (2, 5)):
        town = await a_wide_town()
        await hold_two_of_each(town)
        stage = Stage((calls, others, more, more), (FOREVER, FOREVER))
        moves = []
        for who, (leaves, op_id) in enumerate(((2, OP), (3, OTHER))):
            links = {number: Paced(shard, stage, who) for number, shard in enumerate(town.shards)}
            lines = [line for line in await lines_of(town) if line[1] == leaves]
            moves.append(a_move_together(1, *lines, op_id=op_id)(Router(links, lambda: WIDE)))
        told = await stage.run(*moves)
        ends.add(tuple(not any(answer.status) for answer in told))
        _, answer = await commit_held()(town.router)
        assert list(answer.status) == [Status.OK]
        assert (town.counted("committed"), town.reserved) == (24, 0)
    assert (True, True) not in ends
    assert len(ends) > 1


# --- two routers ----------------------------------------------------------------------------------


class Stage:
    """Lets the calls of two routers take place one by one, in an order that is given.

    `plan` says how many calls the first one makes, then the second, the first again and so on; after
    that the next one makes all of its calls, and the other one the rest. A router dies after so many
    calls as `lives` says. `made` counts the calls.
    """

    def __init__(self, plan: Sequence[int], lives: Sequence[int]) -> None:
        self.order = deque((number % 2, calls) for number, calls in enumerate([*plan, 10**6]))
        self.lives = list(lives)
        self.made = [0, 0]
        self.waiting: list[deque[asyncio.Future[None]]] = [deque(), deque()]
        self.is_over = [False, False]

    async def turn(self, who: int) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[who].append(done)
        await done
        if self.made[who] >= self.lives[who]:
            raise Died
        self.made[who] += 1

    async def run(self, first: Awaitable[Any], second: Awaitable[Any]) -> list[Any]:
        """What the two answered; None of one that died."""
        calls = [asyncio.ensure_future(self._of(who, it)) for who, it in enumerate((first, second))]
        while not all(self.is_over):
            await asyncio.sleep(0)
            if not all(self.waiting[who] or self.is_over[who] for who in (0, 1)):
                continue  # until each has ended or waits
            while self.order and (self.order[0][1] == 0 or self.is_over[self.order[0][0]]):
                self.order.popleft()
            who, calls_left = self.order[0] if self.order else (int(self.is_over[0]), 1)
            if self.order:
                self.order[0] = who, calls_left - 1
            if self.waiting[who]:
                self.waiting[who].popleft().set_result(None)
                await asyncio.sleep(0)
        return [await each for each in calls]

    async def _of(self, who: int, operation: Awaitable[Any]) -> Any:
        try:
            return (await operation)[1]
        except Died:
            return None
        finally:
            self.is_over[who] = True


class Paced:
    """A shard's link of one of two routers: each call waits for its turn on the stage."""

    def __init__(self, shard: FakeShard, stage: Stage, who: int) -> None:
        self._shard, self._stage, self._who = shard, stage, who

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **named: Any) -> Any:
            await self._stage.turn(self._who)
            return await getattr(self._shard, name)(*args, **named)

        return call


async def two_shards_hold(town: Town) -> None:
    """3 of SKU 1 and 2 of SKU 2, each on a shard."""
    await hold_five(town)


async def one_shard_holds_what_two_had(town: Town) -> None:
    """The part on the other shard has moved away."""
    await hold_five(town)
    _, answer = await a_move(1, (2, 2, 2), op_id=os.urandom(16))(town.router)
    assert not any(answer.status)


async def two_parts_at_one_place(town: Town) -> None:
    await town.router.reserve(order(HELD, [(1, SPLIT), (2, SPLIT)], [3, 2]))


async def one_shard_holds(town: Town) -> None:
    await town.router.reserve(order(HELD, [(1, 1), (2, 1)], [3, 2]))


def units_of(town: Town) -> Counter[str]:
    """What the hold has in each state, over all shards."""
    units: Counter[str] = Counter()
    for shard in town.shards:
        hold = shard.machine.hold(HELD)
        for line in hold.lines if hold else ():
            units["pending"] += line.pending
            units["committed"] += line.committed
    return +units


OTHER = bytes([9]) * 16


FOREVER = 10**6


async def play(
    setting: Callable[[Town], Awaitable[Any]],
    first: Operation,
    second: Operation,
    plan: Sequence[int],
    lives: Sequence[int] = (FOREVER, FOREVER),
) -> tuple[Town, Stage, list[Answer | None]]:
    """Two routers do something in the order of a plan."""
    town = await Town().stocked()
    await setting(town)
    stage = Stage(plan, lives)
    first_router, second_router = (
        Router(
            {number: Paced(shard, stage, who) for number, shard in enumerate(town.shards)},
            lambda: MAP,
        )
        for who in (0, 1)
    )
    answers = await stage.run(first(first_router), second(second_router))
    return town, stage, answers


def commit_held() -> Operation:
    return lambda router: router.on_hold(call(OTHER, Kind.COMMIT, HELD))


async def lengths(
    setting: Callable[[Town], Awaitable[Any]], first: Operation, second: Operation
) -> list[int]:
    """How many calls each of two operations makes when they do not meet, and a few for when they do."""
    _, stage, _ = await play(setting, first, second, ())
    return [made + 4 for made in stage.made]


MOVES = [[], [(1, 1, 2)]]
SETTINGS = [two_shards_hold, one_shard_holds]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("lines", MOVES)
async def test_a_commit_that_meets_a_move_is_of_all_units(
    setting: Callable[[Town], Awaitable[Any]], lines: list[tuple[int, int, int]]
) -> None:
    """The one comes between any two calls of the other, which goes on after it or after a part of it."""
    move, pay = a_move(2, *lines), commit_held()
    ends = set()
    of_move, of_pay = await lengths(setting, move, pay)
    plans = [(calls, b) for calls in range(of_move) for b in range(1, of_pay)]
    plans += [(0, calls, b) for calls in range(of_pay) for b in range(1, of_move)]
    for plan in plans:
        town, _, (moved, paid) = await play(setting, move, pay, plan)
        assert moved is not None
        assert paid is not None
        assert paid.status == b"\0"
        assert units_of(town) == {"committed": 5}
        assert (town.counted("committed"), town.reserved) == (5, 0)
        for operation, told in ((move, moved), (pay, paid)):
            _, again = await operation(town.router)
            assert again.status == told.status
        assert units_of(town) == {"committed": 5}
        ends.add(moved.status)
    assert len(ends) > 1


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("lines", MOVES)
async def test_what_is_paid_is_committed_once_whoever_dies_after_any_call(
    setting: Callable[[Town], Awaitable[Any]], lines: list[tuple[int, int, int]]
) -> None:
    """One router dies after any of its calls, the other one comes between any two of them."""
    move, pay = a_move(2, *lines), commit_held()
    of_move, of_pay = await lengths(setting, move, pay)
    deaths = [
        ((calls,), (lives, FOREVER)) for lives in range(of_move) for calls in range(lives + 1)
    ]
    deaths += [
        ((0, calls), (FOREVER, lives)) for lives in range(of_pay) for calls in range(lives + 1)
    ]
    for plan, lives in deaths:
        town, _, (moved, paid) = await play(setting, move, pay, plan, lives)
        if paid is not None:  # by its answer, whatever becomes of the move
            assert paid.status == b"\0"
            assert units_of(town) == {"committed": 5}
        for operation, told in ((move, moved), (pay, paid), (move, moved)):
            _, again = await operation(town.router)
            assert told is None or again.status == told.status
        assert units_of(town) == {"committed": 5}
        assert (town.counted("committed"), town.reserved) == (5, 0)


@pytest.mark.parametrize("is_swept", [False, True])
@pytest.mark.parametrize("setting", [two_shards_hold, one_shard_holds_what_two_had])
async def test_a_commit_that_is_repeated_late_is_of_all_units_or_of_none(
    setting: Callable[[Town], Awaitable[Any]], is_swept: bool
) -> None:
    """Its router dies after any call, what moves arrives, and runs out where it is not committed."""
    move, pay = a_move(2, (1, 1, 2)), commit_held()
    of_move, of_pay = await lengths(setting, move, pay)
    ends = set()
    for calls in range(of_move):
        for lives in range(of_pay):
            town, _, (_, paid) = await play(setting, move, pay, (calls,), (FOREVER, lives))
            for shard in town.shards:
                shard.now_ns += 2 * TTL * limits.NS_PER_MS
                if is_swept:
                    await shard.submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))
            told = [paid, *[(await pay(town.router))[1] for _ in range(2)]]
            (is_paid,) = {not any(answer.status) for answer in told if answer is not None}
            assert units_of(town) == ({"committed": 5} if is_paid else {})
            assert (town.counted("committed"), town.reserved) == (5 * is_paid, 0)
            ends.add(is_paid)
    assert ends == {False, True}


async def test_what_got_more_time_and_was_given_up_is_not_missed_by_a_late_commit() -> None:
    """It has not run out, though the deadline is over that it came with."""
    move, pay = a_move(2, (1, 1, 2)), commit_held()
    of_move, of_pay = await lengths(two_shards_hold, move, pay)
    ends = set()
    for calls in range(of_move):
        for lives in range(of_pay):
            town, _, (_, paid) = await play(two_shards_hold, move, pay, (calls,), (FOREVER, lives))
            extend = call(os.urandom(16), Kind.EXTEND, HELD, value=10 * TTL)
            await town.router.on_hold(extend)
            await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, HELD))
            for shard in town.shards:
                shard.now_ns += 2 * TTL * limits.NS_PER_MS
            told = [paid, *[(await pay(town.router))[1] for _ in range(2)]]
            (status,) = {answer.status[0] for answer in told if answer is not None}
            ends.add(status)
            assert town.reserved == 0
    assert ends == {Status.OK, Status.HOLD_RELEASED}


@pytest.mark.parametrize("setting", SETTINGS)
async def test_what_is_given_up_while_it_moves_is_given_up_wherever_it_is(
    setting: Callable[[Town], Awaitable[Any]],
) -> None:
    def give_up(router: Router) -> Awaitable[Any]:
        return router.on_hold(call(OTHER, Kind.RELEASE, HELD))

    move = a_move(2)
    of_move, of_other = await lengths(setting, move, give_up)
    for plan in [(calls, b) for calls in range(of_move) for b in range(1, of_other)]:
        town, _, (_, released) = await play(setting, move, give_up, plan)
        assert released is not None
        assert released.status == b"\0"
        assert (units_of(town), town.reserved) == ({}, 0)
        _, again = await give_up(town.router)
        assert again.status == b"\0"


@pytest.mark.parametrize("setting", SETTINGS)
async def test_what_is_extended_while_it_moves_lives_longer_wherever_it_is(
    setting: Callable[[Town], Awaitable[Any]],
) -> None:
    def extend(router: Router) -> Awaitable[Any]:
        return router.on_hold(call(OTHER, Kind.EXTEND, HELD, value=20 * TTL))

    move = a_move(2)
    of_move, of_other = await lengths(setting, move, extend)
    for plan in [(calls, b) for calls in range(of_move) for b in range(1, of_other)]:
        town, _, (moved, extended) = await play(setting, move, extend, plan)
        assert moved is not None
        assert extended is not None
        assert (moved.status, extended.status) == (b"\0", b"\0")
        hold = await town.router.hold(HELD)
        assert hold is not None
        assert hold.deadline_ns >= extended.now_ns + 20 * TTL * limits.NS_PER_MS
        assert units_of(town) == {"pending": 5}


@pytest.mark.parametrize("setting", SETTINGS)
async def test_two_moves_that_meet_leave_the_hold_in_one_piece(
    setting: Callable[[Town], Awaitable[Any]],
) -> None:
    here, there = a_move(2), a_move(4, op_id=OTHER)
    of_here, of_there = await lengths(setting, here, there)
    for plan in [(calls, b) for calls in range(of_here) for b in range(1, of_there)]:
        town, _, told = await play(setting, here, there, plan)
        assert units_of(town) == {"pending": 5}
        for operation, answer in zip((here, there), told, strict=True):
            _, again = await operation(town.router)
            assert answer is not None
            assert again.status == answer.status
        assert units_of(town) == {"pending": 5}
        assert town.reserved == 5


# What a rival does of which a linked move must be refused, or come before.
PAYS_FOR_ONE = {"kind": Kind.COMMIT, "sku": 1, "location": 1, "quantity": 3}
GIVES_ONE_UP = {"kind": Kind.RELEASE, "sku": 2, "location": 1, "quantity": 1}
PAYS_FOR_ALL = {"kind": Kind.COMMIT}


def rival(columns: dict[str, Any]) -> Operation:
    """A call on the hold, as the shard of location 1 gets it."""
    return lambda router: router.on_hold(
        call(OTHER, hold_id=HELD, **columns), columns.get("location", 0)
    )


def plays_of(of_first: int, of_second: int) -> list[tuple[tuple[int, ...], tuple[int, int]]]:
    """Plans by which the second comes between any two calls of the first, and either dies after any."""
    plays: list[tuple[tuple[int, ...], tuple[int, int]]] = [
        ((calls, b), (FOREVER, FOREVER)) for calls in range(of_first) for b in range(1, of_second)
    ]
    plays += [((lives,), (lives, FOREVER)) for lives in range(of_first)]
    return plays + [((0, lives), (FOREVER, lives)) for lives in range(of_second)]


@pytest.mark.parametrize("columns", [PAYS_FOR_ONE, GIVES_ONE_UP, PAYS_FOR_ALL])
async def test_linked_lines_are_moved_together_whatever_comes_between_and_whoever_dies(
    columns: dict[str, Any],
) -> None:
    """The other call comes between any two calls of the move, and each router dies after any."""
    move, other = a_move_together(2, (1, 1, 3), (2, 1, 2)), rival(columns)
    of_move, of_other = await lengths(one_shard_holds, move, other)
    ends = set()
    for plan, lives in plays_of(of_move, of_other):
        town, _, (moved, called) = await play(one_shard_holds, move, other, plan, lives)
        for operation, told in ((move, moved), (other, called), (move, moved)):
            _, again = await operation(town.router)
            assert told is None or again.status == told.status
        _, moved = await move(town.router)
        _, called = await other(town.router)
        held = await town.router.hold(HELD)
        assert held is not None
        there = {
            (line.sku, line.pending + line.committed)
            for line in held.lines
            if line.location == 2 and line.pending + line.committed
        }
        assert any(moved.status) == all(moved.status)
        is_moved = not any(moved.status)
        assert is_moved or not there
        if is_moved and columns is not GIVES_ONE_UP:
            assert there == {(1, 3), (2, 2)}
        units = units_of(town)
        is_called = not any(called.status)
        gone = is_called * columns.get("quantity", 5)
        assert units["pending"] == 5 - gone == town.reserved
        assert units["committed"] == (gone if columns["kind"] == Kind.COMMIT else 0)
        ends.add((is_moved, is_called))
    assert len(ends) > 1


@pytest.mark.parametrize(
    ("setting", "leaves"), [(one_shard_holds, 1), (two_parts_at_one_place, SPLIT)]
)
async def test_two_linked_moves_that_meet_leave_what_is_linked_together(
    setting: Callable[[Town], Awaitable[Any]], leaves: int
) -> None:
    """By one way each, or by two of which one begins and ends on a shard."""
    lines = [(1, leaves, 3), (2, leaves, 2)]
    here, there = a_move_together(2, *lines), a_move_together(4, *lines, op_id=OTHER)
    of_here, of_there = await lengths(setting, here, there)
    for plan, lives in plays_of(of_here, of_there):
        town, _, told = await play(setting, here, there, plan, lives)
        for operation, answer in zip((here, there), told, strict=True):
            _, again = await operation(town.router)
            assert answer is None or again.status == answer.status
        assert units_of(town) == {"pending": 5}
        assert town.reserved == 5
        assert {at for _, at, _ in await lines_of(town)} in ({2}, {4})


@pytest.mark.parametrize("lives", range(12))
@pytest.mark.parametrize("again", [False, True])
async def test_a_hold_that_runs_out_on_its_way_is_over(
    town: Town, lives: int, *, again: bool
) -> None:
    """The router dies after any call, nobody comes back in time, and then it is to be paid."""
    await one_shard_holds(town)
    left = [lives]
    links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
    with suppress(Died):
        await a_move(2)(Router(links, lambda: MAP))
    for shard in town.shards:
        shard.now_ns += limits.MAX_TTL_MS * limits.NS_PER_MS
    if again:
        _, answer = await a_move(2)(town.router)
        assert list(answer.status) == [Status.HOLD_EXPIRED if lives < 6 else Status.OK]
    for _ in range(2):
        _, answer = await commit_held()(town.router)
        assert list(answer.status) == [Status.HOLD_EXPIRED]
    for shard in town.shards:  # a block that sweeps
        await shard.submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))
    assert (units_of(town), town.reserved) == ({}, 0)


async def test_what_is_extended_where_it_leaves_lives_longer_also_when_the_router_dies() -> None:
    """By the shard's own port, so nobody goes after what is on its way."""
    ttl_ms = 20 * TTL

    async def extend_there(router: Router) -> Any:
        request = call(OTHER, Kind.EXTEND, HELD, value=ttl_ms)
        return 0, await router._shards.submit(0, request)

    of_move, _ = await lengths(one_shard_holds, a_move(2), extend_there)
    ends = set()
    for lives in range(of_move):
        for calls in range(lives + 1):
            town, _, (_, told) = await play(
                one_shard_holds, a_move(2), extend_there, (calls, 1), (lives, FOREVER)
            )
            hold = town.shards[1].machine.hold(HELD)
            assert told is not None
            ends.add((hold is None, any(told.status)))
            if hold is not None and not any(told.status):
                assert hold.deadline_ns >= told.now_ns + ttl_ms * limits.NS_PER_MS
    assert len(ends) == 4


@pytest.mark.parametrize("shard", [0, 1])
async def test_a_commit_on_one_shard_alone_loses_nothing_that_moves(shard: int) -> None:
    """By the shard's own port, so it is about the part there; the rest can be committed after."""

    async def commit_there(router: Router) -> Any:
        return 0, await router._shards.submit(shard, call(OTHER, Kind.COMMIT, HELD))

    for setting in SETTINGS:
        of_move, _ = await lengths(setting, a_move(2), commit_there)
        for calls in range(of_move):
            town, _, (moved, _) = await play(setting, a_move(2), commit_there, (calls, 1))
            assert units_of(town).total() == 5
            _, again = await a_move(2)(town.router)
            assert moved is not None
            assert again.status == moved.status
            await town.router.on_hold(call(NEW, Kind.COMMIT, HELD))
            assert units_of(town) == {"committed": 5}
            assert town.reserved == 0
