"""Batches on the direct path, every line durable before it is answered, against a Lua script.

    python -m bench.submit [--seconds N] [--json FILE] [--lines N] [--in-flight N] [--cells N]

`lines_per_s`: lines that were answered OK, and are on disk (fsync on every block). Holds live for
`--ttl-ms` only, so lines expire as fast as they are reserved. Closed loop: `--in-flight` batches
are under way, each followed by the next; `batch_ms` is from send to reply. Then the peer, with the
same fsync setting, the same cells and time to live, and as many pipelines in flight.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from adapters.stack import AuditReport
from adapters.valkey import EmbeddedValkey
from bench import lua
from bench._common import Screen, arguments, in_own_process, percentile, report, world
from bench.load import SubmitLoad, SubmitMeasured, run_submit
from engine import limits

PIPELINE = 500
SETTLE_S = 0.5  # after the first holds have run out: from then on as many expire as are reserved


def main(argv: list[str] | None = None) -> int:
    """Run the bench; the exit code is 1 when stock is not conserved."""
    parser = arguments("Batches on the direct path, against a Lua script.", seconds=6.0)
    parser.add_argument("--lines", type=int, default=limits.MAX_BATCH_LINES, help="of each batch")
    parser.add_argument("--in-flight", type=int, default=3, help="batches under way at once")
    options = parser.parse_args(argv)
    screen = Screen()
    load_before = os.getloadavg()[0]
    with screen.progress():
        ours, audit = _ours(screen, options)
        peer = _peer(screen, options)
    lines_per_s = round(ours.ok_lines / ours.seconds)
    result = {
        "lines_per_s": lines_per_s,
        "batch_ms_p50": percentile(ours.batch_ms, 50),
        "batch_ms_p99": percentile(ours.batch_ms, 99),
        "lua_lines_per_s": round(peer.lines_per_s),
        "ratio_lua": round(lines_per_s / peer.lines_per_s, 1) if peer.lines_per_s else 0.0,
        "conserved": audit.conserved,
        "state_hash": audit.state_hash,
        "refused_lines": ours.refused_lines,
        "lua_conserved": peer.conserved,
        "lines": options.lines,
        "in_flight": options.in_flight,
        "cells": options.cells,
        "ttl_ms": options.ttl_ms,
        "seconds": options.seconds,
        "machine_load_before": round(load_before, 2),  # of others: figures are for a quiet machine
    }
    return report(screen, "Submit, direct path, fsync always", result, options.json)


def _ours(screen: Screen, options: Any) -> tuple[SubmitMeasured, AuditReport]:
    with world(screen, options.cells) as found:
        load = SubmitLoad(
            address=found.shard_address,
            cells=found.cells,
            seconds=options.seconds,
            lines=options.lines,
            in_flight=options.in_flight,
            ttl_ms=options.ttl_ms,
            warm_up_s=_warm_up_s(options),
        )
        whole_s = load.warm_up_s + load.seconds
        measured = in_own_process(screen, "reserving in batches", run_submit, load, whole_s)
        with screen.step("auditing"):
            return measured, found.stack.audit()


def _peer(screen: Screen, options: Any) -> lua.LuaMeasured:
    with (
        tempfile.TemporaryDirectory(prefix="onhand-bench-") as folder,
        EmbeddedValkey(Path(folder), "always") as valkey,
    ):
        load = lua.LuaLoad(
            url=valkey.url,
            seconds=options.seconds,
            cells=options.cells,
            ttl_ms=options.ttl_ms,
            pipeline=PIPELINE,
            connections=options.in_flight,
            warm_up_s=_warm_up_s(options),
        )
        whole_s = load.warm_up_s + load.seconds
        return in_own_process(screen, "the peer: a Lua script", lua.run, load, whole_s)


def _warm_up_s(options: Any) -> float:
    """Before anything is counted, so that expiry works all the time that is; bounded for smoke."""
    return float(min(options.ttl_ms / 1000 + SETTLE_S, options.seconds))


if __name__ == "__main__":
    raise SystemExit(main())
