"""Commands on a running Onhand, without one."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from typer.testing import CliRunner

import adapters.client
from actors.service import NotServing
from adapters.cli import inspect, look
from adapters.cli.main import app, main
from adapters.cli.running import Running
from adapters.client import Event, EventKind, Flag, Frame, FrameKind
from adapters.client.frames import Shortage
from adapters.client.values import Cell, Endangered, History, Hold, HoldLine, HoldState

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


def test_a_change_that_leaves_a_shortage_names_whom_it_endangers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = np.array([1, 2], "<u4"), np.array([0, 0], "<i8")
    short = Shortage(2, 7, 3, (Endangered(b"n" * 16, 2, 0), Endangered(b"o" * 16, 0, 5)))
    frame = Frame(
        FrameKind.DELTA, b"token", one, one, two, np.array([0, -3]), two, one, 0, 0, (short,)
    )  # fmt: skip
    look._show(frame, {1: "TEA", 2: "JAM"}, as_json=True)
    tea, jam = map(json.loads, capsys.readouterr().out.splitlines())
    assert (tea["sku"], tea["endangered"]) == ("TEA", [])
    assert (jam["available"], jam["endangered"]) == (-3, [(b"n" * 16).hex(), (b"o" * 16).hex()])
    look._show(frame, {1: "TEA", 2: "JAM"}, as_json=False)
    tea_line, jam_line = capsys.readouterr().out.splitlines()
    assert "endangered" not in tea_line
    assert (b"n" * 16).hex() in jam_line


def test_a_history_is_shown_whole_however_narrow_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    names = look._EVENT_COLUMNS
    event = dict.fromkeys(names, "") | {"status": "HOLD_NOT_COMMITTED", "quantity": 10**9}
    found = {"state": "RELEASED", "deadline": "", "complete": True, "lines": []}
    found["events"] = [event | {"sku": "S" * 64}]

    async def history(gateway: str, hold_id: bytes) -> dict[str, Any]:
        return found

    monkeypatch.setattr(look, "_history", history)
    shown = CliRunner().invoke(app, ["history", "0" * 32, "--gateway", "here:1"])
    rows = [row.split("│")[1:-1] for row in shown.output.splitlines() if "│" in row]
    told = ["".join(part.strip() for part in column) for column in zip(*rows, strict=True)]
    assert told[names.index("status")] == "HOLD_NOT_COMMITTED"
    assert told[names.index("sku")] == "S" * 64
    assert told[names.index("quantity")] == str(10**9)


class Client:
    """Stands in for the client of a gateway: one SKU that is sold at S1, but not by web."""

    def __init__(self, hold: Hold | None = None) -> None:
        self.hold = hold

    def connect(self, gateway: str, timeout_s: float) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def get_cells(self, names: list[tuple[str, str]], channel: str = "") -> list[Cell]:
        found = names == [("TEA", "S1")] and channel != "web"
        return [Cell(1, 1, found, *[3] * 10)]

    async def get_history(self, hold_id: bytes) -> History:
        return History(self.hold, (), True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("TEA", "S1", "--channel", "web"), "channel 'web' does not sell at location 'S1'"),
        (("TEA", "S9", "--channel", "web"), "nothing is known of SKU 'TEA' at location 'S9'"),
        (("TEA", "S9"), "nothing is known of SKU 'TEA' at location 'S9'"),
    ],
)
def test_what_a_channel_does_not_sell_is_known(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(adapters.client, "Client", Client())
    failed = CliRunner().invoke(app, ["get", *arguments, "--gateway", "here:1"])
    assert str(failed.exception) == told


def test_a_history_tells_what_is_held_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    line = HoldLine(1, 1, 2, 0, 0, 0, "TEA", "S1")
    hold = Hold(b"h" * 16, HoldState.PENDING, 10**18, (line,))
    for known, deadline in (
        (hold, "2001-09-09 01:46:40.000Z"),
        (replace(hold, deadline_ns=0), ""),
    ):
        monkeypatch.setattr(adapters.client, "Client", Client(known))
        asked = ["history", "0" * 32, "--gateway", "here:1"]
        told = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
        assert told["deadline"] == deadline
        units = {"pending": 2, "committed": 0, "fulfilled": 0, "returned": 0}
        assert told["lines"] == [{"sku": "TEA", "location": "S1", **units}]
        assert deadline in CliRunner().invoke(app, asked).stdout


def test_an_event_tells_its_flags_and_when_it_happened(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event(
        kind=EventKind.WRITE_OFF, sku=1, location=7, quantity=2, value=3, hold=b"", op_id=b"o" * 16,
        line=0, flags=Flag.DAMAGED, channel=0, currency=0, occurred_at_ns=10**18, now_ns=2 * 10**18,
        shard=0, epoch=1, seq=2, number=0,
    )  # fmt: skip
    look._show_event(event, {1: "TEA"}, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["event"], told["value"], told["flags"]) == ("WRITE_OFF", 3, "DAMAGED")
    assert (told["occurred_at"], told["time"][:4]) == ("2001-09-09 01:46:40.000Z", "2033")
    now = event._replace(flags=Flag(0), occurred_at_ns=0)
    look._show_event(now, {1: "TEA"}, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["flags"], told["occurred_at"]) == ("", "")


def test_an_id_that_is_none_is_told_before_anybody_is_looked_for(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["history", "abc", "--data-dir", str(tmp_path)])
    assert str(shown.exception) == "hold_id: 'abc' is not 32 hexadecimal digits"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["audit", "--json"], "Option '--json' requires an argument (see onhand audit --help)"),
        (["--data-dir"], "No such option: --data-dir"),
    ],
)
def test_wrong_usage_names_the_command_whose_help_has_more(
    asked: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["onhand", *asked])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"onhand: {told}")
