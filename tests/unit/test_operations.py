"""Requests are built of what fits their columns, and of nothing else."""

import struct
from random import Random
from typing import Any

import numpy as np
import pytest

from engine import limits
from engine.machine import Machine
from engine.operations import COLUMNS, LINE, Flag, Kind, Request, chain_starts, column_of
from engine.reference.lines import lines_of, linked_lines
from engine.views import Cell
from tests.property.histories import line, request


@pytest.mark.parametrize("size", [0, 15, 17])
def test_an_id_has_sixteen_bytes(size: int) -> None:
    with pytest.raises(ValueError, match=f"op_id: {size} bytes"):
        Request.of(bytes(size), 1)


@pytest.mark.parametrize("lines", [0, -1, limits.MAX_BLOCK_LINES + 1])
def test_a_request_has_lines_but_not_too_many(lines: int) -> None:
    with pytest.raises(ValueError, match=f"lines: {lines}"):
        Request.of(bytes(16), lines)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("kind", 256, "out of range"),
        ("sku", [1, -1], "out of range"),
        ("quantity", 1 << 63, "out of range"),
        ("quantity", 1.5, "out of range"),
        ("quantity", [1, 1.5], "out of range"),
        ("hold_hi", [1 << 63, 1 << 64], "out of range"),
        ("hold_hi", [1 << 63, -1], "out of range"),
        ("hold_hi", [1 << 63, None], "out of range"),
        ("location", "one", "out of range"),
        ("sku", [1, 2, 3], "3 values, must be 1 or 2"),
        ("sku", [], "0 values, must be 1 or 2"),
        ("sku", [[1, 2]], "2 values, must be 1 or 2"),
    ],
)
def test_what_does_not_fit_a_column_is_refused_by_name(
    column: str, values: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"^{column}: {reason}"):
        Request.of(bytes(16), 2, **{column: values})


def test_a_column_of_zeros_is_left_out_and_one_value_is_for_all_lines() -> None:
    asked = Request.of(
        bytes(16), 2, kind=Kind.SALE, sku=[1, 2], location=[7], flags=0, value=[0],
        quantity=np.int64(0),
    )  # fmt: skip
    assert {name: column.tolist() for name, column in asked.columns.items()} == {
        "kind": [6, 6],
        "sku": [1, 2],
        "location": [7, 7],
    }


def test_a_column_may_be_a_view_of_every_other_value() -> None:
    """What it is asked for with makes no difference, nor do the values between."""
    every = np.arange(6)
    for strided in (every[::2], every.astype("<i8")[::2], every[4::-2][::-1]):
        asked = Request.of(bytes(16), 3, quantity=strided)
        assert asked.columns["quantity"].tolist() == [0, 2, 4]
        assert asked.digest == Request.of(bytes(16), 3, quantity=[0, 2, 4]).digest
    ids = np.array([[1, 0], [2, 0]], np.uint64)
    assert Request.of(bytes(16), 2, hold_hi=ids[:, 0]).columns["hold_hi"].tolist() == [1, 2]


@pytest.mark.parametrize("small", [0, 1, np.uint64(1)])
def test_a_column_of_ids_takes_the_large_beside_the_small(small: Any) -> None:
    """No value is made a float on its way."""
    large = (1 << 63) + 1
    asked = Request.of(bytes(16), 2, hold_hi=[large, small])
    assert asked.columns["hold_hi"].tolist() == [large, small]
    assert asked.columns["hold_hi"].dtype == COLUMNS["hold_hi"]


def test_a_line_is_the_same_from_its_values_and_from_columns() -> None:
    values = dict(zip(LINE.names or (), range(1, 12), strict=True)) | {"sku": 0, "quantity": -5}
    one, other = Request.one(bytes(16), *values.values()), Request.of(bytes(16), 1, **values)
    assert one.columns.keys() == other.columns.keys() == values.keys() - {"sku"}
    for name, column in one.columns.items():
        assert column.dtype == other.columns[name].dtype
        assert column.tolist() == other.columns[name].tolist() == [values[name]]
    assert one.want_available
    with pytest.raises(struct.error):
        Request.one(bytes(16), *(values | {"sku": 1 << 32}).values())


def test_a_request_is_partial_when_one_of_its_lines_is() -> None:
    assert Request.of(bytes(16), 2, flags=[Flag.LINKED, Flag.LINKED | Flag.PARTIAL]).is_partial
    assert not Request.of(bytes(16), 2, flags=Flag.LINKED).is_partial
    assert not Request.of(bytes(16), 2).is_partial


def test_a_request_about_other_lines_says_nothing_of_those_it_had() -> None:
    before = Request.one(bytes(16), 5, 0, 0, 0, 0, 1, 1, 0, 0, Kind.RECEIVE, 0)
    after = before.with_lines(1, before.columns | {"sku": np.array([2], np.uint32)})
    assert (after.op_id, after.digest, after.want_available) == (before.op_id, before.digest, True)
    machine = Machine()
    machine.set_sku_limit(2)
    machine.set_location(1, owned=True, currency=978)
    machine.apply(1, [after])
    assert machine.cell(1, 1) is None
    assert machine.cell(2, 1) == Cell(on_hand=5)


def test_columns_are_cut_into_chains_as_the_rules_cut_them() -> None:
    """Several requests at once, of all kinds, each line LINKED or not."""
    draw = Random(1)
    for _ in range(300):
        requests = [
            request(
                bytes(16),
                [
                    line(draw.choice([*Kind]), flags=draw.choice([Flag.LINKED, Flag.LINKED, 0]))
                    for _ in range(draw.randint(1, 9))
                ],
            )
            for _ in range(draw.randint(1, 3))
        ]
        starts: list[bool] = []
        begins: list[bool] = []
        for each in requests:
            lines, first = lines_of(each), 0
            begins += [True] + [False] * (len(lines) - 1)
            while first < len(lines):
                chain = linked_lines(lines, first)
                starts += [True] + [False] * (len(chain) - 1)
                first += len(chain)
        kinds, flags = (
            np.concatenate([column_of(each, name) for each in requests])
            for name in ("kind", "flags")
        )
        assert chain_starts(kinds, flags, np.array(begins)).tolist() == starts
        if len(requests) == 1:
            assert chain_starts(kinds, flags).tolist() == starts
