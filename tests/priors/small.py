"""Small priors of each kind, in a hierarchy of three levels, with logits far from uniform."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvq.priors import Condition, PixelCNNPrior, PixelSNAILPrior, Prior, TransformerPrior

SIZES = {"top": 7, "middle": 11, "bottom": 5}
GRIDS = {"top": (2, 3), "middle": (2, 3), "bottom": (4, 6)}
LEVELS = tuple(SIZES)
NUM_CLASSES = 3

# By name: the class, its arguments, and how large weights must be for every part to count without washing others out.
KINDS: dict[str, tuple[type[Prior], dict[str, Any], float]] = {
    "transformer": (TransformerPrior, {"width": 12, "layers": 2, "heads": 3}, 0.4),
    "transformer-grouped": (TransformerPrior, {"width": 16, "layers": 1, "heads": 4, "key_value_heads": 2}, 0.4),
    "transformer-window": (TransformerPrior, {"width": 12, "layers": 2, "heads": 2, "window": 5}, 0.4),
    "pixelsnail": (PixelSNAILPrior, {"width": 8, "heads": 2, "residual_width": 5, "residual_blocks": 2}, 0.3),
    "pixelsnail-plain": (
        PixelSNAILPrior,
        {"width": 6, "residual_width": 5, "blocks": 1, "output_blocks": 1, "kernel": 3, "attention": False},
        0.3,
    ),
    "pixelsnail-shared": (
        PixelSNAILPrior,
        {"width": 8, "heads": 2, "blocks": 1, "residual_blocks": 1, "shared_embedding": True},
        0.3,
    ),
    "pixelsnail-strict": (
        PixelSNAILPrior,
        {
            "width": 8,
            "heads": 2,
            "blocks": 2,
            "residual_blocks": 1,
            "attend_to_self": False,
            "context_width": 6,
            "gated_context": True,
        },
        0.2,
    ),
    "pixelcnn": (PixelCNNPrior, {"width": 7, "layers": 3}, 0.3),
    "pixelcnn-shared": (PixelCNNPrior, {"width": 6, "layers": 2, "kernel": 3, "shared_embedding": True}, 0.3),
}


def coarser_than(level: str) -> tuple[str, ...]:
    """Names of the levels that come before."""
    return LEVELS[: LEVELS.index(level)]


def small_prior(level: str = "top", kind: str = "transformer", **arguments: Any) -> Any:
    """A prior in evaluation mode, whose weights are so large that every part of it counts."""
    make, fixed, scale = KINDS[kind]
    prior = make(
        **{
            "codebook_size": SIZES[level],
            "coarser": {name: SIZES[name] for name in coarser_than(level)},
            "num_classes": NUM_CLASSES,
            "context_blocks": 1,
            **fixed,
            **arguments,
        }
    )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=scale)
    return prior.eval()


def codes_of(level: str, batch: int, grid: tuple[int, ...] | None = None) -> Tensor:
    """Random codes `[B, h, w]`."""
    return torch.randint(SIZES[level], (batch, *(GRIDS[level] if grid is None else grid)))


def condition_of(level: str, batch: int) -> Condition:
    """Random codes of all coarser levels, and classes."""
    coarser = {name: codes_of(name, batch) for name in reversed(coarser_than(level))}
    return Condition(codes=coarser, labels=torch.randint(-1, NUM_CLASSES, (batch,)))
