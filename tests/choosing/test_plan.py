"""Plans that keep to their minutes on machines that are not as fast as they were thought to be."""

from __future__ import annotations

import pytest

from hvq.choosing.choice import Question
from hvq.choosing.costs import Machine, Workload
from hvq.choosing.plan import Plan, PlanInMinutes
from hvq.config import RunConfig
from tests.choosing.small import chosen, costs, survey

MINUTES = 11


class Run:
    """A run by a clock that goes on by what each stage takes at the machine's true speed."""

    def __init__(self, speed: float, *overrides: str) -> None:
        folder = survey(images=5_003)
        self.choice, _ = chosen(folder, MINUTES, *overrides)
        self.question = Question("pictures", folder, Machine(), overrides)
        self.true_costs = costs(self.choice.candidate, speed=speed)
        self.left = 60.0 * MINUTES
        self.saved: list[RunConfig] = []
        self.said: list[str] = []
        self.plan = PlanInMinutes(
            self.question,
            self.choice,
            seconds_left=lambda: self.left,
            save=self.saved.append,
            say=self.said.append,
        )

    def spending(self, config: RunConfig) -> dict[str, float]:
        return Workload(config, self.question.survey, self.question.machine, self.true_costs).spending()

    def go(self) -> None:
        for stage in self.spending(self.plan.config):
            if stage == "report":
                break
            self.left -= self.spending(self.plan.config)[stage]
            self.plan.finished(stage)
        self.left -= self.spending(self.plan.config)["report"]


# At half the speed the autoencoder alone takes most of the time, and there is not enough left to make up for it.
@pytest.mark.parametrize(("speed", "off_by"), [(0.5, 0.25), (0.7, 0.12), (1.5, 0.12), (3.0, 0.12)])
def test_a_run_keeps_to_its_minutes_at_another_speed(speed: float, off_by: float) -> None:
    run = Run(speed)
    unchanged = 60 * MINUTES - sum(run.spending(run.choice.config).values())
    run.go()
    assert abs(run.left) < off_by * 60 * MINUTES
    assert abs(run.left) < abs(unchanged) / 2
    fewer = run.plan.config.prior("top").training.steps - run.choice.config.prior("top").training.steps
    assert (fewer < 0) == (speed < 1)
    assert run.saved[-1] == run.plan.config
    assert "steps of the prior of top instead of" in run.said[0]


def test_as_reckoned_nothing_changes() -> None:
    run = Run(1.0)
    run.go()
    assert run.plan.config == run.choice.config
    assert (run.saved, run.said) == ([], [])


def test_what_is_trained_already_stays() -> None:
    run = Run(0.5)
    before = run.choice.config
    run.go()
    after = run.plan.config
    assert after.autoencoder_training == before.autoencoder_training
    assert (after.data, after.autoencoder, after.extraction) == (before.data, before.autoencoder, before.extraction)
    # The first prior had its steps when the second was planned anew.
    assert {config.prior("top") for config in run.saved} == {after.prior("top")}
    for level in after.autoencoder.levels:
        training = after.prior(level).training
        assert training.warmup_steps <= training.steps // 10
        assert training.steps <= training.evaluate_every * 5


def test_what_is_set_by_hand_stays() -> None:
    run = Run(0.5, "priors.top.training.steps=331", "evaluation.generated_per_class=97")
    run.go()
    assert run.plan.config.prior("top").training.steps == 331
    assert run.plan.config.evaluation.generated_per_class == 97
    assert run.plan.config.prior("bottom").training.steps < run.choice.config.prior("bottom").training.steps


def test_a_prior_that_ended_early_does_not_tell_that_the_machine_is_fast() -> None:
    run = Run(1.0, "priors.top.training.patience=3")
    for stage in ("autoencoder", "codes"):
        run.left -= run.spending(run.plan.config)[stage]
        run.plan.finished(stage)
    run.left -= 0.2 * run.spending(run.plan.config)["prior of top"]
    run.plan.finished("prior of top")
    run.left -= run.spending(run.plan.config)["prior of bottom"]
    run.plan.finished("prior of bottom")
    rest = run.spending(run.plan.config)
    assert rest["samples"] + rest["evaluation"] + rest["report"] < 1.1 * run.left


def test_a_run_without_minutes_is_as_configured() -> None:
    config = Run(1.0).choice.config
    plan = Plan(config)
    plan.finished("autoencoder")
    assert plan.config is config
