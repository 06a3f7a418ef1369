"""What `pytest --beside` leaves in one process, and what the second one is asked for."""

import argparse
from typing import Any

import pytest

from tests import beside

NOTHING_ASKED: dict[str, Any] = {
    "usepdb": False,
    "trace": False,
    "stepwise": False,
    "capture": "fd",
    "collectonly": False,
}


@pytest.mark.parametrize(
    ("asked", "is_for_one"),
    [
        ({}, False),
        ({"usepdb": True}, True),
        ({"trace": True}, True),
        ({"stepwise": True}, True),
        ({"capture": "no"}, True),
        ({"capture": "sys"}, False),
        ({"collectonly": True}, True),
    ],
)
def test_what_needs_one_process_is_left_in_one(
    pytestconfig: pytest.Config, asked: dict[str, Any], is_for_one: bool
) -> None:
    names = {*NOTHING_ASKED}
    if pytestconfig.pluginmanager.is_blocked("stepwise"):
        names.remove("stepwise")
    assert names <= {*vars(pytestconfig.option)}
    option = argparse.Namespace(**NOTHING_ASKED | asked)
    assert beside.is_for_one(option) is is_for_one


@pytest.mark.parametrize(
    ("missing", "is_for_one"),
    [
        (["stepwise"], False),  # `-p no:cacheprovider`
        (["usepdb", "trace"], False),
        (["capture"], True),  # what is written is seen at once
    ],
)
def test_what_a_plugin_that_is_off_would_do_is_not_asked_for(
    missing: list[str], is_for_one: bool
) -> None:
    known = {name: value for name, value in NOTHING_ASKED.items() if name not in missing}
    assert beside.is_for_one(argparse.Namespace(**known)) is is_for_one


def test_the_second_process_has_a_folder_of_its_own() -> None:
    """The one that began later removed what was there, also what the other had made."""
    given = ["--beside", "-q", "tests", "--basetemp", "there"]
    assert beside.arguments_of(given[:3], None) == ["-q", "tests"]
    assert beside.arguments_of(given, "there") == [*given[1:], "--basetemp=there-beside"]
