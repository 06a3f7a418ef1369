"""Following cells: a stream of frames that comes back after each break, from where it was."""

from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

import grpc.aio

from adapters.client.calls import Backoff, Caller
from adapters.client.errors import Unavailable
from adapters.client.messages import event_frame_from, frame_from
from adapters.client.peers import Peer
from adapters.client.values import EventFrame, Frame, FrameKind
from onhand.v1 import deltas_pb2

DEFAULT_HEARTBEAT_MS: Final = 5_000
SILENT_HEARTBEATS: Final = 3  # so many missed, and the stream is taken for dead
SILENCE_MIN_S: Final = 2.0

Request = TypeVar("Request", deltas_pb2.SubscribeRequest, deltas_pb2.EventsRequest)
Message = TypeVar("Message")


async def follow(caller: Caller, request: deltas_pb2.SubscribeRequest) -> AsyncIterator[Frame]:
    """Yield frames for ever; `request` is changed: it carries the token to go on from.

    Raises Unavailable when no frame could be had for the client's timeout, and InvalidArgument.
    """
    async for message in _follow(caller, request, lambda peer: peer.deltas.Subscribe):
        frame = frame_from(message)
        if frame.resume_token or frame.kind is FrameKind.COMPACTED:
            request.resume_token = frame.resume_token
        yield frame


async def follow_events(
    caller: Caller, request: deltas_pb2.EventsRequest
) -> AsyncIterator[EventFrame]:
    """Yield frames for ever, as `follow` does. Raises EventsGone too."""
    async for message in _follow(caller, request, lambda peer: peer.deltas.Events):
        request.resume_token = message.resume_token
        yield event_frame_from(message)


async def _follow(
    caller: Caller,
    request: Request,
    method: Callable[[Peer], Callable[[Request], grpc.aio.UnaryStreamCall[Request, Message]]],
) -> AsyncIterator[Message]:
    """Yield messages, with the request as it then is after each break."""
    heartbeat_ms = request.heartbeat_ms or DEFAULT_HEARTBEAT_MS
    silence_s = max(SILENT_HEARTBEATS * heartbeat_ms / 1000, SILENCE_MIN_S)
    backoff = Backoff(caller.timeout_s)
    while True:
        failure = Unavailable("the gateway ended the stream")
        try:
            async for message in caller.stream(method, request, silence_s=silence_s):
                backoff = Backoff(caller.timeout_s)
                yield message
        except Unavailable as error:
            failure = error
        if not await backoff.pause():
            raise failure
