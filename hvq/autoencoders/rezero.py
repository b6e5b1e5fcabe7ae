"""Encoder and decoder of ReZero blocks, whose branches are rectified and start at zero (arXiv 2003.04887).

Public VQ-VAE-2s of more than two levels have them. They keep the sign of what passes, so that no rectifier stands
behind the last block.

Letters: B batch, C channels, `*size` the spatial axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvq.autoencoders.convolution import convolution, enlarging_convolution, stage_factors


class ReZeroBlock(nn.Module):
    """x + alpha relu(conv3(relu(conv3(x)))), alpha a learned number that starts at 0.

    Args:
        channels: C, of input and output.
        hidden_channels: channels between the two convolutions.
        spatial_dims: 1, 2 or 3.
    """

    def __init__(self, *, channels: int, hidden_channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(spatial_dims, channels, hidden_channels, kernel=3),
            nn.ReLU(inplace=True),
            convolution(spatial_dims, hidden_channels, channels, kernel=3),
            nn.ReLU(inplace=True),
        )
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, *size]` to the same shape."""
        return features + self.alpha * self.layers(features)


def _blocks(width: int, blocks: int, hidden: int, spatial_dims: int) -> list[nn.Module]:
    return [ReZeroBlock(channels=width, hidden_channels=hidden, spatial_dims=spatial_dims) for _ in range(blocks)]


class ReZeroEncoder(nn.Sequential):
    """Images or finer features to features `ratio` times smaller: strided convolutions, then ReZero blocks.

    Args:
        in_channels: channels of the input.
        width: channels of the output; the first strided convolution has half of them.
        ratio: size of the input over size of the output, per axis.
        residual_blocks: how many follow.
        residual_width: channels inside each.
        spatial_dims: 1, 2 or 3.

    >>> ReZeroEncoder(in_channels=3, width=8, ratio=4)(torch.zeros(1, 3, 20, 28)).shape
    torch.Size([1, 8, 5, 7])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        ratio: int,
        residual_blocks: int = 2,
        residual_width: int = 32,
        spatial_dims: int = 2,
    ) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for i, factor in enumerate(stage_factors(ratio)):
            out_channels = width if i else max(1, width // 2)
            layers += [
                convolution(spatial_dims, channels, out_channels, factor + 2, stride=factor),
                nn.ReLU(inplace=True),
            ]
            channels = out_channels
        layers.append(convolution(spatial_dims, channels, width, kernel=3))
        super().__init__(*layers, *_blocks(width, residual_blocks, residual_width, spatial_dims))


class ReZeroDecoder(nn.Sequential):
    """Features to features or images `ratio` times larger: ReZero blocks, transposed convolutions, and one that ends.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, and of all transposed convolutions but the first.
        width: channels of the blocks; the first transposed convolution has half of them.
        ratio: size of the output over size of the input, per axis.
        residual_blocks: how many come first.
        residual_width: channels inside each.
        spatial_dims: 1, 2 or 3.
        output_gain: variance of the output over that of the features before it, at the start.

    >>> ReZeroDecoder(in_channels=8, out_channels=3, width=16, ratio=4)(torch.zeros(1, 8, 5, 7)).shape
    torch.Size([1, 3, 20, 28])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int,
        ratio: int,
        residual_blocks: int = 2,
        residual_width: int = 32,
        spatial_dims: int = 2,
        output_gain: float = 1.0,
    ) -> None:
        layers: list[nn.Module] = [convolution(spatial_dims, in_channels, width, kernel=3)]
        layers += _blocks(width, residual_blocks, residual_width, spatial_dims)
        channels = width
        for i, factor in enumerate(stage_factors(ratio)[::-1]):
            larger = out_channels if i else max(1, width // 2)
            layers += [enlarging_convolution(spatial_dims, channels, larger, factor), nn.ReLU(inplace=True)]
            channels = larger
        layers.append(convolution(spatial_dims, channels, out_channels, kernel=3, gain=output_gain))
        super().__init__(*layers)


class RectifiedEnlargement(nn.Sequential):
    """Vectors of a level to a grid `ratio` times larger: rectified transposed convolutions.

    Args:
        channels: of input and output.
        ratio: size of the output over size of the input, per axis.
        spatial_dims: 1, 2 or 3.

    >>> RectifiedEnlargement(channels=5, ratio=6)(torch.zeros(1, 5, 2, 3)).shape
    torch.Size([1, 5, 12, 18])
    """

    def __init__(self, *, channels: int, ratio: int, spatial_dims: int = 2) -> None:
        layers: list[nn.Module] = []
        for i, factor in enumerate(stage_factors(ratio)):
            # The first sees vectors, the others what a rectifier leaves.
            layers += [
                enlarging_convolution(spatial_dims, channels, channels, factor, gain=2.0 if i else 1.0),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)
