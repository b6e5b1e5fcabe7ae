"""Classifier-based rejection sampling: of more samples than are wanted, those that a classifier is surest of.

Section 3.3 of VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446): it trades diversity for quality. The classifier is the
small one of the classification accuracy score, trained on the run's real images.

Letters: n candidates, C H W image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hvq.config import RunConfig
from hvq.data import ImageSource
from hvq.data.views import noun
from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.evaluation.classification import SMALLEST_SIDE, class_probabilities, fit_classifier
from hvq.evaluation.real_images import gather_images, labelled
from hvq.evaluation.sample_files import Samples
from hvq.storage import Hierarchy, require_channels

# A share such as 0.1 is not exact in binary: 3 / 0.1 must be 30 candidates, not 31.
_ROUNDING = 1e-9


def surest(probabilities: Tensor, labels: Tensor, per_class: int | Mapping[int, int]) -> Tensor:
    """The candidates of each class that are most probably of it.

    Args:
        probabilities: `[n]`, that a candidate is of its own class.
        labels: integers `[n]`, the class of each.
        per_class: how many are kept of each class; of equals the first.

    Returns:
        int64, the kept candidates in the order in which they came.

    Raises:
        DataError: where the two do not match, a probability is none, or a class has fewer candidates than are kept.

    >>> surest(torch.tensor([0.2, 0.9, 0.9, 0.4, 0.5]), torch.tensor([0, 0, 0, 1, 1]), 1).tolist()
    [1, 4]
    """
    _check(probabilities, labels)
    kept = []
    for label in labels.unique().tolist():
        candidates = (labels == label).nonzero().flatten()
        wanted = per_class if isinstance(per_class, int) else per_class[label]
        if wanted > len(candidates):
            raise DataError(
                f"{wanted} are to be kept of class {label}, which has {len(candidates)} candidates; draw more of them"
            )
        order = probabilities[candidates].sort(descending=True, stable=True).indices
        kept.append(candidates[order[:wanted]])
    return torch.cat([labels.new_zeros(0, dtype=torch.int64), *kept]).sort().values


def check_share(share: float) -> None:
    """Refuse what is not a share of the candidates.

    Raises:
        ConfigurationError: where it is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigurationError(
            f"the share of candidates to keep must be above 0 and at most 1; received {share:g}: 0.25 keeps a quarter"
        )


def candidate_labels(labels: Sequence[int], share: float) -> list[int]:
    """Labels of so many candidates, class by class, that the share that is kept has as many of each as `labels`.

    >>> candidate_labels([4, 4, 2], 0.4)
    [4, 4, 4, 4, 4, 2, 2, 2]
    """
    counts = Counter(labels)
    return [label for label, count in counts.items() for _ in range(math.ceil(count / share - _ROUNDING))]


def kept_per_class(labels: Sequence[int], share: float) -> dict[int, int]:
    """How many are kept of each class of candidates, at least one; the inverse of `candidate_labels`.

    >>> kept_per_class(candidate_labels([4, 4, 2], 0.4), 0.4)
    {4: 2, 2: 1}
    """
    return {label: max(1, math.floor(count * share + _ROUNDING)) for label, count in Counter(labels).items()}


@dataclass(frozen=True)
class Judge:
    """Chooses among candidates.

    Attributes:
        classifier: gives logits of all classes.
        share: of the candidates that is kept.
    """

    classifier: nn.Module
    share: float

    def choose(self, samples: Samples, reduction: Reduction) -> Samples:
        """The share of the samples of each class that the classifier is surest of, the same on every process."""
        assert samples.images is not None
        sure = own_class_probabilities(self.classifier, samples.images, samples.labels)
        # One process decides: classifiers of several devices may differ in the last bit.
        sure, labels = reduction.first(sure).cpu(), samples.labels
        rows = surest(sure, labels, kept_per_class(labels.tolist(), self.share))
        if len(rows) == len(samples):
            return samples
        # Of samples that were chosen before, all that they were chosen from count.
        candidates = samples.candidates if samples.chosen else len(samples)
        return replace(samples.rows(rows), candidates=candidates, chosen=len(rows))


def fit_judge(
    config: RunConfig,
    hierarchy: Hierarchy,
    source: ImageSource,
    *,
    labels: Sequence[int],
    share: float,
    reduction: Reduction,
) -> Judge:
    """A judge whose classifier has learned the classes from real training images, on every process.

    Args:
        config: of the run; `evaluation.classifier_steps` is how long the classifier trains.
        hierarchy: whose samples it will judge.
        source: the run's training images.
        labels: of the candidates.
        share: of the candidates that is kept.
        reduction: over the processes, which read images in turn.

    Raises:
        ConfigurationError: where the share is not in (0, 1].
        DataError: where a candidate has no class, or the images are too small, or not those that the run was trained
            on, or none of those that the classifier learns from is of a candidate's class.
    """
    check_share(share)
    _require_classes(hierarchy, labels)
    _require_source(hierarchy, source)
    device = next(hierarchy.autoencoder.parameters()).device
    real = labelled(gather_images(config, source, reduction, device))
    _require_seen(hierarchy, labels, real["labels"])
    steps, number = config.evaluation.classifier_steps, len(hierarchy.classes)
    classifier = fit_classifier(
        real["images"], real["labels"], num_classes=number, steps=steps, seed=config.seed, device=device
    )
    return Judge(classifier, share)


def own_class_probabilities(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """How sure a classifier is that each image is of its class.

    Args:
        classifier: gives logits of all classes.
        images: uint8 `[n, C, H, W]`, on any device.
        labels: int64 `[n]`.

    Returns:
        float64 `[n]`, on the classifier's device.
    """
    probabilities = class_probabilities(classifier, images)
    return probabilities.gather(1, labels.to(probabilities.device).unsqueeze(1)).squeeze(1)


def _require_classes(hierarchy: Hierarchy, labels: Sequence[int]) -> None:
    if not hierarchy.classes or min(labels, default=0) < 0:
        found = "there are samples without one" if hierarchy.classes else "this run was trained without labels"
        raise DataError(f"keeping the surest samples takes the class of each, and {found}: keep all instead")
    if len(hierarchy.classes) < 2:
        raise DataError(
            f"keeping the surest samples takes two classes to tell apart, and this run has {hierarchy.classes[0]} alone"
            ": keep all instead"
        )
    if len(hierarchy.image_size) != 2:
        raise DataError(
            "keeping the surest samples takes images, which the classifier sees; samples of this run are "
            f"{noun(hierarchy.image_size)}s: keep all instead"
        )
    if min(hierarchy.image_size) < SMALLEST_SIDE:
        raise DataError(
            f"keeping the surest samples takes images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}; those of this run "
            f"are {'x'.join(map(str, hierarchy.image_size))}: keep all instead"
        )


def _require_seen(hierarchy: Hierarchy, labels: Sequence[int], seen: Tensor) -> None:
    """Refuse candidates of classes that the classifier cannot learn."""
    if not len(seen):
        raise DataError("keeping the surest samples takes training images with labels; data has none: keep all instead")
    learned = set(seen.unique().tolist())
    unseen = [hierarchy.classes[label] for label in sorted(set(labels)) if label not in learned]
    if unseen:
        raise DataError(
            f"keeping the surest samples takes training images of each class that is drawn; among {len(seen)} spread "
            f"over the split there is none of {', '.join(unseen)}: draw other classes, or keep all instead"
        )


def _check(probabilities: Tensor, labels: Tensor) -> None:
    if probabilities.dim() != 1 or probabilities.shape != labels.shape:
        raise DataError(
            "each candidate takes one probability and one label, [n]; "
            f"received {list(probabilities.shape)} and {list(labels.shape)}"
        )
    # NaN is neither at least 0 nor at most 1.
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        low, high = float(probabilities.min()), float(probabilities.max())
        raise DataError(f"probabilities must be in [0, 1]; received values in [{low:.3g}, {high:.3g}]")


def _require_source(hierarchy: Hierarchy, source: ImageSource) -> None:
    require_channels(hierarchy.channels, source.channels)
    if source.size != hierarchy.image_size or source.classes != hierarchy.classes:
        raise DataError(
            f"the classifier learns from images of {'x'.join(map(str, hierarchy.image_size))} in the classes "
            f"{', '.join(hierarchy.classes)}; data gives {'x'.join(map(str, source.size))} in "
            f"{', '.join(source.classes) or 'none'}: use the data that the run was trained on"
        )
