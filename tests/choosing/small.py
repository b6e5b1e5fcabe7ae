"""Folders and machines as numbers, for choices without a disk or a clock."""

from __future__ import annotations

from typing import Any

from hvq.choosing.candidates import Candidate
from hvq.choosing.choice import Choice, Question, choose, next_to_measure
from hvq.choosing.costs import Costs, Machine
from hvq.choosing.survey import FolderSurvey


def survey(**changes: Any) -> FolderSurvey:
    """Photographs, as a camera leaves them."""
    fields = {
        "images": 1_009,
        "held_out": 0,
        "classes": 0,
        "unreadable": 0,
        "usual_side": 331,
        "smallest_side": 307,
        "largest_side": 499,
        "square": False,
        "colour": True,
        "photographs": True,
        "transparent": False,
    }
    return FolderSurvey.model_validate({**fields, **changes})


def costs(candidate: Candidate, *, speed: float = 1.0) -> Costs:
    """As of a machine on which everything takes time in proportion to the pixels, and something besides."""
    work = (0.1 + candidate.weight / 1024) / speed
    names = candidate.level_names
    return Costs(
        reading=0.003,
        autoencoder_step=0.07 * work,
        encoding=0.0005 * work,
        restoring=0.001 * work,
        prior_steps={name: 0.02 * work * (1 + i) for i, name in enumerate(names)},
        looks=dict.fromkeys(names, 0.01 * work),
        drawing=0.5 * work,
        classifier_step=0.01 * work,
    )


def chosen(
    folder: FolderSurvey, minutes: float, *overrides: str, speed: float = 1.0, machine: Machine | None = None
) -> tuple[Choice, list[Candidate]]:
    """The choice on such a machine, and the candidates in the order in which they were measured."""
    question = Question("pictures", folder, machine or Machine(), overrides)
    measured: dict[Candidate, Costs] = {}
    while (candidate := next_to_measure(question, measured, 60 * minutes)) is not None:
        assert candidate not in measured
        measured[candidate] = costs(candidate, speed=speed)
    return choose(question, measured, 60 * minutes), list(measured)
