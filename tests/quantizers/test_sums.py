from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hvq.quantizers.sums import code_sums


@given(number=st.integers(0, 211), size=st.integers(1, 31), dimension=st.integers(1, 7), seed=st.integers(0, 99))
def test_counts_and_sums_are_those_of_a_loop(number: int, size: int, dimension: int, seed: int) -> None:
    torch.manual_seed(seed)
    latents, codes = torch.randn(number, dimension).double(), torch.randint(size + 1, (number,))
    counts, sums = code_sums(latents, codes, size)
    for code in range(size):
        own = latents[codes == code]
        assert int(counts[code]) == len(own)
        assert torch.allclose(sums[code], own.sum(dim=0))
    assert counts.dtype == torch.int64


def test_is_the_same_every_time() -> None:
    latents, codes = torch.randn(20_011, 7), torch.randint(31, (20_011,))
    first = code_sums(latents, codes, 31)[1]
    assert all(torch.equal(code_sums(latents, codes, 31)[1], first) for _ in range(5))
