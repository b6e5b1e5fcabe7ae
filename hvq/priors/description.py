"""`config.json` of a prior."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hvq.config import CodeSamplingConfig
from hvq.config_base import FrozenModel, Size
from hvq.config_priors import PriorConfig


class PriorDescription(FrozenModel):
    """All that it takes to build a prior, and to sample from it with the right autoencoder."""

    # 2: the transformer has rotary positions, gated feed-forward and adaptive norms.
    format_version: Literal[2] = 2
    model: PriorConfig
    level: str
    codebook_size: PositiveInt
    coarser: dict[str, PositiveInt] = Field(description="codebook sizes of the coarser levels, coarse to fine")
    codes_per_position: dict[str, PositiveInt] = Field(
        default_factory=dict, description="G of this level and of coarser ones, where it is more than one"
    )
    feature_channels: NonNegativeInt = Field(0, description="of a dense feature map in the condition; 0 without")
    vector_size: NonNegativeInt = Field(0, description="length of a vector in the condition; 0 without")
    grid: Size
    image_size: Size
    classes: tuple[str, ...] = ()
    encoder_hash: str
    codes_hash: str | None = Field(None, description="of the codes that it was trained on")
    sampling: CodeSamplingConfig = CodeSamplingConfig()
    held_out_nats: Annotated[float, Field(ge=0)] | None = None
    about: str = Field("", description="where the weights come from; empty where hvq made them")
