"""The kinds of quantizer as configuration; what does not go together is refused by the constructors themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hvq.config_base import FrozenModel, ShareBelowOne


def _vector_by_default(fields: Any) -> Any:
    """Fields that do not say of which kind they are belong to the default one."""
    return {"kind": "vector", **fields} if isinstance(fields, dict) else fields


class VectorQuantizerConfig(FrozenModel):
    """Nearest codebook vector (arXiv 1711.00937)."""

    kind: Literal["vector"] = "vector"
    heads: PositiveInt = Field(1, description="G, codes per position: slices of a latent with codebooks of their own")
    projection_dimension: PositiveInt | None = Field(
        None, description="dimensions in which codes are chosen; null for the code dimension itself"
    )
    metric: Literal["euclidean", "cosine"] = Field("euclidean", description="what nearest means")
    learning: Literal["moving_average", "gradient"] = Field(
        "moving_average", description="how the codebook is learned: moving averages of its latents, or codebook loss"
    )
    estimator: Literal["straight_through", "rotation", "diveq"] = Field(
        "straight_through", description="how gradients pass the choice of a code"
    )
    diveq_variance: NonNegativeFloat = Field(1e-3, description="of the noise in DiVeQ's direction")
    decay: ShareBelowOne = Field(0.99, description="of the moving averages, per optimizer step")
    revival_threshold: ShareBelowOne = Field(
        0.05, description="a code used less than this share of fair usage (1 / K) is revived; 0 turns revival off"
    )


class FiniteScalarQuantizerConfig(FrozenModel):
    """A few numbers rounded to a few levels each, without a codebook (arXiv 2309.15505)."""

    kind: Literal["finite_scalar"] = "finite_scalar"
    levels: tuple[PositiveInt, ...] | None = Field(
        None, description="of each number; their product is the codebook size; null chooses them"
    )


class LookupFreeQuantizerConfig(FrozenModel):
    """The signs of a few numbers, without a codebook (arXiv 2310.05737; spherical: arXiv 2406.07548)."""

    kind: Literal["lookup_free"] = "lookup_free"
    groups: PositiveInt = Field(1, description="G, codes per position")
    spherical: bool = Field(False, description="put latents on the unit sphere first (binary spherical quantization)")
    inverse_temperature: PositiveFloat = Field(
        1.0, description="of the probabilities that the entropy terms are made of"
    )
    diversity: NonNegativeFloat = Field(1.0, description="weight of the entropy of the mean within the entropy term")


class SimQuantizerConfig(FrozenModel):
    """Nearest vector of a fixed random codebook under one learned linear map (arXiv 2411.02038)."""

    kind: Literal["sim"] = "sim"
    estimator: Literal["straight_through", "rotation"] = Field(
        "straight_through", description="how gradients pass the choice of a code"
    )


class GumbelQuantizerConfig(FrozenModel):
    """A code drawn by Gumbel-softmax while training, the most probable one afterwards (arXiv 2102.12092)."""

    kind: Literal["gumbel"] = "gumbel"
    start_temperature: PositiveFloat = Field(1.0, description="of the softmax, at the first step")
    end_temperature: PositiveFloat = Field(0.0625, description="of the softmax, from the last step of its schedule on")
    anneal_steps: PositiveInt = Field(10_000, description="optimizer steps between the two")
    hard: bool = Field(False, description="pass the drawn vector alone on, with the gradient of the mixture")


class GaussianBottleneckConfig(FrozenModel):
    """A Gaussian over each latent, with which a level is that of a plain VAE, and has no codes (arXiv 1312.6114)."""

    kind: Literal["gaussian"] = "gaussian"


InnerQuantizerConfig = Annotated[
    VectorQuantizerConfig | FiniteScalarQuantizerConfig | LookupFreeQuantizerConfig | SimQuantizerConfig,
    Field(discriminator="kind", description="what quantizes each residual"),
    BeforeValidator(_vector_by_default),
]


class ResidualQuantizerConfig(FrozenModel):
    """Several quantizers in a row, each of what the ones before left over (arXiv 2107.03312, 2203.01941)."""

    kind: Literal["residual"] = "residual"
    num_quantizers: PositiveInt = Field(4, description="G, codes per position")
    shared: bool = Field(False, description="one codebook for all of them")
    dropout: ShareBelowOne = Field(
        0.0, description="chance that a position is quantized by the first few alone, while training"
    )
    inner: InnerQuantizerConfig = Field(default_factory=VectorQuantizerConfig)


QuantizerConfig = Annotated[
    VectorQuantizerConfig
    | ResidualQuantizerConfig
    | FiniteScalarQuantizerConfig
    | LookupFreeQuantizerConfig
    | SimQuantizerConfig
    | GumbelQuantizerConfig
    | GaussianBottleneckConfig,
    Field(discriminator="kind", description="how latents become codes"),
    BeforeValidator(_vector_by_default),
]
