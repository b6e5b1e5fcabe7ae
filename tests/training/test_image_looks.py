"""Looks at held-out images: the error that any number of processes finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hvq.distributed import Reduction
from hvq.storage import load_autoencoder
from hvq.training import image_looks as looks
from hvq.training.image_looks import held_out_error
from tests.runs import TrainedRun
from tests.threads import run_in_threads


def test_the_held_out_error_is_that_of_the_reconstructions(trained_run: TrainedRun) -> None:
    model, _ = load_autoencoder(trained_run.run.autoencoder)
    source = trained_run.sources.validation
    images = source.fetch(np.arange(len(source))).images.double() / 255
    with torch.no_grad():
        restored = (model(images.float() * 2 - 1).reconstruction.double() / 2 + 0.5).clamp(0, 1)
    expected = float((restored - images).square().mean())
    model.train()
    assert held_out_error(model, source, 7, Reduction()) == pytest.approx(expected, rel=1e-4)
    assert model.training


@pytest.mark.parametrize("most", [9, 1_024])
def test_the_held_out_error_does_not_depend_on_processes(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(looks, "_HELD_OUT_IMAGES", most)
    model, _ = load_autoencoder(trained_run.run.autoencoder)
    source = trained_run.sources.validation

    def error(reduction: Reduction) -> float:
        return held_out_error(model, source, 4, reduction)

    (alone,) = run_in_threads(error, 1)
    for processes in (2, 3, 7):
        assert run_in_threads(error, processes) == [pytest.approx(alone, rel=1e-12)] * processes
