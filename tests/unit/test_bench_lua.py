"""The peer of `bench.submit` does what it is compared for: judges, remembers, expires, adds up."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from adapters.valkey import EmbeddedValkey
from bench import lua
from bench.lua import LuaLoad


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="onhand-test-") as folder,
        EmbeddedValkey(Path(folder), die_with_parent=True) as server,
    ):
        yield server.url


@pytest.fixture
def admin(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.flushall()
        yield client


def reserve(admin: Any, op: str, quantity: int, deadline_ms: int = 1_000) -> int:
    keys = ("c:0", op, "holds", "deadlines")
    answer: int = admin.eval(lua.RESERVE, len(keys), *keys, quantity, deadline_ms, 60_000)
    return answer


def test_the_script_judges_and_remembers(admin: Any) -> None:
    admin.hset("c:0", mapping={"on_hand": 5, "reserved": 0})
    assert reserve(admin, "o:1", 3) == 0
    assert reserve(admin, "o:1", 3) == 0
    assert admin.hget("c:0", "reserved") == "3"
    assert reserve(admin, "o:2", 3) == 23
    assert admin.hlen("holds") == 1
    assert 0 < admin.pttl("o:1") <= 60_000


def test_the_sweep_gives_back_what_is_overdue_and_nothing_else(admin: Any) -> None:
    admin.hset("c:0", mapping={"on_hand": 5, "reserved": 0})
    reserve(admin, "o:1", 3, deadline_ms=100)
    reserve(admin, "o:2", 2, deadline_ms=200)
    sweep = (lua.SWEEP, 2, "holds", "deadlines")
    assert admin.eval(*sweep, 100, 10) == -1
    assert admin.eval(*sweep, 101, 10) == -2
    assert admin.hget("c:0", "reserved") == "2"
    assert admin.hkeys("holds") == ["o:2"]


def test_a_run_adds_up(admin: Any, url: str) -> None:
    load = LuaLoad(url, seconds=0.6, cells=400, ttl_ms=100, pipeline=100, warm_up_s=0.2)
    measured = lua.run(load)
    assert measured.conserved
    assert measured.lines_per_s > 0
    assert measured.refused == 0
    assert measured.expired > 0
    assert admin.config_get("appendfsync") == {"appendfsync": "always"}


def test_a_sum_that_is_off_is_seen(admin: Any, url: str) -> None:
    admin.hset("c:0", mapping={"on_hand": 5, "reserved": 0})
    reserve(admin, "o:1", 3)
    assert lua._check(admin, 1, 1) == (True, 0)
    admin.hincrby("c:0", "reserved", 1)
    assert lua._check(admin, 1, 1) == (False, 0)
