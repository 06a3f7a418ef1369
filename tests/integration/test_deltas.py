"""Deltas over real gRPC, from a journal in memory to replicas."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from actors.events import EventHub
from actors.hub import DeltaHub
from actors.mirror import MirrorFeed
from adapters.replica import Replica
from adapters.rpc.deltas import STOPPING, DeltasServicer
from adapters.rpc.events import EventStreams
from engine import limits
from engine.kernels import ON_HAND, PRICE, VERSION
from engine.mirror import available_of
from onhand.v1 import common_pb2, deltas_pb2, deltas_pb2_grpc
from tests.fakes.cells import FakeShard
from tests.fakes.journal import FakeJournal, MemoryStream

STORE = b"store--1"


class Codes:
    """SKU n is "sku-n", location n "shop-n"."""

    renames = 0

    def sku_id(self, code: str) -> int:
        return int(code[4:]) if code.startswith("sku-") else 0

    def location_id(self, code: str) -> int:
        return int(code[5:]) if code.startswith("shop-") else 0


class Gateway:
    """A shard, a mirror, a hub and a server; the server may be stopped and started anew."""

    def __init__(self) -> None:
        self.stream = MemoryStream()
        self.shard = FakeShard(0, self.stream)
        self.shard.open_epoch()
        self.feed = MirrorFeed(self.shard, FakeJournal(self.stream), retry_min_s=0.001)
        self.port = 0
        self.options: dict[str, Any] = {}
        self.task: asyncio.Task[None] | None = None

    async def start(self, **options: Any) -> None:
        self.hub = DeltaHub({0: self.feed.mirror}, STORE, token_wait_s=0.1)
        self.task = asyncio.create_task(self.feed.run(self.hub))
        await self.feed.ready()
        if not self.hub.ready:
            self.hub.loaded(0)
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.events = EventHub({0: self.feed}, STORE, token_wait_s=0.1)
        stuck_s = options.get("stuck_s", 20.0)
        streams = EventStreams(self.events, Codes(), stuck_s=stuck_s)
        self.servicer = DeltasServicer(self.hub, Codes(), streams, **options)
        self.servicer.add_to(self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self) -> None:
        self.hub.stop()
        self.events.stop()
        await self.server.stop(1.0)
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    def truth(self, location: int) -> dict[tuple[int, int], tuple[int, ...]]:
        table = self.shard.array()
        return {
            (row[0] & 0xFFFFFFFF, row[0] >> 32): (row[ON_HAND], available, row[PRICE], row[VERSION])
            for row, available in zip(table.tolist(), available_of(table).tolist(), strict=True)
            if row[0] >> 32 == location
        }


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options) as channel:
        yield channel


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - of things that know no events
            await asyncio.sleep(0.005)


async def test_replicas_follow_over_a_restart(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    shard = gateway.shard
    stub = deltas_pb2_grpc.DeltasStub(channel)
    shard.write({(n, 1 + n % 3): {ON_HAND: n, PRICE: 2 * n} for n in range(1, 100)})
    replicas = {location: Replica() for location in (1, 2, 3, 9)}
    tasks = [
        asyncio.create_task(replica.run(stub, [f"shop-{location}"], heartbeat_ms=100))
        for location, replica in replicas.items()
    ]
    for step in range(60):
        shard.write({(step + 1, 1 + step % 4): {ON_HAND: step}})
        await asyncio.sleep(0.005)
        if step == 20:
            await gateway.stop()
        if step == 30:
            await gateway.start()
    for location, replica in replicas.items():
        await until(lambda r=replica, n=location: r.cells() == gateway.truth(n))
    for replica in replicas.values():
        counters = replica.counters
        assert counters.snapshots == 1
        assert counters.resumes >= 1
        assert counters.compacted == 0
    assert replicas[1].counters.deltas > 0
    assert len(replicas[1].delays_ns) > 0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: gateway.hub.subscribers == 0)


async def test_fields_leave_columns_empty(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    gateway.shard.write({(1, 1): {ON_HAND: 5, PRICE: 99, VERSION: 3}})
    stub = deltas_pb2_grpc.DeltasStub(channel)
    locations = [common_pb2.Location(id=1)]
    await gateway.feed.reached(gateway.shard.at, 5)
    for fields, empty in (
        (deltas_pb2.FIELDS_STOCK, {"price_minor", "price_version"}),
        (deltas_pb2.FIELDS_PRICE, {"on_hand", "available"}),
        (deltas_pb2.FIELDS_ALL, set()),
    ):
        call = stub.Subscribe(deltas_pb2.SubscribeRequest(locations=locations, fields=fields))
        frame = await call.read()
        assert frame.kind == deltas_pb2.FRAME_KIND_SNAPSHOT
        assert frame.cells == 1
        assert frame.sent_ns > 0
        assert not frame.resume_token
        columns = ("on_hand", "available", "price_minor", "price_version")
        assert {name for name in columns if not getattr(frame, name)} == empty
        frame = await call.read()
        assert frame.kind == deltas_pb2.FRAME_KIND_SNAPSHOT_END
        assert frame.resume_token
        assert [(at.shard, at.epoch, at.seq) for at in frame.at] == [(0, 1, 1)]
        call.cancel()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (
            deltas_pb2.SubscribeRequest(locations=[common_pb2.Location(code="nowhere")]),
            "locations[0]",
        ),
        (deltas_pb2.SubscribeRequest(skus=[common_pb2.Sku(id=1), common_pb2.Sku()]), "skus[1]"),
        (deltas_pb2.SubscribeRequest(locations=[common_pb2.Location(id=2**31)]), "locations[0]"),
        (deltas_pb2.SubscribeRequest(resume_token=b"nonsense"), "resume_token"),
        (deltas_pb2.SubscribeRequest(heartbeat_ms=99), "heartbeat_ms"),
        (deltas_pb2.SubscribeRequest(heartbeat_ms=60_001), "heartbeat_ms"),
        (
            deltas_pb2.SubscribeRequest(
                skus=[common_pb2.Sku(id=n + 1) for n in range(limits.MAX_SUBSCRIPTION_NAMES + 1)]
            ),
            "skus: ",
        ),
    ],
    ids=["code", "no-name", "id", "token", "heartbeat-short", "heartbeat-long", "too-many"],
)
async def test_malformed_requests_are_told_which_field(
    channel: grpc.aio.Channel, gateway: Gateway, request_: deltas_pb2.SubscribeRequest, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await deltas_pb2_grpc.DeltasStub(channel).Subscribe(request_).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith(field)
    assert gateway.hub.subscribers == 0


async def test_full_and_stopping_hubs_say_so(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    stub = deltas_pb2_grpc.DeltasStub(channel)
    gateway.hub.max_subscribers = 1  # type: ignore[misc]
    call = stub.Subscribe(deltas_pb2.SubscribeRequest())
    assert (await call.read()).kind == deltas_pb2.FRAME_KIND_SNAPSHOT_END
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Subscribe(deltas_pb2.SubscribeRequest()).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    gateway.hub.stop()
    assert (await call.read()).resume_token
    for ended in (call, stub.Subscribe(deltas_pb2.SubscribeRequest())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ended.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == STOPPING


async def read_on(replica: Replica, call: Any) -> None:
    while True:
        replica.apply(await call.read())


async def test_a_stuck_reader_is_ended_and_can_resume() -> None:
    gateway = Gateway()
    skus = range(1, 20_001)
    gateway.shard.write({(sku, 1): {ON_HAND: 1} for sku in skus})
    await gateway.start(stuck_s=0.5, min_gap_s=0.0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub = deltas_pb2_grpc.DeltasStub(channel)
        replica = Replica()
        call = stub.Subscribe(deltas_pb2.SubscribeRequest())
        while not replica.token:
            replica.apply(await call.read())
        step = 0
        async with asyncio.timeout(30):
            while gateway.hub.subscribers:  # nothing is read until the hub has given up
                step += 1
                gateway.shard.write({(sku, 1): {ON_HAND: step} for sku in skus})
                await asyncio.sleep(0.05)
        assert gateway.hub.pending == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_on(replica, call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        task = asyncio.create_task(replica.run(stub))
        await until(lambda: replica.cells() == gateway.truth(1))
        assert replica.counters.snapshots == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await gateway.stop()


async def test_heartbeats_carry_the_current_token(
    gateway: Gateway, channel: grpc.aio.Channel
) -> None:
    request = deltas_pb2.SubscribeRequest(locations=[common_pb2.Location(id=7)], heartbeat_ms=100)
    call = deltas_pb2_grpc.DeltasStub(channel).Subscribe(request)
    assert (await call.read()).kind == deltas_pb2.FRAME_KIND_SNAPSHOT_END
    started = time.monotonic()
    gateway.shard.write({(1, 1): {ON_HAND: 1}})
    frame = await call.read()
    assert frame.kind == deltas_pb2.FRAME_KIND_HEARTBEAT
    assert frame.at[0].seq == 1
    assert 0.05 < time.monotonic() - started < 2
    call.cancel()
