"""SKUs, locations and channels by way of the client: adding, listing, from a code to its id."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from adapters.client import messages
from adapters.client.calls import Caller
from adapters.client.errors import OnhandError
from adapters.client.ids import id_of
from adapters.client.peers import Peer
from adapters.client.values import Channel, Location, Name, Sku
from onhand.v1 import catalog_pb2

LOAD_AGAIN_S: Final = 5.0  # between looks for codes that are not known


class CatalogCalls:
    """The catalogue's part of the client, which keeps the codes of locations at hand."""

    def __init__(self, caller: Caller) -> None:
        """Use `Client.connect`."""
        self._caller = caller
        self._location_ids: dict[str, int] = {}
        self._loaded_to = 0  # the highest id that was fetched
        self._loading = asyncio.Lock()
        self._load_at_s = 0.0  # not before that, of time.monotonic

    async def add_skus(self, skus: Sequence[Sku]) -> list[int]:
        """Add SKUs and give their ids, in order; a code that exists keeps its id and its data.

        InvalidArgument when it has another unit, or is made of something else. Answered when they
        are durable and every shard knows them.
        """
        request = catalog_pb2.AddSkusRequest(skus=[messages.sku_entry_of(sku) for sku in skus])
        reply = await self._caller.call(lambda peer: peer.catalog.AddSkus, request)
        return list(reply.ids)

    async def add_locations(self, locations: Sequence[Location]) -> list[int]:
        """Add locations and give their ids, in order; one that exists keeps its id and its data."""
        request = catalog_pb2.AddLocationsRequest(
            locations=[messages.location_entry_of(location) for location in locations]
        )
        reply = await self._caller.call(lambda peer: peer.catalog.AddLocations, request)
        codes = [location.code for location in locations]
        self._location_ids.update(zip(codes, reply.ids, strict=True))
        return list(reply.ids)

    async def rename_sku(self, sku: Name, code: str, *, op_id: bytes | None = None) -> bool:
        """Give a SKU a new code; it keeps its id, and the code that it had goes on meaning it.

        Whether anything changed. InvalidArgument when another SKU has or had the new code, or no more
        of its old ones can be kept.
        """
        request = catalog_pb2.RenameSkuRequest(
            op_id=id_of(op_id), sku=messages.sku_of(sku), code=code
        )
        reply = await self._change(lambda peer: peer.catalog.RenameSku, request)
        return bool(reply.changed)

    async def list_skus(self, from_id: int = 1) -> AsyncGenerator[Sku, None]:
        """Yield every SKU from an id on, in order of id."""
        while from_id:
            request = catalog_pb2.ListSkusRequest(from_id=from_id)
            reply = await self._caller.call(lambda peer: peer.catalog.ListSkus, request)
            for sku in messages.skus_from(reply.skus):
                yield sku
            from_id = reply.next_id

    async def list_locations(self, from_id: int = 1) -> list[Location]:
        """Every location from an id on, in order of id."""
        locations = list[Location]()
        while from_id:
            request = catalog_pb2.ListLocationsRequest(from_id=from_id)
            reply = await self._caller.call(lambda peer: peer.catalog.ListLocations, request)
            locations += messages.locations_from(reply.locations)
            from_id = reply.next_id
        return locations

    async def set_channel(self, channel: Channel, *, op_id: bytes | None = None) -> int:
        """Make a channel, or give one all its rules anew; its number.

        Answered when every shard judges by the new rules.
        """
        request = catalog_pb2.SetChannelRequest(
            op_id=id_of(op_id), channel=messages.channel_entry_of(channel)
        )
        reply = await self._change(lambda peer: peer.catalog.SetChannel, request)
        return int(reply.number)

    async def list_channels(self) -> list[Channel]:
        """Every channel with its rules, in order of number."""
        channels, at = list[Channel](), 1
        while at:
            request = catalog_pb2.ListChannelsRequest(from_number=at)
            reply = await self._caller.call(lambda peer: peer.catalog.ListChannels, request)
            channels += messages.channels_from(reply.channels)
            at = reply.next_number
        return channels

    async def _change(self, rpc: Callable[[Peer], Any], request: Any) -> Any:
        """Send a change, with the same op_id until it is answered; OnhandError names that."""
        try:
            return await self._caller.call(rpc, request)
        except OnhandError as error:
            error.op_id = request.op_id
            raise

    async def _location_id(self, name: Name) -> int:
        """The id of a location; 0 for a code that is not known here.

        Codes are fetched once, and learnt when they are added here; ids never change. One that is
        not known makes it look, now and then, whether others have added some since.
        """
        if isinstance(name, int):
            return name
        if name not in self._location_ids and self._must_load():
            async with self._loading:
                if self._must_load():
                    await self._load()
        return self._location_ids.get(name, 0)

    def _must_load(self) -> bool:
        return time.monotonic() >= self._load_at_s

    async def _load(self) -> None:
        """Fetch the codes that are new; if that fails, the gateway knows them by itself."""
        with suppress(OnhandError):
            for each in await self.list_locations(self._loaded_to + 1):
                self._location_ids[each.code] = self._loaded_to = each.id
        self._load_at_s = time.monotonic() + LOAD_AGAIN_S
