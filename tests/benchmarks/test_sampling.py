"""The benchmark draws from every implementation, extrapolates the slow ones, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

FIELDS = {
    "implementation",
    "model",
    "grid",
    "batch",
    "parameters",
    "seconds_per_batch",
    "codes_per_second",
    "times_floor",
}


@pytest.fixture
def benchmark(tiny_models: ModuleType, load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    sampling = load_benchmark("sampling")
    sampling.best_rate = sampling.best_bandwidth = lambda device: 1e12
    return sampling


@pytest.fixture
def without_transformers(benchmark: ModuleType) -> None:
    """Its import takes seconds."""
    reason = benchmark.reason_to_skip
    benchmark.reason_to_skip = lambda name, peer: "left out" if name == "transformers" else reason(name, peer)


@pytest.mark.usefixtures("without_transformers")
def test_every_cell_has_its_rows_and_is_not_measured_again(
    benchmark: ModuleType, peer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", str(tmp_path / "rows.json"), "--quick"]
    assert benchmark.main(words) == 0
    said = capsys.readouterr()
    assert "pixelsnail-bottom, batch 16 by peer: --peer names no checkout" in said.err
    assert "from class to pixels: 16 images of 16x16" in said.out
    first = json.loads((tmp_path / "rows.json").read_text())
    assert benchmark.main([*words, "--peer", str(peer)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row for row in rows if row["implementation"] != "peer"] == first
    assert all(row.keys() == FIELDS and row["seconds_per_batch"] > 0 for row in rows)
    assert {row["model"] for row in rows if row["times_floor"] is None} == {"whole-path/decode"}
    top = [(row["implementation"], row["batch"]) for row in rows if row["model"] == "pixelsnail-top"]
    assert sorted(top) == [(name, batch) for name in ("hvq", "hvq-naive", "peer") for batch in (1, 16)]
    (bottom,) = [row for row in rows if (row["model"], row["implementation"]) == ("pixelsnail-bottom", "hvq")]
    assert (bottom["grid"], bottom["batch"]) == ("4x4", 16)
    assert bottom["codes_per_second"] == pytest.approx(16 * 16 / bottom["seconds_per_batch"], rel=0.01)
    benchmark.make_contender = lambda task, name: pytest.fail(f"measured again: {name}")
    assert benchmark.main([*words, "--peer", str(peer)]) == 0


def test_cells_can_be_picked(benchmark: ModuleType, tmp_path: Path) -> None:
    assert benchmark.main(["--json", str(tmp_path / "rows.json"), "--only", "transformer-85m"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["model"], row["batch"]) for row in rows] == [("transformer-85m", 1), ("transformer-85m", 16)]
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(["--only", "transformer"])


def test_missing_others_are_said(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no pixelsnail.py" in benchmark.reason_to_skip("peer", tmp_path)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    assert "transformers is not installed" in benchmark.reason_to_skip("transformers", None)
    assert benchmark.reason_to_skip("hvq", None) is None


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_extrapolation_is_by_straight_lines_between_rows(benchmark: ModuleType) -> None:
    assert benchmark.spread(64, 5) == [0, 16, 32, 48, 63]
    assert benchmark.spread(3, 5) == [0, 1, 2]
    # Rows 0 .. 4 take 1, 2, 3, 5 and 7 seconds a position, of which there are three.
    assert benchmark.whole_grid_seconds({4: 7.0, 0: 1.0, 2: 3.0}, (5, 3)) == pytest.approx(54.0)


def test_the_floor_is_the_larger_of_reading_and_arithmetic(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = benchmark.Machine(rate=100.0, bandwidth=50.0)
    assert machine.floors(25, 3) == (2.0, 1.5)
    # 5 · 3 + 3 parameters in products, 7 · 5 in a table: 1.44 s to read them, 0.72 s for two samples.
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 3))
    task = benchmark.Task("model", (2, 3), 2, "cpu")
    row = benchmark.make_row(task, "name", benchmark.Contender(model, lambda turn: 0.0), 17.28, machine)
    assert row == benchmark.Row("name", "model", "2x3", 2, 53, 17.28, 0.69, 2.0)
    assert "reading 1440.00 ms, arithmetic 720.00 ms" in capsys.readouterr().out


def test_gathered_tables_do_not_count(tiny_models: ModuleType) -> None:
    prior = tiny_models.build_own("pixelsnail-top")
    # Taps above (3) and before (1) of a kernel of 3, each with a row for what lies outside; line starts; no classes.
    tables = 4 * 513 * 16 + 512 * 16 + 16
    assert tiny_models.parameters(prior) - tiny_models.parameters_in_products(prior) == tables


@pytest.mark.parametrize("model", ["transformer-85m", "pixelcnn"])
def test_models_of_equal_size_take_the_nearest_number_of_layers(tiny_models: ModuleType, model: str) -> None:
    target = tiny_models.parameters(tiny_models.build_own("pixelsnail-top"))
    layers = tiny_models.nearest_layers(model)
    counts = {
        number: tiny_models.parameters(tiny_models.construct({**tiny_models.fields_of(model), "layers": number}))
        for number in (layers - 1, layers, layers + 1)
        if number > 0
    }
    assert min(counts, key=lambda number: abs(counts[number] - target)) == layers


# --- ways to draw ----------------------------------------------------------------------------------------------------


def test_warming_up_draws_the_first_positions_only(benchmark: ModuleType) -> None:
    drawn: list[int] = []

    def draw(after_position: Callable[[], None]) -> torch.Tensor:
        for position in range(9):
            drawn.append(position)
            after_position()
        return torch.zeros(1)

    benchmark.begin(draw, 4)
    assert drawn == [0, 1, 2, 3]


def test_the_peer_runs_over_the_rows_so_far(benchmark: ModuleType, peer: Path) -> None:
    task = benchmark.Task("pixelsnail-bottom", (8, 4), 3, "cpu", peer)
    contender = benchmark.peer_contender(task)
    assert contender.model.heights == [1]
    assert contender.seconds(0) > 0
    assert contender.model.heights == [1, 1, 3, 5, 7, 8]


def test_llama_has_the_size_of_the_own_transformer(benchmark: ModuleType, tiny_models: ModuleType) -> None:
    pytest.importorskip("transformers")
    contender = benchmark.transformers_contender(benchmark.Task("transformer-26m", (2, 2), 3, "cpu"))
    assert contender.seconds(0) > 0
    # Steps of 64 in the width of its feed-forward.
    own = tiny_models.parameters(tiny_models.build_own("transformer-26m"))
    assert abs(tiny_models.parameters(contender.model) - own) <= 3 * 16 * 64
