"""Vectors beside codes: a row for each image, in all augmented epochs, exchanged without encoding anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hvq.data import CodeExtraction, CodeFolder
from hvq.data.code_files import CodesDescription, empty_counts, read_counts
from hvq.data.code_vectors import VECTORS_FILE, require_whole_vectors, vector_statistics
from hvq.data.vectors import hash_vectors
from hvq.errors import CheckpointError
from tests.data.small_codes import EPOCHS, IMAGES, description, turn_a_bit, write_shards
from tests.runs import files_below

V = 3


def vectors_of(seed: int = 0, size: int = V) -> Tensor:
    return torch.randn(IMAGES, size, generator=torch.Generator().manual_seed(seed))


def described(vectors: Tensor | None) -> CodesDescription:
    told = {} if vectors is None else {"vector_size": vectors.shape[1], "vectors_hash": hash_vectors(vectors)}
    return description(**told)


def extract(folder: Path, vectors: Tensor | None, *, resume: bool = False) -> list[int]:
    """What a call of the recipe does; the files of codes that it wrote."""
    extraction = CodeExtraction(folder, "train", described(vectors))
    extraction.begin(resume=resume)
    kept = [extraction.kept(shard) for shard in range(extraction.description.num_shards)]
    missing = [shard for shard, counts in enumerate(kept) if counts is None]
    counts = write_shards(extraction, missing)
    for found in kept:
        for level, count in (found or {}).items():
            counts[level] += count
    extraction.finish(counts, vectors)
    return missing


def test_every_epoch_of_an_image_has_its_vector(tmp_path: Path) -> None:
    extract(tmp_path, vectors_of())
    codes = CodeFolder(tmp_path, "train")
    rows = np.array([0, IMAGES - 1, IMAGES, 5 + IMAGES, EPOCHS * IMAGES - 1, 2])
    assert codes.vector_size == V
    assert torch.equal(codes.fetch(rows).vectors, vectors_of()[[0, IMAGES - 1, 0, 5, IMAGES - 1, 2]])
    assert codes.fetch(np.arange(0)).vectors.shape == (0, V)


def test_codes_without_vectors_are_as_they_were(tmp_path: Path) -> None:
    extract(tmp_path, None)
    codes = CodeFolder(tmp_path, "train")
    assert (codes.vector_size, codes.vectors, codes.fetch(np.arange(2)).vectors) == (0, None, None)
    assert VECTORS_FILE not in files_below(tmp_path / "train")
    assert description().content_hash == described(vectors_of()).without_vectors.content_hash
    assert description().content_hash != described(vectors_of()).content_hash
    assert described(vectors_of(1)).content_hash != described(vectors_of()).content_hash


def test_vectors_are_exchanged_and_taken_away_without_encoding(tmp_path: Path) -> None:
    assert len(extract(tmp_path, None)) == 7
    plain = files_below(tmp_path / "train")
    for vectors in (vectors_of(), vectors_of(1), vectors_of(2, 5), None):
        assert extract(tmp_path, vectors, resume=True) == []
        codes = CodeFolder(tmp_path, "train")
        assert (codes.vectors is None) if vectors is None else torch.equal(codes.vectors, vectors)
    assert files_below(tmp_path / "train") == plain
    assert read_counts(tmp_path / "train", description()).keys() == empty_counts(description()).keys()


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    extract(tmp_path, vectors_of())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()}
    assert extract(tmp_path, vectors_of(), resume=True) == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()} == times


@pytest.mark.parametrize("fault", ["missing", "short", "others"])
def test_damage_is_named_and_mended_by_resuming(tmp_path: Path, fault: str) -> None:
    extract(tmp_path, vectors_of())
    path = tmp_path / "train" / VECTORS_FILE
    if fault == "missing":
        path.unlink()
    elif fault == "short":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        extract(tmp_path / "elsewhere", vectors_of(1))
        path.write_bytes((tmp_path / "elsewhere" / "train" / VECTORS_FILE).read_bytes())
    with pytest.raises(CheckpointError, match=f"{VECTORS_FILE}"):
        CodeFolder(tmp_path, "train")
    assert extract(tmp_path, vectors_of(), resume=True) == []
    assert torch.equal(CodeFolder(tmp_path, "train").vectors, vectors_of())


def test_a_bit_that_turned_is_mended_by_resuming(tmp_path: Path) -> None:
    extract(tmp_path, vectors_of())
    turn_a_bit(tmp_path / "train" / VECTORS_FILE)
    codes = CodeFolder(tmp_path, "train")
    with pytest.raises(CheckpointError, match=f"{VECTORS_FILE} is damaged: .*extract the codes again"):
        require_whole_vectors(codes.path, codes.description)
    assert extract(tmp_path, vectors_of(), resume=True) == []
    require_whole_vectors(codes.path, codes.description)
    assert torch.equal(CodeFolder(tmp_path, "train").vectors, vectors_of())


def test_statistics_are_exact_far_from_zero() -> None:
    vectors = (
        torch.randn(9001, 2, dtype=torch.float64) * torch.tensor([1.0, 0.0]) + torch.tensor([4096.0, 7.0])
    ).float()
    mean, deviation = vector_statistics(vectors)
    wide = vectors.double()
    torch.testing.assert_close(mean, wide.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(deviation, wide.std(0, correction=0), rtol=1e-12, atol=1e-12)
