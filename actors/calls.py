"""Calls on all of a hold that has parts on several shards: what they are told stays; more time, giving up.

To commit it is a matter of its own (`actors.commits`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from actors import commits, given_up
from actors.notes import keeper_of, noted, number_of
from actors.parts import (
    Told,
    hold_id_of,
    joined,
    on,
    renamed,
    step_id,
    step_of,
    that_count,
    whole,
)
from actors.ports import Sight, Unavailable
from actors.shards import Shards
from actors.transits import ROUNDS, at_rest, have_moved
from actors.wholes import holders_of, lines_of, make_time, refused_with, that_matter
from engine import limits
from engine.operations import Answer, Kind, Request, column_of
from engine.status import Status
from engine.views import HoldState

_AVAILABLE: Final = 1 << 56  # how many numbers may stand beside a status in a note
assert 2 * limits.MAX_BALANCE < _AVAILABLE // 2


def asked_by(request: Request) -> list[bytes]:
    """The op_ids whose digests a call must know of each shard when it begins."""
    if column_of(request, "kind")[0] != Kind.COMMIT:
        return [request.op_id, _answer_id(request)]
    return [request.op_id, *commits.asked_by(request), _answer_id(request)]


async def told_before(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Told | None:
    """The answer of an earlier attempt, if it stays; `sights` have digests of `asked_by`."""
    keeper = keeper_of(shards, hold_id_of(request))
    digest = sights[keeper].digests.get(_answer_id(request))
    if digest is None:
        return None
    told = keeper, _answer_of(request, number_of(digest))
    if told[1].status[0] == Status.UNKNOWN_HOLD and _is_done(request, sights):
        return None  # by another gateway, which had found the hold meanwhile
    if not told[1].status[0]:  # what the shards remember says more
        kind = column_of(request, "kind")[0]
        said = _extended_before if kind == Kind.EXTEND else _released_before
        shard, answer = await said(shards, request, sights) or told
        told = shard, replace(answer, now_ns=told[1].now_ns)
    return told


def _is_done(request: Request, sights: Mapping[int, Sight]) -> bool:
    """Whether a shard has done a call under its own id."""
    return any(
        request.op_id in sight.done and sight.digests[request.op_id] == request.digest
        for sight in sights.values()
    )


async def unknown(shards: Shards, request: Request) -> Told:
    """What a shard says to a call on a hold that none knows: asked about one that never is.

    Asked about the hold itself, it would remember that of the call's own id, or do it for its own part
    if that has come meanwhile; and a repetition of a call that nobody was told about is about all of it.
    """
    shard = keeper_of(shards, hold_id_of(request))
    columns = {**request.columns, **on(step_id(request.op_id, "nobody's"))}
    return shard, await shards.submit(shard, step_of(request, "unknown", **columns))


async def settled(shards: Shards, request: Request, told: Told) -> Told:
    """The answer of a call as it stays, whatever the hold is since.

    What was refused once is refused. An EXTEND or RELEASE that was done is done: asked again, parts
    could tell what has become of them since, and those that have come since would get more time, or
    be given up. Of the other calls the shards remember what they did.
    """
    shard, answer = told
    status = answer.status[0]
    if status:
        number = status | int.from_bytes(answer.available, "little", signed=True) % _AVAILABLE << 8
    elif column_of(request, "kind")[0] in (Kind.EXTEND, Kind.RELEASE):
        number = answer.now_ns & ~0xFF  # a little earlier, to leave the lowest byte for the status
        answer = replace(answer, now_ns=number)
    else:
        return told
    first = await noted(shards, hold_id_of(request), _answer_id(request), number)
    return shard, answer if first == number else _answer_of(request, first)


def _answer_of(request: Request, number: int) -> Answer:
    """The answer that a number tells: the time when it was done, or a status and what was available."""
    if not number & 0xFF:
        return replace(refused_with(request, Status.OK), now_ns=number)
    available = number >> 8
    if available >= _AVAILABLE // 2:
        available -= _AVAILABLE
    refused = refused_with(request, Status(number & 0xFF))
    return replace(refused, available=available.to_bytes(8, "little", signed=True))


def _answer_id(request: Request) -> bytes:
    """By its content too: an id that is used for another one is refused as such."""
    return step_id(request.op_id, f"answered {request.digest.hex()}")


async def extend(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Told:
    """Give all parts of a hold more time. When one is over, the others may have got it."""
    ttl_ms = int(column_of(request, "value")[0])
    for number in range(ROUNDS):
        holders = holders_of(sights)
        answers = await make_time(shards, request, list(holders), ttl_ms, _look(number))
        told = joined(request, *await that_matter(shards, request, holders, answers))
        sights, is_lost = await at_rest(shards, hold_id_of(request))
        if is_lost:
            return told[0], refused_with(request, Status.HOLD_EXPIRED)
        if lines_of(holders_of(sights)) == lines_of(holders):
            if not told[1].status[0] and await _is_short(shards, request, answers, number):
                return told[0], refused_with(request, Status.HOLD_EXPIRED)
            return told
    raise Unavailable("the hold is moved again and again")


async def _is_short(
    shards: Shards, request: Request, answers: Mapping[int, Answer], number: int
) -> bool:
    """Whether some ran out of a part that says to an EXTEND no more than that nothing of it is pending.

    Only a COMMIT is told. It names a cell that is in no hold, so it never commits anything.
    """
    silent = [at for at, answer in answers.items() if answer.status[0] == Status.HOLD_NOT_PENDING]
    columns = {"kind": Kind.COMMIT, "quantity": 1, **on(hold_id_of(request))}
    probe = renamed(step_of(request, f"short {number}", **columns), [True])
    told = await shards.submit_each(dict.fromkeys(silent, probe))
    return any(answer.status[0] == Status.HOLD_EXPIRED for answer in told.values())


async def _extended_before(
    shards: Shards, request: Request, sights: Mapping[int, Sight]
) -> Told | None:
    """What shards said to an EXTEND that was done, in its last look; None when that is forgotten."""
    looks = [step_id(request.op_id, _look(number)) for number in range(ROUNDS)]
    sights = await shards.sights(hold_id_of(request), list(sights), looks)
    for number in reversed(range(ROUNDS)):
        asked = [shard for shard, sight in sights.items() if looks[number] in sight.done]
        if asked:
            ttl_ms = int(column_of(request, "value")[0])
            answers = await make_time(shards, request, asked, ttl_ms, _look(number))
            return joined(request, [whole(request, shard) for shard in asked], [*answers.values()])
    return None


def _look(number: int) -> str:
    """The step of an EXTEND on the parts that it sees when it looks for them again."""
    return f"all {number}"


async def release(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Told:
    """Give up all that is pending of a hold, wherever it is."""
    told: Told | None = None
    is_spread = len(holders_of(sights)) > 1 or have_moved(sights)
    for number in range(ROUNDS):
        holders = holders_of(sights)
        left = [shard for shard, hold in holders.items() if hold.state == HoldState.PENDING]
        if told and not left:
            return told
        if is_spread or number:
            await given_up.mark(shards, hold_id_of(request), request.op_id, left)
        step = step_of(request, "again", kind=Kind.RELEASE, **on(hold_id_of(request)))
        step.op_id = given_up.again_id(request.op_id, number)
        parts = [
            whole(step if told and request.op_id in sights[shard].digests else request, shard)
            for shard in holders
        ]
        now = joined(request, *that_count(parts, await shards.submit_parts(parts)))
        told = now if told is None or told[1].status[0] else told
        sights, _ = await at_rest(shards, hold_id_of(request), [request.op_id])
    raise Unavailable("the hold is moved again and again")


async def _released_before(
    shards: Shards, request: Request, sights: Mapping[int, Sight]
) -> Told | None:
    """What shards said to a RELEASE that was done; None when that is forgotten."""
    parts = [
        whole(request, shard) for shard, sight in sights.items() if request.op_id in sight.done
    ]
    return joined(request, parts, await shards.submit_parts(parts)) if parts else None
