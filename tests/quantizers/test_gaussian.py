from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from hvq.config_quantizers import GaussianBottleneckConfig
from hvq.errors import ConfigurationError, DataError
from hvq.quantizers import GaussianBottleneck, ResidualQuantizer, elbo_weight
from hvq.quantizers.build import build_quantizer


def bottleneck_of(dimension: int = 5) -> GaussianBottleneck:
    """In float64, with variances that differ."""
    torch.manual_seed(1)
    bottleneck = GaussianBottleneck(code_dimension=dimension).double()
    nn.init.normal_(bottleneck.log_variance.weight, std=0.7)
    nn.init.normal_(bottleneck.log_variance.bias)
    return bottleneck


def posterior_of(bottleneck: GaussianBottleneck, latents: Tensor) -> Normal:
    return Normal(bottleneck.mean(latents), bottleneck.log_variance(latents).exp().sqrt())


def test_the_divergence_is_that_of_torch_distributions() -> None:
    bottleneck, latents = bottleneck_of(), torch.randn(37, 5).double()
    each = kl_divergence(posterior_of(bottleneck, latents), Normal(0.0, 1.0)).sum(dim=1)
    assert torch.allclose(bottleneck.quantize(latents, None).losses["kl"], each.mean(), rtol=1e-12)
    kept = torch.arange(37) % 3 > 0
    assert torch.allclose(bottleneck.quantize(latents, kept).losses["kl"], each[kept].mean(), rtol=1e-12)
    inputs = [latents.requires_grad_(), *bottleneck.parameters()]
    found = torch.autograd.grad(bottleneck.quantize(latents, None).losses["kl"], inputs)
    each = kl_divergence(posterior_of(bottleneck, latents), Normal(0.0, 1.0)).sum(dim=1)
    for one, other in zip(found, torch.autograd.grad(each.mean(), inputs), strict=True):
        assert torch.allclose(one, other, rtol=1e-9)


def test_a_posterior_that_is_the_prior_costs_nothing() -> None:
    bottleneck = GaussianBottleneck(code_dimension=3)
    assert float(bottleneck.quantize(torch.zeros(7, 3), None).losses["kl"].detach()) > 1
    nn.init.zeros_(bottleneck.log_variance.bias)
    assert float(bottleneck.quantize(torch.zeros(7, 3), None).losses["kl"].detach()) == 0.0


def test_draws_have_the_moments_of_the_posterior() -> None:
    bottleneck = bottleneck_of(3)
    latents = torch.randn(1, 3).double().expand(40_000, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = bottleneck.quantize(latents, None).vectors
    posterior = posterior_of(bottleneck, latents[:1])
    deviation = posterior.stddev[0].detach()
    assert bool(((drawn.mean(dim=0) - posterior.mean[0].detach()).abs() < 4 * deviation / 200).all())
    assert torch.allclose(drawn.std(dim=0), deviation, rtol=0.02)
    correlation = torch.corrcoef(drawn.T) - torch.eye(3, dtype=torch.float64)
    assert float(correlation.abs().max()) < 0.03


def loss_of(bottleneck: GaussianBottleneck, latents: Tensor) -> Tensor:
    """Something that hangs on the drawn vectors in no simple way, for the same noise each time."""
    torch.manual_seed(5)
    vectors = bottleneck.quantize(latents, None).vectors
    return (vectors.sin() * torch.arange(1, 6)).square().mean()


def test_gradients_through_the_draw_are_those_of_finite_differences() -> None:
    bottleneck = bottleneck_of()
    latents = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    tensors = [latents, *bottleneck.parameters()]
    gradients = torch.autograd.grad(loss_of(bottleneck, latents), tensors)
    step = 1e-6
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            tensor.add_(direction, alpha=step)
            above = loss_of(bottleneck, latents)
            tensor.add_(direction, alpha=-2 * step)
            below = loss_of(bottleneck, latents)
            tensor.add_(direction, alpha=step)
        slope = float((gradient * direction).sum())
        assert slope != 0
        assert float(above - below) / (2 * step) == pytest.approx(slope, rel=1e-6)


def test_training_draws_by_torch_s_generator_and_evaluation_takes_the_mean() -> None:
    bottleneck, latents = bottleneck_of(), torch.randn(2, 5, 3, 7).double()
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(bottleneck(latents))
    assert torch.equal(results[0].vectors, results[1].vectors)
    assert not bool((results[0].vectors == results[2].vectors).any())
    evaluated = bottleneck.eval()(latents)
    expected = bottleneck.mean(latents.movedim(1, -1))
    assert torch.equal(evaluated.codes, results[0].codes)
    assert torch.allclose(evaluated.codes, expected)
    assert torch.equal(evaluated.vectors, evaluated.codes.movedim(-1, 1))


@pytest.mark.parametrize("grid", [(), (11,), (3, 7), (2, 3, 5)])
def test_means_stand_in_place_of_codes_and_nothing_is_counted(grid: tuple[int, ...]) -> None:
    bottleneck = GaussianBottleneck(code_dimension=5)
    for mode in (True, False):
        result = bottleneck.train(mode)(torch.randn(2, 5, *grid))
        assert result.vectors.shape == (2, 5, *grid)
        assert result.codes.shape == (2, *grid, 5)
        assert result.codes.is_floating_point()
        assert result.counts.numel() == len(result.statistics) == 0
        assert result.losses["kl"].shape == ()
    assert (bottleneck.codebook_size, bottleneck.discrete, bottleneck.code_shape) == (0, False, (5,))
    assert torch.equal(bottleneck.mean_vector(), torch.zeros(5))


@pytest.mark.parametrize("codes", [torch.zeros(2, 3, 5, dtype=torch.int64), torch.zeros(2, 3, 4), torch.zeros(5)])
def test_what_are_no_means_is_refused(codes: Tensor) -> None:
    with pytest.raises(DataError, match=r"takes floating point means \[B, \*grid, 5\]; received"):
        GaussianBottleneck(code_dimension=5).decode(codes)


def test_extreme_latents_keep_the_loss_finite() -> None:
    bottleneck = GaussianBottleneck(code_dimension=2)
    nn.init.constant_(bottleneck.log_variance.weight, 1.0)
    for scale in (1e3, -1e3):
        result = bottleneck(torch.full((1, 2, 3), scale))
        (result.losses["kl"] + result.vectors.square().mean()).backward()
        assert bool(result.losses["kl"].isfinite())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in bottleneck.parameters())


def test_it_is_one_line_of_configuration_and_needs_no_codebook() -> None:
    built = build_quantizer(GaussianBottleneckConfig(), codebook_size=512, code_dimension=3)
    assert isinstance(built, GaussianBottleneck)
    assert (built.codebook_size, built.code_dimension, built.initialized) == (0, 3, True)
    with pytest.raises(ConfigurationError, match="must be positive"):
        GaussianBottleneck(code_dimension=0)
    with pytest.raises(ConfigurationError, match="gives means in place of codes"):
        ResidualQuantizer(quantizers=[built, built])


def test_the_weight_of_the_elbo() -> None:
    assert elbo_weight(variance=0.03, values_per_position=48) == pytest.approx(0.00125)
    # Twice the weight is what twice the variance asks for.
    assert elbo_weight(variance=0.06, values_per_position=48) == pytest.approx(0.0025)
    for arguments in ({"variance": 0.0, "values_per_position": 3}, {"variance": 1.0, "values_per_position": 0}):
        with pytest.raises(ConfigurationError, match="must be positive"):
            elbo_weight(**arguments)
    with pytest.raises(ConfigurationError):
        elbo_weight(variance=math.nan, values_per_position=3)
