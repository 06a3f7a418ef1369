"""Two shards: orders over both stand or fall as a whole, and one serves while the other is away."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from actors.catalogue import CatalogueReader
from actors.ports import shard_name
from adapters.client import Batch, Client, HoldState, ReturnLine
from adapters.journal import RedisJournal
from adapters.stack import Stack
from engine.operations import Kind
from engine.status import Status
from onhand.v1 import catalog_pb2, common_pb2, directory_pb2, stock_pb2
from tests.e2e.conftest import (
    Goods,
    Shop,
    Stacks,
    batch_id,
    eventually,
    of,
    on_hold,
    op,
    reserve,
)
from tests.e2e.test_channels_bundles import bundle_of, channel_of, line

S = common_pb2.Status
OK = S.STATUS_OK
# In time; of a connection that was never made, the second.
NO_ANSWER = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}


@pytest.fixture
def stack(stacks: Stacks) -> Stack:
    return stacks.of(shards=2)


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[Client]:
    async with Client.connect(shop.gateway.address) as client:
        yield client


async def both(shop: Shop, skus: int = 1, stock: int = 10) -> tuple[Goods, list[int]]:
    """Goods, and two of their locations: the first is shard 0's, the second shard 1's."""
    goods = await shop.goods(skus=skus, locations=2, stock=stock)
    listed = await shop.gateway.catalog.ListLocations(catalog_pb2.ListLocationsRequest())
    owner = {each.id: each.shard for each in listed.locations}
    places = sorted(goods.locations, key=owner.__getitem__)
    assert [owner[at] for at in places] == [0, 1]
    return goods, places


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that says nothing, as one that was paused or cut off."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def counters(shop: Shop, sku: int, places: list[int]) -> list[dict[str, int]]:
    return [await shop.counters(sku, at) for at in places]


# --- orders over both -----------------------------------------------------------------------------


async def test_an_order_over_both_shards(shop: Shop) -> None:
    goods, places = await both(shop)
    stock, sku = shop.gateway.stock, goods.sku
    order = reserve([(sku, places[1], 2), (sku, places[0], 3)])
    held = await stock.Reserve(order)
    assert held.status == OK
    assert [each.available for each in held.lines] == [8, 7]
    assert (held.hold_id, held.shard) == (order.op_id, 1)
    assert await counters(shop, sku, places) == [
        {"on_hand": 10, "reserved": 3},
        {"on_hand": 10, "reserved": 2},
    ]
    found = await stock.GetHold(stock_pb2.GetHoldRequest(hold_id=held.hold_id))
    assert found.state == stock_pb2.HOLD_STATE_PENDING
    assert {(each.location.id, each.pending) for each in found.lines} == {
        (places[0], 3),
        (places[1], 2),
    }
    assert await stock.Reserve(order) == held  # once
    commit = on_hold(held.hold_id)
    committed = await stock.Commit(commit)
    assert committed.status == OK
    assert await stock.Commit(commit) == committed
    assert (await stock.Fulfil(on_hold(held.hold_id, [(sku, places[0], 1)]))).status == OK
    assert (await stock.Cancel(on_hold(held.hold_id))).status == OK
    assert await counters(shop, sku, places) == [{"on_hand": 9}, {"on_hand": 10}]
    await shop.audit()


async def test_an_order_that_one_shard_refuses_leaves_nothing(shop: Shop) -> None:
    goods, places = await both(shop)
    sku = goods.sku
    for short in (0, 1):
        quantities = [3, 3]
        quantities[short] = 11
        order = reserve([(sku, at, n) for at, n in zip(places, quantities, strict=True)])
        refused = await shop.gateway.stock.Reserve(order)
        assert refused.status == S.STATUS_INSUFFICIENT_STOCK
        assert refused.lines[short].status == S.STATUS_INSUFFICIENT_STOCK
        assert refused.lines[1 - short].status == S.STATUS_LINKED_LINE_REFUSED
        assert refused.lines[1 - short].available == 10
        assert refused.hold_id == b""
        assert await counters(shop, sku, places) == [{"on_hand": 10}] * 2
        again = await shop.gateway.stock.Reserve(order)
        assert [each.status for each in again.lines] == [each.status for each in refused.lines]
        assert await counters(shop, sku, places) == [{"on_hand": 10}] * 2
    unknown = await shop.gateway.stock.Reserve(
        reserve([(sku, places[0], 1), (sku, "nowhere", 1), (sku, places[1], 1)])
    )
    assert unknown.status == S.STATUS_UNKNOWN_LOCATION
    assert await counters(shop, sku, places) == [{"on_hand": 10}] * 2


async def test_part_commit_over_both_releases_the_rest_of_both(shop: Shop) -> None:
    goods, places = await both(shop, skus=2)
    first, second = goods.skus
    stock = shop.gateway.stock
    held = await stock.Reserve(
        reserve([(first, places[0], 5), (second, places[0], 5), (first, places[1], 5)])
    )
    commit = on_hold(held.hold_id, [(first, places[0], 2)], release_rest=True)
    assert (await stock.Commit(commit)).status == OK
    assert await counters(shop, first, places) == [{"on_hand": 10, "committed": 2}, {"on_hand": 10}]
    assert await counters(shop, second, places) == [{"on_hand": 10}] * 2
    fulfilled = await stock.Fulfil(on_hold(held.hold_id))
    assert fulfilled.status == OK
    assert await counters(shop, first, places) == [{"on_hand": 8}, {"on_hand": 10}]
    late = await stock.Cancel(on_hold(held.hold_id))
    assert late.status == S.STATUS_HOLD_NOT_COMMITTED
    await shop.audit()


async def test_what_is_left_is_cancelled_wherever_it_is(shop: Shop) -> None:
    """One shard's part has been handed over: the call is about the rest, and it is done."""
    goods, places = await both(shop)
    stock, sku = shop.gateway.stock, goods.sku
    for gone, left in (places, places[::-1]):
        held = await stock.Reserve(reserve([(sku, at, 2) for at in places]))
        assert (await stock.Commit(on_hold(held.hold_id))).status == OK
        assert (await stock.Fulfil(on_hold(held.hold_id, [(sku, gone, 2)]))).status == OK
        cancel = on_hold(held.hold_id)
        cancelled = await stock.Cancel(cancel)
        assert (cancelled.status, cancelled.lines[0].status) == (OK, OK)
        assert await stock.Cancel(cancel) == cancelled
        assert "committed" not in await shop.counters(sku, left)
    assert await counters(shop, sku, places) == [{"on_hand": 8}] * 2
    await shop.audit()


async def test_scenario_05_orders_over_two_shards_that_cross(shop: Shop) -> None:
    """Many orders over both shards, in opposite orders: none waits for ever, none is half there."""
    goods, places = await both(shop, stock=12)
    sku = goods.sku
    answers = await asyncio.gather(
        *(
            shop.gateway.stock.Reserve(
                reserve([(sku, at, 1) for at in (places if i % 2 else places[::-1])]), timeout=20
            )
            for i in range(60)
        )
    )
    won = sum(answer.status == OK for answer in answers)
    assert 0 < won <= 12
    expected = {"on_hand": 12, "reserved": won}
    assert await counters(shop, sku, places) == [expected, expected]
    await shop.audit()


async def test_a_shard_refuses_what_is_not_its_own(shop: Shop) -> None:
    goods, places = await both(shop)
    sale = await shop.shards[0].stock.Sale(of([(goods.sku, places[1], 1)]))
    assert sale.status == S.STATUS_WRONG_SHARD
    order = await shop.shards[1].stock.Reserve(
        reserve([(goods.sku, places[1], 1), (goods.sku, places[0], 1)])
    )
    assert [each.status for each in order.lines] == [
        S.STATUS_LINKED_LINE_REFUSED,
        S.STATUS_WRONG_SHARD,
    ]
    assert await counters(shop, goods.sku, places) == [{"on_hand": 10}] * 2


async def test_parts_of_a_hold_on_both_shards_stand_or_fall_together(shop: Shop) -> None:
    goods, places = await both(shop)
    stock, sku = shop.gateway.stock, goods.sku
    held = await stock.Reserve(reserve([(sku, at, 3) for at in places]))
    parts = [(sku, places[0], 1), (sku, places[1], 4)]
    refused = await stock.Commit(on_hold(held.hold_id, parts))
    assert [each.status for each in refused.lines] == [
        S.STATUS_LINKED_LINE_REFUSED,
        S.STATUS_EXCEEDS_HOLD,
    ]
    assert await counters(shop, sku, places) == [{"on_hand": 10, "reserved": 3}] * 2
    assert (await stock.Commit(on_hold(held.hold_id, [(sku, at, 1) for at in places]))).status == OK
    expected = {"on_hand": 10, "reserved": 2, "committed": 1}
    assert await counters(shop, sku, places) == [expected] * 2


# --- exchanges ------------------------------------------------------------------------------------


async def test_an_exchange_over_both_shards(shop: Shop, client: Client) -> None:
    """Bought at the one, and given back at the other for what is there and what is here."""
    goods, (here, there) = await both(shop, skus=2)
    shirt, coat = goods.skus
    held = await client.reserve([(shirt, here, 2)], commit_now=True)
    assert (await client.fulfil(held)).ok
    back = [ReturnLine(shirt, there, 2, against=held.hold_id)]
    for quantity, counted in ((11, 0), (10, 2)):
        lines = [(coat, here, 1), (coat, there, quantity), (shirt, there, 11)]
        op_id = os.urandom(16)
        answers = [
            await client.exchange(back, lines, commit_now=True, op_id=op_id) for _ in range(2)
        ]
        assert answers[0].ok == answers[1].ok == (quantity == 10)
        assert [x.status for x in answers[0].lines] == [x.status for x in answers[1].lines]
        found = await client.get_hold(held.hold_id)
        assert [line.returned for line in found.lines] == [counted]
    first, second = await counters(shop, coat, [here, there])
    assert (first, second) == (
        {"on_hand": 10, "committed": 1},
        {"on_hand": 10, "committed": 10},
    )
    assert await shop.counters(shirt, there) == {"on_hand": 12, "committed": 11}
    assert await shop.counters(shirt, here) == {"on_hand": 8}
    order = await client.get_hold(answers[0].hold_id)
    assert order.state.name == "COMMITTED"
    await shop.audit()


# --- batches --------------------------------------------------------------------------------------


async def test_a_batch_is_split_and_answered_in_its_order(shop: Shop) -> None:
    goods, places = await both(shop)
    lines, sku = 1_000, goods.sku
    at = np.where(np.arange(lines) % 3 == 0, places[0], places[1])
    quantity = np.where(np.arange(lines) % 10 == 7, 0, 2)  # each tenth is refused
    batch = stock_pb2.SubmitRequest(
        op_id=batch_id(),
        lines=lines,
        kind=bytes([Kind.RECEIVE]),
        sku=np.array([sku], "<u4").tobytes(),
        location=at.astype("<u4").tobytes(),
        quantity=quantity.astype("<i8").tobytes(),
        want_available=True,
    )
    reply = await shop.gateway.stock.Submit(batch)
    wrong = S.STATUS_INVALID_QUANTITY
    assert list(reply.status) == [0 if each else wrong for each in quantity.tolist()]
    available = np.frombuffer(reply.available, "<i8")
    for place in places:
        mine = (at == place) & (quantity > 0)
        assert available[mine].tolist() == list(range(12, 12 + 2 * int(mine.sum()), 2))
    assert await shop.gateway.stock.Submit(batch) == reply  # once
    received = [int(quantity[at == place].sum()) for place in places]
    assert await counters(shop, sku, places) == [{"on_hand": 10 + n} for n in received]
    batch.want_available = False
    reused = await shop.gateway.stock.Submit(batch)
    assert set(reused.status) == {S.STATUS_OP_ID_REUSED}


async def test_holds_of_a_split_batch_have_the_ids_of_their_lines(shop: Shop) -> None:
    goods, places = await both(shop)
    base = batch_id()
    batch = stock_pb2.SubmitRequest(
        op_id=base,
        lines=4,
        kind=bytes([Kind.RESERVE]),
        sku=np.array([goods.sku], "<u4").tobytes(),
        location=np.array([places[0], places[1]] * 2, "<u4").tobytes(),
        quantity=np.array([1, 2, 3, 4], "<i8").tobytes(),
        value=np.array([60_000], "<i8").tobytes(),
    )
    assert (await shop.gateway.stock.Submit(batch)).status == b""
    for index in range(4):
        hold = base[:15] + bytes([index])
        found = await shop.gateway.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=hold))
        assert [each.pending for each in found.lines] == [index + 1]
        assert (await shop.gateway.stock.Release(on_hold(hold))).status == OK
    assert await counters(shop, goods.sku, places) == [{"on_hand": 10}] * 2


async def test_the_client_splits_a_batch_itself(shop: Shop, client: Client) -> None:
    goods, places = await both(shop, skus=50)
    rng = np.random.default_rng(7)
    sku, at = rng.choice(goods.skus, 5_000), rng.choice(places, 5_000)
    result = await client.submit(
        Batch(kind=Kind.RECEIVE, sku=sku, location=at, quantity=1), want_available=True
    )
    assert result.ok
    names = [(each, place) for place in places for each in goods.skus]
    cells = await client.get_cells(names)
    received = [int(((sku == each) & (at == place)).sum()) for each, place in names]
    assert [cell.on_hand - 10 for cell in cells] == received
    await shop.audit()


# --- one without the other ------------------------------------------------------------------------


async def test_one_shard_serves_while_the_other_is_stopped(shop: Shop, stack: Stack) -> None:
    """Through the gateway too; and what was sent to the stopped one has one effect in the end."""
    goods, places = await both(shop)
    sku = goods.sku
    waiting = of([(sku, places[0], 1)])
    crossing = reserve([(sku, places[0], 2), (sku, places[1], 2)])
    with stopped(await asyncio.to_thread(stack.cluster.pid, "shard-0")):
        calls = [
            asyncio.ensure_future(call)
            for call in (
                shop.gateway.stock.Sale(waiting, timeout=0.5),
                shop.gateway.stock.Reserve(crossing, timeout=0.5),
                shop.shards[0].stock.Sale(of([(sku, places[0], 1)]), timeout=0.5),
            )
        ]
        for _ in range(50):
            for stock in (shop.gateway.stock, shop.shards[1].stock):
                receipt = await stock.Receive(of([(sku, places[1], 1)]), timeout=5)
                assert receipt.status == OK
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() in NO_ANSWER
    assert (await shop.gateway.stock.Sale(waiting, timeout=20)).status == OK
    assert (await shop.gateway.stock.Reserve(crossing, timeout=20)).status == OK
    first, second = await counters(shop, sku, places)
    # Whether the third call was still taken up is open: its caller never asked again.
    assert first in ({"on_hand": 9, "reserved": 2}, {"on_hand": 8, "reserved": 2})
    assert second == {"on_hand": 110, "reserved": 2}
    await shop.audit()


async def test_one_shard_serves_while_the_other_is_killed(
    shop: Shop, stack: Stack, client: Client
) -> None:
    goods, places = await both(shop)
    sku, sold = goods.sku, 0
    before, there = await shop.status(0), await shop.status(1)
    await asyncio.to_thread(stack.kill_shard, 0)
    other = asyncio.create_task(client.sale([(sku, places[0], 1)]))  # waits until it is back
    while not other.done() or sold < 20:
        for stock in (shop.gateway.stock, shop.shards[1].stock):
            answer = await stock.Sale(of([(sku, places[1], 1)]), timeout=5)
            assert answer.status == OK
            sold += 1
    assert (await other).ok

    def is_back() -> bool:
        return int(stack.status(0)["epoch"]) == before["epoch"] + 1

    await asyncio.to_thread(eventually, is_back)
    shard_map = await shop.gateway.directory.GetShardMap(directory_pb2.GetShardMapRequest())
    assert [each.epoch for each in shard_map.shards] == [before["epoch"] + 1, there["epoch"]]
    cells = await client.get_cells([(sku, at) for at in places])
    assert [cell.on_hand for cell in cells] == [9, 10 - sold]
    await shop.audit()


async def test_an_order_over_both_while_one_is_killed(
    shop: Shop, stack: Stack, client: Client
) -> None:
    """Whatever the moment, an order is held on both shards or on neither, once it is answered."""
    goods, places = await both(shop, stock=1_000)
    won = 0

    async def orders() -> None:
        nonlocal won
        for _ in range(60):
            held = await client.reserve([(goods.sku, at, 1) for at in places])
            assert held.ok, held
            won += 1

    working = [asyncio.create_task(orders()) for _ in range(4)]
    await asyncio.sleep(0.1)
    await asyncio.to_thread(stack.kill_shard, 1)
    await asyncio.gather(*working)
    cells = await client.get_cells([(goods.sku, at) for at in places])
    assert [cell.reserved for cell in cells] == [won, won] == [240, 240]
    await shop.audit()


async def test_a_gateway_that_another_one_has_replaced_ends_itself(
    shop: Shop, stack: Stack, client: Client
) -> None:
    """As soon as a shard has heard of the other one, before it can write between two of its steps."""
    goods, places = await both(shop)
    reader = CatalogueReader(RedisJournal(stack.redis_url, "onhand:main:catalogue"))
    before = await reader.refresh()
    shard = stack.cluster.actor(shard_name(0))
    await asyncio.to_thread(shard.call_sync, "cells", before.epoch + 1, [])
    lines = [(goods.sku, at, 1) for at in places]
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await shop.gateway.stock.Reserve(reserve(lines), timeout=5)
    assert told.value.code() in NO_ANSWER
    assert (await client.reserve(lines)).ok  # it is started again, with an epoch of its own
    assert (await reader.refresh()).epoch == before.epoch + 1
    await reader.journal.close()
    await shop.audit()


async def test_a_gateway_that_is_killed_leaves_nothing_half_done(
    shop: Shop, stack: Stack, client: Client
) -> None:
    """Though nobody sends the calls again: its successor does what it had begun."""
    goods, places = await both(shop, stock=1_000)
    for number in range(3):
        orders = [reserve([(goods.sku, at, 1) for at in places]) for _ in range(100)]
        calls = [
            asyncio.ensure_future(shop.gateway.stock.Reserve(each, timeout=5)) for each in orders
        ]
        await asyncio.sleep(0.01 * (1 + number))
        os.kill(await asyncio.to_thread(stack.cluster.pid, "gateway"), signal.SIGKILL)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(each, grpc.aio.AioRpcError) for each in answers)
        assert (await client.reserve([(goods.sku, at, 1) for at in places])).ok

        async def states(hold_id: bytes) -> list[int]:
            asked = stock_pb2.GetHoldRequest(hold_id=hold_id)
            found = [await shard.stock.GetHold(asked) for shard in shop.shards]
            return [each.state for each in found]

        ends = asyncio.get_running_loop().time() + 20
        for order, answer in zip(orders, answers, strict=True):
            while len(set(await states(order.op_id))) > 1:
                assert asyncio.get_running_loop().time() < ends, (
                    "an order is held on one shard alone"
                )
                await asyncio.sleep(0.1)
            if not isinstance(answer, BaseException):
                assert (await states(order.op_id))[0] == stock_pb2.HOLD_STATE_PENDING
    first, second = await counters(shop, goods.sku, places)
    assert first == second
    await shop.audit()


# --- bundles and channels -------------------------------------------------------------------------


async def test_bundles_and_rules_of_channels(shop: Shop) -> None:
    goods = await shop.goods(skus=2, locations=2, stock=10)
    first, second = goods.skus
    here, there = goods.locations
    box = await bundle_of(shop, (first, 2), (second, 1))
    code, _ = await channel_of(shop, buffer=3)
    stock = shop.gateway.stock

    def order(*quantities: int) -> stock_pb2.ReserveRequest:
        lines = [(box, at, n) for at, n in zip(goods.locations, quantities, strict=True)]
        request = reserve(lines)
        request.channel = code
        return request

    refused = await stock.Reserve(order(1, 4))
    assert [each.status for each in refused.lines] == [
        Status.LINKED_LINE_REFUSED,
        Status.INSUFFICIENT_STOCK,
    ]
    for at in goods.locations:
        assert await shop.counters(first, at) == {"on_hand": 10}
    held = await stock.Reserve(order(1, 3))
    assert held.status == OK
    assert await shop.counters(first, there) == {"on_hand": 10, "reserved": 6}
    assert (await stock.Commit(on_hold(held.hold_id))).status == OK
    assert (await stock.Fulfil(on_hold(held.hold_id, [(box, there, 3)]))).status == OK
    assert await shop.counters(second, there) == {"on_hand": 7}

    # It comes back where it was not handed over, and no more of it than was.
    back = stock_pb2.ReturnLine(line=line(box, here, 2), against=held.hold_id)
    answers = [
        (await stock.Return(stock_pb2.ReturnRequest(op_id=op(), lines=[back]))).status
        for _ in range(2)
    ]
    assert answers == [Status.OK, Status.EXCEEDS_HOLD]
    assert await shop.counters(first, here) == {"on_hand": 14, "committed": 2}
    await shop.audit()


@pytest.mark.parametrize("dies", [False, True], ids=["alone", "while a shard is killed"])
async def test_the_hold_of_a_bundle_moves_whole_to_the_other_shard(
    shop: Shop, stack: Stack, client: Client, dies: bool
) -> None:
    goods, (here, there) = await both(shop, skus=2)
    first, second = goods.skus
    box = await bundle_of(shop, (first, 2), (second, 1))
    held = await client.reserve([(box, here, 3)])

    async def stock(counter: str) -> list[list[int]]:
        """Of each component here and there, as the shards have it, wherever they serve now."""
        found = [
            [(await client.get_cells([(sku, at)]))[0] for at in (here, there)]
            for sku in (first, second)
        ]
        return [[getattr(cell, counter) for cell in cells] for cells in found]

    # All components go or none: there is enough of the first, and too little of the second.
    assert (await client.sale([(second, there, 9)])).ok
    refused = await client.move(held, there, [(box, here, 2)])
    assert [line.status for line in refused.lines] == [Status.INSUFFICIENT_STOCK]
    assert await stock("reserved") == [[6, 0], [3, 0]]
    assert (await client.receive([(second, there, 9)])).ok

    if dies:
        await asyncio.to_thread(stack.kill_shard, 1)
    op_id = op()
    for _ in range(2):  # the second time: the same answer, and no second effect
        moved = await client.move(held, there, [(box, here, 2)], op_id=op_id)
        assert [line.status for line in moved.lines] == [Status.OK]
    assert await stock("reserved") == [[2, 4], [1, 2]]
    assert await stock("on_hand") == [[10, 10], [10, 10]]

    # It is one hold still: committed as a whole, and handed over box by box where they are.
    if dies:
        await asyncio.to_thread(stack.kill_shard, 0)
    assert (await client.commit(held.hold_id)).ok
    assert await stock("committed") == [[2, 4], [1, 2]]
    assert (await client.fulfil(held.hold_id, [(box, there, 2)])).ok
    none_left = await client.fulfil(held.hold_id, [(box, there, 1)])
    assert none_left.status is Status.HOLD_NOT_COMMITTED
    assert (await client.fulfil(held.hold_id, [(box, here, 1)])).ok
    assert await stock("on_hand") == [[8, 6], [9, 8]]
    assert await stock("committed") == await stock("reserved") == [[0, 0], [0, 0]]

    told = await client.get_history(held.hold_id)
    assert told.hold is not None
    assert told.hold.state is HoldState.FULFILLED
    handed_over: Counter[tuple[int, int]] = Counter()
    for each in told.hold.lines:
        handed_over[each.sku, each.location] += each.fulfilled
    assert handed_over == {
        (first, here): 2,
        (second, here): 1,
        (first, there): 4,
        (second, there): 2,
    }
    # Between shards a move is told by its steps: units leave the hold here and join it there.
    assert told.complete
    done = Counter(
        (each.kind, each.sku, each.location, each.quantity)
        for each in told.events
        if each.status is Status.OK and each.sku
    )
    assert done == Counter(
        (kind, sku, at, units * boxes)
        for kind, at, boxes in (
            (Kind.RESERVE, here, 3),
            (Kind.RELEASE, here, 2),
            (Kind.ADD_LINE, there, 2),
            (Kind.FULFIL, there, 2),
            (Kind.FULFIL, here, 1),
        )
        for sku, units in ((first, 2), (second, 1))
    )
    await shop.audit()
