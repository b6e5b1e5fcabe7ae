"""`config.json` of an autoencoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hvq.config import AutoencoderConfig
from hvq.config_base import FrozenModel, Size


class AutoencoderDescription(FrozenModel):
    """All that it takes to build an autoencoder, and what it was trained on."""

    format_version: Literal[1] = 1
    autoencoder: AutoencoderConfig
    image_size: Size
    classes: tuple[str, ...] = ()
    about: str = Field(
        "", description="where the weights come from, and the range of pixels; empty where hvq made them"
    )

    @model_validator(mode="after")
    def _size_has_its_axes(self) -> AutoencoderDescription:
        if len(self.image_size) != self.autoencoder.spatial_dims:
            raise ValueError(
                f"image_size must have one length for each of the {self.autoencoder.spatial_dims} axes of the "
                f"autoencoder; received {len(self.image_size)}"
            )
        return self
