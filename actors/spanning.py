"""Orders over several shards, step by step: all of it or nothing, whoever dies between.

Nothing is remembered here. Each step has an id that follows from the operation's (`parts.step_id`),
so when the router dies between two of them the same op_id again takes the steps that were taken
without a second effect, gets the same answers and goes on. Until then a reader sees what the steps
so far have done; each function says which states these can be.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from actors.fates import Fate
from actors.parts import Part, Told, hold_id_of, joined, on, order_part, step_id, step_of, undone
from actors.ports import Sight
from actors.replacing import (
    Replacement,
    Taken,
    Units,
    in_place_of,
    own_lines,
    pending_of,
    wanted_of,
)
from actors.shards import Shards
from actors.transits import have_moved
from actors.wholes import holders_of
from engine import limits
from engine.operations import Answer, Flag, Kind, Request, column_of
from engine.status import Status
from engine.views import Hold

_OK: Final = int(Status.OK)


# --- reserve --------------------------------------------------------------------------------------


async def reserve(
    shards: Shards, request: Request, owners: NDArray[np.int64], *, is_late: bool = False
) -> Told:
    """Hold the lines of one order on each of their shards (`owners`, a line), or nowhere.

    Between steps it is held on some shards only; that runs out, if nobody comes back. So an order
    that is to be committed at once is first held, and then committed, when it is over several shards
    or takes the place of a hold that may be. One that is finished when the time of what it holds is over
    (`is_late`) holds nothing anew: what was not held by then is refused, HOLD_EXPIRED, for good.
    """
    flags = int(column_of(request, "flags")[0])
    numbers = list(dict.fromkeys(owners.tolist()))
    supersedes = flags & Flag.SUPERSEDE
    commits = flags & Flag.COMMIT_NOW if len(numbers) > 1 or supersedes else 0
    parts = [order_part(request, owners, shard, commits | Flag.SUPERSEDE) for shard in numbers]
    if commits and len(numbers) == 1:
        # A shard may be asked for all of it, by itself. It must not take the one for the other.
        (number,) = numbers
        if await _is_done(shards, request, number):
            return number, await shards.submit(number, request)
        parts[0].request.digest = step_id(request.digest, "held first")[: len(request.digest)]
    if is_late and not commits:
        asked = await _without_the_rest(shards, parts, {})
        is_whole = not any(Status.INVALID_KIND in answer.status for answer in asked.values())
        if supersedes and not is_whole:  # else the older hold may have given way already
            await Replacement(shards, request).decide(Status.HOLD_EXPIRED)
    later: dict[int, int] = {}  # why parts were given up that were held, by their place
    if supersedes:
        answers, later = await _supersede(shards, request, parts, is_to_be_paid=bool(commits))
    else:
        told = await shards.submit_parts(parts)
        answers = _reasoned(parts, told, Status.HOLD_EXPIRED)
    if commits and not later and not any(map(_is_refused, parts, answers)):
        later = await _commit_held(shards, request, parts, answers)
    if later or any(map(_is_refused, parts, answers)):
        # Only what answered OK to this very content: a hold that an earlier request with the
        # same op_id and other content made is not this one's to release.
        held = [part.shard for part, answer in zip(parts, answers, strict=True) if _holds(answer)]
        release = step_of(request, "release", kind=Kind.RELEASE, **on(request.op_id))
        await shards.submit_each(dict.fromkeys(held, release))
        answers = [
            undone(part, answer, later.get(place, Status.LINKED_LINE_REFUSED))
            if _holds(answer)
            else answer
            for place, (part, answer) in enumerate(zip(parts, answers, strict=True))
        ]
    return joined(request, parts, answers)


async def _is_done(shards: Shards, request: Request, shard: int) -> bool:
    """Whether a shard has done all of an order, asked by itself."""
    sight = await shards.link(shard).sight(request.op_id, [request.op_id])
    return sight.digests.get(request.op_id) == request.digest


def _holds(answer: Answer) -> bool:
    """Whether a part of an order is held; partly, where that was allowed."""
    return _OK in answer.status


def _is_refused(part: Part, answer: Answer) -> bool:
    """Whether a part refuses the order. Where less is allowed, having nothing does not."""
    flags = int(column_of(part.request, "flags")[0])
    harmless = (_OK, int(Status.INSUFFICIENT_STOCK)) if flags & Flag.PARTIAL else (_OK,)
    return any(status not in harmless for status in answer.status)


async def _commit_held(
    shards: Shards, request: Request, parts: Sequence[Part], answers: Sequence[Answer]
) -> dict[int, int]:
    """Commit what an order holds; what has run out (a retry came late) is held again.

    When a part refuses, those that were committed are cancelled, and the refusals are told; unless a
    commit of all of the hold has counted on them.
    """
    held = {part.shard: place for place, part in enumerate(parts) if _holds(answers[place])}
    commit = step_of(
        request,
        "commit",
        kind=Kind.COMMIT,
        flags=Flag.RE_RESERVE,
        channel=column_of(request, "channel")[0],
        **on(request.op_id),
    )
    told = await shards.submit_each(dict.fromkeys(held, commit))
    refused = {held[shard]: answer.status[0] for shard, answer in told.items() if answer.status[0]}
    done = [shard for shard, place in held.items() if place not in refused]
    if refused and done:
        why = next(iter(refused.values()))
        if await Fate(request.op_id, 0).decide(shards, why) == _OK:
            return {}
        cancel = step_of(request, "cancel", kind=Kind.CANCEL, **on(request.op_id))
        await shards.submit_each(dict.fromkeys(done, cancel))
    return refused


async def _supersede(
    shards: Shards, request: Request, parts: Sequence[Part], *, is_to_be_paid: bool
) -> tuple[list[Answer], dict[int, int]]:
    """Hold the parts of an order in place of an older hold of the same owner.

    A part that needs the older hold's stock goes after those that need none, and one after the other:
    when it refuses, all of the older hold still stands, or gets back what it had. What the order does
    not need is taken when all parts are held, and given up when nothing of the older hold is left that
    somebody could commit. That is decided once: so a repetition goes by it, whatever the older hold is
    by then. An order that is to be committed outlives the older hold: else a repetition could find
    nothing of either.
    """
    replacement = Replacement(shards, request)
    sights, decided, taken = await replacement.look()
    older = holders_of(sights)
    is_paid = decided is None and await replacement.is_paid(older.values())
    if is_to_be_paid and decided is None and not is_paid:
        parts = await replacement.that_outlive(parts, older)
        if status := await replacement.outlive(parts, older):
            decided = await replacement.decide(status)
    answers: dict[int, Answer] = {}
    if decided is None and not is_paid:
        answers = await _held(replacement, parts, sights, taken)
    answers |= await _without_the_rest(shards, parts, answers)
    told = [answers[place] for place in range(len(parts))]
    if any(map(_is_refused, parts, told)) or not any(map(_holds, told)):
        await replacement.give_back(older)
        return _reasoned(parts, told, decided), {}  # less was allowed, but nothing is no better
    if decided is None:
        is_kept = not is_paid and await replacement.keep()
        decided = await replacement.decide(_OK if is_kept else Status.HOLD_NOT_PENDING)
    if decided != _OK:
        # Committed meanwhile: then the older one stays, and not this one.
        await replacement.give_back(older)
        return told, {0: decided}
    await replacement.give_up({part.shard: part for part in parts})
    return told, {}


async def _held(
    replacement: Replacement,
    parts: Sequence[Part],
    sights: Mapping[int, Sight],
    taken: Mapping[int, Taken],
) -> dict[int, Answer]:
    """Hold one part after the other of an order; what they answer, until one refuses.

    Where all of the older hold is on one shard, its part takes the place of that in one step: nothing
    is to be given back, since that step is the last that can be refused.
    """
    shards, request = replacement.shards, replacement.request
    older = holders_of(sights)
    is_alone = len(older) == 1 and not have_moved(sights)
    if (
        not is_alone
        and not any(each.is_asked for each in taken.values())
        and any(map(_is_long, older.values()))
    ):
        return {0: await replacement.refuse(parts[0])}
    known = await shards.sights(request.op_id, [part.shard for part in parts], [request.op_id])
    last: dict[int, Units] = {}
    for place, part in enumerate(parts):
        has, (kept, lent, *_) = pending_of(older.get(part.shard)), taken[part.shard]
        if not known[part.shard].digests and (has or kept or lent):
            needed = has if is_alone else await _needed(shards, part, has + kept + lent)
            if needed or lent:
                last[place] = needed
    first = [place for place in range(len(parts)) if place not in last]
    told = await shards.submit_parts([parts[place] for place in first])
    answers = {
        place: own_lines(parts[place], answer) for place, answer in zip(first, told, strict=True)
    }
    left = {shard: units for shard, hold in older.items() if (units := pending_of(hold))}
    for place, needed in last.items():
        part = parts[place]
        if any(_is_refused(parts[each], answer) for each, answer in answers.items()):
            break
        has = left.pop(part.shard, Counter())
        if is_alone and not (taken[part.shard].kept or taken[part.shard].lent):
            superseding = in_place_of(part.request, hold_id_of(request))
            answers[place] = await shards.submit(part.shard, superseding)
        else:
            answers[place] = await replacement.hold(part, needed, has, is_rest=bool(left))
    return answers


def _is_long(hold: Hold) -> bool:
    """Whether a part of a hold has so many lines that it could not be given back."""
    return len(hold.lines) + len(pending_of(hold)) > limits.MAX_HOLD_LINES


async def _without_the_rest(
    shards: Shards, parts: Sequence[Part], answers: Mapping[int, Answer]
) -> dict[int, Answer]:
    """What the parts answer that need not be asked any more: nothing, and that for good.

    They are asked with a content that does nothing. So a repetition, which may see another older hold,
    gets no other reason; and what another attempt has held is known.
    """
    rest = [place for place in range(len(parts)) if place not in answers]
    asked = []
    for place in rest:
        nothing = Request.of(parts[place].request.op_id, parts[place].request.lines)
        nothing.digest = parts[place].request.digest
        asked.append(replace(parts[place], request=nothing))
    told = await shards.submit_parts(asked)
    return {
        place: own_lines(parts[place], answer) for place, answer in zip(rest, told, strict=True)
    }


def _reasoned(
    parts: Sequence[Part], answers: Sequence[Answer], decided: int | None
) -> list[Answer]:
    """The answers of an order that is refused, with those of parts that were not asked.

    They were not since another one refused, or as was decided, or else since the older hold is paid for.
    """
    is_unasked = [answer.status[0] == Status.INVALID_KIND for answer in answers]
    why = decided or int(Status.HOLD_NOT_PENDING)
    if any(
        _is_refused(part, answer)
        for part, answer, each in zip(parts, answers, is_unasked, strict=True)
        if not each
    ):
        why = Status.LINKED_LINE_REFUSED
    return [
        _unasked(part, answer, why) if each else answer
        for part, answer, each in zip(parts, answers, is_unasked, strict=True)
    ]


async def _needed(shards: Shards, part: Part, older: Units) -> Units:
    """What a part of an order needs of the pending units of an older hold, to be held at all.

    What cannot be held either way had better say so before anything is taken. Where less will do, it
    must not be less than the older hold had. How much is kept from a channel only its shard knows.
    """
    wanted = wanted_of(part.request)
    cells = await shards.link(part.shard).cells(list(wanted))
    missing = Counter(
        {
            name: units - (cell.available if cell else 0)
            for cell, (name, units) in zip(cells, wanted.items(), strict=True)
        }
    )
    if column_of(part.request, "channel").any():
        return +Counter({name: older[name] for name in wanted})
    short = {name: units for name, units in missing.items() if units > 0}
    if part.request.is_partial or (short and all(older[name] >= short[name] for name in short)):
        return older & Counter({name: max(wanted[name], missing[name]) for name in wanted})
    return Counter()


def _unasked(part: Part, answer: Answer, status: int) -> Answer:
    """The answer of a part of which nothing was asked: a status, and that of its neighbours."""
    lines = part.request.lines
    told = bytes((status, *[Status.LINKED_LINE_REFUSED] * (lines - 1)))
    return replace(answer, status=told, available=bytes(8 * lines))
