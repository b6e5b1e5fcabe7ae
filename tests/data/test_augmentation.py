"""Augmentation moves pixels by the amounts it draws, and draws them for each sample alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hvq.data import Augmentation
from hvq.errors import ConfigurationError
from hvq.randomness import uniform

SEED = 3


def random_images(count: int, channels: int = 3, height: int = 11, width: int = 17) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def test_nothing_to_do_changes_nothing() -> None:
    images = random_images(5)
    assert torch.equal(Augmentation()(images, seed=SEED, indices=np.arange(5), epochs=np.zeros(5, np.int64)), images)


@settings(max_examples=20, deadline=None)
@given(
    amounts=st.tuples(st.floats(0, 7), st.floats(0, 180), st.floats(0, 0.5)),
    flip=st.booleans(),
    chosen=st.lists(st.integers(0, 6), min_size=1, max_size=7),
)
def test_an_image_is_the_same_alone_and_in_any_batch(
    amounts: tuple[float, float, float], flip: bool, chosen: list[int]
) -> None:
    augmentation = Augmentation(flip=flip, shift=amounts[0], rotation=amounts[1], scale=amounts[2])
    images, indices, epochs = random_images(7), np.arange(100, 107), np.array([0, 1, 2, 0, 1, 2, 0])
    together = augmentation(images, seed=SEED, indices=indices, epochs=epochs)
    some = augmentation(images[chosen], seed=SEED, indices=indices[chosen], epochs=epochs[chosen])
    assert torch.equal(some, together[chosen])


def test_flip_mirrors_about_half_of_the_images_and_moves_no_values() -> None:
    images = random_images(1).expand(1009, -1, -1, -1)
    flipped = Augmentation(flip=True)(images, seed=SEED, indices=np.arange(1009), epochs=np.zeros(1009, np.int64))
    mirrored = (flipped == images[0].flip(-1)).flatten(1).all(1)
    untouched = (flipped == images[0]).flatten(1).all(1)
    assert (mirrored | untouched).all()
    assert 0.45 < mirrored.double().mean() < 0.55


def test_geometry_equals_that_of_another_implementation() -> None:
    # Smooth, so that the two agree although one computes positions in float32.
    rows, columns = np.mgrid[0:11, 0:17]
    image = 127 + 60 * np.sin(rows / 3.0) + 60 * np.cos(columns / 5.0)
    augmentation = Augmentation(shift=3.0, rotation=40.0, scale=0.3)
    for index in range(13):
        index_array, epoch_array = np.array([index]), np.array([2])
        ours = augmentation(
            torch.from_numpy(image.round().astype(np.uint8))[None, None],
            seed=SEED,
            indices=index_array,
            epochs=epoch_array,
        )[0, 0]
        down, right, turn, grow = (
            2 * float(uniform(SEED, 2, index, purpose)) - 1
            for purpose in ("shift down", "shift right", "rotation", "scale")
        )
        angle, factor = np.deg2rad(40 * turn), 1 + 0.3 * grow
        backward = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / factor
        center = np.array([5.0, 8.0])
        offset = center - backward @ (center + 3 * np.array([down, right]))
        expected = ndimage.affine_transform(image.round(), backward, offset, order=1, mode="nearest")
        assert np.abs(ours.numpy() - expected).max() <= 0.51


def test_amounts_change_with_epoch_and_index() -> None:
    images = random_images(1).expand(3, -1, -1, -1)
    changed = Augmentation(shift=5.0)(images, seed=SEED, indices=np.array([1, 1, 2]), epochs=np.array([0, 1, 0]))
    assert not torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])


@pytest.mark.parametrize("amounts", [{"shift": -1.0}, {"rotation": -1.0}, {"scale": 1.0}])
def test_impossible_amounts_are_refused(amounts: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="scale from 0 to below 1"):
        Augmentation(**amounts)  # type: ignore[arg-type]
