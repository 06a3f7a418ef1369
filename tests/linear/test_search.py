"""Histories that are linearizable, histories that are not, and both from a real machine's life."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.operations import HOLD_KINDS, Disposition, Kind, Request
from engine.reference import ReferenceMachine
from engine.status import Status
from engine.views import HoldState
from tests.linear import convert, search, spec
from tests.linear.history import LOOK_UP, READ, Call, Key, Operation, parts
from tests.linear.search import Checked, NotLinearizableError, UndecidedError, check
from tests.linear.spec import Cell

TEA, JAM = (1, 1), (2, 1)
OK, SHORT = Status.OK, Status.INSUFFICIENT_STOCK
MS = spec.NS_PER_MS


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


def read(began: int, ended: int, **cell: int) -> Operation:
    return does(Call(READ, ((TEA, 0),)), began, ended, Cell(**cell))


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
        does(Call(Kind.COMMIT, ((TEA, 3),), b"h", release_rest=True), 6, 7, (OK, 6)),
        does(Call(LOOK_UP, hold=b"h"), 8, 9, (HoldState.COMMITTED,), (0, 3, 0)),
        does(Call(Kind.FULFIL, ((TEA, 1),), b"h"), 10, 11, (OK, 6)),
        does(on_hold(Kind.CANCEL, b"h"), 12, 13, (OK, 8)),
        does(Call(LOOK_UP, hold=b"h"), 14, 15, (HoldState.FULFILLED,), (0, 0, 1)),
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


# --- what is not ----------------------------------------------------------------------------------


def test_a_stale_read() -> None:
    told = refused([receive(5, 0, 1, 5), sale(2, 2, 3, 3), read(4, 5, on_hand=5)])
    assert "2 of 3 operations can be placed" in told
    assert "sale 2 of 1@1" in told
    assert "must be (3 0 0 0 0 0)" in told


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
CELLS = (TEA, JAM)
FACTS = (Kind.SALE, Kind.RECEIVE, Kind.RETURN, Kind.ADJUST, Kind.COUNT, Kind.SET_SAFETY_STOCK)
# Whole calls are enumerated and then picked: drawing them part by part takes much longer.
RESERVES = [
    Call(Kind.RESERVE, lines, value=ttl_ms)
    for ttl_ms in (1, 2, 5, 1000)
    for units in (1, 2, 3)
    for lines in (
        ((TEA, units),), ((JAM, units),), ((TEA, units), (JAM, 1)), ((TEA, units), (TEA, 1)),
    )
]  # fmt: skip
CALLS_ON_HOLDS = [
    Call(kind, lines, hold, release_rest=kind == Kind.COMMIT and units == 2)
    for kind in (Kind.COMMIT, *HOLD_KINDS)
    for hold in HOLDS[:6]
    for units in (0, 1, 2)
    for lines in (((((TEA, units),), ((JAM, units),))) if units else ((),))
]
LOOKS = [
    *(Call(LOOK_UP, hold=hold) for hold in HOLDS[:6]),
    *(Call(READ, lines) for lines in (((TEA, 0),), ((JAM, 0),), ((TEA, 0), (JAM, 0)))),
]
CALLS = st.one_of(
    st.sampled_from(RESERVES),
    st.sampled_from(CALLS_ON_HOLDS),
    st.sampled_from(LOOKS),
    st.sampled_from(
        [
            fact(kind, units, key, units - 1)
            for kind in FACTS
            for key in CELLS
            for units in (1, 2, 3)
        ]
    ),
)


class Life:
    """A shard's life without any overlap: operation n happens at n seconds of the clients' clock."""

    def __init__(self) -> None:
        self.machine = ReferenceMachine()
        self.machine.set_sku_limit(2)
        self.machine.set_location(1, owned=True, currency=978)
        self.now_ns, self.numbers, self.held = 100, 0, 0
        self.history: list[Operation] = []

    def live(self, call: Call, wait_ns: int) -> None:
        self.now_ns += wait_ns
        self.numbers += 1
        if call.kind in (READ, LOOK_UP):
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
        (answer,) = convert.answers([call], list(told.status), told.available)
        self._note(call, answer, self.now_ns)

    def _seen(self, call: Call) -> Any:
        if call.kind == READ:
            cells = [self.machine.cell(*key) for key, _ in call.lines]
            return tuple(
                Cell() if cell is None else Cell(*(getattr(cell, n) for n in Cell._fields))
                for cell in cells
            )
        hold = self.machine.hold(call.hold)
        if hold is None:
            return ((None,),)
        lines = [(each.pending, each.committed, each.fulfilled) for each in hold.lines]
        return ((hold.state,), *lines)

    def _note(self, call: Call, answer: Any, at_ns: int | None) -> None:
        second = len(self.history) * 1000
        self.history.append(Operation("life", second, second, (call,), (answer,), at_ns))


@st.composite
def lives(draw: st.DrawFn, most: int) -> list[Operation]:
    life = Life()
    life.live(fact(Kind.RECEIVE, 6), 1)
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
        or (later.at_ns or spec.FOREVER) < (earlier.at_ns or 0)
        for place, earlier in enumerate(order)
        for later in order[place + 1 :]
    )


def explains(order: list[Operation], state: dict[Any, Any]) -> bool:
    if not order:
        return True
    before_ns = min((each.at_ns for each in order if each.at_ns is not None), default=spec.FOREVER)
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
