from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvq.histograms import count_codes, entropy, perplexity, usage


@given(size=st.integers(1, 11), width=st.integers(1, 3), number=st.integers(0, 31), seed=st.integers(0, 99))
def test_counts_are_those_of_bincount_for_each_code_of_a_position(
    size: int, width: int, number: int, seed: int
) -> None:
    torch.manual_seed(seed)
    codes, weights = torch.randint(0, size, (number, width)), torch.rand(number) < 0.5
    plain = torch.stack([torch.bincount(column, minlength=size) for column in codes.unbind(dim=1)])
    kept = torch.stack([torch.bincount(column, minlength=size) for column in codes[weights].unbind(dim=1)])
    assert torch.equal(count_codes(codes, size), plain)
    assert torch.equal(count_codes(codes, size, weights), kept)


def test_entropy_perplexity_and_usage_of_known_histograms() -> None:
    counts = torch.tensor([[5, 5, 5, 5], [7, 0, 0, 0]])
    assert entropy(counts).tolist() == pytest.approx([math.log(4), 0.0])
    assert perplexity(counts) == pytest.approx(2.0)
    assert usage(counts) == 5 / 8
    assert float(entropy(torch.zeros(3))) == 0.0
