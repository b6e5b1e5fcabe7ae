"""Encoder, decoder and enlargements of ReZero blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hvq.autoencoders import RectifiedEnlargement, ReZeroBlock, ReZeroDecoder, ReZeroEncoder


def test_a_block_is_its_formula_and_starts_as_the_identity() -> None:
    block = ReZeroBlock(channels=5, hidden_channels=3).double()
    features = torch.randn(2, 5, 7, 11, dtype=torch.float64)
    assert torch.equal(block(features), features)
    with torch.no_grad():
        block.alpha.fill_(-0.7)
    first, second = block.layers[0], block.layers[2]
    hidden = functional.conv2d(features, first.weight, first.bias, padding=1).relu()
    branch = functional.conv2d(hidden, second.weight, second.bias, padding=1).relu()
    assert torch.allclose(block(features), features - 0.7 * branch, rtol=0, atol=1e-12)


def test_a_block_learns_from_its_first_step() -> None:
    block = ReZeroBlock(channels=5, hidden_channels=3)
    block(torch.randn(2, 5, 7, 11)).square().sum().backward()
    assert block.alpha.grad is not None
    assert bool(block.alpha.grad != 0)


@pytest.mark.parametrize("ratio", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_sizes_follow_the_ratio(ratio: int, spatial_dims: int) -> None:
    grid = (2, 3, 1)[:spatial_dims]
    size = tuple(n * ratio for n in grid)
    fixed = {"ratio": ratio, "residual_blocks": 1, "residual_width": 3, "spatial_dims": spatial_dims}
    features = ReZeroEncoder(in_channels=2, width=7, **fixed)(torch.randn(2, 2, *size))
    assert features.shape == (2, 7, *grid)
    assert ReZeroDecoder(in_channels=7, out_channels=5, width=6, **fixed)(features).shape == (2, 5, *size)
    enlargement = RectifiedEnlargement(channels=7, ratio=ratio, spatial_dims=spatial_dims)
    assert enlargement(features).shape == (2, 7, *size)


def test_signals_keep_their_size_at_the_start() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    features = ReZeroEncoder(in_channels=3, width=64, ratio=4)(images)
    decoded = ReZeroDecoder(in_channels=64, out_channels=3, width=64, ratio=4)(features)
    assert 0.3 < features.square().mean().sqrt() < 3
    assert 0.1 < decoded.square().mean().sqrt() < 3


def test_no_rectifier_ends_what_is_quantized_or_shown() -> None:
    encoder = ReZeroEncoder(in_channels=3, width=8, ratio=2)
    decoder = ReZeroDecoder(in_channels=8, out_channels=3, width=8, ratio=2)
    assert isinstance(encoder[-1], ReZeroBlock)
    assert isinstance(decoder[-1], nn.Conv2d)
