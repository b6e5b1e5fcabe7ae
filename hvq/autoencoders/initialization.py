"""The first codebooks: k-means over latents of all processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hvq.autoencoders.stack import Autoencoder
from hvq.distributed import Reduction
from hvq.errors import DataError

# Latents per code that k-means looks at; FAISS asks for 39 at least, and calls fewer a poor training set.
_LATENTS_PER_CODE = 32


def needs_codebooks(model: Autoencoder) -> bool:
    """Whether any level's codebook has not been initialized; a flag that checkpoints keep."""
    return not all(quantizer.initialized for quantizer in model.quantizers.values())


@torch.no_grad()
def initialize_codebooks(
    model: Autoencoder,
    batches: Iterable[Tensor],
    reduction: Reduction | None = None,
    *,
    batches_per_step: int = 1,
) -> None:
    """Set every codebook that learns from its latents by k-means, coarse to fine, unless it has been set before.

    A level's latents depend on the coarser codebooks. Takes as many batches as give 32 latents per code at every level,
    or all there are. Levels whose latents passed unquantized until now (`let_latents_pass`) are quantized from here on.

    Args:
        model: not wrapped for parallel training.
        batches: images `[B, C, H, W]` of this process.
        reduction: over the processes that train together.
        batches_per_step: how many of them one optimizer step takes; moving averages begin as those of a step.

    Raises:
        DataError: where there are no batches.
    """
    reduction = reduction or Reduction()
    images = batches_for_codebooks(model, batches, reduction.size)
    was_training = model.training
    model.eval()
    for name, quantizer in model.quantizers.items():
        if not quantizer.starts_from_latents or quantizer.initialized:
            continue
        latents = []
        for batch in images:
            latents.append(model.latents(batch, name))
            if sum(map(len, latents)) * reduction.size >= _LATENTS_PER_CODE * quantizer.codebook_size:
                break
        quantizer.initialize(torch.cat(latents), len(latents) / batches_per_step, reduction)
        quantizer.continuous = False
    model.train(was_training)


def let_latents_pass(model: Autoencoder) -> None:
    """Have latents pass unquantized at every level whose codebook is still to be set by `initialize_codebooks`.

    An autoencoder learns faster without codes, and codebooks that are set from the latents of one that has learned
    something fit better (Łańcucki et al. 2020, arXiv 2005.08520, on when to set them).
    """
    for quantizer in model.quantizers.values():
        quantizer.continuous = quantizer.starts_from_latents and not quantizer.initialized


def batches_for_codebooks(model: Autoencoder, batches: Iterable[Tensor], num_processes: int = 1) -> list[Tensor]:
    """As many of the batches `[B, C, H, W]` of this process as `initialize_codebooks` takes.

    Raises:
        DataError: where there are none.
    """
    taken: list[Tensor] = []
    wanted = {
        name: _LATENTS_PER_CODE * quantizer.codebook_size
        for name, quantizer in model.quantizers.items()
        if quantizer.starts_from_latents and not quantizer.initialized
    }
    for batch in batches:
        taken.append(batch)
        for name, grid in model.grids(batch.shape[2:]).items():
            if name in wanted:
                wanted[name] -= len(batch) * int(torch.Size(grid).numel()) * num_processes
        if max(wanted.values(), default=0) <= 0:
            break
    if not taken:
        raise DataError("codebooks are initialized from at least one batch of images; received none")
    return taken
