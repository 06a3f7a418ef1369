"""A shard without a journal: the reference machine behind `ports.ShardLink`, with faults to order."""

from collections import deque
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from actors.ports import CellTable, Position, Sight
from actors.transits import sight_of
from engine.history import Event, History
from engine.operations import Answer, Request
from engine.reference import ReferenceMachine
from engine.shard_map import ShardMap
from engine.status import Status
from engine.views import Cell, DatedIncoming, Hold, Incoming

USD = 840


class FakeShard:
    """`faults` befall the next submits in turn: an exception, or None. `seen` is what was applied."""

    def __init__(self, number: int = 0, shard_map: ShardMap | None = None, cells: int = 8) -> None:
        self.number, self.now_ns, self.seq = number, 10**18, 0
        self.machine = ReferenceMachine()
        self.machine.set_sku_limit(cells)
        for location in range(1, cells + 1):
            owned, split, part = shard_map.place(location, number) if shard_map else (True, 0, 0)
            self.machine.set_location(location, owned=owned, currency=USD, split=split, part=part)
        self.faults: deque[Exception | None] = deque()
        self.seen: list[Request] = []
        self.events: dict[bytes, list[Event]] = {}  # to be told as histories
        self.remembered: dict[bytes, tuple[bytes, Answer]] = {}
        self.forgotten = (0, 0)

    async def submit(self, request: Request) -> Answer:
        if self.faults and (fault := self.faults.popleft()):
            raise fault
        if known := self.remembered.get(request.op_id):
            reused = Answer(bytes((Status.OP_ID_REUSED,)) * request.lines, b"", 0, 1, 0)
            return known[1] if known[0] == request.digest else reused
        self.now_ns, self.seq = self.now_ns + 1, self.seq + 1
        self.seen.append(request)
        outcome = self.machine.apply(self.now_ns, [request])
        told = outcome.answers[0]
        packed = np.array(told.available, "<i8").tobytes() if request.want_available else b""
        granted = np.array(told.granted, "<i8").tobytes()
        answer = Answer(told.status, packed, self.now_ns, 1, self.seq, granted, outcome.endangered)
        self.remembered[request.op_id] = request.digest, answer
        return answer

    async def hold(self, hold_id: bytes, *, sure: bool = False) -> Hold | None:
        return self.machine.hold(hold_id)

    async def sight(self, hold_id: bytes, op_ids: Sequence[bytes] = ()) -> Sight:
        return sight_of(hold_id, op_ids, self.machine.hold, self.remembered.get, self.forgotten)

    async def incoming(self, incoming_id: bytes, *, sure: bool = False) -> Incoming | None:
        return self.machine.incoming(incoming_id)

    async def incoming_of(self, names: Sequence[tuple[int, int]]) -> list[DatedIncoming]:
        return self.machine.incoming_of(names)

    async def history(self, hold_id: bytes) -> History:
        return History(self.events.get(hold_id, []), complete=True)

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        return [self.machine.cell(*name) for name in names]

    async def table(self, locations: Sequence[int] | None = None) -> CellTable:
        rows = [
            (at << 32 | sku, *astuple(cell))
            for (sku, at), cell in self.machine.cells.items()
            if locations is None or at in locations
        ]
        table = np.array(rows, np.int64).reshape(-1, 10)
        return CellTable(Position(1, self.seq), self.now_ns, table)
