"""Transfers over reference machines: nothing is lost or doubled, whenever the router dies."""

import hashlib
import os
from collections import Counter
from typing import Any

import pytest

from actors import transfers
from actors.router import Router
from engine import limits
from engine.operations import Answer, Flag, Kind, Request, id_to_pair, pair_to_id
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import Incoming
from tests.unit.test_router import MAP, TTL, Town, batch_id, on, town
from tests.unit.test_spanning import OP, Mortal, Operation, check_deaths, state_of

__all__ = ["town"]

TRANSFER = bytes(15) + b"t"
SOURCE = 1  # shard 0; it has ten of everything, as has every location
TO_OTHER_SHARD, TO_SAME_SHARD, TO_BOTH_SHARDS = 2, 3, 5
both_ways = pytest.mark.parametrize("to", [TO_OTHER_SHARD, TO_SAME_SHARD])


def on_transfer(
    kind: Kind, at: int, *lines: tuple[int, int], op_id: bytes = b"", moment_ns: int = 0
) -> Request:
    skus, quantities = zip(*lines, strict=True)
    return Request.of(
        op_id or os.urandom(16),
        len(lines),
        want_available=True,
        kind=kind,
        sku=skus,
        location=at,
        quantity=quantities,
        occurred_at_ns=moment_ns,
        **on(TRANSFER),
    )


async def asked_for(town: Town, *lines: tuple[int, int]) -> None:
    """A transfer of so much of each SKU."""
    skus, quantities = zip(*lines, strict=True)
    flags = [Flag.LINKED | Flag.COMMIT_NOW] * (len(lines) - 1) + [Flag.COMMIT_NOW]
    columns = {"sku": skus, "quantity": quantities, "location": SOURCE, "value": TTL}
    request = Request.of(TRANSFER, len(lines), kind=Kind.RESERVE, flags=flags, **columns)
    _, answer = await town.router.reserve(request)
    assert not any(answer.status)


def shipping(
    to: int, *lines: tuple[int, int], op_id: bytes = b"", at_ms: int = 0, moment_ns: int = 0
) -> Operation:
    request = on_transfer(Kind.FULFIL, SOURCE, *lines, op_id=op_id, moment_ns=moment_ns)
    return lambda router: transfers.ship(router, request, to, at_ms)


def receiving(to: int, *lines: tuple[int, int], op_id: bytes = b"") -> Operation:
    request = on_transfer(Kind.RECEIVE, to, *lines, op_id=op_id)
    return lambda router: transfers.receive(router, request)


async def done(operation: Operation, town: Town) -> Answer:
    _, answer = await operation(town.router)
    assert not any(answer.status)
    return answer


async def cell(town: Town, sku: int, at: int) -> Any:
    (found,) = await town.router.cells([(sku, at)])
    return found


async def states_of(town: Town) -> list[tuple[int, int]]:
    """(outstanding, received) of the lines of all records, in order."""
    _, records = await transfers.look_up(town.router, TRANSFER, 0, 0)
    return [(line.outstanding, line.received) for each in records for line in each.lines]


@both_ways
async def test_goods_that_are_shipped_are_on_their_way(to: int) -> None:
    async def setting(town: Town) -> None:
        await asked_for(town, (1, 7), (2, 3))

    operation = shipping(to, (1, 5), (2, 4), (3, 1), (2, 3), op_id=OP, at_ms=1000)
    town, answer = await check_deaths(setting, operation)
    exceeds, not_in = Status.EXCEEDS_HOLD, Status.NOT_IN_HOLD
    assert list(answer.status) == [Status.OK, exceeds, not_in, Status.OK]
    there = await cell(town, 1, SOURCE)
    assert (there.on_hand, there.committed) == (5, 2)
    assert (await cell(town, 1, to)).incoming == 5
    assert (await cell(town, 2, to)).incoming == 3
    hold, (record,) = await transfers.look_up(town.router, TRANSFER, SOURCE, to)
    assert hold is not None
    assert record.expected_at_ns == 1000 * limits.NS_PER_MS


@both_ways
async def test_a_transfer_in_parts_has_record_after_record(to: int) -> None:
    async def setting(town: Town) -> None:
        await asked_for(town, (1, 8))
        await done(shipping(to, (1, 2)), town)
        await done(receiving(to, (1, 2)), town)
        await done(shipping(to, (1, 1)), town)
        await done(receiving(to, (1, 1)), town)

    town, answer = await check_deaths(setting, shipping(to, (1, 3), op_id=OP))
    assert answer.status == b"\0"
    assert await states_of(town) == [(0, 2), (0, 1), (3, 0)]
    await done(receiving(to, (1, 1)), town)
    last = receiving(to, (1, 4))  # two of them nobody sent
    told = await done(last, town)
    assert (await last(town.router))[1] == told
    assert await states_of(town) == [(0, 2), (0, 1), (0, 5)]
    there = await cell(town, 1, to)
    assert (there.on_hand, there.incoming) == (18, 0)
    here = await cell(town, 1, SOURCE)
    assert (here.on_hand, here.committed) == (4, 2)


@both_ways
async def test_a_repeat_after_all_has_come_ships_nothing_more(town: Town, to: int) -> None:
    await asked_for(town, (1, 5))
    ship = shipping(to, (1, 2))
    told = await done(ship, town)
    await done(receiving(to, (1, 2)), town)
    assert (await ship(town.router))[1] == told
    assert (await cell(town, 1, to)).incoming == 0
    assert await states_of(town) == [(0, 2)]


@both_ways
async def test_what_cannot_be_expected_is_taken_back(to: int) -> None:
    async def setting(town: Town) -> None:
        await asked_for(town, (1, 5), (2, 5))
        full = Request.of(
            batch_id(), 1, kind=Kind.EXPECT, sku=1, location=to, quantity=limits.MAX_QUANTITY,
            **on(transfers.record_id(TRANSFER, 0)),
        )  # fmt: skip
        _, answer = await town.router.submit(full)
        assert answer.status == b"\0"

    town, answer = await check_deaths(setting, shipping(to, (1, 4), (2, 4), op_id=OP))
    assert list(answer.status) == [Status.BALANCE_LIMIT, Status.OK]
    here = [await cell(town, sku, SOURCE) for sku in (1, 2)]
    assert [(each.on_hand, each.committed) for each in here] == [(10, 5), (6, 1)]
    assert (await cell(town, 2, to)).incoming == 4


@both_ways
async def test_a_shipment_that_is_refused_takes_nothing_back_of_an_earlier_one(
    town: Town, to: int
) -> None:
    await asked_for(town, (1, 3), (2, 3))
    await done(shipping(to, (1, 2), (2, 1)), town)
    _, answer = await shipping(to, (1, 2), (2, 1))(town.router)
    assert list(answer.status) == [Status.EXCEEDS_HOLD, Status.OK]
    for sku in (1, 2):
        here, there = await cell(town, sku, SOURCE), await cell(town, sku, to)
        assert (here.on_hand, here.committed, there.incoming) == (8, 1, 2)


@both_ways
async def test_what_had_left_when_the_source_was_counted_leaves_it_once(to: int) -> None:
    """Also what cannot be expected, and is taken back as of the same moment."""
    left = 10**18

    async def setting(town: Town) -> None:
        await asked_for(town, (1, 5), (2, 5))
        full = Request.of(
            batch_id(), 1, kind=Kind.EXPECT, sku=1, location=to, quantity=limits.MAX_QUANTITY,
            **on(transfers.record_id(TRANSFER, 0)),
        )  # fmt: skip
        assert not any((await town.router.submit(full))[1].status)
        for at in (SOURCE, to):
            columns = {"kind": Kind.COUNT, "sku": [1, 2], "location": at, "quantity": 6}
            _, answer = await town.router.submit(Request.of(batch_id(), 2, **columns))
            assert not any(answer.status)

    operation = shipping(to, (1, 4), (2, 4), op_id=OP, moment_ns=left)
    town, answer = await check_deaths(setting, operation)
    assert list(answer.status) == [Status.BALANCE_LIMIT, Status.OK]
    here = [await cell(town, sku, SOURCE) for sku in (1, 2)]
    assert [(each.on_hand, each.committed) for each in here] == [(6, 5), (6, 1)]
    there = await cell(town, 2, to)
    assert (there.on_hand, there.incoming) == (6, 4)


every_way = pytest.mark.parametrize("to", [TO_OTHER_SHARD, TO_SAME_SHARD, TO_BOTH_SHARDS])
EVERY_SKU = range(1, 9)


def losing(to: int, *lines: tuple[int, int], op_id: bytes = b"") -> Operation:
    """Lines of (SKU, quantity); none: all that is on its way."""
    request = on_transfer(Kind.CANCEL_INCOMING, to, *(lines or [(0, 0)]), op_id=op_id)
    return lambda router: transfers.lose(router, request)


def cancelling(*lines: tuple[int, int], op_id: bytes = b"") -> Operation:
    """Lines of (SKU, quantity); none: all that is not shipped."""
    request = on_transfer(Kind.CANCEL, SOURCE, *(lines or [(0, 0)]), op_id=op_id)
    return lambda router: router.on_hold(request, SOURCE)


async def shipped(town: Town, to: int) -> None:
    """Of each SKU 4 are asked for, and 3 have been sent."""
    await asked_for(town, *[(sku, 4) for sku in EVERY_SKU])
    await done(shipping(to, *[(sku, 3) for sku in EVERY_SKU]), town)


@every_way
async def test_goods_arrive_once_whenever_the_router_dies(to: int) -> None:
    lines = [(sku, 3 if sku < 5 else 5) for sku in EVERY_SKU]
    operation = receiving(to, *lines, (3, 1), op_id=OP)
    town, answer = await check_deaths(
        lambda town: shipped(town, to), operation, at_least=1 + (to == TO_BOTH_SHARDS)
    )
    assert not any(answer.status)
    units = Counter(dict(lines)) + Counter({3: 1})
    for sku in EVERY_SKU:
        there = await cell(town, sku, to)
        assert (there.on_hand, there.incoming) == (10 + units[sku], 0)
    assert sorted(await states_of(town)) == sorted((0, units[sku]) for sku in EVERY_SKU)


@every_way
@pytest.mark.parametrize("lines", [[], [(sku, 3 if sku < 5 else 1) for sku in EVERY_SKU]])
async def test_goods_are_lost_once_whenever_the_router_dies(
    to: int, lines: list[tuple[int, int]]
) -> None:
    operation = losing(to, *lines, op_id=OP)
    town, answer = await check_deaths(
        lambda town: shipped(town, to), operation, at_least=1 + (to == TO_BOTH_SHARDS)
    )
    assert not any(answer.status)
    left = dict.fromkeys(EVERY_SKU, 3)
    for sku, units in lines or left.items():
        left[sku] -= units
    for sku in EVERY_SKU:
        there = await cell(town, sku, to)
        assert (there.on_hand, there.incoming) == (10, left[sku])


@pytest.mark.parametrize("lines", [[], [(1, 1), (2, 2)]])
async def test_what_is_not_sent_is_cancelled_once_whenever_the_router_dies(
    lines: list[tuple[int, int]],
) -> None:
    async def setting(town: Town) -> None:
        await asked_for(town, (1, 4), (2, 4))
        await done(shipping(TO_OTHER_SHARD, (1, 2), (2, 2)), town)

    town, answer = await check_deaths(setting, cancelling(*lines, op_id=OP), at_least=1)
    assert not any(answer.status)
    here = [await cell(town, sku, SOURCE) for sku in (1, 2)]
    assert [each.committed for each in here] == ([1, 0] if lines else [0, 0])
    _, answer = await shipping(TO_OTHER_SHARD, (1, 2))(town.router)
    assert any(answer.status)
    there = await cell(town, 1, TO_OTHER_SHARD)
    assert there.incoming == 2


@every_way
async def test_what_is_sent_after_a_loss_is_not_lost_by_a_repeat(town: Town, to: int) -> None:
    lines = [(sku, 1) for sku in EVERY_SKU]
    await asked_for(town, *[(sku, 4) for sku in EVERY_SKU])
    await done(shipping(to, *lines[:1]), town)
    lost = losing(to)
    told = await done(lost, town)
    for units in (1, 2):
        await done(shipping(to, *[(sku, units) for sku in EVERY_SKU]), town)
        if units == 1:
            await done(receiving(to, *lines), town)
    before = state_of(town)
    assert (await lost(town.router))[1] == told
    assert state_of(town) == before
    assert (await cell(town, 2, to)).incoming == 2


@both_ways
async def test_what_is_lost_is_closed(town: Town, to: int) -> None:
    await asked_for(town, (1, 5), (2, 5))
    await done(shipping(to, (1, 5), (2, 5)), town)
    await done(receiving(to, (1, 1)), town)
    part = losing(to, (1, 2))
    for _ in range(2):
        await done(part, town)
        assert await states_of(town) == [(2, 1), (5, 0)]
    _, answer = await losing(to, (1, 3), (3, 1))(town.router)
    assert list(answer.status) == [Status.EXCEEDS_HOLD, Status.NOT_IN_HOLD]
    rest = losing(to)
    for _ in range(2):
        await done(rest, town)
        assert await states_of(town) == [(0, 1), (0, 0)]
    _, answer = await losing(to)(town.router)
    assert list(answer.status) == [Status.HOLD_NOT_PENDING]
    assert (await cell(town, 1, to)).incoming == 0


async def test_what_is_not_known_is_told(town: Town) -> None:
    _, answer = await shipping(2, (1, 1))(town.router)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    _, answer = await receiving(2, (1, 1))(town.router)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    _, answer = await losing(2)(town.router)
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    assert await transfers.look_up(town.router, TRANSFER, 0, 0) == (None, [])


async def test_a_transfer_to_a_location_over_two_shards(town: Town) -> None:
    lines = [(sku, 2) for sku in range(1, 9)]
    await asked_for(town, *lines)
    await done(shipping(5, *lines), town)
    await done(receiving(5, *lines[:4]), town)
    hold, (record,) = await transfers.look_up(town.router, TRANSFER, SOURCE, 5)
    assert hold is not None
    assert sum(line.received for line in record.lines) == 8
    incoming = [(await cell(town, sku, 5)).incoming for sku in range(1, 9)]
    assert incoming == [0] * 4 + [2] * 4


async def test_what_is_lost_is_closed_though_one_shard_is_records_ahead() -> None:
    lines = [(sku, 4) for sku in range(1, 9)]
    of_one_shard = [sku for sku in range(1, 9) if MAP.shard_of(sku, 5) == 0]

    async def setting(town: Town) -> None:
        await asked_for(town, *lines)
        await done(shipping(5, *[(sku, 1) for sku, _ in lines]), town)
        # Nothing is outstanding on that shard, so what is sent next is in a second record there.
        await done(receiving(5, *[(sku, 1) for sku in of_one_shard]), town)
        await done(shipping(5, *[(sku, 2) for sku, _ in lines]), town)

    town, answer = await check_deaths(setting, losing(5, op_id=OP))
    assert answer.status == b"\0"
    assert town.counted("incoming") == 0
    _, answer = await losing(5)(town.router)
    assert list(answer.status) == [Status.HOLD_NOT_PENDING]


async def test_goods_arrive_in_the_record_that_has_them_though_one_shard_is_records_ahead() -> None:
    """Also where an earlier one is open for other goods, on the other shard."""
    here, there = (
        next(sku for sku in EVERY_SKU if MAP.shard_of(sku, 5) == shard) for shard in (0, 1)
    )

    async def setting(town: Town) -> None:
        await asked_for(town, (here, 4), (there, 4))
        await done(shipping(5, (here, 1), (there, 1)), town)
        await done(receiving(5, (here, 1)), town)
        await done(shipping(5, (here, 2)), town)

    town, answer = await check_deaths(setting, receiving(5, (here, 2), op_id=OP), at_least=1)
    assert not any(answer.status)
    assert town.counted("incoming") == 1
    assert sorted(await states_of(town)) == [(0, 1), (0, 2), (1, 0)]
    await done(losing(5), town)
    assert town.counted("incoming") == 0


EARLIER: list[list[Any]] = [
    [],
    [shipping(TO_BOTH_SHARDS, (1, 2), (2, 1)), losing(TO_BOTH_SHARDS)],
    [shipping(TO_BOTH_SHARDS, (1, 2), (2, 1)), receiving(TO_BOTH_SHARDS, (1, 2), (2, 1))],
    [shipping(TO_BOTH_SHARDS, (1, 2), (2, 1)), receiving(TO_BOTH_SHARDS, (2, 1))],
]


@pytest.mark.parametrize("earlier", EARLIER)
@pytest.mark.parametrize("lines", [[(1, 2)], [(1, 2), (2, 2)], [(3, 1), (1, 2)]])
async def test_goods_that_come_to_a_shard_that_none_were_sent_to_are_a_surplus(
    earlier: list[Any], lines: list[tuple[int, int]]
) -> None:
    """As on one shard. They were refused: the record was looked for where others of them are."""
    assert [MAP.shard_of(sku, TO_BOTH_SHARDS) for sku in (1, 2, 3)] == [0, 1, 0]

    async def setting(town: Town) -> None:
        await asked_for(town, (1, 4), (2, 3))
        for operation in earlier:
            await operation(town.router)
        await done(shipping(TO_BOTH_SHARDS, (2, 2)), town)

    operation = receiving(TO_BOTH_SHARDS, *lines, op_id=OP)
    town, answer = await check_deaths(setting, operation, at_least=1)
    assert not any(answer.status)
    one, answer = await check_deaths(setting, operation, at_least=1, shard_map=ShardMap(1, 1))
    assert not any(answer.status)
    for sku in (1, 2, 3):
        there, here = [await cell(each, sku, TO_BOTH_SHARDS) for each in (town, one)]
        assert (there.on_hand, there.incoming) == (here.on_hand, here.incoming)
    there, here = [map(sum, zip(*await states_of(each), strict=True)) for each in (town, one)]
    assert list(there) == list(here)


class Doubtful(Mortal):
    """A link to an owner that was replaced, and shows what it had to all who need not be sure."""

    async def incoming(self, incoming_id: bytes, *, sure: bool = False) -> Incoming | None:
        return await super().incoming(incoming_id, sure=sure) if sure else None


@both_ways
async def test_goods_are_booked_by_the_word_of_the_owner_as_of_now(town: Town, to: int) -> None:
    await asked_for(town, (1, 9))
    for units in (3, 4):
        await done(shipping(to, (1, units)), town)
        links = {number: Doubtful(shard, [99]) for number, shard in enumerate(town.shards)}
        router = Router(links, lambda: MAP)
        _, answer = await receiving(to, (1, 3))(router)
        assert answer.status == b"\0"
    assert await states_of(town) == [(0, 3), (1, 3)]
    _, answer = await losing(to)(router)
    assert answer.status == b"\0"
    assert await states_of(town) == [(0, 3), (0, 3)]


def test_the_id_of_a_record_is_as_the_contract_says() -> None:
    named = TRANSFER + b"incoming" + b"\2\0\0\0"
    told = hashlib.blake2b(named, digest_size=16).digest()
    assert transfers.record_id(TRANSFER, 2) == told


async def test_one_line_that_came_packed_is_about_the_record_and_not_the_transfer(
    town: Town,
) -> None:
    columns = (2, 0, *id_to_pair(TRANSFER), 0, 1, TO_SAME_SHARD, 0, 0, Kind.RECEIVE, 0)
    _, named = await transfers._of_records(town.router, Request.one(os.urandom(16), *columns))
    halves = (int(named.columns[name][0]) for name in ("hold_hi", "hold_lo"))
    assert pair_to_id(*halves) == transfers.record_id(TRANSFER, 0)
    assert not named.packed  # a machine would go by it
