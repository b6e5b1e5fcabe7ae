"""The loop that all stages share: what is called at which step, and with which weights."""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hvq.config import OptimizationConfig
from hvq.errors import StorageError, TrainingStopped
from hvq.files import read_json_lines
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.log import TrainingLog
from hvq.training.loop import Health, train
from hvq.training.optimization import Losses, NotFiniteError, Optimization, StepReport
from tests.training.recording import RecordingTracker

CONFIG = OptimizationConfig(
    steps=7, warmup_steps=0, average_decay=0.9, log_every=3, evaluate_every=2, checkpoint_every=4, keep_checkpoints=99
)


class _Recorder:
    """A stage of a linear layer, and what its loop called at which step: the `Watch` of its own training."""

    score = "held_out"

    def __init__(self, folder: Path, start: int = 0, config: OptimizationConfig = CONFIG) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.optimization = Optimization(self.layer, config, Accelerator(), seed=0)
        self.optimization.step_number = start
        self.file = folder / "metrics.jsonl"
        self.checkpoint = TrainingCheckpoint(folder / "checkpoint", self.optimization, {})
        self.calls: list[tuple[str, int]] = []
        self.looked_at: list[Tensor] = []
        self.observed: list[float] = []
        self.scores: Callable[[int], float] = lambda step: 1.0 if step == 2 else 2.0
        self.during: Callable[[int], object] = lambda step: None
        self.finish: Callable[[], object] = lambda: None
        self.stop_before: int | None = None
        self.accelerator = Accelerator()
        self._record_saves()

    def _record_saves(self) -> None:
        save = self.checkpoint.save

        def recorded() -> None:
            self.calls.append(("save", self.optimization.step_number))
            save()

        self.checkpoint.save = recorded  # type: ignore[method-assign]

    def _losses(self, batch: Tensor) -> Losses:
        self.during(self.optimization.step_number + 1)
        return self.optimization.wrapped(batch).square().mean(), {}

    def observe(self, report: StepReport) -> None:
        self.observed.append(report.terms["loss"])

    def window(self) -> dict[str, float]:
        self.calls.append(("window", self.optimization.step_number))
        return {"usage": 0.5}

    def look(self) -> dict[str, float]:
        self.calls.append(("look", self.optimization.step_number))
        self.looked_at.append(self.layer.weight.detach().clone())
        return {"held_out": self.scores(self.optimization.step_number)}

    def pictures(self) -> dict[str, Tensor]:
        self.calls.append(("pictures", self.optimization.step_number))
        return {"weight": torch.full((2, 3, 3), self.optimization.step_number, dtype=torch.uint8)}

    def stops(self) -> bool:
        return self.optimization.step_number + 1 == self.stop_before

    def train(self) -> None:
        start, steps = self.optimization.step_number, self.optimization.config.steps
        log = TrainingLog(stage="linear", file=self.file, accelerator=self.accelerator, steps=steps, start_step=start)
        stream = ([torch.full((5, 3), float(step))] for step in range(start, 100))
        train(
            self.optimization,
            stream,
            self._losses,
            log=log,
            checkpoint=self.checkpoint,
            watch=self,
            health=Health(),
            finish=self.finish,
        )


def test_what_is_called_when(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path)
    recorder.train()
    assert recorder.optimization.step_number == 7
    assert recorder.calls == [
        ("look", 2),
        ("save", 2),
        ("window", 3),
        ("look", 4),
        ("save", 4),
        ("window", 6),
        ("look", 6),
        ("window", 7),
        ("look", 7),
    ]
    rows = [(row["step"], "usage" in row, "held_out" in row) for row in read_json_lines(recorder.file)]
    assert [step for step, logged, _ in rows if logged] == [3, 6, 7]
    assert [step for step, _, looked in rows if looked] == [2, 4, 6, 7]


def test_pictures_are_for_trackers_that_take_some(tmp_path: Path) -> None:
    recorder, tracker = _Recorder(tmp_path), RecordingTracker()
    recorder.accelerator = Accelerator(log_with=[tracker])
    recorder.train()
    assert [step for name, step in recorder.calls if name == "pictures"] == [2, 4, 6, 7]
    assert [(step, int(rows["linear/weight"].max())) for step, rows in tracker.pictures] == [
        (step, step) for step in (2, 4, 6, 7)
    ]
    # Beside the look, whose weights are averages.
    places = [name for name, _ in recorder.calls if name in ("look", "pictures")]
    assert places == ["look", "pictures"] * 4


def test_lines_tell_the_learning_rate_of_their_step_and_the_memory(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path)
    recorder.train()
    rows = [row for row in read_json_lines(recorder.file) if "loss" in row]
    # Half a cosine over seven steps, of which the line of step 3 is about the third.
    share = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 2 / 7))
    assert rows[0]["learning_rate"] == pytest.approx(3e-4 * share)
    assert rows[-1]["learning_rate"] == recorder.optimization.optimizer.param_groups[0]["lr"]
    assert 0 < rows[0]["memory_gib"] <= rows[-1]["memory_gib"]


def test_every_step_is_observed(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path, start=2)
    recorder.train()
    assert len(recorder.observed) == 5
    logged = [row["loss"] for row in read_json_lines(recorder.file) if "loss" in row]
    assert [recorder.observed[0], recorder.observed[3], recorder.observed[4]] == logged


@pytest.mark.parametrize(("stop_before", "steps"), [(1, 0), (5, 4)])
def test_it_ends_where_it_is_told_to(tmp_path: Path, stop_before: int, steps: int) -> None:
    recorder = _Recorder(tmp_path)
    recorder.stop_before = stop_before
    recorder.train()
    assert recorder.optimization.step_number == steps
    assert recorder.calls == [("look", 2), ("save", 2), ("window", 3), ("look", 4), ("save", 4)][: steps and 5]


def test_a_resumed_stage_does_the_steps_that_are_left(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path, start=5)
    recorder.checkpoint.best_score = 0.5
    recorder.train()
    assert recorder.calls == [("window", 6), ("look", 6), ("window", 7), ("look", 7)]


def test_held_out_data_are_looked_at_with_averaged_weights(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path)
    recorder.train()
    average = recorder.optimization.average.tensors["weight"]
    assert torch.equal(recorder.looked_at[-1], average)
    assert not torch.equal(recorder.layer.weight, average)


def _worse(step: int) -> float:
    return float(step)


def _at(wanted: int, action: Callable[[], object]) -> Callable[[int], object]:
    return lambda step: action() if step == wanted else None


# --- best and last ------------------------------------------------------------------------------------------------


def test_the_best_look_has_a_checkpoint(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path)
    recorder.scores = {2: 3.0, 4: float("nan"), 6: 1.0, 7: 2.0}.__getitem__
    recorder.train()
    assert [step for what, step in recorder.calls if what == "save"] == [2, 4, 6]
    assert (recorder.checkpoint.best_step, recorder.checkpoint.best_score) == (6, 1.0)


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_ends_training_after_the_running_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, name: str
) -> None:
    recorder = _Recorder(tmp_path)
    recorder.scores = _worse
    recorder.during = _at(3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(TrainingStopped, match=rf"stopped by {name} after step 4 of linear.*--resume") as stopped:
        recorder.train()
    # It came within step 3; all processes are told with the sums of the next one.
    assert recorder.optimization.step_number == 4
    assert recorder.calls[-1] == ("save", 4)
    assert recorder.checkpoint.folders.steps() == [2, 4]
    assert stopped.value.signal_number == number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path)
    recorder.during = _at(5, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt) as stopped:
        recorder.train()
    assert not isinstance(stopped.value, TrainingStopped)
    assert recorder.optimization.step_number == 4
    assert recorder.checkpoint.folders.newest_whole() == 4


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        recorder = _Recorder(tmp_path)
        recorder.during = _at(3, lambda: os.kill(os.getpid(), signal.SIGINT))
        recorder.train()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert recorder.optimization.step_number == 7


@pytest.mark.parametrize("when", ["last step", "last look", "finish"])
def test_a_signal_at_the_end_lets_the_stage_end_and_nothing_after_it(tmp_path: Path, when: str) -> None:
    recorder, finished = _Recorder(tmp_path), []

    def stop(*_: object) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    if when == "last step":
        recorder.during = _at(7, stop)
    elif when == "last look":
        recorder.scores = lambda step: stop() if step == 7 else 2.0
    recorder.finish = lambda: finished.append(stop() if when == "finish" else 1.0)
    with pytest.raises(TrainingStopped, match=r"stopped by SIGTERM after linear was done; go on with --resume"):
        recorder.train()
    assert recorder.optimization.step_number == 7
    assert finished == [1.0]


def test_what_was_stopped_is_not_finished(tmp_path: Path) -> None:
    recorder, finished = _Recorder(tmp_path), []
    recorder.during = _at(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    recorder.finish = lambda: finished.append(1)
    with pytest.raises(TrainingStopped):
        recorder.train()
    assert not finished


def test_a_checkpoint_that_a_signal_asks_for_and_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = _Recorder(tmp_path)

    def stop_on_a_full_disk() -> None:
        recorder.checkpoint.wait()
        monkeypatch.setattr("hvq.files.save_file", _no_space)
        os.kill(os.getpid(), signal.SIGTERM)

    recorder.during = _at(5, stop_on_a_full_disk)
    with pytest.raises(StorageError, match="step-000000006 cannot be written: No space left"):
        recorder.train()


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- faults -------------------------------------------------------------------------------------------------------


def test_a_loss_that_stays_nan_ends_training_and_the_last_checkpoint_is_named(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path, config=CONFIG.model_copy(update={"skipped_steps": 2}))
    recorder.during = lambda step: recorder.layer.weight.data.fill_(torch.nan) if step == 5 else None
    with pytest.raises(NotFiniteError, match=r"not finite 2 steps in a row.*last checkpoint is of step 4.*--init-from"):
        recorder.train()
    assert recorder.optimization.step_number == 6


def test_a_checkpoint_that_cannot_be_written_ends_training(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"step-000000002 cannot be written"):
        _Recorder(tmp_path).train()
