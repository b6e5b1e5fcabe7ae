"""Images that lie one behind the other in shards that are read from end to end: their order, and their reader.

How it stays exact. The number of samples in each shard is known before training starts, so the order of an epoch is
computed without reading anything, as a function of (seed, epoch, batch size): shards in random order, one behind the
other, and a shuffle in which a sample moves by less than a window. Which samples step t takes is then known at once,
for any t, on any number of processes: nothing is to be saved, and a shard whose samples lie behind is not opened again.

How reading is split. A batch is cut into `lanes` equal parts, and an epoch's sequence into as many stretches; lane l of
every batch comes from stretch l. A process takes a contiguous part of every batch, and each of its workers a part of
that, so with a multiple of processes times workers as lanes, each reads stretches of its own; a shard in which one
stretch ends and the next one begins is read by both. With other numbers the samples and their order are the same, and
some stretches are read by two. Bytes are read in sequence, and those of samples that others take are passed over; each
process decodes what it takes and nothing else.

In order of index, processes take chunks of held-out data in turn, so that each passes over all bytes; of the codes that
are extracted each writes whole files, whose images lie side by side.
"""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hvq.data.encoded import EncodedImages, EncodedOptions
from hvq.data.sources import Batch, Indices
from hvq.errors import ConfigurationError, DataError
from hvq.randomness import permutation, uniform

# Each may be a connection, or a process that loads; more only where there are as many lanes.
_MOST_OPEN = 128


@dataclass(frozen=True)
class Streaming:
    """Whether shards are read from end to end, and how the order of an epoch is made from their numbers of samples.

    Attributes:
        enabled: whether they are; None for those alone that cannot be read otherwise.
        lanes: stretches that are read at the same time, over all processes; fewer where there are fewer shards, or
            samples in a batch.
        shuffle_buffer: samples among which those of all lanes are shuffled.

    Raises:
        ConfigurationError: where a number is below 1.
    """

    enabled: bool | None = None
    lanes: int = 16
    shuffle_buffer: int = 4096

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.shuffle_buffer < 1:
            raise ConfigurationError(
                "streaming takes lanes and shuffle_buffer from 1 up; "
                f"received {self.lanes} lanes and a buffer of {self.shuffle_buffer}"
            )

    @property
    def window(self) -> int:
        """Samples within which each lane is shuffled.

        >>> Streaming(lanes=16, shuffle_buffer=4096).window
        256
        """
        return math.ceil(self.shuffle_buffer / self.lanes)

    def epoch_order(self, counts: Sequence[int], epoch: int, *, seed: int, batch_size: int) -> Indices:
        """The samples in the order of an epoch, int64 `[N]`; they are numbered through all shards.

        Args:
            counts: samples in each shard.
            epoch: the pass over the data.
            seed: of the order.
            batch_size: samples per step over all processes; steps cross from epoch to epoch.

        >>> sorted(Streaming(lanes=2).epoch_order([3, 2, 4], 1, seed=0, batch_size=4).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
        """
        sequence = _shuffled_shards(np.asarray(counts, np.int64), seed, epoch)
        lanes = max(1, min(self.lanes, int(np.count_nonzero(counts)), batch_size))
        place = np.arange(len(sequence), dtype=np.int64)
        lane_of_place = (epoch * len(sequence) + place) % batch_size * lanes // batch_size
        moved = place + self.window * uniform(seed, "window", epoch, sequence)
        ends = np.cumsum(np.bincount(lane_of_place, minlength=lanes)).tolist()
        # Stable: the places of each lane in ascending order, one lane behind the other.
        places = np.argsort(lane_of_place, kind="stable")
        order = np.empty_like(sequence)
        for start, end in zip([0, *ends], ends, strict=False):
            order[places[start:end]] = sequence[start:end][np.argsort(moved[start:end], kind="stable")]
        return order


def _shuffled_shards(counts: Indices, seed: int, epoch: int) -> Indices:
    """The samples of all shards, shard behind shard in random order."""
    starts = np.cumsum(counts) - counts
    shards = permutation(len(counts), seed, "shards", epoch)
    sizes = counts[shards]
    within = np.arange(sizes.sum(), dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(starts[shards], sizes) + within


Rows = Generator[tuple[int, bytes | None], None, None]


class ShardReader(Protocol):
    """Where the bytes come from."""

    def rows(self, shard: int, first: int, wanted: Callable[[int], bool]) -> Rows:
        """The rows of a shard from `first` on: the number of each, and its encoded image where it is wanted.

        Raises:
            DataError: where the shard cannot be read, or holds other rows than it did.
        """
        ...

    def content(self, shard: int, row: int) -> bytes:
        """What tells a changed row from what it was, at little cost."""
        ...

    def where(self, shard: int, row: int) -> tuple[str, str]:
        """Where a row lies, and the way out where it cannot be decoded."""
        ...


@dataclass(frozen=True)
class ShardRows:
    """Where samples lie.

    Attributes:
        counts: samples of each shard, int64 `[shards]`.
        rows: row of each sample in its shard, int64 `[N]`, ascending in each shard, shard behind shard.
    """

    counts: Indices
    rows: Indices

    @classmethod
    def of_counts(cls, counts: Sequence[int]) -> ShardRows:
        """All rows of shards with so many samples."""
        return cls(np.array(counts, np.int64), np.concatenate([np.arange(count) for count in counts]))

    def locate(self, indices: Indices) -> tuple[Indices, Indices]:
        """Shard and row of samples `indices [n]`."""
        return np.searchsorted(self._ends, indices, side="right"), self.rows[indices]

    def one(self, index: int) -> tuple[int, int]:
        """Shard and row of one sample."""
        return int(np.searchsorted(self._ends, index, side="right")), int(self.rows[index])

    @cached_property
    def _ends(self) -> Indices:
        return np.cumsum(self.counts)

    @cached_property
    def last(self) -> Indices:
        """Last row of each shard in which samples lie, int64 `[shards]`; -1 for others."""
        rows = np.full(len(self.counts), -1, np.int64)
        rows[self.counts > 0] = self.rows[self._ends[self.counts > 0] - 1]
        return rows

    def chosen(self, mask: NDArray[np.bool_]) -> ShardRows:
        """Some of the samples, by a mask `[N]`."""
        shards = np.repeat(np.arange(len(self.counts)), self.counts)
        return ShardRows(np.bincount(shards[mask], minlength=len(self.counts)), self.rows[mask])


class StreamedImages(EncodedImages):
    """Images of shards that are read from end to end.

    Any sample can be asked for at any time; what an iteration over the source (`TrainingStream`, `ordered_batches`)
    asks for lies close together, and is read in one pass.

    Args:
        reader: where the bytes come from.
        place: where in its shards each sample lies.
        names: what a person calls each image.
        streaming: how the order of an epoch is made.
        options: `EncodedOptions`.
    """

    def __init__(
        self,
        reader: ShardReader,
        place: ShardRows,
        names: Sequence[str] | NDArray[np.bytes_],
        *,
        streaming: Streaming,
        **options: Unpack[EncodedOptions],
    ) -> None:
        super().__init__(names, **options)
        self.place = place
        self.shards = reader
        self._streaming = streaming

    @property
    def lookahead(self) -> int:
        """Samples of a run, over all processes, that a reader must know of beforehand to read in one pass."""
        return 2 * self._streaming.window * self._streaming.lanes

    @property
    def window(self) -> int:
        """Samples within which each lane is shuffled."""
        return self._streaming.window

    @property
    def most_open(self) -> int:
        """Shards that a reader has open at the same time: in each lane, those that lie within a window."""
        lanes = min(self._streaming.lanes, int(np.count_nonzero(self.place.counts)))
        in_window = math.ceil(self._streaming.window * len(self.place.counts) / max(1, len(self)))
        # With fewer than one for each lane, and the next one, each sample would take the place of another's shard.
        return max(2 * lanes, min(_MOST_OPEN, lanes * (in_window + 2)))

    def epoch_order(self, epoch: int, *, seed: int, batch_size: int) -> Indices:
        """The samples in the order of an epoch, int64 `[N]`."""
        return self._streaming.epoch_order(self.place.counts.tolist(), epoch, seed=seed, batch_size=batch_size)

    def sequential_reader(self) -> StreamReader:
        """A reader for one iteration over the source."""
        return StreamReader(self)

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> Batch:
        """Several images as one batch, with a pass of their own over the shards that they lie in."""
        return self.sequential_reader().fetch(np.asarray(indices, np.int64), epochs)

    def open_image(self, index: int) -> BinaryIO:
        """The encoded image."""
        return io.BytesIO(self.sequential_reader().take(index))

    def content(self, index: int) -> bytes:
        """What tells a changed image from what it was, as the shards have it."""
        return self.shards.content(*self.place.one(index))

    def where(self, index: int) -> tuple[str, str]:
        """Shard and name."""
        return self.shards.where(*self.place.one(index))


class StreamReader:
    """One iteration over streamed images (a `SequentialReader`).

    Holds the bytes of samples that it has passed and that will be fetched: at most those within a window of each lane
    that it reads.
    """

    def __init__(self, images: StreamedImages) -> None:
        self._images = images
        self._due: Counter[int] = Counter()
        self._held: dict[int, bytes] = {}
        # For each shard, the samples that are due and not yet read, by row.
        self._unread: defaultdict[int, dict[int, int]] = defaultdict(dict)
        self._open: list[_OpenShard] = []

    def expect(self, indices: Indices) -> None:
        """Be told of samples that will be fetched, once for each time that they will be."""
        shards, rows = self._images.place.locate(indices)
        for index, shard, row in zip(indices.tolist(), shards.tolist(), rows.tolist(), strict=True):
            self._due[index] += 1
            if index not in self._held:
                self._unread[shard][row] = index

    def fetch(self, indices: Indices, epochs: Indices | None = None) -> Batch:
        """Several images as one batch."""
        if len(indices) and 0 <= indices.min() <= indices.max() < len(self._images):
            # Those that nobody has told of; the others are due already.
            told = self._due
            new = [i for i, times in Counter(indices.tolist()).items() for _ in range(times - told[i])]
            self.expect(np.array(new, np.int64))
        return self._images.assemble(indices, epochs, self._picture)

    def _picture(self, index: int, position: tuple[float, ...]) -> Tensor:
        return self._images.decoded(index, lambda: io.BytesIO(self.take(index)), position)

    def take(self, index: int) -> bytes:
        """The encoded image `index`; what lies before it in its shard is passed.

        Raises:
            DataError: where the shard cannot be read, or has changed.
        """
        if not self._due[index]:
            self.expect(np.array([index]))
        if index not in self._held:
            self._read_up_to(index)
        data = self._held[index]
        self._due[index] -= 1
        if not self._due[index]:
            del self._due[index], self._held[index]
        return data

    def _read_up_to(self, index: int) -> None:
        shard, row = self._images.place.one(index)
        unread = self._unread[shard]
        opened = self._opened(shard, row)
        while index not in self._held:
            found, data = opened.next()
            if data is not None:
                self._held[unread.pop(found)] = data
        if opened.row > self._images.place.last[shard]:
            # Nothing more is wanted of it: neither what follows, nor a connection that stays open.
            self._open.remove(opened)
            opened.close()

    def _opened(self, shard: int, row: int) -> _OpenShard:
        """A shard that is open at or before `row`, as near as can be; newly, it is opened at the first row that is due.

        Where one lane ends in a shard and the next begins, it is open twice.
        """
        near = [opened for opened in self._open if opened.shard == shard and opened.row <= row]
        if near:
            opened = max(near, key=lambda one: one.row)
            self._open.remove(opened)
        else:
            unread, window = self._unread[shard], self._images.window
            # What lies further back is of another lane, which comes to it later.
            first = min(due for due in unread if due > row - window)
            opened = _OpenShard(self._images, shard, first, unread)
        self._open.append(opened)
        # The one that has not been read from for longest.
        while len(self._open) > self._images.most_open:
            self._open.pop(0).close()
        return opened


class _OpenShard:
    """A shard in the middle of being read; `row` is the one that comes next."""

    def __init__(self, images: StreamedImages, shard: int, first: int, unread: dict[int, int]) -> None:
        self.row = first
        self.shard = shard
        self._where = images.shards.where
        self._rows = images.shards.rows(shard, first, unread.__contains__)

    def next(self) -> tuple[int, bytes | None]:
        try:
            row, data = next(self._rows)
        except StopIteration:
            place, _ = self._where(self.shard, self.row)
            raise DataError(
                f"image {place} is not there: the shard holds fewer images than when it was first read; put the old "
                "one back, or start again"
            ) from None
        self.row = row + 1
        return row, data

    def close(self) -> None:
        self._rows.close()
