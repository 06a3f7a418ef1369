"""The router: which shard, or shards, a request is for, and one answer from their answers.

In a shard's own process it has that one link and passes everything straight on: the machine itself
refuses what is not the shard's. A gateway has a link to every shard. The router keeps no state: what
it does for an op_id it would do again, so a repeated request meets the same answers, as long as the
shard map has not moved its cells meanwhile. Calls on one hold take turns in it, and what an earlier one
has left half done is done first (`actors.intents`), so that none meets another half-way; where they come
by a shard's own server or in batches, the shards decide. It must not know gRPC or Ray.

What each shard gets is cut in `actors.parts`; what takes several steps is in `actors.spanning` (orders),
`actors.commits` and `actors.calls` (on all of a hold), `actors.moves` and `actors.returns`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors import calls, commits, moves, returns, spanning
from actors.asking import asking, objections, refusal
from actors.intents import Alone, Begin, Intent, IntentLog, begun_already
from actors.notes import note_of, noted, noted_before, noted_shards
from actors.parts import (
    hold_id_of,
    hold_part,
    in_order,
    joined,
    on,
    renamed,
    split,
    step_id,
    step_of,
    that_count,
    that_fits,
    those_that_fit,
    whole,
)
from actors.ports import CellTable, ShardLink, Sight
from actors.shards import Shards, every, in_doubt_half_way
from actors.transits import have_moved, seen
from actors.wholes import holders_of, refused_with
from engine import limits
from engine.history import History
from engine.operations import Answer, Flag, Kind, Request, chain_starts, column_of, pair_to_id
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import Cell, DatedIncoming, Hold, HoldLine, HoldState, Incoming

# In place of a shard: lines that cannot be placed, by the status that says why.
_NO_LOCATION: Final = -int(Status.UNKNOWN_LOCATION)
_NO_SKU: Final = -int(Status.UNKNOWN_SKU)
# Lines that are about a hold or an incoming record, and are placed by a cell of it.
_ON_HOLD: Final = (
    Kind.COMMIT,
    Kind.RELEASE,
    Kind.FULFIL,
    Kind.CANCEL,
    Kind.EXTEND,
    Kind.MOVE,
    Kind.UNFULFIL,
    Kind.CLAIM_RETURN,
    Kind.CANCEL_INCOMING,
)
# The state of a hold over several shards is the first of these that one of its parts is in. A part
# that others moved away is released: so what ran out elsewhere comes first.
_LIFE: Final = (
    HoldState.PENDING,
    HoldState.COMMITTED,
    HoldState.FULFILLED,
    HoldState.CANCELLED,
    HoldState.EXPIRED,
    HoldState.RELEASED,
)

Operation = Callable[..., Awaitable[object]]
"""Of a router, a request and what else it needs."""


class Router:
    """Sends requests to the shards that own what they are about.

    Writes return the number of the shard that the first line went to, and the answer; `now_ns` is
    the earliest of all blocks (so that no hold is thought to live longer than it does), `epoch` and
    `seq` are of the first line's. Every method may raise Overloaded, when nothing was judged, and
    Unavailable, after which the same op_id must be sent again to know.
    """

    def __init__(
        self,
        links: Mapping[int, ShardLink],
        shard_map: Callable[[], ShardMap],
        intents: IntentLog | None = None,
        operations: Mapping[str, Operation] = MappingProxyType({}),
    ) -> None:
        """`links` by shard number, all of them or just one's own; `shard_map` gives the newest.

        `intents`, of a gateway, has been started; there may be some of `operations` among them, which
        are made of the router's own.
        """
        if not links:
            raise ValueError("links: a router needs one shard at least")
        self._shards = Shards(links, shard_map)
        self._only = next(iter(links.values())) if len(links) == 1 else None
        self._first = min(links)
        self._alone = Alone(intents, self._shards, self._finish)
        self._operations = operations

    @property
    def first(self) -> int:
        """The number of the first shard that it has a link to; a shard's own where that is all."""
        return self._first

    @property
    def is_one_of_many(self) -> bool:
        """Whether it is a shard's own router, and there are others."""
        return self._only is not None and self._shards.map.shards > 1

    # --- writes -----------------------------------------------------------------------------------

    async def submit(self, request: Request) -> tuple[int, Answer]:
        """Apply lines that are judged one by one, or linked within one shard.

        Linked lines go to the shard of the first of them: with cells of other shards among them,
        they are refused with WRONG_SHARD. Lines on holds need their location (and at a location that
        is split, their SKU), or are refused with UNKNOWN_LOCATION (UNKNOWN_SKU).
        """
        if self._only is not None:
            return self._first, that_fits(request, await self._only.submit(request))
        shards = self._shards_of(request)
        parts = split(request, shards)
        answers = those_that_fit(parts, await self._shards.submit_parts(parts))
        return joined(request, parts, answers, np.maximum(-shards, 0).astype(np.uint8))

    @in_doubt_half_way
    async def reserve(self, request: Request) -> tuple[int, Answer]:
        """Hold all lines of one order, each on its shard, or none: all are linked.

        When one shard refuses, the others are released before this answers.
        """
        if self._only is not None:
            return self._first, that_fits(request, await self._only.submit(request))
        owners = self._owners_of(request)
        is_special = "flags" in request.columns and request.columns["flags"][0] & Flag.SUPERSEDE
        if (owners == owners[0]).all() and not is_special:
            return int(owners[0]), await self._shards.submit(int(owners[0]), request)
        hold_ids = {request.op_id, hold_id_of(request)} if is_special else {request.op_id}
        async with self._alone.on(hold_ids, "reserve", request) as begin:
            await begin()
            return await spanning.reserve(self._shards, request, owners)

    @in_doubt_half_way
    async def on_hold(self, request: Request, location: int = 0) -> tuple[int, Answer]:
        """Apply lines on one hold: all of it (one line of quantity 0), or some of its cells.

        Linked lines stand or fall together: every shard is asked whether it could, and only then they
        do. What comes between by another way, a deadline say, can make one refuse and another not.
        `location`, if not 0, is where all of the hold is; without it, and when lines do not say it
        themselves, every shard is asked. The call is applied to each shard's part of the hold. A shard
        by itself refuses another one's location with WRONG_SHARD: it would take its own part for it.
        """
        if self._only is not None:
            if location and self._first not in self._shards.asked_for(location):
                return self._first, refused_with(request, Status.WRONG_SHARD)
            return self._first, that_fits(request, await self._only.submit(request))
        async with self._alone.on([hold_id_of(request)], "on_hold", request, location) as begin:
            return await self._on_hold(request, location, begin)

    async def on_each(self, request: Request, location: int) -> dict[int, Answer]:
        """Apply lines to each shard of a location, whether it has what they are about or not."""
        asked = self._shards.asked_for(location) if self._only is None else [self._first]
        return await self._shards.submit_each(dict.fromkeys(asked, request))

    @in_doubt_half_way
    async def move(self, request: Request) -> tuple[int, Answer]:
        """Move lines of a pending hold to another location, on the same shard or not."""
        if self._only is not None:
            return self._first, that_fits(request, await self._only.submit(request))
        async with self._alone.on([hold_id_of(request)], "move", request) as begin:
            return await self._move(request, begin)

    @in_doubt_half_way
    async def returned(self, request: Request, sold_at: Sequence[int]) -> tuple[int, Answer]:
        """Record what came back, on whichever shards it was handed over; linked lines together.

        `sold_at`: where each line was, as far as that is known; 0 where it has to be looked for.
        """
        if self._only is not None:
            return self._first, that_fits(request, await self._only.submit(request))
        owners, at = self._owners_of(request), list(sold_at)
        hold_ids = {request.op_id, *_named_in(request)}
        async with self._alone.on(hold_ids, "returned", request, at) as begin:
            return await returns.returned(self._shards, request, owners, at, begin)

    @in_doubt_half_way
    async def exchange(self, request: Request, sold_at: Sequence[int]) -> tuple[int, Answer]:
        """Take goods back and hold others in their place, all of it or nothing: all are linked.

        The lines are returns, then those of one order. `sold_at` is as for `returned`.
        """
        if self._only is not None:
            return self._first, that_fits(request, await self._only.submit(request))
        owners = self._owners_of(request)
        owner = int(owners[0])
        named = np.flatnonzero(column_of(request, "hold_hi") | column_of(request, "hold_lo"))
        sold_here = all(self._shards.asked_for(sold_at[each]) == [owner] for each in named.tolist())
        if sold_here and (owners == owner).all():
            return owner, await self._shards.submit(owner, request)
        hold_ids = {request.op_id, *_named_in(request)}
        async with self._alone.on(hold_ids, "exchange", request, list(sold_at)) as begin:
            await begin()
            return await returns.exchange(self._shards, request, owners, sold_at)

    def alone(
        self, hold_ids: Collection[bytes], method: str, request: Request, *args: Any
    ) -> AbstractAsyncContextManager[Begin]:
        """Have holds for oneself, for one of the operations that were given; see `intents.Alone.on`."""
        return self._alone.on(hold_ids, method, request, *args)

    async def finish(self) -> None:
        """Do what this gateway, or the one before it, has begun and left half done.

        Calls on the same holds do it before they are done themselves; this is for those that nobody
        calls on. Raises Unavailable while some of it cannot be done, or a shard has never answered.
        """
        try:
            unheard = [at for at in self._shards.asked_for(0) if at not in self._shards.seen]
            hello = note_of(step_id(bytes(limits.OP_ID_BYTES), "a gateway"), 0)
            await self._shards.submit_each(dict.fromkeys(unheard, hello))
        finally:
            await self._alone.finish()

    async def _finish(self, intent: Intent, is_late: bool) -> None:
        """Do a call that has begun, when it is its turn; an order that is late holds nothing anew."""
        request, args = intent.request, intent.args
        match intent.method:
            case "reserve":
                owners = self._owners_of(request)
                await spanning.reserve(self._shards, request, owners, is_late=is_late)
            case "on_hold":
                (location,) = args
                await self._on_hold(request, location, begun_already)
            case "move":
                await self._move(request, begun_already)
            case "exchange":
                (sold_at,) = args
                await returns.exchange(self._shards, request, self._owners_of(request), sold_at)
            case "returned":
                (sold_at,) = args
                owners = self._owners_of(request)
                await returns.returned(self._shards, request, owners, sold_at, begun_already)
            case method:
                await self._operations[method](self, request, *args)

    def is_split(self, location: int) -> bool:
        """Whether a location's cells are on several shards."""
        return self._only is None and len(self._shards.map.owners(location)) > 1

    def shard_of(self, sku: int, location: int) -> int:
        """The shard that owns a cell; a shard's own router takes all for its own."""
        return self._first if self._only is not None else self._shards.map.shard_of(sku, location)

    async def remember(self, hold_id: bytes, name: str, number: int) -> int:
        """Have a number noted of a hold under a name; the one that was noted first."""
        return await noted(self._shards, hold_id, step_id(hold_id, name), number)

    async def remembered(self, hold_id: bytes, name: str) -> int:
        """The number that was noted of a hold under a name; 0 when that is not known."""
        return await noted_before(self._shards, hold_id, step_id(hold_id, name)) or 0

    # --- reads ------------------------------------------------------------------------------------

    async def hold(self, hold_id: bytes, location: int = 0) -> Hold | None:
        """Look a hold up, all its parts in one, also what is on its way from one shard to another.

        `location`, if not 0, is where all of it is.
        """
        if self._only is not None:
            return await self._only.hold(hold_id)
        asked = self._shards.asked_for(location)
        if len(asked) == 1:
            return await self._shards.link(asked[0]).hold(hold_id)
        return merged(await seen(self._shards, hold_id, asked))

    async def incoming(
        self, incoming_id: bytes, location: int = 0, *, sure: bool = False
    ) -> Incoming | None:
        """Look an incoming record up, all its parts in one, the earliest of their dates.

        `location`, if not 0, is where all of it goes; `sure` is as `ports.ShardLink.hold` has it.
        """
        if self._only is not None:
            return await self._only.incoming(incoming_id, sure=sure)
        asked = self._shards.asked_for(location)
        found = await self._shards.incoming(incoming_id, asked, sure=sure)
        parts = list(found.values())
        if len(parts) < 2:
            return parts[0] if parts else None
        dates = [part.expected_at_ns for part in parts if part.expected_at_ns]
        lines = [line for part in parts for line in part.lines]
        return Incoming(min(part.state for part in parts), min(dates, default=0), lines)

    async def incoming_of(self, names: Sequence[tuple[int, int]]) -> list[DatedIncoming]:
        """Find what is outstanding for cells (sku id, location id), by cell and date."""
        if self._only is not None:
            return await self._only.incoming_of(names)
        shard_map = self._shards.map
        wanted: dict[int, list[tuple[int, int]]] = {}
        for sku, location in names:
            wanted.setdefault(shard_map.shard_of(sku, location), []).append((sku, location))
        found = await every(
            self._shards.link(shard).incoming_of(own) for shard, own in wanted.items()
        )
        return sorted(
            (each for part in found for each in part), key=lambda each: (each.location, *each)
        )

    def elsewhere(self, names: Sequence[tuple[int, int]]) -> list[int]:
        """The places of those cells (sku id, location id) that no shard of this router owns.

        A SKU of 0 may be any, and a location of 0 is nowhere else.
        """
        if self._only is None:
            return []
        return [place for place, name in enumerate(names) if name[1] and not self._may_own(*name)]

    def has_all_of(self, location: int) -> bool:
        """Whether a location is known, and nothing of it is on a shard that this router has no link to."""
        if self._only is None:
            return True
        return location != 0 and self._shards.asked_for(location) == [self._first]

    async def history(self, hold_id: bytes, location: int = 0) -> History:
        """Find the operations on a hold in all its shards, oldest first.

        `location`, if not 0, is where all of the hold is.
        """
        if self._only is not None:
            return await self._only.history(hold_id)
        parts = await every(
            self._shards.link(shard).history(hold_id) for shard in self._shards.asked_for(location)
        )
        return merged_histories(parts)

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id), in order; None where there is none."""
        if self._only is not None:
            return await self._only.cells(names)
        shard_map = self._shards.map
        places: dict[int, list[int]] = {}
        for place, (sku, location) in enumerate(names):
            places.setdefault(shard_map.shard_of(sku, location), []).append(place)
        found = await every(
            self._shards.link(shard).cells([names[place] for place in own])
            for shard, own in places.items()
        )
        cells: list[Cell | None] = [None] * len(names)
        for own, part in zip(places.values(), found, strict=True):
            for place, cell in zip(own, part, strict=True):
                cells[place] = cell
        return cells

    async def tables(
        self, locations: Sequence[int] | None = None
    ) -> AsyncIterator[tuple[int, CellTable]]:
        """Yield the rows of some locations, or all rows, shard by shard."""
        shards: Collection[int] = self._shards.asked_for(0)
        if self._only is None and locations is not None:
            shard_map = self._shards.map
            shards = {shard for location in locations for shard in shard_map.owners(location)}
        for shard in sorted(shards):
            yield shard, await self._shards.link(shard).table(locations)

    # --- insides ----------------------------------------------------------------------------------

    def _may_own(self, sku: int, location: int) -> bool:
        shard_map = self._shards.map
        if not sku:
            return self._first in shard_map.owners(location)
        return shard_map.shard_of(sku, location) == self._first

    async def _on_hold(self, request: Request, location: int, begin: Begin) -> tuple[int, Answer]:
        """Apply lines on one hold, when it is their turn."""
        # Lines are few here (MAX_UNARY_LINES at most), so they may be plain integers.
        skus, locations, quantities, flags = (
            column_of(request, name).tolist() for name in ("sku", "location", "quantity", "flags")
        )
        shard_map = self._shards.map
        shards = [
            shard_map.shard_of(sku, at) if at and sku else _NO_LOCATION
            for sku, at in zip(skus, locations, strict=True)
        ]
        releases_rest = any(flag & Flag.RELEASE_REST for flag in flags)
        is_of_all = request.lines == 1 and not quantities[0]
        if is_of_all:
            there = self._shards.asked_for(location) if shards[0] == _NO_LOCATION else shards
            if len(there) > 1:
                return await self._on_all(request, begin)
            return there[0], await self._shards.submit(there[0], request)
        holders: Sequence[int] = []
        if releases_rest or _NO_LOCATION in shards:
            if len(self._shards.asked_for(location)) > 1:
                await begin()
            holders = await self._holders(request, location)
        if len(holders) > 1 and _NO_LOCATION in shards:
            # A quantity of which cell? Each part would take it for its own.
            request = renamed(request, [shard == _NO_LOCATION for shard in shards])
        first = next(iter(holders), 0)
        placed = np.array([first if shard == _NO_LOCATION else shard for shard in shards], np.int64)
        parts = [hold_part(request, placed, shard) for shard in in_order(placed)]
        rest = set(holders) - set(placed.tolist()) if releases_rest else set()
        if len(parts) + len(rest) > 1:
            await begin()
        if len(parts) > 1 and flags[0] & Flag.LINKED:
            kind = Kind(column_of(request, "kind")[0])
            asked = [(part, asking(request, "check", part, kind)) for part in parts]
            refused = await objections(self._shards, asked)
            if refused:
                return parts[0].shard, refusal(request, refused, np.arange(request.lines))[1]
        answers = those_that_fit(parts, await self._shards.submit_parts(parts))
        if rest and not any(any(answer.status) for answer in answers):
            hold = on(hold_id_of(request))
            release = step_of(request, "release", kind=Kind.RELEASE, **hold)
            await self._shards.submit_each(dict.fromkeys(sorted(rest), release))
        return joined(request, parts, answers)

    async def _move(self, request: Request, begin: Begin) -> tuple[int, Answer]:
        """Move lines of a hold, when it is their turn.

        A shard that has, or had, both ends does it by itself. It remembers what it has done, so a
        repetition finds it, wherever the hold may have gone since.
        """
        (to,) = set(column_of(request, "location").tolist())
        hold_id, asked = hold_id_of(request), self._shards.asked_for(0)
        op_ids = [request.op_id, moves.refusal_id(request)]
        sights = await self._shards.sights(hold_id, asked, op_ids)
        refused = moves.refused_before(self._shards, request, sights)
        if refused is not None:
            return refused
        for shard, sight in sights.items():
            if request.op_id in sight.digests:
                return shard, await self._shards.submit(shard, request)
        holders = {shard for shard, sight in sights.items() if sight.hold is not None}
        involved = {*holders, *self._shards.map.owners(to)}
        if len(involved) == 1 or not holders:
            shard = min(involved)
            return shard, await self._shards.submit(shard, request)
        await begin()
        return await moves.move(self._shards, request)

    async def _on_all(self, request: Request, begin: Begin) -> tuple[int, Answer]:
        """Apply a call on all of a hold, wherever it is or is going; what it was told stays."""
        asked = self._shards.asked_for(0)
        op_ids = calls.asked_by(request)
        sights = await self._shards.sights(hold_id_of(request), asked, op_ids)
        before = await calls.told_before(self._shards, request, sights)
        if before is not None:
            return before
        for shard, sight in sights.items():
            if sight.digests.get(request.op_id, request.digest) != request.digest:
                # Used for another call, which may have been about this part alone: not for the others.
                return shard, await self._shards.submit(shard, request)
        holders = holders_of(sights)
        kind = Kind(column_of(request, "kind")[0])
        # Calls that are about what is pending, so also about what is on its way between two shards.
        on_pending = {
            Kind.COMMIT: commits.commit,
            Kind.RELEASE: calls.release,
            Kind.EXTEND: calls.extend,
        }
        is_paid = kind in on_pending and any(map(_is_paid, holders.values()))
        if len(holders) > 1 or have_moved(sights) or is_paid or kind == Kind.CANCEL_INCOMING:
            await begin()  # else one step does it
        if kind in on_pending and holders:
            told = await on_pending[kind](self._shards, request, sights)
        elif parts := await self._parts_of_all(request, sights):
            told = await self._on_all_of(request, parts)
        else:
            told = await calls.unknown(self._shards, request)
        return await calls.settled(self._shards, request, told)

    async def _parts_of_all(self, request: Request, sights: Mapping[int, Sight]) -> Collection[int]:
        """The shards that a call on all of a hold, of which nothing need be pending, is about.

        Noted, so that a repetition is about no part that has come to another shard since.
        """
        hold_id = hold_id_of(request)
        holders: Collection[int] = holders_of(sights)
        if column_of(request, "kind")[0] == Kind.CANCEL_INCOMING:
            holders = await self._shards.incoming(hold_id, list(sights), sure=True)
        done = [shard for shard, sight in sights.items() if request.op_id in sight.digests]
        if not done and len(holders) < 2:
            return holders
        note = step_id(request.op_id, "of")
        return await noted_shards(self._shards, hold_id, note, done or holders, list(sights))

    async def _on_all_of(self, request: Request, holders: Collection[int]) -> tuple[int, Answer]:
        """Apply a call on a whole hold to each of its parts."""
        parts = [whole(request, shard) for shard in holders]
        answers = await self._shards.submit_parts(parts)
        return joined(request, *that_count(parts, answers))

    def _owners_of(self, request: Request) -> NDArray[np.int64]:
        columns = request.columns
        if request.lines == 1:
            location, sku = (int(columns[n][0]) if n in columns else 0 for n in ("location", "sku"))
            return np.array([self._shards.map.shard_of(sku, location)], np.int64)
        shards = self._shards.map.shards_of(
            column_of(request, "sku"), column_of(request, "location")
        )
        return shards.astype(np.int64)

    def _shards_of(self, request: Request) -> NDArray[np.int64]:
        """The shard of each line of a batch, or below zero the status for which it has none."""
        shards = self._owners_of(request)
        kind, flags = column_of(request, "kind"), column_of(request, "flags")
        on_hold = np.isin(kind, _ON_HOLD)
        if on_hold.any():
            location, sku = column_of(request, "location"), column_of(request, "sku")
            shards[on_hold & (location == 0)] = _NO_LOCATION
            for at in np.unique(location[on_hold & (location != 0) & (sku == 0)]).tolist():
                if len(self._shards.map.owners(at)) > 1:
                    shards[on_hold & (location == at) & (sku == 0)] = _NO_SKU
        starts = chain_starts(kind, flags)
        if starts.all():
            return shards
        return shards[np.maximum.accumulate(np.where(starts, np.arange(request.lines), 0))]

    async def _holders(self, request: Request, location: int) -> Sequence[int]:
        """The shards that have a part of a hold, or had when this was asked first; one at least.

        It is noted, so that a repetition is about the same parts. Where there is but one to ask it
        is not asked.
        """
        asked = self._shards.asked_for(location)
        if len(asked) == 1:
            return asked
        found = await self._parts(request, asked)
        note = step_id(request.op_id, f"of {location}")
        parts = await noted_shards(self._shards, hold_id_of(request), note, found, asked)
        return parts or asked[:1]

    async def _parts(self, request: Request, asked: Sequence[int]) -> Collection[int]:
        """Which shards have a part of the hold, or of the incoming record, that a request is about."""
        if column_of(request, "kind")[0] == Kind.CANCEL_INCOMING:
            return await self._shards.incoming(hold_id_of(request), asked, sure=True)
        return await self._shards.holds(hold_id_of(request), asked)


def _named_in(request: Request) -> set[bytes]:
    """The orders and sales that lines of a request name."""
    pairs = zip(
        column_of(request, "hold_hi").tolist(), column_of(request, "hold_lo").tolist(), strict=True
    )
    return {pair_to_id(*pair) for pair in set(pairs) if any(pair)}


def _is_paid(hold: Hold) -> bool:
    """Whether some of a hold is or was committed."""
    return any(line.committed or line.fulfilled for line in hold.lines)


def merged(parts: Sequence[Hold]) -> Hold | None:
    """One hold of its parts: its state is the least advanced of theirs.

    Its deadline is the earliest of the parts that are in this state.
    """
    if len(parts) < 2:
        return parts[0] if parts else None
    lines: list[HoldLine] = [line for part in parts for line in part.lines]
    states = {part.state for part in parts}
    state = next(state for state in _LIFE if state in states)
    deadline_ns = min(part.deadline_ns for part in parts if part.state == state)
    return Hold(state, deadline_ns, lines)


def merged_histories(parts: Sequence[History]) -> History:
    """One history of several, oldest first."""
    events = [event for part in parts for event in part.events]
    events.sort(key=lambda each: each.now_ns)
    # A shard that has nothing on it says nothing of whether something is missing.
    told = [part.complete for part in parts if part.events]
    return History(events, all(told) if told else all(part.complete for part in parts))
