"""The replayer's way to the engine: the Python client, direct for batches, by the gateway else."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from adapters.client import (
    Batch,
    CellPage,
    Client,
    Location,
    OnhandError,
    Result,
    Sku,
    Unavailable,
)
from adapters.journey import Catalogue
from adapters.replay.driver import Ids
from adapters.replay.ledger import COLUMNS, Cells, cell_key
from adapters.replay.ports import Acknowledged, NotAnswered
from engine.limits import MAX_CATALOG_ENTRIES, MAX_DESCRIPTION
from engine.operations import Kind

PATIENCE_S: Final = 120.0  # a replay outlives that much of an outage; the client's own retries less

T = TypeVar("T")


class WireStock:
    """`ports.Stock` over gRPC: `direct` calls the shards themselves, `gateway` the front door.

    `addresses` tells where the shards' own servers are: proofs are read there and nowhere else.
    """

    def __init__(
        self, direct: Client, gateway: Client, addresses: Callable[[], Awaitable[list[str]]]
    ) -> None:
        self._direct = direct
        self._gateway = gateway
        self._addresses = addresses
        self._steps: dict[Kind, Callable[..., Awaitable[Result]]] = {
            Kind.COMMIT: gateway.commit,
            Kind.RELEASE: gateway.release,
            Kind.FULFIL: gateway.fulfil,
            Kind.CANCEL: gateway.cancel,
        }

    async def submit(self, op_id: bytes, columns: Mapping[str, NDArray[Any]]) -> Acknowledged:
        """Send one batch straight to the shards."""
        rest = dict(columns)
        halves = np.column_stack([rest.pop("hold_hi"), rest.pop("hold_lo")])
        hold = halves.astype(">u8").view(np.uint8)
        batch = Batch(**rest, hold=hold if halves.any() else None)
        found = await _patiently(lambda: self._direct.submit(batch, op_id=op_id))
        return Acknowledged(found.status, found.now_ns.astype(np.int64), found.hold_ids)

    async def reserve(
        self, op_id: bytes, lines: Sequence[tuple[int, int, int]], ttl_ms: int
    ) -> Acknowledged:
        """Reserve with one unary call on the gateway."""
        return _acknowledged(
            await _patiently(lambda: self._gateway.reserve(lines, ttl_ms=ttl_ms, op_id=op_id))
        )

    async def step(self, kind: Kind, op_id: bytes, hold_id: bytes, location: int) -> Acknowledged:
        """One step of a whole hold with one unary call on the gateway."""
        call = self._steps[kind]
        found = await _patiently(lambda: call(hold_id, location=location, op_id=op_id))
        return _acknowledged(found, lines=1)

    async def cells(self) -> Cells:
        """Read every cell from the shards themselves, one after the other."""
        pages: list[CellPage] = []
        for address in await self._addresses():
            # With the shard for its gateway, the client has nobody else to ask.
            async with Client.connect(address, direct=False) as shard:
                pages += await _patiently(partial(_pages, shard))
        return cells_of(pages)


async def _pages(shard: Client) -> list[CellPage]:
    return [page async for page in shard.list_cells()]


def cells_of(pages: Sequence[CellPage]) -> Cells:
    """Pages as the ledger compares them."""
    if not pages:
        return Cells.none()
    columns = {
        name: np.concatenate([getattr(page, name) for page in pages]).astype(np.int64)
        for name in COLUMNS
    }
    key = np.concatenate([cell_key(page.location, page.sku) for page in pages])
    return Cells(key, columns)


async def add_catalogue(
    client: Client, catalogue: Catalogue, progress: Callable[[int], None]
) -> Ids:
    """Add all stores and SKUs by the Catalog service, and tell their ids."""
    stores = [Location(code, catalogue.currency) for code in catalogue.store_codes]
    location = await client.add_locations(stores)
    progress(len(location))
    skus = [
        Sku(code, unit, f"{text} {size}".strip()[:MAX_DESCRIPTION])
        for code, unit, text, size in zip(
            catalogue.sku_codes,
            catalogue.units,
            catalogue.descriptions,
            catalogue.package_sizes,
            strict=True,
        )
    ]
    ids: list[int] = []
    for part in _parts(skus):
        ids += await client.add_skus(part)
        progress(len(part))
    return Ids(sku=np.array(ids, np.uint32), location=np.array(location, np.uint32))


def _parts(skus: list[Sku]) -> Iterator[list[Sku]]:
    for begin in range(0, len(skus), MAX_CATALOG_ENTRIES):
        yield skus[begin : begin + MAX_CATALOG_ENTRIES]


def _acknowledged(found: Result, lines: int = 0) -> Acknowledged:
    """A unary answer as columns; one that names no lines has `lines` of its own status."""
    status = [line.status for line in found.lines] if not lines else [found.status] * lines
    ids = np.zeros((len(status), 16), np.uint8)  # unary holds have the op_id that was chosen
    return Acknowledged(np.array(status, np.uint8), np.full(len(status), found.now_ns), ids)


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again, with the same op_id, for as long as the engine may be coming back."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await ask()
        except Unavailable as error:
            if time.monotonic() > ends:
                raise NotAnswered(f"no answer within {PATIENCE_S:g} s: {error}") from error
        except OnhandError as error:
            raise NotAnswered(str(error)) from error
