"""Terms of the reconstruction loss: each is told a result and the images, and gives one number, the lower the better.

All take images in [-1, 1] and compute in float32 at the least, since autocast gives reconstructions of lower precision.
Letters: B batch, C channels, H W image.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders.stack import AutoencoderResult


class ReconstructionLoss(Protocol):
    """One term; a mean over the batch, so that micro-batches and processes of equal size average to the whole."""

    def __call__(self, result: AutoencoderResult, images: Tensor) -> Tensor:
        """The term, a float32 (or float64) number.

        Args:
            result: of the autoencoder.
            images: `[B, C, H, W]` in [-1, 1], which it was to reconstruct.
        """
        ...


class WeightedLoss(NamedTuple):
    """A term and its weight in the sum."""

    weight: float
    loss: ReconstructionLoss


def squared_error(result: AutoencoderResult, images: Tensor) -> Tensor:
    """Mean of (x - x')^2 over batch, channels and pixels: the first term of equation (9) of arXiv 1711.00937.

    Up to a constant, the negative log-likelihood of a Gaussian of variance 1/2. In [0, 4] for pixels in [-1, 1].
    """
    return functional.mse_loss(*at_least_float32(result.reconstruction, images))


def absolute_error(result: AutoencoderResult, images: Tensor) -> Tensor:
    """Mean of |x - x'| over batch, channels and pixels, in [0, 2] for pixels in [-1, 1]."""
    return functional.l1_loss(*at_least_float32(result.reconstruction, images))


def at_least_float32(reconstruction: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Both, in the precision of the images, or in float32 where that is lower."""
    precision = torch.promote_types(images.dtype, torch.float32)
    return reconstruction.to(precision), images.to(precision)
