"""What `pytest --beside` leaves in one process, and what the second one is asked for."""

import argparse
from typing import Any

import pytest

from tests import beside


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
    names = ("usepdb", "trace", "stepwise", "capture", "collectonly")
    assert {*names} <= {*vars(pytestconfig.option)}
    option = argparse.Namespace(**dict.fromkeys(names) | {"capture": "fd"} | asked)
    assert beside.is_for_one(option) is is_for_one


def test_the_second_process_has_a_folder_of_its_own() -> None:
    """The one that began later removed what was there, also what the other had made."""
    given = ["--beside", "-q", "tests", "--basetemp", "there"]
    assert beside.arguments_of(given[:3], None) == ["-q", "tests"]
    assert beside.arguments_of(given, "there") == [*given[1:], "--basetemp=there-beside"]
