"""Real images that evaluation compares with, in memory on every process.

Letters: m images, C H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from hvq.config import RunConfig
from hvq.data import ImageSource, Subset, ordered_batches, spread_rows
from hvq.data.pixels import kept_type
from hvq.distributed import Reduction

# More than a small classifier learns from in its few steps, and as many as memory easily holds.
MOST_REAL_IMAGES, MOST_BYTES = 10_000, 2**31

Restore = Callable[[Tensor], Tensor]
"""From images as they are kept, uint8 `[B, C, H, W]` or float32 `[B, C, *size]`, to reconstructions of that form."""


def most_real_images(size: Sequence[int], channels: int) -> int:
    """How many images of a split are taken at most.

    >>> most_real_images((256, 256), 3), most_real_images((1024, 1024), 3)
    (10000, 682)
    """
    return max(1, min(MOST_REAL_IMAGES, MOST_BYTES // (channels * math.prod(size) * kept_type(size).itemsize)))


def gather_images(
    config: RunConfig,
    source: ImageSource,
    reduction: Reduction,
    device: torch.device,
    restore: Restore | None = None,
) -> dict[str, Tensor]:
    """At most `most_real_images` of a split, spread over all of it, in order, the same on every process.

    Args:
        config: of the run, which says how images are read.
        source: the split.
        reduction: over the processes, which read images in turn.
        device: where processes exchange them, one chunk of each at a time; those of several GPUs exchange nothing that
            is elsewhere.
        restore: gives reconstructions; none are made by default.

    Returns:
        On the CPU, `indices` in the split, int64 `[m]`, `labels`, int64 `[m]`, -1 where unknown, `images`, uint8
        `[m, C, H, W]` (float32 `[m, C, *size]` of signals and volumes), and `restored`, of the same form.
    """
    some = Subset(source, spread_rows(len(source), most_real_images(source.size, source.channels)))
    pictures = ("images",) if restore is None else ("images", "restored")
    columns = {name: torch.zeros(len(some), dtype=torch.int64) for name in ("indices", "labels")}
    columns |= {name: torch.zeros(len(some), source.channels, *source.size, dtype=source.dtype) for name in pictures}
    batches = ordered_batches(
        some,
        chunk_size=config.chunk_size,
        rank=reduction.rank,
        processes=reduction.size,
        workers=config.data.workers,
    )
    filled, exchanges = 0, range(0, len(some), config.chunk_size * reduction.size)
    # A process takes part in each exchange, also in the last one, for which there may be no chunk of its own.
    for _, batch in zip_longest(exchanges, batches):
        values = {name: column[:0] for name, column in columns.items()}
        if batch is not None:
            values = {"indices": batch.indices, "labels": batch.labels, "images": batch.images}
            if restore is not None:
                values["restored"] = restore(batch.images)
        for name, value in values.items():
            rows = reduction.concatenate(value.to(device)).cpu()
            columns[name][filled : filled + len(rows)] = rows
        filled += len(rows)
    return columns


def labelled(images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of `gather_images` whose class is known; the very tensors where all are."""
    known = images["labels"] >= 0
    if bool(known.all()):
        return images
    return {name: column[known] for name, column in images.items()}
