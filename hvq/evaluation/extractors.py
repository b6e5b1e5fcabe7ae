"""Where features of images come from: Inception, or a classifier of one's own.

Letters: n images, C H W image, F features, Y classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hvq.evaluation.own_classifier import OwnClassifier


@dataclass(frozen=True)
class Extracted:
    """What an extractor sees in images.

    Attributes:
        features: floating point `[n, F]`.
        probabilities: of each class, floating point `[n, Y]`; Y is 0 where the extractor knows no classes.
    """

    features: Tensor
    probabilities: Tensor


class FeatureExtractor(Protocol):
    """From images to features. Numbers that follow from them carry `kind` in their name, and `name` in their text.

    Attributes:
        kind: one word; numbers of two extractors of one kind are called alike, and compare only where `name` is equal.
        name: which one it is, what it was trained on, and whether what is measured was trained to please it.
    """

    kind: str
    name: str

    def __call__(self, images: Tensor) -> Extracted:
        """Features of images, uint8 `[n, C, H, W]`, on the extractor's device."""
        ...


class ClassifierExtractor:
    """What the head of a classifier of one's own sees, and the probabilities of its classes.

    Args:
        classifier: of classes, or of rotations, whose probabilities say nothing of images and are left out.
        loss: what its features are to the loss of the autoencoder that is measured, in words; empty where they are
            nothing to it.
    """

    def __init__(self, classifier: OwnClassifier, *, loss: str = "") -> None:
        self.classifier = classifier
        self.kind = "classifier" if classifier.description.task == "classes" else "rotations"
        self.name = f"{classifier.name} ({loss})" if loss else classifier.name

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        """Features `[n, F]` before the head, and probabilities `[n, Y]` of images, uint8 `[n, C, H, W]`."""
        network = self.classifier.network
        features = network.embed(images)
        classes = network.head(features).double().softmax(1)
        return Extracted(features, classes if self.kind == "classifier" else classes[:, :0])


class InceptionExtractor:
    """The last pooled features of Inception v3, and the probabilities of its classes, as published FID has them.

    Args:
        network: of `load_inception_network`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.kind = "inception"
        self.name = "Inception v3 (weights of 2015-12-05, by torch-fidelity)"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        """Features `[n, 2048]` and probabilities `[n, 1008]` of images, uint8 `[n, C, H, W]`, grey ones repeated."""
        features, logits = self.network(images.expand(-1, 3, -1, -1))
        return Extracted(features, logits.double().softmax(1))
