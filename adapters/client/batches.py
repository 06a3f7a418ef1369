"""Submit: columns of thousands of operations, cut by shard and put together again.

Each shard's lines travel as a batch of their own, in their order; a batch for one shard keeps its
id. Parts' ids follow from the batch's, so a batch that is repeated with its id has one effect as
long as the shard map places its locations as before, whichever way it goes. It is not the batch that
another client sends whole, by the gateway: that has other parts.
"""

import asyncio
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapters.client.calls import Caller
from adapters.client.errors import OnhandError
from adapters.client.ids import check_batch_id, line_ids, new_batch_id, part_id
from adapters.client.messages import endangered_from
from adapters.client.shard_map import ShardMap
from adapters.client.values import BatchResult, Endangered
from engine.limits import MAX_BATCH_LINES
from engine.operations import chain_starts
from engine.status import Status
from onhand.v1 import stock_pb2

_DTYPES: Final = {
    "kind": "u1",
    "flags": "u1",
    "sku": "<u4",
    "location": "<u4",
    "quantity": "<i8",
    "value": "<i8",
    "currency": "<u2",
    "channel": "<u2",
    "occurred_at_ns": "<i8",
}
_MOVES: Final = 3  # how often lines that a shard does not own are sent elsewhere


@dataclass(frozen=True, slots=True)
class Batch:
    """n lines of operations as columns; `engine.operations` says which kind reads which column.

    A column is an array of integers of shape (n,), or one integer for every line; n, at most
    MAX_BATCH_LINES, is the length of the longest. `sku` and `location` are dense ids. `hold`
    (n, 16) uint8: ids of holds, for lines on holds. Such a line needs a location of its hold too
    (and at a location that is split over shards, its SKU), so that it finds its shard.
    """

    kind: ArrayLike
    sku: ArrayLike = 0
    location: ArrayLike = 0
    quantity: ArrayLike = 0
    value: ArrayLike = 0
    flags: ArrayLike = 0
    currency: ArrayLike = 0
    channel: ArrayLike = 0
    occurred_at_ns: ArrayLike = 0
    hold: NDArray[np.uint8] | None = None


async def submit(
    caller: Caller, batch: Batch, op_id: bytes | None, *, want_available: bool
) -> BatchResult:
    """Send a batch, and wait until each line is answered and durable. Raises OnhandError.

    Lines whose location has moved are sent to the new owner, under ids of their own.
    """
    op_id = new_batch_id() if op_id is None else check_batch_id(op_id)
    columns = _columns(batch)
    answer = _Answer(op_id, len(columns["kind"]), want_available=want_available)
    todo = np.arange(answer.lines)
    try:
        for move in range(1 + _MOVES):
            await _send(caller, columns, todo, answer, f"{move}" if move else "")
            todo = _moved(columns["group"], answer.status)
            if not len(todo) or not caller.shard_map.addresses or move == _MOVES:
                break
            await caller.refresh()
    except OnhandError as error:
        error.op_id = op_id
        raise
    return answer.result()


class _Answer:
    """The answers to a batch's lines, as its parts bring them in."""

    def __init__(self, op_id: bytes, lines: int, *, want_available: bool) -> None:
        self.op_id = op_id
        self.lines = lines
        self.want_available = want_available
        self.status = np.zeros(lines, np.uint8)
        self.available = np.zeros(lines if want_available else 0, np.int64)
        self.hold_ids = np.zeros((lines, 16), np.uint8)
        self.now_ns = np.zeros(lines, np.uint64)
        self.granted = np.zeros(lines, np.int64)
        self.endangered: list[tuple[int, Endangered]] = []

    def take(self, places: NDArray[np.intp], part_op_id: bytes, reply: Any) -> None:
        """Take the reply to the lines at `places`."""
        self.status[places] = np.frombuffer(reply.status, np.uint8) if reply.status else 0
        if self.want_available:
            self.available[places] = np.frombuffer(reply.available, "<i8")
        self.hold_ids[places] = line_ids(part_op_id, len(places))
        self.now_ns[places] = reply.now_ns
        if reply.granted:
            self.granted[places] = np.frombuffer(reply.granted, "<i8")
        self.endangered += [
            (int(places[each.line]), endangered_from(each.endangered)) for each in reply.endangered
        ]

    def result(self) -> BatchResult:
        available = self.available if self.want_available else None
        return BatchResult(
            self.op_id,
            self.status,
            available,
            self.hold_ids,
            self.now_ns,
            self.granted,
            tuple(self.endangered),
        )


async def _send(
    caller: Caller,
    columns: dict[str, NDArray[Any]],
    todo: NDArray[np.intp],
    answer: _Answer,
    move: str,
) -> None:
    """Send the lines at `todo`, each to its shard, and wait for all of them.

    If parts fail, the others are awaited all the same, and the first failure is raised.
    """
    owners = _owners(caller.shard_map, columns, todo)
    shards = np.unique(owners).tolist()

    async def send(shard: int) -> None:
        places = todo[owners == shard]
        whole = len(shards) == 1 and not move
        part_op_id = answer.op_id if whole else part_id(answer.op_id, f"{shard}/{move}")
        request = _request(part_op_id, columns, places, answer.want_available)
        reply = await caller.call(lambda peer: peer.stock.Submit, request, shard)
        answer.take(places, part_op_id, reply)

    if len(shards) == 1:
        await send(shards[0])
        return
    sent = await asyncio.gather(*map(send, shards), return_exceptions=True)
    for failure in sent:
        if failure is not None:
            raise failure


def _columns(batch: Batch) -> dict[str, NDArray[Any]]:
    """The batch's columns at full length, and `group`: the number of each line's order.

    ValueError names the column that does not fit.
    """
    given = {
        each.name: np.asarray(getattr(batch, each.name))
        for each in fields(batch)
        if each.name != "hold"
    }
    hold = batch.hold
    lines = max(column.size for column in given.values())
    lines = lines if hold is None else max(lines, len(hold))
    if not 1 <= lines <= MAX_BATCH_LINES:
        raise ValueError(f"lines: {lines}, must be 1 to {MAX_BATCH_LINES}")
    columns = {name: _full(name, column, lines) for name, column in given.items()}
    if hold is None:
        hold = np.zeros((lines, 16), np.uint8)
    if hold.shape != (lines, 16) or hold.dtype != np.uint8:
        raise ValueError(f"hold: {hold.dtype} {hold.shape}, must be uint8 ({lines}, 16)")
    columns["hold"] = hold
    columns["group"] = np.cumsum(chain_starts(columns["kind"], columns["flags"])) - 1
    return columns


def _full(name: str, column: NDArray[Any], lines: int) -> NDArray[Any]:
    dtype = np.dtype(_DTYPES[name])
    if column.dtype.kind not in "iu":
        raise ValueError(f"{name}: {column.dtype}, must be integers")
    if column.size and column.dtype != dtype:
        limits = np.iinfo(dtype)
        if int(column.min()) < limits.min or int(column.max()) > limits.max:
            raise ValueError(f"{name}: out of range for {dtype}")
    if column.size == 1:
        return np.full(lines, column.reshape(-1)[0], dtype)
    if column.shape != (lines,):
        raise ValueError(f"{name}: shape {column.shape}, must be () or ({lines},)")
    return column.astype(dtype, copy=False)


def _owners(
    shard_map: ShardMap, columns: dict[str, NDArray[Any]], todo: NDArray[np.intp]
) -> NDArray[np.int64]:
    """The shard of each line at `todo`; linked lines go together, by the first of them."""
    if len(shard_map.addresses) == 1:
        return np.full(len(todo), next(iter(shard_map.addresses)), np.int64)
    owners = shard_map.shards_of(columns["location"][todo], columns["sku"][todo])
    _, first, inverse = np.unique(columns["group"][todo], return_index=True, return_inverse=True)
    return owners[first][inverse]


def _request(
    op_id: bytes, columns: dict[str, NDArray[Any]], places: NDArray[np.intp], want_available: bool
) -> stock_pb2.SubmitRequest:
    """The message for the lines at `places`; columns of one value travel as that value."""
    packed = {}
    for name in _DTYPES:
        column = columns[name][places]
        if (column == column[0]).all():
            column = column[:1] if column[0] else column[:0]
        packed[name] = column.tobytes()
    hold = columns["hold"][places]
    return stock_pb2.SubmitRequest(
        op_id=op_id,
        lines=len(places),
        hold=hold.tobytes() if hold.any() else b"",
        want_available=want_available,
        **packed,
    )


def _moved(group: NDArray[np.int64], status: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The lines that another shard must answer: those refused so, and the rest of their orders."""
    wrong = status == Status.WRONG_SHARD
    if not wrong.any():
        return np.empty(0, np.intp)
    return np.flatnonzero(np.isin(group, group[wrong]))
