"""Autoencoders with Gaussian levels: a plain VAE is one line of configuration, and its loss is the ELBO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    build_autoencoder,
    convolutional_autoencoder,
    initialize_codebooks,
)
from hvq.autoencoders.initialization import needs_codebooks
from hvq.errors import ConfigurationError, DataError
from hvq.quantizers import CodebookStep, GaussianBottleneck, elbo_weight
from hvq.storage import load_autoencoder, save_autoencoder
from hvq.storage.models import AutoencoderDescription
from tests.autoencoders.small import pictures, small_config

GAUSSIAN = {"quantizer": {"kind": "gaussian"}}


def vae(*ratios: int, **fields: Any) -> Autoencoder:
    torch.manual_seed(2)
    model = build_autoencoder(small_config(ratios or (4,), **GAUSSIAN, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize(("size", "positions"), [((12, 20), 3 * 5), ((13, 22), 4 * 6)])
def test_the_loss_is_the_negative_elbo_but_for_scale_and_a_constant(size: tuple[int, int], positions: int) -> None:
    """Also where images are padded, and positions at the edge have fewer values."""
    model, images, variance = vae().double(), pictures(3, *size, torch.float64), 0.07
    values = images[0].numel()
    weight = elbo_weight(variance=variance, values_per_position=values / positions)
    if size == (12, 20):
        assert weight == elbo_weight(variance=variance, values_per_position=2 * 4**2)
    torch.manual_seed(0)
    result = model(images)
    total, _ = AutoencoderLoss(kl_weight=weight)(result, images)
    likelihood = Normal(result.reconstruction, variance**0.5).log_prob(images).sum(dim=(1, 2, 3))
    bottleneck = model.quantizers["top"]
    assert isinstance(bottleneck, GaussianBottleneck)
    means, log_variances = bottleneck.posterior(model.latents(images, "top"))
    divergence = kl_divergence(Normal(means, (log_variances / 2).exp()), Normal(0.0, 1.0)).view(3, -1).sum(dim=1)
    constant = values / 2 * torch.log(torch.tensor(2 * torch.pi * variance, dtype=torch.float64))
    negative_elbo = (divergence - likelihood).mean()
    assert torch.allclose(values / (2 * variance) * total + constant, negative_elbo, rtol=1e-12)


@pytest.mark.parametrize("ratios", [(4,), (2, 4)])
def test_means_decode_to_the_reconstruction_whatever_the_size(ratios: tuple[int, ...]) -> None:
    model, images = vae(*ratios).eval(), pictures(3, 13, 22)
    with torch.no_grad():
        result, codes = model(images), model.encode(images)
        assert torch.equal(model.decode(codes, size=(13, 22)), result.reconstruction)
        shuffled = dict(reversed(codes.items()))
        assert torch.equal(model.decode(shuffled, size=(13, 22)), result.reconstruction)
    grids = model.grids((13, 22))
    dimensions = {name: quantizer.code_dimension for name, quantizer in model.quantizers.items()}
    assert {name: tuple(code.shape) for name, code in codes.items()} == {
        name: (3, *grids[name], dimensions[name]) for name in grids
    }
    kept = model.without_padding(codes, (13, 22))
    finest = model.level_names[-1]
    assert kept[finest].shape == (3, 4, 6, dimensions[finest])


def test_points_of_the_prior_decode_to_images() -> None:
    model = vae().eval()
    images = model.decode({"top": torch.randn(5, 3, 2, 3)})
    assert images.shape == (5, 2, 12, 8)
    with pytest.raises(DataError, match="grid of 2x2 for images of 8x8; it is 3x2"):
        model.decode({"top": torch.randn(5, 3, 2, 3)}, size=(8, 8))


def test_an_absent_level_is_replaced_by_the_mean_of_the_prior() -> None:
    model, images = vae(2, 4).eval(), pictures(3, 16, 24)
    codes = model.encode(images)
    zero = {**codes, "top": torch.zeros_like(codes["top"])}
    assert torch.equal(model.decode(codes, absent=("top",)), model.decode(zero))


def test_no_codebook_is_begun_and_the_codebook_step_leaves_it_alone() -> None:
    model = vae()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not needs_codebooks(model)
    initialize_codebooks(model, [pictures(3, 8, 8)])
    codebooks = CodebookStep(model.quantizers)
    codebooks.add(model(pictures(3, 8, 8)).levels)
    assert codebooks.step() == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_gaussian_level_over_a_quantized_one() -> None:
    model = convolutional_autoencoder(
        channels=2, levels={"top": {"ratio": 2, **GAUSSIAN}, "bottom": {"ratio": 4, "codebook_size": 7}}
    ).eval()
    codes = model.encode(pictures(3, 16, 16))
    assert codes["top"].is_floating_point()
    assert codes["bottom"].dtype == torch.int64
    assert model.decode(codes).shape == (3, 2, 16, 16)
    with pytest.raises(ConfigurationError, match="extraction takes codes, and level top has none"):
        model.require_codes("extraction")


def test_saved_and_loaded_it_restores_the_same(tmp_path: Path) -> None:
    model, images = vae().eval(), pictures(3, 8, 12)
    description = AutoencoderDescription(autoencoder=small_config((4,), **GAUSSIAN), image_size=(8, 12), classes=())
    save_autoencoder(tmp_path / "autoencoder", model, description)
    loaded, about = load_autoencoder(tmp_path / "autoencoder")
    assert about == description
    assert torch.equal(loaded(images).reconstruction, model(images).reconstruction)
