"""Which samples come when: a function of (seed, step) alone, whatever the number of processes and workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hvq.data.sources import BatchSource, Indices
from hvq.data.workers import outlive_signals
from hvq.errors import ConfigurationError, DataError, HVQError
from hvq.randomness import permutation

BatchType = TypeVar("BatchType")


@dataclass(frozen=True)
class SampleKeys:
    """Which samples make up a micro-batch.

    Attributes:
        indices: int64 `[B]`, positions in the source.
        epochs: int64 `[B]`, the pass over the source that each belongs to; `None` for no augmentation.
    """

    indices: Indices
    epochs: Indices | None


class StepSampler:
    """The samples of each optimizer step.

    Sample number s of a run is number `s mod length` of the permutation of epoch `s // length`; step t takes the
    numbers from `t * batch_size` on. So steps cross the border between epochs without losing or repeating a sample, and
    any step can be asked for without those before it. Each process takes one contiguous part of a step's samples, and
    cuts it into micro-batches: all processes and micro-batches together are the batch that one process would take.

    Args:
        length: number of samples in the source.
        batch_size: samples per optimizer step, over all processes and micro-batches.
        micro_batches: parts in which each process takes its share.
        rank: of this process.
        processes: number of processes.
        seed: of the order.

    Raises:
        DataError: where the source is empty.
        ConfigurationError: where the batch cannot be divided evenly.

    >>> sampler = StepSampler(length=5, batch_size=4, micro_batches=2)
    >>> [keys.epochs.tolist() for keys in sampler.step(1)]
    [[0, 1], [1, 1]]
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        micro_batches: int = 1,
        rank: int = 0,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        if length < 1:
            raise DataError("there is nothing to train on: the source holds no samples")
        if batch_size < 1 or batch_size % (processes * micro_batches):
            raise ConfigurationError(
                f"batch_size must be a multiple of processes times micro_batches, {processes} x {micro_batches} = "
                f"{processes * micro_batches}; received {batch_size}"
            )
        self._length = length
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._rank = rank
        self._processes = processes
        self._seed = seed
        self._order: tuple[int, Indices] = (-1, np.zeros(0, np.int64))

    def step(self, step: int) -> list[SampleKeys]:
        """What this process takes at a step, one entry per micro-batch.

        Args:
            step: number of the optimizer step, from 0.
        """
        share = self._batch_size // self._processes
        start = step * self._batch_size + self._rank * share
        epochs, places = np.divmod(np.arange(start, start + share, dtype=np.int64), self._length)
        indices = np.empty(share, np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = self._order_of(epoch)[places[here]]
        parts = zip(np.split(indices, self._micro_batches), np.split(epochs, self._micro_batches), strict=True)
        return [SampleKeys(some, their_epochs) for some, their_epochs in parts]

    def _order_of(self, epoch: int) -> Indices:
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self._length, self._seed, "order", epoch))
        return self._order[1]


class TrainingStream(Generic[BatchType]):
    """Batches of images or codes, step after step, without end.

    Iterating begins at `start_step` each time: a resumed run that hands in the number of steps it has done goes on with
    exactly the samples that would have come next. Nothing else is to be saved.

    Args:
        source: images (`ImageSource`) or codes (`CodeFolder`).
        batch_size: samples per optimizer step, over all processes and micro-batches.
        micro_batches: parts in which each process takes its share.
        rank: of this process.
        processes: number of processes.
        seed: of the order.
        workers: processes that prepare batches ahead; 0 prepares them when they are wanted.
        start_step: number of the first optimizer step.

    Raises:
        DataError: where the source is empty.
        ConfigurationError: where the batch cannot be divided evenly.

    >>> from hvq.data import TensorImages
    >>> images = TensorImages(torch.zeros(7, 1, 4, 4, dtype=torch.uint8))
    >>> micro_batches = next(iter(TrainingStream(images, batch_size=6, micro_batches=2)))
    >>> [len(batch) for batch in micro_batches]
    [3, 3]
    """

    def __init__(
        self,
        source: BatchSource[BatchType],
        *,
        batch_size: int,
        micro_batches: int = 1,
        rank: int = 0,
        processes: int = 1,
        seed: int = 0,
        workers: int = 0,
        start_step: int = 0,
    ) -> None:
        self._source = source
        self._sampler = StepSampler(
            length=len(source),
            batch_size=batch_size,
            micro_batches=micro_batches,
            rank=rank,
            processes=processes,
            seed=seed,
        )
        self._workers = workers
        self._start_step = start_step

    def __iter__(self) -> Iterator[list[BatchType]]:
        """The micro-batches of this process, one list per optimizer step."""
        return _load(self._source, self._steps(), self._workers)

    def _steps(self) -> Iterator[list[SampleKeys]]:
        step = self._start_step
        while True:
            yield self._sampler.step(step)
            step += 1


def ordered_batches(
    source: BatchSource[BatchType],
    *,
    chunk_size: int,
    rank: int = 0,
    processes: int = 1,
    epoch: int | None = None,
    workers: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[BatchType]:
    """A whole source once, or a stretch of it, in order, in chunks of a fixed size, which processes take in turn.

    Args:
        source: images or codes.
        chunk_size: samples in a chunk; the last one may be shorter. No sample comes twice.
        rank: of this process, which takes the chunks `rank`, `rank + processes` and so on.
        processes: number of processes.
        epoch: the pass whose crops and augmentation are wanted; `None` for none.
        workers: processes that prepare chunks ahead; 0 prepares them when they are wanted.
        start: the first sample of the stretch.
        stop: the sample behind its last one; `None` for the end of the source.

    >>> from hvq.data import TensorImages
    >>> images = TensorImages(torch.zeros(7, 1, 4, 4, dtype=torch.uint8))
    >>> [batch.indices.tolist() for batch in ordered_batches(images, chunk_size=3)]
    [[0, 1, 2], [3, 4, 5], [6]]
    """
    end = len(source) if stop is None else stop
    chunks = (
        np.arange(first, min(first + chunk_size, end), dtype=np.int64)
        for first in range(start + rank * chunk_size, end, processes * chunk_size)
    )
    keys = (
        [SampleKeys(indices, None if epoch is None else np.full(len(indices), epoch, np.int64))] for indices in chunks
    )
    return (batches[0] for batches in _load(source, keys, workers))


class _Requests(Dataset[list[Any] | HVQError]):
    """A source as `DataLoader` wants it: the "index" it is asked for is a list of `SampleKeys`.

    Errors that a user can cause are answers here: raised, `DataLoader` would wrap their one sentence in a traceback.
    """

    def __init__(self, source: BatchSource[Any]) -> None:
        self._source = source

    def __getitem__(self, keys: list[SampleKeys]) -> list[Any] | HVQError:
        try:
            return [self._source.fetch(part.indices, part.epochs) for part in keys]
        except HVQError as error:
            return error


def _unchanged(value: object) -> object:
    return value


def _load(source: BatchSource[BatchType], keys: Iterable[list[SampleKeys]], workers: int) -> Iterator[list[BatchType]]:
    if not workers:
        yield from ([source.fetch(part.indices, part.epochs) for part in parts] for parts in keys)
        return
    # What a source decodes at its first use is decoded here, and shared by the workers that start next.
    source.fetch(np.zeros(1, np.int64))
    answers = DataLoader(
        _Requests(source),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=outlive_signals,
        # One of its own: the loader would draw from the global generator, and results would depend on `workers`.
        generator=torch.Generator(),
    )
    for answer in answers:
        if isinstance(answer, HVQError):
            raise answer
        yield answer
