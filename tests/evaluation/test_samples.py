"""Samples of a run: as files, from level to level, and on several processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hvq.config import RunConfig
from hvq.distributed import Reduction, current_reduction
from hvq.errors import CheckpointError, ConfigurationError, DataError
from hvq.evaluation import samples as samples_module
from hvq.evaluation.classification import fit_classifier
from hvq.evaluation.generation import generate
from hvq.evaluation.real_images import gather_images
from hvq.evaluation.rejection import own_class_probabilities
from hvq.evaluation.run_report import write_run_report
from hvq.evaluation.sample_files import TENSORS, Samples, read_samples_file
from hvq.evaluation.samples import STAGE, class_labels, draw_samples, sample_run
from hvq.files import read_tensors, write_tensors
from hvq.priors import Prior, SamplingOptions
from hvq.progress import ProgressLines
from hvq.storage import RunFolder, load_hierarchy
from tests.processes import run_in_processes
from tests.runs import LEVELS, TrainedRun, changed, differing, drawing_precisions, files_below, tensors_below


class Killed(BaseException):
    """Stands for the end of a process."""


def sampled(run: TrainedRun, **arguments: Any) -> Samples:
    config = changed(run.config, **arguments.pop("changes", {}))
    return sample_run(config, run.run, load_hierarchy(run.run), reduction=Reduction(), **arguments)


def killed_in(run: TrainedRun, level: str, step: int, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Path:
    """Sampling that ends at a step of a level; the folder in which finished levels are left."""
    original, steps = Prior.step, iter(range(10**6))
    size = load_hierarchy(run.run).priors[level].codebook_size

    def killing(self: Prior, *words: Any) -> Any:
        if self.codebook_size == size and next(steps) == step:
            raise Killed
        return original(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Prior, "step", killing)
        with pytest.raises(Killed):
            sampled(run, **arguments)
    return run.run.checkpoint(STAGE)


# --- files ---


def test_labels_class_by_class() -> None:
    assert class_labels(3, 2) == [0, 0, 1, 1, 2, 2]
    assert class_labels(0, 5) == [-1] * 5


def test_images_labels_numbers_and_codes_are_on_disk(trained_run: TrainedRun) -> None:
    folder = trained_run.run.samples
    assert sorted(path.name for path in folder.iterdir()) == ["samples.png", "samples.safetensors"]
    tensors, _ = read_tensors(folder / "samples.safetensors", "samples")
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "images": (torch.uint8, (15, 1, 16, 16)),
        "labels": (torch.int64, (15,)),
        "numbers": (torch.int64, (15,)),
        "codes.top": (torch.int64, (15, 2, 2)),
        "codes.bottom": (torch.int64, (15, 4, 4)),
    }
    assert tensors["labels"].tolist() == class_labels(3, 5)
    assert tensors["numbers"].tolist() == list(range(15))
    with Image.open(folder / "samples.png") as picture:
        assert min(picture.size) > 16 * 3
    assert not trained_run.run.checkpoint(STAGE).exists()


def test_a_file_says_how_its_codes_were_drawn(copied_run: TrainedRun) -> None:
    changes = {"priors__bottom__sampling__top_k": 3, "priors__top__sampling__guidance": 2.0}
    sampled(copied_run, changes=changes, seed=11)
    found = read_samples_file(copied_run.run.samples, load_hierarchy(copied_run.run))
    assert found.options == {"top": SamplingOptions(guidance=2.0), "bottom": SamplingOptions(top_k=3)}
    assert (found.seed, found.candidates) == (11, 15)
    plain, _ = read_tensors(copied_run.run.samples / TENSORS, "samples")
    again = generate(
        load_hierarchy(copied_run.run),
        samples=found.numbers.tolist(),
        labels=found.labels.tolist(),
        seed=found.seed,
        chunk_size=7,
        options=found.options,
    )
    assert torch.equal(again.images, plain["images"])


def test_the_bar_names_the_level_and_counts_the_codes_that_are_drawn(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    totals: list[int] = []

    class Bar(ProgressLines):
        def __init__(self, total: int, what: str, unit: str, *, shown: bool, scaled: bool) -> None:
            super().__init__(total, what, unit, scaled=scaled)
            assert shown
            totals.append(total)

        def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
            seen.append((desc or "", 0))

        def update(self, n: float = 1) -> bool | None:
            seen[-1] = (seen[-1][0], int(n))
            return None

    monkeypatch.setattr(samples_module, "progress_bar", Bar)
    hierarchy = load_hierarchy(trained_run.run)
    drawn = draw_samples(trained_run.config, hierarchy, [0] * 11, reduction=Reduction(), what="digits")
    assert [name for name, _ in seen] == ["digits, top"] * 2 * 4 + ["digits, bottom"] * 2 * 16
    assert sum(count for _, count in seen) == totals[0]
    seen.clear()
    draw_samples(trained_run.config, hierarchy, [0] * 11, reduction=Reduction(), given={"top": drawn.codes["top"]})
    assert [name for name, _ in seen] == ["samples, bottom"] * 2 * 16
    assert sum(count for _, count in seen) == totals[1]


# --- level by level ---


def test_a_level_that_is_finished_outlives_the_call(
    trained_run: TrainedRun, copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tensors_below(copied_run.run.samples)
    left = killed_in(copied_run, "bottom", 20, monkeypatch)
    kept = read_samples_file(left, load_hierarchy(copied_run.run))
    straight, _ = read_tensors(trained_run.run.samples / TENSORS, "samples")
    assert list(kept.codes) == ["top"]
    assert torch.equal(kept.codes["top"], straight["codes.top"])
    assert files_below(left).keys() == {TENSORS}
    assert differing(tensors_below(copied_run.run.samples), before) == [], "finished samples stay until new ones are"
    sampled(copied_run, from_codes=left)
    assert files_below(copied_run.run.samples) == files_below(trained_run.run.samples)
    assert not left.exists()


def test_nothing_is_left_of_a_level_that_is_not_finished(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not killed_in(copied_run, "top", 3, monkeypatch).exists()


def test_all_levels_outlive_a_call_that_ends_as_it_decodes(
    trained_run: TrainedRun, copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("hvq.evaluation.generation.decode_kept", killing)
        with pytest.raises(Killed):
            sampled(copied_run, seed=3)
    left = copied_run.run.checkpoint(STAGE)
    assert list(read_samples_file(left, load_hierarchy(copied_run.run)).codes) == list(LEVELS)
    monkeypatch.setattr(Prior, "step", killing)
    sampled(copied_run, from_codes=left / TENSORS)
    assert files_below(copied_run.run.samples) == files_below(trained_run.run.samples)


@pytest.mark.parametrize("missing", [("bottom",), ("top",), ()])
def test_levels_that_are_found_are_taken_whichever_they_are(
    trained_run: TrainedRun, copied_run: TrainedRun, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    tensors, metadata = read_tensors(trained_run.run.samples / TENSORS, "samples")
    # Samples of other numbers than from 0 on, and in another order, are gone on with as they are.
    rows = torch.tensor([13, 2, 7])
    some = {
        name: tensor[rows] for name, tensor in tensors.items() if name not in {f"codes.{level}" for level in missing}
    }
    write_tensors(tmp_path / "some.safetensors", some, metadata)
    found = sampled(copied_run, from_codes=tmp_path / "some.safetensors")
    assert found.numbers.tolist() == [13, 2, 7]
    assert found.labels.tolist() == [2, 0, 1]
    for level in LEVELS:
        assert torch.equal(found.codes[level], tensors[f"codes.{level}"][rows])
    assert found.images is not None
    assert torch.equal(found.images, tensors["images"][rows])


def test_options_of_levels_that_are_taken_are_those_they_were_drawn_with(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed_in(copied_run, "bottom", 0, monkeypatch, changes={"priors__top__sampling__temperature": 0.5})
    found = sampled(copied_run, from_codes=left, changes={"priors__bottom__sampling__top_k": 2})
    assert found.options == {"top": SamplingOptions(temperature=0.5), "bottom": SamplingOptions(top_k=2)}


def test_samples_that_are_not_those_that_are_asked_for_are_refused(copied_run: TrainedRun) -> None:
    before, path = files_below(copied_run.run.path), copied_run.run.samples
    with pytest.raises(CheckpointError, match=r"samples in .* are of seed 3; asked for is seed 4: leave it out"):
        sampled(copied_run, from_codes=path, seed=4)
    with pytest.raises(CheckpointError, match=r"the 15 samples in .* are not of the 2 classes, .*: leave the classes"):
        sampled(copied_run, from_codes=path, labels=[0, 1])
    assert files_below(copied_run.run.path) == before
    assert len(sampled(copied_run, from_codes=path, seed=3, labels=class_labels(3, 5))) == 15


def test_levels_whose_options_nobody_knows_are_taken(copied_run: TrainedRun) -> None:
    path = copied_run.run.samples / TENSORS
    tensors, metadata = read_tensors(path, "samples")
    del tensors["codes.bottom"]
    about = json.loads(metadata["samples"])
    write_tensors(path, tensors, {"samples": json.dumps(about | {"options": {"bottom": {"top_k": 9}}})})
    shutil.rmtree(copied_run.run.prior("top"))
    found = sampled(copied_run, from_codes=path, changes={"priors__bottom__sampling__top_k": 2})
    # What the file says of a level that is drawn anew does not count.
    assert found.options == {"bottom": SamplingOptions(top_k=2)}


def test_what_another_call_left_outlives_one_that_draws_nothing(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = killed_in(copied_run, "bottom", 3, monkeypatch, seed=9)
    before = files_below(left)
    shutil.copytree(copied_run.run.samples, tmp_path / "others")
    sampled(copied_run, from_codes=tmp_path / "others", keep=0.4)
    assert files_below(left) == before != {}


# --- precision ---


def test_samples_are_drawn_in_the_precision_that_is_asked_for_and_can_be_drawn_again(copied_run: TrainedRun) -> None:
    config = changed(copied_run.config, sampling__precision="bfloat16", sampling__samples_per_class=40)
    hierarchy = load_hierarchy(copied_run.run)
    with drawing_precisions() as precisions:
        sample_run(config, copied_run.run, hierarchy, reduction=Reduction())
    assert precisions == {torch.bfloat16}
    assert {p.dtype for prior in hierarchy.priors.values() for p in prior.parameters()} == {torch.float32}
    found = read_samples_file(copied_run.run.samples, hierarchy)
    assert found.precision == "bfloat16"
    again = generate(
        hierarchy.with_prior_precision(found.precision),
        samples=found.numbers.tolist(),
        labels=found.labels.tolist(),
        seed=found.seed,
        chunk_size=7,
        options=found.options,
    )
    assert all(torch.equal(again.codes[level], found.codes[level]) for level in LEVELS)


def test_levels_of_one_file_are_of_one_precision(copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    left, changes = killed_in(copied_run, "bottom", 3, monkeypatch), {"sampling__precision": "bfloat16"}
    with pytest.raises(CheckpointError, match=r"drawn in float32; asked for is bfloat16 for the rest, bottom: set"):
        sampled(copied_run, from_codes=left, changes=changes)
    # Where nothing is left to be drawn, nothing is asked for.
    assert sampled(copied_run, from_codes=copied_run.run.samples, changes=changes).precision == "float32"


# --- the surest of many ---


def test_the_surest_candidates_are_kept_with_their_numbers(copied_run: TrainedRun) -> None:
    changes = {"evaluation__classifier_steps": 30, "sampling__samples_per_class": 2}
    config = changed(copied_run.config, **changes)
    kept = sampled(copied_run, changes=changes, keep=0.3, seed=5)
    assert kept.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert kept.candidates == 3 * 7
    # By hand: all candidates, and how sure a classifier of the same images is of each.
    hierarchy, labels = load_hierarchy(copied_run.run), class_labels(3, 7)
    everything = generate(hierarchy, samples=range(21), labels=labels, seed=5, chunk_size=7)
    real = gather_images(config, copied_run.sources.train, Reduction(), torch.device("cpu"))
    classifier = fit_classifier(real["images"], real["labels"], num_classes=3, steps=30, seed=config.seed)
    sure = own_class_probabilities(classifier, everything.images, torch.tensor(labels)).tolist()
    expected = [i for c in range(3) for i in sorted(sorted(range(7 * c, 7 * c + 7), key=lambda i: -sure[i])[:2])]
    assert kept.numbers.tolist() == expected
    assert kept.images is not None
    assert torch.equal(kept.images, everything.images[expected])
    # What is on disk says the same, and can be drawn again from numbers, labels and seed.
    found = read_samples_file(copied_run.run.samples, hierarchy)
    assert (found.candidates, found.numbers.tolist()) == (21, expected)
    again = generate(hierarchy, samples=expected, labels=found.labels.tolist(), seed=found.seed, chunk_size=7)
    assert torch.equal(again.images, kept.images)
    write_run_report(config, copied_run.run, copied_run.sources)
    note = "candidates that a classifier was surest of."
    assert f"The 6 of 21 {note}" in copied_run.run.report.read_text()
    _keep_rows(copied_run.run.samples / TENSORS, 3)
    assert read_samples_file(copied_run.run.samples, hierarchy).chosen == 0
    write_run_report(config, copied_run.run, copied_run.sources)
    assert note not in copied_run.run.report.read_text()


def _keep_rows(path: Path, rows: int) -> None:
    tensors, metadata = read_tensors(path, "samples")
    write_tensors(path, {name: tensor[:rows] for name, tensor in tensors.items()}, metadata)


def test_some_rows_of_all_samples_are_not_said_to_be_chosen(copied_run: TrainedRun) -> None:
    _keep_rows(copied_run.run.samples / TENSORS, 3)
    write_run_report(copied_run.config, copied_run.run, copied_run.sources)
    assert "candidates that a classifier was surest of" not in copied_run.run.report.read_text()


def test_a_report_takes_samples_whose_metadata_are_of_another_tool(copied_run: TrainedRun) -> None:
    path = copied_run.run.samples / TENSORS
    write_tensors(path, read_tensors(path, "samples")[0], {"format": "pt"})
    write_run_report(copied_run.config, copied_run.run, copied_run.sources)
    assert "candidates that a classifier was surest of" not in copied_run.run.report.read_text()


def test_candidates_outlive_a_call_too(copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = copied_run.copied(tmp_path / "other")
    straight = sampled(other, keep=0.5, labels=[2, 0])
    left = killed_in(copied_run, "bottom", 9, monkeypatch, keep=0.5, labels=[2, 0])
    resumed = sampled(copied_run, keep=0.5, from_codes=left)
    assert resumed.numbers.tolist() == straight.numbers.tolist()
    assert (len(resumed), resumed.candidates) == (2, 4)
    assert files_below(copied_run.run.samples) == files_below(other.run.samples)


def test_all_are_kept_of_a_share_of_one(trained_run: TrainedRun, copied_run: TrainedRun) -> None:
    sampled(copied_run, keep=1.0)
    assert files_below(copied_run.run.samples) == files_below(trained_run.run.samples)


def test_what_choosing_takes_is_looked_for_before_anything_is_drawn(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(copied_run.run.path)
    monkeypatch.setattr(Prior, "step", lambda *_: pytest.fail("a code was drawn"))
    with pytest.raises(ConfigurationError, match=r"must be above 0 and at most 1; received 1.5"):
        sampled(copied_run, keep=1.5)
    with pytest.raises(DataError, match="there are samples without one: keep all instead"):
        sampled(copied_run, keep=0.5, labels=[-1, -1])
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        sampled(copied_run, keep=0.5, changes={"data__path": "nowhere"})
    assert files_below(copied_run.run.path) == before


def test_without_classes_there_is_nothing_to_be_sure_of(copied_run: TrainedRun) -> None:
    for folder in (copied_run.run.autoencoder, *map(copied_run.run.prior, LEVELS)):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": []}))
    for level in LEVELS:
        path = copied_run.run.prior(level) / "model.safetensors"
        tensors, _ = read_tensors(path, "prior")
        tensors["condition.classes.weight"] = tensors["condition.classes.weight"][-1:]
        write_tensors(path, tensors)
    assert set(sampled(copied_run).labels.tolist()) == {-1}
    with pytest.raises(DataError, match="this run was trained without labels: keep all instead"):
        sampled(copied_run, keep=0.5)
    with pytest.raises(ConfigurationError, match="guidance takes classes or vectors, and the prior of level top"):
        sampled(copied_run, changes={"priors__top__sampling__guidance": 2.0})
    tensors, metadata = read_tensors(copied_run.run.samples / TENSORS, "samples")
    write_tensors(
        copied_run.run.path / "labelled", {**tensors, "labels": torch.zeros_like(tensors["labels"])}, metadata
    )
    with pytest.raises(CheckpointError, match=r"labels in .* must be -1, for this run has no classes; received 0"):
        sampled(copied_run, from_codes=copied_run.run.path / "labelled")


# --- several processes ---


def _write_on_the_first_process_alone() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("another process than the first one writes")

    if current_reduction().rank:
        for name in ("write_samples_file", "write_samples", "remove_folder"):
            setattr(samples_module, name, refuse)


def _sampled_in_group(plain: dict[str, Any], folder: str, ends: bool) -> list[list[int]]:
    """Straight, from a level that an ended call left, and the surest of twice as many."""
    _write_on_the_first_process_alone()
    config, run, reduction = RunConfig.model_validate(plain), RunFolder(folder), current_reduction()
    hierarchy = load_hierarchy(run)
    if ends:
        bottom = hierarchy.priors["bottom"]
        original, steps = bottom.step, iter(range(10**6))

        def killing(*words: Any) -> Any:
            if next(steps) == 9:
                raise Killed
            return original(*words)

        bottom.step = killing  # type: ignore[method-assign]
        with pytest.raises(Killed):
            sample_run(config, run, hierarchy, reduction=reduction, seed=8)
        bottom.step = original  # type: ignore[method-assign]
        reduction.sum(torch.zeros(1))
        kept = sample_run(config, run, hierarchy, reduction=reduction, from_codes=run.checkpoint(STAGE))
    else:
        kept = sample_run(config, run, hierarchy, reduction=reduction, seed=8)
    surest = sample_run(config, run, hierarchy, reduction=reduction, from_codes=run.samples, keep=0.4)
    return [codes.flatten().tolist() for codes in kept.codes.values()] + [surest.numbers.tolist()]


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_go_on_from_where_they_were_ended(trained_run: TrainedRun, tmp_path: Path, processes: int) -> None:
    plain = trained_run.config.model_dump(mode="json")
    alone, shared = trained_run.copied(tmp_path / "one").run, trained_run.copied(tmp_path / "many").run
    (expected,) = run_in_processes(_sampled_in_group, 1, plain, str(alone.path), False)
    found = run_in_processes(_sampled_in_group, processes, plain, str(shared.path), True)
    assert found == [expected] * processes
    assert files_below(shared.samples) == files_below(alone.samples)
    assert not shared.checkpoint(STAGE).exists()


def _refused_in_group(plain: dict[str, Any], folders: list[str]) -> str:
    reduction = current_reduction()
    run = RunFolder(folders[reduction.rank])
    with pytest.raises(CheckpointError) as refused:
        sample_run(
            RunConfig.model_validate(plain), run, load_hierarchy(run), reduction=reduction, from_codes=run.samples
        )
    return str(refused.value)


@pytest.mark.processes
def test_processes_end_together_where_one_has_no_file(trained_run: TrainedRun, tmp_path: Path) -> None:
    plain = trained_run.config.model_dump(mode="json")
    folders = [str(trained_run.copied(tmp_path / name).run.path) for name in ("with", "without")]
    shutil.rmtree(RunFolder(folders[1]).samples)
    found = run_in_processes(_refused_in_group, 2, plain, folders)
    assert "all 2 processes must read the samples at" in found[0]
    assert "and 1 cannot; put it on a disk that all of them share" in found[0]
    assert "no samples at" in found[1]
