"""Directory: who owns what, where to call it, and the limits in force."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from adapters.rpc import errors
from adapters.rpc.server import MAX_MESSAGE_BYTES
from engine import limits
from engine.shard_map import ShardMap
from onhand.v1 import directory_pb2, directory_pb2_grpc

Addresses = Mapping[int, tuple[str, int]]
"""By shard number: `host:port` of its own server, and its epoch. One that is down is missing."""

_LIMITS: Final = directory_pb2.Limits(
    max_batch_lines=limits.MAX_BATCH_LINES,
    max_hold_lines=limits.MAX_HOLD_LINES,
    max_quantity=limits.MAX_QUANTITY,
    max_balance=limits.MAX_BALANCE,
    max_price_minor=limits.MAX_PRICE_MINOR,
    min_ttl_ms=limits.MIN_TTL_MS,
    max_ttl_ms=limits.MAX_TTL_MS,
    default_ttl_ms=limits.DEFAULT_TTL_MS,
    max_message_bytes=MAX_MESSAGE_BYTES,
    max_catalog_entries=limits.MAX_CATALOG_ENTRIES,
    max_subscription_names=limits.MAX_SUBSCRIPTION_NAMES,
    remembered_requests=limits.REMEMBERED_REQUESTS,
    remembered_bytes=limits.REMEMBERED_BYTES,
    resolved_holds_remembered=limits.RESOLVED_HOLDS_REMEMBERED,
    max_code_length=limits.MAX_CODE_LENGTH,
    max_catalog_bytes=limits.MAX_CATALOG_BYTES,
    max_bundle_components=limits.MAX_BUNDLE_COMPONENTS,
    max_channels=limits.MAX_CHANNELS - 1,
    max_clock_skew_ms=limits.MAX_CLOCK_SKEW_MS,
    max_endangered=limits.MAX_ENDANGERED,
    max_old_codes=limits.MAX_OLD_CODES,
    max_event_subscribers=limits.MAX_EVENT_SUBSCRIBERS,
    max_events_of_frame=limits.MAX_EVENTS_OF_FRAME,
    remembered_changes=limits.REMEMBERED_CHANGES,
    max_reason=limits.MAX_REASON,
    movements_remembered=limits.MOVEMENTS_REMEMBERED,
    max_skus=limits.MAX_SKUS,
    max_locations=limits.MAX_LOCATIONS,
    max_description=limits.MAX_DESCRIPTION,
    max_gtins=limits.MAX_GTINS,
)


class DirectoryServicer(directory_pb2_grpc.DirectoryServicer):
    """Serves the newest map that `shard_map` gives, with `addresses`, which is asked on every call.

    A shard does not know the addresses of the others: there it is None, and the map is refused.
    """

    def __init__(
        self,
        shard_map: Callable[[], ShardMap],
        addresses: Callable[[], Awaitable[Addresses]] | None = None,
    ) -> None:
        self._shard_map = shard_map
        self._addresses = addresses

    async def GetShardMap(
        self, request: directory_pb2.GetShardMapRequest, context: Any
    ) -> directory_pb2.ShardMap:
        """Answer the shard map as it is now."""
        if self._addresses is None:
            await errors.failed_precondition(context, "ask a gateway for the shard map")
        assert self._addresses is not None
        shard_map, addresses = self._shard_map(), await self._addresses()
        reply = directory_pb2.ShardMap(version=shard_map.version)
        for number in range(shard_map.shards):
            address, epoch = addresses.get(number, ("", 0))
            reply.shards.add(number=number, address=address, epoch=epoch)
        for location in sorted(shard_map.placements):
            reply.placements.add(location_id=location, shards=shard_map.placements[location])
        return reply

    async def GetLimits(
        self, request: directory_pb2.GetLimitsRequest, context: Any
    ) -> directory_pb2.Limits:
        """Answer the limits that are enforced."""
        return _LIMITS
