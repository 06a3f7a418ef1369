"""The catalogue as processes hold it: readers that keep up with its stream, and the one writer.

The stream carries additions and the shard map (`engine.catalogue`, `engine.shard_map`) through the
same Journal as a shard's, with one owner at a time. A gateway is the owner; it tells everyone to
refresh before it answers. This module knows nothing of Redis, gRPC or Ray.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, TypeVar

from actors.ports import (
    GENESIS,
    AppendInDoubt,
    Fenced,
    Journal,
    JournalError,
    JournalLost,
    Position,
    Unavailable,
)
from engine.block import Place
from engine.catalogue import Catalogue
from engine.catalogue_block import CatalogueBlock, decode, encode
from engine.changes import Asked, asked_for
from engine.entries import Channel, Location, Rename, Sku
from engine.framing import BlockDamaged, crc_of
from engine.shard_map import ShardMap

FIRST_VERSION: Final = 1
_NONCE_BYTES: Final = 16
_T = TypeVar("_T")


class ShardCountMismatch(ValueError):  # noqa: N818
    """The journals were written by another number of shards than was asked for."""


async def nobody_to_tell(_at: Position) -> None:
    """An `on_change` for when there is no one else."""


class CatalogueReader:
    """The catalogue and the shard map up to a position of their stream.

    `refresh` moves it forward; what it has read stays true. Several readers may share a journal.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal: Final = journal
        self.catalogue: Final = Catalogue()
        self._at = GENESIS
        self._crc = 0  # of the block at `_at`
        self._shard_map: ShardMap | None = None
        self._reading = asyncio.Lock()
        self._asked = 0  # calls of `refresh` so far, and
        self._answered = 0  # those of them that a read has answered, with
        self._failure: Exception | None = None  # this

    @property
    def at(self) -> Position:
        """The newest block that was read."""
        return self._at

    @property
    def has_shard_map(self) -> bool:
        """Whether there is a shard map: bring-up writes it first, before any SKU."""
        return self._shard_map is not None

    @property
    def shard_map(self) -> ShardMap:
        """The newest shard map. Unavailable while there is none, that is during bring-up."""
        if self._shard_map is None:
            raise Unavailable("there is no shard map yet: no gateway has brought the engine up")
        return self._shard_map

    def places(self, number: int, after: int = 0) -> Iterator[Place]:
        """How one shard stands to each location with an id greater than `after`, in order of id.

        The rules of channels are told of those that it owns: on others nothing is judged there.
        """
        shard_map, catalogue = self.shard_map, self.catalogue
        for location in range(after + 1, catalogue.locations + 1):
            owned, split, part = shard_map.place(location, number)
            buffers = catalogue.channels.buffers(location) if owned else ()
            yield Place(location, owned, catalogue.currency(location), split, part, buffers)

    async def refresh(self) -> Position:
        """Read what was durable when this was called, and tell how far the reader has come.

        One read at a time: calls that come while one is under way share the next one, and its
        failure. Raises JournalUnavailable, JournalLost, Compacted, and BlockDamaged when the stream
        holds what no writer writes: no retry helps then.
        """
        self._asked += 1
        ticket = self._asked
        async with self._reading:
            if self._answered < ticket:
                covered = self._asked  # whoever asks from now on may need what is written by then
                failure = None
                try:
                    await self._read()
                except (JournalError, BlockDamaged) as error:
                    failure = error
                self._answered, self._failure = covered, failure
            if self._failure is not None:
                raise self._failure
        return self._at

    def absorb(self, position: Position, payload: bytes) -> None:
        """Take the next block in, or skip one that was read before. BlockDamaged: not the next."""
        if position <= self._at:
            return
        try:
            self._take(position, decode(payload))
        except BlockDamaged as error:
            raise BlockDamaged(f"catalogue block {position}: {error}") from error
        self._at, self._crc = position, crc_of(payload)

    def following(
        self,
        *,
        skus: Sequence[Sku] = (),
        locations: Sequence[Location] = (),
        shard_map: ShardMap | None = None,
        channel: Channel | None = None,
        rename: Rename | None = None,
        asked: Asked | None = None,
    ) -> tuple[Position, bytes]:
        """The block that would follow what was read: where it stands, and its bytes."""
        position = self._at.next()
        block = CatalogueBlock(
            position.epoch,
            position.seq,
            self._crc,
            self.catalogue.skus,
            self.catalogue.locations,
            skus,
            locations,
            b"" if shard_map is None else shard_map.encode(),
            channel=channel,
            rename=rename,
            asked=asked,
        )
        return position, encode(block)

    async def _read(self) -> None:
        known = self._at  # meanwhile the writer of this process may take its own block in
        last = await self.journal.last()
        if (last or GENESIS) < known:
            raise JournalLost(f"the catalogue was read up to {known}, and now ends at {last}")
        if (last or GENESIS) <= self._at:
            return
        async for position, payload in self.journal.read(self._at):
            self.absorb(position, payload)

    def _take(self, position: Position, block: CatalogueBlock) -> None:
        """Apply a block, or raise BlockDamaged and change nothing."""
        if (block.epoch, block.seq) != (position.epoch, position.seq):
            raise BlockDamaged(f"it says that it is {block.epoch}-{block.seq}")
        if position not in {self._at.next(), self._at.opening()}:
            raise BlockDamaged(f"it does not follow {self._at}")
        if block.opens_epoch:
            return
        if block.previous_crc != self._crc:
            raise BlockDamaged(f"it does not follow the block that was read at {self._at}")
        shard_map = self._shard_map
        if block.shard_map:
            try:
                shard_map = ShardMap.decode(block.shard_map)
            except ValueError as error:
                raise BlockDamaged(str(error)) from error
            if self._shard_map is not None and shard_map.version <= self._shard_map.version:
                raise BlockDamaged(f"its shard map is of version {shard_map.version} again")
        self.catalogue.apply(block)
        self._shard_map = shard_map


class CatalogueWriter:
    """The owner of the catalogue's stream. `start` it before anything else.

    It shares a reader with the rest of its process, which so knows an addition at once. Additions
    are durable, and `on_change(position)` has returned, before a call returns; a call that is
    cancelled is carried out all the same. When the stream is no longer its own, every call raises
    the JournalError that says so and `ended` returns it: the process must end itself then.
    """

    def __init__(
        self,
        reader: CatalogueReader,
        *,
        shards: int,
        on_change: Callable[[Position], Awaitable[None]] = nobody_to_tell,
    ) -> None:
        self._reader = reader
        self._journal = reader.journal
        self._shards = shards
        self._on_change = on_change
        self._writing = asyncio.Lock()
        self._announced = GENESIS  # `on_change` has returned for all blocks up to this one
        self._tasks: set[asyncio.Task[Any]] = set()
        self._end: JournalError | None = None
        self._ended = asyncio.Event()
        self._started = False
        self._epoch = GENESIS.epoch

    @property
    def epoch(self) -> int:
        """The epoch that this owner has opened; 0 before that."""
        return self._epoch

    async def start(self, nonce: bytes = b"") -> None:
        """Take the stream over, read all of it, and write the first shard map if there is none.

        Raises ShardCountMismatch, before an owner that is at work is shut out, and what
        `Journal.take_over` and `CatalogueReader.refresh` raise.
        """
        await self._reader.refresh()
        self._check_shards()
        nonce = nonce or secrets.token_bytes(_NONCE_BYTES)
        opened = await self._journal.take_over(
            lambda position: encode(CatalogueBlock(position.epoch, position.seq, nonce=nonce)),
            known=self._reader.at,
        )
        if await self._reader.refresh() != opened:
            raise Fenced(f"the catalogue was taken over at {opened}, and then by another owner")
        self._check_shards()
        self._epoch, self._started = opened.epoch, True
        if not self._reader.has_shard_map:
            async with self._writing:
                await self._append(shard_map=ShardMap(FIRST_VERSION, self._shards))

    async def add_skus(self, entries: Sequence[Sku]) -> tuple[list[int], int]:
        """Give SKUs their ids: those of all entries, in order, and how many of them are new.

        Raises InvalidEntry and CatalogueFull (nothing was added), a JournalError, and whatever
        `on_change` raises: the additions are durable then, and a repeated call announces them.
        """
        return await self._carry_out(self._add_skus(entries))

    async def add_locations(self, entries: Sequence[Location]) -> tuple[list[int], int]:
        """Give locations their ids, as `add_skus` does."""
        return await self._carry_out(self._add_locations(entries))

    async def set_channel(self, op_id: bytes, entry: Channel) -> tuple[int, bool]:
        """Give a channel its rules, all of them: its number, and whether anything changed.

        Every shard that serves judges by them when this returns. The same again changes nothing and
        gets the same answer, whatever has changed since. Raises what `add_skus` does, and
        InvalidEntry when the op_id came with something else.
        """
        return await self._carry_out(self._set_channel(op_id, entry))

    async def rename_sku(self, op_id: bytes, entry: Rename) -> bool:
        """Give a SKU a new code; the one that it had stays known. Whether anything changed.

        Every shard that serves knows the new code when this returns. Repeats as `set_channel` does,
        and raises the same.
        """
        return await self._carry_out(self._rename_sku(op_id, entry))

    async def ended(self) -> JournalError:
        """Wait until the writer has lost its stream, and tell how."""
        await self._ended.wait()
        assert self._end is not None
        return self._end

    async def close(self) -> None:
        """Let the calls under way finish, and refuse more; the journal is left open."""
        self._started = False
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _add_skus(self, entries: Sequence[Sku]) -> tuple[list[int], int]:
        async with self._writing:
            ids, new = self._reader.catalogue.plan_skus(entries)
            if new:
                await self._append(skus=new)
        await self._announce()
        return ids, len(new)

    async def _add_locations(self, entries: Sequence[Location]) -> tuple[list[int], int]:
        async with self._writing:
            ids, new = self._reader.catalogue.plan_locations(entries)
            if new:
                await self._append(locations=new)
        await self._announce()
        return ids, len(new)

    async def _set_channel(self, op_id: bytes, entry: Channel) -> tuple[int, bool]:
        catalogue, asked = self._reader.catalogue, asked_for(op_id, entry)
        async with self._writing:
            known = catalogue.changes.recall(asked)
            if known is None:
                _, planned = catalogue.plan_channel(entry)
                await self._append(channel=planned, asked=asked)
                known = planned is not None
        await self._announce()
        return catalogue.channel_number(entry.code), known

    async def _rename_sku(self, op_id: bytes, entry: Rename) -> bool:
        catalogue, asked = self._reader.catalogue, asked_for(op_id, entry)
        async with self._writing:
            known = catalogue.changes.recall(asked)
            if known is None:
                planned = catalogue.plan_rename(entry)
                await self._append(rename=planned, asked=asked)
                known = planned is not None
        await self._announce()
        return known

    async def _carry_out(self, addition: Coroutine[Any, Any, _T]) -> _T:
        """Run an addition to its end, also when its caller gives up.

        An append that is cancelled would leave the block in doubt, and so cost the process its life
        whenever a client is impatient.
        """
        if self._end is not None or not self._started:
            addition.close()
            raise self._end or Unavailable("this gateway does not own the catalogue now")
        task = asyncio.create_task(addition)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; then nobody else looks at it

    async def _append(
        self,
        *,
        skus: Sequence[Sku] = (),
        locations: Sequence[Location] = (),
        shard_map: ShardMap | None = None,
        channel: Channel | None = None,
        rename: Rename | None = None,
        asked: Asked | None = None,
    ) -> None:
        """Make a block durable and take it in; the caller holds the lock."""
        if self._end is None and self._reader.at.epoch != self._epoch:
            self._finish(Fenced(f"another owner has opened epoch {self._reader.at.epoch}"))
        if self._end is not None:
            raise self._end
        position, payload = self._reader.following(
            skus=skus,
            locations=locations,
            shard_map=shard_map,
            channel=channel,
            rename=rename,
            asked=asked,
        )
        try:
            await self._journal.append(position, payload)
        except (Fenced, JournalLost, AppendInDoubt) as error:
            self._finish(error)
            raise
        except asyncio.CancelledError:
            self._finish(AppendInDoubt(f"the append of {position} was cancelled"))
            raise
        self._reader.absorb(position, payload)

    def _finish(self, error: JournalError) -> None:
        self._end = error
        self._ended.set()

    async def _announce(self) -> None:
        """Tell everyone how far the catalogue has come, unless they know.

        An addition that is repeated after a failed announcement adds nothing and still tells.
        """
        at = self._reader.at
        if self._announced < at:
            await self._on_change(at)
            self._announced = max(self._announced, at)

    def _check_shards(self) -> None:
        if self._reader.has_shard_map and self._reader.shard_map.shards != self._shards:
            raise ShardCountMismatch(
                f"the journals are of {self._reader.shard_map.shards} shards and cannot be opened"
                f" with {self._shards}: start with as many shards as before, or with new journals"
            )
