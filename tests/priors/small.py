"""Small priors of a hierarchy of three levels, with logits far from uniform."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvq.priors import Condition, TransformerPrior

SIZES = {"top": 7, "middle": 11, "bottom": 5}
GRIDS = {"top": (2, 3), "middle": (2, 3), "bottom": (4, 6)}
LEVELS = tuple(SIZES)
NUM_CLASSES = 3


def coarser_than(level: str) -> tuple[str, ...]:
    """Names of the levels that come before."""
    return LEVELS[: LEVELS.index(level)]


def small_prior(level: str = "top", **arguments: Any) -> TransformerPrior:
    """A prior in evaluation mode, whose weights are so large that every part of it counts."""
    prior = TransformerPrior(
        codebook_size=SIZES[level],
        coarser={name: SIZES[name] for name in coarser_than(level)},
        **{"num_classes": NUM_CLASSES, "width": 12, "layers": 2, "heads": 3, "context_blocks": 1, **arguments},
    )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.4)
    return prior.eval()


def codes_of(level: str, batch: int, grid: tuple[int, ...] | None = None) -> Tensor:
    """Random codes `[B, h, w]`."""
    return torch.randint(SIZES[level], (batch, *(GRIDS[level] if grid is None else grid)))


def condition_of(level: str, batch: int) -> Condition:
    """Random codes of all coarser levels, and classes."""
    coarser = {name: codes_of(name, batch) for name in reversed(coarser_than(level))}
    return Condition(codes=coarser, labels=torch.randint(-1, NUM_CLASSES, (batch,)))
