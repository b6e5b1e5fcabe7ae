"""The prior matters: what is drawn from codes without a trained prior is not of the data.

The uniform prior of equations (5) to (8) serves training alone; samples take a model of the codes (VQ-VAE, section 3.2;
VQ-VAE-2, section 3.2). One autoencoder of two levels is trained on digits of 16x16, 2x2 and 4x4 codes, and codes are
drawn in six ways, of each class as many as there are training images:

- uniform: each code alike.
- unigram: independently, each from the histogram of its level.
- by place: independently, each from the histogram of its level, position and class; all that codes tell one by one.
- pixelcnn, pixelsnail, transformer: each prior of the project, given the class.

Measured of each:

- classification accuracy score (Ravuri and Vinyals 2019): the accuracy on real held-out digits of a classifier that has
  seen the samples alone, as a mean over seeds of the classifier. Samples that no class decides get a label all the
  same. The training images, and their reconstructions, which no sample can be better than by much, stand beside them.
- nats per image: the negative log-likelihood of the codes of held-out digits, given their class. Histograms are
  smoothed by half a count for each code.
- copies: share of samples all of whose codes are those of one training image, so that a prior that learned its images
  by heart is seen.

The claim holds if
(i) with uniform codes and with unigram codes the accuracy is at most 25 % (guessing: 10 %);
(ii) with every trained prior it is at least 5 points above the best of the three ways without one;
(iii) every trained prior has fewer nats per image than all three ways without one.

    python benchmarks/claims/priors.py --quick --json claims.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plots
import torch
from frame import Options, Verdict, rounded, run_claim
from hierarchies import PRIOR_FIELDS, Sizes, digit_autoencoder, digit_priors, drawn, hierarchy_of, nats_per_image
from torch import Tensor
from torch.nn import functional
from training import Images, codes_of, digits, reconstructions

from hvq.autoencoders import Autoencoder
from hvq.data.pixels import unit_to_bytes
from hvq.evaluation import classification_accuracy
from hvq.evaluation.copies import copy_share
from hvq.evaluation.generation import decode_images

CLAIM = "priors"
UNTRAINED = ("uniform", "unigram", "by place")
REAL = ("images", "reconstructions")
SMOOTHING = 0.5
MOST_WITHOUT, LEAST_GAIN = 0.25, 0.05

Codes = dict[str, Tensor]


@dataclass(frozen=True)
class Plan(Sizes):
    """Sizes of the models, and how samples are judged."""

    classifier_steps: int = 300
    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = tuple(PRIOR_FIELDS)


QUICK = Plan(steps=300, width=32, codebook_size=64, prior_steps=400, prior_width=32)
FULL = Plan(
    steps=2_000,
    width=64,
    codebook_size=128,
    prior_steps=2_000,
    prior_width=64,
    classifier_steps=1_000,
    seeds=(0, 1, 2, 3, 4),
)


# --- codes that are drawn one by one ---------------------------------------------------------------------------------


def tables(way: str, codes: Tensor, labels: Tensor, size: int, classes: int) -> Tensor:
    """Probabilities float64 `[classes, h, w, K]` of one level's codes, without a prior.

    Args:
        way: one of `UNTRAINED`.
        codes: int64 `[n, h, w]` of the training images.
        labels: int64 `[n]`.
        size: K.
        classes: number of them.

    >>> codes = torch.tensor([[[0, 1]], [[0, 2]], [[2, 2]]])
    >>> labels = torch.tensor([0, 0, 1])
    >>> tables("unigram", codes, labels, 3, 2)[1, 0, 1].tolist()
    [0.3333333333333333, 0.2, 0.4666666666666667]
    >>> (7 * tables("by place", codes, labels, 3, 2)[0, 0]).tolist()
    [[5.0, 1.0, 1.0], [1.0, 3.0, 3.0]]
    """
    counts = torch.zeros(classes, *codes.shape[1:], size, dtype=torch.float64)
    if way == "unigram":
        counts += torch.bincount(codes.flatten(), minlength=size)
    if way == "by place":
        counts.index_add_(0, labels, functional.one_hot(codes, size).double())
    counts += SMOOTHING
    return counts / counts.sum(dim=-1, keepdim=True)


def draw_independently(table: Tensor, labels: Tensor) -> Tensor:
    """Codes int64 `[n, h, w]` of samples of these classes, each from its own histogram."""
    rows = table[labels]
    return rows.flatten(0, -2).multinomial(1).view(rows.shape[:-1])


def nats_of_table(table: Tensor, codes: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of a level's codes, in nats per image."""
    chosen = table[labels].gather(-1, codes.unsqueeze(-1)).log()
    return -float(chosen.sum()) / len(codes)


# --- what is measured ------------------------------------------------------------------------------------------------


def accuracy_of(samples: Tensor, labels: Tensor, images: Images, plan: Plan) -> list[float]:
    """Classification accuracy score, one for each seed."""
    return [
        classification_accuracy(
            samples,
            labels,
            images.held_out,
            images.held_out_labels,
            num_classes=images.classes,
            steps=plan.classifier_steps,
            seed=seed,
        )
        for seed in plan.seeds
    ]


def run_cell(model: Autoencoder, images: Images, plan: Plan, way: str, options: Options) -> dict[str, Any]:
    """Draw samples in one way, and measure them."""
    labels, codes = images.train_labels, codes_of(model, images.train)
    if way in REAL:
        shown = images.train if way == "images" else unit_to_bytes(reconstructions(model, images.train))
        return {"accuracy": accuracy_of(shown, labels, images, plan), "images": one_of_each(shown, labels)}
    held_out = codes_of(model, images.held_out)
    if way in UNTRAINED:
        sampled, nats = untrained(way, codes, held_out, images, plan)
    else:
        priors = digit_priors(way, codes, images, plan, options.cells)
        sampled, _ = drawn(hierarchy_of(model, priors, images), labels, seed=0)
        nats = nats_per_image(priors, held_out, images.held_out_labels)
    decoded = decode_images(hierarchy_of(model, {}, images), sampled, chunk_size=256)
    samples = unit_to_bytes(decoded)
    copies = copy_share(samples, sampled, images.train, codes, threshold=0.0).by_codes
    return {
        "accuracy": accuracy_of(samples, labels, images, plan),
        "nats_per_image": nats,
        "copies": copies,
        "images": one_of_each(samples, labels),
    }


def untrained(way: str, codes: Codes, held_out: Codes, images: Images, plan: Plan) -> tuple[Codes, float]:
    """Codes drawn without a prior, one of each training label, and nats per held-out image."""
    torch.manual_seed(0)
    by_level = {
        name: tables(way, code, images.train_labels, plan.codebook_size, images.classes) for name, code in codes.items()
    }
    sampled = {name: draw_independently(table, images.train_labels) for name, table in by_level.items()}
    nats = sum(nats_of_table(table, held_out[name], images.held_out_labels) for name, table in by_level.items())
    return sampled, nats


def one_of_each(samples: Tensor, labels: Tensor) -> list[Any]:
    """The first two of each class."""
    firsts = [(labels == label).nonzero().flatten()[:2] for label in labels.unique().tolist()]
    return samples[torch.cat(firsts)].tolist()


# --- the verdict -----------------------------------------------------------------------------------------------------


def parts_of(numbers: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
    """The three parts of the criterion."""
    without = [numbers[way] for way in UNTRAINED]
    trained = [found for way, found in numbers.items() if way not in (*UNTRAINED, *REAL)]
    best = max(found["accuracy"] for found in without)
    return {
        "nothing_without_structure": max(numbers[way]["accuracy"] for way in ("uniform", "unigram")) <= MOST_WITHOUT,
        "trained_above_independent": all(found["accuracy"] >= best + LEAST_GAIN for found in trained),
        "trained_takes_fewer_nats": max(found["nats_per_image"] for found in trained)
        < min(found["nats_per_image"] for found in without),
    }


def draw(cells: dict[str, dict[str, Any]], numbers: dict[str, dict[str, float]], folder: Path) -> None:
    """Samples of every way, two of each class; accuracy and nats below."""
    drawn_figure = plots.Figure(figsize=(9.4, 6.6), layout="constrained", facecolor="white")
    above, below = drawn_figure.subfigures(2, 1, height_ratios=(1.5, 1))
    for axis, (way, cell) in zip(above.subplots(len(cells), 1), cells.items(), strict=True):
        plots.strip_of_images(axis, torch.tensor(cell["images"], dtype=torch.uint8), way)
    left, right = below.subplots(1, 2)
    for axis, measure, title in (
        (left, "accuracy", "classification accuracy score"),
        (right, "nats_per_image", "nats per held-out image"),
    ):
        shown = {way: found[measure] for way, found in numbers.items() if measure in found}
        colours = [plots.COLOURS[2 if way in REAL else 0 if way in UNTRAINED else 1] for way in shown]
        bars = axis.barh(list(shown), list(shown.values()), color=colours)
        axis.bar_label(bars, fmt="%.2f" if measure == "accuracy" else "%.0f", fontsize=8, padding=2)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
        plots.label(axis, title)
    plots.save(drawn_figure, folder, CLAIM)


def measure(options: Options) -> Verdict:
    """All ways of drawing codes."""
    plan, images = QUICK if options.quick else FULL, digits()
    about = {name: value for name, value in asdict(plan).items() if name != "kinds"}
    model = digit_autoencoder(images, plan, options.cells)
    cells = {
        way: options.cells.of({**about, "way": way}, partial(run_cell, model, images, plan, way, options))
        for way in (*REAL, *UNTRAINED, *plan.kinds)
    }
    numbers: dict[str, dict[str, float]] = {
        way: {
            "accuracy": float(np.mean(cell["accuracy"])),
            **{name: cell[name] for name in ("nats_per_image", "copies") if name in cell},
        }
        for way, cell in cells.items()
    }
    draw(cells, numbers, options.plots)
    parts = parts_of(numbers)
    spread = {way: max(cell["accuracy"]) - min(cell["accuracy"]) for way, cell in cells.items()}
    said: dict[str, Any] = {"parts": parts, **numbers, "accuracy_range_over_seeds": spread, "about": asdict(plan)}
    return Verdict(CLAIM, all(parts.values()), rounded(said))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
