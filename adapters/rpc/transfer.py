"""Transfers: from their messages to `actors.transfers`, and back. Only a gateway serves them."""

import hashlib
import struct
from collections.abc import Collection
from typing import Any, Final

import numpy as np

from actors import transfers
from actors.router import Router
from adapters.rpc import replies, texts
from adapters.rpc.facts import check_expected_at
from adapters.rpc.requests import (
    InvalidField,
    Line,
    check_count,
    check_id,
    facts,
    known_location,
    linked,
    location_hint,
    many,
    of_parts,
    one,
    sku_id,
)
from engine import limits, operations
from engine.catalogue import Catalogue
from engine.operations import Flag, Kind, id_to_pair
from engine.views import Hold, Incoming
from onhand.v1 import common_pb2, transfer_pb2, transfer_pb2_grpc

_Reply = common_pb2.OperationReply
_SHIPMENT: Final = struct.Struct("<8sIq")


class TransfersServicer(transfer_pb2_grpc.TransfersServicer):
    """Each method: message to request, request to its flow, answer to message."""

    def __init__(self, router: Router, catalogue: Catalogue) -> None:
        self._router = router
        self._catalogue = catalogue

    async def Request(self, request: transfer_pb2.TransferRequest, context: Any) -> _Reply:
        """Commit stock of the source."""
        source, destination = self._ends(request)
        lines = self._lines(request.op_id, source, request.lines)
        flags = linked(len(lines)) | np.uint8(Flag.COMMIT_NOW)
        ttl_ms = limits.DEFAULT_TTL_MS  # between two shards it is held before it is committed
        operation = many(request.op_id, Kind.RESERVE, lines, flags=flags, value=ttl_ms)
        operation.digest = _digest(operation, destination)
        shard, answer = await self._router.reserve(operation)
        reply = replies.operation(shard, answer)
        if not reply.status:
            reply.hold_id = request.op_id
            await transfers.is_to(self._router, request.op_id, destination)
        return reply

    async def Ship(self, request: transfer_pb2.ShipRequest, context: Any) -> _Reply:
        """Hand goods over at the source, and expect them at the destination."""
        check_id("transfer_id", request.transfer_id)
        source, destination = self._ends(request)
        expected_at_ms = check_expected_at(request.expected_at_ms)
        await self._check_destination(request.transfer_id, destination)
        lines = self._lines(request.op_id, source, request.lines)
        hold, moment = id_to_pair(request.transfer_id), request.occurred_at_ns
        operation = of_parts(Kind.FULFIL, request.op_id, hold, lines, occurred_at_ns=moment)
        operation.digest = _digest(operation, destination, expected_at_ms)
        answered = await transfers.ship(self._router, operation, destination, expected_at_ms)
        return replies.operation(*answered, texts.SHIPPING)

    async def Receive(self, request: transfer_pb2.ReceiveTransferRequest, context: Any) -> _Reply:
        """Take goods in at the destination."""
        check_id("transfer_id", request.transfer_id)
        destination = self._known("destination", request.destination)
        lines = self._lines(request.op_id, destination, request.lines)
        operation = facts(
            request.op_id,
            Kind.RECEIVE,
            lines,
            occurred_at_ns=request.occurred_at_ns,
            holds=[id_to_pair(request.transfer_id)] * len(lines),
        )
        answered = await transfers.receive(self._router, operation)
        return replies.operation(*answered, texts.ARRIVING)

    async def Cancel(self, request: transfer_pb2.CancelTransferRequest, context: Any) -> _Reply:
        """Cancel what was not shipped."""
        operation, source = self._on_parts(
            Kind.CANCEL, request, self._known("source", request.source)
        )
        answered = await self._router.on_hold(operation, source)
        return replies.operation(*answered, texts.SHIPPING)

    async def Lose(self, request: transfer_pb2.LoseTransferRequest, context: Any) -> _Reply:
        """Close what will not come."""
        operation, _ = self._on_parts(
            Kind.CANCEL_INCOMING, request, self._known("destination", request.destination)
        )
        answered = await transfers.lose(self._router, operation)
        return replies.operation(*answered, texts.ARRIVING)

    async def Get(
        self, request: transfer_pb2.GetTransferRequest, context: Any
    ) -> transfer_pb2.Transfer:
        """Look a transfer up."""
        check_id("transfer_id", request.transfer_id)
        source = location_hint("source", request.source, self._catalogue)
        destination = location_hint("destination", request.destination, self._catalogue)
        found = await transfers.look_up(self._router, request.transfer_id, source, destination)
        return _transfer(request.transfer_id, *found, self._catalogue)

    def _ends(
        self, message: transfer_pb2.TransferRequest | transfer_pb2.ShipRequest
    ) -> tuple[int, int]:
        """Where a transfer is from, and where to: two places of the catalogue."""
        source = self._known("source", message.source)
        destination = self._known("destination", message.destination)
        if source == destination:
            raise InvalidField("destination", "the same as source")
        return source, destination

    async def _check_destination(self, transfer_id: bytes, destination: int) -> None:
        """Refuse what is not where a transfer goes: goods would be on their way to two places."""
        known = await transfers.destination_of(self._router, transfer_id)
        if known not in (0, destination):
            code = self._catalogue.location(known).code
            raise InvalidField("destination", f"the transfer goes to {code}")

    def _known(self, field: str, location: common_pb2.Location) -> int:
        return known_location(field, location, self._catalogue)

    def _lines(
        self, op_id: bytes, at: int, lines: Collection[transfer_pb2.TransferLine]
    ) -> list[Line]:
        check_id("op_id", op_id)
        check_count("lines", len(lines))
        found = []
        for number, line in enumerate(lines):
            sku = sku_id(f"lines[{number}].sku", line.sku, self._catalogue)
            if self._catalogue.components(sku):
                raise InvalidField(f"lines[{number}].sku", "is a bundle: name its components")
            found.append((sku, at, line.quantity))
        return found

    def _on_parts(
        self,
        kind: Kind,
        message: transfer_pb2.CancelTransferRequest | transfer_pb2.LoseTransferRequest,
        at: int,
    ) -> tuple[operations.Request, int]:
        """A call on all of a transfer at one of its ends, or on lines of it; and where that is."""
        check_id("op_id", message.op_id)
        check_id("transfer_id", message.transfer_id)
        hold = id_to_pair(message.transfer_id)
        if not message.lines:
            return one(message.op_id, kind, 0, at, 0, hold=hold), at
        lines = self._lines(message.op_id, at, message.lines)
        return of_parts(kind, message.op_id, hold, lines), at


def _digest(operation: operations.Request, destination: int, expected_at_ms: int = 0) -> bytes:
    """The digest of all that a message says, where its first step does not say all of it."""
    packed = _SHIPMENT.pack(operation.digest, destination, expected_at_ms)
    return hashlib.blake2b(packed, digest_size=8).digest()


def _transfer(
    transfer_id: bytes, hold: Hold | None, records: Collection[Incoming], catalogue: Catalogue
) -> transfer_pb2.Transfer:
    """A transfer as it stands, SKU by SKU."""
    reply = transfer_pb2.Transfer(transfer_id=transfer_id, found=hold is not None)
    lines: dict[int, transfer_pb2.TransferLineState] = {}
    for ordered in hold.lines if hold else ():
        line = lines.setdefault(ordered.sku, transfer_pb2.TransferLineState())
        line.requested += ordered.pending + ordered.committed + ordered.fulfilled
        line.shipped += ordered.fulfilled
    dates = []
    for record in records:
        for coming in record.lines:
            line = lines.setdefault(coming.sku, transfer_pb2.TransferLineState())
            line.in_transit += coming.outstanding
            line.received += coming.received
        if any(coming.outstanding for coming in record.lines) and record.expected_at_ns:
            dates.append(record.expected_at_ns)
    for sku, line in lines.items():
        line.sku.CopyFrom(replies.named_sku(sku, catalogue))
        line.difference = line.received + line.in_transit - line.shipped
        reply.lines.append(line)
    reply.expected_at_ms = min(dates, default=0) // limits.NS_PER_MS
    return reply
