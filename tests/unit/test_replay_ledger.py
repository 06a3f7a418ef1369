"""The replay's own books agree with an engine that obeys the rules, and catch one that does not."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("polars")

from adapters.journey import Catalogue, Plan, PlanOptions
from adapters.journey import lines as ln
from adapters.journey.cells import OpeningStock
from adapters.replay.driver import Driver, Hooks, Ids, Pace
from adapters.replay.ledger import COLUMNS, Cells, Ledger, OrderState, cell_key
from adapters.replay.ports import Acknowledged
from engine.operations import (
    COLUMNS as TYPES,
)
from engine.operations import Disposition, Kind, Request, line_id
from engine.reference import ReferenceMachine
from engine.status import Status

USD = 840
STORES, SKUS = 2, 3
CATALOGUE = Catalogue(
    store_ids=np.arange(STORES),
    store_codes=["S0000", "S0001"],
    product_ids=np.arange(SKUS),
    sku_codes=["10", "11", "12"],
    descriptions=["a", "b", "c"],
    package_sizes=["", "", ""],
    units=["EA", "EA", "ML"],
    price_units=np.ones(SKUS, np.int64),
    unknown_skus=0,
)
IDS = Ids(sku=np.arange(1, SKUS + 1, dtype=np.uint32), location=np.array([7, 9], np.uint32))


class FakeStock:
    """The engine's port over the reference machine; each call is a block."""

    def __init__(self, lies: Callable[[dict[str, NDArray[Any]]], None] | None = None) -> None:
        self.machine = ReferenceMachine()
        self.machine.set_sku_limit(SKUS)
        for location in IDS.location.tolist():
            self.machine.set_location(location, owned=True, currency=USD)
        self.submits: list[bytes] = []
        self.calls: list[Kind] = []
        self._lies = lies or (lambda _columns: None)
        self._now_ns = time.time_ns()

    async def submit(self, op_id: bytes, columns: Mapping[str, NDArray[Any]]) -> Acknowledged:
        self.submits.append(op_id)
        return self._apply(op_id, dict(columns))

    async def reserve(
        self, op_id: bytes, lines: Sequence[tuple[int, int, int]], ttl_ms: int
    ) -> Acknowledged:
        self.calls.append(Kind.RESERVE)
        sku, location, quantity = np.array(lines).T
        kind, value = np.full(len(lines), Kind.RESERVE), np.full(len(lines), ttl_ms)
        flags = np.ones(len(lines), np.uint8)
        flags[-1] = 0
        columns = {"kind": kind, "flags": flags, "value": value, "sku": sku}
        return self._apply(op_id, columns | {"location": location, "quantity": quantity})

    async def step(self, kind: Kind, op_id: bytes, hold_id: bytes, location: int) -> Acknowledged:
        self.calls.append(kind)
        high, low = int.from_bytes(hold_id[:8], "big"), int.from_bytes(hold_id[8:], "big")
        columns = {"kind": [kind], "hold_hi": [high], "hold_lo": [low]}
        return self._apply(
            op_id, {name: np.array(col, TYPES[name]) for name, col in columns.items()}
        )

    async def cells(self) -> Cells:
        found = self.machine.cells
        key = cell_key(
            np.array([location for _, location in found], np.uint32),
            np.array([sku for sku, _ in found], np.uint32),
        )
        columns = {
            name: np.array([getattr(cell, name) for cell in found.values()], np.int64)
            for name in COLUMNS
        }
        return Cells(key, columns)

    def pass_time(self, seconds: float) -> int:
        self._now_ns += int(seconds * 1e9)
        self.machine.apply(self._now_ns, [])
        return self._now_ns

    def _apply(self, op_id: bytes, columns: dict[str, NDArray[Any]]) -> Acknowledged:
        self._now_ns += 1
        self._lies(columns)
        typed = {name: np.asarray(column).astype(TYPES[name]) for name, column in columns.items()}
        request = Request.of(op_id, len(typed["kind"]), **typed)
        statuses = self.machine.apply(self._now_ns, [request]).answers[0].status
        lines = len(statuses)
        ids = np.frombuffer(b"".join(line_id(op_id, i) for i in range(lines)), np.uint8)
        return Acknowledged(
            np.frombuffer(statuses, np.uint8), np.full(lines, self._now_ns), ids.reshape(-1, 16)
        )


def tiny_plan(trading: Sequence[dict[str, int]]) -> Plan:
    """10 of each SKU at each store, priced at 100; then the given lines, one a second."""
    here = np.arange(STORES * SKUS)
    place = {"sku": here % SKUS, "store": here // SKUS, "second": 0}
    opening = [
        ln.part(len(here), kind=Kind.RECEIVE, quantity=10, **place),
        ln.part(len(here), kind=Kind.SET_PRICE, value=100, **place),
    ]
    rows = [
        (ln.RANK_LINE, ln.part(1, **{"sku": 0, "store": 0, "second": second, "basket": 0} | row))
        for second, row in enumerate(trading)
    ]
    lines = ln.join(opening, rows)
    stock = OpeningStock(
        store=np.empty(0, np.uint32),
        sku=np.empty(0, np.uint32),
        demand=np.empty(0, np.int64),
        quantity=np.empty(0, np.int64),
        short=np.empty(0, np.bool_),
    )
    orders = int(lines.order.max()) + 1
    return Plan(
        PlanOptions(weeks=1), lines, 2 * len(here), stock, np.zeros(1, np.int64), orders, []
    )


def books(plan: Plan, baseline: Cells | None = None) -> Ledger:
    lines = plan.lines
    key = cell_key(IDS.location[lines.store], IDS.sku[lines.sku])
    return Ledger(lines, key, plan.orders, key[:0], baseline or Cells.none())


async def replayed(
    plan: Plan, stock: FakeStock, pace: Pace | None = None, hooks: Hooks | None = None
) -> tuple[Ledger, Driver]:
    ledger = books(plan, await stock.cells())
    driver = Driver(plan, CATALOGUE, IDS, stock, ledger, pace, hooks)
    await driver.run()
    return ledger, driver


SALE = {"kind": Kind.SALE, "quantity": 3}


def order(number: int, quantity: int = 4, ttl_ms: int = 60_000, **more: int) -> dict[str, int]:
    return {
        "kind": Kind.RESERVE,
        "order": number,
        "quantity": quantity,
        "value": ttl_ms,
    } | more


def step(kind: Kind, number: int, after: int) -> dict[str, int]:
    return {"kind": kind, "order": number, "after": after}


HISTORY: list[dict[str, int]] = [
    SALE,
    order(0, linked=1),
    order(0, quantity=2, sku=1),
    step(Kind.COMMIT, 0, 1),
    step(Kind.FULFIL, 0, 3),
    order(1, store=1),
    step(Kind.RELEASE, 1, 5),
    order(2, store=1),
    step(Kind.COMMIT, 2, 7),
    step(Kind.CANCEL, 2, 8),
    order(3, store=1, sku=2, ttl_ms=1_000),
    order(4, quantity=11, store=1, sku=1),  # more than there is
    step(Kind.COMMIT, 4, 11),
    step(Kind.FULFIL, 4, 12),
    {"kind": Kind.RETURN, "quantity": 1, "value": Disposition.DAMAGED, "store": 1},
    {"kind": Kind.RETURN, "quantity": 2, "value": Disposition.QUALITY_CONTROL},
    {"kind": Kind.RETURN, "quantity": 1, "value": Disposition.RESTOCK, "order": 0, "after": 4},
    {"kind": Kind.SET_PRICE, "value": 90},
    {"kind": Kind.SET_PRICE, "value": 90},
    {"kind": Kind.SET_PRICE, "value": 110},
    {"kind": Kind.SALE, "quantity": 12, "sku": 2},  # a shortage
]


@pytest.mark.parametrize("unary_share", [0.0, 1.0])
@pytest.mark.parametrize("max_lines", [3, 100])
async def test_books_agree_with_an_engine_that_obeys(max_lines: int, unary_share: float) -> None:
    stock, plan = FakeStock(), tiny_plan(HISTORY)
    ledger, driver = await replayed(plan, stock, Pace(max_lines, 2, unary_share))
    assert ledger.state[3] == OrderState.RESERVED
    now_ns = stock.pass_time(2)
    ledger.expire(now_ns)
    assert ledger.differences(await stock.cells()) == []
    refused = [it for it in ledger.unexpected if it.status != Status.INSUFFICIENT_STOCK]
    assert refused == []
    assert ledger.orders_by_state() == {
        "refused": 1, "fulfilled": 1, "cancelled": 1, "released": 1, "expired": 1,
    }  # fmt: skip
    assert ledger.shortages() == 1
    assert driver.timings.lines_skipped == 2
    assert bool(stock.calls) == bool(unary_share)


async def test_refusal_where_there_was_enough_is_unexpected() -> None:
    plan = tiny_plan([order(0, quantity=11)])
    ledger, _ = await replayed(plan, FakeStock(), Pace(unary_share=0))
    assert [it.status for it in ledger.unexpected] == [Status.INSUFFICIENT_STOCK]
    ledger = books(plan)
    ledger.short = ledger.key[-1:]
    ledger.record(
        np.array([len(plan) - 1]), np.array([Status.INSUFFICIENT_STOCK], np.uint8), now_ns=1
    )
    assert ledger.unexpected == []


async def test_engine_that_loses_a_sale_is_found_out() -> None:
    def lose_sales(columns: dict[str, NDArray[Any]]) -> None:
        columns["quantity"] = np.where(columns["kind"] == Kind.SALE, 1, columns["quantity"])

    stock = FakeStock(lose_sales)
    ledger, _ = await replayed(tiny_plan([SALE]), stock, Pace(unary_share=0))
    (found,) = ledger.differences(await stock.cells())
    assert (found.column, found.expected, found.found) == ("on_hand", 7, 9)
    assert (found.location, found.sku) == (7, 1)


async def test_cell_that_no_one_told_of_is_found_out() -> None:
    stock, plan = FakeStock(), tiny_plan([SALE])
    ledger, _ = await replayed(plan, stock, Pace(unary_share=0))
    cells = await stock.cells()
    stray = Cells(
        np.append(cells.key, np.int64(99 << 32 | 1)),
        {
            name: np.append(column, np.int64(name == "reserved"))
            for name, column in cells.columns.items()
        },
    )
    assert [(it.location, it.column) for it in ledger.differences(stray)] == [(99, "reserved")]


async def test_a_second_replay_counts_on_top_of_the_first() -> None:
    stock, plan = FakeStock(), tiny_plan(HISTORY)
    await replayed(plan, stock)
    stock.pass_time(2)
    ledger, _ = await replayed(plan, stock)
    ledger.expire(stock.pass_time(2))
    assert ledger.differences(await stock.cells()) == []


async def test_step_of_an_order_that_was_never_reserved_is_unexpected() -> None:
    plan = tiny_plan([order(0), step(Kind.COMMIT, 0, 0)])
    ledger = books(plan)
    ledger.record(np.array([len(plan) - 1]), np.zeros(1, np.uint8), now_ns=1)
    assert [(it.kind, it.why) for it in ledger.unexpected] == [
        (Kind.COMMIT, "the order was PLANNED")
    ]


async def test_half_an_order_is_unexpected() -> None:
    plan = tiny_plan([order(0, linked=1), order(0, sku=1)])
    ledger = books(plan)
    answers = np.array([Status.OK, Status.LINKED_LINE_REFUSED], np.uint8)
    ledger.record(np.arange(len(plan) - 2, len(plan)), answers, now_ns=1)
    assert [it.why for it in ledger.unexpected] == ["part of the order was refused, part was not"]


async def test_ids_repeat_for_the_same_run_and_differ_between_batches() -> None:
    runs = []
    for _ in range(2):
        stock = FakeStock()
        await replayed(tiny_plan(HISTORY), stock, Pace(max_lines=4, unary_share=0, run=b"same run"))
        runs.append(stock.submits)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0]) > 4
    assert all(op_id.endswith(b"\0\0") for op_id in runs[0])


async def test_kill_comes_once_and_part_way() -> None:
    killed_after: list[int] = []
    done = 0

    def progress(lines: int) -> None:
        nonlocal done
        done += lines

    async def kill() -> None:
        killed_after.append(done)

    plan = tiny_plan([SALE] * 50)
    hooks = Hooks(progress=progress, kill=kill)
    pace = Pace(max_lines=5, in_flight=1, kill_at=(0.5,))
    _, driver = await replayed(plan, FakeStock(), pace, hooks)
    (done_then,) = killed_after
    assert plan.opening_lines < done_then < len(plan)
    assert driver.timings.kills[0].recovered_ms > 0
