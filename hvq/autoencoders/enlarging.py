"""Transposed convolutions, in the ways that CPUs compute fastest.

Letters: B batch, I and O input and output channels, h w grid, f factor.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from hvq.tracing import is_exporting

# Of a vector of float32: the lanes that output channels do not fill are computed all the same.
_LANES = 16


class EnlargingConvolution(nn.ConvTranspose2d):
    """A grid f times larger, by a transposed convolution of kernel f + 2, stride f and padding 1.

    Weights and values are those of `nn.ConvTranspose2d` but for rounding; on CPUs two things are done otherwise. The
    gradient of the weight is computed as that of the convolution which this one is the transpose of, and a doubling to
    few channels as a convolution to the four phases of its output.

    >>> EnlargingConvolution(8, 3, 4, stride=2, padding=1)(torch.zeros(1, 8, 5, 7)).shape
    torch.Size([1, 3, 10, 14])
    """

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[B, I, h, w]` to `[B, O, f h, f w]`."""
        # To other runtimes it is the one operation that it is.
        if features.device.type != "cpu" or is_exporting():
            return super().forward(features, output_size)
        assert self.bias is not None
        features, weight, bias = map(_as_autocast, (features, self.weight, self.bias))
        if self.kernel_size == (4, 4) and 4 * self.out_channels <= _LANES:
            return _by_phases(features, weight, bias)
        return _Transposed.apply(features, weight, bias, self.stride[0])


def _as_autocast(tensor: Tensor) -> Tensor:
    """In the type that autocast, where it is on, gives to convolutions; in `backward` it is off."""
    lowered = torch.is_autocast_enabled("cpu") and tensor.dtype == torch.float32
    return tensor.to(torch.get_autocast_dtype("cpu")) if lowered else tensor


def _by_phases(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution of kernel 4, stride 2 and padding 1.

    With padding 0 its row 2 q + s, for the phases s = 0, 1, is x[q] W[s] + x[q - 1] W[s + 2], which is a convolution of
    kernel 2; the outermost rows and columns are then cut off.
    """
    taps = rearrange(weight, "i o (a s) (b t) -> (s t o) i a b", s=2, t=2).flip(2, 3)
    phases = functional.conv2d(features, taps, bias.repeat(4), padding=1)
    # Channels stay last in memory.
    whole = rearrange(phases.movedim(1, -1), "n h w (s t o) -> n (h s) (w t) o", s=2, t=2)
    return whole.movedim(-1, 1)[:, :, 1:-1, 1:-1]


class _Transposed(torch.autograd.Function):
    """A transposed convolution of padding 1, whose gradients are those of the convolution with its weight."""

    @staticmethod
    def forward(features: Tensor, weight: Tensor, bias: Tensor, factor: int) -> Tensor:
        return functional.conv_transpose2d(features, weight, bias, stride=factor, padding=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        features, weight, _, ctx.factor = inputs
        ctx.save_for_backward(features, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        features, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            functional.conv2d(gradient, weight, stride=ctx.factor, padding=1) if wanted[0] else None,
            conv2d_weight(gradient, weight.shape, features, stride=ctx.factor, padding=1) if wanted[1] else None,
            gradient.sum(dim=(0, 2, 3)) if wanted[2] else None,
            None,
        )
