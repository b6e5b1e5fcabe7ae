from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hvq.discretized_logistic import VALUES, log_probabilities

# Exact in float32, so that both precisions are asked the same.
MEANS = (-41.25, 0.0, 0.1875, 101.0, 127.4375, 254.625, 255.0, 307.6875)
SCALES = (0.0625, 0.875, 13.0, 401.0)


def _expected(mean: float, scale: float) -> NDArray[np.float64]:
    """Straight from the definition, on the side of the mean where distribution functions are small."""
    values = np.arange(VALUES, dtype=np.float64)
    lower, upper = (values - 0.5 - mean) / scale, (values + 0.5 - mean) / scale
    lower[0], upper[-1] = -np.inf, np.inf
    mirrored = lower + upper > 0
    low, high = np.where(mirrored, -upper, lower), np.where(mirrored, -lower, upper)
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(1 / (1 + np.exp(-high)) - 1 / (1 + np.exp(-low)))


def _found(mean: float, scale: float, kind: torch.dtype) -> NDArray[np.float64]:
    values = torch.arange(VALUES, dtype=kind)
    found = log_probabilities(values, torch.tensor(mean, dtype=kind), scale)
    assert found.dtype == kind
    return found.double().numpy()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mean", MEANS)
def test_it_is_the_difference_of_distribution_functions(mean: float, scale: float) -> None:
    expected = _expected(mean, scale)
    # Where distribution functions are below what float64 holds, their logarithms are not.
    held = np.isfinite(expected) & (expected > -690)
    assert held.any()
    np.testing.assert_allclose(_found(mean, scale, torch.float64)[held], expected[held], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(_found(mean, scale, torch.float32)[held], expected[held], rtol=3e-6, atol=2e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mean", MEANS)
def test_probabilities_of_all_values_sum_to_one(mean: float, scale: float) -> None:
    assert np.exp(_found(mean, scale, torch.float64)).sum() == pytest.approx(1, abs=1e-12)
    assert np.exp(_found(mean, scale, torch.float32)).sum() == pytest.approx(1, abs=1e-5)


def test_far_from_everything_numbers_and_gradients_are_finite() -> None:
    values = torch.tensor([0.0, 7.0, 255.0]).repeat(3)
    means = torch.tensor([-1e4, 131.0, 1e4]).repeat_interleave(3).requires_grad_()
    log_scale = torch.tensor(-4.0, requires_grad=True)
    found = log_probabilities(values, means, log_scale.exp())
    found.sum().backward()
    assert means.grad is not None
    assert log_scale.grad is not None
    assert bool(torch.isfinite(torch.cat([found.detach(), means.grad, log_scale.grad.view(1)])).all())
    # A step between values costs as many nats as the distance is in scales.
    assert found[4].item() == pytest.approx(-(131 - 7.5) / np.exp(-4.0), rel=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    values = torch.tensor([0.0, 3.0, 127.0, 255.0], dtype=torch.float64)
    means = torch.tensor([5.3, 2.9, 131.0, 251.7], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.7, 0.6, 11.0, 3.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda mean, size: log_probabilities(values, mean, size), (means, scale))
