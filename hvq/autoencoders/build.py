"""Configuration, or plain numbers, to an autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from hvq.autoencoders.convolution import ConvolutionalDecoder, ConvolutionalEncoder, Enlargement, convolution
from hvq.autoencoders.level import Level
from hvq.autoencoders.stack import Autoencoder
from hvq.config import AutoencoderConfig, LevelConfig
from hvq.errors import ConfigurationError
from hvq.quantizers import Quantizer
from hvq.quantizers.build import build_quantizer


def convolutional_autoencoder(
    *, channels: int, levels: Mapping[str, Mapping[str, Any]], decoder: Mapping[str, Any] | None = None
) -> Autoencoder:
    """An autoencoder of the papers' convolutional encoders and decoder, from plain values.

    Args:
        channels: C of the images.
        levels: fields of `hvq.config.LevelConfig` by level name, coarse to fine; `ratio` is the one without default.
        decoder: fields of `hvq.config.DecoderConfig`.

    >>> convolutional_autoencoder(channels=3, levels={"top": {"ratio": 8, "codebook_size": 16}}).strides
    {'top': 8}
    """
    fields = {"channels": channels, "levels": levels, "decoder": decoder or {}}
    return build_autoencoder(AutoencoderConfig.model_validate(fields))


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder that a configuration describes, with fresh weights."""
    names = list(config.levels)
    levels = [_build_level(config, names, i) for i in range(len(names))]
    finest = config.levels[names[-1]]
    decoder = ConvolutionalDecoder(
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
        recompute=config.recompute,
        scale_channels=config.channels if config.decoder.learn_scale else 0,
    )
    model.config = config
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
    if config.decoder.sees == "vectors":
        return sum(level.code_dimension for level in config.levels.values())
    return _context_channels(config, names, len(names) - 1) + config.levels[names[-1]].code_dimension


def _build_enlargements(config: AutoencoderConfig, names: list[str]) -> dict[str, Enlargement] | None:
    if config.decoder.sees == "context":
        return None
    return {
        name: Enlargement(
            channels=config.levels[name].code_dimension,
            ratio=math.prod(config.levels[finer].ratio for finer in names[i:-1]),
            spatial_dims=config.spatial_dims,
        )
        for i, name in enumerate(names[:-1])
    }


def _build_level(config: AutoencoderConfig, names: list[str], i: int) -> Level:
    level = config.levels[names[i]]
    is_finest = i == len(names) - 1
    context = _context_channels(config, names, i)
    return Level(
        name=names[i],
        ratio=level.ratio,
        encoder=ConvolutionalEncoder(
            in_channels=config.channels if is_finest else config.levels[names[i + 1]].width,
            width=level.width,
            ratio=level.ratio,
            residual_blocks=level.residual_blocks,
            residual_width=level.residual_width,
            spatial_dims=config.spatial_dims,
        ),
        projection=convolution(config.spatial_dims, level.width + context, level.code_dimension, kernel=1, gain=1.0),
        quantizer=_build_quantizer(names[i], level),
        merge=None if is_finest else _build_merge(level, context + level.code_dimension, config.spatial_dims),
        learn_absent=config.level_dropout > 0 and i > 0,
    )


def _build_merge(level: LevelConfig, in_channels: int, spatial_dims: int) -> ConvolutionalDecoder:
    return ConvolutionalDecoder(
        in_channels=in_channels,
        out_channels=level.code_dimension,
        width=level.width,
        ratio=level.ratio,
        residual_blocks=level.residual_blocks,
        residual_width=level.residual_width,
        spatial_dims=spatial_dims,
    )
