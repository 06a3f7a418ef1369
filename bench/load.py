"""Load over gRPC, for a process of its own: requests and replies as bytes, so that it costs little.

Closed loop: each of so many workers sends its next request when the last one was answered, so
latencies are those of a caller that waits, and say nothing of stalls that a planned load would meet.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio
import numpy as np
import uvloop
from numpy.typing import NDArray

from adapters.client.peers import open_channel
from onhand.v1 import stock_pb2

SUBMIT: Final = "/onhand.v1.Stock/Submit"
RESERVE: Final = "/onhand.v1.Stock/Reserve"
TEMPLATES: Final = 32  # different requests that are sent in turn, with fresh ids
REPLY_TIMEOUT_S: Final = 10.0

_OP_ID_FIELD: Final = b"\x0a\x10"  # field 1, 16 bytes: how each request begins
_STATUS_FIELD: Final = b"\x08"  # field 1, a number: how a reply to one operation begins unless OK


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells that load goes to: dense ids, each of shape (n,)."""

    sku: NDArray[np.uint32]
    location: NDArray[np.uint32]

    def pick(self, random: np.random.Generator, count: int) -> "Cells":
        """Some of them, at random."""
        chosen = random.integers(0, len(self.sku), count)
        return Cells(self.sku[chosen], self.location[chosen])


@dataclass(frozen=True, slots=True)
class SubmitLoad:
    """Batches of one-line reserves to one shard."""

    address: str
    cells: Cells
    seconds: float
    lines: int
    in_flight: int
    ttl_ms: int
    warm_up_s: float


@dataclass(frozen=True, slots=True)
class SubmitMeasured:
    """What came of it, after the warm-up. `batch_ms`: of each batch, from send to reply."""

    ok_lines: int
    refused_lines: int
    seconds: float
    batch_ms: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class UnaryLoad:
    """Single calls to servers in turn: slices of time, at each concurrency.

    `servers`: by concurrency, the addresses of those that are called at it.
    """

    servers: dict[int, tuple[str, ...]]
    cells: Cells
    slices: int
    slice_s: float
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class UnaryMeasured:
    """Of one server at one concurrency, over all its slices: calls that were OK, and latencies."""

    calls: int
    refused: int
    seconds: float
    call_ms: NDArray[np.float64]


def fresh_ids(*, low_zeros: int) -> Iterator[bytes]:
    """Op ids of 16 bytes that no one else has, ending on so many zero bytes."""
    prefix, zeros = secrets.token_bytes(8), bytes(low_zeros)
    width = 8 - low_zeros
    return (prefix + number.to_bytes(width, "big") + zeros for number in itertools.count())


def submit_templates(load: SubmitLoad, random: np.random.Generator) -> list[bytes]:
    """Requests without their op ids, which come first."""
    picks = [load.cells.pick(random, load.lines) for _ in range(TEMPLATES)]
    return [
        stock_pb2.SubmitRequest(
            lines=load.lines,
            kind=bytes([stock_pb2.KIND_RESERVE]),
            sku=pick.sku.astype("<u4").tobytes(),
            location=pick.location.astype("<u4").tobytes(),
            quantity=(1).to_bytes(8, "little"),
            value=load.ttl_ms.to_bytes(8, "little"),
        ).SerializeToString()
        for pick in picks
    ]


def reserve_template(sku: int, location: int, ttl_ms: int) -> bytes:
    """A single reserve without its op id."""
    request = stock_pb2.ReserveRequest(ttl_ms=ttl_ms)
    line = request.lines.add(quantity=1)
    line.sku.id, line.location.id = sku, location
    return request.SerializeToString()


def with_id(op_id: bytes, template: bytes) -> bytes:
    """A whole request."""
    return _OP_ID_FIELD + op_id + template


def run_submit(load: SubmitLoad) -> SubmitMeasured:
    """Send batches for a while."""
    return uvloop.run(_submit(load))


async def _submit(load: SubmitLoad) -> SubmitMeasured:
    templates = itertools.cycle(submit_templates(load, np.random.default_rng(0)))
    ids = fresh_ids(low_zeros=2)
    batch_ms: list[float] = []
    ok = refused = 0
    begins_s = time.perf_counter() + load.warm_up_s
    ends_s = begins_s + load.seconds

    async with open_channel(load.address) as channel:
        send = _raw(channel, SUBMIT)

        async def work() -> None:
            nonlocal ok, refused
            sent_s = time.perf_counter()
            while sent_s < ends_s:
                reply = await send(with_id(next(ids), next(templates)), timeout=REPLY_TIMEOUT_S)
                now_s = time.perf_counter()
                if begins_s <= now_s < ends_s:
                    done = _ok_lines(reply, load.lines)
                    ok += done
                    refused += load.lines - done
                    batch_ms.append((now_s - sent_s) * 1e3)
                sent_s = now_s

        await asyncio.gather(*(work() for _ in range(load.in_flight)))
    return SubmitMeasured(ok, refused, load.seconds, np.array(batch_ms))


def _ok_lines(reply: bytes, lines: int) -> int:
    status = stock_pb2.SubmitReply.FromString(reply).status
    return status.count(0) if status else lines


def run_unary(load: UnaryLoad) -> dict[tuple[str, int], UnaryMeasured]:
    """Call all servers in turn; the result is by (address, concurrency)."""
    return uvloop.run(_unary(load))


async def _unary(load: UnaryLoad) -> dict[tuple[str, int], UnaryMeasured]:
    random = np.random.default_rng(0)
    pick = load.cells.pick(random, 1_024)
    cells = zip(pick.sku.tolist(), pick.location.tolist(), strict=True)
    templates = itertools.cycle([reserve_template(*cell, load.ttl_ms) for cell in cells])
    ids = fresh_ids(low_zeros=0)
    requests = (with_id(next(ids), next(templates)) for _ in itertools.count())
    found: dict[tuple[str, int], list[UnaryMeasured]] = {}
    async with AsyncExitStack() as channels:
        sends: dict[str, Callable[..., Any]] = {}
        for concurrency, addresses in load.servers.items():
            for address in addresses:
                if address not in sends:
                    channel = await channels.enter_async_context(open_channel(address))
                    sends[address] = _raw(channel, RESERVE)
                # Connect, and warm up.
                await _slice(sends[address], requests, concurrency, min(load.slice_s, 0.3))
        for _ in range(load.slices):
            for concurrency, addresses in load.servers.items():
                for address in addresses:
                    measured = await _slice(sends[address], requests, concurrency, load.slice_s)
                    found.setdefault((address, concurrency), []).append(measured)
    return {key: _joined(slices) for key, slices in found.items()}


async def _slice(
    send: Callable[..., Any], requests: Iterator[bytes], concurrency: int, seconds: float
) -> UnaryMeasured:
    """Call one server for a slice of time, and until the last call is answered."""
    call_ms: list[float] = []
    refused = 0
    began_s = time.perf_counter()
    ends_s = began_s + seconds

    async def work() -> None:
        nonlocal refused
        sent_s = time.perf_counter()
        while sent_s < ends_s:
            reply = await send(next(requests), timeout=REPLY_TIMEOUT_S)
            now_s = time.perf_counter()
            refused += reply.startswith(_STATUS_FIELD)
            call_ms.append((now_s - sent_s) * 1e3)
            sent_s = now_s

    await asyncio.gather(*(work() for _ in range(concurrency)))
    took_s = time.perf_counter() - began_s
    return UnaryMeasured(len(call_ms) - refused, refused, took_s, np.array(call_ms))


def _joined(slices: Sequence[UnaryMeasured]) -> UnaryMeasured:
    return UnaryMeasured(
        sum(each.calls for each in slices),
        sum(each.refused for each in slices),
        sum(each.seconds for each in slices),
        np.concatenate([each.call_ms for each in slices]),
    )


def _raw(channel: grpc.aio.Channel, path: str) -> Callable[..., Any]:
    """A method as bytes in, bytes out."""
    return channel.unary_unary(path)
