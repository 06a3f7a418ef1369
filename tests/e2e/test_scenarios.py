"""Scenarios (see `tests/scenarios`) with real clients at once, through the gateway and the shard."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from adapters.client.peers import Peer
from onhand.v1 import catalog_pb2, common_pb2, deltas_pb2, stock_pb2
from tests.e2e.conftest import Shop, batch_id, line, of, on_hold, op, reserve, until, violation
from tests.e2e.test_kill import dies

S = common_pb2.Status
OK, NONE_LEFT = S.STATUS_OK, S.STATUS_INSUFFICIENT_STOCK
PATIENCE_S = 30.0  # nobody waits so long but for somebody who waits for ever
both_paths = pytest.mark.parametrize("path", ["gateway", "shard"])


def paths(shop: Shop, count: int) -> list[Peer]:
    """As many callers, every other one at the shard itself."""
    return [(shop.gateway, shop.shard)[n % 2] for n in range(count)]


def pairs_of(sku: int, at: int) -> stock_pb2.SubmitRequest:
    """A batch of two buyers of one unit each."""
    return stock_pb2.SubmitRequest(
        op_id=batch_id(), lines=2, kind=bytes([stock_pb2.KIND_RESERVE]),
        sku=np.array([sku], "<u4").tobytes(), location=np.array([at], "<u4").tobytes(),
        quantity=np.array([1], "<i8").tobytes(), value=np.array([60_000], "<i8").tobytes(),
    )  # fmt: skip


async def test_scenario_01_of_many_clients_who_want_one_unit_exactly_one_wins(shop: Shop) -> None:
    goods = await shop.goods(stock=1)
    alone = [
        peer.stock.Reserve(reserve([(goods.sku, goods.at, 1)]), timeout=PATIENCE_S)
        for peer in paths(shop, 40)
    ]
    batches = [
        peer.stock.Submit(pairs_of(goods.sku, goods.at), timeout=PATIENCE_S)
        for peer in paths(shop, 10)
    ]
    answers, in_batches = await asyncio.gather(asyncio.gather(*alone), asyncio.gather(*batches))
    statuses = [each.status for each in answers]
    statuses += [status for each in in_batches for status in each.status]
    assert sorted(statuses) == [OK] + [NONE_LEFT] * 59
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 1, "reserved": 1}
    await shop.audit()


async def test_scenario_03_what_is_reserved_is_the_sum_of_what_clients_hold(shop: Shop) -> None:
    goods = await shop.goods(skus=3, stock=1_000)
    left = {sku: [0, 0, 0] for sku in goods.skus}  # pending, committed, fulfilled

    async def shops(peer: Peer, seed: int) -> None:
        draw = random.Random(seed)
        sku, units = draw.choice(goods.skus), draw.randint(2, 4)
        part = [(sku, goods.at, draw.randint(1, units - 1))]
        few, stock = part[0][2], peer.stock
        held = await stock.Reserve(reserve([(sku, goods.at, units)]), timeout=PATIENCE_S)
        assert held.status == OK
        calls: list[tuple[Callable[..., Awaitable[Any]], Any]]
        calls, stays = draw.choice(
            [
                ([], (units, 0, 0)),
                ([(stock.Release, [])], (0, 0, 0)),
                ([(stock.Release, part)], (units - few, 0, 0)),
                ([(stock.Commit, part)], (units - few, few, 0)),
                ([(stock.Commit, []), (stock.Fulfil, part)], (0, units - few, few)),
                ([(stock.Commit, []), (stock.Fulfil, part), (stock.Cancel, [])], (0, 0, few)),
            ]
        )
        for method, cells in calls:
            request = on_hold(held.hold_id, cells)
            # Twice at once, as when an answer got lost: the same id has one effect.
            one, other = await asyncio.gather(
                method(request, timeout=PATIENCE_S), method(request, timeout=PATIENCE_S)
            )
            assert one == other
            assert one.status == OK
        for i in range(3):
            left[sku][i] += stays[i]

    await asyncio.gather(*(shops(peer, n) for n, peer in enumerate(paths(shop, 80))))
    for sku, (pending, committed, fulfilled) in left.items():
        cell = await shop.cell(sku, goods.at)
        assert (cell.reserved, cell.committed) == (pending, committed)
        assert cell.on_hand == 1_000 - fulfilled
    await shop.audit()


async def test_scenario_05_many_lines_in_opposite_orders_are_all_answered(shop: Shop) -> None:
    goods = await shop.goods(skus=15, locations=2, stock=20)
    cells = [(sku, at, 1) for at in goods.locations for sku in goods.skus]
    turns = [cells, cells[::-1], cells[::2] + cells[1::2]]
    answers = await asyncio.gather(
        *(
            peer.stock.Reserve(reserve(turns[n % 3]), timeout=PATIENCE_S)
            for n, peer in enumerate(paths(shop, 30))
        )
    )
    statuses = [each.status for each in answers]
    assert (statuses.count(OK), statuses.count(NONE_LEFT)) == (20, 10)
    for sku, at, _ in cells:
        assert await shop.counters(sku, at) == {"on_hand": 20, "reserved": 20}
    await shop.audit()


@both_paths
async def test_scenario_17_a_code_that_changes_between_order_and_return(
    shop: Shop, path: str
) -> None:
    """Ordered under the old code and back under the new one, and the other way round."""
    goods, peer = await shop.goods(stock=10), shop.peer(path)
    old = goods.sku_codes[0]
    new = f"{old}-new"

    async def ordered(code: str) -> bytes:
        held = await peer.stock.Reserve(reserve([(code, goods.at, 3)]))
        assert (await peer.stock.Commit(on_hold(held.hold_id))).status == OK
        assert (await peer.stock.Fulfil(on_hold(held.hold_id, [(code, goods.at, 3)]))).status == OK
        return held.hold_id

    async def comes_back(code: str, order: bytes) -> int:
        against = stock_pb2.ReturnLine(line=line(code, goods.at, 2), against=order)
        reply = await peer.stock.Return(stock_pb2.ReturnRequest(op_id=op(), lines=[against]))
        return reply.status

    first = await ordered(old)
    watching = shop.gateway.deltas.Subscribe(
        deltas_pb2.SubscribeRequest(skus=[common_pb2.Sku(code=old)], heartbeat_ms=100)
    )
    renames = (await watching.read()).renames

    async def renamed(code: str, op_id: bytes) -> bool:
        named = common_pb2.Sku(code=old)
        request = catalog_pb2.RenameSkuRequest(op_id=op_id, sku=named, code=code)
        reply = await shop.gateway.catalog.RenameSku(request)
        assert reply.id == goods.sku
        return reply.changed

    late, newest = op(), op()
    assert await renamed(f"{old}-between", late)
    assert await renamed(new, newest)
    assert not await renamed(new, op())
    # An attempt that comes late undoes nothing: the code stays what it was renamed to last.
    assert await renamed(f"{old}-between", late)
    with pytest.raises(grpc.aio.AioRpcError) as reused:
        await renamed(new, late)
    assert violation(reused.value)[0] == "op_id"
    while (await watching.read()).renames == renames:
        pass
    watching.cancel()
    other = f"{old}-other"
    added = await shop.gateway.catalog.AddSkus(
        catalog_pb2.AddSkusRequest(
            skus=[catalog_pb2.SkuEntry(code=code) for code in (old, new, other)]
        )
    )
    assert list(added.ids[:2]) == [goods.sku, goods.sku] != [added.ids[2], goods.sku]
    taken = catalog_pb2.RenameSkuRequest(op_id=op(), sku=common_pb2.Sku(code=other), code=old)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await shop.gateway.catalog.RenameSku(taken)
    assert violation(refused.value)[0] == "code"

    second = await ordered(new)
    assert await comes_back(new, first) == OK
    assert await comes_back(old, first) == S.STATUS_EXCEEDS_HOLD
    assert await comes_back(old, second) == OK
    assert await comes_back(other, second) == S.STATUS_NOT_IN_HOLD
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 8}
    assert await shop.counters(added.ids[2], goods.at) == {}
    for order in (first, second):
        history = await peer.stock.GetHistory(stock_pb2.GetHoldRequest(hold_id=order))
        assert {each.sku.code for each in history.events if each.sku.id == goods.sku} == {new}
        assert [each.sku.code for each in history.hold.lines] == [new]


async def test_scenario_19_two_uploads_of_a_tills_day_at_once_have_one_effect(shop: Shop) -> None:
    goods = await shop.goods(skus=2, stock=100)
    draw = random.Random(1)
    day = [(goods.skus[n % 2], n, 1 + n % 3) for n in range(30)]

    def upload(lines: list[tuple[int, int, int]]) -> stock_pb2.SaleRequest:
        return stock_pb2.SaleRequest(
            op_id=op(),
            lines=[line(sku, goods.at, units) for sku, _, units in lines],
            receipt_lines=[
                stock_pb2.ReceiptLine(
                    terminal="till-4", receipt=f"R{number // 4}", line=1 + number % 4
                )
                for _, number, _ in lines
            ],
        )

    batches = []
    for _ in range(2):
        heard = draw.sample(day, len(day))
        batches += [upload(heard[first : first + 5]) for first in range(0, len(heard), 5)]
    replies = await asyncio.gather(
        *(
            peer.stock.Sale(batch, timeout=PATIENCE_S)
            for peer, batch in zip(paths(shop, len(batches)), batches, strict=True)
        )
    )
    statuses = [each.status for reply in replies for each in reply.lines]
    assert statuses.count(OK) == statuses.count(S.STATUS_ALREADY_RECORDED) == 30
    for sku in goods.skus:
        sold = sum(units for each, _, units in day if each == sku)
        assert await shop.counters(sku, goods.at) == {"on_hand": 100 - sold}
    await shop.audit()


async def test_scenario_21_a_gateways_view_is_right_again_after_its_process_died(
    shop: Shop,
) -> None:
    """And when nothing more is written that would tell it."""
    goods = await shop.goods(skus=5, stock=50)
    end = asyncio.Event()

    async def sells() -> None:
        while not end.is_set():
            await shop.shard.stock.Sale(of([(sku, goods.at, 1) for sku in goods.skus]))

    selling = asyncio.create_task(sells())
    await dies(shop.stack, "gateway")
    end.set()
    await selling
    await shop.shard.stock.Receive(of([(goods.sku, goods.at, 7)]))

    async def is_right() -> bool:
        try:
            return all(
                [
                    await shop.cell(sku, goods.at, shop.gateway) == await shop.cell(sku, goods.at)
                    for sku in goods.skus
                ]
            )
        except grpc.aio.AioRpcError:  # it is not back yet
            return False

    await until(is_right, 20)


@both_paths
async def test_weighed_goods_are_reserved_sold_and_returned_in_grams(shop: Shop, path: str) -> None:
    """The order said 1.5 kg; what was cut weighed 1.43 kg. Nothing is rounded, nothing is a piece."""
    goods, peer = await shop.goods(), shop.peer(path)
    ham = catalog_pb2.SkuEntry(code=f"{goods.sku_codes[0]}-ham", unit=catalog_pb2.UNIT_G)
    added = await shop.gateway.catalog.AddSkus(catalog_pb2.AddSkusRequest(skus=[ham]))
    cell = (added.ids[0], goods.at)
    assert (await peer.stock.Receive(of([(*cell, 12_345)]))).status == OK
    too_much = await peer.stock.Reserve(reserve([(*cell, 12_346)]))
    assert too_much.status == NONE_LEFT
    held = await peer.stock.Reserve(reserve([(*cell, 1_500)]))
    assert held.lines[0].available == 10_845
    assert (await peer.stock.Commit(on_hold(held.hold_id))).status == OK
    assert (await peer.stock.Fulfil(on_hold(held.hold_id, [(*cell, 1_430)]))).status == OK
    assert (await peer.stock.Cancel(on_hold(held.hold_id))).status == OK
    assert await shop.counters(*cell) == {"on_hand": 10_915}
    assert (
        await peer.stock.Sale(stock_pb2.SaleRequest(op_id=op(), lines=[line(*cell, 317)]))
    ).status == OK
    back = stock_pb2.ReturnLine(line=line(*cell, 1), disposition=2, against=held.hold_id)
    assert (await peer.stock.Return(stock_pb2.ReturnRequest(op_id=op(), lines=[back]))).status == OK
    assert await shop.counters(*cell) == {"on_hand": 10_599, "damaged": 1}
    listed = await shop.gateway.catalog.ListSkus(
        catalog_pb2.ListSkusRequest(from_id=cell[0], page_size=1)
    )
    assert listed.skus[0].unit == catalog_pb2.UNIT_G
