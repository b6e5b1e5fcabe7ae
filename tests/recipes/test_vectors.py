"""A file of vectors, from the command line of one stage to that of the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvq import HierarchicalVQ
from hvq.data import write_vectors
from hvq.files import read_tensors
from hvq.priors import SamplingOptions
from tests.runs import TrainedRun, files_below, run_recipe

V = 2


@pytest.fixture(scope="module")
def vector_run(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("recipes")
    run, words = trained_run.copied(folder / "run"), ["--run-dir", str(folder / "run")]
    for split, source in (("train", run.sources.train), ("validation", run.sources.validation)):
        path, names = folder / f"{split}.safetensors", [source.name(i) for i in range(len(source))]
        write_vectors(path, torch.randn(len(names), V), names)
        words.append(f"data.vectors.{split}={path}")
    for recipe in ("extract_codes", "train_prior"):
        outcome = run_recipe(recipe, *words, *["--resume"] * (recipe == "extract_codes"))
        assert outcome.code == 0, outcome.err
    return run


def test_one_image_is_drawn_for_each_row(vector_run: TrainedRun, tmp_path: Path) -> None:
    run, vectors = vector_run.copied(tmp_path / "run").run, 50 * torch.randn(5, V)
    write_vectors(tmp_path / "asked.safetensors", vectors)
    words = ["--run-dir", run.path, "--vectors", tmp_path / "asked.safetensors", "--classes", "rows", "--seed", 7]
    outcome = run_recipe("sample", *words, "priors.top.sampling.guidance=2")
    assert outcome.code == 0, outcome.err
    tensors, _ = read_tensors(run.samples / "samples.safetensors", "samples")
    assert torch.equal(tensors["vectors"], vectors)
    model = HierarchicalVQ.from_pretrained(run.path, chunk_size=7)
    options = {"top": SamplingOptions(guidance=2.0)}
    alone = model.sample([2, 2], vectors=vectors[:2], seed=7, options=options)
    assert torch.equal((255 * alone).round().byte(), tensors["images"][:2])
    before = files_below(run.samples)
    # The samples of a file go on with its vectors, and are not taken for those of others.
    words = ["--run-dir", run.path, "priors.top.sampling.guidance=2", "--from-codes", run.samples]
    assert run_recipe("sample", *words).code == 0
    assert files_below(run.samples) == before
    write_vectors(tmp_path / "others.safetensors", torch.zeros(5, V))
    outcome = run_recipe("sample", *words, "--vectors", tmp_path / "others.safetensors", "--classes", "rows")
    assert outcome.code == 1
    assert "not of the vectors that are asked for" in outcome.err


@pytest.mark.parametrize(
    ("size", "words", "fault"),
    [
        (V, ["--classes", "rows,block"], "one class, or one for each of the 5 vectors; received 2"),
        (V, ["--keep", "0.5"], "each vector has one sample: keep all"),
        (V + 1, [], "floating point [5, 2] for the prior of level top; received torch.float32 [5, 3]"),
    ],
)
def test_what_cannot_be_drawn(vector_run: TrainedRun, tmp_path: Path, size: int, words: list[str], fault: str) -> None:
    write_vectors(tmp_path / "asked.safetensors", torch.zeros(5, size))
    before = files_below(vector_run.run.samples)
    outcome = run_recipe(
        "sample", "--run-dir", vector_run.run.path, "--vectors", tmp_path / "asked.safetensors", *words
    )
    assert outcome.code == 1
    assert fault in outcome.err
    assert outcome.err.count("\n") == 1
    assert files_below(vector_run.run.samples) == before


def test_priors_without_vectors_take_none(trained_run: TrainedRun, tmp_path: Path) -> None:
    write_vectors(tmp_path / "asked.safetensors", torch.zeros(5, V))
    outcome = run_recipe("sample", "--run-dir", trained_run.run.path, "--vectors", tmp_path / "asked.safetensors")
    assert outcome.code == 1
    assert "none of the priors was trained with any; leave them out" in outcome.err


@pytest.mark.parametrize("fault", ["missing", "another image"])
def test_files_that_do_not_fit_are_one_sentence(trained_run: TrainedRun, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "vectors.safetensors"
    if fault == "another image":
        write_vectors(path, torch.zeros(1, V), ["elsewhere.png"])
    before = files_below(trained_run.run.codes)
    outcome = run_recipe("extract_codes", "--run-dir", trained_run.run.path, f"data.vectors.train={path}")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert {"missing": "no vectors at", "another image": "each of the 47 training images"}[fault] in outcome.err
    assert files_below(trained_run.run.codes) == before
