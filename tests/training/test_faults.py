"""What becomes of the other processes where one fails, is killed, hangs, or does something alone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hvq.config import RunConfig
from hvq.data.pixels import bytes_to_model
from hvq.errors import DataError
from hvq.storage import RunFolder
from hvq.training import extract_codes, fit_autoencoder
from hvq.training.optimization import Optimization, StepReport
from tests.disks import largest_file
from tests.processes import end_in_processes, run_in_processes
from tests.runs import TrainedRun, changed

GONE = "another process of this run has ended; see what it said, mend that, and start again"


def _broken() -> None:
    raise DataError("image 5 is broken")


def _bug() -> None:
    raise KeyError("a bug")


FAULTS: dict[str, Callable[[], None]] = {
    "an image": _broken,
    "a bug": _bug,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def _at_step(step: int, do: Callable[[Optimization], object]) -> None:
    """Do something before an optimizer step, in this process."""
    original = Optimization.step

    def changed_step(self: Optimization, *words: Any) -> StepReport:
        if self.step_number == step:
            do(self)
        return original(self, *words)

    Optimization.step = changed_step  # type: ignore[method-assign]


def _train(plain: dict[str, Any], folder: str, fault: str, failing: int) -> None:
    if int(os.environ["RANK"]) == failing:
        _at_step(2, lambda _: FAULTS[fault]())
    fit_autoencoder(RunConfig.model_validate(plain), RunFolder(folder))


def _ended(run: TrainedRun, folder: Path, processes: int, fault: str, failing: int, **changes: Any) -> list[Any]:
    plain = changed(run.config, **changes).model_dump(mode="json")
    awaited = [rank for rank in range(processes) if rank != failing or fault != "stopped"]
    return end_in_processes(_train, processes, plain, str(folder), fault, failing, awaited=awaited)


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "failing"), [(2, 1), (4, 3), (2, 0)])
def test_where_one_cannot_go_on_it_says_why_and_all_end(
    trained_run: TrainedRun, tmp_path: Path, processes: int, failing: int
) -> None:
    ended = _ended(trained_run, tmp_path, processes, "an image", failing)
    assert [process.code for process in ended] == [1] * processes
    who = [f" in process {rank}" if rank else "" for rank in range(processes)]
    for rank, process in enumerate(ended):
        sentence = "image 5 is broken" if rank == failing else GONE
        assert process.errors == [f"error{who[rank]}: {sentence}"]


@pytest.mark.processes
@pytest.mark.parametrize(("fault", "code"), [("killed", -signal.SIGKILL), ("a bug", 1)])
def test_where_one_dies_the_other_says_so_and_ends(
    trained_run: TrainedRun, tmp_path: Path, fault: str, code: int
) -> None:
    ended = _ended(trained_run, tmp_path, 2, fault, 1)
    assert [process.code for process in ended] == [1, code]
    assert ended[0].errors == [f"error: {GONE}"]
    assert ended[1].errors == (["KeyError: 'a bug'"] if fault == "a bug" else [])


@pytest.mark.processes
def test_where_one_hangs_the_other_ends_after_the_time_that_was_set(trained_run: TrainedRun, tmp_path: Path) -> None:
    ended = _ended(trained_run, tmp_path, 2, "stopped", 1, process_timeout=8)
    assert [process.code for process in ended] == [1, None]
    (sentence,) = ended[0].errors
    assert re.fullmatch(
        r"error: another process of this run did not answer (for 8 seconds )?\(process_timeout\): see what it said, "
        "and start again, with a longer process_timeout if it was still at work",
        sentence,
    )


def _full_disk(plain: dict[str, Any], folder: str) -> None:
    """Of the main process alone, which writes checkpoints."""
    with largest_file(500 if os.environ["RANK"] == "0" else 10**9):
        fit_autoencoder(RunConfig.model_validate(plain), RunFolder(folder))


def _full_disk_of_codes(plain: dict[str, Any], folder: str) -> None:
    with largest_file(500 if os.environ["RANK"] == "0" else 10**9):
        extract_codes(RunConfig.model_validate(plain), RunFolder(folder))


@pytest.mark.processes
@pytest.mark.parametrize("function", [_full_disk, _full_disk_of_codes])
def test_where_the_main_process_cannot_write_all_end(
    trained_run: TrainedRun, tmp_path: Path, function: Callable[[dict[str, Any], str], None]
) -> None:
    config = changed(trained_run.config, autoencoder_training__checkpoint_every=2)
    run = trained_run.copied(tmp_path / "run").run
    ended = end_in_processes(function, 2, config.model_dump(mode="json"), str(run.path))
    assert [process.code for process in ended] == [1, 1]
    (sentence,) = ended[0].errors
    assert sentence.startswith("error: ")
    assert "File too large" in sentence
    assert ended[1].errors == [f"error in process 1: {GONE}"]


def _previewed(plain: dict[str, Any], folder: str, preview: bool) -> dict[str, Any]:
    """Train a few steps; the main process looks at pictures of its own in between, and is slow about it."""
    config = RunConfig.model_validate(plain)

    def look(optimization: Optimization) -> None:
        images = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
        model = optimization.model
        with torch.no_grad():
            model.decode(model.encode(bytes_to_model(images)))
        model(bytes_to_model(images))
        time.sleep(0.1)

    if preview and os.environ["RANK"] == "0":
        for step in (1, 3):
            _at_step(step, look)
    return {name: tensor.numpy() for name, tensor in fit_autoencoder(config, RunFolder(folder)).state_dict().items()}


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 4])
def test_what_the_main_process_looks_at_alone_changes_nothing_and_hangs_nobody(
    trained_run: TrainedRun, tmp_path: Path, processes: int
) -> None:
    """k-means start, revival, and a held-out split of 23 in chunks of 7, whose last one is short and of one process."""
    config = changed(
        trained_run.config,
        autoencoder_training__steps=7,
        autoencoder__levels__top__quantizer={"kind": "vector", "revival_threshold": 0.5},
    )
    plain = config.model_dump(mode="json")
    expected = run_in_processes(_previewed, processes, plain, str(tmp_path / "without"), False)
    found = run_in_processes(_previewed, processes, plain, str(tmp_path / "with"), True)
    for state in [*expected[1:], *found]:
        assert state.keys() == expected[0].keys()
        for name, value in expected[0].items():
            assert (state[name] == value).all(), name
    rows = [row for row in RunFolder(tmp_path / "with").lines() if "revived.top" in row]
    assert sum(row["revived.top"] for row in rows) > 0
