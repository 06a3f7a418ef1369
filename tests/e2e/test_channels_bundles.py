"""Channels and bundles from their rules in the catalogue to what the shards judge, on a real stack."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from grpc.aio import AioRpcError

from adapters.client import Client, Disposition, InvalidArgument, PriceLine, Sku
from engine.operations import Kind
from engine.status import Status
from onhand.v1 import catalog_pb2, common_pb2, stock_pb2
from tests.e2e.conftest import (
    Goods,
    Shop,
    batch_id,
    line,
    of,
    on_hold,
    op,
    reserve,
    violation,
)

OK = common_pb2.STATUS_OK
_numbers = itertools.count(1)


async def channel_of(shop: Shop, code: str = "", **rules: object) -> tuple[str, int]:
    """Set a channel that no other test knows, or one that there is: its code and number."""
    code = code or f"marketplace:{next(_numbers)}"
    channel = catalog_pb2.Channel(code=code, **rules)  # type: ignore[arg-type]
    request = catalog_pb2.SetChannelRequest(op_id=op(), channel=channel)
    reply = await shop.gateway.catalog.SetChannel(request)
    return code, reply.number


def listed(location: int | str, buffer: int | None = None) -> catalog_pb2.ChannelLocation:
    name = (
        common_pb2.Location(code=location)
        if isinstance(location, str)
        else common_pb2.Location(id=location)
    )
    return catalog_pb2.ChannelLocation(location=name, buffer=buffer)


async def bundle_of(shop: Shop, *parts: tuple[int | str, int]) -> str:
    """Add a bundle that no other test knows: its code."""
    code = f"BUNDLE-{next(_numbers)}"
    entry = catalog_pb2.SkuEntry(code=code)
    for sku, quantity in parts:
        name = common_pb2.Sku(code=sku) if isinstance(sku, str) else common_pb2.Sku(id=sku)
        entry.components.add(sku=name, quantity=quantity)
    await shop.gateway.catalog.AddSkus(catalog_pb2.AddSkusRequest(skus=[entry]))
    return code


@asynccontextmanager
async def client_of(shop: Shop) -> AsyncIterator[Client]:
    gateway = await asyncio.to_thread(lambda: shop.stack.gateway_address)
    async with Client.connect(gateway) as client:
        yield client


async def statuses(
    shop: Shop, path: str, goods: Goods, channel: int, *quantities: int
) -> list[Status]:
    """Reserve in a batch, each line by itself."""
    lines = len(quantities)
    reply = await shop.peer(path).stock.Submit(
        stock_pb2.SubmitRequest(
            op_id=batch_id(), lines=lines, kind=b"\1",
            sku=np.uint32(goods.sku).tobytes(), location=np.uint32(goods.at).tobytes(),
            quantity=np.array(quantities, "<i8").tobytes(), value=np.int64(60_000).tobytes(),
            channel=np.uint16(channel).tobytes(),
        )
    )  # fmt: skip
    return [Status(code) for code in reply.status or bytes(lines)]


on_both_paths = pytest.mark.parametrize("path", ["gateway", "shard"])


# --- channels -------------------------------------------------------------------------------------


@on_both_paths
async def test_a_channel_may_not_sell_the_last_ones(shop: Shop, path: str) -> None:
    goods = await shop.goods(stock=10)
    code, number = await channel_of(shop, buffer=4)
    held = await shop.peer(path).stock.Reserve(
        stock_pb2.ReserveRequest(op_id=op(), lines=[line(goods.sku, goods.at, 5)], channel=code)
    )
    assert held.status == OK
    assert await statuses(shop, path, goods, number, 2, 1) == [Status.INSUFFICIENT_STOCK, Status.OK]
    assert await statuses(shop, path, goods, number, 1) == [Status.INSUFFICIENT_STOCK]
    refused = await shop.peer(path).stock.Reserve(
        stock_pb2.ReserveRequest(op_id=op(), lines=[line(goods.sku, goods.at, 1)], channel=code)
    )
    assert refused.lines[0].available == 4, "of which the channel may not sell any"
    assert refused.message == "quantity: more than is available to the channel"
    assert await statuses(shop, path, goods, 0, 4) == [Status.OK], "no channel, no buffer"
    assert (await shop.counters(goods.sku, goods.at))["reserved"] == 10


async def test_a_changed_rule_is_in_force_when_it_is_answered(shop: Shop) -> None:
    goods = await shop.goods(stock=100)
    code, number = await channel_of(shop, buffer=100)
    refused, held = [Status.INSUFFICIENT_STOCK], [Status.OK]
    for n in range(10):
        await channel_of(shop, code, buffer=100 if n % 2 else 0)
        expected = refused if n % 2 else held
        for path in ("gateway", "shard"):
            assert await statuses(shop, path, goods, number, 1) == expected
    assert await channel_of(shop, code, buffer=100) == (code, number)


async def test_a_channel_sees_only_its_locations(shop: Shop) -> None:
    goods = await shop.goods(locations=3, stock=10)
    here, there, elsewhere = goods.locations
    code, _ = await channel_of(
        shop, buffer=1, only_listed=True, locations=[listed(here), listed(there, 6)]
    )

    async def order(at: int, quantity: int, channel: str) -> Status:
        request = reserve([(goods.sku, at, quantity)])
        request.channel = channel
        return Status((await shop.gateway.stock.Reserve(request)).status)

    assert await order(elsewhere, 1, code) == Status.NOT_IN_CHANNEL
    assert await order(here, 10, code) == Status.INSUFFICIENT_STOCK
    assert await order(there, 5, code) == Status.INSUFFICIENT_STOCK
    assert await order(here, 9, code) == Status.OK
    assert await order(there, 4, code) == Status.OK
    assert await order(here, 1, "nobody's channel") == Status.UNKNOWN_CHANNEL

    async with client_of(shop) as client:
        names = [(goods.sku, at) for at in goods.locations]
        cells = await client.get_cells(names, channel=code)
        assert [(cell.found, cell.available_to_channel) for cell in cells] == [
            (True, 0), (True, 0), (False, 0),
        ]  # fmt: skip
        assert [cell.available for cell in await client.get_cells(names)] == [1, 6, 10]
        pages = [page async for page in client.list_cells(goods.locations, channel=code)]
        seen = {at for page in pages for at in page.location.tolist()}
        assert seen == {here, there}
        (channel,) = [each for each in await client.list_channels() if each.code == code]
        assert channel.locations == {here: None, there: 6}
        with pytest.raises(InvalidArgument):
            await client.get_cells(names, channel="nobody's channel")


async def test_locations_that_come_later_follow_the_rules_that_there_are(shop: Shop) -> None:
    code, number = await channel_of(shop, buffer=3)
    listed_only, other = await channel_of(shop, only_listed=True)
    goods = await shop.goods(stock=4)
    assert await statuses(shop, "shard", goods, number, 2, 1) == [
        Status.INSUFFICIENT_STOCK,
        Status.OK,
    ]
    assert await statuses(shop, "shard", goods, other, 1) == [Status.NOT_IN_CHANNEL]
    assert await statuses(shop, "shard", goods, 31, 1) == [Status.UNKNOWN_CHANNEL]
    assert (code, listed_only) != ("", "")


async def test_rules_outlive_the_shard(shop: Shop) -> None:
    goods = await shop.goods(stock=10)
    code, number = await channel_of(shop, buffer=7)
    assert await statuses(shop, "shard", goods, number, 4) == [Status.INSUFFICIENT_STOCK]
    await asyncio.to_thread(shop.stack.restart_shard)
    async with Shop(shop.stack) as again:
        for path in ("gateway", "shard"):
            expected = [Status.INSUFFICIENT_STOCK, Status.OK]
            assert await statuses(again, path, goods, number, 4, 1) == expected
            assert await channel_of(again, code, buffer=6) == (code, number)
    await shop.audit()


# --- bundles --------------------------------------------------------------------------------------


@on_both_paths
async def test_a_bundle_is_reserved_handed_over_and_returned_by_its_components(
    shop: Shop, path: str
) -> None:
    goods = await shop.goods(skus=2, stock=20)
    first, second = goods.skus
    box = await bundle_of(shop, (first, 3), (goods.sku_codes[1], 1))
    stock = shop.peer(path).stock
    held = await stock.Reserve(reserve([(box, goods.at, 2), (first, goods.at, 1)]))
    assert (held.status, [each.status for each in held.lines]) == (OK, [OK, OK])
    assert [each.available for each in held.lines] == [4, 13], "boxes, then pieces"
    assert await shop.counters(first, goods.at) == {"on_hand": 20, "reserved": 7}
    assert await shop.counters(second, goods.at) == {"on_hand": 20, "reserved": 2}

    assert (await stock.Commit(on_hold(held.hold_id))).status == OK
    part = [(box, goods.at, 1)]
    fulfilled = await stock.Fulfil(on_hold(held.hold_id, part))
    assert (fulfilled.status, len(fulfilled.lines)) == (OK, 1)
    assert await shop.counters(first, goods.at) == {"on_hand": 17, "committed": 4}
    assert (await stock.Cancel(on_hold(held.hold_id, part))).status == OK
    assert await shop.counters(second, goods.at) == {"on_hand": 19}

    back = stock_pb2.ReturnLine(line=line(box, goods.at, 1), against=held.hold_id)
    for expected in (Status.OK, Status.EXCEEDS_HOLD):
        returned = await stock.Return(stock_pb2.ReturnRequest(op_id=op(), lines=[back]))
        assert returned.status == expected
        assert await shop.counters(second, goods.at) == {"on_hand": 20}
    await shop.audit()


async def test_of_a_bundle_all_components_are_held_or_none(shop: Shop) -> None:
    goods = await shop.goods(skus=2, stock=10)
    first, second = goods.skus
    box = await bundle_of(shop, (first, 1), (second, 4))
    request = reserve([(first, goods.at, 1), (box, goods.at, 3)])
    for _ in range(2):  # the same again is answered the same
        refused = await shop.gateway.stock.Reserve(request)
        assert refused.status == Status.INSUFFICIENT_STOCK
        assert [each.status for each in refused.lines] == [
            Status.LINKED_LINE_REFUSED,
            Status.INSUFFICIENT_STOCK,
        ]
    assert await shop.counters(first, goods.at) == {"on_hand": 10}
    request.lines[1].quantity = 2
    assert (await shop.gateway.stock.Reserve(request)).status == Status.OP_ID_REUSED
    request.op_id = op()
    assert (await shop.gateway.stock.Reserve(request)).status == OK


@on_both_paths
async def test_a_bundle_at_the_till(shop: Shop, path: str) -> None:
    goods = await shop.goods(skus=2, stock=10)
    first, second = goods.skus
    box = await bundle_of(shop, (first, 2), (second, 1))
    stock = shop.peer(path).stock
    receipt = stock_pb2.ReceiptLine(terminal="T1", receipt="R1", line=1)

    def sale() -> stock_pb2.SaleRequest:
        return stock_pb2.SaleRequest(
            op_id=op(), lines=[line(box, goods.at, 2)], receipt_lines=[receipt]
        )

    sold = await stock.Sale(sale())
    assert sold.status == OK
    assert (await stock.Sale(sale())).status == Status.ALREADY_RECORDED
    assert await shop.counters(first, goods.at) == {"on_hand": 6}
    assert await shop.counters(second, goods.at) == {"on_hand": 8}

    async def bring_back(sku: int | str, quantity: int, **of_what: object) -> Status:
        back = stock_pb2.ReturnLine(
            line=line(sku, goods.at, quantity),
            disposition=stock_pb2.Disposition.ValueType(Disposition.RESTOCK),
            **of_what,  # type: ignore[arg-type]
        )
        request = stock_pb2.ReturnRequest(op_id=op(), lines=[back])
        return Status((await stock.Return(request)).status)

    assert await bring_back(box, 1, receipt_line=receipt) == Status.OK
    assert await bring_back(first, 1, against=sold.lines[0].sale_id) == Status.OK
    assert await bring_back(first, 2, receipt_line=receipt) == Status.EXCEEDS_HOLD
    assert await bring_back(box, 1) == Status.OK, "blind"
    assert await shop.counters(first, goods.at) == {"on_hand": 11}
    assert await shop.counters(second, goods.at) == {"on_hand": 10}
    assert await bring_back(box, 1, receipt_line=receipt) == Status.EXCEEDS_HOLD, "whole or not"

    asked = stock_pb2.GetHoldRequest(hold_id=sold.lines[0].sale_id)
    found = await stock.GetHold(asked)
    assert found.state == stock_pb2.HOLD_STATE_FULFILLED
    assert [(each.sku.id, each.fulfilled, each.returned) for each in found.lines] == [
        (first, 4, 3),
        (second, 2, 1),
    ]
    history = await stock.GetHistory(asked)
    assert [each.fulfilled for each in history.hold.lines] == [4, 2]
    done = [(each.kind, each.sku.id) for each in history.events if not each.status]
    sales, returns = [(Kind.SALE, first), (Kind.SALE, second)], [(Kind.RETURN, first)]
    assert done == [*sales, *returns, (Kind.RETURN, second), *returns]


async def test_what_there_is_of_a_bundle(shop: Shop) -> None:
    goods = await shop.goods(skus=2, stock=10)
    first, second = goods.skus
    box = await bundle_of(shop, (first, 3), (second, 1))
    code, _ = await channel_of(shop, buffer=5)
    async with client_of(shop) as client:
        assert (await client.set_prices([PriceLine(box, goods.at, 999)], currency="EUR")).ok
        for names in ([(box, goods.at)], [(first, goods.at), (box, goods.at)]):
            cell = (await client.get_cells(names, channel=code))[-1]
            assert (cell.found, cell.available, cell.available_to_channel) == (True, 3, 1)
            assert (cell.on_hand, cell.price_minor) == (0, 999)
        found = [sku async for sku in client.list_skus() if sku.code == box]
        assert found[0].components == ((first, 3), (second, 1))
        with pytest.raises(InvalidArgument, match="what it is made of never changes"):
            await client.add_skus([Sku(box, components=((first, 4), (second, 1)))])


@on_both_paths
async def test_stock_of_a_bundle_is_its_components(shop: Shop, path: str) -> None:
    goods = await shop.goods(skus=1, stock=10)
    box = await bundle_of(shop, (goods.sku, 3))
    async with client_of(shop) as client:
        (box_id,) = [sku.id async for sku in client.list_skus() if sku.code == box]
    stock = shop.peer(path).stock
    lines = of([(goods.sku, goods.at, 1), (box, goods.at, 1)]).lines
    told = f"{box!r} is a bundle, which has no stock of its own: name its components"
    for call, request in (
        (stock.Receive, stock_pb2.ReceiveRequest(op_id=op(), lines=lines)),
        (stock.Count, stock_pb2.CountRequest(op_id=op(), lines=lines)),
        (stock.Adjust, stock_pb2.AdjustRequest(op_id=op(), lines=lines)),
        (stock.WriteOff, stock_pb2.WriteOffRequest(op_id=op(), lines=lines)),
        (stock.SetSafetyStock, stock_pb2.LinesRequest(op_id=op(), lines=lines)),
        (stock.Expect, stock_pb2.ExpectRequest(op_id=op(), lines=lines)),
    ):
        with pytest.raises(AioRpcError) as refused:
            await call(request)
        assert violation(refused.value) == ("lines[1].sku", told)
    batch = stock_pb2.SubmitRequest(
        op_id=batch_id(), lines=2, kind=b"\1", location=np.uint32(goods.at).tobytes(),
        sku=np.array([goods.sku, box_id], "<u4").tobytes(),
        quantity=np.int64(1).tobytes(), value=np.int64(60_000).tobytes(),
    )  # fmt: skip
    with pytest.raises(AioRpcError) as refused:
        await stock.Submit(batch)
    told = "that of line 1 is a bundle: use single calls, or name its components"
    assert violation(refused.value) == ("sku", told)
    partial = reserve([(box, goods.at, 1)])
    partial.allow_partial = True
    with pytest.raises(AioRpcError) as refused:
        await stock.Reserve(partial)
    assert violation(refused.value)[0] == "lines[0].sku"
    assert await shop.counters(goods.sku, goods.at) == {"on_hand": 10}
