"""Which samples come when: a function of (seed, step) alone, whatever the number of processes and workers."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hvq.data.sources import Batch, BatchSource, Indices, SequentialReader, sequential_reader
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
        order: the samples in the order of an epoch, `[length]`; a random permutation by default.

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
        order: Callable[[int], Indices] | None = None,
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
        self._make_order = order or (lambda epoch: permutation(length, seed, "order", epoch))
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
            self._order = (epoch, self._make_order(epoch))
        return self._order[1]


class TrainingStream(Generic[BatchType]):
    """Batches of images or codes, step after step, without end.

    Iterating begins at `start_step` each time: a resumed run that hands in the number of steps it has done goes on with
    exactly the samples that would have come next. Nothing else is to be saved.

    A source whose samples lie one behind the other gives their order itself: one in which what is wanted soon lies
    close together (`StreamedImages`). Each worker then takes a part of every step, so that what they read does not
    overlap.

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
        order: Callable[..., Indices] | None = getattr(source, "epoch_order", None)
        self._sampler = StepSampler(
            length=len(source),
            batch_size=batch_size,
            micro_batches=micro_batches,
            rank=rank,
            processes=processes,
            seed=seed,
            order=order and (lambda epoch: order(epoch, seed=seed, batch_size=batch_size)),
        )
        self._ahead = math.ceil(getattr(source, "lookahead", 0) / batch_size)
        self._workers = workers
        self._start_step = start_step

    def __iter__(self) -> Generator[list[BatchType], None, None]:
        """The micro-batches of this process, one list per optimizer step; workers end where it is closed."""
        return _load(self._source, self._steps(), self._workers, self._ahead)

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


def _load(
    source: BatchSource[BatchType], keys: Iterable[list[SampleKeys]], workers: int, ahead: int = 0
) -> Generator[list[BatchType], None, None]:
    """What `keys` stand for, one list after the other; a sequential reader is told of `ahead` lists beforehand."""
    if reader := sequential_reader(source):
        # Batches of images, as all that is read in sequence.
        return _load_in_sequence(source, reader, keys, workers, ahead)  # type: ignore[arg-type, return-value]
    return _load_at_random(source, keys, workers)


def _load_at_random(
    source: BatchSource[BatchType], keys: Iterable[list[SampleKeys]], workers: int
) -> Generator[list[BatchType], None, None]:
    if not workers:
        yield from ([source.fetch(part.indices, part.epochs) for part in parts] for parts in keys)
        return
    # What a source decodes at its first use is decoded here, and shared by the workers that start next.
    source.fetch(np.zeros(1, np.int64))
    yield from _work(_Requests(source), keys, workers)


def _work(requests: Dataset[Any], keys: Iterable[Any], workers: int) -> Iterator[Any]:
    """The answers to `keys`, in their order, which worker processes take in turn."""
    answers = DataLoader(
        requests,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=outlive_signals,
        # One of its own: the loader would draw from the global generator, and results would depend on `workers`.
        generator=torch.Generator(),
    )
    iterator, fault = iter(answers), ""
    try:
        for answer in iterator:
            if isinstance(answer, HVQError):
                raise answer
            yield answer
    except (RuntimeError, OSError, EOFError) as error:
        if not _tells_of_a_dead_worker(error):
            raise
        fault = str(error) or type(error).__name__
    if fault:
        # As long as the loader's iterator is there, which the error holds, torch raises another one wherever this
        # process is, once it hears of the child's end: so it is ended here, by torch's own method.
        with suppress(RuntimeError):
            getattr(iterator, "_shutdown_workers", gc.collect)()
        raise DataError(
            f"a process that prepares data was ended from outside ({fault}); most often memory runs short: "
            "lower data.workers"
        )


def _tells_of_a_dead_worker(error: Exception) -> bool:
    """Whether a worker has died: the loader says so, or what it had sent cannot be fetched from it any more."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    # What a worker itself raises begins so.
    return not str(error).startswith("Caught ")


# --- sources that are read in sequence ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SequenceRequest:
    """What one worker is to fetch of a step, and what it will be asked for later."""

    keys: SampleKeys
    expected: Indices


class _SequenceRequests(Dataset[Batch | HVQError]):
    """As `_Requests`; a worker asks for its part of every step, and keeps one reader for all of them."""

    def __init__(self, source: BatchSource[Batch]) -> None:
        self._source = source
        self._reader: SequentialReader[Batch] | None = None

    def __getitem__(self, request: _SequenceRequest) -> Batch | HVQError:
        # Made in the worker, not before: files that are open are shared with no other process.
        self._reader = self._reader or sequential_reader(self._source)
        assert self._reader is not None
        try:
            return _answer(self._reader, request)
        except HVQError as error:
            return error


def _answer(reader: SequentialReader[Batch], request: _SequenceRequest) -> Batch:
    reader.expect(request.expected)
    return reader.fetch(request.keys.indices, request.keys.epochs)


def _load_in_sequence(
    source: BatchSource[Batch],
    reader: SequentialReader[Batch],
    keys: Iterable[list[SampleKeys]],
    workers: int,
    ahead: int,
) -> Generator[list[Batch], None, None]:
    parts = max(1, workers)
    sizes: deque[list[int]] = deque()
    requests = _sequence_requests(_joined_keys(keys, sizes), parts, ahead)
    answers = (
        _work(_SequenceRequests(source), requests, workers)
        if workers
        else (_answer(reader, request) for request in requests)
    )
    for first in answers:
        whole = _joined([first, *(next(answers) for _ in range(parts - 1))])
        yield _cut_batch(whole, sizes.popleft())


def _joined_keys(keys: Iterable[list[SampleKeys]], sizes: deque[list[int]]) -> Iterator[SampleKeys]:
    """The micro-batches of each step as one; their sizes are left in `sizes`."""
    for parts in keys:
        sizes.append([len(part.indices) for part in parts])
        epochs = [part.epochs for part in parts if part.epochs is not None]
        yield SampleKeys(np.concatenate([part.indices for part in parts]), np.concatenate(epochs) if epochs else None)


def _sequence_requests(keys: Iterable[SampleKeys], parts: int, ahead: int) -> Iterator[_SequenceRequest]:
    """Each step in parts, one for each worker, which is told of its parts of the next `ahead` steps, once of each."""
    steps = iter(keys)
    known: deque[SampleKeys] = deque()
    told = 0
    while True:
        known.extend(islice(steps, ahead + 1 - len(known)))
        if not known:
            return
        news = list(known)[told:]
        told = len(known) - 1
        now = known.popleft()
        for part in range(parts):
            expected = [_part(step, part, parts).indices for step in news]
            yield _SequenceRequest(_part(now, part, parts), np.concatenate([*expected, np.zeros(0, np.int64)]))


def _part(keys: SampleKeys, part: int, parts: int) -> SampleKeys:
    """One of several consecutive parts, cut where `Streaming` cuts a batch into lanes."""
    start, end = (-(-(number * len(keys.indices)) // parts) for number in (part, part + 1))
    return SampleKeys(keys.indices[start:end], None if keys.epochs is None else keys.epochs[start:end])


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    names = ("images", "labels", "indices", "epochs")
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))


def _cut_batch(batch: Batch, sizes: list[int]) -> list[Batch]:
    if len(sizes) == 1:
        return [batch]
    fields = (batch.images, batch.labels, batch.indices, batch.epochs)
    return [Batch(*parts) for parts in zip(*(field.split(sizes) for field in fields), strict=True)]
