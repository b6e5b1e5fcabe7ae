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


ORPHAN = """
import os, signal, time
from hvq.data import workers

workers._SECONDS_BETWEEN_LOOKS = 1
reading, writing = os.pipe()
worker = os.fork()
if not worker:
    workers.outlive_signals(0)
    os.write(writing, b".")
    time.sleep(60)
os.read(reading, 1)
os.kill(worker, signal.SIGTERM)
time.sleep(1.5)
os.kill(worker, 0)
print(worker, flush=True)
"""


@pytest.mark.processes
def test_a_worker_that_was_asked_to_end_does_when_training_has() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60, check=True)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{done.stdout.strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}
