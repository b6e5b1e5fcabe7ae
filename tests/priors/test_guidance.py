"""Classifier-free guidance, against two separate forwards by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import ConfigurationError
from hvq.priors import Condition, Prior, SamplingOptions, sample_hierarchy, sample_level
from hvq.priors.drawing import draw, gumbel_noise
from hvq.priors.guidance import guided_logits, num_classes, with_and_without_class
from tests.priors.small import GRIDS, KINDS, NUM_CLASSES, codes_of, condition_of, small_prior


def naive_guided(
    prior: Prior, condition: Condition, level: str, samples: list[int], seed: int, options: SamplingOptions
) -> Tensor:
    """Codes by two whole forwards for every code: one with the class, one without."""
    several, grid = prior.codes_per_position, GRIDS[level]
    codes = torch.zeros(len(samples), math.prod(grid), several, dtype=torch.int64)
    shape = (len(samples), *grid) if several == 1 else (len(samples), *grid, several)
    hidden = Condition(condition.codes, None, condition.features, None)
    for position in range(math.prod(grid) * several):
        with_class, without = (
            prior(codes.view(shape), told).reshape(len(samples), -1, prior.codebook_size)[:, position]
            for told in (condition, hidden)
        )
        logits = without + options.guidance * (with_class - without)
        noise = gumbel_noise(seed, samples, level, position, prior.codebook_size)
        codes.view(len(samples), -1)[:, position] = draw(logits, noise, options)
    return codes.view(shape)


@pytest.mark.parametrize(
    ("kind", "level", "guidance"),
    [*((kind, "middle", 2.5) for kind in KINDS), ("transformer", "top", 0.0), ("transformer", "bottom", 0.6)],
)
@torch.no_grad()
def test_guided_codes_are_those_of_two_forwards(kind: str, level: str, guidance: float) -> None:
    prior, options = small_prior(level, kind).double(), SamplingOptions(guidance=guidance, top_k=4)
    condition, samples = Condition(condition_of(level, 3).codes, torch.tensor([2, -1, 0])), [5, 0, 17]
    expected = naive_guided(prior, condition, level, samples, 3, options)
    found = sample_level(prior, condition, GRIDS[level], level=level, samples=samples, seed=3, options=options)
    assert torch.equal(found, expected)
    plain = sample_level(
        prior, condition, GRIDS[level], level=level, samples=samples, seed=3, options=SamplingOptions(top_k=4)
    )
    assert torch.equal(found[1], plain[1]), "without a class there is nothing to be guided by"


@torch.no_grad()
def test_several_codes_per_position_a_feature_map_and_a_vector() -> None:
    prior = small_prior("middle", codes_per_position=3, feature_channels=2, vector_size=5).double()
    condition = Condition(
        {"top": codes_of("top", 2)},
        torch.tensor([1, 0]),
        torch.randn(2, 2, 3, 5, dtype=torch.float64),
        torch.randn(2, 5, dtype=torch.float64),
    )
    options = SamplingOptions(guidance=1.7)
    found = sample_level(prior, condition, GRIDS["middle"], level="middle", samples=[3, 4], options=options)
    assert found.shape == (2, *GRIDS["middle"], 3)
    assert torch.equal(found, naive_guided(prior, condition, "middle", [3, 4], 0, options))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_vectors_guide_where_there_are_no_classes(kind: str) -> None:
    prior = small_prior("middle", kind, num_classes=0, vector_size=5).double()
    vectors = 3 * torch.randn(3, 5, dtype=torch.float64)
    vectors[1] = torch.nan
    condition = Condition({"top": codes_of("top", 3)}, vector=vectors)
    found = {}
    for guidance in (1.0, 7.0):
        options = SamplingOptions(guidance=guidance)
        found[guidance] = sample_level(
            prior, condition, GRIDS["middle"], level="middle", samples=[4, 5, 6], options=options
        )
        assert torch.equal(found[guidance], naive_guided(prior, condition, "middle", [4, 5, 6], 0, options))
    assert torch.equal(found[1.0][1], found[7.0][1]), "without a vector there is nothing to be guided by"
    assert not torch.equal(found[1.0], found[7.0])


@settings(max_examples=8)
@given(
    samples=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    chunk_size=st.sampled_from([1, 2, 3]),
    guidance=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_a_guided_sample_hangs_on_its_number_and_label_alone(
    samples: list[int], chunk_size: int, guidance: float
) -> None:
    torch.manual_seed(0)
    priors = {level: small_prior(level, layers=1).double() for level in ("top", "middle")}
    grids = dict.fromkeys(priors, (1, 3))
    options = {"middle": SamplingOptions(guidance=guidance), "top": SamplingOptions(guidance=2.0)}
    labels = [n % 4 - 1 for n in range(7)]
    whole = sample_hierarchy(priors, grids, samples=range(7), labels=labels, options=options, chunk_size=7)
    part = sample_hierarchy(
        priors, grids, samples=samples, labels=[labels[n] for n in samples], options=options, chunk_size=chunk_size
    )
    assert all(torch.equal(part[level], whole[level][samples]) for level in priors)


def test_guidance_of_one_runs_the_models_once() -> None:
    rows: list[int] = []
    prior = small_prior()
    make_cache = prior.make_cache

    def counted(condition: Condition, batch: int, grid: Any) -> Any:
        rows.append(batch)
        return make_cache(condition, batch, grid)

    prior.make_cache = counted
    for guidance in (1.0, 1.5):
        options = {"top": SamplingOptions(guidance=guidance)}
        sample_hierarchy({"top": prior}, {"top": (1, 2)}, samples=range(3), chunk_size=3, options=options)
    assert rows == [3, 6]


def test_logits_move_from_those_without_the_class_through_those_with_it() -> None:
    with_class, without = torch.randn(3, 5), torch.randn(3, 5)
    both, told = torch.cat([with_class, without]), torch.tensor([True, False, True])
    assert torch.equal(guided_logits(both, told, 0.0)[[0, 2]], without[[0, 2]])
    torch.testing.assert_close(guided_logits(both, told, 1.0), with_class)
    torch.testing.assert_close(guided_logits(both, told, 3.0)[0], 3 * with_class[0] - 2 * without[0])
    assert torch.equal(guided_logits(both, told, 3.0)[1], with_class[1])
    assert torch.equal(guided_logits(both, None, 3.0), with_class)


def test_a_condition_without_labels_has_none_twice() -> None:
    twice = with_and_without_class(Condition({"top": torch.arange(6).view(2, 1, 3)}))
    assert twice.labels is None
    assert twice.codes["top"].tolist() == [[[0, 1, 2]], [[3, 4, 5]]] * 2


def test_a_prior_says_how_many_classes_it_knows() -> None:
    assert num_classes(small_prior()) == NUM_CLASSES
    assert num_classes(small_prior("bottom", "pixelsnail", num_classes=0)) == 0


def test_guidance_without_classes_is_refused_before_anything_is_drawn() -> None:
    priors = {"top": small_prior(num_classes=0), "middle": small_prior("middle", num_classes=0)}
    grids = {name: GRIDS[name] for name in priors}
    options = {"middle": SamplingOptions(guidance=2.5)}
    sentence = "the prior of level middle was trained without; received guidance 2.5: set it to 1"
    with pytest.raises(ConfigurationError, match=sentence):
        sample_hierarchy(priors, grids, samples=[0], options=options, after_position=lambda level: pytest.fail(level))
    with pytest.raises(ConfigurationError, match="guidance takes classes or vectors"):
        sample_level(
            priors["top"], Condition(), (1, 2), level="top", samples=[0], options=SamplingOptions(guidance=0.0)
        )
    # A level that is given is not guided.
    sample_hierarchy(priors, grids, samples=[0], options=options, given={"middle": codes_of("middle", 1)})


def test_more_guidance_is_truer_to_the_class() -> None:
    """Where the class alone decides the first code, its share grows with guidance."""
    prior = small_prior().double()
    shares = []
    for guidance in (0.0, 1.0, 4.0):
        codes = sample_level(
            prior,
            Condition(labels=torch.zeros(401, dtype=torch.int64)),
            (1, 1),
            level="top",
            samples=range(401),
            options=SamplingOptions(guidance=guidance),
        ).flatten()
        with torch.no_grad():
            told, hidden = (
                prior(torch.zeros(1, 1, 1, dtype=torch.int64), Condition(labels=labels)).flatten()
                for labels in (torch.tensor([0]), None)
            )
        favoured = int((told - hidden).argmax())
        shares.append(float((codes == favoured).double().mean()))
    assert shares[0] < shares[1] < shares[2]
