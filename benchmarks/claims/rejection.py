"""Rejection sampling trades diversity for quality (VQ-VAE-2, section 3.3).

Of more samples than are wanted, those are kept that a classifier of real images is surest of. One autoencoder of two
levels and a transformer for each are trained on digits of 16x16. In each of three draws there are eight times as many
candidates of each class as are wanted; of the first one, two, four and eight times as many, the share of 1, 1/2, 1/4
and 1/8 is kept, so that all sets are of one size, on which precision and recall depend. Measured of each set:

- precision and recall (Kynkäänniemi et al. 2019, k = 3) between the samples and real held-out digits, in the features
  of another classifier than the one that keeps, of other weights and order of images: the share of samples that lie
  among real digits, and the share of real digits that lie among samples.
- recognised: the share of samples that this other classifier takes for the class they were drawn for.
- classification accuracy score: the accuracy on held-out digits of a classifier that has seen the samples alone.
- spread: the mean squared distance, in those features, of samples from the mean of their class.

The claim holds if in every draw precision at 1/8 is above precision at 1, and recall at 1/8 below recall at 1.

    python benchmarks/claims/rejection.py --quick --json claims.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plots
import torch
from frame import Options, Verdict, rounded, run_claim
from hierarchies import Sizes, digit_autoencoder, digit_priors, drawn, hierarchy_of
from torch import Tensor
from training import CHUNK, Images, codes_of, digits

from hvq.evaluation import (
    ManifoldPrecisionRecall,
    SmallClassifier,
    classification_accuracy,
    fit_classifier,
    predict_classes,
)
from hvq.evaluation.rejection import own_class_probabilities, surest
from hvq.storage import Hierarchy

CLAIM = "rejection"
PARTS = (1, 2, 4, 8)
KEEPER_SEED, OBSERVER_SEED = 0, 1
SHOWN_EACH = 2


@dataclass(frozen=True)
class Plan(Sizes):
    """Sizes of the models, what is drawn, and how it is judged; `wanted` is of each class."""

    kind: str = "transformer"
    wanted: int = 36
    classifier_steps: int = 300
    draws: tuple[int, ...] = (0, 1, 2)


QUICK = Plan(steps=300, width=32, codebook_size=64, prior_steps=400, prior_width=32)
FULL = Plan(
    steps=2_000,
    width=64,
    codebook_size=128,
    prior_steps=2_000,
    prior_width=64,
    classifier_steps=1_000,
    draws=(0, 1, 2, 3, 4),
)


@dataclass(frozen=True)
class Judges:
    """The classifier that keeps, and the other one, which the sets are measured with; both have seen real images."""

    keeper: SmallClassifier
    observer: SmallClassifier


def make_judges(images: Images, plan: Plan) -> Judges:
    """Of one recipe, which differ in weights and order of images."""
    fitted = [
        fit_classifier(
            images.train, images.train_labels, num_classes=images.classes, steps=plan.classifier_steps, seed=seed
        )
        for seed in (KEEPER_SEED, OBSERVER_SEED)
    ]
    return Judges(*fitted)


def candidate_labels(classes: int, wanted: int) -> Tensor:
    """int64 `[n]`, in rounds that hold each class `wanted` times: as many rounds as the largest number of candidates.

    >>> candidate_labels(2, 3)[:8].tolist()
    [0, 0, 0, 1, 1, 1, 0, 0]
    """
    return torch.arange(classes).repeat_interleave(wanted).repeat(max(PARTS))


def kept_rows(sure: Tensor, labels: Tensor, part: int, wanted: int) -> Tensor:
    """The surest of each class among the candidates of the first `part` rounds, int64 `[classes x wanted]`.

    >>> labels = candidate_labels(2, 1)
    >>> kept_rows(torch.linspace(0.9, 0.1, 16), labels, 1, 1).tolist()
    [0, 1]
    >>> kept_rows(torch.linspace(0.1, 0.9, 16), labels, 4, 1).tolist()
    [6, 7]
    """
    count = part * wanted * len(labels.unique())
    return surest(sure[:count], labels[:count], wanted)


@torch.no_grad()
def features_of(classifier: SmallClassifier, images: Tensor) -> Tensor:
    """float64 `[n, F]`, what the last layer of a classifier sees."""
    classifier.eval()
    return torch.cat([classifier.embed(part) for part in images.split(CHUNK)]).double()


def spread_of(features: Tensor, labels: Tensor) -> float:
    """Mean squared distance from the mean of the own class.

    >>> spread_of(torch.tensor([[0.0], [2.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 1]))
    2.5
    """
    groups = [features[labels == label] for label in labels.unique().tolist()]
    return float(torch.cat([(group - group.mean(dim=0)).square().sum(dim=1) for group in groups]).mean())


def measure_set(samples: Tensor, labels: Tensor, images: Images, judges: Judges, plan: Plan) -> dict[str, float]:
    """Everything of one set of samples."""
    features = features_of(judges.observer, samples)
    metric = ManifoldPrecisionRecall(features=features.shape[1])
    metric.update(features_of(judges.observer, images.held_out), real=True)
    metric.update(features, real=False)
    precision, recall = metric.compute()
    score = classification_accuracy(
        samples,
        labels,
        images.held_out,
        images.held_out_labels,
        num_classes=images.classes,
        steps=plan.classifier_steps,
    )
    return {
        "precision": precision,
        "recall": recall,
        "recognised": float((predict_classes(judges.observer, samples) == labels).double().mean()),
        "accuracy_score": score,
        "spread": spread_of(features, labels),
    }


def run_cell(hierarchy: Hierarchy, images: Images, judges: Judges, plan: Plan, draw: int) -> dict[str, Any]:
    """One draw of candidates, and the sets that are kept of it, by the number of candidates for each."""
    labels = candidate_labels(images.classes, plan.wanted)
    samples = drawn(hierarchy, labels, seed=draw)[1]
    sure = own_class_probabilities(judges.keeper, samples, labels)
    found: dict[str, Any] = {}
    for part in PARTS:
        rows = kept_rows(sure, labels, part, plan.wanted)
        shown = torch.cat([rows[labels[rows] == label][:SHOWN_EACH] for label in range(images.classes)])
        found[str(part)] = {
            "numbers": measure_set(samples[rows], labels[rows], images, judges, plan),
            "images": samples[shown].tolist(),
        }
    return found


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdict_of(draws: Sequence[Mapping[str, Mapping[str, float]]]) -> bool:
    """The criterion, of the numbers of each draw by the number of candidates for each sample."""
    all_of_them, fewest = str(min(PARTS)), str(max(PARTS))
    return all(
        found[fewest]["precision"] > found[all_of_them]["precision"]
        and found[fewest]["recall"] < found[all_of_them]["recall"]
        for found in draws
    )


def share(part: str) -> str:
    """Of the candidates that is kept.

    >>> share("1"), share("8")
    ('1', '1/8')
    """
    return part if part == "1" else f"1/{part}"


def draw_plot(cells: list[dict[str, Any]], means: dict[str, dict[str, float]], folder: Path) -> None:
    """Samples of the first draw, and what is measured, every draw as a dot."""
    drawn_figure = plots.Figure(figsize=(9.4, 5.4), layout="constrained", facecolor="white")
    above, below = drawn_figure.subfigures(2, 1, height_ratios=(1, 1.3))
    for axis, part in zip(above.subplots(len(PARTS), 1), cells[0], strict=True):
        plots.strip_of_images(axis, torch.tensor(cells[0][part]["images"], dtype=torch.uint8), f"kept: {share(part)}")
    left, right = below.subplots(1, 2)
    for axis, names in ((left, ("precision", "recall")), (right, ("recognised", "accuracy_score"))):
        for colour, name in zip(plots.COLOURS, names, strict=False):
            for cell in cells:
                values = [cell[part]["numbers"][name] for part in cell]
                axis.plot(range(len(values)), values, "o", markersize=4, color=colour, alpha=0.5)
            axis.plot(
                range(len(means)), [found[name] for found in means.values()], color=colour, label=name.replace("_", " ")
            )
        axis.set_xticks(range(len(means)), [share(part) for part in means])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=plots.RULE, linewidth=0.6)
        axis.legend(fontsize=8)
    plots.label(left, "of the samples, and of held-out digits", "share of the candidates that is kept")
    plots.label(right, "what classifiers say", "share of the candidates that is kept")
    plots.save(drawn_figure, folder, CLAIM)


def measure(options: Options) -> Verdict:
    """All draws."""
    plan, images = QUICK if options.quick else FULL, digits()
    model = digit_autoencoder(images, plan, options.cells)
    priors = digit_priors(plan.kind, codes_of(model, images.train), images, plan, options.cells)
    hierarchy, about = hierarchy_of(model, priors, images), {k: v for k, v in asdict(plan).items() if k != "draws"}
    judges = make_judges(images, plan)
    cells = [
        options.cells.of({**about, "draw": draw}, partial(run_cell, hierarchy, images, judges, plan, draw))
        for draw in plan.draws
    ]
    draws = [{part: cell[part]["numbers"] for part in cell} for cell in cells]
    means = {
        part: {name: float(np.mean([found[part][name] for found in draws])) for name in draws[0][part]}
        for part in draws[0]
    }
    draw_plot(cells, means, options.plots)
    numbers: dict[str, Any] = {f"kept {share(part)}": found for part, found in means.items()}
    numbers["by_draw"] = {
        name: {f"kept {share(part)}": [found[part][name] for found in draws] for part in means}
        for name in ("precision", "recall")
    }
    return Verdict(CLAIM, verdict_of(draws), rounded(numbers | {"about": asdict(plan)}))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
