"""Images in memory, and the contract that all sources share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hvq.data import UNAUGMENTED, Augmentation, TensorImages
from hvq.errors import DataError


def images(count: int = 7) -> torch.Tensor:
    return torch.arange(count * 3 * 5 * 11).remainder(251).to(torch.uint8).view(count, 3, 5, 11)


def test_a_batch_holds_the_images_and_what_identifies_them() -> None:
    source = TensorImages(images(), labels=[0, 1, 0, -1, 1, 1, 0], classes=["cat", "dog"], names=list("abcdefg"))
    batch = source.fetch(np.array([4, 0, 3, 4]), np.array([2, 2, 2, 3]))
    assert torch.equal(batch.images, images()[[4, 0, 3, 4]])
    assert batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [1, 0, -1, 1]
    assert batch.indices.tolist() == [4, 0, 3, 4]
    assert batch.epochs.tolist() == [2, 2, 2, 3]
    assert (len(batch), len(source), source.size, source.channels) == (4, 7, (5, 11), 3)
    assert source.name(2) == "c"


def test_augmentation_needs_an_epoch() -> None:
    source = TensorImages(images(), augmentation=Augmentation(shift=3.0), seed=5)
    batch = source.fetch(np.arange(7))
    assert torch.equal(batch.images, images())
    assert batch.epochs.tolist() == [UNAUGMENTED] * 7
    assert torch.equal(source.image(2), images()[2])
    augmented = source.fetch(np.arange(7), np.full(7, 3))
    assert not torch.equal(augmented.images, images())
    assert torch.equal(source.image(2, epoch=3), augmented.images[2])


def test_fetched_images_are_copies() -> None:
    source = TensorImages(images())
    source.fetch(np.array([1])).images.zero_()
    assert torch.equal(source.image(1), images()[1])


def test_without_labels_they_are_unknown() -> None:
    assert TensorImages(images()).fetch(np.array([0, 5])).labels.tolist() == [-1, -1]


@pytest.mark.parametrize("indices", [[7], [-1], [0, 8]])
def test_indices_out_of_range_are_refused(indices: list[int]) -> None:
    with pytest.raises(DataError, match="from 0 to 6"):
        TensorImages(images()).fetch(np.array(indices))


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, -2], [0.5] * 7])
def test_labels_that_do_not_fit_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match="labels"):
        TensorImages(images(), labels=labels, classes=["cat", "dog"])


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_images_of_another_kind_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(DataError, match="uint8"):
        TensorImages(wrong)


def _fingerprint(pixels: torch.Tensor, **options: Any) -> str:
    labels, classes = options.pop("labels", [0, 1, 0, -1, 1, 1, 0]), options.pop("classes", ["cat", "dog"])
    return TensorImages(pixels, labels=labels, classes=classes, **options).fingerprint()


def test_a_fingerprint_tells_sources_apart_by_whatever_matters() -> None:
    other = images()
    other[4, 0, 2, 3] += 1
    found = [
        _fingerprint(images()),
        _fingerprint(other),
        _fingerprint(images(6), labels=[0, 1, 0, -1, 1, 1]),
        _fingerprint(images().flip(0)),
        _fingerprint(images().transpose(2, 3)),
        _fingerprint(images(), labels=[0, 1, 0, 1, 1, 1, 0]),
        _fingerprint(images(), classes=["cat", "cow"]),
        _fingerprint(images(), names=list("abcdefg")),
        _fingerprint(images(), augmentation=Augmentation(shift=1.0)),
        _fingerprint(images(), seed=1),
    ]
    assert len(set(found)) == len(found)
    assert _fingerprint(images()) == found[0]
