"""Measured costs, of whatever clock: every part is measured, for every kind of model that can be set by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvq.choosing.costs import Costs
from hvq.choosing.measure import measure_costs
from hvq.config import RunConfig
from hvq.data import build_sources
from hvq.errors import ConfigurationError
from hvq.storage import RunFolder
from hvq.training.processes import make_accelerator
from tests.runs import changed, tiny_config, write_images


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_config(write_images(tmp_path_factory.mktemp("images")))


def _measured(config: RunConfig, folder: Path, *, most_seconds: float = 10.0) -> Costs:
    accelerator = make_accelerator(config, RunFolder(folder))
    source = build_sources(config.data, config.seed).train
    return measure_costs(config, source, accelerator=accelerator, most_seconds=most_seconds)


@pytest.mark.parametrize("most_seconds", [0.0, 10.0])
def test_every_part_takes_time(config: RunConfig, tmp_path: Path, most_seconds: float) -> None:
    costs = _measured(config, tmp_path, most_seconds=most_seconds)
    assert list(costs.prior_steps) == list(costs.looks) == ["top", "bottom"]
    parts = [
        costs.reading,
        costs.autoencoder_step,
        costs.encoding,
        costs.restoring,
        costs.drawing,
        costs.classifier_step,
    ]
    assert all(value > 0 for value in (*parts, *costs.prior_steps.values(), *costs.looks.values()))


def test_other_quantizers_priors_and_micro_batches_are_measured_as_they_are(config: RunConfig, tmp_path: Path) -> None:
    other = changed(
        config,
        autoencoder__levels__top__quantizer={"kind": "residual", "num_quantizers": 2},
        priors__top__model={"kind": "pixelcnn", "width": 8, "layers": 1},
        autoencoder_training__micro_batches=3,
        data__labelled=False,
        priors__bottom__training__micro_batches=2,
    )
    assert _measured(other, tmp_path).prior_steps.keys() == {"top", "bottom"}


def test_levels_without_codes_are_refused(config: RunConfig, tmp_path: Path) -> None:
    gaussian = changed(config, autoencoder__levels__top__quantizer={"kind": "gaussian"}, priors={})
    with pytest.raises(ConfigurationError, match=r"gaussian|Gaussian"):
        _measured(gaussian, tmp_path)


def test_nothing_is_left_of_it(config: RunConfig, tmp_path: Path) -> None:
    _measured(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert torch.is_grad_enabled()
