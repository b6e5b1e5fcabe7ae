"""Configuration becomes the sources it describes, with the defaults that their functions have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvq.config import FrozenModel
from hvq.config_data import (
    ArrayConfig,
    AugmentationConfig,
    BaseDataConfig,
    DataConfig,
    DigitsConfig,
    FolderConfig,
    HubColumnsConfig,
    HubConfig,
    PhotosConfig,
    ShardsConfig,
    StreamingConfig,
    TonesConfig,
    VolumesConfig,
    WavesConfig,
)
from hvq.data import (
    Augmentation,
    HubColumns,
    Streaming,
    array_sources,
    build_sources,
    digit_sources,
    folder_sources,
    hub_sources,
    photo_sources,
    shard_sources,
    tone_sources,
    volume_sources,
    wave_sources,
)
from tests.data.kinds import save_parquet, save_shards

BUILDERS: list[tuple[type[FrozenModel], Callable[..., object]]] = [
    (AugmentationConfig, Augmentation),
    (DigitsConfig, digit_sources),
    (PhotosConfig, photo_sources),
    (FolderConfig, folder_sources),
    (ArrayConfig, array_sources),
    (ShardsConfig, shard_sources),
    (HubConfig, hub_sources),
    (StreamingConfig, Streaming),
    (HubColumnsConfig, HubColumns),
    (WavesConfig, wave_sources),
    (TonesConfig, tone_sources),
    (VolumesConfig, volume_sources),
]
# Said of the run or the loader, or built from a configuration of its own.
ELSEWHERE = {"kind", "workers", "augmentation", "streaming", "columns", "seed", "vectors"}


@pytest.mark.parametrize(("config", "builder"), BUILDERS)
def test_defaults_agree(config: type[FrozenModel], builder: Callable[..., object]) -> None:
    parameters = inspect.signature(builder).parameters
    # Arrays do not say how fast they are to be played.
    elsewhere = ELSEWHERE | ({"sample_rate"} if config is ArrayConfig else set())
    assert set(config.model_fields) - elsewhere == set(parameters) - elsewhere
    for name, field in config.model_fields.items():
        if name not in elsewhere and not field.is_required():
            assert parameters[name].default == field.default, name


@pytest.fixture
def configurations(tmp_path: Path, hub_cache: None) -> dict[str, DataConfig]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 13, 17, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    for index in range(3):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
    changes, file = AugmentationConfig(shift=3.0), str(tmp_path / "a.npz")
    return {
        "digits": DigitsConfig(size=(11, 13), channels=3, augmentation=changes),
        "photos": PhotosConfig(size=(11, 13), crops_per_photo=2, augmentation=changes),
        "folder": FolderConfig(size=(11, 13), path=str(tmp_path), augmentation=changes),
        "array": ArrayConfig(size=(11, 13), train=file, validation=file, augmentation=changes),
        "shards": ShardsConfig(size=(11, 13), train=save_shards(tmp_path, 2), augmentation=changes),
        "hub": HubConfig(size=(11, 13), name=save_parquet(tmp_path, "a.parquet"), augmentation=changes),
    }


@pytest.mark.parametrize("kind", ["digits", "photos", "folder", "array", "shards", "hub"])
def test_every_kind_is_built_and_augments_training_images_only(
    configurations: dict[str, DataConfig], kind: str
) -> None:
    config: BaseDataConfig = configurations[kind]
    train, held_out = (sources := build_sources(configurations[kind], seed=5)).train, sources.validation
    assert train.size == held_out.size == config.size
    assert train.image(0, epoch=2).shape == (config.channels, 11, 13)
    assert (train.image(0, epoch=2) != train.image(0)).any()
    assert train.augmentation.shift == 3.0
    assert held_out.augmentation.shift == 0.0
    assert train.seed == 5
