"""A block of one line as one record: what a single call costs the journal.

    u32 0 | fixed fields | rows | keys of new rows | changed words, a column each | traces

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
from engine.traces import NO_TRACES, Traces

MAX_ROWS: Final = 16  # touched by a block in this form: the line's own, and those of what expired
MAX_TRACES: Final = 64
_FORMAT: Final = 2
_READABLE: Final = (1, _FORMAT)  # 1 had no traces, and is the same otherwise
# 0, format, status, mask of words, shard, epoch, seq, now_ns, previous CRC, state hash, sku limit,
# expired, wants available, op_id, digest, the line, first new row, rows, new rows
_FIXED: Final = struct.Struct(f"<IBBHIQQQIQQQ?16s8s{LINE.itemsize}sIBB")
_TRACES: Final = struct.Struct("<BB")  # traces, those of them that are of the sweep
_NONE_TRACED: Final = bytes(2)
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
    traces: Traces,
) -> bytes:
    """The record of a block of one line, without its CRC32C; `request.packed` must be there.

    Shapes are those of `engine.block.AfterImage`: `rows` (k,), k up to MAX_ROWS, and so on; there
    are MAX_TRACES traces at most.
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
    told = _packed_traces(traces) if len(traces) else _NONE_TRACED
    return b"".join((fixed, rows.tobytes(), new_keys.tobytes(), *changed, told))


def _packed_traces(traces: Traces) -> bytes:
    """Units, and the rows of those that are not of the sweep, whose rows are the first ones."""
    swept = traces.swept
    rows = traces.row[swept:].astype("<i4")
    return _TRACES.pack(len(traces), swept) + traces.units.tobytes() + rows.tobytes()


def unpack(view: memoryview) -> dict[str, Any]:
    """The fields of `pack`'s record, by the names of its parameters.

    ValueError or struct.error when it is not one.
    """
    (
        _, form, status, mask, shard, epoch, seq, now_ns, previous_crc, state_hash, sku_limit,
        expired, want_available, op_id, digest, packed, first_new, count, new,
    ) = _FIXED.unpack_from(view)  # fmt: skip
    if form not in _READABLE:
        raise ValueError(f"form {form} of single lines, this is {_FORMAT}")
    words = [word for word in _WORDS if mask >> word & 1]
    end = _FIXED.size + 4 * count + 8 * (new + count * len(words))
    needed, traced, swept = end + (_TRACES.size if form == _FORMAT else 0), 0, 0
    if len(view) >= needed > end:
        traced, swept = _TRACES.unpack_from(view, end)
        needed += 8 * traced + 4 * (traced - swept)
    if len(view) != needed or swept > traced or mask != sum(1 << word for word in words):
        raise ValueError(f"{len(view)} bytes, {needed} are needed")
    rows = np.frombuffer(view, "<i4", count, _FIXED.size)
    long = np.frombuffer(view[_FIXED.size + 4 * count : end].tobytes(), "<i8")
    traces = NO_TRACES if form == _FORMAT else None
    if traced:
        traces = _traces(view[end + _TRACES.size :].tobytes(), traced, rows[:swept])
    columns = long[new:].reshape(len(words), count)
    return {
        "shard": shard, "epoch": epoch, "seq": seq, "now_ns": now_ns,
        "previous_crc": previous_crc, "state_hash": state_hash, "sku_limit": sku_limit,
        "expired": expired, "request": _request(op_id, packed, digest, want_available),
        "status": status, "rows": rows.astype(np.int32), "first_new": first_new,
        "new_keys": long[:new], "words": dict(zip(words, columns, strict=True)),
        "traces": traces,
    }  # fmt: skip


def _traces(data: bytes, count: int, swept: NDArray[np.int32]) -> Traces:
    units = np.frombuffer(data, "<i8", count)
    rows = np.frombuffer(data, "<i4", count - len(swept), 8 * count)
    line = np.zeros(count, np.int64)
    line[: len(swept)] = -1
    return Traces(line, np.concatenate([swept, rows]).astype(np.int64), units)


def _request(op_id: bytes, packed: bytes, digest: bytes, want_available: bool) -> Request:
    record = np.frombuffer(packed, LINE)
    columns = {name: record[name] for name in COLUMNS if record[name][0]}
    return Request(op_id, 1, columns, want_available, digest, packed)
