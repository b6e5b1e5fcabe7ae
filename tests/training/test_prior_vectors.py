"""Priors conditioned on vectors, from a file of vectors to samples and numbers."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hvq import HierarchicalVQ
from hvq.config import RunConfig
from hvq.data import CodeBatch, CodeFolder, write_vectors
from hvq.data.code_vectors import VECTORS_FILE
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, DataError
from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.sample_files import Samples
from hvq.evaluation.samples import sample_run
from hvq.priors import Condition
from hvq.priors.guidance import vector_size
from hvq.priors.likelihood import prior_inputs
from hvq.storage import RunFolder, load_hierarchy, load_prior
from hvq.training import extract_codes, fit_prior
from hvq.training.looks import held_out_nats
from hvq.training.processes import make_accelerator
from tests.data.small_codes import turn_a_bit
from tests.processes import run_in_processes
from tests.runs import LEVELS, TrainedRun, changed, differing, files_below, tensors_below
from tests.training.interruption import keep_last_checkpoint, killed_at

V = 3


@dataclass(frozen=True)
class VectorRun:
    """A run whose images have vectors, which are found in a file by name."""

    config: RunConfig
    run: RunFolder
    vectors: dict[str, Tensor]


def _write(folder: Path, run: TrainedRun, seed: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """A file for each split, whose rows are not in the order of the images; the vectors in that order."""
    files, vectors, sources = {}, {}, run.sources
    for split, source in (("train", sources.train), ("validation", sources.validation)):
        generator = torch.Generator().manual_seed(seed + len(source))
        vectors[split] = 10 + torch.randn(len(source), V, generator=generator)
        files[split] = str(folder / f"{split}-{seed}.safetensors")
        names = [source.name(i) for i in range(len(source))]
        write_vectors(files[split], vectors[split].flip(0), names[::-1])
    return files, vectors


def _extract(config: RunConfig, run: RunFolder, **options: Any) -> None:
    with redirect_stdout(io.StringIO()):
        extract_codes(config, run, **options)


@pytest.fixture(scope="module")
def vector_run(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> VectorRun:
    folder = tmp_path_factory.mktemp("vectors")
    copied, (files, vectors) = trained_run.copied(folder / "run"), _write(folder, trained_run, 0)
    config = changed(copied.config, data__vectors=files)
    shards = {name: data for name, data in files_below(copied.run.codes).items() if "shard" in name}
    _extract(config, copied.run, resume=True)
    assert {name: data for name, data in files_below(copied.run.codes).items() if "shard" in name} == shards
    with redirect_stdout(io.StringIO()):
        for level in LEVELS:
            fit_prior(config, copied.run, level)
    return VectorRun(config, copied.run, vectors)


def _copied(run: VectorRun, path: Path) -> TrainedRun:
    return TrainedRun(run.config, run.run).copied(path)


def test_codes_hold_the_vector_of_each_image(vector_run: VectorRun) -> None:
    for split, epochs in (("train", 2), ("validation", 1)):
        codes = CodeFolder(vector_run.run.codes, split)
        batch = codes.fetch(np.arange(len(codes)))
        assert torch.equal(batch.vectors, vector_run.vectors[split].repeat(epochs, 1))


def test_the_prior_keeps_size_mean_and_deviation(vector_run: VectorRun) -> None:
    vectors = CodeFolder(vector_run.run.codes, "train").vectors
    for level in LEVELS:
        prior, description = load_prior(vector_run.run.prior(level))
        assert description.vector_size == vector_size(prior) == V
        reader = prior.condition.vector
        torch.testing.assert_close(reader.mean, vectors.mean(0))
        torch.testing.assert_close(reader.deviation, vectors.std(0, correction=0))
        codes = CodeFolder(vector_run.run.codes, "validation")
        assert held_out_nats(prior, codes, level, 7, Reduction()) == description.held_out_nats
        assert bool(reader.unknown.any()), "the stand-in has learned"


def test_resume_is_equality(vector_run: VectorRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(vector_run.config, priors__top__training__steps=7, priors__top__training__checkpoint_every=2)
    straight, stopped = (_copied(vector_run, tmp_path / name).run for name in ("straight", "stopped"))
    keep_last_checkpoint(monkeypatch)
    fit_prior(config, straight, "top")
    with killed_at(5):
        fit_prior(config, stopped, "top")
    fit_prior(config, stopped, "top", resume_at=4)
    one, other = (tensors_below(run.prior("top")) for run in (straight, stopped))
    assert len(one) > 10
    assert differing(one, other) == []


def test_what_reads_vectors_is_begun_from_whole_or_not_at_all(vector_run: VectorRun, tmp_path: Path) -> None:
    run = _copied(vector_run, tmp_path / "run").run
    files, vectors = _write(tmp_path, TrainedRun(vector_run.config, run), 1)
    training = {"steps": 1, "learning_rate": 1e-12, "average_decay": 0.0, "batch_size": 12}
    old = load_prior(vector_run.run.prior("top"))[0].condition.vector
    config = changed(vector_run.config, data__vectors=files, priors__top__training=training)
    _extract(config, run, resume=True)
    begun = fit_prior(config, run, "top", init_from=vector_run.run.path).condition.vector
    assert torch.equal(begun.mean, old.mean)
    torch.testing.assert_close(begun.linear.weight, old.linear.weight)
    wider = fit_prior(changed(config, priors__top__model__width=16), run, "top", init_from=vector_run.run.path)
    torch.testing.assert_close(wider.condition.vector.mean, vectors["train"].mean(0))


def test_other_vectors_are_other_codes_to_a_checkpoint(
    vector_run: VectorRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _copied(vector_run, tmp_path / "run").run
    with killed_at(3):
        fit_prior(changed(vector_run.config, priors__top__training__checkpoint_every=1), run, "top")
    others, _ = _write(tmp_path, TrainedRun(vector_run.config, run), 1)
    config = changed(vector_run.config, data__vectors=others, priors__top__training__checkpoint_every=1)
    _extract(config, run, resume=True)
    with pytest.raises(CheckpointError, match="codes"):
        fit_prior(config, run, "top", resume=True)


def test_training_meets_all_that_may_be_told(
    vector_run: VectorRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[tuple[bool, bool]] = set()

    def recorded(batch: CodeBatch, level: str, **options: Any) -> tuple[Tensor, Condition]:
        targets, condition = prior_inputs(batch, level, **options)
        told.update(zip((condition.labels >= 0).tolist(), (~condition.vector.isnan().all(1)).tolist(), strict=True))
        assert not bool(batch.vectors.isnan().any()), "the batch keeps its own"
        return targets, condition

    monkeypatch.setattr("hvq.training.prior.prior_inputs", recorded)
    training = {"steps": 7, "batch_size": 12, "label_dropout": 0.4, "vector_dropout": 0.4}
    config = changed(vector_run.config, priors__top__training=training)
    fit_prior(config, _copied(vector_run, tmp_path / "run").run, "top")
    assert told == {(True, True), (True, False), (False, True), (False, False)}


def test_vectors_that_were_not_extracted_are_missed(trained_run: TrainedRun, vector_run: VectorRun) -> None:
    with pytest.raises(DataError, match=r"data\.vectors\.train names vectors, and the codes in .* have none; extract"):
        fit_prior(vector_run.config, trained_run.run, "top")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_damaged_vectors_are_not_trained_on(vector_run: VectorRun, tmp_path: Path, split: str) -> None:
    run = _copied(vector_run, tmp_path / "run").run
    turn_a_bit(run.codes / split / VECTORS_FILE)
    with pytest.raises(CheckpointError, match=rf"{split}/{VECTORS_FILE} is damaged"):
        fit_prior(vector_run.config, run, "top")


def test_an_extraction_that_was_cut_between_the_splits_is_named(vector_run: VectorRun, tmp_path: Path) -> None:
    run = _copied(vector_run, tmp_path / "run").run
    train = files_below(run.codes / "train")
    _extract(changed(vector_run.config, data__vectors={}), run, resume=True)
    for name, data in train.items():
        (run.codes / "train" / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="vectors of 3 numbers, and held-out ones of 0; extract"):
        fit_prior(vector_run.config, run, "top")


def test_samples_are_of_their_vectors(vector_run: VectorRun) -> None:
    model = HierarchicalVQ.from_pretrained(vector_run.run.path, chunk_size=4)
    assert model.vector_size == V
    vectors = vector_run.vectors["train"][:5]
    images = model.sample(vectors=vectors, seed=1)
    assert images.shape == (5, 1, 16, 16)
    labelled = model.sample([2] * 5, vectors=vectors, seed=1)
    assert not torch.equal(model.sample([2] * 5, vectors=1000 * vectors, seed=1), labelled), "the vector counts"
    assert torch.equal(model.sample([2] * 3, vectors=vectors[:3], seed=1), labelled[:3])
    with pytest.raises(DataError, match=r"floating point \[2, 3\]"):
        model.sample(2, vectors=vectors)
    with pytest.raises(DataError, match="labels, a number of images, or vectors"):
        model.sample()
    kept = torch.ones(5, 16, 16, dtype=torch.bool)
    painted, half = model.inpaint(images, kept, vectors=vectors), 0.51 / 255
    torch.testing.assert_close(painted, model.reconstruct(images), rtol=0, atol=half)


def test_samples_go_on_with_their_vectors_hidden_ones_among_them(vector_run: VectorRun, tmp_path: Path) -> None:
    copied = _copied(vector_run, tmp_path / "run")
    vectors = vector_run.vectors["train"][:4].clone()
    vectors[1] = torch.nan

    def sampled(**arguments: Any) -> Samples:
        with redirect_stdout(io.StringIO()):
            return sample_run(copied.config, copied.run, load_hierarchy(copied.run), reduction=Reduction(), **arguments)

    first = sampled(labels=[2, 0, 1, 2], vectors=vectors)
    again = sampled(vectors=vectors, from_codes=copied.run.samples)
    assert torch.equal(again.labels, first.labels)
    assert torch.equal(again.images, first.images)
    others = vectors.clone()
    others[1] = 0
    for wrong in (others, vectors[:3], vectors + 1e-3):
        with pytest.raises(CheckpointError, match="not of the vectors that are asked for"):
            sampled(vectors=wrong, from_codes=copied.run.samples)


@pytest.mark.usefixtures("fresh_accelerate")
def test_numbers_are_given_the_vectors_or_left_out_with_the_reason(vector_run: VectorRun, tmp_path: Path) -> None:
    run = _copied(vector_run, tmp_path / "run").run
    with redirect_stdout(io.StringIO()):
        numbers = evaluate(vector_run.config, run, accelerator=make_accelerator(vector_run.config, run))
    for level in LEVELS:
        assert numbers["priors"][level]["held_out_nats"] == load_prior(run.prior(level))[1].held_out_nats
    assert "given the class of each image that has one and its vector" in numbers["about"]["priors"]
    assert "given vectors of training images of the class" in str(numbers["about"])
    without = changed(vector_run.config, data__vectors={})
    _extract(without, run, resume=True)
    with redirect_stdout(io.StringIO()):
        numbers = evaluate(without, run, accelerator=make_accelerator(without, run))
    assert numbers["priors"] == {}
    assert numbers["bits_per_image"]["priors"] is None
    assert "a vector of 3 numbers for each image, and the codes have none" in numbers["about"]["priors.top"]
    assert "vectors hidden, since the codes have none" in str(numbers["about"])


def _extract_in_group(plain: dict[str, Any], folder: str) -> None:
    _extract(RunConfig.model_validate(plain), RunFolder(folder))


@pytest.mark.processes
def test_two_processes_leave_the_same_files(vector_run: VectorRun, tmp_path: Path) -> None:
    run = _copied(vector_run, tmp_path / "run").run
    run_in_processes(_extract_in_group, 2, vector_run.config.model_dump(mode="json"), str(run.path))
    assert files_below(run.codes) == files_below(vector_run.run.codes)
