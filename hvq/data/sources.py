"""Where images come from, behind one contract: a split with a length, and batches by index and epoch."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.data.augmentation import Augmentation
from hvq.data.pixels import kept_type
from hvq.errors import DataError
from hvq.randomness import uniform

Indices = NDArray[np.int64]

UNAUGMENTED = -1
"""Stands in `Batch.epochs` for "taken as it is": no augmentation, no crop that changes from epoch to epoch."""

BatchType_co = TypeVar("BatchType_co", covariant=True)


class BatchSource(Protocol[BatchType_co]):
    """What the loader needs of images or codes: how many there are, and any selection of them as one batch."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> BatchType_co:
        """The samples `indices [B]`, as they are in `epochs [B]`, or as they are without augmentation (`None`)."""
        ...


class SequentialReader(Protocol[BatchType_co]):
    """Reads a source whose samples lie one behind the other, as one iteration over it wants them.

    What it passes on the way to a sample it keeps if it has been told that it will be asked for; otherwise it goes
    back for it later. So what is told decides how fast it is, and nothing else.
    """

    def expect(self, indices: Indices) -> None:
        """Be told of samples `indices [n]` that will be fetched, once for each time that they will be."""
        ...

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> BatchType_co:
        """As `BatchSource.fetch`."""
        ...


def sequential_reader(source: BatchSource[BatchType_co]) -> SequentialReader[BatchType_co] | None:
    """A new reader of a source whose samples lie one behind the other; None for one that gives any sample at once."""
    make: Callable[[], Any] | None = getattr(source, "sequential_reader", None)
    return make() if make else None


@dataclass(frozen=True)
class Batch:
    """Images of one micro-batch, and what identifies each of them.

    Attributes:
        images: uint8 `[B, C, H, W]`, 0 to 255; of signals and volumes float32 `[B, C, *size]` in [-1, 1].
        labels: int64 `[B]`, the index of the class, -1 where it is unknown.
        indices: int64 `[B]`, the position in the source.
        epochs: int64 `[B]`, the pass over the source, `UNAUGMENTED` for images taken as they are.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    epochs: Tensor

    def __len__(self) -> int:
        return len(self.indices)


def epochs_or_unaugmented(epochs: Indices | None, count: int) -> Indices:
    """`epochs [B]`, or B times `UNAUGMENTED` for `None`."""
    return np.full(count, UNAUGMENTED, np.int64) if epochs is None else np.asarray(epochs, np.int64)


class ImageSource(ABC):
    """One split of a data set. A kind of data gives four methods: `__len__`, `picture`, `label` and `name`.

    Whatever is random about an image is a function of (seed, epoch, index): an image is the same alone, in any batch,
    and in any process.

    Args:
        size: height and width of the images, in pixels; (T) of signals, (X, Y, Z) of volumes.
        channels: C, 1 for grey or 3 for RGB; of signals and volumes any number.
        classes: names of the classes, in the order of labels; empty without labels.
        skipped: names of files that are left out because they cannot be read.
        augmentation: random changes to images that are fetched with an epoch; none by default.
        seed: of crops and augmentation.
    """

    def __init__(
        self,
        *,
        size: tuple[int, ...],
        channels: int,
        classes: Sequence[str] = (),
        skipped: Sequence[str] = (),
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.size = size
        self.channels = channels
        self.classes = tuple(classes)
        self.skipped = tuple(skipped)
        self.augmentation = augmentation or Augmentation()
        self.seed = seed

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def picture(self, index: int, position: tuple[float, ...]) -> Tensor:
        """Image `index` before augmentation, `[C, *size]` of `dtype`.

        Args:
            index: from 0 to `len(self) - 1`.
            position: where a crop lies along each axis, from 0 (top, left) to 1 (bottom, right).
        """

    @abstractmethod
    def label(self, index: int) -> int:
        """Index of the class of image `index`; -1 where it is unknown."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person calls image `index`, such as its relative path."""

    @property
    def dtype(self) -> torch.dtype:
        """Of images: uint8 of two axes, float32 of signals and volumes."""
        return kept_type(self.size)

    def positions(self, indices: Indices, epochs: Indices) -> NDArray[np.float64]:
        """Where each image is cropped along each axis, `[B, axes]`; the center, if a kind says nothing else.

        Args:
            indices: `[B]`.
            epochs: `[B]`, with `UNAUGMENTED` for images that are always to be the same.
        """
        return np.full((len(indices), len(self.size)), 0.5)

    def random_positions(self, indices: Indices, epochs: Indices) -> NDArray[np.float64]:
        """Positions `[B, axes]` in (0, 1) that are a function of (seed, epoch, index)."""
        purposes = ("crop right", "crop down", "crop behind")[: len(self.size)][::-1]
        drawn = [uniform(self.seed, epochs, indices, purpose) for purpose in purposes]
        return np.stack(drawn, axis=1)

    def settings(self) -> dict[str, Any]:
        """What the pixels of an image depend on besides the image, as plain values."""
        return {
            "kind": type(self).__name__,
            "size": list(self.size),
            "channels": self.channels,
            "seed": self.seed,
            "augmentation": vars(self.augmentation),
        }

    def content(self, index: int) -> bytes:
        """What tells a changed image `index` from what it was, at little cost; nothing by default."""
        return b""

    def fingerprint(self, *, contents: bool = True) -> str:
        """A SHA-256 that two sources share where they give the same images in the same order: settings, names, classes.

        It reads no pixels of images on disk: the files of a folder are told by their names and sizes.

        Args:
            contents: whether `content` of every image is a part of it; for a folder that takes a look at every file.
        """
        digest = hashlib.sha256(json.dumps([self.settings(), self.classes], sort_keys=True).encode())
        for index in range(len(self)):
            digest.update(f"{index} {self.label(index)} {self.name(index)} ".encode(errors="surrogateescape"))
            if contents:
                digest.update(self.content(index))
        return digest.hexdigest()

    def image(self, index: int, epoch: int | None = None) -> Tensor:
        """One image, `[C, *size]`: as in `epoch`, or without augmentation and always the same (`None`)."""
        return self.fetch(np.array([index]), None if epoch is None else np.array([epoch])).images[0]

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> Batch:
        """Several images as one batch.

        Args:
            indices: `[B]`, each from 0 to `len(self) - 1`.
            epochs: `[B]`, the pass over the source that each belongs to; `None` for no augmentation.

        Raises:
            DataError: where an index is out of range, or an image cannot be read.
        """
        return self.assemble(indices, epochs, self.picture)

    def assemble(
        self, indices: Indices, epochs: Indices | None, picture: Callable[[int, tuple[float, ...]], Tensor]
    ) -> Batch:
        """`fetch`, of pictures that are had from elsewhere: by a function with the arguments of `self.picture`."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise DataError(f"image indices go from 0 to {len(self) - 1}; received {indices.min()} to {indices.max()}")
        passes = epochs_or_unaugmented(epochs, len(indices))
        images = torch.empty(len(indices), self.channels, *self.size, dtype=self.dtype)
        positions = self.positions(indices, passes).tolist()
        for row, (index, position) in enumerate(zip(indices.tolist(), positions, strict=True)):
            images[row] = picture(index, tuple(position))
        if epochs is not None:
            images = self.augmentation(images, seed=self.seed, indices=indices, epochs=passes)
        labels = torch.tensor([self.label(index) for index in indices.tolist()], dtype=torch.int64)
        return Batch(images, labels, torch.from_numpy(indices.copy()), torch.from_numpy(passes.copy()))


@dataclass(frozen=True)
class Sources:
    """The two splits of a data set; both have the same classes, channels and size."""

    train: ImageSource
    validation: ImageSource


class TensorImages(ImageSource):
    """Images that lie in memory, all of one size.

    Args:
        images: uint8 `[N, C, H, W]`, or float32 `[N, C, T]` or `[N, C, X, Y, Z]` in [-1, 1].
        labels: integers `[N]`; `None` where there are none.
        classes: names of the classes, in the order of labels.
        names: what a person calls each image; by default its index.
        augmentation: random changes to images that are fetched with an epoch; none by default.
        seed: of the augmentation.

    >>> source = TensorImages(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
    >>> source.fetch(np.array([4, 0])).images.shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        images: Tensor,
        *,
        labels: Sequence[int] | Indices | None = None,
        classes: Sequence[str] = (),
        names: Sequence[str] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        _, channels, *size = images.shape if images.ndim in (3, 4, 5) else (0, 0)
        if not size or images.dtype != kept_type(size):
            raise DataError(
                "images must be uint8 [N, C, H, W], or float32 [N, C, T] or [N, C, X, Y, Z] in [-1, 1]; received "
                f"{images.dtype} {list(images.shape)}"
            )
        super().__init__(size=tuple(size), channels=channels, classes=classes, augmentation=augmentation, seed=seed)
        self._images = images
        self._labels = checked_labels(labels, len(images), len(self.classes))
        self._names = names

    def __len__(self) -> int:
        return len(self._images)

    def picture(self, index: int, position: tuple[float, ...]) -> Tensor:
        """Image `index`, which needs no crop."""
        return self._images[index]

    def label(self, index: int) -> int:
        """Index of the class of image `index`; -1 where it is unknown."""
        return -1 if self._labels is None else int(self._labels[index])

    def content(self, index: int) -> bytes:
        """The pixels."""
        return self._images[index].numpy().tobytes()

    def name(self, index: int) -> str:
        """The name given for image `index`, or the index itself."""
        return str(index) if self._names is None else self._names[index]


def checked_labels(labels: Sequence[int] | Indices | None, images: int, classes: int) -> Indices | None:
    """Labels as int64 `[N]`, once they are known to fit.

    Args:
        labels: integers `[N]`, -1 where unknown, or `None`.
        images: N.
        classes: number of classes.

    Raises:
        DataError: where their number is not that of the images, or one names no class.

    >>> checked_labels([0, 1], 2, 2)
    array([0, 1])
    """
    if labels is None:
        return None
    values = np.asarray(labels)
    if values.shape != (images,) or values.dtype.kind not in "iu":
        raise DataError(
            f"labels must be {images} integers, one per image; received {values.dtype} {list(values.shape)}"
        )
    if images and not -1 <= int(values.min()) <= int(values.max()) < classes:
        raise DataError(
            f"labels of {classes} classes go from 0 to {classes - 1}, or are -1 where unknown; "
            f"received {values.min()} to {values.max()}"
        )
    return values.astype(np.int64)
