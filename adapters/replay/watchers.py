"""A live delta subscriber at every store, all on one event loop, while the replay runs.

Each keeps a replica, as a shelf label gateway would. The delay of a delta frame runs from the time
of the newest block in it, on the shard's clock, to its arrival here; both are one machine's clocks.
"""

import asyncio
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from adapters.client.peers import open_channel
from adapters.replay.ledger import Cells, Columns
from adapters.replica import Replica
from onhand.v1 import deltas_pb2_grpc

START_TIMEOUT_S: Final = 60.0
CAUGHT_UP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1


class WatcherFailed(Exception):  # noqa: N818 - a condition, for which the CLI has a sentence
    """A subscription ended, or did not begin, and going on is no use."""


class Watchers:
    """Subscribers to single locations; `start` them, and `stop` them at the end."""

    def __init__(self, gateway: str, locations: NDArray[np.uint32]) -> None:
        self.replicas = {int(each): Replica() for each in locations}
        self._channel = open_channel(gateway)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def frames(self) -> int:
        """Frames of any kind that arrived."""
        return sum(each.counters.frames for each in self.replicas.values())

    @property
    def deltas(self) -> int:
        """Changed cells that arrived in delta frames."""
        return sum(each.counters.deltas for each in self.replicas.values())

    @property
    def resumed(self) -> int:
        """How often a broken stream was taken up again by its token."""
        return sum(each.counters.resumes for each in self.replicas.values())

    def delays_ms(self) -> NDArray[np.float64]:
        """The delays of delta frames: of each subscriber the newest few thousand."""
        return np.concatenate([each.delays_ns for each in self.replicas.values()]) / 1e6

    async def start(self) -> None:
        """Subscribe for all, and wait until each has its snapshot. Raises WatcherFailed."""
        stub = deltas_pb2_grpc.DeltasStub(self._channel)
        self._tasks = [
            asyncio.create_task(replica.run(stub, [location]))
            for location, replica in self.replicas.items()
        ]
        ends = time.monotonic() + START_TIMEOUT_S
        while not all(each.counters.snapshots for each in self.replicas.values()):
            self._check()
            if time.monotonic() > ends:
                raise WatcherFailed(f"not all snapshots came within {START_TIMEOUT_S:g} s")
            await asyncio.sleep(_POLL_S)

    async def different(self, found: Cells) -> list[int]:
        """Wait until all replicas are as the engine is; name the locations that stay different."""
        ends = time.monotonic() + CAUGHT_UP_TIMEOUT_S
        order = np.argsort(found.key)
        key = found.key[order]
        values = _values({name: column[order] for name, column in found.columns.items()})
        left = list(self.replicas)
        while True:
            self._check()
            left = [each for each in left if not self._is_equal(each, key, values)]
            if not left or time.monotonic() > ends:
                return left
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """End all subscriptions."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def _is_equal(self, location: int, key: NDArray[np.int64], values: NDArray[np.int64]) -> bool:
        """Whether a replica holds exactly the engine's cells (`key` ascending) of its location."""
        part = slice(*np.searchsorted(key, (location << 32, (location + 1) << 32)))
        cells = self.replicas[location].cells()
        mine = np.array([place << 32 | sku for sku, place in cells], np.int64)
        order = np.argsort(mine)
        seen = np.array(list(cells.values()), np.int64).reshape(-1, values.shape[1])
        return np.array_equal(mine[order], key[part]) and np.array_equal(seen[order], values[part])

    def _check(self) -> None:
        for task in self._tasks:
            if task.done():
                error = None if task.cancelled() else task.exception()
                raise WatcherFailed(f"a subscription ended: {error}") from error


def _values(columns: Columns) -> NDArray[np.int64]:
    """What a subscriber is told of cells, shape (n, 4), in the order of `replica.Seen`."""
    kept = sum(
        columns[name]
        for name in ("reserved", "committed", "damaged", "quality_control", "safety_stock")
    )
    on_hand = columns["on_hand"]
    return np.column_stack(
        [on_hand, on_hand - kept, columns["price_minor"], columns["price_version"]]
    )
