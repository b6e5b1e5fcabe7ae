"""The kernel distance against double loops, over batch sizes, orders and processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation import kernel_distance
from hvq.evaluation.kernel_distance import KernelDistance, KernelScore
from hvq.randomness import permutation
from tests.processes import run_in_processes

FEATURES = 3


def _sets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(23, FEATURES, generator=generator), torch.randn(19, FEATURES, generator=generator) + 0.5


def _estimate(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((x @ y / FEATURES + 1) ** 3)

    def within(some: NDArray[np.float64]) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(some) for j, y in enumerate(some) if i != j]
        return sum(pairs) / len(pairs)

    return within(real) + within(fake) - 2 * float(np.mean([kernel(x, y) for x in real for y in fake]))


def _measured(real: Tensor, fake: Tensor, batch_size: int = 100, **options: int) -> KernelScore:
    """Handed over from the last sample to the first."""
    distance = KernelDistance(features=FEATURES, **options)
    for samples, is_real in ((real, True), (fake, False)):
        numbers = torch.arange(len(samples)).flip(0)
        for features, some in zip(samples.flip(0).split(batch_size), numbers.split(batch_size), strict=True):
            distance.update(features, some, real=is_real)
    score: KernelScore = distance.compute()
    return score


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_subsets_equal_double_loops_for_any_batch_size(batch_size: int) -> None:
    real, fake = _sets()
    found = _measured(real, fake, batch_size, subsets=5, subset_size=11, seed=2)
    one, two = real.double().numpy(), fake.double().numpy()
    expected = [
        _estimate(
            one[permutation(23, 2, "kernel distance", subset)[:11]],
            two[permutation(19, 2, "kernel distance", subset)[:11]],
        )
        for subset in range(5)
    ]
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-10)
    assert found.deviation == pytest.approx(np.std(expected, ddof=1), rel=1e-9)
    assert (found.subset_size, found.subsets) == (11, 5)


def test_small_sets_of_one_size_are_one_subset() -> None:
    real, fake = _sets()
    found = _measured(real[:19], fake)
    assert found.mean == pytest.approx(_estimate(real[:19].double().numpy(), fake.double().numpy()), rel=1e-10)
    assert found[1:] == (0.0, 19, 1)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _measured(*_sets(), subsets=5, subset_size=11)
    monkeypatch.setattr(kernel_distance, "ROWS_AT_ONCE", 5)
    assert _measured(*_sets(), subsets=5, subset_size=11) == pytest.approx(expected, rel=1e-10)


def test_is_not_biased_where_both_sets_are_drawn_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [_measured(*torch.randn(2, 13, FEATURES, generator=generator)).mean for _ in range(300)]
    assert abs(np.mean(scores)) < 3 * np.std(scores) / 300**0.5
    assert min(scores) < 0 < max(scores)


def test_refuses_what_it_cannot_compare() -> None:
    distance = KernelDistance(features=FEATURES)
    with pytest.raises(DataError, match=r"numbers must be \[2\]"):
        distance.update(torch.zeros(2, FEATURES), torch.arange(3), real=True)
    with pytest.raises(DataError, match=r"\[N, 3\]"):
        distance.update(torch.zeros(2, 5), torch.arange(2), real=True)
    distance.update(torch.zeros(2, FEATURES), torch.arange(2), real=True)
    with pytest.raises(DataError, match="received 2 and 0"):
        distance.compute()
    with pytest.raises(DataError, match="at least 2 samples"):
        KernelDistance(features=FEATURES, subset_size=1)


def _measured_on_one_of_two_processes() -> KernelScore:
    real, fake = _sets()
    distance = KernelDistance(features=FEATURES, subsets=5, subset_size=11)
    first = torch.distributed.get_rank() == 0
    rows = torch.arange(0, 23, 2) if first else torch.arange(1, 23, 2)
    distance.update(real[rows], rows, real=True)
    # The second process has no generated samples, and the first has them all.
    rows = torch.arange(19 if first else 0)
    distance.update(fake[rows], rows, real=False)
    score: KernelScore = distance.compute()
    return score


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _measured(*_sets(), subsets=5, subset_size=11)
    for found in run_in_processes(_measured_on_one_of_two_processes, 2):
        assert found == pytest.approx(expected, rel=1e-12)
