"""Codes between the stages, memory-mapped while priors train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hvq.data.code_files import damaged, open_shard, read_counts, read_index, shard_name
from hvq.data.code_vectors import read_code_vectors
from hvq.data.sources import Indices, epochs_or_unaugmented
from hvq.errors import CheckpointError, DataError
from hvq.histograms import entropy
from hvq.level_names import in_level_order


@dataclass(frozen=True)
class CodeBatch:
    """Codes of one micro-batch, and what identifies each of them.

    Attributes:
        codes: by level name, coarse to fine, int64 `[B, h, w]`.
        labels: int64 `[B]`, the index of the class, -1 where it is unknown.
        indices: int64 `[B]`, the row in the folder.
        epochs: int64 `[B]`, the pass over the rows, -1 outside of training.
        vectors: float32 `[B, V]`, the vector of each image; None where images have none.
    """

    codes: dict[str, Tensor]
    labels: Tensor
    indices: Tensor
    epochs: Tensor
    vectors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)


class CodeFolder:
    """The codes of one split, memory-mapped: a batch reads its own rows from disk and nothing else.

    Row `e * num_images + i` is image i as it was encoded in augmented epoch e. It is a source for `TrainingStream` and
    `ordered_batches`.

    Args:
        folder: the folder of codes.
        split: "train" or "validation".

    Attributes:
        vector_size: V, numbers of each image's vector; 0 where images have none.
        vectors: float32 `[num_images, V]`, mapped; None where images have none.

    Raises:
        CheckpointError: where codes are missing, incomplete or damaged.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.path = Path(folder) / split
        self.description = read_index(self.path)
        self.level_names = self.description.level_names
        self.codebook_sizes = in_level_order(self.description.codebook_sizes, self.level_names, "codebook sizes")
        self.grids = in_level_order(self.description.grids, self.level_names, "grids")
        self.image_size = self.description.image_size
        self.encoder_hash = self.description.encoder_hash
        self.classes = self.description.classes
        self.num_images = self.description.num_images
        self._shards = [open_shard(self.path, self.description, shard) for shard in range(self.description.num_shards)]
        self._counts = read_counts(self.path, self.description)
        self.vector_size = self.description.vector_size
        self.vectors = read_code_vectors(self.path, self.description) if self.vector_size else None

    def __len__(self) -> int:
        """Number of rows: images times augmented epochs."""
        return self.description.num_rows

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
        shards, places = np.divmod(indices, self.description.images_per_shard)
        codes = {
            level: torch.empty(len(indices), *self.description.shape(level), dtype=torch.int64)
            for level in self.level_names
        }
        labels = torch.empty(len(indices), dtype=torch.int64)
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            rows = torch.from_numpy(places[here])
            for level in self.level_names:
                codes[level][here] = self._checked(shard, level, self._shards[shard][f"codes.{level}"][rows])
            labels[here] = self._checked_labels(shard, self._shards[shard]["labels"][rows])
        passes = epochs_or_unaugmented(epochs, len(indices))
        vectors = None if self.vectors is None else self.vectors[torch.from_numpy(indices % self.num_images)]
        return CodeBatch(codes, labels, torch.from_numpy(indices.copy()), torch.from_numpy(passes.copy()), vectors)

    def _checked(self, shard: int, level: str, codes: Tensor) -> Tensor:
        size = self.codebook_sizes[level]
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise damaged(
                self.path / shard_name(shard),
                f"its codes of level {level} must go from 0 to {size - 1} and go from {codes.min()} to {codes.max()}",
            )
        return codes.to(torch.int64)

    def _checked_labels(self, shard: int, labels: Tensor) -> Tensor:
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise damaged(
                self.path / shard_name(shard),
                f"its labels must be below {len(self.classes)} and go from {labels.min()} to {labels.max()}",
            )
        return labels.to(torch.int64)

    def labels(self) -> Tensor:
        """int64 `[num_images]`, the label of every image, read without any codes.

        Raises:
            CheckpointError: where a label is out of range.
        """
        # Rows of the first epoch come first.
        with_images = range(math.ceil(self.num_images / self.description.images_per_shard))
        parts = [self._checked_labels(shard, self._shards[shard]["labels"]) for shard in with_images]
        return torch.cat(parts)[: self.num_images]

    def counts(self, level: str) -> Tensor:
        """How often each code of a level occurs, int64 `[G, K]`, as counted when the codes were written.

        Raises:
            DataError: where there is no such level.
        """
        if level not in self.codebook_sizes:
            raise DataError(f"levels of {self.path} are {', '.join(self.level_names)}; received {level!r}")
        return self._counts[level]

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
