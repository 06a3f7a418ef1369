"""Commit all of a hold that has parts on several shards: everywhere, or nowhere.

As in `actors.spanning`, nothing is remembered here: a step has an id that follows from the
operation's. What is on its way between two shards is found and ended (`actors.transits`), so that all
of a hold is all of it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Final

from actors import fates, given_up
from actors.fates import fate_of
from actors.late import have_run_out
from actors.notes import note_of, number_of
from actors.parts import NOTHING_LEFT, Part, Told, hold_id_of, joined, on, step_id, step_of, whole
from actors.ports import Sight, Unavailable
from actors.shards import Shards, every
from actors.transits import ROUNDS, at_rest, have_left, have_moved
from actors.wholes import GRACE_MS, holders_of, lines_of, make_time, refused_with, that_matter
from engine.operations import Answer, Flag, Kind, Request, column_of
from engine.status import Status
from engine.views import Hold, HoldState

_OK: Final = int(Status.OK)

_Units = Counter[tuple[int, int]]  # of each (SKU, location)


def asked_by(request: Request) -> list[bytes]:
    """Further op_ids whose digests a commit must know when it begins: of its fate, and of its time."""
    return [*fates.asked_by(request), *_times(request)]


def _times(request: Request) -> list[bytes]:
    """The ids of the steps that give parts time, in the first two rounds."""
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
    `sights` have the digests of its own id and of `asked_by`.
    """
    hold_id = hold_id_of(request)
    fate = await fate_of(shards, request, sights)
    done: set[int] = set()
    timed: set[int] = set()
    for number in range(ROUNDS):
        done |= await _done_before(shards, request, sights, done)
        if not number and done and (fate.is_kept or await _was_at_once(shards, request, sights)):
            return await _done_told(shards, request, done)
        before, seen = holders_of(sights), sights
        told, committed = await _commit_round(shards, request, sights, done, timed, number)
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
            why = await _what_is_missing(shards, request, sights, done)
            decided = await fate.decide(shards, why)
            if decided == Status.OK:
                return told
            told = told[0], refused_with(request, Status(decided))
            break
        if refusal and not committed and lines_of(before) == lines_of(after):
            break
    else:
        raise Unavailable("the hold is moved again and again")
    if done and await fate.decide(shards, told[1].status[0]) == Status.OK:
        return await _done_told(shards, request, done)
    await _cancel(shards, request, done)
    return told


async def _what_is_missing(
    shards: Shards, request: Request, sights: Mapping[int, Sight], done: Collection[int]
) -> Status:
    """Why a commit that no part refuses, and of which nothing is pending, is less than all; OK: it is not.

    A part that was looked past, because it had been released when it was asked for time, has run out; or
    units have that came late. Or others were giving up all of the hold, and part of it had been committed
    by lines: it said no more than that nothing of it was pending.
    """
    holders = holders_of(sights)
    has_run_out = any(hold.state == HoldState.EXPIRED for hold in holders.values())
    if has_run_out or await have_run_out(shards, request, sights, done):
        return Status.HOLD_EXPIRED
    over = {*done} | {at for at, hold in holders.items() if hold.state == HoldState.RELEASED}
    if await given_up.marked(shards, hold_id_of(request), {*holders} - over):
        return Status.HOLD_RELEASED
    return Status.OK


async def _done_before(
    shards: Shards, request: Request, sights: Mapping[int, Sight], done: Collection[int]
) -> set[int]:
    """Shards that have done it for an attempt whose router died, or that is under way too."""
    asked = [
        whole(request, shard)
        for shard, sight in sights.items()
        if request.op_id in sight.digests and shard not in done
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
    if len(holders_of(after)) > 1 or have_moved(after):
        return False
    was, is_ = (next(iter(holders_of(sights).values())) for sights in (before, after))
    return not _units(was, "committed") and _units(was, "pending") == _units(is_, "committed")


async def _was_at_once(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> bool:
    """Whether an earlier attempt has committed all that there was by one step, so this is a repetition.

    With parts on other shards it would have made time first. What had left the shard before it was
    committed there may have been missed; nothing can leave after that, so what else moves was added since.
    """
    tried = [shard for shard, sight in sights.items() if request.op_id in sight.digests]
    if len(tried) > 1 or _has_made_time(request, sights):
        return False
    return not await have_left(shards, hold_id_of(request), tried[0], sights)


def _has_made_time(request: Request, sights: Mapping[int, Sight]) -> bool:
    """Whether an earlier attempt has asked parts of the hold for time."""
    return any(step in sight.digests for sight in sights.values() for step in _times(request))


async def _commit_round(
    shards: Shards,
    request: Request,
    sights: Mapping[int, Sight],
    done: set[int],
    timed: set[int],
    number: int,
) -> tuple[Told, set[int]]:
    """Commit what is pending of a hold as it was seen: how it went, and which shards have done it.

    Each part gets time enough first, which refuses what is over. Parts of which nothing is pending are
    asked to commit too: only so they say whether all of them is committed, or some of it ran out.
    Those that got time are `timed` in later rounds.
    """
    holders = holders_of(sights)
    parts = [whole(request, shard) for shard in holders]
    silent: list[Part] = []
    if len(holders) > 1 or number:
        times = await make_time(shards, request, list(holders), GRACE_MS, f"extend {number}")
        parts, given = await that_matter(shards, request, holders, times, done, timed)
        timed |= {shard for shard, answer in times.items() if not answer.status[0]}
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
    await _note(shards, request, seen, is_again=bool(number) or _has_made_time(request, sights))
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
        if number and request.op_id in sights[part.shard].digests
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
        if sight.hold is None or request.op_id in sight.digests:
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
        notes = {cell: _note_id(request, cell, number) for cell in found}
        sight = await shards.link(shard).sight(hold_id_of(request), list(notes.values()))
        if not sight.digests:
            break
        for cell, note in notes.items():
            if note in sight.digests:
                found[cell] = number + 1, number_of(sight.digests[note])
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
