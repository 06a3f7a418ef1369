"""What numba keeps of kernels on disk is used as long as nothing that was compiled in has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import engine
from engine import kernels
from engine.kernels.compiled import STAMP, AsTold, BesideTheCode, OfTheUser

compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")

# The kernel stands in `cells`; of what it does, the hash is of another room.
ASK = """
import numpy as np
from engine.kernels import rebuild_cell_index
index = np.zeros(2, np.int64)
rebuild_cell_index(np.full((1, 10), 7, np.int64), 1, index)
print(index.max() >> 32, sum(rebuild_cell_index.stats.cache_misses.values()))
"""


def asked(folder: Path, **environment: str) -> tuple[int, int]:
    """What a new process is told by the kernels of a copy: a hash, and how much it had to compile."""
    given = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | environment
    told = subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, env=given | {"PYTHONPATH": str(folder)},
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    tag, compiled = map(int, told.split())
    return tag, compiled


def changed(source: Path, old: str, new: str) -> None:
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))


@compiled_only
def test_a_change_in_another_room_is_seen(tmp_path: Path) -> None:
    shutil.copytree(
        Path(engine.__file__).parent, tmp_path / "engine",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    tag, compiled = asked(tmp_path)
    assert compiled == 1
    assert asked(tmp_path) == (tag, 0)
    changed(tmp_path / "engine/kernels/hashes.py", "np.uint64(33)", "np.uint64(34)")
    assert asked(tmp_path) == (tag >> 1, 1)
    assert asked(tmp_path) == (tag >> 1, 0)
    changed(tmp_path / "engine/limits.py", "MAX_QUANTITY: Final = 1_", "MAX_QUANTITY: Final = 2_")
    assert asked(tmp_path) == (tag >> 1, 1)
    checking = "0" if numba.config.BOUNDSCHECK else "1"
    assert asked(tmp_path, NUMBA_BOUNDSCHECK=checking) == (tag >> 1, 1)
    elsewhere = tmp_path / "elsewhere"
    assert asked(tmp_path, NUMBA_CACHE_DIR=str(elsewhere)) == (tag >> 1, 1)
    assert list(elsewhere.rglob("cells.rebuild_cell_index-*.nbc"))


@compiled_only
def test_every_kernel_goes_by_all_rooms() -> None:
    for name in kernels.__all__:
        kernel = getattr(kernels, name)
        if hasattr(kernel, "py_func"):
            assert kernel._cache._cache_file._source_stamp == STAMP


@pytest.mark.parametrize("place", [AsTold, BesideTheCode, OfTheUser])
def test_wherever_kernels_are_kept_they_go_by_all_rooms(place: type) -> None:
    assert place(changed, __file__).get_source_stamp() == STAMP
