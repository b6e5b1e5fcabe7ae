"""Arrays in safetensors or npz: images, signals or volumes as they are, or encoded pictures, and labels."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.data.augmentation import Augmentation
from hvq.data.pictures import READ_ERRORS, convert, decode, fit, to_picture, to_tensor
from hvq.data.signals import cropped, to_signal
from hvq.data.sources import UNAUGMENTED, ImageSource, Indices, Sources, checked_labels
from hvq.data.splits import MOST_CLASSES
from hvq.errors import CheckpointError, DataError
from hvq.files import read_tensors

_IMAGE_AXES = 2


@dataclass(frozen=True)
class ImageArray:
    """What an array file holds, checked.

    Attributes:
        path: the file.
        images: uint8 `[N, C, H, W]`, or `None` where pictures are encoded; of signals and volumes, `[N, C, *axes]` of
            the type that the file has.
        encoded: encoded pictures, one behind the other, uint8 `[bytes]`; empty where there are `images`.
        offsets: int64 `[N + 1]`; picture i is `prefix + encoded[offsets[i] : offsets[i + 1]]`.
        prefix: bytes that all encoded pictures begin with.
        labels: integers `[N]`, or `None`.
        classes: names of the classes where the file gives them, or `()`.
    """

    path: Path
    images: Tensor | None
    encoded: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    prefix: bytes
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.images is None else len(self.images)


class ArrayImages(ImageSource):
    """Images of an array file; encoded pictures are decoded together when the first of them is wanted, and kept.

    Args:
        array: what the file holds.
        classes: names of the classes, in the order of labels.
        size: height and width, in pixels; images of another size are resized to cover it, and cropped at the center. Of
            one axis or three, the size of the part that is taken of signals and volumes: as a function of (seed, epoch,
            index) where there is an epoch, at the center otherwise.
        channels: C, 1 for grey or 3 for RGB; of signals and volumes as many as the file has.
        augmentation: random changes to images that are fetched with an epoch; none by default.
        seed: of the augmentation.
    """

    def __init__(
        self,
        array: ImageArray,
        *,
        classes: tuple[str, ...] = (),
        size: tuple[int, ...] = (32, 32),
        channels: int = 3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(size=size, channels=channels, classes=classes, augmentation=augmentation, seed=seed)
        if len(size) != _IMAGE_AXES:
            _require_room(array, channels, size)
        self._array = array
        self._labels = _labels_of(array, array.labels, len(classes))

    def __len__(self) -> int:
        return len(self._array)

    @cached_property
    def _pixels(self) -> Tensor:
        given = self._array.images
        if given is not None and given.shape[1:] == (self.channels, *self.size):
            return given
        pixels = torch.empty(len(self), self.channels, *self.size, dtype=torch.uint8)
        for index in range(len(self)):
            pixels[index] = self._decoded(index) if given is None else self._converted(given[index])
        return pixels

    def _converted(self, image: Tensor) -> Tensor:
        return to_tensor(fit(convert(to_picture(image), self.channels), self.size))

    def _decoded(self, index: int) -> Tensor:
        array = self._array
        start, end = array.offsets[index : index + 2]
        try:
            data = array.prefix + array.encoded[start:end].tobytes()
            return decode(data, size=self.size, channels=self.channels)
        except READ_ERRORS as error:
            raise DataError(
                f"picture {index} of {array.path} cannot be decoded ({error}); write the file anew"
            ) from None

    def picture(self, index: int, position: tuple[float, ...]) -> Tensor:
        """Image `index`; images are resized and cropped once, when they are read."""
        if len(self.size) == _IMAGE_AXES:
            return self._pixels[index]
        assert self._array.images is not None
        return to_signal(cropped(self._array.images[index], self.size, position))

    def positions(self, indices: Indices, epochs: Indices) -> NDArray[np.float64]:
        """Of signals and volumes random ones where there is an epoch; the center otherwise."""
        center = super().positions(indices, epochs)
        if len(self.size) == _IMAGE_AXES:
            return center
        return np.where(epochs[:, None] == UNAUGMENTED, center, self.random_positions(indices, epochs))

    def label(self, index: int) -> int:
        """Index of the class of image `index`; -1 where it is unknown."""
        return -1 if self._labels is None else int(self._labels[index])

    def content(self, index: int) -> bytes:
        """The pixels, or the encoded picture."""
        array = self._array
        if array.images is not None:
            return array.images[index].numpy().tobytes()
        return array.encoded[slice(*array.offsets[index : index + 2])].tobytes()

    def name(self, index: int) -> str:
        """Name of the file, and the row."""
        return f"{self._array.path.stem}/{index}"


def array_sources(
    train: str | Path,
    validation: str | Path,
    *,
    size: tuple[int, ...] = (32, 32),
    channels: int = 3,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> Sources:
    """Images, signals or volumes of two array files, safetensors or npz.

    A file holds `images`, uint8 `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` with 1 or 3 channels; or, for pictures
    of any format that Pillow reads, `jpeg_bytes` uint8, `offsets` `[N + 1]`, and where all begin alike `jpeg_prefix`,
    such that picture i is `jpeg_prefix + jpeg_bytes[offsets[i]:offsets[i + 1]]`. Where `size` has one length, `images`
    are signals `[N, T]` or `[N, C, T]`; where it has three, volumes `[N, X, Y, Z]` or `[N, C, X, Y, Z]`: floating point
    in [-1, 1], int16 (over 32,768), or uint8 (0 is -1, 255 is 1). Beside them, `labels` `[N]` if there are any. Names
    of the classes are a JSON list `classes` in the metadata of a safetensors file, by default "0", "1" and so on.

    Args:
        train: file with the training images.
        validation: file with the held-out images.
        size: height and width, in pixels; images of another size are resized to cover it, and cropped at the center. Of
            signals [T] and of volumes [X, Y, Z], which are cropped: at random while training, else at the center.
        channels: 1 for grey, 3 for RGB; images are converted. Of signals and volumes as many as the file has.
        augmentation: random changes to training images; none by default.
        seed: of the augmentation.

    Raises:
        DataError: where a file is missing or damaged, or does not hold what is said above.
    """
    arrays = [read_image_array(Path(path), axes=len(size)) for path in (train, validation)]
    classes = _common_classes(*arrays)
    first, second = (
        ArrayImages(array, classes=classes, size=size, channels=channels, augmentation=changes, seed=seed)
        for array, changes in zip(arrays, (augmentation, None), strict=True)
    )
    return Sources(train=first, validation=second)


def _common_classes(train: ImageArray, validation: ImageArray) -> tuple[str, ...]:
    if train.labels is None or validation.labels is None:
        if train.labels is not validation.labels:
            raise DataError(f"{train.path} and {validation.path} must both have labels, or neither; one has none")
        return ()
    if train.classes and validation.classes and train.classes != validation.classes:
        raise DataError(f"{train.path} and {validation.path} must name the same classes; theirs differ")
    largest = max(int(labels.max()) for labels in (train.labels, validation.labels))
    return train.classes or validation.classes or tuple(str(label) for label in range(largest + 1))


def read_image_array(path: Path, axes: int = _IMAGE_AXES) -> ImageArray:
    """What a safetensors or npz file of images holds, without decoding encoded pictures.

    Args:
        path: of the file.
        axes: 2 of images, 1 of signals, 3 of volumes.

    Raises:
        DataError: where it is missing or damaged, or does not hold what `array_sources` says.
    """
    arrays, classes = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
    if "images" in arrays:
        given = arrays["images"]
        images: Tensor | None = _channels_first(given, path) if axes == _IMAGE_AXES else _signals(given, path, axes)
        encoded, offsets, prefix = np.zeros(0, np.uint8), np.zeros(1, np.int64), b""
    elif "jpeg_bytes" in arrays and "offsets" in arrays and axes == _IMAGE_AXES:
        images = None
        encoded, offsets, prefix = _checked_encoding(arrays, path)
    else:
        found = ", ".join(sorted(arrays)) or "nothing"
        encoded_too = ", or `jpeg_bytes` and `offsets`" * (axes == _IMAGE_AXES)
        raise DataError(f"{path} must hold `images`{encoded_too}; it holds {found}")
    array = ImageArray(path, images, encoded, offsets, prefix, None, classes)
    if not len(array):
        raise DataError(f"{path} must hold at least one image; it holds none")
    return replace(array, labels=_labels_of(array, arrays.get("labels"), len(classes) or MOST_CLASSES))


def _labels_of(array: ImageArray, labels: NDArray[Any] | None, classes: int) -> NDArray[np.int64] | None:
    try:
        return checked_labels(labels, len(array), classes)
    except DataError as error:
        raise DataError(f"{array.path}: {error}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    try:
        tensors, metadata = read_tensors(path, "array of images")
    except CheckpointError as error:
        raise DataError(str(error)) from None
    try:
        classes = json.loads(metadata.get("classes", "[]"))
    except json.JSONDecodeError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"`classes` in the metadata of {path} must be a JSON list of names")
    return {name: _as_array(name, tensor, path) for name, tensor in tensors.items()}, tuple(classes)


def _as_array(name: str, tensor: Tensor, path: Path) -> NDArray[Any]:
    try:
        return tensor.numpy()
    except TypeError:
        raise DataError(f"`{name}` of {path} must be of a type that NumPy has; received {tensor.dtype}") from None


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    if path.suffix != ".npz":
        raise DataError(f"an array of images must be a file .safetensors or .npz; received {path}")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array without a name, as np.save writes it")
        with file:
            return {name: file[name] for name in file.files}, ()
    except FileNotFoundError:
        raise DataError(f"no array of images at {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"array of images at {path} is damaged or is not an npz file of plain arrays: {error}"
        ) from None


def _channels_first(images: NDArray[Any], path: Path) -> Tensor:
    shapes = "uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"
    if images.dtype == np.uint8 and 0 not in images.shape[1:]:
        if images.ndim == 3:
            return torch.from_numpy(images)[:, None]
        if images.ndim == 4 and images.shape[3] in (1, 3):
            return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        if images.ndim == 4 and images.shape[1] in (1, 3):
            return torch.from_numpy(images)
    raise DataError(f"`images` of {path} must be {shapes}; received {images.dtype} {list(images.shape)}")


def _signals(values: NDArray[Any], path: Path, axes: int) -> Tensor:
    """Signals or volumes `[N, C, *axes]` of the type that they have, once they are known to lie in [-1, 1]."""
    letters = {1: "T", 3: "X, Y, Z"}[axes]
    known = values.dtype in (np.uint8, np.int16, np.float16, np.float32, np.float64)
    if not known or values.ndim not in (1 + axes, 2 + axes) or 0 in values.shape[1:]:
        raise DataError(
            f"`images` of {path} must be floating point, int16 or uint8 [N, {letters}] or [N, C, {letters}], since "
            f"data.size has {axes} length(s); received {values.dtype} {list(values.shape)}"
        )
    if values.dtype.kind == "f" and values.size:
        low, high = float(values.min()), float(values.max())
        # NaN is neither at least -1 nor at most 1.
        if not (low >= -1 and high <= 1):
            raise DataError(
                f"`images` of {path} must lie in [-1, 1]; received values in [{low:.3g}, {high:.3g}]: rescale them"
            )
    tensor = torch.from_numpy(values)
    return tensor.unsqueeze(1) if values.ndim == 1 + axes else tensor


def _require_room(array: ImageArray, channels: int, size: Sequence[int]) -> None:
    assert array.images is not None
    found = tuple(array.images.shape[1:])
    if found[0] != channels or any(there < wanted for there, wanted in zip(found[1:], size, strict=True)):
        raise DataError(
            f"`images` of {array.path} must have {channels} channel(s), as data.channels says, and at least data.size, "
            f"{'x'.join(map(str, size))}; they have {found[0]}, and {'x'.join(map(str, found[1:]))}"
        )


def _checked_encoding(
    arrays: dict[str, NDArray[Any]], path: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64], bytes]:
    encoded, offsets = arrays["jpeg_bytes"], arrays["offsets"]
    prefix = arrays.get("jpeg_prefix", np.zeros(0, np.uint8))
    if any(part.dtype != np.uint8 or part.ndim != 1 for part in (encoded, prefix)):
        raise DataError(f"`jpeg_bytes` and `jpeg_prefix` of {path} must be uint8 of one dimension")
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or not len(offsets):
        raise DataError(f"`offsets` of {path} must be integers [N + 1]; received {offsets.dtype} {list(offsets.shape)}")
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(encoded) or (np.diff(offsets) < 0).any():
        raise DataError(f"`offsets` of {path} must rise from 0 to at most {len(encoded)}, the length of `jpeg_bytes`")
    return encoded, offsets, prefix.tobytes()
