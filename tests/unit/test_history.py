"""The history of a hold, read out of a shard's journal."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.router import Router, merged_histories
from actors.shard import Shard
from adapters.client import messages
from adapters.rpc import replies
from engine import wire
from engine.block import Block, encode
from engine.catalogue import Catalogue
from engine.history import Event, History, events_of, is_whole, may_concern
from engine.operations import Flag, Kind, Request, id_to_pair, line_id
from engine.shard_map import ShardMap
from engine.status import Status
from tests.fakes.shard import FakeShard
from tests.unit.test_shard import World, new_id, receive, reserve


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def shard(world: World) -> AsyncIterator[Shard]:
    async with world.serving() as shard:
        await shard.submit(receive(1, 100))
        yield shard


def on_hold(kind: Kind, hold_id: bytes, quantity: int = 0) -> Request:
    high, low = id_to_pair(hold_id)
    return Request.of(
        new_id(), 1, kind=kind, quantity=quantity, hold_hi=high, hold_lo=low, want_available=True
    )


async def told(shard: Shard, hold_id: bytes) -> list[tuple[Kind, int, Status]]:
    found = await shard.history(hold_id)
    return [(Kind(each.kind), each.quantity, Status(each.status)) for each in found.events]


async def test_an_order_tells_every_operation_on_it_in_order(shard: Shard) -> None:
    held, other = reserve(1, 5, os.urandom(16)), reserve(1, 5, os.urandom(16))
    for request in (
        held,
        other,
        on_hold(Kind.COMMIT, held.op_id, 3),
        on_hold(Kind.COMMIT, other.op_id),
        on_hold(Kind.COMMIT, held.op_id, 9),
        on_hold(Kind.FULFIL, held.op_id, 1),
    ):
        await shard.submit(request)
    assert await told(shard, held.op_id) == [
        (Kind.RESERVE, 5, Status.OK),
        (Kind.COMMIT, 3, Status.OK),
        (Kind.COMMIT, 9, Status.EXCEEDS_HOLD),
        (Kind.FULFIL, 1, Status.OK),
    ]
    assert (await shard.history(held.op_id)).complete


async def test_nothing_is_told_of_an_id_that_nothing_has(shard: Shard) -> None:
    await shard.submit(on_hold(Kind.COMMIT, bytes(16)))
    for hold_id in (os.urandom(16), bytes(16)):
        assert await shard.history(hold_id) == History([], complete=True)


async def test_all_lines_of_a_linked_order_are_told(shard: Shard) -> None:
    """The lines before and behind it in the batch are not."""
    await shard.submit(receive(2, 10))
    base = new_id()
    flags = [0, Flag.LINKED, 0, 0]
    batch = Request.of(
        base, 4, kind=Kind.RESERVE, sku=[1, 1, 2, 2], location=1, quantity=1, value=60_000,
        flags=flags,
    )  # fmt: skip
    await shard.submit(batch)
    first, order, last = (line_id(base, line) for line in (0, 1, 3))
    assert [each.line for each in (await shard.history(first)).events] == [0]
    assert [each.line for each in (await shard.history(order)).events] == [1, 2]
    assert [each.line for each in (await shard.history(last)).events] == [3]


async def test_the_past_of_another_process_is_told_too(world: World) -> None:
    held = reserve(1, 5, os.urandom(16))
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        await shard.submit(held)
    async with world.serving() as shard:
        await shard.submit(on_hold(Kind.RELEASE, held.op_id))
        history = await shard.history(held.op_id)
    assert [(each.kind, each.epoch) for each in history.events] == [
        (Kind.RESERVE, 1),
        (Kind.RELEASE, 2),
    ]


@pytest.mark.parametrize("keep", [0, 1 << 20])
async def test_a_trimmed_journal_says_that_it_is_not_all(world: World, keep: int) -> None:
    """What is kept for histories is not trimmed behind a snapshot."""
    held = reserve(1, 5, os.urandom(16))
    async with world.serving(keep_journal_bytes=keep) as shard:
        await shard.submit(receive(1, 10))
        await shard.submit(held)
        for _ in range(3):
            await shard.snapshot()
            await shard.submit(on_hold(Kind.COMMIT, held.op_id, 1))
        assert (world.stream.entries[0][0].seq > 0) == (keep == 0), "the journal was trimmed"
        history = await shard.history(held.op_id)
    kinds = [each.kind for each in history.events]
    if keep:
        assert kinds == [Kind.RESERVE, *[Kind.COMMIT] * 3]
    else:
        assert set(kinds) == {Kind.COMMIT}
    assert history.complete == bool(keep)


def test_bytes_that_cannot_matter_are_passed_over() -> None:
    held = reserve(1, 5, os.urandom(16))
    payload, _ = encode(Block(0, 1, 1, 10, 0, 0, 9, requests=[held], status=_ok(1)))
    called = on_hold(Kind.COMMIT, held.op_id)
    call, _ = encode(Block(0, 1, 1, 10, 0, 0, 9, requests=[called], status=_ok(1)))
    assert may_concern(payload, held.op_id)
    assert may_concern(call, held.op_id)
    assert not may_concern(payload, os.urandom(16))
    assert not may_concern(call, os.urandom(16))


def test_a_refused_reserve_made_nothing() -> None:
    held = reserve(1, 5, os.urandom(16))
    block = Block(0, 1, 1, 10, 0, 0, 9, requests=[held], status=_ok(1))
    (made,) = events_of(block, held.op_id)
    assert is_whole([made], held.op_id)
    assert not is_whole([replace(made, status=int(Status.INSUFFICIENT_STOCK))], held.op_id)
    assert not is_whole([replace(made, kind=int(Kind.COMMIT))], held.op_id)
    assert not is_whole([], held.op_id)
    sold = replace(made, op_id=new_id(), kind=int(Kind.SALE))
    assert is_whole([sold], held.op_id)
    assert not is_whole([replace(sold, status=int(Status.HOLD_EXISTS))], held.op_id)


def event(now_ns: int, shard: int) -> Event:
    return Event(bytes(16), 0, Kind.COMMIT, 0, 1, 1, 0, 0, 0, 0, 0, now_ns, shard, 1, 1)


def test_a_history_goes_over_the_wire() -> None:
    history = History([event(1, 0), event(2, 1)], complete=False)
    assert wire.decode_history(wire.encode_history(history)) == history


async def test_the_parts_of_a_hold_are_told_by_time() -> None:
    shards = {number: FakeShard(number) for number in range(2)}
    router = Router(shards, lambda: ShardMap(1, 2))
    hold_id = os.urandom(16)
    shards[0].events[hold_id] = [event(1, 0), event(4, 0)]
    shards[1].events[hold_id] = [event(2, 1)]
    found = await router.history(hold_id)
    assert [(each.now_ns, each.shard) for each in found.events] == [(1, 0), (2, 1), (4, 0)]
    assert found.complete


def test_a_history_of_nothing_is_complete_if_that_of_every_shard_is() -> None:
    whole, cut = History([], complete=True), History([], complete=False)
    assert merged_histories([whole, whole]).complete
    assert not merged_histories([whole, cut]).complete


def _ok(lines: int) -> NDArray[np.uint8]:
    return np.zeros(lines, np.uint8)


def test_a_line_without_a_hold_is_no_event_of_no_hold() -> None:
    """All zeros mean "no hold", so lines that name none are not about one of that id."""
    sold = Request.of(new_id(), 2, kind=[Kind.SALE, Kind.COMMIT], sku=1, location=1, quantity=1)
    block = Block(0, 1, 1, 10, 0, 0, 9, requests=[sold], status=_ok(2))
    assert list(events_of(block, bytes(16))) == []


def test_a_line_of_no_kind_is_about_nothing() -> None:
    """It is refused for that; and whoever reads histories knows the kinds that there are."""
    high, low = id_to_pair(held := new_id())
    told = Request.of(
        new_id(), 4, kind=[99, Kind.COMMIT, 0, 255], hold_hi=np.uint64(high), hold_lo=np.uint64(low)
    )
    statuses = np.full(4, Status.INVALID_KIND, np.uint8)
    block = Block(0, 1, 1, 10, 0, 0, 9, requests=[told], status=statuses)
    events = list(events_of(block, held))
    assert [(each.line, each.kind) for each in events] == [(1, Kind.COMMIT)]
    packed = replies.history(held, None, History(events, complete=True), Catalogue())
    assert [each.kind for each in messages.history_from(packed).events] == [Kind.COMMIT]


def test_a_delivery_that_is_expected_without_a_name_has_the_id_of_its_line() -> None:
    high, low = (np.array([0, half, 0], np.uint64) for half in id_to_pair(new_id()))
    expected = Request.of(
        new_id(), 3, kind=[Kind.EXPECT, Kind.EXPECT, Kind.SALE], sku=1, location=1, quantity=1,
        hold_hi=high, hold_lo=low,
    )  # fmt: skip
    block = Block(0, 1, 1, 10, 0, 0, 9, requests=[expected], status=_ok(3))
    events = [list(events_of(block, line_id(expected.op_id, line))) for line in range(3)]
    assert [[each.line for each in told] for told in events] == [[0], [], []]
    assert is_whole(events[0], expected.op_id)


TRIMMED: dict[str, tuple[list[Kind], list[int], list[int]]] = {
    "an exchange": ([Kind.RETURN, Kind.RESERVE], [1, 1], [Flag.LINKED, 0]),
    "an order whose first line found nothing": (
        [Kind.RESERVE, Kind.RESERVE],
        [2, 1],
        [Flag.LINKED | Flag.PARTIAL, Flag.PARTIAL],
    ),
    "an order behind a line that links nothing": ([Kind.SALE, Kind.RESERVE], [1, 1], [1, 0]),
}


@pytest.mark.parametrize("made_by", TRIMMED)
async def test_all_of_a_hold_is_told_when_what_was_trimmed_is_older(
    world: World, made_by: str
) -> None:
    kind, sku, flags = TRIMMED[made_by]
    base = new_id()
    hold_id = line_id(base, 1) if kind[0] == Kind.SALE else base
    async with world.serving(keep_journal_bytes=0) as shard:
        await shard.submit(receive(1, 100))
        for _ in range(3):
            await shard.submit(receive(3, 1))
            await shard.snapshot()
        assert world.stream.entries[0][0].seq > 0, "the journal was trimmed"
        value = [60_000 if each == Kind.RESERVE else 0 for each in kind]
        await shard.submit(
            Request.of(
                base, 2, kind=kind, sku=sku, location=1, quantity=1, value=value, flags=flags
            )
        )
        await shard.submit(on_hold(Kind.COMMIT, hold_id))
        history = await shard.history(hold_id)
        other = await shard.history(line_id(base, 0 if kind[0] == Kind.SALE else 1))
    last = history.events[-2:]
    assert [(each.kind, each.status) for each in last] == [(Kind.RESERVE, 0), (Kind.COMMIT, 0)]
    assert history.complete
    assert other.events == [], "no order begins there"


def test_an_order_that_was_refused_is_not_made_whole_by_what_follows() -> None:
    """The batch goes on with an order of its own, which takes the place of that hold."""
    base = new_id()
    high, low = (np.array([0, 0, half], np.uint64) for half in id_to_pair(base))
    flags = [Flag.LINKED, 0, Flag.SUPERSEDE]
    batch = Request.of(
        base, 3, kind=[Kind.RETURN, Kind.RESERVE, Kind.RESERVE], sku=1, location=1, quantity=1,
        flags=flags, hold_hi=high, hold_lo=low,
    )  # fmt: skip
    refused, short = int(Status.LINKED_LINE_REFUSED), int(Status.INSUFFICIENT_STOCK)
    status = np.array([refused, short, 0], np.uint8)
    events = list(events_of(Block(0, 1, 1, 10, 0, 0, 9, requests=[batch], status=status), base))
    assert [each.line for each in events] == [0, 1, 2]
    assert not is_whole(events, base)
    done = [replace(each, status=0) for each in events]
    assert is_whole(done, base)
    assert not is_whole(done[1:], base)


@pytest.mark.parametrize("hold_id", [b"ORDER001" + bytes(8), bytes(8) + b"ORDER001"])
async def test_a_hold_of_whose_id_a_half_is_zero_is_found(world: World, hold_id: bytes) -> None:
    """A block has no column for a half that is zero in all its lines."""
    high, low = id_to_pair(hold_id)
    parts: dict[str, Any] = {
        "sku": [1, 2], "location": 1, "quantity": 1, "flags": [Flag.LINKED, 0],
    }  # fmt: skip
    async with world.serving() as shard:
        await shard.submit(receive(1, 10))
        await shard.submit(receive(2, 10))
        await shard.submit(Request.of(hold_id, 2, kind=Kind.RESERVE, value=60_000, **parts))
        for kind in (Kind.COMMIT, Kind.FULFIL):
            await shard.submit(
                Request.of(new_id(), 2, kind=kind, hold_hi=high, hold_lo=low, **parts)
            )
        history = await shard.history(hold_id)
    kinds = [Kind.RESERVE, Kind.COMMIT, Kind.FULFIL]
    assert [each.kind for each in history.events] == [kind for kind in kinds for _ in range(2)]
