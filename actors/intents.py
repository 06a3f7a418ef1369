"""What a gateway has begun over several shards: written down first, and finished before anybody meets it.

A call of several steps may be left half done, when the gateway dies or a shard does not answer. Sent again it
goes on; but until then others could call on the same hold, and would be answered by what is there. So
the gateway writes each such call down before its first step, in a journal of its own, and that it has ended
after the last one. What has begun and not ended is done (again, from its first step) before another
call on the same hold is: by this gateway, or by the one that takes over its journal. That a call has ended may
be forgotten: done once more, it has no second effect.

The journal is short: now and then a block tells all that is open, and those before it are dropped.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from actors.ports import GENESIS, Journal, JournalError, JournalUnavailable, Overloaded, Unavailable
from actors.shards import Seen, Shards, Turns, is_half_way
from engine import limits, wire
from engine.operations import Request, column_of

_log = logging.getLogger(__name__)

# Calls that have begun and not ended, and what they take in a block that tells them all; more are Overloaded.
MAX_OPEN: Final = 1 << 14
MAX_OPEN_BYTES: Final = 16 << 20
WHOLE_EVERY: Final = 1 << 10  # blocks after which one tells all that is open
FINISHED_AT_ONCE: Final = 32
ENDS_WITHIN_S: Final = 0.05  # that a call has ended is written with others, or so soon
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class Intent:
    """A call that has begun: of a router's method, on some holds."""

    number: int
    begun_ns: int
    method: str
    request: Request
    args: tuple[Any, ...]  # the method's others
    hold_ids: tuple[bytes, ...]
    seen: Mapping[int, Seen]  # of each shard, a block that was there before
    packed: bytes  # all of it, as a block has it


def _packed(number: int, begun_ns: int, method: str, request: Request, *others: Any) -> bytes:
    payload = wire.encode_requests([request])
    packed: bytes = msgpack.packb((number, begun_ns, method, payload, *others))
    return packed


def _unpacked(packed: bytes) -> Intent:
    number, begun_ns, method, payload, args, hold_ids, seen = msgpack.unpackb(
        packed, strict_map_key=False
    )
    (request,) = wire.decode_requests(payload)
    blocks = {shard: (epoch, seq) for shard, (epoch, seq) in seen.items()}
    return Intent(number, begun_ns, method, request, tuple(args), tuple(hold_ids), blocks, packed)


class IntentLog:
    """The owner of a gateway's journal of intents. `start` it before anything else.

    `on_lost` is told when the journal is another's by now: the process must end itself then.
    """

    def __init__(
        self,
        journal: Journal,
        on_lost: Callable[[JournalError], None],
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._journal = journal
        self._on_lost = on_lost
        self._random_bytes = random_bytes
        self._clock = clock
        self._at = GENESIS
        self._number = 0  # of the newest intent
        self._open: dict[int, Intent] = {}
        self._of_hold: dict[bytes, dict[int, Intent]] = {}
        self._nbytes = 0  # of what is open or to be written
        self._begun: list[tuple[Intent, asyncio.Future[None]]] = []  # to be written
        self._ended: list[int] = []
        self._since_whole = 0  # blocks
        self._writing: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many calls have begun and not ended."""
        return len(self._open)

    @property
    def open(self) -> list[Intent]:
        """What has begun and not ended, oldest first."""
        return list(self._open.values())

    def of(self, hold_ids: Iterable[bytes]) -> list[Intent]:
        """What has begun on some holds and not ended, oldest first."""
        found: dict[int, Intent] = {}
        for hold_id in hold_ids:
            found |= self._of_hold.get(hold_id, {})
        return [found[number] for number in sorted(found)]

    def age_ms(self, intent: Intent) -> int:
        """How long ago a call has begun."""
        return (self._clock() - intent.begun_ns) // limits.NS_PER_MS

    async def start(self) -> None:
        """Take the journal over, and find what is open.

        Raises what `Journal.take_over` and `Journal.append` raise.
        """
        nonce = self._random_bytes(_NONCE_BYTES)
        self._at = await self._journal.take_over(lambda _: _encoded([], [], nonce=nonce))
        found: dict[int, Intent] = {}
        async for _, payload in self._journal.read(None, self._at):
            block = msgpack.unpackb(payload)
            if block["whole"]:
                found.clear()
            found |= {each.number: each for each in map(_unpacked, block["begun"])}
            for number in block["ended"]:
                found.pop(number, None)
            self._number = max([self._number, *found])
        for intent in found.values():
            self._nbytes += len(intent.packed)
            self._add(intent)
        await self._append([], [], is_whole=True)
        await self._trim()

    async def begin(
        self,
        method: str,
        request: Request,
        args: Sequence[Any],
        hold_ids: Collection[bytes],
        seen: Mapping[int, Seen],
    ) -> Intent:
        """Write down that a call begins; it is durable when this returns, and nobody sees it before.

        Raises Overloaded when too many are open, and Unavailable when the journal is.
        """
        if len(self._open) + len(self._begun) >= MAX_OPEN:
            raise Overloaded(f"{MAX_OPEN} calls over several shards have begun and not ended")
        number, now_ns = self._number + 1, self._clock()
        packed = _packed(number, now_ns, method, request, list(args), list(hold_ids), dict(seen))
        if self._nbytes + len(packed) > MAX_OPEN_BYTES:
            raise Overloaded(f"calls over several shards of {MAX_OPEN_BYTES} bytes have begun")
        self._number = number
        self._nbytes += len(packed)
        intent = Intent(
            number, now_ns, method, request, tuple(args), tuple(hold_ids), dict(seen), packed
        )
        written = asyncio.get_running_loop().create_future()
        self._begun.append((intent, written))
        self._write_now()
        await written
        return intent

    def end(self, intent: Intent) -> None:
        """Have it written down, before long, that a call has ended."""
        if self._open.pop(intent.number, None) is None:
            return
        self._nbytes -= len(intent.packed)
        for hold_id in intent.hold_ids:
            of_hold = self._of_hold[hold_id]
            del of_hold[intent.number]
            if not of_hold:
                del self._of_hold[hold_id]
        self._ended.append(intent.number)
        self._write_later()

    async def close(self) -> None:
        """Write what is still to be written, once; the journal is left open."""
        if self._ended:
            self._write_now()
        while self._writing is not None:
            await asyncio.wait([self._writing])
        if self._later is not None:
            self._later.cancel()

    def _add(self, intent: Intent) -> None:
        self._open[intent.number] = intent
        for hold_id in intent.hold_ids:
            self._of_hold.setdefault(hold_id, {})[intent.number] = intent

    def _write_later(self) -> None:
        if self._later is None and self._writing is None:
            self._later = asyncio.get_running_loop().call_later(ENDS_WITHIN_S, self._write_now)

    def _write_now(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Write what waits, whatever has gathered meanwhile together."""
        try:
            while self._begun or self._ended:
                is_whole = self._since_whole >= WHOLE_EVERY
                await self._write_block(is_whole=is_whole)
                if is_whole:
                    await self._trim()
        except JournalUnavailable as error:  # nothing was written
            self._fail(error)
        except JournalError as error:
            self._fail(error)
            self._on_lost(error)
        except Exception as error:  # noqa: BLE001 - a bug; nobody must wait for ever
            _log.exception("the journal of intents failed")
            self._fail(error)
        finally:
            self._writing = None
        if self._ended:
            self._write_later()

    async def _write_block(self, *, is_whole: bool) -> None:
        begun = []
        for intent, written in self._begun:
            if written.done():  # its caller has gone, and nothing was sent
                self._nbytes -= len(intent.packed)
            else:
                begun.append((intent, written))
        ended, self._ended, self._begun = self._ended, [], []
        try:
            await self._append([each for each, _ in begun], ended, is_whole=is_whole)
        except BaseException:
            self._begun, self._ended = begun + self._begun, ended + self._ended
            raise
        for intent, written in begun:
            self._add(intent)
            if written.done():  # its caller has gone, and has taken no step
                self.end(intent)
            else:
                written.set_result(None)

    def _fail(self, error: Exception) -> None:
        begun, self._begun = self._begun, []
        for intent, written in begun:
            self._nbytes -= len(intent.packed)
            if not written.done():
                written.set_exception(Unavailable(f"the gateway's journal: {error}"))

    async def _append(
        self, begun: Sequence[Intent], ended: Sequence[int], *, is_whole: bool
    ) -> None:
        """Write a block, which may tell all that is open."""
        if is_whole:
            begun, ended = [*self.open, *begun], []
        await self._journal.append(self._at.next(), _encoded(begun, ended, is_whole=is_whole))
        self._at = self._at.next()
        self._since_whole = 0 if is_whole else self._since_whole + 1

    async def _trim(self) -> None:
        """Let go of the blocks before one that tells all that is open."""
        with suppress(JournalUnavailable):  # the next one does it
            await self._journal.trim(self._at)


Begin = Callable[[], Awaitable[None]]
"""What a call awaits before the first of several steps."""


async def begun_already() -> None:
    """The `Begin` of a call that is written down."""


class Alone:
    """Calls on the same hold, one after the other, each after what an earlier one has left half done."""

    def __init__(
        self,
        log: IntentLog | None,
        shards: Shards,
        do: Callable[[Intent, bool], Awaitable[object]],
    ) -> None:
        """`do` does a call that was begun, which may be late. Without a `log` nothing is written down."""
        self._intents = log
        self._shards = shards
        self._do = do
        self._turns = Turns()

    @asynccontextmanager
    async def on(
        self, hold_ids: Collection[bytes], method: str, request: Request, *args: Any
    ) -> AsyncIterator[Begin]:
        """Have some holds for oneself, for a call of a router's method.

        Raises Unavailable when what was begun on them cannot be finished now.
        """
        intent: Intent | None = None

        async def begin() -> None:
            nonlocal intent
            if intent is None and self._intents is not None:
                seen = self._shards.seen
                intent = await self._intents.begin(method, request, args, hold_ids, seen)

        async with self._cleared(hold_ids):
            try:
                yield begin
            except Overloaded:
                if is_half_way():
                    raise
                self._end(intent)  # nothing was judged
                raise
            self._end(intent)

    async def finish(self) -> None:
        """Do what has begun and is not under way. Raises Unavailable, when all others were tried."""
        intents = self._intents.open if self._intents is not None else []
        some = asyncio.Semaphore(FINISHED_AT_ONCE)

        async def done(intent: Intent) -> None:
            async with some, self._cleared(intent.hold_ids):
                pass

        told = await asyncio.gather(*map(done, intents), return_exceptions=True)
        for error in told:
            if isinstance(error, BaseException):
                raise error

    def _cleared(self, hold_ids: Collection[bytes]) -> AbstractAsyncContextManager[None]:
        """Have the turn at some holds, with nothing half done on them."""
        if self._intents is None and len(hold_ids) == 1:
            (hold_id,) = hold_ids
            return self._turns.of(hold_id)
        return self._cleared_all(hold_ids)

    @asynccontextmanager
    async def _cleared_all(self, hold_ids: Collection[bytes]) -> AsyncIterator[None]:
        wanted = set(hold_ids)
        while True:
            async with AsyncExitStack() as turns:
                for hold_id in sorted(wanted):  # in one order, so that nobody waits for each other
                    await turns.enter_async_context(self._turns.of(hold_id))
                begun = self._intents.of(wanted) if self._intents is not None else []
                more = {hold_id for intent in begun for hold_id in intent.hold_ids} - wanted
                if not more:
                    for intent in begun:
                        await self._finish(intent)
                    yield
                    return
            wanted |= more

    async def _finish(self, intent: Intent) -> None:
        assert self._intents is not None
        op_id = intent.request.op_id.hex()
        try:
            if await self._is_remembered(intent):
                await self._do(intent, self._is_late(intent))
            else:
                _log.error(
                    "a call that had begun was not finished before it was forgotten: %s", op_id
                )
        except (Overloaded, Unavailable) as error:
            told = f"an earlier call on this hold is half done and waits: {error}"
            raise Unavailable(told) from error
        except Exception:  # noqa: BLE001 - a bug, which must not stand in everybody's way for ever
            _log.exception("a call that had begun cannot be finished: %s", op_id)
        self._end(intent)

    def _is_late(self, intent: Intent) -> bool:
        """Whether the time to live of what an order holds is over, if it is not to be paid at once."""
        assert self._intents is not None
        ttl_ms = int(column_of(intent.request, "value")[-1])
        return self._intents.age_ms(intent) > ttl_ms

    async def _is_remembered(self, intent: Intent) -> bool:
        """Whether each shard remembers all that it has answered since a call began.

        Else its steps could have a second effect: what a shard has done it would do again.
        """
        sights = await self._shards.sights(intent.hold_ids[0], self._shards.asked_for(0))
        return all(
            sight.forgotten <= intent.seen.get(shard, (0, 0)) for shard, sight in sights.items()
        )

    def _end(self, intent: Intent | None) -> None:
        if intent is not None and self._intents is not None:
            self._intents.end(intent)


def _encoded(
    begun: Sequence[Intent], ended: Sequence[int], *, is_whole: bool = False, nonce: bytes = b""
) -> bytes:
    block = {"begun": [each.packed for each in begun], "ended": list(ended), "whole": is_whole}
    packed: bytes = msgpack.packb(block | ({"nonce": nonce} if nonce else {}))
    return packed
