"""An order in place of an older hold that has parts on several shards: all that is taken can be given back.

Units of the older hold are taken by handovers, for which no stock is judged and which are refused when
there are no longer so many: so what was taken is known, whoever repeats it, and nobody can buy it
meanwhile. All of a shard's part goes at once, so that no commit takes what is left for the whole: it
is *kept* by a hold of the order's own. What a part of the order needs is *lent* by that to another
one, whose place and stock the order's part takes in one step. When the order is held everywhere, the
rest of the older hold is kept too, and then given up. When it is refused, all is handed over to the
older hold again, where each cell has one new line then.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from actors import given_up
from actors.fates import is_taken_back
from actors.notes import keeper_of, noted, number_of
from actors.parts import Part, hold_id_of, on, step_id, step_of
from actors.ports import Sight, Unavailable
from actors.shards import Shards, every
from actors.transits import ROUNDS, at_rest
from actors.wholes import GRACE_MS, holders_of
from engine import limits
from engine.operations import Answer, Flag, Kind, Request, column_of
from engine.status import Status
from engine.views import Hold, HoldState

Units = Counter[tuple[int, int]]
"""How many of each (SKU, location)."""

_DIGEST_BYTES: Final = 8


def wanted_of(request: Request) -> Units:
    """What the lines of an order ask for."""
    wanted: Units = Counter()
    columns = (column_of(request, name).tolist() for name in ("sku", "location", "quantity"))
    for sku, location, quantity in zip(*columns, strict=True):
        wanted[sku, location] += quantity
    return wanted


def pending_of(hold: Hold | None) -> Units:
    """What is pending of a hold."""
    units: Units = Counter()
    for line in hold.lines if hold else ():
        units[line.sku, line.location] += line.pending
    return +units


def _last_of(holders: Mapping[int, Hold]) -> int:
    """When the last part of a hold runs out, or would have, in ns."""
    return max((hold.deadline_ns for hold in holders.values()), default=0)


def _living(request: Request, ttl_ms: int) -> Request:
    """A part of an order that lives so long at least."""
    return request.with_lines(
        request.lines, request.columns | {"value": np.maximum(column_of(request, "value"), ttl_ms)}
    )


def _is_committed(hold: Hold) -> bool:
    return any(line.committed or line.fulfilled for line in hold.lines)


def own_lines(part: Part, answer: Answer) -> Answer:
    """The answer of a part of an order without the lines behind its own."""
    lines, is_partial = len(part.places), part.request.is_partial
    return replace(
        answer,
        status=answer.status[:lines],
        available=answer.available[: 8 * lines],
        granted=answer.granted[: 8 * lines] if is_partial else b"",
    )


class Taken(NamedTuple):
    """What was taken of the older hold on a shard: what is kept, and what was lent to the order.

    `is_rest` says whether the older hold was left something on other shards when all of its part here was
    taken; None: it was not. `is_asked`: whether steps that take of it have come here, and nothing of it was
    ended for good.
    """

    kept: Units
    lent: Units
    is_rest: bool | None
    is_asked: bool


@dataclass(frozen=True, slots=True)
class Replacement:
    """An order, and how it gets the place of an older hold.

    Its steps go by the order's content too: an id that is used for another one is refused as such.
    """

    shards: Shards
    request: Request

    # --- what is decided ---

    async def look(self) -> tuple[dict[int, Sight], int | None, dict[int, Taken]]:
        """See the older hold, what was decided of it (a status), if anything, and what was taken.

        What is on its way arrives first: else its stock would be nobody's who could be superseded.
        """
        older = hold_id_of(self.request)
        superseded = self._id("superseded")
        sights, _ = await at_rest(self.shards, older, [superseded])
        digest = sights[keeper_of(self.shards, older)].digests.get(superseded)
        decided = None if digest is None else number_of(digest)
        return sights, decided, await self._taken()

    async def decide(self, status: int) -> int:
        """Have the older hold be superseded (OK), or not; what was decided first."""
        older = hold_id_of(self.request)
        return await noted(self.shards, older, self._id("superseded"), status)

    async def is_paid(self, older: Iterable[Hold]) -> bool:
        """Whether the older hold is or was committed, wholly or in part.

        One that a commit has committed and cancelled, as it was refused at last, never was.
        """
        if any(map(_is_committed, older)):
            return True
        is_cancelled = any(hold.state == HoldState.CANCELLED for hold in older)
        return is_cancelled and not await is_taken_back(self.shards, hold_id_of(self.request))

    # --- outliving ---

    async def that_outlive(
        self, parts: Sequence[Part], older: Mapping[int, Hold]
    ) -> Sequence[Part]:
        """The parts with a time to live that does not end before the older hold's would.

        Time is counted from when this was asked first, so it may be more.
        """
        left_ms = await self._left_ms(_last_of(older))
        return [replace(part, request=_living(part.request, left_ms)) for part in parts]

    async def outlive(self, parts: Sequence[Part], older: Mapping[int, Hold]) -> int:
        """Have parts that are held already outlive the older hold, which may have got more time since.

        OK, or the status of a part that has run out before that.
        """
        until_ns, shards = _last_of(older), [part.shard for part in parts]
        op_id = self.request.op_id
        sights = await self.shards.sights(op_id, shards, [op_id])
        late = [
            part.shard
            for part in parts
            if (sight := sights[part.shard]).digests.get(op_id) == part.request.digest
            and sight.hold is not None
            and sight.hold.deadline_ns < until_ns
        ]
        if not late:
            return Status.OK
        columns = {"kind": Kind.EXTEND, "value": await self._left_ms(until_ns), **on(op_id)}
        step = step_of(self.request, f"outlive {until_ns}", **columns)
        told = await self.shards.submit_each(dict.fromkeys(late, step))
        return max(each.status[0] for each in told.values())

    async def _left_ms(self, until_ns: int) -> int:
        """How long it was until a moment when this was asked first."""
        keeper = keeper_of(self.shards, hold_id_of(self.request))
        answer = await self.shards.submit(keeper, step_of(self.request, "clock"))
        left_ms = GRACE_MS - (answer.now_ns - until_ns) // limits.NS_PER_MS  # clocks differ
        return max(limits.MIN_TTL_MS, min(left_ms, limits.MAX_TTL_MS))

    # --- taking ---

    async def refuse(self, part: Part) -> Answer:
        """Refuse a part since a shard's part of the older hold has too many lines to be given back.

        What is given back has new lines there. The shard refuses it itself, so it does so again.
        """
        rows = np.zeros(limits.MAX_HOLD_LINES + 1, np.int64)  # its first line, over and over
        columns = {name: column[rows] for name, column in part.request.columns.items()}
        columns["flags"] = column_of(part.request, "flags")[rows] | np.uint8(Flag.LINKED)
        columns["flags"][-1] ^= np.uint8(Flag.LINKED)
        request = part.request.with_lines(len(rows), columns)
        return own_lines(part, await self.shards.submit(part.shard, request))

    async def hold(self, part: Part, needed: Units, older: Units, *, is_rest: bool) -> Answer:
        """Hold a part of the order with what it needs of what the older hold has on that shard.

        `is_rest` says whether something is left to the older hold on others. What the part was lent
        beyond its own lines, where a cell is short, stands in lines behind these.
        """
        shards, shard = self.shards, part.shard
        if older:
            await self._mark([shard])
            take = self._handover("take", hold_id_of(self.request), self._id("kept"), older)
            take.op_id = self._id("take")
            take.digest = int(is_rest).to_bytes(_DIGEST_BYTES, "little")
            told = await shards.submit(shard, take)
            for number in range(ROUNDS if any(told.status) else 0):
                # Others took some of it meanwhile: what there is of it now is taken by another step.
                there = await shards.link(shard).hold(hold_id_of(self.request), sure=True)
                if not (left := pending_of(there)):
                    break
                await shards.submit(shard, self._take_again(left, number))
        kept = pending_of(await shards.link(shard).hold(self._id("kept"), sure=True))
        steps = [self._lending(*each) for each in (needed & kept).items()]
        await every(shards.submit(shard, step) for step in steps)
        lent = (await self._taken())[shard].lent
        request = in_place_of(part.request, self._id("lent"))
        request = _with_rest(request, lent - wanted_of(request))
        return own_lines(part, await shards.submit(shard, request))

    async def keep(self) -> bool:
        """Take all that is pending of the older hold, wherever it is; no: it is an order by now.

        What is on its way arrives first. What has run out of it is over for good, so that a late payment
        does not commit it beside its successor. Raises Unavailable when others move it again and again.
        """
        older = hold_id_of(self.request)
        for number in range(ROUNDS):
            sights, _ = await at_rest(self.shards, older)
            holders = holders_of(sights)
            if await self.is_paid(holders.values()):
                return False
            pending = {
                shard: units for shard, hold in holders.items() if (units := pending_of(hold))
            }
            if not pending:
                return await self._end_for_good(holders)
            if len(holders) > 1:
                await self._mark(pending)
            steps = {}
            for shard, units in pending.items():
                steps[shard] = self._take_again(units, number)
            await self.shards.submit_each(steps)
        raise Unavailable("the hold is moved again and again")

    def _take_again(self, units: Units, number: int) -> Request:
        """A further step that takes of the older hold what was found of it later on a shard."""
        step = self._handover("take again", hold_id_of(self.request), self._id("kept"), units)
        step.op_id = given_up.again_id(self._id("take"), number)
        return step

    async def _mark(self, parts: Collection[int]) -> None:
        """Mark parts of the older hold that are about to be taken."""
        await given_up.mark(self.shards, hold_id_of(self.request), self._id("take"), parts)

    async def _end_for_good(self, holders: Mapping[int, Hold]) -> bool:
        older = hold_id_of(self.request)
        run_out = [shard for shard, hold in holders.items() if hold.state == HoldState.EXPIRED]
        if run_out and len(holders) > 1:
            await self._mark(run_out)
        columns = {"kind": Kind.RELEASE, "flags": Flag.SUPERSEDE, **on(older)}
        step = step_of(self.request, "supersede", **columns)
        step.op_id = given_up.again_id(self._id("take"), ROUNDS)
        told = await self.shards.submit_each(dict.fromkeys(run_out, step))
        return all(each.status[0] != Status.HOLD_NOT_PENDING for each in told.values())

    # --- and giving up, or back ---

    async def give_up(self, parts: Mapping[int, Part]) -> None:
        """Give up what was taken beyond the order, whose parts are told by shard."""
        for shard, taken in (await self._taken()).items():
            # No more than was lent: what has come to the order since is its own.
            if shard in parts and (rest := taken.lent - wanted_of(parts[shard].request)):
                held = await self.shards.link(shard).hold(self.request.op_id, sure=True)
                rest &= pending_of(held) - wanted_of(parts[shard].request)
                if rest:
                    columns = {"kind": Kind.RELEASE, **_columns_of(rest), **on(self.request.op_id)}
                    step = step_of(self.request, "give up rest", len(rest), **columns)
                    await self.shards.submit(shard, step)
        await self._end()

    async def give_back(self, older: Mapping[int, Hold]) -> None:
        """Hand what was taken over to the older hold, which then lives as long as it did, or longer."""
        taken, older_id = await self._taken(), hold_id_of(self.request)
        given: dict[int, Units] = {}
        for shard, (_, lent, *_) in taken.items():
            gifts, lived_ns = await self._gifts(shard, lent)
            if await self._gather(shard, gifts):
                gifts, _ = await self._gifts(shard, lent)
            if any(gifts.values()):
                answer = await self.shards.submit(shard, self._giving_back(gifts))
                lived_ns = max(lived_ns, _last_of(older))
                await self._extend(shard, lived_ns - answer.now_ns)
                given[shard] = sum(gifts.values(), Counter())
        if given and await self._is_given_up(taken, given):
            let_go = step_of(self.request, "let go", kind=Kind.RELEASE, **on(older_id))
            await self.shards.submit_each(dict.fromkeys(given, let_go))
        await self._end()

    async def _gifts(self, shard: int, lent: Units) -> tuple[dict[bytes, Units], int]:
        """What goes back from which hold on a shard, and when the last of those runs out that took it."""
        link = self.shards.link(shard)
        names = self._id("lent"), self._id("kept"), self.request.op_id
        found = await every(link.hold(name, sure=True) for name in names)
        gifts = {name: pending_of(hold) for name, hold in zip(names, found, strict=True)}
        # What was lent is the order's, if that has taken its place; else it has none of it.
        if found[0] is not None and found[0].state == HoldState.RELEASED:
            steps = {cell: self._gather_id(cell) for cell in lent}
            done = (await link.sight(names[1], list(steps.values()))).done
            lent = Counter({cell: lent[cell] for cell, step in steps.items() if step not in done})
            gifts[self.request.op_id] &= lent
        else:
            gifts[self.request.op_id] = Counter()
        return gifts, max((hold.deadline_ns for hold in found[:2] if hold), default=0)

    async def _gather(self, shard: int, gifts: Mapping[bytes, Units]) -> bool:
        """Have what was lent of a cell join what is kept of it, before both go back; whether any was.

        So the older hold gets one new line of each cell. What is refused goes back from where it is.
        """
        kept, back = self._id("kept"), given_up.back_id(self._id("take"))
        steps = []
        for giver, gift in gifts.items():
            for cell, units in gift.items():
                if giver != kept and cell in gifts[kept]:
                    step = self._handover("gather", giver, kept, Counter({cell: units}))
                    step.op_id = self._gather_id(cell)
                    steps.append(step)
        if not steps or back in (await self.shards.link(shard).sight(kept, [back])).digests:
            return False
        await every(self.shards.submit(shard, step) for step in steps)
        return True

    async def _is_given_up(self, taken: Mapping[int, Taken], given: Mapping[int, Units]) -> bool:
        """Whether others have given up all of the older hold that they found while some of it was taken.

        They were told that nothing of it is left; who gives up what is left by lines is not. It is looked
        for when all that was taken is given back: whoever gives it up later finds that.
        """
        were_rests = [each.is_rest for each in taken.values() if each.is_rest is not None]
        if not were_rests or not all(were_rests):
            return False
        older = hold_id_of(self.request)
        holders = await self.shards.holds(older, self.shards.asked_for(0))
        is_over = all(
            hold.state in (HoldState.PENDING, HoldState.RELEASED)
            and not pending_of(hold) - given.get(shard, Counter())
            for shard, hold in holders.items()
        )
        return is_over and bool(await given_up.marked(self.shards, older, holders))

    async def _extend(self, shard: int, left_ns: int) -> None:
        """Give the older hold's part the time that it had."""
        left_ms = left_ns // limits.NS_PER_MS
        if left_ms >= limits.MIN_TTL_MS:
            older = on(hold_id_of(self.request))
            keep = step_of(self.request, "keep", kind=Kind.EXTEND, value=left_ms, **older)
            await self.shards.submit(shard, keep)

    async def _end(self) -> None:
        """Give up what is left of what was taken."""
        for name in ("lent", "kept"):
            taken = await self.shards.holds(self._id(name), self.shards.asked_for(0))
            end = step_of(self.request, f"end {name}", kind=Kind.RELEASE, **on(self._id(name)))
            left = [shard for shard, hold in taken.items() if hold.state == HoldState.PENDING]
            await self.shards.submit_each(dict.fromkeys(left, end))

    # --- what was taken ---

    async def _taken(self) -> dict[int, Taken]:
        take = self._id("take")
        lends = {self._id(_lend_name(cell)): cell for cell in wanted_of(self.request)}
        *again, over = (given_up.again_id(take, number) for number in range(ROUNDS + 1))
        asked = [take, *again, over, *lends]
        sights = await self.shards.sights(self._id("kept"), self.shards.asked_for(0), asked)
        found = {}
        for shard, sight in sights.items():
            # How much was lent, and whether something was left elsewhere, is told by the steps' digests.
            told = {step: number_of(sight.digests[step]) for step in sight.done}
            is_taken = take in sight.digests and sight.hold is not None  # not all was refused
            found[shard] = Taken(
                pending_of(sight.hold),
                Counter({cell: told[step] for step, cell in lends.items() if step in told}),
                bool(number_of(sight.digests[take])) if is_taken else None,
                over not in sight.digests and any(step in sight.digests for step in (take, *again)),
            )
        return found

    def _lending(self, cell: tuple[int, int], units: int) -> Request:
        """The step that lends units of one cell; its digest tells how many."""
        kept, lent = self._id("kept"), self._id("lent")
        step = self._handover(_lend_name(cell), kept, lent, Counter({cell: units}))
        step.op_id = self._id(_lend_name(cell))
        step.digest = units.to_bytes(_DIGEST_BYTES, "little")
        return step

    def _gather_id(self, cell: tuple[int, int]) -> bytes:
        return self._id(f"gather {cell[0]} {cell[1]}")

    def _giving_back(self, gifts: Mapping[bytes, Units]) -> Request:
        """The one step that hands over to the older hold what several others have of it on a shard."""
        older = hold_id_of(self.request)
        step = self._handovers("give back", [(giver, older, gift) for giver, gift in gifts.items()])
        step.op_id = given_up.back_id(self._id("take"))
        return step

    def _handover(self, name: str, giver: bytes, taker: bytes, units: Units) -> Request:
        return self._handovers(name, [(giver, taker, units)])

    def _handovers(self, name: str, gifts: Sequence[tuple[bytes, bytes, Units]]) -> Request:
        """Units of some cells go from one hold to another, each cell's for itself."""
        rows = [
            (*cell, number, half["hold_hi"], half["hold_lo"])
            for giver, taker, units in gifts
            for cell, number in units.items()
            for half in (on(giver), on(taker))
        ]
        names = ("sku", "location", "quantity", "hold_hi", "hold_lo")
        columns: dict[str, Any] = dict(zip(names, zip(*rows, strict=True), strict=True))
        columns["kind"] = [Kind.RELEASE, Kind.ADD_LINE] * (len(rows) // 2)
        columns["flags"] = [Flag.LINKED, 0] * (len(rows) // 2)
        return step_of(self.request, name, len(rows), **columns)

    def _id(self, name: str) -> bytes:
        return step_id(self.request.op_id, f"{name} {self.request.digest.hex()}")


def _lend_name(cell: tuple[int, int]) -> str:
    return f"lend {cell[0]} {cell[1]}"


def in_place_of(request: Request, older: bytes) -> Request:
    """A part of an order that supersedes a hold on its shard."""
    columns = {name: column_of(request, name).copy() for name in ("flags", "hold_hi", "hold_lo")}
    columns["flags"][0] |= np.uint8(Flag.SUPERSEDE)
    for name, half in on(older).items():
        columns[name][0] = half
    return request.with_lines(request.lines, request.columns | columns)


def _columns_of(units: Units) -> dict[str, Any]:
    """The columns that name cells and units."""
    rows = [(*cell, number) for cell, number in units.items()]
    return dict(zip(("sku", "location", "quantity"), zip(*rows, strict=True), strict=True))


def _with_rest(request: Request, rest: Units) -> Request:
    """A part of an order that holds also what it was lent and does not need, as far as that has not run out."""
    if not rest:
        return request
    rows = _columns_of(rest)
    rows |= {"kind": [Kind.RESERVE] * len(rest), "flags": [Flag.LINKED | Flag.PARTIAL] * len(rest)}
    rows["value"] = [int(column_of(request, "value")[0])] * len(rest)
    columns = {}
    for name in {*request.columns, *rows}:
        own = column_of(request, name)
        behind = np.array(rows.get(name, [0] * len(rest)), own.dtype)
        columns[name] = np.concatenate([own, behind])
    columns["flags"][request.lines - 1] |= np.uint8(Flag.LINKED)
    columns["flags"][-1] &= np.uint8(0xFF ^ Flag.LINKED)
    return request.with_lines(request.lines + len(rest), columns)
