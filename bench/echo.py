"""The peers of `bench.unary`: the least that a gRPC server in Python can be.

An actor of its own, as a shard is one: the same process set-up, event loop and server options. Its
handler gives the same bytes back at once, each time, without looking at the request. A durable one
appends as many bytes as a block has to a stream of the same store before: the least that a durable
server can be, for one caller at a time.
"""

from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from actors.cluster import Host
from actors.ports import GENESIS
from adapters.journal import RedisJournal
from adapters.rpc import server
from bench.load import RESERVE

STREAM: Final = "onhand-bench-echo"
BLOCK: Final = bytes(256)  # about what the block of one reserve, and of one that expires, has


@dataclass(frozen=True, slots=True)
class EchoConfig:
    """`reply`: what every call is answered; as long as a real reply.

    `store`: the URL of the store that each call appends to; none for an empty echo.
    """

    port: int
    reply: bytes
    store: str = ""


class Echo:
    """A service of one method, for `actors.cluster`."""

    def __init__(self, config: EchoConfig) -> None:
        self._config = config
        self._server: grpc.aio.Server | None = None
        self._journal: RedisJournal | None = None
        self._at = GENESIS

    async def start(self) -> None:
        """Open the port."""
        answer = self._config.reply

        async def reserve(_request: bytes, _context: Any) -> bytes:
            return answer

        async def reserve_durably(_request: bytes, _context: Any) -> bytes:
            await self._append()
            return answer

        if self._config.store:
            self._journal = RedisJournal(self._config.store, STREAM)
            self._at = await self._journal.take_over(lambda _: BLOCK)
            reserve = reserve_durably
        service, method = RESERVE.strip("/").split("/")
        handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(reserve)}
        self._server = grpc.aio.server(options=server.OPTIONS)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        self._server.add_insecure_port(f"127.0.0.1:{self._config.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            await self._server.stop(0.1)
        if self._journal is not None:
            await self._journal.close()

    async def _append(self) -> None:
        """One durable append, in the quickest way that there is for one caller."""
        journal = self._journal
        assert journal is not None
        self._at = self._at.next()
        if not journal.append_at_once(self._at, BLOCK, lambda: None):
            await journal.append(self._at, BLOCK)

    async def call(self, method: str, *args: Any) -> Any:
        """Answer no internal calls."""
        raise NotImplementedError(method)


def make_echo(config: EchoConfig, _host: Host) -> Echo:
    """Build the service, in the actor's process."""
    return Echo(config)
