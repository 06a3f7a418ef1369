"""The peer of `bench.unary`: the least that a gRPC server in Python can be.

An actor of its own, as a shard is one: the same process set-up, event loop and server options. Its
handler gives the same bytes back at once, each time, without looking at the request.
"""

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from actors.cluster import Host
from adapters.rpc import server
from bench.load import RESERVE


@dataclass(frozen=True, slots=True)
class EchoConfig:
    """`reply`: what every call is answered; as long as a real reply."""

    port: int
    reply: bytes


class Echo:
    """A service of one method, for `actors.cluster`."""

    def __init__(self, config: EchoConfig) -> None:
        self._config = config
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Open the port."""
        answer = self._config.reply

        async def reserve(_request: bytes, _context: Any) -> bytes:
            return answer

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

    async def call(self, method: str, *args: Any) -> Any:
        """Answer no internal calls."""
        raise NotImplementedError(method)


def make_echo(config: EchoConfig, _host: Host) -> Echo:
    """Build the service, in the actor's process."""
    return Echo(config)
