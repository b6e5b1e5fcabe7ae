"""What a run keeps to while it goes on: a configuration, or minutes, for which what is left is planned anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hvq.choosing.choice import Choice, Question
from hvq.choosing.costs import AUTOENCODER, EVALUATION, STAGE_SECONDS, Workload, stage_of_prior
from hvq.config import RunConfig

# Seconds of training beyond their number that are too few to tell how fast the machine is.
_TELLING_SECONDS = 3.0
# How much slower or faster than reckoned a single stage may make the rest look.
_MOST_FACTOR = 4.0
# Of the seconds left: what the plan may be off by before it is made anew.
_TOLERANCE = 0.05


class Plan:
    """A run as it is configured, whatever time it takes.

    Attributes:
        config: of the stages to come.

    Args:
        config: of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def finished(self, stage: str) -> None:
        """Told of each stage when it is over, by its name in `Workload.spending`."""


class PlanInMinutes(Plan):
    """A run that was chosen for some minutes. Where a stage took more or less of them than it should have, priors get
    fewer or more steps and the evaluation fewer or more samples; sizes and models stay.

    All processes of a run call it together.

    Args:
        question: that was answered.
        choice: the answer.
        seconds_left: of the minutes, the same on all processes.
        save: is given each new configuration.
        say: is given what has changed, as a sentence.
    """

    def __init__(
        self,
        question: Question,
        choice: Choice,
        *,
        seconds_left: Callable[[], float],
        save: Callable[[RunConfig], None],
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(choice.config)
        self._question, self._values, self._costs = question, choice.values, choice.costs
        self._seconds_left, self._save, self._say = seconds_left, save, say
        self._left = seconds_left()
        self._done: list[str] = []

    def finished(self, stage: str) -> None:
        """A stage is over: correct what others are thought to cost, and plan them anew where that matters."""
        left = self._seconds_left()
        taken, self._left = self._left - left, left
        self._done.append(stage)
        self._learn(stage, taken)
        needed = self._needed(self._values)
        if EVALUATION not in self._done and abs(needed - left) > _TOLERANCE * max(left, needed):
            self._change(self._question.planned_anew(self._values, self._costs, left, self._done))

    def _learn(self, stage: str, taken: float) -> None:
        """Trainings tell how fast the machine is; of other stages too much is not computing."""
        priors = {stage_of_prior(level): level for level in self.config.autoencoder.levels}
        planned = self._workload(self._values).spending()[stage] - STAGE_SECONDS
        if stage not in {AUTOENCODER, *priors} or planned <= _TELLING_SECONDS:
            return
        factor = (taken - STAGE_SECONDS) / planned
        # One that may have ended early does not tell that steps are cheap.
        if factor > 1 or stage == AUTOENCODER or not self.config.prior(priors[stage]).training.patience:
            self._costs = self._costs.scaled(min(_MOST_FACTOR, max(1 / _MOST_FACTOR, factor)))

    def _needed(self, values: Mapping[str, Any]) -> float:
        """Seconds of the stages to come."""
        spending = self._workload(values).spending()
        return sum(seconds for stage, seconds in spending.items() if stage not in self._done)

    def _workload(self, values: Mapping[str, Any]) -> Workload:
        return self._question.workload(values, self._costs)

    def _change(self, values: Mapping[str, Any]) -> None:
        config = self._question.config(values)
        changes = _changes(self.config, config)
        self._values, self.config = values, config
        if changes:
            self._save(config)
            self._say(
                f"{max(0.0, self._left):.0f} seconds are left, and what is to come now takes about "
                f"{self._needed(values):.0f}: {', '.join(changes)}"
            )


def _changes(before: RunConfig, after: RunConfig) -> list[str]:
    """What is planned otherwise, in words."""
    texts = []
    for level in after.autoencoder.levels:
        was, steps = before.prior(level).training.steps, after.prior(level).training.steps
        if steps != was:
            texts.append(f"{steps:,} steps of the prior of {level} instead of {was:,}")
    was, number = before.evaluation.generated_per_class, after.evaluation.generated_per_class
    if number != was:
        texts.append(f"{number:,} samples of each class to measure instead of {was:,}")
    if before.evaluation != after.evaluation and number == was:
        texts.append("other lengths of the evaluation's classifiers")
    return texts
