"""What a client knows of an exchange, and the judgement: all of it was done, or nothing.

Its steps are many and on several shards, so what is demanded is what they come to by the time it is
answered: what came in, what is held in its place, what is committed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from actors.parts import step_id
from actors.ports import Position
from engine.operations import Disposition, Flag, Kind, Request
from engine.views import Hold, HoldState
from tests.sim.oracle import Ledger

Ledgers = Mapping[int, Ledger]
Goods = Counter[tuple[int, int, int]]
"""Units of (SKU, location, disposition)."""
Places = Counter[tuple[int, int]]
"""Units of (SKU, location)."""

# The steps that take goods in, and those that take them out again.
_STEPS: Final = ("in 0", "take out 0", "take out in 0")
_BUCKETS: Final = {
    0: Disposition.RESTOCK,
    int(Flag.DAMAGED): Disposition.DAMAGED,
    int(Flag.QUALITY_CONTROL): Disposition.QUALITY_CONTROL,
}


class Told(NamedTuple):
    """An answer, a status a line, and where the streams ended when it came, by shard."""

    status: bytes
    ends: Mapping[int, Position]


@dataclass(slots=True)
class Exchange:
    """Returns, then one order. `told` are the answers that came before anything else was done."""

    request: Request
    told: list[Told] = field(default_factory=list)

    @property
    def op_id(self) -> bytes:
        return self.request.op_id

    @property
    def is_paid(self) -> bool:
        return bool(self.request.columns["flags"][-1] & Flag.COMMIT_NOW)

    def back(self) -> Goods:
        """What is brought back."""
        return _units(self.request, Kind.RETURN, bytes(self.request.lines))

    def out(self) -> Places:
        """What is held in its place."""
        columns = self.request.columns
        names = ("kind", "sku", "location", "quantity")
        places: Places = Counter()
        for kind, sku, location, quantity in zip(
            *(columns[name].tolist() for name in names), strict=True
        ):
            places[sku, location] += quantity if kind == Kind.RESERVE else 0
        return +places


def judge_exchange(known: Exchange, ledgers: Ledgers) -> Iterator[str]:
    """What is wrong with an exchange when all is quiet."""
    name = f"exchange {known.op_id.hex()}"
    if len({told.status for told in known.told}) > 1:
        yield f"{name}: was told {[told.status for told in known.told]}"
    for told in known.told:
        is_done = not any(told.status)
        came: Goods = Counter()
        for shard, ledger in ledgers.items():
            came.update(_came_in(known, ledger, told.ends[shard]))
        should = known.back() if is_done else Counter()
        if came != should:
            yield f"{name}: was told {told.status!r}, and {dict(came)} came, not {dict(should)}"
        for shard, ledger in ledgers.items():
            part = ledger.view(known.op_id, told.ends[shard])
            yield from (f"{name}: {each}" for each in _judge_part(known, part, shard, is_done))
        parts = [ledger.view(known.op_id, told.ends[shard]) for shard, ledger in ledgers.items()]
        cells = {(line.sku, line.location) for part in parts if part for line in part.lines}
        if is_done and cells != known.out().keys():
            yield f"{name}: was told as done, and is of {cells}"


def _judge_part(known: Exchange, part: Hold | None, shard: int, is_done: bool) -> Iterator[str]:
    if part is None:
        return
    if not is_done:
        if part.state.is_live:
            yield f"was refused, and shard {shard} still has {part}"
        return
    if part.state == HoldState.EXPIRED and not known.is_paid:
        return
    held: Places = Counter()
    for line in part.lines:
        held[line.sku, line.location] += line.committed if known.is_paid else line.pending
    out = known.out()
    if held != Counter({cell: out[cell] for cell in held}):
        yield f"was told as done, and shard {shard} has {part}"


def _came_in(known: Exchange, ledger: Ledger, end: Position) -> Goods:
    """What its steps took in on a shard by then, less what they took out again."""
    came: Goods = Counter()
    for op_id in (known.op_id, *(step_id(known.op_id, step) for step in _STEPS)):
        digest, answer = ledger.answers.get(op_id, (b"", None))
        if answer is None or digest != known.request.digest:
            continue
        if Position(answer.epoch, answer.seq) <= end:
            request = ledger.requests[op_id]
            came.update(_units(request, Kind.RETURN, answer.status))
            came.subtract(_units(request, Kind.WRITE_OFF, answer.status))
    return Counter({goods: units for goods, units in came.items() if units})


def _units(request: Request, kind: Kind, status: bytes) -> Goods:
    """What the lines of a kind are of, but for those that were refused."""
    zeros = [0] * request.lines
    kinds, skus, locations, quantities, values, flags = (
        request.columns[name].tolist() if name in request.columns else zeros
        for name in ("kind", "sku", "location", "quantity", "value", "flags")
    )
    goods: Goods = Counter()
    for i in range(request.lines):
        if kinds[i] == kind and not status[i]:
            where = values[i] if kind == Kind.RETURN else _BUCKETS[flags[i]]
            goods[skus[i], locations[i], int(where)] += quantities[i]
    return goods
