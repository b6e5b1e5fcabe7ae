"""Likelihoods of pixels: proper distributions, plain numpy, and the bound that they make with the codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.likelihood import (
    LIKELIHOODS,
    PixelPairs,
    bits_per_dimension,
    fit_scale,
    gaussian_log_probabilities,
    nats_per_dimension,
)
from tests.processes import run_in_processes

DISTRIBUTION = {
    "gaussian": np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2))),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
}


def _images(count: int = 7, seed: int = 0, noise: float = 9.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 5, 11), generator=generator)
    errors = (torch.randn(images.shape, generator=generator) * noise).round().long()
    return images.byte(), (images + errors).clamp(0, 255).byte()


def _pairs(images: Tensor, reconstructions: Tensor, batch_size: int = 7) -> Tensor:
    pairs = PixelPairs()
    for part in zip(images.split(batch_size), reconstructions.split(batch_size), strict=True):
        pairs.update(*part)
    return torch.as_tensor(pairs.compute())


def _plain_nats(images: Tensor, reconstructions: Tensor, kind: str, scale: float) -> float:
    """Pixel by pixel, the difference of distribution functions itself."""
    values: NDArray[np.int64] = images.long().numpy().flatten()
    means: NDArray[np.float64] = reconstructions.double().numpy().flatten() / 255
    above = DISTRIBUTION[kind](((values + 0.5) / 255 - means) / scale)
    below = DISTRIBUTION[kind](((values - 0.5) / 255 - means) / scale)
    above, below = np.where(values == 255, 1.0, above), np.where(values == 0, 0.0, below)
    return float(-np.log(above - below).mean())


@pytest.mark.parametrize("kind", LIKELIHOODS)
@given(scale=st.floats(1e-4, 10.0))
def test_the_256_values_have_probability_1(kind: str, scale: float) -> None:
    logarithms = LIKELIHOODS[kind](scale)
    assert logarithms.shape == (256, 256)
    assert bool(logarithms.isfinite().all())
    torch.testing.assert_close(logarithms.exp().sum(1), torch.ones(256, dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("scale", [0.03, 0.2, 3.0])
def test_equals_plain_numpy(kind: str, scale: float) -> None:
    images, reconstructions = _images()
    found = nats_per_dimension(_pairs(images, reconstructions), LIKELIHOODS[kind](scale))
    assert found == pytest.approx(_plain_nats(images, reconstructions, kind, scale), rel=1e-8)


def test_far_tails_keep_their_logarithms() -> None:
    """100 deviations out: log of the density times the bin's width is right where the function itself is 1 or 0."""
    deviation = 0.5 / 255
    logarithms = gaussian_log_probabilities(deviation)
    edge = 99.0  # from reconstruction 100 to value 50: bin from 101 to 99 deviations
    expected = -(edge**2) / 2 - math.log(edge * math.sqrt(2 * math.pi))
    assert float(logarithms[100, 50]) == pytest.approx(expected, rel=1e-6)
    assert float(logarithms[50, 100]) == pytest.approx(float(logarithms[100, 50]), rel=1e-12)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_fitted_scale_is_the_best(kind: str) -> None:
    images, reconstructions = _images(noise=9.0)
    pairs = _pairs(images, reconstructions)
    scale = fit_scale(pairs, LIKELIHOODS[kind])
    best = nats_per_dimension(pairs, LIKELIHOODS[kind](scale))
    for factor in (0.5, 0.9, 0.99, 0.999, 1.001, 1.01, 1.1, 2.0):
        assert best <= nats_per_dimension(pairs, LIKELIHOODS[kind](scale * factor))
    assert best < nats_per_dimension(pairs, LIKELIHOODS[kind](scale * 1.01)) - 1e-6


def test_a_gaussian_finds_the_deviation_of_the_noise() -> None:
    images = torch.full((7, 3, 37, 41), 128, dtype=torch.uint8)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 9
    scale = fit_scale(_pairs(images, (images + noise).round().byte()), gaussian_log_probabilities)
    assert scale == pytest.approx(9 / 255, rel=0.01)


def test_exact_reconstructions_leave_the_codes_alone() -> None:
    images, _ = _images()
    pairs = _pairs(images, images)
    for likelihood in LIKELIHOODS.values():
        bits = bits_per_dimension(pairs, fitted_on=pairs, likelihood=likelihood, code_bits=330.0, dimensions=165)
        assert bits.reconstruction == pytest.approx(0.0, abs=1e-6)
        assert bits.total == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_bits_are_those_of_the_measured_images_at_the_scale_of_the_others(kind: str) -> None:
    images, reconstructions = _images()
    training = _pairs(*_images(seed=1, noise=5.0))
    bits = bits_per_dimension(
        _pairs(images, reconstructions),
        fitted_on=training,
        likelihood=LIKELIHOODS[kind],
        code_bits=37.0,
        dimensions=165,
    )
    assert bits.scale == fit_scale(training, LIKELIHOODS[kind])
    expected = _plain_nats(images, reconstructions, kind, bits.scale) / math.log(2)
    assert bits.reconstruction == pytest.approx(expected, rel=1e-6)
    assert bits.codes == pytest.approx(37 / 165)
    assert bits.total == bits.reconstruction + bits.codes


def test_pairs_are_counted_exactly_for_any_batch_size() -> None:
    images, reconstructions = _images()
    expected = torch.zeros(256, 256, dtype=torch.int64)
    for value, mean in zip(images.flatten().tolist(), reconstructions.flatten().tolist(), strict=True):
        expected[mean, value] += 1
    for batch_size in (1, 3, 7):
        assert torch.equal(_pairs(images, reconstructions, batch_size), expected)


def test_refuses_what_is_not_pixels() -> None:
    images, _ = _images()
    for wrong in (images.float(), images[:, :1]):
        with pytest.raises(DataError, match="uint8 of one shape"):
            PixelPairs().update(images, wrong)
    with pytest.raises(DataError, match="at least one pixel"):
        fit_scale(torch.zeros(256, 256, dtype=torch.int64), gaussian_log_probabilities)


def _counted_on_one_of_two_processes() -> Tensor:
    images, reconstructions = _images()
    share = (slice(0, 2), slice(2, 7))[torch.distributed.get_rank()]
    return _pairs(images[share], reconstructions[share], 3)


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _pairs(*_images())
    for found in run_in_processes(_counted_on_one_of_two_processes, 2):
        assert torch.equal(found, expected)
