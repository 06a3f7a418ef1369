"""Which parts of a hold were given up because all of it was to be, and not by lines.

A part of which nothing is left says nothing of the others if its lines were given up, or have moved
away: then the rest is all of the hold. It says that the hold is over when all of it was being given up,
part by part, by whom another order is to take its place or by whom nothing of it is wanted any more.
So whoever does that *marks* each part first, on its own shard, and a part that he gives back is marked
as such by the very step that does it.

The marks of a part are numbered without gaps, and their ids follow from the hold's. A mark is a note
(`actors.notes`), whose number tells the operation apart.
"""

from collections.abc import Collection
from itertools import count
from typing import Final

from actors.notes import noted_at, number_of
from actors.parts import step_id
from actors.shards import Shards, every

_AT_ONCE: Final = 4  # marks that are asked about with one question


async def mark(shards: Shards, hold_id: bytes, op_id: bytes, parts: Collection[int]) -> None:
    """Have the shards of some parts note that these are about to be given up by an operation."""
    await every(_number(shards, hold_id, op_id, shard) for shard in parts)


async def back_id(shards: Shards, hold_id: bytes, op_id: bytes, shard: int) -> bytes:
    """The id of the step that gives a part back which an operation has marked."""
    return _back_id(hold_id, await _number(shards, hold_id, op_id, shard))


async def marked(shards: Shards, hold_id: bytes, asked: Collection[int]) -> set[int]:
    """The shards whose parts are marked, and were not given back since."""
    found = await every(_is_marked(shards, hold_id, shard) for shard in asked)
    return {shard for shard, is_marked in zip(asked, found, strict=True) if is_marked}


async def _number(shards: Shards, hold_id: bytes, op_id: bytes, shard: int) -> int:
    """The number of an operation's mark, which is made if there is none."""
    own = number_of(step_id(op_id, "gives up")[:8])
    for number in count():
        if await noted_at(shards, shard, hold_id, _mark_id(hold_id, number), own) == own:
            return number
    raise AssertionError("numbers do not end")


async def _is_marked(shards: Shards, hold_id: bytes, shard: int) -> bool:
    for first in count(0, _AT_ONCE):
        numbers = range(first, first + _AT_ONCE)
        marks = [_mark_id(hold_id, number) for number in numbers]
        backs = [_back_id(hold_id, number) for number in numbers]
        sight = await shards.link(shard).sight(hold_id, [*marks, *backs])
        are_marked = [digest is not None for digest in sight.digests[:_AT_ONCE]]
        are_back = sight.done[_AT_ONCE:]
        if any(mark and not back for mark, back in zip(are_marked, are_back, strict=True)):
            return True
        if not all(are_marked):
            return False
    raise AssertionError("numbers do not end")


def _mark_id(hold_id: bytes, number: int) -> bytes:
    return step_id(hold_id, f"given up {number}")


def _back_id(hold_id: bytes, number: int) -> bytes:
    return step_id(hold_id, f"given back {number}")
