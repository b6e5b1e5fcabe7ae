"""Any folder of images: subfolders are classes; a folder `validation`, or a hashed share of the files, is held out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hvq.data.augmentation import Augmentation
from hvq.data.pictures import READ_ERRORS, decode
from hvq.data.sources import UNAUGMENTED, ImageSource, Indices, Sources, checked_labels
from hvq.errors import DataError
from hvq.randomness import uniform

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
VALIDATION_FOLDERS = ("validation", "val")


class FolderImages(ImageSource):
    """Image files, decoded when they are fetched.

    Args:
        root: the folder that the paths are relative to.
        paths: relative paths with `/` between their parts, each of a readable image.
        labels: the class of each path; `None` without classes.
        classes: names of the classes, in the order of labels.
        size: height and width to which images are resized and cropped, in pixels.
        channels: C, 1 for grey or 3 for RGB.
        crop: which part is kept of an image of another shape; "random" by (seed, epoch, index), and the center without
            an epoch.
        skipped: paths that are left out because they cannot be read.
        augmentation: random changes to images that are fetched with an epoch; none by default.
        seed: of crops and augmentation.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        *,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        size: tuple[int, int] = (256, 256),
        channels: int = 3,
        crop: Literal["center", "random"] = "center",
        skipped: Sequence[str] = (),
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            size=size, channels=channels, classes=classes, skipped=skipped, augmentation=augmentation, seed=seed
        )
        self._root = root
        self._paths = np.array(paths, np.str_)
        self._labels = checked_labels(labels, len(paths), len(self.classes))
        self._crop = crop

    def __len__(self) -> int:
        return len(self._paths)

    def positions(self, indices: Indices, epochs: Indices) -> NDArray[np.float64]:
        """Random ones where the crop is random and there is an epoch; the center otherwise."""
        center = super().positions(indices, epochs)
        if self._crop == "center":
            return center
        return np.where(epochs[:, None] == UNAUGMENTED, center, self.random_positions(indices, epochs))

    def picture(self, index: int, position: tuple[float, float]) -> Tensor:
        """Image `index`, read from its file.

        Raises:
            DataError: where the file has gone, or turns out to be damaged behind a sound beginning and end.
        """
        path = self._root / self.name(index)
        try:
            return decode(path, size=self.size, channels=self.channels, position=position)
        except READ_ERRORS as error:
            raise DataError(
                f"image {path} cannot be read ({error}); remove or replace the file and start again"
            ) from None

    def settings(self) -> dict[str, Any]:
        """What the pixels of an image depend on besides its file."""
        return {**super().settings(), "crop": self._crop}

    def content(self, index: int) -> bytes:
        """The size of the file.

        Raises:
            DataError: where the file has gone.
        """
        path = self._root / self.name(index)
        try:
            return str(path.stat().st_size).encode()
        except OSError as error:
            raise DataError(f"image {path} cannot be read ({error.strerror}); put it back and start again") from None

    def label(self, index: int) -> int:
        """Index of the class of image `index`; -1 without classes."""
        return -1 if self._labels is None else int(self._labels[index])

    def name(self, index: int) -> str:
        """Relative path of the file."""
        return str(self._paths[index])


@dataclass(frozen=True)
class _Listing:
    """The files below one folder, by relative path, in alphabetical order."""

    root: Path
    readable: tuple[str, ...]
    skipped: tuple[str, ...]

    def within(self, top: str) -> _Listing:
        """What lies in the subfolder `top`, relative to it."""
        inside = tuple(_below(paths, top) for paths in (self.readable, self.skipped))
        return _Listing(self.root / top, *inside)

    def without(self, tops: Sequence[str]) -> _Listing:
        """What lies in none of the subfolders `tops`."""
        outside = (tuple(path for path in paths if _top(path) not in tops) for paths in (self.readable, self.skipped))
        return _Listing(self.root, *outside)

    def classes(self) -> tuple[str, ...]:
        """The subfolders directly below; none where an image lies beside them."""
        tops = sorted({_top(path) for path in self.readable})
        return () if "" in tops else tuple(tops)


def _top(path: str) -> str:
    parts = PurePosixPath(path).parts
    return parts[0] if len(parts) > 1 else ""


def _below(paths: Sequence[str], top: str) -> tuple[str, ...]:
    return tuple(path[len(top) + 1 :] for path in paths if _top(path) == top)


def folder_sources(
    path: str | Path,
    *,
    size: tuple[int, int] = (256, 256),
    channels: int = 3,
    crop: Literal["center", "random"] = "center",
    validation_share: float = 0.05,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> Sources:
    """The images below a folder, at any depth.

    Subfolders directly below are classes, unless images lie beside them. With a folder `validation` (or `val`) its
    images are held out, and those of `train`, or else all others, are trained on. Otherwise a file is held out by a
    hash of its relative path, so that it stays on its side whatever files are added; the one of lowest hash always is.

    Args:
        path: the folder, relative to the current one or absolute.
        size: height and width to which images are resized (until they just cover it) and cropped, in pixels.
        channels: 1 for grey, 3 for RGB; images are converted.
        crop: which part is kept of an image of another shape.
        validation_share: share of files held out by hash, from 0 to below 1.
        augmentation: random changes to training images; none by default.
        seed: of crops and augmentation; the choice of held-out files does not depend on it.

    Returns:
        Both splits; each names the unreadable files that it leaves out.

    Raises:
        DataError: where the folder or its images are missing, or the splits disagree about the classes.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"data.path must be a folder of images; there is no folder {root}")
    train, validation = _splits(_list_images(root), validation_share)
    classes = _common_classes(train, validation)

    def source(listing: _Listing, part: Literal["center", "random"], changes: Augmentation | None) -> FolderImages:
        return FolderImages(
            listing.root,
            listing.readable,
            labels=[classes.index(_top(path)) for path in listing.readable] if classes else None,
            classes=classes,
            size=size,
            channels=channels,
            crop=part,
            skipped=listing.skipped,
            augmentation=changes,
            seed=seed,
        )

    return Sources(train=source(train, crop, augmentation), validation=source(validation, "center", None))


def _splits(listing: _Listing, validation_share: float) -> tuple[_Listing, _Listing]:
    held_out = [name for name in VALIDATION_FOLDERS if (listing.root / name).is_dir()]
    if not held_out:
        _refuse_empty(listing)
        return _hashed_splits(listing, validation_share)
    validation = listing.within(held_out[0])
    train = listing.within("train") if (listing.root / "train").is_dir() else listing.without(held_out)
    _refuse_empty(train)
    _refuse_empty(validation)
    return train, validation


def _refuse_empty(listing: _Listing) -> None:
    if not listing.readable:
        unreadable = f", and {len(listing.skipped)} that cannot be read" * bool(listing.skipped)
        raise DataError(
            f"{listing.root} must hold images ({', '.join(sorted(SUFFIXES))}), at any depth; found none{unreadable}"
        )


def _hashed_splits(listing: _Listing, share: float) -> tuple[_Listing, _Listing]:
    if len(listing.readable) < 2:
        raise DataError(f"{listing.root} holds a single image; one to train on and one to hold out are needed")
    hashes = np.array([float(uniform("validation", path)) for path in listing.readable])
    held_out = hashes < share
    held_out[hashes.argmin()] = True
    if held_out.all():
        raise DataError(f"all images of {listing.root} would be held out; lower data.validation_share from {share}")
    chosen, others = (
        tuple(path for path, keep in zip(listing.readable, mask, strict=True) if keep) for mask in (held_out, ~held_out)
    )
    return _Listing(listing.root, others, listing.skipped), _Listing(listing.root, chosen, ())


def _common_classes(train: _Listing, validation: _Listing) -> tuple[str, ...]:
    if train.root == validation.root:
        return _Listing(train.root, train.readable + validation.readable, ()).classes()
    classes, held_out = train.classes(), validation.classes()
    if not set(held_out) <= set(classes) or bool(classes) != bool(held_out):
        raise DataError(
            f"{validation.root} must have the same class folders as {train.root} ({', '.join(classes) or 'none'}); "
            f"found {', '.join(held_out) or 'none'}"
        )
    return classes


def _list_images(root: Path) -> _Listing:
    paths = sorted(_image_paths(root))
    # Threads, since this waits for the disk: thousands of small reads.
    with ThreadPoolExecutor(8) as pool:
        readable = list(pool.map(lambda path: _is_readable(root / path), paths))
    kept, skipped = (
        tuple(path for path, fine in zip(paths, readable, strict=True) if fine is wanted) for wanted in (True, False)
    )
    return _Listing(root, kept, skipped)


def _image_paths(root: Path) -> Iterator[str]:
    """Relative paths of all image files; hidden files and folders are left out, links are followed once."""
    visited = {root.resolve()}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        new = [name for name in subfolders if not name.startswith(".") and (here / name).resolve() not in visited]
        visited.update((here / name).resolve() for name in new)
        subfolders[:] = new
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield (here / name).relative_to(root).as_posix()


def _is_readable(path: Path) -> bool:
    """Whether an image opens and is whole. Only a file whose end looks wrong is decoded to find out."""
    try:
        with Image.open(path) as picture:
            if picture.mode == "F":
                return False
            if not _ends_as_it_should(path, picture.format):
                picture.load()
    except READ_ERRORS:
        return False
    return True


def _ends_as_it_should(path: Path, kind: str | None) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 16))
        tail = file.read()
    if kind == "JPEG":
        return tail.endswith(b"\xff\xd9")
    if kind == "PNG":
        return b"IEND" in tail
    if kind == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= length
    return False
