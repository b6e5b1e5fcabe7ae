"""Plots show what is there, and nothing where there is nothing."""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image

from hvq.errors import ConfigurationError, HVQError
from hvq.evaluation.plots import COLOURS, rejection_curve, training_curves, usage_histogram


def _array(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def _shows(picture: Image.Image, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(_array(picture.convert("RGB")).astype(int) - wanted).max(-1) <= 2).any())


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


def test_without_matplotlib_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigurationError, match=r'with matplotlib, which is not .*: pip install "hvq\[report\]"'):
        usage_histogram({"top": torch.ones(3)}, ["top"])
