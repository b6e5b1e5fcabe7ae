"""What a whole run takes by the costs of its parts, against sums by hand."""

from __future__ import annotations

import math

import pytest

from hvq.choosing.candidates import Candidate, outline, with_priors
from hvq.choosing.costs import Costs, Machine, Workload
from hvq.config_loading import run_config
from tests.choosing.small import survey

COSTS = Costs(
    reading=0.002,
    autoencoder_step=0.3,
    encoding=0.005,
    restoring=0.007,
    prior_steps={"top": 0.11, "bottom": 0.13},
    looks={"top": 0.17, "bottom": 0.19},
    drawing=2.3,
    classifier_step=0.029,
)
STEPS = ["autoencoder_training.steps=11", "priors.top.training.steps=13", "priors.bottom.training.steps=17"]
EFFORT = [
    *("autoencoder_training.evaluate_every=5", "autoencoder_training.batch_size=6"),
    *("priors.top.training.evaluate_every=13", "priors.bottom.training.evaluate_every=4"),
    *("extraction.augmented_epochs=3", "sampling.samples_per_class=9", "evaluation.generated_per_class=19"),
    *("evaluation.classifier_steps=31", "evaluation.classifier_seeds=2", "chunk_size=1"),
]


def _workload(*words: str, machine: Machine | None = None, classes: int = 2, held_out: int = 23) -> Workload:
    folder, machine = survey(images=101, held_out=held_out, classes=classes), machine or Machine()
    values = with_priors(outline("pictures", folder, machine, Candidate(32)), folder, machine, Candidate(32))
    return Workload(run_config(values, [*STEPS, *EFFORT, *words]), folder, machine, COSTS)


def test_every_stage_is_the_sum_of_its_parts() -> None:
    spending = _workload().spending()
    overhead = 1.0
    assert list(spending) == [
        "autoencoder",
        "codes",
        "prior of top",
        "prior of bottom",
        "samples",
        "evaluation",
        "report",
    ]
    assert {name: value - overhead for name, value in spending.items() if name != "report"} == pytest.approx(
        {
            "autoencoder": 11 * (0.3 + 6 * 0.002) + 3 * 23 * (0.002 + 0.007),
            "codes": (3 * 101 + 23) * (0.002 + 0.005),
            "prior of top": 13 * 0.11 + 1 * 23 * 0.17,
            "prior of bottom": 17 * 0.13 + 5 * 23 * 0.19,
            "samples": 2 * 9 * 2.3,
            "evaluation": (101 + 2 * 23) * (0.002 + 0.007)
            + (2 + 3 * 2) * 31 * 0.029
            + 2 * 19 * 2.3
            + 23 * (0.17 + 0.19),
        }
    )


def test_what_is_beside_training_does_not_depend_on_steps() -> None:
    few, many = _workload(), _workload("autoencoder_training.steps=1009", "priors.top.training.steps=997")
    assert few.beside_training() == pytest.approx(many.beside_training())
    total, trained = sum(few.spending().values()), ["autoencoder", "prior of top", "prior of bottom"]
    assert few.beside_training() < total
    assert few.beside_training() > total - sum(few.spending()[name] for name in trained)


def test_without_labels_there_is_one_classifier_and_one_kind_of_sample() -> None:
    labelled, plain = _workload(), _workload("data.labelled=false")
    assert plain.classes == 0
    assert plain.classifiers() == pytest.approx(31 * 0.029)
    assert plain.spending()["samples"] < labelled.spending()["samples"]


def test_processes_share_the_work_but_for_steps() -> None:
    one, two = _workload(), _workload(machine=Machine(processes=2))
    # Of an odd number of images one process has one more.
    assert two.images() == pytest.approx((math.ceil(303 / 2) + 12) * (0.002 + 0.005) + (51 + 2 * 12) * (0.002 + 0.007))
    assert two.autoencoder_step() == pytest.approx(0.3 + 3 * 0.002)
    assert two.spending()["prior of top"] < one.spending()["prior of top"]


def test_readers_work_beside_the_steps() -> None:
    assert _workload("data.workers=2").autoencoder_step() == pytest.approx(0.3)
    slow = _workload("data.workers=1", "autoencoder_training.batch_size=200")
    assert slow.autoencoder_step() == pytest.approx(200 * 0.002)


def test_images_are_those_that_are_used() -> None:
    assert _workload().splits == (101, 23)
    assert _workload(held_out=0).splits == (91, 10)
    assert _workload("data.limit=17").splits == (17, 17)


def test_scaled_costs_are_those_of_work_but_not_of_reading() -> None:
    scaled = COSTS.scaled(3)
    assert scaled.reading == COSTS.reading
    assert scaled.prior_steps == pytest.approx({"top": 0.33, "bottom": 0.39})
    assert (scaled.autoencoder_step, scaled.drawing) == pytest.approx((0.9, 6.9))
