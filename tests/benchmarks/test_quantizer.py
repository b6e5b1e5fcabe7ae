"""The benchmark measures what it says, saves rows, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hvq.files import write_tensors
from hvq.quantizers.search import available_backends

FIELDS = {"what", "n", "k", "d", "implementation", "ms", "peak_mib", "times_floor"}


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    quantizer = load_benchmark("quantizer")
    quantizer.best_rate = lambda device: 1e12
    return quantizer


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    tensors = {"latents": torch.randn(131, 7), "codebook": torch.randn(13, 7)}
    write_tensors(tmp_path / "latents.safetensors", tensors)
    return tmp_path / "latents.safetensors"


def test_every_implementation_has_a_row_of_each_kind(benchmark: ModuleType, latents: Path, tmp_path: Path) -> None:
    benchmark.peak_mib = lambda *_: 1.0
    words = ["--quick", "--latents", str(latents), "--json", str(tmp_path / "rows.json")]
    assert benchmark.main(words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(row.keys() == FIELDS and row["ms"] > 0 and row["times_floor"] > 0 for row in rows)
    assert {(row["n"], row["k"], row["d"]) for row in rows} == {(131, 13, 7)}
    own = {f"hvq/{name}" for name in available_backends("cpu")}
    for what in ("search", "step"):
        assert own | {"plain"} <= {row["implementation"] for row in rows if row["what"] == what}
    benchmark.interleaved = lambda chosen, *_: pytest.fail("measured again") if chosen else {}
    assert benchmark.main(words) == 0
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def test_all_ways_find_the_same_codes(benchmark: ModuleType) -> None:
    latents, codebook = benchmark.make_inputs((131, 13, 7), "cpu", None)
    found = {}
    for name, make in benchmark.implementations("search", "cpu").items():
        if not benchmark.reason_to_skip("search", name, (131, 13, 7), "cpu"):
            result = make(latents, codebook)()
            found[name] = torch.as_tensor(result[1][:, 0] if name == "faiss" else result)
    assert len(found) >= 2
    assert all(torch.equal(codes, found["plain"]) for codes in found.values())


def test_what_would_not_fit_is_skipped_with_the_reason(benchmark: ModuleType) -> None:
    reason = benchmark.reason_to_skip("step", "plain", (10**6, 10**6, 8), "cpu")
    assert "more than half of" in reason
    assert benchmark.reason_to_skip("search", "plain", (10**6, 10**6, 8), "cpu") is None


def test_peak_memory_is_that_of_a_process_of_its_own(benchmark: ModuleType) -> None:
    """The plain step holds whole matrices of 16 MiB; the search in blocks does not."""
    size = (4096, 1024, 7)
    assert benchmark.peak_mib("step", "plain", size, "cpu", None) > 30
    assert benchmark.peak_mib("search", "hvq/torch", size, "cpu", None) < 16
