"""Vectors of images, such as text embeddings or attributes, in one safetensors file that names the image of each.

Letters: N vectors, V numbers of each.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvq.data.findings import pack, unpack
from hvq.data.sources import ImageSource
from hvq.errors import CheckpointError, DataError
from hvq.files import read_tensors, write_tensors

VECTORS, NAMES = "vectors", "names"


@dataclass(frozen=True)
class NamedVectors:
    """What a file of vectors holds, checked.

    Attributes:
        path: the file.
        vectors: float32 `[N, V]`, finite.
        names: N, what `ImageSource.name` calls the image of each, no two alike; empty where the file has none.
    """

    path: Path
    vectors: Tensor
    names: tuple[str, ...]

    def of(self, source: ImageSource, split: str) -> Tensor:
        """The vector of every image of a split, float32 `[num_images, V]`, in the order of its images.

        The file may hold those of other images too.

        Args:
            source: the images.
            split: what they are called, for errors.

        Raises:
            DataError: where the file has no names, or no vector of some image, or images of the split share a name.
        """
        if not self.names:
            raise DataError(
                f"{self.path} must say which image each of its {len(self.vectors)} vectors is of, in `{NAMES}`; write "
                "it with hvq.data.write_vectors"
            )
        rows = {name: row for row, name in enumerate(self.names)}
        wanted = [source.name(index) for index in range(len(source))]
        twice = _repeated(wanted)
        if twice is not None:
            raise DataError(
                f"vectors are found by the names of images, and several of the {len(source)} {split} images are named "
                f"{twice!r}; give each a name of its own"
            )
        found = [rows.get(name, -1) for name in wanted]
        if -1 in found:
            missing = [name for name, row in zip(wanted, found, strict=True) if row < 0]
            raise DataError(
                f"{self.path} must hold a vector for each of the {len(source)} {split} images; of its {len(self)} none "
                f"is named {missing[0]!r}" + f", and {len(missing) - 1} more are missing" * (len(missing) > 1)
            )
        return self.vectors[torch.tensor(found, dtype=torch.int64)]

    def __len__(self) -> int:
        return len(self.vectors)


def write_vectors(path: Path | str, vectors: Tensor, names: Sequence[str] = ()) -> None:
    """Write a file of vectors, whole or not at all.

    It holds `vectors`, float32 `[N, V]`, and `names`, uint8: of each image the name, in UTF-8, and a byte 0.

    Args:
        path: of the file, `.safetensors`.
        vectors: floating point `[N, V]`.
        names: what `ImageSource.name` calls the image of each: the path relative to the folder of its split, name of
            the file and row (`train/7`) in arrays, the key in shards. None for vectors that are only drawn from.

    Raises:
        DataError: where vectors are not finite `[N, V]`, or names are not as many, all different, without a byte 0.
        StorageError: where the system does not let it be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     write_vectors(f"{scratch}/vectors.safetensors", torch.rand(2, 3), ["cat/0.png", "dog/0.png"])
    ...     read_vectors(Path(scratch) / "vectors.safetensors").names
    ('cat/0.png', 'dog/0.png')
    """
    path = Path(path)
    vectors = vectors.detach().to("cpu", torch.float32)
    _check(path, vectors, names)
    if any("\0" in name for name in names):
        raise DataError(f"names of images in {path} must not hold the character of number 0")
    tensors = {VECTORS: vectors}
    if names:
        tensors[NAMES] = torch.from_numpy(pack(names))
    write_tensors(path, tensors)


def read_vectors(path: Path | str) -> NamedVectors:
    """What `write_vectors` wrote; the vectors are mapped into memory.

    Raises:
        DataError: where the file is missing or damaged, or does not hold what is said there.
    """
    path = Path(path)
    try:
        tensors, _ = read_tensors(path, "vectors")
    except CheckpointError as error:
        raise DataError(str(error)) from None
    if VECTORS not in tensors:
        raise DataError(f"{path} must hold `{VECTORS}`; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    names = _unpacked(tensors[NAMES], path) if NAMES in tensors else ()
    _check(path, tensors[VECTORS], names)
    return NamedVectors(path, tensors[VECTORS], names)


def hash_vectors(vectors: Tensor) -> str:
    """SHA-256 over shape and bytes."""
    digest = hashlib.sha256(f"{tuple(vectors.shape)}\n".encode())
    digest.update(vectors.contiguous().numpy().data)
    return digest.hexdigest()


def _unpacked(names: Tensor, path: Path) -> tuple[str, ...]:
    if names.dtype != torch.uint8 or names.dim() != 1 or (len(names) and names[-1] != 0):
        raise DataError(
            f"`{NAMES}` of {path} must be uint8, the name of each image in UTF-8, each followed by a byte 0; write the "
            "file with hvq.data.write_vectors"
        )
    return tuple(unpack(names.numpy()))


def _check(path: Path, vectors: Tensor, names: Sequence[str]) -> None:
    if vectors.dtype != torch.float32 or vectors.dim() != 2 or 0 in vectors.shape:
        raise DataError(
            f"`{VECTORS}` of {path} must be float32 [N, V], a row for each image; received {vectors.dtype} "
            f"{list(vectors.shape)}"
        )
    if not bool(vectors.isfinite().all()):
        row = int((~vectors.isfinite().all(dim=1)).nonzero()[0])
        raise DataError(f"`{VECTORS}` of {path} must be finite; row {row} is not: leave such images out, or mend it")
    if names and len(names) != len(vectors):
        raise DataError(f"{path} must have a name for each of its {len(vectors)} vectors; it has {len(names)} names")
    twice = _repeated(names)
    if twice is not None:
        raise DataError(f"{path} must name each image once; {twice!r} occurs twice")


def _repeated(names: Sequence[str]) -> str | None:
    """The first of the names that occur more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
