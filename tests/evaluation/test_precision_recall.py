"""Precision and recall of manifolds against all distances in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.errors import ConfigurationError, DataError
from hvq.evaluation import precision_recall
from hvq.evaluation.precision_recall import ManifoldPrecisionRecall, PrecisionRecall
from tests.processes import run_in_processes

FEATURES = 5


def _sets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(61, FEATURES, generator=generator), 0.7 * torch.randn(43, FEATURES, generator=generator) + 0.4


def _share(samples: NDArray[np.float64], centres: NDArray[np.float64], neighbours: int) -> float:
    """Share of the samples within the radius of any centre, with every distance from the difference itself."""

    def distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))

    radii = np.sort(distances(centres, centres), axis=1)[:, neighbours]
    return float((distances(samples, centres) <= radii).any(1).mean())


def _measured(real: Tensor, fake: Tensor, batch_size: int = 100, neighbours: int = 3) -> PrecisionRecall:
    metric = ManifoldPrecisionRecall(features=FEATURES, neighbours=neighbours)
    for part in real.split(batch_size):
        metric.update(part, real=True)
    for part in fake.split(batch_size):
        metric.update(part, real=False)
    found: PrecisionRecall = metric.compute()
    return found


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 13, 100])
def test_equals_numpy_for_any_batch_size(batch_size: int, neighbours: int) -> None:
    real, fake = _sets()
    one, two = real.double().numpy(), fake.double().numpy()
    found = _measured(real, fake, batch_size, neighbours)
    assert found == (_share(two, one, neighbours), _share(one, two, neighbours))
    assert 0 < found.recall < found.precision < 1


def test_blocks_and_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = _sets()
    expected = _measured(real, fake)
    monkeypatch.setattr(precision_recall, "ROWS_AT_ONCE", 7)
    assert _measured(real.flip(0), fake.flip(0)) == expected


def test_what_is_told_apart_from_what_is_the_same() -> None:
    real, fake = _sets()
    assert _measured(real, real) == (1.0, 1.0)
    assert _measured(real, fake + 100) == (0.0, 0.0)
    # A generator that gives one image of the manifold again and again looks real, and misses nearly all.
    assert _measured(real + 1000, (real[:1] + 1000).repeat(17, 1)) == (1.0, 1 / 61)


def test_refuses_too_few_samples_and_neighbours() -> None:
    real, fake = _sets()
    with pytest.raises(DataError, match="received 61 and 3"):
        _measured(real, fake[:3])
    with pytest.raises(ConfigurationError, match="at least 1"):
        ManifoldPrecisionRecall(features=FEATURES, neighbours=0)
    with pytest.raises(DataError, match=r"\[N, 5\]"):
        ManifoldPrecisionRecall(features=FEATURES).update(torch.zeros(2, 3), real=True)


def _measured_on_one_of_two_processes() -> PrecisionRecall:
    real, fake = _sets()
    rank = torch.distributed.get_rank()
    # The second process has no generated samples.
    return _measured(real[(slice(0, 13), slice(13, 61))[rank]], fake if rank == 0 else fake[:0], 11)


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _measured(*_sets())
    assert run_in_processes(_measured_on_one_of_two_processes, 2) == [expected] * 2
