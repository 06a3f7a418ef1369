"""A shard's whole state as bytes, and back: columns as they are, so that nothing is lost or moved.

    u32 length | msgpack header | cells, so many rows at a time
    u32 length | msgpack header | remembered answers | the arrays this header names

The cells, most of the state, are copied piece by piece while the machine goes on; what changes in
a row that was copied already is copied again at the end, with everything else. So a snapshot is the state at
its end, and neither its making nor its reading needs all of it twice. The indexes are left out and rebuilt.
Whoever stores the bytes checks them (CRC); the state hash in the second header is checked here against one
computed anew from the loaded rows.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from engine import kernels
from engine.block import packed_places, unpacked_places
from engine.machine import Machine
from engine.memory import AnswerMemory
from engine.rows import distinct

# To be raised with every change of what the bytes are or mean: words of a row, slots of `meta`, states,
# bits, sizes that do not follow from bounds. `tests/unit/test_snapshot.py` notices.
FORMAT: Final = 7
PIECE_ROWS: Final = 1 << 14  # cells that are copied in one go: 1.4 MB, a fraction of a millisecond
_LENGTH: Final = struct.Struct("<I")
_CHUNK: Final = 4 << 20  # bytes


class SnapshotDamaged(ValueError):  # noqa: N818 - a condition of the bytes
    """The bytes are not a whole snapshot of a known format; says what is wrong."""


class OtherFormat(SnapshotDamaged):
    """The bytes are of another version of this room. Nothing of them was loaded."""


class Capture:
    """A snapshot in the making: take `pieces` between blocks, then `finish`.

    From its making to `finish`, `note` must be told the rows that each block changed.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._rows = machine.cells  # those that came later are copied at the end
        self._copied = 0
        self._changed: list[NDArray[np.int32]] = []  # rows among the copied ones

    def note(self, rows: NDArray[np.int32]) -> None:
        """Rows of cells have changed."""
        rows = rows[rows < self._copied]
        if len(rows):
            self._changed.append(rows)
        if len(self._changed) > _MERGE:
            self._changed = [distinct(self._changed)]

    def pieces(self) -> Iterator[bytes]:
        """The cells' rows, each piece copied at the moment when it is asked for."""
        yield _packed({"v": FORMAT, "rows": self._rows})
        while self._copied < self._rows:
            state = self._machine.state
            these = slice(self._copied, min(self._copied + PIECE_ROWS, self._rows))
            self._copied = these.stop
            yield state.cells[these].tobytes() + state.counted[these].tobytes()

    def finish(self, memory: AnswerMemory, chain: int) -> Iterator[bytes]:
        """What is left, copied now; `chain` is the CRC32C of the last block.

        ValueError while there are `pieces` left.
        """
        if self._copied < self._rows:
            raise ValueError(f"{self._copied} of {self._rows} rows were copied")
        machine, state = self._machine, self._machine.state
        used = int(state.meta[kernels.HOLDS_USED])
        changed = distinct(self._changed)
        meta = state.meta.copy()
        meta[kernels.WARM] = 0  # tells nothing, and is another number with another way of warming
        arrays: dict[str, NDArray[Any]] = {
            "changed": changed,
            "changed_cells": state.cells[changed],
            "changed_counted": state.counted[changed],
            "new_cells": state.cells[self._rows : machine.cells].copy(),
            "new_counted": state.counted[self._rows : machine.cells].copy(),
            "movements": state.movements[: machine.movements_used, : kernels.BEFORE].copy(),
            "holds": state.holds[:used].copy(),
            "wheel": state.wheel.copy(),
            "wheel_bits": state.wheel_bits.copy(),
            "ring": state.ring.copy(),
            "meta": meta,
        }
        remembered = memory.dump()
        header = _packed(
            {
                "hash": machine.state_hash,
                "chain": chain,
                "places": packed_places(machine.places.values()),
                "memory": len(remembered),
                "arrays": [(name, a.dtype.str, a.shape) for name, a in arrays.items()],
            }
        )
        return _cut([header, remembered, *arrays.values()])


_MERGE: Final = 256  # lists of changed rows that are kept apart


def dump(machine: Machine, memory: AnswerMemory, chain: int) -> Iterator[bytes]:
    """A snapshot of a machine that stands still, in pieces of at most a few MiB."""
    capture = Capture(machine)
    yield from capture.pieces()
    yield from capture.finish(memory, chain)


def _packed(header: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(header)
    return _LENGTH.pack(len(body)) + body


def _cut(parts: list[Any]) -> Iterator[bytes]:
    for part in parts:
        view = memoryview(part).cast("B") if len(part) else memoryview(b"")
        for at in range(0, len(view), _CHUNK):
            yield bytes(view[at : at + _CHUNK])


class _Stream:
    """Reads pieces of any size as one run of bytes."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest, self._at = b"", 0  # the piece that is being read, and up to where

    def fill(self, array: NDArray[Any]) -> None:
        """Read an array's bytes into it. ValueError when there are fewer."""
        into = array.reshape(-1).view(np.uint8)
        at = 0
        while at < len(into):
            if not self._rest:
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    raise ValueError(f"{len(into) - at} bytes are missing")
            taken = memoryview(self._rest)[self._at : self._at + len(into) - at]
            into[at : at + len(taken)] = taken
            at += len(taken)
            self._at += len(taken)
            if self._at == len(self._rest):
                self._rest, self._at = b"", 0

    def take(self, count: int) -> bytes:
        """Read so many bytes."""
        array = np.empty(count, np.uint8)
        self.fill(array)
        return array.tobytes()

    def header(self) -> dict[str, Any]:
        """Read a header."""
        found: dict[str, Any] = msgpack.unpackb(self.take(_LENGTH.unpack(self.take(4))[0]))
        return found

    def end(self) -> None:
        """Make sure that nothing is left. ValueError."""
        if self._rest or next(self._pieces, b""):
            raise ValueError("bytes are left over")


def _known(header: dict[str, Any]) -> dict[str, Any]:
    if header["v"] != FORMAT:
        raise OtherFormat(f"format {header['v']}, this is {FORMAT}")
    return header


def load(pieces: Iterable[bytes], machine: Machine, memory: AnswerMemory) -> int:
    """Fill a new machine and memory from a snapshot's bytes; returns the chain's CRC32C.

    Raises OtherFormat before anything else, SnapshotDamaged, and ValueError when the machine has
    other bounds.
    """
    stream = _Stream(pieces)
    try:
        rows = _known(stream.header())["rows"]
        cells, counted = machine.room_for_cells(rows)
        for at in range(0, rows, PIECE_ROWS):
            these = slice(at, min(at + PIECE_ROWS, rows))
            stream.fill(cells[these])
            stream.fill(counted[these])
        header = stream.header()
        memory.load(stream.take(header["memory"]))
        arrays: dict[str, NDArray[Any]] = {}
        for name, dtype, shape in header["arrays"]:
            arrays[name] = np.empty(shape, dtype)
            stream.fill(arrays[name])
        stream.end()
    except SnapshotDamaged:
        raise
    except (KeyError, ValueError, TypeError, MemoryError, struct.error) as error:
        raise SnapshotDamaged(f"not a snapshot of format {FORMAT}: {error}") from error
    machine.restore(rows, arrays, unpacked_places(header["places"]))
    if machine.recomputed_hash() != header["hash"]:
        raise SnapshotDamaged("the state hash does not match")
    return int(header["chain"])
