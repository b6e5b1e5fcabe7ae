"""How one code is drawn from its logits, and the noise that decides it.

Letters: B batch, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvq.errors import ConfigurationError
from hvq.randomness import uniform


@dataclass(frozen=True)
class SamplingOptions:
    """How codes of one level are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most probable code.
        top_k: draw among the k most probable codes only.
        top_p: draw among the most probable codes that together hold this share.
        guidance: how far logits move from those without class and vector through those with them; 1 takes the latter as
            they are, more is truer to them and less diverse (classifier-free guidance, arXiv 2207.12598).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ConfigurationError(
                "temperature must be at least 0, top_p in (0, 1] and top_k at least 1 or None; received "
                f"{self.temperature}, {self.top_p} and {self.top_k}"
            )
        if not 0 <= self.guidance < math.inf:
            raise ConfigurationError(
                f"guidance must be a number of at least 0, where 1 means none; received {self.guidance}"
            )


def draw(logits: Tensor, noise: Tensor, options: SamplingOptions) -> Tensor:
    """Codes int64 `[B]` from logits `[B, K]`, by the Gumbel-max rule.

    Args:
        logits: `[B, K]`, guided already where there is guidance.
        noise: `[B, K]` of standard Gumbel noise.
        options: temperature and the two cuts.

    >>> draw(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 5.0]]), SamplingOptions(top_k=1)).tolist()
    [1]
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        # Of equal ones the lower index comes first.
        best = logits.sort(dim=-1, descending=True, stable=True).indices[:, : options.top_k]
        logits = torch.full_like(logits, -torch.inf).scatter(-1, best, logits.gather(-1, best))
    if options.top_p < 1:
        logits = _cut_to_share(logits, options.top_p)
    return (logits + noise.to(logits)).argmax(dim=-1)


def _cut_to_share(logits: Tensor, share: float) -> Tensor:
    """Keep the most probable codes up to and with the one that completes the share."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered.masked_fill(before >= share, -torch.inf))


def gumbel_noise(seed: int, samples: Sequence[int], level: str, position: int, codebook_size: int) -> Tensor:
    """Standard Gumbel noise `[B, K]`, float64 on the CPU, a function of (seed, sample, level, position)."""
    rows = np.asarray(samples)[:, None]
    draws = uniform(seed, "sample", level, rows, position, np.arange(codebook_size))
    return torch.from_numpy(-np.log(-np.log(draws)))
