"""Ids of operations: chosen here, kept by the caller, sent again with every repeat.

An id begins with the milliseconds since 1970, as in UUID version 7, so that ids made about the same
time lie together in whatever sorts or hashes them.
"""

import secrets
import time
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

OP_ID_BYTES: Final = 16
_INDEX_BYTES: Final = 2  # of a batch's id; the index of a line is added there


def new_op_id() -> bytes:
    """A fresh id of 16 bytes for one operation: a UUID of version 7."""
    raw = bytearray(_now_ms() + secrets.token_bytes(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)


def new_batch_id() -> bytes:
    """A fresh id of 16 bytes for one Submit; its low 16 bits are zero, where the lines count."""
    return _now_ms() + secrets.token_bytes(8) + bytes(_INDEX_BYTES)


def op_id_of(*names: str | int, attempt: int = 0) -> bytes:
    """The id of an operation that has names of its own: the same names, the same 16 bytes.

    For what may be told again by somebody who has kept no ids, as a till that uploads its day twice:
    `op_id_of("return", location, terminal, receipt, line)`. A refusal is remembered under its id for
    good; `attempt`, 0 first, makes the id of another try once there is no more reason for it (see
    `Client.till_return`).
    """
    parts = [str(name).encode() for name in names]
    told = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    number = attempt.to_bytes(blake2b.SALT_SIZE, "little")
    return blake2b(told, digest_size=OP_ID_BYTES, salt=number).digest()


def part_id(batch_id: bytes, part: str) -> bytes:
    """The id of a part of a batch: the same for the same batch and part, so that it repeats well."""
    mixed = blake2b(batch_id + part.encode(), digest_size=OP_ID_BYTES - _INDEX_BYTES).digest()
    return mixed + bytes(_INDEX_BYTES)


def line_ids(batch_id: bytes, lines: int) -> NDArray[np.uint8]:
    """The ids of a batch's lines, shape (lines, 16): `batch_id + i`, big-endian."""
    ids = np.empty((lines, OP_ID_BYTES), np.uint8)
    ids[:] = np.frombuffer(batch_id, np.uint8)
    ids[:, -_INDEX_BYTES:] = np.arange(lines, dtype=">u2").view(np.uint8).reshape(-1, 2)
    return ids


def check_op_id(op_id: bytes) -> bytes:
    """Give an op_id back. ValueError unless it has 16 bytes."""
    if len(op_id) != OP_ID_BYTES:
        raise ValueError(f"op_id: {len(op_id)} bytes, must be {OP_ID_BYTES}")
    return op_id


def id_of(op_id: bytes | None) -> bytes:
    """The caller's op_id, or a fresh one. ValueError unless it has 16 bytes."""
    return new_op_id() if op_id is None else check_op_id(op_id)


def check_batch_id(op_id: bytes) -> bytes:
    """Give a Submit's op_id back. ValueError unless it has 16 bytes, the last two zero."""
    if check_op_id(op_id)[-_INDEX_BYTES:] != bytes(_INDEX_BYTES):
        raise ValueError("op_id: the last two bytes of a batch's id must be zero")
    return op_id


def _now_ms() -> bytes:
    return (time.time_ns() // 1_000_000).to_bytes(6, "big")
