"""Configuration to the training loss of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from hvq.autoencoders.losses import AutoencoderLoss
from hvq.autoencoders.reconstruction_losses import (
    DiscretizedLogistic,
    ReconstructionLoss,
    WeightedLoss,
    absolute_error,
    per_level_error,
    squared_error,
)
from hvq.config import AutoencoderTrainingConfig
from hvq.config_losses import (
    AbsoluteErrorConfig,
    DiscretizedLogisticConfig,
    PerLevelConfig,
    ReconstructionLossConfig,
    SquaredErrorConfig,
)


def build_loss(training: AutoencoderTrainingConfig) -> AutoencoderLoss:
    """The loss that a configuration describes.

    >>> build_loss(AutoencoderTrainingConfig(reconstruction="l1")).reconstruction["pixels"].loss.__name__
    'absolute_error'
    """
    return AutoencoderLoss(
        reconstruction=build_reconstruction_losses(training.reconstruction),
        commitment_weight=training.commitment_weight,
        codebook_weight=training.codebook_weight,
        entropy_weight=training.entropy_weight,
        kl_weight=training.kl_weight,
    )


def build_reconstruction_losses(terms: Mapping[str, ReconstructionLossConfig]) -> dict[str, WeightedLoss]:
    """The terms of the reconstruction loss by name."""
    return {name: WeightedLoss(term.weight, _build(term)) for name, term in terms.items()}


def _build(term: ReconstructionLossConfig) -> ReconstructionLoss:
    if isinstance(term, SquaredErrorConfig):
        return squared_error
    if isinstance(term, AbsoluteErrorConfig):
        return absolute_error
    if isinstance(term, DiscretizedLogisticConfig):
        return DiscretizedLogistic(scale=term.scale)
    assert_type(term, PerLevelConfig)
    return per_level_error
