"""Onhand on a Ray that runs already and with a store that is not its own, as the README tells it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.environment import RAY_ENVIRONMENT
from adapters.valkey import EmbeddedValkey
from tests.e2e.conftest import eventually, free_port
from tests.e2e.test_demo import ONHAND, onhand, told, wait_for_note

AUTH = {"RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder with a short name: Ray makes sockets in it."""
    with tempfile.TemporaryDirectory(prefix="oh-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def ray_head(short_dir: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A cluster of one machine: its address, and the process whose children are all of it."""
    port = free_port()
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    assert ray is not None
    command = [
        ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={short_dir / 'ray'}",
        "--num-cpus=4", "--include-dashboard=false", "--disable-usage-stats",
        f"--ray-client-server-port={free_port()}", f"--object-store-memory={100 << 20}",
    ]  # fmt: skip
    with (
        (short_dir / "ray.log").open("w") as log,
        subprocess.Popen(
            command, env=os.environ | RAY_ENVIRONMENT | AUTH, stdout=log, stderr=subprocess.STDOUT
        ) as head,
    ):
        try:
            yield f"127.0.0.1:{port}", psutil.Process(head.pid)
        finally:
            everything = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            head.wait(30)
            for left in psutil.wait_procs(everything, 10)[1]:
                left.kill()


def listens(process: psutil.Process, address: str) -> bool:
    port = int(address.rpartition(":")[2])
    connections = process.net_connections("tcp")
    return any(
        each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections
    )


def test_a_shard_dies_on_a_ray_and_with_a_store_that_are_there_already(
    short_dir: Path, ray_head: tuple[str, psutil.Process]
) -> None:
    address, head = ray_head
    data = ("--data-dir", short_dir / "data")

    def status() -> dict[str, Any]:
        result = onhand("status", "--json", *data, **AUTH)
        assert result.returncode == 0, told(result)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    rows = {
        "skus.csv": [("sku", "unit", "description"), *((f"A-{i}", "EA", "") for i in range(50))],
        "places.csv": [("location", "currency"), ("S1", "EUR"), ("S2", "EUR")],
        "stock.csv": [
            ("sku", "location", "quantity", "price_minor"),
            *((f"A-{i}", at, 100 + i, 199) for i in range(50) for at in ("S1", "S2")),
        ],
    }
    with EmbeddedValkey(short_dir / "store", die_with_parent=True) as store:
        where = {"ONHAND_RAY_ADDRESS": address, "ONHAND_REDIS_URL": store.url, **AUTH}
        command = [*ONHAND, "up", "--port", "0", "--shards", "2", *map(str, data)]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | where
        ) as up:
            try:
                wait_for_note(short_dir / "data" / "running.json", up)
                for name, lines in rows.items():
                    with (short_dir / name).open("w", newline="") as file:
                        csv.writer(file).writerows(lines)
                    loaded = onhand("load", short_dir / name, *data, **AUTH)
                    assert loaded.returncode == 0, told(loaded)
                before = status()
                old = before["servers"]["shard-0"]["address"]
                (shard,) = [each for each in head.children(recursive=True) if listens(each, old)]
                shard.kill()
                eventually(lambda: status()["shards"][0]["epoch"] > 1, 60)
                eventually(lambda: status()["servers"]["shard-0"]["address"] != old)
                again = status()["shards"]
                for one, other in zip(before["shards"], again, strict=True):
                    assert one["state_hash"] == other["state_hash"]
                audited = onhand("audit", *data, **AUTH)
                assert audited.returncode == 0, told(audited)
                cell = onhand("get", "A-7", "S1", "--json", *data, **AUTH)
                assert json.loads(cell.stdout)["on_hand"] == 107, told(cell)
            finally:
                up.send_signal(signal.SIGINT)
                _, errors = up.communicate(timeout=30)
    assert up.returncode == 0, errors
    assert head.is_running(), "a Ray that is somebody else's goes on"
