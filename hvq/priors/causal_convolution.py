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

from hvq.priors.step_product import Change, RowWindow, StepProduct


def _channels_last(convolution: nn.Conv2d) -> nn.Conv2d:
    """Codes gather features channels last, and so the weights lie too: convolutions need not turn either."""
    return convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
        self.convolution = _channels_last(nn.Conv2d(inputs, outputs, (rows, columns), bias=bias))
        self.rows, self.margin = rows, columns // 2

    def forward(self, features: Tensor, *, delay: int = 0) -> Tensor:
        """Features `[B, E, h, w]` of `[B, C, h, w]`, of the rows that end `delay` rows above."""
        return self.convolution(functional.pad(features, (self.margin, self.margin, self.rows - 1 + delay, -delay)))

    def make_product(self) -> StepProduct:
        """Rows of weights in the order of rows, columns, channels."""
        weight = self.convolution.weight
        return StepProduct(weight.permute(0, 2, 3, 1).flatten(1), self.convolution.bias)


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
        self.convolution = _channels_last(nn.Conv2d(inputs, outputs, (1, taps), bias=bias))
        self.taps = taps

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, E, h, w]` of `[B, C, h, w]`."""
        return self.convolution(functional.pad(features, (self.taps - 1, 0)) if self.taps > 1 else features)

    def make_product(self) -> StepProduct:
        """Rows of weights in the order of columns, channels."""
        weight = self.convolution.weight[:, :, 0]
        return StepProduct(weight.transpose(1, 2).flatten(1), self.convolution.bias)


@dataclass
class CausalState:
    """Of both parts of a kernel.

    Attributes:
        own: the taps of the own row.
        above: those of the rows above; None for a kernel of one position.
        window: activated features of the own row and the rows above; None for a kernel of one position.
        added: `[B, w, E]`, what the rows above, and the condition, add to each position.
    """

    own: StepProduct
    above: StepProduct | None
    window: RowWindow | None
    added: Tensor | None = None


class CausalConvolution(nn.Module):
    """ELU, then a convolution that sees its own position, `kernel // 2` to the left, and the `kernel - 1` rows above,
    as far to the right as to the left.

    Args:
        inputs: C.
        outputs: E.
        kernel: odd; 1 sees its own position alone.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.own = ColumnConvolution(inputs, outputs, taps=kernel // 2 + 1)
        self.above = (
            RowConvolution(inputs, outputs, rows=kernel - 1, columns=kernel, bias=False) if kernel > 1 else None
        )
        self._match_scale()

    @torch.no_grad()
    def _match_scale(self) -> None:
        """Each part starts as it would in a kernel of the size of both."""
        if self.above is None:
            return
        inputs = self.own.convolution.in_channels
        bound = (inputs * (self.own.taps + (self.kernel - 1) * self.kernel)) ** -0.5
        for part in (self.own, self.above):
            nn.init.uniform_(part.convolution.weight, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, E, h, w]` of `[B, C, h, w]`."""
        features = functional.elu(features)
        own = self.own(features)
        return own if self.above is None else own + self.above(features, delay=1)

    def make_state(self, batch: int, width: int) -> CausalState:
        """Before the first row."""
        own = self.own.make_product()
        if self.above is None:
            return CausalState(own, None, None)
        window = RowWindow.make(self.own.convolution.weight, batch, self.kernel, width, self.kernel // 2)
        return CausalState(own, self.above.make_product(), window)

    def start_row(self, state: CausalState, added: Tensor | None = None) -> None:
        """Once the row before is complete: what the rows above say, and `added` `[B, w, E]`."""
        if state.above is not None and state.window is not None:
            state.window.advance()
            added = state.above.of_rows(state.window, self.kernel - 1, self.kernel, added)
        state.added = added

    def step(self, features: Tensor, column: int, state: CausalState, extra: Tensor | None = None) -> Tensor:
        """Features `[B, E]` of one position, of which `[B, C]` is the input; `extra` `[B, E]` is added to it."""
        assert extra is None or state.added is None
        added = extra if state.added is None else state.added[:, column]
        if state.window is None:
            return state.own(features, change=Change.ELU, add=added)
        state.window.write(functional.elu(features), column)
        return state.own.of_position(state.window, column, self.own.taps, added)
