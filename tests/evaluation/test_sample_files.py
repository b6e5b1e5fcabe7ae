"""Samples as files: what they hold, what they belong to, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hvq.distributed import Reduction
from hvq.errors import CheckpointError, HVQError
from hvq.evaluation.sample_files import (
    TENSORS,
    Samples,
    read_description,
    read_samples_file,
    require_same_everywhere,
    write_samples_file,
)
from hvq.files import read_tensors, write_tensors
from hvq.priors import SamplingOptions
from hvq.storage import Hierarchy, encoder_hash, load_hierarchy
from tests.runs import TrainedRun
from tests.threads import run_in_threads

OPTIONS = {"bottom": SamplingOptions(top_k=5, guidance=1.5), "top": SamplingOptions(temperature=0.5)}


@pytest.fixture(scope="module")
def hierarchy(trained_run: TrainedRun) -> Hierarchy:
    return load_hierarchy(trained_run.run)


def some_samples() -> Samples:
    codes = {"bottom": torch.randint(13, (3, 4, 4)), "top": torch.randint(11, (3, 2, 2))}
    numbers, labels = torch.tensor([5, 2, 9]), torch.tensor([0, -1, 2])
    return Samples(numbers=numbers, labels=labels, seed=7, options=OPTIONS, codes=codes, candidates=8)


def written(path: Path, hierarchy: Hierarchy, samples: Samples | None = None) -> Path:
    write_samples_file(path, samples or some_samples(), encoder=encoder_hash(hierarchy.autoencoder))
    return path


def changed(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors, metadata = read_tensors(path, "samples")
    change(tensors)
    write_tensors(path, tensors, metadata)
    return path


def test_what_is_written_is_read(hierarchy: Hierarchy, tmp_path: Path) -> None:
    samples = some_samples()
    for path in (written(tmp_path / TENSORS, hierarchy, samples), tmp_path):
        found = read_samples_file(path, hierarchy)
        assert torch.equal(found.numbers, samples.numbers)
        assert torch.equal(found.labels, samples.labels)
        assert (found.seed, found.candidates, found.images) == (7, 8, None)
        assert found.options == OPTIONS
        assert list(found.codes) == ["top", "bottom"]
        assert all(torch.equal(found.codes[name], samples.codes[name]) for name in found.codes)


def test_the_same_samples_are_the_same_bytes(hierarchy: Hierarchy, tmp_path: Path) -> None:
    samples = some_samples()
    one, other = (written(tmp_path / name, hierarchy, samples).read_bytes() for name in ("a", "b"))
    assert one == other


def test_levels_may_be_missing_and_numbers_are_counted_where_there_are_none(
    hierarchy: Hierarchy, tmp_path: Path
) -> None:
    path = written(tmp_path / "a", hierarchy)
    changed(path, lambda tensors: [tensors.pop("codes.top"), tensors.pop("numbers")])
    found = read_samples_file(path, hierarchy)
    assert list(found.codes) == ["bottom"]
    assert found.numbers.tolist() == [0, 1, 2]


def test_some_rows_of_samples_are_samples() -> None:
    samples = replace(some_samples(), images=torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2))
    few = samples.rows(torch.tensor([0, 2]))
    assert (len(few), few.candidates, few.seed, few.options) == (2, 8, 7, OPTIONS)
    assert few.numbers.tolist() == [5, 9]
    assert few.labels.tolist() == [0, 2]
    assert few.images is not None
    assert few.images[1].flatten().tolist() == [8, 9, 10, 11]
    assert torch.equal(few.codes["top"], samples.codes["top"][[0, 2]])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t.pop("labels"), r"has no labels; it must hold int64 labels \[n\] beside codes.LEVEL"),
        (lambda t: t.update(labels=t["labels"].float()), r"must hold int64 labels, .* received torch.float32 \[3\]"),
        (lambda t: t.update(numbers=t["numbers"][:2]), r"must hold int64 numbers, .* received torch.int64 \[2\]"),
        (lambda t: t.update(labels=t["labels"] + 1), r"labels in .* must be 0 \.\. 2, or -1; received 0 \.\. 3"),
        (
            lambda t: t.update({"codes.middle": t["codes.top"]}),
            "codes.middle are of no level; the levels are",
        ),
        (lambda t: t.update({"codes.top": t["codes.bottom"]}), r"codes.top must be integers \[3, 2, 2\]"),
        (lambda t: t.update({"codes.top": t["codes.top"][:2]}), r"codes.top must be integers \[3, 2, 2\]"),
        (lambda t: t.update({"codes.top": t["codes.top"] + 11}), r"codes.top must be in 0 \.\. 10; received"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    hierarchy: Hierarchy, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], fault: str
) -> None:
    with pytest.raises(HVQError, match=fault):
        read_samples_file(changed(written(tmp_path / "a", hierarchy), change), hierarchy)


def test_samples_of_another_autoencoder_are_refused(hierarchy: Hierarchy, tmp_path: Path) -> None:
    write_samples_file(tmp_path / "a", some_samples(), encoder="abc")
    with pytest.raises(CheckpointError, match=r"codes in .*a are of another autoencoder than that of this run; draw"):
        read_samples_file(tmp_path / "a", hierarchy)


def test_a_file_says_what_it_belongs_to(hierarchy: Hierarchy, tmp_path: Path) -> None:
    save_file({"labels": torch.zeros(3, dtype=torch.int64)}, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="plain does not say which autoencoder its codes are of, and from which"):
        read_samples_file(tmp_path / "plain", hierarchy)
    _, metadata = read_tensors(written(tmp_path / "a", hierarchy), "samples")
    about = json.loads(metadata["samples"])
    assert (about["seed"], about["candidates"], about["encoder_hash"]) == (7, 8, encoder_hash(hierarchy.autoencoder))
    for text in ("{", json.dumps(about | {"format_version": 2}), json.dumps({})):
        with pytest.raises(CheckpointError, match="what x says of its samples cannot be read"):
            read_description({"samples": text}, Path("x"))


def test_a_file_that_is_missing_or_cut_short_is_refused(hierarchy: Hierarchy, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no samples at .*nowhere"):
        read_samples_file(tmp_path / "nowhere", hierarchy)
    path = written(tmp_path / TENSORS, hierarchy)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="is damaged or is not a safetensors file"):
        read_samples_file(tmp_path, hierarchy)


def test_processes_go_on_from_the_same_samples_or_not_at_all() -> None:
    samples = some_samples()

    def read(reduction: Reduction, other: Samples) -> str:
        mine = other if reduction.rank == 1 else samples
        try:
            require_same_everywhere(mine, reduction=reduction, device=torch.device("cpu"), path=Path("x"))
        except CheckpointError as error:
            return str(error)
        return ""

    equal = replace(samples, codes={name: samples.codes[name].clone() for name in ("top", "bottom")})
    assert run_in_threads(lambda reduction: read(reduction, equal), 3) == ["", "", ""]
    fewer = replace(samples, codes={"top": samples.codes["top"]})
    for differing in (fewer, replace(samples, seed=8), samples.rows(torch.tensor([0, 1]))):
        sentences = run_in_threads(lambda reduction, other=differing: read(reduction, other), 3)
        assert sentences == ["processes see different samples at x; put it on a disk that all of them share"] * 3
