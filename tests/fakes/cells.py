"""A shard's cells in plain dicts, with the blocks that its changes make. It judges nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.ports import CellTable, Position, Unavailable
from engine.block import AfterImage, Block, encode
from engine.kernels import CELL_WORDS, KEY
from tests.fakes.journal import MemoryStream

Changes = Mapping[tuple[int, int], Mapping[int, int]]  # (sku, location): word: new value


class FakeShard:
    """Writes to a MemoryStream as its owner, and is its own ShardLink. `down` makes reads fail."""

    def __init__(self, number: int = 0, stream: MemoryStream | None = None) -> None:
        self.number, self.stream = number, stream
        self.cells_by_key: dict[int, list[int]] = {}  # in order of row
        self.rows: dict[int, int] = {}
        self.at, self.crc, self.now_ns = Position(0, 0), 0, 1_000
        self.down = False
        self.tables = 0
        self.blocks: list[tuple[Block, int]] = []

    def open_epoch(self) -> bytes:
        self.at = self.at.opening()
        return self._write(Block(self.number, *self._place, self.now_ns, 0, 0, 0, nonce=b"n" * 16))

    def write(self, changes: Changes) -> bytes:
        """One block that sets words of cells; a cell without words is touched and keeps them."""
        self.at = self.at.next()
        self.now_ns += 1_000
        first_new = len(self.rows)
        words = sorted({word for values in changes.values() for word in values})
        rows, new_keys = [], []
        for (sku, location), values in changes.items():
            key = location << 32 | sku
            if key not in self.rows:
                self.rows[key] = len(self.rows)
                self.cells_by_key[key] = [key] + [0] * (CELL_WORDS - 1)
                new_keys.append(key)
            rows.append(self.rows[key])
            for word, value in values.items():
                self.cells_by_key[key][word] = value
        table = self.array()
        picked = np.array(rows, np.int32)
        image = AfterImage(
            picked, first_new, np.array(new_keys, np.int64),
            {word: table[picked, word] for word in words},
        )  # fmt: skip
        block = Block(self.number, *self._place, self.now_ns, self.crc, 0, 0, image=image)
        return self._write(block)

    def array(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        rows = list(self.cells_by_key.values())
        return np.array(rows, np.int64).reshape(len(rows), CELL_WORDS)

    async def table(self, locations: Sequence[int] | None = None) -> CellTable:
        self.tables += 1
        if self.down:
            raise Unavailable("down")
        cells = self.array()
        if locations is not None:
            cells = cells[np.isin(cells[:, KEY] >> 32, locations)]
        cells.flags.writeable = False  # as an array is that came from another process
        return CellTable(self.at, self.now_ns, cells)

    @property
    def _place(self) -> tuple[int, int]:
        return self.at.epoch, self.at.seq

    def _write(self, block: Block) -> bytes:
        payload, self.crc = encode(block)
        self.blocks.append((block, self.crc))
        if self.stream is not None:
            self.stream.add(self.at, payload)
        return payload
