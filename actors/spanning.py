"""Operations over several shards, step by step: all of it or nothing, whoever dies in between.

Nothing is remembered here. Each step has an id that follows from the operation's (`parts.step_id`),
so when the router dies between two of them the same op_id again takes the steps that were taken
without a second effect, gets the same answers and goes on. Until then a reader sees what the steps
so far have done; each function says which states these can be.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.parts import (
    NOTHING_LEFT,
    Part,
    column_of,
    hold_id_of,
    joined,
    on,
    order_part,
    step_id,
    step_of,
    undone,
    whole,
)
from actors.shards import Shards, every
from engine import limits
from engine.operations import Answer, Flag, Kind, Request
from engine.status import Status
from engine.views import Hold, HoldState

GRACE_MS: Final = 10_000  # steps on a pending hold first make sure that it lives so long
_OK: Final = int(Status.OK)
_NOBODYS: Final = Answer(b"\0", bytes(8), 0, 0, 0)
# How a shard says that it has, or never had, nothing of a hold that a move could be about.
_NEVER_HERE: Final = frozenset((Status.UNKNOWN_HOLD, Status.NOT_IN_HOLD))
_NOT_HERE: Final = NOTHING_LEFT | _NEVER_HERE
# How a part of a hold can be that units join: pending, or released, which it then is no longer.
_MAY_JOIN: Final = frozenset((Status.OK, Status.HOLD_RELEASED))

Told = tuple[int, Answer]
"""The shard of the first line, and the answer."""


# --- reserve --------------------------------------------------------------------------------------


async def reserve(shards: Shards, request: Request, owners: NDArray[np.int64]) -> Told:
    """Hold the lines of one order on each of their shards (`owners`, a line), or nowhere.

    Between steps it is held on some shards only; that runs out, if nobody comes back. So an order
    over several shards that is to be committed at once is first held, and then committed.
    """
    flags = int(column_of(request, "flags")[0])
    numbers = list(dict.fromkeys(owners.tolist()))
    commits = flags & Flag.COMMIT_NOW if len(numbers) > 1 else 0
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

    When a part refuses, those that were committed are cancelled, and the refusals are told.
    """
    held = {part.shard: place for place, part in enumerate(parts) if _holds(answers[place])}
    commit = step_of(
        request, "commit", kind=Kind.COMMIT, flags=Flag.RE_RESERVE, **on(request.op_id)
    )
    told = await shards.submit_each(dict.fromkeys(held, commit))
    refused = {held[shard]: answer.status[0] for shard, answer in told.items() if answer.status[0]}
    if refused:
        cancel = step_of(request, "cancel", kind=Kind.CANCEL, **on(request.op_id))
        done = [shard for shard, place in held.items() if place not in refused]
        await shards.submit_each(dict.fromkeys(done, cancel))
    return refused


async def _supersede(
    shards: Shards, request: Request, parts: Sequence[Part], plain: Sequence[Part]
) -> tuple[list[Answer], dict[int, int]]:
    """Hold an order in place of an older hold of the same owner; `plain` are its parts without that.

    A shard frees the older hold's part in the step in which it holds the new one's, so a part that
    needs this goes last: when it refuses, all of the older hold still stands. Only with several such
    parts can the older one lose some of them. Elsewhere the older hold is released at the end.
    """
    older_id = hold_id_of(request)
    older = await shards.holds(older_id, shards.asked_for(0))
    if any(map(_is_order, older.values())):
        return [_unasked(part, Status.HOLD_NOT_PENDING) for part in parts], {}
    pending = {shard: hold for shard, hold in older.items() if hold.state == HoldState.PENDING}
    last = [place for place, part in enumerate(parts) if part.shard in pending]
    if len(last) > 1:
        last = [
            place
            for place in last
            if await _needs(shards, plain[place], pending[parts[place].shard])
        ]
    first = [place for place in range(len(parts)) if place not in last]
    answers = [_unasked(part, Status.LINKED_LINE_REFUSED) for part in parts]
    told = await shards.submit_parts([plain[place] for place in first])
    for place, answer in zip(first, told, strict=True):
        answers[place] = answer
    for place in last:
        if any(_is_refused(plain[each], answers[each]) for each in first):
            return answers, {}
        answers[place] = await shards.submit(parts[place].shard, parts[place].request)
        first.append(place)
    if any(map(_is_refused, plain, answers)) or not any(map(_holds, answers)):
        return answers, {}  # less was allowed, but nothing is no better than the older hold
    release = step_of(request, "supersede", kind=Kind.RELEASE, **on(older_id))
    gone = await shards.submit_each(dict.fromkeys(pending, release))
    is_committed = any(told.status[0] == Status.HOLD_NOT_PENDING for told in gone.values())
    # Committed meanwhile: then the older one stays, and not this one.
    return answers, {0: Status.HOLD_NOT_PENDING} if is_committed else {}


def _is_order(hold: Hold) -> bool:
    """Whether a hold is or was committed, wholly or in part."""
    was = (HoldState.COMMITTED, HoldState.FULFILLED, HoldState.CANCELLED)
    return hold.state in was or any(line.committed or line.fulfilled for line in hold.lines)


async def _needs(shards: Shards, part: Part, older: Hold) -> bool:
    """Whether a part of an order can only be held with the stock of an older hold, and with it can.

    What cannot be held either way had better say so before anything is freed.
    """
    wanted: Counter[tuple[int, int]] = Counter()
    columns = (column_of(part.request, name).tolist() for name in ("sku", "location", "quantity"))
    for sku, location, quantity in zip(*columns, strict=True):
        wanted[sku, location] += quantity
    cells = await shards.link(part.shard).cells(list(wanted))
    missing = Counter(
        {
            name: units - (cell.available if cell else 0)
            for cell, (name, units) in zip(cells, wanted.items(), strict=True)
        }
    )
    with_older = missing.copy()
    for line in older.lines:
        with_older[line.sku, line.location] -= line.pending
    return max(missing.values()) > 0 >= max(with_older.values())


def _unasked(part: Part, status: Status) -> Answer:
    """The answer of a part that no shard was asked for: a status, and that of its neighbours."""
    lines = part.request.lines
    told = bytes((status, *[Status.LINKED_LINE_REFUSED] * (lines - 1)))
    return Answer(told, bytes(8 * lines), 0, 0, 0)


# --- all of a pending hold ------------------------------------------------------------------------


async def commit(shards: Shards, request: Request, holders: Mapping[int, Hold]) -> Told:
    """Commit all that is pending of a hold on each of its shards, or nowhere.

    First each part gets time enough, which refuses what is over; then each is committed. If one is
    given up under our hands even so, those that were committed are cancelled. Between steps a
    reader sees a hold of which some shards' parts are committed and the others pending.
    """
    flags = int(column_of(request, "flags")[0])
    times = await _make_time(shards, request, holders, GRACE_MS)
    parts, told = _that_matter(request, holders, times)
    may_have_expired = {Status.HOLD_EXPIRED} if flags & Flag.RE_RESERVE else set()
    if any(answer.status[0] not in {_OK, *may_have_expired} for answer in told):
        return joined(request, parts, told)
    answers = await shards.submit_parts(parts)
    if any(answer.status[0] for answer in answers):
        done = [part.shard for part, it in zip(parts, answers, strict=True) if not it.status[0]]
        after = await shards.holds(hold_id_of(request), done)
        await shards.submit_each(
            {shard: _cancel(request, holders[shard], after[shard]) for shard in done}
        )
    return joined(request, parts, answers)


async def extend(shards: Shards, request: Request, holders: Mapping[int, Hold]) -> Told:
    """Give all parts of a hold more time. When one is over, the others may have got it."""
    ttl_ms = int(column_of(request, "value")[0])
    answers = await _make_time(shards, request, holders, ttl_ms)
    return joined(request, *_that_matter(request, holders, answers))


async def _make_time(
    shards: Shards, request: Request, holders: Mapping[int, Hold], ttl_ms: int
) -> dict[int, Answer]:
    step = step_of(request, "extend", kind=Kind.EXTEND, value=ttl_ms, **on(hold_id_of(request)))
    return await shards.submit_each(dict.fromkeys(holders, step))


def _that_matter(
    request: Request, holders: Mapping[int, Hold], answers: Mapping[int, Answer]
) -> tuple[list[Part], list[Answer]]:
    """The parts of a hold that a call on all that is pending is about, with their answers.

    Parts that are committed already do not count, nor do those whose lines were moved to another
    shard; if no other is left, all do.
    """
    over = {shard for shard, answer in answers.items() if answer.status[0]}
    if len(over) < len(holders):
        live = {line.sku for shard in set(holders) - over for line in holders[shard].lines}
        holders = {
            shard: hold
            for shard, hold in holders.items()
            if shard not in over or not _has_no_say(hold, answers[shard].status[0], live)
        }
    return [whole(request, shard) for shard in holders], [answers[shard] for shard in holders]


def _has_no_say(hold: Hold, status: int, live: set[int]) -> bool:
    """Whether a part of a hold is over, and the rest of the hold is none the worse.

    A part that was moved away is released; then its SKUs are in parts that live (`live`).
    """
    was_moved = status == Status.HOLD_RELEASED and {line.sku for line in hold.lines} <= live
    return was_moved or status == Status.HOLD_NOT_PENDING


def _cancel(request: Request, before: Hold, after: Hold) -> Request:
    """Take back what a commit of a part has committed, as far as it is known what that was.

    When it was committed `before` already, the router died after the commit, and all that is
    committed of the part is taken back.
    """
    gained = _committed(after) - _committed(before) or Counter({(0, 0): 0})
    skus, locations = zip(*gained, strict=True)
    return step_of(
        request,
        "cancel",
        len(gained),
        kind=Kind.CANCEL,
        sku=skus,
        location=locations,
        quantity=list(gained.values()),
        **on(hold_id_of(request)),
    )


def _committed(hold: Hold) -> Counter[tuple[int, int]]:
    """How much is committed of each (SKU, location) of a hold."""
    units: Counter[tuple[int, int]] = Counter()
    for line in hold.lines:
        units[line.sku, line.location] += line.committed
    return units


# --- moves ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Move:
    """Units of a hold that go from a cell of one shard to a cell of another.

    What waits for them where they go is a hold of its own, whose id follows from the operation's: so
    the hold that moves is never in two places, and a repetition finds how many units they were.
    """

    sku: int
    leaves: int  # locations
    to: int
    units: int  # 0: they have left and joined, so every step is remembered by its shard
    source: int  # shards
    target: int
    is_begun: bool  # seen to be waited for already
    refusal: Answer | None  # what is known to be in the way before anything is done

    def name(self, step: str) -> str:
        """What a step is called, the same whenever it is taken."""
        return f"{step} {self.sku} {self.leaves}"


async def move(shards: Shards, request: Request, holders: Mapping[int, Hold]) -> Told:
    """Move lines of a pending hold to cells of other shards too.

    First each part gets time enough, which refuses what is over. Then as many units as leave are
    held where they go, under another id. Then they are given up where they were, and this one step
    decides: what was committed or given up before it stays so, and the move is refused; what comes
    after it finds nothing there. At last the units join the hold where they went.
    """
    times = await _make_time(shards, request, holders, GRACE_MS)
    parts, told = _that_matter(request, holders, times)
    refusals = [answer.status[0] for answer in told if answer.status[0]]
    if refusals:
        refused, none = bytes(refusals[:1] * request.lines), bytes(8 * request.lines)
        return parts[0].shard, replace(told[0], status=refused, available=none)
    if not column_of(request, "sku")[0]:
        return await _move_all(shards, request, holders, times)
    answers = await every(
        _move_line(shards, request, place, holders, times) for place in range(request.lines)
    )
    columns = (column_of(request, name)[0] for name in ("sku", "location"))
    return shards.map.shard_of(*map(int, columns)), replace(
        answers[0],
        status=b"".join(answer.status for answer in answers),
        available=b"".join(answer.available for answer in answers),
    )


def _ttl_ms(holders: Mapping[int, Hold], times: Mapping[int, Answer]) -> int:
    """How long a hold has to live, rounded up; the grace at least."""
    left_ns = min(
        holders[shard].deadline_ns - answer.now_ns
        for shard, answer in times.items()
        if not answer.status[0]
    )
    return min(max(-(-left_ns // limits.NS_PER_MS), GRACE_MS), limits.MAX_TTL_MS)


async def _move_line(
    shards: Shards,
    request: Request,
    place: int,
    holders: Mapping[int, Hold],
    times: Mapping[int, Answer],
) -> Answer:
    """Move what one line of a request names: a SKU, where it leaves, and a quantity or all of it."""
    names = ("sku", "location", "quantity", "value")
    sku, to, quantity, leaves = (int(column_of(request, name)[place]) for name in names)
    source, target = shards.map.shard_of(sku, leaves), shards.map.shard_of(sku, to)
    if source == target:
        return await _within(shards, request, target, sku, to, quantity, leaves)
    pending = _pending(holders)[source, sku, leaves]
    each = await _planned(shards, request, to, (source, sku, leaves), pending, times)
    if each is None or (quantity > pending and not each.is_begun):
        # The shard that has too little says so, asked to move it to where it is.
        return await _within(shards, request, source, sku, leaves, quantity or 1, leaves)
    each = replace(each, units=quantity or each.units)
    ttl_ms = _ttl_ms(holders, times)
    arrived = await _arrive(shards, request, each, ttl_ms)
    if arrived.status[0]:
        return arrived
    (answer,) = await _go(shards, request, [each], ttl_ms, f"leave {sku} {leaves}")
    return answer


async def _move_all(
    shards: Shards, request: Request, holders: Mapping[int, Hold], times: Mapping[int, Answer]
) -> Told:
    """Move all that is pending, or nothing.

    What was on the destination's shards before may have moved although the rest is refused, where
    these are several, or the rest was given up or committed under our hands.
    """
    to = int(column_of(request, "location")[0])
    ttl_ms = _ttl_ms(holders, times)
    pending = _pending(holders)
    found = await every(
        _planned(shards, request, to, name, units, times)
        for name, units in pending.items()
        if shards.map.shard_of(name[1], to) != name[0]
    )
    across = [each for each in found if each is not None]
    arrived = await every(_arrive(shards, request, each, ttl_ms) for each in across)
    refusals = [place for place, answer in enumerate(arrived) if answer.status[0]]
    if refusals:
        held = [each for each, it in zip(across, arrived, strict=True) if not it.status[0]]
        await every(_give_back(shards, request, each) for each in held)
        return across[refusals[0]].target, arrived[refusals[0]]
    # Also where nothing is yet: then a repetition does not take what has come since for it.
    is_split = len(shards.map.owners(to)) > 1
    within = list(
        dict.fromkeys((shards.map.shard_of(sku, to), sku * is_split) for _, sku, _ in pending)
    )
    moved = await every(_within(shards, request, shard, sku, to, 0, 0) for shard, sku in within)
    is_any = bool(across) or any(not answer.status[0] for answer in moved)
    told = [
        (shard, answer)
        for (shard, _), answer in zip(within, moved, strict=True)
        if answer.status[0] not in (_NOT_HERE if is_any else _NEVER_HERE)
    ]
    refused = [each for each in told if each[1].status[0]]
    if refused:
        await every(_give_back(shards, request, each) for each in across)
        return refused[0]
    if not is_any:  # what was pending is not any more
        return within[0][0], replace(_NOBODYS, status=bytes((Status.HOLD_NOT_PENDING,)))
    sources = {each.source: [it for it in across if it.source == each.source] for each in across}
    gone = await every(
        _go(shards, request, moves, ttl_ms, f"leave {source}") for source, moves in sources.items()
    )
    done = [
        (each.target, answer)
        for moves, answers in zip(sources.values(), gone, strict=True)
        for each, answer in zip(moves, answers, strict=True)
    ]
    refused = [each for each in done if each[1].status[0]]
    # Those that did not leave because their neighbours could not say nothing of why.
    why = [each for each in refused if each[1].status[0] != Status.LINKED_LINE_REFUSED]
    return [*why, *refused, *done, *told][0]


def _pending(holders: Mapping[int, Hold]) -> Counter[tuple[int, int, int]]:
    """How much is pending of each (shard, SKU, location) that a hold has lines of."""
    units: Counter[tuple[int, int, int]] = Counter()
    for shard, hold in holders.items():
        for line in hold.lines:
            units[shard, line.sku, line.location] += line.pending
    return units


async def _planned(
    shards: Shards,
    request: Request,
    to: int,
    cell: tuple[int, int, int],
    pending: int,
    times: Mapping[int, Answer],
) -> _Move | None:
    """The way of all that is, or was, pending of a (shard, SKU, location); None: nothing was."""
    source, sku, leaves = cell
    target = shards.map.shard_of(sku, to)
    waiting_id = step_id(request.op_id, f"arrive {sku} {leaves}")
    waiting = await shards.link(target).hold(waiting_id, sure=True)
    refusal = None
    if waiting is None:
        if not pending:
            return None
        if target in times and times[target].status[0] not in _MAY_JOIN:
            refusal = times[target]
    else:
        pending = sum(line.pending for line in waiting.lines)
        if waiting.state == HoldState.EXPIRED:
            refusal = replace(_NOBODYS, status=bytes((Status.HOLD_EXPIRED,)))
    return _Move(sku, leaves, to, pending, source, target, waiting is not None, refusal)


# Steps of moves. What a step is of is in its id, so that it is the same when it is taken again.


async def _arrive(shards: Shards, request: Request, each: _Move, ttl_ms: int) -> Answer:
    """Hold it where it goes, under another id."""
    if each.refusal is not None:
        return each.refusal
    step = step_of(
        request,
        each.name("arrive"),
        kind=Kind.RESERVE,
        sku=each.sku,
        location=each.to,
        quantity=each.units,
        value=ttl_ms,
    )
    return await shards.submit(each.target, step)


async def _go(
    shards: Shards, request: Request, moves: Sequence[_Move], ttl_ms: int, name: str
) -> list[Answer]:
    """Give up where they were, all or none, units that one shard has; they join where they went.

    Those that had begun come first: so the answer to the step, when it is remembered, is theirs.
    """
    order = sorted(moves, key=lambda each: not each.is_begun)
    step = step_of(
        request,
        name,
        len(order),
        kind=Kind.RELEASE,
        flags=[Flag.LINKED] * (len(order) - 1) + [0],
        sku=[each.sku for each in order],
        location=[each.leaves for each in order],
        quantity=[each.units for each in order],
        **on(hold_id_of(request)),
    )
    left = (await shards.submit(order[0].source, step)).status
    left = left.ljust(len(order), bytes((Status.HOLD_NOT_PENDING,)))
    told: dict[_Move, Answer] = {}
    joining: dict[int, list[_Move]] = {}
    for each, status in zip(order, left, strict=True):
        if status:
            back = await _give_back(shards, request, each)
            told[each] = replace(back, status=bytes((status,)))
        else:
            joining.setdefault(each.target, []).append(each)
    for target, arrived in joining.items():
        told |= await _join(shards, request, target, arrived, ttl_ms, name)
    return [told[each] for each in moves]


async def _join(
    shards: Shards, request: Request, target: int, moves: Sequence[_Move], ttl_ms: int, name: str
) -> dict[_Move, Answer]:
    """Let units that have left join the hold where they went, in one block; or put them back."""
    columns: dict[str, list[Any]] = {"kind": [], "sku": [], "location": [], "quantity": []}
    holds: list[bytes] = []
    for each in moves:
        holds += step_id(request.op_id, each.name("arrive")), hold_id_of(request)
        columns["kind"] += Kind.RELEASE, Kind.ADD_LINE
        columns["sku"] += 0, each.sku
        columns["location"] += 0, each.to
        columns["quantity"] += 0, each.units
    pairs = [on(hold_id) for hold_id in holds]
    named = {half: np.array([pair[half] for pair in pairs]) for half in pairs[0]}
    step = step_of(request, f"join {target} {name}", len(holds), value=ttl_ms, **columns, **named)
    answer = await shards.submit(target, step)
    told: dict[_Move, Answer] = {}
    for place, each in enumerate(moves):
        status = answer.status[2 * place + 1 :][:1]
        told[each] = replace(
            answer, status=status, available=answer.available[8 * (2 * place + 1) :][:8]
        )
        if any(status):
            await _put_back(shards, request, each, ttl_ms)
    return told


async def _put_back(shards: Shards, request: Request, each: _Move, ttl_ms: int) -> None:
    """Hold it again where it was: the hold came to an end under our hands where it went."""
    step = step_of(
        request,
        each.name("put back"),
        kind=Kind.ADD_LINE,
        sku=each.sku,
        location=each.leaves,
        quantity=each.units,
        value=ttl_ms,
        **on(hold_id_of(request)),
    )
    await shards.submit(each.source, step)


async def _give_back(shards: Shards, request: Request, each: _Move) -> Answer:
    """Give up what was held where it should have gone."""
    waiting = on(step_id(request.op_id, each.name("arrive")))
    step = step_of(request, each.name("give back"), kind=Kind.RELEASE, **waiting)
    return await shards.submit(each.target, step)


async def _within(
    shards: Shards, request: Request, shard: int, sku: int, to: int, quantity: int, leaves: int
) -> Answer:
    """Move lines in one step, by the shard that has both ends."""
    step = step_of(
        request,
        f"within {sku} {leaves}",
        kind=Kind.MOVE,
        sku=sku,
        location=to,
        quantity=quantity,
        value=leaves,
        **on(hold_id_of(request)),
    )
    return await shards.submit(shard, step)
