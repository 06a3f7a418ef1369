"""Following cells: a stream of frames that comes back after each break, from where it was."""

from collections.abc import AsyncIterator
from typing import Final

from adapters.client.calls import Backoff, Caller
from adapters.client.errors import Unavailable
from adapters.client.messages import frame_from
from adapters.client.values import Frame, FrameKind
from onhand.v1 import deltas_pb2

DEFAULT_HEARTBEAT_MS: Final = 5_000
SILENT_HEARTBEATS: Final = 3  # so many missed, and the stream is taken for dead
SILENCE_MIN_S: Final = 2.0


async def follow(caller: Caller, request: deltas_pb2.SubscribeRequest) -> AsyncIterator[Frame]:
    """Yield frames for ever; `request` is changed: it carries the token to go on from.

    Raises Unavailable when no frame could be had for the client's timeout, and InvalidArgument.
    """
    heartbeat_ms = request.heartbeat_ms or DEFAULT_HEARTBEAT_MS
    silence_s = max(SILENT_HEARTBEATS * heartbeat_ms / 1000, SILENCE_MIN_S)
    backoff = Backoff(caller.timeout_s)
    while True:
        failure = Unavailable("the gateway ended the stream")
        stream = caller.stream(lambda peer: peer.deltas.Subscribe, request, silence_s=silence_s)
        try:
            async for message in stream:
                frame = frame_from(message)
                if frame.resume_token or frame.kind is FrameKind.COMPACTED:
                    request.resume_token = frame.resume_token
                backoff = Backoff(caller.timeout_s)
                yield frame
        except Unavailable as error:
            failure = error
        if not await backoff.pause():
            raise failure
