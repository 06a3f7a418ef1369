"""Links from a gateway to a shard in another process: what goes over them, and for whom."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.links import CALL_REQUESTS, CALLS_IN_FLIGHT, QUEUED_REQUESTS, LinkServer, RemoteShard
from actors.ports import Fenced, Overloaded, Unavailable
from actors.service import ActorBusy, ActorGone
from actors.transits import place_id
from engine import wire
from engine.operations import Answer, Kind, Request
from tests.fakes.shard import FakeShard
from tests.unit.test_router import order


class Wire:
    """Handle and service in one, with a gate to hold calls back and faults to order."""

    def __init__(self, shard: FakeShard) -> None:
        self.shard = shard
        self.catalogue_epoch = 0
        self._server = LinkServer(shard, lambda: self.catalogue_epoch)
        self.batches: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fault: Exception | None = None

    async def call(self, method: str, *args: Any) -> Any:
        if method == "submit_many":
            self.batches.append(len(wire.decode_requests(args[1])))
        await self.open.wait()
        if self.fault:
            raise self.fault
        return await self._server.serve(method, *args)

    def link(self, epoch: int = 1) -> tuple[RemoteShard, list[Fenced]]:
        """A gateway's end, and what it is told when it is shut out."""
        fenced: list[Fenced] = []
        return RemoteShard(self.shard.number, self, epoch, fenced.append), fenced


Linked = Callable[[], Awaitable[tuple[Wire, RemoteShard]]]


@pytest.fixture
async def remote() -> tuple[Wire, RemoteShard]:
    ends = Wire(FakeShard(3))
    return ends, ends.link()[0]


def receive(quantity: int = 1) -> Request:
    return Request.of(
        os.urandom(16),
        1,
        kind=Kind.RECEIVE,
        sku=1,
        location=1,
        quantity=quantity,
        want_available=True,
    )


async def test_a_remote_shard_is_a_shard(remote: tuple[Wire, RemoteShard]) -> None:
    ends, link = remote
    assert link.number == 3
    answer = await link.submit(receive(5))
    assert (answer.status, answer.available, answer.seq) == (b"\0", (5).to_bytes(8, "little"), 1)
    held = order(os.urandom(16), [(1, 1)])
    await link.submit(held)
    assert await link.hold(held.op_id) == ends.shard.machine.hold(held.op_id)
    assert await link.hold(bytes(16)) is None
    place = Request.of(place_id(held.op_id, 0), 1, kind=Kind.RESERVE, sku=1, location=1, quantity=1)
    await link.submit(place)  # refused: there is no time to live
    sight = await link.sight(held.op_id, [held.op_id, bytes(16)])
    assert sight == await ends.shard.sight(held.op_id, [held.op_id, bytes(16)])
    assert sight.digests == {held.op_id: held.digest}
    assert [each.digest for each in sight.waiting] == [place.digest]
    assert await link.cells([(1, 1), (2, 2)]) == [ends.shard.machine.cell(1, 1), None]
    expect = Request.of(os.urandom(16), 1, kind=Kind.EXPECT, sku=1, location=1, quantity=3, value=7)
    await link.submit(expect)
    record = await link.incoming(expect.op_id)
    assert record is not None
    assert record == ends.shard.machine.incoming(expect.op_id)
    assert await link.incoming(bytes(16)) is None
    assert await link.incoming_of([(1, 1), (2, 2)]) == ends.shard.machine.incoming_of([(1, 1)])
    sold = await link.submit(receive(1))
    assert (sold.granted, sold.endangered) == (b"", ())
    table, own = await link.table([1]), await ends.shard.table()
    assert (table.at, table.cells.tolist()) == (own.at, own.cells.tolist())
    with pytest.raises(KeyError):
        await ends.call("drop_everything", 1)


async def test_what_gathers_goes_together(remote: tuple[Wire, RemoteShard]) -> None:
    ends, link = remote
    ends.open.clear()
    calls = []
    for _ in range(5):
        calls += [asyncio.create_task(link.submit(receive())) for _ in range(10)]
        for _ in range(3):
            await asyncio.sleep(0)
    assert ends.batches == [10] * CALLS_IN_FLIGHT
    ends.open.set()
    await asyncio.gather(*calls)
    assert ends.batches == [10, 10, 30]
    assert len(ends.shard.seen) == 50


async def test_a_full_queue_is_an_overload(remote: tuple[Wire, RemoteShard]) -> None:
    ends, link = remote
    ends.open.clear()
    calls = [asyncio.create_task(link.submit(receive())) for _ in range(QUEUED_REQUESTS)]
    await asyncio.sleep(0.01)
    sent = CALLS_IN_FLIGHT * CALL_REQUESTS
    calls += [asyncio.create_task(link.submit(receive())) for _ in range(sent)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await link.submit(receive())
    await link.close()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {Unavailable}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ActorGone("died"), Unavailable),
        (ActorBusy("busy"), Overloaded),
        (Unavailable("stopping"), Unavailable),
        (KeyError("a bug"), RuntimeError),
    ],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
async def test_faults_of_a_call_reach_all_of_its_callers(
    remote: tuple[Wire, RemoteShard], fault: Exception, told: type[Exception]
) -> None:
    ends, link = remote
    ends.fault = fault
    errors = await asyncio.gather(
        *(link.submit(receive()) for _ in range(3)), return_exceptions=True
    )
    assert [type(error) for error in errors] == [told] * 3
    ends.fault = None
    assert (await link.submit(receive())).status == b"\0"


async def test_faults_of_one_request_are_its_own(remote: tuple[Wire, RemoteShard]) -> None:
    ends, link = remote
    ends.shard.faults += [None, Overloaded("full"), Unavailable("stopping")]
    told = await asyncio.gather(*(link.submit(receive()) for _ in range(4)), return_exceptions=True)
    assert [type(each).__name__ for each in told] == [
        "Answer",
        "Overloaded",
        "Unavailable",
        "Answer",
    ]


async def test_a_caller_that_went_away_is_not_sent(remote: tuple[Wire, RemoteShard]) -> None:
    ends, link = remote
    gone = asyncio.create_task(link.submit(receive()))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await link.submit(receive())
    assert len(ends.shard.seen) == 1


@given(st.binary(max_size=64))
def test_bytes_that_are_no_requests_are_told(payload: bytes) -> None:
    for decode in (wire.decode_requests, wire.decode_answers):
        with suppress(wire.WireError):
            decode(payload)


# --- gateways that are replaced -------------------------------------------------------------------


async def test_a_gateway_that_was_replaced_can_do_nothing_any_more() -> None:
    ends = Wire(FakeShard(3))
    (old, fenced), (new, _) = ends.link(epoch=4), ends.link(epoch=5)
    assert (await old.submit(receive())).status == b"\0"
    await new.sight(bytes(16))  # a read is enough
    for call in (old.submit(receive()), old.hold(bytes(16))):
        with pytest.raises(Unavailable, match="a gateway of epoch 5 has replaced the one of 4"):
            await call
    assert [type(error) for error in fenced] == [Fenced, Fenced]
    assert (await new.submit(receive())).status == b"\0"
    assert len(ends.shard.seen) == 2


async def test_a_shard_that_has_just_started_knows_by_the_catalogue_who_was_replaced() -> None:
    ends = Wire(FakeShard(3))
    ends.catalogue_epoch = 5
    old, fenced = ends.link(epoch=4)
    with pytest.raises(Unavailable):
        await old.submit(receive())
    assert (len(fenced), ends.shard.seen) == (1, [])


async def test_what_an_older_gateway_wrote_is_done_before_a_newer_one_is_answered() -> None:
    """Else it would come between two steps of the newer one."""
    shard = FakeShard(3)
    ends, submit, written = Wire(shard), shard.submit, asyncio.Event()

    async def slow(request: Request) -> Answer:
        await written.wait()
        return await submit(request)

    shard.submit = slow  # type: ignore[method-assign]
    held = order(os.urandom(16), [(1, 1)])
    (old, _), (new, _) = ends.link(epoch=4), ends.link(epoch=5)
    stocked = asyncio.create_task(old.submit(receive(5)))
    await asyncio.sleep(0.001)
    late = asyncio.create_task(old.submit(held))
    await asyncio.sleep(0.001)
    seen = asyncio.create_task(new.sight(held.op_id, [held.op_id]))
    await asyncio.sleep(0.001)
    assert not seen.done()
    written.set()
    assert (await seen).digests == {held.op_id: held.digest}
    assert (await stocked).status == (await late).status == b"\0"  # both had been taken before
