"""Scenarios 13 to 17: orders that are cancelled in parts, and goods that come back. Both machines."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.catalogue import Catalogue
from engine.entries import Sku
from engine.operations import Disposition
from engine.reference import Key
from engine.status import Status
from engine.views import HoldState
from tests.property.histories import BERLIN
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    cancel,
    comes_back,
    commit,
    fulfil,
    hold_id,
    receive,
    reserve,
    unfulfil,
)
from tests.unit.test_catalogue import add, rename

RESTOCK, QUALITY, DAMAGED = Disposition.RESTOCK, Disposition.QUALITY_CONTROL, Disposition.DAMAGED


# --- 13: part fulfilled, then cancelled -------------------------------------------------------------


@given(st.integers(1, 8), st.integers(0, 8), st.integers(1, 8), st.integers(0, 8))
def test_scenario_13_of_an_order_that_was_fulfilled_in_part_only_the_rest_comes_back(
    tea: int, tea_out: int, jam: int, jam_out: int
) -> None:
    tea_out, jam_out = min(tea, tea_out), min(jam, jam_out)
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(tea), reserve(jam, JAM))
    shop.does(commit("order"))
    for units, cell in ((tea_out, TEA), (jam_out, JAM)):
        if units:
            shop.does(fulfil("order", units, cell))
    is_left = tea + jam > tea_out + jam_out
    expected = Status.OK if is_left else Status.HOLD_NOT_COMMITTED
    assert shop.answer(cancel("order")) is expected
    for out, cell in ((tea_out, TEA), (jam_out, JAM)):
        found = shop.cell(cell)
        assert (found.on_hand, found.committed, found.available) == (10 - out, 0, 10 - out)
    assert shop.units("order") == [(0, 0, tea_out), (0, 0, jam_out)]
    was_out = tea_out or jam_out
    assert shop.state("order") is (HoldState.FULFILLED if was_out else HoldState.CANCELLED)


# --- 14: order 7, ship 3, cancel the rest, return 2 of the shipped ----------------------------------


def lives(shop: Shop, ordered: int, shipped: int, returned: int, disposition: Disposition) -> None:
    """Order, ship, cancel the rest, return of the shipped: each counter after each step."""
    stock = shop.cell().on_hand

    def counters() -> tuple[int, int, int, int]:
        cell = shop.cell()
        return cell.on_hand, cell.reserved, cell.committed, cell.available

    shop.holds("order", reserve(ordered))
    assert counters() == (stock, ordered, 0, stock - ordered)
    shop.does(commit("order"))
    assert counters() == (stock, 0, ordered, stock - ordered)
    shop.does(fulfil("order", shipped))
    assert counters() == (stock - shipped, 0, ordered - shipped, stock - ordered)
    if shipped < ordered:
        shop.does(cancel("order"))
    assert counters() == (stock - shipped, 0, 0, stock - shipped)
    shop.does(comes_back(returned, disposition, hold=hold_id("order")))
    too_many = comes_back(shipped - returned + 1, disposition, hold=hold_id("order"))
    assert shop.answer(too_many) is Status.EXCEEDS_HOLD
    assert shop.returned("order") == [returned]
    assert shop.units("order") == [(0, 0, shipped)]
    back = returned if disposition is RESTOCK else 0
    assert counters() == (stock - shipped + returned, 0, 0, stock - shipped + back)
    cell = shop.cell()
    assert cell.quality_control == (returned if disposition is QUALITY else 0)
    assert cell.damaged == (returned if disposition is DAMAGED else 0)


def test_scenario_14_order_7_ship_3_cancel_the_rest_return_2() -> None:
    shop = Shop(tea=10)
    lives(shop, 7, 3, 2, RESTOCK)
    cell = shop.cell()
    assert (cell.on_hand, cell.reserved, cell.committed, cell.available) == (9, 0, 0, 9)


@given(st.data())
def test_scenario_14_every_counter_is_exact_whatever_the_numbers(data: st.DataObject) -> None:
    ordered = data.draw(st.integers(1, 1_000_000_000))
    shipped = data.draw(st.integers(1, ordered))
    returned = data.draw(st.integers(1, shipped))
    spare = data.draw(st.integers(0, 1_000_000_000 - ordered))
    lives(
        Shop(tea=ordered + spare),
        ordered,
        shipped,
        returned,
        data.draw(st.sampled_from(Disposition)),
    )


# --- 15: the disposition is the line's --------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from([TEA, JAM, FAR]), st.integers(1, 9), st.sampled_from(Disposition)
        ),
        min_size=2,
        max_size=8,
    )
)
def test_scenario_15_each_line_of_a_return_has_a_disposition_of_its_own(
    lines: list[tuple[Key, int, Disposition]],
) -> None:
    shop = Shop(tea=3, jam=3)
    shop.does(receive(3, FAR))
    shop.does(*(comes_back(units, disposition, cell) for cell, units, disposition in lines))
    for cell in (TEA, JAM, FAR):
        back = {
            disposition: sum(n for key, n, d in lines if (key, d) == (cell, disposition))
            for disposition in Disposition
        }
        found = shop.cell(cell)
        assert found.on_hand == 3 + sum(back.values())
        assert (found.quality_control, found.damaged) == (back[QUALITY], back[DAMAGED])
        assert found.available == 3 + back[RESTOCK]


@pytest.mark.parametrize("dispositions", [*itertools.permutations(Disposition)], ids=str)
def test_scenario_15_three_of_one_sku_come_back_to_three_ends(
    dispositions: tuple[Disposition, ...],
) -> None:
    shop = Shop(tea=1)
    shop.does(*(comes_back(each + 1, each) for each in dispositions))
    cell = shop.cell()
    assert (cell.on_hand, cell.available) == (1 + 1 + 2 + 3, 1 + 1)
    assert (cell.quality_control, cell.damaged) == (2, 3)


# --- 16: a fulfilment that is cancelled -------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 8), st.integers(0, 8))
def test_scenario_16_a_fulfilment_that_is_cancelled_makes_the_commitment_live_again(
    ordered: int, out: int, returned: int, undone: int
) -> None:
    """It can be handed over again, or cancelled; what has come back since cannot."""
    out = min(out, ordered)
    returned = min(returned, out)
    undone = min(undone, out - returned)
    shop = Shop(tea=10)
    shop.holds("order", reserve(ordered))
    shop.does(commit("order"))
    shop.does(fulfil("order", out))
    if returned:
        shop.does(comes_back(returned, RESTOCK, hold=hold_id("order")))
    if undone:
        assert shop.answer(unfulfil("order", out - returned + 1)) is (
            Status.EXCEEDS_HOLD if returned < out else Status.HOLD_NOT_FULFILLED
        )
        shop.does(unfulfil("order", undone))
    committed = ordered - out + undone
    cell = shop.cell()
    assert (cell.on_hand, cell.committed) == (10 - out + returned + undone, committed)
    assert cell.available == 10 - ordered + returned
    assert shop.units("order") == [(0, committed, out - undone)]
    if committed:
        assert shop.state("order") is HoldState.COMMITTED
        shop.does(fulfil("order") if undone % 2 else cancel("order"))
    left = 10 - (ordered if undone % 2 else out - undone) + returned
    cell = shop.cell()
    assert (cell.on_hand, cell.committed, cell.available) == (left, 0, left)


# --- 17: a SKU's code changed between order and return ----------------------------------------------


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(Disposition),
    st.permutations(["TEA", "TEA-2027", "TEA-2028"]),
)
def test_scenario_17_a_code_that_changed_between_order_and_return_leaves_balances_exact(
    ordered: int, returned: int, disposition: Disposition, codes: list[str]
) -> None:
    """Whichever of its codes the order, what comes back and the next order name: it is one SKU."""
    returned = min(ordered, returned)
    catalogue = Catalogue()
    tea, jam = add(catalogue, Sku("TEA"), Sku("JAM"))
    shop = Shop(tea=10)
    steps = iter(codes)

    def named() -> tuple[int, int]:
        return catalogue.sku_id(next(steps)), BERLIN

    rename(catalogue, tea, "TEA-2027")
    rename(catalogue, tea, "TEA-2028")
    shop.holds("order", reserve(ordered, named()))
    shop.does(commit("order"))
    shop.does(fulfil("order"))
    shop.does(comes_back(returned, disposition, named(), hold=hold_id("order")))
    by_other = comes_back(1, disposition, (jam, BERLIN), hold=hold_id("order"))
    assert shop.answer(by_other) is Status.NOT_IN_HOLD
    again = comes_back(ordered, disposition, named(), hold=hold_id("order"))
    assert shop.answer(again) is Status.EXCEEDS_HOLD
    assert shop.returned("order") == [returned]
    cell = shop.cell((tea, BERLIN))
    on_hand = 10 - ordered + returned
    assert (cell.on_hand, cell.reserved, cell.committed) == (on_hand, 0, 0)
    assert cell.available == on_hand - (0 if disposition is RESTOCK else returned)
    assert add(catalogue, Sku("TEA"), Sku("TEA-2027"), Sku("TEA-2028")) == [tea] * 3
