"""A subscriber's copy of the cells that it follows, for label gateways, tills, caches and tests.

    replica = Replica()
    await replica.run(deltas_pb2_grpc.DeltasStub(channel), locations=[7])

The copy moves from one whole moment to the next: frames without a token are kept aside until the
one with a token comes. Sorted keys and one table, no object per cell, so that hundreds of these fit
one process. Knows the public contract only; what a token means is the server's business.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from engine.frames import FrameKind
from onhand.v1 import common_pb2, deltas_pb2

MAX_DELAYS: Final = 4_096  # samples kept, the newest
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
RESUMABLE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,  # by the server; our own cancellation is never retried
    }
)

_ON_HAND, _AVAILABLE, _PRICE, _VERSION = range(4)
_Columns = tuple[NDArray[np.int64], NDArray[np.int64]]  # keys (n,), values (n, 4)


class Subscribes(Protocol):
    """What a replica needs of a `DeltasStub`."""

    @property
    def Subscribe(
        self,
    ) -> Callable[
        [deltas_pb2.SubscribeRequest],
        "grpc.aio.UnaryStreamCall[deltas_pb2.SubscribeRequest, deltas_pb2.Frame]",
    ]:
        """The method."""


class Seen(NamedTuple):
    """One cell as the replica has it; columns that it does not follow are zero."""

    on_hand: int
    available: int
    price_minor: int
    price_version: int


@dataclass(slots=True)
class Counters:
    """What has arrived."""

    frames: int = 0
    snapshots: int = 0
    deltas: int = 0  # changed cells, by delta frames
    compacted: int = 0
    heartbeats: int = 0
    resumes: int = 0  # streams begun with a token


@dataclass(slots=True)
class Replica:
    """Cells by (sku id, location id), as of one moment. `token` is where to go on; b"": nowhere."""

    token: bytes = b""
    counters: Counters = field(default_factory=Counters)
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # set when the copy has moved on
    _keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _values: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    _aside: list[_Columns] = field(default_factory=list)
    _fresh: bool = True  # what is aside replaces the copy
    _delays: NDArray[np.int64] = field(default_factory=lambda: np.zeros(16, np.int64))
    _delay_count: int = 0

    # ------------------------------------------------------------------------------- applying --

    def begin(self) -> None:
        """A new stream begins: what the last one did not finish is void."""
        self._aside.clear()
        self._fresh = not self.token

    def apply(self, frame: deltas_pb2.Frame, received_ns: int = 0) -> None:
        """Take one frame. `received_ns` (ns since 1970) makes a delta's delay known; 0: it is not."""
        counters, kind = self.counters, int(frame.kind)
        counters.frames += 1
        if kind == FrameKind.HEARTBEAT:
            counters.heartbeats += 1
            self.token = frame.resume_token
            return
        if kind == FrameKind.COMPACTED:
            counters.compacted += 1
            self.token = b""
            self.begin()
            return
        if frame.cells:
            self._aside.append(_columns(frame))
        if kind == FrameKind.DELTA:
            counters.deltas += frame.cells
            if received_ns and frame.block_now_ns:
                self._note_delay(received_ns - frame.block_now_ns)
        if frame.resume_token:
            counters.snapshots += kind == FrameKind.SNAPSHOT_END
            self._move_on()
            self.token = frame.resume_token
            self.changed.set()

    def _move_on(self) -> None:
        if self._fresh:
            self._keys, self._values = self._keys[:0], self._values[:0]
            self._fresh = False
        if len(self._aside) > 1:
            self._put(*_newest(self._aside))
        elif self._aside:
            self._put(*self._aside[0])
        self._aside.clear()

    def _put(self, keys: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        """Set cells, of which each is given once."""
        places = np.searchsorted(self._keys, keys)
        if len(self._keys):
            known = self._keys[np.minimum(places, len(self._keys) - 1)] == keys
            if known.all():
                self._values[places] = values
                return
            self._values[places[known]] = values[known]
            keys, values = keys[~known], values[~known]
        all_keys = np.concatenate([self._keys, keys])
        order = np.argsort(all_keys, kind="stable")
        self._keys = all_keys[order]
        self._values = np.concatenate([self._values, values])[order]

    def _note_delay(self, delay_ns: int) -> None:
        count = self._delay_count
        if count == len(self._delays) < MAX_DELAYS:
            self._delays = np.concatenate([self._delays, np.zeros(len(self._delays), np.int64)])
        self._delays[count % len(self._delays)] = delay_ns
        self._delay_count += 1

    # -------------------------------------------------------------------------------- reading --

    def __len__(self) -> int:
        """How many cells it has."""
        return len(self._keys)

    def cell(self, sku: int, location: int) -> Seen | None:
        """One cell; None when nothing is known of it."""
        key = location << 32 | sku
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        return Seen(*self._values[place].tolist())

    def cells(self) -> dict[tuple[int, int], Seen]:
        """All cells by (sku id, location id): for tests and small replicas."""
        return {
            (key & 0xFFFFFFFF, key >> 32): Seen(*values)
            for key, values in zip(self._keys.tolist(), self._values.tolist(), strict=True)
        }

    @property
    def delays_ns(self) -> NDArray[np.int64]:
        """From the newest block's time to the arrival of its delta: the newest samples, unordered."""
        return self._delays[: min(self._delay_count, len(self._delays))].copy()

    # ------------------------------------------------------------------------------ following --

    async def run(
        self,
        stub: Subscribes,
        locations: Sequence[int | str] = (),
        skus: Sequence[int | str] = (),
        *,
        fields: int = 0,
        heartbeat_ms: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Follow cells until cancelled, and resume after every interruption.

        Names are ids or codes. Raises grpc.aio.AioRpcError for what resuming does not cure.
        """
        request = deltas_pb2.SubscribeRequest(
            locations=[_location(name) for name in locations],
            skus=[_sku(name) for name in skus],
            fields=fields,  # type: ignore[arg-type] # a number will do
            heartbeat_ms=heartbeat_ms,
        )
        retry_s = RETRY_MIN_S
        while True:
            frames = self.counters.frames
            try:
                await self._follow(stub, request, now_ns)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RESUMABLE:
                    raise
            if self.counters.frames > frames:
                retry_s = RETRY_MIN_S
            # Spread out: after a server's restart hundreds of replicas come back together.
            await asyncio.sleep(retry_s * (0.5 + random.random()))
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _follow(
        self, stub: Subscribes, request: deltas_pb2.SubscribeRequest, now_ns: Callable[[], int]
    ) -> None:
        request.resume_token = self.token
        self.counters.resumes += bool(self.token)
        self.begin()
        call = stub.Subscribe(request)
        try:
            while True:
                frame = await call.read()
                if not isinstance(frame, deltas_pb2.Frame):  # the end of the stream
                    return
                self.apply(frame, now_ns())
        finally:
            call.cancel()


def _columns(frame: deltas_pb2.Frame) -> _Columns:
    count = frame.cells
    keys = np.frombuffer(frame.location, "<u4").astype(np.int64) << 32
    keys |= np.frombuffer(frame.sku, "<u4")
    values = np.zeros((count, 4), np.int64)
    for place, data, dtype in (
        (_ON_HAND, frame.on_hand, "<i8"),
        (_AVAILABLE, frame.available, "<i8"),
        (_PRICE, frame.price_minor, "<i8"),
        (_VERSION, frame.price_version, "<u4"),
    ):
        if data:
            values[:, place] = np.frombuffer(data, dtype)
    return keys, values


def _newest(parts: list[_Columns]) -> _Columns:
    """Each cell once, with the last value that was told."""
    keys = np.concatenate([keys for keys, _ in reversed(parts)])
    values = np.concatenate([values for _, values in reversed(parts)])
    keys, places = np.unique(keys, return_index=True)
    return keys, values[places]


def _location(name: int | str) -> common_pb2.Location:
    return common_pb2.Location(code=name) if isinstance(name, str) else common_pb2.Location(id=name)


def _sku(name: int | str) -> common_pb2.Sku:
    return common_pb2.Sku(code=name) if isinstance(name, str) else common_pb2.Sku(id=name)
