"""The loop that all stages share: what is called at which step, and with which weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hvq.config import OptimizationConfig
from hvq.files import read_json_lines
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.log import TrainingLog
from hvq.training.loop import train
from hvq.training.optimization import Losses, Optimization

CONFIG = OptimizationConfig(
    steps=7, warmup_steps=0, average_decay=0.9, log_every=3, evaluate_every=2, checkpoint_every=4
)


class _Recorder:
    """A stage of a linear layer, and what its loop called at which step."""

    def __init__(self, folder: Path, start: int) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.optimization = Optimization(self.layer, CONFIG, Accelerator(), seed=0)
        self.optimization.step_number = start
        self.file = folder / "metrics.jsonl"
        self.checkpoint = TrainingCheckpoint(folder / "checkpoint", self.optimization, {})
        self.calls: list[tuple[str, int]] = []
        self.looked_at: list[Tensor] = []
        self.observed: list[float] = []
        self.stop_before: int | None = None
        self._record_saves()

    def _record_saves(self) -> None:
        save = self.checkpoint.save

        def recorded() -> None:
            self.calls.append(("save", self.optimization.step_number))
            save()

        self.checkpoint.save = recorded  # type: ignore[method-assign]

    def _losses(self, batch: Tensor) -> Losses:
        return self.optimization.wrapped(batch).square().mean(), {}

    def _window(self) -> dict[str, float]:
        self.calls.append(("window", self.optimization.step_number))
        return {"usage": 0.5}

    def _look(self) -> dict[str, float]:
        self.calls.append(("look", self.optimization.step_number))
        self.looked_at.append(self.layer.weight.detach().clone())
        return {"held_out": 1.0}

    def train(self) -> None:
        start = self.optimization.step_number
        log = TrainingLog(
            stage="linear", file=self.file, accelerator=Accelerator(), steps=CONFIG.steps, start_step=start
        )
        stream = ([torch.full((5, 3), float(step))] for step in range(start, 100))
        train(
            self.optimization,
            stream,
            self._losses,
            log=log,
            checkpoint=self.checkpoint,
            window=self._window,
            look=self._look,
            observe=lambda report: self.observed.append(report.terms["loss"]),
            stop=lambda: self.optimization.step_number + 1 == self.stop_before,
        )


def test_what_is_called_when(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path, start=0)
    recorder.train()
    assert recorder.optimization.step_number == 7
    assert recorder.calls == [
        ("look", 2),
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


def test_every_step_is_observed(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path, start=2)
    recorder.train()
    assert len(recorder.observed) == 5
    logged = [row["loss"] for row in read_json_lines(recorder.file) if "loss" in row]
    assert [recorder.observed[0], recorder.observed[3], recorder.observed[4]] == logged


@pytest.mark.parametrize(("stop_before", "steps"), [(1, 0), (5, 4)])
def test_it_ends_where_it_is_told_to(tmp_path: Path, stop_before: int, steps: int) -> None:
    recorder = _Recorder(tmp_path, start=0)
    recorder.stop_before = stop_before
    recorder.train()
    assert recorder.optimization.step_number == steps
    assert recorder.calls == [("look", 2), ("window", 3), ("look", 4), ("save", 4)][:steps]


def test_a_resumed_stage_does_the_steps_that_are_left(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path, start=5)
    recorder.train()
    assert recorder.calls == [("window", 6), ("look", 6), ("window", 7), ("look", 7)]


def test_held_out_data_are_looked_at_with_averaged_weights(tmp_path: Path) -> None:
    recorder = _Recorder(tmp_path, start=0)
    recorder.train()
    average = recorder.optimization.average.tensors["weight"]
    assert torch.equal(recorder.looked_at[-1], average)
    assert not torch.equal(recorder.layer.weight, average)
