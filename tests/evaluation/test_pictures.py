"""Grids hold the very pixels, in their places; plots show what is there, and nothing where there is nothing."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hvq.errors import DataError, HVQError
from hvq.evaluation.pictures import (
    COLOURS,
    image_grid,
    reconstruction_grid,
    rejection_curve,
    sample_grid,
    training_curves,
    usage_histogram,
)


def _images(count: int, channels: int = 3, height: int = 11, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def _array(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def _shows(picture: Image.Image, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(_array(picture.convert("RGB")).astype(int) - wanted).max(-1) <= 2).any())


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


def test_usage_has_a_panel_per_level_in_level_order() -> None:
    counts = {"bottom": torch.ones(13), "top": torch.tensor([5, 0, 7])}
    picture = usage_histogram(counts, ["top", "bottom"])
    halves = (
        picture.crop((0, 0, picture.width // 2, picture.height)),
        picture.crop((picture.width // 2, 0, picture.width, picture.height)),
    )
    assert [[_shows(half, colour) for colour in COLOURS[:2]] for half in halves] == [[True, False], [False, True]]


def test_usage_of_eleven_levels_and_of_unused_codebooks_is_drawn() -> None:
    names = [f"level{i}" for i in range(11)]
    assert usage_histogram({name: torch.zeros(7) for name in names}, names).height > 1000
    with pytest.raises(HVQError, match="missing top"):
        usage_histogram({}, ["top"])


def _autoencoder_row(step: int) -> dict[str, object]:
    return {"stage": "autoencoder", "step": step, "loss": 1.0 / (step + 1), "perplexity.top": 3.0 + step}


def test_each_stage_with_numbers_has_a_picture() -> None:
    rows = [_autoencoder_row(step) for step in range(5)]
    rows += [{"stage": "prior.bottom", "step": step, "held_out_nats": 4.0 - step} for step in range(3)]
    rows += [{"stage": "prior.top", "step": 0, "seconds": 1.0}, {"stage": "codes"}]
    assert list(training_curves(rows, ["top", "bottom"])) == ["autoencoder", "prior.bottom"]
    assert training_curves([], ["top"]) == {}


def test_levels_keep_their_colour() -> None:
    rows = [{"stage": f"prior.{level}", "step": s, "nats": 4.0 - s} for level in ("top", "bottom") for s in range(3)]
    pictures = training_curves(rows, ["top", "bottom"])
    assert _shows(pictures["prior.top"], COLOURS[0])
    assert _shows(pictures["prior.bottom"], COLOURS[1])


def test_perplexity_adds_a_panel() -> None:
    with_perplexity = [_autoencoder_row(step) for step in range(5)]
    without = [{key: row[key] for key in ("stage", "step", "loss")} for row in with_perplexity]
    wide, narrow = (training_curves(rows, ["top"])["autoencoder"] for rows in (with_perplexity, without))
    assert wide.width > narrow.width


def test_the_order_of_lines_does_not_matter_and_the_later_of_two_counts() -> None:
    rows = [_autoencoder_row(step) for step in range(5)]
    resumed = [{**_autoencoder_row(3), "loss": 100.0}, *reversed(rows)]
    expected, picture = (training_curves(lines, ["top"])["autoencoder"] for lines in (rows, resumed))
    np.testing.assert_array_equal(_array(picture), _array(expected))


def test_numbers_that_are_not_finite_are_left_out() -> None:
    rows = [_autoencoder_row(step) for step in range(5)]
    broken = [*rows, {**_autoencoder_row(9), "loss": float("nan"), "perplexity.top": float("inf")}]
    expected, picture = (training_curves(lines, ["top"])["autoencoder"] for lines in (rows, broken))
    np.testing.assert_array_equal(_array(picture), _array(expected))


def test_the_unigram_entropy_comes_from_the_argument_or_from_the_lines() -> None:
    rows = [{"stage": "prior.top", "step": step, "nats": 4.0 - step} for step in range(3)]
    told = [{**row, "unigram_entropy": 4.5} for row in rows]
    plain = _array(training_curves(rows, ["top"])["prior.top"])
    by_argument = _array(training_curves(rows, ["top"], unigram_entropy={"top": 4.5})["prior.top"])
    assert not np.array_equal(by_argument, plain)
    np.testing.assert_array_equal(_array(training_curves(told, ["top"])["prior.top"]), by_argument)


def test_rejection_draws_the_shares_that_have_both_numbers() -> None:
    shares = {
        "1": {"precision": 0.7, "recall": 0.6, "accuracy": 0.8},
        "0.5": {"precision": 0.8, "recall": 0.4, "accuracy": 0.9},
        "0.25": {"precision": None, "recall": None, "accuracy": 0.95},
    }
    picture = rejection_curve(shares)
    assert picture is not None
    shuffled = rejection_curve({share: shares[share] for share in ("0.5", "1")})
    assert shuffled is not None
    np.testing.assert_array_equal(_array(picture), _array(shuffled))
    moved = rejection_curve({**shares, "0.5": {"precision": 0.9, "recall": 0.4, "accuracy": 0.9}})
    assert moved is not None
    assert not np.array_equal(_array(picture), _array(moved))
    assert rejection_curve({"0.25": shares["0.25"]}) is None


def test_losses_of_zero_can_be_drawn() -> None:
    rows = [{"stage": "autoencoder", "step": step, "loss": 0.0} for step in range(3)]
    assert list(training_curves(rows, ["top"])) == ["autoencoder"]


def test_plots_leave_the_global_figures_alone() -> None:
    before, backend = pyplot.get_fignums(), matplotlib.get_backend()
    usage_histogram({"top": torch.ones(3)}, ["top"])
    training_curves([_autoencoder_row(0)], ["top"])
    assert pyplot.get_fignums() == before
    assert matplotlib.get_backend() == backend
