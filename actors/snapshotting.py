"""When a shard takes snapshots, how, and what of the journal is kept behind them.

The state is copied beside the serving path: piece by piece between blocks, with the rows that change
meanwhile again at the end (`engine.snapshot.Capture`). This room must not know requests and callers.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import structlog
from numpy.typing import NDArray

from actors.ports import GENESIS, Journal, Position, Snapshots, shard_name
from engine.machine import Machine
from engine.memory import AnswerMemory
from engine.snapshot import Capture

_log = structlog.get_logger()


class Snapshotter:
    """Takes the snapshots of one shard, one at a time.

    `head` tells the newest durable block and its CRC32C; `between_blocks` calls a function at a
    moment when all that was applied is durable, as the proven owner, and gives what it returns.
    """

    def __init__(
        self,
        shard: int,
        journal: Journal,
        snapshots: Snapshots,
        machine: Machine,
        memory: AnswerMemory,
        *,
        head: Callable[[], tuple[Position, int]],
        between_blocks: Callable[[Callable[[], Iterator[bytes]]], Awaitable[Iterator[bytes]]],
        every_bytes: int,
        keep_journal_bytes: int,
    ) -> None:
        """`every_bytes` of journal there is one; so many more are kept for histories and events."""
        self._shard = shard
        self._journal = journal
        self._snapshots = snapshots
        self._machine = machine
        self._memory = memory
        self._head = head
        self._between_blocks = between_blocks
        self._every = every_bytes
        self._keep_journal = keep_journal_bytes
        self._written = 0  # bytes of blocks, since this process began
        self._began_at = 0  # `_written` when the last one was begun
        self._marks: deque[tuple[Position, int]] = deque()  # of snapshots: where, `_written` then
        self._task: asyncio.Task[Position | None] | None = None
        self._capture: Capture | None = None

    def wrote(self, nbytes: int) -> None:
        """Note that a block of so many bytes is durable."""
        self._written += nbytes

    def touched(self, rows: NDArray[Any]) -> None:
        """Note which rows of cells a block changed."""
        if self._capture is not None:
            self._capture.note(rows)

    def is_due(self) -> bool:
        """When the journal behind the last snapshot is long, and long beside the state itself.

        Copying and packing a large state costs more than keeping a few more blocks.
        """
        return self._task is None and self._written - self._began_at >= max(
            self._every, self._machine.nbytes_used()
        )

    def begin(self) -> "asyncio.Task[Position | None]":
        """Begin to copy the state, unless that is under way.

        The task gives the position that the snapshot is of once it is stored, None when that failed.
        """
        if self._task is None:
            self._began_at = self._written
            self._task = asyncio.create_task(self._take())
        return self._task

    async def finish(self) -> None:
        """Wait until the snapshot that is under way has ended, well or not."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take(self) -> Position | None:
        self._capture = capture = Capture(self._machine)
        at = GENESIS

        def rest() -> Iterator[bytes]:
            nonlocal at
            at, chain = self._head()
            self._capture = None
            self._marks.append((at, self._written))
            return capture.finish(self._memory, chain)

        async def pieces() -> AsyncIterator[bytes]:
            for piece in capture.pieces():
                yield piece
            for piece in await self._between_blocks(rest):
                yield piece

        try:
            saved = await self._snapshots.save(shard_name(self._shard), pieces(), lambda: at)
            # The snapshot before this one is kept too, and needs the blocks behind it.
            trimmed = await self._journal.trim(min(saved.oldest, self._kept_from()))
            _log.info(
                "snapshot stored", shard=self._shard, at=str(at), stored_bytes=saved.stored_bytes,
                trimmed_blocks=trimmed,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - the journal has it all, and the next may succeed
            _log.warning("snapshot failed", shard=self._shard, error=str(error))
            return None
        else:
            return at
        finally:
            self._task = self._capture = None

    def _kept_from(self) -> Position:
        """From where on the journal is kept for those who ask for histories and events."""
        marks = self._marks
        while len(marks) > 1 and self._written - marks[1][1] >= self._keep_journal:
            marks.popleft()
        at, written = marks[0]
        return at if self._written - written >= self._keep_journal else GENESIS
