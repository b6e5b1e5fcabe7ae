"""Kinds of prior as frozen, validated data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from hvq.config_base import FrozenModel, ShareBelowOne


class _BasePriorConfig(FrozenModel):
    """What all kinds share."""

    dropout: ShareBelowOne = Field(0.1, description="in each block, while training")
    context_blocks: NonNegativeInt = Field(2, description="residual blocks that read each coarser level's codes")
    recompute: bool = Field(False, description="compute blocks again in the backward pass, to spare memory")


class TransformerPriorConfig(_BasePriorConfig):
    """A causal transformer over one level's codes."""

    kind: Literal["transformer"] = "transformer"
    width: PositiveInt = Field(256, description="channels")
    layers: PositiveInt = Field(6, description="blocks of attention and feed-forward")
    heads: PositiveInt = Field(4, description="attention heads; the width is a multiple of twice as many")
    key_value_heads: PositiveInt | None = Field(
        None, description="a divisor of heads, as many of which share keys and values; null: one to one"
    )
    window: PositiveInt | None = Field(
        None, description="codes that a position attends to, for long grids; null: all earlier ones"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerPriorConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice heads; received {self.width} and {self.heads} heads")
        if self.heads % (self.key_value_heads or self.heads):
            raise ValueError(
                f"heads must be a multiple of key_value_heads; received {self.heads} and {self.key_value_heads}"
            )
        return self


class _ConvolutionalPriorConfig(_BasePriorConfig):
    """What the convolutional kinds share."""

    width: PositiveInt = Field(128, description="channels")
    kernel: PositiveInt = Field(5, description="columns that a convolution sees, an odd number of at least 3")
    shared_embedding: bool = Field(
        False, description="one embedding of codes for all taps of the first layer, in place of a table for each"
    )

    @field_validator("kernel", mode="after")
    @classmethod
    def _kernel_is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0 or kernel < 3:
            raise ValueError(f"kernel must be an odd number of at least 3; received {kernel}")
        return kernel


class PixelSNAILPriorConfig(_ConvolutionalPriorConfig):
    """Gated residual convolutions interleaved with attention (arXiv 1712.09763), as in VQ-VAE-2."""

    kind: Literal["pixelsnail"] = "pixelsnail"
    residual_width: PositiveInt = Field(128, description="channels inside residual blocks")
    blocks: PositiveInt = Field(2, description="each of residual convolutions and attention")
    residual_blocks: PositiveInt = Field(4, description="in each block")
    output_blocks: NonNegativeInt = Field(0, description="residual blocks of single positions after the last block")
    attention: bool = Field(True, description="whether blocks attend to all earlier positions")
    heads: PositiveInt = Field(8, description="attention heads; the width is a multiple of twice as many")
    attend_to_self: bool = Field(
        True, description="whether a position is among those it attends to; public implementations leave it out"
    )
    context_width: PositiveInt | None = Field(None, description="channels of the encoded condition; null: the width")
    gated_context: bool = Field(
        False, description="whether the condition is encoded with gates, as in public implementations"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> PixelSNAILPriorConfig:
        if self.attention and self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice heads; received {self.width} and {self.heads} heads")
        return self


class PixelCNNPriorConfig(_ConvolutionalPriorConfig):
    """The gated PixelCNN (arXiv 1606.05328), the prior of the VQ-VAE paper."""

    kind: Literal["pixelcnn"] = "pixelcnn"
    layers: PositiveInt = Field(12, description="of the two stacks, one for rows above and one for the own row")


def _transformer_by_default(value: Any) -> Any:
    """A mapping that names no kind is a transformer."""
    return {"kind": "transformer", **value} if isinstance(value, dict) else value


PriorConfig = Annotated[
    TransformerPriorConfig | PixelSNAILPriorConfig | PixelCNNPriorConfig,
    Field(discriminator="kind", description="the autoregressive model of this level's codes"),
    BeforeValidator(_transformer_by_default),
]
