"""Training checkpoints: safetensors and JSON, written between optimizer steps, whole or not at all.

What comes next in training is a function of the step number (samples, learning rate, drop-out), so weights, averaged
weights, codebooks, optimizer moments, what is being counted for the log, and that number are everything: no random
generator has a state that outlives a step.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib.metadata import version
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
from hvq.training.state import KEPT, gather_state, restore_state

# 3: a folder for each step, with checksums; what is counted between two lines of the log is kept as well.
FORMAT_VERSION = 3
# Fields that may differ from the run that is resumed: they change what is logged, or when training ends, but not what
# is computed on the way.
_FREE_FIELDS = {
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "patience",
    "sampling",
    "skipped_steps",
    "workers",
}


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
        self._settings = _comparable(settings)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    # --- saving ---

    def save(self) -> None:
        """Copy the state after the running step, on all processes; the main one writes it as training goes on.

        Raises:
            StorageError: where the one before could not be written.
        """
        optimization = self.optimization
        parts = gather_state(optimization, self._kept_tensors())
        if optimization.accelerator.is_main_process:
            self.wait()
            self._writing = self._writer.submit(self._write, optimization.step_number, parts, self._state())

    def offer(self, score: float) -> bool:
        """Whether this look at held-out data, the lower the better, was the best so far; it is remembered as that."""
        # NaN is better than nothing.
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
        self.folders.keep(self.optimization.config.keep_checkpoints, state["best_step"])

    def _state(self) -> dict[str, Any]:
        scaler = self.optimization.accelerator.scaler
        return {
            "format_version": FORMAT_VERSION,
            "step": self.optimization.step_number,
            "skipped_in_a_row": self.optimization.skipped_in_a_row,
            "best_score": self.best_score,
            "best_step": self.best_step,
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

    def _first_finds(self, step: int) -> int:
        """What the first process says, for all: shared file systems do not show everyone the same at once."""
        device = self.optimization.accelerator.device
        return int(self.optimization.reduction.first(torch.tensor(step, device=device)))

    def _read(self, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        try:
            return read_checkpoint(folder)
        except CheckpointError as error:
            whole = self.folders.newest_whole()
            way = (
                "no other one is whole: train without --resume"
                if whole is None
                else f"the newest whole one is of step {whole}: go on from it with --resume-at {whole}"
            )
            raise CheckpointError(f"{error}; {way}") from None

    def _require_mine(self, folder: Path, state: Mapping[str, Any]) -> None:
        if state.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{WHAT} in {folder} has format_version {state.get('format_version')}; this version of hvq resumes "
                f"{FORMAT_VERSION}: resume with the version that wrote it, or train without --resume"
            )
        difference = _first_difference(state.get("settings"), self._settings)
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
                # Later ones are damaged, or of what is done anew now.
                for step in steps:
                    if step > self.optimization.step_number:
                        remove_folder(self.folders.of_step(step))
            elif steps:
                remove_folder(self._aside)
                path.rename(self._aside)
        if resumed or not steps:
            return None
        return (
            f"checkpoints of an earlier training, up to step {steps[-1]}, are set aside in {self._aside} until this "
            "one is done"
        )

    @property
    def _aside(self) -> Path:
        return self.folders.path.with_name(f"{self.folders.path.name}.earlier")

    def remove(self) -> None:
        """Delete all of them: the stage is done, and its result is written."""
        self.wait()
        remove_folder(self.folders.path)
        remove_folder(self._aside)


def _comparable(value: Any) -> Any:
    """Plain values without the fields that may differ."""
    if isinstance(value, Mapping):
        return {key: _comparable(item) for key, item in value.items() if key not in _FREE_FIELDS}
    return value


def _first_difference(saved: Any, wanted: Any, path: str = "") -> str | None:
    """Where two trees of plain values differ first, in words; None where they do not."""
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        for key in [*wanted, *(key for key in saved if key not in wanted)]:
            difference = _first_difference(saved.get(key), wanted.get(key), f"{path}.{key}" if path else key)
            if difference is not None:
                return difference
        return None
    return None if saved == wanted else f"{path or 'settings'} is {wanted}, and was {saved}"
