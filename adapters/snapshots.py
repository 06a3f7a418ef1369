"""Snapshots of shards in the server that keeps their journals, so that any node finds them.

A snapshot is one hash of compressed pieces, each with a CRC32C, and a manifest. The manifest is
what makes it a snapshot: it appears at one moment, after every piece, so half a snapshot is never
seen. The pieces of a save that was cut short expire by themselves. The newest two snapshots of a
name are kept. The manifests are changed by one script, which the server runs only for the owner of
the journal beside them, so one that was replaced while it saved changes nothing. This module
knows nothing of what is inside a state.
"""

import asyncio
import secrets
import struct
import time
import zlib
from collections.abc import AsyncIterable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import msgpack
from crc32c import crc32c

from actors.ports import (
    GENESIS,
    Fenced,
    Position,
    Saved,
    SnapshotsDamaged,
    SnapshotsUnavailable,
)
from adapters.journal import FENCE, FENCED
from adapters.resp import Command, Endpoint, Reply, RespClient, RespError, ServerUnavailable

PIECE_BYTES: Final = 512 << 10  # of a piece before compression: what one write costs the server
KEPT: Final = 2  # snapshots of each name
DUTY: Final = 0.25  # share of the time in which a save uses a core or the server; appends need both
UNFINISHED_EXPIRE_S: Final = 600  # an unfinished save's pieces vanish so long after the last one
RETRY_FOR_S: Final = 10.0
REPLY_TIMEOUT_S: Final = 10.0
FORMAT: Final = 1

_LEVEL: Final = 1  # zlib's fastest
_CHECKSUM: Final = struct.Struct("<I")

# Makes a state seen and lasting, and forgets older ones; tells how many are kept, and the oldest one's key.
# A second run, after a reply was lost, finds it done. KEYS: the journal, the index, the pieces, and
# what they are to be called. ARGV: epoch, manifest, number of pieces, how many states to keep,
# and then the keys of damaged ones, which are forgotten first.
_PUBLISH: Final = (
    FENCE
    + b"""
local function position(field)
  local epoch, seq = string.match(field, ':(%d+)%-(%d+):%x+$')
  return tonumber(epoch), tonumber(seq)
end
local function is_newer(a, b)
  local a_epoch, a_seq = position(a)
  local b_epoch, b_seq = position(b)
  return a_epoch > b_epoch or (a_epoch == b_epoch and a_seq > b_seq)
end
local function forget(field)
  redis.call('HDEL', KEYS[2], field)
  redis.call('UNLINK', field)
end
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
  if is_newer(field, KEYS[4]) then
    return redis.error_reply('FENCED there is ' .. field)
  end
end
if redis.call('HEXISTS', KEYS[2], KEYS[4]) == 0 then
  if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[3]) then
    redis.call('UNLINK', KEYS[3])
    return redis.error_reply('EXPIRED before the last piece was saved')
  end
  redis.call('RENAME', KEYS[3], KEYS[4])
  redis.call('PERSIST', KEYS[4])
  redis.call('HSET', KEYS[2], KEYS[4], ARGV[2])
  for i = 5, #ARGV do forget(ARGV[i]) end
end
local fields = redis.call('HKEYS', KEYS[2])
table.sort(fields, is_newer)
for i = tonumber(ARGV[4]) + 1, #fields do
  forget(fields[i])
  fields[i] = nil
end
return {#fields, fields[#fields]}
"""
)


@dataclass(frozen=True, slots=True)
class _Manifest:
    position: Position
    key: str  # of the hash of pieces
    pieces: list[tuple[int, int]]  # stored bytes and CRC32C of each, in order

    def encode(self) -> bytes:
        fields = (FORMAT, self.position.epoch, self.position.seq, self.key)
        body: bytes = msgpack.packb((*fields, self.pieces))
        return _CHECKSUM.pack(crc32c(body)) + body

    @classmethod
    def decode(cls, stored: bytes) -> Self | None:
        """Read a manifest back; None when it is damaged or of a format that is not known."""
        body = stored[_CHECKSUM.size :]
        if len(stored) < _CHECKSUM.size or _CHECKSUM.unpack_from(stored)[0] != crc32c(body):
            return None
        fields: list[Any] = msgpack.unpackb(body)
        if fields[0] != FORMAT:
            return None
        _, epoch, seq, key, pieces = fields
        return cls(Position(epoch, seq), key, [(n, crc) for n, crc in pieces])


class RedisSnapshots:
    """The `actors.ports.Snapshots` in a Valkey or Redis. Connects when first used.

    Under `<prefix>:snapshots:<name>` stands a hash of manifests, under
    `<prefix>:snapshot:<name>:<position>:<nonce>` one of pieces (without a position until it is whole),
    and under `<prefix>:<name>` the journal that the states are of.
    """

    def __init__(
        self,
        url: str,
        prefix: str = "onhand:main",
        *,
        duty: float = DUTY,
        retry_for_s: float = RETRY_FOR_S,
    ) -> None:
        """Name a server and the prefix of its keys; `duty` in (0, 1] is `DUTY` where 1 is no pause."""
        if not 0 < duty <= 1:
            raise ValueError(f"duty is a share in (0, 1], not {duty}")
        self._client = RespClient(
            Endpoint.parse(url), retry_for_s=retry_for_s, reply_timeout_s=REPLY_TIMEOUT_S
        )
        self._prefix = prefix
        self._duty = duty
        self._damaged: dict[str, set[bytes]] = {}  # of names: keys of states that cannot be read

    async def save(
        self, name: str, chunks: AsyncIterable[bytes], position: Callable[[], Position]
    ) -> Saved:
        """Store a state; see the port."""
        nonce = secrets.token_hex(4)
        unfinished = f"{self._prefix}:snapshot:{name}:{nonce}".encode()
        pieces: list[tuple[int, int]] = []
        raw = bytearray()
        async for chunk in chunks:
            raw += chunk
            while len(raw) >= PIECE_BYTES:
                pieces.append(await self._store_piece(unfinished, len(pieces), raw[:PIECE_BYTES]))
                del raw[:PIECE_BYTES]
        if raw or not pieces:
            pieces.append(await self._store_piece(unfinished, len(pieces), raw))
        at = position()
        key = f"{self._prefix}:snapshot:{name}:{at}:{nonce}"
        kept, oldest = await self._publish(name, unfinished, _Manifest(at, key, pieces))
        stored_bytes = sum(stored_bytes for stored_bytes, _ in pieces)
        return Saved(stored_bytes, _position_of(oldest) if kept == KEPT else GENESIS)

    async def _store_piece(self, key: bytes, number: int, raw: bytearray) -> tuple[int, int]:
        """Compress and store one piece; its stored bytes and CRC32C."""
        started_s = time.monotonic()
        piece, checksum = await asyncio.to_thread(_compressed, raw)
        await self._call(
            (b"MULTI",),
            (b"HSET", key, b"%d" % number, piece),
            (b"EXPIRE", key, b"%d" % UNFINISHED_EXPIRE_S),
            (b"EXEC",),
        )
        await asyncio.sleep((time.monotonic() - started_s) * (1 / self._duty - 1))
        return len(piece), checksum

    async def newest(self, name: str) -> Position | None:
        """Tell the newest state's position; see the port."""
        manifests = await self._manifests(name)
        return _position_of(next(iter(manifests))) if manifests else None

    async def load_latest(self, name: str) -> tuple[Position, Iterator[bytes]] | None:
        """Find the newest whole state; see the port. It is held compressed until it is used up."""
        manifests = await self._manifests(name)
        for _ in range(2):  # again, since a save may have removed what was being read
            for field, manifest in manifests.items():
                stored = None if manifest is None else await self._stored_pieces(manifest)
                if manifest is not None and stored is not None:
                    return manifest.position, _decompressed(stored)
                self._damaged.setdefault(name, set()).add(field)
            if not manifests:
                return None
            manifests = await self._manifests(name)
        raise SnapshotsDamaged(f"{name}: none of {len(manifests)} snapshots can be read whole")

    async def close(self) -> None:
        """Drop the connection."""
        await self._client.close()

    async def _publish(
        self, name: str, unfinished: bytes, manifest: _Manifest
    ) -> tuple[int, bytes]:
        """Make the snapshot visible and lasting; the number of those kept, and the oldest's key."""
        keys = (self._journal(name), self._index(name), unfinished, manifest.key.encode())
        counts = (b"%d" % len(manifest.pieces), b"%d" % KEPT)
        damaged = self._damaged.get(name, ())
        own = (b"%d" % manifest.position.epoch, manifest.encode(), *counts, *damaged)
        command = (b"EVAL", _PUBLISH, b"4", *keys, *own)
        ((kept, oldest),) = await self._call(command)
        self._damaged.pop(name, None)
        return kept, oldest

    async def _manifests(self, name: str) -> dict[bytes, _Manifest | None]:
        """Read the index of a name, newest first; a manifest is None when it is damaged."""
        flat = (await self._call((b"HGETALL", self._index(name))))[0]
        found = {flat[i]: _Manifest.decode(flat[i + 1]) for i in range(0, len(flat), 2)}
        return dict(sorted(found.items(), key=lambda item: _position_of(item[0]), reverse=True))

    async def _stored_pieces(self, manifest: _Manifest) -> list[bytes] | None:
        """Read and check a snapshot's pieces; None when anything is missing or damaged."""
        stored = []
        for i, (stored_bytes, checksum) in enumerate(manifest.pieces):
            (piece,) = await self._call((b"HGET", manifest.key.encode(), b"%d" % i))
            if piece is None or len(piece) != stored_bytes:
                return None
            if await asyncio.to_thread(crc32c, piece) != checksum:
                return None
            stored.append(piece)
        return stored

    async def _call(self, *commands: Command) -> list[Reply]:
        """Run commands together, and say in the port's words how they failed."""
        try:
            return await self._client.call_many(commands)
        except (ServerUnavailable, RespError) as error:
            if isinstance(error, RespError) and error.code == FENCED:
                raise Fenced(str(error)) from error
            raise SnapshotsUnavailable(str(error)) from error

    def _journal(self, name: str) -> bytes:
        return f"{self._prefix}:{name}".encode()

    def _index(self, name: str) -> bytes:
        return f"{self._prefix}:snapshots:{name}".encode()


def _position_of(field: bytes) -> Position:
    """Tell a snapshot's position from its key, which is readable also when its manifest is not."""
    return Position.parse(field.decode().rsplit(":", 2)[1])


def _compressed(raw: bytearray) -> tuple[bytes, int]:
    piece = zlib.compress(raw, _LEVEL)
    return piece, crc32c(piece)


def _decompressed(stored: list[bytes]) -> Iterator[bytes]:
    """Yield the state's bytes and let go of each stored piece as it is used."""
    stored.reverse()
    while stored:
        yield zlib.decompress(stored.pop())
