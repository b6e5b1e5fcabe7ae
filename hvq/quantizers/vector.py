"""The vector quantizer of the VQ-VAE: nearest codebook vector, straight-through gradient (arXiv 1711.00937)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.quantizers.base import CodebookStatistics, Quantizer, QuantizerResult
from hvq.quantizers.kmeans import kmeans
from hvq.quantizers.search import nearest_code

# Where every latent is met exactly, each is as good a candidate for revival as any other.
_LEAST_ERROR = 1e-30
# Laplace smoothing of counts where they divide; never stored.
_SMOOTHING = 1e-5
# Step t weighs at least 9 / (10 + t) in the moving averages: they begin as averages over a tenth of the steps so far.
_EARLY_WEIGHT = 9.0
# A revived code starts this many times above the threshold, so that it has time to be chosen.
_REVIVAL_GRACE = 4.0


class VectorQuantizer(Quantizer):
    """Nearest codebook vector in Euclidean distance, equations (1) to (4), with the straight-through estimator.

    The posterior is one-hot, so its KL to a uniform prior is log K, a constant that is left out, equations (5) to (7).
    The codebook is kept in float32 or float64, whatever the module is cast to.

    Args:
        codebook_size: K, the number of codes.
        code_dimension: D, the length of a codebook vector.
        learning: "moving_average" (appendix A.1 of the paper) or "gradient" (the codebook loss of equation (9)).
        decay: of the moving averages of counts and sums, per codebook step; in the first steps, step t = 0, 1, ...
            replaces 9 / (10 + t) of them, as long as that is more than 1 - decay.
        revival_threshold: a code whose moving count is below this share of fair usage (1 / K of all latents) is
            replaced by a latent of the current batch; 0 turns revival off.

    Shapes:
        latents and vectors `[B, D, *grid]`, codes int64 `[B, *grid]`.

    Raises:
        ConfigurationError: where an argument is out of range.

    >>> quantizer = VectorQuantizer(codebook_size=5, code_dimension=3)
    >>> result = quantizer(torch.randn(2, 3, 7, 11))
    >>> result.codes.shape, sorted(result.losses)
    (torch.Size([2, 7, 11]), ['commitment'])
    >>> torch.equal(quantizer.decode(result.codes), result.vectors)
    True
    """

    codebook: Tensor
    moving_counts: Tensor
    moving_sums: Tensor
    alive: Tensor
    steps: Tensor
    initialized: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dimension: int,
        learning: Literal["moving_average", "gradient"] = "moving_average",
        decay: float = 0.99,
        revival_threshold: float = 0.05,
    ) -> None:
        super().__init__()
        if codebook_size < 1 or code_dimension < 1:
            raise ConfigurationError(
                f"codebook_size and code_dimension must be positive; received {codebook_size} and {code_dimension}"
            )
        if learning not in ("moving_average", "gradient"):
            raise ConfigurationError(f"learning must be moving_average or gradient; received {learning}")
        if not 0 <= decay < 1 or not 0 <= revival_threshold < 1:
            raise ConfigurationError(
                f"decay and revival_threshold must be in [0, 1); received {decay} and {revival_threshold}"
            )
        self.codebook_size = codebook_size
        self.code_dimension = code_dimension
        self.learning = learning
        self.decay = decay
        self.revival_threshold = revival_threshold
        self.frozen = False
        codebook = torch.randn(codebook_size, code_dimension)
        if learning == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("moving_sums", codebook.clone())
        self.register_buffer("moving_counts", torch.ones(codebook_size))
        self.register_buffer("alive", torch.ones(codebook_size, dtype=torch.bool))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("initialized", torch.tensor(False))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"K={self.codebook_size}, D={self.code_dimension}, learning={self.learning}"

    # --- vectors to codes and back ---

    def forward(self, latents: Tensor, mask: Tensor | None = None) -> QuantizerResult:
        """Quantize latents; writes nothing.

        Args:
            latents: `[B, D, *grid]`.
            mask: bool `[*grid]` or `[B, *grid]`; where False, a position counts in no loss and no statistics.

        Returns:
            `vectors` have the value of the codebook vectors exactly, and pass their gradient on to the latents.
        """
        flat = self._flatten(latents)
        codes = nearest_code(flat.detach(), self.codebook, self.alive)
        quantized = functional.embedding(codes, self.codebook)
        weights = None if mask is None else _flat_mask(mask, latents)
        losses = {"commitment": _mean_squared_error(flat, quantized.detach(), weights)}
        if self.learning == "gradient":
            losses["codebook"] = _mean_squared_error(quantized, flat.detach(), weights)
        learns = self.training and not self.frozen
        return QuantizerResult(
            vectors=_straight_through(latents, _unflatten(quantized, latents)),
            codes=codes.view(latents.shape[0], *latents.shape[2:]),
            losses=losses,
            statistics=self._statistics(flat.detach(), quantized.detach(), codes, weights) if learns else None,
        )

    def encode(self, latents: Tensor) -> Tensor:
        """Codes int64 `[B, *grid]` of latents `[B, D, *grid]`."""
        codes = nearest_code(self._flatten(latents).detach(), self.codebook, self.alive)
        return codes.view(latents.shape[0], *latents.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors `[B, D, *grid]`, float32 or float64, of codes `[B, *grid]`.

        Raises:
            DataError: where a code is not in 0 .. K - 1.
        """
        if not torch.compiler.is_compiling() and codes.numel():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= self.codebook_size:
                raise DataError(f"codes must be in 0 .. {self.codebook_size - 1}; received {low} .. {high}")
        return torch.movedim(functional.embedding(codes, self.codebook), -1, 1)

    def mean_vector(self) -> Tensor:
        """`[D]`, the mean of the codebook, weighted by the moving counts."""
        weights = self.moving_counts * self.alive
        return (weights / weights.sum()) @ self.codebook.detach()

    def _flatten(self, latents: Tensor) -> Tensor:
        if latents.shape[1] != self.code_dimension:
            raise DataError(
                f"latents must be [B, {self.code_dimension}, *grid], code_dimension on axis 1; "
                f"received {list(latents.shape)}"
            )
        return rearrange(latents, "b d ... -> (b ...) d").to(self.codebook.dtype)

    # --- learning ---

    def freeze(self) -> None:
        """Stop the codebook from learning, for good; gradients still reach the encoder."""
        self.frozen = True
        if isinstance(self.codebook, nn.Parameter):
            self.codebook.requires_grad_(False)

    def _statistics(self, flat: Tensor, quantized: Tensor, codes: Tensor, weights: Tensor | None) -> CodebookStatistics:
        size = self.codebook_size
        if weights is not None:
            # Positions that do not count go to a bin of their own, which is cut off below.
            codes = torch.where(weights, codes, size)
        counts = torch.bincount(codes, minlength=size + 1)[:size]
        sums = flat.new_zeros(size + 1, self.code_dimension).index_add_(0, codes, flat)[:size]
        errors = (flat - quantized).square().sum(dim=1, dtype=torch.float64) + _LEAST_ERROR
        if weights is not None:
            errors = errors * weights
        return CodebookStatistics(counts, sums, flat[_by_error(errors, max(16, size // 16))])

    @torch.no_grad()
    def apply_statistics(self, counts: Tensor, sums: Tensor, candidates: Tensor) -> Tensor:
        """Move the averages, then the codebook to their ratio, then revive dead codes.

        Args:
            counts: int64 `[K]`, over all micro-batches and processes.
            sums: `[K, D]`.
            candidates: `[R, D]`, latents that replace dead codes, at most R in one step.

        Returns:
            bool `[K]`, codes that were revived.
        """
        weight = self._weight_of_newest()
        self.moving_counts.lerp_(counts.to(self.moving_counts.dtype), weight)
        if self.learning == "moving_average":
            self.moving_sums.lerp_(sums.to(self.moving_sums.dtype), weight)
            total = self.moving_counts.sum()
            smoothed = (self.moving_counts + _SMOOTHING) / (total + self.codebook_size * _SMOOTHING) * total
            self.codebook.copy_(self.moving_sums / smoothed.unsqueeze(1))
        return self._revive(candidates)

    def _weight_of_newest(self) -> Tensor:
        """1 - decay, but more in the first steps, when latents move fast and the codebook has to follow them."""
        weight = (_EARLY_WEIGHT / (_EARLY_WEIGHT + 1 + self.steps.double())).clamp(min=1 - self.decay)
        self.steps.add_(1)
        return weight.to(self.moving_counts.dtype)

    def _revive(self, candidates: Tensor) -> Tensor:
        """Give the least used dead codes to candidates, with moving averages of their own."""
        threshold = self.revival_threshold * self.moving_counts.sum() / self.codebook_size
        dead = self.moving_counts < threshold
        order = torch.where(dead, self.moving_counts, torch.inf).argsort(stable=True)[: len(candidates)]
        chosen = dead[order]
        candidates = candidates[: len(order)].to(self.codebook.dtype)
        vectors = torch.where(chosen.unsqueeze(1), candidates, self.codebook[order])
        counts = torch.where(chosen, _REVIVAL_GRACE * threshold, self.moving_counts[order])
        self.codebook[order] = vectors
        self.moving_counts[order] = counts
        if self.learning == "moving_average":
            revived_sums = vectors * counts.unsqueeze(1)
            self.moving_sums[order] = torch.where(chosen.unsqueeze(1), revived_sums, self.moving_sums[order])
        self.alive[order] |= chosen
        return torch.zeros_like(dead).index_put_((order,), chosen)

    @torch.no_grad()
    def initialize(self, latents: Tensor, num_steps: float, reduction: Reduction) -> None:
        """Set the codebook by k-means; the moving averages are those of one such batch, sum = count x vector.

        Args:
            latents: `[n, D]` of this process.
            num_steps: optimizer steps whose latents these are.
            reduction: joins the latents of all processes.
        """
        everything = reduction.concatenate(latents.detach().to(self.codebook.dtype))
        clusters = kmeans(everything, self.codebook_size)
        self.codebook.copy_(reduction.first(clusters.centroids))
        # Processes may have needed different numbers of batches, but hold the same averages.
        self.moving_counts.copy_(reduction.first(clusters.counts / num_steps))
        self.alive.copy_(reduction.first(clusters.alive.to(torch.uint8)).bool())
        if self.learning == "moving_average":
            self.moving_sums.copy_(self.codebook * self.moving_counts.unsqueeze(1))
        self.initialized.fill_(True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizer:
        """Casts of the whole model (`.half()`, `.to(torch.bfloat16)`) move the codebook but keep its precision."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            too_low = tensor.is_floating_point() and moved.dtype not in (torch.float32, torch.float64)
            return tensor.to(moved.device) if too_low else moved

        super()._apply(keep_precision, recurse)
        return self


def _by_error(errors: Tensor, number: int) -> Tensor:
    """Indices `[number]` of latents, each taken in proportion to its squared error, as in k-means++.

    Systematic sampling at equal steps of the cumulated error, so no random draw: where codes already stand close, as on
    the background of pictures, hardly any candidate is taken.
    """
    cumulated = errors.cumsum(dim=0)
    steps = (torch.arange(number, device=errors.device, dtype=errors.dtype) + 0.5) / number
    return torch.searchsorted(cumulated, steps * cumulated[-1]).clamp(max=len(errors) - 1)


def _straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, to the last bit, with the gradient of `latents`."""
    return quantized.detach().to(latents.dtype) + (latents - latents.detach())


def _unflatten(flat: Tensor, latents: Tensor) -> Tensor:
    """`[N, D]` to `[B, D, *grid]` of the latents."""
    return torch.movedim(flat.view(latents.shape[0], *latents.shape[2:], latents.shape[1]), -1, 1)


def _flat_mask(mask: Tensor, latents: Tensor) -> Tensor:
    return mask.expand(latents.shape[0], *latents.shape[2:]).reshape(-1)


def _mean_squared_error(moving: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the positions that count, and over dimensions."""
    if weights is None:
        return functional.mse_loss(moving, target)
    squared = (moving - target).square().mean(dim=1)
    return (squared * weights).sum() / weights.sum().clamp(min=1)
