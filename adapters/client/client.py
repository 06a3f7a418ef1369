"""The client: what Onhand does, as methods. It asks; who answers is decided in `calls`."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Self

from adapters.client import batches, messages, subscription
from adapters.client.batches import Batch
from adapters.client.calls import DEFAULT_TIMEOUT_S, Caller
from adapters.client.operations import Operations, hold_id_of, hold_request, id_of, named, place_of
from adapters.client.values import (
    BatchResult,
    Cell,
    CellPage,
    Fields,
    Frame,
    History,
    Hold,
    Lines,
    Name,
    Price,
    PriceLine,
    Result,
    ReturnLine,
)
from onhand.v1 import availability_pb2, deltas_pb2, price_pb2, stock_pb2


class Client(Operations):
    """A connection to Onhand: `async with Client.connect("127.0.0.1:50051") as client`.

    All operations take an `op_id` of 16 bytes and make a fresh one when there is none; to repeat an
    operation, also in another process, give the id again. What the servers answer is a `Result`,
    refused or not. What keeps them from answering is raised: InvalidArgument, Unavailable once the
    retries have used up `timeout_s`, ServerFailed. A wrong argument that is seen here is a
    ValueError. Belongs to one event loop; any number of its calls may be under way at once.
    """

    @classmethod
    def connect(
        cls, gateway: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, direct: bool = True
    ) -> Self:
        """Describe a connection by a gateway's `host:port`; entering it fetches the shard map.

        `timeout_s` bounds each operation with all its retries. Without `direct`, everything goes by
        the gateway, for clients that cannot reach the shards' own ports.
        """
        return cls(Caller(gateway, timeout_s=timeout_s, direct=direct))

    async def __aenter__(self) -> Self:
        try:
            await self._caller.start()
        except BaseException:
            await self._caller.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls under way fail."""
        await self._caller.close()

    # ---------------------------------------------------------------------------------- holds ----

    async def reserve(
        self, lines: Lines, *, ttl_ms: int | None = None, op_id: bytes | None = None
    ) -> Result:
        """Hold all lines for a while, or none; the servers' default when `ttl_ms` is None."""
        request = stock_pb2.ReserveRequest(
            op_id=id_of(op_id), lines=messages.lines_of(lines), ttl_ms=ttl_ms or 0
        )
        return await self._operate(lambda peer: peer.stock.Reserve, request, lines)

    async def commit(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        release_rest: bool = False,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Post a hold, or the parts of it that `lines` name, to an order.

        `hold` is the Result of the reserve, or its id; with an id alone, a `location` of the hold
        spares the servers a search.
        """
        request = hold_request(hold, lines, location, op_id)
        request.release_rest = release_rest
        return await self._on_hold(lambda peer: peer.stock.Commit, request, hold, lines, location)

    async def release(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Give up what is pending of a hold, or parts of it."""
        request = hold_request(hold, lines, location, op_id)
        return await self._on_hold(lambda peer: peer.stock.Release, request, hold, lines, location)

    async def fulfil(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Hand over what is committed of a hold, or parts of it: it leaves on_hand."""
        request = hold_request(hold, lines, location, op_id)
        return await self._on_hold(lambda peer: peer.stock.Fulfil, request, hold, lines, location)

    async def cancel(
        self,
        hold: bytes | Result,
        lines: Lines = (),
        *,
        location: Name | None = None,
        op_id: bytes | None = None,
    ) -> Result:
        """Cancel what is committed and not handed over, or parts of it: it is available again."""
        request = hold_request(hold, lines, location, op_id)
        return await self._on_hold(lambda peer: peer.stock.Cancel, request, hold, lines, location)

    async def get_hold(self, hold: bytes | Result, *, location: Name | None = None) -> Hold | None:
        """Look a hold up; None when there is none, or it was resolved too long ago."""
        place = place_of(hold, (), location)
        request = stock_pb2.GetHoldRequest(
            hold_id=hold_id_of(hold), location=messages.location_of(place)
        )
        shard = await self._owner(named(place))
        found = await self._caller.call(lambda peer: peer.stock.GetHold, request, shard)
        return messages.hold_from(found)

    async def get_history(self, hold: bytes | Result, *, location: Name | None = None) -> History:
        """Look a hold up with every operation on it, as far back as the journal is kept."""
        place = place_of(hold, (), location)
        request = stock_pb2.GetHoldRequest(
            hold_id=hold_id_of(hold), location=messages.location_of(place)
        )
        shard = await self._owner(named(place))
        found = await self._caller.call(lambda peer: peer.stock.GetHistory, request, shard)
        return messages.history_from(found)

    # ---------------------------------------------------------------------------------- facts ----

    async def sale(self, lines: Lines, *, op_id: bytes | None = None) -> Result:
        """Record that goods left through the till."""
        return await self._record(lambda peer: peer.stock.Sale, lines, op_id)

    async def return_(self, lines: Sequence[ReturnLine], *, op_id: bytes | None = None) -> Result:
        """Record that goods came back."""
        request = stock_pb2.ReturnRequest(
            op_id=id_of(op_id),
            lines=[
                stock_pb2.ReturnLine(
                    line=messages.line_of(*line[:3]),
                    disposition=stock_pb2.Disposition.ValueType(line.disposition),
                )
                for line in lines
            ],
        )
        return await self._operate(lambda peer: peer.stock.Return, request, lines)

    async def receive(self, lines: Lines, *, op_id: bytes | None = None) -> Result:
        """Record that goods arrived."""
        return await self._record(lambda peer: peer.stock.Receive, lines, op_id)

    async def adjust(self, lines: Lines, *, reason: int, op_id: bytes | None = None) -> Result:
        """Correct by quantities that may be negative, for a reason code of the caller's."""
        request = stock_pb2.AdjustRequest(
            op_id=id_of(op_id), lines=messages.lines_of(lines), reason=reason
        )
        return await self._operate(lambda peer: peer.stock.Adjust, request, lines)

    async def count(self, lines: Lines, *, op_id: bytes | None = None) -> Result:
        """Record a physical count: on_hand becomes the quantity."""
        return await self._record(lambda peer: peer.stock.Count, lines, op_id)

    async def set_safety_stock(self, lines: Lines, *, op_id: bytes | None = None) -> Result:
        """Keep stock back from sale: safety_stock becomes the quantity."""
        return await self._record(lambda peer: peer.stock.SetSafetyStock, lines, op_id)

    async def set_prices(
        self, lines: Sequence[PriceLine], *, currency: str, op_id: bytes | None = None
    ) -> Result:
        """Set prices, in minor units of `currency` (ISO 4217), which must be the locations'."""
        request = price_pb2.SetPriceRequest(
            op_id=id_of(op_id),
            lines=[messages.price_line_of(*line) for line in lines],
            currency=currency,
        )
        return await self._operate(lambda peer: peer.price.SetPrice, request, lines)

    # ---------------------------------------------------------------------------- high volume ----

    async def submit(
        self, batch: Batch, *, op_id: bytes | None = None, want_available: bool = False
    ) -> BatchResult:
        """Send columns of operations; `adapters.client.batches` says how. The way for high volume.

        An `op_id` of one's own has zeros in its last two bytes: `new_batch_id()`.
        """
        return await batches.submit(self._caller, batch, op_id, want_available=want_available)

    # ---------------------------------------------------------------------------------- reads ----

    async def get_cells(
        self, names: Sequence[tuple[Name, Name]], *, channel: str = ""
    ) -> list[Cell]:
        """Look up cells by (SKU, location), in order; those that a channel sees, and may sell.

        The shards themselves are asked, so what one has written is there, unless they are out of
        reach: the gateway's mirror lags by milliseconds.
        """
        shards = [await self._owner([name]) for name in names]
        found: dict[int, Cell] = {}

        async def ask(shard: int) -> None:
            places = [place for place, owner in enumerate(shards) if owner == shard]
            request = availability_pb2.GetCellsRequest(
                cells=[messages.cell_name_of(*names[place]) for place in places], channel=channel
            )
            reply = await self._caller.call(lambda peer: peer.availability.GetCells, request, shard)
            found.update(zip(places, map(messages.cell_from, reply.cells), strict=True))

        await asyncio.gather(*map(ask, dict.fromkeys(shards)))
        return [found[place] for place in range(len(names))]

    async def list_cells(
        self, locations: Iterable[Name] = (), *, channel: str = ""
    ) -> AsyncIterator[CellPage]:
        """Yield every cell of some locations, or of all, as pages of columns.

        With a channel, those where it sells. Not retried: Unavailable means to begin again.
        """
        names = list(locations)
        request = availability_pb2.ListCellsRequest(
            locations=[messages.location_of(name) for name in names], channel=channel
        )
        shard = await self._owner([(0, name) for name in names])
        pages = self._caller.stream(lambda peer: peer.availability.ListCells, request, shard)
        async for page in pages:
            yield messages.page_from(page, of_channel=bool(channel))

    async def get_prices(self, location: Name, skus: Sequence[Name]) -> list[Price]:
        """Look up prices at one location, in order."""
        request = price_pb2.GetPricesRequest(
            location=messages.location_of(location), skus=[messages.sku_of(sku) for sku in skus]
        )
        shard = await self._owner([(sku, location) for sku in skus])
        reply = await self._caller.call(lambda peer: peer.price.GetPrices, request, shard)
        return messages.prices_from(reply)

    def subscribe(
        self,
        *,
        locations: Iterable[Name] = (),
        skus: Iterable[Name] = (),
        resume_token: bytes = b"",
        fields: Fields = Fields.ALL,
        heartbeat_ms: int = 0,
    ) -> AsyncIterator[Frame]:
        """Follow cells, for ever: a snapshot, unless `resume_token` is good, and then deltas.

        A stream that breaks is taken up again from the last token, so a cell may be told twice but
        none is missed; if it breaks within a snapshot, the snapshot begins anew. COMPACTED means to
        forget what one has. Close the iterator (`aclosing`) to end the subscription early.
        """
        request = deltas_pb2.SubscribeRequest(
            locations=[messages.location_of(name) for name in locations],
            skus=[messages.sku_of(name) for name in skus],
            resume_token=resume_token,
            fields=deltas_pb2.Fields.ValueType(fields),
            heartbeat_ms=heartbeat_ms,
        )
        return subscription.follow(self._caller, request)
