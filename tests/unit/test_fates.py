"""Two commits of all of a hold at one time: what is acknowledged stays committed, whoever is refused."""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from actors.fates import Fate
from actors.router import Router
from engine import limits
from engine.operations import Answer, Flag, Kind, Request
from engine.shard_map import ShardMap
from engine.status import Status
from tests.unit.test_moves import FOREVER, OTHER, lengths, play
from tests.unit.test_returns import an_exchange, full
from tests.unit.test_router import MAP, TTL, Town, batch_id, call, order
from tests.unit.test_spanning import (
    HELD,
    NEW,
    OP,
    Died,
    Mortal,
    Operation,
    an_order,
    check_deaths,
    commit_all,
    dies,
    hold_five,
    time_goes_by,
)

Setting = Callable[[Town], Awaitable[Any]]
BUYER = bytes([8]) * 16


def runs_out_under_the_first_commit(town: Town) -> None:
    """What shard 1 has runs out and is bought by another, who gives it up again right after that."""
    second = town.shards[1]
    submit = second.submit

    async def meddle(request: Request) -> Answer:
        if Kind.COMMIT not in request.columns.get("kind", ()):
            return await submit(request)
        second.submit = submit  # type: ignore[method-assign]
        second.now_ns += 2 * TTL * limits.NS_PER_MS
        units = (await second.cells([(2, 2)]))[0]
        assert units is not None
        await submit(order(BUYER, [(2, 2)], units.on_hand))
        answer = await submit(request)
        await submit(call(os.urandom(16), Kind.RELEASE, BUYER))
        return answer

    second.submit = meddle  # type: ignore[method-assign]


async def holds(town: Town) -> None:
    await hold_five(town)
    runs_out_under_the_first_commit(town)


async def holds_in_part(town: Town) -> None:
    """One unit of it is committed already, by itself."""
    await hold_five(town)
    await town.router.on_hold(call(NEW, Kind.COMMIT, HELD, sku=1, location=1, quantity=1))
    runs_out_under_the_first_commit(town)


async def buys_and_dies(town: Town) -> None:
    """All of an order is held, and its router dies before it commits any."""
    left = [2]
    links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
    with suppress(Died):
        await BUYS_AND_PAYS[0](Router(links, lambda: MAP))
    assert town.reserved == 5
    runs_out_under_the_first_commit(town)


async def swaps_and_dies(town: Town) -> None:
    """All that an exchange holds is held, and its router dies before it commits any."""
    left = [3]
    links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
    with suppress(Died):
        await SWAPS_AND_PAYS[0](Router(links, lambda: MAP))
    assert town.reserved == 5
    runs_out_under_the_first_commit(town)


async def swaps_for_what_finds_no_room(town: Town) -> None:
    """What is to come back finds no room any more when all is held and committed."""
    await swaps_and_dies(town)
    await full(town, 3, 3)


def pay(op_id: bytes, hold_id: bytes = HELD) -> Operation:
    request = call(op_id, Kind.COMMIT, hold_id, flags=Flag.RE_RESERVE)
    return lambda router: router.on_hold(request)


PAYS = pay(OP), pay(OTHER)
BUYS_AND_PAYS = an_order([(1, 1), (2, 2)], [3, 2], Flag.COMMIT_NOW), pay(OTHER, NEW)
SWAPS_AND_PAYS = (
    an_exchange([(3, 3, 1)], [(1, 1, 3), (2, 2, 2)], flags=Flag.COMMIT_NOW, op_id=NEW),
    pay(OTHER, NEW),
)
CASES = [(holds, PAYS, 0), (holds_in_part, PAYS, 1), (buys_and_dies, BUYS_AND_PAYS, 0)]
CASES += [(swaps_and_dies, SWAPS_AND_PAYS, 0)]


async def check(
    setting: Setting,
    operations: tuple[Operation, Operation],
    before: int,
    plan: Sequence[int],
    lives: tuple[int, int] = (FOREVER, FOREVER),
) -> list[bool]:
    """Whether each of two was acknowledged; what is acknowledged, at once and at last, is all of it."""
    town, _, told = await play(setting, *operations, plan, lives)
    is_done = [answer is not None and not any(answer.status) for answer in told]
    if any(is_done):
        assert town.counted("committed") == 5
    for operation, answer in zip(operations, told, strict=True):
        _, again = await operation(town.router)
        assert answer is None or any(again.status) == any(answer.status)
    ends = [any((await operation(town.router))[1].status) for operation in operations]
    if any(is_done):
        assert (town.counted("committed"), town.reserved) == (5, 0)
    elif all(ends):
        assert (town.counted("committed"), town.reserved) == (before, 0)
    return is_done


@pytest.mark.parametrize(("setting", "operations", "before"), CASES)
async def test_what_one_commit_has_counted_on_is_not_taken_back_by_another(
    setting: Setting, operations: tuple[Operation, Operation], before: int
) -> None:
    """The one comes between any two calls of the other, which goes on after it or after a part of it."""
    of_first, of_second = await lengths(setting, *operations)
    plans = [(calls, b) for calls in range(of_first) for b in range(1, of_second)]
    plans += [(0, calls, b) for calls in range(of_second) for b in range(1, of_first)]
    ends = {tuple(await check(setting, operations, before, plan)) for plan in plans}
    assert {(False, False), (True, True)} <= ends


@pytest.mark.parametrize(("setting", "operations", "before"), CASES)
async def test_a_commit_that_is_acknowledged_stays_whoever_dies_after_any_call(
    setting: Setting, operations: tuple[Operation, Operation], before: int
) -> None:
    of_first, of_second = await lengths(setting, *operations)
    deaths = [((n,), (lives, FOREVER)) for lives in range(of_first) for n in range(lives + 1)]
    deaths += [((0, n), (FOREVER, lives)) for lives in range(of_second) for n in range(lives + 1)]
    for plan, lives in deaths:
        await check(setting, operations, before, plan, lives)


async def test_an_exchange_that_is_refused_late_leaves_what_a_commit_has_counted_on() -> None:
    """Its goods do not come in, so it is refused; what it holds is what the commit has committed."""
    setting, operations = swaps_for_what_finds_no_room, SWAPS_AND_PAYS
    of_first, of_second = await lengths(setting, *operations)
    plans = [(calls, b) for calls in range(of_first) for b in range(1, of_second)]
    plans += [(0, calls, b) for calls in range(of_second) for b in range(1, of_first)]
    ends = {tuple(await check(setting, operations, 0, plan)) for plan in plans}
    assert ends == {(False, False), (False, True)}


async def test_units_that_are_added_to_a_paid_hold_have_a_fate_of_their_own() -> None:
    """What was kept before says nothing of a commit that begins later, and is refused."""

    async def paid_and_added_to(town: Town) -> None:
        await hold_five(town)
        await Fate(HELD, 0).decide(town.router._shards, Status.OK)
        runs_out_under_the_first_commit(town)

    _, _, told = await play(paid_and_added_to, *PAYS, ())
    assert all(answer is not None and any(answer.status) for answer in told)
    await check(paid_and_added_to, PAYS, 0, ())
    of_first, of_second = await lengths(paid_and_added_to, *PAYS)
    for calls in range(of_first):
        for b in range(1, of_second):
            await check(paid_and_added_to, PAYS, 0, (calls, b))


async def test_a_commit_that_began_before_a_fate_was_decided_shares_it_when_it_is_repeated() -> (
    None
):
    """What an earlier commit has counted on says nothing of what has come to the hold since."""
    operation = commit_all()
    ends = set()
    for lives in range(20):
        town = await Town().stocked()
        await hold_five(town)
        assert await Fate(HELD, 0).decide(town.router._shards, Status.OK) == Status.OK
        is_dead = await dies(town, operation, lives)
        is_done = town.counted("committed") == 5
        await time_goes_by(town, [0, 1])
        _, answer = await operation(town.router)
        assert list(answer.status) == [Status.OK if is_done else Status.HOLD_EXPIRED]
        assert town.counted("committed") == (5 if is_done else 0)
        ends.add(is_done)
        if not is_dead:
            assert ends == {False, True}
            return
    raise AssertionError("it takes ever more calls")


def one_more(at: int) -> Request:
    """To add a unit to a hold, on a shard that has nothing of it."""
    columns = {"sku": at, "location": at, "quantity": 1, "value": TTL}
    return call(batch_id(), Kind.ADD_LINE, HELD, **columns)


async def pays_and_wants_more(town: Town) -> None:
    await hold_five(town)
    await PAYS[0](town.router)
    await town.router.submit(one_more(3))
    assert (town.counted("committed"), town.reserved) == (5, 1)


async def test_a_commit_that_is_repeated_is_not_of_what_was_added_since() -> None:
    """Of the hold's second fate: whether that was decided was not asked."""
    town, answer = await check_deaths(pays_and_wants_more, PAYS[1], shard_map=ShardMap(1, 4))
    assert not any(answer.status)
    assert (town.counted("committed"), town.reserved) == (6, 0)
    await town.router.submit(one_more(4))
    for operation in (*PAYS, *PAYS):
        _, answer = await operation(town.router)
        assert not any(answer.status)
        assert (town.counted("committed"), town.reserved) == (6, 1)
    _, answer = await pay(NEW)(town.router)
    assert not any(answer.status)
    assert (town.counted("committed"), town.reserved) == (7, 0)


async def test_a_commit_that_is_repeated_is_not_of_what_was_added_and_moved_since() -> None:
    """All of the hold had been on one shard, so no fate was decided; nothing had ever left that."""
    for lives in range(1, 5):
        town = await Town(ShardMap(1, 4)).stocked()
        await town.router.reserve(order(HELD, [(1, 1)], [3]))
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(town.shards)}
        is_over = False
        with suppress(Died):
            await PAYS[0](Router(links, lambda: ShardMap(1, 4)))
            is_over = True
        assert (town.counted("committed"), town.reserved) == (3, 0)
        await town.router.submit(one_more(3))
        move = {"sku": 3, "location": 4, "quantity": 1, "value": 3}
        _, answer = await town.router.move(call(NEW, Kind.MOVE, HELD, **move))
        assert not any(answer.status)
        for _ in range(2):
            _, answer = await PAYS[0](town.router)
            assert not any(answer.status)
            assert (town.counted("committed"), town.reserved) == (3, 1)
        if is_over:
            return
    raise AssertionError("it takes ever more calls")
