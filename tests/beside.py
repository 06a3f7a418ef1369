"""`pytest --beside`: tests that need no Ray run on two cores, in two processes at once.

They come before all others, which start many processes or measure something, and which have the
machine to themselves. All results are told by the first process, in order.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

import pytest

OPTION: Final = "--beside"
# Of the first process, and of the second. They take about as long, but for the many seeds at the end
# of sim: those take both cores if they can, and what the first process leaves until then.
FOLDERS: Final = (("property", "scenarios", "linear"), ("unit", "sim"))

_TESTS: Final = Path(__file__).parent


class Beside:
    """The plugin of the first process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._second: SpawnProcess | None = None
        self._results: Connection | None = None
        self._told: dict[str, list[Any]] = {}  # by test

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=_place)
        both = [[item for item in items if _turn(item) == turn] for turn in (0, 1)]
        if not all(both) or is_for_one(self._config.option):
            return
        for item in both[1]:
            item.add_marker(pytest.mark.timeout(0), append=False)  # it counts where the test runs
        given = self._config.invocation_params
        arguments = arguments_of(given.args, self._config.option.basetemp)
        context = multiprocessing.get_context("spawn")
        self._results, results = context.Pipe(duplex=False)
        names = [item.nodeid for item in both[1]]
        self._second = context.Process(target=_run, args=(results, given.dir, arguments, names))
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():  # if it dies, it says of what
            self._second.start()
        results.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if self._results is None or _turn(item) != 1:
            return None
        if not self._told:
            try:
                self._told = self._results.recv()
            except EOFError:
                pytest.exit("the second process died: see what it wrote to stderr", returncode=1)
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in self._told[item.nodeid]:
            report = hook.pytest_report_from_serializable(config=self._config, data=data)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(self) -> None:
        if self._second is not None:
            self._second.terminate()
            self._second.join()


class _Second:
    """The plugin of the second process."""

    def __init__(self, names: Sequence[str]) -> None:
        self._order = {name: at for at, name in enumerate(names)}
        self.told: dict[str, list[Any]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        self._config = config
        items[:] = [item for item in items if item.nodeid in self._order]
        items.sort(key=lambda item: self._order[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        self.told.setdefault(report.nodeid, []).append(data)


def is_for_one(option: argparse.Namespace) -> bool:
    """Whether something is asked for that needs all tests in one process.

    That is a word with who has called it, to see what is written at once, or to stop at the first
    failure and go on from there the next time.
    """
    # A plugin that is off takes its options with it; without the one that captures, all is seen at once.
    asked = {"usepdb": False, "trace": False, "stepwise": False, "capture": "no"} | vars(option)
    is_live = asked["usepdb"] or asked["trace"] or asked["capture"] == "no"
    return bool(asked["collectonly"] or asked["stepwise"] or is_live)


def arguments_of(given: Sequence[str], basetemp: str | Path | None) -> list[str]:
    """The arguments of the second process, which has a folder of its own: each empties its at first."""
    arguments = [each for each in given if each != OPTION]
    return arguments if basetemp is None else [*arguments, f"--basetemp={basetemp}-beside"]


def _run(results: Connection, folder: Path, arguments: Sequence[str], names: Sequence[str]) -> None:
    os.chdir(folder)
    second = _Second(names)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*arguments], plugins=[second])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        raise RuntimeError(said.getvalue())
    results.send(second.told)


def _place(item: pytest.Item) -> tuple[int, int]:
    """Whose turn a test is, and when in it."""
    folder = item.path.relative_to(_TESTS).parts[0]
    for turn, folders in enumerate(FOLDERS):
        if folder in folders:
            return turn, folders.index(folder)
    return len(FOLDERS), 0


def _turn(item: pytest.Item) -> int:
    return _place(item)[0]
