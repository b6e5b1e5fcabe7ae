"""What lies beside exported models, and says how they are called."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hvq.autoencoders import Autoencoder
from hvq.config_base import FrozenModel
from hvq.export.modules import codes_name

Format = Literal["onnx", "torch_export"]
EXPORT_VERSION: Literal[1] = 1
ENDINGS: dict[Format, str] = {"onnx": "onnx", "torch_export": "pt2"}
IMAGES = "images"
# What the axes of images are called where they may have any length; of signals, and of volumes.
AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
# An axis of a tensor: its length, or how it hangs on what the caller chooses, such as `batch` and `8*height`.
Axis = PositiveInt | str


class Port(FrozenModel):
    """An input or output."""

    dtype: Literal["float32", "int64"]
    shape: tuple[Axis, ...] = Field(description="`batch` is 1 or more, `height`, `width` and so on are 2 or more")
    range: tuple[float, float] | tuple[int, int] = Field(description="least and greatest value")


class ExportedModel(FrozenModel):
    """One of the two files."""

    file: str
    inputs: dict[str, Port]
    outputs: dict[str, Port]


class ExportedLevel(FrozenModel):
    """What the codes of a level are."""

    codebook_size: PositiveInt = Field(description="K; codes go from 0 to K - 1")
    codes_per_position: PositiveInt = Field(description="G, on the last axis of codes where it is more than one")
    stride: PositiveInt = Field(description="pixels per code and axis")


class Agreement(FrozenModel):
    """How the files and the autoencoder compared, on random images and codes."""

    codes: PositiveInt = Field(description="that were compared")
    differing_codes: NonNegativeInt = Field(description="of those; two may be nearest but for rounding")
    image_error: float = Field(description="largest difference of a pixel, of images in [0, 1]")


class ExportDescription(FrozenModel):
    """`export.json`: names, shapes and ranges of all that goes in and comes out.

    Images are in [0, 1] on both sides, those that are decoded cut to it; the models inside work in [-1, 1].
    """

    format_version: Literal[1] = EXPORT_VERSION
    format: Format
    image_size: tuple[PositiveInt, ...] = Field(description="H and W that it was exported at, or one or three lengths")
    channels: PositiveInt = Field(description="C of the images")
    dynamic_size: bool = Field(description="whether sides may be any multiples of the coarsest stride, from two on")
    levels: dict[str, ExportedLevel] = Field(description="coarse to fine")
    encoder: ExportedModel
    decoder: ExportedModel
    agreement: Agreement | None = Field(None, description="None where nothing could run the files")


def describe(
    autoencoder: Autoencoder, *, format: Format, image_size: tuple[int, ...], channels: int, dynamic_size: bool
) -> ExportDescription:
    """What the files of an export will take and give."""
    coarsest = max(autoencoder.strides.values())
    axes = AXES[len(image_size)]
    size = _named(coarsest, axes) if dynamic_size else image_size
    images = {IMAGES: Port(dtype="float32", shape=("batch", channels, *size), range=(0.0, 1.0))}
    grids = autoencoder.grids(image_size)
    codes = {}
    for level, quantizer in autoencoder.quantizers.items():
        grid = _named(coarsest // autoencoder.strides[level], axes) if dynamic_size else grids[level]
        codes[codes_name(level)] = Port(
            dtype="int64", shape=("batch", *grid, *quantizer.code_shape), range=(0, quantizer.codebook_size - 1)
        )
    ending = ENDINGS[format]
    return ExportDescription(
        format=format,
        image_size=image_size,
        channels=channels,
        dynamic_size=dynamic_size,
        levels=_levels(autoencoder),
        encoder=ExportedModel(file=f"encoder.{ending}", inputs=images, outputs=codes),
        decoder=ExportedModel(file=f"decoder.{ending}", inputs=codes, outputs=images),
    )


def _named(factor: int, axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name if factor == 1 else f"{factor}*{name}" for name in axes)


def _levels(autoencoder: Autoencoder) -> dict[str, ExportedLevel]:
    return {
        level: ExportedLevel(
            codebook_size=quantizer.codebook_size,
            codes_per_position=quantizer.codes_per_position,
            stride=autoencoder.strides[level],
        )
        for level, quantizer in autoencoder.quantizers.items()
    }
