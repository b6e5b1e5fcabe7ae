"""Trackers of accelerate: one run for each training, which a resumed one goes on with."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from pydantic import ValidationError

from hvq.errors import ConfigurationError, StorageError
from hvq.storage import RunFolder
from hvq.training import fit_autoencoder, trackers
from hvq.training.log import MEASURED
from hvq.training.trackers import StageTrackers, show_file, trackers_to_use
from tests.processes import run_in_processes
from tests.runs import TrainedRun, changed, differing, tensors_below
from tests.training.interruption import killed_at
from tests.training.recording import RecordingTracker

SETTINGS = {"seed": 3, "data": {"size": [5, 7], "kind": "digits"}}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.fixture
def by_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[RecordingTracker]]:
    """Accelerate makes a recording tracker wherever one of the names is wanted."""

    class Made(RecordingTracker):
        made: list[RecordingTracker] = []  # noqa: RUF012  # of this test alone

    class InFolder(Made):
        name = "tensorboard"
        requires_logging_directory = True

    class AtHome(Made):
        name = "wandb"

    for kind in (InFolder, AtHome):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, kind.name, kind)
    return Made


def _accelerator(folder: Path, *names: str) -> Accelerator:
    accelerator = Accelerator(project_dir=str(folder / "tensorboard"))
    # As if they were installed.
    accelerator.log_with = list(names)
    return accelerator


# --- which ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "installed", "expected"),
    [
        (None, ["tensorboard", "wandb"], ["tensorboard"]),
        (None, ["wandb"], None),
        ([], ["tensorboard"], None),
        (["wandb", "tensorboard"], ["tensorboard", "wandb"], ["wandb", "tensorboard"]),
    ],
)
def test_which_trackers_there_are_to_be(
    monkeypatch: pytest.MonkeyPatch, chosen: list[str] | None, installed: list[str], expected: list[str] | None
) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setattr(trackers, f"is_{name}_available", lambda name=name: name in installed)
    assert trackers_to_use(chosen) == expected


def test_one_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setattr(trackers, f"is_{name}_available", lambda: False)
    with pytest.raises(ConfigurationError, match="trackers names wandb, not installed here; pip install wandb, or lea"):
        trackers_to_use(["wandb"])


def test_the_configuration_knows_two(trained_run: TrainedRun) -> None:
    assert changed(trained_run.config, trackers=["wandb", "tensorboard"]).trackers == ("wandb", "tensorboard")
    with pytest.raises(ValidationError, match="'tensorboard' or 'wandb'"):
        changed(trained_run.config, trackers=["paper"])


# --- a run of a tracker ---------------------------------------------------------------------------------------------


def test_a_training_has_a_run_of_its_own_and_ends_it(tmp_path: Path, by_name: type[RecordingTracker]) -> None:
    accelerator = _accelerator(tmp_path, "tensorboard")
    for stage in ("autoencoder", "prior.top"):
        opened = StageTrackers(accelerator, tmp_path, stage, settings=SETTINGS)
        opened.log({"loss": 0.5}, 7)
        opened.show({"rows": torch.full((2, 3, 3), 11, dtype=torch.uint8)}, 7)
        opened.close()
    first, second = by_name.made
    assert first.arguments == ("autoencoder", str(tmp_path / "tensorboard"))
    assert second.arguments == ("prior.top", str(tmp_path / "tensorboard"))
    assert first.rows == [(7, {"autoencoder/loss": 0.5})]
    ((step, pictures),) = second.pictures
    assert (step, list(pictures), pictures["prior.top/rows"].shape) == (7, ["prior.top/rows"], (1, 2, 3, 3))
    assert first.settings == second.settings == {"seed": 3, "data.size": "[5, 7]", "data.kind": "digits"}
    assert first.events == second.events == ["start", "finish"]
    assert accelerator.trackers == []


def test_what_the_caller_has_made_is_used_and_left_as_it_is(tmp_path: Path, by_name: type[RecordingTracker]) -> None:
    given, begun = RecordingTracker(), RecordingTracker()
    begun.name = "wandb"
    accelerator = _accelerator(tmp_path)
    accelerator.log_with = [given, "wandb"]
    accelerator.trackers.append(begun)
    for step in (1, 2):
        opened = StageTrackers(accelerator, tmp_path, f"prior.{step}", settings=SETTINGS)
        opened.log({"nats": 0.5}, step)
        opened.close()
    assert by_name.made == []
    assert given.events == ["start"]
    assert given.rows == begun.rows == [(1, {"prior.1/nats": 0.5}), (2, {"prior.2/nats": 0.5})]


def test_tensorboard_hides_what_is_written_anew(tmp_path: Path, by_name: type[RecordingTracker]) -> None:
    for start in (0, 13):
        StageTrackers(_accelerator(tmp_path, "tensorboard"), tmp_path, "prior.top", start_step=start, settings=SETTINGS)
    fresh, resumed = by_name.made
    assert (fresh.options, resumed.options) == ({"purge_step": 0}, {"purge_step": 14})
    # It has hyper-parameters of its run already, and would show others as another run.
    assert (fresh.settings["seed"], resumed.settings) == (3, {})


def test_wandb_goes_on_in_the_run_that_was(
    tmp_path: Path, by_name: type[RecordingTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    folder = tmp_path / "digits"
    for stage, start in (("autoencoder", 0), ("autoencoder", 5), ("prior.top", 0), ("prior.top", 0), ("prior.top", 3)):
        StageTrackers(_accelerator(folder, "wandb"), folder, stage, start_step=start, settings=SETTINGS).close()
    first, resumed, prior, anew, again = [made.options for made in by_name.made]
    assert resumed == first
    assert again == anew
    assert len({first["id"], prior["id"], anew["id"]}) == 3
    told = {"name": "digits/autoencoder", "group": "digits", "job_type": "autoencoder", "resume": "allow"}
    assert first.items() >= {**told, "dir": str(folder)}.items()
    assert {made.arguments for made in by_name.made} == {("hvq",)}
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    StageTrackers(_accelerator(folder, "wandb"), folder, "autoencoder")
    assert by_name.made[-1].arguments == ("mine",)


def test_wandb_that_does_not_start_is_a_sentence_and_nothing_is_cut(
    trained_run: TrainedRun, tmp_path: Path, by_name: type[RecordingTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: RecordingTracker) -> None:
        raise RuntimeError("api_key not configured (no-tty).\ncall wandb.login")

    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["wandb"], "start", start)
    run = trained_run.copied(tmp_path / "run").run
    lines, config = run.metrics_lines.read_bytes(), run.config_file.read_bytes()
    accelerator = _accelerator(run.path, "tensorboard", "wandb")
    sentence = r"W&B did not start: api_key not configured \(no-tty\)\. call wandb\.login; log in .* WANDB_MODE=offline"
    with pytest.raises(ConfigurationError, match=sentence):
        fit_autoencoder(changed(trained_run.config, seed=99), run, sources=trained_run.sources, accelerator=accelerator)
    assert (accelerator.trackers, by_name.made[0].events) == ([], ["start", "finish"])
    assert (run.metrics_lines.read_bytes(), run.config_file.read_bytes()) == (lines, config)


def test_a_disk_that_is_full_is_a_sentence(
    tmp_path: Path, by_name: type[RecordingTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(self: RecordingTracker, *words: Any, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    opened = StageTrackers(_accelerator(tmp_path, "tensorboard"), tmp_path, "autoencoder")
    monkeypatch.setattr(RecordingTracker, "log", log)
    with pytest.raises(StorageError, match=r"tensorboard cannot be written: No space left on device"):
        opened.log({"loss": 1.0}, 1)


def test_samples_are_shown_on_white(tmp_path: Path) -> None:
    picture = np.zeros((5, 7, 4), np.uint8)
    picture[2, 3] = (200, 100, 50, 255)
    Image.fromarray(picture).save(tmp_path / "samples.png")
    tracker = RecordingTracker()
    show_file(Accelerator(log_with=[tracker]), tmp_path, "samples", tmp_path / "samples.png")
    ((step, pictures),) = tracker.pictures
    (shown,) = pictures["samples/samples"]
    assert step == 0
    assert shown[2, 3].tolist() == [200, 100, 50]
    assert np.delete(shown.reshape(35, 3), 2 * 7 + 3, axis=0).min() == 255


# --- of a whole training --------------------------------------------------------------------------------------------

STEPS = {"autoencoder_training__steps": 7, "autoencoder_training__evaluate_every": 3}
OFTEN = {"autoencoder_training__checkpoint_every": 4, "autoencoder_training__continuous_steps": 2}


def _rows_of(tracker: RecordingTracker) -> list[tuple[int | None, dict[str, Any]]]:
    prefix = "autoencoder/"
    return [
        (step, {name.removeprefix(prefix): value for name, value in row.items() if name[len(prefix) :] not in MEASURED})
        for step, row in tracker.rows
    ]


def _lines_of(run: RunFolder) -> list[tuple[int, dict[str, Any]]]:
    hidden = ("stage", "step", *MEASURED)
    return [(row["step"], {k: v for k, v in row.items() if k not in hidden}) for row in run.lines()]


def test_trackers_are_given_the_lines_of_the_log_and_change_nothing(trained_run: TrainedRun, tmp_path: Path) -> None:
    config, tracker = changed(trained_run.config, **STEPS, **OFTEN), RecordingTracker()
    plain, watched = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "watched")
    fit_autoencoder(config, plain, sources=trained_run.sources)
    fit_autoencoder(config, watched, sources=trained_run.sources, accelerator=Accelerator(log_with=[tracker]))
    assert differing(tensors_below(plain.autoencoder), tensors_below(watched.autoencoder)) == []
    assert _rows_of(tracker) == _lines_of(watched) == _lines_of(plain)
    names = set().union(*(row for _, row in tracker.rows))
    per_level = {f"autoencoder/{name}.top" for name in ("usage", "perplexity", "codebook_norm")}
    assert names >= per_level | {f"autoencoder/{name}" for name in ("loss", "learning_rate", "images_per_second")}
    # Codebooks are set before the third step.
    assert [step for step, row in tracker.rows if "autoencoder/codebook_norm.bottom" in row] == [3, 4, 5, 6, 7]
    assert [step for step, _ in tracker.pictures] == [3, 6, 7]
    assert all(rows["autoencoder/reconstructions"].dtype == np.uint8 for _, rows in tracker.pictures)
    assert tracker.settings["autoencoder.levels.top.codebook_size"] == 11


def test_a_resumed_training_gives_trackers_the_steps_from_its_checkpoint_on(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    config = changed(trained_run.config, **STEPS, **OFTEN)
    run, straight = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "straight")
    before, after, never = (RecordingTracker() for _ in range(3))
    with killed_at(5):
        fit_autoencoder(config, run, sources=trained_run.sources, accelerator=Accelerator(log_with=[before]))
    fit_autoencoder(config, run, sources=trained_run.sources, accelerator=Accelerator(log_with=[after]), resume=True)
    fit_autoencoder(config, straight, sources=trained_run.sources, accelerator=Accelerator(log_with=[never]))
    kept = [row for row in _rows_of(before) if (row[0] or 0) <= 4]
    assert len(kept) < len(before.rows)
    assert kept + _rows_of(after) == _rows_of(never)
    pictures = {step: rows for tracker in (before, after) for step, rows in tracker.pictures}
    assert pictures.keys() == {3, 6, 7}
    assert all(
        np.array_equal(rows["autoencoder/reconstructions"], pictures[step]["autoencoder/reconstructions"])
        for step, rows in never.pictures
    )


def _watched(folder: str, config: str, images: str) -> list[list[int | None]]:
    from hvq.config import RunConfig

    tracker = RecordingTracker()
    fit_autoencoder(
        RunConfig.model_validate_json(config), RunFolder(Path(folder)), accelerator=Accelerator(log_with=[tracker])
    )
    return [[step for step, _ in tracker.rows], [step for step, _ in tracker.pictures]]


@pytest.mark.processes
def test_the_main_process_alone_writes(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = changed(trained_run.config, **STEPS)
    told = run_in_processes(_watched, 2, str(tmp_path / "run"), config.model_dump_json(), "")
    assert told == [[[1, 2, 3, 3, 4, 5, 6, 6, 7, 7], [3, 6, 7]], [[], []]]


# --- the trackers themselves ----------------------------------------------------------------------------------------


def _through(folder: Path, tracker: str, start_step: int, steps: range) -> None:
    opened = StageTrackers(
        Accelerator(log_with=tracker, project_dir=str(folder / "tensorboard")),
        folder,
        "autoencoder",
        start_step=start_step,
        settings=SETTINGS,
    )
    for step in steps:
        opened.show({"rows": torch.full((5, 7, 3), step, dtype=torch.uint8)}, step)
        opened.log({"loss": float(step)}, step)
    opened.close()


@pytest.mark.skipif(not _installed("tensorboard"), reason="TensorBoard is not installed")
def test_tensorboard_reads_a_resumed_training_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _through(tmp_path, "tensorboard", 0, range(1, 8))
    # It orders what it reads by the second in which it was begun.
    later = time.time() + 7
    monkeypatch.setattr(time, "time", lambda: later)
    _through(tmp_path, "tensorboard", 4, range(5, 10))
    found = EventAccumulator(str(tmp_path / "tensorboard" / "autoencoder"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("autoencoder/loss")] == [(i, i) for i in range(1, 10)]
    picture = found.Images("autoencoder/rows")[-1]
    assert (picture.step, picture.width, picture.height) == (9, 7, 5)
    assert len(list((tmp_path / "tensorboard" / "autoencoder").glob("*/hparams.yml"))) == 1


@pytest.mark.skipif(not _installed("wandb"), reason="W&B is not installed")
def test_wandb_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _through(tmp_path, "wandb", 0, range(1, 4))
    _through(tmp_path, "wandb", 2, range(3, 5))
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len({run.name.split("-")[-1] for run in runs}) == 1
    assert len(list((tmp_path / "wandb").rglob("*.png"))) == 5
