"""The contract of every prior.

Letters: B batch, `*grid` the level's spatial axes, in raster order T positions, K codebook size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hvq.priors.condition import Condition


class Prior(nn.Module, ABC):
    """p(codes | condition) as a product over positions in raster order.

    `forward` gives all positions at once, by teacher forcing. For sampling, `make_cache` encodes the condition once
    and preallocates for one batch and grid; `step` takes the cache and returns it. Nothing is kept on the module.
    """

    codebook_size: int
    # Codebook size of every coarser level that it is conditioned on, by name, coarse to fine.
    coarser: dict[str, int]

    @abstractmethod
    def forward(self, codes: Tensor, condition: Condition) -> Tensor:
        """Logits `[B, *grid, K]` of integer codes `[B, *grid]`; those of a position see earlier positions only."""

    @abstractmethod
    def make_cache(self, condition: Condition, batch: int, grid: Sequence[int]) -> Any:
        """A cache for sampling `batch` grids from their first position on."""

    @abstractmethod
    def step(self, previous: Tensor | None, cache: Any) -> tuple[Tensor, Any]:
        """Logits `[B, K]` of the next position.

        Args:
            previous: int64 `[B]`, the codes of the position before; None at the first.
            cache: of `make_cache`, or of the step before; it is used up.

        Raises:
            ValueError: where the grid is already complete.
        """
