"""A snapshot store and a catalogue in memory."""

from collections.abc import AsyncIterable, Callable, Iterable, Iterator

from actors.ports import GENESIS, Fenced, Position, Saved, SnapshotsDamaged
from engine.block import Place
from tests.fakes.journal import MemoryStream


class FakeSnapshots:
    """Keeps the last two snapshots of one journal, like the real store. A test may empty their bytes."""

    def __init__(self, stream: MemoryStream) -> None:
        self.kept: dict[str, list[tuple[Position, list[bytes]]]] = {}
        self.stream = stream

    async def save(
        self, name: str, chunks: AsyncIterable[bytes], position: Callable[[], Position]
    ) -> Saved:
        whole = [chunk async for chunk in chunks]
        at, last = position(), self.stream.last
        kept = self.kept.setdefault(name, [])
        if last is None or last.epoch != at.epoch or any(older > at for older, _ in kept):
            raise Fenced(f"{name} is at {last}")
        kept.append((at, whole))
        del kept[:-2]
        return Saved(sum(map(len, whole)), kept[0][0] if len(kept) == 2 else GENESIS)

    async def newest(self, name: str) -> Position | None:
        kept = self.kept.get(name)
        return kept[-1][0] if kept else None

    async def load_latest(self, name: str) -> tuple[Position, Iterator[bytes]] | None:
        kept = self.kept.get(name, [])
        whole = [each for each in kept if each[1]]
        damaged = len(kept) - len(whole)
        kept[:] = whole  # a damaged one does not count from now on
        if damaged and not whole:
            raise SnapshotsDamaged(name)
        return (whole[-1][0], iter(whole[-1][1])) if whole else None


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
