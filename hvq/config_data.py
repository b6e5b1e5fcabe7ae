"""Where images, signals and volumes come from, and how they are read: one configuration for each kind of data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from hvq.config_base import FrozenModel, ShareBelowOne, Size


class AugmentationConfig(FrozenModel):
    """Random changes to training images, each a function of (seed, epoch, sample index)."""

    flip: bool = Field(False, description="mirror left to right, half of the time")
    shift: NonNegativeFloat = Field(0.0, description="largest shift, in pixels of the finished image")
    rotation: NonNegativeFloat = Field(0.0, description="largest rotation, in degrees")
    scale: ShareBelowOne = Field(0.0, description="largest relative change of size; 0.1 means 0.9 to 1.1 times")


class VectorsConfig(FrozenModel):
    """A vector for each image, such as a text embedding or attributes, which priors are conditioned on."""

    train: str | None = Field(
        None,
        description="safetensors file with a vector for each training image, found by the image's name, as "
        "hvq.data.write_vectors writes it; null: images have no vectors",
    )
    validation: str | None = Field(None, description="the same for held-out images; null: it is the file of `train`")

    @model_validator(mode="after")
    def _training_images_have_them(self) -> VectorsConfig:
        if self.validation is not None and self.train is None:
            raise ValueError(
                "vectors.validation names a file, and vectors.train none; priors learn from vectors of training images"
            )
        return self


class SourceConfig(FrozenModel):
    """What all kinds of data share, be they images, signals or volumes."""

    size: Size = Field((32, 32), description="length of each axis")
    channels: PositiveInt = Field(3, description="C")
    workers: NonNegativeInt = Field(0, description="processes that prepare images, per training process")
    vectors: VectorsConfig = Field(
        default_factory=VectorsConfig,
        description="a vector for each image, the same in all augmented epochs, told to the priors; codes are "
        "extracted with it",
    )


class BaseDataConfig(SourceConfig):
    """What all kinds of images share."""

    size: tuple[PositiveInt, PositiveInt] = Field((32, 32), description="height and width of the images, in pixels")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: RGB; images are converted")
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig, description="changes while training")


class DigitsConfig(BaseDataConfig):
    """The 1,797 scanned digits of scikit-learn, resized; every fifth is held out."""

    kind: Literal["digits"] = "digits"
    channels: Literal[1, 3] = Field(1, description="1: grey, 3: RGB; images are converted")


class PhotosConfig(BaseDataConfig):
    """Crops of the photographs that scikit-image ships; whole photographs are held out."""

    kind: Literal["photos"] = "photos"
    size: tuple[PositiveInt, PositiveInt] = Field((64, 64), description="height and width of the crops, in pixels")
    crops_per_photo: PositiveInt = Field(64, description="crops of each photograph that make up an epoch")


class FolderConfig(BaseDataConfig):
    """Any folder of images; subfolders are classes, a folder `validation` or a hashed fraction is held out."""

    kind: Literal["folder"] = "folder"
    path: str = Field(description="the folder; images are found at any depth")
    size: tuple[PositiveInt, PositiveInt] = Field((256, 256), description="height and width of the images, in pixels")
    crop: Literal["center", "random"] = Field("center", description="which part is kept of an image of another shape")
    validation_share: ShareBelowOne = Field(
        0.05, description="share held out, by hash of the relative path, where there is no folder `validation`"
    )
    labelled: bool = Field(True, description="whether subfolders are classes; false for images without labels")
    limit: PositiveInt | None = Field(
        None, description="images used of each split at most, spread over all of it; null for all of them"
    )


class ArrayConfig(SourceConfig):
    """Arrays in safetensors or npz: `images` or encoded `jpeg_bytes` with `offsets`, and `labels` if there are any."""

    kind: Literal["array"] = "array"
    train: str = Field(description="file with the training images")
    validation: str = Field(description="file with the held-out images")
    size: Size = Field(
        (32, 32), description="height and width of images, in pixels; [T] of signals and [X, Y, Z] of volumes"
    )
    channels: PositiveInt = Field(
        3, description="of images 1: grey, or 3: RGB, which are converted; of signals and volumes what the file has"
    )
    augmentation: AugmentationConfig = Field(
        default_factory=AugmentationConfig, description="changes while training, to images alone"
    )
    sample_rate: PositiveInt | None = Field(
        None, description="of sounds, in Hz, at which samples are written as .wav files too; null for none"
    )

    @model_validator(mode="after")
    def _suits_its_axes(self) -> ArrayConfig:
        if len(self.size) == 2 and self.channels not in (1, 3):
            raise ValueError(f"data.channels of images must be 1 or 3; received {self.channels}")
        if len(self.size) != 2 and self.augmentation != AugmentationConfig():
            raise ValueError(
                f"data.augmentation changes images, which have two axes; data.size has {len(self.size)}: leave it out"
            )
        if len(self.size) != 1 and self.sample_rate is not None:
            raise ValueError(
                f"data.sample_rate is of sounds, which have one axis; data.size has {len(self.size)}: leave it out"
            )
        return self


class WavesConfig(SourceConfig):
    """A folder of .wav files (PCM of 8 or 16 bits); subfolders are classes, `validation` or a hashed share is held out.

    A stretch of each is taken: at random while training, as a function of (seed, epoch, index), else at the center.
    """

    kind: Literal["waves"] = "waves"
    path: str = Field(description="the folder; files are found at any depth")
    size: tuple[PositiveInt] = Field((16_384,), description="length of the stretches, in values per channel")
    channels: Literal[1, 2] = Field(1, description="1: mono, 2: stereo; sounds are converted")
    sample_rate: PositiveInt = Field(16_000, description="in Hz; files of another rate are refused")
    validation_share: ShareBelowOne = Field(
        0.05, description="share held out, by hash of the relative path, where there is no folder `validation`"
    )
    labelled: bool = Field(True, description="whether subfolders are classes; false for sounds without labels")


class TonesConfig(SourceConfig):
    """Harmonic and plucked tones of eight notes, the classes, made on the spot; every fifth is held out."""

    kind: Literal["tones"] = "tones"
    size: tuple[PositiveInt] = Field((2_048,), description="length of the tones, in values per channel")
    channels: Literal[1] = Field(1, description="mono")
    sample_rate: Annotated[int, Field(ge=1_100)] = Field(8_000, description="in Hz; twice the highest note at least")
    tones: Annotated[int, Field(ge=10)] = Field(2_000, description="how many there are, both splits together")


class VolumesConfig(SourceConfig):
    """Soft balls, boxes, rings and crosses in space, the classes, made on the spot; every fifth is held out."""

    kind: Literal["volumes"] = "volumes"
    size: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((16, 16, 16), description="length of each axis")
    channels: Literal[1] = Field(1, description="density")
    volumes: Annotated[int, Field(ge=10)] = Field(2_000, description="how many there are, both splits together")


class StreamingConfig(FrozenModel):
    """Reading from end to end what is too far away, or too large, to be read at any place at once."""

    enabled: bool | None = Field(
        None, description="whether it is; null for what cannot be read otherwise: shards by URL, or compressed"
    )
    lanes: PositiveInt = Field(
        16,
        description="shards read at the same time, over all processes; a multiple of processes times workers splits "
        "them without overlap, and another number changes the order",
    )
    shuffle_buffer: PositiveInt = Field(
        4096, description="samples among which images are shuffled; all processes together hold as many, encoded"
    )


class ShardsConfig(BaseDataConfig):
    """Tar shards in the layout of webdataset, on this machine or by URL: an image, and `.cls` or `.json`, each."""

    kind: Literal["shards"] = "shards"
    train: str = Field(
        description="paths or URLs, with ranges in braces (shard-{000..146}.tar) or, for paths, wildcards; or a folder"
    )
    validation: str | None = Field(
        None, description="held-out shards; null for a share of the samples of `train`, by hash of their names"
    )
    size: tuple[PositiveInt, PositiveInt] = Field((256, 256), description="height and width of the images, in pixels")
    crop: Literal["center", "random"] = Field("center", description="which part is kept of an image of another shape")
    label_key: str | None = Field(
        None, description="key of the class in each sample's .json; null for its .cls, or else its folder"
    )
    validation_share: ShareBelowOne = Field(0.05, description="share held out, where `validation` names no shards")
    streaming: StreamingConfig = Field(default_factory=StreamingConfig, description="reading from end to end")


class HubColumnsConfig(FrozenModel):
    """Which columns of a data set of the hub hold what."""

    image: str | None = Field(None, description="of encoded images; null for the one declared, or called, as such")
    label: str | None = Field(None, description="of classes; null for the one declared as such, if there is one")


class HubConfig(BaseDataConfig):
    """A data set that `datasets` reads: by name on the hub, or parquet, arrow and saved ones on this machine."""

    kind: Literal["hub"] = "hub"
    name: str = Field(
        description="on the hub; or a path to parquet or arrow files, a folder of them, or a saved data set"
    )
    configuration: str | None = Field(None, description="which one, where the data set has several")
    train: str = Field("train", description="the split to train on")
    validation: str | None = Field(
        None,
        description="the held-out split; null for `validation`, `val` or `valid`, or else a share of the rows by hash "
        "of their numbers",
    )
    columns: HubColumnsConfig = Field(default_factory=HubColumnsConfig, description="which columns hold what")
    size: tuple[PositiveInt, PositiveInt] = Field((256, 256), description="height and width of the images, in pixels")
    crop: Literal["center", "random"] = Field("center", description="which part is kept of an image of another shape")
    validation_share: ShareBelowOne = Field(0.05, description="share held out, where there is no held-out split")
    streaming: StreamingConfig = Field(
        default_factory=StreamingConfig, description="reading from end to end, rather than downloading all of it first"
    )


DataConfig = Annotated[
    DigitsConfig
    | PhotosConfig
    | FolderConfig
    | ArrayConfig
    | ShardsConfig
    | HubConfig
    | WavesConfig
    | TonesConfig
    | VolumesConfig,
    Field(discriminator="kind", description="where the images come from"),
]
