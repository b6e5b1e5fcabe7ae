"""The folders of training checkpoints: one for each step, with a checksum of every file, whole or refused.

A folder `step-000000400` holds one safetensors file for each part of the state, and `state.json`: plain values, and
size and SHA-256 of each file and of itself. It is written beside, flushed and renamed, so that whatever carries the
name is whole; the checksums find what disks and copies do to it later.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hvq.errors import CheckpointError
from hvq.files import read_json, read_tensors, remove_folder, write_folder, write_json, write_tensors

STATE_FILE = "state.json"
WHAT = "training checkpoint"
_CHECKSUM = "sha256"
_NAME = re.compile(r"step-(\d{9,})")

Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class CheckpointFolders:
    """The checkpoints of one stage.

    Args:
        path: the folder in which each has a folder of its own.

    >>> CheckpointFolders(Path("checkpoints/autoencoder")).of_step(400).as_posix()
    'checkpoints/autoencoder/step-000000400'
    """

    path: Path

    def of_step(self, step: int) -> Path:
        """Where the checkpoint after `step` optimizer steps lies."""
        return self.path / f"step-{step:09d}"

    def steps(self) -> list[int]:
        """Steps of which there are checkpoints, whole or damaged, ascending."""
        found = (_NAME.fullmatch(path.name) for path in self.path.iterdir()) if self.path.is_dir() else ()
        return sorted(int(match[1]) for match in found if match)

    def newest_whole(self) -> int | None:
        """The latest step whose checkpoint is whole; None where there is none. Reads all that it judges."""
        for step in reversed(self.steps()):
            try:
                read_checkpoint(self.of_step(step))
            except CheckpointError:
                continue
            return step
        return None

    def keep(self, last: int, best: int | None) -> None:
        """Remove all but the last few, and the best.

        Args:
            last: how many.
            best: its step, where it is known.
        """
        for step in self.steps()[:-last]:
            if step != best:
                remove_folder(self.of_step(step))


def write_checkpoint(folder: Path, parts: Parts, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        folder: where it will stand.
        parts: tensors by name, for each part of the state; a file each.
        state: plain values.

    Raises:
        StorageError: where the system does not let it be written.
    """

    def write(partial: Path) -> None:
        for part, tensors in parts.items():
            write_tensors(partial / f"{part}.safetensors", tensors)
        files = {file.name: _file_entry(file) for file in sorted(partial.glob("*.safetensors"))}
        content = {**state, "files": files}
        write_json(partial / STATE_FILE, {**content, _CHECKSUM: _checksum(content)})

    write_folder(folder, write)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The plain values and the tensors, by part, of a checkpoint that is whole.

    Raises:
        CheckpointError: which names the file that is missing, damaged, or not what was written.
    """
    state = read_state(folder)
    for name, entry in state["files"].items():
        _require_whole(folder / name, entry)
    parts = {Path(name).stem: read_tensors(folder / name, WHAT)[0] for name in state["files"]}
    return state, parts


def read_state(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        CheckpointError: where they are missing, or not what was written.
    """
    state = read_json(folder / STATE_FILE, WHAT)
    content = {name: value for name, value in state.items() if name != _CHECKSUM}
    if state.get(_CHECKSUM) != _checksum(content) or not isinstance(state.get("files"), dict):
        raise CheckpointError(f"{WHAT} at {folder / STATE_FILE} is damaged: its checksum is not that of its content")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_entry(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {"bytes": file.stat().st_size, _CHECKSUM: hashlib.file_digest(content, "sha256").hexdigest()}


def _require_whole(file: Path, entry: Mapping[str, Any]) -> None:
    try:
        found = _file_entry(file)
    except FileNotFoundError:
        raise CheckpointError(f"no {WHAT} at {file}: the file is missing") from None
    except OSError as error:
        raise CheckpointError(f"{WHAT} at {file} cannot be read: {error}") from None
    if found["bytes"] != entry["bytes"]:
        raise CheckpointError(f"{WHAT} at {file} is damaged: it has {found['bytes']} of {entry['bytes']} bytes")
    if found != entry:
        raise CheckpointError(f"{WHAT} at {file} is damaged: its checksum is not that of what was written")
