"""The block codec: what one block of a shard's journal is, as bytes.

    u32 header length | msgpack header | packed columns | u32 CRC32C of all that precedes

Integers are little-endian. The header names the columns that follow, in order, each with its type
and its number of values. A column is stored in the narrowest type that holds its values; one value
stands for a column of equal ones; a column of zeros is left out. So a batch of reserves costs about
20 bytes a line, operations, statuses and after-image together. A block of one line has a form of its
own (`engine.single`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from engine import limits, single
from engine.framing import LENGTH, BlockDamaged, sealed, unsealed
from engine.kernels import CELL_WORDS, INCOMING, ON_HAND, PRICE, VERSION
from engine.operations import COLUMNS, Request
from engine.shortages import packed_endangered, unpacked_endangered
from engine.traces import NO_TRACES, Traces
from engine.views import Endangered

FORMAT: Final = 4
# Before 4 all of an after-image was told, however large. 2 had no traces. All is the same otherwise.
READABLE: Final = (2, 3, FORMAT)
_FIRST_WITH_TRACES: Final = 3
_IMAGE_WORDS: Final = range(ON_HAND, CELL_WORDS)


def _ranges(*codes: str) -> tuple[tuple[int, int, np.dtype[Any], str], ...]:
    """Type codes with what they hold: least, most, type, code."""
    types = [np.dtype(f"<{code}") for code in codes]
    return tuple(
        (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max), dtype, code)
        for dtype, code in zip(types, codes, strict=True)
    )


_UNSIGNED: Final = _ranges("u1", "u2", "u4")
_SIGNED: Final = _ranges("i1", "i2", "i4")
_WIDEST: Final = (np.dtype("<i8"), "i8")
_TYPES: Final = {
    code: np.dtype(f"<{code}") for code in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
}

assert list(_IMAGE_WORDS) == list(range(1, 10))
assert INCOMING < PRICE < VERSION


@dataclass(frozen=True, slots=True)
class Place:
    """A location as one shard sees it; a change of it is part of a block.

    `buffers` are the rules of channels here, by a channel's number: how many base units of each cell
    are kept from it, or NOT_SOLD. Index 0 is no channel, from which nothing is kept; of a channel
    whose number is past the end no rules are known.
    """

    location: int
    owned: bool
    currency: int  # ISO 4217 numeric
    split: int = 0  # over how many shards it is spread; 0 and 1: it is not
    part: int = 0  # which of the parts is this shard's
    buffers: tuple[int, ...] = ()


NOT_SOLD: Final = -1  # in `Place.buffers`: the channel does not sell from the location


def check_place(place: Place) -> None:
    """Raise ValueError for a place that no shard can have; says what is wrong."""
    if not 1 <= place.location <= limits.MAX_LOCATIONS:
        raise ValueError(f"location: {place.location}, not 1 to {limits.MAX_LOCATIONS}")
    if len(place.buffers) > limits.MAX_CHANNELS:
        raise ValueError(f"buffers: {len(place.buffers)}, at most {limits.MAX_CHANNELS}")
    for units in place.buffers:
        if not NOT_SOLD <= units <= limits.MAX_QUANTITY:
            raise ValueError(f"buffers: {units}, not {NOT_SOLD} to {limits.MAX_QUANTITY}")


@dataclass(slots=True)
class AfterImage:
    """The touched cells' state after a block.

    `rows` (int32, k) are rows of the shard's cell table, each once. Rows from `first_new` on were
    made by this block: their keys (location << 32 | sku) are `new_keys`, in order of row. `words`
    maps a word of the cell's row (`engine.kernels.ON_HAND` .. `VERSION`) to its k new values; a
    word that is missing has not changed for any of the rows. It is None when there are more than
    MAX_IMAGE_CELLS rows: then their values are not told.
    """

    rows: NDArray[np.int32]
    first_new: int
    new_keys: NDArray[np.int64]
    words: dict[int, NDArray[np.int64]] | None


@dataclass(slots=True)
class Block:
    """One block of a shard's journal, decoded.

    `sku_limit` and `places` are the catalogue's news that the block begins with. `status` has one
    byte a line of all requests, in order. `state_hash` is the shard's after the block. `nonce` is
    set in the opening block of an epoch, which has no lines. `endangered` says which facts left less
    than nothing available, and which holds that endangers; the line is counted over all requests.
    `traces` are None when the block does not tell: there were too many, or it is of format 2.
    """

    shard: int
    epoch: int
    seq: int
    now_ns: int
    previous_crc: int
    state_hash: int
    sku_limit: int
    places: list[Place] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    status: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    image: AfterImage | None = None
    nonce: bytes = b""
    expired: int = 0
    endangered: tuple[Endangered, ...] = ()
    traces: Traces | None = field(default_factory=lambda: NO_TRACES)


class _Columns:
    """Collects packed columns and their entries in the header."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, int]] = []
        self.parts: list[Any] = []

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Pack integers (any shape (n,)) as narrowly as they allow."""
        if len(values) == 1:
            low = high = int(values[0])
        else:
            low, high = int(values.min()), int(values.max())
        if low == high:
            if low == 0:
                return
            values = values[:1]
        dtype, code = _narrowest(low, high)
        self.entries.append((name, code, len(values)))
        self.parts.append(values.astype(dtype).tobytes())

    def add_raw(self, name: str, data: bytes) -> None:
        """Append bytes as they are."""
        if data:
            self.entries.append((name, "u1", len(data)))
            self.parts.append(data)


def _narrowest(low: int, high: int) -> tuple[np.dtype[Any], str]:
    """The first type that holds both, and its code in the header."""
    for least, most, dtype, code in _UNSIGNED if low >= 0 else _SIGNED:
        if least <= low and high <= most:
            return dtype, code
    return _WIDEST


def _add_requests(columns: _Columns, requests: list[Request], status: NDArray[np.uint8]) -> None:
    if not requests:
        return
    columns.add_raw("op_id", b"".join(request.op_id for request in requests))
    columns.add_raw("digest", b"".join(request.digest for request in requests))
    columns.add("lines", np.array([request.lines for request in requests], np.int64))
    columns.add("want", np.array([request.want_available for request in requests], np.uint8))
    present = set().union(*(request.columns for request in requests))
    for name, dtype in COLUMNS.items():
        if name in present:
            column = concatenated(requests, name)
            if dtype.itemsize == 8 and dtype.kind == "u":  # halves of ids: nothing to narrow
                if column.any():
                    columns.add_raw(name, column.tobytes())
            else:
                columns.add(name, column)
    columns.add("status", status)


def _add_image(columns: _Columns, image: AfterImage | None) -> None:
    if image is None or not len(image.rows):
        return
    columns.add("rows", image.rows)
    columns.add_raw("new_keys", image.new_keys.tobytes())
    for word, values in (image.words or {}).items():
        columns.add(f"w{word}", values)


def _add_traces(columns: _Columns, traces: Traces) -> None:
    """The rows of the sweep's are the image's first ones; lines of the others mostly count up."""
    swept = traces.swept
    if swept < len(traces):
        columns.add("t_line", np.diff(traces.line[swept:], prepend=-1))
        columns.add("t_row", traces.row[swept:])
    columns.add("t_units", traces.units)


def encode(block: Block) -> tuple[bytes, int]:
    """The bytes of a block, and their CRC32C (the next block's `previous_crc`).

    ValueError when they are more than MAX_BLOCK_BYTES, which no one could read back.
    """
    body = _single(block) or _general(block)
    return sealed(body)


def _single(block: Block) -> bytes:
    """The body of a block of one line, in the form for those; nothing when it is none."""
    requests, image = block.requests, block.image
    if len(requests) != 1 or not requests[0].packed or image is None or image.words is None:
        return b""
    if block.places or block.endangered or block.nonce or len(image.rows) > single.MAX_ROWS:
        return b""
    if block.traces is None or len(block.traces) > single.MAX_TRACES:
        return b""
    return single.pack(
        block.shard, block.epoch, block.seq, block.now_ns, block.previous_crc, block.state_hash,
        block.sku_limit, block.expired, requests[0], int(block.status[0]),
        image.rows, image.first_new, image.new_keys, image.words, block.traces,
    )  # fmt: skip


def _general(block: Block) -> bytes:
    """The body of any block."""
    columns, requests = _Columns(), block.requests
    _add_requests(columns, requests, block.status)
    _add_image(columns, block.image)
    if block.traces:
        _add_traces(columns, block.traces)
    header: dict[str, Any] = {
        "v": FORMAT,
        "shard": block.shard,
        "epoch": block.epoch,
        "seq": block.seq,
        "now_ns": block.now_ns,
        "prev": block.previous_crc,
        "hash": block.state_hash,
        "skus": block.sku_limit,
        "expired": block.expired,
        "requests": len(requests),
        "n": sum(request.lines for request in requests),
        "columns": columns.entries,
    }
    if block.places:
        header["places"] = packed_places(block.places)
    if block.endangered:
        header["endangered"] = packed_endangered(block.endangered)
    if block.nonce:
        header["nonce"] = block.nonce
    if block.image is not None:
        header["first_new"] = block.image.first_new
        header["touched"] = len(block.image.rows)
        words = block.image.words
        header["words"] = None if words is None else list(words)
    if block.traces is None:
        header["untold"] = True
    elif block.traces:
        header["traces"] = (len(block.traces), block.traces.swept)
    packed = msgpack.packb(header)
    return b"".join((LENGTH.pack(len(packed)), packed, *columns.parts))


def packed_places(places: Iterable[Place]) -> list[tuple[Any, ...]]:
    """Places as a header carries them."""
    return [(p.location, p.owned, p.currency, p.split, p.part, p.buffers) for p in places]


def unpacked_places(rows: Iterable[list[Any]]) -> list[Place]:
    """The places of `packed_places`, read back."""
    return [
        Place(location, owned, currency, split, part, tuple(buffers))
        for location, owned, currency, split, part, buffers in rows
    ]


def decode(payload: bytes) -> Block:
    """Read a block back. Raises BlockDamaged unless every byte is as it was written."""
    return unsealed(payload, _decode, f"a block of format {FORMAT}")


def _decode(body: memoryview) -> Block:
    length = LENGTH.unpack_from(body)[0]
    if not length:
        return _decode_single(single.unpack(body))
    at = LENGTH.size + length
    header = msgpack.unpackb(body[LENGTH.size : at])
    if header["v"] not in READABLE:
        raise BlockDamaged(f"format {header['v']}, this is {FORMAT}")
    packed: dict[str, NDArray[Any]] = {}
    for name, kind, count in header["columns"]:
        dtype = _TYPES[kind]
        packed[name] = np.frombuffer(body, dtype, count, at)
        at += dtype.itemsize * count
    if at != len(body):
        raise BlockDamaged(f"{len(body) - at} bytes are left over")
    image = None
    if "touched" in header:
        touched = header["touched"]
        new_keys = (
            packed["new_keys"].view(np.int64) if "new_keys" in packed else np.zeros(0, np.int64)
        )
        words, wide = header["words"], np.dtype(np.int64)
        image = AfterImage(
            _full(packed, "rows", touched, np.dtype(np.int32)),
            header["first_new"],
            new_keys,
            None if words is None else {w: _full(packed, f"w{w}", touched, wide) for w in words},
        )
    return Block(
        header["shard"], header["epoch"], header["seq"], header["now_ns"], header["prev"],
        header["hash"], header["skus"], unpacked_places(header.get("places", ())),
        _requests(packed, header["requests"], header["n"]),
        _full(packed, "status", header["n"], np.dtype(np.uint8)),
        image, header.get("nonce", b""), header["expired"],
        unpacked_endangered(header.get("endangered", ())),
        _traces(packed, header, image),
    )  # fmt: skip


def _decode_single(found: dict[str, Any]) -> Block:
    image = AfterImage(found["rows"], found["first_new"], found["new_keys"], found["words"])
    return Block(
        found["shard"], found["epoch"], found["seq"], found["now_ns"], found["previous_crc"],
        found["state_hash"], found["sku_limit"], [], [found["request"]],
        np.array([found["status"]], np.uint8), image, expired=found["expired"],
        traces=found["traces"],
    )  # fmt: skip


def _traces(
    packed: dict[str, NDArray[Any]], header: dict[str, Any], image: AfterImage | None
) -> Traces | None:
    if header["v"] < _FIRST_WITH_TRACES or "untold" in header:
        return None
    if "traces" not in header:
        return NO_TRACES
    (count, swept), wide = header["traces"], np.dtype(np.int64)
    of_lines = count - swept
    first_rows = np.zeros(0, wide) if image is None else image.rows[:swept]
    steps = _full(packed, "t_line", of_lines, wide)
    return Traces(
        np.concatenate([np.full(swept, -1, wide), np.cumsum(steps) - 1]),
        np.concatenate([first_rows, _full(packed, "t_row", of_lines, wide)]).astype(wide),
        _full(packed, "t_units", count, wide),
    )


def _requests(packed: dict[str, NDArray[Any]], count: int, lines: int) -> list[Request]:
    """Cut the columns of a block into its requests again."""
    if not count:
        return []
    ids, digests = packed["op_id"].tobytes(), packed["digest"].tobytes()
    wants = _full(packed, "want", count, np.dtype(np.uint8))
    full: dict[str, NDArray[Any]] = {}
    for name, dtype in COLUMNS.items():
        if name in packed:
            raw = dtype.itemsize == 8 and dtype.kind == "u"
            full[name] = packed[name].view(dtype) if raw else _full(packed, name, lines, dtype)
    requests, first = [], 0
    for i, n in enumerate(_full(packed, "lines", count, np.dtype(np.int64)).tolist()):
        columns = {name: column[first : first + n] for name, column in full.items()}
        requests.append(
            Request(
                ids[16 * i : 16 * i + 16], n, columns, bool(wants[i]), digests[8 * i : 8 * i + 8]
            )
        )
        first += n
    return requests


def _full(
    packed: dict[str, NDArray[Any]], name: str, count: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """A column of `count` values of `dtype`, whatever way it was packed."""
    column = packed.get(name)
    if column is None:
        return np.zeros(count, dtype)
    if len(column) == 1 and count != 1:
        return np.full(count, column[0], dtype)
    if len(column) != count:
        raise BlockDamaged(f"column {name}: {len(column)} values, should be {count}")
    return column.astype(dtype)


def concatenated(requests: list[Request], name: str) -> NDArray[Any]:
    """One column of all requests' lines, zeros where a request does not have it."""
    dtype = COLUMNS[name]
    if len(requests) == 1:
        column = requests[0].columns.get(name)
        return np.zeros(requests[0].lines, dtype) if column is None else column
    return np.concatenate(
        [
            request.columns[name] if name in request.columns else np.zeros(request.lines, dtype)
            for request in requests
        ]
    )
