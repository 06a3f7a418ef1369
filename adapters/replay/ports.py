"""What the replayer needs of the outside, as protocols; `wire` fulfils them over gRPC.

Calls go on until the engine has answered: they retry with the same op_id while it cannot be
reached, and raise `NotAnswered` when that takes too long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.replay.ledger import Cells
from engine.operations import Kind


class NotAnswered(Exception):  # noqa: N818 - a condition, for which the CLI has a sentence
    """The engine did not answer in time, though it was asked again and again."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What n lines were answered.

    `status` (n,). `now_ns` (n,): the time of each line's block. `ids` (n, 16): each line's own id,
    which is the hold's where a RESERVE opened one.
    """

    status: NDArray[np.uint8]
    now_ns: NDArray[np.int64]
    ids: NDArray[np.uint8]


class Stock(Protocol):
    """Operations on stock and price."""

    async def submit(self, op_id: bytes, columns: Mapping[str, NDArray[Any]]) -> Acknowledged:
        """Send one batch straight to the shards; columns as in `engine.operations.COLUMNS`."""

    async def reserve(
        self, op_id: bytes, lines: Sequence[tuple[int, int, int]], ttl_ms: int
    ) -> Acknowledged:
        """Reserve (SKU id, location id, quantity) lines with one unary call on the gateway."""

    async def step(self, kind: Kind, op_id: bytes, hold_id: bytes, location: int) -> Acknowledged:
        """COMMIT, RELEASE, FULFIL or CANCEL a whole hold with one unary call on the gateway."""

    async def cells(self) -> Cells:
        """Read every cell from the shards themselves."""
