"""The transformer prior: nothing leaks from the future, and the cached step is the forward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hvq.errors import ConfigurationError, DataError
from hvq.priors import Condition, TransformerPrior

GRID = (3, 5)
COARSER = {"top": 7, "middle": 11}
CODEBOOK_SIZE = 13
NUM_CLASSES = 3
BATCH = 2


def make_prior(level: str, dtype: torch.dtype = torch.float64) -> TransformerPrior:
    """A prior of the top, middle or bottom level, with weights large enough that everything matters."""
    names = list(COARSER)[: {"top": 0, "middle": 1, "bottom": 2}[level]]
    torch.manual_seed(len(names))
    prior = TransformerPrior(
        codebook_size=CODEBOOK_SIZE,
        coarser={name: COARSER[name] for name in names},
        num_classes=NUM_CLASSES,
        width=12,
        layers=2,
        heads=3,
    )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return prior.to(dtype).eval()


def make_condition(prior: TransformerPrior) -> Condition:
    grids = {"top": (2, 3), "middle": (3, 5)}
    generator = torch.Generator().manual_seed(0)
    codes = {
        name: torch.randint(size, (BATCH, *grids[name]), generator=generator)
        for name, size in prior.condition.coarser.items()
    }
    return Condition(codes=codes, labels=torch.tensor([2, -1]))


def some_codes() -> Tensor:
    return torch.randint(CODEBOOK_SIZE, (BATCH, *GRID), generator=torch.Generator().manual_seed(1))


levels = pytest.mark.parametrize("level", ["top", "middle", "bottom"])


@levels
def test_a_changed_code_changes_later_logits_only(level: str) -> None:
    prior, codes = make_prior(level), some_codes()
    condition = make_condition(prior)
    before = prior(codes, condition).flatten(1, 2)
    for position in range(codes[0].numel()):
        changed = codes.clone().flatten(1)
        changed[:, position] = (changed[:, position] + 1) % CODEBOOK_SIZE
        after = prior(changed.view_as(codes), condition).flatten(1, 2)
        assert torch.equal(after[:, : position + 1], before[:, : position + 1])
        if position + 1 < codes[0].numel():
            assert not torch.equal(after[:, position + 1], before[:, position + 1])


@levels
def test_no_gradient_reaches_a_later_code(level: str) -> None:
    prior, codes = make_prior(level), some_codes()
    condition = make_condition(prior)
    embedded: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    prior.embedding.register_forward_hook(keep)
    for position in range(codes[0].numel()):
        embedded.clear()
        prior(codes, condition).flatten(1, 2)[:, position].square().sum().backward()
        gradient = embedded[0].grad
        assert gradient is not None
        # Row t of the embedding is that of code t - 1.
        assert torch.count_nonzero(gradient[:, position + 1 :]) == 0
        assert torch.count_nonzero(gradient[:, : position + 1].abs().sum(-1)) == BATCH * (position + 1)


@levels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_cached_steps_are_the_forward_at_every_position(level: str, dtype: torch.dtype, tolerance: float) -> None:
    prior, codes = make_prior(level, dtype), some_codes()
    condition = make_condition(prior)
    with torch.no_grad():
        expected = prior(codes, condition).flatten(1, 2)
        cache, previous = prior.make_cache(condition, BATCH, GRID), None
        for position in range(codes[0].numel()):
            logits, cache = prior.step(previous, cache)
            assert (logits - expected[:, position]).abs().max() <= tolerance * expected.abs().max().clamp(min=1)
            previous = codes.flatten(1)[:, position]


@levels
def test_the_class_and_every_coarser_level_matter(level: str) -> None:
    prior, codes = make_prior(level), some_codes()
    condition = make_condition(prior)
    before = prior(codes, condition)
    assert not torch.allclose(prior(codes, Condition(condition.codes, torch.tensor([1, 0]))), before)
    for name, values in condition.codes.items():
        others = {**condition.codes, name: (values + 1) % COARSER[name]}
        assert not torch.allclose(prior(codes, Condition(others, condition.labels)), before)


def test_nothing_is_kept_on_the_module() -> None:
    prior = make_prior("bottom")
    condition, before = make_condition(prior), copy.deepcopy(prior.__dict__)
    cache = prior.make_cache(condition, BATCH, GRID)
    prior.step(None, cache)
    assert prior.__dict__.keys() == before.keys()
    assert not list(prior.buffers())


def test_a_cache_that_is_full_says_so() -> None:
    prior = make_prior("top")
    cache = prior.make_cache(make_condition(prior), BATCH, (1, 2))
    first = torch.zeros(BATCH, dtype=torch.int64)
    _, cache = prior.step(None, cache)
    _, cache = prior.step(first, cache)
    with pytest.raises(ValueError, match="2 positions"):
        prior.step(first, cache)
    with pytest.raises(ValueError, match="previous"):
        prior.step(first, prior.make_cache(make_condition(prior), BATCH, (1, 2)))


def test_bad_input_is_named() -> None:
    prior = make_prior("middle")
    condition = make_condition(prior)
    with pytest.raises(DataError, match=r"0 \.\. 12; received 0 \.\. 13"):
        prior(torch.tensor([[[0, 13]]]).expand(BATCH, 1, 2), condition)
    with pytest.raises(DataError, match=r"0 \.\. 2.*received -1 \.\. 3"):
        prior(some_codes(), Condition(condition.codes, torch.tensor([3, -1])))
    with pytest.raises(ValueError, match="missing top"):
        prior(some_codes(), Condition(labels=condition.labels))
    with pytest.raises(ConfigurationError, match="multiple of heads; received 10 and 3"):
        TransformerPrior(codebook_size=5, width=10, heads=3)


def test_positions_tell_every_place_apart() -> None:
    prior = make_prior("top")
    with torch.no_grad():
        inputs = prior.make_cache(Condition(), 1, (7, 11)).inputs[0]
    distances = torch.cdist(inputs, inputs) + torch.eye(len(inputs)) * 1e9
    assert distances.min() > 1e-3


def test_dense_features_and_a_vector_are_taken_in_where_the_prior_was_built_for_them() -> None:
    torch.manual_seed(0)
    prior = TransformerPrior(codebook_size=5, width=8, layers=1, heads=2, feature_channels=3, vector_size=7).eval()
    codes = torch.zeros(BATCH, *GRID, dtype=torch.int64)
    features, vector = torch.randn(BATCH, 3, 2, 2), torch.randn(BATCH, 7)
    before = prior(codes, Condition(features=features, vector=vector))
    assert not torch.allclose(prior(codes, Condition(features=-features, vector=vector)), before)
    assert not torch.allclose(prior(codes, Condition(features=features, vector=-vector)), before)
    with pytest.raises(DataError, match="a feature map"):
        prior(codes, Condition(vector=vector))
    with pytest.raises(DataError, match="a vector"):
        prior(codes, Condition(features=features))
