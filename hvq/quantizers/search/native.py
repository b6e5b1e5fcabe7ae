"""The search in C, compiled on first use by the system's compiler for the CPU at hand; `native.c` says how it works."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from hvq.compilation import load_compiled

SOURCE = Path(__file__).with_name("native.c")


def is_available() -> bool:
    """Whether the library is there, or could be compiled."""
    return _library() is not None


def nearest_native(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook vector, as float64 would find it.

    Args:
        latents: `[N, D]`, float32, on the CPU.
        codebook: `[K, D]`, likewise.
    """
    library = _library()
    assert library is not None
    return call(library, latents, codebook)


def call(library: ctypes.CDLL, latents: Tensor, codebook: Tensor, *, first_tier: int = 1) -> Tensor:
    """Run a compiled library; its first tier works in 16-bit integers (1) or in float32 (0)."""
    latents, codebook = latents.contiguous(), codebook.contiguous()
    center = codebook.mean(dim=0)
    codes = torch.empty(len(latents), dtype=torch.int64)
    failed = library.hvq_nearest(
        ctypes.c_void_p(latents.data_ptr()),
        ctypes.c_int64(len(latents)),
        ctypes.c_void_p(codebook.data_ptr()),
        ctypes.c_int64(len(codebook)),
        ctypes.c_int64(codebook.shape[1]),
        ctypes.c_void_p(center.data_ptr()),
        ctypes.c_int(first_tier),
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_void_p(codes.data_ptr()),
    )
    if failed:
        raise MemoryError(f"no memory to search {len(codebook)} vectors of {codebook.shape[1]} numbers")
    return codes


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_compiled(SOURCE)
