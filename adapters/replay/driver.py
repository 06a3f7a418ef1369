"""Sends a plan: batches as Submits, a share of the orders as unary calls, a few at a time.

Op ids are a function of the run's id and of the place in the plan, so a line that is sent again,
after a crash of the shard too, has one effect. What is acknowledged goes into the ledger, in the
order of the acknowledgements. It must not know where the engine is or how it is reached.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adapters.journey import Batch, Catalogue, Plan
from adapters.journey.draws import chosen
from adapters.replay.ledger import Ledger
from adapters.replay.ports import Stock
from engine.operations import HOLD_KINDS, Flag, Kind, pair_to_id

RUN_BYTES: Final = 8
UNARY_IDS: Final = 1 << 63  # the low half of a unary op id has this bit, a batch's never
UNARY_IN_FLIGHT: Final = 16
ORDER_KINDS: Final = (Kind.RESERVE, *HOLD_KINDS)


@dataclass(frozen=True, slots=True)
class Ids:
    """The catalogue's ids: `sku` and `location` (by index of the plan) as arrays of uint32."""

    sku: NDArray[np.uint32]
    location: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Pace:
    """How a plan is sent."""

    max_lines: int = 8_190
    in_flight: int = 4
    unary_share: float = 0.10  # of orders
    kill_at: tuple[float, ...] = ()  # shares of the plan's trading
    run: bytes = field(default_factory=lambda: os.urandom(RUN_BYTES))

    def __post_init__(self) -> None:
        if len(self.run) != RUN_BYTES:
            raise ValueError(f"run: {len(self.run)} bytes, must be {RUN_BYTES}")


@dataclass(slots=True)
class Kill:
    """One crash of a shard that was made on purpose."""

    share: float  # of the plan's trading that was acknowledged then
    at_s: float  # of time.perf_counter
    recovered_ms: float = 0.0  # until a batch sent after it was acknowledged


@dataclass(slots=True)
class Timings:
    """What a replay took. Latencies run from the first try to the acknowledgement, in ms."""

    batch_ms: list[float] = field(default_factory=list)
    unary_ms: list[float] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    opening_s: float = 0.0
    trading_s: float = 0.0
    lines_opening: int = 0  # acknowledged
    lines_trading: int = 0  # acknowledged
    lines_unary: int = 0  # of these, by unary calls
    lines_skipped: int = 0  # not sent, because their order was refused


@dataclass(slots=True)
class Hooks:
    """What the driver tells and asks its owner; the default is nothing."""

    progress: Callable[[int], None] = lambda _lines: None  # so many lines more are done
    opened: Callable[[], Awaitable[None]] | None = None  # opening stock is acknowledged
    kill: Callable[[], Awaitable[None]] | None = None  # kill a shard, now


class Driver:
    """One replay; `run` it once."""

    def __init__(
        self,
        plan: Plan,
        catalogue: Catalogue,
        ids: Ids,
        stock: Stock,
        ledger: Ledger,
        pace: Pace | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.timings = Timings()
        self._plan = plan
        self._currency = catalogue.currency_number
        self._ids = ids
        self._stock = stock
        self._ledger = ledger
        self._pace = pace or Pace()
        self._hooks = hooks or Hooks()
        self._hold_hi = np.zeros(plan.orders, np.uint64)
        self._hold_lo = np.zeros(plan.orders, np.uint64)
        numbers = np.arange(plan.orders, dtype=np.int64)
        self._unary = chosen(numbers, "unary", self._pace.unary_share)
        self._unary_slots = asyncio.Semaphore(UNARY_IN_FLIGHT)
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._priced_in: dict[int, int] = {}  # cell key -> number of the last batch that set it
        self._kills_left = sorted(self._pace.kill_at)

    async def run(self) -> None:
        """Send everything. Raises what the engine's port raises, after stopping the rest."""
        began = time.perf_counter()
        slots = asyncio.Semaphore(self._pace.in_flight)
        opening = True
        try:
            async with asyncio.TaskGroup() as group:
                for batch in self._plan.batches(self._pace.max_lines, self._pace.in_flight):
                    if opening and not batch.opening:
                        opening = False
                        began = await self._opened(began)
                    await self._answered(max(batch.needs, self._same_prices(batch)))
                    await slots.acquire()
                    await self._kill_when_due()
                    sending = group.create_task(self._send(batch))
                    self._sending[batch.number] = sending
                    sending.add_done_callback(lambda _task: slots.release())
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        self.timings.trading_s = time.perf_counter() - began

    async def _opened(self, began: float) -> float:
        """Opening stock is a phase of its own: sales must not overtake it."""
        await self._answered(max(self._sending, default=-1))
        self.timings.opening_s = time.perf_counter() - began
        if self._hooks.opened is not None:
            await self._hooks.opened()
        return time.perf_counter()

    async def _answered(self, upto: int) -> None:
        """Wait for all batches up to that number."""
        for number in [each for each in self._sending if each <= upto]:
            await asyncio.wait((self._sending.pop(number),))

    def _same_prices(self, batch: Batch) -> int:
        """The last batch that prices a cell which this one prices: the books need their order."""
        place = batch.line[batch.kind == Kind.SET_PRICE]
        cells = self._ledger.key[place].tolist()
        last = max((self._priced_in.get(cell, -1) for cell in cells), default=-1)
        if not batch.opening:  # prices of the opening are the first, one a cell
            self._priced_in.update(dict.fromkeys(cells, batch.number))
        return last

    async def _kill_when_due(self) -> None:
        share = self.timings.lines_trading / max(1, len(self._plan) - self._plan.opening_lines)
        if self._kills_left and share >= self._kills_left[0] and self._hooks.kill is not None:
            self._kills_left.pop(0)
            self.timings.kills.append(Kill(round(share, 3), time.perf_counter()))
            await self._hooks.kill()

    # ------------------------------------------------------------------------------- one batch --

    async def _send(self, batch: Batch) -> None:
        skipped = self._ledger.skipped(batch.line)
        alone = np.isin(batch.kind, ORDER_KINDS) & np.append(self._unary, np.False_)[batch.order]
        bulk = np.flatnonzero(~skipped & ~alone)
        calls = [self._call(batch, at) for at in _by_order(batch, ~skipped & alone)]
        await asyncio.gather(self._submit(batch, bulk), *calls)
        self.timings.lines_skipped += int(np.count_nonzero(skipped))
        if batch.opening:
            self.timings.lines_opening += len(batch)
        else:
            self.timings.lines_trading += len(batch) - int(np.count_nonzero(skipped))
        self._hooks.progress(len(batch))

    async def _submit(self, batch: Batch, at: NDArray[np.intp]) -> None:
        """Send the lines `at` as one Submit."""
        if not len(at):
            return
        op_id = pair_to_id(int.from_bytes(self._pace.run, "big"), batch.number << 16)
        began = time.perf_counter()
        answer = await self._stock.submit(op_id, self._columns(batch, at))
        ended = time.perf_counter()
        self.timings.batch_ms.append((ended - began) * 1e3)
        for kill in self.timings.kills:
            if not kill.recovered_ms and began >= kill.at_s:
                kill.recovered_ms = (ended - kill.at_s) * 1e3
        self._note_holds(batch, at, answer.ids)
        self._ledger.record(batch.line[at], answer.status, answer.now_ns)

    def _note_holds(self, batch: Batch, at: NDArray[np.intp], ids: NDArray[np.uint8]) -> None:
        """Keep the hold ids of reserved orders: those of their first lines."""
        reserve = batch.kind[at] == Kind.RESERVE
        order, first = np.unique(batch.order[at][reserve], return_index=True)
        halves = ids[reserve][first].view(">u8")
        self._hold_hi[order], self._hold_lo[order] = halves[:, 0], halves[:, 1]

    def _columns(self, batch: Batch, at: NDArray[np.intp]) -> dict[str, Any]:
        """The columns of the lines `at`, by the names in `engine.operations.COLUMNS`."""
        kind, order = batch.kind[at], batch.order[at]
        on_hold = np.isin(kind, HOLD_KINDS)
        return {
            "kind": kind,
            "flags": batch.linked[at] * np.uint8(Flag.LINKED),
            "sku": np.where(on_hold, 0, self._ids.sku[batch.sku[at]]).astype(np.uint32),
            "location": self._ids.location[batch.store[at]],
            "quantity": batch.quantity[at],
            "value": batch.value[at],
            "currency": np.where(kind == Kind.SET_PRICE, self._currency, 0).astype(np.uint16),
            "hold_hi": _where(on_hold, self._hold_hi, order),
            "hold_lo": _where(on_hold, self._hold_lo, order),
        }

    async def _call(self, batch: Batch, at: NDArray[np.intp]) -> None:
        """Send one step of one order, the lines `at`, as a unary call."""
        order, kind = int(batch.order[at[0]]), Kind(int(batch.kind[at[0]]))
        run = int.from_bytes(self._pace.run, "big")
        location = self._ids.location[batch.store[at]]
        hold_id, op_id = (
            pair_to_id(run, UNARY_IDS | order << 8 | step) for step in (Kind.RESERVE, kind)
        )
        async with self._unary_slots:
            began = time.perf_counter()
            if kind == Kind.RESERVE:
                sku, quantity = self._ids.sku[batch.sku[at]], batch.quantity[at]
                lines = list(zip(sku.tolist(), location.tolist(), quantity.tolist(), strict=True))
                answer = await self._stock.reserve(op_id, lines, int(batch.value[at[0]]))
            else:
                answer = await self._stock.step(kind, op_id, hold_id, int(location[0]))
            self.timings.unary_ms.append((time.perf_counter() - began) * 1e3)
        self.timings.lines_unary += len(at)
        self._ledger.record(batch.line[at], answer.status, answer.now_ns)


def _where(
    on_hold: NDArray[np.bool_], holds: NDArray[np.uint64], order: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """The half of a hold's id for lines on holds, 0 for others."""
    column = np.zeros(len(order), np.uint64)
    column[on_hold] = holds[order[on_hold]]
    return column


def _by_order(batch: Batch, chosen_lines: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """The chosen lines in groups: all of one reserve, or one step."""
    at = np.flatnonzero(chosen_lines)
    ends = np.flatnonzero(batch.linked[at] == 0) + 1
    return np.split(at, ends[:-1]) if len(at) else []
