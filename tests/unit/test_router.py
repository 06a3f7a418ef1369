"""The router over reference machines: what goes where, and that nothing is half done."""

import asyncio
import gc
import os
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.ports import Overloaded, Unavailable
from actors.router import Router
from actors.shards import Turns, every
from actors.transits import place_id
from engine.operations import Flag, Kind, Request, id_to_pair, line_id
from engine.reference import ReferenceMachine
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import HoldState
from tests.fakes.shard import USD, FakeShard

TTL = 60_000
SPLIT = 5  # the location that is spread over both shards
MAP = ShardMap(1, 2, {SPLIT: (0, 1)})
EVERYTHING = [(sku, location) for sku in range(1, 9) for location in range(1, 9)]


def batch_id() -> bytes:
    return os.urandom(14) + b"\0\0"


def on(hold_id: bytes) -> dict[str, Any]:
    high, low = id_to_pair(hold_id)
    return {"hold_hi": np.uint64(high), "hold_lo": np.uint64(low)}


def order(
    op_id: bytes, cells: list[tuple[int, int]], quantity: Any = 1, ttl_ms: int = TTL
) -> Request:
    flags = [Flag.LINKED] * (len(cells) - 1) + [0]
    skus, locations = zip(*cells, strict=True)
    return Request.of(
        op_id,
        len(cells),
        kind=Kind.RESERVE,
        flags=flags,
        sku=skus,
        location=locations,
        quantity=quantity,
        value=ttl_ms,
        want_available=True,
    )


def call(op_id: bytes, kind: Kind, hold_id: bytes, lines: int = 1, **columns: Any) -> Request:
    return Request.of(op_id, lines, kind=kind, want_available=True, **on(hold_id), **columns)


class Town:
    """A gateway's router over some shards, two mostly, with ten of everything everywhere."""

    def __init__(self, shard_map: ShardMap = MAP) -> None:
        self.shards = [FakeShard(number, shard_map) for number in range(shard_map.shards)]
        self.router = Router(dict(enumerate(self.shards)), lambda: shard_map)

    async def stocked(self) -> "Town":
        skus, locations = zip(*EVERYTHING, strict=True)
        columns = {"kind": Kind.RECEIVE, "sku": skus, "location": locations, "quantity": 10}
        _, answer = await self.router.submit(Request.of(batch_id(), 64, **columns))
        assert not any(answer.status)
        for shard in self.shards:
            shard.seen.clear()
        return self

    async def available(self, sku: int, location: int) -> int:
        (cell,) = await self.router.cells([(sku, location)])
        assert cell is not None
        return cell.available

    def counted(self, counter: str) -> int:
        cells = (cell for shard in self.shards for cell in shard.machine.cells.values())
        return sum(getattr(cell, counter) for cell in cells)

    @property
    def reserved(self) -> int:
        return self.counted("reserved")


@pytest.fixture
async def town() -> Town:
    return await Town().stocked()


async def test_one_link_gets_everything_as_it_is() -> None:
    shard = FakeShard(1, MAP)
    router = Router({1: shard}, lambda: MAP)
    request = order(os.urandom(16), [(1, 1), (1, 2)])
    number, answer = await router.reserve(request)
    assert number == 1
    assert shard.seen == [request]
    assert list(answer.status) == [Status.WRONG_SHARD, Status.LINKED_LINE_REFUSED]


async def test_a_router_needs_a_shard() -> None:
    with pytest.raises(ValueError):
        Router({}, lambda: MAP)


async def test_what_is_one_shards_goes_straight(town: Town) -> None:
    request = Request.of(batch_id(), 2, kind=Kind.SALE, sku=[1, 2], location=[2, 4], quantity=1)
    number, answer = await town.router.submit(request)
    assert (number, answer.status) == (1, b"\0\0")
    assert town.shards[1].seen[0] is request
    assert town.shards[0].seen == []


kinds = st.sampled_from([Kind.RESERVE, Kind.SALE, Kind.RECEIVE, Kind.COUNT, Kind.COMMIT, 77])
lines = st.tuples(kinds, st.integers(0, 9), st.integers(0, 9), st.integers(-1, 11), st.booleans())


@given(st.lists(lines, min_size=1, max_size=30))
def test_a_split_batch_answers_like_one_machine(
    rows: list[tuple[int, int, int, int, bool]],
) -> None:
    """But for orders over several shards, which only `reserve` can make.

    Commits are on the hold that line 0 may have made, and name its cell.
    """
    first = (Kind.RESERVE, 1 + rows[0][1] % 8, 1 + rows[0][2] % 8, *rows[0][3:])
    named = [first]
    named += [(row[0], *first[1:3], *row[3:]) if row[0] == Kind.COMMIT else row for row in rows[1:]]
    kind, sku, location, quantity, linked = (list(column) for column in zip(*named, strict=True))
    flags = [0] * len(named)
    for i in range(len(named) - 1):
        same = MAP.shard_of(sku[i], location[i]) == MAP.shard_of(sku[i + 1], location[i + 1])
        if linked[i] and kind[i] == kind[i + 1] == Kind.RESERVE and same:
            flags[i] = Flag.LINKED
    op_id = batch_id()
    columns = {"kind": kind, "flags": flags, "sku": sku, "location": location}
    is_commit = np.array(kind) == Kind.COMMIT
    hold = {name: np.where(is_commit, half, 0) for name, half in on(line_id(op_id, 0)).items()}
    values = {"quantity": quantity, "value": TTL, **hold}
    request = Request.of(op_id, len(named), want_available=True, **columns, **values)

    async def split() -> tuple[list[int], list[int], set[bytes]]:
        town = await Town().stocked()
        _, answer = await town.router.submit(request)
        _, again = await town.router.submit(request)
        assert again == answer
        holds = set().union(*(shard.machine.holds for shard in town.shards))
        return list(answer.status), np.frombuffer(answer.available, "<i8").tolist(), holds

    whole = ReferenceMachine()
    whole.set_sku_limit(8)
    for at in range(1, 9):
        whole.set_location(at, owned=True, currency=USD)
    skus, locations = zip(*EVERYTHING, strict=True)
    stock = {"kind": Kind.RECEIVE, "sku": skus, "location": locations, "quantity": 10}
    whole.apply(10**18 + 1, [Request.of(batch_id(), 64, **stock)])
    status, available, _ = whole.apply(10**18 + 2, [request]).answers[0]
    assert asyncio.run(split()) == (list(status), available, set(whole.holds))


async def test_linked_lines_of_a_batch_over_shards_are_refused_whole(town: Town) -> None:
    request = order(batch_id(), [(1, 1), (1, 2), (1, 3)])
    number, answer = await town.router.submit(request)
    assert number == 0
    assert list(answer.status) == [
        Status.LINKED_LINE_REFUSED,
        Status.WRONG_SHARD,
        Status.LINKED_LINE_REFUSED,
    ]
    assert town.reserved == 0


@pytest.mark.parametrize("between", [Kind.SALE, Kind.EXTEND, Kind.SET_PRICE])
async def test_an_order_stays_together_around_a_line_that_is_none(
    town: Town, between: Kind
) -> None:
    """One shard refuses all of it, so no other may judge its rest by itself."""
    request = Request.of(
        batch_id(), 4, kind=[Kind.SALE, Kind.RESERVE, between, Kind.RESERVE], sku=1,
        location=[2, 1, 1, 2], quantity=1, value=TTL, flags=[Flag.LINKED] * 3 + [0],
    )  # fmt: skip
    _, answer = await town.router.submit(request)
    linked = Status.LINKED_LINE_REFUSED
    assert list(answer.status) == [Status.INVALID_FLAGS, linked, Status.INVALID_FLAGS, linked]
    assert town.reserved == 0


async def test_hold_lines_of_a_batch_need_a_place(town: Town) -> None:
    held = batch_id()
    await town.router.reserve(order(held, [(1, 1), (2, 2)]))
    request = Request.of(
        batch_id(), 4, kind=Kind.COMMIT, location=[0, 1, 2, SPLIT], sku=[1, 0, 2, 0], **on(held)
    )
    _, answer = await town.router.submit(request)
    assert list(answer.status) == [Status.UNKNOWN_LOCATION, 0, 0, Status.UNKNOWN_SKU]


async def test_a_batch_of_lines_without_a_place_reaches_nobody(town: Town) -> None:
    request = Request.of(batch_id(), 2, kind=Kind.COMMIT, **on(bytes(16)))
    number, answer = await town.router.submit(request)
    assert (number, answer.seq) == (0, 0)
    assert list(answer.status) == [Status.UNKNOWN_LOCATION] * 2


async def test_other_content_under_the_same_id_is_refused_wherever_it_was_seen(town: Town) -> None:
    op_id = batch_id()
    columns = {"kind": Kind.SALE, "quantity": 1, "sku": 1}
    await town.router.submit(Request.of(op_id, 2, location=[1, 2], **columns))
    other = Request.of(op_id, 3, location=[4, 3, 6], **columns)
    _, answer = await town.router.submit(other)
    assert list(answer.status) == [Status.OP_ID_REUSED] * 3


# --- orders over several shards -------------------------------------------------------------------


async def test_an_order_over_shards_is_held_on_each(town: Town) -> None:
    op_id = os.urandom(16)
    number, answer = await town.router.reserve(order(op_id, [(1, 2), (1, 1), (2, 2)], [1, 2, 3]))
    assert number == 1
    assert answer.status == bytes(3)
    assert np.frombuffer(answer.available, "<i8").tolist() == [9, 8, 7]
    assert answer.now_ns == min(shard.now_ns for shard in town.shards)
    hold = await town.router.hold(op_id)
    assert hold is not None
    assert hold.state == HoldState.PENDING
    assert [(line.location, line.pending) for line in hold.lines] == [(1, 2), (2, 1), (2, 3)]


async def test_an_order_that_one_shard_refuses_is_held_nowhere(town: Town) -> None:
    request = order(os.urandom(16), [(1, 1), (1, 2), (1, 1)], [1, 11, 2])
    _, answer = await town.router.reserve(request)
    assert list(answer.status) == [
        Status.LINKED_LINE_REFUSED,
        Status.INSUFFICIENT_STOCK,
        Status.LINKED_LINE_REFUSED,
    ]
    assert np.frombuffer(answer.available, "<i8").tolist() == [10, 10, 10]
    assert town.reserved == 0
    assert await town.available(1, 1) == 10
    assert await town.router.reserve(request) == (0, answer)
    assert town.reserved == 0


async def test_another_order_under_the_same_id_does_not_release_the_first(town: Town) -> None:
    op_id = os.urandom(16)
    await town.router.reserve(order(op_id, [(1, 1), (1, 2)]))
    _, answer = await town.router.reserve(order(op_id, [(1, 1), (2, 2)]))
    assert list(answer.status) == [Status.OP_ID_REUSED] * 2
    assert town.reserved == 2


async def test_an_order_in_doubt_is_not_released(town: Town) -> None:
    """A retry would meet the remembered OK of a hold that is gone."""
    town.shards[1].faults.append(Unavailable("restarting"))
    request = order(os.urandom(16), [(1, 1), (1, 2)])
    with pytest.raises(Unavailable):
        await town.router.reserve(request)
    _, answer = await town.router.reserve(request)
    assert not any(answer.status)
    assert town.reserved == 2


async def test_overload_is_told_as_such_only_when_nothing_was_judged(town: Town) -> None:
    town.shards[0].faults.append(Overloaded("full"))
    with pytest.raises(Unavailable):
        await town.router.reserve(order(os.urandom(16), [(1, 1), (1, 2)]))
    for shard in town.shards:
        shard.faults.append(Overloaded("full"))
    with pytest.raises(Overloaded):
        await town.router.reserve(order(os.urandom(16), [(1, 1), (1, 2)]))


async def test_a_bug_is_not_taken_for_a_refusal(town: Town) -> None:
    town.shards[0].faults.append(KeyError("a bug"))
    town.shards[1].faults.append(Unavailable("gone"))
    with pytest.raises(KeyError):
        await town.router.reserve(order(os.urandom(16), [(1, 1), (1, 2)]))


async def test_a_shard_nobody_knows_is_unavailable(town: Town) -> None:
    router = Router(dict(enumerate(town.shards)), lambda: ShardMap(2, 3))
    with pytest.raises(Unavailable):
        await router.submit(Request.of(batch_id(), 1, kind=Kind.SALE, sku=1, location=3))


@pytest.mark.parametrize("interleaving", range(10))
async def test_many_buyers_over_two_shards_never_sell_twice(town: Town, interleaving: int) -> None:
    rng = np.random.default_rng(interleaving)
    orders = [
        order(os.urandom(16), [(1, int(at)) for at in rng.permutation([1, 2])], 4)
        for _ in range(20)
    ]
    answers = await asyncio.gather(*(town.router.reserve(each) for each in orders))
    won = sum(not any(answer.status) for _, answer in answers)
    assert won <= 2
    assert town.reserved == 8 * won


@pytest.mark.parametrize("flags", [0, Flag.PARTIAL])
async def test_an_order_that_its_shard_has_done_by_itself_is_not_done_otherwise_by_a_gateway(
    town: Town, flags: int
) -> None:
    """In place of an older one and paid for at once: a gateway does that in two steps."""
    older, request = os.urandom(16), order(os.urandom(16), [(1, 1)], 4)
    await town.router.reserve(order(older, [(1, 1)], 3))
    request.columns |= {name: np.array([half], "<u8") for name, half in on(older).items()}
    flags |= Flag.SUPERSEDE | Flag.COMMIT_NOW
    request.columns["flags"] = np.array([flags], np.uint8)
    own = Router({0: town.shards[0]}, lambda: MAP)
    first = await own.reserve(request)
    assert not any(first[1].status)
    assert await town.router.reserve(request) == first
    assert (town.counted("committed"), town.reserved) == (4, 0)


async def test_a_shard_does_not_take_a_step_of_a_gateway_for_the_order(town: Town) -> None:
    """It has been held there, and is not paid for yet."""
    older, request = os.urandom(16), order(os.urandom(16), [(1, 1)], 4)
    await town.router.reserve(order(older, [(1, 1)], 3))
    request.columns |= {name: np.array([half], "<u8") for name, half in on(older).items()}
    request.columns["flags"] = np.array([Flag.SUPERSEDE | Flag.COMMIT_NOW], np.uint8)
    _, told = await town.router.reserve(request)
    own = Router({0: town.shards[0]}, lambda: MAP)
    _, again = await own.reserve(request)
    assert (list(told.status), list(again.status)) == ([Status.OK], [Status.OP_ID_REUSED])
    assert (town.counted("committed"), town.reserved) == (4, 0)


# --- calls on holds -------------------------------------------------------------------------------


@pytest.fixture
async def held(town: Town) -> bytes:
    """A hold of 3 at location 1 (shard 0) and 2 at location 2 (shard 1)."""
    op_id = os.urandom(16)
    await town.router.reserve(order(op_id, [(1, 1), (1, 2)], [3, 2]))
    return op_id


async def test_a_whole_hold_is_committed_on_each_shard(town: Town, held: bytes) -> None:
    request = call(os.urandom(16), Kind.COMMIT, held)
    _, answer = await town.router.on_hold(request)
    assert answer.status == b"\0"
    assert await town.router.on_hold(request) == (0, answer)
    hold = await town.router.hold(held)
    assert hold is not None
    assert hold.state == HoldState.COMMITTED
    assert [line.committed for line in hold.lines] == [3, 2]


async def test_a_hold_of_which_a_part_is_given_up_is_committed_as_far_as_it_is_left(
    town: Town,
) -> None:
    """By its location the part is given up and no other, as if its lines had been named."""
    held = os.urandom(16)
    await town.router.reserve(order(held, [(1, 1), (2, 2)]))
    await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, held), location=2)
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, held))
    assert list(answer.status) == [Status.OK]
    assert (town.counted("committed"), town.counted("reserved")) == (1, 0)


async def test_a_hold_that_is_given_up_is_committed_nowhere(town: Town) -> None:
    held = os.urandom(16)
    await town.router.reserve(order(held, [(1, 1), (2, 2)]))
    await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, held))
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, held))
    assert list(answer.status) == [Status.HOLD_RELEASED]
    assert (town.counted("committed"), town.counted("reserved")) == (0, 0)


@pytest.mark.parametrize(
    ("given_up", "status", "available"),
    [
        (1, Status.HOLD_NOT_COMMITTED, 8),  # two are pending at the other
        (2, Status.HOLD_NOT_COMMITTED, 7),  # three are pending there
    ],
)
@pytest.mark.parametrize("kind", [Kind.FULFIL, Kind.CANCEL])
async def test_a_call_that_all_parts_refuse_is_told_what_one_says_that_was_not_given_up(
    town: Town, held: bytes, kind: Kind, given_up: int, status: Status, available: int
) -> None:
    """The status and what is available are of one part, and not of two."""
    await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, held), given_up)
    request = call(os.urandom(16), kind, held)
    for _ in range(2):
        _, answer = await town.router.on_hold(request)
        assert list(answer.status) == [status]
        assert np.frombuffer(answer.available, "<i8").tolist() == [available]


async def test_a_part_whose_skus_are_held_elsewhere_is_not_missed(town: Town, held: bytes) -> None:
    """As after a move, where the hold was is released."""
    await town.router.on_hold(call(os.urandom(16), Kind.RELEASE, held), location=2)
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, held))
    assert list(answer.status) == [Status.OK]
    assert town.counted("committed") == 3


async def test_an_unknown_hold_is_refused_by_a_shard(town: Town) -> None:
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, os.urandom(16)))
    assert list(answer.status) == [Status.UNKNOWN_HOLD]
    assert answer.seq > 0
    assert await town.router.hold(os.urandom(16)) is None


# The calls that bring a part of a hold into each state, the least advanced one first.
LIFE: dict[HoldState, list[Kind]] = {
    HoldState.PENDING: [],
    HoldState.COMMITTED: [Kind.COMMIT],
    HoldState.FULFILLED: [Kind.COMMIT, Kind.FULFIL],
    HoldState.CANCELLED: [Kind.COMMIT, Kind.CANCEL],
    HoldState.EXPIRED: [],  # its time goes by
    HoldState.RELEASED: [Kind.RELEASE],
}


@pytest.mark.parametrize(("least", "other"), list(combinations_with_replacement(LIFE, 2)))
@pytest.mark.parametrize("least_at", [0, 1])
@pytest.mark.parametrize("longer_at", [0, 1])
async def test_a_hold_is_where_its_least_advanced_part_is_and_ends_with_the_first_of_these(
    town: Town, held: bytes, least: HoldState, other: HoldState, least_at: int, longer_at: int
) -> None:
    longer = call(os.urandom(16), Kind.EXTEND, held, value=2 * TTL)
    assert not any((await town.router.on_hold(longer, 1 + longer_at))[1].status)
    states = [other, other]
    states[least_at] = least
    for shard, state in zip(town.shards, states, strict=True):
        for kind in LIFE[state]:
            request = call(os.urandom(16), kind, held)
            assert not any((await town.router.on_hold(request, 1 + shard.number))[1].status)
        if state == HoldState.EXPIRED:
            shard.now_ns = shard.machine.holds[held].deadline_ns + 1
            await shard.submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))  # sweeps
    parts = [shard.machine.holds[held] for shard in town.shards]
    assert [part.state for part in parts] == states
    ends = [part.deadline_ns for part in parts]
    assert ends[longer_at] > ends[1 - longer_at]
    found = await town.router.hold(held)
    assert found is not None
    assert found.state == least
    assert found.deadline_ns == (min(ends) if least == other else ends[least_at])
    assert found.lines == parts[0].lines + parts[1].lines


class _Moving(FakeShard):
    """A shard whose hold moves to and fro, once before each of some looks that a reader takes at it."""

    def __init__(self) -> None:
        super().__init__(1, MAP)
        self.moves: list[Any] = []  # coroutines

    async def sight(self, hold_id: bytes, op_ids: Any = ()) -> Any:
        if self.moves:
            waiting, self.moves = self.moves, []
            await waiting.pop(0)
            self.moves = waiting
        return await super().sight(hold_id, op_ids)


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("meanwhile", [1, 2, 3])
async def test_a_reader_sees_what_moves_between_the_answers_of_two_shards(
    before: int, meanwhile: int
) -> None:
    """It left the one before that was asked, and came to the other after that: nobody had it."""
    town = Town()
    town.shards[1] = moving = _Moving()
    town.router = Router(dict(enumerate(town.shards)), lambda: MAP)
    await town.stocked()
    held = os.urandom(16)
    await town.router.reserve(order(held, [(1, 1 + (before + 1) % 2)], 3))

    async def move(number: int) -> None:
        router = Router(dict(enumerate(town.shards)), lambda: MAP)
        request = call(os.urandom(16), Kind.MOVE, held, location=1 + number % 2)
        _, answer = await router.move(request)
        assert not any(answer.status)

    for number in range(before):
        await move(before - number)
    assert await town.available(1, 2) == 7
    moving.moves = [move(number) for number in range(meanwhile)]
    hold = await town.router.hold(held)
    assert moving.moves == []
    assert hold is not None
    assert (hold.state, sum(line.pending for line in hold.lines)) == (HoldState.PENDING, 3)


async def test_a_reader_looks_no_further_for_what_a_shard_has_forgotten(
    town: Town, held: bytes
) -> None:
    """The one that the units left remembers for longer that they did."""
    move = call(os.urandom(16), Kind.MOVE, held, sku=1, location=2, quantity=3, value=1)
    assert not any((await town.router.move(move))[1].status)
    second = town.shards[1]
    second.machine._book.holds.pop(place_id(held, 0))
    second.remembered.clear()
    hold = await town.router.hold(held)
    assert hold is not None
    assert sum(line.pending for line in hold.lines) == 5


async def test_a_location_saves_the_question(town: Town) -> None:
    op_id = os.urandom(16)
    await town.router.reserve(order(op_id, [(1, 2)]))
    number, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, op_id), location=4)
    assert (number, answer.status) == (1, b"\0")
    assert len(town.shards[0].seen) == 0
    assert (await town.router.hold(op_id, location=2)) is not None
    assert (await town.router.hold(op_id, location=1)) is None


async def test_a_shard_takes_its_own_part_for_no_other_location(town: Town, held: bytes) -> None:
    own = Router({0: town.shards[0]}, lambda: MAP)
    _, answer = await own.on_hold(call(os.urandom(16), Kind.COMMIT, held), 2)
    assert list(answer.status) == [Status.WRONG_SHARD]
    assert town.counted("committed") == 0
    _, answer = await own.on_hold(call(os.urandom(16), Kind.COMMIT, held), SPLIT)
    assert (answer.status, town.counted("committed")) == (b"\0", 3)


async def test_an_id_that_was_used_for_one_part_of_a_hold_is_of_no_use_for_all(
    town: Town, held: bytes
) -> None:
    part = call(os.urandom(16), Kind.RELEASE, held)
    assert not any((await town.router.on_hold(part, 1))[1].status)
    left = town.reserved
    other = call(part.op_id, Kind.RELEASE, held)
    other.digest = b"another!"
    shard, answer = await town.router.on_hold(other)
    assert (shard, list(answer.status)) == (0, [Status.OP_ID_REUSED])
    assert town.reserved == left > 0


async def test_parts_of_a_hold_are_committed_where_they_are(town: Town, held: bytes) -> None:
    request = call(os.urandom(16), Kind.COMMIT, held, 2, sku=1, location=[2, 1], quantity=[1, 3])
    number, answer = await town.router.on_hold(request)
    assert (number, answer.status) == (1, b"\0\0")
    hold = await town.router.hold(held)
    assert hold is not None
    assert [(line.pending, line.committed) for line in hold.lines] == [(0, 3), (1, 1)]


@pytest.mark.parametrize("named", [[1], [2], [2, 1]], ids=str)
async def test_the_rest_is_released_everywhere(town: Town, held: bytes, named: list[int]) -> None:
    flags = [Flag.LINKED] * (len(named) - 1) + [Flag.RELEASE_REST]
    columns = {"sku": 1, "location": named, "quantity": 1, "flags": flags}
    request = call(os.urandom(16), Kind.COMMIT, held, len(named), **columns)
    for _ in range(2):
        _, answer = await town.router.on_hold(request)
        assert not any(answer.status)
        assert town.reserved == 0
    hold = await town.router.hold(held)
    assert hold is not None
    assert sum(line.committed for line in hold.lines) == len(named)


async def test_parts_of_a_hold_stand_or_fall_together(town: Town) -> None:
    held = os.urandom(16)
    await town.router.reserve(order(held, [(1, 1), (1, 2), (2, 1), (2, 2)], quantity=3))
    cells = {"sku": [1, 1, 2, 2], "location": [1, 2, 1, 2]}
    flags = [Flag.LINKED] * 3 + [Flag.RELEASE_REST]
    parts = {"quantity": [2, 2, 4, 2], "flags": flags, **cells}
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, held, 4, **parts))
    linked = Status.LINKED_LINE_REFUSED
    assert list(answer.status) == [linked, linked, Status.EXCEEDS_HOLD, linked]
    assert (town.reserved, town.counted("committed")) == (12, 0)
    parts["quantity"] = [2, 2, 3, 2]
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, held, 4, **parts))
    assert not any(answer.status)
    assert (town.reserved, town.counted("committed")) == (0, 9)


async def test_linked_parts_in_a_batch_go_to_the_shard_of_the_first(
    town: Town, held: bytes
) -> None:
    cells = {"sku": 1, "location": [2, 1, 1, 2], "quantity": 1}
    flags = [Flag.LINKED, 0, 0, 0]
    request = call(batch_id(), Kind.COMMIT, held, 4, flags=flags, **cells)
    _, answer = await town.router.submit(request)
    linked = Status.LINKED_LINE_REFUSED
    assert list(answer.status) == [linked, Status.NOT_IN_HOLD, Status.OK, Status.OK]


async def test_the_rest_is_not_released_when_the_part_is_refused(town: Town, held: bytes) -> None:
    columns = {"sku": 1, "location": 1, "quantity": 4, "flags": Flag.RELEASE_REST}
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, held, **columns))
    assert list(answer.status) == [Status.EXCEEDS_HOLD]
    assert town.reserved == 5


async def test_a_quantity_without_a_cell_is_not_taken_twice(town: Town, held: bytes) -> None:
    _, answer = await town.router.on_hold(call(os.urandom(16), Kind.COMMIT, held, quantity=1))
    assert list(answer.status) == [Status.NOT_IN_HOLD]
    assert town.reserved == 5


async def test_cells_and_tables_come_from_their_shards(town: Town) -> None:
    names = [(1, 2), (1, 1), (99, 1), (3, SPLIT)]
    cells = await town.router.cells(names)
    assert [cell and cell.on_hand for cell in cells] == [10, 10, None, 10]
    assert [number async for number, _ in town.router.tables()] == [0, 1]
    assert [number async for number, _ in town.router.tables([2, 4])] == [1]
    rows = [len(table.cells) async for _, table in town.router.tables([SPLIT])]
    assert sum(rows) == 8


# --- what is on its way ---------------------------------------------------------------------------


async def test_what_is_on_its_way_to_several_shards_is_one_record(town: Town) -> None:
    record = batch_id()
    columns = {"sku": [1, 1, 2], "location": [1, 2, 2], "quantity": [3, 4, 5]}
    when = {"value": [9, 8, 0], **on(record)}
    expect = Request.of(os.urandom(16), 3, kind=Kind.EXPECT, **columns, **when)
    _, answer = await town.router.submit(expect)
    assert answer.status == bytes(3)
    found = await town.router.incoming(record)
    assert found is not None
    assert (found.state, found.expected_at_ns) == (HoldState.INCOMING, 8 * 10**6)
    assert [(line.location, line.outstanding) for line in found.lines] == [(1, 3), (2, 4), (2, 5)]
    near = await town.router.incoming(record, location=2)
    assert near is not None
    assert len(near.lines) == 2
    dated = await town.router.incoming_of([(2, 2), (1, 1)])
    assert [(each.location, each.units) for each in dated] == [(1, 3), (2, 5)]
    part = call(os.urandom(16), Kind.CANCEL_INCOMING, record, sku=1, location=2, quantity=4)
    whole = call(os.urandom(16), Kind.CANCEL_INCOMING, record)
    for request in (part, whole, whole):
        _, answer = await town.router.on_hold(request)
        assert answer.status == b"\0"
    found = await town.router.incoming(record)
    assert found is not None
    assert found.state == HoldState.DROPPED
    assert town.counted("incoming") == 0
    assert await town.router.incoming(bytes(16)) is None


OPEN, CAME, GONE = HoldState.INCOMING, HoldState.RECEIVED, HoldState.DROPPED


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ((OPEN, OPEN), OPEN),
        ((OPEN, CAME), OPEN),
        ((OPEN, GONE), OPEN),
        ((CAME, CAME), CAME),
        ((CAME, GONE), CAME),
        ((GONE, GONE), GONE),
    ],
)
@pytest.mark.parametrize(("dates", "date"), [((0, 0), 0), ((0, 7), 7), ((7, 0), 7), ((5, 7), 5)])
@pytest.mark.parametrize("at", [[1, 2], [2, 1]])
async def test_a_record_is_open_while_a_part_of_it_is_and_is_due_with_the_first(
    town: Town,
    states: tuple[HoldState, HoldState],
    state: HoldState,
    dates: tuple[int, int],
    date: int,
    at: list[int],
) -> None:
    record = batch_id()
    columns = {"sku": 1, "location": at, "quantity": 3, "value": dates, **on(record)}
    expect = Request.of(os.urandom(16), 2, kind=Kind.EXPECT, **columns)
    assert not any((await town.router.submit(expect))[1].status)
    ends = {CAME: Kind.RECEIVE, GONE: Kind.CANCEL_INCOMING}
    for location, each in zip(at, states, strict=True):
        if each in ends:
            line = {"sku": 1, "location": location, "quantity": 3}
            end = call(os.urandom(16), ends[each], record, **line)
            assert not any((await town.router.submit(end))[1].status)
    found = await town.router.incoming(record)
    assert found is not None
    assert (found.state, found.expected_at_ns) == (state, date * 10**6)
    assert sorted(line.location for line in found.lines) == [1, 2]


async def test_records_without_an_id_have_that_of_their_line_wherever_they_are(town: Town) -> None:
    op_id = batch_id()
    columns = {"sku": 1, "location": [2, 1], "quantity": 3}
    _, answer = await town.router.submit(Request.of(op_id, 2, kind=Kind.EXPECT, **columns))
    assert answer.status == bytes(2)
    records = [await town.router.incoming(line_id(op_id, n)) for n in range(2)]
    assert [record and record.lines[0].location for record in records] == [2, 1]


async def test_whom_a_batch_endangers_is_told_by_its_lines(town: Town) -> None:
    held = [batch_id(), batch_id()]
    await town.router.reserve(order(held[0], [(1, 1)], 10))
    await town.router.reserve(order(held[1], [(1, 2)], 10))
    columns = {"sku": [2, 1, 1], "location": [1, 2, 1], "quantity": [1, 2, 3]}
    _, answer = await town.router.submit(Request.of(batch_id(), 3, kind=Kind.SALE, **columns))
    told = [
        (each.line, each.units, [hold.hold_id for hold in each.holds]) for each in answer.endangered
    ]
    assert told == [(1, 2, [held[1]]), (2, 3, [held[0]])]


# --- turns ----------------------------------------------------------------------------------------


async def test_calls_on_one_hold_take_turns_and_leave_nothing_behind() -> None:
    turns = Turns()
    order: list[str] = []

    async def one(name: str, hold_id: bytes) -> None:
        async with turns.of(hold_id):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    first, second = bytes(16), os.urandom(16)
    calls = [asyncio.create_task(one(name, first)) for name in ("a", "b", "c")]
    other = asyncio.create_task(one("d", second))
    await asyncio.sleep(0)
    assert len(turns) == 2
    calls[1].cancel()
    await asyncio.gather(*calls, other, return_exceptions=True)
    assert order == ["a begins", "d begins", "a ends", "d ends", "c begins", "c ends"]
    assert len(turns) == 0


async def test_calls_are_begun_or_never_made() -> None:
    """A coroutine that is dropped before its first step is warned of, which fails a test."""

    async def asked() -> None:
        """Answer nothing."""

    def calls() -> Iterator[Coroutine[Any, Any, None]]:
        yield asked()
        raise Unavailable("shard 1 is not known here")

    with pytest.raises(Unavailable):
        await every(calls())
    gc.collect()


@pytest.mark.parametrize("looks", range(6))
async def test_a_commit_that_cannot_learn_all_it_must_note_leaves_no_call_unmade(
    town: Town, looks: int
) -> None:
    """Both parts are committed in part, and the second shard is gone after so many looks."""
    hold_id, second, left = batch_id(), town.shards[1], looks
    await town.router.reserve(order(hold_id, [(1, 1), (2, 2)], 3))
    for cell in (1, 2):
        part = call(os.urandom(16), Kind.COMMIT, hold_id, sku=cell, location=cell, quantity=1)
        await town.router.on_hold(part)
    look = second.sight

    async def sight(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("shard 1 is gone")
        return await look(*args)

    second.sight = sight  # type: ignore[method-assign]
    with suppress(Unavailable):
        _, answer = await town.router.on_hold(call(batch_id(), Kind.COMMIT, hold_id))
        assert not any(answer.status)
    gc.collect()


async def test_the_answer_to_another_part_of_a_batch_is_not_told(town: Town) -> None:
    """Whoever asks a shard by itself and then the gateway, or the other way about, has two ways to cut it."""
    own = Router({0: town.shards[0]}, lambda: MAP)
    for ways in ((own, town.router), (town.router, own)):
        sale = Request.of(batch_id(), 2, kind=Kind.SALE, sku=1, location=[2, 1], quantity=1)
        await ways[0].submit(sale)
        _, answer = await ways[1].submit(sale)
        elsewhere = Status.OP_ID_REUSED if ways[1] is own else Status.OK
        assert list(answer.status) == [elsewhere, Status.OP_ID_REUSED]
    assert await town.available(1, 1) == 8


async def test_nor_is_that_to_another_part_of_a_call_on_a_record(town: Town) -> None:
    record, own = batch_id(), Router({0: town.shards[0]}, lambda: MAP)
    columns: dict[str, Any] = {"sku": 1, "location": [2, 1, 3], "quantity": 5}
    expect = Request.of(batch_id(), 3, kind=Kind.EXPECT, **columns, **on(record))
    assert not any((await town.router.submit(expect))[1].status)
    columns["quantity"] = [2, 2, 9]
    cancel = call(batch_id(), Kind.CANCEL_INCOMING, record, 3, **columns)
    _, answer = await own.on_hold(cancel)
    assert list(answer.status) == [Status.NOT_IN_HOLD, Status.OK, Status.EXCEEDS_HOLD]
    _, answer = await town.router.on_hold(cancel)
    assert list(answer.status) == [Status.OK, Status.OP_ID_REUSED, Status.OP_ID_REUSED]
    assert town.counted("incoming") == 11
