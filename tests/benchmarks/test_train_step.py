"""The benchmark takes real training steps, turn by turn, compares curves, and goes on where it stopped."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

SPEED = {
    "what",
    "implementation",
    "precision",
    "mode",
    "size",
    "batch",
    "parameters",
    "images_per_second",
    "peak_mebibytes",
}
CURVE = {
    "what",
    "implementation",
    "precision",
    "mode",
    "size",
    "steps",
    "step",
    "parameters",
    "squared_error",
    "held_out_squared_error",
}
OWN = [("hvq", precision, mode) for precision in ("float32", "bf16") for mode in ("eager", "compiled")]
PEER = [("peer", "float32", "eager"), ("peer", "bf16", "eager")]
# What the benchmark calls of rosinality/vq-vae-2-pytorch, which imports a neighbour.
PEER_MODEL = """
import neighbour
from torch import nn

class VQVAE(nn.Module):
    def __init__(self, in_channel, channel, n_res_block, n_res_channel, embed_dim, n_embed):
        super().__init__()
        self.layer = nn.Conv2d(in_channel, in_channel, 1)

    def forward(self, input):
        out = self.layer(input)
        return out, (neighbour.ONE * out).float().pow(2).mean().view(1)
"""


class Turns:
    """Stands in for a worker's process: the same steps, in this one."""

    module: ModuleType
    order: ClassVar[list[tuple[str, str, str]]] = []

    def __init__(self, name: tuple[str, str, str], arguments: argparse.Namespace) -> None:
        contender = self.module.make_contender(name, self.module.OptimizationConfig(), arguments.device, arguments.peer)
        self.name, self.contender, self.peak = name, contender, 1.0
        self.parameters = self.module.parameters(contender.model)
        self.images = torch.randint(256, (arguments.batch, 3, 16, 16), dtype=torch.uint8)
        self.seconds: list[float] = []

    def take_turn(self) -> None:
        self.order.append(self.name)
        self.seconds.append(self.module.timed(lambda: self.contender.step(self.images), "cpu"))

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("train_step")
    module.best_rate = lambda device: 1e12
    module.LEVEL.update(width=8, residual_blocks=1, residual_width=4, codebook_size=7, code_dimension=3)
    module.DECODER.update(width=8, residual_blocks=1, residual_width=4)
    module.CURVE_BATCH, module.CURVE_HELD_OUT, module.QUICK_TURNS = 4, 6, 2
    Turns.module, Turns.order = module, []
    monkeypatch.setattr(module, "Worker", Turns)
    # What the compiler gives is its own affair.
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *words, **options: compiler(*words, **options, backend="eager"))
    return module


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    folder = tmp_path / "peer"
    folder.mkdir()
    (folder / "vqvae.py").write_text(PEER_MODEL)
    (folder / "neighbour.py").write_text("ONE = 1\n")
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(23):
        Image.new("RGB", (37, 29), (10 * i, 128, 255 - 10 * i)).save(folder / f"{i}.png")
    return folder


def _names(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(row["implementation"], row["precision"], row["mode"]) for row in rows]


# --- speed -----------------------------------------------------------------------------------------------------------


def test_all_take_turns_and_are_not_measured_again(
    benchmark: ModuleType, peer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", str(tmp_path / "rows.json"), "--quick", "--batch", "3"]
    assert benchmark.main(words) == 0
    assert "skipped: peer: --peer names no checkout" in capsys.readouterr().err
    assert Turns.order == OWN * 2
    first = json.loads((tmp_path / "rows.json").read_text())
    assert _names(first) == OWN
    assert benchmark.main([*words, "--peer", str(peer)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[: len(first)] == first
    assert _names(rows) == [*OWN, *PEER]
    assert all(row.keys() == SPEED and row["images_per_second"] > 0 and row["batch"] == 3 for row in rows)
    lines = capsys.readouterr().out.splitlines()
    ratio = rows[0]["images_per_second"] / rows[-2]["images_per_second"]
    assert f"| {ratio:.2f} |" in next(line for line in lines if line.startswith("| hvq | float32 | eager |"))
    benchmark.make_contender = lambda *_: pytest.fail("measured again")
    assert benchmark.main([*words, "--peer", str(peer)]) == 0


@pytest.mark.parametrize("name", [OWN[0], OWN[2], PEER[0]])
def test_a_step_trains_and_gives_the_squared_error(
    benchmark: ModuleType, peer: Path, name: tuple[str, str, str]
) -> None:
    contender = benchmark.make_contender(name, benchmark.OptimizationConfig(warmup_steps=0), "cpu", peer)
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    pixels = benchmark.bytes_to_model(images)
    before = {key: tensor.clone() for key, tensor in contender.model.state_dict().items()}
    with torch.no_grad():
        expected = float((contender.restore(pixels) - pixels).square().mean())
    assert contender.step(images) == pytest.approx(expected, rel=0.05)
    after = contender.model.state_dict()
    parameters = dict(contender.model.named_parameters())
    assert any(not torch.equal(after[key], before[key]) for key in parameters)
    if name[0] == "hvq":
        codebooks = [key for key in before if key.endswith("moving_counts")]
        assert len(codebooks) == 2
        assert all(not torch.equal(after[key], before[key]) for key in codebooks)


def test_a_worker_answers_each_line_with_the_seconds_of_a_step(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n\n"))
    assert benchmark.main(["--worker", *OWN[0], "16", "--batch", "2"]) == 0
    first, *seconds = capsys.readouterr().out.splitlines()
    count, peak = json.loads(first)
    assert count == benchmark.parameters(benchmark.build_own())
    assert peak >= 0
    assert len(seconds) == 3
    assert all(float(value) > 0 for value in seconds)


def test_a_worker_is_a_process_that_ends_with_its_turns(load_benchmark: Callable[[str], ModuleType]) -> None:
    module = load_benchmark("train_step")
    module.QUICK_SIZE = 32
    arguments = module.parse_arguments(["--quick", "--batch", "1"])
    with module.Worker(OWN[0], arguments) as worker:
        worker.take_turn()
        process = worker._process
    assert worker.parameters == 1_388_867, "as many as the peer's"
    assert len(worker.seconds) == 1
    assert process.returncode == 0


def test_what_cannot_be_had_is_left_out(
    load_benchmark: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    module = load_benchmark("train_step")
    assert module.measure([("hvq", "float32", "eager")], module.parse_arguments(["--quick", "--batch", "-1"])) == []
    assert "skipped: hvq float32 eager: its process ended with exit status 1" in capsys.readouterr().err


def test_operations_are_those_of_the_convolutions(load_benchmark: Callable[[str], ModuleType]) -> None:
    """By hand, at 256x256: products of a pixel of each grid, forward; three times as many with both gradients."""
    module = load_benchmark("train_step")
    block = 128 * 32 * 9 + 32 * 128
    at_128, at_64, at_32 = 128 * 128, 64 * 64, 32 * 32
    forward = {
        "encoder of the bottom": at_128 * 3 * 64 * 16 + at_64 * (64 * 128 * 16 + 128 * 128 * 9 + 2 * block),
        "encoder of the top": at_32 * (128 * 64 * 16 + 64 * 128 * 9 + 2 * block),
        "projections": at_32 * 128 * 64 + at_64 * 192 * 64,
        "merge": at_32 * (64 * 128 * 9 + 2 * block + 128 * 64 * 16),
        "enlargement": at_32 * 64 * 64 * 16,
        "decoder": at_64 * (128 * 128 * 9 + 2 * block + 128 * 64 * 16) + at_128 * 64 * 3 * 16,
    }
    counted = module.operations_per_image(256)
    assert counted == pytest.approx(3 * 2 * sum(forward.values()), rel=0.03)


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_stand_side_by_side_and_are_not_trained_again(
    benchmark: ModuleType, peer: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", str(tmp_path / "rows.json"), "--curve-only", "--curve", "3", "--curve-size", "16"]
    words += ["--data", str(photographs)]
    assert benchmark.main(words) == 0
    assert "skipped: peer" in capsys.readouterr().err
    assert benchmark.main([*words, "--peer", str(peer)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(row.keys() == CURVE and row["steps"] == 3 for row in rows)
    assert _names(rows) == [name for name in (*OWN, PEER[0]) for _ in range(3)]
    # In float32 the compiled model trains as the other one does.
    eager, compiled = rows[:3], rows[3:6]
    for row, same in zip(eager, compiled, strict=True):
        assert same["held_out_squared_error"] == pytest.approx(row["held_out_squared_error"], rel=1e-3)
    lines = capsys.readouterr().out.splitlines()
    last = next(line for line in lines if line.startswith("| 3 |"))
    texts = [f"{row['squared_error']:.4f} ({row['held_out_squared_error']:.4f})" for row in rows if row["step"] == 3]
    assert all(text in last for text in texts)
    benchmark.train_curve = lambda *_: pytest.fail("trained again")
    assert benchmark.main([*words, "--peer", str(peer)]) == 0


def test_the_held_out_error_is_the_mean_over_the_first_images(benchmark: ModuleType, photographs: Path) -> None:
    words = ["--data", str(photographs), "--curve-size", "16"]
    sources = benchmark.curve_sources(benchmark.parse_arguments(words))
    contender = benchmark.Contender(torch.nn.Identity(), lambda images: 0.0, torch.zeros_like)
    count = min(len(sources.validation), 8)
    images = torch.stack([sources.validation.image(i) for i in range(count)])
    expected = benchmark.bytes_to_model(images).square().mean()
    assert benchmark.held_out_error(contender, sources, "cpu") == pytest.approx(float(expected), rel=1e-5)
