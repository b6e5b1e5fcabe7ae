"""Convolutions that see earlier positions only, over whole grids or one position at a time.

A kernel is split by what it can be told, and when. What lies in the rows above is known before a row begins, so its
share is computed for the whole row in one matrix product; a step is left with the few taps of its own row. Sampling
thus reads most weights once a row, not once a position. Nothing that a mask would cancel is computed.

Letters: B batch, h w grid, C and E channels in and out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class RowState:
    """Weights `[E, rows·columns·C]` laid out for products, and the last rows of features `[B, rows, w + margin, C]`."""

    weights: Tensor
    window: Tensor


class RowConvolution(nn.Module):
    """Sees `rows` rows, the last of them its own, and as many columns to either side.

    Args:
        inputs: C.
        outputs: E.
        rows: height of the kernel.
        columns: width of the kernel, odd.
        bias: whether it has one.
    """

    def __init__(self, inputs: int, outputs: int, *, rows: int, columns: int, bias: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, (rows, columns), bias=bias)
        self.rows, self.margin = rows, columns // 2

    def forward(self, features: Tensor, *, delay: int = 0) -> Tensor:
        """Features `[B, E, h, w]` of `[B, C, h, w]`, of the rows that end `delay` rows above."""
        return self.convolution(functional.pad(features, (self.margin, self.margin, self.rows - 1 + delay, -delay)))

    def make_state(self, batch: int, width: int) -> RowState:
        """Before the first row."""
        weights = self.convolution.weight
        outputs, inputs, rows, _ = weights.shape
        laid_out = weights.permute(0, 2, 3, 1).reshape(outputs, -1).contiguous()
        return RowState(laid_out, weights.new_zeros(batch, rows, width + 2 * self.margin, inputs))

    def step_row(self, row: Tensor, state: RowState) -> Tensor:
        """Features `[B, w, E]` of the next row, of which `[B, w, C]` is the input."""
        window, width = state.window, row.shape[1]
        window[:, :-1] = window[:, 1:].clone()
        window[:, -1, self.margin : self.margin + width] = row
        batch, rows, _, inputs = window.shape
        # Columns lie one behind the other, so what a position sees of a row is one run of numbers.
        strides = (window.stride(0), window.stride(2), window.stride(1), 1)
        seen = window.as_strided((batch, width, rows, (2 * self.margin + 1) * inputs), strides)
        return functional.linear(seen.flatten(2), state.weights, self.convolution.bias)


@dataclass
class ColumnState:
    """Weights `[E, taps·C]` laid out for products, and the row `[B, taps - 1 + w, C]`."""

    weights: Tensor
    row: Tensor


class ColumnConvolution(nn.Module):
    """Sees `taps` positions of a row, the last of them its own.

    Args:
        inputs: C.
        outputs: E.
        taps: width of the kernel.
        bias: whether it has one.
    """

    def __init__(self, inputs: int, outputs: int, *, taps: int, bias: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, (1, taps), bias=bias)
        self.taps = taps

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, E, h, w]` of `[B, C, h, w]`."""
        return self.convolution(functional.pad(features, (self.taps - 1, 0)) if self.taps > 1 else features)

    def make_state(self, batch: int, width: int) -> ColumnState:
        """Before the first position of any row: what the row before left is overwritten."""
        weights = self.convolution.weight
        laid_out = weights[:, :, 0].transpose(1, 2).reshape(len(weights), -1).contiguous()
        return ColumnState(laid_out, weights.new_zeros(batch, self.taps - 1 + width, weights.shape[1]))

    def step(self, features: Tensor, column: int, state: ColumnState) -> Tensor:
        """Features `[B, E]` of one position, of which `[B, C]` is the input."""
        if self.taps > 1:
            state.row[:, self.taps - 1 + column] = features
            features = state.row[:, column : column + self.taps].flatten(1)
        return functional.linear(features, state.weights, self.convolution.bias)


@dataclass
class CausalState:
    """Of both parts of a kernel, and what the rows above, and the condition, add to each position `[B, w, E]`."""

    own: ColumnState
    above: RowState | None
    added: Tensor | None = None


class CausalConvolution(nn.Module):
    """Sees its own position, `kernel // 2` to the left, and the `kernel - 1` rows above, as far to the right as left.

    Args:
        inputs: C.
        outputs: E.
        kernel: odd; 1 sees its own position alone.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int) -> None:
        super().__init__()
        self.own = ColumnConvolution(inputs, outputs, taps=kernel // 2 + 1)
        self.above = (
            RowConvolution(inputs, outputs, rows=kernel - 1, columns=kernel, bias=False) if kernel > 1 else None
        )
        self._match_scale(kernel)

    @torch.no_grad()
    def _match_scale(self, kernel: int) -> None:
        """Each part starts as it would in a kernel of the size of both."""
        if self.above is None:
            return
        inputs = self.own.convolution.in_channels
        bound = (inputs * (self.own.taps + (kernel - 1) * kernel)) ** -0.5
        for part in (self.own, self.above):
            nn.init.uniform_(part.convolution.weight, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, E, h, w]` of `[B, C, h, w]`."""
        own = self.own(features)
        return own if self.above is None else own + self.above(features, delay=1)

    def make_state(self, batch: int, width: int) -> CausalState:
        """Before the first row."""
        above = None if self.above is None else self.above.make_state(batch, width)
        return CausalState(self.own.make_state(batch, width), above)

    def start_row(self, state: CausalState, added: Tensor | None = None) -> None:
        """Once the row before is complete: what the rows above say, and `added` `[B, w, E]`."""
        if self.above is not None and state.above is not None:
            from_above = self.above.step_row(state.own.row[:, self.own.taps - 1 :], state.above)
            added = from_above if added is None else added + from_above
        state.added = added

    def step(self, features: Tensor, column: int, state: CausalState) -> Tensor:
        """Features `[B, E]` of one position, of which `[B, C]` is the input."""
        own = self.own.step(features, column, state.own)
        return own if state.added is None else own + state.added[:, column]
