"""The client's part for tills, which tell their day late, twice, and in any order."""

from typing import Final

from adapters.client.goods import Goods
from adapters.client.holds import Holds
from adapters.client.ids import op_id_of
from adapters.client.values import ReceiptLine, Result, ReturnLine
from adapters.receipts import sale_id
from engine.status import Status

# How often a return is tried under another op_id. The first time that its sale is known is the last
# one, unless that was forgotten since; so more than two are of tills that go their own way.
RETURN_ATTEMPTS: Final = 16


class Tills(Holds, Goods):
    """Facts that have names of their own: lines of receipts."""

    async def till_return(
        self, line: ReturnLine, *, receipt: ReceiptLine, occurred_at_ns: int = 0
    ) -> Result:
        """Record what came back by a line of a receipt: one effect, however often it is told.

        `receipt` is that of the return itself, `line.against` may be that of the sale. A return that
        is told before its sale is refused with UNKNOWN_HOLD, as is every repetition of its op_id. So
        op_ids are made of where the goods came back, the receipt and an attempt's number. When the
        last attempt was refused so, and what it names is known by now, there is another one,
        RETURN_ATTEMPTS at most. The result is that of the last one: UNKNOWN_HOLD says that the
        sale is not there yet, and the return is to be told again, from the beginning. The same
        return must be told alike, with the location by its id or by its code.
        """
        line = ReturnLine(*line)
        attempt = 0
        while True:
            op_id = op_id_of("return", line.location, *receipt, attempt=attempt)
            result = await self.return_([line], occurred_at_ns=occurred_at_ns, op_id=op_id)
            attempt += 1
            if result.status is not Status.UNKNOWN_HOLD or attempt == RETURN_ATTEMPTS:
                return result
            if not await self._is_known(line):
                return result  # as all further attempts would be

    async def _is_known(self, line: ReturnLine) -> bool:
        """Whether what goods are returned of is there, where it is said to be."""
        sold_at, against = line.sold_at, line.against
        if not isinstance(against, bytes):
            sold_at = line.location if sold_at is None else sold_at
            against = sale_id(await self._location_id(sold_at), *against)
        return await self.get_hold(against, location=sold_at) is not None
