"""How the client sends an operation: to the shard that owns its cells, and after it if they move."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import grpc.aio

from adapters.client import messages
from adapters.client.catalog import CatalogCalls
from adapters.client.errors import OnhandError
from adapters.client.ids import id_of
from adapters.client.peers import Peer
from adapters.client.shard_map import NO_SHARD
from adapters.client.values import Lines, Name, Result
from engine.status import Status
from onhand.v1 import common_pb2, stock_pb2

MOVES: Final = 3  # how often an operation is sent elsewhere because its location has moved

Rpc = Callable[[Peer], grpc.aio.UnaryUnaryMultiCallable[Any, common_pb2.OperationReply]]
NamedCell = Sequence[Any]  # (SKU, location) and whatever else stands in a line


class Operations(CatalogCalls):
    """The client's part that the methods of `Client` have in common."""

    async def _on_hold(
        self, rpc: Rpc, request: Any, hold: bytes | Result, lines: Lines, location: Name | None
    ) -> Result:
        """Send an operation on a hold, or on parts of it."""
        cells = of_any_sku(lines) or named(place_of(hold, location))
        return await self._operate(rpc, request, cells)

    async def _operate(
        self, rpc: Rpc, request: Any, cells: Sequence[NamedCell], *, by_gateway: bool = False
    ) -> Result:
        """Send an operation until its cells' owner has answered. Raises OnhandError.

        `by_gateway`: the gateway alone is asked, each time.
        """
        try:
            if by_gateway:
                reply = await self._caller.call(rpc, request)
            else:
                reply = await self._asked(rpc, request, cells)
        except OnhandError as error:
            error.op_id = request.op_id
            raise
        # Where all of it is, or nothing: a call on a hold by one of its locations misses the others.
        is_one_place = len({location for _, location, *_ in cells}) == 1
        place = cells[0][1] if is_one_place or await self._owner(cells) != NO_SHARD else None
        return messages.result_of(request.op_id, reply, place)

    async def _asked(
        self, rpc: Rpc, request: Any, cells: Sequence[NamedCell]
    ) -> common_pb2.OperationReply:
        shard = await self._owner(cells)
        reply = await self._caller.call(rpc, request, shard)
        for _ in range(MOVES):
            if shard == NO_SHARD or not _has_moved(reply):
                break
            await self._caller.refresh()
            # Who has refused will say the same again to the same id; then the gateway may know.
            before, shard = shard, await self._owner(cells)
            shard = NO_SHARD if shard == before else shard
            reply = await self._caller.call(rpc, request, shard)
        return reply

    async def _owner(self, cells: Iterable[NamedCell]) -> int:
        """The one shard that owns all cells; NO_SHARD if it is not one.

        A SKU of 0, or given by its code, says nothing about which part of a split location it is.
        """
        owners = set()
        for sku, location, *_ in cells:
            number = await self._location_id(location)
            sku_id = 0 if isinstance(sku, str) else sku
            owners.add(self._caller.shard_map.shard_of(number, sku_id))
        return owners.pop() if len(owners) == 1 else NO_SHARD


def named(location: Name | None) -> list[NamedCell]:
    """A location as cells, to find its owner; none when it is not given."""
    return [] if location is None else [(0, location)]


def of_any_sku(lines: Iterable[NamedCell]) -> list[NamedCell]:
    """The cells of lines that may name bundles, which the client does not know.

    A bundle's components may be on other shards of a split location than its own id would be.
    """
    return [(0, location) for _, location, *_ in lines]


def hold_id_of(hold: bytes | Result) -> bytes:
    """A hold's id, of the reserve's result or as it is."""
    return hold.hold_id if isinstance(hold, Result) else hold


def place_of(hold: bytes | Result, location: Name | None) -> Name | None:
    """Where all of a hold is, if the caller has told that in any way."""
    if location is not None:
        return location
    return hold.location if isinstance(hold, Result) else None


def hold_request(
    hold: bytes | Result, lines: Lines, location: Name | None, op_id: bytes | None
) -> stock_pb2.HoldRequest:
    """The message of an operation on a hold."""
    return stock_pb2.HoldRequest(
        op_id=id_of(op_id),
        hold_id=hold_id_of(hold),
        lines=messages.lines_of(lines),
        location=messages.location_of(place_of(hold, location)),
    )


def _has_moved(reply: common_pb2.OperationReply) -> bool:
    wrong = int(Status.WRONG_SHARD)
    return reply.status == wrong or any(line.status == wrong for line in reply.lines)
