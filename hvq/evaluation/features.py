"""Features of images as metrics take them in and keep them.

Letters: N samples, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvq.errors import DataError


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
