"""One real stack for all end-to-end tests that do not need their own: store, Ray, shard, gateway.

A process is connected to one Ray at a time, so there is one stack at a time, and it is down again
before the tests of the next folder start a Ray of theirs. Each test trades in SKUs and at locations
that it adds for itself.
"""

import asyncio
import itertools
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from google.rpc import error_details_pb2
from grpc.aio import AioRpcError
from grpc_status import rpc_status

from adapters.client.peers import Peer
from adapters.settings import Settings
from adapters.stack import Stack
from onhand.v1 import availability_pb2, catalog_pb2, common_pb2, stock_pb2

_numbers = itertools.count(1)


class Stacks:
    """The stack that is up: one with so many shards as the test asks for."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._up: Stack | None = None

    def of(self, shards: int) -> Stack:
        if self._up is None or self._up.settings.shards != shards:
            self.close()
            folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="onhand-e2e-"))
            # A port that is known in advance, so that a gateway that died comes back to it.
            settings = Settings.load(data_dir=Path(folder), port=free_port(), shards=shards)
            self._up = self._open.enter_context(Stack(settings))
        return self._up

    def close(self) -> None:
        self._up = None
        self._open.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="package")
def stacks() -> Iterator[Stacks]:
    stacks = Stacks()
    yield stacks
    stacks.close()


@pytest.fixture
def stack(stacks: Stacks) -> Stack:
    """The shared stack, of one shard."""
    return stacks.of(shards=1)


@pytest.fixture
async def shop(stack: Stack) -> AsyncIterator["Shop"]:
    async with Shop(stack) as shop:
        yield shop


@dataclass(frozen=True)
class Goods:
    """What a test trades in: ids of the catalogue, and the codes of the same."""

    skus: list[int]
    locations: list[int]
    sku_codes: list[str]
    location_codes: list[str]

    @property
    def sku(self) -> int:
        return self.skus[0]

    @property
    def at(self) -> int:
        return self.locations[0]


class Shop:
    """Stubs of the gateway and of the shards, and goods to trade in."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    async def __aenter__(self) -> Self:
        servers = await asyncio.to_thread(self.stack.servers)
        self.gateway = Peer(servers["gateway"].address)
        self.shards = [
            Peer(servers[f"shard-{number}"].address) for number in range(self.stack.settings.shards)
        ]
        self.shard = self.shards[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in (self.gateway, *self.shards):
            await peer.close()

    def peer(self, path: str) -> Peer:
        return {"gateway": self.gateway, "shard": self.shard}[path]

    async def goods(
        self, skus: int = 1, locations: int = 1, *, stock: int = 0, currency: str = "EUR"
    ) -> Goods:
        """Add SKUs and locations that no other test knows, with so much of each at each."""
        number = next(_numbers)
        sku_codes = [f"SKU-{number}-{i}" for i in range(skus)]
        location_codes = [f"LOC-{number}-{i}" for i in range(locations)]
        catalog = self.gateway.catalog
        sku_ids = await catalog.AddSkus(
            catalog_pb2.AddSkusRequest(skus=[catalog_pb2.SkuEntry(code=code) for code in sku_codes])
        )
        location_ids = await catalog.AddLocations(
            catalog_pb2.AddLocationsRequest(
                locations=[
                    catalog_pb2.LocationEntry(code=code, currency=currency)
                    for code in location_codes
                ]
            )
        )
        goods = Goods(list(sku_ids.ids), list(location_ids.ids), sku_codes, location_codes)
        if stock:
            cells = [(sku, at, stock) for at in goods.locations for sku in goods.skus]
            for first in range(0, len(cells), 512):
                received = await self.gateway.stock.Receive(of(cells[first : first + 512]))
                assert received.status == common_pb2.STATUS_OK, received
            # Snapshots for subscribers come from the gateway's mirror, which may be behind.
            for number in range(len(self.shards)):
                await asyncio.to_thread(self.stack.wait_for_mirror, number)
        return goods

    async def cell(
        self, sku: int, location: int, peer: Peer | None = None
    ) -> availability_pb2.Cell:
        """One cell, as its shard has it."""
        name = availability_pb2.CellName(
            sku=common_pb2.Sku(id=sku), location=common_pb2.Location(id=location)
        )
        request = availability_pb2.GetCellsRequest(cells=[name])
        owner = self.shards[(location - 1) % len(self.shards)]
        reply = await (peer or owner).availability.GetCells(request)
        return reply.cells[0]

    async def counters(self, sku: int, location: int) -> dict[str, int]:
        """The counters of a cell that are not zero."""
        cell = await self.cell(sku, location)
        names = ("on_hand", "reserved", "committed", "damaged", "quality_control", "safety_stock")
        return {name: value for name in names if (value := getattr(cell, name))}

    async def status(self, number: int = 0) -> dict[str, Any]:
        return await asyncio.to_thread(self.stack.status, number)

    async def audit(self) -> None:
        report = await asyncio.to_thread(self.stack.audit)
        assert report.conserved, report.problems


# --- requests and what is wrong with them ---------------------------------------------------------


def op() -> bytes:
    """A fresh op_id."""
    return os.urandom(16)


def batch_id() -> bytes:
    """A fresh op_id of a Submit."""
    return os.urandom(14) + b"\0\0"


def line(sku: int | str, location: int | str, quantity: int) -> common_pb2.Line:
    return common_pb2.Line(
        sku=common_pb2.Sku(code=sku) if isinstance(sku, str) else common_pb2.Sku(id=sku),
        location=common_pb2.Location(code=location)
        if isinstance(location, str)
        else common_pb2.Location(id=location),
        quantity=quantity,
    )


def of(
    cells: Sequence[tuple[int | str, int | str, int]], op_id: bytes | None = None
) -> stock_pb2.LinesRequest:
    return stock_pb2.LinesRequest(op_id=op_id or op(), lines=[line(*cell) for cell in cells])


def reserve(
    cells: Sequence[tuple[int | str, int | str, int]], op_id: bytes | None = None, ttl_ms: int = 0
) -> stock_pb2.ReserveRequest:
    lines = [line(*cell) for cell in cells]
    return stock_pb2.ReserveRequest(op_id=op_id or op(), lines=lines, ttl_ms=ttl_ms)


def on_hold(
    hold_id: bytes,
    cells: Sequence[tuple[int | str, int | str, int]] = (),
    op_id: bytes | None = None,
    **more: Any,
) -> stock_pb2.HoldRequest:
    lines = [line(*cell) for cell in cells]
    return stock_pb2.HoldRequest(op_id=op_id or op(), hold_id=hold_id, lines=lines, **more)


def violation(error: AioRpcError) -> tuple[str, str]:
    """The field that a google.rpc.BadRequest names, and what it says of it."""
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()}: {error.details()} has no google.rpc.Status"
    (detail,) = status.details
    bad = error_details_pb2.BadRequest()
    assert detail.Unpack(bad), detail
    (found,) = bad.field_violations
    return found.field, found.description


def eventually(look: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait until something is true; what it raises until then does not count."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if look():
                return
            failure = "it is still false"
        except Exception as error:  # noqa: BLE001 - the last one is told
            failure = repr(error)
        assert time.monotonic() < deadline, f"after {timeout_s:g} s: {failure}"
        time.sleep(0.05)


async def until(look: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(timeout_s):
        while True:
            if await look():
                return
            await asyncio.sleep(0.02)
