from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hvq.autoencoders.perceptual import LayerDistance
from hvq.errors import ConfigurationError


def _layers(kind: torch.dtype = torch.float64) -> list[nn.Module]:
    return [
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU()).to(kind),
        nn.Sequential(nn.Conv2d(5, 7, 3, 2), nn.ReLU()).to(kind),
    ]


def _images(kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    one, other = torch.rand(2, 3, 2, 11, 13, dtype=kind) * 2 - 1
    return one, other


def test_it_is_the_equation() -> None:
    layers, (one, other) = _layers(), _images()
    expected = torch.zeros(3, dtype=torch.float64)
    seen, restored = one, other
    for layer in layers:
        seen, restored = layer(seen), layer(restored)
        for image in range(3):
            errors = []
            for row in range(seen.shape[2]):
                for column in range(seen.shape[3]):
                    pair = [features[image, :, row, column] for features in (seen, restored)]
                    first, second = (vector / max(vector.norm().item(), 1e-8) for vector in pair)
                    errors.append((first - second).square().sum())
            expected[image] += torch.stack(errors).mean() / 2
    torch.testing.assert_close(LayerDistance("two layers", layers)(one, other), expected.detach())


def test_equal_images_are_at_no_distance_and_others_within_the_range() -> None:
    distance, (one, other) = LayerDistance("two layers", _layers()), _images()
    assert distance(one, one).tolist() == [0, 0, 0]
    assert bool(((distance(one, other) > 0) & (distance(one, other) <= 4)).all())


def test_gradients_reach_the_reconstruction_alone_and_are_finite_where_nothing_is_seen() -> None:
    layers, (one, other) = _layers(), _images()
    with torch.no_grad():
        # A position at which no feature fires.
        layers[0][0].bias.fill_(-100)  # type: ignore[index, union-attr, operator]
        layers[1][0].bias.fill_(0.3)  # type: ignore[index, union-attr, operator]
    distance = LayerDistance("two layers", layers)
    other.requires_grad_()
    distance(one, other).sum().backward()
    assert other.grad is not None
    assert bool(torch.isfinite(other.grad).all())
    assert all(parameter.grad is None for parameter in distance.parameters())
    fresh = LayerDistance("two layers", _layers())
    fresh(one, other).sum().backward()
    assert bool(other.grad.any())


def test_gradients_are_those_of_finite_differences() -> None:
    distance = LayerDistance("smooth", [nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus()).double()])
    one, other = torch.rand(2, 1, 2, 5, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda image: distance(one, image), (other.requires_grad_(),))


def test_under_autocast_it_is_float32() -> None:
    distance, (one, other) = LayerDistance("two layers", _layers(torch.float32)), _images(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(one, other).dtype == torch.float32


def test_it_takes_a_layer() -> None:
    with pytest.raises(ConfigurationError, match="at least one layer"):
        LayerDistance("nothing", [])
