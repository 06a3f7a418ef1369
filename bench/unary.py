"""Single reserves on the direct path, against a gRPC echo that does nothing, and one that is durable.

    python -m bench.unary [--seconds N] [--json FILE] [--cells N]

Shard and echoes are actors of one Ray, and one client process calls them in turn: slices of time
(both echoes at concurrency 1, ours at 1, the empty echo at 64, ours at 64, and again), so that the
machine's noise meets all alike. Same client code, same request bytes, replies of the same length;
every one of our calls is durable before it is answered. Closed loop: each caller waits for its
answer, so latencies are a waiting caller's. `durable_echo_p50_ms_c1` is of an echo that does one
durable append and nothing else: no server that keeps a journal in this store answers sooner.
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

CONCURRENCY = 64
SLICE_S = 0.5
ECHO = "bench-echo"
DURABLE_ECHO = "bench-durable-echo"


def main(argv: list[str] | None = None) -> int:
    """Run the bench; the exit code is 1 when stock is not conserved."""
    parser = arguments("Single reserves on the direct path, against a gRPC echo.", seconds=20.0)
    options = parser.parse_args(argv)
    screen = Screen()
    load_before = os.getloadavg()[0]
    with screen.progress(), world(screen, options.cells) as found:
        ours, echo, durable = _measure(screen, found, options)
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
        "durable_echo_p50_ms_c1": percentile(durable[1].call_ms, 50),
        "refused_calls": sum(each.refused for each in ours.values()),
        "concurrency": CONCURRENCY,
        "cells": options.cells,
        "ttl_ms": options.ttl_ms,
        "seconds": options.seconds,
        "machine_load_before": round(load_before, 2),  # of others: figures are for a quiet machine
    }
    return report(screen, "Unary Reserve, direct path, fsync always", result, options.json)


def _measure(screen: Screen, found: World, options: Any) -> list[dict[int, UnaryMeasured]]:
    """Call the shard, an empty echo and a durable one: what came of each, by concurrency."""
    with screen.step("starting the echoes"):
        reply = asyncio.run(_one_reply(found, options.ttl_ms))
        cluster = found.stack.cluster
        addresses = [found.shard_address]
        for name, store in ((ECHO, ""), (DURABLE_ECHO, found.stack.redis_url)):
            port = _free_port()
            cluster.start_shard(name, make_echo, EchoConfig(port, reply, store)).ready_sync()
            addresses.append(f"127.0.0.1:{port}")
    ours, echo, durable = addresses
    servers = {1: (echo, durable, ours), CONCURRENCY: (echo, ours)}
    turns = sum(map(len, servers.values()))
    slices = max(1, round(options.seconds / (turns * SLICE_S)))
    load = UnaryLoad(
        servers=servers,
        cells=found.cells,
        slices=slices,
        slice_s=options.seconds / (turns * slices),
        ttl_ms=options.ttl_ms,
    )
    measured = in_own_process(screen, "calling all in turn", run_unary, load, options.seconds)
    for name in (ECHO, DURABLE_ECHO):
        cluster.stop(name)
    return [
        {at: measured[address, at] for at in servers if (address, at) in measured}
        for address in addresses
    ]


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
