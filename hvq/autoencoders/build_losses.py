"""Configuration to the training loss of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from hvq.autoencoders.losses import AdversarialTerm, AutoencoderLoss
from hvq.autoencoders.perceptual import FeatureDistance
from hvq.autoencoders.reconstruction_losses import (
    DiscretizedLogistic,
    Perceptual,
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
from hvq.errors import ConfigurationError


def build_loss(
    training: AutoencoderTrainingConfig,
    *,
    distances: Mapping[str, FeatureDistance] | None = None,
    adversary: AdversarialTerm | None = None,
) -> AutoencoderLoss:
    """The loss that a configuration describes.

    Args:
        training: whose terms are weighted and summed.
        distances: of features, by the name of each term of kind perceptual.
        adversary: the term of kind adversarial, where there is one; a discriminator is trained beside the autoencoder.

    >>> build_loss(AutoencoderTrainingConfig(reconstruction="l1")).reconstruction["pixels"].loss.__name__
    'absolute_error'
    """
    return AutoencoderLoss(
        reconstruction=build_reconstruction_losses(training.reconstruction, distances or {}),
        commitment_weight=training.commitment_weight,
        codebook_weight=training.codebook_weight,
        entropy_weight=training.entropy_weight,
        kl_weight=training.kl_weight,
        adversary=adversary,
    )


def build_reconstruction_losses(
    terms: Mapping[str, ReconstructionLossConfig], distances: Mapping[str, FeatureDistance]
) -> dict[str, WeightedLoss]:
    """The terms of the reconstruction loss by name, but for the adversary's.

    Raises:
        ConfigurationError: where a term of kind perceptual is not given its distance.
    """
    return {
        name: WeightedLoss(term.weight, _perceptual(name, distances) if term.kind == "perceptual" else _build(term))
        for name, term in terms.items()
        if not isinstance(term, AdversarialConfig)
    }


def _perceptual(name: str, distances: Mapping[str, FeatureDistance]) -> Perceptual:
    if name not in distances:
        raise ConfigurationError(
            f"term {name} of kind perceptual takes a distance of features; hand it in by that name"
        )
    return Perceptual(distances[name])


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
