"""The client's part about transfers: stock sent from one location to another."""

from collections.abc import Sequence

from adapters.client import messages
from adapters.client.ids import id_of
from adapters.client.operations import Operations
from adapters.client.values import Name, Result, Transfer
from onhand.v1 import transfer_pb2

Quantities = Sequence[tuple[Name, int]]
"""SKUs, each with a quantity in base units."""


class Transfers(Operations):
    """Transfers; the gateway alone serves them. A transfer is named by its id."""

    async def request_transfer(
        self, source: Name, destination: Name, lines: Quantities, *, op_id: bytes | None = None
    ) -> Result:
        """Ask for stock of the source: committed there, all lines or none.

        The Result's `hold_id` is the transfer's id.
        """
        request = transfer_pb2.TransferRequest(
            op_id=id_of(op_id),
            source=messages.location_of(source),
            destination=messages.location_of(destination),
            lines=messages.transfer_lines_of(lines),
        )
        return await self._operate(lambda peer: peer.transfers.Request, request, [])

    async def ship_transfer(
        self,
        transfer_id: bytes,
        source: Name,
        destination: Name,
        lines: Quantities,
        *,
        expected_at_ms: int = 0,
        occurred_at_ns: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Record that goods left the source: they are incoming at the destination.

        `occurred_at_ns`: when they left, ns since 1970, if that is told late; 0 is now.
        """
        request = transfer_pb2.ShipRequest(
            op_id=id_of(op_id),
            transfer_id=transfer_id,
            source=messages.location_of(source),
            destination=messages.location_of(destination),
            lines=messages.transfer_lines_of(lines),
            expected_at_ms=expected_at_ms,
            occurred_at_ns=occurred_at_ns,
        )
        return await self._operate(lambda peer: peer.transfers.Ship, request, [])

    async def receive_transfer(
        self,
        transfer_id: bytes,
        destination: Name,
        lines: Quantities,
        *,
        occurred_at_ns: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Record that goods arrived; more than was shipped is a surplus."""
        request = transfer_pb2.ReceiveTransferRequest(
            op_id=id_of(op_id),
            transfer_id=transfer_id,
            destination=messages.location_of(destination),
            lines=messages.transfer_lines_of(lines),
            occurred_at_ns=occurred_at_ns,
        )
        return await self._operate(lambda peer: peer.transfers.Receive, request, [])

    async def cancel_transfer(
        self,
        transfer_id: bytes,
        source: Name,
        lines: Quantities = (),
        *,
        op_id: bytes | None = None,
    ) -> Result:
        """Cancel what was not shipped, or parts of it: it is available again at the source."""
        request = transfer_pb2.CancelTransferRequest(
            op_id=id_of(op_id),
            transfer_id=transfer_id,
            source=messages.location_of(source),
            lines=messages.transfer_lines_of(lines),
        )
        return await self._operate(lambda peer: peer.transfers.Cancel, request, [])

    async def lose_transfer(
        self,
        transfer_id: bytes,
        destination: Name,
        lines: Quantities = (),
        *,
        op_id: bytes | None = None,
    ) -> Result:
        """Close what is in transit, or parts of it, and will not come."""
        request = transfer_pb2.LoseTransferRequest(
            op_id=id_of(op_id),
            transfer_id=transfer_id,
            destination=messages.location_of(destination),
            lines=messages.transfer_lines_of(lines),
        )
        return await self._operate(lambda peer: peer.transfers.Lose, request, [])

    async def get_transfer(
        self,
        transfer_id: bytes,
        *,
        source: Name | None = None,
        destination: Name | None = None,
    ) -> Transfer | None:
        """Look a transfer up; None when it is not known, or long over."""
        request = transfer_pb2.GetTransferRequest(
            transfer_id=transfer_id,
            source=messages.location_of(source),
            destination=messages.location_of(destination),
        )
        found = await self._caller.call(lambda peer: peer.transfers.Get, request)
        return messages.transfer_from(found)
