"""Configuration, or plain numbers, to an autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hvq.autoencoders.convolution import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Enlargement,
    StagedEnlargement,
    convolution,
)
from hvq.autoencoders.level import Level
from hvq.autoencoders.rezero import RectifiedEnlargement, ReZeroDecoder, ReZeroEncoder
from hvq.autoencoders.stack import Autoencoder
from hvq.config import AutoencoderConfig, LevelConfig
from hvq.errors import ConfigurationError
from hvq.quantizers import Quantizer
from hvq.quantizers.build import build_quantizer

# By the kind of their blocks: what a level encodes with, what merges and the image decoder are, and enlargements.
_ENCODERS: dict[str, type[nn.Module]] = {"residual": ConvolutionalEncoder, "rezero": ReZeroEncoder}
_DECODERS: dict[str, type[nn.Module]] = {"residual": ConvolutionalDecoder, "rezero": ReZeroDecoder}
_ENLARGEMENTS: dict[str, type[nn.Module]] = {"residual": Enlargement, "rezero": RectifiedEnlargement}


def convolutional_autoencoder(
    *,
    channels: int,
    levels: Mapping[str, Mapping[str, Any]],
    decoder: Mapping[str, Any] | None = None,
    spatial_dims: int = 2,
) -> Autoencoder:
    """An autoencoder of the papers' convolutional encoders and decoder, from plain values.

    Args:
        channels: C of the images.
        levels: fields of `hvq.config.LevelConfig` by level name, coarse to fine; `ratio` is the one without default.
        decoder: fields of `hvq.config.DecoderConfig`.
        spatial_dims: axes of the images: 2, or 1 for signals `[B, C, T]`, 3 for volumes `[B, C, X, Y, Z]`.

    >>> convolutional_autoencoder(channels=3, levels={"top": {"ratio": 8, "codebook_size": 16}}).strides
    {'top': 8}
    """
    fields = {"channels": channels, "levels": levels, "decoder": decoder or {}, "spatial_dims": spatial_dims}
    return build_autoencoder(AutoencoderConfig.model_validate(fields))


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder that a configuration describes, with fresh weights."""
    names = list(config.levels)
    levels = [_build_level(config, names, i) for i in range(len(names))]
    finest = config.levels[names[-1]]
    decoder = _DECODERS[config.blocks](
        in_channels=_decoder_channels(config, names),
        out_channels=config.channels,
        width=config.decoder.width,
        ratio=finest.ratio,
        residual_blocks=config.decoder.residual_blocks,
        residual_width=config.decoder.residual_width,
        spatial_dims=config.spatial_dims,
        # A picture that starts near the middle of the range of pixels does not have to be unlearned first.
        output_gain=0.1,
    )
    model = Autoencoder(
        levels=levels,
        decoder=decoder,
        enlargements=_build_enlargements(config, names),
        merges_see_vectors=config.decoder.sees == "vectors_throughout",
        recompute=config.recompute,
        scale_channels=config.channels if config.decoder.learn_scale else 0,
    )
    model.config, model.spatial_dims = config, config.spatial_dims
    return model


def check_autoencoder(config: AutoencoderConfig) -> None:
    """Build on the meta device, where no tensor takes memory: what a constructor refuses is refused here.

    Raises:
        ConfigurationError: naming the level.
    """
    with torch.device("meta"):
        build_autoencoder(config)


def _build_quantizer(name: str, level: LevelConfig) -> Quantizer:
    try:
        return build_quantizer(level.quantizer, codebook_size=level.codebook_size, code_dimension=level.code_dimension)
    except ConfigurationError as error:
        raise ConfigurationError(f"autoencoder.levels.{name}: {error}") from None


def _context_channels(config: AutoencoderConfig, names: list[str], i: int) -> int:
    """Channels of what level i is told by the coarser ones: as many as the next coarser level's vectors have."""
    return config.levels[names[i - 1]].code_dimension if i > 0 else 0


def _decoder_channels(config: AutoencoderConfig, names: list[str]) -> int:
    if config.decoder.sees != "context":
        return sum(level.code_dimension for level in config.levels.values())
    return _context_channels(config, names, len(names) - 1) + config.levels[names[-1]].code_dimension


def _merge_channels(config: AutoencoderConfig, names: list[str], i: int) -> int:
    """Channels of what level i's merge sees: its own vectors, and what it is told of coarser levels."""
    if config.decoder.sees == "vectors_throughout":
        return sum(config.levels[name].code_dimension for name in names[: i + 1])
    return _context_channels(config, names, i) + config.levels[names[i]].code_dimension


def _build_enlargements(config: AutoencoderConfig, names: list[str]) -> dict[str, nn.Module] | None:
    if config.decoder.sees == "context":
        return None
    return {name: _build_enlargement(config, name, names[i:-1]) for i, name in enumerate(names[:-1])}


def _build_enlargement(config: AutoencoderConfig, name: str, to_finest: list[str]) -> nn.Module:
    """Of a level's vectors, by its own ratio and those of all finer levels but the finest."""
    kind = _ENLARGEMENTS[config.blocks]
    sizes: dict[str, Any] = {
        "channels": config.levels[name].code_dimension,
        "spatial_dims": config.spatial_dims,
    }
    ratios = [config.levels[finer].ratio for finer in to_finest]
    if config.decoder.sees == "vectors_throughout":
        return StagedEnlargement(kind(**sizes, ratio=ratio) for ratio in ratios)
    return kind(**sizes, ratio=math.prod(ratios))


def _build_level(config: AutoencoderConfig, names: list[str], i: int) -> Level:
    level = config.levels[names[i]]
    is_finest = i == len(names) - 1
    context = _context_channels(config, names, i)
    return Level(
        name=names[i],
        ratio=level.ratio,
        encoder=_ENCODERS[config.blocks](
            in_channels=config.channels if is_finest else config.levels[names[i + 1]].width,
            width=level.width,
            ratio=level.ratio,
            residual_blocks=level.residual_blocks,
            residual_width=level.residual_width,
            spatial_dims=config.spatial_dims,
        ),
        projection=convolution(config.spatial_dims, level.width + context, level.code_dimension, kernel=1, gain=1.0),
        quantizer=_build_quantizer(names[i], level),
        merge=None if is_finest else _build_merge(config, names, i),
        learn_absent=config.level_dropout > 0 and i > 0,
    )


def _build_merge(config: AutoencoderConfig, names: list[str], i: int) -> nn.Module:
    level = config.levels[names[i]]
    return _DECODERS[config.blocks](
        in_channels=_merge_channels(config, names, i),
        out_channels=level.code_dimension,
        width=level.width,
        ratio=level.ratio,
        residual_blocks=level.residual_blocks,
        residual_width=level.residual_width,
        spatial_dims=config.spatial_dims,
    )
