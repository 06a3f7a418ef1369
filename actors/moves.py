"""Moves of a pending hold over several shards: each cell's units by a transit of their own.

As in `actors.spanning`, nothing is remembered here: each step has an id that follows from the
operation's or from a transit's place (`actors.transits`), so the same op_id again gets the same
answers and goes on. Every shard is asked for time first, also where nothing of the hold is: so a
repetition knows what the move was about, and leaves alone what has come since.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from actors.notes import keeper_of, noted, number_of
from actors.parts import NOTHING_LEFT, Told, groups_of, hold_id_of, on, step_id, step_of
from actors.ports import Sight, Unavailable
from actors.shards import Shards, every
from actors.transits import ROUNDS, Line, at_rest
from actors.ways import LESS, EndedByOthers, Placed, Way, Ways, first_refusal
from actors.wholes import GRACE_MS, make_time, refused_with, that_matter
from engine.operations import Answer, Flag, Kind, Request, column_of
from engine.status import Status

# How a shard says that it has, or never had, nothing of a hold that a move could be about.
_NEVER_HERE: Final = frozenset((Status.UNKNOWN_HOLD, Status.NOT_IN_HOLD))
_NOT_HERE: Final = NOTHING_LEFT | _NEVER_HERE
_OK: Final = int(Status.OK)
# How a shard says that all that was to leave it was committed or given up.
_GONE: Final = frozenset((Status.HOLD_NOT_PENDING, Status.HOLD_RELEASED))


async def move(shards: Shards, request: Request) -> Told:
    """Move lines of a pending hold to cells of other shards too.

    First each part gets time enough, which refuses what is over. Then as many units as leave are
    held where they go, under another id. Then they are given up where they were, and this one step
    decides: what was committed or given up before it stays so, and the move is refused. At last the
    units join the hold where they went.
    """
    hold_id = hold_id_of(request)
    every_shard = shards.asked_for(0)
    for _ in range(ROUNDS):
        own = {way.digest(request) for way in _named(request, every_shard)}
        times = await make_time(shards, request, every_shard, GRACE_MS)
        # Seen after that: what had left a part that is over by now is seen where it went.
        sights, _ = await at_rest(shards, hold_id, spared=own)
        holders = {
            shard: sight.hold
            for shard, sight in sights.items()
            if sight.hold is not None and times[shard].status[0] != Status.UNKNOWN_HOLD
        }
        if not holders:
            status = times[every_shard[0]].status[0]
            return every_shard[0], refused_with(request, Status(status))
        parts, told = await that_matter(shards, request, holders, times)
        refusals = [answer.status[0] for answer in told if answer.status[0]]
        if refusals and not await _has_begun(shards, request, sights, own):
            # Noted: a part that others had taken may be given back by the time it is repeated.
            first = await noted(shards, hold_id, refusal_id(request), refusals[0])
            return parts[0].shard, refused_with(request, Status(first))
        move_ = _Move(shards, request, Ways(shards, request, sights, holders, times))
        try:
            return await (move_.lines() if column_of(request, "sku")[0] else move_.all())
        except EndedByOthers:
            continue
    raise Unavailable("the hold is called on again and again")


def refusal_id(request: Request) -> bytes:
    """The id of the note that says why a move was refused before it began."""
    return step_id(request.op_id, f"refused {request.digest.hex()}")


def refused_before(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Told | None:
    """The refusal of an earlier attempt, by what each shard knows of `refusal_id`."""
    keeper = keeper_of(shards, hold_id_of(request))
    digest = sights[keeper].digests.get(refusal_id(request))
    if digest is None:
        return None
    return keeper, refused_with(request, Status(number_of(digest)))


def _named(request: Request, shards: Sequence[int]) -> list[Way]:
    """Every way that a move can have, for its digest."""
    names = [f"from {shard}" for shard in shards]
    names += [f"line {place}" for place in range(request.lines)]
    return [Way(name, 0, 0, 0, ()) for name in names]


async def _has_begun(
    shards: Shards, request: Request, sights: Mapping[int, Sight], own: Collection[bytes]
) -> bool:
    """Whether a move has gone on to its steps before, since no part refused it then.

    What others have done to the parts since has no say in a repetition. `own` are its ways' digests.
    """
    if any(each.digest in own for sight in sights.values() for each in sight.waiting):
        return True
    named = zip(*(column_of(request, name).tolist() for name in ("sku", "value")), strict=True)
    names = {_within_step(*each) for each in named}
    names |= {f"together {place}" for place in range(request.lines)}
    if not column_of(request, "sku")[0]:
        holds = [sight.hold for sight in sights.values() if sight.hold is not None]
        names |= {_within_step(line.sku, 0) for hold in holds for line in hold.lines}
    op_ids = [step_id(request.op_id, name) for name in sorted(names)]
    found = await shards.sights(hold_id_of(request), list(sights), op_ids)
    return any(sight.digests for sight in found.values())


def _within_step(sku: int, leaves: int) -> str:
    """The step by which the shard that has both ends moves a SKU (0: all) from a location (0: any)."""
    return f"within {sku} {leaves}"


@dataclass(frozen=True, slots=True)
class _Move:
    """One attempt at a move, by what was seen of the hold."""

    shards: Shards
    request: Request
    ways: Ways

    def pending(self) -> Counter[tuple[int, int, int]]:
        """How much is pending of each (shard, SKU, location) that the hold has lines of."""
        units: Counter[tuple[int, int, int]] = Counter()
        for shard, hold in self.ways.holders.items():
            for line in hold.lines:
                units[shard, line.sku, line.location] += line.pending
        return units

    # --- lines, each by itself or those that are linked ---

    async def lines(self) -> Told:
        """Move what each line names: a SKU, where it leaves, and a quantity or all of it."""
        answers: list[Answer] = []
        for group in groups_of(self.request):
            alone = len(group) == 1
            answers += [await self._line(group[0])] if alone else await self._together(group)
        sku, to = (int(column_of(self.request, name)[0]) for name in ("sku", "location"))
        return self.shards.map.shard_of(sku, to), replace(
            answers[0],
            status=b"".join(answer.status for answer in answers),
            available=b"".join(answer.available for answer in answers),
        )

    async def _line(self, place: int) -> Answer:
        sku, to, quantity, leaves = self._named(place)
        source, target = (self.shards.map.shard_of(sku, at) for at in (leaves, to))
        if source == target:
            return await self._within(target, sku, to, quantity, leaves, self.ways.channel)
        there = self.pending()[source, sku, leaves]
        lines = [(sku, leaves, quantity or there)] if max(quantity, 1) <= there else []
        placed = await self.ways.take_place(Way(f"line {place}", source, target, to, lines))
        if placed.is_empty:
            # The shard that has too little says so, asked to move it to where it is, for no channel.
            return await self._within(source, sku, leaves, quantity or 1, leaves)
        return _one_line(await self.ways.go(placed))

    async def _together(self, group: Sequence[int]) -> list[Answer]:
        """Move linked lines, all or none: all keep their stock before anything leaves.

        Those that go from one shard to one other leave in one step. Of those that go by several ways
        the first that is to leave decides, unless others take of the hold between two of them.
        """
        ways, within = self._ways_of(group)
        done: dict[int, Answer] = {}
        for shard, places in within.items():
            told = await self.shards.submit(shard, self._linked("together", places))
            if any(told.status):
                return await self._refused(group, places, told)
            done |= zip(places, _by_line(told, 1), strict=True)
        placed: list[Placed] = []
        for way in sorted(ways, key=self.ways.is_open):
            each = await self.ways.take_place(way)
            if each.is_new and not each.answer.status[0]:
                placed.append(each)
                continue
            # It has left before, or cannot.
            told = each.answer if each.is_empty else await self.ways.go(each)
            if any(told.status):
                await self.ways.give_back(list(ways), placed)
                if each.is_empty:
                    return await self._refused(group, *await self._too_little(way, ways[way]))
                why = each.answer if each.answer.status[0] else told
                return await self._refused(group, ways[way], why)
            done |= zip(ways[way], _by_line(told, 2), strict=True)
        # In the same order whatever the move: of two that meet, the second is refused before any leaves.
        placed.sort(key=lambda each: (each.way.source, min(each.way.lines)))
        for number, each in enumerate(placed):
            told = await self.ways.go(each)
            if any(told.status):
                await self.ways.give_back([], placed[number + 1 :])
                return await self._refused(group, ways[each.way], told)
            done |= zip(ways[each.way], _by_line(told, 2), strict=True)
        return [done[place] for place in group]

    def _ways_of(self, group: Sequence[int]) -> tuple[dict[Way, list[int]], dict[int, list[int]]]:
        """The ways by which linked lines go, and the shards that need none; with their lines.

        A shard needs none where it has both ends of all of them, or where they are already.
        """
        ends: dict[tuple[int, int, bool], list[int]] = {}
        for place in group:
            sku, to, _, leaves = self._named(place)
            source, target = (self.shards.map.shard_of(sku, at) for at in (leaves, to))
            ends.setdefault((source, target, leaves == to), []).append(place)
        ways: dict[Way, list[int]] = {}
        within: dict[int, list[int]] = {}
        for (source, target, is_there), places in ends.items():
            if is_there or (source == target and len(ends) == 1):
                within[source] = places
            else:
                to = self._named(places[0])[1]
                lines = self._leaving(places)
                ways[Way(f"line {places[0]}", source, target, to, lines)] = places
        return ways, within

    def _leaving(self, places: Sequence[int]) -> tuple[Line, ...]:
        """What linked lines take from a shard; none when it has too little for one of them."""
        lines = [(sku, leaves, units) for sku, _, units, leaves in map(self._named, places)]
        is_each_once = len({sku for sku, _, _ in lines}) == len(lines)  # as a shard demands it
        return tuple(lines) if is_each_once and all(map(self._is_there, places)) else ()

    def _is_there(self, place: int) -> bool:
        """Whether as much is pending as a line names."""
        sku, _, units, leaves = self._named(place)
        return 1 <= units <= self.pending()[self.shards.map.shard_of(sku, leaves), sku, leaves]

    def _named(self, place: int) -> tuple[int, int, int, int]:
        """What a line names: SKU, destination, quantity, where it leaves."""
        names = ("sku", "location", "quantity", "value")
        sku, to, quantity, leaves = (int(column_of(self.request, name)[place]) for name in names)
        return sku, to, quantity, leaves

    def _linked(self, name: str, places: Sequence[int], *, to: str = "location") -> Request:
        """The step by which a shard moves linked lines that it has both ends of."""
        names = {"sku": "sku", "location": to, "quantity": "quantity", "value": "value"}
        return step_of(
            self.request,
            f"{name} {places[0]}",
            len(places),
            kind=Kind.MOVE,
            channel=self.ways.channel if to == "location" else 0,
            flags=[Flag.LINKED] * (len(places) - 1) + [0],
            **{name: column_of(self.request, of)[list(places)] for name, of in names.items()},
            **on(self.ways.hold_id),
        )

    async def _too_little(self, way: Way, places: Sequence[int]) -> tuple[Sequence[int], Answer]:
        """What the shard says that linked lines were to leave, asked to move them to where they are.

        It never does, of any quantity, and has to say why of the first line: that which it has too
        little for, or had when it was asked before. The lines are told in this order.
        """
        asked = {place: step_id(self.request.op_id, f"stay {place}") for place in places}
        link = self.shards.link(way.source)
        known = (await link.sight(self.ways.hold_id, list(asked.values()))).digests
        in_order = sorted(places, key=lambda each: (asked[each] not in known, self._is_there(each)))
        step = self._linked("stay", in_order, to="value")
        told = await self.shards.submit(way.source, step)
        if not any(told.status):  # a line alone, of all of its cell
            return in_order, replace(told, status=bytes((Status.INVALID_QUANTITY,)))
        return in_order, told

    async def _refused(
        self, group: Sequence[int], places: Sequence[int], told: Answer
    ) -> list[Answer]:
        """The answers of linked lines; `told` says why some of them, or the first of these, were refused."""
        said = dict(zip(places, told.status, strict=False))
        linked = int(Status.LINKED_LINE_REFUSED)
        answers = []
        for place in group:
            sku, to, _, _ = self._named(place)
            (cell,) = await self.shards.link(self.shards.map.shard_of(sku, to)).cells([(sku, to)])
            available = np.array([cell.available if cell else 0], "<i8").tobytes()
            status = bytes((said.get(place) or linked,))
            answers.append(replace(told, status=status, available=available))
        return answers

    # --- all that is pending ---

    async def all(self) -> Told:
        """Move all that is pending, or nothing.

        Each shard that it leaves decides by itself. What was committed or given up there under our
        hands is not pending any more: it stays, and has no say. Where only some of it was, what is left
        is moved in another attempt.
        """
        to = int(column_of(self.request, "location")[0])
        placed: list[Placed] = []
        # One that was refused its place before comes first: with it the move was refused.
        ways = sorted(self._ways(to), key=lambda way: not self.ways.was_refused(way))
        for way in ways:
            each = await self.ways.take_place(way)
            if each.is_empty:
                continue
            if each.answer.status[0]:
                await self.ways.give_back(ways, placed)
                return way.target, _one_line(first_refusal(each.answer))
            placed.append(each)
        told, is_any = list[Told](), True
        if not (placed and self.ways.is_split(to)):
            told, is_any = await self._all_within(to, is_any=bool(placed))
        refusals = [each for each in told if each[1].status[0]]
        if refusals:
            await self.ways.give_back(ways, placed)
            return refusals[0]
        if not is_any:  # what was pending is not any more
            target = self.shards.map.owners(to)[0]
            return target, refused_with(self.request, Status.HOLD_NOT_PENDING)
        told += [(each.way.target, _one_line(await self.ways.go(each))) for each in placed]
        if any(answer.status[0] in LESS for _, answer in told):
            raise EndedByOthers
        moved = [each for each in told if not each[1].status[0]]
        refusals = [each for each in told if each[1].status[0] not in {_OK, *_GONE}]
        return [*refusals, *moved, *told][0]

    def _ways(self, to: int) -> list[Way]:
        """From each shard that has a say to each that has cells of the destination.

        Within a shard too if there are several of those: then all keep the stock before any moves.
        """
        shard_map, is_split = self.shards.map, self.ways.is_split(to)
        ways = []
        for target in shard_map.owners(to):
            for source, answer in self.ways.times.items():
                if (source != target or is_split) and not answer.status[0]:
                    lines = [
                        (sku, leaves, units)
                        for (shard, sku, leaves), units in self.pending().items()
                        if shard == source
                        and units
                        and leaves != to
                        and shard_map.shard_of(sku, to) == target
                    ]
                    ways.append(Way(f"from {source}", source, target, to, lines))
        return ways

    async def _all_within(self, to: int, *, is_any: bool) -> tuple[list[Told], bool]:
        """Move what is on the destination's shards: those that have a say, whether any was moved.

        Also where nothing is yet: so a repetition does not take what has come since for it.
        """
        shard_map, is_split = self.shards.map, self.ways.is_split(to)
        skus = [sku for _, sku, _ in self.pending()]
        asked = list(dict.fromkeys((shard_map.shard_of(sku, to), sku * is_split) for sku in skus))
        moved = await every(
            self._within(shard, sku, to, 0, 0, self.ways.channel) for shard, sku in asked
        )
        is_any = is_any or any(not answer.status[0] for answer in moved)
        without_say = _NOT_HERE if is_any else _NEVER_HERE
        told = [(shard, answer) for (shard, _), answer in zip(asked, moved, strict=True)]
        return [each for each in told if each[1].status[0] not in without_say], is_any

    # --- steps ---

    async def _within(
        self, shard: int, sku: int, to: int, quantity: int, leaves: int, channel: int = 0
    ) -> Answer:
        """Move lines in one step, by the shard that has both ends."""
        step = step_of(
            self.request,
            _within_step(sku, leaves),
            kind=Kind.MOVE,
            sku=sku,
            location=to,
            quantity=quantity,
            value=leaves,
            channel=channel,
            **on(self.ways.hold_id),
        )
        return await self.shards.submit(shard, step)


def _by_line(answer: Answer, step: int) -> list[Answer]:
    """The answer of each line of several, for each of which a shard was sent `step` lines."""
    return [
        replace(answer, status=answer.status[i : i + 1], available=answer.available[8 * i :][:8])
        for i in range(0, len(answer.status), step)
    ]


def _one_line(answer: Answer) -> Answer:
    return replace(answer, status=answer.status[:1], available=answer.available[:8])
