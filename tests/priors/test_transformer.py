from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import ConfigurationError, DataError, HVQError
from hvq.priors import Condition, TransformerPrior
from hvq.priors.transformer import grid_waves
from tests.priors.small import GRIDS, LEVELS, SIZES, codes_of, condition_of, small_prior

every_level = pytest.mark.parametrize("level", LEVELS)


def stepped(prior: TransformerPrior, codes: Tensor, condition: Condition) -> Tensor:
    """Logits `[B, T, K]` by the cache, given the codes that forward is given."""
    cache = prior.make_cache(condition, len(codes), codes.shape[1:])
    logits = []
    for previous in [None, *codes.flatten(1)[:, :-1].unbind(dim=1)]:
        of_position, cache = prior.step(previous, cache)
        logits.append(of_position)
    return torch.stack(logits, dim=1)


# --- no leak to earlier positions ---


@every_level
@torch.no_grad()
def test_a_changed_code_changes_later_positions_alone(level: str) -> None:
    prior = small_prior(level).double()
    codes, condition = codes_of(level, 2), condition_of(level, 2)
    before = prior(codes, condition).flatten(1, -2)
    for position in range(codes[0].numel()):
        changed = codes.clone()
        row = changed.view(2, -1)
        row[:, position] = (row[:, position] + 1) % SIZES[level]
        after = prior(changed, condition).flatten(1, -2)
        moved = (after != before).any(dim=2).all(dim=0)
        assert moved.tolist() == [t > position for t in range(len(moved))]


@every_level
def test_gradients_come_from_earlier_codes_alone(level: str) -> None:
    prior = small_prior(level).double()
    embedded: list[Tensor] = []
    prior.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits = prior(codes_of(level, 2), condition_of(level, 2)).flatten(1, -2)
    for position in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, position].square().sum(), embedded[0], retain_graph=True)
        # Token t holds the code of position t - 1.
        reached = (gradient != 0).any(dim=2).all(dim=0)
        assert reached.tolist() == [t <= position for t in range(len(reached))]


@every_level
@torch.no_grad()
def test_every_coarser_code_and_the_class_are_seen_from_the_first_position_on(level: str) -> None:
    prior = small_prior(level).double()
    codes, condition = codes_of(level, 1), condition_of(level, 1)
    before = prior(codes, condition)[0, 0, 0]
    for name in condition.codes:
        changed = {**condition.codes, name: condition.codes[name].clone()}
        changed[name][0, 0, 0] = (changed[name][0, 0, 0] + 1) % SIZES[name]
        assert not torch.equal(prior(codes, Condition(changed, condition.labels))[0, 0, 0], before)
    for label in {0, 1, 2} - set(condition.labels.tolist()):
        assert not torch.equal(prior(codes, Condition(condition.codes, torch.tensor([label])))[0, 0, 0], before)


# --- the cache ---


@every_level
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@torch.no_grad()
def test_cached_steps_give_the_logits_of_forward(level: str, kind: torch.dtype) -> None:
    prior = small_prior(level).to(kind)
    codes, condition = codes_of(level, 3), condition_of(level, 3)
    expected = prior(codes, condition).flatten(1, -2)
    found = stepped(prior, codes, condition)
    tolerance = 1e-10 if kind == torch.float64 else 1e-5 * float(expected.abs().max())
    assert float((found - expected).abs().max()) <= tolerance
    assert float(expected.std(dim=2).min()) > 0.1, "logits are far from uniform"


@given(height=st.integers(1, 7), width=st.integers(1, 7), batch=st.integers(1, 3), seed=st.integers(0, 99))
@torch.no_grad()
def test_cache_and_forward_agree_on_any_grid(height: int, width: int, batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    prior = small_prior("middle").double()
    condition = Condition({"top": codes_of("top", batch, (2, 3))}, torch.randint(-1, 3, (batch,)))
    codes = codes_of("middle", batch, (height, width))
    assert torch.allclose(stepped(prior, codes, condition), prior(codes, condition).flatten(1, -2), atol=1e-10)


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


@torch.no_grad()
def test_a_full_cache_takes_no_further_step() -> None:
    prior = small_prior()
    cache = prior.make_cache(condition_of("top", 2), 2, (1, 2))
    _, cache = prior.step(None, cache)
    _, cache = prior.step(torch.tensor([0, 1]), cache)
    with pytest.raises(ValueError, match="2 positions, all of which are filled"):
        prior.step(torch.tensor([0, 1]), cache)


@torch.no_grad()
def test_the_code_before_is_asked_for_after_the_first_position_and_not_at_it() -> None:
    prior = small_prior()
    cache = prior.make_cache(condition_of("top", 2), 2, (1, 2))
    with pytest.raises(ValueError, match="previous must be None at the first"):
        prior.step(torch.tensor([0, 1]), cache)
    _, cache = prior.step(None, cache)
    with pytest.raises(ValueError, match="previous must be None at the first"):
        prior.step(None, cache)


@torch.no_grad()
def test_nothing_is_kept_on_the_module_so_that_caches_do_not_meet() -> None:
    prior = small_prior("middle").double()
    codes, conditions = [codes_of("middle", 2) for _ in range(2)], [condition_of("middle", 2) for _ in range(2)]
    attributes = {name: set(vars(module)) for name, module in prior.named_modules()}
    expected = [stepped(prior, *pair) for pair in zip(codes, conditions, strict=True)]
    caches = [prior.make_cache(condition, 2, GRIDS["middle"]) for condition in conditions]
    for position in range(6):
        for i in range(2):
            previous = codes[i].flatten(1)[:, position - 1] if position else None
            logits, caches[i] = prior.step(previous, caches[i])
            assert torch.equal(logits, expected[i][:, position])
    assert {name: set(vars(module)) for name, module in prior.named_modules()} == attributes


@torch.no_grad()
def test_the_condition_is_encoded_once_and_the_cache_allocated_once() -> None:
    prior = small_prior("bottom")
    calls: list[str] = []
    prior.condition.register_forward_hook(lambda *_: calls.append("condition"))
    cache = prior.make_cache(condition_of("bottom", 2), 2, GRIDS["bottom"])
    storage = cache.keys.data_ptr(), cache.values.data_ptr()
    for position in range(24):
        _, cache = prior.step(torch.tensor([0, 1]) if position else None, cache)
    assert calls == ["condition"]
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == storage
    assert cache.position == 24


# --- forward ---


def test_training_drops_out_and_evaluation_does_not() -> None:
    prior = small_prior(dropout=0.5)
    codes, condition = codes_of("top", 2), condition_of("top", 2)
    assert torch.equal(prior(codes, condition), prior(codes, condition))
    prior.train()
    assert not torch.equal(prior(codes, condition), prior(codes, condition))


def test_every_parameter_learns() -> None:
    prior = small_prior("bottom", feature_channels=2, vector_size=3)
    condition = condition_of("bottom", 5)
    full = Condition(condition.codes, torch.arange(5) % 4 - 1, torch.randn(5, 2, 1, 1), torch.randn(5, 3))
    prior(codes_of("bottom", 5), full).square().sum().backward()
    still = [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert still == []


def test_a_fresh_prior_is_nearly_uniform() -> None:
    prior = TransformerPrior(codebook_size=67, width=64, layers=3)
    logits = prior(torch.randint(67, (2, 5, 7)), Condition()).detach()
    entropy = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    assert float(entropy.min()) > 0.99 * float(torch.tensor(67.0).log())


def test_integers_of_any_width_are_taken() -> None:
    prior = small_prior("middle")
    codes, condition = codes_of("middle", 2), condition_of("middle", 2)
    narrow = Condition({name: code.to(torch.int16) for name, code in condition.codes.items()}, condition.labels)
    assert torch.equal(prior(codes.to(torch.uint8), narrow), prior(codes, condition))


@pytest.mark.parametrize("bad", [-1, 7])
def test_codes_out_of_range_are_refused(bad: int) -> None:
    codes = codes_of("top", 2)
    codes[1, 0, 2] = bad
    with pytest.raises(DataError, match=r"codes must be in 0 \.\. 6"):
        small_prior()(codes, condition_of("top", 2))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [({"width": 10, "heads": 3}, "multiple of heads; received 10 and 3"), ({"spatial_dims": 4}, "spatial_dims")],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        small_prior(**arguments)


def test_coarser_levels_must_be_exactly_those_that_it_was_built_for() -> None:
    prior = small_prior("middle")
    for codes, fault in [({}, "missing top"), ({"top": codes_of("top", 1), "side": codes_of("top", 1)}, "side")]:
        with pytest.raises(HVQError, match=fault):
            prior(codes_of("middle", 1), Condition(codes))


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
