"""Processes die while everybody works: nothing that was answered is lost, nothing is done twice.

The books are kept here, by nothing but the answers, and compared with the engine's cell by cell.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from actors.catalogue import CatalogueReader
from actors.shard import Shard
from adapters.client import Batch, Client, FrameKind
from adapters.client.ids import new_batch_id, new_op_id
from adapters.client.values import BatchResult, Result
from adapters.registry import GATEWAY
from adapters.services import _ShardsView
from adapters.snapshots import RedisSnapshots
from adapters.stack import Stack
from engine.operations import Kind, Request
from engine.status import Status
from onhand.v1 import availability_pb2, common_pb2
from tests.e2e.conftest import Goods, Shop, eventually, of, op, until

COUNTERS = ("on_hand", "reserved", "committed")
TTL_MS = 3_600_000  # nothing expires meanwhile

Cell = tuple[int, int]  # sku, location
Again = Callable[[], Awaitable[Result | BatchResult]]


class Books:
    """What the engine's cells must hold, and how to ask each question again."""

    def __init__(self) -> None:
        self.cells: dict[Cell, Counter[str]] = defaultdict(Counter)
        self.answered: list[tuple[Again, Result | BatchResult]] = []
        self.operations = 0

    def note(self, cell: Cell, **changes: int) -> None:
        self.cells[cell].update(changes)

    async def ask(self, again: Again) -> Any:
        """Send an operation until it is answered (the client repeats it by its id)."""
        answer = await again()
        self.answered.append((again, answer))
        self.operations += len(answer.status) if isinstance(answer, BatchResult) else 1
        return answer


async def trade(client: Client, goods: Goods, books: Books, end: asyncio.Event) -> None:
    """Orders and tills, one call after the other."""
    rng = random.Random()
    while not end.is_set():
        cell = (rng.choice(goods.skus), rng.choice(goods.locations))
        quantity = rng.randint(1, 3)
        if rng.random() < 0.4:
            await till(client, cell, quantity, books, is_sale=rng.random() < 0.5)
            continue
        held = await books.ask(
            partial(client.reserve, [(*cell, quantity)], ttl_ms=TTL_MS, op_id=new_op_id())
        )
        if not held.ok:
            assert held.status is Status.INSUFFICIENT_STOCK, held
            continue
        books.note(cell, reserved=quantity)
        fate = rng.choice(("leave", "release", "commit", "cancel", "fulfil", "fulfil"))
        if fate == "release":
            assert (await step(client.release, held, books)).ok
            books.note(cell, reserved=-quantity)
        elif fate != "leave":
            assert (await step(client.commit, held, books)).ok
            books.note(cell, reserved=-quantity, committed=quantity)
            if fate == "fulfil":
                assert (await step(client.fulfil, held, books)).ok
                books.note(cell, committed=-quantity, on_hand=-quantity)
            elif fate == "cancel":
                assert (await step(client.cancel, held, books)).ok
                books.note(cell, committed=-quantity)


async def has_done(books: Books, operations: int) -> bool:
    return books.operations >= operations


async def step(method: Callable[..., Awaitable[Result]], held: Result, books: Books) -> Result:
    answer: Result = await books.ask(partial(method, held, op_id=new_op_id()))
    return answer


async def till(client: Client, cell: Cell, quantity: int, books: Books, *, is_sale: bool) -> None:
    method = client.sale if is_sale else client.receive
    answer = await books.ask(partial(method, [(*cell, quantity)], op_id=new_op_id()))
    assert answer.ok, answer
    books.note(cell, on_hand=-quantity if is_sale else quantity)


async def bulk(client: Client, goods: Goods, books: Books, end: asyncio.Event) -> None:
    """Batches of receipts and reserves on the same cells."""
    rng = np.random.default_rng()
    lines = 300
    while not end.is_set():
        batch = Batch(
            kind=np.where(rng.random(lines) < 0.5, Kind.RECEIVE, Kind.RESERVE).astype(np.uint8),
            sku=rng.choice(goods.skus, lines),
            location=rng.choice(goods.locations, lines),
            quantity=rng.integers(1, 4, lines),
            value=TTL_MS,
        )
        # A receipt has no use for the value, and may have it.
        answer: BatchResult = await books.ask(partial(client.submit, batch, op_id=new_batch_id()))
        assert set(answer.status.tolist()) <= {Status.OK, Status.INSUFFICIENT_STOCK}
        columns = (batch.kind, batch.sku, batch.location, batch.quantity, answer.status)
        for kind, sku, at, quantity, status in zip(
            *(np.asarray(each).tolist() for each in columns), strict=True
        ):
            if status == Status.OK:
                counter = "on_hand" if kind == Kind.RECEIVE else "reserved"
                books.note((sku, at), **{counter: quantity})


async def follow(client: Client, goods: Goods, replica: dict[Cell, tuple[int, int]]) -> None:
    """Keep a replica of the cells, for ever."""
    async with aclosing(client.subscribe(locations=goods.locations, heartbeat_ms=200)) as frames:
        async for frame in frames:
            if frame.kind is FrameKind.COMPACTED:
                replica.clear()
            columns = (frame.sku, frame.location, frame.on_hand, frame.available)
            for sku, at, on_hand, available in zip(
                *(each.tolist() for each in columns), strict=True
            ):
                replica[sku, at] = (on_hand, available)


async def cells_of(client: Client, goods: Goods) -> dict[Cell, dict[str, int]]:
    found = {}
    async for page in client.list_cells(goods.locations):
        columns = [getattr(page, name).tolist() for name in ("sku", "location", *COUNTERS)]
        for sku, at, *counters in zip(*columns, strict=True):
            found[sku, at] = dict(zip(COUNTERS, counters, strict=True))
    return found


async def dies(stack: Stack, name: str) -> float:
    """Kill an actor's process as a crash would; seconds until it serves again, by itself."""

    def kill() -> float:
        pid = stack.cluster.pid(name)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: stack.cluster.pid(name) != pid)
        eventually(lambda: stack.cluster.actor(name).call_sync("status"))
        return time.monotonic() - began

    return await asyncio.to_thread(kill)


@pytest.fixture
async def clients(stack: Stack) -> AsyncIterator[tuple[Client, Client]]:
    """One that goes direct, and one that knows the gateway only."""
    gateway = await asyncio.to_thread(lambda: stack.gateway_address)
    async with (
        Client.connect(gateway) as direct,
        Client.connect(gateway, direct=False) as by_gateway,
    ):
        yield direct, by_gateway


async def test_nothing_is_lost_and_nothing_done_twice(
    shop: Shop, clients: tuple[Client, Client]
) -> None:
    goods, books, end = await shop.goods(skus=6, locations=2, stock=20), Books(), asyncio.Event()
    for sku in goods.skus:
        for at in goods.locations:
            books.note((sku, at), on_hand=20)
    direct, by_gateway = clients
    replica: dict[Cell, tuple[int, int]] = {}
    following = asyncio.create_task(follow(by_gateway, goods, replica))
    async with asyncio.TaskGroup() as work:
        for client in clients:
            for _ in range(4):
                work.create_task(trade(client, goods, books, end))
            work.create_task(bulk(client, goods, books, end))
        took_s = []
        for name in ("shard-0", "shard-0", GATEWAY):
            await asyncio.sleep(0.7)
            before = books.operations
            assert before, "nobody works"
            took_s.append(await dies(shop.stack, name))
            await until(partial(has_done, books, before + 200), 20)  # it goes on
        await asyncio.sleep(0.3)
        end.set()
    assert max(took_s) < 15, took_s

    expected = {
        cell: {name: counters[name] for name in COUNTERS} for cell, counters in books.cells.items()
    }
    assert await cells_of(direct, goods) == expected
    await shop.audit()
    # The gateway's mirror and a subscriber that was there all the time see the same.
    await asyncio.to_thread(shop.stack.wait_for_mirror)
    assert await cells_of(by_gateway, goods) == expected
    shown = {
        cell: (each["on_hand"], each["on_hand"] - each["reserved"] - each["committed"])
        for cell, each in expected.items()
    }

    async def is_shown() -> bool:
        return replica == shown

    await until(is_shown)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    # Whatever was answered is answered so again, by the processes of today.
    before = await shop.status()
    for again, answer in random.sample(books.answered, 100):
        repeated = await again()
        if isinstance(answer, BatchResult):
            assert repeated.status.tolist() == answer.status.tolist()
            assert repeated.now_ns.tolist() == answer.now_ns.tolist()
        else:
            assert repeated == answer
    after = await shop.status()
    if after["holds_expired"] == before["holds_expired"]:  # no hold of an earlier test ran out
        assert after["state_hash"] == before["state_hash"]


async def test_a_snapshot_and_a_kill_lead_to_the_same_state(shop: Shop) -> None:
    """What is recovered comes from a snapshot and the blocks after it, answers included."""
    goods = await shop.goods(stock=10)
    before, after = (of([(goods.sku, goods.at, 1)]) for _ in range(2))
    answers = [await shop.shard.stock.Sale(before)]
    await asyncio.to_thread(shop.stack.snapshot)
    answers.append(await shop.shard.stock.Sale(after))
    for _ in range(5):
        was = await shop.status()
        await asyncio.to_thread(shop.stack.restart_shard)
        restarted = await shop.status()
        if restarted["holds_expired"] == was["holds_expired"]:
            break  # else holds of earlier tests ran out meanwhile
    assert restarted["state_hash"] == was["state_hash"]
    await shop.audit()
    for request, answer in zip((before, after), answers, strict=True):
        assert await shop.gateway.stock.Sale(request) == answer


async def test_an_owner_that_was_stopped_is_fenced_off(shop: Shop, stack: Stack) -> None:
    """SIGSTOP, a successor takes over and serves, SIGCONT: the old one may answer nothing more."""
    goods = await shop.goods(stock=10)
    name = availability_pb2.CellName(
        sku=common_pb2.Sku(id=goods.sku), location=common_pb2.Location(id=goods.at)
    )
    read = availability_pb2.GetCellsRequest(cells=[name])
    write = of([(goods.sku, goods.at, 1)])
    assert (await shop.shard.availability.GetCells(read)).cells[0].on_hand == 10
    epoch = (await shop.status())["epoch"]
    pid = await asyncio.to_thread(stack.cluster.pid, "shard-0")
    sold = op()
    os.kill(pid, signal.SIGSTOP)
    try:
        calls = [
            asyncio.ensure_future(call)
            for call in (
                shop.shard.stock.Sale(write, timeout=30),
                shop.shard.availability.GetCells(read, timeout=30),
            )
        ]
        await serve_once(
            stack, Request.of(sold, 1, kind=Kind.SALE, sku=goods.sku, location=goods.at, quantity=2)
        )
        await asyncio.sleep(2)  # the stopped one's proof that it is the owner runs out
    finally:
        os.kill(pid, signal.SIGCONT)
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    def is_back() -> bool:
        return int(stack.status()["epoch"]) == epoch + 2

    await asyncio.to_thread(eventually, is_back)
    assert await asyncio.to_thread(stack.cluster.pid, "shard-0") != pid
    assert (await shop.gateway.stock.Sale(write)).lines[0].available == 7
    await asyncio.to_thread(stack.wait_for_mirror)
    assert (await shop.cell(goods.sku, goods.at, shop.gateway)).on_hand == 7
    await shop.audit()


async def serve_once(stack: Stack, request: Request) -> None:
    """Take shard 0 over in this process, apply a request, and go."""
    config = stack._config

    def stopped(reason: str) -> Any:
        raise AssertionError(reason)

    reader = CatalogueReader(config.catalogue_journal())
    snapshots = RedisSnapshots(config.redis_url, config.prefix)
    shard = Shard(
        0,
        config.shard_journal(0),
        snapshots,
        _ShardsView(reader, 0),
        stop_process=stopped,
    )
    await shard.start()
    answer = await shard.submit(request)
    assert answer.status == b"\0"
    await shard.stop()
    await reader.journal.close()
    await snapshots.close()
