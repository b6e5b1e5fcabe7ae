"""How long each stage of a run may take: steps, samples and measurements that fill the time, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from hvq.choosing.costs import AUTOENCODER, EVALUATION, REPORT, SAMPLES, Workload, stage_of_prior

LEAST_STEPS = 20
"""Of every training, however short the time."""

IMAGES_SHARE, EVALUATION_SHARE = 0.12, 0.18
"""Of all seconds: for what grows with the number of images, and for samples and measurements."""

PROPORTION = (2, 1)
"""Steps of the autoencoder beside those of each prior."""

# Images that are kept whatever it costs to read them.
_LEAST_LIMIT = 200
_MOST_EPOCHS = 8
_ROWS_OF_CODES = 2_000
# Steps that are never too many, and passes over all images beyond which models would only over-fit.
_AUTOENCODER_MOST, _PRIOR_MOST = (3_000, 1_000), (1_000, 60)
_LOOKS = 5
_SHOWN, _SHOWN_PER_CLASS = 64, 10
# Samples in all, steps of each classifier, classifiers of each kind; from thorough to hasty.
_THOROUGHNESS = (
    *((2_000, 400, 3), (1_000, 400, 3), (512, 400, 2), (256, 200, 2), (128, 200, 1), (64, 100, 1), (64, 50, 1)),
    *((32, 30, 1), (16, 10, 1)),
)

Values = dict[str, Any]
Reckon = Callable[[Mapping[str, Any]], Workload]
"""The workload of values for a `RunConfig`, with what was set by hand."""


def with_effort(values: Values, seconds: float, reckon: Reckon) -> Values:
    """The outline of a run, and how long each stage is.

    Args:
        values: of a `RunConfig`, without steps and the like.
        seconds: that the run may take, from its first stage on.
        reckon: tells what a run of such values takes.
    """
    values = _joined(values, _with_images(values, seconds, reckon))
    values = _joined(values, _with_measurements(values, seconds, reckon))
    return _with_steps(values, seconds, reckon)


def with_effort_left(values: Values, seconds: float, reckon: Reckon, done: Collection[str]) -> Values:
    """The same run with other lengths of what is still to come: priors' steps, and how thoroughly is measured.

    Args:
        values: of a `RunConfig`, whole.
        seconds: that are left.
        reckon: tells what a run of such values takes.
        done: stages that are over, by the names that `Workload.spending` has.
    """
    left = {stage: taken for stage, taken in reckon(values).spending().items() if stage not in done}
    measuring = left.get(SAMPLES, 0.0) + left[EVALUATION]
    share = measuring / max(measuring, sum(left.values()) - left[REPORT])
    allowed = share * max(0.0, seconds - left[REPORT])
    values = _joined(values, _with_thoroughness(values, allowed, reckon, done))
    return _with_steps(values, seconds, reckon, done)


def _joined(values: Mapping[str, Any], others: Mapping[str, Any]) -> Values:
    """Mappings merged at any depth."""
    result = dict(values)
    for name, value in others.items():
        inner = result.get(name)
        result[name] = _joined(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


def _with_images(values: Values, seconds: float, reckon: Reckon) -> Values:
    """How many images are used, and how often they are encoded."""
    allowed = IMAGES_SHARE * seconds
    work = reckon(values)
    changes = values["data"]["augmentation"]["flip"] or values["data"]["crop"] == "random"
    training = work.splits[0]
    if work.images() > allowed and training > _LEAST_LIMIT:
        return {"data": {"limit": _limit(values, allowed, reckon)}}
    for epochs in range(min(_MOST_EPOCHS, math.ceil(_ROWS_OF_CODES / training)) if changes else 1, 1, -1):
        chosen = {"extraction": {"augmented_epochs": epochs}}
        if reckon(_joined(values, chosen)).images() <= allowed:
            return chosen
    return {}


def _limit(values: Values, allowed: float, reckon: Reckon) -> int:
    """The images of each split that may be read."""
    work, limit = reckon(values), max(reckon(values).splits)
    # Not at once, since what the evaluation reads grows with them only up to a number.
    while limit > _LEAST_LIMIT and work.images() > allowed:
        limit = max(_LEAST_LIMIT, int(0.99 * limit * max(0.0, allowed) / work.images()))
        work = reckon(_joined(values, {"data": {"limit": limit}}))
    return limit


def _with_measurements(values: Values, seconds: float, reckon: Reckon) -> Values:
    """Samples that are shown, and what is measured of others; without classes, where they are too many to draw."""
    kinds = max(1, reckon(values).classes)
    allowed = (EVALUATION_SHARE + IMAGES_SHARE / 2) * seconds
    for labelled in (True, False):
        chosen: Values = {
            "data": {"labelled": values["data"]["labelled"] and labelled},
            "sampling": {"samples_per_class": _shown(kinds if labelled else 1)},
        }
        chosen = _joined(chosen, _with_thoroughness(_joined(values, chosen), allowed, reckon))
        if kinds <= _SHOWN or _measuring(reckon(_joined(values, chosen))) <= allowed:
            break
    return chosen


def _with_thoroughness(values: Values, allowed: float, reckon: Reckon, done: Collection[str] = ()) -> Values:
    """What is measured of how many samples, within the seconds for both; the least where nothing is."""
    number = max(1, reckon(values).classes)
    for generated, steps, seeds in _THOROUGHNESS:
        evaluation = {
            "generated_per_class": max(1, generated // number),
            "classifier_steps": steps,
            "classifier_seeds": seeds,
        }
        if _measuring(reckon(_joined(values, {"evaluation": evaluation})), done) <= allowed:
            break
    return {"evaluation": evaluation}


def _measuring(work: Workload, done: Collection[str] = ()) -> float:
    """Seconds of samples and measurements to come."""
    spending = work.spending()
    return sum(spending[stage] for stage in (SAMPLES, EVALUATION) if stage not in done)


def _shown(kinds: int) -> int:
    return _SHOWN if kinds == 1 else max(1, min(_SHOWN_PER_CLASS, 2 * _SHOWN // kinds))


def _with_steps(values: Values, seconds: float, reckon: Reckon, done: Collection[str] = ()) -> Values:
    """Steps of all trainings to come, in proportion to each other, for the seconds that the rest leaves."""
    work = reckon(values)
    trainings = {stage: training for stage, training in _trainings(values, work).items() if stage not in done}
    looks = _LOOKS * sum(training.look for training in trainings.values())
    steps = _shared_out(seconds - work.beside_training(done) - looks, list(trainings.values()))
    chosen: Values = {"priors": {}}
    for stage, number in zip(trainings, steps, strict=True):
        if stage == AUTOENCODER:
            chosen["autoencoder_training"] = _autoencoder_training(number, values)
        else:
            level = trainings[stage].level
            chosen["priors"][level] = {"training": _prior_training(number, values, level)}
    return _joined(values, chosen)


def _trainings(values: Values, work: Workload) -> dict[str, _Training]:
    """All of a run, by stage."""
    rows, copies = work.splits[0], work.config.extraction.augmented_epochs
    most = _most(_AUTOENCODER_MOST, rows, values["autoencoder_training"]["batch_size"])
    trainings = {AUTOENCODER: _Training("", work.autoencoder_step(), work.autoencoder_look(), PROPORTION[0], most)}
    for level, prior in values["priors"].items():
        most = _most(_PRIOR_MOST, copies * rows, prior["training"]["batch_size"])
        step, look = work.costs.prior_steps[level], work.prior_look(level)
        trainings[stage_of_prior(level)] = _Training(level, step, look, PROPORTION[1], most)
    return trainings


class _Training(NamedTuple):
    level: str
    step: float
    look: float
    proportion: int
    most: int


def _most(most: tuple[int, int], rows: int, batch_size: int) -> int:
    return max(most[0], most[1] * rows // batch_size)


def _shared_out(seconds: float, trainings: Sequence[_Training]) -> list[int]:
    """Steps of each training: in proportion, but for those that take no more, whose time goes to the others."""
    steps = [0] * len(trainings)
    rest = list(range(len(trainings)))
    while rest:
        share = max(0.0, seconds) / sum(trainings[i].step * trainings[i].proportion for i in rest)
        full = [i for i in rest if share * trainings[i].proportion >= trainings[i].most]
        for i in full or rest:
            steps[i] = max(LEAST_STEPS, min(trainings[i].most, int(share * trainings[i].proportion)))
            seconds -= steps[i] * trainings[i].step
        rest = [i for i in rest if i not in full] if full else []
    return steps


def _training(steps: int, batch_size: int) -> Values:
    every = math.ceil(steps / _LOOKS)
    return {
        "steps": steps,
        "batch_size": batch_size,
        "warmup_steps": min(100, steps // 10),
        "log_every": max(10, min(50, steps // 20)),
        "evaluate_every": every,
        "checkpoint_every": max(every, min(1_000, steps // 2)),
    }


def _autoencoder_training(steps: int, values: Values) -> Values:
    rate = 3e-3 if steps < 1_000 else 2e-3 if steps < 3_000 else 1e-3 if steps < 10_000 else 4e-4
    return {**_training(steps, values["autoencoder_training"]["batch_size"]), "learning_rate": rate}


def _prior_training(steps: int, values: Values, level: str) -> Values:
    prior = values["priors"][level]
    rate = (2e-3 if steps < 2_000 else 1e-3) / (1 if prior["model"]["width"] <= 128 else 2)
    # Of fewer steps than 1 / (1 - decay) an average would mostly hold what the weights were at the start.
    decay = 0.99 if steps >= 300 else 0.9
    return {**_training(steps, prior["training"]["batch_size"]), "learning_rate": rate, "average_decay": decay}
