"""A quantizer by itself as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from hvq.config_base import FrozenModel
from hvq.config_quantizers import QuantizerConfig
from hvq.quantizers import Quantizer
from hvq.quantizers.build import build_quantizer
from hvq.storage.models import load_weights, read_description, save_model

QUANTIZER_FORMAT_VERSION: Literal[1] = 1


class QuantizerDescription(FrozenModel):
    """`config.json` of a quantizer."""

    format_version: Literal[1] = QUANTIZER_FORMAT_VERSION
    quantizer: QuantizerConfig
    codebook_size: PositiveInt
    code_dimension: PositiveInt
    about: str = Field("", description="where the weights come from; empty where hvq made them")


def save_quantizer(folder: Path, model: Quantizer, description: QuantizerDescription) -> None:
    """Write a quantizer's folder, whole or not at all."""
    save_model(folder, model.state_dict(), description)


def load_quantizer(folder: Path) -> tuple[Quantizer, QuantizerDescription]:
    """A quantizer in evaluation mode, on the CPU, and its description.

    Raises:
        CheckpointError: where the folder is missing, damaged, or of another format.
    """
    description = read_description(folder, QuantizerDescription, "quantizer")
    model = build_quantizer(
        description.quantizer, codebook_size=description.codebook_size, code_dimension=description.code_dimension
    )
    load_weights(model, folder, "quantizer")
    return model.eval(), description
