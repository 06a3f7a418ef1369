"""Events of blocks, kind by kind; both machines stand behind each (see `Shop`).

What is promised of each cell is followed by events alone in every test that uses `Pair`.
"""

import numpy as np
import pytest

from engine import kernels, limits
from engine.block import Block, decode, encode
from engine.events import EVENT_BYTES, EXPIRED, UNTOLD, Events, events_of
from engine.machine import Machine
from engine.operations import Disposition, Flag, Kind, Request, line_id, pair_to_id
from engine.reference import Line
from engine.status import Status
from engine.traces import taken
from engine.views import HoldState
from tests.property.histories import BERLIN, BOSTON, EUR, linked, request
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    add_line,
    cancel,
    cancel_incoming,
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
    receive_of,
    release,
    reserve,
    sale,
    unfulfil,
)

COMMIT_NOW, PARTIAL = int(Flag.COMMIT_NOW), int(Flag.PARTIAL)
Told = tuple[int, tuple[int, int], int, bytes]


def told(shop: Shop) -> list[Told]:
    """(kind, cell, quantity, hold) of the events of the newest block."""
    return [
        (
            each["kind"],
            (each["sku"], each["location"]),
            each["quantity"],
            pair_to_id(each["hold_hi"], each["hold_lo"]).rstrip(b"\0"),
        )
        for each in shop.pair.events
    ]


def test_lines_that_name_their_cell_are_events_as_they_are() -> None:
    shop = Shop(tea=5)
    assert told(shop) == [(Kind.RECEIVE, TEA, 5, b"")]
    shop.answers(sale(1), sale(0), comes_back(1, Disposition.RESTOCK), count(7), name="a")
    assert told(shop) == [
        (Kind.SALE, TEA, 1, b""),
        (Kind.RETURN, TEA, 1, b""),
        (Kind.COUNT, TEA, 7, b""),
    ]
    assert [each["line"] for each in shop.pair.events] == [0, 2, 3]
    ops = {pair_to_id(each["op_hi"], each["op_lo"]) for each in shop.pair.events}
    assert ops == {hold_id("a")}


def test_an_order_is_told_by_the_id_of_its_hold() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("o", reserve(1), reserve(2, JAM))
    assert told(shop) == [(Kind.RESERVE, TEA, 1, b"o"), (Kind.RESERVE, JAM, 2, b"o")]
    shop.does(reserve(1), reserve(1), name="p")
    second = line_id(hold_id("p"), 1)
    assert [each[3] for each in told(shop)] == [b"p", second]


@pytest.mark.parametrize(
    "before",
    [
        sale(1), receive(1), receive_of("b", 1), count(1), expect(1), extend("h", 60_000),
        add_line("h", 1), cancel_incoming("b"),
    ],
)  # fmt: skip
def test_a_line_of_a_kind_that_links_nothing_is_in_no_order(before: Line) -> None:
    """It is refused for the flag alone: what is reserved behind it has its own line's id."""
    shop = Shop(tea=5)
    refused = before._replace(flags=int(Flag.LINKED))
    answers = shop.answers(refused, reserve(1), name="o")
    assert answers == [Status.INVALID_FLAGS, Status.OK]
    assert told(shop) == [(Kind.RESERVE, TEA, 1, line_id(hold_id("o"), 1))]
    assert shop.hold("o", 1).lines[0].pending == 1


def test_calls_on_a_whole_hold_are_told_cell_by_cell() -> None:
    shop = Shop(tea=9, jam=9)
    shop.holds("o", reserve(2), reserve(3, JAM))
    for call, kind in ((commit, Kind.COMMIT), (fulfil, Kind.FULFIL), (unfulfil, Kind.UNFULFIL)):
        shop.does(call("o"))
        assert told(shop) == [(kind, TEA, 2, b"o"), (kind, JAM, 3, b"o")]
    shop.does(cancel("o"))
    assert told(shop) == [(Kind.CANCEL, TEA, 2, b"o"), (Kind.CANCEL, JAM, 3, b"o")]
    shop.holds("p", reserve(1), reserve(1, JAM))
    shop.does(extend("p", 10**8))
    assert told(shop) == [(Kind.EXTEND, TEA, 1, b"p"), (Kind.EXTEND, JAM, 1, b"p")]
    shop.does(release("p"))
    assert told(shop) == [(Kind.RELEASE, TEA, 1, b"p"), (Kind.RELEASE, JAM, 1, b"p")]
    shop.does(add_line("q", 4))
    assert told(shop) == [(Kind.ADD_LINE, TEA, 4, b"q")]


def test_a_handover_is_told_with_its_moment_whether_a_count_has_seen_it_or_not() -> None:
    shop = Shop(tea=9, jam=9)
    shop.holds("o", reserve(2), reserve(3, JAM))
    shop.does(commit("o"))
    left = shop.now_ns
    shop.does(count(7))
    for call, kind in ((fulfil, Kind.FULFIL), (unfulfil, Kind.UNFULFIL)):
        shop.does(call("o", occurred_at_ns=left))
        assert told(shop) == [(kind, TEA, 2, b"o"), (kind, JAM, 3, b"o")]
        assert [each["occurred_at_ns"] for each in shop.pair.events] == [left, left]
    assert [shop.cell(key).on_hand for key in (TEA, JAM)] == [7, 9]


def test_the_rest_of_a_part_is_told_as_released() -> None:
    shop = Shop(tea=9)
    shop.holds("o", reserve(5))
    shop.does(commit("o", 2)._replace(flags=int(Flag.RELEASE_REST)))
    assert told(shop) == [(Kind.COMMIT, TEA, 2, b"o"), (Kind.RELEASE, TEA, 3, b"o")]


def test_a_superseded_hold_is_told_as_released_before_the_new_one() -> None:
    shop = Shop(tea=5, jam=5)
    shop.holds("old", reserve(2), reserve(1, JAM))
    shop.holds("new", instead_of("old", reserve(4)))
    assert told(shop) == [
        (Kind.RELEASE, TEA, 2, b"old"),
        (Kind.RELEASE, JAM, 1, b"old"),
        (Kind.RESERVE, TEA, 4, b"new"),
    ]


def test_a_line_that_allows_less_is_told_with_what_it_got() -> None:
    shop = Shop(tea=2, jam=5)
    lines = (reserve(5)._replace(flags=PARTIAL), reserve(1, JAM)._replace(flags=PARTIAL))
    shop.answers(*linked(lines), name="o")
    assert told(shop) == [(Kind.RESERVE, TEA, 2, b"o"), (Kind.RESERVE, JAM, 1, b"o")]


def test_a_move_is_told_at_both_ends() -> None:
    shop = Shop(tea=5)
    shop.does(receive(5, FAR))
    shop.holds("o", reserve(3))
    shop.does(move("o", BOSTON))
    assert told(shop) == [(Kind.MOVE, TEA, -3, b"o"), (Kind.MOVE, FAR, 3, b"o")]


def test_linked_moves_are_told_line_by_line() -> None:
    shop = Shop(tea=5, jam=5)
    far_jam = (JAM[0], BOSTON)
    shop.does(receive(5, FAR), receive(5, far_jam))
    shop.holds("o", reserve(3), reserve(2, JAM))
    shop.does(*linked([move("o", BOSTON, TEA, 3), move("o", BOSTON, JAM, 1)]))
    assert told(shop) == [
        (Kind.MOVE, TEA, -3, b"o"),
        (Kind.MOVE, FAR, 3, b"o"),
        (Kind.MOVE, JAM, -1, b"o"),
        (Kind.MOVE, far_jam, 1, b"o"),
    ]
    assert [each["line"] for each in shop.pair.events] == [0, 0, 1, 1]


def test_units_that_go_from_one_hold_to_another_are_told_of_both() -> None:
    shop = Shop(tea=5)
    shop.holds("a", reserve(3))
    shop.does(*hands_over("a", "b", 2))
    assert told(shop) == [(Kind.RELEASE, TEA, 2, b"a"), (Kind.ADD_LINE, TEA, 2, b"b")]


def test_a_taker_that_runs_out_as_it_is_called_on_is_told_by_its_own_name() -> None:
    shop = Shop(tea=9, expiries_per_block=1)
    for name in ("c", "b"):
        shop.holds(name, reserve(2))
    shop.holds("a", reserve(3, ttl_ms=10**6))
    shop.wait_until(shop.hold("b").deadline_ns + 1)
    refused = [Status.LINKED_LINE_REFUSED, Status.HOLD_EXPIRED]
    assert shop.answers(*hands_over("a", "b", 2)) == refused
    assert told(shop) == [(EXPIRED, TEA, 2, b""), (EXPIRED, TEA, 2, b"b")]


def test_holds_that_run_out_by_themselves_are_told_by_cell() -> None:
    shop = Shop(tea=9, jam=9)
    shop.holds("a", reserve(1), reserve(2, JAM))
    shop.holds("b", reserve(3))
    shop.wait_until(shop.hold("b").deadline_ns + 1)
    shop.does(sale(1))
    assert told(shop) == [(EXPIRED, TEA, 4, b""), (EXPIRED, JAM, 2, b""), (Kind.SALE, TEA, 1, b"")]


def test_a_hold_that_runs_out_as_it_is_called_on_is_told_and_the_call_is_not() -> None:
    shop = Shop(tea=9, expiries_per_block=1)
    for name in ("a", "b"):
        shop.holds(name, reserve(2))
    shop.wait_until(shop.hold("b").deadline_ns + 1)
    assert shop.answer(commit("b")) is Status.HOLD_EXPIRED
    assert told(shop) == [(EXPIRED, TEA, 2, b""), (EXPIRED, TEA, 2, b"b")]


@pytest.mark.parametrize("is_swept", [True, False])
def test_a_commit_that_reserves_again_is_told_as_such(is_swept: bool) -> None:
    shop = Shop(tea=9, expiries_per_block=1)
    for name in ("a", "b"):
        shop.holds(name, reserve(2))
    shop.wait_until(shop.hold("b").deadline_ns + 1)
    called = "a" if is_swept else "b"
    shop.does(commit(called)._replace(flags=int(Flag.RE_RESERVE)))
    own = [] if is_swept else [(EXPIRED, TEA, 2, b"b")]
    again = (Kind.RESERVE, TEA, 2, called.encode())
    assert told(shop) == [(EXPIRED, TEA, 2, b""), *own, again]
    assert shop.pair.events[-1]["flags"] & COMMIT_NOW
    assert shop.state(called) is HoldState.COMMITTED


def test_what_is_expected_no_more_is_told_by_cell() -> None:
    shop = Shop()
    shop.does(expect(5), name="po")
    assert told(shop) == [(Kind.EXPECT, TEA, 5, b"po")]
    shop.does(expect(1, JAM, "po"))
    shop.does(cancel_incoming("po"))
    assert told(shop) == [
        (Kind.CANCEL_INCOMING, TEA, 5, b"po"),
        (Kind.CANCEL_INCOMING, JAM, 1, b"po"),
    ]
    shop.does(expect(3), expect(2, JAM, "p1"), name="p1")
    shop.does(receive_of("p1", 3))
    shop.does(cancel_incoming("p1"))  # of the line that has come, nothing is outstanding
    assert told(shop) == [(Kind.CANCEL_INCOMING, JAM, 2, b"p1")]
    shop.does(expect(3), name="p2")
    shop.does(cancel_incoming("p2", 2, TEA))
    assert told(shop) == [(Kind.CANCEL_INCOMING, TEA, 2, b"p2")]


# --- what is chosen, and what blocks do not tell ----------------------------------------------------


def machine_with(skus: int) -> Machine:
    machine = Machine()
    machine.set_sku_limit(skus)
    machine.set_location(BERLIN, owned=True, currency=EUR)
    return machine


def applied(machine: Machine, now_ns: int, asked: Request) -> Block:
    outcome = machine.apply(now_ns, [asked])
    return Block(
        0, 1, 1, now_ns, 0, machine.state_hash, machine.sku_limit, [], [asked], outcome.status,
        outcome.image, traces=outcome.traces,
    )  # fmt: skip


def keys(machine: Machine) -> np.ndarray:  # type: ignore[type-arg]
    return machine.state.cells[:, kernels.KEY]


def test_only_those_of_the_cells_asked_for_are_chosen() -> None:
    machine = machine_with(5)
    block = applied(machine, 1, request(bytes(16), [receive(n, (n, BERLIN)) for n in range(1, 6)]))
    events = events_of(block, keys(machine))
    ids = [np.array(each, np.int64) for each in ([BERLIN], [2, 4, 9], [7])]
    assert events.chosen(None, None).tolist() == [0, 1, 2, 3, 4]
    assert events.chosen(ids[0], ids[1]).tolist() == [1, 3]
    assert events.chosen(ids[0], ids[1], seen=2).tolist() == [3]
    assert events.chosen(ids[2], None).tolist() == []
    some = events.taken(events.chosen(None, ids[1]))
    assert isinstance(some, Events)
    assert some.columns["number"].tolist() == [1, 3]
    assert some.nbytes == 2 * EVENT_BYTES


def test_an_opening_block_has_no_events() -> None:
    block = decode(encode(Block(0, 2, 0, 1, 0, 0, 0, nonce=b"n"))[0])
    assert len(events_of(block, np.zeros(0, np.int64))) == 0


def test_a_block_with_too_many_traces_says_which_cells_it_changed_besides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_TRACES_OF_BLOCK", 2)
    machine = machine_with(3)
    cells = [(sku, BERLIN) for sku in (1, 2, 3)]
    machine.apply(1, [request(bytes(16), [receive(9, cell) for cell in cells])])
    for name, size in (("a", 2), ("b", 3)):
        lines = linked([reserve(1, cell) for cell in cells[:size]])
        machine.apply(machine.now_ns + 1, [request(hold_id(name), lines)])
    few = applied(machine, 10, request(hold_id("c"), [commit("a")]))
    assert few.traces is not None
    assert [len(few.traces), few.traces.swept] == [2, 0]
    many = decode(encode(applied(machine, 11, request(hold_id("d"), [commit("b"), sale(1)])))[0])
    assert many.traces is None
    events = events_of(many, keys(machine)).columns
    assert events["kind"].tolist() == [Kind.SALE, UNTOLD, UNTOLD, UNTOLD]
    assert events["sku"].tolist() == [1, 1, 2, 3]
    assert events["number"].tolist() == [0, 1, 2, 3]
    assert taken(machine.state) is None


def test_a_sweep_of_more_cells_than_are_traced_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TRACES_OF_BLOCK", 2)
    machine = machine_with(3)
    cells = [(sku, BERLIN) for sku in (1, 2, 3)]
    machine.apply(1, [request(bytes(16), [receive(9, cell) for cell in cells])])
    machine.apply(2, [request(hold_id("a"), linked([reserve(1, cell) for cell in cells]))])
    block = applied(machine, 10**15, request(hold_id("b"), [sale(1)]))
    events = events_of(decode(encode(block)[0]), keys(machine)).columns
    assert events["kind"].tolist() == [Kind.SALE, UNTOLD, UNTOLD, UNTOLD]
