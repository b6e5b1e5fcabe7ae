"""The choice itself: a function of what is in the folder, of measured seconds, and of the time that there is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvq.choosing.candidates import Candidate, candidates, outline, with_priors
from hvq.choosing.costs import Costs, Machine, Workload
from hvq.choosing.effort import with_effort, with_effort_left
from hvq.choosing.reasons import Reason, reasons
from hvq.choosing.survey import FolderSurvey
from hvq.config import RunConfig
from hvq.config_data import FolderConfig
from hvq.config_loading import run_config
from hvq.errors import ConfigurationError

# Costs that are reckoned from those of another size are too high as a rule, for not all of a step grows with it.
_LENIENCE = 0.7


@dataclass(frozen=True)
class Question:
    """All that a choice depends on but for what was measured.

    Attributes:
        path: of the folder.
        survey: of it.
        machine: that runs it.
        overrides: fields that are set by hand, as FIELD=VALUE.
    """

    path: str
    survey: FolderSurvey
    machine: Machine
    overrides: tuple[str, ...] = ()

    def outline(self, candidate: Candidate) -> dict[str, Any]:
        """Values of a `RunConfig` but for how long each stage is."""
        values = outline(self.path, self.survey, self.machine, candidate)
        return with_priors(values, self.survey, self.machine, candidate, self.overrides)

    def config(self, values: Mapping[str, Any], say: Callable[[str], None] | None = None) -> RunConfig:
        """The run of some values, with what is set by hand."""
        config = run_config(values, self.overrides, say=say or (lambda note: None))
        if not isinstance(config.data, FolderConfig):
            raise ConfigurationError(
                f"what is chosen for a folder of pictures is of data.kind=folder; received {config.data.kind}: "
                "leave it out, or name a configuration with --config instead of --data"
            )
        return config

    def planned(self, candidate: Candidate, costs: Costs, seconds: float) -> dict[str, Any]:
        """Values of a `RunConfig` that fill the seconds."""
        return with_effort(self.outline(candidate), seconds, lambda values: self.workload(values, costs))

    def planned_anew(
        self, values: Mapping[str, Any], costs: Costs, seconds: float, done: Collection[str]
    ) -> dict[str, Any]:
        """The same values but for the stages to come, which fill the seconds that are left."""
        return with_effort_left(dict(values), seconds, lambda values: self.workload(values, costs), done)

    def workload(self, values: Mapping[str, Any], costs: Costs) -> Workload:
        """What a run of some values takes."""
        return Workload(self.config(values), self.survey, self.machine, costs)

    def affords(self, candidate: Candidate, costs: Costs, seconds: float) -> bool:
        """Whether the seconds are enough for images and models of this size."""
        values = self.planned(candidate, costs, seconds)
        least, least_of_priors = candidate.enough_steps
        steps = [prior["training"]["steps"] for prior in values["priors"].values()]
        return values["autoencoder_training"]["steps"] >= least and min(steps) >= least_of_priors


@dataclass(frozen=True)
class Choice:
    """A run, and why it is as it is.

    Attributes:
        config: of the run, with what was set by hand.
        reasons: one sentence for each choice that was not overruled.
        spending: seconds that each stage is to take.
        candidate: that was chosen.
        values: of the configuration, without what was set by hand.
        costs: of the candidate.
    """

    config: RunConfig
    reasons: tuple[Reason, ...]
    spending: dict[str, float]
    candidate: Candidate
    values: Mapping[str, Any]
    costs: Costs


def next_to_measure(question: Question, costs: Mapping[Candidate, Costs], seconds: float) -> Candidate | None:
    """The candidate whose costs are to be known next; None where those that are known are enough to choose.

    Args:
        question: what is to be chosen.
        costs: of candidates that were measured.
        seconds: that the run may take.
    """
    ladder = candidates(question.survey)
    if not costs:
        return ladder[0]
    fit = {i: question.affords(one, costs[one], seconds) for i, one in enumerate(ladder) if one in costs}
    low = max((i for i, fits in fit.items() if fits), default=-1)
    if low < 0:
        return None
    high = min((i for i, fits in fit.items() if not fits and i > low), default=len(ladder))
    for i in reversed(range(low + 1, high)):
        reckoned = costs[ladder[low]].scaled(_LENIENCE * ladder[i].weight / ladder[low].weight)
        if question.affords(ladder[i], _renamed(question, ladder[i], reckoned), seconds):
            return ladder[i]
    return None


def choose(
    question: Question,
    costs: Mapping[Candidate, Costs],
    seconds: float,
    *,
    say: Callable[[str], None] = print,
) -> Choice:
    """The largest of the measured candidates that the time is enough for, or else the smallest.

    Args:
        question: what is to be chosen.
        costs: of one candidate at least.
        seconds: that the run may take, from its first stage on.
        say: is given a sentence for each thing that an override does beyond setting its field.

    Raises:
        ConfigurationError: where what was set by hand is wrong, or does not go with the rest.
    """
    fitting = [one for one in costs if question.affords(one, costs[one], seconds)]
    candidate = max(fitting) if fitting else min(costs)
    values = question.planned(candidate, costs[candidate], seconds)
    config = question.config(values, say)
    work = Workload(config, question.survey, question.machine, costs[candidate])
    found = reasons(work, candidate, is_largest=candidate in candidates(question.survey)[-2:])
    by_hand = [override.partition("=")[0] for override in question.overrides]
    kept = tuple(reason for reason in found if not reason.is_overruled(by_hand))
    return Choice(config, kept, work.spending(), candidate, values, costs[candidate])


def _renamed(question: Question, candidate: Candidate, costs: Costs) -> Costs:
    """Costs of one candidate for another, which may have other levels: the finest one's, where a level is new."""
    levels: Sequence[str] = list(question.outline(candidate)["priors"])
    dearest, longest = max(costs.prior_steps.values()), max(costs.looks.values())
    return Costs(
        **{
            **vars(costs),
            "prior_steps": {name: costs.prior_steps.get(name, dearest) for name in levels},
            "looks": {name: costs.looks.get(name, longest) for name in levels},
        }
    )
