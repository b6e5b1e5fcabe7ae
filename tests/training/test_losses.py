"""Training by several reconstruction losses at once: what is logged, exact resume, several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvq.config import RunConfig
from hvq.errors import CheckpointError
from hvq.storage import RunFolder, load_autoencoder
from hvq.training import fit_autoencoder
from tests.processes import run_in_processes
from tests.runs import TrainedRun, changed, differing, run_recipe, tensors_below, write_config
from tests.training.interruption import keep_last_checkpoint, killed_at

TERMS: dict[str, dict[str, Any]] = {
    "pixels": {"kind": "l1"},
    "nats": {"kind": "discretized_logistic", "weight": 0.01},
    "levels": {"kind": "per_level", "weight": 0.2},
    "critic": {"kind": "adversarial", "weight": 0.1, "warmup_steps": 2, "layers": 2, "width": 4},
}
TRAINING = {
    "steps": 9,
    "checkpoint_every": 5,
    "keep_checkpoints": 9,
    "log_every": 1,
    "evaluate_every": 100,
    "average_decay": 0.8,
    "micro_batches": 2,
    "reconstruction": TERMS,
}


@pytest.fixture
def config(trained_run: TrainedRun) -> RunConfig:
    fields = {f"autoencoder_training__{name}": value for name, value in TRAINING.items()}
    return changed(trained_run.config, autoencoder__decoder__learn_scale=True, **fields)


def _rows(run: RunFolder) -> list[dict[str, Any]]:
    return [row for row in run.lines() if row["stage"] == "autoencoder" and "loss" in row]


def test_every_term_is_logged_under_its_name(config: RunConfig, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    model = fit_autoencoder(config, run)
    rows = _rows(run)
    plain = {f"reconstruction.{name}" for name in ("pixels", "nats", "levels")}
    late = {"reconstruction.critic", "adversarial_weight", "discriminator"}
    for row in rows:
        assert plain <= set(row)
        assert (late <= set(row)) == (row["step"] > 2)
        assert not late & set(row) or late <= set(row)
        terms = [
            row[f"reconstruction.{name}"] * TERMS[name].get("weight", 1.0) for name in ("pixels", "nats", "levels")
        ]
        assert row["reconstruction"] == pytest.approx(sum(terms), rel=1e-6)
    assert [row["adversarial_weight"] > 0 for row in rows[2:]] == [False] + [True] * 6
    assert model.log_scale is not None
    assert float(model.log_scale) != pytest.approx(np.log(0.1), abs=1e-4)
    loaded, _ = load_autoencoder(run.autoencoder)
    assert differing(loaded.state_dict(), model.state_dict()) == []
    assert not [name for name in loaded.state_dict() if "discriminator" in name]


@pytest.mark.parametrize("killed", [6, 8])
def test_resume_is_equality(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int) -> None:
    straight, stopped = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "stopped")
    keep_last_checkpoint(monkeypatch)
    fit_autoencoder(config, straight)
    with killed_at(killed):
        fit_autoencoder(config, stopped)
    fit_autoencoder(config, stopped, resume=True)
    one, other = (tensors_below(run.path) for run in (straight, stopped))
    kept = ("adversary/model/0.weight", "adversary/optimizer/exp_avg_sq/0.weight", "adversary/adaptive_weight")
    for part in kept:
        assert any(f"kept.safetensors/{part}" in name for name in one), part
    assert differing(one, other) == []


def test_a_checkpoint_within_the_warm_up_goes_on_to_its_end(config: RunConfig, tmp_path: Path) -> None:
    config = changed(config, autoencoder_training__checkpoint_every=1)
    straight = fit_autoencoder(config, RunFolder(tmp_path / "straight"))
    with killed_at(1):
        fit_autoencoder(config, RunFolder(tmp_path / "stopped"))
    resumed = fit_autoencoder(config, RunFolder(tmp_path / "stopped"), resume=True)
    assert differing(straight.state_dict(), resumed.state_dict()) == []
    assert _rows(RunFolder(tmp_path / "stopped"))[2]["step"] == 3


def test_other_terms_are_another_training(config: RunConfig, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with killed_at(6):
        fit_autoencoder(config, run)
    plain = config.model_dump(mode="json")
    plain["autoencoder_training"]["reconstruction"]["critic"]["warmup_steps"] = 3
    with pytest.raises(CheckpointError, match=r"reconstruction\.critic\.warmup_steps is 3, and was 2"):
        fit_autoencoder(RunConfig.model_validate(plain), run, resume=True)


def test_a_recipe_trains_by_the_terms_that_overrides_name_and_resumes(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config(tmp_path / "config.json", changed(trained_run.config, autoencoder_training__steps=5))
    prefix = "autoencoder_training.reconstruction"
    words = [
        f"{prefix}.pixels.kind=l1",
        f"{prefix}.levels={{kind: per_level, weight: 0.3}}",
        f"{prefix}.critic={{kind: adversarial, warmup_steps: 1, layers: 1, width: 4}}",
        "autoencoder_training.checkpoint_every=3",
    ]
    run = RunFolder(tmp_path / "run")
    command = ("train_autoencoder", "--config", file, "--run-dir", run.path)
    with killed_at(4):
        run_recipe(*command, *words)
    assert run_recipe(*command, "--resume", *words).code == 0
    assert [term.kind for term in run.load_config().autoencoder_training.reconstruction.values()] == [
        "l1",
        "per_level",
        "adversarial",
    ]
    straight = RunFolder(tmp_path / "straight")
    assert run_recipe(*command[:-1], straight.path, *words).code == 0
    assert differing(tensors_below(run.autoencoder), tensors_below(straight.autoencoder)) == []


# --- several processes --------------------------------------------------------------------------------------------


def _fit(plain: dict[str, Any], folder: str) -> list[dict[str, torch.Tensor]]:
    """What a process has after training straight, and after training that was killed and resumed."""
    config = RunConfig.model_validate(plain)
    states = [fit_autoencoder(config, RunFolder(f"{folder}/straight")).state_dict()]
    with killed_at(6):
        fit_autoencoder(config, RunFolder(f"{folder}/stopped"))
    return [*states, fit_autoencoder(config, RunFolder(f"{folder}/stopped"), resume=True).state_dict()]


@pytest.mark.processes
def test_two_processes_agree_and_resume(config: RunConfig, tmp_path: Path) -> None:
    ranks = run_in_processes(_fit, 2, config.model_dump(mode="json"), str(tmp_path))
    expected = ranks[0][0]
    for straight, resumed in ranks:
        assert differing(straight, expected) == []
        assert differing(resumed, expected) == []
