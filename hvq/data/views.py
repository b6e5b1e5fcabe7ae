"""Signals, images and volumes as pictures to look at, and what one calls them.

Letters: n samples, C channels, T values, H W picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hvq.data.pixels import kept_to_bytes

_NOUNS = {1: "signal", 2: "image", 3: "volume"}
# Of the picture of a signal: columns, each of the stretch that falls on it, and rows from 1 down to -1.
_COLUMNS, _ROWS = 192, 64
_INK, _PAPER = 40, 255


def noun(size: Sequence[int]) -> str:
    """What a person calls a sample of a size.

    >>> noun((2048,)), noun((32, 32)), noun((16, 16, 16))
    ('signal', 'image', 'volume')
    """
    return _NOUNS[len(size)]


def as_pictures(samples: Tensor) -> Tensor:
    """uint8 `[n, C, H, W]`: images as they are, of volumes the middle plane along the first axis, of signals the wave.

    Args:
        samples: as they are kept: uint8 `[n, C, H, W]`, or float32 `[n, C, T]` or `[n, C, X, Y, Z]` in [-1, 1].

    >>> as_pictures(torch.zeros(3, 2, 5, 7, 11)).shape, as_pictures(torch.zeros(3, 2, 13)).shape
    (torch.Size([3, 2, 7, 11]), torch.Size([3, 1, 64, 192]))
    """
    if samples.dim() == 5:
        samples = samples[:, :, samples.shape[2] // 2]
    return _waves(samples) if samples.dim() == 3 else kept_to_bytes(samples)


def _waves(signals: Tensor) -> Tensor:
    """Ink where a signal, the mean of its channels, passes: `[n, 1, 64, 192]`."""
    mean = signals.float().mean(dim=1, keepdim=True)
    upper = functional.adaptive_max_pool1d(mean, _COLUMNS)
    lower = -functional.adaptive_max_pool1d(-mean, _COLUMNS)
    # A line goes on from column to column without a gap.
    above, below = functional.pad(upper, (1, 0), mode="replicate"), functional.pad(lower, (1, 0), mode="replicate")
    upper, lower = torch.maximum(upper, below[..., :-1]), torch.minimum(lower, above[..., :-1])
    heights = 1 - (2 * torch.arange(_ROWS, device=signals.device) + 1) / _ROWS
    rows = heights[:, None]
    inked = (rows <= upper.unsqueeze(2) + 1 / _ROWS) & (rows >= lower.unsqueeze(2) - 1 / _ROWS)
    return torch.where(inked, _INK, _PAPER).to(torch.uint8)
