"""The journal's contract, on the fake and on a real Valkey; then the real one under faults."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import uvloop

from actors.ports import (
    GENESIS,
    AppendInDoubt,
    Compacted,
    Entry,
    Fenced,
    Journal,
    JournalError,
    JournalLost,
    JournalUnavailable,
    Position,
)
from adapters.journal import RedisJournal
from adapters.resp import (
    ConnectionLost,
    Endpoint,
    ReplyParser,
    RespClient,
    RespConnection,
    RespError,
    encode,
)
from adapters.valkey import EmbeddedValkey
from tests.fakes.journal import FakeJournal, MemoryStream
from tests.integration.conftest import ProxyMaker


class Stage:
    """One stream, fake or real, and as many journals over it as a test opens."""

    def __init__(self, make: Callable[[], Journal], admin: RespClient | None, key: str) -> None:
        self._make = make
        self._admin = admin
        self._key = key
        self.opened: list[Journal] = []

    def open(self) -> Journal:
        self.opened.append(self._make())
        return self.opened[-1]

    async def vanish(self) -> None:
        if self._admin is not None:
            await self._admin.call(b"DEL", self._key.encode())
        else:
            stream = self.opened[0].stream  # type: ignore[attr-defined]
            stream.entries, stream.last = [], None
            stream.wake()


@pytest.fixture(params=["fake", "real"])
async def stage(
    request: pytest.FixtureRequest, url: str, key: str, admin: RespClient
) -> AsyncIterator[Stage]:
    if request.param == "fake":
        stream = MemoryStream()
        made = Stage(lambda: FakeJournal(stream), None, key)
    else:
        made = Stage(lambda: real(url, key), admin, key)
    yield made
    for journal in made.opened:
        await journal.close()


def real(url: str, key: str, settle_timeout_s: float = 3.0) -> RedisJournal:
    return RedisJournal(
        url, key, settle_timeout_s=settle_timeout_s, reply_timeout_s=0.5, tail_block_s=0.05
    )


def nonce(name: str) -> Callable[[Position], bytes]:
    return lambda position: f"{name} opens {position}".encode()


async def everything(journal: Journal, after: Position | None = None) -> list[Entry]:
    return [entry async for entry in journal.read(after)]


async def owner(journal: Journal, blocks: int) -> Position:
    """Take the stream over and append some blocks; return the last one's position."""
    position = await journal.take_over(nonce("owner"))
    for _ in range(blocks):
        position = position.next()
        await journal.append(position, f"block {position}".encode())
    return position


async def write(journal: Journal, position: Position, payload: bytes, *, at_once: bool) -> None:
    """Append a block in one of the two ways; what is late at once goes on in the other."""
    if at_once and journal.append_at_once(position, payload, lambda: None):
        return
    await journal.append(position, payload)


# -------------------------------------------------------------------------------- the contract --


async def test_what_is_appended_at_once_is_there_and_others_follow(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.journal.PATIENCE_MS", 5_000)
    journal = stage.open()
    position = await owner(journal, 1)
    written, called = [position], []
    for payload in (b"", b"one", b"x" * 20_000):
        written.append(written[-1].next())
        assert journal.append_at_once(written[-1], payload, lambda: called.append(len(written)))
    assert called == [2, 3, 4]
    written.append(written[-1].next())
    await journal.append(written[-1], b"the usual way")
    found = await everything(journal, position)
    assert [at for at, _ in found] == written[1:]
    assert [len(payload) for _, payload in found] == [0, 3, 20_000, 13]
    with pytest.raises(ValueError, match="cannot append"):
        journal.append_at_once(written[-1].next().next(), b"gap", lambda: None)


async def test_an_owner_that_was_replaced_appends_nothing_at_once(stage: Stage) -> None:
    old, new = stage.open(), stage.open()
    position = await owner(old, 1)
    await owner(new, 1)
    assert not old.append_at_once(position.next(), b"too late", lambda: None)
    with pytest.raises(Fenced):
        await old.append(position.next(), b"too late")
    assert b"too late" not in [payload for _, payload in await everything(new)]


async def test_nothing_is_appended_at_once_to_a_stream_that_vanished(stage: Stage) -> None:
    journal = stage.open()
    position = await owner(journal, 1)
    await stage.vanish()
    assert not journal.append_at_once(position.next(), b"lost", lambda: None)
    with pytest.raises(JournalLost):
        await journal.append(position.next(), b"lost")


async def test_a_new_stream_is_opened_at_epoch_1(stage: Stage) -> None:
    journal = stage.open()
    assert await journal.last() is None
    assert await journal.first() is None
    assert await everything(journal) == []
    assert await everything(journal, GENESIS) == []
    assert await journal.take_over(nonce("me")) == Position(1, 0)
    assert await everything(journal) == [(Position(1, 0), b"me opens 1-0")]


async def test_what_is_appended_is_read_in_order(stage: Stage) -> None:
    journal = stage.open()
    position = await journal.take_over(nonce("me"))
    written = [(position, b"me opens 1-0")]
    for payload in (b"", b"\r\n$5\r\n", bytes(range(256)) * 3000, b"last"):
        position = position.next()
        await journal.append(position, payload)
        written.append((position, payload))
    assert await everything(stage.open()) == written
    assert await everything(journal, GENESIS) == written
    assert await everything(journal, Position(1, 2)) == written[3:]
    assert await journal.first() == Position(1, 0)
    assert await journal.last() == Position(1, 4)


async def test_read_stops_at_upto(stage: Stage) -> None:
    journal = stage.open()
    await owner(journal, 40)
    read = [p.seq async for p, _ in journal.read(Position(1, 3), Position(1, 30))]
    assert read == list(range(4, 31))
    assert [entry async for entry in journal.read(Position(1, 3), Position(1, 3))] == []


async def test_only_the_owner_appends_and_only_the_next_block(stage: Stage) -> None:
    journal = stage.open()
    with pytest.raises(ValueError):
        await journal.append(Position(1, 1), b"never took over")
    await owner(journal, 2)
    for wrong in (Position(1, 2), Position(1, 4), Position(2, 0)):
        with pytest.raises(ValueError):
            await journal.append(wrong, b"")


async def test_an_older_owner_is_fenced_off(stage: Stage) -> None:
    old, new = stage.open(), stage.open()
    position = await owner(old, 2)
    assert await new.take_over(nonce("new")) == Position(2, 0)
    for _ in range(2):
        with pytest.raises(Fenced):
            await old.append(position.next(), b"too late")
    await new.append(Position(2, 1), b"mine")
    assert await old.take_over(nonce("old")) == Position(3, 0)
    with pytest.raises(Fenced):
        await new.append(Position(2, 2), b"fenced in turn")


async def test_contenders_win_one_epoch_each(stage: Stage) -> None:
    contenders = [stage.open() for _ in range(8)]
    won = await asyncio.gather(
        *(journal.take_over(nonce(str(i))) for i, journal in enumerate(contenders))
    )
    assert sorted(won) == [Position(epoch, 0) for epoch in range(1, 9)]
    stream = dict(await everything(contenders[0]))
    for i, position in enumerate(won):
        assert stream[position] == f"{i} opens {position}".encode()
    for journal, position in zip(contenders, won, strict=True):
        if position.epoch < 8:
            with pytest.raises(Fenced):
                await journal.append(position.next(), b"")


async def test_what_the_old_owner_acknowledged_stands_before_the_new_opening(stage: Stage) -> None:
    old, new = stage.open(), stage.open()
    acknowledged = [await owner(old, 0)]

    async def work() -> None:
        while True:
            position = acknowledged[-1].next()
            await old.append(position, b"work")
            acknowledged.append(position)

    working = asyncio.create_task(work())
    await asyncio.sleep(0.02)
    opening = await new.take_over(nonce("new"))
    with pytest.raises(Fenced):
        await working
    assert len(acknowledged) > 1
    assert [p for p, _ in await everything(new)] == [*acknowledged, opening]


async def test_tail_yields_old_and_new_blocks(stage: Stage) -> None:
    writer, reader = stage.open(), stage.open()
    position = await owner(writer, 3)
    seen: list[Position] = []

    async def follow() -> None:
        async for entries in reader.tail(Position(1, 1)):
            assert entries
            seen.extend(p for p, _ in entries)
            if seen[-1] == Position(2, 0):
                return

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.15)
    assert seen == [Position(1, 2), Position(1, 3)]
    await writer.append(position.next(), b"new")
    await writer.take_over(nonce("again"))
    await asyncio.wait_for(following, 2)
    assert seen == [Position(1, 2), Position(1, 3), Position(1, 4), Position(2, 0)]


async def test_a_tail_waits_for_a_stream_to_begin(stage: Stage) -> None:
    reader, writer = stage.open(), stage.open()
    first = asyncio.ensure_future(anext(aiter(reader.tail(GENESIS))))
    await asyncio.sleep(0.15)
    await writer.take_over(nonce("me"))
    assert await asyncio.wait_for(first, 2) == [(Position(1, 0), b"me opens 1-0")]


async def test_a_cancelled_tail_ends_and_close_ends_the_others(stage: Stage) -> None:
    journal = stage.open()
    position = await owner(journal, 0)
    cancelled, other = (
        asyncio.ensure_future(anext(aiter(journal.tail(position)))) for _ in range(2)
    )
    await asyncio.sleep(0.02)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await journal.close()
    with pytest.raises(JournalUnavailable):
        await asyncio.wait_for(other, 2)


async def test_trim_drops_what_is_before_and_nothing_else(stage: Stage) -> None:
    journal = stage.open()
    await owner(journal, 9)
    assert await journal.trim(Position(1, 6)) == 6
    assert await journal.trim(Position(1, 6)) == 0
    assert await journal.first() == Position(1, 6)
    assert [p.seq for p, _ in await everything(journal)] == [6, 7, 8, 9]
    assert [p.seq for p, _ in await everything(journal, Position(1, 6))] == [7, 8, 9]
    assert [p.seq for p, _ in await everything(journal, Position(1, 5))] == [6, 7, 8, 9]
    await journal.append(Position(1, 10), b"goes on")


async def test_only_the_owner_trims(stage: Stage) -> None:
    old, new = stage.open(), stage.open()
    await owner(old, 9)
    with pytest.raises(ValueError):
        await new.trim(Position(1, 6))
    await owner(new, 3)
    with pytest.raises(Fenced):
        await old.trim(Position(1, 6))
    assert len(await everything(new)) == 14
    assert await new.trim(Position(1, 6)) == 6


async def test_a_trim_ends_when_another_takes_over(url: str, key: str) -> None:
    """It drops step by step: none of the steps is done for an owner that was replaced meanwhile."""
    old, new = real(url, key), real(url, key)
    await owner(old, 3)
    await old.trim(Position(1, 1))
    first = old.first

    async def and_another_takes_over() -> Position | None:
        await new.take_over(nonce("new"))
        return await first()

    old.first = and_another_takes_over  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        await old.trim(Position(1, 3))
    assert await new.first() == Position(1, 1)
    await old.close()
    await new.close()


async def test_reading_from_before_a_trim_is_compacted_never_silent(stage: Stage) -> None:
    journal = stage.open()
    await owner(journal, 9)
    await journal.trim(Position(1, 6))
    for after in (GENESIS, Position(1, 0), Position(1, 4)):
        with pytest.raises(Compacted) as refused:
            await everything(journal, after)
        assert refused.value.oldest == Position(1, 6)
        with pytest.raises(Compacted):
            await anext(aiter(journal.tail(after)))


async def test_a_trim_up_to_an_opening_is_noticed(stage: Stage) -> None:
    journal = stage.open()
    position = await owner(journal, 3)
    await journal.take_over(nonce("again"))
    assert [p for p, _ in await everything(journal, position)] == [Position(2, 0)]
    await journal.trim(Position(2, 0))
    with pytest.raises(Compacted):
        await everything(journal, Position(1, 2))
    with pytest.raises(Compacted):  # 1-3 was the last before 2-0, but nothing proves it any more
        await everything(journal, position)


async def test_a_stream_trimmed_empty_still_knows_its_last_position(stage: Stage) -> None:
    journal = stage.open()
    position = await owner(journal, 3)
    assert await journal.trim(Position(9, 0)) == 4
    assert await journal.first() is None
    assert await journal.last() == position
    assert await everything(journal, position) == []
    with pytest.raises(Compacted):
        await everything(journal, Position(1, 2))
    assert await journal.take_over(nonce("next")) == Position(2, 0)


async def test_a_slow_tail_that_was_overtaken_by_a_trim_is_compacted(stage: Stage) -> None:
    journal = stage.open()
    position = await owner(journal, 2)
    tail = aiter(journal.tail(Position(1, 0)))
    assert (await anext(tail))[-1][0] == position
    for _ in range(3):
        position = position.next()
        await journal.append(position, b"")
    await journal.trim(position)
    with pytest.raises(Compacted):
        await anext(tail)


async def test_a_vanished_stream_is_lost_to_everyone(stage: Stage) -> None:
    journal, other = stage.open(), stage.open()
    position = await owner(journal, 2)
    tailing = asyncio.ensure_future(anext(aiter(other.tail(position))))
    await asyncio.sleep(0.02)
    await stage.vanish()
    with pytest.raises(JournalLost):
        await journal.append(position.next(), b"")
    with pytest.raises(JournalLost):
        await asyncio.wait_for(tailing, 2)
    with pytest.raises(JournalLost):
        await everything(other, position)
    with pytest.raises(JournalLost):
        await other.take_over(nonce("other"), known=position)
    assert await other.last() is None


async def test_take_over_accepts_what_it_knows(stage: Stage) -> None:
    journal, other = stage.open(), stage.open()
    position = await owner(journal, 2)
    with pytest.raises(JournalLost):
        await other.take_over(nonce("other"), known=position.next())
    assert await other.take_over(nonce("other"), known=position) == Position(2, 0)


# ------------------------------------------------------------------------------------ the fake --


@pytest.mark.parametrize("fault", ["lose_request", "lose_reply", "refuse"])
async def test_the_fake_loses_what_it_is_told_to(fault: str) -> None:
    stream = MemoryStream()
    journal = FakeJournal(stream)
    position = await owner(journal, 1)
    journal.faults.append(fault)
    with pytest.raises(JournalUnavailable if fault == "refuse" else AppendInDoubt):
        await journal.append(position.next(), b"block")
    assert (stream.last == position.next()) == (fault == "lose_reply")
    await journal.append(position.next(), b"block")
    assert len(stream.entries) == 3


# ------------------------------------------------------------------------- the real one, faults --


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("fate", ["forward", "lose_request", "lose_reply", "swallow"])
async def test_an_append_survives_one_fault_and_lands_once(
    fate: str, at_once: bool, proxied: ProxyMaker, key: str
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key)
    position = await owner(journal, 1)
    proxy.once(fate)
    await write(journal, position.next(), b"once", at_once=at_once)
    await journal.append(position.next().next(), b"after")
    assert [p.seq for p, _ in await everything(journal)] == [0, 1, 2, 3]
    await journal.close()


@pytest.mark.parametrize("fate", ["lose_request", "lose_reply"])
async def test_a_take_over_survives_one_fault_and_lands_once(
    fate: str, proxied: ProxyMaker, key: str
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key)
    proxy.once(fate)
    assert await journal.take_over(nonce("me")) == Position(1, 0)
    proxy.once(fate)
    assert await journal.take_over(nonce("me")) == Position(2, 0)
    assert len(await everything(journal)) == 2
    await journal.close()


@pytest.mark.parametrize("at_once", [False, True])
async def test_an_append_that_lands_after_its_retry_has_no_second_effect(
    at_once: bool, proxied: ProxyMaker, key: str
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key)
    position = await owner(journal, 1)
    proxy.once("hold")
    await write(
        journal, position.next(), b"twice on the way", at_once=at_once
    )  # times out, is sent again
    proxy.release()
    await asyncio.wait_for(proxy.landed.wait(), 2)
    await journal.append(position.next().next(), b"after")
    assert [p.seq for p, _ in await everything(journal)] == [0, 1, 2, 3]
    await journal.close()


@pytest.mark.parametrize("at_once", [False, True])
async def test_an_append_that_lands_between_the_look_and_the_retry_is_found(
    at_once: bool, proxied: ProxyMaker, key: str
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key)
    position = await owner(journal, 1)
    fates = iter(["hold", "release"])
    proxy.fate = lambda request: next(fates, "forward") if b"XADD" in request else "forward"
    await write(journal, position.next(), b"late", at_once=at_once)
    assert await everything(journal, position) == [(position.next(), b"late")]
    await journal.close()


async def test_a_doubt_is_settled_by_looking_where_writing_is_refused(
    proxied: ProxyMaker, key: str, admin: RespClient
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key)
    position = await owner(journal, 1)
    full = asyncio.Event()
    fates = iter(["lose_reply"])
    proxy.fate = lambda _: next(fates, "forward" if full.is_set() else "lose_request")
    appending = asyncio.create_task(journal.append(position.next(), b"landed"))
    await asyncio.sleep(0.05)
    await admin.call(b"CONFIG", b"SET", b"maxmemory", b"1")
    try:
        full.set()
        await appending
    finally:
        await admin.call(b"CONFIG", b"SET", b"maxmemory", b"0")
    await journal.close()


async def test_after_a_cancelled_append_a_refusal_is_still_a_doubt(
    proxied: ProxyMaker, key: str, admin: RespClient
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key)
    position = await owner(journal, 1)
    proxy.once("hold")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(journal.append(position.next(), b"block"), 0.05)
    await admin.call(b"CONFIG", b"SET", b"maxmemory", b"1")
    try:
        with pytest.raises(AppendInDoubt, match="OOM"):  # the first attempt may land yet
            await journal.append(position.next(), b"block")
    finally:
        await admin.call(b"CONFIG", b"SET", b"maxmemory", b"0")
    await journal.close()


async def test_a_late_reply_is_never_taken_for_the_next_command_s(url: str, key: str) -> None:
    connection = await RespConnection.open(Endpoint.parse(url), 1.0)
    slow = (b"BLPOP", key.encode(), b"0.1")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.call(slow, 1.0), 0.02)
    with pytest.raises(ConnectionLost):
        await connection.call(slow, 1.0)
    await connection.close()


@pytest.mark.parametrize("fate", ["lose_request", "lose_reply"])
async def test_a_doubt_that_cannot_be_settled_in_time_is_said(
    fate: str, proxied: ProxyMaker, key: str, url: str
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key, settle_timeout_s=0.2)
    position = await owner(journal, 1)
    fates = iter([fate])
    proxy.fate = lambda _: next(fates, "lose_request")
    with pytest.raises(AppendInDoubt):
        await journal.append(position.next(), b"who knows")
    proxy.fate = lambda _: "forward"
    expected = [0, 1, 2] if fate == "lose_reply" else [0, 1]
    assert [p.seq for p, _ in await everything(journal)] == expected
    await journal.append(position.next(), b"who knows")  # the same block may be tried again
    assert [p.seq for p, _ in await everything(journal)] == [0, 1, 2]
    await journal.close()


async def test_a_doubt_is_settled_right_when_another_took_over_meanwhile(
    proxied: ProxyMaker, key: str, url: str
) -> None:
    for fate, outcome in (("lose_reply", None), ("lose_request", Fenced)):
        proxy, its_url = await proxied()
        old, new = real(its_url, key), real(url, key)
        position = await owner(old, 1)
        fates = iter([fate])
        away = asyncio.Event()

        def doom(_: bytes, fates: object = fates, away: asyncio.Event = away) -> str:
            fate = next(fates, None)  # type: ignore[call-overload]
            if fate is not None:
                return str(fate)
            return "forward" if away.is_set() else "lose_request"

        proxy.fate = doom
        appending = asyncio.create_task(old.append(position.next(), b"in doubt"))
        await asyncio.sleep(0.05)
        await new.take_over(nonce("new"))
        away.set()
        if outcome is None:
            await appending  # it is durable, and the new owner replays it
        else:
            with pytest.raises(outcome):
                await appending
        with pytest.raises((Fenced, ValueError)):
            await old.append(position.next().next(), b"")
        await old.close()
        await new.close()


async def test_a_block_under_its_own_id_with_other_bytes_means_fenced(
    url: str, key: str, admin: RespClient
) -> None:
    journal = real(url, key)
    position = await owner(journal, 1)
    await admin.call(b"XADD", key.encode(), str(position.next()).encode(), b"b", b"not ours")
    with pytest.raises(Fenced):
        await journal.append(position.next(), b"ours")
    await journal.close()


async def test_unreachable_before_anything_was_sent_means_not_written(
    proxied: ProxyMaker, key: str, admin: RespClient
) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key, settle_timeout_s=0.1)
    position = await owner(journal, 1)
    await admin.call(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
    await asyncio.sleep(0.02)
    proxy.fate = lambda _: "lose_request"
    with pytest.raises(JournalUnavailable):
        await journal.append(position.next(), b"")
    with pytest.raises(JournalUnavailable):
        await journal.last()
    proxy.fate = lambda _: "forward"
    await journal.append(position.next(), b"")
    await journal.close()


async def test_a_connection_killed_between_appends_is_replaced(
    url: str, key: str, admin: RespClient
) -> None:
    journal, reader = real(url, key), real(url, key)
    position = await owner(journal, 0)
    seen: list[int] = []

    async def follow() -> None:
        async for entries in reader.tail(Position(1, 0)):
            seen.extend(p.seq for p, _ in entries)
            if len(seen) == 10:
                return

    following = asyncio.create_task(follow())
    for _ in range(10):
        position = position.next()
        await journal.append(position, b"")
        await admin.call(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
    await asyncio.wait_for(following, 2)
    assert seen == list(range(1, 11))
    await journal.close()
    await reader.close()


async def test_a_stream_that_went_back_is_lost(url: str, key: str, admin: RespClient) -> None:
    journal = real(url, key)
    position = await owner(journal, 5)
    await admin.call(b"DEL", key.encode())  # as after a failover to a replica that lagged
    await admin.call(b"XADD", key.encode(), b"1-3", b"b", b"block 1-3")
    await admin.call(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
    await asyncio.sleep(0.02)
    with pytest.raises(JournalLost):
        await journal.append(position.next(), b"")
    with pytest.raises(JournalLost):
        await anext(aiter(journal.tail(position)))
    await journal.close()


async def test_a_key_of_another_type_is_a_lost_journal(
    url: str, key: str, admin: RespClient
) -> None:
    journal = real(url, key)
    position = await owner(journal, 1)
    await admin.call(b"SET", key.encode(), b"oops")
    with pytest.raises(JournalLost):
        await journal.append(position.next(), b"")
    with pytest.raises(JournalLost):
        await everything(journal)
    await journal.close()


async def test_a_full_server_refuses_and_the_block_can_be_tried_again(
    url: str, key: str, admin: RespClient
) -> None:
    journal = real(url, key)
    position = await owner(journal, 1)
    await admin.call(b"CONFIG", b"SET", b"maxmemory", b"1")
    try:
        with pytest.raises(JournalUnavailable, match="OOM"):
            await journal.append(position.next(), b"block")
    finally:
        await admin.call(b"CONFIG", b"SET", b"maxmemory", b"0")
    await journal.append(position.next(), b"block")
    await journal.close()


async def test_a_cancelled_append_leaves_nothing_confused(proxied: ProxyMaker, key: str) -> None:
    proxy, its_url = await proxied()
    journal = real(its_url, key)
    position = await owner(journal, 1)
    proxy.once("hold")
    appending = asyncio.create_task(journal.append(position.next(), b"block"))
    await asyncio.sleep(0.05)
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    await journal.append(position.next(), b"block")
    proxy.release()
    await asyncio.wait_for(proxy.landed.wait(), 2)
    assert [p.seq for p, _ in await everything(journal)] == [0, 1, 2]
    await journal.close()


async def test_two_appends_at_once_are_a_bug(url: str, key: str) -> None:
    journal = real(url, key)
    position = await owner(journal, 0)
    first = asyncio.create_task(journal.append(position.next(), b""))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await journal.append(position.next(), b"")
    await first
    await journal.close()


async def test_kill_9_loses_nothing_that_was_acknowledged(data_dir: Path, key: str) -> None:
    with EmbeddedValkey(data_dir, die_with_parent=True) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        journal = real(server.url, key, settle_timeout_s=10)
        acknowledged = [await owner(journal, 0)]
        underway = asyncio.Event()

        async def work() -> None:
            while acknowledged[-1].seq < 2000:
                position = acknowledged[-1].next()
                await journal.append(position, str(position).encode() * 20)
                acknowledged.append(position)
                if position.seq == 200:
                    underway.set()

        working = asyncio.create_task(work())
        await underway.wait()
        killed = psutil.Process(server.pid)
        killed.kill()
        await asyncio.to_thread(server.stop)
        at_the_crash = len(acknowledged)
        assert not working.done()
    again = EmbeddedValkey(data_dir, port=port, die_with_parent=True)
    await asyncio.to_thread(again.start)
    try:
        await asyncio.wait_for(working, 15)  # the append in flight was settled, and work went on
        assert at_the_crash < len(acknowledged) == 2001
        stream = await everything(journal)
        assert [p for p, _ in stream] == acknowledged
        assert all(payload == str(p).encode() * 20 for p, payload in stream[1:])
    finally:
        await journal.close()
        await asyncio.to_thread(again.stop)


async def test_a_long_stream_is_read_in_bounded_round_trips(url: str, key: str) -> None:
    journal = real(url, key)
    position = await journal.take_over(nonce("me"))
    sizes = [10] * 300 + [600_000] * 12 + [10] * 50
    for size in sizes:
        position = position.next()
        await journal.append(position, bytes(size))
    assert [len(payload) for _, payload in (await everything(journal))[1:]] == sizes
    assert await journal.trim(Position(1, 300)) == 300
    await journal.trim(Position(2, 0))
    await journal.close()


# ------------------------------------------------------------------ ways to reach the server --


async def works(url: str, key: str) -> None:
    journal = real(url, key)
    try:
        await owner(journal, 2)
        assert len(await everything(journal)) == 3
    finally:
        await journal.close()


def test_uvloop_which_ray_runs_actors_on(url: str, key: str) -> None:
    async def everything_once() -> None:
        journal, other = real(url, key), real(url, key)
        position = await owner(journal, 2)
        tail = aiter(other.tail(position))
        waiting = asyncio.ensure_future(anext(tail))
        await journal.append(position.next(), bytes(1 << 20))
        assert len((await waiting)[0][1]) == 1 << 20
        await other.take_over(nonce("other"))
        with pytest.raises(Fenced):
            await journal.append(position.next().next(), b"")
        blocked = asyncio.ensure_future(anext(aiter(other.tail(Position(2, 0)))))
        await asyncio.sleep(0.02)
        blocked.cancel()
        await asyncio.gather(blocked, return_exceptions=True)
        await journal.close()
        await other.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(everything_once())


async def test_user_password_and_database(url: str, key: str, admin: RespClient) -> None:
    address = url.removeprefix("redis://").removesuffix("/0")
    await admin.call(b"ACL", b"SETUSER", b"shop", b"on", b">p@ss/word", b"~*", b"+@all")
    try:
        await works(f"redis://shop:p%40ss%2Fword@{address}/3", key)
        assert await admin.call(b"EXISTS", key.encode()) == 0
        await admin.call(b"SELECT", b"3")
        assert await admin.call(b"EXISTS", key.encode()) == 1
        with pytest.raises(JournalUnavailable, match="WRONGPASS"):
            await works(f"redis://shop:wrong@{address}/3", key)
    finally:
        await admin.call(b"ACL", b"DELUSER", b"shop")


async def test_a_unix_socket(proxied: ProxyMaker, data_dir: Path, key: str) -> None:
    _, its_url = await proxied(path=data_dir / "s")
    await works(its_url + "?db=2", key)


async def test_tls(proxied: ProxyMaker, data_dir: Path, key: str) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate of this test")
    certificate, secret = data_dir / "c.pem", data_dir / "k.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    where = ["-keyout", str(secret), "-out", str(certificate)]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [openssl, "req", *kind, *subject, *where]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    _, its_url = await proxied(tls=context)
    await works(f"{its_url}?ssl_ca_certs={certificate}", key)
    await works(f"{its_url}?ssl_cert_reqs=none", key + "b")
    distrustful = real(its_url, key, settle_timeout_s=0.1)
    with pytest.raises(JournalUnavailable, match="certificate"):
        await distrustful.last()
    await distrustful.close()


@pytest.mark.parametrize(
    "bad", ["http://x", "redis://x/y", "unix://", "redis://x?foo=1", "rediss://x?ssl_cert_reqs=no"]
)
def test_a_url_that_is_not_understood_is_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(bad)


def test_a_password_is_never_shown() -> None:
    assert "secret" not in str(Endpoint.parse("redis://u:secret@h:1/2"))
    assert "secret" not in str(RedisJournal("redis://u:secret@h:1/2", "k"))


# ---------------------------------------------------------------------------------- small parts --


def test_positions_are_ordered_and_parsed() -> None:
    assert GENESIS < Position(1, 0) < Position(1, 10) < Position(2, 0)
    assert Position.parse("12-34") == Position(12, 34)
    assert str(Position(12, 34)) == "12-34"
    for bad in ("", "1", "1-", "-1", "1-2-3", "a-1", "1--2"):
        with pytest.raises(ValueError):
            Position.parse(bad)


def test_replies_are_parsed_however_the_bytes_are_cut() -> None:
    stream = (
        b"+OK\r\n:42\r\n$5\r\na\r\nbc\r\n$-1\r\n$0\r\n\r\n*-1\r\n*0\r\n-ERR no such key\r\n"
        b"*2\r\n*2\r\n$1\r\nx\r\n*0\r\n*1\r\n-OOM full\r\n"
    )
    expected = [b"OK", 42, b"a\r\nbc", None, b"", None, [], "ERR no such key"]
    for size in range(1, len(stream) + 1):
        parser = ReplyParser()
        replies = []
        for start in range(0, len(stream), size):
            replies += list(parser.feed(stream[start : start + size]))
        assert isinstance(replies[7], RespError)
        assert [str(r) if isinstance(r, RespError) else r for r in replies[:8]] == expected
        assert replies[8][0] == [b"x", []]
        assert replies[8][1][0].code == "OOM"


def test_what_is_not_resp_is_refused() -> None:
    with pytest.raises(ValueError):
        list(ReplyParser().feed(b"HTTP/1.1 200 OK\r\n"))


def test_large_arguments_are_not_copied() -> None:
    payload = bytes(100_000)
    buffers = encode((b"XADD", b"k", payload))
    assert any(buffer is payload for buffer in buffers)
    assert b"".join(buffers) == b"*3\r\n$4\r\nXADD\r\n$1\r\nk\r\n$100000\r\n" + payload + b"\r\n"


def test_every_failure_of_a_journal_is_a_journal_error() -> None:
    for kind in (Fenced, JournalLost, AppendInDoubt, JournalUnavailable, Compacted):
        assert issubclass(kind, JournalError)
