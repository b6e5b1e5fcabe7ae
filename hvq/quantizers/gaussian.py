"""The Gaussian bottleneck of a plain VAE (arXiv 1312.6114), the baseline of every quantizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hvq.errors import ConfigurationError, DataError
from hvq.quantizers.base import FlatResult, Quantizer
from hvq.quantizers.losses import masked_mean

# Bounds of the log-variance, far beyond what training needs: float32 overflows at 88.
_LOWEST, _HIGHEST = -30.0, 20.0
# Every posterior starts narrow: beside noise of the prior's own variance, a decoder is slow to hear the latents at all.
_FIRST = -4.0


class GaussianBottleneck(Quantizer):
    """A Gaussian over each latent, with a diagonal covariance; while training, a draw from it, and its mean otherwise.

    Learned maps give each position a mean μ and a log-variance log σ². In training its vector is μ + σ ε with standard
    normal ε of torch's generator (reparametrisation), through which gradients reach both. The `kl` loss is that of
    q(z | x) = N(μ, σ²) to the prior N(0, I), ½ Σ_d (μ² + σ² − log σ² − 1) in nats per position: equation (6), whose
    weight `elbo_weight` gives.

    It stands where a quantizer stands, and has no codes: in their place are the means, floating point, which `encode`
    gives and `decode` takes; there are no counts, and nothing for a prior over integers, or for a histogram.

    Args:
        code_dimension: D.

    Shapes:
        latents and vectors `[B, D, *grid]`, codes floating point `[B, *grid, D]`, counts `[0, 0]`.

    Raises:
        ConfigurationError: where D is not positive.

    >>> bottleneck = GaussianBottleneck(code_dimension=3).eval()
    >>> result = bottleneck(torch.randn(2, 3, 7))
    >>> result.codes.shape, torch.equal(bottleneck.decode(result.codes), result.vectors), sorted(result.losses)
    (torch.Size([2, 7, 3]), True, ['kl'])
    """

    discrete = False

    def __init__(self, *, code_dimension: int) -> None:
        super().__init__(codebook_size=0, code_dimension=code_dimension)
        self.mean = nn.Linear(code_dimension, code_dimension)
        self.log_variance = nn.Linear(code_dimension, code_dimension)
        # Latents keep their scale, where torch's own start would shrink them.
        nn.init.normal_(self.mean.weight, std=1 / math.sqrt(code_dimension))
        nn.init.zeros_(self.mean.bias)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, _FIRST)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"D={self.code_dimension}"

    @property
    def code_shape(self) -> tuple[int, ...]:
        """`(D,)`, of the means at a position."""
        return (self.code_dimension,)

    def posterior(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances of q(z | x), `[N, D]` each, of latents `[N, D]`."""
        return self.mean(latents), self.log_variance(latents).clamp(_LOWEST, _HIGHEST)

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Draw from the posterior of latents `[N, D]`, or take its mean; where `weights` are False, no loss."""
        mean, log_variance = self.posterior(latents)
        vectors = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        divergences = (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        return FlatResult(vectors=vectors, codes=mean, losses={"kl": masked_mean(divergences, weights)})

    def assign(self, latents: Tensor) -> Tensor:
        """Means `[N, D]` of latents `[N, D]`."""
        return self.mean(latents)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of means, or of any other points of the latent space."""
        return codes.to(self.precision.dtype)

    def mean_vector(self) -> Tensor:
        """`[D]`, the mean of the prior."""
        return self.precision.new_zeros(self.code_dimension)

    def no_residual_reason(self) -> str | None:
        """Why this quantizer cannot stand in a row of residual quantizers."""
        return "it gives means in place of codes"

    def _counts(self, result: FlatResult, weights: Tensor | None) -> Tensor:
        return torch.zeros(0, 0, dtype=torch.int64, device=result.codes.device)

    def _check_codes(self, codes: Tensor) -> None:
        if not codes.is_floating_point() or codes.dim() < 2 or codes.shape[-1] != self.code_dimension:
            raise DataError(
                "in place of codes, a Gaussian bottleneck takes floating point means "
                f"[B, *grid, {self.code_dimension}]; received {codes.dtype} {list(codes.shape)}"
            )


def elbo_weight(*, variance: float, values_per_position: float) -> float:
    """The weight of `kl` that makes mean squared error + weight x kl the negative ELBO, but for scale and a constant.

    With p(x | z) = N(x̂, s²) over the n = C·H·W values of an image, and P positions, so v = n / P values each, the
    negative ELBO of an image, equation (6), in nats, is

        n / (2 s²) · (mse + (2 s² / v) · kl) + (n / 2) · log(2π s²)

    where `mse` is the mean over values and `kl` the mean over positions. The training loss, which holds the bracket, is
    the bound at weight 2 s² / v. The best s² is the error that training ends with; a larger one makes latents carry
    less. Where the reconstruction term is itself a likelihood in nats per value, the weight is 1 / v.

    It is of one Gaussian level. The bound of several has a weight 2 s² / v for each, with its own v, and the loss has
    one for all: that of one level is too large for coarser ones, whose v is larger, and too small for finer ones.
    Besides, where images are padded, positions of a finer level that see padding alone are not in `kl`, so that what
    they tell the decoder costs nothing.

    Args:
        variance: s², of pixels in the range that the loss sees, [-1, 1].
        values_per_position: v, channels times the square of the stride where sides are multiples of the stride. Others
            are padded, and positions at the edge count in full: then it is n / P, which is less, and may be no integer.

    Raises:
        ConfigurationError: where one of them is not positive.

    >>> elbo_weight(variance=0.01, values_per_position=3 * 8**2)
    0.00010416666666666667
    """
    if not variance > 0 or not values_per_position > 0:
        raise ConfigurationError(
            f"variance and values_per_position must be positive; received {variance} and {values_per_position}"
        )
    return 2 * variance / values_per_position
