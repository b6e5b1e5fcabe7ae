"""Configuration to the training loss of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from hvq.autoencoders.losses import AdversarialTerm, AutoencoderLoss
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
    AdversarialConfig,
    DiscretizedLogisticConfig,
    PerLevelConfig,
    ReconstructionLossConfig,
    SquaredErrorConfig,
)


def build_loss(training: AutoencoderTrainingConfig, adversary: AdversarialTerm | None = None) -> AutoencoderLoss:
    """The loss that a configuration describes.

    Args:
        training: whose terms are weighted and summed.
        adversary: the term of kind adversarial, where there is one; a discriminator is trained beside the autoencoder.

    >>> build_loss(AutoencoderTrainingConfig(reconstruction="l1")).reconstruction["pixels"].loss.__name__
    'absolute_error'
    """
    return AutoencoderLoss(
        reconstruction=build_reconstruction_losses(training.reconstruction),
        commitment_weight=training.commitment_weight,
        codebook_weight=training.codebook_weight,
        entropy_weight=training.entropy_weight,
        kl_weight=training.kl_weight,
        adversary=adversary,
    )


def build_reconstruction_losses(terms: Mapping[str, ReconstructionLossConfig]) -> dict[str, WeightedLoss]:
    """The terms of the reconstruction loss by name, but for the adversary's."""
    return {
        name: WeightedLoss(term.weight, _build(term))
        for name, term in terms.items()
        if not isinstance(term, AdversarialConfig)
    }


def _build(
    term: SquaredErrorConfig | AbsoluteErrorConfig | DiscretizedLogisticConfig | PerLevelConfig,
) -> ReconstructionLoss:
    if isinstance(term, SquaredErrorConfig):
        return squared_error
    if isinstance(term, AbsoluteErrorConfig):
        return absolute_error
    if isinstance(term, DiscretizedLogisticConfig):
        return DiscretizedLogistic(scale=term.scale)
    assert_type(term, PerLevelConfig)
    return per_level_error
