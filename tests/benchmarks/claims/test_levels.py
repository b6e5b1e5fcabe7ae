"""One, two and three levels: what makes them equal, what is dropped or drawn anew, and photographs beside codecs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hvq.files import write_tensors

TINY = {"images": 23, "held_out": 7, "steps": 2, "width": 8, "codebook_sizes": (4,)}
TINY_PHOTOGRAPHS = {"photographs": 2, "photograph_steps": 2, "photograph_codebook_sizes": (4,), "crops": 3}
ERRORS = {1: {320: 0.5, 640: 0.3}, 2: {320: 0.4, 640: 0.2}, 3: {320: 0.39, 640: 0.19}}
LOST = {"two levels": {"top dropped": 2.0, "bottom dropped": 9.0, "top drawn anew": 1.1}}


@pytest.fixture
def levels(load_claim: Callable[[str], ModuleType]) -> ModuleType:
    return load_claim("levels")


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth noise, of (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 23), ("val", 7)):
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        write_tensors(tmp_path / f"cifar10-{split}.safetensors", {"images": images, "labels": torch.arange(count) % 5})
    return tmp_path


def run(levels: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path, folder: Path) -> dict[str, Any]:
    monkeypatch.setattr(levels, "QUICK", replace(levels.QUICK, **TINY, **TINY_PHOTOGRAPHS))
    words = ["--quick", "--json", str(folder / "claims.json"), "--data", str(data), "--plots", str(folder)]
    assert levels.main(words) == 0
    return json.loads((folder / "claims.json").read_text())[0]["numbers"]


def test_models_are_equal_in_bits_and_parameters(levels: ModuleType) -> None:
    for size in levels.QUICK.codebook_sizes:
        rate = levels.positions(2) * math.log2(size)
        bits = [levels.positions(n) * math.log2(levels.codebook_size(n, round(rate))) for n in levels.STACKS]
        assert max(bits) / min(bits) < 1.003
    for width in (levels.QUICK.width, levels.FULL.width):
        counts = [levels.parameters(n, levels.width_of(n, width)) for n in levels.STACKS]
        assert max(counts) / min(counts) < 1.1


def test_parameters_and_positions_are_those_of_the_models(levels: ModuleType) -> None:
    for number in levels.STACKS:
        model = levels.make_autoencoder(0, **levels.fields_of(number, 5, 8, 0.0))
        assert sum(each.numel() for each in model.parameters()) == levels.parameters(number, 8)
        codes = levels.codes_of(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        assert sum(code.numel() for code in codes.values()) == levels.positions(number)


def test_what_is_drawn_anew_has_the_histogram_and_nothing_else(levels: ModuleType) -> None:
    codes = torch.tensor([0, 0, 3]).repeat(5_000).view(-1, 3, 1)
    found = levels.drawn_anew(codes, 5)
    shares = torch.bincount(found.flatten(), minlength=5) / found.numel()
    assert torch.allclose(shares, torch.tensor([2 / 3, 0, 0, 1 / 3, 0]), atol=0.02)
    # Each image had one 3, and none is bound to have it any more.
    assert sorted((found == 3).sum(dim=(1, 2)).unique().tolist()) == [0, 1, 2, 3]


def test_a_level_that_is_dropped_says_nothing(levels: ModuleType) -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    model = levels.make_autoencoder(0, **levels.fields_of(2, 7, 8, 0.0)).eval()
    found: dict[str, Tensor] = levels.carried(model, images)
    assert list(found) == ["all levels", "top dropped", "top drawn anew", "bottom dropped", "bottom drawn anew"]
    assert torch.allclose(found["all levels"], levels.decoded(model, levels.codes_of(model, images), (32, 32), None))
    other = levels.codes_of(model, images)
    other["top"] = (other["top"] + 1) % 7
    assert torch.equal(found["top dropped"], levels.decoded(model, other, (32, 32), "top"))
    assert not torch.equal(found["all levels"], levels.decoded(model, other, (32, 32), None))


@pytest.mark.parametrize(
    ("part", "errors", "lost"),
    [
        ("two_below_one", {**ERRORS, 1: {320: 0.4, 640: 0.3}}, LOST),
        ("three_below_two", {**ERRORS, 3: {320: 0.39, 640: 0.2}}, LOST),
        ("each_level_carries", ERRORS, {"two levels": {**LOST["two levels"], "top dropped": 1.9}}),
    ],
)
def test_each_part_of_the_criterion_decides(levels: ModuleType, part: str, errors: Any, lost: Any) -> None:
    assert all(levels.parts_of(ERRORS, LOST).values())
    assert [name for name, holds in levels.parts_of(errors, lost).items() if not holds] == [part]


def test_without_photographs_it_goes_on_and_says_so(
    levels: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(levels, monkeypatch, data, tmp_path / "plots")["photographs"] == "not at hand"
    assert f"there are no photographs in {data / 'bsds-train'}" in capsys.readouterr().err


def test_photographs_are_measured_beside_codecs(
    levels: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        (data / "bsds-train" / split).mkdir(parents=True)
        for number, size in enumerate([(481, 321), (321, 481)]):
            photograph(number, size).save(data / "bsds-train" / split / f"{number}.jpg")
    (point,) = run(levels, monkeypatch, data, tmp_path / "plots")["photographs"]
    # 40 x 60 and 80 x 120 codes of two bits.
    assert point["bits_per_pixel"] == pytest.approx(2 * (40 * 60 + 80 * 120) / (320 * 480), rel=1e-3)
    assert set(point["psnr"]) == {levels.OWN, *levels.CODECS}


@pytest.mark.parametrize("name", ["JPEG", "WebP", "JPEG 2000"])
def test_a_codec_counts_every_byte_of_its_files(levels: ModuleType, name: str) -> None:
    kind, feature, settings, setting, values = levels.CODECS[name]
    if not levels.features.check(feature):
        pytest.skip(f"Pillow was built without {name}")
    pictures = [levels.upright(photograph(seed, (481, 321))) for seed in (0, 1)]
    points = [levels.codec_point(pictures, name, value) for value in (values[0], values[-1])]
    assert points[0]["bits_per_pixel"] < points[1]["bits_per_pixel"]
    assert points[0]["psnr"] < points[1]["psnr"]
    lengths, decibels = [], []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, format=kind, **settings, **{setting: values[0]})
        lengths.append(len(file.getvalue()))
        restored = np.asarray(Image.open(file).convert("RGB")).astype(float)
        decibels.append(10 * math.log10(255**2 / np.mean((restored - np.asarray(picture)) ** 2)))
    assert points[0]["bits_per_pixel"] == pytest.approx(8 * sum(lengths) / (2 * 320 * 480))
    assert points[0]["psnr"] == pytest.approx(sum(decibels) / 2)


def test_a_photograph_that_stands_is_turned_not_squeezed(levels: ModuleType) -> None:
    lying = photograph(0, (480, 320))
    standing = lying.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(levels.upright(standing)), np.asarray(lying))


def test_a_rate_beyond_a_curve_has_no_psnr(levels: ModuleType) -> None:
    curve = [{"bits_per_pixel": rate, "psnr": 10 * rate} for rate in (3.0, 1.0, 2.0)]
    assert levels.at_rate(curve, 1.25) == pytest.approx(12.5)
    assert levels.at_rate(curve, 0.9) is None
    assert levels.at_rate(curve, 3.1) is None
