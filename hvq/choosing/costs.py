"""What the parts of a run cost on a machine, and what a whole run of a configuration takes by them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from hvq.choosing.survey import FolderSurvey
from hvq.config import OptimizationConfig, RunConfig
from hvq.config_data import FolderConfig

AUTOENCODER, CODES, SAMPLES, EVALUATION, REPORT = "autoencoder", "codes", "samples", "evaluation", "report"
"""Stages as `Workload.spending` names them, beside those of priors."""

STAGE_SECONDS = 1.0
"""Of opening and closing a stage: models read and written, files of codes, classifiers' features."""

# Pictures, curves and the page.
_REPORT_SECONDS = 4.0
# As `hvq.evaluation` and `hvq.training` have it: images looked at while training, and compared with at the end.
_LOOKED_AT, _COMPARED_WITH = 1_024, 10_000
# The batch of the evaluation's classifiers.
_JUDGES_WITH_CLASSES, _SCORED_SETS = 2, 3


def stage_of_prior(level: str) -> str:
    """The name of a prior's training.

    >>> stage_of_prior("top")
    'prior of top'
    """
    return f"prior of {level}"


@dataclass(frozen=True)
class Machine:
    """Where a run takes place.

    Attributes:
        accelerated: whether models run on something faster than CPUs.
        processes: that train together.
        cores: of the processor, for each process.
    """

    accelerated: bool = False
    processes: int = 1
    cores: int = 1


@dataclass(frozen=True)
class Costs:
    """Seconds on one process, as measured or as reckoned from those of another size.

    Attributes:
        reading: one picture, from the disk to the size of the images.
        autoencoder_step: an optimizer step on images in memory.
        encoding: one image to codes.
        restoring: one image to codes and back.
        prior_steps: an optimizer step of each level's prior.
        looks: a forward of each level's prior on one chunk of codes.
        drawing: one chunk of samples, of all levels, decoded.
        classifier_step: a step of the evaluation's classifier.
    """

    reading: float
    autoencoder_step: float
    encoding: float
    restoring: float
    prior_steps: Mapping[str, float]
    looks: Mapping[str, float]
    drawing: float
    classifier_step: float

    def scaled(self, factor: float) -> Costs:
        """All but reading, whose cost is mostly that of the file, multiplied."""
        return replace(
            self,
            autoencoder_step=factor * self.autoencoder_step,
            encoding=factor * self.encoding,
            restoring=factor * self.restoring,
            prior_steps={name: factor * seconds for name, seconds in self.prior_steps.items()},
            looks={name: factor * seconds for name, seconds in self.looks.items()},
            drawing=factor * self.drawing,
            classifier_step=factor * self.classifier_step,
        )


@dataclass(frozen=True)
class Workload:
    """A configuration on a folder and a machine, and the seconds of its parts.

    Attributes:
        config: of the run.
        survey: of the folder.
        machine: that runs it.
        costs: of its parts.
    """

    config: RunConfig
    survey: FolderSurvey
    machine: Machine
    costs: Costs

    @property
    def splits(self) -> tuple[int, int]:
        """Images to train on, and held-out ones."""
        data = self.config.data
        assert isinstance(data, FolderConfig)
        training, held_out = self.survey.images, self.survey.held_out
        if not held_out:
            held_out = max(1, round(data.validation_share * training))
            training = max(1, training - held_out)
        most = data.limit or max(training, held_out)
        return min(most, training), min(most, held_out)

    @property
    def classes(self) -> int:
        """That priors are told."""
        data = self.config.data
        assert isinstance(data, FolderConfig)
        return self.survey.classes if data.labelled else 0

    def autoencoder_step(self) -> float:
        """Seconds of a step of the autoencoder, its images read from the disk."""
        batch, workers = self.config.autoencoder_training.batch_size, self.config.data.workers
        reading = batch / self.machine.processes * self.costs.reading
        step = self.costs.autoencoder_step
        return max(step, reading / workers) if workers else step + reading

    def autoencoder_look(self) -> float:
        """Seconds of a look at held-out images."""
        rows = self._rows(min(_LOOKED_AT, self.splits[1]))
        return rows * (self.costs.reading + self.costs.restoring)

    def prior_look(self, level: str) -> float:
        """Seconds of a look at held-out codes."""
        return self._chunks(self.splits[1]) * self.costs.looks[level]

    def images(self) -> float:
        """Seconds that grow with the number of images, beside training: codes, and real images of the evaluation."""
        training, held_out = self.splits
        encoded = self._rows(self.config.extraction.augmented_epochs * training) + self._rows(held_out)
        compared = self._rows(min(training, _COMPARED_WITH)) + 2 * self._rows(held_out)
        one = self.costs.reading
        return encoded * (one + self.costs.encoding) + compared * (one + self.costs.restoring)

    def classifiers(self) -> float:
        """Seconds in the training of the evaluation's classifiers."""
        evaluation = self.config.evaluation
        number = 1.0
        if self.classes:
            number = _JUDGES_WITH_CLASSES + math.ceil(
                _SCORED_SETS * evaluation.classifier_seeds / self.machine.processes
            )
        return number * evaluation.classifier_steps * self.costs.classifier_step

    def spending(self) -> dict[str, float]:
        """Seconds of each stage, in the order in which they come."""
        training, held_out = self.splits
        encoded = self._rows(self.config.extraction.augmented_epochs * training) + self._rows(held_out)
        codes = encoded * (self.costs.reading + self.costs.encoding)
        kinds = max(1, self.classes)
        samples = self._chunks(kinds * self.config.sampling.samples_per_class) * self.costs.drawing
        generated = self._chunks(kinds * self.config.evaluation.generated_per_class) * self.costs.drawing
        looks = sum(self.prior_look(level) for level in self.config.autoencoder.levels)
        evaluation = self.images() - codes + self.classifiers() + generated + looks
        seconds = {AUTOENCODER: self._autoencoder(), CODES: codes}
        seconds |= {stage_of_prior(level): self._prior(level) for level in self.config.autoencoder.levels}
        seconds |= {SAMPLES: samples, EVALUATION: evaluation}
        return {name: value + STAGE_SECONDS for name, value in seconds.items()} | {REPORT: _REPORT_SECONDS}

    def beside_training(self, done: Collection[str] = ()) -> float:
        """Seconds of all stages but for the steps of trainings, and the looks between them.

        Args:
            done: stages that are over.
        """
        trained = {AUTOENCODER, *map(stage_of_prior, self.config.autoencoder.levels)}
        others = [seconds for name, seconds in self.spending().items() if name not in {*trained, *done}]
        return sum(others) + len(trained.difference(done)) * STAGE_SECONDS

    def _autoencoder(self) -> float:
        training = self.config.autoencoder_training
        return training.steps * self.autoencoder_step() + _looks(training) * self.autoencoder_look()

    def _prior(self, level: str) -> float:
        training = self.config.prior(level).training
        return training.steps * self.costs.prior_steps[level] + _looks(training) * self.prior_look(level)

    def _chunks(self, rows: int) -> int:
        """Chunks of the process that has most of them."""
        return math.ceil(math.ceil(rows / self.config.chunk_size) / self.machine.processes)

    def _rows(self, rows: int) -> int:
        return self._chunks(rows) * self.config.chunk_size


def _looks(training: OptimizationConfig) -> int:
    return math.ceil(training.steps / training.evaluate_every)
