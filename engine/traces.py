"""Traces: what the lines of a block did to cells that they do not name.

An operation on a hold names the hold and not its cells, and a hold that runs out is named by no
line. So the machine notes, line by line, which rows they changed and by how many units, and the
block carries that, for readers who tell each operation on a cell (`engine.events`).

A trace: `line` counts over all requests of the block, -1 is the sweep before the first one; `row`
is of the shard's cell table; `units` are positive where the line itself moved them to their next
state (or expects no more, or keeps them longer), negative where they were given back to the cell: by
a hold that ran out, was superseded, was moved away, or is not needed in full. One of 0 units comes before those of a COMMIT
that had to reserve again. The sweep's traces
are one a cell, in the order of the after-image's first rows; then they come in order of lines.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine import kernels


@dataclass(slots=True, eq=False)
class Traces:
    """Columns of shape (n,), int64."""

    line: NDArray[np.int64]
    row: NDArray[np.int64]
    units: NDArray[np.int64]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.line)

    @property
    def swept(self) -> int:
        """How many are of the sweep: these are the first ones."""
        return int(np.searchsorted(self.line, 0))


NO_TRACES: Final = Traces(*(np.zeros((3, 0), np.int64)))


def taken(state: kernels.State) -> Traces | None:
    """Copy those of the block that was just applied; None when they were more than are kept."""
    count = int(state.meta[kernels.TRACES])
    if not count:
        return NO_TRACES
    return Traces(*state.traces[:count].T.copy()) if count <= len(state.traces) else None
