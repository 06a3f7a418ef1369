"""What channels see of cells, and what there is of a bundle, through the Availability service."""

from collections.abc import AsyncIterator
from functools import partial

import grpc
import numpy as np
import pytest

from actors.router import Router
from adapters.rpc import availability
from adapters.rpc.availability import AvailabilityServicer
from adapters.rpc.server import open_server
from engine.catalogue import Catalogue
from engine.catalogue_block import CatalogueBlock
from engine.entries import Channel, Component, Location, Sku
from engine.operations import Kind, Request
from engine.shard_map import ShardMap
from onhand.v1 import availability_pb2, availability_pb2_grpc, common_pb2
from tests.fakes.shard import USD, FakeShard

COLA, HAM, BOX = 1, 2, 3  # a box: 6 cola, 250 g of ham


def some_catalogue() -> Catalogue:
    catalogue = Catalogue()
    places = [Location(f"store-{i}", "USD") for i in (1, 2, 3)]
    catalogue.apply(CatalogueBlock(1, 1, skus=[Sku("cola"), Sku("ham", 1)], locations=places))
    box = Sku("box", components=(Component(COLA, 6), Component(HAM, 250)))
    catalogue.apply(CatalogueBlock(1, 2, 0, 2, 3, skus=[box]))
    for n, channel in enumerate([Channel("web", 4), Channel("app", 0, True, ((2, 7),))]):
        catalogue.apply(CatalogueBlock(1, 3 + n, 0, 3, 3, channel=channel))
    return catalogue


async def do(shard: FakeShard, kind: Kind, *lines: tuple[int, int, int], **columns: int) -> None:
    skus, locations, quantities = (np.array(column) for column in zip(*lines, strict=True))
    op_id = len(shard.seen).to_bytes(16, "big")
    request = Request.of(
        op_id, len(lines), kind=int(kind), sku=skus, location=locations, quantity=quantities,
        **columns,
    )  # fmt: skip
    assert not any((await shard.submit(request)).status)


@pytest.fixture
async def stub() -> AsyncIterator[availability_pb2_grpc.AvailabilityStub]:
    shard, catalogue = FakeShard(), some_catalogue()
    await do(shard, Kind.RECEIVE, (COLA, 1, 20), (HAM, 1, 1_000), (COLA, 2, 5), (COLA, 3, 3))
    await do(shard, Kind.RESERVE, (COLA, 1, 1), value=60_000)
    await do(shard, Kind.SET_PRICE, (BOX, 1, 0), value=1_999, currency=USD)
    servicer = AvailabilityServicer(Router({0: shard}, lambda: ShardMap(1, 1)), catalogue)
    add = availability_pb2_grpc.add_AvailabilityServicer_to_server
    server = await open_server([partial(add, servicer)])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield availability_pb2_grpc.AvailabilityStub(channel)
    await server.stop(0)


async def cells(
    stub: availability_pb2_grpc.AvailabilityStub, *names: tuple[int, int], channel: str = ""
) -> list[availability_pb2.Cell]:
    asked = [
        availability_pb2.CellName(sku=common_pb2.Sku(id=sku), location=common_pb2.Location(id=at))
        for sku, at in names
    ]
    request = availability_pb2.GetCellsRequest(cells=asked, channel=channel)
    return list((await stub.GetCells(request)).cells)


async def test_a_channel_sees_its_locations_less_what_is_kept_from_it(
    stub: availability_pb2_grpc.AvailabilityStub,
) -> None:
    names = [(COLA, 1), (COLA, 2), (COLA, 3), (HAM, 2)]

    async def seen(channel: str) -> list[tuple[bool, int, int]]:
        found = await cells(stub, *names, channel=channel)
        return [(each.found, each.available, each.available_to_channel) for each in found]

    assert await seen("") == [(True, 19, 0), (True, 5, 0), (True, 3, 0), (False, 0, 0)]
    assert await seen("web") == [(True, 19, 15), (True, 5, 1), (True, 3, 0), (False, 0, 0)]
    assert await seen("app") == [(False, 0, 0), (True, 5, 0), (False, 0, 0), (False, 0, 0)]


async def test_of_a_bundle_there_are_as_many_as_its_scarcest_component_makes(
    stub: availability_pb2_grpc.AvailabilityStub,
) -> None:
    here, there, cola = await cells(stub, (BOX, 1), (BOX, 2), (COLA, 1), channel="web")
    assert (here.found, here.available, here.available_to_channel) == (True, 3, 2)
    assert (here.sku.id, here.location.id, here.on_hand) == (BOX, 1, 0)
    assert (here.price_minor, here.price_version) == (1_999, 1)
    assert (there.found, there.available, there.available_to_channel) == (False, 0, 0)
    assert (cola.on_hand, cola.reserved) == (20, 1)


async def test_lists_for_a_channel(
    stub: availability_pb2_grpc.AvailabilityStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "CELLS_PER_PAGE", 2)

    async def listed(channel: str) -> list[tuple[int, int, int]]:
        found = []
        request = availability_pb2.ListCellsRequest(channel=channel)
        async for page in stub.ListCells(request):
            columns = [
                np.frombuffer(data, dtype).tolist()
                for data, dtype in (
                    (page.sku, "<u4"), (page.location, "<u4"), (page.available_to_channel, "<i8"),
                )
            ]  # fmt: skip
            assert page.cells == len(columns[0])
            if not channel:
                assert columns[2] == []
                columns[2] = [-1] * page.cells
            found += list(zip(*columns, strict=True))
        return sorted(found)

    assert await listed("web") == [
        (COLA, 1, 15), (COLA, 2, 1), (COLA, 3, 0), (HAM, 1, 996), (BOX, 1, 0),
    ]  # fmt: skip
    assert await listed("app") == [(COLA, 2, 0)]
    assert len(await listed("")) == 5


async def test_a_channel_that_nobody_knows_is_refused(
    stub: availability_pb2_grpc.AvailabilityStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cells(stub, (COLA, 1), channel="wep")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "channel: not in the catalogue"
    with pytest.raises(grpc.aio.AioRpcError, match="channel: not in the catalogue"):
        await stub.ListCells(availability_pb2.ListCellsRequest(channel="x" * 100)).read()
