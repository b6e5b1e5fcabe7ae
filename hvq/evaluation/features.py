"""Features of images as metrics of two sets take them in and keep them.

Letters: N samples, F features.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from hvq.errors import DataError


class TwoSets(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """A metric of two sets of features, of real images and of others.

    Args:
        features: F.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, *, features: int) -> None:
        super().__init__()
        self.features = features

    def update(self, features: Tensor, *, real: bool) -> None:
        """Add samples to one of the sets; each process adds to both, no samples where it has none.

        Args:
            features: floating point `[N, F]`.
            real: which set.

        Raises:
            DataError: where the shape is another one, or a feature is not finite.
        """
        check_features(features, self.features)
        self._add(features.double(), "real" if real else "fake")

    @abstractmethod
    def _add(self, features: Tensor, side: str) -> None:
        """Keep what is needed of float64 `[N, F]`, in the states whose names begin with the side's."""


def check_features(features: Tensor, width: int) -> None:
    """Refuse what is not a batch of features.

    Raises:
        DataError: where it is not floating point `[N, width]`, or not finite.
    """
    if features.ndim != 2 or features.shape[1] != width or not features.is_floating_point():
        raise DataError(
            f"features must be floating point [N, {width}]; received {features.dtype} {list(features.shape)}"
        )
    if not bool(features.isfinite().all()):
        raise DataError("features must be finite; some are not: look at the extractor's weights and its images")


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """The rows of a metric's list state, which `torchmetrics` joins where it has gathered them over processes."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.zeros(0)
