"""Vectors for samples that are measured beside real images: those of training images.

Letters: n samples, V numbers of a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hvq.data import CodeFolder
from hvq.randomness import uniform


def training_vectors(codes: CodeFolder, labels: Tensor, seed: int) -> Tensor:
    """For each sample the vector of a training image of its class, float32 `[n, V]`, which seed and number decide.

    Args:
        codes: of training images that have vectors.
        labels: int64 `[n]`; where a label is -1, or of no training image, any image will do.
        seed: of the choice.
    """
    assert codes.vectors is not None
    known = codes.labels()
    draws = torch.from_numpy(uniform(seed, "vectors of samples", np.arange(len(labels))))
    chosen = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        images = (known == label).nonzero().flatten() if label >= 0 else torch.zeros(0, dtype=torch.int64)
        images = images if len(images) else torch.arange(len(known))
        chosen[rows] = images[(draws[rows] * len(images)).long()]
    return codes.vectors[chosen]
