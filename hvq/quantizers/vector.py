"""The vector quantizer of the VQ-VAE: the nearest codebook vector becomes the code (arXiv 1711.00937)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.quantizers.base import FlatResult, Quantizer
from hvq.quantizers.codebook import Codebook, CodebookStatistics, Learning, Metric
from hvq.quantizers.estimators import Estimator, diveq, rotation, straight_through, straight_through_with_errors
from hvq.quantizers.losses import masked_mean
from hvq.quantizers.projection import projections


class VectorQuantizer(Quantizer):
    """Nearest codebook vector, equations (1) to (4), with a choice of metric, learning and gradient estimator.

    The posterior is one-hot, so its KL to a uniform prior is log K, a constant that is left out, equations (5) to (7).
    The codebook is kept in float32 or float64, whatever the module is cast to.

    With several heads (product quantization; Jégou et al. 2011), latents are cut into G slices of equal length, each
    with a codebook and a code of its own. With a projection (factorised codes; Yu et al. 2021, arXiv 2110.04627), codes
    are chosen in a space of fewer dimensions, and vectors are mapped back.

    Args:
        codebook_size: K, the number of codes (of each head).
        code_dimension: D, the length of a vector.
        heads: G, codes per position.
        projection_dimension: of the space in which codes are chosen; None for D itself, without a projection.
        metric: "euclidean" or "cosine", where vectors lie on the unit sphere. The latents themselves are not put there:
            the commitment loss draws them to their vectors, so that their length does not run away.
        learning: "moving_average" (appendix A.1 of the paper) or "gradient" (the codebook loss of equation (9)).
        estimator: of the gradient, "straight_through" (the paper's), "rotation" (arXiv 2410.06424), or "diveq" (arXiv
            2509.26469), which moves codebook and encoder by the reconstruction alone and has no losses of its own.
        diveq_variance: of the noise in DiVeQ's direction, while training.
        decay: see `hvq.quantizers.codebook.Codebook`.
        revival_threshold: likewise.

    Shapes:
        latents and vectors `[B, D, *grid]`, codes int64 `[B, *grid]`, or `[B, *grid, G]` with several heads.

    Raises:
        ConfigurationError: where an argument is out of range, or two do not go together.

    >>> quantizer = VectorQuantizer(codebook_size=5, code_dimension=3)
    >>> result = quantizer(torch.randn(2, 3, 7, 11))
    >>> result.codes.shape, sorted(result.losses)
    (torch.Size([2, 7, 11]), ['commitment'])
    >>> torch.equal(quantizer.decode(result.codes), result.vectors)
    True
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dimension: int,
        heads: int = 1,
        projection_dimension: int | None = None,
        metric: Metric = "euclidean",
        learning: Learning = "moving_average",
        estimator: Estimator = "straight_through",
        diveq_variance: float = 1e-3,
        decay: float = 0.99,
        revival_threshold: float = 0.05,
    ) -> None:
        super().__init__(codebook_size=codebook_size, code_dimension=code_dimension, codes_per_position=heads)
        inner = code_dimension if projection_dimension is None else projection_dimension
        check_vector_arguments(inner, heads, metric, learning, estimator, diveq_variance)
        self.learning = learning
        self.estimator = estimator
        self.diveq_variance = diveq_variance
        self.project_in, self.project_out = projections(code_dimension, inner)
        self.head_codebooks = nn.ModuleList(
            Codebook(
                codebook_size=codebook_size,
                dimension=inner // heads,
                metric=metric,
                learning=learning,
                decay=decay,
                revival_threshold=revival_threshold,
            )
            for _ in range(heads)
        )

    @property
    def codebooks(self) -> tuple[Codebook, ...]:
        """One for each head."""
        return tuple(self.head_codebooks)  # type: ignore[arg-type]  # ModuleList is typed as holding any module

    # --- vectors to codes and back ---

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Quantize latents `[N, D]`; those whose `weights` are False count in no loss and no statistics."""
        inner = self.project_in(latents)
        heads = [
            self._quantize_head(codebook, part, weights)
            for codebook, part in zip(self.codebooks, self._split(inner), strict=True)
        ]
        return FlatResult(
            vectors=self.project_out(_join([head.vectors for head in heads])),
            codes=self._stack([head.codes for head in heads]),
            losses=self._losses(heads, weights, inner.shape[1]),
            statistics=[head.statistics for head in heads if head.statistics is not None],
        )

    def assign(self, latents: Tensor) -> Tensor:
        """Codes of latents `[N, D]`."""
        parts = self._split(self.project_in(latents))
        return self._stack([codebook.nearest(part) for codebook, part in zip(self.codebooks, parts, strict=True)])

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N]` or `[N, G]`."""
        columns = codes.unbind(dim=1) if self.codes_per_position > 1 else [codes]
        vectors = [codebook.lookup(column) for codebook, column in zip(self.codebooks, columns, strict=True)]
        return self.project_out(_join(vectors))

    def mean_vector(self) -> Tensor:
        """`[D]`, the mean of the vectors, weighted by the moving counts."""
        return self.project_out(torch.cat([codebook.mean_vector() for codebook in self.codebooks]))

    def pass_on(self, latents: Tensor) -> Tensor:
        """The latents `[N, D]` as codes would be compared with them: through the projections, on the unit sphere."""
        parts = zip(self.codebooks, self._split(self.project_in(latents)), strict=True)
        return self.project_out(_join([codebook.normalize(part) for codebook, part in parts]))

    def initialize(self, latents: Tensor, num_steps: float, reduction: Reduction) -> None:
        """Set the codebooks by k-means over `latents` `[n, D]` of all processes."""
        for codebook, part in zip(self.codebooks, self._split(self.project_in(latents)), strict=True):
            codebook.initialize(part, num_steps, reduction)

    def no_residual_reason(self) -> str | None:
        """Why this quantizer cannot stand in a row of residual quantizers; None where it can."""
        if self.codebooks[0].metric == "cosine":
            return "vectors of length one cannot become smaller with the residuals; set metric to euclidean"
        if self.estimator == "rotation":
            return (
                "residuals turn by any angle, and so would the gradient of the row; set estimator to straight_through"
            )
        if not isinstance(self.project_in, nn.Identity):
            return "each would project the gradient once more; give the level fewer dimensions instead"
        return super().no_residual_reason()

    def _split(self, inner: Tensor) -> list[Tensor]:
        return list(inner.chunk(self.codes_per_position, dim=1))

    def _stack(self, codes: list[Tensor]) -> Tensor:
        return torch.stack(codes, dim=1) if self.codes_per_position > 1 else codes[0]

    # --- gradients and losses ---

    def _quantize_head(self, codebook: Codebook, latents: Tensor, weights: Tensor | None) -> _Head:
        codes = codebook.nearest(latents)
        chosen = codebook.lookup(codes)
        vectors, squared_errors = self._with_gradient(latents, chosen)
        return _Head(
            codes=codes,
            vectors=vectors,
            squared_errors=squared_errors,
            codebook_errors=(chosen - latents.detach()).square().sum(dim=1) if self.learning == "gradient" else None,
            statistics=codebook.statistics(latents, codes, squared_errors, weights) if self.learns else None,
        )

    def _with_gradient(self, latents: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        if self.estimator == "straight_through":
            return straight_through_with_errors(latents, chosen)
        squared_errors = (latents - chosen.detach()).square().sum(dim=1)
        if self.estimator == "rotation":
            return rotation(latents, chosen), squared_errors
        noisy = diveq(latents, chosen, self.diveq_variance) if self.training else straight_through(latents, chosen)
        return noisy, squared_errors

    def _losses(self, heads: list[_Head], weights: Tensor | None, dimensions: int) -> dict[str, Tensor]:
        """Means over positions and over the dimensions of all heads."""
        if self.estimator == "diveq":
            return {}
        errors = {
            "commitment": [head.squared_errors for head in heads],
            "codebook": [head.codebook_errors for head in heads if head.codebook_errors is not None],
        }
        return {
            name: masked_mean(torch.stack(parts).sum(dim=0), weights) / dimensions
            for name, parts in errors.items()
            if parts
        }


@dataclass(frozen=True)
class _Head:
    """What one head makes of its slice `[N, d]` of the latents; errors are squared and summed over d."""

    codes: Tensor
    vectors: Tensor
    squared_errors: Tensor
    codebook_errors: Tensor | None
    statistics: CodebookStatistics | None


def check_vector_arguments(
    inner_dimension: int, heads: int, metric: Metric, learning: Learning, estimator: Estimator, diveq_variance: float
) -> None:
    """Refuse what is out of range, and combinations that diverge or mean nothing, with the reason.

    Raises:
        ConfigurationError: with the reason.
    """
    if estimator not in ("straight_through", "rotation", "diveq"):
        raise ConfigurationError(f"estimator must be straight_through, rotation or diveq; received {estimator}")
    if inner_dimension < 1 or inner_dimension % max(heads, 1):
        raise ConfigurationError(
            f"heads cut latents into slices of equal length; {inner_dimension} dimensions cannot be cut into {heads}: "
            "change heads, projection_dimension or code_dimension"
        )
    if diveq_variance < 0:
        raise ConfigurationError(f"diveq_variance must not be negative; received {diveq_variance}")
    if estimator == "diveq" and learning != "gradient":
        raise ConfigurationError(
            "DiVeQ moves the codebook by the gradient of the reconstruction, and moving averages would move it a "
            "second time; set learning to gradient, or choose another estimator"
        )
    if estimator == "diveq" and metric == "cosine":
        raise ConfigurationError(
            "DiVeQ steps from a latent to its vector, and with the cosine metric nothing would keep latents near the "
            "unit sphere, on which the vectors lie; set metric to euclidean, or choose another estimator"
        )
    if metric == "cosine" and inner_dimension // heads < 2:
        raise ConfigurationError(
            "in one dimension the unit sphere has two points, so the cosine metric would leave two codes; "
            "set metric to euclidean, or give each head more dimensions"
        )


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
