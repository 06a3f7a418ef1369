"""The Python client of Onhand: async, typed, and direct to the shard that owns a location.

    async with Client.connect("127.0.0.1:50051") as client:
        held = await client.reserve([("SKU-1", "S0001", 2)], ttl_ms=60_000)
        if held.ok:
            await client.commit(held)
        else:
            print(held.status, held.message)

It needs grpcio, protobuf and numpy, the contract (`onhand.v1`) and the engine's words; it must not
know Ray, Redis or any servicer.
"""

from adapters.client.batches import Batch
from adapters.client.client import Client
from adapters.client.errors import (
    EventsGone,
    FailedPrecondition,
    InvalidArgument,
    OnhandError,
    Overloaded,
    ServerFailed,
    TimedOut,
    Unavailable,
    Violation,
)
from adapters.client.frames import Event, EventFrame, EventKind, Frame, Shortage
from adapters.client.ids import new_batch_id, new_op_id, op_id_of
from adapters.client.values import (
    BatchResult,
    Bucket,
    Cell,
    CellPage,
    Channel,
    DatedIncoming,
    Endangered,
    History,
    Hold,
    HoldEvent,
    HoldLine,
    Incoming,
    IncomingLine,
    InspectLine,
    Line,
    LineResult,
    Location,
    Price,
    PriceLine,
    ReceiptLine,
    Result,
    ReturnLine,
    Sku,
    Transfer,
    TransferLine,
)
from engine.frames import Fields, FrameKind
from engine.operations import Disposition, Flag, Kind
from engine.status import Status
from engine.views import HoldState

__all__ = [
    "Batch",
    "BatchResult",
    "Bucket",
    "Cell",
    "CellPage",
    "Channel",
    "Client",
    "DatedIncoming",
    "Disposition",
    "Endangered",
    "Event",
    "EventFrame",
    "EventKind",
    "EventsGone",
    "FailedPrecondition",
    "Fields",
    "Flag",
    "Frame",
    "FrameKind",
    "History",
    "Hold",
    "HoldEvent",
    "HoldLine",
    "HoldState",
    "Incoming",
    "IncomingLine",
    "InspectLine",
    "InvalidArgument",
    "Kind",
    "Line",
    "LineResult",
    "Location",
    "OnhandError",
    "Overloaded",
    "Price",
    "PriceLine",
    "ReceiptLine",
    "Result",
    "ReturnLine",
    "ServerFailed",
    "Shortage",
    "Sku",
    "Status",
    "TimedOut",
    "Transfer",
    "TransferLine",
    "Unavailable",
    "Violation",
    "new_batch_id",
    "new_op_id",
    "op_id_of",
]
