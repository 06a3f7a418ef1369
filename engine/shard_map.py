"""Which shard owns which cells: a rule for all locations, and placements for those that differ.

A location that has no placement belongs to shard (location - 1) % shards. A placement names the
shards that a location is spread over; with more than one, a SKU's part is
(splitmix64(sku) >> 33) % n, as the kernels and every client count. The map is data: a value that
never changes, with a version that grows. This module knows nothing of addresses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from engine import limits

_MASK: Final = (1 << 64) - 1
_MIX1: Final = 0xBF58476D1CE4E5B9
_MIX2: Final = 0x94D049BB133111EB


@dataclass(frozen=True)
class ShardMap:
    """Who owns what. `placements` maps a location's id to the numbers of its shards, in order.

    Raises ValueError, naming field and limit, when it could not be.
    """

    version: int
    shards: int
    placements: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)
        # Placements as columns, in order of location: a line is routed by binary search.
        placed = sorted(self.placements)
        sizes = [len(self.placements[location]) for location in placed]
        flat = [shard for location in placed for shard in self.placements[location]]
        object.__setattr__(self, "_placed", np.array(placed, np.int64))
        object.__setattr__(self, "_sizes", np.array(sizes, np.int64))
        object.__setattr__(self, "_starts", np.cumsum([0, *sizes], dtype=np.int64)[:-1])
        object.__setattr__(self, "_flat", np.array(flat, np.uint16))

    # Set by __post_init__; not fields, so they are no part of equality.
    _placed = np.zeros(0, np.int64)
    _sizes = np.zeros(0, np.int64)
    _starts = np.zeros(0, np.int64)
    _flat = np.zeros(0, np.uint16)

    def owners(self, location: int) -> tuple[int, ...]:
        """The shards of a location: one, or several when it is split by SKU."""
        return self.placements.get(location) or ((location - 1) % self.shards,)

    def shard_of(self, sku: int, location: int) -> int:
        """The shard that owns a cell."""
        owners = self.owners(location)
        return owners[split_tag(sku) % len(owners)] if len(owners) > 1 else owners[0]

    def shards_of(self, skus: NDArray[Any], locations: NDArray[Any]) -> NDArray[np.uint16]:
        """The shards that own cells: `shard_of`, line by line, of two columns of ids, shape (n,).

        The ids are those of a request, so they may be of no SKU or location: such a line goes to
        some shard, which refuses it.
        """
        where = locations.astype(np.int64, copy=False)
        if len(skus) != len(where):
            raise ValueError(f"{len(skus)} SKUs and {len(where)} locations")
        owners = ((where - 1) % self.shards).astype(np.uint16)
        if len(self._placed):
            at = np.minimum(np.searchsorted(self._placed, where), len(self._placed) - 1)
            lines = np.flatnonzero(self._placed[at] == where)
            at = at[lines]
            parts = _split_tags(skus[lines]) % self._sizes[at]
            owners[lines] = self._flat[self._starts[at] + parts]
        return owners

    def place(self, location: int, number: int) -> tuple[bool, int, int]:
        """How one shard stands to a location: `owned, split, part` of `engine.block.Place`."""
        owners = self.owners(location)
        if number not in owners:
            return False, 0, 0
        if len(owners) == 1:
            return True, 0, 0
        return True, len(owners), owners.index(number)

    def encode(self) -> bytes:
        """The map as bytes; the same map gives the same bytes."""
        placements = [(location, self.placements[location]) for location in sorted(self.placements)]
        packed: bytes = msgpack.packb([self.version, self.shards, placements])
        return packed

    @classmethod
    def decode(cls, packed: bytes) -> "ShardMap":
        """Read a map back. Raises ValueError when it is not one."""
        try:
            version, shards, placements = msgpack.unpackb(packed)
            return cls(version, shards, {location: tuple(to) for location, to in placements})
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a shard map: {error}") from error


def _check(shard_map: ShardMap) -> None:
    shards = shard_map.shards
    if shard_map.version < 1:
        raise ValueError(f"version: {shard_map.version}, must be at least 1")
    if not 1 <= shards <= limits.MAX_SHARDS:
        raise ValueError(f"shards: {shards}, must be 1 to {limits.MAX_SHARDS}")
    for location, owners in shard_map.placements.items():
        name = f"placements[{location}]"
        if not 1 <= location <= limits.MAX_LOCATIONS:
            raise ValueError(f"{name}: a location is 1 to {limits.MAX_LOCATIONS}")
        if not 1 <= len(owners) <= limits.MAX_SPLIT:
            raise ValueError(f"{name}: {len(owners)} shards, must be 1 to {limits.MAX_SPLIT}")
        if len(set(owners)) != len(owners):
            raise ValueError(f"{name}: {owners} names a shard twice")
        if not all(0 <= owner < shards for owner in owners):
            raise ValueError(f"{name}: {owners} are not all among the {shards} shards")


def split_tag(sku: int) -> int:
    """31 bits of a SKU's hash, which say what part of a split location it is in.

    `engine.kernels.key_tag` in Python: splitmix64's finalizer, its upper half.
    """
    x = sku & _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return (x ^ (x >> 31)) >> 33


def _split_tags(skus: NDArray[Any]) -> NDArray[np.int64]:
    """`split_tag` of each SKU; arrays of uint64 wrap, as they should here."""
    x = skus.astype(np.int64, copy=False).view(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX2)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(33)).astype(np.int64)
