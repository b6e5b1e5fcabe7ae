"""One draw and its noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hvq.errors import ConfigurationError
from hvq.priors import SamplingOptions
from hvq.priors.drawing import draw, gumbel_noise
from hvq.randomness import hash_words

# --- noise ---


def test_noise_is_a_function_of_seed_sample_level_and_position() -> None:
    noise = gumbel_noise(1, [3, 5, 7], "top", 11, 13)
    assert noise.dtype == torch.float64
    assert noise.device.type == "cpu"
    assert torch.equal(gumbel_noise(1, [7, 3], "top", 11, 13), noise[[2, 0]])
    for other in [(2, [3, 5, 7], "top", 11), (1, [4, 6, 8], "top", 11), (1, [3, 5, 7], "bottom", 11)]:
        assert not bool((gumbel_noise(*other, 13) == noise).any())
    assert not bool((gumbel_noise(1, [3, 5, 7], "top", 12, 13) == noise).any())


def test_noise_is_that_of_one_code_after_the_other() -> None:
    noise = gumbel_noise(5, [3, 11], "middle", 2, 7)
    for row, sample in enumerate([3, 11]):
        for code in range(7):
            share = ((int(hash_words(5, "sample", "middle", sample, 2, code)) >> 11) + 0.5) / 2**53
            assert noise[row, code].item() == pytest.approx(-math.log(-math.log(share)), rel=1e-13, abs=1e-13)


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(0, range(5003), "top", 0, 7).flatten().numpy()
    assert noise.mean() == pytest.approx(0.5772, abs=0.03)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.05)
    ordered = np.sort(noise)
    distribution = np.exp(-np.exp(-ordered))
    assert np.abs(distribution - (np.arange(len(ordered)) + 0.5) / len(ordered)).max() < 0.012


# --- one draw ---

LOGITS = [1.3, -0.4, 0.2, 2.0, -3.0, 0.9, 0.0]


def shares_by_hand(options: SamplingOptions) -> list[float]:
    """The distribution that options leave of `LOGITS`."""
    weights = [math.exp(logit / options.temperature) for logit in LOGITS]
    order = sorted(range(len(weights)), key=lambda code: -weights[code])
    kept = order if options.top_k is None else order[: options.top_k]
    total, so_far, chosen = sum(weights[code] for code in kept), 0.0, []
    for code in kept:
        if so_far < options.top_p:
            chosen.append(code)
        so_far += weights[code] / total
    remaining = sum(weights[code] for code in chosen)
    return [weights[code] / remaining if code in chosen else 0.0 for code in range(len(weights))]


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(temperature=0.5),
        SamplingOptions(temperature=2.0),
        SamplingOptions(top_k=3),
        SamplingOptions(top_k=100),
        SamplingOptions(top_p=0.7),
        SamplingOptions(top_p=0.01),
        SamplingOptions(temperature=1.7, top_k=5, top_p=0.8),
    ],
)
def test_draws_follow_the_distribution_that_options_leave(options: SamplingOptions) -> None:
    number = 20_011
    noise = gumbel_noise(0, range(number), "top", 0, len(LOGITS))
    codes = draw(torch.tensor(LOGITS).double().expand(number, -1), noise, options)
    found = torch.bincount(codes, minlength=len(LOGITS)) / number
    for share, expected in zip(found.tolist(), shares_by_hand(options), strict=True):
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / number)


def test_temperature_nought_takes_the_most_probable_code_whatever_the_noise() -> None:
    noise = gumbel_noise(0, range(101), "top", 0, len(LOGITS))
    codes = draw(torch.tensor(LOGITS).expand(101, -1), noise, SamplingOptions(temperature=0))
    assert set(codes.tolist()) == {3}


def test_a_code_of_probability_nought_is_never_drawn() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0]).expand(1009, -1)
    for options in [SamplingOptions(), SamplingOptions(temperature=0.7, top_k=3), SamplingOptions(top_p=0.8)]:
        assert 1 not in draw(logits, gumbel_noise(0, range(1009), "top", 0, 3), options)


@pytest.mark.parametrize("guidance", [-0.1, float("nan"), float("inf")])
def test_guidance_is_a_number_of_at_least_nought(guidance: float) -> None:
    with pytest.raises(ConfigurationError, match="guidance must be a number of at least 0, where 1 means"):
        SamplingOptions(guidance=guidance)
    assert SamplingOptions(guidance=0.0).guidance == 0


@pytest.mark.parametrize(
    "fields", [{"temperature": -0.1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": float("nan")}]
)
def test_options_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="temperature must be"):
        SamplingOptions(**fields)


def test_of_equal_logits_the_first_k_are_drawn_from() -> None:
    noise = torch.arange(7.0).expand(2, 7)
    assert draw(torch.zeros(2, 7), noise, SamplingOptions(top_k=3)).tolist() == [2, 2]
