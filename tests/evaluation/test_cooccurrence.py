"""Pairs of codes, and their mutual information, against plain counting."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.cooccurrence import (
    CodeCooccurrence,
    Cooccurrence,
    covered_codes,
    lower_neighbours,
    right_neighbours,
)
from tests.processes import run_in_processes


def _codes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 7, (13, 3, 5), generator=generator)
    return first, (first + torch.randint(0, 3, first.shape, generator=generator)) % 11


def _counted(first: Tensor, second: Tensor, batch_size: int) -> Cooccurrence:
    together = CodeCooccurrence(first_size=7, second_size=11)
    for pair in zip(first.split(batch_size), second.split(batch_size), strict=True):
        together.update(*pair)
    found: Cooccurrence = together.compute()
    return found


@pytest.mark.parametrize("batch_size", [1, 5, 13])
def test_equals_the_definition_for_any_batch_size(batch_size: int) -> None:
    first, second = _codes()
    pairs = list(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    both, one, two = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    count = len(pairs)
    expected = sum(n / count * math.log(n * count / (one[a] * two[b])) for (a, b), n in both.items())
    found = _counted(first, second, batch_size)
    assert found.mutual_information == pytest.approx(expected, rel=1e-12)
    assert found.pairs == count == 13 * 3 * 5
    assert found.counts.tolist() == [[both[a, b] for b in range(11)] for a in range(7)]
    surplus = len(both) - len(one) - len(two) + 1
    assert found.corrected == pytest.approx(expected - surplus / (2 * count), rel=1e-12)


def test_codes_that_say_all_of_each_other_and_codes_that_say_nothing() -> None:
    every = torch.arange(7)
    assert _counted(every, every + 3, 7).mutual_information == pytest.approx(math.log(7))
    product = torch.cartesian_prod(every, torch.arange(11))
    assert _counted(product[:, 0], product[:, 1], 77).mutual_information == pytest.approx(0.0, abs=1e-12)


def test_the_correction_takes_away_what_chance_puts_in() -> None:
    first, second = torch.randint(0, 7, (2, 2000), generator=torch.Generator().manual_seed(0))
    found = _counted(first, second, 2000)
    assert found.mutual_information > 5e-3
    assert abs(found.corrected) < found.mutual_information / 2


def test_neighbours_and_covered_codes_are_those_of_the_grid() -> None:
    codes = torch.arange(2 * 3 * 5).view(2, 3, 5)
    right, below = right_neighbours(codes), lower_neighbours(codes)
    assert [(int(a), int(b)) for a, b in zip(right[0][1].flatten(), right[1][1].flatten(), strict=True)] == [
        (15 + 5 * i + j, 15 + 5 * i + j + 1) for i in range(3) for j in range(4)
    ]
    assert bool((below[1] - below[0] == 5).all())
    assert below[0].shape == (2, 2, 5)
    # Coarse codes cover 3 x 3 fine ones each; the last row and column of the fine grid are padding, and cut off.
    coarser = torch.arange(2 * 2 * 3).view(2, 2, 3)
    finer = torch.arange(2 * 5 * 8).view(2, 5, 8)
    covering, covered = covered_codes(coarser, finer, 3)
    assert torch.equal(covered, finer)
    for image in range(2):
        for i in range(5):
            for j in range(8):
                assert covering[image, i, j] == coarser[image, i // 3, j // 3]


def test_refuses_what_it_cannot_count() -> None:
    first, second = _codes()
    with pytest.raises(DataError, match="in pairs"):
        CodeCooccurrence(first_size=7, second_size=11).update(first, second[:1])
    with pytest.raises(DataError, match=r"0 \.\. 4; received 0 \.\. 6"):
        CodeCooccurrence(first_size=5, second_size=11).update(first, second)
    with pytest.raises(DataError, match="at most 4194304 entries"):
        CodeCooccurrence(first_size=2048, second_size=2049)
    empty = CodeCooccurrence(first_size=7, second_size=11)
    empty.update(first[:0], second[:0])
    with pytest.raises(DataError, match="at least one pair"):
        empty.compute()


def _counted_on_one_of_two_processes() -> tuple[float, list[list[int]]]:
    share = (slice(0, 2), slice(2, 13))[torch.distributed.get_rank()]
    found = _counted(*(codes[share] for codes in _codes()), 3)
    return found.corrected, found.counts.tolist()


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _counted(*_codes(), 13)
    found = run_in_processes(_counted_on_one_of_two_processes, 2)
    assert found == [(expected.corrected, expected.counts.tolist())] * 2


def test_of_signals_and_volumes_neighbours_lie_along_the_last_axes() -> None:
    signal, volume = torch.arange(2 * 5).view(2, 5), torch.arange(2 * 2 * 3 * 5).view(2, 2, 3, 5)
    for codes in (signal, volume):
        first, second = right_neighbours(codes)
        assert bool((second - first == 1).all())
        assert first.numel() == codes.numel() * 4 // 5
    first, second = lower_neighbours(volume)
    assert bool((second - first == 5).all())
    assert first.shape == (2, 2, 2, 5)
    with pytest.raises(DataError, match="one axis have no lower neighbours"):
        lower_neighbours(signal)
    covering, _ = covered_codes(signal, torch.zeros(2, 13, dtype=torch.int64), 3)
    assert covering[1].tolist() == [5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9]
    covering, _ = covered_codes(volume, torch.zeros(2, 3, 6, 9, dtype=torch.int64), 2)
    places = [(i, j, k) for i in range(3) for j in range(6) for k in range(9)]
    assert all(int(covering[1, i, j, k]) == int(volume[1, i // 2, j // 2, k // 2]) for i, j, k in places)
