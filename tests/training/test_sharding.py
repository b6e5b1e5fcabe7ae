"""Priors under FSDP: the steps that one process takes, exact resuming, the same files, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hvq.config import RunConfig
from hvq.errors import ConfigurationError
from hvq.priors import Prior, TransformerPrior
from hvq.priors.condition import Condition
from hvq.priors.sampling import sample_level
from hvq.storage import RunFolder, load_prior
from hvq.training import fit_autoencoder, fit_prior
from hvq.training.averages import WeightAverage
from hvq.training.log import MEASURED
from hvq.training.processes import make_accelerator
from hvq.training.sharding import plan_shards
from tests.processes import run_in_processes
from tests.runs import TrainedRun, changed, differing, files_below, tensors_below
from tests.training.interruption import killed_at
from tests.training.prior_kinds import PRIORS
from tests.versions import needs_newer_torch

SHARDING = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# A checkpoint and a look after most steps, and averaged weights, which are looked at in the place of the model's own.
TRAINING = {
    "batch_size": 12,
    "micro_batches": 2,
    "warmup_steps": 2,
    "log_every": 1,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "average_decay": 0.7,
}


def _config(run: TrainedRun, kind: str, *, steps: int, dropout: float = 0.0, recompute: bool = False) -> RunConfig:
    model = {**PRIORS[kind], "dropout": dropout, "recompute": recompute}
    # Five chunks of held-out codes: one process has a turn more than the other.
    return changed(run.config, chunk_size=5, priors__bottom={"model": model, "training": {**TRAINING, "steps": steps}})


def _fit(plain: dict[str, Any], folder: str | Path, *, until: int | None = None, resume: bool = False) -> Prior | None:
    """The prior of the finest level; None where it is killed before it is done."""
    config, run = RunConfig.model_validate(plain), RunFolder(Path(folder))
    if until is None:
        return fit_prior(config, run, "bottom", resume=resume)
    with killed_at(until):
        fit_prior(config, run, "bottom", resume=resume)
    return None


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _result(folder: Path) -> dict[str, Tensor]:
    return tensors_below(RunFolder(folder).prior("bottom"))


def _checkpoint(folder: Path) -> dict[str, Tensor]:
    return tensors_below(RunFolder(folder).checkpoint("prior.bottom"))


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [row for row in RunFolder(folder).lines() if row["stage"] == "prior.bottom"]
    hidden = ("stage", *MEASURED)
    return [{name: value for name, value in row.items() if name not in hidden} for row in rows]


def _assert_close(one: dict[str, Tensor], other: dict[str, Tensor], part: str = "") -> None:
    """In shares of the largest number that is compared."""
    assert one.keys() == other.keys()
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in other.items()}
    compared = [name for name in one if part in name]
    scale = max(float(one[name].abs().max()) for name in compared)
    assert scale > 0
    assert max(float((one[name] - other[name]).abs().max()) for name in compared) < 1e-5 * scale


# --- the same numbers, whatever lies where ------------------------------------------------------------------------


def _train_in_shards(plain: dict[str, Any], folder: str) -> dict[str, Any]:
    """Killed after two steps, then gone on with; what lies in shards, and codes that are drawn from it."""
    os.environ.update(SHARDING)
    _fit(plain, f"{folder}/two", until=2)
    if os.environ["RANK"] == "0":
        shutil.copytree(f"{folder}/two", f"{folder}/killed")
    prior = _fit(plain, f"{folder}/two", resume=True)
    assert prior is not None
    return {
        "sharded": [name for name, parameter in prior.named_parameters() if isinstance(parameter, DTensor)],
        "units": all(isinstance(module, FSDPModule) for module in (prior, *prior.units)),
        "codes": _drawn(prior),
        "swapped": _swapped(prior),
    }


@torch.no_grad()
def _swapped(prior: Prior) -> list[Tensor]:
    """Logits before, while and after other weights take the place of the prior's own."""
    average = WeightAverage(prior, decay=0.5)
    for tensor in average.tensors.values():
        tensor.mul_(1.5)
    condition = Condition(codes={"top": torch.zeros(1, 2, 2, dtype=torch.int64)}, labels=torch.tensor([1]))
    codes = torch.arange(16).view(1, 4, 4) % 13
    logits = [prior(codes, condition).clone()]
    with average.applied():
        logits.append(prior(codes, condition).clone())
    return [*logits, prior(codes, condition).clone()]


def _drawn(prior: Prior) -> Tensor:
    condition = Condition(codes={"top": torch.arange(12).view(3, 2, 2) % 11}, labels=torch.tensor([0, 2, -1]))
    return sample_level(prior, condition, (4, 4), level="bottom", samples=range(3))


@needs_newer_torch
@pytest.mark.processes
@pytest.mark.parametrize("kind", PRIORS)
def test_two_processes_train_as_one_does(trained_run: TrainedRun, tmp_path: Path, kind: str) -> None:
    plain = _plain(_config(trained_run, kind, steps=5, recompute=kind != "pixelcnn"))
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        trained_run.copied(folder)
    ranks = run_in_processes(_train_in_shards, 2, plain, str(tmp_path))
    _fit(plain, one, until=2)
    names = set(files_below(RunFolder(one).checkpoint("prior.bottom")))
    assert set(files_below(RunFolder(tmp_path / "killed").checkpoint("prior.bottom"))) == names
    for part in (
        "model.safetensors",
        "average",
        "exp_avg/",
        "kept.safetensors/record/weights",
        "kept.safetensors/record/score",
    ):
        _assert_close(_checkpoint(one), _checkpoint(tmp_path / "killed"), part)
    _fit(plain, one, resume=True)
    _assert_close(_result(one), _result(two))
    for row, other in zip(_rows(one), _rows(two), strict=True):
        assert other == pytest.approx(row, rel=1e-5)
    loaded, _ = load_prior(RunFolder(two).prior("bottom"))
    for seen in ranks:
        assert seen["sharded"] == [name for name, _ in loaded.named_parameters()]
        assert seen["units"]
        assert torch.equal(seen["codes"], _drawn(loaded))
        for logits, expected in zip(seen["swapped"], _swapped(loaded), strict=True):
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
        before, meanwhile, after = seen["swapped"]
        assert torch.equal(before, after)
        assert float((before - meanwhile).abs().max()) > 1e-3


@needs_newer_torch
@pytest.mark.processes
@pytest.mark.parametrize("kind", ["transformer", "pixelsnail"])
def test_resume_is_equality(trained_run: TrainedRun, tmp_path: Path, kind: str) -> None:
    plain = _plain(_config(trained_run, kind, steps=5, dropout=0.2, recompute=True))
    for name in ("straight", "stopped"):
        trained_run.copied(tmp_path / name)
    run_in_processes(_straight_and_stopped, 2, plain, str(tmp_path))
    assert differing(_result(tmp_path / "straight"), _result(tmp_path / "stopped")) == []
    assert _rows(tmp_path / "straight") == _rows(tmp_path / "stopped")


def _straight_and_stopped(plain: dict[str, Any], folder: str) -> None:
    os.environ.update(SHARDING)
    _fit(plain, f"{folder}/straight")
    _fit(plain, f"{folder}/stopped", until=3)
    _fit(plain, f"{folder}/stopped", resume=True)


@needs_newer_torch
@pytest.mark.processes
def test_a_run_changes_between_shards_and_one_process(trained_run: TrainedRun, tmp_path: Path) -> None:
    plain = _plain(_config(trained_run, "pixelsnail", steps=5))
    for name in ("one", "to shards", "from shards"):
        trained_run.copied(tmp_path / name)
    _fit(plain, tmp_path / "one")
    _fit(plain, tmp_path / "to shards", until=3)
    run_in_processes(_change_over, 2, plain, str(tmp_path))
    _fit(plain, tmp_path / "from shards", resume=True)
    for name in ("to shards", "from shards"):
        _assert_close(_result(tmp_path / "one"), _result(tmp_path / name))


def _change_over(plain: dict[str, Any], folder: str) -> None:
    os.environ.update(SHARDING)
    _fit(plain, f"{folder}/to shards", resume=True)
    _fit(plain, f"{folder}/from shards", until=3)


# --- what is refused ----------------------------------------------------------------------------------------------


def _autoencoder_in_shards(plain: dict[str, Any], folder: str) -> str:
    os.environ.update(SHARDING)
    with pytest.raises(ConfigurationError) as refused:
        fit_autoencoder(RunConfig.model_validate(plain), RunFolder(Path(folder)))
    return str(refused.value)


@pytest.mark.processes
def test_an_autoencoder_is_not_sharded(trained_run: TrainedRun, tmp_path: Path) -> None:
    for sentence in run_in_processes(_autoencoder_in_shards, 2, _plain(trained_run.config), str(tmp_path / "run")):
        assert "train it with DDP" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "way_out"),
    [
        ({"fsdp_version": 1}, "must be of version 2; received 1: set fsdp_version: 2"),
        ({"activation_checkpointing": True}, r"set priors\.<level>\.model\.recompute to true"),
        ({"cpu_offload": True}, "fsdp_offload_params, which is not supported; set it to false"),
    ],
)
def test_settings_that_are_not_supported_are_refused(fields: dict[str, Any], way_out: str) -> None:
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **fields})
    accelerator = type("Sharding", (), {"state": type("State", (), {"fsdp_plugin": plugin})})
    with pytest.raises(ConfigurationError, match=way_out):
        plan_shards(TransformerPrior(codebook_size=7, width=8, layers=1, heads=2), accelerator)  # type: ignore[arg-type]


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_engines_are_refused(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(
        ConfigurationError, match=f"is not supported, and ACCELERATE_USE_{engine} asks for it; take DDP"
    ):
        make_accelerator(trained_run.config, RunFolder(tmp_path))
