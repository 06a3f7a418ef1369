"""Whether what commits of a hold have committed stays: decided once, at one shard, whoever asks.

Two commits of all of a hold may be under way, by two gateways, each of which finds some parts committed
by the other. So a commit that counts on another's has this *fate* decided before it says OK, and one
that is refused has it decided before it takes anything back. The first of them wins, and the other does
as was decided: the units stay, and both have committed them, or both are refused.

Fates of one hold are numbered. A commit is of the first that was not decided when it began: what it
commits can be counted on by no earlier one. When units are to stay the next fate is open; that they are
taken back is the last fate of a hold, so nobody ever counts on what others may still take back.
A fate is a note (`actors.notes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from actors.notes import keeper_of, noted, noted_before, number_of
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
        return await noted(shards, self.hold_id, _fate_id(self.hold_id, self.number), status)


async def is_taken_back(shards: Shards, hold_id: bytes) -> bool:
    """Whether what was committed of a hold was taken back in the end, since a commit was refused."""
    link = shards.link(keeper_of(shards, hold_id))
    for number in count():
        fate = _fate_id(hold_id, number)
        digest = (await link.sight(hold_id, [fate])).digests.get(fate)
        if digest is None or number_of(digest) != _STAYS:
            return digest is not None
    raise AssertionError("numbers do not end")


def asked_by(request: Request) -> list[bytes]:
    """Further op_ids whose digests a commit must know when it begins."""
    return [_choice_id(request), _fate_id(hold_id_of(request), 0)]


async def fate_of(shards: Shards, request: Request, sights: Mapping[int, Sight]) -> Fate:
    """The fate that a commit of a hold shares; `sights` have the digests of `asked_by`.

    It is the first one, unless that is decided when the commit begins: then the commit notes which.
    So the usual commit notes nothing, and a repetition finds the same.
    """
    hold_id = hold_id_of(request)
    digests = sights[keeper_of(shards, hold_id)].digests
    chosen, first = digests.get(_choice_id(request)), digests.get(_fate_id(hold_id, 0))
    if chosen is not None:
        number = number_of(chosen)
        decided = await noted_before(shards, hold_id, _fate_id(hold_id, number))
        return Fate(hold_id, number, is_kept=decided == _STAYS)
    if first is None or await _has_begun(shards, request):
        return Fate(hold_id, 0, is_kept=first is not None and number_of(first) == _STAYS)
    link = shards.link(keeper_of(shards, hold_id))
    for number in count():
        fate = _fate_id(hold_id, number)
        digest = (await link.sight(hold_id, [fate])).digests.get(fate)
        if digest is None or number_of(digest) != _STAYS:
            return Fate(hold_id, await noted(shards, hold_id, _choice_id(request), number))
    raise AssertionError("numbers do not end")


async def _has_begun(shards: Shards, request: Request) -> bool:
    """Whether a commit has been tried before; looked for after its first fate was seen decided."""
    sights = await shards.sights(hold_id_of(request), shards.asked_for(0), [request.op_id])
    return any(sight.digests for sight in sights.values())


def _fate_id(hold_id: bytes, number: int) -> bytes:
    return step_id(hold_id, f"fate {number}")


def _choice_id(request: Request) -> bytes:
    return step_id(request.op_id, "fate")
