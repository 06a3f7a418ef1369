"""Commands on a running Onhand, without one."""

import json
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from actors.cluster import NotServing
from adapters.cli import inspect
from adapters.cli.main import app
from adapters.cli.running import Running

STATUS = {
    "epoch": 1,
    "seq": 2,
    "cells": 3,
    "holds_open": 4,
    "holds_committed": 5,
    "shortages": 6,
}


class HalfUp(Running):
    """Two shards, of which the second is being restarted."""

    def __enter__(self) -> Self:
        self.gateway = {
            "subscribers": 0,
            "event_subscribers": 0,
            "servers": {},
            "mirrors": [{}, {}],
        }
        self.shards = range(2)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _ask(self, actor: str, method: str, timeout_s: float = 0) -> Any:
        if actor == "shard-1":
            raise NotServing("shard-1 does not serve: it is starting")
        return STATUS


def test_the_status_shows_the_shards_that_serve_and_why_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect, "Running", HalfUp)
    shown = CliRunner().invoke(app, ["status", "--ray-address", "here:1", "--json"])
    first, second = json.loads(shown.stdout)["shards"]
    assert (first["seq"], second["error"]) == (2, "shard-1 does not serve: it is starting")
    table = CliRunner().invoke(app, ["status", "--ray-address", "here:1"])
    assert table.exit_code == 0
    assert "shard 1: shard-1 does not serve: it is starting" in table.stdout
