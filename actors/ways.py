"""Ways that units of a hold go in a move: each takes its place, may be refused one, and goes or is given back."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from actors.parts import hold_id_of
from actors.ports import Sight, Waiting
from actors.shards import Shards
from actors.transits import ENDED, Line, arrive, keep, leave, place_id, take_place
from actors.wholes import GRACE_MS, refused_with
from engine import limits
from engine.operations import Answer, Request, column_of
from engine.status import Status
from engine.views import Hold, HoldState

# How a shard says that there is less than was to leave: others have taken some of it, or moved it elsewhere.
LESS: Final = frozenset((Status.EXCEEDS_HOLD, Status.NOT_IN_HOLD))
_TAKEN: Final = frozenset((Status.OP_ID_REUSED, Status.HOLD_EXISTS))  # a place, by another


class EndedByOthers(Exception):  # noqa: N818
    """A call on all of the hold came between two steps: the units stay, and the move begins anew."""


@dataclass(frozen=True, slots=True)
class Way:
    """Units of a hold that are to go from cells of one shard to cells of another, all or none."""

    name: str  # which of the move's, the same whenever it is taken
    source: int  # shards
    target: int
    to: int  # a location
    lines: Sequence[Line]  # what is to leave now; none: nothing, or it has left already

    @property
    def is_all(self) -> bool:
        """Whether it is of all that is pending on a shard, however much that is."""
        return self.name.startswith("from")

    def digest(self, request: Request) -> bytes:
        """Whose its places are: no other move's, nor another way's of this one."""
        named = request.op_id + request.digest + self.name.encode()
        return hashlib.blake2b(named, digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Placed:
    """A way that has taken its place, or was refused one."""

    way: Way
    answer: Answer  # ENDED: there is nothing to go
    place: bytes
    waits: Hold | None = None
    is_new: bool = False  # else what waits was seen, and is not surely what is to leave now

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to go."""
        return self.answer.status == ENDED


@dataclass(frozen=True, slots=True)
class Ways:
    """The steps of one attempt at a move, by what was seen of the hold."""

    shards: Shards
    request: Request
    sights: Mapping[int, Sight]
    holders: Mapping[int, Hold]
    times: Mapping[int, Answer]

    @property
    def hold_id(self) -> bytes:
        """The hold whose units they are."""
        return hold_id_of(self.request)

    @property
    def channel(self) -> int:
        """The one that the stock is for which is taken where the lines go; 0: none."""
        return int(column_of(self.request, "channel")[0])

    def is_split(self, to: int) -> bool:
        """Whether the cells of a location are on several shards."""
        return len(self.shards.map.owners(to)) > 1

    async def take_place(self, way: Way) -> Placed:
        """Hold units where they go; or find that this move has done so already.

        A place that was taken and whose units others made stay is given back, and another one taken;
        so it is when all of a hold moves, and others had taken some of it.
        """
        own = self._own(way)
        if own:
            place, waits = place_id(self.hold_id, own[-1][0]), own[-1][1].hold
            if waits is None:
                digest = way.digest(self.request)
                answer = await take_place(self.shards, way.target, place, digest, (), GRACE_MS)
                return Placed(way, answer, place)
            kept = [(line.sku, line.pending) for line in waits.lines]
            if kept == [(sku, units) for sku, _, units in way.lines]:
                placed = Placed(way, _done(), place, waits, is_new=True)
                sight = await self.shards.link(way.target).sight(self.hold_id)
                return await self._if_there_is_room(placed, own[-1][0], sight)
            told = await leave(self.shards, way.source, way.target, place, self.hold_id, ())
            has_less = way.is_all and bool(LESS & set(told.status))
            if told.status != ENDED and not has_less:
                return Placed(way, _done(), place, waits)
            await arrive(self.shards, way.target, place, self.hold_id, waits, have_left=False)
        return await self._take_new_place(way)

    def _own(self, way: Way) -> list[tuple[int, Waiting]]:
        """The places that were taken for a way, by number, oldest first."""
        digest = way.digest(self.request)
        waiting = self.sights[way.target].waiting
        return [(number, each) for number, each in enumerate(waiting) if each.digest == digest]

    def was_refused(self, way: Way) -> bool:
        """Whether the newest place of a way was refused the stock, or taken for nothing."""
        own = self._own(way)
        return bool(own) and own[-1][1].hold is None

    def is_open(self, way: Way) -> tuple[bool, bool]:
        """To sort ways by: first what was refused its place, then what has left or been given back."""
        own = self._own(way)
        waits = own[-1][1].hold if own else None
        is_decided = waits is not None and waits.state != HoldState.PENDING
        return not self.was_refused(way), not is_decided

    async def _take_new_place(self, way: Way) -> Placed:
        kept = [(sku, way.to, units) for sku, _, units in way.lines]
        number, answer = await self._take(way, kept, len(self.sights[way.target].waiting))
        place = place_id(self.hold_id, number)
        if answer.status[0]:
            return Placed(way, answer, place)
        sight = await self.shards.link(way.target).sight(self.hold_id)
        placed = Placed(way, answer, place, sight.waiting[number].hold, is_new=True)
        return await self._if_there_is_room(placed, number, sight)

    async def _take(self, way: Way, kept: Sequence[Line], first: int) -> tuple[int, Answer]:
        """Take a place for lines, the first that is free from a number on: which, and the answer."""
        digest, ttl_ms = way.digest(self.request), self._ttl_ms()
        for number in count(first):
            place = place_id(self.hold_id, number)
            answer = await take_place(
                self.shards, way.target, place, digest, kept, ttl_ms, self.channel
            )
            if answer.status[0] not in _TAKEN:
                return number, answer
        raise AssertionError("numbers do not end")

    async def _if_there_is_room(self, placed: Placed, number: int, sight: Sight) -> Placed:
        """Refuse what a hold of too many lines could not join, before anything of it leaves.

        `sight` is of the target since the units wait there. So what waits with them is seen: of this
        move, and of two that meet the second sees what the first one takes there.
        """
        way = placed.way
        if self._lines_to_be(sight, way) <= limits.MAX_HOLD_LINES:
            return placed
        told = await leave(self.shards, way.source, way.target, placed.place, self.hold_id, ())
        if not any(told.status) or placed.waits is None:
            return placed
        await arrive(
            self.shards, way.target, placed.place, self.hold_id, placed.waits, have_left=False
        )
        # An order of too many lines is refused for that: so a repetition finds that it was.
        too_many = [(way.lines[0][0], way.to, way.lines[0][2])] * (limits.MAX_HOLD_LINES + 1)
        number, answer = await self._take(way, too_many, number + 1)
        return Placed(way, answer, place_id(self.hold_id, number))

    def _lines_to_be(self, sight: Sight, way: Way) -> int:
        """How many lines a hold will have on a shard when all that waits has joined it there."""
        parts = [each.hold for each in sight.waiting if each.hold is not None]
        parts = [waits for waits in parts if waits.state == HoldState.PENDING]
        parts += [sight.hold] if sight.hold is not None else []
        lines = sum(len(part.lines) for part in parts)
        if way.is_all and sight.hold is not None and not self.is_split(way.to):
            # What moves within the shard before that: of a line with more than that a part splits.
            lines += sum(
                line.location != way.to and line.pending > 0 < line.committed + line.fulfilled
                for line in sight.hold.lines
            )
        return lines

    async def go(self, placed: Placed) -> Answer:
        """Give units up where they were, and let them join the hold where they went."""
        way, waits = placed.way, placed.waits
        if placed.answer.status[0] or waits is None:
            return first_refusal(placed.answer)
        lines = way.lines if placed.is_new else ()
        told = await leave(self.shards, way.source, way.target, placed.place, self.hold_id, lines)
        have_left = not any(told.status)
        if have_left and waits.state == HoldState.EXPIRED:
            return refused_with(self.request, Status.HOLD_EXPIRED)
        if have_left and waits.state == HoldState.PENDING:
            now_ns = told.now_ns
            await keep(
                self.shards, way.source, way.target, placed.place, self.hold_id, waits, now_ns
            )
        answer = await arrive(
            self.shards, way.target, placed.place, self.hold_id, waits, have_left=have_left
        )
        if told.status == ENDED:
            raise EndedByOthers
        if not have_left:
            return first_refusal(replace(answer, status=told.status))
        return first_refusal(answer) if any(answer.status) else answer

    async def give_back(self, ways: Sequence[Way], placed: Sequence[Placed]) -> None:
        """Let all stay where it is, as far as it has not left; `placed` is what has a place by now."""
        held = {(each.way.target, each.place): (each.way, each.waits) for each in placed}
        for way in ways:
            for number, each in self._own(way):
                held.setdefault((way.target, place_id(self.hold_id, number)), (way, each.hold))
        for (target, place), (way, waits) in held.items():
            if waits is not None and waits.state == HoldState.PENDING:
                told = await leave(self.shards, way.source, target, place, self.hold_id, ())
                have_left = not any(told.status)
                await arrive(self.shards, target, place, self.hold_id, waits, have_left=have_left)

    def _ttl_ms(self) -> int:
        """How long the hold has to live, rounded up; the grace at least."""
        left_ns = min(
            self.holders[shard].deadline_ns - answer.now_ns
            for shard, answer in self.times.items()
            if shard in self.holders and not answer.status[0]
        )
        return min(max(-(-left_ns // limits.NS_PER_MS), GRACE_MS), limits.MAX_TTL_MS)


def _done() -> Answer:
    return Answer(b"\0", bytes(8), 0, 0, 0)


def first_refusal(answer: Answer) -> Answer:
    """The answer with the status that says why; lines that only had such neighbours do not."""
    why = [each for each in answer.status if each not in (Status.OK, Status.LINKED_LINE_REFUSED)]
    return replace(answer, status=bytes(why[:1] or answer.status[:1]))
