"""The services over a real server on loopback, with a reference machine behind them."""

import asyncio
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actors.ports import Overloaded, Unavailable
from actors.router import Router
from adapters.receipts import sale_id
from adapters.rpc import requests
from adapters.rpc.availability import CELLS_PER_PAGE, AvailabilityServicer
from adapters.rpc.directory import DirectoryServicer
from adapters.rpc.price import PriceServicer
from adapters.rpc.server import MAX_MESSAGE_BYTES, CallMetrics, Gate, NoMetrics, Server, open_server
from adapters.rpc.stock import StockServicer
from adapters.rpc.transfer import TransfersServicer
from engine import limits
from engine.catalogue import Catalogue
from engine.catalogue_block import CatalogueBlock
from engine.entries import Component, Location, Sku
from engine.operations import COLUMNS, Kind, Request, id_to_pair
from engine.shard_map import ShardMap
from engine.status import MESSAGES, Status
from onhand.v1 import (
    availability_pb2,
    availability_pb2_grpc,
    common_pb2,
    directory_pb2,
    directory_pb2_grpc,
    price_pb2,
    price_pb2_grpc,
    stock_pb2,
    stock_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tests.fakes.shard import FakeShard

USD, EUR = 840, 978
MAP = ShardMap(7, 2, {3: (0, 1)})


def some_catalogue() -> Catalogue:
    catalogue = Catalogue()
    skus = [Sku(f"sku-{i}") for i in range(1, 9)]
    locations = [Location(f"store-{i}", "USD") for i in range(1, 9)]
    catalogue.apply(CatalogueBlock(1, 1, skus=skus, locations=locations))
    box = Sku("box", components=(Component(1, 2), Component(2, 3)))
    catalogue.apply(CatalogueBlock(1, 2, 0, len(skus), len(locations), [box]))
    return catalogue


@dataclass
class Shop:
    shard: FakeShard
    server: Server
    channel: grpc.aio.Channel
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stock = stock_pb2_grpc.StockStub(self.channel)
        self.price = price_pb2_grpc.PriceStub(self.channel)
        self.transfers = transfer_pb2_grpc.TransfersStub(self.channel)
        self.availability = availability_pb2_grpc.AvailabilityStub(self.channel)
        self.directory = directory_pb2_grpc.DirectoryStub(self.channel)

    async def receive(self, quantity: int, sku: int = 1, location: int = 1) -> None:
        request = stock_pb2.LinesRequest(op_id=an_id(), lines=[line(sku, location, quantity)])
        assert (await self.stock.Receive(request)).status == Status.OK


async def open_shop(
    gate: Gate | None = None, shards: int = 1, metrics: CallMetrics | None = None
) -> Shop:
    catalogue, own_map = some_catalogue(), ShardMap(7, shards)
    links = {number: FakeShard(number, own_map) for number in range(shards)}
    router = Router(links, lambda: own_map)
    ended: list[str] = []

    async def end() -> None:
        ended.append("streams")

    async def addresses() -> dict[int, tuple[str, int]]:
        return {1: ("127.0.0.1:1", 4)}

    services = [
        partial(stock_pb2_grpc.add_StockServicer_to_server, StockServicer(router, catalogue)),
        partial(
            price_pb2_grpc.add_PriceServicer_to_server, PriceServicer(router, router, catalogue)
        ),
        partial(
            transfer_pb2_grpc.add_TransfersServicer_to_server, TransfersServicer(router, catalogue)
        ),
        partial(
            availability_pb2_grpc.add_AvailabilityServicer_to_server,
            AvailabilityServicer(router, catalogue),
        ),
        partial(
            directory_pb2_grpc.add_DirectoryServicer_to_server,
            DirectoryServicer(lambda: MAP, addresses),
        ),
    ]
    server = await open_server(services, end_streams=[end], gate=gate, metrics=metrics)
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options)
    return Shop(links[0], server, channel, ended)


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    opened = await open_shop()
    yield opened
    await opened.channel.close()
    await opened.server.stop(0)


def an_id() -> bytes:
    return os.urandom(16)


AN_ID = b"i" * 14 + b"\0\0"  # that a batch may have too


def line(sku: int | str, location: int | str, quantity: int) -> common_pb2.Line:
    return common_pb2.Line(sku=a_sku(sku), location=a_place(location), quantity=quantity)


def a_sku(name: int | str) -> common_pb2.Sku:
    return common_pb2.Sku(code=name) if isinstance(name, str) else common_pb2.Sku(id=name)


def a_place(name: int | str) -> common_pb2.Location:
    return common_pb2.Location(code=name) if isinstance(name, str) else common_pb2.Location(id=name)


async def refused_field(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    assert status is not None
    details = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(details)
    (violation,) = details.field_violations
    assert violation.description
    assert caught.value.details() == f"{violation.field}: {violation.description}"
    return str(violation.field)


# --- the life of an order -------------------------------------------------------------------------


async def test_an_order_from_reserve_to_fulfilment(shop: Shop) -> None:
    await shop.receive(10)
    op_id = an_id()
    request = stock_pb2.ReserveRequest(op_id=op_id, lines=[line("sku-1", "store-1", 4)], ttl_ms=500)
    reserved = await shop.stock.Reserve(request)
    assert (reserved.status, reserved.hold_id, reserved.message) == (Status.OK, op_id, "")
    assert reserved.deadline_ns == reserved.now_ns + 500_000_000
    assert [each.available for each in reserved.lines] == [6]
    assert await shop.stock.Reserve(request) == reserved

    hold = await shop.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op_id))
    assert (hold.state, hold.deadline_ns) == (stock_pb2.HOLD_STATE_PENDING, reserved.deadline_ns)
    assert [(each.sku.id, each.location.id, each.pending) for each in hold.lines] == [(1, 1, 4)]
    assert [(each.sku.code, each.location.code) for each in hold.lines] == [("sku-1", "store-1")]

    part = stock_pb2.HoldRequest(
        op_id=an_id(), hold_id=op_id, lines=[line(1, 1, 3)], release_rest=True
    )
    assert [each.available for each in (await shop.stock.Commit(part)).lines] == [7]
    whole = stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id, location=a_place("store-1"))
    assert (await shop.stock.Fulfil(whole)).status == Status.OK
    again = await shop.stock.Cancel(stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id))
    assert again.status == Status.HOLD_NOT_COMMITTED
    assert again.message == MESSAGES[Status.HOLD_NOT_COMMITTED]
    hold = await shop.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op_id))
    assert hold.state == stock_pb2.HOLD_STATE_FULFILLED


async def test_no_time_to_live_is_the_default(shop: Shop) -> None:
    await shop.receive(1)
    request = stock_pb2.ReserveRequest(op_id=an_id(), lines=[line(1, 1, 1)])
    reply = await shop.stock.Reserve(request)
    assert reply.deadline_ns - reply.now_ns == limits.DEFAULT_TTL_MS * limits.NS_PER_MS


async def test_an_order_is_refused_by_the_line_that_is_to_blame(shop: Shop) -> None:
    await shop.receive(5)
    lines = [line(1, 1, 3), line(1, 1, 3), line(2, 1, 1)]
    reply = await shop.stock.Reserve(stock_pb2.ReserveRequest(op_id=an_id(), lines=lines))
    assert reply.status == Status.INSUFFICIENT_STOCK
    assert reply.hold_id == b""
    assert reply.deadline_ns == 0
    linked = Status.LINKED_LINE_REFUSED
    assert [each.status for each in reply.lines] == [linked, Status.INSUFFICIENT_STOCK, linked]
    released = stock_pb2.HoldRequest(op_id=an_id(), hold_id=an_id())
    assert (await shop.stock.Release(released)).status == Status.UNKNOWN_HOLD


async def test_parts_of_a_hold_stand_or_fall_together(shop: Shop) -> None:
    await shop.receive(5)
    await shop.receive(5, sku=2)
    op_id = an_id()
    lines = [line(1, 1, 2), line(2, 1, 2)]
    await shop.stock.Reserve(stock_pb2.ReserveRequest(op_id=op_id, lines=lines))
    linked = Status.LINKED_LINE_REFUSED
    for bad, status in (
        (line(1, 1, 2), Status.EXCEEDS_HOLD),
        (line("nothing", 1, 1), Status.NOT_IN_HOLD),
        (line(2, 1, 0), Status.INVALID_QUANTITY),
    ):
        parts = [line(1, 1, 1), bad, line(2, 1, 1)]
        request = stock_pb2.HoldRequest(
            op_id=an_id(), hold_id=op_id, lines=parts, release_rest=True
        )
        reply = await shop.stock.Commit(request)
        assert [each.status for each in reply.lines] == [linked, status, linked]
        assert reply.status == status
    request.op_id = an_id()
    del request.lines[1]
    reply = await shop.stock.Commit(request)
    assert [(each.status, each.available) for each in reply.lines] == [(0, 4), (0, 4)]


async def test_facts_are_recorded_and_raise_a_shortage(shop: Shop) -> None:
    reply = await shop.stock.Sale(stock_pb2.LinesRequest(op_id=an_id(), lines=[line(1, 1, 2)]))
    assert [(each.available, each.shortage) for each in reply.lines] == [(-2, 2)]
    count = stock_pb2.LinesRequest(op_id=an_id(), lines=[line(1, 1, 7)])
    assert (await shop.stock.Count(count)).lines[0].available == 7
    kept = stock_pb2.LinesRequest(op_id=an_id(), lines=[line(1, 1, 2)])
    assert (await shop.stock.SetSafetyStock(kept)).lines[0].available == 5
    adjust = stock_pb2.AdjustRequest(op_id=an_id(), lines=[line(1, 1, -1)], reason=9)
    assert (await shop.stock.Adjust(adjust)).lines[0].available == 4
    back = [
        stock_pb2.ReturnLine(line=line(1, 1, 1), disposition=disposition)  # type: ignore[arg-type]
        for disposition in (0, 1, 2, 3)
    ]
    returned = await shop.stock.Return(stock_pb2.ReturnRequest(op_id=an_id(), lines=back))
    assert [each.status for each in returned.lines] == [0, 0, 0, Status.INVALID_DISPOSITION]
    (cell,) = (await shop.availability.GetCells(cells_request([("sku-1", "store-1")]))).cells
    shown = (cell.found, cell.on_hand, cell.damaged, cell.quality_control, cell.safety_stock)
    assert shown == (True, 9, 1, 1, 2)
    assert (cell.available, cell.sku.id, cell.sku.code) == (5, 1, "sku-1")


async def test_a_receipts_line_is_recorded_once_and_can_come_back(shop: Shop) -> None:
    await shop.receive(5)
    names = [stock_pb2.ReceiptLine(terminal="T1", receipt="4711", line=n) for n in (1, 2)]
    lines = [line(1, "store-1", 2), line(1, 1, 1)]

    async def sell(*order: int) -> common_pb2.OperationReply:
        request = stock_pb2.SaleRequest(op_id=an_id(), occurred_at_ns=10**17)
        request.lines.extend(lines[n] for n in order)
        request.receipt_lines.extend(names[n] for n in order)
        return await shop.stock.Sale(request)

    first, again = await sell(0), await sell(1, 0)
    assert [each.status for each in again.lines] == [Status.OK, Status.ALREADY_RECORDED]
    assert (again.status, again.lines[0].available) == (Status.ALREADY_RECORDED, 2)
    assert first.lines[0].sale_id == again.lines[1].sale_id == sale_id(1, "T1", "4711", 1)
    bare = await shop.stock.Sale(stock_pb2.SaleRequest(op_id=an_id(), lines=lines[:1]))
    assert bare.lines[0].sale_id == b""

    back = [
        stock_pb2.ReturnLine(line=line(1, 1, 1), receipt_line=names[0]),
        stock_pb2.ReturnLine(line=line(1, 1, 1), receipt_line=names[0], sold_at=a_place("store-1")),
        stock_pb2.ReturnLine(line=line(1, 1, 1), against=first.lines[0].sale_id),
        stock_pb2.ReturnLine(line=line(1, 1, 1)),
    ]
    returned = await shop.stock.Return(stock_pb2.ReturnRequest(op_id=an_id(), lines=back))
    assert [each.status for each in returned.lines] == [0, 0, Status.EXCEEDS_HOLD, 0]
    hold = await shop.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=first.lines[0].sale_id))
    assert [(each.fulfilled, each.returned) for each in hold.lines] == [(2, 2)]


@pytest.mark.parametrize("sold", [(1, 2), ("box", 2)], ids=["a SKU", "a bundle"])
async def test_a_receipts_line_that_comes_with_something_else_is_refused(
    shop: Shop, sold: tuple[int | str, int]
) -> None:
    await shop.receive(50)
    await shop.receive(50, 2)
    name = stock_pb2.ReceiptLine(terminal="T1", receipt="4711", line=1)

    async def sell(sku: int | str, quantity: int) -> tuple[int, str]:
        request = stock_pb2.SaleRequest(
            op_id=an_id(), lines=[line(sku, 1, quantity)], receipt_lines=[name]
        )
        reply = await shop.stock.Sale(request)
        assert (reply.status, reply.message) == (reply.lines[0].status, reply.lines[0].message)
        return reply.status, reply.message

    async def left() -> list[int]:
        cells = await shop.availability.GetCells(
            cells_request([("sku-1", "store-1"), ("sku-2", "store-1")])
        )
        return [each.on_hand for each in cells.cells]

    sku, quantity = sold
    assert await sell(sku, quantity) == (Status.OK, "")
    after = await left()
    for more in (1, -1):
        status, told = await sell(sku, quantity + more)
        assert (status, told.partition(":")[0]) == (Status.HOLD_EXISTS, "receipt_lines")
        assert "used for something else" in told
        assert (await sell(2, quantity))[0] == Status.HOLD_EXISTS
        assert (await sell(sku, quantity))[0] == Status.ALREADY_RECORDED
    assert await left() == after


async def test_a_bundle_is_not_sold_in_part_under_the_id_of_what_its_first_component_was(
    shop: Shop,
) -> None:
    """That was recorded with just this SKU and quantity, so nothing is wrong with it."""
    await shop.receive(50)
    await shop.receive(50, 2)
    name = stock_pb2.ReceiptLine(terminal="T1", receipt="4711", line=1)
    asked = cells_request([("sku-1", "store-1"), ("sku-2", "store-1")])
    for sold, status in (
        (line(1, 1, 2), Status.OK),
        (line("box", 1, 1), Status.HOLD_EXISTS),
        (line(1, 1, 2), Status.ALREADY_RECORDED),
    ):
        request = stock_pb2.SaleRequest(op_id=an_id(), lines=[sold], receipt_lines=[name])
        assert (await shop.stock.Sale(request)).status == status
        cells = (await shop.availability.GetCells(asked)).cells
        assert [each.on_hand for each in cells] == [48, 50]


def test_the_id_of_a_receipts_line_is_as_the_contract_says() -> None:
    parts = struct.pack("<IHHI", 7, 3, 2, 9) + "T\u00e9".encode() + b"R1"
    told = hashlib.blake2b(parts, digest_size=16).digest()
    assert sale_id(7, "T\u00e9", "R1", 9) == told


async def test_goods_are_set_aside_inspected_and_written_off(shop: Shop) -> None:
    back = stock_pb2.ReturnLine(line=line(1, 1, 5), disposition=1)  # type: ignore[arg-type]
    await shop.stock.Return(stock_pb2.ReturnRequest(op_id=an_id(), lines=[back]))
    looked_at = [
        stock_pb2.InspectLine(line=line("sku-1", 1, 2)),
        stock_pb2.InspectLine(line=line(1, 1, 1), disposition=2),  # type: ignore[arg-type]
        stock_pb2.InspectLine(line=line(1, 1, 3)),
    ]
    told = await shop.stock.Inspect(stock_pb2.InspectRequest(op_id=an_id(), lines=looked_at))
    assert [each.status for each in told.lines] == [0, 0, Status.EXCEEDS_SET_ASIDE]
    for bucket, status in ((0, 0), (1, 0), (2, 0), (1, Status.EXCEEDS_SET_ASIDE)):
        request = stock_pb2.WriteOffRequest(
            op_id=an_id(),
            lines=[line(1, 1, 1)],
            reason=3,
            bucket=bucket,  # type: ignore[arg-type]
        )
        assert (await shop.stock.WriteOff(request)).status == status
    (cell,) = (await shop.availability.GetCells(cells_request([("sku-1", "store-1")]))).cells
    assert (cell.on_hand, cell.damaged, cell.quality_control, cell.available) == (2, 0, 1, 1)


async def test_a_count_is_as_of_its_moment(shop: Shop) -> None:
    now = shop.shard.now_ns
    await shop.receive(10)
    sale = stock_pb2.SaleRequest(op_id=an_id(), lines=[line(1, 1, 3)])
    await shop.stock.Sale(sale)
    count = stock_pb2.CountRequest(op_id=an_id(), lines=[line(1, 1, 2)], occurred_at_ns=now + 2)
    # The receipt was before it, the sale at that very moment, which is after it.
    assert (await shop.stock.Count(count)).lines[0].available == -1
    late = stock_pb2.SaleRequest(op_id=an_id(), lines=[line(1, 1, 5)], occurred_at_ns=now - 1)
    assert (await shop.stock.Sale(late)).lines[0].available == -1
    for moment in (-1, now + limits.MAX_CLOCK_SKEW_MS * limits.NS_PER_MS + 10**9):
        wrong = {"op_id": an_id(), "lines": [line(1, 1, 1)], "occurred_at_ns": moment}
        for call in (
            shop.stock.Sale(stock_pb2.SaleRequest(**wrong)),
            shop.stock.Receive(stock_pb2.ReceiveRequest(**wrong | {"op_id": an_id()})),
            shop.stock.Count(stock_pb2.CountRequest(**wrong | {"op_id": an_id()})),
            shop.stock.Adjust(stock_pb2.AdjustRequest(**wrong | {"op_id": an_id()})),
            shop.stock.WriteOff(stock_pb2.WriteOffRequest(**wrong | {"op_id": an_id()})),
        ):
            assert (await call).status == Status.INVALID_MOMENT


async def test_a_handover_is_as_of_its_moment(shop: Shop) -> None:
    """Five of ten had left when the shelf was counted; then one is back, and had been before too."""
    stock, order = shop.stock, an_id()
    await shop.receive(10)
    await stock.Reserve(
        stock_pb2.ReserveRequest(op_id=order, lines=[line(1, 1, 5)], commit_now=True)
    )
    before = shop.shard.now_ns
    await stock.Count(stock_pb2.CountRequest(op_id=an_id(), lines=[line(1, 1, 5)]))

    async def told(call: Any, **fields: Any) -> common_pb2.OperationReply:
        request = stock_pb2.HoldRequest(op_id=an_id(), hold_id=order, **fields)
        reply: common_pb2.OperationReply = await call(request)
        request.occurred_at_ns += 1  # the same id at another moment is another request
        assert (await call(request)).status == Status.OP_ID_REUSED
        return reply

    async def on_hand() -> tuple[int, int]:
        (cell,) = (await shop.availability.GetCells(cells_request([(1, 1)]))).cells
        return cell.on_hand, cell.committed

    for ahead in (-1 - before, limits.MAX_CLOCK_SKEW_MS * limits.NS_PER_MS + 10**9):
        wrong = await told(stock.Fulfil, occurred_at_ns=before + ahead)
        assert (wrong.status, wrong.message) == (
            Status.INVALID_MOMENT,
            MESSAGES[Status.INVALID_MOMENT],
        )
    late = await told(stock.Fulfil, occurred_at_ns=before)
    assert (late.status, late.lines[0].available) == (Status.OK, 5)
    assert await on_hand() == (5, 0)
    back = await told(stock.Unfulfil, lines=[line(1, 1, 1)], occurred_at_ns=before)
    assert (back.status, back.lines[0].available) == (Status.OK, 4)
    assert await on_hand() == (5, 1)
    await told(stock.Unfulfil, lines=[line(1, 1, 1), line(1, 1, 1)])
    assert await on_hand() == (7, 3)


async def test_a_handover_that_had_failed_names_what_it_endangers(shop: Shop) -> None:
    stock, (order, held) = shop.stock, (an_id(), an_id())
    await shop.receive(5)
    await stock.Reserve(
        stock_pb2.ReserveRequest(op_id=order, lines=[line(1, 1, 5)], commit_now=True)
    )
    await stock.Fulfil(stock_pb2.HoldRequest(op_id=an_id(), hold_id=order))
    failed = shop.shard.now_ns
    await stock.Count(stock_pb2.CountRequest(op_id=an_id(), lines=[line(1, 1, 5)]))
    await stock.Reserve(stock_pb2.ReserveRequest(op_id=held, lines=[line(1, 1, 2)]))
    back = stock_pb2.HoldRequest(op_id=an_id(), hold_id=order, occurred_at_ns=failed)
    (told,) = (await stock.Unfulfil(back)).lines
    assert (told.available, [each.hold_id for each in told.endangered]) == (-2, [held])


async def test_only_handovers_have_a_moment(shop: Shop) -> None:
    stock = shop.stock
    for call in (stock.Commit, stock.Release, stock.Cancel):
        for lines in ([], [line(1, 1, 1)]):
            wrong = stock_pb2.HoldRequest(
                op_id=an_id(), hold_id=an_id(), lines=lines, occurred_at_ns=1
            )
            assert await refused_field(call(wrong)) == "occurred_at_ns"


async def test_what_is_malformed_in_facts_is_told_by_its_field(shop: Shop) -> None:
    stock, names = shop.stock, stock_pb2.ReceiptLine
    two, good = [line(1, 1, 1)] * 2, names(terminal="T", receipt="R", line=1)
    for receipts, path in (
        ([good], "receipt_lines"),
        ([good, names(receipt="R", line=1)], "receipt_lines[1].terminal"),
        ([names(terminal="x" * 65, receipt="R", line=1), good], "receipt_lines[0].terminal"),
        ([names(terminal="T", line=1), good], "receipt_lines[0].receipt"),
        ([good, names(terminal="T", receipt="R")], "receipt_lines[1].line"),
    ):
        sale = stock_pb2.SaleRequest(op_id=an_id(), lines=two, receipt_lines=receipts)
        assert await refused_field(stock.Sale(sale)) == path
    back = stock_pb2.ReturnLine
    for wrong, path in (
        (back(line=two[0], against=b"short"), "lines[0].against"),
        (back(line=two[0], against=an_id(), receipt_line=good), "lines[0].against"),
        (back(line=two[0], receipt_line=names()), "lines[0].receipt_line.terminal"),
        (back(line=two[0], sold_at=a_place("x" * 65)), "lines[0].sold_at.code"),
    ):
        returned = stock_pb2.ReturnRequest(op_id=an_id(), lines=[wrong])
        assert await refused_field(stock.Return(returned)) == path
    write_off = stock_pb2.WriteOffRequest(op_id=an_id(), lines=two, bucket=3)  # type: ignore[arg-type]
    assert await refused_field(stock.WriteOff(write_off)) == "bucket"
    received = stock_pb2.ReceiveRequest(op_id=an_id(), lines=two, incoming_id=b"x")
    assert await refused_field(stock.Receive(received)) == "incoming_id"
    for expected_at_ms in (-1, 2**63 - 1):
        expected = stock_pb2.ExpectRequest(op_id=an_id(), lines=two, expected_at_ms=expected_at_ms)
        assert await refused_field(stock.Expect(expected)) == "expected_at_ms"
    exchange = stock_pb2.ExchangeRequest(op_id=an_id(), returns=[back(line=two[0])])
    assert await refused_field(stock.Exchange(exchange)) == "lines"
    exchange = stock_pb2.ExchangeRequest(op_id=an_id(), lines=two)
    assert await refused_field(stock.Exchange(exchange)) == "returns"


async def test_what_is_malformed_in_calls_on_holds_is_told_by_its_field(shop: Shop) -> None:
    stock, one = shop.stock, [line(1, 1, 1)]
    for order, path in (
        ({"supersedes": b"x"}, "supersedes"),
        ({"channel": "x" * 65}, "channel"),
    ):
        request = stock_pb2.ReserveRequest(op_id=an_id(), lines=one, **order)  # type: ignore[arg-type]
        assert await refused_field(stock.Reserve(request)) == path
    itself = an_id()
    request = stock_pb2.ReserveRequest(op_id=itself, lines=one, supersedes=itself)
    assert await refused_field(stock.Reserve(request)) == "supersedes"
    for hold_id, lines, to, path in (
        (b"x", one, 2, "hold_id"),
        (an_id(), one, 0, "to"),
        (an_id(), [line(0, 1, 1)], 2, "lines[0].sku"),
        (an_id(), [*one, line(1, "store-1", 2)], 2, "lines[1]"),
    ):
        move = stock_pb2.MoveRequest(op_id=an_id(), hold_id=hold_id, lines=lines, to=a_place(to))
        assert await refused_field(stock.Move(move)) == path
    extend = stock_pb2.ExtendRequest(op_id=an_id(), hold_id=b"x")
    assert await refused_field(stock.Extend(extend)) == "hold_id"
    cancel = stock_pb2.CancelIncomingRequest(op_id=an_id(), incoming_id=b"x")
    assert await refused_field(stock.CancelIncoming(cancel)) == "incoming_id"
    found = stock_pb2.GetIncomingRequest(incoming_id=b"x")
    assert await refused_field(stock.GetIncoming(found)) == "incoming_id"


@pytest.mark.parametrize("nowhere", ["nowhere", 9, limits.MAX_LOCATIONS + 1, 2**32 - 1])
async def test_a_call_on_a_hold_where_nobody_knows_is_not_about_all_of_it(
    shop: Shop, nowhere: int | str
) -> None:
    await shop.receive(5)
    stock, op_id, at = shop.stock, an_id(), a_place(nowhere)
    await stock.Reserve(stock_pb2.ReserveRequest(op_id=op_id, lines=[line(1, 1, 2)]))
    for call in (stock.Commit, stock.Release, stock.Fulfil, stock.Unfulfil, stock.Cancel):
        request = stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id, location=at)
        assert await refused_field(call(request)) == "location"
    get, record = stock_pb2.GetHoldRequest(hold_id=op_id, location=at), an_id()
    transfer = {"transfer_id": op_id}
    back = [stock_pb2.ReturnLine(line=line(1, 1, 1), against=op_id, sold_at=at)]
    for call, message, path in (
        (stock.Extend, stock_pb2.ExtendRequest(op_id=an_id(), hold_id=op_id, location=at), ""),
        (stock.GetHold, get, ""),
        (stock.GetHistory, get, ""),
        (
            stock.CancelIncoming,
            stock_pb2.CancelIncomingRequest(op_id=an_id(), incoming_id=record, location=at),
            "",
        ),
        (stock.GetIncoming, stock_pb2.GetIncomingRequest(incoming_id=record, location=at), ""),
        (stock.Return, stock_pb2.ReturnRequest(op_id=an_id(), lines=back), "lines[0].sold_at"),
        (
            stock.Exchange,
            stock_pb2.ExchangeRequest(op_id=an_id(), returns=back, lines=[line(1, 1, 1)]),
            "returns[0].sold_at",
        ),
        (shop.transfers.Get, transfer_pb2.GetTransferRequest(source=at, **transfer), "source"),
        (
            shop.transfers.Get,
            transfer_pb2.GetTransferRequest(destination=at, **transfer),
            "destination",
        ),
    ):
        assert await refused_field(call(message)) == (path or "location")
    hold = await stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op_id))
    assert [each.pending for each in hold.lines] == [2]


async def test_zeros_are_no_id(shop: Shop) -> None:
    """In a column of ids they say that there is none."""
    stock, zeros, one = shop.stock, bytes(16), [line(1, 1, 1)]
    back = [stock_pb2.ReturnLine(line=line(1, 1, 1), against=zeros)]
    for call, message, path in (
        (stock.Reserve, stock_pb2.ReserveRequest(op_id=zeros, lines=one), "op_id"),
        (stock.Submit, stock_pb2.SubmitRequest(op_id=zeros, lines=1), "op_id"),
        (
            stock.Reserve,
            stock_pb2.ReserveRequest(op_id=an_id(), lines=one, supersedes=zeros),
            "supersedes",
        ),
        (stock.Fulfil, stock_pb2.HoldRequest(op_id=an_id(), hold_id=zeros), "hold_id"),
        (stock.GetHold, stock_pb2.GetHoldRequest(hold_id=zeros), "hold_id"),
        (stock.Return, stock_pb2.ReturnRequest(op_id=an_id(), lines=back), "lines[0].against"),
        (
            stock.Receive,
            stock_pb2.ReceiveRequest(op_id=an_id(), lines=one, incoming_id=zeros),
            "incoming_id",
        ),
        (
            stock.Expect,
            stock_pb2.ExpectRequest(op_id=an_id(), lines=one, incoming_id=zeros),
            "incoming_id",
        ),
        (stock.GetIncoming, stock_pb2.GetIncomingRequest(incoming_id=zeros), "incoming_id"),
        (shop.transfers.Get, transfer_pb2.GetTransferRequest(transfer_id=zeros), "transfer_id"),
    ):
        assert await refused_field(call(message)) == path
    assert shop.shard.seen == []
    # In a batch's column of holds they are none.
    batch = stock_pb2.SubmitRequest(
        op_id=AN_ID, lines=1, kind=bytes((Kind.RECEIVE,)), sku=b"\1\0\0\0",
        location=b"\1\0\0\0", quantity=b"\1" + bytes(7), hold=zeros,
    )  # fmt: skip
    assert (await stock.Submit(batch)).status == b""


async def test_where_a_hold_is_said_to_be_is_part_of_the_request(shop: Shop) -> None:
    await shop.receive(5)
    stock, op_id, record = shop.stock, an_id(), an_id()
    await stock.Reserve(stock_pb2.ReserveRequest(op_id=op_id, lines=[line(1, 1, 2)]))
    await stock.Expect(stock_pb2.ExpectRequest(op_id=record, lines=[line(1, 1, 2)]))
    hold, cell = {"hold_id": op_id}, {"hold_id": op_id, "lines": [line(1, 1, 1)]}
    for call, message, named in (
        (stock.Extend, stock_pb2.ExtendRequest, hold),
        (stock.Release, stock_pb2.HoldRequest, cell),
        (stock.Release, stock_pb2.HoldRequest, hold),
        (stock.CancelIncoming, stock_pb2.CancelIncomingRequest, {"incoming_id": record}),
    ):
        used = an_id()
        for at, status in (
            (a_place(1), Status.OK),
            (a_place("store-1"), Status.OK),
            (a_place(3), Status.OP_ID_REUSED),
            (None, Status.OP_ID_REUSED),
        ):
            request = message(op_id=used, location=at, **named)  # type: ignore[operator]
            assert (await call(request)).status == status


async def test_a_bundle_is_reserved_moved_on_and_returned_by_component(shop: Shop) -> None:
    await shop.receive(10)
    await shop.receive(10, sku=2)
    op_id = an_id()
    order = stock_pb2.ReserveRequest(op_id=op_id, lines=[line("box", 1, 3)], commit_now=True)
    held = await shop.stock.Reserve(order)
    assert (held.status, [each.available for each in held.lines]) == (Status.OK, [0])
    fulfil = stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id, lines=[line("box", 1, 2)])
    assert (await shop.stock.Fulfil(fulfil)).status == Status.OK
    back = stock_pb2.ReturnLine(line=line("box", 1, 1), against=op_id)
    returned = await shop.stock.Return(stock_pb2.ReturnRequest(op_id=an_id(), lines=[back]))
    assert returned.status == Status.OK
    hold = await shop.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op_id))
    counted = [(each.sku.id, each.committed, each.fulfilled, each.returned) for each in hold.lines]
    assert counted == [(1, 2, 4, 2), (2, 3, 6, 3)]
    batch = stock_pb2.SubmitRequest(
        op_id=AN_ID, lines=1, kind=b"\6", sku=b"\x09\0\0\0", location=b"\1\0\0\0"
    )
    assert await refused_field(shop.stock.Submit(batch)) == "sku"


async def test_an_order_that_is_paid_has_no_deadline(shop: Shop) -> None:
    await shop.receive(5)
    op_id = an_id()
    order = stock_pb2.ReserveRequest(op_id=op_id, lines=[line(1, 1, 2)], commit_now=True)
    held = await shop.stock.Reserve(order)
    assert (held.status, held.hold_id, held.deadline_ns) == (Status.OK, op_id, 0)
    hold = await shop.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op_id))
    assert hold.state == stock_pb2.HOLD_STATE_COMMITTED


async def test_what_is_paid_at_once_is_asked_for_no_time_and_told_none() -> None:
    """On one shard and over two, where it is held for a moment."""
    for opened in (await open_shop(), await open_shop(shards=2)):
        stock = opened.stock
        await opened.receive(9)
        await opened.receive(9, location=2)
        for cells in ([line(1, 1, 1)], [line(1, 1, 1), line(1, 2, 1)]):
            op_id, back = an_id(), [stock_pb2.ReturnLine(line=line(1, 1, 1))]
            for ttl_ms in (-1, limits.MAX_TTL_MS + 1):
                order = {"op_id": op_id, "lines": cells, "commit_now": True, "ttl_ms": ttl_ms}
                held = await stock.Reserve(stock_pb2.ReserveRequest(**order))
                assert (held.status, held.deadline_ns) == (Status.OK, 0)
                order["op_id"] = an_id()
                held = await stock.Exchange(stock_pb2.ExchangeRequest(returns=back, **order))
                assert (held.status, held.deadline_ns) == (Status.OK, 0)
            hold = await stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op_id))
            assert (hold.state, hold.deadline_ns) == (stock_pb2.HOLD_STATE_COMMITTED, 0)
        await opened.channel.close()
        await opened.server.stop(0)


async def test_a_hold_has_a_deadline_while_it_is_pending_and_when_it_ran_out(shop: Shop) -> None:
    await shop.receive(5)
    stock, deadlines = shop.stock, []

    async def told(hold_id: bytes) -> stock_pb2.Hold:
        return await stock.GetHold(stock_pb2.GetHoldRequest(hold_id=hold_id))

    for call in (stock.Commit, stock.Release, None):
        op_id = an_id()
        held = await stock.Reserve(stock_pb2.ReserveRequest(op_id=op_id, lines=[line(1, 1, 1)]))
        assert (await told(op_id)).deadline_ns == held.deadline_ns > 0
        if call is None:
            shop.shard.now_ns = held.deadline_ns + 1
            await shop.receive(1)
            deadlines.append(held.deadline_ns)
        else:
            await call(stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id))
            deadlines.append(0)
        assert (await told(op_id)).deadline_ns == deadlines[-1]


async def test_what_is_at_the_destination_already_does_not_count(shop: Shop) -> None:
    await shop.receive(5)
    op_id = an_id()
    await shop.stock.Reserve(stock_pb2.ReserveRequest(op_id=op_id, lines=[line(1, 1, 3)]))
    for quantity, told in (
        (0, ""),
        (1, "quantity: more than the hold has pending that is not there yet"),
    ):
        lines = [line(1, 1, quantity)]
        move = stock_pb2.MoveRequest(op_id=an_id(), hold_id=op_id, lines=lines, to=a_place(1))
        assert (await shop.stock.Move(move)).message == told


async def test_a_partial_order_tells_what_was_granted(shop: Shop) -> None:
    await shop.receive(5)

    async def reserve(*lines: common_pb2.Line) -> common_pb2.OperationReply:
        request = stock_pb2.ReserveRequest(op_id=an_id(), lines=lines, allow_partial=True)
        return await shop.stock.Reserve(request)

    held = await reserve(line(1, 1, 3), line(1, 1, 3), line(2, 1, 1))
    assert (held.status, held.message, len(held.hold_id)) == (Status.OK, "", 16)
    assert [each.granted for each in held.lines] == [3, 2, 0]
    assert [each.status for each in held.lines] == [0, 0, Status.INSUFFICIENT_STOCK]
    nothing = await reserve(line(1, 1, 1))
    assert (nothing.status, nothing.hold_id) == (Status.INSUFFICIENT_STOCK, b"")


async def test_an_order_takes_the_place_of_an_older_hold(shop: Shop) -> None:
    await shop.receive(5)
    older, newer = an_id(), an_id()
    await shop.stock.Reserve(stock_pb2.ReserveRequest(op_id=older, lines=[line(1, 1, 5)]))
    for count, status in ((6, Status.INSUFFICIENT_STOCK), (5, Status.OK)):
        order = stock_pb2.ReserveRequest(
            op_id=newer if not status else an_id(), lines=[line(1, 1, count)], supersedes=older
        )
        assert (await shop.stock.Reserve(order)).status == status
    commit = stock_pb2.HoldRequest(op_id=an_id(), hold_id=older)
    assert (await shop.stock.Commit(commit)).status == Status.HOLD_RELEASED


async def test_a_payment_that_is_late_reserves_again_if_asked(shop: Shop) -> None:
    await shop.receive(5)
    op_id = an_id()
    order = stock_pb2.ReserveRequest(op_id=op_id, lines=[line(1, 1, 2), line(1, 1, 1)], ttl_ms=10)
    held = await shop.stock.Reserve(order)
    extend = stock_pb2.ExtendRequest(op_id=an_id(), hold_id=op_id, ttl_ms=50)
    longer = await shop.stock.Extend(extend)
    assert longer.deadline_ns - longer.now_ns == 50_000_000
    assert longer.deadline_ns > held.deadline_ns
    shop.shard.now_ns += 10**9
    late = stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id)
    assert (await shop.stock.Commit(late)).status == Status.HOLD_EXPIRED
    late = stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id, re_reserve_if_expired=True)
    assert (await shop.stock.Commit(late)).status == Status.OK
    late.op_id = an_id()
    assert (await shop.stock.Fulfil(late)).status == Status.INVALID_FLAGS
    handed = stock_pb2.HoldRequest(op_id=an_id(), hold_id=op_id)
    assert (await shop.stock.Fulfil(handed)).status == Status.OK
    handed.op_id = an_id()
    assert (await shop.stock.Unfulfil(handed)).status == Status.OK
    hold = await shop.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=op_id))
    assert hold.state == stock_pb2.HOLD_STATE_COMMITTED


async def test_a_channel_that_is_unknown_is_a_value(shop: Shop) -> None:
    await shop.receive(5)
    order = stock_pb2.ReserveRequest(op_id=an_id(), lines=[line(1, 1, 1)], channel="web")
    assert (await shop.stock.Reserve(order)).status == Status.UNKNOWN_CHANNEL


async def test_what_moves_or_is_reserved_again_is_for_a_channel(shop: Shop) -> None:
    await shop.receive(5)
    order, late = an_id(), an_id()
    lines = [line(1, 1, 1), line(2, 1, 1)]
    for _ in range(2):
        await shop.stock.Receive(stock_pb2.ReceiveRequest(op_id=an_id(), lines=lines))
    for op_id, ttl_ms in ((order, 60_000), (late, 1)):
        held = stock_pb2.ReserveRequest(op_id=op_id, lines=lines, ttl_ms=ttl_ms)
        assert (await shop.stock.Reserve(held)).status == Status.OK
    for moved in ([], lines[:1], lines):
        move = stock_pb2.MoveRequest(hold_id=order, lines=moved, to=a_place(2), channel="web")
        move.op_id = an_id()
        assert (await shop.stock.Move(move)).status == Status.UNKNOWN_CHANNEL
        move.op_id, move.channel = an_id(), ""
        assert (await shop.stock.Move(move)).status == Status.INSUFFICIENT_STOCK
    shop.shard.now_ns += 2 * limits.NS_PER_MS
    again = stock_pb2.HoldRequest(hold_id=late, re_reserve_if_expired=True, channel="web")
    again.op_id = an_id()
    assert (await shop.stock.Commit(again)).status == Status.UNKNOWN_CHANNEL
    again.op_id, again.hold_id = an_id(), order
    assert (await shop.stock.Commit(again)).status == Status.OK  # nothing is reserved


@pytest.mark.parametrize("method", ["Commit", "Release", "Fulfil", "Unfulfil", "Cancel"])
async def test_a_call_that_reserves_nothing_is_for_no_channel(shop: Shop, method: str) -> None:
    call = stock_pb2.HoldRequest(op_id=an_id(), hold_id=an_id(), channel="web")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(shop.stock, method)(call)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "channel: nothing is reserved without re_reserve_if_expired" in str(
        refused.value.details()
    )


# --- what is on its way ---------------------------------------------------------------------------


async def test_what_is_expected_is_received_or_given_up(shop: Shop) -> None:
    stock, record = shop.stock, an_id()
    lines = [line("sku-1", "store-1", 5), line(2, 2, 4)]
    expect = stock_pb2.ExpectRequest(op_id=record, lines=lines, expected_at_ms=10**12)
    assert (await stock.Expect(expect)).status == Status.OK
    more = stock_pb2.ExpectRequest(op_id=an_id(), lines=lines[:1], incoming_id=record)
    assert (await stock.Expect(more)).status == Status.OK
    received = stock_pb2.ReceiveRequest(op_id=an_id(), lines=lines, incoming_id=record)
    assert [each.available for each in (await stock.Receive(received)).lines] == [5, 4]

    async def found() -> stock_pb2.Incoming:
        request = stock_pb2.GetIncomingRequest(incoming_id=record)
        return await stock.GetIncoming(request)

    told = await found()
    assert (told.state, told.expected_at_ms) == (stock_pb2.HOLD_STATE_INCOMING, 10**12)
    shown = [(each.expected, each.outstanding, each.received) for each in told.lines]
    assert shown == [(10, 5, 5), (4, 0, 4)]
    assert (told.lines[0].sku.code, told.lines[0].location.code) == ("sku-1", "store-1")
    names = [availability_pb2.CellName(sku=a_sku(n), location=a_place(n)) for n in (1, 2)]
    listed = await stock.ListIncoming(stock_pb2.ListIncomingRequest(cells=names))
    assert [(each.sku.id, each.expected_at_ms, each.quantity) for each in listed.incoming] == [
        (1, 10**12, 5)
    ]
    assert (listed.incoming[0].sku.code, listed.incoming[0].location.code) == ("sku-1", "store-1")
    hold = await stock.GetHold(stock_pb2.GetHoldRequest(hold_id=record))
    assert hold.state == stock_pb2.HOLD_STATE_UNKNOWN
    for parts, status in (([line(1, 1, 9)], Status.EXCEEDS_HOLD), ([], Status.OK)):
        cancel = stock_pb2.CancelIncomingRequest(op_id=an_id(), incoming_id=record, lines=parts)
        assert (await stock.CancelIncoming(cancel)).status == status
    assert (await found()).state == stock_pb2.HOLD_STATE_RECEIVED
    record = an_id()
    assert (await found()).state == stock_pb2.HOLD_STATE_UNKNOWN


async def test_what_is_on_its_way_to_another_shard_is_not_told_by_this_one() -> None:
    """An empty answer would say that nothing is."""
    catalogue, own_map = some_catalogue(), ShardMap(1, 2)
    servicer = StockServicer(Router({0: FakeShard(0, own_map)}, lambda: own_map), catalogue)
    server = await open_server([partial(stock_pb2_grpc.add_StockServicer_to_server, servicer)])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = stock_pb2_grpc.StockStub(channel)
        expect = stock_pb2.ExpectRequest(op_id=an_id(), lines=[line(1, 1, 5)])
        assert (await stub.Expect(expect)).status == Status.OK
        names = cells_request([(1, 1), (1, "nowhere"), (1, 2**32 - 1)]).cells
        found = await stub.ListIncoming(stock_pb2.ListIncomingRequest(cells=names))
        assert [each.quantity for each in found.incoming] == [5]
        names = cells_request([(1, 1), (1, 2)]).cells
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListIncoming(stock_pb2.ListIncomingRequest(cells=names))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == f"cells[1]: {MESSAGES[Status.WRONG_SHARD]}"
    await server.stop(0)


async def test_a_shortage_names_whom_it_endangers(shop: Shop) -> None:
    await shop.receive(5)
    op_id = an_id()
    await shop.stock.Reserve(stock_pb2.ReserveRequest(op_id=op_id, lines=[line(1, 1, 4)]))
    sale = stock_pb2.SaleRequest(op_id=an_id(), lines=[line(2, 1, 1), line(1, 1, 3)])
    sold = await shop.stock.Sale(sale)
    assert [each.shortage for each in sold.lines] == [1, 2]
    (named,) = sold.lines[1].endangered
    assert (named.hold_id, named.pending, named.committed) == (op_id, 4, 0)
    assert await shop.stock.Sale(sale) == sold
    batch = stock_pb2.SubmitRequest(
        op_id=AN_ID, lines=2, kind=bytes((Kind.SALE,)), quantity=(1).to_bytes(8, "little"),
        sku=np.array([3, 1], "<u4").tobytes(), location=np.array([1], "<u4").tobytes(),
    )  # fmt: skip
    told = await shop.stock.Submit(batch)
    assert [(each.line, each.endangered.hold_id) for each in told.endangered] == [(1, op_id)]


async def test_a_bundle_is_not_sent_its_components_are(shop: Shop) -> None:
    calls = shop.transfers
    ids: dict[str, Any] = {"op_id": an_id(), "transfer_id": an_id()}
    ends = {"source": a_place(1), "destination": a_place(2)}
    lines = [transfer_pb2.TransferLine(sku=a_sku(name), quantity=1) for name in ("sku-1", "box")]
    requested = transfer_pb2.TransferRequest(op_id=an_id(), **ends, lines=lines)
    destination = {"destination": ends["destination"]}
    for call, request in (
        (calls.Request, requested),
        (calls.Ship, transfer_pb2.ShipRequest(**ids, **ends, lines=lines)),
        (calls.Receive, transfer_pb2.ReceiveTransferRequest(**ids, **destination, lines=lines)),
        (calls.Cancel, transfer_pb2.CancelTransferRequest(**ids, source=a_place(1), lines=lines)),
        (calls.Lose, transfer_pb2.LoseTransferRequest(**ids, **destination, lines=lines)),
    ):
        assert await refused_field(call(request)) == "lines[1].sku"
    assert shop.shard.seen == []


async def test_a_transfer_from_request_to_loss(shop: Shop) -> None:
    await shop.receive(10)
    op_id, calls = an_id(), shop.transfers
    ends = {"source": a_place("store-1"), "destination": a_place(2)}

    def some(quantity: int) -> list[transfer_pb2.TransferLine]:
        return [transfer_pb2.TransferLine(sku=a_sku("sku-1"), quantity=quantity)]

    async def state() -> tuple[int, ...]:
        found = await calls.Get(transfer_pb2.GetTransferRequest(transfer_id=op_id))
        (each,) = found.lines
        assert found.found
        assert (each.sku.id, each.sku.code) == (1, "sku-1")
        return each.requested, each.shipped, each.in_transit, each.received, each.difference

    request = transfer_pb2.TransferRequest(op_id=op_id, lines=some(8), **ends)
    asked = await calls.Request(request)
    assert (asked.status, asked.hold_id, asked.deadline_ns) == (Status.OK, op_id, 0)
    too_much = transfer_pb2.TransferRequest(op_id=an_id(), lines=some(3), **ends)
    assert (await calls.Request(too_much)).status == Status.INSUFFICIENT_STOCK
    there = transfer_pb2.TransferRequest(
        op_id=op_id, lines=some(8), source=a_place(1), destination=a_place(3)
    )
    assert (await calls.Request(there)).status == Status.OP_ID_REUSED
    named: dict[str, Any] = {"transfer_id": op_id}
    ship = transfer_pb2.ShipRequest(
        op_id=an_id(), lines=some(6), expected_at_ms=10**12, **named, **ends
    )
    assert (await calls.Ship(ship)).status == Status.OK
    assert await state() == (8, 6, 6, 0, 0)
    cancel = transfer_pb2.CancelTransferRequest(op_id=an_id(), source=a_place(1), **named)
    assert (await calls.Cancel(cancel)).status == Status.OK
    place = {"destination": ends["destination"]}
    came = transfer_pb2.ReceiveTransferRequest(op_id=an_id(), lines=some(4), **named, **place)
    assert (await calls.Receive(came)).status == Status.OK
    assert await state() == (6, 6, 2, 4, 0)
    found = await calls.Get(transfer_pb2.GetTransferRequest(source=a_place(1), **named))
    assert found.expected_at_ms == 10**12
    lose = transfer_pb2.LoseTransferRequest(op_id=an_id(), lines=some(1), **named, **place)
    assert (await calls.Lose(lose)).status == Status.OK
    lose = transfer_pb2.LoseTransferRequest(op_id=an_id(), **named, **place)
    assert (await calls.Lose(lose)).status == Status.OK
    assert await state() == (6, 6, 0, 4, -2)
    unknown = await calls.Get(transfer_pb2.GetTransferRequest(transfer_id=an_id()))
    assert not unknown.found


async def test_a_transfer_is_shipped_as_of_its_moment(shop: Shop) -> None:
    transfers, transfer, ends = shop.transfers, an_id(), (a_place(1), a_place(2))
    await shop.receive(10)
    sent = [transfer_pb2.TransferLine(sku=a_sku(1), quantity=6)]
    source, destination = ends
    asked = transfer_pb2.TransferRequest(
        op_id=transfer, source=source, destination=destination, lines=sent
    )
    assert (await transfers.Request(asked)).status == Status.OK
    left = shop.shard.now_ns
    for place, units in ((1, 4), (2, 0)):
        await shop.stock.Count(stock_pb2.CountRequest(op_id=an_id(), lines=[line(1, place, units)]))
    ship = transfer_pb2.ShipRequest(
        op_id=an_id(), transfer_id=transfer, source=source, destination=destination, lines=sent,
        occurred_at_ns=left,
    )  # fmt: skip
    assert (await transfers.Ship(ship)).status == Status.OK
    ship.occurred_at_ns = 0
    assert (await transfers.Ship(ship)).status == Status.OP_ID_REUSED
    cells = (await shop.availability.GetCells(cells_request([(1, 1), (1, 2)]))).cells
    found = [(cell.on_hand, cell.committed, cell.incoming) for cell in cells]
    assert found == [(4, 0, 0), (0, 0, 6)]
    ship.op_id, ship.occurred_at_ns = an_id(), -1
    assert (await transfers.Ship(ship)).status == Status.INVALID_MOMENT


async def test_what_is_malformed_in_transfers_is_told_by_its_field(shop: Shop) -> None:
    calls, good = shop.transfers, [transfer_pb2.TransferLine(sku=a_sku(1), quantity=1)]
    box = [transfer_pb2.TransferLine(sku=a_sku("box"), quantity=1)]
    one, two, nowhere = a_place(1), a_place(2), a_place("nowhere")
    for source, destination, lines, path in (
        (one, one, good, "destination"),
        (nowhere, two, good, "source"),
        (one, a_place(99), good, "destination"),
        (common_pb2.Location(), two, good, "source"),
        (one, two, [], "lines"),
        (one, two, box, "lines[0].sku"),
    ):
        ends = {"source": source, "destination": destination, "lines": lines, "op_id": an_id()}
        request = transfer_pb2.TransferRequest(**ends)
        assert await refused_field(calls.Request(request)) == path
        ship = transfer_pb2.ShipRequest(transfer_id=an_id(), **ends)
        assert await refused_field(calls.Ship(ship)) == path
    ends = {"source": one, "destination": two, "lines": good, "op_id": an_id()}
    late = transfer_pb2.ShipRequest(transfer_id=an_id(), expected_at_ms=-1, **ends)
    assert await refused_field(calls.Ship(late)) == "expected_at_ms"
    for call, message in (
        (calls.Ship, transfer_pb2.ShipRequest),
        (calls.Receive, transfer_pb2.ReceiveTransferRequest),
        (calls.Cancel, transfer_pb2.CancelTransferRequest),
        (calls.Lose, transfer_pb2.LoseTransferRequest),
        (calls.Get, transfer_pb2.GetTransferRequest),
    ):
        given = {name: ends[name] for name in message.DESCRIPTOR.fields_by_name if name in ends}
        assert await refused_field(call(message(**given, transfer_id=b"x"))) == "transfer_id"


async def test_a_transfer_goes_to_one_place(shop: Shop) -> None:
    """Else what is lost on the way to one would be given up on the way to the other too."""
    await shop.receive(5)
    packed = [transfer_pb2.TransferLine(sku=a_sku(1), quantity=2)]
    ends = {"source": a_place(1), "destination": a_place(2)}
    asked = transfer_pb2.TransferRequest(op_id=an_id(), lines=packed * 2, **ends)
    assert (await shop.transfers.Request(asked)).status == Status.OK

    def shipped(to: int) -> Any:
        ends["destination"] = a_place(to)
        request = transfer_pb2.ShipRequest(
            op_id=an_id(), transfer_id=asked.op_id, lines=packed, **ends
        )
        return shop.transfers.Ship(request)

    for _ in range(2):  # before anything is shipped, and after it
        assert await refused_field(shipped(3)) == "destination"
        assert (await shipped(2)).status == Status.OK


async def test_unknown_codes_are_values(shop: Shop) -> None:
    lines = [line("nothing", 1, 1), line(1, "nowhere", 1), line(0, 1, 1), line(1, 0, 1)]
    reply = await shop.stock.Receive(stock_pb2.LinesRequest(op_id=an_id(), lines=lines))
    sku, location = Status.UNKNOWN_SKU, Status.UNKNOWN_LOCATION
    assert [each.status for each in reply.lines] == [sku, location, sku, location]


async def test_a_refusal_names_the_fields_of_its_call(shop: Shop) -> None:
    await shop.receive(5)
    stock, transfers, order, there = shop.stock, shop.transfers, an_id(), a_place(2)
    paid = stock_pb2.ReserveRequest(op_id=order, lines=[line(1, 1, 2)], commit_now=True)
    assert (await stock.Reserve(paid)).status == Status.OK
    one = [line(1, 1, 1)]
    sale = stock_pb2.SaleRequest(op_id=an_id(), lines=one)
    sale.receipt_lines.add(terminal="T", receipt="1", line=1)
    assert (await stock.Sale(sale)).status == Status.OK
    back = [stock_pb2.ReturnLine(line=one[0], against=an_id())]
    packed = [transfer_pb2.TransferLine(sku=a_sku(1), quantity=9)]
    leaves: dict[str, Any] = {"transfer_id": order, "source": a_place(1), "lines": packed}
    comes: dict[str, Any] = {"transfer_id": order, "destination": there, "lines": packed}
    calls: list[tuple[Any, Any, str]] = [
        (stock.Reserve, stock_pb2.ReserveRequest(lines=one, supersedes=order), "supersedes: "),
        (stock.Move, stock_pb2.MoveRequest(hold_id=order, to=a_place("nowhere")), "to: "),
        (
            stock.Release,
            stock_pb2.HoldRequest(hold_id=order, release_rest=True),
            "release_rest, re_reserve_if_expired: ",
        ),
        (
            stock.Fulfil,
            stock_pb2.HoldRequest(hold_id=order, lines=[line(1, 1, 9)]),
            "quantity: more than the hold has committed",
        ),
        (stock.Sale, sale, "receipt_lines: "),
        (stock.Return, stock_pb2.ReturnRequest(lines=back), "against, receipt_line, sold_at: "),
        (
            stock.Exchange,
            stock_pb2.ExchangeRequest(returns=back, lines=one),
            "against, receipt_line, sold_at: ",
        ),
        (stock.Receive, stock_pb2.ReceiveRequest(lines=one, incoming_id=order), "incoming_id: "),
        (stock.Expect, stock_pb2.ExpectRequest(lines=one, incoming_id=order), "incoming_id: "),
        (
            stock.CancelIncoming,
            stock_pb2.CancelIncomingRequest(incoming_id=order),
            "incoming_id: ",
        ),
        (
            transfers.Ship,
            transfer_pb2.ShipRequest(destination=there, **leaves),
            "quantity: more than is left to ship",
        ),
        (
            transfers.Cancel,
            transfer_pb2.CancelTransferRequest(**leaves),
            "quantity: more than is left to ship",
        ),
        (
            transfers.Receive,
            transfer_pb2.ReceiveTransferRequest(**comes),
            "transfer_id, destination: ",
        ),
        (transfers.Lose, transfer_pb2.LoseTransferRequest(**comes), "transfer_id, destination: "),
    ]
    for rpc, message, told in calls:
        message.op_id = an_id()
        reply = await rpc(message)
        assert reply.message.startswith(told), reply.message
        assert reply.lines[0].message in (
            reply.message,
            "another line of the same order or call was refused",
        )


async def test_an_id_for_other_content_is_refused(shop: Shop) -> None:
    op_id = an_id()
    for quantity, status in ((1, Status.OK), (2, Status.OP_ID_REUSED), (1, Status.OK)):
        request = stock_pb2.LinesRequest(op_id=op_id, lines=[line(1, 1, quantity)])
        assert (await shop.stock.Receive(request)).status == status


# --- prices, cells, directory ---------------------------------------------------------------------


async def test_prices(shop: Shop) -> None:
    lines = [price_pb2.PriceLine(sku=a_sku(1), location=a_place(1), price_minor=199)]
    request = price_pb2.SetPriceRequest(op_id=an_id(), lines=lines, currency="USD")
    assert (await shop.price.SetPrice(request)).status == Status.OK
    request = price_pb2.SetPriceRequest(op_id=an_id(), lines=lines * 2, currency="EUR")
    mismatch = Status.CURRENCY_MISMATCH
    assert [each.status for each in (await shop.price.SetPrice(request)).lines] == [mismatch] * 2
    request.currency, request.op_id = "XYZ", an_id()
    assert (await shop.price.SetPrice(request)).status == mismatch
    request.currency = "dollars"
    assert await refused_field(shop.price.SetPrice(request)) == "currency"

    skus = [a_sku("sku-1"), a_sku("sku-2"), a_sku("nothing")]
    found = await shop.price.GetPrices(
        price_pb2.GetPricesRequest(location=a_place("store-1"), skus=skus)
    )
    assert found.currency == "USD"
    assert [each.found for each in found.prices] == [True, False, False]
    assert [each.sku.code for each in found.prices] == ["sku-1", "sku-2", "nothing"]
    assert (found.prices[0].price_minor, found.prices[0].price_version) == (199, 1)
    nowhere = price_pb2.GetPricesRequest(location=a_place("nowhere"), skus=skus)
    assert (await shop.price.GetPrices(nowhere)).currency == ""
    nothing = price_pb2.GetPricesRequest(location=a_place(1))
    assert await refused_field(shop.price.GetPrices(nothing)) == "skus"


def cells_request(names: list[tuple[Any, Any]]) -> availability_pb2.GetCellsRequest:
    cells = [availability_pb2.CellName(sku=a_sku(s), location=a_place(at)) for s, at in names]
    return availability_pb2.GetCellsRequest(cells=cells)


async def test_cells_are_listed_as_pages_of_columns(shop: Shop) -> None:
    await shop.receive(3, 1, 1)
    await shop.receive(4, 2, 7)

    async def pages(*names: str) -> list[availability_pb2.CellPage]:
        request = availability_pb2.ListCellsRequest(locations=[a_place(name) for name in names])
        return [page async for page in shop.availability.ListCells(request)]

    (page,) = await pages()
    assert page.cells == 2
    assert np.frombuffer(page.sku, "<u4").tolist() == [1, 2]
    assert np.frombuffer(page.location, "<u4").tolist() == [1, 7]
    assert np.frombuffer(page.on_hand, "<i8").tolist() == [3, 4]
    assert len(page.price_version) == 8
    assert [(at.shard, at.epoch, at.seq) for at in page.at] == [(0, 1, 2)]
    (page,) = await pages("store-7", "nowhere")
    assert np.frombuffer(page.on_hand, "<i8").tolist() == [4]
    assert await pages("nowhere") == []
    assert CELLS_PER_PAGE * 80 < 4 << 20


async def test_a_malformed_call_of_a_stream_is_refused(shop: Shop) -> None:
    places = [common_pb2.Location(code="x" * 65)]
    stream = shop.availability.ListCells(availability_pb2.ListCellsRequest(locations=places))
    assert await refused_field(stream.read()) == "locations[0].code"
    many = availability_pb2.ListCellsRequest(locations=[a_place(1)] * 10_001)
    assert await refused_field(shop.availability.ListCells(many).read()) == "locations"


async def test_the_directory(shop: Shop) -> None:
    found = await shop.directory.GetShardMap(directory_pb2.GetShardMapRequest())
    assert found.version == 7
    assert [(each.number, each.address, each.epoch) for each in found.shards] == [
        (0, "", 0),
        (1, "127.0.0.1:1", 4),
    ]
    assert [(each.location_id, list(each.shards)) for each in found.placements] == [(3, [0, 1])]


async def test_the_limits_that_are_published_are_those_in_force(shop: Shop) -> None:
    told = await shop.directory.GetLimits(directory_pb2.GetLimitsRequest())
    published = {each.name: getattr(told, each.name) for each in told.DESCRIPTOR.fields}
    assert published.pop("max_message_bytes") == MAX_MESSAGE_BYTES
    assert published.pop("max_channels") == limits.MAX_CHANNELS - 1  # 0 is none
    assert published == {name: getattr(limits, name.upper()) for name in published}


async def test_a_shard_does_not_know_the_others() -> None:
    servicer, counted = DirectoryServicer(lambda: MAP), Counted()
    add = partial(directory_pb2_grpc.add_DirectoryServicer_to_server, servicer)
    server = await open_server([add], metrics=counted)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = directory_pb2_grpc.DirectoryStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetShardMap(directory_pb2.GetShardMapRequest())
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert counted.refused == [("Directory/GetShardMap", "FAILED_PRECONDITION")]
    await server.stop(0)


# --- malformed input ------------------------------------------------------------------------------


LONG = "x" * 65
GOOD = [line(1, 1, 1)]


@pytest.mark.parametrize(
    ("method", "request_", "field_"),
    [
        ("Reserve", stock_pb2.ReserveRequest(op_id=b"short", lines=GOOD), "op_id"),
        ("Reserve", stock_pb2.ReserveRequest(op_id=AN_ID), "lines"),
        ("Reserve", stock_pb2.ReserveRequest(op_id=AN_ID, lines=GOOD * 513), "lines"),
        (
            "Sale",
            stock_pb2.LinesRequest(op_id=AN_ID, lines=[*GOOD, line(LONG, 1, 1)]),
            "lines[1].sku.code",
        ),
        (
            "Sale",
            stock_pb2.LinesRequest(op_id=AN_ID, lines=[line(1, LONG, 1)]),
            "lines[0].location.code",
        ),
        (
            "Return",
            stock_pb2.ReturnRequest(
                op_id=AN_ID, lines=[stock_pb2.ReturnLine(line=line(LONG, 1, 1))]
            ),
            "lines[0].line.sku.code",
        ),
        ("Adjust", stock_pb2.AdjustRequest(lines=GOOD), "op_id"),
        ("Commit", stock_pb2.HoldRequest(op_id=AN_ID, hold_id=b"x"), "hold_id"),
        (
            "Commit",
            stock_pb2.HoldRequest(op_id=AN_ID, hold_id=AN_ID, location=a_place(LONG)),
            "location.code",
        ),
        (
            "Commit",
            stock_pb2.HoldRequest(op_id=AN_ID, hold_id=AN_ID, lines=GOOD * 513),
            "lines",
        ),
        ("GetHold", stock_pb2.GetHoldRequest(), "hold_id"),
        ("Submit", stock_pb2.SubmitRequest(op_id=bytes(15), lines=1), "op_id"),
        ("Submit", stock_pb2.SubmitRequest(op_id=b"\1" * 16, lines=1), "op_id"),
        ("Submit", stock_pb2.SubmitRequest(op_id=AN_ID), "lines"),
        ("Submit", stock_pb2.SubmitRequest(op_id=AN_ID, lines=8_191), "lines"),
        ("Submit", stock_pb2.SubmitRequest(op_id=AN_ID, lines=3, kind=b"12"), "kind"),
        ("Submit", stock_pb2.SubmitRequest(op_id=AN_ID, lines=3, sku=b"123"), "sku"),
        ("Submit", stock_pb2.SubmitRequest(op_id=AN_ID, lines=3, hold=bytes(8)), "hold"),
    ],
    ids=str,
)
async def test_malformed_fields_are_named(
    shop: Shop, method: str, request_: Any, field_: str
) -> None:
    assert await refused_field(getattr(shop.stock, method)(request_)) == field_
    assert shop.shard.seen == []


class Counted(NoMetrics):
    """What the gate counts."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []

    def call_refused(self, method: str, code: str) -> None:
        self.refused.append((method, code))


async def test_each_call_that_ends_with_an_error_is_counted_by_its_code() -> None:
    """Whoever ends it: the gate, what stands before the servicer, the servicer, or a bug."""
    counted = Counted()
    shop = await open_shop(Gate(max_streams=0), metrics=counted)
    shop.shard.faults += [Overloaded("full"), Unavailable("gone"), RuntimeError("a bug")]
    sale = stock_pb2.SaleRequest(op_id=an_id(), lines=[line(1, 1, 1)])
    calls: list[Callable[[], Any]] = [
        *[lambda: shop.stock.Sale(sale)] * 3,
        lambda: shop.stock.Receive(stock_pb2.LinesRequest(op_id=b"x")),
        lambda: shop.channel.unary_unary("/onhand.v1.Transfers/Receive")(b"\xff"),
        lambda: shop.availability.ListCells(availability_pb2.ListCellsRequest()).read(),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError):
            await call()
    await shop.directory.GetShardMap(directory_pb2.GetShardMapRequest())
    assert counted.refused == [
        ("Stock/Sale", "RESOURCE_EXHAUSTED"),
        ("Stock/Sale", "UNAVAILABLE"),
        ("Stock/Sale", "UNKNOWN"),
        ("Stock/Receive", "INVALID_ARGUMENT"),
        ("Transfers/Receive", "INVALID_ARGUMENT"),
        ("Availability/ListCells", "RESOURCE_EXHAUSTED"),
    ]
    await shop.channel.close()
    await shop.server.stop(0)


async def test_too_large_a_message_is_refused(shop: Shop) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.stock.Submit(stock_pb2.SubmitRequest(sku=bytes(MAX_MESSAGE_BYTES)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


columns = st.fixed_dictionaries(
    {"op_id": st.binary(min_size=14, max_size=14).map(lambda start: start + b"\0\0")},
    optional={
        "lines": st.integers(0, 9) | st.integers(0, 2**32 - 1),
        "want_available": st.booleans(),
        **{
            name: st.binary(max_size=64) | st.binary(min_size=size, max_size=size)
            for name, size in {
                "kind": 1, "flags": 1, "sku": 4, "location": 4, "quantity": 8, "value": 8,
                "currency": 2, "hold": 16,
            }.items()
        },
    },
)  # fmt: skip
GENTLE = (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.fixture(scope="module")
def loop() -> Any:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def module_shop(loop: asyncio.Runner) -> Any:
    opened = loop.run(open_shop())
    yield opened
    loop.run(opened.channel.close())
    loop.run(opened.server.stop(0))


async def call_gently(shop: Shop, method: str, payload: bytes) -> None:
    """Whatever the bytes, the answer is a reply or INVALID_ARGUMENT, and the server lives on."""
    call = shop.channel.unary_unary(f"/onhand.v1.Stock/{method}")(payload)
    assert await call.code() in GENTLE, await call.details()
    found = await shop.stock.GetHold(stock_pb2.GetHoldRequest(hold_id=AN_ID))
    assert found.state == stock_pb2.HOLD_STATE_UNKNOWN


@given(columns)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example({"op_id": AN_ID, "lines": 2, "kind": b"\1", "flags": b"\1"})
@example({"op_id": AN_ID, "lines": 1, "kind": b"\1", "sku": b"\xff" * 4, "location": b"\xff" * 4})
def test_no_batch_breaks_the_server(
    loop: asyncio.Runner, module_shop: Shop, fields: dict[str, Any]
) -> None:
    payload = stock_pb2.SubmitRequest(**fields).SerializeToString()
    loop.run(call_gently(module_shop, "Submit", payload))


METHODS = [method.name for method in stock_pb2.DESCRIPTOR.services_by_name["Stock"].methods]


@given(st.sampled_from(METHODS), st.binary(max_size=200))
@example("Reserve", b"\xff")
def test_no_bytes_break_the_server(
    loop: asyncio.Runner, module_shop: Shop, method: str, payload: bytes
) -> None:
    loop.run(call_gently(module_shop, method, payload))


# --- requests -------------------------------------------------------------------------------------

u8, i8 = st.integers(0, 255), st.integers(-(2**63), 2**63 - 1)


@given(
    u8,
    u8,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    i8,
    i8,
    st.binary(min_size=16, max_size=16),
)
def test_one_line_is_what_the_long_way_makes_of_it(
    kind: int, flags: int, sku: int, location: int, quantity: int, value: int, hold: bytes
) -> None:
    high, low = id_to_pair(hold)
    names = {"flags": flags, "quantity": quantity, "value": value}
    short = requests.one(
        bytes(16), kind, sku, location, quantity, value, flags=flags, hold=(high, low)
    )
    long = Request.of(
        bytes(16), 1, kind=kind, sku=sku, location=location, **names,
        hold_hi=np.uint64(high), hold_lo=np.uint64(low),
    )  # fmt: skip
    assert {name: column.tolist() for name, column in short.columns.items()} == {
        name: column.tolist() for name, column in long.columns.items() if column.any()
    }
    assert all(column.dtype == COLUMNS[name] for name, column in short.columns.items())
    assert all(column.flags.aligned for column in short.columns.values())


def test_a_batch_is_told_from_another_by_any_column() -> None:
    base = {"op_id": AN_ID, "lines": 1}
    changed: list[dict[str, Any]] = [
        {"kind": b"\1"}, {"flags": b"\1"}, {"sku": b"\1\0\0\0"}, {"location": b"\1\0\0\0"},
        {"quantity": b"\1" + bytes(7)}, {"value": b"\1" + bytes(7)}, {"currency": b"\1\0"},
        {"hold": b"\1" * 16}, {"want_available": True}, {},
    ]  # fmt: skip
    digests = {requests.submit(stock_pb2.SubmitRequest(**base, **each)).digest for each in changed}
    assert len(digests) == len(changed)


async def test_a_batch_of_columns(shop: Shop) -> None:
    columns = {
        "op_id": an_id()[:14] + b"\0\0", "lines": 3, "kind": bytes((Kind.RECEIVE,)),
        "sku": np.array([1, 2, 99], "<u4").tobytes(), "location": np.array([1], "<u4").tobytes(),
        "quantity": np.array([5, 6, 7], "<i8").tobytes(),
    }  # fmt: skip
    reply = await shop.stock.Submit(stock_pb2.SubmitRequest(**columns, want_available=True))
    assert list(reply.status) == [0, 0, Status.UNKNOWN_SKU]
    assert np.frombuffer(reply.available, "<i8").tolist() == [5, 6, 0]
    assert (reply.shard, reply.epoch, reply.seq) == (0, 1, 1)
    columns |= {"op_id": an_id()[:14] + b"\0\0", "sku": np.array([1], "<u4").tobytes()}
    reply = await shop.stock.Submit(stock_pb2.SubmitRequest(**columns))
    assert (reply.status, reply.available) == (b"", b"")


# --- the gate and the end -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Unavailable("starting"), grpc.StatusCode.UNAVAILABLE),
    ],
    ids=["overloaded", "unavailable"],
)
async def test_what_a_shard_raises_is_told(
    shop: Shop, fault: Exception, code: grpc.StatusCode
) -> None:
    shop.shard.faults.append(fault)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.receive(1)
    assert (caught.value.code(), caught.value.details()) == (code, str(fault))
    await shop.receive(1)


@pytest.mark.parametrize("gate", [Gate(max_calls=2), Gate(max_bytes=110)], ids=["calls", "bytes"])
async def test_a_full_gate_refuses_and_opens_again(gate: Gate) -> None:
    shop = await open_shop(gate)
    passing = asyncio.Event()
    submit = shop.shard.submit

    async def slow_submit(request: Request) -> Any:
        await passing.wait()
        return await submit(request)

    shop.shard.submit = slow_submit  # type: ignore[method-assign]
    calls = [asyncio.create_task(shop.receive(1)) for _ in range(10)]
    done, waiting = await asyncio.wait(calls, timeout=2, return_when=asyncio.FIRST_EXCEPTION)
    while len(waiting) > 4:
        done, waiting = await asyncio.wait(calls, timeout=0.2)
    codes = {each.exception().code() for each in done}  # type: ignore[union-attr]
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(waiting) >= 2
    passing.set()
    await asyncio.gather(*waiting)
    assert (gate.calls, gate.nbytes) == (0, 0)
    await shop.receive(1)
    await shop.channel.close()
    await shop.server.stop(0)


async def test_streams_have_a_limit_of_their_own() -> None:
    shop = await open_shop(Gate(max_streams=0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.availability.ListCells(availability_pb2.ListCellsRequest()).read()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await shop.receive(1)
    await shop.channel.close()
    await shop.server.stop(0)


async def test_health_and_reflection(shop: Shop) -> None:
    health = health_pb2_grpc.HealthStub(shop.channel)
    for name in ("", "onhand.v1.Stock", "onhand.v1.Directory"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    reflect = reflection_pb2_grpc.ServerReflectionStub(shop.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflect.ServerReflectionInfo(iter([asked]))
    names = {each.name for each in (await call.read()).list_services_response.service}
    call.cancel()
    assert {"onhand.v1.Stock", "onhand.v1.Price", "grpc.health.v1.Health"} < names


async def test_a_stop_says_so_first_and_lets_calls_end() -> None:
    shop = await open_shop()
    states = []
    watch = health_pb2_grpc.HealthStub(shop.channel).Watch(health_pb2.HealthCheckRequest())
    states.append((await watch.read()).status)
    passing = asyncio.Event()
    submit = shop.shard.submit

    async def slow_submit(request: Request) -> Any:
        passing.set()
        await asyncio.sleep(0.05)
        return await submit(request)

    shop.shard.submit = slow_submit  # type: ignore[method-assign]
    call = asyncio.create_task(shop.receive(1))
    await passing.wait()
    stopping = asyncio.create_task(shop.server.stop(0.5))
    states.append((await watch.read()).status)
    await call
    await stopping
    serving = health_pb2.HealthCheckResponse.SERVING
    assert states == [serving, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert shop.ended == ["streams"]
    await shop.server.stop(0)
    await shop.channel.close()


async def test_a_port_that_is_taken_is_an_os_error(shop: Shop) -> None:
    with pytest.raises(OSError, match="cannot listen"):
        await open_server([], port=shop.server.port)
