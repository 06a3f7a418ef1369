"""A million holds that run out in the same second, over ten million cells: memory, and who waits.

    python -m bench.storm [--cells N] [--holds N] [--snapshot] [--json FILE]

The shard is filled with cells and with holds whose deadlines lie within one second, and a few
callers go on reserving through it: `stall_ms` is the longest that one of them waited while the
holds ran out; `calm_ms_max` and `calm_ms_p99` are the same callers' waits in the seconds before, on
the same machine. `shard_peak_mib` is the shard process's highest resident set of the whole run. It ends on
conservation, the state hash, and the same hash after a restart from the journal.
"""

import asyncio
import itertools
import os
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psutil
import uvloop
from numpy.typing import NDArray

from adapters.client.peers import open_channel
from bench._common import Screen, World, arguments, in_own_process, percentile, report, world
from bench.load import RESERVE, SUBMIT, Cells, fresh_ids, reserve_template, with_id
from engine import limits
from onhand.v1 import stock_pb2

CALLERS: Final = 4
CALM_S: Final = 3.0
WITHIN_MS: Final = 1_000  # the deadlines are spread over so long
AFTER_S: Final = 3.0
LOAD_RATE: Final = 200_000  # holds a second that loading is sure to reach, on a busy machine too
TIMEOUT_S: Final = 60.0
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StormLoad:
    """Holds to be made on one shard, and calls to be made while they run out."""

    address: str
    cells: Cells
    holds: int
    calm_s: float  # between the last hold and the first one's deadline, at least
    ttl_ms: int  # of the calls' own holds


@dataclass(frozen=True, slots=True)
class StormMeasured:
    """Waits of single calls, before and while the holds run out, and how long loading took."""

    calm_ms: NDArray[np.float64]
    storm_ms: NDArray[np.float64]
    load_s: float


def main(argv: list[str] | None = None) -> int:
    """Run the bench; the exit code is 1 when stock is not conserved."""
    parser = arguments("Many holds that run out in the same second.", seconds=CALM_S)
    parser.set_defaults(cells=10_000_000)
    parser.add_argument("--holds", type=int, default=1_000_000, help="that run out together")
    parser.add_argument(
        "--snapshot", action="store_true", help="take one after the storm, and restart from it"
    )
    options = parser.parse_args(argv)
    screen = Screen()
    load_before = os.getloadavg()[0]
    with screen.progress(), world(screen, options.cells) as found:
        process = psutil.Process(found.stack.shard().pid_sync())
        load = StormLoad(
            found.shard_address, found.cells, options.holds, options.seconds, options.ttl_ms
        )
        whole_s = options.holds / LOAD_RATE + options.seconds + WITHIN_MS / 1e3 + AFTER_S
        measured = in_own_process(screen, "holds, and the storm", run_storm, load, whole_s)
        state = _settled(found)
        if options.snapshot:
            with screen.step("taking a snapshot"):
                found.stack.snapshot()
        peak = _peak_bytes(process)
        with screen.step("auditing"):
            audit = found.stack.audit()
        recovered_s, same = _restart(screen, found)
    result = {
        "stall_ms": percentile(measured.storm_ms, 100),
        "storm_ms_p99": percentile(measured.storm_ms, 99),
        "calm_ms_max": percentile(measured.calm_ms, 100),
        "calm_ms_p99": percentile(measured.calm_ms, 99),
        "calls_in_storm": len(measured.storm_ms),
        "shard_peak_mib": round(peak / _MIB),
        "cell_bytes": round(state["bytes"]["cells"] / state["cells"], 1),
        "hold_bytes": round(state["bytes"]["holds"] / options.holds, 1),
        "conserved": audit.conserved,
        "state_hash": audit.state_hash,
        "hash_after_restart_equal": same,
        "recovered_s": recovered_s,
        "cells": state["cells"],
        "holds": options.holds,
        "holds_expired": state["holds_expired"],
        "load_s": round(measured.load_s, 1),
        "machine_load_before": round(load_before, 2),  # of others: figures are for a quiet machine
    }
    return report(screen, "Holds that run out together", result, options.json) or int(not same)


def _settled(found: World) -> dict[str, Any]:
    """The shard's status when the calls' own holds have run out too."""
    ends_s = time.monotonic() + TIMEOUT_S
    while (state := found.stack.status())["holds_open"]:
        if time.monotonic() > ends_s:
            raise RuntimeError(f"{state['holds_open']} holds do not run out")
        time.sleep(0.1)
    return state


def _restart(screen: Screen, found: World) -> tuple[float, bool]:
    with screen.step("restarting from the journal"):
        before, began_s = found.stack.state_hash(), time.monotonic()
        found.stack.restart_shard()
        return round(time.monotonic() - began_s, 1), found.stack.state_hash() == before


def _peak_bytes(process: psutil.Process) -> int:
    """The highest resident set that a process ever had, where the system tells it (Linux)."""
    try:
        with open(f"/proc/{process.pid}/status") as status:  # noqa: PTH123 - a process, not a file
            words = next(line for line in status if line.startswith("VmHWM")).split()
        return int(words[1]) << 10
    except OSError:
        return int(process.memory_info().rss)


def run_storm(load: StormLoad) -> StormMeasured:
    """Make the holds and call through their end."""
    return uvloop.run(_storm(load))


async def _storm(load: StormLoad) -> StormMeasured:
    random = np.random.default_rng(0)
    began_s = time.perf_counter()
    due_s = began_s + load.holds / LOAD_RATE + load.calm_s
    async with open_channel(load.address) as channel:
        await _make_holds(channel.unary_unary(SUBMIT), load, random, due_s)
        load_s = time.perf_counter() - began_s
        if due_s - time.perf_counter() < load.calm_s:
            raise RuntimeError(f"loading took {load_s:.1f} s: the first holds run out already")
        calls = await _probe(channel.unary_unary(RESERVE), load, due_s)
    sent_s, call_ms = calls[:, 0], calls[:, 1]
    stormy = sent_s + call_ms / 1e3 >= due_s
    return StormMeasured(call_ms[~stormy], call_ms[stormy], load_s)


async def _make_holds(
    send: Any, load: StormLoad, random: np.random.Generator, due_s: float
) -> None:
    ids = fresh_ids(low_zeros=2)
    starts = iter(range(0, load.holds, limits.MAX_BATCH_LINES))

    async def work() -> None:
        for start in starts:
            lines = min(limits.MAX_BATCH_LINES, load.holds - start)
            pick = load.cells.pick(random, lines)
            due_in_ms = round((due_s - time.perf_counter()) * 1e3)
            ttl_ms = due_in_ms + random.integers(0, WITHIN_MS, lines)
            batch = stock_pb2.SubmitRequest(
                lines=lines,
                kind=bytes([stock_pb2.KIND_RESERVE]),
                sku=pick.sku.astype("<u4").tobytes(),
                location=pick.location.astype("<u4").tobytes(),
                quantity=(1).to_bytes(8, "little"),
                value=ttl_ms.astype("<i8").tobytes(),
            )
            request = with_id(next(ids), batch.SerializeToString())
            reply = stock_pb2.SubmitReply.FromString(await send(request, timeout=TIMEOUT_S))
            if reply.status:
                raise RuntimeError(f"a hold was refused: status {max(reply.status)}")

    await asyncio.gather(*(work() for _ in range(2)))


async def _probe(send: Any, load: StormLoad, due_s: float) -> NDArray[np.float64]:
    """Reserve one unit at a time until after the storm: when each was sent (s), its wait (ms)."""
    begins_s, ends_s = due_s - load.calm_s, due_s + WITHIN_MS / 1e3 + AFTER_S
    random = np.random.default_rng(1)
    pick = load.cells.pick(random, 1_024)
    names = zip(pick.sku.tolist(), pick.location.tolist(), strict=True)
    templates = itertools.cycle([reserve_template(*name, load.ttl_ms) for name in names])
    ids = fresh_ids(low_zeros=0)
    calls: list[tuple[float, float]] = []

    async def work() -> None:
        await asyncio.sleep(max(begins_s - time.perf_counter(), 0.0))
        while (sent_s := time.perf_counter()) < ends_s:
            await send(with_id(next(ids), next(templates)), timeout=TIMEOUT_S)
            calls.append((sent_s, (time.perf_counter() - sent_s) * 1e3))

    await asyncio.gather(*(work() for _ in range(CALLERS)))
    return np.array(calls)


if __name__ == "__main__":
    raise SystemExit(main())
