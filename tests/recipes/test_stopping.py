"""Recipes that are killed or asked to stop, as real processes, and go on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hvq.config import RunConfig
from hvq.storage import RunFolder
from hvq.training.checkpoint_files import CheckpointFolders
from hvq.training.log import MEASURED
from tests.processes import free_port
from tests.runs import (
    RECIPES,
    ROOT,
    TrainedRun,
    changed,
    differing,
    run_recipe,
    tensors_below,
    write_config,
)
from tests.training.prior_kinds import PRIORS

TIMEOUT_SECONDS = 120.0
STEPS, SEEN = 61, 23
TRAINING = {"steps": STEPS, "checkpoint_every": 5, "evaluate_every": 17, "log_every": 3, "micro_batches": 2}


@contextmanager
def _recipe(*words: str | Path, processes: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A recipe in processes of its own, which end with the block."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    name, *rest = words
    command = [sys.executable, *(launcher if processes > 1 else []), str(RECIPES / f"{name}.py"), *map(str, rest)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    threads = 1 if processes > 1 else torch.get_num_threads()
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert process.poll() is None, f"ended before it was stopped:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _reached(run: RunFolder, stage: str, step: int) -> Callable[[], bool]:
    return lambda: any(row["step"] >= step for row in run.lines() if row["stage"] == stage)


def _rows(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in MEASURED}
        for row in run.lines()
        if row["stage"] == stage
    ]


def _slow_config(config: RunConfig, kind: str) -> RunConfig:
    fields: dict[str, Any] = {f"autoencoder_training__{name}": value for name, value in TRAINING.items()}
    fields |= {f"priors__bottom__training__{name}": value for name, value in TRAINING.items()}
    if kind in PRIORS:
        fields["priors__bottom__model"] = PRIORS[kind]
    return changed(config, **fields, data__workers=2 if kind == "autoencoder" else 0)


@pytest.mark.parametrize("kind", ["autoencoder", *PRIORS])
def test_a_training_that_is_killed_goes_on_bit_for_bit(trained_run: TrainedRun, tmp_path: Path, kind: str) -> None:
    stage = "autoencoder" if kind == "autoencoder" else "prior.bottom"
    recipe = ["train_autoencoder"] if kind == "autoencoder" else ["train_prior", "--level", "bottom"]
    config = write_config(tmp_path / "config.json", _slow_config(trained_run.config, kind))
    straight, killed = (trained_run.copied(tmp_path / name).run for name in ("straight", "killed"))
    for run in (straight, killed):
        # An earlier training's rows are not to be taken for this one's.
        run.metrics_lines.unlink()
    words = [*recipe, "--config", config, "--run-dir"]
    assert run_recipe(*words, straight.path).code == 0
    with _recipe(*words, killed.path) as process:
        _wait_for(_reached(killed, stage, SEEN), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    steps = CheckpointFolders(killed.checkpoint(stage)).steps()
    assert steps
    assert SEEN - 10 <= steps[-1] < STEPS
    assert run_recipe(*words, killed.path, "--resume").code == 0
    assert differing(tensors_below(straight.path), tensors_below(killed.path)) == []
    assert _rows(straight, stage) == _rows(killed, stage)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("processes", "number", "codes"), [(1, signal.SIGTERM, {143}), (1, signal.SIGINT, {130}), (2, signal.SIGTERM, {1})]
)
def test_a_training_that_is_asked_to_stop_takes_a_checkpoint(
    trained_run: TrainedRun, tmp_path: Path, processes: int, number: signal.Signals, codes: set[int]
) -> None:
    config = changed(
        _slow_config(trained_run.config, "autoencoder"),
        autoencoder_training__checkpoint_every=1000,
        autoencoder_training__evaluate_every=1000,
        autoencoder_training__steps=100_000,
    )
    words = ["--config", write_config(tmp_path / "config.json", config), "--run-dir"]
    run = RunFolder(tmp_path / "stopped")
    with _recipe("train_autoencoder", *words, run.path, processes=processes) as process:
        _wait_for(_reached(run, "autoencoder", SEEN), process)
        # As a terminal or a scheduler does it: all processes of the job are told, workers too.
        os.killpg(process.pid, number)
        said = process.communicate(timeout=TIMEOUT_SECONDS)[0]
    folders = CheckpointFolders(run.checkpoint("autoencoder"))
    step = folders.newest_whole()
    assert step is not None
    assert f"stopped by {number.name} after step {step} of autoencoder, with a checkpoint; go on with --resume" in said
    assert process.returncode in codes
    assert "Traceback" not in said or processes > 1
    assert [path.name for path in folders.path.iterdir()] == [folders.of_step(step).name]


def test_a_quickstart_that_is_killed_goes_on_in_the_stage_it_was_in(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", _slow_config(trained_run.config, "transformer"))
    killed = RunFolder(tmp_path / "run")
    words = ["quickstart", "--config", config, "--run-dir", killed.path]
    with _recipe(*words) as process:
        _wait_for(_reached(killed, "prior.bottom", SEEN), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = tensors_below(killed.autoencoder) | tensors_below(killed.codes) | tensors_below(killed.prior("top"))
    outcome = run_recipe(*words, "--resume")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("is already trained") == 2
    after = tensors_below(killed.autoencoder) | tensors_below(killed.codes) | tensors_below(killed.prior("top"))
    assert differing(before, after) == []
    assert killed.report.exists()
