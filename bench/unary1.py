"""Single reserves on the direct path, against a gRPC echo that does nothing.

    python -m bench.unary [--seconds N] [--json FILE] [--cells N]

Echo and shard are actors of one Ray, and one client process calls both in turn: slices of time
(echo at concurrency 1, ours at 1, echo at 64, ours at 64, and again), so that the machine's noise
meets both alike. Same client code, same request bytes, replies of the same length; every one of our
calls is durable before it is answered. Closed loop: each caller waits for its answer, so latencies
are a waiting caller's.
"""

import asyncio
import os
import socket
from typing import Any

from adapters.client.peers import open_channel
from bench._common import Screen, World, arguments, in_own_process, percentile, report, world
from bench.echo import EchoConfig, make_echo
from bench.load import (
    RESERVE,
    UnaryLoad,
    UnaryMeasured,
    fresh_ids,
    reserve_template,
    run_unary,
    with_id,
)

CONCURRENCY = 1
SLICE_S = 0.5
ECHO = "bench-echo"


def main(argv: list[str] | None = None) -> int:
    """Run the bench; the exit code is 1 when stock is not conserved."""
    parser = arguments("Single reserves on the direct path, against a gRPC echo.", seconds=16.0)
    options = parser.parse_args(argv)
    screen = Screen()
    load_before = os.getloadavg()[0]
    with screen.progress(), world(screen, options.cells) as found:
        ours, echo = _measure(screen, found, options)
        with screen.step("auditing"):
            audit = found.stack.audit()
    calls_per_s = ours[CONCURRENCY].calls / ours[CONCURRENCY].seconds
    echo_calls_per_s = echo[CONCURRENCY].calls / echo[CONCURRENCY].seconds
    result = {
        "calls_per_s": round(calls_per_s),
        "p50_ms_c1": percentile(ours[1].call_ms, 50),
        "echo_calls_per_s": round(echo_calls_per_s),
        "echo_p50_ms_c1": percentile(echo[1].call_ms, 50),
        "ratio_echo": round(calls_per_s / echo_calls_per_s, 3) if echo_calls_per_s else 0.0,
        "conserved": audit.conserved,
        "state_hash": audit.state_hash,
        "p99_ms_c1": percentile(ours[1].call_ms, 99),
        "p50_ms_c64": percentile(ours[CONCURRENCY].call_ms, 50),
        "p99_ms_c64": percentile(ours[CONCURRENCY].call_ms, 99),
        "refused_calls": sum(each.refused for each in ours.values()),
        "concurrency": CONCURRENCY,
        "cells": options.cells,
        "ttl_ms": options.ttl_ms,
        "seconds": options.seconds,
        "machine_load_before": round(load_before, 2),  # of others: figures are for a quiet machine
    }
    return report(screen, "Unary Reserve, direct path, fsync always", result, options.json)


def _measure(
    screen: Screen, found: World, options: Any
) -> tuple[dict[int, UnaryMeasured], dict[int, UnaryMeasured]]:
    """Call the shard and an echo: what came of each, by concurrency."""
    with screen.step("starting the echo"):
        reply = asyncio.run(_one_reply(found, options.ttl_ms))
        port = _free_port()
        cluster = found.stack.cluster
        cluster.start_shard(ECHO, make_echo, EchoConfig(port, reply)).ready_sync()
    # Two servers at two concurrencies share the time.
    slices = max(1, round(options.seconds / (4 * SLICE_S)))
    load = UnaryLoad(
        ours=found.shard_address,
        echo=f"127.0.0.1:{port}",
        cells=found.cells,
        slices=slices,
        slice_s=options.seconds / (4 * slices),
        concurrencies=(1, 1 + 0 * CONCURRENCY),
        ttl_ms=options.ttl_ms,
    )
    measured = in_own_process(screen, "calling both in turn", run_unary, load, options.seconds)
    cluster.stop(ECHO)
    ours, echo = (
        {concurrency: measured[address, concurrency] for concurrency in load.concurrencies}
        for address in (load.ours, load.echo)
    )
    return ours, echo


async def _one_reply(found: World, ttl_ms: int) -> bytes:
    """A real reply, whose length the echo's has."""
    cells = found.cells
    template = reserve_template(int(cells.sku[0]), int(cells.location[0]), ttl_ms)
    async with open_channel(found.shard_address) as channel:
        reserve: Any = channel.unary_unary(RESERVE)
        reply: bytes = await reserve(with_id(next(fresh_ids(low_zeros=0)), template))
        return reply


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


if __name__ == "__main__":
    raise SystemExit(main())
