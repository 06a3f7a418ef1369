"""Events over real gRPC, from a journal in memory to columns."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest

from adapters.client.frames import Event, EventKind
from adapters.client.messages import event_frame_from
from adapters.rpc.deltas import STOPPING
from engine.block import AfterImage, Block
from engine.operations import Kind, Request
from onhand.v1 import availability_pb2, common_pb2, deltas_pb2, deltas_pb2_grpc
from tests.integration.test_deltas import Gateway, until

SKUS = 40


class Written(Gateway):
    """A gateway whose shard writes lines, accepted all, and no rules."""

    def receive(self, *cells: tuple[int, int, int]) -> None:
        """One block that receives (sku, location, quantity)."""
        shard = self.shard
        shard.write({(sku, at): {} for sku, at, _ in cells})
        shard.at = shard.at.next()
        shard.now_ns += 1_000
        sku, location, quantity = zip(*cells, strict=True)
        asked = Request.of(
            os.urandom(16), len(cells), kind=int(Kind.RECEIVE), sku=np.array(sku),
            location=np.array(location), quantity=np.array(quantity),
        )  # fmt: skip
        rows = np.unique(np.array([shard.rows[at << 32 | sku] for sku, at, _ in cells], np.int32))
        image = AfterImage(rows, len(shard.rows), np.zeros(0, np.int64), {})
        block = Block(
            0, shard.at.epoch, shard.at.seq, shard.now_ns, shard.crc, 0, SKUS, [], [asked],
            np.zeros(len(cells), np.uint8), image,
        )  # fmt: skip
        shard._write(block)


@pytest.fixture
async def gateway() -> AsyncIterator[Written]:
    gateway = Written()
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def stub(gateway: Written) -> AsyncIterator[deltas_pb2_grpc.DeltasStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        yield deltas_pb2_grpc.DeltasStub(channel)


Call = grpc.aio.UnaryStreamCall[deltas_pb2.EventsRequest, deltas_pb2.EventFrame]


async def frame_of(call: Call) -> deltas_pb2.EventFrame:
    async with asyncio.timeout(10):
        frame = await call.read()
    assert isinstance(frame, deltas_pb2.EventFrame)
    return frame


async def some(call: Call, count: int) -> list[Event]:
    """The next events, and the last frame's token with them."""
    events: list[Event] = []
    while len(events) < count:
        events += event_frame_from(await frame_of(call))
    return events


async def drained(call: Call) -> None:
    while True:
        await frame_of(call)


async def refused(call: Call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drained(call)
    return caught.value.code(), caught.value.details() or ""


async def test_events_arrive_as_they_were_done(
    gateway: Written, stub: deltas_pb2_grpc.DeltasStub
) -> None:
    call = stub.Events(
        deltas_pb2.EventsRequest(
            locations=[common_pb2.Location(code="shop-1")], skus=[common_pb2.Sku(id=2)]
        )
    )
    first = await frame_of(call)
    assert (first.events, bool(first.resume_token)) == (0, True)
    gateway.receive((2, 1, 5), (2, 1, 5), (3, 1, 1), (2, 2, 1), (2, 1, 7))
    events = await some(call, 3)
    call.cancel()
    assert [(each.kind, each.sku, each.location, each.quantity) for each in events] == [
        (EventKind.RECEIVE, 2, 1, units) for units in (5, 5, 7)
    ]
    assert [each.line for each in events] == [0, 1, 4]
    assert {(each.shard, each.epoch, each.seq) for each in events} == {(0, 1, gateway.shard.at.seq)}
    assert {each.now_ns for each in events} == {gateway.shard.now_ns}
    assert {len(each.op_id) for each in events} == {16}
    assert {each.hold for each in events} == {b""}
    again = stub.Events(
        deltas_pb2.EventsRequest(
            locations=[common_pb2.Location(id=1)],
            skus=[common_pb2.Sku(id=2)],
            resume_token=first.resume_token,
        )
    )
    assert await some(again, 3) == events
    again.cancel()


async def test_silence_carries_tokens(gateway: Written, stub: deltas_pb2_grpc.DeltasStub) -> None:
    nowhere = [common_pb2.Location(id=77)]
    call = stub.Events(deltas_pb2.EventsRequest(locations=nowhere, heartbeat_ms=100))
    await frame_of(call)
    gateway.receive((1, 1, 1))
    while (frame := await frame_of(call)).at[0].seq < gateway.shard.at.seq:
        assert frame.events == 0
    call.cancel()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (deltas_pb2.EventsRequest(locations=[common_pb2.Location(code="x")]), "locations[0].code"),
        (deltas_pb2.EventsRequest(skus=[common_pb2.Sku()]), "skus[0].id"),
        (deltas_pb2.EventsRequest(resume_token=b"nonsense"), "resume_token"),
        (deltas_pb2.EventsRequest(heartbeat_ms=99), "heartbeat_ms"),
        (
            deltas_pb2.EventsRequest(after=[availability_pb2.StreamPosition(shard=4)]),
            "after: there is no shard 4",
        ),
        (
            deltas_pb2.EventsRequest(after=[availability_pb2.StreamPosition()] * 2),
            "after[1].shard: 0 is named already",
        ),
    ],
    ids=["code", "no-name", "token", "heartbeat", "no-shard", "twice"],
)
async def test_malformed_requests_are_told_which_field(
    gateway: Written,
    stub: deltas_pb2_grpc.DeltasStub,
    request_: deltas_pb2.EventsRequest,
    field: str,
) -> None:
    code, details = await refused(stub.Events(request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(field)
    assert gateway.events.subscribers == 0


async def test_what_the_journal_does_not_have_any_more_is_out_of_range(
    gateway: Written, stub: deltas_pb2_grpc.DeltasStub
) -> None:
    call = stub.Events(deltas_pb2.EventsRequest())
    token = (await frame_of(call)).resume_token
    call.cancel()
    await until(lambda: gateway.events.subscribers == 0)
    for _ in range(3):
        gateway.receive((1, 1, 1))
    await gateway.feed.reached(gateway.shard.at, 5)
    del gateway.stream.entries[:-1]
    late = stub.Events(deltas_pb2.EventsRequest(resume_token=token))
    code, details = await refused(late)
    assert code is grpc.StatusCode.OUT_OF_RANGE
    kept = f"the oldest block kept is {gateway.shard.at} (keep_journal_mb)"
    assert details == f"shard 0: events after 1-0 are not in the journal any more, {kept}"
    other = stub.Events(deltas_pb2.EventsRequest(resume_token=token, skus=[common_pb2.Sku(id=1)]))
    code, details = await refused(other)
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert details.startswith("resume_token: ")
    assert "another filter" in details
    after = [availability_pb2.StreamPosition(shard=0, epoch=9, seq=9)]
    code, details = await refused(stub.Events(deltas_pb2.EventsRequest(after=after)))
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert details == "after: shard 0: 9-9 is no block of its journal, as yet"


async def test_full_and_stopping_hubs_say_so(
    gateway: Written, stub: deltas_pb2_grpc.DeltasStub
) -> None:
    gateway.events.max_subscribers = 1  # type: ignore[misc]
    call = stub.Events(deltas_pb2.EventsRequest())
    token = (await frame_of(call)).resume_token
    code, _ = await refused(stub.Events(deltas_pb2.EventsRequest()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    gateway.events.stop()
    assert (await frame_of(call)).resume_token == token
    for ended in (call, stub.Events(deltas_pb2.EventsRequest())):
        assert await refused(ended) == (grpc.StatusCode.UNAVAILABLE, STOPPING)


async def test_a_stuck_reader_is_ended_and_resumes_from_the_journal_with_nothing_missing() -> None:
    gateway = Written()
    await gateway.start(stuck_s=0.5)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub = deltas_pb2_grpc.DeltasStub(channel)
        stuck = stub.Events(deltas_pb2.EventsRequest())
        token = (await frame_of(stuck)).resume_token
        quick = stub.Events(deltas_pb2.EventsRequest())
        await frame_of(quick)
        blocks = 0
        async with asyncio.timeout(60):
            while gateway.events.subscribers > 1:  # nothing is read until the hub has given up
                blocks += 1
                gateway.receive(*((1 + n % SKUS, 1, blocks) for n in range(2_000)))
                assert len(await some(quick, 2_000)) == 2_000
        quick.cancel()
        quantities: list[int] = []

        async def read(call: Call, last: bytes) -> bytes:
            """Read until there is no more, one way or the other; the last token."""
            with suppress(grpc.aio.AioRpcError):
                while len(quantities) < 2_000 * blocks:
                    frame = await frame_of(call)
                    quantities.extend(event_frame_from(frame).columns["quantity"].tolist())
                    last = frame.resume_token
            return last

        token = await read(stuck, token)
        assert len(quantities) < 2_000 * blocks
        assert await stuck.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        again = stub.Events(deltas_pb2.EventsRequest(resume_token=token))
        await read(again, token)
        again.cancel()
        assert quantities == [1 + n // 2_000 for n in range(2_000 * blocks)]
    await gateway.stop()


async def test_thousands_of_subscriptions_that_are_cancelled_leave_nothing(
    gateway: Written, stub: deltas_pb2_grpc.DeltasStub
) -> None:
    cycles = int(os.environ.get("ONHAND_CYCLES", "2000"))
    gateway.receive((1, 1, 1))
    await gateway.feed.reached(gateway.shard.at, 5)

    async def cycle(n: int) -> None:
        call = stub.Events(
            deltas_pb2.EventsRequest(
                locations=[common_pb2.Location(id=1 + n % 50)], oldest=n % 3 == 0
            )
        )
        if n % 4:
            await call.read()
        call.cancel()

    async def turn(count: int) -> tuple[int, int]:
        for first in range(0, count, 50):
            await asyncio.gather(*(cycle(n) for n in range(first, first + 50)))
        await until(
            lambda: (
                gateway.events.subscribers == 0 and not gateway.events._subscriptions.by_location
            )
        )
        await until(lambda: len(asyncio.all_tasks()) < 30)
        gc.collect()
        return psutil.Process().memory_info().rss, len(asyncio.all_tasks())

    await turn(cycles // 4)
    rss_before, tasks_before = await turn(cycles // 4)
    rss_after, tasks_after = await turn(cycles // 2)
    assert tasks_after <= tasks_before + 1
    assert rss_after - rss_before < cycles // 2 * 2_000 + (4 << 20)  # 2 KB each would be a leak
