"""Data sets that `datasets` loads, whole or for streaming: by name, or parquet, arrow and saved ones on this disk."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvq.data.pictures import open_regular
from hvq.errors import DataError, HVQError
from hvq.extras import require_package

VALIDATION_SPLITS = ("validation", "val", "valid")
# Those whose readers take files apart and nothing else; others run programs, or read what may be a pickle.
_BUILDERS = ("parquet", "arrow", "imagefolder")
_MOST_SHARDS, _LEAST_ROWS = 64, 128
# Where parquet files say what lies where in them, and how large it is.
_END_BYTES = 2**16


@dataclass(frozen=True)
class LoadedData:
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
def loading(name: str) -> Iterator[None]:
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


def load_data(name: str, configuration: str | None, *, streamed: bool) -> LoadedData:
    """A data set, as `hub_sources` describes it.

    Raises:
        DataError: where `datasets` is not installed, or the data set is not of a kind that is safe to read.
    """
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

    return LoadedData(name, splits, _origin(builder, kind), str(builder.cache_dir), narrow)


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


def _load_saved(name: str, *, streamed: bool) -> LoadedData:
    import datasets

    loaded = datasets.load_from_disk(name)
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    origin = repr({split: rows._fingerprint for split, rows in splits.items()})
    if streamed:
        # Any row is had at once; as shards they go the way of others.
        splits = {split: rows.to_iterable_dataset(num_shards=_shards_of(len(rows))) for split, rows in splits.items()}
    return LoadedData(name, splits, origin, origin, lambda split, column: splits[split].select_columns([column]))


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


def held_out_split(loaded: LoadedData, train: str, validation: str | None) -> str | None:
    """The split that is held out; None where a share of the training split has to be.

    Raises:
        DataError: where there is no split of a name that was given, or both are the same.
    """
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
