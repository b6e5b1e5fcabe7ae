"""Random crops of the photographs that scikit-image ships; whole photographs are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hvq.data.augmentation import Augmentation
from hvq.data.pictures import convert, fit, to_tensor
from hvq.data.sources import ImageSource, Indices, Sources
from hvq.errors import DataError
from hvq.extras import require_package

# Of the pictures that need no download, those that a camera took of a scene. Of the motorcycle's stereo pair only the
# left one, since the other shows the same.
TRAINING_PHOTOS = (
    "astronaut",
    "brick",
    "cat",
    "clock",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "rocket",
    "stereo_motorcycle",
)
HELD_OUT_PHOTOS = ("camera", "coffee")


class PhotoCrops(ImageSource):
    """Crops of photographs at places that are a function of (seed, epoch, index).

    Args:
        photos: grey or RGB pictures; those smaller than the crop are enlarged to cover it.
        names: what a person calls each of them.
        size: height and width of the crops, in pixels.
        channels: C, 1 for grey or 3 for RGB.
        crops_per_photo: crops of each photograph that make up an epoch.
        augmentation: random changes to crops that are fetched with an epoch; none by default.
        seed: of crops and augmentation.

    >>> source = PhotoCrops([Image.new("RGB", (7, 5))], ["sky"], size=(2, 3), crops_per_photo=11)
    >>> len(source), source.image(10, epoch=0).shape, source.name(10)
    (11, torch.Size([3, 2, 3]), 'sky/10')
    """

    def __init__(
        self,
        photos: Sequence[Image.Image],
        names: Sequence[str],
        *,
        size: tuple[int, int] = (64, 64),
        channels: int = 3,
        crops_per_photo: int = 64,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(size=size, channels=channels, augmentation=augmentation, seed=seed)
        self._photos = [_covering(convert(photo, channels), size) for photo in photos]
        self._names = tuple(names)
        self._crops_per_photo = crops_per_photo

    def __len__(self) -> int:
        return len(self._photos) * self._crops_per_photo

    def positions(self, indices: Indices, epochs: Indices) -> NDArray[np.float64]:
        """Random ones; without an epoch, the same for ever."""
        return self.random_positions(indices, epochs)

    def picture(self, index: int, position: tuple[float, ...]) -> Tensor:
        """A crop at `position`, pixel for pixel."""
        photo = self._photos[index // self._crops_per_photo]
        height, width = self.size
        top = min(int(position[0] * (photo.height - height + 1)), photo.height - height)
        left = min(int(position[1] * (photo.width - width + 1)), photo.width - width)
        return to_tensor(photo.crop((left, top, left + width, top + height)))

    def label(self, index: int) -> int:
        """-1: photographs have no classes."""
        return -1

    def name(self, index: int) -> str:
        """Name of the photograph, and the number of the crop."""
        photo, crop = divmod(index, self._crops_per_photo)
        return f"{self._names[photo]}/{crop}"


def _covering(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    if photo.height >= size[0] and photo.width >= size[1]:
        return photo
    scale = max(size[0] / photo.height, size[1] / photo.width)
    return fit(photo, (max(size[0], round(photo.height * scale)), max(size[1], round(photo.width * scale))))


def photo_sources(
    *,
    size: tuple[int, int] = (64, 64),
    channels: int = 3,
    crops_per_photo: int = 64,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> Sources:
    """Crops of the photographs that scikit-image ships; all crops of two of them are held out.

    Args:
        size: height and width of the crops, in pixels.
        channels: 1 for grey, 3 for RGB.
        crops_per_photo: crops of each photograph that make up an epoch.
        augmentation: random changes to training crops; none by default.
        seed: of crops and augmentation.

    Raises:
        DataError: where scikit-image is not installed, or no longer ships one of them.
    """

    def split(names: Sequence[str], changes: Augmentation | None) -> PhotoCrops:
        return PhotoCrops(
            [_photo(name) for name in names],
            names,
            size=size,
            channels=channels,
            crops_per_photo=crops_per_photo,
            augmentation=changes,
            seed=seed,
        )

    return Sources(train=split(TRAINING_PHOTOS, augmentation), validation=split(HELD_OUT_PHOTOS, None))


def _photo(name: str) -> Image.Image:
    shipped = require_package(
        "skimage.data", what="the photographs come with scikit-image", extra="data", error=DataError
    )
    try:
        pixels = getattr(shipped, name)()
    except (AttributeError, ImportError, OSError) as error:
        raise DataError(
            f"the installed scikit-image does not ship the photograph {name!r} ({error}); "
            "install the version that the constraints file names"
        ) from None
    return Image.fromarray(np.asarray(pixels[0] if isinstance(pixels, tuple) else pixels))
