"""A service of nothing for the tests of `actors.cluster`: an echo by gRPC, and faults to order.

It stands apart from the tests because actors import it.
"""

import asyncio
import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from actors.cluster import Host

WHO = "/toy.Toy/Who"


@dataclass(frozen=True)
class ToyConfig:
    port: int = 0
    unless: str = ""  # `start` fails while this file is not there
    dies_in: str = ""  # every start adds a line to this file and ends the process
    stopped: str = ""  # `stop` makes this file
    secret: str = "hunter2"


def note(path: str) -> None:
    with Path(path).open("a") as lines:
        lines.write("once\n")


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("held together by a generator")
        self.generator = (n for n in ())


class Toy(grpc.GenericRpcHandler):
    def __init__(self, config: ToyConfig, host: Host) -> None:
        self.config = config
        self.host = host
        self.server: grpc.aio.Server | None = None

    async def start(self) -> None:
        if self.config.dies_in:
            note(self.config.dies_in)
            self.host.exit("the test wants it")
        if self.config.unless and not os.path.exists(self.config.unless):  # noqa: ASYNC240, PTH110
            raise ConnectionRefusedError(f"no {self.config.unless}")
        if self.config.port:
            self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            self.server.add_generic_rpc_handlers((self,))
            self.server.add_insecure_port(f"127.0.0.1:{self.config.port}")
            await self.server.start()

    async def stop(self) -> None:
        if self.server:
            await self.server.stop(0.1)
        if self.config.stopped:
            note(self.config.stopped)

    def service(self, details: Any) -> Any:
        async def who(request: bytes, _context: Any) -> bytes:
            loop = type(asyncio.get_running_loop()).__module__
            return f"{os.getpid()} {self.host.restarted} {loop}".encode()

        return grpc.unary_unary_rpc_method_handler(who) if details.method == WHO else None

    async def call(self, method: str, *args: Any) -> Any:
        return await getattr(self, method)(*args)

    async def echo(self, value: Any) -> Any:
        return value

    async def length(self, value: bytes) -> int:
        return len(value)

    async def ask(self, peer: str, method: str, *args: Any) -> Any:
        return await self.host.actor(peer).call(method, *args)

    async def note_and_sleep(self, path: str, sleep_s: float) -> None:
        note(path)
        await asyncio.sleep(sleep_s)

    async def sleep(self, sleep_s: float) -> None:
        await asyncio.sleep(sleep_s)

    async def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    async def tracked(self) -> tuple[int, int]:
        """How many objects a full collection goes through, and how many it passes by."""
        return len(gc.get_objects()), gc.get_freeze_count()

    async def niceness(self) -> int:
        return os.nice(0)

    async def exit(self) -> None:
        self.host.exit("the test wants it")

    async def fail(self) -> None:
        raise KeyError("a bug")

    async def fail_badly(self) -> None:
        raise UnpicklableError


def make_toy(config: ToyConfig, host: Host) -> Toy:
    if config.port < 0:
        raise ValueError("ports are positive")
    return Toy(config, host)
