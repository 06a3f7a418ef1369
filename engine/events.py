"""The events of a block: every operation that was accepted, cell by cell, and what ran out.

State can be told as of now; events are told one by one. They are read out of the block and nothing
else: lines that name their cell stand there as they are, and what was done to cells that no line
names stands in its traces (`engine.traces`). So the same block gives the same events in the same
order at any time, and an event's `number` in its block names it for good. What the history of one
hold is, `engine.history` says; this module knows no subscribers and no journal.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.block import Block, concatenated
from engine.mirror import among
from engine.operations import PART_KINDS, Flag, Kind, chain_starts
from engine.status import Status
from engine.traces import NO_TRACES

EXPIRED: Final = 64  # beside the kinds of operations: a hold ran out
UNTOLD: Final = 65  # the block changed the cell by more than it tells

# The columns of events. What they mean stands in the contract (EventFrame).
COLUMNS: Final[dict[str, np.dtype[Any]]] = {
    "kind": np.dtype("u1"),
    "flags": np.dtype("u1"),
    "sku": np.dtype("<u4"),
    "location": np.dtype("<u4"),
    "quantity": np.dtype("<i8"),
    "value": np.dtype("<i8"),
    "currency": np.dtype("<u2"),
    "channel": np.dtype("<u2"),
    "occurred_at_ns": np.dtype("<i8"),
    "hold_hi": np.dtype("<u8"),
    "hold_lo": np.dtype("<u8"),
    "op_hi": np.dtype("<u8"),
    "op_lo": np.dtype("<u8"),
    "line": np.dtype("<u4"),
    "number": np.dtype("<u4"),
}
EVENT_BYTES: Final = sum(dtype.itemsize for dtype in COLUMNS.values())

_OF_LINE: Final = ("flags", "value", "currency", "channel", "occurred_at_ns", "hold_hi", "hold_lo")
# Kinds whose line is about a hold, and not about the cell that it may name.
_CALLS: Final = np.zeros(256, np.bool_)
_CALLS[[*PART_KINDS, Kind.EXTEND, Kind.MOVE, Kind.CANCEL_INCOMING, Kind.CLAIM_RETURN]] = True
_LOW32: Final = 0xFFFFFFFF
_Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Events of one block, as columns of `COLUMNS`, each of shape (n,), in their order."""

    epoch: int
    seq: int
    now_ns: int
    columns: _Columns

    def __len__(self) -> int:
        """How many there are."""
        return len(self.columns["kind"])

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        return EVENT_BYTES * len(self)

    def chosen(
        self, locations: NDArray[np.int64] | None, skus: NDArray[np.int64] | None, seen: int = 0
    ) -> NDArray[np.intp]:
        """Which of them, from the number `seen` on, are on these cells; sorted ids, None: all."""
        wanted = self.columns["number"] >= seen
        for ids, name in ((locations, "location"), (skus, "sku")):
            if ids is not None:
                wanted &= among(self.columns[name].astype(np.int64), ids)
        return np.flatnonzero(wanted)

    def taken(self, places: NDArray[np.intp]) -> "Events":
        """Some of them."""
        columns = {name: column[places] for name, column in self.columns.items()}
        return Events(self.epoch, self.seq, self.now_ns, columns)


def events_of(block: Block, keys: NDArray[np.int64]) -> Events:
    """All events of a block. `keys` are the cells' keys by row, of all rows there are after it."""
    lines = _lines(block)
    parts = [_traced(block, lines, keys), _named(block, lines)]
    order = np.argsort(np.concatenate([at for at, _ in parts]), kind="stable")
    columns = {
        name: np.concatenate([part[name] for _, part in parts])[order]
        for name in COLUMNS
        if name != "number"
    }
    if block.traces is None and block.image is not None:
        untold = _blank(len(block.image.rows), kind=UNTOLD) | _cells(keys[block.image.rows])
        columns = {name: np.concatenate([column, untold[name]]) for name, column in columns.items()}
    columns["number"] = np.arange(len(columns["kind"]), dtype=np.uint32)
    return Events(block.epoch, block.seq, block.now_ns, columns)


def _lines(block: Block) -> _Columns:
    """The columns of all requests' lines, with their ids: `op`, `line` and that of what they make."""
    requests = block.requests
    count = sum(request.lines for request in requests)
    if not count:
        return _blank(0)
    names = ("kind", "sku", "location", "quantity", *_OF_LINE)
    lines = {name: concatenated(requests, name) for name in names}
    sizes = [request.lines for request in requests]
    ends = np.cumsum(sizes)
    first = np.repeat(ends - sizes, sizes)
    ids = np.frombuffer(b"".join(request.op_id for request in requests), ">u8").astype("<u8")
    lines["op_hi"], lines["op_lo"] = np.repeat(ids[::2], sizes), np.repeat(ids[1::2], sizes)
    places = np.arange(count)
    lines["line"] = (places - first).astype(np.uint32)
    # What an order makes has the id of its first line.
    starts = chain_starts(lines["kind"], lines["flags"], places == first)
    of_order = np.maximum.accumulate(np.where(starts, places, 0))
    of_order = np.where(lines["kind"] == Kind.EXPECT, places, of_order)
    low = lines["op_lo"] + (of_order - first).astype(np.uint64)
    lines["made_hi"], lines["made_lo"] = lines["op_hi"] + (low < lines["op_lo"]), low
    return lines


def _named(block: Block, lines: _Columns) -> tuple[NDArray[np.int64], _Columns]:
    """Lines that name their cell, each with its place in the order."""
    if not len(lines["kind"]):
        return np.zeros(0, np.int64), _blank(0)
    is_told = (block.status == Status.OK) & ~_CALLS[lines["kind"]] & (lines["location"] != 0)
    at = np.flatnonzero(is_told)
    found = {name: lines[name][at] for name in COLUMNS if name != "number"}
    kind, is_unnamed = found["kind"], (found["hold_hi"] | found["hold_lo"]) == 0
    makes = (kind == Kind.RESERVE) | ((kind == Kind.EXPECT) & is_unnamed)
    for half in ("hi", "lo"):
        found[f"hold_{half}"] = np.where(makes, lines[f"made_{half}"][at], found[f"hold_{half}"])
    traces = block.traces or NO_TRACES
    granted = np.flatnonzero(_is_grant(traces.line, traces.units, lines["kind"]))
    quantity = lines["quantity"].copy()
    quantity[traces.line[granted]] = traces.units[granted]
    found["quantity"] = quantity[at]
    return 2 * at.astype(np.int64) + 1, found


def _traced(
    block: Block, lines: _Columns, keys: NDArray[np.int64]
) -> tuple[NDArray[np.int64], _Columns]:
    """What lines did to cells that they do not name, each with its place in the order."""
    traces = block.traces or NO_TRACES
    is_again = np.isin(traces.line, traces.line[traces.units == 0]) & (traces.units > 0)
    is_told = ~_is_grant(traces.line, traces.units, lines["kind"]) & (traces.units != 0)
    kept = np.flatnonzero(is_told)
    line, row, units = traces.line[kept], traces.row[kept], traces.units[kept]
    found = _blank(len(kept), kind=EXPIRED) | _cells(keys[row])
    found["quantity"] = np.abs(units)
    called = np.flatnonzero(line >= 0)
    of_line = line[called]
    for name in ("op_hi", "op_lo", "line", *_OF_LINE):
        found[name][called] = lines[name][of_line]
    kind, units = lines["kind"][of_line], units[called]
    is_done = block.status[of_line] == Status.OK
    has_rest = (kind == Kind.COMMIT) & (lines["flags"][of_line] & Flag.RELEASE_REST != 0)
    is_released = (units < 0) & is_done & ((kind == Kind.RESERVE) | has_rest)
    is_moved = (kind == Kind.MOVE) & is_done
    found["kind"][called] = np.select(
        [is_released, is_moved | (units > 0)], [np.full_like(kind, Kind.RELEASE), kind], EXPIRED
    )
    found["quantity"][called[is_moved]] = units[is_moved]
    again = is_again[kept]  # reserved and committed in one step
    found["kind"][again] = Kind.RESERVE
    found["flags"][again] |= np.uint8(Flag.COMMIT_NOW)
    return 2 * line, found


def _is_grant(
    line: NDArray[np.int64], units: NDArray[np.int64], kinds: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Which traces only say how much a line got that allowed less."""
    grants = (line >= 0) & (units > 0)
    grants[grants] = kinds[line[grants]] == Kind.RESERVE
    return grants


def _blank(count: int, kind: int = 0) -> _Columns:
    columns: _Columns = {
        name: np.zeros(count, dtype) for name, dtype in COLUMNS.items() if name != "number"
    }
    columns["kind"][:] = kind
    return columns


def _cells(keys: NDArray[np.int64]) -> _Columns:
    return {
        "sku": (keys & _LOW32).astype(np.uint32),
        "location": (keys >> 32).astype(np.uint32),
    }
