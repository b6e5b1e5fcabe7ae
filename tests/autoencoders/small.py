"""Small autoencoders of any depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import AutoencoderConfig
from hvq.level_names import default_level_names
from hvq.quantizers import Quantizer


def small_config(
    ratios: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    level_dropout: float = 0.0,
    sees: str = "context",
    blocks: str = "residual",
    spatial_dims: int = 2,
    **fields: Any,
) -> AutoencoderConfig:
    """Levels of the given ratios, coarse to fine, that differ in width, codebook size and code dimension."""
    names = default_level_names(len(ratios)) if names is None else names
    levels = {
        name: {
            "ratio": ratio,
            "width": 6 + 2 * (i % 3),
            "residual_blocks": 1,
            "residual_width": 3,
            "codebook_size": 11 + 2 * (i % 5),
            "code_dimension": 3 + i % 3,
            **fields,
        }
        for i, (name, ratio) in enumerate(zip(names, ratios, strict=True))
    }
    decoder = {"width": 6, "residual_blocks": 1, "residual_width": 3, "sees": sees}
    return AutoencoderConfig.model_validate(
        {
            "channels": 2,
            "levels": levels,
            "decoder": decoder,
            "blocks": blocks,
            "level_dropout": level_dropout,
            "spatial_dims": spatial_dims,
        }
    )


def small_model(ratios: Sequence[int], **arguments: Any) -> Autoencoder:
    """A small autoencoder, every parameter of which does something: blocks do not start as the identity."""
    model = build_autoencoder(small_config(ratios, **arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.3)
        for quantizer in model.quantizers.values():
            codebook(quantizer).mul_(0.5)
    return model


def codebook(quantizer: Quantizer) -> Tensor:
    """The codebook of a vector quantizer."""
    (only,) = quantizer.codebooks
    return only.vectors


def pictures(batch: int, height: int, width: int, kind: torch.dtype = torch.float32) -> Tensor:
    """Random pixels `[B, 2, H, W]` in [-1, 1]."""
    return torch.rand(batch, 2, height, width, dtype=kind) * 2 - 1
