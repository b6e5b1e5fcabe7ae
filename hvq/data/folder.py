"""Any folder of images: subfolders are classes; a folder `validation`, or a hashed share of the files, is held out."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Unpack

import numpy as np
from numpy.typing import NDArray

from hvq.data.augmentation import Augmentation
from hvq.data.encoded import Crop, EncodedImages, EncodedOptions
from hvq.data.listing import Listing, classes_of, list_images, stamp_of, top_of
from hvq.data.pictures import SUFFIXES, open_regular
from hvq.data.sources import Sources
from hvq.data.splits import common_classes, held_out_by_hash
from hvq.data.subset import spread_rows
from hvq.errors import DataError

VALIDATION_FOLDERS = ("validation", "val")


class FolderImages(EncodedImages):
    """Image files, decoded when they are fetched.

    Args:
        root: the folder that the paths are relative to.
        paths: relative paths with `/` between their parts, each of a readable image.
        stamps: size and time of change of each file, `[N, 2]`, which it must still have when it is read; `None` for
            whatever the files are by then.
        options: `EncodedOptions`.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        *,
        stamps: NDArray[np.int64] | None = None,
        **options: Unpack[EncodedOptions],
    ) -> None:
        super().__init__(paths, **options)
        self._root = root
        self._stamps = stamps

    def open_image(self, index: int) -> BinaryIO:
        """The file, once it is known to be the one that was listed."""
        path = self._root / self.name(index)
        file = open_regular(path)
        if self._stamps is None or stamp_of(os.fstat(file.fileno())) == tuple(self._stamps[index].tolist()):
            return file
        file.close()
        raise DataError(
            f"image {path} is not the file that was there when the run began: it has been replaced or written to; "
            "put the old one back, or start again with the new one"
        )

    def where(self, index: int) -> tuple[str, str]:
        """The path."""
        return str(self._root / self.name(index)), "remove or replace the file and start again"

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


def folder_sources(
    path: str | Path,
    *,
    size: tuple[int, int] = (256, 256),
    channels: int = 3,
    crop: Crop = "center",
    validation_share: float = 0.05,
    labelled: bool = True,
    limit: int | None = None,
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
        labelled: whether subfolders are classes.
        limit: images of each split at most, spread over all of it; all of them by default.
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
    train, validation = split_listing(list_images(root), validation_share)
    classes = listed_classes(train, validation) if labelled else ()
    train, validation = _limited(train, limit), _limited(validation, limit)

    def source(listing: Listing, part: Crop, changes: Augmentation | None) -> FolderImages:
        return FolderImages(
            listing.root,
            listing.readable,
            stamps=listing.stamps,
            labels=[classes.index(top_of(path)) for path in listing.readable] if classes else None,
            classes=classes,
            size=size,
            channels=channels,
            crop=part,
            skipped=listing.skipped,
            augmentation=changes,
            seed=seed,
        )

    return Sources(train=source(train, crop, augmentation), validation=source(validation, "center", None))


def split_listing(
    listing: Listing, validation_share: float, *, what: str = "images", suffixes: Collection[str] = SUFFIXES
) -> tuple[Listing, Listing]:
    """Files to train on, and held-out ones, as `folder_sources` says.

    Args:
        listing: all files.
        validation_share: share of files held out by hash, where no folder is.
        what: the files are, for errors.
        suffixes: what their names end with, for errors.

    Raises:
        DataError: where there are none.
    """
    held_out = [name for name in VALIDATION_FOLDERS if (listing.root / name).is_dir()]
    if not held_out:
        _refuse_empty(listing, what, suffixes)
        return _hashed_splits(listing, validation_share)
    validation = listing.within(held_out[0])
    train = listing.within("train") if (listing.root / "train").is_dir() else listing.without(held_out)
    _refuse_empty(train, what, suffixes)
    _refuse_empty(validation, what, suffixes)
    return train, validation


def _limited(listing: Listing, limit: int | None) -> Listing:
    if limit is None or len(listing.readable) <= limit:
        return listing
    mask = np.zeros(len(listing.readable), bool)
    mask[spread_rows(len(mask), limit)] = True
    return listing.chosen(mask)


def _refuse_empty(listing: Listing, what: str, suffixes: Collection[str]) -> None:
    if not listing.readable:
        unreadable = f", and {len(listing.skipped)} that cannot be read" * bool(listing.skipped)
        raise DataError(
            f"{listing.root} must hold {what} ({', '.join(sorted(suffixes))}), at any depth; found none{unreadable}"
        )


def _hashed_splits(listing: Listing, share: float) -> tuple[Listing, Listing]:
    held_out = held_out_by_hash(listing.readable, share, str(listing.root))
    return listing.chosen(~held_out), replace(listing.chosen(held_out), skipped=())


def listed_classes(train: Listing, validation: Listing) -> tuple[str, ...]:
    """The classes that subfolders are.

    Raises:
        DataError: where the splits disagree about them.
    """
    if train.root == validation.root:
        return classes_of(train.readable + validation.readable)
    names = (f"folder {train.root}", f"folder {validation.root}")
    return common_classes(classes_of(train.readable), classes_of(validation.readable), names)
