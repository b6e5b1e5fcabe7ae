"""The nearest codebook vector, equations (1) to (4), without a tensor of size N x K."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
from torch import Tensor

from hvq.errors import ConfigurationError, DataError
from hvq.precision import tf32, without_autocast
from hvq.quantizers.search import faiss_search, native, triton_search
from hvq.quantizers.search.plain import nearest_plain
from hvq.tracing import is_exporting

Backend = Literal["auto", "native", "faiss", "triton", "torch"]
_VARIABLE = "HVQ_SEARCH_BACKEND"
_REQUIREMENTS = {
    "native": "a C compiler and a CPU with AVX2",
    "faiss": "the package faiss-cpu",
    "triton": "the package triton and a CUDA device",
}


@torch.no_grad()
def nearest_code(
    latents: Tensor, codebook: Tensor, alive: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """Index of the codebook vector nearest to each latent in Euclidean distance; ties go to the lowest index.

    The squared distance of the chosen vector exceeds the least one by no more than one part in a million of it, and one
    of the mean squared distance to the codebook's mean. Autocast changes nothing. Latents that are not finite get some
    code.

    Args:
        latents: `[N, D]`.
        codebook: `[K, D]`, of the same type, float32 or float64.
        alive: bool `[K]`, codes that may be chosen; all where None.
        backend: "native" (compiled C, on the CPU), "faiss" (on the CPU), "triton" (on CUDA), "torch" (anywhere), or
            "auto", which takes the fastest there is; the environment variable HVQ_SEARCH_BACKEND decides over it.

    Returns:
        int64 `[N]`, in 0 .. K - 1.

    Raises:
        ConfigurationError: where a backend is asked for that is not to be had.
        DataError: where shapes do not fit.

    >>> nearest_code(torch.tensor([[0.9, 0.1], [0.1, 0.2]]), torch.eye(2)).tolist()
    [0, 1]
    """
    if latents.dim() != 2 or codebook.dim() != 2 or latents.shape[1] != codebook.shape[1]:
        raise DataError(
            f"latents must be [N, D] and the codebook [K, D]; received {list(latents.shape)} and {list(codebook.shape)}"
        )
    if torch.compiler.is_compiling() and not is_exporting():
        # To a compiler the search is one operation; what is exported has to be made of those that all runtimes know.
        return _opaque(latents, codebook, alive, backend)
    return _search(latents, codebook, alive, backend)


@torch.library.custom_op("hvq::nearest_code", mutates_args=())
def _opaque(latents: Tensor, codebook: Tensor, alive: Tensor | None, backend: str) -> Tensor:
    return _search(latents, codebook, alive, backend)


@_opaque.register_fake
def _(latents: Tensor, codebook: Tensor, alive: Tensor | None, backend: str) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


def _search(latents: Tensor, codebook: Tensor, alive: Tensor | None, backend: str) -> Tensor:
    chosen = _choose(backend, latents, codebook)
    with without_autocast(latents.device.type):
        if chosen == "torch":
            # Training may round products to TF32; which code is nearest is decided in full.
            with tf32(False):
                return nearest_plain(latents, codebook, alive)
        if chosen == "triton":
            return triton_search.nearest_triton(latents, codebook, alive)
        return _on_cpu(chosen, latents, codebook, alive)


def available_backends(device: torch.device | str) -> tuple[Backend, ...]:
    """The backends that can search on a device, the fastest first.

    >>> available_backends("cpu")[-1]
    'torch'
    """
    candidates: dict[Backend, bool] = {"torch": True}
    kind = torch.device(device).type
    if kind == "cpu":
        candidates = {"native": native.is_available(), "faiss": faiss_search.is_available(), **candidates}
    if kind == "cuda":
        candidates = {"triton": triton_search.is_available(), **candidates}
    return tuple(name for name, there in candidates.items() if there)


def _choose(backend: str, latents: Tensor, codebook: Tensor) -> str:
    wanted = os.environ.get(_VARIABLE, "auto") if backend == "auto" else backend
    if wanted not in get_args(Backend):
        raise ConfigurationError(f"search backends are {', '.join(get_args(Backend))}; received {wanted}")
    # An export is made of torch's own operations; float64 is what the others are measured against.
    if wanted == "torch" or torch.compiler.is_compiling() or latents.dtype != torch.float32:
        return "torch"
    if codebook.dtype != torch.float32 or latents.device.type not in ("cpu", "cuda"):
        return "torch"
    there = available_backends(latents.device)
    if wanted == "auto":
        return next(name for name in there if name != "faiss")
    if wanted not in there:
        raise ConfigurationError(
            f"the search backend {wanted} needs {_REQUIREMENTS[wanted]}; on {latents.device.type} there is "
            f"{', '.join(there)}"
        )
    return wanted


def _on_cpu(backend: str, latents: Tensor, codebook: Tensor, alive: Tensor | None) -> Tensor:
    """These backends know nothing of dead codes: the search is among the others."""
    search = native.nearest_native if backend == "native" else faiss_search.nearest_faiss
    if alive is None or bool(alive.all()):
        return search(latents, codebook)
    indices = alive.nonzero().squeeze(1)
    return indices[search(latents, codebook[indices])]
