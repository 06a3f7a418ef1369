"""How a servicer says that nothing was judged: gRPC errors, with rich details where they help.

A refusal of an operation is a Status in a reply, never one of these.
"""

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

Context = grpc.aio.ServicerContext[Any, Any]


async def invalid_argument(context: Context, field: str, description: str) -> NoReturn:
    """End the call: a field of the request is malformed or beyond a limit.

    `field` is its path in the request, like `skus[3].code`; `description` says what is wrong and
    names the limit. Both are repeated in a google.rpc.BadRequest for machines, so keep them short.
    """
    details = any_pb2.Any()
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    details.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT, message=f"{field}: {description}", details=[details]
    )
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


async def failed_precondition(context: Context, message: str) -> NoReturn:
    """End the call: not here, or not in this state; sending it again as it is does not help."""
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)


async def resource_exhausted(context: Context, message: str) -> NoReturn:
    """End the call: a queue or a budget is full, and nothing was judged."""
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


async def unavailable(context: Context, message: str) -> NoReturn:
    """End the call: send it again later, with the same op_id; whether it was applied is unknown."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, message)
