"""Latents pass unquantized at first; then codebooks are set, in a resumed run as in one that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvq.autoencoders import Autoencoder
from hvq.config import AutoencoderTrainingConfig, RunConfig
from hvq.storage import RunFolder
from hvq.training import fit_autoencoder
from hvq.training.continuous_start import ContinuousStart
from tests.autoencoders.small import codebook, pictures, small_model
from tests.processes import run_in_processes
from tests.runs import TrainedRun, changed, differing, tensors_below
from tests.training.interruption import keep_last_checkpoint, killed_at


def _bytes(number: int) -> torch.Tensor:
    return ((pictures(number, 8, 12) + 1) * 127.5).to(torch.uint8)


def _continuous(model: Autoencoder) -> list[bool]:
    return [quantizer.continuous for quantizer in model.quantizers.values()]


@pytest.mark.parametrize(("steps", "given", "expected"), [(10, None, 2), (50_000, None, 2_000), (10, 0, 0), (10, 7, 7)])
def test_a_share_of_the_steps_unless_they_are_given(steps: int, given: int | None, expected: int) -> None:
    assert AutoencoderTrainingConfig(steps=steps, continuous_steps=given).continuous_start == expected


def test_codes_have_to_be_trained() -> None:
    with pytest.raises(ValueError, match="continuous_steps must be fewer than all 7 steps"):
        AutoencoderTrainingConfig(steps=7, continuous_steps=7)


def test_codebooks_are_set_at_their_step_and_not_again() -> None:
    model, batches = small_model((2, 2)), [_bytes(5) for _ in range(3)]
    start = ContinuousStart(model, AutoencoderTrainingConfig(steps=7, continuous_steps=3), batches)
    for step in range(3):
        start.begin_step(step)
        assert _continuous(model) == [True, True]
    start.begin_step(3)
    assert _continuous(model) == [False, False]
    vectors = codebook(model.quantizers["top"]).clone()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    start.begin_step(4)
    assert torch.equal(codebook(model.quantizers["top"]), vectors)


def test_where_all_are_set_no_image_is_asked_for() -> None:
    model = small_model((2,))
    ContinuousStart(model, AutoencoderTrainingConfig(steps=7, continuous_steps=0), [_bytes(5)]).begin_step(0)

    def none_asked() -> Any:
        pytest.fail("asked for images")
        yield

    start = ContinuousStart(model, AutoencoderTrainingConfig(steps=7, continuous_steps=5), none_asked())
    assert _continuous(model) == [False]
    start.begin_step(5)


# --- of a run ---------------------------------------------------------------------------------------------------------

LATE = {
    "autoencoder_training__steps": 7,
    "autoencoder_training__continuous_steps": 4,
    "autoencoder_training__checkpoint_every": 2,
    "autoencoder_training__log_every": 1,
    "autoencoder_training__evaluate_every": 2,
}


@pytest.mark.parametrize("killed", [3, 5])
def test_resume_before_and_after_is_equality(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    config = changed(trained_run.config, **LATE)
    straight, stopped = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "stopped")
    keep_last_checkpoint(monkeypatch)
    fit_autoencoder(config, straight)
    with killed_at(killed):
        fit_autoencoder(config, stopped)
    fit_autoencoder(config, stopped, resume=True)
    assert differing(*(tensors_below(run.path / "autoencoder") for run in (straight, stopped))) == []


def test_the_log_tells_the_two_parts_apart(trained_run: TrainedRun, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    fit_autoencoder(changed(trained_run.config, **LATE), run)
    rows = run.lines()
    assert [row["step"] for row in rows if "unquantized_held_out_mse" in row] == [2, 4]
    assert [row["step"] for row in rows if "held_out_mse" in row] == [6, 7]
    assert [row["step"] for row in rows if "commitment" in row] == [5, 6, 7]
    assert [row["step"] for row in rows if "perplexity.top" in row] == [5, 6, 7]


def _trained(plain: dict[str, Any], folder: str) -> dict[str, np.ndarray]:
    model = fit_autoencoder(RunConfig.model_validate(plain), RunFolder(folder))
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.processes
@pytest.mark.parametrize("learning", ["moving_average", "gradient"])
def test_two_processes_set_the_same_codebooks(trained_run: TrainedRun, tmp_path: Path, learning: str) -> None:
    config = changed(trained_run.config, **LATE, autoencoder__levels__top__quantizer__learning=learning)
    one, other = run_in_processes(_trained, 2, config.model_dump(mode="json"), str(tmp_path))
    assert [name for name in one if not np.array_equal(one[name], other[name])] == []
