"""What the losses of all kinds have in common."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of values `[N]` over the positions that count; 0 where none does.

    >>> masked_mean(torch.tensor([1.0, 5.0]), torch.tensor([True, False])).item()
    1.0
    """
    if weights is None:
        return values.mean()
    return torch.where(weights, values, 0.0).sum() / weights.sum().clamp(min=1)
