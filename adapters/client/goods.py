"""The client's part about goods: what moved, what was counted, what is on its way."""

from collections.abc import Sequence

from adapters.client import messages
from adapters.client.ids import id_of
from adapters.client.operations import NamedCell, Operations, named, of_any_sku
from adapters.client.values import (
    Bucket,
    DatedIncoming,
    Incoming,
    InspectLine,
    Lines,
    Name,
    ReceiptLine,
    Result,
    ReturnLine,
)
from onhand.v1 import stock_pb2


class Goods(Operations):
    """Facts, and what is expected.

    `occurred_at_ns`: when the goods moved, ns since 1970, for facts that are told late; 0 is now.
    """

    async def sale(
        self,
        lines: Lines,
        *,
        receipt_lines: Sequence[ReceiptLine] = (),
        occurred_at_ns: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Record that goods left through the till.

        `receipt_lines`, one for each line, name the sales for good: one that was recorded before
        answers ALREADY_RECORDED and has no second effect, whatever op_id it comes with.
        """
        request = stock_pb2.SaleRequest(
            op_id=id_of(op_id),
            lines=messages.lines_of(lines),
            occurred_at_ns=occurred_at_ns,
            receipt_lines=[messages.receipt_line_of(*each) for each in receipt_lines],
        )
        return await self._operate(lambda peer: peer.stock.Sale, request, of_any_sku(lines))

    async def return_(
        self,
        lines: Sequence[ReturnLine],
        *,
        occurred_at_ns: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Record that goods came back, each line blind or against what was handed over."""
        request = stock_pb2.ReturnRequest(
            op_id=id_of(op_id),
            lines=[messages.return_line_of(line) for line in lines],
            occurred_at_ns=occurred_at_ns,
        )
        return await self._operate(lambda peer: peer.stock.Return, request, _both_ends(lines))

    async def exchange(
        self,
        returns: Sequence[ReturnLine],
        lines: Lines,
        *,
        ttl_ms: int | None = None,
        channel: str = "",
        commit_now: bool = False,
        occurred_at_ns: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Record that goods came back and hold others in their place; both, or neither.

        The goods that came back count for what is held.
        """
        request = stock_pb2.ExchangeRequest(
            op_id=id_of(op_id),
            returns=[messages.return_line_of(line) for line in returns],
            lines=messages.lines_of(lines),
            ttl_ms=ttl_ms or 0,
            channel=channel,
            commit_now=commit_now,
            occurred_at_ns=occurred_at_ns,
        )
        ends = _both_ends(returns)
        cells = [*ends, *of_any_sku(lines)] if ends else []
        return await self._operate(lambda peer: peer.stock.Exchange, request, cells)

    async def receive(
        self,
        lines: Lines,
        *,
        incoming_id: bytes = b"",
        occurred_at_ns: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Record that goods arrived, of what was expected as `incoming_id` if that is given."""
        request = stock_pb2.ReceiveRequest(
            op_id=id_of(op_id),
            lines=messages.lines_of(lines),
            occurred_at_ns=occurred_at_ns,
            incoming_id=incoming_id,
        )
        return await self._operate(lambda peer: peer.stock.Receive, request, lines)

    async def adjust(
        self, lines: Lines, *, reason: int, occurred_at_ns: int = 0, op_id: bytes | None = None
    ) -> Result:
        """Correct by quantities that may be negative, for a reason code of the caller's."""
        request = stock_pb2.AdjustRequest(
            op_id=id_of(op_id),
            lines=messages.lines_of(lines),
            reason=reason,
            occurred_at_ns=occurred_at_ns,
        )
        return await self._operate(lambda peer: peer.stock.Adjust, request, lines)

    async def count(
        self, lines: Lines, *, occurred_at_ns: int = 0, op_id: bytes | None = None
    ) -> Result:
        """Record a physical count: on_hand becomes the quantity, as of the count's moment."""
        request = stock_pb2.CountRequest(
            op_id=id_of(op_id), lines=messages.lines_of(lines), occurred_at_ns=occurred_at_ns
        )
        return await self._operate(lambda peer: peer.stock.Count, request, lines)

    async def inspect(self, lines: Sequence[InspectLine], *, op_id: bytes | None = None) -> Result:
        """Record what became of goods in quality control: back on the shelf, or damaged."""
        request = stock_pb2.InspectRequest(
            op_id=id_of(op_id), lines=[messages.inspect_line_of(*line) for line in lines]
        )
        return await self._operate(lambda peer: peer.stock.Inspect, request, lines)

    async def write_off(
        self,
        lines: Lines,
        *,
        reason: int,
        bucket: Bucket = Bucket.SELLABLE,
        occurred_at_ns: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Record that goods are gone for good, for a reason code of the caller's."""
        request = stock_pb2.WriteOffRequest(
            op_id=id_of(op_id),
            lines=messages.lines_of(lines),
            reason=reason,
            bucket=stock_pb2.Bucket.ValueType(bucket),
            occurred_at_ns=occurred_at_ns,
        )
        return await self._operate(lambda peer: peer.stock.WriteOff, request, lines)

    async def set_safety_stock(self, lines: Lines, *, op_id: bytes | None = None) -> Result:
        """Keep stock back from sale: safety_stock becomes the quantity."""
        request = stock_pb2.LinesRequest(op_id=id_of(op_id), lines=messages.lines_of(lines))
        return await self._operate(lambda peer: peer.stock.SetSafetyStock, request, lines)

    async def expect(
        self,
        lines: Lines,
        *,
        incoming_id: bytes = b"",
        expected_at_ms: int = 0,
        op_id: bytes | None = None,
    ) -> Result:
        """Tell that goods are on their way: incoming rises.

        `incoming_id` is the record (a purchase order, say) that the lines go to; without it, a new
        one whose id is the Result's `op_id`. `expected_at_ms`: ms since 1970; 0 is not known.
        """
        request = stock_pb2.ExpectRequest(
            op_id=id_of(op_id),
            lines=messages.lines_of(lines),
            incoming_id=incoming_id,
            expected_at_ms=expected_at_ms,
        )
        return await self._operate(lambda peer: peer.stock.Expect, request, lines)

    async def cancel_incoming(
        self,
        incoming_id: bytes,
        lines: Lines = (),
        *,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Tell that what is outstanding of a record, or parts of it, will not come."""
        request = stock_pb2.CancelIncomingRequest(
            op_id=id_of(op_id),
            incoming_id=incoming_id,
            lines=messages.lines_of(lines),
            location=messages.location_of(location),
        )
        cells = list(lines) or named(location)
        return await self._operate(lambda peer: peer.stock.CancelIncoming, request, cells)

    async def get_incoming(
        self, incoming_id: bytes, *, location: Name | None = None
    ) -> Incoming | None:
        """Look up what is on its way; None when there is no such record, or it is long over."""
        request = stock_pb2.GetIncomingRequest(
            incoming_id=incoming_id, location=messages.location_of(location)
        )
        shard = await self._owner(named(location))
        found = await self._caller.call(lambda peer: peer.stock.GetIncoming, request, shard)
        return messages.incoming_from(found)

    async def list_incoming(self, names: Sequence[tuple[Name, Name]]) -> list[DatedIncoming]:
        """Tell what cells (SKU, location) have on their way, by location, SKU and date."""
        request = stock_pb2.ListIncomingRequest(
            cells=[messages.cell_name_of(*name) for name in names]
        )
        shard = await self._owner(names)
        found = await self._caller.call(lambda peer: peer.stock.ListIncoming, request, shard)
        return messages.dated_from(found)


def _both_ends(lines: Sequence[ReturnLine]) -> list[NamedCell]:
    """Where goods came back, and where they were handed over; none when that is not known."""
    cells: list[NamedCell] = []
    for given in lines:
        line = ReturnLine(*given)
        cells.append((0, line.location))  # as `of_any_sku` has it
        if line.sold_at is not None:
            cells.append((0, line.sold_at))
        elif isinstance(line.against, bytes) and line.against:
            return []
    return cells
