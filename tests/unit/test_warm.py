"""`python -m engine.warm` leaves nothing for the first block to compile."""

import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine import columns, kernels, machine, shortages, snapshot, warm

CALLERS = (columns, machine, shortages, snapshot)


class Recorder:
    """Stands before the kernels and notes which of them are called from Python."""

    def __init__(self) -> None:
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(kernels, name)
        if isinstance(found, type) or not callable(found):
            return found
        self.called.add(name)
        return found


def called_in(module: ModuleType) -> set[str]:
    """The kernels that a module's source calls."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    names = re.findall(r"\bkernels\.([a-z]\w*)\(", source)
    return {name for name in names if not isinstance(getattr(kernels, name), type)}


def test_every_kernel_that_is_called_is_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    for module in CALLERS:
        if "kernels" in vars(module):
            monkeypatch.setattr(module, "kernels", recorder)
    runpy.run_path(str(warm.__file__), run_name="__main__")
    wanted = set().union(*map(called_in, CALLERS))
    assert "apply_block" in wanted
    assert wanted <= recorder.called
