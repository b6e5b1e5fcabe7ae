"""The search on CUDA: one Triton kernel from latents and codes to indices, in which no N x K tensor exists."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["tf32x3", "ieee", "tf32"]

# Programs that keep a GPU busy; with fewer blocks of latents, codes are split over several programs.
_ENOUGH_PROGRAMS = 512
_ROWS, _CODES, _MOST_DIMENSIONS = 128, 64, 128


@functools.cache
def is_available() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def nearest_triton(
    latents: Tensor, codebook: Tensor, alive: Tensor | None, *, precision: Precision = "tf32x3"
) -> Tensor:
    """Index of the nearest codebook vector.

    Args:
        latents: `[N, D]`, float32.
        codebook: `[K, D]`, float32.
        alive: bool `[K]`, codes that may be chosen; all where None.
        precision: of the products; "tf32x3" is about float32's at a third of the speed of "tf32", which is not exact.
    """
    latents, codebook = latents.contiguous(), codebook.contiguous()
    kept = torch.ones_like(codebook[:, 0]) if alive is None else alive.to(codebook.dtype)
    center = (kept @ codebook) / kept.sum()
    codebook = codebook - center
    half_norms = 0.5 * codebook.square().sum(dim=1)
    if alive is not None:
        half_norms = half_norms.masked_fill(~alive, torch.inf)
    scores, codes = _launch(latents, codebook, half_norms, center, precision)
    # Splits stand in the order of codes, so that ties go to the first.
    first = scores.argmin(dim=0, keepdim=True)
    return codes.gather(0, first).squeeze(0).to(torch.int64)


def _launch(
    latents: Tensor, codebook: Tensor, half_norms: Tensor, center: Tensor, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Least scores and their codes, `[splits, N]`."""
    number, dimension = latents.shape
    blocks = -(-number // _ROWS)
    tiles = -(-len(codebook) // _CODES)
    splits = max(1, min(tiles, _ENOUGH_PROGRAMS // max(1, blocks)))
    tiles_per_split = -(-tiles // splits)
    splits = -(-tiles // tiles_per_split)
    scores = torch.empty(splits, number, dtype=torch.float32, device=latents.device)
    codes = torch.empty(splits, number, dtype=torch.int32, device=latents.device)
    if number:
        kernels().nearest_kernel[(blocks, splits)](
            latents,
            codebook,
            half_norms,
            center,
            scores,
            codes,
            number,
            len(codebook),
            dimension,
            tiles_per_split,
            ROWS=_ROWS,
            CODES=_CODES,
            # Matrix units take no fewer than 16 dimensions at a time.
            DIMENSIONS=min(_MOST_DIMENSIONS, max(16, 1 << (dimension - 1).bit_length())),
            ONE_PASS=dimension <= _MOST_DIMENSIONS,
            PRECISION=precision,
            num_warps=8,
        )
    return scores, codes


@functools.cache
def kernels() -> Any:
    """The module of kernels, which needs Triton to be imported."""
    from hvq.quantizers import triton_kernels

    return triton_kernels
