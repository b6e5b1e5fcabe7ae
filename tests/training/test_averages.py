"""The moving average of weights against the sum that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hvq.training.averages import WeightAverage


def _layer() -> nn.BatchNorm1d:
    return nn.BatchNorm1d(3, dtype=torch.float64)


def test_it_is_the_weighted_sum_of_all_weights() -> None:
    layer = _layer()
    average = WeightAverage(layer, decay=0.9)
    history = [layer.weight.detach().clone()]
    shares = [1.0]
    for step in range(23):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(3))
        history.append(layer.weight.detach().clone())
        average.update(step)
        newest = 1 - min(0.9, (1 + step) / (10 + step))
        shares = [share * (1 - newest) for share in shares] + [newest]
    assert sum(shares) == pytest.approx(1)
    expected = sum((share * weight for share, weight in zip(shares, history, strict=True)), torch.zeros(3))
    assert torch.allclose(average.tensors["weight"], expected, rtol=0, atol=1e-12)


def test_buffers_are_left_alone() -> None:
    layer = _layer()
    average = WeightAverage(layer, decay=0.5)
    assert sorted(average.tensors) == ["bias", "weight"]
    layer(torch.randn(7, 3, dtype=torch.float64))
    running = layer.running_mean
    assert running is not None
    kept = running.clone()
    with average.applied():
        assert torch.equal(running, kept)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_exchanged_inside_and_their_own_again_after(fails: bool) -> None:
    layer = _layer()
    average = WeightAverage(layer, decay=0.5)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    averaged, own = average.tensors["weight"].clone(), layer.weight.detach().clone()
    try:
        with average.applied():
            assert torch.equal(layer.weight, averaged)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(layer.weight, own)
    assert torch.equal(average.tensors["weight"], averaged)


def test_without_a_decay_the_last_weights_are_the_result() -> None:
    layer = _layer()
    average = WeightAverage(layer, decay=0.0)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    average.update(0)
    with average.applied():
        assert layer.weight.tolist() == [5.0] * 3
    assert average.tensors == {}


def test_at_the_end_the_average_is_the_model() -> None:
    layer = _layer()
    average = WeightAverage(layer, decay=0.5)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    average.update(3)
    averaged = average.tensors["weight"].clone()
    average.keep()
    assert torch.equal(layer.weight, averaged)
    assert not torch.equal(averaged, torch.full((3,), 5.0, dtype=torch.float64))
