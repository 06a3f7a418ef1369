"""`onhand status`, `audit` and `snapshot`: a look at, and a hand on, a running Onhand."""

from typing import Final

import typer
from rich.table import Table

from adapters.cli.options import (
    DEFAULT_DATA_DIR,
    DataDir,
    JsonFile,
    JsonOutput,
    RayAddress,
)
from adapters.cli.output import check_writable, out, print_json, say, write_json
from adapters.cli.running import Running

# What fits a terminal; --json has the rest.
SHOWN: Final = (
    "shard",
    "epoch",
    "seq",
    "cells",
    "holds_open",
    "holds_committed",
    "shortages",
    "mirror_lag_ms",
)


def status(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    ray_address: RayAddress = "",
    as_json: JsonOutput = False,
) -> None:
    """Show the shards, their epochs and open holds, the gateway's lag and where metrics are.

    A shard that does not serve now, because it is being restarted, says why.

    Example: onhand status --json | jq '.shards[].holds_open'
    """
    with Running(data_dir, ray_address) as running:
        shards = [running.shard_if_serving(number) for number in running.shards]
        subscribers, servers = running.gateway["subscribers"], running.gateway["servers"]
        of_events = running.gateway["event_subscribers"]
    if as_json:
        print_json(
            {
                "servers": servers,
                "subscribers": subscribers,
                "event_subscribers": of_events,
                "shards": shards,
            }
        )
        return
    for name, entry in sorted(servers.items()):
        out.print(f"{name:<10} gRPC {entry['address']}  metrics {entry['metrics'] or 'off'}")
    out.print(f"subscribers: {subscribers:,} to deltas, {of_events:,} to events")
    table = Table(*(name.replace("_", " ") for name in SHOWN))
    for shard in shards:
        table.add_row(*(f"{shard[name]:,}" if name in shard else "?" for name in SHOWN))
    out.print(table)
    for shard in shards:
        if "error" in shard:
            out.print(f"shard {shard['shard']}: {shard['error']}", markup=False, soft_wrap=True)


def audit(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    ray_address: RayAddress = "",
    json_file: JsonFile = None,
) -> None:
    """Check every shard of a running Onhand: what is reserved and committed is what holds say.

    Exit code 0 only if everything holds. Example: onhand audit --json audit.json
    """
    check_writable(json_file)
    with Running(data_dir, ray_address) as running:
        problems = {number: running.audit(number) for number in running.shards}
        hashes = {number: running.shard(number).get("state_hash") for number in running.shards}
    conserved = not any(problems.values())
    write_json(json_file, {"conserved": conserved, "problems": problems, "state_hashes": hashes})
    for number, found in problems.items():
        out.print(f"shard {number}: {'holds' if not found else 'FAILED'}, hash {hashes[number]}")
        for problem in found:
            out.print(f"  {problem}", markup=False)
    if not conserved:
        raise typer.Exit(1)


def snapshot(data_dir: DataDir = DEFAULT_DATA_DIR, ray_address: RayAddress = "") -> None:
    """Write a snapshot of every shard now, so that the next start replays less.

    Example: onhand snapshot
    """
    with Running(data_dir, ray_address) as running:
        for number in running.shards:
            say(f"shard {number}: snapshot as of block {running.snapshot(number)}")
