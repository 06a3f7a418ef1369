"""The system under simulated faults: `make sim SEED=n` replays a seed that failed here."""

import os
import subprocess
import sys

import pytest
from hypothesis import settings

from tests.sim.many import first_failure
from tests.sim.run import run

SEEDS = {"dev": 100, "ci": 500, "nightly": 10_000}[settings.get_current_profile_name()]
if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
    SEEDS //= 25  # kernels as plain Python are slow, and coverage needs no more


def test_a_seed_is_replayed_exactly_in_this_process_and_in_another() -> None:
    here = run(5)
    assert here.trace == run(5).trace
    assert here.trace != run(6).trace
    told = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seed", "5"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert here.trace_hash in told


def test_a_simulation_meets_what_it_is_for() -> None:
    reports = [run(seed) for seed in range(20)]
    assert sum(report.calls for report in reports) > 500
    assert sum(report.recoveries for report in reports) > 100
    trace = "\n".join(line for report in reports for line in report.trace)
    for moment in (
        "before an append",
        "during an append",
        "after an append",
        "between two steps",
        "writes at once",
        "Fenced",
        "AppendInDoubt",
    ):
        assert moment in trace, moment


# The last one: it uses all cores (see tests/beside.py).
@pytest.mark.timeout(0)
def test_nothing_goes_wrong_in_any_seed() -> None:
    failed = first_failure(range(SEEDS))
    assert failed is None, f"{failed.wrong}\n\nmake sim SEED={failed.seed}"
