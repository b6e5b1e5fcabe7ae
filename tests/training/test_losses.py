"""Training by several reconstruction losses at once: what is logged, exact resume, several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvq.config import RunConfig
from hvq.errors import CheckpointError, ConfigurationError
from hvq.evaluation import load_feature_distance
from hvq.evaluation.own_classifier import own_classifier
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
        expected = row["reconstruction.pixels"] + 0.01 * row["reconstruction.nats"] + 0.2 * row["reconstruction.levels"]
        assert row["reconstruction"] == pytest.approx(expected, rel=1e-6)
    assert [row["adversarial_weight"] > 0 for row in rows[2:]] == [False] + [True] * 6
    assert model.log_scale is not None
    assert model.log_scale.item() != pytest.approx(np.log(0.1), abs=1e-4)
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


# --- features of a network ----------------------------------------------------------------------------------------


def _extractor(folder: Path, run: TrainedRun, seed: int) -> Path:
    """A classifier as an evaluation leaves one, of hardly any training."""
    source = run.sources.train
    images = torch.stack([source.image(i) for i in range(11)])
    labels = torch.arange(11) % 3
    own_classifier(folder, images, labels, num_classes=3, steps=10, seed=seed, device=torch.device("cpu"))
    return folder


def _perceptual(run: TrainedRun, extractor: Path | str) -> RunConfig:
    terms = {"pixels": {"kind": "mse"}, "features": {"kind": "perceptual", "weight": 0.3, "extractor": str(extractor)}}
    fields = {**TRAINING, "reconstruction": terms}
    return changed(run.config, **{f"autoencoder_training__{name}": value for name, value in fields.items()})


def test_features_of_a_classifier_teach_and_are_no_part_of_the_checkpoint(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    config = _perceptual(trained_run, _extractor(tmp_path / "extractor", trained_run, 0))
    straight, stopped = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "stopped")
    expected = fit_autoencoder(config, straight, load_distance=load_feature_distance).state_dict()
    assert all(row["reconstruction.features"] > 0 for row in _rows(straight))
    with killed_at(6):
        fit_autoencoder(config, stopped, load_distance=load_feature_distance)
    names = {name.split("/")[-1] for name in tensors_below(stopped.checkpoint("autoencoder"))}
    assert not [name for name in names if "distance" in name or "network" in name]
    # Where it lies is free, what it is is not.
    moved = (tmp_path / "extractor").rename(tmp_path / "elsewhere")
    other = _extractor(tmp_path / "other", trained_run, 1)
    with pytest.raises(CheckpointError, match=r"network_of_features is classifier \w{8} trained .*, and was class"):
        fit_autoencoder(_perceptual(trained_run, other), stopped, resume=True, load_distance=load_feature_distance)
    resumed = fit_autoencoder(
        _perceptual(trained_run, moved), stopped, resume=True, load_distance=load_feature_distance
    )
    assert differing(resumed.state_dict(), expected) == []


def test_a_network_that_cannot_be_had_is_refused_before_anything_begins(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    file = write_config(tmp_path / "config.json", _perceptual(trained_run, "lpips"))
    outcome = run_recipe("train_autoencoder", "--config", file, "--run-dir", run.path)
    assert outcome.code != 0
    assert "autoencoder_training.reconstruction.features: lpips takes images of 1 or 3 channels and at" in outcome.err
    with pytest.raises(ConfigurationError, match=r"reconstruction\.features: no classifier at .*nowhere"):
        fit_autoencoder(_perceptual(trained_run, tmp_path / "nowhere"), run, load_distance=load_feature_distance)
    with pytest.raises(ConfigurationError, match="nothing finds its network; give fit_autoencoder load_distance"):
        fit_autoencoder(_perceptual(trained_run, tmp_path / "nowhere"), run)
    assert not run.path.exists()


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
