"""The kernel distance between two sets of features, which on Inception's is KID.

Letters: N samples, F features, S subsets of m samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from hvq.errors import DataError
from hvq.evaluation.features import check_features, joined
from hvq.randomness import permutation

ROWS_AT_ONCE = 1024


class KernelScore(NamedTuple):
    """What `KernelDistance` gives.

    Args:
        mean: of the estimates of all subsets; 0 in expectation where both sets are drawn alike, and so at times below.
        deviation: their standard deviation (of S - 1 degrees of freedom); 0 where there is one subset.
        subset_size: m.
        subsets: S.
    """

    mean: float
    deviation: float
    subset_size: int
    subsets: int


class KernelDistance(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """Unbiased squared maximum mean discrepancy with the kernel k(x, y) = (x . y / F + 1)^3, the mean over subsets.

    sum_{i != j} k(x_i, x_j) / (m (m - 1)) + the same of y - 2 sum_{i, j} k(x_i, y_j) / m^2, of Binkowski et al. (2018,
    arXiv 1801.01401), where the features are Inception's. Unlike the Fréchet distance it is not biased by the number of
    samples. Lower is better.

    Which samples are in which subset is a function of (seed, subset, number of the sample), so the result is equal for
    any batch size, order of batches and, through `torchmetrics`, number of processes. It is computed in float64, from
    one pass over blocks of the kernel matrices, whatever the number of subsets.

    Args:
        features: F.
        subsets: S.
        subset_size: m at most; the smaller set's size, and one subset of all, where both sets have no more than that.
        seed: of the subsets.

    >>> distance = KernelDistance(features=2)
    >>> points = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> distance.update(points, torch.arange(3), real=True)
    >>> distance.update(points + 1, torch.arange(3), real=False)
    >>> distance.compute().mean > 0
    True
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False

    real_features: list[Tensor]
    real_numbers: list[Tensor]
    fake_features: list[Tensor]
    fake_numbers: list[Tensor]

    def __init__(self, *, features: int, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> None:
        super().__init__()
        if subsets < 1 or subset_size < 2:
            raise DataError(
                f"subsets must be at least 1 and of at least 2 samples; received {subsets} of {subset_size}"
            )
        self.features = features
        self.subsets = subsets
        self.subset_size = subset_size
        self.seed = seed
        for name in ("real_features", "real_numbers", "fake_features", "fake_numbers"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, numbers: Tensor, *, real: bool) -> None:
        """Add samples to one of the sets; each process adds to both, no samples where it has none.

        Args:
            features: floating point `[N, F]`.
            numbers: int64 `[N]`, which tell the samples of a set apart, whatever the order in which they come.
            real: which set.

        Raises:
            DataError: where the shapes are others, or a feature is not finite.
        """
        check_features(features, self.features)
        if numbers.shape != features.shape[:1]:
            raise DataError(f"numbers must be [{len(features)}], one for each sample; received {list(numbers.shape)}")
        kept = (self.real_features, self.real_numbers) if real else (self.fake_features, self.fake_numbers)
        kept[0].append(features.double())
        kept[1].append(numbers.to(features.device, torch.int64))

    def compute(self) -> KernelScore:
        """The distance, over all samples of all processes.

        Raises:
            DataError: where one of the sets has fewer than two samples.
        """
        real = _in_order(self.real_features, self.real_numbers)
        fake = _in_order(self.fake_features, self.fake_numbers)
        if min(len(real), len(fake)) < 2:
            raise DataError(f"the kernel distance takes two samples of each set; received {len(real)} and {len(fake)}")
        size = min(self.subset_size, len(real), len(fake))
        subsets = 1 if len(real) == len(fake) == size else self.subsets
        chosen_real, chosen_fake = (self._chosen(what, size, subsets) for what in (real, fake))
        within = [_within(what, chosen) for what, chosen in ((real, chosen_real), (fake, chosen_fake))]
        across = _quadratic(real, fake, chosen_real, chosen_fake)
        estimates = sum(within) / (size * (size - 1)) - 2 * across / size**2
        deviation = float(estimates.std()) if subsets > 1 else 0.0
        return KernelScore(float(estimates.mean()), deviation, size, subsets)

    def _chosen(self, samples: Tensor, size: int, subsets: int) -> Tensor:
        """float64 `[N, S]`, 1 where a sample is in a subset."""
        chosen = np.zeros((len(samples), subsets))
        for subset in range(subsets):
            chosen[permutation(len(samples), self.seed, "kernel distance", subset)[:size], subset] = 1
        return torch.from_numpy(chosen).to(samples.device)


def _in_order(features: list[Tensor] | Tensor, numbers: list[Tensor] | Tensor) -> Tensor:
    """The samples `[N, F]` in the order of their numbers, in which subsets count them."""
    return joined(features)[joined(numbers).long().argsort()]


def _within(samples: Tensor, chosen: Tensor) -> Tensor:
    """The kernel summed over pairs of different samples of each subset, `[S]`."""
    alone = (samples.square().sum(1) / samples.shape[1] + 1) ** 3
    return _quadratic(samples, samples, chosen, chosen) - alone @ chosen


def _quadratic(one: Tensor, other: Tensor, chosen: Tensor, others_chosen: Tensor) -> Tensor:
    """The kernel summed over the pairs of samples that each subset holds, `[S]`."""
    total = chosen.new_zeros(chosen.shape[1])
    for rows, weights in zip(one.split(ROWS_AT_ONCE), chosen.split(ROWS_AT_ONCE), strict=True):
        kernel = (rows @ other.T / one.shape[1] + 1) ** 3
        total += (weights * (kernel @ others_chosen)).sum(0)
    return total
