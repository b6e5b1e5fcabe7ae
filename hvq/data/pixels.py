"""Bytes, the unit range of people and metrics, and the range [-1, 1] of models."""

from __future__ import annotations

import torch
from torch import Tensor


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
