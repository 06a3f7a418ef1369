"""Who owns what and where to call it: the Directory's map, with the engine's rule for it."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine import shard_map as rule
from onhand.v1 import directory_pb2

NO_SHARD: Final = -1  # no one shard can be named: the gateway knows


class ShardMap:
    """One version of the map; without shards before the first was fetched."""

    def __init__(self, message: directory_pb2.ShardMap) -> None:
        self.version = message.version
        self.addresses = {shard.number: shard.address for shard in message.shards}
        placements = {place.location_id: tuple(place.shards) for place in message.placements}
        self._rule = None
        if message.shards:
            self._rule = rule.ShardMap(max(self.version, 1), len(message.shards), placements)

    def shard_of(self, location: int, sku: int = 0) -> int:
        """The owner of a cell, or of a location (sku 0); NO_SHARD when that is not one shard."""
        if location < 1 or self._rule is None:
            return NO_SHARD
        if sku < 1:
            owners = self._rule.owners(location)
            return owners[0] if len(owners) == 1 else NO_SHARD
        return self._rule.shard_of(sku, location)

    def shards_of(self, locations: NDArray[Any], skus: NDArray[Any]) -> NDArray[np.int64]:
        """`shard_of` for columns of shape (n,)."""
        if self._rule is None:
            return np.full(len(locations), NO_SHARD, np.int64)
        found = self._rule.shards_of(skus, locations).astype(np.int64)
        found[locations == 0] = NO_SHARD
        for location in np.unique(locations[(skus == 0) & (locations != 0)]).tolist():
            if len(self._rule.owners(location)) > 1:
                found[(locations == location) & (skus == 0)] = NO_SHARD
        return found
