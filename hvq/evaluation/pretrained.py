"""Networks with pretrained weights, where both the package and the weights are on this machine; nothing is downloaded.

Who has neither reads why in `about`, and how to get them. Weights lie where `torch.hub` keeps them (`TORCH_HOME`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from hvq.errors import HVQError

Network = TypeVar("Network")


class WeightsMissing(HVQError):
    """A pretrained network whose package or weights are not on this machine; says which, and how to get them."""


def load_lpips_network() -> nn.Module:
    """The network of LPIPS on AlexNet (Zhang et al. 2018, arXiv 1801.03924), in evaluation mode, from `torchmetrics`.

    Its forward takes two batches `[B, 3, H, W]` in [0, 1] with `normalize=True`, and gives their distances
    `[B, 1, 1, 1]`.

    Raises:
        WeightsMissing: where `torchvision` or AlexNet's weights are not there, or cannot be loaded.
    """

    def load() -> nn.Module:
        models: Any = import_module("torchvision.models")
        _require_weights(models.AlexNet_Weights.DEFAULT.url, "AlexNet", "torchvision.models.alexnet(weights='DEFAULT')")
        network: nn.Module = import_module("torchmetrics.image.lpip").LearnedPerceptualImagePatchSimilarity("alex").net
        return network

    return _loaded(load, "LPIPS", "torchvision")


def load_inception_network() -> nn.Module:
    """The Inception v3 of the published FID, in evaluation mode, from `torch-fidelity`, which `torchmetrics` uses too.

    Its forward takes uint8 images `[B, 3, H, W]` and gives features `[B, 2048]` and logits without bias `[B, 1008]`,
    as TensorFlow's original does, whose way to enlarge images it copies.

    Raises:
        WeightsMissing: where `torch-fidelity` or its weights are not there, or cannot be loaded.
    """

    def load() -> nn.Module:
        inception: Any = import_module("torch_fidelity.feature_extractor_inceptionv3")
        make, features = inception.FeatureExtractorInceptionV3, ["2048", "logits_unbiased"]
        path = _require_weights(
            inception.URL_INCEPTION_V3,
            "Inception",
            "torchmetrics.image.fid.FrechetInceptionDistance()",
        )
        network: nn.Module = make("inception-v3-compat", features, feature_extractor_weights_path=str(path))
        return network.eval()

    return _loaded(load, "Inception", "torch-fidelity")


def _require_weights(url: str, what: str, call: str) -> Path:
    """Where the file of a URL lies, once `torch.hub` has downloaded it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise WeightsMissing(f"the weights of {what} are not at {path}: {call} in Python downloads them")
    return path


def _loaded(load: Callable[[], Network], what: str, package: str) -> Network:
    try:
        with _tensors_only():
            return load()
    except WeightsMissing:
        raise
    except ModuleNotFoundError:
        raise WeightsMissing(
            f"{what} takes the package {package}, which is not installed: pip install {package}"
        ) from None
    except Exception as error:
        # Packages of another build fail in ways of their own as they are imported; damaged weights, as they are read.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsMissing(f"{what} cannot be loaded, by {package}: {reason}") from error


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Have torch read no more than tensors from the files of others, whatever the packages ask it for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
