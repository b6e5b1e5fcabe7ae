"""Sampling: sample i depends on (seed, i) alone, and cached and naive sampling draw the same codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hvq.errors import ConfigurationError, HVQError
from hvq.priors import Condition, SamplingOptions, TransformerPrior, sample_hierarchy, sample_level
from hvq.priors.sampling import draw, gumbel_noise

GRIDS = {"top": (2, 3), "bottom": (3, 5)}
SIZES = {"top": 7, "bottom": 11}


@pytest.fixture(scope="module")
def priors() -> dict[str, TransformerPrior]:
    torch.manual_seed(0)
    result = {
        "top": TransformerPrior(codebook_size=7, num_classes=3, width=12, layers=2, heads=3),
        "bottom": TransformerPrior(codebook_size=11, coarser={"top": 7}, num_classes=3, width=12, layers=2, heads=3),
    }
    for prior in result.values():
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        prior.double().eval()
    return result


def naive(prior: TransformerPrior, condition: Condition, level: str, samples: list[int], seed: int) -> Tensor:
    """One whole forward for every position."""
    codes = torch.zeros(len(samples), *GRIDS[level], dtype=torch.int64)
    for position in range(codes[0].numel()):
        logits = prior(codes, condition).flatten(1, 2)[:, position]
        noise = gumbel_noise(seed, samples, level, position, SIZES[level])
        codes.view(len(samples), -1)[:, position] = (logits + noise).argmax(-1)
    return codes


def test_cached_sampling_draws_the_codes_of_the_naive_loop(priors: dict[str, TransformerPrior]) -> None:
    samples, labels = [3, 0, 8, 5], torch.tensor([0, 2, -1, 1])
    coarse: dict[str, Tensor] = {}
    for level, prior in priors.items():
        condition = Condition(codes=dict(coarse), labels=labels)
        cached = sample_level(prior, condition, GRIDS[level], level=level, samples=samples, seed=5)
        with torch.no_grad():
            assert torch.equal(cached, naive(prior, condition, level, samples, seed=5))
        coarse[level] = cached


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 64])
def test_a_sample_is_the_same_whatever_else_is_drawn(priors: dict[str, TransformerPrior], chunk_size: int) -> None:
    numbers, labels = [0, 1, 2, 3, 4], [2, 0, 1, 0, -1]
    whole = sample_hierarchy(priors, GRIDS, samples=numbers, labels=labels, seed=9, chunk_size=chunk_size)
    for i in (4, 1):
        alone = sample_hierarchy(priors, GRIDS, samples=[i], labels=[labels[i]], seed=9, chunk_size=chunk_size)
        assert all(torch.equal(alone[name][0], whole[name][i]) for name in GRIDS)
    other = sample_hierarchy(priors, GRIDS, samples=numbers, labels=labels, seed=10, chunk_size=chunk_size)
    assert not torch.equal(other["bottom"], whole["bottom"])


def test_grids_may_come_in_any_order_and_no_samples_are_none(priors: dict[str, TransformerPrior]) -> None:
    shuffled = {"bottom": GRIDS["bottom"], "top": GRIDS["top"]}
    one = sample_hierarchy(priors, shuffled, samples=range(3), chunk_size=4)
    assert list(one) == ["top", "bottom"]
    none = sample_hierarchy(priors, GRIDS, samples=[], chunk_size=4)
    assert {name: tuple(codes.shape) for name, codes in none.items()} == {"top": (0, 2, 3), "bottom": (0, 3, 5)}
    with pytest.raises(HVQError, match="missing bottom"):
        sample_hierarchy(priors, {"top": GRIDS["top"]}, samples=[0])


def test_progress_is_told_once_for_each_position(priors: dict[str, TransformerPrior]) -> None:
    ticks: list[int] = []
    sample_hierarchy(priors, GRIDS, samples=range(5), chunk_size=2, after_position=lambda: ticks.append(1))
    assert len(ticks) == 3 * (2 * 3 + 3 * 5)


def test_noise_is_a_function_of_its_keys_and_is_gumbel() -> None:
    whole = gumbel_noise(0, [4, 7], "top", 3, 50_000)
    assert torch.equal(gumbel_noise(0, [7], "top", 3, 50_000)[0], whole[1])
    for other in (gumbel_noise(1, [7], "top", 3, 9), gumbel_noise(0, [7], "bottom", 3, 9)):
        assert not torch.equal(other[0], whole[1, :9])
    assert not torch.equal(gumbel_noise(0, [7], "top", 2, 9)[0], whole[1, :9])
    # Mean and variance of the standard Gumbel distribution: Euler's constant, pi^2 / 6.
    assert float(whole.mean()) == pytest.approx(np.euler_gamma, abs=0.02)
    assert float(whole.var()) == pytest.approx(np.pi**2 / 6, abs=0.04)


LOGITS = torch.tensor([[1.0, 3.0, 0.5, 2.0, -1.0]], dtype=torch.float64)


def frequencies(options: SamplingOptions, draws: int = 40_000) -> Tensor:
    noise = torch.stack([gumbel_noise(0, [0], "x", position, 5)[0] for position in range(draws)])
    codes = draw(LOGITS.expand(draws, -1), noise, options)
    return torch.bincount(codes, minlength=5).double() / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_of_the_logits_over_temperature(temperature: float) -> None:
    expected = (LOGITS[0] / temperature).softmax(-1)
    assert (frequencies(SamplingOptions(temperature=temperature)) - expected).abs().max() < 0.01


def test_temperature_zero_takes_the_most_probable_code() -> None:
    assert frequencies(SamplingOptions(temperature=0.0), draws=100).tolist() == [0, 1, 0, 0, 0]


def test_top_k_and_top_p_cut_and_renormalise() -> None:
    probabilities = LOGITS[0].softmax(-1)
    kept = torch.tensor([0, 1, 0, 1, 0], dtype=torch.float64)
    expected = probabilities * kept / (probabilities * kept).sum()
    assert (frequencies(SamplingOptions(top_k=2)) - expected).abs().max() < 0.01
    # The two most probable codes hold 0.83 of the whole: the second one completes every share between.
    two = float((probabilities * kept).sum())
    first = float(probabilities.max())
    assert (frequencies(SamplingOptions(top_p=two - 1e-3)) - expected).abs().max() < 0.01
    assert frequencies(SamplingOptions(top_p=first - 1e-3), draws=100).tolist() == [0, 1, 0, 0, 0]
    assert (frequencies(SamplingOptions(top_k=99, top_p=1.0)) - probabilities).abs().max() < 0.01


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_options_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="received"):
        SamplingOptions(**bad)  # type: ignore[arg-type]
