"""How probable each of 256 values of a pixel is under a logistic distribution: what losses and metrics share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

VALUES = 256


def log_probabilities(values: Tensor, means: Tensor, scale: Tensor | float) -> Tensor:
    """Log probability in nats of values of pixels; equation (2) of PixelCNN++ (arXiv 1701.05517), with one component.

    log (F(v + 1/2) - F(v - 1/2)) with F(x) = sigmoid((x - mean) / scale). The edge values 0 and 255 are given the tails
    beyond them, so that probabilities of the 256 values sum to 1.

    Args:
        values: whole numbers 0 .. 255, floating point.
        means: of the distributions, in the same unit; any real numbers. Broadcasts against values.
        scale: s > 0 in the same unit; the standard deviation is pi / sqrt(3) s.

    Returns:
        Log probabilities, of the type of values and means; finite wherever the mean is.

    >>> values = torch.arange(256.0, dtype=torch.float64)
    >>> round(log_probabilities(values, torch.tensor(250.3), 7.0).exp().sum().item(), 12)
    1.0
    """
    scale = torch.as_tensor(scale, dtype=values.dtype, device=values.device)
    below = logsigmoid((values + 0.5 - means) / scale)
    above = logsigmoid((means - values + 0.5) / scale)
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), where b - a = 1 / scale: no factor of it is a
    # difference of numbers that are nearly equal, and none has a logarithm that overflows.
    between = below + above + torch.log(-torch.expm1(-1 / scale))
    return torch.where(values <= 0, below, torch.where(values >= VALUES - 1, above, between))
