"""The Inception score against plain numpy, over batch sizes and processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.inception_score import InceptionScore
from tests.processes import run_in_processes


def _probabilities() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(17, 5, generator=generator, dtype=torch.float64)).softmax(1)


def _measured(probabilities: Tensor, batch_size: int) -> float:
    score = InceptionScore(classes=5)
    for part in probabilities.split(batch_size):
        score.update(part)
    return float(score.compute())


@pytest.mark.parametrize("batch_size", [1, 7, 17])
def test_equals_numpy_for_any_batch_size(batch_size: int) -> None:
    each = _probabilities().numpy()
    divergences = (each * np.log(each / each.mean(0))).sum(1)
    assert _measured(_probabilities(), batch_size) == pytest.approx(np.exp(divergences.mean()), rel=1e-12)


def test_is_one_where_all_look_alike_and_the_number_of_classes_where_all_occur_for_sure() -> None:
    assert _measured(_probabilities()[:1].expand(17, -1), 7) == pytest.approx(1.0)
    assert _measured(torch.eye(5).repeat(3, 1), 7) == pytest.approx(5.0)


def test_refuses_what_is_not_probabilities() -> None:
    score = InceptionScore(classes=5)
    with pytest.raises(DataError, match=r"\[N, 5\]"):
        score.update(torch.ones(2, 3) / 3)
    for wrong in (torch.ones(2, 5), torch.tensor([[1.5, -0.5, 0.0, 0.0, 0.0]]), torch.full((2, 5), torch.nan)):
        with pytest.raises(DataError, match="sum to 1"):
            score.update(wrong)
    with pytest.raises(DataError, match="at least one image"):
        score.compute()


def _measured_on_one_of_two_processes() -> float:
    return _measured(_probabilities()[(slice(0, 3), slice(3, 17))[torch.distributed.get_rank()]], 5)


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _measured(_probabilities(), 17)
    assert run_in_processes(_measured_on_one_of_two_processes, 2) == pytest.approx([expected] * 2, rel=1e-12)
