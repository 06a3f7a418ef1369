"""A minimal client of the Redis protocol (RESP2), for paths where each microsecond counts.

One connection carries one command (or one pipeline) at a time, and nothing is retried behind the
caller's back: who appends must know whether its bytes have left. `RespClient` adds reconnects, for
commands that may safely run twice. This module knows nothing of journals or snapshots.
"""

import asyncio
import os
import select
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Self, cast
from urllib.parse import parse_qsl, unquote, urlsplit

Command = Sequence[bytes]
Reply = Any  # bytes, int, None, RespError or a list of these

DEFAULT_PORT: Final = 6379
MAX_PORT: Final = 65_535

# What is wrong in a URL is not repeated: a password with one of these ends in any part of it.
_QUOTE: Final = "in a password, write / # ? @ as %2F %23 %3F %40"
_INLINE_LIMIT: Final = 4096  # arguments up to this many bytes are copied together into one buffer
_AT_ONCE_BYTES: Final = 4096  # of a reply that is read without the event loop
_RETRY_FIRST_S: Final = 0.01  # pause before the first retry; doubles with each, up to
_RETRY_MOST_S: Final = 0.25

# The server said no for now, before it did anything: starting up, failing over, or in a script.
PASSING_ERRORS: Final = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "NOREPLICAS"}
)


class Unanswered(Enum):
    """What `RespConnection.wait_at_once` says instead of a reply."""

    LATE = "late"


LATE: Final = Unanswered.LATE


class RespError(Exception):
    """An error reply: the server did not carry the command out."""

    @property
    def code(self) -> str:
        """The reply's first word, such as `OOM` or `WRONGTYPE`."""
        return str(self).partition(" ")[0]


class ConnectionLost(Exception):  # noqa: N818 - what happened to the connection, not a bug
    """The connection could not be made, broke, or stayed silent for too long.

    `sent` tells whether the command may have reached the server.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class ServerUnavailable(Exception):  # noqa: N818
    """A `RespClient` gave up: its time for retries is over."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is and how to log in, as a Redis URL says it.

    `redis://[[user]:password@]host[:port][/db]`, `rediss://` for TLS (with `?ssl_ca_certs=FILE`,
    `ssl_certfile`, `ssl_keyfile`, and `ssl_cert_reqs=none` to trust anyone), and
    `unix://[[user]:password@]/path/of/socket[?db=N]`.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    path: str = ""  # of a unix socket; then host and port mean nothing
    username: str = ""
    password: str = ""
    db: int = 0
    tls: ssl.SSLContext | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a Redis URL. ValueError names what it does not understand, never the password."""
        parts = urlsplit(url)
        scheme = parts.scheme.replace("valkey", "redis", 1)
        if scheme not in {"redis", "rediss", "unix"}:
            raise ValueError(f"a Redis URL begins redis://, rediss:// or unix://, not {scheme}://")
        try:
            options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        except ValueError:
            raise ValueError(f"what follows ? in a Redis URL is name=value; {_QUOTE}") from None
        path = unquote(parts.path)
        db = options.pop("db", "" if scheme == "unix" else path.strip("/")) or "0"
        if not db.isdecimal():
            raise ValueError(f"a Redis URL's database is a number; {_QUOTE}")
        try:
            port = parts.port or DEFAULT_PORT
        except ValueError:
            raise ValueError(f"a Redis URL's port is 1 to {MAX_PORT}; {_QUOTE}") from None
        tls = _tls_context(options) if scheme == "rediss" else None
        if options:
            raise ValueError(f"unknown options in a {scheme}:// URL: {', '.join(sorted(options))}")
        if scheme == "unix" and not path:
            raise ValueError("a unix:// URL needs the path of a socket")
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port,
            path=path if scheme == "unix" else "",
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            db=int(db),
            tls=tls,
        )

    def __str__(self) -> str:
        """Name the server for messages, without its password."""
        return self.path or f"{self.host}:{self.port}"


def _tls_context(options: dict[str, str]) -> ssl.SSLContext:
    """Take the `ssl_*` options of a rediss:// URL out of `options` and make what they ask for."""
    context = ssl.create_default_context(cafile=options.pop("ssl_ca_certs", None))
    demand = options.pop("ssl_cert_reqs", "required")
    if demand == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif demand != "required":
        raise ValueError(f"ssl_cert_reqs is required or none, not {demand!r}")
    certificate = options.pop("ssl_certfile", None)
    key = options.pop("ssl_keyfile", None)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def encode(command: Command) -> list[bytes]:
    """Write a command down as buffers; a large argument stays the caller's own, uncopied."""
    small = [b"*%d\r\n" % len(command)]
    buffers = []
    for argument in command:
        small.append(b"$%d\r\n" % len(argument))
        if len(argument) <= _INLINE_LIMIT:
            small.append(argument)
        else:
            buffers += [b"".join(small), argument]
            small = []
        small.append(b"\r\n")
    buffers.append(b"".join(small))
    return buffers


class ReplyParser:
    """Cuts a stream of bytes into replies, going on where it stopped: each byte is seen once."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # start of what is not yet parsed
        self._bulk = -1  # bytes of the bulk string that is being awaited, -1 for none
        self._open: list[tuple[list[Reply], int]] = []  # arrays begun, with their full lengths

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Take bytes in and yield each reply that is now whole.

        Raises ValueError when the other side does not speak RESP2.
        """
        self._buffer += data
        while True:
            whole, value = self._element()
            if not whole:
                break
            while self._open:
                array, length = self._open[-1]
                array.append(value)
                if len(array) < length:
                    break
                value = array
                self._open.pop()
            else:
                yield value
        del self._buffer[: self._at]
        self._at = 0

    def _element(self) -> tuple[bool, Reply]:
        """Parse up to the next value that is no array's header; (False, None) when bytes lack."""
        while self._bulk < 0:
            end = self._buffer.find(b"\r\n", self._at)
            if end < 0:
                return False, None
            line = bytes(self._buffer[self._at : end])
            self._at = end + 2
            if line.startswith(b"$"):
                self._bulk = int(line[1:])
                if self._bulk < 0:
                    return True, None
            elif line.startswith(b"*"):
                length = int(line[1:])
                if length <= 0:
                    return True, None if length else []
                self._open.append(([], length))
            else:
                return True, _simple(line)
        end = self._at + self._bulk
        if len(self._buffer) < end + 2:
            return False, None
        value = bytes(memoryview(self._buffer)[self._at : end])
        self._at = end + 2
        self._bulk = -1
        return True, value


def _simple(line: bytes) -> Reply:
    kind, rest = line[:1], line[1:]
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    if kind == b"-":
        return RespError(rest.decode(errors="replace"))
    raise ValueError(f"not a RESP2 reply: {line[:40]!r}")


class RespConnection(asyncio.Protocol):
    """One connection. Once lost it stays lost; its owner opens another."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._replies: list[Reply] = []
        self._awaited = 0  # replies of the commands that are out
        self._waiter: asyncio.Future[None] | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._fd = -1  # for calls that do not wait for the event loop; -1: not possible here
        self._readable = select.poll()

    @classmethod
    async def open(cls, endpoint: Endpoint, timeout_s: float) -> Self:
        """Connect, log in and choose the database.

        Raises ConnectionLost, and RespError when the server turns the login down.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if endpoint.path:
                    transport, self = await loop.create_unix_connection(cls, endpoint.path)
                else:
                    transport, self = await loop.create_connection(
                        cls, endpoint.host, endpoint.port, ssl=endpoint.tls
                    )
        except (OSError, TimeoutError) as error:
            reason = f"cannot connect: {str(error) or 'timed out'}"
            raise ConnectionLost(reason, sent=False) from error
        connected = transport.get_extra_info("socket")
        if connected is not None and not endpoint.path:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if connected is not None and endpoint.tls is None:
            self._fd = connected.fileno()
            self._readable.register(self._fd, select.POLLIN)
        try:
            for command in _login(endpoint):
                await self.call(command, timeout_s)
        except BaseException:
            self.abort()
            raise
        return self

    @property
    def closed(self) -> bool:
        """Whether the connection is gone, or going."""
        return self._transport is None or self._transport.is_closing()

    async def call(self, command: Command, timeout_s: float) -> Reply:
        """Send a command and wait for its reply. Raises RespError and ConnectionLost."""
        replies = await self.call_many((command,), timeout_s)
        if isinstance(replies[0], RespError):
            raise replies[0]
        return replies[0]

    async def call_many(self, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """Send commands together and return their replies; error replies are among them.

        Raises ConnectionLost. When it is cancelled or times out the connection is dropped, so a
        late reply can never be taken for the next command's.
        """
        if self._waiter is not None:
            raise RuntimeError("a connection carries one command at a time")
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost("the connection is closed", sent=False)
        self._waiter = asyncio.get_running_loop().create_future()
        self._awaited = len(commands)
        self._transport.writelines([buffer for command in commands for buffer in encode(command)])
        return await self._wait(timeout_s)

    async def _wait(self, timeout_s: float) -> list[Reply]:
        """The replies to what was sent."""
        waiter, loop = self._waiter, asyncio.get_running_loop()
        assert waiter is not None
        timer = loop.call_later(timeout_s, self._lose, f"no reply within {timeout_s:g} s")
        try:
            await waiter
        except BaseException:
            self.abort()
            raise
        finally:
            timer.cancel()
            self._waiter = None
        replies, self._replies = self._replies, []
        return replies

    def send_at_once(self, command: bytes) -> bool:
        """Send an encoded command past the event loop; `wait_at_once` must follow, and does not yield.

        For the one who has nothing else to do: it spares two rounds of the loop. False when the
        connection cannot do this, or not now; nothing has happened then.
        """
        transport = self._transport
        if self._fd < 0 or transport is None or transport.is_closing() or self._waiter is not None:
            return False
        if transport.get_write_buffer_size():
            return False
        try:
            sent = os.write(self._fd, command)
        except BlockingIOError:
            return False
        except OSError:
            sent = len(command)  # whoever reads will learn why
        if sent < len(command):
            transport.write(command[sent:])
        self._awaited = 1
        return True

    def wait_at_once(self, patience_ms: int) -> Reply:
        """Wait for the reply to what was sent at once, while the event loop stands still.

        Error replies are returned. LATE when there is no whole reply after `patience_ms`, or the
        connection broke: then `reply` must be awaited.
        """
        failed = ""
        try:
            if self._readable.poll(patience_ms):
                self._replies += self._parser.feed(os.read(self._fd, _AT_ONCE_BYTES))
        except (OSError, ValueError) as error:
            failed = str(error) or type(error).__name__
        if len(self._replies) == 1:
            return self._replies.pop()
        self._waiter = asyncio.get_running_loop().create_future()
        if failed or self._replies:
            self._lose(failed or "the server sent replies that nobody had asked for")
        return LATE

    async def reply(self, timeout_s: float) -> Reply:
        """The reply that `wait_at_once` was LATE with. Raises ConnectionLost."""
        (reply,) = await self._wait(timeout_s)
        return reply

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Drop the connection and wait until its socket is closed."""
        self.abort()
        await self._closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Collect replies, and wake the caller at the last one (called by asyncio)."""
        try:
            self._replies.extend(self._parser.feed(data))
        except ValueError as error:
            self._lose(str(error))
            return
        waiter = self._waiter
        if waiter is None or len(self._replies) > self._awaited:
            self._lose("the server sent a reply that nobody had asked for")
        elif len(self._replies) == self._awaited and not waiter.done():
            waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the caller, and who waits for the close (called by asyncio)."""
        self._lose(f"the connection broke: {exc or 'closed by the server'}")
        self._transport = None
        self._fd = -1
        if not self._closed.done():
            self._closed.set_result(None)

    def _lose(self, reason: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionLost(reason, sent=True))
        self.abort()


def _login(endpoint: Endpoint) -> list[Command]:
    commands: list[Command] = []
    if endpoint.password:
        user = (endpoint.username.encode(),) if endpoint.username else ()
        commands.append((b"AUTH", *user, endpoint.password.encode()))
    if endpoint.db:
        commands.append((b"SELECT", b"%d" % endpoint.db))
    return commands


class Retries:
    """Pauses between attempts, growing, within a limited time."""

    def __init__(self, for_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends = self._loop.time() + for_s
        self._pause_s = _RETRY_FIRST_S

    async def pause(self) -> bool:
        """Wait before another attempt; False, at once, when the time is used up."""
        left_s = self._ends - self._loop.time()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(self._pause_s, left_s))
        self._pause_s = min(2 * self._pause_s, _RETRY_MOST_S)
        return True


class RespClient:
    """A connection that comes back. Only for commands that may run twice: they are repeated."""

    def __init__(self, endpoint: Endpoint, *, retry_for_s: float, reply_timeout_s: float) -> None:
        self._endpoint = endpoint
        self._retry_for_s = retry_for_s
        self._reply_timeout_s = reply_timeout_s
        self._connection: RespConnection | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    async def call(self, *command: bytes, wait_s: float = 0.0) -> Reply:
        """Run one command; `wait_s` is how long it may block in the server.

        Raises RespError, and ServerUnavailable when the retries come to an end.
        """
        return (await self.call_many((command,), wait_s=wait_s))[0]

    async def call_many(self, commands: Sequence[Command], *, wait_s: float = 0.0) -> list[Reply]:
        """Run commands together. Raises the first error reply, and ServerUnavailable."""
        timeout_s = self._reply_timeout_s + wait_s
        async with self._turn:
            retries = Retries(self._retry_for_s)
            while True:
                try:
                    return await self._attempt(commands, timeout_s)
                except ConnectionLost as error:
                    failure: Exception = error
                except RespError as error:
                    if error.code not in PASSING_ERRORS:
                        raise
                    failure = error
                    await self._drop()  # the name may lead to another server by now
                if self._closed or not await retries.pause():
                    raise ServerUnavailable(f"{self._endpoint}: {failure}") from failure

    async def close(self) -> None:
        """Drop the connection; a call that is under way raises ServerUnavailable."""
        self._closed = True
        await self._drop()

    async def _attempt(self, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        self._check_open()
        if self._connection is None or self._connection.closed:
            self._connection = await RespConnection.open(self._endpoint, self._reply_timeout_s)
            self._check_open()  # it may have been closed meanwhile
        replies = await self._connection.call_many(commands, timeout_s)
        for reply in replies:
            if isinstance(reply, RespError):
                raise reply
        return replies

    def _check_open(self) -> None:
        if self._closed:
            if self._connection is not None:
                self._connection.abort()
            raise ConnectionLost("the client is closed", sent=False)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
