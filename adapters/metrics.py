"""Metrics of one process, for Prometheus: what was done, how long it took, what is open.

Blocks are counted whole, by numpy, and never line by line. Each process has a registry of its own and
serves it on loopback from a thread, so a scrape costs the event loop nothing but the GIL.
"""

from collections.abc import Callable
from threading import Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)

from actors.shard import BlockStats
from engine.operations import Kind
from engine.status import Status

LOOPBACK: Final = "127.0.0.1"

_SECONDS: Final = (
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 5, 10,
)  # fmt: skip
_LINES: Final = tuple(float(1 << power) for power in range(0, 16, 2))
_STATUSES: Final = 1 << max(Status).bit_length()  # a power of two above every status
_KIND_NAMES: Final = {int(kind): kind.name.lower() for kind in Kind}
_GAUGES: Final = {
    "holds_open": "Holds with something pending",
    "shortages": "Cells with available below zero",
    "cells": "Cells in the table",
    "subscribers": "Streams of deltas that are open",
    "event_subscribers": "Streams of events that are open",
    "intents_open": "Calls over several shards that have begun and not ended",
    "recent_event_bytes": "Bytes of decoded blocks that are kept for them",
}
_STATUS_NAMES: Final = tuple(status.name for status in Status)


class Metrics:
    """The registry of one process. `role` is "shard" or "gateway", `number` which one."""

    def __init__(self, role: str, number: int) -> None:
        self.registry = CollectorRegistry()
        own = {"role": role, "number": str(number)}

        def named(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **how: Any) -> Any:
            metric = kind(f"onhand_{name}", text, (*own, *labels), registry=self.registry, **how)
            return _Bound(metric, own) if labels else metric.labels(**own)

        self._operations = named(Counter, "operations", "Lines judged", ("kind", "status"))
        self._blocks = named(Counter, "blocks", "Blocks appended to the journal")
        self._block_bytes = named(Counter, "block_bytes", "Bytes of blocks appended")
        self._expired = named(Counter, "holds_expired", "Holds that ran out")
        self._endangered = named(
            Counter,
            "holds_endangered",
            "Holds named by facts that left a shortage; of a cell once a block",
        )
        self._block_lines = named(Histogram, "block_lines", "Lines of a block", buckets=_LINES)
        self._append = named(
            Histogram, "append_seconds", "Until a block is durable", buckets=_SECONDS
        )
        self._wait = named(
            Histogram, "request_seconds", "From a request's arrival at its shard to its answer",
            buckets=_SECONDS,
        )  # fmt: skip
        self._calls = named(
            Histogram, "call_seconds", "From a call's arrival to its reply", ("method",),
            buckets=_SECONDS,
        )  # fmt: skip
        self._refused = named(Counter, "calls_refused", "gRPC errors", ("method", "code"))
        self._events_told = named(Counter, "events_told", "Events written to streams")
        self._lag = named(
            Gauge, "lag_seconds", "How far the mirror of a shard is behind", ("shard",)
        )
        self._named = named
        self._counted: dict[int, Any] = {}  # kind and status to the counter's child
        self._http: tuple[WSGIServer, Thread] | None = None

    def block_done(self, block: BlockStats) -> None:
        """Count a block: 20 µs and 1 µs a request, whatever the number of its lines."""
        self._blocks.inc()
        self._block_bytes.inc(block.nbytes)
        self._expired.inc(block.expired)
        if block.endangered:
            self._endangered.inc(block.endangered)
        self._block_lines.observe(len(block.statuses))
        self._append.observe(block.append_s)
        for wait_s in block.waits_s:
            self._wait.observe(wait_s)
        codes = block.statuses.astype(np.int64)
        if len(block.kinds) == len(codes):
            codes += block.kinds.astype(np.int64) * _STATUSES
        counts = np.bincount(codes)
        for code in np.flatnonzero(counts).tolist():
            child = self._counted.get(code)
            if child is None:
                kind, status = divmod(code, _STATUSES)
                # Whatever is not a kind is one series, or a caller could make 256 of them.
                labels = (_KIND_NAMES.get(kind, "invalid"), _STATUS_NAMES[status])
                child = self._counted[code] = self._operations.labels(*labels)
            child.inc(int(counts[code]))

    def call_observer(self, method: str) -> Callable[[float], None]:
        """Give a function that is told how many seconds each call of a method took."""
        observe: Callable[[float], None] = self._calls.labels(method).observe
        return observe

    def call_refused(self, method: str, code: str) -> None:
        """Count a call that ended with a gRPC error, by the name of its code."""
        self._refused.labels(method, code).inc()

    def events_told(self, count: int) -> None:
        """Count events that were written to a stream."""
        self._events_told.inc(count)

    def mirror_lag(self, shard: int, seconds: float) -> None:
        """Note how far the mirror of a shard is behind."""
        self._lag.labels(str(shard)).set(seconds)

    def watch(self, gauge: str, read: Callable[[], float]) -> None:
        """Serve one of the gauges, which reads its value at each scrape, in the scrape's thread.

        What a process does not watch it does not serve: a gateway has no shortages, not 0 of them.
        """
        self._named(Gauge, gauge, _GAUGES[gauge]).set_function(read)

    def serve(self, host: str = LOOPBACK, port: int = 0) -> int:
        """Serve the registry over HTTP from a thread; return the port (0 chooses a free one)."""
        assert self._http is None, "served already"
        self._http = start_http_server(port, host, self.registry)
        bound: int = self._http[0].server_port
        return bound

    def close(self) -> None:
        """Stop serving. May be repeated."""
        if self._http is not None:
            server, thread = self._http
            self._http = None
            server.shutdown()
            server.server_close()
            thread.join()


class _Bound:
    """A metric whose process labels are filled in."""

    def __init__(self, metric: Any, own: dict[str, str]) -> None:
        self._metric = metric
        self._own = tuple(own.values())

    def labels(self, *values: str) -> Any:
        return self._metric.labels(*self._own, *values)
