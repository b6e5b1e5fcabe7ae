"""Codes between the stages: written once as sharded safetensors, memory-mapped while priors train.

A folder of codes holds one folder per split. Its files `shard-<rank>-<number>.safetensors` hold rows of `codes.<level>`
in the smallest integer type that fits, `labels`, `index` (the image's position in its source) and `augmented_epoch` (0
for the image as it is). `index.json` is written last, so a folder without it is not whole. Readers order rows by
(augmented epoch, image), whichever process wrote them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hvq.config_base import FrozenModel
from hvq.data.sources import Indices, epochs_or_unaugmented
from hvq.errors import CheckpointError, DataError
from hvq.files import read_json, write_json, write_tensors
from hvq.histograms import count_codes, entropy
from hvq.level_names import in_level_order

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
ROWS_AT_ONCE = 4096


class CodesDescription(FrozenModel):
    """What the codes of one split are, and which autoencoder made them."""

    level_names: tuple[str, ...] = Field(min_length=1, description="levels, coarse to fine")
    codebook_sizes: dict[str, PositiveInt] = Field(description="K of each level")
    grids: dict[str, tuple[PositiveInt, PositiveInt]] = Field(description="h and w of each level")
    codes_per_position: dict[str, PositiveInt] = Field(
        default_factory=dict, description="G of each level that has more than one"
    )
    image_size: tuple[PositiveInt, PositiveInt] = Field(description="H and W of the images, in pixels")
    encoder_hash: str = Field(description="hash of the tensors that determine `encode`")
    classes: tuple[str, ...] = Field((), description="names of the classes, in the order of labels")
    num_images: PositiveInt = Field(description="images in the split")
    augmented_epochs: PositiveInt = Field(1, description="times each image was encoded")

    @model_validator(mode="after")
    def _levels_agree(self) -> CodesDescription:
        in_level_order(self.codebook_sizes, self.level_names, "codebook_sizes")
        in_level_order(self.grids, self.level_names, "grids")
        return self

    def shape(self, level: str) -> tuple[int, ...]:
        """Of one image's codes: `[h, w]`, or `[h, w, G]` where positions have several."""
        several = self.codes_per_position.get(level, 1)
        return (*self.grids[level], several) if several > 1 else self.grids[level]

    @property
    def num_rows(self) -> int:
        """Rows of codes: each image once for each augmented epoch."""
        return self.num_images * self.augmented_epochs


class _Shard(FrozenModel):
    file: str
    rows: NonNegativeInt


class _CodesIndex(CodesDescription):
    format_version: int
    shards: tuple[_Shard, ...]


def code_type(codebook_size: int) -> torch.dtype:
    """The smallest integer type that holds all codes of a codebook.

    >>> code_type(256), code_type(257), code_type(65_536)
    (torch.uint8, torch.int16, torch.int32)
    """
    if codebook_size <= 2**8:
        return torch.uint8
    return torch.int16 if codebook_size <= 2**15 else torch.int32


def clear_codes(folder: Path, split: str) -> None:
    """Remove the codes of a split, if there are any. One process calls this before any of them writes.

    Args:
        folder: the folder of codes.
        split: "train" or "validation".
    """
    # The index first: interrupted in between, what is left is not taken for a whole.
    (folder / split / INDEX_FILE).unlink(missing_ok=True)
    if (folder / split).exists():
        shutil.rmtree(folder / split)


class CodeShardWriter:
    """Collects the codes that one process makes, and writes a file whenever enough are there.

    Args:
        folder: the folder of codes.
        split: "train" or "validation".
        description: what the codes are.
        rank: of this process.
        images_per_shard: rows in one file.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        description: CodesDescription,
        *,
        rank: int = 0,
        images_per_shard: int = 65_536,
    ) -> None:
        self._folder = folder / split
        self._description = description
        self._rank = rank
        self._images_per_shard = images_per_shard
        self._pending: list[dict[str, Tensor]] = []
        self._shards_written = 0

    def add(self, codes: Mapping[str, Tensor], *, labels: Tensor, indices: Tensor, augmented_epoch: int = 0) -> None:
        """Hand over the codes of some images.

        Args:
            codes: by level name, integers `[B, h, w]` from 0 to K - 1.
            labels: int64 `[B]`, -1 where unknown.
            indices: int64 `[B]`, the position of each image in its source.
            augmented_epoch: 0 for the images as they are; the epoch of their augmentation otherwise.

        Raises:
            HVQError: where levels are missing or unknown, or codes have another shape or range than described.
        """
        if labels.shape != indices.shape:
            raise DataError(f"labels must be one per image, {list(indices.shape)}; received {list(labels.shape)}")
        columns = self._checked(codes, len(indices))
        columns["labels"] = labels.cpu().to(torch.int64)
        columns["index"] = indices.cpu().to(torch.int64)
        columns["augmented_epoch"] = torch.full((len(indices),), augmented_epoch, dtype=torch.int32)
        self._pending.append(columns)
        if sum(len(part["index"]) for part in self._pending) >= self._images_per_shard:
            self._write(whole_shards_only=True)

    def _checked(self, codes: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        described = self._description
        columns = {}
        for level, values in in_level_order(codes, described.level_names, "codes").items():
            size, shape = described.codebook_sizes[level], (count, *described.shape(level))
            if values.shape != shape:
                raise DataError(f"codes of level {level} must be {list(shape)}; received {list(values.shape)}")
            if count and not 0 <= int(values.min()) <= int(values.max()) < size:
                raise DataError(
                    f"codes of level {level} must go from 0 to {size - 1}; received {values.min()} to {values.max()}"
                )
            columns[f"codes.{level}"] = values.cpu().to(code_type(size))
        return columns

    def close(self) -> None:
        """Write what has been handed over and is not written yet."""
        self._write(whole_shards_only=False)

    def _write(self, *, whole_shards_only: bool) -> None:
        if not self._pending:
            return
        columns = {name: torch.cat([part[name] for part in self._pending]) for name in self._pending[0]}
        rows = len(columns["index"])
        whole = rows - rows % self._images_per_shard if whole_shards_only else rows
        for start in range(0, whole, self._images_per_shard):
            end = min(start + self._images_per_shard, whole)
            path = self._folder / f"shard-{self._rank:03d}-{self._shards_written:05d}.safetensors"
            write_tensors(path, {name: column[start:end] for name, column in columns.items()})
            self._shards_written += 1
        self._pending = [{name: column[whole:] for name, column in columns.items()}] if whole < rows else []


def write_index(folder: Path, split: str, description: CodesDescription) -> None:
    """Declare the codes of a split whole. One process calls this once all have closed their writers.

    Args:
        folder: the folder of codes.
        split: "train" or "validation".
        description: what the codes are.

    Raises:
        CheckpointError: where the files do not hold every image exactly once for each augmented epoch.
    """
    paths = sorted((folder / split).glob("shard-*.safetensors"))
    opened = [_open_shard(path, description) for path in paths]
    _reading_order(opened, description, folder / split)
    shards = [{"file": path.name, "rows": len(columns["index"])} for path, columns in zip(paths, opened, strict=True)]
    content = {"format_version": FORMAT_VERSION, **description.model_dump(mode="json"), "shards": shards}
    write_json(folder / split / INDEX_FILE, content)


@dataclass(frozen=True)
class CodeBatch:
    """Codes of one micro-batch, and what identifies each of them.

    Attributes:
        codes: by level name, coarse to fine, int64 `[B, h, w]`.
        labels: int64 `[B]`, the index of the class, -1 where it is unknown.
        indices: int64 `[B]`, the row in the folder.
        epochs: int64 `[B]`, the pass over the rows, -1 outside of training.
    """

    codes: dict[str, Tensor]
    labels: Tensor
    indices: Tensor
    epochs: Tensor

    def __len__(self) -> int:
        return len(self.indices)


class CodeFolder:
    """The codes of one split, memory-mapped: a batch reads its own rows from disk and nothing else.

    Row `e * num_images + i` is image i as it was encoded in augmented epoch e. It is a source for `TrainingStream` and
    `ordered_batches`.

    Args:
        folder: the folder of codes.
        split: "train" or "validation".

    Raises:
        CheckpointError: where codes are missing, incomplete or damaged.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.path = Path(folder) / split
        index = _read_index(self.path)
        self.description: CodesDescription = index
        self.level_names = index.level_names
        self.codebook_sizes = in_level_order(index.codebook_sizes, index.level_names, "codebook sizes")
        self.grids = in_level_order(index.grids, index.level_names, "grids")
        self.image_size = index.image_size
        self.encoder_hash = index.encoder_hash
        self.classes = index.classes
        self.num_images = index.num_images
        self._files = [self.path / shard.file for shard in index.shards]
        self._shards = [
            _open_shard(file, index, shard.rows) for file, shard in zip(self._files, index.shards, strict=True)
        ]
        self._starts = np.cumsum([0, *(shard.rows for shard in index.shards)])
        self._order = _reading_order(self._shards, index, self.path)

    def __len__(self) -> int:
        """Number of rows: images times augmented epochs."""
        return len(self._order)

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> CodeBatch:
        """Several rows as one batch.

        Args:
            indices: `[B]`, each from 0 to `len(self) - 1`.
            epochs: `[B]`, the pass over the rows that each belongs to; handed through.

        Raises:
            DataError: where an index is out of range.
            CheckpointError: where a code or label is out of range.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise DataError(f"rows of codes go from 0 to {len(self) - 1}; received {indices.min()} to {indices.max()}")
        places = self._order[indices]
        shards = np.searchsorted(self._starts, places, side="right") - 1
        codes = {
            level: torch.empty(len(indices), *self.description.shape(level), dtype=torch.int64)
            for level in self.level_names
        }
        labels = torch.empty(len(indices), dtype=torch.int64)
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            rows = torch.from_numpy(places[here] - self._starts[shard])
            for level in self.level_names:
                codes[level][here] = self._checked(shard, level, self._shards[shard][f"codes.{level}"][rows])
            labels[here] = self._checked_labels(shard, self._shards[shard]["labels"][rows])
        passes = epochs_or_unaugmented(epochs, len(indices))
        return CodeBatch(codes, labels, torch.from_numpy(indices.copy()), torch.from_numpy(passes.copy()))

    def _checked(self, shard: int, level: str, codes: Tensor) -> Tensor:
        size = self.codebook_sizes[level]
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise _damaged(
                self._files[shard],
                f"its codes of level {level} must go from 0 to {size - 1} and go from {codes.min()} to {codes.max()}",
            )
        return codes.to(torch.int64)

    def _checked_labels(self, shard: int, labels: Tensor) -> Tensor:
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise _damaged(
                self._files[shard],
                f"its labels must be below {len(self.classes)} and go from {labels.min()} to {labels.max()}",
            )
        return labels

    def counts(self, level: str) -> Tensor:
        """How often each code of a level occurs, int64 `[G, K]`; read in pieces, so that memory stays small.

        Raises:
            DataError: where there is no such level.
            CheckpointError: where a code is out of range.
        """
        if level not in self.codebook_sizes:
            raise DataError(f"levels of {self.path} are {', '.join(self.level_names)}; received {level!r}")
        size = self.codebook_sizes[level]
        per_position = self.description.codes_per_position.get(level, 1)
        counts = torch.zeros(per_position, size, dtype=torch.int64)
        for shard, columns in enumerate(self._shards):
            for piece in columns[f"codes.{level}"].split(ROWS_AT_ONCE):
                counts += count_codes(self._checked(shard, level, piece).view(-1, per_position), size)
        return counts

    def entropy(self, level: str) -> float:
        """Entropy of a level's codes in nats per code: what a prior that knows nothing but frequencies can reach."""
        return float(entropy(self.counts(level)).mean())

    def require_encoder(self, encoder_hash: str) -> None:
        """Refuse codes that another autoencoder made.

        Args:
            encoder_hash: of the autoencoder that the codes are to be used with.

        Raises:
            CheckpointError: where the hashes differ.
        """
        if encoder_hash != self.encoder_hash:
            raise CheckpointError(
                f"codes in {self.path} were made by another autoencoder: theirs has the hash {self.encoder_hash}, "
                f"this one {encoder_hash}; extract the codes again"
            )


def _damaged(file: Path, fault: str) -> CheckpointError:
    return CheckpointError(f"codes in {file} are damaged: {fault}; extract the codes again")


def _read_index(path: Path) -> _CodesIndex:
    file = path / INDEX_FILE
    if not file.exists():
        raise CheckpointError(f"no complete codes in {path}; extract the codes first")
    content: dict[str, Any] = read_json(file, "index of codes")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"codes in {path} must have format_version {FORMAT_VERSION} and have {version}; extract the codes again"
        )
    try:
        return _CodesIndex.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(file, f"{where}: {first['msg']}") from None


def _open_shard(path: Path, description: CodesDescription, rows: int | None = None) -> dict[str, Tensor]:
    """The columns of a shard; safetensors maps them into memory, so that nothing is read until it is used."""
    names = [*(f"codes.{level}" for level in description.level_names), "labels", "index", "augmented_epoch"]
    try:
        with safe_open(str(path), framework="pt") as file:
            columns: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise CheckpointError(f"codes are missing the file {path}; extract the codes again") from None
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None
    count = len(columns["index"]) if rows is None else rows
    shapes = [*((count, *description.shape(level)) for level in description.level_names), *[(count,)] * 3]
    for name, shape in zip(names, shapes, strict=True):
        if columns[name].shape != shape or columns[name].is_floating_point():
            raise _damaged(path, f"{name} must be integers {list(shape)} and is {list(columns[name].shape)}")
    return columns


def _reading_order(shards: Sequence[Mapping[str, Tensor]], description: CodesDescription, path: Path) -> Indices:
    """Where each row lies among the rows of all shards one behind the other, ordered by (augmented epoch, image)."""
    parts = [
        columns["augmented_epoch"].numpy().astype(np.int64) * description.num_images + columns["index"].numpy()
        for columns in shards
    ]
    rows = np.concatenate([np.zeros(0, np.int64), *parts])
    order = np.argsort(rows, kind="stable")
    if not np.array_equal(rows[order], np.arange(description.num_rows)):
        raise CheckpointError(
            f"codes in {path} must hold each of {description.num_images} images once in each of "
            f"{description.augmented_epochs} epochs; their {len(rows)} rows do not; extract the codes again"
        )
    return order
