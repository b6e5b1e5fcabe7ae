"""`config.json` of an autoencoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from hvq.config import AutoencoderConfig
from hvq.config_base import FrozenModel


class AutoencoderDescription(FrozenModel):
    """All that it takes to build an autoencoder, and what it was trained on."""

    format_version: Literal[1] = 1
    autoencoder: AutoencoderConfig
    image_size: tuple[PositiveInt, PositiveInt]
    classes: tuple[str, ...] = ()
    about: str = Field(
        "", description="where the weights come from, and the range of pixels; empty where hvq made them"
    )
