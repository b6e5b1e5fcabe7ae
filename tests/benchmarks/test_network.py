"""What is computed of the network: numbers of the presets, what codebooks really send, and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from hvq.distributed import Reduction
from hvq.quantizers import CodebookStep, VectorQuantizer

PAGE = Path(__file__).parents[2] / "recipes" / "accelerate" / "README.md"


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("network")


def test_the_page_shows_what_is_computed(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--json", str(tmp_path / "rows.json")]) == 0
    assert capsys.readouterr().out in PAGE.read_text()
    rows = json.loads((tmp_path / "rows.json").read_text())
    millions = {row["model"]: row["parameters"] // 1_000_000 for row in rows}
    # As the preset says, whose priors have no classes here either.
    assert (millions["imagenet256-vqvae2, top"], millions["imagenet256-vqvae2, bottom"]) == (1540, 823)
    assert [row["gpus"] for row in rows] == [8, 64, 512] * len(millions)


class _Counting(Reduction):
    """One of several processes, who counts what it is given to sum."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.numbers = 0

    def sum(self, tensor: Tensor) -> Tensor:
        self.numbers += tensor.numel()
        assert tensor.dtype == torch.float64
        return tensor


@pytest.mark.parametrize("processes", [2, 7, 64])
def test_codebooks_send_what_is_said(benchmark: ModuleType, processes: int) -> None:
    quantizers = {"top": VectorQuantizer(codebook_size=611, code_dimension=6, heads=2)}
    quantizers["bottom"] = VectorQuantizer(codebook_size=13, code_dimension=5)
    step, reduction = CodebookStep(quantizers), _Counting(processes)
    step.add({name: quantizer(torch.randn(3, quantizer.code_dimension, 31)) for name, quantizer in quantizers.items()})
    step.step(reduction)
    shapes = tuple(tuple(codebook.vectors.shape) for q in quantizers.values() for codebook in q.codebooks)
    assert benchmark.codebook_numbers(shapes, processes) == reduction.numbers


def test_operations_are_those_of_every_weight_at_every_position(benchmark: ModuleType) -> None:
    """Six per weight and position, of which embeddings and what reads the coarser level have fewer."""
    autoencoder, top, bottom = benchmark.models_of("imagenet256-vqvae2")
    assert top.operations == pytest.approx(6 * top.parameters * 32 * 32, rel=0.01)
    assert bottom.operations == pytest.approx(6 * bottom.parameters * 64 * 64, rel=0.1)
    assert autoencoder.operations < 6 * autoencoder.parameters * 64 * 64
    assert autoencoder.codebooks == ((512, 64), (512, 64))


def test_a_batch_hides_the_network_where_computing_takes_longer(benchmark: ModuleType) -> None:
    model = benchmark.Model("made up", parameters=100_000_000, operations=int(4e12))
    row = benchmark.row_of(model, 8)
    # 700 MB in 2.33 ms, and 16 parts with 30 microseconds each; a sample's backward pass takes 6.67 ms of 10.
    assert row.gradient_bytes == pytest.approx(700e6)
    assert row.sharded_bytes == pytest.approx(1050e6)
    assert row.batch == 1
    faster = benchmark.Model("made up", parameters=100_000_000, operations=int(4e10))
    assert benchmark.row_of(faster, 8).batch == -(-(700e6 / 300e9 + 16 * 30e-6) // (1e-4 * 2 / 3))
    assert benchmark.row_of(faster, 512).batch > 7 * benchmark.row_of(faster, 8).batch
