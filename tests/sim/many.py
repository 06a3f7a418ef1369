"""Many seeds on all cores."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from tests.sim.mutations import MUTATIONS
from tests.sim.run import Report, run

CHUNK = 10


def first_failure(seeds: Sequence[int], *, console: Console | None = None) -> Report | None:
    """Run seeds until one fails, and return its report without the trace; None when all is right."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    columns = ("seeds", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=console is None)
    with (
        progress,
        ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as workers,
    ):
        bar = progress.add_task("seeds", total=len(seeds))
        running = {workers.submit(_failure_among, chunk): len(chunk) for chunk in chunks}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                progress.advance(bar, running.pop(each))
                failed = each.result()
                if failed is not None:
                    workers.shutdown(wait=False, cancel_futures=True)
                    return failed
    return None


def finders(*, console: Console | None = None) -> Iterator[tuple[str, int, int | None]]:
    """Yield each planted bug, the seed that is known to find it, and the one that does now, if any."""
    columns = ("planted bugs", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, disable=console is None) as progress,
        ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as workers,
    ):
        bar = progress.add_task("planted bugs", total=len(MUTATIONS))
        running = {workers.submit(_finder, place): each for place, each in enumerate(MUTATIONS)}
        for done in as_completed(running):
            progress.advance(bar)
            yield running[done].name, running[done].found_by, done.result()


def _finder(place: int) -> int | None:
    mutation = MUTATIONS[place]
    with mutation.plant():
        return next((seed for seed in mutation.to_try() if run(seed).wrong), None)


def _failure_among(seeds: Iterable[int]) -> Report | None:
    for seed in seeds:
        report = run(seed)
        if report.wrong:
            report.trace.clear()
            return report
    return None
