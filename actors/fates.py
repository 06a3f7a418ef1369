"""Whether what commits of a hold have committed stays: decided once, at one shard, whoever asks.

Two commits of all of a hold may be under way, by two gateways, each of which finds some parts committed
by the other. So a commit that counts on another's has this *fate* decided before it says OK, and one
that is refused has it decided before it takes anything back. The first of them wins, and the other does
as was decided: the units stay, and both have committed them, or both are refused.

Fates of one hold are numbered. A commit is of the first that was not decided when it began: what it
commits can be counted on by no earlier one. When units are to stay the next fate is open; that they are
taken back is the last fate of a hold, so nobody ever counts on what others may still take back.
A fate is a request that is refused and remembered by the shard, like any other; its digest says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from actors.parts import hold_id_of, step_id
from actors.ports import Sight
from actors.shards import Shards
from engine.operations import Request
from engine.status import Status

_STAYS: Final = int(Status.OK)


@dataclass(frozen=True, slots=True)
class Fate:
    """One fate of a hold."""

    hold_id: bytes
    number: int
    is_kept: bool = False  # whether that is known; no: perhaps

    async def decide(self, shards: Shards, status: int) -> int:
        """Have units stay (OK), or be taken back since a commit is refused; what was decided."""
        note = _note(_fate_id(self.hold_id, self.number), status)
        return await _noted(shards, self.hold_id, note)


def asked_by(request: Request) -> list[bytes]:
    """Further op_ids whose digests a commit must know when it begins."""
    return [_choice_id(request), _fate_id(hold_id_of(request), 0)]


async def fate_of(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Fate:
    """The fate that a commit of a hold shares; `sights` have its own digest, then those of `asked_by`.

    It is the first one, unless that is decided when the commit begins: then the commit notes which.
    So the usual commit notes nothing, and a repetition finds the same.
    """
    hold_id = hold_id_of(request)
    _, chosen, first, *_ = sights[_keeper(shards, hold_id)].digests
    if chosen is not None:
        return Fate(hold_id, _number(chosen))
    if first is None or await _has_begun(shards, request):
        return Fate(hold_id, 0, is_kept=first is not None and _number(first) == _STAYS)
    link = shards.link(_keeper(shards, hold_id))
    for number in count():
        sight = await link.sight(hold_id, [_fate_id(hold_id, number)])
        digest = sight.digests[0]
        if digest is None or _number(digest) != _STAYS:
            choice = _note(_choice_id(request), number)
            return Fate(hold_id, await _noted(shards, hold_id, choice))
    raise AssertionError("numbers do not end")


async def _has_begun(shards: Shards, request: Request) -> bool:
    """Whether a commit has been tried before; looked for after its first fate was seen decided."""
    sights = await shards.sights(hold_id_of(request), shards.asked_for(0), [request.op_id])
    return any(sight.digests[0] is not None for sight in sights.values())


def _keeper(shards: Shards, hold_id: bytes) -> int:
    """The shard that decides about a hold, wherever the hold may go."""
    asked = shards.asked_for(0)
    return asked[hold_id[-1] % len(asked)]


def _fate_id(hold_id: bytes, number: int) -> bytes:
    return step_id(hold_id, f"fate {number}")


def _choice_id(request: Request) -> bytes:
    return step_id(request.op_id, "fate")


def _note(op_id: bytes, number: int) -> Request:
    """A request that changes nothing, by which a shard remembers a number."""
    note = Request.of(op_id, 1)
    note.digest = number.to_bytes(8, "little")
    return note


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")


async def _noted(shards: Shards, hold_id: bytes, note: Request) -> int:
    """Have a number noted where the hold's fates are; the number that was noted first."""
    keeper = _keeper(shards, hold_id)
    answer = await shards.submit(keeper, note)
    if answer.status[0] != Status.OP_ID_REUSED:
        return _number(note.digest)
    sight = await shards.link(keeper).sight(hold_id, [note.op_id])
    digest = sight.digests[0]
    assert digest is not None, "a shard that refuses an id knows whose it is"
    return _number(digest)
