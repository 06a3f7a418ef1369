"""The Catalog service: changes through the gateway that owns the catalogue, lists from anyone.

It translates; what is allowed is `engine.catalogue`'s to say, what is durable `actors.catalogue`'s.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from google.protobuf.message import Message

from actors.catalogue import CatalogueReader, CatalogueWriter
from actors.ports import JournalError, JournalUnavailable, Unavailable
from adapters.rpc import requests
from adapters.rpc.errors import (
    Context,
    failed_precondition,
    invalid_argument,
    unavailable,
)
from engine import limits
from engine.entries import CatalogueFull, Channel, Component, InvalidEntry, Location, Rename, Sku
from onhand.v1 import catalog_pb2, catalog_pb2_grpc, common_pb2

PAGE_BYTES: Final = 2 << 20  # a page of a list ends here, well below gRPC's limit of 4 MB a message
_T = TypeVar("_T")
_Request = (
    catalog_pb2.AddSkusRequest | catalog_pb2.AddLocationsRequest | catalog_pb2.SetChannelRequest
)


class CatalogServicer(catalog_pb2_grpc.CatalogServicer):
    """onhand.v1.Catalog. `writer` is None on servers that do not own the catalogue."""

    def __init__(self, reader: CatalogueReader, writer: CatalogueWriter | None) -> None:
        self._reader = reader
        self._writer = writer

    async def AddSkus(
        self, request: catalog_pb2.AddSkusRequest, context: Context
    ) -> catalog_pb2.AddSkusReply:
        """Add SKUs; answer when they are durable and every shard knows them."""
        writer = await self._owner(context)
        await _check_entries(len(request.skus), "skus", context)
        await _check_bytes(request, "skus", context)
        entries = [
            Sku(
                entry.code,
                entry.unit,
                entry.description,
                tuple(entry.gtins),
                self._components(f"skus[{i}].components", entry) if entry.components else (),
            )
            for i, entry in enumerate(request.skus)
        ]
        ids, added = await _added(writer.add_skus(entries), context)
        return catalog_pb2.AddSkusReply(ids=ids, added=added)

    async def AddLocations(
        self, request: catalog_pb2.AddLocationsRequest, context: Context
    ) -> catalog_pb2.AddLocationsReply:
        """Add locations; answer when they are durable and every shard knows them."""
        writer = await self._owner(context)
        await _check_entries(len(request.locations), "locations", context)
        await _check_bytes(request, "locations", context)
        entries = [
            Location(entry.code, entry.currency, entry.description) for entry in request.locations
        ]
        ids, added = await _added(writer.add_locations(entries), context)
        return catalog_pb2.AddLocationsReply(ids=ids, added=added)

    async def SetChannel(
        self, request: catalog_pb2.SetChannelRequest, context: Context
    ) -> catalog_pb2.SetChannelReply:
        """Give a channel its rules; answer when they are durable and every shard knows them."""
        writer = await self._owner(context)
        requests.check_id("op_id", request.op_id)
        await _check_bytes(request, "channel", context)
        channel, catalogue = request.channel, self._reader.catalogue
        locations = tuple(
            (
                requests.location_id(
                    f"channel.locations[{i}].location", listed.location, catalogue
                ),
                listed.buffer if listed.HasField("buffer") else None,
            )
            for i, listed in enumerate(channel.locations)
        )
        entry = Channel(channel.code, channel.buffer, channel.only_listed, locations)
        number, changed = await _added(writer.set_channel(request.op_id, entry), context)
        return catalog_pb2.SetChannelReply(number=number, changed=changed)

    async def RenameSku(
        self, request: catalog_pb2.RenameSkuRequest, context: Context
    ) -> catalog_pb2.RenameSkuReply:
        """Give a SKU a new code; answer when it is durable and every shard knows it."""
        writer = await self._owner(context)
        requests.check_id("op_id", request.op_id)
        sku = requests.sku_id("sku", request.sku, self._reader.catalogue)
        entry = Rename(sku, request.code)
        changed = await _added(writer.rename_sku(request.op_id, entry), context)
        return catalog_pb2.RenameSkuReply(id=sku, changed=changed)

    async def ListSkus(
        self, request: catalog_pb2.ListSkusRequest, context: Context
    ) -> catalog_pb2.ListSkusReply:
        """One page of SKUs: shorter than asked for when it would be a large message."""
        most = limits.MAX_CATALOG_ENTRIES
        if request.page_size > most:
            await invalid_argument(
                context, "page_size", f"{request.page_size}, must be at most {most}"
            )
        catalogue, reply = self._reader.catalogue, catalog_pb2.ListSkusReply()
        first = max(request.from_id, 1)
        end = min(first + (request.page_size or most), catalogue.skus + 1)

        def add(sku_id: int) -> catalog_pb2.SkuEntry:
            sku = catalogue.sku(sku_id)
            entry = reply.skus.add(
                id=sku_id,
                code=sku.code,
                unit=catalog_pb2.Unit.ValueType(sku.unit),
                description=sku.description,
                gtins=sku.gtins,
                old_codes=catalogue.codes.old(sku_id),
            )
            for part in sku.components:
                named = common_pb2.Sku(id=part.sku, code=catalogue.sku(part.sku).code)
                entry.components.add(sku=named, quantity=part.quantity)
            return entry

        following = _add_some(range(first, end), add)
        reply.next_id = following if following <= catalogue.skus else 0
        return reply

    async def ListLocations(
        self, request: catalog_pb2.ListLocationsRequest, context: Context
    ) -> catalog_pb2.ListLocationsReply:
        """One page of locations, with the shard that owns each (of a split one: its first part)."""
        catalogue, reply = self._reader.catalogue, catalog_pb2.ListLocationsReply()

        def add(location_id: int) -> catalog_pb2.LocationEntry:
            location = catalogue.location(location_id)
            return reply.locations.add(
                id=location_id,
                code=location.code,
                currency=location.currency,
                shard=self._reader.shard_map.owners(location_id)[0],
                description=location.description,
            )

        following = _add_some(range(max(request.from_id, 1), catalogue.locations + 1), add)
        reply.next_id = following if following <= catalogue.locations else 0
        return reply

    async def ListChannels(
        self, request: catalog_pb2.ListChannelsRequest, context: Context
    ) -> catalog_pb2.ListChannelsReply:
        """One page of channels, with their rules."""
        catalogue, reply = self._reader.catalogue, catalog_pb2.ListChannelsReply()
        channels = catalogue.channels

        def add(number: int) -> catalog_pb2.Channel:
            channel = channels.channel(number)
            entry = reply.channels.add(
                number=number,
                code=channel.code,
                buffer=channel.buffer,
                only_listed=channel.only_listed,
            )
            for location, own in channel.locations:
                named = common_pb2.Location(id=location, code=catalogue.location(location).code)
                entry.locations.add(location=named, buffer=own)
            return entry

        following = _add_some(range(max(request.from_number, 1), len(channels) + 1), add)
        reply.next_number = following if following <= len(channels) else 0
        return reply

    def _components(self, field: str, entry: catalog_pb2.SkuEntry) -> tuple[Component, ...]:
        catalogue = self._reader.catalogue
        return tuple(
            Component(requests.sku_id(f"{field}[{j}].sku", part.sku, catalogue), part.quantity)
            for j, part in enumerate(entry.components)
        )

    async def _owner(self, context: Context) -> CatalogueWriter:
        if self._writer is None:
            await failed_precondition(
                context, "a shard does not own the catalogue: send additions to a gateway"
            )
        return self._writer


def _add_some(numbers: range, add: Callable[[int], Message]) -> int:
    """Add entries to a page until it is a large message; the number after the last of them."""
    size_bytes = 0
    for number in numbers:
        if size_bytes >= PAGE_BYTES:
            return number
        size_bytes += add(number).ByteSize()
    return numbers.stop


async def _check_entries(count: int, field: str, context: Context) -> None:
    """Refuse a request of too many entries before anything is made of them."""
    if not 1 <= count <= limits.MAX_CATALOG_ENTRIES:
        limit = f"must be 1 to {limits.MAX_CATALOG_ENTRIES}"
        await invalid_argument(context, field, f"{count} entries, {limit}")


async def _check_bytes(request: _Request, field: str, context: Context) -> None:
    """Refuse what is too long: entries may be few and large."""
    size_bytes = request.ByteSize()
    if size_bytes > limits.MAX_CATALOG_BYTES:
        limit = f"must be at most {limits.MAX_CATALOG_BYTES}; send fewer at a time"
        await invalid_argument(context, field, f"{size_bytes} bytes, {limit}")


async def _added(addition: Awaitable[_T], context: Context) -> _T:
    """Wait for an addition, and say in gRPC's words why there is none."""
    try:
        return await addition
    except InvalidEntry as error:
        await invalid_argument(context, error.field, error.description)
    except CatalogueFull as error:
        await failed_precondition(context, str(error))
    except JournalUnavailable as error:
        await unavailable(context, f"nothing was added: {error}")
    except (JournalError, Unavailable) as error:
        await unavailable(context, f"whether it was added is not known, send it again: {error}")
