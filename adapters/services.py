"""What runs inside the actors' processes: a shard with its server, a gateway with its own.

Here the rooms are put together: ports get their adapters. The two factories at the end are what
`actors.cluster` is given; a config must pickle and compare by value.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

import structlog

from actors import transfers
from actors.catalogue import CatalogueReader, CatalogueWriter
from actors.cluster import Host
from actors.events import EventHub
from actors.hub import MAX_SUBSCRIBERS, DeltaHub
from actors.intents import IntentLog
from actors.links import LinkServer, RemoteShard
from actors.mirror import MirrorFeed, Mirrors
from actors.ports import JournalError, Overloaded, Position, Unavailable, shard_name
from actors.router import Router
from actors.service import ClusterError
from actors.shard import Shard
from adapters.journal import RedisJournal
from adapters.metrics import Metrics
from adapters.registry import GATEWAY, Entry, Registry
from adapters.rpc.availability import AvailabilityServicer
from adapters.rpc.catalog import CatalogServicer
from adapters.rpc.deltas import DeltasServicer
from adapters.rpc.directory import Addresses, DirectoryServicer
from adapters.rpc.events import EventStreams
from adapters.rpc.price import PriceServicer
from adapters.rpc.server import MAX_STREAMS, open_server
from adapters.rpc.stock import StockServicer
from adapters.rpc.transfer import TransfersServicer
from adapters.snapshots import RedisSnapshots
from engine import limits
from engine.block import Place
from engine.machine import Machine
from onhand.v1.availability_pb2_grpc import add_AvailabilityServicer_to_server
from onhand.v1.catalog_pb2_grpc import add_CatalogServicer_to_server
from onhand.v1.directory_pb2_grpc import add_DirectoryServicer_to_server
from onhand.v1.price_pb2_grpc import add_PriceServicer_to_server
from onhand.v1.stock_pb2_grpc import add_StockServicer_to_server
from onhand.v1.transfer_pb2_grpc import add_TransfersServicer_to_server

assert MAX_STREAMS >= MAX_SUBSCRIBERS + limits.MAX_EVENT_SUBSCRIBERS, (
    "a hub says itself that it is full"
)

LAG_EVERY_S: Final = 1.0  # how often the lag of the mirrors is noted
FINISH_EVERY_S: Final = 1.0  # how often a gateway tries to finish what was left half done
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ActorConfig:
    """What every actor of one cluster is told."""

    redis_url: str = field(repr=False)  # may hold a password
    cluster: str  # names the keys in the store: several clusters may share one
    shards: int
    host: str  # to listen on, and to be called at
    gateway_port: int  # 0: any free one
    shard_port_base: int  # of shard 0, then up; 0: any free ones
    metrics_host: str
    metrics_port_base: int  # of the gateway, then the shards'; 0: any free ones
    snapshot_every_bytes: int
    keep_journal_bytes: int
    room_for_cells: int  # of each shard, from its start
    room_for_holds: int
    stop_grace_s: float  # what calls under way get when a server stops

    @property
    def prefix(self) -> str:
        """What every key of this cluster begins with."""
        return f"onhand:{self.cluster}"

    def catalogue_journal(self) -> RedisJournal:
        """The catalogue's stream."""
        return RedisJournal(self.redis_url, f"{self.prefix}:catalogue")

    def intents_journal(self) -> RedisJournal:
        """The stream of what a gateway has begun over several shards."""
        return RedisJournal(self.redis_url, f"{self.prefix}:gateway")

    def shard_port(self, number: int) -> int:
        """Where a shard's own server listens; 0: any free port."""
        return self.shard_port_base and self.shard_port_base + number

    def serve_metrics(self, metrics: Metrics, until: AsyncExitStack, index: int) -> str:
        """Serve metrics until a stack unwinds; tells where."""
        port = self.metrics_port_base and self.metrics_port_base + index
        bound = metrics.serve(self.metrics_host, port)
        until.callback(metrics.close)
        return f"{self.metrics_host}:{bound}"

    def shard_journal(self, number: int) -> RedisJournal:
        """A shard's stream."""
        return RedisJournal(self.redis_url, f"{self.prefix}:{shard_name(number)}")


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """What one shard actor is told."""

    cluster: ActorConfig
    number: int


class _ShardsView:
    """The catalogue as one shard needs it."""

    def __init__(self, reader: CatalogueReader, number: int) -> None:
        self._reader = reader
        self._number = number

    async def refresh(self) -> None:
        await self._reader.refresh()

    @property
    def sku_limit(self) -> int:
        return self._reader.catalogue.skus

    @property
    def rules(self) -> int:
        return self._reader.catalogue.channels.version

    def places(self, known: int) -> Iterable[Place]:
        if known >= self._reader.catalogue.locations or not self._reader.has_shard_map:
            return ()
        return self._reader.places(self._number, known)


def _on_both(
    router: Router,
    cells: Router | Mirrors,
    reader: CatalogueReader,
    writer: CatalogueWriter | None = None,
) -> list[Callable[[Any], None]]:
    """The services that shards and gateways have; `cells` is where those are looked up."""
    catalogue = reader.catalogue
    return [
        partial(add_StockServicer_to_server, StockServicer(router, catalogue)),
        partial(add_PriceServicer_to_server, PriceServicer(router, cells, catalogue)),
        partial(add_AvailabilityServicer_to_server, AvailabilityServicer(cells, catalogue)),
        partial(add_CatalogServicer_to_server, CatalogServicer(reader, writer)),
    ]


class ShardService:
    """A shard and its own gRPC server, in an actor's process."""

    def __init__(self, config: ShardConfig, host: Host) -> None:
        self._config = config
        self._host = host
        self._open = AsyncExitStack()
        self._shard: Shard | None = None
        self._links: LinkServer | None = None

    async def start(self) -> None:
        """Recover, take over, serve, and tell the registry."""
        config, number = self._config.cluster, self._config.number
        reader = CatalogueReader(config.catalogue_journal())
        self._open.push_async_callback(reader.journal.close)
        metrics = Metrics("shard", number)
        snapshots = RedisSnapshots(config.redis_url, config.prefix)
        self._open.push_async_callback(snapshots.close)
        machine = Machine()
        try:
            machine.make_room(config.room_for_cells, config.room_for_holds)
        except MemoryError as error:
            raise ValueError(f"room_for_cells, room_for_holds: {error}") from error
        shard = Shard(
            number,
            config.shard_journal(number),
            snapshots,
            _ShardsView(reader, number),
            stop_process=self._host.exit,
            snapshot_every_bytes=config.snapshot_every_bytes,
            keep_journal_bytes=config.keep_journal_bytes,
            observe=metrics.block_done,
            machine=machine,
        )
        self._open.push_async_callback(shard.stop)
        await shard.start()
        self._links = LinkServer(shard, lambda: reader.at.epoch)
        self._shard = shard
        metrics.watch("holds_open", lambda: machine.holds_open)
        metrics.watch("shortages", lambda: machine.shortages)
        metrics.watch("cells", lambda: machine.cells)
        registry = await self._open.enter_async_context(Registry(config.redis_url, config.prefix))
        router = Router({number: shard}, lambda: reader.shard_map)
        server = await open_server(
            [
                *_on_both(router, router, reader),
                partial(
                    add_DirectoryServicer_to_server, DirectoryServicer(lambda: reader.shard_map)
                ),
            ],
            config.host,
            config.shard_port(number),
            metrics=metrics,
        )
        self._open.push_async_callback(server.stop, config.stop_grace_s)
        metrics_at = config.serve_metrics(metrics, self._open, 1 + number)
        address = f"{config.host}:{server.port}"
        await registry.enter(shard_name(number), Entry(address, shard.at.epoch, metrics_at))

    async def stop(self) -> None:
        """Refuse what is new, answer what is under way, let go of everything."""
        await self._open.aclose()

    async def call(self, method: str, *args: Any) -> Any:
        """Answer a gateway (`actors.links`) or the bring-up."""
        shard, links = self._shard, self._links
        if shard is None or links is None:
            raise Unavailable("the shard is starting")
        match method:
            case "refresh_catalogue":
                return await shard.refresh_catalogue()
            case "snapshot":
                return str(await shard.snapshot())
            case "status":
                return await shard.read(shard.status)
            case "audit":
                return await shard.read(shard.machine.audit)
            case _:
                return await links.serve(method, *args)


class GatewayService:
    """The front door: takes every call, owns the catalogue, mirrors the shards, fans out deltas."""

    def __init__(self, config: ActorConfig, host: Host) -> None:
        self._config = config
        self._host = host
        self._open = AsyncExitStack()
        self._mirrors: Mirrors | None = None
        self._hub: DeltaHub | None = None
        self._registry = Registry(config.redis_url, config.prefix)
        self._events: EventHub | None = None
        self._handles = [host.actor(shard_name(number)) for number in range(config.shards)]

    async def start(self) -> None:
        """Take the catalogue over, open the server; the mirrors follow once the shards serve."""
        config = self._config
        registry = await self._open.enter_async_context(self._registry)
        reader = CatalogueReader(config.catalogue_journal())
        self._open.push_async_callback(reader.journal.close)
        writer = CatalogueWriter(reader, shards=config.shards, on_change=self._tell_shards)
        await writer.start()
        self._open.push_async_callback(writer.close)
        self._task(self._end_when_fenced(writer))

        metrics = Metrics("gateway", 0)
        links = {
            number: RemoteShard(number, handle, writer.epoch, self._end)
            for number, handle in enumerate(self._handles)
        }
        for link in links.values():
            self._open.push_async_callback(link.close)
        feeds = [MirrorFeed(link, self._journal_of(number)) for number, link in links.items()]
        self._mirrors = mirrors = Mirrors(feeds)
        store_id = await registry.store_id()
        self._hub = hub = DeltaHub({feed.mirror.shard: feed.mirror for feed in feeds}, store_id)
        self._events = events = EventHub(mirrors.feeds, store_id)
        self._task(mirrors.run(hub))
        metrics.watch("subscribers", lambda: hub.subscribers)
        metrics.watch("event_subscribers", lambda: events.subscribers)
        metrics.watch("recent_event_bytes", lambda: events.recent_bytes)
        self._task(self._watch_lag(metrics, mirrors))

        journal = config.intents_journal()
        self._open.push_async_callback(journal.close)
        intents = IntentLog(journal, self._end)
        await intents.start()
        self._open.push_async_callback(intents.close)
        metrics.watch("intents_open", lambda: len(intents))
        router = Router(links, lambda: reader.shard_map, intents, transfers.OPERATIONS)
        self._task(_finish_again_and_again(router))
        streams = EventStreams(events, reader.catalogue, told=metrics.events_told)
        deltas = DeltasServicer(hub, reader.catalogue, streams)
        server = await open_server(
            [
                *_on_both(router, mirrors, reader, writer),
                partial(
                    add_TransfersServicer_to_server, TransfersServicer(router, reader.catalogue)
                ),
                partial(
                    add_DirectoryServicer_to_server,
                    DirectoryServicer(lambda: reader.shard_map, lambda: self._addresses(registry)),
                ),
                deltas.add_to,
            ],
            config.host,
            config.gateway_port,
            end_streams=(self._end_streams,),
            metrics=metrics,
        )
        self._open.push_async_callback(server.stop, config.stop_grace_s)
        metrics_at = config.serve_metrics(metrics, self._open, 0)
        await registry.enter(GATEWAY, Entry(f"{config.host}:{server.port}", 0, metrics_at))

    async def stop(self) -> None:
        """Refuse what is new, end the streams with their tokens, let go of everything."""
        await self._open.aclose()

    async def call(self, method: str, *args: Any) -> Any:
        """Answer the bring-up."""
        if self._mirrors is None or self._hub is None or self._events is None:
            raise Unavailable("the gateway is starting")
        match method:
            case "status":
                servers = await self._registry.entries()
                return {
                    "servers": {name: asdict(entry) for name, entry in servers.items()},
                    "subscribers": self._hub.subscribers,
                    "event_subscribers": self._events.subscribers,
                    "mirrors": [asdict(health) for health in self._mirrors.health],
                }
            case "reached":  # shard, epoch, seq, timeout in seconds
                shard, epoch, seq, timeout_s = args
                return await self._mirrors.reached(shard, Position(epoch, seq), timeout_s)
            case _:
                raise KeyError(method)

    def _journal_of(self, number: int) -> RedisJournal:
        journal = self._config.shard_journal(number)
        self._open.push_async_callback(journal.close)
        return journal

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something until the service stops; the process ends with it if it fails.

        Mirrors that nobody keeps any more would go on to answer, and be older every second.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(self._check)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._open.push_async_callback(end)

    def _check(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the gateway failed", exc_info=error)
            self._host.exit(f"a task of the gateway failed: {error!r}")

    async def _end_when_fenced(self, writer: CatalogueWriter) -> None:
        self._end(await writer.ended())

    def _end(self, error: JournalError) -> None:
        self._host.exit(f"this gateway owns nothing any more: {error}")

    async def _tell_shards(self, _at: Position) -> None:
        """Have every shard that serves read the catalogue; one that does not will when it starts."""
        told = await asyncio.gather(
            *(handle.call("refresh_catalogue") for handle in self._handles), return_exceptions=True
        )
        for answer in told:
            if isinstance(answer, BaseException) and not isinstance(
                answer, ClusterError | Unavailable
            ):
                raise answer

    async def _addresses(self, registry: Registry) -> Addresses:
        entries = await registry.entries()
        return {
            number: (entry.address, entry.epoch)
            for number in range(self._config.shards)
            if (entry := entries.get(shard_name(number))) is not None
        }

    async def _end_streams(self) -> None:
        for hub in (self._hub, self._events):
            if hub is not None:
                hub.stop()

    async def _watch_lag(self, metrics: Metrics, mirrors: Mirrors) -> None:
        while True:
            for number, health in enumerate(mirrors.health):
                metrics.mirror_lag(number, health.lag_ns / 1e9)
            await asyncio.sleep(LAG_EVERY_S)


async def _finish_again_and_again(router: Router) -> None:
    """Do what was left half done, as soon as the shards serve."""
    while True:
        with suppress(Overloaded, Unavailable):
            await router.finish()
        await asyncio.sleep(FINISH_EVERY_S)


def build_shard(config: ShardConfig, host: Host) -> ShardService:
    """The factory of shard actors."""
    return ShardService(config, host)


def build_gateway(config: ActorConfig, host: Host) -> GatewayService:
    """The factory of gateway actors."""
    return GatewayService(config, host)
