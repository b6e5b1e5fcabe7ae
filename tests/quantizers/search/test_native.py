"""The compiled search against float64, in every instruction set that this CPU has, tier by tier."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.compilation import compile_library
from hvq.quantizers.search import available_backends, native, nearest_code
from tests.instructions import BUILDS, require_instructions

pytestmark = pytest.mark.skipif(not native.is_available(), reason="needs a C compiler and a CPU with AVX2")


def build(name: str) -> ctypes.CDLL:
    require_instructions(name)
    return compile_library(native.SOURCE, *BUILDS[name])


def nearest_in_float64(latents: Tensor, codebook: Tensor) -> Tensor:
    return (latents.double().unsqueeze(1) - codebook.double()).square().sum(dim=2).argmin(dim=1)


every_build = pytest.mark.parametrize("name", BUILDS)
both_tiers = pytest.mark.parametrize("first_tier", [0, 1])


@every_build
@both_tiers
@settings(max_examples=30)
@given(
    number=st.sampled_from([1, 5, 7, 191, 401]),
    size=st.sampled_from([1, 2, 17, 63, 65, 257, 1031]),
    dimension=st.sampled_from([1, 2, 3, 8, 31, 33, 67]),
    offset=st.sampled_from([0.0, 1.0, 10.0]),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 999),
)
def test_is_the_argmin_of_float64_whatever_the_scale(
    name: str, first_tier: int, number: int, size: int, dimension: int, offset: float, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    codebook = (torch.randn(size, dimension) + offset) * scale
    latents = (codebook / scale)[torch.randint(size, (number,))] + 0.3 * torch.randn(number, dimension)
    latents = latents * scale
    assert torch.equal(
        native.call(build(name), latents, codebook, first_tier=first_tier), nearest_in_float64(latents, codebook)
    )


@every_build
@both_tiers
def test_near_ties_are_decided_in_float64(name: str, first_tier: int) -> None:
    """Latents halfway between two codes but for a part in ten million, where neither tier can tell them apart."""
    codebook = torch.randn(307, 19)
    pairs = torch.randint(307, (2, 503))
    latents = codebook[pairs[0]] * (0.5 + 5e-8) + codebook[pairs[1]] * (0.5 - 5e-8)
    found = native.call(build(name), latents, codebook, first_tier=first_tier)
    assert torch.equal(found, nearest_in_float64(latents, codebook))


@every_build
@both_tiers
def test_equal_vectors_and_exact_ties_go_to_the_lowest_index(name: str, first_tier: int) -> None:
    """So many equal vectors that no tier but the last can settle them."""
    codebook = torch.randint(-1, 2, (613, 3)).float()
    latents = torch.randint(-2, 3, (211, 3)).float() / 2
    found = native.call(build(name), latents, codebook, first_tier=first_tier)
    assert torch.equal(found, nearest_in_float64(latents, codebook))


@every_build
def test_latents_of_very_different_lengths_share_a_chunk(name: str) -> None:
    """The scale of 16-bit integers is that of the longest; what it cannot tell apart goes to the next tier."""
    codebook = torch.randn(257, 11)
    latents = codebook[torch.randint(257, (409,))] + 0.2 * torch.randn(409, 11)
    latents[::5] *= torch.logspace(0, 6, 82).unsqueeze(1)
    assert torch.equal(native.call(build(name), latents, codebook), nearest_in_float64(latents, codebook))


@every_build
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e8])
def test_latents_far_from_all_codes_fill_16_bits_and_no_more(name: str, distance: float) -> None:
    codebook = torch.linspace(-1, 1, 67).unsqueeze(1)
    latents = torch.cat([torch.full((7, 1), distance), torch.full((5, 1), -distance), torch.randn(31, 1)])
    assert torch.equal(native.call(build(name), latents, codebook), nearest_in_float64(latents, codebook))


@every_build
@both_tiers
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-36, 1e-18, 1e17])
def test_lengths_at_the_ends_of_float32(name: str, first_tier: int, scale: float) -> None:
    codebook, latents = torch.randn(67, 5) * scale, torch.randn(101, 5) * scale
    found = native.call(build(name), latents, codebook, first_tier=first_tier)
    assert torch.equal(found, nearest_in_float64(latents, codebook))


def test_lengths_beyond_float32_scores_and_strides_are_taken() -> None:
    codebook = torch.tensor([[0.0, 0.0], [1e19, 0.0], [0.0, -3e19]])
    latents = torch.tensor([[2e19, 1.0], [1.0, -1e20], [1.0, 2.0], [3e20, 0.0]])
    assert native.nearest_native(latents, codebook).tolist() == [1, 2, 0, 1]
    strided = torch.randn(5, 101).T
    assert torch.equal(
        native.nearest_native(strided, strided[:31]), nearest_in_float64(strided.contiguous(), strided[:31])
    )


def test_does_not_depend_on_the_number_of_threads() -> None:
    latents, codebook = torch.randn(2003, 13), torch.randn(127, 13)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(native.nearest_native(latents, codebook))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])


_SEARCH = """
import torch, warnings
warnings.simplefilter("error")
from hvq.quantizers.search import available_backends, nearest_code
print(available_backends("cpu")[0], nearest_code(torch.tensor([[0.9, 0.1]]), torch.eye(2)).item())
"""


def search_in_a_process(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _SEARCH], env=environment, capture_output=True, text=True, check=True)


def test_is_compiled_once_into_the_cache_folder_even_by_processes_that_race(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    racing = [
        subprocess.Popen([sys.executable, "-c", _SEARCH], env=environment, stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [process.communicate()[0].decode().split() for process in racing] == [["native", "0"]] * 2
    (library,) = tmp_path.rglob("*.so")
    made = library.stat().st_mtime_ns
    assert search_in_a_process(**environment).stdout.split() == ["native", "0"]
    assert library.stat().st_mtime_ns == made
    assert list(library.parent.iterdir()) == [library], "nothing half-made is left behind"


@pytest.mark.parametrize("missing", ["compiler", "cache"])
def test_without_a_compiler_or_a_cache_folder_another_backend_takes_its_place(missing: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    environment = {
        "PATH": "/nowhere" if missing == "compiler" else "/usr/bin:/bin",
        "XDG_CACHE_HOME": str(blocked if missing == "cache" else tmp_path),
    }
    found, code = search_in_a_process(**environment).stdout.split()
    assert found in ("faiss", "torch")
    assert code == "0"


def test_is_what_runs_by_default() -> None:
    assert available_backends("cpu")[0] == "native"
    latents, codebook = torch.randn(101, 3), torch.randn(17, 3)
    assert torch.equal(nearest_code(latents, codebook), native.nearest_native(latents, codebook))
