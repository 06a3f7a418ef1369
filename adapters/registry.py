"""Where each server of a cluster can be called: one hash in the server that keeps the journals.

An actor enters itself when it serves; the entry of one that died stays until its successor writes its
own, so a reader takes an address as a hint and tries it. Knows nothing of what is served there.
"""

import secrets
from dataclasses import asdict, dataclass
from typing import Final, Self

import msgpack

from actors.ports import Unavailable
from actors.tokens import STORE_ID_BYTES
from adapters.resp import Endpoint, Reply, RespClient, RespError, ServerUnavailable

GATEWAY: Final = "gateway"  # the name of its actor, and of its entry
RETRY_FOR_S: Final = 2.0  # callers ask again by themselves
REPLY_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One server: where it listens, in which epoch, and where its metrics are ("" if nowhere)."""

    address: str
    epoch: int
    metrics: str


class Registry:
    """The servers of one cluster, by name (`shard-0`, `gateway`).

    One connection, on which calls take turns. They raise Unavailable when the store does not answer.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._client = RespClient(
            Endpoint.parse(url), retry_for_s=RETRY_FOR_S, reply_timeout_s=REPLY_TIMEOUT_S
        )
        self._servers = f"{prefix}:servers".encode()
        self._store = f"{prefix}:store".encode()

    async def enter(self, name: str, entry: Entry) -> None:
        """Tell where a server is."""
        await self._call(b"HSET", self._servers, name.encode(), msgpack.packb(asdict(entry)))

    async def entries(self) -> dict[str, Entry]:
        """Tell where all servers are, or were."""
        flat = await self._call(b"HGETALL", self._servers)
        return {
            name.decode(): Entry(**msgpack.unpackb(packed))
            for name, packed in zip(flat[::2], flat[1::2], strict=True)
        }

    async def store_id(self) -> bytes:
        """Bytes that name this store of journals, made at the first call."""
        await self._call(b"SETNX", self._store, secrets.token_bytes(STORE_ID_BYTES))
        found: bytes = await self._call(b"GET", self._store)
        return found

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.close()

    async def _call(self, *command: bytes) -> Reply:
        try:
            return await self._client.call(*command)
        except (ServerUnavailable, RespError) as error:
            raise Unavailable(f"where the servers are is not known: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
