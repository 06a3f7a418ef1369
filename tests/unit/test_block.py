"""The block codec: what goes in comes out, and nothing damaged passes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.block import NOT_SOLD, AfterImage, Block, Place, check_place, decode, encode
from engine.framing import BlockDamaged, crc_of
from engine.kernels import ON_HAND, RESERVED
from engine.machine import Machine
from engine.operations import COLUMNS, LINE, Flag, Kind, Request, id_to_pair
from engine.single import MAX_ROWS, MAX_TRACES
from engine.status import Status
from engine.traces import NO_TRACES, Traces
from engine.views import Endangered, EndangeredHold

EDGES = [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1]


def values_of(name: str) -> st.SearchStrategy[int]:
    info = np.iinfo(COLUMNS[name])
    edges = [value for value in (*EDGES, info.min, info.max) if info.min <= value <= info.max]
    return st.sampled_from(edges) | st.integers(int(info.min), int(info.max))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    lines = draw(st.integers(1, 5))
    columns = {
        name: np.array(draw(st.lists(values_of(name), min_size=lines, max_size=lines)), dtype)
        for name, dtype in COLUMNS.items()
        if draw(st.booleans())
    }
    return Request.of(draw(st.binary(min_size=16, max_size=16)), lines, **columns)


@st.composite
def packed_requests(draw: st.DrawFn) -> Request:
    """Of one line, as single calls make them."""
    values = [draw(values_of(name) | st.just(0)) for name in LINE.names or ()]
    made = Request.one(draw(st.binary(min_size=16, max_size=16)), *values)
    return replace(made, want_available=draw(st.booleans()))


@st.composite
def endangered(draw: st.DrawFn) -> tuple[Endangered, ...]:
    """Entries in order of their lines; those of one cell are of one shortage."""
    holds = st.lists(
        st.builds(
            EndangeredHold, st.binary(min_size=16, max_size=16), st.integers(0, 10**9),
            st.integers(0, 10**9),
        ), max_size=3,
    )  # fmt: skip
    cells = [
        (sku, location, draw(st.integers(1, 10**15)), tuple(draw(holds)))
        for sku, location in draw(
            st.lists(
                st.tuples(st.integers(1, 2**31), st.integers(1, 2**20)), unique=True, max_size=3
            )
        )
    ]
    lines = sorted(draw(st.sets(st.integers(0, 8_189), max_size=5))) if cells else []
    return tuple(Endangered(line, *draw(st.sampled_from(cells))) for line in lines)


@st.composite
def traces(draw: st.DrawFn, lines: int, image: AfterImage | None) -> Traces:
    """Of the sweep first, on the first rows of the image; then in order of lines."""
    rows = [] if image is None else image.rows.tolist()
    swept = draw(st.integers(0, len(rows)))
    of_lines = sorted(draw(st.lists(st.integers(0, lines - 1), max_size=6))) if lines else []
    called = st.lists(
        st.integers(0, 2**31 - 2), min_size=len(of_lines), max_size=len(of_lines)
    )  # fmt: skip
    count = swept + len(of_lines)
    units = st.lists(st.integers(-(10**15), 10**15), min_size=count, max_size=count)
    columns = ([-1] * swept + of_lines, rows[:swept] + draw(called), draw(units))
    return Traces(*(np.array(column, np.int64) for column in columns))


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    asked = draw(
        st.lists(requests(), max_size=4) | st.lists(packed_requests(), min_size=1, max_size=2)
    )
    lines = sum(request.lines for request in asked)
    status = np.array(draw(st.lists(st.integers(0, 25), min_size=lines, max_size=lines)), np.uint8)
    rows = draw(st.lists(st.integers(0, 2**31 - 2), unique=True, max_size=MAX_ROWS + 1))
    words = draw(st.lists(st.integers(1, 9), unique=True, max_size=9))
    values = st.lists(st.integers(-(10**15), 10**15), min_size=len(rows), max_size=len(rows))
    image = AfterImage(
        np.array(rows, np.int32),
        draw(st.integers(0, 2**31)),
        np.array(draw(st.lists(st.integers(0, 2**52), max_size=4)), np.int64),
        draw(st.just({word: np.array(draw(values), np.int64) for word in words}) | st.none()),
    )
    buffers = st.lists(st.integers(-1, 10**9), max_size=31).map(tuple)
    places = st.builds(
        Place, st.integers(1, 2**20), st.booleans(), st.integers(0, 999), st.integers(0, 256),
        st.integers(0, 255), buffers,
    )  # fmt: skip
    number = st.integers(0, 2**63)
    image = draw(st.sampled_from([image, None]))
    return Block(
        draw(st.integers(0, 1000)), draw(number), draw(number), draw(number),
        draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**64 - 1)), draw(number),
        draw(st.just([]) | st.lists(places, max_size=3)), asked, status,
        image, draw(st.sampled_from([b"", b"n" * 16])),
        draw(number), draw(st.just(()) | endangered()),
        draw(st.none() | st.just(NO_TRACES) | traces(lines, image)),
    )  # fmt: skip


def same(one: Block, other: Block) -> bool:
    plain = ("shard", "epoch", "seq", "now_ns", "previous_crc", "state_hash", "sku_limit", "places")
    plain = (*plain, "nonce", "expired", "endangered")
    assert all(getattr(one, name) == getattr(other, name) for name in plain)
    assert np.array_equal(one.status, other.status)
    assert len(one.requests) == len(other.requests)
    for mine, its in zip(one.requests, other.requests, strict=True):
        assert (mine.op_id, mine.lines, mine.digest) == (its.op_id, its.lines, its.digest)
        assert mine.want_available == its.want_available
        for name, dtype in COLUMNS.items():
            zeros = np.zeros(mine.lines, dtype)
            left, right = mine.columns.get(name, zeros), its.columns.get(name, zeros)
            assert left.dtype == right.dtype == dtype
            assert np.array_equal(left, right), name
    assert (one.traces is None) == (other.traces is None)
    if one.traces is not None and other.traces is not None:
        for name in ("line", "row", "units"):
            assert np.array_equal(getattr(one.traces, name), getattr(other.traces, name)), name
    assert (one.image is None) == (other.image is None)
    if one.image is not None and other.image is not None:
        assert np.array_equal(one.image.rows, other.image.rows)
        assert one.image.first_new == other.image.first_new
        assert np.array_equal(one.image.new_keys, other.image.new_keys) or not len(one.image.rows)
        assert (one.image.words is None) == (other.image.words is None)
        mine_told, its_told = one.image.words or {}, other.image.words or {}
        assert mine_told.keys() == its_told.keys()
        for word, values_told in mine_told.items():
            assert np.array_equal(values_told, its_told[word])
    return True


@given(blocks())
def test_what_is_encoded_is_decoded(block: Block) -> None:
    payload, crc = encode(block)
    assert crc == crc_of(payload)
    assert same(block, decode(payload))


@given(blocks(), st.data())
def test_a_flipped_bit_is_noticed(block: Block, data: st.DataObject) -> None:
    payload = bytearray(encode(block)[0])
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BlockDamaged):
        decode(bytes(payload))


@given(blocks(), st.data())
def test_a_torn_block_is_noticed(block: Block, data: st.DataObject) -> None:
    payload, _ = encode(block)
    with pytest.raises(BlockDamaged):
        decode(payload[: data.draw(st.integers(0, len(payload) - 1))])


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(BlockDamaged):
        decode(payload)


def single(rows: int = 1, **changes: Any) -> Block:
    """A block of one line that touched so many rows, of which the last one is new."""
    values = np.arange(rows, dtype=np.int64) * 10**9
    image = AfterImage(
        np.arange(rows, dtype=np.int32) * 7, rows - 1, np.array([1 << 32 | 5]),
        {RESERVED: values, ON_HAND: -values},
    )  # fmt: skip
    request = Request.one(b"i" * 16, 2, 60_000, 0, 0, 0, 5, 1, 0, 0, Kind.RESERVE, 0)
    block = Block(3, 1, 2, 10**18, 7, 2**64 - 1, 9, [], [request], np.array([4], np.uint8), image)
    return replace(block, **changes)


def test_a_block_of_one_line_is_a_short_record() -> None:
    payload, _ = encode(single())
    assert payload[:4] == bytes(4)
    assert len(payload) < 220
    assert same(single(), decode(payload))


@pytest.mark.parametrize("swept", [0, 1, 3])
def test_a_record_carries_traces(swept: int) -> None:
    """Of the sweep on its first rows, of the line on any."""
    line, row = [-1] * swept + [0, 0], [*[0, 7, 14][:swept], 14, 5]
    told = Traces(*np.array([line, row, [*range(-swept, 0), 9, -3]], np.int64))
    block = single(3, traces=told)
    payload, _ = encode(block)
    assert payload[:4] == bytes(4)
    assert same(block, decode(payload))


@pytest.mark.parametrize(
    "block",
    [
        single(MAX_ROWS + 1),
        single(places=[Place(1, owned=True, currency=978)]),
        single(endangered=(Endangered(0, 5, 1, 2, ()),)),
        single(nonce=b"n" * 16),
        single(image=None),
        single(image=replace(single().image, words=None)),
        single(traces=None),
        single(traces=Traces(*np.zeros((3, MAX_TRACES + 1), np.int64))),
        single(requests=[Request.of(bytes(16), 1, kind=Kind.SALE, sku=1, location=1, quantity=1)]),
        single(requests=[*single().requests] * 2, status=np.zeros(2, np.uint8)),
    ],
    ids=[
        "rows",
        "places",
        "endangered",
        "nonce",
        "image",
        "words",
        "untold",
        "traces",
        "not packed",
        "two",
    ],
)
def test_what_does_not_fit_the_record_is_written_with_a_header(block: Block) -> None:
    payload, _ = encode(block)
    assert payload[:4] != bytes(4)
    assert same(block, decode(payload))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body[:4] + b"\x03" + body[5:], "form 3 of single lines"),
        (lambda body: body + b"\0", "bytes, .* are needed"),
        (lambda body: body[:6] + b"\xff\xff" + body[8:], "are needed"),
        (lambda body: body[:40], "not a block of format"),
        (lambda body: body[:-1] + b"\x01", "bytes, [0-9]* are needed"),
    ],
)
def test_a_record_that_was_written_otherwise_is_refused(
    change: Callable[[bytes], bytes], reason: str
) -> None:
    body = change(encode(single())[0][:-4])
    with pytest.raises(BlockDamaged, match=reason):
        decode(body + crc32c(body).to_bytes(4, "little"))


def test_what_was_written_before_there_were_traces_is_read_as_it_was() -> None:
    """And says that it does not tell which cells its calls on holds were about."""
    body = encode(single())[0][:-4]
    old = body[:4] + b"\x01" + body[5:-2]
    assert same(single(traces=None), decode(old + crc32c(old).to_bytes(4, "little")))
    block = single(places=[Place(1, owned=True, currency=978)])
    assert same(replace(block, traces=None), decode(rewritten(encode(block)[0], as_of(2))))


def as_of(format_: int) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update(v=format_)


def test_what_was_written_before_large_images_were_not_told_is_read_as_it_was() -> None:
    told = Traces(*np.array([[0], [7], [9]], np.int64))
    block = single(2, traces=told, places=[Place(1, owned=True, currency=978)])
    assert same(block, decode(rewritten(encode(block)[0], as_of(3))))


def test_a_batch_of_reserves_is_small() -> None:
    """20 bytes a line is what the journal's disk and memory were planned for."""
    lines = 8_190
    random = np.random.default_rng(7)
    request = Request.of(
        bytes(16), lines, kind=Kind.RESERVE, sku=random.integers(1, 70_000, lines),
        location=random.integers(1, 458, lines), quantity=1, value=60_000,
    )  # fmt: skip
    rows = np.arange(lines, dtype=np.int32)
    image = AfterImage(rows, lines, np.zeros(0, np.int64), {RESERVED: random.integers(0, 9, lines)})
    block = Block(0, 1, 1, 1, 0, 0, 70_000, [], [request], np.zeros(lines, np.uint8), image)
    assert len(encode(block)[0]) < 20 * lines
    assert ON_HAND not in decode(encode(block)[0]).image.words  # type: ignore[union-attr]


def test_halves_of_ids_that_are_all_zero_take_no_room() -> None:
    zeros = np.zeros(2, np.uint64)
    bare = Request.of(bytes(16), 2, kind=Kind.SALE, sku=1, location=1, quantity=1)
    given = replace(bare, columns=bare.columns | {"hold_hi": zeros, "hold_lo": zeros})
    one, other = (
        encode(Block(0, 1, 1, 1, 0, 0, 9, [], [request], np.zeros(2, np.uint8)))
        for request in (bare, given)
    )
    assert one == other


def test_what_a_block_may_endanger_at_most_fits_it() -> None:
    """As many cells as lines, or as many lines on cells with as many holds as may be named."""
    hold = EndangeredHold(b"\xff" * 16, 10**9, 10**9)
    lines, most = limits.MAX_BLOCK_LINES, limits.MAX_ENDANGERED
    full = limits.MAX_ENDANGERED_OF_BLOCK // most
    entries = tuple(
        Endangered(at, 2**31, at, 10**15, (hold,) * most if at < full else ())
        for at in range(lines)
    )
    block = Block(0, 1, 1, 1, 0, 0, 1, endangered=entries)
    payload, _ = encode(block)
    assert len(payload) < 64 * (limits.MAX_ENDANGERED_OF_BLOCK + limits.MAX_BLOCK_LINES)
    assert decode(payload).endangered == entries


def longest(image: AfterImage) -> Block:
    """All that a block may have besides its image, each number as wide as it can be."""
    lines, count = limits.MAX_BLOCK_LINES, limits.MAX_BLOCK_REQUESTS
    widest = {
        name: np.where(np.arange(2) % 2, np.iinfo(dtype).max, np.iinfo(dtype).min).astype(dtype)
        for name, dtype in COLUMNS.items()
    }
    requests = [
        Request(b"\xff" * 16, 2, widest, bool(at % 2), b"\xff" * 8) for at in range(count - 1)
    ]
    assert sum(each.lines for each in requests) == lines
    at = np.arange(limits.MAX_TRACES_OF_BLOCK, dtype=np.int64)
    wide = Traces(at * lines // len(at), 2**31 - 2 - at, 10**15 - at)
    hold = EndangeredHold(b"\xff" * 16, 10**9, 10**9)
    most = limits.MAX_ENDANGERED
    endangered = tuple(
        Endangered(line, 2**31 - 2 - line, 2**20, 10**15, (hold,) * (most * (line < 128)))
        for line in range(lines)
    )
    assert sum(len(each.holds) for each in endangered) == limits.MAX_ENDANGERED_OF_BLOCK
    buffers = (limits.MAX_QUANTITY,) * limits.MAX_CHANNELS
    places = [Place(2**20, True, 999, 256, 255, buffers)] * limits.MAX_BLOCK_PLACES
    return Block(
        limits.MAX_SHARDS, 2**63, 2**63, 2**63, 2**32 - 1, 2**64 - 1, 2**31, places, requests,
        np.arange(lines).astype(np.uint8), image, expired=2**40, endangered=endangered, traces=wide,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "has_words"),
    [(limits.MAX_CELLS_OF_BLOCK, False), (limits.MAX_IMAGE_CELLS, True)],
    ids=["of most cells", "of most that are told"],
)
def test_the_longest_block_can_be_read_back(rows: int, has_words: bool) -> None:
    values = np.arange(rows, dtype=np.int64) - 10**15
    words = dict.fromkeys(range(1, 10), values) if has_words else None
    keys = np.arange(limits.MAX_BLOCK_LINES, dtype=np.int64) << 40
    image = AfterImage(np.arange(rows, dtype=np.int32) + 2**30, 2**31, keys, words)
    block = longest(image)
    payload, _ = encode(block)
    assert 4 * rows < len(payload) < limits.MAX_BLOCK_BYTES
    found = decode(payload)
    assert found.image is not None
    assert np.array_equal(found.image.rows, image.rows)
    assert (found.image.words is not None) == has_words
    assert found.endangered == block.endangered


def test_no_line_changes_more_cells_than_a_block_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The widest: a hold of most lines goes to other cells."""
    most = limits.MAX_HOLD_LINES
    machine, skus = Machine(), np.arange(1, most + 1)
    machine.set_sku_limit(most)
    for location in (1, 2):
        machine.set_location(location, owned=True, currency=978)
        received = Request.of(
            bytes((location,) * 16),
            most,
            kind=Kind.RECEIVE,
            sku=skus,
            location=location,
            quantity=1,
        )
        machine.apply(location, [received])
    flags = np.full(most, Flag.LINKED, np.uint8)
    flags[-1] = 0
    order = Request.of(
        b"o" * 16,
        most,
        kind=Kind.RESERVE,
        sku=skus,
        location=1,
        quantity=1,
        value=1000,
        flags=flags,
    )
    high, low = id_to_pair(order.op_id)
    moves = Request.of(b"m" * 16, 1, kind=Kind.MOVE, location=2, hold_hi=high, hold_lo=low)
    machine.apply(3, [order])
    found = machine.apply(4, [moves])
    assert found.status.tolist() == [Status.OK]
    assert len(found.image.rows) == 2 * most
    of_lines = limits.MAX_BLOCK_LINES * len(found.image.rows)
    assert of_lines + limits.EXPIRIES_PER_BLOCK + most - 1 == limits.MAX_CELLS_OF_BLOCK
    monkeypatch.setattr(limits, "MAX_IMAGE_CELLS", 2 * most - 1)
    back = Request.of(b"b" * 16, 1, kind=Kind.MOVE, location=1, hold_hi=high, hold_lo=low)
    untold = machine.apply(5, [back])
    assert (len(untold.image.rows), untold.image.words) == (2 * most, None)


def test_a_block_that_could_not_be_read_back_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    payload, _ = encode(single())
    monkeypatch.setattr(limits, "MAX_BLOCK_BYTES", len(payload))
    assert same(single(), decode(encode(single())[0]))
    monkeypatch.setattr(limits, "MAX_BLOCK_BYTES", len(payload) - 1)
    with pytest.raises(ValueError, match=f"a block is at most {len(payload) - 1} bytes"):
        encode(single())


def rewritten(payload: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A block whose header was changed by somebody who knows how to write one."""
    start = 4 + int.from_bytes(payload[:4], "little")
    header = msgpack.unpackb(payload[4:start])
    change(header)
    packed = msgpack.packb(header)
    body = len(packed).to_bytes(4, "little") + packed + payload[start:-4]
    return body + crc32c(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda header: header.update(v=header["v"] + 1), "format"),
        (lambda header: header.pop("hash"), "not a block of format .*: 'hash'"),
        (
            lambda header: header.update(columns=[["sku", "x9", 3]]),
            "not a block of format .*: 'x9'",
        ),
        (lambda header: header["columns"].pop(), "bytes are left over"),
        (lambda header: header.update(n=4), "3 values, should be 4"),
    ],
)
def test_a_block_that_was_written_otherwise_is_refused(
    change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    asked = Request.of(bytes(16), 3, kind=Kind.SALE, sku=[1, 2, 3], location=1, quantity=1)
    payload, _ = encode(Block(0, 1, 1, 1, 0, 0, 9, [], [asked], np.array([0, 5, 0], np.uint8)))
    assert same(decode(rewritten(payload, lambda _: None)), decode(payload))
    with pytest.raises(BlockDamaged, match=reason):
        decode(rewritten(payload, change))


@pytest.mark.parametrize(
    "odd",
    [
        {"location": 0},
        {"location": limits.MAX_LOCATIONS + 1},
        {"buffers": (0,) * (limits.MAX_CHANNELS + 1)},
        {"buffers": (0, NOT_SOLD - 1)},
        {"buffers": (0, limits.MAX_QUANTITY + 1)},
    ],
)
def test_a_place_that_no_shard_can_have_is_refused(odd: dict[str, Any]) -> None:
    fine = Place(limits.MAX_LOCATIONS, owned=True, currency=978, buffers=(0, NOT_SOLD, 5))
    check_place(fine)
    with pytest.raises(ValueError, match=next(iter(odd))):
        check_place(replace(fine, **odd))
