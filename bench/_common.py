"""What the benches share: a stack with stock in it, load in a process of its own, and the result."""

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from adapters.client import Batch, Client, Kind, Location, Sku
from adapters.settings import Settings
from adapters.stack import Stack
from bench.load import Cells
from engine import limits

SKUS: Final = 25_000
LOCATIONS: Final = 400
STOCK: Final = 1_000_000  # base units a cell: nothing is refused
_POLL_S: Final = 0.05
_STRIDE: Final = 79  # prime to SKUS: a location's cells are different SKUs

Load = TypeVar("Load")
Measured = TypeVar("Measured")


class Screen:
    """What a person sees: on stderr, so that stdout can be read by machines."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:28}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show the steps while they are taken."""
        with self._progress:
            yield

    @contextmanager
    def step(self, name: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """One step; what is yielded is told how much of `total` is done."""
        task: TaskID = self._progress.add_task(name, total=total)
        yield lambda done: self._progress.update(task, completed=min(done, total or done))
        self._progress.update(task, total=total or 1, completed=total or 1)

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Show the result."""
        table = Table(title=title, show_header=False)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)


@dataclass(frozen=True, slots=True)
class World:
    """A stack that serves, and the cells in it that have stock."""

    stack: Stack
    shard_address: str
    cells: Cells


@contextmanager
def world(screen: Screen, cells: int) -> Iterator[World]:
    """Bring everything up in a directory of its own, with `cells` cells in stock; then take it away.

    One shard: its address is what the load goes to.
    """
    with tempfile.TemporaryDirectory(prefix="onhand-bench-") as folder:
        settings = Settings.load(data_dir=Path(folder), shards=1, port=0, appendfsync="always")
        with ExitStack() as until:
            with screen.step("starting Valkey, Ray, actors"):
                stack = until.enter_context(Stack(settings))
            with screen.step("catalogue and stock", cells) as done:
                stocked = asyncio.run(_fill(stack.gateway_address, cells, done))
            yield World(stack, stack.shard_address(0), stocked)
            with screen.step("stopping"):
                until.close()


async def _fill(gateway: str, cells: int, done: Callable[[float], None]) -> Cells:
    async with Client.connect(gateway) as client:
        sku_ids: list[int] = []
        for first in range(0, SKUS, limits.MAX_CATALOG_ENTRIES):
            last = min(first + limits.MAX_CATALOG_ENTRIES, SKUS)
            sku_ids += await client.add_skus([Sku(f"SKU-{n}") for n in range(first, last)])
        location_ids = await client.add_locations(
            [Location(f"LOC-{n}", "USD") for n in range(LOCATIONS)]
        )
        number = np.arange(cells)
        per_location = -(-cells // LOCATIONS)
        place, nth = number // per_location, number % per_location
        stocked = Cells(
            sku=np.array(sku_ids, np.uint32)[(place * 131 + nth * _STRIDE) % SKUS],
            location=np.array(location_ids, np.uint32)[place],
        )
        for first in range(0, cells, limits.MAX_BATCH_LINES):
            these = slice(first, first + limits.MAX_BATCH_LINES)
            sku, location = stocked.sku[these], stocked.location[these]
            batch = Batch(kind=Kind.RECEIVE, sku=sku, location=location, quantity=STOCK)
            received = await client.submit(batch)
            if not received.ok:
                line = int(received.refused[0])
                raise RuntimeError(f"stock was refused: {received.message(line)}")
            done(first)
    return stocked


def in_own_process(
    screen: Screen, name: str, run: Callable[[Load], Measured], load: Load, seconds: float
) -> Measured:
    """Run load in a fresh process, which shares no lock with this one, and wait for what it found."""
    spawn = multiprocessing.get_context("spawn")
    with (
        screen.step(name, seconds) as done,
        ProcessPoolExecutor(1, mp_context=spawn) as pool,
    ):
        future = pool.submit(run, load)
        began_s = time.monotonic()
        while not future.done():
            done(time.monotonic() - began_s)
            time.sleep(_POLL_S)
        return future.result()


def arguments(description: str, *, seconds: float) -> argparse.ArgumentParser:
    """The arguments that all benches take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=_positive, default=seconds, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the result to this file, or - for stdout")
    parser.add_argument("--cells", type=_cells, default=100_000, help="SKUs at locations, in stock")
    parser.add_argument("--ttl-ms", type=int, default=500, help="of the holds: expiry never rests")
    return parser


def report(screen: Screen, title: str, result: dict[str, Any], to: Path | None) -> int:
    """Show the result, write it down, and give the exit code: 1 unless stock is conserved."""
    screen.table(title, [(name, _shown(value)) for name, value in result.items()])
    text = json.dumps(result, indent=2)
    if to is not None and str(to) != "-":
        to.write_text(text + "\n")
    elif to is not None:
        print(text)
    if not result["conserved"]:
        print("NOT CONSERVED: what is reserved is not what the holds say", file=sys.stderr)
        return 1
    return 0


def percentile(values: Any, percent: float) -> float:
    """A percentile of latencies, to the microsecond; 0 of none."""
    return round(float(np.percentile(values, percent)), 3) if len(values) else 0.0


def _shown(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int | float) and not isinstance(value, bool)
        else f"{value}"
    )


def _positive(text: str) -> float:
    seconds = float(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return seconds


def _cells(text: str) -> int:
    cells = int(text)
    if not LOCATIONS <= cells <= LOCATIONS * SKUS:
        raise argparse.ArgumentTypeError(f"must be {LOCATIONS} to {LOCATIONS * SKUS}")
    return cells
