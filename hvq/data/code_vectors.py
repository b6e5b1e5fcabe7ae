"""The vectors of the images of a split, beside their codes: one row for each image, whatever the augmented epochs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hvq.data.code_files import CodesDescription
from hvq.data.vectors import hash_vectors
from hvq.errors import CheckpointError
from hvq.files import read_tensors, write_tensors

VECTORS_FILE = "vectors.safetensors"
_NAME, _ENTRY = "vectors", "vectors_hash"
_ROWS_AT_ONCE = 4_096


def write_code_vectors(folder: Path, vectors: Tensor) -> None:
    """Write the vectors, float32 `[num_images, V]`, whole or not at all."""
    write_tensors(folder / VECTORS_FILE, {_NAME: vectors}, {_ENTRY: hash_vectors(vectors)})


def read_code_vectors(folder: Path, description: CodesDescription) -> Tensor:
    """The vectors, mapped, so that a batch reads its own rows.

    Raises:
        CheckpointError: where they are missing, cut short, or others than the description says.
    """
    path = folder / VECTORS_FILE
    tensors, metadata = read_tensors(path, "vectors beside codes")
    shape = (description.num_images, description.vector_size)
    found = tensors.get(_NAME, torch.zeros(0))
    if found.dtype != torch.float32 or found.shape != shape or metadata.get(_ENTRY) != description.vectors_hash:
        raise CheckpointError(
            f"{path} must hold the vectors, float32 {list(shape)}, of the codes beside it, and does not; extract the "
            "codes again, with --resume to keep those that are whole"
        )
    return found


def require_whole_vectors(folder: Path, description: CodesDescription) -> None:
    """Refuse vectors that are not those of the description to the last bit; all of them are read.

    Raises:
        CheckpointError: where they are missing, damaged, or others than the description says.
    """
    if description.vector_size and hash_vectors(read_code_vectors(folder, description)) != description.vectors_hash:
        raise CheckpointError(
            f"{folder / VECTORS_FILE} is damaged: its vectors must have the hash {description.vectors_hash}, and have "
            "another; extract the codes again, with --resume to keep those that are whole"
        )


def vector_statistics(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each number, float64 `[V]`, over all rows of `[N, V]`.

    >>> mean, deviation = vector_statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), deviation.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    """
    mean = sum((part.double().sum(dim=0) for part in vectors.split(_ROWS_AT_ONCE)), torch.zeros(())) / len(vectors)
    # Around the mean, for sums of squares lose what little there is around a large one.
    squares = ((part.double() - mean).square().sum(dim=0) for part in vectors.split(_ROWS_AT_ONCE))
    return mean, (sum(squares, torch.zeros(())) / len(vectors)).sqrt()
