"""Configuration to a prior."""

from __future__ import annotations

from collections.abc import Mapping

from hvq.config import PriorConfig
from hvq.priors.base import Prior
from hvq.priors.transformer import TransformerPrior


def build_prior(
    config: PriorConfig, *, codebook_size: int, coarser: Mapping[str, int] | None = None, num_classes: int = 0
) -> Prior:
    """The prior that a configuration describes, with fresh weights.

    Args:
        config: the model.
        codebook_size: K of its level.
        coarser: codebook sizes of the coarser levels by name, coarse to fine.
        num_classes: number of classes; 0 without.
    """
    arguments = config.model_dump(exclude={"kind"})
    return TransformerPrior(codebook_size=codebook_size, coarser=coarser, num_classes=num_classes, **arguments)
