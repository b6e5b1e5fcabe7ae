"""Which codes occur together: neighbours within a level, and codes of a level with the finer ones that they cover.

Letters: B images, h w a level's grid, K codebook size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from hvq.errors import DataError
from hvq.histograms import count_codes, entropy

LARGEST_TABLE = 2**22
"""Most entries of a table of counts, 32 MiB: that of two codebooks of 2,048."""

_LEAST_DIMENSIONS = 3

Pairs = tuple[Tensor, Tensor]
"""Codes of one shape; those at one place belong together."""


def right_neighbours(codes: Tensor) -> Pairs:
    """Codes `[B, h, w]` and those to the right of them; of grids of one axis or three, along the last one.

    >>> [side.tolist() for side in right_neighbours(torch.tensor([[[1, 2, 3]]]))]
    [[[[1, 2]]], [[[2, 3]]]]
    """
    return codes[..., :-1], codes[..., 1:]


def lower_neighbours(codes: Tensor) -> Pairs:
    """Codes `[B, h, w]` and those below them; of grids of three axes, along the last but one.

    Raises:
        DataError: where the grid has one axis.
    """
    if codes.dim() < _LEAST_DIMENSIONS:
        raise DataError("codes on a grid of one axis have no lower neighbours; take right_neighbours")
    return codes[..., :-1, :], codes[..., 1:, :]


def covered_codes(coarser: Tensor, finer: Tensor, ratio: int) -> Pairs:
    """Each code of a finer level with the coarser one that covers it.

    Args:
        coarser: `[B, h, w]`, or of one axis or three.
        finer: `[B, h', w']`, at most `ratio` times as many along each axis.
        ratio: finer codes per coarser one, along each axis.

    >>> [side.tolist() for side in covered_codes(torch.tensor([[[5, 7]]]), torch.tensor([[[0, 1, 2]]]), 2)]
    [[[[5, 5, 7]]], [[[0, 1, 2]]]]
    """
    for axis in range(1, coarser.dim()):
        coarser = coarser.repeat_interleave(ratio, axis).narrow(axis, 0, finer.shape[axis])
    return coarser, finer


class Cooccurrence(NamedTuple):
    """What `CodeCooccurrence` gives.

    Args:
        mutual_information: of the counts as they are, in nats, from 0 to log of the smaller codebook's size. Pairs of
            independent codes do not reach 0: they lie about (K - 1) (K' - 1) / 2N above it, for N pairs.
        corrected: less that, by the numbers of codes and pairs that occur (Miller and Madow 1955, for each of the three
            entropies); about 0, and at times below, where codes are independent.
        pairs: N.
        counts: int64 `[K, K']`.
    """

    mutual_information: float
    corrected: float
    pairs: int
    counts: Tensor


class CodeCooccurrence(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """Counts of pairs of codes, and their mutual information H(first) + H(second) - H(first, second) in nats.

    Counts are integers, so the result is the same for any batch size and, through `torchmetrics`, number of processes,
    to the last bit.

    Args:
        first_size: K of the first codes.
        second_size: K' of the second.

    Raises:
        DataError: where a size is not at least 1, or the table has more than `LARGEST_TABLE` entries.

    >>> together = CodeCooccurrence(first_size=2, second_size=2)
    >>> together.update(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    >>> round(float(torch.tensor(together.compute().mutual_information).exp()), 4)
    2.0
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor

    def __init__(self, *, first_size: int, second_size: int) -> None:
        super().__init__()
        if min(first_size, second_size) < 1 or first_size * second_size > LARGEST_TABLE:
            raise DataError(
                f"codebooks must have at least 1 code, and a table of pairs at most {LARGEST_TABLE} entries; received "
                f"{first_size} and {second_size}"
            )
        self.add_state("counts", torch.zeros(first_size, second_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Count pairs.

        Args:
            first: int64 of any shape, each in 0 .. K - 1.
            second: int64 of the same shape, each in 0 .. K' - 1.

        Raises:
            DataError: where the shapes differ, or a code is not in its codebook.
        """
        if first.shape != second.shape:
            raise DataError(f"codes must come in pairs; received {list(first.shape)} and {list(second.shape)}")
        if first.numel() == 0:
            return
        for codes, size in ((first, self.counts.shape[0]), (second, self.counts.shape[1])):
            low, high = (int(bound) for bound in torch.aminmax(codes))
            if low < 0 or high >= size:
                raise DataError(f"codes must lie in 0 .. {size - 1}; received {low} .. {high}")
        places = first.reshape(-1) * self.counts.shape[1] + second.reshape(-1)
        self.counts += count_codes(places, self.counts.numel()).view_as(self.counts)

    def compute(self) -> Cooccurrence:
        """What the pairs of all processes say.

        Raises:
            DataError: where none was counted.
        """
        pairs = int(self.counts.sum())
        if pairs == 0:
            raise DataError("mutual information needs at least one pair of codes; none was counted")
        counts = self.counts.clone()
        first, second = counts.sum(1), counts.sum(0)
        information = float(entropy(first) + entropy(second) - entropy(counts.flatten()))
        surplus = int((counts > 0).sum()) - int((first > 0).sum()) - int((second > 0).sum()) + 1
        return Cooccurrence(max(0.0, information), information - surplus / (2 * pairs), pairs, counts)
