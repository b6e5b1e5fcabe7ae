"""The benchmark trains each kind, saves every cell, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hvq.files import write_tensors


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("codebook_health")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 140), ("val", 11)):
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        write_tensors(tmp_path / f"cifar10-{split}.safetensors", {"images": images})
    return tmp_path


def test_cells_are_saved_one_by_one_and_not_run_again(
    benchmark: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--json", str(tmp_path / "cells.json"), "--sizes", "16", "--widths", "4"]
    assert benchmark.main([*words, "--steps", "1", "--only", "vector"]) == 0
    (first,) = json.loads((tmp_path / "cells.json").read_text())
    assert first.keys() == {"kind", "k", "d", "steps", "usage", "perplexity", "mse", "seconds"}
    assert 0 < first["usage"] <= 1 <= first["perplexity"] <= 16
    assert benchmark.main([*words, "--steps", "1"]) == 0
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert cells[0] == first
    assert [cell["kind"] for cell in cells[1:]] == [kind for kind in benchmark.KINDS if kind != "vector"]
    assert "| vector |" in capsys.readouterr().out


def test_unknown_kinds_and_missing_data_are_said(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--data", str(tmp_path), "--only", "vectr"]) == 2
    assert "no kind vectr" in capsys.readouterr().err
    assert benchmark.main(["--data", str(tmp_path)]) == 1
    assert "cifar10-train" in capsys.readouterr().err
