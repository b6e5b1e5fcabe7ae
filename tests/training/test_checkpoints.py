"""A training checkpoint holds everything or is refused, and never goes half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hvq.config import RunConfig
from hvq.errors import CheckpointError
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.optimization import Losses, Optimization
from hvq.training.state import optimizer_tensors
from tests.runs import changed, differing, tiny_config

PARTS = ("seed", "autoencoder", "autoencoder_training")


def _optimization(config: RunConfig, steps: int) -> Optimization:
    torch.manual_seed(steps)
    optimization = Optimization(nn.Linear(5, 3), config.priors["top"].training, Accelerator(), seed=0)

    def losses(batch: Tensor) -> Losses:
        return optimization.wrapped(batch).square().mean(), {}

    for _ in range(steps):
        optimization.step([torch.randn(7, 5)], losses)
    return optimization


def _everything(optimization: Optimization) -> dict[str, Tensor]:
    average = {f"average/{name}": tensor for name, tensor in optimization.average.tensors.items()}
    return {**optimization.model.state_dict(), **average, **optimizer_tensors(optimization)}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_config(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, config: RunConfig) -> Path:
    TrainingCheckpoint(
        tmp_path / "stage", _optimization(config, 3), config.parts(*PARTS), {"best": torch.arange(7)}
    ).save()
    return tmp_path / "stage"


def test_everything_comes_back(folder: Path, config: RunConfig) -> None:
    saved, restored = _optimization(config, 3), _optimization(config, 0)
    extra: dict[str, Tensor] = {}
    assert differing(_everything(saved), _everything(restored))
    assert TrainingCheckpoint(folder, restored, config.parts(*PARTS), extra).load_if_present()
    assert differing(_everything(saved), _everything(restored)) == []
    assert restored.step_number == 3
    assert extra["best"].tolist() == list(range(7))


def test_it_is_safetensors_and_json_without_partial_files(folder: Path) -> None:
    files = {path.name for path in folder.parent.rglob("*") if path.is_file()}
    assert files == {f"{name}.safetensors" for name in ("model", "average", "optimizer", "extra")} | {"state.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["stage"]


def test_where_there_is_none_there_is_nothing_to_load(tmp_path: Path, config: RunConfig) -> None:
    optimization = _optimization(config, 0)
    assert not TrainingCheckpoint(tmp_path / "none", optimization, config.parts(*PARTS)).load_if_present()
    assert optimization.step_number == 0


def test_saving_again_replaces_it(folder: Path, config: RunConfig) -> None:
    optimization = _optimization(config, 5)
    TrainingCheckpoint(folder, optimization, config.parts(*PARTS)).save()
    restored = _optimization(config, 0)
    TrainingCheckpoint(folder, restored, config.parts(*PARTS)).load_if_present()
    assert restored.step_number == 5
    assert differing(_everything(optimization), _everything(restored)) == []


def test_an_interrupted_save_leaves_the_one_before(
    folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hvq.training.checkpoints.write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TrainingCheckpoint(folder, _optimization(config, 5), config.parts(*PARTS)).save()
    restored = _optimization(config, 0)
    assert TrainingCheckpoint(folder, restored, config.parts(*PARTS)).load_if_present()
    assert restored.step_number == 3


def test_when_the_stage_is_done_it_goes(folder: Path, config: RunConfig) -> None:
    checkpoint = TrainingCheckpoint(folder, _optimization(config, 0), config.parts(*PARTS))
    for _ in range(2):
        checkpoint.remove()
        assert list(folder.parent.iterdir()) == []


def _edit_state(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "state.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without("state.json"), "no training checkpoint at .*state.json"),
        (_without("model.safetensors"), "no training checkpoint at .*model.safetensors"),
        (_without("average.safetensors"), "no training checkpoint at .*average.safetensors"),
        (_without("optimizer.safetensors"), "no training checkpoint at .*optimizer.safetensors"),
        (_without("extra.safetensors"), "no training checkpoint at .*extra.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "training checkpoint at .* is damaged"),
        (lambda folder: shutil.copy(folder / "extra.safetensors", folder / "model.safetensors"), "lacks the tensor"),
        (_edit_state(format_version=1), "format_version 1; this version of hvq resumes 2: resume with the version"),
        (
            _edit_state(format_version=3),
            "format_version 3; this version of hvq resumes 2: .* or train without --resume",
        ),
        (_edit_state(settings={}), "is of another configuration"),
    ],
)
def test_damage_is_refused(folder: Path, config: RunConfig, damage: Callable[[Path], object], sentence: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=sentence):
        TrainingCheckpoint(folder, _optimization(config, 0), config.parts(*PARTS)).load_if_present()


@pytest.mark.parametrize("field", ["log_every", "checkpoint_every"])
def test_what_is_only_logged_may_change(folder: Path, config: RunConfig, field: str) -> None:
    other = changed(config, **{f"autoencoder_training__{field}": 17})
    assert TrainingCheckpoint(folder, _optimization(config, 0), other.parts(*PARTS)).load_if_present()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 4}, "seed is 4, and was 3"),
        ({"autoencoder__levels__top__width": 9}, r"autoencoder\.levels\.top\.width is 9, and was 8"),
        ({"autoencoder_training__evaluate_every": 7}, r"autoencoder_training\.evaluate_every is 7, and was 5"),
    ],
)
def test_what_is_computed_may_not(folder: Path, config: RunConfig, changes: dict[str, object], difference: str) -> None:
    checkpoint = TrainingCheckpoint(folder, _optimization(config, 0), changed(config, **changes).parts(*PARTS))
    with pytest.raises(CheckpointError, match=rf"another configuration \({difference}\); .*or train without --resume"):
        checkpoint.load_if_present()
