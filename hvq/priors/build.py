"""Configuration to a prior, and back."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from hvq.config_priors import PriorConfig
from hvq.errors import ConfigurationError
from hvq.priors.base import Prior, PriorLevel
from hvq.priors.pixelcnn import PixelCNNPrior
from hvq.priors.pixelsnail import PixelSNAILPrior
from hvq.priors.transformer import TransformerPrior

KINDS: dict[str, type[Prior]] = {
    "transformer": TransformerPrior,
    "pixelsnail": PixelSNAILPrior,
    "pixelcnn": PixelCNNPrior,
}
_CONFIG: TypeAdapter[PriorConfig] = TypeAdapter(PriorConfig)


def build_prior(
    config: PriorConfig,
    *,
    codebook_size: int,
    coarser: Mapping[str, int] | None = None,
    num_classes: int = 0,
    codes_per_position: int = 1,
    coarser_codes_per_position: Mapping[str, int] | None = None,
    feature_channels: int = 0,
    vector_size: int = 0,
    spatial_dims: int = 2,
) -> Prior:
    """The prior that a configuration describes, with fresh weights.

    Args:
        config: the model.
        codebook_size: K of its level.
        coarser: codebook sizes of the coarser levels by name, coarse to fine.
        num_classes: number of classes; 0 without.
        codes_per_position: G of its level.
        coarser_codes_per_position: the same of those coarser levels that have more than one.
        feature_channels: of a dense feature map in the condition; 0 without.
        vector_size: length of a vector in the condition; 0 without.
        spatial_dims: axes of the grids, 1, 2 or 3.

    Raises:
        ConfigurationError: where the kind does not take grids of so many axes.
    """
    return KINDS[config.kind](
        codebook_size=codebook_size,
        coarser=coarser,
        num_classes=num_classes,
        codes_per_position=codes_per_position,
        coarser_codes_per_position=coarser_codes_per_position,
        feature_channels=feature_channels,
        vector_size=vector_size,
        spatial_dims=spatial_dims,
        **config.model_dump(exclude={"kind"}),
    )


def describe_prior(prior: Prior) -> PriorConfig:
    """The configuration that makes such a prior, from the arguments of its constructor.

    Raises:
        ConfigurationError: where it is of a class of a user's own.

    >>> describe_prior(PixelCNNPrior(codebook_size=5, width=8, layers=3)).layers
    3
    """
    kind = next((kind for kind, known in KINDS.items() if type(prior) is known), None)
    options = {name: value for name, value in prior.arguments.items() if name not in PriorLevel.__annotations__}
    try:
        return _CONFIG.validate_python({"kind": kind, **options})
    except ValidationError:
        raise ConfigurationError(
            f"no configuration makes this {type(prior).__name__}, so that it cannot be saved as a folder; the kinds "
            f"are {', '.join(KINDS)}: save its state_dict with safetensors"
        ) from None
