"""What rejection sampling trades: which samples are kept, and of which of them each number is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvq.config import RunConfig
from hvq.distributed import Reduction
from hvq.evaluation.classification import class_probabilities, fit_classifier, predict_classes, top_accuracy
from hvq.evaluation.extractors import Extracted
from hvq.evaluation.measure_classification import (
    SHARES,
    Drawn,
    classification_scores,
    measure_rejection,
    why_no_accuracy,
    why_no_rejection,
)
from hvq.evaluation.measure_features import Seen, precision_recall, see

CPU = torch.device("cpu")


class _Means:
    """Sees means of quarters of an image."""

    kind, name = "means", "means of quarters"

    def __call__(self, images: Tensor) -> Extracted:
        quarters = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return Extracted(quarters, quarters[:, :0])


class _Judge(nn.Module):
    """Takes bright images for class 1, and dark ones for class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(6.0))

    def forward(self, images: Tensor) -> Tensor:
        means = images.float().mean((1, 2, 3)) / 20 - self.middle
        return torch.stack([-means, means], 1)


def _images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Class 1 is brighter; samples of either are more or less so."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    means = 80 + 80 * labels + 60 * torch.randn(count, generator=generator)
    noise = 30 * torch.randn(count, 1, 8, 8, generator=generator)
    return (means.view(-1, 1, 1, 1) + noise).clamp(0, 255).byte(), labels


def _seen(images: Tensor) -> Seen:
    return see(_Means(), images, chunk_size=7, device=CPU, reduction=Reduction())


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "autoencoder": {"channels": 1, "levels": {"top": {"ratio": 4}}},
            "evaluation": {"classifier_steps": 20, "neighbours": 2},
            "seed": 5,
        }
    )


@pytest.fixture(scope="module")
def numbers(config: RunConfig) -> dict[str, Any]:
    (generated, labels), (real, classes) = _images(94, 0), _images(61, 1)
    measured = measure_rejection(
        config,
        Drawn(generated, labels, "in one way"),
        {"images": real, "labels": classes},
        judge=_Judge(),
        extractor=_Means(),
        seen_training=_seen(real),
        seen_generated=_seen(generated),
        num_classes=2,
        reduction=Reduction(),
        device=CPU,
    )
    found: dict[str, Any] = measured.numbers["rejection"]
    return found


def _kept(share: float) -> dict[int, list[int]]:
    """The darkest samples of class 0, and the brightest of class 1."""
    generated, labels = _images(94, 0)
    brightness = generated.float().mean((1, 2, 3))
    kept = {}
    for label in (0, 1):
        members = sorted((labels == label).nonzero().flatten().tolist(), key=lambda i: float(brightness[i]))
        count = int(len(members) * share)
        kept[label] = members[:count] if label == 0 else members[-count:]
    return kept


def test_of_each_class_the_surest_are_kept_and_judged_by_another_classifier(
    numbers: dict[str, Any], config: RunConfig
) -> None:
    (generated, labels), (real, classes) = _images(94, 0), _images(61, 1)
    second = fit_classifier(real, classes, num_classes=2, steps=20, seed=6)
    right = predict_classes(second, generated) == labels
    assert list(numbers) == ["1", "0.5", "0.25", "0.125"]
    for share in SHARES:
        rows = [row for kept in _kept(share).values() for row in kept]
        found = numbers[f"{share:g}"]
        assert found["kept"] == len(rows)
        assert found["accuracy"] == pytest.approx(float(right[rows].double().mean()))
    assert numbers["0.125"]["accuracy"] > numbers["1"]["accuracy"]


def test_precision_and_recall_are_of_equal_numbers(numbers: dict[str, Any]) -> None:
    """The smallest share holds 5 of each of 2 classes; of it, all are taken."""
    generated, _ = _images(94, 0)
    rows = torch.tensor(sorted(row for kept in _kept(0.125).values() for row in kept))
    assert len(rows) == 10
    expected = precision_recall(_seen(_images(61, 1)[0]), _seen(generated[rows]), 2)
    assert expected is not None
    assert (numbers["0.125"]["precision"], numbers["0.125"]["recall"]) == expected
    for found in numbers.values():
        # Of 10 samples the precision is a multiple of 1/10, whatever the share.
        assert found["precision"] * 10 == pytest.approx(round(found["precision"] * 10))
    assert len({found["recall"] for found in numbers.values()}) > 1


def test_scores_allow_several_classes_of_one_classifier(config: RunConfig) -> None:
    """Of 3 classes, the mean of 2 seeds."""
    config = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"classifier_steps": 4, "classifier_seeds": 2})}
    )
    (images, labels), (real, classes) = _images(53, 0), _images(31, 1)
    labels, classes = labels + 1, classes + 1
    held_out = {"images": real, "labels": classes}
    found = classification_scores(config, {"some": (images, labels)}, held_out, 3, Reduction(), CPU, tops=(1, 2, 3))
    expected = []
    for top in (1, 2, 3):
        fitted = [fit_classifier(images, labels, num_classes=3, steps=4, seed=seed) for seed in (0, 1)]
        accuracies = [top_accuracy(class_probabilities(one, real), classes, top) for one in fitted]
        expected.append(sum(accuracies) / 2)
    assert found == {"some": pytest.approx(expected)}
    assert expected[0] < expected[1] <= expected[2] == 1


def test_one_class_is_nothing_to_tell_apart() -> None:
    images, labels = _images(13, 0)
    two, one, none = ({"images": images, "labels": some} for some in (labels, labels * 0, labels * 0 - 1))
    assert why_no_accuracy(two, one) == why_no_rejection(two) == ""
    # Images without a label are no second class.
    mixed = {"images": images, "labels": labels - 1}
    for training in (one, mixed):
        for reason in (why_no_accuracy(training, two), why_no_rejection(training)):
            assert reason.startswith("left out, since training images are of one class")
    assert "without labels" in why_no_accuracy(two, none)
    assert "no labels" in why_no_rejection(none)


def test_the_reason_why_shares_have_no_manifolds_is_that_of_the_smaller_set(config: RunConfig) -> None:
    (generated, labels), (real, classes) = _images(94, 0), _images(61, 1)
    measured = measure_rejection(
        config,
        Drawn(generated, labels, "in one way"),
        {"images": real, "labels": classes},
        judge=_Judge(),
        extractor=_Means(),
        seen_training=_seen(real[:2]),
        seen_generated=_seen(generated),
        num_classes=2,
        reduction=Reduction(),
        device=CPU,
    )
    assert {found["recall"] for found in measured.numbers["rejection"].values()} == {None}
    about = measured.about["rejection"]
    assert "precision and recall are left out, since manifolds take more than 2 images of each set, and there" in about
    assert "94 samples (in one way)" in about
