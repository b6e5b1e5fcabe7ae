"""The report of a run agrees with its numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from hvq.autoencoders import build_autoencoder
from hvq.data import CodeFolder, Sources, TensorImages
from hvq.distributed import Reduction
from hvq.evaluation import run_report
from hvq.evaluation.measure_reconstruction import measure_reconstruction
from hvq.histograms import perplexity, usage
from hvq.storage import RunFolder, load_hierarchy, save_autoencoder
from hvq.storage.models import AutoencoderDescription
from hvq.training import extract_codes
from tests.runs import TrainedRun, changed


def _source(seed: int) -> TensorImages:
    generator = torch.Generator().manual_seed(seed)
    return TensorImages(torch.randint(0, 256, (11, 1, 17, 9), generator=generator, dtype=torch.uint8))


def _usage_shown(run: TrainedRun, source: TensorImages, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The counts that the report's histogram is drawn from."""
    shown: dict[str, Tensor] = {}

    def draw(counts: Mapping[str, Tensor], level_names: Sequence[str]) -> Image.Image:
        shown.update(counts)
        return Image.new("RGB", (2, 2))

    monkeypatch.setattr(run_report, "usage_histogram", draw)
    run_report.run_pictures(run.config, run.run, load_hierarchy(run.run), source)
    return shown


def test_the_usage_histogram_leaves_padding_out_as_held_out_usage_does(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 x 9 images are padded to 24 x 16, of whose 6 x 4 positions at the bottom 5 x 3 see a pixel."""
    config = changed(copied_run.config, data__size=[17, 9], data__augmentation={}, chunk_size=4)
    run = TrainedRun(config, copied_run.run)
    sources = Sources(_source(0), _source(1))
    with redirect_stdout(io.StringIO()):
        extract_codes(config, run.run, sources=sources)
    shown = _usage_shown(run, _source(1), monkeypatch)
    held_out = measure_reconstruction(config, load_hierarchy(run.run), sources.validation, Reduction())
    levels: dict[str, Any] = held_out.measured.numbers["levels"]
    assert {name: int(counts.sum()) for name, counts in shown.items()} == {"top": 11 * 3 * 2, "bottom": 11 * 5 * 3}
    assert int(CodeFolder(run.run.codes, "validation").counts("bottom").sum()) == 11 * 6 * 4
    for name, counts in shown.items():
        assert levels[name]["usage"] == usage(counts)
        assert levels[name]["perplexity"] == pytest.approx(perplexity(counts))


def test_without_padding_the_counts_are_those_that_were_written(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = trained_run.sources.validation
    assert isinstance(trained_run.run.metrics()["rejection"], dict)
    shown = _usage_shown(trained_run, source, monkeypatch)  # type: ignore[arg-type]
    codes = CodeFolder(trained_run.run.codes, "validation")
    for name, counts in shown.items():
        assert torch.equal(counts, codes.counts(name))
        assert int(counts.sum()) == codes.fetch(torch.arange(len(codes)).numpy()).codes[name].numel()


@pytest.mark.parametrize(
    ("kinds", "latents"),
    [
        ({"top": "vector"}, "1 level of discrete latents"),
        ({"top": "gaussian"}, "1 level of Gaussian latents"),
        ({"top": "gaussian", "bottom": "gaussian"}, "2 levels of Gaussian latents"),
        ({"top": "vector", "bottom": "gaussian"}, "2 levels of discrete and Gaussian latents"),
    ],
)
def test_the_title_names_what_the_latents_are(
    trained_run: TrainedRun, tmp_path: Path, kinds: Mapping[str, str], latents: str
) -> None:
    levels = {
        name: {"ratio": 4 if name == list(kinds)[-1] else 2, "width": 8, "quantizer": {"kind": kind}}
        for name, kind in kinds.items()
    }
    config = changed(trained_run.config, autoencoder__levels=levels, priors={})
    run, sources = RunFolder(tmp_path / "run"), trained_run.sources
    description = AutoencoderDescription(autoencoder=config.autoencoder, image_size=(16, 16), classes=())
    save_autoencoder(run.autoencoder, build_autoencoder(config.autoencoder), description)
    run_report.write_run_report(config, run, sources)
    assert f"<h1>folder: {latents}</h1>" in run.report.read_text()
