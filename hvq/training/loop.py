"""The loop of every stage: step, log, look at held-out data, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.log import TrainingLog
from hvq.training.optimization import Losses, Optimization, StepReport

BatchType = TypeVar("BatchType")
Numbers = dict[str, float]


def _nothing(_: StepReport) -> None:
    pass


def _never() -> bool:
    return False


def train(
    optimization: Optimization,
    stream: Iterable[Sequence[BatchType]],
    losses: Callable[[BatchType], Losses],
    *,
    log: TrainingLog,
    checkpoint: TrainingCheckpoint,
    window: Callable[[], Numbers],
    look: Callable[[], Numbers],
    observe: Callable[[StepReport], None] = _nothing,
    stop: Callable[[], bool] = _never,
) -> None:
    """Train from the optimization's step on to the last, or until it is told to stop.

    Args:
        optimization: the model in training.
        stream: the micro-batches of each step that is left.
        losses: the total and its terms for one micro-batch.
        log: of the stage.
        checkpoint: written every `checkpoint_every` steps.
        window: further numbers over the steps since it was last called; called with each line of the log.
        look: numbers of held-out data, called every `evaluate_every` steps while the model has its averaged weights.
        observe: given the report of every step.
        stop: asked before every step; the answer is the same on all processes.
    """
    config = optimization.config
    health = Health()
    optimization.model.train()
    log.start_clock()
    for step, micro_batches in zip(range(optimization.step_number + 1, config.steps + 1), stream, strict=False):
        if stop():
            break
        report = optimization.step(micro_batches, losses)
        health.add(report)
        observe(report)
        log.advance()
        is_last = step == config.steps
        if step % config.log_every == 0 or is_last:
            rate = log.samples_per_second(config.batch_size)
            numbers = {**report.terms, **window(), **health.numbers(), "gradient_norm": report.gradient_norm}
            log.write(step, {**numbers, "images_per_second": rate})
        if step % config.evaluate_every == 0 or is_last:
            with optimization.average.applied():
                log.write(step, look())
        if step % config.checkpoint_every == 0 and not is_last:
            checkpoint.save()
    log.close()


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
