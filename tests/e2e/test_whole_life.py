"""The whole life of stock with the real client: over two shards, by the gateway and direct."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from adapters.client import (
    Batch,
    Bucket,
    Client,
    Disposition,
    Flag,
    HoldState,
    InspectLine,
    Kind,
    ReceiptLine,
    ReturnLine,
    Status,
    new_batch_id,
)
from adapters.stack import Stack
from tests.e2e.conftest import Goods, Shop, Stacks

FAR_MS = 10 * 60_000


@pytest.fixture
def stack(stacks: Stacks) -> Stack:
    """The shared stack, of two shards."""
    return stacks.of(shards=2)


@pytest.fixture
async def goods(shop: Shop) -> AsyncIterator[Goods]:
    """Ten of each of three SKUs at four locations, two of each shard; audited at the end."""
    yield await shop.goods(skus=3, locations=4, stock=10)
    await shop.audit()


@pytest.fixture(params=["direct", "gateway"])
async def client(shop: Shop, stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    direct = request.param == "direct"
    async with Client.connect(shop.gateway.address, direct=direct) as made:
        yield made


async def on_hand(shop: Shop, goods: Goods, location: int) -> int:
    return (await shop.cell(goods.sku, location)).on_hand


async def test_an_order_over_two_shards_from_cart_to_return(
    shop: Shop, goods: Goods, client: Client
) -> None:
    first, second, third, _ = goods.locations
    cart = await client.reserve([(goods.sku, first, 4), (goods.sku, second, 3)], ttl_ms=FAR_MS)
    longer = await client.extend(cart, ttl_ms=2 * FAR_MS)
    assert longer.deadline_ns > cart.deadline_ns
    moved = await client.move(cart, third, [(goods.sku, second, 2)])
    assert moved.ok
    hold = await client.get_hold(cart)
    assert hold is not None
    where = {line.location: line.pending for line in hold.lines if line.pending}
    assert where == {first: 4, second: 1, third: 2}
    assert (await client.commit(cart)).ok
    assert (await client.fulfil(cart, [(goods.sku, first, 4), (goods.sku, third, 2)])).ok
    assert (await client.unfulfil(cart, [(goods.sku, third, 1)])).ok
    assert (await client.cancel(cart, [(goods.sku, third, 1)])).ok
    back = [
        ReturnLine(goods.sku, second, 3, Disposition.QUALITY_CONTROL, against=cart.hold_id),
        ReturnLine(goods.sku, second, 3, against=cart.hold_id),
    ]
    returned = await client.return_(back)
    assert [line.status for line in returned.lines] == [Status.OK, Status.EXCEEDS_HOLD]
    assert await shop.counters(goods.sku, first) == {"on_hand": 6}
    told = {"on_hand": 13, "committed": 1, "quality_control": 3}
    assert await shop.counters(goods.sku, second) == told
    assert await shop.counters(goods.sku, third) == {"on_hand": 9}
    looked_at = [
        InspectLine(goods.sku, second, 2),
        InspectLine(goods.sku, second, 1, Disposition.DAMAGED),
    ]
    assert (await client.inspect(looked_at)).ok
    gone = await client.write_off([(goods.sku, second, 1)], reason=7, bucket=Bucket.DAMAGED)
    assert gone.ok
    assert await shop.counters(goods.sku, second) == {"on_hand": 12, "committed": 1}


async def test_a_payment_that_fails_and_is_tried_again(goods: Goods, client: Client) -> None:
    first, second, *_ = goods.locations
    cart = [(goods.sku, first, 10), (goods.sku, second, 2)]
    older = await client.reserve(cart, ttl_ms=FAR_MS)
    assert (await client.reserve(cart)).status is Status.INSUFFICIENT_STOCK
    newer = await client.reserve(cart, supersedes=older, ttl_ms=1)
    assert newer.ok
    found = await client.get_hold(older)
    assert found is not None
    assert found.state is HoldState.RELEASED
    late = await client.commit(newer, re_reserve_if_expired=True)
    assert late.ok
    paid = await client.reserve(
        [(goods.sku, second, 9), (goods.skus[1], first, 3)], allow_partial=True, commit_now=True
    )
    assert paid.ok
    assert [line.granted for line in paid.lines] == [8, 3]
    found = await client.get_hold(paid)
    assert found is not None
    assert found.state is HoldState.COMMITTED


async def test_a_till_tells_its_day_twice(shop: Shop, goods: Goods, client: Client) -> None:
    at, now_ns = goods.at, time.time_ns()
    names = [ReceiptLine("T1", f"{number}", 1) for number in range(4)]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        lines = [(goods.sku, at, 1 + number) for number in order]
        day = await client.sale(
            lines, receipt_lines=[names[n] for n in order], occurred_at_ns=now_ns - 10**9
        )
        assert day.ok
    assert day.status is Status.ALREADY_RECORDED
    assert await on_hand(shop, goods, at) == 0
    assert (await client.count([(goods.sku, at, 2)], occurred_at_ns=now_ns)).ok
    late = await client.sale([(goods.sku, at, 1)], occurred_at_ns=now_ns - 2 * 10**9)
    assert late.lines[0].available == 2
    back = await client.return_([ReturnLine(goods.sku, at, 4, against=names[3])])
    assert back.ok
    again = await client.return_([ReturnLine(goods.sku, at, 1, against=names[3])])
    assert again.status is Status.EXCEEDS_HOLD


async def test_a_till_tells_its_sales_and_its_returns_twice(
    shop: Shop, goods: Goods, client: Client
) -> None:
    """A return is named by its op_id alone, which is made of its receipt; it may precede its sale."""
    at, other, draw = goods.at, goods.locations[1], random.Random(1)
    sold = ReceiptLine("T1", "100", 1)
    day = [
        (sold, (goods.sku, at, 6)),
        (ReceiptLine("T1", "101", 1), (goods.sku, at, 2)),
        (ReceiptLine("T1", "102", 1), ReturnLine(goods.sku, at, 1)),
        (ReceiptLine("T1", "103", 1), ReturnLine(goods.sku, at, 1, against=sold)),
        (ReceiptLine("T1", "103", 2), ReturnLine(goods.sku, at, 1, against=sold)),
        (ReceiptLine("T2", "1", 1), ReturnLine(goods.sku, other, 2, against=sold, sold_at=at)),
    ]
    too_early = 0
    for upload in range(3):
        shuffled = draw.sample(day, len(day)) if upload else day[::-1]
        for receipt, line in shuffled:
            if isinstance(line, ReturnLine):
                told = await client.till_return(line, receipt=receipt)
                too_early += told.status is Status.UNKNOWN_HOLD
                assert told.ok or (told.status is Status.UNKNOWN_HOLD and not upload)
            else:
                assert (await client.sale([line], receipt_lines=[receipt])).ok
    assert too_early == 3
    assert await on_hand(shop, goods, at) == 10 - 6 - 2 + 3
    assert await on_hand(shop, goods, other) == 12
    more = await client.return_([ReturnLine(goods.sku, at, 3, against=sold)])
    assert more.status is Status.EXCEEDS_HOLD


async def test_a_sale_too_much_names_the_orders_that_it_endangers(
    goods: Goods, client: Client
) -> None:
    cell = (goods.sku, goods.at)
    paid = await client.reserve([(*cell, 4)], commit_now=True)
    cart = await client.reserve([(*cell, 5)], ttl_ms=FAR_MS)
    sold = await client.sale([(*cell, 8)])
    assert sold.shortage == 7
    named = [(each.hold_id, each.pending, each.committed) for each in sold.lines[0].endangered]
    assert named == [(cart.hold_id, 5, 0), (paid.hold_id, 0, 4)]
    batch = Batch(
        kind=[Kind.SALE, Kind.RESERVE],
        sku=goods.sku,
        location=[goods.at, goods.locations[1]],
        quantity=[1, 11],
        value=FAR_MS * np.array([0, 1]),
        flags=[0, Flag.PARTIAL],
    )
    told = await client.submit(batch, op_id=new_batch_id())
    assert told.granted.tolist() == [0, 10]
    assert {each.hold_id for line, each in told.endangered if line == 0} == {
        cart.hold_id,
        paid.hold_id,
    }


async def test_parts_of_an_order_stand_or_fall_together(
    shop: Shop, goods: Goods, client: Client
) -> None:
    here, (first, second, _) = goods.at, goods.skus
    cart = await client.reserve([(first, here, 4), (second, here, 3)], ttl_ms=FAR_MS)
    for too_many in (
        await client.commit(cart, [(first, here, 3), (second, here, 4)], release_rest=True),
        await client.release(cart, [(first, here, 3), (second, here, 4)]),
    ):
        statuses = [line.status for line in too_many.lines]
        assert statuses == [Status.LINKED_LINE_REFUSED, Status.EXCEEDS_HOLD]
        assert too_many.status == Status.EXCEEDS_HOLD
    assert await shop.counters(first, here) == {"on_hand": 10, "reserved": 4}
    assert (await client.commit(cart, [(first, here, 3), (second, here, 2)], release_rest=True)).ok
    handed_over = await client.fulfil(cart, [(second, here, 3), (first, here, 3)])
    statuses = [line.status for line in handed_over.lines]
    assert statuses == [Status.EXCEEDS_HOLD, Status.LINKED_LINE_REFUSED]
    assert await shop.counters(first, here) == {"on_hand": 10, "committed": 3}
    assert (await client.fulfil(cart, [(second, here, 2), (first, here, 3)])).ok
    assert await shop.counters(first, here) == {"on_hand": 7}
    assert await shop.counters(second, here) == {"on_hand": 8}


@pytest.mark.parametrize("to", [1, 2], ids=["other shard", "same shard"])
async def test_a_transfer_in_parts(shop: Shop, goods: Goods, client: Client, to: int) -> None:
    source, destination = goods.locations[0], goods.locations[to]
    asked = await client.request_transfer(source, destination, [(goods.sku, 8)])
    for part in (2, 4):
        shipped = await client.ship_transfer(
            asked.hold_id, source, destination, [(goods.sku, part)], expected_at_ms=4 * 10**12
        )
        assert shipped.ok
        dated = await client.list_incoming([(goods.sku, destination)])
        assert [(each.expected_at_ms, each.quantity) for each in dated] == [(4 * 10**12, part)]
        came = await client.receive_transfer(asked.hold_id, destination, [(goods.sku, part - 1)])
        assert came.ok
        assert (await client.lose_transfer(asked.hold_id, destination)).ok
    assert (await client.cancel_transfer(asked.hold_id, source)).ok
    found = await client.get_transfer(asked.hold_id)
    assert found is not None
    (line,) = found.lines
    shown = (line.requested, line.shipped, line.in_transit, line.received, line.difference)
    assert shown == (6, 6, 0, 4, -2)
    assert await shop.counters(goods.sku, source) == {"on_hand": 4}
    assert await on_hand(shop, goods, destination) == 14


async def test_a_purchase_order_comes_in_parts(shop: Shop, goods: Goods, client: Client) -> None:
    lines = [(goods.sku, goods.locations[0], 5), (goods.sku, goods.locations[1], 6)]
    asked = await client.expect(lines, expected_at_ms=4 * 10**12)
    assert asked.ok
    came = await client.receive([(goods.sku, goods.at, 7)], incoming_id=asked.op_id)
    assert came.ok
    assert (await client.cancel_incoming(asked.op_id)).ok
    found = await client.get_incoming(asked.op_id)
    assert found is not None
    assert found.state is HoldState.RECEIVED
    shown = {
        line.location: (line.expected, line.outstanding, line.received) for line in found.lines
    }
    assert shown == {goods.locations[0]: (5, 0, 7), goods.locations[1]: (6, 0, 0)}
    assert await on_hand(shop, goods, goods.at) == 17


async def test_an_exchange_is_both_or_neither(shop: Shop, goods: Goods, client: Client) -> None:
    at, (shirt, other, _) = goods.at, goods.skus
    sold = await client.sale([(shirt, at, 1)], receipt_lines=[ReceiptLine("T", "1", 1)])
    back = [ReturnLine(shirt, at, 1, against=sold.lines[0].sale_id, sold_at=at)]
    too_much = await client.exchange(back, [(other, at, 11)])
    assert too_much.status is Status.INSUFFICIENT_STOCK
    assert await shop.counters(shirt, at) == {"on_hand": 9}
    done = await client.exchange(back, [(other, at, 1)], commit_now=True)
    assert done.ok
    assert await shop.counters(shirt, at) == {"on_hand": 10}
    assert await shop.counters(other, at) == {"on_hand": 10, "committed": 1}
    assert (await client.fulfil(done)).ok
    again = await client.exchange(back, [(other, at, 1)])
    assert again.status is Status.EXCEEDS_HOLD
    elsewhere = [ReturnLine(other, goods.locations[1], 1)]
    apart = await client.exchange(elsewhere, [(shirt, at, 1)])
    assert apart.ok
    assert await shop.counters(other, goods.locations[1]) == {"on_hand": 11}
    assert await shop.counters(shirt, at) == {"on_hand": 10, "reserved": 1}


@pytest.mark.parametrize("victim", [0, 1])
async def test_transfers_while_a_shard_is_killed(
    shop: Shop, stack: Stack, goods: Goods, victim: int
) -> None:
    """Every call is answered in the end, and every unit is somewhere once."""
    source, destination = goods.locations[:2]

    async def send(client: Client) -> bytes:
        asked = await client.request_transfer(source, destination, [(goods.sku, 1)])
        assert asked.ok
        shipped = await client.ship_transfer(asked.op_id, source, destination, [(goods.sku, 1)])
        assert shipped.ok
        return asked.op_id

    async with Client.connect(shop.gateway.address, timeout_s=60) as client:
        first = await asyncio.gather(*(send(client) for _ in range(3)))
        sending = [asyncio.create_task(send(client)) for _ in range(5)]
        coming = [
            asyncio.create_task(client.receive_transfer(each, destination, [(goods.sku, 1)]))
            for each in first
        ]
        await asyncio.to_thread(stack.kill_shard, victim)
        sent = [*first, *await asyncio.gather(*sending)]
        assert all(came.ok for came in await asyncio.gather(*coming))
        states = [await client.get_transfer(each) for each in sent]
        near, far = await client.get_cells([(goods.sku, source), (goods.sku, destination)])
    assert (near.on_hand, near.committed) == (2, 0)
    assert (far.on_hand, far.incoming) == (13, 5)
    assert [each.lines[0].difference for each in states if each] == [0] * 8
