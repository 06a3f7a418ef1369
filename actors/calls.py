"""Calls on all of a hold that has parts on several shards: commit it everywhere or nowhere, extend it.

As in `actors.spanning`, nothing is remembered here: a step has an id that follows from the
operation's. What is on its way between two shards is found and ended (`actors.transits`), so that all
of a hold is all of it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Final

from actors import fates
from actors.fates import fate_of
from actors.late import have_run_out
from actors.notes import keeper_of, note_of, noted, noted_before, number_of
from actors.parts import (
    NOTHING_LEFT,
    Part,
    hold_id_of,
    joined,
    on,
    step_id,
    step_of,
    that_count,
    whole,
)
from actors.ports import Sight, Unavailable
from actors.shards import Shards, every
from actors.transits import ROUNDS, at_rest
from engine import limits
from engine.operations import Answer, Flag, Kind, Request, column_of
from engine.status import Status
from engine.views import Hold, HoldLine, HoldState

GRACE_MS: Final = 10_000  # steps on a pending hold first make sure that it lives so long
_OK: Final = int(Status.OK)
_AVAILABLE: Final = 1 << 56  # how many numbers may stand beside a status in a note
assert 2 * limits.MAX_BALANCE < _AVAILABLE // 2
_NOBODYS: Final = Answer(b"\0", bytes(8), 0, 0, 0)

Told = tuple[int, Answer]
"""The shard of the first line, and the answer."""
_Units = Counter[tuple[int, int]]  # of each (SKU, location)


def asked_by(request: Request) -> list[bytes]:
    """The op_ids whose digests a call must know of each shard when it begins.

    Its own is the first; the last is that by which the call's answer is remembered.
    """
    if column_of(request, "kind")[0] != Kind.COMMIT:
        return [request.op_id, _answer_id(request)]
    return [request.op_id, *fates.asked_by(request), *_times(request), _answer_id(request)]


async def told_before(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Told | None:
    """The answer of an earlier attempt, if it stays; `sights` have digests of `asked_by`."""
    keeper = keeper_of(shards, hold_id_of(request))
    digest = sights[keeper].digests[-1]
    if digest is None:
        return None
    told = keeper, _answer_of(request, number_of(digest))
    if not told[1].status[0]:  # what the shards remember says more
        kind = column_of(request, "kind")[0]
        said = _extended_before if kind == Kind.EXTEND else _released_before
        shard, answer = await said(shards, request, sights) or told
        told = shard, replace(answer, now_ns=told[1].now_ns)
    return told


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


def _times(request: Request) -> list[bytes]:
    return [step_id(request.op_id, f"extend {number}") for number in (0, 1)]


async def commit(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Told:
    """Commit all that is pending of a hold, wherever it is, or nothing.

    What was on its way is looked for after the parts that were seen are committed: then nothing more
    can leave them. So one look is enough, though the shards are not asked at the same moment; what is
    found is committed in another round. When a part refuses after others were committed, these are
    cancelled, unless another commit has counted on them (`actors.fates`): then it has seen all of the
    hold committed while this one was under way, which is what this one answers too. It is refused as
    well when units have run out that came after their part was committed (`actors.late`). Between
    steps a reader sees a hold of which some shards' parts are committed and the others pending.
    `sights` have the digests of `asked_by`.
    """
    hold_id = hold_id_of(request)
    fate = await fate_of(shards, request, sights)
    done: set[int] = set()
    for number in range(ROUNDS):
        done |= await _done_before(shards, request, sights, done)
        if not number and done and (fate.is_kept or _was_at_once(sights)):
            return await _done_told(shards, request, done)
        before, seen = holders_of(sights), sights
        told, committed = await _commit_round(shards, request, sights, done, number)
        done |= committed
        refusal = told[1].status[0]
        if refusal and refusal not in NOTHING_LEFT:
            break
        sights, is_lost = await at_rest(shards, hold_id, [request.op_id])
        after = holders_of(sights)
        if is_lost:
            told = told[0], refused_with(request, Status.HOLD_EXPIRED)
            break
        is_pending = any(hold.state == HoldState.PENDING for hold in after.values())
        if not refusal and not is_pending:
            if not number and committed and _is_at_once(seen, sights):
                return told
            # A part that was looked past, because it had been released when it was asked for time.
            has_run_out = any(hold.state == HoldState.EXPIRED for hold in after.values())
            is_less = has_run_out or await have_run_out(shards, request, sights, done)
            decided = await fate.decide(shards, Status.HOLD_EXPIRED if is_less else Status.OK)
            if decided == Status.OK:
                return told
            told = told[0], refused_with(request, Status(decided))
            break
        if refusal and not committed and _lines(before) == _lines(after):
            break
    else:
        raise Unavailable("the hold is moved again and again")
    if done and await fate.decide(shards, told[1].status[0]) == Status.OK:
        return await _done_told(shards, request, done)
    await _cancel(shards, request, done)
    return told


async def _done_before(
    shards: Shards, request: Request, sights: Mapping[int, Sight], done: Collection[int]
) -> set[int]:
    """Shards that have done it for an attempt whose router died, or that is under way too."""
    asked = [
        whole(request, shard)
        for shard, sight in sights.items()
        if sight.digests[0] is not None and shard not in done
    ]
    answers = await shards.submit_parts(asked)
    return {part.shard for part, it in zip(asked, answers, strict=True) if not it.status[0]}


async def _done_told(shards: Shards, request: Request, done: Collection[int]) -> Told:
    """The answer of a commit by what the shards have answered that have done it."""
    parts = [whole(request, shard) for shard in sorted(done)]
    shard, answer = joined(request, parts, await shards.submit_parts(parts))
    return shard, replace(answer, status=bytes(request.lines))  # done by a later step, maybe


def _is_at_once(before: Mapping[int, Sight], after: Mapping[int, Sight]) -> bool:
    """Whether one step has committed all of a hold, which never was on another shard: nothing to decide.

    The units are compared, since another commit may have been quicker and some come since.
    """
    if len(holders_of(after)) > 1 or _has_moved(after):
        return False
    was, is_ = (next(iter(holders_of(sights).values())) for sights in (before, after))
    return not _units(was, "committed") and _units(was, "pending") == _units(is_, "committed")


def _was_at_once(sights: Mapping[int, Sight]) -> bool:
    """Whether an earlier attempt has committed all that there was by one step, so this is a repetition.

    With parts on other shards it would have made time first.
    """
    tried = [sight for sight in sights.values() if sight.digests[0] is not None]
    return len(tried) == 1 and not _has_made_time(sights) and not _has_moved(sights)


def _has_made_time(sights: Mapping[int, Sight]) -> bool:
    """Whether an earlier attempt has asked parts of the hold for time."""
    return any(any(sight.digests[3:5]) for sight in sights.values())


def _has_moved(sights: Mapping[int, Sight]) -> bool:
    """Whether any units of a hold have ever gone from one shard to another."""
    return any(sight.waiting for sight in sights.values())


async def _commit_round(
    shards: Shards, request: Request, sights: Mapping[int, Sight], done: set[int], number: int
) -> tuple[Told, set[int]]:
    """Commit what is pending of a hold as it was seen: how it went, and which shards have done it.

    Each part gets time enough first, which refuses what is over. Parts of which nothing is pending are
    asked to commit too: only so they say whether all of them is committed, or some of it ran out.
    """
    holders = holders_of(sights)
    parts = [whole(request, shard) for shard in holders]
    silent: list[Part] = []
    if len(holders) > 1 or number:
        times = await make_time(shards, request, list(holders), GRACE_MS, f"extend {number}")
        parts, given = await that_matter(shards, request, holders, times, done)
        mattering = {part.shard for part in parts}
        silent = [
            whole(request, shard)
            for shard, answer in times.items()
            if answer.status[0] == Status.HOLD_NOT_PENDING and shard not in {*mattering, *done}
        ]
        if not parts and not silent:  # this request has committed all that there is
            return await _done_told(shards, request, done), set()
        is_again = column_of(request, "flags")[0] & Flag.RE_RESERVE
        may_have_expired = {Status.HOLD_EXPIRED} if is_again else set()
        if any(answer.status[0] not in {_OK, *may_have_expired} for answer in given):
            return await _refused_round(shards, request, sights, parts, given, number)
    seen = {part.shard: sights[part.shard] for part in silent + parts}
    await _note(shards, request, seen, is_again=bool(number) or _has_made_time(sights))
    # First those that can only refuse: then the others are left as they are.
    told = [
        each
        for each in await _committed(shards, request, sights, silent, number)
        if each[1].status[0] != Status.HOLD_NOT_PENDING
    ]
    if not any(answer.status[0] for _, answer in told):
        told += await _committed(shards, request, sights, parts, number)
    if not told:
        return await _done_told(shards, request, done), set()
    committed = {part.shard for part, answer in told if not answer.status[0]}
    return joined(request, [part for part, _ in told], [answer for _, answer in told]), committed


async def _refused_round(
    shards: Shards,
    request: Request,
    sights: Mapping[int, Sight],
    parts: Sequence[Part],
    given: Sequence[Answer],
    number: int,
) -> tuple[Told, set[int]]:
    """Why parts of a hold that were to get time have refused it; as `_commit_round`.

    That nothing is pending in a part counts less than any other reason. Where all say that, they are
    asked whether some of it ran out: by a step of its own, since they may be committed by the request
    yet, when others take back what they have. What has come there since is committed by it.
    """
    other = [at for at, answer in enumerate(given) if answer.status[0] != Status.HOLD_NOT_PENDING]
    if other:
        return joined(request, [parts[at] for at in other], [given[at] for at in other]), set()
    await _note(shards, request, {part.shard: sights[part.shard] for part in parts}, is_again=True)
    step = step_of(request, f"over {number}", kind=Kind.COMMIT, **on(hold_id_of(request)))
    answers = await shards.submit_each({part.shard: step for part in parts})
    said = {answer.status[0] for answer in answers.values()}
    status = min(said, key=lambda each: (each != _OK, each == Status.HOLD_NOT_PENDING))
    told = [part for part in parts if answers[part.shard].status[0] == status]
    committed = {part.shard for part in told if status == _OK}
    return joined(request, told, [answers[part.shard] for part in told]), committed


async def _committed(
    shards: Shards,
    request: Request,
    sights: Mapping[int, Sight],
    parts: Sequence[Part],
    number: int,
) -> list[tuple[Part, Answer]]:
    """Commit parts of a hold, in a round, and give what each of them answers."""
    asked = [
        # Done before in this call: more has come there since.
        replace(part, request=_again(request, number))
        if number and sights[part.shard].digests[0] is not None
        else part
        for part in parts
    ]
    return list(zip(asked, await shards.submit_parts(asked), strict=True))


def _again(request: Request, number: int) -> Request:
    """The commit of a whole hold as a step of its own."""
    flags, channel = (int(column_of(request, name)[0]) for name in ("flags", "channel"))
    hold = on(hold_id_of(request))
    again = {"kind": Kind.COMMIT, "flags": flags, "channel": channel}
    return step_of(request, f"again {number}", **again, **hold)


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
        if _lines(holders_of(sights)) == _lines(holders):
            return told
    raise Unavailable("the hold is moved again and again")


async def _extended_before(
    shards: Shards, request: Request, sights: Mapping[int, Sight]
) -> Told | None:
    """What shards said to an EXTEND that was done, in its last look; None when that is forgotten."""
    looks = [step_id(request.op_id, _look(number)) for number in range(ROUNDS)]
    sights = await shards.sights(hold_id_of(request), list(sights), looks)
    for number in reversed(range(ROUNDS)):
        asked = [shard for shard, sight in sights.items() if sight.done[number]]
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
    if len(holders_of(sights)) > 1 or _has_moved(sights):
        await give_up(shards, hold_id_of(request))
    for number in range(ROUNDS):
        holders = holders_of(sights)
        if told and not any(hold.state == HoldState.PENDING for hold in holders.values()):
            return told
        step = step_of(request, f"again {number}", kind=Kind.RELEASE, **on(hold_id_of(request)))
        parts = [
            whole(step if told and sights[shard].digests[0] is not None else request, shard)
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
    parts = [whole(request, shard) for shard, sight in sights.items() if sight.done[0]]
    return joined(request, parts, await shards.submit_parts(parts)) if parts else None


async def make_time(
    shards: Shards, request: Request, asked: Sequence[int], ttl_ms: int, name: str = "extend"
) -> dict[int, Answer]:
    """Give parts of a hold time to live; those that are over say so."""
    step = step_of(request, name, kind=Kind.EXTEND, value=ttl_ms, **on(hold_id_of(request)))
    return await shards.submit_each(dict.fromkeys(asked, step))


async def that_matter(
    shards: Shards,
    request: Request,
    holders: Mapping[int, Hold],
    answers: Mapping[int, Answer],
    done: Collection[int] = (),
) -> tuple[list[Part], list[Answer]]:
    """The parts of a hold that a call on all that is pending is about, with their answers.

    Those that were given up by lines, or moved to another shard, do not count, nor do those that are
    committed already, unless no other is left. What the call has done itself is on the shards `done`.
    """
    said = {shard: answers[shard].status[0] for shard in holders}
    silent = {shard for shard, status in said.items() if status == Status.HOLD_RELEASED}
    if silent and (done or await _is_given_up(shards, hold_id_of(request))):
        # Of late, or not all of it yet. What was moved away has no SKU that is not in another part.
        elsewhere = {each.sku for at in {*holders} - silent for each in holders[at].lines}
        silent = {at for at in silent if {each.sku for each in holders[at].lines} <= elsewhere}
    if len(silent) == len(holders):
        silent = set()
    if any(not status for status in said.values()) or done:
        silent |= {at for at, status in said.items() if status == Status.HOLD_NOT_PENDING}
    matter = [shard for shard in holders if shard not in silent]
    return [whole(request, shard) for shard in matter], [answers[shard] for shard in matter]


async def give_up(shards: Shards, hold_id: bytes) -> None:
    """Have it noted that all of a hold is about to be given up, part by part.

    Until then a part of which nothing is left was given up by lines, or moved away, and says nothing
    of the others.
    """
    await noted(shards, hold_id, _given_up_id(hold_id), 1)


async def _is_given_up(shards: Shards, hold_id: bytes) -> bool:
    return await noted_before(shards, hold_id, _given_up_id(hold_id)) is not None


def _given_up_id(hold_id: bytes) -> bytes:
    return step_id(hold_id, "given up")


def refused_with(request: Request, status: Status) -> Answer:
    """The answer of a call that no shard refused, with one status for all lines."""
    lines = request.lines
    return replace(_NOBODYS, status=bytes((status,)) * lines, available=bytes(8 * lines))


def holders_of(sights: Mapping[int, Sight]) -> dict[int, Hold]:
    """The shards that have a part of a hold, with it."""
    return {shard: sight.hold for shard, sight in sights.items() if sight.hold is not None}


def _lines(holders: Mapping[int, Hold]) -> dict[int, list[HoldLine]]:
    return {shard: hold.lines for shard, hold in holders.items()}


def _units(hold: Hold, name: str) -> _Units:
    """How many units of each cell are `pending`, or `committed`."""
    units: _Units = Counter()
    for line in hold.lines:
        units[line.sku, line.location] += getattr(line, name)
    return +units


# --- taking a commit back -------------------------------------------------------------------------


async def _note(
    shards: Shards, request: Request, sights: Mapping[int, Sight], *, is_again: bool
) -> None:
    """Have shards note how much was committed before, where they have not committed yet.

    A note changes nothing. It is a request that is refused and remembered like any other; its digest
    is the number. So it is still known when the router dies right after the commit. When others have
    committed some of it since an earlier attempt (`is_again`), there is a newer note: the last one counts.
    """
    notes: list[tuple[int, Request]] = []
    for shard, sight in sights.items():
        if sight.hold is None or sight.digests[0] is not None:
            continue
        now = _units(sight.hold, "committed")
        if not now and not is_again:
            continue
        for cell, (number, units) in (await _noted(shards, request, shard, sight.hold)).items():
            if units != now[cell]:
                notes.append((shard, note_of(_note_id(request, cell, number), now[cell])))
    await every(shards.submit(*each) for each in notes)


async def _noted(
    shards: Shards, request: Request, shard: int, hold: Hold
) -> dict[tuple[int, int], tuple[int, int]]:
    """How many notes there are of each cell of a part of a hold, and what the last one says."""
    found = {(line.sku, line.location): (0, 0) for line in hold.lines}
    for number in count():
        notes = [_note_id(request, cell, number) for cell in found]
        sight = await shards.link(shard).sight(hold_id_of(request), notes)
        if not any(sight.digests):
            break
        for cell, digest in zip(found, sight.digests, strict=True):
            if digest is not None:
                found[cell] = number + 1, number_of(digest)
    return found


def _note_id(request: Request, cell: tuple[int, int], number: int) -> bytes:
    return step_id(request.op_id, f"before {cell[0]} {cell[1]} {number}")


async def _cancel(shards: Shards, request: Request, done: Collection[int]) -> None:
    """Take back what a commit has committed, and nothing that was committed before it."""
    holders = await shards.holds(hold_id_of(request), sorted(done))
    gained = await every(_gained(shards, request, *each) for each in holders.items())
    steps: dict[int, Request] = {}
    for shard, units in zip(holders, gained, strict=True):
        if units:
            skus, locations = zip(*units, strict=True)
            steps[shard] = step_of(
                request,
                "cancel",
                len(units),
                kind=Kind.CANCEL,
                sku=skus,
                location=locations,
                quantity=list(units.values()),
                **on(hold_id_of(request)),
            )
    await shards.submit_each(steps)


async def _gained(shards: Shards, request: Request, shard: int, hold: Hold) -> _Units:
    """What is committed of a part of a hold and was not before this request."""
    noted = await _noted(shards, request, shard, hold)
    before = Counter({cell: units for cell, (_, units) in noted.items()})
    return _units(hold, "committed") - before
