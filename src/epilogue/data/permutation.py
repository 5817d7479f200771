"""A shuffle that is computed, not stored: where any index goes is known at once, whatever stands before it.

A Feistel network permutes the numbers below a power of four that is no more than four times too large; a number that
lands past the end is sent through again until it does not (cycle walking; Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002). Its round function is splitmix64's finaliser under keys from BLAKE2b. A shuffle, not a cipher.
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_ROUNDS = 8


def permute(indices: Integers, size: int, *, key: tuple[int, ...]) -> Integers:
    """Where each index, from 0 to ``size`` - 1, goes: another such number, no two the same.

    Args:
        indices: int64, in [0, size).
        size: how many there are, at least 1.
        key: whole numbers that choose the permutation.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _round_keys(key)
    moved = _network(indices.astype(np.uint64), half_bits, keys)
    while (outside := moved >= size).any():
        moved[outside] = _network(moved[outside], half_bits, keys)
    return moved.astype(np.int64)


def draw(indices: Integers, below: Integers, *, key: tuple[int, ...]) -> Integers:
    """For each index a number from 0 to ``below`` - 1, as if at random; the same for the same index and key."""
    words = _mix(indices.astype(np.uint64) ^ _round_keys(key)[0])
    return (words % below.astype(np.uint64)).astype(np.int64)


def _network(numbers: _Words, half_bits: np.uint64, keys: _Words) -> _Words:
    left, right = numbers >> half_bits, numbers & ((np.uint64(1) << half_bits) - np.uint64(1))
    for round_key in keys:
        left, right = right, left ^ (_mix(right ^ round_key) >> (np.uint64(64) - half_bits))
    return (left << half_bits) | right


def _round_keys(key: tuple[int, ...]) -> _Words:
    digest = blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, np.dtype("<u8")).astype(np.uint64)


def _mix(words: _Words) -> _Words:
    """splitmix64's finaliser: every bit of the input moves every bit of the output."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
