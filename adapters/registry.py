"""Where each server of a cluster can be called: one hash in the server that keeps the journals.

An actor enters itself when it serves; the entry of one that died stays until its successor writes its
own, so a reader takes an address as a hint and tries it. Knows nothing of what is served there.
"""

import secrets
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import msgpack
import redis.asyncio

_STORE_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One server: where it listens, in which epoch, and where its metrics are ("" if nowhere)."""

    address: str
    epoch: int
    metrics: str


class Registry:
    """The servers of one cluster, by name (`shard-0`, `gateway`)."""

    def __init__(self, url: str, prefix: str) -> None:
        self._redis: Any = redis.asyncio.from_url(url)
        self._prefix = prefix

    async def enter(self, name: str, entry: Entry) -> None:
        """Tell where a server is."""
        await self._redis.hset(f"{self._prefix}:servers", name, msgpack.packb(asdict(entry)))

    async def entries(self) -> dict[str, Entry]:
        """Tell where all servers are, or were."""
        found = await self._redis.hgetall(f"{self._prefix}:servers")
        return {name.decode(): Entry(**msgpack.unpackb(packed)) for name, packed in found.items()}

    async def store_id(self) -> bytes:
        """8 bytes that name this store of journals, made at the first call."""
        await self._redis.setnx(f"{self._prefix}:store", secrets.token_bytes(_STORE_ID_BYTES))
        found: bytes = await self._redis.get(f"{self._prefix}:store")
        return found

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
