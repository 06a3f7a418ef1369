"""Stock: holds on it, facts about it, and the columnar batch."""

from typing import Any

from actors.router import Router
from adapters.rpc import bundles, errors, facts, replies, requests, texts
from adapters.rpc.texts import Texts
from adapters.rpc.unary import UnaryRouter
from engine.catalogue import Catalogue
from engine.operations import Kind, Request
from engine.status import MESSAGES, Status
from onhand.v1 import common_pb2, stock_pb2, stock_pb2_grpc

_Reply = common_pb2.OperationReply


class StockServicer(stock_pb2_grpc.StockServicer):
    """Each method: message to request, request to router, answer to message.

    Lines of single calls may be of bundles or other shards, and go through `_lines`, which knows them.
    What they raise (InvalidField, Overloaded, Unavailable) becomes a gRPC status in
    `adapters.rpc.server`, where it stands once for all services.
    """

    def __init__(self, router: Router, catalogue: Catalogue) -> None:
        self._router = router
        self._lines = UnaryRouter(router, catalogue)
        self._catalogue = catalogue

    async def Submit(self, request: stock_pb2.SubmitRequest, context: Any) -> stock_pb2.SubmitReply:
        """Apply a batch of columns."""
        operation = requests.submit(request)
        bundles.refuse_in_batch(operation, self._catalogue)
        return replies.submitted(*await self._router.submit(operation))

    async def Reserve(self, request: stock_pb2.ReserveRequest, context: Any) -> _Reply:
        """Hold stock for a while; all lines or none."""
        shard, answer = await self._lines.reserve(requests.reserve(request, self._catalogue))
        return replies.reserved(shard, answer, request)

    async def Extend(self, request: stock_pb2.ExtendRequest, context: Any) -> _Reply:
        """Give a pending hold more time."""
        operation, location = requests.extend(request, self._catalogue)
        shard, answer = await self._router.on_hold(operation, location)
        return replies.extended(shard, answer, request.ttl_ms)

    async def Move(self, request: stock_pb2.MoveRequest, context: Any) -> _Reply:
        """Hold the same at another location instead."""
        operation = requests.move(request, self._catalogue)
        told = texts.MOVE_IN_CHANNEL if request.channel else texts.MOVE
        return replies.operation(*await self._lines.move(operation), told)

    async def Commit(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Post a hold to an order."""
        return await self._on_hold(Kind.COMMIT, request)

    async def Release(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Give up a pending hold."""
        return await self._on_hold(Kind.RELEASE, request)

    async def Fulfil(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Hand committed stock over."""
        return await self._on_hold(Kind.FULFIL, request)

    async def Unfulfil(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Take a handover back that failed."""
        return await self._on_hold(Kind.UNFULFIL, request)

    async def Cancel(self, request: stock_pb2.HoldRequest, context: Any) -> _Reply:
        """Cancel what is committed and not handed over."""
        return await self._on_hold(Kind.CANCEL, request)

    async def Sale(self, request: stock_pb2.SaleRequest, context: Any) -> _Reply:
        """Record that goods left through the till."""
        operation, ids = facts.sale(request, self._catalogue)
        return replies.sold(*await self._lines.submit(operation), ids)

    async def Return(self, request: stock_pb2.ReturnRequest, context: Any) -> _Reply:
        """Record that goods came back."""
        operation, sold_at = facts.returned(request, self._catalogue)
        answered = await self._lines.returned(operation, sold_at)
        return replies.operation(*answered, texts.RETURN)

    async def Exchange(self, request: stock_pb2.ExchangeRequest, context: Any) -> _Reply:
        """Record that goods came back, and hold others in their place; both or neither."""
        operation, sold_at = facts.exchange(request, self._catalogue)
        shard, answer = await self._lines.exchange(operation, sold_at, len(request.returns))
        return replies.exchanged(shard, answer, request)

    async def Receive(self, request: stock_pb2.ReceiveRequest, context: Any) -> _Reply:
        """Record that goods arrived."""
        return await self._record(facts.receive(request, self._catalogue), texts.INCOMING)

    async def Adjust(self, request: stock_pb2.AdjustRequest, context: Any) -> _Reply:
        """Record a relative correction."""
        return await self._record(facts.adjust(request, self._catalogue))

    async def Count(self, request: stock_pb2.CountRequest, context: Any) -> _Reply:
        """Record a physical count."""
        moment = request.occurred_at_ns
        operation = requests.of_cells(Kind.COUNT, request, self._catalogue, moment)
        return await self._record(operation)

    async def Inspect(self, request: stock_pb2.InspectRequest, context: Any) -> _Reply:
        """Record the outcome of quality control."""
        return await self._record(facts.inspect(request, self._catalogue))

    async def WriteOff(self, request: stock_pb2.WriteOffRequest, context: Any) -> _Reply:
        """Record that goods are gone."""
        return await self._record(facts.write_off(request, self._catalogue))

    async def SetSafetyStock(self, request: stock_pb2.LinesRequest, context: Any) -> _Reply:
        """Keep stock back from sale."""
        operation = requests.of_cells(Kind.SET_SAFETY_STOCK, request, self._catalogue)
        return await self._record(operation)

    async def GetHold(self, request: stock_pb2.GetHoldRequest, context: Any) -> stock_pb2.Hold:
        """Look a hold up."""
        requests.check_id("hold_id", request.hold_id)
        hint = requests.location_hint("location", request.location, self._catalogue)
        found = await self._lines.hold(request.hold_id, hint)
        return replies.hold(request.hold_id, found, self._catalogue)

    async def GetHistory(
        self, request: stock_pb2.GetHoldRequest, context: Any
    ) -> stock_pb2.History:
        """Look a hold up with every operation on it."""
        hold_id = request.hold_id
        requests.check_id("hold_id", hold_id)
        hint = requests.location_hint("location", request.location, self._catalogue)
        hold, found = await self._lines.history(hold_id, hint)
        return replies.history(hold_id, hold, found, self._catalogue)

    async def Expect(self, request: stock_pb2.ExpectRequest, context: Any) -> _Reply:
        """Tell that goods are on their way."""
        return await self._record(facts.expect(request, self._catalogue), texts.INCOMING)

    async def CancelIncoming(
        self, request: stock_pb2.CancelIncomingRequest, context: Any
    ) -> _Reply:
        """Tell that goods will not come."""
        operation, location = requests.on_hold(Kind.CANCEL_INCOMING, request, self._catalogue)
        answered = await self._lines.on_hold(operation, location)
        return replies.operation(*answered, texts.INCOMING)

    async def GetIncoming(
        self, request: stock_pb2.GetIncomingRequest, context: Any
    ) -> stock_pb2.Incoming:
        """Look up what is on its way."""
        requests.check_id("incoming_id", request.incoming_id)
        hint = requests.location_hint("location", request.location, self._catalogue)
        found = await self._router.incoming(request.incoming_id, hint)
        return replies.incoming(request.incoming_id, found, self._catalogue)

    async def ListIncoming(
        self, request: stock_pb2.ListIncomingRequest, context: Any
    ) -> stock_pb2.ListIncomingReply:
        """Tell what cells have on its way, with its dates."""
        cells = requests.cells(request, self._catalogue)
        for i in self._router.elsewhere(cells):
            # What is not in the catalogue has nothing on its way, wherever it is asked for.
            if 1 <= cells[i][1] <= self._catalogue.locations:
                told = f"cells[{i}]: {MESSAGES[Status.WRONG_SHARD]}"
                await errors.failed_precondition(context, told)
        return replies.dated(await self._router.incoming_of(cells), self._catalogue)

    async def _on_hold(self, kind: Kind, message: stock_pb2.HoldRequest) -> _Reply:
        operation, location = requests.on_hold(kind, message, self._catalogue)
        answered = await self._lines.on_hold(operation, location)
        told = texts.COMMIT_IN_CHANNEL if message.channel else texts.ON_HOLD[kind]
        return replies.operation(*answered, told)

    async def _record(self, operation: Request, told: Texts = texts.GENERAL) -> _Reply:
        return replies.operation(*await self._lines.submit(operation), told)
