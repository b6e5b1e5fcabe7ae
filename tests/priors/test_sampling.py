from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import DataError, HVQError
from hvq.priors import Condition, Prior, SamplingOptions, sample_hierarchy, sample_level
from hvq.priors.drawing import draw, gumbel_noise
from tests.priors.small import GRIDS, LEVELS, SIZES, condition_of, small_prior

options_of_interest = [SamplingOptions(), SamplingOptions(temperature=0.7, top_k=3), SamplingOptions(top_p=0.8)]


def naive(
    prior: Prior, condition: Condition, level: str, samples: list[int], seed: int, options: SamplingOptions
) -> tuple[Tensor, Tensor]:
    """Codes `[B, h, w]` by a whole forward for every position, and the logits `[B, T, K]` that they came from."""
    height, width = GRIDS[level]
    codes = torch.zeros(len(samples), height, width, dtype=torch.int64)
    used = []
    for row in range(height):
        for column in range(width):
            logits = prior(codes, condition)[:, row, column]
            noise = gumbel_noise(seed, samples, level, row * width + column, prior.codebook_size)
            codes[:, row, column] = draw(logits, noise, options)
            used.append(logits)
    return codes, torch.stack(used, dim=1)


# --- cached against naive ---


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", options_of_interest)
@torch.no_grad()
def test_cached_sampling_draws_the_codes_of_the_naive_loop_in_float64(level: str, options: SamplingOptions) -> None:
    prior, condition, samples = small_prior(level).double(), condition_of(level, 3), [5, 0, 17]
    expected, _ = naive(prior, condition, level, samples, 3, options)
    found = sample_level(prior, condition, GRIDS[level], level=level, samples=samples, seed=3, options=options)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 2


@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_in_float32_codes_differ_at_most_where_two_candidates_tie(level: str) -> None:
    prior, condition, samples = small_prior(level), condition_of(level, 5), list(range(5))
    expected, logits = naive(prior, condition, level, samples, 3, SamplingOptions())
    found = sample_level(prior, condition, GRIDS[level], level=level, samples=samples, seed=3)
    for sample in range(5):
        differs = (found[sample] != expected[sample]).flatten().nonzero().flatten().tolist()
        if differs:
            first = differs[0]
            noise = gumbel_noise(3, [sample], level, first, SIZES[level])[0]
            scores = logits[sample, first] + noise.float()
            a, b = found[sample].flatten()[first], expected[sample].flatten()[first]
            assert float((scores[a] - scores[b]).abs()) <= 1e-5 * float(logits.abs().max())


# --- a hierarchy ---


def hierarchy() -> dict[str, Prior]:
    return {level: small_prior(level).double() for level in LEVELS}


@torch.no_grad()
def test_each_level_is_drawn_given_the_coarser_ones_and_the_class() -> None:
    priors, labels = hierarchy(), [2, -1, 0]
    found = sample_hierarchy(priors, GRIDS, samples=range(3), labels=labels, seed=1, chunk_size=3)
    assert tuple(found) == LEVELS
    for i, level in enumerate(LEVELS):
        condition = Condition({name: found[name] for name in LEVELS[:i]}, torch.tensor(labels))
        expected, _ = naive(priors[level], condition, level, [0, 1, 2], 1, SamplingOptions())
        assert torch.equal(found[level], expected)


def test_the_order_of_mappings_does_not_matter() -> None:
    priors = hierarchy()
    expected = sample_hierarchy(priors, GRIDS, samples=[3, 7], chunk_size=2)
    shuffled = {name: priors[name] for name in ("bottom", "top", "middle")}
    grids = {name: GRIDS[name] for name in ("middle", "bottom", "top")}
    found = sample_hierarchy(shuffled, grids, samples=[3, 7], chunk_size=2)
    assert tuple(found) == LEVELS
    assert all(torch.equal(found[name], codes) for name, codes in expected.items())


@settings(max_examples=20)
@given(
    samples=st.lists(st.integers(0, 6), min_size=0, max_size=5),
    chunk_size=st.sampled_from([1, 2, 3]),
)
def test_a_sample_hangs_on_its_number_and_label_alone(samples: list[int], chunk_size: int) -> None:
    torch.manual_seed(0)
    priors = {level: small_prior(level, layers=1).double() for level in ("top", "middle")}
    grids = dict.fromkeys(priors, (1, 3))
    whole = sample_hierarchy(priors, grids, samples=range(7), labels=[n % 3 for n in range(7)], chunk_size=7)
    part = sample_hierarchy(priors, grids, samples=samples, labels=[n % 3 for n in samples], chunk_size=chunk_size)
    for level in priors:
        assert part[level].shape == (len(samples), 1, 3)
        assert torch.equal(part[level], whole[level][samples])


def test_seed_label_and_options_make_other_samples() -> None:
    priors = hierarchy()

    def sampled(**arguments: Any) -> Tensor:
        request = {"samples": range(5), "labels": [0] * 5, "chunk_size": 5, **arguments}
        return sample_hierarchy(priors, GRIDS, **request)["bottom"]

    first = sampled()
    assert torch.equal(sampled(), first)
    cold = {"bottom": SamplingOptions(temperature=0)}
    for changed in (sampled(seed=1), sampled(labels=[1] * 5), sampled(options=cold), sampled(samples=range(5, 10))):
        assert not torch.equal(changed, first)
    assert torch.equal(sampled(options={name: SamplingOptions() for name in LEVELS}), first)


def test_progress_is_told_after_every_position_of_every_chunk() -> None:
    calls: list[str] = []
    sample_hierarchy(
        {"top": small_prior()}, {"top": (2, 3)}, samples=range(5), chunk_size=2, after_position=calls.append
    )
    assert calls == ["top"] * 3 * 6


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"labels": [0, 0]}, "3 samples and 2 labels"),
        ({"labels": [0, 3, 0]}, r"0 \.\. 2"),
        ({"options": {"botom": SamplingOptions()}}, "options name botom; the levels are top, middle, bottom"),
        ({"grids": {"top": (2, 3)}}, "missing middle, bottom"),
    ],
)
def test_requests_that_do_not_fit_are_refused(change: dict[str, Any], fault: str) -> None:
    arguments = {"grids": GRIDS, "samples": range(3), "chunk_size": 2, **change}
    with pytest.raises(HVQError, match=fault):
        sample_hierarchy(hierarchy(), arguments.pop("grids"), **arguments)


def test_a_finer_level_without_its_coarser_ones_is_refused() -> None:
    with pytest.raises(HVQError, match="missing top"):
        sample_hierarchy({"middle": small_prior("middle")}, {"middle": (2, 3)}, samples=[0])


def test_sampling_takes_nothing_from_the_random_state() -> None:
    prior = small_prior(dropout=0.5).train()
    state = torch.get_rng_state()
    sample_hierarchy({"top": prior}, {"top": (2, 3)}, samples=range(3), chunk_size=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_out_of_range_are_a_data_error() -> None:
    with pytest.raises(DataError, match="trained without"):
        sample_hierarchy({"top": small_prior(num_classes=0)}, {"top": (1, 1)}, samples=[0], labels=[0])
