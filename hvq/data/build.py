"""From configuration to image sources."""

from __future__ import annotations

from torch import Tensor

from hvq.config_data import (
    ArrayConfig,
    AugmentationConfig,
    DataConfig,
    DigitsConfig,
    FolderConfig,
    HubConfig,
    PhotosConfig,
    ShardsConfig,
    StreamingConfig,
    TonesConfig,
    VectorsConfig,
    VolumesConfig,
    WavesConfig,
)
from hvq.data.array import array_sources
from hvq.data.augmentation import Augmentation
from hvq.data.digits import digit_sources
from hvq.data.folder import folder_sources
from hvq.data.hub import HubColumns, hub_sources
from hvq.data.photos import photo_sources
from hvq.data.shards import shard_sources
from hvq.data.sources import Sources
from hvq.data.stream import Streaming
from hvq.data.tones import tone_sources
from hvq.data.vectors import read_vectors
from hvq.data.volumes import volume_sources
from hvq.data.waves import wave_sources
from hvq.errors import DataError


def build_augmentation(config: AugmentationConfig) -> Augmentation:
    """The augmentation that a configuration describes.

    >>> build_augmentation(AugmentationConfig(flip=True)).flip
    True
    """
    return Augmentation(flip=config.flip, shift=config.shift, rotation=config.rotation, scale=config.scale)


def build_streaming(config: StreamingConfig) -> Streaming:
    """How shards are read from end to end, as a configuration says.

    >>> build_streaming(StreamingConfig(lanes=3)).lanes
    3
    """
    return Streaming(enabled=config.enabled, lanes=config.lanes, shuffle_buffer=config.shuffle_buffer)


def build_sources(config: DataConfig, seed: int = 0) -> Sources:
    """Training and held-out images that a configuration describes; only the former are ever augmented.

    Args:
        config: of any kind.
        seed: of crops and augmentation.

    Raises:
        DataError: where the images are missing, damaged, or not as the kind of data wants them.

    >>> from hvq.config_data import DigitsConfig
    >>> len(build_sources(DigitsConfig(size=(8, 8))).validation)
    360
    """
    match config:
        case WavesConfig():
            return wave_sources(
                config.path,
                size=config.size,
                channels=config.channels,
                sample_rate=config.sample_rate,
                validation_share=config.validation_share,
                labelled=config.labelled,
                seed=seed,
            )
        case TonesConfig():
            return tone_sources(
                size=config.size,
                channels=config.channels,
                sample_rate=config.sample_rate,
                tones=config.tones,
                seed=seed,
            )
        case VolumesConfig():
            return volume_sources(size=config.size, channels=config.channels, volumes=config.volumes, seed=seed)
        case _:
            return _image_sources(config, seed)


def _image_sources(
    config: DigitsConfig | PhotosConfig | FolderConfig | ArrayConfig | ShardsConfig | HubConfig, seed: int
) -> Sources:
    """Of the kinds that are augmented."""
    augmentation = build_augmentation(config.augmentation)
    if isinstance(config, ArrayConfig):
        return array_sources(
            config.train,
            config.validation,
            size=config.size,
            channels=config.channels,
            augmentation=augmentation,
            seed=seed,
        )
    size, channels = config.size, config.channels
    match config:
        case DigitsConfig():
            return digit_sources(size=size, channels=channels, augmentation=augmentation, seed=seed)
        case PhotosConfig():
            return photo_sources(
                size=size,
                channels=channels,
                crops_per_photo=config.crops_per_photo,
                augmentation=augmentation,
                seed=seed,
            )
        case FolderConfig():
            return folder_sources(
                config.path,
                size=size,
                channels=channels,
                crop=config.crop,
                validation_share=config.validation_share,
                labelled=config.labelled,
                limit=config.limit,
                augmentation=augmentation,
                seed=seed,
            )
        case ShardsConfig():
            return shard_sources(
                config.train,
                config.validation,
                size=size,
                channels=channels,
                crop=config.crop,
                label_key=config.label_key,
                validation_share=config.validation_share,
                streaming=build_streaming(config.streaming),
                augmentation=augmentation,
                seed=seed,
            )
        case HubConfig():
            return hub_sources(
                config.name,
                configuration=config.configuration,
                train=config.train,
                validation=config.validation,
                columns=HubColumns(image=config.columns.image, label=config.columns.label),
                size=size,
                channels=channels,
                crop=config.crop,
                validation_share=config.validation_share,
                streaming=build_streaming(config.streaming),
                augmentation=augmentation,
                seed=seed,
            )


def build_vectors(config: VectorsConfig, sources: Sources) -> tuple[Tensor | None, Tensor | None]:
    """The vectors of training and of held-out images, float32 `[num_images, V]` each; None twice without.

    Args:
        config: which files.
        sources: the images, whose names tell which vector is whose.

    Raises:
        DataError: where a file is missing or damaged, has no vector of some image, those of both splits differ in
            length, or one file is for both, and an image of each has the same name.
    """
    if config.train is None:
        return None, None
    alone = config.validation is None or config.validation == config.train
    first = read_vectors(config.train)
    second = first if alone else read_vectors(str(config.validation))
    if first.vectors.shape[1] != second.vectors.shape[1]:
        raise DataError(
            f"vectors of both splits must have as many numbers; {first.path} has {first.vectors.shape[1]} and "
            f"{second.path} has {second.vectors.shape[1]}"
        )
    train, validation = first.of(sources.train, "training"), second.of(sources.validation, "held-out")
    if alone and (shared := _shared_name(sources)):
        raise DataError(
            f"a training image and a held-out one are both named {shared!r}, so {first.path} cannot tell them apart; "
            "write a file for each split, and name the other one with data.vectors.validation"
        )
    return train, validation


def _shared_name(sources: Sources) -> str | None:
    """A name that images of both splits have; None where there is none."""
    held_out = {sources.validation.name(index) for index in range(len(sources.validation))}
    return next((name for i in range(len(sources.train)) if (name := sources.train.name(i)) in held_out), None)
