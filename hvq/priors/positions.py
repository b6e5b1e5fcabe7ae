"""Places on a grid as numbers: waves that are added to features, and angles that turn queries and keys.

Letters: T positions in raster order, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# The longest wave is this many times the shortest; grids of codes have tens of rows, not thousands.
_RANGE = 100.0


def grid_waves(grid: Sequence[int], channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, `[T, channels]`, for a grid of any size.

    Args:
        grid: (h, w), or any number of axes.
        channels: shared out over axes; what does not divide evenly stays zero.
        like: gives type and device.
    """
    angles = _angles(grid, channels // (2 * len(grid)), like.device)
    waves = torch.cat([wave(angle * (math.pi / 2)) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return functional.pad(waves, (0, channels - waves.shape[1])).to(like.dtype)


def grid_turns(grid: Sequence[int], width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[T, d / 2]` of rotary positions; each axis turns its share of the channels.

    Args:
        grid: (h, w), or any number of axes.
        width: d; what does not divide evenly is not turned.
        like: gives type and device.

    >>> cosines, sines = grid_turns((2, 3), 8, torch.zeros(()))
    >>> cosines.shape, sines[0].tolist()
    (torch.Size([6, 4]), [0.0, 0.0, 0.0, 0.0])
    """
    angles = torch.cat(_angles(grid, width // 2 // len(grid), like.device), dim=1)
    angles = functional.pad(angles, (0, width // 2 - angles.shape[1]))
    return angles.cos().to(like.dtype).contiguous(), angles.sin().to(like.dtype).contiguous()


def _angles(grid: Sequence[int], count: int, device: torch.device) -> list[Tensor]:
    """Place along each axis times each of `count` frequencies, `[T, count]`."""
    steps = torch.arange(count, device=device, dtype=torch.float64)
    frequencies = torch.exp(steps * (-math.log(_RANGE) / max(1, count)))
    axes = [torch.arange(length, device=device, dtype=torch.float64) for length in grid]
    return [axis.flatten().unsqueeze(1) * frequencies for axis in torch.meshgrid(*axes, indexing="ij")]
