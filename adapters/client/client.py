"""The client: what Onhand does, as methods. It asks; who answers is decided in `calls`."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from adapters.client import batches, messages, subscription
from adapters.client.batches import Batch
from adapters.client.calls import DEFAULT_TIMEOUT_S, Caller
from adapters.client.frames import EventFrame, Frame
from adapters.client.ids import id_of
from adapters.client.tills import Tills
from adapters.client.transfers import Transfers
from adapters.client.values import BatchResult, Cell, CellPage, Name, Price, PriceLine, Result
from engine.frames import Fields
from onhand.v1 import availability_pb2, deltas_pb2, price_pb2


class Client(Tills, Transfers):
    """A connection to Onhand: `async with Client.connect("127.0.0.1:50051") as client`.

    All operations take an `op_id` of 16 bytes and make a fresh one when there is none; to repeat an
    operation, also in another process, give the id again. What the servers answer is a `Result`,
    refused or not. What keeps them from answering is raised: InvalidArgument, FailedPrecondition,
    Unavailable once the retries have used up `timeout_s`, ServerFailed. A wrong argument that is
    seen here is a ValueError. Belongs to one event loop; any number of its calls may be under way
    at once.
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

    # --------------------------------------------------------------------------------- prices ----

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
    ) -> AsyncGenerator[CellPage, None]:
        """Yield every cell of some locations, or of all, as pages of columns.

        With a channel, those where it sells. Not retried: Unavailable means to begin again.
        """
        names = list(locations)
        request = availability_pb2.ListCellsRequest(
            locations=[messages.location_of(name) for name in names], channel=channel
        )
        shard = await self._owner([(0, name) for name in names])
        stream = self._caller.stream(lambda peer: peer.availability.ListCells, request, shard)
        async with aclosing(stream) as pages:
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
    ) -> AsyncGenerator[Frame, None]:
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

    def events(
        self,
        *,
        locations: Iterable[Name] = (),
        skus: Iterable[Name] = (),
        resume_token: bytes = b"",
        after: Iterable[tuple[int, int, int]] = (),
        oldest: bool = False,
        heartbeat_ms: int = 0,
    ) -> AsyncGenerator[EventFrame, None]:
        """Follow what is done on cells, for ever: each operation and each hold that runs out, in order.

        It begins where `resume_token` ends; else after the blocks (shard, epoch, seq) that results
        name, with the `oldest` in the journal, or now. A stream that breaks is taken up again where
        it was: no event is missed or told twice. Raises EventsGone when the journal does not have
        them any more. Close the iterator (`aclosing`) to end the subscription early.
        """
        request = deltas_pb2.EventsRequest(
            locations=[messages.location_of(name) for name in locations],
            skus=[messages.sku_of(name) for name in skus],
            resume_token=resume_token,
            after=[
                availability_pb2.StreamPosition(shard=shard, epoch=epoch, seq=seq)
                for shard, epoch, seq in after
            ],
            oldest=oldest,
            heartbeat_ms=heartbeat_ms,
        )
        return subscription.follow_events(self._caller, request)
