"""Codes as one parquet file, for whatever reads tables: `datasets`, pandas, polars, DuckDB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hvq.data.code_files import CodesDescription, code_type, label_type
from hvq.data.codes import CodeFolder
from hvq.errors import DataError
from hvq.extras import require_package
from hvq.files import write_file

if TYPE_CHECKING:
    import pyarrow

ENTRY = "hvq"
"""Under which the schema's metadata hold what the columns mean."""

# Codes of a row group, whatever the size of images; a reader takes in no less than one group.
_CODES_AT_ONCE = 1 << 20


def write_parquet(path: Path, folders: Sequence[CodeFolder]) -> int:
    """Write the codes of splits one behind the other, in row groups, so that memory stays small; whole or not at all.

    Columns: `codes_<level>`, lists of fixed length of the smallest integer type that fits, a grid in raster order, the
    G codes of a position side by side; `label`, -1 where it is unknown; `index`, the image in its source; `epoch`, the
    augmented epoch that it was encoded in, 0 for as it is; `split`, the name of its folder; `vector`, a list of
    float32, where images have vectors. The schema's metadata hold, as JSON under "hvq", level names, coarse to fine,
    codebook sizes, the shape of one image's codes by level, the size of images, names of classes, how many numbers a
    vector has, and the hash of what encoded them.

    Args:
        path: of the file.
        folders: of one extraction.

    Returns:
        The number of rows.

    Raises:
        ConfigurationError: where the package pyarrow is not installed.
        DataError: where the folders hold codes of different autoencoders or shapes.
        CheckpointError: where a code or label is damaged.
        StorageError: where the system does not let the file be written.
    """
    parquet = require_package(
        "pyarrow.parquet", what="parquet is written with pyarrow, which comes with datasets", extra="hub"
    )
    meaning = _common_meaning(folders)
    schema = _schema(folders[0].description, meaning)

    def write(partial: Path) -> None:
        with parquet.ParquetWriter(partial, schema) as writer:
            for folder in folders:
                for batch in _batches(folder, schema):
                    writer.write_batch(batch)

    write_file(path, write)
    return sum(len(folder) for folder in folders)


def _meaning(description: CodesDescription) -> dict[str, Any]:
    levels = description.level_names
    return {
        "level_names": levels,
        "codebook_sizes": {level: description.codebook_sizes[level] for level in levels},
        "shapes": {level: description.shape(level) for level in levels},
        "image_size": description.image_size,
        "classes": description.classes,
        "encoder_hash": description.encoder_hash,
        "vector_size": description.vector_size,
    }


def _common_meaning(folders: Sequence[CodeFolder]) -> dict[str, Any]:
    meanings = [_meaning(folder.description) for folder in folders]
    for folder, meaning in zip(folders, meanings, strict=True):
        if differing := [name for name, value in meaning.items() if value != meanings[0][name]]:
            raise DataError(
                f"codes in {folders[0].path} and {folder.path} differ in {', '.join(differing)}; extract both again, "
                "or write a file for each"
            )
    return meanings[0]


def _arrow_type(kind: torch.dtype) -> pyarrow.DataType:
    import pyarrow

    return pyarrow.from_numpy_dtype(torch.empty(0, dtype=kind).numpy().dtype)


def _schema(description: CodesDescription, meaning: dict[str, Any]) -> pyarrow.Schema:
    import pyarrow

    codes = [
        pyarrow.field(
            f"codes_{level}",
            pyarrow.list_(_arrow_type(code_type(description.codebook_sizes[level])), _length(description, level)),
        )
        for level in description.level_names
    ]
    others = {
        "label": _arrow_type(label_type(len(description.classes))),
        "index": pyarrow.int64(),
        "epoch": pyarrow.int32(),
        "split": pyarrow.string(),
    }
    if description.vector_size:
        others["vector"] = pyarrow.list_(pyarrow.float32(), description.vector_size)
    return pyarrow.schema(
        [*codes, *(pyarrow.field(name, kind) for name, kind in others.items())],
        metadata={ENTRY: json.dumps(meaning)},
    )


def _length(description: CodesDescription, level: str) -> int:
    return int(np.prod(description.shape(level)))


def _batches(folder: CodeFolder, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """The rows of a split in their order, a row group at a time."""
    import pyarrow

    described = folder.description
    rows = max(1, _CODES_AT_ONCE // sum(_length(described, level) for level in described.level_names))
    for start in range(0, len(folder), rows):
        batch = folder.fetch(np.arange(start, min(start + rows, len(folder))))
        epochs, indices = np.divmod(batch.indices.numpy(), folder.num_images)
        columns: dict[str, Any] = {
            "label": pyarrow.array(batch.labels.numpy(), schema.field("label").type),
            "index": pyarrow.array(indices),
            "epoch": pyarrow.array(epochs, pyarrow.int32()),
            "split": pyarrow.repeat(folder.path.name, len(batch)),
        }
        for level, codes in batch.codes.items():
            kind = schema.field(f"codes_{level}").type
            values = codes.to(code_type(described.codebook_sizes[level])).flatten()
            columns[f"codes_{level}"] = pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(values.numpy(), kind.value_type), type=kind
            )
        if batch.vectors is not None:
            columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(batch.vectors.flatten().numpy()), type=schema.field("vector").type
            )
        yield pyarrow.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
