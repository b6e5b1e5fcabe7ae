from __future__ import annotations

import pytest
import torch

from hvq.priors import Condition
from hvq.priors.transformer import grid_waves
from tests.priors.small import SIZES, codes_of, small_prior
from tests.priors.test_contract import stepped


@pytest.mark.parametrize(("spatial_dims", "grid"), [(1, (7,)), (3, (2, 1, 3))])
@torch.no_grad()
def test_grids_of_one_and_three_axes(spatial_dims: int, grid: tuple[int, ...]) -> None:
    prior = small_prior("middle", spatial_dims=spatial_dims, feature_channels=2).double()
    coarse = codes_of("top", 2, tuple(max(1, n // 2) for n in grid))
    condition = Condition({"top": coarse}, torch.tensor([0, -1]), torch.randn(2, 2, *grid).double())
    codes = codes_of("middle", 2, grid)
    logits = prior(codes, condition)
    assert logits.shape == (2, *grid, SIZES["middle"])
    assert torch.allclose(stepped(prior, codes, condition), logits.flatten(1, -2), atol=1e-10)


# --- positions ---


@pytest.mark.parametrize("grid", [(1, 1), (49, 3), (7, 98), (5,), (2, 3, 5)])
def test_waves_tell_all_positions_of_any_grid_apart(grid: tuple[int, ...]) -> None:
    waves = grid_waves(grid, 26, torch.zeros((), dtype=torch.float64))
    assert waves.shape == (torch.Size(grid).numel(), 26)
    assert waves.dtype == torch.float64
    assert float(waves.abs().max()) <= 1.0
    distances = torch.cdist(waves, waves) + 10 * torch.eye(len(waves), dtype=torch.float64)
    assert float(distances.min()) > 1e-3


def test_waves_of_a_position_do_not_hang_on_the_size_of_the_grid() -> None:
    like = torch.zeros(())
    small, large = grid_waves((3, 5), 16, like).view(3, 5, 16), grid_waves((7, 11), 16, like).view(7, 11, 16)
    assert torch.equal(large[:3, :5], small)
