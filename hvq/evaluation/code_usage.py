"""How a level's codebook is used over a whole split: usage, perplexity, and the entropy of the code histogram."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from hvq.errors import DataError
from hvq.histograms import count_codes, entropy, perplexity, usage


class CodeHistogram(NamedTuple):
    """How often each code of one level occurs, and what follows from it.

    Args:
        usage: share of the K codes (of each of the G of a position) that occur at all, in [0, 1].
        perplexity: exp of the entropy, in [1, K]; K where all codes occur equally often.
        unigram_entropy: entropy of the histogram in nats per code, the mean over G, in [0, log K].
        counts: int64 [G, K], how often each code occurs.
    """

    usage: float
    perplexity: float
    unigram_entropy: float
    counts: Tensor


class CodeUsage(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """Counts of one level's codes; sums over batches and, through `torchmetrics`, over processes.

    Counts are integers, so the result is the same for any batch size and number of processes, to the last bit.

    Args:
        codebook_size: K.
        codes_per_position: G; each has a histogram of its own.

    Example:
        >>> usage = CodeUsage(codebook_size=4)
        >>> usage.update(torch.tensor([[0, 1], [1, 0]]))
        >>> result = usage.compute()
        >>> result.usage, round(result.perplexity, 6), result.counts.tolist()
        (0.5, 2.0, [[2, 2, 0, 0]])
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor

    def __init__(self, *, codebook_size: int, codes_per_position: int = 1) -> None:
        super().__init__()
        if min(codebook_size, codes_per_position) < 1:
            raise DataError(
                f"codebook_size and codes_per_position must be at least 1; received {codebook_size} and "
                f"{codes_per_position}"
            )
        self.codebook_size = codebook_size
        self.codes_per_position = codes_per_position
        self.add_state(
            "counts", torch.zeros(codes_per_position, codebook_size, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, codes: Tensor) -> None:
        """Count codes.

        Args:
            codes: integers of any shape, usually [B, h, w], each in 0 .. K - 1; the last axis is G where that is not 1.

        Raises:
            DataError: where a code is not an integer or is not in the codebook, or the last axis is not G.
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise DataError(f"codes must be integers; received {codes.dtype}")
        if codes.numel() == 0:
            return
        if self.codes_per_position > 1 and codes.shape[-1] != self.codes_per_position:
            raise DataError(f"codes must be [..., {self.codes_per_position}]; received {list(codes.shape)}")
        low, high = (int(bound) for bound in torch.aminmax(codes))
        if low < 0 or high >= self.codebook_size:
            raise DataError(
                f"codes must lie in 0 .. {self.codebook_size - 1}; received {low} .. {high}; "
                "were they made by another model?"
            )
        self.counts += count_codes(codes.reshape(-1, self.codes_per_position).long(), self.codebook_size)

    def compute(self) -> CodeHistogram:
        """The histogram over everything that was counted on all processes.

        Raises:
            DataError: where nothing was counted.
        """
        if not self.counts.any():
            raise DataError("the entropy of codes needs at least one code; none was counted")
        counts = self.counts.clone()
        return CodeHistogram(usage(counts), perplexity(counts), float(entropy(counts).mean()), counts)
