"""The rules of stock and price, one by one. Both machines answer each of them (see `Shop`)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import kernels, limits
from engine.kernels import layout
from engine.machine import Machine
from engine.operations import Disposition, Flag, Kind, Request
from engine.reference import Key, Line, ReferenceMachine
from engine.status import Status
from engine.views import Cell, HoldLine, HoldState
from tests.property.histories import (
    BERLIN,
    BOSTON,
    ELSEWHERE,
    EUR,
    MS,
    SKUS,
    SPLIT,
    UNKNOWN,
    USD,
    line,
    linked,
)
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    adjust,
    cancel,
    comes_back,
    commit,
    count,
    fulfil,
    hold_id,
    price,
    receive,
    release,
    reserve,
    safety_stock,
    sale,
)

MakesLine = Callable[..., Line]

# --- available ------------------------------------------------------------------------------------


def test_available_is_what_is_on_hand_and_not_kept() -> None:
    shop = Shop(tea=20)
    shop.holds("pending", reserve(3))
    shop.holds("ordered", reserve(2))
    shop.does(commit("ordered"))
    shop.does(comes_back(1, Disposition.DAMAGED), comes_back(4, Disposition.QUALITY_CONTROL))
    shop.does(safety_stock(5))
    cell = shop.cell()
    assert (cell.on_hand, cell.reserved, cell.committed) == (25, 3, 2)
    assert (cell.damaged, cell.quality_control, cell.safety_stock) == (1, 4, 5)
    assert cell.available == 25 - 3 - 2 - 1 - 4 - 5


def test_each_line_is_answered_with_what_is_available_after_it() -> None:
    shop = Shop(tea=5)
    shop.answers(sale(1), reserve(3), reserve(2), *linked([reserve(1, JAM), reserve(1)]))
    assert shop.pair.available == [4, 1, 1, 0, 0]
    shop.answers(sale(4), reserve(0), *linked([reserve(1), sale(1)]))
    assert shop.pair.available == [-3, 0, -3, 0]


# --- reserve --------------------------------------------------------------------------------------


def test_a_hold_keeps_its_units_from_others() -> None:
    shop = Shop(tea=10)
    shop.holds("first", reserve(7))
    assert shop.answer(reserve(4), name="second") is Status.INSUFFICIENT_STOCK
    shop.holds("third", reserve(3))
    assert shop.available() == 0


def test_of_many_buyers_of_the_last_unit_one_wins() -> None:
    shop = Shop(tea=1)
    answers = shop.answers(*[reserve(1)] * 50)
    assert answers == [Status.OK] + [Status.INSUFFICIENT_STOCK] * 49


def test_nothing_can_be_reserved_of_a_cell_that_was_never_stocked() -> None:
    assert Shop().answer(reserve(1)) is Status.INSUFFICIENT_STOCK


def test_a_hold_keeps_other_buyers_free_to_buy_the_rest() -> None:
    shop = Shop(tea=2)
    shop.holds("slow payer", reserve(1))
    shop.does(sale(1))
    assert shop.pair.machine.shortages == 0


def test_the_id_of_a_hold_is_taken_for_as_long_as_it_is_remembered() -> None:
    shop = Shop(tea=9, resolved_remembered=1)
    shop.holds("id", reserve(1))
    assert shop.answer(reserve(1), name="id") is Status.HOLD_EXISTS
    shop.does(release("id"))
    assert shop.answer(reserve(1), name="id") is Status.HOLD_EXISTS
    shop.holds("other", reserve(1))
    shop.does(release("other"))
    shop.holds("id", reserve(1))


def test_each_line_that_stands_alone_makes_a_hold_of_its_own() -> None:
    shop = Shop(tea=9)
    shop.does(reserve(1), reserve(2), name="base")
    assert shop.hold("base", 0).lines[0].pending == 1
    assert shop.hold("base", 1).lines[0].pending == 2
    assert shop.pair.machine.holds_open == 2


# --- orders of several lines ----------------------------------------------------------------------


def test_linked_lines_are_one_hold() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("order", reserve(2), reserve(3, JAM))
    assert shop.units("order") == [(2, 0, 0), (3, 0, 0)]
    assert shop.pair.machine.holds_open == 1


def test_linked_lines_are_all_or_nothing() -> None:
    shop = Shop(tea=5, jam=1)
    answers = shop.answers(*linked([reserve(2), reserve(2, JAM), reserve(1)]))
    refused = Status.LINKED_LINE_REFUSED
    assert answers == [refused, Status.INSUFFICIENT_STOCK, refused]
    assert (shop.available(TEA), shop.available(JAM)) == (5, 1)


def test_the_demand_of_linked_lines_on_one_cell_is_summed() -> None:
    shop = Shop(tea=5)
    answers = shop.answers(*linked([reserve(3), reserve(3)]))
    assert answers == [Status.LINKED_LINE_REFUSED, Status.INSUFFICIENT_STOCK]
    shop.holds("fits", reserve(3), reserve(2))
    assert shop.units("fits") == [(3, 0, 0), (2, 0, 0)]


def test_an_order_ends_with_the_first_line_that_is_not_linked() -> None:
    shop = Shop(tea=5)
    answers = shop.answers(*linked([reserve(2), reserve(4)]), reserve(1), name="base")
    assert answers == [Status.LINKED_LINE_REFUSED, Status.INSUFFICIENT_STOCK, Status.OK]
    assert shop.hold("base", 2).lines[0].pending == 1  # the hold has the id of its first line


def test_orders_do_not_span_requests() -> None:
    shop = Shop(tea=5)
    assert shop.answer(reserve(1, flags=Flag.LINKED)) is Status.INVALID_FLAGS
    answers = shop.answers(*[reserve(1, flags=Flag.LINKED)] * 2)
    assert answers == [Status.LINKED_LINE_REFUSED, Status.INVALID_FLAGS]


def test_the_first_line_says_how_long_an_order_is_held() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("order", reserve(1, ttl_ms=20), reserve(1, JAM, ttl_ms=500))
    assert shop.hold("order").deadline_ns == shop.now_ns + 20 * MS


def test_an_order_has_at_most_so_many_lines() -> None:
    most = limits.MAX_HOLD_LINES
    shop = Shop(tea=2 * most)
    shop.holds("whole", *[reserve(1)] * most)
    answers = shop.answers(*linked([reserve(1)] * (most + 1)), name="too many")
    assert answers == [Status.TOO_MANY_LINES] + [Status.LINKED_LINE_REFUSED] * most
    shop.does(commit("whole"))
    shop.does(fulfil("whole"))
    assert shop.cell().on_hand == most


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.SALE, Kind.SET_PRICE])
def test_only_reserve_lines_can_be_linked(kind: Kind) -> None:
    shop = Shop(tea=5)
    refused = Status.LINKED_LINE_REFUSED
    answers = shop.answers(*linked([reserve(1), line(kind, TEA, 1), reserve(1)]))
    assert answers == [refused, Status.INVALID_FLAGS, refused]
    answers = shop.answers(*linked([reserve(1), line(kind, TEA, 1)]))
    assert answers == [refused, Status.INVALID_FLAGS]
    assert shop.answer(line(kind, TEA, 1, flags=Flag.LINKED)) is Status.INVALID_FLAGS


# --- commit, release ------------------------------------------------------------------------------


def test_a_commit_turns_what_is_reserved_into_what_is_committed() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(2, JAM))
    shop.does(commit("order"))
    assert shop.state("order") is HoldState.COMMITTED
    assert (shop.cell(TEA).reserved, shop.cell(TEA).committed) == (0, 4)
    assert (shop.cell(JAM).reserved, shop.cell(JAM).committed) == (0, 2)
    assert (shop.pair.machine.holds_open, shop.pair.machine.holds_committed) == (0, 1)


def test_a_hold_is_committed_once() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order"))
    assert shop.answer(commit("order")) is Status.HOLD_NOT_PENDING
    assert shop.answer(release("order")) is Status.HOLD_NOT_PENDING
    assert shop.cell().committed == 4


def test_a_part_can_be_committed_and_the_rest_stays_pending() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order", 1))
    assert shop.units("order") == [(3, 1, 0)]
    assert shop.state("order") is HoldState.PENDING
    shop.does(commit("order"))
    assert shop.units("order") == [(0, 4, 0)]


def test_a_part_can_be_committed_and_the_rest_released() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order", 1, rest=True))
    assert shop.units("order") == [(0, 1, 0)]
    assert shop.state("order") is HoldState.COMMITTED
    assert shop.available() == 9


@pytest.mark.parametrize(
    ("units", "left"),
    [
        (1, [(0, 0, 0), (0, 1, 0), (0, 0, 0), (0, 0, 0)]),
        (3, [(0, 0, 0), (0, 3, 0), (0, 0, 0), (0, 0, 0)]),
        (4, [(0, 0, 0), (0, 3, 0), (0, 1, 0), (0, 0, 0)]),
        (5, [(0, 0, 0), (0, 3, 0), (0, 2, 0), (0, 0, 0)]),
    ],
)
def test_the_rest_that_is_released_is_of_all_lines(
    units: int, left: list[tuple[int, int, int]]
) -> None:
    """Before the named cell's lines, between and behind them; and what is left of them."""
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4, JAM), reserve(3), reserve(2), reserve(1, JAM))
    shop.does(commit("order", units, TEA, rest=True))
    assert shop.units("order") == left
    assert (shop.cell(TEA).reserved, shop.cell(JAM).reserved) == (0, 0)
    assert (shop.cell(TEA).committed, shop.cell(JAM).committed) == (units, 0)


def test_the_rest_that_is_released_leaves_what_was_committed_before() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4, JAM), reserve(3))
    shop.does(commit("order", 1, JAM))
    shop.does(commit("order", 1, TEA, rest=True))
    assert shop.units("order") == [(0, 1, 0), (0, 1, 0)]


def test_release_gives_everything_back() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(2, JAM))
    shop.does(release("order"))
    assert shop.state("order") is HoldState.RELEASED
    assert (shop.available(TEA), shop.available(JAM)) == (10, 10)
    for call in (commit, release, fulfil, cancel):
        assert shop.answer(call("order")) is Status.HOLD_RELEASED


def test_a_hold_of_which_a_part_is_committed_and_the_rest_released_lives_on() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order", 3))
    shop.does(release("order"))
    assert shop.state("order") is HoldState.COMMITTED
    assert shop.units("order") == [(0, 3, 0)]


def test_an_unknown_hold_is_said_to_be_unknown() -> None:
    shop = Shop(tea=10)
    for call in (commit, release, fulfil, cancel):
        assert shop.answer(call("nothing")) is Status.UNKNOWN_HOLD


def test_the_oldest_resolved_holds_are_forgotten_first() -> None:
    shop = Shop(tea=10, resolved_remembered=2)
    for name in ("a", "b", "c"):
        shop.holds(name, reserve(1))
    for name in ("b", "a", "c"):
        shop.does(release(name))
    assert shop.answer(commit("b")) is Status.UNKNOWN_HOLD
    assert shop.answer(commit("a")) is Status.HOLD_RELEASED
    assert shop.answer(commit("c")) is Status.HOLD_RELEASED


# --- fulfil, cancel -------------------------------------------------------------------------------


def test_goods_that_are_handed_over_leave() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order"))
    shop.does(fulfil("order"))
    assert shop.state("order") is HoldState.FULFILLED
    assert (shop.cell().on_hand, shop.cell().committed, shop.available()) == (6, 0, 6)
    assert shop.answer(fulfil("order")) is Status.HOLD_NOT_COMMITTED
    assert shop.cell().on_hand == 6
    assert shop.pair.machine.holds_committed == 0


def test_a_cancelled_order_is_available_again() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order"))
    shop.does(cancel("order"))
    assert shop.state("order") is HoldState.CANCELLED
    assert (shop.cell().on_hand, shop.cell().committed, shop.available()) == (10, 0, 10)
    for call in (commit, release):
        assert shop.answer(call("order")) is Status.HOLD_NOT_PENDING
    for call in (fulfil, cancel):
        assert shop.answer(call("order")) is Status.HOLD_NOT_COMMITTED


def test_order_seven_ship_three_cancel_the_rest_return_two() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(7))
    shop.does(commit("order"))
    shop.does(fulfil("order", 3))
    shop.does(cancel("order"))
    shop.does(comes_back(2, Disposition.RESTOCK))
    assert shop.state("order") is HoldState.FULFILLED
    assert shop.units("order") == [(0, 0, 3)]
    cell = shop.cell()
    assert (cell.on_hand, cell.reserved, cell.committed, cell.available) == (9, 0, 0, 9)


@pytest.mark.parametrize("call", [fulfil, cancel])
@pytest.mark.parametrize("units", [0, 1])
@pytest.mark.parametrize("cell", [(0, 0), TEA, FAR])
def test_nothing_can_be_taken_of_what_is_not_committed(
    call: MakesLine, units: int, cell: Key
) -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("one line", reserve(4))
    shop.holds("two lines", reserve(4), reserve(1, JAM))
    for name in ("one line", "two lines"):
        assert shop.answer(call(name, units, cell)) is Status.HOLD_NOT_COMMITTED


def test_a_part_can_be_handed_over_while_the_rest_is_still_pending() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order", 3))
    shop.does(fulfil("order", 2))
    shop.does(cancel("order", 1))
    assert shop.units("order") == [(1, 0, 2)]
    assert shop.state("order") is HoldState.PENDING
    assert shop.answer(cancel("order")) is Status.HOLD_NOT_COMMITTED
    shop.does(release("order"))
    assert shop.state("order") is HoldState.FULFILLED


# --- parts of a hold by the name of their cell ----------------------------------------------------


def test_a_part_of_several_lines_needs_the_name_of_its_cell() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(2, JAM))
    assert shop.answer(commit("order", 1)) is Status.NOT_IN_HOLD
    assert shop.answer(commit("order", 1, FAR)) is Status.NOT_IN_HOLD
    shop.does(commit("order", 1, JAM))
    assert shop.units("order") == [(4, 0, 0), (1, 1, 0)]


def test_a_part_of_the_only_line_needs_no_name_but_no_wrong_one_either() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order", 1), commit("order", 1, TEA))
    assert shop.answer(commit("order", 1, JAM)) is Status.NOT_IN_HOLD


def test_no_more_can_be_taken_than_the_hold_has_of_the_cell() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(2), reserve(3), reserve(4, JAM))
    assert shop.answer(commit("order", 6, TEA)) is Status.EXCEEDS_HOLD
    shop.does(commit("order", 5, TEA))
    assert shop.answer(commit("order", 1, TEA)) is Status.EXCEEDS_HOLD
    assert shop.answer(fulfil("order", 1, JAM)) is Status.EXCEEDS_HOLD
    shop.does(release("order", 4, JAM))
    assert shop.units("order") == [(0, 2, 0), (0, 3, 0), (0, 0, 0)]


# --- deadlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [commit, release])
def test_a_hold_is_good_up_to_its_deadline_and_not_a_nanosecond_longer(call: MakesLine) -> None:
    shop = Shop(tea=10)
    shop.holds("kept", reserve(1))
    shop.wait_until(shop.hold("kept").deadline_ns)
    shop.does(call("kept"))
    shop.holds("late", reserve(1))
    shop.wait_until(shop.hold("late").deadline_ns + 1)
    assert shop.answer(call("late")) is Status.HOLD_EXPIRED
    assert shop.cell().reserved == 0


def test_what_expires_is_available_to_the_same_block() -> None:
    shop = Shop(tea=1)
    shop.holds("first", reserve(1, ttl_ms=5))
    shop.wait_until(shop.hold("first").deadline_ns + 1)
    shop.holds("second", reserve(1))


def test_only_what_is_pending_expires() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(3, ttl_ms=5), reserve(1), reserve(2, JAM))
    shop.does(commit("order", 4, TEA), cancel("order", 2, TEA))
    shop.wait(6 * MS)
    assert shop.answer(commit("order")) is Status.HOLD_EXPIRED
    assert shop.state("order") is HoldState.COMMITTED
    assert shop.units("order") == [(0, 1, 0), (0, 1, 0), (0, 0, 0)]
    assert (shop.available(TEA), shop.available(JAM)) == (8, 10)
    shop.does(fulfil("order"))


@pytest.mark.parametrize("cancelled", [0, 1])
@pytest.mark.parametrize("fulfilled", [0, 1, 2])
@pytest.mark.parametrize("committed", [0, 1, 2])
def test_what_is_left_of_an_expired_hold_says_what_it_is(
    committed: int, fulfilled: int, cancelled: int
) -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(9, ttl_ms=5))
    if posted := committed + fulfilled + cancelled:
        shop.does(commit("order", posted))
    if fulfilled:
        shop.does(fulfil("order", fulfilled))
    if cancelled:
        shop.does(cancel("order", cancelled))
    shop.wait(6 * MS)
    shop.does(count(10, JAM))
    assert shop.units("order") == [(0, committed, fulfilled)]
    left = HoldState.FULFILLED if fulfilled else HoldState.EXPIRED
    assert shop.state("order") is (HoldState.COMMITTED if committed else left)
    assert shop.pair.machine.holds_committed == (committed > 0)


def test_a_block_sweeps_at_most_so_many_holds_by_ticks_and_then_by_age() -> None:
    shop = Shop(tea=10, expiries_per_block=1)
    shop.holds("old, late", reserve(1, ttl_ms=90))
    shop.holds("first of two", reserve(1, ttl_ms=10))
    shop.holds("second of two", reserve(1, ttl_ms=10))
    shop.wait(1000 * MS)
    left = ["old, late", "first of two", "second of two"]
    for name in ("first of two", "second of two", "old, late"):
        shop.does(count(10, JAM))
        left.remove(name)
        assert shop.state(name) is HoldState.EXPIRED
        assert {shop.state(each) for each in left} <= {HoldState.PENDING}


def test_an_overdue_hold_that_was_not_swept_expires_when_it_is_called_on() -> None:
    shop = Shop(tea=10, expiries_per_block=1)
    shop.holds("swept", reserve(1, ttl_ms=5))
    shop.holds("called", reserve(4, ttl_ms=5))
    shop.wait(1000 * MS)
    answers = shop.answers(commit("called", -1), reserve(7), commit("called"), reserve(10))
    insufficient, expired = Status.INSUFFICIENT_STOCK, Status.HOLD_EXPIRED
    assert answers == [Status.INVALID_QUANTITY, insufficient, expired, Status.OK]


# --- facts ----------------------------------------------------------------------------------------


def test_a_fact_is_never_refused_for_lack_of_stock_but_counted_as_a_shortage() -> None:
    shop = Shop(tea=3)
    shop.holds("order", reserve(2))
    shop.does(sale(2))
    assert (shop.available(), shop.pair.machine.shortages) == (-1, 1)
    shop.does(sale(5))
    assert (shop.cell().on_hand, shop.available()) == (-4, -6)
    shop.does(commit("order"))  # the hold was there first
    shop.does(count(10))
    assert (shop.available(), shop.pair.machine.shortages) == (8, 0)


def test_the_first_fact_makes_the_cell() -> None:
    shop = Shop()
    shop.does(sale(2))
    assert (shop.cell().on_hand, shop.pair.machine.shortages) == (-2, 1)


@pytest.mark.parametrize(
    ("disposition", "damaged", "quality_control"),
    [
        (Disposition.RESTOCK, 0, 0),
        (Disposition.QUALITY_CONTROL, 0, 2),
        (Disposition.DAMAGED, 2, 0),
    ],
)
def test_what_comes_back_is_on_hand_and_sellable_only_if_restocked(
    disposition: Disposition, damaged: int, quality_control: int
) -> None:
    shop = Shop(tea=1)
    shop.does(comes_back(2, disposition))
    cell = shop.cell()
    assert (cell.on_hand, cell.damaged, cell.quality_control) == (3, damaged, quality_control)


def test_adjustments_are_relative_and_counts_absolute() -> None:
    shop = Shop(tea=10)
    shop.does(adjust(-3), adjust(1))
    assert shop.cell().on_hand == 8
    shop.does(count(0))
    assert shop.cell().on_hand == 0


def test_safety_stock_is_absolute_and_may_leave_a_shortage() -> None:
    shop = Shop(tea=3)
    shop.does(safety_stock(5))
    assert (shop.available(), shop.pair.machine.shortages) == (-2, 1)
    shop.does(safety_stock(0))
    assert shop.available() == 3


def test_the_version_of_a_price_grows_when_the_price_changes_and_only_then() -> None:
    shop = Shop()
    versions = []
    for minor in (0, 0, 199, 199, 0):
        shop.does(price(minor))
        versions.append(shop.cell().price_version)
    assert versions == [1, 1, 2, 2, 3]
    assert (shop.cell().price_minor, shop.cell().on_hand) == (0, 0)


def test_a_price_has_the_currency_of_its_location() -> None:
    shop = Shop()
    assert shop.answer(price(1, TEA, USD)) is Status.CURRENCY_MISMATCH
    assert shop.answer(price(1, FAR, EUR)) is Status.CURRENCY_MISMATCH
    shop.does(price(1, TEA, EUR), price(1, FAR, USD))


# --- limits ---------------------------------------------------------------------------------------

MOST = limits.MAX_BALANCE


@pytest.mark.parametrize(
    ("counter", "near", "within", "beyond"),
    [
        ("on_hand", MOST - 1, receive(1), receive(2)),
        ("on_hand", MOST - 1, adjust(1), adjust(2)),
        ("on_hand", MOST - 1, comes_back(1, Disposition.RESTOCK), comes_back(2, Disposition(0))),
        ("on_hand", 1 - MOST, sale(1), sale(2)),
        ("on_hand", 1 - MOST, adjust(-1), adjust(-2)),
        ("damaged", MOST - 1, comes_back(1, Disposition.DAMAGED), comes_back(2, Disposition(2))),
        (
            "quality_control",
            MOST - 1,
            comes_back(1, Disposition.QUALITY_CONTROL),
            comes_back(2, Disposition(1)),
        ),
    ],
)
def test_no_counter_passes_its_limit(counter: str, near: int, within: Line, beyond: Line) -> None:
    shop = Shop(tea=1)
    shop.pair.force(TEA, counter, near)
    assert shop.answer(beyond) is Status.BALANCE_LIMIT
    assert getattr(shop.cell(), counter) == near
    shop.does(within)
    assert abs(getattr(shop.cell(), counter)) == MOST
    assert shop.answer(within) is Status.BALANCE_LIMIT


def test_a_part_is_handed_over_where_the_whole_would_pass_the_limit() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(2), reserve(2))
    shop.does(commit("order"))
    shop.pair.force(TEA, "on_hand", 3 - MOST)
    assert shop.answer(fulfil("order")) is Status.BALANCE_LIMIT
    assert shop.answer(fulfil("order", 5, TEA)) is Status.EXCEEDS_HOLD
    shop.does(fulfil("order", 3, TEA))
    assert shop.cell().on_hand == -MOST


# --- refusals and their precedence ----------------------------------------------------------------

TOO_MANY = limits.MAX_QUANTITY + 1
LONG = limits.MAX_TTL_MS + 1


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (reserve(1)._replace(kind=0), Status.INVALID_KIND),
        (reserve(1)._replace(kind=max(Kind) + 1, flags=9), Status.INVALID_KIND),
        (reserve(0, flags=2), Status.INVALID_FLAGS),
        (reserve(0, flags=16), Status.INVALID_FLAGS),
        (commit("?", 0, rest=True), Status.INVALID_FLAGS),
        (commit("?", -1)._replace(flags=1), Status.INVALID_FLAGS),
        (release("?", 1)._replace(flags=2), Status.INVALID_FLAGS),
        (sale(0)._replace(flags=1), Status.INVALID_FLAGS),
        (reserve(0, ttl_ms=0), Status.INVALID_QUANTITY),
        (commit("?", -1), Status.INVALID_QUANTITY),
        (commit("?", -1, rest=True), Status.INVALID_QUANTITY),
        (sale(0), Status.INVALID_QUANTITY),
        (sale(-TOO_MANY), Status.INVALID_QUANTITY),
        (comes_back(0, Disposition(1)), Status.INVALID_QUANTITY),
        (receive(-1), Status.INVALID_QUANTITY),
        (adjust(0, reason=-1), Status.INVALID_QUANTITY),
        (count(-1), Status.INVALID_QUANTITY),
        (safety_stock(-1), Status.INVALID_QUANTITY),
        (reserve(TOO_MANY, ttl_ms=0), Status.QUANTITY_TOO_LARGE),
        (cancel("?", TOO_MANY), Status.QUANTITY_TOO_LARGE),
        (count(TOO_MANY), Status.QUANTITY_TOO_LARGE),
        (adjust(-TOO_MANY, reason=-1), Status.QUANTITY_TOO_LARGE),
        (reserve(1, (1, UNKNOWN), ttl_ms=0), Status.INVALID_TTL),
        (reserve(1, (1, UNKNOWN), ttl_ms=LONG), Status.INVALID_TTL),
        (line(Kind.RETURN, (1, UNKNOWN), 1, 3), Status.INVALID_DISPOSITION),
        (line(Kind.RETURN, (1, UNKNOWN), 1, -1), Status.INVALID_DISPOSITION),
        (adjust(1, -1, (1, UNKNOWN)), Status.INVALID_REASON),
        (adjust(1, limits.MAX_REASON + 1, (1, UNKNOWN)), Status.INVALID_REASON),
        (price(-1, (1, UNKNOWN)), Status.INVALID_PRICE),
        (price(limits.MAX_PRICE_MINOR + 1, (1, UNKNOWN)), Status.INVALID_PRICE),
        (reserve(1, (0, UNKNOWN)), Status.UNKNOWN_LOCATION),
        (sale(1, (0, 0)), Status.UNKNOWN_LOCATION),
        (sale(1, (1, limits.MAX_LOCATIONS)), Status.UNKNOWN_LOCATION),
        (sale(1, (0, ELSEWHERE)), Status.UNKNOWN_SKU),
        (reserve(1, (SKUS + 1, ELSEWHERE)), Status.UNKNOWN_SKU),
        (reserve(1, (1, ELSEWHERE)), Status.WRONG_SHARD),
        (reserve(1, (1, SPLIT)), Status.WRONG_SHARD),
        (price(1, (1, ELSEWHERE), USD), Status.WRONG_SHARD),
        (price(1, TEA, USD), Status.CURRENCY_MISMATCH),
    ],
)
def test_the_first_reason_in_the_order_of_statuses_is_the_answer(bad: Line, status: Status) -> None:
    shop = Shop(tea=5)
    before = shop.pair.machine.state_hash
    assert shop.answer(bad) is status
    assert shop.pair.machine.state_hash == before


def test_a_line_of_no_known_kind_is_called_so_in_an_order_too() -> None:
    shop = Shop(tea=5)
    refused = Status.LINKED_LINE_REFUSED
    for kind in (0, max(Kind) + 1, 255):
        answers = shop.answers(*linked([reserve(1), reserve(1)._replace(kind=kind), reserve(1)]))
        assert answers == [refused, Status.INVALID_KIND, refused]


def test_an_id_in_use_is_said_before_too_many_lines_and_these_before_too_little_stock() -> None:
    shop = Shop(tea=1)
    too_many = linked([reserve(2)] * (limits.MAX_HOLD_LINES + 1))
    assert shop.answers(*too_many, name="new")[0] is Status.TOO_MANY_LINES
    shop.holds("old", reserve(1))
    assert shop.answers(*too_many, name="old")[0] is Status.HOLD_EXISTS
    assert shop.answer(reserve(2), name="old") is Status.HOLD_EXISTS


def test_the_smallest_and_the_largest_values_are_taken() -> None:
    shop = Shop(tea=limits.MAX_QUANTITY)
    shop.holds("short", reserve(1, ttl_ms=limits.MIN_TTL_MS))
    shop.does(release("short"))
    shop.holds("long", reserve(limits.MAX_QUANTITY, ttl_ms=limits.MAX_TTL_MS))
    shop.does(commit("long", limits.MAX_QUANTITY))
    shop.does(adjust(limits.MAX_QUANTITY, 0), adjust(-limits.MAX_QUANTITY, limits.MAX_REASON))
    shop.does(price(0), price(limits.MAX_PRICE_MINOR), count(limits.MAX_QUANTITY), count(0))
    shop.does(sale(1, (SKUS, BERLIN)), sale(1, (2, SPLIT)))


# --- the shard map --------------------------------------------------------------------------------


def test_holds_of_a_location_that_moved_away_can_still_be_called_on() -> None:
    shop = Shop()
    shop.does(receive(5, FAR))
    shop.holds("order", reserve(2, FAR))
    shop.pair.set_location(BOSTON, owned=False)
    assert shop.answer(reserve(1, FAR)) is Status.WRONG_SHARD
    assert shop.answer(sale(1, FAR)) is Status.WRONG_SHARD
    shop.does(commit("order"))
    shop.does(fulfil("order"))


# --- what the two machines share ------------------------------------------------------------------


def test_the_columns_have_the_states_of_the_views() -> None:
    names = [f"H_{state.name}" for state in HoldState]
    assert [getattr(layout, name) for name in names] == list(HoldState)


def test_a_view_is_a_copy() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(3))
    for machine in (shop.pair.machine, shop.pair.reference):
        cell, hold = machine.cell(*TEA), machine.hold(hold_id("order"))
        assert cell is not None
        assert hold is not None
        cell.on_hand, hold.lines[0].pending = 99, 99
        assert machine.cell(*TEA) == Cell(on_hand=10, reserved=3)
        again = machine.hold(hold_id("order"))
        assert again is not None
        assert again.lines == [HoldLine(*TEA, pending=3)]
        assert machine.cell(*JAM) is None
        assert machine.hold(hold_id("nothing")) is None


@pytest.mark.parametrize("machine", [Machine, ReferenceMachine])
def test_time_and_the_catalogue_only_grow(machine: type[Machine | ReferenceMachine]) -> None:
    shard = machine()
    shard.apply(5, [])
    for now_ns in (4, 5):
        with pytest.raises(ValueError):
            shard.apply(now_ns, [])
    shard.set_sku_limit(7)
    with pytest.raises(ValueError):
        shard.set_sku_limit(6)


def test_every_status_that_a_machine_gives_is_tested_by_name() -> None:
    """OP_ID_REUSED is the answer memory's; the others stand in a test of the rules, by name."""
    text = "".join(each.read_text() for each in Path(__file__).parent.glob("test_*.py"))
    unseen = [each.name for each in Status if f"Status.{each.name}" not in text]
    assert set(unseen) <= {"OP_ID_REUSED"}


# --- one line by itself ---------------------------------------------------------------------------


def test_one_line_by_itself_goes_past_the_choice_of_a_specialisation() -> None:
    """And changes the same, also where nothing is compiled."""
    quick, usual = Machine(), Machine()
    for machine in (quick, usual):
        machine.set_sku_limit(SKUS)
        machine.set_location(BERLIN, owned=True, currency=EUR)
    quick._compiled = quick._compiled or kernels.apply_block
    for now in range(1, 20):
        kind = Kind.RESERVE if now % 3 else Kind.RECEIVE
        values = (now, 60_000, 0, 0, 0, 1 + now % 2, BERLIN, 0, 0, int(kind), 0)
        asked = Request.one(now.to_bytes(16, "big"), *values)
        usual._compiled = None
        assert quick.apply(now, [asked]).status == usual.apply(now, [asked]).status
        assert quick.state_hash == usual.state_hash
