"""The rules of facts: late ones, counts, set-aside goods. Both machines answer each (see `Shop`)."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from engine import limits
from engine.machine import Machine
from engine.operations import Disposition, Flag, Kind, id_to_pair
from engine.reference import Key, Line
from engine.status import Status
from engine.views import HoldLine, HoldState
from tests.property.histories import BERLIN, MS, UNKNOWN, line, linked
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    adjust,
    cancel,
    claim,
    comes_back,
    commit,
    count,
    fulfil,
    hands_over,
    hold_id,
    inspect,
    price,
    receive,
    release,
    reserve,
    safety_stock,
    sale,
    unfulfil,
    write_off,
)

MINUTE = 60_000 * MS
SKEW = limits.MAX_CLOCK_SKEW_MS * MS
RESTOCK, QUALITY, DAMAGED = Disposition.RESTOCK, Disposition.QUALITY_CONTROL, Disposition.DAMAGED

# What moves one unit of tea, by what it adds to on_hand.
MOVEMENTS: list[tuple[Callable[..., Line], int]] = [
    (lambda **at: sale(1, **at), -1),
    (lambda **at: comes_back(1, RESTOCK, **at), 1),
    (lambda **at: receive(1, **at), 1),
    (lambda **at: adjust(-1, **at), -1),
    (lambda **at: write_off(1, **at), -1),
]
NAMES = ["sale", "return", "receive", "adjust", "write_off"]


def on_hand(shop: Shop) -> int:
    return shop.cell().on_hand


def counted_at(shop: Shop) -> int:
    return shop.pair.machine.counted_at_ns(*TEA)


# --- facts from before a count --------------------------------------------------------------------


@pytest.mark.parametrize(("moves", "units"), MOVEMENTS, ids=NAMES)
def test_what_happened_before_a_count_and_arrives_after_it_is_recorded_and_moves_nothing(
    moves: Callable[..., Line], units: int
) -> None:
    shop = Shop(tea=10)
    shop.wait(MINUTE)
    shop.does(count(7))
    counted = shop.now_ns
    assert counted_at(shop) == counted
    shop.wait(MINUTE)
    shop.does(moves(occurred_at_ns=counted - 1))
    assert on_hand(shop) == 7
    shop.does(moves(occurred_at_ns=counted))  # as the count was made: not seen by it
    assert on_hand(shop) == 7 + units
    shop.does(moves())
    assert on_hand(shop) == 7 + 2 * units


def test_a_late_fact_of_a_cell_that_was_never_counted_counts() -> None:
    shop = Shop(tea=10)
    shop.does(sale(1, occurred_at_ns=1))
    assert on_hand(shop) == 9


def test_a_late_fact_still_says_what_is_set_aside() -> None:
    """A count sees how much there is, not how much of it is damaged."""
    shop = Shop(tea=10)
    before = shop.now_ns
    shop.wait(MINUTE)
    shop.does(comes_back(3, QUALITY), comes_back(2, DAMAGED), count(10))
    shop.does(
        comes_back(1, QUALITY, occurred_at_ns=before), comes_back(1, DAMAGED, occurred_at_ns=before)
    )
    cell = shop.cell()
    assert (cell.on_hand, cell.quality_control, cell.damaged) == (10, 4, 3)
    shop.does(
        write_off(2, Flag.QUALITY_CONTROL, occurred_at_ns=before),
        write_off(3, Flag.DAMAGED, occurred_at_ns=before),
    )
    cell = shop.cell()
    assert (cell.on_hand, cell.quality_control, cell.damaged) == (10, 2, 0)


def test_a_late_sale_may_be_of_more_than_there_is() -> None:
    shop = Shop(tea=1)
    shop.does(sale(3, occurred_at_ns=shop.now_ns - MINUTE))
    assert (on_hand(shop), shop.pair.machine.shortages) == (-2, 1)


# --- counts of an earlier moment ------------------------------------------------------------------


@pytest.mark.parametrize(("moves", "units"), MOVEMENTS, ids=NAMES)
def test_a_late_count_keeps_what_moved_since_its_moment(
    moves: Callable[..., Line], units: int
) -> None:
    shop = Shop(tea=10)
    shop.does(moves())
    seen = shop.now_ns + 1
    shop.wait(MINUTE)
    shop.does(moves(), moves(occurred_at_ns=seen), moves(occurred_at_ns=seen - 1))
    shop.does(count(20, occurred_at_ns=seen))
    assert on_hand(shop) == 20 + 2 * units
    assert counted_at(shop) == seen


@pytest.mark.parametrize("heard_first", ["the count", "what moved"])
@pytest.mark.parametrize(("moves", "units"), MOVEMENTS, ids=NAMES)
def test_what_moves_at_the_very_moment_of_a_count_is_after_it_in_either_order(
    moves: Callable[..., Line], units: int, heard_first: str
) -> None:
    shop = Shop(tea=10)
    shop.wait(MINUTE)
    moment = shop.now_ns
    heard = [count(7, occurred_at_ns=moment), moves(occurred_at_ns=moment)]
    if heard_first == "what moved":
        heard.reverse()
    for each in heard:
        shop.wait(MINUTE)
        shop.does(each)
    assert on_hand(shop) == 7 + units
    at = shop.now_ns + 1  # that of the block in which both are heard of
    shop.does(*(each._replace(occurred_at_ns=at) for each in heard))
    assert on_hand(shop) == 7 + units


def test_a_count_that_says_no_moment_is_of_what_was_heard_so_far() -> None:
    shop = Shop(tea=10)
    shop.does(sale(1), sale(1, occurred_at_ns=shop.now_ns + 1), count(7), sale(1))
    assert on_hand(shop) == 6


def test_goods_that_were_handed_over_after_a_late_count_have_left() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order"))
    shop.does(fulfil("order", 1))
    seen = shop.now_ns + 1
    shop.does(fulfil("order"))
    shop.does(count(9, occurred_at_ns=seen))
    assert on_hand(shop) == 9 - 3


def test_a_late_count_knows_nothing_of_other_cells() -> None:
    shop = Shop(tea=10, jam=10)
    seen = shop.now_ns + 1
    shop.does(sale(1, JAM), sale(2), sale(4, JAM))
    shop.does(count(10, occurred_at_ns=seen))
    assert on_hand(shop) == 8


def test_counts_that_arrive_in_any_order_leave_what_the_last_one_saw() -> None:
    shop = Shop(tea=10)
    start = shop.now_ns
    shop.wait(MINUTE)
    for moment, units in ((3, 33), (1, 11), (4, 44), (2, 22)):
        shop.does(count(units, occurred_at_ns=start + moment))
    assert (on_hand(shop), counted_at(shop)) == (44, start + 4)
    shop.does(count(5, occurred_at_ns=start + 4))  # of the same moment: the later word holds
    assert on_hand(shop) == 5


def test_what_is_set_aside_or_kept_is_none_of_a_counts_business() -> None:
    shop = Shop(tea=10)
    seen = shop.now_ns + 1
    shop.does(comes_back(2, QUALITY), safety_stock(1), price(5))
    shop.does(inspect(1, DAMAGED))
    shop.does(count(10, occurred_at_ns=seen))
    cell = shop.cell()
    assert (cell.on_hand, cell.quality_control, cell.damaged) == (12, 1, 1)
    assert (cell.safety_stock, cell.price_minor) == (1, 5)


def test_a_late_count_makes_the_cell() -> None:
    shop = Shop()
    shop.does(count(7, occurred_at_ns=shop.now_ns - MINUTE))
    assert (on_hand(shop), counted_at(shop)) == (7, shop.now_ns - 1 - MINUTE)


def test_a_count_reaches_as_far_back_as_movements_are_remembered() -> None:
    shop = Shop(tea=10, movements_remembered=2)
    received = shop.now_ns
    shop.does(sale(1))
    shop.does(count(20, occurred_at_ns=received - 1))  # the receipt is still known
    assert on_hand(shop) == 20 + 10 - 1
    shop.does(sale(1, JAM))
    before = shop.pair.machine.state_hash
    for too_old in (received - 1, received):  # what was received at that very moment is unknown now
        assert shop.answer(count(20, occurred_at_ns=too_old)) is Status.MOMENT_TOO_OLD
        assert shop.answer(count(20, JAM, occurred_at_ns=too_old)) is Status.MOMENT_TOO_OLD
    assert shop.pair.machine.state_hash == before
    shop.does(count(20, occurred_at_ns=received + 1))
    assert on_hand(shop) == 20 - 1


def test_a_count_from_before_the_newest_one_is_recorded_however_old_it_is() -> None:
    shop = Shop(tea=10, movements_remembered=1)
    shop.does(sale(1), sale(1), count(5))
    shop.does(count(9, occurred_at_ns=1))
    assert on_hand(shop) == 5


def test_how_far_back_a_count_reaches_is_by_the_moments_that_are_forgotten() -> None:
    """The late sale is forgotten first, and it says nothing of the time after its moment."""
    shop = Shop(tea=10, movements_remembered=3)
    start = shop.now_ns
    shop.wait(MINUTE)
    shop.does(sale(1, occurred_at_ns=start - MINUTE))
    shop.does(sale(1), sale(1), sale(1))
    assert shop.answer(count(5, occurred_at_ns=start)) is Status.MOMENT_TOO_OLD
    shop.does(count(5, occurred_at_ns=start + 1))
    assert on_hand(shop) == 2


def test_many_cells_share_the_ring_and_each_finds_its_own() -> None:
    """Cells whose rows are equal modulo the number of buckets (four here) share links."""
    shop = Shop(tea=10, movements_remembered=3)
    cells = [TEA, JAM, (3, BERLIN), (1, 2), (2, 2)]
    shop.does(*[receive(10, cell) for cell in cells[1:]])
    seen = shop.now_ns + 1
    shop.does(sale(1, cells[0]), sale(2, cells[3]), sale(4, cells[0]))
    shop.does(count(10, cells[0], occurred_at_ns=seen), count(10, cells[3], occurred_at_ns=seen))
    assert (shop.cell(cells[0]).on_hand, shop.cell(cells[3]).on_hand) == (5, 8)


def test_late_counts_of_one_cell_share_a_walk_and_each_keeps_what_moved_since_its_moment() -> None:
    shop = Shop(tea=10, jam=10)
    start = shop.now_ns
    shop.wait(MINUTE)
    for moment in (3, 1, 7, 5, 5, 9):
        shop.does(sale(1, occurred_at_ns=start + moment), sale(1, JAM))
    told = [
        (count(20, occurred_at_ns=start + 1), 14),
        (sale(1, occurred_at_ns=start + 6), 13),  # between two that share: it counts for both
        (count(20, occurred_at_ns=start + 5), 15),
        (count(20, JAM, occurred_at_ns=start + 1), 15),  # another cell's
        (count(20, occurred_at_ns=start + 2), 15),  # was seen by the last one
        (sale(2), 13),
        (count(20), 20),
        (count(20, occurred_at_ns=start + 5), 20),  # seen too: it is from before the one of now
    ]
    on_hand_after = []
    for number in range(1, len(told) + 1):  # what it is in the middle of a block
        other = Shop(tea=10, jam=10)
        other.wait(MINUTE)
        for moment in (3, 1, 7, 5, 5, 9):
            other.does(sale(1, occurred_at_ns=start + moment), sale(1, JAM))
        other.does(*(line for line, _ in told[:number]))
        on_hand_after.append(on_hand(other))
    assert on_hand_after == [units for _, units in told]


def test_late_counts_find_in_the_next_block_what_moved_in_between() -> None:
    shop = Shop(tea=10)
    seen = shop.now_ns + 1
    shop.does(sale(1), sale(1), sale(1))
    for left in (17, 16, 15):
        shop.does(*[count(20, occurred_at_ns=seen)] * 3)
        assert on_hand(shop) == left
        shop.does(sale(1))


def test_late_counts_of_two_cells_in_turn_know_nothing_of_each_other() -> None:
    shop = Shop(tea=10, jam=10)
    seen = shop.now_ns + 1
    shop.does(*[sale(1)] * 4, *[sale(2, JAM)] * 4)
    tea, jam = (count(20, cell, occurred_at_ns=seen) for cell in (TEA, JAM))
    shop.does(tea, jam, tea, jam, sale(1), jam, tea)
    assert (shop.cell(TEA).on_hand, shop.cell(JAM).on_hand) == (20 - 4 - 1, 20 - 4 * 2)


def test_late_counts_that_find_little_each_look_for_themselves() -> None:
    shop = Shop(tea=10, jam=10)
    seen = shop.now_ns + 1
    shop.does(sale(1))
    late = count(20, occurred_at_ns=seen)
    shop.does(late, sale(1), *[sale(1, JAM)] * 9, late)
    assert on_hand(shop) == 20 - 2


def test_what_is_forgotten_under_the_hands_of_late_counts_is_no_more_counted_on() -> None:
    shop = Shop(tea=10, movements_remembered=3)
    shop.wait(MINUTE)
    shop.does(sale(1), sale(1), sale(1))
    sold = shop.now_ns
    shop.wait(MINUTE)
    early, late = (count(20, occurred_at_ns=sold + after) for after in (0, 1))
    of_opening = count(20, occurred_at_ns=sold - MINUTE)
    answers = shop.answers(early, of_opening, early, *[sale(1)] * 3, early, late)
    assert answers == [Status.OK] * 6 + [Status.MOMENT_TOO_OLD, Status.OK]
    assert on_hand(shop) == 20 - 3


# --- the moment -----------------------------------------------------------------------------------

DATED: list[Line] = [
    sale(1), comes_back(1, RESTOCK), receive(1), adjust(1), count(1), write_off(1),
]  # fmt: skip
UNDATED: list[Line] = [reserve(1), inspect(1, RESTOCK), safety_stock(1), price(1)]


@pytest.mark.parametrize("fact", DATED, ids=lambda fact: Kind(fact.kind).name)
def test_a_moment_is_within_1970_and_what_clocks_may_differ_by(fact: Line) -> None:
    shop = Shop(tea=5)
    before = shop.pair.machine.state_hash
    for moment in (-1, -(1 << 63), (1 << 63) - 1, shop.now_ns + 5 + SKEW):
        bad = fact._replace(occurred_at_ns=moment, location=UNKNOWN)
        assert shop.answer(bad) is Status.INVALID_MOMENT
    assert shop.pair.machine.state_hash == before
    shop.does(fact._replace(occurred_at_ns=shop.now_ns + 1 + SKEW))  # as of the next block


@pytest.mark.parametrize("fact", UNDATED, ids=lambda fact: Kind(fact.kind).name)
def test_what_is_not_late_has_no_moment(fact: Line) -> None:
    shop = Shop(tea=5)
    shop.does(comes_back(1, QUALITY))
    shop.does(fact._replace(occurred_at_ns=-1))


def test_a_moment_that_is_ahead_of_the_clock_is_now() -> None:
    shop = Shop(tea=10)
    shop.does(count(7, occurred_at_ns=shop.now_ns + SKEW))
    assert counted_at(shop) == shop.now_ns
    shop.does(sale(1))
    assert on_hand(shop) == 6
    shop.does(sale(1, occurred_at_ns=shop.now_ns + SKEW))
    sold = shop.now_ns
    shop.wait(MINUTE)
    for moment, left in ((sold, 8), (sold + 1, 9)):
        shop.does(count(9, occurred_at_ns=moment))
        assert on_hand(shop) == left


# --- handovers that are heard of late -------------------------------------------------------------


def with_order(units: int, *, fulfilled: bool = False, tea: int = 10) -> Shop:
    """A shop that has promised so much of its tea to an order, or has handed it over."""
    shop = Shop(tea=tea)
    shop.holds("order", reserve(units))
    shop.does(commit("order"), *[fulfil("order")] * fulfilled)
    shop.wait(MINUTE)
    return shop


def test_goods_that_had_left_when_the_shelf_was_counted_do_not_leave_it_again() -> None:
    shop = with_order(5)
    shop.does(safety_stock(0))
    left = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(5))
    shop.wait(MINUTE)
    shop.does(fulfil("order", occurred_at_ns=left))
    assert (on_hand(shop), shop.cell().committed, shop.available()) == (5, 0, 5)
    assert (shop.units("order"), shop.state("order")) == ([(0, 0, 5)], HoldState.FULFILLED)


def test_a_handover_that_had_failed_when_the_shelf_was_counted_brings_nothing_back() -> None:
    shop = with_order(5, fulfilled=True)
    shop.does(safety_stock(0))
    failed = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(10))
    shop.wait(MINUTE)
    shop.does(unfulfil("order", occurred_at_ns=failed))
    assert (on_hand(shop), shop.cell().committed, shop.available()) == (10, 5, 5)
    assert (shop.units("order"), shop.state("order")) == ([(0, 5, 0)], HoldState.COMMITTED)


HANDED = pytest.mark.parametrize(
    ("hands", "is_back", "units"), [(fulfil, False, -1), (unfulfil, True, 1)], ids=["out", "back"]
)


@HANDED
def test_a_handover_is_from_before_a_count_or_not(
    hands: Callable[..., Line], is_back: bool, units: int
) -> None:
    shop = with_order(5, fulfilled=is_back)
    shop.does(count(7))
    counted = shop.now_ns
    shop.wait(MINUTE)
    for moved, at in ((0, counted - 1), (0, 1), (1, counted + 1), (2, shop.now_ns), (3, 0)):
        shop.does(hands("order", 1, occurred_at_ns=at))
        assert on_hand(shop) == 7 + moved * units
    assert shop.cell().committed == (5 if is_back else 0)


@HANDED
def test_a_handover_is_remembered_at_its_moment(
    hands: Callable[..., Line], is_back: bool, units: int
) -> None:
    """What is heard of late moved when it says, for counts that are heard of later still."""
    shop = with_order(5, fulfilled=is_back)
    start = shop.now_ns
    shop.wait(10 * MINUTE)
    shop.does(*(hands("order", 1, occurred_at_ns=start + at * MINUTE) for at in (5, 1, 3)))
    shop.does(count(20, occurred_at_ns=start + 2 * MINUTE))
    assert on_hand(shop) == 20 + 2 * units
    shop.does(count(30, occurred_at_ns=start + 4 * MINUTE))
    assert on_hand(shop) == 30 + units


@HANDED
def test_a_handover_that_a_count_has_seen_is_no_movement(
    hands: Callable[..., Line], is_back: bool, units: int
) -> None:
    shop = with_order(5, fulfilled=is_back)
    start = shop.now_ns
    shop.wait(10 * MINUTE)
    shop.does(count(20, occurred_at_ns=start + 5 * MINUTE))
    shop.does(hands("order", 1, occurred_at_ns=start + 4 * MINUTE))
    shop.does(count(20, occurred_at_ns=start + 3 * MINUTE))  # recorded, and older than the other
    assert on_hand(shop) == 20


def test_of_a_whole_order_each_cell_goes_by_its_own_count() -> None:
    shop = Shop(tea=10, jam=10)
    shop.does(receive(10, FAR))
    shop.holds("order", reserve(4), reserve(3, JAM), reserve(2, FAR), reserve(1))
    shop.does(commit("order"))
    shop.wait(MINUTE)
    shop.does(safety_stock(0))
    left = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(5), count(10, FAR, occurred_at_ns=left - 1))
    shop.does(fulfil("order", occurred_at_ns=left))
    cells = [shop.cell(key) for key in (TEA, JAM, FAR)]
    assert [(cell.on_hand, cell.committed) for cell in cells] == [(5, 0), (7, 0), (8, 0)]
    shop.wait(MINUTE)
    shop.does(count(8, FAR))
    shop.does(unfulfil("order", occurred_at_ns=left))
    cells = [shop.cell(key) for key in (TEA, JAM, FAR)]
    assert [(cell.on_hand, cell.committed) for cell in cells] == [(5, 5), (10, 3), (8, 2)]


def test_linked_parts_are_handed_over_each_at_its_moment() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(3, JAM))
    shop.does(commit("order"))
    before = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(10), count(10, JAM))
    parts = linked(
        [
            fulfil("order", 1, TEA, occurred_at_ns=before),
            fulfil("order", 2, TEA),
            fulfil("order", 3, JAM, occurred_at_ns=before),
        ]
    )
    shop.does(*parts)
    assert (on_hand(shop), shop.cell(JAM).on_hand) == (8, 10)
    assert shop.units("order") == [(0, 1, 3), (0, 0, 3)]


@pytest.mark.parametrize("kind", [Kind.FULFIL, Kind.UNFULFIL])
@pytest.mark.parametrize("flags", [0, int(Flag.LINKED)])
def test_the_moment_of_a_handover_is_looked_at_after_its_quantity_and_before_its_hold(
    kind: Kind, flags: int
) -> None:
    shop = Shop(tea=5)
    before = shop.pair.machine.state_hash
    for moment in (-1, -(1 << 63), (1 << 63) - 1, shop.now_ns + MINUTE + SKEW):
        bad = line(kind, TEA, 1, hold=hold_id("nobody"), occurred_at_ns=moment)
        first, *_ = shop.answers(bad._replace(flags=flags), bad)
        assert first is Status.INVALID_MOMENT
        first, *_ = shop.answers(bad._replace(flags=flags, quantity=-1), bad)
        assert first is Status.INVALID_QUANTITY
        first, *_ = shop.answers(bad._replace(flags=flags, quantity=0), bad)
        assert first is (Status.INVALID_QUANTITY if flags else Status.INVALID_MOMENT)
    assert shop.pair.machine.state_hash == before


def test_a_handover_that_is_ahead_of_the_clock_is_now() -> None:
    shop = with_order(5)
    shop.does(fulfil("order", occurred_at_ns=shop.now_ns + SKEW))
    left = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(9, occurred_at_ns=left + 1))
    assert on_hand(shop) == 9


@pytest.mark.parametrize("call", [commit, release, cancel], ids=lambda each: each.__name__)
def test_calls_by_which_no_goods_move_have_no_moment(call: Callable[..., Line]) -> None:
    shop = Shop(tea=5)
    shop.holds("order", reserve(2))
    before = [commit("order")] if call is cancel else []
    shop.does(*before, call("order")._replace(occurred_at_ns=-1))


@pytest.mark.parametrize("hands", [fulfil, unfulfil], ids=lambda each: each.__name__)
def test_a_late_handover_that_leaves_on_hand_as_it_is_passes_no_limit_there(
    hands: Callable[..., Line],
) -> None:
    shop = with_order(5, fulfilled=hands is unfulfil)
    before = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(5))
    at_limit = limits.MAX_BALANCE if hands is unfulfil else -limits.MAX_BALANCE
    shop.pair.force(TEA, "on_hand", at_limit)
    assert shop.answer(hands("order", 1, TEA)) is Status.BALANCE_LIMIT
    assert shop.answer(hands("order")) is Status.BALANCE_LIMIT
    shop.does(hands("order", occurred_at_ns=before))
    assert on_hand(shop) == at_limit


# --- limits ---------------------------------------------------------------------------------------


def test_a_late_count_takes_the_place_of_a_balance_at_its_limit() -> None:
    shop = Shop(tea=1)
    seen = shop.now_ns + 1
    shop.does(*[receive(limits.MAX_QUANTITY)] * 3)
    shop.pair.force(TEA, "on_hand", limits.MAX_BALANCE)
    shop.does(count(limits.MAX_QUANTITY, occurred_at_ns=seen))
    assert on_hand(shop) == 4 * limits.MAX_QUANTITY


@pytest.mark.parametrize("bucket", ["damaged", "quality_control"])
def test_a_late_fact_of_goods_set_aside_has_limits_too(bucket: str) -> None:
    shop = Shop(tea=1)
    before = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(1))
    shop.pair.force(TEA, bucket, limits.MAX_BALANCE)
    back = comes_back(1, DAMAGED if bucket == "damaged" else QUALITY, occurred_at_ns=before)
    assert shop.answer(back) is Status.BALANCE_LIMIT


def test_a_late_fact_that_moves_nothing_passes_no_limit() -> None:
    shop = Shop(tea=1)
    before = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(1))
    shop.pair.force(TEA, "on_hand", limits.MAX_BALANCE)
    assert shop.answer(receive(1)) is Status.BALANCE_LIMIT
    shop.does(receive(1, occurred_at_ns=before))


# --- goods set aside ------------------------------------------------------------------------------


def test_what_is_inspected_is_sold_or_damaged() -> None:
    shop = Shop(tea=10)
    shop.does(comes_back(5, QUALITY))
    shop.does(inspect(3, RESTOCK))
    assert shop.available() == 13
    shop.does(inspect(2, DAMAGED))
    cell = shop.cell()
    assert (cell.on_hand, cell.quality_control, cell.damaged) == (15, 0, 2)
    assert shop.available() == 13


def test_no_more_is_inspected_than_is_in_quality_control() -> None:
    shop = Shop(tea=10)
    shop.does(comes_back(2, QUALITY))
    for to in (RESTOCK, DAMAGED):
        assert shop.answer(inspect(3, to)) is Status.EXCEEDS_SET_ASIDE
        assert shop.answer(inspect(1, to, JAM)) is Status.EXCEEDS_SET_ASIDE
    assert shop.pair.machine.cell(*JAM) is None
    assert shop.answer(inspect(1, QUALITY)) is Status.INVALID_DISPOSITION
    assert shop.cell().quality_control == 2


def test_inspection_keeps_damaged_within_its_limit() -> None:
    shop = Shop(tea=10)
    shop.does(comes_back(2, QUALITY))
    shop.pair.force(TEA, "damaged", limits.MAX_BALANCE - 1)
    assert shop.answer(inspect(2, DAMAGED)) is Status.BALANCE_LIMIT
    shop.does(inspect(1, DAMAGED))


@pytest.mark.parametrize(
    ("bucket", "left"),
    [
        (0, (8, 3, 3)),
        (Flag.DAMAGED, (8, 1, 3)),
        (Flag.QUALITY_CONTROL, (8, 3, 1)),
    ],
)
def test_what_is_written_off_leaves_its_bucket(bucket: int, left: tuple[int, int, int]) -> None:
    shop = Shop(tea=4)
    shop.does(comes_back(3, DAMAGED), comes_back(3, QUALITY))
    shop.does(write_off(2, bucket))
    cell = shop.cell()
    assert (cell.on_hand, cell.damaged, cell.quality_control) == left


@pytest.mark.parametrize("bucket", [Flag.DAMAGED, Flag.QUALITY_CONTROL])
def test_no_more_is_written_off_than_is_set_aside(bucket: int) -> None:
    shop = Shop(tea=10)
    shop.does(comes_back(2, DAMAGED), comes_back(2, QUALITY))
    assert shop.answer(write_off(3, bucket)) is Status.EXCEEDS_SET_ASIDE
    assert shop.answer(write_off(1, bucket, JAM)) is Status.EXCEEDS_SET_ASIDE
    assert shop.pair.machine.cell(*JAM) is None


def test_sellable_goods_are_written_off_whatever_the_books_say() -> None:
    shop = Shop(tea=1)
    shop.does(write_off(3), write_off(1, cell=JAM))
    assert (on_hand(shop), shop.cell(JAM).on_hand) == (-2, -1)
    shop.pair.force(TEA, "on_hand", 1 - limits.MAX_BALANCE)
    assert shop.answer(write_off(2)) is Status.BALANCE_LIMIT


def test_too_little_set_aside_is_said_before_a_limit() -> None:
    shop = Shop(tea=1)
    shop.pair.force(TEA, "on_hand", -limits.MAX_BALANCE)
    assert shop.answer(write_off(1, Flag.DAMAGED)) is Status.EXCEEDS_SET_ASIDE


TOO_MANY = limits.MAX_QUANTITY + 1
NOWHERE = (1, UNKNOWN)


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (write_off(0, Flag.DAMAGED | Flag.QUALITY_CONTROL), Status.INVALID_FLAGS),
        (write_off(0, Flag.LINKED), Status.INVALID_FLAGS),
        (inspect(0, RESTOCK)._replace(flags=int(Flag.DAMAGED)), Status.INVALID_FLAGS),
        (sale(0)._replace(flags=int(Flag.DAMAGED)), Status.INVALID_FLAGS),
        (write_off(0)._replace(value=-1), Status.INVALID_QUANTITY),
        (inspect(-1, QUALITY), Status.INVALID_QUANTITY),
        (write_off(TOO_MANY)._replace(value=-1), Status.QUANTITY_TOO_LARGE),
        (inspect(TOO_MANY, QUALITY), Status.QUANTITY_TOO_LARGE),
        (inspect(1, QUALITY, NOWHERE), Status.INVALID_DISPOSITION),
        (line(Kind.INSPECT, NOWHERE, 1, 3), Status.INVALID_DISPOSITION),
        (line(Kind.RETURN, NOWHERE, 1, 3, occurred_at_ns=-1), Status.INVALID_DISPOSITION),
        (line(Kind.WRITE_OFF, NOWHERE, 1, -1, occurred_at_ns=-1), Status.INVALID_REASON),
        (line(Kind.WRITE_OFF, NOWHERE, 1, limits.MAX_REASON + 1), Status.INVALID_REASON),
        (write_off(1, cell=NOWHERE, occurred_at_ns=-1), Status.INVALID_MOMENT),
        (inspect(1, RESTOCK, NOWHERE), Status.UNKNOWN_LOCATION),
        (write_off(1, cell=NOWHERE), Status.UNKNOWN_LOCATION),
    ],
)
def test_the_first_reason_in_the_order_of_statuses_is_the_answer(bad: Line, status: Status) -> None:
    shop = Shop(tea=5)
    before = shop.pair.machine.state_hash
    assert shop.answer(bad) is status
    assert shop.pair.machine.state_hash == before


# --- sales with an id -----------------------------------------------------------------------------


def test_a_sale_with_an_id_is_recorded_once() -> None:
    shop = Shop(tea=10)
    till = sale(2, hold=hold_id("receipt"))
    shop.does(till)
    before = shop.pair.machine.state_hash
    assert shop.answer(till) is Status.ALREADY_RECORDED
    assert shop.pair.machine.state_hash == before
    assert on_hand(shop) == 8


UNDONE: list[list[Line]] = [  # what may become of a sale of two teas, the receipt
    [],
    [comes_back(1, RESTOCK, hold=hold_id("receipt"))],
    [comes_back(2, DAMAGED, hold=hold_id("receipt"))],
    [claim("receipt", 2)],
    [unfulfil("receipt", 1)],
    [unfulfil("receipt"), cancel("receipt", 1)],
    [unfulfil("receipt"), cancel("receipt", 1), fulfil("receipt")],
    [unfulfil("receipt"), cancel("receipt")],
]


@pytest.mark.parametrize("ago_ns", [0, 2 * MINUTE], ids=["now", "from before the count"])
@pytest.mark.parametrize("undone", UNDONE, ids=range(len(UNDONE)))
def test_an_id_of_a_sale_that_comes_with_something_else_is_refused(
    undone: list[Line], ago_ns: int
) -> None:
    """Told that it was recorded, the till would think so, and the other sale would be lost."""
    shop = Shop(tea=10)
    shop.wait(MINUTE)
    shop.does(count(9))
    shop.wait(MINUTE)
    till = sale(2, hold=hold_id("receipt"), occurred_at_ns=shop.now_ns - ago_ns if ago_ns else 0)
    shop.does(till)
    if undone:
        shop.does(*undone)
    before = shop.pair.machine.state_hash, shop.hold("receipt"), shop.cell()
    for again in (till, till._replace(occurred_at_ns=shop.now_ns)):
        assert shop.answer(again) is Status.ALREADY_RECORDED
    for other in (sale(1), sale(3), sale(2, JAM), sale(2, FAR)):
        used = other._replace(hold_hi=till.hold_hi, hold_lo=till.hold_lo)
        assert shop.answer(used) is Status.HOLD_EXISTS
    assert (shop.pair.machine.state_hash, shop.hold("receipt"), shop.cell()) == before
    assert (shop.pair.machine.cell(*JAM), shop.pair.machine.cell(*FAR)) == (None, None)


def test_a_sale_that_an_order_with_its_id_has_grown_on_is_no_more_told_again() -> None:
    """Only a handover between holds gets there: what was sold is then not the record's alone."""
    shop = Shop(tea=10)
    till = sale(2, hold=hold_id("receipt"))
    shop.does(till)
    shop.holds("giver", reserve(2))
    shop.does(*hands_over("giver", "receipt", 2))
    for _ in range(2):
        assert shop.answer(till) is Status.HOLD_EXISTS
        shop.wait(MINUTE)  # it runs out
    assert on_hand(shop) == 8


def test_the_same_sale_twice_in_one_request_has_one_effect() -> None:
    shop = Shop(tea=10)
    answers = shop.answers(*[sale(2, hold=hold_id("receipt"))] * 2, sale(2), sale(2))
    assert answers == [Status.OK, Status.ALREADY_RECORDED, Status.OK, Status.OK]
    assert on_hand(shop) == 4


def test_a_sale_with_an_id_is_looked_up_like_an_order_that_was_handed_over() -> None:
    shop = Shop(tea=10)
    shop.does(sale(2, hold=hold_id("receipt")))
    assert shop.state("receipt") is HoldState.FULFILLED
    assert shop.hold("receipt").lines == [HoldLine(*TEA, pending=0, fulfilled=2)]
    assert shop.answer(commit("receipt")) is Status.HOLD_NOT_PENDING
    assert shop.answer(fulfil("receipt")) is Status.HOLD_NOT_COMMITTED
    assert shop.answer(reserve(1), name="receipt") is Status.HOLD_EXISTS


def test_a_sale_that_was_refused_is_not_recorded() -> None:
    shop = Shop(tea=1)
    shop.pair.force(TEA, "on_hand", 1 - limits.MAX_BALANCE)
    assert shop.answer(sale(2, hold=hold_id("receipt"))) is Status.BALANCE_LIMIT
    shop.does(sale(1, hold=hold_id("receipt")))


def test_an_id_that_an_order_has_is_no_sales() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(1))
    for call in (commit, fulfil):
        assert shop.answer(sale(1, hold=hold_id("order"))) is Status.HOLD_EXISTS
        shop.does(call("order"))
    assert shop.answer(sale(1, hold=hold_id("order"))) is Status.HOLD_EXISTS
    assert on_hand(shop) == 9


def test_a_sale_stays_one_whatever_is_done_to_it() -> None:
    shop = Shop(tea=10)
    shop.does(sale(1, hold=hold_id("receipt")))
    for call in (unfulfil, cancel):
        shop.does(call("receipt"))
        assert shop.answer(sale(1, hold=hold_id("receipt"))) is Status.ALREADY_RECORDED
    assert on_hand(shop) == 10


def test_an_id_is_a_sales_no_longer_when_the_sale_is_forgotten() -> None:
    shop = Shop(tea=10, resolved_remembered=1)
    shop.does(sale(1, hold=hold_id("id")))
    shop.does(sale(1, hold=hold_id("other")))
    shop.holds("id", reserve(1))
    assert shop.answer(sale(1, hold=hold_id("id"))) is Status.HOLD_EXISTS


def test_sales_are_remembered_among_the_orders_that_were_handed_over() -> None:
    shop = Shop(tea=10, resolved_remembered=2)
    shop.does(sale(1, hold=hold_id("a")))
    shop.holds("order", reserve(1))
    shop.does(commit("order"))
    shop.does(fulfil("order"))
    assert shop.answer(sale(1, hold=hold_id("a"))) is Status.ALREADY_RECORDED
    shop.does(sale(1, hold=hold_id("b")))  # the first one is forgotten
    assert shop.answer(comes_back(1, RESTOCK, hold=hold_id("a"))) is Status.UNKNOWN_HOLD
    shop.does(comes_back(1, RESTOCK, hold=hold_id("order")))


def test_baskets_that_were_left_do_not_make_a_shop_forget_what_it_handed_over() -> None:
    shop = Shop(tea=10, resolved_remembered=2)
    shop.does(sale(1, hold=hold_id("receipt")))
    for number in range(5):
        shop.holds(f"released {number}", reserve(1))
        shop.does(release(f"released {number}"))
        shop.holds(f"expired {number}", reserve(1, ttl_ms=1))
        shop.wait(2 * MS)
    assert shop.answer(sale(1, hold=hold_id("receipt"))) is Status.ALREADY_RECORDED
    assert shop.answer(release("released 4")) is Status.HOLD_RELEASED
    assert shop.answer(release("released 3")) is Status.UNKNOWN_HOLD
    for number in range(5):
        shop.does(sale(1, hold=hold_id(f"sale {number}")))
    assert shop.answer(release("released 4")) is Status.HOLD_RELEASED


def test_the_limit_and_the_place_are_said_before_a_sale_is_known() -> None:
    shop = Shop(tea=10)
    shop.does(sale(1, hold=hold_id("receipt")))
    assert shop.answer(sale(1, NOWHERE, hold=hold_id("receipt"))) is Status.UNKNOWN_LOCATION
    shop.pair.force(TEA, "on_hand", -limits.MAX_BALANCE)
    assert shop.answer(sale(1, hold=hold_id("receipt"))) is Status.ALREADY_RECORDED


# --- returns of what was handed over --------------------------------------------------------------


def sold(shop: Shop) -> None:
    """An order of three teas and two jams: two teas were handed over."""
    shop.holds("order", reserve(1), reserve(2, JAM), reserve(2))
    shop.does(commit("order"))
    shop.does(fulfil("order", 2, TEA))


def back(units: int, disposition: Disposition = RESTOCK, cell: Key = TEA, **more: Any) -> Line:
    return comes_back(units, disposition, cell, hold=hold_id("order"), **more)


def test_no_more_comes_back_than_was_handed_over() -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    assert shop.answer(back(3)) is Status.EXCEEDS_HOLD
    shop.does(back(1))
    assert shop.answer(back(2)) is Status.EXCEEDS_HOLD
    shop.does(back(1, DAMAGED))
    assert shop.answer(back(1)) is Status.EXCEEDS_HOLD
    assert shop.returned("order") == [1, 0, 1]
    cell = shop.cell()
    assert (cell.on_hand, cell.damaged) == (10, 1)
    shop.does(fulfil("order"))
    shop.does(back(1))
    assert shop.returned("order") == [1, 0, 2]


def test_a_claim_is_taken_back() -> None:
    """Never more of it than was claimed, of lines of the SKU in their order."""
    shop = Shop(tea=10, jam=10)
    sold(shop)
    assert shop.answer(claim("order", -1)) is Status.EXCEEDS_HOLD
    shop.does(fulfil("order"), claim("order", 3), claim("order", -2))
    assert shop.returned("order") == [0, 0, 1]
    assert shop.answer(claim("order", -2)) is Status.EXCEEDS_HOLD
    assert shop.answer(claim("order", -1, JAM[0])) is Status.EXCEEDS_HOLD
    shop.does(claim("order", -1), claim("order", 3))
    assert shop.returned("order") == [1, 0, 2]


def test_what_comes_back_may_come_to_any_location_and_counts_over_all_of_them() -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    shop.does(back(1, cell=FAR), claim("order", 1))
    assert (shop.cell(FAR).on_hand, on_hand(shop)) == (1, 8)
    for late in (back(1), back(1, cell=FAR), claim("order", 1)):
        assert shop.answer(late) is Status.EXCEEDS_HOLD


def test_goods_of_one_sku_come_back_that_were_handed_over_at_two_locations() -> None:
    shop = Shop(tea=10)
    shop.does(receive(10, FAR))
    shop.holds("order", reserve(2), reserve(3, FAR))
    shop.does(commit("order"))
    shop.does(fulfil("order"))
    assert shop.answer(back(6)) is Status.EXCEEDS_HOLD
    shop.does(back(4))
    assert shop.returned("order") == [2, 2]
    assert (on_hand(shop), shop.cell(FAR).on_hand) == (12, 7)


def test_a_claim_moves_no_stock() -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    before = shop.cell()
    shop.answers(claim("order", 2))
    assert shop.pair.available == [0]
    assert shop.cell() == before
    assert shop.returned("order") == [1, 0, 1]


@pytest.mark.parametrize(
    ("come_back", "status"),
    [
        (back(1), Status.OK),
        (claim("order", 1), Status.OK),
        (back(1, cell=JAM), Status.EXCEEDS_HOLD),
        (claim("order", 1, JAM[0]), Status.EXCEEDS_HOLD),
        (back(1, cell=(3, BERLIN)), Status.NOT_IN_HOLD),
        (claim("order", 1, 3), Status.NOT_IN_HOLD),
        (claim("order", 1, 0), Status.NOT_IN_HOLD),
    ],
)
def test_a_return_names_what_was_handed_over(come_back: Line, status: Status) -> None:
    shop = Shop(tea=10, jam=10)
    assert shop.answer(come_back) is Status.UNKNOWN_HOLD
    sold(shop)
    for name, call in (("pending", None), ("committed", commit), ("released", release)):
        shop.holds(name, reserve(1))
        if call:
            shop.does(call(name))
        hi, lo = id_to_pair(hold_id(name))
        other = come_back._replace(hold_hi=hi, hold_lo=lo)
        assert shop.answer(other) is Status.HOLD_NOT_FULFILLED
    assert shop.pair.machine.cell(3, BERLIN) is None
    assert shop.answer(come_back) is status


def test_a_sale_with_an_id_comes_back_like_an_order() -> None:
    shop = Shop(tea=10)
    shop.does(sale(2, hold=hold_id("order")))
    shop.does(back(1, QUALITY))
    assert shop.returned("order") == [1]
    assert shop.answer(back(2)) is Status.EXCEEDS_HOLD
    shop.does(claim("order", 1))
    assert shop.cell().quality_control == 1


def test_a_return_that_names_nothing_is_blind() -> None:
    shop = Shop()
    shop.does(comes_back(4, RESTOCK))
    assert on_hand(shop) == 4


def test_a_return_against_an_order_from_before_a_count_is_written_down_in_the_order() -> None:
    shop = Shop(tea=10)
    sold_at = shop.now_ns
    shop.does(sale(2, hold=hold_id("order")))
    shop.wait(MINUTE)
    shop.does(count(9))
    shop.does(back(1, occurred_at_ns=sold_at + 2))
    assert (on_hand(shop), shop.returned("order")) == (9, [1])


def test_a_return_that_passes_a_limit_is_not_written_down() -> None:
    shop = Shop(tea=10)
    shop.does(sale(2, hold=hold_id("order")))
    shop.pair.force(TEA, "damaged", limits.MAX_BALANCE)
    assert shop.answer(back(1, DAMAGED)) is Status.BALANCE_LIMIT
    assert shop.answer(back(3, DAMAGED)) is Status.EXCEEDS_HOLD
    assert shop.returned("order") == [0]


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (claim("order", 0)._replace(flags=1), Status.INVALID_FLAGS),
        (claim("order", 0), Status.INVALID_QUANTITY),
        (claim("order", -TOO_MANY), Status.QUANTITY_TOO_LARGE),
        (claim("order", TOO_MANY), Status.QUANTITY_TOO_LARGE),
        (back(1, cell=NOWHERE, occurred_at_ns=-1), Status.INVALID_MOMENT),
        (back(1, cell=NOWHERE), Status.UNKNOWN_LOCATION),
    ],
)
def test_what_a_return_says_of_itself_is_looked_at_before_the_order(
    bad: Line, status: Status
) -> None:
    shop = Shop(tea=5, jam=5)
    assert shop.answer(bad) is status
    sold(shop)
    assert shop.answer(bad) is status
    assert shop.returned("order") == [0, 0, 0]


# --- a bound of its own ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound", ["resolved_remembered", "movements_remembered", "expiries_per_block"]
)
def test_a_machine_remembers_one_of_each_at_least(bound: str) -> None:
    for machine in (Machine, type(Shop().pair.reference)):
        with pytest.raises(ValueError, match=bound):
            machine(**{bound: 0})


# --- a till that was offline ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_day_that_arrives_shuffled_around_a_count_leaves_what_is_there(seed: int) -> None:
    """Whatever the order of arrival: what was counted at noon, and what moved since noon."""
    draw = random.Random(seed)
    shop = Shop(tea=100)
    day, noon = offline_day(draw, shop)
    heard = [*day, count(80, occurred_at_ns=noon)]
    draw.shuffle(heard)
    for each in heard:
        shop.does(each)
    assert on_hand(shop) == 80 - sold_since(day, noon)


@pytest.mark.parametrize("seed", range(5))
def test_an_offline_till_uploads_its_day_twice_shuffled_with_one_effect(seed: int) -> None:
    draw = random.Random(seed)
    shop = Shop(tea=100)
    day, noon = offline_day(draw, shop)
    uploads = [draw.sample(day, len(day)) for _ in range(2)]
    heard = [each for upload in uploads for each in upload]
    heard.insert(draw.randrange(len(heard)), count(80, occurred_at_ns=noon))
    statuses = [shop.answer(each) for each in heard]
    assert statuses.count(Status.ALREADY_RECORDED) == len(day)
    assert statuses.count(Status.OK) == len(day) + 1
    assert on_hand(shop) == 80 - sold_since(day, noon)


def offline_day(draw: random.Random, shop: Shop) -> tuple[list[Line], int]:
    """A till's sales of the hours before now, each with its id, and a moment among them."""
    start = shop.now_ns
    shop.wait(1_000 * MINUTE)
    # As tills stamp: several sales of one moment, and of that of the count.
    moments = [start + MINUTE * draw.randint(1, 999) for _ in range(30)] + [
        start + 500 * MINUTE
    ] * 10
    day = [
        sale(draw.randint(1, 3), occurred_at_ns=moment, hold=hold_id(f"receipt {number}"))
        for number, moment in enumerate(moments)
    ]
    return day, start + 500 * MINUTE


def sold_since(day: list[Line], noon: int) -> int:
    return sum(each.quantity for each in day if each.occurred_at_ns >= noon)


# --- exchanges ------------------------------------------------------------------------------------

REFUSED = Status.LINKED_LINE_REFUSED


def test_an_exchange_takes_back_and_reserves_in_one_step() -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    shop.does(*linked([back(1), back(1, DAMAGED), reserve(3, JAM), reserve(1)]), name="exchange")
    assert shop.returned("order") == [1, 0, 1]
    assert shop.units("exchange") == [(3, 0, 0), (1, 0, 0)]  # the id is that of the first line
    cell = shop.cell()
    assert (cell.on_hand, cell.damaged, cell.reserved) == (10, 1, 1)


def test_what_is_restocked_can_be_reserved_by_the_same_exchange() -> None:
    shop = Shop()
    answers = shop.answers(*linked([comes_back(1, RESTOCK), comes_back(1, RESTOCK), reserve(2)]))
    assert answers == [Status.OK] * 3  # the cell was never stocked before
    assert shop.pair.available == [0, 0, 0]
    answers = shop.answers(*linked([comes_back(1, RESTOCK), reserve(2)]), name="other")
    assert answers == [REFUSED, Status.INSUFFICIENT_STOCK]


@pytest.mark.parametrize("disposition", [QUALITY, DAMAGED])
def test_what_is_set_aside_cannot_be_reserved_by_the_same_exchange(
    disposition: Disposition,
) -> None:
    shop = Shop()
    before = shop.pair.machine.state_hash
    answers = shop.answers(*linked([comes_back(1, disposition), reserve(1)]))
    assert answers == [REFUSED, Status.INSUFFICIENT_STOCK]
    assert shop.pair.machine.state_hash == before


def test_what_the_newest_count_has_seen_is_no_more_to_reserve() -> None:
    shop = Shop(tea=1)
    before = shop.now_ns
    shop.wait(MINUTE)
    shop.does(count(0))
    late = comes_back(1, RESTOCK, occurred_at_ns=before)
    assert shop.answers(*linked([late, reserve(1)])) == [REFUSED, Status.INSUFFICIENT_STOCK]
    shop.does(*linked([late._replace(occurred_at_ns=shop.now_ns), reserve(1)]))
    ahead = comes_back(1, RESTOCK, occurred_at_ns=shop.now_ns + SKEW)
    shop.does(*linked([ahead, reserve(1)]), name="other")


def test_of_a_refused_exchange_nothing_is_done() -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    before = shop.pair.machine.state_hash, shop.cell(), shop.cell(JAM)
    new = comes_back(1, RESTOCK, (3, BERLIN))
    answers = shop.answers(*linked([back(1), new, back(1, cell=FAR), reserve(9, JAM), reserve(1)]))
    assert answers == [REFUSED] * 3 + [Status.INSUFFICIENT_STOCK, REFUSED]
    assert (shop.pair.machine.state_hash, shop.cell(), shop.cell(JAM)) == before
    assert shop.returned("order") == [0, 0, 0]
    assert shop.pair.machine.cell(3, BERLIN) is None
    shop.does(receive(1, FAR), receive(2, (3, BERLIN)))  # in another order
    assert (shop.cell(FAR).on_hand, shop.cell((3, BERLIN)).on_hand) == (1, 2)


def test_of_cells_that_a_refused_exchange_would_have_made_no_trace_is_left() -> None:
    """So many that they meet in the index, some with cells that were there before."""
    shop = Shop(tea=1)
    cells = [(sku, BERLIN) for sku in range(1, limits.MAX_HOLD_LINES)]
    for machine in (shop.pair.machine, shop.pair.reference):
        machine.set_sku_limit(limits.MAX_HOLD_LINES)
    shop.does(*[receive(1, cell) for cell in cells[::3]])
    brought = [comes_back(1, RESTOCK, cell) for cell in cells]
    for _ in range(2):
        answers = shop.answers(*linked([*brought, reserve(5)]))
        assert answers == [REFUSED] * len(cells) + [Status.INSUFFICIENT_STOCK]
        assert shop.pair.machine.cells == len(cells[::3])
    random.Random(0).shuffle(cells)
    shop.does(*[receive(2, cell) for cell in cells])
    assert {shop.cell(cell).on_hand for cell in cells} == {2, 3, 4}


def test_the_returns_of_an_exchange_are_summed_before_they_are_judged() -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    twice = linked([back(1), back(1, cell=FAR), back(1), reserve(1)])
    assert shop.answers(*twice) == [REFUSED, REFUSED, Status.EXCEEDS_HOLD, REFUSED]
    shop.does(sale(1, hold=hold_id("receipt")))
    of_two = [back(2), comes_back(1, RESTOCK, hold=hold_id("receipt")), comes_back(1, RESTOCK)]
    shop.does(*linked([*of_two, reserve(1)]), name="exchange")
    shop.does(fulfil("order"))
    other_sku = [back(1), back(2, cell=JAM)]
    shop.does(*linked([*other_sku, reserve(1)]), name="another")
    assert shop.returned("order") == [1, 2, 2]


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (back(0), Status.INVALID_QUANTITY),
        (back(1, flags=int(Flag.PARTIAL)), Status.INVALID_FLAGS),
        (back(1, cell=NOWHERE), Status.UNKNOWN_LOCATION),
        (back(1, cell=(3, BERLIN)), Status.NOT_IN_HOLD),
        (comes_back(1, RESTOCK, hold=hold_id("nothing")), Status.UNKNOWN_HOLD),
        (back(1, occurred_at_ns=-1), Status.INVALID_MOMENT),
    ],
)
def test_the_first_line_of_an_exchange_that_is_refused_says_why(bad: Line, status: Status) -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    before = shop.pair.machine.state_hash
    assert shop.answers(*linked([bad, reserve(99)])) == [status, REFUSED]
    assert shop.answers(*linked([back(1), bad, reserve(1)])) == [REFUSED, status, REFUSED]
    assert shop.pair.machine.state_hash == before


@pytest.mark.parametrize("bucket", ["on_hand", "damaged", "quality_control"])
def test_an_exchange_keeps_every_counter_within_its_limit(bucket: str) -> None:
    to = {"on_hand": RESTOCK, "damaged": DAMAGED, "quality_control": QUALITY}[bucket]
    shop = Shop(tea=1, jam=1)
    shop.pair.force(TEA, bucket, limits.MAX_BALANCE - 1)
    one = comes_back(1, to)
    answers = shop.answers(*linked([one, one, reserve(1, JAM)]))
    assert answers == [REFUSED, Status.BALANCE_LIMIT, REFUSED]
    shop.does(*linked([one, reserve(1, JAM)]))


def test_returns_that_are_linked_come_in_together_or_not_at_all() -> None:
    shop = Shop(tea=10, jam=10)
    sold(shop)
    shop.does(fulfil("order", 2, JAM))
    before = shop.pair.machine.state_hash
    assert shop.answers(*linked([back(1), back(3, cell=JAM)])) == [REFUSED, Status.EXCEEDS_HOLD]
    assert shop.answers(*linked([back(3), back(1, cell=JAM)])) == [Status.EXCEEDS_HOLD, REFUSED]
    assert shop.pair.machine.state_hash == before
    assert shop.returned("order") == [0, 0, 0]
    shop.does(*linked([back(1), back(2, cell=JAM)]))
    assert shop.returned("order") == [1, 2, 0]


def test_only_what_is_reserved_comes_after_what_is_returned() -> None:
    shop = Shop(tea=10)
    brought = comes_back(1, RESTOCK)
    dangling = brought._replace(flags=int(Flag.LINKED))
    assert shop.answer(dangling) is Status.INVALID_FLAGS
    assert shop.answers(dangling, dangling) == [REFUSED, Status.INVALID_FLAGS]
    assert shop.answers(*linked([brought, reserve(1), brought])) == [
        REFUSED, REFUSED, Status.INVALID_FLAGS,
    ]  # fmt: skip
    assert shop.answers(*linked([brought, sale(1)])) == [REFUSED, Status.INVALID_FLAGS]
    assert on_hand(shop) == 10


def test_an_exchange_has_at_most_as_many_lines_as_a_hold() -> None:
    most = limits.MAX_HOLD_LINES
    shop = Shop(tea=10)
    brought = [comes_back(1, RESTOCK)] * most
    assert (
        shop.answers(*linked([*brought, reserve(1)])) == [Status.TOO_MANY_LINES] + [REFUSED] * most
    )
    too_many = linked([*brought, brought[0]])
    assert shop.answers(*too_many) == [Status.TOO_MANY_LINES] + [REFUSED] * most
    shop.does(*linked([*brought[1:], reserve(1)]))
    shop.does(*linked(brought))


def test_the_id_of_an_exchange_is_taken_like_a_holds() -> None:
    shop = Shop(tea=10)
    shop.holds("id", reserve(1))
    answers = shop.answers(*linked([comes_back(1, RESTOCK), reserve(1)]), name="id")
    assert answers == [REFUSED, Status.HOLD_EXISTS]
    assert on_hand(shop) == 10


def test_an_exchange_may_take_the_place_of_a_hold() -> None:
    shop = Shop()
    shop.does(receive(1))
    shop.holds("old", reserve(1))
    new = reserve(2, flags=int(Flag.SUPERSEDE), hold=hold_id("old"))
    shop.does(*linked([comes_back(1, RESTOCK), new]), name="new")
    assert shop.state("old") is HoldState.RELEASED
    assert shop.units("new") == [(2, 0, 0)]


def test_an_exchange_may_take_what_there_is() -> None:
    shop = Shop(tea=10)
    some = reserve(5, JAM, flags=int(Flag.PARTIAL))
    answers = shop.answers(*linked([comes_back(2, RESTOCK, JAM), some, some]))
    assert answers == [Status.OK, Status.OK, Status.INSUFFICIENT_STOCK]
    assert shop.units("request") == [(2, 0, 0)]
    answers = shop.answers(*linked([comes_back(2, DAMAGED, JAM), some, some]), name="none")
    assert answers == [REFUSED, Status.INSUFFICIENT_STOCK, Status.INSUFFICIENT_STOCK]
    assert shop.cell(JAM).damaged == 0
