"""The two machines side by side: what one answers the other must answer, after every block."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from actors.ports import Position
from actors.recovery import answers_of
from engine.block import AfterImage, Block, decode, encode
from engine.events import EXPIRED, events_of
from engine.kernels import KEY, ON_HAND, SHORTAGES
from engine.machine import Machine, Outcome
from engine.mirror import Mirror
from engine.operations import LINE, Flag, Kind, Request, pair_to_id
from engine.reference import Key, ReferenceMachine, Trace
from engine.status import Status
from engine.traces import Traces
from engine.views import Cell, Endangered, Hold, HoldState, Incoming
from tests.property.histories import LOCATIONS, SKUS, Wait

_COUNTERS = [each.name for each in fields(Cell)]
Owed = tuple[bytes, Key, str]  # what a hold or an incoming record has of a cell, by counter

_BOOKED: dict[int, dict[str, int]] = {
    Kind.RESERVE: {"reserved": 1},
    Kind.ADD_LINE: {"reserved": 1},
    Kind.COMMIT: {"reserved": -1, "committed": 1},
    Kind.RELEASE: {"reserved": -1},
    EXPIRED: {"reserved": -1},
    Kind.MOVE: {"reserved": 1},
    Kind.FULFIL: {"committed": -1},
    Kind.CANCEL: {"committed": -1},
    Kind.UNFULFIL: {"committed": 1},
}


def booked_as(kind: int, flags: int) -> dict[str, int]:
    """Which counters an event moves, and which way."""
    if kind == Kind.RESERVE and flags & Flag.COMMIT_NOW:
        return {"committed": 1}
    return _BOOKED.get(kind, {})


class Pair:
    """A `Machine` and a `ReferenceMachine` that live the same history."""

    def __init__(
        self,
        *,
        resolved_remembered: int = 1000,
        movements_remembered: int = 1000,
        expiries_per_block: int = 1000,
        now_ns: int = 1,
    ) -> None:
        bounds = {
            "resolved_remembered": resolved_remembered,
            "movements_remembered": movements_remembered,
            "expiries_per_block": expiries_per_block,
        }
        self.machine, self.reference = Machine(**bounds), ReferenceMachine(**bounds)
        self.now_ns = now_ns
        self.available: list[int] = []  # what the newest block's lines were answered
        self.granted: list[list[int]] = []  # of each of its requests
        self.endangered: tuple[Endangered, ...] = ()  # by the newest block
        self._ids: dict[bytes, None] = {}  # every hold and every incoming record there ever was
        self._mirror: dict[Key, Cell] = {}  # kept by the after-images alone, as a gateway does
        self._booked: Counter[tuple[str, Key]] = Counter()  # kept by events alone
        self._owed: Counter[Owed] = Counter()
        self._gateway, self._seq, self._crc = Mirror(0), 0, 0  # by the journal's bytes
        for each in (self.machine, self.reference):
            each.set_sku_limit(SKUS)
            for location, given in LOCATIONS.items():
                each.set_location(location, **given)

    def set_location(self, location: int, **changed: Any) -> None:
        """The shard map or a channel's rules change."""
        for each in (self.machine, self.reference):
            each.set_location(location, **(LOCATIONS[location] | changed))

    def force(self, cell: Key, counter: str, value: int) -> None:
        """Bring a counter of a cell where a million operations would."""
        if cell not in self._mirror:
            return
        if counter in {"reserved", "committed"}:
            self._booked[counter, cell] = value
        for kept in (self._mirror[cell], self.reference._book.cells[cell]):
            setattr(kept, counter, value)
        state = self.machine.state
        row = list(self._mirror).index(cell)
        for table in (state.cells, self._gateway.cells):
            table[row, ON_HAND + _COUNTERS.index(counter)] = value
        state.meta[SHORTAGES] = self.reference.shortages
        state.sums[0] = self.machine.recomputed_hash()
        self.compare()

    def wait(self, wait: Wait) -> None:
        """Let time go by; it always grows."""
        to = self.now_ns + wait.ns
        if wait.hold is not None:
            holds = self.reference.holds.values()
            deadlines = sorted(
                each.deadline_ns for each in holds if each.state == HoldState.PENDING
            )
            to = deadlines[wait.hold % len(deadlines)] + wait.ns if deadlines else 0
        self.now_ns = max(self.now_ns + 1, to)

    def apply(self, requests: Sequence[Request]) -> list[Status]:
        """Apply a block to both and compare everything. Returns the statuses of all its lines."""
        overdue = self._overdue()
        expected = self.reference.apply(self.now_ns, requests)
        outcome = self.machine.apply(self.now_ns, [_as_called(each) for each in requests])
        statuses = [Status(each) for answer in expected.answers for each in answer.status]
        assert [Status(each) for each in outcome.status.tolist()] == statuses
        self.available = [each for answer in expected.answers for each in answer.available]
        assert outcome.available.tolist() == self.available
        self.granted = [answer.granted for answer in expected.answers]
        answers = answers_of(requests, outcome, self.now_ns, Position(1, 1))
        granted = [np.frombuffer(answer.granted, "<i8").tolist() for answer in answers]
        assert granted == self.granted
        assert outcome.expired == expected.expired
        assert outcome.endangered == expected.endangered
        self._check_traces(outcome.traces, expected.traces)
        self.endangered = outcome.endangered
        self._reflect(outcome.image)
        self._keep_books(requests, outcome)
        self._check_owed(overdue)
        self._check_named()
        self.machine.tidy(2)
        self.compare()
        return statuses

    def compare(self) -> None:
        """The same cells, holds, counts and hash; and what is promised is what the holds say."""
        machine, reference = self.machine, self.reference
        cells, holds, records = reference.cells, reference.holds, reference.incoming_records
        found = {key: machine.cell(*key) for key in cells}
        assert found == cells
        counted = {key: reference.counted_at_ns(*key) for key in cells}
        assert {key: machine.counted_at_ns(*key) for key in cells} == counted
        self._ids.update(dict.fromkeys([*holds, *records]))
        held = {each: machine.hold(each) for each in self._ids}
        assert held == {each: holds.get(each) for each in self._ids}
        due = {each: machine.incoming(each) for each in self._ids}
        assert due == {each: records.get(each) for each in self._ids}
        assert machine.incoming_of(cells) == reference.incoming_of(cells)
        assert machine.holds_open == reference.holds_open
        assert machine.holds_committed == reference.holds_committed
        assert machine.shortages == reference.shortages
        assert machine.expired == reference.expired
        assert machine.state_hash == reference.state_hash
        assert list(self._mirror.items()) == list(cells.items())
        self._check_next_deadline(holds.values())
        _audit(found, held.values(), due.values())
        assert machine.audit() == []

    def _check_traces(self, told: Traces | None, expected: tuple[Trace, ...]) -> None:
        """The sweep's in order; those of one line in any."""
        assert told is not None
        keys = self.machine.state.cells[:, KEY][told.row].tolist()
        found = [
            Trace(line, (key & 0xFFFFFFFF, key >> 32), units)
            for line, key, units in zip(told.line.tolist(), keys, told.units.tolist(), strict=True)
        ]
        swept = told.swept
        assert found[:swept] == list(expected[:swept])
        assert sorted(found[swept:]) == sorted(expected[swept:])
        assert [each.line for each in found] == sorted(each.line for each in found)

    def _keep_books(self, requests: Sequence[Request], outcome: Outcome) -> None:
        """What is promised of each cell follows from the events of the journal's bytes alone."""
        block = Block(
            0, 1, self._seq, self.now_ns, self._crc, self.machine.state_hash, SKUS, [],
            list(requests), outcome.status, outcome.image, endangered=outcome.endangered,
            traces=outcome.traces,
        )  # fmt: skip
        payload, self._crc = encode(block)
        self._seq += 1
        block = decode(payload)
        self._gateway.apply(block, self._crc)
        events = events_of(block, self.machine.state.cells[:, KEY])
        columns = {name: column.tolist() for name, column in events.columns.items()}
        assert columns["number"] == list(range(len(events)))
        self.events = [
            dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)
        ]
        for event in self.events:
            key, units = (event["sku"], event["location"]), event["quantity"]
            for counter, sign in booked_as(event["kind"], event["flags"]).items():
                self._booked[counter, key] += sign * units
        for key, cell in self._mirror.items():
            promised = self._booked["reserved", key], self._booked["committed", key]
            assert promised == (cell.reserved, cell.committed), key

    def _overdue(self) -> set[bytes]:
        """The holds that this block may sweep, of which no event says which they are."""
        return {
            hold_id
            for hold_id, each in self.reference.holds.items()
            if each.state == HoldState.PENDING and each.deadline_ns <= self.now_ns
        }

    def _check_owed(self, overdue: set[bytes]) -> None:
        """What each hold and each record has of a cell follows from events, by the ids they name."""
        for event in self.events:
            kind, units = event["kind"], event["quantity"]
            key = event["sku"], event["location"]
            of = pair_to_id(event["hold_hi"], event["hold_lo"])
            for counter, sign in booked_as(kind, event["flags"]).items():
                self._owed[of, key, counter] += sign * units
            if kind in {Kind.EXPECT, Kind.RECEIVE, Kind.CANCEL_INCOMING}:
                # More may come than is expected.
                came = units if kind == Kind.CANCEL_INCOMING else self._owed[of, key, "incoming"]
                came = units if kind == Kind.EXPECT else -min(units, came)
                self._owed[of, key, "incoming"] += came
        owed: Counter[Owed] = Counter()
        for of, hold in self.reference.holds.items():
            for line in hold.lines:
                owed[of, (line.sku, line.location), "reserved"] += line.pending
                owed[of, (line.sku, line.location), "committed"] += line.committed
        for of, record in self.reference.incoming_records.items():
            for due in record.lines:
                owed[of, (due.sku, due.location), "incoming"] += due.outstanding
        unnamed = {*overdue, bytes(16)}
        told, expected = (
            {each: units for each, units in book.items() if units and each[0] not in unnamed}
            for book in (self._owed, owed)
        )
        assert told == expected
        self._owed = owed

    def _check_named(self) -> None:
        """Whoever reads along names no hold that a shortage does not endanger any more."""
        rows = np.arange(self._gateway.count, dtype=np.int32)
        assert np.array_equal(self._gateway.cells, self.machine.state.cells[: len(rows)])
        for short in self._gateway.endangered(rows):
            holds = self.reference.holds if short.holds else {}
            for named in short.holds:
                held = (short.sku, short.location, named.pending, named.committed)
                lines = holds[named.hold_id].lines
                assert held in [
                    (each.sku, each.location, each.pending, each.committed) for each in lines
                ]

    def _reflect(self, image: AfterImage) -> None:
        assert image.first_new == len(self._mirror)
        for key in image.new_keys.tolist():
            self._mirror[key & 0xFFFFFFFF, key >> 32] = Cell()
        mirrored = list(self._mirror.values())
        for word, values in image.words.items():
            for row, value in zip(image.rows.tolist(), values.tolist(), strict=True):
                setattr(mirrored[row], _COUNTERS[word - ON_HAND], value)

    def _check_next_deadline(self, holds: Iterable[Hold]) -> None:
        pending = [each.deadline_ns for each in holds if each.state == HoldState.PENDING]
        bound = self.machine.next_deadline_ns()
        assert (-1 < bound <= min(pending)) if pending else bound == -1


def _audit(
    cells: Mapping[Key, Cell | None],
    holds: Iterable[Hold | None],
    records: Iterable[Incoming | None],
) -> None:
    """What cells say is promised and due is what all the holds and records say."""
    pending: Counter[Key] = Counter()
    committed: Counter[Key] = Counter()
    incoming: Counter[Key] = Counter()
    for hold in holds:
        for line in hold.lines if hold else ():
            assert min(line.pending, line.committed, line.fulfilled, line.returned) >= 0
            assert line.returned <= line.fulfilled
            pending[line.sku, line.location] += line.pending
            committed[line.sku, line.location] += line.committed
    for record in records:
        for due in record.lines if record else ():
            assert min(due.expected, due.outstanding, due.received) >= 0
            incoming[due.sku, due.location] += due.outstanding
    for key, cell in cells.items():
        assert cell is not None
        assert (cell.reserved, cell.committed) == (pending[key], committed[key])
        assert cell.incoming == incoming[key]


def _as_called(request: Request) -> Request:
    """Every other request of one line as a single call makes it, and as replay gives it."""
    if request.lines != 1 or request.op_id[0] % 2:
        return request
    columns = {name: int(column[0]) for name, column in request.columns.items()}
    return Request.one(request.op_id, *(columns.get(name, 0) for name in LINE.names or ()))
