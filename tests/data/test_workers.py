"""Workers that are asked to end along with training go on until it has ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from itertools import islice

import pytest
import torch

from hvq.data import TensorImages, TrainingStream


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


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}
