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

from actors.calls import give_up, holders_of
from actors.fates import Fate
from actors.parts import Part, hold_id_of, joined, on, order_part, step_of, undone
from actors.replacing import Replacement, own_lines, pending_of, wanted_of
from actors.shards import Shards
from engine.operations import Answer, Flag, Kind, Request, column_of
from engine.status import Status
from engine.views import Hold, HoldState

_OK: Final = int(Status.OK)

Told = tuple[int, Answer]
"""The shard of the first line, and the answer."""


# --- reserve --------------------------------------------------------------------------------------


async def reserve(shards: Shards, request: Request, owners: NDArray[np.int64]) -> Told:
    """Hold the lines of one order on each of their shards (`owners`, a line), or nowhere.

    Between steps it is held on some shards only; that runs out, if nobody comes back. So an order
    that is to be committed at once is first held, and then committed, when it is over several shards
    or takes the place of a hold that may be.
    """
    flags = int(column_of(request, "flags")[0])
    numbers = list(dict.fromkeys(owners.tolist()))
    commits = flags & Flag.COMMIT_NOW if len(numbers) > 1 or flags & Flag.SUPERSEDE else 0
    parts = [order_part(request, owners, shard, commits) for shard in numbers]
    later: dict[int, int] = {}  # why parts were given up that were held, by their place
    if flags & Flag.SUPERSEDE:
        plain = [order_part(request, owners, n, commits | Flag.SUPERSEDE) for n in numbers]
        answers, later = await _supersede(shards, request, parts, plain)
    else:
        answers = await shards.submit_parts(parts)
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
    shards: Shards, request: Request, parts: Sequence[Part], plain: Sequence[Part]
) -> tuple[list[Answer], dict[int, int]]:
    """Hold an order in place of an older hold of the same owner; `plain` are its parts without that.

    A shard frees the older hold's part in the step in which it holds the new one's, so a part that
    needs this goes last: when it refuses, all of the older hold still stands. With several such parts
    each keeps also what the older hold had and the new one does not need, until all are held: so when
    a later one is refused, the earlier ones are given back, whatever others have bought meanwhile.
    Elsewhere the older hold is released at the end, also where it has run out: so that a late payment
    does not commit it beside its successor.
    """
    release = step_of(
        request, "supersede", kind=Kind.RELEASE, flags=Flag.SUPERSEDE, **on(hold_id_of(request))
    )
    sights = await shards.sights(hold_id_of(request), shards.asked_for(0), [release.op_id])
    older = holders_of(sights)
    pending = {shard: hold for shard, hold in older.items() if hold.state == HoldState.PENDING}
    run_out = [shard for shard, hold in older.items() if hold.state == HoldState.EXPIRED]
    # Those that an earlier attempt has asked to let the older hold go.
    letting_go = [shard for shard, sight in sights.items() if sight.digests[0] is not None]
    is_paid = any(map(_is_order, older.values()))
    if len(pending) + len(run_out) > 1:
        await give_up(shards, hold_id_of(request))
    replacement = Replacement(shards, request, older)
    answers: dict[int, Answer] = {}
    if not is_paid:
        answers = await _held(replacement, parts, plain, pending)
    answers |= await _without_the_rest(shards, plain, answers)
    told = [answers[place] for place in range(len(parts))]
    if any(map(_is_refused, plain, told)) or not any(map(_holds, told)):
        await replacement.give_back()
        return _reasoned(plain, told), {}  # less was allowed, but nothing is no better
    if not is_paid or letting_go:
        # One is asked where there is nothing to end too: so that a repetition knows that it came so far.
        asked = [*pending, *run_out, *letting_go] or [parts[0].shard]
        gone = await shards.submit_each(dict.fromkeys(asked, release))
        is_paid = any(told.status[0] == Status.HOLD_NOT_PENDING for told in gone.values())
    if is_paid:
        # Committed meanwhile: then the older one stays, and not this one.
        await replacement.give_back()
        return told, {0: Status.HOLD_NOT_PENDING}
    await replacement.give_up_rest({part.shard: part for part in plain})
    return told, {}


async def _held(
    replacement: Replacement,
    parts: Sequence[Part],
    plain: Sequence[Part],
    pending: Mapping[int, Hold],
) -> dict[int, Answer]:
    """Hold one part after the other of an order; what they answer, until one refuses."""
    shards = replacement.shards
    last = [place for place, part in enumerate(parts) if part.shard in pending]
    if len(last) > 1:
        last = [
            place
            for place in last
            if await _needs(shards, plain[place], pending[parts[place].shard])
        ]
    first = [place for place in range(len(parts)) if place not in last]
    told = await shards.submit_parts([plain[place] for place in first])
    answers = {
        place: own_lines(plain[place], answer) for place, answer in zip(first, told, strict=True)
    }
    for place in last:
        if any(_is_refused(plain[each], answer) for each, answer in answers.items()):
            break
        answers[place] = await replacement.hold(parts[place])
    return answers


async def _without_the_rest(
    shards: Shards, plain: Sequence[Part], answers: Mapping[int, Answer]
) -> dict[int, Answer]:
    """What the parts answer that need not be asked any more: nothing, and that for good.

    They are asked with a content that does nothing. So a repetition, which may see another older hold,
    gets no other reason; and what another attempt has held is known.
    """
    rest = [place for place in range(len(plain)) if place not in answers]
    asked = []
    for place in rest:
        nothing = Request.of(plain[place].request.op_id, plain[place].request.lines)
        nothing.digest = plain[place].request.digest
        asked.append(replace(plain[place], request=nothing))
    told = await shards.submit_parts(asked)
    return {
        place: own_lines(plain[place], answer) for place, answer in zip(rest, told, strict=True)
    }


def _reasoned(parts: Sequence[Part], answers: Sequence[Answer]) -> list[Answer]:
    """The answers of an order that is refused, with those of parts that were not asked.

    They were not since another one refused, or else since the older hold is paid for.
    """
    is_unasked = [answer.status[0] == Status.INVALID_KIND for answer in answers]
    why = Status.HOLD_NOT_PENDING
    if any(
        _is_refused(part, answer)
        for part, answer, each in zip(parts, answers, is_unasked, strict=True)
        if not each
    ):
        why = Status.LINKED_LINE_REFUSED
    return [
        _unasked(part, why) if each else answer
        for part, answer, each in zip(parts, answers, is_unasked, strict=True)
    ]


def _is_order(hold: Hold) -> bool:
    """Whether a hold is or was committed, wholly or in part."""
    was = (HoldState.COMMITTED, HoldState.FULFILLED, HoldState.CANCELLED)
    return hold.state in was or any(line.committed or line.fulfilled for line in hold.lines)


async def _needs(shards: Shards, part: Part, older: Hold) -> bool:
    """Whether a part of an order can only be held with the stock of an older hold, and with it can.

    What cannot be held either way had better say so before anything is freed. Where less will do,
    the older hold's units are always needed: so that it is not less than those.
    """
    wanted, had = wanted_of(part.request), pending_of(older)
    if part.request.is_partial:
        return bool(wanted & had)
    cells = await shards.link(part.shard).cells(list(wanted))
    missing = Counter(
        {
            name: units - (cell.available if cell else 0)
            for cell, (name, units) in zip(cells, wanted.items(), strict=True)
        }
    )
    with_older = missing.copy()
    with_older.subtract({name: had[name] for name in missing})
    return max(missing.values()) > 0 >= max(with_older.values())


def _unasked(part: Part, status: Status) -> Answer:
    """The answer of a part that no shard was asked for: a status, and that of its neighbours."""
    lines = part.request.lines
    told = bytes((status, *[Status.LINKED_LINE_REFUSED] * (lines - 1)))
    return Answer(told, bytes(8 * lines), 0, 0, 0)
