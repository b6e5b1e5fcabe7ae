"""The benchmark trains all sides on the same batches, takes each at its best rate, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hvq.files import write_tensors

# A side more where its package is installed.
SIDES = ["hvq", *["vqp, best"] * (find_spec("vector_quantize_pytorch") is not None)]
FIELDS = {"implementation", "data", "seed", "learning_rate", "steps", "step", "seconds", "mse", "usage"}


@pytest.fixture
def quality(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("quality")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 131), ("val", 7)):
        images = torch.from_numpy(generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
        write_tensors(tmp_path / f"cifar10-{split}.safetensors", {"images": images})
    return tmp_path


def test_sides_train_once_and_are_not_trained_again(
    quality: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data / "rows.json"
    words = ["--data", str(data), "--json", str(file), "--on", "cifar10", "--steps", "2", "--seeds", "0"]
    words += ["--rates", "0.001", "--only", *SIDES, "rosinality"]
    assert quality.main(words) == 0
    said = capsys.readouterr()
    assert "skipped: rosinality" in said.err
    assert ("hvq's error is" in said.out) == (len(SIDES) > 1)
    rows = json.loads(file.read_text())
    assert [(row["implementation"], row["step"]) for row in rows] == [(side, step) for side in SIDES for step in (1, 2)]
    assert all(row.keys() == FIELDS and 0 < row["mse"] < 1 and 0 < row["usage"] <= 1 for row in rows)
    assert quality.main(words) == 0
    assert "Cell(" not in capsys.readouterr().out
    assert json.loads(file.read_text()) == rows


def test_data_that_are_not_there_are_one_sentence(
    quality: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["--data", str(tmp_path), "--quick", "--only", "hvq"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def _row(quality: ModuleType, side: str, rate: float, seed: int, step: int, **numbers: float) -> Any:
    values = {"seconds": 10.0 * step, "mse": 0.5, "usage": 1.0, **numbers}
    return quality.Row(side, "cifar10", seed, rate, 2, step, **values)


def _rows(quality: ModuleType) -> list[Any]:
    """Each side best at its second rate."""
    return [
        _row(quality, side, rate, seed, step, mse=least * (3 - step) * (1 if rate == 2 else 3) + 0.1 * seed)
        for side, least in (("hvq", 0.2), ("vqp", 0.5))
        for rate, seeds in ((1, [0]), (2, [0, 1, 2]))
        for seed in seeds
        for step in (1, 2)
    ]


def test_each_side_counts_at_its_best_rate(quality: ModuleType) -> None:
    rows = _rows(quality)
    assert quality.best_rate_of(rows, "cifar10", "hvq", 2) == 2
    broken = [*rows, _row(quality, "hvq", 3, 0, 2, mse=float("nan"))]
    assert quality.best_rate_of(broken, "cifar10", "hvq", 2) == 2
    sides = quality.kept_rows(rows, "cifar10", 2)
    assert {side: len(kept) for side, kept in sides.items()} == {"hvq": 6, "vqp": 6}
    assert "| hvq | 2 | 3 | 0.300000 |" in quality.table(sides, 2)
    # 0.3 against 0.6; at the first step it is at 0.5 already, in half the seconds.
    assert quality.verdict(sides, 2) == (
        "hvq's error is +50.0% below that of the best other side, vqp, in 1.00 of its seconds; that side's final error "
        "is reached after 1 steps, 10 s, 0.50 of its time"
    )


def test_cells_move_on_by_rate_and_then_by_seed(quality: ModuleType) -> None:
    words = ["--data", "x", "--on", "cifar10", "--steps", "2", "--rates", "1", "2", "--only", "hvq", "vqp"]
    cells = quality.cells_left(_rows(quality)[:2], quality.parse_arguments(words))
    left = [(cell.implementation, cell.learning_rate, cell.seed) for cell in islice(cells, 3)]
    assert left == [("vqp", 1, 0), ("hvq", 2, 0), ("vqp", 2, 0)]


def test_a_packages_quantizer_keeps_the_contract(
    quality: ModuleType, load_benchmark: Callable[[str], ModuleType]
) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="the package is what is tested")
    models = load_benchmark("quality_models")
    quantizer = models.PackageQuantizer(codebook_size=11, code_dimension=5, kmeans_init=True)
    latents = torch.randn(2, 5, 7, 13)
    trained = quantizer(latents)
    assert trained.losses.keys() == {"package"}
    quantizer.eval()
    result = quantizer(latents)
    vectors = quantizer.package.codebook
    expected = torch.cdist(latents.movedim(1, -1).reshape(-1, 5).double(), vectors.double()).argmin(1)
    assert torch.equal(result.codes.flatten(), expected)
    assert torch.allclose(quantizer.decode(result.codes), result.vectors, atol=1e-6)
