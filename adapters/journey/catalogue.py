"""The catalogue of the chain: its stores as locations, the products it sold as SKUs.

All 457 stores and 68,509 products of the year are here whichever weeks are replayed, so an index
means the same in every plan. 17 products have no master data (some stand for coupons); they are
kept and described as unknown. The data has no barcodes, and none are invented.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adapters.journey.dataset import is_fuel, scan_products, scan_transactions

CURRENCY: Final = "USD"
CURRENCY_NUMBER: Final = 840  # ISO 4217
ML_PER_LITRE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Stores and SKUs; the position in a list is the index that plans use, from 0.

    `store_ids` (457,) and `product_ids` (68,509,) are the data's own ids, ascending; a store's code
    is `S` and its id in at least four digits, a SKU's code is its product id. `units`: `EA`, or
    `ML` for fuel. `price_units` (68,509,): how many base units a price is for, 1 or for fuel 1,000
    (a price of 66 for a SKU in `ML` is 0.66 USD a litre). `package_sizes`: as in the data, such as
    `22 LB`; empty where it has none.
    """

    store_ids: NDArray[np.int64]
    store_codes: list[str]
    product_ids: NDArray[np.int64]
    sku_codes: list[str]
    descriptions: list[str]
    package_sizes: list[str]
    units: list[str]
    price_units: NDArray[np.int64]
    unknown_skus: int  # how many products have no master data
    currency: str = CURRENCY
    currency_number: int = CURRENCY_NUMBER

    def store_index(self, store_ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The indices of known stores, shape (n,)."""
        return np.searchsorted(self.store_ids, store_ids).astype(np.uint32)

    def sku_index(self, product_ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The indices of known products, shape (n,)."""
        return np.searchsorted(self.product_ids, product_ids).astype(np.uint32)


def read_catalogue() -> Catalogue:
    """The catalogue of the whole year."""
    sold = scan_transactions()
    stores = sold.select(pl.col("store_id").unique().sort()).collect()["store_id"]
    parts = ("department", "product_category", "product_type")
    skus = (
        sold.select(pl.col("product_id").unique().sort())
        .join(scan_products(), on="product_id", how="left", maintain_order="left")
        .select(
            "product_id",
            code=pl.col("product_id").cast(pl.String),
            unknown=pl.col("department").is_null(),
            description=pl.when(pl.col("department").is_null())
            .then(pl.lit("UNKNOWN PRODUCT"))
            .otherwise(pl.concat_str(parts, separator=" / ", ignore_nulls=True)),
            package_size=pl.col("package_size").fill_null(""),
            fuel=is_fuel(),
        )
        .collect()
    )
    fuel = skus["fuel"].to_numpy()
    return Catalogue(
        store_ids=stores.to_numpy(),
        store_codes=[f"S{store_id:04d}" for store_id in stores],
        product_ids=skus["product_id"].to_numpy(),
        sku_codes=skus["code"].to_list(),
        descriptions=skus["description"].to_list(),
        package_sizes=skus["package_size"].to_list(),
        units=np.where(fuel, "ML", "EA").tolist(),
        price_units=np.where(fuel, ML_PER_LITRE, 1).astype(np.int64),
        unknown_skus=int(skus["unknown"].sum()),
    )
