"""The benchmark takes real training steps of every kind, compares curves, and goes on where it stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

SPEED = {
    "what",
    "implementation",
    "model",
    "grid",
    "precision",
    "batch",
    "parameters",
    "images_per_second",
    "peak_mib",
}
CURVE = {"what", "implementation", "precision", "steps", "step", "parameters", "loss", "held_out_nats"}
CURVES = [("hvq", "float32"), ("hvq", "bf16"), ("peer", "float32")]
ALL = [*CURVES, ("peer", "bf16")]


@pytest.fixture
def benchmark(tiny_models: ModuleType, load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    prior_training = load_benchmark("prior_training")
    prior_training.best_rate = lambda device: 1e12
    prior_training.peak_mib = lambda *_: 1.0
    prior_training.CURVE_FIELDS.update(width=16, residual_width=8, blocks=1, residual_blocks=1, kernel=3)
    prior_training.CURVE_HELD_OUT = 32
    return prior_training


def test_every_model_has_its_rows_and_is_not_measured_again(
    benchmark: ModuleType, peer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", str(tmp_path / "rows.json"), "--quick", "--batch", "3"]
    assert benchmark.main(words) == 0
    assert "skipped: pixelsnail-top by peer: --peer names no checkout" in capsys.readouterr().err
    first = json.loads((tmp_path / "rows.json").read_text())
    assert benchmark.main([*words, "--peer", str(peer)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[: len(first)] == first
    assert all(row.keys() == SPEED and row["images_per_second"] > 0 and row["batch"] == 3 for row in rows)
    for model in benchmark.MODELS:
        names = [(row["implementation"], row["precision"]) for row in rows if row["model"] == model]
        assert names == (ALL if model.startswith("pixelsnail") else ALL[:2])
    benchmark.make_contender = lambda *_: pytest.fail("measured again")
    assert benchmark.main([*words, "--peer", str(peer)]) == 0


@pytest.mark.parametrize("implementation", ["hvq", "peer"])
def test_a_step_trains(benchmark: ModuleType, peer: Path, implementation: str) -> None:
    task = benchmark.Task("pixelsnail-bottom", (4, 4), 3, "cpu", peer)
    contender = benchmark.make_contender(task, implementation, "float32")
    # An embedding of codes that do not occur has no gradient.
    before = {name: parameter.clone() for name, parameter in contender.model.named_parameters() if parameter.dim() > 1}
    contender.step()
    contender.step()
    after = dict(contender.model.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "earlier" not in name)


def test_bf16_is_autocast_of_the_forward(benchmark: ModuleType) -> None:
    seen: list[torch.dtype] = []
    layer = torch.nn.Linear(5, 5)

    def logits_of(codes: torch.Tensor) -> torch.Tensor:
        logits = layer(torch.nn.functional.one_hot(codes, 5).float())
        seen.append(logits.dtype)
        return logits

    for precision in ("float32", "bf16"):
        loss, _ = benchmark.make_losses(logits_of, precision, "cpu")(torch.randint(5, (2, 3, 3)))
        assert loss.dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


def test_peak_is_printed(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--peak", "hvq", "pixelcnn", "bf16", "4", "4"]) == 0
    assert float(capsys.readouterr().out) >= 0


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_stand_side_by_side_and_are_not_trained_again(
    benchmark: ModuleType, peer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", str(tmp_path / "rows.json"), "--only", "--curve", "3"]
    assert benchmark.main(words) == 0
    assert "skipped: curve by peer" in capsys.readouterr().err
    assert benchmark.main([*words, "--peer", str(peer)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(row.keys() == CURVE and row["steps"] == 3 for row in rows)
    names = [(row["implementation"], row["precision"], row["step"]) for row in rows]
    assert names == [(*name, step) for name in CURVES for step in (1, 2, 3)]
    lines = capsys.readouterr().out.splitlines()
    last = next(line for line in lines if line.startswith("| 3 |"))
    assert all(f"{row['loss']:.4f} ({row['held_out_nats']:.4f})" in last for row in rows if row["step"] == 3)
    benchmark.train_curve = lambda *_: pytest.fail("trained again")
    assert benchmark.main([*words, "--peer", str(peer)]) == 0


def test_the_field_is_what_it_is_said_to_be(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = benchmark.field_codes(200, seed=1)
    assert torch.equal(codes, benchmark.field_codes(200, seed=1))
    assert codes.min() >= 0
    assert codes.max() < benchmark.CURVE_CODES
    copied = (codes[:, 1:, 1:] == codes[:, :-1, 1:]) | (codes[:, 1:, 1:] == codes[:, 1:, :-1])
    assert 0.88 < float(copied.float().mean()) < 0.94
    assert 0.5 < benchmark.field_nats(codes) < 1.5
    # One position, between code 0 above and code 1 to the left: a copy of one of them, and noise.
    monkeypatch.setattr(benchmark, "CURVE_GRID", (1, 1))
    nats = benchmark.field_nats(torch.tensor([0, 5]).view(2, 1, 1))
    assert nats == pytest.approx(-(math.log(0.45 + 0.1 / 32) + math.log(0.1 / 32)) / 2)
