"""The history of a hold, searched for in one shard's journal as far back as that reaches.

No index is kept, so whoever asks pays, and callers go first. This room must not know the shard's state.
"""

import asyncio
from typing import Final

from actors.ports import GENESIS, Compacted, Journal, Position
from engine.block import decode
from engine.history import Event, History, events_of, is_whole, may_concern

HISTORY_STEP: Final = 128  # blocks that a search looks at in one go


class Histories:
    """Searches a shard's journal, for one hold at a time."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._one = asyncio.Lock()

    async def find(self, hold_id: bytes, upto: Position) -> History:
        """The operations on a hold in the blocks up to a position; raises what the journal does."""
        async with self._one:
            while True:
                try:
                    return await self._search(hold_id, upto)
                except Compacted:  # trimmed while it was read: what is left is read again
                    continue

    async def _search(self, hold_id: bytes, upto: Position) -> History:
        oldest = await self._journal.first()
        events: list[Event] = []
        seen = 0
        async for _, payload in self._journal.read(None, upto):
            if may_concern(payload, hold_id):
                block = await asyncio.to_thread(decode, payload)
                events += events_of(block, hold_id)
            seen += 1
            if seen % HISTORY_STEP == 0:
                await asyncio.sleep(0)  # callers go first
        complete = oldest == GENESIS.opening() or is_whole(events, hold_id)
        return History(events, complete)
