"""Folders of a model: `model.safetensors`, `config.json` with a `format_version`, and a model card."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from hvq.config_base import FrozenModel
from hvq.errors import CheckpointError, StorageError
from hvq.files import read_json, write_folder, write_json, write_tensors

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
PICTURES = "pictures"

# Fields by which a description is told from those of other models.
_MARKS = {"autoencoder": "autoencoder", "quantizer": "quantizer", "level": "prior"}
_CLASSES = {"autoencoder": "Autoencoder", "quantizer": "Quantizer", "prior": "Prior"}

Description = TypeVar("Description", bound=BaseModel)


def write_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    description: FrozenModel,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a model's folder, whole or not at all; what stood there is replaced.

    Args:
        folder: where it will stand.
        weights: a `state_dict`, in whole tensors.
        description: its `config.json`.
        also: is given the folder, to write more into it.

    Raises:
        StorageError: where the system does not let it be written.
    """

    def write(partial: Path) -> None:
        write_model_files(partial, weights, description)
        if also is not None:
            also(partial)

    write_folder(folder, write)


def write_model_files(folder: Path, weights: Mapping[str, Tensor], description: FrozenModel) -> None:
    """The two files alone, into a folder that is being written."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, description.model_dump(mode="json"))


def require_replaceable(folder: Path, own: Collection[str]) -> None:
    """Refuse to replace a folder that holds more than an earlier call has written there.

    Args:
        folder: which would be replaced as a whole, if it is there.
        own: names of files and folders that such a call writes.

    Raises:
        StorageError: where there is anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(folder, "a file of that name stands there")
    others = sorted(path.name for path in folder.iterdir() if path.name not in own) if folder.is_dir() else []
    if others:
        more = f" and {len(others) - 1} more" * (len(others) > 1)
        raise StorageError(
            folder, f"a model's folder is replaced as a whole, and this one holds other things, {others[0]}{more}"
        )


def read_description(folder: Path, kind: type[Description], what: str) -> Description:
    """The `config.json` of a model's folder.

    Args:
        folder: of the model.
        kind: of description; its `format_version` has the newest one as default.
        what: the model is ("prior").

    Raises:
        CheckpointError: where it is missing, of another kind of model, of another version, or malformed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no {what} in {folder}: train it first, or check the path")
    _require_kind(folder, what)
    content = read_json(folder / CONFIG, f"{what} configuration")
    _require_version(content.get("format_version"), kind.model_fields["format_version"].default, f"{what} in {folder}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{what} configuration in {folder}: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """The first fault that pydantic found, as a path and a few words."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _require_kind(folder: Path, what: str) -> None:
    """Say where else to turn, where the folder is that of another model, or of a whole hierarchy."""
    content = read_json(folder / CONFIG, f"{what} configuration") if (folder / CONFIG).exists() else {}
    if "format_version" in content:
        found = next((model for mark, model in _MARKS.items() if mark in content), what)
        if found != what:
            raise CheckpointError(
                f"no {what} in {folder}: what stands there is of kind {found}, which {_CLASSES[found]}.from_pretrained "
                "loads"
            )
    elif (folder / "autoencoder" / CONFIG).exists():
        raise CheckpointError(
            f"no {what} in {folder}, which holds a whole hierarchy: name one of its folders, such as "
            f"subfolder='{'priors/top' if what == 'prior' else 'autoencoder'}', or load it all with HierarchicalVQ or "
            "Hierarchy"
        )


def _require_version(version: Any, newest: int, what: str) -> None:
    if version == newest:
        return
    newer = isinstance(version, int) and version > newest
    way_out = ": a newer version wrote it, so upgrade hvq" if newer else ""
    raise CheckpointError(f"{what} has format_version {version}; this version of hvq reads {newest}{way_out}")
