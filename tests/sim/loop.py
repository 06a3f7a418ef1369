"""An event loop on a virtual clock, and the processes that run on it.

One thread, no sockets, no waiting: when nothing is ready the clock jumps to the next timer. Every
turn of the loop costs `TURN_S`, so that code which waits by looking at the clock gets on.

A process is what can die or be paused by itself: everything that runs in its context, and all tasks
and timers that come of that. What a dead process still had to do is never done, as after kill -9; of
a paused one it is done when it goes on, as after SIGSTOP and SIGCONT.
"""

import asyncio
import contextvars
import heapq
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

TURN_S: Final = 20e-6

_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Stuck(AssertionError):  # noqa: N818 - a finding
    """Nothing is ready, no timer is set, and the simulation has not ended."""


class Killed(BaseException):
    """Stands for the end of a process in its own stack; nothing may catch it."""


class Process:
    """One simulated process. `end` is what it says of its end, empty while it lives."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.end = ""
        self.paused = False
        self.at_end: list[Callable[[], None]] = []  # run outside of it
        self.context = contextvars.Context()
        self.context.run(_process.set, self)
        self._loop = loop
        self._parked: deque[asyncio.Handle] = deque()

    @property
    def alive(self) -> bool:
        return not self.end

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in this process. What it raises is a finding."""
        task = self._loop.create_task(work, context=self.context)
        task.add_done_callback(self._ended, context=contextvars.Context())
        return task

    def call_later(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Call something in this process, if it lives by then."""
        self._loop.call_later(delay_s, call, *args, context=self.context)

    def kill(self, why: str) -> None:
        """End it between two turns of the loop: none of its code runs any more."""
        if self.alive:
            self.end = why
            self._parked.clear()
            for each in self.at_end:
                self._loop.outside(0, each)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._loop.put_back(self._parked)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Killed):
            self._loop.failures.append(f"{self.name}: {error!r}")

    def may_run(self, handle: asyncio.Handle) -> bool:
        if self.end:
            return False
        if self.paused:
            self._parked.append(handle)
            return False
        return True


def current_process() -> Process:
    """The process whose code is running."""
    process = _process.get()
    assert process is not None, "this code must run in a process"
    return process


class _Handle(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_process)
        if process is None or process.may_run(self):
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_process)
        if process is None or process.may_run(self):
            super()._run()


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. A context that belongs to no process runs outside of all: network, disks, chance.

    `failures` are exceptions that nobody caught.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.failures: list[str] = []
        self.connect: Callable[[Any], Any] = lambda factory: None
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        # Kept to the end: what is collected runs its `finally` at a moment that no seed decides.
        self._tasks: list[asyncio.Task[Any]] = []
        self._over = False
        self.set_exception_handler(VirtualLoop._note)

    def time(self) -> float:
        return self.now_s

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        if not self._over:
            self._ready.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = _TimerHandle(when, callback, args, self, context)
        self._timers_made += 1  # timers of one moment go off in the order they were set
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def create_task(self, coro: Any, **how: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **how)
        self._tasks.append(task)
        return task

    async def create_connection(self, protocol_factory: Any, *where: Any, **how: Any) -> Any:
        return self.connect(protocol_factory)

    def outside(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Call something outside of all processes."""
        self.call_later(delay_s, call, *args, context=contextvars.Context())

    def put_back(self, handles: deque[asyncio.Handle]) -> None:
        self._ready.extend(handles)
        handles.clear()

    def finish(self) -> None:
        """Close it, and let go of everything unfinished without running any of it."""
        self._over = True
        self._ready.clear()
        self._timers.clear()
        self.set_exception_handler(lambda loop, context: None)
        self.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that never began
            for task in self._tasks:
                coroutine = task.get_coro()
                if isinstance(coroutine, Coroutine):
                    with suppress(BaseException):
                        coroutine.close()
            self._tasks.clear()

    def _write_to_self(self) -> None:
        """Nothing sleeps here that would have to be woken."""

    def _run_once(self) -> None:
        """One turn, as `BaseEventLoop.run_forever` takes it."""
        self.now_s += TURN_S
        timers, ready = self._timers, self._ready
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise Stuck("nothing is left to happen")
            self.now_s = max(self.now_s, timers[0][0])
        while timers and timers[0][0] <= self.now_s:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _note(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.failures.append(f"{context['message']}: {error!r}")
