"""Counts and sums of the latents of each code, from which a codebook learns."""

from __future__ import annotations

import torch
from torch import Tensor

from hvq.quantizers.search import triton_search

# Latents of one code that are summed in a row; the sums of such runs are summed after.
_RUN = 1024


def code_sums(latents: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Counts and sums of latents by code, the same every time they are computed.

    Args:
        latents: `[N, D]`.
        codes: int64 `[N]`, in 0 .. K; latents of code K are left out.
        num_codes: K.

    Returns:
        Counts int64 `[K]` and sums `[K, D]` in the type of the latents.

    >>> code_sums(torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([1, 1, 2]), 2)
    (tensor([0, 2]), tensor([[0.],
            [3.]]))
    """
    usable = latents.dtype == torch.float32 and not torch.compiler.is_compiling()
    if latents.device.type == "cuda" and usable and triton_search.is_available():
        return code_sums_triton(latents, codes, num_codes)
    # Not bincount, whose output has a size that compilers cannot know.
    counts = torch.zeros(num_codes + 1, dtype=torch.int64, device=codes.device)
    counts.scatter_add_(0, codes, torch.ones_like(codes))
    sums = latents.new_zeros(num_codes + 1, latents.shape[1]).index_add_(0, codes, latents)
    return counts[:num_codes], sums[:num_codes]


def code_sums_triton(latents: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """`code_sums` by sorting: a GPU adds to one place in no order, so that sums would differ from run to run.

    Args:
        latents: `[N, D]`, float32.
        codes: int64 `[N]`, in 0 .. K.
        num_codes: K.
    """
    number, dimension = latents.shape
    counts = torch.bincount(codes, minlength=num_codes + 1)[:num_codes]
    order = codes.argsort(stable=True)
    runs = (counts + _RUN - 1) // _RUN
    last_runs = runs.cumsum(dim=0)
    most_runs = num_codes + number // _RUN
    codes_of_runs = torch.searchsorted(last_runs, torch.arange(most_runs, device=codes.device), right=True)
    width = min(128, max(16, 1 << (dimension - 1).bit_length()))
    slices = -(-dimension // width)
    run_sums = latents.new_empty(most_runs, dimension)
    triton_search.kernels().run_sums_kernel[(most_runs, slices)](
        latents.contiguous(),
        order,
        codes_of_runs,
        last_runs - runs,
        counts.cumsum(dim=0) - counts,
        counts,
        run_sums,
        num_codes,
        dimension,
        RUN=_RUN,
        ROWS=32,
        DIMENSIONS=width,
    )
    sums = latents.new_empty(num_codes, dimension)
    triton_search.kernels().code_sums_kernel[(num_codes, slices)](
        run_sums, last_runs - runs, runs, sums, dimension, DIMENSIONS=width
    )
    return counts, sums
