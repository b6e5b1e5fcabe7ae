from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders import AutoencoderLoss, AutoencoderResult, FeatureDistance, WeightedLoss, build_loss
from hvq.autoencoders.reconstruction_losses import (
    DiscretizedLogistic,
    absolute_error,
    per_level_error,
    squared_error,
)
from hvq.config import AutoencoderTrainingConfig
from hvq.errors import ConfigurationError
from tests.autoencoders.small import codebook, pictures, small_model


def _bytes(*shape: int) -> Tensor:
    """Pixels of 256 values, in [-1, 1]."""
    return torch.randint(0, 256, shape).double() / 127.5 - 1


def _result(reconstruction: Tensor, log_scale: Tensor | None = None) -> AutoencoderResult:
    return AutoencoderResult(reconstruction, {}, log_scale=log_scale)


# --- pixels ---


def test_errors_of_pixels_are_means() -> None:
    images, restored = _bytes(2, 3, 5, 7), _bytes(2, 3, 5, 7)
    difference = (images - restored).numpy()
    assert squared_error(_result(restored), images).item() == pytest.approx(np.square(difference).mean())
    assert absolute_error(_result(restored), images).item() == pytest.approx(np.abs(difference).mean())


# --- discretized logistic ---


def _nats(images: Tensor, restored: Tensor, scales: list[float]) -> float:
    """From the definition: bins of 2 / 255 in [-1, 1], tails to the edges."""
    total = 0.0
    for channel, scale in enumerate(scales):
        pixels, means = images[:, channel].numpy(), restored[:, channel].numpy()
        with np.errstate(over="ignore"):
            lower = np.where(pixels < -0.999, 0.0, 1 / (1 + np.exp(-(pixels - 1 / 255 - means) / scale)))
            upper = np.where(pixels > 0.999, 1.0, 1 / (1 + np.exp(-(pixels + 1 / 255 - means) / scale)))
        total -= np.log(upper - lower).sum()
    return total / images.numel()


def test_nats_are_those_of_the_definition_with_the_fixed_scale() -> None:
    images, restored = _bytes(2, 3, 5, 7), _bytes(2, 3, 5, 7) * 1.1
    images[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    loss = DiscretizedLogistic(scale=0.3)
    assert loss(_result(restored), images).item() == pytest.approx(_nats(images, restored, [0.3] * 3), rel=1e-9)
    single = loss(_result(restored.float()), images.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(_nats(images, restored, [0.3] * 3), rel=1e-5)


def test_a_learned_scale_is_of_each_channel_and_takes_the_place_of_the_fixed_one() -> None:
    images, restored = _bytes(2, 3, 5, 7), _bytes(2, 3, 5, 7)
    log_scale = torch.tensor([0.2, 0.5, 1.1], dtype=torch.float64).log().requires_grad_()
    found = DiscretizedLogistic(scale=7.0)(_result(restored, log_scale), images)
    assert found.item() == pytest.approx(_nats(images, restored, [0.2, 0.5, 1.1]), rel=1e-9)
    (gradient,) = torch.autograd.grad(found, log_scale)
    assert bool((gradient != 0).all())


def test_knowing_nothing_costs_as_many_nats_as_256_values_have() -> None:
    images = _bytes(3, 1, 11, 13)
    broad = torch.zeros_like(images)
    # Within a distribution that is broad, but not so much that the tails at the edges weigh in.
    inside = images.clamp(-0.1, 0.1)
    assert DiscretizedLogistic(scale=0.5)(_result(broad), inside).item() == pytest.approx(math.log(255), abs=0.02)
    assert DiscretizedLogistic(scale=1e-4)(_result(images), images).item() == pytest.approx(0, abs=1e-8)


def test_a_scale_that_shrinks_without_end_stays_finite() -> None:
    images = _bytes(2, 3, 5, 7).float()
    log_scale = torch.full((3,), -1e3, requires_grad=True)
    found = DiscretizedLogistic()(_result(_bytes(2, 3, 5, 7).float(), log_scale), images)
    found.backward()
    assert math.isfinite(found.item())
    with pytest.raises(ConfigurationError, match="more than 0; received 0"):
        DiscretizedLogistic(scale=0.0)


def test_the_learned_scale_finds_the_spread_of_the_error() -> None:
    """Logistic noise of a known scale: the most probable scale is that one."""
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(1, 2, 101, 103, generator=generator, dtype=torch.float64)
    noise = torch.log(uniform / (1 - uniform)) * torch.tensor([0.05, 0.11], dtype=torch.float64).view(1, 2, 1, 1)
    images = torch.round((noise + 1) * 127.5) / 127.5 - 1
    log_scale = torch.full((2,), -1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = DiscretizedLogistic()(_result(torch.zeros_like(images), log_scale), images)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert log_scale.exp().tolist() == pytest.approx([0.05, 0.11], rel=0.02)


# --- per level ---


def test_the_error_of_every_coarser_prefix_is_summed() -> None:
    model = small_model((2, 1, 2), level_dropout=0.5).double()
    images = pictures(3, 9, 11, torch.float64)
    result = model(images, prefixes=True)
    assert list(result.prefixes) == ["top", "middle"]
    expected = sum(functional.mse_loss(image, images) for image in result.prefixes.values())
    assert torch.allclose(per_level_error(result, images), torch.as_tensor(expected))
    parts = {"levels": WeightedLoss(0.3, per_level_error), "pixels": WeightedLoss(1.0, squared_error)}
    loss = AutoencoderLoss(reconstruction=parts, commitment_weight=0.0)
    assert loss.needs_prefixes
    assert not AutoencoderLoss().needs_prefixes
    total, _ = loss(result, images)
    assert torch.allclose(total, functional.mse_loss(result.reconstruction, images) + 0.3 * torch.as_tensor(expected))


@pytest.mark.parametrize("level_dropout", [0.0, 0.5])
def test_it_moves_what_makes_the_image_of_the_coarse_levels_and_no_codebook(level_dropout: float) -> None:
    """With the learned stand-in, and with the mean of the codebook."""
    model = small_model((2, 2), level_dropout=level_dropout, quantizer={"learning": "gradient"})
    images = pictures(3, 8, 12)
    per_level_error(model(images, prefixes=True), images).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"levels.top.encoder.0.weight", "levels.top.merge.0.weight", "decoder.0.weight"} <= moved
    assert ("levels.bottom.absent" in moved) == bool(level_dropout)
    assert not any("codebook" in name or name.startswith("levels.bottom.projection") for name in moved)


def test_without_the_images_of_coarser_levels_it_is_refused() -> None:
    model, images = small_model((2, 2)), pictures(1, 8, 12)
    with pytest.raises(ConfigurationError, match="prefixes=True"):
        per_level_error(model(images), images)


# --- features ---


class _Brightness(FeatureDistance):
    """Knows nothing but how bright an image is."""

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return (images - reconstructions).flatten(1).mean(1).abs() * self.network.weight


def test_a_distance_of_features_is_a_mean_over_the_batch_and_stays_as_it_is() -> None:
    distance = _Brightness("brightness", torch.nn.Linear(1, 1, bias=False)).train()
    assert not distance.training
    assert not distance.network.training
    images, restored = _bytes(3, 2, 5, 7), _bytes(3, 2, 5, 7).requires_grad_()
    term = {"features": {"kind": "perceptual", "extractor": "anywhere", "weight": 2}}
    training = AutoencoderTrainingConfig.model_validate({"reconstruction": term})
    loss = build_loss(training, distances={"features": distance})
    total, _ = loss(_result(restored), images)
    total.backward()
    expected = 2 * (images - restored).flatten(1).mean(1).abs().mean() * distance.network.weight
    assert total.item() == pytest.approx(expected.item())
    assert restored.grad is not None
    assert distance.network.weight.grad is None
    with pytest.raises(ConfigurationError, match="term features of kind perceptual takes a distance"):
        build_loss(training)


# --- precision, configuration ---


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_no_term_is_of_low_precision(kind: torch.dtype) -> None:
    model, images = small_model((2, 2)), pictures(3, 8, 12)
    with torch.autocast("cpu", kind):
        result = model(images, prefixes=True)
    assert result.reconstruction.dtype == kind
    result = replace(result, log_scale=torch.zeros(2, dtype=kind))
    for loss in (squared_error, absolute_error, per_level_error, DiscretizedLogistic()):
        assert loss(result, images).dtype == torch.float32
        assert loss(result, images.to(kind)).dtype == torch.float32


def test_every_kind_is_built_with_its_weight() -> None:
    terms = {
        "a": {"kind": "mse", "weight": 0.5},
        "b": {"kind": "l1"},
        "c": {"kind": "discretized_logistic", "scale": 0.7, "weight": 3},
        "d": {"kind": "per_level"},
    }
    built = build_loss(AutoencoderTrainingConfig.model_validate({"reconstruction": terms})).reconstruction
    assert [built[name].weight for name in terms] == [0.5, 1, 3, 1]
    assert [built[name].loss for name in "abd"] == [squared_error, absolute_error, per_level_error]
    assert isinstance(built["c"].loss, DiscretizedLogistic)
    assert built["c"].loss.scale == 0.7


def test_codebooks_learn_by_gradient_from_their_own_loss_alone() -> None:
    """Whatever the terms of the reconstruction are."""
    model = small_model((2, 2), quantizer={"learning": "gradient"})
    images = pictures(3, 8, 12)
    terms = [WeightedLoss(1.0, loss) for loss in (squared_error, DiscretizedLogistic(), per_level_error)]
    loss = AutoencoderLoss(reconstruction=dict(zip("abc", terms, strict=True)), codebook_weight=0.0)
    total, _ = loss(model(images, prefixes=True), images)
    gradients = torch.autograd.grad(total, [codebook(q) for q in model.quantizers.values()], allow_unused=True)
    assert all(gradient is None or not bool(gradient.any()) for gradient in gradients)
