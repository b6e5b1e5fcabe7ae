"""Codes come back as they were written, whoever wrote them; what is damaged or foreign is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hvq.data import CodeFolder, CodesDescription, CodeShardWriter, TrainingStream, clear_codes, write_index
from hvq.data.codes import code_type
from hvq.errors import CheckpointError, DataError, HVQError

IMAGES, EPOCHS = 17, 2
SIZES = {"top": 7, "bottom": 300}
GRIDS = {"top": (2, 3), "bottom": (5, 7)}


def description(**changes: Any) -> CodesDescription:
    fields: dict[str, Any] = {
        "level_names": ("top", "bottom"),
        "codebook_sizes": SIZES,
        "grids": GRIDS,
        "image_size": (20, 28),
        "encoder_hash": "abc",
        "classes": ("cat", "dog"),
        "num_images": IMAGES,
        "augmented_epochs": EPOCHS,
    }
    return CodesDescription(**fields | changes)


def codes_of(rows: int = IMAGES * EPOCHS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        level: torch.randint(0, SIZES[level], (rows, *GRIDS[level]), generator=generator) for level in ("bottom", "top")
    }


LABELS = torch.arange(IMAGES) % 3 - 1


def write(folder: Path, *, processes: int = 1, chunk: int = 4, images_per_shard: int = 5, split: str = "train") -> Path:
    clear_codes(folder, split)
    # The last rank first: files appear in any order.
    for rank in reversed(range(processes)):
        writer = CodeShardWriter(folder, split, description(), rank=rank, images_per_shard=images_per_shard)
        for epoch in range(EPOCHS):
            for start in range(rank * chunk, IMAGES, processes * chunk):
                indices = torch.arange(start, min(start + chunk, IMAGES))
                rows = epoch * IMAGES + indices
                codes = {level: values[rows] for level, values in codes_of().items()}
                writer.add(codes, labels=LABELS[indices], indices=indices, augmented_epoch=epoch)
        writer.close()
    write_index(folder, split, description())
    return folder / split


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("images_per_shard", [1, 5, 1000])
def test_codes_come_back_in_one_order_whoever_wrote_them(tmp_path: Path, processes: int, images_per_shard: int) -> None:
    write(tmp_path, processes=processes, images_per_shard=images_per_shard)
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


def test_shards_have_the_size_asked_for_and_the_smallest_type(tmp_path: Path) -> None:
    files = sorted(write(tmp_path, images_per_shard=5).glob("*.safetensors"))
    shards = [load_file(file) for file in files]
    assert [len(shard["index"]) for shard in shards] == [5] * 6 + [4]
    assert shards[0]["codes.top"].dtype == torch.uint8
    assert shards[0]["codes.bottom"].dtype == torch.int16


@pytest.mark.parametrize("size", [1, 256, 257, 32_768, 32_769, 65_536])
def test_every_code_survives_its_type(size: int) -> None:
    assert torch.tensor([size - 1]).to(code_type(size)).item() == size - 1


def test_counts_equal_a_plain_histogram(tmp_path: Path) -> None:
    write(tmp_path, processes=2)
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory map")
def test_shards_are_mapped_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, images_per_shard=1000)
    folder = CodeFolder(tmp_path, "train")
    assert str(path / "shard-000-00000.safetensors") in Path("/proc/self/maps").read_text()
    assert len(folder) == IMAGES * EPOCHS


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
    writer = CodeShardWriter(tmp_path, "train", eleven)
    writer.add(dict(sorted(codes.items())), labels=torch.zeros(3, dtype=torch.int64), indices=torch.arange(3))
    writer.close()
    write_index(tmp_path, "train", eleven)
    batch = CodeFolder(tmp_path, "train").fetch(np.array([2, 0]))
    assert list(batch.codes) == list(names)
    assert all(torch.equal(batch.codes[name], codes[name][:2]) for name in names)


def test_codes_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    folder = CodeFolder(tmp_path, "train")
    folder.require_encoder("abc")
    with pytest.raises(CheckpointError, match=r"another autoencoder.*extract the codes again"):
        folder.require_encoder("xyz")


def test_writing_anew_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    write(tmp_path, processes=3, images_per_shard=1)
    write(tmp_path, split="validation")
    path = write(tmp_path, images_per_shard=1000)
    assert sorted(file.name for file in path.iterdir()) == ["index.json", "shard-000-00000.safetensors"]
    assert len(CodeFolder(tmp_path, "validation")) == IMAGES * EPOCHS


def test_interrupted_writing_is_not_taken_for_a_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no complete codes .* extract the codes first"):
        CodeFolder(tmp_path, "train")
    write(tmp_path)
    clear_codes(tmp_path, "train")
    writer = CodeShardWriter(tmp_path, "train", description(), images_per_shard=2)
    codes = {level: values[:5] for level, values in codes_of().items()}
    writer.add(codes, labels=LABELS[:5], indices=torch.arange(5))
    writer.close()
    with pytest.raises(CheckpointError, match="no complete codes"):
        CodeFolder(tmp_path, "train")
    with pytest.raises(CheckpointError, match="17 images once in each of 2 epochs; their 5 rows do not"):
        write_index(tmp_path, "train", description())
    assert not (tmp_path / "train" / "index.json").exists()


def _edit_index(path: Path, **changes: object) -> None:
    content = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(content | changes))


def _edit_shard(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    file = path / "shard-000-00001.safetensors"
    columns = load_file(file)
    edit(columns)
    save_file(columns, file)


def _truncate(path: Path) -> None:
    file = path / "shard-000-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated shard": (_truncate, r"shard-000-00001\.safetensors are damaged"),
    "missing shard": (lambda path: (path / "shard-000-00001.safetensors").unlink(), "missing the file .*00001"),
    "fewer rows": (
        lambda path: _edit_shard(path, lambda c: c.update({name: t[1:].clone() for name, t in c.items()})),
        r"00001\.safetensors are damaged: codes\.top must be integers \[5, 2, 3\] and is \[4, 2, 3\]",
    ),
    "level gone": (lambda path: _edit_shard(path, lambda c: c.pop("codes.top")), "00001.*damaged"),
    "image twice": (lambda path: _edit_shard(path, lambda c: c["index"].fill_(3)), "must hold each of 17 images once"),
    "other version": (lambda path: _edit_index(path, format_version=2), "format_version 1 and have 2"),
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
    with pytest.raises(CheckpointError, match=f"00001.*codes of level {level}"):
        folder.counts(level)


def test_labels_without_a_class_are_found_when_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    _edit_shard(path, lambda columns: columns["labels"].fill_(2))
    with pytest.raises(CheckpointError, match=r"00001.*labels must be below 2"):
        CodeFolder(tmp_path, "train").fetch(np.array([7]))


def test_rows_out_of_range_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match="from 0 to 33; received 0 to 34"):
        CodeFolder(tmp_path, "train").fetch(np.array([0, 34]))


def _bad_additions() -> dict[str, dict[str, Tensor]]:
    good = {level: values[:5] for level, values in codes_of().items()}
    return {
        "too large": good | {"top": good["top"] + 7},
        "negative": good | {"bottom": good["bottom"] - 300},
        "other grid": good | {"top": good["top"][:, :1]},
        "level missing": {"top": good["top"]},
        "level unknown": good | {"middle": good["top"]},
    }


@pytest.mark.parametrize("fault", _bad_additions())
def test_codes_that_do_not_fit_their_description_are_not_written(tmp_path: Path, fault: str) -> None:
    writer = CodeShardWriter(tmp_path, "train", description(), images_per_shard=1)
    with pytest.raises(HVQError, match="codes"):
        writer.add(_bad_additions()[fault], labels=LABELS[:5], indices=torch.arange(5))
    with pytest.raises(DataError, match=r"labels must be one per image, \[5\]"):
        writer.add({level: values[:5] for level, values in codes_of().items()}, labels=LABELS, indices=torch.arange(5))
    writer.close()
    assert not list(tmp_path.rglob("*.safetensors"))
