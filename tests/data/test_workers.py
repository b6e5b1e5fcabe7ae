"""Workers that are asked to end along with training go on until it has ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from hvq.data import TensorImages, TrainingStream
from hvq.data.workers import outlive_signals


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_signals_and_end_with_their_stream(number: signal.Signals) -> None:
    images = TensorImages(torch.arange(13, dtype=torch.uint8).view(13, 1, 1, 1).expand(13, 1, 2, 2).clone())
    expected = [batches[0].indices.tolist() for batches in islice(TrainingStream(images, batch_size=5), 40)]
    others = _children()
    stream = iter(TrainingStream(images, batch_size=5, workers=2))
    # One of each worker, so that both have begun.
    found = [batches[0].indices.tolist() for batches in islice(stream, 2)]
    children = _children() - others
    assert len(children) == 2
    for child in children:
        os.kill(child, number)
    later = [batches[0].indices.tolist() for batches in islice(stream, 38)]
    assert [*found, *later] == expected
    del stream
    deadline = time.monotonic() + 10
    while _children() & children and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _children() & children


def _wait(started: Event) -> None:
    outlive_signals(0)
    started.set()
    time.sleep(60)


@pytest.mark.processes
def test_a_second_signal_ends_a_worker() -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=_wait, args=(started,))
    worker.start()
    assert worker.pid is not None
    assert started.wait(10)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(0.5)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == -signal.SIGTERM


# Training with two workers, which says who they are, and is killed.
TRAINING = """
import multiprocessing, os, sys, time
from itertools import islice

import torch

from hvq.data import TensorImages, TrainingStream

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    images = TensorImages(torch.zeros(13, 1, 2, 2, dtype=torch.uint8))
    stream = iter(TrainingStream(images, batch_size=5, workers=2))
    list(islice(stream, 2))
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


@pytest.mark.processes
@pytest.mark.parametrize(("method", "asked_to_end"), [("fork", True), ("forkserver", False)])
def test_workers_end_when_training_was_killed(method: str, asked_to_end: bool, tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    command = [sys.executable, str(script), method]
    places = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "cwd": Path(__file__).parents[2]}
    with subprocess.Popen(command, text=True, **places) as training:
        assert training.stdout is not None
        workers = [int(word) for word in training.stdout.readline().split()]
        assert len(workers) == 2
        for worker in workers if asked_to_end else []:
            os.kill(worker, signal.SIGTERM)
        time.sleep(0.3)
        assert [worker for worker in workers if _is_alive(worker)] == workers
        training.kill()
    deadline = time.monotonic() + 20
    while any(map(_is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_is_alive, workers))


def _is_alive(process: int) -> bool:
    """Whether it runs; one that has ended and nobody has asked for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}
