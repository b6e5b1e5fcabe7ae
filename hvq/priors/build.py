"""Configuration to a prior."""

from __future__ import annotations

from collections.abc import Mapping

from hvq.config_priors import PriorConfig
from hvq.priors.base import Prior
from hvq.priors.pixelcnn import PixelCNNPrior
from hvq.priors.pixelsnail import PixelSNAILPrior
from hvq.priors.transformer import TransformerPrior

KINDS: dict[str, type[Prior]] = {
    "transformer": TransformerPrior,
    "pixelsnail": PixelSNAILPrior,
    "pixelcnn": PixelCNNPrior,
}


def build_prior(
    config: PriorConfig,
    *,
    codebook_size: int,
    coarser: Mapping[str, int] | None = None,
    num_classes: int = 0,
    codes_per_position: int = 1,
    coarser_codes_per_position: Mapping[str, int] | None = None,
) -> Prior:
    """The prior that a configuration describes, with fresh weights.

    Args:
        config: the model.
        codebook_size: K of its level.
        coarser: codebook sizes of the coarser levels by name, coarse to fine.
        num_classes: number of classes; 0 without.
        codes_per_position: G of its level.
        coarser_codes_per_position: the same of those coarser levels that have more than one.
    """
    return KINDS[config.kind](
        codebook_size=codebook_size,
        coarser=coarser,
        num_classes=num_classes,
        codes_per_position=codes_per_position,
        coarser_codes_per_position=coarser_codes_per_position,
        **config.model_dump(exclude={"kind"}),
    )
