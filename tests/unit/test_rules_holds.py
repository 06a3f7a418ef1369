"""The life of holds beyond reserve, commit and fulfil; both machines answer each rule (see `Shop`)."""

from collections.abc import Callable

import pytest

from engine import kernels, limits
from engine.block import NOT_SOLD, Place
from engine.machine import Machine
from engine.operations import Disposition, Flag, Kind
from engine.reference import Key, Line, ReferenceMachine
from engine.status import Status
from engine.views import HoldState
from tests.property.histories import (
    BERLIN,
    BOSTON,
    ELSEWHERE,
    EUR,
    MS,
    SKUS,
    SPLIT,
    TICK,
    UNKNOWN,
    line,
    linked,
    request,
)
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    add_line,
    cancel,
    claim,
    comes_back,
    commit,
    count,
    expect,
    extend,
    fulfil,
    hands_over,
    hold_id,
    instead_of,
    move,
    receive,
    release,
    reserve,
    sale,
    unfulfil,
)

MOST = limits.MAX_BALANCE
LONG = limits.MAX_TTL_MS + 1
FAR_JAM = (2, BOSTON)
PARTIAL, COMMIT_NOW = int(Flag.PARTIAL), int(Flag.COMMIT_NOW)


def expired(shop: Shop, name: str, *lines: Line) -> None:
    """Reserve, and let the deadline go by."""
    shop.holds(name, *lines)
    shop.wait_until(shop.hold(name).deadline_ns + 1)
    shop.does(count(0, (SKUS, BERLIN)))
    assert shop.state(name) is HoldState.EXPIRED


# --- extend ---------------------------------------------------------------------------------------


def test_an_extended_hold_is_good_up_to_its_new_deadline() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(1, ttl_ms=20), reserve(2, JAM))
    shop.does(extend("order", 500))
    deadline_ns = shop.now_ns + 500 * MS
    assert shop.hold("order").deadline_ns == deadline_ns
    shop.wait_until(deadline_ns)
    shop.does(commit("order", 1, TEA))
    shop.wait(1)
    assert shop.answer(commit("order")) is Status.HOLD_EXPIRED
    assert shop.units("order") == [(0, 1, 0), (0, 0, 0)]


def test_an_earlier_deadline_changes_nothing() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(1, ttl_ms=500))
    deadline_ns = shop.hold("order").deadline_ns
    shop.does(extend("order", 20))
    assert shop.hold("order").deadline_ns == deadline_ns


def test_only_a_pending_hold_can_be_extended() -> None:
    shop = Shop(tea=20)
    assert shop.answer(extend("nothing", 5)) is Status.UNKNOWN_HOLD
    for name in ("released", "committed", "late"):
        shop.holds(name, reserve(1))
    shop.does(release("released"), commit("committed"))
    assert shop.answer(extend("released", 5)) is Status.HOLD_RELEASED
    assert shop.answer(extend("committed", 5)) is Status.HOLD_NOT_PENDING
    shop.wait_until(shop.hold("late").deadline_ns + 1)
    assert shop.answer(extend("late", 5)) is Status.HOLD_EXPIRED


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (extend("?", 0)._replace(flags=1), Status.INVALID_FLAGS),
        (extend("?", 0), Status.INVALID_TTL),
        (extend("?", LONG), Status.INVALID_TTL),
        (unfulfil("?", -1)._replace(flags=2), Status.INVALID_FLAGS),
        (unfulfil("?", -1), Status.INVALID_QUANTITY),
        (unfulfil("?", limits.MAX_QUANTITY + 1), Status.QUANTITY_TOO_LARGE),
        (commit("?", -1, again=True), Status.INVALID_FLAGS),
        (commit("?", 1, rest=True, again=True), Status.INVALID_FLAGS),
        (release("?")._replace(flags=int(Flag.RE_RESERVE)), Status.INVALID_FLAGS),
        (release("?", 1, for_good=True), Status.INVALID_FLAGS),
        (reserve(1, flags=int(Flag.RE_RESERVE)), Status.INVALID_FLAGS),
        (reserve(0, flags=COMMIT_NOW, ttl_ms=0), Status.INVALID_QUANTITY),
        (reserve(1, (1, UNKNOWN), flags=COMMIT_NOW, ttl_ms=0), Status.UNKNOWN_LOCATION),
        (reserve(1, (1, UNKNOWN), flags=PARTIAL, ttl_ms=0), Status.INVALID_TTL),
        (reserve(1, (1, SPLIT), channel=3), Status.WRONG_SHARD),
        (move("?", UNKNOWN, units=-1)._replace(flags=1), Status.INVALID_FLAGS),
        (move("?", UNKNOWN, units=-1), Status.INVALID_QUANTITY),
        (move("?", UNKNOWN, units=limits.MAX_QUANTITY + 1), Status.QUANTITY_TOO_LARGE),
        (move("?", UNKNOWN), Status.UNKNOWN_LOCATION),
        (move("?", 0), Status.UNKNOWN_LOCATION),
        (move("?", limits.MAX_LOCATIONS), Status.UNKNOWN_LOCATION),
        (move("?", UNKNOWN, (SKUS + 1, 0)), Status.UNKNOWN_LOCATION),
        (move("?", ELSEWHERE, (SKUS + 1, 0)), Status.UNKNOWN_SKU),
        (move("?", ELSEWHERE, (1, 0)), Status.WRONG_SHARD),
        (move("?", ELSEWHERE), Status.WRONG_SHARD),
        (move("?", SPLIT, (1, 0)), Status.WRONG_SHARD),
        (add_line("?", 0, ttl_ms=0)._replace(flags=4), Status.INVALID_FLAGS),
        (add_line("?", 0, ttl_ms=0), Status.INVALID_QUANTITY),
        (add_line("?", limits.MAX_QUANTITY + 1, ttl_ms=0), Status.QUANTITY_TOO_LARGE),
        (add_line("?", 1, (1, UNKNOWN), ttl_ms=0), Status.INVALID_TTL),
        (add_line("?", 1, (1, UNKNOWN), channel=9), Status.UNKNOWN_LOCATION),
        (add_line("?", 9, channel=9), Status.UNKNOWN_CHANNEL),
    ],
)
def test_the_first_reason_in_the_order_of_statuses_is_the_answer(bad: Line, status: Status) -> None:
    shop = Shop(tea=5)
    before = shop.pair.machine.state_hash
    assert shop.answer(bad) is status
    assert shop.pair.machine.state_hash == before


def test_within_a_tick_an_extended_hold_is_the_last_to_expire() -> None:
    shop = Shop(tea=10, expiries_per_block=1)
    shop.wait_until((shop.now_ns // TICK + 1) * TICK)
    shop.holds("extended", reserve(1, ttl_ms=10))
    shop.holds("other", reserve(1, ttl_ms=90))
    shop.does(extend("extended", 90))
    shop.wait(1000 * MS)
    for name in ("other", "extended"):
        assert shop.state(name) is HoldState.PENDING
        shop.does(count(10, JAM))
        assert shop.state(name) is HoldState.EXPIRED


def test_a_block_sweeps_so_many_lines_and_all_of_the_last_hold() -> None:
    shop = Shop(tea=10, jam=10, expiries_per_block=3)
    for name in "abc":
        shop.holds(name, reserve(1, ttl_ms=10), reserve(1, JAM, ttl_ms=10))
    for name in "de":
        shop.holds(name, reserve(1, ttl_ms=10))
    shop.wait(1000 * MS)
    for swept in ("ab", "cd", "e"):
        left = [name for name in "abcde" if shop.state(name) is HoldState.PENDING]
        shop.does(count(10, JAM))
        gone = [name for name in left if shop.state(name) is HoldState.EXPIRED]
        assert gone == list(swept)


def test_an_extended_hold_leaves_the_others_of_its_tick_where_they_are() -> None:
    shop = Shop(tea=10)
    for name in ("first", "middle", "last"):
        shop.holds(name, reserve(1, ttl_ms=20))
    shop.does(extend("middle", 5_000))
    shop.wait(21 * MS)
    shop.does(count(10, JAM))
    states = [shop.state(name) for name in ("first", "middle", "last")]
    assert states == [HoldState.EXPIRED, HoldState.PENDING, HoldState.EXPIRED]


# --- more lines -----------------------------------------------------------------------------------


def test_a_line_is_added_to_a_pending_hold_and_keeps_its_deadline() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("order", reserve(1, ttl_ms=20))
    deadline_ns = shop.hold("order").deadline_ns
    shop.does(add_line("order", 2, JAM, ttl_ms=500), add_line("order", 4))
    assert shop.units("order") == [(1, 0, 0), (2, 0, 0), (4, 0, 0)]
    assert shop.hold("order").deadline_ns == deadline_ns
    assert (shop.available(TEA), shop.available(JAM)) == (0, 3)
    assert shop.pair.machine.state.lines[:3, kernels.SERIAL].tolist() == [1, 1, 1]
    shop.does(commit("order", 5, TEA))
    shop.wait(21 * MS)
    shop.does(fulfil("order"))
    assert shop.units("order") == [(0, 0, 1), (0, 0, 0), (0, 0, 4)]


def test_the_first_line_makes_the_hold_and_says_how_long_it_is_held() -> None:
    shop = Shop(tea=5)
    shop.does(add_line("order", 2, ttl_ms=20))
    assert shop.units("order") == [(2, 0, 0)]
    assert shop.hold("order").deadline_ns == shop.now_ns + 20 * MS
    assert shop.pair.machine.holds_open == 1
    shop.wait(21 * MS)
    assert shop.answer(add_line("order", 1)) is Status.HOLD_EXPIRED


def test_an_added_line_is_judged_like_a_reserve() -> None:
    shop = Shop(tea=5)
    assert shop.answer(add_line("order", 1, JAM)) is Status.INSUFFICIENT_STOCK
    shop.does(add_line("order", 4))
    assert shop.answer(add_line("order", 2)) is Status.INSUFFICIENT_STOCK
    shop.pair.set_location(BERLIN, buffers=(0, 1, NOT_SOLD))
    assert shop.answer(add_line("order", 1, channel=1)) is Status.INSUFFICIENT_STOCK
    assert shop.answer(add_line("order", 1, channel=2)) is Status.NOT_IN_CHANNEL
    shop.does(add_line("order", 1))


def test_a_released_hold_is_pending_again_with_a_line_that_is_added() -> None:
    shop = Shop(tea=5, jam=5, resolved_remembered=2)
    shop.holds("order", reserve(2, ttl_ms=900), reserve(1, JAM))
    shop.does(release("order"))
    assert shop.answer(add_line("order", 6)) is Status.INSUFFICIENT_STOCK
    assert shop.state("order") is HoldState.RELEASED
    shop.does(add_line("order", 3, ttl_ms=20))
    assert shop.state("order") is HoldState.PENDING
    assert shop.units("order") == [(0, 0, 0), (0, 0, 0), (3, 0, 0)]
    assert shop.hold("order").deadline_ns == shop.now_ns + 20 * MS
    assert shop.pair.machine.holds_open == 1
    shop.does(extend("order", 60))
    # It lives, so the holds that are resolved after it do not push it out.
    for name in "abc":
        shop.holds(name, reserve(1))
        shop.does(release(name))
    shop.does(commit("order", 1, TEA), add_line("order", 1, JAM))
    shop.wait(61 * MS)
    shop.does(count(5, JAM))
    assert shop.units("order") == [(0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 0)]


def test_a_hold_that_is_pending_again_expires_and_is_released_like_any_other() -> None:
    shop = Shop(tea=5)
    shop.holds("order", reserve(2))
    for units in (1, 2):
        shop.does(release("order"), add_line("order", units, ttl_ms=20))
    shop.wait(21 * MS)
    shop.does(count(5))
    assert shop.state("order") is HoldState.EXPIRED
    assert shop.answer(add_line("order", 1)) is Status.HOLD_EXPIRED
    shop.does(commit("order", again=True))
    assert shop.units("order") == [(0, 0, 0), (0, 0, 0), (0, 2, 0)]


def test_a_hold_that_another_one_replaced_can_be_pending_again() -> None:
    shop = Shop(tea=5)
    shop.holds("old", reserve(2))
    shop.holds("new", instead_of("old", reserve(3)))
    shop.does(add_line("old", 2))
    assert (shop.state("old"), shop.available()) == (HoldState.PENDING, 0)


def test_lines_are_added_only_to_a_pending_hold_that_has_room() -> None:
    shop = Shop(tea=2 * limits.MAX_HOLD_LINES)
    for name in ("committed", "cancelled", "fulfilled"):
        shop.holds(name, reserve(1))
        shop.does(commit(name))
    shop.does(cancel("cancelled"), fulfil("fulfilled"))
    for name in ("committed", "cancelled", "fulfilled"):
        assert shop.answer(add_line(name, 1)) is Status.HOLD_NOT_PENDING
    expired(shop, "late", reserve(1))
    assert shop.answer(add_line("late", 1)) is Status.HOLD_EXPIRED
    shop.holds("full", *[reserve(1)] * limits.MAX_HOLD_LINES)
    assert shop.answer(add_line("full", 10**6)) is Status.TOO_MANY_LINES


# --- from hold to hold ----------------------------------------------------------------------------


def test_units_go_from_one_hold_to_another_whatever_the_stock() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("order", reserve(3, ttl_ms=20), reserve(1, JAM))
    deadline_ns = shop.hold("order").deadline_ns
    shop.does(count(1))  # far less than is promised
    shop.does(*hands_over("order", "new", 2))
    assert shop.units("order") == [(1, 0, 0), (1, 0, 0)]
    assert shop.units("new") == [(2, 0, 0)]
    assert shop.hold("new").deadline_ns == deadline_ns
    assert (shop.cell().reserved, shop.pair.machine.holds_open) == (3, 2)
    shop.holds("other", reserve(1, JAM, ttl_ms=500))
    shop.does(*hands_over("order", "other", 1), *hands_over("order", "other", 1, JAM))
    assert shop.state("order") is HoldState.RELEASED
    assert shop.units("other") == [(1, 0, 0), (1, 0, 0), (1, 0, 0)]
    assert shop.hold("other").deadline_ns > deadline_ns
    shop.does(commit("other"), fulfil("other"))
    shop.wait(21 * MS)
    assert shop.answer(commit("new")) is Status.HOLD_EXPIRED


@pytest.mark.parametrize("ends", [commit, release, fulfil, cancel])
def test_a_hold_of_which_nothing_is_pending_takes_units_and_is_pending_again(
    ends: Callable[[str], Line],
) -> None:
    shop = Shop(tea=5, resolved_remembered=2)
    shop.holds("order", reserve(2, ttl_ms=900))
    if ends is not release:
        shop.does(commit("order"))
    if ends is not commit:
        shop.does(ends("order"))
    before = shop.units("order")
    shop.holds("giver", reserve(2, ttl_ms=20))
    shop.does(*hands_over("giver", "order", 1))
    assert shop.state("order") is HoldState.PENDING
    assert shop.units("order") == [*before, (1, 0, 0)]
    assert shop.hold("order").deadline_ns == shop.hold("giver").deadline_ns
    for name in "abc":  # it lives, so these do not push it out
        shop.holds(name, reserve(1))
        shop.does(release(name))
    shop.wait(21 * MS)
    shop.does(count(5))
    was_committed = before[0][1] > 0
    is_over = HoldState.FULFILLED if before[0][2] else HoldState.EXPIRED
    assert shop.state("order") is (HoldState.COMMITTED if was_committed else is_over)


def test_a_taker_that_is_forgotten_while_the_giver_ends_is_new() -> None:
    shop = Shop(tea=5, resolved_remembered=1)
    shop.holds("order", reserve(2))
    shop.does(release("order"))
    shop.holds("giver", reserve(2))
    shop.does(*hands_over("giver", "order", 2))
    assert shop.units("order") == [(2, 0, 0)]
    shop.does(*hands_over("order", "order", 2))
    assert shop.units("order") == [(0, 0, 0), (2, 0, 0)]


def test_a_handover_is_done_whole_or_not_at_all() -> None:
    shop = Shop(tea=2 * limits.MAX_HOLD_LINES, jam=5)
    expired(shop, "late", reserve(1))
    shop.holds("giver", reserve(3), reserve(1, JAM))
    shop.holds("full", *[reserve(1)] * limits.MAX_HOLD_LINES)
    shop.does(expect(1, TEA, "record"))
    flags = int(Flag.LINKED)
    gives, takes = hands_over("giver", "new", 2)
    refused = Status.LINKED_LINE_REFUSED
    for lines, statuses in (
        ([gives._replace(quantity=0), takes], [Status.INVALID_QUANTITY, refused]),
        ([gives._replace(flags=flags | Flag.RELEASE_REST), takes], [Status.INVALID_FLAGS, refused]),
        ([gives._replace(quantity=4), takes], [Status.EXCEEDS_HOLD, refused]),
        (hands_over("nobody", "new", 2), [Status.UNKNOWN_HOLD, refused]),
        (hands_over("late", "new", 1), [Status.HOLD_EXPIRED, refused]),
        (hands_over("giver", "new", 1, (3, BERLIN)), [Status.NOT_IN_HOLD, refused]),
        ([gives, takes._replace(quantity=1)], [refused, Status.INVALID_FLAGS]),
        ([gives, takes._replace(sku=JAM[0])], [refused, Status.INVALID_FLAGS]),
        ([gives, takes._replace(value=1000)], [refused, Status.INVALID_FLAGS]),
        ([gives, takes._replace(channel=1)], [refused, Status.INVALID_FLAGS]),
        ([gives, takes._replace(flags=flags), gives], [refused, Status.INVALID_FLAGS, refused]),
        (hands_over("giver", "late", 2), [refused, Status.HOLD_EXPIRED]),
        (hands_over("giver", "record", 2), [refused, Status.UNKNOWN_HOLD]),
        (hands_over("giver", "full", 2), [refused, Status.TOO_MANY_LINES]),
    ):
        assert shop.answers(*lines) == statuses
        assert shop.units("giver") == [(3, 0, 0), (1, 0, 0)]


# --- other locations ------------------------------------------------------------------------------


def test_a_hold_moves_whole_and_keeps_its_deadline() -> None:
    shop = Shop(tea=5, jam=5)
    shop.does(receive(3, FAR), receive(4, FAR_JAM))
    shop.holds("order", reserve(3), reserve(2, JAM), reserve(2, FAR_JAM))
    before = shop.hold("order")
    shop.does(move("order", BOSTON, (0, BERLIN)))
    after = shop.hold("order")
    assert after.deadline_ns == before.deadline_ns
    assert [(each.sku, each.location) for each in after.lines] == [FAR, FAR_JAM, FAR_JAM]
    assert shop.units("order") == [(3, 0, 0), (2, 0, 0), (2, 0, 0)]
    assert [shop.cell(cell).reserved for cell in (TEA, JAM, FAR, FAR_JAM)] == [0, 0, 3, 4]
    shop.does(commit("order"), fulfil("order"))
    assert shop.cell(FAR).on_hand == 0


def test_the_destination_of_a_hold_is_checked() -> None:
    shop = Shop(tea=5, jam=5)
    shop.does(receive(2, FAR), receive(9, FAR_JAM))
    shop.holds("order", reserve(1, JAM), reserve(2), reserve(1))
    before = shop.pair.machine.state_hash
    assert shop.answer(move("order", BOSTON)) is Status.INSUFFICIENT_STOCK
    assert shop.pair.available == [2]
    assert shop.answer(move("order", SPLIT, JAM)) is Status.INSUFFICIENT_STOCK
    assert shop.pair.available == [0]
    assert shop.pair.machine.state_hash == before
    shop.does(receive(1, FAR))
    shop.does(move("order", BOSTON))


def test_no_line_of_a_hold_goes_where_another_shard_owns_its_sku() -> None:
    shop = Shop(tea=5, jam=5)
    shop.does(receive(5, (2, SPLIT)))
    shop.holds("order", reserve(1, JAM), reserve(1))
    assert shop.answer(move("order", SPLIT)) is Status.WRONG_SHARD
    shop.does(move("order", SPLIT, (2, 0)))
    assert [each.location for each in shop.hold("order").lines] == [SPLIT, BERLIN]


def test_a_part_of_a_line_becomes_a_line_of_its_own() -> None:
    shop = Shop(tea=9)
    shop.does(receive(9, FAR))
    shop.holds("order", reserve(4), reserve(3))
    shop.does(move("order", BOSTON, TEA, 5))
    assert shop.units("order") == [(4, 0, 0), (2, 0, 0), (1, 0, 0)]
    assert [each.location for each in shop.hold("order").lines] == [BOSTON, BERLIN, BOSTON]
    assert shop.pair.machine.state.lines[:3, kernels.SERIAL].tolist() == [1, 1, 1]
    shop.does(move("order", BERLIN, FAR, 1))
    assert shop.units("order") == [(3, 0, 0), (2, 0, 0), (1, 0, 0), (1, 0, 0)]


def test_what_is_committed_or_gone_stays_where_it_is() -> None:
    shop = Shop(tea=20)
    shop.does(receive(9, FAR))
    shop.holds("order", reserve(4), reserve(3), reserve(2))
    shop.does(commit("order", 5, TEA), fulfil("order", 4, TEA))
    assert shop.units("order") == [(0, 0, 4), (2, 1, 0), (2, 0, 0)]
    shop.does(add_line("order", 1))
    shop.does(move("order", BOSTON))
    assert shop.units("order") == [(0, 0, 4), (0, 1, 0), (2, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert [each.location for each in shop.hold("order").lines] == [1, 1, 2, 2, 2]
    shop.wait(10**12)
    assert shop.answer(commit("order")) is Status.HOLD_EXPIRED
    assert shop.cell(FAR).reserved == 0


def test_several_parts_can_split_off_at_once() -> None:
    shop = Shop(tea=40)
    shop.does(receive(40, FAR))
    shop.holds("order", *[reserve(2)] * 4)
    for _ in range(3):  # each time the part of one line more is handed over
        shop.does(commit("order", 1, TEA), move("order", BOSTON, TEA, 1), move("order", BERLIN))
    assert sum(each.pending for each in shop.hold("order").lines) == 5
    shop.does(fulfil("order"))
    assert shop.cell().on_hand == 37


def test_there_is_room_for_all_the_lines_that_split_in_one_block() -> None:
    shop = Shop()
    half = limits.MAX_HOLD_LINES // 2
    for machine in (shop.pair.machine, shop.pair.reference):
        machine.set_sku_limit(half)
    near, far = ([(sku, at) for sku in range(1, half + 1)] for at in (BERLIN, BOSTON))
    shop.does(*(receive(9, cell) for cell in near + far))
    shop.holds("order", *(reserve(2, cell) for cell in near))
    shop.does(*(commit("order", 1, cell) for cell in near))
    slots = len(shop.pair.machine.state.holds)
    shop.does(*(reserve(1, cell) for cell in (near * 3)[: slots - half - 1]), name="others")
    shop.does(move("order", BOSTON))
    assert len(shop.units("order")) == 2 * half


def test_a_line_that_is_there_already_stays() -> None:
    shop = Shop(tea=5)
    shop.holds("order", reserve(4))
    before = shop.pair.machine.state_hash
    shop.does(move("order", BERLIN), move("order", BERLIN, TEA))
    assert shop.pair.machine.state_hash == before
    assert shop.answer(move("order", BERLIN, units=1)) is Status.EXCEEDS_HOLD


def test_only_what_a_hold_has_pending_can_move() -> None:
    shop = Shop(tea=20, jam=5)
    shop.does(receive(9, FAR), receive(9, FAR_JAM))
    assert shop.answer(move("nothing", BOSTON)) is Status.UNKNOWN_HOLD
    for name in ("released", "committed", "order", "late"):
        shop.holds(name, reserve(2), reserve(1, JAM))
    shop.does(release("released"), commit("committed"), commit("order", 1, JAM))
    assert shop.answer(move("released", BOSTON)) is Status.HOLD_RELEASED
    assert shop.answer(move("committed", BOSTON)) is Status.HOLD_NOT_PENDING
    assert shop.answer(move("order", BOSTON, JAM)) is Status.HOLD_NOT_PENDING
    assert shop.answer(move("order", BOSTON, (3, 0))) is Status.NOT_IN_HOLD
    assert shop.answer(move("order", BERLIN, (0, BOSTON))) is Status.NOT_IN_HOLD
    assert shop.answer(move("order", BOSTON, TEA, 3)) is Status.EXCEEDS_HOLD
    shop.wait_until(shop.hold("late").deadline_ns + 1)
    assert shop.answer(move("late", BOSTON)) is Status.HOLD_EXPIRED


def test_a_hold_does_not_split_into_too_many_lines() -> None:
    most = limits.MAX_HOLD_LINES
    shop = Shop(tea=2 * most)
    shop.does(receive(1, FAR))
    shop.holds("order", *[reserve(2)] * most)
    assert shop.answer(move("order", BOSTON, units=1)) is Status.TOO_MANY_LINES
    assert shop.answer(move("order", BOSTON, units=2)) is Status.INSUFFICIENT_STOCK
    shop.does(receive(1, FAR))
    shop.does(move("order", BOSTON, units=2))


# --- take a handover back -------------------------------------------------------------------------


def test_goods_that_could_not_be_handed_over_are_committed_again() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    shop.does(commit("order"), fulfil("order", 3))
    shop.does(unfulfil("order", 2))
    assert shop.units("order") == [(0, 3, 1)]
    assert (shop.cell().on_hand, shop.cell().committed, shop.available()) == (9, 3, 6)
    shop.does(unfulfil("order"))
    assert shop.units("order") == [(0, 4, 0)]
    assert shop.answer(unfulfil("order")) is Status.HOLD_NOT_FULFILLED


def test_a_fulfilled_hold_lives_again_when_its_handover_failed() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(1, JAM))
    shop.does(commit("order"), fulfil("order"))
    assert (shop.state("order"), shop.pair.machine.holds_committed) == (HoldState.FULFILLED, 0)
    shop.does(unfulfil("order", 1, TEA))
    assert (shop.state("order"), shop.pair.machine.holds_committed) == (HoldState.COMMITTED, 1)
    assert shop.units("order") == [(0, 1, 3), (0, 0, 1)]
    shop.does(fulfil("order"))
    assert shop.state("order") is HoldState.FULFILLED
    assert shop.cell().on_hand == 6


def test_what_was_not_handed_over_stays_as_it_is_when_the_rest_comes_back() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(1, JAM))
    shop.does(commit("order"), fulfil("order", 3, TEA))
    shop.does(unfulfil("order"))
    assert shop.units("order") == [(0, 4, 0), (0, 1, 0)]
    assert (shop.cell(TEA).on_hand, shop.cell(JAM).on_hand) == (10, 10)


def test_a_hold_that_lives_again_is_not_forgotten_and_leaves_its_place_to_nobody() -> None:
    shop = Shop(tea=10, resolved_remembered=2)
    for name in ("revived", "second", "third", "fourth"):
        shop.holds(name, reserve(1))
        shop.does(commit(name))
    shop.does(fulfil("revived"), fulfil("second"))
    shop.does(unfulfil("revived"))
    shop.does(fulfil("third"))  # in the empty place of the oldest one
    assert shop.answer(fulfil("second")) is Status.HOLD_NOT_COMMITTED
    shop.does(fulfil("fourth"))
    assert shop.answer(fulfil("second")) is Status.UNKNOWN_HOLD
    assert shop.state("revived") is HoldState.COMMITTED
    shop.does(fulfil("revived"))
    assert shop.answer(fulfil("third")) is Status.UNKNOWN_HOLD


def test_holds_expire_past_the_place_of_one_that_lives_again() -> None:
    shop = Shop(tea=10, resolved_remembered=1)
    shop.holds("revived", reserve(1, ttl_ms=5))
    shop.wait(1000 * MS)
    shop.does(commit("revived", again=True))
    shop.holds("first", reserve(1, ttl_ms=5))
    shop.holds("second", reserve(1, ttl_ms=90))
    shop.wait(1000 * MS)
    shop.does(count(10, JAM))
    assert shop.state("second") is HoldState.EXPIRED
    assert shop.answer(commit("first")) is Status.UNKNOWN_HOLD
    assert shop.state("revived") is HoldState.COMMITTED


def test_only_what_was_handed_over_can_be_taken_back() -> None:
    shop = Shop(tea=20, jam=5)
    assert shop.answer(unfulfil("nothing")) is Status.UNKNOWN_HOLD
    for name in ("released", "cancelled", "pending", "committed"):
        shop.holds(name, reserve(2), reserve(1, JAM))
    shop.does(release("released"), commit("cancelled"), cancel("cancelled"), commit("committed"))
    assert shop.answer(unfulfil("released")) is Status.HOLD_RELEASED
    for name in ("cancelled", "pending", "committed"):
        assert shop.answer(unfulfil(name)) is Status.HOLD_NOT_FULFILLED
    shop.does(fulfil("committed", 1, TEA))
    assert shop.answer(unfulfil("committed", 1)) is Status.NOT_IN_HOLD
    assert shop.answer(unfulfil("committed", 1, FAR)) is Status.NOT_IN_HOLD
    assert shop.answer(unfulfil("committed", 2, TEA)) is Status.EXCEEDS_HOLD
    assert shop.answer(unfulfil("committed", 1, JAM)) is Status.EXCEEDS_HOLD


@pytest.mark.parametrize(
    "back",
    [claim("order", 2), comes_back(2, Disposition.RESTOCK, hold=hold_id("order"))],
    ids=["elsewhere", "here"],
)
def test_what_a_customer_has_brought_back_was_handed_over(back: Line) -> None:
    shop = Shop(tea=5)
    shop.holds("order", reserve(3))
    shop.does(commit("order"), fulfil("order"), back)
    assert shop.answer(unfulfil("order", 2, TEA)) is Status.EXCEEDS_HOLD
    shop.does(unfulfil("order"))
    assert shop.units("order") == [(0, 1, 2)]
    assert shop.returned("order") == [2]
    assert shop.answer(unfulfil("order")) is Status.HOLD_NOT_FULFILLED


@pytest.mark.parametrize("counter", ["on_hand", "committed"])
def test_what_is_taken_back_passes_no_limit(counter: str) -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(2), reserve(2))
    shop.does(commit("order"), fulfil("order"))
    row = shop.pair.machine.state.cells[0]
    row[kernels.ON_HAND if counter == "on_hand" else kernels.COMMITTED] = MOST - 3
    setattr(shop.pair.reference._book.cells[TEA], counter, MOST - 3)
    # Not compared by the pair: it would miss the holds that are committed there.
    called = request(bytes(16), [unfulfil("order"), unfulfil("order", 3, TEA)])
    answers = shop.pair.reference.apply(shop.now_ns + 1, [called]).answers
    expected = [Status.BALANCE_LIMIT, Status.OK]
    assert list(answers[0].status) == expected
    assert shop.pair.machine.apply(shop.now_ns + 1, [called]).status.tolist() == expected


# --- several parts at once ------------------------------------------------------------------------

REFUSED = Status.LINKED_LINE_REFUSED


@pytest.mark.parametrize(
    ("before", "does", "after"),
    [
        ([], commit, [(1, 3, 0), (2, 1, 0)]),
        ([], release, [(1, 0, 0), (2, 0, 0)]),
        ([commit], fulfil, [(0, 1, 3), (0, 2, 1)]),
        ([commit], cancel, [(0, 1, 0), (0, 2, 0)]),
        ([commit, fulfil], unfulfil, [(0, 3, 1), (0, 1, 2)]),
    ],
)
def test_several_parts_of_a_hold_are_done_together(
    before: list[Callable[[str], Line]],
    does: Callable[[str, int, Key], Line],
    after: list[tuple[int, int, int]],
) -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(3, JAM))
    for each in before:
        shop.does(each("order"))
    # Demand on one cell is summed: 2 and 3 are more than 4.
    parts = linked([does("order", 2, TEA), does("order", 1, JAM), does("order", 3, TEA)])
    units, state_hash = shop.units("order"), shop.pair.machine.state_hash
    assert shop.answers(*parts) == [REFUSED, REFUSED, Status.EXCEEDS_HOLD]
    assert shop.pair.available == [shop.available(each) for each in (TEA, JAM, TEA)]
    assert (shop.units("order"), shop.pair.machine.state_hash) == (units, state_hash)
    parts[-1] = does("order", 1, TEA)
    shop.does(*parts)
    assert shop.pair.available == [shop.available(each) for each in (TEA, JAM, TEA)]
    assert shop.units("order") == after


def test_the_last_of_several_parts_releases_the_rest() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(3, JAM))
    parts = linked([commit("order", 3, TEA), commit("order", 4, JAM, rest=True)])
    assert shop.answers(*parts) == [REFUSED, Status.EXCEEDS_HOLD]
    early = linked([commit("order", 3, TEA, rest=True), commit("order", 2, JAM)])
    assert shop.answers(*early) == [Status.INVALID_FLAGS, REFUSED]
    assert shop.units("order") == [(4, 0, 0), (3, 0, 0)]
    shop.does(*linked([commit("order", 3, TEA), commit("order", 2, JAM, rest=True)]))
    assert shop.units("order") == [(0, 3, 0), (0, 2, 0)]
    assert shop.state("order") is HoldState.COMMITTED


def test_what_several_parts_use_up_is_resolved_once() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(3, JAM))
    shop.does(*linked([release("order", 4, TEA), release("order", 3, JAM)]))
    assert shop.state("order") is HoldState.RELEASED
    again = linked([release("order", 4, TEA), release("order", 3, JAM)])
    assert shop.answers(*again) == [Status.HOLD_RELEASED, REFUSED]
    shop.holds("paid", reserve(4), reserve(3, JAM), reserve(1))
    shop.does(commit("paid"))
    shop.does(*linked([fulfil("paid", 5, TEA), fulfil("paid", 3, JAM)]))
    assert shop.state("paid") is HoldState.FULFILLED
    shop.does(*linked([unfulfil("paid", 1, JAM), unfulfil("paid", 5, TEA)]))
    assert shop.state("paid") is HoldState.COMMITTED
    assert shop.units("paid") == [(0, 4, 0), (0, 1, 2), (0, 1, 0)]


def test_parts_of_a_hold_of_one_line_need_no_cell() -> None:
    shop = Shop(tea=10)
    shop.holds("order", reserve(4))
    both = linked([commit("order", 3), commit("order", 2, TEA)])
    assert shop.answers(*both) == [REFUSED, Status.EXCEEDS_HOLD]
    shop.does(*linked([commit("order", 3), commit("order", 1, TEA)]))
    assert shop.units("order") == [(0, 4, 0)]


@pytest.mark.parametrize(
    ("second", "status"),
    [
        (commit("order", 1, JAM)._replace(kind=0), Status.INVALID_KIND),
        (release("order", 1, JAM), Status.INVALID_FLAGS),
        (reserve(1), Status.INVALID_FLAGS),
        (commit("other", 1, JAM), Status.INVALID_FLAGS),
        (commit("order", again=True), Status.INVALID_FLAGS),
        (commit("order", 1, JAM)._replace(flags=PARTIAL), Status.INVALID_FLAGS),
        (commit("order", 1, JAM)._replace(flags=int(Flag.LINKED)), Status.INVALID_FLAGS),
        (commit("order"), Status.INVALID_QUANTITY),
        (commit("order", -1, JAM), Status.INVALID_QUANTITY),
        (commit("order", limits.MAX_QUANTITY + 1, JAM), Status.QUANTITY_TOO_LARGE),
        (commit("order", 1, FAR), Status.NOT_IN_HOLD),
        (commit("order", 1), Status.NOT_IN_HOLD),
        (commit("order", 4, JAM), Status.EXCEEDS_HOLD),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(second: Line, status: Status) -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(3, JAM))
    shop.holds("other", reserve(4), reserve(3, JAM))
    before = shop.pair.machine.state_hash
    assert shop.answers(*linked([commit("order", 1, TEA), second])) == [REFUSED, status]
    assert shop.pair.machine.state_hash == before


def test_parts_of_holds_that_are_not_there_are_refused() -> None:
    shop = Shop(tea=10, jam=10)
    parts = [commit("order", 1, TEA), commit("order", 1, JAM)]
    assert shop.answers(*linked(parts)) == [Status.UNKNOWN_HOLD, REFUSED]
    expired(shop, "order", reserve(1), reserve(1, JAM))
    assert shop.answers(*linked(parts)) == [Status.HOLD_EXPIRED, REFUSED]


def test_parts_are_as_many_as_a_hold_may_have_lines() -> None:
    shop = Shop(tea=limits.MAX_HOLD_LINES)
    shop.holds("order", reserve(limits.MAX_HOLD_LINES))
    parts = [commit("order", 1, TEA)] * limits.MAX_HOLD_LINES
    many = linked([*parts, parts[0]])
    assert shop.answers(*many)[0] is Status.TOO_MANY_LINES
    wrong = [commit("order", 1, JAM), *many]
    assert shop.answers(*linked(wrong))[0] is Status.NOT_IN_HOLD
    shop.does(*linked(parts))
    assert shop.units("order") == [(0, limits.MAX_HOLD_LINES, 0)]


def test_parts_together_do_not_bring_a_counter_over_its_limit() -> None:
    shop = Shop(tea=10, jam=10)
    shop.holds("order", reserve(4), reserve(3, JAM))
    shop.does(commit("order"))
    shop.pair.force(TEA, "on_hand", -MOST + 3)
    parts = [fulfil("order", 1, JAM), fulfil("order", 2, TEA), fulfil("order", 2, TEA)]
    assert shop.answers(*linked(parts)) == [REFUSED, REFUSED, Status.BALANCE_LIMIT]
    shop.does(*linked(parts[:2]))
    assert shop.cell().on_hand == -MOST + 1


# --- late payment ---------------------------------------------------------------------------------


def test_a_late_payment_gets_what_is_still_there() -> None:
    shop = Shop(tea=10, jam=10)
    expired(shop, "order", reserve(4), reserve(3, JAM), reserve(6))
    assert shop.answer(commit("order")) is Status.HOLD_EXPIRED
    shop.does(commit("order", again=True))
    assert shop.state("order") is HoldState.COMMITTED
    assert shop.units("order") == [(0, 4, 0), (0, 3, 0), (0, 6, 0)]
    assert (shop.available(TEA), shop.available(JAM)) == (0, 7)
    assert (shop.pair.machine.holds_open, shop.pair.machine.holds_committed) == (0, 1)
    shop.does(fulfil("order"))


def test_a_late_payment_of_a_single_line_gets_what_is_still_there() -> None:
    shop = Shop(tea=10)
    expired(shop, "order", reserve(4))
    shop.does(commit("order", again=True))
    assert shop.units("order") == [(0, 4, 0)]
    assert shop.answer(commit("order", again=True)) is Status.HOLD_NOT_PENDING


@pytest.mark.parametrize("sold", [TEA, JAM])
def test_a_late_payment_gets_all_or_nothing(sold: tuple[int, int]) -> None:
    shop = Shop(tea=10, jam=10)
    expired(shop, "order", reserve(4), reserve(8, JAM), reserve(5))
    shop.does(sale(3, sold))
    before = shop.pair.machine.state_hash
    assert shop.answer(commit("order", again=True)) is Status.INSUFFICIENT_STOCK
    assert shop.pair.available == [7]
    assert shop.pair.machine.state_hash == before
    assert shop.state("order") is HoldState.EXPIRED
    shop.does(receive(3, sold))
    shop.does(commit("order", again=True))


def test_a_late_payment_is_for_what_had_not_been_resolved_by_then() -> None:
    shop = Shop(tea=10, jam=1)
    shop.holds("order", reserve(4), reserve(1, JAM), reserve(1))
    shop.does(release("order", 1, JAM), commit("order", 1, TEA))
    shop.does(cancel("order"), sale(3, JAM))  # a shortage of what is not asked for any more
    shop.wait(2000 * MS)
    shop.does(commit("order", again=True))
    assert shop.units("order") == [(0, 3, 0), (0, 0, 0), (0, 1, 0)]
    assert shop.available(JAM) == -2


def test_a_payment_in_time_commits_as_always() -> None:
    shop = Shop(tea=4)
    shop.holds("order", reserve(4))
    shop.does(commit("order", again=True))
    assert shop.units("order") == [(0, 4, 0)]
    assert shop.answer(commit("nothing", again=True)) is Status.UNKNOWN_HOLD
    shop.does(cancel("order"))
    shop.holds("released", reserve(4))
    shop.does(release("released"))
    assert shop.answer(commit("released", again=True)) is Status.HOLD_RELEASED


@pytest.mark.parametrize(
    ("channel", "answer"),
    [
        (0, Status.OK),
        (1, Status.INSUFFICIENT_STOCK),  # two of each are kept from it
        (2, Status.NOT_IN_CHANNEL),
        (3, Status.UNKNOWN_CHANNEL),
    ],
)
def test_a_late_payment_takes_no_stock_that_is_kept_from_its_channel(
    channel: int, answer: Status
) -> None:
    shop = Shop(tea=10, jam=4)
    expired(shop, "order", reserve(3), reserve(3, JAM))
    assert shop.answer(reserve(3, JAM, channel=channel), name="as new") is answer
    shop.answers(release("as new"))
    before = shop.pair.machine.state_hash
    assert shop.answer(commit("order", again=True, channel=channel)) is answer
    if answer is not Status.OK:
        assert shop.pair.machine.state_hash == before
        assert shop.state("order") is HoldState.EXPIRED
    shop.does(receive(1, JAM))
    if answer is Status.INSUFFICIENT_STOCK:
        shop.does(commit("order", again=True, channel=channel))


def test_what_is_not_reserved_again_is_for_any_channel() -> None:
    shop = Shop(tea=5, jam=2)
    shop.holds("in time", reserve(5))
    shop.does(commit("in time", channel=2))
    shop.holds("part, late", reserve(1, JAM), reserve(1, JAM))
    shop.does(release("part, late", 2, JAM))
    assert shop.answer(commit("part, late", again=True, channel=2)) is Status.HOLD_RELEASED
    shop = Shop(tea=5, jam=2)
    shop.pair.set_location(BOSTON, buffers=(0, 0, 0))
    shop.does(receive(1, FAR))
    shop.holds("order", reserve(1, JAM), reserve(1, FAR))
    shop.does(release("order", 1, JAM))
    shop.wait(2000 * MS)
    shop.does(commit("order", again=True, channel=2))  # nothing of it is in Berlin by now


def test_a_late_payment_that_meets_an_overdue_hold_before_the_sweep_is_late_too() -> None:
    shop = Shop(tea=10, expiries_per_block=1)
    shop.holds("swept", reserve(1, ttl_ms=5))
    shop.holds("called", reserve(4, ttl_ms=5))
    shop.wait(1000 * MS)
    shop.does(commit("called", again=True))
    assert shop.pair.machine.expired == 2
    assert shop.state("called") is HoldState.COMMITTED


def test_an_expired_hold_can_be_paid_for_only_while_it_is_remembered() -> None:
    shop = Shop(tea=10, resolved_remembered=1)
    expired(shop, "old", reserve(4))
    expired(shop, "new", reserve(4))
    assert shop.answer(commit("old", again=True)) is Status.UNKNOWN_HOLD
    shop.does(commit("new", again=True))


def short(shop: Shop, name: str = "order") -> None:
    """Reserve on two lines, commit a part of one, and let the deadline of the rest go by."""
    shop.holds(name, reserve(3, ttl_ms=20), reserve(2, JAM))
    shop.does(commit(name, 2, TEA))
    shop.wait(21 * MS)
    shop.does(count(0, (SKUS, BERLIN)))
    assert shop.units(name) == [(0, 2, 0), (0, 0, 0)]


def test_a_hold_of_which_some_ran_out_is_not_told_to_be_committed() -> None:
    shop = Shop(tea=9, jam=9)
    short(shop)
    for late in (commit("order"), commit("order", again=True), commit("order", 1, TEA)):
        assert shop.answer(late) is Status.HOLD_EXPIRED
    for other in (release("order"), extend("order", 50), move("order", BOSTON)):
        assert shop.answer(other) is Status.HOLD_NOT_PENDING
    for call in (
        fulfil("order", 1, TEA),
        fulfil("order"),
        unfulfil("order"),
        cancel("order", 1, TEA),
    ):
        shop.does(call)
        assert shop.answer(commit("order")) is Status.HOLD_EXPIRED
    shop.does(fulfil("order"), unfulfil("order"), cancel("order"))
    assert shop.state("order") is HoldState.CANCELLED
    assert shop.answer(commit("order")) is Status.HOLD_EXPIRED


@pytest.mark.parametrize("before", [[], [fulfil("order")], [cancel("order")]])
def test_nothing_joins_a_hold_of_which_some_ran_out(before: list[Line]) -> None:
    """It would be pending again, and a commit of all of it told OK without what is gone."""
    shop = Shop(tea=9, jam=9)
    short(shop)
    for call in before:
        shop.does(call)
    shop.holds("giver", reserve(1))
    refused = [Status.LINKED_LINE_REFUSED, Status.HOLD_EXPIRED]
    assert shop.answers(*hands_over("giver", "order", 1)) == refused
    assert shop.answer(commit("order")) is Status.HOLD_EXPIRED
    assert shop.units("giver") == [(1, 0, 0)]


def test_what_was_paid_for_late_is_whole() -> None:
    shop = Shop(tea=9, jam=9)
    shop.holds("order", reserve(3, ttl_ms=20), reserve(2, JAM))
    shop.wait(21 * MS)
    shop.does(commit("order", again=True))
    assert shop.answer(commit("order")) is Status.HOLD_NOT_PENDING


def test_a_new_order_has_nothing_of_a_forgotten_one_that_ran_out_in_part() -> None:
    shop = Shop(tea=9, jam=9, resolved_remembered=1)
    short(shop)
    shop.does(cancel("order"))
    for name in ("next", "last"):
        shop.holds(name, reserve(1, flags=COMMIT_NOW), reserve(1, JAM, flags=COMMIT_NOW))
        assert shop.answer(commit(name)) is Status.HOLD_NOT_PENDING
        shop.does(cancel(name))
    assert shop.answer(commit("order")) is Status.UNKNOWN_HOLD


# --- the owner's own hold -------------------------------------------------------------------------


def test_the_owners_own_hold_does_not_stand_in_the_way_of_a_retry() -> None:
    shop = Shop(tea=5)
    shop.holds("old", reserve(4))
    shop.holds("new", instead_of("old", reserve(5)))
    assert shop.state("old") is HoldState.RELEASED
    assert shop.units("new") == [(5, 0, 0)]
    assert shop.available() == 0


def test_a_refused_retry_leaves_the_old_hold_untouched() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("old", reserve(3), reserve(2, JAM))
    before = shop.pair.machine.state_hash
    assert shop.answer(instead_of("old", reserve(6)), name="new") is Status.INSUFFICIENT_STOCK
    order = linked([instead_of("old", reserve(5)), reserve(6, JAM)])
    assert shop.answers(*order) == [Status.LINKED_LINE_REFUSED, Status.INSUFFICIENT_STOCK]
    assert shop.pair.machine.state_hash == before
    assert shop.units("old") == [(3, 0, 0), (2, 0, 0)]


def test_a_retry_takes_the_place_of_a_whole_order() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("old", reserve(3), reserve(2, JAM), reserve(1))
    shop.does(*linked([instead_of("old", reserve(5, JAM)), reserve(5)]), name="new")
    assert shop.state("old") is HoldState.RELEASED
    assert shop.units("new") == [(5, 0, 0), (5, 0, 0)]


def test_a_hold_that_is_gone_or_unknown_is_no_hindrance() -> None:
    shop = Shop(tea=5)
    shop.does(instead_of("nothing", reserve(1)), name="first")
    shop.holds("released", reserve(1))
    shop.does(release("released"))
    shop.does(instead_of("released", reserve(1)), name="second")
    expired(shop, "late", reserve(3))
    shop.does(instead_of("late", reserve(5)), name="third")
    assert shop.units("third") == [(5, 0, 0)]


def test_a_hold_that_ran_out_is_not_paid_late_beside_the_one_in_its_place() -> None:
    shop = Shop(tea=10, jam=10)
    expired(shop, "old", reserve(3), reserve(2, JAM))
    shop.holds("new", instead_of("old", reserve(3)))
    assert shop.state("old") is HoldState.RELEASED
    assert shop.answer(commit("old", again=True)) is Status.HOLD_RELEASED
    shop.does(commit("new"))
    assert (shop.available(TEA), shop.available(JAM)) == (7, 10)


def test_an_overdue_hold_that_was_not_swept_expires_when_it_is_superseded() -> None:
    shop = Shop(tea=10, expiries_per_block=1)
    shop.holds("swept", reserve(1, ttl_ms=5))
    shop.holds("overdue", reserve(9, ttl_ms=5))
    shop.wait(1000 * MS)
    shop.does(instead_of("overdue", reserve(10)), name="new")
    assert shop.pair.machine.expired == 2
    assert shop.state("overdue") is HoldState.RELEASED
    assert shop.answer(commit("overdue", again=True)) is Status.HOLD_RELEASED


@pytest.mark.parametrize("is_swept", [False, True])
def test_a_hold_that_ran_out_can_still_be_paid_late_when_the_order_in_its_place_is_refused(
    is_swept: bool,
) -> None:
    shop = Shop(tea=5, expiries_per_block=1)
    shop.holds("swept", reserve(1, ttl_ms=5))
    shop.holds("old", reserve(3, ttl_ms=5))
    shop.wait(1000 * MS)
    if is_swept:
        shop.does(count(0, JAM))
        shop.does(count(0, JAM))
    assert shop.answer(instead_of("old", reserve(6)), name="new") is Status.INSUFFICIENT_STOCK
    shop.does(commit("old", again=True))
    assert shop.units("old") == [(0, 3, 0)]


def test_what_ran_out_stays_so_where_the_order_may_be_refused_elsewhere() -> None:
    shop = Shop(tea=10, expiries_per_block=1)
    expired(shop, "late", reserve(3))
    shop.holds("swept", reserve(1, ttl_ms=5))
    shop.holds("overdue", reserve(4, ttl_ms=5))
    shop.holds("pending", reserve(1, ttl_ms=9000))
    shop.wait(1000 * MS)
    for name in ("late", "overdue", "pending"):
        shop.holds(f"in place of {name}"[:16], instead_of(name, reserve(1), again=True))
    assert [shop.state(each) for each in ("late", "overdue", "pending")] == [
        HoldState.EXPIRED, HoldState.EXPIRED, HoldState.RELEASED,
    ]  # fmt: skip
    shop.does(commit("late", again=True), commit("overdue", again=True))


def test_a_hold_is_ended_for_good_whether_it_ran_out_or_not() -> None:
    shop = Shop(tea=20, resolved_remembered=4, expiries_per_block=1)
    expired(shop, "late", reserve(3), reserve(1))
    shop.holds("swept", reserve(1, ttl_ms=5))
    shop.holds("overdue", reserve(4, ttl_ms=5))
    shop.holds("pending", reserve(1, ttl_ms=9000))
    shop.wait(1000 * MS)
    for name in ("late", "overdue", "pending"):
        shop.does(release(name, for_good=True))
        assert shop.state(name) is HoldState.RELEASED
        assert shop.answer(release(name, for_good=True)) is Status.HOLD_RELEASED
        assert shop.answer(commit(name, again=True)) is Status.HOLD_RELEASED
    assert shop.available() == 20
    shop.does(add_line("late", 2))  # as of any that was released
    shop.does(commit("late"))
    assert shop.answer(release("late", for_good=True)) is Status.HOLD_NOT_PENDING
    assert shop.answer(commit("late")) is Status.HOLD_NOT_PENDING


def test_an_order_that_is_paid_for_is_not_superseded() -> None:
    shop = Shop(tea=30)
    for name in ("whole", "part", "part, gone", "gone", "taken back"):
        shop.holds(name, reserve(2), reserve(2))
    shop.does(commit("whole"), commit("part", 1, TEA), commit("part, gone", 1, TEA))
    shop.does(fulfil("part, gone"), commit("gone"), fulfil("gone"))
    shop.does(commit("taken back"), cancel("taken back"))
    for name in ("whole", "part", "part, gone", "gone", "taken back"):
        answer = shop.answer(instead_of(name, reserve(1)), name="new")
        assert answer is Status.HOLD_NOT_PENDING


def test_an_id_in_use_is_said_before_what_the_old_hold_is_and_that_before_the_number_of_lines() -> (
    None
):
    shop = Shop(tea=5)
    shop.holds("old", reserve(1))
    shop.does(commit("old"))
    assert shop.answer(instead_of("old", reserve(1)), name="old") is Status.HOLD_EXISTS
    many = linked([instead_of("old", reserve(1)), *[reserve(1)] * limits.MAX_HOLD_LINES])
    assert shop.answers(*many, name="new")[0] is Status.HOLD_NOT_PENDING


def test_only_the_first_line_of_an_order_names_the_hold_it_takes_the_place_of() -> None:
    shop = Shop(tea=5)
    shop.holds("old", reserve(1))
    order = linked([reserve(1), instead_of("old", reserve(1))])
    assert shop.answers(*order) == [Status.LINKED_LINE_REFUSED, Status.INVALID_FLAGS]


# --- committed at once ----------------------------------------------------------------------------


def test_what_is_paid_already_is_committed_at_once() -> None:
    shop = Shop(tea=5, jam=5)
    order = linked([reserve(2, flags=COMMIT_NOW, ttl_ms=0), reserve(3, JAM, flags=COMMIT_NOW)])
    shop.does(*order, name="order")
    assert shop.state("order") is HoldState.COMMITTED
    assert shop.units("order") == [(0, 2, 0), (0, 3, 0)]
    assert (shop.cell(TEA).reserved, shop.cell(TEA).committed) == (0, 2)
    assert (shop.pair.machine.holds_open, shop.pair.machine.holds_committed) == (0, 1)
    assert shop.hold("order").deadline_ns == 0
    shop.wait(10**15)
    shop.does(fulfil("order"))


def test_what_is_committed_at_once_is_judged_like_any_reserve() -> None:
    shop = Shop(tea=5)
    assert shop.answer(reserve(6, flags=COMMIT_NOW)) is Status.INSUFFICIENT_STOCK
    shop.does(reserve(5, flags=COMMIT_NOW), name="order")
    assert shop.answer(reserve(1, flags=COMMIT_NOW), name="order") is Status.HOLD_EXISTS


def test_all_lines_of_an_order_are_committed_at_once_or_none() -> None:
    shop = Shop(tea=5)
    for flags in (0, COMMIT_NOW):
        lines = [reserve(1, flags=flags), reserve(1, flags=COMMIT_NOW - flags)]
        answers = shop.answers(*linked(lines))
        assert answers == [Status.LINKED_LINE_REFUSED, Status.INVALID_FLAGS]


def test_a_retry_that_is_paid_already_takes_the_place_of_the_hold() -> None:
    shop = Shop(tea=5)
    shop.holds("old", reserve(5))
    shop.does(instead_of("old", reserve(5, flags=COMMIT_NOW)), name="new")
    assert shop.units("new") == [(0, 5, 0)]
    assert shop.cell().reserved == 0


# --- what there is --------------------------------------------------------------------------------


def test_a_partial_line_gets_what_there_is() -> None:
    shop = Shop(tea=5)
    shop.does(reserve(7, flags=PARTIAL), name="order")
    assert shop.units("order") == [(5, 0, 0)]
    assert shop.pair.granted == [[5]]
    assert shop.answer(reserve(1, flags=PARTIAL)) is Status.INSUFFICIENT_STOCK
    assert shop.pair.granted == [[0]]


def test_a_partial_line_gets_no_more_than_it_asks_for() -> None:
    shop = Shop(tea=5)
    shop.does(reserve(2, flags=PARTIAL), reserve(2), sale(1))
    assert shop.pair.granted == [[2, 2, 0]]


def test_who_asks_for_no_part_is_not_told_what_was_granted() -> None:
    shop = Shop(tea=5)
    shop.does(reserve(2))
    assert shop.pair.granted == [[]]


def test_a_partial_line_without_stock_does_not_refuse_its_neighbours() -> None:
    shop = Shop(tea=5)
    order = linked(
        [reserve(1, JAM, flags=PARTIAL), reserve(2), reserve(9, FAR, flags=PARTIAL), reserve(1)]
    )
    nothing = Status.INSUFFICIENT_STOCK
    assert shop.answers(*order, name="order") == [nothing, Status.OK, nothing, Status.OK]
    assert shop.pair.granted == [[0, 2, 0, 1]]
    assert shop.units("order") == [(2, 0, 0), (1, 0, 0)]
    assert shop.hold("order").deadline_ns == shop.now_ns + 1000 * MS


def test_an_order_of_which_no_line_gets_anything_is_no_hold() -> None:
    shop = Shop(jam=5)
    shop.holds("old", reserve(5, JAM))
    order = linked([instead_of("old", reserve(1, flags=PARTIAL)), reserve(2, FAR, flags=PARTIAL)])
    assert shop.answer(*order, name="new") is Status.INSUFFICIENT_STOCK
    assert shop.answer(commit("new")) is Status.UNKNOWN_HOLD
    assert shop.state("old") is HoldState.PENDING


def test_who_tries_again_for_a_part_gets_no_less_than_he_had() -> None:
    """Where the cell is short, a part of what is there without the old hold would be less."""
    shop = Shop(tea=5)
    shop.holds("old", reserve(5))
    shop.does(sale(3))
    shop.holds("same", instead_of("old", reserve(5, flags=PARTIAL)))
    assert shop.units("same") == [(5, 0, 0)]
    shop.holds("more", instead_of("same", reserve(7, flags=PARTIAL)))
    assert shop.units("more") == [(5, 0, 0)]
    lines = [instead_of("more", reserve(1, flags=PARTIAL)), *[reserve(3, flags=PARTIAL)] * 2]
    shop.holds("in three", *lines)
    assert shop.units("in three") == [(1, 0, 0), (3, 0, 0), (1, 0, 0)]
    shop.holds("less", instead_of("in three", reserve(2, flags=PARTIAL)))
    assert (shop.units("less"), shop.available()) == ([(2, 0, 0)], 0)


def test_who_tries_again_for_all_of_it_is_refused_where_the_cell_is_short() -> None:
    shop = Shop(tea=5)
    shop.holds("old", reserve(5))
    shop.does(sale(3))
    assert shop.answer(instead_of("old", reserve(5)), name="new") is Status.INSUFFICIENT_STOCK
    assert shop.units("old") == [(5, 0, 0)]


def test_who_tries_again_for_a_part_keeps_what_is_kept_from_the_channel_by_now() -> None:
    """In Berlin two of each are kept from channel 1."""
    shop = Shop(tea=5)
    shop.holds("old", reserve(4))
    shop.holds("new", instead_of("old", reserve(5, flags=PARTIAL, channel=1)))
    assert shop.units("new") == [(4, 0, 0)]


@pytest.mark.parametrize("is_swept", [False, True])
def test_who_tries_again_when_the_old_hold_has_run_out_has_no_claim(is_swept: bool) -> None:
    shop = Shop(tea=6, expiries_per_block=1)
    shop.holds("swept", reserve(1, ttl_ms=5))
    shop.holds("old", reserve(5, ttl_ms=5))
    shop.does(sale(3))
    shop.wait(1000 * MS)
    if is_swept:
        shop.does(count(0, JAM))
        shop.does(count(0, JAM))
    shop.holds("new", instead_of("old", reserve(5, flags=PARTIAL)))
    assert shop.units("new") == [(3, 0, 0)]


def test_the_demand_of_partial_lines_is_summed_in_order() -> None:
    shop = Shop(tea=5)
    shop.does(*linked([reserve(2), reserve(2, flags=PARTIAL), reserve(2, flags=PARTIAL)]), name="o")
    assert shop.pair.granted == [[2, 2, 1]]
    shop.does(release("o"))
    answers = shop.answers(*linked([reserve(4, flags=PARTIAL), reserve(2)]))
    assert answers == [Status.LINKED_LINE_REFUSED, Status.INSUFFICIENT_STOCK]
    assert shop.pair.granted == [[0, 0]]


def test_a_cell_in_shortage_grants_nothing() -> None:
    shop = Shop(tea=5)
    shop.does(sale(9))
    assert shop.answer(reserve(1, flags=PARTIAL)) is Status.INSUFFICIENT_STOCK


def test_a_part_can_be_committed_at_once() -> None:
    shop = Shop(tea=5)
    shop.does(reserve(7, flags=PARTIAL | COMMIT_NOW), name="order")
    assert shop.pair.granted == [[5]]
    assert shop.units("order") == [(0, 5, 0)]


# --- channels -------------------------------------------------------------------------------------


def test_a_channel_leaves_its_buffer_to_others() -> None:
    shop = Shop(tea=5)
    shop.pair.set_location(BERLIN, buffers=(0, 2, 0))
    assert shop.answer(reserve(4, channel=1)) is Status.INSUFFICIENT_STOCK
    shop.does(reserve(3, channel=1), name="first")
    assert shop.answer(reserve(1, channel=1)) is Status.INSUFFICIENT_STOCK
    shop.does(reserve(1, channel=2), reserve(1))
    assert shop.available() == 0


def test_a_channel_sells_only_where_its_rules_say_so() -> None:
    shop = Shop(tea=5)
    shop.does(receive(5, FAR))
    shop.pair.set_location(BERLIN, buffers=(0, NOT_SOLD, 0))
    shop.pair.set_location(BOSTON, buffers=(0, 0))
    assert shop.answer(reserve(1, channel=1)) is Status.NOT_IN_CHANNEL
    shop.does(reserve(1, FAR, channel=1), reserve(1, channel=2))
    assert shop.answer(reserve(1, FAR, channel=2)) is Status.UNKNOWN_CHANNEL
    for channel in (3, limits.MAX_CHANNELS - 1, limits.MAX_CHANNELS, 65_535):
        assert shop.answer(reserve(1, channel=channel)) is Status.UNKNOWN_CHANNEL


def test_a_channel_without_rules_is_unknown_and_rules_can_be_withdrawn() -> None:
    shop = Shop(tea=5)
    shop.pair.set_location(BERLIN, buffers=())
    assert shop.answer(reserve(1, channel=1)) is Status.UNKNOWN_CHANNEL
    shop.pair.set_location(BERLIN, buffers=(0, 0))
    shop.does(reserve(1, channel=1))
    shop.pair.set_location(BERLIN, buffers=())
    assert shop.answer(reserve(1, channel=1)) is Status.UNKNOWN_CHANNEL


def test_the_lines_of_an_order_are_judged_for_their_channels() -> None:
    shop = Shop(tea=5, jam=5)
    shop.pair.set_location(BERLIN, buffers=(0, 2, NOT_SOLD))
    order = linked([reserve(2, channel=1), reserve(2, channel=1)])
    assert shop.answers(*order) == [Status.LINKED_LINE_REFUSED, Status.INSUFFICIENT_STOCK]
    order = linked([reserve(2, channel=1), reserve(1, JAM, channel=2)])
    assert shop.answers(*order) == [Status.LINKED_LINE_REFUSED, Status.NOT_IN_CHANNEL]
    shop.does(*linked([reserve(2, channel=1), reserve(2)]), name="order")
    assert shop.units("order") == [(2, 0, 0), (2, 0, 0)]


def test_a_partial_line_of_a_channel_leaves_the_buffer() -> None:
    shop = Shop(tea=5)
    shop.pair.set_location(BERLIN, buffers=(0, 2))
    shop.does(reserve(9, flags=PARTIAL, channel=1), name="first")
    assert shop.pair.granted == [[3]]
    assert shop.answer(reserve(9, flags=PARTIAL, channel=1)) is Status.INSUFFICIENT_STOCK


def test_many_locations_have_rules_of_their_own() -> None:
    machine = Machine(resolved_remembered=1)
    for location in range(1, 40):
        machine.set_place(Place(location, owned=True, currency=EUR, buffers=(0, location)))
    buffers, places = machine.state.buffers, machine.state.places
    for location in range(1, 40):
        assert buffers[places[location, kernels.RULES], :2].tolist() == [0, location]
    assert (buffers[0] == kernels.NO_RULES).all()


@pytest.mark.parametrize("machine", [Machine, ReferenceMachine])
@pytest.mark.parametrize("buffers", [(0, -2), (limits.MAX_QUANTITY + 1,), (0,) * 33])
def test_rules_are_within_their_limits(
    machine: type[Machine | ReferenceMachine], buffers: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="buffers"):
        machine().set_location(BERLIN, owned=True, currency=EUR, buffers=buffers)


# --- what the rows keep ---------------------------------------------------------------------------


def test_holds_have_running_numbers() -> None:
    shop = Shop(tea=9)
    shop.does(reserve(1), *linked([reserve(1), reserve(1)]), reserve(1, flags=COMMIT_NOW))
    state = shop.pair.machine.state
    assert state.lines[:4, kernels.SERIAL].tolist() == [1, 2, 2, 3]
    state.meta[kernels.HOLDS_MADE] = kernels.SERIALS  # they wrap
    shop.does(reserve(1), name="next")
    assert state.lines[4, kernels.SERIAL] == 0


def test_a_line_of_no_known_kind_is_refused() -> None:
    assert Shop(tea=1).answer(line(Kind.RESERVE, TEA, 1)._replace(kind=0)) is Status.INVALID_KIND
