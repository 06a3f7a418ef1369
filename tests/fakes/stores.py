"""A snapshot store and a catalogue in memory."""

from collections.abc import AsyncIterable, Callable, Iterable, Iterator

from actors.ports import Position, Saved
from engine.block import Place


class FakeSnapshots:
    """Keeps the last two snapshots of each name, like the real store."""

    def __init__(self) -> None:
        self.kept: dict[str, list[tuple[Position, list[bytes]]]] = {}

    async def save(
        self, name: str, chunks: AsyncIterable[bytes], position: Callable[[], Position]
    ) -> Saved:
        kept = self.kept.setdefault(name, [])
        whole = [chunk async for chunk in chunks]
        kept.append((position(), whole))
        del kept[:-2]
        return Saved(sum(map(len, kept[-1][1])), kept[0][0])

    async def load_latest(self, name: str) -> tuple[Position, Iterator[bytes]] | None:
        kept = self.kept.get(name)
        return (kept[-1][0], iter(kept[-1][1])) if kept else None


class FakeCatalogue:
    """Locations 1 .. n in US dollars, all of this shard; a test may raise all three numbers.

    It may also set `buffers`, what the channels' rules keep everywhere; with that, `rules` grows.
    """

    def __init__(self, skus: int = 100, locations: int = 5) -> None:
        self.sku_limit, self.locations = skus, locations
        self.rules = 0
        self.buffers: tuple[int, ...] = ()

    async def refresh(self) -> None:
        return None

    def places(self, known: int) -> Iterable[Place]:
        for location in range(known + 1, self.locations + 1):
            yield Place(location, True, 840, buffers=self.buffers)
