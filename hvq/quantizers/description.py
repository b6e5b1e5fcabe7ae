"""`config.json` of a quantizer that is saved by itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hvq.config_base import FrozenModel
from hvq.config_quantizers import QuantizerConfig


class QuantizerDescription(FrozenModel):
    """All that it takes to build a quantizer."""

    format_version: Literal[1] = 1
    quantizer: QuantizerConfig
    codebook_size: NonNegativeInt
    code_dimension: PositiveInt
    about: str = Field("", description="where the weights come from; empty where hvq made them")
