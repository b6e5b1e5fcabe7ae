"""The classification accuracy score: how well a classifier that has seen only generated images knows real ones.

Ravuri and Vinyals (2019, arXiv 1905.10887), and section 4 of VQ-VAE-2 (arXiv 1906.00446). One small classifier with
one recipe serves every source, real, reconstructed or generated, so that only the images differ.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvq.errors import DataError
from hvq.randomness import permutation, uniform

SMALLEST_SIDE = 8
STEM_STRIDE = 4
COARSEST_GRID = 2
WIDTHS = (24, 48, 96, 128)

LEARNING_RATE = 3e-3
WARMUP_SHARE = 0.2
WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.1
SHIFT_SHARE = 1 / 16
EVALUATION_BATCH = 256


class SmallClassifier(nn.Module):
    """A small convolutional network: a strided stem, then strided 3x3 convolutions until the grid is about 2x2.

    Group normalisation, so that an image's logits depend on that image alone, in training as in use.

    Args:
        channels: C.
        size: H and W, each at least 8.
        num_classes: number of logits.

    Raises:
        DataError: where a side is shorter than 8 pixels.

    Example:
        >>> SmallClassifier(channels=1, size=(32, 32), num_classes=10)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, channels: int, size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        if min(size) < SMALLEST_SIDE:
            raise DataError(
                f"the classifier needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}; received {size[0]}x{size[1]}"
            )
        halvings = max(1, math.ceil(math.log2(max(size) / STEM_STRIDE / COARSEST_GRID)))
        widths = [WIDTHS[min(i, len(WIDTHS) - 1)] for i in range(halvings + 1)]
        layers = _block(channels, widths[0], kernel_size=2 * STEM_STRIDE, stride=STEM_STRIDE)
        for narrow, wide in pairwise(widths):
            layers += _block(narrow, wide, kernel_size=3, stride=2)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(COARSEST_GRID), nn.Flatten())
        self.head = nn.Linear(widths[-1] * COARSEST_GRID**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W], uint8 or float in [0, 255]."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """What the head sees of images [B, C, H, W], uint8 or float in [0, 255]: [B, F], none of them negative."""
        embedded: Tensor = self.features(images.float() / 127.5 - 1.0)
        return embedded


def classification_accuracy(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    steps: int = 400,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Accuracy on test images of a `SmallClassifier` trained on the others, with AdamW and a one-cycle learning rate.

    The result depends on the arguments alone; torch's global random state is left as it was. The score is the
    mean over several seeds.

    Args:
        train_images: real, reconstructed or generated; uint8 [n, C, H, W], on the device to train on.
        train_labels: integers [n] in 0 .. num_classes - 1.
        test_images: real and held out; uint8 [m, C, H, W].
        test_labels: integers [m].
        num_classes: number of classes.
        steps: optimizer steps.
        batch_size: images per step; they are drawn epoch by epoch, however few there are.
        seed: of weights, order and shifts.

    Returns:
        The share of test images whose class is right, in [0, 1].

    Raises:
        DataError: where images and labels do not match, or a label is out of range.

    Example:
        >>> images = torch.cat([torch.zeros(8, 1, 8, 8), torch.full((8, 1, 8, 8), 255.0)]).byte()
        >>> labels = torch.tensor([0] * 8 + [1] * 8)
        >>> classification_accuracy(images, labels, images, labels, num_classes=2, steps=20, batch_size=8)
        1.0
    """
    _check(test_images, test_labels, num_classes, "test")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            "training and test images must have one size [C, H, W]; "
            f"received {list(train_images.shape[1:])} and {list(test_images.shape[1:])}"
        )
    classifier = fit_classifier(
        train_images, train_labels, num_classes=num_classes, steps=steps, batch_size=batch_size, seed=seed
    )
    return top_accuracy(class_probabilities(classifier, test_images).cpu(), test_labels.cpu(), 1)


def top_accuracy(probabilities: Tensor, labels: Tensor, top: int) -> float:
    """The share of images whose class is among the most probable ones.

    Args:
        probabilities: of each class, [n, classes].
        labels: integers [n].
        top: how many of the most probable classes count, at most the number of classes.

    Raises:
        DataError: where there are not so many classes.

    Example:
        >>> top_accuracy(torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]), torch.tensor([1, 0]), 2)
        0.5
    """
    if not 1 <= top <= probabilities.shape[1]:
        raise DataError(f"top must be from 1 to the number of classes, {probabilities.shape[1]}; received {top}")
    first = probabilities.topk(top, dim=1).indices
    return float((first == labels[:, None]).any(1).double().mean())


def fit_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    steps: int = 400,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | None = None,
) -> SmallClassifier:
    """A `SmallClassifier` trained with AdamW and a one-cycle learning rate.

    It depends on the arguments alone; torch's global random state is left as it was.

    Args:
        images: uint8 [n, C, H, W].
        labels: integers [n] in 0 .. num_classes - 1.
        num_classes: number of classes.
        steps: optimizer steps.
        batch_size: images per step; they are drawn epoch by epoch, however few there are.
        seed: of weights, order and shifts.
        device: to train on, which batches go to one at a time; that of the images by default.

    Raises:
        DataError: where images and labels do not match, or a label is out of range.
    """
    _check(images, labels, num_classes, "training")
    classifier = _new_classifier(images, num_classes, seed, images.device if device is None else device)
    _fit(classifier, images, labels, steps=steps, batch_size=batch_size, seed=seed)
    return classifier


@torch.no_grad()
def class_probabilities(classifier: nn.Module, images: Tensor) -> Tensor:
    """How probable each class is for each image.

    Args:
        classifier: gives logits [B, classes].
        images: uint8 [n, C, H, W], on any device; batches go to the classifier's one at a time.

    Returns:
        float64 [n, classes], on the classifier's device.
    """
    return _logits(classifier, images).double().softmax(1)


@torch.no_grad()
def predict_classes(classifier: nn.Module, images: Tensor) -> Tensor:
    """The most probable class of each image.

    Args:
        classifier: gives logits [B, classes].
        images: uint8 [n, C, H, W], on any device.

    Returns:
        int64 [n], on the classifier's device.
    """
    return _logits(classifier, images).argmax(1)


def _logits(classifier: nn.Module, images: Tensor) -> Tensor:
    classifier.eval()
    device = next(classifier.parameters()).device
    return torch.cat([classifier(part.to(device)) for part in images.split(EVALUATION_BATCH)])


def _block(inputs: int, outputs: int, *, kernel_size: int, stride: int) -> list[nn.Module]:
    padding = (kernel_size - stride + 1) // 2
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)
    return [convolution, nn.GroupNorm(8, outputs), nn.ReLU()]


def _check(images: Tensor, labels: Tensor, num_classes: int, what: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{what} images must be uint8 [n, C, H, W] with labels [n]; "
            f"received {images.dtype} {list(images.shape)} with labels {list(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise DataError(
            f"{what} labels must lie in 0 .. {num_classes - 1}; received {int(labels.min())} .. {int(labels.max())}"
        )


def _new_classifier(images: Tensor, num_classes: int, seed: int, device: torch.device) -> SmallClassifier:
    height, width = images.shape[2:]
    # Only the start of the weights draws from torch's generator: on the CPU, whose state is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = SmallClassifier(channels=images.shape[1], size=(height, width), num_classes=num_classes)
    # Channels last is up to a third faster on the CPU.
    return classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fit(classifier: nn.Module, images: Tensor, labels: Tensor, *, steps: int, batch_size: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=max(2, steps), pct_start=WARMUP_SHARE
    )
    device = next(classifier.parameters()).device
    order = _order(len(images), steps * batch_size, seed).to(images.device).view(steps, batch_size)
    offsets = _offsets((images.shape[2], images.shape[3]), steps * batch_size, seed).to(device)
    offsets = offsets.view(2, steps, batch_size)
    labels = labels.to(images.device)
    classifier.train()
    for step in range(steps):
        batch, classes = images[order[step]].to(device), labels[order[step]].to(device)
        loss = F.cross_entropy(classifier(_shifted(batch, offsets[:, step])), classes, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _order(length: int, total: int, seed: int) -> Tensor:
    """Indices of `total` samples, int64: one permutation of all images after the other."""
    epochs = math.ceil(total / length)
    joined = np.concatenate([permutation(length, seed, "classifier order", epoch) for epoch in range(epochs)])
    return torch.from_numpy(joined[:total])


def _offsets(size: tuple[int, int], total: int, seed: int) -> Tensor:
    """How far each of `total` samples is moved along H and W, int64 [2, total]: up to a sixteenth of the side."""
    reaches = np.array([[round(side * SHIFT_SHARE)] for side in size])
    draws = uniform(seed, "classifier shift", [[0], [1]], np.arange(total))
    return torch.from_numpy(np.floor(draws * (2 * reaches + 1)).astype(np.int64) - reaches)


def _shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Images [B, C, H, W] moved up and left by offsets [2, B], their borders repeated."""
    rows, columns = (
        (torch.arange(side, device=images.device) + offset[:, None]).clamp(0, side - 1)
        for side, offset in zip(images.shape[2:], offsets, strict=True)
    )
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    return images[samples, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
