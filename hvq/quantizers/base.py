"""The contract of every quantizer: what `forward` returns, and what a codebook learns from.

Letters: B batch, D code dimension, `*grid` the spatial axes, N = B x positions, K codebook size, R revival candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn
from torch.export import register_dataclass

from hvq.distributed import Reduction


@dataclass(frozen=True)
class CodebookStatistics:
    """What one forward in training tells the codebook; sums of two of them are those of the joined batch.

    Attributes:
        counts: int64 `[K]`, latents assigned to each code.
        sums: `[K, D]` in the codebook's type, their sums.
        candidates: `[R, D]`, latents of this batch that may replace dead codes.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class QuantizerResult:
    """What a quantizer returns, with the same fields in training and evaluation.

    Attributes:
        vectors: `[B, D, *grid]`, the codebook vectors, through which gradients reach the latents.
        codes: int64 `[B, *grid]`.
        losses: unweighted terms of equation (9), float32 or float64 scalars: `commitment`, and `codebook` where the
            codebook learns by gradient.
        statistics: for the codebook step; None outside training or while frozen.
    """

    vectors: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    statistics: CodebookStatistics | None


class Quantizer(nn.Module, ABC):
    """A map from latents to codes and back. `forward` writes nothing: no buffer, no collective, no random draw.

    A codebook is learned by an explicit step beside the optimizer's, see `hvq.quantizers.CodebookStep`.
    """

    codebook_size: int
    code_dimension: int

    @abstractmethod
    def forward(self, latents: Tensor, mask: Tensor | None = None) -> QuantizerResult:
        """Quantize latents `[B, D, *grid]`; where `mask` (`[*grid]` or `[B, *grid]`) is False, nothing counts."""

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Codes int64 `[B, *grid]` of latents `[B, D, *grid]`."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Vectors `[B, D, *grid]` of codes `[B, *grid]`: the inverse of `encode`."""

    @abstractmethod
    def mean_vector(self) -> Tensor:
        """`[D]`, the mean codebook vector, weighted by usage: a stand-in for codes that are absent."""

    @abstractmethod
    def apply_statistics(self, counts: Tensor, sums: Tensor, candidates: Tensor) -> Tensor:
        """Learn from statistics summed over micro-batches and processes.

        Returns:
            bool `[K]`: codes that were revived, whose optimizer state has to be forgotten.
        """

    @abstractmethod
    def initialize(self, latents: Tensor, num_steps: float, reduction: Reduction) -> None:
        """Set the codebook by k-means over `latents` `[n, D]` of all processes, worth `num_steps` optimizer steps."""


# torch.export and DistributedDataParallel look inside registered dataclasses.
register_dataclass(CodebookStatistics)
register_dataclass(QuantizerResult)
