"""Stage 2: it learns, keeps its best weights, resumes exactly, and refuses codes that are not its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hvq.data import CodeFolder
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, ConfigurationError, DataError
from hvq.storage import RunFolder, load_prior
from hvq.training import fit_prior
from hvq.training.prior import held_out_nats
from tests.runs import CLASSES, LEVELS, TrainedRun, changed, differing, files_below, tensors_below
from tests.threads import run_in_threads
from tests.training.interruption import keep_last_checkpoint, killed_at


def _rows(run: RunFolder, level: str) -> list[dict[str, Any]]:
    return [row for row in run.lines() if row["stage"] == f"prior.{level}"]


@pytest.mark.parametrize("level", LEVELS)
def test_it_learns(trained_run: TrainedRun, level: str) -> None:
    rows = _rows(trained_run.run, level)
    nats = [row["nats"] for row in rows if "nats" in row]
    assert len(nats) == 12
    assert nats[-1] < nats[0]
    looks = [row for row in rows if "held_out_nats" in row]
    assert [row["step"] for row in looks] == [5, 10, 12]
    unigram = CodeFolder(trained_run.run.codes, "validation").entropy(level)
    assert {row["unigram_entropy"] for row in looks} == {unigram}


@pytest.mark.parametrize("level", LEVELS)
def test_the_description_tells_of_the_very_weights_that_are_saved(trained_run: TrainedRun, level: str) -> None:
    run = trained_run.run
    prior, description = load_prior(run.prior(level))
    codes = CodeFolder(run.codes, "validation")
    assert held_out_nats(prior, codes, level, 7, Reduction()) == description.held_out_nats
    assert description.held_out_nats == min(row["held_out_nats"] for row in _rows(run, level) if "held_out_nats" in row)
    assert (description.level, description.classes, description.encoder_hash) == (level, CLASSES, codes.encoder_hash)
    assert description.coarser == ({} if level == "top" else {"top": 11})
    assert (description.grid, description.image_size) == (codes.grids[level], (16, 16))


def test_weights_that_were_better_are_kept(copied_run: TrainedRun) -> None:
    """With a learning rate that ruins it, the last weights are not the best."""
    config = changed(
        copied_run.config,
        priors__top__training__learning_rate=3.0,
        priors__top__training__average_decay=0.0,
        priors__top__training__evaluate_every=1,
        priors__top__training__warmup_steps=6,
    )
    returned = fit_prior(config, copied_run.run, "top")
    nats = [row["held_out_nats"] for row in _rows(copied_run.run, "top") if "held_out_nats" in row]
    assert min(nats) < nats[-1]
    prior, description = load_prior(copied_run.run.prior("top"))
    assert description.held_out_nats == min(nats)
    assert differing(prior.state_dict(), returned.state_dict()) == []
    codes = CodeFolder(copied_run.run.codes, "validation")
    assert held_out_nats(prior, codes, "top", 7, Reduction()) == min(nats)


def test_held_out_nats_do_not_depend_on_processes(trained_run: TrainedRun) -> None:
    prior, description = load_prior(trained_run.run.prior("bottom"))
    codes = CodeFolder(trained_run.run.codes, "validation")
    for processes in (2, 3, 5):
        nats = run_in_threads(lambda reduction: held_out_nats(prior, codes, "bottom", 7, reduction), processes)
        assert nats == [pytest.approx(description.held_out_nats, rel=1e-12)] * processes


def test_resume_is_equality(trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"steps": 9, "checkpoint_every": 4, "log_every": 2, "evaluate_every": 3, "micro_batches": 2}
    config = changed(
        trained_run.config, **{f"priors__bottom__training__{name}": value for name, value in training.items()}
    )
    straight, stopped = (trained_run.copied(tmp_path / name).run for name in ("straight", "stopped"))
    keep_last_checkpoint(monkeypatch)
    fit_prior(config, straight, "bottom")
    with killed_at(7):
        fit_prior(config, stopped, "bottom")
    assert json.loads((stopped.checkpoint("prior.bottom") / "state.json").read_text())["step"] == 4
    fit_prior(config, stopped, "bottom", resume=True)
    one, other = (tensors_below(run.path) for run in (straight, stopped))
    for part in ("priors/bottom/model", "optimizer.safetensors/exp_avg/", "average", "extra.safetensors/score"):
        assert any(part in name for name in one), part
    assert differing(one, other) == []
    lines = [
        [{name: value for name, value in row.items() if name not in ("time", "images_per_second")} for row in rows]
        for rows in (_rows(straight, "bottom"), _rows(stopped, "bottom"))
    ]
    assert lines[0] == lines[1]


# --- refusals -----------------------------------------------------------------------------------------------------


def _collapse(run: RunFolder) -> None:
    for file in (run.codes / "train").glob("*.safetensors"):
        columns = load_file(file)
        columns["codes.top"].zero_()
        save_file(columns, file)


def _retrain(run: RunFolder) -> None:
    file = run.autoencoder / "model.safetensors"
    tensors = load_file(file)
    tensors["levels.top.projection.bias"] += 1
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "level", "error", "sentence"),
    [
        (lambda run: None, "botom", ConfigurationError, r"no level 'botom'; the levels of .* are top, bottom"),
        (lambda run: shutil.rmtree(run.codes), "top", CheckpointError, "no complete codes in .*; extract the codes"),
        (_retrain, "top", CheckpointError, "were made by another autoencoder: .* extract the codes again"),
        (_collapse, "top", DataError, r"codes of level top are all but constant \(entropy 0.0000 nats\)"),
    ],
)
def test_what_it_refuses_is_left_as_it_was(
    copied_run: TrainedRun, damage: Any, level: str, error: type[Exception], sentence: str
) -> None:
    damage(copied_run.run)
    before = files_below(copied_run.run.path)
    with pytest.raises(error, match=sentence):
        fit_prior(copied_run.config, copied_run.run, level)
    assert files_below(copied_run.run.path) == before


def test_a_prior_that_never_becomes_finite_is_not_saved(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied_run.run.prior("top"))
    monkeypatch.setattr("hvq.training.prior.held_out_nats", lambda *_: float("nan"))
    with pytest.raises(DataError, match="the loss on held-out data was never finite; lower learning_rate"):
        fit_prior(copied_run.config, copied_run.run, "top")
    assert not copied_run.run.prior("top").exists()


def test_labels_reach_the_prior(trained_run: TrainedRun) -> None:
    prior, _ = load_prior(trained_run.run.prior("top"))
    codes = CodeFolder(trained_run.run.codes, "train")
    rows = codes.fetch(torch.arange(len(codes)).numpy())
    source = trained_run.sources.train
    expected = [source.label(i % codes.num_images) for i in range(len(codes))]
    assert rows.labels.tolist() == expected
    assert prior.get_submodule("condition.classes").weight.shape[0] == len(CLASSES) + 1
