"""What outlives a process beside the streams: snapshots, and the catalogue with the shard map."""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from random import Random
from typing import Final

from actors.ports import GENESIS, Fenced, Position, Saved, SnapshotsDamaged
from engine.block import NOT_SOLD, Place
from engine.shard_map import ShardMap
from tests.sim.server import Stream

KEPT: Final = 2
USD: Final = 840
CHANNELS: Final = 2  # with rules; of the next number nobody knows


class SnapshotStore:
    """The last two snapshots of each name, by position. A process that dies leaves none behind.

    `stream` gives the journal of a name: only its owner saves.
    """

    def __init__(self, chance: Random, stream: Callable[[str], Stream]) -> None:
        self.kept: dict[str, dict[Position, bytes]] = {}
        self._chance = chance
        self._stream = stream

    async def save(
        self, name: str, chunks: AsyncIterable[bytes], position: Callable[[], Position]
    ) -> Saved:
        whole = bytearray()
        async for chunk in chunks:
            whole += chunk
            await asyncio.sleep(self._chance.uniform(0, 0.02))
        await asyncio.sleep(self._chance.uniform(0, 0.1))
        kept, at, last = self.kept.setdefault(name, {}), position(), self._stream(name).last
        if last is None or last.epoch != at.epoch or (kept and max(kept) > at):
            raise Fenced(f"{name} is at {last}")
        kept[at] = bytes(whole)
        for old in sorted(kept)[:-KEPT]:
            del kept[old]
        return Saved(len(whole), min(kept) if len(kept) == KEPT else GENESIS)

    async def newest(self, name: str) -> Position | None:
        await asyncio.sleep(self._chance.uniform(0, 0.01))
        return max(self.kept.get(name, {}), default=None)

    async def load_latest(self, name: str) -> tuple[Position, Iterator[bytes]] | None:
        await asyncio.sleep(self._chance.uniform(0, 0.05))
        kept = self.kept.get(name, {})
        whole = {at: state for at, state in kept.items() if state}
        damaged = kept.keys() - whole.keys()
        for at in damaged:
            del kept[at]  # it does not count from now on
        if damaged and not whole:
            raise SnapshotsDamaged(name)
        return (max(whole), iter([whole[max(whole)]])) if whole else None

    def damage_newest(self, name: str) -> None:
        """Make the newest unreadable, if another one is there, or all of the journal."""
        kept, entries = self.kept.get(name, {}), self._stream(name).entries
        is_all = bool(entries) and entries[0][0] == GENESIS.opening()
        if kept and all(kept.values()) and (len(kept) == KEPT or is_all):
            kept[max(kept)] = b""


class Catalogue:
    """Locations and SKUs, ids from 1; both may grow. One shard's view of it is `View`.

    Channel 1 sells everywhere but the last few, channel 2 at every second location.
    """

    def __init__(self, shard_map: ShardMap, skus: int, locations: int) -> None:
        self.shard_map, self.skus, self.locations = shard_map, skus, locations
        self.rules, self.kept = 0, 3  # `kept` from channel 1, which changes with the version

    def buffers(self, location: int) -> tuple[int, ...]:
        """What the channels 0 to CHANNELS may not sell at a location."""
        return (0, self.kept, 0 if location % 2 else NOT_SOLD)

    def view(self, shard: int) -> "View":
        return View(self, shard)


class View:
    """Knows what was there at the last refresh."""

    def __init__(self, catalogue: Catalogue, shard: int) -> None:
        self._catalogue, self._shard = catalogue, shard
        self.sku_limit = self._locations = self.rules = 0
        self._buffers: dict[int, tuple[int, ...]] = {}

    async def refresh(self) -> None:
        await asyncio.sleep(0)
        catalogue = self._catalogue
        self.sku_limit, self._locations = catalogue.skus, catalogue.locations
        self.rules = catalogue.rules
        self._buffers = {at: catalogue.buffers(at) for at in range(1, self._locations + 1)}

    def places(self, known: int) -> Sequence[Place]:
        place = self._catalogue.shard_map.place
        return [
            Place(at, owned, USD, split, part, self._buffers[at])
            for at in range(known + 1, self._locations + 1)
            for owned, split, part in (place(at, self._shard),)
        ]
