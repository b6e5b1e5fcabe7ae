"""How a level's codebook is used over a whole split: usage, perplexity, and the entropy of the code histogram."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from hvq.errors import DataError


class CodeHistogram(NamedTuple):
    """How often each code of one codebook occurs, and what follows from it.

    Args:
        usage: share of the K codes that occur at all, in [0, 1].
        perplexity: exp of the entropy, in [1, K]; K where all codes occur equally often.
        unigram_entropy: entropy of the histogram in nats per code, in [0, log K].
        counts: int64 [K], how often each code occurs.
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

    Example:
        >>> usage = CodeUsage(codebook_size=4)
        >>> usage.update(torch.tensor([[0, 1], [1, 0]]))
        >>> result = usage.compute()
        >>> result.usage, round(result.perplexity, 6), result.counts.tolist()
        (0.5, 2.0, [2, 2, 0, 0])
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor

    def __init__(self, *, codebook_size: int) -> None:
        super().__init__()
        if codebook_size < 1:
            raise DataError(f"codebook_size must be at least 1; received {codebook_size}")
        self.codebook_size = codebook_size
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Count codes.

        Args:
            codes: integers of any shape, usually [B, h, w], each in 0 .. K - 1.

        Raises:
            DataError: where a code is not an integer or is not in the codebook.
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise DataError(f"codes must be integers; received {codes.dtype}")
        if codes.numel() == 0:
            return
        low, high = (int(bound) for bound in torch.aminmax(codes))
        if low < 0 or high >= self.codebook_size:
            raise DataError(
                f"codes must lie in 0 .. {self.codebook_size - 1}; received {low} .. {high}; "
                "were they made by another model?"
            )
        self.counts += torch.bincount(codes.flatten(), minlength=self.codebook_size)

    def compute(self) -> CodeHistogram:
        """The histogram over everything that was counted on all processes.

        Raises:
            DataError: where nothing was counted.
        """
        entropy = unigram_entropy(self.counts)
        used = int((self.counts > 0).sum())
        return CodeHistogram(used / self.codebook_size, math.exp(entropy), entropy, self.counts.clone())


def unigram_entropy(counts: Tensor) -> float:
    """Entropy of a code histogram, -sum p log p, in nats per code.

    No model that ignores position, neighbours and class can code these very codes in fewer nats, not even one fitted
    to them; so a prior whose held-out nats lie below the held-out codes' own unigram entropy has learned structure.

    Args:
        counts: [K], how often each code occurs; of any real dtype, not negative.

    Raises:
        DataError: where nothing was counted.

    Example:
        >>> round(unigram_entropy(torch.tensor([3, 3, 0])) / math.log(2), 6)
        1.0
    """
    occurring = counts[counts > 0].cpu().to(torch.float64)
    if occurring.numel() == 0:
        raise DataError("the entropy of codes needs at least one code; none was counted")
    shares = occurring / occurring.sum()
    return max(0.0, -float((shares * shares.log()).sum()))
