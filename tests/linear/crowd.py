"""Clients of all kinds at once, and somebody who kills the shard meanwhile; what they all saw.

Half of the clients go to the shard itself, half by the gateway. Some have little patience: a call
whose time is over is asked again with its id when all is done, or never.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from adapters.client import Client, Unavailable
from adapters.client.ids import new_op_id
from engine.operations import Kind
from tests.linear.history import Call, Key, Operation
from tests.linear.record import Recorder, Request, ShardReader
from tests.linear.traffic import Traffic

CLIENTS: Final = 10
READERS: Final = 2
IMPATIENT: Final = 2  # of the clients
IMPATIENT_S: Final = 0.3  # less than a real shard is away when it was killed
GIVEN_UP: Final = (
    2  # calls that are never asked again; each may have happened at any time, or never
)
STOCK: Final = 20  # base units of each cell to begin with
PHASE_S: Final = 40.0  # a phase that takes longer is stuck


class Crowd:
    """Clients of all kinds, at work on the same cells until they are told to end."""

    def __init__(self, gateway: str, cells: Sequence[Key]) -> None:
        self.gateway, self.cells = gateway, list(cells)
        self.recorder = Recorder()
        self.traffic = Traffic(cells, random.Random())
        self._end = asyncio.Event()

    async def work(self, disturb: Callable[[], Awaitable[object]], times: int, enough: int) -> int:
        """Open, let all work, disturb them so many times, close; then the history is complete.

        `enough` operations are answered before each disturbance and after the last one. Returns how
        many were asked again at the end.
        """
        async with Client.connect(self.gateway) as client:
            for key in self.cells:
                stock = (Call(Kind.RECEIVE, ((key, STOCK),)),)
                await self.recorder.ask(client, "opening", Request(new_op_id(), stock))
        await self._look_alone()
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                is_patient = number < CLIENTS - IMPATIENT
                group.create_task(self._call(number, is_patient=is_patient))
            for number in range(READERS):
                group.create_task(self._look(number))
            for _ in range(times):
                await self._see(enough)
                await disturb()
            await self._see(enough)
            self._end.set()
        async with Client.connect(self.gateway) as client:
            asked_again = await self.recorder.ask_again(client, but=GIVEN_UP)
        await self._look_alone()
        return asked_again

    @property
    def history(self) -> list[Operation]:
        return self.recorder.history

    async def _see(self, more: int) -> None:
        """Wait until so many more operations were answered."""
        async with asyncio.timeout(PHASE_S):
            await self.recorder.reached(len(self.history) + more)

    async def _call(self, number: int, *, is_patient: bool) -> None:
        """Work as one client: single calls, batches, a look at what they are about now and then."""
        is_direct = number % 2 == 0
        name = f"{'direct' if is_direct else 'gateway'} {number}"
        recorder, traffic, rng = self.recorder, self.traffic, random.Random()
        timeout_s = 30.0 if is_patient else IMPATIENT_S
        client = await self._connected(timeout_s, direct=is_direct)
        while not self._end.is_set():
            draw = rng.random()
            if draw < 0.08:
                await recorder.look_up(client, name, traffic.hold())
            elif draw < 0.12:
                await recorder.look_up_incoming(client, name, traffic.record())
            else:
                traffic.hear(await recorder.ask(client, name, traffic.request()))
            # The impatient are in no hurry, or nearly all that they ask would be lost.
            await asyncio.sleep(0 if is_patient else 0.1)
        await client.close()

    async def _connected(self, timeout_s: float, *, direct: bool) -> Client:
        """A client that may have had to try more than once: a busy machine is slow to answer."""
        async with asyncio.timeout(PHASE_S):
            while True:
                with suppress(Unavailable):
                    return await Client.connect(
                        self.gateway, direct=direct, timeout_s=timeout_s
                    ).__aenter__()

    async def _look(self, number: int) -> None:
        """Read cells of the shard, each alone and all at once."""
        reader, rng = ShardReader(self.gateway), random.Random()
        while not self._end.is_set():
            keys = self.cells if rng.random() < 0.5 else [rng.choice(self.cells)]
            was_read = await self.recorder.read(reader, f"reader {number}", keys)
            await asyncio.sleep(0.002 if was_read else 0.05)
        await reader.close()

    async def _look_alone(self) -> None:
        """Read every cell when nobody is at work."""
        reader = ShardReader(self.gateway)
        for key in self.cells:
            assert await self.recorder.read(reader, "auditor", [key])
        await reader.close()
