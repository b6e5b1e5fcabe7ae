"""Images of data sets that `datasets` reads, whole or streamed: which columns, which rows, and their bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Unpack

import numpy as np
from numpy.typing import NDArray

from hvq.data.augmentation import Augmentation
from hvq.data.encoded import Crop, EncodedImages, EncodedOptions
from hvq.data.findings import Arrays, keep, pack, recall, unpack
from hvq.data.hub_loading import LoadedData, held_out_split, load_data, loading
from hvq.data.pictures import open_regular
from hvq.data.sources import Indices, Sources
from hvq.data.splits import class_names, class_numbers, held_out_by_hash
from hvq.data.stream import Rows, ShardRows, StreamedImages, Streaming
from hvq.errors import DataError, HVQError

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_WHAT = "hub"
_ROWS_AT_ONCE = 64


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
    with loading(name):
        loaded = load_data(name, configuration, streamed=bool(streaming.enabled))
        held_out = held_out_split(loaded, train, validation)
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


# --- one split -------------------------------------------------------------------------------------------------------


class _Split:
    """One split of a data set, and what its columns are."""

    def __init__(self, loaded: LoadedData, split: str, columns: HubColumns) -> None:
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
