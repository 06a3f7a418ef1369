"""Goods that come back, and what is held in their place, over several shards: together or not at all.

As in `actors.spanning`, nothing is remembered here: each step has an id that follows from the
operation's, so the same op_id again takes the same steps, gets the same answers and goes on.

Goods come in last, when all else is sure: so nobody is sold what would have to leave again. The
exception is a shard that needs what comes back for what it holds. There both are one step, as on a
single shard, right before the rest comes in. Where several shards do that, each takes in no more in this
step than it holds, and the earlier ones are undone when a later one refuses.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.asking import Parts, asking, objections, refusal
from actors.fates import Fate
from actors.intents import Begin
from actors.notes import note_of, noted_shards, number_of
from actors.parts import (
    Part,
    Told,
    groups_of,
    in_order,
    joined,
    on,
    order_part,
    split,
    step_id,
    step_of,
    those_that_fit,
    undone,
)
from actors.shards import Shards
from engine.operations import Answer, Disposition, Flag, Kind, Request, column_of, pair_to_id
from engine.status import Status
from engine.views import Hold

_NOWHERE: Final = -1  # in place of a shard
# How a shard says that goods that come back were not handed over there, or not so many.
NOT_FROM_HERE: Final = frozenset(
    (
        Status.UNKNOWN_HOLD,
        Status.HOLD_EXPIRED,
        Status.HOLD_RELEASED,
        Status.HOLD_NOT_FULFILLED,
        Status.NOT_IN_HOLD,
        Status.EXCEEDS_HOLD,
    )
)
# What a write-off takes from, to undo a return: by the return's disposition.
_BUCKETS: Final = {
    Disposition.RESTOCK: 0,
    Disposition.QUALITY_CONTROL: int(Flag.QUALITY_CONTROL),
    Disposition.DAMAGED: int(Flag.DAMAGED),
}


async def returned(
    shards: Shards,
    request: Request,
    owners: NDArray[np.int64],
    sold_at: Sequence[int],
    begin: Begin,
) -> Told:
    """Record what came back, linked lines together or not at all.

    `owners` are the shards that the goods came to, a line; `sold_at` is where each was handed over,
    0 where that is not known. The shards are asked first as if all was handed over there; what was
    not, or comes back to several shards together, is then taken in step by step, after `begin`.
    """
    groups = [np.array(group) for group in groups_of(request)]
    here = owners.copy()
    for group in groups:
        if np.ptp(owners[group]):
            here[group] = _NOWHERE
    parts = split(request, here)
    answers = those_that_fit(parts, await shards.submit_parts(parts))
    told: Parts = list(zip(parts, answers, strict=True))
    is_asked_again = here == _NOWHERE
    for part, answer in told:
        is_not_from_here = np.isin(np.frombuffer(answer.status, np.uint8), list(NOT_FROM_HERE))
        for place in part.places[is_not_from_here[part.own]].tolist():
            # A shard that has judged its own sale is not asked anew under another id: what it refused
            # is refused for good, also to who has called it without a gateway.
            is_asked_again[place] = shards.asked_for(sold_at[place]) != [owners[place]]
    holders: _Holders = {}
    if is_asked_again.any():
        await begin()
    for group in groups:  # one after the other: the first of two on the same units gets them
        if is_asked_again[group].any():
            is_asked_again[group] = True
            told += await _Exchange(shards, request, owners, sold_at, group, holders).done()
    if len(told) > len(parts):
        told = [*_without(told[: len(parts)], is_asked_again), *told[len(parts) :]]
        told.sort(key=lambda each: int(each[0].places[0]))
    return _joined(request, told)


async def exchange(
    shards: Shards, request: Request, owners: NDArray[np.int64], sold_at: Sequence[int]
) -> Told:
    """Take goods back and hold others in their place, each on its shard: all of it or nothing.

    `request` has returns, then one order, all linked; `owners` and `sold_at` are as for `returned`.
    """
    everything = np.arange(request.lines)
    told = await _Exchange(shards, request, owners, sold_at, everything).done()
    return _joined(request, told)


def _without(told: Parts, is_left_out: NDArray[np.bool_]) -> Parts:
    """Answers less those of some lines."""
    left = [(part, ~is_left_out[part.places], answer) for part, answer in told]
    return [
        (replace(part, places=part.places[kept], own=part.own[kept]), answer)
        for part, kept, answer in left
        if kept.any()
    ]


_Holders = dict[tuple[bytes, int], list[int]]
"""The shards that goods of an order are claimed of, by its id and where they are said to be sold."""


@dataclass(slots=True)
class _Exchange:
    """Lines of a request that are done together, step by step.

    A step gives back what refused it; then what was done so far is undone, the last of it first.
    """

    shards: Shards
    request: Request
    owners: NDArray[np.int64]
    sold_at: Sequence[int]
    places: NDArray[np.int64]
    holders: _Holders = field(default_factory=dict)
    held: list[Part] = field(init=False)  # what is held on shards that need nothing that comes back
    met: list[Part] = field(init=False)  # what comes back and what is held, on those that do
    rest: list[Part] = field(init=False)  # what comes back elsewhere
    told: Parts = field(init=False, default_factory=list)
    undo: list[tuple[int, Request]] = field(init=False, default_factory=list)
    let_go: list[tuple[int, Request]] = field(init=False, default_factory=list)  # what is held
    has_committed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        request = self.request
        owners = np.full(request.lines, _NOWHERE)
        owners[self.places] = self.owners[self.places]
        is_return = column_of(request, "kind") == Kind.RETURN
        is_met, units = _needed(request, owners, is_return)
        quantity = column_of(request, "quantity")
        is_rest = is_return & (~is_met | (quantity > units))
        is_held = ~is_return & ~is_met
        self.met = _parts(self._blind(units), np.where(is_met, owners, _NOWHERE))
        rest = self._blind(np.where(is_met, quantity - units, quantity))
        self.rest = _parts(rest, np.where(is_rest, owners, _NOWHERE))
        held = np.where(is_held, owners, _NOWHERE)
        self.held = _parts(self._blind(quantity), held, Flag.COMMIT_NOW)

    def _blind(self, quantity: NDArray[np.int64]) -> Request:
        """The request with other quantities, naming nothing that goods are of."""
        columns = {name: each for name, each in self.request.columns.items() if "hold" not in name}
        return self.request.with_lines(self.request.lines, columns | {"quantity": quantity})

    async def done(self) -> Parts:
        """Do it, or nothing; what the lines are answered."""
        steps = (self._check, self._hold, self._claim, self._commit, self._meet, self._take_in)
        for step in steps:
            if refused := await step():
                undo = self.undo if await self._stays(refused) else self.let_go + self.undo
                for shard, request in reversed(undo):
                    await self.shards.submit(shard, request)
                return [refusal(self.request, refused, self.places)]
        return self.told

    # --- steps, in their order ---

    async def _check(self) -> Parts:
        """Ask whether goods could come in, before anything is done."""
        named = [("check", part) for part in self.met] + [("check in", part) for part in self.rest]
        asked = [
            (part, asking(self.request, f"{name} {self.places[0]}", part, Kind.RESERVE))
            for name, part in named
        ]
        return await objections(self.shards, asked)

    async def _hold(self) -> Parts:
        """Hold what needs nothing that comes back. Nobody sees that it is of an exchange."""
        answers = await self.shards.submit_parts(self.held)
        told = list(zip(self.held, answers, strict=True))
        release = self._step("release", kind=Kind.RELEASE, **on(self.request.op_id))
        refused = [each for each in told if any(each[1].status)]
        self.let_go += [(part.shard, release) for part, it in told if not any(it.status)]
        self.told += told
        return refused

    async def _claim(self) -> Parts:
        """Let the shards that handed the goods over note that they come back."""
        for place in self.places.tolist():
            high, low = (int(column_of(self.request, n)[place]) for n in ("hold_hi", "hold_lo"))
            answer = await self._claimed(place, pair_to_id(high, low)) if high or low else None
            if answer is not None:
                one = np.zeros(1, np.int64)
                return [(Part(0, self.request, one + place, one), answer)]
        return []

    async def _commit(self) -> Parts:
        """Commit what is held and paid for; what has run out since (a retry came late), again.

        What a commit of all of the hold has counted on stays, as for an order: then that has
        committed the rest.
        """
        if not column_of(self.request, "flags")[self.places[-1]] & Flag.COMMIT_NOW:
            return []
        hold = on(self.request.op_id)
        again = {
            "flags": Flag.RE_RESERVE,
            "channel": column_of(self.request, "channel")[self.places[-1]],
        }
        commit = self._step("commit", kind=Kind.COMMIT, **again, **hold)
        cancel = self._step("cancel", kind=Kind.CANCEL, **hold)
        told = await self.shards.submit_each({part.shard: commit for part in self.held})
        done = [shard for shard, answer in told.items() if not answer.status[0]]
        self.let_go += [(shard, cancel) for shard in done]
        self.has_committed = bool(done)
        refused = [
            (part, undone(part, answer, told[part.shard].status[0]))
            for part, answer in self.told
            if told[part.shard].status[0]
        ]
        return [] if refused and await self._stays(refused) else refused

    async def _meet(self) -> Parts:
        """Take in and hold, in one step of each shard that needs the one for the other."""
        for part in self.met:
            answer = await self.shards.submit(part.shard, part.request)
            if any(answer.status):
                return [(part, answer)]
            self.undo.append((part.shard, self._taken_out(part, "take out")))
            self.told.append((part, answer))
        return []

    async def _take_in(self) -> Parts:
        """Take in what comes back to other shards."""
        op_id = step_id(self.request.op_id, f"in {self.places[0]}")
        parts = [replace(part, request=replace(part.request, op_id=op_id)) for part in self.rest]
        told = list(zip(parts, await self.shards.submit_parts(parts), strict=True))
        self.undo += [
            (part.shard, self._taken_out(part, "take out in"))
            for part, answer in told
            if not any(answer.status)
        ]
        self.told += told
        return [each for each in told if any(each[1].status)]

    async def _stays(self, refused: Parts) -> bool:
        """Whether what is committed stays though something is refused: others have counted on it."""
        if not self.has_committed:
            return False
        status = next(status for _, answer in refused for status in answer.status if status)
        return await Fate(self.request.op_id, 0).decide(self.shards, status) == Status.OK

    # --- what they send ---

    def _step(self, name: str, lines: int = 1, **columns: Any) -> Request:
        return step_of(self.request, f"{name} {self.places[0]}", lines, **columns)

    async def _claimed(self, place: int, hold_id: bytes) -> Answer | None:
        """Claim a line where its goods were handed over. None: done; otherwise the refusal.

        One part of the order is to have handed over all of them, or several together.
        """
        columns = {"kind": Kind.CLAIM_RETURN, **on(hold_id)}
        columns["sku"] = column_of(self.request, "sku")[place]
        units = int(column_of(self.request, "quantity")[place])
        claim = step_of(self.request, f"claim {place}", quantity=units, **columns)
        refusal = Answer(bytes((Status.UNKNOWN_HOLD,)), b"", 0, 0, 0)
        holders = await self._holders_of(place, hold_id)
        for shard in holders:
            answer = await self.shards.submit(shard, claim)
            if not answer.status[0]:
                unclaim = step_of(self.request, f"unclaim {place}", quantity=-units, **columns)
                self.undo.append((shard, unclaim))
                return None
            # A part that knows more of the goods says more.
            refusal = max(refusal, answer, key=lambda each: each.status[0])
        if refusal.status[0] != Status.EXCEEDS_HOLD:
            return refusal
        return await self._claimed_together(place, hold_id, holders, refusal)

    async def _holders_of(self, place: int, hold_id: bytes) -> list[int]:
        """The shards that the goods of a line are claimed of: those with a part of the order.

        Where there is a choice it is noted, so that a repetition makes it too, whatever parts of the
        order have come to other shards since.
        """
        location = self.sold_at[place]
        asked = self.shards.asked_for(location)
        if len(asked) == 1:
            return asked
        if (hold_id, location) not in self.holders:
            holders = await self.shards.holds(hold_id, asked)
            step = step_id(self.request.op_id, f"claim {place} of")
            self.holders[hold_id, location] = await noted_shards(
                self.shards, hold_id, step, holders, asked
            )
        return self.holders[hold_id, location]

    async def _claimed_together(
        self, place: int, hold_id: bytes, shards: Sequence[int], refusal: Answer
    ) -> Answer | None:
        """Claim a line of several parts of an order, none of which has handed over so many."""
        left = int(column_of(self.request, "quantity")[place])
        for shard in shards:
            if not left:
                break
            units, answer = await self._claimed_in_part(place, hold_id, shard, left)
            if not answer.status[0]:
                columns = {"kind": Kind.CLAIM_RETURN, **on(hold_id)}
                columns["sku"] = column_of(self.request, "sku")[place]
                name = f"unclaim {place} in part"
                unclaim = step_of(self.request, name, quantity=-units, **columns)
                self.undo.append((shard, unclaim))
                left -= units
        return refusal if left else None

    async def _claimed_in_part(
        self, place: int, hold_id: bytes, shard: int, most: int
    ) -> tuple[int, Answer]:
        """Claim what a shard has handed over of a line, and how much it was.

        The claim has its units for a digest, so a repetition finds how many they were. So has one of
        no units, which is refused: what others bring back, or do not after all, changes nothing then.
        """
        sku = int(column_of(self.request, "sku")[place])
        op_id = step_id(self.request.op_id, f"claim {place} in part")
        columns = {"kind": Kind.CLAIM_RETURN, "sku": sku, **on(hold_id)}
        while True:
            sight = await self.shards.link(shard).sight(hold_id, [op_id])
            digest = sight.digests.get(op_id)
            units = min(most, _still_out(sight.hold, sku)) if digest is None else number_of(digest)
            claim = Request.of(op_id, 1, quantity=units, want_available=True, **columns)
            claim.digest = note_of(op_id, units).digest
            answer = await self.shards.submit(shard, claim)
            if answer.status[0] != Status.OP_ID_REUSED:  # by another attempt, under way too
                return units, answer

    def _taken_out(self, part: Part, name: str) -> Request:
        """Undo what a part has taken in, and give up what it has held."""
        request = part.request
        back = np.flatnonzero(column_of(request, "kind") == Kind.RETURN)
        names = ("sku", "location", "quantity", "occurred_at_ns")
        columns = {name: column_of(request, name)[back] for name in names}
        columns["kind"] = np.full(len(back), Kind.WRITE_OFF, np.uint8)
        values = column_of(request, "value")[back].tolist()
        columns["flags"] = np.array([_BUCKETS[Disposition(each)] for each in values], np.uint8)
        hold: dict[str, Any] = {}
        if len(back) < request.lines:
            is_paid = column_of(request, "flags")[-1] & Flag.COMMIT_NOW
            columns = {name: np.append(each, 0) for name, each in columns.items()}
            columns["kind"][-1] = Kind.CANCEL if is_paid else Kind.RELEASE
            hold = on(self.request.op_id)
        return self._step(name, len(columns["kind"]), **columns, **hold)


def _still_out(hold: Hold | None, sku: int) -> int:
    """How much of a SKU a part of an order has handed over that is not back yet."""
    lines = hold.lines if hold is not None else ()
    return sum(line.fulfilled - line.returned for line in lines if line.sku == sku)


def _parts(request: Request, shards: NDArray[np.int64], without: int = 0) -> list[Part]:
    return [order_part(request, shards, shard, without) for shard in in_order(shards)]


def _needed(
    request: Request, owners: NDArray[np.int64], is_return: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which lines are done, and how much of each, in the one step of a shard that needs what comes back.

    It does when something is held of a cell to whose shelf something comes back.
    """
    keys = column_of(request, "location").astype(np.int64) << 32 | column_of(request, "sku")
    to_shelf = is_return & (column_of(request, "value") == Disposition.RESTOCK)
    needs = ~is_return & np.isin(keys, keys[to_shelf & (owners != _NOWHERE)])
    shards = np.unique(owners[needs & (owners != _NOWHERE)])
    is_there, quantity = np.isin(owners, shards), column_of(request, "quantity")
    if len(shards) < 2:
        return is_there, quantity
    units = np.where(is_there, quantity, 0)
    left = Counter[int]()  # what is held of each cell
    for place in np.flatnonzero(~is_return).tolist():
        left[int(keys[place])] += int(units[place])
    for place in np.flatnonzero(is_return).tolist():
        most = left[int(keys[place])] if to_shelf[place] else 0
        units[place] = max(0, min(int(units[place]), most))
        left[int(keys[place])] -= int(units[place])
    return units != 0, units


def _joined(request: Request, told: Parts) -> Told:
    return joined(request, [part for part, _ in told], [answer for _, answer in told])
