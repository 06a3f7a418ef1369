"""How much memory a cell and a hold take, index entries and slack included."""

import numpy as np
import pytest

from engine import kernels, limits
from engine.columns import Columns

CELL_BYTES = 128
HOLD_BYTES = 96
SMALL = 50_000  # below this the first arrays weigh more than what is in them


def test_a_cell_takes_128_bytes_at_most_whatever_their_number() -> None:
    columns = Columns(resolved_remembered=1)
    for cells in np.geomspace(SMALL, 3_000_000, 60).astype(int):
        columns.make_room_for_cells(int(cells))
        columns.state.meta[kernels.CELLS] = 0  # nothing to move: only sizes matter here
        assert columns.nbytes()["cells"] <= CELL_BYTES * cells


def test_a_hold_takes_96_bytes_at_most_whatever_their_number() -> None:
    columns = Columns(resolved_remembered=1)
    for holds in np.geomspace(SMALL, 3_000_000, 60).astype(int):
        columns.make_room_for_holds(int(holds))
        assert columns.nbytes()["holds"] <= HOLD_BYTES * holds + 64


@pytest.mark.parametrize("what", ["cells", "holds"])
def test_a_full_table_says_so_and_stays(what: str) -> None:
    columns = Columns(resolved_remembered=1)
    before = columns.nbytes()
    room, most = {
        "cells": (columns.make_room_for_cells, limits.MAX_CELLS),
        "holds": (columns.make_room_for_holds, limits.MAX_HOLDS),
    }[what]
    with pytest.raises(MemoryError, match=str(most)):
        room(most + 1)
    assert columns.nbytes() == before
