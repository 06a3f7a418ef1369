"""A real Valkey for the integration tests, and a proxy that loses what a test wants lost."""

import asyncio
import contextlib
import itertools
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from adapters.resp import Endpoint, RespClient
from adapters.valkey import EmbeddedValkey

_numbers = itertools.count()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="onhand-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedValkey]:
    """One server for all tests that leave it as they found it; their keys differ."""
    with (
        tempfile.TemporaryDirectory(prefix="onhand-test-") as folder,
        EmbeddedValkey(Path(folder), die_with_parent=True) as started,
    ):
        yield started


@pytest.fixture
def url(server: EmbeddedValkey) -> str:
    return server.url


@pytest.fixture
def key() -> str:
    return f"onhand:test:{next(_numbers)}"


@pytest.fixture
async def admin(url: str) -> AsyncIterator[RespClient]:
    """A plain client, to look behind the scenes and to break things."""
    client = RespClient(Endpoint.parse(url), retry_for_s=2.0, reply_timeout_s=2.0)
    yield client
    await client.close()


class Proxy:
    """Stands between a client and a server and asks `fate` what to do with each request.

    The fates: "forward" it; "lose_request" and drop the connection; "lose_reply": let the server
    carry it out, and drop the connection; "swallow" it and stay silent; "hold" it back, and forward
    it when `release` is called, even if the client has gone away by then; "release" what is held,
    and forward this one after it.
    """

    def __init__(self, target: str) -> None:
        self._target = Endpoint.parse(target)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._released = asyncio.Event()
        self.fate: Callable[[bytes], str] = lambda _: "forward"
        self.landed = asyncio.Event()  # set when a request that was held has been carried out

    def once(self, fate: str, word: bytes = b"XADD") -> None:
        """Let one fate befall the next request that holds `word`, and forward all others."""
        fates = iter([fate])
        self.fate = lambda request: next(fates, "forward") if word in request else "forward"

    def release(self) -> None:
        self._released.set()

    async def listen(self, path: Path | None = None, tls: ssl.SSLContext | None = None) -> str:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path)
            return f"unix://{path}"
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = self._server.sockets[0].getsockname()[1]
        return f"{'rediss' if tls else 'redis'}://127.0.0.1:{port}/0"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        inner_reader, inner_writer = await asyncio.open_connection(
            self._target.host, self._target.port
        )
        replies = asyncio.create_task(self._pump(inner_reader, writer))
        try:
            while request := await reader.read(1 << 20):
                fate = self.fate(request)
                if fate == "lose_request":
                    break
                if fate == "swallow":
                    continue
                if fate == "hold":
                    await self._released.wait()
                if fate == "release":
                    self.release()
                    await self.landed.wait()
                if fate in {"hold", "lose_reply"}:
                    replies.cancel()
                    await asyncio.gather(replies, return_exceptions=True)
                inner_writer.write(request)
                if fate in {"hold", "lose_reply"}:
                    await inner_reader.read(1 << 20)
                    self.landed.set()
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            replies.cancel()
            await asyncio.gather(replies, return_exceptions=True)
            for end in (writer, inner_writer):
                end.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while reply := await reader.read(1 << 20):
                writer.write(reply)
            writer.close()


ProxyMaker = Callable[..., Awaitable[tuple[Proxy, str]]]


@pytest.fixture
async def proxied(url: str) -> AsyncIterator[ProxyMaker]:
    """Make proxies to the test's server: `proxy, its_url = await proxied()`."""
    made: list[Proxy] = []

    async def make(**where: object) -> tuple[Proxy, str]:
        proxy = Proxy(url)
        made.append(proxy)
        return proxy, await proxy.listen(**where)  # type: ignore[arg-type]

    yield make
    for proxy in made:
        await proxy.close()
