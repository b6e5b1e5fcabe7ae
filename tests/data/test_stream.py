"""The order of streamed images is a function of (seed, epoch, batch size), and one pass over the shards gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvq.data import (
    Augmentation,
    Batch,
    StepSampler,
    StreamedImages,
    Streaming,
    Subset,
    TrainingStream,
    ordered_batches,
)
from hvq.data.sources import sequential_reader
from hvq.data.stream import Rows, ShardRows
from hvq.errors import ConfigurationError, DataError
from tests.data.kinds import encoded, same

COUNTS = [13, 7, 0, 11, 5, 17, 3]


class Shelf:
    """Shards in memory, which note what is read of them."""

    def __init__(self, counts: list[int], *, missing: int = 0) -> None:
        self.counts = counts
        self.missing = missing
        self.opened: list[tuple[int, int]] = []
        self.read: Counter[tuple[int, int]] = Counter()
        self.closed = 0

    def rows(self, shard: int, first: int, wanted: Callable[[int], bool]) -> Rows:
        self.opened.append((shard, first))
        try:
            for row in range(first, self.counts[shard] - self.missing):
                self.read[shard, row] += 1
                yield row, encoded(100 * shard + row) if wanted(row) else None
        finally:
            self.closed += 1

    def content(self, shard: int, row: int) -> bytes:
        return b""

    def where(self, shard: int, row: int) -> tuple[str, str]:
        return f"{row} of shelf {shard}", "buy another"


def streamed(shelf: Shelf, *, lanes: int = 3, shuffle_buffer: int = 12) -> StreamedImages:
    place = ShardRows.of_counts(shelf.counts)
    names = [str(index) for index in range(sum(shelf.counts))]
    streaming = Streaming(enabled=True, lanes=lanes, shuffle_buffer=shuffle_buffer)
    changes = Augmentation(shift=2.0)
    return StreamedImages(shelf, place, names, streaming=streaming, size=(5, 7), crop="random", augmentation=changes)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 13), min_size=1, max_size=9).filter(any),
    epoch=st.integers(0, 3),
    batch_size=st.integers(1, 17),
    lanes=st.integers(1, 7),
    shuffle_buffer=st.integers(1, 40),
)
def test_an_epoch_holds_every_sample_once_near_its_place_in_the_lane(
    counts: list[int], epoch: int, batch_size: int, lanes: int, shuffle_buffer: int
) -> None:
    streaming = Streaming(lanes=lanes, shuffle_buffer=shuffle_buffer)
    order = streaming.epoch_order(counts, epoch, seed=5, batch_size=batch_size)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    still = Streaming(lanes=lanes, shuffle_buffer=1).epoch_order(counts, epoch, seed=5, batch_size=batch_size)
    used = max(1, min(lanes, np.count_nonzero(counts), batch_size))
    lane = (epoch * len(order) + np.arange(len(order))) % batch_size * used // batch_size
    for number in range(used):
        # The same stretch of the shards, in which nothing has moved by a window or more.
        here, there = order[lane == number].tolist(), still[lane == number].tolist()
        assert sorted(here) == sorted(there)
        assert all(abs(here.index(sample) - place) < streaming.window for place, sample in enumerate(there))


def test_order_changes_with_epoch_seed_and_nothing_else() -> None:
    streaming = Streaming(lanes=3, shuffle_buffer=12)
    orders = [
        tuple(streaming.epoch_order(COUNTS, epoch, seed=seed, batch_size=6).tolist())
        for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert len(set(orders[:3])) == 3
    assert orders[3] == orders[0]


def test_shards_are_mixed_and_shuffled() -> None:
    order = Streaming(lanes=4, shuffle_buffer=64).epoch_order([40] * 10, 0, seed=0, batch_size=8)
    batches = [set((order[start : start + 8] // 40).tolist()) for start in range(0, 400, 8)]
    assert np.mean([len(shards) for shards in batches]) > 3.5
    neighbours = np.abs(np.diff(order[:400])) == 1
    assert neighbours.mean() < 0.2


def _run(source: StreamedImages, steps: int, *, start: int = 0, processes: int = 1, workers: int = 0) -> list[Batch]:
    streams = [
        TrainingStream(
            source,
            batch_size=12,
            micro_batches=2,
            rank=rank,
            processes=processes,
            seed=3,
            workers=workers,
            start_step=start,
        )
        for rank in range(processes)
    ]
    return [part for parts in zip(*(islice(s, steps) for s in streams), strict=True) for some in parts for part in some]


def _joined(batches: list[Batch]) -> Batch:
    import torch

    names = ("images", "labels", "indices", "epochs")
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_samples_of_a_step_do_not_depend_on_processes_and_workers(processes: int, workers: int) -> None:
    steps = 11
    expected = _joined(_run(streamed(Shelf(COUNTS)), steps))
    assert same(_joined(_run(streamed(Shelf(COUNTS)), steps, processes=processes, workers=workers)), expected)
    keys = [keys for step in range(steps) for keys in _sampler(streamed(Shelf(COUNTS))).step(step)]
    assert expected.indices.tolist() == [index for part in keys for index in part.indices.tolist()]
    resumed = _joined(_run(streamed(Shelf(COUNTS)), steps - 4, start=4, processes=processes, workers=workers))
    assert resumed.images.equal(expected.images[4 * 12 :])


def _sampler(source: StreamedImages) -> StepSampler:
    return StepSampler(
        length=len(source),
        batch_size=12,
        micro_batches=2,
        seed=3,
        order=lambda epoch: source.epoch_order(epoch, seed=3, batch_size=12),
    )


def test_a_sample_is_what_it_is_alone() -> None:
    source = streamed(Shelf(COUNTS))
    batch = _joined(_run(source, 7))
    again = source.fetch(batch.indices.numpy(), batch.epochs.numpy())
    assert same(batch, again)
    assert source.image(int(batch.indices[5]), int(batch.epochs[5])).equal(batch.images[5])


def test_one_process_reads_every_row_once_in_an_epoch() -> None:
    shelf = Shelf(COUNTS)
    source = streamed(shelf)
    # 56 samples and batches of 8: seven steps are an epoch.
    for _ in islice(TrainingStream(source, batch_size=8, seed=3), 7):
        pass
    assert set(shelf.read) == {(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)}
    assert shelf.read.most_common(1)[0][1] == 1


def test_processes_and_workers_read_no_row_in_common_but_where_lanes_meet() -> None:
    counts = [16] * 12
    parts = [Shelf(counts) for _ in range(4)]
    for part, shelf in enumerate(parts):
        source = streamed(shelf, lanes=4, shuffle_buffer=32)
        for _ in islice(TrainingStream(source, batch_size=16, seed=3, rank=part, processes=4), 12):
            pass
    # Each lane is three shards long, so that none is cut.
    assert [len(shelf.read) for shelf in parts] == [48] * 4
    assert len(set().union(*(shelf.read for shelf in parts))) == 192
    assert max(count for shelf in parts for count in shelf.read.values()) == 1


def test_shards_that_lie_behind_are_not_opened_on_resume() -> None:
    counts = [16] * 12
    straight, resumed = Shelf(counts), Shelf(counts)
    for shelf, start in ((straight, 0), (resumed, 9)):
        source = streamed(shelf, lanes=2, shuffle_buffer=8)
        for _ in islice(TrainingStream(source, batch_size=16, seed=3, start_step=start), 12 - start):
            pass
    assert len(straight.read) == 192
    # A quarter of the epoch, and what the windows and the shards of both lanes reach beyond it.
    assert len(resumed.read) <= 48 + 2 * (4 + 16)


def test_a_reader_holds_no_more_than_the_windows_of_its_lanes() -> None:
    source = streamed(Shelf([50] * 8), lanes=4, shuffle_buffer=40)
    reader = source.sequential_reader()
    order = source.epoch_order(0, seed=3, batch_size=8)
    reader.expect(order)
    most = 0
    for index in order.tolist():
        reader.take(index)
        most = max(most, len(reader._held))
    assert 4 < most <= 40
    assert not reader._held


def test_what_nobody_told_of_is_read_all_the_same() -> None:
    shelf = Shelf(COUNTS)
    reader = streamed(shelf).sequential_reader()
    rng = np.random.default_rng(0)
    for _ in range(5):
        indices = rng.integers(0, sum(COUNTS), 9)
        assert same(reader.fetch(indices), streamed(Shelf(COUNTS)).fetch(indices))
    with pytest.raises(DataError, match="image indices go from 0 to 55"):
        reader.fetch(np.array([56]))


def test_few_shards_are_open_at_a_time_and_all_are_closed() -> None:
    shelf = Shelf([5] * 40)
    source = streamed(shelf, lanes=2, shuffle_buffer=4)
    for batch in ordered_batches(source, chunk_size=9):
        assert len(shelf.opened) - shelf.closed <= source.most_open
        assert len(batch) in (9, 2)
    del batch
    assert shelf.closed == len(shelf.opened) == 40


def test_many_lanes_on_one_reader_open_each_shard_once() -> None:
    shelf = Shelf([3] * 173)
    # As many stretches as shards: a shard each.
    source = streamed(shelf, lanes=173, shuffle_buffer=173)
    for _ in islice(TrainingStream(source, batch_size=173, seed=3), 3):
        pass
    assert sum(shelf.read.values()) == 3 * 173
    assert len(shelf.opened) == 173


def test_a_shard_is_closed_behind_its_last_sample() -> None:
    shelf = Shelf([5, 7, 3])
    # The last two of each are held out, as a mask may have it.
    mask = np.array([True] * 3 + [False] * 2 + [True] * 5 + [False] * 2 + [True] + [False] * 2)
    place = ShardRows.of_counts(shelf.counts).chosen(mask)
    source = StreamedImages(shelf, place, [str(i) for i in range(9)], streaming=Streaming(), size=(5, 7))
    reader = source.sequential_reader()
    reader.expect(np.arange(9))
    left_open = []
    for index in range(9):
        reader.fetch(np.array([index]))
        left_open.append(len(shelf.opened) - shelf.closed)
    assert left_open == [1, 1, 0, 1, 1, 1, 1, 0, 0]
    assert sorted(shelf.read) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_some_rows_of_a_stream_in_order(workers: int) -> None:
    source = streamed(Shelf(COUNTS))
    rows = np.array([2, 3, 19, 23, 41, 53])
    subset = Subset(source, rows)
    assert sequential_reader(subset) is not None
    batches = list(ordered_batches(subset, chunk_size=4, workers=workers))
    assert [batch.indices.tolist() for batch in batches] == [[2, 3, 19, 23], [41, 53]]
    assert same(_joined(batches), source.fetch(rows))


def test_a_shard_that_has_become_shorter_is_named() -> None:
    with pytest.raises(DataError, match=r"image \d+ of shelf \d is not there: the shard holds fewer images"):
        _run(streamed(Shelf(COUNTS, missing=1)), 9)


@pytest.mark.parametrize("fields", [{"lanes": 0}, {"shuffle_buffer": 0}])
def test_numbers_below_one_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="from 1 up; received"):
        Streaming(**fields)
