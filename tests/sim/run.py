"""One seed, from the opening of the shops to the judgement."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NoReturn
from unittest.mock import patch

import structlog

from actors import commits, moves, ways
from actors import shard as shard_module
from actors.parts import hold_id_of
from engine import snapshot as engine_snapshot
from tests.sim.book import Shop, judge_shop
from tests.sim.chaos import Chaos
from tests.sim.client import Client
from tests.sim.exchanged import judge_exchange
from tests.sim.lines import TTLS_MS
from tests.sim.loop import VirtualLoop
from tests.sim.moved import judge_journey
from tests.sim.oracle import Wrong, demand, judge_call
from tests.sim.workload import opening, work
from tests.sim.world import LOCATIONS, SKUS, World

CLIENTS: Final = 5
ACTIVITIES: Final = 5  # of each client
WORKING_MOST_S: Final = 30.0  # of virtual time, then something hangs
RECOVERING_MOST_S: Final = 10.0
QUIET_S: Final = max(TTLS_MS) / 1000 + 1.5  # until the last hold has expired, clocks being apart


@dataclass(slots=True)
class Report:
    """What became of one seed. `wrong` is empty when all was right."""

    seed: int
    wrong: str = ""
    trace: list[str] = field(default_factory=list)
    blocks: int = 0
    recoveries: int = 0
    calls: int = 0
    virtual_s: float = 0.0

    @property
    def trace_hash(self) -> str:
        """The same for the same seed and code."""
        return hashlib.blake2b("\n".join(self.trace).encode(), digest_size=16).hexdigest()


def run(seed: int, tell: Callable[[str], None] | None = None) -> Report:
    """Simulate one seed. `tell` gets each line of the trace as it is written."""
    report = Report(seed)

    def log(line: str) -> None:
        report.trace.append(line)
        if tell is not None:
            tell(line)

    world = World(seed, log)
    try:
        with _small_bounds(Random(seed)), _no_logs():
            world.loop.run_until_complete(_simulate(world))
    except AssertionError as wrong:
        report.wrong = str(wrong) or repr(wrong)
        log(f"{world.loop.now_s:10.6f} WRONG: {report.wrong}")
    finally:
        world.loop.finish()
    report.blocks = sum(len(each.stream.history) for each in world.oracle.ledgers.values())
    report.recoveries = world.oracle.recoveries
    report.virtual_s = world.loop.now_s
    report.calls = world.calls
    return report


@contextmanager
def _small_bounds(chance: Random) -> Iterator[None]:
    """Bounds so low that few requests and cells meet them.

    Then a shard applies a block ahead of the last, and goes on while it copies a snapshot; it takes a
    caller for the only one; and a hold may end between two steps of an operation on it.
    """
    gather_lines = chance.choice((1, 1, 2, shard_module.GATHER_LINES))
    lone_blocks = chance.choice((1, 2, shard_module.LONE_BLOCKS))
    with (
        patch.object(shard_module, "GATHER_LINES", gather_lines),
        patch.object(shard_module, "LONE_BLOCKS", lone_blocks),
        patch.object(engine_snapshot, "PIECE_ROWS", 3),
        patch.object(commits, "GRACE_MS", 2),
        patch.object(moves, "GRACE_MS", 2),
        patch.object(ways, "GRACE_MS", 2),
    ):
        yield


@contextmanager
def _no_logs() -> Iterator[None]:
    """Shards log each death and recovery; the trace says the same."""

    def drop(*_: Any) -> NoReturn:
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[drop])
    try:
        yield
    finally:
        structlog.configure(**before)


async def _simulate(world: World) -> None:
    world.start()
    shop, chaos = Shop(), Chaos(world)
    clients = [Client(world, shop, number) for number in range(CLIENTS)]
    await _within(world, RECOVERING_MOST_S, [clients[0].process.start(opening(clients[0]))])
    faults = world.loop.create_task(chaos.run())
    working = [client.process.start(work(client, ACTIVITIES)) for client in clients]
    await _within(world, WORKING_MOST_S, working, chaos)
    faults.cancel()
    chaos.heal()
    await _quiet(world, clients[0])
    world.calls = len(shop.calls)
    _judge(world, shop)
    await _restart_all(world)
    _judge(world, shop)


async def _within(
    world: World, limit_s: float, tasks: list[asyncio.Task[None]], chaos: Chaos | None = None
) -> None:
    """Wait for tasks; half the time with faults, then without them."""
    _, late = await asyncio.wait(tasks, timeout=limit_s / 2)
    if late and chaos is not None:
        chaos.heal()
    if late:
        _, late = await asyncio.wait(late, timeout=limit_s / 2)
    _check_failures(world.loop)
    demand(not late, f"{len(late)} clients still have no answer after {limit_s} s")


async def _quiet(world: World, client: Client) -> None:
    """Wait until every deadline has passed, then read everything once."""
    await asyncio.sleep(QUIET_S)
    ends = world.loop.now_s + RECOVERING_MOST_S
    while any(host.shard is None or not host.process.alive for host in world.hosts.values()):
        demand(world.loop.now_s < ends, "a shard does not come back")
        await asyncio.sleep(0.05)
    while any(host.intents is None or host.intents.open for host in world.gateways.values()):
        demand(world.loop.now_s < ends, "what a gateway has begun is not finished")
        await asyncio.sleep(0.05)
    names = [(sku, at) for sku in range(1, SKUS + 1) for at in range(1, LOCATIONS + 1)]
    await client.process.start(client.look_at_cells(names))


async def _restart_all(world: World) -> None:
    """Each shard dies once more, and what it recovers is what it had."""
    for host in list(world.hosts.values()):
        host.process.kill("the end")
    await asyncio.sleep(0.5)
    ends = world.loop.now_s + RECOVERING_MOST_S
    while any(host.shard is None for host in world.hosts.values()):
        demand(world.loop.now_s < ends, "a shard does not come back at the end")
        await asyncio.sleep(0.05)


def _judge(world: World, shop: Shop) -> None:
    _check_failures(world.loop)
    world.oracle.judge_end()
    ledgers = world.oracle.ledgers
    answered: set[bytes] = set()
    raced = {journey.hold_id for journey in shop.journeys}
    for call in shop.calls:
        is_alone = call.request.op_id not in answered and hold_id_of(call.request) not in raced
        judge_call(ledgers, world.shard_map, call, is_alone=is_alone)
        answered.add(call.request.op_id)
    wrong = judge_shop(shop, {shard: each.machine for shard, each in ledgers.items()})
    wrong += [each for known in shop.journeys for each in judge_journey(known, ledgers)]
    wrong += [each for known in shop.exchanges for each in judge_exchange(known, ledgers)]
    demand(not wrong, "; ".join(wrong))
    for number, host in world.hosts.items():
        demand(host.process.alive, f"shard {number} is dead at the end: {host.process.end}")


def _check_failures(loop: VirtualLoop) -> None:
    if loop.failures:
        raise Wrong(loop.failures[0])
