"""Codes come back as they were written, whoever wrote them; what is damaged or foreign is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hvq.data import CodeExtraction, CodeFolder, TrainingStream
from hvq.data.code_files import shard_name
from hvq.errors import CheckpointError, DataError
from tests.data.small_codes import (
    EPOCHS,
    GRIDS,
    IMAGES,
    LABELS,
    SIZES,
    codes_of,
    description,
    memory,
    write,
    write_large,
)


@pytest.mark.parametrize("images_per_shard", [1, 5, 1000])
def test_codes_come_back_as_they_were_written(tmp_path: Path, images_per_shard: int) -> None:
    write(tmp_path, images_per_shard=images_per_shard)
    folder = CodeFolder(tmp_path, "train")
    rows = np.random.default_rng(0).integers(0, len(folder), 53)
    batch = folder.fetch(rows, np.full(53, 4))
    assert list(batch.codes) == ["top", "bottom"]
    for level, values in codes_of().items():
        assert batch.codes[level].dtype == torch.int64
        assert torch.equal(batch.codes[level], values[rows])
    assert torch.equal(batch.labels, LABELS[rows % IMAGES])
    assert batch.indices.tolist() == rows.tolist()
    assert batch.epochs.tolist() == [4] * 53
    assert len(batch) == 53


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path)
    folder = CodeFolder(tmp_path, "train")
    assert (folder.level_names, folder.codebook_sizes, folder.grids) == (("top", "bottom"), SIZES, GRIDS)
    assert (folder.image_size, folder.encoder_hash, folder.classes) == ((20, 28), "abc", ("cat", "dog"))
    assert (folder.num_images, len(folder)) == (IMAGES, IMAGES * EPOCHS)
    assert folder.fetch(np.arange(3)).epochs.tolist() == [-1] * 3


def test_counts_equal_a_plain_histogram(tmp_path: Path) -> None:
    write(tmp_path)
    folder = CodeFolder(tmp_path, "train")
    for level, values in codes_of().items():
        expected = np.bincount(values.flatten().numpy(), minlength=SIZES[level])
        assert folder.counts(level).tolist() == [expected.tolist()]
    with pytest.raises(DataError, match="top, bottom; received 'middle'"):
        folder.counts("middle")


def test_codes_are_a_source_for_training(tmp_path: Path) -> None:
    write(tmp_path)
    options = {"batch_size": 8, "micro_batches": 2}
    here, there = (
        list(islice(TrainingStream(CodeFolder(tmp_path, "train"), **options, workers=workers), 5)) for workers in (0, 1)
    )
    for one, other in zip(here, there, strict=True):
        assert [len(batch) for batch in one] == [4, 4]
        assert all(torch.equal(a.codes["bottom"], b.codes["bottom"]) for a, b in zip(one, other, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads how much memory the process has")
def test_files_are_mapped_not_read(tmp_path: Path) -> None:
    """Of 32 MB of codes, opening reads next to nothing, and a batch its own rows."""
    path = write_large(tmp_path, 127)
    before = memory("RssAnon") + memory("RssFile")
    folder = CodeFolder(tmp_path, "train")
    assert str(path / "shard-00015.safetensors") in Path("/proc/self/maps").read_text()
    assert folder.counts("top").sum() == 127 * 512 * 512
    codes = folder.fetch(np.array([3, 126])).codes["top"]
    # Two rows are 4 MB as int64.
    assert memory("RssAnon") + memory("RssFile") - before < 16e6
    assert [row.unique().tolist() for row in codes] == [[3], [1]]


def test_eleven_levels_keep_their_order(tmp_path: Path) -> None:
    names = tuple(f"level{i}" for i in range(11))
    eleven = description(
        level_names=names,
        codebook_sizes=dict.fromkeys(reversed(names), 13),
        grids={name: (1, i + 1) for i, name in enumerate(names)},
        num_images=3,
        augmented_epochs=1,
    )
    codes = {name: torch.full((3, 1, i + 1), i) for i, name in enumerate(names)}
    extraction = CodeExtraction(tmp_path, "train", eleven)
    extraction.begin()
    writer = extraction.writer(0)
    writer.add(dict(sorted(codes.items())), labels=torch.zeros(3, dtype=torch.int64), indices=torch.arange(3))
    extraction.finish(dict(sorted(writer.close().items())))
    batch = CodeFolder(tmp_path, "train").fetch(np.array([2, 0]))
    assert list(batch.codes) == list(names)
    assert all(torch.equal(batch.codes[name], codes[name][:2]) for name in names)


def test_codes_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    folder = CodeFolder(tmp_path, "train")
    folder.require_encoder("abc")
    with pytest.raises(CheckpointError, match=r"another autoencoder.*extract the codes again"):
        folder.require_encoder("xyz")


def _edit_index(path: Path, **changes: object) -> None:
    content = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(content | changes))


def _edit_shard(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    file = path / "shard-00001.safetensors"
    with safe_open(str(file), framework="pt") as opened:
        about = opened.metadata()
    columns = load_file(file)
    edit(columns)
    save_file(columns, file, about)


def _truncate(path: Path) -> None:
    file = path / "shard-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def _copy(path: Path, one: int, other: int) -> None:
    (path / shard_name(other)).write_bytes((path / shard_name(one)).read_bytes())


def _edit_counts(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    counts = load_file(path / "counts.safetensors")
    edit(counts)
    save_file(counts, path / "counts.safetensors")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated shard": (_truncate, r"shard-00001\.safetensors are damaged"),
    "missing shard": (lambda path: (path / "shard-00001.safetensors").unlink(), "missing the file .*00001"),
    "fewer rows": (
        lambda path: _edit_shard(path, lambda c: c.update({name: t[1:].clone() for name, t in c.items()})),
        r"00001\.safetensors are damaged: codes\.top must be torch\.uint8 \[5, 2, 3\] and is torch\.uint8 \[4, 2, 3\]",
    ),
    "level gone": (lambda path: _edit_shard(path, lambda c: c.pop("codes.top")), "00001.*damaged"),
    "wider codes": (
        lambda path: _edit_shard(path, lambda c: c.update({"codes.top": c["codes.top"].long()})),
        r"codes\.top must be torch\.uint8 \[5, 2, 3\] and is torch\.int64",
    ),
    "file of other rows": (lambda path: _copy(path, 2, 1), "00001.*holds other codes than index.json"),
    "no counts": (lambda path: (path / "counts.safetensors").unlink(), "no counts of codes at"),
    "counts of other codes": (
        lambda path: _edit_counts(path, lambda c: c["top"].add_(1)),
        r"counts of level top must be int64 \[1, 7\] whose rows sum to 204",
    ),
    "other version": (lambda path: _edit_index(path, format_version=1), "format_version 2 and have 1; extract the"),
    "field gone": (lambda path: _edit_index(path, level_names=None), "level_names"),
    "sizes of other levels": (lambda path: _edit_index(path, codebook_sizes={"top": 7}), "missing bottom"),
    "broken index": (lambda path: (path / "index.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_found_when_the_folder_is_opened(tmp_path: Path, fault: str) -> None:
    path = write(tmp_path)
    damage, sentence = FAULTS[fault]
    damage(path)
    with pytest.raises(CheckpointError, match=sentence):
        CodeFolder(tmp_path, "train")


@pytest.mark.parametrize(("level", "code"), [("top", 7), ("bottom", 300), ("bottom", -1)])
def test_codes_beyond_the_codebook_are_found_when_they_are_read(tmp_path: Path, level: str, code: int) -> None:
    path = write(tmp_path)
    _edit_shard(path, lambda columns: columns[f"codes.{level}"][0].fill_(code))
    folder = CodeFolder(tmp_path, "train")
    folder.fetch(np.arange(5))
    with pytest.raises(CheckpointError, match=f"00001.*codes of level {level} must go from 0 to .*extract"):
        folder.fetch(np.arange(len(folder)))


def test_labels_without_a_class_are_found_when_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    _edit_shard(path, lambda columns: columns["labels"].fill_(2))
    with pytest.raises(CheckpointError, match=r"00001.*labels must be below 2"):
        CodeFolder(tmp_path, "train").fetch(np.array([7]))


@pytest.mark.parametrize("images_per_shard", [1, 5, 17, 100])
def test_labels_of_all_images_are_read_without_codes(tmp_path: Path, images_per_shard: int) -> None:
    write(tmp_path, images_per_shard=images_per_shard)
    codes = CodeFolder(tmp_path, "train")
    assert codes.labels().dtype == torch.int64
    assert torch.equal(codes.labels(), LABELS)


def test_rows_out_of_range_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match="from 0 to 33; received 0 to 34"):
        CodeFolder(tmp_path, "train").fetch(np.array([0, 34]))
