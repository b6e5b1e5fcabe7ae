"""The numbers of a run, against plain computations from what the run holds."""

from __future__ import annotations

import io
import math
import shutil
from collections import Counter
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hvq import HierarchicalVQ
from hvq.config import RunConfig
from hvq.data import CodeFolder, TensorImages, spread_rows
from hvq.data.pixels import bytes_to_model
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, DataError
from hvq.evaluation import evaluate as evaluate_module
from hvq.evaluation import real_images
from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.measure_reconstruction import measure_reconstruction
from hvq.histograms import perplexity, usage
from hvq.priors import Condition
from hvq.storage import RunFolder, load_hierarchy, load_prior
from hvq.training.processes import make_accelerator
from tests.processes import run_in_processes
from tests.runs import (
    HELD_OUT_IMAGES,
    TRAIN_IMAGES,
    TrainedRun,
    changed,
    drawing_precisions,
    files_below,
    rewrite_codes,
)

MEASURED_OF_CODES = {"about", "reconstruction", "levels", "cooccurrence", "bits_per_image", "likelihood"}


@pytest.fixture(scope="module")
def numbers(trained_run: TrainedRun) -> dict[str, Any]:
    return trained_run.run.metrics()


@pytest.fixture(scope="module")
def images(trained_run: TrainedRun) -> Tensor:
    source = trained_run.sources.validation
    return torch.stack([source.image(i) for i in range(HELD_OUT_IMAGES)]).float() / 255


@pytest.fixture(scope="module")
def system(trained_run: TrainedRun) -> HierarchicalVQ:
    return HierarchicalVQ.from_pretrained(trained_run.run.path, chunk_size=7)


def _evaluate(run: TrainedRun, **changes: Any) -> dict[str, Any]:
    config = changed(run.config, **changes)
    with redirect_stdout(io.StringIO()):
        return evaluate(config, run.run, accelerator=make_accelerator(config, run.run))


def test_reconstruction(numbers: dict[str, Any], system: HierarchicalVQ, images: Tensor) -> None:
    errors = (system.reconstruct(images).double() - images.double()).square().mean(dim=(1, 2, 3))
    found = numbers["reconstruction"]
    assert found["mse"] == pytest.approx(float(errors.mean()), rel=1e-9)
    assert found["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-9)
    assert -1 <= found["ssim"] <= 1


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_levels(numbers: dict[str, Any], system: HierarchicalVQ, images: Tensor, level: str) -> None:
    codes = system.encode(images)[level]
    counts = Counter(codes.flatten().tolist())
    entropy = -sum(n / codes.numel() * math.log(n / codes.numel()) for n in counts.values())
    found = numbers["levels"][level]
    assert found["usage"] == len(counts) / {"top": 11, "bottom": 13}[level]
    assert found["perplexity"] == pytest.approx(math.exp(entropy))
    without = (system.reconstruct(images, absent=[level]) - images).double().square().mean()
    assert found["absent_mse"] == pytest.approx(float(without), rel=1e-9)
    assert found["absent_stand_in"] == ("mean codebook vector" if level == "top" else "learned vector")


def test_padding_is_not_counted_as_usage(trained_run: TrainedRun) -> None:
    """17 x 9 images are padded to 24 x 16, of whose 6 x 4 positions at the bottom 5 x 3 see a pixel."""
    pixels = torch.randint(0, 256, (11, 1, 17, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    hierarchy = load_hierarchy(trained_run.run)
    found = measure_reconstruction(trained_run.config, hierarchy, TensorImages(pixels), Reduction())
    found = found.measured.numbers["levels"]
    # In training mode, what the codebooks would learn from is counted.
    model = hierarchy.autoencoder.train()
    statistics = {name: level.statistics[0].counts for name, level in model(bytes_to_model(pixels)).levels.items()}
    grids = {name: codes.shape[1:].numel() for name, codes in model.encode(bytes_to_model(pixels)).items()}
    assert {name: int(counts.sum()) for name, counts in statistics.items()} == {"top": 11 * 3 * 2, "bottom": 11 * 5 * 3}
    assert grids == {"top": 3 * 2, "bottom": 6 * 4}
    for name, counts in statistics.items():
        assert found[name]["usage"] == usage(counts.unsqueeze(0))
        assert found[name]["perplexity"] == pytest.approx(perplexity(counts.unsqueeze(0)))


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_priors(numbers: dict[str, Any], trained_run: TrainedRun, level: str) -> None:
    prior, description = load_prior(trained_run.run.prior(level))
    found = numbers["priors"][level]
    assert found["held_out_nats"] == description.held_out_nats
    assert found["unigram_entropy"] == CodeFolder(trained_run.run.codes, "validation").entropy(level)
    assert found["log_codebook_size"] == math.log({"top": 11, "bottom": 13}[level])
    # As many training images as are held out, as they are, of all classes although they are sorted.
    rows = CodeFolder(trained_run.run.codes, "train").fetch(spread_rows(TRAIN_IMAGES, HELD_OUT_IMAGES))
    assert rows.labels.unique().tolist() == [0, 1, 2]
    condition = Condition(codes={"top": rows.codes["top"]} if level == "bottom" else {}, labels=rows.labels)
    with torch.no_grad():
        logits = prior(rows.codes[level], condition).double()
    expected = functional.cross_entropy(logits.flatten(0, -2), rows.codes[level].flatten())
    assert found["train_nats"] == pytest.approx(float(expected), rel=1e-6)


def test_samples_and_what_the_numbers_mean(numbers: dict[str, Any]) -> None:
    score = numbers["classification_accuracy_score"]
    assert {"generated", "reconstructed", "real", "copies"} <= score.keys()
    tops = {f"{source}_top5" for source in ("generated", "reconstructed", "real")}
    assert {score[name] for name in tops} == {None}
    assert all(0 <= value <= 1 for name, value in score.items() if name not in tops)
    held_out_correct = score["real"] * HELD_OUT_IMAGES * 2
    assert held_out_correct == pytest.approx(round(held_out_correct))
    about = numbers["about"]
    assert all(name in about["priors"] for name in numbers["priors"]["top"])
    assert f"{HELD_OUT_IMAGES} held-out images, 16x16, 1 channel(s), pixels in [0, 1]" in about["split"]
    assert "21 generated images" in about["classification_accuracy_score"]


def test_numbers_do_not_depend_on_the_chunk_size(numbers: dict[str, Any], copied_run: TrainedRun) -> None:
    for chunk_size in (4, 64):
        again = _evaluate(copied_run, chunk_size=chunk_size)
        for part in ("reconstruction", "levels", "priors"):
            assert _flat(again[part]) == pytest.approx(_flat(numbers[part]), rel=1e-6)


def test_samples_are_measured_in_their_precision_and_priors_in_float32(
    numbers: dict[str, Any], copied_run: TrainedRun
) -> None:
    with drawing_precisions() as precisions:
        again = _evaluate(copied_run, sampling__precision="bfloat16")
    assert precisions == {torch.bfloat16}
    assert again["priors"] == numbers["priors"]
    assert "21 generated images (priors in bfloat16)" in again["about"]["classification_accuracy_score"]


def test_copies_are_looked_for_in_the_same_images_by_pixels_and_by_codes(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (real_images, evaluate_module):
        monkeypatch.setattr(module, "MOST_REAL_IMAGES", 10)
    rows = spread_rows(TRAIN_IMAGES, 10)
    found = evaluate_module._training_codes(copied_run.run)["top"]
    codes = CodeFolder(copied_run.run.codes, "train")
    assert len(codes) == 2 * TRAIN_IMAGES
    assert torch.equal(found, codes.fetch(np.concatenate([rows, rows + TRAIN_IMAGES])).codes["top"])
    about = _evaluate(copied_run)["about"]["classification_accuracy_score"]
    assert "on 10 held-out real images" in about
    assert "reconstructions of 10 training images" in about


def _flat(tree: dict[str, Any]) -> dict[str, float]:
    """The numbers of nested mappings, by dotted path."""
    inner = {
        f"{name}.{path}": number
        for name, value in tree.items()
        if isinstance(value, dict)
        for path, number in _flat(value).items()
    }
    return inner | {name: value for name, value in tree.items() if isinstance(value, int | float)}


def test_a_run_is_measured_as_far_as_it_is(copied_run: TrainedRun) -> None:
    run = copied_run.run
    run.metrics_file.unlink()
    shutil.rmtree(run.prior("bottom"))
    numbers = _evaluate(copied_run)
    assert numbers.keys() - {"seconds"} == MEASURED_OF_CODES | {"priors"}
    assert list(numbers["priors"]) == ["top"]
    run.metrics_file.unlink()
    shutil.rmtree(run.path / "priors")
    shutil.rmtree(run.codes)
    assert _evaluate(copied_run).keys() - {"seconds"} == MEASURED_OF_CODES


def _evaluated_in_group(plain: dict[str, Any], folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    config, run = RunConfig.model_validate(plain), RunFolder(folder)
    with redirect_stdout(io.StringIO()):
        return evaluate(config, run, accelerator=make_accelerator(config, run))


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "chunk_size"), [(2, 64), (3, 7)])
def test_processes_measure_what_one_measures(
    numbers: dict[str, Any], copied_run: TrainedRun, processes: int, chunk_size: int
) -> None:
    """On 47 and 23 images; at a chunk size of 64 the second process has nothing to do."""
    plain = changed(copied_run.config, chunk_size=chunk_size).model_dump(mode="json")
    copied_run.run.metrics_file.unlink()
    found = run_in_processes(_evaluated_in_group, processes, plain, str(copied_run.run.path))
    assert found == [found[0]] * processes
    assert found[0]["levels"].keys() == numbers["levels"].keys()
    expected = {name: value for name, value in _flat(numbers).items() if not name.startswith("seconds")}
    assert {"reconstruction.mse", "priors.bottom.train_nats", "levels.top.usage"} <= expected.keys()
    assert "classification_accuracy_score.reconstructed" in expected
    if chunk_size != 7:
        # Samples, and what is trained on them, depend on the chunk size in the last bits.
        expected = {name: value for name, value in expected.items() if not name.startswith("classification")}
    measured = {name: value for name, value in _flat(found[0]).items() if name in expected}
    assert measured == pytest.approx(expected, rel=1e-6)


def test_what_does_not_belong_together_is_refused(copied_run: TrainedRun) -> None:
    before = files_below(copied_run.run.path)
    with pytest.raises(DataError, match=r"takes images of 1 channel\(s\); data.channels gives 3"):
        _evaluate(copied_run, data__channels=3, autoencoder__channels=3)
    assert files_below(copied_run.run.path) == before
    rewrite_codes(copied_run.run, "validation", encoder_hash="abc")
    with pytest.raises(CheckpointError, match=r"codes in .*validation were made by another autoencoder"):
        _evaluate(copied_run)
    shutil.rmtree(copied_run.run.codes)
    with pytest.raises(CheckpointError, match="no complete codes"):
        _evaluate(copied_run)
