"""The hashes of the state, and the tags of the indexes."""

import numpy as np

from engine.kernels.compiled import inlined
from engine.kernels.layout import (
    CELL,
    DEADLINE,
    FULFILLED,
    ID_HI,
    ID_LO,
    PENDING,
    POSTED,
    RETURNED,
    STATE,
)

# Multipliers of the state hash: odd constants from the digits of pi (as in Blowfish's tables).
_M0, _M1 = np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707345)
_M2, _M3 = np.uint64(0xA4093822299F31D1), np.uint64(0x082EFA98EC4E6C89)
_M4, _M5 = np.uint64(0x452821E638D01377), np.uint64(0xBE5466CF34E90C6D)
_M6, _M7 = np.uint64(0xC0AC29B7C97C50DD), np.uint64(0x3F84D5B5B5470917)
_M8, _M9 = np.uint64(0x9216D5D98979FB1B), np.uint64(0xD1310BA698DFB5AD)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33)


@inlined
def mix(x):
    """The finalizer of splitmix64: a bijection of 64 bits; every output bit depends on all input."""
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@inlined
def cell_hash(cells, row):
    """The hash of one cell's whole content; the row must not be marked as touched."""
    x = np.uint64(cells[row, 0]) * _M0 + np.uint64(cells[row, 1]) * _M1
    x += np.uint64(cells[row, 2]) * _M2 + np.uint64(cells[row, 3]) * _M3
    x += np.uint64(cells[row, 4]) * _M4 + np.uint64(cells[row, 5]) * _M5
    x += np.uint64(cells[row, 6]) * _M6 + np.uint64(cells[row, 7]) * _M7
    x += np.uint64(cells[row, 8]) * _M8 + np.uint64(cells[row, 9]) * _M9
    return mix(x)


@inlined
def count_hash(key, moment):
    """The hash of when a cell was counted; by itself, so that a reserve need not load it."""
    return mix((np.uint64(key) * _M0 + np.uint64(moment) * _M1) ^ _M8)


@inlined
def line_hash(holds, lines, slot):
    """The hash of one line of a live hold; its cell goes in as a row number, which never changes."""
    x = np.uint64(holds[slot, ID_HI]) * _M0 + np.uint64(holds[slot, ID_LO]) * _M1
    x += np.uint64(lines[slot, CELL]) * _M2 + np.uint64(holds[slot, DEADLINE]) * _M3
    x += np.uint64(lines[slot, PENDING]) * _M4 + np.uint64(lines[slot, POSTED]) * _M5
    x += np.uint64(lines[slot, FULFILLED]) * _M6 + np.uint64(lines[slot, RETURNED]) * _M7
    x += np.uint64(lines[slot, STATE]) * _M8
    return mix(x ^ _M9)


@inlined
def key_tag(key):
    """31 bits of a cell key's hash."""
    return np.int64(mix(np.uint64(key)) >> _S33)


@inlined
def id_tag(hi, lo):
    """31 bits of a hold id's hash."""
    return np.int64(mix(np.uint64(lo) ^ mix(np.uint64(hi))) >> _S33)
