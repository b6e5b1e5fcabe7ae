"""What every kind of prior holds to, at every level."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import ConfigurationError, DataError, HVQError
from hvq.priors import Condition, Prior
from hvq.priors.embedding import CodeEmbedding
from hvq.priors.taps import CodeTaps
from tests.priors.backends import native, step_backend
from tests.priors.small import GRIDS, KINDS, LEVELS, SIZES, codes_of, condition_of, small_prior

every_level = pytest.mark.parametrize("level", LEVELS)
every_kind = pytest.mark.parametrize("kind", KINDS)
# float64 steps run in PyTorch, float32 ones in the compiled kernels where there are any.
both_backends = pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
convolutional = pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("transformer")])


def stepped(prior: Prior, codes: Tensor, condition: Condition) -> Tensor:
    """Logits `[B, T·G, K]` by the cache, given the codes that forward is given."""
    several = prior.codes_per_position > 1
    cache = prior.make_cache(condition, len(codes), codes.shape[1:-1] if several else codes.shape[1:])
    logits = []
    for previous in [None, *codes.flatten(1)[:, :-1].unbind(dim=1)]:
        of_position, cache = prior.step(previous, cache)
        logits.append(of_position)
    return torch.stack(logits, dim=1)


def several_prior(kind: str, level: str = "middle") -> tuple[Prior, Tensor]:
    """A prior of three codes per position, and codes."""
    prior = small_prior(level, kind, codes_per_position=3).double()
    return prior, torch.randint(SIZES[level], (2, *GRIDS[level], 3))


# --- no leak to earlier positions ---


@every_level
@every_kind
@torch.no_grad()
def test_a_changed_code_changes_later_positions_alone(kind: str, level: str) -> None:
    prior = small_prior(level, kind).double()
    codes, condition = codes_of(level, 2), condition_of(level, 2)
    before = prior(codes, condition).flatten(1, -2)
    for position in range(codes[0].numel()):
        changed = codes.clone()
        row = changed.view(2, -1)
        row[:, position] = (row[:, position] + 1) % SIZES[level]
        moved = (prior(changed, condition).flatten(1, -2) != before).any(dim=2).any(dim=0)
        assert not bool(moved[: position + 1].any())
        # A PixelCNN of few layers does not reach the end of the row above from the start of a row.
        assert kind.startswith("pixelcnn") or bool(moved[position + 1 : position + 2].all())


@pytest.mark.parametrize("kind", ["transformer", "pixelsnail", "pixelcnn"])
@torch.no_grad()
def test_no_code_is_out_of_sight(kind: str) -> None:
    prior, condition = small_prior("bottom", kind).double(), condition_of("bottom", 2)
    codes = codes_of("bottom", 2)
    before = prior(codes, condition)[:, -1, -1]
    for position in range(codes[0].numel() - 1):
        changed = codes.clone()
        changed.view(2, -1)[:, position] = (changed.view(2, -1)[:, position] + 1) % SIZES["bottom"]
        assert not torch.equal(prior(changed, condition)[:, -1, -1], before), position


def _code_tables(prior: Prior) -> list[Tensor]:
    """Those of the level's own codes, each with the row of code k at k, for every tap."""
    return [
        module.table if isinstance(module, CodeTaps) else module.weight
        for name, module in prior.named_modules()
        if isinstance(module, CodeTaps | CodeEmbedding) and not name.startswith("condition.")
    ]


@every_level
@pytest.mark.parametrize("kind", ["transformer", "pixelsnail", "pixelsnail-plain", "pixelcnn"])
def test_gradients_come_from_earlier_codes_alone(kind: str, level: str) -> None:
    # Each code occurs once, so the gradient of its rows tells whether its position was seen.
    prior = small_prior(level, kind, codebook_size=29).double()
    length = torch.Size(GRIDS[level]).numel()
    codes = torch.randperm(29)[:length].view(1, *GRIDS[level])
    logits = prior(codes, condition_of(level, 1)).flatten(1, -2)
    tables = _code_tables(prior)
    for position in range(length):
        gradients = torch.autograd.grad(
            logits[:, position].square().sum(), tables, retain_graph=True, allow_unused=True
        )
        reached = torch.zeros(29, dtype=torch.bool)
        for gradient in (found for found in gradients if found is not None):
            reached |= (gradient != 0).flatten(0, -2).any(dim=-1).view(-1, gradient.shape[-2])[:, :29].any(dim=0)
        allowed = codes.flatten()[:position].tolist()
        assert set(reached.nonzero().flatten().tolist()) <= set(allowed)
        assert position == 0 or kind == "pixelcnn" or bool(reached[allowed[-1]])


@every_level
@every_kind
@torch.no_grad()
def test_every_coarser_code_and_the_class_are_seen_from_the_first_position_on(kind: str, level: str) -> None:
    prior = small_prior(level, kind).double()
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
@every_kind
@pytest.mark.parametrize(
    ("precision", "backend"),
    [(torch.float64, "torch"), (torch.float32, "torch"), pytest.param(torch.float32, "this CPU", marks=native)],
)
@torch.no_grad()
def test_cached_steps_give_the_logits_of_forward(level: str, kind: str, precision: torch.dtype, backend: str) -> None:
    prior = small_prior(level, kind).to(precision)
    codes, condition = codes_of(level, 3), condition_of(level, 3)
    expected = prior(codes, condition).flatten(1, -2)
    with step_backend(backend):
        found = stepped(prior, codes, condition)
    tolerance = 1e-10 if precision == torch.float64 else 1e-5 * float(expected.abs().max())
    assert float((found - expected).abs().max()) <= tolerance
    assert float(expected.std(dim=2).median()) > 0.1, "logits are far from uniform"


@every_kind
@torch.no_grad()
def test_weights_in_half_precision_give_logits_of_float32_near_to_those_of_forward(kind: str) -> None:
    exact = small_prior("middle", kind)
    codes, condition = codes_of("middle", 3), condition_of("middle", 3)
    expected = exact(codes, condition).flatten(1, -2)
    found = stepped(exact.to(torch.bfloat16), codes, condition)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().mean()) < 0.1 * float(expected.std())


@every_kind
@both_backends
@settings(max_examples=12)
@given(height=st.integers(1, 7), width=st.integers(1, 7), batch=st.integers(1, 3), seed=st.integers(0, 99))
@torch.no_grad()
def test_cache_and_forward_agree_on_any_grid(
    kind: str, precision: torch.dtype, tolerance: float, height: int, width: int, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    prior = small_prior("middle", kind).to(precision)
    condition = Condition({"top": codes_of("top", batch, (2, 3))}, torch.randint(-1, 3, (batch,)))
    codes = codes_of("middle", batch, (height, width))
    expected = prior(codes, condition).flatten(1, -2)
    assert float((stepped(prior, codes, condition) - expected).abs().max()) <= tolerance * float(expected.abs().max())


@every_kind
@torch.no_grad()
def test_autocast_around_sampling_changes_nothing(kind: str) -> None:
    prior = small_prior("middle", kind, codes_per_position=3)
    codes, condition = torch.randint(SIZES["middle"], (2, *GRIDS["middle"], 3)), condition_of("middle", 2)
    expected = stepped(prior, codes, condition)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stepped(prior, codes, condition), expected)


@every_kind
@torch.no_grad()
def test_a_full_cache_takes_no_further_step(kind: str) -> None:
    prior = small_prior(kind=kind)
    cache = prior.make_cache(condition_of("top", 2), 2, (1, 2))
    _, cache = prior.step(None, cache)
    _, cache = prior.step(torch.tensor([0, 1]), cache)
    with pytest.raises(ValueError, match="2 codes, all of which are drawn"):
        prior.step(torch.tensor([0, 1]), cache)


@every_kind
@torch.no_grad()
def test_the_code_before_is_asked_for_after_the_first_and_not_at_it(kind: str) -> None:
    prior = small_prior(kind=kind)
    cache = prior.make_cache(condition_of("top", 2), 2, (1, 2))
    with pytest.raises(ValueError, match="previous must be None at the first"):
        prior.step(torch.tensor([0, 1]), cache)
    _, cache = prior.step(None, cache)
    with pytest.raises(ValueError, match="previous must be None at the first"):
        prior.step(None, cache)


@every_kind
@torch.no_grad()
def test_nothing_is_kept_on_the_module_so_that_caches_do_not_meet(kind: str) -> None:
    prior = small_prior("middle", kind).double()
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


def _storages(value: Any) -> set[int]:
    """Addresses of all tensors within a state."""
    if isinstance(value, Tensor):
        return {value.data_ptr()}
    if dataclasses.is_dataclass(value):
        return _storages([getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "added"])
    return set().union(*(_storages(part) for part in value)) if isinstance(value, list) else set()


@every_kind
@torch.no_grad()
def test_the_condition_is_encoded_once_and_the_cache_allocated_once(kind: str) -> None:
    prior = small_prior("bottom", kind)
    calls: list[str] = []
    prior.condition.register_forward_hook(lambda *_: calls.append("condition"))
    cache = prior.make_cache(condition_of("bottom", 2), 2, GRIDS["bottom"])
    storages = _storages(cache.state)
    for position in range(24):
        _, cache = prior.step(torch.tensor([0, 1]) if position else None, cache)
    assert calls == ["condition"]
    assert _storages(cache.state) == storages
    assert cache.position == 24


# --- several codes per position ---


@every_kind
@both_backends
@torch.no_grad()
def test_several_codes_of_a_position_are_predicted_in_order(
    kind: str, precision: torch.dtype, tolerance: float
) -> None:
    prior, codes = several_prior(kind)
    prior, condition = prior.to(precision), condition_of("middle", 2)
    logits = prior(codes, condition)
    assert logits.shape == (2, *GRIDS["middle"], 3, SIZES["middle"])
    apart = (stepped(prior, codes, condition) - logits.flatten(1, -2)).abs().max()
    assert float(apart) <= tolerance * float(logits.abs().max())
    before = logits.flatten(1, -2)
    for i in range(codes[0].numel()):
        changed = codes.clone()
        changed.view(2, -1)[:, i] = (changed.view(2, -1)[:, i] + 1) % SIZES["middle"]
        moved = (prior(changed, condition).flatten(1, -2) != before).any(dim=2).any(dim=0)
        assert not bool(moved[: i + 1].any())
        assert kind.startswith("pixelcnn") or bool(moved[i + 1 : i + 2].all())


@every_kind
def test_codes_without_their_axis_are_refused_where_there_are_several(kind: str) -> None:
    prior, codes = several_prior(kind)
    with pytest.raises(DataError, match="3 per position"):
        prior(codes[..., :2], condition_of("middle", 2))


# --- forward ---


@every_kind
def test_training_drops_out_and_evaluation_does_not(kind: str) -> None:
    prior = small_prior(kind=kind, dropout=0.5)
    codes, condition = codes_of("top", 2), condition_of("top", 2)
    assert torch.equal(prior(codes, condition), prior(codes, condition))
    prior.train()
    assert not torch.equal(prior(codes, condition), prior(codes, condition))


@every_kind
def test_recomputed_blocks_give_the_same_gradients(kind: str) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(3)
        prior = small_prior("middle", kind, recompute=recompute, dropout=0.3).double().train()
        torch.manual_seed(5)
        prior(codes_of("middle", 2), condition_of("middle", 2)).square().sum().backward()
        gradients.append([parameter.grad for parameter in prior.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*gradients, strict=True))


@every_kind
@pytest.mark.parametrize("codes_per_position", [1, 3])
def test_every_parameter_learns(kind: str, codes_per_position: int) -> None:
    prior = small_prior("bottom", kind, feature_channels=2, vector_size=3, codes_per_position=codes_per_position)
    condition = condition_of("bottom", 5)
    vectors = torch.randn(5, 3)
    vectors[2] = torch.nan
    full = Condition(condition.codes, torch.arange(5) % 4 - 1, torch.randn(5, 2, 1, 1), vectors)
    several = (codes_per_position,) if codes_per_position > 1 else ()
    prior(torch.randint(5, (5, *GRIDS["bottom"], *several)), full).square().sum().backward()
    still = [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert still == []


@every_kind
def test_a_fresh_prior_is_nearly_uniform(kind: str) -> None:
    make, arguments, _ = KINDS[kind]
    prior = make(**{"codebook_size": 67, **arguments, "width": 48})
    logits = prior(torch.randint(67, (2, 5, 7)), Condition()).detach()
    entropy = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    assert float(entropy.min()) > 0.99 * float(torch.tensor(67.0).log())


@every_kind
def test_integers_of_any_width_are_taken(kind: str) -> None:
    prior = small_prior("middle", kind)
    codes, condition = codes_of("middle", 2), condition_of("middle", 2)
    narrow = Condition({name: code.to(torch.int16) for name, code in condition.codes.items()}, condition.labels)
    assert torch.equal(prior(codes.to(torch.uint8), narrow), prior(codes, condition))


@every_kind
@pytest.mark.parametrize("bad", [-1, 7])
def test_codes_out_of_range_are_refused(kind: str, bad: int) -> None:
    codes = codes_of("top", 2)
    codes[1, 0, 2] = bad
    with pytest.raises(DataError, match=r"codes must be in 0 \.\. 6"):
        small_prior(kind=kind)(codes, condition_of("top", 2))


@pytest.mark.parametrize(
    ("kind", "arguments", "fault"),
    [
        ("transformer", {"width": 10, "heads": 3}, "multiple of twice heads; received 10 and 3"),
        ("transformer", {"heads": 3, "key_value_heads": 2}, "multiple of key_value_heads; received 3 and 2"),
        ("transformer", {"window": 0}, "window must be at least 1, or None; received 0"),
        ("transformer", {"spatial_dims": 4}, "spatial_dims"),
        ("pixelsnail", {"width": 10, "heads": 3}, "multiple of twice heads; received 10 and 3"),
        ("pixelsnail", {"kernel": 4}, "odd number of at least 3; received 4"),
        ("pixelcnn", {"kernel": 1}, "odd number of at least 3; received 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kind: str, arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        small_prior(kind=kind, **arguments)


@every_kind
def test_an_argument_that_there_is_not_is_refused(kind: str) -> None:
    with pytest.raises(TypeError, match="codebook"):
        small_prior(kind=kind, codebooks=3)


@convolutional
def test_convolutional_kinds_refuse_grids_of_other_than_two_axes(kind: str) -> None:
    prior = small_prior(kind=kind)
    with pytest.raises(ConfigurationError, match="grids of two axes; received 1"):
        prior(torch.zeros(1, 7, dtype=torch.int64), condition_of("top", 1))
    with pytest.raises(ConfigurationError, match="grids of two axes; received 3"):
        prior.make_cache(condition_of("top", 1), 1, (2, 3, 5))


@every_kind
def test_coarser_levels_must_be_exactly_those_that_it_was_built_for(kind: str) -> None:
    prior = small_prior("middle", kind)
    for codes, fault in [({}, "missing top"), ({"top": codes_of("top", 1), "side": codes_of("top", 1)}, "side")]:
        with pytest.raises(HVQError, match=fault):
            prior(codes_of("middle", 1), Condition(codes))
