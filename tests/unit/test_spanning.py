"""Operations over two shards: what they do, and that they end the same whenever the router dies."""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from actors.parts import hold_id_of
from actors.ports import CellTable, Overloaded, ShardLink, Sight, Unavailable
from actors.router import Router
from engine import limits
from engine.history import History
from engine.operations import Answer, Flag, Kind, Request
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import Cell, DatedIncoming, Hold, HoldState, Incoming
from tests.fakes.shard import USD, FakeShard
from tests.unit.test_router import MAP, SPLIT, TTL, Town, batch_id, call, on, order, town

__all__ = ["town"]

LINKED = Status.LINKED_LINE_REFUSED
LATE_NS = limits.MAX_TTL_MS * limits.NS_PER_MS  # when everything has run out

Told = tuple[int, Answer]
Operation = Callable[[Router], Awaitable[Told]]


class Died(Exception):  # noqa: N818
    """The router's process is gone."""


class Mortal:
    """A shard's link in a process that dies when it has made so many calls that change something."""

    def __init__(self, shard: ShardLink, lives: list[int]) -> None:
        self._shard = shard
        self._lives = lives  # one number, of all links of the process

    async def submit(self, request: Request) -> Answer:
        if not self._lives[0]:
            raise Died
        self._lives[0] -= 1
        return await self._shard.submit(request)

    async def hold(self, hold_id: bytes, *, sure: bool = False) -> Hold | None:
        return await self._shard.hold(hold_id, sure=sure)

    async def sight(self, hold_id: bytes, op_ids: Sequence[bytes] = ()) -> Sight:
        return await self._shard.sight(hold_id, op_ids)

    async def incoming(self, incoming_id: bytes, *, sure: bool = False) -> Incoming | None:
        return await self._shard.incoming(incoming_id, sure=sure)

    async def incoming_of(self, names: Any) -> list[DatedIncoming]:
        return await self._shard.incoming_of(names)

    async def history(self, hold_id: bytes) -> History:
        return await self._shard.history(hold_id)

    async def cells(self, names: Any) -> list[Cell | None]:
        return await self._shard.cells(names)

    async def table(self, locations: Any = None) -> CellTable:
        return await self._shard.table(locations)


def state_of(town: Town) -> Any:
    """Every cell and every hold, but for deadlines."""
    return [
        (
            shard.machine.cells,
            {each: (hold.state, hold.lines) for each, hold in shard.machine.holds.items()},
            shard.machine.incoming_records,
        )
        for shard in town.shards
    ]


Setting = Callable[[Town], Awaitable[Any]]


async def check_deaths(
    setting: Setting, operation: Operation, at_least: int = 2, shard_map: ShardMap = MAP
) -> tuple[Town, Answer]:
    """Kill the router after each of its calls and repeat the operation: it ends as if unharmed.

    It takes so many calls at least, or there is nothing to show. Returns the town and the answer as
    they are when nobody dies.
    """
    unharmed = await Town(shard_map).stocked()
    await setting(unharmed)
    _, told = await operation(unharmed.router)
    assert (await operation(unharmed.router))[1].status == told.status
    for lives in range(20):
        town = await Town(shard_map).stocked()
        await setting(town)
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        try:
            await operation(Router(links, lambda: shard_map))
        except Died:
            _, answer = await operation(town.router)
            assert answer.status == told.status
            assert state_of(town) == state_of(unharmed)
        else:
            assert lives >= at_least
            return unharmed, told
    raise AssertionError("it takes ever more calls")


async def check_late(setting: Setting, operation: Operation) -> None:
    """Kill the router after each of its calls, and repeat when all holds have run out."""
    for lives in range(20):
        town = await Town().stocked()
        await setting(town)
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        try:
            await operation(Router(links, lambda: MAP))
        except Died:
            for shard in town.shards:
                shard.now_ns += LATE_NS
            _, answer = await operation(town.router)
            for shard in town.shards:  # a block that sweeps what has run out since
                shard.now_ns += LATE_NS
                nothing = Request.of(os.urandom(16), 1, kind=Kind.SALE)
                await shard.submit(nothing)
            assert town.reserved == 0
            is_done = not any(answer.status)
            assert town.counted("committed") == (5 if is_done else 0)
        else:
            return
    raise AssertionError("it takes ever more calls")


HELD, NEW, OP = (bytes([byte]) * 16 for byte in (1, 2, 3))


async def hold_five(town: Town) -> None:
    """A hold of 3 of SKU 1 at location 1 (shard 0) and 2 of SKU 2 at location 2 (shard 1)."""
    _, answer = await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [3, 2]))
    assert not any(answer.status)


async def nothing(town: Town) -> None:
    """Nothing is held."""


# --- commit ---------------------------------------------------------------------------------------


def commit_all(flags: int = 0) -> Operation:
    return lambda router: router.on_hold(call(OP, Kind.COMMIT, HELD, flags=flags))


async def test_a_commit_is_on_all_shards() -> None:
    town, answer = await check_deaths(hold_five, commit_all())
    assert answer.status == b"\0"
    assert (town.counted("committed"), town.reserved) == (5, 0)
    await check_late(hold_five, commit_all(Flag.RE_RESERVE))


async def test_a_commit_that_one_shard_refuses_is_on_none() -> None:
    async def one_part_expired(town: Town) -> None:
        await hold_five(town)
        town.shards[1].now_ns += 2 * TTL * limits.NS_PER_MS

    town, answer = await check_deaths(one_part_expired, commit_all())
    assert list(answer.status) == [Status.HOLD_EXPIRED]
    assert (town.counted("committed"), town.reserved) == (0, 3)
    town, answer = await check_deaths(one_part_expired, commit_all(Flag.RE_RESERVE))
    assert (answer.status, town.counted("committed")) == (b"\0", 5)


async def test_what_was_committed_is_cancelled_when_the_rest_cannot_be_reserved_again() -> None:
    async def one_part_sold(town: Town) -> None:
        await hold_five(town)
        town.shards[1].now_ns += 2 * TTL * limits.NS_PER_MS
        await town.router.reserve(order(NEW, [(2, 2)], 10))

    town, answer = await check_deaths(one_part_sold, commit_all(Flag.RE_RESERVE))
    assert list(answer.status) == [Status.INSUFFICIENT_STOCK]
    assert (town.counted("committed"), town.reserved) == (0, 10)


async def test_what_was_committed_before_is_not_cancelled() -> None:
    """Wherever the router died that committed the rest, and whoever finds that it cannot be."""

    async def one_part_sold(town: Town) -> None:
        await hold_five(town)
        part = call(NEW, Kind.COMMIT, HELD, sku=1, location=1, quantity=1)
        await town.router.on_hold(part)
        town.shards[1].now_ns += 2 * TTL * limits.NS_PER_MS
        await town.router.reserve(order(bytes([8]) * 16, [(2, 2)], 10))

    town, answer = await check_deaths(one_part_sold, commit_all(Flag.RE_RESERVE))
    assert list(answer.status) == [Status.INSUFFICIENT_STOCK]
    assert (town.counted("committed"), town.reserved) == (1, 10)


@pytest.mark.parametrize("lives", range(8))
async def test_what_is_committed_while_a_commit_waits_to_be_repeated_is_not_cancelled(
    town: Town, lives: int
) -> None:
    """A unit is committed by itself before the router dies, and another one after that."""
    await hold_five(town)
    part = {"sku": 1, "location": 1, "quantity": 1}
    await town.router.on_hold(call(NEW, Kind.COMMIT, HELD, **part))
    left = [lives]
    links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
    with suppress(Died):
        town.shards[1].now_ns += 2 * TTL * limits.NS_PER_MS
        await town.router.reserve(order(bytes([8]) * 16, [(2, 2)], 10))
        await commit_all(Flag.RE_RESERVE)(Router(links, lambda: MAP))
    _, more = await town.router.on_hold(call(bytes([9]) * 16, Kind.COMMIT, HELD, **part))
    _, answer = await commit_all(Flag.RE_RESERVE)(town.router)
    assert list(answer.status) == [Status.INSUFFICIENT_STOCK]
    assert town.counted("committed") == (1 if any(more.status) else 2)


async def test_a_release_under_the_hands_of_a_commit_leaves_nothing_committed(town: Town) -> None:
    """What was committed of the hold before that call stays so."""
    await hold_five(town)
    part = call(NEW, Kind.COMMIT, HELD, sku=1, location=1, quantity=1)
    await town.router.on_hold(part)
    second = town.shards[1]
    submit = second.submit

    async def meddle(request: Request) -> Answer:
        if Kind.COMMIT in request.columns.get("kind", ()):
            await submit(call(os.urandom(16), Kind.RELEASE, HELD))
        return await submit(request)

    second.submit = meddle  # type: ignore[method-assign]
    _, answer = await town.router.on_hold(call(OP, Kind.COMMIT, HELD))
    assert list(answer.status) == [Status.HOLD_RELEASED]
    assert (town.counted("committed"), town.reserved) == (1, 0)


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("by_line", [True, False])
@pytest.mark.parametrize("last", [1, 3])
async def test_a_commit_that_is_repeated_is_of_what_was_left_of_a_hold(
    shards: int, by_line: bool, last: int
) -> None:
    """A line had been given up before. It was taken for a part that was lost under the commit's hands."""

    async def one_line_given_up(town: Town) -> None:
        await town.router.reserve(order(HELD, [(1, 1), (2, 2), (3, last)], [3, 2, 1]))
        named = {"sku": 2, "location": 2, "quantity": 2} if by_line else {}
        release = call(NEW, Kind.RELEASE, HELD, **named)
        _, answer = await town.router.on_hold(release, 0 if by_line else 2)
        assert not any(answer.status)

    town, answer = await check_deaths(
        one_line_given_up, commit_all(), shard_map=ShardMap(1, shards)
    )
    assert not any(answer.status)
    assert (town.counted("committed"), town.reserved) == (4, 0)


async def test_what_is_committed_already_does_not_stand_in_the_way(town: Town) -> None:
    await hold_five(town)
    part = call(NEW, Kind.COMMIT, HELD, sku=1, location=1, quantity=3)
    await town.router.on_hold(part)
    for _ in range(2):
        _, answer = await town.router.on_hold(call(OP, Kind.COMMIT, HELD))
        assert answer.status == b"\0"
    assert town.counted("committed") == 5
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, HELD))
    assert list(answer.status) == [Status.HOLD_NOT_PENDING]


@pytest.mark.parametrize("flags", [0, Flag.RE_RESERVE])
@pytest.mark.parametrize("handed_over", [0, 1])
async def test_a_commit_misses_what_ran_out_of_a_part_that_was_committed_by_line(
    flags: int, handed_over: int
) -> None:
    """It was told OK: the part said no more than that nothing of it was pending."""

    async def one_part_short(town: Town) -> None:
        await hold_five(town)
        part = {"sku": 1, "location": 1, "quantity": 1}
        await town.router.on_hold(call(NEW, Kind.COMMIT, HELD, **part))
        if handed_over:
            await town.router.on_hold(call(bytes([9]) * 16, Kind.FULFIL, HELD, **part))
        town.shards[0].now_ns += 2 * TTL * limits.NS_PER_MS

    town, answer = await check_deaths(one_part_short, commit_all(flags))
    assert list(answer.status) == [Status.HOLD_EXPIRED]
    assert (town.counted("committed"), town.reserved) == (1 - handed_over, 2)


@pytest.mark.parametrize(
    ("committed", "status"),
    [
        ([(1, 1, 3)], Status.HOLD_EXPIRED),
        ([(2, 2, 2)], Status.HOLD_EXPIRED),
        ([(1, 1, 2)], Status.HOLD_EXPIRED),
        ([(1, 1, 3), (2, 2, 1)], Status.HOLD_EXPIRED),
        ([(1, 1, 2), (2, 2, 2)], Status.HOLD_EXPIRED),
        ([(1, 1, 3), (2, 2, 2)], Status.HOLD_NOT_PENDING),
    ],
)
async def test_a_commit_of_what_is_committed_in_part_says_whether_the_rest_ran_out(
    town: Town, committed: list[tuple[int, int, int]], status: Status
) -> None:
    """Who is told that nothing is pending takes all of it for committed."""
    await hold_five(town)
    for sku, location, quantity in committed:
        part = {"sku": sku, "location": location, "quantity": quantity}
        _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, HELD, **part))
        assert not any(answer.status)
    for shard in town.shards:
        shard.now_ns += 2 * TTL * limits.NS_PER_MS
    units = sum(quantity for *_, quantity in committed)
    for op_id in (OP, OP, NEW):
        _, answer = await town.router.on_hold(call(op_id, Kind.COMMIT, HELD))
        assert list(answer.status) == [status]
        assert town.counted("committed") == units


@pytest.mark.parametrize(
    "kind", [Kind.COMMIT, Kind.EXTEND, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL, Kind.UNFULFIL]
)
async def test_a_call_that_was_refused_stays_refused_when_the_hold_is_another_since(
    kind: Kind,
) -> None:
    """It came before the order, say."""
    before = {
        Kind.FULFIL: [Kind.COMMIT],
        Kind.CANCEL: [Kind.COMMIT],
        Kind.UNFULFIL: [Kind.COMMIT, Kind.FULFIL],
    }.get(kind, [])
    town = await Town().stocked()
    request = call(OP, kind, HELD, value=TTL if kind == Kind.EXTEND else 0)
    _, answer = await town.router.on_hold(request)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    await town.router.reserve(order(HELD, [(2, 2)], 2))
    for step in before:
        assert not any((await town.router.on_hold(call(os.urandom(16), step, HELD)))[1].status)
    there = state_of(town)
    for _ in range(2):
        _, again = await town.router.on_hold(request)
        assert again.status == answer.status
        assert state_of(town) == there
    anew = call(NEW, kind, HELD, value=TTL if kind == Kind.EXTEND else 0)
    assert not any((await town.router.on_hold(anew))[1].status)


_LIFE_BEFORE = {
    Kind.COMMIT: [],
    Kind.EXTEND: [],
    Kind.RELEASE: [],
    Kind.FULFIL: [Kind.COMMIT],
    Kind.CANCEL: [Kind.COMMIT],
    Kind.UNFULFIL: [Kind.COMMIT, Kind.FULFIL],
}


@pytest.mark.parametrize("kind", _LIFE_BEFORE)
@pytest.mark.parametrize("cells", [[(1, 1), (2, 2)], [(1, 1)], [(2, 2)]])
async def test_a_call_that_came_before_the_order_is_done_on_all_of_it_or_nowhere(
    kind: Kind, cells: list[tuple[int, int]]
) -> None:
    """Its router died, so nobody was told. One shard remembered it, and refused its part for ever."""
    request = call(OP, kind, HELD, value=TTL if kind == Kind.EXTEND else 0)
    ends = set()
    for lives in range(5):
        town = await Town().stocked()
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            _, answer = await Router(links, lambda: MAP).on_hold(request)
            assert list(answer.status) == [Status.UNKNOWN_HOLD]
            assert ends == {Status.OK}
            return
        await town.router.reserve(order(HELD, cells, 3))
        for step in _LIFE_BEFORE[kind]:
            assert not any((await town.router.on_hold(call(os.urandom(16), step, HELD)))[1].status)
        _, answer = await town.router.on_hold(request)
        ends.add(Status(answer.status[0]))
        there = state_of(town)
        assert (await town.router.on_hold(request))[1].status == answer.status
        assert state_of(town) == there
        names = ("reserved", "committed", "on_hand")
        units, stock = 3 * len(cells), 10 * 64
        after = {
            Kind.COMMIT: (0, units, stock),
            Kind.EXTEND: (units, 0, stock),
            Kind.FULFIL: (0, 0, stock - units),
            Kind.UNFULFIL: (0, units, stock),
        }.get(kind, (0, 0, stock))
        assert tuple(map(town.counted, names)) == after
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.RELEASE, Kind.FULFIL, Kind.CANCEL])
@pytest.mark.parametrize("number", [0, 1])
async def test_a_call_that_one_gateway_has_done_stays_done_though_another_found_no_hold(
    town: Town, kind: Kind, number: int
) -> None:
    """Its caller had asked both, and the order came between the two."""
    request = call(OP, kind, HELD)

    async def ordered_and_done() -> None:
        await hold_five(town)
        for step in _LIFE_BEFORE[kind]:
            await town.router.on_hold(call(os.urandom(16), step, HELD))
        _, done = await town.router.on_hold(request)
        assert not any(done.status)

    left = [number]
    links = {n: Meddled(shard, left, ordered_and_done) for n, shard in enumerate(town.shards)}
    await Router(links, lambda: MAP).on_hold(request)
    there = state_of(town)
    for _ in range(2):
        _, answer = await town.router.on_hold(request)
        assert not any(answer.status)
        assert state_of(town) == there


@pytest.mark.parametrize("kind", [Kind.FULFIL, Kind.CANCEL, Kind.UNFULFIL])
@pytest.mark.parametrize("where", [[1, 1], [1, 2]])
async def test_a_call_that_is_repeated_is_about_no_part_that_has_come_since(
    kind: Kind, where: list[int]
) -> None:
    """What was pending moves to another shard, and is committed there, maybe handed over."""
    town = await Town().stocked()
    cells = [(sku, location) for sku, location in enumerate(where, 1)]
    await town.router.reserve(order(HELD, [*cells, (3, 1)], [2, 1, 3]))
    before = [Kind.COMMIT, Kind.FULFIL][: 1 + (kind == Kind.UNFULFIL)]
    for step in before:
        for sku, location in cells:
            part = {"sku": sku, "location": location, "quantity": 3 - sku}
            _, answer = await town.router.on_hold(call(os.urandom(16), step, HELD, **part))
            assert not any(answer.status)
    request = call(OP, kind, HELD)
    assert not any((await town.router.on_hold(request))[1].status)
    move = call(os.urandom(16), Kind.MOVE, HELD, sku=3, location=4, quantity=3, value=1)
    assert not any((await town.router.move(move))[1].status)
    for step in before:
        part = {"sku": 3, "location": 4, "quantity": 3}
        _, answer = await town.router.on_hold(call(os.urandom(16), step, HELD, **part))
        assert not any(answer.status)
    there = state_of(town)
    for _ in range(2):
        assert not any((await town.router.on_hold(request))[1].status)
        assert state_of(town) == there


@pytest.mark.parametrize("kind", [Kind.FULFIL, Kind.UNFULFIL])
@pytest.mark.parametrize("in_parts", [False, True])
async def test_a_handover_is_from_before_the_counts_of_one_shard_and_after_those_of_another(
    kind: Kind, in_parts: bool
) -> None:
    """Three are held on the first shard, which counted too early to see them, two on the other."""
    is_back, at = kind == Kind.UNFULFIL, 2 * 10**18

    async def paid(town: Town) -> None:
        await hold_five(town)
        for step in [Kind.COMMIT, *[Kind.FULFIL] * is_back]:
            _, answer = await town.router.on_hold(call(os.urandom(16), step, HELD))
            assert not any(answer.status)
        for shard in town.shards:
            shard.now_ns = at + 10
        counts = {"sku": [1, 2], "location": [1, 2], "quantity": [7, 8]}
        moments = {"occurred_at_ns": [at - 1, at + 1]}
        request = Request.of(batch_id(), 2, kind=Kind.COUNT, **counts, **moments)
        _, answer = await town.router.submit(request)
        assert not any(answer.status)

    parts = {"sku": [1, 2], "location": [1, 2], "quantity": [3, 2], "flags": [Flag.LINKED, 0]}
    request = call(OP, kind, HELD, 1 + in_parts, **parts if in_parts else {}, occurred_at_ns=at)
    town, answer = await check_deaths(paid, lambda router: router.on_hold(request))
    assert not any(answer.status)
    cells = await town.router.cells([(1, 1), (2, 2)])
    assert [cell and cell.on_hand for cell in cells] == [10 if is_back else 4, 8]
    assert [cell and cell.committed for cell in cells] == ([3, 2] if is_back else [0, 0])


@pytest.mark.parametrize("kind", [Kind.FULFIL, Kind.CANCEL])
async def test_a_call_on_all_that_is_committed_is_done_on_all_shards_whoever_dies(
    kind: Kind,
) -> None:
    async def paid(town: Town) -> None:
        await hold_five(town)
        await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, HELD))

    request = call(OP, kind, HELD)
    town, answer = await check_deaths(paid, lambda router: router.on_hold(request))
    assert answer.status == b"\0"
    assert (town.counted("committed"), town.reserved) == (0, 0)


async def test_a_refusal_is_told_again_with_what_was_available(town: Town) -> None:
    """Less than nothing, where more was sold at a till than there was."""
    for sold in (3, 12):
        request = call(os.urandom(16), Kind.COMMIT, os.urandom(16))
        hold_id = bytes(hold_id_of(request))
        await town.router.reserve(order(hold_id, [(1, 1)]))
        sale = Request.of(os.urandom(16), 1, kind=Kind.SALE, sku=1, location=1, quantity=sold)
        await town.router.submit(sale)
        await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, hold_id))
        _, answer = await town.router.on_hold(request)
        assert list(answer.status) == [Status.HOLD_RELEASED]
        _, again = await town.router.on_hold(request)
        assert (again.status, again.available) == (answer.status, answer.available)


async def test_all_of_a_hold_at_a_split_location_is_committed_or_nothing(town: Town) -> None:
    """Said where it is, the shards of that location were asked one by one."""
    await town.router.reserve(order(HELD, [(1, SPLIT), (2, SPLIT)], [3, 2]))
    town.shards[0].now_ns += 2 * TTL * limits.NS_PER_MS
    for _ in range(2):
        _, answer = await town.router.on_hold(call(OP, Kind.COMMIT, HELD), SPLIT)
        assert list(answer.status) == [Status.HOLD_EXPIRED]
        assert town.counted("committed") == 0
    _, answer = await town.router.on_hold(call(NEW, Kind.COMMIT, NEW), SPLIT)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]


async def test_a_call_at_a_split_location_that_is_repeated_says_the_same(town: Town) -> None:
    """Whichever of its shards have a part by then."""
    release = call(OP, Kind.RELEASE, HELD)
    _, unknown = await town.router.on_hold(release, SPLIT)
    assert list(unknown.status) == [Status.UNKNOWN_HOLD]
    await town.router.reserve(order(HELD, [(1, SPLIT), (1, 1)]))
    extend = call(NEW, Kind.EXTEND, HELD, value=2 * TTL)
    first = await town.router.on_hold(extend, SPLIT)
    assert not any(first[1].status)
    move = call(os.urandom(16), Kind.MOVE, HELD, sku=1, location=2, quantity=1, value=1)
    assert not any((await town.router.move(move))[1].status)
    there = await town.router.hold(HELD)
    for shard in town.shards:
        shard.now_ns += TTL * limits.NS_PER_MS
    assert await town.router.on_hold(extend, SPLIT) == first
    assert (await town.router.on_hold(release, SPLIT))[1].status == unknown.status
    assert await town.router.hold(HELD) == there


@pytest.mark.parametrize("before", [0, 1])
async def test_what_is_overloaded_half_way_is_in_doubt(town: Town, before: int) -> None:
    """Overloaded would say that nothing was judged."""
    request = an_order([(1, 1), (2, 2)], [3, 2], Flag.COMMIT_NOW)
    for shard in town.shards:
        shard.faults.extend([None] * before + [Overloaded("full")])
    with pytest.raises(Unavailable if before else Overloaded):
        await request(town.router)
    assert town.reserved == 5 * before
    _, answer = await request(town.router)
    assert not any(answer.status)
    assert town.counted("committed") == 5


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.RELEASE])
async def test_lines_that_name_no_cell_are_repeated_where_they_were(town: Town, kind: Kind) -> None:
    """The hold has gone to where the other line is: that shard has answered for one line, not two."""
    await town.router.reserve(order(HELD, [(1, 2)], [5]))
    columns = {"sku": [0, 2], "location": [0, 1], "quantity": [2, 1]}
    request = call(OP, kind, HELD, 2, **columns)
    _, answer = await town.router.on_hold(request)
    assert list(answer.status) == [Status.OK, Status.UNKNOWN_HOLD]
    move = call(NEW, Kind.MOVE, HELD, sku=1, location=1, quantity=3, value=2)
    assert not any((await town.router.move(move))[1].status)
    there = state_of(town)
    for _ in range(2):
        assert (await town.router.on_hold(request))[1].status == answer.status
        assert state_of(town) == there


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.EXTEND, Kind.RELEASE, Kind.MOVE])
@pytest.mark.parametrize("cells", [[(1, 1), (2, 3)], [(1, 1), (2, 2)]])
async def test_what_was_given_up_by_lines_says_nothing_of_the_rest(
    kind: Kind, cells: list[tuple[int, int]]
) -> None:
    """Also when that is all that the hold has on a shard."""
    town = await Town().stocked()
    await town.router.reserve(order(HELD, cells, [3, 2]))
    part = {"sku": 1, "location": 1, "quantity": 3}
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, HELD, **part))
    assert not any(answer.status)
    columns = {Kind.EXTEND: {"value": TTL}, Kind.MOVE: {"location": 4}}.get(kind, {})
    request = call(OP, kind, HELD, **columns)
    operation = town.router.move if kind == Kind.MOVE else town.router.on_hold
    assert not any((await operation(request))[1].status)
    assert town.counted("committed") == (2 if kind == Kind.COMMIT else 0)


@pytest.mark.parametrize("second", [(2, 2), (1, 2)])
async def test_what_is_being_given_up_part_by_part_cannot_be_committed(
    second: tuple[int, int],
) -> None:
    """Whoever gives all of it up is told that it is, when he repeats it. Both may be of one SKU."""
    for lives in range(6):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), second], [3, 2]))
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        release = call(OP, Kind.RELEASE, HELD)
        with suppress(Died):
            await Router(links, lambda: MAP).on_hold(release)
        _, paid = await town.router.on_hold(call(NEW, Kind.COMMIT, HELD))
        _, given_up = await town.router.on_hold(release)
        assert any(paid.status) != any(given_up.status)
        assert town.counted("committed") == (0 if any(paid.status) else 5)


async def test_a_release_that_was_done_gives_up_nothing_that_came_since(town: Town) -> None:
    await hold_five(town)
    request = call(OP, Kind.RELEASE, HELD)
    first = await town.router.on_hold(request)
    assert not any(first[1].status)
    column = {"sku": 1, "location": 1, "quantity": 2, "value": TTL}
    added = call(NEW, Kind.ADD_LINE, HELD, **column)
    assert not any((await town.router.submit(added))[1].status)
    assert await town.router.on_hold(request) == first
    assert town.reserved == 2


def channel_rules(
    town: Town, buffers: tuple[int, ...], locations: Sequence[int] = range(1, 9)
) -> None:
    """What is kept of each cell of some locations from the channels 0, 1, ..."""
    for shard in town.shards:
        for location in locations:
            owned, split, part = MAP.place(location, shard.number)
            shard.machine.set_location(
                location, owned=owned, currency=USD, split=split, part=part, buffers=buffers
            )


async def test_a_late_payment_takes_no_stock_that_is_kept_from_its_channel() -> None:
    """Of the part that ran out: three of ten."""

    async def one_part_expired(town: Town) -> None:
        channel_rules(town, (0, 8))
        await hold_five(town)
        await time_goes_by(town, [0])

    request = call(OP, Kind.COMMIT, HELD, flags=Flag.RE_RESERVE, channel=1)
    town, answer = await check_deaths(one_part_expired, lambda router: router.on_hold(request))
    assert list(answer.status) == [Status.INSUFFICIENT_STOCK]
    assert (town.counted("committed"), town.reserved) == (0, 0)
    request = call(OP, Kind.COMMIT, HELD, flags=Flag.RE_RESERVE)
    town, answer = await check_deaths(one_part_expired, lambda router: router.on_hold(request))
    assert (answer.status, town.counted("committed")) == (b"\0", 5)


@pytest.mark.parametrize("channel", [0, 1])
async def test_a_paid_order_that_is_repeated_late_takes_no_stock_that_is_kept_from_its_channel(
    town: Town, channel: int
) -> None:
    """It was held when its router died; then it ran out, and a unit of it was sold."""
    channel_rules(town, (0, 8))
    operation = an_order([(1, 1), (2, 2)], 2, Flag.COMMIT_NOW, channel=channel)
    assert await dies(town, operation, 2)
    assert town.reserved == 4
    await time_goes_by(town, [0, 1])
    sale = Request.of(os.urandom(16), 1, kind=Kind.SALE, sku=2, location=2, quantity=1)
    await town.router.submit(sale)
    _, answer = await operation(town.router)
    assert any(answer.status) == bool(channel)
    assert (town.counted("committed"), town.reserved) == (0 if channel else 4, 0)


# --- extend ---------------------------------------------------------------------------------------


async def test_all_parts_get_more_time() -> None:
    def extend(router: Router) -> Awaitable[Told]:
        return router.on_hold(call(OP, Kind.EXTEND, HELD, value=10 * TTL))

    town, answer = await check_deaths(hold_five, extend)
    assert answer.status == b"\0"
    hold = await town.router.hold(HELD)
    assert hold is not None
    assert hold.deadline_ns >= answer.now_ns + 10 * TTL * limits.NS_PER_MS


@pytest.mark.parametrize("is_split", [False, True])
async def test_an_extension_that_was_done_is_done_wherever_the_hold_has_gone_since(
    town: Town, is_split: bool
) -> None:
    """Units that came to a shard since get no more time by a repetition, which tells what it told."""
    cells = [(1, 1), (2, 2)] if is_split else [(1, 1)]
    await town.router.reserve(order(HELD, cells))
    request = call(OP, Kind.EXTEND, HELD, value=2 * TTL)
    first = await town.router.on_hold(request)
    assert not any(first[1].status)
    move = call(NEW, Kind.MOVE, HELD, sku=1, location=2, quantity=1, value=1)
    assert not any((await town.router.move(move))[1].status)
    for _ in range(3):
        before = await town.router.hold(HELD)
        assert await town.router.on_hold(request) == first
        assert await town.router.hold(HELD) == before
        for shard in town.shards:
            shard.now_ns += TTL * limits.NS_PER_MS
            await shard.submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))  # sweeps
    hold = await town.router.hold(HELD)
    assert hold is not None
    assert hold.state == HoldState.EXPIRED


async def test_a_hold_of_which_a_part_ran_out_cannot_be_extended(town: Town) -> None:
    await hold_five(town)
    town.shards[0].now_ns += 2 * TTL * limits.NS_PER_MS
    _, answer = await town.router.on_hold(call(OP, Kind.EXTEND, HELD, value=TTL))
    assert list(answer.status) == [Status.HOLD_EXPIRED]


async def test_a_hold_of_which_some_of_a_part_ran_out_cannot_be_extended() -> None:
    """It was told that it was: another unit of the part is paid by line, and the other part lived longer."""

    async def one_part_short(town: Town) -> None:
        await hold_five(town)
        line = call(NEW, Kind.COMMIT, HELD, sku=1, location=1, quantity=1)
        await town.router.on_hold(line)
        await time_goes_by(town, [0])

    extend = call(OP, Kind.EXTEND, HELD, value=TTL)
    town, answer = await check_deaths(one_part_short, lambda router: router.on_hold(extend))
    assert list(answer.status) == [Status.HOLD_EXPIRED]
    assert (town.counted("committed"), town.reserved) == (1, 2)


@pytest.mark.parametrize("quantity", [2, 3])
async def test_a_part_that_is_paid_or_moves_away_does_not_keep_the_rest_from_being_extended(
    town: Town, quantity: int
) -> None:
    """It is asked whether some of it ran out, and nothing is committed by that."""
    await hold_five(town)
    line = {"sku": 1, "location": 1, "quantity": quantity}
    await town.router.on_hold(call(NEW, Kind.COMMIT, HELD, **line))
    if quantity < 3:
        move = call(bytes([9]) * 16, Kind.MOVE, HELD, sku=1, location=2, quantity=1, value=1)
        assert not any((await town.router.move(move))[1].status)
    for _ in range(2):
        _, answer = await town.router.on_hold(call(OP, Kind.EXTEND, HELD, value=TTL))
        assert not any(answer.status)
        assert (town.counted("committed"), town.reserved) == (quantity, 5 - quantity)


# --- orders ---------------------------------------------------------------------------------------


def an_order(
    cells: list[tuple[int, int]],
    quantity: Any = 1,
    flags: int = 0,
    older: bytes = b"",
    *,
    ttl_ms: int = TTL,
    channel: int = 0,
) -> Operation:
    request = order(NEW, cells, quantity)
    request.columns["value"] = np.full(len(cells), ttl_ms, "<i8")
    request.columns["channel"] = np.full(len(cells), channel, "<u2")
    request.columns["flags"] = request.columns.get("flags", np.zeros(len(cells), "u1")).copy()
    request.columns["flags"] |= np.uint8(flags & ~Flag.SUPERSEDE)
    if older:
        request.columns["flags"][0] |= np.uint8(Flag.SUPERSEDE)
        for name, half in on(older).items():
            request.columns[name] = np.array([half] + [0] * (len(cells) - 1), "<u8")
    return lambda router: router.reserve(request)


async def test_an_order_that_is_paid_is_committed_on_all_shards() -> None:
    operation = an_order([(1, 1), (2, 2)], [3, 2], Flag.COMMIT_NOW)
    town, answer = await check_deaths(nothing, operation)
    assert answer.status == b"\0\0"
    assert (town.counted("committed"), town.reserved) == (5, 0)
    await check_late(nothing, operation)


async def test_a_paid_order_that_one_shard_refuses_is_nowhere() -> None:
    operation = an_order([(1, 1), (2, 2), (1, 3)], [3, 11, 1], Flag.COMMIT_NOW)
    town, answer = await check_deaths(nothing, operation)
    linked = Status.LINKED_LINE_REFUSED
    assert list(answer.status) == [linked, Status.INSUFFICIENT_STOCK, linked]
    assert (town.counted("committed"), town.reserved) == (0, 0)
    assert np.frombuffer(answer.available, "<i8").tolist() == [10, 10, 10]


async def test_an_order_takes_what_there_is_on_each_shard() -> None:
    cells = [(1, 1), (2, 2), (1, 3)]
    town, answer = await check_deaths(nothing, an_order(cells, [3, 11, 12], Flag.PARTIAL))
    assert answer.status == bytes(3)
    assert np.frombuffer(answer.granted, "<i8").tolist() == [3, 10, 10]
    assert town.reserved == 23


async def test_a_shard_that_has_nothing_does_not_refuse_a_partial_order() -> None:
    async def sold_out(town: Town) -> None:
        await town.router.reserve(order(HELD, [(2, 2)], 10))

    for flags, counter in (
        (Flag.PARTIAL, "reserved"),
        (Flag.PARTIAL | Flag.COMMIT_NOW, "committed"),
    ):
        operation = an_order([(1, 1), (2, 2)], [3, 1], flags)
        town, answer = await check_deaths(sold_out, operation)
        assert list(answer.status) == [Status.OK, Status.INSUFFICIENT_STOCK]
        assert np.frombuffer(answer.granted, "<i8").tolist() == [3, 0]
        assert town.counted(counter) == {"reserved": 13, "committed": 3}[counter]


async def test_a_partial_order_is_refused_for_what_cannot_be(town: Town) -> None:
    request = an_order([(1, 1), (99, 2)], 1, Flag.PARTIAL)
    _, answer = await request(town.router)
    assert list(answer.status) == [Status.LINKED_LINE_REFUSED, Status.UNKNOWN_SKU]
    assert np.frombuffer(answer.granted, "<i8").tolist() == [0, 0]
    assert town.reserved == 0


async def sold_out_of_tea(town: Town) -> None:
    """Another one has all of SKU 1 at location 1."""
    await town.router.reserve(order(HELD, [(1, 1)], 10))


@pytest.mark.parametrize("flags", [0, Flag.COMMIT_NOW])
async def test_a_part_whose_first_line_finds_nothing_is_held_and_committed_like_the_others(
    flags: int,
) -> None:
    operation = an_order([(1, 1), (2, 1), (2, 2)], 1, Flag.PARTIAL | flags)
    town, answer = await check_deaths(sold_out_of_tea, operation)
    assert list(answer.status) == [Status.INSUFFICIENT_STOCK, Status.OK, Status.OK]
    of_it = (2, 0) if flags else (0, 2)
    assert (town.counted("committed"), town.reserved) == (of_it[0], 10 + of_it[1])


async def test_a_part_whose_first_line_finds_nothing_is_given_up_when_another_refuses() -> None:
    operation = an_order([(1, 1), (2, 1), (99, 2)], 1, Flag.PARTIAL)
    town, answer = await check_deaths(sold_out_of_tea, operation)
    assert all(answer.status)
    assert (await pending_of(town, NEW), town.reserved) == ({}, 10)


async def test_a_paid_order_whose_parts_ran_out_before_it_is_repeated_is_committed_all_the_same() -> (
    None
):
    operation = an_order([(1, 1), (2, 2)], [3, 2], Flag.COMMIT_NOW)
    for lives in range(20):
        town = await Town().stocked()
        left, is_over = [lives], False
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            await operation(Router(links, lambda: MAP))
            is_over = True
        for shard in town.shards:
            shard.now_ns += LATE_NS
        _, answer = await operation(town.router)
        assert answer.status == b"\0\0"
        assert (town.counted("committed"), town.reserved) == (5, 0)
        if is_over:
            assert lives >= 4
            return
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("ahead", [0, 1])
async def test_an_order_over_shards_is_answered_with_the_time_of_the_one_that_is_behind(
    town: Town, ahead: int
) -> None:
    """So that no part is thought to live longer than it does."""
    town.shards[ahead].now_ns += 10**9
    _, answer = await an_order([(1, 1), (2, 2)], [3, 2])(town.router)
    assert not any(answer.status)
    ends_ns = answer.now_ns + TTL * limits.NS_PER_MS
    assert ends_ns == min(shard.machine.holds[NEW].deadline_ns for shard in town.shards)


# --- in place of an older hold --------------------------------------------------------------------


async def holds_all(town: Town) -> None:
    """The older hold has all of SKU 1 at location 1, and some of SKU 2 at location 2."""
    await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [10, 2]))


@pytest.mark.parametrize(
    ("cells", "quantity", "reserved"),
    [
        ([(1, 1), (2, 2)], [10, 3], 13),  # the first shard needs the older hold's stock
        ([(1, 1), (2, 2)], [10, 10], 20),  # both do
        ([(3, 1), (3, 2)], [1, 1], 2),  # none does
        ([(1, 1)], 10, 10),  # and the older one is elsewhere too
        ([(3, 2)], 5, 5),
    ],
)
async def test_an_order_takes_the_place_of_an_older_one(
    cells: list[tuple[int, int]], quantity: Any, reserved: int
) -> None:
    town, answer = await check_deaths(holds_all, an_order(cells, quantity, older=HELD))
    assert not any(answer.status)
    assert town.reserved == reserved
    older = await town.router.hold(HELD)
    assert older is not None
    assert older.state == HoldState.RELEASED


@pytest.mark.parametrize(
    ("cells", "quantity"),
    [
        ([(1, 1), (2, 2)], [10, 11]),
        ([(1, 1), (3, 2)], [11, 1]),
        ([(3, 1), (3, 2)], [1, 11]),
        ([(3, 1), (99, 1), (3, 2)], 1),
    ],
)
async def test_an_order_that_is_refused_leaves_the_older_one(
    cells: list[tuple[int, int]], quantity: Any
) -> None:
    town = await Town().stocked()
    await holds_all(town)
    before = [shard.machine.hold(HELD) for shard in town.shards]
    for _ in range(2):
        _, answer = await an_order(cells, quantity, older=HELD)(town.router)
        assert any(answer.status)
        assert town.reserved == 12
        assert [shard.machine.hold(HELD) for shard in town.shards] == before


def bought_under_the_last_step(town: Town, *cells: tuple[int, int]) -> None:
    """Before shard 1 frees its part of the older hold, another one buys all that he can get."""
    second = town.shards[1]
    submit = second.submit

    async def meddle(request: Request) -> Answer:
        if request.op_id == NEW:
            second.submit = submit  # type: ignore[method-assign]
            for number, cell in enumerate(cells):
                found = (await town.router.cells([cell]))[0]
                assert found is not None
                if found.available:
                    buyer = bytes([8, number] * 8)
                    await town.router.reserve(order(buyer, [cell], found.available))
        return await submit(request)

    second.submit = meddle  # type: ignore[method-assign]


@pytest.mark.parametrize("quantity", [[10, 10], [7, 10]])
@pytest.mark.parametrize("flags", [0, Flag.COMMIT_NOW])
async def test_what_was_freed_is_given_back_when_a_later_part_is_refused(
    quantity: list[int], flags: int
) -> None:
    """Both parts need the older hold's stock; whoever buys gets none of what that had."""

    async def setting(town: Town) -> None:
        await holds_all(town)
        bought_under_the_last_step(town, (1, 1), (2, 2))

    operation = an_order([(1, 1), (2, 2)], quantity, flags, older=HELD)
    town, answer = await check_deaths(setting, operation, at_least=4)
    assert list(answer.status) == [Status.LINKED_LINE_REFUSED, Status.INSUFFICIENT_STOCK]
    assert await pending_of(town, HELD) == {(1, 1): 10, (2, 2): 2}
    assert (await pending_of(town, NEW), town.reserved) == ({}, 20)


@pytest.mark.parametrize("longer_at", [0, 1, 2])
async def test_what_is_given_back_lives_as_long_as_it_did_though_the_newer_order_is_for_less(
    longer_at: int,
) -> None:
    """Also when all of it, or the part of one location, was given more time."""
    before: list[int] = []
    longer = call(OP, Kind.EXTEND, HELD, value=4 * TTL)

    async def setting(town: Town) -> None:
        await holds_all(town)
        assert not any((await town.router.on_hold(longer, longer_at))[1].status)
        before[:] = [shard.machine.holds[HELD].deadline_ns for shard in town.shards]
        bought_under_the_last_step(town, (1, 1), (2, 2))

    operation = an_order([(1, 1), (2, 2)], [10, 10], older=HELD, ttl_ms=TTL // 10)
    town, answer = await check_deaths(setting, operation, at_least=4)
    assert any(answer.status)
    assert await pending_of(town, HELD) == {(1, 1): 10, (2, 2): 2}
    deadlines = [shard.machine.holds[HELD].deadline_ns for shard in town.shards]
    for now_ns, before_ns in zip(deadlines, before, strict=True):
        assert now_ns > before_ns - limits.NS_PER_MS  # time to live is told in whole milliseconds


async def test_an_order_keeps_no_more_than_it_asked_for() -> None:
    operation = an_order([(1, 1), (2, 2)], [7, 10], older=HELD)
    town, answer = await check_deaths(holds_all, operation)
    assert not any(answer.status)
    assert await pending_of(town, NEW) == {(1, 1): 7, (2, 2): 10}
    assert (await pending_of(town, HELD), town.reserved) == ({}, 17)


async def test_an_order_of_a_channel_has_what_the_older_one_had_though_the_rest_is_kept_from_it() -> (
    None
):
    """As on one shard: what the older one gives back is above what is kept."""

    async def setting(town: Town) -> None:
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [2, 2]))
        channel_rules(town, (0, 8))

    operation = an_order([(1, 1), (2, 2)], [2, 1], older=HELD, channel=1)
    town, answer = await check_deaths(setting, operation)
    assert not any(answer.status)
    assert await pending_of(town, NEW) == {(1, 1): 2, (2, 2): 1}
    assert (await pending_of(town, HELD), town.reserved) == ({}, 3)


async def pending_of(town: Town, hold_id: bytes) -> dict[tuple[int, int], int]:
    units: Counter[tuple[int, int]] = Counter()
    hold = await town.router.hold(hold_id)
    for line in hold.lines if hold else ():
        units[line.sku, line.location] += line.pending
    return dict(+units)


@pytest.mark.parametrize("cells", [[(3, 1)], [(3, 2)], [(3, 1), (3, 2)]])
async def test_an_order_does_not_take_the_place_of_one_that_is_paid(
    cells: list[tuple[int, int]],
) -> None:
    """Nor later, when the older one is paid for no more."""
    town = await Town().stocked()
    await holds_all(town)
    part = {"sku": 2, "location": 2, "quantity": 1}
    await town.router.on_hold(call(OP, Kind.COMMIT, HELD, **part))
    for _ in range(2):
        _, answer = await an_order(cells, older=HELD)(town.router)
        assert list(answer.status) == [Status.HOLD_NOT_PENDING] * len(cells)
        assert town.reserved == 11
        await town.router.on_hold(call(os.urandom(16), Kind.CANCEL, HELD, **part))


async def test_an_order_is_refused_for_the_same_reason_when_the_older_one_is_over() -> None:
    """A part that needed its stock was not asked: another one had refused."""
    town = await Town().stocked()
    await holds_all(town)
    operation = an_order([(1, 1), (3, 2)], [10, 11], older=HELD)
    _, answer = await operation(town.router)
    assert list(answer.status) == [LINKED, Status.INSUFFICIENT_STOCK]
    for shard in town.shards:
        shard.now_ns += 2 * TTL * limits.NS_PER_MS
    assert not any((await town.router.reserve(order(OP, [(1, 1)], 5)))[1].status)
    _, again = await operation(town.router)
    assert again.status == answer.status
    assert await pending_of(town, NEW) == {}


async def test_an_order_that_is_paid_meanwhile_stays(town: Town) -> None:
    await holds_all(town)
    first = town.shards[0]
    submit = first.submit

    async def meddle(request: Request) -> Answer:
        if Kind.RELEASE in request.columns.get("kind", ()):
            await submit(call(os.urandom(16), Kind.COMMIT, HELD))
        return await submit(request)

    first.submit = meddle  # type: ignore[method-assign]
    _, answer = await an_order([(3, 2), (4, 2)], older=HELD)(town.router)
    assert list(answer.status) == [Status.HOLD_NOT_PENDING, LINKED]
    assert await town.router.hold(NEW) is not None
    assert town.counted("committed") == 10
    _, again = await an_order([(3, 2), (4, 2)], older=HELD)(town.router)
    assert (again.status, town.reserved) == (answer.status, 2)


async def test_an_order_in_place_of_one_that_is_paid_while_its_router_is_dead_is_not_held() -> None:
    """It died when all was held: a repetition gives that up, and what it had freed back."""
    operation = an_order([(1, 1), (2, 2)], [10, 10], older=HELD)
    for lives in range(20):
        town = await Town().stocked()
        await holds_all(town)
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        with suppress(Died):
            await operation(Router(links, lambda: MAP))
            return
        paid = await pending_of(town, HELD)
        part = {"sku": 2, "location": 2, "quantity": paid.get((2, 2), 1)}
        _, commit = await town.router.on_hold(call(OP, Kind.COMMIT, HELD, **part))
        _, answer = await operation(town.router)
        _, again = await operation(town.router)
        assert again.status == answer.status
        assert any(answer.status) != any(commit.status)
        if not any(commit.status):
            assert await pending_of(town, HELD) == {(1, 1): 10}
            assert (await pending_of(town, NEW), town.reserved) == ({}, 10)
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("cells", [[(3, 1)], [(3, 2)], [(3, 1), (3, 2)]])
@pytest.mark.parametrize("run_out", [[0, 1], [0], [1]])
async def test_an_order_stays_when_the_older_one_that_had_run_out_is_to_be_paid_late(
    cells: list[tuple[int, int]], run_out: list[int]
) -> None:
    """It was paid beside its successor. Wherever the router dies."""

    async def late_holds(town: Town) -> None:
        await holds_all(town)
        await time_goes_by(town, run_out)

    town, answer = await check_deaths(late_holds, an_order(cells, older=HELD))
    assert not any(answer.status)
    assert await states_of(town, HELD) == [HoldState.RELEASED] * 2
    late = call(OP, Kind.COMMIT, HELD, flags=Flag.RE_RESERVE)
    assert list((await town.router.on_hold(late))[1].status) == [Status.HOLD_RELEASED]
    for _ in range(2):
        _, again = await an_order(cells, older=HELD)(town.router)
        assert again.status == answer.status
        assert await pending_of(town, NEW) == dict.fromkeys(cells, 1)


@pytest.mark.parametrize("run_out", [[0, 1], [0], [1]])
async def test_of_one_that_had_run_out_no_part_is_paid_while_an_order_takes_its_place(
    run_out: list[int],
) -> None:
    """The router died between two shards: a late payment got the rest, and was told that it was all."""
    ends = set()
    for lives in range(12):
        town = await Town().stocked()
        await holds_all(town)
        await time_goes_by(town, run_out)
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        operation = an_order([(3, 1), (3, 2)], older=HELD)
        with suppress(Died):
            await operation(Router(links, lambda: MAP))
        late = call(OP, Kind.COMMIT, HELD, flags=Flag.RE_RESERVE)
        _, paid = await town.router.on_hold(late)
        assert town.counted("committed") == (0 if any(paid.status) else 12)
        _, answer = await operation(town.router)
        assert any(answer.status) or any(paid.status)
        ends.add((bool(answer.status[0]), bool(paid.status[0])))
    assert ends >= {(True, False), (False, True)}


async def time_goes_by(town: Town, shards: Sequence[int]) -> None:
    """Some shards' holds run out."""
    for number in shards:
        town.shards[number].now_ns += 2 * TTL * limits.NS_PER_MS
        await town.shards[number].submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))  # sweeps


async def states_of(town: Town, hold_id: bytes) -> list[HoldState]:
    parts = [await shard.hold(hold_id) for shard in town.shards]
    return [part.state for part in parts if part is not None]


@pytest.mark.parametrize("cells", [[(1, 1), (2, 2)], [(3, 1), (3, 2)]])
@pytest.mark.parametrize("run_out", [[0, 1], [0], [1]])
async def test_an_older_one_that_had_run_out_can_be_paid_late_when_the_order_is_refused(
    cells: list[tuple[int, int]], run_out: list[int]
) -> None:
    town = await Town().stocked()
    await holds_all(town)
    await time_goes_by(town, run_out)
    before = await states_of(town, HELD)
    for _ in range(2):
        _, answer = await an_order(cells, [10, 11], older=HELD)(town.router)
        assert any(answer.status)
    assert (await states_of(town, HELD), await pending_of(town, NEW)) == (before, {})
    late = call(OP, Kind.COMMIT, HELD, flags=Flag.RE_RESERVE)
    assert not any((await town.router.on_hold(late))[1].status)
    assert town.counted("committed") == 12


@pytest.mark.parametrize("is_taken", [False, True])
async def test_a_part_that_runs_out_when_its_stock_is_needed_can_be_paid_late_if_the_order_is_refused(
    town: Town,
    is_taken: bool,
) -> None:
    """Another shard refuses after that; what was taken already is given back, and lives on."""
    await holds_all(town)
    first = town.shards[0]
    submit = first.submit

    async def meddle(request: Request) -> Answer:
        if request.op_id == NEW if is_taken else Kind.ADD_LINE in request.columns.get("kind", ()):
            first.submit = submit  # type: ignore[method-assign]
            await time_goes_by(town, [0])
        return await submit(request)

    first.submit = meddle  # type: ignore[method-assign]
    bought_under_the_last_step(town, (2, 2))
    operation = an_order([(1, 1), (2, 2)], [10, 10], older=HELD)
    for _ in range(2):
        _, answer = await operation(town.router)
        assert list(answer.status) == [LINKED, Status.INSUFFICIENT_STOCK]
    of_first = HoldState.PENDING if is_taken else HoldState.EXPIRED
    assert await states_of(town, HELD) == [of_first, HoldState.PENDING]
    late = call(OP, Kind.COMMIT, HELD, flags=Flag.RE_RESERVE)
    assert not any((await town.router.on_hold(late))[1].status)
    assert town.counted("committed") == 12


async def test_an_order_keeps_what_it_asked_for_when_the_older_one_runs_out_under_it() -> None:
    """What the older hold had beyond that is sold when its part is taken over."""

    async def setting(town: Town) -> None:
        await holds_all(town)
        first = town.shards[0]
        submit = first.submit

        async def meddle(request: Request) -> Answer:
            if request.op_id == NEW:
                first.submit = submit  # type: ignore[method-assign]
                await time_goes_by(town, [0])
                await town.router.reserve(order(bytes([8]) * 16, [(1, 1)], 3))
            return await submit(request)

        first.submit = meddle  # type: ignore[method-assign]

    operation = an_order([(1, 1), (2, 2)], [7, 10], older=HELD)
    town, answer = await check_deaths(setting, operation)
    assert not any(answer.status)
    assert await pending_of(town, NEW) == {(1, 1): 7, (2, 2): 10}
    assert await states_of(town, HELD) == [HoldState.RELEASED] * 2


@pytest.mark.parametrize(
    ("cells", "quantity", "granted"),
    [
        ([(1, 1), (2, 2)], [10, 2], [10, 2]),
        ([(1, 1), (2, 2)], [12, 3], [10, 2]),
        ([(1, 1), (2, 2)], [6, 1], [6, 1]),
        ([(1, 1)], [12], [10]),
        ([(3, 1), (2, 2)], [4, 3], [4, 2]),
    ],
)
async def test_who_tries_again_for_a_part_gets_no_less_than_he_had(
    cells: list[tuple[int, int]], quantity: list[int], granted: list[int]
) -> None:
    async def short(town: Town) -> None:
        await holds_all(town)
        for sku, sold in ((1, 3), (2, 9)):
            columns = {"kind": Kind.SALE, "sku": sku, "location": sku, "quantity": sold}
            await town.router.submit(Request.of(os.urandom(16), 1, **columns))

    operation = an_order(cells, quantity, Flag.PARTIAL, older=HELD)
    town, answer = await check_deaths(short, operation)
    assert not any(answer.status)
    assert np.frombuffer(answer.granted, "<i8").tolist() == granted
    assert await pending_of(town, NEW) == dict(zip(cells, granted, strict=True))
    assert (await pending_of(town, HELD), town.reserved) == ({}, sum(granted))


async def test_an_order_that_is_paid_takes_the_place_of_one_that_other_shards_have_parts_of() -> (
    None
):
    """It was refused: what it kept beyond the order was not to be committed."""
    operation = an_order([(1, 1)], [7], Flag.COMMIT_NOW, older=HELD)
    town, answer = await check_deaths(holds_all, operation)
    assert not any(answer.status)
    assert (town.counted("committed"), town.reserved) == (7, 0)
    assert await states_of(town, HELD) == [HoldState.RELEASED] * 2


async def buy_all(town: Town) -> None:
    """Another one holds whatever there is, also what has run out."""
    for shard in town.shards:  # a block that sweeps
        await shard.submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))
    cells = [(sku, location) for sku in (1, 2, 3) for location in (1, 2)]
    found = await town.router.cells(cells)
    for cell, (sku, location) in zip(found, cells, strict=True):
        if cell and cell.available:
            buyer = order(bytes([64 + sku, location] * 8), [(sku, location)], cell.available, LONG)
            assert not any((await town.router.reserve(buyer))[1].status)


LONG = 8 * TTL


@pytest.mark.parametrize("has_more", [False, True])
@pytest.mark.parametrize("older", [[(1, 1)], [(1, 1), (2, 2)]])
@pytest.mark.parametrize("cells", [[(1, 1)], [(1, 1), (2, 2)], [(3, 1), (2, 2)], [(3, 2)]])
async def test_a_paid_order_that_is_repeated_when_its_own_time_is_over_leaves_nobody_with_nothing(
    cells: list[tuple[int, int]], older: list[tuple[int, int]], has_more: bool
) -> None:
    """The older hold, which lives longer, was gone, and so was the order, when others had bought meanwhile."""
    operation = an_order(cells, 9, Flag.COMMIT_NOW, older=HELD)
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, older, 9, LONG // 2))
        is_dead = await dies(town, operation, lives)
        if has_more:
            more = call(OP, Kind.EXTEND, HELD, value=LONG)
            await town.router.on_hold(more)
        stands = await pending_of(town, HELD) == dict.fromkeys(older, 9)
        # The order's own time is over; and what the older one had at first, if it got more.
        passed_ms = 2 * TTL + (LONG // 2 if has_more and stands else 0)
        for shard in town.shards:
            shard.now_ns += passed_ms * limits.NS_PER_MS
        await buy_all(town)
        told = [(await operation(town.router))[1].status for _ in range(2)]
        assert told[0] == told[1]
        if any(told[0]):
            assert await pending_of(town, HELD) == dict.fromkeys(older, 9)
            assert (town.counted("committed"), await pending_of(town, NEW)) == (0, {})
        else:
            assert town.counted("committed") == 9 * len(cells)
            assert await pending_of(town, HELD) == {}
        if not is_dead:
            assert lives >= 3
            return
    raise AssertionError("it takes ever more calls")


async def test_a_paid_order_is_not_committed_when_the_older_one_is_paid_meanwhile(
    town: Town,
) -> None:
    """It was told refused, and stayed committed: both were."""
    await holds_all(town)
    second = town.shards[1]
    submit = second.submit

    async def meddle(request: Request) -> Answer:
        if Kind.RELEASE in request.columns.get("kind", ()):
            await submit(call(os.urandom(16), Kind.COMMIT, HELD))
        return await submit(request)

    second.submit = meddle  # type: ignore[method-assign]
    for _ in range(2):
        _, answer = await an_order([(1, 1)], [10], Flag.COMMIT_NOW, older=HELD)(town.router)
        assert list(answer.status) == [Status.HOLD_NOT_PENDING]
    assert await pending_of(town, HELD) == {(1, 1): 10}
    assert (await pending_of(town, NEW), town.counted("committed")) == ({}, 2)


@pytest.mark.parametrize("is_released", [False, True])
async def test_an_order_holds_what_it_says_though_the_older_one_is_over_when_it_is_repeated(
    is_released: bool,
) -> None:
    """It gave up units of its own that it had never got from that."""
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [7, 1]))
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        operation = an_order([(1, 1)], [4], older=HELD)
        with suppress(Died):
            await operation(Router(links, lambda: MAP))
            assert lives > 3
            break
        if is_released:
            await town.router.on_hold(call(OP, Kind.RELEASE, HELD))
        else:
            await time_goes_by(town, [0, 1])
        _, answer = await operation(town.router)
        assert not any(answer.status)
        if is_released:
            assert (await pending_of(town, NEW), town.reserved) == ({(1, 1): 4}, 4)


@pytest.mark.parametrize("sold", [3, 4, 5])
@pytest.mark.parametrize("flags", [0, Flag.PARTIAL])
async def test_an_order_in_a_cell_that_is_short_holds_what_it_says(sold: int, flags: int) -> None:
    """A till has sold of what the older hold has."""

    async def short(town: Town) -> None:
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [8, 1]))
        sale = Request.of(os.urandom(16), 1, kind=Kind.SALE, sku=1, location=1, quantity=sold)
        await town.router.submit(sale)

    wanted = 10 - sold
    town, answer = await check_deaths(short, an_order([(1, 1)], [wanted], flags, older=HELD))
    assert not any(answer.status)
    assert (await pending_of(town, NEW), town.reserved) == ({(1, 1): wanted}, wanted)


@pytest.mark.parametrize("sold", [1, 4])
async def test_what_an_older_hold_had_of_a_cell_that_is_short_is_given_back(sold: int) -> None:
    async def short(town: Town) -> None:
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [8, 8]))
        await town.router.reserve(order(OP, [(1, 1)], [2]))
        columns = {"kind": Kind.SALE, "sku": 1, "location": 1, "quantity": sold}
        await town.router.submit(Request.of(os.urandom(16), 1, **columns))
        second = town.shards[1]
        submit = second.submit

        async def meddle(request: Request) -> Answer:
            if request.op_id == NEW:
                second.submit = submit  # type: ignore[method-assign]
                sale = {"kind": Kind.SALE, "sku": 2, "location": 2, "quantity": 6}
                await submit(Request.of(os.urandom(16), 1, **sale))
            return await submit(request)

        second.submit = meddle  # type: ignore[method-assign]

    operation = an_order([(1, 1), (2, 2)], [8 - sold, 8], older=HELD)
    town, answer = await check_deaths(short, operation)
    assert list(answer.status) == [LINKED, Status.INSUFFICIENT_STOCK]
    assert await pending_of(town, HELD) == {(1, 1): 8, (2, 2): 8}
    assert (await pending_of(town, NEW), town.reserved) == ({}, 18)


async def test_an_order_that_died_as_it_was_lent_two_cells_of_one_shard_gets_both() -> None:
    """It was refused: what was lent already seemed to be missing."""

    async def setting(town: Town) -> None:
        await town.router.reserve(order(HELD, [(1, 1), (3, 1), (2, 2)], [10, 10, 2]))

    cells = [(1, 1), (3, 1)]
    town, answer = await check_deaths(setting, an_order(cells, [10, 10], older=HELD), at_least=8)
    assert not any(answer.status)
    assert await pending_of(town, NEW) == dict.fromkeys(cells, 10)


async def test_what_was_taken_of_a_part_that_is_paid_by_line_is_not_given_back_after_a_release() -> (
    None
):
    """The order is refused for the line that was paid, and what is left was given up meanwhile."""
    released = 0
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [10, 2]))

        async def paid(town: Town = town) -> None:
            line = call(OP, Kind.COMMIT, HELD, sku=1, location=1, quantity=1)
            assert not any((await town.shards[0].submit(line)).status)

        under_the_take(town.shards[0], paid)
        operation = an_order([(1, 1), (2, 2)], [9, 10], older=HELD)
        is_dead = await dies(town, operation, lives)
        if await pending_of(town, HELD) == {(2, 2): 2}:  # and the other part is taken
            released += 1
            _, given_up = await town.router.on_hold(call(bytes([9]) * 16, Kind.RELEASE, HELD))
            assert not any(given_up.status)
            _, answer = await operation(town.router)
            assert any(answer.status)
            assert await pending_of(town, HELD) == {}
        if not is_dead:
            assert released > 3
            return
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("flags", [0, Flag.PARTIAL])
async def test_who_gives_up_a_unit_while_he_tries_again_gets_no_less(flags: int) -> None:
    """Nothing was taken of that cell then, so he got nothing of it."""

    async def setting(town: Town) -> None:
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [10, 1]))

        async def given_up() -> None:
            line = call(OP, Kind.RELEASE, HELD, sku=1, location=1, quantity=1)
            assert not any((await town.shards[0].submit(line)).status)

        under_the_take(town.shards[0], given_up)

    cells = [(1, 1), (2, 2)]
    operation = an_order(cells, [10, 1], flags, older=HELD)
    town, answer = await check_deaths(setting, operation, at_least=8)
    assert not any(answer.status)
    assert await pending_of(town, NEW) == dict(zip(cells, [10, 1], strict=True))
    assert (await pending_of(town, HELD), town.reserved) == ({}, 11)


async def test_a_hold_of_which_a_release_was_told_is_not_given_back() -> None:
    """It comes by another gateway between any two steps of an order that is refused at last."""
    for number in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [4, 4]))
        await town.router.reserve(order(bytes([8]) * 16, [(1, 1), (2, 2)], [6, 6]))
        told: list[Answer] = []
        left = [number]

        async def release(town: Town = town, told: list[Answer] = told) -> None:
            told.append((await town.router.on_hold(call(OP, Kind.RELEASE, HELD)))[1])
            await town.router.reserve(order(bytes([9]) * 16, [(2, 2)], [3]))

        links = {n: Meddled(shard, left, release) for n, shard in enumerate(town.shards)}
        _, answer = await an_order([(1, 1), (2, 2)], [4, 4], older=HELD)(Router(links, lambda: MAP))
        if not told:
            assert number > 3
            return
        assert any(answer.status) != any(told[0].status)
        assert await pending_of(town, HELD) == {}
        assert (await pending_of(town, NEW) == {}) == any(answer.status)
    raise AssertionError("it takes ever more calls")


async def test_who_gives_up_by_line_what_is_left_of_a_hold_does_not_give_up_what_was_taken() -> (
    None
):
    """The order is refused at last. Nothing was given back then, and the buyer had lost the rest."""
    operation = an_order([(2, 2), (2, 1)], [5, 10], older=HELD)
    shard_map, refused = ShardMap(1, 3), 0
    for lives in range(20):
        town = await Town(shard_map).stocked()
        await town.router.reserve(order(HELD, [(2, 1), (2, 2), (3, 3)], 5))
        await town.router.reserve(order(bytes([8]) * 16, [(2, 2)], 5))
        is_dead = await dies(town, operation, lives, shard_map)
        await town.router.reserve(order(bytes([9]) * 16, [(2, 1)], 5))
        await town.router.on_hold(call(OP, Kind.RELEASE, HELD, sku=3, location=3, quantity=5))
        _, answer = await operation(town.router)
        if any(answer.status):
            refused += 1
            assert await pending_of(town, HELD) == {(2, 1): 5, (2, 2): 5}
        if not is_dead:
            assert refused > 8
            return
    raise AssertionError("it takes ever more calls")


class Meddled(Mortal):
    """A link of a router that somebody meddles with once, after so many of its calls."""

    def __init__(
        self, shard: FakeShard, lives: list[int], meddle: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(shard, lives)
        self._meddle = meddle

    async def submit(self, request: Request) -> Answer:
        self._lives[0] -= 1
        if self._lives[0] == -1:
            await self._meddle()
        return await self._shard.submit(request)


async def meeting(
    town: Town, operation: Operation, other: Request, number: int, *, is_dead: bool
) -> tuple[Answer, Answer] | None:
    """What an operation is told, and a call on a hold that came after so many of its steps.

    The operation goes on after that, or its router has died there and it is repeated. None: it takes
    no more steps.
    """
    told: list[Answer] = []

    async def meddle() -> None:
        told.append((await town.router.on_hold(other))[1])

    left = [number]
    mortal = {n: Mortal(shard, left) for n, shard in enumerate(town.shards)}
    meddled = {n: Meddled(shard, left, meddle) for n, shard in enumerate(town.shards)}
    if not is_dead:
        _, answer = await operation(Router(meddled, lambda: MAP))
        return (answer, told[0]) if told else None
    with suppress(Died):
        await operation(Router(mortal, lambda: MAP))
        return None
    await meddle()
    return (await operation(town.router))[1], told[0]


@pytest.mark.parametrize("part", [(1, 1, 4), (2, 2, 5)])
async def test_an_order_is_not_told_as_held_when_a_line_of_the_older_one_is_paid_meanwhile(
    part: tuple[int, int, int],
) -> None:
    """Wherever its router died, or is. What it had taken elsewhere is given back."""
    sku, location, quantity = part
    pay = call(OP, Kind.COMMIT, HELD, sku=sku, location=location, quantity=quantity)
    operation = an_order([(1, 1), (2, 2)], [3, 3], older=HELD)
    for number in range(20):
        for is_dead in (False, True):
            town = await Town().stocked()
            await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [4, 5]))
            met = await meeting(town, operation, pay, number, is_dead=is_dead)
            if met is None:
                assert number > 3
                return
            answer, told = met
            assert any(answer.status) != any(told.status)
            rest = {(1, 1): 4, (2, 2): 5}
            del rest[sku, location]
            assert await pending_of(town, HELD) == (rest if any(answer.status) else {})
            there = state_of(town)
            assert (await operation(town.router))[1].status == answer.status
            assert state_of(town) == there
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("cells", [[(1, 1), (1, 2)], [(1, 1)], [(1, 2)], [(3, 1), (3, 2)]])
@pytest.mark.parametrize("sold", [0, 6])
async def test_an_older_one_whose_part_was_taken_is_not_paid_without_it(
    cells: list[tuple[int, int]], sold: int
) -> None:
    """Its parts are of one SKU, so by that none looks as if it had moved to the other shard."""
    operation = an_order(cells, 4, older=HELD)
    for number in range(20):
        for is_dead in (False, True):
            town = await Town().stocked()
            await town.router.reserve(order(HELD, [(1, 1), (1, 2)], [1, 2]))
            lines = {"kind": Kind.SALE, "sku": cells[-1][0], "location": cells[-1][1]}
            await town.router.submit(Request.of(os.urandom(16), 1, quantity=sold, **lines))
            met = await meeting(
                town, operation, call(OP, Kind.COMMIT, HELD), number, is_dead=is_dead
            )
            if met is None:
                assert number > 3
                return
            answer, told = met
            assert any(answer.status) or any(told.status)
            assert town.counted("committed") == (0 if any(told.status) else 3)
            if any(answer.status) and any(told.status):
                assert await pending_of(town, HELD) == {(1, 1): 1, (1, 2): 2}
    raise AssertionError("it takes ever more calls")


async def test_an_older_one_that_was_given_back_is_like_any_other(town: Town) -> None:
    """Its line that is given up then says nothing of the rest."""
    await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [3, 2]))
    await town.router.reserve(order(bytes([8]) * 16, [(2, 2)], [8]))
    channel_rules(
        town, (0, 0)
    )  # with a channel, so it takes without looking whether there is enough
    operation = order(NEW, [(1, 1), (2, 2)], [3, 9])
    operation.columns |= {name: np.array([half, 0], "<u8") for name, half in on(HELD).items()}
    operation.columns["flags"] = np.array([Flag.LINKED | Flag.SUPERSEDE, 0], np.uint8)
    operation.columns["channel"] = np.array([1, 1], np.uint8)
    _, answer = await town.router.reserve(operation)
    assert list(answer.status) == [LINKED, Status.INSUFFICIENT_STOCK]
    line = {"sku": 1, "location": 1, "quantity": 3}
    await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, HELD, **line))
    for kind, more in ((Kind.EXTEND, {"value": TTL}), (Kind.COMMIT, {})):
        _, answer = await town.router.on_hold(call(os.urandom(16), kind, HELD, **more))
        assert not any(answer.status)
    assert town.counted("committed") == 2


async def test_an_order_has_the_stock_of_an_older_one_that_is_on_its_way() -> None:
    """The router of its move has died between any two steps."""
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1)], [5]))
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        is_moved = False
        with suppress(Died):
            await Router(links, lambda: MAP).move(call(OP, Kind.MOVE, HELD, location=2))
            is_moved = True
        for at in (1, 2):
            await town.router.reserve(
                order(bytes([at, 8]) * 8, [(1, at)], await town.available(1, at))
            )
        (where,) = await pending_of(town, HELD)
        _, answer = await an_order([where], [5], older=HELD)(town.router)
        assert not any(answer.status)
        assert (await pending_of(town, HELD), await pending_of(town, NEW)) == ({}, {where: 5})
        if is_moved:
            assert lives > 3
            return
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("cells", [[(1, 1), (1, 3)], [(1, 1), (1, 2)]])
async def test_an_order_is_reserved_anew_when_the_late_payment_is_refused(
    town: Town, cells: list[tuple[int, int]]
) -> None:
    """Wherever its parts are: what the payment has committed of it, it has taken back."""
    await town.router.reserve(order(HELD, cells, [3, 2]))
    for shard in town.shards:
        shard.now_ns += LATE_NS
    await town.router.reserve(order(bytes([8]) * 16, [cells[1]], [9]))
    _, paid = await town.router.on_hold(call(OP, Kind.COMMIT, HELD, flags=Flag.RE_RESERVE))
    assert list(paid.status) == [Status.INSUFFICIENT_STOCK]
    for _ in range(2):
        _, answer = await an_order(cells, [3, 1], older=HELD)(town.router)
        assert not any(answer.status)
    _, cancelled = await town.router.on_hold(call(bytes([7]) * 16, Kind.COMMIT, NEW))
    assert not any(cancelled.status)
    _, cancelled = await town.router.on_hold(call(bytes([6]) * 16, Kind.CANCEL, NEW))
    assert not any(cancelled.status)
    again = order(bytes([5]) * 16, cells, [3, 1])
    again.columns |= {name: np.array([half, 0], "<u8") for name, half in on(NEW).items()}
    again.columns["flags"] = np.array([Flag.LINKED | Flag.SUPERSEDE, 0], np.uint8)
    _, answer = await town.router.reserve(again)  # the buyer's own cancellation is another thing
    assert answer.status[0] == Status.HOLD_NOT_PENDING


async def test_nothing_is_taken_of_an_older_one_that_could_not_be_given_back(town: Town) -> None:
    """What comes back has new lines, and a hold has no more than so many."""
    for shard in town.shards:
        shard.machine.set_sku_limit(300)
    stock = {"kind": Kind.RECEIVE, "sku": range(1, 301), "location": 1, "quantity": 10}
    await town.router.submit(Request.of(os.urandom(14) + bytes(2), 300, **stock))
    cells = [*((sku, 1) for sku in range(1, 301)), (1, 2)]
    assert limits.MAX_HOLD_LINES < 2 * 300
    await town.router.reserve(order(HELD, cells, 9))
    for _ in range(2):
        _, answer = await an_order(cells, 10, older=HELD)(town.router)
        assert list(answer.status) == [Status.TOO_MANY_LINES] + [LINKED] * 300
        assert await pending_of(town, HELD) == dict.fromkeys(cells, 9)
        assert town.reserved == 9 * 301


@pytest.mark.parametrize("lines", [170, 171, limits.MAX_HOLD_LINES // 2])
async def test_all_is_given_back_of_as_many_lines_as_may_be_taken(town: Town, lines: int) -> None:
    """A cell that was lent in part went back as two lines, which were too many, and was lost."""
    for shard in town.shards:
        shard.machine.set_sku_limit(300)
    stock = {"kind": Kind.RECEIVE, "sku": range(1, 301), "location": 1, "quantity": 10}
    await town.router.submit(Request.of(os.urandom(14) + bytes(2), 300, **stock))
    cells = [*((sku, 1) for sku in range(20, 20 + lines)), (1, 2)]
    assert not any((await town.router.reserve(order(HELD, cells, 9)))[1].status)
    operation = an_order(cells, [4] * lines + [10], older=HELD)
    bought_under_the_last_step(town, (1, 2))
    for _ in range(2):
        _, answer = await operation(town.router)
        assert list(answer.status) == [LINKED] * lines + [Status.INSUFFICIENT_STOCK]
        assert await pending_of(town, HELD) == dict.fromkeys(cells, 9)
        assert await pending_of(town, NEW) == {}


async def test_what_was_lent_in_part_is_given_back_as_one_line_of_each_cell() -> None:
    async def setting(town: Town) -> None:
        await town.router.reserve(order(HELD, [(1, 1), (3, 1), (2, 2)], [8, 9, 9]))
        bought_under_the_last_step(town, (2, 2))

    operation = an_order([(1, 1), (3, 1), (2, 2)], [4, 3, 10], older=HELD)
    town, answer = await check_deaths(setting, operation, at_least=10)
    assert list(answer.status) == [LINKED, LINKED, Status.INSUFFICIENT_STOCK]
    assert await pending_of(town, HELD) == {(1, 1): 8, (3, 1): 9, (2, 2): 9}
    assert len(town.shards[0].machine.holds[HELD].lines) == 4
    assert (await pending_of(town, NEW), town.reserved) == ({}, 27)


async def dies(town: Town, operation: Operation, lives: int, shard_map: ShardMap = MAP) -> bool:
    """Whether the router has died when it had made so many calls that change something."""
    left = [lives]
    links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
    try:
        await operation(Router(links, lambda: shard_map))
    except Died:
        return True
    return False


@pytest.mark.parametrize("is_repeated", [False, True])
async def test_a_part_that_was_to_be_given_up_and_was_not_says_nothing_of_the_rest(
    is_repeated: bool,
) -> None:
    """Its line is given up by the buyer, who pays for the rest, as an order in its place has died or is refused."""
    operation = an_order([(1, 1), (2, 2)], [9, 9], older=HELD)
    stood = 0
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [3, 2]))
        is_dead = await dies(town, operation, lives)
        stands = await pending_of(town, HELD) == {(1, 1): 3, (2, 2): 2}
        line = call(OP, Kind.RELEASE, HELD, sku=1, location=1, quantity=3)
        await town.router.on_hold(line)
        if is_repeated:
            await town.router.reserve(order(bytes([8]) * 16, [(2, 2)], [8]))
            _, answer = await operation(town.router)
            assert any(answer.status) or not is_dead or not stands
        if stands:
            stood += 1
            _, answer = await town.router.on_hold(call(bytes([7]) * 16, Kind.COMMIT, HELD))
            assert not any(answer.status)
            assert town.counted("committed") == 2
        if not is_dead:
            assert stood > 2
            return
    raise AssertionError("it takes ever more calls")


async def test_a_part_that_was_marked_by_a_release_and_not_given_up_says_nothing_of_the_rest() -> (
    None
):
    release = call(OP, Kind.RELEASE, HELD)
    stood = 0
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [3, 2]))
        is_dead = await dies(town, lambda router: router.on_hold(release), lives)
        if await pending_of(town, HELD) == {(1, 1): 3, (2, 2): 2}:
            stood += 1
            line = call(NEW, Kind.RELEASE, HELD, sku=1, location=1, quantity=3)
            await town.router.on_hold(line)
            _, answer = await town.router.on_hold(call(bytes([7]) * 16, Kind.COMMIT, HELD))
            assert not any(answer.status)
        if not is_dead:
            assert stood > 2
            return
    raise AssertionError("it takes ever more calls")


async def test_a_hold_is_not_paid_without_what_was_given_up_of_a_part_that_is_paid_by_line() -> (
    None
):
    """The part said no more than that nothing of it was pending."""
    ends = set()
    for lives in range(20):
        town = await Town().stocked()
        await hold_five(town)
        line = call(NEW, Kind.COMMIT, HELD, sku=2, location=2, quantity=1)
        await town.router.on_hold(line)
        is_dead = await dies(town, commit_all(), lives)
        _, given_up = await town.router.on_hold(call(bytes([9]) * 16, Kind.RELEASE, HELD))
        _, paid = await commit_all()(town.router)
        assert any(paid.status) != any(given_up.status)
        assert town.counted("committed") == (1 if any(paid.status) else 5)
        ends.add(any(paid.status))
        if not is_dead:
            assert ends == {False, True}
            return
    raise AssertionError("it takes ever more calls")


def under_the_take(shard: FakeShard, meddle: Callable[[], Awaitable[None]]) -> None:
    """Have somebody meddle before the first step that takes of an older hold on a shard, once."""
    submit = shard.submit

    async def meddled(request: Request) -> Answer:
        if Kind.ADD_LINE in request.columns.get("kind", ()):
            shard.submit = submit  # type: ignore[method-assign]
            await meddle()
        return await submit(request)

    shard.submit = meddled  # type: ignore[method-assign]


async def test_an_older_one_is_not_paid_without_what_was_taken_of_a_part_that_is_paid_by_line() -> (
    None
):
    """Its line is paid at its shard between look and take, and the router of the order dies after that."""
    operation = an_order([(3, 1), (4, 2)], [10, 1], older=HELD)
    given_up = 0
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (3, 1), (2, 2)], [2, 10, 1]))

        async def line_paid(town: Town = town) -> None:
            line = {"sku": 1, "location": 1, "quantity": 2}
            _, paid = await town.router.on_hold(call(OP, Kind.COMMIT, HELD, **line))
            assert not any(paid.status)

        under_the_take(town.shards[0], line_paid)
        is_dead = await dies(town, operation, lives)
        _, paid = await town.router.on_hold(call(bytes([9]) * 16, Kind.COMMIT, HELD))
        assert town.counted("committed") in ((13,) if not any(paid.status) else (0, 2))
        given_up += paid.status[0] == Status.HOLD_RELEASED
        if not is_dead:
            assert given_up > 2
            return
    raise AssertionError("it takes ever more calls")


async def test_a_release_that_was_refused_does_not_refuse_the_commit_that_it_gave_way_to() -> None:
    """All of the hold moved under both. Both were refused: it was committed, and cancelled."""
    release = call(bytes([9]) * 16, Kind.RELEASE, HELD)
    for lives in range(12):
        for others in range(12):
            town = await Town().stocked()
            await hold_five(town)
            await dies(town, lambda router: router.on_hold(release), lives)
            await town.router.move(call(NEW, Kind.MOVE, HELD, location=4))
            is_dead = await dies(town, commit_all(), others)
            told = [(await town.router.on_hold(release))[1].status for _ in range(2)]
            said = [(await commit_all()(town.router))[1].status for _ in range(2)]
            assert (told[0], said[0]) == (told[1], said[1])
            assert any(told[0]) != any(said[0])
            assert (town.counted("committed"), town.reserved) == (5 * any(told[0]), 0)
            if not is_dead:
                break


async def test_an_older_one_is_not_paid_without_what_ran_out_while_it_was_taken(town: Town) -> None:
    """Its other part was given more time, by itself; the order is refused at last."""
    await town.router.reserve(order(HELD, [(1, 1), (1, 2)], [3, 2]))
    operation = an_order([(1, 1), (1, 2)], [9, 9], older=HELD)
    for lives in range(20):
        assert await dies(town, operation, lives)
        if await pending_of(town, HELD) == {(1, 2): 2}:
            break
    more = call(bytes([6]) * 16, Kind.EXTEND, HELD, value=limits.MAX_TTL_MS)
    await town.router.on_hold(more, location=2)
    for shard in town.shards:
        shard.now_ns += 2 * TTL * limits.NS_PER_MS
    await town.router.reserve(order(bytes([8]) * 16, [(1, 2)], [8]))
    _, answer = await operation(town.router)
    assert any(answer.status)
    for op_id in (OP, bytes([7]) * 16):
        _, paid = await town.router.on_hold(call(op_id, Kind.COMMIT, HELD))
        assert list(paid.status) == [Status.HOLD_RELEASED]
    assert town.counted("committed") == 0


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.RELEASE])
@pytest.mark.parametrize("sold", [0, 8])
async def test_an_order_that_died_and_a_call_on_the_older_one_that_died_end_one_way(
    kind: Kind, sold: int
) -> None:
    """Both are repeated: not both are done, no answer is another then, and nothing is lost of what stands."""
    operation = an_order([(1, 1), (2, 2)], [9, 9], older=HELD)
    request = call(OP, kind, HELD)
    for lives in range(20):
        for others in range(20):
            town = await Town().stocked()
            await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [3, 2]))
            is_dead = await dies(town, operation, lives)
            if sold:
                await town.router.reserve(order(bytes([8]) * 16, [(2, 2)], [sold]))
            is_other_dead = await dies(town, lambda router: router.on_hold(request), others)
            told = [(await operation(town.router))[1].status for _ in range(2)]
            said = [(await town.router.on_hold(request))[1].status for _ in range(2)]
            assert (told[0], said[0]) == (told[1], said[1])
            is_held, is_done = not any(told[0]), not any(said[0])
            pending = await pending_of(town, HELD)
            if kind == Kind.COMMIT:
                assert not (is_held and is_done)
                assert town.counted("committed") == (5 if is_done else 0)
            if is_held or is_done:
                assert pending == {}
            else:
                assert pending == {(1, 1): 3, (2, 2): 2}
            if not is_other_dead:
                break
        if not is_dead:
            assert lives > 5
            return
    raise AssertionError("it takes ever more calls")


@pytest.mark.parametrize("lines", [1, 2])
async def test_a_move_that_was_refused_as_a_part_was_taken_stays_so_when_that_is_given_back(
    lines: int,
) -> None:
    operation = an_order([(1, 1), (2, 2)], [9, 9], older=HELD)
    column = {"sku": [1, 2][:lines], "value": [1, 2][:lines]} if lines > 1 else {}
    move = call(OP, Kind.MOVE, HELD, lines=lines, location=3, **column)
    refused = 0
    for lives in range(20):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [3, 2]))
        is_dead = await dies(town, operation, lives)
        _, told = await town.router.move(move)
        await town.router.reserve(order(bytes([8]) * 16, [(2, 2)], [8]))
        await operation(town.router)
        there = state_of(town)
        assert (await town.router.move(move))[1].status == told.status
        assert state_of(town) == there
        refused += told.status[0] == Status.HOLD_RELEASED
        if not is_dead:
            assert refused > 3
            return
    raise AssertionError("it takes ever more calls")


async def test_an_order_is_in_place_of_a_hold_that_goes_elsewhere_meanwhile(town: Town) -> None:
    """It was held beside that."""
    await town.router.reserve(order(HELD, [(1, 1)], [4]))
    first = town.shards[0]
    submit = first.submit

    async def meddle(request: Request) -> Answer:
        if request.op_id == NEW:
            first.submit = submit  # type: ignore[method-assign]
            links = dict(enumerate(town.shards))
            _, moved = await Router(links, lambda: MAP).move(call(OP, Kind.MOVE, HELD, location=2))
            assert not any(moved.status)
        return await submit(request)

    first.submit = meddle  # type: ignore[method-assign]
    for _ in range(2):
        _, answer = await an_order([(1, 1)], [5], older=HELD)(town.router)
        assert not any(answer.status)
        assert await pending_of(town, HELD) == {}
        assert (await pending_of(town, NEW), town.reserved) == ({(1, 1): 5}, 5)


async def test_a_hold_is_not_paid_and_given_up_though_half_of_it_moves_under_both(
    town: Town,
) -> None:
    """All was on one shard when both looked. What they found on the other was taken for a line given up."""
    await town.router.reserve(order(HELD, [(1, 1), (2, 1)], [3, 1]))

    async def moved() -> None:
        move = call(NEW, Kind.MOVE, HELD, sku=2, location=2, quantity=1, value=1)
        _, answer = await Router(dict(enumerate(town.shards)), lambda: MAP).move(move)
        assert not any(answer.status)

    async def paid_and_dead() -> None:
        left, lives = [0], [1]
        meddled = [Meddled(shard, left, moved) for shard in town.shards]
        links = {number: Mortal(shard, lives) for number, shard in enumerate(meddled)}
        with pytest.raises(Died):
            await commit_all()(Router(links, lambda: MAP))
        assert town.counted("committed") == 3

    left = [0]
    links = {n: Meddled(shard, left, paid_and_dead) for n, shard in enumerate(town.shards)}
    release = call(bytes([9]) * 16, Kind.RELEASE, HELD)
    _, given_up = await Router(links, lambda: MAP).on_hold(release)
    for _ in range(2):
        _, paid = await commit_all()(town.router)
        assert any(paid.status) != any(given_up.status)
        assert (town.counted("committed"), town.reserved) == (4 * any(given_up.status), 0)


async def test_an_order_may_have_as_many_lines_over_shards_as_on_one(town: Town) -> None:
    """What the older hold had beyond it were lines of the order's own."""
    others = [(sku, location) for sku in range(2, 9) for location in (1, 3)]
    await town.router.reserve(order(HELD, [*others, (8, 2)]))
    columns = {"kind": Kind.RECEIVE, "sku": 1, "location": 1, "quantity": 1000}
    await town.router.submit(Request.of(os.urandom(16), 1, **columns))
    _, answer = await an_order([(1, 1)] * limits.MAX_HOLD_LINES, older=HELD)(town.router)
    assert not any(answer.status)
    assert town.reserved == limits.MAX_HOLD_LINES


async def test_a_hold_is_not_given_up_for_nothing_where_less_is_allowed(town: Town) -> None:
    older = Request.of(HELD, 1, kind=Kind.RESERVE, sku=1, location=1, quantity=4, value=60_000)
    await town.router.reserve(older)
    sale = Request.of(os.urandom(16), 1, kind=Kind.SALE, sku=1, location=2, quantity=10)
    await town.router.submit(sale)
    flags = Flag.PARTIAL | Flag.SUPERSEDE
    request = Request.of(
        NEW, 1, kind=Kind.RESERVE, sku=1, location=2, quantity=3, value=60_000, flags=flags,
        **on(HELD),
    )  # fmt: skip
    _, answer = await town.router.reserve(request)
    assert list(answer.status) == [Status.INSUFFICIENT_STOCK]
    hold = await town.router.hold(HELD)
    assert hold is not None
    assert hold.state == HoldState.PENDING
