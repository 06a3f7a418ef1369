import numpy as np
import pytest

from engine.rows import distinct


@pytest.mark.parametrize(
    "parts", [[], [[]], [[7]], [[3, 3, 3]], [[5, 1], [], [1, 9, 5]], [[2, 1], [0], [2]]]
)
def test_rows_of_any_part_come_in_order_and_once(parts: list[list[int]]) -> None:
    given = [np.array(part, np.int32) for part in parts]
    rows = distinct(given)
    assert rows.dtype == np.int32
    assert rows.tolist() == sorted({row for part in parts for row in part})
    assert [part.tolist() for part in given] == parts
