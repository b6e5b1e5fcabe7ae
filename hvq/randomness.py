"""Random numbers as a pure function of keys, so that nothing depends on batch size, workers or processes.

Every random choice about a sample (order, crop, flip, drop-out of labels and levels, sampling noise) is a hash of the
keys that identify it, such as (seed, epoch, sample index, purpose). There is no generator whose state would have to be
saved, split over workers, or replayed on resume.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Key = str | ArrayLike


def _scramble(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIERS[0]
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIERS[1]
    return value ^ (value >> np.uint64(31))


def _as_words(key: Key) -> NDArray[np.uint64]:
    if isinstance(key, str):
        return np.array(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little"), np.uint64)
    return np.asarray(key, np.int64).astype(np.uint64)


def hash_words(*keys: Key) -> NDArray[np.uint64]:
    """64 well-mixed bits for each combination of keys; arrays among the keys broadcast.

    Args:
        keys: strings (purposes, level names), integers, or integer arrays.

    >>> int(hash_words(0, "crop", 7)) == int(hash_words(0, "crop", [6, 7])[1])
    True
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = _scramble((state ^ _as_words(key)) + _INCREMENT)
    return state


def uniform(*keys: Key) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), one for each combination of keys, never exactly 0 or 1.

    >>> float(uniform(0, "flip", 3)) == float(uniform(0, "flip", 3))
    True
    >>> bool((abs(uniform(0, np.arange(10_000)).mean() - 0.5) < 0.02).all())
    True
    """
    return ((hash_words(*keys) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def permutation(length: int, *keys: Key) -> NDArray[np.int64]:
    """A permutation of 0 .. length - 1 that depends on the keys alone.

    >>> sorted(permutation(5, 0, "order", 1).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(hash_words(*keys, np.arange(length)), kind="stable").astype(np.int64)
