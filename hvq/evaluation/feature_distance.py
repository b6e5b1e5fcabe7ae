"""The networks that a perceptual loss is told of by name: a classifier of one's own, or LPIPS.

A recipe hands this to the training, which knows of no network by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from hvq.autoencoders.perceptual import FeatureDistance, LayerDistance
from hvq.config import AutoencoderTrainingConfig
from hvq.errors import CheckpointError, ConfigurationError
from hvq.evaluation.own_classifier import OwnClassifier, hash_tensors, load_own_classifier
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


def in_loss(training: AutoencoderTrainingConfig, classifier: OwnClassifier) -> str:
    """What a classifier's features are to the loss of an autoencoder: who learns to match them scores well by them.

    Args:
        training: of the autoencoder, which names the folders of its perceptual terms.
        classifier: that is compared with theirs, by its weights.

    Returns:
        A few words for people; empty where no term has these features.
    """
    same, unknown = [], []
    for name, term in training.reconstruction.items():
        if term.kind != "perceptual" or term.extractor == "lpips":
            continue
        try:
            if load_own_classifier(Path(term.extractor)).digest == classifier.digest:
                same.append(name)
        except CheckpointError:
            unknown.append(name)
    texts = [f"the autoencoder's own loss {name} is of these very features, which flatters it" for name in same]
    texts += [
        f"whether the autoencoder's own loss {name} is of these very features is not known: its classifier is gone"
        for name in unknown
    ]
    return "; ".join(texts)


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
        network = load_lpips_network()
    except WeightsMissing as missing:
        raise ConfigurationError(f"{missing}; or name the folder of a classifier of your own as extractor") from None
    digest = hash_tensors(network.state_dict().values())[:8]
    return _Lpips(f"LPIPS {digest} on AlexNet, by torchmetrics", network)
