"""What each shard gets of a request, and one answer of their answers: pure functions.

How a request is split. Every part keeps the op_id and the digest of the whole, on whichever shards it
touches: so a shard that has seen the op_id with other content refuses it, and a hold has one id
everywhere. In a batch whose lines name holds or records by their own place in it, a part has all the
lines up to its last, with those of other shards blanked (kind 0, which a machine refuses without a
look at anything; their statuses are dropped here). Blank lines cost journal bytes; who sends much
groups lines by shard, as the SDK does.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine import limits
from engine.operations import (
    Answer,
    Flag,
    Kind,
    Request,
    chain_starts,
    column_of,
    id_to_pair,
    pair_to_id,
)
from engine.status import Status
from engine.views import Endangered

_OK: Final = int(Status.OK)
_NO_SUCH_SKU: Final = 0xFFFFFFFF
# How a part of a hold says that nothing is left of it for a call.
NOTHING_LEFT: Final = frozenset(
    (
        Status.HOLD_EXPIRED,
        Status.HOLD_RELEASED,
        Status.HOLD_NOT_PENDING,
        Status.HOLD_NOT_COMMITTED,
        Status.HOLD_NOT_FULFILLED,
    )
)


Told = tuple[int, Answer]
"""The shard of the first line, and the answer."""


@dataclass(slots=True)
class Part:
    """What one shard gets of a request.

    `places` are its lines' places in the whole request, and `own` those in the part.
    """

    shard: int
    request: Request
    places: NDArray[np.int64]
    own: NDArray[np.int64]


def step_id(op_id: bytes, step: str) -> bytes:
    """The id of one step of an operation, the same whenever it is taken."""
    return hashlib.blake2b(op_id + step.encode(), digest_size=limits.OP_ID_BYTES).digest()


def step_of(request: Request, step: str, lines: int = 1, **columns: Any) -> Request:
    """A request for one step of an operation, with columns as for `Request.of`.

    It has the digest of the whole. So what a step asked for may follow from what was there when it
    was taken: taken again, it gets the answer that it got.
    """
    op_id = step_id(request.op_id, step)
    made = Request.of(op_id, lines, want_available=True, **columns)
    made.digest = request.digest
    return made


def split(request: Request, shards: NDArray[np.int64]) -> list[Part]:
    """The parts of a batch; `shards` below zero: of no shard."""
    if shards[0] >= 0 and (shards == shards[0]).all():
        return [whole(request, int(shards[0]))]
    if np.isin(column_of(request, "kind"), (Kind.RESERVE, Kind.EXPECT)).any():
        return [_blanked_part(request, shards, shard) for shard in in_order(shards)]
    return [_compact_part(request, shards, shard) for shard in in_order(shards)]


def groups_of(request: Request) -> list[list[int]]:
    """The places of lines that stand or fall together."""
    starts = np.flatnonzero(chain_starts(column_of(request, "kind"), column_of(request, "flags")))
    return [list(range(*each)) for each in pairwise([*starts.tolist(), request.lines])]


def in_order(shards: NDArray[np.int64]) -> list[int]:
    """The shards in the order in which they first appear."""
    return [shard for shard in dict.fromkeys(shards.tolist()) if shard >= 0]


def whole(request: Request, shard: int) -> Part:
    """The part that is all of a request."""
    places = np.arange(request.lines)
    return Part(shard, request, places, places)


def _blanked_part(request: Request, shards: NDArray[np.int64], shard: int) -> Part:
    places = np.flatnonzero(shards == shard)
    lines = int(places[-1]) + 1
    foreign = shards[:lines] != shard
    columns = {name: column[:lines].copy() for name, column in request.columns.items()}
    for column in columns.values():
        column[foreign] = 0
    return Part(shard, request.with_lines(lines, columns), places, places)


def _compact_part(request: Request, shards: NDArray[np.int64], shard: int) -> Part:
    places = np.flatnonzero(shards == shard)
    columns = {name: column[places] for name, column in request.columns.items()}
    lines = len(places)
    return Part(shard, request.with_lines(lines, columns), places, np.arange(lines))


def order_part(request: Request, shards: NDArray[np.int64], shard: int, without: int = 0) -> Part:
    """Lines of one order, linked, less some flags. Each part supersedes what the order does."""
    part = _compact_part(request, shards, shard)
    flags = column_of(part.request, "flags") & ~np.uint8(without | Flag.SUPERSEDE | Flag.LINKED)
    flags[:-1] |= np.uint8(Flag.LINKED)
    part.request.columns["flags"] = flags
    if column_of(request, "flags")[0] & ~np.uint8(without) & Flag.SUPERSEDE:
        flags[0] |= np.uint8(Flag.SUPERSEDE)
        for name in ("hold_hi", "hold_lo"):
            part.request.columns[name][0] = column_of(request, name)[0]
    return part


def hold_part(request: Request, shards: NDArray[np.int64], shard: int) -> Part:
    """Lines on a hold; the last one of a shard has the flags of the last one of all.

    So it is linked to no other, and releases what the others leave there if that is asked for.
    """
    part = _compact_part(request, shards, shard)
    if "flags" in request.columns:
        part.request.columns["flags"][-1] = request.columns["flags"][-1]
    return part


def renamed(request: Request, unnamed: list[bool]) -> Request:
    """The request with lines that name no cell made to name one that is in no hold."""
    sku = column_of(request, "sku").copy()
    sku[unnamed] = _NO_SUCH_SKU
    return request.with_lines(request.lines, request.columns | {"sku": sku})


def undone(part: Part, answer: Answer, status: int = Status.LINKED_LINE_REFUSED) -> Answer:
    """What a part of an order answers that was held, and given up because it is refused after all.

    `status` is its first line's; the others are refused with that.
    """
    lines = len(part.places)
    told = bytes((status, *[Status.LINKED_LINE_REFUSED] * (lines - 1)))
    available = np.frombuffer(answer.available, "<i8").copy()
    if len(available):
        # As it is after the release: what this order held of the cell is back.
        held = column_of(part.request, "quantity")
        if answer.granted:
            held = np.frombuffer(answer.granted, "<i8")
        keys = column_of(part.request, "location").astype(np.int64) << 32
        keys |= column_of(part.request, "sku")
        available += ((keys[:, None] == keys) * held).sum(axis=1)
    return replace(
        answer, status=told, available=available.tobytes(), granted=bytes(len(answer.granted))
    )


def that_count(
    parts: Sequence[Part], answers: Sequence[Answer]
) -> tuple[Sequence[Part], Sequence[Answer]]:
    """The parts of a whole hold, with their answers, that say how a call on it ended.

    When a part has done what was asked, those of which nothing was left have no say, as on one shard
    the lines have none of which nothing is left. When none has, those have none that were given up, or
    have moved to another shard, unless all were.
    """
    is_any_done = any(not any(answer.status) for answer in answers)
    without_say = NOTHING_LEFT if is_any_done else {Status.HOLD_RELEASED}
    counts = [
        (part, answer)
        for part, answer in zip(parts, answers, strict=True)
        if answer.status[0] not in without_say
    ]
    return ([part for part, _ in counts], [it for _, it in counts]) if counts else (parts, answers)


def that_fits(request: Request, answer: Answer) -> Answer:
    """The answer to a request; OP_ID_REUSED when it is that to another number of its lines.

    A shard may have had another part of the same request before: the caller has asked it by itself,
    or the shard map was another one. Whose lines its answer is about nobody knows.
    """
    if len(answer.status) == request.lines:
        return answer
    available = bytes(8 * request.lines) if request.want_available else b""
    status = bytes((Status.OP_ID_REUSED,)) * request.lines
    return replace(answer, status=status, available=available, granted=b"", endangered=())


def those_that_fit(parts: Sequence[Part], answers: Sequence[Answer]) -> list[Answer]:
    """The answers to parts of a request, each as `that_fits` has it."""
    return [that_fits(part.request, answer) for part, answer in zip(parts, answers, strict=True)]


def joined(
    request: Request,
    parts: Sequence[Part],
    answers: Sequence[Answer],
    status: NDArray[np.uint8] | None = None,
) -> tuple[int, Answer]:
    """One answer of the parts' answers; `status` is that of lines which are in no part.

    Where parts share a line (a call on a whole hold) the first refusal is its answer.
    """
    if len(parts) == 1 and len(parts[0].places) == request.lines:
        return parts[0].shard, answers[0]
    status = np.zeros(request.lines, np.uint8) if status is None else status
    available, granted = (np.zeros(request.lines, "<i8") for _ in range(2))
    for part, answer in zip(parts, answers, strict=True):
        told = np.frombuffer(answer.status, np.uint8)[part.own]
        was = status[part.places]
        status[part.places] = np.where(was == _OK, told, was)
        if answer.available:
            told_available = np.frombuffer(answer.available, "<i8")[part.own]
            available[part.places] = np.where(was == _OK, told_available, available[part.places])
        if answer.granted:
            granted[part.places] = np.frombuffer(answer.granted, "<i8")[part.own]
    shard, first = (parts[0].shard, answers[0]) if parts else (0, Answer(b"", b"", 0, 0, 0))
    return shard, Answer(
        status.tobytes(),
        available.tobytes() if request.want_available else b"",
        min((answer.now_ns for answer in answers), default=0),
        first.epoch,
        first.seq,
        granted.tobytes() if any(answer.granted for answer in answers) else b"",
        _endangered(parts, answers),
    )


def _endangered(parts: Sequence[Part], answers: Sequence[Answer]) -> tuple[Endangered, ...]:
    """What the lines of all parts endanger, in order of their places."""
    found: list[Endangered] = []
    for part, answer in zip(parts, answers, strict=True):
        if answer.endangered:
            places = dict(zip(part.own.tolist(), part.places.tolist(), strict=True))
            found += [
                each._replace(line=places[each.line])
                for each in answer.endangered
                if each.line in places
            ]
    return tuple(sorted(found, key=lambda each: each.line))


def hold_id_of(request: Request) -> bytes:
    """The hold that the first line of a request is about."""
    return pair_to_id(*(column_of(request, name)[0] for name in ("hold_hi", "hold_lo")))


def on(hold_id: bytes) -> dict[str, Any]:
    """The columns that name a hold."""
    high, low = (np.uint64(half) for half in id_to_pair(hold_id))
    return {"hold_hi": high, "hold_lo": low}
