"""Tar shards in the layout of webdataset: on this machine, where any sample is read at once, or by URL, in sequence."""

from __future__ import annotations

import glob
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO, Unpack
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from hvq.data.augmentation import Augmentation
from hvq.data.encoded import Crop, EncodedImages, EncodedOptions, names_array
from hvq.data.listing import classes_of, top_of
from hvq.data.shard_index import ShardIndex, forget_shard, index_shard
from hvq.data.sources import Indices, Sources
from hvq.data.splits import class_names, class_numbers, common_classes, held_out_by_hash
from hvq.data.stream import Rows, ShardRows, StreamedImages, Streaming
from hvq.data.tar import ATTEMPTS, TAR_ERRORS, Shard, all_images, read_range, reading
from hvq.errors import DataError
from hvq.extras import require_package

_FIX = "mend or remove the sample, or write the shard anew, and start again"


@dataclass(frozen=True)
class ShardTable:
    """The samples of several shards.

    Attributes:
        shards: the shards.
        indices: what each of them holds.
        shard: number of the shard of each sample, int64 `[N]`.
        row: its row there, int64 `[N]`.
        names: its name, UTF-8 `[N]`.
        labels: its class as text, empty where it has none; N of them.
    """

    shards: tuple[Shard, ...]
    indices: tuple[ShardIndex, ...]
    shard: Indices
    row: Indices
    names: NDArray[np.bytes_]
    labels: tuple[str, ...]

    def chosen(self, rows: NDArray[np.bool_] | Indices) -> ShardTable:
        """Some of the samples: by a mask `[N]`, or by number, in that order."""
        numbers = np.arange(len(self.row))[rows]
        labels = tuple(self.labels[number] for number in numbers.tolist())
        return replace(self, shard=self.shard[numbers], row=self.row[numbers], names=self.names[numbers], labels=labels)

    def by_name(self) -> ShardTable:
        """The samples in the order of their names, as a folder has them."""
        return self.chosen(np.argsort(self.names, kind="stable"))

    def text_names(self) -> list[str]:
        """The names."""
        return [name.decode("utf-8", "surrogateescape") for name in self.names.tolist()]

    @property
    def skipped(self) -> tuple[str, ...]:
        """Shard and name of each image that cannot be read."""
        return tuple(
            f"{shard.address}: {name}"
            for shard, index in zip(self.shards, self.indices, strict=True)
            for name in index.skipped
        )

    def size(self, shard: int, row: int) -> bytes:
        """The size of an image, in bytes, as text."""
        return str(self.indices[shard].sizes[row]).encode()

    def where(self, shard: int, row: int) -> tuple[str, str]:
        """Where a row lies, and the way out."""
        names = self.indices[shard].names
        name = names[row] if row < len(names) else f"number {row}"
        return f"{name} of shard {self.shards[shard].address}", _FIX


class ShardImages(EncodedImages):
    """Images of shards on this machine, in any order: each is one read at a known place.

    Args:
        table: the samples, in the order of their indices.
        options: `EncodedOptions`.
    """

    def __init__(
        self,
        table: ShardTable,
        **options: Unpack[EncodedOptions],
    ) -> None:
        super().__init__(table.names, **options)
        self._table = table

    def open_image(self, index: int) -> BinaryIO:
        """The bytes, read from their place in the shard."""
        shard, row = int(self._table.shard[index]), int(self._table.row[index])
        found = self._table.indices[shard]
        return io.BytesIO(
            read_range(self._table.shards[shard], found.stamp.tolist(), int(found.offsets[row]), int(found.sizes[row]))
        )

    def content(self, index: int) -> bytes:
        """The size of the image, in bytes."""
        return self._table.size(int(self._table.shard[index]), int(self._table.row[index]))

    def where(self, index: int) -> tuple[str, str]:
        """Name and shard."""
        return self._table.where(int(self._table.shard[index]), int(self._table.row[index]))


@dataclass(frozen=True)
class TarReader:
    """Shards from end to end (a `ShardReader`)."""

    table: ShardTable

    def content(self, shard: int, row: int) -> bytes:
        """The size of the image, in bytes."""
        return self.table.size(shard, row)

    def where(self, shard: int, row: int) -> tuple[str, str]:
        """Name and shard of a row, and the way out."""
        return self.table.where(shard, row)

    def rows(self, shard: int, first: int, wanted: Callable[[int], bool]) -> Rows:
        """The rows from `first` on; of a file on this machine, what is not wanted is not even read."""
        one = self.table.shards[shard]
        if one.local and not one.compressed:
            return self._ranges(shard, first, wanted)
        return self._retried(shard, first, wanted)

    def _ranges(self, shard: int, first: int, wanted: Callable[[int], bool]) -> Rows:
        one, index = self.table.shards[shard], self.table.indices[shard]
        stamp = index.stamp.tolist()
        for row in range(first, len(index.names)):
            with reading(one):
                place = int(index.offsets[row]), int(index.sizes[row])
                data = read_range(one, stamp, *place) if wanted(row) else None
            yield row, data

    def _retried(self, shard: int, first: int, wanted: Callable[[int], bool]) -> Rows:
        """A connection that breaks off is taken up again where it was."""
        failures = 0
        while True:
            try:
                for row, data in self._pass(shard, first, wanted):
                    first, failures = row + 1, 0
                    yield row, data
                return
            except TAR_ERRORS as error:
                failures += 1
                if isinstance(error, DataError) or self.table.shards[shard].local or failures == ATTEMPTS:
                    with reading(self.table.shards[shard]):
                        raise
                time.sleep(failures)

    def _pass(self, shard: int, first: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, bytes | None]]:
        one, index = self.table.shards[shard], self.table.indices[shard]
        skipped = set(index.skipped)
        row = 0
        for name, file in all_images(one):
            if name in skipped and (row == len(index.names) or name != index.names[row]):
                continue
            if row == len(index.names) or name != index.names[row]:
                forget_shard(one)
                raise DataError(
                    f"shard {one.address} is not the one that was read before: where "
                    f"{index.names[row] if row < len(index.names) else 'its end'} was there is {name}; put the old one "
                    "back, or start again with the new one"
                )
            if row >= first:
                yield row, file.read() if wanted(row) else None
            row += 1
        if row < len(index.names):
            forget_shard(one)
            raise DataError(
                f"shard {one.address} is not the one that was read before: it ends before {index.names[row]}; put the "
                "old one back, or start again with the new one"
            )


# --- from a specification to sources --------------------------------------------------------------------------------


def expand_shards(specification: str) -> tuple[Shard, ...]:
    """The shards that a text stands for, each once, in the order in which it names them.

    Args:
        specification: paths or URLs with ranges in braces, `shard-{000..146}.tar`, or for paths wildcards; several are
            joined by `::`. A folder stands for all `.tar` files in it.

    Raises:
        DataError: where webdataset is not installed, or nothing is there.
    """
    return tuple(named.shard for named in _expand(specification).values())


@dataclass(frozen=True)
class _Named:
    """A shard, and whether a person named it, rather than a folder or wildcards that lead to it."""

    shard: Shard
    explicit: bool


def _expand(specification: str) -> dict[str, _Named]:
    """The shards that a text stands for, by what tells one from another however it is written."""
    shardlists = require_package(
        "webdataset.shardlists", what="shards are read with webdataset", extra="data", error=DataError
    )
    try:
        addresses = shardlists.expand_urls(specification)
    except (AssertionError, ValueError) as error:
        raise DataError(f"{specification!r} does not say where shards are: {error}") from None
    shards: dict[str, _Named] = {}
    for named in (named for address in addresses for named in _shards_at(address)):
        place = os.path.realpath(named.shard.address) if named.shard.local else named.shard.address
        if place not in shards or (named.explicit and not shards[place].explicit):
            shards[place] = named
    if not shards:
        raise DataError(f"there are no shards at {specification!r}; it must name at least one tar file")
    return shards


def _split_shards(train: str, validation: str) -> tuple[list[Shard], list[Shard]]:
    """The shards of both splits; a folder or wildcards of training leave those out that are held out."""
    first, held_out = _expand(train), _expand(validation)
    for place in first.keys() & held_out.keys():
        if first[place].explicit:
            raise DataError(
                f"shard {first[place].shard.address} cannot be both trained on and held out; leave it out of "
                "data.train or data.validation"
            )
    shards = [named.shard for place, named in first.items() if place not in held_out]
    if not shards:
        raise DataError(f"all shards at {train!r} are held out by data.validation, and none is left to train on")
    return shards, [named.shard for named in held_out.values()]


def _shards_at(address: str) -> list[_Named]:
    scheme = urlparse(address).scheme
    if scheme == "file":
        address, scheme = url2pathname(urlparse(address).path), ""
    if scheme == "pipe" or address == "-":
        # It would run whatever a configuration says that came with a model.
        raise DataError(f"shards must be paths or URLs; received {address!r}, which would run a program")
    # A letter is a drive.
    if len(scheme) > 1:
        return [_Named(Shard(address, local=False), explicit=True)]
    if os.path.isdir(address):
        address = os.path.join(glob.escape(address), "*.tar")
    # A file may be called like wildcards.
    if os.path.exists(address) or not glob.has_magic(address):
        return [_Named(Shard(address, local=True), explicit=True)]
    return [_Named(Shard(path, local=True), explicit=False) for path in sorted(glob.glob(address))]


def read_table(shards: Sequence[Shard], label_key: str | None) -> ShardTable:
    """The samples of shards, shard behind shard.

    Raises:
        DataError: where a shard cannot be read, or none of them holds an image.
    """
    with ThreadPoolExecutor(8) as pool:
        indices = tuple(pool.map(lambda shard: index_shard(shard, label_key), shards))
    counts = [len(index.names) for index in indices]
    if not sum(counts):
        unreadable = sum(len(index.skipped) for index in indices)
        found = f"none, and {unreadable} that cannot be read" if unreadable else "none"
        raise DataError(f"shard {shards[0].address} and those beside it must hold images; found {found}")
    return ShardTable(
        tuple(shards),
        indices,
        np.repeat(np.arange(len(shards)), counts),
        np.concatenate([np.arange(count) for count in counts]),
        names_array([name for index in indices for name in index.names]),
        tuple(label for index in indices for label in index.labels),
    )


def shard_sources(
    train: str,
    validation: str | None = None,
    *,
    size: tuple[int, int] = (256, 256),
    channels: int = 3,
    crop: Crop = "center",
    label_key: str | None = None,
    validation_share: float = 0.05,
    streaming: Streaming | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> Sources:
    """Images of tar shards, in the layout of webdataset: members of one name and several suffixes are a sample.

    Each sample has one image. Its class is the number or name in its `.cls`, or under a key of its `.json`; where no
    sample has one, the first folder of its name, if all of them have folders. Shards are looked through once, and what
    was found is kept in the user's cache folder; images that cannot be read are left out.

    Shards on this machine are read at any place at once, in the order of the samples' names: batches are those of a
    folder with the same files. Others (by URL, compressed, or where `streaming` says so) are read from end to end
    (`hvq.data.stream`).

    Args:
        train: the shards, as `expand_shards` takes them; a folder or wildcards may lead to held-out ones, which are
            left out then.
        validation: held-out shards; None for a share of the samples of `train`, by hash of their names, for which all
            shards are read too where they are read from end to end.
        size: height and width to which images are resized (until they just cover it) and cropped, in pixels.
        channels: 1 for grey, 3 for RGB; images are converted.
        crop: which part is kept of an image of another shape.
        label_key: key of the class in each sample's `.json`; None for its `.cls`.
        validation_share: share of samples held out by hash, from 0 to below 1.
        streaming: which shards are read from end to end, and how those are shuffled; `Streaming()` by default.
        augmentation: random changes to training images; none by default.
        seed: of crops and augmentation; the choice of held-out samples does not depend on it.

    Raises:
        DataError: where a shard is missing or damaged, or named in both splits, or these disagree about the classes.
    """
    tables = _tables(train, validation, label_key, validation_share)
    classes, labels = _classes(tables, (train, validation or train))
    streaming = streaming or Streaming()
    sequential = [_in_sequence(table, streaming.enabled) for table in tables]

    def source(split: int, part: Crop, changes: Augmentation | None) -> EncodedImages:
        table = tables[split] if sequential[split] else tables[split].by_name()
        options: EncodedOptions = {
            "labels": labels(table),
            "classes": classes,
            "size": size,
            "channels": channels,
            "crop": part,
            # Both splits of the same shards leave the same images out.
            "skipped": () if split and validation is None else table.skipped,
            "augmentation": changes,
            "seed": seed,
        }
        if not sequential[split]:
            return ShardImages(table, **options)
        counts = np.bincount(table.shard, minlength=len(table.shards))
        return StreamedImages(
            TarReader(table), ShardRows(counts, table.row), table.names, streaming=streaming, **options
        )

    return Sources(train=source(0, crop, augmentation), validation=source(1, "center", None))


def _tables(
    train: str, validation: str | None, label_key: str | None, validation_share: float
) -> tuple[ShardTable, ShardTable]:
    if validation is not None:
        first, second = _split_shards(train, validation)
        return read_table(first, label_key), read_table(second, label_key)
    table = read_table(expand_shards(train), label_key)
    held_out = held_out_by_hash(table.text_names(), validation_share, f"{train!r}")
    return table.chosen(~held_out), table.chosen(held_out)


def _in_sequence(table: ShardTable, enabled: bool | None) -> bool:
    remote = [shard.address for shard in table.shards if not shard.local or shard.compressed]
    if remote and enabled is False:
        raise DataError(
            f"{remote[0]} can only be read from end to end, being a URL or compressed; "
            "set data.streaming.enabled to true or null"
        )
    return bool(remote) or bool(enabled)


def _classes(
    tables: tuple[ShardTable, ShardTable], names: tuple[str, str]
) -> tuple[tuple[str, ...], Callable[[ShardTable], Indices | None]]:
    """The classes of both splits, and the labels of a table."""
    texts = [table.labels for table in tables]
    if any(map(any, texts)):
        classes = class_names(texts[0], texts[1], names)
        return classes, lambda table: class_numbers(table.labels, classes)
    tops = [classes_of(table.text_names()) for table in tables]
    if names[0] == names[1]:
        # A class may have all its few images on one side.
        tops = [classes_of([*tables[0].text_names(), *tables[1].text_names()])] * 2
    classes = common_classes(tops[0], tops[1], names)
    if not classes:
        return (), lambda table: None
    return classes, lambda table: class_numbers([top_of(name) for name in table.text_names()], classes)
