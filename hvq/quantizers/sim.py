"""SimVQ: a fixed random codebook under one learned linear map (arXiv 2411.02038)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.quantizers.base import FlatResult, Quantizer
from hvq.quantizers.estimators import rotation, straight_through_with_errors
from hvq.quantizers.kmeans import kmeans
from hvq.quantizers.losses import masked_mean
from hvq.quantizers.search import nearest_code


class SimQuantizer(Quantizer):
    """Nearest vector of a codebook W C: C stays as it is, W is learned.

    A step moves W, and with it all codes at once, those that no latent chose too; so codes do not die one by one. C is
    drawn at random, as in the paper, and where latents are at hand before the first step replaced by their k-means.

    Args:
        codebook_size: K.
        code_dimension: D.
        estimator: of the gradient, "straight_through" or "rotation".

    Shapes:
        latents and vectors `[B, D, *grid]`, codes int64 `[B, *grid]`.

    Raises:
        ConfigurationError: where the estimator is unknown.

    >>> quantizer = SimQuantizer(codebook_size=5, code_dimension=3)
    >>> quantizer.assign(quantizer.lookup(torch.arange(5))).tolist()
    [0, 1, 2, 3, 4]
    """

    fixed_vectors: Tensor
    started: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dimension: int,
        estimator: Literal["straight_through", "rotation"] = "straight_through",
    ) -> None:
        super().__init__(codebook_size=codebook_size, code_dimension=code_dimension)
        if estimator not in ("straight_through", "rotation"):
            raise ConfigurationError(f"estimator must be straight_through or rotation; received {estimator}")
        self.estimator = estimator
        self.register_buffer("fixed_vectors", torch.randn(codebook_size, code_dimension) * code_dimension**-0.5)
        self.map = nn.Linear(code_dimension, code_dimension, bias=False)
        # The map starts by doing nothing, which keeps the scale of the codebook whatever D is.
        nn.init.eye_(self.map.weight)
        self.register_buffer("started", torch.tensor(False))

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Quantize latents `[N, D]`; those whose `weights` are False count in no loss."""
        codebook = self.map(self.fixed_vectors)
        codes = nearest_code(latents.detach(), codebook.detach())
        chosen = functional.embedding(codes, codebook)
        vectors, squared_errors = straight_through_with_errors(latents, chosen)
        codebook_errors = (chosen - latents.detach()).square().sum(dim=1)
        dimensions = latents.shape[1]
        return FlatResult(
            vectors=rotation(latents, chosen) if self.estimator == "rotation" else vectors,
            codes=codes,
            losses={
                "commitment": masked_mean(squared_errors, weights) / dimensions,
                "codebook": masked_mean(codebook_errors, weights) / dimensions,
            },
        )

    def assign(self, latents: Tensor) -> Tensor:
        """Codes `[N]` of latents `[N, D]`."""
        return nearest_code(latents.detach(), self.map(self.fixed_vectors).detach())

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N]`; the whole codebook is mapped, in the arithmetic of `quantize`."""
        return functional.embedding(codes, self.map(self.fixed_vectors))

    @property
    def starts_from_latents(self) -> bool:
        """Whether there is a codebook that `initialize` sets."""
        return True

    @property
    def initialized(self) -> bool:
        """Whether the codebook has had its k-means; kept in checkpoints."""
        return bool(self.started)

    @torch.no_grad()
    def initialize(self, latents: Tensor, num_steps: float, reduction: Reduction) -> None:
        """Set the fixed codebook by k-means over `latents` `[n, D]` of all processes."""
        clusters = kmeans(reduction.concatenate(latents.detach().to(self.fixed_vectors.dtype)), self.codebook_size)
        found = torch.where(clusters.alive.unsqueeze(1), clusters.centroids, self.fixed_vectors)
        self.fixed_vectors.copy_(reduction.first(found))
        nn.init.eye_(self.map.weight)
        self.started.fill_(True)

    def no_residual_reason(self) -> str | None:
        """Why this quantizer cannot stand in a row of residual quantizers; None where it can."""
        turned = self.estimator == "rotation"
        return (
            "residuals turn by any angle, and so would the gradient of the row; set estimator to straight_through"
            if turned
            else super().no_residual_reason()
        )

    def learned_vectors(self) -> list[Tensor]:
        """The codebook `[K, D]`, which is fixed, under the map, which learns."""
        return [self.map(self.fixed_vectors)]

    def mean_vector(self) -> Tensor:
        """`[D]`, the mean of the codebook."""
        return self.map(self.fixed_vectors).mean(dim=0)
