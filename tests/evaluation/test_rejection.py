"""Of more candidates than are wanted, those that a classifier is surest of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.evaluation import real_images
from hvq.evaluation.real_images import gather_images, labelled
from hvq.evaluation.rejection import (
    Judge,
    candidate_labels,
    check_share,
    fit_judge,
    kept_per_class,
    own_class_probabilities,
    surest,
)
from hvq.evaluation.sample_files import Samples
from hvq.storage import load_hierarchy
from tests.runs import TrainedRun, changed
from tests.threads import run_in_threads

# --- which are kept ---


@given(
    candidates=st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 3)), max_size=23),
    share=st.floats(0.05, 1.0),
)
def test_the_surest_of_each_class_are_kept_in_their_order(candidates: list[tuple[float, int]], share: float) -> None:
    labels = [label for _, label in candidates]
    per_class = kept_per_class(labels, share)
    kept = surest(torch.tensor([p for p, _ in candidates]), torch.tensor(labels, dtype=torch.int64), per_class).tolist()
    expected = []
    for label, wanted in per_class.items():
        own = [i for i, (_, other) in enumerate(candidates) if other == label]
        expected += sorted(own, key=lambda i: (-candidates[i][0], i))[:wanted]
    assert kept == sorted(expected)


def test_of_equals_the_first_are_kept() -> None:
    labels = torch.tensor([1, 0, 1, 0, 1, 1, 0])
    assert surest(torch.full((7,), 0.5), labels, 2).tolist() == [0, 1, 2, 3]
    assert surest(torch.full((7,), 0.5), labels, {1: 3, 0: 1}).tolist() == [0, 1, 2, 4]
    assert surest(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2).tolist() == []


@pytest.mark.parametrize(
    ("probabilities", "labels", "fault"),
    [
        ([0.5, 0.5], [0], r"one probability and one label, \[n\]; received \[2\] and \[1\]"),
        ([0.5, 1.5], [0, 0], r"must be in \[0, 1\]; received values in \[0.5, 1.5\]"),
        ([0.5, float("nan")], [0, 0], "received values in"),
        ([0.5, 0.5, 0.1], [0, 0, 4], "2 are to be kept of class 4, which has 1 candidates; draw more"),
    ],
)
def test_candidates_that_cannot_be_chosen_from(probabilities: list[float], labels: list[int], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        surest(torch.tensor(probabilities), torch.tensor(labels), 2)


# --- how many are drawn ---


@given(
    counts=st.dictionaries(st.integers(0, 7), st.integers(1, 101), max_size=5),
    share=st.one_of(st.floats(0.01, 1.0), st.sampled_from([0.1, 0.3, 0.7, 1 / 3, 1.0])),
)
def test_as_many_are_left_as_were_asked_for(counts: dict[int, int], share: float) -> None:
    labels = [label for label, count in counts.items() for _ in range(count)]
    candidates = candidate_labels(labels, share)
    assert kept_per_class(candidates, share) == counts
    drawn = Counter(candidates)
    assert all(count <= drawn[label] < count / share + 1 for label, count in counts.items())


def test_shares_that_are_not_exact_in_binary() -> None:
    assert len(candidate_labels([0] * 3, 0.1)) == 30
    assert len(candidate_labels([0] * 7, 0.7)) == 10
    assert candidate_labels([2, 1, 2], 0.5) == [2, 2, 2, 2, 1, 1]
    assert kept_per_class([4], 0.1) == {4: 1}


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_shares_are_above_nought_and_at_most_one(share: float) -> None:
    with pytest.raises(ConfigurationError, match="share of candidates to keep must be above 0 and at most 1; received"):
        check_share(share)


# --- the classifier ---


class _Brightness(nn.Module):
    """Class 1 is bright, class 0 dark."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 0.02]))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float().mean(dim=(1, 2, 3)) - 127.5).unsqueeze(1) * self.weight


def test_a_judge_keeps_whole_samples() -> None:
    shades = torch.tensor([250, 3, 100, 200, 90, 10], dtype=torch.uint8)
    samples = Samples(
        numbers=torch.tensor([4, 8, 15, 16, 23, 42]),
        labels=torch.tensor([0, 0, 0, 1, 1, 1]),
        seed=3,
        codes={"top": torch.arange(6).view(6, 1, 1)},
        images=shades.view(6, 1, 1, 1).expand(6, 1, 8, 8),
        candidates=6,
    )
    sure = own_class_probabilities(_Brightness(), samples.images, samples.labels)
    expected = torch.sigmoid(0.02 * torch.tensor([-122.5, 124.5, 27.5, 72.5, -37.5, -117.5], dtype=torch.float64))
    torch.testing.assert_close(sure, expected, rtol=0, atol=1e-6)
    kept = Judge(_Brightness(), 1 / 3).choose(samples, Reduction())
    assert kept.numbers.tolist() == [8, 16]
    assert kept.codes["top"].flatten().tolist() == [1, 3]
    assert (len(kept), kept.candidates, kept.chosen, kept.seed) == (2, 6, 2, 3)
    everything = Judge(_Brightness(), 1.0).choose(samples, Reduction())
    assert (len(everything), everything.chosen) == (6, 0)
    # Of a part of samples, it is that part which is chosen from; of chosen ones, all that were drawn.
    assert Judge(_Brightness(), 0.5).choose(samples.rows(torch.arange(1, 5)), Reduction()).candidates == 4
    assert Judge(_Brightness(), 0.5).choose(kept, Reduction()).candidates == 2 + 4


def test_the_classifier_learns_from_real_images_however_many_processes_read_them(trained_run: TrainedRun) -> None:
    config, hierarchy = changed(trained_run.config, evaluation__classifier_steps=40), load_hierarchy(trained_run.run)
    source = trained_run.sources.train
    images = torch.stack([source.image(i) for i in range(len(source))])
    labels = torch.tensor([source.label(i) for i in range(len(source))])

    def gathered(reduction: Reduction) -> tuple[Tensor, Tensor]:
        found = labelled(gather_images(config, source, reduction, torch.device("cpu")))
        return found["images"], found["labels"]

    def fitted(reduction: Reduction) -> dict[str, Tensor]:
        judge = fit_judge(config, hierarchy, source, labels=[0, 1, 2], share=0.5, reduction=reduction)
        sure = own_class_probabilities(judge.classifier, images, labels)
        assert float((sure > 0.5).double().mean()) > 0.8
        return judge.classifier.state_dict()

    alone = fitted(Reduction())
    for shared in run_in_threads(gathered, 3):
        assert torch.equal(shared[0], images)
        assert torch.equal(shared[1], labels)
    again = fitted(Reduction())
    assert all(torch.equal(again[name], tensor) for name, tensor in alone.items())


def test_the_classifier_learns_every_class_of_images_that_are_sorted(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, hierarchy, source = trained_run.config, load_hierarchy(trained_run.run), trained_run.sources.train
    sorted_labels = [source.label(i) for i in range(len(source))]
    assert sorted_labels == sorted(sorted_labels)
    monkeypatch.setattr(real_images, "MOST_REAL_IMAGES", 11)

    def gathered(reduction: Reduction) -> dict[str, Tensor]:
        return gather_images(config, source, reduction, torch.device("cpu"))

    (alone,) = run_in_threads(gathered, 1)
    assert alone["labels"].unique().tolist() == [0, 1, 2]
    assert (len(alone["images"]), alone["indices"].tolist()) == (11, sorted(set(alone["indices"].tolist())))
    assert all(torch.equal(source.image(i), image) for i, image in zip(alone["indices"], alone["images"], strict=True))
    for shared in run_in_threads(gathered, 3):
        assert all(torch.equal(shared[name], column) for name, column in alone.items())
    fit_judge(config, hierarchy, source, labels=[0, 1, 2], share=0.5, reduction=Reduction())
    monkeypatch.setattr(real_images, "MOST_REAL_IMAGES", 1)
    with pytest.raises(DataError, match=r"among 1 spread over the split there is none of .*, .*: draw other classes"):
        fit_judge(config, hierarchy, source, labels=[2, 1, 0, 0], share=0.5, reduction=Reduction())


def test_one_class_is_nothing_to_be_surest_of(trained_run: TrainedRun) -> None:
    hierarchy = replace(load_hierarchy(trained_run.run), classes=("columns",))
    with pytest.raises(DataError, match="two classes to tell apart, and this run has columns alone: keep all instead"):
        fit_judge(
            trained_run.config,
            hierarchy,
            trained_run.sources.train,
            labels=[0, 0],
            share=0.5,
            reduction=Reduction(),
        )


@pytest.mark.parametrize(
    ("changes", "labels", "fault"),
    [
        ({}, [0, -1], "takes the class of each, and there are samples without one: keep all instead"),
        ({"data__size": [24, 16]}, [0], "the classifier learns from images of 16x16 .* data gives 24x16"),
        (
            {"data__channels": 3, "autoencoder__channels": 3},
            [0],
            r"takes images of 1 channel\(s\); data.channels",
        ),
    ],
)
def test_what_a_classifier_cannot_judge(
    trained_run: TrainedRun, changes: dict[str, object], labels: list[int], fault: str
) -> None:
    config = changed(trained_run.config, **changes)
    source = TrainedRun(config, trained_run.run).sources.train
    with pytest.raises(DataError, match=fault):
        fit_judge(config, load_hierarchy(trained_run.run), source, labels=labels, share=0.5, reduction=Reduction())
