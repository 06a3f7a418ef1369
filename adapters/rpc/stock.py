"""Stock: holds on it, facts about it, and the columnar batch."""

from typing import Any

from actors.router import Router
from adapters.rpc import replies, requests
from engine.catalogue import Catalogue
from engine.operations import Kind
from onhand.v1 import common_pb2, stock_pb2, stock_pb2_grpc

_Reply = common_pb2.OperationReply


class StockServicer(stock_pb2_grpc.StockServicer):
    """Each method: message to request, request to router, answer to message.

    What they raise (InvalidField, Overloaded, Unavailable) becomes a gRPC status in
    `adapters.rpc.server`, where it stands once for all services.
    """

    def __init__(self, router: Router, catalogue: Catalogue) -> None:
        self._router = router
        self._catalogue = catalogue

    async def Submit(self, request: stock_pb2.SubmitRequest, context: Any) -> stock_pb2.SubmitReply:
        """Apply a batch of columns."""
        return replies.submitted(*await self._router.submit(requests.submit(request)))

    async def Reserve(self, request: stock_pb2.ReserveRequest, context: Any) -> _Reply:
        """Hold stock for a while; all lines or none."""
        shard, answer = await self._router.reserve(requests.reserve(request, self._catalogue))
        return replies.reserved(shard, answer, request.op_id, request.ttl_ms)

    async def Commit(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Post a hold to an order."""
        return await self._on_hold(Kind.COMMIT, request)

    async def Release(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Give up a pending hold."""
        return await self._on_hold(Kind.RELEASE, request)

    async def Fulfil(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Hand committed stock over."""
        return await self._on_hold(Kind.FULFIL, request)

    async def Cancel(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Cancel what is committed and not handed over."""
        return await self._on_hold(Kind.CANCEL, request)

    async def Sale(self, request: stock_pb2.LinesRequest, context: Any) -> _Reply:
        """Record that goods left through the till."""
        return await self._of_cells(Kind.SALE, request)

    async def Return(self, request: stock_pb2.ReturnRequest, context: Any) -> _Reply:
        """Record that goods came back."""
        operation = requests.returned(request, self._catalogue)
        return replies.operation(*await self._router.submit(operation))

    async def Receive(self, request: stock_pb2.LinesRequest, context: Any) -> _Reply:
        """Record that goods arrived."""
        return await self._of_cells(Kind.RECEIVE, request)

    async def Adjust(self, request: stock_pb2.AdjustRequest, context: Any) -> _Reply:
        """Record a relative correction."""
        operation = requests.adjust(request, self._catalogue)
        return replies.operation(*await self._router.submit(operation))

    async def Count(self, request: stock_pb2.LinesRequest, context: Any) -> _Reply:
        """Record a physical count."""
        return await self._of_cells(Kind.COUNT, request)

    async def SetSafetyStock(self, request: stock_pb2.LinesRequest, context: Any) -> _Reply:
        """Keep stock back from sale."""
        return await self._of_cells(Kind.SET_SAFETY_STOCK, request)

    async def GetHold(self, request: stock_pb2.GetHoldRequest, context: Any) -> stock_pb2.Hold:
        """Look a hold up."""
        requests.check_id("hold_id", request.hold_id)
        hint = requests.location_hint(request.location, self._catalogue)
        return replies.hold(request.hold_id, await self._router.hold(request.hold_id, hint))

    async def GetHistory(
        self, request: stock_pb2.GetHoldRequest, context: Any
    ) -> stock_pb2.History:
        """Look a hold up with every operation on it."""
        hold_id = request.hold_id
        requests.check_id("hold_id", hold_id)
        hint = requests.location_hint(request.location, self._catalogue)
        found = await self._router.history(hold_id, hint)
        return replies.history(hold_id, await self._router.hold(hold_id, hint), found)

    async def _on_hold(self, kind: Kind, message: stock_pb2.HoldRequest) -> _Reply:
        operation, location = requests.on_hold(kind, message, self._catalogue)
        return replies.operation(*await self._router.on_hold(operation, location))

    async def _of_cells(self, kind: Kind, message: stock_pb2.LinesRequest) -> _Reply:
        operation = requests.of_cells(kind, message, self._catalogue)
        return replies.operation(*await self._router.submit(operation))
