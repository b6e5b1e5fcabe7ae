"""Bytes, the unit range of people and metrics, and the range [-1, 1] of models.

Samples of two axes are pictures, and are read, kept and written as bytes. Those of one axis or three, signals and
volumes, are float32 in [-1, 1], the range of models, in which 8 bits would be heard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BYTES_AXES = 2


def bytes_to_model(images: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 in [-1, 1].

    >>> bytes_to_model(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return images.to(torch.float32).div_(127.5).sub_(1)


def unit_to_model(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return images * 2 - 1


def model_to_unit(images: Tensor) -> Tensor:
    """[-1, 1], and what a model gives beyond it, to [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1)


def unit_to_bytes(images: Tensor) -> Tensor:
    """[0, 1] to uint8, rounded."""
    return images.mul(255).round().clamp(0, 255).to(torch.uint8)


def bytes_to_unit(images: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def kept_type(size: Sequence[int]) -> torch.dtype:
    """The type in which samples of a size are kept.

    >>> kept_type((32, 32)), kept_type((1024,))
    (torch.uint8, torch.float32)
    """
    return torch.uint8 if len(size) == _BYTES_AXES else torch.float32


def kept_to_model(samples: Tensor) -> Tensor:
    """Samples as they are kept to [-1, 1]."""
    return bytes_to_model(samples) if samples.dtype == torch.uint8 else samples


def kept_to_unit(samples: Tensor) -> Tensor:
    """Samples as they are kept to [0, 1]."""
    return bytes_to_unit(samples) if samples.dtype == torch.uint8 else model_to_unit(samples)


def kept_to_bytes(samples: Tensor) -> Tensor:
    """Samples as they are kept to uint8, which is for looking at them."""
    return samples if samples.dtype == torch.uint8 else unit_to_bytes(model_to_unit(samples))


def unit_to_kept(samples: Tensor) -> Tensor:
    """`[B, C, *size]` in [0, 1] to the type in which they are kept.

    >>> unit_to_kept(torch.tensor([[[0.0, 0.5, 1.0]]])).tolist()
    [[[-1.0, 0.0, 1.0]]]
    """
    if kept_type(samples.shape[2:]) == torch.uint8:
        return unit_to_bytes(samples)
    return unit_to_model(samples).float()
