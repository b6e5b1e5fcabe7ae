"""The GPU kernels against float64: by Triton's interpreter on a CPU, and on a device where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from hvq.quantizers.search.triton_search import nearest_triton
from hvq.quantizers.sums import code_sums, code_sums_triton

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")

# Distinct primes, one to several tiles of each; splits of the codes; dimensions beyond one pass.
SHAPES = [(1, 1, 1), (131, 5, 3), (257, 127, 17), (300, 1031, 64), (67, 131, 131), (139, 71, 307)]


def check_search(device: str) -> None:
    torch.manual_seed(0)
    for number, size, dimension in SHAPES:
        for offset in (0.0, 10.0):
            latents = torch.randn(number, dimension, device=device) + offset
            codebook = torch.randn(size, dimension, device=device) + offset
            alive = torch.rand(size, device=device) < 0.7
            alive[size // 2] = True
            for mask in (None, alive):
                distances = (latents.double().unsqueeze(1) - codebook.double()).square().sum(dim=2)
                if mask is not None:
                    distances[:, ~mask] = torch.inf
                least = distances.amin(dim=1)
                spread = (latents.double() - codebook.double().mean(dim=0)).square().sum(dim=1).mean()
                for precision in ("tf32x3", "ieee"):
                    codes = nearest_triton(latents, codebook, mask, precision=precision)
                    assert codes.dtype == torch.int64
                    chosen = distances.gather(1, codes.unsqueeze(1)).squeeze(1)
                    assert bool((chosen <= (1 + 1e-6) * least + 1e-6 * spread).all()), (number, size, dimension)


def check_ties(device: str) -> None:
    codebook = torch.randint(-1, 2, (307, 2), device=device).float()
    latents = codebook[torch.randint(307, (131,), device=device)]
    center = codebook.mean(dim=0)
    codebook, latents = codebook - center + center.round(), latents - center + center.round()
    first = (latents.unsqueeze(1) == codebook).all(dim=2).int().argmax(dim=1)
    assert torch.equal(nearest_triton(latents, codebook, None), first)
    assert nearest_triton(latents[:0], codebook, None).shape == (0,)
    broken = torch.full((3, 2), torch.nan, device=device)
    assert int(nearest_triton(broken, codebook, None).max()) < 307


def check_sums(device: str) -> None:
    """Codes of which one has half of all latents, one none, and some are not counted."""
    for number, size, dimension in [(5003, 7, 17), (31, 1031, 3), (2503, 2, 131)]:
        codes = torch.randint(size + 1, (number,), device=device)
        codes[: number // 2] = size // 2
        codes[codes == 0] = size
        latents = torch.randn(number, dimension, device=device)
        counts, sums = code_sums_triton(latents, codes, size)
        expected_counts, expected = code_sums(latents.double().cpu(), codes.cpu(), size)
        assert torch.equal(counts.cpu(), expected_counts)
        assert torch.allclose(sums.double().cpu(), expected, atol=1e-3)
        again = code_sums_triton(latents, codes, size)[1]
        assert torch.equal(again, sums), "the same every time"


@needs_triton
@pytest.mark.parametrize("check", ["check_search", "check_ties", "check_sums"])
def test_kernels_run_by_the_interpreter(check: str) -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    command = f"from tests.quantizers.search.test_triton_search import {check}; {check}('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@needs_triton
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_run_on_the_device() -> None:
    check_search("cuda")
    check_ties("cuda")
    check_sums("cuda")
