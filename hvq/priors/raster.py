"""What the convolutional priors share: conditions and codes on a grid of two axes, read row by row.

A grid of one axis is a single row: what lies above it is beyond the edge, here as everywhere.

Letters: B batch, h w grid, T positions, G codes per position, E channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from hvq.errors import ConfigurationError
from hvq.priors.base import Prior, PriorLevel
from hvq.priors.condition import Condition
from hvq.priors.taps import CodeTaps

_AXES = 2
_WORDS = {1: "one axis", 2: "two axes"}


@dataclass
class RasterState:
    """What a convolutional prior carries from position to position.

    Attributes:
        codes: int64, with the surroundings of the grid, filled position by position.
        context: `[B, h, w, channels]`, the encoded condition.
        width: w.
        layers: of the kind.
    """

    codes: Tensor
    context: Tensor
    width: int
    layers: Any


class RasterPrior(Prior):
    """A convolutional prior; a kind defines `grid_features`, `make_layers`, `start_row` and `step_position`.

    Args:
        width: E.
        context_blocks: residual blocks of convolutions that read each coarser level.
        kernel: columns that a convolution sees, an odd number.
        context_width: channels of the encoded condition; `width` by default.
        gated_context: whether the condition is encoded as in public PixelSNAILs.
        level: what every kind is built for, `PriorLevel`.

    Raises:
        ConfigurationError: where the kernel is even, or the grid has three axes.
    """

    def __init__(
        self,
        *,
        width: int,
        context_blocks: int,
        kernel: int,
        context_width: int | None = None,
        gated_context: bool = False,
        **level: Unpack[PriorLevel],
    ) -> None:
        super().__init__(**level)
        if kernel % 2 == 0 or kernel < 3:
            raise ConfigurationError(f"kernel must be an odd number of at least 3; received {kernel}")
        if self.spatial_dims not in (1, _AXES):
            raise ConfigurationError(
                f"convolutional priors take grids of one axis or two; received spatial_dims {self.spatial_dims}: take "
                "kind transformer for these"
            )
        self.condition = self._make_condition(
            context_width or width, context_blocks, spatial_dims=_AXES, gated=gated_context
        )
        self.head = self._make_head(width)

    @property
    @abstractmethod
    def taps(self) -> CodeTaps:
        """Those that know how far codes are padded."""

    @abstractmethod
    def grid_features(self, codes: Tensor, condition: Condition) -> Tensor:
        """`features` of a grid of two axes: `[B, h, w, E]` of codes `[B, h, w, G]`."""

    @abstractmethod
    def make_layers(self, state: RasterState, batch: int, grid: Sequence[int]) -> Any:
        """States of the layers before the first position."""

    @abstractmethod
    def start_row(self, state: RasterState, row: int) -> None:
        """All that can be computed for a row before its first code is known."""

    @abstractmethod
    def step_position(self, state: RasterState, row: int, column: int) -> Tensor:
        """Features `[B, E]` of a position, once its row is started."""

    def features(self, codes: Tensor, condition: Condition) -> Tensor:
        """Features `[B, *grid, E]` of codes `[B, *grid, G]`."""
        _require_axes(codes.shape[1:-1], self.spatial_dims)
        if self.spatial_dims == _AXES:
            return self.grid_features(codes, condition)
        return self.grid_features(codes.unsqueeze(1), _in_one_row(condition)).squeeze(1)

    def make_state(self, condition: Condition, batch: int, grid: Sequence[int]) -> RasterState:
        """Encode the condition, once, lay out the weights, and preallocate for a whole grid (h, w), or (T)."""
        _require_axes(grid, self.spatial_dims)
        if self.spatial_dims < _AXES:
            condition, grid = _in_one_row(condition), (1, *grid)
        context = self.condition(condition, batch, grid).movedim(1, -1).contiguous()
        outside = torch.full(
            (batch, *grid, self.codes_per_position), self.codebook_size, dtype=torch.int64, device=context.device
        )
        state = RasterState(self.taps.pad(outside), context, grid[1], None)
        state.layers = self.make_layers(state, batch, grid)
        return state

    def step_features(self, previous: Tensor | None, state: RasterState, position: int) -> Tensor:
        """Features `[B, E]` of one position, given int64 `[B, G]` of the one before."""
        if previous is not None:
            self.taps.write(state.codes, previous, (position - 1) // state.width, (position - 1) % state.width)
        row, column = position // state.width, position % state.width
        if column == 0:
            self.start_row(state, row)
        return self.step_position(state, row, column)

    def encode_condition(self, codes: Tensor, condition: Condition) -> Tensor:
        """The condition `[B, E, h, w]` for codes `[B, h, w, G]`."""
        return self.condition(condition, len(codes), codes.shape[1:-1])


def _require_axes(grid: Sequence[int], axes: int) -> None:
    if len(grid) != axes:
        raise ConfigurationError(
            f"this convolutional prior takes grids of {_WORDS[axes]}; received {len(grid)}: make it with spatial_dims "
            f"{len(grid)}, or take kind transformer"
        )


def _in_one_row(condition: Condition) -> Condition:
    """Codes `[B, T]` as `[B, 1, T]`, `[B, T, G]` as `[B, 1, T, G]`, and a dense map in the same way."""
    features = condition.features
    return replace(
        condition,
        codes={name: codes.unsqueeze(1) for name, codes in condition.codes.items()},
        features=None if features is None else features.unsqueeze(2),
    )


def embed(taps: CodeTaps, padded: Tensor, grid: Sequence[int]) -> Tensor:
    """Features `[B, E, h, w]` of a whole grid of padded codes."""
    return taps(padded, rows=(0, grid[0]), columns=(0, grid[1])).movedim(-1, 1)
