"""LPIPS: how far apart images are for a network that was trained on photographs, the mean over images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hvq.errors import DataError

SMALLEST_SIDE = 31
"""Side of the smallest image of which AlexNet's third and later layers, behind two poolings, see anything."""


class PerceptualScore(NamedTuple):
    """What `PerceptualDistance` gives.

    Args:
        lpips: mean over images, 0 where they are identical, mostly below 1.
        images: their number.
    """

    lpips: float
    images: int


class PerceptualDistance(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924), equation (1) of that paper.

    Per layer l of a pretrained network, features are normalized over channels; their squared difference, weighted per
    channel by w_l >= 0, is averaged over positions and summed over layers. Not negative, 0 for equal images; lower is
    better. Images of one channel are repeated to three.

    Args:
        network: takes images and reconstructions `[B, 3, H, W]` in [0, 1] and `normalize=True`, and gives a distance
            for each; that of `load_lpips_network`.

    >>> class Difference(nn.Module):
    ...     def forward(self, one, other, normalize): return (one - other).abs().mean((1, 2, 3))
    >>> distance = PerceptualDistance(Difference())
    >>> distance.update(torch.zeros(2, 1, 31, 31), torch.full((2, 1, 31, 31), 0.25))
    >>> distance.compute()
    PerceptualScore(lpips=0.25, images=2)
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False

    distance: Tensor
    images: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.add_state("distance", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add a batch.

        Args:
            images: float `[B, C, H, W]` in [0, 1], C 1 or 3.
            reconstructions: of the same form.

        Raises:
            DataError: where the shapes differ, channels are neither 1 nor 3, or a side is shorter than 31 pixels.
        """
        if images.ndim != 4 or images.shape != reconstructions.shape or images.shape[1] not in (1, 3):
            raise DataError(
                "images and reconstructions must share one shape [B, C, H, W] with C 1 or 3; "
                f"received {list(images.shape)} and {list(reconstructions.shape)}"
            )
        if min(images.shape[2:]) < SMALLEST_SIDE:
            raise DataError(
                f"LPIPS takes images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}; received "
                f"{images.shape[2]}x{images.shape[3]}"
            )
        if len(images):
            pair = (pixels.float().clamp(0, 1).expand(-1, 3, -1, -1) for pixels in (images, reconstructions))
            self.distance += self.network(*pair, normalize=True).double().sum()
            self.images += len(images)

    def compute(self) -> PerceptualScore:
        """The mean over all images of all processes.

        Raises:
            DataError: where no image was added.
        """
        count = int(self.images)
        if count == 0:
            raise DataError("LPIPS needs at least one image; none was added")
        return PerceptualScore(float(self.distance) / count, count)
