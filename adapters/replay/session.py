"""One replay from the first SKU to the audit: catalogue, opening stock, trading, proof, report."""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from adapters.client import Client
from adapters.journey import Journey
from adapters.replay.driver import Driver, Hooks, Ids, Pace
from adapters.replay.ledger import Cells, Ledger, cell_key
from adapters.replay.memory import PeakMemory
from adapters.replay.report import (
    SHOWN,
    Latency,
    Proof,
    Report,
    counts_of,
    say_difference,
    say_unexpected,
    timings_of,
)
from adapters.replay.watchers import Watchers
from adapters.replay.wire import WireStock, add_catalogue

SETTLE_TIMEOUT_S: Final = 10.0  # for expiries that are due to become visible
_POLL_S: Final = 0.1

Phase = Callable[[str, int], Callable[[int], None]]
"""Begins a phase of work, by its name and its size; what it returns is told of progress in it."""


class StoreNotEmpty(Exception):  # noqa: N818 - a condition, for people
    """The engine is at work on other data than the replay's."""


class Audit(Protocol):
    """What an audit of the shards by themselves found."""

    @property
    def problems(self) -> list[str]:
        """What does not hold; empty when all is well."""


class Stack(Protocol):
    """What runs the engine here. All of it may block, and needs a thread without an event loop."""

    def shard_address(self, number: int) -> str:
        """Tell where a shard's own server listens, `host:port`."""

    def kill_shard(self, number: int) -> object:
        """Kill a shard's process with SIGKILL; it comes back by itself."""

    def restart_shard(self, number: int) -> None:
        """End a shard, and start it anew from its journal; returns when it serves."""

    def state_hash(self) -> str:
        """Tell the state hashes of all shards."""

    def audit(self) -> Audit:
        """Check every shard's own invariants."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to replay: a running stack, its gateway's `host:port`, and how many shards it has."""

    stack: Stack
    gateway: str
    shards: int


async def replay(place: Place, journey: Journey, pace: Pace, begin: Phase) -> Report:
    """Replay a journey on a running stack, and audit what came of it."""
    began = time.perf_counter()
    with PeakMemory() as memory:
        async with (
            Client.connect(place.gateway) as direct,
            Client.connect(place.gateway, direct=False) as front,
        ):
            session = _Session(place, journey, pace, begin, direct, front)
            await session.load()
            try:
                await session.trade()
                proof = await session.prove()
            finally:
                await session.stop()
            return session.report(proof, time.perf_counter() - began, memory)


class _Session:
    """The parts of one replay, in the order in which they are called."""

    def __init__(
        self,
        place: Place,
        journey: Journey,
        pace: Pace,
        begin: Phase,
        direct: Client,
        front: Client,
    ) -> None:
        self._place = place
        self._journey = journey
        self._pace = pace
        self._begin = begin
        self._front = front
        self._stock = WireStock(direct, front, self._addresses)
        self._kills = 0

    async def load(self) -> None:
        """Add the catalogue, look at what the engine holds already, and open the books."""
        catalogue, plan = self._journey.catalogue, self._journey.plan
        await check_store(self._front, set(catalogue.store_codes))
        size = len(catalogue.store_codes) + len(catalogue.sku_codes)
        ids = await add_catalogue(self._front, catalogue, self._begin("catalogue", size))
        baseline = await self._stock.cells()
        self._ledger = _books(self._journey, ids, baseline)
        self._watchers = Watchers(self._place.gateway, ids.location)
        trading = len(plan) - plan.opening_lines
        self._progress = self._begin("opening stock", plan.opening_lines)

        async def opened() -> None:
            await self._watchers.start()
            self._progress = self._begin("trading", trading)

        def progress(lines: int) -> None:
            self._progress(lines)  # of whichever phase it is by then

        hooks = Hooks(progress, opened, self._kill)
        self._driver = Driver(plan, catalogue, ids, self._stock, self._ledger, self._pace, hooks)

    async def trade(self) -> None:
        """Send the whole plan."""
        await self._driver.run()

    async def prove(self) -> Proof:
        """Compare the engine with the books, with the replicas and with its own journal."""
        tell = self._begin("audit", 3)
        proof = Proof()
        found = await self._settled()
        differences = self._ledger.differences(found)
        different = {(each.location, each.sku) for each in differences}
        proof.conserved = not differences
        proof.cells_compared = len(np.union1d(self._ledger.cells, found.key))
        proof.cells_different = len(different)
        proof.first_differences = [say_difference(each) for each in differences[:SHOWN]]
        proof.unexpected = len(self._ledger.unexpected)
        proof.first_unexpected = [say_unexpected(it) for it in self._ledger.unexpected[:SHOWN]]
        problems = (await asyncio.to_thread(self._place.stack.audit)).problems
        proof.invariants_hold = not problems
        proof.first_problems = problems[:SHOWN]
        tell(1)
        strayed = await self._watchers.different(found)
        proof.replicas_compared = len(self._watchers.replicas)
        proof.replicas_equal = not strayed and bool(self._watchers.replicas)
        proof.replicas_different = [f"location {each}" for each in strayed[:SHOWN]]
        tell(1)
        await asyncio.to_thread(_restart, self._place, proof)
        tell(1)
        return proof

    async def stop(self) -> None:
        """End the subscriptions."""
        await self._watchers.stop()

    def report(self, proof: Proof, total_s: float, memory: PeakMemory) -> Report:
        """Put everything together."""
        memory.sample()
        catalogue, plan = self._journey.catalogue, self._journey.plan
        delay = Latency.of(self._watchers.delays_ms())
        return Report(
            weeks=plan.options.weeks,
            stores=len(catalogue.store_codes),
            skus=len(catalogue.sku_codes),
            **counts_of(self._ledger),
            **timings_of(self._driver.timings),
            total_s=round(total_s, 3),
            subscribers=len(self._watchers.replicas),
            frames_delivered=self._watchers.frames,
            deltas_delivered=self._watchers.deltas,
            delta_delay_ms_p50=delay.p50_ms,
            delta_delay_ms_p99=delay.p99_ms,
            delta_delay_ms_max=delay.max_ms,
            resumed=self._watchers.resumed,
            proof=proof,
            peak_rss_mib=memory.peak_mib,
        )

    async def _settled(self) -> Cells:
        """Wait for the last deadline, and then until the engine has expired what was abandoned."""
        wait_ns = self._ledger.last_deadline_ns() - time.time_ns()
        await asyncio.sleep(max(0.0, wait_ns / 1e9))
        ends = time.monotonic() + SETTLE_TIMEOUT_S
        self._ledger.expire(time.time_ns())
        while True:
            found = await self._stock.cells()
            if time.monotonic() > ends or not self._ledger.differences(found):
                return found
            await asyncio.sleep(_POLL_S)

    async def _addresses(self) -> list[str]:
        where = self._place.stack.shard_address
        return [await asyncio.to_thread(where, number) for number in range(self._place.shards)]

    async def _kill(self) -> None:
        number = self._kills % self._place.shards
        self._kills += 1
        await asyncio.to_thread(self._place.stack.kill_shard, number)


async def check_store(client: Client, ours: Collection[str]) -> None:
    """Raise StoreNotEmpty when the engine has other locations than those with these codes."""
    others = [each.code for each in await client.list_locations() if each.code not in ours]
    if others:
        raise StoreNotEmpty(
            f"the store has {len(others):,} locations that are not the replay's"
            f" ({', '.join(others[:SHOWN])}), whose data it would mix with its own: name another store"
        )


def _books(journey: Journey, ids: Ids, baseline: Cells) -> Ledger:
    lines, opening = journey.plan.lines, journey.plan.opening
    key = cell_key(ids.location[lines.store], ids.sku[lines.sku])
    short = np.flatnonzero(opening.short)
    short_key = cell_key(ids.location[opening.store[short]], ids.sku[opening.sku[short]])
    return Ledger(lines, key, journey.plan.orders, short_key, baseline)


def _restart(place: Place, proof: Proof) -> None:
    """Restart every shard from its journal, and compare the state hashes."""
    proof.state_hash = place.stack.state_hash()
    began = time.perf_counter()
    for number in range(place.shards):
        place.stack.restart_shard(number)
    proof.restart_ms = round((time.perf_counter() - began) * 1e3, 1)
    proof.state_hash_after_restart = place.stack.state_hash()
    proof.hash_after_restart_equal = proof.state_hash_after_restart == proof.state_hash
