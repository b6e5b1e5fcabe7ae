"""What is in a folder of pictures, as far as the choice of a run depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from hvq.config_base import FrozenModel
from hvq.data import FolderImages, folder_sources, spread_rows
from hvq.data.folder import VALIDATION_FOLDERS
from hvq.data.pictures import READ_ERRORS, decode, open_picture
from hvq.errors import DataError

LEAST_IMAGES = 20
"""Fewer leave nothing to learn from once some are held out."""

# Files whose headers are read, and those of them that are decoded; both are spread over the folder.
_HEADERS, _DECODED = 256, 16
_THUMBNAIL = (32, 32)
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B")
# Share of the pictures that is at least as large as the side that is called usual.
_USUAL_SHARE = 0.75
# Mean difference of red, green and blue below which a picture is grey: what JPEG leaves of a grey one is less.
_LEAST_COLOUR = 3.0
# Share of equal neighbours above which pictures are drawn rather than photographed; backgrounds are of one shade.
_MOST_FLAT = 0.3
# Longer over shorter side up to which a picture counts as square.
_NEARLY_SQUARE = 1.05


class FolderSurvey(FrozenModel):
    """What was found in a folder; plain values, so that processes can tell it to each other."""

    images: PositiveInt
    """That can be read, held-out ones of a folder `validation` not counted."""
    held_out: NonNegativeInt
    """In a folder `validation`; 0 where there is none."""
    classes: NonNegativeInt
    """Subfolders with images; 0 where images lie beside them."""
    unreadable: NonNegativeInt
    """Files that are left out."""
    usual_side: PositiveInt
    """Pixels that the shorter side has in three quarters of the pictures at least."""
    smallest_side: PositiveInt
    """Pixels of the shortest side of all."""
    largest_side: PositiveInt
    """Pixels of the longest side of all."""
    square: bool
    """Whether nearly all pictures are square."""
    colour: bool
    """Whether any of the pictures that were decoded has colours."""
    photographs: bool
    """Whether neighbouring pixels differ, as they do in photographs."""
    transparent: bool
    """Whether pictures have an alpha channel, or a transparent colour."""

    @property
    def channels(self) -> int:
        """C of the images."""
        return 3 if self.colour else 1


class _Header(NamedTuple):
    width: int
    height: int
    grey: bool
    transparent: bool


def survey_folder(path: str | Path) -> FolderSurvey:
    """Look through a folder: all names, the headers of some files, and the pixels of a few.

    Args:
        path: the folder, as data of kind `folder` takes it.

    Raises:
        DataError: where there is no folder, or it holds fewer than `LEAST_IMAGES` images that can be read.
    """
    sources = folder_sources(path)
    pictures, validation = sources.train, sources.validation
    assert isinstance(pictures, FolderImages)
    apart = any((Path(path) / name).is_dir() for name in VALIDATION_FOLDERS)
    unreadable = len(pictures.skipped) + len(validation.skipped)
    images = len(pictures) + (0 if apart else len(validation))
    if images < LEAST_IMAGES:
        raise DataError(
            f"{path} must hold {LEAST_IMAGES} images to train on at least; found {images}"
            + f", and {unreadable} that cannot be read" * bool(unreadable)
            + "; add more, or choose everything by yourself, with recipes/configs/ as examples"
        )
    headers = [header for i in spread_rows(len(pictures), _HEADERS) if (header := _header(pictures, int(i)))]
    thumbnails = [
        image for i in spread_rows(len(pictures), _DECODED) if (image := _thumbnail(pictures, int(i))) is not None
    ]
    if not headers or not thumbnails:
        raise DataError(f"the images in {path} changed or went while they were looked at; start again")
    shorter = np.array([min(header.width, header.height) for header in headers])
    longer = np.array([max(header.width, header.height) for header in headers])
    return FolderSurvey(
        images=images,
        held_out=len(validation) if apart else 0,
        classes=len(pictures.classes),
        unreadable=unreadable,
        usual_side=int(np.quantile(shorter, 1 - _USUAL_SHARE, method="lower")),
        smallest_side=int(shorter.min()),
        largest_side=int(longer.max()),
        square=bool((longer <= _NEARLY_SQUARE * shorter).mean() > 0.9),
        colour=not all(header.grey for header in headers) and any(map(_has_colour, thumbnails)),
        photographs=float(np.mean([_flatness(image) for image in thumbnails])) < _MOST_FLAT,
        transparent=any(header.transparent for header in headers),
    )


def _header(images: FolderImages, index: int) -> _Header | None:
    """Size and mode; None of a file that cannot be read any more."""
    try:
        with images.open_image(index) as file, open_picture(file) as picture:
            transparent = "A" in picture.mode or "transparency" in picture.info
            return _Header(*picture.size, picture.mode in _GREY_MODES, transparent)
    except READ_ERRORS:
        return None


def _thumbnail(images: FolderImages, index: int) -> Tensor | None:
    """A small copy in colour, int64 `[3, H, W]`; None of a file that cannot be read."""
    try:
        with images.open_image(index) as file:
            return decode(file, size=_THUMBNAIL, channels=3).long()
    except READ_ERRORS:
        return None


def _has_colour(image: Tensor) -> bool:
    spread = image.amax(0) - image.amin(0)
    return float(spread.double().mean()) > _LEAST_COLOUR


def _flatness(image: Tensor) -> float:
    """Share of pixels that equal their right neighbour."""
    equal = (image[..., 1:] == image[..., :-1]).all(0)
    return float(equal.to(torch.float64).mean())
