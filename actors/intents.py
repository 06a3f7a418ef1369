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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from actors.ports import GENESIS, Journal, JournalError, JournalUnavailable, Overloaded, Unavailable
from actors.shards import Turns, is_half_way
from engine import wire
from engine.operations import Request

_log = logging.getLogger(__name__)

# Calls that have begun and not ended, and what they take in a block that tells them all; more are Overloaded.
MAX_OPEN: Final = 1 << 12
MAX_OPEN_BYTES: Final = 16 << 20
WHOLE_EVERY: Final = 1 << 10  # blocks after which one tells all that is open
ENDS_WITHIN_S: Final = 0.05  # that a call has ended is written with others, or so soon
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class Intent:
    """A call that has begun: of a router's method, on some holds."""

    number: int
    method: str
    request: Request
    args: tuple[Any, ...]  # the method's others
    hold_ids: tuple[bytes, ...]
    packed: bytes  # all of it, as a block has it


def _packed(number: int, method: str, request: Request, args: Any, hold_ids: Any) -> bytes:
    payload = wire.encode_requests([request])
    packed: bytes = msgpack.packb((number, method, payload, list(args), list(hold_ids)))
    return packed


def _unpacked(packed: bytes) -> Intent:
    number, method, payload, args, hold_ids = msgpack.unpackb(packed)
    (request,) = wire.decode_requests(payload)
    return Intent(number, method, request, tuple(args), tuple(hold_ids), packed)


class IntentLog:
    """The owner of a gateway's journal of intents. `start` it before anything else.

    `on_lost` is told when the journal is another's by now: the process must end itself then.
    """

    def __init__(
        self,
        journal: Journal,
        on_lost: Callable[[JournalError], None],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._journal = journal
        self._on_lost = on_lost
        self._random_bytes = random_bytes
        self._at = GENESIS
        self._number = 0  # of the newest intent
        self._open: dict[int, Intent] = {}
        self._open_bytes = 0
        self._of_hold: dict[bytes, dict[int, Intent]] = {}
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

    async def start(self) -> None:
        """Take the journal over, and find what is open.

        Raises what `Journal.take_over` and `Journal.append` raise.
        """
        nonce = self._random_bytes(_NONCE_BYTES)
        self._at = await self._journal.take_over(lambda _: _encoded([], [], nonce=nonce))
        async for _, payload in self._journal.read(None, self._at):
            block = msgpack.unpackb(payload)
            if block["whole"]:
                self._open.clear()
            self._open |= {each.number: each for each in map(_unpacked, block["begun"])}
            for number in block["ended"]:
                self._open.pop(number, None)
            self._number = max([self._number, *self._open])
        for intent in self._open.values():
            self._index(intent)
        await self._append([], [], is_whole=True)

    async def begin(
        self, method: str, request: Request, args: Sequence[Any], hold_ids: Collection[bytes]
    ) -> Intent:
        """Write down that a call begins; it is durable when this returns.

        Raises Overloaded when too many are open, and Unavailable when the journal is.
        """
        if len(self._open) >= MAX_OPEN:
            raise Overloaded(f"{MAX_OPEN} calls over several shards have begun and not ended")
        self._number += 1
        packed = _packed(self._number, method, request, args, hold_ids)
        if self._open_bytes + len(packed) > MAX_OPEN_BYTES:
            raise Overloaded(f"calls over several shards of {MAX_OPEN_BYTES} bytes have begun")
        intent = Intent(self._number, method, request, tuple(args), tuple(hold_ids), packed)
        self._open[intent.number] = intent
        self._index(intent)
        written = asyncio.get_running_loop().create_future()
        self._begun.append((intent, written))
        self._write_soon()
        await written
        return intent

    def end(self, intent: Intent) -> None:
        """Have it written down, before long, that a call has ended."""
        if self._forget(intent):
            self._ended.append(intent.number)
            if self._later is None and self._writing is None:
                loop = asyncio.get_running_loop()
                self._later = loop.call_later(ENDS_WITHIN_S, self._write_soon)

    async def close(self) -> None:
        """Write what is still to be written; the journal is left open."""
        if self._ended:
            self._write_soon()
        while self._writing is not None:
            await asyncio.wait([self._writing])

    def _index(self, intent: Intent) -> None:
        self._open_bytes += len(intent.packed)
        for hold_id in intent.hold_ids:
            self._of_hold.setdefault(hold_id, {})[intent.number] = intent

    def _forget(self, intent: Intent) -> bool:
        if self._open.pop(intent.number, None) is None:
            return False
        self._open_bytes -= len(intent.packed)
        for hold_id in intent.hold_ids:
            of_hold = self._of_hold[hold_id]
            del of_hold[intent.number]
            if not of_hold:
                del self._of_hold[hold_id]
        return True

    def _write_soon(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Write what waits, whatever has gathered meanwhile together."""
        try:
            while self._begun or self._ended:
                begun, ended = self._begun, self._ended
                self._begun, self._ended = [], []
                try:
                    is_whole = self._since_whole >= WHOLE_EVERY
                    await self._append([each for each, _ in begun], ended, is_whole=is_whole)
                except JournalUnavailable as error:  # nothing was written
                    self._ended = ended + self._ended
                    self._fail(begun, error)
                    return
                except JournalError as error:
                    self._fail(begun, error)
                    self._on_lost(error)
                    return
                for _, written in begun:
                    if not written.done():  # else its caller has gone
                        written.set_result(None)
        finally:
            self._writing = None

    def _fail(
        self, begun: Iterable[tuple[Intent, asyncio.Future[None]]], error: JournalError
    ) -> None:
        for intent, written in begun:
            self._forget(intent)
            if not written.done():
                written.set_exception(Unavailable(f"the gateway's journal: {error}"))

    async def _append(
        self, begun: Sequence[Intent], ended: Sequence[int], *, is_whole: bool
    ) -> None:
        """Write a block. One that tells all that is open lets go of those before it."""
        if is_whole:
            begun, ended = self.open, []
        await self._journal.append(self._at.next(), _encoded(begun, ended, is_whole=is_whole))
        self._at = self._at.next()
        self._since_whole += 1
        if is_whole:
            self._since_whole = 0
            with suppress(JournalUnavailable):  # the next one does it
                await self._journal.trim(self._at)


Begin = Callable[[], Awaitable[None]]
"""What a call awaits before the first of several steps."""


async def begun_already() -> None:
    """The `Begin` of a call that is written down."""


class Alone:
    """Calls on the same hold, one after the other, each after what an earlier one has left half done."""

    def __init__(self, log: IntentLog | None, do: Callable[[Intent], Awaitable[object]]) -> None:
        """`do` does a call that was begun. Without a `log` nothing is written down."""
        self._intents = log
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
                intent = await self._intents.begin(method, request, args, hold_ids)

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
        failed: Unavailable | None = None
        for intent in self._intents.open if self._intents is not None else ():
            try:
                async with self._cleared(intent.hold_ids):
                    pass
            except Unavailable as error:
                failed = error
        if failed is not None:
            raise failed

    @asynccontextmanager
    async def _cleared(self, hold_ids: Iterable[bytes]) -> AsyncIterator[None]:
        """Have the turn at some holds, with nothing half done on them."""
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
        try:
            await self._do(intent)
        except (Overloaded, Unavailable) as error:
            told = f"an earlier call on this hold is half done and waits: {error}"
            raise Unavailable(told) from error
        except Exception:  # noqa: BLE001 - a bug, which must not stand in everybody's way for ever
            _log.exception(
                "a call that had begun cannot be finished: %s", intent.request.op_id.hex()
            )
        self._end(intent)

    def _end(self, intent: Intent | None) -> None:
        if intent is not None and self._intents is not None:
            self._intents.end(intent)


def _encoded(
    begun: Sequence[Intent], ended: Sequence[int], *, is_whole: bool = False, nonce: bytes = b""
) -> bytes:
    block = {"begun": [each.packed for each in begun], "ended": list(ended), "whole": is_whole}
    packed: bytes = msgpack.packb(block | ({"nonce": nonce} if nonce else {}))
    return packed
