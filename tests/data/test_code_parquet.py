"""Codes as a table: what `datasets` reads back is what was extracted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from hvq.data import CodeExtraction, CodeFolder
from hvq.data import code_parquet as module
from hvq.data.code_parquet import write_parquet
from hvq.data.vectors import hash_vectors
from hvq.errors import ConfigurationError, DataError
from hvq.storage import RunFolder
from tests.data.small_codes import EPOCHS, GRIDS, IMAGES, LABELS, SIZES, codes_of, description, write, write_shards
from tests.runs import run_recipe, tiny_config

LENGTHS = {level: height * width for level, (height, width) in GRIDS.items()}


@pytest.fixture
def folders(tmp_path: Path) -> list[CodeFolder]:
    write(tmp_path / "codes")
    write(tmp_path / "codes", split="validation", augmented_epochs=1)
    return [CodeFolder(tmp_path / "codes", split) for split in ("train", "validation")]


@pytest.mark.usefixtures("hub_cache")
def test_datasets_reads_what_was_extracted(folders: list[CodeFolder], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert write_parquet(tmp_path / "codes.parquet", folders) == IMAGES * (EPOCHS + 1)
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "codes.parquet"), split="train")
    table = table.with_format("numpy")
    for split, epochs in (("train", EPOCHS), ("validation", 1)):
        rows = table[np.flatnonzero(np.array(table["split"]) == split)]
        for level, codes in codes_of().items():
            expected = codes[: IMAGES * epochs]
            assert np.array_equal(rows[f"codes_{level}"].reshape(expected.shape), expected.numpy())
        assert rows["label"].tolist() == LABELS.repeat(epochs).tolist()
        assert rows["index"].tolist() == list(range(IMAGES)) * epochs
        assert rows["epoch"].tolist() == [epoch for epoch in range(epochs) for _ in range(IMAGES)]


def test_lists_are_of_fixed_length_in_the_smallest_types_and_the_schema_says_the_rest(
    folders: list[CodeFolder], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "codes.parquet", folders)
    schema = parquet.read_schema(tmp_path / "codes.parquet")
    assert schema.names == ["codes_top", "codes_bottom", "label", "index", "epoch", "split"]
    assert schema.field("codes_top").type == pyarrow.list_(pyarrow.uint8(), LENGTHS["top"])
    assert schema.field("codes_bottom").type == pyarrow.list_(pyarrow.int16(), LENGTHS["bottom"])
    assert schema.field("label").type == pyarrow.int8()
    assert json.loads(schema.metadata[b"hvq"]) == {
        "level_names": ["top", "bottom"],
        "codebook_sizes": SIZES,
        "vector_size": 0,
        "shapes": {level: list(grid) for level, grid in GRIDS.items()},
        "image_size": [20, 28],
        "classes": ["cat", "dog"],
        "encoder_hash": "abc",
    }


def test_row_groups_are_cut_so_that_memory_is_bounded(
    folders: list[CodeFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "one.parquet", folders)
    monkeypatch.setattr(module, "_CODES_AT_ONCE", 5 * sum(LENGTHS.values()))
    write_parquet(tmp_path / "many.parquet", folders)
    whole = parquet.ParquetFile(tmp_path / "many.parquet")
    groups = [whole.metadata.row_group(i).num_rows for i in range(whole.num_row_groups)]
    # 34 rows of training, then 17 of validation.
    assert groups == [5, 5, 5, 5, 5, 5, 4, 5, 5, 5, 2]
    assert whole.read().equals(parquet.read_table(tmp_path / "one.parquet"))


def test_several_codes_per_position_lie_side_by_side(tmp_path: Path) -> None:
    described = description(
        level_names=("top",),
        codebook_sizes={"top": 7},
        grids={"top": (2, 3)},
        codes_per_position={"top": 5},
        augmented_epochs=1,
        images_per_shard=IMAGES,
    )
    extraction, codes = CodeExtraction(tmp_path, "train", described), torch.randint(7, (IMAGES, 2, 3, 5))
    extraction.begin()
    writer = extraction.writer(0)
    writer.add({"top": codes}, labels=LABELS, indices=torch.arange(IMAGES))
    extraction.finish(writer.close())
    write_parquet(tmp_path / "codes.parquet", [CodeFolder(tmp_path, "train")])
    column = parquet.read_table(tmp_path / "codes.parquet")["codes_top"]
    assert torch.equal(torch.tensor(column.to_pylist()).view(codes.shape), codes)


def test_codes_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, split="validation", encoder_hash="other")
    folders = [CodeFolder(tmp_path, split) for split in ("train", "validation")]
    with pytest.raises(DataError, match=r"train and .*validation differ in encoder_hash; extract both again"):
        write_parquet(tmp_path / "codes.parquet", folders)
    assert not (tmp_path / "codes.parquet").exists()


def test_without_pyarrow_the_way_out_is_said(
    folders: list[CodeFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigurationError, match=r'pip install "hvq\[hub\]"'):
        write_parquet(tmp_path / "codes.parquet", folders)


def test_the_recipe_writes_the_codes_of_a_run(folders: list[CodeFolder], tmp_path: Path) -> None:
    file = tmp_path / "codes.parquet"
    RunFolder(tmp_path).save_config(tiny_config(tmp_path / "images"))
    outcome = run_recipe("export_codes", "--run-dir", tmp_path, "--to", file, "--split", "validation")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{IMAGES} rows are in {file}" in outcome.out
    assert parquet.read_table(file)["split"].to_pylist() == ["validation"] * IMAGES
    assert run_recipe("export_codes", "--run-dir", tmp_path, "--to", file).code == 0
    assert parquet.read_metadata(file).num_rows == IMAGES * (EPOCHS + 1)
    (tmp_path / "codes" / "validation" / "index.json").unlink()
    outcome = run_recipe("export_codes", "--run-dir", tmp_path, "--to", file)
    assert (outcome.code, "extract the codes first" in outcome.err) == (1, True)


def test_vectors_are_a_column(tmp_path: Path) -> None:
    vectors = torch.randn(IMAGES, 3)
    extraction = CodeExtraction(tmp_path, "train", description(vector_size=3, vectors_hash=hash_vectors(vectors)))
    extraction.begin()
    extraction.finish(write_shards(extraction, list(range(extraction.description.num_shards))), vectors)
    write(tmp_path / "others", split="validation")
    write_parquet(tmp_path / "codes.parquet", [CodeFolder(tmp_path, "train")])
    table = parquet.read_table(tmp_path / "codes.parquet")
    assert table.schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 3)
    assert torch.equal(torch.tensor(table["vector"].to_pylist()), vectors.repeat(EPOCHS, 1))
    with pytest.raises(DataError, match="differ in vector_size"):
        write_parquet(
            tmp_path / "both.parquet", [CodeFolder(tmp_path, "train"), CodeFolder(tmp_path / "others", "validation")]
        )
