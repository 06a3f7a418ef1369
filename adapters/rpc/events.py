"""Events over gRPC: the hub says what to tell, this room packs it and minds the reader.

A frame's columns are packed as they come from the blocks; no event is an object here. As with
deltas, one write is under way at a time, and a reader that takes nothing for `stuck_s` is ended: it
holds no more than its place, and resumes there.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from actors.events import EventFrame, EventHub, EventsGone, EventSubscription
from actors.ports import JournalError, Position
from actors.subscribers import HubFull, HubStopped, NotReady
from actors.tokens import Filter
from adapters.rpc.deltas import STOPPING, STUCK_S, Codes, heartbeat_s, ids_of, not_taken, positions
from adapters.rpc.errors import Context, invalid_argument, resource_exhausted, unavailable
from adapters.rpc.requests import InvalidField
from engine.framing import BlockDamaged
from onhand.v1 import deltas_pb2

# Columns that are packed as they are; ids of 16 bytes are put together of two.
_PLAIN: Final = (
    "number", "kind", "sku", "location", "quantity", "value", "line", "flags", "channel",
    "currency", "occurred_at_ns",
)  # fmt: skip


class EventStreams:
    """The streams of `Deltas.Events`, over one hub. `told` hears how many events each frame had."""

    def __init__(
        self,
        hub: EventHub,
        catalogue: Codes,
        *,
        told: Callable[[int], None] = lambda _: None,
        stuck_s: float = STUCK_S,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._hub = hub
        self._catalogue = catalogue
        self._told = told
        self._stuck_s = stuck_s
        self._now_ns = now_ns

    async def Events(self, request: deltas_pb2.EventsRequest, context: Context) -> None:
        """Tell events until the call ends."""
        try:
            locations, skus = ids_of(request, self._catalogue)
            wanted = Filter.of(locations, skus)
            silence_s = heartbeat_s(request.heartbeat_ms)
            after = _after(request)
        except InvalidField as error:
            await invalid_argument(context, error.field, error.description)
        subscription = await self._subscribe(wanted, request, after, context)
        ending, message = grpc.StatusCode.UNAVAILABLE, STOPPING
        try:
            await self._send(subscription, silence_s, context)
        except TimeoutError:
            ending = grpc.StatusCode.DEADLINE_EXCEEDED
            message = not_taken(self._stuck_s)
        except EventsGone as error:
            ending, message = grpc.StatusCode.OUT_OF_RANGE, str(error)
        except (JournalError, BlockDamaged) as error:
            message = f"the journal cannot be read, resume from the last token: {error}"
        except HubStopped:
            pass
        finally:  # also when the call is cancelled, which goes on to gRPC
            self._hub.unsubscribe(subscription)
        await context.abort(ending, message)

    async def _subscribe(
        self,
        wanted: Filter,
        request: deltas_pb2.EventsRequest,
        after: dict[int, Position],
        context: Context,
    ) -> EventSubscription:
        try:
            return await self._hub.subscribe(
                wanted, request.resume_token, after=after, oldest=request.oldest
            )
        except ValueError as error:
            field, _, message = str(error).partition(": ")
            await invalid_argument(context, field, message)
        except EventsGone as error:
            field = "resume_token" if request.resume_token else "after"
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, f"{field}: {error}")
        except HubFull as error:
            await resource_exhausted(context, str(error))
        except (NotReady, JournalError) as error:
            await unavailable(context, str(error))
        except HubStopped:
            await unavailable(context, STOPPING)
        raise AssertionError("the call has been ended")

    async def _send(
        self, subscription: EventSubscription, silence_s: float, context: Context
    ) -> None:
        """Write frame after frame. Raises TimeoutError when one is not taken, and as `next` does."""
        while True:
            frame = await subscription.next(silence_s)
            payload = packed(frame, self._now_ns(), self._catalogue.renames)
            async with asyncio.timeout(self._stuck_s):
                await context.write(payload)
            self._told(len(frame))


def _after(request: deltas_pb2.EventsRequest) -> dict[int, Position]:
    after: dict[int, Position] = {}
    for i, each in enumerate(request.after):
        if each.shard in after:
            raise InvalidField(f"after[{i}].shard", f"{each.shard} is named already")
        after[each.shard] = Position(each.epoch, each.seq)
    return after


def packed(frame: EventFrame, sent_ns: int, renames: int = 0) -> bytes:
    """The bytes of an `EventFrame` message."""
    message = deltas_pb2.EventFrame(
        resume_token=frame.token,
        events=len(frame),
        shard=frame.shard,
        sent_ns=sent_ns,
        renames=renames,
        at=positions(frame.places),
    )
    blocks = frame.blocks
    if blocks:
        sizes = [len(block) for block in blocks]
        for name, dtype in (("epoch", "<u8"), ("seq", "<u8"), ("now_ns", "<i8")):
            values = np.array([getattr(block, name) for block in blocks], dtype)
            setattr(message, name, _column(np.repeat(values, sizes)))
        for name in _PLAIN:
            setattr(message, name, _column(_joined(frame, name)))
        message.hold = _ids(frame, "hold")
        message.op_id = _ids(frame, "op")
    return message.SerializeToString()


def _joined(frame: EventFrame, name: str) -> NDArray[Any]:
    parts = [block.columns[name] for block in frame.blocks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _ids(frame: EventFrame, name: str) -> bytes:
    """A column of ids of 16 bytes, big-endian."""
    halves = np.stack([_joined(frame, f"{name}_hi"), _joined(frame, f"{name}_lo")], axis=1)
    if not halves.any():
        return b""
    return halves.astype(">u8")[: 1 if (halves == halves[0]).all() else None].tobytes()


def _column(values: NDArray[Any]) -> bytes:
    """All values; one if they are equal; none if they are zeros."""
    if not (values == values[0]).all():
        return values.tobytes()
    return values[:1].tobytes() if values[0] else b""
