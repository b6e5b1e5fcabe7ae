"""Crops come from their photograph pixel for pixel, at places that depend on (seed, epoch, index) alone."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hvq.data import PhotoCrops, photo_sources
from hvq.data.photos import HELD_OUT_PHOTOS, TRAINING_PHOTOS
from hvq.errors import DataError


def numbered(height: int, width: int) -> Image.Image:
    """A picture whose pixels tell where they are: rows in red, columns in green."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8))


def crops(seed: int = 0) -> PhotoCrops:
    photos = [numbered(101, 211), numbered(97, 53)]
    return PhotoCrops(photos, ["wide", "tall"], size=(11, 17), crops_per_photo=43, seed=seed)


def places(source: PhotoCrops, epoch: int | None) -> torch.Tensor:
    indices = np.arange(len(source))
    batch = source.fetch(indices, None if epoch is None else np.full(len(indices), epoch))
    first = batch.images[:, :2, 0, 0].int()
    rows, columns = torch.arange(11).int(), torch.arange(17).int()
    assert torch.equal(batch.images[:, 0].int(), (first[:, 0, None, None] + rows[:, None]).expand(-1, -1, 17))
    assert torch.equal(batch.images[:, 1].int(), (first[:, 1, None, None] + columns).expand(-1, 11, -1))
    return first


def test_crops_are_copies_of_places_all_over_the_photograph() -> None:
    first = places(crops(), 0)[:43]
    assert first[:, 0].min() <= 20
    assert first[:, 0].max() >= 70
    assert first[:, 1].min() <= 40
    assert first[:, 1].max() >= 160


def test_places_depend_on_seed_and_epoch_and_stay_without_one() -> None:
    assert not torch.equal(places(crops(), 0), places(crops(), 1))
    assert not torch.equal(places(crops(), 0), places(crops(seed=1), 0))
    assert torch.equal(places(crops(), 5), places(crops(), 5))
    assert torch.equal(places(crops(), None), places(crops(), None))
    assert len(places(crops(), None).unique(dim=0)) > 40


def test_names_and_labels() -> None:
    source = crops()
    assert (len(source), source.name(0), source.name(44), source.label(3)) == (86, "wide/0", "tall/1", -1)


def test_photographs_smaller_than_the_crop_are_enlarged() -> None:
    source = PhotoCrops([Image.new("L", (5, 7), 200)], ["small"], size=(13, 11), crops_per_photo=3)
    assert source.image(2, epoch=0).shape == (3, 13, 11)
    assert (source.image(2, epoch=0) == 200).all()


def test_whole_photographs_are_held_out() -> None:
    assert not set(TRAINING_PHOTOS) & set(HELD_OUT_PHOTOS)
    sources = photo_sources(size=(31, 37), crops_per_photo=2)
    assert len(sources.train) == 2 * len(TRAINING_PHOTOS)
    assert len(sources.validation) == 2 * len(HELD_OUT_PHOTOS)
    assert sources.train.classes == ()
    batch = sources.validation.fetch(np.arange(len(sources.validation)))
    assert (batch.images.double().flatten(1).std(1) > 1).all()


def test_missing_scikit_image_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(DataError, match=r'pip install "hvq\[data\]"'):
        photo_sources()


def test_a_photograph_that_is_no_longer_shipped_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvq.data.photos.TRAINING_PHOTOS", ("no_such_photo",))
    with pytest.raises(DataError, match="no_such_photo"):
        photo_sources()
