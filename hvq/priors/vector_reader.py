"""A vector that a prior is told, such as a text embedding or attributes, or that it is not told.

Letters: B batch, V length of a vector, E channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from hvq.errors import DataError

_RELATIVE_ROUNDING = 1e-6


class VectorReader(nn.Module):
    """Vectors `[B, V]` to features `[B, E]`: standardized, then a linear map; a learned stand-in where one is hidden.

    A vector is hidden where its row is NaN throughout. That differs from a vector of zeros, which is one as any other.

    Args:
        vector_size: V.
        channels: E.

    >>> reader = VectorReader(2, 3)
    >>> hidden = reader(torch.full((1, 2), torch.nan), 1)
    >>> torch.equal(hidden[0], reader.unknown), torch.equal(reader(torch.zeros(1, 2), 1), hidden)
    (True, False)
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, vector_size: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vector_size, channels)
        # Stands for a vector that is unknown.
        self.unknown = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(vector_size))
        self.register_buffer("deviation", torch.ones(vector_size))

    @torch.no_grad()
    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Subtract the mean of training vectors, and divide by their deviation, from now on.

        Args:
            mean: `[V]`.
            deviation: `[V]`; a number that is always the same, but for rounding, tells nothing and is not divided.
        """
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > _RELATIVE_ROUNDING * mean.abs(), deviation, 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts to half precision leave mean and deviation as they are: what they differ by would be lost."""
        wide = self.mean, self.deviation
        super()._apply(fn, recurse)
        if self.mean.dtype not in (torch.float32, torch.float64):
            self.mean, self.deviation = (tensor.to(self.mean.device) for tensor in wide)
        return self

    def forward(self, vectors: Tensor | None, batch: int) -> Tensor:
        """Features `[B, E]`; None hides all.

        Raises:
            DataError: where vectors are not `[B, V]`, or a row holds numbers beside NaN or infinity.
        """
        if vectors is None:
            return self.unknown.expand(batch, -1)
        _check(vectors, batch, self.linear.in_features)
        hidden = vectors.isnan()
        # Numbers far from 0 lose nothing but what the mean takes away, for the difference is rounded after it is taken.
        wide = torch.promote_types(vectors.dtype, self.mean.dtype)
        known = (vectors.to(wide) - self.mean.to(wide)) / self.deviation.to(wide)
        features: Tensor = self.linear(known.masked_fill(hidden, 0).to(self.linear.weight.dtype))
        return torch.where(hidden.all(dim=1, keepdim=True), self.unknown.to(features.dtype), features)


def hidden_rows(vectors: Tensor) -> Tensor:
    """bool `[B]`: which of the vectors `[B, V]` are hidden."""
    return vectors.isnan().all(dim=1)


def check_rows(vectors: Tensor, what: str) -> None:
    """Refuse rows that are neither numbers throughout nor NaN throughout.

    Raises:
        DataError: which names the first of them.
    """
    faulty = ~(vectors.isfinite().all(dim=1) | hidden_rows(vectors))
    if bool(faulty.any()):
        raise DataError(
            f"{what} must be finite numbers, or NaN throughout where one is hidden; row {int(faulty.nonzero()[0])} "
            "holds both, or infinity"
        )


def _check(vectors: Tensor, batch: int, size: int) -> None:
    if tuple(vectors.shape) != (batch, size) or not vectors.is_floating_point():
        raise DataError(
            f"vectors must be floating point {[batch, size]}, as this prior was built for; received {vectors.dtype} "
            f"{list(vectors.shape)}"
        )
    if not torch.compiler.is_compiling():
        check_rows(vectors, "vectors")


def standardize_vectors(prior: nn.Module, mean: Tensor, deviation: Tensor) -> None:
    """Have a prior standardize the vectors that it is told.

    Args:
        prior: conditioned on vectors.
        mean: `[V]` of training vectors.
        deviation: `[V]`, their standard deviation.
    """
    for part in prior.modules():
        if isinstance(part, VectorReader):
            part.standardize(mean, deviation)
