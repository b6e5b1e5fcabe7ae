"""Distances between images in the features of a network that has learned from images, and stays as it is.

Who trains hands in the network; nothing here knows where one comes from. Letters: B batch, C channels, H W image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.errors import ConfigurationError

_SMALLEST_LENGTH = 1e-8


class FeatureDistance(nn.Module):
    """How far apart images are for a frozen network: in evaluation mode for good, its weights without gradients.

    Args:
        name: which network it is, with a hash of its weights; a training that goes on must have the same.
        network: what is frozen.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)

    @abstractmethod
    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distances `[B]`, not negative, 0 for equal images.

        Args:
            images: `[B, C, H, W]` in [-1, 1].
            reconstructions: of the same form, which gradients go to.
        """


class LayerDistance(FeatureDistance):
    """The mean over layers of the squared distance between features, normalized over channels, mean over positions.

    Equation (1) of LPIPS (Zhang et al. 2018, arXiv 1801.03924) with a weight of 1 for every channel, over any network;
    feature reconstruction as a loss is of Johnson et al. (2016, arXiv 1603.08155). In [0, 4].

    Args:
        name: which network it is.
        layers: one behind the other, from images in [-1, 1]; what each gives, `[B, F, *grid]`, is compared.

    >>> distance = LayerDistance("one convolution", [nn.Conv2d(3, 5, 3)])
    >>> distance(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)).tolist()
    [0.0, 0.0]
    """

    def __init__(self, name: str, layers: Sequence[nn.Module]) -> None:
        if not layers:
            raise ConfigurationError("a distance of features needs at least one layer; received none")
        super().__init__(name, nn.ModuleList(layers))

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distances `[B]`, float32 or float64."""
        seen, restored, distances = images, reconstructions, []
        for layer in self.network.children():
            seen, restored = layer(seen), layer(restored)
            difference = _directions(seen) - _directions(restored)
            distances.append(difference.square().sum(1).flatten(1).mean(1))
        return torch.stack(distances).mean(0)


def _directions(features: Tensor) -> Tensor:
    """Features of each position at length one, or as they are where there are none."""
    precise = features.to(torch.promote_types(features.dtype, torch.float32))
    return functional.normalize(precise, dim=1, eps=_SMALLEST_LENGTH)
