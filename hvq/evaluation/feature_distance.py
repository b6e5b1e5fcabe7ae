"""The networks that a perceptual loss is told of by name: a classifier of one's own, or LPIPS.

A recipe hands this to the training, which knows of no network by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from hvq.autoencoders.perceptual import FeatureDistance, LayerDistance
from hvq.errors import ConfigurationError
from hvq.evaluation.own_classifier import OwnClassifier, load_own_classifier
from hvq.evaluation.perceptual import SMALLEST_SIDE
from hvq.evaluation.pretrained import WeightsMissing, load_lpips_network


def load_feature_distance(extractor: str, *, channels: int, size: Sequence[int]) -> FeatureDistance:
    """The distance of a perceptual loss.

    Args:
        extractor: folder of a classifier, such as an evaluation leaves in a run's `evaluation/classifier`; or "lpips".
        channels: C of the images.
        size: H and W.

    Raises:
        ConfigurationError: where the network does not suit the images, or LPIPS cannot be had here.
        CheckpointError: where there is no classifier in the folder, or it is damaged.
    """
    if extractor == "lpips":
        return _lpips(channels, size)
    classifier = load_own_classifier(Path(extractor))
    wanted = classifier.description.channels
    if wanted != channels:
        raise ConfigurationError(
            f"extractor {extractor} has learned from images of {wanted} channels, and the images have {channels}; take "
            "one of an evaluation of images like these"
        )
    return LayerDistance(classifier.name, _blocks(classifier))


def _blocks(classifier: OwnClassifier) -> list[nn.Module]:
    """What the classifier does between an image and its pooled features, each part up to a rectifier."""
    blocks: list[nn.Module] = []
    modules: list[nn.Module] = []
    for module in classifier.network.features:
        modules.append(module)
        if isinstance(module, nn.ReLU):
            blocks.append(nn.Sequential(*modules))
            modules = []
    return blocks


class _Lpips(FeatureDistance):
    """Equation (1) of arXiv 1801.03924 with its learned weights, by torchmetrics."""

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distances `[B]`; images of one channel are repeated to three."""
        pair = (pixels.float().expand(-1, 3, -1, -1) for pixels in (images, reconstructions))
        return self.network(*pair, normalize=False).flatten()


def _lpips(channels: int, size: Sequence[int]) -> FeatureDistance:
    if channels not in (1, 3) or min(size) < SMALLEST_SIDE:
        raise ConfigurationError(
            f"lpips takes images of 1 or 3 channels and at least {SMALLEST_SIDE} pixels per side; they have {channels} "
            f"and are {size[0]}x{size[1]}: name the folder of a classifier of your own as extractor"
        )
    try:
        return _Lpips("LPIPS on AlexNet, by torchmetrics", load_lpips_network())
    except WeightsMissing as missing:
        raise ConfigurationError(f"{missing}; or name the folder of a classifier of your own as extractor") from None
