"""What outlives a process beside the streams: snapshots, and the catalogue with the shard map."""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from random import Random
from typing import Final

from actors.ports import Position, Saved
from engine.block import Place
from engine.shard_map import ShardMap

KEPT: Final = 2
USD: Final = 840


class SnapshotStore:
    """The last two snapshots of each name, by position. A process that dies leaves none behind."""

    def __init__(self, chance: Random) -> None:
        self.kept: dict[str, dict[Position, bytes]] = {}
        self._chance = chance

    async def save(
        self, name: str, chunks: AsyncIterable[bytes], position: Callable[[], Position]
    ) -> Saved:
        whole = bytearray()
        async for chunk in chunks:
            whole += chunk
            await asyncio.sleep(self._chance.uniform(0, 0.02))
        await asyncio.sleep(self._chance.uniform(0, 0.1))
        kept = self.kept.setdefault(name, {})
        kept[position()] = bytes(whole)
        for old in sorted(kept)[:-KEPT]:
            del kept[old]
        return Saved(len(whole), min(kept))

    async def load_latest(self, name: str) -> tuple[Position, Iterator[bytes]] | None:
        await asyncio.sleep(self._chance.uniform(0, 0.05))
        kept = {at: whole for at, whole in self.kept.get(name, {}).items() if whole}
        if not kept:
            return None
        position = max(kept)
        return position, iter([kept[position]])

    def damage_newest(self, name: str) -> bool:
        """Make the newest unreadable, if an older one is there."""
        kept = self.kept.get(name, {})
        if len(kept) < KEPT or not all(kept.values()):
            return False
        kept[max(kept)] = b""
        return True


class Catalogue:
    """Locations and SKUs, ids from 1; both may grow. One shard's view of it is `View`."""

    def __init__(self, shard_map: ShardMap, skus: int, locations: int) -> None:
        self.shard_map, self.skus, self.locations = shard_map, skus, locations

    def view(self, shard: int) -> "View":
        return View(self, shard)


class View:
    """Knows what was there at the last refresh."""

    rules = 0

    def __init__(self, catalogue: Catalogue, shard: int) -> None:
        self._catalogue, self._shard = catalogue, shard
        self.sku_limit = self._locations = 0

    async def refresh(self) -> None:
        await asyncio.sleep(0)
        self.sku_limit, self._locations = self._catalogue.skus, self._catalogue.locations

    def places(self, known: int) -> Sequence[Place]:
        place = self._catalogue.shard_map.place
        return [
            Place(at, owned, USD, split, part)
            for at in range(known + 1, self._locations + 1)
            for owned, split, part in (place(at, self._shard),)
        ]
