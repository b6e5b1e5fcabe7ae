"""An autoencoder to a folder of two files, and JSON that says how they are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.export import ExportedProgram

from hvq.autoencoders import Autoencoder
from hvq.errors import ConfigurationError
from hvq.export.agreement import Run, require_agreement
from hvq.export.description import IMAGES, ExportDescription, ExportedModel, Format, describe
from hvq.export.modules import CodesToImages, ImagesToCodes
from hvq.export.onnx_models import OnnxModel, can_run, require_packages, save_onnx
from hvq.export.programs import export_program
from hvq.files import write_folder, write_json

DESCRIPTION = "export.json"


def export_autoencoder(
    autoencoder: Autoencoder,
    folder: Path,
    *,
    image_size: Sequence[int],
    channels: int,
    format: Format = "onnx",
    dynamic_size: bool = False,
) -> ExportDescription:
    """Write `encoder` (images to codes) and `decoder` (codes to images), for any batch, and `export.json` beside them.

    Images are float32 `[B, C, H, W]` in [0, 1] on both sides, codes int64 `codes_<level>` `[B, h, w]` (`[B, h, w, G]`
    where positions have several). Codes are those that `Autoencoder.encode` gives but where two are nearest save for
    rounding, in float32 and in another order of summing. The search holds all distances at once, B·h·w·K numbers.

    What is written is run once beside the autoencoder, on random images and codes; ONNX where onnxruntime is installed.

    Args:
        autoencoder: on the CPU, in float32.
        folder: is made, or an export in it replaced.
        image_size: (H, W) of the images.
        channels: C.
        format: "onnx", or "torch_export" for what `torch.export.load` reads.
        dynamic_size: images whose sides are any multiples of the coarsest stride, from two on, rather than of
            `image_size` alone, which may be any (they are padded and cropped within).

    Raises:
        ConfigurationError: where a level has no codes, a format is unknown, a package is missing, the folder holds
            something else, or a network of one's own cannot be exported.
        DataError: where images are smaller than the coarsest stride.
        HVQError: where what was exported does not say what the autoencoder says, or it cannot be written.
    """
    if format not in get_args(Format):
        raise ConfigurationError(f"format must be {' or '.join(get_args(Format))}; received {format}")
    autoencoder.require_codes("an export")
    _require_free(folder)
    if format == "onnx":
        require_packages()
    autoencoder = autoencoder.eval()
    description = describe(
        autoencoder, format=format, image_size=tuple(image_size), channels=channels, dynamic_size=dynamic_size
    )
    encoder = export_program(ImagesToCodes(autoencoder), description.encoder.inputs, "encoder")
    size = None if dynamic_size else tuple(image_size)
    decoder = export_program(CodesToImages(autoencoder, size), description.decoder.inputs, "decoder", joined=True)
    checked: list[ExportDescription] = []

    def write(partial: Path) -> None:
        encode = _save(partial, encoder, description.encoder, format)
        decode = _save(partial, decoder, description.decoder, format)
        checked.append(_checked(autoencoder, description, encode, decode))
        write_json(partial / DESCRIPTION, checked[0].model_dump(mode="json"))

    write_folder(folder, write)
    return checked[0]


def _require_free(folder: Path) -> None:
    """What stands in a folder gives way to the new export, so it has to be one."""
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there and is not an export; name a folder that is new or empty")


def _save(folder: Path, program: ExportedProgram, model: ExportedModel, format: Format) -> Run | None:
    """Write one file; returns what runs it, where that can be had."""
    path = folder / model.file
    if format == "onnx":
        save_onnx(path, program, model)
        return OnnxModel(path) if can_run() else None
    torch.export.save(program, path)
    return _by_name(program)


def _by_name(program: ExportedProgram) -> Run:
    module = program.module()

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        return module(inputs[IMAGES]) if IMAGES in inputs else {IMAGES: module(inputs)}

    return run


def _checked(
    autoencoder: Autoencoder, description: ExportDescription, encode: Run | None, decode: Run | None
) -> ExportDescription:
    if encode is None or decode is None:
        return description
    agreement = require_agreement(autoencoder, description, encode=encode, decode=decode)
    return description.model_copy(update={"agreement": agreement})
