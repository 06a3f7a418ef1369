"""Units that joined a part of a hold after a commit of the whole had committed it, and ran out there.

When the router of a commit has died, such units are pending until their own deadline, in a part that the
commit has done already; a repetition that comes after it finds nothing pending. What the shards know
tells it all the same: that units arrived (`actors.transits`), and when; and each line of them is one
more line of the part, behind those that the commit found there, of which nothing is left.
"""

from collections.abc import Collection, Mapping

from actors.parts import hold_id_of, step_of
from actors.ports import Sight
from actors.shards import Shards, every
from actors.transits import arrive, place_id
from engine.operations import Request
from engine.views import Hold, HoldLine, HoldState


async def have_run_out(
    shards: Shards, request: Request, sights: Mapping[int, Sight], done: Collection[int]
) -> bool:
    """Whether units have run out that came to the shards `done` after a commit was done there.

    Asked when nothing is pending any more. If others gave units up that had got more time meanwhile,
    that is taken for it where it is seen after that time, or where several lots came one by one.
    """
    parts = [(shard, sights[shard]) for shard in sorted(done)]
    return any(await every(_have_run_out(shards, request, *part) for part in parts))


async def _have_run_out(shards: Shards, request: Request, shard: int, sight: Sight) -> bool:
    hold = sight.hold
    if hold is None or not any(map(_is_empty, hold.lines)):
        return False
    places = [
        (number, each.hold)
        for number, each in enumerate(sight.waiting)
        if each.hold is not None and each.hold.state == HoldState.RELEASED
    ]
    if not places:
        return False
    late = await _that_came_after(shards, request, shard, places)
    lines = sum(len(waits.lines) for _, waits in late)
    if not lines or not any(map(_is_empty, hold.lines[-lines:])):
        return False
    # What is gone before its time was given up or has left. The answer says when that was seen first.
    # What came alone ends with the part, which may have got more time since.
    deadlines_ns = [waits.deadline_ns for _, waits in late]
    if len(late) == 1:
        deadlines_ns = [hold.deadline_ns]
    steps = [step_of(request, f"late {number}") for number, _ in late]
    seen = await every(shards.submit(shard, step) for step in steps)
    return any(
        answer.now_ns > deadline_ns for answer, deadline_ns in zip(seen, deadlines_ns, strict=True)
    )


async def _that_came_after(
    shards: Shards, request: Request, shard: int, places: list[tuple[int, Hold]]
) -> list[tuple[int, Hold]]:
    """The places whose units joined a shard's part after the commit, or in the same block.

    The steps were taken, so the shard says again what it answered then.
    """
    hold_id = hold_id_of(request)
    came = [
        arrive(shards, shard, place_id(hold_id, number), hold_id, waits, have_left=True)
        for number, waits in places
    ]
    commit, *arrivals = await every([shards.submit(shard, request), *came])
    return [
        place
        for place, answer in zip(places, arrivals, strict=True)
        if len(answer.status) > 1  # of one line: the stock was given back
        and not any(answer.status)
        and (answer.epoch, answer.seq) >= (commit.epoch, commit.seq)
    ]


def _is_empty(line: HoldLine) -> bool:
    return not (line.pending or line.committed or line.fulfilled)
