"""Quantities at their limits: every kind refuses before anything overflows, on both machines.

The reference machine counts with integers that never wrap. So where both answer alike and end alike,
the kernels have not wrapped either.
"""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.operations import Disposition, Flag, Kind
from engine.reference import Line
from engine.status import Status
from tests.property.histories import EUR, line
from tests.property.shop import (
    TEA,
    Shop,
    adjust,
    comes_back,
    commit,
    count,
    fulfil,
    hold_id,
    inspect,
    receive,
    reserve,
    sale,
    unfulfil,
    write_off,
)

MOST, LIMIT = limits.MAX_QUANTITY, limits.MAX_BALANCE
INT64 = 1 << 63
RESTOCK, QUALITY, DAMAGED = Disposition.RESTOCK, Disposition.QUALITY_CONTROL, Disposition.DAMAGED


MOVES: dict[str, tuple[str, int, Callable[[int], Line]]] = {
    "receive": ("on_hand", 1, receive),
    "adjust_up": ("on_hand", 1, adjust),
    "return_restock": ("on_hand", 1, lambda units: comes_back(units, RESTOCK)),
    "return_looked_at": ("on_hand", 1, lambda units: comes_back(units, QUALITY)),
    "sale": ("on_hand", -1, sale),
    "adjust_down": ("on_hand", -1, lambda units: adjust(-units)),
    "write_off": ("on_hand", -1, write_off),
    "quality_control": ("quality_control", 1, lambda units: comes_back(units, QUALITY)),
    "damaged": ("damaged", 1, lambda units: comes_back(units, DAMAGED)),
    "inspect_damaged": ("damaged", 1, lambda units: inspect(units, DAMAGED)),
}


@pytest.mark.parametrize(("counter", "sign", "moves"), [*MOVES.values()], ids=[*MOVES])
@pytest.mark.parametrize("units", [1, 2, MOST])
def test_a_counter_goes_to_its_limit_and_no_further(
    counter: str, sign: int, moves: Callable[[int], Line], units: int
) -> None:
    shop = Shop(tea=1)
    shop.does(comes_back(MOST, QUALITY))
    shop.pair.force(TEA, counter, sign * (LIMIT - units + 1))
    before = shop.pair.machine.state_hash
    assert shop.answer(moves(units)) is Status.BALANCE_LIMIT
    assert shop.pair.machine.state_hash == before
    if units > 1:
        shop.does(moves(units - 1))
        assert getattr(shop.cell(), counter) == sign * LIMIT
        assert shop.answer(moves(1)) is Status.BALANCE_LIMIT


def test_what_is_handed_over_stays_within_the_limit() -> None:
    shop = Shop(tea=2)
    shop.holds("order", reserve(2))
    shop.does(commit("order"))
    shop.pair.force(TEA, "on_hand", 1 - LIMIT)
    assert shop.answer(fulfil("order")) is Status.BALANCE_LIMIT
    assert shop.units("order") == [(0, 2, 0)]
    shop.does(fulfil("order", 1))
    assert shop.cell().on_hand == -LIMIT


def test_what_is_taken_back_from_a_handover_stays_within_the_limit() -> None:
    shop = Shop(tea=2)
    shop.holds("order", reserve(2))
    shop.does(commit("order"))
    shop.does(fulfil("order"))
    shop.pair.force(TEA, "on_hand", LIMIT - 1)
    assert shop.answer(unfulfil("order")) is Status.BALANCE_LIMIT
    assert shop.units("order") == [(0, 0, 2)]
    shop.does(unfulfil("order", 1))
    assert shop.cell().on_hand == LIMIT


def test_a_count_of_long_ago_stays_within_the_limit() -> None:
    shop = Shop(tea=1)
    seen = shop.now_ns + 1
    shop.does(*[receive(MOST)] * 3)
    shop.does(count(MOST, occurred_at_ns=seen))
    assert shop.cell().on_hand == 4 * MOST


# A price has no quantity, nor has more time for a hold.
WITH_QUANTITY = [kind for kind in Kind if kind not in {Kind.SET_PRICE, Kind.EXTEND}]


@pytest.mark.parametrize("kind", WITH_QUANTITY)
@pytest.mark.parametrize("quantity", [MOST + 1, -MOST - 1, INT64 - 1, -INT64])
def test_no_kind_takes_more_than_a_line_may_be_of(kind: Kind, quantity: int) -> None:
    shop = Shop(tea=5)
    shop.holds("order", reserve(3))
    shop.does(commit("order", 1))
    shop.does(fulfil("order", 1))
    before = shop.pair.machine.state_hash
    wrong = line(kind, TEA, quantity, 1, hold=hold_id("order"), currency=EUR)
    answer = shop.answer(wrong, name="wrong")
    assert answer in {Status.QUANTITY_TOO_LARGE, Status.INVALID_QUANTITY, Status.INVALID_KIND}
    assert shop.pair.machine.state_hash == before


FACTS = (Kind.RETURN, Kind.SALE, Kind.RECEIVE, Kind.ADJUST, Kind.WRITE_OFF, Kind.INSPECT)
NEAR = [0, 1, -1, LIMIT, LIMIT - 1, LIMIT - MOST, -LIMIT, 1 - LIMIT, MOST - LIMIT]
SET_ASIDE = [0, 1, LIMIT, LIMIT - 1, LIMIT - MOST]


@given(
    st.sampled_from(NEAR),
    st.sampled_from(SET_ASIDE),
    st.sampled_from(SET_ASIDE),
    st.lists(
        st.builds(
            line,
            st.sampled_from([*Kind, *FACTS * 3]),
            st.just(TEA),
            st.sampled_from([1, 2, MOST - 1, MOST, -MOST, -1, 0]),
            st.sampled_from([0, 1, 2, 1_000]),
            flags=st.sampled_from([0] * 24 + [*map(int, Flag)]),
            hold=st.sampled_from([bytes(16)] * 4 + [hold_id("order"), hold_id("paid")]),
            currency=st.just(EUR),
        ),
        min_size=3,
        max_size=8,
    ),
)
def test_whatever_happens_to_a_cell_at_its_limits_nothing_wraps(
    on_hand: int, damaged: int, quality: int, lines: list[Line]
) -> None:
    shop = Shop(tea=3 * 1_000_000)
    shop.holds("order", reserve(2_000_000))
    shop.holds("paid", reserve(1_000_000))
    shop.does(commit("paid"))
    for counter, value in (
        ("on_hand", on_hand),
        ("damaged", damaged),
        ("quality_control", quality),
    ):
        shop.pair.force(TEA, counter, value)
    for number, each in enumerate(lines):
        shop.answers(each, name=f"line {number}")
        cell = shop.cell()
        assert abs(cell.on_hand) <= LIMIT
        assert min(cell.damaged, cell.quality_control) >= 0
        assert max(cell.damaged, cell.quality_control) <= LIMIT
        assert min(cell.reserved, cell.committed, cell.safety_stock, cell.incoming) >= 0
        assert abs(cell.available) < INT64
