from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hvq.autoencoders import ConvolutionalDecoder, ConvolutionalEncoder, Enlargement, ResidualBlock
from hvq.autoencoders.convolution import convolution, stage_factors
from hvq.errors import ConfigurationError


@given(ratio=st.integers(1, 512))
def test_stages_multiply_to_the_ratio_and_are_prime(ratio: int) -> None:
    factors = stage_factors(ratio)
    assert math.prod(factors) == ratio
    assert factors == sorted(factors)
    assert all(factor > 1 and all(factor % d for d in range(2, factor)) for factor in factors)


@pytest.mark.parametrize("ratio", [0, -2])
def test_ratios_below_one_are_refused(ratio: int) -> None:
    with pytest.raises(ConfigurationError, match=f"positive integer; received {ratio}"):
        stage_factors(ratio)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_encoder_and_decoder_divide_and_multiply_every_axis(ratio: int, spatial_dims: int) -> None:
    grid = (2, 3, 1)[:spatial_dims]
    sizes = [ratio * n for n in grid]
    encoder = ConvolutionalEncoder(in_channels=2, width=5, ratio=ratio, residual_width=3, spatial_dims=spatial_dims)
    decoder = ConvolutionalDecoder(
        in_channels=5, out_channels=2, width=7, ratio=ratio, residual_width=3, spatial_dims=spatial_dims
    )
    features = encoder(torch.randn(1, 2, *sizes))
    assert features.shape == (1, 5, *grid)
    assert decoder(features).shape == (1, 2, *sizes)
    assert Enlargement(channels=5, ratio=ratio, spatial_dims=spatial_dims)(features).shape == (1, 5, *sizes)


@pytest.mark.parametrize("spatial_dims", [0, 4])
def test_other_numbers_of_axes_are_refused(spatial_dims: int) -> None:
    with pytest.raises(ConfigurationError, match="spatial_dims must be 1, 2 or 3"):
        convolution(spatial_dims, 3, 5, kernel=3)


def test_halvings_are_the_papers_four_by_four_convolutions() -> None:
    encoder = ConvolutionalEncoder(in_channels=3, width=128, ratio=4)
    strided = [layer for layer in encoder if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    assert [(layer.kernel_size, layer.out_channels) for layer in strided] == [((4, 4), 64), ((4, 4), 128)]
    assert sum(isinstance(layer, ResidualBlock) for layer in encoder) == 2


def test_a_residual_block_leaves_its_input_alone() -> None:
    block = ResidualBlock(channels=5, hidden_channels=3)
    with torch.no_grad():
        block.layers[-1].weight.normal_()
    features = torch.randn(2, 5, 7, 11)
    before = features.clone()
    out = block(features)
    assert torch.equal(features, before)
    hidden = block.layers[1](features.clamp(min=0)).clamp(min=0)
    assert torch.allclose(out, features + block.layers[3](hidden), atol=1e-6)


def test_a_residual_block_starts_as_the_identity_and_can_learn() -> None:
    block = ResidualBlock(channels=5, hidden_channels=3)
    features = torch.randn(2, 5, 7, 11)
    assert torch.equal(block(features), features)
    block(features).square().sum().backward()
    assert any(bool(parameter.grad.any()) for parameter in block.parameters())


@pytest.mark.parametrize("gain", [0.0, 1.0, 2.0])
def test_gain_is_the_variance_that_a_layer_gives_to_an_input_of_variance_one(gain: float) -> None:
    layer = convolution(2, 67, 71, kernel=3, gain=gain)
    with torch.no_grad():
        inner = layer(torch.randn(1, 67, 31, 31))[:, :, 1:-1, 1:-1]
    assert float(inner.var()) == pytest.approx(gain, rel=0.1)


def test_vectors_keep_their_size_when_they_are_enlarged() -> None:
    with torch.no_grad():
        rms = Enlargement(channels=67, ratio=8)(torch.randn(1, 67, 31, 31)).square().mean().sqrt()
    assert 0.7 < float(rms) < 1.4


def test_signals_keep_their_size_through_a_deep_encoder() -> None:
    """Torch's own start would leave a hundredth of it."""
    encoder = ConvolutionalEncoder(in_channels=32, width=64, ratio=16)
    with torch.no_grad():
        rms = encoder(torch.randn(1, 32, 64, 64)).square().mean().sqrt()
    assert 0.3 < float(rms) < 3.0
