"""Codes and images through a trained hierarchy, in forwards of one fixed size, shared out over processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvq.chunks import map_chunks
from hvq.data.pixels import model_to_unit, unit_to_bytes
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, DataError
from hvq.level_names import in_level_order
from hvq.priors import SamplingOptions, sample_hierarchy
from hvq.storage import Hierarchy


@dataclass(frozen=True)
class Generated:
    """Samples, on the CPU.

    Attributes:
        codes: int64 `[n, h, w]` by level name, coarse to fine.
        images: uint8 `[n, C, H, W]`.
    """

    codes: dict[str, Tensor]
    images: Tensor


@torch.no_grad()
def decode_images(
    hierarchy: Hierarchy,
    codes: Mapping[str, Tensor],
    *,
    chunk_size: int,
    size: Sequence[int] | None = None,
    absent: Collection[str] = (),
) -> Tensor:
    """Images of codes, float `[n, C, H, W]` in [0, 1], on the CPU.

    Args:
        hierarchy: the trained system.
        codes: integers `[n, h, w]` by level name.
        chunk_size: rows of each forward.
        size: (H, W) of the images; that of the training images by default.
        absent: levels to leave out.

    Raises:
        DataError: where levels have different numbers of codes, or grids or codes do not fit the autoencoder.
    """
    model = hierarchy.autoencoder
    device = next(model.parameters()).device
    size = hierarchy.image_size if size is None else size
    codes = in_level_order(codes, model.level_names, "codes")
    rows = {name: len(code) for name, code in codes.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{number} of {name}" for name, number in rows.items())
        raise DataError(f"codes must be of the same images at every level; received {counts}")

    def decode(part: dict[str, Tensor]) -> dict[str, Tensor]:
        on_device = {name: code.to(device) for name, code in part.items()}
        return {"images": model_to_unit(model.decode(on_device, size=size, absent=absent)).cpu()}

    none = torch.zeros(0, hierarchy.channels, *size)
    return torch.cat([none, *(part["images"] for part in map_chunks(decode, codes, chunk_size))])


def generate(
    hierarchy: Hierarchy,
    *,
    samples: Sequence[int],
    labels: Sequence[int] | None,
    seed: int,
    chunk_size: int,
    options: Mapping[str, SamplingOptions] | None = None,
    reduction: Reduction | None = None,
    after_position: Callable[[], None] | None = None,
) -> Generated:
    """Draw codes from the priors and decode them; processes take chunks in turn, and all get everything.

    Args:
        hierarchy: with a prior for every level.
        samples: their numbers; sample i depends on (seed, i) and its label alone.
        labels: a class for each sample, -1 for none.
        seed: of the noise.
        chunk_size: samples drawn at a time.
        options: how codes are drawn, by level name; what the priors were saved with by default.
        reduction: over the processes that share the work.
        after_position: called after each position of each chunk, for a progress bar.

    Raises:
        CheckpointError: where a level has no prior.
        DataError: where a label is not a class, or options are given for a level that there is not.
    """
    missing = [name for name in hierarchy.autoencoder.level_names if name not in hierarchy.priors]
    if missing:
        raise CheckpointError(f"sampling takes a prior for every level; train that of {', '.join(missing)} first")
    unknown = [name for name in options or {} if name not in hierarchy.priors]
    if unknown:
        known = ", ".join(hierarchy.autoencoder.level_names)
        raise DataError(f"options name {', '.join(unknown)}, which is not a level; the levels are {known}")
    reduction = reduction or Reduction()
    chunks = np.array_split(np.arange(len(samples)), range(chunk_size, len(samples), chunk_size))
    mine = np.concatenate([np.zeros(0, np.int64), *chunks[reduction.rank :: reduction.size]])
    codes = sample_hierarchy(
        hierarchy.priors,
        hierarchy.grids,
        samples=np.asarray(samples)[mine].tolist(),
        labels=None if labels is None else np.asarray(labels)[mine].tolist(),
        seed=seed,
        options={**hierarchy.options, **(options or {})},
        chunk_size=chunk_size,
        after_position=after_position,
    )
    device = next(hierarchy.autoencoder.parameters()).device
    order = reduction.concatenate(torch.from_numpy(mine).to(device)).argsort().cpu()
    codes = {name: reduction.concatenate(code.to(device)).cpu()[order] for name, code in codes.items()}
    return Generated(codes, unit_to_bytes(decode_images(hierarchy, codes, chunk_size=chunk_size)))
