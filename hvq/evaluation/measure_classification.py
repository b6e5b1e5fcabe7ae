"""What classifiers say of samples: the classification accuracy score, and what rejection sampling trades."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hvq.config import RunConfig
from hvq.data import spread_rows
from hvq.distributed import Reduction
from hvq.evaluation.classification import (
    SMALLEST_SIDE,
    class_probabilities,
    fit_classifier,
    top_accuracy,
)
from hvq.evaluation.extractors import FeatureExtractor
from hvq.evaluation.measure_features import Seen, described, precision_recall, too_few_for_manifolds
from hvq.evaluation.measured import Measured, Numbers
from hvq.evaluation.real_images import labelled
from hvq.evaluation.rejection import kept_per_class, own_class_probabilities, surest

TOP = 5
"""Of so many classes the second accuracy allows any; where there are no more than that it says nothing."""

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of the samples that rejection keeps."""

_GROUP = "classification_accuracy_score"


@dataclass(frozen=True)
class Drawn:
    """Samples that are measured.

    Attributes:
        images: uint8 `[n, C, H, W]`.
        labels: of each, int64 `[n]`.
        how: settings of sampling, in words.
    """

    images: Tensor
    labels: Tensor
    how: str


def why_no_accuracy(training: dict[str, Tensor], held_out: dict[str, Tensor]) -> str:
    """Why there is no accuracy score; empty where there is one.

    Args:
        training: real images with `labels`.
        held_out: the same of held-out ones.
    """
    if not len(_known(held_out)) or not len(_known(training)):
        return "left out, since there is no accuracy score without labels in both splits"
    return _why_no_classifier(training)


def why_no_rejection(training: dict[str, Tensor]) -> str:
    """Why there is nothing to reject samples by; empty where there is."""
    if not len(_known(training)):
        return "left out, since training images have no labels, so no classifier is sure of any class"
    return _why_no_classifier(training)


def _why_no_classifier(training: dict[str, Tensor]) -> str:
    if len(_known(training).unique()) < 2:
        return "left out, since training images are of one class, and a classifier that knows no other is always right"
    if min(training["images"].shape[2:]) < SMALLEST_SIDE:
        return f"left out, since images are smaller than {SMALLEST_SIDE} pixels, the classifier's smallest"
    return ""


def _known(images: dict[str, Tensor]) -> Tensor:
    """The labels of images whose class is known."""
    return images["labels"][images["labels"] >= 0]


def measure_accuracy(
    config: RunConfig,
    drawn: Drawn,
    training: dict[str, Tensor],
    held_out: dict[str, Tensor],
    *,
    num_classes: int,
    reduction: Reduction,
    device: torch.device,
) -> Measured:
    """The classification accuracy score of samples, of reconstructions and of real images.

    Args:
        config: of the run.
        drawn: samples.
        training: `images`, `restored` and `labels` of training images.
        held_out: `images` and `labels` of held-out ones.
        num_classes: of all labels.
        reduction: over the processes, which share the classifiers.
        device: where they are trained.
    """
    real, held_out = labelled(training), labelled(held_out)
    sources = {
        "generated": (drawn.images, drawn.labels),
        "reconstructed": (real["restored"], real["labels"]),
        "real": (real["images"], real["labels"]),
    }
    tops = (1, TOP) if num_classes > TOP else (1,)
    scores = classification_scores(config, sources, held_out, num_classes, reduction, device, tops=tops)
    numbers: Numbers = {name: values[0] for name, values in scores.items()}
    numbers |= {f"{name}_top{TOP}": values[1] if len(tops) > 1 else None for name, values in scores.items()}
    score_about = (
        f"accuracy on {len(held_out['labels'])} held-out real images of a classifier trained for "
        f"{config.evaluation.classifier_steps} steps on {len(drawn.labels)} generated images ({drawn.how}), on "
        f"reconstructions of {len(real['labels'])} training images, and on these themselves; mean of "
        f"{config.evaluation.classifier_seeds} seeds"
    )
    top_about = f"the same, where any of the {TOP} most probable classes may be the right one"
    if len(tops) == 1:
        top_about = f"left out, since there are no more than {TOP} classes"
    return Measured({_GROUP: numbers}, {_GROUP: score_about, f"{_GROUP}.top{TOP}": top_about})


def classification_scores(
    config: RunConfig,
    training: dict[str, tuple[Tensor, Tensor]],
    held_out: dict[str, Tensor],
    num_classes: int,
    reduction: Reduction,
    device: torch.device,
    *,
    tops: tuple[int, ...] = (1,),
) -> dict[str, list[float]]:
    """Mean accuracies over seeds for each set of training images; processes share the classifiers out among them.

    For each of `tops`, the right class may be among so many that are taken for most probable.
    """
    seeds, steps = config.evaluation.classifier_seeds, config.evaluation.classifier_steps
    jobs = [(name, seed) for name in training for seed in range(seeds)]
    totals = torch.zeros(len(training), len(tops), dtype=torch.float64, device=device)
    for name, seed in jobs[reduction.rank :: reduction.size]:
        images, labels = training[name]
        classifier = fit_classifier(images, labels, num_classes=num_classes, steps=steps, seed=seed, device=device)
        probabilities = class_probabilities(classifier, held_out["images"]).cpu()
        accuracies = [top_accuracy(probabilities, held_out["labels"], top) for top in tops]
        totals[list(training).index(name)] += totals.new_tensor(accuracies)
    return dict(zip(training, (reduction.sum(totals) / seeds).tolist(), strict=True))


def measure_rejection(
    config: RunConfig,
    drawn: Drawn,
    training: dict[str, Tensor],
    *,
    judge: nn.Module,
    extractor: FeatureExtractor,
    seen_training: Seen,
    seen_generated: Seen,
    num_classes: int,
    reduction: Reduction,
    device: torch.device,
) -> Measured:
    """Precision, recall and accuracy of the samples that a classifier is surest of, for several shares kept.

    Section 3.3 of VQ-VAE-2 (arXiv 1906.00446): rejection trades diversity for quality. So that the size of a set does
    not pass for its diversity, precision and recall are of as many samples of each share as the smallest share has,
    spread over those kept; and accuracy is what another classifier says than the one that chose.

    Args:
        config: of the run.
        drawn: samples.
        training: `images` and `labels` of training images.
        judge: the classifier that chooses, on the device.
        extractor: that gave the features.
        seen_training: features of training images.
        seen_generated: features of the samples.
        num_classes: of all labels.
        reduction: over the processes.
        device: where classifiers are.
    """
    real, labels, neighbours = labelled(training), drawn.labels, config.evaluation.neighbours
    # One process decides: classifiers of several devices may differ in the last bit.
    sure = reduction.first(own_class_probabilities(judge, drawn.images, labels)).cpu()
    opinions = reduction.first(_second_opinions(config, drawn, real, num_classes, device)).cpu()
    chosen = {share: surest(sure, labels, kept_per_class(labels.tolist(), share)) for share in SHARES}
    fewest = chosen[min(SHARES)]
    numbers: Numbers = {}
    for share, rows in chosen.items():
        equal = _as_many(rows, labels, labels[fewest])
        manifolds = precision_recall(seen_training, seen_generated.among(equal), neighbours)
        precision, recall = manifolds or (None, None)
        accuracy = top_accuracy(opinions[rows], labels[rows], 1)
        numbers[f"{share:g}"] = {"kept": len(rows), "precision": precision, "recall": recall, "accuracy": accuracy}
    few = too_few_for_manifolds(min(len(fewest), seen_training.total), neighbours)
    about = (
        f"by the share of {len(labels)} samples ({drawn.how}) that is kept, of each class those that a classifier of "
        f"{len(real['labels'])} real images is surest of. precision and recall: of {len(fewest)} of the kept against "
        f"{seen_training.total} training images, on features of {described(extractor)}, by manifolds of {neighbours} "
        "nearest neighbours; accuracy: share of the kept that a second classifier, of another seed, takes for the "
        f"class they were drawn for{few and f'; precision and recall are {few}'}"
    )
    return Measured({"rejection": numbers}, {"rejection": about})


def _second_opinions(
    config: RunConfig, drawn: Drawn, real: dict[str, Tensor], num_classes: int, device: torch.device
) -> Tensor:
    """What a classifier of another seed than the judge's, which is the run's, says of the samples: `[n, classes]`."""
    second = fit_classifier(
        real["images"],
        real["labels"],
        num_classes=num_classes,
        steps=config.evaluation.classifier_steps,
        seed=config.seed + 1,
        device=device,
    )
    return class_probabilities(second, drawn.images)


def _as_many(rows: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Of the samples `rows` as many of each class as `wanted` has labels of it, spread over them."""
    parts = [
        rows[labels[rows] == label][torch.from_numpy(spread_rows(int((labels[rows] == label).sum()), int(count)))]
        for label, count in zip(*wanted.unique(return_counts=True), strict=True)
    ]
    return torch.cat(parts)
