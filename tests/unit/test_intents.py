"""What a gateway has begun over several shards is written down, and done before another call meets it."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import msgpack
import pytest

from actors import intents, transfers
from actors.intents import IntentLog
from actors.ports import JournalError, Overloaded, ShardLink, Unavailable
from actors.router import Router
from engine import limits
from engine.operations import Answer, Flag, Kind, Request
from engine.status import Status
from tests.fakes.journal import FakeJournal, MemoryStream
from tests.unit.test_moves import a_move
from tests.unit.test_returns import (
    a_return,
    an_exchange,
    handed_over,
    handed_over_by_two,
    together,
)
from tests.unit.test_router import MAP, TTL, Town, call, on, order
from tests.unit.test_spanning import (
    HELD,
    NEW,
    OP,
    Died,
    Mortal,
    Operation,
    an_order,
    commit_all,
    nothing,
    pending_of,
    state_of,
)
from tests.unit.test_transfers import TO_BOTH_SHARDS, asked_for, losing, shipping

SOME = Request.of(OP, 1, kind=Kind.COMMIT)
OTHERS = bytes([9]) * 16  # the op_id of a call that comes between
ELSEWHERE = bytes([5]) * 16  # another hold


def fail(error: JournalError) -> None:
    raise AssertionError(error)


async def log_of(stream: MemoryStream, lost: list[JournalError] | None = None) -> IntentLog:
    log = IntentLog(FakeJournal(stream), fail if lost is None else lost.append)
    await log.start()
    return log


async def begun(log: IntentLog, *hold_ids: bytes, args: Sequence[Any] = ()) -> intents.Intent:
    return await log.begin("on_hold", SOME, args, hold_ids, {})


def whole_blocks(stream: MemoryStream) -> list[bool]:
    return [msgpack.unpackb(payload)["whole"] for _, payload in stream.entries]


# --- the log --------------------------------------------------------------------------------------


async def test_what_has_begun_and_not_ended_is_found_by_the_next_owner() -> None:
    stream = MemoryStream()
    log = await log_of(stream)
    first = await begun(log, HELD, args=(3,))
    second = await begun(log, HELD, NEW, args=([1, 2],))
    log.end(first)
    log.end(first)  # it has no second effect
    await log.close()
    (found,) = (await log_of(stream)).open
    assert (found.method, found.args, found.hold_ids) == ("on_hold", ([1, 2],), (HELD, NEW))
    assert (found.request.op_id, found.request.digest) == (SOME.op_id, SOME.digest)
    assert [each.number for each in log.of([NEW, HELD])] == [second.number]
    again = await log_of(stream)
    assert [each.number for each in again.of([NEW])] == [second.number] == [2]
    assert (again.of([HELD])[0].packed, again.of([ELSEWHERE])) == (second.packed, [])
    third = await begun(again, HELD)
    assert third.number == 3


async def test_what_begins_meanwhile_is_written_together() -> None:
    stream = MemoryStream()
    log = await log_of(stream)
    before = len(stream.entries)
    made = await asyncio.gather(*(begun(log, bytes([each]) * 16) for each in range(40)))
    assert len(stream.entries) <= before + 2
    for each in made:
        log.end(each)
    await log.close()
    assert len(stream.entries) <= before + 3
    assert (len(log), (await log_of(stream)).open) == (0, [])


async def test_that_a_call_has_ended_is_written_before_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intents, "ENDS_WITHIN_S", 0.001)
    stream = MemoryStream()
    log = await log_of(stream)
    log.end(await begun(log, HELD))
    await asyncio.sleep(0.1)
    assert msgpack.unpackb(stream.entries[-1][1])["ended"] == [1]


async def test_the_journal_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intents, "WHOLE_EVERY", 4)
    stream = MemoryStream()
    log = await log_of(stream)
    stays = await begun(log, HELD)
    for _ in range(40):
        log.end(await begun(log, NEW))
    assert len(stream.entries) <= 6
    assert any(whole_blocks(stream))
    assert stays.packed in [each.packed for each in (await log_of(stream)).open]


async def test_a_journal_that_is_not_trimmed_now_is_trimmed_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intents, "WHOLE_EVERY", 4)
    journal = FakeJournal(stream := MemoryStream())
    log = IntentLog(journal, fail)
    await log.start()
    trim, refused = journal.trim, [True]

    async def sometimes(before: Any) -> int:
        if refused.pop() if refused else False:
            raise intents.JournalUnavailable("not now")
        return await trim(before)

    monkeypatch.setattr(journal, "trim", sometimes)
    for _ in range(20):
        log.end(await begun(log, NEW))
    assert len(stream.entries) <= 6
    assert not refused


@pytest.mark.parametrize("bound", ["MAX_OPEN", "MAX_OPEN_BYTES"])
async def test_there_is_an_end_to_what_may_be_open(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    log = await log_of(MemoryStream())
    first = await begun(log, HELD)
    monkeypatch.setattr(intents, bound, 1 if bound == "MAX_OPEN" else len(first.packed))
    with pytest.raises(Overloaded):
        await begun(log, HELD)
    assert log.open == [first]
    log.end(first)
    await begun(log, HELD)


async def test_what_could_not_be_written_has_not_begun() -> None:
    stream = MemoryStream()
    journal = FakeJournal(stream)
    log = IntentLog(journal, fail)
    await log.start()
    log.end(await begun(log, HELD))
    journal.faults.append("refuse")
    with pytest.raises(Unavailable, match="journal"):
        await begun(log, HELD)
    assert len(log) == 0
    await begun(log, NEW)
    assert [each.hold_ids for each in (await log_of(stream)).open] == [(NEW,)]


@pytest.mark.parametrize("fault", ["lose_request", "lose_reply"])
async def test_who_does_not_know_what_was_written_owns_nothing_any_more(fault: str) -> None:
    lost: list[JournalError] = []
    journal = FakeJournal(MemoryStream())
    log = IntentLog(journal, lost.append)
    await log.start()
    journal.faults.append(fault)
    with pytest.raises(Unavailable, match="journal"):
        await begun(log, HELD)
    assert len(lost) == 1


async def test_an_owner_that_was_replaced_begins_nothing() -> None:
    stream, lost = MemoryStream(), list[JournalError]()
    log = await log_of(stream, lost)
    await log_of(stream)
    with pytest.raises(Unavailable, match="journal"):
        await begun(log, HELD)
    assert len(lost) == 1


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_what_a_caller_begins_who_goes_away_has_not_begun(turns: int) -> None:
    """He has taken no step: gone before it is written, while it is, or just after that."""
    stream = MemoryStream()
    log = await log_of(stream)
    caller = asyncio.create_task(begun(log, HELD))
    for _ in range(turns):
        await asyncio.sleep(0)
    assert log.of([HELD]) == []
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await log.close()
    assert len(log) == 0
    assert (await log_of(stream)).open == []
    log = await log_of(stream)
    for _ in range(3):
        log.end(await begun(log, HELD))


async def test_who_comes_while_the_journal_is_refusing_does_not_wait_for_ever() -> None:
    gate = asyncio.Event()
    gate.set()
    journal = FakeJournal(MemoryStream(), delay=gate.wait)
    log = IntentLog(journal, fail)
    await log.start()
    gate.clear()
    journal.faults.append("refuse")
    callers = [asyncio.create_task(begun(log, HELD))]
    await asyncio.sleep(0.01)
    callers.append(asyncio.create_task(begun(log, NEW)))
    await asyncio.sleep(0.01)
    gate.set()
    told = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), timeout=5)
    assert [type(each) for each in told] == [Unavailable, Unavailable]
    assert len(log) == 0


async def test_that_a_call_has_ended_is_written_though_the_journal_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intents, "ENDS_WITHIN_S", 0.01)
    stream = MemoryStream()
    journal = FakeJournal(stream)
    log = IntentLog(journal, fail)
    await log.start()
    made = await begun(log, HELD)
    journal.faults += ["refuse", "refuse"]
    log.end(made)
    await asyncio.sleep(0.2)
    assert not journal.faults
    assert (await log_of(stream)).open == []


async def test_a_bug_in_the_journal_is_told_to_who_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = await log_of(MemoryStream())
    with monkeypatch.context() as patch:
        patch.setattr(intents, "_encoded", lambda *_, **__: 1 / 0)
        with pytest.raises(Unavailable):
            await begun(log, HELD)
    assert "failed" in caplog.text
    await begun(log, HELD)


# --- calls that meet ------------------------------------------------------------------------------


class Gateway:
    """The gateway of a town, and those that come after it."""

    def __init__(self, town: Town) -> None:
        self.town, self.stream = town, MemoryStream()

    async def router(
        self, links: Mapping[int, ShardLink] | None = None, passed_ms: int = 0
    ) -> Router:
        log = IntentLog(
            FakeJournal(self.stream), [].append, clock=lambda: passed_ms * limits.NS_PER_MS
        )
        await log.start()
        shards = links or dict(enumerate(self.town.shards))
        return Router(shards, lambda: MAP, log, transfers.OPERATIONS)

    async def dies(self, operation: Operation, lives: int) -> bool:
        """Whether it has died when it had made so many calls that change something."""
        left = [lives]
        links = {number: Mortal(shard, left) for number, shard in enumerate(self.town.shards)}
        try:
            await operation(await self.router(links))
        except Died:
            return True
        return False


def on_all(kind: Kind, op_id: bytes = OP, **columns: Any) -> Operation:
    return lambda router: router.on_hold(call(op_id, kind, HELD, **columns))


async def held(town: Town) -> None:
    await town.router.reserve(order(HELD, [(1, 1), (2, 2)], [5, 2]))


async def committed(town: Town) -> None:
    await held(town)
    await on_all(Kind.COMMIT, ELSEWHERE)(town.router)


async def paid_in_part(town: Town) -> None:
    await held(town)
    await on_all(Kind.COMMIT, ELSEWHERE, sku=1, location=1, quantity=1)(town.router)


async def moved(town: Town) -> None:
    await held(town)
    await a_move(2, op_id=ELSEWHERE)(town.router)


def another_order(cells: list[tuple[int, int]], quantity: Any) -> Operation:
    """As `an_order` in place of the hold, of another caller."""

    async def reserve(router: Router) -> tuple[int, Answer]:
        requests: list[Request] = []

        class Sink:
            async def reserve(self, request: Request) -> None:
                requests.append(request)

        await an_order(cells, quantity, older=HELD)(Sink())  # type: ignore[arg-type]
        (request,) = requests
        other = Request(OTHERS, request.lines, request.columns, want_available=True)
        return await router.reserve(other)

    return reserve


FIRST, SECOND = (
    {"sku": each, "location": each, "quantity": units} for each, units in ((1, 5), (2, 2))
)
A_UNIT = {"sku": 1, "location": 1, "quantity": 1}
BOTH = [(1, 1), (2, 2)]


async def an_order_of_both(router: Router) -> tuple[int, Answer]:
    return await router.reserve(order(HELD, BOTH, 3))


MEETINGS: dict[str, tuple[Any, Operation, Operation]] = {
    "fulfil, and commit": (held, on_all(Kind.FULFIL), on_all(Kind.COMMIT, OTHERS)),
    "cancel, and commit": (held, on_all(Kind.CANCEL), on_all(Kind.COMMIT, OTHERS)),
    "unfulfil, and fulfil": (committed, on_all(Kind.UNFULFIL), on_all(Kind.FULFIL, OTHERS)),
    "fulfil, and cancel": (committed, on_all(Kind.FULFIL), on_all(Kind.CANCEL, OTHERS)),
    "commit what is paid in part, and release": (
        paid_in_part,
        on_all(Kind.COMMIT),
        on_all(Kind.RELEASE, OTHERS),
    ),
    "commit what is paid in part, and fulfil that": (
        paid_in_part,
        on_all(Kind.COMMIT),
        on_all(Kind.FULFIL, OTHERS, **A_UNIT),
    ),
    "commit, and cancel": (held, on_all(Kind.COMMIT), on_all(Kind.CANCEL, OTHERS)),
    "commit, and move": (held, on_all(Kind.COMMIT), a_move(1, op_id=OTHERS)),
    "commit what has moved, and move back": (moved, on_all(Kind.COMMIT), a_move(1, op_id=OTHERS)),
    "extend what has moved, and move back": (
        moved,
        on_all(Kind.EXTEND, value=10**6),
        a_move(1, op_id=OTHERS),
    ),
    "release, and move": (held, on_all(Kind.RELEASE), a_move(1, op_id=OTHERS)),
    "move, and release": (held, a_move(1), on_all(Kind.RELEASE, OTHERS)),
    "move, and commit": (held, a_move(1), on_all(Kind.COMMIT, OTHERS)),
    "commit a line and release the rest, and move that": (
        held,
        on_all(Kind.COMMIT, flags=Flag.RELEASE_REST, **FIRST),
        a_move(1, (2, 2, 2), op_id=OTHERS),
    ),
    "an order in its place, and another one": (
        held,
        an_order(BOTH, [10, 10], older=HELD),
        another_order([(2, 2)], 5),
    ),
    "an order in its place, and commit a line and release the rest": (
        held,
        an_order(BOTH, [10, 10], older=HELD),
        on_all(Kind.COMMIT, OTHERS, flags=Flag.RELEASE_REST, **SECOND),
    ),
    "a paid order in its place, and commit": (
        held,
        an_order(BOTH, [10, 10], Flag.COMMIT_NOW, older=HELD),
        on_all(Kind.COMMIT, OTHERS),
    ),
    "an order, and move": (nothing, an_order_of_both, a_move(1, op_id=OTHERS)),
    "an order, and commit": (nothing, an_order_of_both, on_all(Kind.COMMIT, OTHERS)),
    "an exchange, and commit": (
        nothing,
        an_exchange([(3, 1, 1)], [(1, 1, 3), (2, 2, 3)], op_id=HELD),
        on_all(Kind.COMMIT, OTHERS),
    ),
}


@pytest.mark.parametrize("name", MEETINGS)
async def test_a_call_that_comes_when_another_is_half_done_comes_after_it(name: str) -> None:
    """Wherever the gateway died: it is as if the first had been done, and then the second."""
    setting, operation, other = MEETINGS[name]
    unharmed = await Town().stocked()
    await setting(unharmed)
    told = [(await each(unharmed.router))[1].status for each in (operation, other)]
    for lives in range(30):
        town = await Town().stocked()
        await setting(town)
        gateway = Gateway(town)
        is_dead = await gateway.dies(operation, lives)
        router = await gateway.router()
        said = (await other(router))[1].status
        assert [(await operation(router))[1].status, said] == told
        assert state_of(town) == state_of(unharmed)
        if not is_dead:
            assert lives >= 2
            return
    raise AssertionError("it takes ever more calls")


async def a_transfer(town: Town) -> None:
    await asked_for(town, (1, 4), (2, 3))


async def on_its_way(town: Town) -> None:
    await a_transfer(town)
    await shipping(TO_BOTH_SHARDS, (1, 2), (2, 2))(town.router)


NOBODY_CALLS_ON: dict[str, tuple[Any, Operation]] = {
    "a paid order": (held, an_order(BOTH, [10, 10], Flag.COMMIT_NOW, older=HELD)),
    "a move": (held, a_move(1)),
    "a return": (handed_over, a_return([(1, 4, 2)])),
    "linked returns": (handed_over_by_two, together([(1, 4, 4), (1, 3, 1)])),
    "goods that come back, nobody knows from where": (
        nothing,
        together([(1, 1, 1), (2, 2, 1)], against=bytes(16)),
    ),
    "goods that are sent": (a_transfer, shipping(TO_BOTH_SHARDS, (1, 2), (2, 2), op_id=OP)),
    "goods that are lost": (on_its_way, losing(TO_BOTH_SHARDS, op_id=OP)),
}


@pytest.mark.parametrize("name", NOBODY_CALLS_ON)
async def test_what_nobody_calls_on_is_finished_too(name: str) -> None:
    setting, operation = NOBODY_CALLS_ON[name]
    unharmed = await Town().stocked()
    await setting(unharmed)
    await operation(unharmed.router)
    for lives in range(30):
        town = await Town().stocked()
        await setting(town)
        untouched, gateway = deepcopy(state_of(town)), Gateway(town)
        is_dead = await gateway.dies(operation, lives)
        router = await gateway.router()
        await router.finish()
        # A return begins when its shard says that it knows nothing of it.
        assert state_of(town) == (state_of(unharmed) if lives or name != "a return" else untouched)
        assert await (await gateway.router()).finish() is None
        if not is_dead:
            assert lives >= 2
            return
    raise AssertionError("it takes ever more calls")


async def test_an_order_that_is_finished_late_holds_nothing_anew() -> None:
    """Its time is over for what was held by then: the other part alone would be half of it."""
    operation = an_order(BOTH, [10, 10], older=HELD)
    for setting, made in ((nothing, an_order_of_both), (held, operation)):
        for lives in range(30):
            town = await Town().stocked()
            await setting(town)
            gateway = Gateway(town)
            is_dead = await gateway.dies(made, lives)
            router = await gateway.router(passed_ms=2 * TTL)
            for shard in town.shards:
                shard.now_ns += 2 * TTL * limits.NS_PER_MS
            await router.finish()
            for shard in town.shards:  # a block that sweeps
                await shard.submit(Request.of(os.urandom(16), 1, kind=Kind.SALE))
            told = [(await made(router))[1].status for _ in range(2)]
            assert town.reserved == 0
            assert told[0] == told[1]
            assert not any(told[0]) or {*told[0]} <= {
                Status.HOLD_EXPIRED,
                Status.LINKED_LINE_REFUSED,
            }
            if not is_dead:
                break
        else:
            raise AssertionError("it takes ever more calls")


async def test_what_the_shards_have_forgotten_is_not_done_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would have a second effect where it was done."""
    town = await Town().stocked()
    await committed(town)
    gateway = Gateway(town)
    first = await gateway.router()
    await first.finish()  # it has heard of all shards
    lines = {"sku": [1, 2], "location": [1, 2], "quantity": 1}
    line = call(OP, Kind.FULFIL, HELD, 2, **lines)
    log = first._alone._intents
    assert log is not None
    await log.begin("on_hold", line, [0], [HELD], first._shards.seen)
    for shard in town.shards:
        await shard.submit(line)
        shard.remembered.clear()
        shard.forgotten = (9, 9)
    await (await gateway.router()).finish()
    assert "forgotten" in caplog.text
    assert await (await gateway.router()).finish() is None
    assert town.counted("committed") == 7 - 2


async def test_a_record_over_shards_is_given_up_whole_too() -> None:
    record = bytes([7]) * 16

    async def expected(town: Town) -> None:
        columns = {"kind": Kind.EXPECT, "sku": [1, 2], "location": TO_BOTH_SHARDS, "quantity": 2}
        await town.router.submit(Request.of(os.urandom(16), 2, **columns, **on(record)))
        assert town.counted("incoming") == 4

    cancel = call(OP, Kind.CANCEL_INCOMING, record)
    for lives in range(30):
        town = await Town().stocked()
        await expected(town)
        gateway = Gateway(town)
        is_dead = await gateway.dies(lambda router: router.on_hold(cancel), lives)
        await (await gateway.router()).finish()
        assert town.counted("incoming") == 0
        if not is_dead:
            assert lives >= 2
            return
    raise AssertionError("it takes ever more calls")


class Gone:
    """The link to a shard that may be away."""

    def __init__(self, shard: ShardLink, away: list[str]) -> None:
        self._shard, self._away = shard, away

    async def submit(self, request: Request) -> Answer:
        if self._away:
            raise Overloaded("busy") if self._away[0] == "busy" else Unavailable("away")
        return await self._shard.submit(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)


async def test_nobody_calls_on_what_is_half_done_while_a_shard_is_away() -> None:
    town, away = await Town().stocked(), list[str]()
    await held(town)
    gateway = Gateway(town)
    router = await gateway.router({0: town.shards[0], 1: Gone(town.shards[1], away)})  # type: ignore[dict-item]
    await commit_all()(router)
    away.append("away")
    with pytest.raises(Unavailable):
        await on_all(Kind.CANCEL, NEW)(router)
    with pytest.raises(Unavailable, match="half done"):
        await on_all(Kind.FULFIL, OTHERS)(router)
    with pytest.raises(Unavailable, match="half done"):
        await router.finish()
    line = call(ELSEWHERE, Kind.FULFIL, HELD, sku=1, location=1, quantity=1)
    with pytest.raises(Unavailable, match="half done"):
        await router.on_hold(line)
    away.clear()
    _, answer = await on_all(Kind.FULFIL, OTHERS)(router)
    assert list(answer.status) == [Status.HOLD_NOT_COMMITTED]
    assert town.counted("committed") == 0


async def test_what_was_not_judged_has_not_begun() -> None:
    town, away = await Town().stocked(), ["busy"]
    links = {number: Gone(shard, away) for number, shard in enumerate(town.shards)}
    gateway = Gateway(town)
    router = await gateway.router(links)  # type: ignore[arg-type]
    with pytest.raises(Overloaded):
        await router.reserve(order(HELD, BOTH, 3))
    away.clear()
    await router.finish()
    assert town.reserved == 0


async def test_a_call_that_fails_stands_in_nobodys_way_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    town = await Town().stocked()
    await held(town)
    gateway = Gateway(town)
    assert await gateway.dies(on_all(Kind.COMMIT), 2)
    router = await gateway.router()

    async def fails(*_: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("actors.calls.told_before", fails)
        await router.finish()
    assert "cannot be finished" in caplog.text
    _, answer = await on_all(Kind.COMMIT)(router)
    assert not any(answer.status)


async def test_two_orders_in_each_others_place_do_not_wait_for_each_other() -> None:
    town = await Town().stocked()
    router = await Gateway(town).router()
    orders = [order(each, BOTH, 1) for each in (HELD, NEW)]
    for each, older in zip(orders, (NEW, HELD), strict=True):
        columns = call(OP, Kind.RESERVE, older).columns
        each.columns["flags"] = each.columns["flags"].copy()
        each.columns["flags"][0] |= Flag.SUPERSEDE
        for half in ("hold_hi", "hold_lo"):
            each.columns[half] = columns[half].repeat(2)
            each.columns[half][1] = 0
    told = await asyncio.wait_for(asyncio.gather(*map(router.reserve, orders)), 5)
    assert any(not any(answer.status) for _, answer in told)
    assert await pending_of(town, HELD) == {} or await pending_of(town, NEW) == {}


@pytest.mark.parametrize("cells", [[(1, 1)], BOTH])
async def test_an_order_that_is_finished_late_and_refused_leaves_the_older_one(
    cells: list[tuple[int, int]],
) -> None:
    """That had given way by its last step, and the order was refused for being late."""
    operation = an_order(cells, 9, older=HELD)
    for lives in range(30):
        town = await Town().stocked()
        await town.router.reserve(order(HELD, [(1, 1)], 9, 8 * TTL))
        gateway = Gateway(town)
        is_dead = await gateway.dies(operation, lives)
        for shard in town.shards:
            shard.now_ns += 2 * TTL * limits.NS_PER_MS
        router = await gateway.router(passed_ms=2 * TTL)
        await router.finish()
        _, answer = await operation(router)
        left = {(1, 1): 9} if any(answer.status) else {}
        assert await pending_of(town, HELD) == left
        if not is_dead:
            return
    raise AssertionError("it takes ever more calls")
