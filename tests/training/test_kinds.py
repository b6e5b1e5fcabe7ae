"""Every kind of quantizer through the stages, from its lines in YAML to codes on disk and numbers of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvq.config import RunConfig
from hvq.data import CodeFolder, build_sources
from hvq.data.pixels import bytes_to_model
from hvq.errors import ConfigurationError
from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.generation import generate
from hvq.storage import RunFolder, load_autoencoder, load_hierarchy
from hvq.training import extract_codes, fit_autoencoder, fit_prior
from hvq.training.processes import make_accelerator
from tests.runs import changed, differing, tensors_below, tiny_config, write_images
from tests.training.interruption import killed_at
from tests.training.prior_kinds import PRIORS

KINDS: dict[str, dict[str, Any]] = {
    "cosine": {"kind": "vector", "metric": "cosine", "estimator": "rotation"},
    "heads": {"kind": "vector", "heads": 2, "projection_dimension": 4, "learning": "gradient"},
    "diveq": {"kind": "vector", "learning": "gradient", "estimator": "diveq"},
    "residual": {"kind": "residual", "num_quantizers": 3, "dropout": 0.3},
    "shared": {"kind": "residual", "num_quantizers": 3, "shared": True},
    "residual finite scalar": {"kind": "residual", "num_quantizers": 2, "inner": {"kind": "finite_scalar"}},
    "finite_scalar": {"kind": "finite_scalar"},
    "lookup_free": {"kind": "lookup_free", "groups": 2},
    "spherical": {"kind": "lookup_free", "spherical": True},
    "sim": {"kind": "sim"},
    "gumbel": {"kind": "gumbel"},
}
SEVERAL = {"heads": 2, "residual": 3, "shared": 3, "residual finite scalar": 2, "lookup_free": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def config_of(images: Path, kind: str, **changes: Any) -> RunConfig:
    fields = {
        "autoencoder__levels__top__quantizer": KINDS[kind],
        "autoencoder__levels__top__codebook_size": 16,
        "autoencoder__levels__top__code_dimension": 4,
        "autoencoder_training__steps": 3,
        "priors": {},
    }
    return changed(tiny_config(images), **(fields | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_from_yaml_to_codes_and_numbers(kind: str, images: Path, tmp_path: Path) -> None:
    config, run = config_of(images, kind), RunFolder(tmp_path)
    sources = build_sources(config.data, config.seed)
    fit_autoencoder(config, run)
    extract_codes(config, run)
    loaded, _ = load_autoencoder(run.autoencoder)
    pixels = bytes_to_model(torch.stack([sources.validation.image(i) for i in range(config.chunk_size)]))
    codes = loaded.encode(pixels)
    stored = CodeFolder(run.codes, "validation").fetch(np.arange(config.chunk_size)).codes
    assert all(torch.equal(stored[name], codes[name]) for name in ("top", "bottom"))
    assert codes["top"].shape[3:] == ((SEVERAL[kind],) if kind in SEVERAL else ())
    with torch.no_grad():
        assert torch.equal(loaded.decode(codes), loaded(pixels).reconstruction)
    levels = evaluate(config, run, accelerator=make_accelerator(config, run))["levels"]
    assert 0 < levels["top"]["usage"] <= 1
    assert 1 <= levels["top"]["perplexity"] <= 16


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", ["heads", "shared", "cosine"])
def test_priors_of_every_kind_learn_one_code_per_position_or_several(
    kind: str, prior: str, images: Path, tmp_path: Path
) -> None:
    stage = {"model": PRIORS[prior], "training": {"steps": 8, "batch_size": 12, "evaluate_every": 4, "warmup_steps": 0}}
    config, run = config_of(images, kind, priors={"top": stage, "bottom": stage}), RunFolder(tmp_path)
    fit_autoencoder(config, run)
    extract_codes(config, run)
    fitted = {level: fit_prior(config, run, level) for level in ("top", "bottom")}
    hierarchy = load_hierarchy(run)
    assert {level: type(loaded) for level, loaded in hierarchy.priors.items()} == {
        level: type(trained) for level, trained in fitted.items()
    }
    generated = generate(hierarchy, samples=range(5), labels=[0, 1, 2, -1, 0], seed=1, chunk_size=3)
    assert generated.codes["top"].shape == (5, 2, 2, *((SEVERAL[kind],) if kind in SEVERAL else ()))
    assert generated.images.shape == (5, 1, 16, 16)
    part = generate(hierarchy, samples=[3], labels=[-1], seed=1, chunk_size=3)
    assert all(torch.equal(part.codes[level], generated.codes[level][3:4]) for level in fitted)


def test_what_does_not_go_together_is_refused_before_anything_is_read(images: Path, tmp_path: Path) -> None:
    config = config_of(images, "finite_scalar", autoencoder__levels__top__codebook_size=17)
    with pytest.raises(ConfigurationError, match=r"autoencoder\.levels\.top: .*17"):
        fit_autoencoder(config, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("levels", [("top",), ("top", "bottom")])
def test_a_gaussian_run_that_was_stopped_goes_on_with_the_same_draws(
    levels: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    kinds = {f"autoencoder__levels__{level}__quantizer": {"kind": "gaussian"} for level in levels}
    steps = {"autoencoder_training__steps": 7, "autoencoder_training__checkpoint_every": 3}
    config = changed(tiny_config(images), **kinds, **steps, priors={})
    straight, stopped = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "stopped")
    fit_autoencoder(config, straight)
    with killed_at(5):
        fit_autoencoder(config, stopped)
    fit_autoencoder(config, stopped, resume=True)
    one, other = (tensors_below(run.path) for run in (straight, stopped))
    assert any("log_variance" in name for name in one)
    assert differing(one, other) == []
