"""Images that lie encoded somewhere, and are decoded when they are fetched: what all such kinds of data share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hvq.data.augmentation import Augmentation
from hvq.data.pictures import READ_ERRORS, decode
from hvq.data.sources import UNAUGMENTED, ImageSource, Indices, checked_labels
from hvq.errors import DataError, HVQError

Crop = Literal["center", "random"]


class EncodedOptions(TypedDict, total=False):
    """What all encoded images are told, with the defaults of `EncodedImages`.

    Attributes:
        labels: the class of each image; `None` without classes.
        classes: names of the classes, in the order of labels.
        size: height and width to which images are resized and cropped, in pixels.
        channels: C, 1 for grey or 3 for RGB.
        crop: which part is kept of an image of another shape; "random" by (seed, epoch, index), and the center without
            an epoch.
        skipped: names of images that are left out because they cannot be read.
        augmentation: random changes to images that are fetched with an epoch; none by default.
        seed: of crops and augmentation.
        origin: what tells the data as a whole from others, where neither names nor `content` do.
    """

    labels: Sequence[int] | Indices | None
    classes: Sequence[str]
    size: tuple[int, int]
    channels: int
    crop: Crop
    skipped: Sequence[str]
    augmentation: Augmentation | None
    seed: int
    origin: str


class EncodedImages(ImageSource):
    """Encoded images, by name. A kind of data gives `open_image`, and `where` for its errors.

    Args:
        names: what a person calls each image, such as its relative path.
        options: `EncodedOptions`.
    """

    def __init__(
        self,
        names: Sequence[str] | NDArray[np.str_] | NDArray[np.bytes_],
        *,
        labels: Sequence[int] | Indices | None = None,
        classes: Sequence[str] = (),
        size: tuple[int, int] = (256, 256),
        channels: int = 3,
        crop: Crop = "center",
        skipped: Sequence[str] = (),
        augmentation: Augmentation | None = None,
        seed: int = 0,
        origin: str = "",
    ) -> None:
        super().__init__(
            size=size, channels=channels, classes=classes, skipped=skipped, augmentation=augmentation, seed=seed
        )
        # One array rather than many objects, whose counts would be written to, and their pages copied, in each worker.
        self._names = names_array(names)
        self._labels = checked_labels(labels, len(names), len(self.classes))
        self._crop = crop
        self._origin = origin

    def __len__(self) -> int:
        return len(self._names)

    def settings(self) -> dict[str, Any]:
        """What the pixels of an image depend on besides the image, as plain values."""
        origin = {"origin": self._origin} if self._origin else {}
        return {**super().settings(), "crop": self._crop, **origin}

    def positions(self, indices: Indices, epochs: Indices) -> NDArray[np.float64]:
        """Random ones where the crop is random and there is an epoch; the center otherwise."""
        center = super().positions(indices, epochs)
        if self._crop == "center":
            return center
        return np.where(epochs[:, None] == UNAUGMENTED, center, self.random_positions(indices, epochs))

    @abstractmethod
    def open_image(self, index: int) -> BinaryIO:
        """The encoded image `index`, to be read once.

        Raises:
            OSError: where it cannot be read.
            DataError: where it is not what it was when the run began.
        """

    @abstractmethod
    def where(self, index: int) -> tuple[str, str]:
        """Where image `index` lies, and the way out where it cannot be read."""

    def picture(self, index: int, position: tuple[float, ...]) -> Tensor:
        """Image `index`, read and decoded.

        Raises:
            DataError: where it has gone or changed, or turns out to be damaged behind a sound beginning and end.
        """
        return self.decoded(index, lambda: self.open_image(index), position)

    def decoded(self, index: int, open_image: Callable[[], BinaryIO], position: tuple[float, ...]) -> Tensor:
        """`picture`, of an encoded image that is had from elsewhere."""
        try:
            with open_image() as file:
                return decode(file, size=self.size, channels=self.channels, position=position)
        except HVQError:
            raise
        except READ_ERRORS as error:
            place, way_out = self.where(index)
            raise DataError(f"image {place} cannot be read ({error}); {way_out}") from None

    def label(self, index: int) -> int:
        """Index of the class of image `index`; -1 where it is unknown."""
        return -1 if self._labels is None else int(self._labels[index])

    def name(self, index: int) -> str:
        """What image `index` was called when the source was made."""
        return bytes(self._names[index]).decode("utf-8", "surrogateescape")


def names_array(names: Sequence[str] | NDArray[np.str_] | NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Names as an array of UTF-8, which sorts as the names do.

    >>> names_array(["a", "häh"]).dtype
    dtype('S4')
    """
    if isinstance(names, np.ndarray) and names.dtype.kind == "S":
        return names.astype(np.bytes_, copy=False)
    return np.array([str(name).encode("utf-8", "surrogateescape") for name in names], np.bytes_)
