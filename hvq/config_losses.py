"""The terms of the reconstruction loss as configuration: each with a name of the user's, a kind, and a weight."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hvq.config_base import FrozenModel, ShareBelowOne


class WeightedLossConfig(FrozenModel):
    """What all kinds of terms share."""

    weight: NonNegativeFloat = Field(1.0, description="of this term in the sum")


class SquaredErrorConfig(WeightedLossConfig):
    """Mean squared error of pixels in [-1, 1]."""

    kind: Literal["mse"] = "mse"


class AbsoluteErrorConfig(WeightedLossConfig):
    """Mean absolute error of pixels in [-1, 1]."""

    kind: Literal["l1"] = "l1"


class DiscretizedLogisticConfig(WeightedLossConfig):
    """Nats per dimension of pixels of 256 values, under a logistic distribution around them (arXiv 1701.05517)."""

    kind: Literal["discretized_logistic"] = "discretized_logistic"
    scale: PositiveFloat = Field(
        0.1, description="of the distribution, pixels being in [-1, 1], unless autoencoder.decoder.learn_scale is true"
    )


class PerLevelConfig(WeightedLossConfig):
    """Mean squared error of the image that each coarser level gives with those above it alone, summed over levels."""

    kind: Literal["per_level"] = "per_level"


class PerceptualConfig(WeightedLossConfig):
    """Distance between features of images and reconstructions, in a network that stays as it is (arXiv 1801.03924)."""

    kind: Literal["perceptual"] = "perceptual"
    extractor: str = Field(
        description="folder of a classifier, as an evaluation leaves it in evaluation/classifier of a run; or lpips, "
        "where torchvision and its weights are at hand"
    )


class AdversarialConfig(WeightedLossConfig):
    """What a patch discriminator, trained beside the autoencoder, takes for real (arXiv 1611.07004, 2012.09841)."""

    kind: Literal["adversarial"] = "adversarial"
    warmup_steps: NonNegativeInt = Field(5_000, description="optimizer steps before it, and the discriminator, begin")
    width: PositiveInt = Field(64, description="channels after the discriminator's first convolution")
    layers: PositiveInt = Field(
        3, description="its strided convolutions; no side of the image may be shorter than 3 x 2^layers"
    )
    norm: Literal["group", "none"] = Field("group", description="its normalization, of each image by itself")
    learning_rate: PositiveFloat = Field(
        3e-4, description="its highest, which follows the course of the autoencoder's over the steps"
    )
    betas: tuple[ShareBelowOne, ShareBelowOne] = Field((0.5, 0.9), description="of its optimizer, Adam")
    largest_adaptive_weight: PositiveFloat = Field(
        1e4,
        description="limit of what the weight is multiplied by, which makes the gradient of this term as large as that "
        "of the others at the decoder's last weight",
    )


ReconstructionLossConfig = Annotated[
    SquaredErrorConfig
    | AbsoluteErrorConfig
    | DiscretizedLogisticConfig
    | PerLevelConfig
    | PerceptualConfig
    | AdversarialConfig,
    Field(discriminator="kind", description="one term of the reconstruction loss"),
]


def single_loss(terms: Any) -> Any:
    """One word, the kind, stands for that loss of pixels alone.

    >>> single_loss("l1")
    {'pixels': {'kind': 'l1'}}
    """
    return {"pixels": {"kind": terms}} if isinstance(terms, str) else terms


def squared_error_alone() -> dict[str, ReconstructionLossConfig]:
    """The terms by default."""
    return {"pixels": SquaredErrorConfig()}
