"""What was chosen, and why, one sentence for each choice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvq.choosing.candidates import MOST_CODES, Candidate, crops, flips, tells_classes
from hvq.choosing.costs import Workload
from hvq.config_data import FolderConfig


@dataclass(frozen=True)
class Reason:
    """A choice as a person reads it.

    Attributes:
        fields: of the configuration that it is about, as dotted paths.
        text: the sentence.
    """

    fields: tuple[str, ...]
    text: str

    def is_overruled(self, by_hand: Sequence[str]) -> bool:
        """Whether one of its fields, or what it stands in, or something in it, was set by hand.

        >>> Reason(("data.size",), "").is_overruled(["data.size"]), Reason(("data.size",), "").is_overruled(["seed"])
        (True, False)
        """
        return any(
            f"{one}.".startswith(f"{field}.") or f"{field}.".startswith(f"{one}.")
            for field in self.fields
            for one in by_hand
        )


def reasons(work: Workload, candidate: Candidate, *, is_largest: bool) -> tuple[Reason, ...]:
    """The sentences about a run, in the order of its stages.

    Args:
        work: the run as it was chosen.
        candidate: that it is of.
        is_largest: whether the pictures allow no larger images.
    """
    return (*_of_the_data(work, candidate, is_largest), *_of_the_models(work, candidate), *_of_the_effort(work))


def _of_the_data(work: Workload, candidate: Candidate, is_largest: bool) -> Iterator[Reason]:
    survey, data = work.survey, work.config.data
    assert isinstance(data, FolderConfig)
    sides = f"three quarters of the pictures have {survey.usual_side} pixels or more on the shorter side"
    if survey.usual_side < candidate.size:
        why = f"{sides}, and smaller images are too small to be measured"
    elif is_largest:
        why = f"{sides}, and nothing is gained by more than they have, or in minutes by more than 256"
    else:
        why = f"{sides}, but larger images would leave too few training steps in this time"
    mixed = survey.smallest_side < survey.largest_side
    cut = "; pictures are resized until their shorter side fits, and cropped" if mixed else ""
    yield Reason(("data.size",), f"images of {candidate.size}x{candidate.size}: {why}{cut}")
    colours = "some of the pictures have colours" if survey.colour else "no picture that was looked at has colours"
    white = "; what is transparent is laid on white" if survey.transparent else ""
    yield Reason(("data.channels", "autoencoder.channels"), f"{survey.channels} channel(s): {colours}{white}")
    yield _of_classes(work)
    yield _of_splits(work)
    yield _of_augmentation(work)
    if data.limit is not None:
        text = f"at most {data.limit:,} images of each split: reading all of them would take too much of the time"
        yield Reason(("data.limit",), text)
    if data.workers:
        yield Reason(
            ("data.workers",), f"{data.workers} processes that read pictures: the GPU leaves the processor free"
        )


def _of_classes(work: Workload) -> Reason:
    number = work.survey.classes
    if work.classes:
        text = f"{number} classes: so many subfolders have pictures"
    elif number < 2:
        text = "no classes: there are no two subfolders that all pictures lie in"
    elif not tells_classes(work.survey):
        text = f"no classes: {number:,} subfolders have too few pictures each to tell what they have in common"
    else:
        text = f"no classes: to draw samples of all {number:,} subfolders would take too much of the time"
    return Reason(("data.labelled",), text)


def _of_splits(work: Workload) -> Reason:
    training, held_out = work.splits
    where = "the folder validation" if work.survey.held_out else "chosen by a hash of their names"
    text = f"about {training:,} images to train on and {held_out:,} held out, {where}"
    if work.survey.unreadable:
        text += f"; {work.survey.unreadable:,} files cannot be read and are left out"
    return Reason(("data.validation_share",), text)


def _of_augmentation(work: Workload) -> Reason:
    changes = ["mirrored half of the time"] * flips(work.survey) + ["cropped anywhere"] * crops(work.survey)
    if changes:
        text = f"training images are {' and '.join(changes)}: they look like photographs"
    else:
        text = "training images as they are: they do not look like photographs in colour that may be mirrored"
    return Reason(("data.augmentation", "data.crop"), text)


def _of_the_models(work: Workload, candidate: Candidate) -> Iterator[Reason]:
    levels = work.config.autoencoder.levels
    grids = [f"{name} {'x'.join(map(str, grid))}" for name, grid in _grids(work).items()]
    sizes = " and ".join(str(level.codebook_size) for level in levels.values())
    if min(level.codebook_size for level in levels.values()) < MOST_CODES:
        why = "no more than can each be met often, with so few images"
    else:
        why = "as in the papers, since there are images enough"
    yield Reason(("autoencoder.levels",), f"levels of codes {', '.join(grids)}, of {sizes} values: {why}")
    batch = work.config.autoencoder_training.batch_size
    yield Reason(
        ("autoencoder.decoder", "autoencoder_training.batch_size"),
        f"autoencoder of {candidate.width} channels, {batch} images a step: "
        f"{1000 * work.autoencoder_step():.0f} ms as measured, reading included",
    )
    models = {name: work.config.prior(name).model for name in levels}
    texts = [f"{name} {1000 * work.costs.prior_steps[name]:.0f} ms a step" for name in models]
    width = next(iter(models.values())).width
    what = (
        "large ones, for which there is time" if candidate.wide else "small ones, which take many steps in little time"
    )
    yield Reason(
        tuple(f"priors.{name}.{part}" for name in models for part in ("model", "training.batch_size")),
        f"transformers of {width} channels as priors, {what}: {', '.join(texts)}",
    )


def _grids(work: Workload) -> dict[str, list[int]]:
    """Codes of each level along each axis, coarse to fine."""
    grids, stride = {}, 1
    for name, level in reversed(work.config.autoencoder.levels.items()):
        stride *= level.ratio
        grids[name] = [math.ceil(side / stride) for side in work.config.data.size]
    return dict(reversed(grids.items()))


def _of_the_effort(work: Workload) -> Iterator[Reason]:
    config = work.config
    steps = [f"{config.prior(name).training.steps:,} of the prior of {name}" for name in config.autoencoder.levels]
    yield Reason(
        ("autoencoder_training.steps", *(f"priors.{name}.training.steps" for name in config.autoencoder.levels)),
        f"{config.autoencoder_training.steps:,} steps of the autoencoder, {', '.join(steps)}: two to "
        "one of each prior, in the time that the rest leaves",
    )
    epochs = config.extraction.augmented_epochs
    if epochs > 1:
        text = f"codes of {epochs} augmented copies of each image, so that priors over-fit less to few images"
        yield Reason(("extraction.augmented_epochs",), text)
    kinds, evaluation = max(1, work.classes), config.evaluation
    yield Reason(
        ("evaluation", "sampling.samples_per_class"),
        f"{kinds * config.sampling.samples_per_class:,} samples to look at, {kinds * evaluation.generated_per_class:,} "
        f"to measure, classifiers of {evaluation.classifier_steps} steps: as thorough as a fifth of the time allows",
    )
