"""Precision and recall of generated images: how many look real, and how many real ones could have been generated.

Letters: N samples, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hvq.errors import ConfigurationError, DataError
from hvq.evaluation.features import TwoSets, joined

ROWS_AT_ONCE = 1024
NEIGHBOURS = 3

ROUNDING = 1e-12
"""Share of the squared lengths of two samples up to which their squared distance is rounding: equal ones are equal."""


class PrecisionRecall(NamedTuple):
    """What `ManifoldPrecisionRecall` gives.

    Args:
        precision: share of generated samples that lie in the manifold of real ones, in [0, 1].
        recall: share of real samples that lie in the manifold of generated ones, in [0, 1].
    """

    precision: float
    recall: float


class ManifoldPrecisionRecall(TwoSets):
    """Improved precision and recall of Kynkäänniemi et al. (2019, arXiv 1904.06991), equations (1) and (2).

    The manifold of a set is all that lies within the distance from a sample to its k-th nearest neighbour among the
    others of the set, for any sample. Precision is the share of generated samples in the manifold of real ones, recall
    that of real samples in the manifold of generated ones; both in [0, 1], higher is better. Both depend on the sizes
    of the sets, since manifolds shrink as samples are added: the paper takes 50,000 of each.

    Distances are computed in float64, in blocks of rows, so that no matrix of all pairs is held. The result is equal
    for any batch size, order and, through `torchmetrics`, number of processes.

    Args:
        features: F.
        neighbours: k.

    >>> metric = ManifoldPrecisionRecall(features=1, neighbours=1)
    >>> metric.update(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), real=True)
    >>> metric.update(torch.tensor([[0.5], [0.6], [5.0]]), real=False)
    >>> precision, recall = metric.compute()
    >>> round(precision, 4), recall
    (0.6667, 0.5)
    """

    higher_is_better = True

    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, *, features: int, neighbours: int = NEIGHBOURS) -> None:
        super().__init__(features=features)
        if neighbours < 1:
            raise ConfigurationError(f"neighbours must be at least 1; received {neighbours}")
        self.neighbours = neighbours
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def _add(self, features: Tensor, side: str) -> None:
        getattr(self, side).append(features)

    def compute(self) -> PrecisionRecall:
        """Both, over all samples of all processes.

        Raises:
            DataError: where one of the sets has no more samples than neighbours.
        """
        real, fake = joined(self.real), joined(self.fake)
        if min(len(real), len(fake)) <= self.neighbours:
            raise DataError(
                f"manifolds of {self.neighbours} neighbours take more samples than that of each set; received "
                f"{len(real)} and {len(fake)}"
            )
        return PrecisionRecall(
            precision=_share_inside(fake, real, _squared_radii(real, self.neighbours)),
            recall=_share_inside(real, fake, _squared_radii(fake, self.neighbours)),
        )


def _squared_radii(samples: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each sample to its k-th nearest among the others, `[N]`."""
    # The nearest of all is the sample itself.
    radii = [_squared_distances(rows, samples).kthvalue(neighbours + 1).values for rows in samples.split(ROWS_AT_ONCE)]
    return torch.cat(radii)


def _share_inside(samples: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    """Share of the samples that lie within the radius of any centre."""
    inside = 0
    for rows in samples.split(ROWS_AT_ONCE):
        inside += int((_squared_distances(rows, centres) <= squared_radii).any(1).sum())
    return inside / len(samples)


def _squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """`[n, N]`; 0 where rounding alone sets two samples apart."""
    lengths = rows.square().sum(1, keepdim=True) + others.square().sum(1)
    squared = lengths - 2 * rows @ others.T
    return squared.masked_fill_(squared <= ROUNDING * lengths, 0.0)
