"""Owners that come, go and overlap, snapshots that are damaged: what a start makes of it."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from actors.ports import Fenced, Position, Unavailable
from actors.recovery import Recovery
from actors.shard import Shard
from engine import snapshot
from tests.fakes.journal import MemoryStream
from tests.fakes.stores import FakeSnapshots
from tests.unit.test_shard import World, receive

NAME = "shard-0"


class Crossroads(FakeSnapshots):
    """A store whose next call of a method is met by something else."""

    def __init__(self, stream: MemoryStream) -> None:
        super().__init__(stream)
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}

    async def newest(self, name: str) -> Position | None:
        found = await super().newest(name)
        await self._meet("newest")
        return found

    async def load_latest(self, name: str) -> tuple[Position, Iterator[bytes]] | None:
        found = await super().load_latest(name)
        await self._meet("load_latest")
        return found

    async def _meet(self, method: str) -> None:
        if method in self.after:
            await self.after.pop(method)()


@pytest.fixture
def world() -> World:
    world = World()
    world.snapshots = Crossroads(world.stream)
    return world


@pytest.fixture
def crossroads(world: World) -> Crossroads:
    assert isinstance(world.snapshots, Crossroads)
    return world.snapshots


async def trade(shard: Shard, snapshots: int) -> None:
    """A block, and so often a snapshot and a block."""
    await shard.submit(receive(1, 1))
    for _ in range(snapshots):
        await shard.snapshot()
        await shard.submit(receive(1, 1))


async def on_hand(world: World) -> int:
    serving: AbstractAsyncContextManager[Shard] = world.serving()
    async with serving as shard:
        (cell,) = await shard.cells([(1, 1)])
        assert cell is not None
        return cell.on_hand


async def test_an_owner_that_saves_and_trims_until_it_is_replaced(
    world: World, crossroads: Crossroads
) -> None:
    """What a successor has learnt of the snapshots may be gone when it has taken over."""
    old = world.shard()
    await old.start()
    await trade(old, 2)

    async def goes_on() -> None:
        await trade(old, 3)

    crossroads.after["newest"] = goes_on
    assert await on_hand(world) == 7
    assert world.stream.entries[0][0] > Position(1, 3), "what it would have loaded is of no use"


async def test_a_start_that_is_overtaken_by_another_one_is_fenced(
    world: World, crossroads: Crossroads
) -> None:
    async with world.serving() as shard:
        await trade(shard, 2)

    async def another_comes() -> None:
        async with world.serving() as other:
            await trade(other, 3)

    crossroads.after["load_latest"] = another_comes
    with pytest.raises(Fenced, match="3-4 is a newer owner's, this one is 2-0"):
        await world.shard().start()
    assert await on_hand(world) == 7


async def test_a_start_that_would_load_what_a_newer_owner_saved_is_fenced(
    world: World, crossroads: Crossroads
) -> None:
    async with world.serving() as shard:
        await trade(shard, 1)
    load = crossroads.load_latest

    async def loads_late(name: str) -> object:
        crossroads.load_latest = load  # type: ignore[method-assign]
        async with world.serving() as other:
            await trade(other, 1)
        return await load(name)

    crossroads.load_latest = loads_late  # type: ignore[method-assign, assignment]
    with pytest.raises(Fenced, match="3-1 is a newer owner's, this one is 2-0"):
        await world.shard().start()
    assert await on_hand(world) == 4


async def test_an_owner_that_was_replaced_neither_saves_nor_trims(
    world: World, crossroads: Crossroads
) -> None:
    """It wakes up when its successor has saved, and has trimmed what the old state would need."""
    old = world.shard()
    await old.start()
    await old.submit(receive(1, 1))
    save = crossroads.save

    async def sleeps(*of: object) -> object:
        crossroads.save = save  # type: ignore[method-assign]
        async with world.serving() as new:
            await trade(new, 2)
        return await save(*of)  # type: ignore[arg-type]

    crossroads.save = sleeps  # type: ignore[method-assign, assignment]
    kept = None
    with pytest.raises(Unavailable):
        await old.snapshot()
    kept = [position for position, _ in crossroads.kept[NAME]]
    assert kept == [Position(2, 1), Position(2, 2)]
    assert world.stream.entries[0][0] == Position(2, 1)
    crossroads.kept[NAME][-1][1].clear()
    assert await on_hand(world) == 4


@pytest.mark.parametrize("saved", [1, 2])
async def test_without_a_readable_snapshot_the_whole_journal_is_replayed_if_it_is_there(
    saved: int, world: World, crossroads: Crossroads
) -> None:
    async with world.serving(keep_journal_bytes=1 << 20) as shard:
        await trade(shard, saved)
    for _, chunks in crossroads.kept[NAME]:
        chunks.clear()
    assert await on_hand(world) == saved + 1


async def test_a_first_snapshot_leaves_the_journal_whole(
    world: World, crossroads: Crossroads
) -> None:
    async with world.serving() as shard:
        await trade(shard, 1)
    crossroads.kept[NAME][0][1].clear()
    assert await on_hand(world) == 2


async def test_what_is_missing_is_said(world: World, crossroads: Crossroads) -> None:
    async with world.serving() as shard:
        await trade(shard, 3)
    for _, chunks in crossroads.kept[NAME]:
        chunks.clear()
    with pytest.raises(
        Recovery,
        match="shard 0: blocks are missing: the newest snapshot ends at 0-0, that of 1-3 cannot be "
        "read, and the oldest block kept is 1-2",
    ):
        await world.shard().start()


@pytest.mark.parametrize("format_", [snapshot.FORMAT - 1, snapshot.FORMAT + 1])
async def test_a_snapshot_of_another_version_gives_way_to_the_whole_journal_if_it_is_there(
    format_: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(snapshot, "FORMAT", format_)
        async with world.serving() as shard:
            await trade(shard, 1)
    assert await on_hand(world) == 2


async def test_what_a_snapshot_of_another_version_leaves_missing_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(snapshot, "FORMAT", snapshot.FORMAT - 1)
        async with world.serving() as shard:
            await trade(shard, 3)
    with pytest.raises(Recovery, match=r"blocks are missing: .*, that of 1-3 cannot be read"):
        await world.shard().start()


async def test_a_damaged_snapshot_does_not_count_as_kept(
    world: World, crossroads: Crossroads
) -> None:
    async with world.serving() as shard:
        await trade(shard, 2)
    for _ in range(3):
        crossroads.kept[NAME][-1][1].clear()
        async with world.serving() as shard:
            await shard.submit(receive(1, 1))
            await shard.snapshot()
    assert await on_hand(world) == 6
