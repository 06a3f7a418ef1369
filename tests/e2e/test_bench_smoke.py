"""The benches in their smoke mode: real actors, real gRPC, real fsync, and an answer that is proven."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest

Result: TypeAlias = dict[str, Any]


def run(bench: str, to: Path, *arguments: str) -> Result:
    command = [sys.executable, "-m", f"bench.{bench}", "--json", str(to), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr[-4_000:]
    result: Result = json.loads(to.read_text())
    return result


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[], Result]]]:
    """What came of two benches that ran at once: most of their time a smoke waits for processes."""
    folder = tmp_path_factory.mktemp("benches")
    common = "--seconds", "1", "--cells", "4000"
    with ThreadPoolExecutor() as pool:
        submit = pool.submit(run, "submit", folder / "submit.json", *common)
        storm = pool.submit(run, "storm", folder / "storm.json", *common, "--holds", "20000")
        yield {"submit": submit.result, "storm": storm.result}


@pytest.mark.timeout(120)
def test_batches_against_a_lua_script(both: dict[str, Callable[[], Result]]) -> None:
    result = both["submit"]()
    assert result["conserved"] is True
    assert result["lua_conserved"] is True
    assert result["refused_lines"] == 0
    assert result["state_hash"]
    assert result["lines_per_s"] > 0
    assert 0 < result["batch_ms_p50"] <= result["batch_ms_p99"]
    assert result["ratio_lua"] == pytest.approx(
        result["lines_per_s"] / result["lua_lines_per_s"], abs=0.1
    )


@pytest.mark.timeout(120)
def test_holds_that_run_out_together(both: dict[str, Callable[[], Result]]) -> None:
    result = both["storm"]()
    assert result["conserved"] is True
    assert result["hash_after_restart_equal"] is True
    assert result["holds_expired"] >= 20_000
    assert 0 < result["calm_ms_p99"] <= result["calm_ms_max"]
    assert result["stall_ms"] >= result["storm_ms_p99"] > 0


@pytest.mark.timeout(120)
def test_single_calls_against_an_echo(tmp_path: Path) -> None:
    result = run("unary", tmp_path / "unary.json", "--seconds", "2", "--cells", "4000")
    assert result["conserved"] is True
    assert result["refused_calls"] == 0
    assert result["state_hash"]
    assert result["calls_per_s"] > 0
    assert 0 < result["echo_p50_ms_c1"] < result["p50_ms_c1"] * 2
    assert 0 < result["durable_echo_p50_ms_c1"] < result["p50_ms_c1"] * 2
    assert result["ratio_echo"] == pytest.approx(
        result["calls_per_s"] / result["echo_calls_per_s"], abs=0.001
    )
