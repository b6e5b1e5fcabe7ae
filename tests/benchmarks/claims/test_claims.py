"""Every claim from its command line to a verdict, a plot and cells, with a plan of a few steps; and what decides it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Categorical, Normal, kl_divergence

from hvq.files import write_tensors
from hvq.quantizers import elbo_weight

Load = Callable[[str], ModuleType]
TINY_HIERARCHY = {"steps": 2, "width": 8, "codebook_size": 7, "prior_steps": 2, "prior_width": 16}
TINY: dict[str, dict[str, Any]] = {
    "kl_is_log_k": {"sizes": (2, 5), "steps": 2},
    "beta": {"steps": 2, "width": 8, "codebook_size": 7, "betas": (0.1, 2.0), "seeds": (0, 1)},
    "posterior_collapse": {"steps": 2, "width": 8, "layers": 1, "codebook_size": 7},
    "vae": {"images": 67, "held_out": 13, "steps": 2, "batch_size": 17, "width": 8, "prior_steps": 2, "prior_width": 8},
    "codebook_learning": {"steps": 2, "width": 8, "codebook_size": 7, "seeds": (0, 1)},
    "levels": {"images": 67, "held_out": 13, "steps": 2, "batch_size": 17, "width": 8, "codebook_sizes": (4,)},
    "priors": {**TINY_HIERARCHY, "classifier_steps": 2, "seeds": (0,)},
    "rejection": {**TINY_HIERARCHY, "classifier_steps": 2, "wanted": 4, "draws": (0, 1)},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 71), ("val", 19)):
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        write_tensors(tmp_path / f"cifar10-{split}.safetensors", {"images": images, "labels": torch.arange(count) % 10})
    return tmp_path


@pytest.mark.parametrize("claim", TINY)
def test_a_claim_ends_in_a_verdict_and_goes_on_where_it_stopped(
    claim: str, load_claim: Load, monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    script = load_claim(claim)
    monkeypatch.setattr(script, "QUICK", replace(script.QUICK, **TINY[claim]))
    words = [
        "--quick",
        "--json",
        str(tmp_path / "claims.json"),
        "--data",
        str(data),
        "--plots",
        str(tmp_path / "plots"),
    ]
    assert script.main(words) == 0
    (row,) = json.loads((tmp_path / "claims.json").read_text())
    assert (row["claim"], type(row["holds"])) == (claim, bool)
    assert row["numbers"]["about"]["steps"] == 2
    with Image.open(tmp_path / "plots" / f"{claim}.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("L").getcolors() or []) > 10

    def not_again(*arguments: Any) -> Any:
        raise AssertionError("a cell that is there was run again")

    monkeypatch.setattr(script, "run_cell", not_again)
    assert script.main(words) == 0
    assert json.loads((tmp_path / "claims.json").read_text()) == [row]


def test_missing_photographs_are_said(load_claim: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_claim("vae").main(["--quick", "--data", str(tmp_path), "--plots", str(tmp_path)]) == 1
    assert "cifar10-train.safetensors" in capsys.readouterr().err


# --- KL is log K ---


def test_the_divergence_is_log_k_where_the_posterior_is_one_hot_alone(load_claim: Load) -> None:
    script = load_claim("kl_is_log_k")
    one_hot = torch.eye(7, dtype=torch.float64)
    soft = torch.full((1, 7), 1 / 7, dtype=torch.float64).lerp(one_hot[:1], 0.4)
    for divergence in (script.divergence, script.divergence_by_torch):
        assert torch.allclose(divergence(one_hot), torch.full((7,), math.log(7), dtype=torch.float64), rtol=1e-12)
        by_hand = sum(q * math.log(7 * q) for q in soft[0].tolist())
        assert float(divergence(soft)) == pytest.approx(by_hand, rel=1e-9)


# --- beta ---


def test_spreads_are_those_of_an_analysis_of_variance(load_claim: Load) -> None:
    stats = pytest.importorskip("scipy.stats")
    errors = np.random.default_rng(0).normal(5, 1, (7, 3)) + np.arange(7)[:, None] / 3
    found = load_claim("beta").spreads(errors)
    # F is three times the square of the ratio, for three seeds.
    assert 3 * found["ratio"] ** 2 == pytest.approx(stats.f_oneway(*errors).statistic, rel=1e-9)
    shifted = load_claim("beta").spreads(errors + np.array([[0.0, 2.0, -1.0]]))
    assert shifted["ratio_to_residual"] == pytest.approx(found["ratio_to_residual"], rel=1e-9)
    assert shifted["ratio"] < found["ratio"]


# --- moving averages against the codebook loss ---

CONVERGED: dict[str, dict[str, Any]] = {
    way: {"share_of_steps": 0.5, "final_usage": {"gradient": 0.8, "moving_average": 0.9}} for way in ("bare", "helped")
}


def test_moving_averages_are_to_be_faster_and_use_as_much_in_both_ways(load_claim: Load) -> None:
    script = load_claim("codebook_learning")
    assert script.verdict_of(CONVERGED)
    assert not script.verdict_of({**CONVERGED, "helped": {**CONVERGED["helped"], "share_of_steps": 0.95}})
    less = {"gradient": 0.8, "moving_average": 0.78}
    assert not script.verdict_of({**CONVERGED, "bare": {**CONVERGED["bare"], "final_usage": less}})


def test_the_share_of_steps_is_against_the_end_of_the_same_seed(load_claim: Load) -> None:
    def cell(*errors: float) -> dict[str, list[float]]:
        return {"steps": [10, 20, 40], "mse": list(errors), "usage": [0.1, 0.5, 1.0]}

    found = load_claim("codebook_learning").compare(
        {"moving_average": [cell(4, 2, 1), cell(8, 7, 6)], "gradient": [cell(5, 4, 3), cell(7, 6, 5)]}
    )
    assert found["share_of_steps_by_seed"] == [15 / 40, 1.0]
    assert found["final_mse"] == {"moving_average": 3.5, "gradient": 4.0}
    assert found["least_usage"] == {"moving_average": 0.1, "gradient": 0.1}


# --- posterior collapse ---

COLLAPSED: dict[str, dict[str, float]] = {
    "vae, weak": {"kl_nats": 10.0, "active_units": 30.0, "used_nats": 20.0, "probe_accuracy": 0.8},
    "vae, strong": {"kl_nats": 0.3, "active_units": 0.0, "used_nats": 0.1, "probe_accuracy": 0.1},
    "vq-vae, weak": {"kl_nats": 20.0, "active_units": 30.0, "used_nats": 50.0, "probe_accuracy": 0.9},
    "vq-vae, strong": {"kl_nats": 20.0, "active_units": 30.0, "used_nats": 9.0, "probe_accuracy": 0.9},
}


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("vae, strong", "kl_nats", 1.1),
        ("vae, strong", "active_units", 4.0),
        ("vae, strong", "used_nats", 0.6),
        ("vae, strong", "probe_accuracy", 0.3),
        ("vq-vae, strong", "used_nats", 1.5),
        ("vq-vae, strong", "probe_accuracy", 0.4),
    ],
)
def test_each_part_of_the_criterion_decides(load_claim: Load, model: str, name: str, value: float) -> None:
    script = load_claim("posterior_collapse")
    assert script.verdict_of(COLLAPSED)
    assert not script.verdict_of({**COLLAPSED, model: {**COLLAPSED[model], name: value}})


def test_the_probe_tells_latents_that_know_the_class_from_noise(load_claim: Load) -> None:
    script = load_claim("posterior_collapse")
    labels = torch.arange(500) % 5
    noise = torch.randn(500, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    telling = noise.clone()
    telling[:, 0, 0, 0] = 0.01 * noise[:, 0, 0, 0] + labels.cos()
    telling[:, 0, 0, 1] = 0.01 * noise[:, 0, 0, 1] + labels.sin()
    accuracy, nats = script.probe(telling[:300], labels[:300], telling[300:], labels[300:])
    assert accuracy > 0.95
    assert 0.5 * math.log(5) < nats < math.log(5)
    accuracy, nats = script.probe(noise[:300], labels[:300], noise[300:], labels[300:])
    assert accuracy < 0.35
    assert nats < 0.05


def test_shades_are_those_of_the_scan(load_claim: Load) -> None:
    script, images = load_claim("posterior_collapse"), load_claim("training").digits(8)
    shades = script.to_shades(images.held_out)
    assert shades.unique().tolist() == list(range(17))
    # Shades were rounded to bytes by another rule, at most one byte away.
    assert int((script.to_bytes(shades).int() - images.held_out.int()).abs().max()) <= 1


@pytest.mark.parametrize("decoder", ["weak", "strong"])
def test_the_loss_of_the_gaussian_is_the_elbo_per_pixel(load_claim: Load, decoder: str) -> None:
    script = load_claim("posterior_collapse")
    plan = replace(script.QUICK, width=8, layers=1)
    torch.manual_seed(0)
    model = script.PixelAutoencoder(plan, "gaussian", decoder)
    shades = torch.randint(0, 17, (5, 8, 8))
    total, results = script.loss_of(model.eval(), shades)
    latents = model.latents(shades)
    likelihood = Categorical(logits=model.logits(results["top"].vectors, shades)).log_prob(shades).sum(dim=(1, 2))
    means, log_variances = model.bottleneck.posterior(latents.movedim(1, -1))
    posterior = Normal(means, (log_variances / 2).exp())
    negative_elbo = kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=(1, 2, 3)) - likelihood
    assert torch.allclose(64 * total, negative_elbo.mean(), rtol=1e-5)


# --- VQ-VAE against VAE ---


@pytest.mark.parametrize("deviation", [0.003, 0.1, 2.0])
def test_discretised_probabilities_are_differences_of_the_distribution(load_claim: Load, deviation: float) -> None:
    script = load_claim("vae")
    shades = torch.arange(256, dtype=torch.uint8)
    for mean in (-1.4, -0.3, 0.2, 1.0):
        found = script.discretised_nats(torch.full((256,), mean), shades, deviation)
        assert bool(found.isfinite().all())
        assert float((-found).exp().sum()) == pytest.approx(1.0, abs=1e-9)
        normal = Normal(torch.tensor(mean, dtype=torch.float32).double(), deviation)
        centres = shades.double() / 127.5 - 1
        inner = normal.cdf(centres + 1 / 255) - normal.cdf(centres - 1 / 255)
        likely = (inner > 1e-6) & (shades > 0) & (shades < 255)
        assert torch.allclose((-found)[likely].exp(), inner[likely], rtol=1e-4)


def test_the_loss_is_that_of_an_elbo_whose_variance_is_the_error(load_claim: Load) -> None:
    script = load_claim("vae")
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    model = script.make_model(replace(script.QUICK, width=8), {"kind": "gaussian"})
    result = model(images)
    total, terms = script.weigh(result, images)
    error = (result.reconstruction - images).square().mean()
    weight = elbo_weight(variance=float(error.detach()), values_per_position=48)
    assert torch.allclose(total, error + weight * terms["kl"])
    quantized = script.make_model(replace(script.QUICK, width=8), {"kind": "vector", "heads": 2})
    kinds = [type(part.quantizers["top"]).__name__ for part in (model, quantized)]
    assert kinds == ["GaussianBottleneck", "VectorQuantizer"]
    encoders = [sum(p.numel() for p in part.levels["top"].encoder.parameters()) for part in (model, quantized)]
    assert encoders[0] == encoders[1]


def test_blurred_images_lose_high_frequencies_alone(load_claim: Load) -> None:
    script = load_claim("vae")
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    own, left = script.spectrum(images), script.spectrum(blurred)
    assert own.shape == (17,)
    assert float(left[1] / own[1]) > 0.8
    assert float(left[12:].sum() / own[12:].sum()) < 0.1
