"""Following cells: a stream of frames that comes back after each break, from where it was."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, TypeVar

import grpc.aio

from adapters.client.calls import Backoff, Caller
from adapters.client.errors import Unavailable
from adapters.client.frames import EventFrame, Frame
from adapters.client.messages import event_frame_from, frame_from
from adapters.client.peers import Peer
from engine.frames import FrameKind
from onhand.v1 import deltas_pb2

DEFAULT_HEARTBEAT_MS: Final = 5_000
SILENT_HEARTBEATS: Final = 3  # so many missed, and the stream is taken for dead
SILENCE_MIN_S: Final = 2.0

Request = TypeVar("Request", deltas_pb2.SubscribeRequest, deltas_pb2.EventsRequest)
Message = TypeVar("Message")


async def follow(
    caller: Caller, request: deltas_pb2.SubscribeRequest
) -> AsyncGenerator[Frame, None]:
    """Yield frames for ever; `request` is changed: it carries the token to go on from.

    Raises InvalidArgument, and Unavailable when a stream that broke gave no frame again within the
    client's timeout.
    """
    async with aclosing(_follow(caller, request, lambda peer: peer.deltas.Subscribe)) as messages:
        async for message in messages:
            frame = frame_from(message)
            if frame.resume_token or frame.kind is FrameKind.COMPACTED:
                request.resume_token = frame.resume_token
            yield frame


async def follow_events(
    caller: Caller, request: deltas_pb2.EventsRequest
) -> AsyncGenerator[EventFrame, None]:
    """Yield frames for ever, as `follow` does. Raises EventsGone too."""
    async with aclosing(_follow(caller, request, lambda peer: peer.deltas.Events)) as messages:
        async for message in messages:
            request.resume_token = message.resume_token
            yield event_frame_from(message)


async def _follow(
    caller: Caller,
    request: Request,
    method: Callable[[Peer], Callable[[Request], grpc.aio.UnaryStreamCall[Request, Message]]],
) -> AsyncGenerator[Message, None]:
    """Yield messages, with the request as it then is after each break.

    Closed where it is used up, as is the call in it: whoever ends a subscription early has ended the
    call then, and not when the collector comes.
    """
    heartbeat_ms = request.heartbeat_ms or DEFAULT_HEARTBEAT_MS
    silence_s = max(SILENT_HEARTBEATS * heartbeat_ms / 1000, SILENCE_MIN_S)
    backoff: Backoff | None = None  # since the stream broke
    while True:
        failure = Unavailable("the gateway ended the stream")
        try:
            async with aclosing(caller.stream(method, request, silence_s=silence_s)) as messages:
                async for message in messages:
                    backoff = None
                    yield message
        except Unavailable as error:
            failure = error
        backoff = backoff or Backoff(caller.timeout_s)
        if not await backoff.pause():
            raise failure
