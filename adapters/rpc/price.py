"""Price: set and look up prices of cells."""

from typing import Any

from actors.router import Router
from adapters.rpc import replies, requests
from adapters.rpc.availability import Reader
from adapters.rpc.unary import UnaryRouter
from engine import currencies
from engine.catalogue import Catalogue
from onhand.v1 import common_pb2, price_pb2, price_pb2_grpc


class PriceServicer(price_pb2_grpc.PriceServicer):
    """Prices go to the shards by `router` and come from `reader` (a router, or a mirror)."""

    def __init__(self, router: Router, reader: Reader, catalogue: Catalogue) -> None:
        self._lines = UnaryRouter(router, catalogue)
        self._reader = reader
        self._catalogue = catalogue

    async def SetPrice(
        self, request: price_pb2.SetPriceRequest, context: Any
    ) -> common_pb2.OperationReply:
        """Set prices; each line by itself, but none where one is another shard's."""
        operation = requests.set_price(request, self._catalogue)
        return replies.operation(*await self._lines.submit(operation))

    async def GetPrices(
        self, request: price_pb2.GetPricesRequest, context: Any
    ) -> price_pb2.GetPricesReply:
        """Look prices up; of an unknown location or SKU none is found."""
        requests.check_count("skus", len(request.skus))
        catalogue = self._catalogue
        location = requests.location_id("location", request.location, catalogue)
        names = [
            (requests.sku_id(f"skus[{i}]", sku, catalogue), location)
            for i, sku in enumerate(request.skus)
        ]
        cells = await self._reader.cells(names)
        reply = price_pb2.GetPricesReply()
        if 0 < location <= catalogue.locations:
            reply.currency = currencies.CODES[catalogue.currency(location)]
        for asked, (sku, _), cell in zip(request.skus, names, cells, strict=True):
            price = reply.prices.add(sku=asked)
            if cell is not None and cell.price_version:
                price.sku.id = sku
                price.found = True
                price.price_minor = cell.price_minor
                price.price_version = cell.price_version
        return reply
