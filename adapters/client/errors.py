"""What can go wrong between a caller and an answer. A refusal is no error: it is a `Result`.

    OnhandError
    ├── InvalidArgument    the request is malformed; nothing was judged, repeating it is no use
    ├── FailedPrecondition not here, or not as things are: nothing was done, repeating it is no use
    ├── Unavailable        no answer in time; whether the operation was applied is not known
    │   ├── Overloaded     the servers turned every attempt away
    │   └── TimedOut       the last attempt was not answered in time
    ├── EventsGone         the journal does not have the events any more that should come next
    └── ServerFailed       any other gRPC error: a bug, or a server of another version

After `Unavailable` send the operation again with the same op_id (`error.op_id`), at any later time
within the servers' memory of ids: it takes effect once, and gets the one answer that it has.
"""

from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

# Worth another attempt with the same op_id. The last two come from connections that break.
RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,  # by the server; a caller's own cancellation is never retried
    }
)
_DETAILS_KEY: Final = "grpc-status-details-bin"
_TOO_LARGE: Final = "larger than max"  # gRPC's words when a message passes a size limit


class OnhandError(Exception):
    """Any failure to get an answer. `op_id` is that of the operation; empty for reads."""

    op_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request: the field's path, and what must be so."""

    field: str
    description: str


class InvalidArgument(OnhandError):  # noqa: N818 - conditions, as in actors.ports
    """The request is malformed. `field` and `description` are those of the first violation."""

    def __init__(self, message: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations
        self.field = violations[0].field if violations else ""
        self.description = violations[0].description if violations else message


class FailedPrecondition(OnhandError):  # noqa: N818
    """Nothing was done, and repeating it does not help: the message says what stands in the way.

    The catalogue is full; or a shard's own server was asked for what only a gateway or another shard has.
    """


class Unavailable(OnhandError):  # noqa: N818
    """No answer within the deadline, after retries. The operation may have been applied."""


class Overloaded(Unavailable):
    """The servers were too busy, each time. Nothing was judged by the attempts that they answered."""


class TimedOut(Unavailable):
    """The last attempt was not answered in time."""


class EventsGone(OnhandError):  # noqa: N818
    """Events are not in the journal any more, or never were. The message says which, and why.

    Subscribe anew without a token, and read the cells for what was missed.
    """


class ServerFailed(OnhandError):  # noqa: N818
    """Any other gRPC error; `code` is its name, like `INTERNAL`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def is_retryable(error: grpc.aio.AioRpcError) -> bool:
    """Whether another attempt may fare better. A message that is too large stays too large."""
    return error.code() in RETRYABLE and _TOO_LARGE not in (error.details() or "")


def translate(error: grpc.aio.AioRpcError, where: str) -> OnhandError:
    """Make this module's error of gRPC's; `where` is the address that was called."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgument(details, _violations(error))
    if _TOO_LARGE in details:
        return InvalidArgument(details, (Violation("request", details),))
    told = f"{where}: {code.name}: {details}"
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return FailedPrecondition(told)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(told)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(told)
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return EventsGone(told)
    if code in RETRYABLE:
        return Unavailable(told)
    return ServerFailed(told, code.name)


def _violations(error: grpc.aio.AioRpcError) -> tuple[Violation, ...]:
    """The field violations in a rich error (google.rpc.BadRequest), if it is one."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad):
                    return tuple(
                        Violation(each.field, each.description) for each in bad.field_violations
                    )
    return ()
