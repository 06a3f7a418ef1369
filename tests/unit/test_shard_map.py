"""Who owns what: the rule, the placements, and that the columns agree with the kernels."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.kernels import key_tag
from engine.shard_map import ShardMap, split_tag


@st.composite
def shard_maps(draw: st.DrawFn) -> ShardMap:
    shards = draw(st.integers(1, 12))
    owners = st.lists(st.integers(0, shards - 1), min_size=1, max_size=shards, unique=True)
    placements = draw(st.dictionaries(st.integers(1, 30), owners.map(tuple), max_size=8))
    return ShardMap(draw(st.integers(1, 99)), shards, placements)


sku_ids = st.integers(0, (1 << 32) - 1)


def test_the_rule_deals_locations_out_in_turn() -> None:
    shard_map = ShardMap(1, 3)
    assert [shard_map.owners(location) for location in (1, 2, 3, 4)] == [(0,), (1,), (2,), (0,)]
    assert shard_map.shard_of(77, 5) == 1
    assert shard_map.place(2, 1) == (True, 0, 0)
    assert shard_map.place(2, 0) == (False, 0, 0)


def test_a_placement_overrules_it() -> None:
    shard_map = ShardMap(2, 4, {1: (3,), 2: (2, 0, 1)})
    assert shard_map.owners(1) == (3,)
    assert shard_map.place(1, 3) == (True, 0, 0)
    assert shard_map.place(1, 0) == (False, 0, 0)
    assert [shard_map.place(2, shard) for shard in range(4)] == [
        (True, 3, 1),
        (True, 3, 2),
        (True, 3, 0),
        (False, 0, 0),
    ]


def test_a_split_location_spreads_its_skus_evenly() -> None:
    shard_map = ShardMap(1, 4, {7: (3, 1, 0, 2)})
    skus = np.arange(1, 40_001, dtype=np.uint32)
    shares = np.bincount(shard_map.shards_of(skus, np.full(len(skus), 7, np.uint32)))
    assert len(shares) == 4
    assert all(9_500 < share < 10_500 for share in shares.tolist())


@given(sku_ids)
def test_the_tag_is_that_of_the_kernels(sku: int) -> None:
    assert split_tag(sku) == key_tag(sku)


def test_the_tag_is_a_published_constant() -> None:
    # splitmix64's own first outputs for the seed 0: its state after one step is this increment.
    assert split_tag(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF >> 33


@given(
    shard_maps(),
    st.lists(st.tuples(sku_ids, st.integers(0, 40)), max_size=60),
    st.sampled_from([np.uint32, np.int64, np.uint64]),
)
def test_columns_and_single_lines_agree(
    shard_map: ShardMap, lines: list[tuple[int, int]], dtype: Any
) -> None:
    skus = np.array([sku for sku, _ in lines], dtype)
    locations = np.array([location for _, location in lines], dtype)
    routed = shard_map.shards_of(skus, locations)
    assert routed.dtype == np.uint16
    assert routed.tolist() == [shard_map.shard_of(*line) for line in lines]


@given(shard_maps(), sku_ids, st.integers(1, 40))
def test_exactly_one_shard_accepts_a_cell(shard_map: ShardMap, sku: int, location: int) -> None:
    accepting = []
    for number in range(shard_map.shards):
        owned, split, part = shard_map.place(location, number)
        if owned and (split <= 1 or key_tag(sku) % split == part):  # as `kernels.checks`
            accepting.append(number)
    assert accepting == [shard_map.shard_of(sku, location)]


def test_columns_of_different_lengths_are_a_bug() -> None:
    with pytest.raises(ValueError):
        ShardMap(1, 2).shards_of(np.zeros(2, np.uint32), np.zeros(3, np.uint32))


@given(shard_maps())
def test_a_map_reads_back(shard_map: ShardMap) -> None:
    packed = shard_map.encode()
    assert ShardMap.decode(packed) == shard_map
    assert ShardMap.decode(packed).encode() == packed


@given(shard_maps(), st.data())
def test_what_is_no_map_is_refused(shard_map: ShardMap, data: st.DataObject) -> None:
    packed = shard_map.encode()
    with pytest.raises(ValueError):
        ShardMap.decode(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with contextlib.suppress(ValueError):  # and nothing else
        ShardMap.decode(data.draw(st.binary(max_size=30)))


@pytest.mark.parametrize(
    ("version", "shards", "placements", "named"),
    [
        (0, 1, {}, "version"),
        (1, 0, {}, "shards"),
        (1, limits.MAX_SHARDS + 1, {}, "shards"),
        (1, 2, {0: (1,)}, r"placements\[0\]"),
        (1, 2, {limits.MAX_LOCATIONS + 1: (1,)}, "placements"),
        (1, 2, {5: ()}, "0 shards"),
        (1, 2, {5: (2,)}, "among the 2 shards"),
        (1, 2, {5: (-1,)}, "among the 2 shards"),
        (1, 2, {5: (1, 1)}, "twice"),
        (1, 1000, {5: tuple(range(limits.MAX_SPLIT + 1))}, "must be 1 to 256"),
    ],
)
def test_a_map_that_cannot_be_is_refused(
    version: int, shards: int, placements: dict[int, tuple[int, ...]], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        ShardMap(version, shards, placements)
