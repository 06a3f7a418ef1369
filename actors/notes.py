"""Numbers that shards remember for operations: what was decided once stays, whoever asks again.

A note is a request that changes nothing. It is refused and remembered by the shard like any other, and
its digest is the number. So of two that note different numbers under one id the first one wins.
"""

from collections.abc import Collection, Sequence
from typing import Final

from actors.parts import step_id
from actors.shards import Shards
from engine.operations import Request
from engine.status import Status

_BYTES: Final = 8  # of a digest
_BITS: Final = 8 * _BYTES


def note_of(op_id: bytes, number: int) -> Request:
    """A request that changes nothing, by which a shard remembers a number."""
    note = Request.of(op_id, 1)
    note.digest = number.to_bytes(_BYTES, "little")
    return note


def number_of(digest: bytes) -> int:
    """The number that a shard remembers, by the digest of the note."""
    return int.from_bytes(digest, "little")


def keeper_of(shards: Shards, hold_id: bytes) -> int:
    """The shard that keeps what is decided about a hold, wherever the hold may go."""
    asked = shards.asked_for(0)
    return asked[hold_id[-1] % len(asked)]


async def noted(shards: Shards, hold_id: bytes, op_id: bytes, number: int) -> int:
    """Have a number noted by the keeper of a hold; the one that was noted first."""
    return await noted_at(shards, keeper_of(shards, hold_id), hold_id, op_id, number)


async def noted_at(shards: Shards, shard: int, hold_id: bytes, op_id: bytes, number: int) -> int:
    """Have a number noted by a shard, of a hold; the one that was noted first."""
    link = shards.link(shard)
    answer = await link.submit(note_of(op_id, number))
    if answer.status[0] != Status.OP_ID_REUSED:
        return number
    digests = (await link.sight(hold_id, [op_id])).digests
    assert op_id in digests, "a shard that refuses an id knows whose it is"
    return number_of(digests[op_id])


async def noted_before(shards: Shards, hold_id: bytes, op_id: bytes) -> int | None:
    """The number that the keeper of a hold has noted; None when it has not, or has forgotten it."""
    sight = await shards.link(keeper_of(shards, hold_id)).sight(hold_id, [op_id])
    digest = sight.digests.get(op_id)
    return None if digest is None else number_of(digest)


async def noted_shards(
    shards: Shards, hold_id: bytes, op_id: bytes, chosen: Collection[int], among: Sequence[int]
) -> list[int]:
    """Have it noted which of some shards were chosen; those that were noted first, in order."""
    found: list[int] = []
    for first in range(0, len(among), _BITS):
        some = among[first : first + _BITS]
        number = sum(1 << place for place, shard in enumerate(some) if shard in chosen)
        number = await noted(shards, hold_id, step_id(op_id, f"shards {first}"), number)
        found += [shard for place, shard in enumerate(some) if number >> place & 1]
    return found
