"""Which parts of a hold were given up because all of it was to be, and not by lines.

A part of which nothing is left says nothing of the others if its lines were given up, or have moved
away: then the rest is all of the hold. It says that the hold is over when all of it was being given up,
part by part, by whom another order is to take its place or by whom nothing of it is wanted any more.
So whoever does that *marks* each part first, on its own shard. A mark names the steps that follow it,
and it counts when one of them was done, at least in part, until the part is given back.

The marks of a part are numbered without gaps, and their ids follow from the hold's. A mark is two notes
(`actors.notes`), the halves of the id by which its steps are known.
"""

from collections.abc import Collection, Mapping
from itertools import count
from typing import Final

from actors.notes import noted_at, number_of
from actors.parts import step_id
from actors.shards import Shards, every
from actors.transits import ROUNDS
from engine.operations import Request, id_to_pair, pair_to_id
from engine.status import Status

_AT_ONCE: Final = 4  # marks that are asked about with one question


async def mark(shards: Shards, hold_id: bytes, op_id: bytes, parts: Collection[int]) -> None:
    """Have the shards of some parts note that these are about to be given up, by the steps of `op_id`."""
    await every(_mark(shards, hold_id, op_id, shard) for shard in parts)


def again_id(op_id: bytes, number: int) -> bytes:
    """The id of a further step that gives up what was found later; of the first one it is `op_id`."""
    return step_id(op_id, f"again {number}")


def back_id(op_id: bytes) -> bytes:
    """The id of the step that gives a part back, whole."""
    return step_id(op_id, "given back")


async def marked(shards: Shards, hold_id: bytes, asked: Collection[int]) -> set[int]:
    """The shards whose parts were given up after they were marked, and not given back since."""
    found = await every(_is_marked(shards, hold_id, shard) for shard in asked)
    return {shard for shard, is_marked in zip(asked, found, strict=True) if is_marked}


async def _mark(shards: Shards, hold_id: bytes, op_id: bytes, shard: int) -> None:
    halves = list(id_to_pair(op_id))
    for number in count():
        notes = zip(_mark_ids(hold_id, number), halves, strict=True)
        if await every(noted_at(shards, shard, hold_id, *each) for each in notes) == halves:
            return


async def _is_marked(shards: Shards, hold_id: bytes, shard: int) -> bool:
    link = shards.link(shard)
    for first in count(0, _AT_ONCE):
        numbers = range(first, first + _AT_ONCE)
        ids = [each for number in numbers for each in _mark_ids(hold_id, number)]
        noted = (await link.sight(hold_id, ids)).digests
        for high, low in (map(noted.get, _mark_ids(hold_id, number)) for number in numbers):
            if high is None or low is None:
                return False
            op_id = pair_to_id(number_of(high), number_of(low))
            steps = [op_id, *(again_id(op_id, number) for number in range(ROUNDS + 1))]
            sight = await link.sight(hold_id, [*steps, back_id(op_id)])
            if back_id(op_id) not in sight.done:
                taken = {step: sight.digests[step] for step in steps if step in sight.digests}
                if not sight.done.isdisjoint(taken) or await _is_done_in_part(shards, shard, taken):
                    return True
    raise AssertionError("numbers do not end")


async def _is_done_in_part(shards: Shards, shard: int, taken: Mapping[bytes, bytes]) -> bool:
    """Whether any of the steps with these ids and digests was not refused all that it is about.

    Each is answered as it was, whatever is asked with its id and digest.
    """
    asked = [Request.of(step, 1) for step in taken]
    for request in asked:
        request.digest = taken[request.op_id]
    told = await every(shards.submit(shard, request) for request in asked)
    return any(Status.OK in answer.status for answer in told)


def _mark_ids(hold_id: bytes, number: int) -> list[bytes]:
    return [step_id(hold_id, f"given up {number} {half}") for half in (0, 1)]
