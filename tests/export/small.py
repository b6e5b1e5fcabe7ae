"""Autoencoders that are quick to export, and how what they became is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder, Level
from hvq.quantizers import Quantizer
from tests.autoencoders.small import small_model

CHANNELS = 2
Half = Callable[..., Mapping[str, Tensor]]


def one_level(quantizer: Quantizer) -> Autoencoder:
    """A level of as few operations as there can be around a quantizer; images of 2 channels, 2 pixels per code."""
    level = Level(
        name="top",
        ratio=2,
        encoder=nn.Conv2d(CHANNELS, quantizer.code_dimension, 2, stride=2),
        projection=nn.Identity(),
        quantizer=quantizer,
        merge=None,
    )
    decoder = nn.ConvTranspose2d(quantizer.code_dimension, CHANNELS, 2, stride=2)
    return Autoencoder(levels=[level], decoder=decoder).eval()


def stack_of(quantizers: Mapping[str, Quantizer]) -> Autoencoder:
    """A level for each quantizer, all on one grid and of the same D, of few operations; images as above."""
    names, dimension = list(quantizers), next(iter(quantizers.values())).code_dimension
    levels = [
        Level(
            name=name,
            ratio=2 if name == names[-1] else 1,
            encoder=nn.Conv2d(CHANNELS, dimension, 2, stride=2)
            if name == names[-1]
            else nn.Conv2d(dimension, dimension, 1),
            projection=nn.Conv2d(dimension * (1 if name == names[0] else 2), dimension, 1),
            quantizer=quantizer,
            merge=None if name == names[-1] else nn.Conv2d(dimension * (1 if name == names[0] else 2), dimension, 1),
        )
        for name, quantizer in quantizers.items()
    ]
    return Autoencoder(levels=levels, decoder=nn.ConvTranspose2d(2 * dimension, CHANNELS, 2, stride=2)).eval()


def two_levels(**fields: str) -> Autoencoder:
    """Of 2 and 4 pixels per code, with grids, widths and codebooks that differ."""
    return small_model((2, 2), **fields).eval()


def onnx_half(path: Path) -> Half:
    """An ONNX file, run by onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def torch_half(path: Path) -> Half:
    """A file of `torch.export`, loaded by torch alone."""
    module = torch.export.load(path).module()

    def run(**inputs: Tensor) -> Mapping[str, Tensor]:
        return module(inputs["images"]) if "images" in inputs else {"images": module(inputs)}

    return run
