"""Counts, usage, perplexity and entropy of codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.code_usage import CodeHistogram, CodeUsage
from hvq.histograms import entropy
from tests.processes import run_in_processes


def _counted(codes: Tensor, batch_size: int) -> CodeHistogram:
    usage = CodeUsage(codebook_size=11)
    for part in codes.split(batch_size):
        usage.update(part)
    histogram: CodeHistogram = usage.compute()
    return histogram


def _codes() -> Tensor:
    return torch.randint(0, 9, (13, 3, 5), generator=torch.Generator().manual_seed(0))


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 13))
def test_equals_numpy_for_any_batch_size(batch_size: int) -> None:
    codes = _codes()
    values, occurrences = np.unique(codes.numpy(), return_counts=True)
    shares = occurrences / occurrences.sum()
    histogram = _counted(codes, batch_size)
    assert histogram.usage == len(values) / 11
    assert histogram.perplexity == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-12)
    assert histogram.counts.tolist() == [[int((codes == code).sum()) for code in range(11)]]


def test_equal_use_of_all_codes_has_perplexity_k() -> None:
    histogram = _counted(torch.arange(11).repeat(7), 77)
    assert histogram.usage == 1.0
    assert histogram.perplexity == pytest.approx(11.0)
    assert histogram.unigram_entropy == pytest.approx(math.log(11))


def test_a_single_code_has_perplexity_one() -> None:
    histogram = _counted(torch.full((5, 3, 2), 7), 5)
    assert histogram == CodeHistogram(1 / 11, 1.0, 0.0, histogram.counts)


@given(counts=st.lists(st.integers(0, 10**6), min_size=2, max_size=17).filter(any))
def test_no_unigram_model_codes_in_fewer_nats(counts: list[int]) -> None:
    occurrences = np.array(counts, float)
    model = (occurrences + 1) / (occurrences + 1).sum()
    cross_entropy = -(occurrences * np.log(model)).sum() / occurrences.sum()
    assert float(entropy(torch.tensor(counts))) <= cross_entropy + 1e-12


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (torch.tensor([3, 11]), "0 .. 10"),
        (torch.tensor([-1]), "0 .. 10"),
        (torch.tensor([0.0]), "integers"),
        (torch.tensor([True]), "integers"),
    ],
)
def test_refuses_what_is_not_a_code(codes: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        CodeUsage(codebook_size=11).update(codes)


def test_refuses_an_empty_codebook_and_an_empty_count() -> None:
    with pytest.raises(DataError, match="at least 1"):
        CodeUsage(codebook_size=0)
    usage = CodeUsage(codebook_size=11)
    usage.update(torch.zeros(0, 3, 5, dtype=torch.int64))
    with pytest.raises(DataError, match="at least one code"):
        usage.compute()


def test_each_code_of_a_position_has_a_histogram_of_its_own() -> None:
    usage = CodeUsage(codebook_size=5, codes_per_position=2)
    usage.update(torch.tensor([[[0, 1], [0, 2]], [[0, 3], [0, 4]]]))
    histogram = usage.compute()
    assert histogram.counts.tolist() == [[4, 0, 0, 0, 0], [0, 1, 1, 1, 1]]
    assert histogram.usage == pytest.approx((1 / 5 + 4 / 5) / 2)
    assert histogram.unigram_entropy == pytest.approx(math.log(4) / 2)
    with pytest.raises(DataError, match=r"\[\.\.\., 2\]"):
        usage.update(torch.zeros(3, 7, 5, dtype=torch.int64))


def _counted_on_one_of_two_processes() -> list[list[int]]:
    rank = torch.distributed.get_rank()
    counts: list[list[int]] = _counted(_codes()[(slice(0, 2), slice(2, 13))[rank]], 3).counts.tolist()
    return counts


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _counted(_codes(), 13).counts.tolist()
    assert run_in_processes(_counted_on_one_of_two_processes, 2) == [expected, expected]
