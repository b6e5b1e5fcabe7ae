"""The Fréchet distance between two sets of features, which on Inception's is FID.

Letters: N samples, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.features import TwoSets


class FrechetDistance(TwoSets):
    """Squared Fréchet distance between the Gaussians that have the mean and covariance of two sets of features.

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), from 0 for equal ones upwards; lower is better. Equation (6) of Heusel et
    al. (2017, arXiv 1706.08500), where the features are Inception's: on any others it is no FID to be compared with
    published ones. Covariances are unbiased. With no more samples than features they are singular, which is allowed
    here, but the distance is then far too large: it falls as samples are added, so only equal numbers compare.

    The trace of (S S')^(1/2) is that of (R S' R)^(1/2) with R = S^(1/2), both by eigenvalues of symmetric matrices, of
    which rounding errors below 0 are taken for 0. All is float64. Sums over samples are kept, so it is equal for any
    batch size and, through `torchmetrics`, number of processes.

    Args:
        features: F.

    >>> distance = FrechetDistance(features=1)
    >>> distance.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> distance.update(torch.tensor([[3.0], [5.0]]), real=False)
    >>> round(distance.compute(), 6)
    9.0
    """

    higher_is_better = False

    real_sum: Tensor
    real_products: Tensor
    real_count: Tensor
    fake_sum: Tensor
    fake_products: Tensor
    fake_count: Tensor

    def __init__(self, *, features: int) -> None:
        super().__init__(features=features)
        for side in ("real", "fake"):
            self.add_state(f"{side}_sum", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(
                f"{side}_products", torch.zeros(features, features, dtype=torch.float64), dist_reduce_fx="sum"
            )
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, features: Tensor, side: str) -> None:
        features = features.to(self.real_sum)
        sums = {"sum": features.sum(0), "products": features.T @ features, "count": len(features)}
        for name, value in sums.items():
            setattr(self, f"{side}_{name}", getattr(self, f"{side}_{name}") + value)

    def compute(self) -> float:
        """The distance, over all samples of all processes.

        Raises:
            DataError: where one of the sets has fewer than two samples.
        """
        real_mean, real_covariance = _gaussian(self.real_sum, self.real_products, int(self.real_count))
        fake_mean, fake_covariance = _gaussian(self.fake_sum, self.fake_products, int(self.fake_count))
        return frechet_distance(real_mean, real_covariance, fake_mean, fake_covariance)


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Squared Fréchet distance between two Gaussians, at least 0.

    Args:
        mean: float64 `[F]`.
        covariance: float64 `[F, F]`, symmetric and positive semi-definite but for rounding.
        other_mean: of the other.
        other_covariance: of the other.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root @ other_covariance @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def _gaussian(total: Tensor, products: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if count < 2:
        raise DataError(f"a covariance takes at least two samples of each set; received {count}")
    mean = total / count
    return mean, (products - count * torch.outer(mean, mean)) / (count - 1)
