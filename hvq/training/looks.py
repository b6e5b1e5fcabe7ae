"""Looks at held-out codes while a prior trains, and what the person who watches is told of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hvq.data import CodeBatch, CodeFolder, ordered_batches
from hvq.distributed import Reduction
from hvq.priors import Prior
from hvq.priors.likelihood import nats_per_code
from hvq.training.held_out import HeldOutRecord
from hvq.training.log import TrainingLog
from hvq.training.optimization import Optimization, StepReport


class CodeLooks:
    """The `Watch` of a prior in training: measures it on held-out codes, and keeps the record.

    Args:
        codes: held out.
        level: of the prior.
        chunk_size: rows in each forward.
        optimization: whose model is the prior.
        record: of the looks.
        log: of the stage.
    """

    score = "held_out_nats"

    def __init__(
        self,
        codes: CodeFolder,
        level: str,
        chunk_size: int,
        optimization: Optimization,
        record: HeldOutRecord,
        log: TrainingLog,
    ) -> None:
        self._codes, self._level, self._chunk_size = codes, level, chunk_size
        self._optimization, self._record, self._log = optimization, record, log
        self._unigram = codes.entropy(level)
        self._uniform = math.log(codes.codebook_sizes[level])

    def observe(self, report: StepReport) -> None:
        """Take in the training loss of a step; one that was skipped has none."""
        if not report.skipped:
            self._record.add_training(report.terms["nats"])

    def window(self) -> dict[str, float]:
        """Nothing beyond what a step reports."""
        return {}

    def pictures(self) -> dict[str, Tensor]:
        """None: a level's codes alone are no image."""
        return {}

    def stops(self) -> bool:
        """Whether patience is at an end."""
        return self._record.stops

    def look(self) -> dict[str, float]:
        """Nats per code on held-out codes, the mean training loss since the last look, and what needs no prior.

        The training loss is that of the steps themselves, with drop-out, and of weights that were still changing.
        The entropy of the frequencies of codes is reached by a model that knows nothing else, and log K by one that
        takes all codes for equally likely.
        """
        optimization, prior = self._optimization, self._optimization.model
        assert isinstance(prior, Prior)
        nats = held_out_nats(prior, self._codes, self._level, self._chunk_size, optimization.reduction)
        training = self._record.offer(prior, nats, optimization.step_number)
        if self._record.finds_overfitting(nats, training):
            self._log.say(self._overfitting(nats, training))
        references = {"unigram_entropy": self._unigram, "log_codebook_size": self._uniform}
        return {"training_loss": training, "held_out_nats": nats, **references}

    def summarize(self) -> None:
        """Say what has come of it, and which weights are kept."""
        record, what = self._record, f"prior of level {self._level}"
        self._log.say(
            f"{what}, nats per code: {record.score:.3f} held out; training loss {record.training_at_best:.3f}, "
            f"unigram entropy {self._unigram:.3f}, log K {self._uniform:.3f}"
        )
        if record.stops and self._optimization.step_number < self._optimization.config.steps:
            self._log.say(
                f"{what} stopped early, at step {self._optimization.step_number} of {self._optimization.config.steps}: "
                f"{record.looks_since_best} looks at held-out codes without improvement (patience {record.patience})"
            )
        self._log.say(f"{what}: the weights of step {record.best_step} are kept")

    def _overfitting(self, nats: float, training: float) -> str:
        record, fields, step = self._record, f"priors.{self._level}", self._optimization.step_number
        return (
            f"warning: the prior of level {self._level} over-fits: from step {record.best_step} to {step}, held-out "
            f"nats per code rose from {record.score:.3f} to {nats:.3f} while the training loss fell from "
            f"{record.training_at_best:.3f} to {training:.3f}; the best weights are kept. More augmented codes "
            f"(extraction.augmented_epochs), more drop-out ({fields}.model.dropout) or a smaller {fields}.model help; "
            f"{fields}.training.patience ends in time"
        )


def held_out_nats(prior: Prior, codes: CodeFolder, level: str, chunk_size: int, reduction: Reduction) -> float:
    """Mean nats per code over a split, which the processes share; the same number on all of them."""
    nats = nats_per_code(
        prior,
        _in_equal_turns(codes, chunk_size, reduction),
        level,
        level_names=codes.level_names,
        chunk_size=chunk_size,
        reduction=reduction,
    )
    # What is decided by it, such as the end of training, must be decided alike everywhere, to the last bit.
    return float(reduction.first(torch.tensor(nats, dtype=torch.float64, device=next(prior.parameters()).device)))


def _in_equal_turns(codes: CodeFolder, chunk_size: int, reduction: Reduction) -> Iterator[CodeBatch]:
    """The chunks of this process, and one without rows where others have one more.

    Sharded weights are gathered for every forward, by all processes or by none.
    """
    yield from ordered_batches(codes, chunk_size=chunk_size, rank=reduction.rank, processes=reduction.size)
    chunks = -(-len(codes) // chunk_size)
    if chunks and reduction.rank >= chunks - (chunks - 1) // reduction.size * reduction.size:
        yield codes.fetch(np.arange(0))
