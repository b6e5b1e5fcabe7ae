from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hvq.quantizers import CodebookStep, VectorQuantizer, nearest_code


def squared_distances(latents: Tensor, codebook: Tensor) -> Tensor:
    """`[N, K]` in float64, by forming every difference."""
    return (latents.double().unsqueeze(1) - codebook.double()).square().sum(dim=2)


def excess(latents: Tensor, codebook: Tensor, codes: Tensor, alive: Tensor | None = None) -> float:
    """By how much the worst choice is farther than the best, in squared distance."""
    distances = squared_distances(latents, codebook)
    if alive is not None:
        distances[:, ~alive] = torch.inf
    return float((distances.gather(1, codes.unsqueeze(1))[:, 0] - distances.amin(dim=1)).max())


sizes = st.tuples(st.sampled_from([1, 2, 13, 67]), st.sampled_from([1, 2, 17, 31]), st.sampled_from([1, 3, 11]))


@given(sizes=sizes, seed=st.integers(0, 1000))
def test_nearest_in_float64_is_the_brute_force_argmin(sizes: tuple[int, int, int], seed: int) -> None:
    latents_number, codes_number, dimension = sizes
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(latents_number, dimension, generator=generator, dtype=torch.float64)
    codebook = torch.randn(codes_number, dimension, generator=generator, dtype=torch.float64)
    codes = nearest_code(latents, codebook)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, squared_distances(latents, codebook).argmin(dim=1))


@given(sizes=sizes, seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 10.0, 1_000.0]))
def test_nearest_in_float32_is_nearest_but_for_rounding(sizes: tuple[int, int, int], seed: int, offset: float) -> None:
    latents_number, codes_number, dimension = sizes
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(latents_number, dimension, generator=generator) + offset
    codebook = torch.randn(codes_number, dimension, generator=generator) + offset
    rounding = 1e-5 * (1 + squared_distances(latents, codebook).max())
    assert excess(latents, codebook, nearest_code(latents, codebook)) <= rounding


def test_near_ties_at_a_large_offset_are_told_apart() -> None:
    """The plain product ½‖e‖² - z·e has an ulp of 8 here; the two codes differ by 2 in squared distance."""
    offset = 10_000.0
    codebook = torch.tensor([[offset, offset], [offset + 1, offset], [offset + 2, offset]])
    latents = torch.tensor([[offset + 0.375, offset], [offset + 0.625, offset], [offset + 1.375, offset]])
    assert nearest_code(latents, codebook).tolist() == [0, 1, 1]


@pytest.mark.parametrize("offset", [0.0, 1_000.0, 10_000.0])
def test_dead_codes_are_never_chosen_and_do_not_blur_the_others(offset: float) -> None:
    """Dead codes of a fresh k-means are zero, far from latents of a large mean."""
    latents, codebook = torch.randn(101, 5) + offset, torch.randn(23, 5) + offset
    alive = torch.arange(23) % 3 == 1
    codebook[~alive] = 0.0
    codes = nearest_code(latents, codebook, alive)
    assert bool(alive[codes].all())
    assert excess(latents, codebook, codes, alive) <= 1e-4


def test_a_dead_code_is_not_chosen_even_where_it_is_the_latent() -> None:
    codebook = torch.tensor([[0.0], [5.0], [9.0]])
    assert nearest_code(torch.tensor([[5.0], [6.9]]), codebook, torch.tensor([True, False, True])).tolist() == [2, 2]


def test_ties_between_different_vectors_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
    latents = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert nearest_code(latents, codebook).tolist() == [0, 0, 1, 2]


@given(
    codes_number=st.integers(1, 67), dimension=st.integers(1, 37), latents_number=st.integers(1, 71), seed=st.integers()
)
def test_of_equal_vectors_the_first_is_chosen(
    codes_number: int, dimension: int, latents_number: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    different = torch.randn(1 + codes_number // 2, dimension, generator=generator)
    owners = torch.randint(len(different), (codes_number,), generator=generator)
    first_of = torch.tensor([owners.tolist().index(owner) for owner in owners.tolist()])
    latents = torch.randn(latents_number, dimension, generator=generator)
    codes = nearest_code(latents, different[owners])
    assert torch.equal(first_of[codes], codes)


def test_first_of_equal_vectors_that_are_alive_is_chosen() -> None:
    codebook = torch.tensor([[3.0, 1.0], [0.0, 0.0], [3.0, 1.0], [3.0, 1.0]])
    alive = torch.tensor([False, True, True, True])
    assert nearest_code(torch.tensor([[3.0, 1.0]]), codebook, alive).tolist() == [2]


def test_no_latents_give_no_codes() -> None:
    assert nearest_code(torch.zeros(0, 3), torch.randn(5, 3)).shape == (0,)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_does_not_touch_the_search(kind: torch.dtype) -> None:
    latents, codebook = torch.randn(997, 7) + 3, torch.randn(61, 7) + 3
    expected = nearest_code(latents, codebook)
    with torch.autocast("cpu", kind):
        assert torch.equal(nearest_code(latents, codebook), expected)


def test_nothing_of_latents_times_codes_is_held_in_a_training_step() -> None:
    codes_number, dimension, batch = 65_536, 2, 67
    quantizer = VectorQuantizer(codebook_size=codes_number, code_dimension=dimension)
    codebooks = CodebookStep({"top": quantizer})
    latents = torch.randn(batch, dimension, 1, 1, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        result = quantizer(latents)
        (result.vectors.sum() + result.losses["commitment"]).backward()
        codebooks.add({"top": result})
        codebooks.step()
    shapes = [torch.Size(shape) for event in recorded.events() for shape in event.input_shapes]
    largest = max(shape.numel() for shape in shapes)
    assert torch.Size([16, codes_number]) in shapes, "the profiler sees the blocks"
    assert largest <= 2**20 < batch * codes_number / 2


def test_blocks_do_not_change_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, codebook = torch.randn(103, 5, dtype=torch.float64), torch.randn(19, 5, dtype=torch.float64)
    whole = nearest_code(latents, codebook)
    monkeypatch.setattr("hvq.quantizers.search._BLOCK_ELEMENTS", 7 * 19)
    assert torch.equal(nearest_code(latents, codebook), whole)
