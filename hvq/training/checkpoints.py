"""Training checkpoints: safetensors and JSON, written between optimizer steps, whole or not at all.

What comes next in training is a function of the step number (samples, learning rate, drop-out), so weights, averaged
weights, codebooks, optimizer moments and that number are everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hvq.errors import CheckpointError
from hvq.files import read_json, read_tensors, remove_folder, write_folder, write_json, write_tensors
from hvq.training.optimization import Optimization
from hvq.training.state import PARTS, gather_state, restore_state

# 2: the looks at held-out data are all among the further tensors, where 1 had the best weights and their score alone.
FORMAT_VERSION = 2
_WHAT = "training checkpoint"
# Fields that may differ from the run that is resumed: they change what is logged, or when training ends, but not what
# is computed on the way.
_FREE_FIELDS = {"log_every", "checkpoint_every", "workers", "sampling", "patience"}


class TrainingCheckpoint:
    """The checkpoint of one stage.

    Args:
        folder: where it lies.
        optimization: what is saved and restored.
        settings: what the stage depends on, as plain values; a checkpoint of others is refused.
        extra: further tensors to keep, such as the best weights so far; filled on loading.
    """

    def __init__(
        self,
        folder: Path,
        optimization: Optimization,
        settings: Mapping[str, Any],
        extra: dict[str, Tensor] | None = None,
    ) -> None:
        self.folder = folder
        self.optimization = optimization
        self.extra = {} if extra is None else extra
        self._settings = _comparable(settings)

    def save(self) -> None:
        """Write the state after the running step; the main process writes, and all wait for it."""
        parts = gather_state(self.optimization, self.extra)
        if self.optimization.accelerator.is_main_process:
            write_folder(self.folder, lambda partial: self._write(partial, parts))
        self.optimization.accelerator.wait_for_everyone()

    def _write(self, partial: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        optimization = self.optimization
        for part, tensors in parts.items():
            write_tensors(partial / f"{part}.safetensors", tensors)
        scaler = optimization.accelerator.scaler
        state = {
            "format_version": FORMAT_VERSION,
            "step": optimization.step_number,
            "scaler": None if scaler is None else scaler.state_dict(),
            "settings": self._settings,
        }
        write_json(partial / "state.json", state)

    def load_if_present(self) -> bool:
        """Restore everything; returns whether there was a checkpoint.

        Raises:
            CheckpointError: where a part is missing or damaged, or belongs to another configuration.
        """
        if not self.folder.exists():
            return False
        state = read_json(self.folder / "state.json", _WHAT)
        if state.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"training checkpoint in {self.folder} has format_version {state.get('format_version')}; "
                f"this version of hvq resumes {FORMAT_VERSION}: resume with the version that wrote it, or train "
                "without --resume"
            )
        difference = _first_difference(state.get("settings"), self._settings)
        if difference is not None:
            raise CheckpointError(
                f"training checkpoint in {self.folder} is of another configuration ({difference}); resume with the one "
                "it was made with, or train without --resume"
            )
        self._restore(state)
        return True

    def _restore(self, state: dict[str, Any]) -> None:
        optimization = self.optimization
        parts = {part: read_tensors(self.folder / f"{part}.safetensors", _WHAT)[0] for part in PARTS}
        restore_state(optimization, parts, self.folder, _WHAT)
        self.extra.update(parts["extra"])
        if state["scaler"] is not None and optimization.accelerator.scaler is not None:
            optimization.accelerator.scaler.load_state_dict(state["scaler"])
        optimization.step_number = state["step"]

    def remove(self) -> None:
        """Delete the checkpoint: the stage is done, and its result is written."""
        remove_folder(self.folder)


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
