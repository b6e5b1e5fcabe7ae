"""The Fréchet distance against plain numpy, for regular and singular covariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.frechet import FrechetDistance
from tests.processes import run_in_processes

FEATURES = 5


def _sets(count: int = 97, other: int = 89) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(FEATURES, FEATURES, generator=generator)
    real = torch.randn(count, FEATURES, generator=generator) @ mixing + 3
    return real, torch.randn(other, FEATURES, generator=generator).abs() + 2


def _expected(real: Tensor, fake: Tensor) -> float:
    """By the eigenvalues of the product, which is not symmetric."""
    one, two = (x.double().numpy() for x in (real, fake))
    covariances: list[NDArray[np.float64]] = [np.cov(x, rowvar=False) for x in (one, two)]
    cross = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    means = ((one.mean(0) - two.mean(0)) ** 2).sum()
    return float(means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross)


def _measured(real: Tensor, fake: Tensor, batch_size: int = 1000) -> float:
    distance = FrechetDistance(features=real.shape[1])
    for part in real.split(batch_size):
        distance.update(part, real=True)
    for part in fake.split(batch_size):
        distance.update(part, real=False)
    return float(distance.compute())


@pytest.mark.parametrize("batch_size", [1, 13, 1000])
def test_equals_numpy_for_any_batch_size(batch_size: int) -> None:
    real, fake = _sets()
    assert _measured(real, fake, batch_size) == pytest.approx(_expected(real, fake), rel=1e-10)
    assert _measured(fake, real, batch_size) == pytest.approx(_expected(real, fake), rel=1e-9)


def test_of_one_feature_it_is_the_difference_of_means_and_deviations() -> None:
    real, fake = _sets()
    expected = (real[:, :1].double().mean() - fake[:, :1].double().mean()) ** 2
    expected += (real[:, :1].double().std() - fake[:, :1].double().std()) ** 2
    assert _measured(real[:, :1], fake[:, :1]) == pytest.approx(float(expected), rel=1e-10)


def test_fewer_samples_than_features_are_no_trouble() -> None:
    """The covariances are singular; the nuclear norm of the product of the samples themselves is the truth."""
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(7, 53, generator=generator, dtype=torch.float64)
    fake = torch.randn(11, 53, generator=generator, dtype=torch.float64) * 2 + 1
    one, two = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (real, fake))
    cross = torch.linalg.svdvals(one @ two.T).sum()
    means = (real.mean(0) - fake.mean(0)).square().sum()
    expected = float(means + one.square().sum() + two.square().sum() - 2 * cross)
    assert _measured(real, fake) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_have_no_distance_even_where_features_are_constant() -> None:
    real, _ = _sets()
    real = torch.cat([real, torch.full((len(real), 2), 100.0)], dim=1)
    assert 0 <= _measured(real, real) < 1e-6


def test_large_means_do_not_drown_small_variances() -> None:
    real, fake = _sets()
    apart = _expected(real.double(), fake.double())
    assert _measured(real.double() + 1e3, fake.double() + 1e3) == pytest.approx(apart, rel=1e-6)


def test_refuses_what_is_not_features() -> None:
    distance = FrechetDistance(features=FEATURES)
    with pytest.raises(DataError, match=r"\[N, 5\]"):
        distance.update(torch.zeros(3, 7), real=True)
    with pytest.raises(DataError, match="finite"):
        distance.update(torch.full((3, 5), torch.nan), real=True)
    distance.update(torch.zeros(3, 5), real=True)
    distance.update(torch.zeros(1, 5), real=False)
    with pytest.raises(DataError, match="at least two samples of each set; received 1"):
        distance.compute()


def _measured_on_one_of_two_processes() -> float:
    real, fake = _sets()
    rank = torch.distributed.get_rank()
    # The second process has no generated samples.
    return _measured(real[(slice(0, 13), slice(13, 97))[rank]], fake if rank == 0 else fake[:0], 31)


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _measured(*_sets())
    assert run_in_processes(_measured_on_one_of_two_processes, 2) == pytest.approx([expected] * 2, rel=1e-10)
