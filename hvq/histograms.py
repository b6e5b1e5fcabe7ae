"""What counts of codes say: their entropy, and how much of a codebook is used."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(counts: Tensor) -> Tensor:
    """Entropy of each histogram, -sum p log p, in nats per code, float64 `[...]`; 0 where nothing was counted.

    No model that ignores position, neighbours and class can code these very codes in fewer nats, not even one fitted
    to them; so a prior whose nats lie below the codes' own entropy has learned structure.

    Args:
        counts: `[..., K]`, how often each code occurs; of any real type, not negative.

    >>> round(float(entropy(torch.tensor([3, 3, 0])).exp()), 6)
    2.0
    """
    counts = counts.double()
    shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(dim=-1)


def perplexity(counts: Tensor) -> float:
    """exp of the mean entropy of histograms `[G, K]`, in [1, K]: K where all codes occur equally often."""
    return float(entropy(counts).mean().exp())


def usage(counts: Tensor) -> float:
    """Share of the codes of histograms `[G, K]` that occur at all, in [0, 1]."""
    return float((counts > 0).double().mean())


def count_codes(codes: Tensor, codebook_size: int, weights: Tensor | None = None) -> Tensor:
    """How often each value occurs, int64 `[G, K]`.

    Args:
        codes: int64 `[N]` or `[N, G]`.
        codebook_size: K.
        weights: bool `[N]`; where False, a position does not count.

    >>> count_codes(torch.tensor([0, 2, 2]), 3).tolist()
    [[1, 0, 2]]
    """
    columns = codes.unsqueeze(1) if codes.dim() == 1 else codes
    width = columns.shape[1]
    places = columns + codebook_size * torch.arange(width, device=codes.device)
    ones = torch.ones_like(places) if weights is None else weights.to(torch.int64).unsqueeze(1).expand_as(places)
    counts = torch.zeros(width * codebook_size, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(0, places.flatten(), ones.flatten()).view(width, codebook_size)
