"""Bundles: from lines of bundles to lines of components, and from their answers to one answer."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.router import Router
from adapters.rpc import bundles, sold
from adapters.rpc.requests import NO_SUCH_ID, InvalidField
from adapters.rpc.unary import UnaryRouter
from engine import limits
from engine.catalogue import Catalogue
from engine.catalogue_block import CatalogueBlock
from engine.entries import Component, Location, Sku
from engine.history import Event
from engine.operations import Answer, Flag, Kind, Request, id_to_pair, pair_to_id
from engine.reference import ReferenceMachine
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import Endangered, EndangeredHold, HoldState
from tests.fakes.shard import USD, FakeShard

ID = bytes(range(16))
COLA, HAM, MILK = 1, 2, 3
BOX, CASE = 4, 5  # 6 cola and 250 g of ham; 24 cola
SECOND = 10**9


def some_catalogue() -> Catalogue:
    catalogue = Catalogue()
    plain = [Sku("COLA"), Sku("HAM", 1), Sku("MILK", 2)]
    places = [Location(f"L{number}", "EUR") for number in (1, 2, 3)]
    catalogue.apply(CatalogueBlock(1, 1, skus=plain, locations=places))
    box = Sku("BOX", components=(Component(COLA, 6), Component(HAM, 250)))
    case = Sku("CASE", components=(Component(COLA, 24),))
    catalogue.apply(CatalogueBlock(1, 2, 0, 3, 3, [box, case]))
    return catalogue


CATALOGUE = some_catalogue()


def request_of(
    kind: Kind,
    *lines: tuple[int, int],
    flags: list[int] | None = None,
    holds: list[bytes] | None = None,
    value: int = 0,
    op_id: bytes = ID,
) -> Request:
    skus, quantities = zip(*lines, strict=True)
    high, low = zip(*map(id_to_pair, holds), strict=True) if holds else (0, 0)
    return Request.of(
        op_id, len(lines), want_available=True, kind=int(kind), location=1, value=value,
        sku=np.array(skus), quantity=np.array(quantities), flags=np.array(flags or 0),
        hold_hi=np.array(high, np.uint64), hold_lo=np.array(low, np.uint64),
    )  # fmt: skip


def order(*lines: tuple[int, int], flags: int = 0, op_id: bytes = ID) -> Request:
    """A reserve as the edge makes it: each line but the last is linked to the next."""
    linked = [flags | Flag.LINKED] * (len(lines) - 1) + [flags]
    return request_of(Kind.RESERVE, *lines, flags=linked, value=60_000, op_id=op_id)


def rows(request: Request, *names: str) -> list[tuple[int, ...]]:
    zeros = np.zeros(request.lines, int)
    columns = [request.columns.get(name, zeros).tolist() for name in names]
    return list(zip(*columns, strict=True))


def answer_of(*lines: tuple[Status, int]) -> Answer:
    statuses, available = zip(*lines, strict=True)
    return Answer(bytes(statuses), np.array(available, "<i8").tobytes(), 1, 2, 3)


def told(answer: Answer) -> list[tuple[Status, int]]:
    statuses = [Status(code) for code in answer.status]
    return list(zip(statuses, np.frombuffer(answer.available, "<i8").tolist(), strict=True))


# --- lines ----------------------------------------------------------------------------------------


def test_a_line_of_a_bundle_stands_for_linked_lines_of_its_components() -> None:
    request = order((MILK, 7), (BOX, 2), (CASE, 1), (HAM, 9))
    assert bundles.names_bundles(request, CATALOGUE)
    expanded = bundles.expand(request, CATALOGUE)
    assert rows(expanded.request, "kind", "sku", "quantity", "location", "value", "flags") == [
        (Kind.RESERVE, MILK, 7, 1, 60_000, Flag.LINKED),
        (Kind.RESERVE, COLA, 12, 1, 60_000, Flag.LINKED),
        (Kind.RESERVE, HAM, 500, 1, 60_000, Flag.LINKED),
        (Kind.RESERVE, COLA, 24, 1, 60_000, Flag.LINKED),
        (Kind.RESERVE, HAM, 9, 1, 60_000, 0),
    ]
    assert (expanded.request.op_id, expanded.request.digest) == (ID, request.digest)
    alone = bundles.expand(request_of(Kind.RESERVE, (BOX, 1)), CATALOGUE)
    assert rows(alone.request, "flags") == [(Flag.LINKED,), (0,)]


def test_what_names_no_bundle_is_left_alone() -> None:
    assert not bundles.names_bundles(order((COLA, 1), (2**32 - 1, 2)), CATALOGUE)
    price = request_of(Kind.SET_PRICE, (BOX, 0))
    assert not bundles.names_bundles(price, CATALOGUE), "a bundle has a price of its own"
    bundles.refuse_in_batch(price, CATALOGUE)
    bundles.refuse_in_batch(order((COLA, 1)), CATALOGUE)
    bundles.refuse_in_batch(order((COLA, 1)), Catalogue())


def test_a_batch_that_names_a_bundle_is_refused() -> None:
    with pytest.raises(InvalidField) as refused:
        bundles.refuse_in_batch(order((COLA, 1), (HAM, 1), (BOX, 1)), CATALOGUE)
    told = "that of line 2 is a bundle: use single calls, or name its components"
    assert (refused.value.field, refused.value.description) == ("sku", told)


def test_flags_that_are_said_once_stay_so() -> None:
    older = [b"o" * 16, bytes(16)]
    flags = [Flag.SUPERSEDE | Flag.COMMIT_NOW | Flag.LINKED, Flag.COMMIT_NOW]
    request = request_of(Kind.RESERVE, (BOX, 1), (BOX, 1), flags=flags, holds=older)
    expanded = bundles.expand(request, CATALOGUE).request
    now = Flag.COMMIT_NOW
    linked = now | Flag.LINKED
    assert rows(expanded, "flags") == [(linked | Flag.SUPERSEDE,), (linked,), (linked,), (now,)]
    halves = rows(expanded, "hold_hi", "hold_lo")
    assert halves == [id_to_pair(b"o" * 16), (0, 0), (0, 0), (0, 0)]

    part = request_of(Kind.COMMIT, (BOX, 1), flags=[Flag.RELEASE_REST], holds=[ID])
    expanded = bundles.expand(part, CATALOGUE).request
    assert rows(expanded, "flags") == [(Flag.LINKED,), (Flag.RELEASE_REST,)]
    assert rows(expanded, "hold_hi", "hold_lo") == [id_to_pair(ID)] * 2
    parts = request_of(Kind.FULFIL, (BOX, 1), (MILK, 1), (BOX, 1), flags=[1, 1, 0], holds=[ID] * 3)
    expanded = bundles.expand(parts, CATALOGUE).request
    assert rows(expanded, "flags") == [(Flag.LINKED,)] * 4 + [(0,)]


def test_parts_of_a_sale_have_ids_of_their_own_and_those_of_an_order_its_own() -> None:
    sale, sold_order = b"s" * 16, b"o" * 16
    expanded = bundles.expand(
        request_of(Kind.SALE, (BOX, 1), (COLA, 1), holds=[sale, b"c" * 16]), CATALOGUE
    )
    ids = [pair_to_id(*pair) for pair in rows(expanded.request, "hold_hi", "hold_lo")]
    second = sold.part_id(sale, 1)
    assert ids == [sale, second, b"c" * 16]
    assert second not in (sale, sold.part_id(sale, 2), sold.part_id(b"c" * 16, 1))

    back = request_of(
        Kind.RETURN, (BOX, 1), (BOX, 1), (COLA, 1), (BOX, 1), (HAM, 1), (MILK, 1),
        holds=[sale, sold_order, b"c" * 16, bytes(16), sale, b"m" * 16],
    )  # fmt: skip
    asked = bundles.returned_of(back, CATALOGUE)
    assert asked == [sale, sold_order, b"c" * 16], "milk is in no bundle"
    returned = bundles.expand(back, CATALOGUE, {sale: {COLA: sale, HAM: second}})
    of = [pair_to_id(*pair) for pair in rows(returned.request, "hold_hi", "hold_lo")]
    blind = bytes(16)
    assert of == [
        sale, second, sold_order, sold_order, b"c" * 16, blind, blind, second, b"m" * 16,
    ]  # fmt: skip
    linked = [flags & Flag.LINKED for (flags,) in rows(returned.request, "flags")]
    assert linked == [1, 0, 1, 0, 0, 1, 0, 0, 0], "a box comes back whole or not at all"


def a_router() -> Router:
    shard = FakeShard()
    return Router({0: shard}, lambda: ShardMap(1, 1, {}))


async def test_what_was_sold_of_a_bundle_is_found_by_the_id_of_its_line() -> None:
    router, sale = a_router(), b"s" * 16
    lines = UnaryRouter(router, CATALOGUE)
    for _ in range(2):
        till = request_of(
            Kind.SALE, (BOX, 2), (CASE, 1), holds=[sale, b"c" * 16], op_id=os.urandom(16)
        )
        await lines.submit(till)
    found = await lines.hold(sale, 0)
    assert found is not None
    assert [(line.sku, line.fulfilled) for line in found.lines] == [(COLA, 12), (HAM, 500)]
    assert found.state == HoldState.FULFILLED
    case = await lines.hold(b"c" * 16, 0)
    assert case is not None
    assert [(line.sku, line.fulfilled) for line in case.lines] == [(COLA, 24)]
    assert await lines.hold(b"n" * 16, 0) is None

    back = request_of(Kind.RETURN, (BOX, 1), holds=[sale])
    for _ in range(2):
        _, answer = await lines.returned(back, [0])
        assert list(answer.status) == [Status.OK]
    again = request_of(Kind.RETURN, (HAM, 251), holds=[sale], op_id=os.urandom(16))
    assert (await lines.returned(again, [0]))[1].status[0] == Status.EXCEEDS_HOLD
    found = await lines.hold(sale, 0)
    assert found is not None
    assert [(line.sku, line.returned) for line in found.lines] == [(COLA, 6), (HAM, 250)]


@pytest.mark.parametrize("is_taken_first", [True, False])
async def test_the_sale_of_a_bundle_gets_one_answer_though_its_id_is_taken_or_forgotten_since(
    is_taken_first: bool,
) -> None:
    shard = FakeShard()
    shard.machine = ReferenceMachine(resolved_remembered=2)
    shard.machine.set_sku_limit(8)
    shard.machine.set_location(1, owned=True, currency=USD)
    lines = UnaryRouter(Router({0: shard}, lambda: ShardMap(1, 1, {})), CATALOGUE)

    async def sell(sku: int, hold: bytes) -> None:
        sold = request_of(Kind.SALE, (sku, 1), holds=[hold], op_id=os.urandom(16))
        assert not any((await lines.submit(sold))[1].status)

    name = b"s" * 16
    if is_taken_first:
        await sell(COLA, name)
    till = request_of(Kind.SALE, (MILK, 1), (BOX, 1), holds=[b"m" * 16, name])
    _, first = await lines.submit(till)
    assert list(first.status) == [Status.OK, Status.HOLD_EXISTS if is_taken_first else Status.OK]
    for number in range(4):
        await sell(MILK, bytes([1 + number]) * 16)
        assert (await lines.submit(till))[1].status == first.status
    if not is_taken_first:
        await sell(COLA, name)
        assert (await lines.submit(till))[1].status == first.status


MUG, TEA, COFFEE, SPOON = 1, 2, 3, 4
SET, BIG_SET, SET_OF_THREE, TWIN = 5, 6, 7, 8


def catalogue_of_sets() -> Catalogue:
    """Bundles that begin alike: mug and tea; with a spoon; mug, coffee and spoon; two mugs."""
    catalogue = Catalogue()
    plain = [Sku(code) for code in ("MUG", "TEA", "COFFEE", "SPOON")]
    catalogue.apply(CatalogueBlock(1, 1, skus=plain, locations=[Location("L", "EUR")]))
    made_of = {
        "SET": (MUG, TEA),
        "BIG SET": (MUG, TEA, SPOON),
        "SET OF THREE": (MUG, COFFEE, SPOON),
        "TWIN": (MUG,),
    }
    sets = [
        Sku(code, components=tuple(Component(sku, 2 if code == "TWIN" else 1) for sku in skus))
        for code, skus in made_of.items()
    ]
    catalogue.apply(CatalogueBlock(1, 2, 0, 4, 1, sets))
    return catalogue


SETS = catalogue_of_sets()
PAIRS = [
    (SET, BIG_SET), (BIG_SET, SET), (SET, SET_OF_THREE), (SET, MUG), (MUG, SET), (COFFEE, SET),
    (SET, TWIN), (TWIN, SET), (SET, COFFEE),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("is_one_call", [False, True])
async def test_under_the_id_of_another_sale_nothing_of_a_bundle_is_sold(
    first: int, second: int, is_one_call: bool
) -> None:
    shard, name = FakeShard(), b"s" * 16
    lines = UnaryRouter(Router({0: shard}, lambda: ShardMap(1, 1, {})), SETS)

    def till(*skus: int) -> Request:
        sales = [(sku, 1) for sku in skus]
        return request_of(Kind.SALE, *sales, holds=[name] * len(sales), op_id=os.urandom(16))

    async def told(request: Request) -> list[int]:
        return list((await lines.submit(request))[1].status)

    def sold_so_far() -> dict[int, int]:
        cells = shard.machine.cells.items()
        return {sku: -cell.on_hand for (sku, _), cell in cells if cell.on_hand}

    parts = SETS.components(first) or (Component(first, 1),)
    if is_one_call:
        both = till(first, second)
        for _ in range(2):
            assert await told(both) == [Status.OK, Status.HOLD_EXISTS]
    else:
        right, wrong = till(first), till(second)
        for _ in range(2):
            assert await told(right) == [Status.OK]
            assert await told(wrong) == [Status.HOLD_EXISTS]
            assert await told(till(second)) == [Status.HOLD_EXISTS]
    assert sold_so_far() == {part.sku: part.quantity for part in parts}
    assert await told(till(first)) == [Status.ALREADY_RECORDED]
    hold = await lines.hold(name, 1)
    assert hold is not None
    assert [line.sku for line in hold.lines] == [part.sku for part in parts]


async def test_a_bundle_comes_back_whole_or_not_at_all() -> None:
    router, sale = a_router(), b"s" * 16
    lines = UnaryRouter(router, CATALOGUE)
    await lines.submit(request_of(Kind.SALE, (BOX, 1), holds=[sale], op_id=os.urandom(16)))
    part = request_of(Kind.RETURN, (HAM, 1), holds=[sale], op_id=os.urandom(16))
    assert (await lines.returned(part, [0]))[1].status == b"\0"
    _, answer = await lines.returned(request_of(Kind.RETURN, (BOX, 1), holds=[sale]), [0])
    assert list(answer.status) == [Status.EXCEEDS_HOLD]
    found = await lines.hold(sale, 0)
    assert found is not None
    assert [line.returned for line in found.lines] == [0, 1]


async def test_a_bundle_moves_whole_or_not_at_all() -> None:
    router = a_router()
    lines = UnaryRouter(router, CATALOGUE)
    goods = {"sku": [COLA, HAM, COLA, HAM], "location": [1, 1, 2, 2]}
    stock = Request.of(os.urandom(16), 4, kind=Kind.RECEIVE, quantity=[12, 500, 12, 250], **goods)
    await router.submit(stock)
    await lines.reserve(order((BOX, 2)))

    def move(quantity: int) -> Request:
        moved = request_of(Kind.MOVE, (BOX, quantity), holds=[ID], value=1, op_id=os.urandom(16))
        moved.columns["location"] = np.array([2], "<u4")
        return moved

    for quantity, status in ((2, Status.INSUFFICIENT_STOCK), (1, Status.OK)):
        assert list((await lines.move(move(quantity)))[1].status) == [status]
        held = await lines.hold(ID, 0)
        assert held is not None
        gone = {line.sku: line.pending for line in held.lines if line.location == 2}
        assert gone == ({} if status else {COLA: 6, HAM: 250})


async def test_the_history_of_what_was_sold_of_a_bundle_is_that_of_its_components() -> None:
    shard, sale = FakeShard(), b"s" * 16
    lines = UnaryRouter(Router({0: shard}, lambda: ShardMap(1, 1, {})), CATALOGUE)
    await lines.submit(request_of(Kind.SALE, (BOX, 1), holds=[sale]))
    for number, sku in enumerate((COLA, HAM)):
        event = Event(ID, number, Kind.SALE, 0, sku, 1, 1, 0, 0, 0, 0, 10 - number, 0, 1, 1)
        shard.events[sold.part_id(sale, number)] = [event]
    found, told = await lines.history(sale, 0)
    assert found is not None
    assert [line.sku for line in found.lines] == [COLA, HAM]
    assert [event.sku for event in told.events] == [HAM, COLA], "oldest first"
    assert told.complete
    found, told = await lines.history(b"n" * 16, 0)
    assert (found, told.events) == (None, [])


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in bundles.EXPANDED])
def test_what_only_components_have_is_refused(kind: Kind) -> None:
    if kind == Kind.SET_PRICE:
        return
    with pytest.raises(InvalidField) as refused:
        bundles.expand(request_of(kind, (COLA, 1), (BOX, 1)), CATALOGUE)
    told = "'BOX' is a bundle, which has no stock of its own: name its components"
    assert (refused.value.field, refused.value.description) == ("lines[1].sku", told)


def test_limits_hold_for_what_a_bundle_stands_for() -> None:
    most = limits.MAX_QUANTITY // 250
    bundles.expand(order((BOX, most)), CATALOGUE)
    with pytest.raises(InvalidField) as refused:
        bundles.expand(order((COLA, limits.MAX_QUANTITY + 1), (BOX, most + 1)), CATALOGUE)
    assert refused.value.field == "lines[1].quantity"
    told = "4000001 of bundle 'BOX' are 1000000250 of 'HAM', must be at most 1000000000"
    assert refused.value.description == told
    with pytest.raises(InvalidField):
        bundles.expand(order((BOX, 2**63 - 1)), CATALOGUE)
    half = limits.MAX_UNARY_LINES // 2
    assert bundles.expand(order(*[(BOX, 1)] * half), CATALOGUE).request.lines == 2 * half
    with pytest.raises(InvalidField, match="lines: 513 with the components of bundles, must be at"):
        bundles.expand(order(*[(BOX, 1)] * half, (COLA, 1)), CATALOGUE)
    with pytest.raises(InvalidField, match="of which no part can be held"):
        bundles.expand(order((BOX, 1), flags=Flag.PARTIAL), CATALOGUE)


def test_a_move_says_how_many_of_a_bundle_and_each_cell_once() -> None:
    moved = bundles.expand(request_of(Kind.MOVE, (BOX, 2), (MILK, 0), holds=[ID] * 2), CATALOGUE)
    assert rows(moved.request, "sku", "quantity") == [(COLA, 12), (HAM, 500), (MILK, 0)]
    with pytest.raises(InvalidField, match=r"lines\[1\].quantity: not given: 'BOX' is a bundle"):
        bundles.expand(request_of(Kind.MOVE, (MILK, 0), (BOX, 0), holds=[ID] * 2), CATALOGUE)
    twice = request_of(Kind.MOVE, (BOX, 1), (MILK, 1), (COLA, 1), holds=[ID] * 3)
    with pytest.raises(InvalidField, match=r"lines\[2\]: has a SKU in common with a line before"):
        bundles.expand(twice, CATALOGUE)


def test_a_field_is_named_by_where_it_stands_in_its_message() -> None:
    request = request_of(Kind.RETURN, (MILK, 1), (BOX, limits.MAX_QUANTITY))
    with pytest.raises(InvalidField) as refused:
        bundles.expand(request, CATALOGUE, path="returns[{}].line".format)
    assert refused.value.field == "returns[1].line.quantity"


@pytest.mark.parametrize("quantity", [0, -1, -(2**63)])
def test_a_quantity_that_makes_no_sense_is_left_to_the_machine(quantity: int) -> None:
    expanded = bundles.expand(request_of(Kind.RESERVE, (BOX, quantity)), CATALOGUE)
    assert rows(expanded.request, "quantity") == [(quantity,), (quantity,)]


# --- answers --------------------------------------------------------------------------------------


def test_the_answers_of_components_become_one() -> None:
    expanded = bundles.expand(order((MILK, 1), (BOX, 1), (CASE, 1)), CATALOGUE)
    short, linked = Status.INSUFFICIENT_STOCK, Status.LINKED_LINE_REFUSED
    ok = answer_of((Status.OK, 5), (Status.OK, 18), (Status.OK, 800), (Status.OK, 47))
    assert told(expanded.folded(ok)) == [(Status.OK, 5), (Status.OK, 3), (Status.OK, 1)]
    refused = answer_of((linked, 5), (linked, 18), (short, 249), (linked, -1))
    assert told(expanded.folded(refused)) == [(linked, 5), (short, 0), (linked, -1)]
    unseen = answer_of((linked, 5), (short, 5), (linked, 0), (linked, 0))
    assert told(expanded.folded(unseen)) == [(linked, 5), (short, 0), (linked, 0)]
    unasked = expanded.folded(replace(ok, available=b""))
    assert (unasked.status, unasked.available) == (bytes(3), b"")
    many = bundles.expand(order((BOX, 9)), CATALOGUE)
    unseen = many.folded(answer_of((short, 53), (linked, 0)))
    assert told(unseen) == [(short, 8)], "the ham was not looked at"
    again = answer_of(
        (Status.OK, 5), (Status.ALREADY_RECORDED, 18), (Status.OK, 800),
        (Status.ALREADY_RECORDED, 47),
    )  # fmt: skip
    assert expanded.folded(again).status[1:] == bytes([Status.ALREADY_RECORDED] * 2)


def judged(machine: ReferenceMachine, request: Request) -> Answer:
    status, available, *_ = machine.apply(2 * SECOND, [request]).answers[0]
    return Answer(status, np.array(available, "<i8").tobytes(), 1, 2, 3)


def test_what_a_bundle_endangers_is_told_of_its_line() -> None:
    expanded = bundles.expand(request_of(Kind.SALE, (MILK, 1), (BOX, 1), (CASE, 1)), CATALOGUE)
    answer = answer_of((Status.OK, 0), (Status.OK, -6), (Status.OK, -1), (Status.OK, -30))
    short = [Endangered(line, 1, 1, 6, (EndangeredHold(ID, 2, 0),)) for line in (1, 2, 3)]
    folded = expanded.folded(replace(answer, endangered=tuple(short)))
    assert [each.line for each in folded.endangered] == [1, 1, 2]
    assert {each.holds for each in folded.endangered} == {short[0].holds}
    assert told(folded) == [(Status.OK, 0), (Status.OK, -1), (Status.OK, -2)]


lines_of_orders = st.lists(
    st.tuples(st.sampled_from([COLA, HAM, MILK, BOX, CASE]), st.integers(1, 3)),
    min_size=1,
    max_size=5,
)


@given(lines_of_orders, st.lists(st.integers(0, 60), min_size=3, max_size=3))
def test_an_order_of_bundles_is_judged_as_its_components_are(
    lines: list[tuple[int, int]], stock: list[int]
) -> None:
    """It is held if and only if the components of all its lines together are there."""
    stock[1] *= 25
    machine = ReferenceMachine()
    machine.set_sku_limit(CATALOGUE.skus)
    machine.set_location(1, owned=True, currency=978)
    on_hand = [(sku, n) for sku, n in zip((COLA, HAM, MILK), stock, strict=True) if n]
    if on_hand:
        machine.apply(SECOND, [request_of(Kind.RECEIVE, *on_hand, op_id=b"r" * 16)])

    request = order(*lines, op_id=b"q" * 16)
    needed = dict.fromkeys((COLA, HAM, MILK), 0)
    for sku, quantity in lines:
        for part, each in CATALOGUE.components(sku) or ((sku, 1),):
            needed[part] += quantity * each
    if bundles.names_bundles(request, CATALOGUE):
        expanded = bundles.expand(request, CATALOGUE)
        answer = expanded.folded(judged(machine, expanded.request))
    else:
        answer = judged(machine, request)

    fits = all(needed[sku] <= n for sku, n in zip((COLA, HAM, MILK), stock, strict=True))
    assert len(answer.status) == len(lines)
    assert (not any(answer.status)) == fits
    held = needed if fits else dict.fromkeys(needed, 0)
    for sku, n in zip((COLA, HAM, MILK), stock, strict=True):
        cell = machine.cell(sku, 1)
        found = (0, 0) if cell is None else (cell.reserved, cell.available)
        assert found == (held[sku], n - held[sku])
    if fits:
        left = {sku: n - held[sku] for sku, n in zip((COLA, HAM, MILK), stock, strict=True)}
        last, _ = lines[-1]
        parts = CATALOGUE.components(last) or ((last, 1),)
        assert told(answer)[-1][1] == min(left[part] // each for part, each in parts)
    assert machine.cell(BOX, 1) is None


APART = ShardMap(1, 2, {1: (0, 1), 2: (0, 1)})  # cola on shard 0, ham on shard 1
SOLD = b"q" * 16
SHOPS = ShardMap(1, 2, {1: (0,), 2: (1,), 3: (0, 1)})
TWO = ((COLA, 1), (HAM, 1))


def linked(request: Request) -> Request:
    request.columns["flags"] = np.array([Flag.LINKED, 0], "u1")
    return request


def many_calls(op_id: bytes) -> dict[str, tuple[str, Request, list[Any]]]:
    """Single calls about cola and ham, with the ways that they go."""
    sold = request_of(Kind.SALE, *TWO, op_id=op_id)
    back = linked(request_of(Kind.RETURN, *TWO, op_id=op_id))
    swapped = request_of(Kind.RETURN, *TWO, op_id=op_id)
    swapped.columns |= {
        "kind": np.array([Kind.RETURN, Kind.RESERVE], "u1"),
        "flags": np.array([Flag.LINKED, 0], "u1"),
        "value": np.array([0, 60_000], "<i8"),
    }
    moved = request_of(Kind.MOVE, *TWO, holds=[ID] * 2, value=1, op_id=op_id)
    moved.columns["location"] = np.full(2, 2, "<u4")
    priced = request_of(Kind.SET_PRICE, *TWO, op_id=op_id)
    priced.columns |= {"quantity": np.zeros(2, "<i8"), "currency": np.full(2, USD, "<u2")}
    return {
        "an order": ("reserve", order(*TWO, op_id=op_id), []),
        "a bundle": ("reserve", order((BOX, 1), op_id=op_id), []),
        "sales": ("submit", sold, []),
        "the sale of a bundle": ("submit", request_of(Kind.SALE, (BOX, 1), op_id=op_id), []),
        "prices": ("submit", priced, []),
        "returns": ("returned", back, [[0, 0]]),
        "an exchange": ("exchange", swapped, [[0, 0], 1]),
        "a move": ("move", moved, []),
        "parts of a hold": ("on_hold", linked(request_of(Kind.COMMIT, *TWO, holds=[ID] * 2, op_id=op_id)), []),
    }  # fmt: skip


@pytest.mark.parametrize("what", many_calls(ID))
async def test_a_shard_by_itself_judges_nothing_of_a_call_that_is_also_about_others(
    what: str,
) -> None:
    """Sent again by the gateway it has other lines there, and what was judged would be told of these."""
    shards = {number: FakeShard(number, APART) for number in range(2)}
    gateway, *own = (
        UnaryRouter(Router(links, lambda: APART), CATALOGUE)
        for links in (shards, *({number: shard} for number, shard in shards.items()))
    )
    for location in (1, 2):
        stock = request_of(Kind.RECEIVE, (COLA, 100), (HAM, 1_000), op_id=os.urandom(16))
        assert not any((await gateway.submit(at(location, stock)))[1].status)
    assert not any((await gateway.reserve(order(*TWO)))[1].status)
    before = [list(shard.seen) for shard in shards.values()]
    way, request, more = many_calls(os.urandom(16))[what]
    for number, itself in enumerate(own):
        shard, answer = await getattr(itself, way)(request, *more)
        expected = [Status.LINKED_LINE_REFUSED] * 2
        expected[1 - number] = Status.WRONG_SHARD
        told = [Status.WRONG_SHARD] if request.lines == 1 else expected
        assert (shard, list(answer.status)) == (number, told)
    assert [shard.seen for shard in shards.values()] == before
    for _ in range(2):
        _, answer = await getattr(gateway, way)(request, *more)
        assert not any(answer.status)


def shops() -> tuple[dict[int, FakeShard], UnaryRouter, list[UnaryRouter]]:
    """Two shards with a shop each and one together; by a gateway, and each shard by itself."""
    shards = {number: FakeShard(number, SHOPS) for number in range(2)}
    gateway, *own = (
        UnaryRouter(Router(links, lambda: SHOPS), CATALOGUE)
        for links in (shards, *({number: shard} for number, shard in shards.items()))
    )
    return shards, gateway, own


async def received(gateway: UnaryRouter, *locations: int) -> None:
    for location in locations:
        stock = at(
            location, request_of(Kind.RECEIVE, (COLA, 100), (HAM, 1_000), op_id=os.urandom(16))
        )
        assert not any((await gateway.submit(stock))[1].status)


def at(location: int, request: Request) -> Request:
    request.columns["location"] = np.full(request.lines, location, "<u4")
    return request


@pytest.mark.parametrize(("leaves", "to"), [((1, 1), 2), ((1, 1), 3), ((1, 3), 2), ((1, 2), 3)])
async def test_a_shard_by_itself_moves_nothing_that_leaves_another(
    leaves: tuple[int, int], to: int
) -> None:
    """That nothing of this is in its part of the hold, it had judged, and a gateway was told so."""
    shards, gateway, own = shops()
    await received(gateway, 1, 2, 3)
    held = order((COLA, 3), (HAM, 5))
    held.columns["location"] = np.array(leaves, "<u4")
    assert not any((await gateway.reserve(held))[1].status)
    move = at(to, request_of(Kind.MOVE, (COLA, 3), (HAM, 5), holds=[ID] * 2, op_id=os.urandom(16)))
    move.columns["value"] = np.array(leaves, "<i8")
    before = list(shards[1].seen)
    _, answer = await own[1].move(move)
    is_own = [leaves[0] != 1 and to != 3, leaves[1] != 1]  # cola of the third shop is not
    expected = [Status.LINKED_LINE_REFUSED if each else Status.WRONG_SHARD for each in is_own]
    assert list(answer.status) == expected
    assert shards[1].seen == before
    for _ in range(2):
        assert not any((await gateway.move(move))[1].status)
    hold = await gateway.hold(ID, 0)
    assert hold is not None
    pending = {(line.sku, line.location): line.pending for line in hold.lines if line.pending}
    assert pending == {(COLA, to): 3, (HAM, to): 5}


def swap_of(sku: int) -> Request:
    """One of what was sold under SOLD comes back to the second shop, for one ham."""
    lines = ((sku, 1), (HAM, 1))
    swap = at(2, request_of(Kind.RETURN, *lines, holds=[SOLD, bytes(16)], op_id=os.urandom(16)))
    swap.columns |= {
        "kind": np.array([Kind.RETURN, Kind.RESERVE], "u1"),
        "flags": np.array([Flag.LINKED, 0], "u1"),
        "value": np.array([0, 60_000], "<i8"),
    }
    return swap


@pytest.mark.parametrize("sku", [COLA, CASE, BOX])
@pytest.mark.parametrize("sold_at", [0, 1, 3])
async def test_a_shard_by_itself_exchanges_nothing_that_may_be_sold_elsewhere(
    sold_at: int, sku: int
) -> None:
    """Half of the third shop is elsewhere."""
    shards, gateway, own = shops()
    await received(gateway, 2)
    sale = at(2, request_of(Kind.SALE, (sku, 2), holds=[SOLD], op_id=os.urandom(16)))
    assert not any((await gateway.submit(sale))[1].status)
    before = list(shards[1].seen)
    shard, answer = await own[1].exchange(swap_of(sku), [sold_at, 0], 1)
    assert (shard, list(answer.status)) == (1, [Status.WRONG_SHARD, Status.LINKED_LINE_REFUSED])
    assert shards[1].seen == before


@pytest.mark.parametrize("sold_at", [0, 2])
@pytest.mark.parametrize("is_own_first", [True, False])
async def test_what_is_exchanged_comes_back_once(is_own_first: bool, sold_at: int) -> None:
    """Asked of the shard's own server, and then of a gateway, it came back twice."""
    _, gateway, own = shops()
    await received(gateway, 2)
    sale = at(2, request_of(Kind.SALE, (COLA, 5), holds=[SOLD], op_id=os.urandom(16)))
    assert not any((await gateway.submit(sale))[1].status)
    swap, ways = swap_of(COLA), (own[1], gateway) if is_own_first else (gateway, own[1])
    told = [list((await way.exchange(swap, [sold_at, 0], 1))[1].status) for way in ways]
    refused = [Status.WRONG_SHARD, Status.LINKED_LINE_REFUSED]
    assert told == [[0, 0] if sold_at or way is gateway else refused for way in ways]
    hold = await gateway.hold(SOLD, 2)
    assert hold is not None
    assert [line.returned for line in hold.lines] == [1]


WAYS: dict[str, tuple[Kind, list[Any]]] = {
    "submit": (Kind.RECEIVE, []),
    "reserve": (Kind.RESERVE, []),
    "returned": (Kind.RETURN, [[0, 0]]),
    "exchange": (Kind.RETURN, [[0, 0], 1]),
    "move": (Kind.MOVE, []),
    "on_hold": (Kind.COMMIT, []),
}


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_to_another_number_of_lines_is_told_to_nobody(way: str) -> None:
    """A shard had a part of the request, of one line, when the shard map was another one."""
    shard = FakeShard()
    kind, more = WAYS[way]
    whole = request_of(kind, *TWO)
    await shard.submit(
        whole.with_lines(1, {name: each[:1] for name, each in whole.columns.items()})
    )
    lines = UnaryRouter(Router({0: shard}, lambda: ShardMap(1, 1, {})), CATALOGUE)
    _, answer = await getattr(lines, way)(whole, *more)
    assert list(answer.status) == [Status.OP_ID_REUSED] * 2


async def test_a_shard_answers_before_there_is_a_shard_map() -> None:
    def none_yet() -> ShardMap:
        raise AssertionError("there is no shard map yet")

    lines = UnaryRouter(Router({0: FakeShard()}, none_yet), Catalogue())
    assert not any((await lines.submit(request_of(Kind.SALE, (COLA, 1))))[1].status)


async def test_what_nobody_knows_any_shard_refuses() -> None:
    shard = FakeShard(0, APART)
    lines = UnaryRouter(Router({0: shard}, lambda: APART), CATALOGUE)
    unknown = request_of(Kind.SALE, (COLA, 1), (NO_SUCH_ID, 1), (0, 1))
    unknown.columns["location"] = np.array([NO_SUCH_ID, 1, 1], "<u4")
    _, answer = await lines.submit(unknown)
    assert list(answer.status) == [
        Status.UNKNOWN_LOCATION,
        Status.UNKNOWN_SKU,
        Status.UNKNOWN_SKU,
    ]


TO_BOTH_WAYS: dict[Kind, tuple[str, list[Any]]] = {
    Kind.SALE: ("submit", []),
    Kind.RETURN: ("returned", [[0, 0, 0]]),
    Kind.CANCEL_INCOMING: ("on_hold", []),
}


@pytest.mark.parametrize("kind", TO_BOTH_WAYS)
@pytest.mark.parametrize("unknown", [(COLA, NO_SUCH_ID), (NO_SUCH_ID, 3)])
async def test_beside_its_own_lines_a_shard_judges_none_that_a_gateway_sends_elsewhere(
    unknown: tuple[int, int], kind: Kind
) -> None:
    """It did, and the gateway told its first line's answer of the second one, which was recorded."""
    way, more = TO_BOTH_WAYS[kind]
    high, low = map(np.uint64, id_to_pair(ID))
    record = {"hold_hi": high, "hold_lo": low}
    cells = {"sku": [unknown[0], COLA, HAM], "location": [unknown[1], 2, 2]}
    told = []
    for is_own_first in (True, False):
        shards, gateway, own = shops()
        comes = {"kind": Kind.EXPECT, "sku": [COLA, HAM], "location": 2, "quantity": 5}
        await gateway.submit(Request.of(os.urandom(16), 2, **comes, **record))
        on = record if kind == Kind.CANCEL_INCOMING else {}
        asked = Request.of(b"a" * 16, 3, kind=int(kind), quantity=[1, 2, 2 * 10**9], **cells, **on)
        if is_own_first:
            before = list(shards[1].seen)
            _, answer = await getattr(own[1], way)(asked, *more)
            refused = [Status.WRONG_SHARD, Status.LINKED_LINE_REFUSED, Status.LINKED_LINE_REFUSED]
            assert list(answer.status) == refused
            assert shards[1].seen == before
        told.append(list((await getattr(gateway, way)(asked, *more))[1].status))
    assert told[0] == told[1]
    assert [bool(status) for status in told[0]] == [True, False, True]
