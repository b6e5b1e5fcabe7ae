"""How probable images are, given their reconstructions: two stated likelihoods of pixels with 256 values.

Equation (6) asks for log p(x | z_q(x)), and training by squared error leaves its scale open. Here it is a Gaussian or a
logistic distribution around the reconstruction, of one scale, integrated over the bin of width 1/255 around each value,
with the tails beyond 0 and 1 going to the edge values: probabilities of the 256 values sum to 1, so bits compare with
those of other models of discrete images. Letters: C H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from hvq.discretized_logistic import VALUES, log_probabilities
from hvq.errors import DataError
from hvq.histograms import count_codes

SMALLEST_SCALE, LARGEST_SCALE = 1e-4, 10.0
"""Of pixels in [0, 1]: at the smallest all probability is in one bin, at the largest it is even over those inside."""

_GRID = 33
_REFINEMENTS = 40

Likelihood = Callable[[float], Tensor]
"""From a scale, for pixels in [0, 1], to log probabilities in nats, float64 `[256 reconstructions, 256 values]`."""


def gaussian_log_probabilities(deviation: float) -> Tensor:
    """Log probability of each value, given each reconstruction, for a Gaussian of this standard deviation.

    log (F((v + 1/2) / 255) - F((v - 1/2) / 255)) with F the distribution function around the reconstruction.

    >>> bool((gaussian_log_probabilities(0.1).exp().sum(1) - 1).abs().max() < 1e-12)
    True
    """
    lower, upper = _standardized_bins(deviation)
    # On the left of the mean distribution functions are small, and their logarithms exact; on the right they are 1.
    mirrored = lower + upper > 0
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


def logistic_log_probabilities(scale: float) -> Tensor:
    """Log probability of each value, given each reconstruction, for a logistic distribution of this scale.

    Equation (2) of PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517), with one component.

    >>> bool((logistic_log_probabilities(0.1).exp().sum(1) - 1).abs().max() < 1e-12)
    True
    """
    values = torch.arange(VALUES, dtype=torch.float64)
    return log_probabilities(values, values[:, None], 255 * scale)


LIKELIHOODS: dict[str, Likelihood] = {"gaussian": gaussian_log_probabilities, "logistic": logistic_log_probabilities}


class PixelPairs(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """How often each value of a pixel meets each value of its reconstruction: all that a likelihood has to be told.

    Reconstructions are rounded to 256 values as well, as they are where they are shown or stored. So counts are
    integers, and what follows from them is equal for any batch size and, through `torchmetrics`, number of processes,
    to the last bit.

    >>> pairs = PixelPairs()
    >>> pairs.update(torch.tensor([7, 7], dtype=torch.uint8), torch.tensor([8, 8], dtype=torch.uint8))
    >>> int(pairs.compute()[8, 7])
    2
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(VALUES, VALUES, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Count a batch.

        Args:
            images: uint8 of any shape, usually `[B, C, H, W]`.
            reconstructions: uint8 of the same shape.

        Raises:
            DataError: where types or shapes are others.
        """
        if images.dtype != torch.uint8 or reconstructions.dtype != torch.uint8 or images.shape != reconstructions.shape:
            raise DataError(
                "images and reconstructions must be uint8 of one shape; received "
                f"{images.dtype} {list(images.shape)} and {reconstructions.dtype} {list(reconstructions.shape)}"
            )
        places = reconstructions.flatten().long() * VALUES + images.flatten()
        self.counts += count_codes(places, VALUES**2).view_as(self.counts)

    def compute(self) -> Tensor:
        """Counts over all processes, int64 `[256 reconstructions, 256 values]`."""
        return self.counts.clone()


class BitsPerDimension(NamedTuple):
    """Bits per dimension, which are pixels times channels; lower is better.

    Args:
        total: of the whole model, the negative of equation (6): an upper bound of what a code made from it needs.
        reconstruction: of images, given their codes.
        codes: of the codes.
        scale: of the likelihood, for pixels in [0, 1].
    """

    total: float
    reconstruction: float
    codes: float
    scale: float


def bits_per_dimension(
    pairs: Tensor, *, fitted_on: Tensor, likelihood: Likelihood, code_bits: float, dimensions: int
) -> BitsPerDimension:
    """The bound of equation (6) in bits per dimension, under a likelihood fitted on other images.

    The posterior is one-hot, equation (5), so the bound is -log2 p(x | z) - log2 p(z) for the one code z of x.

    Args:
        pairs: int64 `[256, 256]`, as `PixelPairs` counts, of the images to be measured.
        fitted_on: the same of those that the scale is fitted on.
        likelihood: one of `LIKELIHOODS`.
        code_bits: mean of -log2 p(z) over images.
        dimensions: C times H times W.

    Raises:
        DataError: where nothing was counted.

    >>> exact = torch.diag(torch.ones(256, dtype=torch.int64))
    >>> bits = bits_per_dimension(
    ...     exact, fitted_on=exact, likelihood=gaussian_log_probabilities, code_bits=96.0, dimensions=12
    ... )
    >>> bits.total, bits.codes
    (8.0, 8.0)
    """
    scale = fit_scale(fitted_on, likelihood)
    reconstruction = nats_per_dimension(pairs, likelihood(scale)) / math.log(2)
    codes = code_bits / dimensions
    return BitsPerDimension(reconstruction + codes, reconstruction, codes, scale)


def nats_per_dimension(pairs: Tensor, log_probabilities: Tensor) -> float:
    """Mean of -log p over counted pairs.

    Raises:
        DataError: where nothing was counted.
    """
    count = int(pairs.sum())
    if count == 0:
        raise DataError("a likelihood needs at least one pixel; none was counted")
    # Not -0.0 where all is certain.
    return max(0.0, -float((pairs.cpu().double() * log_probabilities).sum()) / count)


def fit_scale(pairs: Tensor, likelihood: Likelihood) -> float:
    """The scale at which pairs are most probable, by search over its logarithm.

    Raises:
        DataError: where nothing was counted.
    """

    def nats(logarithm: float) -> float:
        return nats_per_dimension(pairs, likelihood(math.exp(logarithm)))

    grid = torch.linspace(math.log(SMALLEST_SCALE), math.log(LARGEST_SCALE), _GRID, dtype=torch.float64).tolist()
    best = min(range(_GRID), key=lambda place: nats(grid[place]))
    low, high = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    # Golden section: each step keeps the better of two inner points, and needs one new one.
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = nats(left), nats(right)
    for _ in range(_REFINEMENTS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = nats(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = nats(right)
    return math.exp((low + high) / 2)


def _standardized_bins(scale: float) -> tuple[Tensor, Tensor]:
    """Edges of each value's bin, less the reconstruction and in units of the scale, `[256, 256]` each."""
    values = torch.arange(VALUES, dtype=torch.float64)
    distances = values - values[:, None]
    lower, upper = (distances - 0.5) / (255 * scale), (distances + 0.5) / (255 * scale)
    lower[:, 0], upper[:, -1] = -math.inf, math.inf
    return lower, upper
