"""The loop of every stage: step, log, look at held-out data, checkpoint; and how it ends before its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from hvq.distributed import Reduction
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.log import TrainingLog
from hvq.training.memory import peak_memory
from hvq.training.optimization import Losses, NotFiniteError, Optimization, StepReport
from hvq.training.schedule import learning_rate
from hvq.training.signals import StopSignals

BatchType = TypeVar("BatchType")
Numbers = dict[str, float]


class Watch(Protocol):
    """What a stage measures as its training goes."""

    score: str
    """Which of the numbers of a look says how good it was; the lower the better."""

    def observe(self, report: StepReport) -> None:
        """Given the report of every step."""
        ...

    def window(self) -> Numbers:
        """Numbers over the steps since it was last called; called with each line of the log."""
        ...

    def look(self) -> Numbers:
        """Numbers of held-out data; called while the model has its averaged weights.

        Without the score where it is too early for one.
        """
        ...

    def pictures(self) -> Mapping[str, Tensor]:
        """Pictures of held-out data, uint8 `[H, W, 3]` by name; called beside `look` where a tracker wants them.

        By the main process alone, so that nothing in it may wait for others.
        """
        ...

    def stops(self) -> bool:
        """Whether training is to end early; asked before every step, the same answer on all processes."""
        ...


def train(
    optimization: Optimization,
    stream: Iterable[Sequence[BatchType]],
    losses: Callable[[BatchType], Losses],
    *,
    log: TrainingLog,
    checkpoint: TrainingCheckpoint,
    watch: Watch,
    health: Health,
    begin_step: Callable[[int], None] = lambda step: None,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Train from the optimization's step on to the last, or until it is told to stop.

    A signal ends training after the running step. Where that was the last, it is `finish` that it does not interrupt,
    and what would come after the stage that it ends.

    Args:
        optimization: the model in training.
        stream: the micro-batches of each step that is left.
        losses: the total and its terms for one micro-batch.
        log: of the stage.
        checkpoint: written every `checkpoint_every` steps, and after the best look so far.
        watch: what is measured meanwhile.
        health: counts revived codes and skipped steps between lines of the log.
        begin_step: called before each step with its number, from 0.
        finish: what is done with the trained model, such as writing it.

    Raises:
        TrainingStopped: where a process was asked to, by SIGTERM or SIGINT, after a checkpoint, or after `finish`.
        HVQError: where the gradient was not finite too many times in a row, with the last checkpoint.
        StorageError: where a checkpoint cannot be written.
    """
    config = optimization.config
    optimization.model.train()
    log.start_clock()
    with StopSignals() as signals:
        with closing(log), checkpoint:
            for step, micro_batches in zip(range(optimization.step_number + 1, config.steps + 1), stream, strict=False):
                if watch.stops():
                    break
                optimization.stop_requested = signals.received is not None
                begin_step(optimization.step_number)
                report = _step(optimization, micro_batches, losses, checkpoint)
                health.add(report)
                watch.observe(report)
                log.advance()
                is_best = _report(step, report, optimization, log, watch, health, checkpoint)
                stop = report.stop_requested and step < config.steps
                if step < config.steps and (step % config.checkpoint_every == 0 or is_best or stop):
                    log.flush()
                    checkpoint.save()
                checkpoint.check()
                if stop:
                    checkpoint.settle()
                    after = f"step {step} of {log.stage}, with a checkpoint"
                    raise signals.stopped(after)
        finish()
        if _any_received(signals, optimization):
            raise signals.stopped(f"{log.stage} was done")


def _any_received(signals: StopSignals, optimization: Optimization) -> bool:
    """Whether any process was asked to stop; the same answer on all."""
    device = optimization.accelerator.device
    return bool(optimization.reduction.sum(torch.tensor(int(signals.received is not None), device=device)))


def _step(
    optimization: Optimization,
    micro_batches: Sequence[BatchType],
    losses: Callable[[BatchType], Losses],
    checkpoint: TrainingCheckpoint,
) -> StepReport:
    try:
        return optimization.step(micro_batches, losses)
    except NotFiniteError as error:
        checkpoint.settle()
        raise NotFiniteError(f"{error}. {checkpoint.last_good()}") from None


def _report(
    step: int,
    report: StepReport,
    optimization: Optimization,
    log: TrainingLog,
    watch: Watch,
    health: Health,
    checkpoint: TrainingCheckpoint,
) -> bool:
    """Write what is due after a step; returns whether a look was the best so far."""
    config, is_last = optimization.config, step == optimization.config.steps
    if step % config.log_every == 0 or is_last:
        rate = log.samples_per_second(config.batch_size)
        numbers = {**report.terms, **watch.window(), **health.numbers(), **_of_step(report, optimization)}
        log.write(step, {**numbers, "images_per_second": rate})
        log.say(log.time_left(config.steps - step))
    if step % config.evaluate_every and not is_last:
        return False
    with log.paused(), optimization.average.applied():
        numbers = watch.look()
        if log.takes_pictures:
            log.show(step, watch.pictures())
    log.write(step, numbers)
    if watch.score not in numbers:
        return False
    score = torch.tensor(numbers[watch.score], dtype=torch.float64, device=optimization.accelerator.device)
    # Whether it is the best decides about a checkpoint, which all take together: alike everywhere, to the last bit.
    return checkpoint.offer(float(optimization.reduction.first(score)))


def _of_step(report: StepReport, optimization: Optimization) -> Numbers:
    """What is known of the step that was just done, and the most memory of this process so far."""
    rate = learning_rate(optimization.config, optimization.step_number - 1)
    memory = peak_memory(optimization.accelerator.device)
    numbers = {"gradient_norm": report.gradient_norm, "learning_rate": rate}
    return numbers if memory is None else {**numbers, "memory_gib": memory}


class Health:
    """Revived codes and skipped steps between two lines of the log."""

    def __init__(self) -> None:
        self._revived: dict[str, Tensor] = {}
        self._skipped = 0

    def add(self, report: StepReport) -> None:
        """Count one step; on a GPU nothing waits for the numbers."""
        self._skipped += report.skipped
        for name, number in report.revived.items():
            self._revived[name] = self._revived[name] + number if name in self._revived else number

    def numbers(self) -> Numbers:
        """`revived.<level>`, and `skipped_steps` where there were any; counting begins anew."""
        numbers = {f"revived.{name}": float(number) for name, number in self._revived.items()}
        if self._skipped:
            numbers["skipped_steps"] = float(self._skipped)
        self._revived, self._skipped = {}, 0
        return numbers

    def kept_tensors(self, reduction: Reduction) -> dict[str, Tensor]:
        """Counts so far, which are the same on all processes."""
        revived = {f"revived/{name}": number for name, number in self._revived.items()}
        return {**revived, "skipped": torch.tensor(self._skipped)}

    def take_back(self, tensors: dict[str, Tensor], reduction: Reduction) -> None:
        """Go on counting."""
        self._skipped = int(tensors["skipped"])
        self._revived = {
            key.removeprefix("revived/"): number for key, number in tensors.items() if key.startswith("revived/")
        }
