"""Scenarios 22 to 25: streams of changes that go quiet, slow, away and back."""

import asyncio
import gc
import random

import grpc.aio
import numpy as np
import psutil
import pytest

from actors.mirror import MirrorFeed
from actors.tokens import Filter
from adapters.replica import Replica
from engine.frames import FrameKind
from engine.kernels import ON_HAND
from onhand.v1 import common_pb2, deltas_pb2, deltas_pb2_grpc
from tests.fakes.journal import FakeJournal
from tests.integration.test_deltas import Gateway, channel, gateway, until
from tests.unit.test_hub import Reader, Stage

__all__ = ["channel", "gateway"]

# --- 22: a filter that matches nothing --------------------------------------------------------------


async def test_scenario_22_a_watcher_whose_filter_matches_nothing_moves_its_token_on() -> None:
    stage = Stage()
    reader = Reader(stage, Filter.of([77]))
    await reader.subscribe()
    reader.read()
    assert reader.kinds == [FrameKind.SNAPSHOT_END]
    tokens = {reader.replica.token}
    assert reader.subscription is not None
    for quantity in range(5):
        stage.write(0, {(1, 1): {ON_HAND: quantity}})
        reader.hear(await reader.subscription.next(0.001))
        tokens.add(reader.replica.token)
    assert reader.kinds[1:] == [FrameKind.HEARTBEAT] * 5
    assert len(tokens) == 6
    reader.cancel()
    await reader.subscribe()
    reader.read()
    assert reader.kinds[6:] == []


async def test_scenario_22_over_grpc_the_token_of_silence_is_as_good_as_one_of_news() -> None:
    """The journal is trimmed behind it, and who slept through all of it still resumes."""
    gateway = Gateway()
    await gateway.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub = deltas_pb2_grpc.DeltasStub(channel)
        nowhere = [common_pb2.Location(id=77)]
        request = deltas_pb2.SubscribeRequest(locations=nowhere, heartbeat_ms=100)
        call = stub.Subscribe(request)
        first = await call.read()
        assert first.kind == deltas_pb2.FRAME_KIND_SNAPSHOT_END
        for quantity in range(50):
            gateway.shard.write({(1, 1): {ON_HAND: quantity}})
        async with asyncio.timeout(10):
            while (frame := await call.read()).at[0].seq < gateway.shard.at.seq:
                assert frame.kind == deltas_pb2.FRAME_KIND_HEARTBEAT
        call.cancel()
        del gateway.stream.entries[:-1]
        request.resume_token = frame.resume_token
        again = stub.Subscribe(request)
        assert (await again.read()).kind == deltas_pb2.FRAME_KIND_HEARTBEAT
        again.cancel()
    await gateway.stop()


# --- 23: hundreds of slow watchers ------------------------------------------------------------------


async def test_scenario_23_hundreds_of_slow_watchers_cost_bounded_memory_and_converge() -> None:
    stage = Stage()
    locations, skus = 10, 100
    names = [(sku, location) for location in range(1, locations + 1) for sku in range(1, skus + 1)]
    stage.write(0, {name: {ON_HAND: 0} for name in names})
    slow = [Reader(stage, Filter.of([1 + n % locations])) for n in range(300)]
    every, healthy = Reader(stage, Filter.of()), Reader(stage, Filter.of([1]))
    for reader in (*slow, every, healthy):
        await reader.subscribe()
        reader.read()
    rng = np.random.default_rng(1)
    for step in range(600):
        picked = rng.integers(0, len(names), 40)
        stage.write(0, {names[i]: {ON_HAND: step} for i in picked})
        healthy.read()
        assert healthy.subscription is not None
        assert not healthy.subscription.pending
    backlogs = [
        backlog
        for reader in (*slow, every)
        for backlog in reader.subscription._backlogs.values()  # type: ignore[union-attr]
    ]
    # Of six hundred blocks that touched each location; what is told twice is kept once.
    assert max(len(backlog._news) for backlog in backlogs) <= 64
    kept = {
        id(base): base.nbytes
        for backlog in backlogs
        for piece in (backlog._old, *backlog._news)
        for base in [piece if piece.base is None else piece.base]
    }
    # At most 64 pieces, or 4,096 rows and twice the cells; most are far below.
    assert sum(kept.values()) < 300 * 4 * (4_096 + 2 * skus + skus) + 64 * 160
    for reader in (*slow, every, healthy):
        await reader.finish()


# --- 24: trimmed, then resumed ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
async def test_scenario_24_who_resumes_after_a_trim_misses_nothing_or_is_told_so(seed: int) -> None:
    """`Reader` holds every token that it is given against what was true at that moment.

    A mirror that had to be loaded anew (the journal was trimmed past it, or lost) cannot tell what
    changed before: then the reader is told COMPACTED and gets everything again.
    """
    draw = random.Random(seed)
    stage = Stage(2, frame_cells=5)
    reader = Reader(stage, Filter.of([1, 2]))
    resumed = compacted = 0
    for _ in range(40):
        await reader.subscribe()
        reader.read(draw.choice([1, 3, 1_000]))
        had_token = bool(reader.replica.token)
        reader.cancel()
        was_trimmed = draw.random() < 0.3
        for number in (0, 1):
            for _ in range(draw.randint(0, 4)):
                cells = [(draw.randint(1, 20), 1 + number) for _ in range(draw.randint(1, 9))]
                stage.write(number, {cell: {ON_HAND: draw.randint(0, 99)} for cell in cells})
        if was_trimmed:
            stage.load(draw.randint(0, 1))
        frames = len(reader.frames)
        await reader.subscribe()
        reader.read()
        kinds = reader.kinds[frames:]
        if had_token:
            assert (FrameKind.COMPACTED in kinds) == was_trimmed
            resumed, compacted = resumed + 1, compacted + was_trimmed
        await reader.finish()
        reader.cancel()
    assert resumed > compacted > 0


async def test_scenario_24_over_grpc_a_gateway_that_was_trimmed_past_says_so_to_who_resumes() -> (
    None
):
    gateway = Gateway()
    gateway.shard.write({(sku, 1): {ON_HAND: sku} for sku in range(1, 50)})
    await gateway.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub = deltas_pb2_grpc.DeltasStub(channel)
        replica = Replica()

        async def follows() -> None:
            task = asyncio.create_task(replica.run(stub, ["shop-1"], heartbeat_ms=100))
            await until(lambda: replica.cells() == gateway.truth(1))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        await follows()
        gateway.shard.write({(1, 1): {ON_HAND: 0}})  # within what the mirror knows
        await gateway.feed.reached(gateway.shard.at, 5)
        await follows()
        assert (replica.counters.compacted, replica.counters.snapshots) == (0, 1)
        # Away while cells change, the shard opens a new epoch and all of that is trimmed: the
        # mirror, new as the gateway's process is, has nothing to say of it but what is so now.
        await gateway.stop()
        for sku in range(1, 50, 7):
            gateway.shard.write({(sku, 1): {ON_HAND: 1_000 + sku}})
        gateway.shard.open_epoch()
        gateway.stream.entries.clear()
        fresh = Gateway()
        fresh.shard, fresh.port = gateway.shard, gateway.port
        fresh.feed = MirrorFeed(fresh.shard, FakeJournal(gateway.stream), retry_min_s=0.001)
        await fresh.start()
        await follows()
        assert (replica.counters.compacted, replica.counters.snapshots) == (1, 2)
        await fresh.stop()


# --- 25: cancelled handlers -------------------------------------------------------------------------


async def test_scenario_25_ten_thousand_subscriptions_that_are_cancelled_leave_nothing(
    gateway: Gateway, channel: grpc.aio.Channel
) -> None:
    """Over gRPC, before and after they are answered: no subscription, no task, no memory."""
    gateway.shard.write({(1, n): {ON_HAND: n} for n in range(1, 50)})
    await gateway.feed.reached(gateway.shard.at, 5)
    stub = deltas_pb2_grpc.DeltasStub(channel)

    async def cycle(n: int) -> None:
        call = stub.Subscribe(deltas_pb2.SubscribeRequest(locations=[common_pb2.Location(id=n)]))
        if n % 4:
            await call.read()
        call.cancel()

    async def some(count: int) -> tuple[int, int]:
        for first in range(0, count, 50):
            await asyncio.gather(*(cycle(1 + n % 50) for n in range(first, first + 50)))
        await until(
            lambda: gateway.hub.subscribers == 0 and not gateway.hub._subscriptions.by_location
        )
        # gRPC ends its own handlers a moment after ours.
        await until(lambda: len(asyncio.all_tasks()) < 30)
        gc.collect()
        return psutil.Process().memory_info().rss, len(asyncio.all_tasks())

    await some(2_500)
    rss_before, tasks_before = await some(2_500)
    rss_after, tasks_after = await some(5_000)
    assert tasks_after <= tasks_before + 1
    assert rss_after - rss_before < 5_000 * 2_000 + (4 << 20)  # 2 KB each would be a leak
