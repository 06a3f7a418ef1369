"""Histories that are linearizable, histories that are not, and both from a real machine's life."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.currencies import NUMBERS
from engine.operations import PART_KINDS, Disposition, Flag, Kind, Request
from engine.reference import ReferenceMachine
from engine.status import Status
from engine.views import HoldState
from tests.linear import convert, search, spec
from tests.linear.history import (
    ARRIVE,
    HAND_OVER,
    LOOK_UP,
    LOOK_UP_INCOMING,
    READ,
    SHIP,
    SHIPPED,
    Call,
    Key,
    Operation,
    parts,
)
from tests.linear.search import Checked, NotLinearizableError, UndecidedError, check
from tests.linear.state import FOREVER, NS_PER_MS, Cell
from tests.linear.transfers import record_id

TEA, JAM, TEA_THERE, JAM_THERE = (1, 1), (2, 1), (1, 2), (2, 2)
SETTINGS = (Kind.SET_SAFETY_STOCK, Kind.SET_PRICE, Kind.INSPECT)
OK, SHORT = Status.OK, Status.INSUFFICIENT_STOCK
REFUSED = Status.LINKED_LINE_REFUSED
MS = NS_PER_MS


def does(
    call: Call, began: int, ended: int | None, *answer: Any, at: int | None = None
) -> Operation:
    """One call from `began` to `ended`, and what each of its lines was answered."""
    answers = None if ended is None else (answer,)
    return Operation("someone", began, ended, (call,), answers, at)


def fact(kind: Kind, units: int, key: Key = TEA, value: int = 0) -> Call:
    return Call(kind, ((key, units),), value=value)


def receive(units: int, began: int, ended: int | None, available: int, **more: Any) -> Operation:
    return does(fact(Kind.RECEIVE, units), began, ended, (OK, available), **more)


def sale(units: int, began: int, ended: int | None, available: int, **more: Any) -> Operation:
    return does(fact(Kind.SALE, units), began, ended, (OK, available), **more)


def _value_of(kind: Kind, units: int) -> int:
    """What stands in the value of a fact that is drawn: where goods go, a reason, or a price."""
    return Disposition.DAMAGED * (units % 2) if kind == Kind.INSPECT else units - 1


def read(began: int, ended: int, **cell: int) -> Operation:
    return does(Call(READ, ((TEA, 0),)), began, ended, Cell(**cell))


def there(began: int, **cell: int) -> Operation:
    """The other place's tea, at once."""
    return does(Call(READ, ((TEA_THERE, 0),)), began, began + 1, Cell(**cell))


def reserve(units: int, name: bytes, ttl_ms: int = 1000, key: Key = TEA) -> Call:
    return Call(Kind.RESERVE, ((key, units),), hold=name, value=ttl_ms)


def on_hold(kind: Kind, name: bytes) -> Call:
    return Call(kind, hold=name)


def refused(history: Sequence[Operation]) -> str:
    with pytest.raises(NotLinearizableError) as caught:
        check(history)
    return str(caught.value)


# --- what is allowed ------------------------------------------------------------------------------


def test_operations_at_once_may_come_in_any_order() -> None:
    stock = receive(5, 0, 1, 5)
    check([stock, sale(1, 2, 9, 4), sale(2, 3, 8, 2)])
    check([stock, sale(1, 2, 9, 2), sale(2, 3, 8, 3)])
    check([stock, sale(1, 2, 9, 4), sale(2, 3, 8, 2), read(4, 5, on_hand=4)])
    check([stock, sale(1, 2, 9, 2), sale(2, 3, 8, 3), read(4, 5, on_hand=3)])


@pytest.mark.parametrize("left", [-1, -2])
def test_states_that_differ_by_minus_one_and_minus_two_are_told_apart(left: int) -> None:
    """Python's hash of -1 is that of -2."""
    facts = ((Kind.COUNT, 0), (Kind.SALE, 1), (Kind.SALE, 2))
    at_once = [does(fact(kind, units), 0, 9, (OK, None)) for kind, units in facts]
    check([*at_once, read(10, 11, on_hand=left)])


def test_an_operation_that_was_not_answered_happens_late_or_never() -> None:
    history = [receive(5, 0, 1, 5), sale(2, 2, None, 0), read(3, 4, on_hand=5)]
    check(history)
    check([*history, read(5, 6, on_hand=3)])
    check([*history, read(5, 6, on_hand=5), sale(1, 7, 8, 2)])
    refused([*history, read(5, 6, on_hand=3), read(7, 8, on_hand=5)])
    refused([*history, read(5, 6, on_hand=1)])


def test_a_hold_that_nobody_was_told_of_can_be_committed_and_can_expire() -> None:
    history = [
        receive(5, 0, 1, 5, at=100),
        does(reserve(2, b"h", ttl_ms=1), 2, None),
    ]
    commit = on_hold(Kind.COMMIT, b"h")
    check([*history, does(commit, 3, 4, (OK, 3), at=200), read(5, 6, on_hand=5, committed=2)])
    check([*history, read(3, 4, on_hand=5, reserved=2), read(5, 6, on_hand=5)])
    late = does(commit, 5, 6, (Status.HOLD_EXPIRED, 5), at=200 + MS)
    check([*history, read(3, 4, on_hand=5, reserved=2), late])
    early = does(commit, 5, 6, (Status.HOLD_EXPIRED, 5), at=99 + MS)
    refused([*history, early])
    check([*history, does(commit, 5, 6, (Status.UNKNOWN_HOLD, 0), at=200 + MS)])
    # Seen alive at a time, it was not due then; so it was made so late that it still lives.
    seen = [*history, receive(1, 3, 4, 4, at=50 * MS), receive(1, 5, 6, 5, at=51 * MS)]
    check([*seen, does(commit, 7, 8, (OK, 5), at=51 * MS)])
    refused([*seen, does(commit, 7, 8, (OK, 5), at=51 * MS + 1)])
    check([*seen, does(commit, 7, 8, (Status.HOLD_EXPIRED, 7), at=51 * MS + 1)])


def test_the_life_of_a_hold() -> None:
    history = [
        does(fact(Kind.COUNT, 10), 0, 1, (OK, 10)),
        does(fact(Kind.SET_SAFETY_STOCK, 1), 2, 3, (OK, 9)),
        does(reserve(4, b"h"), 4, 5, (OK, 5), at=10),
        does(Call(Kind.COMMIT, ((TEA, 3),), b"h", flags=Flag.RELEASE_REST), 6, 7, (OK, 6)),
        does(Call(LOOK_UP, hold=b"h"), 8, 9, (HoldState.COMMITTED, 0), (*TEA, 0, 3, 0, 0)),
        does(Call(Kind.FULFIL, ((TEA, 1),), b"h"), 10, 11, (OK, 6)),
        does(on_hold(Kind.CANCEL, b"h"), 12, 13, (OK, 8)),
        does(Call(LOOK_UP, hold=b"h"), 14, 15, (HoldState.FULFILLED, 0), (*TEA, 0, 0, 1, 0)),
        does(fact(Kind.RETURN, 1, value=Disposition.DAMAGED), 16, 17, (OK, 8)),
        does(fact(Kind.RETURN, 2, value=Disposition.QUALITY_CONTROL), 18, 19, (OK, 8)),
        does(fact(Kind.ADJUST, -3), 20, 21, (OK, 5)),
        read(22, 23, on_hand=9, damaged=1, quality_control=2, safety_stock=1),
    ]
    assert check(history) == Checked(parts=1, operations=len(history), steps=len(history))


def test_an_order_over_two_cells_makes_them_one_part() -> None:
    order = Call(Kind.RESERVE, ((TEA, 1), (JAM, 2)), hold=b"h", value=1000)
    stock = Operation(
        "till", 0, 1, (fact(Kind.RECEIVE, 3), fact(Kind.RECEIVE, 1, JAM)), (((OK, 3),), ((OK, 1),))
    )
    no = does(order, 2, 3, (Status.LINKED_LINE_REFUSED, 3), (SHORT, 1))
    assert [len(part) for part in parts([stock])] == [1, 1]
    assert [len(part) for part in parts([stock, no])] == [2]
    check([stock, no])
    refused([stock, does(order, 2, 3, (OK, 2), (OK, -1))])


def test_what_is_asked_at_once_is_one_moment() -> None:
    first, second = fact(Kind.RECEIVE, 1), fact(Kind.RECEIVE, 2)
    both = Operation("batch", 0, 9, (first, second), (((OK, 1),), ((OK, 3),)))
    check([both, read(1, 2, on_hand=3)])
    refused([both, read(1, 2, on_hand=1)])


def test_a_hold_that_moves_joins_its_cells() -> None:
    stock = [receive(5, 0, 1, 5), does(fact(Kind.RECEIVE, 4, TEA_THERE), 2, 3, (OK, 4))]
    held = does(reserve(3, b"h"), 4, 5, (OK, 2))
    assert len(parts([*stock, held])) == 2
    for moves in (
        Call(Kind.MOVE, ((TEA_THERE, 3),), b"h", value=1),
        Call(Kind.MOVE, (((0, 2), 0),), b"h"),
    ):
        moved = does(moves, 6, 7, (OK, 1))
        assert len(parts([*stock, held, moved])) == 1
        check([*stock, held, moved, read(8, 9, on_hand=5), there(10, on_hand=4, reserved=3)])
        twice = there(10, on_hand=4, reserved=4)
        refused([*stock, held, moved, twice])
        refused([*stock, held, moved, read(8, 9, on_hand=5, reserved=3)])
    short = does(Call(Kind.MOVE, (((0, 2), 0),), b"h"), 8, 9, (SHORT, 1))
    check([*stock, held, does(fact(Kind.SALE, 3, TEA_THERE), 6, 7, (OK, 1)), short])
    refused([*stock, held, short])


def test_linked_moves_are_all_done_or_none() -> None:
    cells = (TEA, JAM, TEA_THERE, JAM_THERE)
    stock = [
        does(fact(Kind.RECEIVE, 5, key), 2 * at, 2 * at + 1, (OK, 5))
        for at, key in enumerate(cells)
    ]
    order = Call(Kind.RESERVE, ((TEA, 2), (JAM, 1)), hold=b"h", value=1000)
    history = [*stock, does(order, 10, 11, (OK, 3), (OK, 4))]
    moves = Call(Kind.MOVE, ((TEA_THERE, 2), (JAM_THERE, 1)), b"h")
    moved = does(moves, 12, 13, (OK, 3), (OK, 4))
    check([*history, moved, read(14, 15, on_hand=5), there(16, on_hand=5, reserved=2)])
    refused([*history, moved, read(14, 15, on_hand=5, reserved=2)])
    # One of them cannot go, so neither does.
    sold = does(fact(Kind.SALE, 5, JAM_THERE), 11, 12, (OK, 0))
    stays = does(moves, 13, 14, (REFUSED, None), (SHORT, 0))
    check([*history, sold, stays, read(15, 16, on_hand=5, reserved=2), there(17, on_hand=5)])
    refused([*history, sold, stays, there(15, on_hand=5, reserved=2)])
    refused([*history, stays])


def test_an_extended_hold_lives_longer_and_an_expired_one_does_not() -> None:
    history = [receive(5, 0, 1, 5, at=50), does(reserve(2, b"h", ttl_ms=1), 2, 3, (OK, 3), at=100)]
    longer = Call(Kind.EXTEND, hold=b"h", value=5)
    at_once = does(longer, 4, 5, (OK, 3), at=100 + MS)
    check([*history, at_once, does(on_hold(Kind.COMMIT, b"h"), 6, 7, (OK, 3), at=100 + 6 * MS)])
    look = does(
        Call(LOOK_UP, hold=b"h"), 6, 7, (HoldState.PENDING, 100 + 6 * MS), (*TEA, 2, 0, 0, 0)
    )
    check([*history, at_once, look])
    refused([*history, look])
    refused([*history, does(longer, 4, 5, (OK, 3), at=101 + MS)])
    check([*history, does(longer, 4, 5, (Status.HOLD_EXPIRED, 5), at=101 + MS)])
    # Paid too late: it may be had again, as long as nobody else has it.
    late = Call(Kind.COMMIT, hold=b"h", flags=Flag.RE_RESERVE)
    check([*history, does(late, 4, 5, (OK, 3), at=101 + MS), read(6, 7, on_hand=5, committed=2)])
    sold = sale(4, 4, 5, 1, at=101 + MS)
    check([*history, sold, does(late, 6, 7, (SHORT, 1), at=102 + MS)])
    refused([*history, sold, does(late, 6, 7, (OK, -1), at=102 + MS)])


def test_an_order_in_place_of_another_one() -> None:
    history = [receive(5, 0, 1, 5), does(reserve(4, b"old"), 2, 3, (OK, 1), at=10)]
    better = reserve(5, b"new")._replace(flags=Flag.SUPERSEDE, other=b"old")
    done = does(better, 4, 5, (OK, 0))
    check([*history, done, does(on_hold(Kind.COMMIT, b"old"), 6, 7, (Status.HOLD_RELEASED, 0))])
    refused([*history, done, does(on_hold(Kind.COMMIT, b"old"), 6, 7, (OK, 0))])
    kept = reserve(1, b"new")._replace(flags=Flag.SUPERSEDE, other=b"old")
    check([*history, does(kept, 4, 5, (OK, 4)), read(6, 7, on_hand=5, reserved=1)])
    refused([*history, does(kept, 4, 5, (OK, 4)), read(6, 7, on_hand=5, reserved=5)])
    refused([*history, does(kept, 4, 5, (OK, 0))])
    # The old one had run out: it is over for good all the same.
    late = Call(Kind.COMMIT, hold=b"old", flags=Flag.RE_RESERVE)
    after = [*history, does(kept, 4, 5, (OK, 4), at=101 + MS)]
    check([*after, does(late, 6, 7, (Status.HOLD_RELEASED, 4), at=102 + MS)])
    refused([*after, does(late, 6, 7, (OK, 0), at=102 + MS)])
    # Where less will do, it is not less than before, though the cell is short.
    some = better._replace(flags=better.flags | Flag.PARTIAL)
    short = [*history, sale(3, 4, 5, -2)]
    for granted in (4, 3, 2):
        answer = (OK, 2 - granted, granted)
        (check if granted == 4 else refused)([*short, does(some, 6, 7, answer, at=12)])


def test_less_than_was_asked_for() -> None:
    some = reserve(7, b"h")._replace(flags=Flag.PARTIAL)
    for granted in (5, 6):
        history = [receive(5, 0, 1, 5), does(some, 2, 3, (OK, 0, granted), at=10)]
        (check if granted == 5 else refused)(history)
    check([does(some, 2, 3, (SHORT, 0, 0), at=10)])


def test_no_more_comes_back_than_was_handed_over() -> None:
    order = reserve(2, b"h")._replace(flags=Flag.COMMIT_NOW)
    history = [
        receive(5, 0, 1, 5),
        does(order, 2, 3, (OK, 3), at=10),
        does(on_hold(Kind.FULFIL, b"h"), 4, 5, (OK, 3)),
    ]
    back = [
        does(fact(Kind.RETURN, 1, key)._replace(hold=b"h"), 6, 9, (OK, available))
        for key, available in ((TEA, 4), (TEA_THERE, 1))
    ]
    claim = fact(Kind.CLAIM_RETURN, 1)._replace(hold=b"h")
    too_much = Status.EXCEEDS_HOLD
    check([*history, *back, does(claim, 6, 9, (too_much, 0))])
    check([*history, back[0], does(claim, 6, 9, (OK, 0))])
    refused([*history, *back, does(claim, 6, 9, (OK, 0))])
    undone = on_hold(Kind.UNFULFIL, b"h")
    check([*history, back[0], does(undone, 10, 11, (OK, 4)), read(12, 13, on_hand=5, committed=1)])
    refused(
        [*history, back[0], does(undone, 10, 11, (OK, 4)), read(12, 13, on_hand=6, committed=2)]
    )


def test_a_handover_is_of_its_moment() -> None:
    order = reserve(4, b"h")._replace(flags=Flag.COMMIT_NOW)
    before = [
        receive(9, 0, 1, 9, at=10),
        does(order, 2, 3, (OK, 5), at=20),
        does(fact(Kind.COUNT, 5)._replace(occurred_at_ns=150), 4, 5, (OK, 1), at=200),
    ]
    for left_at, on_hand in ((149, 5), (150, 1), (0, 1)):
        left = on_hold(Kind.FULFIL, b"h")._replace(occurred_at_ns=left_at)
        found = [*before, does(left, 6, 7, (OK, on_hand), at=300)]
        check([*found, read(8, 9, on_hand=on_hand)])
        refused([*before, does(left, 6, 7, (OK, 6 - on_hand), at=300)])
        for back_at, more in ((149, 0), (151, 4), (0, 4)):
            back = on_hold(Kind.UNFULFIL, b"h")._replace(occurred_at_ns=back_at)
            told = (OK, on_hand + more - 4)
            check([*found, does(back, 8, 9, told, at=400)])
            refused([*found, does(back, 8, 9, (OK, on_hand - more), at=400)])


def test_an_exchange_is_one_step() -> None:
    back = fact(Kind.RETURN, 2)
    both = reserve(2, b"h")._replace(returns=(back,))
    check([does(both, 0, 1, (OK, 0), (OK, 0), at=10)])
    refused([does(both, 0, 1, (OK, 2), (OK, 0), at=10)])
    none = does(reserve(3, b"h")._replace(returns=(back,)), 0, 1, (REFUSED, 0), (SHORT, 0), at=10)
    check([none, read(2, 3)])
    refused([none, read(2, 3, on_hand=2)])


def test_a_count_is_of_its_moment() -> None:
    stock = receive(9, 0, 1, 9, at=10)
    sold = sale(2, 2, 3, 7, at=100)
    for counted_at, on_hand in ((50, 3), (100, 3), (101, 5)):
        count = fact(Kind.COUNT, 5)._replace(occurred_at_ns=counted_at)
        check([stock, sold, does(count, 4, 5, (OK, on_hand), at=200)])
        refused([stock, sold, does(count, 4, 5, (OK, 8 - on_hand), at=200)])
    # What the count has seen already changes nothing.
    count = does(fact(Kind.COUNT, 5)._replace(occurred_at_ns=150), 4, 5, (OK, 5), at=200)
    for sold_at, on_hand in ((149, 5), (150, 4)):
        late = fact(Kind.SALE, 1)._replace(occurred_at_ns=sold_at)
        check([stock, sold, count, does(late, 6, 7, (OK, on_hand), at=300)])
        refused([stock, sold, count, does(late, 6, 7, (OK, 9 - on_hand), at=300)])
    # When nobody knows when it was sold, it may have been before or after; but it was, or was not.
    lost = sale(2, 2, None, 0)
    count = does(fact(Kind.COUNT, 5)._replace(occurred_at_ns=150), 4, 5, (OK, 3), at=200)
    check([stock, lost, count])
    check([stock, lost, replace(count, answers=(((OK, 5),),))])
    refused([stock, lost, replace(count, answers=(((OK, 4),),))])


def test_goods_that_are_on_their_way() -> None:
    expect = fact(Kind.EXPECT, 5)._replace(hold=b"po")
    receipt = fact(Kind.RECEIVE, 3)._replace(hold=b"po")
    look = Call(LOOK_UP_INCOMING, hold=b"po")
    history = [
        does(receipt, 0, 1, (Status.UNKNOWN_HOLD, 0)),
        does(expect, 2, 3, (OK, 0)),
        does(receipt, 4, 5, (OK, 3)),
        does(look, 6, 7, (HoldState.INCOMING, 0), (*TEA, 5, 2, 3)),
        does(Call(Kind.CANCEL_INCOMING, hold=b"po"), 8, 9, (OK, 3)),
        does(expect, 10, 11, (Status.HOLD_NOT_PENDING, 3)),
        does(look, 12, 13, (HoldState.RECEIVED, 0), (*TEA, 5, 0, 3)),
    ]
    check([*history, read(14, 15, on_hand=3)])
    refused([*history, read(14, 15, on_hand=3, incoming=2)])


def test_what_is_shipped_is_expected_later() -> None:
    order = reserve(3, b"t")._replace(flags=Flag.COMMIT_NOW)
    stock = [receive(5, 0, 1, 5), does(order, 2, 3, (OK, 2), at=10)]
    ship = Call(SHIP, ((TEA, 3),), b"t", value=2, other=b"op")
    arrival = Call(SHIPPED, ((TEA_THERE, 3),), b"t", other=b"op")
    left = does(ship, 4, 9, (OK, 2))
    came = does(arrival, 4, 9, (OK,))
    record = record_id(b"t", 0)
    take_in = Call(ARRIVE, ((TEA_THERE, 3),), b"t")
    check([*stock, left, came, does(take_in, 10, 11, (OK, 3)), there(12, on_hand=3)])
    # In between goods have left and are not on their way, never the other way round.
    check([*stock, left, came, read(5, 6, on_hand=2), there(7), there(10, incoming=3)])
    refused([*stock, left, came, there(5, incoming=3), read(7, 8, on_hand=5, committed=3)])
    refused([*stock, left, came, there(10)])
    refused([*stock, left, came, does(take_in, 10, 11, (OK, 3)), there(12, on_hand=3, incoming=3)])
    # When all of a record has come, what is shipped then goes to the next.
    look = Call(LOOK_UP_INCOMING, hold=record_id(b"t", 1), other=b"t")
    one = ship._replace(lines=((TEA, 1),))
    again = [
        *stock,
        does(one, 4, 5, (OK, 2)),
        does(arrival, 4, 5, (OK,)),
        does(take_in._replace(lines=((TEA_THERE, 1),)), 6, 7, (OK, 1)),
        does(one._replace(other=b"op2"), 8, 9, (OK, 2)),
        does(arrival._replace(other=b"op2"), 8, 9, (OK,)),
    ]
    check([*again, does(look, 10, 11, (HoldState.INCOMING, 0), (*TEA_THERE, 1, 1, 0))])
    first = look._replace(hold=record)
    refused([*again, does(first, 10, 11, (HoldState.INCOMING, 0), (*TEA_THERE, 2, 1, 1))])


# --- what is not ----------------------------------------------------------------------------------


def test_a_stale_read() -> None:
    told = refused([receive(5, 0, 1, 5), sale(2, 2, 3, 3), read(4, 5, on_hand=5)])
    assert "2 of 3 operations can be placed" in told
    assert "sale 2 of 1@1" in told
    assert "must be (3 0 0 0 0 0 0 0 0)" in told


def test_reads_that_go_back() -> None:
    history = [receive(5, 0, 1, 5), sale(2, 2, 9, 3), read(3, 4, on_hand=3)]
    check(history)
    refused([*history, read(5, 6, on_hand=5)])


def test_a_lost_update() -> None:
    refused([receive(5, 0, 1, 5), sale(1, 2, 5, 4), sale(2, 2, 5, 3)])
    refused([receive(5, 0, 1, 5), sale(1, 2, 5, 4), sale(2, 2, 5, 2), read(6, 7, on_hand=3)])


def test_the_last_unit_sold_twice() -> None:
    history = [receive(1, 0, 1, 1), does(reserve(1, b"a"), 2, 5, (OK, 0), at=7)]
    check([*history, does(reserve(1, b"b"), 2, 5, (SHORT, 0), at=7)])
    refused([*history, does(reserve(1, b"b"), 2, 5, (OK, 0), at=7)])
    # Unless so much time may have gone by that the first one had expired.
    check([*history, does(reserve(1, b"b"), 2, 5, (OK, 0))])


def test_a_hold_that_comes_back_after_its_deadline() -> None:
    history = [receive(5, 0, 1, 5, at=50), does(reserve(2, b"h", ttl_ms=1), 2, 3, (OK, 3), at=100)]
    commit = on_hold(Kind.COMMIT, b"h")
    for late_ns, answer in ((0, OK), (1, Status.HOLD_EXPIRED)):
        at = 100 + MS + late_ns
        available = 5 if late_ns else 3
        check([*history, does(commit, 4, 5, (answer, available), at=at)])
        other = OK if late_ns else Status.HOLD_EXPIRED
        refused([*history, does(commit, 4, 5, (other, available), at=at)])
    # Once a read has shown it expired, it is.
    refused(
        [*history, read(4, 5, on_hand=5), does(commit, 6, 7, (OK, 3), at=101)],
    )
    # It does not expire before its time, whatever a read says.
    refused([*history, read(4, 5, on_hand=5), receive(1, 6, 7, 4, at=100 + MS)])
    check([*history, read(4, 5, on_hand=5), receive(1, 6, 7, 6, at=102 + MS)])


def test_nothing_joins_a_hold_of_which_some_ran_out() -> None:
    some = Call(Kind.COMMIT, ((TEA, 1),), hold=b"h")
    history = [
        receive(9, 0, 1, 9, at=10),
        does(reserve(3, b"h", ttl_ms=1), 2, 3, (OK, 6), at=100),
        does(some, 4, 5, (OK, 6), at=101),
        does(reserve(2, b"g"), 6, 7, (OK, 6), at=200 + MS),
    ]
    gives = Call(HAND_OVER, ((TEA, 1),), b"g", other=b"h")
    linked, over = (Status.LINKED_LINE_REFUSED, None), (Status.HOLD_EXPIRED, None)
    check([*history, does(gives, 8, 9, linked, over, at=300 + MS)])
    refused([*history, does(gives, 8, 9, (OK, 6), (OK, 6), at=300 + MS)])


def test_a_retry_with_two_effects() -> None:
    refused([receive(5, 0, 1, 5), sale(2, 2, 9, 3), read(10, 11, on_hand=1)])
    refused([receive(5, 0, 1, 5), sale(2, 2, 9, 3), sale(1, 10, 11, 0)])


def test_blocks_are_in_the_order_of_their_times() -> None:
    first, second = sale(1, 2, 9, 4, at=20), sale(1, 2, 9, 3, at=30)
    check([receive(5, 0, 1, 5, at=10), first, second])
    told = refused([receive(5, 0, 1, 5, at=40), first, second])
    assert "by the times of their blocks: someone, 0.000 to 0.000 ms (block of 20): sale" in told
    assert "by the clients' clock: someone, 0.000 to 0.000 ms (block of 40): receive" in told


def test_too_many_orders_are_not_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_STEPS", 100)
    lost = [sale(1 << i, i, None, 0) for i in range(12)]
    with pytest.raises(UndecidedError, match="100 steps"):
        check([*lost, read(100, 101, on_hand=1)])


# --- a real machine's life ------------------------------------------------------------------------

HOLDS = [bytes(15) + bytes([i]) for i in range(1, 200)]
SALES = [bytes(14) + bytes([1, i]) for i in range(1, 4)]
RECORDS = [bytes(14) + bytes([2, i]) for i in range(1, 4)]
NAMED = (*HOLDS[:3], SALES[0], RECORDS[0])  # what there soon is of each
CELLS = (TEA, JAM, TEA_THERE)
FACTS = (
    Kind.SALE, Kind.RECEIVE, Kind.RETURN, Kind.ADJUST, Kind.COUNT, Kind.SET_SAFETY_STOCK,
    Kind.INSPECT, Kind.WRITE_OFF, Kind.SET_PRICE,
)  # fmt: skip
# Whole calls are enumerated and then picked: drawing them part by part takes much longer.
ORDERS = [
    Call(Kind.RESERVE, lines, value=ttl_ms, flags=flags, other=other)
    for ttl_ms in (2, 1000, 1000)
    for units in (1, 3, 5)
    for lines in (
        ((TEA, units),), ((JAM, units),), ((TEA, units), (JAM, 1)), ((TEA, units), (TEA, 1)),
    )
    for flags, other in (
        (0, b""), (0, b""), (Flag.PARTIAL, b""), (Flag.COMMIT_NOW, b""),
        *((Flag.SUPERSEDE, hold) for hold in HOLDS[:3]), (Flag.SUPERSEDE | Flag.PARTIAL, HOLDS[1]),
    )
]  # fmt: skip
RETURNS = [
    fact(Kind.RETURN, units, key, where)._replace(hold=hold, occurred_at_ns=at_ns)
    for units in (1, 2)
    for key in (TEA, TEA_THERE)
    for where in Disposition
    for hold in (b"", *HOLDS[:2], SALES[0])
    for at_ns in (0, 60, MS)
]
EXCHANGES = [
    Call(Kind.RESERVE, ((TEA, units),), value=1000, returns=returns, flags=flags)
    for units in (1, 4)
    for first, second in zip(RETURNS, RETURNS[7:], strict=False)
    for returns in ((first,), (first, second))
    for flags in (0, Flag.COMMIT_NOW)
]
WHOLE = [
    Call(kind, hold=hold, flags=flags, value=value)
    for kind, flags, value in (
        *((kind, 0, 0) for kind in PART_KINDS),
        (Kind.COMMIT, Flag.RE_RESERVE, 0), (Kind.EXTEND, 0, 1), (Kind.EXTEND, 0, 50),
    )
    for hold in NAMED
]  # fmt: skip
PARTS = [
    Call(kind, lines, hold, flags=rest if kind == Kind.COMMIT else 0)
    for kind in PART_KINDS
    for hold in NAMED
    for rest in (0, Flag.RELEASE_REST)
    for lines in (
        ((TEA, 1),), ((TEA, 2),), ((JAM, 1),), ((TEA_THERE, 1),), ((TEA, 1), (TEA, 2)),
        ((TEA, 1), (JAM, 1)),
    )
]  # fmt: skip
MOVES = [
    Call(Kind.MOVE, (((sku, to), units),), hold, value=leaves)
    for hold in NAMED
    for sku, leaves, units in ((0, 0, 0), (1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 1, 0))
    for to in (1, 2)
] + [
    Call(Kind.MOVE, (((1, to), units), ((2, there), 1)), hold, value=leaves)
    for hold in HOLDS[:2]
    for to in (1, 2)
    for there in (1, 2)
    for units in (1, 2)
    for leaves in (0, 1)
]
OTHERS = [
    *(
        Call(HAND_OVER, ((key, units),), hold, other=other)
        for key in (TEA, JAM)
        for units in (1, 2)
        for hold in NAMED
        for other in (*NAMED[:3], HOLDS[150])
    ),
    *(
        Call(Kind.CLAIM_RETURN, ((TEA, -units),), hold)
        for units in (1, 2)
        for hold in (*HOLDS[:3], SALES[0])
    ),
    *(
        first._replace(returns=(second,))
        for first, second in zip(RETURNS, RETURNS[11:], strict=False)
    ),
    *(Call(Kind.SALE, ((TEA, 1),), hold) for hold in (*HOLDS[:2], RECORDS[0])),
    *(
        Call(kind, ((key, units),), hold, value=1)
        for kind in (Kind.ADD_LINE, Kind.CLAIM_RETURN)
        for key in (TEA, JAM)
        for units in (1, 2)
        for hold in NAMED
    ),
    *(
        Call(kind, ((key, units),), record, value=units % 2)
        for kind in (Kind.EXPECT, Kind.EXPECT, Kind.RECEIVE, Kind.CANCEL_INCOMING)
        for key in (TEA, JAM)
        for units in (1, 2, 4)
        for record in (RECORDS[0], RECORDS[1], HOLDS[0])
    ),
    *(Call(Kind.CANCEL_INCOMING, hold=record) for record in (*RECORDS[:2], HOLDS[0])),
]
LOOKS = [
    *(Call(LOOK_UP, hold=hold) for hold in NAMED),
    *(Call(LOOK_UP_INCOMING, hold=hold) for hold in (*RECORDS[:2], HOLDS[0])),
    *(Call(READ, lines) for lines in (((TEA, 0),), ((JAM, 0),), ((TEA, 0), (JAM, 0)))),
    *(Call(READ, ((TEA_THERE, 0),)) for _ in range(2)),
]
PLAIN = [
    fact(kind, units, key, _value_of(kind, units))._replace(
        hold=SALES[units - 1] if kind == Kind.SALE and at_ns else b"",
        flags=bucket if kind == Kind.WRITE_OFF else 0,
        # These have no moment of their own.
        occurred_at_ns=0 if kind in SETTINGS else at_ns,
    )
    for kind in FACTS
    for key in CELLS
    for units in (1, 2, 3)
    for at_ns in (0, 60, MS, 2 * MS)
    for bucket in (0, Flag.DAMAGED, Flag.QUALITY_CONTROL)
]
CALLS = st.one_of(
    *map(st.sampled_from, (ORDERS, WHOLE, PARTS, MOVES, OTHERS, LOOKS, PLAIN)),
    st.sampled_from(EXCHANGES + RETURNS),
)


class Life:
    """A shard's life without any overlap: operation n happens at n seconds of the clients' clock."""

    def __init__(self) -> None:
        self.machine = ReferenceMachine()
        self.machine.set_sku_limit(2)
        for place in (1, 2):
            self.machine.set_location(place, owned=True, currency=NUMBERS[convert.CURRENCY])
        self.now_ns, self.numbers, self.held = 100, 0, 0
        self.history: list[Operation] = []

    def live(self, call: Call, wait_ns: int) -> None:
        self.now_ns += wait_ns
        self.numbers += 1
        if call.kind in (READ, LOOK_UP, LOOK_UP_INCOMING):
            # A read is between two blocks; what is overdue may have had a block of its own.
            if wait_ns % 2 == 0:
                self.machine.apply(self.now_ns, [])
            self._note(call, self._seen(call), None)
            return
        op_id = self.numbers.to_bytes(16, "big")
        if call.kind == Kind.RESERVE:
            op_id = HOLDS[self.held]
            self.held += 1
            call = call._replace(hold=op_id)
        request = Request.of(op_id, convert.lines_of(call), **convert.columns([call]))  # type: ignore[arg-type]
        (told,) = self.machine.apply(self.now_ns, [request]).answers
        status, granted = list(told.status), told.granted
        (answer,) = convert.answers([call], status, told.available, granted)
        self._note(call, answer, self.now_ns)

    def _seen(self, call: Call) -> Any:
        if call.kind == READ:
            cells = [self.machine.cell(*key) for key, _ in call.lines]
            return tuple(
                Cell() if cell is None else Cell(*(getattr(cell, n) for n in Cell._fields))
                for cell in cells
            )
        if call.kind == LOOK_UP_INCOMING:
            record = self.machine.incoming(call.hold)
            if record is None:
                return ((None, None),)
            head = (record.state, record.expected_at_ns // NS_PER_MS)
            return (head, *((*astuple(line),) for line in record.lines))
        hold = self.machine.hold(call.hold)
        if hold is None:
            return ((None, None),)
        deadline_ns = hold.deadline_ns if hold.state in spec.HAS_DEADLINE else 0
        return ((hold.state, deadline_ns), *(astuple(line) for line in hold.lines))

    def _note(self, call: Call, answer: Any, at_ns: int | None) -> None:
        second = len(self.history) * 1000
        self.history.append(Operation("life", second, second, (call,), (answer,), at_ns))


@st.composite
def lives(draw: st.DrawFn, most: int) -> list[Operation]:
    life = Life()
    # A short life is tried in all orders, of which each receipt makes many more.
    for key in (TEA, TEA_THERE, JAM, JAM_THERE)[: max(2, most // 5)]:
        life.live(fact(Kind.RECEIVE, 6, key), 1)
    if most > 5:  # an order of two SKUs, for linked moves to find
        life.live(Call(Kind.RESERVE, ((TEA, 3), (JAM, 1)), value=1000), 1)
    waits = st.sampled_from([1, 2, MS // 2, MS, MS + 1, 3 * MS])
    for call in draw(st.lists(CALLS, min_size=2, max_size=most)):
        life.live(call, draw(waits))
    return life.history


def overlapping(draw: st.DrawFn, history: Sequence[Operation]) -> list[Operation]:
    """The same with intervals that overlap, as if many had been at it; some lose their answer."""
    reach = st.integers(0, 3000)
    found = []
    for each in history:
        began, ended = each.invoked_ns - draw(reach), each.invoked_ns + draw(reach)
        stretched = replace(each, invoked_ns=began, answered_ns=ended)
        fate = draw(st.sampled_from(["whole", "whole", "whole", "no time", "no answer"]))
        if fate != "whole" and each.calls[0].kind != Kind.RESERVE:
            stretched = replace(stretched, at_ns=None)
        if fate == "no answer":
            stretched = replace(stretched, at_ns=None, answered_ns=None, answers=None)
        found.append(stretched)
    return found


def spoilt(draw: st.DrawFn, history: Sequence[Operation]) -> list[Operation]:
    """The same with one number of one answer changed."""
    places = [place for place, each in enumerate(history) if each.answers]
    if not places:
        return list(history)
    place = draw(st.sampled_from(places))
    answers = history[place].answers
    assert answers is not None
    values = list(answers[0][0])
    column = draw(st.integers(0, len(values) - 1))
    was = values[column]
    values[column] = SHORT if isinstance(was, Status) or was is None else int(was) + 1
    changed = replace(history[place], answers=((tuple(values), *answers[0][1:]),))
    return [*history[:place], changed, *history[place + 1 :]]


@given(st.data())
def test_whatever_a_machine_does_is_linearizable(data: st.DataObject) -> None:
    check(data.draw(st.composite(overlapping)(data.draw(lives(most=40)))))


@given(st.data())
def test_an_answer_that_was_changed_is_seen(data: st.DataObject) -> None:
    """One after the other and with all times told, only one answer is right."""
    history = data.draw(lives(most=20))
    told = [place for place, each in enumerate(history) if each.at_ns is not None]
    place = data.draw(st.sampled_from(told))
    wrong = data.draw(st.composite(spoilt)([history[place]]))[0]
    if wrong != history[place]:
        refused([*history[:place], wrong, *history[place + 1 :]])


@given(st.data())
def test_the_search_finds_what_trying_all_orders_finds(data: st.DataObject) -> None:
    history = data.draw(st.composite(overlapping)(data.draw(lives(most=5))))
    if data.draw(st.booleans()):
        history = data.draw(st.composite(spoilt)(history))
    try:
        check(history)
        found = True
    except NotLinearizableError:
        found = False
    assert found == all(any(orders(part)) for part in parts(history))


def orders(part: list[Operation]) -> Iterator[bool]:
    """Try everything: each order of the answered operations and some of the others."""
    for length in range(len(part) + 1):
        for order in permutations(part, length):
            left = [each for each in part if each not in order]
            if not any(each.is_answered for each in left) and is_in_order(order):
                yield explains(list(order), {})


def is_in_order(order: Sequence[Operation]) -> bool:
    return not any(
        (later.answered_ns is not None and later.answered_ns < earlier.invoked_ns)
        or (later.at_ns or FOREVER) < (earlier.at_ns or 0)
        for place, earlier in enumerate(order)
        for later in order[place + 1 :]
    )


def explains(order: list[Operation], state: dict[Any, Any]) -> bool:
    if not order:
        return True
    before_ns = min((each.at_ns for each in order if each.at_ns is not None), default=FOREVER)
    return any(
        explains(order[1:], state | changes) for changes in spec.effects(state, order[0], before_ns)
    )


# --- size -----------------------------------------------------------------------------------------


def test_thousands_of_operations_on_one_cell() -> None:
    """Ten at a time and no block's time told; the steps are about as many as the operations."""
    history, stock = [receive(1_000_000, 0, 0, 1_000_000)], 1_000_000
    for number in range(1, 5_000):
        stock -= 1 + number % 3
        began = max(1, (number - 9) * 10)
        history.append(sale(1 + number % 3, began, number * 10 + 9, stock))
    found = check(history)
    assert found.operations == 5_000
    assert found.steps < 200_000
    refused([*history, read(60_000, 60_001, on_hand=stock + 1)])
