"""Terms of the reconstruction loss: each is told a result and the images, and gives one number, the lower the better.

All take images in [-1, 1] and compute in float32 at the least, since autocast gives reconstructions of lower precision.
Letters: B batch, C channels, H W image.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders.perceptual import FeatureDistance
from hvq.autoencoders.stack import AutoencoderResult
from hvq.discretized_logistic import log_probabilities
from hvq.errors import ConfigurationError


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


class DiscretizedLogistic:
    """Mean of -log p(x | x') over batch, channels and pixels, in nats per dimension; equation (2) of arXiv 1701.05517.

    p is the probability of one of 256 values under a logistic distribution around the reconstruction, whose scale is
    learned with the model (`Autoencoder.log_scale`, one per channel) or else fixed. Not negative; log 256 = 5.545 is
    what knowing nothing costs. Divided by log 2, bits per dimension given the codes.

    Args:
        scale: for pixels in [-1, 1], where the model has none of its own.
    """

    # As PixelCNN++ has it: below, a value is certain, and gradients are too large.
    smallest_log_scale = -7.0

    def __init__(self, *, scale: float = 0.1) -> None:
        if not scale > 0:
            raise ConfigurationError(f"the scale of a discretized logistic must be more than 0; received {scale}")
        self.scale = scale

    def __call__(self, result: AutoencoderResult, images: Tensor) -> Tensor:
        """The term; pixels between two of the 256 values count as the nearer."""
        means, pixels = ((image + 1) * 127.5 for image in at_least_float32(result.reconstruction, images))
        return -log_probabilities(pixels.round(), means, self._scale(result, means)).mean()

    def _scale(self, result: AutoencoderResult, means: Tensor) -> Tensor:
        """In steps between two values, ready to meet `[B, C, *size]`."""
        if result.log_scale is None:
            return means.new_tensor(127.5 * self.scale)
        learned = result.log_scale.to(means.dtype).clamp(min=self.smallest_log_scale).exp()
        return 127.5 * learned.view(-1, *[1] * (means.dim() - 2))


def per_level_error(result: AutoencoderResult, images: Tensor) -> Tensor:
    """Mean squared error of the image of each coarser level and those above it, the finer ones absent, summed.

    The finest level, with all of them, is left to the other terms. It makes coarse levels carry what they can, where
    they would leave it to finer ones. In [0, 4 (levels - 1)] for pixels in [-1, 1]. The idea is that of deep
    supervision (Lee et al. 2015, arXiv 1409.5185).

    Raises:
        ConfigurationError: where the model was not asked for these images (`prefixes`), or has one level.
    """
    if not result.prefixes:
        raise ConfigurationError(
            "a loss of kind per_level takes the images of coarser levels alone: call the model with prefixes=True, and "
            "give it two levels or more"
        )
    errors = [functional.mse_loss(*at_least_float32(image, images)) for image in result.prefixes.values()]
    return torch.stack(errors).sum()


class Perceptual:
    """Mean over the batch of a distance between features, such as equation (1) of LPIPS (arXiv 1801.03924).

    Not negative, and mostly below 1.

    Args:
        distance: between images and reconstructions.
    """

    def __init__(self, distance: FeatureDistance) -> None:
        self.distance = distance

    def __call__(self, result: AutoencoderResult, images: Tensor) -> Tensor:
        """The term."""
        reconstruction, pixels = at_least_float32(result.reconstruction, images)
        return self.distance(pixels, reconstruction).to(pixels.dtype).mean()


def at_least_float32(reconstruction: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Both, in the precision of the images, or in float32 where that is lower."""
    precision = torch.promote_types(images.dtype, torch.float32)
    return reconstruction.to(precision), images.to(precision)
