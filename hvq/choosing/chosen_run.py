"""From a folder of pictures and some minutes to the plan of a run: look, measure, choose, and say why."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from hvq.choosing.candidates import Candidate
from hvq.choosing.choice import Choice, Question, choose, next_to_measure
from hvq.choosing.costs import Costs, Machine
from hvq.choosing.measure import measure_costs
from hvq.choosing.plan import PlanInMinutes
from hvq.choosing.survey import FolderSurvey, survey_folder
from hvq.config import RunConfig
from hvq.data import build_sources
from hvq.distributed import Reduction, current_reduction
from hvq.errors import ConfigurationError
from hvq.storage import RunFolder
from hvq.training.processes import make_accelerator

# Share of the time in which one size of images is measured.
_MOST_FOR_A_SIZE = 0.04
# Beyond this multiple of the minutes a person is told before, rather than surprised.
_TOLERANCE = 1.2


def choose_run(
    path: Path,
    run: RunFolder,
    *,
    minutes: float,
    overrides: Sequence[str] = (),
    started: float | None = None,
    say: Callable[[str], None] = print,
) -> PlanInMinutes:
    """The plan of a run on a folder of pictures that is to take so many minutes on this machine.

    All processes of a run call it, and get the same: what the first one finds and measures is what counts.

    Args:
        path: the folder, as data of kind `folder` takes it.
        run: where the run is to lie; nothing is written there yet, and later what is planned anew.
        minutes: for everything, from `started` to the report.
        overrides: fields that are set by hand, such as `data.size=[64, 64]`, which are measured as they are.
        started: when the run began (`time.perf_counter`); now, by default.
        say: is given what was chosen, sentence by sentence.

    Raises:
        ConfigurationError: where there is no time at all, or what was set by hand does not go with the rest.
        DataError: where the folder holds too few images, or none.
    """
    started = time.perf_counter() if started is None else started
    if not 0 < minutes < float("inf"):
        raise ConfigurationError(f"--minutes must be more than 0, such as 10 or 0.5; received {minutes:g}")
    survey = survey_folder(path)
    question = Question(str(path), survey, Machine(), tuple(overrides))
    accelerator = make_accelerator(_any_config(question), run)
    reduction = current_reduction()
    survey = FolderSurvey.model_validate_json(_told(survey.model_dump_json(), reduction, accelerator.device))
    question = Question(str(path), survey, _machine(accelerator, reduction), tuple(overrides))
    say(f"choosing a run of {minutes:g} minutes for the {survey.images + survey.held_out:,} images in {path}")

    def seconds_left() -> float:
        left = 60 * minutes - (time.perf_counter() - started)
        return float(reduction.first(torch.tensor(left, dtype=torch.float64, device=accelerator.device)))

    costs: dict[Candidate, Costs] = {}
    while (candidate := next_to_measure(question, costs, seconds_left())) is not None:
        config = question.config(question.outline(candidate))
        costs[candidate] = measure_costs(
            config,
            build_sources(config.data, config.seed).train,
            accelerator=accelerator,
            most_seconds=_MOST_FOR_A_SIZE * 60 * minutes,
        )
    left = seconds_left()
    choice = choose(question, costs, left, say=say)
    for line in lines(choice, minutes, spent=60 * minutes - left, overrides=overrides):
        say(line)
    return PlanInMinutes(
        question,
        choice,
        seconds_left=seconds_left,
        save=run.save_config if reduction.rank == 0 else _save_nothing,
        say=say,
    )


def _save_nothing(config: RunConfig) -> None:
    """The first process writes."""


def lines(choice: Choice, minutes: float, *, spent: float, overrides: Sequence[str] = ()) -> list[str]:
    """What was chosen and why, as lines.

    Args:
        choice: of a run.
        minutes: that were asked for.
        spent: seconds that choosing has taken.
        overrides: that were set by hand.
    """
    texts = [f"  {reason.text}" for reason in choice.reasons]
    if overrides:
        texts.append(f"  set by hand: {' '.join(overrides)}")
    seconds = {"choosing": spent, **choice.spending}
    total = sum(seconds.values())
    shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in seconds.items())
    texts.append(f"  of about {_in_minutes(total)}: {shares}")
    if total > _TOLERANCE * 60 * minutes:
        texts.append(
            f"  this is more than the {minutes:g} minutes asked for: even the fewest steps, or those set by hand, "
            "take so long here"
        )
    elif total < 60 * minutes / _TOLERANCE:
        texts.append(
            f"  this is less than the {minutes:g} minutes asked for: in more steps models would only learn the images "
            "by heart, or steps were set by hand"
        )
    return texts


def _in_minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.{int(seconds < 600)}f} minutes"


def _any_config(question: Question) -> RunConfig:
    """A run as small as can be, for what an accelerator is made from: precision and time-out, set by hand or not."""
    return question.config(question.outline(Candidate(256)))


def _machine(accelerator: Accelerator, reduction: Reduction) -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = float(reduction.first(torch.tensor(float(max(1, cores // local)), device=accelerator.device)))
    return Machine(accelerated=accelerator.device.type != "cpu", processes=reduction.size, cores=int(share))


def _told(text: str, reduction: Reduction, device: torch.device) -> str:
    """The text of the first process, on every process."""
    content = torch.tensor(list(text.encode()), dtype=torch.int64, device=device)
    length = int(reduction.first(torch.tensor(len(content), device=device)))
    padded = torch.zeros(length, dtype=torch.int64, device=device)
    padded[: min(length, len(content))] = content[:length]
    return bytes(reduction.first(padded).tolist()).decode()
