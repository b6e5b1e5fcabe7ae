"""The 1,797 scanned digits that scikit-learn ships (Alpaydin and Kaynak 1998), resized."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from hvq.data.augmentation import Augmentation
from hvq.data.pictures import convert, to_tensor
from hvq.data.sources import Sources, TensorImages
from hvq.errors import DataError
from hvq.extras import require_package

HELD_OUT_EVERY = 5


def digit_sources(
    *,
    size: tuple[int, int] = (32, 32),
    channels: int = 1,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> Sources:
    """Handwritten digits of 8x8 pixels and 17 shades, resized bilinearly; every fifth is held out.

    Args:
        size: height and width, in pixels.
        channels: 1 for grey, 3 for RGB with equal channels.
        augmentation: random changes to training images; none by default.
        seed: of the augmentation.

    Returns:
        1,437 training images and 360 held-out ones, of classes "0" to "9".

    Raises:
        DataError: where scikit-learn is not installed.
    """
    shipped = require_package(
        "sklearn.datasets", what="the digits come with scikit-learn", extra="data", error=DataError
    )
    digits = shipped.load_digits()
    shades = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = torch.stack([_resized(image, size, channels) for image in shades])
    indices = np.arange(len(images))
    held_out = indices % HELD_OUT_EVERY == 0

    def split(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], changes: Augmentation | None) -> TensorImages:
        return TensorImages(
            images[torch.from_numpy(chosen)],
            labels=digits.target[chosen],
            classes=[str(digit) for digit in range(10)],
            names=[f"digit-{index:04d}" for index in indices[chosen]],
            augmentation=changes,
            seed=seed,
        )

    return Sources(train=split(~held_out, augmentation), validation=split(held_out, None))


def _resized(
    shades: np.ndarray[tuple[int, int], np.dtype[np.uint8]], size: tuple[int, int], channels: int
) -> torch.Tensor:
    picture = Image.fromarray(shades).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return to_tensor(convert(picture, channels))
