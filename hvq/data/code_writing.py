"""Writing the codes of a split: by any number of processes, beside those that are there, resumable at any instant."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hvq.data.code_files import (
    INDEX_FILE,
    CodesDescription,
    Counts,
    count_columns,
    empty_columns,
    open_verified,
    partial_folder,
    read_counts,
    read_index,
    shard_name,
    write_index,
    write_shard,
)
from hvq.data.code_vectors import VECTORS_FILE, require_whole_vectors, write_code_vectors
from hvq.errors import CheckpointError, DataError
from hvq.files import flush, writing
from hvq.level_names import in_level_order


class CodeExtraction:
    """The codes of one split in the making.

    They are written into a folder beside, and take the place of codes that are there only when they are whole; so the
    disk must hold both for a while. Whatever is interrupted, each file is whole or absent, and `begin` with `resume`
    keeps those that are whole and of the same description. One process calls `begin` before, and `finish` after all of
    them have written their files.

    Args:
        folder: the folder of codes.
        split: "train" or "validation".
        description: what the codes are.

    Attributes:
        in_place: whether files are written among codes that are there already, because these are of the same
            description: only files that are damaged are made anew, and vectors that are others. `begin` decides it,
            for all processes.
    """

    def __init__(self, folder: Path, split: str, description: CodesDescription) -> None:
        self.target = folder / split
        self.description = description
        self.in_place = False
        self._partial = partial_folder(self.target)
        self._old = folder / f".{split}.old"

    @property
    def path(self) -> Path:
        """Where files are written."""
        return self.target if self.in_place else self._partial

    def begin(self, *, resume: bool = False) -> None:
        """Make ready to write.

        Args:
            resume: keep what an earlier call has written; it is thrown away otherwise. Codes that are whole stay.

        Raises:
            HVQError: where the disk is full, or nothing may be written there.
        """
        with writing(self.target.parent):
            self._settle()
            self.in_place = resume and self._is_whole()
            if self._partial.exists() and (self.in_place or not resume):
                shutil.rmtree(self._partial)
            if not self.in_place:
                self._partial.mkdir(parents=True, exist_ok=True)
                _keep_only(self._partial, {shard_name(shard) for shard in range(self.description.num_shards)})

    def kept(self, shard: int) -> Counts | None:
        """Counts of a file that is there and whole, to the last bit; None where it must be written."""
        columns = open_verified(self.path, self.description, shard)
        return None if columns is None else count_columns(self.description, columns)

    def writer(self, shard: int) -> ShardWriter:
        """Collects the rows of one file."""
        return ShardWriter(self.path, self.description, shard)

    def finish(self, counts: Counts, vectors: Tensor | None = None) -> None:
        """Declare the codes whole, and put them where readers find them.

        Args:
            counts: over all files.
            vectors: float32 `[num_images, V]` of the images, those of the description; None where it has none.

        Raises:
            CheckpointError: where a file is missing or damaged.
            HVQError: where the disk is full, or nothing may be written there.
        """
        with writing(self.path):
            if not (self.in_place and self._has_counts(counts) and self._has_vectors()):
                if vectors is None:
                    (self.path / VECTORS_FILE).unlink(missing_ok=True)
                else:
                    write_code_vectors(self.path, vectors)
                write_index(self.path, self.description, counts)
            self._settle()

    def _is_whole(self) -> bool:
        """Whether codes of this description are there, with any vectors or none, and whole but for damage of files."""
        try:
            return read_index(self.target).without_vectors == self.description.without_vectors
        except CheckpointError:
            return False

    def _has_counts(self, counts: Counts) -> bool:
        try:
            found = read_counts(self.target, self.description)
        except CheckpointError:
            return False
        return all(torch.equal(found[level], counts[level]) for level in found)

    def _has_vectors(self) -> bool:
        """Whether the vectors of this very description, to the last bit, or none as it says, are there."""
        try:
            there = read_index(self.target)
            require_whole_vectors(self.target, there)
        except CheckpointError:
            return False
        return there == self.description

    def _settle(self) -> None:
        """Put a folder that is whole in its place; whatever was interrupted in between is brought to an end."""
        if (self._partial / INDEX_FILE).exists():
            if self.target.exists():
                shutil.rmtree(self._old, ignore_errors=True)
                os.replace(self.target, self._old)
            os.replace(self._partial, self.target)
            flush(self.target.parent)
        if self._old.exists() and not self.target.exists():
            os.replace(self._old, self.target)
        shutil.rmtree(self._old, ignore_errors=True)


class ShardWriter:
    """Collects the rows of one file in their order, and writes it once all are there.

    Args:
        folder: where the file goes.
        description: what the codes are.
        shard: number of the file.
    """

    def __init__(self, folder: Path, description: CodesDescription, shard: int) -> None:
        self._folder = folder
        self._description = description
        self._shard = shard
        self._rows = description.rows(shard)
        self._filled = 0
        # The only memory that it takes, whatever the number of images.
        self._columns = empty_columns(description, len(self._rows))

    def add(self, codes: Mapping[str, Tensor], *, labels: Tensor, indices: Tensor) -> None:
        """Hand over the codes of the images that come next.

        Args:
            codes: by level name, integers `[B, h, w]` from 0 to K - 1.
            labels: integers `[B]`, -1 where unknown.
            indices: int64 `[B]`, the position of each image in its source.

        Raises:
            HVQError: where levels are missing or unknown, codes have another shape or range than described, or these
                are not the images that come next.
        """
        start, stop = self._filled, self._filled + len(indices)
        next_images = [row % self._description.num_images for row in self._rows[start:stop]]
        if indices.tolist() != next_images:
            raise DataError(
                f"{shard_name(self._shard)} of codes takes images {_span(next_images)} next; received "
                f"{_span(indices.tolist())}"
            )
        columns = {f"codes.{level}": code for level, code in self._checked(codes, len(indices)).items()}
        for name, column in (columns | {"labels": self._checked_labels(labels, len(indices))}).items():
            self._columns[name][start:stop] = column
        self._filled = stop

    def _checked(self, codes: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        described = self._description
        ordered = in_level_order(codes, described.level_names, "codes")
        for level, values in ordered.items():
            size, shape = described.codebook_sizes[level], (count, *described.shape(level))
            if values.shape != shape:
                raise DataError(f"codes of level {level} must be {list(shape)}; received {list(values.shape)}")
            if count and not 0 <= int(values.min()) <= int(values.max()) < size:
                raise DataError(
                    f"codes of level {level} must go from 0 to {size - 1}; received {values.min()} to {values.max()}"
                )
        return ordered

    def _checked_labels(self, labels: Tensor, count: int) -> Tensor:
        if labels.shape != (count,):
            raise DataError(f"labels must be one per image, {[count]}; received {list(labels.shape)}")
        if count and not -1 <= int(labels.min()) <= int(labels.max()) < len(self._description.classes):
            raise DataError(
                f"labels must go from -1 to below {len(self._description.classes)}; received {labels.min()} to "
                f"{labels.max()}"
            )
        return labels

    def close(self) -> Counts:
        """Write the file; returns its counts.

        Raises:
            DataError: where images are missing.
            HVQError: where the disk is full, or nothing may be written there.
        """
        if self._filled != len(self._rows):
            raise DataError(f"{shard_name(self._shard)} of codes takes {len(self._rows)} rows; received {self._filled}")
        with writing(self._folder):
            write_shard(self._folder, self._description, self._shard, self._columns)
        return count_columns(self._description, self._columns)


def _span(images: list[int]) -> str:
    return f"{images[0]} to {images[-1]}" if images else "none"


def _keep_only(folder: Path, names: set[str]) -> None:
    """Remove what else an interrupted call has left, such as half of a file."""
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
