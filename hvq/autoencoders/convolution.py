"""The convolutional encoder and decoder of the VQ-VAE papers: strided convolutions and residual blocks.

Letters: B batch, C channels, `*size` the spatial axes.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from hvq.autoencoders.enlarging import EnlargingConvolution
from hvq.errors import ConfigurationError

_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: EnlargingConvolution, 3: nn.ConvTranspose3d}


def convolution(
    spatial_dims: int, in_channels: int, out_channels: int, kernel: int, stride: int = 1, gain: float = 2.0
) -> nn.Module:
    """A convolution of 1, 2 or 3 spatial axes that keeps the size (stride 1) or divides it by the stride.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        kernel: its size per axis; stride + 2, where there is a stride.
        stride: 1, or what the size is divided by.
        gain: variance of the output over that of the input at the start, a rectified input counting twice: 2 follows
            a rectifier (He et al. 2015), 1 follows a linear layer, 0 starts at zero.

    >>> convolution(2, 3, 5, kernel=4, stride=2)
    Conv2d(3, 5, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1))
    """
    if spatial_dims not in _CONVOLUTIONS:
        raise ConfigurationError(f"spatial_dims must be 1, 2 or 3; received {spatial_dims}")
    padding = kernel // 2 if stride == 1 else 1
    layer = _CONVOLUTIONS[spatial_dims](in_channels, out_channels, kernel, stride=stride, padding=padding)
    return _started(layer, gain / (in_channels * kernel**spatial_dims))


def enlarging_convolution(
    spatial_dims: int, in_channels: int, out_channels: int, factor: int, gain: float = 2.0
) -> nn.Module:
    """A transposed convolution that multiplies the size by a factor.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        factor: what the size is multiplied by; the kernel has two taps more.
        gain: see `convolution`.
    """
    layer = _TRANSPOSED[spatial_dims](in_channels, out_channels, factor + 2, stride=factor, padding=1)
    # Each output sees every `factor`-th tap of the kernel.
    return _started(layer, gain / (in_channels * ((factor + 2) / factor) ** spatial_dims))


def _started(layer: nn.Module, variance: float) -> nn.Module:
    """Normal weights and no bias: torch's own start lets signals, and so codebooks, shrink from layer to layer."""
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    nn.init.normal_(layer.weight, std=math.sqrt(variance))
    nn.init.zeros_(layer.bias)
    return layer


def stage_factors(ratio: int) -> list[int]:
    """Prime factors of a ratio, one strided convolution each, smallest first.

    >>> stage_factors(4), stage_factors(6), stage_factors(1)
    ([2, 2], [2, 3], [])
    """
    if ratio < 1:
        raise ConfigurationError(f"a level's ratio must be a positive integer; received {ratio}")
    factors, divisor = [], 2
    while ratio > 1:
        while ratio % divisor == 0:
            factors.append(divisor)
            ratio //= divisor
        divisor += 1
    return factors


class ResidualBlock(nn.Module):
    """x + conv1(relu(conv3(relu(x)))), as in both papers.

    Args:
        channels: C, of input and output.
        hidden_channels: channels between the two convolutions.
        spatial_dims: 1, 2 or 3.
    """

    def __init__(self, *, channels: int, hidden_channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            convolution(spatial_dims, channels, hidden_channels, kernel=3),
            nn.ReLU(inplace=True),
            # A block starts as the identity.
            convolution(spatial_dims, hidden_channels, channels, kernel=1, gain=0.0),
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, *size]` to the same shape."""
        # In place: no gradient needs what a convolution gives, and memory of its own would have to be fetched first.
        return self.layers(features).add_(features)


def _residual_stack(width: int, blocks: int, hidden: int, spatial_dims: int) -> list[nn.Module]:
    stack: list[nn.Module] = [
        ResidualBlock(channels=width, hidden_channels=hidden, spatial_dims=spatial_dims) for _ in range(blocks)
    ]
    return [*stack, nn.ReLU(inplace=True)]


class ConvolutionalEncoder(nn.Sequential):
    """Images or finer features to features `ratio` times smaller: strided convolutions, then residual blocks.

    A factor f of the ratio is a convolution of kernel f + 2 and stride f (4x4 for a halving, as in the papers).

    Args:
        in_channels: channels of the input.
        width: channels of the output; all strided convolutions but the last have half of them.
        ratio: size of the input over size of the output, per axis.
        residual_blocks: how many follow.
        residual_width: channels inside each.
        spatial_dims: 1, 2 or 3.

    >>> import torch
    >>> ConvolutionalEncoder(in_channels=3, width=8, ratio=4)(torch.zeros(1, 3, 20, 28)).shape
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
        factors = stage_factors(ratio)
        layers: list[nn.Module] = []
        channels = in_channels
        for i, factor in enumerate(factors):
            out_channels = width if i == len(factors) - 1 and len(factors) > 1 else max(1, width // 2)
            layers += [
                convolution(spatial_dims, channels, out_channels, factor + 2, stride=factor),
                nn.ReLU(inplace=True),
            ]
            channels = out_channels
        layers.append(convolution(spatial_dims, channels, width, kernel=3))
        super().__init__(*layers, *_residual_stack(width, residual_blocks, residual_width, spatial_dims))


class ConvolutionalDecoder(nn.Sequential):
    """Features to features or images `ratio` times larger: residual blocks, then transposed convolutions.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        width: channels between; all transposed convolutions but the first have half of them.
        ratio: size of the output over size of the input, per axis.
        residual_blocks: how many come first.
        residual_width: channels inside each.
        spatial_dims: 1, 2 or 3.
        output_gain: variance of the output over that of the features before it, at the start.

    >>> import torch
    >>> ConvolutionalDecoder(in_channels=8, out_channels=3, width=16, ratio=4)(torch.zeros(1, 8, 5, 7)).shape
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
        layers += _residual_stack(width, residual_blocks, residual_width, spatial_dims)
        factors = stage_factors(ratio)[::-1]
        channels = width
        for factor in factors[:-1]:
            layers += [enlarging_convolution(spatial_dims, channels, max(1, width // 2), factor), nn.ReLU(inplace=True)]
            channels = max(1, width // 2)
        if factors:
            layers.append(enlarging_convolution(spatial_dims, channels, out_channels, factors[-1], gain=output_gain))
        else:
            layers.append(convolution(spatial_dims, channels, out_channels, kernel=3, gain=output_gain))
        super().__init__(*layers)


class Enlargement(nn.Sequential):
    """Vectors of a level to a grid `ratio` times larger: a transposed convolution for each prime factor of the ratio.

    Args:
        channels: of input and output.
        ratio: size of the output over size of the input, per axis.
        spatial_dims: 1, 2 or 3.

    >>> import torch
    >>> Enlargement(channels=5, ratio=6)(torch.zeros(1, 5, 2, 3)).shape
    torch.Size([1, 5, 12, 18])
    """

    def __init__(self, *, channels: int, ratio: int, spatial_dims: int = 2) -> None:
        layers: list[nn.Module] = []
        for i, factor in enumerate(stage_factors(ratio)):
            # The first sees vectors, the others what a rectifier leaves.
            layers += [nn.ReLU(inplace=True)] if i else []
            layers.append(enlarging_convolution(spatial_dims, channels, channels, factor, gain=2.0 if i else 1.0))
        super().__init__(*layers)


class StagedEnlargement(nn.ModuleList):
    """Vectors of a level to the grid of any finer level, one after the other.

    Args:
        stages: to the next finer grid, to the one after it, and so on; each an enlargement by one level's ratio.

    >>> import torch
    >>> stages = StagedEnlargement([Enlargement(channels=5, ratio=2), Enlargement(channels=5, ratio=3)])
    >>> stages(torch.zeros(1, 5, 2, 3), stages=1).shape, stages(torch.zeros(1, 5, 2, 3)).shape
    (torch.Size([1, 5, 4, 6]), torch.Size([1, 5, 12, 18]))
    """

    def forward(self, vectors: Tensor, stages: int | None = None) -> Tensor:
        """`[B, D, *grid]` to a grid as many stages finer, the finest by default."""
        for stage in list(self)[:stages]:
            vectors = stage(vectors)
        return vectors
