"""FAISS's exhaustive search, where the package `faiss-cpu` is installed."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def is_available() -> bool:
    """Whether `faiss` can be imported."""
    return importlib.util.find_spec("faiss") is not None


def nearest_faiss(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook vector by `IndexFlatL2`, about the codebook's mean.

    Args:
        latents: `[N, D]`, float32, on the CPU; FAISS reads it in place.
        codebook: `[K, D]`, likewise.
    """
    import faiss

    center = codebook.mean(dim=0)
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add((codebook - center).numpy())
    _, codes = index.search((latents - center).numpy(), 1)
    # FAISS finds no neighbour of what is not finite.
    return torch.from_numpy(codes[:, 0]).clamp(min=0)
