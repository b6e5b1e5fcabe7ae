"""Which samples come when does not depend on processes, micro-batches, workers, or where a run began."""

from __future__ import annotations

import os
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvq.data import (
    Augmentation,
    Batch,
    ImageSource,
    SampleKeys,
    StepSampler,
    TensorImages,
    TrainingStream,
    ordered_batches,
)
from hvq.errors import ConfigurationError, DataError


def source(count: int = 23) -> TensorImages:
    images = torch.randint(0, 256, (count, 1, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorImages(images, labels=np.arange(count) % 3, classes=list("abc"), augmentation=Augmentation(shift=2.0))


def keys_of(batches: list[Batch]) -> list[tuple[int, int]]:
    return [pair for batch in batches for pair in zip(batch.epochs.tolist(), batch.indices.tolist(), strict=True)]


def epochs_of(parts: list[SampleKeys]) -> list[int]:
    return [epoch for keys in parts if keys.epochs is not None for epoch in keys.epochs.tolist()]


def same(one: Batch, other: Batch) -> bool:
    fields = ("images", "labels", "indices", "epochs")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in fields)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 29),
    per_micro_batch=st.integers(1, 5),
    micro_batches=st.integers(1, 3),
    processes=st.integers(1, 3),
    step=st.integers(0, 100),
)
def test_ranks_and_micro_batches_together_take_the_batch_of_one_process(
    length: int, per_micro_batch: int, micro_batches: int, processes: int, step: int
) -> None:
    batch_size = per_micro_batch * micro_batches * processes
    (whole,) = StepSampler(length=length, batch_size=batch_size).step(step)
    parts = [
        keys
        for rank in range(processes)
        for keys in StepSampler(
            length=length, batch_size=batch_size, micro_batches=micro_batches, rank=rank, processes=processes
        ).step(step)
    ]
    assert all(len(keys.indices) == per_micro_batch for keys in parts)
    assert np.concatenate([keys.indices for keys in parts]).tolist() == whole.indices.tolist()
    assert epochs_of(parts) == epochs_of([whole])
    assert len(epochs_of(parts)) == batch_size


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 29), batch_size=st.integers(1, 41), seed=st.integers(0, 3))
def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own(length: int, batch_size: int, seed: int) -> None:
    sampler = StepSampler(length=length, batch_size=batch_size, seed=seed)
    parts = [keys for step in range(3 * length // batch_size + 1) for keys in sampler.step(step)]
    indices = np.concatenate([keys.indices for keys in parts])
    epochs = np.array(epochs_of(parts))
    assert epochs.tolist() == (np.arange(len(epochs)) // length).tolist()
    for epoch in range(3):
        assert sorted(indices[epochs == epoch].tolist()) == list(range(length))


def test_order_changes_with_epoch_and_seed() -> None:
    orders = [
        tuple(StepSampler(length=23, batch_size=23, seed=seed).step(step)[0].indices.tolist())
        for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(orders)) == 3


def test_a_resumed_stream_goes_on_where_the_other_stopped() -> None:
    options = {"batch_size": 10, "micro_batches": 2, "seed": 5}
    straight = list(islice(TrainingStream(source(), **options), 9))
    resumed = list(islice(TrainingStream(source(), **options, start_step=4), 5))
    for one, other in zip(straight[4:], resumed, strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_steps_of_a_stream_are_those_of_the_sampler_and_augmented() -> None:
    images = source()
    (batch,) = next(iter(TrainingStream(images, batch_size=13, seed=5, start_step=2)))
    (keys,) = StepSampler(length=23, batch_size=13, seed=5).step(2)
    assert batch.indices.tolist() == keys.indices.tolist()
    assert same(batch, images.fetch(keys.indices, keys.epochs))
    assert not torch.equal(batch.images, images.fetch(keys.indices).images)


def test_workers_change_nothing_not_even_the_global_generator() -> None:
    options = {"batch_size": 14, "micro_batches": 2, "seed": 5, "start_step": 3}
    here = list(islice(TrainingStream(source(), **options), 5))
    before = torch.random.get_rng_state()
    there = list(islice(TrainingStream(source(), **options, workers=2), 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, other in zip(here, there, strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))


class _Broken(TensorImages):
    def picture(self, index: int, position: tuple[float, float]) -> torch.Tensor:
        if index == 5:
            raise DataError("picture 5 is broken")
        return super().picture(index, position)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_in_a_worker_stays_one_sentence(workers: int) -> None:
    broken: ImageSource = _Broken(torch.zeros(7, 1, 3, 3, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"^picture 5 is broken$"):
        list(ordered_batches(broken, chunk_size=2, workers=workers))


@pytest.mark.parametrize(("processes", "micro_batches"), [(3, 1), (1, 3), (2, 2)])
def test_a_batch_that_cannot_be_divided_evenly_is_refused(processes: int, micro_batches: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{processes} x {micro_batches}.*received 10"):
        TrainingStream(source(), batch_size=10, processes=processes, micro_batches=micro_batches)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        TrainingStream(TensorImages(torch.zeros(0, 1, 3, 3, dtype=torch.uint8)), batch_size=1)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 23), chunk_size=st.integers(1, 29), processes=st.integers(1, 4))
def test_ordered_chunks_hold_every_sample_once_for_any_number_of_processes(
    count: int, chunk_size: int, processes: int
) -> None:
    images = source(23)
    images = TensorImages(images.fetch(np.arange(count)).images)
    alone = list(ordered_batches(images, chunk_size=chunk_size))
    assert keys_of(alone) == [(-1, index) for index in range(count)]
    assert all(len(batch) == chunk_size for batch in alone[:-1])
    per_rank = [
        list(ordered_batches(images, chunk_size=chunk_size, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    for number, batch in enumerate(alone):
        assert same(batch, per_rank[number % processes][number // processes])
    assert sum(map(len, per_rank)) == len(alone)


def test_ordered_chunks_of_an_epoch_are_augmented() -> None:
    images = source()
    augmented = torch.cat([batch.images for batch in ordered_batches(images, chunk_size=5, epoch=2, workers=1)])
    assert torch.equal(augmented, images.fetch(np.arange(23), np.full(23, 2)).images)
    assert not torch.equal(augmented, images.fetch(np.arange(23)).images)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("start", "stop", "lengths"), [(3, 17, [5, 5, 4]), (13, None, [5, 5]), (7, 7, [])])
def test_a_stretch_of_a_source(start: int, stop: int | None, lengths: list[int], workers: int) -> None:
    images = source()
    found = list(ordered_batches(images, chunk_size=5, epoch=2, start=start, stop=stop, workers=workers))
    assert [len(batch) for batch in found] == lengths
    assert keys_of(found) == [(2, index) for index in range(start, 23 if stop is None else stop)]
    shared = [
        list(ordered_batches(images, chunk_size=5, epoch=2, start=start, stop=stop, rank=rank, processes=2))
        for rank in range(2)
    ]
    assert sorted(keys_of([*shared[0], *shared[1]])) == keys_of(found)


class _Deadly(TensorImages):
    def picture(self, index: int, position: tuple[float, float]) -> torch.Tensor:
        if index == 5:
            os._exit(1)
        return super().picture(index, position)


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    deadly = _Deadly(torch.zeros(7, 1, 3, 3, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"ended from outside .*: lower data\.workers"):
        list(ordered_batches(deadly, chunk_size=2, workers=1))
