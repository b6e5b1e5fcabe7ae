"""Random changes to training images: flip, shift, rotation and scale, drawn by (seed, epoch, sample index)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hvq.errors import ConfigurationError
from hvq.randomness import uniform


class Augmentation:
    """Changes images by amounts that are a function of (seed, epoch, index), never of the batch they come in.

    Shift, rotation and scale are one bilinear resampling about the center of the image; beyond its edges the image goes
    on with its border pixels. A flip moves pixels without resampling them.

    Args:
        flip: mirror left to right, half of the time.
        shift: largest shift in each direction, in pixels.
        rotation: largest rotation, in degrees.
        scale: largest relative change of size, from 0 to below 1; 0.1 means 0.9 to 1.1 times.

    Raises:
        ConfigurationError: where an amount is negative, or scale is 1 or more.

    >>> augmentation = Augmentation(flip=True, rotation=5.0)
    >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> augmentation(images, seed=0, indices=np.array([3, 7]), epochs=np.array([0, 0])).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(self, *, flip: bool = False, shift: float = 0.0, rotation: float = 0.0, scale: float = 0.0) -> None:
        if min(shift, rotation, scale) < 0 or scale >= 1:
            raise ConfigurationError(
                "augmentation takes shift and rotation from 0 up, and scale from 0 to below 1; "
                f"received shift {shift}, rotation {rotation}, scale {scale}"
            )
        self.flip = flip
        self.shift = shift
        self.rotation = rotation
        self.scale = scale

    def __call__(self, images: Tensor, *, seed: int, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> Tensor:
        """The changed images.

        Args:
            images: uint8 `[B, C, H, W]`.
            seed: of the run.
            indices: `[B]`, the position of each image in its source.
            epochs: `[B]`, the pass over the source that each belongs to.

        Returns:
            uint8 `[B, C, H, W]`; the same tensor where nothing is to be changed.
        """
        if self.flip:
            chosen = torch.from_numpy(uniform(seed, epochs, indices, "flip") < 0.5)
            images = torch.where(chosen[:, None, None, None], images.flip(-1), images)
        if not (self.shift or self.rotation or self.scale):
            return images
        grid = self._sampling_grid(images, seed, indices, epochs)
        changed = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return changed.round_().clamp_(0, 255).to(torch.uint8)

    def _sampling_grid(
        self, images: Tensor, seed: int, indices: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> Tensor:
        """Where each pixel is taken from, `[B, H, W, 2]`, in the units of `grid_sample` (x first, -1 to 1)."""

        def amount(purpose: str, largest: float) -> Tensor:
            drawn = (2 * uniform(seed, epochs, indices, purpose) - 1) * largest
            return torch.from_numpy(drawn).float()[:, None, None]

        height, width = images.shape[-2:]
        y = (torch.arange(height) - (height - 1) / 2)[:, None] - amount("shift down", self.shift)
        x = (torch.arange(width) - (width - 1) / 2)[None, :] - amount("shift right", self.shift)
        angle = torch.deg2rad(amount("rotation", self.rotation))
        factor = 1 + amount("scale", self.scale)
        # The inverse of "turn and enlarge": it leads from a pixel of the result back to one of the image. Written out
        # elementwise in pixels, so that images that are not square turn without shear.
        cosine, sine = angle.cos() / factor, angle.sin() / factor
        return torch.stack(((cosine * x + sine * y) * (2 / width), (cosine * y - sine * x) * (2 / height)), -1)
