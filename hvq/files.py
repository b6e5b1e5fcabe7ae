"""Files that are whole or absent: written beside, flushed to disk, renamed; read with errors that name the fault."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hvq.errors import CheckpointError, StorageError

PARTIAL, OLD = ".partial", ".old"
"""How names of files and folders end that are being written, or removed; hidden, and never read."""

# What the format allows.
_LONGEST_HEADER = 100_000_000


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk rather than in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, ending: str = PARTIAL) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{ending}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against writing `path`, inside, becomes a `StorageError`; of a folder, not of its files."""
    try:
        yield
    except StorageError as error:
        raise StorageError(path, error.reason) from None
    except SafetensorError as error:
        # It wraps what the system said in an error of its own.
        raise StorageError(path, str(error)) from error
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Make a file so that a reader sees the old one or the whole new one.

    Args:
        path: where the file will stand; its folder is made.
        write: is given the path beside it to write to.

    Raises:
        StorageError: where the system does not let it be written.
    """
    partial = _beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            flush(partial)
            os.replace(partial, path)
            flush(path.parent)
        finally:
            _remove(partial)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make a folder so that a reader sees the old one or the whole new one, never a mixture.

    Args:
        path: where the folder will stand; what stood there is removed once the new one is whole.
        write: is given the empty folder beside it to fill.

    Raises:
        StorageError: where the system does not let it be written.
    """
    partial = _beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path.parent, f".{escape(path.name)}.")
        partial.mkdir()
        try:
            write(partial)
            for file in partial.rglob("*"):
                flush(file)
            flush(partial)
            _put(partial, path)
            flush(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, path: Path) -> None:
    """Give the whole new folder its name; an old one of that name takes the new one's, to be removed."""
    if not path.exists():
        os.replace(partial, path)
        return
    if _exchange(partial, path):
        return
    # Two renames, where the system knows no exchange: killed between them, the old folder is the one that ends in
    # OLD, and the next writer gives it back its name.
    old = _beside(path, OLD)
    os.replace(path, old)
    try:
        os.replace(partial, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; returns whether the system can (Linux, on most file systems)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _remove(path: Path) -> None:
    # A full or read-only file system is what the caller is about to hear of.
    with suppress(OSError):
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Clear a folder of what writers that were killed have left, files and folders; for its only writer to call."""
    _clear_leftovers(folder, ".")


def _clear_leftovers(folder: Path, prefix: str) -> None:
    """Clear what writers have left under names that begin so; an old folder is put back where there is no new one."""
    for path in folder.glob(f"{prefix}*{OLD}"):
        original = path.with_name(path.name[1:].removesuffix(OLD).rpartition(".")[0])
        if not original.exists():
            os.replace(path, original)
    for path in [*folder.glob(f"{prefix}*{PARTIAL}"), *folder.glob(f"{prefix}*{OLD}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            _remove(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, so that no reader sees a part of it; for its only writer to call."""
    with writing(path):
        _clear_leftovers(path.parent, f".{escape(path.name)}.")
        if path.exists():
            # Not OLD, which would be given back its name.
            gone = _beside(path)
            os.replace(path, gone)
            shutil.rmtree(gone)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinities are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_file(path, write)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from `path`.

    Args:
        path: the file.
        what: what it is, for the error ("autoencoder configuration").

    Raises:
        CheckpointError: where it is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no {what} at {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{what} at {path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} at {path} must be a JSON object; it is a {type(value).__name__}")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with one JSON object in each line; none where there is no file.

    A last line without its line break is left out: whoever wrote it was interrupted.

    Raises:
        CheckpointError: where another line is not a JSON object.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); mend or remove the file") from None
    return [_parse_row(line, path) for line in text[: text.rfind("\n") + 1].splitlines() if line]


def _parse_row(line: str, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} holds a line that is not JSON ({error}); mend or remove the file") from None
    if not isinstance(row, dict):
        raise CheckpointError(f"each line of {path} must be a JSON object; one is a {type(row).__name__}")
    return row


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, whole or not at all."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        storage = here.untyped_storage()
        # Of storage that is shared safetensors writes nothing; what lies alone, such as a large model, is not copied.
        alone = storage.nbytes() == here.nbytes and storage.data_ptr() not in storages
        plain[name] = here if alone else here.clone()
        storages.add(storage.data_ptr())
    write_file(path, lambda partial: save_file(plain, str(partial), metadata=dict(metadata or {}) or None))


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        CheckpointError: where the file is missing, truncated, or not safetensors; which, and what to do.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"no {what} at {path}") from None
    except (OSError, SafetensorError) as error:
        cause = _why_no_tensors(path) or str(error)
        raise CheckpointError(f"{what} at {path} is damaged or is not a safetensors file: {cause}") from None


# How files begin that stand in place of tensors, and what they are.
_STRANGERS = {
    b"version https://git-lfs": "it is the pointer that git-lfs puts in its place; run `git lfs pull` where it lies, "
    "or download the file itself",
    b"PK\x03\x04": "it is a zip archive, such as torch.save writes, which may hold code and is not read; convert it to "
    "safetensors",
    b"\x80\x02": "it is a pickle, which may hold code and is not read; convert it to safetensors",
    b"<": "it is a page of the web; download the file itself",
}


def _why_no_tensors(path: Path) -> str:
    """Why a file is not safetensors, from its first bytes and its length; empty where they do not tell."""
    if not path.is_file():
        return ""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(32)
        # After its length, a header begins with a brace.
        strange = first[8:9] != b"{"
        for beginning, cause in _STRANGERS.items():
            if strange and first.startswith(beginning):
                return cause
        file.seek(0)
        wanted = _wanted_size(file, size)
    if size < wanted:
        return f"it is cut short, at {size:,} bytes of {wanted:,}; copy or download it again"
    return ""


def _wanted_size(file: BinaryIO, size: int) -> int:
    """How long a safetensors file would be: 8 bytes that hold the length of a header of JSON, it, and the tensors."""
    length = int.from_bytes(file.read(8), "little")
    # A length beyond all sense is that of another kind of file.
    if size < 8 or length > _LONGEST_HEADER:
        return 0
    if 8 + length > size:
        return 8 + length
    try:
        header = json.loads(file.read(length))
        return 8 + length + max(entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 0
