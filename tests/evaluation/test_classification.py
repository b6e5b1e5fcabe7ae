"""The classifier of the classification accuracy score: what it learns, and that its result is a pure function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.classification import (
    SmallClassifier,
    _offsets,
    _order,
    _shifted,
    class_probabilities,
    classification_accuracy,
    fit_classifier,
    predict_classes,
    top_accuracy,
)
from hvq.randomness import permutation


def _stripes(count: int, seed: int, size: tuple[int, int] = (11, 13)) -> tuple[Tensor, Tensor]:
    """Noisy horizontal (class 0), vertical (1) and chequered (2) stripes."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size[0]) // 2 % 2, torch.arange(size[1]) // 2 % 2, indexing="ij")
    patterns = torch.stack([rows, columns, rows ^ columns])[:, None].float() * 200
    labels = torch.arange(count) % 3
    noise = torch.rand(count, 1, *size, generator=generator) * 55
    return (patterns[labels] + noise).byte(), labels


def _accuracy(seed: int = 0, *, steps: int = 30, shuffled_labels: bool = False) -> float:
    images, labels = _stripes(47, seed=1)
    if shuffled_labels:
        labels = labels[torch.from_numpy(permutation(47, "labels"))]
    return classification_accuracy(
        images, labels, *_stripes(60, seed=2), num_classes=3, steps=steps, batch_size=16, seed=seed
    )


def test_learns_what_can_be_learned() -> None:
    assert _accuracy() >= 0.95


def test_probabilities_are_those_of_the_classifier_behind_the_accuracy() -> None:
    images, labels = _stripes(47, seed=1)
    test_images, test_labels = _stripes(60, seed=2)
    classifier = fit_classifier(images, labels, num_classes=3, steps=30, batch_size=16)
    probabilities = class_probabilities(classifier, test_images)
    assert probabilities.dtype == torch.float64
    torch.testing.assert_close(probabilities.sum(1), torch.ones(60, dtype=torch.float64))
    assert torch.equal(probabilities.argmax(1), predict_classes(classifier, test_images))
    assert float((probabilities.argmax(1) == test_labels).double().mean()) == _accuracy()
    with pytest.raises(DataError, match="training images must be uint8"):
        fit_classifier(images[:0], labels[:0], num_classes=3)


def test_batches_alone_go_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device that knows shapes alone stands for one beside the CPU: operations refuse tensors of both."""
    meta, original = torch.device("meta"), torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *words, fused, **names: original(*words, **names))
    images, labels = _stripes(300, seed=1)
    seen: list[tuple[int, torch.device]] = []
    forward = SmallClassifier.forward

    def noted(self: SmallClassifier, batch: Tensor) -> Tensor:
        seen.append((len(batch), batch.device))
        return forward(self, batch)

    monkeypatch.setattr(SmallClassifier, "forward", noted)
    classifier = fit_classifier(images, labels, num_classes=3, steps=2, batch_size=7, device=meta)
    assert class_probabilities(classifier, images).shape == (300, 3)
    assert seen == [(7, meta), (7, meta), (256, meta), (44, meta)]


def test_the_right_class_may_be_among_several() -> None:
    probabilities = torch.rand(31, 7, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels = torch.arange(31) % 7
    ranks = [int((row > row[label]).sum()) for row, label in zip(probabilities, labels, strict=True)]
    for top in (1, 2, 5, 7):
        assert top_accuracy(probabilities, labels, top) == sum(rank < top for rank in ranks) / 31
    assert top_accuracy(probabilities, labels, 7) == 1.0
    for top in (0, 8):
        with pytest.raises(DataError, match="from 1 to the number of classes, 7"):
            top_accuracy(probabilities, labels, top)


def test_the_head_sees_what_is_embedded() -> None:
    classifier = SmallClassifier(channels=1, size=(11, 13), num_classes=3)
    images = torch.randint(0, 256, (5, 1, 11, 13), dtype=torch.uint8)
    torch.testing.assert_close(classifier.head(classifier.embed(images)), classifier(images))
    assert float(classifier.embed(images).detach().min()) >= 0


def test_learns_nothing_from_wrong_labels() -> None:
    assert _accuracy(shuffled_labels=True) <= 0.7


def test_is_a_function_of_its_seed() -> None:
    few = {seed: _accuracy(seed, steps=4) for seed in (0, 1, 2, 3)}
    assert few == {seed: _accuracy(seed, steps=4) for seed in (0, 1, 2, 3)}
    assert len(set(few.values())) > 1


def test_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _accuracy(steps=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size", [(8, 8), (11, 13), (32, 32), (67, 31)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_takes_any_channels_and_sizes(size: tuple[int, int], channels: int) -> None:
    classifier = SmallClassifier(channels=channels, size=size, num_classes=7)
    assert classifier(torch.zeros(2, channels, *size, dtype=torch.uint8)).shape == (2, 7)


def test_an_image_is_classified_by_itself() -> None:
    classifier = SmallClassifier(channels=1, size=(11, 13), num_classes=3)
    images = torch.rand(5, 1, 11, 13) * 255
    torch.testing.assert_close(classifier(images)[2:3], classifier(images[2:3]), rtol=1e-4, atol=1e-5)


def test_every_epoch_shows_every_image_once() -> None:
    order = _order(7, 17, seed=3)
    assert sorted(order[:7].tolist()) == sorted(order[7:14].tolist()) == list(range(7))
    assert order[:7].tolist() != order[7:14].tolist()


def test_shifts_reach_two_pixels_at_32_and_are_balanced() -> None:
    offsets = _offsets((32, 48), 2000, seed=0)
    assert offsets[0].unique().tolist() == [-2, -1, 0, 1, 2]
    assert offsets[1].unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert offsets.double().mean(1).abs().max() < 0.15
    assert torch.equal(_offsets((32, 48), 7, seed=0), offsets[:, :7])


def test_shifted_images_repeat_their_borders() -> None:
    images = torch.arange(2 * 3 * 5, dtype=torch.uint8).view(2, 1, 3, 5)
    shifted = _shifted(images, torch.tensor([[1, 0], [0, -2]]))
    assert torch.equal(shifted[0, 0], images[0, 0][[1, 2, 2]])
    assert torch.equal(shifted[1, 0], images[1, 0][:, [0, 0, 0, 1, 2]])


def test_refuses_what_it_cannot_learn_from() -> None:
    images, labels = _stripes(7, seed=0)
    with pytest.raises(DataError, match=r"0 \.\. 1"):
        classification_accuracy(images, labels, images, labels, num_classes=2)
    with pytest.raises(DataError, match="training images must be uint8"):
        classification_accuracy(images.float(), labels, images, labels, num_classes=3)
    with pytest.raises(DataError, match="test images must be uint8"):
        classification_accuracy(images, labels, images, labels[:5], num_classes=3)
    with pytest.raises(DataError, match="one size"):
        classification_accuracy(images, labels, images[..., :11], labels, num_classes=3)
    with pytest.raises(DataError, match="8x8"):
        SmallClassifier(channels=1, size=(7, 32), num_classes=3)
