"""Ask shards whether lines could be done, before any of them is.

What is asked is a request whose last line cannot be done, with all others linked to it: so nothing is
done, and when nothing stands in the way of the others they are refused for its sake alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from actors.parts import Part, joined, step_of
from actors.shards import Shards, every
from engine.operations import Answer, Flag, Kind, Request
from engine.status import Status

Parts = list[tuple[Part, Answer]]

_LINKED_REFUSED: Final = int(Status.LINKED_LINE_REFUSED)


async def objections(shards: Shards, parts: Sequence[tuple[Part, Request]]) -> Parts:
    """Those of the parts that could not be done, with their answers; each asks by a request.

    All must be done or none, so the answers are those of all lines but the last.
    """
    answers = await every(shards.submit(part.shard, request) for part, request in parts)
    told = [(part, answer) for (part, _), answer in zip(parts, answers, strict=True)]
    return [each for each in told if set(each[1].status[:-1]) != {_LINKED_REFUSED}]


def asking(request: Request, step: str, part: Part, kind: Kind) -> Request:
    """The request by which a step asks for a part: one more line, of a quantity of 0, spoils it.

    `part` has flags and quantities, and `kind` is one that may stand behind its last line.
    """
    columns = {name: np.append(each, each[-1:]) for name, each in part.request.columns.items()}
    columns["kind"][-1] = kind
    columns["quantity"][-1] = 0
    columns["flags"][:-1] &= np.uint8(0xFF ^ Flag.RELEASE_REST)  # only the last line may say it
    columns["flags"][:-1] |= np.uint8(Flag.LINKED)
    return step_of(request, step, len(columns["kind"]), **columns)


def refusal(request: Request, refused: Parts, places: NDArray[np.int64]) -> tuple[Part, Answer]:
    """The answer of lines that stand or fall together, when some of them were refused."""
    told_parts, answers = zip(*refused, strict=True)
    _, told = joined(request, told_parts, answers)
    status = np.frombuffer(told.status, np.uint8)[places]
    status = np.where(status, status, _LINKED_REFUSED).astype(np.uint8)
    available = np.frombuffer(told.available, "<i8")
    told = replace(told, status=status.tobytes())
    if len(available):
        told = replace(told, available=available[places].tobytes())
    return Part(refused[0][0].shard, request, places, np.arange(len(places))), told
