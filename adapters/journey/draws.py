"""Deterministic draws: a number for a key and a purpose, the same on every run and machine.

Keys are ids from the data, not positions, so a basket's fate does not depend on which weeks are
replayed. Different purposes draw independently of each other for the same key.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def draw(keys: NDArray[np.int64], purpose: str) -> NDArray[np.uint64]:
    """64 well mixed bits for each key, shape (n,): splitmix64 of the key, seeded by `purpose`."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    mixed = keys.astype(np.uint64) + np.uint64(int.from_bytes(digest, "little"))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def fraction(keys: NDArray[np.int64], purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each key, shape (n,)."""
    return (draw(keys, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def chosen(keys: NDArray[np.int64], purpose: str, share: float) -> NDArray[np.bool_]:
    """Whether each key belongs to the `share` (0 to 1) that is chosen, shape (n,)."""
    return fraction(keys, purpose) < share


def below(
    keys: NDArray[np.int64], purpose: str, bound: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """A whole number from 0 to `bound` - 1 for each key, shape (n,); bounds are positive."""
    return (draw(keys, purpose) % np.asarray(bound).astype(np.uint64)).astype(np.int64)


def pair_key(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """One key for two ids, shape (n,); `second` fits 32 bits, and the sum may wrap harmlessly."""
    return (first << np.int64(26)) ^ second
