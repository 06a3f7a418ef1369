"""Whom to call, and how often: the shard itself, else the gateway, until there is an answer.

Every request is sent with the op_id that it has, so an attempt whose fate is unknown is simply made
again. This room knows neither what is asked nor what is answered.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import grpc.aio

from adapters.client.errors import (
    FailedPrecondition,
    OnhandError,
    TimedOut,
    Unavailable,
    is_retryable,
    translate,
)
from adapters.client.peers import Peer, Peers
from adapters.client.shard_map import NO_SHARD, ShardMap
from onhand.v1 import directory_pb2

DEFAULT_TIMEOUT_S: Final = 30.0  # of one operation, all attempts together
ATTEMPT_TIMEOUT_S: Final = 8.0  # of one attempt: a server that stopped dead says nothing
RETRY_MIN_S: Final = 0.02  # before the second attempt, doubling, with jitter
RETRY_MAX_S: Final = 1.0
AVOID_S: Final = 1.0  # how long an address that failed is left alone, if there is another
REFRESH_TIMEOUT_S: Final = 2.0
REFRESH_MIN_S: Final = 0.1  # two refreshes of the shard map are at least so far apart

Request = TypeVar("Request")
Reply = TypeVar("Reply")

_log = logging.getLogger(__name__)


class Backoff:
    """Pauses between attempts, growing and jittered, up to a deadline."""

    def __init__(self, timeout_s: float) -> None:
        self._ends_s = time.monotonic() + timeout_s
        self._pause_s = RETRY_MIN_S

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._ends_s - time.monotonic()

    async def pause(self) -> bool:
        """Wait before another attempt; False, at once, when there is no time for one."""
        pause_s = random.uniform(self._pause_s / 2, self._pause_s)
        if pause_s >= self.left_s:
            return False
        await asyncio.sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, RETRY_MAX_S)
        return True


class Caller:
    """The way to the servers: the gateway's address, the shard map, and retries."""

    def __init__(self, gateway: str, *, timeout_s: float, direct: bool) -> None:
        self.timeout_s = timeout_s
        self._gateway = gateway
        self._direct = direct
        self._peers = Peers()
        self._map = ShardMap(directory_pb2.ShardMap())
        self._refreshed_s = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def shard_map(self) -> ShardMap:
        """The newest map that is known; without shards when a shard's own server is all that is called.

        Also where everything goes by the gateway: batches are cut by it, and so that one which is
        repeated the other way has the same parts.
        """
        return self._map

    async def start(self) -> None:
        """Fetch the shard map, with retries. Raises OnhandError."""
        request = directory_pb2.GetShardMapRequest()
        try:
            self._take(await self.call(lambda peer: peer.directory.GetShardMap, request))
        except FailedPrecondition:
            # What is called may be a shard's own server, which has none: all goes there.
            if self._direct:
                raise

    async def close(self) -> None:
        """Close all channels; calls under way end with Unavailable."""
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self._peers.keep(set())

    async def call(
        self,
        method: Callable[[Peer], grpc.aio.UnaryUnaryMultiCallable[Request, Reply]],
        request: Request,
        shard: int = NO_SHARD,
    ) -> Reply:
        """Call a method of the shard, or of the gateway when none is named, until it answers.

        Raises OnhandError; Unavailable once `timeout_s` is over.
        """
        backoff = Backoff(self.timeout_s)
        while True:
            peer = self._choose(shard)
            timeout_s = min(ATTEMPT_TIMEOUT_S, max(backoff.left_s, RETRY_MIN_S))
            try:
                return await _ended_here(method(peer)(request, timeout=timeout_s), peer)
            except grpc.aio.AioRpcError as error:
                if not is_retryable(error):
                    raise translate(error, peer.address) from error
                failure = translate(error, peer.address)
            except Unavailable as error:
                failure = error
            self._avoid(peer, failure)
            if not await backoff.pause():
                raise failure
            if shard != NO_SHARD:
                self._refresh_soon()

    async def stream(
        self,
        method: Callable[[Peer], Callable[[Request], grpc.aio.UnaryStreamCall[Request, Reply]]],
        request: Request,
        shard: int = NO_SHARD,
        silence_s: float = DEFAULT_TIMEOUT_S,
    ) -> AsyncGenerator[Reply, None]:
        """Yield what one attempt at a streaming method yields. Raises OnhandError.

        A server that says nothing for `silence_s` is given up with TimedOut.
        """
        peer = self._choose(shard)
        call = method(peer)(request)
        try:
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        message: Any = await _ended_here(call.read(), peer)
                except TimeoutError:
                    raise TimedOut(f"{peer.address}: silent for {silence_s:g} s") from None
                if message is grpc.aio.EOF:
                    code, details = await call.code(), await call.details()
                    if code is grpc.StatusCode.OK:
                        return
                    raise _error(code, details)
                yield message  # a Reply: EOF is the only other thing that is read
        except grpc.aio.AioRpcError as error:
            failure = translate(error, peer.address)
            if isinstance(failure, Unavailable):
                self._avoid(peer, failure)
            raise failure from error
        finally:
            call.cancel()

    async def refresh(self) -> None:
        """Fetch the shard map again; without success, the old one stays."""
        self._refresh_soon()
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing])

    def _choose(self, shard: int) -> Peer:
        """The shard itself; the gateway when its address is not known or has just failed."""
        if self._closed:
            raise Unavailable("the client is closed")
        gateway = self._peers.at(self._gateway)
        address = self._map.addresses.get(shard) or self._gateway
        if address == self._gateway or not self._direct:
            return gateway
        peer = self._peers.at(address)
        # If both fail, whichever failed longer ago is tried next: the two take turns.
        is_down = time.monotonic() < peer.down_until_s
        return gateway if is_down and gateway.down_until_s < peer.down_until_s else peer

    def _avoid(self, peer: Peer, failure: OnhandError) -> None:
        _log.debug("call failed: %s", failure)
        peer.down_until_s = time.monotonic() + AVOID_S

    def _refresh_soon(self) -> None:
        """Fetch the map in the background, once for all calls that wish for it."""
        is_running = self._refreshing is not None and not self._refreshing.done()
        if not is_running and not self._closed:
            self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        wait_s = self._refreshed_s + REFRESH_MIN_S - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        self._refreshed_s = time.monotonic()
        gateway = self._peers.at(self._gateway)
        with suppress(grpc.aio.AioRpcError, Unavailable):
            request = directory_pb2.GetShardMapRequest()
            call = gateway.directory.GetShardMap(request, timeout=REFRESH_TIMEOUT_S)
            self._take(await _ended_here(call, gateway))
            await self._peers.keep({self._gateway, *self._map.addresses.values()})

    def _take(self, message: directory_pb2.ShardMap) -> None:
        """Take a map, unless a newer one came first."""
        found = ShardMap(message)
        if found.version < self._map.version:
            return
        for number, address in found.addresses.items():
            if address and address != self._map.addresses.get(number):
                self._peers.at(address).down_until_s = 0.0
        self._map = found


async def _ended_here(awaited: Awaitable[Reply], peer: Peer) -> Reply:
    """Await a call. One whose channel is closed raises CancelledError, as if its caller had been."""
    try:
        return await awaited
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Unavailable(f"{peer.address}: the connection was closed") from None


def _error(code: Any, details: str) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, empty, details)
