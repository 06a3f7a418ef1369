"""Calls between processes: lost, delayed, doubled, overtaken; the other side may be dead or paused."""

import asyncio
from random import Random
from typing import Any, Final, Protocol

from actors.service import ActorGone, ActorTimeout
from tests.sim.loop import Process, VirtualLoop, current_process
from tests.sim.weather import Weather

CALL_TIMEOUT_S: Final = 0.5


class Host(Protocol):
    """A process that can be called."""

    process: Process

    async def call(self, method: str, *args: Any) -> Any:
        """Answer a call, in the host's process."""


class Network:
    """All links between clients, gateways and shards."""

    def __init__(self, loop: VirtualLoop, chance: Random, weather: Weather) -> None:
        self._loop = loop
        self._chance = chance
        self._weather = weather

    async def call(self, host: Host, method: str, *args: Any) -> Any:
        """Call a host from the current process.

        Raises what the method raised, ActorGone and ActorTimeout: then it may have run, run still, or
        run later.
        """
        caller = current_process()
        answer: asyncio.Future[Any] = self._loop.create_future()

        def arrive() -> None:
            if not host.process.alive:
                self._send(caller, answer, ActorGone(f"{host.process.name} is dead"))
                return
            gone = ActorGone(f"{host.process.name} died")
            host.process.at_end.append(lambda: self._send(caller, answer, gone))
            host.process.start(serve())

        async def serve() -> None:
            try:
                result = await host.call(method, *args)
            except Exception as error:  # noqa: BLE001 - it is the caller's
                result = error
            self._send(caller, answer, result)

        for _ in range(self._copies()):
            self._loop.outside(self._weather.way_s(self._chance), arrive)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                result = await answer
        except TimeoutError:
            raise ActorTimeout(f"{host.process.name}.{method}: no answer") from None
        if isinstance(result, Exception):
            raise result
        return result

    def _copies(self) -> int:
        if self._chance.random() < self._weather.lost:
            return 0
        return 2 if self._chance.random() < self._weather.doubled else 1

    def _send(self, caller: Process, answer: asyncio.Future[Any], result: Any) -> None:
        """Send a result on its way back; later ones than the first are thrown away."""

        def arrive() -> None:
            if not answer.done():
                answer.set_result(result)

        if self._chance.random() >= self._weather.lost:
            caller.call_later(self._weather.way_s(self._chance), arrive)
