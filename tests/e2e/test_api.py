"""The public contract through real gRPC: at the gateway, and at the shard itself."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from adapters.client.peers import Peer
from adapters.stack import Stack
from onhand.v1 import (
    availability_pb2,
    catalog_pb2,
    common_pb2,
    deltas_pb2,
    directory_pb2,
    price_pb2,
    stock_pb2,
)
from tests.e2e.conftest import Shop, batch_id, line, of, on_hold, op, reserve, until, violation

PATHS = ("gateway", "shard")
OK = common_pb2.STATUS_OK
on_both_paths = pytest.mark.parametrize("path", PATHS)


def price_lines(
    cells: list[tuple[int, int, int]], currency: str, op_id: bytes | None = None
) -> price_pb2.SetPriceRequest:
    return price_pb2.SetPriceRequest(
        op_id=op_id or op(),
        currency=currency,
        lines=[
            price_pb2.PriceLine(
                sku=common_pb2.Sku(id=sku),
                location=common_pb2.Location(id=at),
                price_minor=price_minor,
            )
            for sku, at, price_minor in cells
        ],
    )


# --- an order's life ------------------------------------------------------------------------------


@on_both_paths
async def test_an_order_is_reserved_committed_and_fulfilled(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods(skus=2, stock=10)
    first, second = goods.skus
    before_ns = time.time_ns()
    held = await peer.stock.Reserve(reserve([(first, goods.at, 3), (second, goods.at, 10)]))
    assert (held.status, held.message) == (OK, "")
    assert [each.available for each in held.lines] == [7, 0]
    assert before_ns < held.now_ns < time.time_ns()
    assert held.deadline_ns == held.now_ns + 15 * 60 * 10**9
    assert await shop.counters(first, goods.at) == {"on_hand": 10, "reserved": 3}

    committed = await peer.stock.Commit(on_hold(held.hold_id))
    assert committed.status == OK
    assert await shop.counters(first, goods.at) == {"on_hand": 10, "committed": 3}
    fulfilled = await peer.stock.Fulfil(on_hold(held.hold_id))
    assert fulfilled.status == OK
    assert await shop.counters(first, goods.at) == {"on_hand": 7}
    assert await shop.counters(second, goods.at) == {}
    assert (committed.epoch, committed.seq) < (fulfilled.epoch, fulfilled.seq)

    for late, status in (
        (peer.stock.Commit, common_pb2.STATUS_HOLD_NOT_PENDING),
        (peer.stock.Release, common_pb2.STATUS_HOLD_NOT_PENDING),
        (peer.stock.Fulfil, common_pb2.STATUS_HOLD_NOT_COMMITTED),
        (peer.stock.Cancel, common_pb2.STATUS_HOLD_NOT_COMMITTED),
    ):
        assert (await late(on_hold(held.hold_id))).status == status
    await shop.audit()


@on_both_paths
async def test_a_hold_is_released_and_a_commitment_cancelled(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods(stock=5)
    given_up = await peer.stock.Reserve(reserve([(goods.sku, goods.at, 5)]))
    none_left = await peer.stock.Reserve(reserve([(goods.sku, goods.at, 1)]))
    assert none_left.status == common_pb2.STATUS_INSUFFICIENT_STOCK
    assert none_left.message
    assert (none_left.hold_id, none_left.deadline_ns) == (b"", 0)
    assert (await peer.stock.Release(on_hold(given_up.hold_id))).status == OK
    late = await peer.stock.Commit(on_hold(given_up.hold_id))
    assert late.status == common_pb2.STATUS_HOLD_RELEASED

    cancelled = await peer.stock.Reserve(reserve([(goods.sku, goods.at, 4)]))
    early = await peer.stock.Cancel(on_hold(cancelled.hold_id))
    assert early.status == common_pb2.STATUS_HOLD_NOT_COMMITTED
    assert (await peer.stock.Commit(on_hold(cancelled.hold_id))).status == OK
    assert (await peer.stock.Cancel(on_hold(cancelled.hold_id))).lines[0].available == 5
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 5}


@on_both_paths
async def test_parts_of_a_hold(shop: Shop, path: str) -> None:
    """Order 7 and 5; commit 6 and 2, release the rest; ship 3, cancel the rest; 2 come back."""
    peer, goods = shop.peer(path), await shop.goods(skus=2, stock=10)
    first, second = ((sku, goods.at) for sku in goods.skus)
    held = await peer.stock.Reserve(reserve([(*first, 7), (*second, 5)]))
    hold = held.hold_id
    too_much = await peer.stock.Commit(on_hold(hold, [(*first, 8)]))
    assert too_much.status == common_pb2.STATUS_EXCEEDS_HOLD
    other = await peer.stock.Commit(on_hold(hold, [(first[0], goods.at + 1, 1)]))
    assert other.status == common_pb2.STATUS_NOT_IN_HOLD
    committed = await peer.stock.Commit(
        on_hold(hold, [(*first, 6), (*second, 2)], release_rest=True)
    )
    assert [each.status for each in committed.lines] == [OK, OK]
    assert await shop.counters(*first) == {"on_hand": 10, "committed": 6}
    assert await shop.counters(*second) == {"on_hand": 10, "committed": 2}
    assert (await peer.stock.Fulfil(on_hold(hold, [(*first, 3)]))).status == OK
    assert await shop.counters(*first) == {"on_hand": 7, "committed": 3}
    found = await peer.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=hold))
    assert found.state == stock_pb2.HOLD_STATE_COMMITTED
    assert [(each.pending, each.committed, each.fulfilled) for each in found.lines] == [
        (0, 3, 3),
        (0, 2, 0),
    ]
    assert (await peer.stock.Cancel(on_hold(hold))).status == OK
    back = stock_pb2.ReturnRequest(
        op_id=op(), lines=[stock_pb2.ReturnLine(line=line(*first, 2), disposition=0)]
    )
    assert (await peer.stock.Return(back)).status == OK
    assert await shop.counters(*first) == {"on_hand": 9}
    assert await shop.counters(*second) == {"on_hand": 10}
    found = await peer.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=hold))
    assert found.state == stock_pb2.HOLD_STATE_FULFILLED
    await shop.audit()


@on_both_paths
async def test_part_commit_leaves_the_rest_pending(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods(stock=10)
    held = await peer.stock.Reserve(reserve([(goods.sku, goods.at, 7)]))
    assert held.hold_id
    assert (await peer.stock.Commit(on_hold(held.hold_id, [(goods.sku, goods.at, 2)]))).status == OK
    assert await shop.counters(goods.sku, goods.at) == {
        "on_hand": 10,
        "reserved": 5,
        "committed": 2,
    }
    assert (await peer.stock.Release(on_hold(held.hold_id))).status == OK
    assert (await peer.stock.Fulfil(on_hold(held.hold_id))).status == OK
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 8}


@on_both_paths
async def test_get_hold_through_its_life(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods(stock=10)
    held = await peer.stock.Reserve(reserve([(goods.sku, goods.at, 4)]))
    for location in (None, common_pb2.Location(id=goods.at)):
        request = stock_pb2.GetHoldRequest(hold_id=held.hold_id, location=location)
        found = await peer.stock.GetHold(request)
        assert (found.hold_id, found.state) == (held.hold_id, stock_pb2.HOLD_STATE_PENDING)
        assert found.deadline_ns == held.deadline_ns
        (only,) = found.lines
        assert (only.sku.id, only.location.id, only.pending) == (goods.sku, goods.at, 4)
    await peer.stock.Release(on_hold(held.hold_id))
    found = await peer.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=held.hold_id))
    assert found.state == stock_pb2.HOLD_STATE_RELEASED
    history = await peer.stock.GetHistory(stock_pb2.GetHoldRequest(hold_id=held.hold_id))
    kinds = [each.kind for each in history.events]
    assert kinds == [stock_pb2.KIND_RESERVE, stock_pb2.KIND_RELEASE]
    assert {each.status for each in history.events} == {OK}
    assert history.complete
    assert history.hold == found
    (only,) = found.lines
    assert (only.sku.code, only.location.code) == (goods.sku_codes[0], goods.location_codes[0])

    nobody = await peer.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op()))
    assert (nobody.state, len(nobody.lines)) == (stock_pb2.HOLD_STATE_UNKNOWN, 0)


@on_both_paths
async def test_a_hold_ends_at_its_deadline(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods(stock=5)
    kept = await peer.stock.Reserve(reserve([(goods.sku, goods.at, 2)], ttl_ms=60_000))
    held = await peer.stock.Reserve(reserve([(goods.sku, goods.at, 3)], ttl_ms=40))
    assert held.deadline_ns == held.now_ns + 40_000_000
    # As soon as a block is later than the deadline, whether or not the sweep has been there.
    while True:
        late = await peer.stock.Commit(on_hold(held.hold_id, [(goods.sku, goods.at, 4)]))
        if late.now_ns > held.deadline_ns:
            break
        assert late.status == common_pb2.STATUS_EXCEEDS_HOLD
    assert late.status == common_pb2.STATUS_HOLD_EXPIRED
    assert late.now_ns - held.deadline_ns < 100_000_000
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 5, "reserved": 2}
    again = await peer.stock.Release(on_hold(held.hold_id))
    assert again.status == common_pb2.STATUS_HOLD_EXPIRED
    found = await peer.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=held.hold_id))
    assert found.state == stock_pb2.HOLD_STATE_EXPIRED
    assert (await peer.stock.Release(on_hold(kept.hold_id))).status == OK


async def test_an_idle_shard_gives_expired_stock_back_by_itself(shop: Shop) -> None:
    goods = await shop.goods(stock=5)
    await shop.shard.stock.Reserve(reserve([(goods.sku, goods.at, 5)], ttl_ms=50))

    async def is_back() -> bool:
        return (await shop.cell(goods.sku, goods.at, shop.gateway)).available == 5

    await until(is_back, timeout_s=2)


async def test_one_unit_many_buyers(shop: Shop) -> None:
    goods = await shop.goods(stock=1)
    answers = await asyncio.gather(
        *(
            peer.stock.Reserve(reserve([(goods.sku, goods.at, 1)]))
            for _ in range(20)
            for peer in (shop.gateway, shop.shard)
        )
    )
    assert sorted(answer.status for answer in answers) == [
        OK,
        *[common_pb2.STATUS_INSUFFICIENT_STOCK] * 39,
    ]


async def test_lines_on_one_cell_are_summed_and_all_or_none(shop: Shop) -> None:
    goods = await shop.goods(skus=2, stock=5)
    first, second = goods.skus
    refused = await shop.gateway.stock.Reserve(
        reserve([(second, goods.at, 1), (first, goods.at, 3), (first, goods.at, 3)])
    )
    assert refused.status == common_pb2.STATUS_INSUFFICIENT_STOCK
    assert [each.status for each in refused.lines] == [
        common_pb2.STATUS_LINKED_LINE_REFUSED,
        common_pb2.STATUS_LINKED_LINE_REFUSED,
        common_pb2.STATUS_INSUFFICIENT_STOCK,
    ]
    assert await shop.counters(second, goods.at) == {"on_hand": 5}


# --- one effect -----------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [PATHS, PATHS[::-1]], ids=["gateway_first", "shard_first"])
async def test_an_op_id_has_one_effect_on_both_paths(shop: Shop, paths: tuple[str, str]) -> None:
    goods = await shop.goods(skus=2, stock=100)
    one, other = (shop.peer(path) for path in paths)
    sku, second = goods.skus
    sale = of([(sku, goods.at, 1)])
    sales = of([(sku, goods.at, 1), (second, goods.at, 1)])
    order = reserve([(sku, goods.at, 2), (second, goods.at, 2)])
    price = price_lines([(sku, goods.at, 199)], "EUR")
    batch = stock_pb2.SubmitRequest(
        op_id=batch_id(),
        lines=3,
        kind=bytes([stock_pb2.KIND_RECEIVE]),
        sku=np.array([sku, 0, second], "<u4").tobytes(),
        location=np.array([goods.at], "<u4").tobytes(),
        quantity=np.array([5], "<i8").tobytes(),
        want_available=True,
    )
    for rpc, request in (
        ("stock.Sale", sale),
        ("stock.Sale", sales),
        ("stock.Reserve", order),
        ("price.SetPrice", price),
        ("stock.Submit", batch),
    ):
        service, _, method = rpc.partition(".")
        first = await getattr(getattr(one, service), method)(request)
        again = await getattr(getattr(other, service), method)(request)
        assert first == again, rpc
    commit = on_hold(order.op_id, [(sku, goods.at, 1)], release_rest=True)
    assert await one.stock.Commit(commit) == await other.stock.Commit(commit)
    # The code of a SKU says the same as its id; where the hold is, is part of the request.
    commit.lines[0].sku.code = goods.sku_codes[0]
    assert (await other.stock.Commit(commit)).status == OK
    commit.location.id = goods.at
    assert (await other.stock.Commit(commit)).status == common_pb2.STATUS_OP_ID_REUSED
    assert await shop.counters(sku, goods.at) == {"on_hand": 103, "committed": 1}
    assert await shop.counters(second, goods.at) == {"on_hand": 104}


@on_both_paths
async def test_an_op_id_with_other_content_is_refused(shop: Shop, path: str) -> None:
    goods = await shop.goods(stock=100)
    cell = (goods.sku, goods.at)
    used, other = op(), {"gateway": shop.shard, "shard": shop.gateway}[path]
    assert (await shop.peer(path).stock.Sale(of([(*cell, 1)], used))).status == OK
    hold = op()
    held = await shop.peer(path).stock.Reserve(reserve([(*cell, 1)], hold))
    reused = common_pb2.STATUS_OP_ID_REUSED
    assert (await other.stock.Sale(of([(*cell, 2)], used))).status == reused
    assert (await other.stock.Receive(of([(*cell, 1)], used))).status == reused
    assert (await other.stock.Reserve(reserve([(*cell, 1)], used))).status == reused
    assert (await other.stock.Commit(on_hold(hold, op_id=used))).status == reused
    assert (await other.stock.Reserve(reserve([(*cell, 1)], hold, ttl_ms=5))).status == reused
    answer = await other.price.SetPrice(price_lines([(*cell, 1)], "EUR", used))
    assert (answer.status, answer.lines[0].status) == (reused, reused)
    assert await shop.counters(*cell) == {"on_hand": 99, "reserved": 1}
    assert (await shop.peer(path).stock.Release(on_hold(held.hold_id))).status == OK


async def test_repeats_at_the_same_time_have_one_effect(shop: Shop) -> None:
    goods = await shop.goods(stock=100)
    sale = of([(goods.sku, goods.at, 1)])
    answers = await asyncio.gather(
        *(peer.stock.Sale(sale) for _ in range(10) for peer in (shop.gateway, shop.shard))
    )
    assert all(answer == answers[0] for answer in answers)
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 99}


async def test_a_lines_id_belongs_to_its_batch(shop: Shop) -> None:
    """The holds of a batch have the ids of its lines, and no other operation may take one."""
    goods = await shop.goods(stock=100)
    base = batch_id()
    batch = stock_pb2.SubmitRequest(
        op_id=base,
        lines=3,
        kind=bytes([stock_pb2.KIND_RESERVE]),
        flags=bytes([0, 1, 0]),
        sku=np.array([goods.sku], "<u4").tobytes(),
        location=np.array([goods.at], "<u4").tobytes(),
        quantity=np.array([1, 2, 3], "<i8").tobytes(),
        value=np.array([60_000], "<i8").tobytes(),
    )
    reply = await shop.gateway.stock.Submit(batch)
    assert reply.status == b""  # every line is OK
    linked = base[:15] + b"\1"
    found = await shop.shard.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=linked))
    assert [each.pending for each in found.lines] == [2, 3]
    assert found.deadline_ns == reply.now_ns + 60_000 * 10**6
    taken = await shop.shard.stock.Sale(of([(goods.sku, goods.at, 1)], linked))
    assert taken.status == common_pb2.STATUS_OP_ID_REUSED
    for hold in (base, linked):
        assert (await shop.gateway.stock.Release(on_hold(hold))).status == OK
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 100}


# --- facts ----------------------------------------------------------------------------------------


@on_both_paths
async def test_facts(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods()
    cell = (goods.sku, goods.at)
    received = await peer.stock.Receive(of([(*cell, 100)]))
    assert (received.status, received.lines[0].available) == (OK, 100)
    sold = await peer.stock.Sale(of([(*cell, 30), (*cell, 5)]))
    assert [each.available for each in sold.lines] == [70, 65]
    back = stock_pb2.ReturnRequest(
        op_id=op(),
        lines=[
            stock_pb2.ReturnLine(line=line(*cell, quantity), disposition=disposition)
            for quantity, disposition in (
                (1, stock_pb2.DISPOSITION_RESTOCK),
                (2, stock_pb2.DISPOSITION_QUALITY_CONTROL),
                (4, stock_pb2.DISPOSITION_DAMAGED),
            )
        ],
    )
    assert [each.available for each in (await peer.stock.Return(back)).lines] == [66, 66, 66]
    assert await shop.counters(*cell) == {"on_hand": 72, "quality_control": 2, "damaged": 4}
    adjust = stock_pb2.AdjustRequest(op_id=op(), lines=[line(*cell, -2)], reason=7)
    assert (await peer.stock.Adjust(adjust)).lines[0].available == 64
    assert (await peer.stock.SetSafetyStock(of([(*cell, 10)]))).lines[0].available == 54
    assert (await peer.stock.Count(of([(*cell, 50)]))).lines[0].available == 34
    assert await shop.counters(*cell) == {
        "on_hand": 50,
        "quality_control": 2,
        "damaged": 4,
        "safety_stock": 10,
    }
    held = await peer.stock.Reserve(reserve([(*cell, 35)]))
    assert held.status == common_pb2.STATUS_INSUFFICIENT_STOCK


@on_both_paths
async def test_a_shortage_is_told(shop: Shop, path: str) -> None:
    """A till's sale is a fact: it is recorded, and what it leaves short is told."""
    peer, goods = shop.peer(path), await shop.goods(stock=5)
    cell = (goods.sku, goods.at)
    shortages = (await shop.status())["shortages"]
    held = await peer.stock.Reserve(reserve([(*cell, 4)]))
    sold = await peer.stock.Sale(of([(*cell, 3)]))
    assert sold.status == OK
    assert (sold.lines[0].available, sold.lines[0].shortage) == (-2, 2)
    assert (await shop.status())["shortages"] == shortages + 1
    sold = await peer.stock.Sale(of([(*cell, 4)]))
    assert (sold.lines[0].available, sold.lines[0].shortage) == (-6, 6)
    assert await shop.counters(*cell) == {"on_hand": -2, "reserved": 4}
    counted = await peer.stock.Count(of([(*cell, 4)]))
    assert (counted.lines[0].available, counted.lines[0].shortage) == (0, 0)
    assert (await shop.status())["shortages"] == shortages
    assert (await peer.stock.Release(on_hold(held.hold_id))).status == OK


# --- prices ---------------------------------------------------------------------------------------


@on_both_paths
async def test_prices(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods(skus=3, currency="USD")
    first, second, unpriced = goods.skus
    cells = [(first, goods.at, 499), (second, goods.at, 0)]
    assert (await peer.price.SetPrice(price_lines(cells, "USD"))).status == OK
    assert (await peer.price.SetPrice(price_lines([(first, goods.at, 450)], "USD"))).status == OK
    for wrong in ("EUR", "JPY", "XQQ", "usd"):
        answer = await peer.price.SetPrice(price_lines([(first, goods.at, 1)], wrong))
        assert answer.status == common_pb2.STATUS_CURRENCY_MISMATCH, wrong
    await asyncio.to_thread(shop.stack.wait_for_mirror)
    names = [
        common_pb2.Sku(id=first),
        common_pb2.Sku(code=goods.sku_codes[1]),
        common_pb2.Sku(id=unpriced),
        common_pb2.Sku(code="nobody has this"),
    ]
    reply = await peer.price.GetPrices(
        price_pb2.GetPricesRequest(
            location=common_pb2.Location(code=goods.location_codes[0]), skus=names
        )
    )
    assert reply.currency == "USD"
    assert [(each.found, each.price_minor, each.price_version) for each in reply.prices] == [
        (True, 450, 2),
        (True, 0, 1),
        (False, 0, 0),
        (False, 0, 0),
    ]
    assert [each.sku.code for each in reply.prices][1] == goods.sku_codes[1]


# --- names, reads ---------------------------------------------------------------------------------


@on_both_paths
async def test_codes_and_ids_name_the_same(shop: Shop, path: str) -> None:
    peer, goods = shop.peer(path), await shop.goods()
    code, place = goods.sku_codes[0], goods.location_codes[0]
    assert (await peer.stock.Receive(of([(code, place, 5)]))).status == OK
    assert (await peer.stock.Sale(of([(goods.sku, place, 1), (code, goods.at, 1)]))).status == OK
    held = await peer.stock.Reserve(reserve([(code, goods.at, 3)]))
    location = common_pb2.Location(code=place)
    assert (await peer.stock.Commit(on_hold(held.hold_id, location=location))).status == OK
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 3, "committed": 3}
    both = common_pb2.Line(
        sku=common_pb2.Sku(id=2**32 - 1, code=code),
        location=common_pb2.Location(id=9, code=place),
        quantity=1,
    )
    won = await peer.stock.Receive(stock_pb2.LinesRequest(op_id=op(), lines=[both]))
    assert (won.status, won.lines[0].available) == (OK, 1)  # the code wins


@on_both_paths
async def test_the_catalogue_is_the_same_everywhere(shop: Shop, path: str) -> None:
    goods = await shop.goods(skus=3, currency="JPY")
    again = await shop.gateway.catalog.AddSkus(
        catalog_pb2.AddSkusRequest(
            skus=[catalog_pb2.SkuEntry(code=code) for code in reversed(goods.sku_codes)]
        )
    )
    assert (list(again.ids), again.added) == (goods.skus[::-1], 0)
    catalog = shop.peer(path).catalog
    page = await catalog.ListSkus(catalog_pb2.ListSkusRequest(from_id=goods.skus[0], page_size=2))
    assert [(each.id, each.code) for each in page.skus] == list(
        zip(goods.skus, goods.sku_codes, strict=True)
    )[:2]
    assert page.next_id == goods.skus[2]
    listed = await catalog.ListLocations(catalog_pb2.ListLocationsRequest())
    found = listed.locations[goods.at - 1]
    assert (found.id, found.code, found.currency) == (goods.at, goods.location_codes[0], "JPY")


async def test_a_shard_sends_additions_to_the_gateway(shop: Shop) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.shard.catalog.AddSkus(
            catalog_pb2.AddSkusRequest(skus=[catalog_pb2.SkuEntry(code="mine")])
        )
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "gateway" in caught.value.details()


async def test_the_directory_tells_the_way(shop: Shop) -> None:
    shard_map = await shop.gateway.directory.GetShardMap(directory_pb2.GetShardMapRequest())
    (only,) = shard_map.shards
    assert only.address == shop.shard.address
    assert only.epoch == (await shop.status())["epoch"]
    limits = [
        await peer.directory.GetLimits(directory_pb2.GetLimitsRequest())
        for peer in (shop.gateway, shop.shard)
    ]
    assert limits[0] == limits[1]
    assert limits[0].max_batch_lines == 8_190
    assert limits[0].max_quantity == 10**9


@on_both_paths
async def test_cells_are_found_or_not(shop: Shop, path: str) -> None:
    goods = await shop.goods(skus=2, stock=3)
    await asyncio.to_thread(shop.stack.wait_for_mirror)
    unknown = availability_pb2.CellName(
        sku=common_pb2.Sku(code="nobody has this"), location=common_pb2.Location(id=goods.at)
    )
    known = availability_pb2.CellName(
        sku=common_pb2.Sku(code=goods.sku_codes[1]),
        location=common_pb2.Location(code=goods.location_codes[0]),
    )
    reply = await shop.peer(path).availability.GetCells(
        availability_pb2.GetCellsRequest(cells=[unknown, known])
    )
    assert [(each.found, each.on_hand, each.sku.id) for each in reply.cells] == [
        (False, 0, 0),
        (True, 3, goods.skus[1]),
    ]


@on_both_paths
async def test_list_cells(shop: Shop, path: str) -> None:
    goods = await shop.goods(skus=5, locations=2, stock=3)
    sku, at = goods.skus[2], goods.locations[1]
    await shop.shard.price.SetPrice(price_lines([(sku, at, 199)], "EUR"))
    held = await shop.shard.stock.Reserve(reserve([(sku, at, 1)]))
    await asyncio.to_thread(shop.stack.wait_for_mirror)
    request = availability_pb2.ListCellsRequest(
        locations=[
            common_pb2.Location(code=goods.location_codes[1]),
            common_pb2.Location(code="nobody has this"),
        ]
    )
    pages = [page async for page in shop.peer(path).availability.ListCells(request)]
    (page,) = pages
    assert page.cells == 5
    assert np.frombuffer(page.sku, "<u4").tolist() == goods.skus
    assert np.frombuffer(page.location, "<u4").tolist() == [at] * 5
    assert np.frombuffer(page.on_hand, "<i8").tolist() == [3] * 5
    assert np.frombuffer(page.reserved, "<i8").tolist() == [0, 0, 1, 0, 0]
    assert np.frombuffer(page.price_minor, "<i8").tolist() == [0, 0, 199, 0, 0]
    assert np.frombuffer(page.price_version, "<u4").tolist() == [0, 0, 1, 0, 0]
    assert (page.at[0].epoch, page.at[0].seq) >= (held.epoch, held.seq)
    everything = availability_pb2.ListCellsRequest()
    counts = [page.cells async for page in shop.peer(path).availability.ListCells(everything)]
    assert sum(counts) == (await shop.status())["cells"]


# --- deltas ---------------------------------------------------------------------------------------


class Watcher:
    """A subscription, frame by frame."""

    def __init__(self, peer: Peer, locations: list[int], token: bytes = b"", **more: int) -> None:
        self._call = peer.deltas.Subscribe(
            deltas_pb2.SubscribeRequest(
                locations=[common_pb2.Location(id=each) for each in locations],
                resume_token=token,
                **more,
            )
        )

    async def frame(self, timeout_s: float = 5.0) -> deltas_pb2.Frame:
        async with asyncio.timeout(timeout_s):
            return await self._call.read()

    async def snapshot(self) -> tuple[dict[tuple[int, int], tuple[int, ...]], bytes]:
        """The cells of a whole snapshot, and the token that closes it."""
        cells: dict[tuple[int, int], tuple[int, ...]] = {}
        while (frame := await self.frame()).kind == deltas_pb2.FRAME_KIND_SNAPSHOT:
            assert not frame.resume_token
            cells |= cells_of(frame)
        assert frame.kind == deltas_pb2.FRAME_KIND_SNAPSHOT_END
        return cells, frame.resume_token

    def cancel(self) -> None:
        self._call.cancel()


def cells_of(frame: deltas_pb2.Frame) -> dict[tuple[int, int], tuple[int, ...]]:
    """(on_hand, available, price_minor, price_version) by (sku, location)."""
    columns = [
        np.frombuffer(getattr(frame, name) or bytes(8 * frame.cells), dtype)[: frame.cells].tolist()
        for name, dtype in (
            ("sku", "<u4"),
            ("location", "<u4"),
            ("on_hand", "<i8"),
            ("available", "<i8"),
            ("price_minor", "<i8"),
            ("price_version", "<u4"),
        )
    ]
    return {(row[0], row[1]): tuple(row[2:]) for row in zip(*columns, strict=True)}


Watch = Callable[..., Watcher]


@pytest.fixture
async def watch(shop: Shop) -> AsyncIterator[Watch]:
    made: list[Watcher] = []

    def watch(*args: Any, **more: int) -> Watcher:
        made.append(Watcher(shop.gateway, *args, **more))
        return made[-1]

    yield watch
    for watcher in made:
        watcher.cancel()


async def test_a_watcher_gets_a_snapshot_and_then_each_batch_whole(
    shop: Shop, watch: Watch
) -> None:
    skus = 3_000
    goods = await shop.goods(skus=skus, stock=5)
    watcher = watch(goods.locations)
    cells, _ = await watcher.snapshot()
    assert cells == {(sku, goods.at): (5, 5, 0, 0) for sku in goods.skus}
    for price_minor in range(100, 105):
        batch = stock_pb2.SubmitRequest(
            op_id=batch_id(),
            lines=skus,
            kind=bytes([stock_pb2.KIND_SET_PRICE]),
            sku=np.array(goods.skus, "<u4").tobytes(),
            location=np.array([goods.at], "<u4").tobytes(),
            value=np.array([price_minor], "<i8").tobytes(),
            currency=np.array([978], "<u2").tobytes(),
        )
        assert (await shop.shard.stock.Submit(batch)).status == b""
    seen: list[int] = []
    while not seen or seen[-1] != 104:
        frame = await watcher.frame()
        assert frame.kind == deltas_pb2.FRAME_KIND_DELTA
        assert frame.resume_token
        told = cells_of(frame)
        assert len(told) == skus  # never half a batch
        (price_minor,) = {cell[2] for cell in told.values()}
        assert {cell[3] for cell in told.values()} == {price_minor - 99}
        seen.append(price_minor)
    assert seen == sorted(set(seen))  # newer and newer; one between may be left out


async def test_a_watcher_resumes_where_it_was(shop: Shop, watch: Watch) -> None:
    goods = await shop.goods(skus=3, stock=5)
    watcher = watch(goods.locations)
    _, token = await watcher.snapshot()
    watcher.cancel()
    changed = goods.skus[1]
    sold = await shop.gateway.stock.Sale(of([(changed, goods.at, 2)]))
    assert sold.status == OK
    resumed = watch(goods.locations, token)
    frame = await resumed.frame()
    assert frame.kind == deltas_pb2.FRAME_KIND_DELTA
    assert cells_of(frame) == {(changed, goods.at): (3, 3, 0, 0)}
    assert [(each.epoch, each.seq) for each in frame.at] >= [(sold.epoch, sold.seq)]
    assert frame.block_now_ns == sold.now_ns
    # The same token again: at least once, never silence.
    assert cells_of(await watch(goods.locations, token).frame()) == cells_of(frame)


async def test_a_watcher_is_told_whom_a_shortage_endangers_until_it_is_over(
    shop: Shop, watch: Watch
) -> None:
    goods = await shop.goods(stock=5)
    held = [await shop.shard.stock.Reserve(reserve([(goods.sku, goods.at, 2)])) for _ in range(2)]
    await shop.shard.stock.Commit(on_hold(held[1].hold_id))
    await asyncio.to_thread(shop.stack.wait_for_mirror)
    watcher = watch(goods.locations)
    await watcher.snapshot()
    await shop.shard.stock.Sale(of([(goods.sku, goods.at, 4)]))
    (told,) = (await watcher.frame()).shortages
    assert (told.sku, told.location, told.shortage) == (goods.sku, goods.at, 3)
    assert [(each.hold_id, each.pending, each.committed) for each in told.holds] == [
        (held[0].hold_id, 2, 0),  # pending ones first
        (held[1].hold_id, 0, 2),
    ]
    late = watch(goods.locations)  # a snapshot says it too
    snapshot = await late.frame()
    assert list(snapshot.shortages) == [told]
    of_prices = watch(goods.locations, fields=deltas_pb2.FIELDS_PRICE)
    assert not (await of_prices.frame()).shortages
    await shop.shard.stock.Receive(of([(goods.sku, goods.at, 3)]))
    over = await watcher.frame()
    assert cells_of(over)[goods.sku, goods.at][1] == 0
    assert not over.shortages


async def test_a_watcher_of_prices_is_not_told_of_stock(shop: Shop, watch: Watch) -> None:
    goods = await shop.goods(skus=2, stock=5)
    watcher = watch(goods.locations, fields=deltas_pb2.FIELDS_PRICE)
    await watcher.snapshot()
    await shop.shard.stock.Sale(of([(goods.sku, goods.at, 1)]))
    await shop.shard.price.SetPrice(price_lines([(goods.skus[1], goods.at, 199)], "EUR"))
    frame = await watcher.frame()
    assert cells_of(frame) == {(goods.skus[1], goods.at): (0, 0, 199, 1)}
    assert frame.on_hand == frame.available == b""


async def test_a_watcher_of_nothing_is_kept_up_to_date(shop: Shop, watch: Watch) -> None:
    """Heartbeats carry a token that moves on while nothing of the watcher's changes."""
    quiet, busy = await shop.goods(), await shop.goods(stock=50)
    watcher = watch(quiet.locations, heartbeat_ms=100)
    cells, first = await watcher.snapshot()
    assert cells == {}
    sold = await shop.shard.stock.Sale(of([(busy.sku, busy.at, 1)]))
    async with asyncio.timeout(5):
        while True:
            frame = await watcher.frame()
            assert (frame.kind, frame.cells) == (deltas_pb2.FRAME_KIND_HEARTBEAT, 0)
            if [(each.epoch, each.seq) for each in frame.at] >= [(sold.epoch, sold.seq)]:
                break
    assert frame.resume_token != first
    resumed = watch(quiet.locations, frame.resume_token, heartbeat_ms=100)
    assert (await resumed.frame()).kind == deltas_pb2.FRAME_KIND_HEARTBEAT


async def test_a_token_of_another_filter_starts_over_and_says_so(shop: Shop, watch: Watch) -> None:
    goods = await shop.goods(locations=2, stock=5)
    watcher = watch(goods.locations[:1])
    _, token = await watcher.snapshot()
    other = watch(goods.locations[1:], token)
    assert (await other.frame()).kind == deltas_pb2.FRAME_KIND_COMPACTED
    cells, _ = await other.snapshot()
    assert cells == {(goods.sku, goods.locations[1]): (5, 5, 0, 0)}


@pytest.mark.parametrize(
    ("request_of", "field"),
    [
        ({"resume_token": b"no token"}, "resume_token"),
        ({"heartbeat_ms": 99}, "heartbeat_ms"),
        ({"heartbeat_ms": 60_001}, "heartbeat_ms"),
        ({"fields": 3}, "fields"),
        ({"fields": -1}, "fields"),
        ({"locations": [common_pb2.Location(code="nobody has this")]}, "locations[0].code"),
        ({"locations": [common_pb2.Location()]}, "locations[0].id"),
        ({"skus": [common_pb2.Sku(id=1), common_pb2.Sku(id=2**32 - 1)]}, "skus[1].id"),
        ({"skus": [common_pb2.Sku(id=1)] * 10_001}, "skus"),
    ],
)
async def test_a_subscription_that_makes_no_sense(
    shop: Shop, request_of: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.gateway.deltas.Subscribe(deltas_pb2.SubscribeRequest(**request_of)).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(caught.value)[0] == field


async def test_cancelled_watchers_leave_nothing(shop: Shop) -> None:
    goods = await shop.goods(stock=5)
    before = (await asyncio.to_thread(shop.stack.gateway_status))["subscribers"]
    for _ in range(50):
        watcher = Watcher(shop.gateway, goods.locations)
        await watcher.frame()
        watcher.cancel()

    async def is_nobody_there() -> bool:
        return (await asyncio.to_thread(shop.stack.gateway_status))["subscribers"] <= before

    await until(is_nobody_there)


# --- health and reflection ------------------------------------------------------------------------

SERVICES = {
    "gateway": {
        "Stock",
        "Transfers",
        "Price",
        "Availability",
        "Catalog",
        "Directory",
        "Deltas",
    },
    "shard": {"Stock", "Price", "Availability", "Catalog", "Directory"},
}
STANDARD = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@on_both_paths
async def test_health(shop: Shop, path: str) -> None:
    async with grpc.aio.insecure_channel(shop.peer(path).address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *(f"onhand.v1.{name}" for name in SERVICES[path])):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING, service
        watch = health.Watch(health_pb2.HealthCheckRequest(service="onhand.v1.Stock"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="onhand.v1.Nothing"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@on_both_paths
async def test_reflection_is_enough_to_make_a_call(shop: Shop, path: str) -> None:
    """What grpcurl does: ask what there is, fetch descriptors, call with JSON."""
    goods = await shop.goods(stock=5)
    asked = {
        "opId": base64.b64encode(op()).decode(),
        "lines": [
            {
                "sku": {"code": goods.sku_codes[0]},
                "location": {"code": goods.location_codes[0]},
                "quantity": "2",
            }
        ],
        "ttlMs": "60000",
    }
    reply = await asyncio.to_thread(called_by_reflection, shop.peer(path).address, path, asked)
    assert reply.get("status", "STATUS_OK") == "STATUS_OK"
    assert reply["lines"] == [{"available": "3"}]
    assert reply["holdId"] == asked["opId"]
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 5, "reserved": 2}


def called_by_reflection(address: str, path: str, asked: dict[str, object]) -> dict[str, object]:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        ours = {f"onhand.v1.{name}" for name in SERVICES[path]}
        assert set(database.get_services()) == ours | STANDARD
        pool = DescriptorPool(database)
        method = pool.FindServiceByName("onhand.v1.Stock").FindMethodByName("Reserve")
        input_type = message_factory.GetMessageClass(method.input_type)
        output_type = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            "/onhand.v1.Stock/Reserve",
            request_serializer=input_type.SerializeToString,
            response_deserializer=output_type.FromString,
        )
        reply = call(json_format.ParseDict(asked, input_type()), timeout=10)
        found: dict[str, object] = json_format.MessageToDict(reply)
        return found


def test_the_stack_tells_its_health(stack: Stack) -> None:
    """What `onhand status` shows."""
    assert stack.status()["epoch"] >= 1
    assert [mirror["shard"] for mirror in stack.gateway_status()["mirrors"]] == [0]
