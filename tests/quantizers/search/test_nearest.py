from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hvq.errors import ConfigurationError, DataError
from hvq.quantizers import CodebookStep, VectorQuantizer, nearest_code
from hvq.quantizers.search import available_backends
from hvq.quantizers.search.nearest import Backend
from hvq.quantizers.search.plain import nearest_plain


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


@pytest.mark.parametrize("backend", available_backends("cpu"))
@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
@pytest.mark.parametrize(("number", "size", "dimension"), [(2003, 127, 64), (997, 1031, 7), (499, 4099, 31)])
def test_the_bound_on_what_is_chosen_holds(
    backend: Backend, offset: float, number: int, size: int, dimension: int
) -> None:
    """Latents that share a mean, and every other one halfway between two codes, but for a part in a thousand."""
    codebook = 0.1 * torch.randn(size, dimension) + offset
    latents = 0.1 * torch.randn(number, dimension) + offset
    pairs = torch.randint(size, (2, number))
    between = codebook[pairs[0]] * 0.5005 + codebook[pairs[1]] * 0.4995
    latents[::2] = between[::2]
    distances = squared_distances(latents, codebook)
    codes = nearest_code(latents, codebook, backend=backend)
    chosen, least = distances.gather(1, codes.unsqueeze(1))[:, 0], distances.amin(dim=1)
    spread = (latents.double() - codebook.double().mean(dim=0)).square().sum(dim=1).mean()
    assert bool((chosen <= (1 + 1e-6) * least + 1e-6 * spread).all())


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_latents_that_are_not_finite_get_some_code(backend: Backend) -> None:
    latents = torch.randn(31, 5)
    latents[3, 1], latents[7, 2], latents[11] = torch.nan, torch.inf, -torch.inf
    finite = latents.isfinite().all(dim=1)
    codes = nearest_code(latents, (codebook := torch.randn(13, 5)), backend=backend)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 13
    assert torch.equal(codes[finite], nearest_code(latents[finite], codebook))


def test_a_backend_that_is_not_to_be_had_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, codebook = torch.randn(3, 2), torch.randn(5, 2)
    with pytest.raises(ConfigurationError, match="triton needs the package triton and a CUDA device"):
        nearest_code(latents, codebook, backend="triton")
    monkeypatch.setenv("HVQ_SEARCH_BACKEND", "abacus")
    with pytest.raises(ConfigurationError, match="native, faiss, triton, torch; received abacus"):
        nearest_code(latents, codebook)


def test_the_environment_chooses_where_the_caller_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, codebook = torch.randn(3, 2), torch.randn(5, 2)
    called: list[str] = []

    def plain(*arguments: Tensor | None) -> Tensor:
        called.append("torch")
        return nearest_plain(*arguments)

    monkeypatch.setattr("hvq.quantizers.search.nearest.nearest_plain", plain)
    monkeypatch.setenv("HVQ_SEARCH_BACKEND", "torch")
    expected = nearest_code(latents, codebook)
    assert called == ["torch"]
    monkeypatch.delenv("HVQ_SEARCH_BACKEND")
    assert torch.equal(nearest_code(latents, codebook, backend=available_backends("cpu")[0]), expected)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"received \[3, 2\] and \[5, 4\]"):
        nearest_code(torch.randn(3, 2), torch.randn(5, 4))


def test_float64_and_compilers_take_plain_torch() -> None:
    latents, codebook = torch.randn(31, 5), torch.randn(17, 5)
    compiled = torch.compile(nearest_code, backend="eager", fullgraph=True)
    expected = nearest_code(latents, codebook)
    assert torch.equal(compiled(latents, codebook), expected)
    assert torch.equal(nearest_code(latents.double(), codebook.double()), expected)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_nothing_of_latents_times_codes_is_held_in_a_training_step(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVQ_SEARCH_BACKEND", backend)
    codes_number, dimension, batch = 65_536, 2, 2_503
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
    assert torch.Size([codes_number, dimension]) in shapes, "the profiler sees the codebook"
    assert largest <= 2**20 + 2**16 < batch * codes_number / 100
