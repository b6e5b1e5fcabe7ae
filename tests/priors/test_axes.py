"""Priors of grids of one axis and three: what those of two axes do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hvq.errors import ConfigurationError, DataError
from hvq.priors import Condition, Prior, SamplingOptions, sample_hierarchy, sample_level
from hvq.priors.build import describe_prior
from tests.priors.backends import native, step_backend
from tests.priors.small import KINDS, NUM_CLASSES, SIZES, small_prior
from tests.priors.test_contract import stepped

# Of the level, and of the coarser one that it is told.
GRIDS = {1: ((13,), (7,)), 3: ((2, 3, 5), (1, 3, 2))}
CASES = [
    (kind, spatial_dims) for kind in KINDS for spatial_dims in GRIDS if spatial_dims == 1 or kind.startswith("trans")
]
cases = pytest.mark.parametrize(("kind", "spatial_dims"), CASES)


def prior_of(kind: str, spatial_dims: int, **arguments: Any) -> Prior:
    prior: Prior = small_prior(
        "middle", kind, spatial_dims=spatial_dims, feature_channels=2, vector_size=3, **arguments
    )
    return prior.double()


def codes_of(spatial_dims: int, batch: int, *several: int) -> Tensor:
    return torch.randint(SIZES["middle"], (batch, *GRIDS[spatial_dims][0], *several))


def condition_of(spatial_dims: int, batch: int, *several: int) -> Condition:
    fine, coarse = GRIDS[spatial_dims]
    return Condition(
        codes={"top": torch.randint(SIZES["top"], (batch, *coarse, *several))},
        labels=torch.randint(-1, NUM_CLASSES, (batch,)),
        features=torch.randn(batch, 2, *fine, dtype=torch.float64),
        vector=torch.randn(batch, 3, dtype=torch.float64),
    )


@cases
@pytest.mark.parametrize("several", [(), (3,)])
@torch.no_grad()
def test_cached_steps_give_the_logits_of_forward(kind: str, spatial_dims: int, several: tuple[int, ...]) -> None:
    counts = {"codes_per_position": 3, "coarser_codes_per_position": {"top": 3}} if several else {}
    prior = prior_of(kind, spatial_dims, **counts)
    codes, condition = codes_of(spatial_dims, 2, *several), condition_of(spatial_dims, 2, *several)
    logits = prior(codes, condition)
    assert logits.shape == (*codes.shape, SIZES["middle"])
    found = stepped(prior, codes, condition)
    assert float((found - logits.flatten(1, -2)).abs().max()) <= 1e-10
    assert float(logits.std(dim=-1).median()) > 0.1


@cases
@pytest.mark.parametrize("backend", ["torch", pytest.param("this CPU", marks=native)])
@torch.no_grad()
def test_steps_in_float32(kind: str, spatial_dims: int, backend: str) -> None:
    prior = small_prior("middle", kind, spatial_dims=spatial_dims)
    codes = codes_of(spatial_dims, 2)
    condition = Condition(condition_of(spatial_dims, 2).codes, torch.tensor([0, -1]))
    expected = prior(codes, condition).flatten(1, -2)
    with step_backend(backend):
        found = stepped(prior, codes, condition)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@cases
@torch.no_grad()
def test_a_changed_code_changes_later_positions_alone(kind: str, spatial_dims: int) -> None:
    prior, condition, codes = prior_of(kind, spatial_dims), condition_of(spatial_dims, 1), codes_of(spatial_dims, 1)
    before = prior(codes, condition).flatten(1, -2)
    for position in range(codes.numel() - 1):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % SIZES["middle"]
        moved = (prior(changed, condition).flatten(1, -2) != before).any(dim=2)[0]
        assert not bool(moved[: position + 1].any())
        assert bool(moved[position + 1])


@cases
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_codes_drawn_with_a_cache_are_those_drawn_without(kind: str, spatial_dims: int, guidance: float) -> None:
    prior, condition = prior_of(kind, spatial_dims), condition_of(spatial_dims, 3)
    options = SamplingOptions(temperature=0.0, guidance=guidance)
    grid, _ = GRIDS[spatial_dims]
    assert condition.labels is not None
    assert condition.vector is not None
    # One sample is told neither class nor vector, and one the vector alone.
    condition.labels[:2], condition.vector[0] = -1, torch.nan
    told = condition.told
    assert told is not None
    found = sample_level(prior, condition, grid, level="middle", samples=[0, 1, 2], options=options)
    hidden = Condition(condition.codes, None, condition.features, None)
    codes = torch.zeros(3, *grid, dtype=torch.int64)
    for position in range(codes[0].numel()):
        given, without = (prior(codes, some).flatten(1, -2)[:, position] for some in (condition, hidden))
        moved = torch.where(told[:, None], without + guidance * (given - without), given)
        codes.view(3, -1)[:, position] = moved.argmax(dim=1)
    assert torch.equal(found, codes)


@cases
def test_a_hierarchy_is_sampled_and_a_sample_hangs_on_its_number_and_class(kind: str, spatial_dims: int) -> None:
    priors = {level: small_prior(level, kind, spatial_dims=spatial_dims).double() for level in ("top", "middle")}
    fine, coarse = GRIDS[spatial_dims]
    grids = {"top": coarse, "middle": fine}
    several = sample_hierarchy(priors, grids, samples=[3, 5, 7], labels=[0, -1, 2], chunk_size=2)
    assert {name: tuple(codes.shape) for name, codes in several.items()} == {"top": (3, *coarse), "middle": (3, *fine)}
    alone = sample_hierarchy(priors, grids, samples=[7], labels=[2], chunk_size=2)
    assert all(torch.equal(codes[0], several[name][2]) for name, codes in alone.items())
    kept = torch.zeros(1, *fine, dtype=torch.bool)
    kept.view(-1)[::2] = True
    given = {"top": alone["top"]}
    partly = sample_hierarchy(
        priors, grids, samples=[11], labels=[2], given=given, fixed={"middle": (alone["middle"], kept)}, chunk_size=2
    )
    assert torch.equal(partly["middle"][kept], alone["middle"][kept])


@cases
@torch.no_grad()
def test_a_folder_gives_the_same_again(tmp_path: Path, kind: str, spatial_dims: int) -> None:
    prior = prior_of(kind, spatial_dims).float()
    grid = GRIDS[spatial_dims][0]
    about = {"level": "middle", "image_size": tuple(2 * n for n in grid), "encoder_hash": ""}
    prior.save_pretrained(tmp_path / "prior", grid=grid, **about)
    loaded = Prior.from_pretrained(tmp_path / "prior")
    codes, condition = codes_of(spatial_dims, 2), condition_of(spatial_dims, 2)
    told = Condition(
        condition.codes,
        condition.labels,
        *(part.float() for part in (condition.features, condition.vector) if part is not None),
    )
    assert loaded.spatial_dims == spatial_dims
    assert describe_prior(loaded) == describe_prior(prior)
    assert torch.equal(loaded(codes, told), prior(codes, told))
    with pytest.raises(ConfigurationError, match=f"grid must have one length for each of the {spatial_dims} axes"):
        prior.save_pretrained(tmp_path / "other", grid=(4, 4), **about)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("transformer")])
def test_a_grid_of_one_axis_is_a_single_row(kind: str) -> None:
    """Two routes: the same weights, given the codes as a row of a grid of two axes."""
    row = prior_of(kind, 1)
    grid = small_prior("middle", kind, feature_channels=2, vector_size=3).double()
    grid.load_state_dict(row.state_dict())
    codes, condition = codes_of(1, 2), condition_of(1, 2)
    assert condition.features is not None
    lifted = Condition(
        {name: some[:, None] for name, some in condition.codes.items()},
        condition.labels,
        condition.features[:, :, None],
        condition.vector,
    )
    assert torch.equal(row(codes, condition), grid(codes[:, None], lifted)[:, 0])


@pytest.mark.parametrize("kind", ["pixelsnail", "pixelcnn"])
def test_convolutional_kinds_refuse_three_axes(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="one axis or two; received spatial_dims 3: take kind transformer"):
        small_prior("top", kind, spatial_dims=3)


@pytest.mark.parametrize("spatial_dims", GRIDS)
def test_a_transformer_refuses_grids_of_another_number_of_axes(spatial_dims: int) -> None:
    prior = small_prior("top", spatial_dims=spatial_dims)
    with pytest.raises(DataError, match=f"grids of {spatial_dims} axes; received 2: make it with spatial_dims=2"):
        prior(torch.zeros(1, 3, 5, dtype=torch.int64), Condition())
    with pytest.raises(DataError, match=f"grids of {spatial_dims} axes; received 2"):
        prior.make_cache(Condition(), 1, (3, 5))
