"""Which holds a fact endangers that leaves less than nothing. Both machines name the same ones."""

from typing import Any

import pytest

from engine import kernels, limits
from engine.kernels import HOLDS_MADE, SERIALS
from engine.machine import Machine, Outcome
from engine.operations import Disposition, Flag, Kind, Request, id_to_pair
from engine.reference import Line, ReferenceMachine
from engine.shortages import of_request, packed_endangered, unpacked_endangered
from engine.views import Endangered, EndangeredHold
from tests.property.histories import BERLIN, LOCATIONS, MS, line, linked, request
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    adjust,
    comes_back,
    commit,
    count,
    expect,
    fulfil,
    hands_over,
    hold_id,
    move,
    receive,
    receive_of,
    release,
    reserve,
    safety_stock,
    sale,
    unfulfil,
)


def busy(names: str, units: int = 2) -> Shop:
    """A shop whose tea is all held: `units` by each of the holds, in the order of their names."""
    shop = Shop(tea=units * len(names), jam=5)
    for name in names:
        shop.holds(name, reserve(units))
    return shop


def test_a_fact_names_what_it_endangers() -> None:
    shop = busy("abc")
    shop.does(sale(3))
    (entry,) = shop.pair.endangered
    assert (entry.line, entry.sku, entry.location, entry.units) == (0, *TEA, 3)
    assert entry.holds == (
        EndangeredHold(hold_id("c"), 2, 0),
        EndangeredHold(hold_id("b"), 2, 0),
    )


@pytest.mark.parametrize(
    "fact", [sale(2), adjust(-2), count(4), safety_stock(2)], ids=lambda each: Kind(each.kind).name
)
def test_all_facts_that_take_stock_away_do(fact: Line) -> None:
    shop = busy("abc")
    shop.does(fact)
    assert shop.endangered() == [[("c", 2, 0)]]


def test_what_lets_nothing_less_be_available_names_nobody() -> None:
    shop = busy("abc")
    shop.does(sale(5))
    shop.does(receive(1), comes_back(1, Disposition.RESTOCK), sale(1, JAM), commit("a"))
    assert shop.available() == -3
    assert shop.endangered() == []


def test_goods_that_come_back_and_are_set_aside_help_nobody() -> None:
    """They leave what is available as it is; here that is less than nothing."""
    shop = busy("ab")
    shop.does(sale(1))
    shop.does(comes_back(1, Disposition.DAMAGED))
    assert shop.endangered() == [[("b", 2, 0)]]


MINUTE = 60_000 * MS


def test_what_had_left_before_a_count_is_promised_no_more() -> None:
    shop = busy("a")
    shop.does(commit("a"), receive(2))
    shop.holds("b", reserve(2, ttl_ms=900_000))
    shop.wait(MINUTE)
    shop.does(count(2))  # the order has left by now, but nobody has said so
    assert shop.endangered() == [[("b", 2, 0)]]
    shop.does(fulfil("a", occurred_at_ns=shop.now_ns - MINUTE), count(3, JAM))
    assert (shop.available(), shop.endangered()) == (0, [])


def handed_over(**units: int) -> tuple[Shop, int]:
    """A shop that has handed over two each of tea and jam; when; the rest is counted, and held."""
    shop = Shop(tea=4, jam=4)
    shop.holds("order", reserve(1, JAM), reserve(1), reserve(1), reserve(1, JAM))
    shop.does(commit("order"), fulfil("order"))
    handed = shop.now_ns
    shop.wait(MINUTE)
    for name, held in units.items():
        shop.holds(name, reserve(held, {"jam": JAM, "tea": TEA}[name], ttl_ms=900_000))
    shop.does(count(2), count(2, JAM))
    return shop, handed


def test_a_handover_that_had_failed_before_a_count_names_what_it_endangers() -> None:
    """The goods were on the shelf when it was counted: promised again, and no more than there was."""
    shop, handed = handed_over(jam=2, tea=2)
    shop.does(sale(1, (3, BERLIN)), unfulfil("order", occurred_at_ns=handed))
    found = shop.pair.endangered
    assert [(each.line, each.sku, each.units) for each in found] == [
        (0, 3, 1),
        (1, 1, 2),
        (1, 2, 2),
    ]
    assert shop.endangered() == [[], [("tea", 2, 0)], [("jam", 2, 0)]]
    assert unpacked_endangered(packed_endangered(found)) == found


def test_a_handover_that_failed_names_nobody_where_the_goods_are_back_on_the_shelf() -> None:
    for occurred_at_ns in (0, 1):
        shop, _ = handed_over(jam=2, tea=2)
        shop.does(sale(1), sale(1, JAM))
        shop.does(unfulfil("order", occurred_at_ns=occurred_at_ns and shop.now_ns))
        assert (shop.available(), shop.available(JAM), shop.endangered()) == (-1, -1, [])


def test_a_handover_that_failed_names_the_cells_alone_that_it_leaves_short() -> None:
    shop, handed = handed_over(jam=2)
    shop.does(unfulfil("order", 1, TEA, occurred_at_ns=handed))
    assert (shop.available(), shop.endangered()) == (1, [])
    shop.does(unfulfil("order", occurred_at_ns=handed))
    assert (shop.available(), shop.endangered()) == (0, [[("jam", 2, 0)]])


def test_each_failed_handover_of_a_block_is_told_of_its_own_cells() -> None:
    shop, handed = handed_over(jam=2, tea=2)
    shop.does(
        unfulfil("order", 1, JAM, occurred_at_ns=handed),
        receive(1, (3, BERLIN)),
        fulfil("order", 1, JAM, occurred_at_ns=handed),
        unfulfil("order", 1, TEA, occurred_at_ns=handed),
        unfulfil("order", 2, JAM, occurred_at_ns=handed),
    )
    assert [(each.line, each.sku, each.units) for each in shop.pair.endangered] == [
        (0, 2, 2), (3, 1, 1), (4, 2, 2),
    ]  # fmt: skip


def test_pending_holds_come_before_committed_ones_and_new_before_old() -> None:
    shop = busy("abcde")
    shop.does(commit("d"), commit("e", 1), commit("b"))
    shop.does(sale(10))
    assert shop.endangered() == [[("e", 1, 1), ("c", 2, 0), ("a", 2, 0), ("d", 0, 2), ("b", 0, 2)]]


def test_holds_that_keep_nothing_are_not_endangered() -> None:
    shop = busy("abc")
    shop.does(release("a"))
    shop.does(commit("b"), fulfil("b"))
    shop.does(sale(9))
    assert shop.endangered() == [[("c", 2, 0)]]


def test_no_more_are_named_than_cover_the_shortage() -> None:
    shop = busy("abc")
    for units, named in ((1, ["c"]), (1, ["c"]), (1, ["c", "b"]), (9, ["c", "b", "a"])):
        shop.does(sale(units))
        assert [[name for name, *_ in each] for each in shop.endangered()] == [named]


def test_a_shortage_is_judged_after_the_whole_block() -> None:
    shop = busy("abc")
    shop.does(sale(3), receive(3))
    assert shop.pair.endangered == ()
    shop.does(sale(1), receive(1), sale(1, JAM), sale(1), sale(5, JAM))
    assert [(each.line, each.sku, each.units) for each in shop.pair.endangered] == [
        (0, 1, 1), (2, 2, 1), (3, 1, 1), (4, 2, 1),
    ]  # fmt: skip
    assert shop.endangered() == [[("c", 2, 0)], [], [("c", 2, 0)], []]


def test_a_fact_that_is_refused_names_nobody() -> None:
    shop = busy("abc")
    shop.does(sale(1))
    shop.answer(sale(0), sale(-1))
    assert shop.pair.endangered == ()


def test_the_lines_of_one_order_on_a_cell_are_named_in_order() -> None:
    shop = Shop(tea=9, jam=9)
    shop.holds("order", reserve(1), reserve(2, JAM), reserve(3), reserve(5))
    shop.does(count(0))
    assert shop.endangered() == [[("order", 1, 0), ("order", 3, 0), ("order", 5, 0)]]


def test_incoming_records_are_not_endangered() -> None:
    shop = busy("a")
    shop.does(expect(5, TEA, "on its way"), expect(4, TEA, "came"), receive_of("came", 4))
    shop.does(count(0))
    assert shop.endangered() == [[("a", 2, 0)]]


def test_slots_of_forgotten_holds_and_records_are_passed_over() -> None:
    shop = Shop(tea=9, resolved_remembered=1)
    shop.does(expect(4, TEA, "came"))
    for name in "abc":
        shop.holds(name, reserve(3))
    shop.does(receive_of("came", 4), release("b"), sale(1, hold=hold_id("forgets it")))
    assert shop.pair.machine.incoming(hold_id("came")) is None
    shop.does(count(0))
    assert shop.endangered() == [[("c", 3, 0), ("a", 3, 0)]]
    shop.does(count(9))
    shop.holds("d", reserve(1))  # in a slot that was used before
    shop.does(count(0))
    assert shop.endangered() == [[("d", 1, 0), ("c", 3, 0), ("a", 3, 0)]]


def test_the_newest_are_named_however_the_slots_are_used() -> None:
    """Slots that become free are used again, the last one first, so that age runs the other way."""
    shop = Shop(tea=200, resolved_remembered=1)
    for number in range(100):
        shop.holds(f"old {number}", reserve(1))
    for number in reversed(range(100)):
        shop.does(release(f"old {number}"))
    for number in range(99):
        shop.holds(f"new {number}", reserve(1))
    shop.does(count(0))
    most = limits.MAX_ENDANGERED
    assert shop.endangered() == [[(f"new {number}", 1, 0) for number in range(98, 98 - most, -1)]]
    shop.does(count(97))
    assert shop.endangered() == [[("new 98", 1, 0), ("new 97", 1, 0)]]


def test_a_pending_hold_takes_the_place_of_a_committed_one_when_there_are_too_many() -> None:
    most = limits.MAX_ENDANGERED
    shop = Shop(tea=most + 1)
    for number in range(most + 1):
        shop.holds(f"{number}", reserve(1))
    shop.does(*[commit(f"{number}") for number in range(1, most + 1)])
    shop.does(count(0))
    committed = [(f"{number}", 0, 1) for number in range(most, 1, -1)]
    assert shop.endangered() == [[("0", 1, 0), *committed]]


def test_it_does_so_too_when_not_all_lines_that_there_are_can_be_noted() -> None:
    shop = Shop(tea=2000)
    for number in range(70):
        shop.holds(f"{number}", reserve(20))
    shop.does(*[commit(f"{number}") for number in range(1, 70)])
    shop.does(count(0))
    committed = [(f"{number}", 0, 20) for number in range(69, 6, -1)]
    assert shop.endangered() == [[("0", 20, 0), *committed]]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each look for endangered holds, whether it was at all lines there are."""
    seen: list[bool] = []
    original = kernels.find_endangered

    def find(*given: Any) -> int:
        seen.append(not len(given[-1]))
        return int(original(*given))

    monkeypatch.setattr(kernels, "find_endangered", find)
    return seen


def test_a_cell_that_stays_short_is_looked_for_once(scans: list[bool]) -> None:
    """Whatever becomes of what is promised on it, as long as nothing is promised anew."""
    shop = busy("abcd")
    shop.does(sale(3))
    assert (shop.endangered(), scans) == ([[("d", 2, 0), ("c", 2, 0)]], [True])
    scans.clear()
    shop.does(sale(1), sale(1))
    shop.does(commit("d", 1, TEA))
    shop.does(release("c"))
    shop.does(sale(1))
    assert shop.endangered() == [[("d", 1, 1), ("b", 2, 0)]]
    shop.does(fulfil("d", 1, TEA))
    shop.does(sale(3))
    assert shop.endangered() == [[("d", 1, 0), ("b", 2, 0), ("a", 2, 0)]]
    assert scans == [False] * 3


def test_a_cell_with_more_holds_than_are_named_is_looked_for_once_too(scans: list[bool]) -> None:
    most = limits.MAX_ENDANGERED
    shop = Shop(tea=most + 3, jam=most)
    names = [f"{number}" for number in range(most + 3)]
    for name in names:
        shop.holds(name, reserve(1))
    for name in names[:most]:
        shop.holds(f"jam {name}", reserve(1, JAM))
    shop.does(release("1"), commit("2"))
    shop.does(count(0), count(0, JAM))
    first = [(name, 1, 0) for name in names[:2:-1]]
    assert shop.endangered() == [
        first[:most],
        [(f"jam {name}", 1, 0) for name in names[most - 1 :: -1]],
    ]
    for name in names[:4:-1]:
        shop.does(release(name), sale(1))
    assert shop.endangered() == [[("4", 1, 0), ("3", 1, 0), ("0", 1, 0), ("2", 0, 1)]]
    assert scans == [True] + [False] * len(names[:4:-1])


def test_of_very_many_lines_only_those_are_remembered_that_were_short_last(
    scans: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = busy("abc")
    shop.holds("of jam", reserve(5, JAM))
    monkeypatch.setattr(limits, "REMEMBERED_SHORT_LINES", 3)
    for cell in (TEA, TEA, JAM, JAM, TEA):
        shop.does(sale(1, cell))
    assert scans == [True, False, True, False, True]
    monkeypatch.setattr(limits, "REMEMBERED_SHORT_LINES", 2)
    shop.does(sale(1), sale(1, JAM))
    shop.does(sale(1))
    assert scans == [True, False, True, False, True, True, True]


def test_more_holds_than_are_named_are_remembered_of_1024_lines_at_most(scans: list[bool]) -> None:
    """Whatever quantity each is of: five orders of 250 g are 1,250 units."""
    shop = Shop(tea=250 * 1024)
    shop.does(*[reserve(250)] * 1022)
    for name in ("last but one", "last"):
        shop.holds(name, reserve(250))
    shop.does(expect(5, TEA, "comes"))  # promised to nobody
    for _ in range(3):
        shop.does(sale(1))
    assert shop.endangered() == [[("last", 250, 0)]]
    assert scans == [True, False, False]
    scans.clear()
    shop.does(receive(4))
    shop.holds("one", reserve(1))
    for _ in range(3):
        shop.does(sale(1))
    assert shop.endangered() == [[("one", 1, 0), ("last", 250, 0)]]
    assert scans == [False, True, True, True]  # what was noted is not looked at again and again
    scans.clear()
    shop.does(release("last but one"))
    for units in (250, 1):
        shop.does(sale(units))
    assert shop.endangered() == [[("one", 1, 0), ("last", 250, 0)]]
    assert scans == [True, False]


def test_of_very_many_lines_so_many_are_remembered_as_are_named(
    scans: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHORT_LINES_NOTED", 1)
    shop = Shop(tea=2000)
    for number in range(64):
        shop.holds(f"{number}", reserve(1))
    shop.holds("many", reserve(1936))
    for _ in range(3):
        shop.does(sale(1))
    assert scans == [True, True, True]  # there is a line more
    scans.clear()
    shop.does(release("0"))
    for _ in range(3):
        shop.does(sale(1))
    assert shop.endangered() == [[("many", 1936, 0)]]
    assert scans == [True, False, False]


def test_cells_of_which_nothing_is_promised_are_not_looked_for(scans: list[bool]) -> None:
    shop = Shop(tea=1, jam=1)
    shop.does(sale(2), sale(3, JAM))
    assert (shop.endangered(), scans) == ([[], []], [])
    assert [each.units for each in shop.pair.endangered] == [1, 2]


def test_what_is_promised_anew_on_a_short_cell_is_found(scans: list[bool]) -> None:
    shop = busy("abc")
    shop.does(sale(1))
    shop.does(*hands_over("a", "new", 1))
    scans.clear()
    shop.does(sale(1))
    assert (shop.endangered(), scans) == ([[("new", 1, 0), ("c", 2, 0)]], [False, True])
    shop.does(sale(1))
    assert shop.endangered() == [[("new", 1, 0), ("c", 2, 0)]]
    assert scans == [False, True, False]


def test_a_line_that_was_found_on_two_cells_is_one(scans: list[bool]) -> None:
    shop = busy("ab")
    shop.does(receive(2, FAR))
    shop.does(sale(1))
    shop.does(move("b", FAR[1]))
    shop.does(sale(1, FAR))
    scans.clear()
    shop.does(sale(3), sale(1, FAR))
    assert shop.endangered() == [[("a", 2, 0)], [("b", 2, 0)]]
    assert scans == [False]


def test_only_the_cells_that_were_short_last_are_remembered(
    scans: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = busy("ab")
    shop.holds("of jam", reserve(5, JAM))
    monkeypatch.setattr(limits, "REMEMBERED_SHORT_CELLS", 1)
    for cell in (TEA, JAM, JAM, TEA):
        shop.does(sale(1, cell))
    assert scans == [True, True, False, True]
    monkeypatch.setattr(limits, "SHORT_CELLS_NOTED", 0)
    shop.does(sale(1))
    assert scans == [True, True, False, True, True]


def test_age_is_told_across_the_wrap_of_the_serial_numbers() -> None:
    machine = stocked(Machine(), 1)
    machine.state.meta[HOLDS_MADE] = SERIALS - 2
    for number in range(5):
        machine.apply(10 + number, [request(bytes([number]) * 16, [reserve(1, (1, BERLIN))])])
    outcome = machine.apply(20, [request(b"f" * 16, [count(0, (1, BERLIN))])])
    assert [each.hold_id[0] for each in outcome.endangered[0].holds] == [4, 3, 2, 1, 0]


Two = Machine | ReferenceMachine


def stocked(machine: Two, cells: int) -> Two:
    machine.set_sku_limit(cells)
    machine.set_location(BERLIN, **LOCATIONS[BERLIN])
    lines = [receive(1000, (sku, BERLIN)) for sku in range(1, cells + 1)]
    machine.apply(1, [request(b"stock" + bytes(11), lines)])
    return machine


def test_the_facts_of_one_block_name_so_many_at_most() -> None:
    cells = limits.MAX_ENDANGERED_OF_BLOCK // limits.MAX_ENDANGERED + 2
    asked = [
        [
            request(sku.to_bytes(14, "big") + bytes(2), [reserve(1, (sku, BERLIN))] * 65)
            for sku in range(1, cells + 1)
        ],
        [request(b"count" + bytes(11), [count(0, (sku, BERLIN)) for sku in range(cells, 0, -1)])],
    ]
    machine, reference = stocked(Machine(), cells), stocked(ReferenceMachine(), cells)
    for at, requests in enumerate(asked):
        outcome, expected = machine.apply(2 + at, requests), reference.apply(2 + at, requests)
        assert outcome.endangered == expected.endangered
    named = [len(each.holds) for each in outcome.endangered]
    assert named == [limits.MAX_ENDANGERED] * (cells - 2) + [0, 0]
    assert [each.sku for each in outcome.endangered] == list(range(cells, 0, -1))


def test_the_failed_handovers_of_one_block_leave_so_many_cells_short_at_most() -> None:
    cells = limits.MAX_HOLD_LINES
    ids = [bytes([at, *bytes(15)]) for at in range(1, limits.MAX_SHORTAGES_OF_BLOCK // cells + 2)]
    now = [reserve(1, (sku, BERLIN), flags=int(Flag.COMMIT_NOW)) for sku in range(1, cells + 1)]
    named = [dict(zip(("hold_hi", "hold_lo"), id_to_pair(each), strict=True)) for each in ids]
    handed = [line(Kind.FULFIL)._replace(**each) for each in named]
    failed = [line(Kind.UNFULFIL, occurred_at_ns=1)._replace(**each) for each in named]
    asked = [
        [request(each, linked(now)) for each in ids],
        [request(b"handed" + bytes(10), handed)],
        [request(b"count" + bytes(11), [count(0, (sku, BERLIN)) for sku in range(1, cells + 1)])],
        [request(b"failed" + bytes(10), failed)],
    ]
    machine, reference = stocked(Machine(), cells), stocked(ReferenceMachine(), cells)
    for at, requests in enumerate(asked):
        outcome, expected = machine.apply(2 + at, requests), reference.apply(2 + at, requests)
        assert outcome.endangered == expected.endangered
    assert len(ids) * cells > len(outcome.endangered) == limits.MAX_SHORTAGES_OF_BLOCK
    assert sum(
        len(holds) for holds in {each.sku: each.holds for each in expected.endangered}.values()
    ) == (limits.MAX_ENDANGERED_OF_BLOCK)


def test_a_shortage_ends_when_stock_returns() -> None:
    shop = busy("abc")
    shop.does(sale(3))
    assert shop.pair.machine.shortages == 1
    shop.does(receive(2))
    assert shop.pair.machine.shortages == 1
    shop.does(receive(1))
    assert shop.pair.machine.shortages == 0
    assert shop.pair.endangered == ()


def test_a_replay_need_not_look_for_them() -> None:
    machine = stocked(Machine(), 1)
    machine.apply(2, [request(bytes(16), [reserve(3, (1, BERLIN))])])
    fact: list[Request] = [request(b"f" * 16, [count(0, (1, BERLIN))])]
    outcome: Outcome = machine.apply(3, fact, names_endangered=False)
    assert outcome.endangered == ()
    assert machine.shortages == 1


def test_a_block_is_cut_into_its_requests() -> None:
    entries = tuple(Endangered(at, 1, 2, 3, ()) for at in (0, 2, 3, 7))
    assert of_request(entries, 0, 2) == (entries[0],)
    assert of_request(entries, 2, 4) == (
        Endangered(0, 1, 2, 3, ()),
        Endangered(1, 1, 2, 3, ()),
    )
    assert of_request(entries, 4, 7) == ()
    assert of_request(entries, 7, 8) == (Endangered(0, 1, 2, 3, ()),)
