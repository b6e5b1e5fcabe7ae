from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hvq.autoencoders import AutoencoderLoss, WeightedLoss, build_loss
from hvq.autoencoders.reconstruction_losses import absolute_error, squared_error
from hvq.config import AutoencoderTrainingConfig
from hvq.errors import ConfigurationError
from tests.autoencoders.small import codebook, pictures, small_model


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_terms_are_means_summed_over_levels_and_weighed_in_the_total(kind: str) -> None:
    model = small_model((2, 2), quantizer={"learning": "gradient"}).double()
    images = pictures(3, 8, 12, torch.float64)
    result = model(images)
    training = AutoencoderTrainingConfig(reconstruction=kind, commitment_weight=0.3, codebook_weight=0.7)
    total, terms = build_loss(training)(result, images)
    assert list(terms) == ["reconstruction", "commitment", "codebook"]
    distance = functional.mse_loss if kind == "mse" else functional.l1_loss
    assert terms["reconstruction"] == distance(result.reconstruction, images)
    for name in ("commitment", "codebook"):
        by_level = [result.levels[level].losses[name] for level in ("top", "bottom")]
        assert torch.allclose(terms[name], torch.stack(by_level).sum())
    expected = terms["reconstruction"] + 0.3 * terms["commitment"] + 0.7 * terms["codebook"]
    assert torch.allclose(total, expected, rtol=1e-14)
    assert total.requires_grad
    assert not any(term.requires_grad for term in terms.values())


def test_beta_scales_the_commitment_alone() -> None:
    """Its gradient at the codebook is nought, and at the encoder it grows with beta."""
    model = small_model((2,), quantizer={"learning": "gradient"}).double()
    images = pictures(3, 8, 12, torch.float64)

    def gradients(beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        total, _ = AutoencoderLoss(commitment_weight=beta)(model(images), images)
        of_codebook, of_encoder = torch.autograd.grad(
            total, [codebook(model.quantizers["top"]), model.levels["top"].projection.weight]
        )
        return of_codebook, of_encoder

    none, one, two = gradients(0.0), gradients(1.0), gradients(2.0)
    assert torch.equal(none[0], one[0])
    assert torch.equal(one[0], two[0])
    assert bool((one[1] - none[1]).any())
    assert torch.allclose(two[1] - none[1], 2 * (one[1] - none[1]), atol=1e-12)


def test_codebook_loss_moves_the_codebook_alone() -> None:
    model = small_model((2, 2), quantizer={"learning": "gradient"})
    sum(level.losses["codebook"] for level in model(pictures(3, 8, 12)).levels.values()).backward()
    moved = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert moved == [
        "levels.top.quantizer.head_codebooks.0.vectors",
        "levels.bottom.quantizer.head_codebooks.0.vectors",
    ]


def test_the_reconstruction_moves_encoder_and_decoder_but_no_codebook() -> None:
    model = small_model((2, 2), quantizer={"learning": "gradient"})
    model(pictures(3, 8, 12)).reconstruction.square().mean().backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert still == [
        "levels.top.quantizer.head_codebooks.0.vectors",
        "levels.bottom.quantizer.head_codebooks.0.vectors",
    ]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_total_is_never_of_low_precision(kind: torch.dtype) -> None:
    model = small_model((2,))
    images = pictures(3, 8, 12)
    with torch.autocast("cpu", kind):
        result = model(images)
    assert result.reconstruction.dtype == kind
    total, terms = AutoencoderLoss()(result, images)
    assert {total.dtype, *(term.dtype for term in terms.values())} == {torch.float32}
    total, terms = AutoencoderLoss()(result, images.to(kind))
    assert {total.dtype, *(term.dtype for term in terms.values())} == {torch.float32}


def test_terms_of_the_reconstruction_are_weighed_summed_and_told_each() -> None:
    model, images = small_model((2,)).double(), pictures(3, 8, 12, torch.float64)
    result = model(images)
    terms = {"near": WeightedLoss(0.3, squared_error), "far": WeightedLoss(2.0, absolute_error)}
    total, told = AutoencoderLoss(reconstruction=terms, commitment_weight=0.0)(result, images)
    difference = (result.reconstruction - images).detach()
    assert torch.allclose(told["reconstruction.near"], difference.square().mean())
    assert torch.allclose(told["reconstruction.far"], difference.abs().mean())
    expected = 0.3 * difference.square().mean() + 2.0 * difference.abs().mean()
    assert torch.allclose(told["reconstruction"], expected, rtol=1e-14)
    assert torch.allclose(total, expected, rtol=1e-14)


def test_a_loss_without_a_reconstruction_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one term"):
        AutoencoderLoss(reconstruction={})


def test_the_default_of_the_configuration_is_that_of_the_constructor() -> None:
    assert build_loss(AutoencoderTrainingConfig()).reconstruction == AutoencoderLoss().reconstruction
