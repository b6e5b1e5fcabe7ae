"""Grids hold the very pixels, in their places."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation import pictures
from hvq.evaluation.pictures import image_grid, reconstruction_grid, sample_grid


def _images(count: int, channels: int = 3, height: int = 11, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def _array(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    pictures._font.cache_clear()
    yield
    pictures._font.cache_clear()


def test_a_grid_without_labels_is_images_and_gaps() -> None:
    rows = [_images(5), _images(3)]
    pixels = _array(image_grid(rows, upscale=1, gap=2))
    assert pixels.shape == (2 * 11 + 2, 5 * 7 + 4 * 2, 4)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            cell = pixels[y * 13 : y * 13 + 11, x * 9 : x * 9 + 7, :3]
            np.testing.assert_array_equal(cell, image.permute(1, 2, 0))
    assert (pixels[11:13, :, 3] == 0).all()
    assert (pixels[:, 7:9, 3] == 0).all()
    assert (pixels[13:, 3 * 9 :, 3] == 0).all()


def test_small_images_are_enlarged_without_smoothing_and_large_ones_reduced() -> None:
    image = _images(1)
    enlarged = _array(image_grid([image]))[:, :, :3]
    np.testing.assert_array_equal(enlarged, image[0].permute(1, 2, 0).numpy().repeat(6, 0).repeat(6, 1))
    assert image_grid([_images(1, height=1024, width=512)]).size == (128, 256)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_channels_is_shown(channels: int, shown: list[int]) -> None:
    image = _images(1, channels)
    pixels = _array(image_grid([image], upscale=1))[:, :, :3]
    np.testing.assert_array_equal(pixels, image[0, shown].permute(1, 2, 0))


def test_labels_stand_outside_the_images() -> None:
    rows = [_images(2), _images(2)]
    plain = _array(image_grid(rows))
    labelled = _array(image_grid(rows, row_labels=["original", "top"], column_labels=["a", "b"]))
    height, width = plain.shape[:2]
    np.testing.assert_array_equal(labelled[-height:, -width:], plain)
    assert (labelled[-height:, :-width, 3] > 0).any()
    assert (labelled[:-height, -width:, 3] > 0).any()


def test_reconstructions_stand_below_their_originals() -> None:
    originals, top = _images(3), _images(3).flip(0)
    picture = reconstruction_grid(originals, {"top": top}, upscale=1, gap=2)
    expected = image_grid([originals, top], row_labels=["original", "top"], upscale=1, gap=2)
    np.testing.assert_array_equal(_array(picture), _array(expected))


def test_samples_of_one_class_stand_in_one_row() -> None:
    images, labels = _images(7), torch.tensor([2, 0, 2, 2, 0, 2, 2])
    picture = sample_grid(images, labels, ["cat", "dog", "eel"], columns=3)
    expected = image_grid([images[[1, 4]], images[[0, 2, 3]]], row_labels=["cat", "eel"])
    np.testing.assert_array_equal(_array(picture), _array(expected))


def test_samples_without_classes_fill_rows() -> None:
    images = _images(7)
    np.testing.assert_array_equal(_array(sample_grid(images, columns=5)), _array(image_grid([images[:5], images[5:]])))


def test_refuses_grids_that_cannot_be_drawn() -> None:
    with pytest.raises(DataError, match="no rows"):
        image_grid([])
    with pytest.raises(DataError, match="one size"):
        image_grid([_images(2), _images(2, height=13)])
    with pytest.raises(DataError, match="uint8"):
        image_grid([_images(2).float()])
    with pytest.raises(DataError, match="2 rows"):
        image_grid([_images(2), _images(2)], row_labels=["one"])


def test_labels_need_no_matplotlib(without_matplotlib: None) -> None:
    rows = [_images(2), _images(2)]
    plain = _array(image_grid(rows))
    labelled = _array(image_grid(rows, row_labels=["original", "top"], column_labels=["a", "b"]))
    height, width = plain.shape[:2]
    np.testing.assert_array_equal(labelled[-height:, -width:], plain)
    assert (labelled[-height:, :-width, 3] > 0).any()
    assert (labelled[:-height, -width:, 3] > 0).any()
