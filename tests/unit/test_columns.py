"""How much memory a cell and a hold take, index entries and slack included."""

import resource
from pathlib import Path

import numpy as np
import pytest

from engine import kernels, limits
from engine.columns import Columns
from engine.machine import Machine
from engine.operations import Kind, Request

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


def test_a_machine_that_has_room_from_its_start_never_moves_its_tables() -> None:
    machine, growing = Machine(), Machine()
    machine.make_room(20_000, 20_000)
    for each in (machine, growing):
        each.set_sku_limit(20_000)
        each.set_location(1, owned=True, currency=840)
    state = machine.state
    for number in range(10):
        lines = np.arange(1_000)
        skus = (1 + 1_000 * number + lines).astype(np.uint32)
        for kind, value in ((Kind.RECEIVE, 0), (Kind.RESERVE, 60_000)):
            request = Request.of(
                bytes([kind, number]) + bytes(14), 1_000, kind=kind, sku=skus, location=1,
                quantity=2, value=value,
            )  # fmt: skip
            for each in (machine, growing):
                assert not each.apply(each.now_ns + 1, [request]).status.any()
    assert machine.state.cells is state.cells
    assert machine.state.cell_index is state.cell_index
    assert machine.state.holds is state.holds
    assert machine.state.hold_index is state.hold_index
    assert growing.state.holds is not state.holds
    assert machine.state_hash == growing.state_hash
    assert not machine.audit()


def test_more_room_than_the_machine_has_is_refused_and_changes_nothing() -> None:
    machine = Machine()
    before = machine.nbytes()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), hard))
    try:
        with pytest.raises(MemoryError, match="bytes"):
            machine.make_room(0, 20_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert machine.nbytes() == before


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


def test_a_block_of_more_lines_than_shards_make_has_room_for_what_its_late_counts_share() -> None:
    machine = Machine()
    machine.set_sku_limit(1)
    machine.set_location(1, owned=True, currency=840)
    lines, cell = limits.MAX_BLOCK_LINES, {"sku": 1, "location": 1}
    sold = Request.of(bytes(15) + b"\1", lines, kind=Kind.SALE, quantity=1, **cell)
    machine.apply(10, [sold])
    again = Request.of(bytes(15) + b"\2", lines, kind=Kind.SALE, quantity=1, **cell)
    late = Request.of(
        bytes(15) + b"\3", 3, kind=Kind.COUNT, quantity=100, occurred_at_ns=[10, 11, 11], **cell
    )
    assert not machine.apply(11, [again, late]).status.any()
    found = machine.cell(1, 1)
    assert found is not None
    assert found.on_hand == 100 - lines
