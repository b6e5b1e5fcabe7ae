"""Some rows of a source of images or codes, as a source of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np

from hvq.data.sources import BatchSource, BatchType_co, Indices, SequentialReader, sequential_reader
from hvq.randomness import uniform


def spread_rows(length: int, most: int) -> Indices:
    """At most so many rows of `length`, ascending and spread over all of them, the same on every call.

    Rows are often sorted by class, and sometimes take their classes in turn: the first ones would show a few classes in
    the one case, and evenly strided ones in the other. So one row is drawn from each of `most` equal stretches.

    Args:
        length: number of rows.
        most: how many are wanted; all rows, where there are no more.

    Returns:
        int64 `[min(length, most)]`.

    >>> spread_rows(3, 5).tolist()
    [0, 1, 2]
    >>> (spread_rows(100, 4) // 25).tolist()
    [0, 1, 2, 3]
    """
    stretches = np.arange(min(length, most), dtype=np.int64)
    if length <= most:
        return stretches
    starts, ends = stretches * length // most, (stretches + 1) * length // most
    return starts + (uniform(0, "spread rows", stretches) * (ends - starts)).astype(np.int64)


@dataclass(frozen=True)
class Subset(Generic[BatchType_co]):
    """Some rows of a source; batches say where in the source they are.

    Attributes:
        source: images or codes.
        rows: int64 `[n]`, in the order in which they are fetched.
    """

    source: BatchSource[BatchType_co]
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> BatchType_co:
        """The rows of the source that `indices [B]` stand for."""
        return self.source.fetch(self.rows[np.asarray(indices, np.int64)], epochs)

    def sequential_reader(self) -> SequentialReader[BatchType_co] | None:
        """A reader of the rows, where the source is one whose samples lie one behind the other."""
        reader = sequential_reader(self.source)
        return None if reader is None else _SubsetReader(reader, self.rows)


@dataclass(frozen=True)
class _SubsetReader(Generic[BatchType_co]):
    reader: SequentialReader[BatchType_co]
    rows: Indices

    def expect(self, indices: Indices) -> None:
        self.reader.expect(self.rows[indices])

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> BatchType_co:
        return self.reader.fetch(self.rows[np.asarray(indices, np.int64)], epochs)
