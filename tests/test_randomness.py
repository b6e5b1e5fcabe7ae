from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hvq.randomness import hash_words, permutation, uniform

MASK = 2**64 - 1
WHOLE = st.integers(-(2**63), 2**63 - 1)


def _scrambled(value: int) -> int:
    """The finalizer of SplitMix64 in Python's unbounded integers, as its authors print it."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@given(st.lists(WHOLE, max_size=5))
def test_words_are_chained_splitmix(keys: list[int]) -> None:
    state = 0
    for key in keys:
        state = _scrambled(((state ^ (key & MASK)) + 0x9E3779B97F4A7C15) & MASK)
    assert int(hash_words(*keys)) == state


def test_first_output_of_splitmix_is_the_published_one() -> None:
    assert int(hash_words(0)) == 0xE220A8397B1DCDAF


@given(st.integers(0, 1000), st.lists(st.integers(0, 10**6), min_size=1, max_size=13))
def test_a_sample_does_not_depend_on_its_neighbours(seed: int, samples: list[int]) -> None:
    together = hash_words(seed, "crop", samples)
    assert together.shape == (len(samples),)
    assert together.tolist() == [int(hash_words(seed, "crop", sample)) for sample in samples]


def test_keys_broadcast() -> None:
    words = hash_words(np.arange(3)[:, None], "code", np.arange(5))
    assert words.shape == (3, 5)
    assert words[2, 4] == hash_words(2, "code", 4)
    assert len(set(words.flatten().tolist())) == 15


def test_every_key_and_its_place_matter() -> None:
    words = [
        hash_words(*keys) for keys in [(1, 2), (2, 1), (1, 2, 0), (1, "2"), ("1", 2), ("flip", 2), ("crop", 2), (1,)]
    ]
    assert len({int(word) for word in words}) == len(words)


def test_every_bit_of_a_key_turns_about_half_of_the_bits() -> None:
    keys = np.arange(500, dtype=np.int64)
    for bit in range(0, 63, 7):
        changed = hash_words(3, keys) ^ hash_words(3, keys ^ (np.int64(1) << np.int64(bit)))
        flipped = np.unpackbits(changed.view(np.uint8)).mean()
        assert abs(flipped - 0.5) < 0.02


def test_uniform_numbers_are_uniform_and_inside_the_open_interval() -> None:
    numbers = uniform(11, "noise", np.arange(100_003))
    assert numbers.dtype == np.float64
    assert 0.0 < numbers.min() < 1e-3
    assert 1.0 - 1e-3 < numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=10, range=(0.0, 1.0))
    expected = len(numbers) / 10
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 27.9  # exceeded once in a thousand seeds, with 9 degrees of freedom
    assert abs(float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1])) < 0.01


@given(st.integers(0, 97), st.integers(0, 10**6))
def test_permutations_hold_every_index_once_and_depend_on_the_keys_alone(length: int, epoch: int) -> None:
    order = permutation(length, 0, "order", epoch)
    assert sorted(order.tolist()) == list(range(length))
    assert order.tolist() == permutation(length, 0, "order", epoch).tolist()


def test_epochs_have_their_own_permutations() -> None:
    orders = {tuple(permutation(101, 0, "order", epoch).tolist()) for epoch in range(10)}
    assert len(orders) == 10


def test_every_position_is_as_likely_for_every_index() -> None:
    firsts = np.bincount([permutation(5, "order", epoch)[0] for epoch in range(2000)], minlength=5)
    assert abs(firsts / 2000 - 0.2).max() < 0.04
