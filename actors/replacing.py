"""An order in place of an older hold that has parts on several shards: what is freed can be given back.

Where an order needs the stock of the older hold, one step frees that and holds the order's part. It
holds as much of each cell as the older hold had, at least: what the order does not need is in lines
behind its own, and is given up when the order is held on all shards. When the order is refused, the
units are handed over to the older hold again, for which no stock is judged. How many they were is
noted first by each shard, so that a repetition knows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.notes import note_of, number_of
from actors.parts import Part, hold_id_of, on, step_id, step_of
from actors.shards import Shards, every
from engine import limits
from engine.operations import Answer, Flag, Kind, Request, column_of
from engine.views import Hold

Units = Counter[tuple[int, int]]
"""How many of each (SKU, location)."""


def wanted_of(request: Request) -> Units:
    """What the lines of an order ask for."""
    wanted: Units = Counter()
    columns = (column_of(request, name).tolist() for name in ("sku", "location", "quantity"))
    for sku, location, quantity in zip(*columns, strict=True):
        wanted[sku, location] += quantity
    return wanted


def pending_of(hold: Hold) -> Units:
    """What is pending of a hold."""
    units: Units = Counter()
    for line in hold.lines:
        units[line.sku, line.location] += line.pending
    return +units


def own_lines(part: Part, answer: Answer) -> Answer:
    """The answer of a part of an order without the lines behind its own."""
    lines, is_partial = len(part.places), part.request.is_partial
    return replace(
        answer,
        status=answer.status[:lines],
        available=answer.available[: 8 * lines],
        granted=answer.granted[: 8 * lines] if is_partial else b"",
    )


@dataclass(frozen=True, slots=True)
class Replacement:
    """An order, and the parts of the older hold as they were seen.

    With one part nothing is to be given back: the step that frees it is the last that can be refused.
    """

    shards: Shards
    request: Request
    older: Mapping[int, Hold]

    async def hold(self, part: Part) -> Answer:
        """Hold a part of the order in place of the older hold's part on that shard.

        When that has run out meanwhile it may still be paid late, as long as another shard may refuse.
        """
        request = part.request
        if len(self.older) > 1:
            request = _with_rest(request, await self._note(part.shard))
            flags = column_of(request, "flags").copy()
            flags[0] |= np.uint8(Flag.RE_RESERVE)
            request = request.with_lines(request.lines, request.columns | {"flags": flags})
        return own_lines(part, await self.shards.submit(part.shard, request))

    async def give_back(self) -> None:
        """Hand what was freed over to the older hold, which then lives as long as it did, or longer."""
        deadline_ns = max((hold.deadline_ns for hold in self.older.values()), default=0)
        older = on(hold_id_of(self.request))
        for shard, (units, _) in (await self._freed()).items():
            givers = on(self.request.op_id)
            holds = {half: [givers[half], older[half]] * len(units) for half in older}
            columns = _columns_of(units, 2)
            columns["kind"] = [Kind.RELEASE, Kind.ADD_LINE] * len(units)
            columns["flags"] = [Flag.LINKED, 0] * len(units)
            back = step_of(self.request, "give back", 2 * len(units), **columns, **holds)
            answer = await self.shards.submit(shard, back)
            left_ms = (deadline_ns - answer.now_ns) // limits.NS_PER_MS
            if left_ms >= limits.MIN_TTL_MS:
                keep = step_of(self.request, "keep", kind=Kind.EXTEND, value=left_ms, **older)
                await self.shards.submit(shard, keep)

    async def give_up_rest(self, parts: Mapping[int, Part]) -> None:
        """Give up what is held beyond the order; less than was to be kept, if that had run out."""
        steps = {}
        for shard, (_, held) in (await self._freed()).items():
            if rest := pending_of(held) - wanted_of(parts[shard].request):
                columns = {"kind": Kind.RELEASE, **_columns_of(rest), **on(self.request.op_id)}
                steps[shard] = step_of(self.request, "give up rest", len(rest), **columns)
        await self.shards.submit_each(steps)

    # --- what the older hold had ---

    async def _note(self, shard: int) -> Units:
        """What is pending of the older hold on a shard, as it is noted there from now on."""
        units, held = await self._noted(shard)
        notes = []
        for cell, pending in pending_of(self.older[shard]).items():
            if cell not in units and held is None:
                notes.append(self.shards.submit(shard, note_of(self._note_id(cell), pending)))
        await every(notes)
        return (await self._noted(shard))[0]

    async def _freed(self) -> dict[int, tuple[Units, Hold]]:
        """What the older hold had on each shard where a part of the order took its place, and that."""
        asked = self.older if len(self.older) > 1 else {}
        found = await every(map(self._noted, asked))
        return {
            shard: (units, held)
            for shard, (units, held) in zip(asked, found, strict=True)
            if units and held is not None
        }

    async def _noted(self, shard: int) -> tuple[Units, Hold | None]:
        """What was noted on a shard, and the part of the order that is held there."""
        cells = list(dict.fromkeys((line.sku, line.location) for line in self.older[shard].lines))
        notes = [self._note_id(cell) for cell in cells]
        sight = await self.shards.link(shard).sight(self.request.op_id, notes)
        units: Units = Counter()
        for cell, digest in zip(cells, sight.digests, strict=True):
            if digest is not None:
                units[cell] = number_of(digest)
        return units, sight.hold

    def _note_id(self, cell: tuple[int, int]) -> bytes:
        return step_id(self.request.op_id, f"freed {cell[0]} {cell[1]}")


def _columns_of(units: Units, times: int = 1) -> dict[str, Any]:
    """The columns that name cells and units, each so many times in a row."""
    rows = [(*cell, number) for cell, number in units.items() for _ in range(times)]
    return dict(zip(("sku", "location", "quantity"), zip(*rows, strict=True), strict=True))


def _with_rest(request: Request, older: Units) -> Request:
    """A part of an order that holds also what the older hold has and it does not need.

    Less will do, since that may have run out meanwhile.
    """
    rest = older - wanted_of(request)
    if not rest:
        return request
    rows = _columns_of(rest)
    rows |= {"kind": [Kind.RESERVE] * len(rest), "flags": [Flag.LINKED | Flag.PARTIAL] * len(rest)}
    rows["value"] = [int(column_of(request, "value")[0])] * len(rest)
    columns = {}
    for name in {*request.columns, *rows}:
        own = column_of(request, name)
        behind = np.array(rows.get(name, [0] * len(rest)), own.dtype)
        columns[name] = np.concatenate([own, behind])
    columns["flags"][request.lines - 1] |= np.uint8(Flag.LINKED)
    columns["flags"][-1] &= np.uint8(0xFF ^ Flag.LINKED)
    return request.with_lines(request.lines + len(rest), columns)
