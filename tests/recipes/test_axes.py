"""The presets of signals and volumes, at tiny size, from training to samples by their command lines."""

from __future__ import annotations

import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvq import HierarchicalVQ
from hvq.config_loading import load_run_config
from hvq.data import build_sources
from hvq.data.pixels import kept_to_unit
from hvq.data.waves import write_wave
from hvq.errors import DataError
from hvq.export import export_autoencoder
from hvq.files import read_tensors
from hvq.storage import RunFolder
from tests.runs import RECIPES, run_recipe

FEW = [
    "chunk_size=20",
    "trackers=[]",
    "autoencoder.levels.top.width=8",
    "autoencoder.levels.top.codebook_size=11",
    "autoencoder.levels.bottom.width=8",
    "autoencoder.levels.bottom.codebook_size=13",
    "autoencoder.decoder.width=8",
    *(f"{stage}.steps=6" for stage in ("autoencoder_training", "priors.top.training", "priors.bottom.training")),
    *(f"priors.{level}.model.{size}" for level in ("top", "bottom") for size in ("width=16", "layers=1")),
    "autoencoder_training.batch_size=8",
    "sampling.samples_per_class=2",
    "evaluation.generated_per_class=2",
]
# By preset: a prime size, what makes it small, and the grids of its levels.
SMALL: dict[str, tuple[tuple[int, ...], list[str], dict[str, tuple[int, ...]]]] = {
    "tones-vqvae2": ((211,), ["data.tones=40"], {"top": (7,), "bottom": (28,)}),
    "volumes-vqvae2": ((11, 13, 17), ["data.volumes=40"], {"top": (2, 2, 3), "bottom": (4, 4, 6)}),
}
STAGES = ("train_autoencoder", "extract_codes", "train_prior", "sample", "evaluate")


@pytest.fixture(scope="module", params=SMALL)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunFolder]:
    folder = tmp_path_factory.mktemp("run") / "run"
    size, fields, _ = SMALL[request.param]
    preset = ["--config", RECIPES / "configs" / f"{request.param}.yaml", *FEW, *fields, f"data.size={list(size)}"]
    for stage in STAGES:
        outcome = run_recipe(stage, "--run-dir", folder, *(preset if stage == STAGES[0] else []))
        assert (outcome.code, outcome.err) == (0, ""), stage
    return request.param, RunFolder(folder)


def test_samples_are_of_the_size_in_the_range_and_can_be_heard(trained: tuple[str, RunFolder]) -> None:
    preset, run = trained
    size, _, grids = SMALL[preset]
    samples, _ = read_tensors(run.samples / "samples.safetensors", "samples")
    number = len(samples["labels"])
    assert samples["images"].shape == (number, 1, *size)
    assert samples["images"].dtype == torch.float32
    assert float(samples["images"].abs().max()) <= 1
    assert {name: tuple(samples[f"codes.{name}"].shape[1:]) for name in grids} == grids
    assert (run.samples / "samples.png").exists()
    sounds = sorted(run.samples.glob("*.wav"))
    assert len(sounds) == (number if preset.startswith("tones") else 0)
    for row, path in enumerate(sounds):
        with wave.open(str(path)) as sound:
            assert (sound.getframerate(), sound.getnframes()) == (8000, size[0])
            found = np.frombuffer(sound.readframes(size[0]), "<i2") / 32_767
        assert np.abs(found - samples["images"][row, 0].numpy()).max() < 1e-4
    if sounds:
        assert sounds[0].name == "00000-c4.wav"


def test_numbers_that_make_sense_are_there_and_others_say_why(trained: tuple[str, RunFolder]) -> None:
    preset, run = trained
    metrics = run.metrics()
    reconstruction = metrics["reconstruction"]
    assert math.isfinite(reconstruction["psnr"])
    assert all(reconstruction[name] is None for name in ("ssim", "ms_ssim", "lpips"))
    for level in ("top", "bottom"):
        assert 0 < metrics["levels"][level]["usage"] <= 1
        assert metrics["levels"][level]["perplexity"] >= 1
        nats = metrics["priors"][level]
        assert math.isfinite(nats["held_out_nats"])
        assert nats["unigram_entropy"] <= nats["log_codebook_size"]
    assert metrics["bits_per_image"]["priors"] > 0
    assert "likelihood" not in metrics
    assert metrics["classification_accuracy_score"].keys() == {"copies", "copies_by_codes"}
    left_out = {name for name, text in metrics["about"].items() if str(text).startswith("left out")}
    assert {
        *("reconstruction.ssim", "reconstruction.ms_ssim", "reconstruction.lpips", "reconstruction.rfid"),
        *("likelihood", "classification_accuracy_score", "generation", "rejection"),
    } <= left_out
    together = metrics["cooccurrence"]
    assert {"top.right", "bottom.right", "top-bottom"} <= together.keys()
    assert ("top.below" in together) == preset.startswith("volumes")
    size = "x".join(map(str, SMALL[preset][0]))
    assert f"{size} {'signal' if preset.startswith('tones') else 'volume'}s as top" in run.report.read_text()


@torch.no_grad()
def test_the_hierarchy_is_one_object(trained: tuple[str, RunFolder], tmp_path: Path) -> None:
    preset, run = trained
    size, _, grids = SMALL[preset]
    model = HierarchicalVQ.from_pretrained(run.path)
    source = build_sources(load_run_config(run.config_file).data).validation
    images = kept_to_unit(source.fetch(np.arange(5)).images)
    codes = model.encode(images)
    assert {name: tuple(code.shape[1:]) for name, code in codes.items()} == grids
    assert torch.equal(model.decode(codes), model.reconstruct(images))
    drawn = model.sample([0, 3], seed=7)
    assert drawn.shape == (2, 1, *size)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    given = {name: code[:1] for name, code in codes.items()}
    assert torch.allclose(model.sample([3], given=given), model.decode(given), atol=1e-6)
    mask = torch.zeros(5, *size, dtype=torch.bool)
    mask[..., : size[-1] // 2] = True
    assert model.inpaint(images, mask).shape == images.shape
    with pytest.raises(DataError, match=r"images must be floating point \[B, 1, (T|X, Y, Z)\]"):
        model.encode(torch.zeros(2, 1, 16, 16))
    with pytest.raises(DataError, match="in-painting takes images of"):
        model.inpaint(torch.zeros(1, 1, *(n + 1 for n in size)), mask[:1])
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(HierarchicalVQ.from_pretrained(tmp_path / "model").sample([0, 3], seed=7), drawn)


@pytest.mark.parametrize("dynamic_size", [False, True])
def test_both_halves_are_exported(trained: tuple[str, RunFolder], tmp_path: Path, dynamic_size: bool) -> None:
    preset, run = trained
    hierarchy = HierarchicalVQ.from_pretrained(run.path).hierarchy
    described = export_autoencoder(
        hierarchy.autoencoder,
        tmp_path / "exported",
        image_size=SMALL[preset][0],
        channels=1,
        format="torch_export",
        dynamic_size=dynamic_size,
    )
    assert described.agreement is not None
    assert described.agreement.image_error < 1e-4


def test_the_surest_samples_take_images(trained: tuple[str, RunFolder]) -> None:
    outcome = run_recipe("sample", "--run-dir", trained[1].path, "--keep", "0.5")
    assert outcome.code == 1
    assert "keeping the surest samples takes images" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_folder_of_sounds_without_classes_goes_the_same_way(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "sounds").mkdir()
    for i in range(12):
        steps = torch.randn(2, 300, generator=generator).cumsum(1)
        write_wave(tmp_path / "sounds" / f"{i}.wav", steps / steps.abs().max(), 1000)
    size, _, _ = SMALL["tones-vqvae2"]
    fields: list[Any] = [
        *("data.kind=waves", f"data.path={tmp_path / 'sounds'}", "data.sample_rate=1000", "data.channels=2"),
        *("autoencoder.channels=2", f"data.size={list(size)}", "data.validation_share=0.3"),
        *("extraction.augmented_epochs=3", "priors.top.model.kind=pixelcnn", "priors.top.model.kernel=3"),
    ]
    few = [field for field in FEW if not field.startswith("priors.top.model.layers")]
    preset = ["--config", RECIPES / "configs" / "tones-vqvae2.yaml", *few, "priors.top.model.layers=2", *fields]
    for stage in STAGES:
        outcome = run_recipe(stage, "--run-dir", tmp_path / "run", *(preset if stage == STAGES[0] else []))
        assert (outcome.code, outcome.err) == (0, ""), stage
    samples, _ = read_tensors(tmp_path / "run" / "samples" / "samples.safetensors", "samples")
    assert samples["images"].shape == (2, 2, *size)
    with wave.open(str(tmp_path / "run" / "samples" / "00000.wav")) as sound:
        assert (sound.getnchannels(), sound.getframerate()) == (2, 1000)
