"""What a folder of codes holds: files of codes, how often each code occurs, and an index that is written last.

A folder of codes holds one folder per split. Row `e * num_images + i` of a split is image i as it was encoded in
augmented epoch e (0: as it is). Rows are cut into files by their number alone: `shard-<s>.safetensors` holds the
`images_per_shard` rows from `s * images_per_shard` on, `codes.<level>` and `labels` in the smallest integer types that
fit. So which row lies where is arithmetic, and a file is the same whichever process writes it. Each names in its
metadata the description that it belongs to, its rows, and a checksum of its columns. `counts.safetensors` holds how
often each code of each level occurs, and `vectors.safetensors`, where images have vectors, a row for each image.
`index.json`, the description, is written last: a folder without it is not whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hvq.config_base import FrozenModel, Size
from hvq.errors import CheckpointError
from hvq.files import read_json, read_tensors, write_json, write_tensors
from hvq.histograms import count_codes
from hvq.level_names import in_level_order

# 2: rows lie where their number says. 1 had files for each process, and in them where each row belongs.
FORMAT_VERSION = 2
INDEX_FILE = "index.json"
COUNTS_FILE = "counts.safetensors"
_ENTRY = "codes"
_ROWS_AT_ONCE = 256

Columns = dict[str, Tensor]
"""By name, `codes.<level>` and `labels`."""

Counts = dict[str, Tensor]
"""How often each code occurs, int64 `[G, K]` by level."""


class CodesDescription(FrozenModel):
    """What the codes of one split are, and what made them."""

    level_names: tuple[str, ...] = Field(min_length=1, description="levels, coarse to fine")
    codebook_sizes: dict[str, PositiveInt] = Field(description="K of each level")
    grids: dict[str, Size] = Field(description="h and w of each level, or one or three lengths")
    codes_per_position: dict[str, PositiveInt] = Field(
        default_factory=dict, description="G of each level that has more than one"
    )
    image_size: Size = Field(description="H and W of the images, in pixels, or one or three lengths")
    encoder_hash: str = Field(description="hash of the tensors that determine `encode`")
    data_hash: str = Field("", description="hash of what tells the images, and how they were read and encoded")
    classes: tuple[str, ...] = Field((), description="names of the classes, in the order of labels")
    num_images: PositiveInt = Field(description="images in the split")
    augmented_epochs: PositiveInt = Field(1, description="times each image was encoded")
    images_per_shard: PositiveInt = Field(4_096, description="rows in one file; the last may have fewer")
    vector_size: NonNegativeInt = Field(0, description="numbers of each image's vector; 0 without vectors")
    vectors_hash: str = Field("", description="hash of the vectors")

    @model_validator(mode="after")
    def _levels_agree(self) -> CodesDescription:
        in_level_order(self.codebook_sizes, self.level_names, "codebook_sizes")
        in_level_order(self.grids, self.level_names, "grids")
        return self

    def shape(self, level: str) -> tuple[int, ...]:
        """Of one image's codes: `[h, w]`, or `[h, w, G]` where positions have several."""
        several = self.codes_per_position.get(level, 1)
        return (*self.grids[level], several) if several > 1 else self.grids[level]

    @property
    def num_rows(self) -> int:
        """Rows of codes: each image once for each augmented epoch."""
        return self.num_images * self.augmented_epochs

    @property
    def num_shards(self) -> int:
        """Files of codes."""
        return math.ceil(self.num_rows / self.images_per_shard)

    def rows(self, shard: int) -> range:
        """The rows that a file holds."""
        start = shard * self.images_per_shard
        return range(start, min(start + self.images_per_shard, self.num_rows))

    def passes(self, shard: int) -> list[tuple[int, int, int]]:
        """The rows of a file as `(epoch, start, stop)`: the images from `start` to before `stop` in that epoch.

        >>> description = CodesDescription(
        ...     level_names=("top",), codebook_sizes={"top": 2}, grids={"top": (1, 1)}, image_size=(4, 4),
        ...     encoder_hash="", num_images=5, augmented_epochs=2, images_per_shard=4,
        ... )
        >>> description.passes(1)
        [(0, 4, 5), (1, 0, 3)]
        """
        rows, length = self.rows(shard), self.num_images
        return [
            (epoch, max(rows.start - epoch * length, 0), min(rows.stop - epoch * length, length))
            for epoch in range(rows.start // length, (rows.stop - 1) // length + 1)
        ]

    @property
    def content_hash(self) -> str:
        """Stands for the codes, however they are cut into files."""
        content = f"{self.encoder_hash} {self.data_hash} {self.augmented_epochs}"
        if self.vector_size:
            content += f" {self.vectors_hash}"
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def without_vectors(self) -> CodesDescription:
        """The same codes, of images that have no vectors."""
        return self.model_copy(update={"vector_size": 0, "vectors_hash": ""})

    @property
    def digest(self) -> str:
        """Stands for the description in each file of codes, which vectors do not change."""
        about = self.model_dump(mode="json", exclude={"vector_size", "vectors_hash"})
        content = {"format_version": FORMAT_VERSION, **about}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_type(codebook_size: int) -> torch.dtype:
    """The smallest integer type that holds all codes of a codebook.

    >>> code_type(256), code_type(257), code_type(65_536)
    (torch.uint8, torch.int16, torch.int32)
    """
    if codebook_size <= 2**8:
        return torch.uint8
    return torch.int16 if codebook_size <= 2**15 else torch.int32


def label_type(num_classes: int) -> torch.dtype:
    """The smallest integer type that holds all labels, and -1 for an unknown one.

    >>> label_type(0), label_type(128), label_type(129)
    (torch.int8, torch.int8, torch.int16)
    """
    if num_classes <= 2**7:
        return torch.int8
    return torch.int16 if num_classes <= 2**15 else torch.int32


def shard_name(shard: int) -> str:
    """The name of a file of codes.

    >>> shard_name(7)
    'shard-00007.safetensors'
    """
    return f"shard-{shard:05d}.safetensors"


def empty_columns(description: CodesDescription, rows: int) -> Columns:
    """The columns of a file with room for so many rows, to be filled."""
    columns = {
        f"codes.{level}": torch.empty(
            rows, *description.shape(level), dtype=code_type(description.codebook_sizes[level])
        )
        for level in description.level_names
    }
    return columns | {"labels": torch.empty(rows, dtype=label_type(len(description.classes)))}


def damaged(file: Path, fault: str) -> CheckpointError:
    """The error that says so."""
    return CheckpointError(f"codes in {file} are damaged: {fault}; extract the codes again")


# --- files of codes -------------------------------------------------------------------------------------------------


def write_shard(folder: Path, description: CodesDescription, shard: int, columns: Columns) -> None:
    """Write one file of codes, whole or not at all."""
    about = {**_about(description, shard), "sha256": checksum(columns)}
    # One entry, for several would come in any order, and the same codes give other bytes.
    write_tensors(folder / shard_name(shard), columns, {_ENTRY: json.dumps(about)})


def open_shard(folder: Path, description: CodesDescription, shard: int) -> Columns:
    """The columns of a file; safetensors maps them into memory, so that nothing is read until it is used.

    Raises:
        CheckpointError: where it is missing, damaged, or of other codes.
    """
    return _open(folder, description, shard)[0]


def open_verified(folder: Path, description: CodesDescription, shard: int) -> Columns | None:
    """The columns of a file after all of it was read and compared with its checksum; None where it must be made."""
    try:
        columns, about = _open(folder, description, shard)
    except CheckpointError:
        return None
    return columns if about.get("sha256") == checksum(columns) else None


def checksum(columns: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of columns."""
    digest = hashlib.sha256()
    for name, column in sorted(columns.items()):
        digest.update(f"{name} {column.dtype} {tuple(column.shape)}\n".encode())
        digest.update(column.contiguous().numpy().data)
    return digest.hexdigest()


def empty_counts(description: CodesDescription) -> Counts:
    """Counts of no codes."""
    return {
        level: torch.zeros(description.codes_per_position.get(level, 1), size, dtype=torch.int64)
        for level, size in in_level_order(description.codebook_sizes, description.level_names, "counts").items()
    }


def count_columns(description: CodesDescription, columns: Columns) -> Counts:
    """Counts of the codes of a file, taken in pieces, so that memory stays small."""
    counts = empty_counts(description)
    for level, count in counts.items():
        for piece in columns[f"codes.{level}"].split(_ROWS_AT_ONCE):
            count += count_codes(piece.long().view(-1, len(count)), count.shape[1])
    return counts


def _about(description: CodesDescription, shard: int) -> dict[str, Any]:
    rows = description.rows(shard)
    return {"description": description.digest, "rows": [rows.start, rows.stop]}


def _open(folder: Path, description: CodesDescription, shard: int) -> tuple[Columns, dict[str, Any]]:
    path, wanted = folder / shard_name(shard), empty_columns(description, 0)
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_ENTRY, "null"))
            columns: Columns = {name: file.get_tensor(name) for name in wanted}
    except FileNotFoundError:
        raise CheckpointError(f"codes are missing the file {path}; extract the codes again") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(path, str(error)) from None
    for name, column in columns.items():
        kind, shape = wanted[name].dtype, (len(description.rows(shard)), *wanted[name].shape[1:])
        if column.dtype != kind or column.shape != shape:
            raise damaged(path, f"{name} must be {kind} {list(shape)} and is {column.dtype} {list(column.shape)}")
    if not isinstance(about, dict) or any(about.get(key) != value for key, value in _about(description, shard).items()):
        raise CheckpointError(f"{path} holds other codes than {INDEX_FILE} beside it says; extract the codes again")
    return columns, about


# --- the index and the counts ---------------------------------------------------------------------------------------


def write_index(folder: Path, description: CodesDescription, counts: Counts) -> None:
    """Declare a folder whole: the counts, and then the index.

    Raises:
        CheckpointError: where a file of codes is missing, damaged, or of other codes.
    """
    for shard in range(description.num_shards):
        open_shard(folder, description, shard)
    write_tensors(folder / COUNTS_FILE, counts)
    write_json(folder / INDEX_FILE, {"format_version": FORMAT_VERSION, **description.model_dump(mode="json")})


def read_index(folder: Path) -> CodesDescription:
    """The description of a folder that is whole.

    Raises:
        CheckpointError: where there is none, or it is damaged or of another version.
    """
    file = folder / INDEX_FILE
    if not file.exists():
        begun = " (what was begun is there: go on with --resume)" if partial_folder(folder).exists() else ""
        raise CheckpointError(f"no complete codes in {folder}; extract the codes first{begun}")
    content: dict[str, Any] = read_json(file, "index of codes")
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"codes in {folder} must have format_version {FORMAT_VERSION} and have {version}; extract the codes again"
        )
    try:
        return CodesDescription.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise damaged(file, f"{where}: {first['msg']}") from None


def read_counts(folder: Path, description: CodesDescription) -> Counts:
    """The counts of a folder, coarse to fine.

    Raises:
        CheckpointError: where the file is missing, or is not about the codes beside it.
    """
    path = folder / COUNTS_FILE
    counts, _ = read_tensors(path, "counts of codes")
    for level, none in empty_counts(description).items():
        total = description.num_rows * math.prod(description.grids[level])
        found = counts.get(level, torch.zeros(0))
        fits = found.dtype == none.dtype and found.shape == none.shape
        if not fits or bool((found < 0).any() or (found.sum(1) != total).any()):
            raise damaged(path, f"counts of level {level} must be int64 {list(none.shape)} whose rows sum to {total}")
    return in_level_order(counts, description.level_names, "counts of codes")


def partial_folder(folder: Path) -> Path:
    """Where the codes of a split lie while they are being written."""
    return folder.with_name(f".{folder.name}.partial")
