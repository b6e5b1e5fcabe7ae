"""Vectors find their images by name, in any order of the file, or are refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from hvq.config import RunConfig
from hvq.config_data import VectorsConfig
from hvq.data import Sources, TensorImages, build_vectors, read_vectors, write_vectors
from hvq.errors import DataError

NAMES = ["dog/häh.png", "cat/0.png", "cat/1.png", "5"]


def source_of(*names: str) -> TensorImages:
    return TensorImages(torch.zeros(len(names), 1, 2, 2, dtype=torch.uint8), names=names)


def vectors_of(rows: int, size: int = 3) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(rows))


def test_rows_are_found_by_name(tmp_path: Path) -> None:
    path, vectors = tmp_path / "vectors.safetensors", vectors_of(4)
    write_vectors(path, vectors.double(), NAMES)
    named = read_vectors(path)
    assert named.names == tuple(NAMES)
    assert torch.equal(named.vectors, vectors)
    assert torch.equal(named.of(source_of("5", "dog/häh.png"), "training"), vectors[[3, 0]])


def test_images_without_a_vector_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    write_vectors(path, vectors_of(4), NAMES)
    with pytest.raises(DataError, match=r"each of the 3 held-out images; of its 4 none is named 'a', and 1 more are"):
        read_vectors(path).of(source_of("a", "5", "b"), "held-out")
    write_vectors(path, vectors_of(4))
    with pytest.raises(DataError, match="must say which image each of its 4 vectors is of"):
        read_vectors(path).of(source_of("a", "b", "c", "d"), "training")


def test_images_of_one_split_that_share_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    write_vectors(path, vectors_of(4), NAMES)
    with pytest.raises(DataError, match="several of the 4 training images are named '5'"):
        read_vectors(path).of(source_of("cat/0.png", "5", "cat/1.png", "5"), "training")


def _without(*numbers: float) -> Tensor:
    vectors = vectors_of(4)
    vectors[2, : len(numbers)] = torch.tensor(numbers)
    return vectors


@pytest.mark.parametrize(
    ("vectors", "names", "fault"),
    [
        (vectors_of(4), NAMES[:3], "a name for each of its 4 vectors; it has 3"),
        (vectors_of(4), ["a", "b", "a", "c"], "name each image once; 'a' occurs twice"),
        (vectors_of(4), ["a", "b", "c\0d", "e"], "character of number 0"),
        (_without(float("nan")), NAMES, "must be finite; row 2 is not"),
        (_without(0, float("inf")), [], "must be finite; row 2 is not"),
        (vectors_of(4)[0], [], r"must be float32 \[N, V\].*received torch.float32 \[3\]"),
        (vectors_of(0), [], r"received torch.float32 \[0, 3\]"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, vectors: Tensor, names: list[str], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        write_vectors(tmp_path / "vectors.safetensors", vectors, names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"embeddings": vectors_of(4)}, "must hold `vectors`; it holds embeddings"),
        ({"vectors": vectors_of(4).double()}, "must be float32"),
        ({"vectors": vectors_of(1), "names": torch.tensor([97, 98], dtype=torch.uint8)}, "each followed by a byte 0"),
        ({"vectors": vectors_of(1), "names": torch.tensor([97, 0])}, "`names` of .* must be uint8"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, tensors: dict[str, Tensor], fault: str) -> None:
    save_file(tensors, tmp_path / "vectors.safetensors")
    with pytest.raises(DataError, match=fault):
        read_vectors(tmp_path / "vectors.safetensors")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vectors at .*missing"):
        read_vectors(tmp_path / "missing.safetensors")
    write_vectors(tmp_path / "vectors.safetensors", vectors_of(4))
    content = (tmp_path / "vectors.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[:-5])
    with pytest.raises(DataError, match="cut short"):
        read_vectors(tmp_path / "short.safetensors")


SOURCES = Sources(train=source_of("cat/0.png", "5"), validation=source_of("dog/häh.png"))


def _write(folder: Path) -> Callable[..., dict[str, Any]]:
    def write(name: str, size: int, names: list[str]) -> dict[str, Any]:
        write_vectors(folder / name, vectors_of(len(names), size), names)
        return {"train": str(folder / name)}

    return write


def test_one_file_or_one_for_each_split(tmp_path: Path) -> None:
    assert build_vectors(VectorsConfig(), SOURCES) == (None, None)
    write, path = _write(tmp_path), str(tmp_path / "held_out")
    train, validation = build_vectors(VectorsConfig(**write("both", 3, NAMES)), SOURCES)
    assert torch.equal(train, vectors_of(4)[[1, 3]])
    assert torch.equal(validation, vectors_of(4)[[0]])
    write("held_out", 3, ["dog/häh.png"])
    train, validation = build_vectors(VectorsConfig(**write("train", 3, ["5", "cat/0.png"]), validation=path), SOURCES)
    assert torch.equal(train, vectors_of(2)[[1, 0]])
    assert torch.equal(validation, vectors_of(1))
    write("held_out", 2, ["dog/häh.png"])
    with pytest.raises(DataError, match=r"as many numbers; .*train has 3 and .*held_out has 2"):
        build_vectors(VectorsConfig(**write("train", 3, ["5", "cat/0.png"]), validation=path), SOURCES)


def test_one_file_cannot_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    sources = Sources(train=source_of("images/0", "images/1"), validation=source_of("images/0"))
    write = _write(tmp_path)
    config = write("train", 3, ["images/0", "images/1"])
    with pytest.raises(DataError, match="both named 'images/0'"):
        build_vectors(VectorsConfig(**config), sources)
    with pytest.raises(DataError, match="both named 'images/0'"):
        build_vectors(VectorsConfig(**config, validation=config["train"]), sources)
    held_out = write("held_out", 3, ["images/0"])["train"]
    _, validation = build_vectors(VectorsConfig(**config, validation=held_out), sources)
    assert torch.equal(validation, vectors_of(1))


def test_vectors_of_held_out_images_alone_are_refused() -> None:
    levels = {"channels": 1, "levels": {"top": {"ratio": 4}}}
    with pytest.raises(ValidationError, match=r"vectors\.validation names a file, and vectors\.train none"):
        RunConfig.model_validate({"autoencoder": levels, "data": {"kind": "digits", "vectors": {"validation": "a"}}})
