"""The router: which shard, or shards, a request is for, and one answer from their answers.

In a shard's own process it has that one link and passes everything straight on: the machine itself
refuses what is not the shard's. A gateway has a link to every shard. The router keeps no state: what
it does for an op_id it would do again, so a repeated request meets the same answers, as long as the
shard map has not moved its cells meanwhile. It must not know gRPC or Ray.

How a request is split. Every part keeps the op_id and the digest of the whole, on whichever shards it
touches: so a shard that has seen the op_id with other content refuses it, and a hold has one id
everywhere. In a batch with RESERVE lines each line's place in the batch is part of its hold's id.
There a part has all the lines up to its last, with those of other shards blanked (kind 0, which a
machine refuses without a look at anything; their statuses are dropped here). Blank lines cost
journal bytes; who sends much groups lines by shard, as the SDK does.
"""

import asyncio
import hashlib
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from actors.ports import CellTable, Overloaded, ShardLink, Unavailable
from engine import limits
from engine.history import History
from engine.operations import COLUMNS, Answer, Flag, Kind, Request, id_to_pair
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import Cell, Hold, HoldLine, HoldState

_T = TypeVar("_T")
_OK: Final = int(Status.OK)
_NO_SUCH_SKU: Final = 0xFFFFFFFF
# In place of a shard: lines that cannot be placed, by the status that says why.
_NO_LOCATION: Final = -int(Status.UNKNOWN_LOCATION)
_NO_SKU: Final = -int(Status.UNKNOWN_SKU)
# How a part of a hold says that nothing is left of it for a call.
_NOTHING_LEFT: Final = frozenset(
    (
        Status.HOLD_EXPIRED,
        Status.HOLD_RELEASED,
        Status.HOLD_NOT_PENDING,
        Status.HOLD_NOT_COMMITTED,
    )
)
# The state of a hold over several shards is the first of these that one of its parts is in.
_LIFE: Final = (
    HoldState.PENDING,
    HoldState.COMMITTED,
    HoldState.FULFILLED,
    HoldState.CANCELLED,
    HoldState.RELEASED,
    HoldState.EXPIRED,
)


@dataclass(slots=True)
class _Part:
    """What one shard gets of a request.

    `places` are its lines' places in the whole request, and `own` those in the part.
    """

    shard: int
    request: Request
    places: NDArray[np.int64]
    own: NDArray[np.int64]


class Router:
    """Sends requests to the shards that own what they are about.

    Writes return the number of the shard that the first line went to, and the answer; `now_ns` is
    the earliest of all blocks (so that no hold is thought to live longer than it does), `epoch` and
    `seq` are of the first line's. Every method may raise Overloaded, when nothing was judged, and
    Unavailable, after which the same op_id must be sent again to know.
    """

    def __init__(self, links: Mapping[int, ShardLink], shard_map: Callable[[], ShardMap]) -> None:
        """`links` by shard number, all of them or just one's own; `shard_map` gives the newest."""
        if not links:
            raise ValueError("links: a router needs one shard at least")
        self._links = dict(links)
        self._shard_map = shard_map
        self._only = next(iter(self._links.values())) if len(self._links) == 1 else None
        self._first = min(self._links)

    # --- writes -----------------------------------------------------------------------------------

    async def submit(self, request: Request) -> tuple[int, Answer]:
        """Apply lines that are judged one by one, or linked within one shard.

        Linked lines go to the shard of the first of them: with cells of other shards among them,
        they are refused with WRONG_SHARD. Lines on holds need their location (and at a location that
        is split, their SKU), or are refused with UNKNOWN_LOCATION (UNKNOWN_SKU).
        """
        if self._only is not None:
            return self._first, await self._only.submit(request)
        shards = self._shards_of(request)
        parts = _split(request, shards)
        if len(parts) == 1 and parts[0].request is request:
            return parts[0].shard, await self._link(parts[0].shard).submit(request)
        answers = await self._submit_all(parts)
        return _joined(request, parts, answers, np.maximum(-shards, 0).astype(np.uint8))

    async def reserve(self, request: Request) -> tuple[int, Answer]:
        """Hold all lines of one order, each on its shard, or none: all are linked.

        When one shard refuses, the others are released before this answers.
        """
        if self._only is not None:
            return self._first, await self._only.submit(request)
        shards = self._owners_of(request)
        if (shards == shards[0]).all():
            return int(shards[0]), await self._link(int(shards[0])).submit(request)
        parts = [_order_part(request, shards, shard) for shard in _in_order(shards)]
        answers = await self._submit_all(parts)
        refused = [any(answer.status) for answer in answers]
        if any(refused):
            held = [part for part, no in zip(parts, refused, strict=True) if not no]
            # Only what answered OK to this very content: a hold that an earlier request with the
            # same op_id and other content made is not this one's to release.
            await self._release(request.op_id, [part.shard for part in held])
            answers = [
                answer if no else _undone(part, answer)
                for part, answer, no in zip(parts, answers, refused, strict=True)
            ]
        return _joined(request, parts, answers)

    async def on_hold(self, request: Request, location: int = 0) -> tuple[int, Answer]:
        """Apply lines on one hold: all of it (one line of quantity 0), or some of its cells.

        `location`, if not 0, is where all of the hold is; without it, and when lines do not say it
        themselves, every shard is asked. The call is applied to each shard's part of the hold.
        """
        if self._only is not None:
            return self._first, await self._only.submit(request)
        # Lines are few here (MAX_UNARY_LINES at most), so they may be plain integers.
        skus, locations, quantities, flags = (
            request.columns[name].tolist() if name in request.columns else [0] * request.lines
            for name in ("sku", "location", "quantity", "flags")
        )
        shard_map = self._shard_map()
        shards = [
            shard_map.shard_of(sku, at) if at and sku else _NO_LOCATION
            for sku, at in zip(skus, locations, strict=True)
        ]
        releases_rest = any(flag & Flag.RELEASE_REST for flag in flags)
        holders: list[int] = []
        if releases_rest or _NO_LOCATION in shards:
            holders = await self._holders(_hold_id(request), location)
        if request.lines == 1 and not quantities[0]:
            all_of_it = [_whole(request, shard) for shard in holders or shards]
            answers = await self._submit_all(all_of_it)
            return _joined(request, *_that_count(request, all_of_it, answers))
        if len(holders) > 1 and _NO_LOCATION in shards:
            # A quantity of which cell? Each part would take it for its own.
            request = _renamed(request, [shard == _NO_LOCATION for shard in shards])
        placed = np.array(
            [holders[0] if shard == _NO_LOCATION else shard for shard in shards], np.int64
        )
        parts = [_hold_part(request, placed, shard, releases_rest) for shard in _in_order(placed)]
        rest = set(holders) - set(placed.tolist()) if releases_rest else set()
        answers = await self._submit_all(parts)
        if rest and not any(any(answer.status) for answer in answers):
            await self._release(_hold_id(request), sorted(rest), by=request.op_id)
        return _joined(request, parts, answers)

    async def move(self, request: Request) -> tuple[int, Answer]:
        """Move lines of a hold within one shard, that of the destination."""
        if self._only is not None:
            return self._first, await self._only.submit(request)
        shard = int(self._owners_of(request)[0])
        return shard, await self._link(shard).submit(request)

    async def returned(self, request: Request, _sold_at: Sequence[int]) -> tuple[int, Answer]:
        """Record what came back; what it was handed over as is of the same shard."""
        return await self.submit(request)

    # --- reads ------------------------------------------------------------------------------------

    async def hold(self, hold_id: bytes, location: int = 0) -> Hold | None:
        """Look a hold up, all its parts in one; `location`, if not 0, is where all of it is."""
        if self._only is not None:
            return await self._only.hold(hold_id)
        asked = self._candidates(location)
        found = await _all(self._link(shard).hold(hold_id) for shard in asked)
        parts = [part for part in found if part is not None]
        if len(parts) < 2:
            return parts[0] if parts else None
        lines: list[HoldLine] = [line for part in parts for line in part.lines]
        states = {part.state for part in parts}
        state = next(state for state in _LIFE if state in states)
        return Hold(state, min(part.deadline_ns for part in parts), lines)

    async def history(self, hold_id: bytes, location: int = 0) -> History:
        """Find the operations on a hold in all its shards, oldest first.

        `location`, if not 0, is where all of the hold is.
        """
        if self._only is not None:
            return await self._only.history(hold_id)
        parts = await _all(
            self._link(shard).history(hold_id) for shard in self._candidates(location)
        )
        events = [event for part in parts for event in part.events]
        events.sort(key=lambda each: each.now_ns)
        # A shard that has nothing on it says nothing of whether something is missing.
        told = [part.complete for part in parts if part.events]
        return History(events, all(told) if told else all(part.complete for part in parts))

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id), in order; None where there is none."""
        if self._only is not None:
            return await self._only.cells(names)
        shard_map = self._shard_map()
        places: dict[int, list[int]] = {}
        for place, (sku, location) in enumerate(names):
            places.setdefault(shard_map.shard_of(sku, location), []).append(place)
        found = await _all(
            self._link(shard).cells([names[place] for place in own])
            for shard, own in places.items()
        )
        cells: list[Cell | None] = [None] * len(names)
        for own, part in zip(places.values(), found, strict=True):
            for place, cell in zip(own, part, strict=True):
                cells[place] = cell
        return cells

    async def tables(
        self, locations: Sequence[int] | None = None
    ) -> AsyncIterator[tuple[int, CellTable]]:
        """Yield the rows of some locations, or all rows, shard by shard."""
        shards: Collection[int] = self._links
        if self._only is None and locations is not None:
            shard_map = self._shard_map()
            shards = {shard for location in locations for shard in shard_map.owners(location)}
        for shard in sorted(shards):
            yield shard, await self._link(shard).table(locations)

    # --- insides ----------------------------------------------------------------------------------

    def _link(self, shard: int) -> ShardLink:
        try:
            return self._links[shard]
        except KeyError:
            raise Unavailable(f"shard {shard} is not known here") from None

    def _owners_of(self, request: Request) -> NDArray[np.int64]:
        columns = request.columns
        if request.lines == 1:
            location, sku = (int(columns[n][0]) if n in columns else 0 for n in ("location", "sku"))
            return np.array([self._shard_map().shard_of(sku, location)], np.int64)
        shards = self._shard_map().shards_of(_column(request, "sku"), _column(request, "location"))
        return shards.astype(np.int64)

    def _shards_of(self, request: Request) -> NDArray[np.int64]:
        """The shard of each line of a batch, or below zero the status for which it has none."""
        shards = self._owners_of(request)
        kind, flags = _column(request, "kind"), _column(request, "flags")
        on_hold = (kind >= Kind.COMMIT) & (kind <= Kind.CANCEL)
        if on_hold.any():
            location, sku = _column(request, "location"), _column(request, "sku")
            shards[on_hold & (location == 0)] = _NO_LOCATION
            for at in np.unique(location[on_hold & (location != 0) & (sku == 0)]).tolist():
                if len(self._shard_map().owners(at)) > 1:
                    shards[on_hold & (location == at) & (sku == 0)] = _NO_SKU
        linked = (kind == Kind.RESERVE) & ((flags & Flag.LINKED) != 0)
        if linked[:-1].any():
            starts = np.arange(request.lines)
            starts[1:][linked[:-1]] = 0
            shards = shards[np.maximum.accumulate(starts)]
        return shards

    async def _submit_all(self, parts: Sequence[_Part]) -> list[Answer]:
        return await _all(self._link(part.shard).submit(part.request) for part in parts)

    def _candidates(self, location: int) -> list[int]:
        return sorted(self._shard_map().owners(location) if location else self._links)

    async def _holders(self, hold_id: bytes, location: int) -> list[int]:
        """The shards that have a part of a hold; one of those asked, to refuse, when none has."""
        asked = self._candidates(location)
        if len(asked) == 1:
            return asked
        found = await _all(self._link(shard).hold(hold_id) for shard in asked)
        have = [shard for shard, part in zip(asked, found, strict=True) if part is not None]
        return have or asked[:1]

    async def _release(self, hold_id: bytes, shards: Iterable[int], by: bytes = b"") -> None:
        """Release a hold's parts on some shards; one that is gone already is as good."""
        op_id = hashlib.blake2b((by or hold_id) + b"release", digest_size=limits.OP_ID_BYTES)
        high, low = id_to_pair(hold_id)
        request = Request.of(
            op_id.digest(), 1, kind=Kind.RELEASE, hold_hi=_u8(high), hold_lo=_u8(low)
        )
        await _all(self._link(shard).submit(request) for shard in shards)


async def _all(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Wait for all calls to end, then raise what one raised, if any.

    Overloaded says that nothing was judged, so it stands only if each call said so.
    """
    coroutines = list(calls)
    if len(coroutines) == 1:
        return [await coroutines[0]]
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [each for each in results if isinstance(each, BaseException)]
    if errors:
        bugs = [each for each in errors if not isinstance(each, Overloaded | Unavailable)]
        if bugs:
            raise bugs[0]
        if len(errors) < len(results) or any(isinstance(each, Unavailable) for each in errors):
            raise Unavailable(f"not every shard answered: {errors[0]}") from errors[0]
        raise errors[0]
    return [each for each in results if not isinstance(each, BaseException)]


# --- parts and their answers --------------------------------------------------------------------


def _split(request: Request, shards: NDArray[np.int64]) -> list[_Part]:
    """The parts of a batch; `shards` below zero: of no shard."""
    if shards[0] >= 0 and (shards == shards[0]).all():
        return [_whole(request, int(shards[0]))]
    if (_column(request, "kind") == Kind.RESERVE).any():
        return [_blanked_part(request, shards, shard) for shard in _in_order(shards)]
    return [_compact_part(request, shards, shard) for shard in _in_order(shards)]


def _in_order(shards: NDArray[np.int64]) -> list[int]:
    """The shards in the order in which they first appear."""
    return [shard for shard in dict.fromkeys(shards.tolist()) if shard >= 0]


def _whole(request: Request, shard: int) -> _Part:
    places = np.arange(request.lines)
    return _Part(shard, request, places, places)


def _blanked_part(request: Request, shards: NDArray[np.int64], shard: int) -> _Part:
    places = np.flatnonzero(shards == shard)
    lines = int(places[-1]) + 1
    foreign = shards[:lines] != shard
    columns = {name: column[:lines].copy() for name, column in request.columns.items()}
    for column in columns.values():
        column[foreign] = 0
    return _Part(shard, _part(request, lines, columns), places, places)


def _compact_part(request: Request, shards: NDArray[np.int64], shard: int) -> _Part:
    places = np.flatnonzero(shards == shard)
    columns = {name: column[places] for name, column in request.columns.items()}
    lines = len(places)
    return _Part(shard, _part(request, lines, columns), places, np.arange(lines))


def _order_part(request: Request, shards: NDArray[np.int64], shard: int) -> _Part:
    part = _compact_part(request, shards, shard)
    flags = np.full(len(part.places), Flag.LINKED, COLUMNS["flags"])
    flags[-1] = 0
    part.request.columns["flags"] = flags
    return part


def _hold_part(
    request: Request, shards: NDArray[np.int64], shard: int, releases_rest: bool
) -> _Part:
    """Lines on a hold; only the last one of a shard releases what the others leave there."""
    part = _compact_part(request, shards, shard)
    if releases_rest:
        flags = np.zeros(len(part.places), COLUMNS["flags"])
        flags[-1] = Flag.RELEASE_REST
        part.request.columns["flags"] = flags
    return part


def _part(request: Request, lines: int, columns: dict[str, NDArray[Any]]) -> Request:
    return Request(request.op_id, lines, columns, request.want_available, request.digest)


def _renamed(request: Request, unnamed: list[bool]) -> Request:
    """The request with lines that name no cell made to name one that is in no hold."""
    sku = _column(request, "sku").copy()
    sku[unnamed] = _NO_SUCH_SKU
    return _part(request, request.lines, request.columns | {"sku": sku})


def _undone(part: _Part, answer: Answer) -> Answer:
    """What a part answers that was held, and released because another part was refused."""
    lines = len(part.places)
    status = bytes((Status.LINKED_LINE_REFUSED,)) * lines
    available = np.frombuffer(answer.available, "<i8").copy()
    if len(available):
        # As it is after the release: what this order held of the cell is back.
        quantity = _column(part.request, "quantity")
        keys = _column(part.request, "location").astype(np.int64) << 32
        keys |= _column(part.request, "sku")
        available += ((keys[:, None] == keys) * quantity).sum(axis=1)
    return Answer(status, available.tobytes(), answer.now_ns, answer.epoch, answer.seq)


def _that_count(
    request: Request, parts: list[_Part], answers: list[Answer]
) -> tuple[list[_Part], list[Answer]]:
    """The parts of a whole hold, with their answers, that say how a call on it ended.

    RELEASE, FULFIL and CANCEL are about what is left. When a part has done it, those of which
    nothing was left have no say, as on one shard the lines have none of which nothing is left. A
    COMMIT is of the whole order: there each refusal is told.
    """
    did = [not any(answer.status) for answer in answers]
    if not any(did) or _column(request, "kind")[0] == Kind.COMMIT:
        return parts, answers
    counts = [
        (part, answer)
        for part, answer, done in zip(parts, answers, did, strict=True)
        if done or answer.status[0] not in _NOTHING_LEFT
    ]
    return [part for part, _ in counts], [answer for _, answer in counts]


def _joined(
    request: Request,
    parts: Sequence[_Part],
    answers: Sequence[Answer],
    status: NDArray[np.uint8] | None = None,
) -> tuple[int, Answer]:
    """One answer of the parts' answers; `status` is that of lines which are in no part.

    Where parts share a line (a call on a whole hold) the first refusal is its answer.
    """
    if len(parts) == 1 and len(parts[0].places) == request.lines:
        return parts[0].shard, answers[0]
    status = np.zeros(request.lines, np.uint8) if status is None else status
    available = np.zeros(request.lines, "<i8")
    for part, answer in zip(parts, answers, strict=True):
        told = np.frombuffer(answer.status, np.uint8)[part.own]
        was = status[part.places]
        status[part.places] = np.where(was == _OK, told, was)
        if answer.available:
            told_available = np.frombuffer(answer.available, "<i8")[part.own]
            available[part.places] = np.where(was == _OK, told_available, available[part.places])
    shard, first = (parts[0].shard, answers[0]) if parts else (0, Answer(b"", b"", 0, 0, 0))
    return shard, Answer(
        status.tobytes(),
        available.tobytes() if request.want_available else b"",
        min((answer.now_ns for answer in answers), default=0),
        first.epoch,
        first.seq,
    )


def _column(request: Request, name: str) -> NDArray[Any]:
    column = request.columns.get(name)
    return np.zeros(request.lines, COLUMNS[name]) if column is None else column


def _hold_id(request: Request) -> bytes:
    high, low = (_column(request, name)[0] for name in ("hold_hi", "hold_lo"))
    return int(high).to_bytes(8, "big") + int(low).to_bytes(8, "big")


def _u8(value: int) -> Any:
    return np.uint64(value)
