"""Deltas: streams of changes. The hub says what to tell; this room packs it and minds the reader.

A frame is packed once and passed to gRPC as bytes, so the servicer is registered by `add_to` and
not by the generated function. One write is under way at a time; gRPC itself buffers some hundred KB
of what a reader does not fetch, then the write waits, and after `stuck_s` the stream is ended.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from actors.hub import DeltaHub
from actors.subscribers import HubFull, HubStopped, NotReady, Places
from actors.subscription import DeltaFrame, Subscription
from actors.tokens import Filter
from adapters.rpc.errors import Context, invalid_argument, resource_exhausted, unavailable
from adapters.rpc.requests import InvalidField
from engine import limits
from engine.frames import Fields
from engine.kernels import KEY, ON_HAND, PRICE, VERSION
from engine.mirror import available_of
from engine.views import Endangered
from onhand.v1 import availability_pb2, common_pb2, deltas_pb2

DEFAULT_HEARTBEAT_MS: Final = 5_000
MIN_HEARTBEAT_MS: Final = 100
MAX_HEARTBEAT_MS: Final = 60_000
STUCK_S: Final = 20.0  # for one frame to be taken off our hands
MIN_GAP_S: Final = 0.02  # between two frames of one stream; the first after a silence goes at once
STOPPING: Final = "stopping, resume elsewhere"

_SERVICE: Final = deltas_pb2.DESCRIPTOR.services_by_name["Deltas"]
_LOW32: Final = 0xFFFFFFFF

_Name = common_pb2.Sku | common_pb2.Location
Write = Callable[[bytes], Awaitable[None]]


class Codes(Protocol):
    """What this room needs of the catalogue: 0 means that a code is unknown."""

    def sku_id(self, code: str) -> int:
        """The id of a SKU's code."""

    def location_id(self, code: str) -> int:
        """The id of a location's code."""

    @property
    def renames(self) -> int:
        """How many times a SKU has got a new code."""


class Events(Protocol):
    """The other half of the service (`adapters.rpc.events`)."""

    async def Events(self, request: deltas_pb2.EventsRequest, context: Context) -> None:
        """Tell events until the call ends."""


class _Stuck(Exception):  # noqa: N818
    """The reader did not take a frame in time."""


class DeltasServicer:
    """onhand.v1.Deltas over one hub."""

    def __init__(
        self,
        hub: DeltaHub,
        catalogue: Codes,
        events: Events,
        *,
        stuck_s: float = STUCK_S,
        min_gap_s: float = MIN_GAP_S,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._hub = hub
        self._catalogue = catalogue
        self._events = events
        self._stuck_s = stuck_s
        self._min_gap_s = min_gap_s
        self._now_ns = now_ns

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service, with replies that are bytes already."""
        methods: dict[str, Any] = {
            "Subscribe": grpc.unary_stream_rpc_method_handler(
                self.Subscribe, request_deserializer=deltas_pb2.SubscribeRequest.FromString
            ),
            "Events": grpc.unary_stream_rpc_method_handler(
                self._events.Events, request_deserializer=deltas_pb2.EventsRequest.FromString
            ),
        }
        assert set(methods) == set(_SERVICE.methods_by_name)
        handler = grpc.method_handlers_generic_handler(_SERVICE.full_name, methods)
        server.add_generic_rpc_handlers((handler,))

    async def Subscribe(self, request: deltas_pb2.SubscribeRequest, context: Context) -> None:
        """Tell a snapshot or what was missed, then what changes, until the call ends."""
        try:
            wanted = self._filter(request)
            silence_s = heartbeat_s(request.heartbeat_ms)
        except InvalidField as error:
            await invalid_argument(context, error.field, error.description)
        subscription = await self._subscribe(wanted, request.resume_token, context)
        ending, message = grpc.StatusCode.UNAVAILABLE, STOPPING
        try:
            await self._send(subscription, silence_s, context.write)
        except _Stuck:
            ending = grpc.StatusCode.DEADLINE_EXCEEDED
            message = not_taken(self._stuck_s)
        except HubStopped:
            pass
        finally:  # also when the call is cancelled, which goes on to gRPC
            self._hub.unsubscribe(subscription)
        # A stuck reader gets this when it reads on or goes away; until then this waits, and holds
        # no more than the call.
        await context.abort(ending, message)

    async def _subscribe(self, wanted: Filter, token: bytes, context: Context) -> Subscription:
        try:
            return await self._hub.subscribe(wanted, token)
        except ValueError as error:
            message = str(error).removeprefix("resume_token: ")
            await invalid_argument(context, "resume_token", message)
        except HubFull as error:
            await resource_exhausted(context, str(error))
        except NotReady as error:
            await unavailable(context, str(error))
        except HubStopped:
            await unavailable(context, STOPPING)
        raise AssertionError("the call has been ended")

    async def _send(self, subscription: Subscription, silence_s: float, write: Write) -> None:
        """Write frame after frame, one at a time. Raises HubStopped or _Stuck."""
        fields = subscription.filter.fields
        clock = asyncio.get_running_loop().time
        while True:
            frame = await subscription.next(silence_s)
            started = clock()
            try:
                async with asyncio.timeout(self._stuck_s):
                    await write(packed(frame, fields, self._now_ns(), self._catalogue.renames))
            except TimeoutError:
                raise _Stuck from None
            gap_s = self._min_gap_s - (clock() - started)
            # A sweep goes on without a pause: the reader waits for its end.
            if frame.token and gap_s > 0 and not self._hub.stopping:
                await asyncio.sleep(gap_s)

    def _filter(self, request: deltas_pb2.SubscribeRequest) -> Filter:
        if not 0 <= request.fields < len(Fields):
            raise InvalidField("fields", f"{request.fields}, must be 0, 1 or 2")
        locations, skus = ids_of(request, self._catalogue)
        return Filter.of(locations, skus, Fields(request.fields))


def ids_of(
    request: deltas_pb2.SubscribeRequest | deltas_pb2.EventsRequest, catalogue: Codes
) -> tuple[list[int], list[int]]:
    """The locations and the SKUs that a subscription names. Raises InvalidField."""
    most = limits.MAX_LOCATIONS, limits.MAX_SKUS
    locations = _ids("locations", request.locations, catalogue.location_id, most[0])
    return locations, _ids("skus", request.skus, catalogue.sku_id, most[1])


def _ids(field: str, names: Sequence[_Name], id_of: Callable[[str], int], most: int) -> list[int]:
    if len(names) > limits.MAX_SUBSCRIPTION_NAMES:
        raise InvalidField(field, f"{len(names)}, at most {limits.MAX_SUBSCRIPTION_NAMES}")
    ids = []
    for i, name in enumerate(names):
        if name.code:
            if len(name.code) > limits.MAX_CODE_LENGTH or not (number := id_of(name.code)):
                raise InvalidField(f"{field}[{i}].code", "not in the catalogue")
        elif not 1 <= (number := name.id) <= most:
            raise InvalidField(
                f"{field}[{i}].id", f"{number}, must be 1 to {most}, or a code given"
            )
        ids.append(number)
    return ids


def heartbeat_s(heartbeat_ms: int) -> float:
    """How long a stream may be silent, in seconds. Raises InvalidField."""
    if not heartbeat_ms:
        return DEFAULT_HEARTBEAT_MS / 1000
    if not MIN_HEARTBEAT_MS <= heartbeat_ms <= MAX_HEARTBEAT_MS:
        raise InvalidField(
            "heartbeat_ms",
            f"{heartbeat_ms}, must be {MIN_HEARTBEAT_MS} to {MAX_HEARTBEAT_MS}, or 0",
        )
    return heartbeat_ms / 1000


def not_taken(stuck_s: float) -> str:
    """What a reader is told who did not take a frame in time."""
    return f"no frame was taken for {stuck_s:g} s; resume from the last token"


def positions(places: Places) -> list[availability_pb2.StreamPosition]:
    """The blocks up to which all has been told, in the clear."""
    return [
        availability_pb2.StreamPosition(shard=shard, epoch=epoch, seq=seq)
        for shard, epoch, seq in places
    ]


def packed(frame: DeltaFrame, fields: Fields, sent_ns: int, renames: int = 0) -> bytes:
    """The bytes of a `Frame` message."""
    message = deltas_pb2.Frame(
        kind=frame.kind,  # type: ignore[arg-type] # the numbers are the same
        resume_token=frame.token,
        block_now_ns=frame.block_now_ns,
        sent_ns=sent_ns,
        renames=renames,
        at=positions(frame.places),
    )
    cells = frame.cells
    if len(cells):
        keys = cells[:, KEY]
        message.cells = len(cells)
        message.sku = _column(keys & _LOW32, "<u4")
        message.location = _column(keys >> 32, "<u4")
        if fields is not Fields.PRICE:
            message.on_hand = _column(cells[:, ON_HAND], "<i8")
            message.available = _column(available_of(cells), "<i8")
            message.shortages.extend(map(_shortage, frame.endangered))
        if fields is not Fields.STOCK:
            message.price_minor = _column(cells[:, PRICE], "<i8")
            message.price_version = _column(cells[:, VERSION], "<u4")
    return message.SerializeToString()


def _shortage(endangered: Endangered) -> deltas_pb2.Shortage:
    return deltas_pb2.Shortage(
        sku=endangered.sku,
        location=endangered.location,
        shortage=endangered.units,
        holds=[
            common_pb2.Endangered(hold_id=hold_id, pending=pending, committed=committed)
            for hold_id, pending, committed in endangered.holds
        ],
    )


def _column(values: NDArray[np.int64], dtype: str) -> Any:
    return values.astype(dtype).tobytes()
