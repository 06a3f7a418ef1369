"""What all tests share: how much hypothesis tries, and the kernels run as plain Python.

HYPOTHESIS_PROFILE is `dev` (default), `ci` (so many examples that it takes half a minute, always
the same) or `nightly` (minutes; it needs `pytest --timeout=0`).
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from engine import kernels
from tests.beside import OPTION, Beside

# Ray starts its processes by fork, and tests hold gRPC channels meanwhile. gRPC's own handlers around
# a fork can hang the child for good; without them the child just goes on to exec. Read when gRPC is
# first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]  # whole histories are drawn at once

# No deadline: the first call of a kernel may compile it.
settings.register_profile("dev", deadline=None, suppress_health_check=_SLOW, max_examples=50)
# The same examples on every run, so that a red build is the change's own fault.
settings.register_profile("ci", settings.get_profile("dev"), max_examples=300, derandomize=True)
settings.register_profile(
    "nightly", settings.get_profile("dev"), max_examples=10_000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


class Rows(np.ndarray):
    """Does not count from its end: -1 means "no row" in kernels, and no check of bounds notices it."""

    def __getitem__(self, key: Any) -> Any:
        _refuse_negative(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_negative(key)
        super().__setitem__(key, value)


def _refuse_negative(key: Any) -> None:
    for index in key if isinstance(key, tuple) else (key,):
        if isinstance(index, int | np.integer) and index < 0:
            raise IndexError(f"{key}: there is no such row")


def _guarded(apply_block: Callable[..., int]) -> Callable[..., int]:
    """The kernel, given arrays that refuse negative indexes."""
    return lambda state, *rest: apply_block(
        kernels.State(*(each.view(Rows) for each in state)), *rest
    )


if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
    # Compiled hashes wrap in silence; numpy's scalars, which then stand in, warn of it.
    np.seterr(over="ignore")
    kernels.apply_block = _guarded(kernels.apply_block)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="use a second process: see tests/beside.py")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(OPTION):
        config.pluginmanager.register(Beside(config))
