"""The simulated onhand: shards, gateways, their deaths and restarts, and the faults around them.

The shards, their recovery, the router, the links between gateway and shard, the machine and the
journal's client are the real ones. Simulated are the clock, the processes, the network, the stream
server and the snapshot store. Whatever is random comes from one seed.
"""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Final, NoReturn

from actors import transfers
from actors.intents import IntentLog
from actors.links import LinkServer, RemoteShard
from actors.ports import (
    AppendInDoubt,
    Fenced,
    JournalError,
    JournalUnavailable,
    Overloaded,
    Unavailable,
)
from actors.router import Router
from actors.service import NotServing
from actors.shard import Shard
from adapters.journal import RedisJournal
from engine import wire
from engine.machine import Machine
from engine.operations import Answer, Request
from engine.shard_map import ShardMap
from tests.sim.loop import Killed, Process, VirtualLoop
from tests.sim.network import Network
from tests.sim.oracle import Oracle
from tests.sim.server import StreamServer
from tests.sim.stores import Catalogue, SnapshotStore
from tests.sim.weather import Weather

EPOCH_NS: Final = 10**18  # the wall clock when a simulation begins
SPLIT_LOCATION: Final = 4  # its SKUs are spread over all shards
LOCATIONS: Final = 4  # and one more, later
SKUS: Final = 3  # and one more, later
GATEWAYS: Final = 2
EPOCH: Final = (
    1  # of both, so that they do meet: onhand's are of two, and the older one is shut out
)
BOUNDS: Final = {"resolved_remembered": 64, "movements_remembered": 12, "expiries_per_block": 3}
SNAPSHOT_EVERY_BYTES: Final = 6_000
RESTART_MOST_S: Final = 0.4
TRANSFERS: Final = ("ship", "receive", "lose")  # of `actors.transfers`
GATEWAYS_ONLY: Final = ("returned", "exchange", *TRANSFERS)  # as onhand has it
STEPPED: Final = ("on_hold", "move", *GATEWAYS_ONLY)  # may take several steps
STEPS_MOST: Final = 8
FINISH_EVERY_S: Final = 0.05  # how often a gateway tries to finish what was left half done


class World:
    """Everything there is. `log` takes what happens, for the trace."""

    def __init__(self, seed: int, log: Callable[[str], None]) -> None:
        self.loop = VirtualLoop()
        self.chance = Random(seed)
        self.weather = Weather()
        self._log = log
        self.server = StreamServer(self.loop, self.fork(), self.weather, self.log)
        self.loop.connect = self.server.connect
        self.network = Network(self.loop, self.fork(), self.weather)
        self.snapshots = SnapshotStore(self.fork(), self.server.stream)
        self.shards = self.chance.choice((1, 2, 3, 3))
        placements = {SPLIT_LOCATION: tuple(range(self.shards))}
        self.shard_map = ShardMap(1, self.shards, placements if self.shards > 1 else {})
        self.catalogue = Catalogue(self.shard_map, SKUS, LOCATIONS)
        keys = {number: self.server.stream(stream_key(number)) for number in range(self.shards)}
        self.oracle = Oracle(self, keys)
        self.hosts: dict[int, ShardHost] = {}  # the newest of each shard
        self.zombies: dict[int, list[ShardHost]] = {number: [] for number in range(self.shards)}
        self.gateways: dict[int, GatewayHost] = {}
        self.calls = 0  # answered, when all is over
        self._made = 0

    def fork(self) -> Random:
        """Another source of chance, which draws without disturbing this one."""
        return Random(self.chance.getrandbits(64))

    def log(self, text: str) -> None:
        self._log(f"{self.loop.now_s:10.6f} {text}")

    def process(self, name: str) -> Process:
        self._made += 1
        return Process(self.loop, f"{name}#{self._made}")

    def start(self) -> None:
        for number in range(self.shards):
            self.start_shard(number)
        for number in range(GATEWAYS):
            self.start_gateway(number)

    def start_shard(self, number: int) -> None:
        """Start a shard's next incarnation. The one before it may still be there."""
        if number in self.hosts:
            self.zombies[number].append(self.hosts[number])
        self.hosts[number] = host = ShardHost(self, number)
        host.process.at_end.append(lambda: self._shard_died(host))
        host.process.start(host.run())

    def start_gateway(self, number: int) -> None:
        self.gateways[number] = host = GatewayHost(self, number)
        host.process.start(host.run())

        def died() -> None:
            self.log(f"{host.process.name} died: {host.process.end}")
            self.loop.outside(self.chance.uniform(0, RESTART_MOST_S), self.start_gateway, number)

        host.process.at_end.append(died)

    def route(self, number: int) -> "ShardHost":
        """Where a call to a shard goes: the newest, or now and then an older one that lives."""
        older = [host for host in self.zombies[number] if host.process.alive]
        if older and self.chance.random() < 0.4:
            return self.chance.choice(older)
        return self.hosts[number]

    def _shard_died(self, host: "ShardHost") -> None:
        self.log(f"{host.process.name} died: {host.process.end}")
        if self.hosts[host.number] is host:
            pause_s = self.chance.uniform(0, RESTART_MOST_S)
            self.loop.outside(pause_s, self._restart, host)

    def _restart(self, host: "ShardHost") -> None:
        if self.hosts[host.number] is host:
            self.start_shard(host.number)


def stream_key(shard: int) -> str:
    """The name of a shard's stream."""
    return f"shard-{shard}"


class ShardHost:
    """One incarnation of a shard, with a router of its own for callers that come directly."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.process = world.process(f"shard-{number}")
        self.skew_ns = world.chance.randint(-50_000_000, 50_000_000)
        self.shard: Shard | None = None
        self._router: Router | None = None
        self.link: Witness | None = None
        self._links: LinkServer | None = None

    async def run(self) -> None:
        """Start serving; a start that fails ends the process, and another one begins."""
        world, number = self.world, self.number
        chance = world.fork()
        await asyncio.sleep(chance.uniform(0, 0.01))
        journal = RedisJournal(
            "redis://simulated", stream_key(number), settle_timeout_s=0.3, reply_timeout_s=0.25
        )
        shard = Shard(
            number, journal, world.snapshots, world.catalogue.view(number),
            stop_process=self.exit, snapshot_every_bytes=SNAPSHOT_EVERY_BYTES,
            clock=self.clock_ns, monotonic=world.loop.time, random_bytes=chance.randbytes,
            machine=Machine(
                **BOUNDS
            ),
        )  # fmt: skip
        try:
            await shard.start()
        except (JournalUnavailable, AppendInDoubt, Fenced) as error:
            self.exit(f"did not start: {type(error).__name__}")
        self.shard = shard
        self.link = Witness(self)
        self._links = LinkServer(self.link, lambda: EPOCH)
        self._router = Router({number: self.link}, lambda: world.shard_map)
        world.oracle.recovered(self)

    def clock_ns(self) -> int:
        return EPOCH_NS + round(self.world.loop.now_s * 1e9) + self.skew_ns

    def exit(self, why: str) -> NoReturn:
        """What the real host does with `os._exit`. To be fenced or in doubt is right; a bug is not."""
        if "failed" in why or "JournalLost" in why:
            self.world.loop.failures.append(why)
        self.process.kill(why)
        raise Killed

    async def try_snapshot(self) -> None:
        """Take a snapshot, as an operator would; it may fail."""
        assert self.shard is not None
        with suppress(Unavailable):
            await self.shard.snapshot()

    async def call(self, method: str, *args: Any) -> Any:
        if self._links is None or self._router is None:
            raise NotServing(self.process.name)
        if method == "write":
            return await write(self._router, *args)
        return await self._links.serve(method, *args)


class GatewayHost:
    """A gateway: a router over links to all shards.

    One that is `doomed` dies about one of the steps of the next write that may have several.
    """

    def __init__(self, world: World, number: int) -> None:
        self.process = world.process(f"gateway-{number}")
        self._key = f"gateway-{number}"
        self.doomed = False
        self._world, self._steps_left = world, 0
        links = {
            shard: RemoteShard(shard, Caller(self, shard), EPOCH, self._fenced)
            for shard in range(world.shards)
        }
        self._links = links
        self._router: Router | None = None
        self.intents: IntentLog | None = None  # None: it is starting

    async def run(self) -> None:
        """Take over what the one before it has left half done, and finish it."""
        world = self._world
        chance = world.fork()
        journal = RedisJournal(
            "redis://simulated", self._key, settle_timeout_s=0.3, reply_timeout_s=0.25
        )
        intents = IntentLog(
            journal, self._lost, random_bytes=chance.randbytes, clock=self._clock_ns
        )
        try:
            await intents.start()
        except (JournalUnavailable, AppendInDoubt, Fenced) as error:
            self.process.kill(f"did not start: {type(error).__name__}")
            raise Killed from error
        self.intents = intents
        self._router = router = Router(
            self._links, lambda: world.shard_map, intents, transfers.OPERATIONS
        )
        while True:
            with suppress(Overloaded, Unavailable):
                await router.finish()
            await asyncio.sleep(FINISH_EVERY_S)

    async def call(self, method: str, *args: Any) -> Any:
        if self._router is None:
            raise NotServing(self.process.name)
        if method == "write":
            if self.doomed and args[0] in STEPPED:
                self.doomed, self._steps_left = False, self._world.chance.randint(1, STEPS_MOST)
            return await write(self._router, *args)
        return await getattr(self._router, method)(*args)

    def _clock_ns(self) -> int:
        return EPOCH_NS + round(self._world.loop.now_s * 1e9)

    def _lost(self, error: JournalError) -> None:
        """As the real one: its process ends, and the next one finds what was begun."""
        self.process.kill(f"its journal: {type(error).__name__}")

    def _fenced(self, error: Fenced) -> NoReturn:
        raise AssertionError(f"there is no newer gateway: {error}")

    async def call_shard(self, shard: int, method: str, *args: Any) -> Any:
        """Call whichever process has the name of the shard."""
        world = self._world
        if self._steps_left:
            self._steps_left -= 1
            if not self._steps_left:
                delay_s = world.chance.choice((0, world.chance.uniform(0, 0.002)))
                world.loop.outside(delay_s, self.process.kill, "killed between two steps")
        return await world.network.call(world.route(shard), method, *args)


class Caller:
    """In place of a handle of Ray."""

    def __init__(self, gateway: GatewayHost, shard: int) -> None:
        self._gateway, self._shard = gateway, shard

    async def call(self, method: str, *args: Any) -> Any:
        return await self._gateway.call_shard(self._shard, method, *args)


async def write(router: Router, method: str, payload: bytes, *args: Any) -> bytes:
    """Serve a client's write: a method of a router, or a step of a transfer by its name."""
    request = wire.decode_requests(payload)[0]
    if method in TRANSFERS:
        _, answer = await getattr(transfers, method)(router, request, *args)
    else:
        _, answer = await getattr(router, method)(request, *args)
    return wire.encode_answers([answer])


class Witness:
    """A `ports.ShardLink` that tells the oracle all that a shard answers, as it leaves."""

    def __init__(self, host: ShardHost) -> None:
        assert host.shard is not None
        self._host, self._shard = host, host.shard

    @property
    def number(self) -> int:
        return self._host.number

    async def submit(self, request: Request) -> Answer:
        answer = await self._shard.submit(request)
        self._host.world.oracle.answered(self._host, request, answer)
        return answer

    async def hold(self, hold_id: bytes, *, sure: bool = False) -> Any:
        asked = self._host.world.oracle.asked(self._host, sure=sure)
        found = await self._shard.hold(hold_id, sure=sure)
        self._host.world.oracle.seen(asked, {hold_id: found})
        return found

    async def cells(self, names: Any) -> Any:
        asked = self._host.world.oracle.asked(self._host)
        found = await self._shard.cells(names)
        self._host.world.oracle.seen(asked, dict(zip(map(tuple, names), found, strict=True)))
        return found

    def __getattr__(self, name: str) -> Any:
        """Other reads are passed on, and not judged."""
        return getattr(self._shard, name)


def fingerprint(data: bytes) -> str:
    """A few digits that stand for some bytes in the trace."""
    return hashlib.blake2b(data, digest_size=4).hexdigest()
