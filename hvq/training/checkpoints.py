"""Training checkpoints: safetensors and JSON, written between optimizer steps, whole or not at all.

What comes next in training is a function of the step number (samples, learning rate, drop-out), so weights, averaged
weights, codebooks, optimizer moments, what is being counted for the log, and that number are everything: no random
generator has a state that outlives a step.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib.metadata import version
from itertools import count, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hvq.distributed import Reduction
from hvq.errors import CheckpointError, StorageError
from hvq.files import remove_folder, remove_leftovers, writing
from hvq.training.checkpoint_files import WHAT, CheckpointFolders, Parts, read_checkpoint, write_checkpoint
from hvq.training.optimization import Optimization
from hvq.training.settings import comparable, first_difference
from hvq.training.state import KEPT, gather_state, restore_state

# 3: a folder for each step, with checksums; what is counted between two lines of the log is kept as well.
FORMAT_VERSION = 3


class Kept(Protocol):
    """Something beside the model that a resumed run goes on with: counts, scores, the best weights so far."""

    def kept_tensors(self, reduction: Reduction) -> dict[str, Tensor]:
        """All of it, over all processes; every process asks."""
        ...

    def take_back(self, tensors: dict[str, Tensor], reduction: Reduction) -> None:
        """What `kept_tensors` gave; every process is handed it."""
        ...


class TrainingCheckpoint:
    """The checkpoints of one stage: the last few, and the one of the best look at held-out data.

    Args:
        folder: where they lie.
        optimization: what is saved and restored.
        settings: what the stage depends on, as plain values; a checkpoint of others is refused.
        kept: what else is saved and restored, by name.
    """

    def __init__(
        self,
        folder: Path,
        optimization: Optimization,
        settings: Mapping[str, Any],
        *,
        kept: Mapping[str, Kept] | None = None,
    ) -> None:
        self.folders = CheckpointFolders(folder)
        self.optimization = optimization
        self.kept = dict(kept or {})
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._settings = comparable(settings)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._started, self._seconds_before = time.perf_counter(), 0.0
        # Later than the one that training goes on from; they stay until it has one of its own.
        self._done_anew: list[int] = []

    @property
    def seconds(self) -> float:
        """What training has taken so far, with what led to the checkpoint that it goes on from."""
        return self._seconds_before + time.perf_counter() - self._started

    # --- saving ---

    def save(self) -> None:
        """Copy the state after the running step, on all processes; the main one writes it as training goes on.

        Raises:
            StorageError: where the one before could not be written.
        """
        optimization = self.optimization
        # First, so that memory holds one copy at a time.
        self.wait()
        parts = gather_state(optimization, self._kept_tensors())
        if optimization.accelerator.is_main_process:
            self._writing = self._writer.submit(self._write, optimization.step_number, parts, self._state())

    def offer(self, score: float) -> bool:
        """Whether this look at held-out data, the lower the better, was the best so far; it is remembered as that."""
        # NaN is never the best.
        best = score == score and (self.best_score is None or score < self.best_score)
        if best:
            self.best_score, self.best_step = score, self.optimization.step_number
        return best

    def check(self) -> None:
        """Raise what went wrong in writing the last one, once that is known; never waits."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last one is written.

        Raises:
            StorageError: where it cannot be.
        """
        running, self._writing = self._writing, None
        if running is not None:
            running.result()

    def settle(self) -> None:
        """Have the last one on disk before any process ends: launchers end all of them with the first that does.

        Raises:
            StorageError: on the main process, where it cannot be written.
        """
        self.wait()
        self.optimization.accelerator.wait_for_everyone()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """However training ends, what is being written is finished first; what else went wrong is told rather."""
        with nullcontext() if kind is None else suppress(StorageError):
            self.wait()

    def _write(self, step: int, parts: Parts, state: Mapping[str, Any]) -> None:
        write_checkpoint(self.folders.of_step(step), parts, state)
        for done_anew in self._done_anew:
            if done_anew != step:
                remove_folder(self.folders.of_step(done_anew))
        self._done_anew = []
        self.folders.keep(self.optimization.config.keep_checkpoints, state["best_step"])

    def _state(self) -> dict[str, Any]:
        scaler = self.optimization.accelerator.scaler
        return {
            "format_version": FORMAT_VERSION,
            "step": self.optimization.step_number,
            "skipped_in_a_row": self.optimization.skipped_in_a_row,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "scaler": None if scaler is None else scaler.state_dict(),
            "settings": self._settings,
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("hvq", "torch", "accelerate")},
            },
        }

    def _kept_tensors(self) -> dict[str, Tensor]:
        reduction = self.optimization.reduction
        return {
            f"{name}/{key}": tensor
            for name, kept in self.kept.items()
            for key, tensor in kept.kept_tensors(reduction).items()
        }

    def last_good(self) -> str:
        """A sentence that names the last checkpoint, and what to do with it; all processes give the same."""
        steps = self.folders.steps()
        if not steps:
            return "There is no checkpoint yet"
        folder = self.folders.of_step(steps[-1])
        return f"The last checkpoint is of step {steps[-1]}; with other settings, begin from it by --init-from {folder}"

    # --- going on ---

    def load_if_present(self, step: int | None = None) -> bool:
        """Restore everything; returns whether there was a checkpoint.

        Args:
            step: of the checkpoint that is wanted; the newest by default.

        Raises:
            CheckpointError: where a part is missing or damaged, or belongs to another configuration; the newest that
                is whole is named.
        """
        steps = self.folders.steps()
        newest = self._first_finds(steps[-1] if steps else -1)
        if step is None and newest < 0:
            return False
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"no {WHAT} of step {step} in {self.folders.path}; there are: {there}")
        folder = self.folders.of_step(newest if step is None else step)
        state, parts = self._read(folder)
        self._require_mine(folder, state)
        self._restore(folder, state, parts)
        return True

    def _first_finds(self, number: int) -> int:
        """What the first process says, for all: shared file systems do not show everyone the same at once."""
        device = self.optimization.accelerator.device
        return int(self.optimization.reduction.first(torch.tensor(number, device=device)))

    def _read(self, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        try:
            return read_checkpoint(folder)
        except CheckpointError as error:
            whole = self.folders.newest_whole()
            way = (
                "no other one is whole: train without --resume"
                if whole is None
                else f"the newest whole one is of step {whole}: go on from it with --resume-at {whole}, which each "
                "stage's own script takes"
            )
            raise CheckpointError(f"{error}; {way}") from None

    def _require_mine(self, folder: Path, state: Mapping[str, Any]) -> None:
        if state.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{WHAT} in {folder} has format_version {state.get('format_version')}; this version of hvq resumes "
                f"{FORMAT_VERSION}: resume with the version that wrote it, or train without --resume"
            )
        difference = first_difference(comparable(state.get("settings", {})), self._settings)
        if difference is not None:
            raise CheckpointError(
                f"{WHAT} in {folder} is of another configuration ({difference}); resume with the one it was made with, "
                "or train without --resume"
            )

    def _restore(self, folder: Path, state: Mapping[str, Any], parts: Mapping[str, dict[str, Tensor]]) -> None:
        optimization = self.optimization
        restore_state(optimization, parts, folder, WHAT)
        for name, kept in self.kept.items():
            prefix = f"{name}/"
            mine = {key.removeprefix(prefix): t for key, t in parts[KEPT].items() if key.startswith(prefix)}
            kept.take_back(mine, optimization.reduction)
        if state["scaler"] is not None and optimization.accelerator.scaler is not None:
            optimization.accelerator.scaler.load_state_dict(state["scaler"])
        optimization.step_number = state["step"]
        optimization.skipped_in_a_row = state["skipped_in_a_row"]
        self.best_score, self.best_step = state["best_score"], state["best_step"]
        self._seconds_before = state.get("seconds", 0.0)

    # --- beginnings and ends ---

    def begin(self, *, resumed: bool) -> str | None:
        """Make ready to save: what is left of an earlier training is not to mix with this one. All processes call it.

        Args:
            resumed: whether this training goes on from one of the checkpoints.

        Returns:
            What a person should know: that checkpoints of an earlier training are set aside, and where.
        """
        # None is still being read by another process.
        self.optimization.accelerator.wait_for_everyone()
        if not self.optimization.accelerator.is_main_process:
            return None
        path = self.folders.path
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            steps = self.folders.steps()
            if resumed:
                self._done_anew = [step for step in steps if step > self.optimization.step_number]
            elif steps:
                aside = next(folder for folder in self._asides() if not folder.exists())
                path.rename(aside)
                # That it is there says that training has begun (`is_done`).
                path.mkdir()
        if resumed or not steps:
            return None
        return (
            f"checkpoints of an earlier training, up to step {steps[-1]}, are set aside in {aside} until this one is "
            "done"
        )

    def is_done(self, result: Path) -> bool:
        """Whether the stage's result is there, and no training has begun since; all processes are told the same."""
        return self._first_finds(int(result.exists() and not self.folders.path.exists())) > 0

    def _asides(self) -> Iterator[Path]:
        """Where checkpoints of earlier trainings are set aside: the first, the second ..."""
        for number in count(1):
            ending = "" if number == 1 else f"-{number}"
            yield self.folders.path.with_name(f"{self.folders.path.name}.earlier{ending}")

    def remove(self) -> None:
        """Delete all of them: the stage is done, and its result is written."""
        self.wait()
        # Last the one that says that training has begun.
        for folder in [*takewhile(Path.exists, self._asides()), self.folders.path]:
            remove_folder(folder)
