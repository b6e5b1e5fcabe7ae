from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from tests.runs import TrainedRun

# A machine under load is slow now and then, which is no fault; and a run that failed must fail again.
settings.register_profile("hvq", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("hvq")
# Exact comparisons, between processes too, hold on one kind of device and one number of threads.
os.environ["ACCELERATE_USE_CPU"] = "true"
# A shell starts what runs in the background with this signal ignored, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A whole run of tiny models, trained once; tests read it, and change copies."""
    from tests.runs import train_everything

    return train_everything(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def copied_run(trained_run: TrainedRun, tmp_path: Path) -> TrainedRun:
    """A copy of the trained run, to be changed."""
    return trained_run.copied(tmp_path / "run")


@pytest.fixture(autouse=True, scope="session")
def _memory_as_it_is() -> Iterator[None]:
    """What one test lets the process keep would be in the way of others that look at memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hvq.training.processes.keep_freed_memory", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Tests may draw from torch's global generator and still see the same numbers every time, in any order."""
    torch.manual_seed(0)


@pytest.fixture
def hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test for `datasets`, which reads its settings once; and nothing is looked for elsewhere."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
