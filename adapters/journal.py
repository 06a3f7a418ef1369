"""The journal of a shard in a Valkey or Redis stream. See `actors.ports.Journal` for the contract.

One stream entry is one block: its id is the block's position and its one field, `b`, the payload.
Streams refuse ids that do not grow, which is what fences an older owner off. The append path runs
on a connection of its own and settles every doubt by reading the id back; reads are repeated
freely. With `appendfsync always` the server answers writers and readers alike only after the fsync,
so nobody ever sees a block that could still be lost. This module knows nothing of what is inside a
block, and nothing of Redis Cluster (one stream lives on one server).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from actors.ports import (
    GENESIS,
    AppendInDoubt,
    Compacted,
    Entry,
    Fenced,
    JournalLost,
    JournalUnavailable,
    Position,
)
from adapters.resp import (
    LATE,
    PASSING_ERRORS,
    Command,
    ConnectionLost,
    Endpoint,
    Reply,
    RespClient,
    RespConnection,
    RespError,
    Retries,
    ServerUnavailable,
    encode,
)

SETTLE_TIMEOUT_S: Final = 5.0  # how long an append or a read goes on trying after its first failure
REPLY_TIMEOUT_S: Final = 5.0  # a server that is silent for longer counts as gone
TAIL_BLOCK_S: Final = 5.0  # a quiet tail checks this often that its stream is still there
PATIENCE_MS: Final = 2  # for which an append at once stops the event loop
READ_BYTES: Final = 4 << 20  # what one round trip of a read aims at
READ_ENTRIES_FIRST: Final = 16
READ_ENTRIES_MOST: Final = 4096
TRIM_STEP: Final = 4096  # blocks dropped in one go, 1 to 6 ms, in which the appends of others wait
TAKE_OVER_ATTEMPTS: Final = 100  # each lost race is another contender's win

# How a script in Lua begins that only a stream's owner may run: KEYS[1] is the stream, ARGV[1] the
# owner's epoch. The server runs a script at one moment, so no take-over comes between this and the rest.
FENCE: Final = b"""
local info, last = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = info[i + 1] end
end
if string.match(last, '%d+') ~= ARGV[1] then
  return redis.error_reply('FENCED ' .. KEYS[1] .. ' is at ' .. last)
end
"""
FENCED: Final = "FENCED"  # the code of that error

_TRIM: Final = FENCE + b"return redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[2])"
_FIELD: Final = b"b"
_NOT_GROWING: Final = "equal or smaller than the target stream top item"


class RedisJournal:
    """The `actors.ports.Journal` over one stream. Connects when first used."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        settle_timeout_s: float = SETTLE_TIMEOUT_S,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        tail_block_s: float = TAIL_BLOCK_S,
    ) -> None:
        """Name a stream: the server's URL (see `adapters.resp.Endpoint`) and the key."""
        self._endpoint = Endpoint.parse(url)
        self._key = key.encode()
        self._settle_timeout_s = settle_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._tail_block_s = tail_block_s
        self._queries = self._client()
        self._readers: set[RespClient] = set()
        self._writer: RespConnection | None = None
        self._writing = False
        self._acknowledged: Position | None = None  # the newest block that this owner has written
        self._known = GENESIS  # the stream is known to have reached this
        self._in_doubt = False  # whether an attempt at the next block may have landed, or may yet
        self._at_once: tuple[Reply] | None = None  # of an append at once that goes on in `append`
        self._closed = False

    # ------------------------------------------------------------------------------- the owner --

    async def take_over(
        self, opening: Callable[[Position], bytes], *, known: Position | None = None
    ) -> Position:
        """Become the owner; see the port. Raises Fenced after 100 lost races."""
        self._acknowledged = None
        reached = max(self._known, known or GENESIS)
        for _ in range(TAKE_OVER_ATTEMPTS):
            last = await self.last()
            if (last or GENESIS) < reached:
                raise self._went_back(reached, last)
            self._known = last or GENESIS
            self._in_doubt = False
            position = self._known.opening()
            try:
                await self._write(position, opening(position), create=last is None)
            except Fenced:
                continue
            return position
        raise Fenced(f"{self}: lost {TAKE_OVER_ATTEMPTS} races for the next epoch")

    async def append(self, position: Position, payload: bytes) -> None:
        """Write the owner's next block; see the port."""
        if self._acknowledged is None or position != self._acknowledged.next():
            raise ValueError(f"{self}: cannot append {position} after {self._acknowledged}")
        await self._write(position, payload, create=False)

    def append_at_once(
        self, position: Position, payload: bytes, meanwhile: Callable[[], object]
    ) -> bool:
        """Write the owner's next block while the event loop stands still; see the port."""
        if self._acknowledged is None or position != self._acknowledged.next():
            raise ValueError(f"{self}: cannot append {position} after {self._acknowledged}")
        writer = self._writer
        if writer is None or self._in_doubt or self._writing:
            return False  # `append` knows what to do
        command = b"".join(encode(self._addition(position, payload)))
        if not writer.send_at_once(command):
            return False
        meanwhile()
        reply = writer.wait_at_once(PATIENCE_MS)
        if isinstance(reply, bytes):
            self._acknowledged = self._known = position
            return True
        self._at_once = (reply,)
        return False

    async def trim(self, before: Position) -> int:
        """Drop the blocks before a position, in steps, each as the owner; see the port."""
        if self._acknowledged is None:
            raise ValueError(f"{self}: only its owner trims")
        epoch = b"%d" % self._acknowledged.epoch
        dropped = 0
        while (first := await self.first()) is not None and first < before:
            step = min(before, Position(first.epoch, first.seq + TRIM_STEP))
            command = (b"EVAL", _TRIM, b"1", self._key, epoch, _id(step))
            dropped += await self._query(self._queries, *command)
            if step == before:
                break
        return dropped

    async def close(self) -> None:
        """Drop every connection."""
        self._closed = True
        clients = [self._queries, *self._readers]
        if self._writer is not None:
            await self._writer.close()
        await asyncio.gather(*(client.close() for client in clients))

    async def _write(self, position: Position, payload: bytes, *, create: bool) -> None:
        """Bring one entry into the stream, or learn for certain that it cannot be.

        An attempt whose reply is lost leaves a doubt. The id settles it: either the entry is found
        under it, byte for byte, or the same entry is sent again, which the server refuses if the
        first one has landed meanwhile.
        """
        if self._writing:
            raise RuntimeError(f"{self}: one append at a time")
        retries: Retries | None = None
        self._writing = True
        try:
            while True:
                try:
                    await self._attempt(position, payload, create)
                    break
                except ConnectionLost as error:
                    failure: Exception = error
                except RespError as error:
                    failure = error
                    if error.code == "WRONGTYPE":
                        raise JournalLost(f"{self}: the key holds no stream") from error
                    if error.code not in PASSING_ERRORS:
                        raise self._gave_up(position, error) from error
                    if self._writer is not None:  # the name may lead to another server by now
                        self._writer.abort()
                retries = retries or Retries(self._settle_timeout_s)
                if self._closed or not await retries.pause():
                    raise self._gave_up(position, failure) from failure
        finally:
            self._writing = False
        self._acknowledged = self._known = position
        self._in_doubt = False

    async def _attempt(self, position: Position, payload: bytes, create: bool) -> None:
        """Try once: return when the entry is in the stream, raise Fenced or JournalLost for good.

        RespError: this attempt wrote nothing. ConnectionLost: `_in_doubt` tells whether it may have.
        """
        writer = self._writer
        at_once, self._at_once = self._at_once, None
        if writer is None or (writer.closed and at_once is None):
            writer = await self._connect_writer()
        doubted = self._in_doubt
        if doubted and await self._landed(writer, position, payload):
            return
        self._in_doubt = True  # also when the call is cancelled
        try:
            if at_once is None:
                command = self._addition(position, payload, create=create)
                reply = await writer.call(command, self._reply_timeout_s)
            else:
                reply = await self._reply_to(writer, *at_once)
        except ConnectionLost as error:
            self._in_doubt = doubted or error.sent
            raise
        except RespError as error:
            self._in_doubt = doubted
            if _NOT_GROWING not in str(error):
                raise
            if not await self._landed(writer, position, payload):
                raise Fenced(f"{self}: {position} is behind a newer owner") from error
            return
        if reply is None:
            raise JournalLost(f"{self}: the stream has vanished")

    def _addition(self, position: Position, payload: bytes, *, create: bool = False) -> Command:
        guard = () if create else (b"NOMKSTREAM",)
        return (b"XADD", self._key, *guard, _id(position), _FIELD, payload)

    async def _reply_to(self, writer: RespConnection, told: Reply) -> Reply:
        """The reply to an entry that `append_at_once` has sent; what it was told is that, or LATE."""
        reply = await writer.reply(self._reply_timeout_s) if told is LATE else told
        if isinstance(reply, RespError):
            raise reply
        return reply

    async def _connect_writer(self) -> RespConnection:
        """Connect anew, and make sure that the stream still reaches what is known of it.

        A server that lost the end of the stream (a failover to a replica that lagged) breaks the
        connection first, so this is the moment to look.
        """
        self._check_open()
        self._writer = writer = await RespConnection.open(self._endpoint, self._reply_timeout_s)
        self._check_open()  # it may have been closed meanwhile
        if self._known > GENESIS:
            command = (b"XINFO", b"STREAM", self._key)
            last = None
            try:
                last = _last_of(await writer.call(command, self._reply_timeout_s))
            except RespError as error:
                if not _no_such_key(error):
                    raise
            if last is None or last < self._known:
                raise self._went_back(self._known, last)
        return writer

    def _check_open(self) -> None:
        if self._closed:
            if self._writer is not None:
                self._writer.abort()
            raise ConnectionLost("the journal is closed", sent=False)

    async def _landed(self, writer: RespConnection, position: Position, payload: bytes) -> bool:
        """Look under the id: True if this very entry is there, Fenced if another is."""
        command = (b"XRANGE", self._key, _id(position), _id(position))
        entries = _entries(await writer.call(command, self._reply_timeout_s))
        if entries and entries[0][1] != payload:
            raise Fenced(f"{self}: another owner wrote {position}")
        return bool(entries)

    def _gave_up(self, position: Position, failure: Exception) -> Exception:
        if self._in_doubt:
            return AppendInDoubt(f"{self}: {position} may have been written: {failure}")
        return JournalUnavailable(f"{self}: {position} was not written: {failure}")

    def _went_back(self, reached: Position, last: Position | None) -> JournalLost:
        return JournalLost(f"{self}: reached {reached} before, and now ends at {last}")

    # ----------------------------------------------------------------------------- the readers --

    async def first(self) -> Position | None:
        """Tell the oldest position still kept."""
        entries = await self._range(self._queries, b"-", b"+", 1)
        return entries[0][0] if entries else None

    async def last(self) -> Position | None:
        """Tell the newest position ever written, also when it has been trimmed."""
        return await self._last(self._queries)

    async def read(
        self, after: Position | None, upto: Position | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Yield the blocks with after < position ≤ upto, in round trips of about 4 MB."""
        async with self._reader() as reader:
            cursor, count = after, READ_ENTRIES_FIRST
            while upto is None or cursor is None or cursor < upto:
                entries = await self._next(reader, cursor, upto, count)
                if not entries:
                    return
                for entry in entries:
                    yield entry
                cursor, count = entries[-1][0], _next_count(entries)

    async def tail(self, after: Position) -> AsyncGenerator[list[Entry], None]:
        """Yield what follows `after` as it is written, in lists, forever."""
        async with self._reader() as reader:
            cursor, count = after, READ_ENTRIES_FIRST
            while True:
                entries = await self._blocking_read(reader, cursor, count)
                if entries:
                    await self._check_continues(reader, cursor, entries[0][0])
                else:  # quiet for a while: is the stream still there, or was it cut?
                    entries = await self._next(reader, cursor, None, count)
                if entries:
                    yield entries
                    cursor, count = entries[-1][0], _next_count(entries)

    async def _next(
        self, reader: RespClient, cursor: Position | None, upto: Position | None, count: int
    ) -> list[Entry]:
        """Read what follows the cursor; an empty list only if truly nothing does, as yet."""
        start = b"-" if cursor is None else b"(" + _id(cursor)
        entries = await self._range(reader, start, b"+" if upto is None else _id(upto), count)
        if cursor is None:
            return entries
        if not entries:
            last = await self._last(reader)
            if last == cursor or (last is None and cursor == GENESIS):
                return []
            if last is None or last < cursor:
                raise self._went_back(cursor, last)
            following = await self._range(reader, start, b"+", 1)
            if not following:
                raise Compacted(cursor, None)
            await self._check_continues(reader, cursor, following[0][0])
            return following if upto is None else []
        await self._check_continues(reader, cursor, entries[0][0])
        return entries

    async def _check_continues(self, reader: RespClient, cursor: Position, first: Position) -> None:
        """Make sure that nothing was trimmed between the cursor and the entry read after it.

        Within an epoch the ids tell. An opening may follow any block of the epoch before, so there
        the block at the cursor must still be in the stream, from whose front alone is trimmed.
        """
        if first in {cursor.next(), GENESIS.opening()}:
            return
        if await self._range(reader, _id(cursor), _id(cursor), 1):
            return
        oldest = await self._range(reader, b"-", b"+", 1)
        if oldest and oldest[0][0] <= cursor:
            raise JournalLost(f"{self}: {cursor} was read before, and is missing now")
        raise Compacted(cursor, oldest[0][0] if oldest else None)

    async def _range(self, client: RespClient, start: bytes, end: bytes, n: int) -> list[Entry]:
        limit = (b"COUNT", b"%d" % n)
        return _entries(await self._query(client, b"XRANGE", self._key, start, end, *limit))

    async def _blocking_read(self, client: RespClient, cursor: Position, n: int) -> list[Entry]:
        block = (b"COUNT", b"%d" % n, b"BLOCK", b"%d" % (self._tail_block_s * 1000))
        command = (b"XREAD", *block, b"STREAMS", self._key, _id(cursor))
        reply = await self._query(client, *command, wait_s=self._tail_block_s)
        return _entries(reply[0][1]) if reply else []

    async def _last(self, client: RespClient) -> Position | None:
        try:
            return _last_of(await self._query(client, b"XINFO", b"STREAM", self._key))
        except JournalUnavailable as error:
            if isinstance(error.__cause__, RespError) and _no_such_key(error.__cause__):
                return None
            raise

    async def _query(self, client: RespClient, *command: bytes, wait_s: float = 0.0) -> Reply:
        """Run a command that may be repeated, and say in the port's words how it failed."""
        try:
            return await client.call(*command, wait_s=wait_s)
        except ServerUnavailable as error:
            raise JournalUnavailable(f"{self}: {error}") from error
        except RespError as error:
            if error.code == "WRONGTYPE":
                raise JournalLost(f"{self}: the key holds no stream") from error
            if error.code == FENCED:
                raise Fenced(f"{self}: {error}") from error
            raise JournalUnavailable(f"{self}: {error}") from error

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[RespClient]:
        """Lend a connection of its own to a read, which may be long or block."""
        client = self._client()
        if self._closed:
            raise JournalUnavailable(f"{self}: the journal is closed")
        self._readers.add(client)
        try:
            yield client
        finally:
            self._readers.discard(client)
            await client.close()

    def _client(self) -> RespClient:
        return RespClient(
            self._endpoint,
            retry_for_s=self._settle_timeout_s,
            reply_timeout_s=self._reply_timeout_s,
        )

    def __str__(self) -> str:
        return f"journal {self._key.decode()} at {self._endpoint}"


def _id(position: Position) -> bytes:
    return b"%d-%d" % (position.epoch, position.seq)


def _entries(reply: Reply) -> list[Entry]:
    """Read the reply of XRANGE: [[id, [field, payload]], ...]."""
    return [(Position.parse(entry[0].decode()), entry[1][1]) for entry in reply]


def _last_of(info: Reply) -> Position:
    """Read the newest position out of the reply of XINFO STREAM: [name, value, ...]."""
    last: bytes = info[info.index(b"last-generated-id") + 1]
    return Position.parse(last.decode())


def _no_such_key(error: RespError) -> bool:
    return "no such key" in str(error)


def _next_count(entries: list[Entry]) -> int:
    """Choose how many entries to ask for, so that their payloads come to about READ_BYTES."""
    mean_bytes = sum(len(payload) for _, payload in entries) // len(entries)
    return max(1, min(READ_ENTRIES_MOST, READ_BYTES // (mean_bytes + 1)))
