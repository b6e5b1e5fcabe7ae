"""Every example runs, as a script of its own would, and learns."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.processes import run_in_processes
from tests.runs import RECIPES
from tests.test_readme import FEWER_STEPS

FOLDER = RECIPES / "examples"
pytest.importorskip("sklearn", reason="the digits of the examples come with scikit-learn")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _smooth(number: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(torch.rand(number, 1, 3, 3) * 2 - 1, (8, 8), mode="bicubic")


@pytest.mark.parametrize("name", ["plain_loop", "with_accelerate"])
def test_a_loop_of_ones_own_learns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example, images = _load(name), _smooth(211)
    model = example.train(images, 101, 13)
    losses = [float(line.split("reconstruction ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    codes = model.encode(images[:3])
    assert {name: tuple(code.shape) for name, code in codes.items()} == {"top": (3, 2, 2), "bottom": (3, 4, 4)}


def _codebooks() -> list[list[float]]:
    model = _load("with_accelerate").train(_smooth(101), 3, 7)
    return [quantizer.codebooks[0].vectors.flatten().tolist() for quantizer in model.quantizers.values()]


@pytest.mark.processes
def test_two_processes_have_the_same_codebooks() -> None:
    one, other = run_in_processes(_codebooks, 2)
    assert one == other


def test_a_network_of_ones_own_learns() -> None:
    example, images = _load("own_network"), _smooth(211)
    model = example.build()
    assert example.train(model, images, 101) < 0.5 * float(images.var())
    assert model.eval().encode(images[:3])["only"].shape == (3, 4, 4, 3)


def test_lightning(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    _load("with_lightning").main(3)
    assert "max_steps=3" in capfd.readouterr().err


def test_attributes_are_those_of_bars() -> None:
    example, images = _load("conditioned_on_vectors"), torch.zeros(3, 1, 23, 23)
    images[0, 0, 4:19, 10:12] = 1
    images[1, 0, 4:19, 9:13] = 1
    for row in range(15):
        images[2, 0, 4 + row, 16 - row : 18 - row] = 1  # leans to the right by a pixel per row
    thin, thick, leaning = example.attributes_of(images).tolist()
    assert thick[0] > 1.3 * thin[0]
    assert [round(one[1], 5) for one in (thin, thick, leaning)] == [0, 0, 1]
    assert thin[2] == pytest.approx((sum((row - 7) ** 2 for row in range(15)) / 15) ** 0.5)


def test_priors_are_told_vectors_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = _load("conditioned_on_vectors")
    found = example.main(str(tmp_path / "run"), 9)
    assert list(found) == ["class alone", "class and vector", "guided by 2"]
    assert all(-1 <= value <= 1 for values in found.values() for value in values)
    assert found["class alone"] != found["class and vector"]
    assert "rank correlation of asked and measured, 360 samples" in capsys.readouterr().out


def test_a_notebook_goes_the_whole_way(tmp_path: Path) -> None:
    model = _load("notebook").main(str(tmp_path / "run"), tuple(FEWER_STEPS))
    assert (tmp_path / "run" / "metrics.json").exists()
    assert model.sample([3], seed=1).shape == (1, 1, 32, 32)
