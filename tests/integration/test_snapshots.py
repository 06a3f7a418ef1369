"""Snapshots in a real Valkey: whole or not there, checked, the last two kept, by the owner alone."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import pytest

from actors.ports import (
    GENESIS,
    Fenced,
    Position,
    Saved,
    SnapshotsDamaged,
    SnapshotsUnavailable,
)
from adapters import snapshots
from adapters.resp import RespClient, RespError
from adapters.snapshots import PIECE_BYTES, RedisSnapshots
from tests.integration.conftest import ProxyMaker


@pytest.fixture
async def store(url: str, key: str) -> AsyncIterator[RedisSnapshots]:
    made = RedisSnapshots(url, prefix=key, duty=1.0)
    yield made
    await made.close()


async def load(store: RedisSnapshots, name: str) -> tuple[Position, bytes] | None:
    found = await store.load_latest(name)
    return None if found is None else (found[0], b"".join(found[1]))


async def keys(admin: RespClient, prefix: str) -> set[str]:
    found = await admin.call(b"KEYS", f"{prefix}:snapshot*".encode())
    return {key.decode().removeprefix(prefix + ":") for key in found}


def noise(n: int) -> bytes:
    return random.Random(n).randbytes(n)


async def take_over(store: RedisSnapshots, name: str, epoch: int) -> None:
    """Open an epoch of the journal, if it has not come as far."""
    with suppress(RespError):
        opening = b"%d-0" % epoch
        await store._client.call(b"XADD", store._journal(name), opening, b"b", b"opens")


async def save(
    store: RedisSnapshots, name: str, position: Position, chunks: Iterable[bytes]
) -> Saved:
    """Save a state that is there already, as the owner unless there is a newer one."""

    async def given() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    await take_over(store, name, position.epoch)
    return await store.save(name, given(), lambda: position)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [b""],
        [b"one"],
        [b"", b"a", b"", b"bc"],
        [b"x" * PIECE_BYTES],
        [noise(PIECE_BYTES + 1), b"tail"],
        [bytes([i]) * 100_003 for i in range(40)],
        [noise(3 * PIECE_BYTES)],
    ],
    ids=["none", "empty", "one", "holes", "exact", "one_more", "many", "large"],
)
async def test_what_is_saved_is_loaded(store: RedisSnapshots, chunks: list[bytes]) -> None:
    saved = await save(store, "shard-0", Position(3, 17), iter(chunks))
    assert saved.oldest == GENESIS, "one alone may be damaged: the whole journal stays"
    assert await load(store, "shard-0") == (Position(3, 17), b"".join(chunks))
    assert await store.newest("shard-0") == Position(3, 17)
    assert saved.stored_bytes <= len(b"".join(chunks)) + 1000
    assert await load(store, "shard-1") is None
    assert await store.newest("shard-1") is None


async def test_the_newest_two_are_kept(store: RedisSnapshots, admin: RespClient, key: str) -> None:
    oldest = []
    for position in (Position(1, 9), Position(1, 80), Position(2, 3)):
        saved = await save(store, "s", position, [str(position).encode()])
        oldest.append(saved.oldest)
    assert oldest == [GENESIS, Position(1, 9), Position(1, 80)]
    assert await load(store, "s") == (Position(2, 3), b"2-3")
    left = await keys(admin, key)
    assert {name.rpartition(":")[0] for name in left} == {
        "snapshots",
        "snapshot:s:1-80",
        "snapshot:s:2-3",
    }


async def test_states_only_get_newer(store: RedisSnapshots, admin: RespClient, key: str) -> None:
    for position in (Position(5, 1), Position(6, 7), Position(6, 7)):
        await save(store, "s", position, [str(position).encode()])
    before = await keys(admin, key)
    for position in (Position(4, 9), Position(5, 2), Position(6, 6)):
        with pytest.raises(Fenced):
            await save(store, "s", position, [b"older"])
    assert await load(store, "s") == (Position(6, 7), b"6-7")
    added = await keys(admin, key) - before
    assert {name.count(":") for name in added} == {2}, "nothing but pieces, which expire"


async def test_an_owner_that_is_replaced_while_it_saves_changes_nothing(
    store: RedisSnapshots, url: str, admin: RespClient, key: str
) -> None:
    """Without this its state would be the one to fall back on, its journal trimmed already."""
    await take_over(store, "s", 1)
    newer = RedisSnapshots(url, key, duty=1.0)

    async def slow() -> AsyncIterator[bytes]:
        yield noise(PIECE_BYTES)
        await save(newer, "s", Position(2, 5), [b"the newer owner's"])
        yield b"the rest"

    with pytest.raises(Fenced, match="2-0"):
        await store.save("s", slow(), lambda: Position(1, 9))
    assert await load(newer, "s") == (Position(2, 5), b"the newer owner's")
    assert len(await keys(admin, key)) == 3
    assert await admin.call(b"TTL", await unfinished_key(admin, key)) >= 0
    await newer.close()


async def test_without_its_journal_nothing_is_saved(store: RedisSnapshots) -> None:
    async def state() -> AsyncIterator[bytes]:
        yield b"state"

    with pytest.raises(SnapshotsUnavailable, match="no such key"):
        await store.save("s", state(), lambda: Position(1, 1))
    assert await load(store, "s") is None


@pytest.mark.parametrize("fate", ["lose_request", "lose_reply"])
async def test_a_save_is_repeated_until_it_is_answered(
    fate: str, proxied: ProxyMaker, admin: RespClient, key: str
) -> None:
    proxy, url = await proxied()
    store = RedisSnapshots(url, key, duty=1.0)
    await save(store, "s", Position(1, 1), [b"one"])
    proxy.once(fate, b"EVAL")
    saved = await save(store, "s", Position(1, 2), [b"two"])
    assert saved.oldest == Position(1, 1)
    assert await load(store, "s") == (Position(1, 2), b"two")
    assert len(await keys(admin, key)) == 3
    await store.close()


async def unfinished_key(admin: RespClient, prefix: str) -> bytes:
    """The pieces of a save that is under way: their key has no position."""
    found = await admin.call(b"KEYS", f"{prefix}:snapshot:s:*".encode())
    (unfinished,) = [each for each in found if each.count(b":") == prefix.count(":") + 3]
    assert isinstance(unfinished, bytes)
    return unfinished


async def snapshot_key(admin: RespClient, prefix: str, position: str) -> bytes:
    (found,) = await admin.call(b"KEYS", f"{prefix}:snapshot:s:{position}:*".encode())
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize("damage", ["flip", "piece", "hash", "manifest", "short_manifest"])
async def test_a_damaged_snapshot_gives_way_to_the_one_before(
    damage: str, store: RedisSnapshots, admin: RespClient, key: str
) -> None:
    state = noise(2 * PIECE_BYTES)
    await save(store, "s", Position(1, 1), [state])
    await save(store, "s", Position(1, 2), [b"newer" * 300_000])

    async def spoil(position: str) -> None:
        victim = await snapshot_key(admin, key, position)
        index = f"{key}:snapshots:s".encode()
        if damage == "flip":
            piece = bytearray(await admin.call(b"HGET", victim, b"1"))
            piece[100] ^= 1
            await admin.call(b"HSET", victim, b"1", bytes(piece))
        elif damage == "piece":
            await admin.call(b"HDEL", victim, b"0")
        elif damage == "hash":
            await admin.call(b"DEL", victim)
        elif damage == "manifest":
            manifest = await admin.call(b"HGET", index, victim)
            await admin.call(b"HSET", index, victim, manifest[:-1] + bytes([manifest[-1] ^ 1]))
        else:
            await admin.call(b"HSET", index, victim, b"\x00")

    await spoil("1-2")
    assert await load(store, "s") == (Position(1, 1), state)
    assert await store.newest("s") == Position(1, 2), "so far the journal must reach all the same"
    saved = await save(store, "s", Position(1, 3), [b"third" * 300_000])
    assert saved.oldest == Position(1, 1), "the damaged one is none to fall back on"
    await spoil("1-3")
    assert await load(store, "s") == (Position(1, 1), state)
    await spoil("1-1")
    with pytest.raises(SnapshotsDamaged):
        await store.load_latest("s")
    saved = await save(store, "s", Position(1, 4), [b"good again"])
    assert saved.oldest == GENESIS
    assert await load(store, "s") == (Position(1, 4), b"good again")


async def test_half_a_save_is_never_seen_and_goes_away(
    store: RedisSnapshots, admin: RespClient, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "UNFINISHED_EXPIRE_S", 1)
    await save(store, "s", Position(1, 1), [b"whole"])

    async def broken() -> AsyncIterator[bytes]:
        yield noise(2 * PIECE_BYTES)
        raise OSError("the state could not be read")

    with pytest.raises(OSError, match="could not be read"):
        await store.save("s", broken(), lambda: Position(1, 2))
    half = await unfinished_key(admin, key)
    assert await admin.call(b"TTL", half) >= 0
    assert await load(store, "s") == (Position(1, 1), b"whole")
    assert await admin.call(b"TTL", await snapshot_key(admin, key, "1-1")) == -1
    await asyncio.sleep(1.1)
    assert not await admin.call(b"EXISTS", half)


async def test_a_save_whose_pieces_expired_is_not_published(
    store: RedisSnapshots, admin: RespClient, key: str
) -> None:
    async def expire() -> None:
        await admin.call(b"DEL", await unfinished_key(admin, key))

    async def slow() -> AsyncIterator[bytes]:
        yield noise(PIECE_BYTES)
        await expire()
        yield b"the rest"

    await take_over(store, "s", 1)
    with pytest.raises(SnapshotsUnavailable, match="EXPIRED"):
        await store.save("s", slow(), lambda: Position(1, 1))
    assert await load(store, "s") is None
    assert await keys(admin, key) == set()


async def test_a_full_server_refuses(store: RedisSnapshots, admin: RespClient) -> None:
    await admin.call(b"CONFIG", b"SET", b"maxmemory", b"1")
    try:
        with pytest.raises(SnapshotsUnavailable, match="OOM"):
            await save(store, "s", Position(1, 1), [b"state"])
    finally:
        await admin.call(b"CONFIG", b"SET", b"maxmemory", b"0")


async def test_the_loop_goes_on_while_a_state_is_compressed(store: RedisSnapshots) -> None:
    chunks = [(noise(1000) + bytes([i]) * 1000) * 512 for i in range(16)]
    saving = asyncio.create_task(save(store, "s", Position(1, 1), chunks))
    turns = 0
    while not saving.done():
        await asyncio.sleep(0)
        turns += 1
    await saving
    assert turns > 1_000, "nothing of a piece's work is the loop's own"


async def test_an_unreachable_server_is_said(url: str) -> None:
    store = RedisSnapshots("redis://127.0.0.1:1/0", retry_for_s=0.05)
    with pytest.raises(SnapshotsUnavailable, match=r"127\.0\.0\.1:1"):
        await store.load_latest("s")
    await store.close()


def test_a_duty_is_a_share(url: str) -> None:
    for wrong in (0.0, 1.1):
        with pytest.raises(ValueError):
            RedisSnapshots(url, duty=wrong)
