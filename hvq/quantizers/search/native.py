"""The search in C; `native.c` says how it goes."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from hvq.quantizers.search import compiled

# As in native.c: numbers per vector in the reduced tier, of which the last is the length of what directions leave.
_REDUCED = 16
# Below this dimension, and below so many products of a latent and a code, the reduced tier does not pay.
_LEAST_DIMENSION = 32
_LEAST_PAIRS = 1 << 21
_POWER_ITERATIONS = 3
# Share of the codebook's variance that the directions have to cover: with less, they rule out few codes.
_LEAST_COVERED = 0.8


class Tier(IntEnum):
    """What the search starts with, in the numbers of native.c."""

    FLOATS = 0
    INTS = 1
    REDUCED_INTS = 2


def is_available() -> bool:
    """Whether the library is there, or could be compiled."""
    return compiled.library() is not None


def nearest_native(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook vector, as float64 would find it.

    Args:
        latents: `[N, D]`, float32, on the CPU.
        codebook: `[K, D]`, likewise.
    """
    library = compiled.library()
    assert library is not None
    return call(library, latents, codebook)


def call(library: ctypes.CDLL, latents: Tensor, codebook: Tensor, *, first_tier: Tier | None = None) -> Tensor:
    """Run a compiled library, from a tier on; the one that pays by default."""
    latents, codebook = latents.contiguous(), codebook.contiguous()
    center = codebook.mean(dim=0)
    directions: Tensor | None = None
    if first_tier is Tier.REDUCED_INTS or (first_tier is None and _may_pay(latents, codebook)):
        directions, covered = principal_directions(codebook - center)
        if first_tier is None and covered >= _LEAST_COVERED:
            first_tier = Tier.REDUCED_INTS
    codes = torch.empty(len(latents), dtype=torch.int64)
    failed = library.hvq_nearest(
        compiled.pointer(latents),
        ctypes.c_int64(len(latents)),
        compiled.pointer(codebook),
        ctypes.c_int64(len(codebook)),
        ctypes.c_int64(codebook.shape[1]),
        compiled.pointer(center),
        None if directions is None else compiled.pointer(directions),
        ctypes.c_int(Tier.INTS if first_tier is None else first_tier),
        ctypes.c_int(compiled.num_threads()),
        compiled.pointer(codes),
    )
    if failed:
        raise MemoryError(f"no memory to search {len(codebook)} vectors of {codebook.shape[1]} numbers")
    return codes


def _may_pay(latents: Tensor, codebook: Tensor) -> bool:
    return codebook.shape[1] >= _LEAST_DIMENSION and len(latents) * len(codebook) >= _LEAST_PAIRS


def principal_directions(centered: Tensor) -> tuple[Tensor, float]:
    """About the directions along which a codebook `[K, D]` varies most, by subspace iteration from a fixed start.

    Returns:
        Orthonormal columns `[D, 16]` in float32, padded with zeros, the last one always zero; and the share of the
        variance that they cover. Columns are zero and the share too where vectors are all equal or not finite.
    """
    dimension = centered.shape[1]
    number = min(dimension, _REDUCED - 1)
    covariance = (centered.T @ centered).double()
    total = float(covariance.trace())
    directions = torch.zeros(dimension, _REDUCED)
    if not 0 < total < torch.inf:
        return directions, 0.0
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(dimension, number, dtype=torch.float64, generator=generator)
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(covariance @ basis / total).Q
    directions[:, :number] = basis
    return directions, float((basis * (covariance @ basis)).sum() / total)
