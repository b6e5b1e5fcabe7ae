"""Data sets that `datasets` reads: by name, or parquet, arrow and saved ones on this machine; whole, or streamed."""

from __future__ import annotations

import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Unpack

import numpy as np
from numpy.typing import NDArray

from hvq.data.augmentation import Augmentation
from hvq.data.encoded import Crop, EncodedImages, EncodedOptions
from hvq.data.findings import Arrays, keep, pack, recall, unpack
from hvq.data.pictures import open_regular
from hvq.data.sources import Indices, Sources
from hvq.data.splits import class_names, class_numbers, held_out_by_hash
from hvq.data.stream import Rows, ShardRows, StreamedImages, Streaming
from hvq.errors import DataError, HVQError
from hvq.extras import require_package

VALIDATION_SPLITS = ("validation", "val", "valid")
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
# Those whose readers take files apart and nothing else; others run programs, or read what may be a pickle.
_BUILDERS = ("parquet", "arrow", "imagefolder")
_WHAT = "hub"
_ROWS_AT_ONCE = 64
_MOST_SHARDS, _LEAST_ROWS = 64, 128
# Where parquet files say what lies where in them, and how large it is.
_END_BYTES = 2**16


@dataclass(frozen=True)
class HubColumns:
    """Which columns hold images and classes.

    Attributes:
        image: of encoded images; None for the one that is declared as such, or is called so.
        label: of classes; None for the one that is declared as such, if there is one.
    """

    image: str | None = None
    label: str | None = None


def hub_sources(
    name: str,
    *,
    configuration: str | None = None,
    train: str = "train",
    validation: str | None = None,
    columns: HubColumns | None = None,
    size: tuple[int, int] = (256, 256),
    channels: int = 3,
    crop: Crop = "center",
    validation_share: float = 0.05,
    streaming: Streaming | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> Sources:
    """Images of a data set that `datasets` reads.

    A streamed one is counted once, by reading its labels (or, without labels, all of it), and the numbers are kept in
    the user's cache folder; then it is read as `hvq.data.stream` says. Any other is loaded whole (into the cache folder
    of `datasets`, unless it is a saved one), and its rows are read in any order.

    Args:
        name: a data set of the hub; or on this machine parquet or arrow files (wildcards are fine), a folder of them,
            a folder of images, or one that `save_to_disk` left.
        configuration: which of the configurations of a data set, where it has several.
        train: the split to train on.
        validation: the split that is held out; None for `validation` (or `val`, `valid`) where there is one, and else
            for a share of the rows by hash of their numbers.
        columns: which columns hold images and classes.
        size: height and width to which images are resized (until they just cover it) and cropped, in pixels.
        channels: 1 for grey, 3 for RGB; images are converted.
        crop: which part is kept of an image of another shape.
        validation_share: share of rows held out by hash, from 0 to below 1.
        streaming: whether it is streamed, which by default it is not, and how it is shuffled then.
        augmentation: random changes to training images; none by default.
        seed: of crops and augmentation; the choice of held-out rows does not depend on it.

    Raises:
        DataError: where `datasets` is not installed, or cannot load it, or a split or column is missing.
    """
    streaming, columns = streaming or Streaming(), columns or HubColumns()
    with _loading(name):
        loaded = _load(name, configuration, streamed=bool(streaming.enabled))
        held_out = _held_out_split(loaded, train, validation)
        parts = [_Split(loaded, split, columns) for split in dict.fromkeys((train, held_out or train))]
    masks = [np.ones(len(part), bool) for part in parts]
    if held_out is None:
        mask = held_out_by_hash(np.arange(len(parts[0])), validation_share, name)
        parts, masks = parts * 2, [~mask, mask]
    classes, labels = _classes(parts, name)

    def source(split: int, part: Crop, changes: Augmentation | None) -> EncodedImages:
        numbers = labels[split]
        return parts[split].images(
            masks[split],
            streaming if streaming.enabled else None,
            labels=None if numbers is None else numbers[masks[split]],
            classes=classes,
            size=size,
            channels=channels,
            crop=part,
            augmentation=changes,
            seed=seed,
            origin=loaded.origin,
        )

    return Sources(train=source(0, crop, augmentation), validation=source(1, "center", None))


# --- loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loaded:
    """A data set, loaded or to be streamed.

    Attributes:
        name: of the data set.
        splits: its splits, by name.
        origin: changes when the data do, and not with where they lie.
        read: changes when they are to be counted anew.
        narrow: a split with one of its columns alone, for which no other is read where that is possible.
    """

    name: str
    splits: dict[str, Any]
    origin: str
    read: str
    narrow: Callable[[str, str], Any]


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Names the data set in whatever goes wrong."""
    try:
        yield
    except HVQError:
        raise
    except Exception as error:  # Whatever stands between here and another machine.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data set {name} cannot be loaded ({reason}); data.name must be a data set of the hub, or a path to "
            "parquet or arrow files or to a saved data set, all of them whole"
        ) from None


def _load(name: str, configuration: str | None, *, streamed: bool) -> _Loaded:
    datasets = require_package(
        "datasets", what="data sets of the hub are read with datasets", extra="hub", error=DataError
    )
    if any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json")):
        return _load_saved(name, streamed=streamed)
    arguments = _arguments(name, configuration)
    builder = datasets.load_dataset_builder(**arguments)
    kind = _allowed_kind(builder, name, streamed=streamed)
    splits = dict(datasets.load_dataset(**arguments, streaming=streamed))

    def narrow(split: str, column: str) -> Any:
        if kind == "parquet":
            return datasets.load_dataset(**arguments, streaming=True, columns=[column])[split]
        return splits[split].select_columns([column])

    return _Loaded(name, splits, _origin(builder, kind), str(builder.cache_dir), narrow)


def _files(builder: Any) -> list[str]:
    """The files of a data set, of all splits."""
    return [str(file) for files in (builder.config.data_files or {}).values() for file in files]


def _origin(builder: Any, kind: str) -> str:
    """What tells the data from others: of files on this machine, sizes and ends; of those of the hub, its version."""
    files = _files(builder)
    if not files or any("://" in file for file in files):
        # The first parts say where it was put here.
        return "/".join(Path(builder.cache_dir).parts[-3:])
    digest = hashlib.sha256()
    for file in files:
        if kind == "imagefolder":
            digest.update(f"{os.path.getsize(file)} ".encode())
            continue
        with open_regular(Path(file)) as content:
            size = content.seek(0, os.SEEK_END)
            content.seek(max(0, size - _END_BYTES))
            digest.update(f"{size} ".encode() + content.read())
    return digest.hexdigest()


def _load_saved(name: str, *, streamed: bool) -> _Loaded:
    import datasets

    loaded = datasets.load_from_disk(name)
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    origin = repr({split: rows._fingerprint for split, rows in splits.items()})
    if streamed:
        # Any row is had at once; as shards they go the way of others.
        splits = {split: rows.to_iterable_dataset(num_shards=_shards_of(len(rows))) for split, rows in splits.items()}
    return _Loaded(name, splits, origin, origin, lambda split, column: splits[split].select_columns([column]))


def _shards_of(rows: int) -> int:
    """Into how many shards a saved split is cut: not so many that opening them takes longer than reading them."""
    return min(_MOST_SHARDS, max(1, rows // _LEAST_ROWS))


def _arguments(name: str, configuration: str | None) -> dict[str, Any]:
    """For `load_dataset` and `load_dataset_builder`."""
    # A file or folder may be called like wildcards.
    wildcards = glob.has_magic(name) and not os.path.exists(name)
    files = sorted(glob.glob(name)) if wildcards else [name]
    kinds = {Path(file).suffix for file in files}
    if kinds <= {".parquet", ".arrow"} and len(kinds) == 1:
        missing = [file for file in files if not Path(file).is_file()]
        if missing:
            raise DataError(f"no file {missing[0]}; set data.name to parquet or arrow files that exist")
        return {"path": kinds.pop()[1:], "data_files": {"train": [str(Path(file).absolute()) for file in files]}}
    if wildcards:
        raise DataError(
            f"data.name must lead to parquet or arrow files; {name} leads to {', '.join(files[:3]) or 'none'}"
        )
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise DataError(f"no folder {name}; data.name must be a data set of the hub, or a path that exists")
    return {"path": name, "name": configuration}


def _allowed_kind(builder: Any, name: str, *, streamed: bool) -> str:
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _BUILDERS:
        way_out = "take `kind: shards`" if kind == "webdataset" else "save it as one of them"
        raise DataError(
            f"data set {name} must consist of parquet or arrow files, or be a folder of images; it is of kind {kind}: "
            f"{way_out}"
        )
    if streamed and kind == "imagefolder" and any("://" in file for file in _files(builder)):
        raise DataError(
            f"data set {name} is a folder of images on another machine, which cannot be streamed: set "
            "data.streaming.enabled to null, and it is loaded whole, or save it as parquet"
        )
    return kind


def _held_out_split(loaded: _Loaded, train: str, validation: str | None) -> str | None:
    for split in (train, validation):
        if split is not None and split not in loaded.splits:
            raise DataError(
                f"data set {loaded.name} has no split {split!r}; set data.train and data.validation to one of "
                f"{', '.join(loaded.splits)}"
            )
    if validation == train:
        raise DataError(
            f"data.train and data.validation of data set {loaded.name} must be two splits; both are {train!r}: set "
            "data.validation to null, and a share of it is held out where there is no split for that"
        )
    if validation is not None:
        return validation
    return next((split for split in VALIDATION_SPLITS if split in loaded.splits and split != train), None)


# --- one split -------------------------------------------------------------------------------------------------------


class _Split:
    """One split of a data set, and what its columns are."""

    def __init__(self, loaded: _Loaded, split: str, columns: HubColumns) -> None:
        rows = loaded.splits[split]
        self._loaded, self._split = loaded, split
        features = rows.features if rows.features is not None else rows._resolve_features().features
        self._image = _image_column(features, columns.image, loaded.name)
        self._label = _label_column(features, columns.label, loaded.name)
        self._others = [name for name in features if name != self._image]
        self._rows = _undecoded(rows, features, self._image)
        self.declared_classes: tuple[str, ...] | None = None
        if self._label is not None and getattr(features[self._label], "names", None):
            self.declared_classes = tuple(features[self._label].names)
        self.counts, self.labels = self._count() if not hasattr(rows, "num_rows") else self._known()

    def __len__(self) -> int:
        return sum(self.counts)

    def images(
        self, mask: NDArray[np.bool_], streaming: Streaming | None, **options: Unpack[EncodedOptions]
    ) -> EncodedImages:
        """The rows for which `mask [N]` is true."""
        numbers = np.flatnonzero(mask)
        names = [f"{self._split}/{number}" for number in numbers.tolist()]
        what = f"split {self._split} of data set {self._loaded.name}"
        reader = HubReader(self._rows, self._image, what)
        if streaming is None:
            return HubImages(reader, numbers, names, **options)
        place = ShardRows.of_counts(self.counts).chosen(mask)
        return StreamedImages(reader, place, names, streaming=streaming, **options)

    def _known(self) -> tuple[list[int], list[str] | None]:
        rows = self._loaded.splits[self._split]
        labels = (
            None
            if self._label is None
            else _texts(rows.select_columns([self._label]).with_format(None)[:][self._label])
        )
        return [rows.num_rows], labels

    def _count(self) -> tuple[list[int], list[str] | None]:
        """Rows of each shard, and all labels, from one pass over the labels, ever."""
        key = repr((self._loaded.name, self._split, self._label))
        known = recall(_WHAT, key, self._loaded.read)
        if known is None:
            known = self._counted()
            keep(_WHAT, key, self._loaded.read, known)
        return known["counts"].tolist(), None if self._label is None else unpack(known["labels"])

    def _counted(self) -> Arrays:
        column = self._label or next(iter(self._others), None)
        rows = self._rows if column is None else self._loaded.narrow(self._split, column).with_format("arrow")
        counts, labels = list[int](), list[str]()
        for shard in range(rows.num_shards):
            counts.append(0)
            for table in _tables(rows, shard, 0):
                counts[-1] += table.num_rows
                labels += [] if self._label is None else _texts(table.column(self._label).to_pylist())
        return {"counts": np.array(counts, np.int64), "labels": pack(labels)}


def _image_column(features: dict[str, Any], wanted: str | None, name: str) -> str:
    declared = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    called = [column for column in IMAGE_COLUMNS if column in features]
    found = [wanted] if wanted is not None else declared if len(declared) == 1 else called[:1]
    if len(found) != 1 or found[0] not in features:
        missing = f"no column {wanted!r}" if wanted is not None else "no column that is clearly the one of images"
        raise DataError(f"data set {name} has {missing}; set data.columns.image to one of {', '.join(features)}")
    return found[0]


def _label_column(features: dict[str, Any], wanted: str | None, name: str) -> str | None:
    if wanted is not None and wanted not in features:
        raise DataError(
            f"data set {name} has no column {wanted!r}; set data.columns.label to one of {', '.join(features)}"
        )
    declared = [column for column, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if wanted is None and len(declared) > 1:
        raise DataError(
            f"data set {name} has {len(declared)} columns of classes; set data.columns.label to one of "
            f"{', '.join(declared)}"
        )
    return wanted if wanted is not None else declared[0] if declared else None


def _undecoded(rows: Any, features: dict[str, Any], column: str) -> Any:
    """The column of images alone, as bytes."""
    import datasets

    rows = rows.select_columns([column])
    if type(features[column]).__name__ == "Image":
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows.with_format("arrow")


def _texts(labels: Sequence[Any]) -> list[str]:
    """Labels as text, empty for what stands for none."""
    return ["" if label is None or label == -1 else str(label).replace("\0", "?") for label in labels]


def _classes(parts: Sequence[_Split], name: str) -> tuple[tuple[str, ...], list[Indices | None]]:
    """The classes, and the labels of each part."""
    declared = {part.declared_classes for part in parts}
    if len(declared) > 1:
        raise DataError(f"both splits of data set {name} must have the same classes; theirs differ")
    texts = [part.labels or [] for part in parts]
    classes = declared.pop()
    if classes is not None:
        return classes, [np.array([int(text or -1) for text in some], np.int64) for some in texts]
    if not any(any(some) for some in texts):
        return (), [None for _ in parts]
    classes = class_names(texts[0], texts[-1], (f"the training split of {name}", f"the held-out split of {name}"))
    return classes, [class_numbers(some, classes) for some in texts]


# --- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubReader:
    """Encoded images of one split (a `ShardReader`, where it is streamed).

    Attributes:
        rows_of_split: the split, with the column of images alone, in arrow format.
        column: of images.
        what: the split, for errors.
    """

    rows_of_split: Any
    column: str
    what: str

    def row(self, number: int) -> BinaryIO:
        """One row of a split that is not streamed."""
        return _opened(self.rows_of_split[number].column(self.column)[0].as_py())

    def rows(self, shard: int, first: int, wanted: Callable[[int], bool]) -> Rows:
        """The rows of a shard from `first` on."""
        number = first
        try:
            for table in _tables(self.rows_of_split, shard, first):
                images = table.column(self.column)
                for place in range(table.num_rows):
                    data = None
                    if wanted(number):
                        with _opened(images[place].as_py()) as file:
                            data = file.read()
                    yield number, data
                    number += 1
        except HVQError:
            raise
        except Exception as error:  # Whatever stands between here and another machine.
            where, way_out = self.where(shard, number)
            raise DataError(f"image {where} cannot be read ({' '.join(str(error).split())}); {way_out}") from None

    def content(self, shard: int, row: int) -> bytes:
        """Nothing: what tells the data is in the settings."""
        return b""

    def where(self, shard: int, row: int) -> tuple[str, str]:
        """The row, and the way out."""
        return (
            f"{row} of shard {shard} of {self.what}",
            "save the data set anew without this row, or with a sound image in it, and start again",
        )


class HubImages(EncodedImages):
    """Rows of a split that is not streamed, in any order.

    Args:
        reader: of the split.
        numbers: of the rows, in the order of indices, int64 `[N]`.
        names: of the rows.
        options: `EncodedOptions`.
    """

    def __init__(
        self, reader: HubReader, numbers: Indices, names: Sequence[str], **options: Unpack[EncodedOptions]
    ) -> None:
        super().__init__(names, **options)
        self._reader = reader
        self._numbers = numbers

    def open_image(self, index: int) -> BinaryIO:
        """The bytes of the row."""
        return self._reader.row(int(self._numbers[index]))

    def where(self, index: int) -> tuple[str, str]:
        """The row, and the way out."""
        return self._reader.where(0, int(self._numbers[index]))


def _opened(value: Any) -> BinaryIO:
    """An encoded image as a row holds it: bytes, or a file beside the data set.

    Raises:
        OSError: where there is none.
    """
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, bytes):
        return io.BytesIO(data)
    if data is None and isinstance(path, str):
        return open_regular(Path(path))
    raise OSError(f"the row holds {'nothing' if value is None else type(value).__name__} where an image should be")


def _tables(rows: Any, shard: int, first: int) -> Iterator[Any]:
    """The rows of one shard of a streamed split in arrow format from `first` on, some at a time."""
    part = rows.shard(num_shards=rows.num_shards, index=shard)
    # `iter`, since iterating itself would leave rows to other workers of the loader.
    yield from (part.skip(first) if first else part).iter(batch_size=_ROWS_AT_ONCE)
