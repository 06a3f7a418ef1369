"""A block of one line as one record: what a single call costs the journal.

    u32 0 | fixed fields | rows | keys of new rows | changed words, a column each

The general form (`engine.block`) names its columns in a header, which costs more to write than one
line costs to judge. Its header is never of no bytes, so the first number tells the two apart. The
same is in both, and the CRC32C behind it. This room knows bytes and columns, no state and no rules.
"""

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.kernels import CELL_WORDS, ON_HAND
from engine.operations import COLUMNS, LINE, Request

MAX_ROWS: Final = 16  # touched by a block in this form: the line's own, and those of what expired
_FORMAT: Final = 1
# 0, format, status, mask of words, shard, epoch, seq, now_ns, previous CRC, state hash, sku limit,
# expired, wants available, op_id, digest, the line, first new row, rows, new rows
_FIXED: Final = struct.Struct(f"<IBBHIQQQIQQQ?16s8s{LINE.itemsize}sIBB")
_WORDS: Final = range(ON_HAND, CELL_WORDS)


def pack(
    shard: int,
    epoch: int,
    seq: int,
    now_ns: int,
    previous_crc: int,
    state_hash: int,
    sku_limit: int,
    expired: int,
    request: Request,
    status: int,
    rows: NDArray[np.int32],
    first_new: int,
    new_keys: NDArray[np.int64],
    words: dict[int, NDArray[np.int64]],
) -> bytes:
    """The record of a block of one line, without its CRC32C; `request.packed` must be there.

    Shapes are those of `engine.block.AfterImage`: `rows` (k,), k up to MAX_ROWS, and so on.
    """
    mask = 0
    for word in words:
        mask |= 1 << word
    fixed = _FIXED.pack(
        0, _FORMAT, status, mask, shard, epoch, seq, now_ns, previous_crc, state_hash, sku_limit,
        expired, request.want_available, request.op_id, request.digest, request.packed, first_new,
        len(rows), len(new_keys),
    )  # fmt: skip
    changed = [words[word].tobytes() for word in sorted(words)]
    return b"".join((fixed, rows.tobytes(), new_keys.tobytes(), *changed))


def unpack(view: memoryview) -> dict[str, Any]:
    """The fields of `pack`'s record, by the names of its parameters.

    ValueError or struct.error when it is not one.
    """
    (
        _, form, status, mask, shard, epoch, seq, now_ns, previous_crc, state_hash, sku_limit,
        expired, want_available, op_id, digest, packed, first_new, count, new,
    ) = _FIXED.unpack_from(view)  # fmt: skip
    if form != _FORMAT:
        raise ValueError(f"form {form} of single lines, this is {_FORMAT}")
    words = [word for word in _WORDS if mask >> word & 1]
    needed = _FIXED.size + 4 * count + 8 * (new + count * len(words))
    if len(view) != needed or mask != sum(1 << word for word in words):
        raise ValueError(f"{len(view)} bytes, {needed} are needed")
    rows = np.frombuffer(view, "<i4", count, _FIXED.size)
    long = np.frombuffer(view[_FIXED.size + 4 * count :].tobytes(), "<i8")
    columns = long[new:].reshape(len(words), count)
    return {
        "shard": shard, "epoch": epoch, "seq": seq, "now_ns": now_ns,
        "previous_crc": previous_crc, "state_hash": state_hash, "sku_limit": sku_limit,
        "expired": expired, "request": _request(op_id, packed, digest, want_available),
        "status": status, "rows": rows.astype(np.int32), "first_new": first_new,
        "new_keys": long[:new], "words": dict(zip(words, columns, strict=True)),
    }  # fmt: skip


def _request(op_id: bytes, packed: bytes, digest: bytes, want_available: bool) -> Request:
    record = np.frombuffer(packed, LINE)
    columns = {name: record[name] for name in COLUMNS if record[name][0]}
    return Request(op_id, 1, columns, want_available, digest, packed)
