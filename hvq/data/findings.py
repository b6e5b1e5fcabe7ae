"""What reading a data set once has found out, kept in the user's cache folder: lists of files, indices of shards.

Nothing depends on it. A file that is missing, damaged, of other data, or cannot be written costs time alone, and
processes that write the same one at the same time each leave a whole one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from hvq.caching import cache_folder
from hvq.errors import CheckpointError
from hvq.files import read_tensors, write_tensors

# Of the arrays that are kept, and of the rules by which they were found.
_VERSION = "1"

Arrays = dict[str, NDArray[Any]]


def recall(what: str, key: str, stamp: str) -> Arrays | None:
    """The arrays last kept by `keep`; None where there are none, or they are damaged or of another stamp.

    Args:
        what: kind of finding, which the file's name begins with.
        key: names the data.
        stamp: changes when the data do.
    """
    try:
        tensors, metadata = read_tensors(_place(what, key), what)
    except (CheckpointError, OSError, RuntimeError, ValueError):
        return None
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return arrays if metadata == _metadata(key, stamp, arrays) else None


def keep(what: str, key: str, stamp: str, arrays: Arrays) -> None:
    """Leave arrays for `recall`, or nothing where nothing can be written."""
    try:
        write_tensors(
            _place(what, key),
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            _metadata(key, stamp, arrays),
        )
    except (OSError, RuntimeError, ValueError, SafetensorError):
        return


def pack(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts without the character of number 0, as bytes.

    >>> unpack(pack(["cat/0.png", "", "häh"]))
    ['cat/0.png', '', 'häh']
    >>> unpack(pack([]))
    []
    """
    joined = "".join(f"{text}\0" for text in texts)
    return np.frombuffer(joined.encode("utf-8", "surrogateescape"), np.uint8).copy()


def unpack(packed: NDArray[np.uint8]) -> list[str]:
    """The inverse of `pack`."""
    return packed.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def _place(what: str, key: str) -> Path:
    return cache_folder() / "data" / f"{what}-{_hash(key.encode('utf-8', 'surrogateescape'))}.safetensors"


def _metadata(key: str, stamp: str, arrays: Arrays) -> dict[str, str]:
    """What tells that a file is whole, and of which data."""
    parts = [part for name in sorted(arrays) for part in (name.encode(), arrays[name].tobytes())]
    digest = _hash(*parts)
    return {"version": _VERSION, "of": _hash(f"{key}\0{stamp}".encode("utf-8", "surrogateescape")), "digest": digest}


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
