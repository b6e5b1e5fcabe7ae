"""What presets take: every model is counted, small ones are trained, and the page shows what the file says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("presets")


def test_models_are_counted_and_small_ones_trained(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quick", "--json", str(tmp_path / "rows.json")]
    assert benchmark.main(words) == 0
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["preset"], row["part"]) for row in rows] == [
        ("digits", part) for part in ("autoencoder", "top", "bottom")
    ]
    assert [(row["batch"], row["steps"]) for row in rows] == [(64, 750), (64, 600), (32, 400)]
    assert all(row["samples_per_second"] > 0 and row["peak_mib"] > 0 for row in rows)
    # Nothing is measured twice.
    benchmark.row_of = None
    assert benchmark.main(words) == 0
    assert capsys.readouterr().out == table


def test_large_models_are_counted_alone(benchmark: ModuleType, tmp_path: Path) -> None:
    words = ["--quick", "--most-parameters", "0.5", "--json", str(tmp_path / "rows.json")]
    assert benchmark.main(words) == 0
    rows = {row["part"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["autoencoder"]["samples_per_second"] is not None
    assert (rows["top"]["samples_per_second"], rows["top"]["peak_mib"], rows["top"]["measured_batch"]) == (None,) * 3
    assert rows["top"]["operations_per_sample"] > 0


def test_a_level_without_codes_has_no_prior(benchmark: ModuleType) -> None:
    assert benchmark.parts_of("digits-vae") == ["autoencoder"]
    assert benchmark.parts_of("digits-3level") == ["autoencoder", "top", "middle", "bottom"]
