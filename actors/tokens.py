"""What a subscriber asks for, and the token by which it goes on: of state as of events.

A token is a vector of places, one for each shard, with the store and the filter that it is good for.
This room knows neither who subscribes nor what a place is.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine import limits
from engine.frames import Fields

STORE_ID_BYTES: Final = 8

_MALFORMED: Final = "resume_token: not a token of this service"
_HEAD: Final = struct.Struct("<B8sIH")  # version, store, fingerprint of the filter, shards
_CHECK: Final = struct.Struct("<I")  # CRC32 of all before it


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """Which cells: ids, sorted, each once, at least one; None means all."""

    locations: NDArray[np.int64] | None
    skus: NDArray[np.int64] | None
    fields: Fields

    @classmethod
    def of(
        cls,
        locations: Iterable[int] = (),
        skus: Iterable[int] = (),
        fields: Fields = Fields.ALL,
    ) -> "Filter":
        """Make a filter from ids in any order; none means all.

        Raises ValueError naming the list that is too long or has an id out of range.
        """
        return cls(
            _ids("locations", locations, limits.MAX_LOCATIONS),
            _ids("skus", skus, limits.MAX_SKUS),
            fields,
        )

    @property
    def fingerprint(self) -> int:
        """32 bits that tell filters apart: a token is good for the filter that it was made for."""
        crc = zlib.crc32(bytes((self.fields, self.locations is None, self.skus is None)))
        for ids in (self.locations, self.skus):
            if ids is not None:
                crc = zlib.crc32(ids.tobytes(), crc)
        return crc


def _ids(what: str, given: Iterable[int], most: int) -> NDArray[np.int64] | None:
    ids = np.unique(np.fromiter(given, np.int64))
    if not len(ids):
        return None
    if len(ids) > limits.MAX_SUBSCRIPTION_NAMES:
        raise ValueError(f"{what}: {len(ids)}, more than {limits.MAX_SUBSCRIPTION_NAMES}")
    if ids[0] < 1 or ids[-1] > most:
        raise ValueError(f"{what}: ids are 1 to {most}")
    return ids


class Tokens:
    """Tokens of one kind: `version` tells kinds apart, `place` is what stands for each shard."""

    def __init__(self, version: int, place: str, store_id: bytes) -> None:
        """Raises ValueError when the store's id is not 8 bytes."""
        if len(store_id) != STORE_ID_BYTES:
            raise ValueError(f"store_id: {len(store_id)} bytes, must be {STORE_ID_BYTES}")
        self._version = version
        self._place = struct.Struct(place)
        self._store_id = store_id

    def packed(self, places: Iterable[tuple[int, ...]]) -> bytes:
        """The vector of a token, of which many tokens may have the same."""
        return b"".join(self._place.pack(*place) for place in places)

    def token(self, fingerprint: int, vector: bytes) -> bytes:
        """A token for a filter."""
        count = len(vector) // self._place.size
        body = _HEAD.pack(self._version, self._store_id, fingerprint, count) + vector
        return body + _CHECK.pack(zlib.crc32(body))

    def read(self, token: bytes, fingerprint: int) -> list[tuple[Any, ...]] | None:
        """The places of a token; None when it is of another store or filter.

        ValueError if it is malformed.
        """
        if len(token) < _HEAD.size:
            raise ValueError(_MALFORMED)
        version, store_id, made_for, count = _HEAD.unpack_from(token)
        end = _HEAD.size + count * self._place.size
        if version != self._version or len(token) != end + _CHECK.size:
            raise ValueError(_MALFORMED)
        if _CHECK.unpack_from(token, end)[0] != zlib.crc32(token[:end]):
            raise ValueError(_MALFORMED)
        if store_id != self._store_id or made_for != fingerprint:
            return None
        return list(self._place.iter_unpack(token[_HEAD.size : end]))
