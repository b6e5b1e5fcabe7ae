"""Stage 1: it learns, leaves what it says, and resumes as if it had never stopped."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from hvq.autoencoders import Autoencoder
from hvq.config import RunConfig
from hvq.data import Batch
from hvq.errors import CheckpointError, ConfigurationError
from hvq.randomness import permutation
from hvq.storage import RunFolder, load_autoencoder
from hvq.training import autoencoder as stage
from hvq.training import continuous_start, fit_autoencoder
from hvq.training.checkpoint_files import CheckpointFolders
from hvq.training.log import MEASURED
from tests.processes import run_in_processes
from tests.runs import CLASSES, TrainedRun, changed, differing, files_below, tensors_below
from tests.training.interruption import keep_last_checkpoint, killed_at


def _rows(run: RunFolder, name: str = "autoencoder") -> list[dict[str, Any]]:
    return [row for row in run.lines() if row["stage"] == name]


def _without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


# --- what it does -------------------------------------------------------------------------------------------------


def test_it_learns(trained_run: TrainedRun) -> None:
    rows = _rows(trained_run.run)
    losses = [row["reconstruction"] for row in rows if "reconstruction" in row]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    held_out = [row["held_out_mse"] for row in rows if "held_out_mse" in row]
    assert held_out[-1] < 0.8 * held_out[0]


def test_it_writes_a_row_for_every_step_that_is_logged(trained_run: TrainedRun) -> None:
    rows = [row for row in _rows(trained_run.run) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 41))
    of_levels = ("usage", "perplexity", "codebook_norm", "revived")
    per_level = {f"{name}.{level}" for name in of_levels for level in ("top", "bottom")}
    expected = {"reconstruction", "commitment", "loss", "gradient_norm", "learning_rate", "stage", "step", *MEASURED}
    assert all(set(row) == expected | per_level for row in rows)
    assert all(0 < row["usage.top"] <= 1 <= row["perplexity.top"] <= 11 for row in rows)
    looks = [row["step"] for row in _rows(trained_run.run) if "held_out_mse" in row]
    assert looks == [5, 10, 15, 20, 25, 30, 35, 40]


def test_it_leaves_the_model_the_configuration_and_no_checkpoint(trained_run: TrainedRun) -> None:
    run = trained_run.run
    model, description = load_autoencoder(run.autoencoder)
    assert description.autoencoder == trained_run.config.autoencoder
    assert (description.image_size, description.classes) == ((16, 16), CLASSES)
    assert run.load_config() == trained_run.config
    assert not list(run.path.rglob("state.json"))
    assert not [path for path in run.path.rglob("*") if "partial" in path.name]
    assert all(quantizer.initialized for quantizer in model.quantizers.values())


def test_what_it_returns_is_what_it_saves(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = changed(trained_run.config, autoencoder_training__steps=3, autoencoder_training__average_decay=0.5)
    run = RunFolder(tmp_path)
    returned = fit_autoencoder(config, run, sources=trained_run.sources)
    assert not returned.training
    loaded, _ = load_autoencoder(run.autoencoder)
    assert differing(returned.state_dict(), loaded.state_dict()) == []


def test_another_seed_is_another_model(trained_run: TrainedRun, tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = changed(trained_run.config, autoencoder_training__steps=2, seed=seed)
        states.append(fit_autoencoder(config, RunFolder(tmp_path / name), sources=trained_run.sources).state_dict())
    assert differing(states[0], states[1]) == []
    assert "decoder.0.weight" in differing(states[0], states[2])


# --- level drop-out -----------------------------------------------------------------------------------------------


def _batch(indices: np.ndarray, epoch: int) -> Batch:
    chosen = torch.from_numpy(indices)
    return Batch(torch.zeros(len(chosen), 1, 1, 1), chosen, chosen, torch.full_like(chosen, epoch))


def _kept(config: RunConfig, indices: np.ndarray, epoch: int) -> list[int]:
    kept = stage.kept_levels(config, _batch(indices, epoch))
    assert kept is not None
    return kept.tolist()


def test_level_dropout_is_a_function_of_seed_epoch_and_index(trained_run: TrainedRun) -> None:
    levels = {name: {"ratio": 2} for name in ("a", "b", "c")}
    config = changed(trained_run.config, autoencoder__levels=levels, autoencoder__level_dropout=0.4, priors={})
    indices = np.arange(10_007)
    kept = _kept(config, indices, 5)
    order = permutation(len(indices), "any")
    assert _kept(config, indices[order], 5) == [kept[i] for i in order]
    assert _kept(config, indices[17:23], 5) == kept[17:23]
    assert _kept(config, indices, 6) != kept
    assert _kept(changed(config, seed=4), indices, 5) != kept
    shares = np.bincount(kept, minlength=4) / len(kept)
    assert shares == pytest.approx([0, 0.2, 0.2, 0.6], abs=0.02)


@pytest.mark.parametrize("changes", [{"autoencoder__level_dropout": 0.0}, {"autoencoder__levels": {"a": {"ratio": 2}}}])
def test_without_level_dropout_all_levels_are_kept(trained_run: TrainedRun, changes: dict[str, Any]) -> None:
    config = changed(trained_run.config, priors={}, **changes)
    assert stage.kept_levels(config, _batch(np.arange(7), 0)) is None


# --- held-out error -----------------------------------------------------------------------------------------------


# --- resume -------------------------------------------------------------------------------------------------------

RESUMED = {
    "autoencoder_training__steps": 9,
    "autoencoder_training__checkpoint_every": 5,
    "autoencoder_training__keep_checkpoints": 9,
    "autoencoder_training__log_every": 2,
    "autoencoder_training__evaluate_every": 3,
    "autoencoder_training__average_decay": 0.8,
    "autoencoder_training__micro_batches": 2,
}


@pytest.mark.parametrize("learning", ["moving_average", "gradient"])
def test_resume_is_equality(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learning: str
) -> None:
    config = changed(
        trained_run.config,
        **RESUMED,
        autoencoder__levels__top__quantizer__learning=learning,
        # High enough that codes are revived all the time.
        autoencoder__levels__bottom__quantizer__revival_threshold=0.5,
    )
    straight, stopped = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "stopped")
    keep_last_checkpoint(monkeypatch)
    fit_autoencoder(config, straight)
    with killed_at(7):
        fit_autoencoder(config, stopped)
    # After the fifth step, between two lines of the log, and after the last look, which was the best.
    assert CheckpointFolders(stopped.checkpoint("autoencoder")).steps() == [3, 5, 6]
    assert _rows(stopped)[-1]["step"] == 6
    # Codebooks have been initialized, and must not be again.
    monkeypatch.setattr(continuous_start, "initialize_codebooks", lambda *_: pytest.fail("initialized a second time"))
    fit_autoencoder(config, stopped, resume_at=5)
    one, other = (tensors_below(run.path) for run in (straight, stopped))
    for part in (
        "autoencoder/model",
        "model.safetensors/levels.top.quantizer.head_codebooks.0.vectors",
        "optimizer",
        "average",
        "kept.safetensors/window/bottom",
        "kept.safetensors/health/revived/top",
    ):
        assert any(part in name for name in one), part
    assert differing(one, other) == []
    assert _without_times(_rows(straight)) == _without_times(_rows(stopped))


def test_resume_without_a_checkpoint_begins_at_the_beginning(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = changed(trained_run.config, autoencoder_training__steps=2)
    models = [
        fit_autoencoder(config, RunFolder(tmp_path / str(resume)), sources=trained_run.sources, resume=resume)
        for resume in (False, True)
    ]
    assert differing(models[0].state_dict(), models[1].state_dict()) == []


def test_what_is_refused_leaves_the_run_as_it_was(trained_run: TrainedRun, tmp_path: Path) -> None:
    config, run = changed(trained_run.config, **RESUMED), RunFolder(tmp_path)
    with killed_at(5):
        fit_autoencoder(config, run)
    before = files_below(run.path)
    other = changed(config, autoencoder_training__learning_rate=0.5)
    with pytest.raises(
        CheckpointError, match=r"of another configuration \(autoencoder_training.learning_rate is 0.5, and was 0.01\)"
    ):
        fit_autoencoder(other, run, resume=True)
    uneven = changed(config, autoencoder_training__micro_batches=5)
    with pytest.raises(ConfigurationError, match="batch_size must be a multiple of processes times micro_batches"):
        fit_autoencoder(uneven, run)
    assert files_below(run.path) == before
    # What is only logged may change.
    fit_autoencoder(changed(config, autoencoder_training__log_every=1), run, resume=True)
    assert [row["step"] for row in _rows(run) if "loss" in row] == [2, 4, 6, 7, 8, 9]


# --- several processes --------------------------------------------------------------------------------------------


def _state(model: Autoencoder) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _fit_in_group(plain: dict[str, Any], folder: str) -> list[dict[str, np.ndarray]]:
    """What a process has after training straight, and after training that was killed and resumed."""
    config = RunConfig.model_validate(plain)
    states = [_state(fit_autoencoder(config, RunFolder(f"{folder}/straight")))]
    with killed_at(3):
        fit_autoencoder(config, RunFolder(f"{folder}/stopped"))
    return [*states, _state(fit_autoencoder(config, RunFolder(f"{folder}/stopped"), resume=True))]


@pytest.mark.processes
def test_two_processes_agree_and_resume(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = changed(
        trained_run.config,
        autoencoder_training__steps=4,
        autoencoder_training__checkpoint_every=2,
        autoencoder__levels__bottom__quantizer__revival_threshold=0.5,
    )
    ranks = run_in_processes(_fit_in_group, 2, config.model_dump(mode="json"), str(tmp_path))
    expected = ranks[0][0]
    for straight, resumed in ranks:
        for state in (straight, resumed):
            assert [name for name in expected if not np.array_equal(state[name], expected[name])] == []
    saved, _ = load_autoencoder(tmp_path / "straight" / "autoencoder")
    assert all(np.array_equal(array, expected[name]) for name, array in _state(saved).items())


def _models_in_ddp(plain: dict[str, Any], folder: str) -> int:
    fit_autoencoder(RunConfig.model_validate(plain), RunFolder(folder))
    gc.collect()
    return sum(isinstance(found, DistributedDataParallel) for found in gc.get_objects())


@pytest.mark.processes
def test_no_model_in_ddp_outlives_its_training(trained_run: TrainedRun, tmp_path: Path) -> None:
    # One that did might be the last to hold the group when the processes part, and would never let go of it.
    config = changed(trained_run.config, autoencoder_training__steps=2)
    assert run_in_processes(_models_in_ddp, 2, config.model_dump(mode="json"), str(tmp_path)) == [0, 0]


def _first_step(plain: dict[str, Any], folder: str) -> dict[str, np.ndarray]:
    return _state(fit_autoencoder(RunConfig.model_validate(plain), RunFolder(folder)))


@pytest.mark.processes
def test_two_processes_take_the_step_that_one_takes(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = changed(
        trained_run.config,
        autoencoder_training__steps=1,
        autoencoder__levels__top__quantizer__revival_threshold=0.0,
        autoencoder__levels__bottom__quantizer__revival_threshold=0.0,
    )
    plain = config.model_dump(mode="json")
    one = _first_step(plain, str(tmp_path / "one"))
    two, _ = run_in_processes(_first_step, 2, plain, str(tmp_path / "two"))
    assert max(float(np.abs(one[name].astype(float) - two[name]).max()) for name in one) < 1e-5
