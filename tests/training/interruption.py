"""A run that is killed at a step, and what is left of one that is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hvq.distributed import Reduction
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.optimization import Optimization, StepReport


class Killed(BaseException):
    """Stands for the end of a process."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Training inside ends as it begins the optimizer step of this number, from 0."""
    original = Optimization.step

    def killed(self: Optimization, *arguments: Any) -> StepReport:
        if self.step_number == step:
            raise Killed
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimization, "step", killed)
        with pytest.raises(Killed):
            yield


def keep_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a finished stage removes its checkpoint, write one of its last state instead."""

    def write(checkpoint: TrainingCheckpoint) -> None:
        # The main process alone removes it, and so the others wait for nothing here.
        together, checkpoint.optimization.reduction = checkpoint.optimization.reduction, Reduction()
        checkpoint.save()
        checkpoint.wait()
        checkpoint.optimization.reduction = together

    monkeypatch.setattr(TrainingCheckpoint, "remove", write)
