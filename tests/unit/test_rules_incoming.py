"""What is on its way: records of purchase orders and transfers. Both machines answer each rule."""

import pytest

from engine import limits
from engine.kernels import INCOMING
from engine.machine import Machine
from engine.operations import HOLD_KINDS, Flag, Kind
from engine.reference import Key, Line, ReferenceMachine
from engine.status import Status
from engine.views import DatedIncoming, HoldState
from tests.property.histories import (
    BERLIN,
    ELSEWHERE,
    LOCATIONS,
    MS,
    SKUS,
    SPLIT,
    UNKNOWN,
    line,
    request,
)
from tests.property.shop import (
    FAR,
    JAM,
    TEA,
    Shop,
    cancel_incoming,
    expect,
    hold_id,
    receive_of,
    release,
    reserve,
)

CUPS: Key = (3, BERLIN)
JUNE_MS, JULY_MS = 1_780_272_000_000, 1_782_864_000_000


def test_what_is_expected_is_incoming_and_not_available() -> None:
    shop = Shop()
    shop.does(expect(10, TEA, "order"), expect(4, JAM, "order", at_ms=JUNE_MS))
    assert (shop.cell(TEA).incoming, shop.cell(JAM).incoming) == (10, 4)
    assert (shop.cell(TEA).on_hand, shop.available()) == (0, 0)
    record = shop.record("order")
    assert (record.state, record.expected_at_ns) == (HoldState.INCOMING, JUNE_MS * MS)
    assert [(each.sku, each.location) for each in record.lines] == [TEA, JAM]
    assert shop.on_its_way("order") == [(10, 10, 0), (4, 4, 0)]
    assert shop.answer(reserve(1), name="too early") is Status.INSUFFICIENT_STOCK


def test_a_line_that_names_no_record_makes_one_with_its_own_id() -> None:
    shop = Shop()
    shop.does(expect(10), expect(4, JAM), name="order")
    assert shop.on_its_way("order") == [(10, 10, 0)]
    second = hold_id("order")[:-1] + b"\1"
    assert shop.pair.machine.incoming(second) == shop.pair.reference.incoming(second)
    assert shop.cell(JAM).incoming == 4


def test_more_of_a_cell_that_is_expected_adds_to_its_line() -> None:
    shop = Shop()
    shop.does(expect(10, TEA, "order"), expect(5, TEA, "order"))
    assert shop.on_its_way("order") == [(15, 15, 0)]
    assert shop.cell().incoming == 15


def test_the_newest_date_is_the_whole_records() -> None:
    shop = Shop()
    shop.does(expect(1, TEA, "order", at_ms=JUNE_MS), expect(1, JAM, "order"))
    assert shop.record("order").expected_at_ns == JUNE_MS * MS
    shop.does(expect(1, JAM, "order", at_ms=JULY_MS))
    assert shop.record("order").expected_at_ns == JULY_MS * MS
    assert {each.expected_at_ns for each in shop.pair.machine.incoming_of([TEA, JAM])} == {
        JULY_MS * MS
    }


def test_goods_that_arrive_in_parts_leave_incoming_for_on_hand() -> None:
    shop = Shop()
    shop.does(expect(10, TEA, "order"), expect(2, JAM, "order"))
    shop.does(receive_of("order", 4))
    assert (shop.cell().on_hand, shop.cell().incoming) == (4, 6)
    assert shop.on_its_way("order") == [(10, 6, 4), (2, 2, 0)]
    shop.does(receive_of("order", 6))
    assert shop.record("order").state is HoldState.INCOMING
    shop.does(receive_of("order", 2, JAM))
    assert shop.record("order").state is HoldState.RECEIVED
    assert shop.on_its_way("order") == [(10, 0, 10), (2, 0, 2)]
    assert (shop.cell(JAM).on_hand, shop.cell(JAM).incoming) == (2, 0)


def test_more_than_was_expected_is_recorded() -> None:
    shop = Shop()
    shop.does(expect(3, TEA, "order"))
    shop.does(receive_of("order", 5))
    assert (shop.cell().on_hand, shop.cell().incoming) == (5, 0)
    assert shop.on_its_way("order") == [(3, 0, 5)]
    shop.does(receive_of("order", 1))  # late, and recorded too
    assert shop.on_its_way("order") == [(3, 0, 6)]
    assert shop.cell().on_hand == 6


def test_goods_that_nobody_expected_are_recorded_with_the_record() -> None:
    shop = Shop()
    shop.does(expect(3, TEA, "order", at_ms=JUNE_MS))
    shop.does(receive_of("order", 2, JAM))
    assert shop.on_its_way("order") == [(3, 3, 0), (0, 0, 2)]
    assert (shop.cell(JAM).on_hand, shop.cell(JAM).incoming) == (2, 0)
    shop.does(receive_of("order", 3))
    assert shop.record("order").state is HoldState.RECEIVED
    shop.does(receive_of("order", 1, CUPS))  # of a record that is resolved
    assert shop.on_its_way("order") == [(3, 0, 3), (0, 0, 2), (0, 0, 1)]


def test_a_receipt_against_no_known_record_is_refused() -> None:
    shop = Shop(tea=1)
    assert shop.answer(receive_of("nothing", 4)) is Status.UNKNOWN_HOLD
    assert shop.cell().on_hand == 1


def test_what_will_not_come_is_incoming_no_more() -> None:
    shop = Shop()
    shop.does(expect(10, TEA, "order"), expect(4, JAM, "order"))
    shop.does(cancel_incoming("order", 3, TEA))
    assert (shop.cell(TEA).incoming, shop.cell(JAM).incoming) == (7, 4)
    assert shop.on_its_way("order") == [(10, 7, 0), (4, 4, 0)]
    shop.does(cancel_incoming("order"))
    assert (shop.cell(TEA).incoming, shop.cell(JAM).incoming) == (0, 0)
    assert shop.on_its_way("order") == [(10, 0, 0), (4, 0, 0)]
    assert shop.record("order").state is HoldState.DROPPED


def test_the_differences_of_a_record_stay_known() -> None:
    """Ten were expected, four came, six never will; and then one came after all."""
    shop = Shop()
    shop.does(expect(10, TEA, "order"))
    shop.does(receive_of("order", 4))
    shop.does(cancel_incoming("order"))
    assert shop.record("order").state is HoldState.RECEIVED
    assert shop.on_its_way("order") == [(10, 0, 4)]
    assert (shop.cell().on_hand, shop.cell().incoming) == (4, 0)
    shop.does(expect(10, TEA, "other"))
    shop.does(cancel_incoming("other"))
    shop.does(receive_of("other", 1))
    assert shop.record("other").state is HoldState.RECEIVED
    assert shop.on_its_way("other") == [(10, 0, 1)]


def test_a_part_of_several_lines_needs_the_name_of_its_cell() -> None:
    shop = Shop()
    shop.does(expect(10, TEA, "one"), expect(10, TEA, "two"), expect(4, JAM, "two"))
    shop.does(cancel_incoming("one", 2))
    assert shop.on_its_way("one") == [(10, 8, 0)]
    assert shop.answer(cancel_incoming("two", 2)) is Status.NOT_IN_HOLD
    assert shop.answer(cancel_incoming("two", 2, CUPS)) is Status.NOT_IN_HOLD
    assert shop.answer(cancel_incoming("one", 2, JAM)) is Status.NOT_IN_HOLD
    assert shop.answer(cancel_incoming("two", 5, JAM)) is Status.EXCEEDS_HOLD
    shop.does(cancel_incoming("two", 4, JAM))
    assert shop.on_its_way("two") == [(10, 10, 0), (4, 0, 0)]


def test_a_record_is_resolved_once() -> None:
    shop = Shop()
    shop.does(expect(10, TEA, "order"))
    shop.does(cancel_incoming("order"))
    assert shop.answer(cancel_incoming("order")) is Status.HOLD_NOT_PENDING
    assert shop.answer(expect(1, TEA, "order")) is Status.HOLD_NOT_PENDING
    assert shop.cell().incoming == 0


def test_records_that_are_resolved_are_remembered_with_the_holds() -> None:
    shop = Shop(tea=9, resolved_remembered=2)
    shop.does(expect(10, TEA, "order"), expect(1, JAM, "order"))
    shop.does(cancel_incoming("order"))
    for name in ("first", "second"):
        shop.holds(name, reserve(1))
    shop.does(release("first"))
    assert shop.record("order").state is HoldState.DROPPED
    shop.does(release("second"))
    assert shop.pair.machine.incoming(hold_id("order")) is None
    assert shop.answer(cancel_incoming("order")) is Status.UNKNOWN_HOLD
    assert shop.answer(receive_of("order", 1)) is Status.UNKNOWN_HOLD
    shop.does(expect(10, TEA, "order"))  # the id is free again


def test_what_was_received_is_not_forgotten_for_baskets_that_were_left() -> None:
    shop = Shop(tea=9, resolved_remembered=2)
    shop.does(expect(1, TEA, "order"))
    shop.does(receive_of("order", 1))
    for name in ("first", "second", "third"):
        shop.holds(name, reserve(1))
        shop.does(release(name))
    assert shop.record("order").state is HoldState.RECEIVED
    shop.does(receive_of("order", 2))  # a surplus that is told late
    assert shop.cell().on_hand == 12


def test_a_record_of_which_more_comes_when_it_is_resolved_is_remembered_once() -> None:
    shop = Shop(resolved_remembered=2)
    shop.does(expect(1, TEA, "order"), expect(1, TEA, "other"))
    for name in ("order", "order", "other"):
        shop.does(receive_of(name, 1))
    for name in ("order", "other"):
        assert shop.record(name).state is HoldState.RECEIVED


@pytest.mark.parametrize(
    "call",
    [
        *(line(kind, hold=hold_id("order")) for kind in (*HOLD_KINDS, Kind.UNFULFIL)),
        line(Kind.EXTEND, value=50, hold=hold_id("order")),
        line(Kind.MOVE, FAR, hold=hold_id("order")),
        line(Kind.ADD_LINE, TEA, 1, 50, hold=hold_id("order")),
        line(Kind.CLAIM_RETURN, TEA, 1, hold=hold_id("order")),
        line(Kind.RETURN, TEA, 1, hold=hold_id("order")),
    ],
    ids=lambda call: Kind(call.kind).name,
)
def test_a_record_is_no_hold(call: Line) -> None:
    shop = Shop(tea=5)
    shop.does(expect(10, TEA, "order"))
    assert shop.answer(call) is Status.UNKNOWN_HOLD
    assert shop.pair.machine.hold(hold_id("order")) is None
    shop.does(receive_of("order", 10))
    assert shop.answer(call) is Status.UNKNOWN_HOLD
    assert shop.on_its_way("order") == [(10, 0, 10)]


def test_an_order_in_place_of_a_record_is_a_plain_one() -> None:
    shop = Shop(tea=5)
    shop.does(expect(10, TEA, "order"))
    superseding = int(Flag.SUPERSEDE)
    shop.does(reserve(1, hold=hold_id("order"), flags=superseding), name="plain")
    assert shop.on_its_way("order") == [(10, 10, 0)]


def test_the_id_of_a_record_is_no_sales_id() -> None:
    shop = Shop(tea=5)
    shop.does(expect(10, TEA, "order"))
    assert shop.answer(line(Kind.SALE, TEA, 1, hold=hold_id("order"))) is Status.HOLD_EXISTS


def test_a_hold_is_no_record() -> None:
    shop = Shop(tea=5)
    shop.holds("hold", reserve(2))
    assert shop.answer(cancel_incoming("hold")) is Status.UNKNOWN_HOLD
    assert shop.answer(receive_of("hold", 1)) is Status.UNKNOWN_HOLD
    assert shop.pair.machine.incoming(hold_id("hold")) is None


def test_an_id_is_a_holds_or_a_records() -> None:
    shop = Shop(tea=5)
    shop.holds("hold", reserve(2))
    assert shop.answer(expect(1, TEA, "hold")) is Status.HOLD_EXISTS
    assert shop.answer(expect(1), name="hold") is Status.HOLD_EXISTS
    shop.does(expect(1, TEA, "order"))
    assert shop.answer(reserve(1), name="order") is Status.HOLD_EXISTS


def test_a_record_never_expires() -> None:
    shop = Shop()
    shop.does(expect(10, TEA, "order", at_ms=1))
    shop.wait(100 * limits.MAX_TTL_MS * MS)
    shop.does(expect(1, JAM, "other"))
    assert shop.record("order").state is HoldState.INCOMING
    assert shop.pair.machine.next_deadline_ns() == -1


def test_a_record_has_at_most_so_many_lines() -> None:
    machine, reference = Machine(), ReferenceMachine()
    most = limits.MAX_HOLD_LINES
    lines = [expect(1, (sku, BERLIN), "order") for sku in range(1, most + 2)]
    lines += [receive_of("order", 1, (most + 1, BERLIN)), receive_of("order", 1, (most, BERLIN))]
    for each in (machine, reference):
        each.set_sku_limit(most + 1)
        each.set_location(BERLIN, **LOCATIONS[BERLIN])
    asked = [request(bytes(16), lines)]
    statuses = machine.apply(1, asked).status.tolist()
    refused = Status.TOO_MANY_LINES
    assert statuses == [Status.OK] * most + [refused, refused, Status.OK]
    assert list(reference.apply(1, asked).answers[0][0]) == statuses
    assert machine.incoming(hold_id("order")) == reference.incoming(hold_id("order"))
    assert machine.state_hash == reference.state_hash
    assert machine.audit() == []


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        ({"flags": int(Flag.LINKED)}, Status.INVALID_FLAGS),
        ({"quantity": 0}, Status.INVALID_QUANTITY),
        ({"quantity": limits.MAX_QUANTITY + 1}, Status.QUANTITY_TOO_LARGE),
        ({"value": -1}, Status.INVALID_MOMENT),
        ({"value": limits.MAX_EXPECTED_AT_MS + 1}, Status.INVALID_MOMENT),
        ({"value": limits.MAX_EXPECTED_AT_MS}, Status.OK),
        ({"location": UNKNOWN}, Status.UNKNOWN_LOCATION),
        ({"sku": SKUS + 1}, Status.UNKNOWN_SKU),
        ({"location": ELSEWHERE}, Status.WRONG_SHARD),
        ({"location": SPLIT, "sku": 1}, Status.WRONG_SHARD),
        ({"location": SPLIT, "sku": 2}, Status.OK),
    ],
)
def test_what_is_expected_is_checked(odd: dict[str, int], status: Status) -> None:
    assert Shop().answer(expect(1, TEA, "order")._replace(**odd)) is status


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        ({"flags": int(Flag.RELEASE_REST)}, Status.INVALID_FLAGS),
        ({"quantity": -1}, Status.INVALID_QUANTITY),
        ({"quantity": limits.MAX_QUANTITY + 1}, Status.QUANTITY_TOO_LARGE),
    ],
)
def test_a_cancellation_is_checked(odd: dict[str, int], status: Status) -> None:
    shop = Shop()
    shop.does(expect(1, TEA, "order"))
    assert shop.answer(cancel_incoming("order")._replace(**odd)) is status


def test_a_receipt_is_checked_before_its_record() -> None:
    shop = Shop()
    assert shop.answer(receive_of("nothing", 0)) is Status.INVALID_QUANTITY
    assert shop.answer(receive_of("nothing", 1, (1, ELSEWHERE))) is Status.WRONG_SHARD


def test_no_counter_of_a_record_passes_its_limit() -> None:
    shop = Shop()
    most = limits.MAX_QUANTITY
    shop.does(expect(most, TEA, "order"))
    assert shop.answer(expect(1, TEA, "order")) is Status.BALANCE_LIMIT
    shop.does(receive_of("order", most))
    assert shop.answer(receive_of("order", 1)) is Status.BALANCE_LIMIT
    assert (shop.cell().on_hand, shop.cell().incoming) == (most, 0)


def test_incoming_stays_within_the_limit_of_a_balance() -> None:
    shop = Shop(tea=1)
    machine, reference = shop.pair.machine, shop.pair.reference
    machine.state.cells[0, INCOMING] = limits.MAX_BALANCE - 1
    reference._book.cells[TEA].incoming = limits.MAX_BALANCE - 1
    asked = [request(bytes(16), [expect(2), expect(1), expect(1)])]
    statuses = [Status.BALANCE_LIMIT, Status.OK, Status.BALANCE_LIMIT]
    assert machine.apply(shop.now_ns + 1, asked).status.tolist() == statuses
    assert list(reference.apply(shop.now_ns + 1, asked).answers[0][0]) == statuses


def test_a_receipt_that_passes_the_limit_of_a_balance_leaves_the_record_alone() -> None:
    shop = Shop(tea=1)
    shop.does(expect(5, TEA, "order"))
    shop.pair.force(TEA, "on_hand", limits.MAX_BALANCE - 1)
    assert shop.answer(receive_of("order", 2)) is Status.BALANCE_LIMIT
    assert shop.on_its_way("order") == [(5, 5, 0)]


def test_what_is_due_is_told_by_cell_and_date() -> None:
    shop = Shop()
    shop.does(
        expect(7, TEA, "july", at_ms=JULY_MS), expect(3, TEA, "june", at_ms=JUNE_MS),
        expect(2, TEA, "some day"), expect(9, JAM, "june"), expect(1, FAR, "far"),
    )  # fmt: skip
    shop.does(receive_of("july", 2), cancel_incoming("some day"))
    assert shop.pair.machine.incoming_of([TEA, FAR, CUPS]) == [
        DatedIncoming(*TEA, JUNE_MS * MS, 3),
        DatedIncoming(*TEA, JULY_MS * MS, 5),
        DatedIncoming(*FAR, 0, 1),
    ]
    assert shop.pair.machine.incoming_of([]) == []


def test_an_audit_counts_what_is_incoming() -> None:
    machine = Machine()
    machine.set_sku_limit(1)
    machine.set_location(1, owned=True, currency=840)
    machine.apply(1, [request(bytes(16), [line(Kind.EXPECT, (1, 1), 5)])])
    assert machine.audit() == []
    machine.state.cells[0, INCOMING] = 4
    assert machine.audit()[0].endswith("incoming is 4, its lines have 5")
