"""LPIPS: what is summed, over batch sizes and processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hvq.errors import DataError
from hvq.evaluation.perceptual import PerceptualDistance
from tests.processes import run_in_processes


class _Distance(nn.Module):
    """Weighs channels unequally, and each image by itself; takes the form that LPIPS's network takes."""

    def forward(self, images: Tensor, others: Tensor, normalize: bool) -> Tensor:
        assert normalize
        assert images.shape[1] == others.shape[1] == 3
        weights = torch.tensor([0.5, 0.3, 0.2]).view(3, 1, 1)
        return (weights * (images - others).square()).mean((1, 2, 3), keepdim=True)


def _pairs(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(7, channels, 31, 37, generator=generator), torch.rand(7, channels, 31, 37, generator=generator)


def _measured(images: Tensor, others: Tensor, batch_size: int) -> float:
    distance = PerceptualDistance(_Distance())
    for pair in zip(images.split(batch_size), others.split(batch_size), strict=True):
        distance.update(*pair)
    return float(distance.compute().lpips)


@pytest.mark.parametrize("channels", [1, 3])
def test_is_the_mean_over_images_for_any_batch_size(channels: int) -> None:
    images, others = _pairs(channels)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).view(3, 1, 1) if channels == 3 else 1 / 3
    expected = float((weights * (images - others).double().square()).mean())
    for batch_size in (1, 3, 7):
        assert _measured(images, others, batch_size) == pytest.approx(expected, rel=1e-6)


def test_refuses_what_the_network_does_not_take() -> None:
    distance = PerceptualDistance(_Distance())
    with pytest.raises(DataError, match="C 1 or 3"):
        distance.update(torch.zeros(2, 5, 31, 31), torch.zeros(2, 5, 31, 31))
    with pytest.raises(DataError, match="at least 31x31; received 30x31"):
        distance.update(torch.zeros(2, 3, 30, 31), torch.zeros(2, 3, 30, 31))
    distance.update(torch.zeros(0, 3, 31, 31), torch.zeros(0, 3, 31, 31))
    with pytest.raises(DataError, match="at least one image"):
        distance.compute()


def _measured_on_one_of_two_processes() -> float:
    images, others = _pairs()
    share = (slice(0, 2), slice(2, 7))[torch.distributed.get_rank()]
    return _measured(images[share], others[share], 3)


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _measured(*_pairs(), 7)
    assert run_in_processes(_measured_on_one_of_two_processes, 2) == pytest.approx([expected] * 2, rel=1e-12)
