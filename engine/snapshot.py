"""A shard's whole state as bytes, and back: columns as they are, so that nothing is lost or moved.

    u32 header length | msgpack header | the arrays the header names, one after the other

The indexes are left out and rebuilt. Whoever stores the bytes checks them (CRC); the state hash in
the header is checked here against one computed anew from the loaded rows.
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

FORMAT: Final = 2
_LENGTH: Final = struct.Struct("<I")
_CHUNK: Final = 4 << 20  # bytes


class SnapshotDamaged(ValueError):  # noqa: N818 - a condition of the bytes
    """The bytes are not a whole snapshot of a known format; says what is wrong."""


def dump(machine: Machine, memory: AnswerMemory, chain: int) -> Iterator[bytes]:
    """The state in pieces of at most a few MiB.

    `chain` is the CRC32C of the last block, which the next one will name. Everything is copied
    before the first piece is asked for, so the machine may go on at once.
    """
    state = machine.state
    used = int(state.meta[kernels.HOLDS_USED])
    arrays: dict[str, NDArray[Any]] = {
        "cells": state.cells[: machine.cells].copy(),
        "counted": state.counted[: machine.cells].copy(),
        "movements": state.movements[: machine.movements_used, : kernels.BEFORE].copy(),
        "holds": state.holds[:used].copy(),
        "wheel": state.wheel.copy(),
        "wheel_bits": state.wheel_bits.copy(),
        "ring": state.ring.copy(),
        "meta": state.meta.copy(),
    }
    remembered = memory.dump()
    header = msgpack.packb(
        {
            "v": FORMAT,
            "hash": machine.state_hash,
            "chain": chain,
            "places": packed_places(machine.places.values()),
            "memory": len(remembered),
            "arrays": [(name, a.dtype.str, a.shape) for name, a in arrays.items()],
        }
    )
    return _pieces([_LENGTH.pack(len(header)) + header, remembered, *arrays.values()])


def _pieces(parts: list[Any]) -> Iterator[bytes]:
    for part in parts:
        view = memoryview(part).cast("B") if len(part) else memoryview(b"")
        for at in range(0, len(view), _CHUNK):
            yield bytes(view[at : at + _CHUNK])


def load(pieces: Iterable[bytes], machine: Machine, memory: AnswerMemory) -> int:
    """Fill a new machine and memory from `dump`'s bytes; returns the chain's CRC32C.

    Raises SnapshotDamaged.
    """
    data = memoryview(b"".join(pieces))
    try:
        length = _LENGTH.unpack_from(data)[0]
        header = msgpack.unpackb(data[4 : 4 + length])
        if header["v"] != FORMAT:
            raise SnapshotDamaged(f"format {header['v']}, this is {FORMAT}")
        at = 4 + length + header["memory"]
        memory.load(bytes(data[4 + length : at]))
        arrays: dict[str, NDArray[Any]] = {}
        for name, dtype, shape in header["arrays"]:
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
            at += arrays[name].nbytes
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise SnapshotDamaged(f"not a snapshot of format {FORMAT}: {error}") from error
    if at != len(data):
        raise SnapshotDamaged(f"{len(data) - at} bytes are left over")
    machine.restore(arrays, unpacked_places(header["places"]))
    if machine.recomputed_hash() != header["hash"]:
        raise SnapshotDamaged("the state hash does not match")
    return int(header["chain"])
