"""Transposed convolutions are torch's own, whatever way they are computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.autoencoders.enlarging import EnlargingConvolution

# Output channels and factor: by phases, and by the convolution that it is the transpose of.
WAYS = [(1, 2), (3, 2), (4, 2), (5, 2), (3, 3), (7, 5)]
any_way = pytest.mark.parametrize(("channels", "factor"), WAYS)


def _layer(channels: int, factor: int) -> EnlargingConvolution:
    return EnlargingConvolution(5, channels, factor + 2, stride=factor, padding=1)


def _plain(features: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    return functional.conv_transpose2d(features, layer.weight, layer.bias, stride=layer.stride[0], padding=1)


@any_way
@pytest.mark.parametrize("grid", [(7, 11), (1, 3)])
def test_values_and_gradients_are_those_of_the_plain_one(channels: int, factor: int, grid: tuple[int, int]) -> None:
    layer = _layer(channels, factor).double()
    features = torch.randn(2, 5, *grid, dtype=torch.float64, requires_grad=True)
    image, plain = layer(features), _plain(features, layer)
    assert image.shape == plain.shape == (2, channels, factor * grid[0], factor * grid[1])
    assert torch.allclose(image, plain, rtol=0, atol=1e-12)
    gradient = torch.randn_like(plain)
    inputs = (features, layer.weight, layer.bias)
    for ours, theirs in zip(
        torch.autograd.grad(image, inputs, gradient), torch.autograd.grad(plain, inputs, gradient), strict=True
    ):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)


@any_way
def test_gradients_of_gradients_are_those_of_the_plain_one(channels: int, factor: int) -> None:
    layer = _layer(channels, factor).double()
    features = torch.randn(1, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (features,))


@any_way
def test_autocast_lowers_the_forward_and_leaves_float32_gradients(channels: int, factor: int) -> None:
    layer = _layer(channels, factor)
    features = torch.randn(2, 5, 7, 11, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        image, plain = layer(features), _plain(features, layer)
    assert image.dtype == plain.dtype == torch.bfloat16
    assert torch.allclose(image.float(), plain.float(), atol=0.05)
    image.float().square().sum().backward()
    for tensor in (features, layer.weight, layer.bias):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32


@any_way
def test_saved_weights_are_those_of_the_plain_one(channels: int, factor: int) -> None:
    layer = _layer(channels, factor)
    plain = nn.ConvTranspose2d(5, channels, factor + 2, stride=factor, padding=1)
    plain.load_state_dict(layer.state_dict())
    features = torch.randn(1, 5, 3, 2)
    assert torch.allclose(plain(features), layer(features), atol=1e-5)


@any_way
def test_only_what_is_wanted_gets_a_gradient(channels: int, factor: int) -> None:
    layer = _layer(channels, factor).requires_grad_(False)
    features = torch.randn(1, 5, 3, 2, requires_grad=True)
    layer(features).sum().backward()
    assert features.grad is not None
    assert layer.weight.grad is None
