"""Availability: read cells, some by name or all of some locations."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.ports import CellTable
from adapters.rpc import replies, requests
from adapters.rpc.replies import Part
from adapters.rpc.requests import InvalidField
from engine import kernels, limits
from engine.block import NOT_SOLD
from engine.catalogue import Catalogue
from engine.channels import NO_SUCH_CHANNEL
from engine.mirror import available_of
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
        channel = self._channel(request.channel)
        # The cells of a bundle's components are looked up behind all that were asked for.
        made_of = self._catalogue.components
        parts = [(i, *part) for i, (sku, _) in enumerate(names) for part in made_of(sku)]
        found = await self._reader.cells(names + [(sku, names[i][1]) for i, sku, _ in parts])
        made: dict[int, list[Part]] = {}
        for (i, _, quantity), cell in zip(parts, found[len(names) :], strict=True):
            made.setdefault(i, []).append((quantity, cell))
        reply = availability_pb2.GetCellsReply()
        for i, (asked, name) in enumerate(zip(request.cells, names, strict=True)):
            buffer = self._catalogue.channels.buffer(channel, name[1]) if channel else 0
            if buffer is None:
                told = replies.cell(asked, *name, None)
            elif i in made:
                told = replies.bundle(asked, *name, found[i], made[i])
            else:
                told = replies.cell(asked, *name, found[i])
            if channel and buffer is not None:
                of = made.get(i) or [(1, found[i])]
                told.available_to_channel = replies.pieces(of, buffer)
            reply.cells.append(told)
        return reply

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
        channel = self._channel(request.channel)
        async for shard, table in self._reader.tables(locations or None):
            for first in range(0, len(table.cells), CELLS_PER_PAGE):
                cells = table.cells[first : first + CELLS_PER_PAGE]
                if not channel:
                    yield _page(shard, table, cells)
                    continue
                at = cells[:, kernels.KEY] >> 32
                buffers = self._catalogue.channels.buffer_column(channel, at)
                is_sold = buffers != NOT_SOLD
                page = _page(shard, table, cells[is_sold])
                to_channel = np.maximum(available_of(cells) - buffers, 0)[is_sold]
                page.available_to_channel = to_channel.astype("<i8").tobytes()
                yield page

    def _channel(self, code: str) -> int:
        """The number of a channel; 0 for no code."""
        number = self._catalogue.channel_number(code)
        if number == NO_SUCH_CHANNEL:
            raise InvalidField("channel", "not in the catalogue")
        return number


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
