from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvq.errors import ConfigurationError
from hvq.quantizers import FiniteScalarQuantizer
from hvq.quantizers.finite_scalar import choose_levels

levels_of_a_few = st.lists(st.integers(2, 9), min_size=1, max_size=4)


def quantizer_of(levels: list[int], code_dimension: int | None = None) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(
        codebook_size=math.prod(levels), code_dimension=code_dimension or len(levels), levels=levels
    ).double()


@given(levels=levels_of_a_few)
def test_codes_are_mixed_radix_numbers_of_evenly_spaced_values(levels: list[int]) -> None:
    quantizer = quantizer_of(levels)
    vectors = quantizer.lookup(torch.arange(quantizer.codebook_size))
    for code in range(quantizer.codebook_size):
        rest = code
        for d, level in enumerate(levels):
            digit, rest = rest % level, rest // level
            assert float(vectors[code, d]) == pytest.approx((digit - level // 2) / (level // 2))
    assert torch.allclose(quantizer.mean_vector(), vectors.mean(dim=0))


@given(levels=levels_of_a_few)
def test_every_code_is_reached_by_some_latent(levels: list[int]) -> None:
    quantizer = quantizer_of(levels)
    grid = torch.cartesian_prod(*[torch.linspace(-4, 4, 801).double()] * 1)
    for d, level in enumerate(levels):
        latents = torch.zeros(801, len(levels)).double()
        latents[:, d] = grid
        digits = quantizer.assign(latents) // quantizer.basis[d] % level
        assert digits.unique().tolist() == list(range(level))
        assert bool((digits.diff() >= 0).all()), "larger numbers have larger digits"


def test_values_and_gradients_are_those_of_the_paper() -> None:
    """The bound f(z) = tanh(z + atanh(o / h)) h - o, h = (L - 1)(1 + 1e-3) / 2, o = 1/2 for even L; then rounding."""
    quantizer = quantizer_of([4, 5])
    latents = torch.randn(101, 2, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(101, 2).double()
    result = quantizer.quantize(latents, None)
    result.vectors.backward(upstream)
    for d, level in enumerate([4, 5]):
        half, offset = (level - 1) * 1.001 / 2, 0.5 if level % 2 == 0 else 0.0
        inner = latents.detach()[:, d] + math.atanh(offset / half)
        bounded = inner.tanh() * half - offset
        assert torch.allclose(result.vectors[:, d], bounded.round() / (level // 2))
        slope = half * (1 - inner.tanh() ** 2) / (level // 2)
        assert torch.allclose(latents.grad[:, d], upstream[:, d] * slope)
    assert result.losses == {}


def test_what_is_not_finite_gets_some_code() -> None:
    latents = torch.tensor([[torch.nan, 0.0], [torch.inf, -torch.inf], [1e30, -1e30]]).double()
    codes = quantizer_of([5, 8]).assign(latents)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 40


@given(bits=st.integers(1, 18))
def test_powers_of_two_have_levels_near_eight(bits: int) -> None:
    levels = choose_levels(2**bits)
    assert math.prod(levels) == 2**bits
    assert all((4 if bits in (2, 5) else 2 if bits == 1 else 8) <= level <= 16 for level in levels)


@pytest.mark.parametrize("size", [17, 2 * 31, 1])
def test_sizes_without_factors_are_refused_with_sizes_that_have(size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{size}; powers of two always work"):
        FiniteScalarQuantizer(codebook_size=size, code_dimension=3)


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [1, 512], [-2, -256], []])
def test_levels_that_do_not_multiply_to_the_size_are_refused_with_their_product(levels: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=f"make {math.prod(levels)}, not 512"):
        FiniteScalarQuantizer(codebook_size=512, code_dimension=3, levels=levels)


def test_all_codes_come_into_use_on_gaussian_latents() -> None:
    quantizer = FiniteScalarQuantizer(codebook_size=512, code_dimension=3)
    assert len(quantizer.assign(torch.randn(20_000, 3)).unique()) > 0.9 * 512
