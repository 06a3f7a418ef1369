"""Shards on a real Valkey: whatever befalls owners, snapshots and the server, a start finds the state."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.ports import Position, Unavailable
from actors.recovery import Recovery
from actors.shard import Shard
from adapters import snapshots
from adapters.journal import RedisJournal
from adapters.resp import RespClient
from adapters.snapshots import RedisSnapshots
from adapters.valkey import EmbeddedValkey
from engine.operations import Kind, Request
from tests.fakes.stores import FakeCatalogue

SKUS = 300


class Stopped(BaseException):
    """Stands for the end of the process."""


def _stop(reason: str) -> Any:
    raise Stopped(reason)


def shard_of(url: str, prefix: str, store: RedisSnapshots, **how: Any) -> Shard:
    return Shard(
        0,
        RedisJournal(url, f"{prefix}:shard-0"),
        store,
        FakeCatalogue(SKUS),
        stop_process=_stop,
        **how,
    )


@asynccontextmanager
async def serving(url: str, prefix: str, **how: Any) -> AsyncIterator[Shard]:
    store = RedisSnapshots(url, prefix, duty=1.0)
    shard = shard_of(url, prefix, store, **how)
    try:
        await shard.start()
        yield shard
    finally:
        await shard.stop()
        await store.close()


async def receive(shard: Shard, times: int = 1) -> None:
    """One unit more of every SKU, each time."""
    for _ in range(times):
        await submit(shard, Kind.RECEIVE)


async def submit(shard: Shard, kind: Kind, op_id: bytes | None = None, **columns: Any) -> bytes:
    """One operation on every SKU at location 1; its op_id."""
    request = Request.of(
        op_id or os.urandom(14) + b"\0\0", SKUS, kind=kind, sku=range(1, SKUS + 1), location=1,
        quantity=1, **columns,
    )  # fmt: skip
    answer = await shard.submit(request)
    assert set(answer.status) == {0}
    return request.op_id


async def found(url: str, prefix: str) -> tuple[int, int]:
    """What a start finds: units on hand of the first SKU, and the state hash. It must be sound."""
    async with serving(url, prefix) as shard:
        (cell,) = await shard.cells([(1, 1)])
        assert cell is not None
        assert shard.machine.audit() == []
        return cell.on_hand, shard.machine.state_hash


class Vandal:
    """Damages what stands in the server."""

    def __init__(self, admin: RespClient, prefix: str) -> None:
        self._admin, self._prefix = admin, prefix
        self._index = f"{prefix}:snapshots:shard-0".encode()

    async def snapshots(self) -> list[bytes]:
        """The keys, the oldest first."""
        fields: list[bytes] = await self._admin.call(b"HKEYS", self._index)
        return sorted(fields, key=lambda field: Position.parse(field.decode().split(":")[-2]))

    async def flip(self, key: bytes) -> None:
        piece = bytearray(await self._admin.call(b"HGET", key, b"0"))
        piece[len(piece) // 2] ^= 1
        await self._admin.call(b"HSET", key, b"0", bytes(piece))

    async def lose(self, key: bytes) -> None:
        await self._admin.call(b"UNLINK", key)

    async def tear(self, key: bytes) -> None:
        manifest = await self._admin.call(b"HGET", self._index, key)
        await self._admin.call(b"HSET", self._index, key, manifest[: len(manifest) // 2])

    async def blocks(self) -> int:
        count: int = await self._admin.call(b"XLEN", f"{self._prefix}:shard-0".encode())
        return count


@pytest.fixture
def vandal(admin: RespClient, key: str) -> Vandal:
    return Vandal(admin, key)


DAMAGES: list[Callable[[Vandal, bytes], Any]] = [Vandal.flip, Vandal.lose, Vandal.tear]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_snapshot_is_replaced_by_the_one_before_and_the_journal(
    damage: Callable[[Vandal, bytes], Any], url: str, key: str, vandal: Vandal
) -> None:
    async with serving(url, key) as shard:
        for _ in range(4):
            await receive(shard, 2)
            await shard.snapshot()
        await receive(shard)
        state_hash = shard.machine.state_hash
    assert await vandal.blocks() < 9, "the journal was trimmed"
    await damage(vandal, (await vandal.snapshots())[-1])
    assert await found(url, key) == (9, state_hash)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_with_all_snapshots_damaged_the_journal_is_enough_or_what_lacks_is_said(
    damage: Callable[[Vandal, bytes], Any], url: str, key: str, vandal: Vandal
) -> None:
    async with serving(url, key, keep_journal_bytes=1 << 30) as shard:
        for _ in range(3):
            await receive(shard)
            await shard.snapshot()
        state_hash = shard.machine.state_hash
    for each in await vandal.snapshots():
        await damage(vandal, each)
    assert await found(url, key) == (3, state_hash)
    async with serving(url, key) as shard:
        for _ in range(3):
            await shard.snapshot()
            await receive(shard)
    for each in await vandal.snapshots():
        await damage(vandal, each)
    with pytest.raises(Recovery, match=r"blocks are missing: .* ends at 0-0, .* oldest block kept"):
        await found(url, key)


async def test_an_owner_that_sleeps_while_it_saves_does_no_harm(
    url: str, key: str, vandal: Vandal
) -> None:
    """Its successors save, trim, and lose their newest snapshot: the old one is not missed."""
    awake = asyncio.Event()
    saving = asyncio.Event()
    store = RedisSnapshots(url, key, duty=1.0)
    publish = store._publish

    async def sleeps(*of: Any) -> Any:
        saving.set()
        await awake.wait()
        return await publish(*of)

    store._publish = sleeps  # type: ignore[method-assign]
    old = shard_of(url, key, store)
    await old.start()
    await receive(old, 3)
    snapshot = asyncio.create_task(old.snapshot())
    await saving.wait()
    async with serving(url, key) as new:
        await receive(new)
        await new.snapshot()
        await receive(new)
        awake.set()
        with pytest.raises(Unavailable):
            await snapshot
        unanswered = asyncio.create_task(receive(old))
        assert old._task is not None
        with pytest.raises(Stopped, match="Fenced"):
            await old._task
        unanswered.cancel()
        assert [Position(2, 1)] == [
            Position.parse(each.decode().split(":")[-2]) for each in await vandal.snapshots()
        ]
        await new.snapshot()
        await receive(new)
        state_hash = new.machine.state_hash
    await vandal.flip((await vandal.snapshots())[-1])
    assert await found(url, key) == (6, state_hash)
    await old._journal.close()
    await store.close()


async def test_histories_reach_as_far_as_the_journal_that_is_kept(
    url: str, key: str, vandal: Vandal
) -> None:
    async with serving(url, key, keep_journal_bytes=20_000) as shard:
        await receive(shard, 3)
        early = await submit(shard, Kind.RESERVE, value=600_000)
        hold = early[:14] + b"\0\0"
        before = (await shard.history(hold)).events
        assert len(before) == 1
        for _ in range(8):
            await shard.snapshot()
            await receive(shard, 5)
        assert await vandal.blocks() < 40, "the journal was trimmed"
        history = await shard.history(hold)
        assert (history.events, history.complete) == ([], False)
        late = await submit(shard, Kind.RESERVE, value=600_000)
        await shard.snapshot()
    async with serving(url, key, keep_journal_bytes=20_000) as shard:
        for _ in range(3):  # a new process knows of no marks yet, and keeps what is there
            await shard.snapshot()
        history = await shard.history(late[:14] + b"\0\0")
        assert [event.kind for event in history.events] == [Kind.RESERVE]
        assert history.complete


VICTIM = """
import asyncio, os, signal, sys
from adapters import snapshots
from adapters.snapshots import RedisSnapshots
from tests.integration.test_recovery import receive, shard_of

snapshots.PIECE_BYTES = 1 << 18

async def main(url, prefix, pieces):
    store = RedisSnapshots(url, prefix, duty=1.0)
    shard = shard_of(url, prefix, store)
    await shard.start()
    await receive(shard, 2)
    await shard.snapshot()
    await receive(shard, 1)
    store_piece = store._store_piece

    async def dies(key, number, raw):
        if number == pieces:
            os.kill(os.getpid(), signal.SIGKILL)
        return await store_piece(key, number, raw)

    store._store_piece = dies
    await shard.snapshot()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_kill_9_half_way_through_a_snapshot(
    url: str, key: str, admin: RespClient, vandal: Vandal
) -> None:
    died = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", VICTIM, url, key, "2"], check=False, timeout=100
    )
    assert died.returncode == -signal.SIGKILL
    (whole,) = await vandal.snapshots()
    left = await admin.call(b"KEYS", f"{key}:snapshot:*".encode())
    (half,) = set(left) - {whole}
    assert await admin.call(b"HLEN", half) == 2
    assert await admin.call(b"TTL", half) > 0, "what is left of it goes away"
    on_hand, _ = await found(url, key)
    assert on_hand == 3


async def test_the_server_is_killed_while_a_snapshot_is_saved(
    data_dir: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that lives on goes on; what it has saved before and after is sound."""
    monkeypatch.setattr(snapshots, "PIECE_BYTES", 1 << 18)
    server = EmbeddedValkey(data_dir, die_with_parent=True)
    url = await asyncio.to_thread(server.start)
    port = int(url.rpartition(":")[2].partition("/")[0])
    try:
        async with serving(url, key) as shard:
            store = shard._snapshots
            assert isinstance(store, RedisSnapshots)
            store_piece, under_way = store._store_piece, asyncio.Event()

            async def stored(*of: Any) -> Any:
                under_way.set()
                return await store_piece(*of)

            await receive(shard)
            await shard.snapshot()
            store._store_piece = stored  # type: ignore[method-assign]
            await receive(shard)
            saving = asyncio.create_task(shard.snapshot())
            await under_way.wait()
            psutil.Process(server.pid).kill()
            await asyncio.to_thread(server.stop)
            server = EmbeddedValkey(data_dir, port=port, die_with_parent=True)
            await asyncio.to_thread(server.start)
            with suppress(Unavailable):
                await saving
            await receive(shard)
            await shard.snapshot()
            state_hash = shard.machine.state_hash
        assert await found(url, key) == (3, state_hash)
    finally:
        await asyncio.to_thread(server.stop)
