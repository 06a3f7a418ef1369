"""Availability: read cells, some by name or all of some locations."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.ports import CellTable
from adapters.rpc import replies, requests
from adapters.rpc.requests import InvalidField
from engine import kernels, limits
from engine.catalogue import Catalogue
from engine.views import Cell
from onhand.v1 import availability_pb2, availability_pb2_grpc

CELLS_PER_PAGE: Final = 8_192  # 650 KB; a page is one message

_WORDS: Final = (
    ("on_hand", kernels.ON_HAND, "<i8"),
    ("reserved", kernels.RESERVED, "<i8"),
    ("committed", kernels.COMMITTED, "<i8"),
    ("damaged", kernels.DAMAGED, "<i8"),
    ("quality_control", kernels.QUALITY_CONTROL, "<i8"),
    ("safety_stock", kernels.SAFETY_STOCK, "<i8"),
    ("incoming", kernels.INCOMING, "<i8"),
    ("price_minor", kernels.PRICE, "<i8"),
    ("price_version", kernels.VERSION, "<u4"),
)


class Reader(Protocol):
    """Where cells are read: a `Router` (from the shards), or a gateway's mirrors."""

    async def cells(self, names: Sequence[tuple[int, int]]) -> list[Cell | None]:
        """Look up cells by (sku id, location id), in order; None where there is none."""

    def tables(
        self, locations: Sequence[int] | None = None
    ) -> AsyncIterator[tuple[int, CellTable]]:
        """Yield shard numbers and the rows of some locations, or all rows."""


class AvailabilityServicer(availability_pb2_grpc.AvailabilityServicer):
    """Reads from what it is given."""

    def __init__(self, reader: Reader, catalogue: Catalogue) -> None:
        self._reader = reader
        self._catalogue = catalogue

    async def GetCells(
        self, request: availability_pb2.GetCellsRequest, context: Any
    ) -> availability_pb2.GetCellsReply:
        """Answer cells in the order asked."""
        names = requests.cells(request, self._catalogue)
        found = await self._reader.cells(names)
        return availability_pb2.GetCellsReply(
            cells=[
                replies.cell(asked, *name, cell)
                for asked, name, cell in zip(request.cells, names, found, strict=True)
            ]
        )

    async def ListCells(
        self, request: availability_pb2.ListCellsRequest, context: Any
    ) -> AsyncIterator[availability_pb2.CellPage]:
        """Send every cell of some locations, shard by shard. An unknown location has none."""
        if len(request.locations) > limits.MAX_SUBSCRIPTION_NAMES:
            most = limits.MAX_SUBSCRIPTION_NAMES
            raise InvalidField(
                "locations", f"{len(request.locations)} entries, must be at most {most}"
            )
        locations = [
            requests.location_id(f"locations[{i}]", location, self._catalogue)
            for i, location in enumerate(request.locations)
        ]
        async for shard, table in self._reader.tables(locations or None):
            for first in range(0, len(table.cells), CELLS_PER_PAGE):
                yield _page(shard, table, table.cells[first : first + CELLS_PER_PAGE])


def _page(shard: int, table: CellTable, cells: NDArray[np.int64]) -> availability_pb2.CellPage:
    columns: dict[str, bytes] = {
        name: cells[:, word].astype(dtype).tobytes() for name, word, dtype in _WORDS
    }
    at = availability_pb2.StreamPosition(shard=shard, epoch=table.at.epoch, seq=table.at.seq)
    page = availability_pb2.CellPage(cells=len(cells), at=[at])
    page.sku = (cells[:, kernels.KEY] & 0xFFFFFFFF).astype("<u4").tobytes()
    page.location = (cells[:, kernels.KEY] >> 32).astype("<u4").tobytes()
    for name, packed in columns.items():
        setattr(page, name, packed)
    return page
