"""The benchmark trains every kind within its budget, saves every cell, and leaves the run as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from tests.runs import TrainedRun, files_below

FIELDS = {
    "kind",
    "level",
    "minutes",
    "batch",
    "parameters",
    "steps",
    "held_out_nats",
    "unigram_entropy",
    "images_per_second",
    "cpu_minutes",
}


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    prior_kinds = load_benchmark("prior_kinds")
    monkeypatch.setattr(prior_kinds, "best_rate", lambda device: 1e12)
    monkeypatch.setattr(prior_kinds, "QUICK_MINUTES", 0.005)
    monkeypatch.setattr(prior_kinds, "TRIALS", (1, 2, 4))
    return prior_kinds


def test_cells_are_saved_and_not_trained_again_and_the_run_is_left_alone(
    benchmark: ModuleType, trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(trained_run.run.path)
    words = ["--run-dir", str(trained_run.run.path), "--json", str(tmp_path / "rows.json"), "--quick"]
    assert benchmark.main([*words, "--levels", "bottom", "--only", "transformer"]) == 0
    (first,) = json.loads((tmp_path / "rows.json").read_text())
    assert benchmark.main([*words, "--levels", "bottom"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0] == first
    assert [(row["level"], row["kind"]) for row in rows] == [("bottom", kind) for kind in benchmark.SIZES]
    assert all(row.keys() == FIELDS for row in rows)
    assert all(row["steps"] >= 1 and 0 < row["held_out_nats"] < 4 and row["batch"] == 12 for row in rows)
    assert files_below(trained_run.run.path) == before
    benchmark.run_cell = lambda *_: pytest.fail("trained again")
    assert benchmark.main([*words, "--levels", "bottom"]) == 0
    assert "| bottom | pixelcnn |" in capsys.readouterr().out


def test_steps_fit_into_the_budget(benchmark: ModuleType) -> None:
    # A step takes 1 s and a look 4 s, of which there are ten.
    assert benchmark.steps_within(100.0, (2, 6.0), (12, 16.0)) == 60
    # Where looks alone are more than the budget there is one step; noise in short trainings is no reason to fail.
    assert benchmark.steps_within(10.0, (2, 6.0), (12, 16.0)) == 1
    assert benchmark.steps_within(1.0, (2, 6.0), (12, 5.0)) >= 1


def test_the_schedule_ends_with_the_training(benchmark: ModuleType, trained_run: TrainedRun) -> None:
    base = trained_run.config.prior("top")
    stage = benchmark.stage("pixelcnn", {"width": 16, "layers": 2}, 501, base)
    assert (stage.model.kind, stage.model.dropout) == ("pixelcnn", 0.1)
    training = stage.training
    assert (training.steps, training.warmup_steps, training.evaluate_every) == (501, 50, 51)
    assert (training.learning_rate, training.batch_size) == (benchmark.LEARNING_RATES["pixelcnn"], 12)


def test_another_batch_size_is_that_of_all_levels(benchmark: ModuleType, trained_run: TrainedRun) -> None:
    config = benchmark.run_config(trained_run.run, 5)
    assert {level: prior.training.batch_size for level, prior in config.priors.items()} == {"top": 5, "bottom": 5}
    assert benchmark.run_config(trained_run.run, None) == trained_run.config


def test_a_missing_run_is_said(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--run-dir", str(tmp_path), "--quick"]) == 1
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(("place", "coarser"), [(0, {}), (1, {"top": 512})])
def test_sizes_are_about_equal(
    benchmark: ModuleType, load_benchmark: Callable[[str], ModuleType], place: int, coarser: dict[str, int]
) -> None:
    models, counts = load_benchmark("prior_models"), []
    for kind, fields in benchmark.SIZES.items():
        given = {"kind": kind, "codebook_size": 512, "coarser": coarser, **fields[place]}
        counts.append(models.parameters(models.on_meta(partial(models.construct, given, 10))))
    assert min(counts) > 2e6
    assert max(counts) < min(4.5e6, 1.25 * min(counts))
