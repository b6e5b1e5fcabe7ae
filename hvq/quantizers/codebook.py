"""A codebook: vectors that learn from the latents assigned to them, and are cared for while they do.

Letters: N latents, D code dimension, K codebook size, R revival candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.quantizers.kmeans import kmeans
from hvq.quantizers.search import nearest_code
from hvq.quantizers.sums import code_sums

Learning = Literal["moving_average", "gradient"]
Metric = Literal["euclidean", "cosine"]

# Where every latent is met exactly, each is as good a candidate for revival as any other.
_LEAST_ERROR = 1e-30
# Laplace smoothing of counts where they divide; never stored.
_SMOOTHING = 1e-5
# Step t weighs at least 9 / (10 + t) in the moving averages: they begin as averages over a tenth of the steps so far.
_EARLY_WEIGHT = 9.0
# A step of n latents weighs at most n / (16 K) or 1 - decay: few latents per code say little about where it belongs.
_LATENTS_PER_CODE = 16.0
# A revived code starts this many times above the threshold, so that it has time to be chosen.
_REVIVAL_GRACE = 4.0
# Steps of this share of a whole, taken round and round, cover it evenly however many are taken.
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class CodebookStatistics:
    """What one forward in training tells a codebook; sums of two of them are those of the joined batch.

    Attributes:
        counts: int64 `[K]`, latents assigned to each code.
        sums: `[K, D]` in the codebook's type, their sums.
        candidates: `[R, D]`, latents of this batch that may replace dead codes; the first r of them are spread over the
            batch for any r.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor


class Codebook(nn.Module):
    """K vectors of length D, the search among them, and how they learn.

    Args:
        codebook_size: K.
        dimension: D.
        metric: "euclidean", equations (1) to (4), or "cosine": vectors on the unit sphere, the nearest by angle.
        learning: "moving_average" (appendix A.1 of arXiv 1711.00937) or "gradient".
        decay: of the moving averages of counts and sums, per codebook step; in the first steps, step t = 0, 1, ...
            replaces 9 / (10 + t) of them, as long as that is more than 1 - decay and the step has 16 latents per code.
        revival_threshold: a code whose moving count is below this share of fair usage (1 / K of all latents) is
            replaced by a latent of the current batch; 0 turns revival off.

    Raises:
        ConfigurationError: where an argument is out of range.

    >>> codebook = Codebook(codebook_size=5, dimension=3)
    >>> codebook.nearest(codebook.table()).tolist()
    [0, 1, 2, 3, 4]
    """

    vectors: Tensor
    moving_counts: Tensor
    moving_sums: Tensor
    alive: Tensor
    steps: Tensor
    initialized: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        dimension: int,
        metric: Metric = "euclidean",
        learning: Learning = "moving_average",
        decay: float = 0.99,
        revival_threshold: float = 0.05,
    ) -> None:
        super().__init__()
        if learning not in ("moving_average", "gradient"):
            raise ConfigurationError(f"learning must be moving_average or gradient; received {learning}")
        if metric not in ("euclidean", "cosine"):
            raise ConfigurationError(f"metric must be euclidean or cosine; received {metric}")
        if not 0 <= decay < 1 or not 0 <= revival_threshold < 1:
            raise ConfigurationError(
                f"decay and revival_threshold must be in [0, 1); received {decay} and {revival_threshold}"
            )
        self.metric = metric
        self.learning = learning
        self.decay = decay
        self.revival_threshold = revival_threshold
        vectors = self._on_sphere(torch.randn(codebook_size, dimension))
        if learning == "gradient":
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
            self.register_buffer("moving_sums", vectors.clone())
        self.register_buffer("moving_counts", torch.ones(codebook_size))
        self.register_buffer("alive", torch.ones(codebook_size, dtype=torch.bool))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("initialized", torch.tensor(False))

    def extra_repr(self) -> str:
        """What `print` shows."""
        size, dimension = self.vectors.shape
        return f"K={size}, D={dimension}, metric={self.metric}, learning={self.learning}"

    # --- use ---

    def table(self) -> Tensor:
        """The vectors `[K, D]` that codes stand for, through which a codebook learned by gradient gets its own."""
        # Those learned by moving averages are kept on the sphere; an optimizer knows nothing of it.
        return self._on_sphere(self.vectors) if self.learning == "gradient" else self.vectors

    def normalize(self, latents: Tensor) -> Tensor:
        """What is compared with the vectors: the latents, or their directions for the cosine metric."""
        return self._on_sphere(latents)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Codes int64 `[N]` of latents `[N, D]`, among those that are alive; ties go to the lowest."""
        return nearest_code(self.normalize(latents.detach()), self.table().detach(), self.alive)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N]`."""
        return functional.embedding(codes, self.table())

    def mean_vector(self) -> Tensor:
        """`[D]`, the mean of the vectors, weighted by the moving counts."""
        weights = self.moving_counts * self.alive
        return (weights / weights.sum()) @ self.table().detach()

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=1) if self.metric == "cosine" else vectors

    # --- learning ---

    @torch.no_grad()
    def statistics(
        self, latents: Tensor, codes: Tensor, squared_errors: Tensor, weights: Tensor | None
    ) -> CodebookStatistics:
        """What these latents tell the codebook.

        Args:
            latents: `[N, D]`.
            codes: int64 `[N]`, as `nearest` gives them.
            squared_errors: `[N]`, the squared distance of each latent to its vector.
            weights: bool `[N]`; where False, a latent does not count.
        """
        size = len(self.vectors)
        latents = self.normalize(latents.detach())
        errors = squared_errors.detach().double() + _LEAST_ERROR
        if weights is not None:
            # Positions that do not count go to a code beyond the last, which is not summed.
            codes = torch.where(weights, codes, size)
            errors = errors * weights
        counts, sums = code_sums(latents, codes, size)
        return CodebookStatistics(counts, sums, latents[_by_error(errors, max(16, size // 16))])

    @torch.no_grad()
    def apply_statistics(self, statistics: CodebookStatistics) -> Tensor:
        """Move the averages, then the vectors to their ratio, then revive dead codes.

        Args:
            statistics: summed over all micro-batches and processes.

        Returns:
            bool `[K]`: codes that were revived, whose optimizer state has to be forgotten.
        """
        weight = self._weight_of_newest(statistics.counts)
        self.moving_counts.lerp_(statistics.counts.to(self.moving_counts.dtype), weight)
        if self.learning == "moving_average":
            self.moving_sums.lerp_(statistics.sums.to(self.moving_sums.dtype), weight)
            self.vectors.copy_(self._average())
        return self._revive(statistics.candidates)

    def _average(self) -> Tensor:
        """Sums over smoothed counts; their direction for the cosine metric."""
        if self.metric == "cosine":
            return self._on_sphere(self.moving_sums)
        return self.moving_sums / self._smoothed_counts().unsqueeze(1)

    def _smoothed_counts(self) -> Tensor:
        total = self.moving_counts.sum()
        return (self.moving_counts + _SMOOTHING) / (total + len(self.vectors) * _SMOOTHING) * total

    def _weight_of_newest(self, counts: Tensor) -> Tensor:
        """1 - decay, but more in the first steps, when latents move fast and the codebook has to follow them."""
        early = _EARLY_WEIGHT / (_EARLY_WEIGHT + 1 + self.steps.double())
        latents_per_code = counts.sum().double() / len(self.vectors)
        weight = torch.minimum(early, latents_per_code / _LATENTS_PER_CODE).clamp(min=1 - self.decay)
        self.steps.add_(1)
        # A step whose latents are all masked says nothing at all.
        return torch.where(latents_per_code > 0, weight, 0.0).to(self.moving_counts.dtype)

    def _revive(self, candidates: Tensor) -> Tensor:
        """Give the least used dead codes to candidates, with moving averages of their own."""
        threshold = self.revival_threshold * self.moving_counts.sum() / len(self.vectors)
        dead = self.moving_counts < threshold
        order = torch.where(dead, self.moving_counts, torch.inf).argsort(stable=True)[: len(candidates)]
        chosen = dead[order]
        candidates = candidates[: len(order)].to(self.vectors.dtype)
        vectors = torch.where(chosen.unsqueeze(1), candidates, self.vectors[order])
        counts = torch.where(chosen, _REVIVAL_GRACE * threshold, self.moving_counts[order])
        self.vectors[order] = vectors
        self.moving_counts[order] = counts
        if self.learning == "moving_average":
            revived_sums = vectors * counts.unsqueeze(1)
            self.moving_sums[order] = torch.where(chosen.unsqueeze(1), revived_sums, self.moving_sums[order])
        self.alive[order] |= chosen
        return torch.zeros_like(dead).index_put_((order,), chosen)

    @torch.no_grad()
    def initialize(self, latents: Tensor, num_steps: float, reduction: Reduction) -> None:
        """Set the vectors by k-means; the moving averages are those of one such batch, sum = count x vector.

        Args:
            latents: `[n, D]` of this process.
            num_steps: optimizer steps whose latents these are.
            reduction: joins the latents of all processes.
        """
        everything = reduction.concatenate(self.normalize(latents.detach().to(self.vectors.dtype)))
        clusters = kmeans(everything, len(self.vectors))
        self.vectors.copy_(reduction.first(self._on_sphere(clusters.centroids)))
        # Processes may have needed different numbers of batches, but hold the same averages.
        self.moving_counts.copy_(reduction.first(clusters.counts / num_steps))
        self.alive.copy_(reduction.first(clusters.alive.to(torch.uint8)).bool())
        if self.learning == "moving_average":
            self.moving_sums.copy_(self.vectors * self.moving_counts.unsqueeze(1))
        self.initialized.fill_(True)

    @torch.no_grad()
    def adopt(self, vectors: Tensor, counts: Tensor, *, initialized: bool = True) -> None:
        """Go on from a codebook that was trained elsewhere; sums are such that their averages are the vectors.

        Args:
            vectors: `[K, D]`.
            counts: `[K]`, moving counts; all zero where nothing was counted, which makes all codes as likely.
            initialized: whether the vectors have seen latents, so that they need no k-means.
        """
        self.vectors.copy_(vectors)
        self.moving_counts.copy_(counts if bool(counts.sum() > 0) else torch.ones_like(counts))
        if self.learning == "moving_average":
            self.moving_sums.copy_(self.vectors * self._smoothed_counts().unsqueeze(1))
        self.alive.fill_(True)
        # Beyond the first steps, in which averages follow quickly: what was learned is not to be forgotten.
        self.steps.fill_(math.ceil(_EARLY_WEIGHT / (1 - self.decay)))
        self.initialized.fill_(initialized)


def join_statistics(parts: Sequence[CodebookStatistics]) -> CodebookStatistics:
    """The statistics of the joined batch, with as many candidates as each part has."""
    candidates = take_turns(torch.cat([part.candidates for part in parts]), len(parts))
    return CodebookStatistics(
        counts=torch.stack([part.counts for part in parts]).sum(dim=0),
        sums=torch.stack([part.sums for part in parts]).sum(dim=0),
        candidates=candidates[: len(parts[0].candidates)],
    )


def take_turns(rows: Tensor, owners: int) -> Tensor:
    """Rows `[owners x n, D]` of one owner after the other, re-ordered so that the first few come from all of them."""
    return rows.view(owners, -1, rows.shape[1]).transpose(0, 1).flatten(0, 1)


def _by_error(errors: Tensor, number: int) -> Tensor:
    """Indices `[number]` of latents, each taken in proportion to its squared error, as in k-means++.

    Systematic sampling of the cumulated error, so no random draw: where codes already stand close, as on the background
    of pictures, hardly any candidate is taken. Samples stand a golden section of the whole apart, so that the first few
    are spread over the batch as evenly as all of them.
    """
    cumulated = errors.cumsum(dim=0)
    steps = torch.arange(number, device=errors.device, dtype=errors.dtype)
    places = (0.5 + steps * _GOLDEN_RATIO) % 1.0
    return torch.searchsorted(cumulated, places * cumulated[-1]).clamp(max=len(errors) - 1)
