"""The record of looks at held-out data: best weights, patience, over-fitting, and that a checkpoint keeps all of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hvq.distributed import Reduction
from hvq.errors import DataError
from hvq.training.held_out import HeldOutRecord


def _after(
    scores: list[float], losses: list[float] | None = None, patience: int = 0
) -> tuple[HeldOutRecord, nn.Linear]:
    """A record of looks after steps 1, 2, ..., at a layer whose weight is the step; one training loss before each."""
    record, layer = HeldOutRecord(patience), nn.Linear(1, 1, bias=False)
    for step, score in enumerate(scores, start=1):
        nn.init.constant_(layer.weight, step)
        record.add_training(losses[step - 1] if losses else 1.0)
        record.offer(layer, score, step)
    return record, layer


def test_the_best_weights_come_back() -> None:
    record, layer = _after([3.0, 2.0, 2.5, math.nan])
    record.restore(layer)
    assert layer.weight.item() == 2
    assert (record.score, record.best_step, record.looks_since_best) == (2.0, 2, 2)


def test_without_a_finite_score_there_are_none() -> None:
    record, layer = _after([math.nan, math.inf])
    with pytest.raises(DataError, match="never finite; lower learning_rate"):
        record.restore(layer)


@pytest.mark.parametrize(
    ("scores", "patience", "stops"),
    [
        ([], 1, False),
        ([2.0, 2.0], 1, True),
        ([2.0, 3.0, 3.0], 3, False),
        ([2.0, 3.0, 3.0, 3.0], 3, True),
        ([2.0, 3.0, 3.0, 1.0, 3.0], 3, False),
        ([math.nan, math.nan], 2, True),
        ([2.0] + [3.0] * 50, 0, False),
    ],
)
def test_patience_ends_after_as_many_looks_without_improvement(scores: list[float], patience: int, stops: bool) -> None:
    assert _after(scores, patience=patience)[0].stops == stops


def test_training_losses_are_means_since_the_look_before() -> None:
    record, layer = HeldOutRecord(), nn.Linear(1, 1)
    for loss in (1.0, 2.0, 6.0):
        record.add_training(loss)
    assert record.offer(layer, 2.0, step=3) == 3.0
    record.add_training(0.5)
    assert record.offer(layer, 2.5, step=4) == 0.5
    assert record.training_at_best == 3.0
    assert math.isnan(record.offer(layer, 2.5, step=5))


@pytest.mark.parametrize(
    ("score", "training", "found"),
    [
        (2.1, 0.9, True),
        (2.01, 0.9, False),  # hardly worse than the best
        (2.1, 1.0, False),  # training is no better either
        (math.nan, 0.9, False),
        (2.1, math.nan, False),
    ],
)
def test_overfitting_is_worse_held_out_and_better_in_training(score: float, training: float, found: bool) -> None:
    record, _ = _after([3.0, 2.0], [1.5, 1.0])
    assert record.finds_overfitting(score, training) == found
    # Once is enough.
    assert not (found and record.finds_overfitting(score, training))


def test_what_a_checkpoint_keeps_decides_alike() -> None:
    scores, losses = [3.0, 2.0, 2.5, 2.6, 2.7], [5.0, 4.0, 3.0, 2.0, 1.0]
    straight, layer = _after(scores, losses, patience=3)
    for cut in range(len(scores)):
        before, _ = _after(scores[:cut], losses[:cut], patience=3)
        before.add_training(losses[cut])
        resumed = HeldOutRecord(patience=3)
        resumed.take_back(before.kept_tensors(Reduction()), Reduction())
        for step in range(cut + 1, len(scores) + 1):
            nn.init.constant_(layer.weight, step)
            if step > cut + 1:
                resumed.add_training(losses[step - 1])
            resumed.offer(layer, scores[step - 1], step)
        assert resumed.stops
        assert resumed.tensors.keys() == straight.tensors.keys()
        assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in straight.tensors.items())
