"""What goes wrong, and when: a table of faults, drawn from by chance while the clients work."""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final

from tests.sim.stores import SnapshotStore
from tests.sim.weather import BAD_DAYS, Weather
from tests.sim.world import ShardHost, World, stream_key

BETWEEN_MEAN_S: Final = 0.12
BAD_DAY_MOST_S: Final = 0.6
PAUSE_MOST_S: Final = 3.5  # longer than a lease of reads
CLOCK_STEP_MOST_NS: Final = 300_000_000


class Chaos:
    """Befalls a world. `heal` ends everything that is wrong."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance: Random = world.fork()
        self._paused: list[ShardHost] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.chance.expovariate(1 / BETWEEN_MEAN_S))
            fault = self.chance.choices(list(FAULTS), list(FAULTS.values()))[0]
            self.world.log(f"-- {fault.__name__}")
            self.world.loop.create_task(fault(self))

    def heal(self) -> None:
        world = self.world
        world.weather.become(Weather())
        world.server.cut_off.clear()
        world.server.doomed.clear()
        for gateway in world.gateways.values():
            gateway.doomed = False
        for host in self._paused:
            host.process.resume()
        self._paused.clear()

    def some_shard(self) -> ShardHost:
        return self.world.hosts[self.chance.randrange(self.world.shards)]

    def pause(self, host: ShardHost) -> None:
        host.process.pause()
        self._paused.append(host)

    def resume(self, host: ShardHost) -> None:
        if host in self._paused:
            self._paused.remove(host)
            host.process.resume()


async def bad_day(chaos: Chaos) -> None:
    name = chaos.chance.choice(list(BAD_DAYS))
    chaos.world.log(f"   {name}")
    chaos.world.weather.become(BAD_DAYS[name])
    await asyncio.sleep(chaos.chance.uniform(0, BAD_DAY_MOST_S))
    chaos.world.weather.become(Weather())


async def shard_dies(chaos: Chaos) -> None:
    chaos.some_shard().process.kill("killed")


async def shard_dies_at_an_append(chaos: Chaos) -> None:
    host = chaos.some_shard()
    moment = chaos.chance.choice(("before", "during", "after"))
    chaos.world.server.doomed[host.process.name] = moment


async def gateway_dies(chaos: Chaos) -> None:
    gateways = chaos.world.gateways
    gateways[chaos.chance.choice(list(gateways))].process.kill("killed")


async def gateway_dies_between_two_steps(chaos: Chaos) -> None:
    gateways = chaos.world.gateways
    gateways[chaos.chance.choice(list(gateways))].doomed = True


async def shard_is_replaced_while_it_sleeps(chaos: Chaos) -> None:
    """It is thought dead, another one takes over, and then it goes on where it was."""
    host = chaos.some_shard()
    if chaos.chance.random() < 0.5:
        await under_way(host)
    chaos.pause(host)
    await asyncio.sleep(chaos.chance.uniform(0, 0.2))
    if chaos.world.hosts[host.number] is host and host.process.alive:
        chaos.world.start_shard(host.number)
    await asyncio.sleep(chaos.chance.choice((0.05, 0.5, PAUSE_MOST_S)) * chaos.chance.random())
    chaos.resume(host)


async def under_way(host: ShardHost) -> None:
    """Wait for a moment at which an append is under way, if one comes soon."""
    for _ in range(100):
        if host.shard is not None and host.shard._appending is not None:
            return
        await asyncio.sleep(0.0005)


async def shard_is_replaced_while_it_works(chaos: Chaos) -> None:
    host = chaos.some_shard()
    if host.process.alive:
        chaos.world.start_shard(host.number)


async def shard_sleeps(chaos: Chaos) -> None:
    host = chaos.some_shard()
    chaos.pause(host)
    await asyncio.sleep(chaos.chance.uniform(0, 0.4))
    chaos.resume(host)


async def shard_is_cut_off(chaos: Chaos) -> None:
    """The stream server is out of its reach."""
    name = chaos.some_shard().process.name
    chaos.world.server.cut_off.add(name)
    await asyncio.sleep(chaos.chance.choice((0.05, 0.3, 1.2)) * chaos.chance.random())
    chaos.world.server.cut_off.discard(name)


async def clock_steps(chaos: Chaos) -> None:
    step_ns = chaos.chance.randint(-CLOCK_STEP_MOST_NS, CLOCK_STEP_MOST_NS)
    chaos.some_shard().skew_ns += step_ns


async def snapshot(chaos: Chaos) -> None:
    host = chaos.some_shard()
    if host.process.alive and host.shard is not None:
        host.process.start(host.try_snapshot())


async def snapshot_is_damaged(chaos: Chaos) -> None:
    store: SnapshotStore = chaos.world.snapshots
    store.damage_newest(stream_key(chaos.chance.randrange(chaos.world.shards)))


async def catalogue_grows(chaos: Chaos) -> None:
    catalogue = chaos.world.catalogue
    if chaos.chance.random() < 0.5:
        catalogue.skus += 1
    else:
        catalogue.locations += 1
    _refresh_all(chaos)


async def channel_rules_change(chaos: Chaos) -> None:
    chaos.world.catalogue.rules += 1
    chaos.world.catalogue.kept = chaos.chance.randint(0, 6)
    _refresh_all(chaos)


def _refresh_all(chaos: Chaos) -> None:
    for host in chaos.world.hosts.values():
        if host.process.alive and host.shard is not None:
            host.process.start(host.shard.refresh_catalogue())


Fault = Callable[[Chaos], Coroutine[Any, Any, None]]

FAULTS: dict[Fault, float] = {
    bad_day: 5,
    shard_dies: 2,
    shard_dies_at_an_append: 3,
    gateway_dies: 1,
    gateway_dies_between_two_steps: 4,
    shard_is_replaced_while_it_sleeps: 2,
    shard_is_replaced_while_it_works: 2,
    shard_sleeps: 1,
    shard_is_cut_off: 1.5,
    clock_steps: 1,
    snapshot: 2,
    snapshot_is_damaged: 1,
    catalogue_grows: 0.5,
    channel_rules_change: 0.5,
}
