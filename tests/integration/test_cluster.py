"""Real actors of a real Ray, which host a toy."""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from actors.cluster import Cluster, Handle
from actors.service import (
    ActorGone,
    ActorTimeout,
    CallFailed,
    ConfigMismatch,
    NotServing,
    StartFailed,
    UnknownActor,
)
from tests.integration.toy_service import WHO, Toy, ToyConfig, make_toy

pytest_plugins = ["tests.integration.ray_fixture"]

_numbers = count()


class Toys:
    """Starts actors for one test, and stops them after it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.names: list[str] = []

    def start(self, config: ToyConfig, **how: Any) -> Handle:
        name = f"toy-{next(_numbers)}"
        self.names.append(name)
        return self.cluster.start_shard(name, make_toy, config, **how)


@pytest.fixture
def toys(ray_cluster: Cluster) -> Iterator[Toys]:
    made = Toys(ray_cluster)
    yield made
    for name in made.names:
        with suppress(UnknownActor):
            ray_cluster.kill(name, restart=False)


@pytest.fixture(scope="module")
def shared(ray_cluster: Cluster) -> Iterator[Handle]:
    """An actor that serves, for tests that do it no harm."""
    toy = ray_cluster.start_shard("shared", make_toy, ToyConfig())
    toy.ready_sync()
    yield toy
    ray_cluster.stop("shared")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


async def who(port: int, not_pid: int = 0, within_s: float = 20.0) -> tuple[int, bool, str]:
    """Ask the toy by gRPC, and it alone, until another process than `not_pid` answers."""
    async with asyncio.timeout(within_s):
        while True:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                try:
                    answer: bytes = await channel.unary_unary(WHO)(b"", timeout=1.0)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.02)
                    continue
            pid, restarted, loop = answer.decode().split()
            if int(pid) != not_pid:
                return int(pid), restarted == "True", loop


def exists(path: Path, within_s: float = 20.0) -> bool:
    """Wait for a file that another process makes."""
    deadline_s = time.monotonic() + within_s
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return path.exists()


# ------------------------------------------------------------------------ starts by itself --------


async def test_an_actor_serves_without_being_called(toys: Toys) -> None:
    port = free_port()
    toys.start(ToyConfig(port))
    _, restarted, loop = await who(port)
    assert not restarted
    assert loop == "uvloop"


async def test_a_killed_actor_serves_again_without_being_called(toys: Toys) -> None:
    port = free_port()
    toy = toys.start(ToyConfig(port))
    pid, _, _ = await who(port)
    os.kill(pid, signal.SIGKILL)
    again, restarted, _ = await who(port, not_pid=pid)
    assert restarted
    assert await toy.pid() == again


async def test_an_actor_that_ends_itself_serves_again(toys: Toys) -> None:
    port = free_port()
    toy = toys.start(ToyConfig(port))
    pid, _, _ = await who(port)
    with pytest.raises(ActorGone):
        await toy.call("exit")
    await who(port, not_pid=pid)


async def test_kill_is_a_crash_and_ready_waits_out_the_restart(toys: Toys) -> None:
    toy = toys.start(ToyConfig())
    await toy.ready()
    pid = await toy.pid()
    call = asyncio.create_task(toy.call("sleep", 30.0, timeout_s=30))
    await asyncio.sleep(0.1)
    toys.cluster.kill(toy.name)
    with pytest.raises(ActorGone) as caught:
        await call
    assert not caught.value.for_good
    await toy.ready()
    assert await toy.pid() != pid


# -------------------------------------------------------------------- a start that fails ----------


async def test_a_failing_start_is_told_and_heals(toys: Toys, tmp_path: Path) -> None:
    awaited = tmp_path / "valkey"
    toy = toys.start(ToyConfig(unless=str(awaited)))
    with pytest.raises(StartFailed, match=r"ConnectionRefusedError: no /.*valkey"):
        await toy.ready()
    pid = await toy.pid()
    with pytest.raises(NotServing, match="ConnectionRefusedError"):
        await toy.call("echo", 1)
    awaited.touch()
    async with asyncio.timeout(10):
        while True:
            try:
                await toy.ready()
            except StartFailed:
                await asyncio.sleep(0.1)
            else:
                break
    assert await toy.pid() == pid, "it tried again in the same process"


async def test_a_factory_that_raises_is_a_failing_start(toys: Toys) -> None:
    toy = toys.start(ToyConfig(port=-1))
    with pytest.raises(StartFailed, match="ValueError: ports are positive"):
        await toy.ready()


async def test_an_actor_that_dies_at_every_start_is_slowed_down(toys: Toys, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    toys.start(ToyConfig(dies_in=str(deaths)))
    assert exists(deaths)
    await asyncio.sleep(4)
    assert 2 <= len(deaths.read_text().splitlines()) <= 4


# --------------------------------------------------------------------------------- calls ----------


async def test_a_call_in_flight_at_death_is_not_run_again(toys: Toys, tmp_path: Path) -> None:
    toy = toys.start(ToyConfig())
    await toy.ready()
    note = tmp_path / "ran"
    call = asyncio.create_task(toy.call("note_and_sleep", str(note), 30.0, timeout_s=30))
    assert await asyncio.to_thread(exists, note)
    os.kill(await toy.pid(), signal.SIGKILL)
    died_s = time.monotonic()
    with pytest.raises(ActorGone):
        await call
    assert time.monotonic() - died_s < 1.5, "the caller learns of it soon"
    await toy.ready()
    assert note.read_text() == "once\n"


async def test_a_stopped_process_times_out_and_goes_on(toys: Toys) -> None:
    toy = toys.start(ToyConfig())
    await toy.ready()
    pid = await toy.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ActorTimeout):
            await toy.call("echo", 1, timeout_s=0.3)
        with pytest.raises(ActorTimeout, match="CPUs are free"):
            await toy.ready(timeout_s=0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await toy.call("echo", 2) == 2


async def test_exceptions_of_the_service_come_through(shared: Handle) -> None:
    with pytest.raises(KeyError, match="a bug") as caught:
        await shared.call("fail")
    assert "shared.fail" in caught.value.__notes__[0]
    with pytest.raises(CallFailed, match="held together by a generator"):
        await shared.call("fail_badly")


@pytest.mark.parametrize("size", [0, 300_000, 3_000_000])
async def test_bytes_of_any_size(shared: Handle, size: int) -> None:
    value = os.urandom(size)
    assert await shared.call("length", value) == size
    assert await shared.call("echo", value) == value


async def test_actors_call_each_other(toys: Toys, shared: Handle) -> None:
    toy = toys.start(ToyConfig())
    await toy.ready()
    assert await toy.call("ask", "shared", "echo", "hello") == "hello"
    with pytest.raises(KeyError, match="a bug"):
        await toy.call("ask", "shared", "fail")
    with pytest.raises(UnknownActor):
        await toy.call("ask", "nobody", "echo", 1)


async def test_many_calls_at_once(shared: Handle) -> None:
    assert await asyncio.gather(*[shared.call("echo", n) for n in range(500)]) == list(range(500))


def test_callers_without_a_loop(ray_cluster: Cluster, shared: Handle) -> None:
    shared.ready_sync()
    assert shared.call_sync("echo", 7) == 7
    assert shared.pid_sync() == ray_cluster.pid("shared")


async def test_nobody_of_that_name(ray_cluster: Cluster) -> None:
    with pytest.raises(UnknownActor):
        await ray_cluster.actor("nobody").call("echo", 1)
    with pytest.raises(UnknownActor):
        ray_cluster.kill("nobody")


# --------------------------------------------------------------------------------- names ----------


async def test_the_same_start_finds_the_same_actor(ray_cluster: Cluster, shared: Handle) -> None:
    again = ray_cluster.start_shard("shared", make_toy, ToyConfig())
    await again.ready()
    assert await again.pid() == await shared.pid()


async def test_another_config_is_told_without_its_values(
    ray_cluster: Cluster, shared: Handle
) -> None:
    other = ray_cluster.start_shard("shared", make_toy, replace(ToyConfig(), secret="swordfish"))
    with pytest.raises(ConfigMismatch, match=r"different config\.secret$"):
        await other.ready()
    with pytest.raises(ConfigMismatch, match=r"different kind$"):
        await ray_cluster.start_gateway("shared", make_toy, ToyConfig()).ready()


async def test_stop_is_graceful_and_frees_the_name(
    ray_cluster: Cluster, toys: Toys, tmp_path: Path
) -> None:
    mark = tmp_path / "stopped"
    toy = toys.start(ToyConfig(stopped=str(mark)))
    await toy.ready()
    pid = await toy.pid()
    ray_cluster.stop(toy.name)
    assert mark.exists()
    with pytest.raises(UnknownActor):
        await toy.call("echo", 1)
    again = ray_cluster.start_shard(toy.name, make_toy, ToyConfig())
    await again.ready()
    assert await again.pid() != pid


async def test_stop_does_not_wait_for_an_actor_that_hangs(ray_cluster: Cluster, toys: Toys) -> None:
    toy = toys.start(ToyConfig())
    await toy.ready()
    pid = await toy.pid()
    os.kill(pid, signal.SIGSTOP)
    ray_cluster.stop(toy.name, timeout_s=0.2)
    with pytest.raises((UnknownActor, ActorGone)):
        await toy.call("echo", 1, timeout_s=1)
    os.kill(pid, signal.SIGKILL)


def test_a_factory_must_be_found_by_its_name(ray_cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="not a top-level function"):
        ray_cluster.start_shard("never", lambda config, host: Toy(config, host), ToyConfig())  # noqa: PLW0108


# ------------------------------------------------------------------------------- clusters ---------


def command_lines() -> Iterator[str]:
    """Those of all processes below this one that live; others end meanwhile, or wait to be reaped."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # of which ZombieProcess is one
            yield " ".join(process.cmdline())


async def test_a_local_ray_is_lean_and_its_workers_are_not_nice(shared: Handle) -> None:
    processes = list(command_lines())
    assert any("raylet" in line for line in processes)
    for helper in ("monitor.py", "dashboard.py", "log_monitor.py"):
        assert not any(helper in line for line in processes), helper
    assert await shared.call("niceness") == os.nice(0)
    assert await shared.call("environment", "NUMBA_NUM_THREADS") == "1"
    assert "RAY_worker_niceness" not in os.environ, "this process's environment is as it was"


async def test_a_collection_of_garbage_passes_by_what_a_process_began_with(shared: Handle) -> None:
    looked_at, passed_by = await shared.call("tracked")
    assert looked_at < 20_000 < passed_by


def test_one_connection_at_a_time_and_no_ray_client(ray_cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="already"):
        Cluster.connect()
    with pytest.raises(ValueError, match="Ray Client"):
        Cluster.connect("ray://127.0.0.1:10001")


def test_our_exceptions_survive_the_way_between_actors() -> None:
    gone = pickle.loads(pickle.dumps(ActorGone("why", for_good=True)))
    assert (str(gone), gone.for_good) == ("why", True)


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    # In a process of its own, as this one is connected.
    code = f"""
from actors.cluster import Cluster
from actors.service import ClusterUnavailable
try:
    Cluster.connect("127.0.0.1:{free_port()}")
except ClusterUnavailable as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, timeout=30
    )
    assert "cannot reach the Ray cluster at 127.0.0.1:" in done.stdout
    assert "refused" in done.stdout


OTHER_PROCESS = """
import sys
from actors.cluster import Cluster
from actors.service import ClusterError, ClusterUnavailable, ConfigMismatch
from tests.integration.toy_service import ToyConfig, make_toy

with Cluster.connect(sys.argv[1], env={"TOY": "soldier"}) as cluster:
    print(cluster.actor("shared").call_sync("echo", "hello"))
    fleeting = cluster.start_shard("fleeting", make_toy, ToyConfig())
    lasting = cluster.start_gateway("lasting", make_toy, ToyConfig(), detached=True)
    fleeting.ready_sync()
    lasting.ready_sync()
    print(lasting.call_sync("environment", "TOY"))
try:
    lasting.call_sync("echo", 1)
except ClusterError as error:
    print(error)
"""


async def test_another_process_joins_and_leaves_a_detached_actor(
    ray_cluster: Cluster, shared: Handle
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", OTHER_PROCESS, ray_cluster.address],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "hello",
        "soldier",
        "the connection to the cluster was shut down",
    ]
    with pytest.raises(UnknownActor):
        await ray_cluster.actor("fleeting").call("echo", 1)
    lasting = ray_cluster.actor("lasting")
    pid = await lasting.pid()
    os.kill(pid, signal.SIGKILL)
    await lasting.ready()
    assert await lasting.pid() != pid
    ray_cluster.stop("lasting")


SIGNALLED = """
import os, signal, sys
from actors.cluster import Cluster

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
with Cluster.connect(workers=1):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_a_process_that_minds_its_signals_goes_on_doing_so() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (7, "")
