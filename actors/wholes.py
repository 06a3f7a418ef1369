"""What calls on all of a hold share, whose parts may be on several shards: time for them, and what they say."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from actors import given_up
from actors.parts import Part, hold_id_of, on, step_of, whole
from actors.ports import Sight
from actors.shards import Shards
from engine.operations import Answer, Kind, Request
from engine.status import Status
from engine.views import Hold, HoldLine

GRACE_MS: Final = 10_000  # steps on a pending hold first make sure that it lives so long
_NOBODYS: Final = Answer(b"\0", bytes(8), 0, 0, 0)


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
    timed: Collection[int] = (),
) -> tuple[list[Part], list[Answer]]:
    """The parts of a hold that a call on all that is pending is about, with their answers.

    Those that were given up by lines, or moved to another shard, do not count, unless they are marked
    (`actors.given_up`), nor do those that are committed already, unless no other is left. What the
    call has done itself is on the shards `done`; those `timed` had something pending when it saw them
    first, and gave it time: given up by lines since, they count.
    """
    said = {shard: answers[shard].status[0] for shard in holders}
    silent = {shard for shard, status in said.items() if status == Status.HOLD_RELEASED}
    if silent:
        silent -= await given_up.marked(shards, hold_id_of(request), silent)
    late = silent & {*timed}
    if late:
        # What was moved away has no SKU that is not in another part.
        elsewhere = {each.sku for at in {*holders} - silent for each in holders[at].lines}
        silent -= {at for at in late if not {each.sku for each in holders[at].lines} <= elsewhere}
    if len(silent) == len(holders):
        silent = set()
    if any(not status for status in said.values()) or done:
        silent |= {at for at, status in said.items() if status == Status.HOLD_NOT_PENDING}
    matter = [shard for shard in holders if shard not in silent]
    return [whole(request, shard) for shard in matter], [answers[shard] for shard in matter]


def refused_with(request: Request, status: Status) -> Answer:
    """The answer of a call that no shard refused, with one status for all lines."""
    lines = request.lines
    return replace(_NOBODYS, status=bytes((status,)) * lines, available=bytes(8 * lines))


def holders_of(sights: Mapping[int, Sight]) -> dict[int, Hold]:
    """The shards that have a part of a hold, with it."""
    return {shard: sight.hold for shard, sight in sights.items() if sight.hold is not None}


def lines_of(holders: Mapping[int, Hold]) -> dict[int, list[HoldLine]]:
    """The lines of a hold's parts, to tell whether they have changed."""
    return {shard: hold.lines for shard, hold in holders.items()}
