"""What is wrong with a request is told precisely, changes nothing, and hurts nobody else."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc.aio import AioRpcError
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.stack import Stack
from engine import limits
from engine.operations import Kind
from onhand.v1 import (
    availability_pb2,
    catalog_pb2,
    common_pb2,
    deltas_pb2,
    directory_pb2,
    price_pb2,
    stock_pb2,
)
from tests.e2e.conftest import Goods, Shop, batch_id, line, of, on_hold, op, reserve, violation

on_both_paths = pytest.mark.parametrize("path", ["gateway", "shard"])
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MAX_INT64, MIN_INT64 = 2**63 - 1, -(2**63)
S = common_pb2.Status


@pytest.fixture
async def unchanged(shop: Shop) -> AsyncIterator[Goods]:
    """Goods of which there are 10, 2 of them held; afterwards all is as it was, and served."""
    goods = await shop.goods(skus=2, stock=10)
    held = await shop.shard.stock.Reserve(
        reserve([(goods.sku, goods.at, 2)], op_id=hold_of(goods), ttl_ms=limits.MAX_TTL_MS)
    )
    assert held.status == S.STATUS_OK
    before = await shop.status()
    yield goods
    after = await shop.status()
    for name in ("state_hash", "cells", "holds_open", "holds_committed", "epoch"):
        assert after[name] == before[name], name
    for peer in (shop.gateway, shop.shard):
        assert (await peer.stock.Receive(of([(goods.sku, goods.at, 1)]))).status == S.STATUS_OK
    await shop.audit()


def hold_of(goods: Goods) -> bytes:
    """The id of the hold that the fixture made."""
    return b"bad input" + goods.sku.to_bytes(7, "big")


async def refused(call: Any) -> tuple[str, str]:
    """The violation with which a call is refused."""
    with pytest.raises(AioRpcError) as caught:
        await call
    error = caught.value
    assert error.code() is INVALID, error
    field, description = violation(error)
    assert error.details() == f"{field}: {description}"
    return field, description


# --- what is judged, and refused with a status ----------------------------------------------------

BAD_LINES = [
    ("unknown_sku_id", {"sku": 2**32 - 1}, S.STATUS_UNKNOWN_SKU),
    ("sku_not_given", {"sku": 0}, S.STATUS_UNKNOWN_SKU),
    ("unknown_sku_code", {"sku": "nobody has this"}, S.STATUS_UNKNOWN_SKU),
    ("unknown_location_id", {"location": limits.MAX_LOCATIONS}, S.STATUS_UNKNOWN_LOCATION),
    ("no_location_id_so_high", {"location": 2**32 - 1}, S.STATUS_UNKNOWN_LOCATION),
    ("location_not_given", {"location": 0}, S.STATUS_UNKNOWN_LOCATION),
    ("unknown_location_code", {"location": "nowhere"}, S.STATUS_UNKNOWN_LOCATION),
    ("both_unknown", {"sku": "nobody", "location": "nowhere"}, S.STATUS_UNKNOWN_LOCATION),
    ("too_much", {"quantity": limits.MAX_QUANTITY + 1}, S.STATUS_QUANTITY_TOO_LARGE),
    ("largest_int64", {"quantity": MAX_INT64}, S.STATUS_QUANTITY_TOO_LARGE),
]
BAD_QUANTITIES = [
    ("zero", {"quantity": 0}, S.STATUS_INVALID_QUANTITY),
    ("negative", {"quantity": -1}, S.STATUS_INVALID_QUANTITY),
    ("least_int64", {"quantity": MIN_INT64}, S.STATUS_INVALID_QUANTITY),
]


def cases(*tables: list[Any]) -> Any:
    rows = [row for table in tables for row in table]
    return pytest.mark.parametrize(
        ("wrong", "status"), [row[1:] for row in rows], ids=[row[0] for row in rows]
    )


def cell_of(goods: Goods, wrong: dict[str, Any]) -> tuple[Any, Any, int]:
    given_line = {"sku": goods.sku, "location": goods.at, "quantity": 1} | wrong
    return given_line["sku"], given_line["location"], given_line["quantity"]


def check_refused(reply: common_pb2.OperationReply, status: int, lines: int = 1) -> None:
    assert S.Name(reply.status) == S.Name(status)
    assert len(reply.lines) == lines
    assert reply.lines[0].status == status
    assert reply.message
    assert reply.message == reply.lines[0].message
    assert (reply.hold_id, reply.deadline_ns) == (b"", 0)


@on_both_paths
@cases(BAD_LINES, BAD_QUANTITIES)
async def test_bad_lines(
    shop: Shop, unchanged: Goods, path: str, wrong: dict[str, Any], status: int
) -> None:
    stock, bad = shop.peer(path).stock, cell_of(unchanged, wrong)
    for rpc in (stock.Sale, stock.Receive):
        check_refused(await rpc(of([bad])), status)
    check_refused(await stock.Reserve(reserve([bad])), status)
    returned = stock_pb2.ReturnLine(line=line(*bad))
    check_refused(await stock.Return(stock_pb2.ReturnRequest(op_id=op(), lines=[returned])), status)
    if bad[2]:  # of absolute quantities zero is one
        for rpc in (stock.Count, stock.SetSafetyStock):
            check_refused(await rpc(of([bad])), status)


@on_both_paths
@cases(BAD_LINES)
async def test_bad_lines_of_orders_prices_and_corrections(
    shop: Shop, unchanged: Goods, path: str, wrong: dict[str, Any], status: int
) -> None:
    peer, bad, good = shop.peer(path), cell_of(unchanged, wrong), cell_of(unchanged, {})
    check_refused(await peer.stock.Reserve(reserve([bad, good])), status, lines=2)
    adjust = stock_pb2.AdjustRequest(op_id=op(), lines=[line(*bad)], reason=1)
    check_refused(await peer.stock.Adjust(adjust), status)
    if "quantity" not in wrong:
        named = line(*bad)
        price = price_pb2.PriceLine(sku=named.sku, location=named.location, price_minor=1)
        request = price_pb2.SetPriceRequest(op_id=op(), lines=[price], currency="EUR")
        check_refused(await peer.price.SetPrice(request), status)
    elif bad[2] > 0:
        negative = stock_pb2.AdjustRequest(op_id=op(), lines=[line(*bad[:2], -bad[2])])
        check_refused(await peer.stock.Adjust(negative), status)


@on_both_paths
async def test_each_field_with_a_status_of_its_own(shop: Shop, unchanged: Goods, path: str) -> None:
    peer, cell = shop.peer(path), (unchanged.sku, unchanged.at)
    for ttl_ms in (-1, MIN_INT64, limits.MAX_TTL_MS + 1, MAX_INT64):
        held = await peer.stock.Reserve(reserve([(*cell, 1)], ttl_ms=ttl_ms))
        check_refused(held, S.STATUS_INVALID_TTL)
    for disposition in (3, -1, 2**31 - 1):
        back = stock_pb2.ReturnLine(line=line(*cell, 1), disposition=disposition)
        request = stock_pb2.ReturnRequest(op_id=op(), lines=[back])
        check_refused(await peer.stock.Return(request), S.STATUS_INVALID_DISPOSITION)
    for reason in (limits.MAX_REASON + 1, 2**32 - 1):
        adjust = stock_pb2.AdjustRequest(op_id=op(), lines=[line(*cell, 1)], reason=reason)
        check_refused(await peer.stock.Adjust(adjust), S.STATUS_INVALID_REASON)
    nothing = stock_pb2.AdjustRequest(op_id=op(), lines=[line(*cell, 0)])
    check_refused(await peer.stock.Adjust(nothing), S.STATUS_INVALID_QUANTITY)
    named = line(*cell, 0)
    for currency, price_minor, status in (
        ("USD", 1, S.STATUS_CURRENCY_MISMATCH),
        ("XQQ", 1, S.STATUS_CURRENCY_MISMATCH),
        ("EUR", -1, S.STATUS_INVALID_PRICE),
        ("EUR", limits.MAX_PRICE_MINOR + 1, S.STATUS_INVALID_PRICE),
        ("EUR", MIN_INT64, S.STATUS_INVALID_PRICE),
    ):
        price = price_pb2.PriceLine(sku=named.sku, location=named.location, price_minor=price_minor)
        request = price_pb2.SetPriceRequest(op_id=op(), lines=[price], currency=currency)
        check_refused(await peer.price.SetPrice(request), status)


@on_both_paths
async def test_calls_on_holds(shop: Shop, unchanged: Goods, path: str) -> None:
    stock, cell, hold = shop.peer(path).stock, (unchanged.sku, unchanged.at), hold_of(unchanged)
    for rpc in (stock.Commit, stock.Release, stock.Fulfil, stock.Cancel):
        check_refused(await rpc(on_hold(op())), S.STATUS_UNKNOWN_HOLD)
        check_refused(await rpc(on_hold(op(), [(*cell, 1)])), S.STATUS_UNKNOWN_HOLD)
        check_refused(await rpc(on_hold(b"\xff" * 16)), S.STATUS_UNKNOWN_HOLD)
    for rpc in (stock.Fulfil, stock.Cancel):
        check_refused(await rpc(on_hold(hold)), S.STATUS_HOLD_NOT_COMMITTED)
    for rpc in (stock.Commit, stock.Release):
        for cells, status in (
            ([(*cell, 3)], S.STATUS_EXCEEDS_HOLD),
            ([(*cell, 0)], S.STATUS_INVALID_QUANTITY),
            ([(*cell, -1)], S.STATUS_INVALID_QUANTITY),
            ([(*cell, MIN_INT64)], S.STATUS_INVALID_QUANTITY),
            ([(*cell, MAX_INT64)], S.STATUS_QUANTITY_TOO_LARGE),
            ([(unchanged.skus[1], unchanged.at, 1)], S.STATUS_NOT_IN_HOLD),
            ([("nobody has this", unchanged.at, 1)], S.STATUS_NOT_IN_HOLD),
            ([(unchanged.sku, "nowhere", 1)], S.STATUS_NOT_IN_HOLD),
        ):
            check_refused(await rpc(on_hold(hold, cells)), status)
    # The rest of nothing in particular: a whole commit leaves no rest.
    check_refused(await stock.Commit(on_hold(hold, release_rest=True)), S.STATUS_INVALID_FLAGS)
    for rpc in (stock.Release, stock.Fulfil, stock.Cancel):
        rest = on_hold(hold, [(*cell, 1)], release_rest=True)
        check_refused(await rpc(rest), S.STATUS_INVALID_FLAGS)


@on_both_paths
async def test_what_the_whole_life_of_stock_refuses(
    shop: Shop, unchanged: Goods, path: str
) -> None:
    stock, cell, hold = shop.peer(path).stock, (unchanged.sku, unchanged.at), hold_of(unchanged)
    there = common_pb2.Location(id=unchanged.at)
    for ttl_ms in (-1, limits.MAX_TTL_MS + 1, MAX_INT64):
        extend = stock_pb2.ExtendRequest(op_id=op(), hold_id=hold, ttl_ms=ttl_ms)
        check_refused(await stock.Extend(extend), S.STATUS_INVALID_TTL)
    order = reserve([(*cell, 1)])
    order.channel = "no such channel"
    check_refused(await stock.Reserve(order), S.STATUS_UNKNOWN_CHANNEL)
    for lines, status in (
        ([(*cell, 3)], S.STATUS_EXCEEDS_HOLD),
        ([(*cell, -1)], S.STATUS_INVALID_QUANTITY),
        ([(*cell, MAX_INT64)], S.STATUS_QUANTITY_TOO_LARGE),
        ([(unchanged.skus[1], unchanged.at, 1)], S.STATUS_NOT_IN_HOLD),
    ):
        move = stock_pb2.MoveRequest(op_id=op(), hold_id=hold, to=there)
        move.lines.extend(line(*each) for each in lines)
        check_refused(await stock.Move(move), status)
    nowhere = stock_pb2.MoveRequest(op_id=op(), hold_id=hold, to=common_pb2.Location(code="none"))
    check_refused(await stock.Move(nowhere), S.STATUS_UNKNOWN_LOCATION)
    renew = on_hold(hold, [(*cell, 1)], re_reserve_if_expired=True)
    check_refused(await stock.Commit(renew), S.STATUS_INVALID_FLAGS)
    check_refused(await stock.Unfulfil(on_hold(hold)), S.STATUS_HOLD_NOT_FULFILLED)
    good = [line(*cell, 1)]
    for against, status in ((op(), S.STATUS_UNKNOWN_HOLD), (hold, S.STATUS_HOLD_NOT_FULFILLED)):
        back = stock_pb2.ReturnLine(line=good[0], against=against)
        request = stock_pb2.ReturnRequest(op_id=op(), lines=[back])
        check_refused(await stock.Return(request), status)
        exchange = stock_pb2.ExchangeRequest(op_id=op(), returns=[back], lines=good)
        check_refused(await stock.Exchange(exchange), status, lines=2)
    for incoming_id in (op(), hold):
        given = {"op_id": op(), "lines": good, "incoming_id": incoming_id}
        received = stock_pb2.ReceiveRequest(**given)
        check_refused(await stock.Receive(received), S.STATUS_UNKNOWN_HOLD)
        cancel = stock_pb2.CancelIncomingRequest(op_id=op(), incoming_id=incoming_id)
        check_refused(await stock.CancelIncoming(cancel), S.STATUS_UNKNOWN_HOLD)
    taken = stock_pb2.ExpectRequest(op_id=op(), lines=good, incoming_id=hold)
    check_refused(await stock.Expect(taken), S.STATUS_HOLD_EXISTS)
    for disposition in (0, 2):
        looked_at = stock_pb2.InspectLine(line=good[0], disposition=disposition)
        request = stock_pb2.InspectRequest(op_id=op(), lines=[looked_at])
        check_refused(await stock.Inspect(request), S.STATUS_EXCEEDS_SET_ASIDE)
    looked_at = stock_pb2.InspectLine(line=good[0], disposition=1)
    request = stock_pb2.InspectRequest(op_id=op(), lines=[looked_at])
    check_refused(await stock.Inspect(request), S.STATUS_INVALID_DISPOSITION)
    for bucket in (1, 2):
        gone = stock_pb2.WriteOffRequest(op_id=op(), lines=good, bucket=bucket)
        check_refused(await stock.WriteOff(gone), S.STATUS_EXCEEDS_SET_ASIDE)
    gone = stock_pb2.WriteOffRequest(op_id=op(), lines=good, reason=2**32 - 1)
    check_refused(await stock.WriteOff(gone), S.STATUS_INVALID_REASON)


@on_both_paths
async def test_moments_that_cannot_be(shop: Shop, unchanged: Goods, path: str) -> None:
    stock, cell = shop.peer(path).stock, line(unchanged.sku, unchanged.at, 1)
    ahead = time.time_ns() + 2 * limits.MAX_CLOCK_SKEW_MS * limits.NS_PER_MS
    for moment in (-1, MIN_INT64, ahead, MAX_INT64):
        given: dict[str, Any] = {"lines": [cell], "occurred_at_ns": moment}
        for rpc, message in (
            (stock.Sale, stock_pb2.SaleRequest),
            (stock.Receive, stock_pb2.ReceiveRequest),
            (stock.Count, stock_pb2.CountRequest),
            (stock.Adjust, stock_pb2.AdjustRequest),
            (stock.WriteOff, stock_pb2.WriteOffRequest),
        ):
            check_refused(await rpc(message(op_id=op(), **given)), S.STATUS_INVALID_MOMENT)
        back = stock_pb2.ReturnLine(line=cell)
        returned = stock_pb2.ReturnRequest(op_id=op(), lines=[back], occurred_at_ns=moment)
        check_refused(await stock.Return(returned), S.STATUS_INVALID_MOMENT)


@on_both_paths
async def test_what_is_malformed_in_the_whole_life_of_stock(
    shop: Shop, unchanged: Goods, path: str
) -> None:
    stock, good, hold = (
        shop.peer(path).stock,
        line(unchanged.sku, unchanged.at, 1),
        hold_of(unchanged),
    )
    told, long = "5 bytes, must be 16", "65 characters, must be"
    receipt = {"terminal": "T", "receipt": "R", "line": 1}

    async def sale(**wrong: Any) -> tuple[str, str]:
        named = stock_pb2.ReceiptLine(**receipt | wrong)
        request = stock_pb2.SaleRequest(op_id=op(), lines=[good], receipt_lines=[named])
        return await refused(stock.Sale(request))

    at = "receipt_lines[0]"
    assert await sale(terminal="x" * 65) == (f"{at}.terminal", f"{long} 1 to 64")
    assert await sale(receipt="") == (f"{at}.receipt", "0 characters, must be 1 to 64")
    assert await sale(line=0) == (f"{at}.line", "0, must be 1 or more")
    two = stock_pb2.SaleRequest(op_id=op(), lines=[good], receipt_lines=[{}, {}])
    assert (await refused(stock.Sale(two)))[0] == "receipt_lines"
    order = reserve([(unchanged.sku, unchanged.at, 1)])
    order.supersedes = b"short"
    assert await refused(stock.Reserve(order)) == ("supersedes", told)
    order = reserve([(unchanged.sku, unchanged.at, 1)])
    order.channel = "x" * 65
    assert await refused(stock.Reserve(order)) == ("channel", f"{long} at most 64")
    for message, rpc, field in (
        (stock_pb2.ExtendRequest, stock.Extend, "hold_id"),
        (stock_pb2.MoveRequest, stock.Move, "hold_id"),
        (stock_pb2.HoldRequest, stock.Unfulfil, "hold_id"),
        (stock_pb2.CancelIncomingRequest, stock.CancelIncoming, "incoming_id"),
        (stock_pb2.GetIncomingRequest, stock.GetIncoming, "incoming_id"),
    ):
        given: dict[str, Any] = {field: b"short"}
        if "op_id" in message.DESCRIPTOR.fields_by_name:
            given["op_id"] = op()
        assert await refused(rpc(message(**given))) == (field, told)
    move = stock_pb2.MoveRequest(op_id=op(), hold_id=hold)
    assert await refused(stock.Move(move)) == ("to", "not given")
    back = stock_pb2.ReturnLine(line=good, against=b"short")
    request = stock_pb2.ReturnRequest(op_id=op(), lines=[back])
    assert await refused(stock.Return(request)) == ("lines[0].against", told)
    exchange = stock_pb2.ExchangeRequest(op_id=op(), returns=[back], lines=[good])
    assert await refused(stock.Exchange(exchange)) == ("returns[0].against", told)
    for wrong in (-1, limits.MAX_EXPECTED_AT_MS + 1):
        expect = stock_pb2.ExpectRequest(op_id=op(), lines=[good], expected_at_ms=wrong)
        most = limits.MAX_EXPECTED_AT_MS
        assert await refused(stock.Expect(expect)) == (
            "expected_at_ms",
            f"{wrong}, must be 0 to {most}",
        )
    gone = stock_pb2.WriteOffRequest(op_id=op(), lines=[good], bucket=3)
    assert await refused(stock.WriteOff(gone)) == ("bucket", "3, must be 0 to 2")


@on_both_paths
async def test_an_expired_hold(shop: Shop, unchanged: Goods, path: str) -> None:
    stock, cell = shop.peer(path).stock, (unchanged.skus[1], unchanged.at)
    held = await stock.Reserve(reserve([(*cell, 3)], ttl_ms=1))
    await asyncio.sleep(0.05)
    for rpc in (stock.Commit, stock.Release, stock.Fulfil, stock.Cancel):
        check_refused(await rpc(on_hold(held.hold_id)), S.STATUS_HOLD_EXPIRED)
        check_refused(await rpc(on_hold(held.hold_id, [(*cell, 1)])), S.STATUS_HOLD_EXPIRED)


@on_both_paths
async def test_a_hold_id_twice(shop: Shop, unchanged: Goods, path: str) -> None:
    """A batch may try to make a hold of which another request's id is the name."""
    cell, hold = (unchanged.sku, unchanged.at), hold_of(unchanged)
    again = await shop.peer(path).stock.Reserve(reserve([(*cell, 1)], op_id=hold))
    check_refused(again, S.STATUS_OP_ID_REUSED)


# --- what is malformed, and told by a gRPC error --------------------------------------------------


@on_both_paths
@pytest.mark.parametrize("length", [0, 15, 17])
async def test_malformed_ids(shop: Shop, unchanged: Goods, path: str, length: int) -> None:
    peer, cell = shop.peer(path), (unchanged.sku, unchanged.at)
    stock, bad, told = peer.stock, os.urandom(length), f"{length} bytes, must be 16"
    sale, order = of([(*cell, 1)]), reserve([(*cell, 1)])
    adjust = stock_pb2.AdjustRequest(lines=sale.lines, reason=1)
    back = stock_pb2.ReturnRequest(lines=[stock_pb2.ReturnLine(line=sale.lines[0])])
    price = price_pb2.SetPriceRequest(lines=[price_pb2.PriceLine()], currency="EUR")
    batch = submit_of(unchanged)
    sale.op_id = order.op_id = adjust.op_id = back.op_id = price.op_id = batch.op_id = bad
    for call in (
        stock.Sale(sale),
        stock.Receive(sale),
        stock.Count(sale),
        stock.SetSafetyStock(sale),
        stock.Reserve(order),
        stock.Adjust(adjust),
        stock.Return(back),
        stock.Submit(batch),
        peer.price.SetPrice(price),
    ):
        assert await refused(call) == ("op_id", told)
    for rpc in (stock.Commit, stock.Release, stock.Fulfil, stock.Cancel):
        on_bad = stock_pb2.HoldRequest(op_id=bad, hold_id=hold_of(unchanged))
        assert await refused(rpc(on_bad)) == ("op_id", told)
        assert await refused(rpc(on_hold(bad))) == ("hold_id", told)
    asked = stock_pb2.GetHoldRequest(hold_id=bad)
    assert await refused(stock.GetHold(asked)) == ("hold_id", told)


@on_both_paths
async def test_numbers_of_lines(shop: Shop, unchanged: Goods, path: str) -> None:
    peer, cell = shop.peer(path), (unchanged.sku, unchanged.at)
    for count in (0, limits.MAX_HOLD_LINES + 1):
        told = f"{count} entries, must be 1 to 512"
        many = of([(*cell, 1)] * count)
        lines = [stock_pb2.ReturnLine(line=each) for each in many.lines]
        prices = [price_pb2.PriceLine()] * count
        for call in (
            peer.stock.Sale(many),
            peer.stock.Count(many),
            peer.stock.Reserve(reserve([(*cell, 1)] * count)),
            peer.stock.Return(stock_pb2.ReturnRequest(op_id=op(), lines=lines)),
            peer.stock.Adjust(stock_pb2.AdjustRequest(op_id=op(), lines=many.lines)),
            peer.price.SetPrice(
                price_pb2.SetPriceRequest(op_id=op(), lines=prices, currency="EUR")
            ),
        ):
            assert await refused(call) == ("lines", told)
        names = [availability_pb2.CellName()] * count
        asked = availability_pb2.GetCellsRequest(cells=names)
        assert await refused(peer.availability.GetCells(asked)) == ("cells", told)
        skus = price_pb2.GetPricesRequest(skus=[common_pb2.Sku(id=1)] * count)
        assert await refused(peer.price.GetPrices(skus)) == ("skus", told)
    parts = on_hold(hold_of(unchanged), [(*cell, 1)] * 513)
    assert await refused(peer.stock.Commit(parts)) == ("lines", "513 entries, must be 1 to 512")


@on_both_paths
async def test_codes_and_currencies_that_are_no_such_thing(
    shop: Shop, unchanged: Goods, path: str
) -> None:
    peer, long = shop.peer(path), "x" * 65
    told = "65 characters, must be at most 64"
    good = (unchanged.sku, unchanged.at, 1)
    sale = of([good, (long, unchanged.at, 1)])
    assert await refused(peer.stock.Sale(sale)) == ("lines[1].sku.code", told)
    order = reserve([good, good, (unchanged.sku, long, 1)])
    assert await refused(peer.stock.Reserve(order)) == ("lines[2].location.code", told)
    lines = [stock_pb2.ReturnLine(line=line(long, unchanged.at, 1))]
    back = stock_pb2.ReturnRequest(op_id=op(), lines=lines)
    assert await refused(peer.stock.Return(back)) == ("lines[0].line.sku.code", told)
    there = on_hold(hold_of(unchanged), location=common_pb2.Location(code=long))
    assert await refused(peer.stock.Commit(there)) == ("location.code", told)
    name = availability_pb2.CellName(sku=common_pb2.Sku(code=long))
    cells = availability_pb2.GetCellsRequest(cells=[name])
    assert await refused(peer.availability.GetCells(cells)) == ("cells[0].sku.code", told)
    for currency in ("", "EU", "EURO"):
        price = price_pb2.SetPriceRequest(
            op_id=op(), lines=[price_pb2.PriceLine()], currency=currency
        )
        field, _ = await refused(peer.price.SetPrice(price))
        assert field == "currency"


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"code": ""}, "skus[1].code"),
        ({"code": "x" * 65}, "skus[1].code"),
        ({"code": "a", "unit": 3}, "skus[1].unit"),
        ({"code": "a", "unit": -1}, "skus[1].unit"),
        ({"code": "a", "description": "x" * 201}, "skus[1].description"),
        ({"code": "a", "gtins": ["1234567"]}, "skus[1].gtins[0]"),
        ({"code": "a", "gtins": ["12345670", "1234567x"]}, "skus[1].gtins[1]"),
        ({"code": "a", "gtins": [f"{i:08}" for i in range(17)]}, "skus[1].gtins"),
    ],
)
async def test_skus_that_make_no_sense(
    shop: Shop, unchanged: Goods, entry: dict[str, Any], field: str
) -> None:
    entries = [catalog_pb2.SkuEntry(code="never added"), catalog_pb2.SkuEntry(**entry)]
    request = catalog_pb2.AddSkusRequest(skus=entries)
    found, description = await refused(shop.gateway.catalog.AddSkus(request))
    assert found == field
    assert description
    sale = await shop.gateway.stock.Sale(of([("never added", unchanged.at, 1)]))
    assert sale.status == S.STATUS_UNKNOWN_SKU


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"code": "", "currency": "EUR"}, "locations[0].code"),
        ({"code": "a", "currency": ""}, "locations[0].currency"),
        ({"code": "a", "currency": "eur"}, "locations[0].currency"),
        ({"code": "a", "currency": "XQQ"}, "locations[0].currency"),
        ({"code": "a", "currency": "EUR", "description": "x" * 201}, "locations[0].description"),
    ],
)
async def test_locations_that_make_no_sense(
    shop: Shop, unchanged: Goods, entry: dict[str, Any], field: str
) -> None:
    request = catalog_pb2.AddLocationsRequest(locations=[catalog_pb2.LocationEntry(**entry)])
    found, description = await refused(shop.gateway.catalog.AddLocations(request))
    assert found == field
    assert description


async def test_a_change_of_the_catalogue_has_an_id(shop: Shop, unchanged: Goods) -> None:
    named, web = common_pb2.Sku(id=unchanged.sku), catalog_pb2.Channel(code="without an id")
    for op_id in (b"", b"x" * 15, b"x" * 17):
        told = ("op_id", f"{len(op_id)} bytes, must be 16")
        rename = catalog_pb2.RenameSkuRequest(op_id=op_id, sku=named, code="without an id")
        assert await refused(shop.gateway.catalog.RenameSku(rename)) == told
        channel = catalog_pb2.SetChannelRequest(op_id=op_id, channel=web)
        assert await refused(shop.gateway.catalog.SetChannel(channel)) == told


async def test_too_much_of_a_catalogue(shop: Shop, unchanged: Goods) -> None:
    for count in (0, limits.MAX_CATALOG_ENTRIES + 1):
        told = f"{count} entries, must be 1 to 10000"
        skus = catalog_pb2.AddSkusRequest(skus=[catalog_pb2.SkuEntry()] * count)
        assert await refused(shop.gateway.catalog.AddSkus(skus)) == ("skus", told)
        places = catalog_pb2.AddLocationsRequest(locations=[catalog_pb2.LocationEntry()] * count)
        assert await refused(shop.gateway.catalog.AddLocations(places)) == ("locations", told)
    page = catalog_pb2.ListSkusRequest(page_size=10_001)
    field, description = await refused(shop.shard.catalog.ListSkus(page))
    assert field == "page_size"
    assert "10000" in description
    names = [common_pb2.Location(id=1)] * (limits.MAX_SUBSCRIPTION_NAMES + 1)
    pages = shop.gateway.availability.ListCells(availability_pb2.ListCellsRequest(locations=names))
    assert (await refused(pages.read()))[0] == "locations"


@on_both_paths
async def test_reads_of_what_is_unknown(shop: Shop, unchanged: Goods, path: str) -> None:
    """No such cell, whatever the ids; a location that nobody knows has no cells."""
    peer = shop.peer(path)
    skus = [common_pb2.Sku(id=number) for number in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)]
    skus.append(common_pb2.Sku(code="nobody has this"))
    places = [common_pb2.Location(id=number) for number in (0, 2**20, 2**31 - 1, 2**31, 2**32 - 1)]
    places.append(common_pb2.Location(code="nowhere"))
    names = [availability_pb2.CellName(sku=sku, location=at) for sku in skus for at in places]
    names += [
        availability_pb2.CellName(sku=sku, location=common_pb2.Location(id=unchanged.at))
        for sku in skus
    ]
    cells = await peer.availability.GetCells(availability_pb2.GetCellsRequest(cells=names))
    assert not any(cell.found for cell in cells.cells)
    for place in places:
        asked = price_pb2.GetPricesRequest(location=place, skus=skus)
        reply = await peer.price.GetPrices(asked)
        assert reply.currency == ""
        assert not any(price.found for price in reply.prices)
    pages = peer.availability.ListCells(availability_pb2.ListCellsRequest(locations=places))
    assert sum([page.cells async for page in pages]) == 0


# --- batches --------------------------------------------------------------------------------------


def submit_of(goods: Goods, lines: int = 3, **wrong: Any) -> stock_pb2.SubmitRequest:
    """A batch of sales that is good, but for what is wrong."""
    columns: dict[str, Any] = {
        "op_id": batch_id(),
        "lines": lines,
        "kind": bytes([Kind.SALE]),
        "sku": u4(goods.sku),
        "location": u4(goods.at),
        "quantity": i8(1),
    }
    return stock_pb2.SubmitRequest(**columns | wrong)


def u4(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def i8(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


@on_both_paths
@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        ({"op_id": bytes(15) + b"\1"}, "op_id", "the last two bytes of a batch's id must be zero"),
        ({"op_id": bytes(14) + b"\1\0"}, "op_id", "the last two bytes"),
        ({"lines": 0}, "lines", "0, must be 1 to 8190"),
        ({"lines": 8_191}, "lines", "8191, must be 1 to 8190"),
        ({"lines": 2**32 - 1}, "lines", "4294967295, must be 1 to 8190"),
        ({"kind": bytes([Kind.SALE] * 2)}, "kind", "2 bytes, must be none, 1 (one for all lines)"),
        ({"flags": bytes(4)}, "flags", "4 bytes"),
        ({"sku": bytes(3)}, "sku", "3 bytes, must be none, 4 (one for all lines) or 12"),
        ({"sku": u4(1, 1)}, "sku", "8 bytes"),
        ({"location": u4(1, 1, 1, 1)}, "location", "16 bytes"),
        ({"quantity": bytes(7)}, "quantity", "7 bytes, must be none, 8"),
        ({"quantity": i8(1, 1)}, "quantity", "16 bytes"),
        ({"value": bytes(25)}, "value", "25 bytes"),
        ({"currency": bytes(1)}, "currency", "1 bytes"),
        ({"currency": bytes(4)}, "currency", "4 bytes"),
        ({"hold": bytes(15)}, "hold", "15 bytes, must be none, 16 (one for all lines) or 48"),
        ({"hold": bytes(32)}, "hold", "32 bytes"),
    ],
)
async def test_malformed_batches(
    shop: Shop, unchanged: Goods, path: str, wrong: dict[str, Any], field: str, words: str
) -> None:
    found, description = await refused(shop.peer(path).stock.Submit(submit_of(unchanged, **wrong)))
    assert found == field
    assert words in description


@on_both_paths
async def test_a_batch_that_is_too_long_by_one(shop: Shop, unchanged: Goods, path: str) -> None:
    lines = limits.MAX_BATCH_LINES + 1
    whole = submit_of(unchanged, lines, kind=bytes([Kind.SALE]) * lines, sku=u4(1) * lines)
    field, description = await refused(shop.peer(path).stock.Submit(whole))
    assert (field, description) == ("lines", "8191, must be 1 to 8190")


@on_both_paths
async def test_messages_beyond_the_limit(shop: Shop, unchanged: Goods, path: str) -> None:
    peer = shop.peer(path)
    request = directory_pb2.GetLimitsRequest()
    most = (await peer.directory.GetLimits(request)).max_message_bytes
    at_most = submit_of(unchanged, hold=b"")
    at_most.hold = bytes(most - at_most.ByteSize() - 5)
    assert at_most.ByteSize() == most
    assert (await refused(peer.stock.Submit(at_most)))[0] == "hold"
    beyond = submit_of(unchanged, hold=bytes(most))
    with pytest.raises(AioRpcError) as caught:
        await peer.stock.Submit(beyond)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(most) in caught.value.details()


@on_both_paths
async def test_lines_of_a_batch_that_are_refused(shop: Shop, unchanged: Goods, path: str) -> None:
    """Each line by itself, with the status that says what is wrong with it."""
    sku, at, hold = unchanged.sku, unchanged.at, hold_of(unchanged)
    day_ms = 86_400_000
    wrong: list[tuple[tuple[int, ...], int]] = [
        # kind, flags, sku, location, quantity, value, currency
        ((0, 0, sku, at, 1, 0, 0), S.STATUS_INVALID_KIND),
        ((22, 0, sku, at, 1, 0, 0), S.STATUS_INVALID_KIND),
        ((255, 255, sku, at, 1, 0, 0), S.STATUS_INVALID_KIND),
        ((Kind.SALE, 1, sku, at, 1, 0, 0), S.STATUS_INVALID_FLAGS),
        ((Kind.SALE, 128, sku, at, 1, 0, 0), S.STATUS_INVALID_FLAGS),
        ((Kind.RESERVE, 2, sku, at, 1, day_ms, 0), S.STATUS_INVALID_FLAGS),
        ((Kind.RELEASE, 2, sku, at, 1, 0, 0), S.STATUS_INVALID_FLAGS),
        ((Kind.RESERVE, 0, sku, at, 0, day_ms, 0), S.STATUS_INVALID_QUANTITY),
        ((Kind.RESERVE, 0, sku, at, MAX_INT64, day_ms, 0), S.STATUS_QUANTITY_TOO_LARGE),
        ((Kind.RESERVE, 0, sku, at, 1, 0, 0), S.STATUS_INVALID_TTL),
        ((Kind.RESERVE, 0, sku, at, 1, MAX_INT64, 0), S.STATUS_INVALID_TTL),
        ((Kind.RESERVE, 0, sku, at, 9, day_ms, 0), S.STATUS_INSUFFICIENT_STOCK),
        ((Kind.RESERVE, 0, sku, 0, 1, day_ms, 0), S.STATUS_UNKNOWN_LOCATION),
        ((Kind.SALE, 0, 0, at, 1, 0, 0), S.STATUS_UNKNOWN_SKU),
        ((Kind.SALE, 0, 2**32 - 1, 2**32 - 1, 1, 0, 0), S.STATUS_UNKNOWN_LOCATION),
        ((Kind.RETURN, 0, sku, at, 1, 3, 0), S.STATUS_INVALID_DISPOSITION),
        ((Kind.ADJUST, 0, sku, at, MIN_INT64, 0, 0), S.STATUS_QUANTITY_TOO_LARGE),
        ((Kind.ADJUST, 0, sku, at, 1, -1, 0), S.STATUS_INVALID_REASON),
        ((Kind.COUNT, 0, sku, at, -1, 0, 0), S.STATUS_INVALID_QUANTITY),
        ((Kind.SET_SAFETY_STOCK, 0, sku, at, 10**9 + 1, 0, 0), S.STATUS_QUANTITY_TOO_LARGE),
        ((Kind.SET_PRICE, 0, sku, at, 0, -1, 978), S.STATUS_INVALID_PRICE),
        ((Kind.SET_PRICE, 0, sku, at, 0, 1, 840), S.STATUS_CURRENCY_MISMATCH),
        ((Kind.SET_PRICE, 0, sku, at, 0, 1, 65_535), S.STATUS_CURRENCY_MISMATCH),
        ((Kind.COMMIT, 0, 0, 0, 3, 0, 0), S.STATUS_EXCEEDS_HOLD),
        ((Kind.COMMIT, 0, sku + 1, at, 1, 0, 0), S.STATUS_NOT_IN_HOLD),
        ((Kind.FULFIL, 0, 0, 0, 0, 0, 0), S.STATUS_HOLD_NOT_COMMITTED),
        # Two lines that stand or fall together, and the last, which has nobody to fall with.
        ((Kind.RESERVE, 1, sku, at, 1, day_ms, 0), S.STATUS_LINKED_LINE_REFUSED),
        ((Kind.RESERVE, 0, sku, at, 8, day_ms, 0), S.STATUS_INSUFFICIENT_STOCK),
        ((Kind.RESERVE, 1, sku, at, 1, day_ms, 0), S.STATUS_INVALID_FLAGS),
    ]
    columns = list(zip(*(row for row, _ in wrong), strict=True))
    batch = stock_pb2.SubmitRequest(
        op_id=batch_id(),
        lines=len(wrong),
        kind=bytes(columns[0]),
        flags=bytes(columns[1]),
        sku=u4(*columns[2]),
        location=u4(*columns[3]),
        quantity=i8(*columns[4]),
        value=i8(*columns[5]),
        currency=np.array(columns[6], "<u2").tobytes(),
        hold=hold,
    )
    reply = await shop.peer(path).stock.Submit(batch)
    answered = [S.Name(each) for each in reply.status]
    assert answered == [S.Name(status) for _, status in wrong]


@on_both_paths
async def test_an_order_of_too_many_lines(shop: Shop, unchanged: Goods, path: str) -> None:
    lines = limits.MAX_HOLD_LINES + 1
    batch = submit_of(
        unchanged,
        lines,
        kind=bytes([Kind.RESERVE]),
        flags=bytes([1]) * (lines - 1) + bytes(1),
        value=i8(60_000),
    )
    reply = await shop.peer(path).stock.Submit(batch)
    assert set(reply.status) == {S.STATUS_TOO_MANY_LINES, S.STATUS_LINKED_LINE_REFUSED}


@on_both_paths
async def test_a_balance_has_a_limit(shop: Shop, path: str) -> None:
    """A million of the largest receipts are too many; a batch may not wrap what it adds up."""
    cell = await shop.goods(stock=1)
    lines = 8_000
    statuses: set[int] = set()
    for _ in range(126):
        batch = submit_of(cell, lines, kind=bytes([Kind.RECEIVE]), quantity=i8(10**9))
        statuses |= set((await shop.peer(path).stock.Submit(batch)).status)
    assert statuses == {S.STATUS_OK, S.STATUS_BALANCE_LIMIT}
    found = await shop.cell(cell.sku, cell.at)
    assert found.on_hand == 10**15 - 10**9 + 1
    await shop.audit()


# --- anything at all ------------------------------------------------------------------------------

# The second: a shard does not add to the catalogue, nor know where the others are.
CALLERS_FAULT = {INVALID, grpc.StatusCode.FAILED_PRECONDITION}
# All but the streams.
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for file in (stock_pb2, price_pb2, availability_pb2, catalog_pb2, directory_pb2, deltas_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.server_streaming
]


class Wire:
    """Raw bytes to one server, and whether its shard's state is what it was."""

    def __init__(self, stack: Stack, path: str) -> None:
        self._stack = stack
        address = stack.gateway_address if path == "gateway" else stack.shard_address()
        self._channel = grpc.insecure_channel(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def send(self, method: str, data: bytes) -> bytes | None:
        """Call a method; its reply, or None when it refused the bytes as the caller's fault."""
        try:
            return self._channel.unary_unary(method)(data, timeout=20)
        except grpc.RpcError as error:
            if error.code() not in CALLERS_FAULT:
                raise
            return None

    def state(self) -> tuple[Any, ...]:
        status = self._stack.status()
        return tuple(status[name] for name in ("state_hash", "epoch", "holds_expired"))


@pytest.fixture(params=["gateway", "shard"])
def wire(request: pytest.FixtureRequest, stack: Stack) -> Any:
    with Wire(stack, request.param) as wire:
        yield wire
    report = stack.audit()
    assert report.conserved, report.problems


def test_random_bytes_as_a_batch(wire: Wire) -> None:
    @given(st.binary(max_size=200))
    def send(data: bytes) -> None:
        before = wire.state()
        if wire.send("/onhand.v1.Stock/Submit", data) is None:
            assert wire.state() == before

    send()


def test_random_bytes_to_every_method(wire: Wire) -> None:
    before = wire.state()

    @given(st.sampled_from(METHODS), st.binary(min_size=1, max_size=60))
    def send(method: tuple[str, Any], data: bytes) -> None:
        wire.send(method[0], data)

    send()
    assert wire.state() == before


_EDGES = st.sampled_from([0, 1, 2, 5, -1, 10**9, 10**9 + 1, 10**12 + 1, MAX_INT64, MIN_INT64])


@st.composite
def batches(draw: st.DrawFn) -> stock_pb2.SubmitRequest:
    """A batch whose columns have the right lengths, mostly, and any bytes."""
    lines = draw(st.integers(1, 8))

    def column(size: int, values: st.SearchStrategy[bytes] | None = None) -> bytes:
        exact = st.sampled_from([size, size * lines]).flatmap(
            lambda length: st.binary(min_size=length, max_size=length)
        )
        shaped = [st.just(b""), exact]
        if values is not None:
            shaped.append(st.lists(values, min_size=lines, max_size=lines).map(b"".join))
        if draw(st.integers(0, 20)) == 0:
            shaped = [st.binary(max_size=2 * size * lines)]
        return draw(st.one_of(*shaped))

    ids = st.integers(0, 6).map(u4)
    return stock_pb2.SubmitRequest(
        op_id=draw(st.binary(min_size=14, max_size=14)) + b"\0\0",
        lines=lines,
        kind=column(1, st.integers(0, 13).map(lambda kind: bytes([kind]))),
        flags=column(1, st.sampled_from([b"\0", b"\0", b"\1", b"\2"])),
        sku=column(4, ids),
        location=column(4, ids),
        quantity=column(8, _EDGES.map(i8)),
        value=column(8, st.sampled_from([0, -1, 3_600_000, 10**13, MAX_INT64]).map(i8)),
        currency=column(2, st.sampled_from([b"\0\0", (978).to_bytes(2, "little")])),
        hold=column(16, st.sampled_from([bytes(16), bytes(14) + b"\0\1", b"x" * 16])),
        want_available=draw(st.booleans()),
    )


def test_any_columns(wire: Wire) -> None:
    """Lines are refused one by one; a batch of which all are refused changes nothing."""

    @given(batches())
    def send(batch: stock_pb2.SubmitRequest) -> None:
        before = wire.state()
        answered = wire.send("/onhand.v1.Stock/Submit", batch.SerializeToString())
        refused_all = answered is None
        if answered is not None:
            reply = stock_pb2.SubmitReply.FromString(answered)
            assert len(reply.status) in {0, batch.lines}
            assert all(status in set(S.values()) for status in reply.status)
            assert len(reply.available) == (8 * batch.lines if batch.want_available else 0)
            refused_all = bool(reply.status) and 0 not in reply.status
        after = wire.state()
        if refused_all and after[2] == before[2]:  # and nothing expired meanwhile
            assert after == before

    send()


_STRINGS = st.one_of(
    st.sampled_from(["", "EUR", "SKU-1-0", "LOC-1-0"]), st.text(max_size=8), st.just("x" * 65)
)
_BYTES = st.one_of(st.binary(min_size=16, max_size=16), st.binary(max_size=17))
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_INT64: _EDGES,
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: st.one_of(st.integers(0, 6), st.integers(0, 2**32 - 1)),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 5),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: _STRINGS,
    FieldDescriptor.TYPE_BYTES: _BYTES,
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Any) -> Message:
    """Any message of a type, as its descriptor says."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        many = draw(st.integers(0, 3)) if field.is_repeated else draw(st.integers(0, 4)) > 0
        for _ in range(many):
            if field.message_type is not None:
                value = draw(messages(field.message_type))
                into = getattr(message, field.name)
                into.add().CopyFrom(value) if field.is_repeated else into.CopyFrom(value)
            elif field.is_repeated:
                getattr(message, field.name).append(draw(_SCALARS[field.type]))
            else:
                setattr(message, field.name, draw(_SCALARS[field.type]))
    return message


def test_any_message_to_every_method(wire: Wire) -> None:
    calls = st.sampled_from(METHODS).flatmap(
        lambda method: st.tuples(st.just(method), messages(method[1].input_type))
    )

    @settings(max_examples=2 * settings().max_examples)
    @given(calls)
    def send(call: tuple[tuple[str, Any], Message]) -> None:
        (name, method), message = call
        before = wire.state()
        answered = wire.send(name, message.SerializeToString())
        after = wire.state()
        if answered is None:
            assert after == before or after[2] != before[2]
        elif method.output_type.name == "OperationReply":
            reply = common_pb2.OperationReply.FromString(answered)
            refused_all = all(each.status for each in reply.lines)
            assert not refused_all or after == before or after[2] != before[2]
            assert reply.lines or reply.status
            assert not reply.status or reply.message

    send()
