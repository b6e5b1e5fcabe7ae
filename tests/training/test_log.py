"""Rows of numbers, one file for all stages, cut back where a run is resumed."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from hvq.errors import CheckpointError
from hvq.training.log import TrainingLog
from tests.training.recording import RecordingTracker


def _write(file: Path, stage: str, steps: range, accelerator: Accelerator | None = None) -> str:
    """Rows at the given steps, of a stage that goes on where they begin; returns what was printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        log = TrainingLog(
            stage=stage,
            file=file,
            accelerator=accelerator or Accelerator(),
            steps=steps.stop - 1,
            start_step=steps.start - 1,
        )
        log.say(f"{stage} begins")
        for step in steps:
            log.advance()
            log.write(step, {"loss": 1 / step, "gradient_norm": math.inf if step == 2 else 0.5})
        log.close()
    return printed.getvalue()


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_row_holds_stage_step_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run" / "metrics.jsonl"
    printed = _write(file, "autoencoder", range(1, 4))
    rows = _rows(file)
    assert [(row["stage"], row["step"], row["loss"]) for row in rows] == [
        ("autoencoder", step, 1 / step) for step in (1, 2, 3)
    ]
    assert [row["gradient_norm"] for row in rows] == [0.5, None, 0.5]
    assert all(row["time"] >= 0 for row in rows)
    lines = printed.splitlines()
    assert lines[0] == "autoencoder begins"
    assert lines[1] == "autoencoder 1: loss 1  gradient_norm 0.5"
    assert len(lines) == 4


def test_a_resumed_stage_writes_its_later_rows_anew(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    _write(file, "autoencoder", range(1, 8))
    _write(file, "prior.top", range(1, 4))
    with file.open("a") as torn:
        torn.write('{"stage": "autoencoder", "st')
    _write(file, "autoencoder", range(5, 7))
    steps = [(row["stage"], row["step"]) for row in _rows(file)]
    assert steps == [
        *(("autoencoder", step) for step in range(1, 5)),
        *(("prior.top", step) for step in range(1, 4)),
        *(("autoencoder", step) for step in (5, 6)),
    ]


def test_a_damaged_line_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"stage": "autoen\n{"stage": "autoencoder", "step": 1}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl holds a line that is not JSON"):
        _write(file, "autoencoder", range(1, 2))


def test_trackers_of_accelerate_are_given_every_row(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    accelerator = Accelerator(log_with=[tracker])
    _write(tmp_path / "metrics.jsonl", "autoencoder", range(1, 4), accelerator)
    _write(tmp_path / "metrics.jsonl", "prior.top", range(1, 2), accelerator)
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 1]
    assert tracker.rows[0][1] == {"autoencoder/loss": 1.0, "autoencoder/gradient_norm": 0.5}
    assert sorted(tracker.rows[-1][1]) == ["prior.top/gradient_norm", "prior.top/loss"]


def test_the_rate_is_of_the_steps_since_it_was_last_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 20.0, 24.0, 24.0, 25.0, 32.0, 36.0, 36.0])
    monkeypatch.setattr("hvq.training.log.time.perf_counter", lambda: next(now))
    log = TrainingLog(stage="autoencoder", file=tmp_path / "m.jsonl", accelerator=Accelerator(), steps=9)
    log.start_clock()
    for _ in range(3):
        log.advance()
    assert log.samples_per_second(8) == 3 * 8 / 4
    log.advance()
    with log.paused():
        pass
    # Twelve seconds since, of which seven do not count.
    assert log.samples_per_second(8) == 8 / 5
    log.close()


def test_the_time_that_is_left_is_said_once_enough_steps_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("hvq.training.log.time.perf_counter", lambda: now[0])
    log = TrainingLog(stage="prior.top", file=tmp_path / "m.jsonl", accelerator=Accelerator(), steps=997)
    said = []
    for _ in range(4):
        for _ in range(7):
            log.advance()
            now[0] += 3.0
        log.samples_per_second(2)
        said.append(log.time_left(500))
    log.close()
    assert said[:2] == [None, None]
    assert said[2] is not None
    assert "prior.top: about 25 min for the 500 steps that are left" in said[2]
    assert said[3] is None


def test_what_a_line_has_no_room_for_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = TrainingLog(stage="autoencoder", file=tmp_path / "m.jsonl", accelerator=Accelerator(), steps=9)
    numbers = {"loss": 0.5, "learning_rate": 0.25, "codebook_norm.top": 3.0, "memory_gib": 7.0}
    log.write(2, numbers)
    log.close()
    assert capsys.readouterr().out.splitlines()[-1] == "autoencoder 2: loss 0.5"
    (row,) = _rows(tmp_path / "m.jsonl")
    assert row.items() >= numbers.items()
