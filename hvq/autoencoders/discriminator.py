"""The patch discriminator of adversarial training: which places of an image are real.

Letters: B batch, C channels, H W image, p q patches.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.errors import ConfigurationError

_KERNEL = 4


class PatchDiscriminator(nn.Sequential):
    """Logits of patches of an image, of 70x70 pixels with three layers (Isola et al. 2017, arXiv 1611.07004).

    4x4 convolutions and leaky rectifiers; of the strided ones each halves the grid, and widths double up to eight times
    the first. Batch norm gives way to group norm, or to none, so that no statistics cross samples: a logit depends on
    its image alone, whatever the batch, the micro-batches and the processes.

    Args:
        channels: C of the images.
        width: channels after the first convolution.
        layers: strided convolutions.
        norm: "group", over channels in groups of at least 4; or "none".

    Shapes:
        images `[B, C, H, W]` in [-1, 1], no side shorter than 3 x 2^layers; logits `[B, 1, p, q]`.

    Raises:
        ConfigurationError: where the norm is unknown.

    >>> PatchDiscriminator(channels=3, width=8)(torch.zeros(2, 3, 32, 40)).shape
    torch.Size([2, 1, 2, 3])
    """

    def __init__(
        self, *, channels: int, width: int = 64, layers: int = 3, norm: Literal["group", "none"] = "group"
    ) -> None:
        if norm not in ("group", "none"):
            raise ConfigurationError(f"norm of a discriminator must be group or none; received {norm}")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        modules: list[nn.Module] = []
        for i, (inner, outer) in enumerate(zip([channels, *widths], widths, strict=False)):
            modules.append(nn.Conv2d(inner, outer, _KERNEL, stride=2 if i < layers else 1, padding=1))
            if i > 0 and norm == "group":
                modules.append(nn.GroupNorm(max(1, math.gcd(outer, 128) // 4), outer))
            modules.append(nn.LeakyReLU(0.2))
        super().__init__(*modules, nn.Conv2d(widths[-1], 1, _KERNEL, padding=1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def hinge_loss(real: Tensor, restored: Tensor) -> Tensor:
    """What the discriminator learns by: half the mean of max(0, 1 - D(x)) + max(0, 1 + D(x')) (arXiv 1705.02894).

    Args:
        real: logits of images, of any shape.
        restored: logits of their reconstructions.

    >>> hinge_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])).item()
    0.375
    """
    real, restored = (logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (real, restored))
    return (functional.relu(1 - real).mean() + functional.relu(1 + restored).mean()) / 2
