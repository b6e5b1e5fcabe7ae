"""Signals and volumes as numbers in [-1, 1], and the part of them that is taken.

Letters: C channels, `*size` one or three axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvq.data.pixels import bytes_to_model

# Of PCM: the least value is -1.
_INT16_RANGE = 32_768


def to_signal(values: Tensor) -> Tensor:
    """float32 in [-1, 1] of uint8 (0 is -1, 255 is 1), of int16 (0 is 0), or of floating point that is so already.

    >>> to_signal(torch.tensor([-32768, 0, 16384], dtype=torch.int16)).tolist()
    [-1.0, 0.0, 0.5]
    """
    if values.dtype == torch.uint8:
        return bytes_to_model(values)
    return values.float() / _INT16_RANGE if values.dtype == torch.int16 else values.float()


def cropped(values: Tensor, size: Sequence[int], position: Sequence[float]) -> Tensor:
    """The part `[C, *size]` of `[C, *axes]`, no axis of which is shorter.

    Args:
        values: of any type.
        size: of the part.
        position: where it lies along each axis, from 0 (the beginning) to 1 (the end).

    >>> cropped(torch.arange(7)[None], (3,), (0.5,)).tolist()
    [[2, 3, 4]]
    """
    for axis, (length, share) in enumerate(zip(size, position, strict=True), start=1):
        free = values.shape[axis] - length
        values = values.narrow(axis, min(int(share * (free + 1)), free), length)
    return values
