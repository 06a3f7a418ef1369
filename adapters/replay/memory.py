"""Peak memory of this process and all that it started: Valkey, Ray, the actors, this client.

Sampled in a thread. Counts proportional set sizes where the system tells them (Linux), so that
pages which processes share count once; elsewhere resident set sizes, which count them each time.
"""

import threading
from types import TracebackType
from typing import Final, Self

import psutil

INTERVAL_S: Final = 0.5
MIB: Final = 1 << 20


class PeakMemory:
    """Samples while it is entered; `peak_mib` tells the highest sum seen."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    @property
    def peak_mib(self) -> float:
        """The highest sum so far, in MiB."""
        return round(self._peak_bytes / MIB, 1)

    def sample(self) -> None:
        """Look once, now."""
        me = psutil.Process()
        total = sum(_own_bytes(process) for process in (me, *me.children(recursive=True)))
        self._peak_bytes = max(self._peak_bytes, total)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        self.sample()
        while not self._done.wait(self._interval_s):
            self.sample()


def _own_bytes(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", 0) or full.rss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended in the meantime
        return 0
