"""Looks at held-out images: the error that any number of processes finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import AutoencoderConfig
from hvq.data import TensorImages
from hvq.distributed import Reduction
from hvq.quantizers.codebook import Codebook
from hvq.storage import load_autoencoder
from hvq.training import image_looks as looks
from hvq.training.code_window import CodeWindow
from hvq.training.image_looks import ImageLooks, codebook_norms, held_out_error
from hvq.training.reconstruction_picture import ReconstructionPicture
from tests.runs import TrainedRun
from tests.threads import run_in_threads


def test_the_held_out_error_is_that_of_the_reconstructions(trained_run: TrainedRun) -> None:
    model, _ = load_autoencoder(trained_run.run.autoencoder)
    source = trained_run.sources.validation
    images = source.fetch(np.arange(len(source))).images.double() / 255
    with torch.no_grad():
        restored = (model(images.float() * 2 - 1).reconstruction.double() / 2 + 0.5).clamp(0, 1)
    expected = float((restored - images).square().mean())
    model.train()
    assert held_out_error(model, source, 7, Reduction()) == pytest.approx(expected, rel=1e-4)
    assert model.training


@pytest.mark.parametrize("most", [9, 1_024])
def test_the_held_out_error_does_not_depend_on_processes(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(looks, "_HELD_OUT_IMAGES", most)
    model, _ = load_autoencoder(trained_run.run.autoencoder)
    source = trained_run.sources.validation

    def error(reduction: Reduction) -> float:
        return held_out_error(model, source, 4, reduction)

    (alone,) = run_in_threads(error, 1)
    for processes in (2, 3, 7):
        assert run_in_threads(error, processes) == [pytest.approx(alone, rel=1e-12)] * processes


# --- norms ----------------------------------------------------------------------------------------------------------


def _quantized(**quantizer: Any) -> Autoencoder:
    level = {"ratio": 2, "codebook_size": 7, "code_dimension": 6, "quantizer": quantizer}
    return build_autoencoder(AutoencoderConfig.model_validate({"channels": 1, "levels": {"top": level}}))


@pytest.mark.parametrize(
    "quantizer",
    [
        {"kind": "vector"},
        {"kind": "vector", "heads": 3},
        {"kind": "vector", "learning": "gradient", "metric": "cosine"},
        {"kind": "sim"},
        {"kind": "gumbel"},
        {"kind": "residual", "num_quantizers": 2},
        {"kind": "residual", "num_quantizers": 2, "shared": True},
        {"kind": "residual", "num_quantizers": 2, "inner": {"kind": "sim"}},
    ],
)
def test_the_norm_is_of_the_vectors_that_codes_are_looked_up_in(quantizer: dict[str, Any]) -> None:
    model = _quantized(**quantizer)
    tables = [
        module.table() if isinstance(module, Codebook) else table
        for module in model.modules()
        for name in ("vectors", "fixed_vectors")
        if isinstance(table := getattr(module, name, None), torch.Tensor)
    ]
    expected = np.mean([row.norm().item() for table in tables for row in table.detach().double()])
    assert codebook_norms(model) == {"codebook_norm.top": pytest.approx(expected, rel=1e-5)}


def test_dead_codes_do_not_count() -> None:
    model = _quantized(kind="vector")
    (codebook,) = model.quantizers["top"].codebooks
    codebook.alive[2:] = False
    expected = codebook.vectors[:2].norm(dim=1).mean().item()
    assert codebook_norms(model)["codebook_norm.top"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("quantizer", [{"kind": "lookup_free"}, {"kind": "gaussian"}])
def test_what_has_no_codebook_has_no_norm(quantizer: dict[str, Any]) -> None:
    level = {"ratio": 2, "codebook_size": 8, "quantizer": quantizer}
    model = build_autoencoder(AutoencoderConfig.model_validate({"channels": 1, "levels": {"top": level}}))
    assert codebook_norms(model) == {}


def test_before_a_codebook_is_set_its_norm_means_nothing() -> None:
    model = _quantized(kind="vector")
    model.quantizers["top"].continuous = True
    assert codebook_norms(model) == {}


# --- pictures -------------------------------------------------------------------------------------------------------


def test_the_picture_has_a_row_of_originals_and_one_for_each_prefix_of_the_levels(trained_run: TrainedRun) -> None:
    model, _ = load_autoencoder(trained_run.run.autoencoder)
    source = trained_run.sources.validation
    model.train()
    shown = ReconstructionPicture(source, 5).picture(model)
    assert model.training
    model.eval()
    # Images of 16 pixels are shown four times as large, with gaps of two pixels.
    assert shown.shape == (3 * 66 - 2, 5 * 66 - 2, 3)
    images = source.fetch(np.array([0, 4, 9, 13, 18])).images
    codes = model.encode(images.float() / 127.5 - 1)
    rows = [images.double(), *(255 * _unit(model.decode(codes, absent=a)) for a in (["bottom"], []))]
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            cell = shown[66 * i : 66 * i + 64, 66 * j : 66 * j + 64]
            assert torch.equal(cell[..., 0], cell[..., 2])
            assert (cell[::4, ::4, 1].double() - image[0]).abs().max() <= 0.51
            assert torch.equal(cell[::4, ::4], cell[3::4, 3::4])
    assert bool((shown[64:66] == 255).all())


def _unit(images: torch.Tensor) -> torch.Tensor:
    return (images.detach().double() / 2 + 0.5).clamp(0, 1)


def test_a_source_that_is_read_from_end_to_end_shows_its_first_images(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = _quantized(kind="vector"), trained_run.sources.validation
    monkeypatch.setattr(type(source), "sequential_reader", None, raising=False)
    shown = ReconstructionPicture(source, 99).picture(model)
    # Eight at the most.
    assert shown.shape[1] == 8 * 66 - 2
    assert torch.equal(shown[:64:4, 7 * 66 :: 4, 0], source.image(7)[0])


def test_without_held_out_images_there_is_no_picture(trained_run: TrainedRun) -> None:
    source = TensorImages(torch.zeros(0, 1, 16, 16, dtype=torch.uint8))
    looks_at = ImageLooks(_quantized(kind="vector"), source, 7, Reduction(), CodeWindow())
    assert looks_at.pictures() == {}
